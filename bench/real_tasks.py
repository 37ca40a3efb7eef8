"""Real tasks, three seeds each: a teacher, its student, and the student's adapters alone.

    python distill.py
    python bench/real_tasks.py --data ../shared/data --models teacher=DIR student=DIR
    python bench/real_tasks.py --tasks rte cola --seeds 5

Each row is one command of finetune.py, run on one thread, as many at a time as there are cores, so
seconds are those of a busy machine. Scores are of the test set where it has labels, else of dev.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NER = "--task tagging --train {0}/train.tsv --dev {0}/devel.tsv --test {0}/test.tsv"
TASKS = {
    "sst2": "--task sst2 --data {data}/glue/SST-2 --epochs 1",
    "cola": "--task cola --data {data}/glue/CoLA",
    "mrpc": "--task mrpc --data {data}/glue/MRPC",
    "stsb": "--task stsb --data {data}/glue/STS-B",
    "rte": "--task rte --data {data}/glue/RTE",
    "bc5cdr-disease": NER.format("{data}/ner/BC5CDR-disease-IOB"),
    "bc2gm": NER.format("{data}/ner/BC2GM-IOB") + " --epochs 1",
    "chemprot": "--task classification --train {data}/cls/chemprot/train.jsonl "
                "--dev {data}/cls/chemprot/dev.jsonl --test {data}/cls/chemprot/test.jsonl",
    "qa": "--task qa --train {data}/qa/squadshifts/new_wiki_v1.0.json "
          "{data}/qa/squadshifts/amazon_reviews_v1.0.json {data}/qa/squadshifts/reddit_v1.0.json "
          "--dev {data}/qa/xquad/xquad.en.json --steps 250",
}
ROW = re.compile(r"(\S+) +(\S+) +(\S+) +(-?[\d.]+%)(?: \+- ([\d.]+%) of \d+ seeds)?")


def measure(command):
    """The table row, but for its name, of one command of finetune.py."""
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "finetune.py", *command.split(), "--out", f"{out}/x"], cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        seconds = time.perf_counter() - began
    if done.returncode:
        return f"failed: {done.stderr.splitlines()[-1:]} | `{command}` |"
    found = [match.groups() for match in map(ROW.fullmatch, done.stdout.splitlines()) if match]
    split = "test" if any(row[1] == "test" for row in found) else "dev"
    first = next(row[2] for row in found if row[1] == split)             # the task's own metric
    base, mine = ([f"{mean} {metric}" + (f" +- {sd}" if sd else "")
                   for mode, where, metric, mean, sd in found if where == split
                   and (mode == "majority") == is_base] for is_base in (True, False))
    assert mine and first
    return f"{split} | {'; '.join(mine)} | {'; '.join(base)} | {seconds:.0f} | `{command}` |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--models", nargs="+", default=["teacher=assets/teacher",
                                                        "student=out/student"])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    print("| task | model | split | score | majority | seconds | command: python finetune.py |")
    print("|---" * 7 + "|", flush=True)
    rows = []
    for task in args.tasks:
        for name, folder in (model.split("=", 1) for model in args.models):
            for mode in ("", " --adapters-only") if name == "student" else ("",):
                command = TASKS[task].format(data=os.path.abspath(args.data))
                rows.append((f"{task} | {name}{mode[1:] and ', adapters alone'}",
                             f"{command} --model {os.path.abspath(folder)} "
                             f"--seeds {args.seeds}{mode}"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (name, _), row in zip(rows, pool.map(measure, (command for _, command in rows))):
            print(f"| {name} | {row}", flush=True)


if __name__ == "__main__":
    main()
