"""Speed and memory beside the authors' code and transformers: the tables of EXPERIMENTS.md.

    python bench/speed.py --authors DIR --authors-python VENV/bin/python        # all of them
    python bench/speed.py --rows step tuning --repeats 7                        # no authors' rows
    python bench/speed.py --quick                     # toy sizes: a test of this script

DIR is a checkout of github.com/nlpie-research/MiniALBERT, VENV has transformers 4.30, as it needs.
Each variant is a process of its own, on all cores. The variants take turns; a figure is the median
over the turns, with the smallest and the largest, and so is a ratio, taken within each turn: "over
authors'" is this row's figure over theirs. Dimensions: minialbert.py; L layers of the teacher.
"""
import argparse
import json
import lzma
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)                     # our modules are imported where used: not in VENV
BASE = dict(B=8, T=128, V=30522, E=128, C=768, H=12, F=3072, L=12, R=6)      # bert-base, student
SMALL = BASE | dict(V=16384, E=64, C=256, H=4, F=1024)                       # for how cost grows
TOY = BASE | dict(B=4, T=16, E=8, C=48, H=4, F=96, L=4, R=2)
GROWTH = {"T": (64, 128, 256, 512), "B": (2, 4, 8, 16), "R": (2, 3, 4, 6, 12),
          "V": (8192, 16384, 32768, 65536)}
EPOCH = 174_000 * 192 * 256                  # tokens of the authors' epoch of Wikipedia
TERMS = ("data", "teacher", "student", "losses", "backward", "reduce", "optimizer")

# ---- Workers: each builds a variant and returns measure(**request) -> {what: number} -------------
def seconds_of(function, times=1):
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(times):
        function()
    wait()
    return (time.perf_counter() - began) / times

def peak():
    """MB; getrusage's figure would begin with that of the process this one was forked from."""
    with open("/proc/self/status", encoding="ascii") as file:
        return int(re.search(r"VmHWM:\s+(\d+)", file.read())[1]) / 1024

class Clock:
    """Seconds by term: of what is timed, less the terms timed inside it."""
    def __init__(self):
        self.seconds, self.on = Counter(), False

    def timed(self, term, function):
        def inner(*args, **kwargs):
            if not self.on:
                return function(*args, **kwargs)
            inside, result = self.seconds.total(), []
            took = seconds_of(lambda: result.append(function(*args, **kwargs)))
            self.seconds[term] += took - (self.seconds.total() - inside)
            return result[0]
        return inner

def matrix_rate(s, device, dtype):
    """The most FLOPs per second of a product of matrices here, a layer's own or a large square."""
    large, rates = {"cpu": 2048, "cuda": 8192}[device.type], []
    for m, k, n in (s["B"] * s["T"], s["C"], s["F"]), (large, large, large):
        a, b = (torch.randn(size, k, device=device, dtype=dtype) for size in (m, n))
        rates += [2 * m * n * k / seconds_of(lambda: F.linear(a, b), 1 + 9 * a.is_cuda)
                  for _ in range(3)]
    return max(rates)

def useful_flops(s, tied):
    """Of a step's matrix products, 2 m n k each: the teacher's forward, thrice the student's; the
    vocabulary at masked places alone."""
    N, M, C, E, V = s["B"] * s["T"], s["B"] * round(0.15 * (s["T"] - 2)), s["C"], s["E"], s["V"]
    layer = 2 * N * (4 * C * C + 2 * C * s["F"]) + 4 * N * s["T"] * C
    teacher = s["L"] * layer + 2 * M * (C * C + C * V)
    head = 2 * M * (C * C + (C * E + E * V if tied else C * V))
    return teacher + 3 * (2 * N * E * C + s["R"] * (layer + 8 * N * C * (C // 16)) + head)

def our_model(s, kind="student", tied=True, head=True):
    from minialbert import Config, MiniALBERT
    bert = kind == "bert"
    layers, adapter = s["L" if bert else "R"], s["C"] // 16 * (kind == "student")
    return MiniALBERT(Config(s["V"], s["C" if bert else "E"], s["C"], layers, layers if bert else 1,
                             s["H"], s["F"], adapter_size=adapter, tie_decoder=tied), head)

def update(model, optimizer):
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

def our_join(**flags):
    """As our commands begin: what distill.join returns, and the flags with what it adds."""
    import distill
    flags = SimpleNamespace(**flags)
    return *distill.join(flags), flags

def our_step(shape, tied=True, device="cpu", compiled=False, bf16=None):
    """A step as in distill.train, on random tokens; of several processes if they are torchrun's."""
    import distill
    s, before, clock = shape, peak(), Clock()
    rank, _, world, device, flags = our_join(batch_size=s["B"], device=device, bf16=bf16)
    torch.manual_seed(0)
    teacher, student = our_model(s, "bert").to(device), our_model(s, tied=tied).to(device)
    tokens = np.random.default_rng(0).integers(5, s["V"], s["T"] * s["B"] * 40)
    words = SimpleNamespace(cls=1, sep=2, mask=3, special=np.arange(5), vocab_size=s["V"],
                            ordinary=np.arange(5, s["V"]))
    weights = {term: weight for term, weight in distill.WEIGHTS.items() if weight}
    losses = distill.Distillation(student, teacher, distill.MaskedBatches(
        tokens, words, s["T"], s["B"]), weights, rank=rank, world=world)
    optimizer, _ = distill.make_optimizer(student, SimpleNamespace(weight_decay=0.01))
    losses.batches = clock.timed("data", losses.batches)
    for name, model in ("teacher", teacher), ("student", student):
        if not compiled:                     # if so, the forward pass is one, the losses'
            model.forward = clock.timed(name, model.forward)
            model.predict = clock.timed(name, model.predict)
    losses.terms = clock.timed("losses", flags.autocast(
        torch.compile(losses.terms) if compiled else losses.terms))

    def reduce():
        for p in student.parameters() if world > 1 else ():
            dist.all_reduce(p.grad)

    def step():
        student.train()
        for terms in losses(0):
            loss = sum(weights[term] * value for term, value in terms.items())
            clock.timed("backward", loss.backward)()
        clock.timed("reduce", reduce)()
        clock.timed("optimizer", update)(student, optimizer)

    def measure(times=1, rate=False):
        dtype, clock.seconds = torch.bfloat16 if flags.bf16 else torch.float32, Counter()
        rates = [matrix_rate(s, device, dtype)] if rate else []
        clock.on = device.type == "cpu"      # to wait for a GPU at each term would slow the step
        seconds = seconds_of(step, times)
        rates += [matrix_rate(s, device, dtype)] if rate else [1.0]
        if not clock.on:
            clock.on = True
            seconds_of(step, times)
        return {"seconds": seconds, "rate": s["B"] / seconds, "above": peak() - before,
                "matrix": max(rates) / 1e9, "share": useful_flops(s, tied) / seconds / max(rates)
                } | {term: x / times for term, x in clock.seconds.items()}
    return measure

def authors_parts(s, directory, adapters=True, **others):
    """transformers, the authors' module, and a config as their checkpoints have it."""
    sys.path.insert(0, directory)
    import minialbert_modeling
    import transformers
    config = transformers.AlbertConfig(
        vocab_size=s["V"], embedding_size=s["E"], hidden_size=s["C"], num_hidden_layers=s["R"],
        num_attention_heads=s["H"], intermediate_size=s["F"], hidden_act="gelu",
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, **others)
    config.use_adapter, config.reduction_factor = adapters, 16
    torch.manual_seed(0)
    return transformers, minialbert_modeling, config

def authors_optimizer(ts, model):            # their Trainer's own AdamW, a loop over parameters
    params = [p for p in model.parameters() if p.requires_grad]
    return ts.AdamW(params, lr=1e-4, weight_decay=0.01, no_deprecation_warning=True)

def authors_step(shape, directory, device="cpu", bf16=False):
    """Their wrapper's step, told again: a teacher that has dropout, losses on what masked_select
    copies, logits at all places, and an embedding loss that is computed and not used."""
    s = shape
    ts, theirs, config = authors_parts(s, directory)
    teacher = ts.BertForMaskedLM(ts.BertConfig(
        vocab_size=s["V"], hidden_size=s["C"], num_hidden_layers=s["L"], num_attention_heads=s["H"],
        intermediate_size=s["F"])).requires_grad_(False).train().to(device)
    student = theirs.MiniAlbertForMaskedLM(config).train().to(device)
    optimizer, every = authors_optimizer(ts, student), s["L"] // s["R"]
    ids = torch.randint(5, s["V"], (s["B"], s["T"]), device=device)
    mask, chosen = torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    chosen[:, 1:1 + round(0.15 * (s["T"] - 2))] = True           # as many places as ours

    def pick(x, where):
        return torch.masked_select(x, where.expand_as(x).bool()).view(-1, x.shape[-1])

    def hidden_loss(x, y):
        x, y = pick(x, mask[..., None]), pick(y, mask[..., None])
        return F.cosine_embedding_loss(x, y, torch.ones(len(x), device=device))

    def attention_loss(x, y):
        where = mask[:, None].repeat(1, s["H"], 1)[..., None]
        x, y = pick(x, where) + 1e-12, pick(y, where) + 1e-12
        return F.kl_div(x.log(), y, reduction="mean")

    @torch.autocast(device, torch.bfloat16, enabled=bf16)
    def forward():
        masked = ids.masked_fill(chosen, 3)
        out = student(masked, mask, labels=ids.masked_fill(~chosen, -100))
        with torch.no_grad():
            goal = teacher(masked, mask, output_hidden_states=True, output_attentions=True)
        hidden_loss(out.hidden_states[0], goal.hidden_states[0])
        attention = sum(map(attention_loss, out.attentions, goal.attentions[every - 1::every]))
        hidden = sum(map(hidden_loss, out.hidden_states[1:], goal.hidden_states[every::every]))
        x, y = pick(out.logits, chosen[..., None]), pick(goal.logits, chosen[..., None])
        output = F.kl_div(x.log_softmax(-1), y.softmax(-1), reduction="batchmean")
        return out.loss + 3 * (attention + hidden) + 5 * output

    def step():
        forward().backward()
        update(student, optimizer)

    def measure(times=1, rate=False):
        seconds = seconds_of(step, times)
        return {"seconds": seconds, "rate": s["B"] / seconds}
    return measure

def our_inference(path, shape):
    """As our commands evaluate: with distill.join's malloc, which keeps what is freed."""
    from minialbert import load
    our_join(batch_size=1, device="cpu", bf16=None)
    return forwards(load(path), shape)

def transformers_inference(path, shape, model, attention):
    import transformers
    return forwards(getattr(transformers, model).from_pretrained(
        path, add_pooling_layer=False, attn_implementation=attention), shape)

def authors_inference(path, shape, directory):
    from minialbert import read_safetensors
    tensors, state = read_safetensors(os.path.join(path, "model.safetensors"))[0], {}
    _, theirs, config = authors_parts(shape, directory, any("adapters" in n for n in tensors))
    for name, tensor in tensors.items():
        name = name if "adapters" in name else f"albert.{name}"
        state[name.replace("albert.encoder.embedding_hidden_mapping_in", "projector")] = tensor
    model = theirs.MiniAlbertModel(config)
    model.load_state_dict(model.state_dict() | state)            # theirs has a pooler moreover
    return forwards(model, shape, ones=True)

def forwards(model, shape, ones=False):
    """measure() of a forward pass, and of its output for a padded batch. ones: it needs a mask."""
    @torch.inference_mode()
    def measure(batch=3, length=7, check=False):
        model.eval()
        ids = torch.from_numpy(np.random.default_rng(0).integers(5, shape["V"], (batch, length)))
        mask = torch.ones_like(ids) if ones else None
        times = max(1, min(10, 4096 // (batch * length)))
        if check:
            mask = torch.arange(length) < torch.tensor([[length], [length - 2], [length - 3]])
            x = model(ids, mask.long() if ones else mask)[0]
            x = x[-1] if isinstance(x, list) else x              # ours: all hidden states
            return {"values": x[mask].flatten().tolist()}
        return {"seconds": seconds_of(lambda: model(ids, mask), times)}
    return measure

def our_features(path):
    """Features and their task from a file of [[ids, label]]."""
    from finetune import Feature, Task
    with open(path, encoding="utf-8") as file:
        rows = json.load(file)
    return [Feature(np.array(ids, np.int32), 1, i, [0], [0], [label])
            for i, (ids, label) in enumerate(rows)], Task(
        "sst2", "classification", ["0", "1"], ["accuracy"], 128, 128, False, 0.0, 1.0, False)

def our_predictions(how, path, features):
    """A set of sentences by finetune.outputs, or in file order, or so and padded to 128 tokens."""
    from finetune import build, collate, outputs, to
    our_join(batch_size=64, device="cpu", bf16=None)
    features, task = our_features(features)
    model, _ = build(path, task)

    @torch.inference_mode()
    def in_order():
        for at in range(0, len(features), 64):
            *inputs, _ = to(model.eval(), *collate(features[at:at + 64], 0, False))
            width = 128 - inputs[0].shape[1] if "128" in how else 0
            model(*(F.pad(x, (0, width)) for x in inputs))
    return lambda: {"seconds": seconds_of(
        in_order if "order" in how else lambda: outputs(model, features, 0))}

def our_tuning(mode, path, features, bf16=None):
    """An epoch as in finetune.tune, without its evaluation."""
    import distill
    import finetune
    *_, flags = our_join(batch_size=32, device="cpu", bf16=bf16)
    features, task = our_features(features)
    model, _ = finetune.build(path, task, mode, 0.1, finetune.collate(features[:64], 0, False))
    for name, p in model.encoder.named_parameters():
        p.requires_grad_(mode == "all" or mode == "adapters" and "_adapters." in name)
    losses = finetune.TaskLoss(model, task, features, 32, 0, 0)
    losses.terms = flags.autocast(losses.terms)
    optimizer, _ = distill.make_optimizer(model, SimpleNamespace(weight_decay=0.01))

    def epoch():
        model.train()
        for step in range(losses.epoch):
            for terms in losses(step):
                terms["task"].backward()
            update(model, optimizer)
    return lambda: {"rate": len(features) / seconds_of(epoch)}

def authors_tuning(mode, features, shape, directory):
    """An epoch of their script's Trainer: in random order, padded to the longest of a batch."""
    ts, theirs, config = authors_parts(shape, directory, num_labels=2,
                                       classifier_dropout=None)
    model = theirs.MiniAlbertForSequenceClassification(config).train()
    if mode == "adapters":
        model.trainAdaptersOnly()
    optimizer = authors_optimizer(ts, model)
    with open(features, encoding="utf-8") as file:
        rows = [(torch.tensor(ids), label) for ids, label in json.load(file)]

    def epoch():
        for batch in torch.randperm(len(rows)).split(32):
            texts, labels = zip(*(rows[i] for i in batch))
            ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
            model(ids, (ids > 0).long(), 0 * ids, labels=torch.tensor(labels)).loss.backward()
            update(model, optimizer)
    return lambda: {"rate": len(rows) / seconds_of(epoch)}

def our_tokens(how, text, vocabulary):
    """A pass over a text: data.tokenise, or a method of `tokenizers` on lines in memory."""
    import data
    tokenizer, found = data.Tokenizer(vocabulary), {}
    with open(text, encoding="utf-8") as file:
        batches = [] if how == "tokenise" else [
            [line.strip() for line in lines] for lines in iter(lambda: file.readlines(2**20), [])]

    def run():
        if how != "tokenise":
            encode = getattr(tokenizer.core, how)
            found["tokens"] = sum(len(e) for lines in batches
                                  for e in encode(lines, add_special_tokens=False))
        else:
            file = data.tokenise([text], tokenizer, text + ".bin")
            found["tokens"] = len(file.train) + len(file.valid)
            os.remove(text + ".bin")
    return lambda: {"seconds": (t := seconds_of(run)), "rate": found["tokens"] / t / 1e6}

def work(name, settings):
    """A worker's main: a request a line on standard input, an answer a line on standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)                            # what a library prints is no answer
    measure, gpu = globals()[name](**settings), torch.cuda.is_initialized()
    for line in sys.stdin:
        if gpu:
            torch.cuda.empty_cache(), torch.cuda.reset_peak_memory_stats()
        found = measure(**json.loads(line)) | {"MB": peak()}
        found |= {"GPU MB": torch.cuda.max_memory_allocated() / 2**20} if gpu else {}
        print(json.dumps(found), file=answers, flush=True)

# ---- Variants in turns ---------------------------------------------------------------------------
class Worker:
    """A variant in a process of its own, which the function named builds."""
    def __init__(self, args, name, env=None, **settings):
        python, quiet = sys.executable, {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore",
                                         "TRANSFORMERS_VERBOSITY": "error"}
        if name.startswith("authors"):
            python, settings["directory"] = args.authors_python, args.authors
        self.process = subprocess.Popen(
            [python, os.path.abspath(__file__), "--worker", name, json.dumps(settings)], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | quiet | (env or {}))

    def send(self, request):
        if self.process.poll() is None:
            print(json.dumps(request), file=self.process.stdin, flush=True)

    def receive(self):
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"a worker failed, as it says above: {self.process.args[3:]}")
        return json.loads(line)

def start(args, variants):
    """{variant: (function, its settings)} -> {variant: Worker}; without --authors not theirs."""
    return {name: Worker(args, function, **settings) for name, (function, settings)
            in variants.items() if args.authors or not function.startswith("authors")}

def turns(workers, count, together=False, **request):
    """{variant: its answers}, one in each turn; together: all at once."""
    answers = {name: [] for name in workers}
    for _ in range(count):
        for group in [workers] if together else [[name] for name in workers]:
            for name in group:
                workers[name].send(request)
            for name in group:
                answers[name].append(workers[name].receive())
    return answers

def close(workers):
    for worker in workers.values():
        worker.process.communicate()

def compare(args, variants, **request):
    """{variant: its answers}, after a turn that does not count."""
    workers = start(args, variants)
    turns(workers, 1, **request)
    answers = turns(workers, args.repeats, **request)
    close(workers)
    return answers

def heading(title, *columns):
    print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)

def sizes(s):
    return " ".join(f"{name}={size}" for name, size in s.items())

def row(*cells):
    print(f"| {' | '.join(map(str, cells))} |", flush=True)

def short(x):
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"

def spread(answers, key="seconds", scale=1.0):
    x = sorted(scale * answer[key] for answer in answers)
    return f"{short(statistics.median(x))} ({short(x[0])} to {short(x[-1])})" if x else "-"

def judged(value, target):
    sign, limit = target.split() if target else ("", 0)
    met = value >= float(limit) if sign == ">=" else value <= float(limit)
    return f"{target}, {'met' if met else 'missed'}" if target else "-"

def versus(over, under, target="", key="seconds"):
    """Two cells: the ratio of two variants' answers, and whether it meets a target like >= 1.5."""
    x = [{key: a[key] / b[key]} for a, b in zip(over or [], under or [])]
    middle = x and statistics.median(y[key] for y in x)
    return (spread(x, key), judged(middle, target)) if x else ("-", target or "-")

# ---- The sections --------------------------------------------------------------------------------
def step_table(title, answers, memory, *targets):
    theirs, ours = answers.get("authors'"), [n for n in answers if n.startswith("ours")]
    heading(title, "variant", "s/step", "sequences/s", "over authors'", "target", memory,
            "over authors'", "target", "GFLOP/s of matrices", "of which useful", "target")
    for name, found in answers.items():
        faster, smaller, share = targets if name in ours else [""] * 3
        row(name, spread(found), spread(found, "rate"), *versus(found, theirs, faster, "rate"),
            spread(found, memory), *versus(found, theirs, smaller, memory), *(
                [spread(found, "matrix"), spread(found, "share"), judged(statistics.median(
                    a["share"] for a in found), share)] if name in ours else "---"))
    heading(f"{title.split(':')[0]}: where the time goes, ms", "variant", *TERMS)
    for name in ours:
        ms = [1000 * statistics.median(a.get(term, 0.0) for a in answers[name]) for term in TERMS]
        row(name, *(f"{x:.1f}" for x in ms))

def step(args, folder):
    s = TOY if args.quick else BASE
    found = compare(args, {
        "ours": ("our_step", dict(shape=s)), "authors'": ("authors_step", dict(shape=s)),
        "ours, --no-tie-decoder": ("our_step", dict(shape=s, tied=False)),
        "ours, --bf16": ("our_step", dict(shape=s, bf16=True)),
        "authors', bfloat16": ("authors_step", dict(shape=s, bf16=True))} | (
        {} if args.quick else {
            "ours, --compile": ("our_step", dict(shape=s, compiled=True)),
            "ours, --bf16 --compile": ("our_step", dict(shape=s, compiled=True, bf16=True))}),
        rate=True)
    step_table(f"1. Distillation step on the CPU: {sizes(s)}", found, "MB",
               ">= 4.5", "<= 0.7", ">= 0.85")
    args.cpu = s["T"] * statistics.median(a["rate"] for a in found["ours"])      # tokens/s

def gpu(args, folder):
    if not torch.cuda.is_available():
        return print("\n### 2. Distillation step on a GPU\n\nOwed: torch finds no GPU.", flush=True)
    s = TOY if args.quick else BASE | {"B": args.gpu_batch, "T": 256}
    theirs = TOY if args.quick else s | {"B": 48}                # what each of their four cards had
    found = compare(args, {
        "ours": ("our_step", dict(shape=s, device="cuda")),
        "authors'": ("authors_step", dict(shape=theirs, device="cuda")),
        "ours, --compile": ("our_step", dict(shape=s, device="cuda", compiled=True))},
        times=10, rate=True)
    card = torch.cuda.get_device_name()
    step_table(f"2. Distillation step on {card}, ours in bfloat16: {sizes(s)}; the authors' "
               f"B={theirs['B']}", found, "GPU MB", ">= 10", "", ">= 0.45")
    args.rate = statistics.median(a["rate"] for a in found["ours, --compile"])

def models_of(s, folder):
    """{kind: folder} of a random BERT and of students without and with adapters."""
    from minialbert import save
    paths = {kind: os.path.join(folder, kind) for kind in ("bert", "albert", "student")}
    for kind, path in paths.items():
        if not os.path.isdir(path):
            torch.manual_seed(0)
            save(our_model(s, kind, head=False), path)
    return paths

def features_of(args, folder, most, split="dev"):
    """A file of [[ids, label]] from SST-2; without its files, as long as there, but random."""
    from data import Tokenizer
    path, out = os.path.join(args.data, "glue", "SST-2", f"{split}.tsv"), f"{folder}/{most}.json"
    rng = np.random.default_rng(0)
    found = [(rng.integers(5, 4096, n).tolist(), i % 2) for i, n in enumerate(
        rng.normal(25, 12, most).clip(4, 66).astype(int))]
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            rows = [line.rstrip("\n").split("\t") for line in file][1:]
        rows, tokenizer = rows[::max(1, len(rows) // most)][:most], Tokenizer(vocabulary(args))
        found = [([tokenizer.cls, *ids[:126], tokenizer.sep], int(label)) for ids, (_, label)
                 in zip(tokenizer.encode([text for text, _ in rows]), rows)]
    with open(out, "w", encoding="utf-8") as file:
        json.dump(found, file)
    return out, f"{len(found)} {'' if os.path.isfile(path) else 'made-up '}sentences, SST-2 {split}"

def vocabulary(args):
    path = os.path.join(args.data, "vocab", "bert-base-uncased")
    return path if os.path.isdir(path) else os.path.join(ROOT, "assets", "teacher")

def inference(args, folder):
    s, lengths = (TOY, (8, 16)) if args.quick else (BASE, (32, 128, 512))
    paths = models_of(s, folder)
    heading(f"3. Inference: {sizes(s)}", "model", "batch x length", "ours, ms", "the fastest other",
            "its ms", "over ours", "target")
    for kind, path in paths.items():
        model = {"bert": "BertModel", "albert": "AlbertModel"}.get(kind)
        common = dict(path=path, shape=s)
        workers = start(args, {"ours": ("our_inference", common)} | {
            f"{model}, {how}": ("transformers_inference", common | dict(model=model, attention=how))
            for how in ("sdpa", "eager") if model} | (
            {"authors'": ("authors_inference", common)} if kind != "bert" else {}))
        outputs = turns(workers, 1, check=True)
        for name in outputs:
            x, y = (np.array(outputs[n][0]["values"]) for n in (name, "ours"))
            assert np.abs(x - y).max() < 1e-4, f"{name} differs from our {kind}"
        for batch, length in ((batch, length) for batch in (1, 32) for length in lengths):
            shape = dict(batch=batch, length=length)
            first = turns(workers, 1, **shape)
            best = min({*first} - {"ours"}, key=lambda n: first[n][0]["seconds"], default="-")
            pair = {name: workers[name] for name in ("ours", best) if name in workers}
            found = turns(pair, args.repeats, **shape)
            theirs = found.get(best, [])
            row(kind, f"{batch} x {length}", spread(found["ours"], scale=1e3), best, spread(
                theirs, scale=1e3), *versus(theirs, found["ours"], ">= 1"))
        close(workers)
    features, what = features_of(args, folder, 32 if args.quick else 872)
    ways = ("outputs, sorted by length", "file order", "file order, padded to 128")
    found = compare(args, {how: ("our_predictions", dict(
        how=how, path=paths["student"], features=features)) for how in ways})
    heading(f"3. Mixed lengths: {what}, in batches of 64", "how", "s", "over sorted", "target")
    for how in ways:
        target = ">= 1.5" * (how == ways[1])
        row(how, spread(found[how]), *versus(found[how], found[ways[0]], target))

def tuning(args, folder):
    s = TOY if args.quick else BASE
    path, (features, what) = models_of(s, folder)["student"], features_of(
        args, folder, 64 if args.quick else 224, args.split)
    both = [(mode, who) for mode in ("all", "adapters", "head") for who in ("ours", "authors'")]
    found = compare(args, {f"{who}, {mode}": (
        "our_tuning", dict(mode=mode, path=path, features=features)) if who == "ours" else (
        "authors_tuning", dict(mode=mode, features=features, shape=s)) for mode, who in both[:5]}
        | {"ours, all, --bf16": ("our_tuning", dict(
            mode="all", path=path, features=features, bf16=True))})
    heading(f"4. Tuning on the CPU: {what}, in batches of 32", "variant", "sentences/s",
            "over authors' same", "target", "over ours, all", "target", "MB")
    for name, x in found.items():
        theirs = found.get(f"authors', {name.split(', ')[1]}") if "ours" in name else None
        row(name, spread(x, "rate"), *versus(x, theirs, ">= 1.3" * (name == "ours, all"), "rate"),
            *versus(x, found["ours, all"], ">= 1.4" * (name == "ours, adapters"), "rate"),
            spread(x, "MB"))

def write_text(args, path, megabytes):
    """So much of the text in --data, again and again where there is no more of it."""
    with open(path, "wb") as out:
        while out.tell() < megabytes * 2**20:
            with lzma.open(os.path.join(args.data, "text", "enwiki.txt.xz")) as file:
                while out.tell() < megabytes * 2**20 and (piece := file.read(2**20)):
                    out.write(piece)

def tokenise(args, folder):
    text, most = f"{folder}/text.txt", 1 if args.quick else min(55, args.megabytes)
    if not os.path.isdir(os.path.join(args.data, "text")):
        return print(f"\n### 5. Tokenising\n\nLeft out: no text/ in {args.data}.", flush=True)
    write_text(args, text, most)
    settings = dict(text=text, vocabulary=vocabulary(args))
    found = compare(args, {how: ("our_tokens", settings | {"how": how}) for how in (
        "tokenise", "encode_batch", "encode_batch_fast")})
    if args.megabytes > most and not args.quick:
        write_text(args, text, args.megabytes)
        large = start(args, {"tokenise, one run": ("our_tokens", settings | {"how": "tokenise"})})
        found |= turns(large, 1)
        close(large)
    heading("5. Tokenising", "how", "MB of text", "s", "million tokens/s", "over encode_batch",
            "target", "MB", "target")
    for how, x in found.items():
        alone = found["encode_batch"] if "one run" not in how else []
        row(how, most if alone else args.megabytes, spread(x), spread(x, "rate"),
            *versus(x, alone, ">= 0.9" * (how == "tokenise"), "rate"), spread(x, "MB"),
            judged(x[-1]["MB"], "<= 600" * ("tokenise" in how)))

def startup(args, folder):
    def run(*command, until=None):
        """Seconds until the command ends, or prints a line that begins with `until`."""
        began, found, said = time.perf_counter(), None, []
        with subprocess.Popen([sys.executable, *command], cwd=ROOT, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            for line in process.stdout:
                said.append(line)
                if until and line.startswith(until):
                    found = time.perf_counter() - began
        assert process.returncode == 0, "".join([str(command), "\n", *said[-99:]])
        return {"seconds": found or time.perf_counter() - began}

    heading("6. Start", "what", "s", "over import torch", "target")
    torch_alone, with_help = zip(*[(run("-c", "import torch"), run("distill.py", "--help"))
                                   for _ in range(args.repeats + 1)][1:])
    row("import torch", spread(torch_alone), "-", "-")
    row("distill.py --help", spread(with_help), *versus(with_help, torch_alone))
    flags = ["distill.py", "--overwrite", "--cache", f"{folder}/cache", "--out", f"{folder}/out"]
    times = [run(*flags, "--steps", "1", until="steps") for _ in range(args.repeats + 1)]
    whole = run(*flags, *["--steps", "3"][:2 * args.quick])
    suite = run("-m", "pytest", "-q", *["--collect-only"][:args.quick])
    for what, x, target in (("before step 1, no cache", times[:1], "<= 30"),
                            ("before step 1, cached", times[1:], "<= 30"),
                            ("python distill.py, cached, one run", [whole], "<= 180"),
                            ("the test suite, one run", [suite], "<= 90")):
        row(what, spread(x), "-", judged(statistics.median(a["seconds"] for a in x), target))

def growth(args, folder):
    s, small = (TOY, {"T": (8, 16)}) if args.quick else (SMALL, GROWTH)
    heading(f"7. Growth of a step on the CPU, medians: {sizes(s)}", "of", "over", "s", "exponent",
            "MB above an idle process's", "exponent")
    for axis, xs in small.items():
        found = compare(args, {x: ("our_step", dict(shape=s | {axis: x})) for x in xs})
        cells = []
        for key in ("seconds", "above"):
            y = [statistics.median(a[key] for a in found[x]) for x in xs]
            exponent = np.polyfit(np.log(xs), np.log(y), 1)[0]
            cells += [" ".join(map(short, y)), f"{exponent:.2f}"]
        row(axis, " ".join(map(str, xs)), *cells)
    processes(args, TOY if args.quick else BASE)
    heading(f"7. One epoch of Wikipedia, {EPOCH:,} tokens; on eight, were communication free",
            "rate measured on", "tokens/s", "hours on one", "on eight")
    for name, rate in (("this CPU, section 1", args.cpu), ("a GPU, 192 x 256", args.rate * 256)):
        hours = EPOCH / rate / 3600 if rate else 0
        row(name, *([f"{rate:,.0f}", f"{hours:,.1f}", f"{hours / 8:,.1f}"] if rate else
                    ["owed: not measured in this run", "-", "-"]))

def processes(args, s):
    heading(f"7. gloo processes, a thread each, {os.cpu_count()} cores: {sizes(s)}", "processes",
            "s/step", "in all_reduce, its waiting too", "share")
    for world in (2, 4)[:2 - args.quick]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]),
                   "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        workers = start(args, {rank: ("our_step", dict(shape=s, env=env | {"RANK": str(rank)}))
                               for rank in range(world)})
        found = turns(workers, args.repeats + 1, together=True)
        close(workers)
        found = [answer | {"part": answer["reduce"] / answer["seconds"]}
                 for answers in found.values() for answer in answers[1:]]
        row(world, spread(found), spread(found, "reduce"), spread(found, "part"))

SECTIONS = {"step": step, "gpu": gpu, "inference": inference, "tuning": tuning,
            "tokenise": tokenise, "growth": growth, "start": startup}

def main():
    if sys.argv[1:2] == ["--worker"]:
        return work(sys.argv[2], json.loads(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--rows", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    add("--repeats", type=int, default=5)
    add("--authors", metavar="DIR", type=os.path.abspath, help="a checkout of the authors' code")
    add("--authors-python", metavar="PATH", default=sys.executable, help="with transformers 4.30")
    add("--data", metavar="DIR", type=os.path.abspath, help="with glue/ text/ vocab/",
        default=os.path.join(ROOT, "..", "shared", "data"))
    add("--split", choices=("dev", "train"), default="dev", help="of SST-2, to tune on")
    add("--megabytes", type=int, default=55, help="of text; more than 55: once more, with so much")
    add("--gpu-batch", type=int, default=192, help="sequences of 256 tokens")
    add("--rate", type=float, default=0.0, help="of a GPU, in sequences of 256 tokens a second")
    add("--quick", action="store_true", help="toy sizes: a test of this script")
    args = parser.parse_args()
    args.cpu, args.repeats = 0.0, 1 if args.quick else args.repeats
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
          f"medians of {args.repeats}, smallest to largest in brackets; the authors' rows are "
          f"{'measured' if args.authors else 'left out: no --authors'}.", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.rows:
            SECTIONS[name](args, folder)

if __name__ == "__main__":
    main()
