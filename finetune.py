"""Fine-tune a student, or the BERT it came from, on a task of language. Paper: arXiv 2210.06425.

    python finetune.py                                   # the student just distilled: 2 minutes
    python finetune.py --model out/student --task sst2 --data SST-2/ --lr 1e-4 3e-4 --seeds 3
    python finetune.py --task tagging --train train.tsv --dev devel.tsv --adapters-only
    python finetune.py --task classification --train a.csv --dev b.csv --text title --label topic
    python finetune.py --task qa --train train-v2.0.json --dev dev-v2.0.json --distill-from out/bert
    python finetune.py --model out/sst2 --predict "a gripping, beautiful film"

A head is one linear layer. It is asked at [CLS] for a class or a number, at each word's first piece
for its tag, at each token of a context whether an answer begins or ends there. --adapters-only
trains just the adapters and the head. (Dimensions: see minialbert.py; n outputs of the head.)
"""
import argparse
import json
import os
import sys
import time
import zlib
from dataclasses import asdict, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from data import TOKENIZER, Tokenizer, command, fail, fetch
from distill import MODEL, fingerprint, join, output_loss, to, train, training_flags
from minialbert import (MiniALBERT, load, read_json, read_safetensors, save, write_atomically,
                        write_safetensors)
from tasks import (EMBEDDED, GLUE, METRICS, WORD, Example, Task, entities, held_out, lines_of,
                   majority, make_task, read_splits, score, write_predictions)

# ---- The examples of a task as tokens ------------------------------------------------------------

class Feature(NamedTuple):
    """[CLS] window [SEP] or [CLS] a [SEP] window [SEP], and the places the head is asked at."""
    ids: np.ndarray                                      # (T,)
    first: int                                           # tokens before the window
    example: int                                         # the number of the one it is of
    places: list                                         # into ids
    about: list                                          # each place's word; its characters in qa
    label: list                                          # of each place; in qa of begin and end

def encode(task, examples, tokenizer):
    """Yields Features: of a sentence to tag and of a context all windows, of any other text one."""
    number, kind = {label: i for i, label in enumerate(task.labels)}, task.kind
    for at in range(0, len(examples), 1000):
        some = examples[at:at + 1000]
        heads = tokenizer.encode(["" if e.b is None else e.a for e in some])
        bodies = tokenizer.core.encode_batch([e.a if e.b is None else e.b for e in some],
                                             kind == "tagging", add_special_tokens=False)
        for i, (e, head, body) in enumerate(zip(some, heads, bodies), at):
            n, words, free = len(body.ids), body.word_ids, task.length - 3
            cut = free // 3 if kind == "qa" else free - min(n, free // 2)    # the longer gives way
            head = [tokenizer.cls] + ([*head[:cut], tokenizer.sep] if e.b is not None else [])
            room = task.length - len(head) - 1
            share = min(task.stride, room // 2) if kind == "qa" else 0
            inside = tokens_of_answer(e, body.offsets) if kind == "qa" else []
            for begin in range(0, max(1, n - share), room - share):
                here, about, label = range(begin, min(begin + room, n)), [0], [0, 0]
                if kind == "tagging":                    # a word without a token is not asked for
                    here = [k for k in here if k == 0 or words[k] != words[k - 1]]
                    about = [words[k] for k in here]
                    label = [number[e.label[word]] if e.label else 0 for word in about]
                elif kind == "qa":
                    about = [body.word_to_chars(words[k]) for k in here]
                    if inside and inside[0] in here and inside[-1] in here:
                        label = [len(head) - begin + inside[k] for k in (0, -1)]
                else:
                    here, label = [begin - len(head)], [number.get(e.label, e.label)]        # [CLS]
                ids = np.array([*head, *body.ids[begin:begin + room], tokenizer.sep], np.int32)
                places = [len(head) + k - begin for k in here]
                yield Feature(ids, len(head), i, places, about, label)
                if kind in ("classification", "regression"):
                    break

def tokens_of_answer(example, offsets):
    """The tokens of a context that the first answer is made of; [] if there is none."""
    start, text = example.label[0] if example.label else (0, "")
    return [k for k, (x, y) in enumerate(offsets) if x < start + len(text) and y > start]

def collate(features, pad, qa):
    """-> ids, mask, segments (B, T), labels (B, T), nan where there is none; in qa (B, 2)."""
    shape = len(features), max(len(f.ids) for f in features)
    ids, mask, segments = np.full(shape, pad), np.zeros(shape, bool), np.zeros(shape, np.int64)
    labels = np.full((len(features), 2 if qa else shape[1]), np.nan, np.float32)
    for row, f in enumerate(features):
        ids[row, :len(f.ids)], mask[row, :len(f.ids)] = f.ids, True
        segments[row, f.first:len(f.ids)] = f.first > 1
        labels[row, [0, 1] if qa else f.places] = f.label
    return ids, mask, segments, labels

# ---- The model and its loss ----------------------------------------------------------------------

class Classifier(nn.Module):
    """An encoder, dropout, a linear layer on the last hidden states: as the authors', no pooler."""
    def __init__(self, encoder, task, dropout=0.0):
        super().__init__()
        self.encoder, self.qa, self.dropout = encoder, task.kind == "qa", nn.Dropout(dropout)
        n = {"regression": 1, "qa": 2}.get(task.kind, len(task.labels))
        self.output = nn.Linear(encoder.config.hidden_size, n)
        nn.init.normal_(self.output.weight, std=0.02), nn.init.zeros_(self.output.bias)

    def forward(self, ids, mask, segments):
        """-> logits (B, T, n), of which only those at a Feature's places mean something."""
        logits = self.output(self.dropout(self.encoder(ids, mask, segments)[0][-1])).float()
        if self.qa:                                      # an answer is in the context, or at [CLS]
            elsewhere = (segments == 0) & (torch.arange(ids.shape[1], device=ids.device) > 0)
            logits = logits.masked_fill(elsewhere[:, :, None], -1e4)
        return logits

class TaskLoss:
    """What train() minimises: the mean over all places asked at in a step's batch, and the distance
    there from a tuned teacher, a (Classifier, Task). A batch, of like lengths, is a function of
    (seed, step); an epoch has each Feature once."""
    def __init__(self, model, task, features, batch_size, seed, pad, teacher=None,
                 micro_batch_size=None, rank=0, world=1):
        self.model, self.task, self.features, self.teacher = model, task, features, teacher
        self.size, self.seed, self.pad, self.planned = batch_size, seed, pad, (None, [])
        self.micro = min(micro_batch_size or batch_size, batch_size // world)
        self.begins = range(rank * self.micro, batch_size, world * self.micro)
        self.weights = {"task": 1.0} | ({"distill": 1.0} if teacher else {})
        self.lengths = np.array([len(f.ids) for f in features])
        self.tokens = int(self.lengths.mean() * batch_size)                  # of a step, about
        self.epoch = -(-len(features) // batch_size)                         # steps
        self.padding = 1 - self.lengths.sum() / sum(
            len(batch) * self.lengths[batch].max() for batch in self.plan(0))

    def plan(self, epoch):
        """The batches of an epoch, as numbers of features."""
        rng, pool = np.random.default_rng([self.seed, 3, epoch]), 50 * self.size
        order = rng.permutation(len(self.features))      # to be sorted by length within each pool
        order = [part[np.argsort(self.lengths[part], kind="stable")]
                 for part in np.split(order, range(pool, len(order), pool))]
        batches = np.split(np.concatenate(order), range(self.size, len(self.lengths), self.size))
        return [batches[i] for i in rng.permutation(len(batches))]

    def batch(self, step):
        epoch, place = divmod(step, self.epoch)
        if self.planned[0] != epoch:
            self.planned = epoch, self.plan(epoch)
        return [self.features[i] for i in self.planned[1][place]]

    def __call__(self, step):
        """Yields the terms of this rank's micro-batches, of no rows where a last batch is short."""
        arrays = collate(self.batch(step), self.pad, self.model.qa)
        places = np.count_nonzero(~np.isnan(arrays[-1]))
        for begin in self.begins:
            rows = (x[begin:begin + self.micro] for x in arrays)
            *inputs, labels = to(self.model, *rows)
            yield self.terms(inputs, labels, places)

    def terms(self, inputs, labels, places):
        """{term: scalar}: this micro-batch's share of the means over all places."""
        regression, mean, sd = self.task.kind == "regression", self.task.mean, self.task.sd
        rows, right = choices(self.model(*inputs), labels, self.model.qa)
        if self.teacher:
            teacher, known = self.teacher
            with torch.no_grad():
                goal, _ = choices(teacher(*inputs), labels, teacher.qa)
        distance = partial(F.mse_loss if regression else F.cross_entropy, reduction="sum")
        right = (right[:, None] - mean) / sd if regression else right.long()
        terms = {"task": distance(rows, right) / places}
        if self.teacher:
            terms["distill"] = (distance(rows, (goal * known.sd + known.mean - mean) / sd)
                                if regression else output_loss(rows, goal)) / places
        return terms

def choices(logits, labels, qa):
    """-> a row of logits for each place asked at (N, n), in qa for each begin and end (2 B, T), and
    what it ought to be (N,)."""
    if qa:
        return logits.transpose(1, 2).flatten(0, 1), labels.flatten()
    return logits[~labels.isnan()], labels[~labels.isnan()]

@torch.no_grad()
def settle_adapters(encoder, ids, mask):
    """Fits each new adapter's norm so that on these ids (B, T) it is as near to the identity as a
    LayerNorm can be: in each channel the best line from what is normalised to what came in."""
    def fit(adapter, inputs):
        x = inputs[0][mask]                                                  # (tokens, C)
        z = F.layer_norm(x, x.shape[1:])
        gain = ((z - z.mean(0)) * (x - x.mean(0))).mean(0) / z.var(0, correction=0)
        adapter.norm.weight.copy_(gain), adapter.norm.bias.copy_(x.mean(0) - gain * z.mean(0))
    hooks = [adapter.register_forward_pre_hook(fit)
             for adapter in (*encoder.attention_adapters, *encoder.output_adapters)]
    encoder.eval()(ids, mask)
    for hook in hooks:
        hook.remove()

# ---- Predictions ---------------------------------------------------------------------------------

@torch.inference_mode()
def outputs(model, features, pad):
    """The logits at each Feature's places (places, n); in qa [CLS]'s are before them."""
    model.eval()
    found, order = {}, sorted(range(len(features)), key=lambda i: -len(features[i].ids))
    for rows in (order[i:i + 64] for i in range(0, len(order), 64)):
        *inputs, labels = to(model, *collate([features[i] for i in rows], pad, model.qa))
        logits = model(*inputs).cpu().numpy()
        for i, x in zip(rows, logits):
            found[i] = x[[0] * model.qa + features[i].places]
    return [found[i] for i in range(len(features))]

def decode(task, examples, features, found):
    """Logits -> of each example (number, label, tags or answer; the labels' probabilities)."""
    if task.kind == "qa":
        return decode_answers(task, examples, features, found)
    if task.kind == "regression":
        return [(float(x[0, 0]) * task.sd + task.mean, {}) for x in found]
    if task.kind == "classification":
        p = [np.exp(x[0] - x.max()) / np.exp(x - x.max()).sum() for x in found]
        return [(task.labels[x.argmax()], dict(zip(task.labels, x.tolist()))) for x in p]
    tags = [["O"] * len(e.a) for e in examples]
    for f, x in zip(features, found):
        for word, i in zip(f.about, x.argmax(1)):
            tags[f.example][word] = task.labels[i]
    return [(t, {}) for t in tags]

def decode_answers(task, examples, features, found, longest=30):
    """The span of at most `longest` tokens with the best sum of begin and end over all windows; ""
    where there may be no answer and [CLS] is rated higher in every window."""
    best, null = [(-np.inf, "")] * len(examples), [np.inf] * len(examples)
    for f, x in zip(features, found):
        null[f.example] = min(null[f.example], x[0].sum())
        if f.places:
            begin, end = x[1:].T
            gap = np.arange(len(end)) - np.arange(len(end))[:, None]
            total = np.where((gap >= 0) & (gap < longest), begin[:, None] + end, -np.inf)
            i, j = divmod(int(total.argmax()), len(end))
            text = examples[f.example].b[f.about[i][0]:f.about[j][1]]
            best[f.example] = max(best[f.example], (total[i, j], text))
    return [("" if task.unanswerable and none > sure else text, {})
            for (sure, text), none in zip(best, null)]

# ---- Checkpoints: the encoder as always, head.safetensors and task.json beside it ----------------

def save_task(path, model, task, tokenizer):
    save(model.encoder, path)
    tokenizer.save(path)
    write_safetensors(model.output.state_dict(), os.path.join(path, "head.safetensors"))
    write_atomically(os.path.join(path, "task.json"), [json.dumps(asdict(task), indent=1).encode()])

def build(path, task=None, mode="all", dropout=0.0, batch=None):
    """(Classifier, Task) on the encoder in path, with its head if it has one: that must be for the
    labels of task. mode: random forgets the weights, adapters adds them, settled on the batch."""
    old, told = load(path), os.path.join(path, "task.json")
    config = replace(old.config, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    if add := mode == "adapters" and not config.adapter_size:
        config.adapter_size = max(1, config.hidden_size // 16)
    encoder, old.head = MiniALBERT(config, head=False), None
    encoder.load_state_dict(encoder.state_dict() | ({} if mode == "random" else old.state_dict()))
    if add:
        settle_adapters(encoder, *map(torch.from_numpy, batch[:2]))
    if mode == "random" or task and not os.path.isfile(told):
        return Classifier(encoder, task, dropout), task
    try:
        was = Task(**read_json(told))
        model = Classifier(encoder, was, dropout)
        model.output.load_state_dict(read_safetensors(os.path.join(path, "head.safetensors"))[0])
    except (TypeError, RuntimeError, FileNotFoundError) as error:
        fail(f"{path}: not a fine-tuned model: {error}")
    if task and (was.kind, was.labels) != (task.kind, task.labels):
        fail(f"{told}: tuned for {was.kind} {' '.join(was.labels)}, not for {task.kind} "
             f"{' '.join(task.labels)}; without this file it is an encoder")
    return model, task or was

# ---- The command ---------------------------------------------------------------------------------

def tune(args, task, tokenizer, data, mode, seed, lr, teacher=None):
    """{split: (examples, features)} -> the model after one run, {split: (scores, decoded)}. mode:
    what is trained, all, adapters or head; random is all, from noise."""
    torch.manual_seed(seed)
    features = data["train"][1]
    batch = collate(features[:64], tokenizer.pad, task.kind == "qa")
    model, _ = build(args.model, task, mode, args.dropout, batch)
    for name, p in model.to(args.device).encoder.named_parameters():
        p.requires_grad_(mode in ("all", "random") or mode == "adapters" and "_adapters." in name)
    losses = TaskLoss(model, task, features, args.batch_size, seed, tokenizer.pad, teacher,
                      args.micro_batch_size, args.rank, args.world)
    losses.terms = args.autocast(losses.terms)
    steps = args.steps or max(1, round(args.epochs * losses.epoch))
    out = os.path.join(args.out, f"{mode}-{len(features)}-lr{lr:g}-seed{seed}")
    settings = argparse.Namespace(**vars(args) | dict(
        lr=lr, seed=seed, steps=steps, warmup=steps // 10, out=out))
    facts = {name: getattr(settings, name) for name in (
        "lr", "seed", "steps", "batch_size", "dropout", "weight_decay", "bf16")} | {
        "model": fingerprint(model), "teacher": fingerprint(teacher and teacher[0]),
        "data": zlib.crc32(b"".join(f.ids.tobytes() + repr(f[1:]).encode() for f in features))}
    os.makedirs(out, exist_ok=True)
    began, results = time.perf_counter(), {}

    def measure():
        for split, (examples, features) in data.items():
            if split != "train":
                found = args.autocast(outputs)(model, features, tokenizer.pad)
                decoded = decode(task, examples, features, found)
                results[split] = score(task, examples, [x for x, _ in decoded]), decoded
        return next(scores for split, (scores, _) in results.items() if split.startswith("dev"))

    train(model, losses, settings, facts, measure, lambda: None, args.rank, args.world)
    seconds = time.perf_counter() - began
    if not results:                                      # of another rank, or of a finished run
        measure()
    print(f"{out}: {sum(p.numel() for p in model.parameters() if p.requires_grad):,} parameters, "
          f"{steps:,} steps, {seconds:.0f} s with evaluation, {losses.padding:.1%} padding",
          flush=True)
    for split, (_, decoded) in results.items():
        if len({str(x) for x, _ in decoded}) == 1 < len(decoded):
            print(f"warning: all predictions for {split} are the same")
    return model, results

def tuned_teacher(args, task, tokenizer, examples, features):
    """(Classifier, Task) of --distill-from, after a line with its score on these examples."""
    teacher, known = build(args.distill_from, mode="teacher")
    if (known.kind, known.labels) != (task.kind, task.labels):
        fail(f"--distill-from {args.distill_from}: tuned for {known.kind} "
             f"{' '.join(known.labels)}, not for {task.kind} {' '.join(task.labels)}")
    if Tokenizer(args.distill_from).digest != tokenizer.digest:
        fail(f"--distill-from {args.distill_from}: another tokenizer than {args.model}'s")
    found = args.autocast(outputs)(teacher.to(args.device), features, tokenizer.pad)
    guess = [x for x, _ in decode(known, examples, features, found)]
    print(f"teacher {args.distill_from}: {score(task, examples, guess)}")
    return teacher, known

def run(args):
    name, modes = args.task or "code", [args.mode] if args.task else ["all", "adapters", "random"]
    kind = "regression" if name == "stsb" else "classification" if name in GLUE else EMBEDDED.get(
        name, name)
    if not args.task and not os.path.isdir(args.model):
        fail(f"{args.model} is not there: run python distill.py first, or say --model DIR")
    args.rank, local, args.world, args.device = join(args, "seeds", "epochs", "stride")
    args.model, args.out = fetch(args.model, MODEL + TOKENIZER), args.out or f"out/{name}"
    if not (args.resume or args.overwrite) and os.path.isdir(args.out) and os.listdir(args.out):
        fail(f"--out {args.out} holds a run: --resume goes on with it, --overwrite loses it")
    tokenizer, config = Tokenizer(args.model), load(args.model).config
    if tokenizer.vocab_size > config.vocab_size:
        fail(f"{args.model}: {tokenizer.vocab_size} tokens, more than the model has")
    positions, usual = config.max_position_embeddings, 384 if kind == "qa" else 128
    if not 8 <= (args.length or 8) <= positions:
        fail(f"--length {args.length}: the model has {positions} positions, and 8 are needed")
    args.length = args.length or min(positions, usual)
    args.steps = args.steps or (0 if args.task else 200)
    if local > 0:                                        # a machine's first process downloads
        dist.barrier()
    splits = read_splits(args, name, kind)
    if args.world > 1 and local == 0:
        dist.barrier()
    task, dev = make_task(args, name, kind, splits), [s for s in splits if s.startswith("dev")][0]
    print(f"{name}: {kind}; {', '.join(f'{len(e):,} {split}' for split, e in splits.items())}; "
          f"labels {' '.join(task.labels) or 'none'}", flush=True)

    def encoded(splits):
        return {split: (e, list(encode(task, e, tokenizer))) for split, e in splits.items()}

    data = encoded(splits)
    ids = np.concatenate([f.ids for f in data["train"][1]])
    if (ids == tokenizer.unk).sum() > np.isin(ids, tokenizer.special, invert=True).sum():
        fail(f"most tokens to train on are [UNK]: {args.model}'s tokenizer is of another language")
    rows = [("majority", split, metric, [x]) for split, some in splits.items() if split != "train"
            for metric, x in score(task, some, majority(task, splits["train"], some)).items()]
    teacher = args.distill_from and tuned_teacher(args, task, tokenizer, *data[dev])
    for mode in modes:
        usual = 1e-3 if mode in ("adapters", "head") else 5e-5 if args.task else 4e-4    # in haste
        lrs, runs = args.lr or [usual * 768 / config.hidden_size], []
        if len(lrs) > 1:                                 # the choice is made without a look at dev
            parts = encoded(dict(zip(("dev", "train"), held_out(splits["train"]))))
            lrs = sorted(lrs, key=lambda lr: -tune(
                args, task, tokenizer, parts, mode, args.seed, lr, teacher
            )[1]["dev"][0][task.metrics[0]])
            print(f"learning rates, the best on a tenth of the training set first: {lrs}")
        for seed in range(args.seed, args.seed + args.seeds):
            model, results = tune(args, task, tokenizer, data, mode, seed, lrs[0], teacher)
            runs.append(results)
            if args.rank == 0 and seed == args.seed and mode == modes[0]:
                save_task(args.out, model, task, tokenizer)
                for split, (_, decoded) in results.items():
                    write_predictions(args.out, task, split, splits[split], decoded)
        rows += [(mode, split, metric, [each[split][0][metric] for each in runs])
                 for split in results for metric in results[split][0]]
    for mode, split, metric, x in rows:
        spread = f" +- {np.std(x, ddof=1):.2%} of {len(x)} seeds" if len(x) > 1 else ""
        print(f"{mode:10}{split:16}{metric:12}{np.mean(x):8.2%}{spread}")
    print(f"The model of seed {args.seed} is in {args.out}, its predictions too. Next:\n"
          f"    python finetune.py --model {args.out} --predict TEXT")

def predict(args):
    """Prints what the head says of a text, or of each line of a file; two texts: a tab between."""
    (model, task), tokenizer = build(args.model), Tokenizer(args.model)
    lines = [args.predict.encode("utf-8", "replace").decode()]
    if os.path.isfile(args.predict):
        lines = [line for _, line in lines_of(args.predict)]
    for line in filter(str.strip, lines):
        if ("\t" in line) != task.pair:
            fail(f"{line!r:.60}: want {1 + task.pair} texts, a tab between two")
        a, b = [*line.split("\t", 1), None][:2]
        examples = [Example(WORD.findall(a) if task.kind == "tagging" else a, b, None, "", "")]
        features = list(encode(task, examples, tokenizer))
        (x, p), = decode(task, examples, features, outputs(model, features, tokenizer.pad))
        if task.kind == "tagging":
            x = ", ".join(f"{' '.join(examples[0].a[i:j])} ({kind})"
                          for i, j, kind in sorted(entities(x)))
        print(", ".join(f"{k} {p[k]:.1%}" for k in sorted(p, key=p.get, reverse=True)) or x)

def arguments(argv):
    parser = argparse.ArgumentParser("finetune.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add, text = parser.add_argument, "(default: %(default)s)"
    add("--model", default="out/student", help=f"folder or Hugging Face name {text}")
    add("--task", choices=[*GLUE, *list(METRICS)[:4], *EMBEDDED], help="of GLUE, of your files, or "
        "embedded (default: code, tuned whole, by its adapters alone, and whole but from noise)")
    add("--data", help="folder with a GLUE task's files (default: download them)")
    for split in ("train", "dev", "test"):
        add(f"--{split}", nargs="+", metavar="FILE", help=".tsv .csv .jsonl, CoNLL or SQuAD files")
    add("--text", nargs="+", default=["text"], metavar="COLUMN", help=f"one or two {text}")
    add("--label", default="label", metavar="COLUMN", help=text)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--adapters-only", dest="mode", action="store_const", const="adapters",
                      default="all", help="train adapters and head; adapters are added if need be")
    what.add_argument("--freeze", dest="mode", action="store_const", const="head",
                      help="train the head alone")
    add("--lr", type=float, nargs="+", help="the best of several on a tenth of the training set "
        "(default: 5e-5, with a frozen encoder 1e-3, both times 768 / C)")
    training_flags(parser, dict(
        out="", seeds=1, epochs=3.0, steps=0, batch_size=32, micro_batch_size=0, length=0,
        stride=128, weight_decay=0.01, dropout=0.1, eval_every=0))
    add("--distill-from", metavar="DIR", help="a model tuned for this task, to learn from, too")
    add("--predict", metavar="TEXT_OR_FILE", help="what the tuned --model says of it; no training")
    args = parser.parse_args(argv)
    if len(args.text) > 2:
        fail("--text: one or two columns")
    return args

def main(argv=None):
    def act():
        args = arguments(argv)
        (run if args.predict is None else predict)(args)
    return command("finetune.py", act)

if __name__ == "__main__":
    sys.exit(main())
