"""minialbert.py, the model, against transformers, torch and matrices multiplied by hand."""
import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from checkpoint import load
from conftest import (
    A, B, C, D, E, F, H, K, KINDS, MAX_POSITIONS, R, T, V, assert_close, assert_close_states,
    assert_equal_states, assert_equal_tensors, assert_same_as_authors, assert_same_as_bert,
    authors_checkpoint, authors_weights, make_batch, random_bert, random_model, randomise,
    small_config)
from minialbert import (
    Attention, Config, Layer, MiniALBERT, count_parameters, initialise, keep_recursions,
    merge_corrections, sinusoids)


# ---- The shape of a model ---------------------------------------------------------------

def test_the_hidden_size_must_be_divisible_by_the_number_of_heads():
    with pytest.raises(ValueError, match="hidden_size 24 .* num_attention_heads 5"):
        small_config(num_attention_heads=5)


def test_there_may_not_be_more_layers_than_recursions():
    small_config(num_hidden_groups=R)
    with pytest.raises(ValueError, match="num_hidden_groups 6 .* num_hidden_layers 5"):
        small_config(num_hidden_groups=R + 1)


def test_a_correction_has_at_most_the_rank_of_its_smallest_matrix():
    with pytest.raises(ValueError, match="correction_rank 9 .* intermediate_size 8"):
        small_config(correction_rank=9, intermediate_size=8)


@pytest.mark.parametrize("name, allowed, refused", [
    ("vocab_size", [1, 2**24], [0, -1, 2**24 + 1, 2.0, "2", None, True]),
    ("num_hidden_layers", [1, 2**10], [0, 2**10 + 1]),
    ("adapter_size", [0, 1], [-1, 0.0]),
    ("correction_rank", [0, C], [-1, C + 1, 1.0]),
    ("hidden_dropout_prob", [0, 1, 0.5], [-0.1, 1.1, "0", float("nan"), True]),
    ("tie_decoder", [True, False], [0, 1, "yes", None])])
def test_a_field_has_a_type_and_a_range(name, allowed, refused):
    for value in allowed:
        changes = {name: value}
        config = small_config(**changes)
        assert getattr(config, name) == value
    for value in refused:
        changes = {name: value}
        with pytest.raises(ValueError, match=name):
            small_config(**changes)


@pytest.mark.parametrize("name, value", [
    ("adapter_size", A), ("correction_rank", K), ("num_hidden_groups", R - 1),
    ("embedding_size", E)])
def test_one_thing_that_a_bert_does_not_have_makes_it_no_bert(name, value):
    sizes = dict(KINDS["bert"])
    sizes[name] = value
    assert not small_config(**sizes).is_bert


# ---- A BERT is what transformers says it is ---------------------------------------------

@pytest.mark.parametrize("layer_norm_eps", [1e-12, 0.1])
def test_a_bert_computes_what_transformers_computes(transformers, tmp_path, layer_norm_eps):
    """An epsilon of 0.1 is large enough to be seen in the result: it is read from the file."""
    bert = random_bert(transformers, layer_norm_eps=layer_norm_eps)
    bert.save_pretrained(tmp_path)
    assert_same_as_bert(load(tmp_path), bert)


def test_a_bert_of_base_size_computes_what_transformers_computes(transformers, tmp_path):
    # The vocabulary and the depth are smaller than BERT's, which only makes the file smaller.
    bert = random_bert(transformers, hidden_size=768, num_hidden_layers=3, num_attention_heads=12,
                       intermediate_size=3072)
    # The matrices become about as small as those of a trained BERT: a standard deviation of 0.04.
    with torch.no_grad():
        for parameter in bert.parameters():
            if parameter.ndim == 2:
                parameter.mul_(0.2)
    bert.save_pretrained(tmp_path)
    # A sum of 768 or 3072 products in float32 depends on the order in which they are added.
    assert_same_as_bert(load(tmp_path), bert, limit=1e-4)


# ---- A student is what the authors' code says it is -------------------------------------

@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("embedding_size", [E, C])
def test_a_student_computes_what_the_authors_code_does(tmp_path, embedding_size, adapters):
    weights = authors_weights(embedding_size, adapters)
    folder = authors_checkpoint(weights, tmp_path)
    assert_same_as_authors(load(folder), weights)


def test_a_partly_shared_student_uses_its_layers_in_alberts_order(transformers, tmp_path):
    config = transformers.AlbertConfig(
        vocab_size=V, embedding_size=E, hidden_size=C, num_hidden_layers=R, num_hidden_groups=2,
        num_attention_heads=H, intermediate_size=F, max_position_embeddings=MAX_POSITIONS,
        hidden_act="gelu")                               # ALBERT's own is an approximation of it
    torch.manual_seed(0)
    albert = randomise(transformers.AlbertModel(config))
    albert.save_pretrained(tmp_path)
    model = load(tmp_path)
    ids, mask, segments = make_batch()
    with torch.no_grad():
        theirs = albert(ids, attention_mask=mask.long(), token_type_ids=segments)
        hidden, _ = model(ids, mask, segments)
    assert_close(hidden[-1], theirs.last_hidden_state)


@torch.no_grad()
def test_a_tied_head_decodes_with_the_embedding_backwards():
    model = random_model()
    states = torch.randn(5, C)
    transformed = nn.functional.gelu(model.head.dense(states))
    transformed = model.head.norm(transformed)
    # The word table, as wide as the hidden states. The bias of the projection is not used.
    table = model.embeddings.word.weight @ model.embeddings.project.weight.T     # (V, C)
    expected = transformed @ table.T + model.head.bias
    assert_close(model.predict(states), expected)


# ---- The numbers of parameters are those of the paper -----------------------------------

def count(**changes):
    """Count the parameters of a model of the usual size, which takes no memory here."""
    with torch.device("meta"):
        model = MiniALBERT(Config(**changes))
    return count_parameters(model)


def in_millions(number):
    """Round a number of parameters to millions with two digits."""
    return round(number / 1e6, 2)


@pytest.mark.parametrize("embedding_size, adapter_size, body", [
    (128, 0, 11_159_808), (128, 48, 12_072_768), (312, 48, 17_925_072)])
def test_the_body_has_the_papers_number_of_parameters(embedding_size, adapter_size, body):
    counts = count(embedding_size=embedding_size, adapter_size=adapter_size)
    assert counts["body"] == body


# The last four columns are millions of parameters: of the body without adapters, of the body, of
# the body and the pooler, and of all that is in the file.
@pytest.mark.parametrize("vocab_size, embedding_size, bare, body, pooled, whole_file", [
    (30522, 128, 11.16, 12.07, 12.66, 36.73),
    (30522, 312, 17.01, 17.93, 18.52, 42.58),
    (30522, 768, 30.93, 31.84, 32.43, 56.49),
    (28996, 128, 10.96, 11.88, 12.47, 35.36),
    (28996, 312, 16.54, 17.45, 18.04, 40.93)])
def test_the_authors_files_have_the_size_they_have_on_the_hub(
        vocab_size, embedding_size, bare, body, pooled, whole_file):
    counts = count(vocab_size=vocab_size, embedding_size=embedding_size, adapter_size=48,
                   tie_decoder=False)
    pooler = 768 * 768 + 768                             # it is in their files and never used
    assert in_millions(counts["body"] - counts["own_parts"]) == bare
    assert in_millions(counts["body"]) == body
    assert in_millions(counts["body"] + pooler) == pooled
    assert in_millions(counts["stored"] + pooler) == whole_file


def test_a_tied_head_costs_its_transform_and_a_bias():
    dense = 768 * 768 + 768
    norm = 768 + 768
    bias = 30522
    assert count()["head"] == dense + norm + bias


def test_applied_counts_a_shared_layer_at_each_use():
    """Here one layer is applied 6 times, so 5 more layers are counted than are stored."""
    one_layer = 7_087_872                                # as in BERT
    counts = count(adapter_size=48)
    assert counts["layers"] == one_layer
    assert counts["applied"] == counts["stored"] + 5 * one_layer


def test_applied_counts_layers_that_are_not_shared_once():
    counts = count(num_hidden_groups=6)
    assert counts["applied"] == counts["stored"]


def test_all_parameters_are_counted_in_exactly_one_part():
    model = random_model(adapter_size=A, correction_rank=K, num_hidden_groups=3)
    counts = count_parameters(model)
    parts = [counts[part] for part in ("embeddings", "layers", "own_parts", "head")]
    assert min(parts) > 0
    assert sum(parts) == counts["stored"]
    assert counts["stored"] == sum(parameter.numel() for parameter in model.parameters())


def test_corrections_count_as_adapters():
    """The correction of a matrix (n, m) has K (n + m) parameters. A layer has six matrices: four
    of the attention, C by C, and two of the feed-forward, C by F."""
    counts = count_parameters(random_model(correction_rank=K))
    of_attention = 4 * K * (C + C)
    of_feed_forward = 2 * K * (C + F)
    assert counts["own_parts"] == R * (of_attention + of_feed_forward)


# ---- Sharing ----------------------------------------------------------------------------

def test_the_gradient_of_a_shared_layer_is_the_sum_over_its_uses():
    """The model `apart` has a copy of the layer for each use, and each has its own gradient."""
    shared = random_model()
    apart = random_model(num_hidden_groups=R)
    apart.load_state_dict(shared.state_dict(), strict=False)
    for layer in apart.layers:
        layer.load_state_dict(shared.layers[0].state_dict())
    for model in (shared, apart):
        hidden, _ = model(*make_batch())
        loss = hidden[-1].square().sum()
        loss.backward()
    for name, parameter in shared.layers[0].named_parameters():
        expected = sum(layer.get_parameter(name).grad for layer in apart.layers)
        largest = parameter.grad.abs().max()
        assert_close(parameter.grad, expected, 1e-4 * largest)


# ---- Fewer recursions -------------------------------------------------------------------

# The first recursions of a partly shared model cannot always be kept: see the next test.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "partly" not in kind])
@pytest.mark.parametrize("num_kept", [1, 3, R])
@torch.no_grad()
def test_the_first_recursions_do_what_they_did_before(kind, num_kept):
    model = random_model(**KINDS[kind])
    ids, mask, segments = make_batch()
    expected, expected_maps = model(ids, mask, segments, maps=range(R))
    keep_recursions(model, num_kept)
    found, found_maps = model(ids, mask, segments, maps=range(num_kept))
    assert_equal_states(found, expected[:num_kept + 1])      # the first are the embeddings
    assert list(found_maps) == list(range(num_kept))
    for r in found_maps:
        assert torch.equal(found_maps[r], expected_maps[r])
    # What is left is all that a model of this shape has.
    new_model = MiniALBERT(model.config)
    assert model.state_dict().keys() == new_model.state_dict().keys()


def layers_in_order(model):
    """List the layer that each recursion of a model applies."""
    return [model.layer_of_recursion(r) for r in range(model.config.num_hidden_layers)]


@pytest.mark.parametrize("num_recursions, num_layers, possible", [
    (6, 2, [1, 2, 3, 5, 6]), (6, 3, [1, 2, 3, 4, 5, 6]), (5, 2, [1, 2, 3, 5]),
    (4, 4, [1, 2, 3, 4]), (4, 1, [1, 2, 3, 4])])
def test_recursions_are_cut_off_only_if_the_others_keep_their_layers(
        num_recursions, num_layers, possible):
    """possible: the numbers of recursions that can be kept. Of the layers 0 0 0 1 1 1 the first
    four are 0 0 0 1, but a model of four recursions with two layers applies 0 0 1 1."""
    for num_kept in range(num_recursions + 2):
        model = random_model(num_hidden_layers=num_recursions, num_hidden_groups=num_layers)
        layers = layers_in_order(model)
        if num_kept in possible:
            keep_recursions(model, num_kept)
            assert layers_in_order(model) == layers[:num_kept]
        else:
            with pytest.raises(ValueError, match=f"{num_recursions} recursions"):
                keep_recursions(model, num_kept)
            assert layers_in_order(model) == layers


# ---- Corrections that are merged into the layers ----------------------------------------

@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_model_with_merged_corrections_computes_the_same(kind):
    model = random_model(**KINDS[kind])
    merged = merge_corrections(model)
    assert merged.config == replace(model.config, num_hidden_groups=R, correction_rank=0)
    ids, mask, segments = make_batch()
    expected, expected_maps = model(ids, mask, segments, maps=range(R))
    found, found_maps = merged(ids, mask, segments, maps=range(R))
    assert_close_states(found, expected)
    for r in range(R):
        assert_close(found_maps[r], expected_maps[r])
    assert_close(merged.predict(found[-1]), model.predict(expected[-1]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_shares_no_memory_with_the_model(kind):
    model = random_model(**KINDS[kind])
    before = copy.deepcopy(model.state_dict())
    merged = merge_corrections(model)
    for parameter in merged.parameters():
        nn.init.zeros_(parameter)
    assert_equal_tensors(model.state_dict(), before)


@pytest.mark.parametrize("training", [False, True])
def test_a_merged_model_is_in_the_mode_of_the_model(training):
    model = random_model(correction_rank=K).train(training)
    merged = merge_corrections(model)
    assert {module.training for module in merged.modules()} == {training}


def test_a_merged_model_of_bfloat16_has_sums_in_float32():
    model = random_model(correction_rank=K).bfloat16()
    expected = merge_corrections(copy.deepcopy(model).float())
    assert_equal_tensors(merge_corrections(model).state_dict(), expected.state_dict())


# ---- The forward pass -------------------------------------------------------------------

@pytest.fixture(params=["recursive", "adapters", "corrections", "bert"])
def model(request):
    """Make a small model of each kind in turn. Its parameters get no gradients."""
    return random_model(**KINDS[request.param]).requires_grad_(False)


def test_padding_cannot_be_seen(model):
    ids, mask, _ = make_batch()
    other_ids = torch.where(mask, ids, (ids + 1) % V)
    hidden, _ = model(ids, mask)
    other_hidden, _ = model(other_ids, mask)
    real = [state[mask] for state in hidden]
    other_real = [state[mask] for state in other_hidden]
    assert_equal_states(real, other_real)


@pytest.mark.parametrize("maps", [(), range(R)], ids=["no maps", "all maps"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float32])
def test_a_mask_of_0_and_1_of_any_type_masks_alike(model, dtype, maps):
    ids, mask, segments = make_batch()
    expected_hidden, expected_maps = model(ids, mask, segments, maps)
    found_hidden, found_maps = model(ids, mask.to(dtype), segments, maps)
    assert_equal_states(found_hidden, expected_hidden)
    for r in maps:
        assert torch.equal(found_maps[r], expected_maps[r])


@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_hand_is_the_fused_attention(model, masked):
    """Where a map is wanted, attention is computed step by step, and elsewhere by torch."""
    ids, mask, _ = make_batch()
    if not masked:
        mask = None
    fused_hidden, _ = model(ids, mask)
    hidden, _ = model(ids, mask, maps=range(R))
    assert_close_states(hidden, fused_hidden)


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
    """All others call torch's fused attention, which need not store the map."""
    fused_attention = nn.functional.scaled_dot_product_attention
    query_shapes = []

    def note_and_attend(query, key, value, **options):
        query_shapes.append(query.shape)
        return fused_attention(query, key, value, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", note_and_attend)
    ids, mask, _ = make_batch()
    model(ids, mask, maps=[2, 0])
    num_without_map = R - 2
    assert query_shapes == [(B, H, T, D)] * num_without_map


def test_the_rows_of_a_map_are_distributions_over_the_real_tokens(model):
    ids, mask, _ = make_batch()
    _, attention = model(ids, mask, maps=[1])
    probs = attention[1].exp()
    assert_close(probs.sum(-1), torch.ones(B, H, T))
    is_padding = ~mask[:, None, None]                    # (B, 1, 1, T), as a map is (B, H, T, T)
    assert (probs * is_padding).sum() == 0


@pytest.mark.parametrize("kind", ["bert", "recursive", "corrections"])
def test_in_bfloat16_all_hidden_states_are_bfloat16(kind):
    """As float32 they would take twice the memory. A map is float32, because it is compared."""
    model = random_model(**KINDS[kind])
    with torch.autocast("cpu", torch.bfloat16):
        hidden, attention = model(*make_batch(), maps=[1])
        logits = model.predict(hidden[-1][:, 0])
    assert {state.dtype for state in hidden} == {torch.bfloat16}
    assert attention[1].dtype == torch.float32
    assert logits.dtype == torch.bfloat16


@pytest.mark.parametrize("masked", [True, False])
def test_in_bfloat16_a_map_stays_a_distribution_in_float32(model, masked):
    ids, mask, _ = make_batch()
    if not masked:
        mask = None
    _, exact = model(ids, mask, maps=[1])
    with torch.autocast("cpu", torch.bfloat16):
        _, rounded = model(ids, mask, maps=[1])
    assert rounded[1].dtype == torch.float32
    assert not torch.equal(rounded[1], exact[1])         # autocast was on
    probs = rounded[1].exp()
    assert_close(probs, exact[1].exp(), 0.1)
    assert_close(probs.sum(-1), torch.ones(B, H, T))


def test_a_map_of_log_probabilities_is_finite_at_padding(model):
    """With -inf there, the KL divergence of two maps would be nan."""
    ids, mask, _ = make_batch()
    _, attention = model(ids, mask, maps=[1])
    assert attention[1].isfinite().all()


def test_without_segments_all_tokens_are_of_segment_0(model):
    ids, mask, segments = make_batch()
    without_segments, _ = model(ids, mask)
    with_segments, _ = model(ids, mask, torch.zeros_like(segments))
    assert_close(without_segments[-1], with_segments[-1], 1e-6)


def test_a_sequence_longer_than_the_positions_is_refused(model):
    longest = torch.zeros(1, 16, dtype=torch.long)
    too_long = torch.zeros(1, 17, dtype=torch.long)
    model(longest)
    with pytest.raises(ValueError, match="17 tokens.*16 positions"):
        model(too_long)


def test_every_parameter_gets_a_gradient():
    model = random_model(adapter_size=A, correction_rank=K)
    hidden, _ = model(*make_batch())
    logits = model.predict(hidden[-1])
    loss = logits.square().sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


# ---- Corrections ------------------------------------------------------------------------

@pytest.mark.parametrize("num_groups", [1, 2])
@torch.no_grad()
def test_a_corrected_layer_is_a_layer_with_other_matrices(num_groups):
    """A model with corrections is one that shares nothing and has the sums as its matrices."""
    model = random_model(correction_rank=K, num_hidden_groups=num_groups)
    before = copy.deepcopy(model.state_dict())
    apart = random_model(num_hidden_groups=R)
    apart.load_state_dict(model.state_dict(), strict=False)
    linear_of_correction = {
        "query": "attention.query", "key": "attention.key", "value": "attention.value",
        "attention_output": "attention.output", "intermediate": "intermediate", "output": "output",
    }
    for r, layer in enumerate(apart.layers):
        layer.load_state_dict(model.layer_of_recursion(r).state_dict())
        for name, name_in_layer in linear_of_correction.items():
            up = model.corrections[r][name].up
            down = model.corrections[r][name].down
            assert up.shape[1] == K
            assert down.shape[0] == K
            linear = layer.get_submodule(name_in_layer)
            linear.weight += up @ down
    ids, mask, segments = make_batch()
    expected, expected_maps = apart(ids, mask, segments, maps=[0, 3])
    found, found_maps = model(ids, mask, segments, maps=[0, 3])
    assert_close_states(found, expected)
    for r in (0, 3):
        assert_close(found_maps[r], expected_maps[r])
    # The shared layer itself is not changed by the call.
    assert_equal_tensors(model.state_dict(), before)


# ---- Dropout ----------------------------------------------------------------------------

def test_maps_are_taken_before_dropout():
    """What a student has to match must not be random."""
    model = random_model(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0)
    ids, mask, _ = make_batch()
    _, in_eval = model(ids, mask, maps=[0])
    model.train()
    _, in_training = model(ids, mask, maps=[0])
    assert torch.equal(in_training[0], in_eval[0])


@pytest.mark.parametrize("maps", [(), range(R)], ids=["no maps", "all maps"])
@pytest.mark.parametrize("name", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_acts_in_training_only(maps, name):
    dropout_probs = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    dropout_probs[name] = 0.5
    model = random_model(**dropout_probs)
    ids, _, _ = make_batch()

    def last_hidden():
        hidden, _ = model(ids, maps=maps)
        return hidden[-1]

    assert torch.equal(last_hidden(), last_hidden())
    model.train()
    assert not torch.equal(last_hidden(), last_hidden())


@torch.no_grad()
def test_dropout_stands_after_attention_and_after_the_feed_forward():
    config = small_config(hidden_dropout_prob=0.6, attention_probs_dropout_prob=0)
    layer = randomise(Layer(config))
    layer.train()
    x = torch.randn(B, T, C)
    torch.manual_seed(3)
    found, _ = layer(x)
    torch.manual_seed(3)                                 # the same places are dropped again
    attended, _ = layer.attention(x)
    attended = nn.functional.dropout(attended, 0.6)
    middle = layer.attention_norm(x + attended)
    expanded = nn.functional.gelu(layer.intermediate(middle))
    contracted = layer.output(expanded)
    contracted = nn.functional.dropout(contracted, 0.6)
    expected = layer.norm(middle + contracted)
    assert_close(found, expected)


@torch.no_grad()
def test_dropout_stands_between_the_norm_and_the_projection_of_the_embeddings():
    embeddings = random_model(hidden_dropout_prob=0.6).embeddings
    ids, _, segments = make_batch()
    word = embeddings.word(ids)
    position = embeddings.position.weight[:T]
    segment = embeddings.segment(segments)
    x = embeddings.norm(word + position + segment)
    torch.manual_seed(3)
    dropped = nn.functional.dropout(x, 0.6)
    expected = embeddings.project(dropped)
    embeddings.train()
    torch.manual_seed(3)                                 # the same places are dropped again
    assert_close(embeddings(ids, segments), expected)


@pytest.mark.parametrize("want_map", [False, True])
@torch.no_grad()
def test_as_many_attention_probabilities_are_dropped_as_asked_for(want_map):
    """With value and output the identity and one-hot inputs, the output is the map itself."""
    config = small_config(num_attention_heads=1, attention_probs_dropout_prob=0.3)
    attention = Attention(config)
    for part in (attention.query, attention.key, attention.value, attention.output):
        nn.init.zeros_(part.bias)
    nn.init.zeros_(attention.query.weight)               # each token looks at all of them alike
    nn.init.eye_(attention.value.weight)
    nn.init.eye_(attention.output.weight)
    attention.train()
    one_hot = torch.eye(C).expand(50, C, C)              # 50 sequences of C tokens
    torch.manual_seed(0)
    dropped_map, _ = attention(one_hot, want_map=want_map)
    is_dropped = dropped_map == 0
    assert abs(is_dropped.float().mean() - 0.3) < 0.02
    # A probability was 1 / C. Those that are left are divided by 0.7, so that the mean stays.
    left = dropped_map[~is_dropped]
    assert_close(left, torch.full_like(left, 1 / C / 0.7), 1e-6)


# ---- Initialisation ---------------------------------------------------------------------

def test_the_same_seed_gives_the_same_model():
    torch.manual_seed(7)
    first = MiniALBERT(small_config(adapter_size=A)).state_dict()
    torch.manual_seed(7)
    second = MiniALBERT(small_config(adapter_size=A)).state_dict()
    third = MiniALBERT(small_config(adapter_size=A)).state_dict()
    assert_equal_tensors(first, second)
    assert not torch.equal(first["embeddings.word.weight"], third["embeddings.word.weight"])


def test_fresh_adapters_change_nothing_after_a_norm():
    """A fresh adapter is the LayerNorm of its input. A norm of what was normed changes nothing."""
    plain = MiniALBERT(small_config(embedding_size=C)).eval()
    adapted = MiniALBERT(small_config(embedding_size=C, adapter_size=A)).eval()
    adapted.load_state_dict(plain.state_dict(), strict=False)
    adapted_hidden, _ = adapted(*make_batch())
    plain_hidden, _ = plain(*make_batch())
    assert_close_states(adapted_hidden, plain_hidden)


def test_fresh_corrections_change_nothing():
    plain = MiniALBERT(small_config()).eval()
    corrected = MiniALBERT(small_config(correction_rank=K)).eval()
    corrected.load_state_dict(plain.state_dict(), strict=False)
    corrected_hidden, _ = corrected(*make_batch())
    plain_hidden, _ = plain(*make_batch())
    assert_equal_states(corrected_hidden, plain_hidden)


def initial_values(sharp):
    """Initialise a model -> {name: parameter}. It is so large that chance hardly changes the
    standard deviation of a matrix."""
    config = Config(vocab_size=2000, embedding_size=96, hidden_size=192, intermediate_size=768,
                    num_hidden_layers=2, num_hidden_groups=2, adapter_size=48, correction_rank=24)
    model = randomise(MiniALBERT(config))                # no parameter has its value yet
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


def root_mean_square(x):
    return x.square().mean().sqrt().item()


def tokens_looked_at(log_map):
    """Return at how many tokens a token looks in a map: the exponential of the mean entropy."""
    probs = log_map.exp()
    entropy = -(probs * log_map).sum(-1)
    return entropy.mean().exp().item()


def test_the_first_recursion_of_a_factorised_model_starts_as_sharp_as_the_second():
    config = Config(vocab_size=500, embedding_size=64, hidden_size=384, num_hidden_layers=2,
                    num_attention_heads=6, intermediate_size=96)
    torch.manual_seed(0)
    model = MiniALBERT(config).eval()
    ids = torch.randint(500, (4, 32))
    hidden, attention = model(ids, maps=[0, 1])
    # The embeddings are as large as what a LayerNorm returns.
    assert abs(root_mean_square(hidden[0]) - 1) < 0.1
    first = tokens_looked_at(attention[0])
    second = tokens_looked_at(attention[1])
    assert second < 20                                   # of 32
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
    # A sine and its cosine have an rms of the root of 1/2, so they are scaled by 0.02 * 2**0.5.
    first_column = 0.02 * 2**0.5 * torch.arange(512.0).sin()
    assert_close(position[:, 0], first_column, 1e-6)
    assert abs(root_mean_square(position) - 0.02) < 1e-3


def test_sinusoids_are_the_formula_of_vaswani_et_al():
    """PE(pos, 2i) = sin(pos / 10000^(2i / d)), PE(pos, 2i + 1) = cos(pos / 10000^(2i / d))."""
    found = sinusoids(T, E)
    assert found.shape == (T, E)
    for position in range(T):
        for i in range(E // 2):
            angle = torch.tensor(position / 10000 ** (2 * i / E))
            assert_close(found[position, 2 * i], angle.sin())
            assert_close(found[position, 2 * i + 1], angle.cos())
