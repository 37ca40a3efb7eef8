"""Runs that are killed, runs that are stopped with Ctrl-C, and runs of several processes.

A run that was killed and resumed, and a run of several processes, must end as a run that nothing
disturbed does.
"""
import importlib
import os
import random
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import traceback

import pytest
import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import data
import distill
import finetune
from checkpoint import load, read_safetensors
from conftest import ROOT, WORDS, distill_flags, read_log, read_metadata, sentence

sys.path.insert(0, os.path.join(ROOT, "bench"))
from kill import finish, kill_repeatedly, remains

# Each process draws its own dropout, so only runs without dropout can be compared.
COMPARABLE = ["--dropout", 0, "--lr", 0.001]


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """Write a .tsv of 61 rows: batches of 7 leave a last one of 5, which two processes cannot
    share out evenly."""
    path = tmp_path_factory.mktemp("table") / "table.tsv"
    rng = random.Random(0)
    rows = ["text\tlabel\n"]
    for _ in range(61):
        first = rng.randrange(len(WORDS))
        label = "ab"[first % 2]
        rows.append(f"{sentence(first, rng.randrange(2, 12))}\t{label}\n")
    path.write_text("".join(rows))
    return path


def finetune_flags(toy, table, out, *more):
    """List the flags of a run that fine-tunes the toy teacher on the table, and more."""
    flags = {
        "model": toy / "teacher", "task": "classification", "train": table, "dev": table,
        "batch-size": 7, "log-every": 1, "save-every": 3, "device": "cpu", "out": out,
    }
    words = [f"--{name}={value}" for name, value in flags.items()]
    return words + [str(word) for word in more]


def exit_statuses(processes):
    """Wait until processes have ended, and kill those that have not after 100 seconds -> their
    exit statuses, -9 of a process that was killed."""
    for process in processes:
        process.join(100)
    for process in processes:
        process.kill()                                   # does nothing to one that has ended
        process.join()
    return [process.exitcode for process in processes]


def assert_nearly_same_model(out, expected):
    """Assert that two folders hold the same model, but for rounding.

    The gradient of a key's bias is 0 but for rounding errors, which AdamW enlarges. So more is
    allowed there.
    """
    ours = load(out).state_dict()
    theirs = load(expected).state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        allowed = 1e-5                                   # as a part of the tensor's norm
        if name.endswith("key.bias"):
            allowed = 0.1
        difference = (ours[name] - tensor).norm()
        assert difference <= allowed * tensor.norm() + 1e-8, name


def forked_process(forked, target, *arguments):
    """Start target(*arguments) in a process that is forked from the server.

    It is a daemon, which pytest ends at its own end, even if the test has failed before.
    """
    process = forked.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


# ---- Killed -----------------------------------------------------------------------------

def distil_until_killed(flags):
    """Distil in this process, which kills itself when its second checkpoint is written, but not yet
    renamed."""
    original = os.replace
    saved = []

    def replace(temporary, path):
        if path.endswith("training.safetensors"):
            saved.append(path)
        if len(saved) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        original(temporary, path)

    os.replace = replace
    sys.stdout = open(os.devnull, "w")
    os.dup2(sys.stdout.fileno(), 2)
    distill.main(flags)


def test_a_run_killed_amid_a_checkpoint_ends_as_if_it_had_not_been(forked, toy, tmp_path):
    killed = tmp_path / "killed"
    whole = tmp_path / "whole"
    flags = distill_flags(toy, killed)
    process = forked_process(forked, distil_until_killed, flags)
    assert exit_statuses([process]) == [-signal.SIGKILL]
    assert (killed / "training.safetensors.tmp").exists()
    assert read_metadata(killed)["step"] == "4"
    assert len(read_log(killed)) == 8
    assert distill.main(flags + ["--resume"]) is None
    assert distill.main(distill_flags(toy, whole)) is None
    assert remains(whole) == remains(killed)


def kill_at_random(script, flags, out, seed):
    """Kill a run at random moments until a kill leaves a checkpoint, and then let it end."""
    rng = random.Random(seed)
    _, num_resumed, _ = kill_repeatedly(script, flags, out, wanted=1, longest=0.2, rng=rng)
    assert num_resumed == 1, "the run ended before it was killed"


def test_a_distillation_killed_at_random_ends_as_if_it_had_not_been(forked, toy, tmp_path):
    killed = tmp_path / "killed"
    whole = tmp_path / "whole"
    more = ["--steps", 50, "--save-every", 3]
    finish("distill", distill_flags(toy, whole, *more))
    kill_at_random("distill", distill_flags(toy, killed, *more), killed, seed=0)
    assert remains(whole) == remains(killed)


def test_a_tuning_killed_at_random_ends_as_if_it_had_not_been(forked, toy, table, tmp_path):
    """One command makes several tunings, and the kill may hit any of them."""
    killed = tmp_path / "killed"
    whole = tmp_path / "whole"
    more = ["--steps", 12, "--save-every", 1, "--seeds", 2, "--lr", 0.001, 0.002, "--dropout", 0.1]
    finish("finetune", finetune_flags(toy, table, whole, *more))
    kill_at_random("finetune", finetune_flags(toy, table, killed, *more), killed, seed=1)
    expected = remains(whole)
    assert remains(killed) == expected
    assert expected.keys() >= {"model.safetensors", "head.safetensors", "dev.jsonl"}


# ---- Ctrl-C ------------------------------------------------------------------------------

def interrupt_at(moment, process_number, lines):
    """Send a process SIGINT (Ctrl-C) at a moment -> the lines that it printed, without those
    about imports.

    moment: the name of a module that has been imported, or the first words of a line
    lines: what the process prints, line by line
    """
    printed = []
    is_interrupted = False
    for line in lines:
        module = line.split("|")[-1].strip()             # import time: 123 | 456 |   module
        is_the_moment = module == moment or line.startswith(moment)
        if is_the_moment and not is_interrupted:
            os.kill(process_number, signal.SIGINT)
            is_interrupted = True
        if not line.startswith("import time:"):
            printed.append(line.rstrip("\n"))
    assert is_interrupted, printed
    return printed


def assert_interrupted(script, status, printed):
    assert printed[-2:] == ["", f"{script}: interrupted"]
    assert status == 130
    assert "Traceback" not in "".join(printed)


# json is among the first modules that each script imports, numpy comes while torch is imported.
# data.py imports the last one in its run, while it collects the documentation.
@pytest.mark.parametrize("script, module", [
    ("data.py", "json"), ("data.py", "numpy"), ("data.py", "pydoc_data.topics"),
    ("distill.py", "json"), ("distill.py", "numpy"),
    ("finetune.py", "json"), ("finetune.py", "numpy")])
def test_ctrl_c_amid_the_imports_is_one_line_and_status_130(script, module, tmp_path):
    # With importtime Python prints a line about each module that it has imported.
    command = [sys.executable, "-X", "importtime", f"{ROOT}/{script}"]
    if script == "data.py":
        command += ["--train-tokenizer", "300", "--out", "out"]
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1", HOME=str(tmp_path))
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as process:
        printed = interrupt_at(module, process.pid, process.stdout)
    assert_interrupted(script, process.returncode, printed)
    assert not (tmp_path / "out").exists()


def run_as_program(script, flags, folder, printed):
    """Run a script in this process as Python runs a program, in a folder.

    printed: the end of a pipe for its output
    """
    os.chdir(folder)
    sys.stdout = open(printed.fileno(), "w", buffering=1)     # each line is written at once
    os.dup2(sys.stdout.fileno(), 2)
    sys.argv = [script] + flags
    runpy.run_path(f"{ROOT}/{script}", run_name="__main__")


@pytest.mark.parametrize("script", ["distill.py", "finetune.py"])
def test_ctrl_c_in_the_run_is_one_line_and_status_130(forked, script, toy, table, tmp_path):
    if script == "distill.py":
        flags = distill_flags(toy, "out")
        first_words = " " * 9 + "  parameters"           # the head of the first table
    else:
        flags = finetune_flags(toy, table, "out")
        first_words = "classification:"
    reader, writer = forked.Pipe(duplex=False)
    process = forked_process(forked, run_as_program, script, flags, tmp_path, writer)
    writer.close()                                       # the process has its own
    with open(os.dup(reader.fileno())) as lines:
        printed = interrupt_at(first_words, process.pid, lines)
    status, = exit_statuses([process])
    assert_interrupted(script, status, printed)
    assert not (tmp_path / "out").exists()


# ---- Several processes ------------------------------------------------------------------

def run_as_rank(script, flags, rank, port, printed, change):
    """Run a script in this process as one of two that torchrun would have started.

    printed: the file for its output; change(): called before, in rank 1 alone
    """
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.stdout = open(printed, "a")
    os.dup2(sys.stdout.fileno(), 2)
    if rank == 1:
        change()
    sys.exit(importlib.import_module(script).main(flags))


def start_two_ranks(forked, script, flags, printed, change):
    """Start a script in two processes that work together -> the processes.

    forked: the fixture, which is faster than torchrun
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in (0, 1):
        process = forked_process(forked, run_as_rank, script, flags, rank, port, printed, change)
        processes.append(process)
    return processes


def forbid_writing():
    """Make it an error to write a file, or to make the folder of a tuning, which has -lr in its
    name."""
    original = os.makedirs

    def replace(temporary, path):
        raise AssertionError("this is rank 1")

    def makedirs(path, *arguments, **more):
        assert "-lr" not in str(path), "this is rank 1"
        original(path, *arguments, **more)

    os.replace = replace
    os.makedirs = makedirs


def choose_another_rate():
    """Let find_best_rate() choose another rate than the best, and make it an error to write."""
    original = finetune.find_best_rate

    def find_best_rate(setup, mode, splits):
        best = original(setup, mode, splits)
        others = [rate for rate in setup.args.lr if rate != best]
        return others[0]

    finetune.find_best_rate = find_best_rate
    forbid_writing()


def start_elsewhere():
    """Let a model start from other values, and make it an error to tokenise."""
    original = distill.make_optimizer

    def make_optimizer(model, weight_decay):
        for parameter in model.parameters():
            parameter.data += 0.1
        return original(model, weight_decay)

    def write_tokens(*others):
        raise AssertionError("rank 1 should have waited for rank 0's tokens")

    distill.make_optimizer = make_optimizer
    data.write_tokens = write_tokens


def start_elsewhere_and_stop():
    """Do as start_elsewhere does, and get the signal to stop in the fourth step."""
    original = distill.Distillation.losses_of_micro_batches

    def losses_of_micro_batches(self, step):
        if step == 3:                                    # counted from 0
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step)

    distill.Distillation.losses_of_micro_batches = losses_of_micro_batches
    start_elsewhere()


def distil_and_die(flags):
    """Distil; rank 1 has an error at its seventh step."""
    original = distill.Distillation.losses_of_micro_batches

    def losses_of_micro_batches(self, step):
        if os.environ["RANK"] == "1" and step == 6:
            raise AssertionError("this is rank 1")
        return original(self, step)

    distill.Distillation.losses_of_micro_batches = losses_of_micro_batches
    try:
        sys.exit(distill.main(flags))
    except AssertionError:
        traceback.print_exc()                            # as at the end of a program
        raise


def distil_under_torchrun(flags, printed):
    """Do what `torchrun --standalone --nproc_per_node 2` does, by the function that it calls, with
    processes forked from this one.

    printed: the file for their output
    """
    sys.stdout = open(printed, "a")
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stdout.fileno(), 2)
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, rdzv_backend="c10d",
                          rdzv_endpoint="localhost:0", run_id="test", max_restarts=0,
                          start_method="fork", logs_specs=DefaultLogsSpecs(printed.parent))
    launch = elastic_launch(config, distil_and_die)
    launch(flags)


def test_two_processes_tune_as_one_and_the_first_alone_writes(forked, toy, table, tmp_path):
    """Rank 1 would choose the worse of the two rates, and may not write."""
    one = tmp_path / "one"
    two = tmp_path / "two"
    more = ["--dropout", 0, "--lr", 0.001, 0.002, "--epochs", 1]
    flags = finetune_flags(toy, table, two, *more)
    processes = start_two_ranks(forked, "finetune", flags, tmp_path / "printed",
                                choose_another_rate)
    assert finetune.main(finetune_flags(toy, table, one, *more)) is None
    statuses = exit_statuses(processes)
    printed = (tmp_path / "printed").read_text()
    assert statuses == [0, 0], printed
    assert printed.count("majority") == 2                # two metrics, printed by rank 0 alone
    assert_nearly_same_model(two, one)
    assert remains(one).keys() == remains(two).keys()
    head, _ = read_safetensors(two / "head.safetensors")
    expected_head, _ = read_safetensors(one / "head.safetensors")
    for name, tensor in expected_head.items():
        assert torch.allclose(head[name], tensor, rtol=1e-5, atol=1e-7), name


def test_a_signal_stops_all_processes_and_one_alone_goes_on(forked, toy, tmp_path):
    """The cache is empty, so that rank 0 fills it while rank 1 waits; rank 1 gets the signal."""
    one = tmp_path / "one"
    two = tmp_path / "two"
    pair = tmp_path / "pair"
    printed = tmp_path / "printed"
    # All look for the signal in the steps that log. The next one is the fifth, which evaluates.
    more = COMPARABLE + ["--log-every", 3, "--save-every", 1000]
    flags = distill_flags(toy, two, *more, "--cache", tmp_path / "cache")
    processes = start_two_ranks(forked, "distill", flags, printed, start_elsewhere_and_stop)
    statuses = exit_statuses(processes)
    printed_text = printed.read_text()
    assert statuses == [143, 143], printed_text
    assert printed_text.count("without --overwrite, goes on from there") == 1
    assert read_metadata(two)["step"] == "5"
    shutil.copytree(two, pair)
    assert distill.main(distill_flags(toy, two, *more, "--resume")) is None
    assert distill.main(distill_flags(toy, one, *more)) is None
    assert_nearly_same_model(two, one)
    # Two processes go on as well: rank 1 is given the step and AdamW's means by rank 0.
    flags = distill_flags(toy, pair, *more, "--resume")
    processes = start_two_ranks(forked, "distill", flags, printed, start_elsewhere)
    assert exit_statuses(processes) == [0, 0]
    assert_nearly_same_model(pair, one)
    for line, expected in zip(read_log(two), read_log(one), strict=True):
        assert line == pytest.approx(expected, rel=1e-4)


def test_a_rank_that_dies_ends_all_of_them_with_its_error(forked, toy, tmp_path):
    one = tmp_path / "one"
    two = tmp_path / "two"
    printed = tmp_path / "printed"
    flags = distill_flags(toy, two, *COMPARABLE)
    # A daemon may not start processes of its own, so this one is none.
    run = forked.Process(target=distil_under_torchrun, args=(flags, printed))
    run.start()
    assert distill.main(distill_flags(toy, one, *COMPARABLE)) is None
    assert exit_statuses([run]) == [1]
    assert "AssertionError: this is rank 1" in printed.read_text()
    assert read_metadata(two)["step"] == "4"             # the last checkpoint is whole
    assert distill.main(flags + ["--resume"]) is None
    assert_nearly_same_model(two, one)


@pytest.mark.parametrize("name, value", [("WORLD_SIZE", "0"), ("RANK", "abc"), ("RANK", "1"),
                                         ("LOCAL_RANK", "-1"), ("LOCAL_RANK", "1"),
                                         ("WORLD_SIZE", "")])
def test_variables_that_torchrun_would_not_set_are_an_error_of_one_line(
        toy, tmp_path, monkeypatch, capsys, name, value):
    """A cluster may set some of them for its own purposes."""
    monkeypatch.setenv(name, value)
    assert distill.main(distill_flags(toy, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "RANK, LOCAL_RANK, WORLD_SIZE: not the numbers that torchrun sets" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", [distill, finetune], ids=["distill", "finetune"])
def test_fewer_sequences_than_processes_are_refused(
        toy, table, tmp_path, monkeypatch, capsys, script):
    def init_process_group(backend, **options):
        """Do not wait for the other seven processes, which are missing."""

    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setattr(distill.dist, "init_process_group", init_process_group)
    out = tmp_path / "out"
    if script is distill:
        flags = distill_flags(toy, out, "--batch-size", 4)
    else:
        flags = finetune_flags(toy, table, out, "--batch-size", 4)
    assert script.main(flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--batch-size 4 is less than" in error
    assert not out.exists()
