"""Measure what another program on the same cores costs a distillation on a CPU, and what helps.

    python bench/busy.py --repeats 3

A turn measures a short distillation alone, one beside a process that keeps a core busy, and two at
once, each with every variable of --variables in the environment ("" stands for none). The table
shows tokens per second, summed over the distillations that run at once: the median of all turns,
with the smallest and the largest in brackets. No other program should run meanwhile.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def start_distillation(folder, variable, steps):
    """Start a distillation into `folder` in a process of its own, and return the process.

    variable: a variable of its environment, such as "OMP_NUM_THREADS=1", or ""
    """
    environment = dict(os.environ)
    if variable:
        name, value = variable.split("=", 1)
        environment[name] = value
    command = [sys.executable, str(ROOT / "distill.py"), "--steps", str(steps),
               "--eval-every", "0", "--out", str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)


@contextmanager
def busy_process(is_wanted):
    """Keep a core busy while the block of the `with` statement runs, if that is wanted."""
    if not is_wanted:
        yield
        return
    # Linux divides the time of the cores among sessions. So this is as in another terminal.
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def tokens_per_second(num_distillations, with_busy_process, variable, steps):
    """Run that many distillations at once -> their tokens per second, summed."""
    total = 0
    with tempfile.TemporaryDirectory() as folder, busy_process(with_busy_process):
        outs = [Path(folder) / str(number) for number in range(num_distillations)]
        processes = [start_distillation(out, variable, steps) for out in outs]
        for out, process in zip(outs, processes):
            if process.wait() != 0:
                raise RuntimeError(f"a distillation ended with status {process.returncode}")
            last_line = (out / "log.jsonl").read_text().splitlines()[-1]
            total += json.loads(last_line)["tokens_per_second"]
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="number of turns (default 3)")
    parser.add_argument("--steps", type=int, default=30,
                        help="steps of a distillation (default 30)")
    parser.add_argument("--variables", nargs="+", metavar="NAME=VALUE",
                        default=["", "GOMP_SPINCOUNT=5000", "OMP_NUM_THREADS=1"],
                        help="variables of the environment, one for each row of a state")
    args = parser.parse_args()

    # The number of distillations, and whether a busy process runs beside them.
    states = {"alone": (1, False), "beside a busy process": (1, True),
              "two at once": (2, False)}
    speeds = {}
    for _ in range(args.repeats):
        for state, (num_distillations, with_busy_process) in states.items():
            for variable in args.variables:
                speed = tokens_per_second(num_distillations, with_busy_process, variable,
                                          args.steps)
                speeds.setdefault((state, variable), []).append(speed)
                print(f"{state}, {variable or 'nothing set'}: {speed:,}", file=sys.stderr)

    print("| distillations | environment | tokens per second |\n|---|---|---|")
    for (state, variable), values in speeds.items():
        print(f"| {state} | {variable or '-'} | {statistics.median(values):,.0f} "
              f"({min(values):,} to {max(values):,}) |")


if __name__ == "__main__":
    main()
