"""Kill distill.py and finetune.py with SIGKILL at random moments, resume them, compare the ends.

    python bench/kill.py
        60 kills of each: some minutes

A run that was killed and resumed must end like one that nothing disturbed: with the same files,
the same bytes in them and the same log, but for its speed and time. The runs are of the embedded
teacher, the documentation on this machine and the embedded task.
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
FLAGS = ["--batch-size", "4", "--log-every", "10", "--eval-every", "500", "--save-every", "2",
         "--device", "cpu"]
LONGEST = 1.5                       # seconds from the begin of the training to a kill, at most
COLUMNS = ["run", "steps", "kills", "with a checkpoint to resume from", "amid a write",
           "seconds, undisturbed", "seconds, killed", "the same?"]


def begin(script, flags):
    """Run a script's main(flags) in a new process -> the process, an event: training has begun.

    The process is forked from one that has imported torch once for all.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["distill", "finetune"])
    has_begun = context.Event()
    flags = [str(flag) for flag in flags]
    process = context.Process(target=run_script, args=(script, flags, has_begun))
    process.start()
    return process, has_begun


def run_script(script, flags, has_begun):
    """Run a script in this process without any output."""
    sys.stdout = open(os.devnull, "w")
    os.dup2(sys.stdout.fileno(), 2)                      # no progress bar on the standard error
    # This process was forked from one that has imported torch already.
    import torch
    torch.set_num_threads(1)        # two threads wait long for each other on a busy machine
    module = importlib.import_module(script)
    original = module.train

    def train(*args):
        has_begun.set()
        return original(*args)

    module.train = train
    sys.exit(module.main(flags))


def finish(script, flags):
    """Run a script to its end. RuntimeError if it fails."""
    process, _ = begin(script, flags)
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"{script}.py {flags}: exit status {process.exitcode}")


def torment(script, flags, out, wanted, longest, rng):
    """Kill a run again and again, then let it end -> counts of all kills, of those that left a
    checkpoint, and of those that came amid the writing of a file.

    out: the folder of the run
    wanted: how many kills have to leave a checkpoint; there are more if others come too early
    longest: seconds from the begin of the training to a kill, at most; one kill in ten may come
        before the training has begun
    """
    num_kills = 0
    num_resumed = 0
    num_amid_write = 0
    while num_resumed < wanted:
        process, has_begun = begin(script, [*flags, "--resume"])
        if rng.random() > 0.1:
            has_begun.wait(60)
        process.join(rng.uniform(0, longest))
        if process.exitcode == 0:                        # it ended before it could be killed
            break
        if process.exitcode is not None:
            raise RuntimeError(f"{script}.py {flags} --resume: exit status {process.exitcode}")
        process.kill()
        process.join()
        names = []
        for _, _, names_in_folder in os.walk(out):
            names += names_in_folder
        num_kills += 1
        if "training.safetensors" in names:
            num_resumed += 1
        if any(name.endswith(".tmp") for name in names):
            num_amid_write += 1
    finish(script, [*flags, "--resume"])
    return num_kills, num_resumed, num_amid_write


def remains(out):
    """Read what a run left: {file: its bytes}, without what the clock decides."""
    contents = {}
    for folder, _, names in os.walk(out):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                content = file.read()
            if name == "log.jsonl":
                lines = [json.loads(line) for line in content.splitlines()]
                for line in lines:
                    del line["tokens_per_second"]
                    del line["time"]
                content = lines
            elif name == "training.safetensors":         # its header has the size of the log
                header_size = int.from_bytes(content[:8], "little")
                content = content[8 + header_size:]
            contents[os.path.relpath(path, out)] = content
    return contents


def measure(script, steps, flags, folder, num_kills, rng):
    """Print a row of the table about a script -> the folder of the run that nothing disturbed."""
    flags = [*FLAGS, "--steps", steps, *flags]
    whole = os.path.join(folder, f"{script}-whole")
    killed = os.path.join(folder, f"{script}-killed")
    first = time.perf_counter()
    finish(script, [*flags, "--out", whole])
    middle = time.perf_counter()
    counts = torment(script, [*flags, "--out", killed], killed, num_kills, LONGEST, rng)
    last = time.perf_counter()
    is_same = remains(whole) == remains(killed)
    same = "NO"
    if is_same:
        same = "yes"
    cells = [script, f"{steps:,}"]
    cells += [str(count) for count in counts]
    cells += [f"{middle - first:.0f}", f"{last - middle:.0f}", same]
    print(f"| {' | '.join(cells)} |", flush=True)
    if not is_same:
        sys.exit(f"{script}: the killed run ended differently")
    if counts[1] < num_kills:
        sys.exit(f"{script}: it ended after {counts[0]} kills; more steps are needed")
    return whole


def main():
    """Kill runs of both scripts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=60,
                        help="kills of each script that it resumes from (default: 60)")
    parser.add_argument("--seed", type=int, default=0,
                        help="seed of the moments of the kills (default: 0)")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        student = measure("distill", 1200, ["--length", "32"], folder, args.kills, rng)
        flags = ["--model", student, "--task", "code", "--seeds", "2", "--dropout", "0.1"]
        measure("finetune", 600, flags, folder, args.kills, rng)


if __name__ == "__main__":
    main()
