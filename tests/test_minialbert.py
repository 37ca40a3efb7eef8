"""minialbert.py against others: the model against transformers, torch and matrices multiplied by
hand, its files against the safetensors package. Odd sizes, so that no axes can be confused."""
import copy
import json
import math
import os
import random

import numpy as np
import pytest
import torch

import minialbert
from minialbert import Config, MiniALBERT, count_parameters, initialise, load, read_json
from minialbert import read_safetensors, save, write_atomically, write_safetensors

B, T, C, H, V, E, F, A, R = 3, 7, 24, 3, 101, 10, 40, 4, 5


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="the oracle is in requirements-dev.txt")


@pytest.fixture
def safetensors():
    pytest.importorskip("safetensors", reason="the oracle is in requirements-dev.txt")
    import safetensors.torch
    return safetensors


def small(**changes):
    return Config(**{"vocab_size": V, "embedding_size": E, "hidden_size": C, "num_hidden_layers": R,
                     "num_attention_heads": H, "intermediate_size": F,
                     "max_position_embeddings": 16} | changes)


BERT = {"embedding_size": C, "num_hidden_groups": R}
KINDS = {"bert": BERT, "bert, untied": BERT | {"tie_decoder": False},
         "recursive": {}, "recursive, E = C": {"embedding_size": C},
         "unshared, factorised": {"num_hidden_groups": R},
         "partly shared": {"num_hidden_groups": 2}, "adapters": {"adapter_size": A},
         "adapters, E = C": {"adapter_size": A, "embedding_size": C},
         "adapters, untied": {"adapter_size": A, "tie_decoder": False}}


@torch.no_grad()
def randomise(module):
    """Nothing is left at a value that could hide a mistake: no norm is 1 and 0, no bias is 0."""
    for name, p in module.named_parameters():
        p.copy_(torch.randn_like(p) * 0.2 + (1.0 if p.dim() == 1 and "weight" in name else 0.0))
    return module.eval()


def random_model(head=True, **changes):
    torch.manual_seed(0)
    return randomise(MiniALBERT(small(**changes), head))


def batch(seed=1):
    """ids, mask and segments (B, T); the rows have 7, 4 and 1 real tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (B, T), generator=generator)
    mask = torch.arange(T) < torch.tensor([[7], [4], [1]])
    return ids, mask, torch.randint(2, (B, T), generator=generator)


def assert_close(ours, theirs, limit=1e-5):
    worst = (torch.as_tensor(ours).double() - torch.as_tensor(theirs).double()).abs().max()
    assert ours.shape == theirs.shape and worst <= limit, f"{worst:.1e} apart"


# ---- A BERT is what transformers says it is ------------------------------------------------------


def bert_config(transformers, **changes):
    return transformers.BertConfig(**{
        "vocab_size": V, "hidden_size": C, "num_hidden_layers": R, "num_attention_heads": H,
        "intermediate_size": F, "max_position_embeddings": 16,
        "attn_implementation": "eager"} | changes)


def random_bert(transformers, kind="BertForMaskedLM", **changes):
    torch.manual_seed(0)
    return randomise(getattr(transformers, kind)(bert_config(transformers, **changes)))


def pickled(bert, folder, rename=lambda name: name, extra=()):
    bert.config.save_pretrained(folder)
    torch.save({rename(name): tensor for name, tensor in bert.state_dict().items()} | dict(extra),
               folder / "pytorch_model.bin")


def old_spelling(name):
    name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    return name.replace("LayerNorm.bias", "LayerNorm.beta")


BERT_FILES = {
    "safetensors": lambda bert, folder: bert.save_pretrained(folder),
    "shards": lambda bert, folder: bert.save_pretrained(folder, max_shard_size="20KB"),
    "pickled, decoder twice": pickled,
    "gamma and beta": lambda bert, folder: pickled(bert, folder, old_spelling),
    "position_ids": lambda bert, folder: pickled(bert, folder, extra={
        "bert.embeddings.position_ids": torch.arange(16)[None]}),
    "F16": lambda bert, folder: bert.half().save_pretrained(folder),
    "BF16": lambda bert, folder: bert.bfloat16().save_pretrained(folder),
}


@torch.no_grad()
def assert_same_bert(ours, bert, head=True):
    """All hidden states, all maps and the logits, at every place of a padded batch."""
    ids, mask, segments = batch()
    theirs = bert.float()(ids, attention_mask=mask.long(), token_type_ids=segments,
                          output_hidden_states=True, output_attentions=True)
    hidden, attention = ours.eval()(ids, mask, segments, maps=range(len(theirs.attentions)))
    for mine, other in zip(hidden, theirs.hidden_states, strict=True):
        assert_close(mine, other)
    for layer, other in enumerate(theirs.attentions):
        assert_close(attention[layer].exp(), other)
    if head:
        logits = theirs.logits if "logits" in theirs else theirs.prediction_logits
        assert_close(ours.predict(hidden[-1]), logits)


@pytest.mark.parametrize("files", BERT_FILES)
def test_a_bert_computes_what_transformers_computes(transformers, tmp_path, files):
    bert = random_bert(transformers)
    BERT_FILES[files](bert, tmp_path)
    assert_same_bert(load(tmp_path), bert)


def test_shards_are_shards(transformers, tmp_path):
    BERT_FILES["shards"](random_bert(transformers), tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2


def test_a_bert_of_base_size_computes_what_transformers_computes(transformers, tmp_path):
    bert = random_bert(transformers, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
                       intermediate_size=3072, vocab_size=30522)
    with torch.no_grad():
        for p in bert.parameters():
            p.mul_(0.2 if p.dim() == 2 else 1.0)                 # about N(0, 0.04), as if trained
    bert.save_pretrained(tmp_path)
    assert_same_bert(load(tmp_path), bert)


def test_the_pooler_and_the_next_sentence_head_are_left_out(transformers, tmp_path):
    bert = random_bert(transformers, "BertForPreTraining")
    bert.save_pretrained(tmp_path)
    assert_same_bert(load(tmp_path), bert)


def test_a_bert_without_prefix_and_head_has_no_head(transformers, tmp_path):
    bert = random_bert(transformers, "BertModel")
    bert.save_pretrained(tmp_path)
    assert load(tmp_path).head is None
    assert_same_bert(load(tmp_path), bert, head=False)


def test_an_untied_decoder_is_read_with_its_own_bias(transformers, tmp_path):
    bert = random_bert(transformers, tie_word_embeddings=False)
    bert.save_pretrained(tmp_path)
    assert not load(tmp_path).config.tie_decoder
    assert_same_bert(load(tmp_path), bert)


def test_a_decoder_equal_to_the_word_table_is_tied(transformers, tmp_path):
    pickled(random_bert(transformers), tmp_path)
    model = load(tmp_path)
    assert model.config.tie_decoder and model.head.decoder is None


def test_a_layer_is_torchs_encoder_layer():
    model = random_model(num_hidden_layers=1, embedding_size=C)
    layer, attention = model.layer(0), model.layer(0).attention
    theirs = torch.nn.TransformerEncoderLayer(C, H, F, dropout=0.0, activation="gelu",
                                              layer_norm_eps=1e-12, batch_first=True)
    parts = {"self_attn.out_proj": attention.output, "linear1": layer.intermediate,
             "linear2": layer.output, "norm1": layer.attention_norm, "norm2": layer.norm}
    projections = [attention.query, attention.key, attention.value]
    theirs.load_state_dict(
        {f"{name}.{leaf}": getattr(part, leaf) for name, part in parts.items()
         for leaf in ("weight", "bias")}
        | {"self_attn.in_proj_weight": torch.cat([p.weight for p in projections]),
           "self_attn.in_proj_bias": torch.cat([p.bias for p in projections])})
    ids, mask, segments = batch()
    hidden, _ = model(ids, mask, segments)
    assert_close(hidden[1][mask], theirs(hidden[0], src_key_padding_mask=~mask)[mask])


# ---- A student is what the authors' code says it is, multiplied out by hand ----------------------


def authors_weights(embedding_size, adapters, seed=0):
    """Random tensors by the authors' names (less the prefixes), all of them float64 arrays."""
    rng, w = np.random.default_rng(seed), {}

    def linear(name, wide, narrow):
        w[f"{name}.weight"] = rng.normal(0, 0.3, (wide, narrow))
        w[f"{name}.bias"] = rng.normal(0, 0.3, wide)

    def norm(name, width):
        w[f"{name}.weight"] = rng.normal(1, 0.3, width)
        w[f"{name}.bias"] = rng.normal(0, 0.3, width)

    for name, rows in (("word", V), ("position", 16), ("token_type", 2)):
        w[f"embeddings.{name}_embeddings.weight"] = rng.normal(0, 1, (rows, embedding_size))
    norm("embeddings.LayerNorm", embedding_size)
    if embedding_size != C:
        linear("projector", C, embedding_size)
    layer = "encoder.albert_layer_groups.0.albert_layers.0"
    for name in ("query", "key", "value", "dense"):
        linear(f"{layer}.attention.{name}", C, C)
    norm(f"{layer}.attention.LayerNorm", C)
    linear(f"{layer}.ffn", F, C)
    linear(f"{layer}.ffn_output", C, F)
    norm(f"{layer}.full_layer_layer_norm", C)
    for stack in ("att_adapters", "mlp_adapters") if adapters else ():
        for r in range(R):
            linear(f"{stack}.{r}.block.0", A, C)
            linear(f"{stack}.{r}.block.2", C, A)
            norm(f"{stack}.{r}.norm", C)
    linear("pooler", C, C)
    linear("vocab_transform", C, C)
    norm("vocab_layer_norm", C)
    linear("vocab_projector", V, C)
    return w


def by_hand(w, ids, mask, segments):
    """The authors' forward pass, matrix by matrix: hidden states, attention maps, logits."""
    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x):
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2

    def adapter(x, name):
        if f"{name}.norm.weight" not in w:
            return x
        up = linear(gelu(linear(x, f"{name}.block.0")), f"{name}.block.2")
        return norm(x + up, f"{name}.norm")

    layer, D = "encoder.albert_layer_groups.0.albert_layers.0", C // H
    x = norm(w["embeddings.word_embeddings.weight"][ids]
             + w["embeddings.position_embeddings.weight"][:T]
             + w["embeddings.token_type_embeddings.weight"][segments], "embeddings.LayerNorm")
    hidden, maps = [linear(x, "projector") if "projector.weight" in w else x], []
    for r in range(R):
        x = adapter(hidden[-1], f"att_adapters.{r}")
        q, k, v = (linear(x, f"{layer}.attention.{name}") for name in ("query", "key", "value"))
        p, context = np.zeros((B, H, T, T)), np.zeros((B, T, C))
        for b in range(B):
            for h in range(H):
                own = slice(h * D, (h + 1) * D)
                odds = np.exp(q[b, :, own] @ k[b, :, own].T / math.sqrt(D)) * mask[b]
                p[b, h] = odds / odds.sum(-1, keepdims=True)
                context[b, :, own] = p[b, h] @ v[b, :, own]
        x = norm(x + linear(context, f"{layer}.attention.dense"), f"{layer}.attention.LayerNorm")
        x = adapter(x, f"mlp_adapters.{r}")
        x = norm(x + linear(gelu(linear(x, f"{layer}.ffn")), f"{layer}.ffn_output"),
                 f"{layer}.full_layer_layer_norm")
        hidden.append(x), maps.append(p)
    x = norm(gelu(linear(x, "vocab_transform")), "vocab_layer_norm")
    return hidden, maps, linear(x, "vocab_projector")


def authors_checkpoint(w, folder, file="pytorch_model.bin"):
    """What the authors' code saves: albert.albert. is before what is ALBERT's, albert. before what
    they added, nothing before the head; there is a pooler and a position_ids, both of no use."""
    facts = {"model_type": "albert", "vocab_size": V, "hidden_size": C, "hidden_act": "gelu",
             "embedding_size": w["embeddings.LayerNorm.weight"].size, "intermediate_size": F,
             "num_hidden_layers": R, "num_hidden_groups": 1, "inner_group_num": 1,
             "num_attention_heads": H, "max_position_embeddings": 16, "type_vocab_size": 2,
             "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
             "layer_norm_eps": 1e-12, "architectures": ["MiniAlbertForMaskedLM"],
             "use_adapter": "att_adapters.0.norm.weight" in w, "reduction_factor": 5}  # 24 // 5 = 4
    prefixes = {"embeddings": "albert.albert.", "encoder": "albert.albert.",
                "pooler": "albert.albert.", "projector": "albert.",
                "att_adapters": "albert.", "mlp_adapters": "albert."}
    tensors = {prefixes.get(name.split(".")[0], "") + name: torch.from_numpy(array).float()
               for name, array in w.items()}
    tensors["albert.albert.embeddings.position_ids"] = torch.arange(16)[None]
    (folder / "config.json").write_text(json.dumps(facts))
    if file.endswith("bin"):
        torch.save(tensors, folder / file)
    else:
        write_safetensors(tensors, folder / file)
    return folder


@torch.no_grad()
def assert_same_as_by_hand(model, w):
    ids, mask, segments = batch()
    hidden, attention = model.eval()(ids, mask, segments, maps=range(R))
    expected, maps, logits = by_hand(w, ids.numpy(), mask.numpy(), segments.numpy())
    for mine, other in zip(hidden, expected, strict=True):
        assert_close(mine, other)
    for r in range(R):
        assert_close(attention[r].exp(), maps[r])
    assert_close(model.predict(hidden[-1]), logits, 1e-4)        # of size 10, in float32


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("embedding_size", [E, C])
def test_a_checkpoint_of_the_authors_computes_what_their_code_does(
        tmp_path, embedding_size, adapters, file):
    w = authors_weights(embedding_size, adapters)
    assert_same_as_by_hand(load(authors_checkpoint(w, tmp_path, file)), w)


def test_a_student_is_saved_under_the_authors_names(tmp_path):
    model = random_model(adapter_size=A, tie_decoder=False)
    save(model, tmp_path)
    w = {name: tensor.double().numpy()
         for name, tensor in read_safetensors(tmp_path / "model.safetensors")[0].items()}
    for leaf in ("weight", "bias"):                              # which has ALBERT's name
        w[f"projector.{leaf}"] = w.pop(f"encoder.embedding_hidden_mapping_in.{leaf}")
    assert_same_as_by_hand(model, w)


@torch.no_grad()
def test_a_tied_head_decodes_with_the_embedding_backwards():
    model, h = random_model(), torch.randn(5, C)
    x = model.head.norm(torch.nn.functional.gelu(model.head.dense(h)))
    table = model.embeddings.word.weight @ model.embeddings.project.weight.T         # (V, C)
    assert_close(model.predict(h), x @ table.T + model.head.bias)


# ---- The sizes are those of the paper ------------------------------------------------------------


def count(**changes):
    with torch.device("meta"):
        return count_parameters(MiniALBERT(Config(**changes)))


@pytest.mark.parametrize("embedding_size, adapter_size, body", [
    (128, 0, 11_159_808), (128, 48, 12_072_768), (312, 48, 17_925_072)])
def test_the_body_has_the_papers_number_of_parameters(embedding_size, adapter_size, body):
    assert count(embedding_size=embedding_size, adapter_size=adapter_size)["body"] == body


def test_the_twelve_adapters_have_912960_parameters():
    assert count(adapter_size=48)["adapters"] == 912_960


@pytest.mark.parametrize("vocab_size, embedding_size, bare, body, pooled, file", [
    (30522, 128, 11.16, 12.07, 12.66, 36.73), (30522, 312, 17.01, 17.93, 18.52, 42.58),
    (30522, 768, 30.93, 31.84, 32.43, 56.49), (28996, 128, 10.96, 11.88, 12.47, 35.36),
    (28996, 312, 16.54, 17.45, 18.04, 40.93)])
def test_the_authors_files_have_the_size_they_have_on_the_hub(
        vocab_size, embedding_size, bare, body, pooled, file):
    counts = count(vocab_size=vocab_size, embedding_size=embedding_size, adapter_size=48,
                   tie_decoder=False)
    pooler = 768 * 768 + 768                                     # in their files, never used
    found = (counts["body"] - counts["adapters"], counts["body"], counts["body"] + pooler,
             counts["stored"] + pooler)
    assert [round(n / 1e6, 2) for n in found] == [bare, body, pooled, file]


def test_a_tied_head_costs_its_transform_and_a_bias():
    assert count()["head"] == 768 * 768 + 768 + 2 * 768 + 30522


def test_applied_counts_a_shared_layer_at_each_use():
    once, applied = 7_087_872, count(adapter_size=48)["applied"]
    assert applied == count(adapter_size=48)["stored"] + 5 * once


def test_all_parameters_are_counted():
    model = random_model(adapter_size=A, num_hidden_groups=3)
    assert count_parameters(model)["stored"] == sum(p.numel() for p in model.parameters())


# ---- Sharing -------------------------------------------------------------------------------------


def test_a_recursive_student_has_as_many_tensors_however_often_its_layer_is_applied():
    few, many = (MiniALBERT(small(num_hidden_layers=r)) for r in (2, 9))
    assert len(list(few.parameters())) == len(list(many.parameters()))


def test_the_gradient_of_a_shared_layer_is_the_sum_over_its_uses():
    shared, apart = random_model(), random_model(num_hidden_groups=R)
    apart.load_state_dict(shared.state_dict(), strict=False)
    for layer in apart.layers:
        layer.load_state_dict(shared.layers[0].state_dict())
    for model in (shared, apart):
        model(*batch())[0][-1].square().sum().backward()
    copies = [dict(layer.named_parameters()) for layer in apart.layers]
    for name, p in shared.layers[0].named_parameters():
        assert_close(p.grad, sum(each[name].grad for each in copies), 1e-4 * p.grad.abs().max())


def test_a_partly_shared_student_uses_its_layers_in_alberts_order(transformers, tmp_path):
    torch.manual_seed(0)
    albert = randomise(transformers.AlbertModel(transformers.AlbertConfig(
        vocab_size=V, embedding_size=E, hidden_size=C, num_hidden_layers=5, num_hidden_groups=2,
        num_attention_heads=H, intermediate_size=F, max_position_embeddings=16, hidden_act="gelu")))
    albert.save_pretrained(tmp_path)
    ids, mask, segments = batch()
    with torch.no_grad():
        theirs = albert(ids, attention_mask=mask.long(), token_type_ids=segments).last_hidden_state
        assert_close(load(tmp_path).eval()(ids, mask, segments)[0][-1], theirs)


# ---- The forward pass ----------------------------------------------------------------------------


@pytest.fixture(params=["recursive", "adapters", "bert"])
def model(request):
    return random_model(**KINDS[request.param]).requires_grad_(False)


def test_padding_cannot_be_seen(model):
    ids, mask, _ = batch()
    other = torch.where(mask, ids, (ids + 1) % V)
    for mine, changed in zip(model(ids, mask)[0], model(other, mask)[0]):
        assert torch.equal(mine[mask], changed[mask])


def test_more_padding_changes_nothing(model):
    ids, mask, _ = batch()
    longer = [torch.nn.functional.pad(x, (0, 5)) for x in (ids, mask)]
    for mine, padded in zip(model(ids, mask)[0], model(*longer)[0]):
        assert_close(padded[:, :T][mask], mine[mask])


def test_a_batch_gives_what_its_rows_give_alone(model):
    ids, mask, _ = batch()
    together = model(ids, mask)[0][-1]
    for row, length in enumerate((7, 4, 1)):
        assert_close(together[row, :length], model(ids[row:row + 1, :length])[0][-1][0])


@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_hand_is_the_fused_attention(model, masked):
    ids, mask, _ = batch()
    mask = mask if masked else None
    for fused, ours in zip(model(ids, mask)[0], model(ids, mask, maps=range(R))[0]):
        assert_close(ours, fused)


def test_only_the_maps_asked_for_are_returned(model):
    ids, mask, _ = batch()
    attention = model(ids, mask, maps=[2, 0])[1]
    assert set(attention) == {0, 2} and attention[0].shape == (B, H, T, T)


def test_no_map_is_returned_unasked(model):
    assert model(batch()[0])[1] == {}


def test_the_rows_of_a_map_are_distributions_over_the_real_tokens(model):
    ids, mask, _ = batch()
    p = model(ids, mask, maps=[1])[1][1].exp()
    assert_close(p.sum(-1), torch.ones(B, H, T))
    assert (p * ~mask[:, None, None]).sum() == 0


@pytest.mark.parametrize("masked", [True, False])
def test_in_bfloat16_a_map_stays_a_distribution_in_float32(model, masked):
    ids, mask, _ = batch()
    exact = model(ids, mask if masked else None, maps=[1])[1][1]
    with torch.autocast("cpu", torch.bfloat16):
        log_p = model(ids, mask if masked else None, maps=[1])[1][1]
    assert log_p.dtype == torch.float32 and not torch.equal(log_p, exact)
    assert_close(log_p.exp(), exact.exp(), 0.1)
    assert_close(log_p.exp().sum(-1), torch.ones(B, H, T))


def test_a_map_of_log_probabilities_is_finite_at_padding(model):
    ids, mask, _ = batch()
    assert model(ids, mask, maps=[1])[1][1].isfinite().all()


def test_maps_are_taken_before_dropout():
    model = random_model(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0)
    ids, mask, _ = batch()
    still = model(ids, mask, maps=[0])[1][0]
    assert torch.equal(model.train()(ids, mask, maps=[0])[1][0], still)


@pytest.mark.parametrize("maps", [(), range(R)])
@pytest.mark.parametrize("which", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_acts_in_training_only(maps, which):
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model, ids = random_model(**off | {which: 0.5}), batch()[0]
    assert torch.equal(model(ids, maps=maps)[0][-1], model(ids, maps=maps)[0][-1])
    model.train()
    assert not torch.equal(model(ids, maps=maps)[0][-1], model(ids, maps=maps)[0][-1])


def test_without_segments_all_tokens_are_of_segment_0(model):
    ids, mask, segments = batch()
    assert_close(model(ids, mask)[0][-1], model(ids, mask, torch.zeros_like(segments))[0][-1], 1e-6)


def test_a_sequence_longer_than_the_positions_is_refused(model):
    with pytest.raises(ValueError, match="17 tokens.*16 positions"):
        model(torch.zeros(1, 17, dtype=torch.long))


def test_every_parameter_gets_a_gradient():
    model = random_model(adapter_size=A)
    model.predict(model(*batch())[0][-1]).square().sum().backward()
    assert not [name for name, p in model.named_parameters()
                if p.grad is None or not p.grad.any()]


# ---- Initialisation ------------------------------------------------------------------------------


def test_fresh_adapters_change_nothing_after_a_norm():
    plain, adapted = (MiniALBERT(small(embedding_size=C, adapter_size=a)).eval() for a in (0, A))
    adapted.load_state_dict(plain.state_dict(), strict=False)
    for mine, other in zip(adapted(*batch())[0], plain(*batch())[0]):
        assert_close(mine, other)


def large(plain):
    model = MiniALBERT(Config(vocab_size=2000, embedding_size=96, hidden_size=192, adapter_size=48,
                              num_hidden_layers=2, intermediate_size=768))
    initialise(model, plain)
    return dict(model.named_parameters())


def test_plain_initialisation_is_a_normal_of_0_02():
    found = large(plain=True)
    assert {round(p.std().item(), 2) for p in found.values() if p.dim() == 2} == {0.02}
    assert max(abs(p.mean().item()) for p in found.values() if p.dim() == 2) < 0.003


@pytest.mark.parametrize("plain", [False, True])
def test_norms_start_as_1_and_all_biases_as_0(plain):
    for name, p in large(plain).items():
        if p.dim() == 1:
            assert (p == (1 if name.endswith("norm.weight") else 0)).all(), name


def test_query_and_key_start_four_times_larger():
    sizes = {name.split(".")[3]: round(p.std().item(), 2) for name, p in large(plain=False).items()
             if ".attention." in name and p.dim() == 2}
    assert sizes == {"query": 0.08, "key": 0.08, "value": 0.02, "output": 0.02}


def test_an_adapter_starts_with_up_at_0_and_down_random():
    found = large(plain=False)
    assert not any(p.any() for name, p in found.items() if "up.weight" in name)
    assert all(p.any() for name, p in found.items() if "down.weight" in name)


def test_positions_start_as_sinusoids_of_rms_0_02():
    position = large(plain=False)["embeddings.position.weight"]
    assert_close(position[:, 0] / 0.02 / 2**0.5, torch.arange(512.0).sin(), 1e-4)
    assert abs(position.square().mean().sqrt().item() - 0.02) < 1e-3


# ---- Safetensors: what the official package reads and writes -------------------------------------


def every_dtype():
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for code, dtype in minialbert.DTYPES.items():
        for shape in ((2, 3), (0, 3), ()):
            noise = torch.randint(0, 2 if code == "BOOL" else 100, shape, generator=generator)
            tensors[f"{code} {shape}"] = noise.to(dtype)
    return tensors


def assert_same_bytes(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape and found[name].dtype == tensor.dtype, name
        assert found[name].contiguous().view(-1).view(torch.uint8).tolist() == \
            tensor.contiguous().view(-1).view(torch.uint8).tolist(), name


def test_a_file_of_the_official_package_is_read_bit_by_bit(safetensors, tmp_path):
    safetensors.torch.save_file(every_dtype(), tmp_path / "x", metadata={"who": "they", "é": "ü"})
    tensors, metadata = read_safetensors(tmp_path / "x")
    assert_same_bytes(tensors, every_dtype())
    assert metadata == {"who": "they", "é": "ü"}


def test_the_official_package_reads_our_file_bit_by_bit(safetensors, tmp_path):
    write_safetensors(every_dtype(), tmp_path / "x", {"who": "we", "é": "ü"})
    assert_same_bytes(safetensors.torch.load_file(tmp_path / "x"), every_dtype())
    with safetensors.safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"who": "we", "é": "ü"}


def test_a_transposed_view_is_written_as_it_looks(tmp_path):
    table = torch.arange(6.0).view(2, 3)
    write_safetensors({"x": table.T}, tmp_path / "x")
    assert torch.equal(read_safetensors(tmp_path / "x")[0]["x"], table.T)


def test_every_tensor_is_written_at_a_multiple_of_its_element(tmp_path):
    write_safetensors(every_dtype(), tmp_path / "x")
    length = int.from_bytes((tmp_path / "x").read_bytes()[:8], "little")
    header = read_json(tmp_path / "x", 8, length)
    assert length % 8 == 0 and not [
        name for name, tensor in every_dtype().items()
        if header[name]["data_offsets"][0] % tensor.element_size()]


def test_no_tensors_at_all_are_a_file_too(tmp_path):
    write_safetensors({}, tmp_path / "x")
    assert read_safetensors(tmp_path / "x") == ({}, {})


def test_a_tensor_is_mapped_not_copied(tmp_path):
    write_safetensors({"x": torch.zeros(1000)}, tmp_path / "x")
    tensor = read_safetensors(tmp_path / "x")[0]["x"]
    with open(tmp_path / "x", "r+b") as file:                    # so what changes there shows here
        file.seek(-4, os.SEEK_END)
        file.write(np.float32(5).tobytes())
    assert tensor[-1] == 5


def test_writing_to_a_tensor_leaves_its_file_alone(tmp_path):
    write_safetensors({"x": torch.zeros(1000)}, tmp_path / "x")
    before = (tmp_path / "x").read_bytes()
    read_safetensors(tmp_path / "x")[0]["x"].fill_(1)
    assert (tmp_path / "x").read_bytes() == before


def test_a_read_only_file_can_be_read(tmp_path):
    write_safetensors({"x": torch.ones(3)}, tmp_path / "x")
    (tmp_path / "x").chmod(0o400)
    assert torch.equal(read_safetensors(tmp_path / "x")[0]["x"], torch.ones(3))


def raw_file(path, header, data=b"", length=None):
    """A file of this header, a dict or text or bytes, as it is."""
    text = json.dumps(header) if isinstance(header, dict) else header
    text = text.encode() if isinstance(text, str) else text
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(begin=0, end=8, shape=(2,), dtype="F32", **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]} | more


@pytest.mark.parametrize("shift", range(8))
def test_the_data_may_begin_anywhere(tmp_path, shift):
    text = json.dumps({"x": entry()}) + " " * shift
    path = raw_file(tmp_path / "x", text, np.float32([1, 2]).tobytes())
    tensor = read_safetensors(path)[0]["x"]
    assert tensor.tolist() == [1, 2] and tensor.data_ptr() % 4 == 0


BROKEN = {
    "an empty file": (b"", "header"),
    "seven bytes": (b"\0" * 7, "header"),
    "a length and no more": (b"\0" * 8, "header"),
    "a header past the end": (({"x": entry()}, b"\0" * 8, 500), "500 bytes"),
    "a header of 2^63 bytes": (({"x": entry()}, b"\0" * 8, 2**63), "header"),
    "a header of 2^64 - 1 bytes": (({"x": entry()}, b"\0" * 8, 2**64 - 1), "header"),
    "not JSON": (("{'x': 1}",), "JSON"),
    "not text": ((b'{"\xff": 1}',), "JSON"),
    "a list": (("[1, 2]",), "JSON"),
    "a deep list": (("[" * 100_000,), "JSON"),
    "a deep object": (('{"x":' * 100_000,), "JSON"),
    "a huge number": (('{"x": 1' + "0" * 5000 + "}",), "JSON"),
    "half a character": ((f'{{"\\ud800": {json.dumps(entry())}}}', b"\0" * 8), "surrogates"),
    "a name that stands twice": ((f'{{"x": {json.dumps(entry())}, "x": {json.dumps(entry())}}}',
                                  b"\0" * 8), "twice.*'x'"),
    "metadata that are a list": (({"__metadata__": []},), "__metadata__"),
    "metadata that are numbers": (({"__metadata__": {"a": 1}},), "__metadata__"),
    "an entry that is a list": (({"x": []},), "'x'"),
    "an entry that is null": (({"x": None},), "'x'"),
    "an entry without a shape": (({"x": {"dtype": "F32", "data_offsets": [0, 0]}},), "'x'.*shape"),
    "a deep entry": (({"x": entry(shape=json.loads("[" * 500 + "]" * 500))}, b"\0" * 8), "'x'"),
    "an unknown dtype": (({"x": entry(dtype="F33")}, b"\0" * 8), "'x'.*F33"),
    "a dtype that is a list": (({"x": entry(dtype=["F32"])}, b"\0" * 8), "'x'"),
    "a dtype that is null": (({"x": entry(dtype=None)}, b"\0" * 8), "'x'"),
    "a shape that is text": (({"x": entry(0, 4, "")}, b"\0" * 4), "'x'"),
    "a shape that is an object": (({"x": entry(0, 4, {})}, b"\0" * 4), "'x'"),
    "a shape that is null": (({"x": entry(shape=None)}, b"\0" * 8), "'x'"),
    "a shape of -1": (({"x": entry(shape=[-1])}, b"\0" * 8), "'x'"),
    "a shape of -0": (('{"x":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}',), "'x'"),
    "a shape of true": (({"x": entry(0, 4, [True])}, b"\0" * 4), "'x'"),
    "a shape of 2.0": (({"x": entry(shape=[2.0])}, b"\0" * 8), "'x'"),
    "a shape of 2^80": (({"x": entry(shape=[2**80])}, b"\0" * 8), "'x'"),
    "a shape that overflows": (({"x": entry(0, 0, [2**61, 2**61, 0])},), "'x'"),
    "a shape that wraps around to 2": (({"x": entry(shape=[2**61, 8, 2**33])}, b"\0" * 8), "'x'"),
    "too few bytes": (({"x": entry(shape=[3])}, b"\0" * 8), "'x'"),
    "half a number": (({"x": entry(0, 7, [2])}, b"\0" * 7), "'x'"),
    "three offsets": (({"x": entry() | {"data_offsets": [0, 8, 8]}}, b"\0" * 8), "'x'"),
    "offsets of true": (({"x": entry(False, True, [1], "U8")}, b"\0"), "'x'"),
    "negative offsets": (({"x": entry(-8, 0)}, b"\0" * 8), "'x'"),
    "offsets the wrong way round": (({"x": entry(8, 0)}, b"\0" * 8), "'x'"),
    "offsets past the end": (({"x": entry(8, 16)}, b"\0" * 8), "'x'"),
    "an end past the end": (({"x": entry(0, 80)}, b"\0" * 8), "end of the file"),
    "offsets of 2^70": (({"x": entry(2**70, 2**70, [0])},), "'x'"),
    "a hole": (({"x": entry(), "y": entry(12, 20)}, b"\0" * 20), "'y'.*12"),
    "a hole at the start": (({"x": entry(4, 12)}, b"\0" * 12), "'x'.*4"),
    "overlap": (({"x": entry(), "y": entry(4, 12)}, b"\0" * 12), "'y'.*4"),
    "twice the same bytes": (({"x": entry(), "y": entry()}, b"\0" * 8), "'y'"),
    "bytes left over": (({"x": entry()}, b"\0" * 9), "end of the file"),
    "a name with a line break": (({"x\ny": entry(shape=[3])}, b"\0" * 8), "x.*y"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, broken):
    content, told = BROKEN[broken]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content) if isinstance(content, bytes) else raw_file(path, *content)
    with pytest.raises(ValueError, match=told) as error:
        read_safetensors(path)
    text = str(error.value)
    assert str(path) in text and len(text.splitlines()) == 1 and len(text) < 1500


def mutations(content, count, seed=0):
    """Bit flips, cuts, inserted bytes, and headers with one value exchanged for a hostile one."""
    rng = random.Random(seed)
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:8 + length]), content[8 + length:]
    hostile = [0, 1, -1, 2, 4, 8, 12, 24, 2**31, 2**63, 2**64, 1.0, True, None, "", "F16", "I32",
               "BOOL", "F99", [], [0], [0, 4], [2, 3], [-0.0], {}, {"a": 1}]
    for _ in range(count):
        kind, at = rng.randrange(4), rng.randrange(len(content))
        if kind == 0:
            yield content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1:]
        elif kind == 1:
            yield content[:at]
        elif kind == 2:
            yield content[:at] + rng.choice([b"0", b"-", b" ", b'"', b"\0", b"9"]) + content[at:]
        else:
            new = copy.deepcopy(header)
            owner, key = new, rng.choice(list(new))
            while isinstance(owner[key], (dict, list)) and owner[key] and rng.random() < 0.8:
                owner = owner[key]
                key = rng.choice(list(owner) if isinstance(owner, dict) else range(len(owner)))
            owner[key] = rng.choice(hostile)
            text = json.dumps(new).encode()
            yield len(text).to_bytes(8, "little") + text + data


def test_a_mutated_file_is_read_as_the_official_package_reads_it_or_refused(safetensors, tmp_path):
    tensors = {"a": torch.randn(2, 3), "b.weight": torch.arange(4), "c": torch.ones(3).half(),
               "none": torch.zeros(0, 2), "one": torch.tensor(2.0), "t": torch.tensor([True])}
    write_safetensors(tensors, tmp_path / "x", {"format": "pt"})
    path, read = tmp_path / "mutant", 0
    with open(path, "wb") as file:                               # one file: 2,000 would be slow
        for mutant in mutations((tmp_path / "x").read_bytes(), 2000):
            file.seek(0), file.write(mutant), file.truncate(), file.flush()
            try:
                found = read_safetensors(path)[0]
            except ValueError as error:
                assert str(path) in str(error)
                continue
            assert_same_bytes(found, safetensors.torch.load(mutant))
            read += 1
    assert 50 < read < 1950                                      # some are harmless, most are not


# ---- Saving and loading --------------------------------------------------------------------------


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_loaded(tmp_path, kind, head):
    model = random_model(head, **KINDS[kind])
    save(model, tmp_path)
    found = load(tmp_path)
    assert_same_bytes(found.state_dict(), model.state_dict())
    assert (found.head is None) == (not head)
    if head:
        assert found.config == model.config


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_rounded_is_loaded_rounded(tmp_path, kind, dtype):
    model = random_model(**KINDS[kind])
    save(model, tmp_path, dtype)
    rounded = {name: tensor.to(dtype).float() for name, tensor in model.state_dict().items()}
    assert_same_bytes(load(tmp_path).state_dict(), rounded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_all_of_a_file_is_of_the_type_asked_for(tmp_path, dtype):
    save(random_model(), tmp_path, dtype)
    tensors, _ = read_safetensors(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}


def test_a_loaded_model_does_not_hang_on_its_file(tmp_path):
    model = random_model()
    save(model, tmp_path)
    found = load(tmp_path)
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.write(bytes(os.path.getsize(file.name)))
    assert_same_bytes(found.state_dict(), model.state_dict())


def test_a_loaded_model_can_be_trained(tmp_path):
    save(random_model(), tmp_path)
    assert all(p.requires_grad for p in load(tmp_path).parameters())


def test_loading_spends_no_random_numbers(tmp_path):
    save(random_model(), tmp_path)
    torch.manual_seed(5)
    load(tmp_path)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_bert_opens_in_transformers_with_nothing_missing(transformers, tmp_path, tied):
    model = random_model(**BERT, tie_decoder=tied)
    save(model, tmp_path)
    bert, report = transformers.BertForMaskedLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager")
    assert {key: list(found) for key, found in report.items() if found} == {}
    assert_same_bert(model, bert.eval())


@pytest.mark.parametrize("tied", [True, False])
def test_the_config_tells_others_whether_the_decoder_is_tied(tmp_path, tied):
    save(random_model(tie_decoder=tied), tmp_path)
    assert read_json(tmp_path / "config.json")["tie_word_embeddings"] == tied


@pytest.mark.parametrize("kind", ["recursive", "recursive, E = C", "unshared, factorised",
                                  "partly shared"])
def test_a_saved_student_opens_as_an_albert_with_nothing_missing(transformers, tmp_path, kind):
    model = random_model(**KINDS[kind])
    save(model, tmp_path)
    albert, report = transformers.AlbertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    ids, mask, segments = batch()
    with torch.no_grad():
        theirs = albert.eval()(ids, attention_mask=mask.long(), token_type_ids=segments)
        assert_close(model(ids, mask, segments)[0][-1], theirs.last_hidden_state)


def test_a_student_with_adapters_is_refused_by_transformers(transformers, tmp_path):
    save(random_model(adapter_size=A), tmp_path)
    with pytest.raises(ValueError, match="minialbert"):
        transformers.AutoModel.from_pretrained(tmp_path)


# ---- Checkpoints that are refused ----------------------------------------------------------------


def refused(folder, told=None):
    """That load() ends in a ValueError of one line, which names the folder and what is told."""
    with pytest.raises(ValueError, match=told) as error:
        load(folder)
    assert str(folder) in str(error.value) and len(str(error.value).splitlines()) == 1
    return str(error.value)


def change_config(folder, **changes):
    facts = {name: value for name, value in (read_json(folder / "config.json") | changes).items()
             if value is not ...}
    (folder / "config.json").write_text(json.dumps(facts))


@pytest.fixture
def saved(tmp_path):
    save(random_model(**BERT), tmp_path)
    return tmp_path


def change_tensors(folder, changes):
    """Replaces tensors in the folder's file; None removes one."""
    tensors = read_safetensors(folder / "model.safetensors")[0] | changes
    write_safetensors({name: tensor.clone() for name, tensor in tensors.items()
                       if tensor is not None}, folder / "model.safetensors")


def test_every_missing_and_every_unknown_tensor_is_named(saved):
    change_tensors(saved, {"bert.encoder.layer.2.output.dense.weight": None,
                           "cls.predictions.bias": None, "other": torch.ones(3),
                           "bert.encoder.layer.9.surprise": torch.ones(2)})
    text = refused(saved)
    assert "'encoder.layer.2.output.dense.weight' is missing" in text
    assert "'cls.predictions.bias' is missing" in text
    assert "'other' is [3], not known" in text
    assert "'encoder.layer.9.surprise' is [2], not known" in text


@pytest.mark.parametrize("name", ["{}", "layers.{0}.norm.weight", "%s", "a\nb", "", "layer.#.x"])
def test_a_strange_name_is_just_unknown(saved, name):
    change_tensors(saved, {name: torch.ones(2)})
    refused(saved, "not known")


def test_a_tensor_of_another_shape_is_named(saved):
    change_tensors(saved, {"bert.embeddings.LayerNorm.weight": torch.ones(C + 1)})
    refused(saved, r"embeddings.LayerNorm.weight.*25.*24")


def test_weights_of_whole_numbers_are_refused(saved):
    change_tensors(saved, {"bert.embeddings.LayerNorm.weight": torch.ones(C, dtype=torch.int8)})
    refused(saved, "embeddings.LayerNorm.weight.*int8")


def test_a_classifier_on_top_is_unknown_here(saved):
    change_tensors(saved, {"classifier.weight": torch.ones(2, C)})
    refused(saved, "classifier.weight")


@pytest.mark.parametrize("name, value, told", [
    ("hidden_act", "gelu_new", "gelu_new"), ("hidden_act", [1], "hidden_act"),
    ("hidden_size", ..., "hidden_size"), ("vocab_size", ..., "vocab_size"),
    ("num_hidden_layers", ..., "num_hidden_layers"), ("num_attention_heads", ..., "heads"),
    ("hidden_size", "24", "hidden_size.*'24'"), ("hidden_size", True, "hidden_size"),
    ("hidden_size", 24.0, "hidden_size"), ("hidden_size", None, "hidden_size"),
    ("hidden_size", 0, "hidden_size"), ("hidden_size", -24, "hidden_size"),
    ("hidden_size", 25, "num_attention_heads"), ("hidden_size", 2**40, "hidden_size"),
    ("num_hidden_layers", 2000, "num_hidden_layers"), ("num_hidden_layers", 3, "groups"),
    ("num_hidden_layers", [4], "num_hidden_layers"), ("num_attention_heads", 0, "heads"),
    ("hidden_dropout_prob", "0.1", "hidden_dropout"), ("hidden_dropout_prob", -1, "hidden_dropout"),
    ("hidden_dropout_prob", True, "hidden_dropout"), ("layer_norm_eps", float("nan"), "eps"),
    ("layer_norm_eps", float("inf"), "eps"), ("tie_decoder", "yes", "tie_decoder"),
    ("vocab_size", V + 1, "word_embeddings"), ("adapter_size", -1, "adapter_size")])
def test_a_wrong_field_of_the_config_is_named(saved, name, value, told):
    change_config(saved, **{name: value})
    refused(saved, told)


@pytest.mark.parametrize("factor", ["16", 0, None, 2.5, ...])
def test_a_wrong_reduction_factor_is_refused(tmp_path, factor):
    authors_checkpoint(authors_weights(E, True), tmp_path)
    change_config(tmp_path, reduction_factor=factor)
    refused(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, '{"a": 1, "a": 1}'])
def test_a_config_that_is_no_json_object_is_refused(saved, text):
    (saved / "config.json").write_text(text)
    refused(saved, "config.json: not a JSON object")


def test_a_folder_without_weights_says_what_was_looked_for(saved):
    (saved / "model.safetensors").unlink()
    refused(saved, "model.safetensors.*pytorch_model.bin")


def test_an_empty_folder_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        load(tmp_path)


def test_a_cut_file_of_weights_is_refused(saved):
    os.truncate(saved / "model.safetensors", os.path.getsize(saved / "model.safetensors") - 4)
    refused(saved, "model.safetensors")


class Intruder:
    """A pickle that makes a folder where it is opened without care."""
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def to_pickle(folder, content):
    """The folder's weights as pytorch_model.bin, which holds this."""
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")


def test_a_pickle_that_runs_a_program_is_refused_and_has_not_run(saved):
    to_pickle(saved, {"x": Intruder(saved / "broken-in")})
    refused(saved, "pytorch_model.bin")
    assert not (saved / "broken-in").exists()


@pytest.mark.parametrize("content", [None, "text", [torch.ones(2)], {1: 2},
                                     {"state_dict": {"x": torch.ones(2)}}])
def test_a_pickle_that_is_no_map_of_tensors_is_refused(saved, content):
    to_pickle(saved, content)
    refused(saved, "pytorch_model.bin")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("old", [False, True])
def test_a_damaged_pickle_is_refused(saved, old):
    to_pickle(saved, {})
    path, rng = saved / "pytorch_model.bin", random.Random(0)
    torch.save({"other": torch.ones(2)}, path, _use_new_zipfile_serialization=not old)
    content = path.read_bytes()
    path.write_bytes(b"")
    refused(saved, "pytorch_model.bin")
    for _ in range(50):
        at = rng.randrange(len(content))
        path.write_bytes(rng.choice([content[:at], content[:at] + b"\xff" + content[at + 1:]]))
        refused(saved)


def sharded(folder, lies=()):
    """The folder's weights in two shards, the head in the second, and an index with these lies."""
    tensors = read_safetensors(folder / "model.safetensors")[0]
    index = {name: f"{1 + name.startswith('cls.')}.safetensors" for name in tensors}
    for file in ("1.safetensors", "2.safetensors"):
        part = {name: tensor for name, tensor in tensors.items() if index[name] == file}
        write_safetensors(part, folder / file)
    (folder / "model.safetensors").unlink()
    index = {name: file for name, file in (index | dict(lies)).items() if file is not ...}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def test_our_shards_are_read(saved):
    expected = load(saved).state_dict()
    sharded(saved)
    assert_same_bytes(load(saved).state_dict(), expected)


@pytest.mark.parametrize("name, file", [
    ("other", "1.safetensors"), ("bert.embeddings.LayerNorm.bias", ...),
    ("cls.predictions.bias", ...), ("cls.predictions.bias", "1.safetensors")])
def test_an_index_that_disagrees_with_its_shards_is_refused(saved, name, file):
    sharded(saved, {name: file})
    refused(saved, name)


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "..", ".", "", "gone",
                                  "sub/1.safetensors", "\0", 7, None, ["1.safetensors"], {}, True])
def test_an_index_names_files_beside_it_and_no_others(saved, file):
    write_safetensors({"x": torch.ones(1)}, saved.parent / "secret.safetensors")
    sharded(saved, {"x": file})
    refused(saved, "weight_map|index")


@pytest.mark.parametrize("weight_map", [None, [], "x", 1])
def test_an_index_without_a_map_is_refused(saved, weight_map):
    sharded(saved)
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(saved, "weight_map")


# ---- Writing -------------------------------------------------------------------------------------


def full_disk(file=None):
    raise OSError("no space left")


def half_a_file():
    yield b"new"
    full_disk()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    write_atomically(tmp_path / "x", [b"old"])
    with pytest.raises(OSError, match="no space left"):
        write_atomically(tmp_path / "x", half_a_file())
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x", b"old")]


def test_a_flush_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_atomically(tmp_path / "x", [b"old"])
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(tmp_path / "x", [b"new"])
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x", b"old")]


def test_a_write_that_succeeds_leaves_one_new_file(tmp_path):
    write_atomically(tmp_path / "x", [b"old"])
    write_atomically(tmp_path / "x", [b"ne", b"w"])
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x", b"new")]
