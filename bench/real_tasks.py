"""Fine-tune on real tasks, with three seeds each: a teacher, its student, and the student once more
with --adapters-only. That trains each recursion's own parts (its corrections or adapters) and the
head alone.

    python distill.py
        makes out/student, which is needed first
    python bench/real_tasks.py --data ../shared/data --models teacher=DIR student=DIR
    python bench/real_tasks.py --tasks rte cola --seeds 5
    python bench/real_tasks.py --tasks mrpc --recursions 1 2 3 4

Each row is one command of finetune.py, run on one thread. As many run at a time as there are cores,
so the seconds are those of a busy machine. All scores come from results.json. They are of the test
set if it has labels, otherwise of the dev set. "majority" has the scores of guesses made without a
model. If a command fails, its row says so, the others go on, and the exit status is 1.
"""
import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# The flags of each task; {data} stands for the folder of --data. bench/study.py uses them, too.
FLAGS_OF_TASKS = {
    "sst2": "--task sst2 --data {data}/glue/SST-2",
    "cola": "--task cola --data {data}/glue/CoLA",
    "mrpc": "--task mrpc --data {data}/glue/MRPC",
    "stsb": "--task stsb --data {data}/glue/STS-B",
    "rte": "--task rte --data {data}/glue/RTE",
    "bc5cdr-disease": "--task tagging --train {data}/ner/BC5CDR-disease-IOB/train.tsv "
                      "--dev {data}/ner/BC5CDR-disease-IOB/devel.tsv "
                      "--test {data}/ner/BC5CDR-disease-IOB/test.tsv",
    "bc2gm": "--task tagging --train {data}/ner/BC2GM-IOB/train.tsv "
             "--dev {data}/ner/BC2GM-IOB/devel.tsv "
             "--test {data}/ner/BC2GM-IOB/test.tsv",
    "chemprot": "--task classification --train {data}/cls/chemprot/train.jsonl "
                "--dev {data}/cls/chemprot/dev.jsonl --test {data}/cls/chemprot/test.jsonl",
    "qa": "--task qa --train {data}/qa/squadshifts/new_wiki_v1.0.json "
          "{data}/qa/squadshifts/amazon_reviews_v1.0.json {data}/qa/squadshifts/reddit_v1.0.json "
          "--dev {data}/qa/xquad/xquad.en.json",
}
# By default finetune.py makes three epochs. Of these large training sets it makes one, or fewer.
LIMITS = {"sst2": "--steps 600", "bc2gm": "--epochs 1", "qa": "--steps 250"}


class Run(NamedTuple):
    """One row of the table: a command of finetune.py."""
    task: str
    model: str              # what the row says of the model
    command: str            # the flags of finetune.py


def list_runs(tasks, models, data, seeds, recursions):
    """List the Runs of all tasks with all models.

    models: a list of "name=folder"
    recursions: a list of numbers: each model has a Run for each of them, with so many of its
        recursions. None: each model has a Run with all of its recursions, and the student a second
        one, with --adapters-only
    """
    runs = []
    for task in tasks:
        flags = FLAGS_OF_TASKS[task].format(data=shlex.quote(os.path.abspath(data)))
        if task in LIMITS:
            flags += " " + LIMITS[task]
        for model in models:
            name, folder = model.split("=", 1)
            command = f"{flags} --model {shlex.quote(os.path.abspath(folder))} --seeds {seeds}"
            if recursions is None:
                runs.append(Run(task, name, command))
                if name == "student":
                    own_parts = f"{command} --adapters-only"
                    runs.append(Run(task, f"{name}, own parts alone", own_parts))
            else:
                for number in recursions:
                    shorter = f"{command} --recursions {number}"
                    runs.append(Run(task, f"{name}, {number} recursions", shorter))
    return runs


def measure(run):
    """Run a command of finetune.py -> whether it failed, and the cells of its row that follow the
    model's."""
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out")
        command = [sys.executable, "finetune.py"] + shlex.split(run.command) + ["--out", out]
        environment = dict(os.environ)
        environment["OMP_NUM_THREADS"] = "1"
        begin = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - begin
        if done.returncode != 0:
            last_line = done.stderr.strip().split("\n")[-1]
            return True, ["-", f"failed: {last_line}", "-", f"{seconds:.0f}", f"`{run.command}`"]
        with open(os.path.join(out, "results.json"), encoding="utf-8") as file:
            results = json.load(file)
    (splits,) = results["modes"].values()                # a command trains in one mode
    split = "dev"
    if "test" in splits and splits["test"]["scores"][0] != {}:            # its labels are known
        split = "test"
    scores = describe_scores(splits[split]["scores"])
    majority = describe_scores([results["majority"][split]])
    return False, [split, scores, majority, f"{seconds:.0f}", f"`{run.command}`"]


def describe_scores(scores_of_seeds):
    """Describe the scores of several runs, each {metric: value}: the mean and, if there are several
    runs, the standard deviation of each metric."""
    texts = []
    for metric in scores_of_seeds[0]:
        values = [scores[metric] for scores in scores_of_seeds]
        text = f"{statistics.mean(values):.2%} {metric}"
        if len(values) > 1:
            text += f" +- {statistics.stdev(values):.2%}"
        texts.append(text)
    return "; ".join(texts)


def main():
    """Print the table that the command line asks for. The program fails if a command failed."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.path.join(ROOT, "..", "shared", "data"), metavar="DIR",
                        help="folder with glue, ner, cls and qa (default: ../shared/data, seen "
                        "from this repository)")
    parser.add_argument("--models", nargs="+", metavar="NAME=DIR",
                        default=[f"teacher={ROOT}/assets/teacher", f"student={ROOT}/out/student"],
                        help="models to tune; one with the name student is also tuned with "
                        "--adapters-only (default: teacher=assets/teacher student=out/student, "
                        "both in this repository)")
    parser.add_argument("--tasks", nargs="+", choices=FLAGS_OF_TASKS, default=list(FLAGS_OF_TASKS),
                        help="the tasks to measure (default: all)")
    parser.add_argument("--recursions", nargs="+", type=int, metavar="R",
                        help="tune each model with its first R recursions only, for each R "
                        "(default: with all)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N",
                        help="runs of each command (default: 3)")
    args = parser.parse_args()
    print("| task | model | split | score | majority | seconds | command: python finetune.py |")
    print("|" + "---|" * 7, flush=True)
    runs = list_runs(args.tasks, args.models, args.data, args.seeds, args.recursions)
    num_failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:     # a thread only waits for its command
        results = pool.map(measure, runs)
        # The rows are printed in the order of the runs, each when it and all before it are done.
        for run, (has_failed, cells) in zip(runs, results):
            print("| " + " | ".join([run.task, run.model] + cells) + " |", flush=True)
            if has_failed:
                num_failed += 1
    if num_failed > 0:
        sys.exit(f"{num_failed} of {len(runs)} commands have failed")


if __name__ == "__main__":
    main()
