"""How much does dropout disturb a trained model? MLM accuracy and loss with dropout switched on.

    python bench/dropout.py teacher=assets/teacher student=out/student
    python bench/dropout.py --corpus out/wiki.bin --length 128 bert=DIR student=DIR

Fine-tuning with dropout begins from such a disturbed model. All models must have the same
vocabulary.
"""
import argparse
import os
import sys
from dataclasses import replace

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from checkpoint import load
from data import CACHE, Tokenizer, open_corpus
from distill import make_valid_batches, mlm_loss, to_device
from minialbert import MiniALBERT

# Which dropout is on, and its two probabilities: of the hidden states (the embeddings and what a
# layer adds to them) and of the attention maps.
DROPOUTS = {"off": (0.0, 0.0), "attention maps": (0.0, 0.1), "hidden states": (0.1, 0.0),
            "both": (0.1, 0.1)}


def with_dropout(model, hidden, attention):
    """Return a copy of a model that applies dropout with these probabilities."""
    config = replace(model.config, hidden_dropout_prob=hidden,
                     attention_probs_dropout_prob=attention)
    copy = MiniALBERT(config)
    copy.load_state_dict(model.state_dict())
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


def main():
    """Measure the models that the command line names, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=DIR", help="models with an MLM head")
    parser.add_argument("--corpus", nargs="+", metavar="PATH",
                        help="a token file or texts (default: the documentation on this machine)")
    parser.add_argument("--length", type=int, default=64, metavar="T",
                        help="tokens in a sequence (default: 64)")
    parser.add_argument("--batches", type=int, default=8, metavar="N",
                        help="batches of 32 sequences, held out (default: 8)")
    args = parser.parse_args()
    print("| model | " + " | ".join(DROPOUTS) + " |")
    print("|---" * (1 + len(DROPOUTS)) + "|", flush=True)
    for name_and_folder in args.models:
        name, folder = name_and_folder.split("=", 1)
        tokenizer = Tokenizer(folder)
        batches = make_valid_batches(open_corpus(args.corpus, tokenizer, CACHE), tokenizer,
                                     args.length)
        model = load(folder)
        cells = [name]
        for hidden, attention in DROPOUTS.values():
            accuracy, loss = measure(with_dropout(model, hidden, attention), batches, args.batches)
            cells.append(f"{accuracy:.1%}, {loss:.3f}")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
