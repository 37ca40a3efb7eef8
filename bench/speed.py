"""Speed and memory beside the authors' code and transformers: the tables of EXPERIMENTS.md.

    python bench/speed.py --authors DIR --authors-python VENV/bin/python
        all tables; DIR is a checkout of github.com/nlpie-research/MiniALBERT, VENV has
        transformers 4.30, which it needs
    python bench/speed.py --rows step tuning --repeats 7
        two of the tables, without the authors' rows

Each variant is a process of its own, on all cores (speed_ours.py, speed_authors.py). The variants
take turns, so that other work on the machine disturbs all of them. A figure is the median over the
turns, with the smallest and the largest in brackets. A ratio is taken within each turn, and the
table has the median of these ratios. "over X" is a row's figure divided by that of X. In the first
table of inference, "over ours" is the other's time divided by ours, so above 1 ours is faster.

A MB is 2**20 bytes, of memory and of text. The sections have the same numbers as in EXPERIMENTS.md.
There is no section 2: bench/gpu.py measures a step on a GPU. Unless something else is said,
students have the paper's adapters, as the authors' student has.
"""
import argparse
import json
import lzma
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np
import torch

BENCH = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(BENCH)
sys.path.insert(0, ROOT)            # speed_ours.py imports the modules of the program

from speed_ours import save_models, save_student_with_corrections, write_sentences
from speed_worker import Shape

# bert-base and the paper's student of it.
BASE = Shape(B=8, T=128, V=30522, E=128, C=768, H=12, F=3072, L=12, R=6)
# The tables of growth begin with these sizes. Then one size at a time takes the values in GROWTH.
SMALL = BASE._replace(V=16384, E=64, C=256, H=4, F=1024)
GROWTH = {"T": [64, 128, 256, 512], "B": [2, 4, 8, 16], "R": [2, 3, 4, 6, 12],
          "V": [8192, 16384, 32768, 65536]}
# all-MiniLM and the students of bench/study.py.
STUDY = Shape(B=16, T=128, V=30522, E=128, C=384, H=12, F=1536, L=6, R=6)
LENGTHS = [32, 128, 512]                    # of the texts of inference
# An epoch of PubMed in the authors' biomedical script: steps, sequences, tokens.
EPOCH_TOKENS = 174_000 * 192 * 256
TEXT_MEGABYTES = 55                         # of text to tokenise in each turn
# The terms into which the time of a step is divided: the columns of a table.
TERMS = ["data", "teacher", "student", "losses", "backward", "reduce, clip", "optimizer"]


# ---- Workers, which take turns ----------------------------------------------------------
# A worker's answer to a request is a dict of what it measured:
#
#     seconds         how long one step, pass or run took
#     rate            sequences, sentences or million tokens per second
#     MB              the most memory that the process has had so far
#     MB above idle   the same, less what it had after its imports, before it made its models
#     matrix          the rate of matrix products on this machine: GFLOP/s, that is, thousand
#                     million operations per second
#     share           the rate of a step, counting useful operations alone, divided by "matrix"
#     a term          the seconds of one of the TERMS of a step


class Variant(NamedTuple):
    """What one worker measures."""
    script: str             # the file in bench/ that has the function
    function: str           # the function that builds the variant
    settings: dict          # its arguments
    environment: dict       # more environment variables for the process


def ours(function, environment=None, **settings):
    """Make a Variant of speed_ours.py."""
    if environment is None:
        environment = {}
    return Variant("speed_ours.py", function, settings, environment)


def authors(function, **settings):
    """Make a Variant of speed_authors.py, which is left out if there is no --authors."""
    return Variant("speed_authors.py", function, settings, {})


class Worker:
    """A process that measures one variant."""

    def __init__(self, variant, python, code):
        """Start the process with this python; its modules come from the folder code."""
        settings = dict(variant.settings)
        if "shape" in settings:
            # JSON has no Shape; the worker makes one of the dict again.
            settings["shape"] = settings["shape"]._asdict()
        self.command = [python, os.path.join(BENCH, variant.script), variant.function,
                        json.dumps(settings)]
        environment = dict(os.environ)
        environment["PYTHONPATH"] = code
        # Only errors shall be printed between the rows of the tables.
        environment["PYTHONWARNINGS"] = "ignore"
        environment["TRANSFORMERS_VERBOSITY"] = "error"
        environment.update(variant.environment)
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment)

    def send(self, request):
        """Ask for a measurement. If the process has ended, receive() will say so."""
        if self.process.poll() is None:
            print(json.dumps(request), file=self.process.stdin, flush=True)

    def receive(self):
        """Wait for the answer {what was measured: number}. Without one the program ends: a table
        with some of its variants missing would be of no use."""
        line = self.process.stdout.readline()
        if line == "":
            raise SystemExit(f"a worker failed, as it says above: {self.command}")
        return json.loads(line)

    def close(self):
        """End the process, by the end of its input."""
        self.process.communicate()


def start_workers(args, variants):
    """Start the processes of {name: Variant} -> {name: Worker}. Without --authors, the authors'
    variants are left out."""
    workers = {}
    for name, variant in variants.items():
        if variant.script == "speed_ours.py":
            workers[name] = Worker(variant, sys.executable, ROOT)
        elif args.authors is not None:
            workers[name] = Worker(variant, args.authors_python, args.authors)
    return workers


def take_turns(workers, num_turns, request):
    """Send a request to one worker after the other, num_turns times -> {name: list of answers}.

    While one works, the others only wait for their next request.
    """
    answers = {name: [] for name in workers}
    for _ in range(num_turns):
        for name, worker in workers.items():
            worker.send(request)
            answers[name].append(worker.receive())
    return answers


def close_workers(workers):
    """End all processes of start_workers."""
    for worker in workers.values():
        worker.close()


def compare(args, variants):
    """Measure {name: Variant} in turns -> {name: list of answers}.

    The answers of a first turn do not count. It is slower, because in it a process requests its
    memory from the system and torch.compile compiles.
    """
    workers = start_workers(args, variants)
    take_turns(workers, 1, {})
    answers = take_turns(workers, args.repeats, {})
    close_workers(workers)
    return answers


# ---- Tables -----------------------------------------------------------------------------

def print_heading(title, columns):
    """Print the title and the head of a table in Markdown."""
    print(f"\n### {title}\n")
    print_row(columns)
    print("|" + "---|" * len(columns), flush=True)


def print_row(cells):
    """Print a row at once: a table takes minutes to fill."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def describe(shape):
    """Write a Shape as in "B=8 T=128 ..."."""
    return " ".join(f"{letter}={size}" for letter, size in shape._asdict().items())


def short(number):
    """Write a number with three digits, or with all that stand before its point."""
    if number >= 100:
        return f"{number:.0f}"
    return f"{number:.3g}"


def values_of(answers, what, scale=1.0):
    """List one measurement of all turns."""
    return [scale * answer[what] for answer in answers]


def median_of(answers, what):
    """Return the median of one measurement over all turns."""
    return statistics.median(values_of(answers, what))


def summary(values):
    """Write a cell: the median, with the smallest and the largest; "-" if there are no values."""
    if not values:
        return "-"
    return f"{short(statistics.median(values))} ({short(min(values))} to {short(max(values))})"


def summary_of(answers, what, scale=1.0):
    """Write a cell: the summary of one measurement over all turns."""
    return summary(values_of(answers, what, scale))


def ratio_cell(answers, divisors, what):
    """Write a cell: the ratios within each turn of two variants' answers.

    divisors: the answers to divide by, None if their variant was not measured
    """
    ratios = []
    if divisors is not None:
        for answer, divisor in zip(answers, divisors):
            ratios.append(answer[what] / divisor[what])
    return summary(ratios)


# ---- 1. A step of distillation ----------------------------------------------------------

def step_section(args, folder):
    """Print the tables of a step: speed, memory, where the time goes, hours for an epoch.

    All variants have the same sizes and the same number of masked places. Ours draws these places
    in each step, the authors' variant has them ready. A step ends with the update of the
    parameters. All ratios are over the authors' float32, those of bfloat16 as well.
    """
    def our_step(**settings):
        return ours("our_step", shape=BASE, with_matrix_rate=True, **settings)

    variants = {}
    variants["ours"] = our_step()
    variants["authors'"] = authors("authors_step", shape=BASE)
    variants["ours, --no-tie-decoder"] = our_step(tie_decoder=False)
    variants["ours, --bf16"] = our_step(bf16=True)
    variants["authors', bfloat16"] = authors("authors_step", shape=BASE, bf16=True)
    # There is no row for --compile --bf16: it gives nan on some CPUs, a fault of torch 2.13 (see
    # EXPERIMENTS.md).
    variants["ours, --compile"] = our_step(compiled=True)
    answers = compare(args, variants)
    print_steps(f"1. Distillation step on the CPU: {describe(BASE)}", answers)
    print_terms(answers)
    print_epoch(BASE.T * median_of(answers["ours"], "rate"))


def print_steps(title, answers):
    """Print a row for each variant of a step.

    The last two columns say how near our variants come to what this machine can do, if that was
    measured:

    - GFLOP/s of matrices: the rate of the machine, measured with single products of matrices
    - of which useful: the rate of the step, divided by that of the machine. Of a step we count only
      the operations of products that no step can do without (useful_operations)
    """
    print_heading(title, [
        "variant", "s/step", "sequences/s", "over authors' float32", "MB", "over authors' float32",
        "GFLOP/s of matrices", "of which useful"])
    theirs = answers.get("authors'")
    for name, found in answers.items():
        cells = [name]
        cells.append(summary_of(found, "seconds"))
        cells.append(summary_of(found, "rate"))
        cells.append(ratio_cell(found, theirs, "rate"))
        cells.append(summary_of(found, "MB"))
        cells.append(ratio_cell(found, theirs, "MB"))
        if "matrix" in found[0]:
            cells.append(summary_of(found, "matrix"))
            cells.append(summary_of(found, "share"))
        else:
            cells += ["-", "-"]
        print_row(cells)


def print_terms(answers):
    """Print where the time of our variants of a step goes, by the clock inside them.

    "losses" is all of the forward pass that is neither teacher nor student. A forward pass that is
    compiled is one program, so all of it is in "losses", and the cells of the models are "-".
    """
    title = "1. Distillation step on the CPU: where the time goes, ms"
    print_heading(title, ["variant"] + TERMS)
    for name, found in answers.items():
        if not name.startswith("ours"):
            continue
        cells = [name]
        for term in TERMS:
            if term in found[0]:
                cells.append(f"{1000 * median_of(found, term):.1f}")
            else:
                cells.append("-")
        print_row(cells)


def print_epoch(tokens_per_second):
    """Print how long the authors' epoch of PubMed would take at the rate of section 1, whose
    sequences are shorter than theirs."""
    print_heading(f"1. One epoch of PubMed, {EPOCH_TOKENS:,} tokens", ["tokens/s", "hours"])
    hours = EPOCH_TOKENS / tokens_per_second / 3600
    print_row([f"{tokens_per_second:,.0f}", f"{hours:,.1f}"])


# ---- 3. Inference -----------------------------------------------------------------------

def inference_section(args, folder):
    """Print the tables of a forward pass beside the fastest other one, of a student with
    corrections, and of mixed lengths.

    In the first table all variants load the same file. Before they are timed, it is checked that
    they compute the same.
    """
    paths = save_models(BASE, folder)
    print_heading(f"3. Inference: {describe(BASE)}", [
        "model", "batch x length", "ours, ms", "the fastest other", "its ms", "over ours"])
    for kind, path in paths.items():
        workers = start_workers(args, inference_variants(kind, path))
        check_outputs(kind, workers)
        for batch in (1, 32):
            for length in LENGTHS:
                request = {"batch": batch, "length": length}
                print_inference(kind, workers, request, args.repeats)
        close_workers(workers)
    print_corrections(args, paths["bert"], folder)
    print_mixed_lengths(args, folder, paths["student"])


def inference_variants(kind, path):
    """List the variants that can run a kind of model: {name: Variant}. transformers has no student
    with adapters, and the authors have no BERT."""
    variants = {"ours": ours("our_inference", path=path, shape=BASE)}
    if kind != "student":
        model = "AlbertModel"
        if kind == "bert":
            model = "BertModel"
        for attention in ("sdpa", "eager"):
            variants[f"{model}, {attention}"] = ours(
                "transformers_inference", path=path, shape=BASE, model=model,
                attention=attention)
    if kind != "bert":
        variants["authors'"] = authors("authors_inference", path=path, shape=BASE)
    return variants


def check_outputs(kind, workers):
    """Stop unless all workers compute the same hidden states for a padded batch."""
    answers = take_turns(workers, 1, {"batch": 3, "length": 7, "check": True})
    our_values = np.array(answers["ours"][0]["values"])
    for name, found in answers.items():
        difference = np.abs(np.array(found[0]["values"]) - our_values).max()
        if np.isnan(difference) or difference > 1e-4:
            raise SystemExit(f"{name} differs from our {kind} by {difference}")


def print_inference(kind, workers, request, num_turns):
    """Print a row: our forward pass and that of the fastest other, by its median.

    All take part in all turns: one turn alone would not show which other is the fastest. A first
    turn, which does not count, is the warm-up for this size.
    """
    take_turns(workers, 1, request)
    answers = take_turns(workers, num_turns, request)
    our_answers = answers.pop("ours")
    fastest = "-"
    theirs = []
    if answers:
        fastest = min(answers, key=lambda name: median_of(answers[name], "seconds"))
        theirs = answers[fastest]
    our_milliseconds = summary_of(our_answers, "seconds", 1000)
    their_milliseconds = summary_of(theirs, "seconds", 1000)
    size = f"{request['batch']} x {request['length']}"
    ratio = ratio_cell(theirs, our_answers, "seconds")
    print_row([kind, size, our_milliseconds, fastest, their_milliseconds, ratio])


def print_corrections(args, bert, folder):
    """Print a table: a BERT, whose folder is `bert`, beside a student with corrections.

    In the column "student" each forward pass adds the corrections to the matrices. In the column
    "student, merged" they were added once, before the first pass.
    """
    paths = {"bert": bert}
    paths |= save_student_with_corrections(BASE, folder)     # "corrections" and "merged"
    variants = {}
    for kind, path in paths.items():
        variants[kind] = ours("our_inference", path=path, shape=BASE)
    workers = start_workers(args, variants)
    print_heading("3. Inference with corrections, ms", [
        "batch x length", "bert", "student", "over bert's", "student, merged", "over bert's"])
    for batch in (1, 32):
        for length in LENGTHS:
            request = {"batch": batch, "length": length}
            take_turns(workers, 1, request)              # the warm-up for this size
            answers = take_turns(workers, args.repeats, request)
            cells = [f"{batch} x {length}", summary_of(answers["bert"], "seconds", 1000)]
            for kind in ("corrections", "merged"):
                ratio = ratio_cell(answers[kind], answers["bert"], "seconds")
                cells += [summary_of(answers[kind], "seconds", 1000), ratio]
            print_row(cells)
    close_workers(workers)


def print_mixed_lengths(args, folder, path):
    """Print a table: the seconds of a prediction if sentences of similar length share a batch, and
    if they do not."""
    most = 872                                           # all of SST-2's dev set
    sentences, num_sentences = sst2_sentences(args, folder, most)
    names = {"sorted": "predict_logits, sorted by length", "in_file_order": "file order",
             "padded": "file order, padded to 128"}
    variants = {}
    for how in names:
        variants[how] = ours("our_predictions", how=how, path=path, sentences=sentences)
    answers = compare(args, variants)
    print_heading(f"3. Mixed lengths: {num_sentences} sentences, SST-2 dev, in batches of 64",
                  ["how", "s", "over sorted"])
    for how, found in answers.items():
        ratio = ratio_cell(found, answers["sorted"], "seconds")
        print_row([names[how], summary_of(found, "seconds"), ratio])


# ---- 4. Tuning --------------------------------------------------------------------------

def tuning_section(args, folder):
    """Print the table of fine-tuning: the whole model, its adapters or its head alone.

    A turn is an epoch over real sentences, without the evaluation after it. Ours sorts sentences by
    length before it makes batches, theirs does not: the ratio includes what this saves.
    """
    path = save_models(BASE, folder)["student"]
    sentences, num_sentences = sst2_sentences(args, folder, most=224)

    def our_tuning(mode, bf16=False):
        return ours("our_tuning", mode=mode, path=path, sentences=sentences, bf16=bf16)

    def authors_tuning(mode):
        return authors("authors_tuning", mode=mode, sentences=sentences, shape=BASE)

    variants = {}
    variants["ours, all"] = our_tuning("all")
    variants["authors', all"] = authors_tuning("all")
    variants["ours, adapters"] = our_tuning("adapters")
    variants["authors', adapters"] = authors_tuning("adapters")
    variants["ours, head"] = our_tuning("head")
    variants["ours, all, --bf16"] = our_tuning("all", bf16=True)
    answers = compare(args, variants)
    print_heading(f"4. Tuning on the CPU: {num_sentences} sentences, SST-2 dev, in batches of 32", [
        "variant", "sentences/s", "over authors' same", "over ours, all", "MB"])
    for name, found in answers.items():
        theirs = None
        if name.startswith("ours"):
            mode = name.split(", ")[1]                   # of "ours, all, --bf16" it is "all"
            theirs = answers.get(f"authors', {mode}")
        cells = [name, summary_of(found, "rate")]
        cells.append(ratio_cell(found, theirs, "rate"))
        cells.append(ratio_cell(found, answers["ours, all"], "rate"))
        cells.append(summary_of(found, "MB"))
        print_row(cells)


def sst2_sentences(args, folder, most):
    """Tokenise at most so many sentences of SST-2's dev set -> a file, how many there are."""
    tsv = os.path.join(args.data, "glue/SST-2/dev.tsv")
    path = os.path.join(folder, f"{most}-sentences.json")
    return path, write_sentences(tsv, vocabulary(args), path, most)


def vocabulary(args):
    """Return the folder of the vocabulary with which all text is tokenised."""
    return os.path.join(args.data, "vocab/bert-base-uncased")


# ---- 5. Tokenising ----------------------------------------------------------------------

def tokenise_section(args, folder):
    """Print the table of tokenising a text, and a large one if --megabytes asks for it.

    Beside data.tokenise, which reads a file and writes a file, stand two methods of the tokenizers
    library, which get lines in memory and leave their result there.
    """
    megabytes = min(TEXT_MEGABYTES, args.megabytes)
    text = os.path.join(folder, "text.txt")
    write_text(args, text, megabytes)

    def our_tokens(how):
        return ours("our_tokens", how=how, text=text, vocabulary=vocabulary(args))

    methods = ("tokenise", "encode_batch", "encode_batch_fast")
    answers = compare(args, {how: our_tokens(how) for how in methods})
    print_heading("5. Tokenising", [
        "how", "MB of text", "s", "million tokens/s", "over encode_batch", "MB of memory"])
    for how, found in answers.items():
        print_tokenising(how, megabytes, found, answers["encode_batch"])
    if args.megabytes > megabytes:
        write_text(args, text, args.megabytes)
        workers = start_workers(args, {"tokenise": our_tokens("tokenise")})
        found = take_turns(workers, 1, {})["tokenise"]
        close_workers(workers)
        print_tokenising("tokenise, one run", args.megabytes, found, None)


def print_tokenising(how, megabytes, found, encode_batch):
    """Print the row of one way to tokenise.

    found: its answers; encode_batch: the answers to compare them with, or None
    """
    cells = [how, megabytes]
    cells.append(summary_of(found, "seconds"))
    cells.append(summary_of(found, "rate"))
    cells.append(ratio_cell(found, encode_batch, "rate"))
    cells.append(summary_of(found, "MB"))
    print_row(cells)


def write_text(args, path, megabytes):
    """Write the first megabytes of the text in --data, up to the end of a line. If the text is
    shorter, it is written again and again."""
    size = megabytes * 2**20
    with open(path, "wb") as out:
        while out.tell() < size:
            with lzma.open(os.path.join(args.data, "text/enwiki.txt.xz")) as text:
                for line in text:
                    if out.tell() >= size:
                        break
                    out.write(line)


# ---- 6. The start of the commands -------------------------------------------------------

def start_section(args, folder):
    """Print the table of what a user waits for: whole commands, each run as a user runs it."""
    print_heading("6. Start", ["what", "s", "over import torch"])
    print_time_of_help(args)
    command = ["distill.py", "--overwrite", "--cache", os.path.join(folder, "cache"), "--out",
               os.path.join(folder, "out")]
    waits = []
    for _ in range(args.repeats + 1):
        # distill.py prints a line about its steps just before the first one.
        waits.append(run_python(command + ["--steps", "1"], until="steps"))
    print_row(["before step 1, no cache", summary(waits[:1]), "-"])
    print_row(["before step 1, cached", summary(waits[1:]), "-"])
    whole_run = run_python(command)
    print_row(["python distill.py, cached, one run", short(whole_run), "-"])


def print_time_of_help(args):
    """Print two rows: the seconds of "import torch", and those of distill.py --help beside it."""
    import_torch = []
    with_help = []
    for _ in range(args.repeats + 1):
        import_torch.append({"seconds": run_python(["-c", "import torch"])})
        with_help.append({"seconds": run_python(["distill.py", "--help"])})
    import_torch = import_torch[1:]                      # the first turn does not count
    with_help = with_help[1:]
    print_row(["import torch", summary_of(import_torch, "seconds"), "-"])
    ratio = ratio_cell(with_help, import_torch, "seconds")
    print_row(["distill.py --help", summary_of(with_help, "seconds"), ratio])


def run_python(command, until=None):
    """Run python with this command line in this repository -> the seconds until it ends.

    until: if it is given, the seconds until a line is printed that begins with it
    If the command fails, this program ends with what it printed.
    """
    begin = time.perf_counter()
    seconds = None
    printed = []
    with subprocess.Popen([sys.executable] + command, cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        for line in process.stdout:
            printed.append(line)
            if until is not None and line.startswith(until):
                seconds = time.perf_counter() - begin
    if process.returncode != 0:
        raise SystemExit(f"{command} failed:\n{''.join(printed[-99:])}")
    if seconds is None:
        seconds = time.perf_counter() - begin
    return seconds


# ---- 7. Growth --------------------------------------------------------------------------

def growth_section(args, folder):
    """Print the tables of how the cost of a step grows, with its sizes and with processes.

    One size grows at a time. The exponent p, in time = a constant times size^p, is fitted to the
    medians of all values of this size; for memory likewise.
    """
    print_heading(f"7. Growth of a step on the CPU, medians: {describe(SMALL)}", [
        "of", "over", "s", "exponent", "MB above an idle process's", "exponent"])
    for letter, sizes in GROWTH.items():
        variants = {}
        for size in sizes:
            variants[size] = ours("our_step", shape=SMALL._replace(**{letter: size}))
        answers = compare(args, variants)
        cells = [letter, " ".join(str(size) for size in sizes)]
        for what in ("seconds", "MB above idle"):
            medians = [median_of(answers[size], what) for size in sizes]
            # The slope of a line through the logarithms of both; 1 would be linear growth.
            exponent, _ = np.polyfit(np.log(sizes), np.log(medians), 1)
            cells += [" ".join(short(median) for median in medians), f"{exponent:.2f}"]
        print_row(cells)
    print_processes(args)


def print_processes(args):
    """Print a table: steps that several processes make together, with a thread each.

    They share a batch and sum their gradients, as under torchrun. Each process answers in each
    turn; a figure is the median of all these answers. The third column is the time from the end of
    the backward pass to the update: a process waits for the others, the gradients are summed
    (all_reduce), and then they are clipped. In section 1 the term "reduce, clip" is the clipping
    alone, because a single process has nothing to sum.
    """
    print_heading(
        f"7. gloo processes, a thread each, {os.cpu_count()} cores: {describe(BASE)}",
        ["processes", "s/step", "in all_reduce and clipping, its waiting too", "share"])
    for world in (2, 4):
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
                       "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1",
                       "GLOO_SOCKET_IFNAME": "lo"}
        variants = {}
        for rank in range(world):
            own_environment = dict(environment)
            own_environment["RANK"] = str(rank)
            variants[rank] = ours("our_step", own_environment, shape=BASE)
        workers = start_workers(args, variants)
        step_together(workers)                           # does not count
        answers = []
        for _ in range(args.repeats):
            answers += step_together(workers)
        close_workers(workers)
        seconds = values_of(answers, "seconds")
        reduce_seconds = values_of(answers, "reduce, clip")
        shares = [part / whole for part, whole in zip(reduce_seconds, seconds)]
        print_row([world, summary(seconds), summary(reduce_seconds), summary(shares)])


def step_together(workers):
    """Let all workers make a step at the same time -> their answers."""
    for worker in workers.values():
        worker.send({})
    return [worker.receive() for worker in workers.values()]


def free_port():
    """Return the number of a port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# ---- A step at the size of the study; its table is in the section about the study -------

def study_section(args, folder):
    """Print the table of a step at the size of bench/study.py. The study says how many steps a
    student needs; with the seconds of this table that becomes a time.

    As in the study, our students have no dropout, and the student with corrections has narrower
    embeddings. The authors' student has a dropout of 0.1, as in their code.
    """
    variants = {}
    variants["ours, adapters"] = ours("our_step", shape=STUDY, dropout=0.0)
    narrow = STUDY._replace(E=STUDY.C // 4)
    variants[f"ours, corrections, E={narrow.E}"] = ours(
        "our_step", shape=narrow, correction_rank=30, dropout=0.0)
    variants["authors'"] = authors("authors_step", shape=STUDY)
    answers = compare(args, variants)
    print_steps("Distillation step at the size of bench/study.py, ours without dropout: "
                f"{describe(STUDY)}", answers)


# ---- The command line -------------------------------------------------------------------

# What --rows may name, in the order in which all of them are measured.
SECTIONS = {"step": step_section, "inference": inference_section, "tuning": tuning_section,
            "tokenise": tokenise_section, "start": start_section, "growth": growth_section,
            "study": study_section}


def arguments():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=SECTIONS, default=list(SECTIONS),
                        help="the sections to measure (default: all)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N",
                        help="turns (default: 5)")
    parser.add_argument("--authors", type=os.path.abspath, metavar="DIR",
                        help="a checkout of the authors' code (default: their rows are left out)")
    parser.add_argument("--authors-python", default=sys.executable, metavar="PATH",
                        help="a python with transformers 4.30 (default: this one)")
    parser.add_argument("--data", type=os.path.abspath, metavar="DIR",
                        default=os.path.join(ROOT, "..", "shared", "data"),
                        help="folder with glue/SST-2, text/enwiki.txt.xz, vocab/bert-base-uncased "
                        "(default: ../shared/data)")
    parser.add_argument("--megabytes", type=int, default=TEXT_MEGABYTES, metavar="N",
                        help="the text to tokenise, in MB. If it is more than 55, 55 MB are "
                        "tokenised in turns, and then N MB once (default: 55)")
    return parser.parse_args()


def main():
    """Print the tables that the command line asks for."""
    args = arguments()
    authors_rows = "measured"
    if args.authors is None:
        authors_rows = "left out: no --authors"
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
          f"medians of {args.repeats}, smallest to largest in brackets; a MB is 2**20 bytes; the "
          f"authors' rows are {authors_rows}.", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.rows:
            SECTIONS[name](args, folder)


if __name__ == "__main__":
    main()
