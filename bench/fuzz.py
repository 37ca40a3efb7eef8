"""The safetensors reader against the official package, on files damaged at random.

    python bench/fuzz.py                              # 100,000 files, one process
    python bench/fuzz.py --files 1000000 --processes 8

Each file is a small checkpoint with a bit flipped, cut short, with bytes put in, or with a value of
its header exchanged for a hostile one (tests/test_minialbert.py has the mutations). Wanted: each is
read as the official package reads it or is a ValueError, at no more memory than the file is large.
"""
import argparse
import os
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]


def originals(folder):
    """Yields the bytes of files to damage: each dtype, a shape with 0, a scalar, no tensors."""
    from minialbert import DTYPES, write_safetensors
    small = {"a": torch.randn(2, 3), "b.weight": torch.arange(4), "c": torch.ones(3).half(),
             "none": torch.zeros(0, 2), "one": torch.tensor(2.0), "t": torch.tensor([True])}
    for tensors in (small, {code: torch.ones(3, 2).to(dtype) for code, dtype in DTYPES.items()},
                    {"x": torch.randn(40, 50)}, {}):
        for metadata in ({"format": "pt"}, {}):
            path = os.path.join(folder, "original")
            write_safetensors(tensors, path, metadata)
            with open(path, "rb") as file:
                yield file.read()


def equal(found, expected):
    def bytes_of(tensor):
        raw = tensor.contiguous().view(-1).view(torch.uint8)
        return tensor.dtype, tensor.shape, raw.numpy().tobytes()
    return {name: bytes_of(tensor) for name, tensor in found.items()} == {
        name: bytes_of(tensor) for name, tensor in expected.items()}


def fuzz(seed, count):
    """Counter of how `count` files fared; the slowest read in s; MB that reading them took."""
    import safetensors.torch
    from test_minialbert import mutations

    from minialbert import read_safetensors
    torch.set_num_threads(1)
    counts, slowest, memory = Counter(), 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder, open(os.path.join(folder, "x"), "wb") as file:
        files = list(originals(folder))
        for i, content in enumerate(files):
            for mutant in mutations(content, -(-count // len(files)), seed * len(files) + i):
                file.seek(0), file.write(mutant), file.truncate(), file.flush()
                began = time.perf_counter()
                try:
                    ours = read_safetensors(file.name)[0]
                except ValueError as error:
                    ours = f"{error}".replace(file.name, "")
                slowest = max(slowest, time.perf_counter() - began)
                try:
                    theirs = safetensors.torch.load(mutant)
                except Exception as error:               # of the Rust library, KeyError, ...
                    theirs = f"{type(error).__name__}: {error}"
                if isinstance(ours, str) and isinstance(theirs, str):
                    counts["refused by both"] += 1
                elif isinstance(ours, str):
                    kind = re.sub(r"\d+", "#", ours.split("not safetensors: ")[-1])
                    counts[f"refused here alone: {kind:.90}"] += 1
                elif isinstance(theirs, str):
                    counts[f"read here alone: {re.sub(r'[0-9]+', '#', theirs):.90}"] += 1
                else:
                    counts["read alike" if equal(ours, theirs) else "READ DIFFERENTLY"] += 1
    return counts, slowest, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began, total, slowest, memory = time.perf_counter(), Counter(), 0.0, 0.0
    seeds = range(args.seed, args.seed + max(args.processes, args.files // 10_000))
    with ProcessPoolExecutor(args.processes) as pool:
        share = [-(-args.files // len(seeds))] * len(seeds)
        for counts, seconds, grown in pool.map(fuzz, seeds, share):
            total += counts
            slowest, memory = max(slowest, seconds), max(memory, grown)
    for kind, count in total.most_common():
        print(f"{count:9,} {kind}")
    print(f"{total.total():9,} files in {time.perf_counter() - began:.0f} s; the slowest read "
          f"{slowest * 1000:.0f} ms; a process grew by at most {memory:.0f} MB")
    return 1 if total["READ DIFFERENTLY"] else 0


if __name__ == "__main__":
    sys.exit(main())
