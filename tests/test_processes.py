"""Kills at random moments, and several processes: nothing is lost, nothing differs."""
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

import distill
import finetune
from minialbert import load, read_safetensors
from test_distill import ROOT, WORDS, flags, log, metadata, toy

sys.path.insert(0, os.path.join(ROOT, "bench"))
from kill import finish, remains, torment

EVEN = ["--dropout", 0, "--lr", 0.001]                   # ranks draw their own dropout


@pytest.fixture(scope="session")
def table(toy, tmp_path_factory):
    """A .tsv whose 61 rows the last batch of 7 and two processes do not share out evenly."""
    path, rng = tmp_path_factory.mktemp("table") / "table.tsv", random.Random(0)
    rows = []
    for _ in range(61):
        first, n = rng.randrange(90), rng.randrange(2, 12)
        words = " ".join(WORDS[(first + 7 * i) % 90] for i in range(n))
        rows.append(f"{words}\t{'ab'[first % 2]}\n")
    path.write_text("text\tlabel\n" + "".join(rows))
    return path


def tuning(toy, table, out, *more):
    usual = {"model": toy / "teacher", "task": "classification", "train": table, "dev": table,
             "batch-size": 7, "log-every": 1, "save-every": 3, "device": "cpu", "out": out}
    return [*(f"--{flag}={value}" for flag, value in usual.items()), *map(str, more)]


def torchrun(*command, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         *map(str, command)], env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def close(one, two):
    """Whether two folders hold the same model; a key's bias has no gradient but rounding's."""
    a, b = load(one).state_dict(), load(two).state_dict()
    for name in a:
        allowed = 1e-2 if name.endswith("key.bias") else 1e-6
        assert (a[name] - b[name]).norm() <= allowed * a[name].norm() + 1e-8, name


# ---- Killed at random ----------------------------------------------------------------------------


def test_a_distillation_killed_at_random_ends_as_if_it_had_not_been(toy, tmp_path):
    some = ["--steps", 200, "--save-every", 3]
    finish("distill", flags(toy, tmp_path / "a", *some))
    _, resumed, _ = torment("distill", flags(toy, tmp_path / "b", *some), tmp_path / "b", 3, 0.4,
                            random.Random(0))
    assert resumed > 1
    assert remains(tmp_path / "a") == remains(tmp_path / "b")


def test_a_tuning_killed_at_random_ends_as_if_it_had_not_been(toy, table, tmp_path):
    some = ["--steps", 50, "--save-every", 1, "--seeds", 2, "--lr", 0.001, 0.002]
    finish("finetune", tuning(toy, table, tmp_path / "a", *some))
    _, resumed, _ = torment("finetune", tuning(toy, table, tmp_path / "b", *some), tmp_path / "b",
                            3, 0.4, random.Random(1))
    assert resumed > 1
    one, two = remains(tmp_path / "a"), remains(tmp_path / "b")
    assert one == two and {"model.safetensors", "head.safetensors", "dev.jsonl"} <= one.keys()


def test_a_checkpoint_half_written_is_not_taken_for_one(toy, tmp_path):
    """What a kill amid a write leaves: the old file, and half the new one under another name."""
    whole = flags(toy, tmp_path / "a")
    assert distill.main(whole) is None
    assert distill.main(flags(toy, tmp_path / "b", "--steps", 12)) is None
    for name in ("training.safetensors", "model.safetensors", "config.json"):
        (tmp_path / "b" / f"{name}.tmp").write_bytes((tmp_path / "a" / name).read_bytes()[:-9])
    assert distill.main(flags(toy, tmp_path / "b", "--overwrite")) is None
    assert remains(tmp_path / "a") == remains(tmp_path / "b")


# ---- Several processes ---------------------------------------------------------------------------


SECOND = """
import os, sys
sys.path.insert(0, {root!r})
import {script}
def call({arguments}):
    if os.environ["RANK"] == "1"{and_if}:
        raise MemoryError("this is rank 1")
    return usual({arguments})
usual, {name} = {name}, call
sys.exit({script}.main(sys.argv[1:]))
"""


def test_two_processes_tune_as_one_and_the_first_alone_writes(toy, table, tmp_path):
    (tmp_path / "second.py").write_text(SECOND.format(
        root=ROOT, script="finetune", arguments="old, new", and_if="", name="os.replace"))
    some = [*EVEN, 0.002, "--epochs", 1]                   # a sweep of two rates
    run = torchrun(tmp_path / "second.py", *tuning(toy, table, tmp_path / "two", *some))
    assert finetune.main(tuning(toy, table, tmp_path / "one", *some)) is None
    said, errors = run.communicate(timeout=100)
    assert run.returncode == 0, errors
    assert said.count("majority") == 2                   # two metrics, each said by rank 0 alone
    close(tmp_path / "one", tmp_path / "two")
    assert remains(tmp_path / "one").keys() == remains(tmp_path / "two").keys()
    head, other = (read_safetensors(tmp_path / name / "head.safetensors")[0]
                   for name in ("one", "two"))
    assert all(torch.allclose(head[name], other[name], rtol=1e-5, atol=1e-7) for name in head)


def test_a_signal_stops_all_processes_and_one_alone_goes_on(toy, tmp_path):
    some, fresh = [*EVEN, "--steps", 200, "--save-every", 1000], ["--cache", tmp_path / "cache"]
    run = torchrun(f"{ROOT}/distill.py", *flags(toy, tmp_path / "two", *some, *fresh))
    assert distill.main(flags(toy, tmp_path / "one", *some)) is None
    path = tmp_path / "two" / "log.jsonl"
    while run.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") > 3):
        time.sleep(0.01)
    run.send_signal(signal.SIGTERM)
    said, errors = run.communicate(timeout=100)          # rank 0 fills the cache, rank 1 waits
    assert run.returncode != 0 and said.count("--resume goes on from there") == 1, errors
    assert 3 < int(metadata(tmp_path / "two")["step"]) < 200
    assert distill.main(flags(toy, tmp_path / "two", *some, "--resume")) is None
    close(tmp_path / "one", tmp_path / "two")
    for a, b in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_a_rank_that_dies_ends_all_of_them_with_its_error(toy, tmp_path):
    (tmp_path / "second.py").write_text(SECOND.format(
        root=ROOT, script="distill", arguments="self, step", and_if=" and step == 6",
        name="distill.Distillation.__call__"))
    run = torchrun(tmp_path / "second.py", *flags(toy, tmp_path / "two", *EVEN))
    assert distill.main(flags(toy, tmp_path / "one", *EVEN)) is None
    _, errors = run.communicate(timeout=100)
    assert run.returncode != 0 and "MemoryError: this is rank 1" in errors
    assert metadata(tmp_path / "two")["step"] == "4"     # the last checkpoint, and it is whole
    assert distill.main(flags(toy, tmp_path / "two", *EVEN, "--resume")) is None
    close(tmp_path / "one", tmp_path / "two")


def test_fewer_sequences_than_processes_are_refused(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "8")
    for main, some in ((distill.main, flags(toy, tmp_path / "out", "--batch-size", 4)),
                       (finetune.main, ["--model", f"{toy}/teacher", "--task", "part",
                                        "--batch-size", "4", "--out", f"{tmp_path}/out"])):
        assert main(some) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "--batch-size 4" in error
    assert not (tmp_path / "out").exists()
