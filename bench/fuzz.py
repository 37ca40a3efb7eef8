"""The safetensors reader against the official package, on files damaged at random.

    python bench/fuzz.py                              # 100,000 files
    python bench/fuzz.py --files 1000000

Each file is a small checkpoint that was damaged: a bit is flipped, the end is cut off, bytes are
inserted, or a value of the header is exchanged for a hostile one (mutate of tests/test_hostile.py
has these and other ways). Our reader must read it as the official package does, or refuse it with a
ValueError; if it does something else, the exit status is 1.

No header may make our reader take much memory. The script does not check this, but its last line
says by how many MB (2**20 bytes) the process grew, so that you can judge it.
"""
import argparse
import math
import os
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter

import safetensors.torch
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
sys.path.insert(0, os.path.join(ROOT, "tests"))

# These are found by the lines above.
from checkpoint import DTYPES, read_safetensors, write_safetensors
from test_hostile import mutate

# The outcomes for which the exit status is 1.
READ_DIFFERENTLY = "READ DIFFERENTLY"
READ_HERE_ALONE = "READ HERE ALONE"


def original_files():
    """Make the files to damage -> a list of bytes, the contents of each.

    They hold tensors of each dtype, one of a shape with a 0 and a scalar. One file has no tensors.
    """
    torch.manual_seed(0)
    small = {"a": torch.randn(2, 3), "b.weight": torch.arange(4), "c": torch.ones(3).half(),
             "none": torch.zeros(0, 2), "one": torch.tensor(2.0), "t": torch.tensor([True])}
    all_dtypes = {code: torch.ones(3, 2).to(dtype) for code, dtype in DTYPES.items()}
    large = {"x": torch.randn(40, 50)}
    contents = []
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "original")
        for tensors in (small, all_dtypes, large, {}):
            for metadata in ({"format": "pt"}, {}):
                write_safetensors(tensors, path, metadata)
                with open(path, "rb") as file:
                    contents.append(file.read())
    return contents


def read_here(path):
    """Read a file with our reader -> ({name: tensor}, None), or (None, what is wrong with it)."""
    try:
        tensors, _ = read_safetensors(path)
    except ValueError as error:
        return None, str(error).split("not a safetensors file: ")[-1]
    return tensors, None


def read_there(content):
    """Read the bytes of a file with the official package -> the same two values as read_here."""
    try:
        return safetensors.torch.load(content), None
    except Exception as error:          # it has an error of its own, but KeyError comes, too
        return None, f"{type(error).__name__}: {error}"


def compare(ours, our_error, theirs, their_error):
    """Describe what both readers made of a file. In error messages numbers become #, so that
    similar errors count as one kind."""
    if our_error is not None and their_error is not None:
        return "refused by both"
    if our_error is not None:
        kind = re.sub("[0-9]+", "#", our_error)
        return f"refused here alone: {kind:.90}"
    if their_error is not None:
        kind = re.sub("[0-9]+", "#", their_error)
        return f"{READ_HERE_ALONE}: {kind:.90}"
    if are_equal(ours, theirs):
        return "read alike"
    return READ_DIFFERENTLY


def are_equal(ours, theirs):
    """Tell whether two dicts of tensors are the same, bit for bit."""
    if ours.keys() != theirs.keys():
        return False
    for name, tensor in ours.items():
        other = theirs[name]
        if tensor.dtype != other.dtype or tensor.shape != other.shape:
            return False
        if bytes_of(tensor) != bytes_of(other):
            return False
    return True


def bytes_of(tensor):
    """Return a tensor's data as bytes: in these, unlike in numbers, nan equals nan."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def memory_megabytes():
    """Return the most memory that this process has had, in MB of 2**20 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(content, num_files):
    """Read num_files damaged copies of a file with both readers.

    content: the bytes of the undamaged file
    Returns a Counter {outcome: number of copies}, the seconds of our slowest read, and the MB by
    which the most memory of this process grew meanwhile.
    """
    torch.set_num_threads(1)
    rng = random.Random(0)
    outcomes = Counter()
    slowest = 0.0
    megabytes_before = memory_megabytes()
    with tempfile.NamedTemporaryFile() as file:          # one file, written again and again
        for _ in range(num_files):
            mutant = mutate(content, rng, "header")
            file.seek(0)
            file.write(mutant)
            file.truncate()
            file.flush()
            begin = time.perf_counter()
            ours, our_error = read_here(file.name)
            slowest = max(slowest, time.perf_counter() - begin)
            theirs, their_error = read_there(mutant)
            outcomes[compare(ours, our_error, theirs, their_error)] += 1
    return outcomes, slowest, memory_megabytes() - megabytes_before


def main():
    """Print how many files had which outcome -> the exit status: 1 if our reader has read a file
    that the official package reads differently or not at all."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000, metavar="N",
                        help="damaged files to read (default: 100,000)")
    args = parser.parse_args()
    begin = time.perf_counter()
    originals = original_files()
    num_files = math.ceil(args.files / len(originals))   # damaged copies of each original
    outcomes = Counter()
    slowest = 0.0
    growth = 0.0
    for content in originals:
        outcomes_of_file, slowest_of_file, megabytes = fuzz(content, num_files)
        outcomes += outcomes_of_file
        slowest = max(slowest, slowest_of_file)
        growth = max(growth, megabytes)
    for outcome, count in outcomes.most_common():
        print(f"{count:9,} {outcome}")
    seconds = time.perf_counter() - begin
    print(f"{outcomes.total():9,} files in {seconds:.0f} s; our slowest read took "
          f"{1000 * slowest:.0f} ms; the copies of one file made the process grow by at most "
          f"{growth:.0f} MB")
    for outcome in outcomes:
        if outcome == READ_DIFFERENTLY or outcome.startswith(READ_HERE_ALONE):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
