"""Everything that is to be measured on a GPU, in 16 to 18 minutes on one H200.

    python bench/gpu.py --out DIR --corpus enwiki.txt --tokenizer bert-base-uncased/ \\
        --authors MiniALBERT/ SITE/
        all sections; MiniALBERT/ is a checkout of github.com/nlpie-research/MiniALBERT, SITE/ a
        folder into which transformers 4.30 was installed with pip install --target
    python bench/gpu.py --out DIR2 --sections mini growth
        some sections: the last ones, if the first call had no time for them
    python bench/gpu.py --out DIR --toy
        tiny sizes on a CPU: a test of this script

A section has one job or several. Each is a process of its own with its own time limit
(gpu_sections.py). As soon as a job has a row of a table, DIR/gpu.json and DIR/gpu.md are written
anew, so that a crash or a limit loses only what follows in that job. What the jobs print goes to
DIR/gpu.log. The exit status is 1 if a job failed or a row missed its goal. The goals are about
results that must agree and waits that must not be there. They are not about speed.

First come the jobs that compile or compare. They run at the same time, and so do the default
commands, whose seconds are therefore too long. Then each job that is timed runs alone. The table of
jobs in gpu.md names those that were not begun, because there was no time; the least important comes
last. On a machine with 16 cores all of them need 16 to 18 minutes, and 90 GiB of the card's memory
where they run at the same time. An H200 has these; on an H100 a first compilation may be "out of
memory".

EXPERIMENTS.md has what was found on an H200. --toy runs all jobs on a CPU and finds mistakes in
this script. A CPU has nothing to wait for, and no CUDA graphs.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import NamedTuple

BENCH = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(BENCH)
SPEED = ("Speed of a step; where nothing else is said it is at bert-base's size, and ours in "
         "bfloat16, with the paper's adapters and losses")
FIRST_TIME = "The first compilation, beside other jobs"
# 200 steps are logged every 50 steps, as by default.
FULL = {"compiled": True, "dropout": 0.0, "full_recipe": True, "steps": 200}
SMALL_FULL = FULL | {"small": True}
# What is compiled and timed: {name: arguments of our_speed}.
GRAPHS = {
    "ours, compiled": {"compiled": True},
    "ours, compiled, without dropout": {"compiled": True, "dropout": 0.0},
    "the recipe full: corrections, elastic loss, no dropout": FULL,
    "ours, compiled, micro-batches of 96": {"compiled": True, "micro_batch_size": 96},
    "ours, compiled, 24": {"compiled": True, "batch_size": 24},
    "the recipe full, 24": FULL | {"batch_size": 24},
    "the recipe full, 24, as CUDA graphs": FULL | {"batch_size": 24, "cuda_graphs": True},
    "the recipe full, as CUDA graphs": FULL | {"cuda_graphs": True},
    "the recipe full at all-MiniLM's size": SMALL_FULL,
    "the recipe full at all-MiniLM's size, as CUDA graphs": SMALL_FULL | {"cuda_graphs": True},
}


class Job(NamedTuple):
    """A process that measures something."""
    section: str            # by which --sections chooses it
    function: str           # of gpu_sections.py
    arguments: dict         # of the function, beside the Setup
    limit: int              # seconds; then the process is ended
    beside: bool = False    # whether the next jobs may run at the same time


def speed_job(name, limit, beside=False, table=SPEED, **arguments):
    """Make a Job that trains and takes the speed from the log."""
    arguments["name"] = name
    arguments["table"] = table
    return Job("speed", "our_speed", arguments, limit, beside)


def authors_job(name, bf16):
    """Make a Job that times the authors' step."""
    arguments = {"name": name, "table": SPEED, "bf16": bf16}
    return Job("speed", "authors_speed", arguments, 60)


def profile_job(compiled, full_recipe, cuda_graphs=False):
    """Make a Job that says where the time of a step goes."""
    arguments = {"compiled": compiled, "full_recipe": full_recipe, "cuda_graphs": cuda_graphs}
    return Job("profile", "profile", arguments, 60)


def default_job(device, bf16, name):
    """Make a Job that runs `python distill.py` on a device."""
    arguments = {"device": device, "bf16": bf16, "name": name}
    return Job("default", "default_command", arguments, 300, beside=True)


def list_jobs(device):
    """List all jobs in the order in which they run."""
    jobs = []
    jobs.append(Job("card", "card", {}, 120))

    # These share the machine, because they are not timed: all big graphs are compiled, and results
    # are compared. The jobs that time a graph later find it in the cache on the disk. With --toy,
    # on a CPU, nothing is kept there.
    if device != "cpu":
        for name, arguments in GRAPHS.items():
            few_steps = dict(arguments)
            few_steps["steps"] = 8
            jobs.append(speed_job(f"{name}, for the first time", 240, beside=True,
                                  table=FIRST_TIME, **few_steps))
    jobs.append(Job("parity", "parity", {}, 240, beside=True))
    jobs.append(Job("parity", "parity_of_tuning", {}, 120, beside=True))
    jobs.append(Job("waits", "waits", {}, 240, beside=True))
    jobs.append(Job("waits", "graphs", {}, 240, beside=True))
    jobs.append(Job("waits", "cuda_graphs", {}, 400, beside=True))
    for cuda_graphs in (False, True):
        jobs.append(Job("processes", "two_processes", {"cuda_graphs": cuda_graphs},
                        200, beside=True))
    jobs.append(default_job("cpu", False, "CPU"))
    jobs.append(default_job(device, False, "GPU float32"))
    jobs.append(default_job(device, True, "GPU bfloat16"))
    for compiled in (False, True):
        jobs.append(Job("kills", "kills", {"compiled": compiled}, 300, beside=True))

    # From here on each job has the machine for itself.
    jobs.append(speed_job("ours, eager", 60, compiled=False))
    for name, arguments in GRAPHS.items():
        jobs.append(speed_job(name, 120, **arguments))
    jobs.append(authors_job("authors', float32", False))
    jobs.append(authors_job("authors', bfloat16", True))
    jobs.append(profile_job(compiled=False, full_recipe=False))
    jobs.append(profile_job(compiled=True, full_recipe=False))
    jobs.append(profile_job(compiled=True, full_recipe=True))
    jobs.append(profile_job(compiled=True, full_recipe=True, cuda_graphs=True))
    jobs.append(Job("mini", "mini_teacher", {}, 150))
    jobs.append(Job("mini", "mini_student", {}, 240))
    jobs.append(Job("growth", "growth", {}, 110))
    return jobs


# ---- What is found ----------------------------------------------------------------------

NOT_BEGUN = "not begun: the time is over"


class Record:
    """All rows found so far, and the files gpu.json and gpu.md in a folder that show them."""

    def __init__(self, folder):
        self.folder = folder
        self.tables = {}        # {title: its rows, each {"row": {column: value}, "passed": ...}}
        self.values = {}        # {name: number} that later jobs use
        self.jobs = []          # how each job ended
        self.lock = threading.Lock()                     # jobs report at the same time

    def add(self, answer):
        """Add a row that a job has reported, and write the files."""
        with self.lock:
            rows = self.tables.setdefault(answer["table"], [])
            rows.append({"row": answer["row"], "passed": answer["passed"]})
            self.values.update(answer["values"])
            self.write()

    def add_job(self, row):
        """Add how a job ended, and write the files."""
        with self.lock:
            self.jobs.append(row)
            self.write()

    def write(self):
        """Write gpu.json and gpu.md."""
        found = {"tables": self.tables, "values": self.values, "jobs": self.jobs}
        write_file(os.path.join(self.folder, "gpu.json"), json.dumps(found, indent=1))
        text = "# Measured by bench/gpu.py\n"
        for title, rows in self.tables.items():
            text += f"\n## {title}\n\n" + table_of_rows(rows)
        job_rows = [{"row": row, "passed": None} for row in self.jobs]
        text += "\n## Jobs\n\n" + table_of_rows(job_rows)
        write_file(os.path.join(self.folder, "gpu.md"), text)

    def count_failed_jobs(self):
        """Count the jobs that did not end well. Those for which there was no time do not count."""
        return sum(1 for row in self.jobs if row["ended"] not in ("well", NOT_BEGUN))

    def count_missed_goals(self):
        """Count the rows whose goal was missed."""
        count = 0
        for rows in self.tables.values():
            count += sum(1 for entry in rows if entry["passed"] is False)
        return count


def write_file(path, text):
    """Replace a file; it is never seen half written."""
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{path}.tmp", path)


def table_of_rows(rows):
    """Write rows as a table in Markdown; its columns are those of all rows together."""
    columns = []
    for entry in rows:
        for column in entry["row"]:
            if column not in columns:
                columns.append(column)
    has_goals = any(entry["passed"] is not None for entry in rows)
    lines = [list(columns)]
    for entry in rows:
        cells = [str(entry["row"].get(column, "")) for column in columns]
        if has_goals:
            cells.append(describe_goal(entry["passed"]))
        lines.append(cells)
    if has_goals:
        lines[0].append("met?")
    lines.insert(1, ["---"] * len(lines[0]))
    text = ""
    for cells in lines:
        text += f"| {' | '.join(cells)} |\n"
    return text


def describe_goal(passed):
    """Say whether a goal was met; None: there is none."""
    if passed is None:
        return "-"
    if passed:
        return "yes"
    return "NO"


# ---- Running the jobs -------------------------------------------------------------------

class Run:
    """A job that runs; a thread of this process listens to it."""

    def __init__(self, job, setup, record, log, last_moment):
        """Start the job.

        setup: the fields of its Setup; log: where its output goes
        last_moment: of all jobs; this one may run until its own limit or until then
        """
        self.job = job
        self.record = record
        self.begin = time.perf_counter()
        self.deadline = min(self.begin + job.limit, last_moment)
        self.end = None
        command = [sys.executable, os.path.join(BENCH, "gpu_sections.py"), job.function,
                   json.dumps(setup), json.dumps(job.arguments)]
        # A session of its own: then all processes that it starts can be ended with it.
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True,
                                        cwd=ROOT, start_new_session=True)
        self.listener = threading.Thread(target=self.listen)
        self.listener.start()

    def listen(self):
        """Record each line that the job reports."""
        for line in self.process.stdout:
            if not line.endswith("\n"):                  # the job was killed while it wrote
                break
            answer = json.loads(line)
            print(f"    {answer['table']}: {answer['row']}", flush=True)
            self.record.add(answer)
        self.end = time.perf_counter()

    def finish(self):
        """Wait for the job, at most until its deadline, and record how it ended."""
        seconds_left = max(0.0, self.deadline - time.perf_counter())
        self.listener.join(seconds_left)                 # it ends when the job closes its output
        is_too_slow = self.listener.is_alive()
        if not is_too_slow:
            # The job is about to end by itself. Its status counts, not that of the kill below.
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=30)
        self.kill()                                      # the job, and what it has started
        self.listener.join()                             # now all its lines are recorded
        status = self.process.wait()
        if is_too_slow:
            ended = "it was ended at its limit or that of all jobs"
        elif status != 0:
            ended = f"exit status {status}: see gpu.log"
        else:
            ended = "well"
        self.record.add_job(row_of_job(self.job, ended, self.end - self.begin))

    def kill(self):
        """End the job and the processes that it has started, as far as they still run."""
        with suppress(ProcessLookupError):               # none of them does
            os.killpg(self.process.pid, signal.SIGKILL)


def row_of_job(job, ended, seconds):
    """Make the row that says how a job ended."""
    return {"section": job.section, "job": job.function, "arguments": json.dumps(job.arguments),
            "ended": ended, "seconds": f"{seconds:.0f}"}


def run_jobs(jobs, args, folder, record, log):
    """Run all jobs. Those that do not tolerate others wait for the end of all before them."""
    last_moment = time.perf_counter() + args.seconds
    running = []
    try:
        for job in jobs:
            if not job.beside:
                finish_all(running)                      # this job needs the machine for itself
            if last_moment - time.perf_counter() < 30:
                record.add_job(row_of_job(job, NOT_BEGUN, 0))
                continue
            print(f"{job.section}: {job.function} {job.arguments}", flush=True)
            setup = setup_of(args, folder, record.values)
            running.append(Run(job, setup, record, log, last_moment))
            if args.toy or not job.beside:               # a small machine has no room for others
                finish_all(running)
        finish_all(running)
    finally:
        # If this program is ended, its jobs must not run on: they would disturb the next call.
        for run in running:
            run.kill()


def finish_all(running):
    """Wait for the ends of Runs and empty the list. The one that has the least time comes first."""
    for run in sorted(running, key=lambda run: run.deadline):
        run.finish()
    running.clear()


def setup_of(args, folder, values):
    """Collect the fields of a job's Setup."""
    return {"toy": args.toy, "device": args.device, "folder": folder, "values": values,
            "tokenizer": args.tokenizer, "corpus": args.corpus, "authors": args.authors,
            "authors_python": args.authors_python}


def arguments():
    """Parse the command line."""
    sections = []
    for job in list_jobs("cuda:0"):
        if job.section not in sections:
            sections.append(job.section)
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="DIR",
                        help="folder for gpu.json, gpu.md and gpu.log")
    parser.add_argument("--sections", nargs="+", choices=sections, default=sections,
                        help="what to measure (default: all)")
    parser.add_argument("--seconds", type=int, default=1100, metavar="N",
                        help="for all jobs together; what is not begun then is left out "
                        "(default: 1100)")
    parser.add_argument("--authors", nargs="+", type=os.path.abspath, default=[], metavar="DIR",
                        help="folders with the authors' code and with transformers 4.30 "
                        "(default: their rows are left out)")
    parser.add_argument("--authors-python", default=sys.executable, metavar="PATH",
                        help="the python that runs it (default: this one)")
    parser.add_argument("--corpus", type=os.path.abspath, metavar="PATH",
                        help="text for the mini-distillation (default: the documentation on this "
                        "machine)")
    parser.add_argument("--tokenizer", type=os.path.abspath, metavar="DIR",
                        default=os.path.join(ROOT, "assets", "teacher"),
                        help="its vocabulary (default: that of assets/teacher, of 4,096 tokens)")
    parser.add_argument("--toy", action="store_true",
                        help="tiny sizes on a CPU: a test of this script")
    args = parser.parse_args()
    args.device = "cuda:0"
    if args.toy:
        args.device = "cpu"
    return args


def end_program(number, frame):
    """Handle a signal: end the program, as run_jobs needs it to end its jobs."""
    sys.exit(128 + number)


def main():
    """Run the jobs of the sections that the command line names."""
    signal.signal(signal.SIGTERM, end_program)
    args = arguments()
    if os.path.exists(os.path.join(args.out, "gpu.json")):
        sys.exit(f"gpu.py: {args.out} has the results of another call; give another --out")
    os.makedirs(args.out, exist_ok=True)
    all_jobs = list_jobs(args.device)
    jobs = [all_jobs[0]]                                 # others need the rates of the card
    jobs += [job for job in all_jobs[1:] if job.section in args.sections]
    record = Record(args.out)
    # Jobs that run beside one another share the cores of the CPU.
    os.environ["OMP_NUM_THREADS"] = "4"
    if args.toy:
        os.environ["OMP_NUM_THREADS"] = "1"
    log_path = os.path.join(args.out, "gpu.log")
    with open(log_path, "w", encoding="utf-8") as log, tempfile.TemporaryDirectory() as folder:
        # All jobs share what has been compiled.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(folder, "compiled")
        run_jobs(jobs, args, folder, record, log)
    failed = record.count_failed_jobs()
    missed = record.count_missed_goals()
    print(f"{args.out}/gpu.md: {failed} jobs failed, {missed} goals were missed")
    if failed > 0 or missed > 0:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
