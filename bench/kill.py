"""Kills distill.py and finetune.py with SIGKILL at random moments, resumes, compares the ends.

    python bench/kill.py                              # 60 kills of each; some minutes

A run that was killed and resumed must end with the same bytes as one that nothing disturbed, the
same log (but for its speed) and the same files. The embedded teacher, this machine's documentation.
"""
import argparse
import importlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
SMALL = "--batch-size 4 --log-every 10 --eval-every 500 --save-every 2 --device cpu".split()


def begin(script, flags):
    """(a process in which main(flags) of a script runs, an event: its training has begun). torch
    was imported before, once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["distill", "finetune"])
    began = context.Event()
    process = context.Process(target=act, args=(script, [str(flag) for flag in flags], began))
    process.start()
    return process, began


def act(script, flags, began):
    sys.stdout = open(os.devnull, "w")
    os.dup2(sys.stdout.fileno(), 2)                      # the progress bar
    module = importlib.import_module(script)
    usual = module.train
    module.train = lambda *args: began.set() or usual(*args)
    sys.exit(module.main(flags))


def finish(script, flags):
    process, _ = begin(script, flags)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{script}.py {flags}: exit status {process.exitcode}")


def torment(script, flags, out, kills, longest, rng):
    """Kills a run with its folder out, at most `longest` seconds after its training began (one
    in ten before), then lets it end. The number of kills that hit it, of those that left
    something to resume from, and of those that came amid the writing of a file."""
    done = resumed = amid = 0
    while done < kills:
        process, began = begin(script, [*flags, "--resume"])
        if rng.random() > 0.1:
            began.wait(60)
        process.join(rng.uniform(0, longest))
        if process.exitcode is not None:                 # it ended before its killer came
            break
        process.kill()
        process.join()
        names = [name for _, _, names in os.walk(out) for name in names]
        done += 1
        resumed += "training.safetensors" in names
        amid += any(name.endswith(".tmp") for name in names)
    finish(script, [*flags, "--resume"])
    return done, resumed, amid


def remains(out):
    """{file: its bytes}; of logs and checkpoints without what the clock decides."""
    found = {}
    for folder, _, names in os.walk(out):
        for path in (os.path.join(folder, name) for name in names):
            with open(path, "rb") as file:
                data = file.read()
            if path.endswith("log.jsonl"):
                lines = [json.loads(line) for line in data.splitlines()]
                data = [{k: v for k, v in line.items() if k != "tokens_per_second"}
                        for line in lines]
            elif path.endswith("training.safetensors"):  # its header has the log's length
                data = data[8 + int.from_bytes(data[:8], "little"):]
            found[os.path.relpath(path, out)] = data
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, student = random.Random(args.seed), None
    print("| run | steps | kills | with a checkpoint to resume from | amid a write | "
          "seconds, undisturbed | seconds, killed | the same? |\n" + "|---" * 8 + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for script, steps, longest in (("distill", 1200, 1.5), ("finetune", 600, 1.5)):
            flags = [*SMALL, "--steps", steps]
            flags += ["--length", "32"] if script == "distill" else [
                "--model", student, "--task", "part", "--seeds", "2"]
            whole, killed = (os.path.join(folder, f"{script}-{name}") for name in ("a", "b"))
            began = time.perf_counter()
            finish(script, [*flags, "--out", whole])
            middle = time.perf_counter()
            done, resumed, amid = torment(script, [*flags, "--out", killed], killed, args.kills,
                                          longest, rng)
            end = time.perf_counter()
            same = remains(whole) == remains(killed)
            print(f"| {script} | {steps:,} | {done} | {resumed} | {amid} | {middle - began:.0f} "
                  f"| {end - middle:.0f} | {'yes' if same else 'NO'} |", flush=True)
            student = whole
            if not same or done < args.kills:
                sys.exit(f"{script}: {done} kills, {'the same' if same else 'another end'}")


if __name__ == "__main__":
    main()
