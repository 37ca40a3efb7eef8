"""Is the program as fast as it was? An earlier checkout and this one do the same work, in turns.

    git worktree add ../before 58a4457
    python bench/before.py ../before

Each row is work that bench/speed.py measures, too: a step of distillation, a forward pass,
fine-tuning, prediction, tokenising. Each checkout does it with its own modules and its own
bench/speed_ours.py, in a process of its own. A figure is the median over the turns, with the
smallest and the largest in brackets. The ratio is taken within each turn. If it is above 1, this
checkout is the faster one.
"""
import argparse
import os
import sys
import tempfile
from typing import NamedTuple

from speed import (BASE, ROOT, Variant, Worker, close_workers, print_heading, print_row, summary,
                   take_turns, vocabulary, write_text)
from speed_ours import save_models, write_sentences


class Work(NamedTuple):
    """What both checkouts do in a row of the table."""
    function: str           # of speed_ours.py
    settings: dict          # its arguments
    request: dict           # the arguments of measure(), which it returns: see speed_worker.py


def list_work(args, folder):
    """List what is measured: {name of the row: Work}. Its files are written into the folder."""
    sentences = os.path.join(folder, "sentences.json")
    tsv = os.path.join(args.data, "glue/SST-2/dev.tsv")
    write_sentences(tsv, vocabulary(args), sentences, most=224)
    text = os.path.join(folder, "text.txt")
    write_text(args, text, megabytes=10)
    paths = save_models(BASE, folder)

    rows = {}
    rows["a step of distillation"] = Work("our_step", {"shape": BASE}, {})
    request = {"batch": 32, "length": 128}
    for kind in ("bert", "student"):
        settings = {"path": paths[kind], "shape": BASE}
        rows[f"a forward pass of a {kind}"] = Work("our_inference", settings, request)
    for mode in ("all", "adapters"):
        settings = {"mode": mode, "path": paths["student"], "sentences": sentences}
        rows[f"fine-tuning, {mode}, a sentence"] = Work("our_tuning", settings, {})
    settings = {"how": "sorted", "path": paths["student"], "sentences": sentences}
    rows["prediction, sorted by length"] = Work("our_predictions", settings, {})
    settings = {"how": "tokenise", "text": text, "vocabulary": vocabulary(args)}
    rows["tokenising"] = Work("our_tokens", settings, {})
    return rows


def measure(args, work):
    """Let both checkouts do the same work in turns -> {"before": answers, "now": answers}.

    The answers of a first turn do not count.
    """
    workers = {}
    for name, code in (("before", args.before), ("now", ROOT)):
        # The path is absolute, so Worker takes this file and not the one beside speed.py.
        script = os.path.join(code, "bench", "speed_ours.py")
        variant = Variant(script, work.function, work.settings, {})
        workers[name] = Worker(variant, sys.executable, code)
    take_turns(workers, 1, work.request)
    answers = take_turns(workers, args.repeats, work.request)
    close_workers(workers)
    return answers


def seconds_of_answer(answer):
    """Return the seconds of a turn. A turn of fine-tuning answers with its rate, sentences per
    second: of it return the seconds of a sentence."""
    if "seconds" in answer:
        return answer["seconds"]
    return 1 / answer["rate"]


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=os.path.abspath, metavar="DIR",
                        help="a checkout of an earlier commit")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="turns (default: 7)")
    parser.add_argument("--data", type=os.path.abspath, metavar="DIR",
                        default=os.path.join(ROOT, "..", "shared", "data"),
                        help="folder with glue/SST-2, text/enwiki.txt.xz, vocab/bert-base-uncased "
                        "(default: ../shared/data)")
    args = parser.parse_args()
    print_heading("Before and now", ["what", "s before", "s now", "before / now"])
    with tempfile.TemporaryDirectory() as folder:
        for name, work in list_work(args, folder).items():
            answers = measure(args, work)
            before = [seconds_of_answer(answer) for answer in answers["before"]]
            now = [seconds_of_answer(answer) for answer in answers["now"]]
            ratios = [old / new for old, new in zip(before, now)]
            print_row([name, summary(before), summary(now), summary(ratios)])


if __name__ == "__main__":
    main()
