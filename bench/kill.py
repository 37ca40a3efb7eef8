"""Kill distill.py and finetune.py with SIGKILL at random moments, resume them, compare the ends.

    python bench/kill.py
        60 kills of each: some minutes

A run that was killed and resumed must end like one that nothing disturbed: with the same files and
the same bytes in them. Only the speed and the time in its log may differ, and with them the size of
the log, which the checkpoint names. The runs use the bundled teacher, the documentation on this
machine and the built-in task. The exit status is 1 if the ends differ, or if a run has ended before
it was killed often enough.
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
LONGEST = 1.5                       # seconds from the beginning of the training to a kill, at most
COLUMNS = ["run", "steps", "kills", "with a checkpoint to resume from", "amid a write",
           "seconds, undisturbed", "seconds, killed", "the same?"]


def begin(script, flags):
    """Run a script's main(flags) in a new process -> the process, and an event that is set when
    the training begins.

    The process is forked from a server that has imported torch already, which takes seconds.
    """
    context = multiprocessing.get_context("forkserver")
    # If this program was started in the folder of distill.py, the server imports torch and both
    # scripts once, and each process inherits them. Started elsewhere, the server finds torch alone,
    # and each process imports the scripts itself.
    context.set_forkserver_preload(["torch", "distill", "finetune"])
    has_begun = context.Event()
    flags = [str(flag) for flag in flags]
    process = context.Process(target=run_script, args=(script, flags, has_begun))
    process.start()
    return process, has_begun


def run_script(script, flags, has_begun):
    """Run a script in this process, with all that it prints thrown away."""
    sys.stdout = open(os.devnull, "w")
    os.dup2(sys.stdout.fileno(), 2)                      # its progress bar is on standard error
    import torch                                         # the server has imported it already
    torch.set_num_threads(1)        # two threads wait long for each other on a busy machine
    module = importlib.import_module(script)
    original = module.train

    # In this process alone the script's train() is replaced by one that first sets the event.
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


def wait_for_training(process, has_begun, command):
    """Wait until a process of begin() trains or, if it never does, until it has ended. RuntimeError
    if it does neither in ten minutes; it names the command."""
    last_moment = time.perf_counter() + 600
    while not has_begun.wait(1) and process.is_alive():
        if time.perf_counter() > last_moment:
            raise RuntimeError(f"{command}: no step was made in ten minutes")


def kill_repeatedly(script, flags, out, wanted, longest, rng):
    """Kill a run again and again, then let it end.

    out: the folder of the run
    wanted: how many kills must leave a checkpoint behind; there are more kills if some come before
        the first checkpoint
    longest: seconds from the beginning of the training to a kill, at most; one kill in ten does not
        wait for the training to begin

    Returns three counts: num_kills is that of all kills, num_resumed that of the kills after which
    there was a checkpoint to resume from, and num_amid_write that of the kills that came while a
    file was being written. num_resumed is less than wanted if the run ended too early.
    """
    flags = list(flags) + ["--resume"]
    num_kills = 0
    num_resumed = 0
    num_amid_write = 0
    leftovers_before = set()
    while num_resumed < wanted:
        process, has_begun = begin(script, flags)
        if rng.random() > 0.1:
            wait_for_training(process, has_begun, f"{script}.py {flags}")
        process.join(rng.uniform(0, longest))
        if process.exitcode == 0:                        # it ended before it could be killed
            break
        if process.exitcode is not None:
            raise RuntimeError(f"{script}.py {flags}: exit status {process.exitcode}")
        process.kill()
        process.join()
        num_kills += 1
        paths = files_below(out)
        if any(os.path.basename(path) == "training.safetensors" for path in paths):
            num_resumed += 1
        # A half-written file stays until the run writes that file again. So a .tmp is only of this
        # kill if it was not there after the kill before, or was written to since.
        leftovers = set()                                # {(path, time of the last write)}
        for path in paths:
            if path.endswith(".tmp"):
                leftovers.add((path, os.stat(path).st_mtime_ns))
        new_leftovers = leftovers - leftovers_before
        if new_leftovers:
            num_amid_write += 1
        leftovers_before = leftovers
    finish(script, flags)
    return num_kills, num_resumed, num_amid_write


def files_below(out):
    """List the paths of all files in a folder and in its subfolders."""
    paths = []
    for folder, _, names in os.walk(out):
        paths += [os.path.join(folder, name) for name in names]
    return paths


def remains(out):
    """Read what a run left: {file: its bytes}, without what the clock decides."""
    contents = {}
    for path in files_below(out):
        with open(path, "rb") as file:
            content = file.read()
        name = os.path.basename(path)
        if name == "log.jsonl":
            lines = [json.loads(line) for line in content.splitlines()]
            for line in lines:
                del line["tokens_per_second"]
                del line["time"]
            content = lines
        elif name == "training.safetensors":             # its header has the size of the log
            header_size = int.from_bytes(content[:8], "little")
            content = content[8 + header_size:]
        contents[os.path.relpath(path, out)] = content
    return contents


def measure(script, steps, flags, folder, wanted_kills, rng):
    """Run a script undisturbed and killed, compare the ends and print a row of the table -> the
    folder of the undisturbed run. The program ends if the ends differ.

    wanted_kills: how many kills must leave a checkpoint behind
    """
    flags = FLAGS + ["--steps", steps] + flags
    whole = os.path.join(folder, f"{script}-whole")
    killed = os.path.join(folder, f"{script}-killed")
    begin_whole = time.perf_counter()
    finish(script, flags + ["--out", whole])
    begin_killed = time.perf_counter()
    num_kills, num_resumed, num_amid_write = kill_repeatedly(
        script, flags + ["--out", killed], killed, wanted_kills, LONGEST, rng)
    end = time.perf_counter()
    is_same = remains(whole) == remains(killed)
    cells = [script, f"{steps:,}", str(num_kills), str(num_resumed), str(num_amid_write)]
    cells.append(f"{begin_killed - begin_whole:.0f}")
    cells.append(f"{end - begin_killed:.0f}")
    if is_same:
        cells.append("yes")
    else:
        cells.append("NO")
    print(f"| {' | '.join(cells)} |", flush=True)
    if not is_same:
        sys.exit(f"{script}: the killed run ended differently")
    if num_resumed < wanted_kills:
        sys.exit(f"{script}: it ended after {num_kills} kills; more steps are needed")
    return whole


def main():
    """Kill runs of both scripts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=60,
                        help="kills of each script after which there is a checkpoint to resume "
                        "from (default: 60)")
    args = parser.parse_args()
    rng = random.Random(0)
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        student = measure("distill", 1200, ["--length", "32"], folder, args.kills, rng)
        flags = ["--model", student, "--task", "code", "--seeds", "2", "--dropout", "0.1"]
        measure("finetune", 600, flags, folder, args.kills, rng)


if __name__ == "__main__":
    main()
