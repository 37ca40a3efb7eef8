"""The default run of distill.py beside its ablations: held-out MLM accuracy over seeds.

    python bench/default_run.py                       # all rows, three seeds
    python bench/default_run.py --rows default alone --seeds 0 1 2
    python bench/default_run.py --bf16                # half the time, where the CPU knows bfloat16

Each row is one command for each seed; its flags are printed with it. The accuracy is that in the
last line of its log.jsonl. Those after each recursion, from 0 recursions on, are what the command
prints at its end, as means over the seeds.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# The student's shape of the default run, but started from noise and without any teacher.
NO_TEACHER = "--teacher none --tokenizer assets/teacher --hidden-size 128 --num-hidden-layers 4"
# The name of a row -> how its command differs from the default run.
ROWS = {
    "default": "",
    # The weight of the output loss after an earlier recursion.
    "elastic-0": "--elastic 0",
    "elastic-1": "--elastic 1",
    "elastic-2.5": "--elastic 2.5",
    "elastic-5": "--elastic 5",
    # With the sinusoids and the sharp attention of initialise().
    "alone": NO_TEACHER,
    # With a rate that suits it better.
    "alone-low-rate": NO_TEACHER + " --lr 1e-3",
    # As BERT is initialised.
    "alone-plain": NO_TEACHER + " --init random",
    # The teacher gives the first values and is not seen again.
    "start-then-alone": "--attention-weight 0 --hidden-weight 0 --output-weight 0",
    # From noise; the teacher is matched in each step, but gives no first values.
    "random-start": "--init random",
    # The authors start from noise and have adapters and an output matrix of their own.
    "authors-start": "--init random --no-tie-decoder --adapter-size 8",
    "authors-start-tied": "--init random --adapter-size 8",
    # What tells the recursions apart: corrections of another rank, the paper's adapters, nothing.
    "rank-8": "--correction-rank 8",
    "adapters": "--adapter-size 8",
    "no-adapters": "--adapter-size 0",
    # The student has another shape.
    "two-recursions": "--num-hidden-layers 2",
    "eight-recursions": "--num-hidden-layers 8",
    "unshared": "--num-hidden-groups 4",
    # One loss is left out, or the paper's embedding loss comes in. Without the output loss there is
    # no elastic loss, either.
    "no-attention-loss": "--attention-weight 0",
    "no-hidden-loss": "--hidden-weight 0",
    "no-output-loss": "--output-weight 0",
    "embedding-loss": "--embedding-weight 3",
    "dropout": "--dropout 0.1",
}


def distil(flags, seed):
    """Run distill.py -> the last line of its log {name: value}, the student's accuracies after each
    recursion, the seconds of the command.

    It writes into a folder that is deleted afterwards.
    """
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "distill.py"] + flags
        command += ["--seed", str(seed), "--out", out]
        begin = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
        seconds = time.perf_counter() - begin
        with open(os.path.join(out, "log.jsonl"), encoding="utf-8") as log:
            last_line = log.readlines()[-1]
    return json.loads(last_line), accuracies_after(done.stdout), seconds


def accuracies_after(printed):
    """Find the student's accuracies after each recursion in what distill.py printed: the first row
    with its name in the last table."""
    _, table = printed.split("MLM accuracy after so many recursions")
    rows = [line.split() for line in table.splitlines() if line.startswith("student ")]
    return [float(cell.rstrip("%")) / 100 for cell in rows[0][1:]]


def print_row(name, flags, seeds):
    """Run a row's command with each seed and print accuracies, mean loss and median seconds."""
    accuracies = []
    losses = []
    after_of_seeds = []
    seconds_of_seeds = []
    for seed in seeds:
        last, after, seconds = distil(flags, seed)
        accuracies.append(last["valid_accuracy"])
        losses.append(last["valid_loss"])
        after_of_seeds.append(after)
        seconds_of_seeds.append(seconds)
    deviation = "-"
    if len(seeds) > 1:
        deviation = f"{statistics.stdev(accuracies):.1%}"
    each = " ".join(f"{accuracy:.1%}" for accuracy in accuracies)
    cells = [name, " ".join(flags), each]
    cells.append(f"{statistics.mean(accuracies):.1%}")
    cells.append(deviation)
    cells.append(f"{statistics.mean(losses):.3f}")
    means_after = [statistics.mean(values) for values in zip(*after_of_seeds)]
    cells.append(" ".join(f"{mean:.1%}" for mean in means_after))
    cells.append(f"{statistics.median(seconds_of_seeds):.0f}")
    print("| " + " | ".join(cells) + " |", flush=True)


def main():
    """Print the table that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS),
                        help="the rows to measure (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N",
                        help="seeds of each row (default: 0 1 2)")
    parser.add_argument("--bf16", action="store_true", help="pass it on to each row")
    args = parser.parse_args()
    print("| row | flags | MLM accuracy, each seed | mean | sd | MLM loss | after each recursion | "
          "seconds |")
    print("|" + "---|" * 8)
    for name in args.rows:
        flags = ROWS[name].split()
        if args.bf16:
            flags.append("--bf16")
        print_row(name, flags, args.seeds)


if __name__ == "__main__":
    main()
