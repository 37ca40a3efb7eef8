"""Our variants for bench/speed.py, and those of transformers; see speed_worker.py.

The folder of the program that is measured has to be on PYTHONPATH.
Our variants call the program's own functions, in a process that is set up as our commands set it
up: where distill.py and finetune.py keep freed memory, they do, too (distill.keep_freed_memory,
which set_up_processes calls).
"""
import json
import os
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

import data
import distill
import finetune
import tasks
from checkpoint import load, save
from minialbert import Config, MiniALBERT, merge_corrections
from speed_worker import forward_measure, peak_megabytes, seconds_of, serve


# ---- A step of distillation -------------------------------------------------------------

class Clock:
    """A clock that adds up the seconds of each term of a step: {term: seconds}.

    lap(term) is called when a term ends. It adds the time since the call before it to this term.
    """

    def __init__(self):
        self.restart()

    def restart(self):
        """Forget all times. The first term begins now."""
        self.seconds = {}
        self.last_lap = time.perf_counter()

    def lap(self, term):
        """Add the time since the last lap to this term, which has just ended."""
        now = time.perf_counter()
        self.seconds[term] = self.seconds.get(term, 0.0) + now - self.last_lap
        self.last_lap = now


class ClockedModel(MiniALBERT):
    """A model that adds its time to a term of a Clock: "teacher" or "student"."""

    def __init__(self, config, clock, term):
        super().__init__(config)
        self.clock = clock
        self.term = term

    def forward(self, ids, mask=None, segments=None, maps=()):
        """Do as MiniALBERT does."""
        # The time since the batch was drawn, or since the other model was done, belongs to the
        # losses.
        self.clock.lap("losses")
        result = super().forward(ids, mask, segments, maps)
        self.clock.lap(self.term)
        return result

    def predict(self, hidden):
        """Do as MiniALBERT does."""
        self.clock.lap("losses")
        logits = super().predict(hidden)
        self.clock.lap(self.term)
        return logits


class ClockedBatches(data.MaskedBatches):
    """Batches that add their time to the term "data" of a Clock."""

    def __init__(self, tokens, tokenizer, T, batch_size, clock):
        super().__init__(tokens, tokenizer, T, batch_size)
        self.clock = clock

    def batch(self, step):
        """Do as MaskedBatches does."""
        result = super().batch(step)
        self.clock.lap("data")
        return result


class ClockedObjective:
    """The objective for training_step: a Distillation with a Clock.

    The time of a micro-batch's losses that no other term has goes to "losses", and that of its
    backward pass to "backward".
    """

    def __init__(self, distillation, clock):
        self.distillation = distillation
        self.loss_weights = distillation.loss_weights
        self.clock = clock

    def losses_of_micro_batches(self, step):
        """Do as Distillation does."""
        for losses in self.distillation.losses_of_micro_batches(step):
            self.clock.lap("losses")
            yield losses                                 # training_step calls backward() now
            self.clock.lap("backward")                   # and then asks for the next micro-batch


def our_step(shape, tie_decoder=True, bf16=False, compiled=False, with_matrix_rate=False,
             correction_rank=0, dropout=0.1):
    """Build a step: distill.training_step on random tokens. If RANK and WORLD_SIZE are set, as
    torchrun sets them, this process is one of several that make the step together.

    compiled: with torch.compile
    correction_rank: 0, or the rank of corrections that the student has in place of adapters
    dropout: the probability of the student's dropout; the authors' is 0.1
    with_matrix_rate: measure before and after the step how fast this machine multiplies matrices
    """
    idle_megabytes = peak_megabytes()
    processes = distill.set_up_processes("cpu")
    torch.manual_seed(0)
    clock = Clock()
    teacher_config = make_config(shape, "bert")
    student_config = make_config(shape, "student", tie_decoder, correction_rank, dropout)
    if compiled:
        # The forward pass is compiled as a whole, so no clock can stand inside it.
        teacher = MiniALBERT(teacher_config)
        student = MiniALBERT(student_config)
    else:
        teacher = ClockedModel(teacher_config, clock, "teacher")
        student = ClockedModel(student_config, clock, "student")
    if bf16:
        distill.cast_linear_layers(teacher)              # as distill.py does
    # These are not the authors' weights, but that makes no difference to the time.
    weights = {name: weight for name, weight in distill.LOSS_WEIGHTS.items() if weight > 0}
    distillation = distill.Distillation(
        student, teacher, random_batches(shape, clock), weights, processes=processes, bf16=bf16,
        compile_losses=compiled)
    objective = ClockedObjective(distillation, clock)
    options = training_options()
    optimizer = distill.make_optimizer(student, options.weight_decay)

    def before_update(*arguments_of_hook):
        # Between the backward pass and here, training_step sums gradients and clips them.
        clock.lap("reduce, clip")

    optimizer.register_step_pre_hook(before_update)

    def step():
        # It is always step 0, which has always the same batch. So every turn has the same work.
        distill.training_step(student, objective, optimizer, 0, options, processes)
        clock.lap("optimizer")

    def measure():
        if with_matrix_rate:
            rate_before = matrix_rate(shape, bf16)
        clock.restart()
        seconds = seconds_of(step)
        answer = {"seconds": seconds, "rate": shape.B / seconds,
                  "MB above idle": peak_megabytes() - idle_megabytes}
        answer.update(clock.seconds)
        if with_matrix_rate:
            rate = max(rate_before, matrix_rate(shape, bf16))
            answer["matrix"] = rate / 1e9
            operations = useful_operations(shape, student_config)
            answer["share"] = operations / seconds / rate
        return answer

    return measure


def make_config(shape, kind, tie_decoder=True, correction_rank=0, dropout=0.1):
    """Make the Config of a kind of model: "bert" is the teacher, "student" has adapters or, if a
    correction_rank is given, corrections, "albert" is a student with neither."""
    num_layers = shape.R
    num_groups = 1
    E = shape.E
    adapter_size = 0
    if kind == "bert":
        num_layers = shape.L
        num_groups = shape.L
        E = shape.C
    elif kind == "student" and correction_rank == 0:
        adapter_size = shape.C // 16
    return Config(
        vocab_size=shape.V, embedding_size=E, hidden_size=shape.C, num_hidden_layers=num_layers,
        num_hidden_groups=num_groups, num_attention_heads=shape.H, intermediate_size=shape.F,
        adapter_size=adapter_size, correction_rank=correction_rank, tie_decoder=tie_decoder,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)


def random_batches(shape, clock):
    """Make masked batches of random tokens. The numbers below 5 are those of special tokens."""
    tokenizer = SimpleNamespace(
        cls_id=1, sep_id=2, mask_id=3, special_ids=np.arange(5),
        ordinary_ids=np.arange(5, shape.V), vocab_size=shape.V)
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, shape.V, 40 * shape.B * shape.T)
    return ClockedBatches(tokens, tokenizer, shape.T, shape.B, clock)


def training_options():
    """Make options for distill.training_step. After a million steps the learning rate would be 0,
    so in the few steps of a test it hardly changes."""
    return distill.TrainingOptions(
        steps=1_000_000, lr=1e-4, warmup=0, weight_decay=0.01, seed=0, log_every=1, eval_every=0,
        save_every=1, out="", resume=False)


def matrix_rate(shape, bf16):
    """Measure the most operations per second of a product of matrices on this machine.

    Two products are tried three times each: one of a layer's own, and one of large squares. The
    fastest counts. A product of (m, k) and (k, n) has m k n multiplications and as many additions.
    """
    dtype = torch.float32
    if bf16:
        dtype = torch.bfloat16
    rates = []
    for m, k, n in [(shape.B * shape.T, shape.C, shape.F), (2048, 2048, 2048)]:
        x = torch.randn(m, k, dtype=dtype)
        weight = torch.randn(n, k, dtype=dtype)
        for _ in range(3):
            seconds = seconds_of(partial(F.linear, x, weight))
            rates.append(2 * m * k * n / seconds)
    return max(rates)


def useful_operations(shape, student_config):
    """Count the operations of the matrix products that a step cannot do without.

    The teacher has a forward pass. The student has a forward pass and a backward pass with twice
    as many operations. The logits over the vocabulary are counted at the masked places alone.
    Corrections and the elastic loss do not count.
    """
    N = shape.B * shape.T                                # tokens
    M = shape.B * shape.num_masked                       # masked places
    C = shape.C
    E = shape.E
    V = shape.V
    projections = 2 * N * 4 * C * C                      # query, key, value, output
    attention = 4 * N * shape.T * C                      # scores, and the mixture of values
    feed_forward = 2 * N * 2 * C * shape.F
    layer = projections + attention + feed_forward
    adapters = 2 * N * 4 * C * student_config.adapter_size           # two, each down and up
    decoder = 2 * M * C * V
    student_decoder = decoder
    if student_config.tie_decoder:
        student_decoder = 2 * M * (C * E + E * V)
    dense_of_head = 2 * M * C * C
    teacher = shape.L * layer + dense_of_head + decoder
    embeddings = 2 * N * E * C                           # the projection from E to C
    student = embeddings + shape.R * (layer + adapters) + dense_of_head + student_decoder
    return teacher + 3 * student


# ---- Inference --------------------------------------------------------------------------

def save_models(shape, folder):
    """Save a random BERT and random students without and with adapters -> {kind: its folder}."""
    paths = {}
    for kind in ("bert", "albert", "student"):
        paths[kind] = os.path.join(folder, kind)
        torch.manual_seed(0)
        save(MiniALBERT(make_config(shape, kind), head=False), paths[kind])
    return paths


def save_student_with_corrections(shape, folder):
    """Save a random student with corrections of rank C / 8 twice: as it is, and with the
    corrections merged into the matrices -> {kind: its folder}."""
    config = make_config(shape, "student", correction_rank=shape.C // 8)
    torch.manual_seed(0)
    student = MiniALBERT(config, head=False)
    models = {"corrections": student, "merged": merge_corrections(student)}
    paths = {}
    for kind, model in models.items():
        paths[kind] = os.path.join(folder, kind)
        save(model, paths[kind])
    return paths


def our_inference(path, shape):
    """Build our forward pass, of the encoder without any head.

    As in our programs, the C library keeps freed memory. In the variants of others it does not,
    because their programs do not ask for it.
    """
    distill.keep_freed_memory()
    return forward_measure(load(path), shape.V)


def transformers_inference(path, shape, model, attention):
    """Build the forward pass of a class of transformers, with an implementation of attention."""
    import transformers                                  # only this variant needs it
    model_class = getattr(transformers, model)
    loaded = model_class.from_pretrained(
        path, add_pooling_layer=False, attn_implementation=attention)
    return forward_measure(loaded, shape.V)


def our_predictions(how, path, sentences):
    """Build the prediction of sentences in batches of 64.

    how: which sentences share a batch, and how long the batch is
        sorted: sentences of similar length, by finetune.predict_logits
        in_file_order: neighbours in the file; a batch is as long as its longest sentence
        padded: neighbours in the file; every batch is 128 tokens long
    """
    distill.keep_freed_memory()
    features = read_features(sentences)
    model = finetune.load_classifier(path, sst2_task())
    model.eval()

    @torch.inference_mode()
    def predict_in_file_order():
        for begin in range(0, len(features), 64):
            batch = features[begin:begin + 64]
            ids, mask, segments = finetune.collate(batch)
            ids = torch.from_numpy(ids)                  # (B, T)
            mask = torch.from_numpy(mask)
            segments = torch.from_numpy(segments)
            if how == "padded":
                missing = 128 - ids.shape[1]
                ids = F.pad(ids, (0, missing))
                mask = F.pad(mask, (0, missing))
                segments = F.pad(segments, (0, missing))
            model(ids, mask, segments)

    def predict_sorted():
        finetune.predict_logits(model, features)

    def measure():
        if how == "sorted":
            return {"seconds": seconds_of(predict_sorted)}
        return {"seconds": seconds_of(predict_in_file_order)}

    return measure


# ---- Tuning -----------------------------------------------------------------------------

def write_sentences(tsv, vocabulary, path, most):
    """Tokenise sentences of a file of SST-2 and write them as [[token numbers, label], ...] -> how
    many there are: all, or `most` of them, evenly spread over the file."""
    tokenizer = data.Tokenizer(vocabulary)
    with open(tsv, encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
    lines = lines[1:]                                    # the first has the names of the columns
    num_sentences = min(most, len(lines))
    rows = []
    for i in range(num_sentences):
        number = i * len(lines) // num_sentences         # evenly spread over the file
        text, label = lines[number].split("\t")
        tokens = tokenizer.encode([text])[0]
        tokens = tokens[:126]                            # with [CLS] and [SEP] at most 128
        ids = [tokenizer.cls_id] + tokens + [tokenizer.sep_id]
        rows.append([ids, int(label)])
    with open(path, "w", encoding="utf-8") as file:
        json.dump(rows, file)
    return len(rows)


def read_features(sentences):
    """Read a file of write_sentences -> Features."""
    with open(sentences, encoding="utf-8") as file:
        rows = json.load(file)
    features = []
    for number, (ids, label) in enumerate(rows):
        features.append(finetune.Feature(
            np.array(ids, np.int32), prefix_length=1, example_number=number, positions=[0],
            stands_for=[0], labels=[label]))
    return features


def sst2_task():
    """Make the Task that finetune.py makes of SST-2, without reading its files."""
    return tasks.Task(
        name="sst2", kind="classification", labels=["0", "1"], metrics=["accuracy"], length=128,
        stride=128, pair=False, mean=0.0, sd=1.0, unanswerable=False)


def our_tuning(mode, path, sentences, bf16=False):
    """Build an epoch of fine-tuning: each step is distill.training_step, as in finetune.py. The
    dropout is 0.1, as in the authors' program.

    mode: what is trained: "all", "adapters" (and the head) or "head" (alone)
    sentences: a file of write_sentences
    """
    processes = distill.set_up_processes("cpu")
    features = read_features(sentences)
    model = finetune.load_classifier(path, sst2_task(), mode, dropout=0.1)
    task_loss = finetune.TaskLoss(model, features, batch_size=32, seed=0, bf16=bf16)
    options = training_options()
    optimizer = distill.make_optimizer(model, options.weight_decay)

    def epoch():
        for step in range(task_loss.steps_per_epoch):
            distill.training_step(
                model, task_loss, optimizer, step, options, processes)

    def measure():
        return {"rate": len(features) / seconds_of(epoch)}

    return measure


# ---- Tokenising -------------------------------------------------------------------------

def our_tokens(how, text, vocabulary):
    """Build the tokenising of a text file.

    how: "tokenise", data.tokenise from file to file, or the name of a method of the tokenizers
        library, which gets lines that are in memory already
    """
    tokenizer = data.Tokenizer(vocabulary)
    out = f"{text}.bin"
    batches = []
    if how != "tokenise":
        batches = read_lines_in_batches(text)

    def count_tokens_written():
        token_file = data.tokenise([text], tokenizer, out)
        os.remove(out)
        return len(token_file.train_tokens) + len(token_file.valid_tokens)

    def count_tokens_encoded():
        encode = getattr(tokenizer.backend, how)
        num_tokens = 0
        for lines in batches:
            for encoding in encode(lines, add_special_tokens=False):
                num_tokens += len(encoding)
        return num_tokens

    def measure():
        begin = time.perf_counter()
        if how == "tokenise":
            num_tokens = count_tokens_written()
        else:
            num_tokens = count_tokens_encoded()
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "rate": num_tokens / seconds / 1e6}

    return measure


def read_lines_in_batches(path):
    """Read a text -> lists of its lines, each of about a million characters.

    encode_batch gets such a list, as in data.tokenise; it works on its lines in parallel.
    """
    batches = []
    with open(path, encoding="utf-8") as file:
        while True:
            lines = file.readlines(1 << 20)
            if not lines:
                return batches
            batches.append([line.strip() for line in lines])


if __name__ == "__main__":
    serve([our_step, our_inference, transformers_inference, our_predictions, our_tuning,
           our_tokens])
