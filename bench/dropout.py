"""How much does dropout disturb a trained model? Measure its MLM accuracy and loss on held-out text
while dropout is switched on.

    python bench/dropout.py teacher=assets/teacher student=out/student
    python bench/dropout.py --corpus out/wiki.bin --length 128 bert=DIR student=DIR
    python bench/dropout.py --cost 32 384 student=DIR
        measures something else: what dropout costs, the time and the memory of a forward and a
        backward pass

Fine-tuning with dropout begins from such a disturbed model.
"""
import argparse
import os
import sys
import time
from dataclasses import replace

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from checkpoint import load
from data import CACHE, Tokenizer, open_corpus
from distill import autocast, make_valid_batches, mlm_loss, to_device
from minialbert import MiniALBERT

# The places where a BERT has dropout: the embeddings (before their projection, so E wide), what
# attention and the feed-forward add to the hidden states, and the attention maps.
PLACES = ("embeddings", "layers", "attention maps")
# The columns of the table: {name: the places where dropout is on}.
COLUMNS = {"off": (), "embeddings": ("embeddings",), "layers": ("layers",),
           "attention maps": ("attention maps",), "all three": PLACES}
NUM_BATCHES = 8                     # of 32 held-out sequences


def with_dropout(model, places):
    """Return a copy of a model, in train mode, that has a dropout of 0.1 at some of the PLACES."""
    copy = MiniALBERT(replace(model.config, hidden_dropout_prob=0.0,
                              attention_probs_dropout_prob=0.0))
    copy.load_state_dict(model.state_dict())
    if "embeddings" in places:
        copy.embeddings.dropout.p = 0.1
    for layer in copy.layers:
        if "layers" in places:
            layer.dropout.p = 0.1
        if "attention maps" in places:
            layer.attention.dropout_prob = 0.1
    return copy.train()


@torch.inference_mode()
def measure(model, batches, num_batches):
    """Measure MLM accuracy and loss on the first batches, in train mode -> (accuracy, loss)."""
    torch.manual_seed(0)
    correct = 0
    total_loss = 0.0
    num_masked = 0
    for step in range(num_batches):
        ids, positions, labels = to_device(torch.device("cpu"), *batches.batch(step))
        hidden, _ = model(ids)
        logits = model.predict(hidden[-1].flatten(0, 1)[positions])           # (M, V)
        correct += (logits.argmax(-1) == labels).sum().item()
        total_loss += mlm_loss(logits, labels).item()
        num_masked += len(labels)
    return correct / num_masked, total_loss / num_masked


def forward(model, ids, bf16):
    """Run a model on ids (B, T) -> a scalar that depends on all its last hidden states."""
    with autocast(torch.device("cpu"), bf16):
        hidden, _ = model(ids)
        return hidden[-1].float().square().mean()


def cost(model, batch_size, length, bf16):
    """Measure a forward and a backward pass -> (seconds, bytes that are kept between the two).

    model: in train mode
    A first pass warms up and counts the bytes. The seconds are the least of three more passes.
    """
    ids = torch.randint(model.config.vocab_size, (batch_size, length))
    # Several tensors may share a storage, which counts once: {its address: its bytes}.
    size_of_storage = {}

    def count(tensor):
        storage = tensor.untyped_storage()
        size_of_storage[storage.data_ptr()] = storage.nbytes()
        return tensor

    def unchanged(tensor):
        return tensor

    # autograd calls count() for each tensor that it keeps, and unchanged() when it needs it again.
    with torch.autograd.graph.saved_tensors_hooks(count, unchanged):
        output = forward(model, ids, bf16)
    # autograd keeps parameters, too. They do not count, because they take memory anyway.
    for parameter in model.parameters():
        size_of_storage.pop(parameter.untyped_storage().data_ptr(), None)
    output.backward()
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        forward(model, ids, bf16).backward()
        seconds.append(time.perf_counter() - begin)
    return min(seconds), sum(size_of_storage.values())


def print_costs(models, batch_size, length, bf16):
    """Print a table of what a pass costs with dropout and without. models: [(name, folder)]"""
    print("| model | dropout | seconds | kept for the backward pass |")
    print("|---|---|---|---|", flush=True)
    for name, folder in models:
        for dropout in ("all three", "off"):
            model = with_dropout(load(folder), COLUMNS[dropout])
            seconds, num_bytes = cost(model, batch_size, length, bf16)
            print(f"| {name} | {dropout} | {seconds:.2f} | {num_bytes / 1e9:.2f} GB |", flush=True)


def main():
    """Measure the models that the command line names, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=DIR",
                        help="models with an MLM head: the name in the table and the folder")
    parser.add_argument("--corpus", nargs="+", metavar="PATH",
                        help="a token file or texts (default: the documentation on this machine)")
    parser.add_argument("--length", type=int, default=64, metavar="T",
                        help="tokens in a sequence (default: 64)")
    parser.add_argument("--cost", nargs=2, type=int, metavar=("B", "T"),
                        help="measure only what a pass costs, with B sequences of T random tokens")
    parser.add_argument("--bf16", action="store_true", help="with --cost: in bfloat16")
    args = parser.parse_args()
    models = [model.split("=", 1) for model in args.models]
    if args.cost is not None:
        batch_size, length = args.cost
        print_costs(models, batch_size, length, args.bf16)
        return
    print("| model | " + " | ".join(COLUMNS) + " |")
    print("|---" * (1 + len(COLUMNS)) + "|", flush=True)
    for name, folder in models:
        tokenizer = Tokenizer(folder)
        corpus = open_corpus(args.corpus, tokenizer, CACHE)
        batches = make_valid_batches(corpus, tokenizer, args.length)
        model = load(folder)
        cells = [name]
        for places in COLUMNS.values():
            accuracy, loss = measure(with_dropout(model, places), batches, NUM_BATCHES)
            cells.append(f"{accuracy:.1%}, {loss:.3f}")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
