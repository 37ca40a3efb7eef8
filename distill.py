"""Distil a BERT teacher into a recursive student. Paper: MiniALBERT (arXiv 2210.06425).

    python distill.py                                      # the embedded teacher and corpus: minutes
    python distill.py --teacher bert-base-uncased --corpus wiki/ --out out/student        # on a GPU
    torchrun --nproc_per_node 8 distill.py --teacher bert-base-uncased --corpus wiki/     # on several
    python distill.py --teacher none --tokenizer DIR --hidden-size 128 --embedding-size 128 \\
        --num-hidden-layers 4 --num-hidden-groups 4 --out out/bert      # pre-train a BERT: no teacher

    L = 1 * MLM + 3 * (attention + hidden) + 5 * output

Teacher and student read the same masked text, and the student is pulled towards the teacher's attention
maps, its hidden states and its distribution over the vocabulary (dimensions: see minialbert.py).
"""
import argparse
import hashlib
import json
import math
import os
import signal
import sys
import time
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

from data import CACHE, MaskedBatches, TokenFile, Tokenizer, docs_on_this_machine, fetch, tokenise
from minialbert import (Config, MiniALBERT, count_parameters, initialise, load, read_safetensors, save,
                        write_safetensors)

EMBEDDED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "assets", "teacher")
TOKENIZER = [("tokenizer.json", "vocab.txt"), ("tokenizer_config.json", None)]
MODEL = [("config.json",), ("model.safetensors", "pytorch_model.bin")]

# The authors' weights of the terms of the loss; "embedding" is in their ablations alone
WEIGHTS = {"mlm": 1.0, "attention": 3.0, "hidden": 3.0, "output": 5.0, "embedding": 0.0}
# quick suits a CPU and the embedded teacher, full a GPU, paper is the authors' in every choice
QUICK = dict(steps=800, batch_size=32, length=64, lr=1e-3, warmup=100, weight_decay=0.01, dropout=0.0)
FULL = dict(steps=100_000, batch_size=192, length=256, lr=5e-4, warmup=5000, weight_decay=0.01, dropout=0.1)
RECIPES = {"quick": QUICK, "full": FULL, "paper": FULL | dict(weight_decay=1e-4, init="random", tie_decoder=False)}

# ---- Losses: sums over tokens or masked places, divided once, by their number in the whole batch ----


def attention_loss(student, teacher):
    """KL(teacher || student) of log-probabilities (B, H, T, T): each row's KL divided by T, averaged over
    the heads, summed over the B * T tokens. Over B * T it is the authors' mean over all elements."""
    return F.kl_div(student, teacher, reduction="sum", log_target=True) / (student.shape[1] * student.shape[3])


def hidden_loss(student, teacher):
    """1 - cosine of hidden states (B, T, C), summed over the B * T tokens."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).sum()


def output_loss(student, teacher, temperature=1.0):
    """temperature^2 * KL(teacher || student) of logits (M, V), summed over the M masked places."""
    student, teacher = ((logits.float() / temperature).log_softmax(-1) for logits in (student, teacher))
    return temperature ** 2 * F.kl_div(student, teacher, reduction="sum", log_target=True)


def mlm_loss(logits, labels):
    """Cross-entropy in nats of logits (M, V) with the true tokens (M,), summed over the M masked places."""
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def match_layers(R, L):
    """[(student recursion, teacher layer)], from 0: every (L / R)th layer of the teacher, the last included."""
    if L % R:
        raise ValueError(f"{R} recursions cannot be spread evenly over the teacher's {L} layers")
    return [(r, (r + 1) * L // R - 1) for r in range(R)]


class Distillation:
    """The terms of the loss of (student, teacher or None) on batches of masked text, step by step."""

    def __init__(self, student, teacher, batches, weights, temperature=1.0, micro_batch_size=None,
                 device=torch.device("cpu"), dtype=torch.float32, rank=0, world=1):
        self.student, self.teacher, self.batches, self.temperature = student, teacher, batches, temperature
        self.device, self.dtype, self.rank, self.world = device, dtype, rank, world
        self.weights = {term: weight for term, weight in weights.items() if weight}
        R, L = (model.config.num_hidden_layers for model in (student, teacher or student))
        self.pairs = match_layers(R, L)
        self.micro = micro_batch_size or max(1, batches.batch_size // world)
        self.tokens = batches.batch_size * batches.T                   # of a step
        if batches.batch_size % (self.micro * world):
            raise ValueError(f"a batch of {batches.batch_size} sequences cannot be split into micro-batches of "
                             f"{self.micro} for {world} processes")

    def __call__(self, step):
        """Yields the terms of each micro-batch of this rank; all of them summed are the batch's means."""
        ids, places, labels = self.batches(step)
        row = places // ids.shape[1]
        for begin in range(self.rank * self.micro, len(ids), self.micro * self.world):
            here = (row >= begin) & (row < begin + self.micro)
            yield self.terms(*to(self.device, ids[begin:begin + self.micro], places[here] - begin * ids.shape[1],
                                 labels[here]), masked=max(1, len(places)))

    def terms(self, ids, places, labels, masked):
        """{term: scalar}: what this micro-batch adds to the means over all tokens or all masked places."""
        on, terms, map_pairs = self.weights, {}, self.pairs if "attention" in self.weights else []
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            hidden, maps = self.student(ids, maps=[r for r, _ in map_pairs])
            if "mlm" in on or "output" in on:
                logits = self.student.predict(hidden[-1].flatten(0, 1)[places])           # (M, V)
            if "mlm" in on:
                terms["mlm"] = mlm_loss(logits, labels) / masked
            if self.teacher is None:
                return terms
            with torch.no_grad():
                t_hidden, t_maps = self.teacher(ids, maps=[i for _, i in map_pairs])
                t_logits = self.teacher.predict(t_hidden[-1].flatten(0, 1)[places]) if "output" in on else None
            if "attention" in on:
                terms["attention"] = sum(attention_loss(maps[r], t_maps[i]) for r, i in map_pairs) / self.tokens
            if "hidden" in on:
                terms["hidden"] = sum(hidden_loss(hidden[r + 1], t_hidden[i + 1]) for r, i in self.pairs) / self.tokens
            if "output" in on:
                terms["output"] = output_loss(logits, t_logits, self.temperature) / masked
            if "embedding" in on:
                terms["embedding"] = hidden_loss(hidden[0], t_hidden[0]) / self.tokens
        return terms


def to(device, *arrays):
    return [torch.from_numpy(array).to(device, non_blocking=True) for array in arrays]


@torch.inference_mode()
def evaluate(model, batches, count, device, dtype=torch.float32):
    """MLM accuracy and loss (nats) on `count` sequences at most: the same, masked the same, at each call."""
    was_training, right, loss, masked = model.training, 0, 0.0, 0
    model.eval()
    for step in range(max(1, min(count, batches.count) // batches.batch_size)):
        ids, places, labels = to(device, *batches(step))
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model.predict(model(ids)[0][-1].flatten(0, 1)[places])
        right += (logits.argmax(-1) == labels).sum().item()
        loss += mlm_loss(logits, labels).item()
        masked += len(labels)
    model.train(was_training)
    return {"accuracy": right / max(1, masked), "loss": loss / max(1, masked)}


# ---- The start: where in the teacher the student begins ---------------------------------------------


@torch.no_grad()
def start_from_teacher(student, teacher, ids):
    """Embeddings: the teacher's, factorised by SVD, the projection fitted to its embedding output on ids
    (B, T). A shared layer: the mean of the layers it stands for. The head: the teacher's."""
    mine, theirs, names = student.embeddings, teacher.embeddings, ("word", "position", "segment")
    if mine.project is None:
        mine.load_state_dict(theirs.state_dict())
    else:
        tables = torch.cat([getattr(theirs, name).weight for name in names])              # (N, C)
        _, basis = torch.linalg.eigh(tables.T @ tables)                # the right singular vectors, rising
        low = tables @ basis[:, -mine.word.embedding_dim:]                                # (N, E)
        for name, part in zip(names, low.split([getattr(theirs, name).num_embeddings for name in names])):
            getattr(mine, name).weight.copy_(part)
        x = mine.norm(mine.word(ids) + mine.position.weight[:ids.shape[1]] + mine.segment.weight[0]).flatten(0, 1)
        fit = torch.linalg.lstsq(F.pad(x, (0, 1), value=1.0), theirs(ids).flatten(0, 1)).solution   # (E + 1, C)
        mine.project.weight.copy_(fit[:-1].T)
        mine.project.bias.copy_(fit[-1])
    L, G = teacher.config.num_hidden_layers, student.config.num_hidden_groups
    for g, layer in enumerate(student.layers):
        stands_for = [teacher.layer(i).state_dict() for i in range(L) if i * G // L == g]
        layer.load_state_dict({name: sum(s[name] for s in stands_for) / len(stands_for) for name in stands_for[0]})
    if teacher.head is not None and student.head.decoder is None:
        student.head.load_state_dict(teacher.head.state_dict())


# ---- The training loop, the only one ----------------------------------------------------------------


def train(model, losses, args, run, evaluation, export, rank=0, world=1):
    """Minimises the weighted terms that losses(step) yields, and writes args.out/log.jsonl and checkpoints.

    Every random number is a function of (args.seed, step), so a resumed run ends as one never stopped.
    run: facts that a resumed run must share; evaluation() -> dict for the log; export() writes the model.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([{"params": [p for p in named.values() if p.ndim > 1]}, {"weight_decay": 0.0,
        "params": [p for p in named.values() if p.ndim == 1]}], lr=args.lr, weight_decay=args.weight_decay, fused=True)
    first = resume_from(args.out, named, optimizer, run) if args.resume else 0
    log = open_log(args.out, first) if rank == 0 else None
    asked, logged, clock = [], first, time.perf_counter()              # signals that ask us to stop
    handlers = {s: signal.signal(s, lambda number, _: asked.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    model.train()
    bar = tqdm(range(first, args.steps), initial=first, total=args.steps, unit="step",
               disable=None if rank == 0 else True)
    for step in bar:
        done, values = step + 1, {}
        torch.manual_seed((args.seed * 1_000_003 + step) * 1009 + rank)          # dropout
        for terms in losses(step):
            sum(losses.weights[term] * value for term, value in terms.items()).backward()
            for term, value in terms.items():
                values[term] = values.get(term, 0) + value.detach()
        if world > 1:
            add_up([p.grad for p in named.values()])
            add_up(list(values.values()))
        norm = torch.nn.utils.clip_grad_norm_(named.values(), args.clip).item()
        lr = args.lr * min(done / max(1, args.warmup), (args.steps - step) / max(1, args.steps - args.warmup))
        if not math.isfinite(norm):
            raise FloatingPointError(f"step {done}: the gradient's norm is {norm} at learning rate {lr:g}, " + ", ".join(
                f"{term} is {value:g}" for term, value in values.items()) + f"; the last checkpoint in {args.out} is good")
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        due = done == args.steps or args.eval_every and done % args.eval_every == 0
        if rank == 0 and (due or done % args.log_every == 0):
            line = {"step": done, "loss": sum(losses.weights[term] * value.item() for term, value in values.items()),
                    **{term: value.item() for term, value in values.items()}, "lr": lr, "gradient_norm": norm,
                    "tokens_per_second": round(losses.tokens * (done - logged) / (time.perf_counter() - clock))}
            if due:
                line |= {f"valid_{name}": value for name, value in evaluation().items()}
            log.write(json.dumps(line) + "\n"), log.flush()
            bar.set_postfix({name: f"{value:.3f}" for name, value in line.items() if name in ("loss", "valid_accuracy")})
            logged, clock = done, time.perf_counter()
        if rank == 0 and (asked or done == args.steps or done % args.save_every == 0):
            save_state(args.out, named, optimizer, done, run)
            export()
        if asked and done < args.steps:
            print(f"\nstopped after step {done} of {args.steps}; the same command with --resume goes on")
            raise SystemExit(128 + asked[0])
    for number, handler in handlers.items():
        signal.signal(number, handler)


def add_up(tensors):
    """Sums tensors over the ranks, as one message. There is no backward pass to hide it behind: a shared
    layer's gradient is complete only when the first recursion's is."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view_as(tensor))


def save_state(out, named, optimizer, step, run):
    """All that a resumed run needs, in one file that is replaced at once or not at all."""
    tensors = {f"model.{name}": p for name, p in named.items()} | {
        f"{key}.{name}": optimizer.state[p][key] for name, p in named.items() for key in ("exp_avg", "exp_avg_sq")}
    write_safetensors(tensors, os.path.join(out, "training.safetensors"), {"step": str(step), "run": json.dumps(run)})


@torch.no_grad()
def resume_from(out, named, optimizer, run):
    """Puts back the state saved in out; the step it was saved after. ValueError names all that differs."""
    path = os.path.join(out, "training.safetensors")
    if not os.path.isfile(path):
        print(f"no checkpoint in {out} yet: starting from the first step")
        return 0
    tensors, facts = read_safetensors(path)
    was, run = json.loads(facts["run"]), json.loads(json.dumps(run))
    other = [f"{name} was {was.get(name)}, now {run.get(name)}" for name in run if was.get(name) != run[name]]
    if other:
        raise ValueError(f"{path} is of another run: {'; '.join(other)}")
    for name, p in named.items():
        p.copy_(tensors[f"model.{name}"])
        optimizer.state[p] = {"step": torch.tensor(float(facts["step"]), device=p.device)} | {
            key: tensors[f"{key}.{name}"].to(p.device, copy=True) for key in ("exp_avg", "exp_avg_sq")}
    return int(facts["step"])


def open_log(out, first):
    """log.jsonl, without the lines that a killed run wrote after its last checkpoint."""
    path = os.path.join(out, "log.jsonl")
    lines = [line for line in open(path, encoding="utf-8") if json.loads(line)["step"] <= first] if first else []
    log = open(path, "w", encoding="utf-8")
    log.writelines(lines)
    return log


# ---- The command ------------------------------------------------------------------------------------


def positive(text):
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)


def arguments(argv):
    parser = argparse.ArgumentParser(description="Distil a BERT teacher into a recursive student.",
                                     epilog="Defaults of flags marked * come with --recipe.", allow_abbrev=False)
    add, text = parser.add_argument, "(default: %(default)s)"
    add("--teacher", default=EMBEDDED, metavar="DIR", help="BERT folder or Hugging Face name (default: embedded), or none")
    add("--student", metavar="DIR", help="start from this checkpoint, not from a fresh student")
    add("--corpus", nargs="+", metavar="PATH", help="files, folders, or a token file (default: this machine's docs)")
    add("--tokenizer", metavar="DIR", help="folder or Hugging Face name (default: the teacher's or student's)")
    add("--out", default="out/student", metavar="DIR", help=f"for student, log, checkpoint {text}")
    add("--resume", action="store_true", help="go on with the run in --out")
    add("--overwrite", action="store_true", help="start anew although --out holds a run")
    add("--recipe", choices=RECIPES, help="default: full for a teacher of your own on a GPU, else quick")
    add("--steps", type=positive, help="* optimiser steps")
    add("--batch-size", type=positive, help="* sequences a step, over all processes")
    add("--micro-batch-size", type=positive, help="sequences a forward pass (default: all that a process has)")
    add("--length", type=positive, help="* tokens a sequence")
    add("--lr", type=float, help="* highest learning rate; after the warm-up it falls linearly to 0")
    add("--warmup", type=int, help="* steps")
    add("--weight-decay", type=float, help="* of matrices; biases and norms have none")
    add("--dropout", type=float, help="* of the student's hidden states and attention")
    add("--clip", type=float, default=1.0, help=f"largest norm of the gradient {text}")
    add("--init", choices=("teacher", "sharp", "random"), help="* of a fresh student: from the teacher (default); noise "
        "with sinusoids and sharp attention (default without teacher); noise as the authors'")
    for term, weight in WEIGHTS.items():
        add(f"--{term}-weight", type=float, default=weight, metavar="W", help=f"in the loss {text}")
    add("--temperature", type=float, default=1.0, help=f"of the output loss {text}")
    add("--num-hidden-layers", type=positive, metavar="R", help="recursions (default: the teacher's layers; 6 of 12)")
    add("--num-hidden-groups", type=positive, metavar="G", default=1, help=f"distinct layers {text}")
    add("--hidden-size", type=positive, metavar="C", help="(default: the teacher's, or 128)")
    add("--embedding-size", type=positive, metavar="E", help="(default: 128, or half of C if that is less)")
    add("--num-attention-heads", type=positive, metavar="H", help="(default: the teacher's, or C / 32)")
    add("--intermediate-size", type=positive, metavar="F", help="(default: the teacher's, or 4 C)")
    add("--adapter-size", type=int, metavar="A", help="0: no adapters (default: C / 16, or 0 if R = G)")
    add("--tie-decoder", action=argparse.BooleanOptionalAction, help="* predict with the word embeddings (default)")
    add("--seed", type=int, default=0, help=f"of everything random {text}")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help=text)
    add("--compile", action="store_true", help="torch.compile the step: slow to start, faster on a GPU")
    add("--log-every", type=positive, default=50, metavar="N", help=f"steps {text}")
    add("--eval-every", type=int, default=200, metavar="N", help=f"steps; 0: only at the end {text}")
    add("--save-every", type=positive, default=200, metavar="N", help=f"steps {text}")
    add("--eval-sequences", type=positive, default=512, metavar="N", help=f"held out, at most {text}")
    add("--cache", default=CACHE, metavar="DIR", help=f"for token files and the embedded corpus {text}")
    args = parser.parse_args(argv)
    args.teacher = None if args.teacher == "none" else args.teacher
    if args.recipe is None:
        args.recipe = "full" if torch.cuda.is_available() and args.teacher not in (EMBEDDED, None) else "quick"
    for name, value in {"init": "teacher" if args.teacher else "sharp", "tie_decoder": True, **RECIPES[args.recipe]}.items():
        setattr(args, name, value if getattr(args, name) is None else getattr(args, name))
    return args


def make_student(args, teacher, vocab_size):
    """A fresh student from noise, or --student's model, with a new head if it has lost its own."""
    torch.manual_seed(args.seed)
    dropout = {"hidden_dropout_prob": args.dropout, "attention_probs_dropout_prob": args.dropout}
    if args.student:
        found = load(fetch(args.student, MODEL))
        student = MiniALBERT(replace(found.config, **dropout))
        student.load_state_dict(student.state_dict() | found.state_dict())
        return student
    C = args.hidden_size or (teacher.config.hidden_size if teacher else 128)
    like = teacher.config if teacher else Config(
        vocab_size=vocab_size, hidden_size=C, num_attention_heads=args.num_attention_heads or max(1, C // 32),
        intermediate_size=4 * C, max_position_embeddings=max(128, args.length))
    R = args.num_hidden_layers or (6 if like.num_hidden_layers == 12 else like.num_hidden_layers)
    A = args.adapter_size if args.adapter_size is not None else 0 if R == args.num_hidden_groups else C // 16
    student = MiniALBERT(replace(
        like, hidden_size=C, num_hidden_layers=R, num_hidden_groups=args.num_hidden_groups, adapter_size=A,
        num_attention_heads=args.num_attention_heads or like.num_attention_heads, tie_decoder=args.tie_decoder,
        embedding_size=args.embedding_size or min(128, C // 2),
        intermediate_size=args.intermediate_size or like.intermediate_size, **dropout))
    if args.init == "random":
        initialise(student, plain=True)
    return student


def run(args, rank, world):
    if os.path.isfile(os.path.join(args.out, "training.safetensors")) and not (args.resume or args.overwrite):
        raise ValueError(f"{args.out} holds a run: --resume goes on with it, --overwrite loses it")
    use_gpu = torch.cuda.is_available() if args.device == "auto" else args.device == "cuda"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if use_gpu else torch.device("cpu")
    dtype = torch.bfloat16 if use_gpu else torch.float32
    folder = args.teacher and fetch(args.teacher, MODEL + TOKENIZER)
    teacher = load(folder).to(device).requires_grad_(False).eval() if folder else None
    tokenizer = Tokenizer(fetch(args.tokenizer or folder or args.student, TOKENIZER))
    student = make_student(args, teacher, tokenizer.vocab_size).to(device)
    corpus = args.corpus or [docs_on_this_machine(args.cache)]
    name = hashlib.sha256(repr([corpus, tokenizer.digest]).encode()).hexdigest()[:12]
    tokens = TokenFile(corpus[0]) if corpus[0].endswith(".bin") else tokenise(
        corpus, tokenizer, os.path.join(args.cache, f"tokens-{name}.bin"))
    batches = MaskedBatches(tokens.train, tokenizer, args.length, args.batch_size, args.seed)
    valid = MaskedBatches(tokens.valid, tokenizer, args.length, 32)
    if args.init == "teacher" and not args.student:
        start_from_teacher(student.eval(), teacher, *to(device, batches.sequences(np.arange(min(256, batches.count)))))
    weights = {term: getattr(args, f"{term}_weight") for term in WEIGHTS}
    if teacher is None or teacher.head is None:          # what cannot be had is said in describe()
        weights |= {"output": 0} | ({"attention": 0, "hidden": 0, "embedding": 0} if teacher is None else {"mlm": 0})
    losses = Distillation(student, teacher, batches, weights, args.temperature, args.micro_batch_size, device, dtype,
                          rank, world)
    if args.compile:
        losses.terms = torch.compile(losses.terms)
    os.makedirs(args.out, exist_ok=True)

    def measure(model):
        return evaluate(model, valid, args.eval_sequences, device, dtype)

    def export():
        save(student, args.out)
        tokenizer.save(args.out)

    facts = {name: value for name, value in vars(args).items() if name.replace("_every", "") not in (
        "out", "resume", "overwrite", "recipe", "micro_batch_size", "log", "save", "eval", "eval_sequences", "cache", "compile")}
    facts |= {"teacher": teacher and fingerprint(teacher), "student": fingerprint(student), "corpus": tokens.made_from,
              "tokenizer": tokenizer.digest, "shape": vars(student.config)}
    if rank == 0:
        describe(args, student, teacher, losses, measure)
    train(student, losses, args, facts, lambda: measure(student), export, rank, world)
    if rank == 0:
        report(args, {"teacher": teacher} if "output" in losses.weights else {}, student, tokenizer, valid, measure)


def fingerprint(model):
    sha = hashlib.sha256()
    for p in model.parameters():
        sha.update(p.detach().cpu().contiguous().view(torch.uint8).numpy())
    return sha.hexdigest()[:16]


def describe(args, student, teacher, losses, measure):
    """Prints what is going to happen, before it does."""
    for _ in range(2):                                   # a rehearsal, the second one timed; nothing is kept
        began = time.perf_counter()
        for terms in losses(0):
            sum(losses.weights[term] * value for term, value in terms.items()).backward()
        student.zero_grad(set_to_none=True)
    minutes = (time.perf_counter() - began) * args.steps / 60
    print(f"device    {losses.device}, {'bfloat16 autocast' if losses.dtype == torch.bfloat16 else 'float32'} "
          f"({'asked for' if args.device != 'auto' else 'the GPU found' if losses.device.type == 'cuda' else 'no GPU found'})")
    for name, model in (("teacher", teacher), ("student", student)):
        if model is not None:
            counts, c = count_parameters(model), model.config
            print(f"{name}   {counts['stored']:,} parameters stored, {counts['applied']:,} applied: {c.num_hidden_groups} "
                  f"of {c.num_hidden_layers} layers distinct, C {c.hidden_size}, E {c.embedding_size}, A {c.adapter_size}")
    if teacher is not None:
        print("layers    student-teacher: " + " ".join(f"{r + 1}-{i + 1}" for r, i in losses.pairs) + ", the rest unmatched")
        print("teacher   " + ("held-out MLM accuracy {accuracy:.1%}, loss {loss:.3f}".format(**measure(teacher))
                              if teacher.head else "without an MLM head: attention and hidden states alone are distilled"))
    print("loss      " + " + ".join(f"{weight:g} {term}" for term, weight in losses.weights.items()))
    print(f"steps     {args.steps:,} of {losses.tokens:,} tokens, {args.steps * args.batch_size / losses.batches.count:.1f} "
          f"epochs of {losses.batches.count:,} sequences; about {minutes:.1f} minutes", flush=True)


def report(args, models, student, tokenizer, valid, measure):
    """Prints what has happened: a table, some words guessed, where the student is, what to do next."""
    models = models | {"student": student}
    print(f"\n{'parameters:':19}{'stored':>12}{'applied':>12}{'encoder':>12}{'MLM accuracy':>14}{'MLM loss':>10}")
    for name, model in models.items():
        counts, scores = count_parameters(model), measure(model)
        print(f"{name:19}{counts['stored']:12,}{counts['applied']:12,}{counts['layers'] + counts['adapters']:12,}"
              f"{scores['accuracy']:14.1%}{scores['loss']:10.3f}")
    share = np.bincount(valid.tokens).max() / len(valid.tokens)
    print(f"{'most frequent token':55}{share:14.1%}\n")
    for row in valid.sequences(np.linspace(0, valid.count - 1, 5, dtype=int)):
        words = [tokenizer.core.decode([i]) for i in row]
        place = max(range(8, len(row) - 8), key=lambda i: (words[i].isalpha() * min(len(words[i]), 5), -abs(i - len(row) // 2)))
        truth, row[place] = words[place], tokenizer.mask
        text = tokenizer.core.decode(row[place - 8:place].tolist()) + " [MASK] " + tokenizer.core.decode(row[place + 1:place + 8].tolist())
        print(f"{text}   ({truth})")
        for name, model in models.items():
            with torch.inference_mode():
                hidden, _ = model.eval()(*to(next(model.parameters()).device, row[None]))
                best = model.predict(hidden[-1][:, place]).float().softmax(-1)[0].topk(4)
            print(f"    {name}: " + ", ".join(f"{tokenizer.core.decode([i])} {p:.0%}" for p, i in zip(
                best.values.tolist(), best.indices.tolist())))
    print(f"\nThe student is in {args.out}, its curve in {os.path.join(args.out, 'log.jsonl')}. Next:\n"
          f"    python finetune.py --model {args.out}")


def main(argv=None):
    args, rank, world = arguments(argv), int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        if world > 1:
            dist.init_process_group("nccl" if args.device != "cpu" and torch.cuda.is_available() else "gloo")
        run(args, rank, world)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"distill.py: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
