"""minialbert.py, the model, against transformers, torch and matrices multiplied by hand."""
import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from checkpoint import load
from conftest import (
    A, B, C, D, E, F, H, K, KINDS, MAX_POSITIONS, R, T, V, assert_close, assert_same_as_authors,
    assert_same_as_bert, authors_checkpoint, authors_weights, make_batch, random_bert,
    random_model, randomise, small_config)
from minialbert import (
    Adapter, Attention, Config, Layer, MiniALBERT, count_parameters, initialise, keep_recursions,
    merge_corrections, sinusoids)


# ---- The shape of a model ---------------------------------------------------------------

def test_a_size_may_not_be_divided_unevenly_among_the_heads():
    with pytest.raises(ValueError, match="hidden_size 24 .* num_attention_heads 5"):
        small_config(num_attention_heads=5)


def test_there_may_not_be_more_layers_than_recursions():
    small_config(num_hidden_groups=R)
    with pytest.raises(ValueError, match="num_hidden_groups 6 .* num_hidden_layers 5"):
        small_config(num_hidden_groups=R + 1)


@pytest.mark.parametrize("name, allowed, refused", [
    ("vocab_size", [1, 2**24], [0, -1, 2**24 + 1, 2.0, "2", None, True]),
    ("num_hidden_layers", [1, 2**10], [0, 2**10 + 1]),
    ("adapter_size", [0, 1], [-1, 0.0]),
    ("correction_rank", [0, C], [-1, C + 1, 1.0]),
    ("hidden_dropout_prob", [0, 1, 0.5], [-0.1, 1.1, "0", float("nan"), True]),
    ("tie_decoder", [True, False], [0, 1, "yes", None])])
def test_a_field_has_a_type_and_a_range(name, allowed, refused):
    for value in allowed:
        assert getattr(small_config(**{name: value}), name) == value
    for value in refused:
        with pytest.raises(ValueError, match=name):
            small_config(**{name: value})


@pytest.mark.parametrize("kind", KINDS)
def test_a_bert_is_a_model_that_shares_nothing(kind):
    assert small_config(**KINDS[kind]).is_bert == kind.startswith("bert")


def test_a_correction_has_at_most_the_rank_of_its_smallest_matrix():
    with pytest.raises(ValueError, match="correction_rank 9 .* intermediate_size 8"):
        small_config(correction_rank=9, intermediate_size=8)


def test_adapters_corrections_or_a_shared_layer_make_it_no_bert():
    bert = KINDS["bert"]
    assert not small_config(**bert | {"adapter_size": A}).is_bert
    assert not small_config(**bert | {"correction_rank": K}).is_bert
    assert not small_config(**bert | {"num_hidden_groups": R - 1}).is_bert
    assert not small_config(**bert | {"embedding_size": E}).is_bert


# ---- A BERT is what transformers says it is ---------------------------------------------

@pytest.mark.parametrize("layer_norm_eps", [1e-12, 0.1])
def test_a_bert_computes_what_transformers_computes(transformers, tmp_path, layer_norm_eps):
    bert = random_bert(transformers, layer_norm_eps=layer_norm_eps)
    bert.save_pretrained(tmp_path)
    assert_same_as_bert(load(tmp_path), bert)


def test_a_bert_of_base_size_computes_what_transformers_computes(transformers, tmp_path):
    # Of base size but for the vocabulary and the depth, which would only make the file larger.
    bert = random_bert(transformers, hidden_size=768, num_hidden_layers=3, num_attention_heads=12,
                       intermediate_size=3072)
    with torch.no_grad():
        for parameter in bert.parameters():
            if parameter.ndim == 2:
                parameter.mul_(0.2)                      # about N(0, 0.04), as if trained
    bert.save_pretrained(tmp_path)
    # A sum of 768 or 3072 products in float32 depends on the order in which they are added.
    assert_same_as_bert(load(tmp_path), bert, limit=1e-4)


def test_a_bert_with_an_untied_decoder_computes_what_transformers_computes(transformers, tmp_path):
    bert = random_bert(transformers, tie_word_embeddings=False)
    bert.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert not model.config.tie_decoder
    assert_same_as_bert(model, bert)


def test_a_layer_is_torchs_encoder_layer():
    model = random_model(num_hidden_layers=1, embedding_size=C)
    layer = model.layer_of_recursion(0)
    attention = layer.attention
    theirs = nn.TransformerEncoderLayer(C, H, F, dropout=0.0, activation="gelu",
                                        layer_norm_eps=1e-12, batch_first=True)
    parts = {"self_attn.out_proj": attention.output, "linear1": layer.intermediate,
             "linear2": layer.output, "norm1": layer.attention_norm, "norm2": layer.norm}
    projections = [attention.query, attention.key, attention.value]
    weights = {"self_attn.in_proj_weight": torch.cat([part.weight for part in projections]),
               "self_attn.in_proj_bias": torch.cat([part.bias for part in projections])}
    for name, part in parts.items():
        weights[f"{name}.weight"] = part.weight
        weights[f"{name}.bias"] = part.bias
    theirs.load_state_dict(weights)
    ids, mask, segments = make_batch()
    hidden, _ = model(ids, mask, segments)
    expected = theirs(hidden[0], src_key_padding_mask=~mask)
    assert_close(hidden[1][mask], expected[mask])


# ---- A student is what the authors' code says it is -------------------------------------

@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("embedding_size", [E, C])
def test_a_student_computes_what_the_authors_code_does(tmp_path, embedding_size, adapters):
    weights = authors_weights(embedding_size, adapters)
    assert_same_as_authors(load(authors_checkpoint(weights, tmp_path)), weights)


def test_a_partly_shared_student_uses_its_layers_in_alberts_order(transformers, tmp_path):
    config = transformers.AlbertConfig(
        vocab_size=V, embedding_size=E, hidden_size=C, num_hidden_layers=5, num_hidden_groups=2,
        num_attention_heads=H, intermediate_size=F, max_position_embeddings=MAX_POSITIONS,
        hidden_act="gelu")
    torch.manual_seed(0)
    albert = randomise(transformers.AlbertModel(config))
    albert.save_pretrained(tmp_path)
    ids, mask, segments = make_batch()
    with torch.no_grad():
        theirs = albert(ids, attention_mask=mask.long(), token_type_ids=segments)
        hidden, _ = load(tmp_path)(ids, mask, segments)
    assert_close(hidden[-1], theirs.last_hidden_state)


@torch.no_grad()
def test_a_tied_head_decodes_with_the_embedding_backwards():
    model = random_model()
    hidden = torch.randn(5, C)
    x = model.head.norm(nn.functional.gelu(model.head.dense(hidden)))
    table = model.embeddings.word.weight @ model.embeddings.project.weight.T     # (V, C)
    assert_close(model.predict(hidden), x @ table.T + model.head.bias)


# ---- The numbers of parameters are those of the paper -----------------------------------

def count(**changes):
    """Count the parameters of a model of the usual size, which takes no memory here."""
    with torch.device("meta"):
        return count_parameters(MiniALBERT(Config(**changes)))


@pytest.mark.parametrize("embedding_size, adapter_size, body", [
    (128, 0, 11_159_808), (128, 48, 12_072_768), (312, 48, 17_925_072)])
def test_the_body_has_the_papers_number_of_parameters(embedding_size, adapter_size, body):
    assert count(embedding_size=embedding_size, adapter_size=adapter_size)["body"] == body


def test_the_twelve_adapters_have_912960_parameters():
    assert count(adapter_size=48)["own_parts"] == 912_960


# The sizes are in millions: of the body without adapters, of the body, of both with the pooler,
# and of everything in the file.
@pytest.mark.parametrize("vocab_size, embedding_size, bare, body, pooled, file", [
    (30522, 128, 11.16, 12.07, 12.66, 36.73), (30522, 312, 17.01, 17.93, 18.52, 42.58),
    (30522, 768, 30.93, 31.84, 32.43, 56.49), (28996, 128, 10.96, 11.88, 12.47, 35.36),
    (28996, 312, 16.54, 17.45, 18.04, 40.93)])
def test_the_authors_files_have_the_size_they_have_on_the_hub(
        vocab_size, embedding_size, bare, body, pooled, file):
    counts = count(vocab_size=vocab_size, embedding_size=embedding_size, adapter_size=48,
                   tie_decoder=False)
    pooler = 768 * 768 + 768                             # it is in their files and never used
    found = [counts["body"] - counts["own_parts"], counts["body"], counts["body"] + pooler,
             counts["stored"] + pooler]
    assert [round(number / 1e6, 2) for number in found] == [bare, body, pooled, file]


def test_a_tied_head_costs_its_transform_and_a_bias():
    assert count()["head"] == 768 * 768 + 768 + 2 * 768 + 30522


def test_applied_counts_a_shared_layer_at_each_use():
    one_layer = 7_087_872
    counts = count(adapter_size=48)
    assert counts["layers"] == one_layer
    assert counts["applied"] == counts["stored"] + 5 * one_layer


def test_applied_counts_layers_that_are_not_shared_once():
    counts = count(num_hidden_groups=6)
    assert counts["applied"] == counts["stored"]


def test_all_parameters_are_counted_in_exactly_one_part():
    model = random_model(adapter_size=A, correction_rank=K, num_hidden_groups=3)
    counts = count_parameters(model)
    assert counts["stored"] == sum(parameter.numel() for parameter in model.parameters())
    parts = [counts[part] for part in ("embeddings", "layers", "own_parts", "head")]
    assert min(parts) > 0 and sum(parts) == counts["stored"]


def test_corrections_count_as_adapters():
    """A matrix (n, m) has K (n + m) parameters: four with n = m = C, two with C and F."""
    counts = count_parameters(random_model(correction_rank=K))
    assert counts["own_parts"] == R * (4 * K * 2 * C + 2 * K * (C + F))


# ---- Sharing ----------------------------------------------------------------------------

def test_a_recursive_student_has_as_many_tensors_however_often_its_layer_is_applied():
    few = MiniALBERT(small_config(num_hidden_layers=2))
    many = MiniALBERT(small_config(num_hidden_layers=9))
    assert len(list(few.parameters())) == len(list(many.parameters()))


def test_the_gradient_of_a_shared_layer_is_the_sum_over_its_uses():
    shared = random_model()
    apart = random_model(num_hidden_groups=R)
    apart.load_state_dict(shared.state_dict(), strict=False)
    for layer in apart.layers:
        layer.load_state_dict(shared.layers[0].state_dict())
    for model in (shared, apart):
        hidden, _ = model(*make_batch())
        hidden[-1].square().sum().backward()
    copies = [dict(layer.named_parameters()) for layer in apart.layers]
    for name, parameter in shared.layers[0].named_parameters():
        expected = sum(parameters[name].grad for parameters in copies)
        assert_close(parameter.grad, expected, 1e-4 * parameter.grad.abs().max())


# ---- Fewer recursions -------------------------------------------------------------------

@pytest.mark.parametrize("kind", [kind for kind in KINDS if "partly" not in kind])
@pytest.mark.parametrize("recursions", [1, 3, R])
def test_the_first_recursions_do_what_they_did_before(kind, recursions):
    model = random_model(**KINDS[kind])
    ids, mask, segments = make_batch()
    with torch.no_grad():
        expected, expected_maps = model(ids, mask, segments, maps=range(R))
        cut_model = copy.deepcopy(model)
        keep_recursions(cut_model, recursions)
        found, found_maps = cut_model(ids, mask, segments, maps=range(recursions))
    assert len(found) == recursions + 1
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected))
    assert list(found_maps) == list(range(recursions))
    assert all(torch.equal(found_maps[r], expected_maps[r]) for r in found_maps)
    # What is left is all that a model of this shape has.
    assert cut_model.state_dict().keys() == MiniALBERT(cut_model.config).state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_merged_corrections_computes_the_same(kind):
    model = random_model(**KINDS[kind])
    before = copy.deepcopy(model.state_dict())
    merged = merge_corrections(model)
    assert merged.config == replace(model.config, num_hidden_groups=R, correction_rank=0)
    assert not merged.training and merge_corrections(model.train()).training
    model.eval()
    ids, mask, segments = make_batch()
    with torch.no_grad():
        expected, expected_maps = model(ids, mask, segments, maps=range(R))
        found, found_maps = merged(ids, mask, segments, maps=range(R))
        assert_close(merged.predict(found[-1][:, 0]), model.predict(expected[-1][:, 0]))
    for r in range(R):
        assert_close(found[r + 1], expected[r + 1])
        assert_close(found_maps[r], expected_maps[r])
    # The two share no memory, and the model is what it was.
    for parameter in merged.parameters():
        parameter.data.zero_()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("R, G, possible", [
    (6, 2, [1, 2, 3, 5, 6]), (6, 3, [1, 2, 3, 4, 5, 6]), (5, 2, [1, 2, 3, 5]),
    (4, 4, [1, 2, 3, 4]), (4, 1, [1, 2, 3, 4])])
def test_recursions_are_cut_off_only_if_the_others_keep_their_layers(R, G, possible):
    for recursions in range(R + 2):
        model = random_model(num_hidden_layers=R, num_hidden_groups=G)
        layers = [model.layer_of_recursion(r) for r in range(R)]
        if recursions in possible:
            keep_recursions(model, recursions)
            assert [model.layer_of_recursion(r) for r in range(recursions)] == layers[:recursions]
        else:
            with pytest.raises(ValueError, match=f"{R} recursions"):
                keep_recursions(model, recursions)
            assert model.config.num_hidden_layers == R


# ---- The forward pass -------------------------------------------------------------------

@pytest.fixture(params=["recursive", "adapters", "corrections", "bert"])
def model(request):
    return random_model(**KINDS[request.param]).requires_grad_(False)


def test_padding_cannot_be_seen(model):
    ids, mask, _ = make_batch()
    other_ids = torch.where(mask, ids, (ids + 1) % V)
    hidden, _ = model(ids, mask)
    other_hidden, _ = model(other_ids, mask)
    for state, other_state in zip(hidden, other_hidden, strict=True):
        assert torch.equal(state[mask], other_state[mask])


def test_more_padding_changes_nothing(model):
    ids, mask, _ = make_batch()
    longer_ids = nn.functional.pad(ids, (0, 5))
    longer_mask = nn.functional.pad(mask, (0, 5))
    hidden, _ = model(ids, mask)
    longer_hidden, _ = model(longer_ids, longer_mask)
    for state, longer_state in zip(hidden, longer_hidden, strict=True):
        assert_close(longer_state[:, :T][mask], state[mask])


def test_a_batch_gives_what_its_rows_give_alone(model):
    ids, mask, _ = make_batch()
    together, _ = model(ids, mask)
    for row, length in enumerate((7, 4, 1)):
        alone, _ = model(ids[row:row + 1, :length])
        assert_close(together[-1][row, :length], alone[-1][0])


@pytest.mark.parametrize("want_map", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float32])
def test_a_mask_of_0_and_1_of_any_type_masks_alike(model, dtype, want_map):
    ids, mask, segments = make_batch()
    maps = range(R) if want_map else ()
    expected_hidden, expected_attention = model(ids, mask, segments, maps)
    hidden, attention = model(ids, mask.to(dtype), segments, maps)
    for state, expected in zip(hidden, expected_hidden, strict=True):
        assert torch.equal(state, expected)
    for r in maps:
        assert torch.equal(attention[r], expected_attention[r])


@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_hand_is_the_fused_attention(model, masked):
    ids, mask, _ = make_batch()
    if not masked:
        mask = None
    fused_hidden, _ = model(ids, mask)
    hidden, _ = model(ids, mask, maps=range(R))
    for state, fused_state in zip(hidden, fused_hidden, strict=True):
        assert_close(state, fused_state)


def test_only_the_maps_asked_for_are_returned(model):
    ids, mask, _ = make_batch()
    _, attention = model(ids, mask, maps=[2, 0])
    assert set(attention) == {0, 2}
    assert attention[0].shape == (B, H, T, T)


@pytest.mark.parametrize("r", [-1, R])
def test_a_map_of_a_recursion_that_is_not_there_is_refused(model, r):
    ids, mask, _ = make_batch()
    with pytest.raises(ValueError, match=f"maps: {r} is not a recursion; they are 0 to {R - 1}"):
        model(ids, mask, maps=[0, r])


def test_a_model_without_a_head_says_that_it_cannot_predict(model):
    model.head = None
    with pytest.raises(ValueError, match="no MLM head"):
        model.predict(torch.zeros(2, C))


def test_only_layers_whose_maps_are_wanted_store_one(model, monkeypatch):
    fused_attention = nn.functional.scaled_dot_product_attention
    shapes = []

    def count_and_attend(query, key, value, **options):
        shapes.append(query.shape)
        return fused_attention(query, key, value, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", count_and_attend)
    ids, mask, _ = make_batch()
    model(ids, mask, maps=[2, 0])
    assert shapes == [(B, H, T, D)] * (R - 2)


def test_no_map_is_returned_unasked(model):
    ids, _, _ = make_batch()
    _, attention = model(ids)
    assert attention == {}


def test_the_rows_of_a_map_are_distributions_over_the_real_tokens(model):
    ids, mask, _ = make_batch()
    _, attention = model(ids, mask, maps=[1])
    probs = attention[1].exp()
    assert_close(probs.sum(-1), torch.ones(B, H, T))
    assert (probs * ~mask[:, None, None]).sum() == 0


@pytest.mark.parametrize("kind", ["bert", "recursive", "corrections"])
def test_in_bfloat16_all_hidden_states_are_bfloat16(kind):
    model = random_model(**KINDS[kind])
    with torch.autocast("cpu", torch.bfloat16):
        hidden, attention = model(*make_batch(), maps=[1])
        logits = model.predict(hidden[-1][:, 0])
    assert {state.dtype for state in hidden} == {torch.bfloat16}
    assert attention[1].dtype == torch.float32 and logits.dtype == torch.bfloat16


@pytest.mark.parametrize("masked", [True, False])
def test_in_bfloat16_a_map_stays_a_distribution_in_float32(model, masked):
    ids, mask, _ = make_batch()
    if not masked:
        mask = None
    _, exact = model(ids, mask, maps=[1])
    with torch.autocast("cpu", torch.bfloat16):
        _, rounded = model(ids, mask, maps=[1])
    assert rounded[1].dtype == torch.float32
    assert not torch.equal(rounded[1], exact[1])
    assert_close(rounded[1].exp(), exact[1].exp(), 0.1)
    assert_close(rounded[1].exp().sum(-1), torch.ones(B, H, T))


def test_a_map_of_log_probabilities_is_finite_at_padding(model):
    ids, mask, _ = make_batch()
    _, attention = model(ids, mask, maps=[1])
    assert attention[1].isfinite().all()


def test_without_segments_all_tokens_are_of_segment_0(model):
    ids, mask, segments = make_batch()
    unsaid, _ = model(ids, mask)
    said, _ = model(ids, mask, torch.zeros_like(segments))
    assert_close(unsaid[-1], said[-1], 1e-6)


def test_a_sequence_longer_than_the_positions_is_refused(model):
    model(torch.zeros(1, 16, dtype=torch.long))
    with pytest.raises(ValueError, match="17 tokens.*16 positions"):
        model(torch.zeros(1, 17, dtype=torch.long))


def test_the_same_input_gives_the_same_output(model):
    first, _ = model(*make_batch())
    second, _ = model(*make_batch())
    assert torch.equal(first[-1], second[-1])


def test_every_parameter_gets_a_gradient():
    model = random_model(adapter_size=A, correction_rank=K)
    hidden, _ = model(*make_batch())
    model.predict(hidden[-1]).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


# ---- The parts, each against its formula ------------------------------------------------

@torch.no_grad()
def test_an_adapter_is_its_formula():
    adapter = randomise(Adapter(small_config(adapter_size=A)))
    x = torch.randn(B, T, C)
    bottleneck = nn.functional.gelu(x @ adapter.down.weight.T + adapter.down.bias)
    assert bottleneck.shape == (B, T, A)
    widened = bottleneck @ adapter.up.weight.T + adapter.up.bias
    norm = adapter.norm
    expected = nn.functional.layer_norm(x + widened, [C], norm.weight, norm.bias, eps=1e-12)
    assert_close(adapter(x), expected)


@torch.no_grad()
def test_each_head_has_columns_of_its_own():
    attention = randomise(Attention(small_config()))
    x = torch.randn(B, T, C)
    heads = attention.split_heads(x)
    assert heads.shape == (B, H, T, D)
    for h in range(H):
        assert torch.equal(heads[:, h], x[:, :, h * D:(h + 1) * D])


@torch.no_grad()
def test_the_first_adapter_is_before_attention_the_second_before_the_feed_forward():
    config = small_config(adapter_size=A)
    layer = randomise(Layer(config))
    first = randomise(Adapter(config))
    second = randomise(Adapter(config))
    x = torch.randn(B, T, C)
    adapted = first(x)
    attended, _ = layer.attention(adapted)
    middle = second(layer.attention_norm(adapted + attended))
    expected = layer.norm(middle + layer.output(nn.functional.gelu(layer.intermediate(middle))))
    found, log_map = layer(x, adapters=(first, second))
    assert_close(found, expected)
    assert log_map is None


@pytest.mark.parametrize("num_groups", [1, 2])
@torch.no_grad()
def test_a_corrected_layer_is_a_layer_with_other_matrices(num_groups):
    """A model with corrections is one that shares nothing and has the sums as its matrices."""
    model = random_model(correction_rank=K, num_hidden_groups=num_groups)
    apart = random_model(num_hidden_groups=R)
    apart.load_state_dict(model.state_dict(), strict=False)
    parts = {"query": "attention.query", "key": "attention.key", "value": "attention.value",
             "attention_output": "attention.output", "intermediate": "intermediate",
             "output": "output"}
    before = copy.deepcopy(model.state_dict())
    for r, layer in enumerate(apart.layers):
        layer.load_state_dict(model.layer_of_recursion(r).state_dict())
        for part, name in parts.items():
            low_rank = model.corrections[r][part]
            assert low_rank.down.shape[0] == low_rank.up.shape[1] == K
            layer.get_submodule(name).weight += low_rank.up @ low_rank.down
    ids, mask, segments = make_batch()
    expected, expected_maps = apart(ids, mask, segments, maps=[0, 3])
    found, found_maps = model(ids, mask, segments, maps=[0, 3])
    for state, other in zip(found, expected, strict=True):
        assert_close(state, other)
    for r in (0, 3):
        assert_close(found_maps[r], expected_maps[r])
    # The shared layer itself is not changed by the call.
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


# ---- Dropout ----------------------------------------------------------------------------

def test_maps_are_taken_before_dropout():
    model = random_model(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0)
    ids, mask, _ = make_batch()
    _, in_eval = model(ids, mask, maps=[0])
    model.train()
    _, in_training = model(ids, mask, maps=[0])
    assert torch.equal(in_training[0], in_eval[0])


@pytest.mark.parametrize("maps", [(), range(R)])
@pytest.mark.parametrize("which", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_acts_in_training_only(maps, which):
    probs = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    probs[which] = 0.5
    model = random_model(**probs)
    ids, _, _ = make_batch()

    def last_hidden():
        hidden, _ = model(ids, maps=maps)
        return hidden[-1]

    assert torch.equal(last_hidden(), last_hidden())
    model.train()
    assert not torch.equal(last_hidden(), last_hidden())


@torch.no_grad()
def test_dropout_stands_after_attention_and_after_the_feed_forward():
    layer = randomise(Layer(small_config(hidden_dropout_prob=0.6, attention_probs_dropout_prob=0)))
    layer.train()
    x = torch.randn(B, T, C)
    torch.manual_seed(3)
    found, _ = layer(x)
    torch.manual_seed(3)                                 # the same places are dropped again
    attended, _ = layer.attention(x)
    middle = layer.attention_norm(x + nn.functional.dropout(attended, 0.6))
    contracted = layer.output(nn.functional.gelu(layer.intermediate(middle)))
    expected = layer.norm(middle + nn.functional.dropout(contracted, 0.6))
    assert_close(found, expected)


@torch.no_grad()
def test_dropout_stands_between_the_norm_and_the_projection_of_the_embeddings():
    embeddings = random_model(hidden_dropout_prob=0.6).embeddings
    ids, _, segments = make_batch()
    torch.manual_seed(3)
    in_eval = embeddings.norm(
        embeddings.word(ids) + embeddings.position.weight[:T] + embeddings.segment(segments))
    expected = embeddings.project(nn.functional.dropout(in_eval, 0.6))
    embeddings.train()
    torch.manual_seed(3)
    assert_close(embeddings(ids, segments), expected)


@torch.no_grad()
@pytest.mark.parametrize("want_map", [False, True])
def test_as_many_attention_probabilities_are_dropped_as_asked_for(want_map):
    """With value and output the identity and one-hot inputs, the output is the map itself."""
    T = C
    attention = Attention(small_config(num_attention_heads=1, attention_probs_dropout_prob=0.3))
    for part in (attention.query, attention.key, attention.value, attention.output):
        nn.init.zeros_(part.bias)
    nn.init.zeros_(attention.query.weight)               # each token looks at all of them alike
    nn.init.eye_(attention.value.weight)
    nn.init.eye_(attention.output.weight)
    one_hot = torch.eye(C).expand(50, T, C)
    torch.manual_seed(0)
    found, _ = attention.train()(one_hot, want_map=want_map)
    dropped = found == 0
    assert abs(dropped.float().mean() - 0.3) < 0.02
    assert_close(found[~dropped], torch.full_like(found[~dropped], 1 / T / 0.7), 1e-6)


# ---- Initialisation ---------------------------------------------------------------------

def test_the_same_seed_gives_the_same_model():
    torch.manual_seed(7)
    first = MiniALBERT(small_config(adapter_size=A)).state_dict()
    torch.manual_seed(7)
    second = MiniALBERT(small_config(adapter_size=A)).state_dict()
    third = MiniALBERT(small_config(adapter_size=A)).state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert not torch.equal(first["embeddings.word.weight"], third["embeddings.word.weight"])


def test_fresh_adapters_change_nothing_after_a_norm():
    plain = MiniALBERT(small_config(embedding_size=C)).eval()
    adapted = MiniALBERT(small_config(embedding_size=C, adapter_size=A)).eval()
    adapted.load_state_dict(plain.state_dict(), strict=False)
    adapted_hidden, _ = adapted(*make_batch())
    plain_hidden, _ = plain(*make_batch())
    for state, expected in zip(adapted_hidden, plain_hidden, strict=True):
        assert_close(state, expected)


def test_fresh_corrections_change_nothing():
    plain = MiniALBERT(small_config()).eval()
    corrected = MiniALBERT(small_config(correction_rank=K)).eval()
    corrected.load_state_dict(plain.state_dict(), strict=False)
    corrected_hidden, _ = corrected(*make_batch())
    plain_hidden, _ = plain(*make_batch())
    for state, expected in zip(corrected_hidden, plain_hidden, strict=True):
        assert torch.equal(state, expected)


def initial_values(sharp):
    """Return {name: parameter} of a model large enough that a standard deviation is exact."""
    model = MiniALBERT(Config(vocab_size=2000, embedding_size=96, hidden_size=192, adapter_size=48,
                              num_hidden_layers=2, num_hidden_groups=2, intermediate_size=768,
                              correction_rank=24))
    randomise(model)
    torch.manual_seed(0)
    initialise(model, sharp)
    return dict(model.named_parameters())


def test_plain_initialisation_is_a_normal_of_0_02():
    for name, parameter in initial_values(sharp=False).items():
        if parameter.ndim == 2:
            assert abs(parameter.std().item() - 0.02) < 0.002, name
            assert abs(parameter.mean().item()) < 0.003, name


@pytest.mark.parametrize("sharp", [False, True])
def test_norms_start_as_1_and_all_biases_as_0(sharp):
    for name, parameter in initial_values(sharp).items():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        elif parameter.ndim == 1:
            assert (parameter == 0).all(), name


def test_query_and_key_of_every_layer_start_four_times_larger():
    num_matrices = 0
    for name, parameter in initial_values(sharp=True).items():
        if ".attention." in name and parameter.ndim == 2:
            expected = 0.02
            if ".query." in name or ".key." in name:
                expected = 0.08
            assert round(parameter.std().item(), 2) == expected, name
            num_matrices += 1
    assert num_matrices == 2 * 4                         # two layers have four matrices each


def test_the_first_recursion_of_a_factorised_model_starts_as_sharp_as_the_second():
    """A map's sharpness: the exponential of its entropy is how many tokens a token looks at."""
    torch.manual_seed(0)
    model = MiniALBERT(Config(vocab_size=500, embedding_size=64, hidden_size=384,
                              num_hidden_layers=2, num_attention_heads=6, intermediate_size=96))
    ids = torch.randint(500, (4, 32))
    hidden, attention = model.eval()(ids, maps=[0, 1])
    size = hidden[0].square().mean().sqrt().item()
    assert abs(size - 1) < 0.1                           # as large as what a LayerNorm returns
    entropies = [-(log_map.exp() * log_map).sum(-1).mean() for log_map in attention.values()]
    first, second = torch.stack(entropies).exp().tolist()
    assert second < 20
    assert abs(first / second - 1) < 0.2


def test_adapters_and_corrections_start_with_up_at_0_and_down_random():
    num_ups = 0
    for name, parameter in initial_values(sharp=True).items():
        if name.endswith(("up.weight", ".up")):
            assert not parameter.any(), name
            num_ups += 1
        if name.endswith(("down.weight", ".down")):
            assert round(parameter.std().item(), 2) == 0.02, name
    # Two recursions have two adapters and six corrected matrices each.
    assert num_ups == 2 * (2 + 6)


def test_positions_start_as_sinusoids_of_rms_0_02():
    position = initial_values(sharp=True)["embeddings.position.weight"]
    assert_close(position[:, 0] / 0.02 / 2**0.5, torch.arange(512.0).sin(), 1e-4)
    assert abs(position.square().mean().sqrt().item() - 0.02) < 1e-3


def test_sinusoids_are_the_formula_of_vaswani_et_al():
    """PE(pos, 2i) = sin(pos / 10000^(2i / d)), PE(pos, 2i + 1) = cos(pos / 10000^(2i / d))."""
    found = sinusoids(T, E)
    assert found.shape == (T, E)
    for position in range(T):
        for i in range(E // 2):
            angle = torch.tensor(position / 10000 ** (2 * i / E))
            assert_close(found[position, 2 * i], angle.sin(), 1e-5)
            assert_close(found[position, 2 * i + 1], angle.cos(), 1e-5)
