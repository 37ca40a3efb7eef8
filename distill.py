"""Distil a BERT teacher into a recursive student. Paper: MiniALBERT (arXiv 2210.06425).

    python distill.py                                   # the embedded teacher and corpus: minutes
    python distill.py --teacher bert-base-uncased --corpus wiki/ --out out/student      # on a GPU
    torchrun --nproc_per_node 8 distill.py --teacher bert-base-uncased --corpus wiki/   # on several
    python distill.py --teacher none --tokenizer DIR --num-hidden-groups 6  # pre-train: no teacher

1 * MLM + 3 * (attention + hidden) + 5 * output is the loss. (Dimensions: see minialbert.py.)
"""
import argparse
import ctypes
import hashlib
import json
import math
import os
import sys
import time
import timeit
from datetime import timedelta
from signal import SIGINT, SIGTERM, signal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

from data import CACHE, TOKENIZER, MaskedBatches, Tokenizer, command, fail, fetch, open_corpus
from minialbert import (Config, MiniALBERT, count_parameters, initialise, load, read_safetensors,
                        save, write_safetensors)

EMBEDDED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "assets", "teacher")
MODEL = [("config.json",), ("model.safetensors", "model*.safetensors*", "pytorch_model.bin")]
SHAPE = ("num_hidden_layers", "num_hidden_groups", "hidden_size", "embedding_size", "adapter_size",
         "num_attention_heads", "intermediate_size", "tie_decoder")
# WEIGHTS and the recipe paper are the authors', but packed text, bfloat16 ("embedding": ablations).
WEIGHTS = {"mlm": 1.0, "attention": 3.0, "hidden": 3.0, "output": 5.0, "embedding": 0.0}
NAMES = ("steps", "batch_size", "length", "lr", "warmup", "weight_decay", "dropout")
RECIPES = {"quick": dict(zip(NAMES, (1800, 16, 64, 3e-3, 100, 0.01, 0.0))),
           "full": dict(zip(NAMES, (100_000, 192, 256, 5e-4, 5000, 0.01, 0.1)))}
RECIPES["paper"] = RECIPES["full"] | {"weight_decay": 1e-4, "init": "random", "tie_decoder": False,
                                      "num_hidden_layers": 6, "embedding_size": 128}

# ---- Losses: sums over tokens or masked places; their number in the whole batch divides them once
def attention_loss(student, teacher):
    """KL(teacher || student) of log-probabilities (B, H, T, T): each row's divided by T, averaged
    over the heads, summed over B * T tokens. Over B * T it is the authors' mean of all elements."""
    total = F.kl_div(student, teacher, reduction="sum", log_target=True)
    return total / (student.shape[1] * student.shape[3])

def hidden_loss(student, teacher):
    """1 - cosine of hidden states (B, T, C), summed over the B * T tokens."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).sum()

def output_loss(student, teacher, temperature=1.0):
    """temperature^2 * KL(teacher || student) of logits (M, V), summed over the M masked places."""
    log_p, log_q = ((logits.float() / temperature).log_softmax(-1) for logits in (student, teacher))
    return temperature ** 2 * F.kl_div(log_p, log_q, reduction="sum", log_target=True)

def mlm_loss(logits, labels):
    """Cross-entropy in nats of logits (M, V) with the true tokens (M,), summed over M places."""
    return F.cross_entropy(logits.float(), labels, reduction="sum")

def match_layers(R, L):
    """[(student recursion, teacher layer)], from 0: each (L / R)th of the teacher, its last too."""
    if L % R:
        raise ValueError(f"{R} recursions cannot be spread evenly over the teacher's {L} layers")
    return [(r, (r + 1) * L // R - 1) for r in range(R)]

class Distillation:
    """The terms of a student's loss, those in weights, on masked text. It freezes the teacher."""
    def __init__(self, student, teacher, batches, weights, temperature=1.0, micro_batch_size=None,
                 rank=0, world=1):
        self.student, self.teacher = student, teacher and teacher.requires_grad_(False).eval()
        self.batches, self.weights, self.temperature = batches, weights, temperature
        R, L = (model.config.num_hidden_layers for model in (student, teacher or student))
        self.pairs, B = match_layers(R, L), batches.batch_size
        self.tokens, self.micro = B * batches.T, min(micro_batch_size or B, B // world)
        self.begins = range(rank * self.micro, B, world * self.micro)

    def __call__(self, step):
        """Yields the terms of this rank's micro-batches; those of all ranks sum up to the means."""
        ids, places, labels = self.batches(step)
        row = places // ids.shape[1]
        for begin in self.begins:
            here = (row >= begin) & (row < begin + self.micro)
            yield self.terms(*to(self.student, ids[begin:begin + self.micro], labels[here],
                                 places[here] - begin * ids.shape[1]), masked=max(1, len(places)))

    def terms(self, ids, labels, places, masked):
        """{term: scalar}: this micro-batch's share of the means over tokens or masked places."""
        on, pairs, n = self.weights, self.pairs, self.tokens
        hidden, maps = self.student(ids, maps=[r for r, _ in pairs if "attention" in on])
        logits = self.student.head and self.student.predict(hidden[-1].flatten(0, 1)[places])
        if on.keys() - {"mlm"}:
            theirs, t_maps = self.teacher(ids, maps=[i for _, i in pairs if "attention" in on])
        compute = {
            "mlm": lambda: mlm_loss(logits, labels) / masked,
            "attention": lambda: sum(attention_loss(maps[r], t_maps[i]) for r, i in pairs) / n,
            "hidden": lambda: sum(hidden_loss(hidden[r + 1], theirs[i + 1]) for r, i in pairs) / n,
            "output": lambda: output_loss(logits, self.teacher.predict(
                theirs[-1].flatten(0, 1)[places]), self.temperature) / masked,
            "embedding": lambda: hidden_loss(hidden[0], theirs[0]) / n}
        return {term: compute[term]() for term in on}

def to(model, *arrays):
    return [torch.from_numpy(array).to(next(model.parameters()).device) for array in arrays]

@torch.inference_mode()
def evaluate(model, batches):
    """MLM accuracy and loss (nats) on at most 512 sequences, always the same, masked the same."""
    right = loss = masked = 0
    for step in range(max(1, min(512, batches.count) // batches.batch_size)):
        ids, places, labels = to(model, *batches(step))
        logits = model.predict(model.eval()(ids)[0][-1].flatten(0, 1)[places])
        right += (logits.argmax(-1) == labels).sum().item()
        loss += mlm_loss(logits, labels).item()
        masked += len(labels)
    return {"accuracy": right / max(1, masked), "loss": loss / max(1, masked)}

@torch.no_grad()
def start_from_teacher(student, teacher, ids):
    """Embeddings: the teacher's in the E directions in which they vary most on ids (B, T), then the
    projection fitted to its output. A shared layer: the mean of the middle half of those it stands
    for (the outer ones start it worse: EXPERIMENTS.md). The head: the teacher's."""
    mine, theirs, E = student.embeddings, teacher.embeddings, student.config.embedding_size
    if mine.project is None:
        mine.load_state_dict(theirs.state_dict())
    else:
        x = theirs.word(ids) + theirs.position.weight[:ids.shape[1]] + theirs.segment.weight[0]
        x = x.flatten(0, 1)                                                             # (N, C)
        basis = torch.linalg.eigh(x.T @ x)[1][:, -E:]                                   # (C, E)
        for name in ("word", "position", "segment"):
            getattr(mine, name).weight.copy_(getattr(theirs, name).weight @ basis)
        x = F.pad(mine.norm(x @ basis), (0, 1), value=1.0)           # (N, E + 1), rank-deficient
        fit = torch.linalg.lstsq(x, theirs(ids).flatten(0, 1), driver="gelsd").solution
        mine.project.weight.copy_(fit[:-1].T), mine.project.bias.copy_(fit[-1])
    L, G = teacher.config.num_hidden_layers, student.config.num_hidden_groups
    for g, layer in enumerate(student.layers):
        group = [teacher.layer(i).state_dict() for i in range(L) if i * G // L == g]
        group = group[len(group) // 4:len(group) - len(group) // 4]
        layer.load_state_dict({name: sum(s[name] for s in group) / len(group) for name in group[0]})
    if student.head and teacher.head and student.config.tie_decoder == teacher.config.tie_decoder:
        student.head.load_state_dict(teacher.head.state_dict())

# ---- The training loop, the only one -------------------------------------------------------------
def train(model, losses, args, run, evaluation, export, rank=0, world=1):
    """Minimises a weighted sum. A random number is a function of (args.seed, step): a resumed run
    ends as one never stopped. losses has .weights {term: weight}, .tokens in a step; losses(step)
    yields {term: scalar} for each micro-batch of this rank. run: facts that a resumed run must
    share; evaluation() -> dict for args.out/log.jsonl; export() writes the model."""
    optimizer, state = make_optimizer(model, args)
    path = os.path.join(args.out, "training.safetensors")
    first, size = resume_from(path, state, run) if args.resume and os.path.exists(path) else (0, 0)
    for tensor in state.values() if world > 1 else ():
        dist.broadcast(tensor.detach(), 0)               # other machines may round otherwise
    if rank == 0:
        log = open(os.path.join(args.out, "log.jsonl"), "a", encoding="utf-8")
        log.seek(log.truncate(min(size, log.tell())))    # a killed run wrote more
        if first:                                        # or had not yet written its last model
            export()
    asked, logged, clock = [], first, time.perf_counter()        # asked: by signals, to stop
    handlers = {n: signal(n, lambda number, _: asked.append(number)) for n in (SIGINT, SIGTERM)}
    try:
        for step in tqdm(range(first, args.steps), disable=rank > 0 or None):
            model.train()
            torch.manual_seed((args.seed * 1_000_003 + step) * 1009 + rank)             # dropout
            done, totals = step + 1, {}
            for terms in losses(step):
                loss = sum(losses.weights[term] * value for term, value in terms.items())
                loss.backward()
                for term, value in ({"loss": loss} | terms).items():
                    totals[term] = totals.get(term, 0) + value.detach()
            stop = torch.tensor(float(len(asked)), device=loss.device)
            for tensor in ([p.grad for p in model.parameters() if p.grad is not None]
                           + [*totals.values(), stop] if world > 1 else ()):
                dist.all_reduce(tensor)                  # all ranks stop after the same step
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
            lr = args.lr * min(done / max(1, args.warmup),
                               (args.steps - step) / max(1, args.steps - args.warmup))
            if not math.isfinite(norm):
                terms = ", ".join(f"{term} {value:g}" for term, value in totals.items())
                raise FloatingPointError(f"step {done}, learning rate {lr:g}: {terms}, gradient "
                                         f"norm {norm:g}; the last checkpoint is intact")
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            due = done == args.steps or args.eval_every and done % args.eval_every == 0
            if rank == 0 and (due or done % args.log_every == 0):
                speed = losses.tokens * (done - logged) / (time.perf_counter() - clock)
                line = {"step": done, **{term: value.item() for term, value in totals.items()},
                        "lr": lr, "gradient_norm": norm, "tokens_per_second": round(speed)}
                line |= {f"valid_{k}": v for k, v in evaluation().items()} if due else {}
                print(json.dumps(line), file=log, flush=True)
                logged, clock = done, time.perf_counter()
            if rank == 0 and (stop or done == args.steps or done % args.save_every == 0):
                facts = {"step": str(done), "log": str(log.tell()), "run": json.dumps(run)}
                write_safetensors(state, path, facts)
                export()
            if stop and done < args.steps:
                print(f"\nstopped after step {done} of {args.steps}: --resume goes on from there")
                raise SystemExit(128 + (asked or [SIGTERM])[0])
    finally:
        for number, handler in handlers.items():
            signal(number, handler)

def make_optimizer(model, args):
    """AdamW, no weight decay of biases and norms; {name: tensor} of all that training changes."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([
        {"params": [p for p in named.values() if (p.ndim > 1) == decays],
         "weight_decay": args.weight_decay * decays} for decays in (True, False)], fused=True)
    state = {f"model.{name}": p for name, p in named.items()}
    for name, p in named.items():                        # as torch does it, but before step 1
        optimizer.state[p] = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
        state |= {f"{key}.{name}": tensor for key, tensor in optimizer.state[p].items()}
        optimizer.state[p]["step"] = state[f"step.{name}"] = torch.zeros((), device=p.device)
    return optimizer, state

@torch.no_grad()
def resume_from(path, state, run):
    """Puts back the state saved in path; steps made, bytes logged. ValueError if facts differ."""
    tensors, facts = read_safetensors(path)
    was, run = json.loads(facts.get("run", "{}")), json.loads(json.dumps(run))
    other = {name: (was.get(name), run[name]) for name in run if was.get(name) != run[name]}
    if other:
        raise ValueError(f"{path} is of a run that had, and this has: {other}")
    if {name: x.shape for name, x in tensors.items()} != {n: x.shape for n, x in state.items()}:
        fail(f"{path} is not of this model")
    for name, tensor in state.items():
        tensor.copy_(tensors[name])
    return int(facts["step"]), int(facts["log"])

# ---- The command ---------------------------------------------------------------------------------
def training_flags(parser, defaults):
    """Adds the flags that train() reads, and others of the defaults {name: value, of its type}."""
    common = dict(out="out/student", seed=0, log_every=50, eval_every=200, save_every=200)
    for name, default in (common | defaults).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default,
                            help="(default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the run in --out")
    again.add_argument("--overwrite", action="store_true", help="start anew, and lose that run")
    parser.error = fail

def arguments(argv):
    parser = argparse.ArgumentParser("distill.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--teacher", default=EMBEDDED, help="folder, Hugging Face name, none (default: embedded)")
    add("--student", help="folder: start from its model, not from a fresh student")
    add("--corpus", nargs="+", help="files, folders, a token file (default: this machine's docs)")
    add("--tokenizer", help="folder or name (default: the teacher's or the student's)")
    add("--recipe", choices=RECIPES, help="quick, as shown; full, the default on a GPU; or paper")
    training_flags(parser, {f"{term}_weight": weight for term, weight in WEIGHTS.items()} | {
        "temperature": 1.0, "micro_batch_size": 0, "cache": CACHE} | RECIPES["quick"])
    add("--compile", action="store_true", help="fuse the step's operations with torch.compile")
    add("--init", choices=("teacher", "sharp", "random"), help="of a fresh student")
    add("--tie-decoder", action=argparse.BooleanOptionalAction, help="predict with the embeddings")
    for name in SHAPE[:-1]:
        add("--" + name.replace("_", "-"), type=int)
    args = parser.parse_args(argv)
    if args.student and any(getattr(args, name) is not None for name in ("init", *SHAPE)):
        fail("--student has its own shape and weights: no flag can choose others")
    alone = args.teacher == "none"
    if alone and (args.init == "teacher" or not (args.student or args.tokenizer)):
        fail("--teacher none: a fresh student needs a --tokenizer, and another --init")
    quick = alone or args.teacher == EMBEDDED or not torch.cuda.is_available()
    parser.set_defaults(**RECIPES[args.recipe or ("quick" if quick else "full")])
    args = parser.parse_args(argv)
    args.init = args.init or ("" if args.student else "sharp" if alone else "teacher")
    return args

def check(args, teacher, student, tokenizer, weights):
    mine = args.overwrite or args.resume and os.path.exists(f"{args.out}/training.safetensors")
    if os.path.exists(f"{args.out}/model.safetensors") and not mine:
        fail(f"--out {args.out} holds a model: --resume its run, or --overwrite it")
    s, t = student.config, (teacher or student).config
    match_layers(s.num_hidden_layers, t.num_hidden_layers)
    if not weights:
        fail("no loss is left that the teacher allows and that has a weight")
    E = s.embedding_size * (args.init == "teacher")
    for what, size, field in ((f"vocab of {tokenizer.path}", tokenizer.vocab_size, "vocab_size"), (
            "--length", args.length, "max_position_embeddings"), ("--init E", E, "embedding_size")):
        if size > (most := min(getattr(s, field), getattr(t, field))):
            fail(f"{what} {size} is more than the models have: {field} is {most}")
    for field, *needs in (
            ("hidden_size", "hidden", "embedding", "teacher"), ("vocab_size", "output"),
            ("num_attention_heads", "attention"), ("intermediate_size", "teacher")):
        if {*needs} & {*weights, args.init} and getattr(t, field) != getattr(s, field):
            fail(f"{field} of the teacher {getattr(t, field)}, of the student {getattr(s, field)}")

def make_student(args, teacher, vocab_size):
    """A fresh student, or --student's model, with a new head if it has lost its own."""
    torch.manual_seed(args.seed)
    given = {"hidden_dropout_prob": args.dropout, "attention_probs_dropout_prob": args.dropout}
    if args.student:
        found = load(fetch(args.student, MODEL))
        student = MiniALBERT(Config(**vars(found.config) | given))
        student.load_state_dict(student.state_dict() | found.state_dict())
        return student
    C = args.hidden_size or (teacher.config.hidden_size if teacher else 128)
    like = vars(teacher.config) if teacher else {
        "vocab_size": vocab_size, "max_position_embeddings": max(128, args.length),
        "num_attention_heads": max(1, C // 32), "intermediate_size": 4 * C, "num_hidden_layers": 6}
    L, G = like["num_hidden_layers"], args.num_hidden_groups or 1
    R = args.num_hidden_layers or (6 if L == 12 else L)
    shape = {"hidden_size": C, "embedding_size": min(128, C // 2), "tie_decoder": True,
             "num_hidden_layers": R, "num_hidden_groups": G, "adapter_size": C // 16 * (G < R)}
    given |= {name: getattr(args, name) for name in SHAPE if getattr(args, name) is not None}
    student = MiniALBERT(Config(**like | shape | given))
    if args.init == "random":
        initialise(student, plain=True)
    return student

def fingerprint(model):
    return model and hashlib.sha256(b"".join(
        p.detach().cpu().numpy().tobytes() for p in model.parameters())).hexdigest()[:16]

def join(args, *positive):
    """(rank, rank on this machine, processes, device) under torchrun; rank 0 alone prints. Sets
    args.autocast, of --bf16. ValueError for a flag out of range: negative, or a positive one 0."""
    rank, local, world = map(int, map(os.environ.get, ("RANK", "LOCAL_RANK", "WORLD_SIZE"), "001"))
    positive += ("batch_size", "log_every", "save_every")
    for name, value in vars(args).items():
        least, most = 1e-9 * (name in positive), 1 if name == "dropout" else 2**31
        for x in value if type(value) is list else [value]:
            if type(x) in (int, float) and not least <= x < most:
                fail(f"--{name.replace('_', '-')} {x} is out of range")
    if args.device == "cuda" and not torch.cuda.is_available():
        fail("--device cuda: torch finds no GPU here")
    if args.batch_size < world:
        fail(f"--batch-size {args.batch_size} is less than one sequence for each of {world} ranks")
    gpu = torch.cuda.is_available() and args.device != "cpu"
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    args.bf16 = gpu if args.bf16 is None else args.bf16
    args.autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.bf16)
    if world > 1:
        dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(hours=12),
                                device_id=device if gpu else None)
    sys.stdout = open(os.devnull, "w") if rank > 0 else sys.stdout
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-1, -1), libc.mallopt(-4, 0)        # keep freed memory: no trimming, no mmap
    return rank, local, world, device

def run(args):
    rank, local, world, device = join(args, "steps", "length", "temperature")
    path = None if args.teacher == "none" else fetch(args.teacher, MODEL + TOKENIZER)
    teacher = path and load(path)
    tokenizer = Tokenizer(fetch(args.tokenizer or path or args.student, TOKENIZER))
    student = make_student(args, teacher, tokenizer.vocab_size)
    can = {"mlm"} if not teacher else {*WEIGHTS} - (set() if teacher.head else {"mlm", "output"})
    weights = {term: w for term in WEIGHTS if term in can and (w := vars(args)[f"{term}_weight"])}
    student.head = student.head if weights.keys() & {"mlm", "output"} else None      # untrained
    check(args, teacher, student, tokenizer, weights)
    if local > 0:                                        # the first process of a machine tokenises
        dist.barrier()
    tokens = open_corpus(args.corpus, tokenizer, args.cache)
    if world > 1 and local == 0:
        dist.barrier()
    batches = MaskedBatches(tokens.train, tokenizer, args.length, args.batch_size, args.seed)
    valid = MaskedBatches(tokens.valid, tokenizer, args.length, 32)
    losses = Distillation(student, teacher, batches, weights, args.temperature,
                          args.micro_batch_size, rank, world)
    facts = {name: vars(args)[name] for name in (*NAMES, "seed", "init", "temperature", "bf16")} | {
        "weights": weights, "shape": vars(student.config), "corpus": tokens.made_from,
        "teacher": fingerprint(teacher), "student": fingerprint(args.student and student)}
    if args.init == "teacher":
        ids = batches.sequences(np.arange(min(256, batches.count)))
        start_from_teacher(student, teacher, torch.from_numpy(ids))
    models = {name: m.to(device) for name, m in (("teacher", teacher), ("student", student)) if m}
    losses.terms = args.autocast(torch.compile(losses.terms) if args.compile else losses.terms)
    os.makedirs(args.out, exist_ok=True)
    describe(args, models, losses, valid)
    train(student, losses, args, facts,
          lambda: args.autocast(evaluate)(student, valid) if student.head else {},
          lambda: (save(student, args.out), tokenizer.save(args.out)), rank, world)
    report(args, models, tokenizer, valid)

def table(args, models, valid):
    print(f"{'':9}{'parameters':>12}{'applied':>12}{'MLM accuracy':>14}{'MLM loss':>10}")
    for name, model in models.items():
        counts, scores = count_parameters(model), "{accuracy:14.1%}{loss:10.3f}".format(
            **args.autocast(evaluate)(model, valid)) if model.head else "   no MLM head"
        print(f"{name:9}{counts['stored']:12,}{counts['applied']:12,}{scores}")

def describe(args, models, losses, valid):
    table(args, models, valid)
    def rehearse():                                      # of four times the first is the slowest
        for terms in losses(0):
            sum(terms.values()).backward()
        losses.student.zero_grad(set_to_none=True)
    eta = min(timeit.repeat(rehearse, repeat=4, number=1)) * args.steps / 60
    print(f"device   {args.autocast.device}, {'bfloat16' if args.bf16 else 'float32'}")
    print("layers  ", *(f"{r + 1}-{i + 1}" for r, i in losses.pairs), "(student-teacher)")
    print("loss    ", " + ".join(f"{weight:g} {term}" for term, weight in losses.weights.items()))
    print(f"steps    {args.steps:,} of {losses.tokens:,} tokens: {eta:.1f} min", flush=True)

def report(args, models, tokenizer, valid):
    table(args, models, valid)
    decode, middle = tokenizer.core.decode, valid.T // 2
    for row in valid.sequences(np.linspace(0, valid.count - 1, 4).astype(int)).tolist():
        words = [decode([token]) for token in row]       # of those that say something, the middle
        i = max(range(valid.T), key=lambda i: (min(len(words[i].strip("#")), 4), -abs(i - middle)))
        print(f"\n{decode(row[max(0, i - 9):i])} [MASK] {decode(row[i + 1:i + 9])}   ({words[i]})")
        row[i] = tokenizer.mask
        for name, model in models.items() if models["student"].head else ():
            with torch.inference_mode():
                h = model.eval()(*to(model, np.array([row])))[0][-1][0, i]
                print(f"    {name}: {decode(model.predict(h).topk(4).indices.tolist())}")
    print(f"\nThe student is in {args.out}. Next: python finetune.py --model {args.out}")

def main(argv=None):
    return command("distill.py", lambda: run(arguments(argv)))

if __name__ == "__main__":
    sys.exit(main())
