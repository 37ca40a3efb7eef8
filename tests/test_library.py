"""The modules as a library: what a script of somebody else may ask of them."""
import functools
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from checkpoint import load, save
from conftest import B, C, R, T, V, make_task_of_kind, make_task_tokenizer, random_model
from data import MaskedBatches, Tokenizer, mask_tokens, open_corpus
from distill import BUNDLED_TEACHER, Distillation, attention_loss, hidden_loss, output_loss
from finetune import Classifier, TaskLoss, encode, load_encoder
from minialbert import MiniALBERT, count_parameters
from tasks import Example, score


@pytest.fixture(scope="module")
def teacher():
    """Load the teacher that comes with the program."""
    return load(BUNDLED_TEACHER)


@pytest.fixture(scope="module")
def tokenizer():
    """Load the tokenizer of the teacher that comes with the program."""
    return Tokenizer(BUNDLED_TEACHER)


def corrected_student():
    """Make a small student with corrections, in eval mode."""
    return random_model(correction_rank=2)


def random_ids():
    """Make token numbers (B, T)."""
    return torch.randint(0, V, (B, T))


def last_hidden_state(model, ids):
    """Compute the last hidden state (B, T, C)."""
    hidden, _ = model(ids)
    return hidden[-1]


def gradients(model, ids):
    """Compute the gradients of the sum of squares of the last hidden state {name: tensor}."""
    model.zero_grad()
    last_hidden_state(model, ids).square().sum().backward()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[name] = parameter.grad.clone()
    return found


def test_a_layer_may_be_computed_again_in_the_backward_pass():
    """torch.utils.checkpoint saves memory in this way. The gradients must stay as they were."""
    model = corrected_student()
    ids = random_ids()
    expected = gradients(model, ids)
    for layer in model.layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    found = gradients(model, ids)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5), name


def test_torch_func_computes_the_gradient_of_a_student():
    model = corrected_student()
    ids = random_ids()
    expected = gradients(model, ids)

    def loss(parameters):
        hidden, _ = torch.func.functional_call(model, parameters, (ids,))
        return hidden[-1].square().sum()

    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    found = torch.func.grad(loss)(parameters)
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5), name


def test_threads_may_share_a_student():
    """Each thread has ids of its own: if two threads got mixed up, the results would differ."""
    model = corrected_student()
    results = []

    @torch.no_grad()
    def work(ids, expected):
        for _ in range(50):
            found = last_hidden_state(model, ids)
            results.append(torch.equal(found, expected))

    threads = []
    for _ in range(4):
        ids = random_ids()
        expected = last_hidden_state(model, ids).detach()
        thread = threading.Thread(target=work, args=(ids, expected))
        threads.append(thread)
    usual_interval = sys.getswitchinterval()
    # The threads take turns every 10 microseconds instead of every 5 ms, so that calls overlap.
    sys.setswitchinterval(1e-5)
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
    _, maps = model(random_ids(), maps=iter([0, R - 1]))
    assert list(maps) == [0, R - 1]


def test_a_number_of_a_map_that_is_no_integer_is_refused():
    model = random_model()
    with pytest.raises(ValueError, match="maps: 0.5"):
        model(random_ids(), maps=[0.5])


MASK = torch.ones(B, T, dtype=torch.long)
MASK[:, -1] = 0
WRONG_MASKS = {
    "one column": MASK[:, :1],
    "with room for heads": MASK[:, None, None, :],       # (B, 1, 1, T), as others have it
    "one row": MASK[0],
}


@pytest.mark.parametrize("kind", WRONG_MASKS)
def test_a_mask_of_another_shape_is_refused(kind):
    model = random_model()
    with pytest.raises(ValueError, match="mask"):
        model(random_ids(), WRONG_MASKS[kind])


def test_segments_of_another_shape_are_refused():
    model = random_model()
    ids = torch.zeros(B, T, dtype=torch.long)
    with pytest.raises(ValueError, match=r"segments is \[7\], ids is \[3, 7\]"):
        model(ids, segments=ids[0])
    with pytest.raises(ValueError, match=r"segments is \[2, 7\], ids is \[3, 7\]"):
        model(ids, segments=ids[:2])


def test_ids_without_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"ids is \[7\], not \(B, T\)"):
        random_model()(torch.zeros(7, dtype=torch.long))


def test_losses_do_not_repeat_a_smaller_tensor():
    """torch would repeat it without an error (broadcasting), and the loss would be wrong."""
    maps = torch.randn(2, 4, 5, 5).log_softmax(-1)
    states = torch.randn(2, 5, 8)
    mask = torch.ones(2, 5)
    wrong_calls = [
        (attention_loss, [maps[:, :1], maps]),
        (attention_loss, [maps, maps[:1]]),
        (hidden_loss, [states, states[:1]]),
        (hidden_loss, [states, states, mask[:, None, None, :]]),
        (output_loss, [states[0], states[0, :1]]),
    ]
    for loss, tensors in wrong_calls:
        with pytest.raises(ValueError, match="must be equal"):
            loss(*tensors)
    with pytest.raises(ValueError, match=r"logits have the shape \[2, 5, 8\], not \(M, V\)"):
        output_loss(states, states)


class OwnBatches:
    """Batches of random tokens, made by a script itself. A Distillation uses no other names."""
    batch_size = 4
    T = 16
    seed = 0

    def __init__(self, tokenizer, num_rows, length):
        self.tokenizer = tokenizer
        self.shape = (num_rows, length)

    def batch(self, step):
        rng = np.random.default_rng(step)
        ids = rng.integers(5, 1000, self.shape)
        return mask_tokens(ids, self.tokenizer, rng)


@pytest.fixture(scope="module")
def student(teacher):
    """Make a student with the shape of the teacher, but one layer for all recursions."""
    config = replace(teacher.config, num_hidden_groups=1)
    return MiniALBERT(config)


@pytest.fixture
def batches(tokenizer):
    """Make batches of the shape that their batch_size and T say."""
    return OwnBatches(tokenizer, num_rows=4, length=16)


def test_a_loss_that_is_not_known_is_not_left_out(student, teacher, batches):
    with pytest.raises(ValueError, match="loss_weights has 'attn', but the losses are mlm"):
        Distillation(student, teacher, batches, {"mlm": 1.0, "attn": 3.0})


def test_without_a_teacher_only_the_mlm_loss_can_be_computed(student, batches):
    with pytest.raises(ValueError, match="without a teacher"):
        Distillation(student, None, batches, {"mlm": 1.0, "output": 1.0})


def test_losses_of_the_logits_need_models_with_heads(student, teacher, batches):
    headless = MiniALBERT(teacher.config, head=False)
    with pytest.raises(ValueError, match="need a teacher with an MLM head"):
        Distillation(student, headless, batches, {"mlm": 1.0, "output": 1.0})
    with pytest.raises(ValueError, match="need a teacher with an MLM head"):
        Distillation(student, headless, batches, {"elastic": 1.0})
    for name in ("mlm", "output", "elastic"):
        distillation = Distillation(headless, teacher, batches, {name: 1.0})
        with pytest.raises(ValueError, match="the model has no MLM head"):
            next(distillation.losses_of_micro_batches(0))
    distillation = Distillation(headless, teacher, batches, {"hidden": 1.0})
    next(distillation.losses_of_micro_batches(0))


@pytest.mark.parametrize("num_rows, length", [(8, 16), (2, 16), (4, 12), (4, 20)])
def test_a_batch_of_another_shape_is_refused(num_rows, length, student, teacher, tokenizer):
    batches = OwnBatches(tokenizer, num_rows, length)
    distillation = Distillation(student, teacher, batches, {"mlm": 1.0})
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
    """It is a string or a Path, or any iterable of these."""
    path = tmp_path / "a.txt"
    path.write_text("one two three\n\n" * 20)
    for corpus in (str(path), path, [path], iter([str(path)])):
        token_file = open_corpus(corpus, tokenizer, str(tmp_path / "cache"))
        first_file = token_file.made_from["corpus"][0]
        assert first_file[0] == str(path)


def test_a_compiled_model_is_saved_like_the_model(tmp_path):
    model = random_model()
    compiled = torch.compile(model, backend="eager")
    save(compiled, tmp_path)
    loaded = load(tmp_path).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
    assert count_parameters(compiled) == count_parameters(model)


def test_what_load_would_refuse_is_not_saved(tmp_path):
    with_own_parameter = random_model()
    with_own_parameter.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="'scale' of shape"):
        save(with_own_parameter, tmp_path / "a")
    with_larger_table = random_model()
    embedding_size = with_larger_table.config.embedding_size
    with_larger_table.embeddings.word = nn.Embedding(V + 1, embedding_size)
    with pytest.raises(ValueError, match="embeddings.word.weight"):
        save(with_larger_table, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_an_untied_decoder_that_equals_the_word_table_stays_untied(tmp_path):
    """In a BERT of another program, two equal tables mean a tied decoder. But a model that this
    program has saved has tie_decoder in its config.json, and that counts."""
    model = random_model(embedding_size=C, tie_decoder=False)
    word_table = model.embeddings.word.weight
    model.head.decoder.weight.data.copy_(word_table.data)
    save(model, tmp_path)
    assert load(tmp_path).head.decoder is not None


@pytest.mark.parametrize("tokens", [["one text"] * 20, [[5, 6], [7, 8]], np.ones(200)])
def test_tokens_that_are_no_whole_numbers_in_a_row_are_refused(tokens, tokenizer):
    with pytest.raises(ValueError, match="tokens must be one array of token numbers"):
        MaskedBatches(tokens, tokenizer, T=3, batch_size=2)


def test_a_name_that_is_no_folder_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match="bert-base-uncased: this is not a folder; .*fetch"):
        load("bert-base-uncased")


@pytest.fixture
def task_tokenizer(tmp_path):
    return make_task_tokenizer(tmp_path)


@pytest.fixture
def task():
    """Make a Task of classifying texts into a and b."""
    return make_task_of_kind("classification", ["a", "b"])


@pytest.fixture
def task_model(task, task_tokenizer):
    """Make a small Classifier for the task."""
    encoder = random_model(head=False, vocab_size=task_tokenizer.vocab_size,
                           max_position_embeddings=64)
    return Classifier(encoder, task)


# The second one has no label, and none has a second text.
EXAMPLES = [
    Example("red", label="a", id="0", location="x:1"),
    Example("city", id="1", location="x:2"),
]


def test_examples_without_a_label_cannot_be_learned(task, task_model, task_tokenizer):
    features = encode(task, EXAMPLES, task_tokenizer)
    with pytest.raises(ValueError, match="example 1 has no label"):
        TaskLoss(task_model, features, batch_size=2, seed=0)


def test_each_example_needs_a_guess(task):
    with pytest.raises(ValueError, match="1 guesses for 2 examples"):
        score(task, EXAMPLES, ["a"])


def test_examples_need_as_many_texts_as_their_task(task, task_tokenizer):
    task_of_pairs = replace(task, pair=True)
    with pytest.raises(ValueError, match="this task needs two texts"):
        encode(task_of_pairs, EXAMPLES, task_tokenizer)
    pair = EXAMPLES[0]._replace(second_text="city")
    with pytest.raises(ValueError, match="this task needs one text"):
        encode(task, [pair], task_tokenizer)


def test_an_encoder_is_not_loaded_in_a_mode_that_cannot_be(tmp_path):
    save(random_model(adapter_size=0), tmp_path)
    with pytest.raises(ValueError, match="adapters are added, so they need a sample"):
        load_encoder(str(tmp_path), "adapters")
    with pytest.raises(ValueError, match="mode is 'adaptors'"):
        load_encoder(tmp_path, "adaptors")


def test_a_task_of_ones_own_has_its_kind_as_its_name(task):
    """The kind of a task follows from its name: mrpc, for example, is a classification."""
    with pytest.raises(ValueError, match="name is 'mine'"):
        replace(task, name="mine")
