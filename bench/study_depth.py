"""Measure a student on held-out text after each of its recursions, for bench/study.py.

    python bench/study_depth.py --student DIR --corpus FILE.bin --length 128

It prints one line: {"accuracy_after": [after 0 recursions, after 1, ...]}.
"""
import argparse
import json
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from checkpoint import load
from data import Tokenizer, open_corpus
from distill import autocast, choose_device, evaluate, make_valid_batches, uses_bf16


def main():
    """Measure the student that the command line names.

    The last accuracy is that of the whole student, as distill.py measures it.
    """
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True, metavar="DIR", help="the folder of the student")
    parser.add_argument("--corpus", required=True, metavar="FILE",
                        help="the token file with the held-out text")
    parser.add_argument("--length", type=int, default=128, metavar="T",
                        help="tokens in a sequence (default: 128)")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=None,
                        help="multiply matrices in bfloat16 (default: on a GPU)")
    args = parser.parse_args()
    device = choose_device("auto")
    student = load(args.student).to(device)
    tokenizer = Tokenizer(args.student)
    batches = make_valid_batches(open_corpus([args.corpus], tokenizer), tokenizer, args.length)
    with autocast(device, uses_bf16(args.bf16, device)):
        scores = evaluate(student, batches, each_recursion=True)
    print(json.dumps({"accuracy_after": scores["accuracy_after"]}))


if __name__ == "__main__":
    main()
