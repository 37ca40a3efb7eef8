"""The default run of distill.py beside its ablations: held-out MLM accuracy over seeds.

    python bench/default_run.py                       # all rows, three seeds
    python bench/default_run.py --rows default alone --seeds 0 1 2
    python bench/default_run.py --bf16                # half the time, where the CPU knows bfloat16

Each row is one command, printed with it; the accuracy is the last line's of its log.jsonl.
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
TEACHER = os.path.join("assets", "teacher")
SHAPE = ["--hidden-size", "128", "--num-hidden-layers", "4"]
ROWS = {
    "default": [],
    "alone": ["--teacher", "none", "--tokenizer", TEACHER, *SHAPE],
    "alone-plain": ["--teacher", "none", "--tokenizer", TEACHER, "--init", "random", *SHAPE],
    "start-then-alone": ["--attention-weight", "0", "--hidden-weight", "0", "--output-weight", "0"],
    "authors-start": ["--init", "random", "--no-tie-decoder"],
    "authors-start-tied": ["--init", "random"],
    "no-adapters": ["--adapter-size", "0"],
    "two-recursions": ["--num-hidden-layers", "2"],
    "unshared": ["--num-hidden-groups", "4"],
    "no-attention-loss": ["--attention-weight", "0"],
    "no-hidden-loss": ["--hidden-weight", "0"],
    "no-output-loss": ["--output-weight", "0"],
    "embedding-loss": ["--embedding-weight", "3"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--bf16", action="store_true", help="pass it on to each row")
    args = parser.parse_args()
    print("| row | flags | MLM accuracy, each seed | mean | sd | MLM loss | seconds |")
    print("|---" * 7 + "|")
    for row in args.rows:
        scores, losses, seconds, changes = [], [], [], ROWS[row] + ["--bf16"][:args.bf16]
        for seed in args.seeds:
            with tempfile.TemporaryDirectory() as out:
                began = time.perf_counter()
                flags = [*changes, "--seed", str(seed), "--out", out]
                subprocess.run([sys.executable, "distill.py", *flags], cwd=ROOT, check=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                seconds.append(time.perf_counter() - began)
                with open(os.path.join(out, "log.jsonl"), encoding="utf-8") as log:
                    last = json.loads(log.readlines()[-1])
            scores.append(last["valid_accuracy"])
            losses.append(last["valid_loss"])
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        print(f"| {row} | {' '.join(changes)} | {' '.join(f'{score:.1%}' for score in scores)} "
              f"| {statistics.mean(scores):.1%} | {spread:.1%} | {statistics.mean(losses):.3f} "
              f"| {statistics.median(seconds):.0f} |", flush=True)


if __name__ == "__main__":
    main()
