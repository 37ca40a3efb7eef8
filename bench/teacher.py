"""Pre-train the bundled teacher, assets/teacher, by the project's own loop.

    python bench/teacher.py --out out/bundled
        makes three runs of distill.py, one after the other. With one thread of a busy machine this
        took an hour

Each run goes on from the model of the one before, with sequences of another length. The first run
has short ones, because with them a model soon learns to look at a token's neighbours
(EXPERIMENTS.md has the comparison). The second has the longest for which the model has positions,
the third those of the default distillation. The finished model is in the folder 3 of --out. If the
script is stopped, give the same command again to go on.
"""
import argparse
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOKENIZER = os.path.join(ROOT, "assets", "teacher")
# The flags of each run. The first one makes the model. {tokenizer} stands for the folder with the
# vocabulary, {out} for that of the script's --out.
RUNS = [
    "--tokenizer {tokenizer} --hidden-size 128 --embedding-size 128 --num-hidden-layers 4 "
    "--num-hidden-groups 4 --length 32 --batch-size 64 --lr 1e-3 --warmup 300 --steps 3000",
    "--student {out}/1 --length 128 --batch-size 16 --lr 1e-3 --warmup 300 --weight-decay 0.1 "
    "--steps 16000",
    "--student {out}/2 --length 64 --batch-size 32 --lr 3e-4 --warmup 100 --weight-decay 0.1 "
    "--steps 2500",
]


def main():
    """Make the three runs. A run that is done already is only loaded and measured."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the three runs")
    args = parser.parse_args()
    script = os.path.join(ROOT, "distill.py")
    for number, flags in enumerate(RUNS, 1):
        out = os.path.join(args.out, str(number))
        command = [sys.executable, script, "--teacher", "none", "--out", out, "--resume"]
        for word in flags.split():
            command.append(word.format(tokenizer=TOKENIZER, out=args.out))
        print(" ".join(command), flush=True)
        status = subprocess.run(command).returncode
        if status != 0:
            sys.exit(f"the run above has ended with status {status}; give the same command again "
                     "to go on")


if __name__ == "__main__":
    main()
