"""What the jobs of bench/gpu.py share; the jobs are in gpu_sections.py.

gpu.py starts each job as a process of its own:

    python bench/gpu_sections.py kills '{"toy": true, "device": "cpu", ...}' '{"compiled": true}'

that is: a function's name, the fields of a Setup, the function's other arguments. The function
reports rows of tables as soon as it has them, each as a line of JSON on standard output:

    {"table": its title, "row": {column: value}, "passed": true, false or null, "values": {...}}

The values go to the jobs that come later, in setup.values.
"""
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import NamedTuple, TextIO

import torch
from torch import nn

BENCH = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(BENCH)
sys.path.insert(0, ROOT)            # the modules of the program

import distill
from minialbert import MiniALBERT
from speed_ours import Clock, make_config, random_batches
from speed_worker import Shape

# bert-base and the paper's student of it, at the authors' batch.
BASE = Shape(B=192, T=256, V=30522, E=128, C=768, H=12, F=3072, L=12, R=6)
# all-MiniLM and its student, with the batch that the study had on a GPU (EXPERIMENTS.md).
SMALL = Shape(B=128, T=128, V=30522, E=96, C=384, H=12, F=1536, L=6, R=6)
# Odd sizes, so that no two are equal.
TOY = Shape(B=6, T=17, V=101, E=8, C=48, H=3, F=96, L=4, R=2)


# ---- What a job gets, and how it reports ------------------------------------------------

@dataclass
class Setup:
    """Where and how a job runs."""
    toy: bool                       # tiny sizes: a test of this script
    device: str                     # "cuda:0" or, with toy, "cpu"
    folder: str                     # for files; it is deleted in the end
    tokenizer: str                  # the folder of a vocabulary, for the mini-distillation
    corpus: str | None              # its text; None: the documentation on this machine
    authors: list                   # folders with the authors' code and with transformers 4.30
    authors_python: str
    values: dict                    # what the jobs before this one have reported
    answers: TextIO                 # standard output

    def choose(self, real, toy):
        """Return the first value, or with --toy the second one."""
        if self.toy:
            return toy
        return real

    @property
    def shape(self):
        """Return the sizes of the two models and of the batch."""
        return self.choose(BASE, TOY)

    def report(self, table, row, passed=None, values=None):
        """Send a row {column: value} of a table to gpu.py, at once.

        passed: whether the row's goal is met, None if it has no goal
        values: {name: number}, for later jobs
        """
        if values is None:
            values = {}
        answer = {"table": table, "row": row, "passed": passed, "values": values}
        print(json.dumps(answer), file=self.answers, flush=True)


def synchronise(device):
    """Wait until the GPU has done all its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def median_seconds(function, device, times=15):
    """Call a function, three times without a clock, then so many times with one -> the median."""
    for _ in range(3):
        function()
    seconds = []
    for _ in range(times):
        synchronise(device)
        begin = time.perf_counter()
        function()
        synchronise(device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def gpu_gigabytes(setup):
    """Return the most memory that tensors of this process have taken on the GPU, in GiB."""
    if setup.device == "cpu":
        return 0.0
    return torch.cuda.max_memory_allocated() / 2**30


@torch.no_grad()
def add_noise(model):
    """Add noise to all parameters, so that no bias is 0 and each adapter does something."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.02)


def make_distillation(setup, shape, bf16, compiled=False, micro_batch_size=0, dropout=0.1,
                      full_recipe=False, cuda_graphs=False, device=None, processes=None):
    """Make a Distillation of random models on random tokens.

    The student has the paper's adapters and its four losses; with full_recipe it has corrections
    and the elastic loss, as by default in the recipe full. The weights of the losses are those of
    this recipe in both cases, not the paper's; they make no difference to the time.

    device: setup.device if it is not given
    """
    if device is None:
        device = setup.device
    torch.manual_seed(0)
    teacher = MiniALBERT(make_config(shape, "bert"))
    correction_rank = 0
    if full_recipe:
        correction_rank = shape.C // 8
    student = MiniALBERT(make_config(shape, "student", correction_rank=correction_rank,
                                     dropout=dropout))
    add_noise(teacher)
    add_noise(student)
    teacher.to(device)
    student.to(device)
    if bf16:
        distill.cast_linear_layers(teacher)
    weights = dict(distill.LOSS_WEIGHTS)
    del weights["embedding"]                             # its weight is 0 in all recipes
    if full_recipe:
        weights["elastic"] = distill.RECIPES["full"]["elastic"]
    batches = random_batches(shape, Clock())
    distillation = distill.Distillation(
        student, teacher, batches, weights, micro_batch_size=micro_batch_size,
        processes=processes, bf16=bf16, compile_losses=setup.choose(compiled, False),
        cuda_graphs=setup.choose(cuda_graphs, False))
    if compiled and setup.toy:
        # The same graph as on a GPU, but without the minutes that a CPU takes to compile it. There
        # are no CUDA graphs of it.
        distillation.losses_function = torch.compile(distillation.compute_losses,
                                                     backend="aot_eager")
    return distillation


def make_batch_unusual(batches, step):
    """Fill the first sequence of a step's batch with special tokens, so that none is masked."""
    index = step * batches.batch_size                    # among the sequences of the first epoch
    sequence = batches.order_of_epoch(0)[index]
    num_inside = batches.T - 2                           # all tokens but [CLS] and [SEP]
    begin = sequence * num_inside
    batches.tokens[begin:begin + num_inside] = 0         # the number of a special token


def train_and_read_log(setup, objective, steps, log_every):
    """Run distill.train with an objective and return the lines of its log.jsonl as dicts."""
    processes = distill.Processes(device=torch.device(setup.device))
    with tempfile.TemporaryDirectory(dir=setup.folder) as out:
        options = distill.TrainingOptions(
            steps=steps, lr=1e-4, warmup=0, weight_decay=0.01, seed=0, log_every=log_every,
            eval_every=0, save_every=steps, out=out, resume=False)
        state = distill.begin_or_resume(objective.student, options, {}, processes)

        def evaluate_model():
            return {}

        def save_model():
            """Write nothing: only the log is wanted."""

        distill.train(objective, state, options, evaluate_model, save_model, processes)
        return read_log(out)


def read_log(out):
    """Read the lines of the log.jsonl in a run's folder."""
    with open(os.path.join(out, "log.jsonl"), encoding="utf-8") as log:
        return [json.loads(line) for line in log]


def median_tokens_per_second(lines):
    """Return the median speed that a log shows; its first line is left out: it is slower."""
    return statistics.median(line["tokens_per_second"] for line in lines[1:])


def run_script(script, flags):
    """Run a script of the program as a user does -> seconds. CalledProcessError if it fails."""
    command = [sys.executable, os.path.join(ROOT, script)]
    command += [str(flag) for flag in flags]
    begin = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - begin


# ---- Comparing two passes ---------------------------------------------------------------

class Pass(NamedTuple):
    """What a forward and a backward pass computed."""
    losses: dict            # {name: number}
    gradients: dict         # {name of a parameter: tensor on the CPU, in float64}


class Difference(NamedTuple):
    """How far two Passes are from each other."""
    losses: float           # the largest difference of a loss, relative to that loss
    gradients: float        # the largest norm of a gradient's difference, relative to its norm
    cosine: float           # the smallest cosine between two gradients


def pass_of(objective, model, step=0):
    """Compute the losses of an objective and the gradients of its model in a step -> Pass."""
    model.train()
    model.zero_grad(set_to_none=True)
    totals = {}
    for losses in objective.losses_of_micro_batches(step):
        loss = sum(objective.loss_weights[name] * value for name, value in losses.items())
        loss.backward()
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + value.item()
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients[name] = parameter.grad.cpu().double()
    return Pass(totals, gradients)


def difference_of(first, second):
    """Compare two Passes -> Difference.

    A gradient with less than 1/1000 of the norm of all gradients together is not looked at: that
    of the key's bias is 0 but for rounding.
    """
    in_losses = 0.0
    for name, value in first.losses.items():
        in_losses = max(in_losses, abs(second.losses[name] - value) / abs(value))
    norms = {name: gradient.norm().item() for name, gradient in first.gradients.items()}
    smallest_norm = 1e-3 * math.hypot(*norms.values())
    in_gradients = 0.0
    cosine = 1.0
    for name, gradient in first.gradients.items():
        if norms[name] < smallest_norm:
            continue
        other = second.gradients[name]
        distance = (other - gradient).norm().item() / norms[name]
        in_gradients = max(in_gradients, distance)
        found = nn.functional.cosine_similarity(gradient.flatten(), other.flatten(), dim=0)
        cosine = min(cosine, found.item())
    return Difference(in_losses, in_gradients, cosine)


def report_difference(setup, what, models, first, second, exact):
    """Report how far two Passes are apart. exact: whether both are in float32."""
    difference = difference_of(first, second)
    if exact:
        goal = "losses and gradients 1e-4"
        passed = difference.losses < 1e-4 and difference.gradients < 1e-4
    else:
        goal = "losses 1e-2, cosine 0.99"
        passed = difference.losses < 1e-2 and difference.cosine > 0.99
    row = {"what": what, "models": models}
    row["losses differ by"] = f"{difference.losses:.1e}"
    row["gradients differ by"] = f"{difference.gradients:.1e}"
    row["smallest cosine"] = f"{difference.cosine:.5f}"
    row["goal"] = goal
    setup.report("Parity, dropout 0", row, passed)


# ---- The command line -------------------------------------------------------------------

def serve(functions):
    """Do the job that the command line names: one of these functions."""
    functions_by_name = {function.__name__: function for function in functions}
    name, setup_text, arguments_text = sys.argv[1:]
    # What a library prints is no row of a table: standard output becomes standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    setup = Setup(answers=answers, **json.loads(setup_text))
    functions_by_name[name](setup, **json.loads(arguments_text))
