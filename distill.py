"""Distil a BERT teacher into a recursive student, as MiniALBERT does
(arXiv 2210.06425).

    python distill.py
        the embedded teacher, the documentation on this machine: some minutes
    python distill.py --teacher bert-base-uncased --corpus wiki/ --out out/mini
        the real thing, on a GPU
    torchrun --nproc_per_node 8 distill.py --teacher bert-base-uncased \\
        --corpus wiki/
        the same on eight GPUs
    python distill.py --teacher none --tokenizer DIR --num-hidden-groups 6
        no teacher: how a BERT is pre-trained

The student learns to predict masked words, and to do as the teacher does:

    loss = 1 * MLM + 3 * attention + 3 * hidden + 5 * output
"""
import argparse
import ctypes
import glob
import hashlib
import json
import math
import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

from checkpoint import (MODEL_FILES, fetch, load, restore_training_state, save,
                        save_training_state)
from data import (CACHE, NEEDED_FOR_TOKENIZER, OPTIONAL_FOR_TOKENIZER, CommandParser,
                  MaskedBatches, Tokenizer, open_corpus, run_command)
from minialbert import Config, MiniALBERT, count_parameters, initialise

# The factors of the losses in the paper. The embedding loss is one of its ablations.
LOSS_WEIGHTS = {"mlm": 1.0, "attention": 3.0, "hidden": 3.0, "output": 5.0, "embedding": 0.0}


# ---- The losses -------------------------------------------------------------------------
# Each is a sum over tokens or masked places. Distillation divides it once, by their number in
# the whole batch, so that the parts of micro-batches and of processes add up to the mean.

def attention_loss(student, teacher):
    """Compare the attention maps of two layers: KL(teacher || student).

    Both are log-probabilities (B, H, T, T). KL = sum over j of p_ij (log p_ij - log q_ij) for
    the teacher's p and the student's q, where token i looks at token j. It is divided by T and
    by H, and summed over the B * T tokens i. Divided by B * T it is the mean over all elements
    that the authors' KLDivLoss takes.
    """
    _, H, T, _ = student.shape
    total = F.kl_div(student, teacher, reduction="sum", log_target=True)
    return total / (H * T)


def hidden_loss(student, teacher):
    """Compare hidden states (B, T, C): 1 - cosine, summed over the B * T tokens."""
    cosine = F.cosine_similarity(student.float(), teacher.float(), dim=-1)    # (B, T)
    return (1 - cosine).sum()


def output_loss(student, teacher, temperature=1.0):
    """Compare predictions, logits (M, V): temperature^2 * KL(teacher || student), summed over M.

    A temperature above 1 flattens both distributions. The square keeps the size of the gradient
    (Hinton et al. 2015).
    """
    log_student = (student.float() / temperature).log_softmax(-1)
    log_teacher = (teacher.float() / temperature).log_softmax(-1)
    divergence = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return temperature**2 * divergence


def mlm_loss(logits, labels):
    """Compute the cross-entropy (nats) of logits (M, V) with true tokens (M,), summed over M."""
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def match_layers(num_recursions, num_layers):
    """Pair each recursion r of a student with a layer of its teacher: [(r, layer)], from 0.

    The layers are evenly spread and the last is among them: 2, 4, ..., 12 (counted from 1) for 6
    recursions and 12 layers, as in the paper. ValueError if the numbers do not divide.
    """
    if num_layers % num_recursions != 0:
        divisors = [n for n in range(1, num_layers + 1) if num_layers % n == 0]
        raise ValueError(f"{num_recursions} recursions cannot be spread evenly over the "
                         f"teacher's {num_layers} layers, but any of {divisors} can")
    layers_per_recursion = num_layers // num_recursions
    return [(r, (r + 1) * layers_per_recursion - 1) for r in range(num_recursions)]


class Distillation:
    """The losses of a student on batches of masked text. The teacher, if any, is frozen.

    batches: a MaskedBatches
    weights: {name of a loss: its factor}; only these losses are computed
    micro_batch_size: sequences in the models at once; 0: all of this process's share of a batch
    bf16: multiply matrices in bfloat16
    compile_losses: let torch.compile fuse the operations
    """

    def __init__(self, student, teacher, batches, weights, temperature=1.0, micro_batch_size=0,
                 processes=None, bf16=False, compile_losses=False):
        self.student = student
        self.teacher = teacher
        self.batches = batches
        self.weights = weights
        self.temperature = temperature
        self.bf16 = bf16
        self.tokens_per_step = batches.batch_size * batches.T
        self.micro_batch_bounds = split_batch(batches.batch_size, micro_batch_size, processes)
        if teacher is not None:
            teacher.requires_grad_(False)
            teacher.eval()                               # its dropout stays off
        self.pairs = []                                  # (student's recursion, teacher's layer)
        if "attention" in weights or "hidden" in weights:
            self.pairs = match_layers(student.config.num_hidden_layers,
                                      teacher.config.num_hidden_layers)
        self.student_maps = []                           # the maps that the models have to return
        self.teacher_maps = []
        if "attention" in weights:
            self.student_maps = [r for r, _ in self.pairs]
            self.teacher_maps = [layer for _, layer in self.pairs]
        self.compute = self.losses
        if compile_losses:
            self.compute = torch.compile(self.losses)

    def losses(self, ids, positions, labels, num_masked):
        """Compute a micro-batch's part of each loss: {name: scalar}.

        ids (b, T) are masked; positions (m,) are the masked places in the flattened ids, labels
        (m,) the true tokens there; num_masked is M, the number of masked places in the batch.
        """
        hidden, attention = self.student(ids, maps=self.student_maps)
        if self.student.head is not None:
            masked_states = hidden[-1].flatten(0, 1)[positions]               # (m, C)
            logits = self.student.predict(masked_states)                      # (m, V)
        if set(self.weights) != {"mlm"}:
            teacher_hidden, teacher_attention = self.teacher(ids, maps=self.teacher_maps)

        losses = {}
        if "mlm" in self.weights:
            losses["mlm"] = mlm_loss(logits, labels) / num_masked
        if "attention" in self.weights:
            total = sum(attention_loss(attention[r], teacher_attention[layer])
                        for r, layer in self.pairs)
            losses["attention"] = total / self.tokens_per_step
        if "hidden" in self.weights:
            # hidden[0] are the embeddings, so hidden[r + 1] is the output of recursion r.
            total = sum(hidden_loss(hidden[r + 1], teacher_hidden[layer + 1])
                        for r, layer in self.pairs)
            losses["hidden"] = total / self.tokens_per_step
        if "output" in self.weights:
            teacher_states = teacher_hidden[-1].flatten(0, 1)[positions]      # (m, C)
            teacher_logits = self.teacher.predict(teacher_states)             # (m, V)
            divergence = output_loss(logits, teacher_logits, self.temperature)
            losses["output"] = divergence / num_masked
        if "embedding" in self.weights:
            losses["embedding"] = hidden_loss(hidden[0], teacher_hidden[0]) / self.tokens_per_step
        return losses

    def micro_batches(self, step):
        """Yield the losses {name: scalar} of each micro-batch that this process has in a step.

        Summed over the micro-batches of all processes they are the means over the whole batch.
        """
        ids, positions, labels = self.batches.batch(step)
        num_masked = max(1, len(positions))
        T = self.batches.T
        device = device_of(self.student)
        for begin, end in self.micro_batch_bounds:
            inside = (begin * T <= positions) & (positions < end * T)
            ids_part, positions_part, labels_part = to_device(
                device, ids[begin:end], positions[inside] - begin * T, labels[inside])
            with autocast(device, self.bf16):
                losses = self.compute(ids_part, positions_part, labels_part, num_masked)
            yield losses


@torch.inference_mode()
def evaluate(model, batches):
    """Measure MLM accuracy and loss (nats) -> {"accuracy": ..., "loss": ...}; sets eval mode.

    It takes at most 512 sequences, always the same ones with the same masks.
    """
    model.eval()
    num_correct = 0
    total_loss = 0.0
    num_masked = 0
    num_batches = max(1, min(512, batches.count) // batches.batch_size)
    for step in range(num_batches):
        ids, positions, labels = to_device(device_of(model), *batches.batch(step))
        hidden, _ = model(ids)
        logits = model.predict(hidden[-1].flatten(0, 1)[positions])           # (M, V)
        num_correct += (logits.argmax(-1) == labels).sum().item()
        total_loss += mlm_loss(logits, labels).item()
        num_masked += len(labels)
    num_masked = max(1, num_masked)
    return {"accuracy": num_correct / num_masked, "loss": total_loss / num_masked}


# ---- The start from the teacher ---------------------------------------------------------

@torch.no_grad()
def start_from_teacher(student, teacher, ids):
    """Give the student's parameters first values from the teacher's; ids (B, T) are sample text.

    The adapters keep their own. A head starts as the teacher's, if both are of one kind.
    """
    start_embeddings(student.embeddings, teacher.embeddings, ids)
    start_layers(student, teacher)
    same_kind = student.config.tie_decoder == teacher.config.tie_decoder
    if student.head is not None and teacher.head is not None and same_kind:
        student.head.load_state_dict(teacher.head.state_dict())


def start_embeddings(student, teacher, ids):
    """Factorise the teacher's Embeddings: fit tables of width E and a projection from E to C.

    The tables are the teacher's in the E directions in which its embeddings of ids (B, T) vary
    most (their principal components). Then the projection is fitted by least squares to what the
    teacher's embeddings give for these ids.
    """
    if student.project is None:                          # E = C: there is nothing to factorise
        student.load_state_dict(teacher.state_dict())
        return
    T = ids.shape[1]
    E = student.word.embedding_dim
    total = teacher.word(ids) + teacher.position.weight[:T] + teacher.segment.weight[0]
    total = total.flatten(0, 1)                          # (N, C) for N = B * T tokens
    _, eigenvectors = torch.linalg.eigh(total.T @ total)
    basis = eigenvectors[:, -E:]                         # (C, E): those of the largest eigenvalues
    student.word.weight.copy_(teacher.word.weight @ basis)
    student.position.weight.copy_(teacher.position.weight @ basis)
    student.segment.weight.copy_(teacher.segment.weight @ basis)

    narrow = student.norm(total @ basis)                 # (N, E): what the projection will see
    narrow = F.pad(narrow, (0, 1), value=1.0)            # (N, E + 1): a column of 1 for the bias
    wanted = teacher(ids).flatten(0, 1)                  # (N, C)
    # gelsd allows a matrix without full rank: each row of a LayerNorm's output sums to 0.
    solution = torch.linalg.lstsq(narrow, wanted, driver="gelsd").solution    # (E + 1, C)
    student.project.weight.copy_(solution[:-1].T)
    student.project.bias.copy_(solution[-1])


def start_layers(student, teacher):
    """Start each shared layer as the mean of the middle half of the layers that it stands for.

    The outer ones would make it worse: EXPERIMENTS.md has the comparison.
    """
    L = teacher.config.num_hidden_layers
    G = student.config.num_hidden_groups
    for g, layer in enumerate(student.layers):
        group = [teacher.layer_of_recursion(i).state_dict() for i in range(L) if i * G // L == g]
        quarter = len(group) // 4
        middle = group[quarter:len(group) - quarter]
        mean = {}
        for name in middle[0]:
            mean[name] = sum(weights[name] for weights in middle) / len(middle)
        layer.load_state_dict(mean)


# ---- The training loop, the only one ----------------------------------------------------

MAX_GRADIENT_NORM = 1.0


@dataclass
class TrainingOptions:
    """What train() needs to know; the flags of the same names explain it."""
    steps: int
    lr: float
    warmup: int
    weight_decay: float
    seed: int
    log_every: int
    eval_every: int
    save_every: int
    out: str
    resume: bool


def training_step(model, objective, optimizer, step, options, processes):
    """Make one step: forward, backward, update -> ({name: summed loss}, learning rate, norm).

    objective: a Distillation, or anything with its .weights and .micro_batches(step)
    """
    # Every random number is a function of (seed, step): a resumed run draws the same dropout.
    torch.manual_seed((options.seed * 1_000_003 + step) * 1009 + processes.rank)
    model.train()
    totals = {}
    for losses in objective.micro_batches(step):
        loss = sum(objective.weights[name] * value for name, value in losses.items())
        loss.backward()                                  # adds to the gradients
        for name, value in [("loss", loss), *losses.items()]:
            totals[name] = totals.get(name, 0) + value.detach()
    sum_over_processes(model, totals, processes)

    gradient_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM).item()
    lr = learning_rate(step, options)
    check_finite(step, totals, gradient_norm, lr)        # before it can spoil the weights
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return totals, lr, gradient_norm


def train(model, objective, options, settings, evaluate_model, save_model, processes):
    """Train the model with AdamW for options.steps steps, and write checkpoints and a log.

    settings: a dict of what a resumed run must have in common with the run that it goes on with
    evaluate_model(): returns {name: value} for the log
    save_model(): writes the model; it is called after each checkpoint of the training state

    A run that was stopped or killed and then resumed ends like one that was not, on a CPU bit
    for bit. After SIGINT or SIGTERM the step is finished and saved, then the program exits.
    """
    optimizer = make_optimizer(model, options.weight_decay)
    state = training_state(model, optimizer)
    state_path = os.path.join(options.out, "training.safetensors")
    first_step = 0
    log_size = 0
    if options.resume and os.path.exists(state_path):
        first_step, log_size = restore_training_state(state_path, state, settings)
    broadcast(state, processes)
    is_main = processes.rank == 0
    if is_main:
        log = open_log(options.out, log_size)
        if first_step > 0:
            # The run may have been killed after its checkpoint and before its model was saved.
            save_model()
    last_logged = first_step
    clock = time.perf_counter()
    with noted_signals() as signals:
        for step in progress_bar(first_step, options.steps, processes):
            totals, lr, gradient_norm = training_step(
                model, objective, optimizer, step, options, processes)
            done = step + 1
            is_last = done == options.steps
            stop = in_any_process(len(signals) > 0, processes)

            evaluates = is_last
            if options.eval_every > 0 and done % options.eval_every == 0:
                evaluates = True
            if is_main and (evaluates or done % options.log_every == 0):
                seconds = time.perf_counter() - clock
                line = {"step": done}
                for name, value in totals.items():
                    line[name] = value.item()
                line["lr"] = lr
                line["gradient_norm"] = gradient_norm
                num_tokens = objective.tokens_per_step * (done - last_logged)
                line["tokens_per_second"] = round(num_tokens / seconds)
                if evaluates:
                    for name, value in evaluate_model().items():
                        line[f"valid_{name}"] = value
                print(json.dumps(line), file=log, flush=True)
                last_logged = done
                clock = time.perf_counter()              # without the time of the evaluation

            if is_main and (stop or is_last or done % options.save_every == 0):
                save_training_state(state_path, state, done, log.tell(), settings)
                save_model()
            if stop and not is_last:
                print(f"\nstopped after step {done} of {options.steps}: "
                      "--resume goes on from there")
                # 128 + the signal's number is what a shell reports. A process that received
                # none stops because another one did.
                received = signals + [signal.SIGTERM]
                raise SystemExit(128 + received[0])


def learning_rate(step, options):
    """Return the rate of a step (from 0): it grows linearly over the warm-up, then falls to 0."""
    done = step + 1
    growing = done / max(1, options.warmup)
    falling = (options.steps - step) / max(1, options.steps - options.warmup)
    return options.lr * min(growing, falling)


def check_finite(step, totals, gradient_norm, lr):
    """Raise FloatingPointError, with all losses, if the gradient's norm is inf or nan."""
    if not math.isfinite(gradient_norm):
        losses = ", ".join(f"{name} {value:g}" for name, value in totals.items())
        raise FloatingPointError(f"step {step + 1}, learning rate {lr:g}: {losses}, gradient norm "
                                 f"{gradient_norm:g}; the last checkpoint is intact")


def make_optimizer(model, weight_decay):
    """Make AdamW for all parameters that are trained; biases and LayerNorms do not decay.

    Its state (two running means and a count for each parameter) is what torch itself would make
    at the first step. It is made here, so that it can be restored before the first step.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay},
              {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, fused=True)
    for parameter in trained:
        optimizer.state[parameter] = {
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
            "step": torch.zeros((), device=parameter.device)}
    return optimizer


def training_state(model, optimizer):
    """Collect all tensors that training changes: {"model." or "exp_avg." ... + name: tensor}.

    They are the tensors themselves, not copies: what is copied into them is restored.
    """
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            state[f"model.{name}"] = parameter
            for key, tensor in optimizer.state[parameter].items():
                state[f"{key}.{name}"] = tensor
    return state


# ---- From here on: plumbing. The loop's log, progress bar and signals -------------------

def open_log(out, size):
    """Open out/log.jsonl for appending, cut to its size at the last checkpoint: a run that was
    killed may have written more."""
    log = open(os.path.join(out, "log.jsonl"), "a", encoding="utf-8")
    current_size = log.tell()
    log.seek(log.truncate(min(size, current_size)))
    return log


def progress_bar(first_step, steps, processes):
    """Count the steps, with a progress bar if this is the first process and in a terminal."""
    disable = None                                       # None: only shown in a terminal
    if processes.rank > 0:
        disable = True
    return tqdm(range(first_step, steps), disable=disable)


@contextmanager
def noted_signals():
    """Put SIGINT (Ctrl-C) and SIGTERM into a list while the with block runs: [number, ...]."""
    received = []

    def note(number, frame):
        received.append(number)

    handlers = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        handlers[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# ---- Processes and devices --------------------------------------------------------------

class Processes(NamedTuple):
    """This process among all that torchrun started, or the only one."""
    rank: int = 0                   # its number among all processes
    local_rank: int = 0             # its number among those on this machine
    world: int = 1                  # how many there are
    device: torch.device = torch.device("cpu")


def set_up_processes(device_name, batch_size):
    """Join the processes that torchrun started, if any -> Processes. Then only rank 0 prints.

    device_name: auto (a GPU if there is one), cpu or cuda. ValueError if it is not to be had, or
    if a batch has fewer sequences than there are processes.
    """
    rank = int(os.environ.get("RANK", 0))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    world = int(os.environ.get("WORLD_SIZE", 1))
    if batch_size < world:
        raise ValueError(f"--batch-size {batch_size} is less than one sequence for each of the "
                         f"{world} processes")
    if device_name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU here")
    device = torch.device("cpu")
    if device_name != "cpu" and torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
    if world > 1:
        timeout = timedelta(hours=12)                    # one process may tokenise for long
        if device.type == "cuda":
            dist.init_process_group("nccl", timeout=timeout, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=timeout)
    if rank > 0:
        sys.stdout = open(os.devnull, "w")
    keep_freed_memory()
    return Processes(rank, local_rank, world, device)


def keep_freed_memory():
    """Tell the C library never to give freed memory back: the next step needs it again.

    Without this each step on a CPU gives back and gets anew up to hundreds of megabytes, which
    costs 5 to 25 % of its time. The numbers are glibc's names for what is set.
    """
    M_TRIM_THRESHOLD = -1
    M_MMAP_MAX = -4
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):                     # some systems have another C library
            libc.mallopt(M_TRIM_THRESHOLD, -1)
            libc.mallopt(M_MMAP_MAX, 0)


@contextmanager
def first_process_first(processes):
    """Let the first process of each machine run the with block before the others: it downloads or
    tokenises, and the others find what it made."""
    if processes.local_rank > 0:
        dist.barrier()
    yield
    if processes.world > 1 and processes.local_rank == 0:
        dist.barrier()


def split_batch(batch_size, micro_batch_size, processes):
    """List the micro-batches of this process, [(first row, one past the last), ...].

    micro_batch_size 0: one micro-batch for each process. The last one may be shorter, or empty.
    """
    if processes is None:
        processes = Processes()
    size = batch_size // processes.world
    if micro_batch_size > 0:
        size = min(size, micro_batch_size)
    begins = range(processes.rank * size, batch_size, processes.world * size)
    return [(begin, begin + size) for begin in begins]


def sum_over_processes(model, totals, processes):
    """Sum the gradients and the losses {name: scalar} over all processes, in place."""
    if processes.world > 1:
        for parameter in model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
        for value in totals.values():
            dist.all_reduce(value)


def in_any_process(condition, processes):
    """Tell whether the condition is true in any process."""
    if processes.world == 1:
        return condition
    count = torch.tensor(float(condition), device=processes.device)
    dist.all_reduce(count)
    return count.item() > 0


def broadcast(state, processes):
    """Give all processes the numbers of rank 0: other machines may have rounded otherwise."""
    if processes.world > 1:
        for tensor in state.values():
            dist.broadcast(tensor.detach(), 0)


def autocast(device, bf16):
    """Make a context in which matrices are multiplied in bfloat16, if bf16 is True."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def uses_bf16(flag, device):
    """Return the flag --bf16, or what it means if it is not given: bfloat16 on a GPU."""
    if flag is None:
        return device.type == "cuda"
    return flag


def device_of(model):
    return next(model.parameters()).device


def to_device(device, *arrays):
    """Copy numpy arrays to a device -> a list of tensors."""
    return [torch.from_numpy(array).to(device) for array in arrays]


def fingerprint(model):
    """Compute a short hash of all parameters, or None of no model."""
    if model is None:
        return None
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


# ---- The command line: flags ------------------------------------------------------------

EMBEDDED_TEACHER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "assets", "teacher")
# "quick" is for the embedded teacher on a CPU, "full" for a real BERT on a GPU. "paper" are the
# authors' values; still, text is packed without padding, and a GPU trains in bfloat16.
RECIPES = {
    "quick": {"steps": 1800, "batch_size": 16, "length": 64, "lr": 3e-3, "warmup": 100,
              "weight_decay": 0.01, "dropout": 0.0},
    "full": {"steps": 100_000, "batch_size": 192, "length": 256, "lr": 5e-4, "warmup": 5000,
             "weight_decay": 0.01, "dropout": 0.1},
    "paper": {"steps": 100_000, "batch_size": 192, "length": 256, "lr": 5e-4, "warmup": 5000,
              "weight_decay": 1e-4, "dropout": 0.1, "init": "random", "tie_decoder": False,
              "num_hidden_layers": 6, "embedding_size": 128},
}
SHAPE_FLAGS = ("num_hidden_layers", "num_hidden_groups", "hidden_size", "embedding_size",
               "adapter_size", "num_attention_heads", "intermediate_size", "tie_decoder")


def whole_number(smallest):
    """Make an argparse type: an integer of at least `smallest`."""
    def parse(text):
        value = int(text)
        if not smallest <= value < 2**31:
            raise argparse.ArgumentTypeError(f"{text} is not from {smallest} to {2**31 - 1}")
        return value
    parse.__name__ = "whole number"                      # argparse's word in its errors
    return parse


def number(above=None, smallest=0.0, below=float(2**31)):
    """Make an argparse type: a number from `smallest` on, or above `above`, and below `below`."""
    def parse(text):
        value = float(text)
        if above is not None and not above < value < below:
            raise argparse.ArgumentTypeError(f"{text} is not above {above:g} and below {below:g}")
        if not smallest <= value < below:
            raise argparse.ArgumentTypeError(f"{text} is not from {smallest:g} to below {below:g}")
        return value
    parse.__name__ = "number"
    return parse


def add_run_flags(parser, out, out_help, eval_every, eval_every_help):
    """Add the flags about a run that both scripts have, in a group."""
    group = parser.add_argument_group("run")
    group.add_argument("--out", default=out, metavar="DIR", help=out_help)
    again = group.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true",
                       help="go on with the run in --out after its last checkpoint")
    again.add_argument("--overwrite", action="store_true",
                       help="start anew in --out; the run that is there is lost")
    group.add_argument("--seed", type=whole_number(0), default=0, metavar="N",
                       help="seed of all random numbers (default: 0)")
    group.add_argument("--log-every", type=whole_number(1), default=50, metavar="STEPS",
                       help="write a line to log.jsonl every so many steps (default: 50)")
    group.add_argument("--eval-every", type=whole_number(0), default=eval_every,
                       metavar="STEPS", help=eval_every_help)
    group.add_argument("--save-every", type=whole_number(1), default=200, metavar="STEPS",
                       help="write a checkpoint every so many steps (default: 200)")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                       help="auto is a GPU if there is one (default: auto)")
    group.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=None,
                       help="multiply matrices in bfloat16; weights, losses and optimiser stay in "
                       "float32 (default: on a GPU)")


def add_model_flags(parser):
    """Add the flags of distill.py about the two models."""
    group = parser.add_argument_group(
        "models", "The student's shape is the teacher's where nothing else is said.")
    group.add_argument("--teacher", default=EMBEDDED_TEACHER, metavar="DIR",
                       help="the teacher: a folder, a Hugging Face name, or none: train without "
                       "a teacher (default: the embedded one, assets/teacher)")
    group.add_argument("--student", metavar="DIR",
                       help="start from the model in this folder, not from a fresh student")
    group.add_argument("--init", choices=("teacher", "sharp", "random"),
                       help="first values of a fresh student: from the teacher; random with sharp "
                       "attention; or plainly random as in BERT (default: teacher; sharp without "
                       "one)")
    size = whole_number(1)
    group.add_argument("--num-hidden-layers", type=size, metavar="R",
                       help="recursions: how many times a layer is applied (default: as the "
                       "teacher's layers, 6 if it has 12)")
    group.add_argument("--num-hidden-groups", type=size, metavar="G",
                       help="different layers; 1 is one layer shared by all recursions, R shares "
                       "nothing (default: 1)")
    group.add_argument("--hidden-size", type=size, metavar="C",
                       help="width of the hidden states (default: the teacher's; 128 without one)")
    group.add_argument("--embedding-size", type=size, metavar="E",
                       help="width of the embeddings (default: 128, but at most C / 2)")
    group.add_argument("--adapter-size", type=whole_number(0), metavar="A",
                       help="width of the adapters, 0 for none (default: C / 16; 0 if R = G)")
    group.add_argument("--num-attention-heads", type=size, metavar="H",
                       help="attention heads (default: the teacher's; C / 32 without one)")
    group.add_argument("--intermediate-size", type=size, metavar="F",
                       help="width of the feed-forward (default: the teacher's; 4 C without one)")
    group.add_argument("--tie-decoder", action=argparse.BooleanOptionalAction, default=None,
                       help="predict words with the embeddings, not with a matrix of their own "
                       "(default: they do; not in the recipe paper)")


def add_loss_flags(parser):
    """Add the flags of distill.py about the losses."""
    group = parser.add_argument_group(
        "losses", "The loss is the sum of these, each times its weight; 0 leaves one out.\n"
        "Without a teacher there is MLM alone; with a teacher that has no head there\n"
        "are attention and hidden.")
    what = {
        "mlm": "predicting the masked words",
        "attention": "the attention maps being as the teacher's",
        "hidden": "the hidden states being as the teacher's",
        "output": "the predicted distributions being as the teacher's",
        "embedding": "the embeddings being as the teacher's"}
    for name, weight in LOSS_WEIGHTS.items():
        group.add_argument(f"--{name}-weight", type=number(), default=weight, metavar="W",
                           help=f"weight of {what[name]} (default: {weight:g})")
    group.add_argument("--temperature", type=number(above=0), default=1.0, metavar="X",
                       help="flattens both distributions of the output loss; 1 does nothing "
                       "(default: 1)")


def add_training_flags(parser):
    """Add the flags of distill.py about training. What is not given comes from the recipe."""
    group = parser.add_argument_group(
        "training", "Defaults are those of the recipe quick, in brackets those of full and paper.")
    group.add_argument("--recipe", choices=sorted(RECIPES),
                       help="a set of defaults: quick, of minutes; full, for a real BERT; paper, "
                       "as the authors (default: full for a teacher of yours on a GPU, else quick)")
    group.add_argument("--steps", type=whole_number(1), metavar="N",
                       help="steps to train (default: 1,800 [100,000])")
    group.add_argument("--batch-size", type=whole_number(1), metavar="B",
                       help="sequences in a step, of all processes together (default: 16 [192])")
    group.add_argument("--micro-batch-size", type=whole_number(0), default=0, metavar="B",
                       help="sequences in memory at once; the result is the same (default: 0, "
                       "which is all that a process has)")
    group.add_argument("--length", type=whole_number(1), metavar="T",
                       help="tokens in a sequence, with [CLS] and [SEP] (default: 64 [256])")
    group.add_argument("--lr", type=number(), metavar="X",
                       help="highest learning rate (default: 0.003 [0.0005])")
    group.add_argument("--warmup", type=whole_number(0), metavar="N",
                       help="steps in which the rate grows; after them it falls to 0 (default: "
                       "100 [5,000])")
    group.add_argument("--weight-decay", type=number(), metavar="X",
                       help="of AdamW, not for biases and LayerNorms (default: 0.01 [full: 0.01, "
                       "paper: 0.0001])")
    group.add_argument("--dropout", type=number(below=1.0), metavar="P",
                       help="probability of dropout in the student (default: 0 [0.1])")
    group.add_argument("--compile", action="store_true",
                       help="fuse the operations of a step with torch.compile")


def arguments(argv):
    """Parse the command line; what is not given is filled in from the recipe."""
    parser = CommandParser("distill.py", __doc__)
    add_model_flags(parser)
    add_loss_flags(parser)
    add_training_flags(parser)
    group = parser.add_argument_group("data")
    group.add_argument("--corpus", nargs="+", metavar="PATH",
                       help="files and folders of .txt and .jsonl, or a token file of data.py "
                       "(default: the documentation on this machine)")
    group.add_argument("--tokenizer", metavar="DIR",
                       help="folder or Hugging Face name (default: the teacher's, or --student's)")
    group.add_argument("--cache", default=CACHE, metavar="DIR",
                       help="where tokenised corpora are kept (default: ~/.cache/minialbert)")
    add_run_flags(parser, out="out/student",
                  out_help="the folder for the student (default: out/student)", eval_every=200,
                  eval_every_help="measure the student every so many steps; 0: only at the end "
                  "(default: 200)")
    args = parser.parse_args(argv)

    has_teacher = args.teacher != "none"
    if args.student is not None:
        for name in ("init",) + SHAPE_FLAGS:
            if getattr(args, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')}: the model in --student has its own "
                                 "shape and weights")
    if not has_teacher and args.init == "teacher":
        raise ValueError("--init teacher: --teacher none gives nothing to start from")
    if not has_teacher and args.student is None and args.tokenizer is None:
        raise ValueError("--teacher none: a fresh student needs a --tokenizer")
    if args.recipe is None:
        args.recipe = "quick"
        if has_teacher and args.teacher != EMBEDDED_TEACHER and torch.cuda.is_available():
            args.recipe = "full"
    for name, value in RECIPES[args.recipe].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.student is not None:
        args.init = ""                                   # its parameters have their values
    elif args.init is None:
        args.init = "teacher" if has_teacher else "sharp"
    return args


# ---- The command line: what it does -----------------------------------------------------

def run(args):
    """Do what the command line asks for."""
    check_out(args.out, args.resume, args.overwrite)
    processes = set_up_processes(args.device, args.batch_size)
    device = processes.device
    bf16 = uses_bf16(args.bf16, device)

    teacher = None
    tokenizer_name = args.tokenizer
    if args.teacher != "none":
        teacher_path = fetch(args.teacher, MODEL_FILES + NEEDED_FOR_TOKENIZER,
                             OPTIONAL_FOR_TOKENIZER)
        teacher = load(teacher_path)
        if tokenizer_name is None:
            tokenizer_name = teacher_path
    if tokenizer_name is None:
        tokenizer_name = args.student
    tokenizer = Tokenizer(fetch(tokenizer_name, NEEDED_FOR_TOKENIZER, OPTIONAL_FOR_TOKENIZER))
    weights = choose_losses(args, teacher)
    student = make_student(args, teacher, tokenizer.vocab_size)
    if "mlm" not in weights and "output" not in weights:
        student.head = None                              # no loss would train it
    check_models(args, teacher, student, tokenizer, weights)

    with first_process_first(processes):
        corpus = open_corpus(args.corpus, tokenizer, args.cache)
    batches = MaskedBatches(corpus.train_tokens, tokenizer, args.length, args.batch_size,
                            args.seed)
    valid_batches = MaskedBatches(corpus.valid_tokens, tokenizer, args.length, 32)
    options = TrainingOptions(
        steps=args.steps, lr=args.lr, warmup=args.warmup, weight_decay=args.weight_decay,
        seed=args.seed, log_every=args.log_every, eval_every=args.eval_every,
        save_every=args.save_every, out=args.out, resume=args.resume)
    settings = resume_settings(options, args.batch_size, args.dropout, bf16)
    settings.update({
        "length": args.length, "warmup": args.warmup, "init": args.init,
        "temperature": args.temperature, "weights": weights, "shape": vars(student.config),
        "corpus": corpus.made_from, "teacher": fingerprint(teacher), "student": None})
    if args.student is not None:
        settings["student"] = fingerprint(student)
    if args.init == "teacher":
        sample = batches.sequences(range(min(256, batches.count)))
        start_from_teacher(student, teacher, torch.from_numpy(sample))

    models = {"student": student.to(device)}
    if teacher is not None:
        models = {"teacher": teacher.to(device), "student": student}
    distillation = Distillation(student, teacher, batches, weights, args.temperature,
                                args.micro_batch_size, processes, bf16, args.compile)
    os.makedirs(args.out, exist_ok=True)

    def evaluate_student():
        if student.head is None:
            return {}
        with autocast(device, bf16):
            return evaluate(student, valid_batches)

    def save_student():
        save(student, args.out)
        tokenizer.save(args.out)

    print_scores(models, valid_batches, bf16)
    describe_run(distillation, args.steps, device)
    train(student, distillation, options, settings, evaluate_student, save_student, processes)
    print_scores(models, valid_batches, bf16)
    print_samples(models, tokenizer, valid_batches)
    print(f"\nThe student is in {args.out}. Next: python finetune.py --model {args.out}")


def check_out(out, resume, overwrite):
    """Raise ValueError if a run would write into a folder that is not its own."""
    if not os.path.isdir(out) or not os.listdir(out) or overwrite:
        return
    if not resume:
        raise ValueError(f"--out {out} is not empty: --resume goes on with the run in it, "
                         "--overwrite starts anew and loses it")
    states = glob.glob("**/training.safetensors", root_dir=out, recursive=True)
    if os.path.exists(os.path.join(out, "model.safetensors")) and not states:
        raise ValueError(f"--out {out} holds a model, but no run that could be resumed")


def choose_losses(args, teacher):
    """Return {name: weight} of the losses that the flags want and the teacher allows."""
    possible = set(LOSS_WEIGHTS)
    if teacher is None:
        possible = {"mlm"}
    elif teacher.head is None:
        possible -= {"mlm", "output"}
    weights = {}
    for name in LOSS_WEIGHTS:
        weight = getattr(args, f"{name}_weight")
        if name in possible and weight > 0:
            weights[name] = weight
    if not weights:
        raise ValueError("no loss is left that the teacher allows and whose weight is not 0")
    return weights


def make_student(args, teacher, vocab_size):
    """Make a fresh student, or load the model of --student, whose head is new if it has none."""
    torch.manual_seed(args.seed)
    if args.student is not None:
        found = load(fetch(args.student, MODEL_FILES))
        student = MiniALBERT(replace(found.config, hidden_dropout_prob=args.dropout,
                                     attention_probs_dropout_prob=args.dropout))
        student.load_state_dict(student.state_dict() | found.state_dict())
        return student
    student = MiniALBERT(student_config(args, teacher, vocab_size))
    if args.init == "random":
        initialise(student, plain=True)
    return student


def student_config(args, teacher, vocab_size):
    """Choose a fresh student's Config: the teacher's, made recursive, then what flags ask for."""
    if teacher is not None:
        shape = dict(vars(teacher.config))
        if args.hidden_size is not None:
            shape["hidden_size"] = args.hidden_size
        C = shape["hidden_size"]
    else:
        C = 128
        if args.hidden_size is not None:
            C = args.hidden_size
        shape = {"vocab_size": vocab_size, "hidden_size": C, "num_hidden_layers": 6,
                 "num_attention_heads": max(1, C // 32), "intermediate_size": 4 * C,
                 "max_position_embeddings": max(128, args.length)}
    if shape["num_hidden_layers"] == 12:
        shape["num_hidden_layers"] = 6                   # the paper's student of a BERT-base
    shape["num_hidden_groups"] = 1
    shape["embedding_size"] = min(128, C // 2)
    shape["tie_decoder"] = True
    shape["hidden_dropout_prob"] = args.dropout
    shape["attention_probs_dropout_prob"] = args.dropout
    for name in SHAPE_FLAGS:
        if getattr(args, name) is not None:
            shape[name] = getattr(args, name)
    if args.adapter_size is None:
        shape["adapter_size"] = 0                        # without sharing there is nothing to adapt
        if shape["num_hidden_groups"] < shape["num_hidden_layers"]:
            shape["adapter_size"] = C // 16
    return Config(**shape)


def check_models(args, teacher, student, tokenizer, weights):
    """Raise ValueError if the models, the tokenizer and the flags do not fit together."""
    models = [("student", student)]
    if teacher is not None:
        models.append(("teacher", teacher))
    for name, model in models:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(f"the tokenizer in {tokenizer.path} has {tokenizer.vocab_size} "
                             f"tokens, the {name} only {model.config.vocab_size} (vocab_size)")
        if args.length > model.config.max_position_embeddings:
            raise ValueError(f"--length {args.length}: the {name} has only "
                             f"{model.config.max_position_embeddings} positions")
    if teacher is None:
        return
    starts_as_teacher = args.init == "teacher"
    if "attention" in weights or "hidden" in weights:
        match_layers(student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    if "hidden" in weights or "embedding" in weights or starts_as_teacher:
        check_same(teacher, student, "hidden_size",
                   "--hidden-weight 0 --embedding-weight 0 --init random")
    if "output" in weights:
        check_same(teacher, student, "vocab_size", "--output-weight 0")
    if "attention" in weights:
        check_same(teacher, student, "num_attention_heads", "--attention-weight 0")
    if starts_as_teacher:
        check_same(teacher, student, "intermediate_size", "--init random")
        if student.config.embedding_size > teacher.config.embedding_size:
            raise ValueError(f"--embedding-size {student.config.embedding_size}: the teacher's is "
                             f"only {teacher.config.embedding_size}; --init random allows it")


def check_same(teacher, student, field, remedy):
    """Raise ValueError if a field of the two models' configs differs."""
    theirs = getattr(teacher.config, field)
    ours = getattr(student.config, field)
    if theirs != ours:
        raise ValueError(f"{field} of the teacher is {theirs}, of the student {ours}; "
                         f"{remedy} allows that")


def resume_settings(options, batch_size, dropout, bf16):
    """Collect what the runs of both scripts must have in common with the run that they resume."""
    return {"steps": options.steps, "lr": options.lr, "weight_decay": options.weight_decay,
            "seed": options.seed, "batch_size": batch_size, "dropout": dropout, "bf16": bf16}


def print_scores(models, valid_batches, bf16):
    """Print a table: parameters of each model, MLM accuracy and loss on the held-out text."""
    print(f"{'':9}{'parameters':>12}{'applied':>12}{'MLM accuracy':>14}{'MLM loss':>10}")
    for name, model in models.items():
        counts = count_parameters(model)
        row = f"{name:9}{counts['stored']:12,}{counts['applied']:12,}"
        if model.head is None:
            row += "   no MLM head"
        else:
            with autocast(device_of(model), bf16):
                scores = evaluate(model, valid_batches)
            row += f"{scores['accuracy']:14.1%}{scores['loss']:10.3f}"
        print(row)


def describe_run(distillation, steps, device):
    """Print what will be trained, and how long it will take: some steps are made and timed."""
    fastest = math.inf
    for _ in range(4):                                   # the first ones are slower
        begin = time.perf_counter()
        for losses in distillation.micro_batches(0):
            sum(losses.values()).backward()
        distillation.student.zero_grad(set_to_none=True)
        fastest = min(fastest, time.perf_counter() - begin)
    print(f"device   {device}, {'bfloat16' if distillation.bf16 else 'float32'}")
    if distillation.pairs:
        pairs = " ".join(f"{r + 1}-{layer + 1}" for r, layer in distillation.pairs)
        print(f"layers   {pairs} (student-teacher)")
    terms = " + ".join(f"{weight:g} {name}" for name, weight in distillation.weights.items())
    print(f"loss     {terms}")
    print(f"steps    {steps:,} of {distillation.tokens_per_step:,} tokens: "
          f"{fastest * steps / 60:.1f} min", flush=True)


@torch.inference_mode()
def print_samples(models, tokenizer, valid_batches):
    """Print the words that each model predicts at a masked place in four held-out texts."""
    if models["student"].head is None:
        return
    last = valid_batches.count - 1
    numbers = [i * last // 3 for i in range(4)]          # evenly spread
    for ids in valid_batches.sequences(numbers):
        ids = ids.tolist()
        words = [tokenizer.decode([token]) for token in ids]
        place = telling_place(words)
        before = tokenizer.decode(ids[max(0, place - 9):place])
        after = tokenizer.decode(ids[place + 1:place + 9])
        print(f"\n{before} [MASK] {after}   ({words[place]})")
        ids[place] = tokenizer.mask_id
        for name, model in models.items():
            model.eval()
            hidden, _ = model(torch.tensor([ids], device=device_of(model)))
            logits = model.predict(hidden[-1][0, place])                      # (V,)
            best = logits.topk(4).indices.tolist()
            print(f"    {name}: {' '.join(tokenizer.decode([token]) for token in best)}")


def telling_place(words):
    """Choose a place to mask: the word of at least 4 letters that is nearest to the middle."""
    middle = len(words) // 2

    def value(place):
        num_letters = len(words[place].strip("#"))
        return min(num_letters, 4), -abs(place - middle)

    return max(range(len(words)), key=value)


def main(argv=None):
    def action():
        run(arguments(argv))
    return run_command("distill.py", action)


if __name__ == "__main__":
    sys.exit(main())
