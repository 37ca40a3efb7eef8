"""The code for GPUs, on a machine without one: tests/fake_cuda.py lends a device to a process.

It cannot be taken back, so all checks run in another process, which returns their errors to the
test at the end of this file.
"""
import functools
import io
import os
import shutil
import signal
import sys
import tempfile
import traceback
from contextlib import redirect_stdout
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException

import distill
import finetune
from checkpoint import save
from conftest import C, T, V, call_forked, make_task_of_kind, random_model
from data import MaskedBatches
from distill import Processes, TrainingOptions
from fake_cuda import fake_cuda, lend_cuda

DEVICE = torch.device("cuda", 0)
STUDENT = {"num_hidden_layers": 2, "adapter_size": 4, "correction_rank": 3,
           "hidden_dropout_prob": 0.1}
BERT = {"num_hidden_layers": 2, "num_hidden_groups": 2, "embedding_size": C}
BATCH_SIZE = 4
# Of two steps the first one is ordinary; the last one logs, evaluates and saves.
SCHEDULE = {"steps": 2, "log_every": 2, "eval_every": 0, "save_every": 100}
LABELS_OF_KIND = {"classification": ["a", "b", "c"], "regression": [], "tagging": ["B-x", "O"],
                  "qa": []}


# ---- Small runs on the fake device ------------------------------------------------------

class Observed:
    """An objective that tells a FakeCuda which step begins, counted from 1. In the step stop_in the
    process gets the signal to stop."""

    def __init__(self, objective, cuda, stop_in=None):
        self.objective = objective
        self.cuda = cuda
        self.stop_in = stop_in
        self.loss_weights = objective.loss_weights
        self.tokens_per_step = objective.tokens_per_step

    def losses_of_micro_batches(self, step):
        self.cuda.step = step + 1
        if self.cuda.step == self.stop_in:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.objective.losses_of_micro_batches(step)


def train(model, objective, evaluate_model, save_model, world_size=1):
    """Train a model as SCHEDULE says. All its parameters stay on the device."""
    with tempfile.TemporaryDirectory() as out:
        options = TrainingOptions(lr=0.001, warmup=1, weight_decay=0.1, seed=0, out=out,
                                  resume=False, **SCHEDULE)
        processes = Processes(world_size=world_size, device=DEVICE)
        run_state = distill.begin_or_resume(model, options, {}, processes)

        def save_into_out():
            save_model(out)

        distill.train(objective, run_state, options, evaluate_model, save_into_out, processes)
    assert {parameter.device for parameter in model.parameters()} == {DEVICE}


def save_nothing(out):
    """Stand in for a function that writes a model."""


def make_batches():
    """Make batches of masked random text, BATCH_SIZE sequences in each."""
    tokenizer = SimpleNamespace(cls_id=1, sep_id=2, mask_id=3, special_ids=np.arange(5),
                                ordinary_ids=np.arange(5, V), vocab_size=V)
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, V, 2 * BATCH_SIZE * T)      # of two batches
    return MaskedBatches(tokens, tokenizer, T, BATCH_SIZE)


def make_distillation(has_teacher, bf16, micro_batch_size=0, compile_losses=False):
    """Make a Distillation whose models are still on the CPU."""
    teacher = None
    weights = {"mlm": 1.0}
    if has_teacher:
        teacher = random_model(**BERT)
        weights = {"mlm": 1.0, "attention": 3.0, "hidden": 3.0, "output": 5.0, "embedding": 1.0,
                   "elastic": 2.5}
        if bf16:
            distill.cast_linear_layers(teacher)
    student = random_model(**STUDENT)
    return distill.Distillation(student, teacher, make_batches(), weights, 2.0, micro_batch_size,
                                None, bf16, compile_losses)


def two_passes(passes):
    """Stand in for measuring_bar: the first pass compiles, the second one might do it again."""
    return passes[:2]


def run_distill(has_teacher=True, bf16=True, micro_batch_size=0, stop_in=None,
                compile_losses=False):
    """Distil on the fake device -> {step in which the program waited for it: the lines}."""
    distillation = make_distillation(has_teacher, bf16, micro_batch_size, compile_losses)
    student = distillation.student
    with fake_cuda() as cuda:
        student.to(DEVICE)
        if has_teacher:
            distillation.teacher.to(DEVICE)
        if compile_losses:
            with mock.patch("distill.measuring_bar", two_passes):
                distill.seconds_of_a_step(distillation)

        def evaluate_student():
            with distill.autocast(DEVICE, bf16):
                return distill.evaluate(student, distillation.batches)

        def save_student(out):
            save(student, out)

        train(student, Observed(distillation, cuda, stop_in), evaluate_student, save_student)
    return cuda.waits


def make_features(kind):
    """Make the Features of two batches for a kind of task."""
    rng = np.random.default_rng(0)
    features = []
    for i in range(2 * BATCH_SIZE):
        prefix_length = 1
        positions = [0]
        labels = [1]
        if kind == "tagging":
            positions = [1, 3]
            labels = [0, 1]
        elif kind == "qa":
            prefix_length = 3
            positions = [3, 4, 5]
            labels = [3, 4]
        ids = rng.integers(5, V, T)
        features.append(finetune.Feature(ids, prefix_length, i, positions, positions, labels))
    return features


def run_finetune(kind, has_teacher, bf16, micro_batch_size=0, world_size=1):
    """Fine-tune on the fake device -> {step in which the program waited for it: the lines}."""
    task = make_task_of_kind(kind, LABELS_OF_KIND[kind])
    features = make_features(kind)
    model = finetune.Classifier(random_model(head=False, num_hidden_layers=1), task)
    teacher = None
    if has_teacher:
        teacher = finetune.Classifier(random_model(head=False, **BERT), task)
    with fake_cuda() as cuda:
        model.to(DEVICE)
        if has_teacher:
            teacher.to(DEVICE)
        task_loss = finetune.TaskLoss(model, features, BATCH_SIZE, 0, teacher,
                                      hidden_weight=3.0, micro_batch_size=micro_batch_size,
                                      bf16=bf16)
        learns_hidden = "hidden" in task_loss.loss_weights
        assert learns_hidden == has_teacher

        def evaluate_model():
            with distill.autocast(DEVICE, bf16):
                logits = finetune.predict_logits(model, features)
            return {"count": len(logits)}

        train(model, Observed(task_loss, cuda), evaluate_model, save_nothing, world_size)
    return cuda.waits


# ---- The checks -------------------------------------------------------------------------

def check_distill(has_teacher, bf16, micro_batch_size):
    """Only the step that logs, evaluates and saves waits."""
    waits = run_distill(has_teacher, bf16, micro_batch_size)
    assert set(waits) == {2}, waits


def check_finetune(kind, has_teacher, bf16, micro_batch_size):
    """Only the step that logs, evaluates and saves waits."""
    waits = run_finetune(kind, has_teacher, bf16, micro_batch_size)
    assert set(waits) == {2}, waits


def check_two_processes():
    """The first of two processes waits only in the step that logs, evaluates and saves."""
    summed = []                                          # the dtypes of the tensors

    def broadcast(tensor, src):
        assert tensor.device == DEVICE

    def all_reduce(tensor):
        assert tensor.device == DEVICE
        summed.append(tensor.dtype)

    with mock.patch("distill.dist.broadcast", broadcast), \
            mock.patch("distill.dist.all_reduce", all_reduce):
        waits = run_finetune("classification", has_teacher=False, bf16=True, world_size=2)
    assert set(waits) == {2}, waits
    # In each step the gradients are summed, and in the second one also the number of signals.
    assert summed == [torch.float32, torch.float32, torch.int64]


def check_stop():
    """A signal in the first step ends the run after this step, although it logs nothing."""
    with pytest.raises(SystemExit) as stopped, redirect_stdout(io.StringIO()) as printed:
        run_distill(has_teacher=False, stop_in=1)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "stopped after step 1 of 2" in printed.getvalue()


def check_wait_is_found():
    """The checks above would notice copies that wait, so they mean something."""
    def copy_from_pageable_memory(device, *arrays):
        return [torch.from_numpy(array).to(device, non_blocking=True) for array in arrays]

    with mock.patch("distill.to_device", copy_from_pageable_memory):
        waits = run_distill(has_teacher=False)
    assert set(waits) == {1, 2}, waits


def check_tensor_on_cpu_is_refused():
    """The fake device notices labels that stay on the CPU, as a GPU does."""
    to_device = distill.to_device

    def copy_all_but_labels(device, ids, positions, labels, depths):
        ids, positions, depths = to_device(device, ids, positions, depths)
        return [ids, positions, torch.from_numpy(labels), depths]

    with mock.patch("distill.to_device", copy_all_but_labels):
        with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
            run_distill(has_teacher=False)


def check_index_on_cpu_is_found():
    """A GPU accepts the depths of the elastic loss from the CPU, but must wait for their copy."""
    to_device = distill.to_device

    def copy_all_but_depths(device, ids, positions, labels, depths=None):
        tensors = to_device(device, ids, positions, labels)
        if depths is not None:
            tensors.append(torch.from_numpy(depths))
        return tensors

    with mock.patch("distill.to_device", copy_all_but_depths):
        waits = run_distill()
    assert set(waits) == {1, 2}, waits


def check_product_of_two_dtypes_is_refused():
    """The fake device notices weights in bfloat16 and states in float32 without autocast."""
    model = random_model(**BERT)
    distill.cast_linear_layers(model)
    with fake_cuda():
        model.to(DEVICE)
        ids = torch.zeros((BATCH_SIZE, T), dtype=torch.long, device=DEVICE)
        with pytest.raises(RuntimeError, match="dtypes"):
            model(ids)


def check_boolean_mask_is_refused():
    """The GPU must be waited for to know how many numbers a mask selects."""
    with fake_cuda():
        x = torch.zeros(3, device=DEVICE)
        is_positive = x > 0
        with pytest.raises(DynamicOutputShapeException):
            x[is_positive]


def dtypes_with_autocast(model, device):
    """Return the dtypes of all hidden states, of an attention map and of logits."""
    model.to(device)
    ids = torch.zeros((BATCH_SIZE, T), dtype=torch.long, device=device)
    with distill.autocast(device, bf16=True):
        hidden, attention = model(ids, maps=[0])
        logits = model.predict(hidden[-1][:, 0])
    assert {state.dtype for state in hidden} == {torch.bfloat16}
    return [tensor.dtype for tensor in hidden + [attention[0], logits]]


def check_dtypes(shape, is_cast):
    """--bf16 means the same on a CPU as on a GPU."""
    model = random_model(**shape)
    if is_cast:
        distill.cast_linear_layers(model)
    on_cpu = dtypes_with_autocast(model, torch.device("cpu"))
    with fake_cuda():
        on_cuda = dtypes_with_autocast(model, DEVICE)
    assert on_cuda == on_cpu


def check_one_graph():
    """seconds_of_a_step compiles what training runs, and nothing interrupts the graph. Only the
    step that logs, evaluates and saves waits."""
    compile_in_one_piece = functools.partial(torch.compile, backend="eager", fullgraph=True)
    with mock.patch("torch.compile", compile_in_one_piece):
        waits = run_distill(compile_losses=True)
    assert set(waits) == {2}, waits
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


# Each check and its arguments. Those of check_distill are has_teacher, bf16 and micro_batch_size;
# check_finetune has the kind of the task before them.
CHECKS = {
    "distill in float32": (check_distill, True, False, 0),
    "distill without a teacher, with micro-batches": (check_distill, False, True, 2),
    "finetune in float32, without a teacher":
        (check_finetune, "classification", False, False, 0),
    "classification": (check_finetune, "classification", True, True, 0),
    "regression": (check_finetune, "regression", True, True, 0),
    "tagging": (check_finetune, "tagging", True, True, 0),
    "qa, with micro-batches": (check_finetune, "qa", True, True, 2),
    "two processes": (check_two_processes,),
    "a signal stops a run": (check_stop,),
    "a wait is found": (check_wait_is_found,),
    "a tensor on the CPU is refused": (check_tensor_on_cpu_is_refused,),
    "an index on the CPU is found": (check_index_on_cpu_is_found,),
    "a product of two dtypes is refused": (check_product_of_two_dtypes_is_refused,),
    "a boolean mask is refused": (check_boolean_mask_is_refused,),
    "dtypes in a student": (check_dtypes, STUDENT, False),
    "dtypes in a BERT": (check_dtypes, BERT, False),
    "dtypes in a teacher that was cast": (check_dtypes, BERT, True),
    "distill in bfloat16, in one graph": (check_one_graph,),
}


def run_checks():
    """Run all checks in this process -> {name: its error as text, or None}."""
    lend_cuda()
    errors = {}
    for name, entry in CHECKS.items():
        check = entry[0]
        arguments = entry[1:]
        errors[name] = None
        try:
            check(*arguments)
        except (Exception, pytest.fail.Exception):
            errors[name] = traceback.format_exc()
    return errors


def test_the_checks_on_a_fake_gpu_hold(forked):
    """One test for all checks: two processes that share the tests would make them twice."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("to lend a fake GPU to torch needs Linux and g++")
    if torch.version.cuda is not None:
        pytest.skip("a torch that was built for CUDA looks for the real library")
    errors = call_forked(forked, run_checks)
    assert errors.keys() == CHECKS.keys()
    for name, error in errors.items():
        assert error is None, f"{name}: {error}"
