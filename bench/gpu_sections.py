"""The sections of bench/gpu.py; gpu_worker.py says how they are started.

The first ones (card, parity, waits, speed, growth, profile) call what the program runs:
distill.Distillation, distill.train with its log, distill.training_step and finetune.TaskLoss. The
models are random. The last ones (default, kills, processes, mini) run commands as a user runs them,
or several processes. What a command prints goes to gpu.log, and its scores are read from the files
that it leaves.
"""
import math
import os
import random
import statistics
import subprocess
import sys
import time
import traceback
import warnings

import numpy as np
import torch
import torch._inductor.config
import torch.distributed as dist
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from gpu_worker import (BASE, SMALL, TOY, Pass, Setup, add_noise, gpu_gigabytes,
                        make_batch_unusual, make_distillation, median_seconds,
                        median_tokens_per_second, pass_of, read_log, report_difference, run_script,
                        serve, synchronise, train_and_read_log)

import distill
import finetune
import kill
from minialbert import MiniALBERT
from speed import Worker, authors, free_port
from speed_ours import make_config, useful_operations
from tasks import Task

# Groups of operations, and what was expected of each on an H200 from its bytes and FLOPs, in ms of
# a step of BASE. For the eager step that assumed LayerNorms in float32, as they were at that time.
ESTIMATED_EAGER = {
    "linear products": 36.4,
    "attention maps (B H T T)": 39.8,
    "residual, norms, dropout (B T C)": 35.2,
    "vocabulary (M V)": 9.5,
    "gelu (B T F)": 4.6,
    "attention products": 6.1,
    "copies of heads": 3.4,
    "small: weights, optimizer, others": 3.0,
}
ESTIMATED_COMPILED = {
    "linear products": 36.4,
    "attention maps (B H T T)": 4.1,
    "residual, norms, dropout (B T C)": 9.0,
    "vocabulary (M V)": 1.0,
    "gelu (B T F)": 4.2,
    "attention products": 6.1,
    "copies of heads": 2.2,
    "small: weights, optimizer, others": 3.2,
}


# ---- The card ---------------------------------------------------------------------------

def card(setup):
    """Measure how fast the card copies and multiplies matrices.

    The product of large squares in bfloat16 gives the "matrix rate", of which later jobs say what
    share a step reaches.
    """
    report_machine(setup)
    title = "Rates of the card"
    terabytes_per_second = copy_rate(setup) / 1e12
    row = {"what": "copy, bytes read and written"}
    row["rate"] = f"{terabytes_per_second:.3g} TB/s"
    setup.report(title, row)
    # The authors' code trains in float32. TF32 is off, as torch has it by default.
    size = setup.choose(8192, 64)
    for dtype in (torch.bfloat16, torch.float32):
        rate = product_rate(setup, size, dtype)
        row = {"what": f"product of ({size}, {size}) matrices in {dtype}"}
        row["rate"] = f"{rate / 1e12:.3g} TFLOP/s"
        values = {}
        if dtype == torch.bfloat16:
            values["matrix rate"] = rate
        setup.report(title, row, values=values)


def report_machine(setup):
    """Report the versions, the card and its driver."""
    found = "no GPU"
    if setup.device != "cpu":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv"]
        answer = subprocess.run(query, capture_output=True, text=True)
        # The first line has the names of the columns, the second one is the first card's.
        found = answer.stdout.splitlines()[1]
    row = {"card": found, "torch": torch.__version__}
    row["python"] = sys.version.split()[0]
    row["cores"] = os.cpu_count()
    row["TF32"] = torch.backends.cuda.matmul.allow_tf32
    setup.report("Machine", row)


def copy_rate(setup):
    """Measure the bytes per second of a copy of 4 GiB; those read and those written count."""
    num_numbers = setup.choose(2**31, 2**20)
    source = torch.ones(num_numbers, dtype=torch.bfloat16, device=setup.device)
    target = torch.empty_like(source)

    def copy():
        target.copy_(source)

    return 2 * source.nbytes / median_seconds(copy, setup.device)


def product_rate(setup, size, dtype):
    """Measure the operations per second of a product of two random square matrices."""
    x = torch.randn(size, size, device=setup.device).to(dtype)
    weight = torch.randn(size, size, device=setup.device).to(dtype)

    def multiply():
        nn.functional.linear(x, weight)

    # Each of the size**2 results takes `size` multiplications and as many additions.
    return 2 * size**3 / median_seconds(multiply, setup.device)


# ---- Parity: the same losses and gradients ----------------------------------------------

def parity(setup):
    """Compare a pass on the CPU, on the GPU, in bfloat16, compiled, and in micro-batches, with the
    paper's adapters and then with the corrections and the elastic loss of the recipe full."""
    compare_attention(setup, "toy", TOY)
    for full_recipe in (False, True):
        name = "toy"
        if full_recipe:
            name = "toy, recipe full"
        compare_passes(setup, name, TOY, full_recipe)
        compare_compiled(setup, name, TOY, full_recipe)
    if not setup.toy:
        # To compile models of this size takes a minute; it is not done here.
        shape = BASE._replace(B=2, T=64)
        compare_attention(setup, "bert-base, 2 x 64", shape)
        compare_passes(setup, "bert-base, 2 x 64", shape, full_recipe=False)
        compare_passes(setup, "bert-base, 2 x 64, recipe full", shape, full_recipe=True)


def pass_of_distillation(setup, shape, **settings):
    """Make a Distillation without dropout, with these settings, and compute a Pass of it.

    All that are made with the same sizes have the same parameters and the same batch.
    """
    distillation = make_distillation(setup, shape, dropout=0.0, **settings)
    return pass_of(distillation, distillation.student)


def compare_passes(setup, name, shape, full_recipe):
    """Compare eager passes of models with these sizes. full_recipe: see make_distillation"""
    on_cpu = pass_of_distillation(setup, shape, full_recipe=full_recipe, bf16=False, device="cpu")
    on_gpu = pass_of_distillation(setup, shape, full_recipe=full_recipe, bf16=False)
    report_difference(setup, "CPU, GPU; float32", name, on_cpu, on_gpu, exact=True)
    in_bf16 = pass_of_distillation(setup, shape, full_recipe=full_recipe, bf16=True)
    report_difference(setup, "float32, bfloat16", name, on_gpu, in_bf16, exact=False)
    size = math.ceil(shape.B / 3)
    in_parts = pass_of_distillation(setup, shape, full_recipe=full_recipe, bf16=False,
                                    micro_batch_size=size)
    what = f"whole, micro-batches of {size}"
    report_difference(setup, what, name, on_gpu, in_parts, exact=True)


def compare_compiled(setup, name, shape, full_recipe):
    """Compare eager and compiled passes, in float32 and in bfloat16.

    Compiled, results between operations stay in float32, so that in bfloat16 they differ more.
    """
    for bf16 in (False, True):
        eager = pass_of_distillation(setup, shape, full_recipe=full_recipe, bf16=bf16)
        compiled = pass_of_distillation(setup, shape, full_recipe=full_recipe, bf16=bf16,
                                        compiled=True)
        what = f"eager, compiled; {precision(bf16)}"
        report_difference(setup, what, name, eager, compiled, exact=not bf16)


def precision(bf16):
    """Name the dtype of the products of matrices."""
    if bf16:
        return "bfloat16"
    return "float32"


@torch.inference_mode()
def compare_attention(setup, name, shape):
    """Compare the two ways in which Attention computes the same: with and without its map."""
    teacher = make_distillation(setup, shape, bf16=False).teacher
    ids = torch.arange(shape.B * shape.T, device=setup.device) % shape.V
    ids = ids.view(shape.B, shape.T)
    with_maps, _ = teacher(ids, maps=range(shape.L))
    without_maps, _ = teacher(ids)
    difference = with_maps[-1] - without_maps[-1]        # of the last hidden states
    distance = (difference.norm() / without_maps[-1].norm()).item()
    row = {"what": "attention with its map, fused", "models": name}
    row["hidden states differ by"] = f"{distance:.1e}"
    row["goal"] = "1e-5"
    setup.report("Parity of attention", row, distance < 1e-5)


def parity_of_tuning(setup):
    """Compare a step of fine-tuning on the CPU and on the GPU, for each kind of task.

    The batch has two sequences, the micro-batches three: two of three micro-batches are empty.
    """
    labels_of_kind = {"classification": ["a", "b", "c"], "regression": [], "tagging": ["O", "B-x"],
                      "qa": []}
    for kind, labels in labels_of_kind.items():
        task = Task(name=kind, kind=kind, labels=labels, metrics=["accuracy"], length=TOY.T,
                    stride=4, pair=kind == "qa", mean=0.0, sd=1.0, unanswerable=False)
        on_cpu = pass_of_tuning(task, "cpu", bf16=False)
        on_gpu = pass_of_tuning(task, setup.device, bf16=False)
        in_bf16 = pass_of_tuning(task, setup.device, bf16=True)
        name = f"{kind}, empty micro-batches"
        report_difference(setup, "CPU, GPU; float32", name, on_cpu, on_gpu, exact=True)
        report_difference(setup, "float32, bfloat16", name, on_gpu, in_bf16, exact=False)


def pass_of_tuning(task, device, bf16):
    """Compute the Pass of a TaskLoss on a batch of two sequences."""
    torch.manual_seed(0)
    config = make_config(TOY, "student", dropout=0.0)
    model = finetune.Classifier(MiniALBERT(config, head=False), task)
    add_noise(model)
    model.to(device)
    features = random_features(task.kind)
    loss = finetune.TaskLoss(model, features, batch_size=8, seed=0, micro_batch_size=3,
                             bf16=bf16)
    # The batches of an epoch have 8 and 2 sequences, in an order of their own.
    sizes = [len(loss.batch(step)) for step in range(loss.steps_per_epoch)]
    return pass_of(loss, model, step=sizes.index(2))


def random_features(kind):
    """Make ten random Features for a kind of task, as finetune.encode makes them of text."""
    rng = np.random.default_rng(0)
    features = []
    for number in range(10):
        length = int(rng.integers(9, TOY.T))
        positions = [0]
        labels = [1]
        prefix_length = 1
        if kind == "tagging":
            positions = list(range(1, length - 1))
            labels = [1] * len(positions)
        elif kind == "qa":
            prefix_length = 4                            # [CLS], two tokens, [SEP]
            positions = list(range(prefix_length, length - 1))
            labels = [5, 6]                              # the answer's first and last token
        ids = rng.integers(5, TOY.V, length).astype(np.int32)
        features.append(finetune.Feature(ids, prefix_length, number, positions, positions, labels))
    return features


# ---- Waits for the GPU and compiled graphs ----------------------------------------------

WATCHED_STEPS = 12
WATCHED_LOG_EVERY = 6


class Watched:
    """A Distillation for distill.train that tells when an ordinary step begins.

    on_step(step, is_ordinary) is called as each step begins. The first two steps are not ordinary,
    because memory is gotten in them, nor are those that write a line of the log: of 12 steps, with
    a line after each 6, eight are ordinary.
    """

    def __init__(self, distillation, on_step):
        self.distillation = distillation
        self.student = distillation.student
        self.loss_weights = distillation.loss_weights
        self.tokens_per_step = distillation.tokens_per_step
        self.on_step = on_step

    def losses_of_micro_batches(self, step):
        """Do as Distillation does."""
        is_logged = (step + 1) % WATCHED_LOG_EVERY == 0
        is_ordinary = step >= 2 and not is_logged
        self.on_step(step, is_ordinary)
        yield from self.distillation.losses_of_micro_batches(step)


def waits(setup):
    """Look for places at which an ordinary step of train() waits for the GPU.

    While the host waits, it cannot prepare what the GPU is to do next, and the GPU idles.
    """
    part = math.ceil(TOY.B / 3)                          # of a batch
    for bf16 in (False, True):
        for micro_batch_size in (0, part):
            for full_recipe in (False, True):
                report_waits(setup, bf16, micro_batch_size, full_recipe)
    # The recipe full trains compiled and with CUDA graphs by default.
    for cuda_graphs in (False, True):
        report_waits(setup, bf16=True, micro_batch_size=0, full_recipe=True, compiled=True,
                     cuda_graphs=cuda_graphs)


def report_waits(setup, bf16, micro_batch_size, full_recipe, compiled=False, cuda_graphs=False):
    """Report where the ordinary steps of a training with these settings wait."""
    distillation = make_distillation(setup, TOY, bf16, compiled, micro_batch_size,
                                     full_recipe=full_recipe, cuda_graphs=cuda_graphs)
    places = places_of_waits(setup, distillation)
    row = {"precision": precision(bf16), "micro-batch size": micro_batch_size}
    row["recipe full"] = full_recipe
    row["compiled"] = compiled
    row["CUDA graphs"] = cuda_graphs
    row["waits in 8 steps"] = len(places)
    row["where"] = " ".join(sorted(set(places)))
    row["goal"] = "0"
    setup.report("Waits for the GPU in ordinary steps of train()", row, not places)


def places_of_waits(setup, distillation):
    """List the places ["file:line", ...] where torch.cuda.set_sync_debug_mode sees a wait.

    The run is first made in the mode "error", in which the first wait ends it. If there is one, the
    run is made again in the mode "warn", which lists all of them.
    """
    try:
        train_watched(setup, distillation, "error")
        return []
    except RuntimeError:
        traceback.print_exc()
    torch.cuda.set_sync_debug_mode("default")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_watched(setup, distillation, "warn")
    places = []
    for warning in caught:
        if "synchroniz" in str(warning.message):
            places.append(f"{os.path.basename(warning.filename)}:{warning.lineno}")
    if not places:
        places.append("an error, but no warning: see gpu.log")
    return places


def train_watched(setup, distillation, mode):
    """Train with this debug mode in ordinary steps."""
    def on_step(step, is_ordinary):
        if setup.device == "cpu":                        # it never waits
            return
        if is_ordinary:
            torch.cuda.set_sync_debug_mode(mode)
        else:
            torch.cuda.set_sync_debug_mode("default")

    watched = Watched(distillation, on_step)
    train_and_read_log(setup, watched, WATCHED_STEPS, WATCHED_LOG_EVERY)


def graphs(setup):
    """Count the graphs that seconds_of_a_step and train compile together: one is enough."""
    from torch._dynamo.utils import counters             # imported here: it is large
    distillation = make_distillation(setup, TOY, bf16=True, compiled=True)
    counters.clear()
    distill.seconds_of_a_step(distillation)
    after_timing = counters["stats"]["unique_graphs"]
    train_and_read_log(setup, distillation, steps=3, log_every=3)
    after_train = counters["stats"]["unique_graphs"]
    num_breaks = sum(counters["graph_break"].values())
    row = {"after seconds_of_a_step": after_timing, "after train": after_train}
    row["breaks"] = num_breaks
    row["goal"] = "1, 1, 0"
    passed = after_timing == 1 and after_train == 1 and num_breaks == 0
    setup.report("Compiled graphs", row, passed)


def cuda_graphs(setup):
    """Compare the losses of training as CUDA graphs with those of eager training, step by step.

    A CUDA graph writes each result to the same place in memory in every step. If an old result is
    still needed then, it is lost. This threatens micro-batches, whose gradients are summed.
    """
    # A batch with fewer masked places has no graph, but the batches after it have theirs again.
    compare_cuda_graphs(setup, bf16=False, compiled=False, dropout=0.0, has_unusual_batch=True)
    compare_cuda_graphs(setup, bf16=False, compiled=True, dropout=0.0)
    # Compiled, dropout draws other numbers than eager; as a graph it must draw the same.
    compare_cuda_graphs(setup, bf16=False, compiled=True, dropout=0.1)
    compare_cuda_graphs(setup, bf16=True, compiled=True, dropout=0.0)
    # The program refuses this; the row shows why.
    compare_cuda_graphs(setup, bf16=False, compiled=True, dropout=0.0,
                        micro_batch_size=math.ceil(TOY.B / 3))


def compare_cuda_graphs(setup, bf16, compiled, dropout, micro_batch_size=0,
                        has_unusual_batch=False):
    """Report how far the losses of eager or compiled training are from those with CUDA graphs.

    has_unusual_batch: see losses_of_steps
    """
    from torch._dynamo.utils import counters             # imported here: it is large
    settings = {"bf16": bf16, "dropout": dropout, "micro_batch_size": micro_batch_size}
    expected = losses_of_steps(setup, settings, has_unusual_batch, compiled, as_cuda_graphs=False)
    counters.clear()
    try:
        found = losses_of_steps(setup, settings, has_unusual_batch, compiled=True,
                                as_cuda_graphs=True)
    except RuntimeError:                                 # often: torch has noticed that one is lost
        traceback.print_exc()
        found = [math.inf] * len(expected)
    num_skips = counters["inductor"]["cudagraph_skips"]
    differences = [abs(a - b) / abs(a) for a, b in zip(expected, found)]
    what = "eager, CUDA graphs"
    if compiled:
        what = "compiled, CUDA graphs"
    row = {"what": f"{what}; {precision(bf16)}", "dropout": dropout}
    row["micro-batch size"] = micro_batch_size
    row["unusual batch"] = has_unusual_batch
    row["losses of 12 steps differ by"] = f"{max(differences):.1e}"
    row["graphs that torch left out"] = num_skips
    passed = None
    if micro_batch_size == 0:
        row["goal"] = "1e-3, 0"
        passed = max(differences) < 1e-3 and num_skips == 0
    setup.report("Training as CUDA graphs", row, passed)


def losses_of_steps(setup, settings, has_unusual_batch, compiled, as_cuda_graphs):
    """Train a toy for 12 steps -> the loss of each.

    settings: of make_distillation
    has_unusual_batch: the sixth batch has fewer masked places than usual
    """
    # If torch.compile meets a second size of batches, it compiles again, now for batches of any
    # size. That would be another program than in a training, so what it has compiled is forgotten.
    torch.compiler.reset()
    distillation_makes_graphs = as_cuda_graphs
    torch._inductor.config.triton.cudagraphs = False
    if as_cuda_graphs and settings["micro_batch_size"] > 0:
        # A Distillation makes no graphs of micro-batches, so torch itself is told to make them.
        distillation_makes_graphs = False
        torch._inductor.config.triton.cudagraphs = True
    distillation = make_distillation(setup, TOY, compiled=compiled, full_recipe=True,
                                     cuda_graphs=distillation_makes_graphs, **settings)
    if has_unusual_batch:
        make_batch_unusual(distillation.batches, step=5)
    lines = train_and_read_log(setup, distillation, steps=12, log_every=1)
    return [line["loss"] for line in lines]


# ---- Speed, memory, growth --------------------------------------------------------------

def our_speed(setup, name, table, compiled, batch_size=192, length=256, micro_batch_size=0,
              dropout=0.1, full_recipe=False, steps=40, small=False, cuda_graphs=False):
    """Train bert-base's student in bfloat16 and report what train()'s own log says.

    name, table: of the row; batch_size, length: B and T; compiled: with torch.compile
    micro_batch_size: see --micro-batch-size; dropout: its probability
    full_recipe: see make_distillation; corrections and the elastic loss are no useful operations
    steps: there is a line of the log after each quarter, of which the first does not count
    small: models and a batch of all-MiniLM's size
    cuda_graphs: whether the compiled kernels of a step are started all at once, as CUDA graphs
    """
    shape = setup.choose(BASE._replace(B=batch_size, T=length), TOY)
    if small:
        shape = setup.choose(SMALL, TOY)
    steps = setup.choose(steps, 4)
    row = {"variant": name, "batch": f"{shape.B} x {shape.T}"}
    if setup.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    try:
        distillation = make_distillation(setup, shape, bf16=True, compiled=compiled,
                                         micro_batch_size=micro_batch_size, dropout=dropout,
                                         full_recipe=full_recipe, cuda_graphs=cuda_graphs)
        begin = time.perf_counter()
        distill.seconds_of_a_step(distillation)
        first_seconds = time.perf_counter() - begin
        lines = train_and_read_log(setup, distillation, steps, log_every=steps // 4)
    except torch.OutOfMemoryError:
        row["ms a step"] = "out of memory"
        setup.report(table, row)
        return
    tokens_per_second = median_tokens_per_second(lines)
    seconds = shape.B * shape.T / tokens_per_second      # of a step
    sequences_per_second = shape.B / seconds
    rate = useful_operations(shape, distillation.student.config) / seconds
    share = rate / setup.values.get("matrix rate", math.nan)       # nan if the job card failed
    row["ms a step"] = f"{1000 * seconds:.1f}"
    row["sequences/s"] = f"{sequences_per_second:.4g}"
    row["tokens/s"] = f"{tokens_per_second:,.0f}"
    row["useful TFLOP/s"] = f"{rate / 1e12:.4g}"
    row["share of the matrix rate"] = f"{share:.1%}"
    row["GPU memory, GiB"] = f"{gpu_gigabytes(setup):.1f}"
    row["s of the first passes, with compiling"] = f"{first_seconds:.1f}"
    setup.report(table, row)


def authors_speed(setup, name, table, bf16):
    """Time the authors' step at their own batch of 48, without TF32, as torch is by default.

    The process is the one that bench/speed.py starts. Its answers are of a step each; the median
    of ten counts.
    """
    row = {"variant": name}
    if not setup.authors:
        row["ms a step"] = "left out: no --authors"
        setup.report(table, row)
        return
    shape = setup.choose(BASE._replace(B=48), TOY)
    variant = authors("authors_step", shape=shape, bf16=bf16, device=setup.device)
    worker = Worker(variant, setup.authors_python, os.pathsep.join(setup.authors))
    answers = []
    for _ in range(13):
        worker.send({})
        answers.append(worker.receive())
    worker.close()
    answers = answers[3:]                                # the first three are slower
    seconds = statistics.median(answer["seconds"] for answer in answers)
    sequences_per_second = shape.B / seconds
    num_bytes = answers[-1].get("GPU bytes", 0)
    row["batch"] = f"{shape.B} x {shape.T}"
    row["ms a step"] = f"{1000 * seconds:.1f}"
    row["sequences/s"] = f"{sequences_per_second:.4g}"
    row["tokens/s"] = f"{sequences_per_second * shape.T:,.0f}"
    row["GPU memory, GiB"] = f"{num_bytes / 2**30:.1f}"
    setup.report(table, row)


def growth(setup):
    """Measure eager steps of several batch sizes and lengths, one after the other.

    Time and memory should be proportional to the batch size. With the length they should grow
    somewhat faster, because a map has T x T numbers. A small batch takes longer than this if the
    host needs more time to start the kernels than the card needs to run them.
    """
    table = "Growth with batch and length, eager"
    sizes = [(24, 256), (48, 256), (96, 256), (192, 256), (384, 256)]
    sizes += [(384, 128), (96, 512)]                     # as many tokens as 192 x 256
    sizes = setup.choose(sizes, sizes[:2])
    for B, T in sizes:
        our_speed(setup, f"{B} x {T}", table, compiled=False, batch_size=B, length=T, steps=12)
        # torch keeps the memory of freed tensors in blocks of their sizes. For the tensors of the
        # next batch size they would not fit, so they are given back.
        if setup.device != "cpu":
            torch.cuda.empty_cache()


# ---- Where the time goes ----------------------------------------------------------------

def profile(setup, compiled, full_recipe, cuda_graphs=False):
    """Report how many milliseconds of a step each group of operations takes, and the estimates.

    full_recipe: True: the student has corrections, the elastic loss and no dropout; False: it has
        the paper's adapters and dropout. The estimates were made for False
    cuda_graphs: the compiled step runs as CUDA graphs. Then the groups are left out, because a
        graph does not tell which operation started a kernel

    The steps are calls of distill.training_step, and nothing is read from the card between them, as
    in most steps of train().
    """
    dropout = 0.1
    title = "Profile of a step"
    if full_recipe:
        dropout = 0.0
        title = "Profile of a step of the recipe full"
    distillation = make_distillation(setup, setup.shape, True, compiled, dropout=dropout,
                                     full_recipe=full_recipe, cuda_graphs=cuda_graphs)
    optimizer = distill.make_optimizer(distillation.student, weight_decay=0.01)
    options = distill.TrainingOptions(
        steps=100, lr=1e-4, warmup=0, weight_decay=0.01, seed=0, log_every=100, eval_every=0,
        save_every=100, out="", resume=False)
    processes = distill.Processes(device=torch.device(setup.device))

    def make_steps(num_steps):
        for step in range(num_steps):
            distill.training_step(distillation.student, distillation, optimizer, step, options,
                                  processes)
        synchronise(setup.device)

    make_steps(3)                                        # the first ones are slower
    num_steps = setup.choose(5, 1)
    num_clocked = 4 * num_steps     # more of them, because the first one begins with an idle card
    begin = time.perf_counter()
    make_steps(num_clocked)
    clock_ms = 1000 * (time.perf_counter() - begin) / num_clocked
    activities = [ProfilerActivity.CPU]
    if setup.device != "cpu":
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        make_steps(num_steps)
    events = profiler.key_averages(group_by_input_shape=True)
    if cuda_graphs:
        title += ", compiled, as CUDA graphs"
    elif compiled:
        title += ", compiled"
        report_groups(setup, title, ESTIMATED_COMPILED, events, num_steps)
    else:
        title += ", eager"
        report_groups(setup, title, ESTIMATED_EAGER, events, num_steps)
    report_busy(setup, title, events, num_steps, clock_ms)
    report_pauses(setup, title, profiler.events(), num_steps)


def milliseconds_of(setup, event, num_steps):
    """Return how long the kernels that an operation itself started took, in ms a step.

    On a CPU, which only tests this script, it is the operation's own time.
    """
    microseconds = event.self_cpu_time_total
    if setup.device != "cpu":
        microseconds = event.self_device_time_total
    return microseconds / 1000 / num_steps


def report_groups(setup, title, estimates, events, num_steps):
    """Report the milliseconds of each group, and their sum.

    events: a profile's averages by operation and shapes of its inputs, and by kernel
    """
    group_ms = dict.fromkeys(estimates, 0.0)
    for event in events:
        if is_operation(event):
            group = group_of(event.key, event.input_shapes, setup.shape)
            group_ms[group] += milliseconds_of(setup, event, num_steps)
    column = "ms, as estimated for an H200, with adapters and dropout"
    for group, milliseconds in group_ms.items():
        row = {"group": group, "ms": f"{milliseconds:.2f}", column: estimates[group]}
        setup.report(title, row)
    row = {"group": "sum of the groups", "ms": f"{sum(group_ms.values()):.2f}"}
    row[column] = f"{sum(estimates.values()):.1f}"
    setup.report(title, row)


def is_operation(event):
    """Tell whether an average of a profile is that of an operation, such as aten::mm or triton_...

    Other events would count kernels twice: the kernels themselves, and the profiler's own waiting
    ("Command Buffer Full").
    """
    if event.device_type != DeviceType.CPU or event.is_user_annotation:
        return False
    return "::" in event.key or event.key.startswith("triton_")


def report_busy(setup, title, events, num_steps, clock_ms):
    """Report the kernels' time, beside that of a step by the clock, without the profiler."""
    kernel_ms = 0.0
    num_kernels = 0
    for event in events:
        # A user annotation, such as "Optimizer.step", covers kernels that have their own rows.
        if event.device_type == DeviceType.CPU or event.is_user_annotation:
            continue
        kernel_ms += milliseconds_of(setup, event, num_steps)
        num_kernels += event.count / num_steps
    share = kernel_ms / clock_ms
    setup.report(title, {"group": f"{num_kernels:.0f} kernels", "ms": f"{kernel_ms:.2f}"})
    setup.report(title, {"group": "a step by the clock", "ms": f"{clock_ms:.2f}"})
    setup.report(title, {"group": f"busy: kernels over clock is {share:.3f}"})


def report_pauses(setup, title, events, num_steps):
    """Report how busy the card is from its first kernel to its last, and before which kernels it
    has the longest pauses. The profiler makes the pauses longer; their order is what counts.

    events: all events of a profile, one by one
    """
    kernels = []
    for event in events:
        if event.device_type != DeviceType.CPU and not event.is_user_annotation:
            kernels.append((event.time_range.start, event.time_range.end, event.name))
    if not kernels:                                      # on a CPU
        return
    kernels.sort()
    first = kernels[0][0]
    busy_until = first                                   # microseconds
    pause_before = {}                                    # {name of a kernel: microseconds}
    for begin, end, name in kernels:
        pause = max(0.0, begin - busy_until)             # 0 if another kernel still ran
        pause_before[name] = pause_before.get(name, 0.0) + pause
        busy_until = max(busy_until, end)
    busy = 1 - sum(pause_before.values()) / (busy_until - first)
    setup.report(title, {"group": f"busy on the time line: {busy:.3f}"})
    longest_first = sorted(pause_before, key=pause_before.get, reverse=True)
    for name in longest_first[:5]:
        row = {"group": f"pauses before {name[:40]}"}
        row["ms"] = f"{pause_before[name] / 1000 / num_steps:.2f}"
        setup.report(title, row)


def group_of(name, input_shapes, shape):
    """Name the group to which an operation belongs.

    The profiler records an operation's name and the shapes of its inputs; with torch.compile the
    operation is a kernel "triton_...". So products are told by their names, all else by the shape
    of the largest input. The tests below are made in this order, and the first that fits counts.
    """
    shapes = [sizes for sizes in input_shapes if is_shape(sizes)]
    largest = max(shapes, key=math.prod, default=[])
    num_numbers = math.prod(largest)
    num_tokens = shape.B * shape.T
    if name in ("aten::mm", "aten::addmm"):
        return "linear products"
    if name in ("aten::bmm", "aten::baddbmm") or "attention" in name:
        return "attention products"
    # Logits (M, V) and the word table (V, C) both have V as a size; compiled kernels pad it to a
    # multiple of 64. Only the logits belong to this group. They have more numbers than the table,
    # because M is larger than C; for a TOY it is not, but there the groups mean nothing anyway.
    has_vocabulary = any(shape.V <= size < shape.V + 64 for size in largest)
    if has_vocabulary and num_numbers > (shape.V + 64) * shape.C:
        return "vocabulary (M V)"
    # At 192 x 256 a map and a gelu have as many numbers, by chance: the last size tells.
    if num_numbers == shape.B * shape.H * shape.T**2 and largest[-1] == shape.T:
        return "attention maps (B H T T)"
    if num_numbers == num_tokens * shape.F:
        return "gelu (B T F)"
    if len(largest) == 4 and largest[-1] == shape.C // shape.H:
        return "copies of heads"
    if num_numbers == num_tokens * shape.C:
        return "residual, norms, dropout (B T C)"
    return "small: weights, optimizer, others"


def is_shape(sizes):
    """Tell whether this is the shape of one tensor: a list of tensors has a list of shapes."""
    return len(sizes) > 0 and isinstance(sizes[0], int)


# ---- The default command ----------------------------------------------------------------

def default_command(setup, device, bf16, name):
    """Run `python distill.py` on a device and report the student's accuracy."""
    out = os.path.join(setup.folder, "default", name)
    flags = ["--device", device, "--out", out]
    if bf16:
        flags.append("--bf16")
    else:
        flags.append("--no-bf16")
    if setup.toy:
        flags += ["--steps", 4, "--length", 16]
    seconds = run_script("distill.py", flags)
    last = read_log(out)[-1]
    row = {"command": f"distill.py, {name}", "score": f"{last['valid_accuracy']:.2%}"}
    row["loss"] = f"{last['valid_loss']:.3f}"
    row["tokens/s"] = f"{last['tokens_per_second']:,}"
    row["seconds"] = f"{seconds:.0f}"
    setup.report("The default command", row)


# ---- Kills ------------------------------------------------------------------------------

def kills(setup, compiled):
    """Kill a run again and again: does it end like an undisturbed one?

    First two undisturbed runs are compared: a GPU need not give the same bits twice. Compiled it
    does not: it sums some gradients with atomic additions, in whatever order they come.
    """
    name = "eager"
    wanted_kills = setup.choose(5, 1)
    goal = "the same bytes"
    if compiled:
        name = "compiled"
        wanted_kills = 1                                 # each start compiles again
        goal = "accuracy within 2 points"
    steps = setup.choose(300, 40)
    flags = ["--batch-size", 4, "--length", 32, "--log-every", 10, "--eval-every", 0]
    flags += ["--save-every", 5, "--device", setup.device, "--steps", steps]
    if compiled and not setup.toy:
        flags.append("--compile")
    folders = {}
    for run in ("first", "second", "killed"):
        folders[run] = os.path.join(setup.folder, "kills", name, run)

    kill.finish("distill", flags + ["--out", folders["first"]])
    kill.finish("distill", flags + ["--out", folders["second"]])
    flags += ["--out", folders["killed"]]
    num_kills, num_resumed, _ = kill.kill_repeatedly("distill", flags, folders["killed"],
                                                     wanted_kills, kill.LONGEST, random.Random(0))
    remains = {}
    accuracies = {}
    for run, folder in folders.items():
        remains[run] = kill.remains(folder)
        accuracies[run] = read_log(folder)[-1]["valid_accuracy"]
    distance = abs(accuracies["killed"] - accuracies["first"])
    is_same = remains["first"] == remains["killed"]
    row = {"what": f"{name}, {steps} steps", "kills": num_kills}
    row["with a checkpoint"] = num_resumed
    row["two undisturbed runs"] = describe_equality(remains["first"] == remains["second"])
    row["killed and undisturbed"] = describe_equality(is_same)
    row["accuracies differ by"] = f"{distance:.2%}"
    row["goal"] = goal
    passed = is_same
    if compiled:
        passed = distance <= 0.02
    if num_resumed < wanted_kills:                       # the run ended too early
        passed = False
    setup.report("Kills and resumes", row, passed)


def describe_equality(is_equal):
    """Put into words whether two runs left the same."""
    if is_equal:
        return "the same bytes"
    return "not the same bytes"


# ---- Two processes on one card ----------------------------------------------------------

def two_processes(setup, cuda_graphs):
    """Let two processes share the card and a batch. The sum of their gradients must be what one
    process computes from the whole batch.

    The two exchange gradients by gloo, because NCCL refuses two processes on one card. So the speed
    of NCCL is not measured.

    cuda_graphs: the two run their passes as CUDA graphs; the models are then those of TOY
    """
    shape = setup.choose(BASE._replace(B=6, T=64), TOY)
    if cuda_graphs:
        shape = TOY
    distillation = make_distillation(setup, shape, bf16=False, dropout=0.0)
    alone = pass_of(distillation, distillation.student)
    path = os.path.join(setup.folder, f"two_{cuda_graphs}.pt")
    arguments = (setup.toy, setup.device, setup.folder, shape, cuda_graphs, free_port(), path)
    # It raises an error if a process fails.
    torch.multiprocessing.spawn(one_of_two, args=arguments, nprocs=2)
    found = torch.load(path)
    # Each process knows its own part of the losses alone, so only gradients are compared.
    together = Pass(alone.losses, found["gradients"])
    models = f"{shape.B} x {shape.T}"
    what = "one process, two"
    if cuda_graphs:
        what += " with CUDA graphs"
    report_difference(setup, what, models, alone, together, exact=True)
    if cuda_graphs:
        return
    for messages, seconds in found["seconds"].items():
        row = {"million numbers": f"{found['count'] / 1e6:.2f}", "messages": messages}
        row["ms"] = f"{1000 * seconds:.1f}"
        setup.report("Sum of the gradients of two processes, gloo, one card", row)


def one_of_two(rank, toy, device, folder, shape, cuda_graphs, port, path):
    """Be one of two processes: spawn() calls this with the ranks 0 and 1.

    The first one saves what it has found: {"gradients": {name: tensor}, summed; "count": how many
    numbers they have; "seconds": {number of messages: seconds of a sum}}.
    """
    setup = Setup(toy=toy, device=device, folder=folder, tokenizer="", corpus=None, authors=[],
                  authors_python="", values={}, answers=sys.stderr)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    processes = distill.Processes(rank, 0, 2, torch.device(device))
    distillation = make_distillation(setup, shape, bf16=False, dropout=0.0, processes=processes,
                                     compiled=cuda_graphs, cuda_graphs=cuda_graphs)
    student = distillation.student
    # Each pass is of this process's half of the batch, and each begins without gradients. Those of
    # the last pass are compared, because by then a CUDA graph is at work: torch runs the first pass
    # without a graph, records one in the second pass, and replays it from the third pass on.
    for _ in range(4):
        pass_of(distillation, student)
    distill.sum_over_processes(student, {}, processes)
    summed = {}
    for name, parameter in student.named_parameters():
        if parameter.grad is not None:
            summed[name] = parameter.grad.clone()

    def in_one_message():
        distill.sum_over_processes(student, {}, processes)

    def in_many_messages():
        for parameter in student.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)

    found = {"gradients": {}, "seconds": {}}
    for name, gradient in summed.items():
        found["gradients"][name] = gradient.cpu().double()
    found["count"] = sum(gradient.numel() for gradient in summed.values())
    found["seconds"][1] = median_seconds(in_one_message, device, times=5)
    found["seconds"][len(summed)] = median_seconds(in_many_messages, device, times=5)
    if rank == 0:
        torch.save(found, path)
    dist.destroy_process_group()


# ---- A real distillation, small ---------------------------------------------------------

MINI_SECONDS = 30                   # of each training
MINI_BATCH = 256                    # sequences
MINI_LENGTH = 128                   # tokens in each


def mini_flags(setup, out):
    """List the flags that all runs of the mini-distillation share."""
    flags = ["--tokenizer", setup.tokenizer, "--out", out, "--device", setup.device]
    flags += ["--cache", os.path.join(setup.folder, "cache"), "--overwrite"]
    flags += ["--dropout", 0, "--eval-every", 0, "--lr", 1e-3]
    flags += ["--batch-size", setup.choose(MINI_BATCH, 4)]
    flags += ["--length", setup.choose(MINI_LENGTH, 16)]
    if setup.corpus is not None:
        flags += ["--corpus", setup.corpus]
    return flags


def run_for_a_while(setup, flags, out):
    """Run distill.py twice -> the number of steps of the second run, the lines of its log.

    The short run measures the speed. From it follows how many steps the second run makes in
    MINI_SECONDS; reading, compiling and measuring the models are not counted.
    """
    short = setup.choose(80, 8)
    run_script("distill.py", flags + ["--steps", short, "--log-every", short // 4])
    tokens_per_second = median_tokens_per_second(read_log(out))
    steps = round(MINI_SECONDS * tokens_per_second / (MINI_BATCH * MINI_LENGTH))
    steps = setup.choose(steps, 8)
    run_script("distill.py", flags + ["--steps", steps, "--log-every", steps // 4])
    return steps, read_log(out)


def report_mini(setup, what, steps, lines):
    """Report a training of the mini-distillation by the lines of its log."""
    last = lines[-1]
    row = {"what": what, "steps": steps}
    row["held-out accuracy"] = f"{last['valid_accuracy']:.2%}"
    row["loss"] = f"{last['valid_loss']:.3f}"
    row["tokens/s"] = f"{median_tokens_per_second(lines):,.0f}"
    setup.report("A real mini-distillation", row)


def mini_teacher(setup):
    """Pre-train a BERT of C 384 and 6 layers with the project's own loop."""
    out = os.path.join(setup.folder, "mini", "teacher")
    C = setup.choose(384, 48)
    L = setup.choose(6, 2)
    flags = mini_flags(setup, out) + ["--teacher", "none"]
    flags += ["--hidden-size", C, "--embedding-size", C]
    flags += ["--num-hidden-layers", L, "--num-hidden-groups", L]         # nothing is shared
    flags += ["--num-attention-heads", setup.choose(6, 3)]
    steps, lines = run_for_a_while(setup, flags, out)
    report_mini(setup, f"teacher: C {C}, L {L}", steps, lines)


def mini_student(setup):
    """Distil that BERT into one shared layer, recursed as often as it has layers."""
    teacher = os.path.join(setup.folder, "mini", "teacher")
    out = os.path.join(setup.folder, "mini", "student")
    compile_flag = setup.choose("--compile", "--no-compile")
    flags = mini_flags(setup, out) + ["--teacher", teacher, compile_flag]
    steps, lines = run_for_a_while(setup, flags, out)
    report_mini(setup, "student", steps, lines)


if __name__ == "__main__":
    serve([card, parity, parity_of_tuning, waits, graphs, cuda_graphs, our_speed, authors_speed,
           growth, profile, default_command, kills, two_processes, mini_teacher, mini_student])
