"""Sections of bench/gpu.py that run commands or several processes: default, kills, processes, mini.

gpu_worker.py says how they are started. A command is run as a user runs it, in a process of its
own; what it prints goes to gpu.log, and its scores are read from the files that it leaves.
"""
import os
import random
import sys

import torch
import torch.distributed as dist

from gpu_worker import (BASE, TOY, Pass, Setup, make_distillation, median_seconds,
                        median_tokens_per_second, pass_of, read_log, report_difference,
                        run_script, serve)

import distill
import kill
from speed import free_port


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
    serve([default_command, kills, two_processes, mini_teacher,
           mini_student])
