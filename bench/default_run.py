"""The default run of distill.py beside its ablations: held-out MLM accuracy over seeds.

    python bench/default_run.py                       # all rows, three seeds
    python bench/default_run.py --rows default alone --seeds 0 1 2

A row is one command of distill.py, which is run once with each seed. Its flags are printed in the
row. The figures of a seed are those that distill.py writes into its results.json. The accuracies
after each recursion, from 0 recursions on, are means over the seeds. If the corpus is not in the
cache yet, the seconds of the first command include its tokenising.
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
# The weights that the losses have in the authors' code, which divides the attention loss by the
# length of a sequence: 3 / 64 is 0.046875.
AUTHORS_WEIGHTS = "--attention-weight 0.046875 --hidden-weight 3"
# Give the student the shape that it has in the default run, but start it from noise, and let it
# learn without any teacher.
NO_TEACHER = "--teacher none --tokenizer assets/teacher --hidden-size 128 --num-hidden-layers 4"
# The name of a row -> how its command differs from the default run.
ROWS = {
    "default": "",
    # The weight of the elastic loss, which is the output loss after an earlier recursion. The
    # default is 2.5, so the row "elastic-2.5" repeats the row "default".
    "elastic-0": "--elastic 0",
    "elastic-1": "--elastic 1",
    "elastic-2.5": "--elastic 2.5",
    "elastic-5": "--elastic 5",
    # There is no teacher. The student starts with the sinusoids and the sharp attention that
    # initialise() gives it.
    "alone": NO_TEACHER,
    # There is no teacher. A lower learning rate suits such a student better.
    "alone-low-rate": NO_TEACHER + " --lr 1e-3",
    # The teacher gives the first values. After that no loss compares the student with it.
    "start-then-alone": "--attention-weight 0 --hidden-weight 0 --output-weight 0",
    # The student starts from noise: the teacher is matched in each step, but gives no first values.
    "random-start": "--init random",
    # The student starts from noise and has the authors' adapters, output matrix and weights of the
    # losses, but also the elastic loss, and no dropout.
    "authors": "--init random --no-tie-decoder --adapter-size 8 " + AUTHORS_WEIGHTS,
    # A recursion has other parts of its own: corrections of a lower rank, the paper's adapters, or
    # nothing.
    "rank-8": "--correction-rank 8",
    "adapters": "--adapter-size 8",
    "adapters-authors-weights": "--adapter-size 8 " + AUTHORS_WEIGHTS,
    "no-adapters": "--adapter-size 0",
    # The student has another shape.
    "two-recursions": "--num-hidden-layers 2",
    "eight-recursions": "--num-hidden-layers 8",
    "unshared": "--num-hidden-groups 4",
    # The losses have other weights, or one loss is left out. Without the output loss distill.py
    # leaves out the elastic loss, too.
    "authors-weights": AUTHORS_WEIGHTS,
    "no-attention-loss": "--attention-weight 0",
    "no-hidden-loss": "--hidden-weight 0",
    "no-output-loss": "--output-weight 0",
    "no-mlm-loss": "--mlm-weight 0",
    # The loss of the masked words and only one of the teacher's losses.
    "mlm-and-output": "--attention-weight 0 --hidden-weight 0",
    "mlm-and-attention": "--hidden-weight 0 --output-weight 0",
    "mlm-and-hidden": "--attention-weight 0 --output-weight 0",
    # The student has dropout, as the authors' has.
    "dropout": "--dropout 0.1",
}


def distil(flags, seed):
    """Run distill.py, in a folder that is deleted afterwards.

    Returns the student's results of results.json {name: value} and the seconds of the command. If
    the command fails, the program ends.
    """
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "distill.py"] + flags
        command += ["--seed", str(seed), "--out", out]
        begin = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
        seconds = time.perf_counter() - begin
        with open(os.path.join(out, "results.json"), encoding="utf-8") as file:
            results = json.load(file)
    return results["student"], seconds


def print_row(name, flags, seeds):
    """Run a row's command with each seed, then print the row: the accuracies, their mean and
    deviation, the mean loss, the mean accuracies after each recursion and the median seconds."""
    accuracies = []
    losses = []
    lists_after = []                                     # one for each seed
    seconds_of_seeds = []
    for seed in seeds:
        results, seconds = distil(flags, seed)
        accuracies.append(results["accuracy"])
        losses.append(results["loss"])
        lists_after.append(results["accuracy_after"])
        seconds_of_seeds.append(seconds)
    deviation = "-"
    if len(seeds) > 1:
        deviation = f"{statistics.stdev(accuracies):.1%}"
    each = " ".join(f"{accuracy:.1%}" for accuracy in accuracies)
    cells = [name, " ".join(flags), each]
    cells.append(f"{statistics.mean(accuracies):.1%}")
    cells.append(deviation)
    cells.append(f"{statistics.mean(losses):.3f}")
    means_after = []
    for accuracies_of_depth in zip(*lists_after):
        means_after.append(statistics.mean(accuracies_of_depth))
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
    args = parser.parse_args()
    print("| row | flags | MLM accuracy, each seed | mean | sd | MLM loss | after each recursion | "
          "seconds |")
    print("|" + "---|" * 8)
    for name in args.rows:
        print_row(name, ROWS[name].split(), args.seeds)


if __name__ == "__main__":
    main()
