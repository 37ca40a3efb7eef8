"""What the worker processes of bench/speed.py share: the shape of a test, clocks, the dialogue.

A worker is a process that holds one variant of what is measured. speed.py starts it as

    python bench/speed_ours.py our_step '{"shape": {"B": 8, ...}, "bf16": true}'

The worker calls that function with these settings. The function builds its variant and returns
another function, measure(). From then on each line on standard input is a request: the arguments of
measure() as a JSON object. The answer is a line on standard output: {what was measured: number}.

The authors' worker runs in a Python of its own: only torch and numpy may be imported here.
"""
import json
import os
import re
import sys
import time
from functools import partial
from typing import NamedTuple

import numpy as np
import torch


class Shape(NamedTuple):
    """The sizes of a step and of its two models; the letters are those of minialbert.py."""
    B: int                  # sequences in a batch
    T: int                  # tokens in a sequence
    V: int                  # tokens in the vocabulary
    E: int                  # width of the student's embeddings
    C: int                  # width of the hidden states of both models
    H: int                  # attention heads
    F: int                  # width of the feed-forward
    L: int                  # layers of the teacher
    R: int                  # recursions of the student

    @property
    def num_masked(self):
        """Return how many places of a sequence are masked: 15 % of all but [CLS] and [SEP]."""
        return round(0.15 * (self.T - 2))


def seconds_of(function, times=1):
    """Call the function `times` times -> the mean seconds of a call."""
    begin = time.perf_counter()
    for _ in range(times):
        function()
    return (time.perf_counter() - begin) / times


def peak_megabytes():
    """Return the most memory that this process has had, in MB of 2**20 bytes.

    resource.getrusage() would not do: its figure begins with that of the process that this one
    was forked from.
    """
    with open("/proc/self/status", encoding="ascii") as file:
        status = file.read()
    kilobytes = re.search(r"VmHWM:\s+(\d+)", status)[1]      # Linux counts 1024 bytes as a kB
    return int(kilobytes) / 1024


def forward_measure(model, vocab_size, needs_mask=False):
    """Return a measure() of a model's forward pass without gradients.

    needs_mask: the model cannot do without a mask
    """
    model.eval()

    @torch.inference_mode()
    def measure(batch, length, check=False):
        """Time a pass over batch x length random tokens, without padding. With check, answer with
        what the model computes for these tokens, some of them padding."""
        rng = np.random.default_rng(0)
        ids = torch.from_numpy(rng.integers(5, vocab_size, (batch, length)))
        if check:
            return {"values": output_of_padded_batch(model, ids)}
        mask = None
        if needs_mask:
            mask = torch.ones_like(ids)
        times = max(1, min(10, 4096 // (batch * length)))     # short passes are repeated
        return {"seconds": seconds_of(partial(model, ids, mask), times)}

    return measure


def output_of_padded_batch(model, ids):
    """List the last hidden states of all real tokens. Of the ids (B, T) each row has one real token
    less than the row before it; what follows these is padding."""
    B, T = ids.shape
    lengths = T - torch.arange(B)                        # (B,): T, T - 1, T - 2, ...
    position = torch.arange(T)                           # (T,)
    mask = (position < lengths[:, None]).long()          # (B, T)
    hidden = model(ids, mask)[0]
    if isinstance(hidden, list):                         # ours returns all hidden states
        hidden = hidden[-1]                              # (B, T, C)
    return hidden[mask.bool()].flatten().tolist()


def serve(functions):
    """Build the variant that the command line names, then answer requests until the input ends.

    functions: those that build a variant; the command line names one of them
    """
    builders = {function.__name__: function for function in functions}
    name, settings_text = sys.argv[1:]
    settings = json.loads(settings_text)
    if "shape" in settings:
        settings["shape"] = Shape(**settings["shape"])
    # Only answers may come out of standard output. So they get a copy of it, and then what
    # libraries print there goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    measure = builders[name](**settings)
    for line in sys.stdin:
        request = json.loads(line)
        answer = measure(**request)
        answer["MB"] = peak_megabytes()
        print(json.dumps(answer), file=answers, flush=True)
