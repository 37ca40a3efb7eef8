"""Fine-tune a student, or the BERT that it came from, on a task of language
(arXiv 2210.06425).

    python finetune.py
        the student just distilled, on the embedded task: two minutes
    python finetune.py --model out/student --task sst2 --data SST-2/
        a task of GLUE, from a folder with its files
    python finetune.py --task tagging --train train.tsv --dev devel.tsv
        files of your own, here in the CoNLL format
    python finetune.py --task classification --train a.csv --dev b.csv \\
        --text title --label topic --adapters-only
        a table, by the names of its columns; just the adapters are trained
    python finetune.py --task qa --train train-v2.0.json --distill-from out/qa
        SQuAD; a fine-tuned teacher is learned from, too
    python finetune.py --model out/sst2 --predict "a gripping, beautiful film"
        what a fine-tuned model says of a text

The task head is one linear layer on the last hidden states. Classification and
regression read it at [CLS], tagging at the first token of each word, question
answering at every token of the context: does the answer begin, or end, here?
"""
import math
import os
import sys
import time
import zlib
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from checkpoint import (MODEL_FILES, fetch, load, parsing, read_json, read_safetensors, save,
                        write_json, write_safetensors)
from data import (NEEDED_FOR_TOKENIZER, OPTIONAL_FOR_TOKENIZER, CommandParser, Tokenizer,
                  docs_on_this_machine, run_command)
from distill import (TrainingOptions, add_run_flags, autocast, check_out, device_of, fingerprint,
                     first_process_first, number, output_loss, resume_settings, set_up_processes,
                     split_batch, to_device, train, uses_bf16, whole_number)
from minialbert import MiniALBERT
from tasks import (GLUE, KINDS, TAGGED_WORD, Example, Task, download_glue, entities,
                   hold_out_a_tenth, lines_of, majority, make_task, read_code_task, read_glue,
                   read_own_files, score, write_predictions)


# ---- The model --------------------------------------------------------------------------

class Classifier(nn.Module):
    """An encoder and a task head: dropout and one linear layer on the last hidden states.

    It has n outputs: a class each, one number, a tag each, or, for questions, two: how well an
    answer begins and how well it ends at a token. As in the authors' code there is no pooler.
    """

    def __init__(self, encoder, task, dropout=0.0):
        super().__init__()
        self.encoder = encoder
        self.is_qa = task.kind == "qa"
        self.dropout = nn.Dropout(dropout)
        num_outputs = len(task.labels)
        if task.kind == "regression":
            num_outputs = 1
        elif task.kind == "qa":
            num_outputs = 2
        self.output = nn.Linear(encoder.config.hidden_size, num_outputs)
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)

    def forward(self, ids, mask, segments):
        """Compute logits (B, T, n); only those at a Feature's positions mean something.

        ids, mask, segments (B, T): see collate.
        """
        hidden, _ = self.encoder(ids, mask, segments)
        logits = self.output(self.dropout(hidden[-1])).float()                # (B, T, n)
        if self.is_qa:
            # An answer is in the context (segment 1), or at [CLS], which means "no answer".
            position = torch.arange(ids.shape[1], device=ids.device)
            in_question = (segments == 0) & (position > 0)
            logits = logits.masked_fill(in_question[:, :, None], -1e4)
        return logits


# ---- From examples to tokens ------------------------------------------------------------

class Feature(NamedTuple):
    """A sequence for the model, [CLS] text [SEP] or [CLS] first [SEP] second [SEP]."""
    ids: np.ndarray         # (T,) token numbers
    num_before: int         # tokens before the text, or before the second one
    example: int            # the number of the example that it is (a part) of
    positions: list         # where in ids the head is read
    about: list             # of each position: in tagging the number of the word; in qa its first
                            # and last character in the context; else 0
    labels: list            # of each position; in qa the two positions of the answer, [0, 0] if
                            # it is not in this window


def encode(task, examples, tokenizer):
    """Yield the Features of examples, in their order.

    A text to classify or to score gives one Feature and is truncated. A sentence to tag and the
    context of a question are cut into as many windows as it takes.
    """
    label_numbers = {label: i for i, label in enumerate(task.labels)}
    chunk_size = 1000                                    # examples that are tokenised at once
    for begin in range(0, len(examples), chunk_size):
        chunk = examples[begin:begin + chunk_size]
        prefixes, texts = tokenise_examples(task, chunk, tokenizer)
        for i, example in enumerate(chunk):
            number_of_example = begin + i
            if task.kind == "tagging":
                yield from tagging_features(task, number_of_example, example, prefixes[i],
                                            texts[i], tokenizer, label_numbers)
            elif task.kind == "qa":
                yield from answer_features(task, number_of_example, example, prefixes[i],
                                           texts[i], tokenizer)
            else:
                yield text_feature(task, number_of_example, example, prefixes[i], texts[i],
                                   tokenizer, label_numbers)


def tokenise_examples(task, examples, tokenizer):
    """Tokenise examples -> prefixes, for each the token numbers that come before its (second)
    text, and Encodings of the tokenizers library, for each that of this text."""
    texts = []
    first_texts = []
    for example in examples:
        if example.second_text is None:
            first_texts.append("")
            texts.append(example.text)
        else:
            first_texts.append(example.text)
            texts.append(example.second_text)
    encodings = tokenizer.backend.encode_batch(
        texts, is_pretokenized=task.kind == "tagging", add_special_tokens=False)
    prefixes = []
    for example, first_ids, encoding in zip(examples, tokenizer.encode(first_texts), encodings):
        if example.second_text is None:
            prefixes.append([tokenizer.cls_id])
            continue
        room = task.length - 3                           # for both texts: [CLS], [SEP], [SEP]
        if task.kind == "qa":
            first_room = room // 3                       # most of it is for the context
        else:
            # The longer text is truncated first: each may have a half, and what the other leaves.
            first_room = room - min(len(encoding.ids), room // 2)
        prefixes.append([tokenizer.cls_id] + first_ids[:first_room] + [tokenizer.sep_id])
    return prefixes, encodings


def join_ids(prefix, window, tokenizer):
    """Join the tokens of a Feature: what comes before, a window of the text, [SEP]."""
    return np.array(prefix + window + [tokenizer.sep_id], np.int32)


def text_feature(task, example_number, example, prefix, text, tokenizer, label_numbers):
    """Make the Feature of a text, or two, to classify or to score: the head is read at [CLS]."""
    room = task.length - len(prefix) - 1
    ids = join_ids(prefix, text.ids[:room], tokenizer)
    label = example.label
    if task.kind == "classification" and label is not None:
        label = label_numbers[label]
    return Feature(ids, len(prefix), example_number, positions=[0], about=[0], labels=[label])


def tagging_features(task, example_number, sentence, prefix, text, tokenizer, label_numbers):
    """Yield the Features of a sentence to tag: the head is read at the first token of each word.

    A word of which the tokenizer leaves nothing has no token, so it is not asked about.
    """
    words = text.word_ids                                # of each token the number of its word
    room = task.length - len(prefix) - 1
    for begin in range(0, max(1, len(words)), room):
        end = min(begin + room, len(words))
        first_tokens = [k for k in range(begin, end) if k == 0 or words[k] != words[k - 1]]
        about = [words[k] for k in first_tokens]
        labels = [0] * len(about)
        if sentence.label:
            labels = [label_numbers[sentence.label[word]] for word in about]
        positions = [len(prefix) + k - begin for k in first_tokens]
        ids = join_ids(prefix, text.ids[begin:end], tokenizer)
        yield Feature(ids, len(prefix), example_number, positions, about, labels)


def answer_features(task, example_number, question, prefix, context, tokenizer):
    """Yield the Features of a question: windows of its context that share task.stride tokens."""
    words = context.word_ids
    answer_tokens = tokens_of_answer(question, context.offsets)
    room = task.length - len(prefix) - 1
    overlap = min(task.stride, room // 2)
    for begin in range(0, max(1, len(words) - overlap), room - overlap):
        end = min(begin + room, len(words))
        about = [context.word_to_chars(words[k]) for k in range(begin, end)]
        positions = [len(prefix) + k - begin for k in range(begin, end)]
        labels = [0, 0]                                  # [CLS]: no answer in this window
        if answer_tokens and begin <= answer_tokens[0] and answer_tokens[-1] < end:
            first = len(prefix) + answer_tokens[0] - begin
            last = len(prefix) + answer_tokens[-1] - begin
            labels = [first, last]
        ids = join_ids(prefix, context.ids[begin:end], tokenizer)
        yield Feature(ids, len(prefix), example_number, positions, about, labels)


def tokens_of_answer(question, offsets):
    """List the tokens of the context that the first right answer is made of; none if there is no
    answer. offsets: the first character of each token and one past its last."""
    if not question.label:
        return []
    answer_begin, answer = question.label[0]
    answer_end = answer_begin + len(answer)
    tokens = []
    for token, (begin, end) in enumerate(offsets):
        if begin < answer_end and end > answer_begin:    # the token and the answer overlap
            tokens.append(token)
    return tokens


def collate(features, pad_id, is_qa):
    """Put Features into one batch of numpy arrays.

    Returns ids (B, T); mask (B, T), True at real tokens; segments (B, T), 1 in the second text;
    labels (B, T), nan where the head is not read, or in qa (B, 2).
    """
    B = len(features)
    T = max([len(feature.ids) for feature in features])
    ids = np.full((B, T), pad_id)
    mask = np.zeros((B, T), bool)
    segments = np.zeros((B, T), np.int64)
    labels = np.full((B, 2 if is_qa else T), np.nan, np.float32)
    for row, feature in enumerate(features):
        length = len(feature.ids)
        ids[row, :length] = feature.ids
        mask[row, :length] = True
        if feature.num_before > 1:                       # more than [CLS]: there is a first text
            segments[row, feature.num_before:length] = 1
        if is_qa:
            labels[row] = feature.labels
        else:
            labels[row, feature.positions] = feature.labels
    return ids, mask, segments, labels


# ---- The loss ---------------------------------------------------------------------------

class TaskLoss:
    """What train() minimises: the mean over all labelled positions in a batch of the cross-entropy,
    or of the squared error, and, with a fine-tuned teacher, of the distance from its outputs.

    A batch has sequences of like lengths and is a function of (seed, step); an epoch has each
    Feature once. teacher: a Classifier for the same labels, teacher_task: its Task.
    """

    def __init__(self, model, task, features, batch_size, seed, pad_id, teacher=None,
                 teacher_task=None, micro_batch_size=0, processes=None, bf16=False):
        self.model = model
        self.task = task
        self.features = features
        self.batch_size = batch_size
        self.seed = seed
        self.pad_id = pad_id
        self.teacher = teacher
        self.teacher_task = teacher_task
        self.bf16 = bf16
        self.micro_batch_bounds = split_batch(batch_size, micro_batch_size, processes)
        self.weights = {"task": 1.0}
        if teacher is not None:
            self.weights["distill"] = 1.0
        self.lengths = np.array([len(feature.ids) for feature in features])
        self.tokens_per_step = int(self.lengths.mean() * batch_size)          # about
        self.steps_per_epoch = math.ceil(len(features) / batch_size)
        self.last_epoch = 0                              # the epoch that last_plan is of
        self.last_plan = self.plan(0)

    def plan(self, epoch):
        """List the batches of an epoch, each an array of numbers of Features.

        The Features are shuffled and sorted by length within pools of 50 batches, so that a batch
        has little padding; then the order of the batches is shuffled.
        """
        rng = np.random.default_rng([self.seed, 3, epoch])
        order = rng.permutation(len(self.features))
        pool_size = 50 * self.batch_size
        pools = []
        for begin in range(0, len(order), pool_size):
            pool = order[begin:begin + pool_size]
            pools.append(pool[np.argsort(self.lengths[pool], kind="stable")])
        order = np.concatenate(pools)
        batches = []
        for begin in range(0, len(order), self.batch_size):
            batches.append(order[begin:begin + self.batch_size])
        return [batches[i] for i in rng.permutation(len(batches))]

    def padding(self):
        """Return the share of padding in the batches of the first epoch."""
        num_places = sum(len(batch) * self.lengths[batch].max() for batch in self.plan(0))
        return 1 - self.lengths.sum() / num_places

    def batch(self, step):
        """Return the Features of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self.last_epoch:
            self.last_epoch = epoch
            self.last_plan = self.plan(epoch)
        return [self.features[i] for i in self.last_plan[place]]

    def micro_batches(self, step):
        """Yield the losses {name: scalar} of each micro-batch that this process has in a step.

        Where the last batch of an epoch is short, a micro-batch may be short, or have no rows.
        """
        ids, mask, segments, labels = collate(self.batch(step), self.pad_id, self.model.is_qa)
        num_labelled = np.count_nonzero(~np.isnan(labels))
        device = device_of(self.model)
        for begin, end in self.micro_batch_bounds:
            part = to_device(device, ids[begin:end], mask[begin:end], segments[begin:end],
                             labels[begin:end])
            with autocast(device, self.bf16):
                losses = self.losses(*part, num_labelled)
            yield losses

    def losses(self, ids, mask, segments, labels, num_labelled):
        """Compute a micro-batch's part of each loss: {name: scalar}; the tensors are collate's."""
        outputs, targets = labelled_rows(self.model(ids, mask, segments), labels, self.model.is_qa)
        is_regression = self.task.kind == "regression"
        losses = {}
        if is_regression:
            targets = (targets[:, None] - self.task.mean) / self.task.sd      # (N, 1)
            losses["task"] = F.mse_loss(outputs, targets, reduction="sum") / num_labelled
        else:
            cross_entropy = F.cross_entropy(outputs, targets.long(), reduction="sum")
            losses["task"] = cross_entropy / num_labelled
        if self.teacher is not None:
            with torch.no_grad():
                teacher_logits = self.teacher(ids, mask, segments)
            teacher_outputs, _ = labelled_rows(teacher_logits, labels, self.model.is_qa)
            if is_regression:
                # From the teacher's unit to the number itself, and from that to the student's unit.
                numbers = teacher_outputs * self.teacher_task.sd + self.teacher_task.mean
                teacher_outputs = (numbers - self.task.mean) / self.task.sd
                distance = F.mse_loss(outputs, teacher_outputs, reduction="sum")
            else:
                distance = output_loss(outputs, teacher_outputs)
            losses["distill"] = distance / num_labelled
        return losses


def labelled_rows(logits, labels, is_qa):
    """Select what is compared: the logits (N, n) of N labelled positions and their labels (N,).

    In qa each sequence gives two rows, for the begin and the end of the answer, with a logit for
    each token: (2 B, T) and (2 B,).
    """
    if is_qa:
        return logits.transpose(1, 2).flatten(0, 1), labels.flatten()
    is_labelled = ~labels.isnan()
    return logits[is_labelled], labels[is_labelled]


# ---- New adapters in a trained encoder --------------------------------------------------

@torch.no_grad()
def fit_adapters_to_identity(encoder, ids, mask):
    """Fit the LayerNorm of each new adapter so that the adapter changes little on ids (B, T).

    A new adapter is LayerNorm(x), which is not x. In each channel the LayerNorm's weight and bias
    become the line of least squares from the normalised values to the values that came in.
    """
    def fit(adapter, inputs):
        values = inputs[0][mask]                         # (N, C), the N real tokens
        normalised = F.layer_norm(values, values.shape[1:])
        deviation = normalised - normalised.mean(0)
        covariance = (deviation * (values - values.mean(0))).mean(0)          # (C,)
        slope = covariance / normalised.var(0, correction=0)
        adapter.norm.weight.copy_(slope)
        adapter.norm.bias.copy_(values.mean(0) - slope * normalised.mean(0))

    # A hook is called with an adapter's input just before the adapter runs: each is fitted to
    # what those before it give after they were fitted.
    hooks = []
    for adapter in list(encoder.attention_adapters) + list(encoder.output_adapters):
        hooks.append(adapter.register_forward_pre_hook(fit))
    encoder.eval()
    encoder(ids, mask)
    for hook in hooks:
        hook.remove()


# ---- Predictions ------------------------------------------------------------------------

@torch.inference_mode()
def predict_logits(model, features, pad_id, batch_size=64):
    """Compute the logits of each Feature at its positions -> a list of arrays (positions, n).

    In qa the row of [CLS] comes before the others. Sequences of like lengths run together.
    """
    model.eval()
    logits_of_feature = {}
    order = sorted(range(len(features)), key=lambda i: -len(features[i].ids))
    for begin in range(0, len(order), batch_size):
        numbers = order[begin:begin + batch_size]
        arrays = collate([features[i] for i in numbers], pad_id, model.is_qa)
        ids, mask, segments, _ = to_device(device_of(model), *arrays)
        logits = model(ids, mask, segments).cpu().numpy()                     # (B, T, n)
        for row, i in enumerate(numbers):
            positions = features[i].positions
            if model.is_qa:
                positions = [0] + positions
            logits_of_feature[i] = logits[row, positions]
    return [logits_of_feature[i] for i in range(len(features))]


def decode(task, examples, features, logits):
    """Turn logits into predictions: for each example (prediction, {label: probability}).

    A prediction is a label, a number, a list of tags, or the text of an answer. Only labels have
    probabilities; for the others the dict is empty.
    """
    if task.kind == "classification":
        return [decode_label(task, rows[0]) for rows in logits]
    if task.kind == "regression":
        return [(float(rows[0, 0]) * task.sd + task.mean, {}) for rows in logits]
    if task.kind == "tagging":
        return [(tags, {}) for tags in decode_tags(task, examples, features, logits)]
    return [(answer, {}) for answer in decode_answers(task, examples, features, logits)]


def decode_label(task, logits):
    """Turn the logits (n,) of one text into its label and the probabilities of all labels."""
    exponentials = np.exp(logits - logits.max())
    probabilities = exponentials / exponentials.sum()
    label = task.labels[probabilities.argmax()]
    return label, dict(zip(task.labels, probabilities.tolist()))


def decode_tags(task, examples, features, logits):
    """List the tags of each sentence; a word that has no token is O."""
    tags = [["O"] * len(example.text) for example in examples]
    for feature, rows in zip(features, logits):
        for word, label_number in zip(feature.about, rows.argmax(1)):
            tags[feature.example][word] = task.labels[label_number]
    return tags


def decode_answers(task, examples, features, logits, longest=30):
    """List the answer to each question: over all windows, the span of at most `longest` tokens
    with the highest sum of the logit of its begin and the logit of its end.

    Where there may be no answer, it is "" if [CLS] has a higher sum in every window.
    """
    best_score = [-np.inf] * len(examples)
    best_text = [""] * len(examples)
    no_answer_score = [np.inf] * len(examples)
    for feature, rows in zip(features, logits):
        i = feature.example
        no_answer_score[i] = min(no_answer_score[i], rows[0].sum())
        if not feature.positions:                        # the context has no tokens
            continue
        begin = rows[1:, 0]                              # (positions,)
        end = rows[1:, 1]
        scores = begin[:, None] + end[None, :]           # (first token, last token)
        tokens = np.arange(len(begin))
        length = tokens[None, :] - tokens[:, None] + 1
        scores[(length < 1) | (length > longest)] = -np.inf
        first, last = np.unravel_index(scores.argmax(), scores.shape)
        if scores[first, last] > best_score[i]:
            best_score[i] = scores[first, last]
            first_character = feature.about[first][0]
            end_character = feature.about[last][1]
            best_text[i] = examples[i].second_text[first_character:end_character]
    if task.unanswerable:
        for i in range(len(examples)):
            if no_answer_score[i] > best_score[i]:
                best_text[i] = ""
    return best_text


# ---- From here on: plumbing. Fine-tuned models on disk ----------------------------------
# The encoder is saved as always; head.safetensors and task.json are beside it.

def save_classifier(path, model, task, tokenizer):
    """Write a fine-tuned model, its Task and its tokenizer into the folder path."""
    save(model.encoder, path)
    tokenizer.save(path)
    write_safetensors(model.output.state_dict(), os.path.join(path, "head.safetensors"))
    write_json(os.path.join(path, "task.json"), asdict(task))


def load_task(path):
    """Read the Task of a fine-tuned model; None if the folder holds none."""
    task_path = os.path.join(path, "task.json")
    if not os.path.isfile(task_path):
        return None
    facts = read_json(task_path)
    with parsing(task_path, "a task"):
        return Task(**facts)


def load_encoder(path, mode="all", dropout=0.0, sample=None):
    """Load the encoder in a folder, without its masked-language-model head.

    mode: "random" draws its weights anew; "adapters" adds adapters if it has none, fitted to the
    sample (ids, mask), two arrays (B, T)
    """
    found = load(path)
    config = replace(found.config, hidden_dropout_prob=dropout,
                     attention_probs_dropout_prob=dropout)
    adds_adapters = mode == "adapters" and config.adapter_size == 0
    if adds_adapters:
        config = replace(config, adapter_size=max(1, config.hidden_size // 16))
    encoder = MiniALBERT(config, head=False)
    if mode != "random":
        weights = encoder.state_dict()                   # of these the new adapters stay
        for name, tensor in found.state_dict().items():
            if not name.startswith("head."):
                weights[name] = tensor
        encoder.load_state_dict(weights)
    if adds_adapters:
        ids, mask = sample
        fit_adapters_to_identity(encoder, torch.from_numpy(ids), torch.from_numpy(mask))
    return encoder


def load_classifier(path, task=None, mode="all", dropout=0.0, sample=None):
    """Load a model for a task -> (Classifier, Task). mode and sample: see load_encoder.

    Its head is the saved one if the folder holds a fine-tuned model, which must be for the same
    labels; else, or if mode is "random", a new one. task=None: the folder must hold one.
    """
    encoder = load_encoder(path, mode, dropout, sample)
    saved_task = load_task(path)
    if saved_task is None and task is None:
        raise ValueError(f"{path}: not a fine-tuned model: it has no task.json")
    if saved_task is None or mode == "random":
        return Classifier(encoder, task, dropout), task
    if task is None:
        task = saved_task
    check_same_task(path, saved_task, task)
    model = Classifier(encoder, saved_task, dropout)
    head_path = os.path.join(path, "head.safetensors")
    head, _ = read_safetensors(head_path)
    with parsing(head_path, f"a head for {len(saved_task.labels)} labels"):
        model.output.load_state_dict(head)
    return model, task


def check_same_task(path, saved_task, task):
    """Raise ValueError if a fine-tuned model is for another kind of task or other labels."""
    if saved_task.kind != task.kind or saved_task.labels != task.labels:
        raise ValueError(f"{path} was fine-tuned for {saved_task.kind} "
                         f"{' '.join(saved_task.labels):.300}, not for {task.kind} "
                         f"{' '.join(task.labels):.300}; without its task.json it is an encoder")


# ---- One run ----------------------------------------------------------------------------

class Split(NamedTuple):
    """The examples of train, of a dev or of a test set, and their Features."""
    examples: list
    features: list


class Result(NamedTuple):
    """How a model did on a split."""
    scores: dict            # {metric: value}
    predictions: list       # of decode()


class Evaluation:
    """Measures a model on all splits but train; .results has the last {split: Result}."""

    def __init__(self, model, task, splits, pad_id, bf16):
        self.model = model
        self.task = task
        self.splits = splits
        self.pad_id = pad_id
        self.bf16 = bf16
        self.results = None

    def measure(self):
        """Measure the model -> its scores {metric: value} on the first dev set."""
        self.results = {}
        for name, split in self.splits.items():
            if name != "train":
                self.results[name] = evaluate_split(self.model, self.task, split, self.pad_id,
                                                    self.bf16)
        return self.results[first_dev_split(self.splits)].scores


def evaluate_split(model, task, split, pad_id, bf16):
    """Predict the labels of a Split and score them -> Result."""
    with autocast(device_of(model), bf16):
        logits = predict_logits(model, split.features, pad_id)
    predictions = decode(task, split.examples, split.features, logits)
    guesses = [prediction for prediction, _ in predictions]
    return Result(score(task, split.examples, guesses), predictions)


def first_dev_split(splits):
    """Return the name of the first dev set; MNLI has two."""
    return [name for name in splits if name.startswith("dev")][0]


class Tuning(NamedTuple):
    """What all runs of a command have in common."""
    args: object
    model_path: str
    out: str
    task: Task
    tokenizer: Tokenizer
    teacher: object         # a Classifier, or None
    teacher_task: object    # its Task
    processes: object
    bf16: bool


def fine_tune(tuning, splits, mode, seed, lr):
    """Make one run -> (the model, {split: Result}).

    mode says what is trained: all; adapters (and the head); head (alone); random, which is all,
    from an encoder that knows nothing.
    """
    args = tuning.args
    task = tuning.task
    features = splits["train"].features
    pad_id = tuning.tokenizer.pad_id
    torch.manual_seed(seed)
    ids, mask, _, _ = collate(features[:64], pad_id, task.kind == "qa")
    model, _ = load_classifier(tuning.model_path, task, mode, args.dropout, sample=(ids, mask))
    model.to(tuning.processes.device)
    for name, parameter in model.encoder.named_parameters():
        is_adapter = "_adapters." in name
        parameter.requires_grad_(mode in ("all", "random") or (mode == "adapters" and is_adapter))
    task_loss = TaskLoss(model, task, features, args.batch_size, seed, pad_id, tuning.teacher,
                         tuning.teacher_task, args.micro_batch_size, tuning.processes, tuning.bf16)
    steps = args.steps
    if steps is None:
        steps = max(1, round(args.epochs * task_loss.steps_per_epoch))
    out = os.path.join(tuning.out, f"{mode}-{len(features)}-lr{lr:g}-seed{seed}")
    os.makedirs(out, exist_ok=True)
    options = TrainingOptions(
        steps=steps, lr=lr, warmup=steps // 10, weight_decay=args.weight_decay, seed=seed,
        log_every=args.log_every, eval_every=args.eval_every, save_every=args.save_every, out=out,
        resume=args.resume)
    settings = resume_settings(options, args.batch_size, args.dropout, tuning.bf16)
    settings["model"] = fingerprint(model)
    settings["teacher"] = fingerprint(tuning.teacher)
    settings["data"] = hash_features(features)

    evaluation = Evaluation(model, task, splits, pad_id, tuning.bf16)
    begin = time.perf_counter()
    train(model, task_loss, options, settings, evaluation.measure, do_nothing, tuning.processes)
    seconds = time.perf_counter() - begin
    if evaluation.results is None:      # not rank 0, or the run had been finished before
        evaluation.measure()
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{out}: {num_trained:,} parameters, {steps:,} steps, {seconds:.0f} s with evaluation, "
          f"{task_loss.padding():.1%} padding", flush=True)
    for name, result in evaluation.results.items():
        different = {str(prediction) for prediction, _ in result.predictions}
        if len(different) == 1 and len(result.predictions) > 1:
            print(f"warning: all predictions for {name} are the same")
    return model, evaluation.results


def do_nothing():
    """Save no model with the checkpoints of a run: run() saves the one of the first seed."""


def hash_features(features):
    """Compute a hash of everything in Features, to recognise the data when a run is resumed."""
    digest = 0
    for feature in features:
        digest = zlib.crc32(feature.ids.tobytes() + repr(feature[1:]).encode(), digest)
    return digest


def best_rates_first(tuning, examples, mode, seed, rates):
    """Order learning rates by their score on a tenth of the training set, which is held out for
    this; the dev set is not looked at. The best comes first."""
    held_out, rest = hold_out_a_tenth(examples)
    splits = encode_splits(tuning.task, {"dev": held_out, "train": rest}, tuning.tokenizer)
    score_of_rate = {}
    for lr in rates:
        _, results = fine_tune(tuning, splits, mode, seed, lr)
        score_of_rate[lr] = results["dev"].scores[tuning.task.metrics[0]]
    ordered = sorted(rates, key=lambda lr: -score_of_rate[lr])
    print(f"learning rates, the best on a tenth of the training set first: {ordered}")
    return ordered


def encode_splits(task, splits, tokenizer):
    """Turn {split: examples} into {split: Split}."""
    encoded = {}
    for name, examples in splits.items():
        encoded[name] = Split(examples, list(encode(task, examples, tokenizer)))
    return encoded


# ---- The command line: flags ------------------------------------------------------------

def arguments(argv):
    """Parse the command line."""
    parser = CommandParser("finetune.py", __doc__)
    group = parser.add_argument_group("model")
    group.add_argument("--model", default="out/student", metavar="DIR",
                       help="what is fine-tuned: a folder or a Hugging Face name of a student or a "
                       "BERT (default: out/student)")
    group.add_argument("--distill-from", metavar="DIR",
                       help="a model that was fine-tuned for this task, to learn from, too")
    group.add_argument("--predict", metavar="TEXT_OR_FILE",
                       help="print what the fine-tuned --model says of a text, or of each line of "
                       "a file; a tab separates two texts, such as a question and its context. "
                       "Nothing is trained")
    group = parser.add_argument_group("data")
    group.add_argument("--task", choices=list(GLUE) + list(KINDS) + ["code"], metavar="TASK",
                       help=f"a task of GLUE: {', '.join(GLUE)}; or the kind of your own files: "
                       f"{', '.join(KINDS)}; or code, the embedded task: which words of the "
                       "documentation were marked as code (default: code, three times: the whole "
                       "model, its adapters alone, the whole from noise)")
    group.add_argument("--data", metavar="DIR",
                       help="folder with the files of the GLUE task (default: they are downloaded)")
    group.add_argument("--train", nargs="+", metavar="FILE",
                       help="files of yours to train on: .tsv, .csv or .jsonl with named columns; "
                       "for tagging CoNLL; for qa SQuAD")
    group.add_argument("--dev", nargs="+", metavar="FILE",
                       help="files to measure on (default: a tenth of --train is held out)")
    group.add_argument("--test", nargs="+", metavar="FILE", help="more files to measure on")
    group.add_argument("--text", nargs="+", default=["text"], metavar="COLUMN",
                       help="the column of the text, or the two of two texts (default: text)")
    group.add_argument("--label", default="label", metavar="COLUMN",
                       help="the column of the label (default: label)")
    group.add_argument("--length", type=whole_number(8), metavar="T",
                       help="tokens in a sequence at most (default: 128, for qa 384, but no more "
                       "than the model's positions)")
    group.add_argument("--stride", type=whole_number(1), default=128, metavar="N",
                       help="qa: tokens that two neighbouring windows of a context share "
                       "(default: 128)")
    group = parser.add_argument_group("training")
    what = group.add_mutually_exclusive_group()
    what.add_argument("--adapters-only", dest="mode", action="store_const", const="adapters",
                      default="all", help="train the adapters and the head alone; adapters are "
                      "added if the model has none")
    what.add_argument("--freeze", dest="mode", action="store_const", const="head",
                      help="train the head alone")
    group.add_argument("--lr", type=number(), nargs="+", metavar="X",
                       help="highest learning rate; of several the best is chosen on a tenth of "
                       "the training set (default: 5e-5, with a frozen encoder 1e-3, both times "
                       "768 / C)")
    group.add_argument("--seeds", type=whole_number(1), default=1, metavar="N",
                       help="number of runs, with seeds from --seed on; mean and deviation are "
                       "printed (default: 1)")
    group.add_argument("--epochs", type=number(above=0), default=3.0, metavar="X",
                       help="how often the training set is gone through (default: 3)")
    group.add_argument("--steps", type=whole_number(1), metavar="N",
                       help="steps to train (default: as --epochs says; 200 without --task)")
    group.add_argument("--batch-size", type=whole_number(1), default=32, metavar="B",
                       help="sequences in a step, of all processes together (default: 32)")
    group.add_argument("--micro-batch-size", type=whole_number(0), default=0, metavar="B",
                       help="sequences in memory at once; the result is the same (default: 0, "
                       "which is all that a process has)")
    group.add_argument("--weight-decay", type=number(), default=0.01, metavar="X",
                       help="of AdamW, not for biases and LayerNorms (default: 0.01)")
    group.add_argument("--dropout", type=number(below=1.0), default=0.1, metavar="P",
                       help="probability of dropout (default: 0.1)")
    add_run_flags(parser, out=None,
                  out_help="folder for the runs and the model of the first seed (default: out/ and "
                  "the task's name)", eval_every=0,
                  eval_every_help="measure the model every so many steps; 0: only at the end "
                  "(default: 0)")
    args = parser.parse_args(argv)
    if len(args.text) > 2:
        raise ValueError("--text: give one or two columns")
    if args.task is None and args.steps is None:
        args.steps = 200                                 # the embedded task three times: be quick
    return args


# ---- The command line: what it does -----------------------------------------------------

def run(args):
    """Fine-tune a model, print its scores, save it and its predictions."""
    name = args.task
    modes = [args.mode]
    if name is None:
        name = "code"
        modes = ["all", "adapters", "random"]
        if not os.path.isdir(args.model):
            raise ValueError(f"--model {args.model} is not there: run python distill.py first, or "
                             "give the folder of another model")
    out = args.out
    if out is None:
        out = os.path.join("out", name)
    check_out(out, args.resume, args.overwrite)
    processes = set_up_processes(args.device, args.batch_size)
    bf16 = uses_bf16(args.bf16, processes.device)
    model_path = fetch(args.model, MODEL_FILES + NEEDED_FOR_TOKENIZER, OPTIONAL_FOR_TOKENIZER)
    tokenizer = Tokenizer(model_path)
    config = load(model_path).config
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(f"{model_path}: its tokenizer has {tokenizer.vocab_size} tokens, the "
                         f"model only {config.vocab_size}")
    kind = kind_of_task(name)
    length = choose_length(args.length, kind, config.max_position_embeddings)
    with first_process_first(processes):
        splits = read_splits(args, name, kind)
    task = make_task(name, kind, splits, length, args.stride)
    sizes = ", ".join(f"{len(examples):,} {split}" for split, examples in splits.items())
    label_names = "none"
    if task.labels:
        label_names = " ".join(task.labels)
    print(f"{name}: {kind}; {sizes}; labels {label_names}", flush=True)
    encoded = encode_splits(task, splits, tokenizer)
    check_language(encoded["train"].features, tokenizer, model_path)
    teacher = None
    teacher_task = None
    if args.distill_from is not None:
        teacher, teacher_task = load_teacher(args.distill_from, task, tokenizer)
        teacher.to(processes.device)
        result = evaluate_split(teacher, teacher_task, encoded[first_dev_split(encoded)],
                                tokenizer.pad_id, bf16)
        print(f"teacher {args.distill_from}: {result.scores}")

    tuning = Tuning(args, model_path, out, task, tokenizer, teacher, teacher_task, processes, bf16)
    rows = majority_rows(task, splits)
    for mode in modes:
        rates = args.lr
        if rates is None:
            rates = [default_rate(mode, args.task, config.hidden_size)]
        if len(rates) > 1:
            rates = best_rates_first(tuning, splits["train"], mode, args.seed, rates)
        results_of_seeds = []
        for seed in range(args.seed, args.seed + args.seeds):
            model, results = fine_tune(tuning, encoded, mode, seed, rates[0])
            results_of_seeds.append(results)
            if processes.rank == 0 and seed == args.seed and mode == modes[0]:
                save_classifier(out, model, task, tokenizer)
                for split, result in results.items():
                    write_predictions(out, task, split, splits[split], result.predictions)
        for split, result in results.items():
            for metric in result.scores:
                values = [each[split].scores[metric] for each in results_of_seeds]
                rows.append((mode, split, metric, values))
    print_rows(rows)
    print(f"The model of seed {args.seed} is in {out}, its predictions too. Next:\n"
          f"    python finetune.py --model {out} --predict TEXT")


def kind_of_task(name):
    """Return the kind of a --task: of GLUE, the embedded one, or a kind itself."""
    if name in GLUE:
        return GLUE[name].kind
    if name == "code":
        return "tagging"
    return name


def choose_length(length, kind, num_positions):
    """Return --length, or its default. ValueError if the model has too few positions."""
    if length is None:
        usual = 384 if kind == "qa" else 128
        length = min(usual, num_positions)
    if not 8 <= length <= num_positions:
        raise ValueError(f"--length {length}: the model has {num_positions} positions, and 8 are "
                         "needed")
    return length


def default_rate(mode, task_name, hidden_size):
    """Return the learning rate for a mode: few trained parameters, and a narrow model, need a
    higher one. The short run without --task has a higher one as well."""
    if mode in ("adapters", "head"):
        rate = 1e-3
    elif task_name is None:
        rate = 4e-4
    else:
        rate = 5e-5
    return rate * 768 / hidden_size


def read_splits(args, name, kind):
    """Read the task's examples: {split: examples}. Without a dev set it is a tenth of train."""
    if name in GLUE:
        folder = args.data
        if folder is None:
            folder = download_glue(name)
        splits = read_glue(name, folder)
    elif name == "code":
        splits = read_code_task(docs_on_this_machine())
    else:
        files = {"train": args.train, "dev": args.dev, "test": args.test}
        files = {split: paths for split, paths in files.items() if paths}
        splits = read_own_files(name, kind, files, args.text, args.label)
    if not any(split.startswith("dev") for split in splits):
        splits["dev"], splits["train"] = hold_out_a_tenth(splits["train"])
    return splits


def check_language(features, tokenizer, model_path):
    """Raise ValueError if most tokens are unknown: the tokenizer is of another language."""
    ids = np.concatenate([feature.ids for feature in features])
    num_unknown = np.count_nonzero(ids == tokenizer.unk_id)
    num_ordinary = np.count_nonzero(~np.isin(ids, tokenizer.special_ids))
    if num_unknown > num_ordinary:
        raise ValueError(f"most tokens to train on are [UNK]: the tokenizer in {model_path} is of "
                         "another language")


def load_teacher(path, task, tokenizer):
    """Load the fine-tuned teacher of --distill-from -> (Classifier, Task)."""
    teacher, teacher_task = load_classifier(path)
    check_same_task(f"--distill-from {path}", teacher_task, task)
    if Tokenizer(path).digest != tokenizer.digest:
        raise ValueError(f"--distill-from {path}: it has another tokenizer than the model")
    return teacher, teacher_task


def majority_rows(task, splits):
    """Score guesses made without a model -> rows for print_rows."""
    rows = []
    for split, examples in splits.items():
        if split != "train":
            guesses = majority(task, splits["train"], examples)
            for metric, value in score(task, examples, guesses).items():
                rows.append(("majority", split, metric, [value]))
    return rows


def print_rows(rows):
    """Print a table: rows are (what was trained, split, metric, values of all seeds)."""
    for mode, split, metric, values in rows:
        deviation = ""
        if len(values) > 1:
            deviation = f" +- {np.std(values, ddof=1):.2%} of {len(values)} seeds"
        print(f"{mode:10}{split:16}{metric:12}{np.mean(values):8.2%}{deviation}")


def predict(args):
    """Print what the fine-tuned model says of a text, or of each line of a file."""
    model, task = load_classifier(args.model)
    tokenizer = Tokenizer(args.model)
    if os.path.isfile(args.predict):
        lines = [line for _, line in lines_of(args.predict)]
    else:
        lines = [args.predict.encode("utf-8", "replace").decode()]      # without half characters
    for line in lines:
        if line.strip():
            example = example_of_line(line, task)
            features = list(encode(task, [example], tokenizer))
            logits = predict_logits(model, features, tokenizer.pad_id)
            prediction, probabilities = decode(task, [example], features, logits)[0]
            print(describe_prediction(task, example, prediction, probabilities))


def example_of_line(line, task):
    """Make the Example of a line of text; a tab separates two texts."""
    texts = line.split("\t", 1)
    wanted = 2 if task.pair else 1
    if len(texts) != wanted:
        raise ValueError(f"{line!r:.60}: this model wants {wanted} text(s), with a tab between two")
    text = texts[0]
    if task.kind == "tagging":
        text = TAGGED_WORD.findall(text)
    second_text = texts[1] if task.pair else None
    return Example(text, second_text, None, "", "")


def describe_prediction(task, example, prediction, probabilities):
    """Put a prediction into one line of text."""
    if task.kind == "classification":
        ordered = sorted(probabilities, key=lambda label: -probabilities[label])
        return ", ".join(f"{label} {probabilities[label]:.1%}" for label in ordered)
    if task.kind == "tagging":
        found = []
        for first, end, kind in sorted(entities(prediction)):
            found.append(f"{' '.join(example.text[first:end])} ({kind})")
        return ", ".join(found)
    return str(prediction)


def main(argv=None):
    def action():
        args = arguments(argv)
        if args.predict is not None:
            predict(args)
        else:
            run(args)
    return run_command("finetune.py", action)


if __name__ == "__main__":
    sys.exit(main())
