"""Is the program as fast as it was? An earlier checkout and this one do the same work, in turns.

    git worktree add ../before 58a4457
    python bench/before.py ../before

Each row is work of bench/speed.py: a step of distillation, a forward pass, fine-tuning, tokenising.
The modules and the bench/speed_ours.py of each checkout do it, in a process of their own. A figure
is the median over the turns, with the smallest and the largest in brackets. So is the ratio, which
is taken within each turn: above 1 this checkout is the faster one.
"""
import argparse
import os
import sys
import tempfile

from speed import (BASE, ROOT, TOY, Variant, Worker, close_workers, print_heading, print_row,
                   summary, take_turns, vocabulary, write_text)

sys.path.insert(0, ROOT)

from speed_ours import save_models, write_sentences


def list_rows(args, folder):
    """List what is measured: {name of the row: (function of speed_ours.py, its settings, the
    request to its process)}."""
    shape = BASE
    most = 224                                           # sentences
    megabytes = 10
    request = {"batch": 32, "length": 128}
    if args.quick:
        shape = TOY
        most = 32
        megabytes = 1
        request = {"batch": 4, "length": 8}
    sentences = os.path.join(folder, "sentences.json")
    tsv = os.path.join(args.data, "glue/SST-2/dev.tsv")
    write_sentences(tsv, vocabulary(args), sentences, most)
    text = os.path.join(folder, "text.txt")
    write_text(args, text, megabytes)
    paths = save_models(shape, folder)

    rows = {}
    rows["a step of distillation"] = ("our_step", {"shape": shape}, {})
    for kind in ("bert", "student"):
        settings = {"path": paths[kind], "shape": shape}
        rows[f"a forward pass of a {kind}"] = ("our_inference", settings, request)
    for mode in ("all", "adapters"):
        settings = {"mode": mode, "path": paths["student"], "sentences": sentences}
        rows[f"fine-tuning, {mode}"] = ("our_tuning", settings, {})
    settings = {"how": "sorted", "path": paths["student"], "sentences": sentences}
    rows["prediction, sorted by length"] = ("our_predictions", settings, {})
    settings = {"how": "tokenise", "text": text, "vocabulary": vocabulary(args)}
    rows["tokenising"] = ("our_tokens", settings, {})
    return rows


def measure(args, function, settings, request):
    """Let both checkouts do the same in turns -> {"before": answers, "now": answers}.

    The answers of a first turn do not count.
    """
    workers = {}
    for name, code in (("before", args.before), ("now", ROOT)):
        script = os.path.join(code, "bench", "speed_ours.py")
        workers[name] = Worker(Variant(script, function, settings, {}), sys.executable, code)
    take_turns(workers, 1, request)
    answers = take_turns(workers, args.repeats, request)
    close_workers(workers)
    return answers


def seconds_of_answer(answer):
    """Return how long something took; of fine-tuning the sentences in a second are known."""
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
    parser.add_argument("--quick", action="store_true", help="toy sizes: a test of this script")
    args = parser.parse_args()
    print_heading("Before and now", ["what", "s before", "s now", "before / now"])
    with tempfile.TemporaryDirectory() as folder:
        for name, (function, settings, request) in list_rows(args, folder).items():
            answers = measure(args, function, settings, request)
            before = [seconds_of_answer(answer) for answer in answers["before"]]
            now = [seconds_of_answer(answer) for answer in answers["now"]]
            ratios = [old / new for old, new in zip(before, now)]
            print_row([name, summary(before), summary(now), summary(ratios)])


if __name__ == "__main__":
    main()
