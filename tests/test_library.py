"""The modules as a library: what a script of somebody else may ask of them."""
import functools
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from checkpoint import load, save
from conftest import B, R, T, V, make_task_of_kind, make_task_tokenizer, random_model
from data import MaskedBatches, Tokenizer, mask_tokens, open_corpus
from distill import BUNDLED_TEACHER, Distillation, attention_loss, hidden_loss, output_loss
from finetune import Classifier, TaskLoss, encode, load_classifier, load_encoder, save_classifier
from minialbert import MiniALBERT
from tasks import Example, score


@pytest.fixture(scope="module")
def teacher():
    return load(BUNDLED_TEACHER)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(BUNDLED_TEACHER)


def corrected_student():
    return random_model(correction_rank=2)


def gradients(model, ids):
    model.zero_grad()
    hidden, _ = model(ids)
    hidden[-1].square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_layer_may_be_computed_again_in_the_backward_pass():
    model = corrected_student().eval()
    ids = torch.randint(0, V, (B, T))
    wanted = gradients(model, ids)
    for layer in model.layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    found = gradients(model, ids)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5), name


def test_torch_func_computes_the_gradient_of_a_student():
    model = corrected_student().eval()
    ids = torch.randint(0, V, (B, T))
    wanted = gradients(model, ids)

    def loss(parameters):
        return torch.func.functional_call(model, parameters, (ids,))[0][-1].square().sum()

    found = torch.func.grad(loss)({n: p.detach() for n, p in model.named_parameters()})
    name = "layers.0.attention.query.weight"
    assert torch.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_threads_may_share_a_student():
    model = corrected_student().eval()
    results = []

    def work(ids, wanted):
        with torch.no_grad():
            for _ in range(50):
                results.append(torch.equal(model(ids)[0][-1], wanted))

    # Each thread has texts of its own, so that one would notice those of another.
    threads = []
    for _ in range(4):
        ids = torch.randint(0, V, (B, T))
        wanted = model(ids)[0][-1].detach()
        threads.append(threading.Thread(target=work, args=(ids, wanted)))
    usual_interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)                          # seconds; else they seldom meet
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(usual_interval)
    assert results == [True] * 200


def test_maps_may_be_an_iterator():
    model = random_model()
    ids = torch.randint(0, V, (B, T))
    assert list(model(ids, maps=iter([0, R - 1]))[1]) == [0, R - 1]
    with pytest.raises(ValueError, match="maps: 0.5"):
        model(ids, maps=[0.5])


@pytest.mark.parametrize("make_mask", [
    lambda mask: mask[:, :1], lambda mask: mask[:, None, None, :], lambda mask: mask[0],
    lambda mask: (1 - mask.float()) * -1e4, lambda mask: (1 - mask) * -10000])
def test_a_mask_of_another_kind_is_refused(make_mask):
    mask = torch.ones(B, T, dtype=torch.long)
    mask[:, -1] = 0
    with pytest.raises(ValueError, match="mask"):
        random_model()(torch.zeros(B, T, dtype=torch.long), make_mask(mask))


def test_segments_of_another_shape_are_refused():
    ids = torch.zeros(B, T, dtype=torch.long)
    with pytest.raises(ValueError, match=r"segments is \[7\], ids is \[3, 7\]"):
        random_model()(ids, segments=ids[0])
    with pytest.raises(ValueError, match=r"segments is \[2, 7\], ids is \[3, 7\]"):
        random_model()(ids, segments=ids[:2])


def test_ids_without_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"ids is \[7\], not \(B, T\)"):
        random_model()(torch.zeros(7, dtype=torch.long))


def test_losses_do_not_repeat_a_smaller_tensor():
    maps = torch.randn(2, 4, 5, 5).log_softmax(-1)
    states = torch.randn(2, 5, 8)
    mask = torch.ones(2, 5)
    for compare in (lambda: attention_loss(maps[:, :1], maps),
                    lambda: attention_loss(maps, maps[:1]),
                    lambda: hidden_loss(states, states[:1]),
                    lambda: hidden_loss(states, states, mask[:, None, None, :]),
                    lambda: output_loss(states[0], states[0, :1])):
        with pytest.raises(ValueError, match="must be equal"):
            compare()


class OwnBatches:
    batch_size = 4
    T = 16
    seed = 0

    def __init__(self, tokenizer, num_rows, length):
        self.tokenizer = tokenizer
        self.shape = num_rows, length

    def batch(self, step):
        rng = np.random.default_rng(step)
        return mask_tokens(rng.integers(5, 1000, self.shape), self.tokenizer, rng)


def test_a_loss_that_is_not_known_is_not_left_out(teacher, tokenizer):
    student = MiniALBERT(replace(teacher.config, num_hidden_groups=1))
    batches = OwnBatches(tokenizer, 4, 16)
    with pytest.raises(ValueError, match="loss_weights has 'attn', but the losses are mlm"):
        Distillation(student, teacher, batches, {"mlm": 1.0, "attn": 3.0})
    shallow = MiniALBERT(replace(student.config, num_hidden_layers=1))
    with pytest.raises(ValueError, match="more than one recursion"):
        Distillation(shallow, teacher, batches, {"output": 1.0, "elastic": 1.0})
    with pytest.raises(ValueError, match="without a teacher"):
        Distillation(student, None, batches, {"mlm": 1.0, "output": 1.0})
    with pytest.raises(ValueError, match="no loss is left"):
        Distillation(student, teacher, batches, {})
    headless = MiniALBERT(teacher.config, head=False)
    with pytest.raises(ValueError, match="need a teacher with an MLM head"):
        Distillation(student, headless, batches, {"mlm": 1.0, "output": 1.0})
    for weights in ({"mlm": 1.0}, {"output": 1.0}, {"elastic": 1.0}):
        with pytest.raises(ValueError, match="need a student with an MLM head"):
            Distillation(headless, teacher, batches, weights)
    Distillation(headless, teacher, batches, {"hidden": 1.0})
    narrow = MiniALBERT(replace(student.config, hidden_size=64, embedding_size=32))
    with pytest.raises(ValueError, match="hidden_size of the teacher is 128, of the student 64"):
        Distillation(narrow, teacher, batches, {"hidden": 1.0})


@pytest.mark.parametrize("shape", [(8, 16), (2, 16), (4, 12), (4, 20)])
def test_a_batch_of_another_shape_is_refused(shape, teacher, tokenizer):
    student = MiniALBERT(replace(teacher.config, num_hidden_groups=1))
    distillation = Distillation(student, teacher, OwnBatches(tokenizer, *shape), {"mlm": 1.0})
    with pytest.raises(ValueError, match="batch of step 0"):
        next(distillation.losses_of_micro_batches(0))


def test_a_list_of_texts_is_not_one_text(tokenizer):
    with pytest.raises(ValueError, match="is not a text"):
        tokenizer(["first", "second"])
    with pytest.raises(ValueError, match="is not a text"):
        tokenizer.encode([("first", "second")])
    with pytest.raises(ValueError, match="'first' is one text, but encode"):
        tokenizer.encode("first")


def test_a_corpus_may_be_one_path(tokenizer, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one two three\n\n" * 20)
    for corpus in (str(path), path, [path], iter([str(path)])):
        corpus = open_corpus(corpus, tokenizer, str(tmp_path / "cache"))
        assert corpus.made_from["corpus"][0][0] == str(path)


def test_a_tokenizer_makes_its_folder(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new")
    assert Tokenizer(tmp_path / "new").digest == tokenizer.digest


def test_a_compiled_model_is_saved_like_the_model(tmp_path):
    model = random_model()
    save(torch.compile(model, backend="eager"), tmp_path)
    loaded = load(tmp_path).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_what_load_would_refuse_is_not_saved(tmp_path):
    model = random_model()
    model.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="'scale' of shape"):
        save(model, tmp_path / "a")
    model = random_model()
    model.embeddings.word = nn.Embedding(V + 1, model.config.embedding_size)
    with pytest.raises(ValueError, match="embeddings.word.weight"):
        save(model, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_an_untied_decoder_that_equals_the_word_table_stays_untied(tmp_path):
    model = random_model(embedding_size=24, hidden_size=24, tie_decoder=False)
    model.head.decoder.weight.data.copy_(model.embeddings.word.weight.data)
    save(model, tmp_path)
    assert load(tmp_path).head.decoder is not None


def test_tokens_may_be_a_list_of_numbers_but_nothing_else(tokenizer):
    numbers = list(range(5, 205))
    from_list = MaskedBatches(numbers, tokenizer, T=12, batch_size=2).batch(0)
    from_array = MaskedBatches(np.array(numbers), tokenizer, T=12, batch_size=2).batch(0)
    for found, wanted in zip(from_list, from_array):
        assert np.array_equal(found, wanted)
    for tokens in (["one text"] * 20, [[5, 6], [7, 8]], np.ones(200)):
        with pytest.raises(ValueError, match="tokens must be one array of token numbers"):
            MaskedBatches(tokens, tokenizer, T=3, batch_size=2)


def test_a_name_that_is_no_folder_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match="bert-base-uncased: this is not a folder; .*fetch"):
        load("bert-base-uncased")
    with pytest.raises(ValueError, match="teacher: not a fine-tuned model: it has no task.json"):
        load_classifier(Path(BUNDLED_TEACHER))


def test_fine_tuning_refuses_what_it_would_leave_out(tmp_path):
    tokenizer = make_task_tokenizer(tmp_path)
    task = make_task_of_kind("classification", ["a", "b"])
    encoder = random_model(head=False, vocab_size=tokenizer.vocab_size, max_position_embeddings=64)
    model = Classifier(encoder, task)
    examples = [Example("red", None, "a", "0", "x:1"), Example("city", None, None, "1", "x:2")]
    features = list(encode(task, examples, tokenizer))
    with pytest.raises(ValueError, match="example 1 has no label"):
        TaskLoss(model, task, features, 2, 0)
    with pytest.raises(ValueError, match="1 guesses for 2 examples"):
        score(task, examples, ["a"])
    with pytest.raises(ValueError, match="this task needs two texts"):
        list(encode(replace(task, pair=True), examples, tokenizer))
    two_texts = [examples[0]._replace(second_text="city")]
    with pytest.raises(ValueError, match="this task needs one text"):
        list(encode(task, two_texts, tokenizer))
    save(random_model(vocab_size=tokenizer.vocab_size, adapter_size=0), tmp_path / "plain")
    with pytest.raises(ValueError, match="adapters are added, so they need a sample"):
        load_encoder(str(tmp_path / "plain"), "adapters")
    with pytest.raises(ValueError, match="mode is 'adaptors'"):
        load_encoder(tmp_path, "adaptors")
    with pytest.raises(ValueError, match="name is 'mine'"):
        save_classifier(str(tmp_path / "out"), model, replace(task, name="mine"), tokenizer)
