"""distill.py: each loss against sums written out and against the authors' formulas; the start
from the teacher; the training loop when it is stopped, killed, resumed and split; the command
line and its errors."""
import argparse
import copy
import ctypes
import errno
import functools
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import distill
from checkpoint import files_of_run, load, read_json, read_safetensors, save, write_safetensors
from command import given_flags, refuse_flags, run_command
from conftest import (
    A, B, C, E, F, H, T, TOY_TEACHER, V, assert_close, assert_help_names_flags, call_forked,
    distill_flags, files_below, noisy_model, note_first_process, printed_help, read_log,
    read_metadata)
from data import MaskedBatches, Tokenizer, open_corpus, tokenise
from distill import (
    LOSS_WEIGHTS, RECIPES, Distillation, Processes, TrainingOptions, attention_loss,
    evaluate, hidden_loss, learning_rate, match_layers, mlm_loss, output_loss, start_from_teacher,
    training_step)
from minialbert import CORRECTED, Config, MiniALBERT, keep_recursions

STUDENT = replace(TOY_TEACHER, embedding_size=E, num_hidden_layers=2, num_hidden_groups=1,
                  adapter_size=A, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
LARGEST_INTEGER = 2**31 - 1                              # that a flag takes
ONE_STEP = ["--steps", 1, "--warmup", 0]                 # the flags of the shortest run


# ---- Small models and batches -----------------------------------------------------------

def noisy_teacher(head=True, **changes):
    """Make a model like the toy teacher, but with these changes and other values."""
    return noisy_model(replace(TOY_TEACHER, **changes), seed=2, head=head)


def noisy_student(head=True, **changes):
    """Make a model of the Config STUDENT with these changes."""
    return noisy_model(replace(STUDENT, **changes), seed=1, head=head)


def bert_config(hidden_size, num_layers, num_heads=4, **changes):
    """Make the Config of a BERT: no layers are shared and its embeddings are as wide as it is."""
    sizes = {
        "vocab_size": V, "embedding_size": hidden_size, "hidden_size": hidden_size,
        "num_hidden_layers": num_layers, "num_hidden_groups": num_layers,
        "num_attention_heads": num_heads, "intermediate_size": F,
    }
    sizes.update(changes)
    return Config(**sizes)


BERT_BASE = bert_config(768, 12, 12, vocab_size=30522, intermediate_size=3072)


def random_ids(num_rows=32, length=T):
    """Draw ids (num_rows, length) of tokens that are not special, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, V, (num_rows, length), generator=generator)


class RandomBatches:
    """Batches like those of data.MaskedBatches, but of random tokens."""

    def __init__(self, num_masked=3, count=40):
        self.num_masked = num_masked                     # in a whole batch
        self.count = count                               # sequences in all batches
        self.batch_size = 4
        self.T = T
        self.seed = 0

    def batch(self, step):
        rng = np.random.default_rng(step)
        ids = rng.integers(5, V, (4, T))
        positions = np.sort(rng.permutation(4 * T)[:self.num_masked])
        labels = rng.integers(5, V, self.num_masked)
        return ids, positions, labels


def batch_of_tensors(batches, step):
    """Return the ids, the positions and the labels of a batch as tensors."""
    ids, positions, labels = batches.batch(step)
    return torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(labels)


# ---- Runs and what they leave -----------------------------------------------------------

def parse(flags):
    """Parse a command line that is one string."""
    return distill.arguments(flags.split())


def make_options(out, **changes):
    """Make TrainingOptions of 4 steps, with these changes."""
    settings = {
        "steps": 4, "lr": 0.01, "warmup": 2, "weight_decay": 0.1, "seed": 0, "log_every": 1,
        "eval_every": 0, "save_every": 100, "out": str(out), "resume": False,
    }
    settings.update(changes)
    return TrainingOptions(**settings)


@pytest.fixture
def out(tmp_path):
    """Name the folder of a run, which does not exist yet."""
    return tmp_path / "run"


def run_distill(toy, out, *more):
    """Run distill.py with distill_flags() and assert that it succeeds."""
    flags = distill_flags(toy, out, *more)
    assert distill.main(flags) is None


def error_of_run(capsys, toy, out, *more):
    """Run distill.py with distill_flags(), assert that it fails and return its standard error."""
    flags = distill_flags(toy, out, *more)
    assert distill.main(flags) == 2
    return capsys.readouterr().err


def exit_status_of_run(toy, out, *more):
    """Run distill.py with distill_flags() until a signal ends it, and return the exit status."""
    with pytest.raises(SystemExit) as caught:
        distill.main(distill_flags(toy, out, *more))
    return caught.value.code


@pytest.fixture(scope="session")
def whole(toy, tmp_path_factory):
    """Make a run that nothing interrupts and return its folder."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run_distill(toy, folder)
    return folder


def model_bytes(out):
    return (out / "model.safetensors").read_bytes()


def assert_same_run(out, expected):
    """Assert that two runs have the same log and wrote the same bytes of their model."""
    assert read_log(out) == read_log(expected)
    assert model_bytes(out) == model_bytes(expected)


def table_rows(text, name):
    """Find the rows of a model in the printed tables -> the cells of each."""
    rows = []
    for line in text.splitlines():
        if line.startswith(f"{name} "):
            rows.append(line.split())
    return rows


def open_toy_corpus(toy):
    """Open the toy corpus as a run with distill_flags() does."""
    tokenizer = Tokenizer(toy / "teacher")
    return open_corpus([f"{toy}/corpus.txt"], tokenizer, toy / "cache")


def write_other_corpus(toy, path):
    """Write a text that differs from the toy corpus in one word."""
    text = (toy / "corpus.txt").read_text()
    path.write_text(text.replace("w1", "w2", 1))


# ---- What takes the place of something, or watches it -----------------------------------

def always(result):
    """Make a function that gives this result, whatever its arguments are."""
    def function(*arguments, **options):
        return result

    return function


def one_after_another(values):
    """Make a function that gives the next of these values at each call, as a clock does."""
    iterator = iter(values)

    def function():
        return next(iterator)

    return function


def pretend_gpus(monkeypatch, number):
    """Let torch seem to find so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", always(number > 0))
    monkeypatch.setattr(torch.cuda, "device_count", always(number))


def before_each_step(monkeypatch, action):
    """Call action(step) before each step of a run, but not before the four that are timed."""
    original = Distillation.losses_of_micro_batches
    calls = []

    def losses_of_micro_batches(self, step):
        calls.append(step)
        if len(calls) > 4:
            action(step)
        return original(self, step)

    monkeypatch.setattr(Distillation, "losses_of_micro_batches", losses_of_micro_batches)


def send_signal_before(monkeypatch, wanted_step, number):
    """Let a run receive a signal before one of its steps."""
    def send(step):
        if step == wanted_step:
            os.kill(os.getpid(), number)

    before_each_step(monkeypatch, send)


# ---- The losses -------------------------------------------------------------------------

def random_scores(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 3


def random_maps(seed):
    """Draw the logarithms of attention maps (B, H, T, T)."""
    return random_scores((B, H, T, T), seed).log_softmax(-1)


def softmax_written_out(scores):
    """Compute a softmax over the last axis in float64 -> an array."""
    odds = np.exp(scores.double().numpy())
    return odds / odds.sum(-1, keepdims=True)


def test_attention_loss_is_the_sum_written_out():
    """It is the divergence of the student's map from the teacher's, a mean over the heads and a sum
    over all rows."""
    student = random_maps(1)
    teacher = random_maps(2)
    q = student.double().exp().numpy()
    p = teacher.double().exp().numpy()
    total = 0.0
    for place in np.ndindex(B, H, T, T):
        total += p[place] * math.log(p[place] / q[place])
    found = attention_loss(student, teacher).item()
    assert found == pytest.approx(total / H, rel=1e-5)


def test_hidden_loss_is_the_sum_written_out():
    """It is 1 less the cosine of the two states of each token."""
    student = random_scores((B, T, C), 1)
    teacher = random_scores((B, T, C), 2)
    total = 0.0
    for place in np.ndindex(B, T):
        x = student[place].double().numpy()
        y = teacher[place].double().numpy()
        lengths = math.sqrt(sum(x * x)) * math.sqrt(sum(y * y))
        total += 1 - sum(x * y) / lengths
    found = hidden_loss(student, teacher).item()
    assert found == pytest.approx(total, rel=1e-5)


def test_hidden_loss_with_a_mask_is_the_sum_over_the_tokens_that_count():
    student = random_scores((B, T, C), 1)
    teacher = random_scores((B, T, C), 2)
    lengths = torch.tensor([[T], [3], [0]])
    mask = torch.arange(T) < lengths
    of_first_row = hidden_loss(student[:1], teacher[:1])
    of_second_row = hidden_loss(student[1:2, :3], teacher[1:2, :3])
    found = hidden_loss(student, teacher, mask)
    assert_close(found, of_first_row + of_second_row, 1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_output_loss_is_the_sum_written_out(temperature):
    """It is the divergence of the student's prediction from the teacher's, both softened by the
    temperature, times the square of the temperature."""
    student = random_scores((T, V), 1)
    teacher = random_scores((T, V), 2)
    q = softmax_written_out(student / temperature)
    p = softmax_written_out(teacher / temperature)
    total = 0.0
    for place in np.ndindex(T, V):
        total += p[place] * math.log(p[place] / q[place])
    found = output_loss(student, teacher, temperature).item()
    assert found == pytest.approx(temperature**2 * total, rel=1e-5)


def test_mlm_loss_is_the_sum_written_out():
    logits = random_scores((T, V), 1)
    labels = torch.arange(T) * 11
    probs = softmax_written_out(logits)
    total = 0.0
    for m in range(T):
        total -= math.log(probs[m, labels[m]])
    found = mlm_loss(logits, labels).item()
    assert found == pytest.approx(total, rel=1e-5)


@pytest.mark.filterwarnings("ignore:reduction")          # torch explains what "mean" means
def test_attention_loss_over_all_tokens_is_the_length_times_the_authors_mean_of_all_elements():
    """So a weight of 3 / 256 is the paper's 3: its texts have 256 tokens."""
    student = random_maps(1)
    teacher = random_maps(2)
    theirs = nn.KLDivLoss(reduction="mean")(student, teacher.exp())
    ours = attention_loss(student, teacher) / (B * T)
    assert ours.item() == pytest.approx(T * theirs.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_divergences_and_their_gradients_are_finite_for_certainties(dtype):
    """The score of a masked token is -1e9, in float32 and in autocast."""
    sure = torch.full((1, 1, 2, 2), -1e9, dtype=dtype)
    sure[..., 0] = 0.0
    opposite = sure.flip(-1)
    scores = sure.clone().requires_grad_()
    logits = sure[0, 0].clone().requires_grad_()
    of_maps = attention_loss(scores.log_softmax(-1), opposite.log_softmax(-1))
    of_predictions = output_loss(logits, opposite[0, 0])
    loss = of_maps + of_predictions
    loss.backward()
    assert loss.isfinite()
    assert scores.grad.isfinite().all()
    assert logits.grad.isfinite().all()
    sure_map = sure.log_softmax(-1)
    assert attention_loss(sure_map, sure_map) == 0


def test_the_losses_of_bfloat16_are_computed_in_float32():
    """A cosine or a softmax that is itself rounded to 8 bits would be wrong by up to 1 %."""
    student = random_scores((T, V), 1).bfloat16()
    teacher = random_scores((T, V), 2).bfloat16()
    labels = torch.arange(T)
    for loss_function in (hidden_loss, output_loss):
        expected = loss_function(student.double(), teacher.double()).item()
        found = loss_function(student, teacher).item()
        assert found == pytest.approx(expected, rel=1e-5)
    expected = mlm_loss(student.double(), labels).item()
    found = mlm_loss(student, labels).item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_recursions_match_evenly_spread_layers_and_the_last():
    # The authors' layers 2, 4, ..., 12, counted from 1.
    assert match_layers(6, 12) == [(0, 1), (1, 3), (2, 5), (3, 7), (4, 9), (5, 11)]
    assert match_layers(2, 6) == [(0, 2), (1, 5)]
    assert match_layers(4, 4) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    # With more recursions than layers, all layers are matched.
    assert match_layers(6, 2) == [(2, 0), (5, 1)]
    assert match_layers(4, 2) == [(1, 0), (3, 1)]
    message = ("5 recursions cannot be spread evenly over the teacher's 12 layers. Give a "
               "fresh student [1, 2, 3, 4, 6, 12] or a multiple of 12")
    with pytest.raises(ValueError, match=re.escape(message)):
        match_layers(5, 12)
    with pytest.raises(ValueError, match="18 recursions"):
        match_layers(18, 12)


# ---- The losses of a step ---------------------------------------------------------------

def make_distillation(student, teacher, num_masked=3, weights=None, **more):
    """Make a Distillation on random batches; it has all losses if weights is None."""
    if weights is None:
        weights = dict(LOSS_WEIGHTS, embedding=0.5)
    return Distillation(student, teacher, RandomBatches(num_masked), weights, **more)


def weighted_sum(losses, loss_weights):
    """Sum up losses {name: tensor}, each times its weight."""
    total = 0
    for name, loss in losses.items():
        total = total + loss_weights[name] * loss
    return total


def masked_logits(model, states, positions):
    """Predict the tokens at these positions of a batch from its hidden states (4, T, C)."""
    states = states.reshape(4 * T, C)
    return model.predict(states[positions])


def gradients_and_losses(student, distillation):
    """Sum a step's micro-batches -> {name: gradient}, {name: loss}."""
    student.zero_grad()
    totals = dict.fromkeys(distillation.loss_weights, 0.0)
    for losses in distillation.losses_of_micro_batches(0):
        assert losses.keys() == totals.keys()
        loss = weighted_sum(losses, distillation.loss_weights)
        loss.backward()
        for name, value in losses.items():
            totals[name] += value.item()
    gradients = {}
    for name, parameter in student.named_parameters():
        gradients[name] = parameter.grad.clone()
    return gradients, totals


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        allowed = 1e-6 * max(1, gradient.norm())
        assert (found[name] - gradient).norm() <= allowed, name


def test_the_losses_are_those_of_matched_layers_and_masked_places():
    """The two recursions are matched with the teacher's layers 1 and 3, counted from 0."""
    student = noisy_student().eval()
    teacher = noisy_teacher().eval()
    distillation = make_distillation(student, teacher, temperature=2.0)
    ids, positions, labels = batch_of_tensors(RandomBatches(), 0)
    num_tokens = 4 * T
    with torch.no_grad():
        ours, our_maps = student(ids, maps=[0, 1])
        theirs, their_maps = teacher(ids, maps=[1, 3])
        our_logits = masked_logits(student, ours[-1], positions)
        their_logits = masked_logits(teacher, theirs[-1], positions)
        mlm = nn.functional.cross_entropy(our_logits, labels)
        first_attention = attention_loss(our_maps[0], their_maps[1])
        second_attention = attention_loss(our_maps[1], their_maps[3])
        # A layer's number in a list of states is higher by 1, because the embeddings are in it.
        first_hidden = hidden_loss(ours[1], theirs[2])
        second_hidden = hidden_loss(ours[2], theirs[4])
        embedding = hidden_loss(ours[0], theirs[0])
        output = output_loss(our_logits, their_logits, 2.0)
    expected = {
        "mlm": mlm.item(),
        "attention": (first_attention + second_attention).item() / num_tokens,
        "hidden": (first_hidden + second_hidden).item() / num_tokens,
        "output": output.item() / 3,
        "embedding": embedding.item() / num_tokens,
    }
    _, found = gradients_and_losses(student, distillation)
    assert found == pytest.approx(expected, rel=1e-5)
    assert distillation.tokens_per_step == num_tokens


def test_the_elastic_loss_is_the_output_loss_after_the_drawn_recursions():
    """For each masked place the student is cut after the number of recursions drawn for it."""
    student = noisy_student(num_hidden_layers=4).eval()
    teacher = noisy_teacher().eval()
    distillation = make_distillation(student, teacher, 9, {"elastic": 2.5}, temperature=2.0)
    depths = distillation.draw_depths(0, 9)
    assert set(depths) == {1, 2, 3}
    ids, positions, _ = batch_of_tensors(RandomBatches(9), 0)
    expected = 0.0
    with torch.no_grad():
        theirs, _ = teacher(ids)
        for m in range(9):
            cut_student = copy.deepcopy(student)
            keep_recursions(cut_student, int(depths[m]))
            ours, _ = cut_student(ids)
            position = positions[m:m + 1]
            our_logits = masked_logits(cut_student, ours[-1], position)
            their_logits = masked_logits(teacher, theirs[-1], position)
            expected += output_loss(our_logits, their_logits, 2.0).item() / 9
    losses, = distillation.losses_of_micro_batches(0)
    assert losses.keys() == {"elastic"}
    assert losses["elastic"].item() == pytest.approx(expected, rel=1e-5)


def test_earlier_recursions_are_drawn_evenly_as_a_function_of_seed_and_step():
    """A resumed run draws the same ones, whatever was drawn before."""
    student = noisy_student(num_hidden_layers=4)
    distillation = make_distillation(student, noisy_teacher())
    counts = np.bincount(distillation.draw_depths(5, 3000))
    assert len(counts) == 4
    assert counts[0] == 0
    for count in counts[1:]:
        assert 900 < count < 1100
    depths = distillation.draw_depths(5, 30)
    same_step = distillation.draw_depths(5, 30)
    next_step = distillation.draw_depths(6, 30)
    distillation.batches.seed = 1
    other_seed = distillation.draw_depths(5, 30)
    assert (same_step == depths).all()
    assert (next_step != depths).any()
    assert (other_seed != depths).any()


@pytest.mark.parametrize("size", [1, 2, 3, 9])           # 3 does not divide the batch of 4
def test_micro_batches_do_not_change_the_gradient(size):
    """They only save memory."""
    student = noisy_student(num_hidden_layers=4)
    teacher = noisy_teacher()
    weights = dict(LOSS_WEIGHTS, embedding=0.5, elastic=2.5)
    at_once = make_distillation(student, teacher, 7, weights)
    in_parts = make_distillation(student, teacher, 7, weights, micro_batch_size=size)
    expected_gradients, expected_losses = gradients_and_losses(student, at_once)
    gradients, losses = gradients_and_losses(student, in_parts)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert_same_gradients(gradients, expected_gradients)


@pytest.mark.parametrize("world_size, micro_batch_size", [(3, 0), (2, 1), (4, 0)])
def test_the_parts_of_all_processes_add_up_to_the_gradient_of_one(world_size, micro_batch_size):
    """The number of processes must not change what is learned."""
    student = noisy_student()
    teacher = noisy_teacher()
    alone = make_distillation(student, teacher, 7)
    expected_gradients, expected_losses = gradients_and_losses(student, alone)
    total_gradients = dict.fromkeys(expected_gradients, 0.0)
    total_losses = dict.fromkeys(expected_losses, 0.0)
    for rank in range(world_size):
        processes = Processes(rank, rank, world_size)
        part = make_distillation(student, teacher, 7, micro_batch_size=micro_batch_size,
                                 processes=processes)
        gradients, losses = gradients_and_losses(student, part)
        for name in total_gradients:
            total_gradients[name] += gradients[name]
        for name in total_losses:
            total_losses[name] += losses[name]
    assert total_losses == pytest.approx(expected_losses, rel=1e-5)
    assert_same_gradients(total_gradients, expected_gradients)


@pytest.mark.parametrize("batch_size, micro_batch_size, world_size, longest", [
    (16, 0, 1, 16), (16, 4, 1, 4), (16, 0, 4, 4), (16, 3, 4, 3), (16, 9, 4, 4), (7, 0, 2, 3)])
def test_each_row_of_a_batch_is_in_one_micro_batch_of_one_process(
        batch_size, micro_batch_size, world_size, longest):
    """A row in no part would not be learned from, a row in two parts would count twice."""
    all_rows = list(range(batch_size))
    found_rows = []
    for rank in range(world_size):
        processes = Processes(rank, rank, world_size)
        for begin, end in distill.split_batch(batch_size, micro_batch_size, processes):
            part = all_rows[begin:end]
            assert len(part) <= longest
            found_rows += part
    assert sorted(found_rows) == all_rows


def test_the_losses_of_the_logits_are_0_in_a_batch_without_masked_places():
    """Their mean over no places would be nan and spoil the whole model."""
    student = noisy_student()
    teacher = noisy_teacher()
    distillation = make_distillation(student, teacher, num_masked=0)
    gradients, losses = gradients_and_losses(student, distillation)
    assert losses["mlm"] == 0
    assert losses["output"] == 0
    assert losses["hidden"] > 0
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name


def test_the_teacher_learns_nothing_and_never_drops_anything():
    """The authors' teacher was put into train mode with the student, so its answers were noisy."""
    dropout = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    teacher = noisy_teacher(**dropout)
    student = noisy_student(**dropout)
    assert teacher.training
    distillation = make_distillation(student, teacher)
    answers = []

    def note_answer(module, inputs, output):
        hidden, _ = output
        answers.append(hidden[-1])

    teacher.register_forward_hook(note_answer)
    for train in (True, False, True):
        student.train(train)
        gradients_and_losses(student, distillation)
        assert not teacher.training
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
    for parameter in teacher.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad


class WatchedModel(MiniALBERT):
    """A model that notes for which maps it was run, and that it predicted."""

    def __init__(self, config):
        super().__init__(config)
        self.calls = []

    def forward(self, ids, maps):
        self.calls.append(list(maps))
        return super().forward(ids, maps=maps)

    def predict(self, hidden):
        self.calls.append("predict")
        return super().predict(hidden)


@pytest.mark.parametrize("name, of_teacher, of_student", [
    ("mlm", [], [[], "predict"]),
    ("hidden", [[]], [[]]),
    ("attention", [[1, 3]], [[0, 1]]),
    ("output", [[], "predict"], [[], "predict"]),
    ("elastic", [[], "predict"], [[], "predict"]),
    ("embedding", [[]], [[]]),
])
def test_no_more_of_the_models_is_run_than_a_loss_needs(name, of_teacher, of_student):
    """A map or a prediction that no loss looks at would cost time and memory in each step."""
    teacher = WatchedModel(TOY_TEACHER)
    student = WatchedModel(STUDENT)
    distillation = make_distillation(student, teacher, weights={name: 1.0})
    list(distillation.losses_of_micro_batches(0))        # the models run while it is looped over
    assert teacher.calls == of_teacher
    assert student.calls == of_student


def test_a_shared_layer_overfits_one_batch():
    """If a student cannot even learn one batch by heart, its gradients are wrong somewhere."""
    student = noisy_student()
    distillation = make_distillation(student, noisy_teacher(), num_masked=9)
    optimizer = torch.optim.AdamW(student.parameters(), 0.01)
    values = []
    for _ in range(40):
        optimizer.zero_grad()
        losses, = distillation.losses_of_micro_batches(0)
        loss = weighted_sum(losses, distillation.loss_weights)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.35 * values[0]


def test_evaluation_is_the_accuracy_and_the_loss_of_masked_tokens():
    student = noisy_student(hidden_dropout_prob=0.5).train()
    batches = RandomBatches(5)
    found = evaluate(student, batches)
    assert not student.training
    num_correct = 0
    total_loss = 0.0
    for step in range(10):                               # 40 sequences
        ids, positions, labels = batch_of_tensors(batches, step)
        with torch.no_grad():
            hidden, _ = student(ids)
            logits = masked_logits(student, hidden[-1], positions)
        is_correct = logits.argmax(-1) == labels
        num_correct += is_correct.sum().item()
        total_loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
    expected = {"accuracy": num_correct / 50, "loss": total_loss / 50}
    assert found == pytest.approx(expected, rel=1e-5)


def test_one_evaluation_gives_the_accuracy_after_each_recursion():
    """It is that of the model cut there, but all recursions are measured in one pass."""
    batches = RandomBatches(9, 400)
    # With this seed the three accuracies differ.
    model = noisy_model(replace(STUDENT, num_hidden_layers=3), seed=2)
    found = evaluate(model, batches, each_recursion=True)
    accuracy_after = found.pop("accuracy_after")
    expected = []
    for num_recursions in (1, 2, 3):
        cut_model = copy.deepcopy(model)
        keep_recursions(cut_model, num_recursions)
        scores = evaluate(cut_model, batches)
        expected.append(scores["accuracy"])
    assert len(set(expected)) == 3
    assert accuracy_after[1:] == expected
    assert found == scores                               # of the last model, which was not cut

    # Before the first recursion there are the embeddings.
    num_correct = 0
    for step in range(100):
        ids, positions, labels = batch_of_tensors(batches, step)
        with torch.no_grad():
            logits = masked_logits(model, model.embeddings(ids), positions)
        is_correct = logits.argmax(-1) == labels
        num_correct += is_correct.sum().item()
    assert accuracy_after[0] == num_correct / 900


def test_evaluation_without_masked_tokens_is_an_error():
    """The accuracy would be 0 divided by 0."""
    with pytest.raises(ValueError, match="no token of the held-out text was masked"):
        evaluate(noisy_student(), RandomBatches(0))


@pytest.mark.parametrize("count, expected", [(3, 1), (11, 2), (512, 128), (9999, 128)])
def test_evaluation_takes_at_most_512_sequences(count, expected):
    steps = []

    class NotedBatches(RandomBatches):
        def batch(self, step):
            steps.append(step)
            return super().batch(step)

    model = noisy_student(num_hidden_layers=1)
    batches = NotedBatches(num_masked=1, count=count)
    evaluate(model, batches)
    assert steps == list(range(expected))                # each batch has 4 sequences


# ---- The start from the teacher ---------------------------------------------------------

def test_a_start_without_anything_to_lose_is_the_teacher_itself():
    """With E = C, nothing shared and no adapters the student is as large as the teacher."""
    teacher = noisy_teacher().eval()
    student = noisy_model(TOY_TEACHER, seed=5).eval()
    ids = random_ids(B)
    start_from_teacher(student, teacher, ids)
    with torch.no_grad():
        ours, _ = student(ids)
        theirs, _ = teacher(ids)
        our_logits = student.predict(ours[-1])
        their_logits = teacher.predict(theirs[-1])
    for our_state, their_state in zip(ours, theirs, strict=True):
        assert torch.equal(our_state, their_state)
    assert torch.equal(our_logits, their_logits)


@torch.no_grad()
def test_a_start_finds_the_teachers_embeddings_again_where_they_fit_into_E():
    """If the teacher's tables span fewer than E directions, nothing is lost; if they span all C,
    something is."""
    ids = random_ids(64, 16)
    errors = {}
    for rank in (E - 1, C):
        teacher = noisy_teacher().eval()
        directions = torch.randn(rank, C, generator=torch.Generator().manual_seed(1))
        tables = teacher.embeddings
        for table in (tables.word, tables.position, tables.segment):
            coefficients = torch.randn(len(table.weight), rank)
            table.weight.copy_(coefficients @ directions)
        student = MiniALBERT(STUDENT).eval()
        start_from_teacher(student, teacher, ids)
        error = hidden_loss(student.embeddings(ids), teacher.embeddings(ids))
        errors[rank] = error.item() / ids.numel()
    assert errors[E - 1] < 0.01
    assert 0.01 < errors[C] < 0.5


@pytest.mark.parametrize("field, value", [
    ("hidden_size", 2 * C), ("num_attention_heads", 1), ("intermediate_size", 5),
    ("vocab_size", V + 1), ("max_position_embeddings", 2 * T), ("type_vocab_size", 3)])
def test_a_student_of_other_sizes_cannot_start_from_the_teacher(field, value):
    student = MiniALBERT(replace(STUDENT, **{field: value}))
    teacher = noisy_teacher()
    with pytest.raises(ValueError, match=f"{field} of the teacher is .* --init sharp"):
        start_from_teacher(student, teacher, random_ids(B))


def sum_of_tables(model, ids):
    """Add up what a model's tables have for these tokens, as vectors (N, E)."""
    tables = model.embeddings
    positions = tables.position.weight[:ids.shape[1]]
    first_segment = tables.segment.weight[0]
    total = tables.word(ids) + positions + first_segment
    return total.flatten(0, 1)


@torch.no_grad()
def test_the_first_projection_is_the_best_one_for_its_tables():
    """No change of it could be better: the errors are orthogonal to what it sees, and their mean,
    which the bias could change, is 0."""
    teacher = noisy_teacher().eval()
    student = MiniALBERT(STUDENT).eval()
    ids = random_ids(16)
    start_from_teacher(student, teacher, ids)
    seen = student.embeddings.norm(sum_of_tables(student, ids))               # (N, E)
    errors = student.embeddings(ids) - teacher.embeddings(ids)
    errors = errors.flatten(0, 1)                                             # (N, C)
    products = seen.T @ errors / len(errors)
    assert errors.std() > 0.1
    assert errors.mean(0).abs().max() < 1e-5
    assert products.abs().max() < 1e-5


@torch.no_grad()
def test_the_tables_start_in_the_directions_that_hold_most_of_the_teachers_vectors():
    """By the theorem of Eckart, Young and Mirsky no E directions hold more."""
    teacher = noisy_teacher().eval()
    student = MiniALBERT(STUDENT).eval()
    ids = random_ids(16)
    start_from_teacher(student, teacher, ids)
    teacher_vectors = sum_of_tables(teacher, ids)        # (N, C)
    student_vectors = sum_of_tables(student, ids)        # (N, E)
    singular_values = torch.linalg.svdvals(teacher_vectors)
    most = singular_values[:E].norm().item()
    assert student_vectors.norm().item() == pytest.approx(most, rel=1e-5)


@pytest.mark.parametrize("num_layers, num_groups, stands_for", [
    (4, 1, [[1, 2]]),
    (4, 2, [[0, 1], [2, 3]]),
    (4, 4, [[0], [1], [2], [3]]),
    (12, 1, [[3, 4, 5, 6, 7, 8]]),
])
def test_a_layer_starts_as_the_mean_of_the_middle_ones_it_stands_for(
        num_layers, num_groups, stands_for):
    """The first and the last quarter of those that it stands for, rounded down, are left out."""
    teacher = noisy_teacher(num_hidden_layers=num_layers, num_hidden_groups=num_layers)
    student = noisy_student(num_hidden_layers=4, num_hidden_groups=num_groups)
    start_from_teacher(student, teacher, random_ids())
    for layer, numbers in zip(student.layers, stands_for, strict=True):
        for name, found in layer.named_parameters():
            total = sum(teacher.layers[i].get_parameter(name) for i in numbers)
            mean = total / len(numbers)
            assert torch.allclose(found, mean, atol=1e-7), name


def corrected_matrices(student, r):
    """Compute the matrices that recursion r applies: {name in the layer: matrix}."""
    matrices = {}
    for name, name_in_layer in CORRECTED.items():
        shared = student.layer_of_recursion(r).get_parameter(name_in_layer)
        matrices[name_in_layer] = shared + student.corrections[r][name].matrix()
    return matrices


@torch.no_grad()
def test_the_corrections_of_a_teacher_are_part_of_its_matrices():
    """The student of a student starts from what each recursion of its teacher computes."""
    teacher = noisy_student(num_hidden_layers=4, correction_rank=5)
    student = noisy_student(correction_rank=C)
    start_from_teacher(student, teacher, random_ids())
    for r, matched_recursion in enumerate([1, 3]):
        expected = corrected_matrices(teacher, matched_recursion)
        for name, matrix in corrected_matrices(student, r).items():
            assert torch.allclose(matrix, expected[name], atol=1e-5), (r, name)


@pytest.mark.parametrize("changes, message", [
    ({"max_position_embeddings": T + 1}, "max_position_embeddings of the teacher is "),
    ({"type_vocab_size": 1}, "type_vocab_size of the teacher is 1, of the student 2"),
    ({"vocab_size": V + 1}, f"vocab_size of the teacher is {V + 1}, of the student {V}"),
    ({"num_hidden_layers": 3, "num_hidden_groups": 3}, "-groups 4: the teacher has only 3 layers"),
])
def test_a_teacher_that_does_not_fit_gives_no_first_values(changes, message):
    teacher = noisy_teacher(**changes)
    student = noisy_student(num_hidden_layers=4, num_hidden_groups=4)
    with pytest.raises(ValueError, match=message):
        start_from_teacher(student, teacher, random_ids())


@pytest.mark.parametrize("num_recursions, layer_of_recursion", [
    (2, [1, 3]),
    (4, [0, 1, 2, 3]),
    (6, [0, 1, 1, 2, 3, 3]),                             # 6 and 4: as evenly as possible
])
@torch.no_grad()
def test_a_start_with_corrections_of_full_rank_is_the_teachers_layers(
        num_recursions, layer_of_recursion):
    """Each recursion then applies the matrices of the layer that it is matched with."""
    teacher = noisy_teacher()
    student = noisy_student(num_hidden_layers=num_recursions, correction_rank=C)
    start_from_teacher(student, teacher, random_ids())
    for r in range(num_recursions):
        layer = teacher.layers[layer_of_recursion[r]]
        for name, matrix in corrected_matrices(student, r).items():
            expected = layer.get_parameter(name)
            assert torch.allclose(matrix, expected, atol=1e-5), (r, name)


@torch.no_grad()
def test_a_correction_starts_as_the_nearest_matrix_of_its_rank():
    """By the theorem of Eckart, Young and Mirsky what is left are the smaller singular values."""
    teacher = noisy_teacher()
    rank = 3
    student = noisy_student(num_hidden_layers=4, num_hidden_groups=2, correction_rank=rank)
    start_from_teacher(student, teacher, random_ids())
    for r in range(4):
        shared_layer = student.layer_of_recursion(r)
        for name, matrix in corrected_matrices(student, r).items():
            wanted = teacher.layers[r].get_parameter(name)
            to_correct = wanted - shared_layer.get_parameter(name)
            singular_values = torch.linalg.svdvals(to_correct.double())
            smallest_error = singular_values[rank:].norm().item()
            error = (wanted - matrix).norm().item()
            assert error == pytest.approx(smallest_error, rel=1e-4), (r, name)


def test_corrections_that_start_at_zero_can_still_be_trained():
    """Four layers stand for the four of the teacher, so there is nothing to correct at the start.

    The gradient of each factor of a correction is a product with the other factor, so it must not
    happen that both are 0.
    """
    teacher = noisy_teacher()
    student = noisy_student(num_hidden_layers=8, num_hidden_groups=4, correction_rank=3)
    ids = random_ids()
    start_from_teacher(student, teacher, ids)
    for r in range(8):
        layer = student.layer_of_recursion(r)
        for name, matrix in corrected_matrices(student, r).items():
            assert torch.equal(matrix, layer.get_parameter(name)), (r, name)
    hidden, _ = student(ids)
    any_loss = hidden[-1].square().sum()
    any_loss.backward()
    for name, parameter in student.corrections.named_parameters():
        # up is 0 at first, so down has no gradient yet. After the first step both have one.
        if name.endswith("up"):
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("student_is_tied", [True, False])
@pytest.mark.parametrize("teacher_is_tied", [True, False])
@pytest.mark.parametrize("teacher_is_factorised", [True, False])
def test_a_head_starts_as_the_teachers(student_is_tied, teacher_is_tied, teacher_is_factorised):
    """A decoder of its own predicts as the teacher's does; a tied one is made of the tables."""
    teacher_width = C
    if teacher_is_factorised:
        teacher_width = 16
    teacher = noisy_teacher(tie_decoder=teacher_is_tied, embedding_size=teacher_width)
    student = noisy_student(tie_decoder=student_is_tied)
    start_from_teacher(student, teacher, random_ids())
    for name in ("dense.weight", "dense.bias", "norm.weight", "norm.bias", "bias"):
        found = student.head.get_parameter(name)
        assert torch.equal(found, teacher.head.get_parameter(name)), name
    if not student_is_tied:
        states = torch.randn(7, C)
        torch.testing.assert_close(student.predict(states), teacher.predict(states))


@pytest.mark.parametrize("student_has_head, teacher_has_head", [(True, False), (False, True)])
def test_a_start_does_without_a_head_where_one_is_missing(student_has_head, teacher_has_head):
    teacher = noisy_teacher(head=teacher_has_head)
    student = noisy_student(head=student_has_head)
    start_from_teacher(student, teacher, random_ids())
    if student_has_head:
        untouched_student = noisy_student()
        first_values = untouched_student.head.dense.weight
        assert torch.equal(student.head.dense.weight, first_values)
    else:
        assert student.head is None


def test_the_random_start_is_plain_noise(toy, out):
    run_distill(toy, out, *ONE_STEP, "--lr", 0, "--init", "random", "--adapter-size", 8)
    student = load(out)
    adapter = student.attention_adapters[0].up.weight
    query = student.layers[0].attention.query.weight
    word_table = student.embeddings.word.weight
    position_table = student.embeddings.position.weight
    for tensor in (adapter, query, word_table, position_table):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.2)
    # Sinusoids have two values at position 0: the sine is 0 and the cosine is 1.
    assert len(position_table[0].unique()) > 2


# ---- One training step ------------------------------------------------------------------

class StepWrittenOut:
    """The gradient clipping and the AdamW of a model, written out; they are kept between steps."""

    def __init__(self, model):
        self.model = model
        self.steps_done = 0
        self.mean = {}                                   # of the gradients so far, by name
        self.mean_square = {}
        for name, parameter in model.named_parameters():
            self.mean[name] = torch.zeros_like(parameter)
            self.mean_square[name] = torch.zeros_like(parameter)

    def gradient_norm(self):
        """Return the root of the sum of all squares."""
        sum_of_squares = sum((p.grad**2).sum() for p in self.model.parameters())
        return math.sqrt(sum_of_squares)

    @torch.no_grad()
    def update(self, lr, weight_decay):
        """Change the parameters as AdamW does, with the gradient scaled to norm 1."""
        self.steps_done += 1
        norm = self.gradient_norm()
        for name, parameter in self.model.named_parameters():
            gradient = parameter.grad / norm
            self.mean[name] = 0.9 * self.mean[name] + 0.1 * gradient
            self.mean_square[name] = 0.999 * self.mean_square[name] + 0.001 * gradient**2
            # Both have begun at 0, which is corrected here.
            mean_hat = self.mean[name] / (1 - 0.9**self.steps_done)
            square_hat = self.mean_square[name] / (1 - 0.999**self.steps_done)
            if parameter.ndim > 1:
                parameter.mul_(1 - lr * weight_decay)
            parameter.sub_(lr * mean_hat / (square_hat.sqrt() + 1e-8))


def test_a_step_is_the_textbooks_step(tmp_path):
    """The oracle has no micro-batches, and clipping and AdamW are written out."""
    student = noisy_student()
    twin = noisy_student()
    teacher = noisy_teacher()
    options = make_options(tmp_path, lr=0.003)
    optimizer = distill.make_optimizer(student, options.weight_decay)
    distillation = make_distillation(student, teacher, micro_batch_size=3)
    twin_distillation = make_distillation(twin, teacher)
    oracle = StepWrittenOut(twin)
    for step, expected_lr in enumerate([0.003 / 2, 0.003, 0.003]):
        totals, lr, norm = training_step(student, distillation, optimizer, step, options,
                                         Processes())
        twin.zero_grad()
        losses, = twin_distillation.losses_of_micro_batches(step)
        loss = weighted_sum(losses, twin_distillation.loss_weights)
        loss.backward()
        expected_norm = oracle.gradient_norm()
        assert expected_norm > 2.0                       # otherwise clipping would not be tested
        assert norm == pytest.approx(expected_norm, rel=1e-4)
        assert totals["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
        attention = losses["attention"].item()
        assert totals["attention"].item() == pytest.approx(attention, rel=1e-5)
        assert lr == pytest.approx(expected_lr)
        oracle.update(lr, options.weight_decay)
    for name, parameter in student.named_parameters():
        # AdamW divides each gradient by its size, so the parameters hardly show to which norm the
        # gradients were clipped. The mean of the gradients shows it.
        mean = optimizer.state[parameter]["exp_avg"]
        assert torch.allclose(mean, oracle.mean[name], rtol=1e-3, atol=1e-6), name
        if name.endswith("attention.key.bias"):
            # Its gradient is 0 but for rounding errors, which AdamW enlarges.
            continue
        assert torch.allclose(parameter, twin.get_parameter(name), atol=2e-5), name


class OneParameter(nn.Module):
    """A model of one parameter and dropout. It computes its loss itself, so it takes the place of
    the Distillation, too."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(200))
        self.loss_weights = {"sum": 1.0}
        self.mask = None                                 # what dropout let through at the last step

    def losses_of_micro_batches(self, step):
        self.mask = nn.functional.dropout(torch.ones(200), 0.5, self.training)
        yield {"sum": (self.weight * self.mask).sum()}


def test_dropout_differs_between_seeds_steps_and_processes_and_nothing_else_changes_it(tmp_path):
    def draw_mask(seed, step, rank):
        model = OneParameter().eval()
        optimizer = distill.make_optimizer(model, 0.0)
        options = make_options(tmp_path, seed=seed)
        training_step(model, model, optimizer, step, options, Processes(rank))
        return tuple(model.mask.tolist())

    masks = {}
    for seed, step, rank in np.ndindex(2, 3, 3):
        torch.manual_seed(9)                             # whatever was drawn before
        masks[seed, step, rank] = draw_mask(seed, step, rank)
    assert len(set(masks.values())) == 2 * 3 * 3
    assert set(masks[0, 0, 0]) == {0.0, 2.0}
    for (seed, step, rank), mask in masks.items():
        assert draw_mask(seed, step, rank) == mask


class InfiniteGradient(OneParameter):
    """A loss of 0 whose gradient is infinite: the root of x at x = 0."""

    def losses_of_micro_batches(self, step):
        zero = self.weight - self.weight.detach()
        yield {"root": zero.sqrt().sum()}


def test_an_infinite_gradient_of_a_finite_loss_stops_the_run_before_anything_is_saved(tmp_path):
    model = InfiniteGradient()
    model.loss_weights = {"root": 1.0}
    options = make_options(tmp_path, steps=3, log_every=9, save_every=9)
    state = distill.begin_or_resume(model, options, {}, Processes())
    with pytest.raises(FloatingPointError, match="step 1, .*loss 0, root 0, gradient norm inf"):
        distill.train(model, state, options, dict, None, Processes())
    assert os.listdir(tmp_path) == ["log.jsonl"]
    assert os.path.getsize(tmp_path / "log.jsonl") == 0


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_a_norm_that_is_not_finite_is_an_error_that_names_all_losses(norm):
    totals = {"loss": torch.tensor(3.5), "mlm": torch.tensor(math.nan)}
    message = f"^step 7, learning rate 0.25: loss 3.5, mlm nan, gradient norm {norm}"
    with pytest.raises(FloatingPointError, match=message):
        distill.check_finite_step(7, distill.StepResult(totals, 0.25, norm))
    distill.check_finite_step(7, distill.StepResult(totals, 0.25, 1e30))      # large, not infinite


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_score_that_is_not_finite_is_an_error_that_names_it(value):
    bad_scores = {"accuracy": 0.5, "loss": value}
    with pytest.raises(FloatingPointError, match=f"^step 7: the held-out loss is {value}; no "):
        distill.held_out_scores(always(bad_scores), 7)
    large_scores = {"accuracy": 0.5, "loss": 1e30}
    found = distill.held_out_scores(always(large_scores), 7)
    assert found == {"valid_accuracy": 0.5, "valid_loss": 1e30}


@pytest.mark.parametrize("steps, warmup, factors", [
    (5, 2, [1 / 2, 1, 1, 2 / 3, 1 / 3]),
    (3, 0, [1, 2 / 3, 1 / 3]),
    (3, 3, [1 / 3, 2 / 3, 1]),
    (2, 8, [1 / 8, 2 / 8]),                              # it is stopped while the rate grows
])
def test_the_rate_grows_and_falls_linearly(tmp_path, steps, warmup, factors):
    options = make_options(tmp_path, steps=steps, warmup=warmup, lr=0.5)
    rates = [learning_rate(step, options) for step in range(steps)]
    expected = [0.5 * factor for factor in factors]
    assert rates == pytest.approx(expected)


def test_biases_and_norms_do_not_decay_and_what_is_frozen_is_left_alone():
    student = noisy_student()
    student.head.requires_grad_(False)
    optimizer = distill.make_optimizer(student, weight_decay=0.3)
    state = distill.training_state(student, optimizer)
    decay = {}                                           # of each parameter of the optimizer
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            decay[parameter] = group["weight_decay"]
    num_trained = 0
    expected_keys = set()
    for name, parameter in student.named_parameters():
        if name.startswith("head."):                     # it is frozen
            continue
        num_trained += 1
        expected_decay = 0.0
        if parameter.ndim > 1:
            expected_decay = 0.3
        assert decay[parameter] == expected_decay, name
        for kind in ("model", "exp_avg", "exp_avg_sq", "step"):
            expected_keys.add(f"{kind}.{name}")
    assert len(decay) == num_trained
    assert state.keys() == expected_keys


@pytest.mark.parametrize("columns", [slice(0, 3), slice(0, 6, 2)])
def test_a_parameter_with_gaps_in_memory_is_refused(columns):
    """AdamW would change the numbers in the gaps, too. The factors of an SVD, cut to a rank, are
    such parts of matrices."""
    matrix = torch.randn(5, 6)
    model = torch.nn.Linear(3, 5)
    model.weight = torch.nn.Parameter(matrix[:, columns])
    with pytest.raises(ValueError, match=r"a parameter of shape \[5, 3\] is a part of a larger"):
        distill.make_optimizer(model, weight_decay=0.0)
    model.weight = torch.nn.Parameter(matrix[:, columns].clone())
    distill.make_optimizer(model, weight_decay=0.0)
    # This matrix is stored column by column, but it has no gaps. AdamW can train it.
    model.weight = torch.nn.Parameter(torch.randn(3, 5).T)
    distill.make_optimizer(model, weight_decay=0.0)


# ---- The loop: stopped, killed, resumed -------------------------------------------------

def run_until_signal(toy, out, monkeypatch, number, *more):
    """Send a signal to a run before its fifth step -> the exit status."""
    with monkeypatch.context() as patch:
        send_signal_before(patch, 4, number)
        return exit_status_of_run(toy, out, *more)


@pytest.mark.parametrize("number, status", [
    (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_step_saves_and_the_resumed_run_ends_as_if_there_was_none(
        toy, whole, out, monkeypatch, capsys, number, status):
    handler = signal.getsignal(number)
    if handler is signal.SIG_IGN:
        pytest.skip("the tests were started with this signal ignored, as by nohup; so is the run")
    assert run_until_signal(toy, out, monkeypatch, number) == status
    assert signal.getsignal(number) is handler
    assert read_metadata(out)["step"] == "5"
    assert "stopped after step 5 of 12: the same command, with --resume" in capsys.readouterr().out
    load(out)
    last_line = read_log(out)[-1]
    with open(out / "log.jsonl", "a") as file:
        file.write('{"step": 6, "lo')                    # a run that was killed could leave this
    run_distill(toy, out, "--resume")
    assert_same_run(out, whole)
    assert sorted(os.listdir(out)) == sorted(os.listdir(whole))
    # The first table of the resumed run has the scores at which the first run was stopped.
    before, _ = capsys.readouterr().out.split("\nsteps ")
    assert f"{out}: going on after step 5 of 12\n" in before
    accuracy = f"{last_line['valid_accuracy']:.1%}"
    loss = f"{last_line['valid_loss']:.3f}"
    student_row = table_rows(before, "student")[0]
    assert student_row[3:] == [accuracy, loss]


def test_gradients_that_the_caller_has_left_are_not_trained_on(toy, whole, out, monkeypatch):
    original = distill.begin_or_resume

    def leave_gradients(model, *args):
        state = original(model, *args)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        return state

    monkeypatch.setattr(distill, "begin_or_resume", leave_gradients)
    # The usual function would remove the gradients.
    monkeypatch.setattr(distill, "seconds_of_a_step", always(1.0))
    run_distill(toy, out)
    assert_same_run(out, whole)


def test_a_signal_at_the_last_step_stops_a_run_that_is_finished(toy, whole, out, monkeypatch):
    """The exit status tells of the signal, but the resumed run has nothing left to do."""
    send_signal_before(monkeypatch, 11, signal.SIGTERM)
    assert exit_status_of_run(toy, out) == 143
    assert_same_run(out, whole)
    run_distill(toy, out, "--resume")
    assert_same_run(out, whole)


def test_a_signal_in_the_last_evaluation_stops_a_run_that_is_finished(
        toy, whole, out, monkeypatch):
    """The run has looked for signals before that evaluation, and no step follows to do so."""
    original = distill.held_out_scores

    def evaluate_and_send(evaluate_model, steps_done):
        if steps_done == 12:
            os.kill(os.getpid(), signal.SIGINT)
        return original(evaluate_model, steps_done)

    monkeypatch.setattr(distill, "held_out_scores", evaluate_and_send)
    assert exit_status_of_run(toy, out) == 130
    assert_same_run(out, whole)


def test_a_signal_after_the_last_look_at_the_list_takes_effect_at_the_end():
    seen_in_the_block = []
    with pytest.raises(SystemExit, match="^143$"):
        with distill.noted_signals() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            seen_in_the_block = list(signals)
    assert seen_in_the_block == [signal.SIGTERM]
    with pytest.raises(SystemExit, match="^130$"):       # the block has obeyed the signal itself
        with distill.noted_signals():
            os.kill(os.getpid(), signal.SIGINT)
            raise SystemExit(130)


def test_a_handler_that_is_not_pythons_stays(monkeypatch):
    """signal.getsignal returns None for it, and signal.signal could not set it again."""
    handler_before = signal.getsignal(signal.SIGTERM)
    original = signal.getsignal

    def getsignal(number):
        return None if number == signal.SIGTERM else original(number)

    monkeypatch.setattr(signal, "getsignal", getsignal)
    with distill.noted_signals():
        assert original(signal.SIGTERM) is handler_before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_was_ignored_stays_ignored(toy, whole, out, monkeypatch, number):
    """A shell script lets a command in its background ignore Ctrl-C, and nohup lets one ignore
    that its terminal was closed."""
    send_signal_before(monkeypatch, 4, number)
    handler_before = signal.signal(number, signal.SIG_IGN)
    try:
        run_distill(toy, out)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, handler_before)
    assert_same_run(out, whole)


def test_a_closed_terminal_does_not_change_the_status_of_a_run_that_was_stopped(monkeypatch):
    """The signal SIGHUP tells that it was closed, so nothing can be printed any more."""
    class ClosedTerminal(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stdout", ClosedTerminal())
    options = types.SimpleNamespace(steps=9)
    with pytest.raises(SystemExit, match="^129$"):
        distill.stop_run([signal.SIGHUP], 3, options, Processes())


def test_of_several_signals_the_first_decides_the_status():
    options = types.SimpleNamespace(steps=9)
    with pytest.raises(SystemExit, match="^143$"):
        distill.stop_run([signal.SIGTERM, signal.SIGINT], 3, options, Processes())


def test_a_process_without_a_signal_stops_with_another_that_received_one(toy, out, monkeypatch):
    monkeypatch.setattr(distill, "must_stop", always(True))
    assert exit_status_of_run(toy, out) == 143
    assert read_metadata(out)["step"] == "1"


@pytest.mark.parametrize("text, size, expected", [
    ("one\nmore\n", 4, 'one\n"two"\n'), ("one\nmore\n", 0, '"two"\n'),
    ("one\n", 99, 'one\n"two"\n'), ("one\nhal", 99, 'one\n"two"\n'), ("hal", 99, '"two"\n')])
def test_a_log_is_cut_to_its_whole_lines_at_the_checkpoint(tmp_path, text, size, expected):
    """A run that was killed may have logged steps after its checkpoint. They are made again. If
    the machine lost its power, a part of the log may be lost."""
    log = tmp_path / "log.jsonl"
    log.write_text(text)
    distill.cut_log(log, size)
    distill.append_to_log(log, "two")
    assert log.read_text() == expected


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(toy, whole, out, capsys):
    """Such a run leaves its settings and some lines of its log, the last one perhaps cut off."""
    os.makedirs(out)
    shutil.copy(whole / "run.json", out)
    (out / "log.jsonl").write_text('{"step": 1}\n{"st')
    run_distill(toy, out, "--resume")
    assert "has no checkpoint, so it starts at step 1\n" in capsys.readouterr().out
    assert_same_run(out, whole)


def test_without_a_checkpoint_too_a_run_does_not_go_on_with_another_corpus(
        toy, whole, out, tmp_path, capsys):
    """Its first lines of the log are of the first corpus."""
    os.makedirs(out)
    shutil.copy(whole / "run.json", out)
    (out / "log.jsonl").write_text('{"step": 1}\n')
    before = files_below(out)
    write_other_corpus(toy, tmp_path / "other.txt")
    error = error_of_run(capsys, toy, out, "--resume", "--corpus", tmp_path / "other.txt")
    assert "run.json is of a run with other settings: corpus has other contents now. To" in error
    assert files_below(out) == before


def test_a_finished_run_resumed_stays_as_it_is(toy, whole, out, monkeypatch):
    def refuse_to_measure(distillation):
        raise AssertionError("there is no step left to be timed")

    monkeypatch.setattr(distill, "seconds_of_a_step", refuse_to_measure)
    shutil.copytree(whole, out)
    run_distill(toy, out, "--resume")
    assert_same_run(out, whole)


def test_a_model_that_was_not_saved_with_the_last_checkpoint_is_saved_by_the_resumed_run(
        toy, whole, out):
    """A run may be killed after its checkpoint was written and before its model is."""
    shutil.copytree(whole, out)
    os.remove(out / "model.safetensors")
    run_distill(toy, out, "--resume")
    assert_same_run(out, whole)


def test_evaluating_logging_and_saving_change_no_weight(toy, whole, out):
    """How often a run is watched must not change what it learns."""
    rarely = ["--log-every", 50, "--eval-every", 0, "--save-every", 50]
    run_distill(toy, out, *rarely)
    assert model_bytes(out) == model_bytes(whole)
    assert read_log(out) == read_log(whole)[-1:]


def test_a_checkpoint_is_written_as_often_as_asked_and_at_the_end(toy, out, monkeypatch):
    original = distill.save_training_state
    saved = []

    def save_training_state(path, state, step, log_size, settings):
        saved.append(step)
        original(path, state, step, log_size, settings)

    monkeypatch.setattr(distill, "save_training_state", save_training_state)
    run_distill(toy, out, "--save-every", 5)
    assert saved == [5, 10, 12]


def test_a_checkpoint_has_what_an_optimizer_makes_in_its_first_step(
        toy, out, monkeypatch, capsys):
    """To resume such a run is an error. Without the momentum it would end differently."""
    def make_optimizer(model, weight_decay):
        return torch.optim.SGD(model.parameters(), momentum=0.9)

    monkeypatch.setattr(distill, "make_optimizer", make_optimizer)
    run_distill(toy, out)
    error = error_of_run(capsys, toy, out, "--resume")
    assert "'momentum_buffer.corrections.0." in error
    assert "is not known" in error


def test_the_log_has_each_loss_by_itself(whole):
    lines = read_log(whole)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["step"] for line in lines if "valid_accuracy" in line] == [5, 10, 12]
    for line in lines:
        total = line["mlm"]
        total += 3 * line["attention"]
        total += 10 * line["hidden"]
        total += 5 * line["output"]
        total += 2.5 * line["elastic"]
        assert line["loss"] == pytest.approx(total, rel=1e-5)
        assert line["gradient_norm"] > 0
        assert "embedding" not in line                   # its weight is 0


def test_each_line_of_the_log_can_be_read_at_once(toy, out, monkeypatch):
    """A long run can be watched."""
    def look(step):
        log = (out / "log.jsonl").read_text()
        assert log.count("\n") == step

    before_each_step(monkeypatch, look)
    run_distill(toy, out, "--save-every", 50)


def test_the_log_has_the_speed_since_the_line_before_or_since_the_run_was_resumed(
        toy, out, monkeypatch):
    """Here each step takes a second, but the fifth and the sixth take four."""
    times = [0.0]                                        # the last one is now

    def let_time_pass(step):
        seconds = 1.0
        if step in (4, 5):                               # counted from 0
            seconds = 4.0
        times.append(times[-1] + seconds)

    def perf_counter():
        return times[-1]

    monkeypatch.setattr(distill.time, "perf_counter", perf_counter)
    before_each_step(monkeypatch, let_time_pass)
    run_until_signal(toy, out, monkeypatch, signal.SIGTERM, "--log-every", 2)
    run_distill(toy, out, "--log-every", 2, "--resume")
    speeds = {}
    log = (out / "log.jsonl").read_text()
    for text in log.splitlines():
        line = json.loads(text)
        speeds[line["step"]] = line["tokens_per_second"]
    # 64 tokens a step. It was stopped after step 5, of which there is a line, for it is evaluated.
    assert speeds == {2: 64, 4: 64, 5: 16, 6: 16, 8: 64, 10: 64, 12: 64}


# Settings that differ from those of the run `whole`, and flags that make them differ.
DIFFERENT_SETTINGS = [
    ({"lr", "seed", "weights", "teacher", "steps"},
     ["--lr", 0.5, "--seed", 3, "--hidden-weight", 1, "--teacher", "{tmp}/teacher", "--steps", 9]),
    ({"batch_size", "length", "warmup", "temperature"},
     ["--batch-size", 3, "--length", 12, "--warmup", 2, "--temperature", 2]),
    ({"dropout", "shape"}, ["--dropout", 0.2]),          # the shape has dropout, too
    ({"weight_decay", "init", "bf16", "shape"},
     ["--weight-decay", 0.3, "--init", "random", "--bf16", "--adapter-size", 3]),
    ({"corpus"}, ["--corpus", "{tmp}/other.txt"]),
    ({"teacher_shape", "shape"}, ["--teacher", "{tmp}/heads"]),
    ({"init", "student", "dropout", "shape"},
     ["--student", "{tmp}/student", "--dropout", 0.3]),
]


@pytest.fixture
def other_inputs(toy, whole, tmp_path):
    """Make inputs that differ from those of the run `whole`, and return their folder: a teacher
    with other weights, one with the same weights but fewer heads, a student and a corpus."""
    shutil.copytree(toy / "teacher", tmp_path / "teacher")
    save(noisy_model(TOY_TEACHER, seed=9), tmp_path / "teacher")
    shutil.copytree(toy / "teacher", tmp_path / "heads")
    config = read_json(tmp_path / "heads" / "config.json")
    config["num_attention_heads"] = 1
    (tmp_path / "heads" / "config.json").write_text(json.dumps(config))
    shutil.copytree(whole, tmp_path / "student")
    write_other_corpus(toy, tmp_path / "other.txt")
    return tmp_path


@pytest.mark.parametrize("names, more", DIFFERENT_SETTINGS)
def test_a_resume_with_other_settings_is_refused_and_says_which(
        toy, whole, out, other_inputs, capsys, names, more):
    shutil.copytree(whole, out)
    more = [str(word).format(tmp=other_inputs) for word in more]
    error = error_of_run(capsys, toy, out, "--resume", *more)
    assert error.count("\n") == 1
    # "lr was 0.01, now it is 0.5; shape.adapter_size was 0, now it is 3" names lr and shape.
    differences = re.search(r"other settings: (.*)\. To go on with it", error)[1]
    found = set()
    for difference in differences.split("; "):
        found.add(re.match(r"\w+", difference)[0])
    assert found == names
    if "lr" in names:
        assert "lr was 0.01, now it is 0.5" in error
    assert_same_run(out, whole)


# A resumed run may have other values of these flags. The values of another --recipe are compared,
# and the hash of the corpus shows another --text or --tokenizer.
MAY_DIFFER = {"cache", "compile", "cuda_graphs", "device", "eval_every", "evaluate", "log_every",
              "micro_batch_size", "out", "overwrite", "recipe", "resume", "save_every", "text",
              "tokenizer"}


def test_each_flag_is_a_setting_of_the_run_or_may_differ(whole):
    """A new flag that changes what is trained belongs in settings_of_command."""
    settings = read_json(whole / "run.json")["settings"]
    known = MAY_DIFFER | settings.keys() | settings["shape"].keys()
    for flag in distill.LOSS_FLAGS.values():             # the setting "weights" has these
        known.add(flag.removeprefix("--").replace("-", "_"))
    assert vars(parse("")).keys() - known == set()


def test_a_second_run_in_the_same_folder_is_refused_and_the_first_ends_well(
        toy, whole, out, monkeypatch, capsys):
    started = []
    statuses = []

    def start_others(step):
        # They are started once. If another run were not refused, its steps would come here, too.
        if step != 6 or started:
            return
        started.append(step)
        with torch.random.fork_rng():                    # the dropout of this step stays the same
            for flag in ("--resume", "--overwrite"):
                status = distill.main(distill_flags(toy, out, flag))
                statuses.append(status)

    before_each_step(monkeypatch, start_others)
    run_distill(toy, out)
    assert statuses == [2, 2]
    assert capsys.readouterr().err.count("another run is writing into it") == 2
    assert_same_run(out, whole)


def test_to_overwrite_removes_what_runs_wrote_and_nothing_else(toy, whole, out):
    """With an old task.json and head beside it, the new student would be taken for a tuned one."""
    shutil.copytree(whole, out)
    for name in ("task.json", "head.safetensors", "notes.txt"):
        (out / name).write_text("{}")
    run_distill(toy, out, "--overwrite", *ONE_STEP)
    expected_names = os.listdir(whole) + ["notes.txt"]
    assert sorted(os.listdir(out)) == sorted(expected_names)
    assert (out / "notes.txt").read_text() == "{}"
    assert len(read_log(out)) == 1


@pytest.mark.parametrize("micro_batch_size", [0, 1])
def test_a_student_that_is_nan_before_its_first_step_costs_no_old_run(
        toy, whole, out, tmp_path, capsys, micro_batch_size):
    """The new run is refused before it overwrites the old one."""
    shutil.copytree(whole, out)
    teacher = load(toy / "teacher")
    with torch.no_grad():
        teacher.embeddings.norm.weight.fill_(3e38)
    shutil.copytree(toy / "teacher", tmp_path / "teacher")
    save(teacher, tmp_path / "teacher")
    more = ["--teacher", tmp_path / "teacher", "--micro-batch-size", micro_batch_size]
    error = error_of_run(capsys, toy, out, "--overwrite", *more)
    assert "before the first step the sum of the losses is nan" in error
    assert_same_run(out, whole)


@pytest.mark.parametrize("bad_micro_batch", [0, 1, 2])
def test_a_nan_in_any_micro_batch_is_found_before_the_first_step(bad_micro_batch):
    """It is looked for in the sum of all micro-batches, not in the last one."""
    student = OneParameter()
    factors = [1.0, 1.0, 1.0]
    factors[bad_micro_batch] = math.nan

    def losses_of_micro_batches(step):
        for factor in factors:
            yield {"mlm": factor * student.weight.sum()}

    distillation = types.SimpleNamespace(
        student=student, losses_of_micro_batches=losses_of_micro_batches)
    with pytest.raises(FloatingPointError, match="the sum of the losses is nan"):
        distill.seconds_of_a_step(distillation)


@pytest.mark.parametrize("fate", ["touched", "copied", "moved"])
def test_a_run_knows_its_corpus_by_what_is_in_it(toy, whole, out, tmp_path, monkeypatch, fate):
    """The time of a file and its path may change between two parts of a run, its text may not."""
    old = tmp_path / "c.txt"
    new = old
    shutil.copy(toy / "corpus.txt", old)
    run_until_signal(toy, out, monkeypatch, signal.SIGTERM, "--corpus", old)
    if fate == "touched":
        os.utime(old, (1, 1))
    elif fate == "copied":
        new = tmp_path / "copy.txt"
        shutil.copy(old, new)
    else:
        new = tmp_path / "elsewhere" / "d.txt"
        new.parent.mkdir()
        old.rename(new)
    empty_cache = tmp_path / "another-machine"
    run_distill(toy, out, "--resume", "--corpus", new, "--cache", empty_cache)
    assert_same_run(out, whole)


def test_a_resume_with_more_steps_says_what_to_do_before_the_corpus_is_read(
        toy, whole, out, monkeypatch, capsys):
    shutil.copytree(whole, out)
    monkeypatch.setattr(distill, "open_corpus", None)    # to call it would be a TypeError
    error = error_of_run(capsys, toy, out, "--resume", "--steps", 40)
    assert "steps was 12, now it is 40" in error
    assert "distill.py --student" in error


def test_a_resume_where_no_run_is_says_so_and_begins_one(toy, out, capsys):
    run_distill(toy, out, "--resume", *ONE_STEP)
    printed = capsys.readouterr().out
    assert f"there is no run in {out} yet, so this one starts at step 1\n" in printed
    assert "going on" not in printed
    assert "has no checkpoint" not in printed
    assert len(read_log(out)) == 1


def test_a_resume_without_a_checkpoint_does_not_replace_the_model(toy, whole, out, capsys):
    shutil.copytree(whole, out)
    os.remove(out / "training.safetensors")
    before = files_below(out)
    error = error_of_run(capsys, toy, out, "--resume")
    assert "training.safetensors is missing, so the run in" in error
    assert files_below(out) == before


def test_a_teacher_too_large_to_subtract_from_is_refused():
    teacher = noisy_teacher()
    student = noisy_student(adapter_size=0, correction_rank=2)
    with torch.no_grad():
        for layer in teacher.layers:
            layer.output.weight.fill_(3e38)              # the sum of two is inf
    with pytest.raises(ValueError, match="the teacher's layers are too large to compute with"):
        start_from_teacher(student, teacher, random_ids(B))


def test_a_teacher_with_embeddings_too_large_to_multiply_is_refused():
    teacher = noisy_teacher()
    with torch.no_grad():
        teacher.embeddings.word.weight.fill_(1e30)       # its square is inf
    with pytest.raises(ValueError, match="the teacher's embeddings are too large to compute with"):
        start_from_teacher(noisy_student(adapter_size=0), teacher, random_ids(B))


def test_the_corpus_may_not_hold_the_folder_of_the_run(tmp_path):
    """Otherwise the next run would read the files that this one has written as its text."""
    with pytest.raises(ValueError, match="is in the corpus /, so its files"):
        distill.arguments(["--corpus", "/", "--out", f"{tmp_path}/out"])
    corpus = tmp_path / "c"
    corpus.mkdir()
    (tmp_path / "link").symlink_to(corpus)
    for out in ("c/run", "link/run", "c/run/deeper"):
        with pytest.raises(ValueError, match="is in the corpus .*/c/, so its files"):
            distill.arguments(["--corpus", "x", f"{corpus}/", "--out", f"{tmp_path}/{out}"])
    distill.arguments(["--corpus", "/", "--evaluate"])   # which writes nothing
    # The name of c2 begins like that of c, but c2 is beside it.
    distill.arguments(["--corpus", f"{corpus}", "--out", f"{tmp_path}/c2"])


def test_the_corpus_may_not_hold_the_folder_of_the_run_by_a_link(tmp_path, monkeypatch):
    (tmp_path / "c").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "c")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--out c/run is in the corpus link, so its files"):
        distill.arguments(["--corpus", "link", "--out", "c/run"])


def test_a_folder_with_a_text_that_is_read_is_no_folder_for_a_run(toy, whole, out, capsys):
    """To overwrite the run would remove the text."""
    shutil.copytree(whole, out)
    text = out / "dev.jsonl"
    text.write_text('{"text": "w1 w2"}\n')
    for corpus, message in ((text, "run: this folder is read from"), (out, "is in the corpus")):
        error = error_of_run(capsys, toy, out, "--overwrite", "--corpus", corpus)
        assert message in error
    assert text.exists()


@pytest.fixture
def reversed_tokenizer(toy, tmp_path):
    """Make a tokenizer that has the teacher's tokens in reverse order, and return its folder."""
    words = (toy / "teacher" / "vocab.txt").read_text().split()
    folder = tmp_path / "reversed"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(reversed(words)))
    return folder


@pytest.fixture(params=["vocab.txt", "tokenizer.json"])
def teacher_and_file(toy, tmp_path, request):
    """Copy the toy teacher -> its folder, and the file in it that has its tokens."""
    folder = tmp_path / "teacher"
    shutil.copytree(toy / "teacher", folder)
    file = folder / request.param
    if request.param == "tokenizer.json":
        Tokenizer(str(toy / "teacher")).backend.save(str(file))
        os.remove(folder / "vocab.txt")
    return folder, file


def test_a_tokenizer_with_the_tokens_in_another_order_is_refused(
        toy, out, teacher_and_file, reversed_tokenizer, capsys):
    """The models would take each token for another one."""
    teacher, _ = teacher_and_file
    more = ["--teacher", teacher, "--tokenizer", reversed_tokenizer]
    error = error_of_run(capsys, toy, out, *more)
    assert "its tokens are not those of the teacher in" in error
    # The same holds for a student that is to be trained on or measured.
    flags = ["--student", f"{teacher}", "--tokenizer", f"{reversed_tokenizer}",
             "--corpus", f"{toy}/corpus.txt"]
    for more in (["--teacher", "none"], ["--evaluate"]):
        assert distill.main(flags + more) == 2
        error = capsys.readouterr().err
        assert "its tokens are not those of the student in" in error


def test_a_given_tokenizer_takes_the_place_of_one_that_cannot_be_read(toy, out, teacher_and_file):
    teacher, file = teacher_and_file
    file.write_text("")
    more = ["--teacher", teacher, "--tokenizer", toy / "teacher"]
    run_distill(toy, out, *more, *ONE_STEP)


def test_a_teacher_whose_folder_disappears_leaves_its_tokenizer(toy, out, tmp_path, monkeypatch):
    teacher = tmp_path / "teacher"
    shutil.copytree(toy / "teacher", teacher)

    def remove_teacher(step):
        if step == 6:
            shutil.rmtree(teacher)

    before_each_step(monkeypatch, remove_teacher)
    run_distill(toy, out, "--teacher", teacher)
    found = Tokenizer(str(out))
    assert found.digest == Tokenizer(str(toy / "teacher")).digest


def test_processes_that_cannot_meet_are_an_error_of_the_user(monkeypatch):
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": "abc"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="^torchrun's processes: not able to meet .MASTER_ADDR, "):
        distill.set_up_processes("cpu")


@pytest.mark.parametrize("flags, message", [
    (["--batch-size", "4"], "^--batch-size 4 is less than one sequence for each of the 5 proc"),
    (["--batch-size", "5"], "^far enough$"),
    (["--evaluate"], "^far enough$")])
def test_to_train_needs_a_sequence_for_each_process_but_to_evaluate_does_not(
        flags, message, monkeypatch):
    """A run that passes the check is ended when it loads its models."""
    def load_models(args):
        raise ValueError("far enough")

    five_processes = Processes(world_size=5)
    monkeypatch.setattr(distill, "set_up_processes", always(five_processes))
    monkeypatch.setattr(distill, "load_models", load_models)
    with pytest.raises(ValueError, match=message):
        distill.run(distill.arguments(flags), flags)


def test_the_bundled_teacher_is_distilled_quickly_however_its_path_is_written(monkeypatch):
    """On a GPU the recipe for another teacher is "full", which takes hours."""
    pretend_gpus(monkeypatch, 1)
    relative_path = os.path.relpath(distill.BUNDLED_TEACHER) + "/"
    for teacher in (distill.BUNDLED_TEACHER, relative_path):
        assert distill.arguments(["--teacher", teacher]).recipe == "quick"
    assert parse("--teacher elsewhere").recipe == "full"


def test_teacher_and_student_are_evaluated_at_the_same_length(monkeypatch):
    """On a GPU the recipe for this teacher has a length of its own. With two lengths the
    accuracies of teacher and student could not be compared."""
    pretend_gpus(monkeypatch, 1)
    assert parse("--evaluate --teacher elsewhere").length == 64
    assert parse("--evaluate --student elsewhere").length == 64


@pytest.mark.parametrize("width, expected_rank", [(3, 3), (64, 8)])
def test_the_default_rank_is_at_most_the_width_of_the_feed_forward(width, expected_rank):
    args = parse(f"--hidden-size 66 --intermediate-size {width}")
    config = distill.student_config(args, noisy_teacher(), V)
    assert config.correction_rank == expected_rank


def test_a_missing_compiler_is_explained():
    error = torch._dynamo.exc.TorchDynamoException("no C++ compiler\n found")
    with pytest.raises(ValueError, match="torch.compile failed: no C.. compiler found; --no-comp"):
        with distill.explaining_failures():
            raise error


def test_a_full_disk_is_an_error_that_names_the_log(toy, out, monkeypatch, capsys):
    class FullFile(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_file(path, mode, encoding=None):
        if mode == "a":
            return FullFile()
        return open(path, mode, encoding=encoding)

    monkeypatch.setattr(distill, "open", open_file, raising=False)
    error = error_of_run(capsys, toy, out)
    assert f"{out}/log.jsonl: No space left on device" in error


def test_a_run_in_a_thread_is_that_of_the_main_thread(toy, whole, out):
    """Only the main thread may set the handlers of signals."""
    flags = distill_flags(toy, out)
    thread = threading.Thread(target=distill.main, args=(flags,))
    thread.start()
    thread.join()
    assert_same_run(out, whole)


@pytest.mark.parametrize("error, is_explained", [
    (MemoryError(), True),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"), True),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(h)`"), True),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOCATION_FAILED"), True),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    (RuntimeError("no such kernel"), False),
    (ValueError("out of memory"), False),
])
def test_out_of_memory_is_explained_and_other_errors_are_left_alone(error, is_explained):
    with pytest.raises(Exception) as caught:
        with distill.explaining_failures():
            raise error
    if is_explained:
        assert type(caught.value) is ValueError
        assert "not enough memory; a step needs less with" in str(caught.value)
    else:
        assert caught.value is error


def test_a_last_step_that_spoils_the_model_is_an_error_and_no_model_is_saved(toy, out, capsys):
    error = error_of_run(capsys, toy, out, *ONE_STEP, "--lr", "2e9")
    assert "error: step 1: the held-out loss is nan; no checkpoint of this step was" in error
    assert not (out / "model.safetensors").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(
        toy, whole, out, monkeypatch, capsys):
    """It is the attention loss of step 7; the last checkpoint is of step 4."""
    original = distill.attention_loss

    def spoiled_loss(student_map, teacher_map):
        return math.nan * original(student_map, teacher_map)

    with monkeypatch.context() as patch:
        def spoil(step):
            if step == 6:
                patch.setattr(distill, "attention_loss", spoiled_loss)

        before_each_step(patch, spoil)
        error = error_of_run(capsys, toy, out)
    assert error.count("\n") == 1
    for words in ("step 7,", "attention nan", "learning rate 0.00666"):
        assert words in error
    assert read_metadata(out)["step"] == "4"
    load(out)
    run_distill(toy, out, "--resume")
    assert_same_run(out, whole)


def test_a_compiled_step_is_the_plain_one(toy, tmp_path, monkeypatch):
    """torch.compile traces it here, but without the compiler, which not every machine has."""
    original = torch.compile
    calls = []

    def compile_eagerly(function):
        compiled = original(function, backend="eager")

        def call(*args):
            calls.append(args)
            return compiled(*args)

        return call

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    run_distill(toy, tmp_path / "plain", "--steps", 6)
    assert not calls
    run_distill(toy, tmp_path / "compiled", "--steps", 6, "--compile")
    assert len(calls) == 4 + 6                           # four are only timed
    plain = read_log(tmp_path / "plain")
    compiled = read_log(tmp_path / "compiled")
    for line, expected in zip(compiled, plain, strict=True):
        assert line == pytest.approx(expected, rel=1e-5)


# What is compiled for a GPU can be chosen on a machine without one.
GPU = Processes(device=torch.device("cuda:0"))
TWO_GPUS = Processes(0, 0, 2, torch.device("cuda:0"))
SECOND_OF_TWO = Processes(1, 1, 2, torch.device("cuda:1"))


@pytest.mark.parametrize("flags, processes, expected", [
    ("--recipe full", GPU, (True, True)),
    ("--recipe paper", GPU, (True, True)),
    ("--recipe full", Processes(), (False, False)),      # on a CPU
    ("--recipe full --compile", Processes(), (True, False)),
    ("--recipe quick", GPU, (False, False)),
    ("--recipe quick --compile", GPU, (True, True)),
    ("--recipe quick --compile --cuda-graphs", GPU, (True, True)),
    ("--recipe full --no-compile", GPU, (False, False)),
    ("--recipe full --no-cuda-graphs", GPU, (True, False)),
    ("--recipe full --batch-size 8 --micro-batch-size 4", GPU, (True, False)),
    ("--recipe full --batch-size 8 --micro-batch-size 4", TWO_GPUS, (True, True)),
    ("--recipe full --batch-size 8", TWO_GPUS, (True, True)),
    ("--recipe full --batch-size 9", TWO_GPUS, (True, False)),            # 4, 4 and 1
    ("--recipe full --batch-size 9", SECOND_OF_TWO, (True, False)),       # it chooses the same
])
def test_what_is_compiled_and_runs_as_cuda_graphs(flags, processes, expected):
    """expected: whether the losses are compiled, and whether they are CUDA graphs."""
    assert distill.choose_compilation(parse(flags), processes) == expected


@pytest.mark.parametrize("flags, processes", [
    ("--recipe full --compile", Processes()),
    ("--recipe quick", GPU),
    ("--recipe full --no-compile", GPU),
    ("--recipe full --batch-size 8 --micro-batch-size 4", GPU),
    ("--recipe full --batch-size 9", SECOND_OF_TWO),
])
def test_cuda_graphs_that_cannot_be_are_refused(flags, processes):
    args = parse(f"{flags} --cuda-graphs")
    with pytest.raises(ValueError, match="--cuda-graphs: this needs a GPU, --compile, no micro-"):
        distill.choose_compilation(args, processes)


def compiled_distillation(student, batches, **more):
    """Make a Distillation whose losses are compiled: the MLM loss alone, so there is no teacher."""
    return Distillation(student, None, batches, {"mlm": 1.0}, compile_losses=True, **more)


def test_micro_batches_are_not_cuda_graphs(monkeypatch):
    """These would lose the gradients of all micro-batches but the last one."""
    monkeypatch.setattr(torch, "compile", always(print))
    student = MiniALBERT(STUDENT)
    whole = compiled_distillation(student, RandomBatches(), cuda_graphs=True)
    assert whole.graph_function is print
    cut = compiled_distillation(student, RandomBatches(), micro_batch_size=2, cuda_graphs=True)
    assert cut.graph_function is None


def test_cuda_graphs_are_what_torch_compile_makes(monkeypatch):
    """The losses are compiled without a graph, too, for batches with fewer masked places."""
    known_options = torch._inductor.list_options()
    calls = []

    def note_options(function, **options):
        calls.append(options)

    monkeypatch.setattr(torch, "compile", note_options)
    student = MiniALBERT(STUDENT)
    compiled_distillation(student, RandomBatches())
    assert calls == [{}]
    calls.clear()
    compiled_distillation(student, RandomBatches(), cuda_graphs=True)
    assert calls == [{}, {"options": {"triton.cudagraphs": True}}]
    assert "triton.cudagraphs" in known_options


class OneBatch:
    """A batch of 4 sequences of 9 tokens, in which the masked places are those in `positions`.

    Usually one of 9 tokens is masked, so there are 4 places.
    """

    def __init__(self):
        self.batch_size = 4
        self.T = 9
        self.seed = 0
        self.ids = np.random.default_rng(0).integers(5, V, (4, 9))
        self.positions = np.array([1, 10, 19, 28])       # one in each sequence

    def batch(self, step):
        labels = self.ids.ravel()[self.positions]
        return self.ids, self.positions, labels


def test_a_batch_with_fewer_masked_places_leaves_the_graph_as_it_is(monkeypatch):
    """A function that has got two numbers of places is compiled for any number by torch, and then
    has no graph. So batches with fewer places than usual need a function of their own."""
    original = torch.compile
    compilations = []                                    # "graph" or "plain"
    used = []                                            # which compilation computed each batch

    def compile_nothing(function, options=None):
        name = "plain"
        if options is not None:
            name = "graph"

        def backend(module, inputs):
            compilations.append(name)
            number = len(compilations)

            def call(*args):
                used.append(f"{name} {number}")
                return module(*args)

            return call

        return original(function, backend=backend)

    monkeypatch.setattr(torch, "compile", compile_nothing)
    torch.compiler.reset()                               # other tests have compiled, too
    student = noisy_student(num_hidden_layers=1, adapter_size=0)
    batches = OneBatch()
    usual_positions = batches.positions
    distillation = compiled_distillation(student, batches, cuda_graphs=True)
    for num_places in (3, 4, 4, 2, 4):                   # the first batch is an odd one
        batches.positions = usual_positions[:num_places]
        losses, = distillation.losses_of_micro_batches(0)
        losses["mlm"].backward()
    torch.compiler.reset()
    assert used == ["plain 1", "graph 2", "graph 2", "plain 3", "graph 2"]


@pytest.mark.parametrize("name, expected", [
    ("cuda", ["pin", "copy in the background"]), ("mps", ["copy"]), ("cpu", ["copy"])])
def test_only_copies_to_cuda_run_in_the_background(monkeypatch, name, expected):
    """The array may be gone before a copy in the background has read it. So the array is copied
    to pinned memory first, which torch keeps until then."""
    calls = []

    def pin_memory(tensor):
        calls.append("pin")
        return tensor

    def to(tensor, device, non_blocking):
        if non_blocking:
            calls.append("copy in the background")
        else:
            calls.append("copy")

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    distill.to_device(types.SimpleNamespace(type=name), np.zeros(3))
    assert calls == expected


def test_processes_that_stop_leave_their_group_after_the_checkpoint(monkeypatch):
    """At the barrier they wait for the first one, which writes it."""
    calls = []

    def barrier():
        calls.append("barrier")

    def leave_processes():
        calls.append("leave")

    monkeypatch.setattr(distill.dist, "barrier", barrier)
    monkeypatch.setattr(distill, "leave_processes", leave_processes)
    options = types.SimpleNamespace(steps=9)
    with pytest.raises(SystemExit, match="^143$"):
        distill.stop_run([], 3, options, Processes(world_size=2))
    assert calls == ["barrier", "leave"]


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_use_the_graph_for_the_same_batches(monkeypatch, rank):
    """The number of masked places in the whole batch is a part of the graph, so a process does not
    use it if a sequence of another process has fewer."""
    used = []                                            # what computed the losses of each batch

    def compile_nothing(function, options=None):
        def note_use(*args):
            if options is None:
                used.append("plain")
            else:
                used.append("graph")

        return note_use

    monkeypatch.setattr(torch, "compile", compile_nothing)
    batches = OneBatch()
    processes = Processes(rank, rank, world_size=2)
    distillation = compiled_distillation(MiniALBERT(STUDENT), batches, processes=processes,
                                         cuda_graphs=True)
    list(distillation.losses_of_micro_batches(0))
    batches.positions = np.array([10, 19, 28])           # row 0, which is of rank 0, has none
    list(distillation.losses_of_micro_batches(0))
    assert used == ["graph", "plain"]


def test_summed_gradients_keep_their_order_in_memory_and_not_the_message(monkeypatch):
    """A matrix that was transposed, as in some files of BERTs, is stored column by column. AdamW
    takes the numbers of a gradient as they stand in memory, without looking at their order."""
    messages = []

    def all_reduce(flat):
        """Sum over three processes that have the same gradients."""
        messages.append(flat)
        flat.mul_(3)

    monkeypatch.setattr(distill.dist, "all_reduce", all_reduce)
    model = torch.nn.Linear(5, 3)
    model.weight = torch.nn.Parameter(torch.randn(5, 3).T)
    model(torch.randn(2, 5)).square().sum().backward()
    gradient = model.weight.grad.clone()
    totals = {"loss": torch.tensor(7.0), "mlm": torch.tensor(2.0)}
    distill.sum_over_processes(model, totals, Processes(world_size=3))
    assert torch.equal(model.weight.grad, 3 * gradient)
    assert model.weight.grad.stride() == model.weight.stride() == (1, 3)
    assert totals == {"loss": 21.0, "mlm": 6.0}
    message, = messages                                  # it takes as much memory as the gradients
    for tensor in (model.weight.grad, model.bias.grad, totals["loss"], totals["mlm"]):
        assert tensor.untyped_storage().data_ptr() != message.untyped_storage().data_ptr()


def count_page_faults():
    """Take and free a block of memory 30 times in this process -> how many pages the system gave
    each time."""
    import resource                                      # not every system has it
    distill.set_up_processes("cpu")
    num_faults = []
    for _ in range(30):                                  # at first no free block is found
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)                                # 64 MB, 16,384 pages; freed at once
        num_faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return num_faults


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc can do this")
def test_memory_that_is_freed_is_not_asked_for_again(forked):
    """Pages that the system gives anew must be filled with zeros each time.

    This needs a process of its own: if an allocation has failed before, as in the test of "a
    student too large", glibc asks the system for each large block again.
    """
    num_faults = call_forked(forked, count_page_faults)
    assert max(num_faults[-10:]) < 1000                  # without mallopt it is 16,384


def test_bfloat16_is_near_float32_but_not_it(toy, tmp_path, monkeypatch, capsys):
    original = distill.evaluate
    dtypes = []

    def evaluate_and_note(*arguments):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        dtypes.append(product.dtype)
        return original(*arguments)

    monkeypatch.setattr(distill, "evaluate", evaluate_and_note)
    run_distill(toy, tmp_path / "float32", "--dropout", 0)
    assert dtypes == [torch.float32] * 7                 # two tables of two models, three lines
    dtypes.clear()
    run_distill(toy, tmp_path / "bfloat16", "--dropout", 0, "--bf16")
    assert dtypes == [torch.bfloat16] * 7
    assert "device   cpu, bfloat16\n" in capsys.readouterr().out
    exact_log = read_log(tmp_path / "float32")
    rounded_log = read_log(tmp_path / "bfloat16")
    for exact, rounded in zip(exact_log, rounded_log, strict=True):
        # The accuracy is that of 64 places, so each place counts 0.016.
        exact_accuracy = exact.pop("valid_accuracy", 0)
        rounded_accuracy = rounded.pop("valid_accuracy", 0)
        assert rounded != exact
        assert rounded == pytest.approx(exact, rel=0.02)
        assert rounded_accuracy == pytest.approx(exact_accuracy, abs=0.05)


def test_a_run_in_bfloat16_is_resumed_bit_by_bit(toy, out, tmp_path, monkeypatch):
    """The weights and AdamW's means are in float32: only products of matrices are rounded."""
    more = ["--bf16", "--steps", 7]
    run_distill(toy, tmp_path / "whole", *more)
    run_until_signal(toy, out, monkeypatch, signal.SIGTERM, *more)
    run_distill(toy, out, *more, "--resume")
    assert_same_run(out, tmp_path / "whole")
    tensors, _ = read_safetensors(out / "training.safetensors")
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32, name


# ---- Processes and devices --------------------------------------------------------------
# tests/test_processes.py has runs of several processes.

@pytest.mark.parametrize("processes, expected", [
    (Processes(rank=2, local_rank=0, world_size=4), ["work", "barrier"]),
    (Processes(rank=3, local_rank=1, world_size=4), ["barrier", "work"]),
    (Processes(), ["work"]),
])
def test_the_first_process_of_a_machine_goes_first(monkeypatch, processes, expected):
    """The others wait at the barrier until it has worked; a single process waits for nobody."""
    events = []

    def barrier():
        events.append("barrier")

    monkeypatch.setattr(distill.dist, "barrier", barrier)
    with distill.one_per_machine_first(processes):
        events.append("work")
    assert events == expected


def test_if_the_first_process_ends_the_others_say_that_it_was_another(monkeypatch, capsys):
    def barrier():
        raise RuntimeError("Connection closed by peer")

    def action():
        with distill.one_per_machine_first(Processes(rank=1, local_rank=1, world_size=2)):
            raise AssertionError("the work of the first process was not waited for")

    monkeypatch.setattr(distill.dist, "barrier", barrier)
    assert run_command("some.py", action) == 2
    message = "some.py: error: another process has ended, and its message says why\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("signals, num_elsewhere, expected", [
    ([], 0, False), ([], 1, True), ([2], 0, True), ([2, 2], 1, True)])
def test_several_processes_stop_for_a_signal_to_any_of_them_in_a_step_that_looks(
        monkeypatch, signals, num_elsewhere, expected):
    """They must stop after the same step, or one would wait for the others for ever."""
    def all_reduce(num_signals):
        num_signals.add_(num_elsewhere)

    monkeypatch.setattr(distill.dist, "all_reduce", all_reduce)
    one_of_two = Processes(1, 1, 2)
    assert distill.must_stop(signals, True, one_of_two) is expected
    assert distill.must_stop(signals, False, one_of_two) is False


@pytest.mark.parametrize("look_now", [True, False])
def test_a_single_process_looks_for_signals_in_each_step(look_now):
    assert distill.must_stop([], look_now, Processes()) is False
    assert distill.must_stop([signal.SIGINT], look_now, Processes()) is True


@pytest.mark.parametrize("flag, num_gpus, expected", [
    ("auto", 0, "cpu"), ("auto", 2, "cuda:0"), ("cpu", 2, "cpu"), ("cuda", 2, "cuda:0"),
    ("cuda:1", 2, "cuda:1")])
def test_a_gpu_is_used_if_there_is_one_unless_a_flag_says_otherwise(
        monkeypatch, flag, num_gpus, expected):
    devices_set = []
    pretend_gpus(monkeypatch, num_gpus)
    monkeypatch.setattr(torch.cuda, "set_device", devices_set.append)
    device = torch.device(expected)
    assert distill.set_up_processes(flag) == (0, 0, 1, device)
    if device.type == "cuda":
        assert devices_set == [device]
    else:
        assert devices_set == []


@pytest.mark.parametrize("rank, local_rank", [
    (0, 0), (5, 2), (3, 0)])                             # rank 3 is the first of a second machine
def test_each_process_of_torchrun_has_its_own_gpu_and_only_the_first_prints(
        monkeypatch, rank, local_rank):
    groups = []

    def init_process_group(backend, timeout, device_id):
        groups.append((backend, device_id))

    pretend_gpus(monkeypatch, 3)
    monkeypatch.setattr(torch.cuda, "set_device", always(None))
    monkeypatch.setattr(distill.dist, "init_process_group", init_process_group)
    monkeypatch.setattr(sys, "stdout", sys.stdout)       # it is put back after the test
    terminal = sys.stdout
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    device = torch.device("cuda", local_rank)
    assert distill.set_up_processes("auto") == (rank, local_rank, 6, device)
    assert groups == [("nccl", device)]
    if rank == 0:
        assert sys.stdout is terminal
    else:
        assert sys.stdout.name == os.devnull
        sys.stdout.close()


def test_several_processes_cannot_share_a_gpu(monkeypatch):
    pretend_gpus(monkeypatch, 3)
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "0")
    for device in ("cuda:1", "mps"):
        with pytest.raises(ValueError, match=f"--device {device}: 6 processes cannot share a GPU"):
            distill.set_up_processes(device)


def test_bfloat16_is_used_on_a_gpu_unless_a_flag_says_otherwise(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", always(True))
    cpu = torch.device("cpu")
    gpu = torch.device("cuda", 1)
    not_given = parse("").bf16
    assert distill.uses_bf16(not_given, gpu) is True
    assert distill.uses_bf16(not_given, cpu) is False
    assert distill.uses_bf16(not_given, torch.device("mps")) is False
    for device in (cpu, gpu):
        assert distill.uses_bf16(True, device) is True
        assert distill.uses_bf16(False, device) is False


def test_a_gpu_that_could_only_emulate_bfloat16_does_not_know_it(monkeypatch):
    """It would be slower than float32 there."""
    def is_bf16_supported(including_emulation=True):
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    cpu = torch.device("cpu")
    gpu = torch.device("cuda", 1)
    with pytest.raises(ValueError, match="does not know bfloat16.*say --no-bf16"):
        distill.uses_bf16(None, gpu)
    assert distill.uses_bf16(False, gpu) is False
    assert distill.uses_bf16(True, cpu) is True


def test_a_fingerprint_changes_with_any_number_of_a_model():
    """By it --resume notices that the teacher or the student is not the one it was before."""
    assert distill.fingerprint(None) is None
    usual = distill.fingerprint(noisy_student())
    assert usual == distill.fingerprint(noisy_student())
    assert re.fullmatch("[0-9a-f]{16}", usual)
    fingerprints = {usual}
    for name in ("embeddings.word.weight", "layers.0.norm.bias", "head.bias"):
        model = noisy_student()
        flat = model.get_parameter(name).data.view(-1)
        flat[-1] += 1e-3
        fingerprints.add(distill.fingerprint(model))
    assert len(fingerprints) == 4


@pytest.mark.parametrize("name, num_gpus, message", [
    ("cuda", 0, "--device cuda: torch finds no GPU here"),
    ("cuda:1", 0, "--device cuda:1: torch finds no GPU here"),
    ("cuda:2", 2, "--device cuda:2: this process needs GPU number 2, .* torch finds 2$"),
    ("mps", 2, "--device mps: torch finds none here"),
])
def test_a_device_that_is_not_there_is_refused(monkeypatch, name, num_gpus, message):
    pretend_gpus(monkeypatch, num_gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", always(False))
    with pytest.raises(ValueError, match=message):
        distill.choose_device(name)


def test_mps_is_used_where_torch_finds_it(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", always(True))
    assert distill.choose_device("mps") == torch.device("mps")


@pytest.mark.parametrize("name", [
    "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:01", "cuda:999", "cpu:0", ""])
def test_a_name_that_is_no_device_is_refused(name):
    with pytest.raises(ValueError, match="--device: .* is not auto, cpu, cuda, cuda:N"):
        distill.choose_device(name)


class Terminal(io.StringIO):
    """Standard error, when it is shown in a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize("file, rank, is_shown", [
    (Terminal(), "0", True), (Terminal(), "1", False), (io.StringIO(), "0", False)])
def test_the_progress_bar_is_shown_by_the_first_process_in_a_terminal(
        monkeypatch, file, rank, is_shown):
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setenv("RANK", rank)
    assert list(distill.progress_bar(range(3, 5))) == [3, 4]
    assert ("2/2" in file.getvalue()) is is_shown


def test_a_torch_without_groups_of_processes_is_enough_for_one(monkeypatch):
    """Some builds of torch have no is_initialized."""
    monkeypatch.setattr(distill.dist, "is_available", always(False))
    monkeypatch.delattr(distill.dist, "is_initialized")
    distill.leave_processes()


def test_a_long_measurement_shows_a_bar_in_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    tqdm_that_shows_all = functools.partial(distill.tqdm, mininterval=0)
    monkeypatch.setattr(distill, "tqdm", tqdm_that_shows_all)
    assert list(distill.measuring_bar(range(3))) == [0, 1, 2]
    assert sys.stderr.getvalue().strip() == ""           # it was over in 5 s
    clock = one_after_another(itertools.count(step=10.0))     # each look at it takes 10 s
    monkeypatch.setattr("tqdm.std.time", clock)
    assert list(distill.measuring_bar(range(3))) == [0, 1, 2]
    assert "measuring: " in sys.stderr.getvalue()


def test_the_tables_that_a_run_prints_are_its_results(toy, out, capsys):
    """A first table comes before the training, two come after it: results.json has the last two."""
    run_distill(toy, out)
    before, after = capsys.readouterr().out.split("\nsteps ")
    models = {"teacher": load(toy / "teacher"), "student": load(out)}
    results = read_json(out / "results.json")
    for name, model in models.items():
        result = results[name]
        counts = distill.count_parameters(model)
        assert result["parameters"] == counts["stored"]
        assert result["applied"] == counts["applied"]
        row_before, = table_rows(before, name)
        row, row_of_accuracies = table_rows(after, name)
        expected_counts = [f"{counts['stored']:,}", f"{counts['applied']:,}"]
        assert row_before[1:3] == expected_counts
        assert len(row_before) == 5
        expected_scores = [f"{result['accuracy']:.1%}", f"{result['loss']:.3f}"]
        assert row[1:] == expected_counts + expected_scores
        # The second table has the accuracy of the embeddings and that after each recursion.
        expected_accuracies = [f"{share:.1%}" for share in result["accuracy_after"]]
        assert row_of_accuracies[1:] == expected_accuracies
        assert len(expected_accuracies) == 1 + model.config.num_hidden_layers
        assert row_of_accuracies[-1] == row[3]
    last_line = read_log(out)[-1]
    student = results["student"]
    assert student["accuracy"] == last_line["valid_accuracy"]
    assert student["loss"] == last_line["valid_loss"]


def test_scores_are_printed_in_lines_where_there_is_no_bar(monkeypatch, capsys):
    """A file gets each line of the log; in a terminal the bar has the newest scores."""
    line = {"step": 1200, "loss": 2.0, "mlm": 1.0, "lr": 0.5, "valid_accuracy": 0.25}
    bar = distill.progress_bar(range(3, 5))
    distill.show_progress(bar, line, 5000)
    assert capsys.readouterr().out == "step 1,200 of 5,000: loss 2.000, valid_accuracy 0.250\n"
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = distill.progress_bar(range(3, 5))
    distill.show_progress(bar, line, 5000)
    assert capsys.readouterr().out == ""
    assert "loss=2.000, valid_accuracy=0.250" in sys.stderr.getvalue()


# ---- The command ------------------------------------------------------------------------

def test_a_run_prints_its_corpus_its_settings_and_its_samples(toy, out, capsys):
    run_distill(toy, out)
    before, after = capsys.readouterr().out.split("\nsteps ")
    pattern = rf"corpus   {toy}/corpus.txt: ([\d,]+) tokens to train on, ([\d,]+) held out\n"
    sizes = re.match(pattern, before)
    num_train_tokens = int(sizes[1].replace(",", ""))
    num_valid_tokens = int(sizes[2].replace(",", ""))
    assert num_valid_tokens > 0
    assert num_train_tokens > 9 * num_valid_tokens
    assert "recipe   quick, learning rate 0.01\n" in before
    assert "device   cpu, float32\n" in before
    assert "layers   1-2 2-4 (student-teacher)\n" in before
    assert "loss     1 mlm + 3 attention + 10 hidden + 5 output" in before
    assert "12 of 64 tokens: 0.0 min\n" in after
    for words in ("[MASK]", " teacher:", " student:"):
        assert after.count(words) == 4
    assert f"python finetune.py --model {out}" in after


def test_the_accuracies_after_each_recursion_stand_below_their_numbers(capsys):
    scores = {"parameters": 7, "applied": 9, "accuracy": 0.25, "loss": 2.0}
    distill.print_scores({"teacher": scores | {"accuracy_after": [0.0, 0.5, 0.256]},
                          "student": scores | {"accuracy_after": [0.125, 1.0]}})
    assert capsys.readouterr().out.splitlines()[5:] == [
        "               0      1      2",
        "teacher     0.0%  50.0%  25.6%",
        "student    12.5% 100.0%"]


@pytest.mark.parametrize("flags, expected", [
    ("", 2.5), ("--recipe full", 2.5), ("--recipe paper", 0.0), ("--elastic 0", 0.0),
    ("--output-weight 0", 0.0), ("--output-weight 0 --elastic 1", 1.0)])
def test_the_elastic_loss_comes_with_the_output_loss_unless_a_flag_says_otherwise(
        flags, expected):
    teacher = types.SimpleNamespace(head="a head")
    given = given_flags(flags.split())
    weights = distill.choose_losses(parse(flags), teacher, 4, given)
    assert weights.get("elastic", 0.0) == expected


def test_the_samples_that_are_printed_are_held_out_text(toy, out, monkeypatch):
    shown = []

    def note_tokens(models, tokenizer, batches, bf16):
        shown.append(batches.tokens)

    monkeypatch.setattr(distill, "print_samples", note_tokens)
    run_distill(toy, out, *ONE_STEP)
    shown_tokens, = shown
    assert np.array_equal(shown_tokens, open_toy_corpus(toy).valid_tokens)


def flags_to_measure(toy, cache):
    """List the flags of a measurement on the toy corpus, but for --teacher and --student."""
    return ["--evaluate", f"--corpus={toy}/corpus.txt", f"--cache={cache}", "--length=16",
            "--device=cpu"]


def test_an_evaluation_lets_the_first_process_tokenise_first(toy, tmp_path, monkeypatch):
    happened = note_first_process(monkeypatch, distill, "open_corpus")
    flags = flags_to_measure(toy, tmp_path) + [f"--teacher={toy}/teacher"]
    assert distill.main(flags) is None
    assert happened == ["the first process begins", "open_corpus", "it has ended"]


def test_the_elastic_loss_is_left_out_where_it_is_not_possible(toy, out, tmp_path, capsys):
    run_distill(toy, out, *ONE_STEP, "--elastic", 7)
    assert "5 output + 7 elastic\n" in capsys.readouterr().out
    one_recursion = ["--num-hidden-layers", 1, *ONE_STEP]     # it has no earlier one
    run_distill(toy, tmp_path / "other", *one_recursion)
    assert "5 output\n" in capsys.readouterr().out
    assert "elastic" not in read_log(tmp_path / "other")[-1]
    # If a flag asks for it, that is an error.
    error = error_of_run(capsys, toy, tmp_path / "third", *one_recursion, "--elastic", 7)
    assert "error: the elastic loss needs a student of more than one recursion" in error


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_the_temperature_must_be_above_0(temperature):
    with pytest.raises(ValueError, match=f"^the temperature is {temperature}, but it must be "):
        make_distillation(noisy_student(), noisy_teacher(), temperature=temperature)


def test_a_temperature_that_no_loss_uses_is_refused():
    teacher = types.SimpleNamespace(head=None)
    message = "--temperature: there is neither an output nor an elastic loss"
    with pytest.raises(ValueError, match=message):
        distill.choose_losses(parse("--temperature 2"), teacher, 4, ["--temperature"])


@pytest.mark.parametrize("flags, adapter_size, correction_rank", [
    ("", 0, 6),
    ("--correction-rank 0", 0, 0),
    ("--correction-rank 2", 0, 2),
    ("--adapter-size 5", 5, 0),
    ("--adapter-size 0", 0, 0),
    ("--adapter-size 5 --correction-rank 2", 5, 2),
    ("--num-hidden-groups 2", 0, 6),
    ("--num-hidden-groups 4", 0, 0),                     # nothing is shared
    ("--recipe paper", 3, 0),
    ("--recipe paper --correction-rank 0", 3, 0),
    ("--recipe paper --correction-rank 2", 0, 2),
    ("--recipe paper --adapter-size 0", 0, 0),
])
def test_something_tells_the_recursions_apart_unless_the_flags_say_otherwise(
        flags, adapter_size, correction_rank):
    """With the same weights and nothing else, all recursions would do the same."""
    teacher = types.SimpleNamespace(config=bert_config(48, 4))
    config = distill.student_config(parse(flags), teacher, V)
    assert config.adapter_size == adapter_size
    assert config.correction_rank == correction_rank


@pytest.mark.parametrize("flags, used, unused", [
    ("--temperature 2 --output-weight 0 --elastic 1", "elastic", "output"),
    ("--temperature 2 --elastic 0", "output", "elastic"),
])
def test_a_temperature_has_a_use_if_there_is_an_output_or_an_elastic_loss(flags, used, unused):
    """With neither of them the flag is refused."""
    teacher = types.SimpleNamespace(head="a head")
    given = given_flags(flags.split())
    weights = distill.choose_losses(parse(flags), teacher, 4, given)
    assert used in weights
    assert unused not in weights


@pytest.fixture
def nan_norm(monkeypatch):
    """Let each step have a gradient whose norm is nan."""
    nan = torch.tensor(math.nan)
    monkeypatch.setattr(distill, "training_step", always(distill.StepResult({}, 0.1, nan)))


def train_on_gpu(options):
    """Run the loop with steps that do not compute anything, as if it were on a GPU."""
    gpu = Processes(device=torch.device("cuda"))
    state = distill.RunState(nn.Linear(1, 1), None, 0, 0, {})
    distill.train(None, state, options, None, None, gpu)


def test_a_step_that_was_not_checked_is_checked_before_a_signal_has_it_saved(
        tmp_path, monkeypatch, nan_norm):
    """On a GPU most steps are not checked, because that would make the program wait for it."""
    monkeypatch.setattr(distill, "must_stop", always(True))
    options = make_options(tmp_path, steps=20, log_every=9, save_every=20)
    with pytest.raises(FloatingPointError, match="step 1,"):
        train_on_gpu(options)


def test_narrow_students_have_corrections_too():
    """An eighth or a sixteenth of 4 would be 0."""
    flags = "--teacher none --tokenizer t --hidden-size 4"
    config = distill.student_config(parse(flags), None, V)
    assert config.correction_rank == 1
    config = distill.student_config(parse(f"{flags} --recipe paper"), None, V)
    assert config.adapter_size == 1


def test_a_teacher_with_factorised_embeddings_of_the_same_width_gives_them_as_they_are():
    torch.manual_seed(0)
    teacher = MiniALBERT(bert_config(48, 4, embedding_size=8)).eval()
    # Without a flag the student's embeddings are not wider than the teacher's.
    config = distill.student_config(parse(""), teacher, V)
    assert config.embedding_size == 8
    student = MiniALBERT(config).eval()
    ids = random_ids(3, 9)
    start_from_teacher(student, teacher, ids)
    assert torch.equal(student.embeddings(ids), teacher.embeddings(ids))


def test_the_lines_of_the_log_have_the_time_and_the_evaluations_are_printed(toy, out, capsys):
    begin = time.time()
    run_distill(toy, out, "--steps", 6, "--eval-every", 3)
    end = time.time()
    log = (out / "log.jsonl").read_text()
    lines = [json.loads(text) for text in log.splitlines()]
    for line in lines:
        assert type(line["time"]) is int
        assert begin - 1 <= line["time"] <= end + 1
    printed_lines = capsys.readouterr().out.splitlines()
    printed = [text for text in printed_lines if "valid_accuracy" in text]
    expected = []
    for line in (lines[2], lines[5]):
        scores = f"valid_accuracy {line['valid_accuracy']:.3f}, valid_loss {line['valid_loss']:.3f}"
        expected.append(f"step {line['step']} of 6: loss {line['loss']:.3f}, {scores}")
    assert printed == expected


@pytest.mark.parametrize("precision", [[], ["--bf16"]])
def test_to_evaluate_prints_the_scores_of_the_run_and_writes_nothing(
        toy, out, tmp_path, capsys, precision):
    run_distill(toy, out, "--steps", 4, *precision)
    _, after = capsys.readouterr().out.split("\nsteps ")
    files_before = files_below(tmp_path)
    flags = flags_to_measure(toy, toy / "cache") + [f"--student={out}"] + precision
    assert distill.main(flags + [f"--teacher={toy}/teacher"]) is None
    printed = capsys.readouterr().out
    assert "\nlength   16 tokens in a sequence\n" in printed
    for name in ("teacher", "student"):
        assert table_rows(printed, name) == table_rows(after, name)
    assert distill.main(flags) is None
    printed_alone = capsys.readouterr().out
    assert table_rows(printed_alone, "student") == table_rows(after, "student")
    assert "teacher" not in printed_alone
    assert files_below(tmp_path) == files_before


def test_to_evaluate_refuses_the_flags_of_a_training():
    """They would be ignored."""
    allowed = ["evaluate", "teacher", "student", "tokenizer", "corpus", "text", "cache", "length",
               "device", "bf16"]
    num_refused = 0
    for name, default in vars(parse("")).items():
        if name in allowed:
            continue
        flag = "--" + name.replace("_", "-")
        words = [flag]
        takes_no_value = type(default) is bool or name in ("tie_decoder", "compile", "cuda_graphs")
        if not takes_no_value:
            value = 5 if default is None else default
            words.append(str(value))
        with pytest.raises(ValueError, match=f"{flag}: --evaluate trains nothing"):
            distill.arguments(["--evaluate", *words])
        num_refused += 1
    assert num_refused > 25


def test_a_run_leaves_a_student_with_its_tokenizer_a_log_and_a_checkpoint(toy, whole):
    assert sorted(os.listdir(whole)) == [
        "config.json", "log.jsonl", "model.safetensors", "results.json", "run.json",
        "tokenizer_config.json", "training.safetensors", "vocab.txt"]
    removed = [os.path.basename(path) for path in files_of_run(str(whole))]
    assert set(removed) | {"run.json"} == set(os.listdir(whole)), "see WRITTEN_BY_RUNS"
    assert Tokenizer(whole).digest == Tokenizer(toy / "teacher").digest
    expected = replace(STUDENT, adapter_size=0, correction_rank=C // 8, embedding_size=C // 2,
                       hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    assert load(whole).config == expected


def test_a_run_trains_and_measures_as_the_flags_say(toy, out, monkeypatch):
    """It trains on one part of the corpus and is measured on the other, always with one seed."""
    trained = []
    measured = []

    def note_training(objective, run_state, options, *others):
        trained.append((objective, options))

    def note_evaluation(model, batches, each_recursion=False):
        measured.append(batches)
        return {"accuracy": 0.0, "loss": 0.0, "accuracy_after": [0.0]}

    monkeypatch.setattr(distill, "train", note_training)
    monkeypatch.setattr(distill, "evaluate", note_evaluation)
    settings = {"steps": 31, "lr": 0.5, "warmup": 7, "weight_decay": 0.25, "seed": 11,
                "log_every": 13, "eval_every": 17, "save_every": 19}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    run_distill(toy, out, *flags, "--micro-batch-size", 1, "--temperature", 2, "--bf16")
    (objective, options), = trained
    assert options == make_options(out, **settings)
    assert objective.temperature == 2
    assert objective.bf16 is True
    assert objective.micro_batch_bounds == [(0, 1), (1, 2), (2, 3), (3, 4)]
    corpus = open_toy_corpus(toy)
    train_batches = objective.batches
    assert np.array_equal(train_batches.tokens, corpus.train_tokens)
    assert train_batches.T == 16
    assert train_batches.batch_size == 4
    assert train_batches.seed == 11
    assert measured
    for valid_batches in measured:
        assert np.array_equal(valid_batches.tokens, corpus.valid_tokens)
        assert valid_batches.T == 16
        assert valid_batches.batch_size == 32
        assert valid_batches.seed == 0


def test_a_run_starts_from_the_teacher_also_where_there_is_little_text(toy, out):
    """At this length there are fewer sequences than the 256 that the start is usually fitted to."""
    run_distill(toy, out, "--length", 32, *ONE_STEP, "--lr", 0)
    student = load(out)
    teacher = load(toy / "teacher")
    # The student's only layer starts as the mean of the two in the middle.
    total = teacher.layers[1].output.weight + teacher.layers[2].output.weight
    assert torch.allclose(student.layers[0].output.weight, total / 2, atol=1e-7)
    assert torch.equal(student.head.bias, teacher.head.bias)


def test_the_time_of_a_step_is_that_of_the_fastest_of_four(monkeypatch):
    distillation = make_distillation(noisy_student(), noisy_teacher())
    clock = one_after_another([0, 9, 10, 13, 20, 22, 30, 35])      # they take 9, 3, 2, 5 seconds
    monkeypatch.setattr(distill.time, "perf_counter", clock)
    assert distill.seconds_of_a_step(distillation) == 2
    for parameter in distillation.student.parameters():
        assert parameter.grad is None


def test_if_a_step_takes_long_it_is_timed_only_twice(monkeypatch):
    """The first pass may take long because torch compiles it, so the second one decides."""
    distillation = make_distillation(noisy_student(), noisy_teacher())
    clock = one_after_another([0, 80, 100, 111])         # there is no third time
    monkeypatch.setattr(distill.time, "perf_counter", clock)
    assert distill.seconds_of_a_step(distillation) == 11


def best_four_tokens(model, tokenizer, ids, place):
    """Predict a place of the ids (1, T) -> the four tokens, not special ones, of the highest
    scores."""
    with torch.no_grad():
        hidden, _ = model.eval()(torch.from_numpy(ids))
        scores = model.predict(hidden[-1])[0, place].numpy()
    ordered = np.argsort(-scores).tolist()
    return [token for token in ordered if token not in tokenizer.special_ids][:4]


def test_the_samples_are_what_the_models_predict_at_a_masked_place(toy, capsys):
    """Four texts are shown, each with the words around a masked one and a line for each model."""
    tokenizer = Tokenizer(toy / "teacher")
    corpus = open_toy_corpus(toy)
    batches = MaskedBatches(corpus.train_tokens, tokenizer, T=16, batch_size=4)
    models = {"teacher": noisy_teacher(), "student": noisy_student()}
    distill.print_samples(models, tokenizer, batches, bf16=False)
    paragraphs = capsys.readouterr().out.strip().split("\n\n")
    last = batches.count - 1
    numbers = [0, last // 3, 2 * last // 3, last]
    for paragraph, number in zip(paragraphs, numbers, strict=True):
        lines = paragraph.splitlines()
        ids = batches.sequences([number])                                     # (1, 16)
        words = [tokenizer.decode([token]) for token in ids[0].tolist()]
        place = distill.place_to_mask(words)
        words_before = words[max(0, place - 8):place]
        words_after = words[place + 1:place + 9]
        shown_words = words_before + ["[MASK]"] + words_after
        expected = "".join(shown_words) + f"({words[place]})"
        found = "".join(lines[0].split())                # without spaces: "w29." is two tokens
        assert found == expected
        ids[0, place] = tokenizer.mask_id
        for line, name in zip(lines[1:], models, strict=True):
            best = best_four_tokens(models[name], tokenizer, ids, place)
            best_words = [tokenizer.decode([token]) for token in best]
            assert line.split() == [f"{name}:"] + best_words


def test_special_tokens_are_no_words_that_a_model_predicts(toy):
    """This model finds them all more probable than any word."""
    tokenizer = Tokenizer(toy / "teacher")
    model = noisy_student()
    model.head.bias.data[tokenizer.special_ids.tolist()] = 1000.0
    predicted = distill.predicted_words(model, tokenizer, [2, 6, 7, 3], 1, bf16=False)
    assert len(predicted.split()) == 4


def test_a_held_out_text_is_shown_only_once(toy, capsys):
    tokenizer = Tokenizer(toy / "teacher")
    two_sequences = np.full(2 * 14, 7, np.uint16)        # [CLS] and [SEP] make 16 of 14 tokens
    batches = MaskedBatches(two_sequences, tokenizer, 16, 2)
    assert batches.count == 2
    distill.print_samples({"student": noisy_student()}, tokenizer, batches, bf16=False)
    assert capsys.readouterr().out.count("[MASK]") == 2


@pytest.mark.parametrize("words, expected_word, expected_place", [
    (["", "walks", "to", "walks", "the", "walks", ""], "walks", 3),
    (["", "talk", "of", "it", "a", "wonderful", ""], "talk", 1),
    (["", "talk", "of", "##ab", "a", "it", ""], "talk", 1),
    (["", "##ing", "##s", "a", "is", ".", ""], "a", 3),
    (["", "\u80ba", "", "\u708e", "", "", "", ""], "\u708e", 3),
    (["", "", ""], "", 1),
])
def test_the_place_to_mask_is_a_long_word_near_the_middle(words, expected_word, expected_place):
    """Long words have at least four letters; without one it is the word in the middle. The special
    tokens, which are empty, are taken only if there are no words."""
    place = distill.place_to_mask(words)
    assert place == expected_place
    assert words[place] == expected_word


def test_without_a_teacher_a_bert_is_pretrained_that_others_can_open(
        toy, tmp_path, capsys, transformers):
    more = ["--teacher", "none", "--tokenizer", toy / "teacher", "--hidden-size", C,
            "--num-attention-heads", H, "--embedding-size", C, "--num-hidden-groups", 2]
    run_distill(toy, tmp_path / "bert", *more, *ONE_STEP)
    assert set(read_log(tmp_path / "bert")[0]) == {"step", "loss", "mlm", "lr", "gradient_norm",
                                                   "valid_accuracy", "valid_loss"}
    printed = capsys.readouterr().out
    assert "teacher:" not in printed
    assert "\nlayers " not in printed
    assert read_json(tmp_path / "bert" / "config.json")["model_type"] == "bert"
    theirs = transformers.BertForMaskedLM.from_pretrained(tmp_path / "bert").eval()
    ours = load(tmp_path / "bert")
    ids = random_ids(2, 9).clamp(max=95)                 # the toy vocabulary has 96 tokens
    with torch.no_grad():
        hidden, _ = ours(ids)
        our_logits = ours.predict(hidden[-1])
        their_logits = theirs(ids).logits
    assert torch.allclose(our_logits, their_logits, atol=1e-5)


def test_a_student_from_a_checkpoint_begins_with_its_weights(toy, whole, tmp_path):
    run_distill(toy, tmp_path / "again", "--student", whole, *ONE_STEP, "--lr", 0)
    assert model_bytes(tmp_path / "again") == model_bytes(whole)
    last_line = read_log(tmp_path / "again")[-1]
    assert last_line["valid_loss"] == read_log(whole)[-1]["valid_loss"]


def test_a_student_from_a_checkpoint_can_be_stopped_and_resumed(toy, whole, tmp_path, monkeypatch):
    more = ["--student", whole]
    run_distill(toy, tmp_path / "a", *more)
    status = run_until_signal(toy, tmp_path / "b", monkeypatch, signal.SIGTERM, *more)
    assert status == 143
    run_distill(toy, tmp_path / "b", "--resume", *more)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert model_bytes(tmp_path / "a") != model_bytes(whole)


@pytest.mark.parametrize("width, num_heads", [
    (8, 1), (100, 2), (128, 4), (384, 12), (97, 1), (768, 24), (32768, 1024), (2**24 - 3, 1)])
def test_without_a_teacher_the_number_of_heads_divides_the_width(width, num_heads):
    flags = f"--teacher none --tokenizer mine --hidden-size {width} --intermediate-size 64"
    config = distill.student_config(parse(flags), None, V)
    assert config.num_attention_heads == num_heads


def test_a_bert_without_a_head_is_given_one(toy, out):
    """Its other weights stay as they are: the learning rate is 0."""
    headless = load(toy / "headless")
    assert headless.head is None
    more = ["--teacher", "none", "--student", toy / "headless", "--lr", 0]
    run_distill(toy, out, *more, *ONE_STEP)
    student = load(out)
    assert student.head is not None
    assert "valid_accuracy" in read_log(out)[-1]
    values = student.state_dict()
    for name, tensor in headless.state_dict().items():
        assert torch.equal(values[name], tensor), name


def test_a_teacher_without_a_head_is_distilled_by_its_maps_and_states_alone(toy, out, capsys):
    run_distill(toy, out, "--teacher", toy / "headless")
    printed = capsys.readouterr().out
    assert printed.count("no MLM head") == 4
    assert "loss     3 attention + 10 hidden\n" in printed
    assert load(out).head is None
    lines = read_log(out)
    assert set(lines[-1]) == {"step", "loss", "attention", "hidden", "lr", "gradient_norm"}
    assert lines[-1]["hidden"] < lines[0]["hidden"]


def test_a_student_keeps_its_head_if_its_teacher_has_none(toy, out, capsys):
    more = ["--teacher", toy / "headless", "--student", toy / "teacher"]
    run_distill(toy, out, *more, *ONE_STEP)
    printed = capsys.readouterr().out
    assert "loss     1 mlm + 3 attention + 10 hidden\n" in printed
    # The student alone guesses the masked words.
    assert "    student: " in printed
    assert "    teacher: " not in printed
    assert load(out).head is not None
    assert "valid_accuracy" in read_log(out)[-1]


def test_a_bert_with_the_head_of_a_task_is_a_teacher(toy, tmp_path, capsys):
    """So BertForSequenceClassification saves it; what is above the encoder is left out."""
    shutil.copytree(toy / "headless", tmp_path / "tuned")
    tensors, metadata = read_safetensors(toy / "headless" / "model.safetensors")
    tensors = dict(tensors)
    tensors["classifier.weight"] = torch.ones(2, C)
    tensors["classifier.bias"] = torch.ones(2)
    tensors["bert.pooler.dense.weight"] = torch.ones(C, C)
    write_safetensors(tensors, tmp_path / "tuned" / "model.safetensors", metadata)
    run_distill(toy, tmp_path / "of-tuned", "--teacher", tmp_path / "tuned", *ONE_STEP)
    run_distill(toy, tmp_path / "of-headless", "--teacher", toy / "headless", *ONE_STEP)
    printed = capsys.readouterr().out
    assert "[MASK]" not in printed                       # no model could predict a word there
    assert model_bytes(tmp_path / "of-tuned") == model_bytes(tmp_path / "of-headless")


def test_without_a_loss_for_it_a_student_has_no_head(toy, out, capsys):
    run_distill(toy, out, "--mlm-weight", 0, "--output-weight", 0, *ONE_STEP)
    assert load(out).head is None
    printed = capsys.readouterr().out
    assert printed.count("no MLM head") == 2             # the teacher has one
    assert "[MASK]" not in printed
    assert "valid_accuracy" not in read_log(out)[-1]


def test_without_attention_and_hidden_losses_the_numbers_of_layers_need_not_divide(
        toy, out, capsys):
    more = ["--num-hidden-layers", 3, "--attention-weight", 0, "--hidden-weight", 0]
    run_distill(toy, out, *more, *ONE_STEP)
    assert load(out).config.num_hidden_layers == 3
    printed = capsys.readouterr().out
    assert "loss     1 mlm + 5 output + 2.5 elastic\n" in printed
    assert "\nlayers " not in printed


@pytest.mark.parametrize("other", ["attention", "hidden"])
def test_with_one_of_these_losses_the_numbers_of_layers_must_divide(toy, out, capsys, other):
    """other: the loss that there is not"""
    error = error_of_run(capsys, toy, out, "--num-hidden-layers", 3, f"--{other}-weight", 0)
    assert "3 recursions cannot be spread evenly" in error
    assert "[1, 2, 4] or a multiple of 4 (--num-hidden-layers), or leave out the losses" in error


# ---- The command line -------------------------------------------------------------------

def test_the_papers_recipe_has_the_choices_of_the_authors_scripts():
    """E is that of their published models."""
    args = parse("--teacher bert-base-uncased --recipe paper")
    expected = {
        "steps": 100_000, "batch_size": 192, "length": 256, "lr": 5e-4, "warmup": 5000,
        "weight_decay": 1e-4, "dropout": 0.1, "temperature": 1.0, "init": "random",
        "tie_decoder": False, "num_hidden_layers": 6, "embedding_size": 128,
        "mlm_weight": 1, "attention_weight": 3 / 256, "hidden_weight": 3, "output_weight": 5,
        "embedding_weight": 0}
    for name, value in expected.items():
        assert getattr(args, name) == value, name


@pytest.mark.parametrize("flags, width, expected", [
    ("", 24, 3e-3), ("", 128, 3e-3), ("", 384, 1e-3), ("", 768, 5e-4), ("--lr 0.1", 384, 0.1),
    ("--recipe full", 384, 5e-4), ("--recipe paper", 24, 5e-4)])
def test_the_quick_recipe_takes_wide_students_slower(flags, width, expected, monkeypatch):
    """The rates of the run are looked at here, and then the run is ended."""
    teacher = MiniALBERT(bert_config(width, num_layers=2, num_heads=2))
    tokenizer = types.SimpleNamespace(vocab_size=V)
    chosen = []

    def choose_losses(*args):
        raise ValueError("far enough")

    def note_rate(**options):
        chosen.append(options["lr"])

    monkeypatch.setattr(distill, "load_models", always(({"teacher": teacher}, tokenizer)))
    monkeypatch.setattr(distill, "TrainingOptions", note_rate)
    monkeypatch.setattr(distill, "choose_losses", choose_losses)
    with pytest.raises(ValueError, match="far enough"):
        distill.run(parse(flags), flags.split())
    assert chosen == [expected]


@pytest.mark.parametrize("num_gpus, flags, expected", [
    (0, "--teacher mine", "quick"),
    (1, "--teacher mine", "full"),
    (1, "", "quick"),                                    # the bundled teacher is small
    (1, "--teacher none --tokenizer mine", "quick"),
    (1, "--teacher mine --recipe quick", "quick"),
    (0, "--recipe full", "full"),
])
def test_the_recipe_is_full_for_a_teacher_of_yours_on_a_gpu(monkeypatch, num_gpus, flags, expected):
    pretend_gpus(monkeypatch, num_gpus)
    args = parse(flags)
    assert args.recipe == expected
    for name, value in RECIPES[expected].items():
        assert getattr(args, name) == value


@pytest.mark.parametrize("flags, expected", [
    ("", "teacher"),
    ("--teacher none --tokenizer mine", "sharp"),
    ("--init sharp", "sharp"),
    ("--student mine", ""),
])
def test_a_student_starts_from_the_teacher_unless_there_is_something_else(flags, expected):
    assert parse(flags).init == expected


# A student has no dropout, unless a flag or the recipe says so.
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize("num_layers, num_recursions", [(12, 6), (4, 4), (24, 24)])
def test_a_fresh_student_is_shaped_by_its_teacher(num_layers, num_recursions):
    teacher_config = bert_config(32, num_layers, max_position_embeddings=65, type_vocab_size=3,
                                 tie_decoder=False)
    student = distill.make_student(parse(""), noisy_model(teacher_config), V)
    expected = replace(teacher_config, embedding_size=16, num_hidden_layers=num_recursions,
                       num_hidden_groups=1, correction_rank=4, tie_decoder=True, **NO_DROPOUT)
    assert student.config == expected


def test_the_student_of_a_bert_base_has_the_papers_shape_and_in_its_recipe_the_papers_adapters():
    teacher = types.SimpleNamespace(config=BERT_BASE)
    config = distill.student_config(parse(""), teacher, BERT_BASE.vocab_size)
    papers_shape = replace(BERT_BASE, embedding_size=128, num_hidden_layers=6, num_hidden_groups=1)
    assert config == replace(papers_shape, correction_rank=96, **NO_DROPOUT)
    config = distill.student_config(parse("--recipe paper"), teacher, BERT_BASE.vocab_size)
    assert config == replace(papers_shape, adapter_size=48, tie_decoder=False)


def test_a_tokenizer_a_text_and_the_embeddings_may_just_fit_into_the_models():
    """The checks of the sizes allow equality, and refuse one token more."""
    teacher = MiniALBERT(TOY_TEACHER)
    student = MiniALBERT(replace(STUDENT, embedding_size=C))
    distill.check_start(student, teacher)
    tokenizer = types.SimpleNamespace(vocab_size=V, path="")
    distill.check_sizes({"teacher": teacher}, tokenizer, length=32)
    tokenizer.vocab_size = V + 1
    with pytest.raises(ValueError, match=f"{V + 1} tokens, the teacher only {V} "):
        distill.check_sizes({"teacher": teacher}, tokenizer, length=32)


def test_flags_shape_a_fresh_student():
    teacher = noisy_model(bert_config(32, 12))
    args = parse("--num-hidden-groups 3 --num-hidden-layers 3 --embedding-size 32")
    config = distill.make_student(args, teacher, V).config
    assert config.is_bert
    assert config.num_hidden_layers == 3
    args = parse("--num-hidden-layers 4 --num-hidden-groups 2 --hidden-size 48 --embedding-size 10 "
                 "--adapter-size 7 --num-attention-heads 6 --intermediate-size 50 --no-tie-decoder "
                 "--dropout 0.3")
    config = distill.make_student(args, teacher, V).config
    assert config == Config(
        vocab_size=V, embedding_size=10, hidden_size=48, num_hidden_layers=4, num_hidden_groups=2,
        num_attention_heads=6, intermediate_size=50, hidden_dropout_prob=0.3,
        attention_probs_dropout_prob=0.3, adapter_size=7, tie_decoder=False)


@pytest.mark.parametrize("flags, embedding_size, hidden_size, num_heads, positions, rank", [
    ("", 64, 128, 4, 128, 16),
    ("--length 300 --hidden-size 16", 8, 16, 1, 300, 2),
])
def test_a_student_without_a_teacher_has_a_usual_shape(
        flags, embedding_size, hidden_size, num_heads, positions, rank):
    args = parse(f"--teacher none --tokenizer mine {flags}")
    config = distill.student_config(args, None, V)
    assert config == Config(
        vocab_size=V, embedding_size=embedding_size, hidden_size=hidden_size, num_hidden_layers=6,
        num_hidden_groups=1, num_attention_heads=num_heads, intermediate_size=4 * hidden_size,
        max_position_embeddings=positions, correction_rank=rank, **NO_DROPOUT)


def test_the_seed_decides_a_fresh_students_values():
    teacher = noisy_teacher()
    first_values = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        student = distill.make_student(parse(f"--seed {seed}"), teacher, V)
        first_values.append(student.layers[0].output.weight)
    assert torch.equal(first_values[0], first_values[1])
    assert not torch.equal(first_values[0], first_values[2])


@pytest.mark.parametrize("has_head, changes, expected", [
    (True, {}, {"mlm": 1.0, "attention": 3.0, "hidden": 10.0, "output": 5.0}),
    (True, {"hidden": 0.0, "embedding": 0.5},
     {"mlm": 1.0, "attention": 3.0, "output": 5.0, "embedding": 0.5}),
    (False, {"embedding": 0.5}, {"attention": 3.0, "hidden": 10.0, "embedding": 0.5}),
    (None, {"embedding": 0.5, "mlm": 2.0}, {"mlm": 2.0}),                    # no teacher
    (True, {"mlm": 0.0, "attention": 0.0, "elastic": 0.5},
     {"hidden": 10.0, "output": 5.0, "elastic": 0.5}),
    (True, {"output": 0.0, "elastic": 0.5}, {"mlm": 1.0, "attention": 3.0, "hidden": 10.0}),
    (False, {"elastic": 0.5}, {"attention": 3.0, "hidden": 10.0}),
    (None, {"elastic": 0.5}, {"mlm": 1.0}),
])
def test_the_losses_are_those_that_the_flags_want_and_the_teacher_allows(
        has_head, changes, expected):
    """changes: the weights that are not the usual ones"""
    weights = dict(LOSS_WEIGHTS)
    weights.update(changes)
    elastic = weights.pop("elastic", 0.0)                # its flag is not called --elastic-weight
    args = argparse.Namespace(elastic=elastic, student=None)
    for name, weight in weights.items():
        setattr(args, f"{name}_weight", weight)
    teacher = None
    if has_head is not None:
        teacher = MiniALBERT(TOY_TEACHER, head=has_head)
    assert distill.choose_losses(args, teacher, 2, []) == expected
    expected.pop("elastic", None)                        # one recursion has no earlier one
    assert distill.choose_losses(args, teacher, 1, []) == expected


def test_a_loss_that_a_flag_asks_for_is_not_left_out():
    teacher = MiniALBERT(TOY_TEACHER, head=False)
    student = MiniALBERT(TOY_TEACHER)
    weights = distill.choose_losses(parse("--mlm-weight 7"), teacher, 4, ["--mlm-weight"])
    assert weights == {"mlm": 7, "attention": 3, "hidden": 10}
    distill.check_losses(student, teacher, weights)
    for flag in ("--output-weight", "--elastic"):
        weights = distill.choose_losses(parse(f"{flag} 3"), teacher, 4, [flag])
        with pytest.raises(ValueError, match="need a teacher with an MLM head"):
            distill.check_losses(student, teacher, weights)
    weights = distill.choose_losses(parse("--mlm-weight 0"), teacher, 4, ["--mlm-weight"])
    assert weights == {"attention": 3, "hidden": 10}


def test_a_teacher_needs_no_tokenizer_if_one_is_given(toy, tmp_path, monkeypatch):
    teacher = str(tmp_path / "teacher")
    tokenizer_folder = str(toy / "teacher")
    os.makedirs(teacher)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(toy / "teacher" / name, teacher)
    fetched = []

    def note_fetch(name, weights=True):
        fetched.append((name, weights))
        return name

    monkeypatch.setattr(distill, "fetch", note_fetch)
    args = distill.arguments(["--teacher", teacher, "--tokenizer", tokenizer_folder])
    models, tokenizer = distill.load_models(args)
    assert list(models) == ["teacher"]
    assert models["teacher"].config == TOY_TEACHER
    assert tokenizer.path == tokenizer_folder
    # The weights beside the tokenizer are not downloaded.
    assert fetched == [(teacher, True), (tokenizer_folder, False)]


@pytest.mark.parametrize("flags, expected", [
    ("", 100), ("--steps 50", 5), ("--steps 5", 0), ("--steps 9999", 100),
    ("--recipe full", 5000), ("--steps 50 --warmup 50", 50), ("--steps 50 --warmup=7", 7)])
def test_the_warm_up_is_at_most_a_tenth_of_the_steps_unless_it_is_given(flags, expected):
    assert parse(flags).warmup == expected


@pytest.mark.parametrize("flags, expected", [
    ("", 200), ("--steps 2500", 200), ("--steps 90", 9), ("--steps 3", 1),
    ("--steps 2000 --recipe full", 200), ("--recipe full", 2000),
    ("--steps 90 --save-every 50", 50)])
def test_a_short_run_saves_at_least_ten_times(flags, expected):
    """The recipe saves every 2,000 steps. A run of half an hour was killed before that, and there
    was no checkpoint."""
    assert parse(flags).save_every == expected


def test_flags_of_several_paths_may_come_again_and_add_up():
    args = parse("--corpus a --lr 1 --corpus b c")
    assert args.corpus == ["a", "b", "c"]


def count_cached_tokens(cache):
    """Count the tokens in the only file of a cache, which has two bytes for each."""
    path, = cache.glob("*.bin")
    return path.stat().st_size // 2


def test_both_of_two_corpora_are_read(toy, tmp_path):
    second = tmp_path / "more.txt"
    second.write_text("w1 w2 w3 .\n" * 50)
    caches = [tmp_path / "cache of one", tmp_path / "cache of two"]
    run_distill(toy, tmp_path / "one", *ONE_STEP, "--cache", caches[0])
    both = ["--corpus", toy / "corpus.txt", "--corpus", second]
    run_distill(toy, tmp_path / "two", *ONE_STEP, "--cache", caches[1], *both)
    added = 50 * 4 + 1                                   # and a [SEP]
    assert count_cached_tokens(caches[1]) == count_cached_tokens(caches[0]) + added


def test_the_given_flags_are_those_on_the_command_line(monkeypatch):
    """Only these may be refused: the others have their default."""
    words = ["--lr", "1", "--no-bf16", "--corpus=--x", "-1", "-- who?", "--text=a b", "--resume"]
    expected = ["--lr", "--bf16", "--corpus", "--text", "--resume"]
    assert given_flags(words) == expected
    monkeypatch.setattr(sys, "argv", ["distill.py", *words])
    assert given_flags(None) == expected


def test_a_refused_flag_is_named_with_the_reason():
    given = ["--lr", "--bf16", "--corpus"]
    refuse_flags(given, ["--steps", "--corp"], "why")     # neither of them is given
    with pytest.raises(ValueError, match="^--bf16: why$"):
        refuse_flags(given, ["--steps", "--bf16"], "why")


# The flags with a whole number, by the smallest one that is allowed.
FROM_0 = ["seed", "eval-every", "adapter-size", "correction-rank", "micro-batch-size", "warmup"]
FROM_1 = ["log-every", "save-every", "num-hidden-layers", "num-hidden-groups", "hidden-size",
          "embedding-size", "num-attention-heads", "intermediate-size", "steps", "batch-size"]
FROM_3 = ["length"]
# The flags with a number that is at least 0 and need not be whole.
NUMBERS = ["mlm-weight", "attention-weight", "hidden-weight", "output-weight", "embedding-weight",
           "elastic", "lr", "weight-decay"]


def refused_values():
    """List (flag, value that is refused, what the error says about it)."""
    cases = []
    for smallest, flags in ((0, FROM_0), (1, FROM_1), (3, FROM_3)):
        for flag in flags:
            for value in (smallest - 1, LARGEST_INTEGER + 1):
                cases.append((flag, value, f"{value} is not from {smallest} to {LARGEST_INTEGER}"))
            for value in ("1.5", "many", ""):
                cases.append((flag, value, f"invalid whole_number value: '{value}'"))
    for flag in NUMBERS:
        for value in (-0.1, "nan", "inf", 2**31):
            cases.append((flag, value, f"{value} is not at least 0 and below 2147483648"))
        cases.append((flag, "much", "invalid number value: 'much'"))
    for value in (0, -1, "nan", "inf", 1000):
        cases.append(("temperature", value, f"{value} is not at least 0.001 and below 1000"))
    for value in (1, -0.1, "nan"):
        cases.append(("dropout", value, f"{value} is not at least 0 and below 1"))
    return cases


def allowed_values():
    """List (flag, allowed value): the ends of each range, and some values between them."""
    cases = [("length", 3), ("length", LARGEST_INTEGER)]
    # More steps of warm-up than steps are refused.
    cases += [("warmup", 0), ("warmup", RECIPES["quick"]["steps"])]
    for flag in FROM_0:
        if flag != "warmup":
            cases += [(flag, 0), (flag, LARGEST_INTEGER)]
    for flag in FROM_1:
        cases += [(flag, 1), (flag, LARGEST_INTEGER)]
    for flag in NUMBERS:
        cases += [(flag, 0), (flag, 1e-9), (flag, 2e9)]
    cases += [("temperature", 0.001), ("temperature", 999), ("dropout", 0), ("dropout", 0.999)]
    return cases


@pytest.mark.parametrize("flag, value, words", refused_values())
def test_a_number_out_of_its_range_is_refused_by_flag_and_range(flag, value, words):
    with pytest.raises(ValueError) as caught:
        distill.arguments([f"--{flag}={value}"])
    assert str(caught.value) == f"argument --{flag}: {words}"


def test_the_ends_of_the_ranges_are_allowed():
    for flag, value in allowed_values():
        args = distill.arguments([f"--{flag}={value}"])
        assert getattr(args, flag.replace("-", "_")) == value, flag


def test_every_flag_with_a_number_is_tested_above():
    """A new flag must be added to one of the lists."""
    tested = FROM_0 + FROM_1 + FROM_3 + NUMBERS + ["temperature", "dropout"]
    for name, default in vars(parse("")).items():
        is_number = type(default) in (int, float)
        is_size = Config.__annotations__.get(name) is int
        if is_number or is_size:
            assert name.replace("_", "-") in tested


# {name of an error: (the flags, words of its message)}
ERRORS = {
    "recursions that do not divide": ("--num-hidden-layers 3", "3 recursions"),
    "more tokens than positions": ("--length 33", "--length 33"),
    "another vocabulary": ("--tokenizer {toy}/large", "its tokens are not those"),
    "widths that differ": ("--hidden-size 30 --init random", "hidden_size of"),
    "heads that differ": ("--num-attention-heads 4", "num_attention_heads of"),
    "a student with other heads": ("--student {toy}/heads", "num_attention_heads of"),
    "a start from other heads": (
        "--num-attention-heads 4 --attention-weight 0",
        "num_attention_heads of"),
    "a temperature of nothing": ("--temperature 2 --output-weight 0", "--temperature"),
    "a start from another width": ("--hidden-size 30 --hidden-weight 0", "hidden_size of"),
    "embeddings of other widths": (
        "--hidden-size 30 --hidden-weight 0 --init random --embedding-weight 1",
        "hidden_size of"),
    "a start from other widths": ("--intermediate-size 39", "intermediate_size of"),
    "a start wider than the teacher": ("--embedding-size 25", "--embedding-size 25"),
    "a start of more layers": (
        "--num-hidden-layers 8 --num-hidden-groups 8",
        "--num-hidden-groups 8: the teacher has only 4 layers"),
    "a start without a projection": (
        "--teacher {toy}/wide --embedding-size 24",
        "--embedding-size 24: this is the student's hidden_size"),
    "a student with another vocabulary": ("--student {toy}/student", "vocab_size of"),
    "a teacher of fewer positions": (
        "--student {toy}/student --length 33",
        "the teacher has only 32 positions"),
    "a student of fewer words": (
        "--teacher none --student {toy}/teacher --tokenizer {toy}/large",
        "its tokens are not those of the student"),
    "an --out in the corpus": ("--corpus {toy} --out {toy}/new/run", "new/run is in the corpus"),
    "a student too large": (
        "--hidden-size 1048576 --num-attention-heads 1 --intermediate-size 16777216 "
        "--init random --hidden-weight 0 --attention-weight 0",
        "the student would have 52,"),
    "adapters too large": ("--adapter-size 16000000", "the student would have 3,"),
    "--student with a shape": (
        "--student {toy}/teacher --adapter-size 2",
        "--adapter-size: the model in --student"),
    "--student with --init": (
        "--student {toy}/teacher --init sharp",
        "--init: the model in --student"),
    "no tokenizer": ("--teacher none", "--tokenizer"),
    "a start from no teacher": ("--teacher none --init teacher", "--init"),
    "all weights zero": (
        "--mlm-weight 0 --attention-weight 0 --hidden-weight 0 --output-weight 0 "
        "--embedding-weight 0",
        "no loss"),
    "no steps": ("--steps 0", "--steps"),
    "too short": ("--length 2", "--length: 2"),
    "heads that do not divide": ("--num-attention-heads 5", "num_attention_heads 5"),
    "no such flag": ("--learning-rate 1", "--learning-rate"),
    "an abbreviated flag": ("--step 3", "--step"),
    "both again flags": ("--resume --overwrite", "--overwrite"),
    "no such teacher": ("--teacher {toy}/none/such", "none/such"),
    "no such corpus": ("--corpus {toy}/none.txt", "none.txt"),
    "too little text": (
        "--corpus {toy}/little.txt",
        "little.txt, its part to train on: not long enough"),
    "a part to hold out too short": (
        "--corpus {toy}/short.txt",
        "short.txt, its held-out part (a fiftieth of it): not long enough for --length "
        "16: 4 tok"),
    "another tokenizer's tokens": ("--corpus {toy}/other.bin", "other.bin"),
    "an --out that is a file": ("--out {toy}/corpus.txt", "corpus.txt"),
    "an --out in use": ("--out {toy}/teacher", "--out"),
    "no GPU": ("--device cuda", "--device cuda"),
}


def flags_of_error(name, toy):
    """List the flags of one of the ERRORS."""
    flags, _ = ERRORS[name]
    return [word.format(toy=toy) for word in flags.split()]


@pytest.fixture(scope="session")
def mistakes(toy):
    """Add to the toy folder what the errors need: a larger vocabulary, a student that has it and
    more positions, a student with other heads, a teacher whose embeddings are wider than the rest,
    too little text, tokens of another tokenizer."""
    os.makedirs(toy / "large")
    words = (toy / "teacher" / "vocab.txt").read_text().split()
    words += [f"x{i}" for i in range(9)]
    (toy / "large" / "vocab.txt").write_text("\n".join(words) + "\n")
    save(noisy_student(vocab_size=V + 4, max_position_embeddings=40), toy / "student")
    save(noisy_student(num_attention_heads=4), toy / "heads")
    save(noisy_teacher(embedding_size=30), toy / "wide")
    shutil.copy(toy / "teacher" / "vocab.txt", toy / "wide")
    (toy / "little.txt").write_text("w1 w2 w3 .\n")
    (toy / "short.txt").write_text("w1 w2 w3 . " * 60 + "\n")            # 240 tokens: 4 held out
    tokenise([f"{toy}/corpus.txt"], Tokenizer(f"{toy}/large"), f"{toy}/other.bin")
    return toy


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_of_the_user_is_one_line_and_nothing_is_written(mistakes, out, name, capsys):
    files_before = files_below(mistakes)
    error = error_of_run(capsys, mistakes, out, *flags_of_error(name, mistakes))
    lines = error.splitlines()
    _, words = ERRORS[name]
    assert lines[-1].startswith("distill.py: error: ")
    assert words in lines[-1]
    if name not in ("too little text", "a part to hold out too short"):
        assert len(lines) == 1                           # for these two data.py has a warning
    assert not out.exists()
    assert files_below(mistakes).items() >= files_before.items()


@pytest.mark.parametrize("name", [
    "widths that differ", "heads that differ", "a start from other widths",
    "a start wider than the teacher", "a start without a projection",
    "a student with another vocabulary"])
def test_the_remedies_that_the_errors_name_are_enough(mistakes, out, name, capsys):
    more = flags_of_error(name, mistakes) + ONE_STEP
    num_remedies = 0
    while distill.main(distill_flags(mistakes, out, *more)) == 2:
        error = capsys.readouterr().err
        remedy = re.search("(to allow this, say|; use) (--.*)", error)[2]
        more += remedy.split()
        num_remedies += 1
    assert 1 <= num_remedies <= 2                        # one for the losses, one for the start


def test_help_names_each_flag_with_its_default(capsys):
    defaults = {}
    for name, value in vars(parse("")).items():
        defaults["--" + name.replace("_", "-")] = value
    assert_help_names_flags(printed_help(capsys, distill.main), defaults)


def test_help_names_the_defaults_of_the_other_recipes(capsys):
    """Those of full stand in brackets behind those of quick, if they differ from them."""
    printed = printed_help(capsys, distill.main)
    for name, value in RECIPES["full"].items():
        quick = RECIPES["quick"][name]
        if name == "lr":
            assert value == 5e-4
            assert quick is None                         # run() chooses it
            assert "0.384 divided by the hidden size, but at most 0.003 [0.0005])" in printed
        elif value != quick:
            default = rf"{quick:,g} \[{value:,g}\](, but at most a tenth[^)]*)?\)"
            assert re.search(default, printed), name
    assert "with the teacher's (default: 10; paper: 3)" in printed
    assert "from the teacher's (default: 3; paper: 3 / 256)" in printed
