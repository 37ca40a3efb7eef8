r"""Fine-tune a student, or any BERT, on a language task (arXiv 2210.06425).

    python finetune.py
        This trains the student in out/student, which distill.py makes, on the
        built-in task "code", three times. It takes a minute or two.
    python finetune.py --model out/student --task sst2 --data SST-2/
        This trains it on a task of GLUE, from a folder with its files.
    python finetune.py --task tagging --train train.tsv --dev devel.tsv
        This reads your own files, here in CoNLL format.
    python finetune.py --task classification --train a.csv --dev b.csv \
            --text title --label topic --adapters-only
        This reads tables with named columns. Only the head and each recursion's
        own corrections or adapters are trained.
    python finetune.py --task qa --train train-v2.0.json --distill-from out/bert
        This reads SQuAD. The model also learns from a fine-tuned teacher.
    python finetune.py --model out/sst2 --predict "a gripping, beautiful film"
        This prints what a fine-tuned model predicts for a text.

The task head is one linear layer on the last hidden states. Classification and
regression use its output at [CLS], tagging at the first token of each word,
question answering at [CLS] and at the tokens of the context, to score whether
the answer begins or ends there.
"""
if __name__ == "__main__":
    # Ctrl-C is handled before the imports below, because they take seconds: see command.py.
    from command import end_at_interrupt
    end_at_interrupt()

import json
import math
import os
import re
import shlex
import sys
import time
import unicodedata
import zlib
from collections import Counter
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from checkpoint import (check_finite, check_tensors, claim_folder, expecting, fetch, load,
                        model_without_values, read_json, read_safetensors, replace_file, save,
                        write_json, write_safetensors)
from command import (CommandParser, allow_only, first_few, given_flags, integer_from, path_name,
                     printable, real_number, refuse_flags, run_command, warn)
from data import (RNG_TASK_ORDERS, Tokenizer, check_are_texts, check_unknown_share,
                  count_characters, docs_on_this_machine, hash_file)
from distill import (DEFAULT_OUT, TrainingOptions, add_run_flags, autocast, begin_or_resume,
                     broadcast, can_match_layers, check_batch_size, device_of, explaining_failures,
                     fingerprint, hidden_loss, leave_processes, lock_folder, match_layers,
                     measuring_bar, one_per_machine_first, output_loss, set_up_processes,
                     split_batch, to_device, train, uses_bf16)
from minialbert import OWN_PARTS, MiniALBERT, merge_corrections
from tasks import (GLUE, KINDS, Example, Prediction, Task, detailed_scores, download_glue,
                   entities, find_words, hold_out_a_tenth, kind_of_task, labels_of_example,
                   lines_of, majority, make_task, read_code_task, read_glue, read_own_files,
                   read_squad, score, split_words, write_predictions)


# ---- The model --------------------------------------------------------------------------

class Classifier(nn.Module):
    """An encoder and a task head: dropout and one linear layer on the last hidden states.

    The layer has n outputs: one for each class or tag; one in regression; two in qa, the scores of
    "the answer begins here" and "the answer ends here". As in the authors' code there is no pooler.
    The Task is kept as `task`. If you add another module, save_classifier must write it, and
    load_head read it; otherwise a loaded model has random values there.
    """

    def __init__(self, encoder, task, dropout=0.0):
        super().__init__()
        self.encoder = encoder
        self.task = task
        self.dropout = nn.Dropout(dropout)
        if task.kind == "regression":
            num_outputs = 1
        elif task.kind == "qa":
            num_outputs = 2
        else:
            num_outputs = len(task.labels)
        self.output = nn.Linear(encoder.config.hidden_size, num_outputs)
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)

    def forward(self, ids, mask, segments):
        """Compute the hidden states, as MiniALBERT does, and the logits (B, T, n) at all positions,
        of which only some are used. In qa the logits of the question and of the padding are -1e4,
        because no answer begins or ends there. For the arguments see collate."""
        hidden, _ = self.encoder(ids, mask, segments)
        # Under autocast the output is bfloat16, which is too coarse for the losses.
        logits = self.output(self.dropout(hidden[-1])).float()                # (B, T, n)
        if self.task.kind == "qa":
            # An answer is in the context, and [CLS] means "no answer". Segment 1 holds the context
            # and the last [SEP]. The logits at this [SEP] stay, but the loss makes them small, and
            # decode_answers ignores them. With -inf in place of -1e4 the KL divergence from a
            # teacher would be nan.
            is_allowed = segments == 1                   # (B, T)
            is_allowed[:, 0] = True                      # [CLS]
            logits = logits.masked_fill(~is_allowed[:, :, None], -1e4)
        return hidden, logits


# ---- From examples to tokens ------------------------------------------------------------

class Feature(NamedTuple):
    """A sequence for the model, [CLS] text [SEP] or [CLS] first [SEP] second [SEP].

    `positions` are the tokens at which the model's logits are used, `stands_for` says which part of
    the example each of them stands for, and `labels` is what is to be predicted. What these three
    fields hold depends on the kind of the task:

    classification and regression
        positions       [0], where [CLS] stands
        stands_for      [0], which is not used
        labels          [the number of the class], or [the number to be predicted]
    tagging
        positions       the first token of each word that begins in this window
        stands_for      for each position the number of its word in the sentence
        labels          for each position the number of its word's tag
    qa
        positions       all tokens of the context in this window. Besides these, [CLS] is used: it
                        means "no answer in this window"
        stands_for      for each position the characters of its word, (first, one past the last),
                        counted in the context
        labels          [position of the answer's first token, position of its last token], or
                        [0, 0], where [CLS] stands, if this window does not have the whole answer

    An example in tagging: the labels of the task are B-PER, I-PER and O, the words are "Johnny" and
    "lives" with the tags B-PER and O, and the tokens are [CLS] john ##ny lives [SEP]. Then
    positions is [1, 3], stands_for [0, 1] and labels [0, 2].

    In qa the same text may be the context. If the question is "who" and the answer is "Johnny", the
    tokens are [CLS] who [SEP] john ##ny lives [SEP]. Then prefix_length is 3, positions
    range(3, 6), stands_for [[0, 6], [0, 6], [7, 12]] and labels [3, 4].

    labels is None if the label of the example is not known. In training all are known (see
    check_trainable).
    """
    ids: np.ndarray         # (T,) token numbers
    prefix_length: int      # tokens before the main text (see TokenisedExample): 1, that is [CLS],
                            # if there is one text; more if there are two
    example_number: int     # index of the example from which it was made
    positions: object       # a list, in qa a range: indices into ids
    stands_for: object      # a list, in qa an array (tokens, 2)
    labels: object          # a list, or None
    was_cut: bool = False   # whether the text, or one of the two, was too long and was cut


class TokenisedExample(NamedTuple):
    """The tokens of an example, which has one text or two. The last one is called its main text."""
    example_number: int     # index of the example
    example: Example
    prefix: list            # tokens before the main text: [CLS], or [CLS], the first text, [SEP]
    encoding: object        # the tokenizers library's Encoding of the main text, not yet cut
    room: int               # how many tokens of the main text a sequence has room for
    first_was_cut: bool     # whether the first of two texts was too long and was cut


def encode(task, examples, tokenizer):
    """List the Features of examples, in their order.

    In classification and regression an example has one Feature, and a text that is too long is cut.
    A sentence to tag and the context of a question are cut into windows; each one has a Feature.
    ValueError if an example does not fit the task: see check_examples.
    """
    check_examples(task, examples)
    label_numbers = {label: i for i, label in enumerate(task.labels)}
    features = []
    for tokenised in tokenise_examples(task, examples, tokenizer):
        if task.kind == "tagging":
            features += tagging_features(tokenised, tokenizer, label_numbers)
        elif task.kind == "qa":
            features += answer_features(tokenised, tokenizer, task.stride)
        else:
            features.append(text_feature(task, tokenised, tokenizer, label_numbers))
    return features


def tokenise_examples(task, examples, tokenizer):
    """Yield the TokenisedExamples of examples. The first of two texts is cut here."""
    texts = tokenise_texts(task, examples, tokenizer)
    for example_number, (first_ids, encoding) in enumerate(texts):
        prefix = [tokenizer.cls_id]
        first_was_cut = False
        if task.pair:
            first_room = room_of_first_text(task, len(encoding.ids))
            first_was_cut = len(first_ids) > first_room
            prefix += first_ids[:first_room]
            prefix.append(tokenizer.sep_id)
        room = task.length - len(prefix) - 1             # the 1 is for the last [SEP]
        yield TokenisedExample(example_number, examples[example_number], prefix, encoding, room,
                               first_was_cut)


def room_of_first_text(task, num_second_tokens):
    """Return how many tokens the first of two texts may have; the second has num_second_tokens."""
    room = task.length - 3                               # [CLS] and two [SEP] take three places
    if task.kind == "qa":
        return room // 3                                 # the rest is kept for the context
    else:
        # Half of the room is kept for the second text, or less if that text is shorter: if there is
        # room for 20 tokens and the second text has 4, the first may have 16. What the first text
        # does not need, tokenise_examples gives to the second.
        kept_for_second = min(num_second_tokens, room // 2)
        return room - kept_for_second


def text_feature(task, tokenised, tokenizer, label_numbers):
    """Make the Feature for classification or regression: the logits at [CLS] are used."""
    prefix = tokenised.prefix
    main_ids = tokenised.encoding.ids
    was_cut = tokenised.first_was_cut or len(main_ids) > tokenised.room
    ids = np.array(prefix + main_ids[:tokenised.room] + [tokenizer.sep_id], np.int32)
    label = tokenised.example.label
    if label is None:
        labels = None                                    # it is not known
    elif task.kind == "classification":
        labels = [label_numbers[label]]
    else:
        labels = [label]
    return Feature(ids, len(prefix), tokenised.example_number, positions=[0], stands_for=[0],
                   labels=labels, was_cut=was_cut)


def windows(num_tokens, room, overlap=0):
    """List (begin, end) of the windows that cover a text, each of at most `room` tokens.

    Neighbouring windows share `overlap` tokens, fewer than `room`. No window follows the one that
    reaches the end of the text. A text without tokens has one window, which is empty. For example,
    windows(10, 4, overlap=1) is [(0, 4), (3, 7), (6, 10)].
    """
    begin = 0
    end = min(room, num_tokens)
    found = [(begin, end)]
    while end < num_tokens:
        begin += room - overlap
        end = min(begin + room, num_tokens)
        found.append((begin, end))
    return found


def tagging_features(tokenised, tokenizer, label_numbers):
    """Yield the Features of a sentence to tag: the logits at each word's first token are used.

    A word that the tokenizer removes completely has no position here; decode_tags gives it O.
    """
    example = tokenised.example
    prefix = tokenised.prefix
    token_ids = tokenised.encoding.ids
    word_of_token = tokenised.encoding.word_ids          # for each token the number of its word
    for begin, end in windows(len(token_ids), tokenised.room):
        shift = len(prefix) - begin                      # token i of the sentence is at i + shift
        positions = []
        word_numbers = []                                # in the sentence
        for token in range(begin, end):
            word = word_of_token[token]
            # Only the first token of a word has a label. It may be in an earlier window, so the
            # token before this one is looked up in the whole sentence.
            begins_word = token == 0 or word_of_token[token - 1] != word
            if begins_word:
                positions.append(token + shift)
                word_numbers.append(word)
        labels = None                                    # the tags are not known
        if example.label is not None:
            tags = [example.label[word] for word in word_numbers]
            labels = [label_numbers[tag] for tag in tags]
        ids = np.array(prefix + token_ids[begin:end] + [tokenizer.sep_id], np.int32)
        yield Feature(ids, len(prefix), tokenised.example_number, positions, word_numbers, labels)


def answer_features(tokenised, tokenizer, stride):
    """Yield the Features of a question: windows of its context, which overlap (see Task.stride)."""
    example = tokenised.example
    prefix = tokenised.prefix
    encoding = tokenised.encoding
    token_ids = encoding.ids
    word_spans = spans_of_words(encoding)
    answer_tokens = tokens_of_answer(example, encoding.offsets)
    overlap = min(stride, tokenised.room // 2)           # windows advance by half the room or more
    for begin, end in windows(len(token_ids), tokenised.room, overlap):
        # stands_for is an array, and positions is a range, because these take little memory: SQuAD
        # has 90,000 windows and more.
        stands_for = np.array(word_spans[begin:end], np.int32)                # (tokens, 2)
        shift = len(prefix) - begin                      # token i of the context is at i + shift
        positions = range(begin + shift, end + shift)
        labels = [0, 0]                                  # [CLS] stands for "no answer here"
        if example.label is None:
            labels = None                                # the answer is not known
        elif answer_tokens is not None:
            first, last = answer_tokens
            if begin <= first and last < end:            # all of the answer is in this window
                labels = [first + shift, last + shift]
        ids = np.array(prefix + token_ids[begin:end] + [tokenizer.sep_id], np.int32)
        yield Feature(ids, len(prefix), tokenised.example_number, positions, stands_for, labels,
                      tokenised.first_was_cut)


def spans_of_words(encoding):
    """List for each token where its word stands in the text: (first character, one past the last).

    A predicted answer has whole words. So "play" and "##ing" both stand for "playing".
    """
    # The library's word_to_chars does this for one word, but it searches all tokens each time.
    begin_of_word = {}
    end_of_word = {}
    for word, (token_begin, token_end) in zip(encoding.word_ids, encoding.offsets):
        if word not in begin_of_word:
            begin_of_word[word] = token_begin            # where the word's first token begins
        end_of_word[word] = token_end                    # after the loop: where its last one ends
    return [(begin_of_word[word], end_of_word[word]) for word in encoding.word_ids]


def tokens_of_answer(example, offsets):
    """Find the tokens of the context that overlap the answer -> (number of the first such token,
    number of the last). Of several right answers the first one is taken. None if the answer is not
    known, if there is none, or if no token overlaps it.

    offsets: for each token (first character, one past the last)
    """
    if not example.label:                                # None: not known; []: no answer
        return None
    answer_begin, answer = example.label[0]
    answer_end = answer_begin + len(answer)
    tokens = []
    for token, (token_begin, token_end) in enumerate(offsets):
        if token_begin < answer_end and answer_begin < token_end:             # they overlap
            tokens.append(token)
    if not tokens:
        return None
    return tokens[0], tokens[-1]


def collate(features):
    """Pad Features to one length. Return three numpy arrays (B, T):

    ids
    mask: True at real tokens
    segments: 1 in the second text, which begins at prefix_length, and at the [SEP] after it. In qa
        Classifier.forward allows answers only there (and at [CLS])
    """
    B = len(features)
    T = max(len(feature.ids) for feature in features)
    ids = np.zeros((B, T), np.int64)     # padding may be any token, because the mask hides it
    mask = np.zeros((B, T), bool)
    segments = np.zeros((B, T), np.int64)
    for row, feature in enumerate(features):
        length = len(feature.ids)
        ids[row, :length] = feature.ids
        mask[row, :length] = True
        if feature.prefix_length > 1:                    # there is a first text before the main one
            segments[row, feature.prefix_length:length] = 1
    return ids, mask, segments


def collate_targets(features, kind):
    """List all labels of Features. Each label is a target. Return three numpy arrays (N,), with one
    item for each of the N targets:

    rows: the index of the target's Feature in `features`
    columns: the position of its token; in qa 0 if it says where an answer begins, 1 if it says
        where it ends
    targets: the label itself: the index of a class or a tag in task.labels; in regression the given
        number, not yet normalised; in qa the position of the answer's first or last token

    No Feature may be without labels.
    """
    rows = []
    columns = []
    targets = []
    for row, feature in enumerate(features):
        rows += [row] * len(feature.labels)
        if kind == "qa":
            columns += [0, 1]
        else:
            columns += feature.positions
        targets += feature.labels
    return np.array(rows, np.int64), np.array(columns, np.int64), np.array(targets, np.float64)


# ---- The loss ---------------------------------------------------------------------------

def outputs_at_targets(logits, rows, columns, kind):
    """Select the logits from which each of the N targets is predicted.

    logits (B, T, n)
    rows, columns (N,): see collate_targets

    In qa a target is predicted from the begin logits (column 0) or the end logits (column 1) of all
    tokens -> (N, T). In other kinds it is predicted from the n logits of its token -> (N, n).
    """
    if kind == "qa":
        begin_and_end_logits = logits.transpose(1, 2)    # (B, 2, T)
        return begin_and_end_logits[rows, columns]       # (N, T)
    else:
        return logits[rows, columns]                     # (N, n)


def loss_from_labels(outputs, targets, kind):
    """Compare outputs (see outputs_at_targets) with their targets (N,) -> a sum over the targets:
    of the squared errors in regression, of the cross-entropies in the other kinds."""
    if kind == "regression":
        return F.mse_loss(outputs[:, 0], targets, reduction="sum")
    else:
        return F.cross_entropy(outputs, targets.long(), reduction="sum")


def loss_from_teacher(outputs, teacher_outputs, kind):
    """Compare the outputs of the model and the teacher -> a sum over the targets: of the squared
    errors in regression, of KL(teacher || model) in the other kinds."""
    if kind == "regression":
        return F.mse_loss(outputs, teacher_outputs, reduction="sum")
    else:
        return output_loss(outputs, teacher_outputs)


class TaskLoss:
    """The losses of a batch of a task. The training makes their weighted sum small.

    task: loss_from_labels, averaged over the targets; its weight is 1. In qa a sequence has two
        targets, the positions where the answer begins and ends
    distill: loss_from_teacher, averaged over the targets; its weight is 1
    hidden: 1 - cosine of the hidden states of model and teacher, averaged over the tokens and
        summed over the pairs of match_layers, as in distill.py; its weight is hidden_weight.
        TinyBERT (arXiv 1909.10351) compares hidden states in tasks, too, but by a squared error

    Without a teacher there is only `task`. If hidden_weight is 0, `hidden` is left out.
    In classification the sum is, with the teacher's probabilities p and the model's q,

        cross-entropy + KL(p || q) + hidden_weight * hidden

    A TaskLoss takes the place of a distill.Distillation: distill.training_step gets the losses from
    losses_of_micro_batches(step), weights them with loss_weights, and calls backward().

    The teacher is a Classifier for the same Task, or None. A batch has sequences of similar length.
    It depends on the seed and the step alone. In an epoch each Feature is used once; one batch, not
    always the last, may be smaller than the others. ValueError if a Feature has no label.
    """

    def __init__(self, model, features, batch_size, seed, teacher=None, hidden_weight=0.0,
                 micro_batch_size=0, processes=None, bf16=False):
        self.model = model
        self.features = features
        self.batch_size = batch_size
        self.seed = seed
        self.teacher = teacher
        self.bf16 = bf16
        # The micro-batches of this process: [(first sequence, one past the last), ...], counted in
        # the whole batch.
        self.micro_batch_bounds = split_batch(batch_size, micro_batch_size, processes)
        check_trainable(features)
        self.loss_weights = {"task": 1.0}
        self.pairs = []                                  # (model's recursion, teacher's layer)
        if teacher is not None:
            teacher.eval()                               # its dropout stays off
            self.loss_weights["distill"] = 1.0
            if hidden_weight > 0:
                self.loss_weights["hidden"] = hidden_weight
                self.pairs = match_layers(model.encoder.config.num_hidden_layers,
                                          teacher.encoder.config.num_hidden_layers)
        self.lengths = np.array([len(feature.ids) for feature in features])
        self.tokens_per_step = int(self.lengths.mean() * batch_size)          # approximate
        self.steps_per_epoch = math.ceil(len(features) / batch_size)
        self.kept_batches = (None, None)                 # the epoch used last and its batches

    def compute_losses(self, ids, mask, segments, rows, columns, targets, num_targets, num_tokens):
        """Compute a micro-batch's part of each loss: {name: scalar}.

        ids, mask, segments (b, T): see collate; b is the B of a micro-batch
        rows, columns, targets (N,): see collate_targets; rows count from the first sequence of the
            micro-batch, and in regression the targets are normalised
        num_targets, num_tokens: how many targets (at least 1) and tokens the whole batch has
        """
        kind = self.model.task.kind
        hidden, logits = self.model(ids, mask, segments)
        outputs = outputs_at_targets(logits, rows, columns, kind)  # (N, n), in qa (N, T)
        losses = {"task": loss_from_labels(outputs, targets, kind) / num_targets}
        if self.teacher is None:
            return losses

        with torch.no_grad():                            # the teacher does not learn
            teacher_hidden, teacher_logits = self.teacher(ids, mask, segments)
        teacher_outputs = outputs_at_targets(teacher_logits, rows, columns, kind)
        losses["distill"] = loss_from_teacher(outputs, teacher_outputs, kind) / num_targets
        if "hidden" in self.loss_weights:
            # hidden[0] holds the embeddings, so hidden[r + 1] is the output of recursion r.
            total = 0.0
            for r, layer_number in self.pairs:
                states = hidden[r + 1]
                teacher_states = teacher_hidden[layer_number + 1]
                total = total + hidden_loss(states, teacher_states, mask)
            # total is a sum over the tokens of this micro-batch, but num_tokens counts those of the
            # whole batch.
            losses["hidden"] = total / num_tokens
        return losses

    def losses_of_micro_batches(self, step):
        """Yield the losses {name: scalar} of each micro-batch of this process in a step.

        Summed over the micro-batches of all processes, these are the losses of the whole batch: see
        TaskLoss.
        """
        task = self.model.task
        features = self.batch(step)
        ids, mask, segments = collate(features)          # each (B, T)
        rows, columns, targets = collate_targets(features, task.kind)         # (N,) each
        if task.kind == "regression":
            # This is done before the numbers become float32, which has seven digits only.
            targets = (targets - task.mean) / task.sd
        targets = targets.astype(np.float32)
        # num_targets and num_tokens count the whole batch, of which a micro-batch is only a part.
        # In tagging there may be no target. Then the loss is 0 / 1, not 0 / 0.
        num_targets = max(1, len(targets))
        num_tokens = np.count_nonzero(mask)
        device = device_of(self.model)
        for begin, end in self.micro_batch_bounds:
            # One batch of an epoch may be smaller, with no sequence for this micro-batch. But every
            # process must have gradients, because all processes add theirs up. So an empty
            # micro-batch is computed from sequence 0, and its losses are multiplied by 0.
            is_empty = begin >= len(ids)
            if is_empty:
                begin = 0
                end = 1
            is_inside = (begin <= rows) & (rows < end)   # (N,)
            micro_batch = to_device(
                device, ids[begin:end], mask[begin:end], segments[begin:end],
                rows[is_inside] - begin, columns[is_inside], targets[is_inside])
            with autocast(device, self.bf16):
                losses = self.compute_losses(*micro_batch, num_targets, num_tokens)
            if is_empty:
                losses = {name: 0 * loss for name, loss in losses.items()}
            yield losses

    def batch(self, step):
        """Return the Features of a step."""
        epoch, batch_number = divmod(step, self.steps_per_epoch)
        kept_epoch, batches = self.kept_batches
        if epoch != kept_epoch:                          # so an epoch is shuffled only once
            batches = self.batches_of_epoch(epoch)
            self.kept_batches = (epoch, batches)
        return [self.features[i] for i in batches[batch_number]]

    def batches_of_epoch(self, epoch):
        """List the batches of an epoch, each an array of indices of Features.

        All Features are shuffled and cut into pools of 50 batches. Each pool is sorted by length,
        so that a batch has little padding. At the end the order of the batches is shuffled.
        """
        rng = np.random.default_rng([self.seed, RNG_TASK_ORDERS, epoch])
        shuffled = rng.permutation(len(self.features))   # indices of all Features
        pool_size = 50 * self.batch_size
        batches = []
        for pool_begin in range(0, len(shuffled), pool_size):
            pool = shuffled[pool_begin:pool_begin + pool_size]
            shortest_first = np.argsort(self.lengths[pool], kind="stable")
            pool = pool[shortest_first]
            for begin in range(0, len(pool), self.batch_size):
                batches.append(pool[begin:begin + self.batch_size])
        return [batches[i] for i in rng.permutation(len(batches))]


# ---- What is trained --------------------------------------------------------------------

# The mode of a fine-tuning says what is trained, and from which values.
MODES = (
    "all",                  # everything
    "adapters",             # each recursion's adapters or corrections, and the task head; a model
                            # that has neither adapters nor corrections gets adapters
    "head",                 # the task head alone
    "random",               # everything, and the encoder starts from random weights: of the saved
                            # one only the shape is used
)


def load_encoder(path, mode="all", dropout=0.0, sample=None, recursions=None):
    """Load the encoder in a folder, without its MLM head.

    mode: what will be trained, see MODES; the other parameters are frozen
    dropout: the probability of dropout in the training
    sample: (ids, mask, segments), arrays (B, T), to which new adapters are fitted
    recursions: the number of recursions to use, counted from the first; None: all
    ValueError if the mode is none of MODES, or if adapters are added, but there is no sample.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r:.60}, not one of {', '.join(MODES)}")
    saved_model = load(path, recursions)
    config = replace(saved_model.config, hidden_dropout_prob=dropout,
                     attention_probs_dropout_prob=dropout)
    adds_adapters = mode == "adapters" and not config.has_own_parts
    if adds_adapters:
        config = replace(config, adapter_size=max(1, config.hidden_size // 16))
    if mode == "random" or adds_adapters:
        encoder = MiniALBERT(config, head=False)
    else:
        # All values will come from the saved model.
        encoder = model_without_values(config, has_head=False)
    if mode != "random":
        # Not strict: the saved MLM head is left out, and new adapters are not in the saved model.
        # assign=True takes the saved tensors themselves, so that nothing is copied.
        encoder.load_state_dict(saved_model.state_dict(), strict=False, assign=True)
    if adds_adapters:
        if sample is None:
            raise ValueError(f"{path}: adapters are added, so they need a sample to be fitted to")
        ids, mask, segments = to_device(torch.device("cpu"), *sample)
        fit_adapters_to_identity(encoder, ids, mask, segments)
    freeze_parameters(encoder, mode)
    return encoder


def freeze_parameters(encoder, mode):
    """Freeze the parameters of an encoder that are not trained in a mode."""
    for name, parameter in encoder.named_parameters():
        if mode == "adapters":
            is_trained = name.split(".")[0] in OWN_PARTS
        elif mode == "head":
            is_trained = False                           # the task head is not in the encoder
        else:
            is_trained = True                            # the modes "all" and "random"
        parameter.requires_grad_(is_trained)


# ---- Predictions ------------------------------------------------------------------------

@torch.inference_mode()
def predict_logits(model, features, batch_size=64):
    """Compute the logits of each Feature -> a list of arrays. An array has a row of n logits for
    each of the Feature's positions; in qa it has one for each token, (T, 2).

    Sequences of similar length run together. The model is left in eval mode. FloatingPointError if
    a logit is not finite.
    """
    model.eval()
    logits_of_feature = [None] * len(features)
    # The longest come first, so that a lack of memory shows at once.
    order = sorted(range(len(features)), key=lambda i: len(features[i].ids), reverse=True)
    for begin in measuring_bar(range(0, len(order), batch_size)):
        feature_numbers = order[begin:begin + batch_size]
        batch = [features[i] for i in feature_numbers]
        ids, mask, segments = to_device(device_of(model), *collate(batch))
        _, logits = model(ids, mask, segments)
        logits = logits.cpu().numpy()                    # (B, T, n)
        if not np.isfinite(logits).all():
            raise FloatingPointError("what the model computes is not finite")
        for row, i in enumerate(feature_numbers):
            if model.task.kind == "qa":
                # decode_answers also needs [CLS], which is not among the positions.
                positions = range(len(features[i].ids))
            else:
                positions = features[i].positions
            logits_of_feature[i] = logits[row, positions]
    return logits_of_feature


def decode(task, examples, features, logits):
    """Turn logits, which predict_logits returned, into a list: the Prediction for each example."""
    if task.kind == "classification":
        return [decode_class(task, feature_logits) for feature_logits in logits]
    if task.kind == "regression":
        # The head predicts (y - mean) / sd, and here this becomes the number y.
        guesses = [float(feature_logits[0, 0]) * task.sd + task.mean for feature_logits in logits]
    elif task.kind == "tagging":
        guesses = decode_tags(task, examples, features, logits)
    else:
        guesses = decode_answers(task, examples, features, logits)
    return [Prediction(guess, {}) for guess in guesses]


def decode_class(task, logits):
    """Turn the logits (1, n) of a text, those at [CLS], into a Prediction.

    Its probabilities are in the order of the labels. Only the 100 largest are kept: with thousands
    of classes and many texts, all of them would fill the memory.
    """
    exponentials = np.exp(logits[0] - logits[0].max())
    probabilities = exponentials / exponentials.sum()    # the softmax of the logits
    most_probable_first = np.argsort(-probabilities, kind="stable")           # label numbers
    kept = np.sort(most_probable_first[:100])
    probability_of_label = {task.labels[i]: float(probabilities[i]) for i in kept}
    return Prediction(task.labels[most_probable_first[0]], probability_of_label)


def decode_tags(task, examples, features, logits):
    """Return the list of tags of each sentence; a word without a token gets O."""
    tags = [["O"] * len(example.text) for example in examples]
    for feature, feature_logits in zip(features, logits):
        for word, label_number in zip(feature.stands_for, feature_logits.argmax(1)):
            tags[feature.example_number][word] = task.labels[label_number]
    return tags


def decode_answers(task, examples, features, logits, longest=30):
    """Return the text of the best answer to each question.

    The score of a span is the begin logit of its first token plus the end logit of its last. Spans
    have at most `longest` tokens, and the best over all windows is taken. Then it is widened to
    whole words.

    If task.unanswerable, the answer may also be "". The no-answer score of a window is the sum of
    the two logits at [CLS]. It should be low in a window with the answer and high in all others. So
    the no-answer score of a question is the lowest of its windows. The answer is "" only if that is
    above the score of the best span, which may be in another window.
    """
    best_score = [-np.inf] * len(examples)
    best_text = [""] * len(examples)
    no_answer_score = [np.inf] * len(examples)
    for feature, feature_logits in zip(features, logits):
        i = feature.example_number
        cls_logits = feature_logits[0]                   # (2,): begin and end
        context_logits = feature_logits[feature.positions]                    # (N, 2)
        no_answer_score[i] = min(no_answer_score[i], cls_logits.sum())
        if len(context_logits) == 0:                     # the context has no tokens
            continue
        span_score, first, last = best_span(context_logits, longest)
        if span_score > best_score[i]:
            best_score[i] = span_score
            best_text[i] = text_between(examples[i].second_text, feature, first, last)
    if task.unanswerable:
        for i in range(len(examples)):
            if no_answer_score[i] > best_score[i]:
                best_text[i] = ""
    return best_text


def best_span(logits, longest):
    """Find the best span of at most `longest` of the N tokens -> (score, first token, last token).

    logits (N, 2): for each token, whether the answer begins there, and whether it ends there
    """
    N = len(logits)
    begin_logits = logits[:, 0]                          # (N,)
    end_logits = logits[:, 1]                            # (N,)
    # The span from token i to token j has the score scores[i, j].
    scores = begin_logits[:, None] + end_logits[None, :]                      # (N, N)
    i = np.arange(N)[:, None]                            # (N, 1)
    j = np.arange(N)[None, :]                            # (1, N)
    is_span = (i <= j) & (j < i + longest)               # (N, N)
    scores[~is_span] = -np.inf
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    return scores[first, last], first, last


def text_between(context, feature, first, last):
    """Return the context's text from the word of token `first` to that of token `last`, with the
    accents after it. Both tokens are indices into feature.stands_for."""
    begin, _ = feature.stands_for[first]
    _, end = feature.stands_for[last]
    # A tokenizer that strips accents removes all nonspacing marks (Unicode's category Mn): accents,
    # but also some vowel signs of Hindi and Thai. They are in no token, but belong to the letter
    # before them.
    while end < len(context) and unicodedata.category(context[end]) == "Mn":
        end += 1
    return context[begin:end]


# ---- One run ----------------------------------------------------------------------------

class Split(NamedTuple):
    """The examples of one split and their Features."""
    examples: list
    features: list


class Result(NamedTuple):
    """How a model did on a split."""
    scores: dict            # {metric: value}; {} if a label is not known
    predictions: list       # for each example a Prediction


class Setup(NamedTuple):
    """What all runs of a command have in common. Each run has a mode, a rate and a seed."""
    args: object            # the flags, which may hold several modes, rates and seeds
    model_path: str
    config: object          # the Config of the model that is trained
    task: Task
    tokenizer: Tokenizer
    teacher: object         # a Classifier for the same Task, or None
    hidden_weight: float    # the factor of the hidden loss; 0 leaves it out
    settings: dict          # {name: value}, what decides the results: a resumed run needs the same
    processes: object       # a distill.Processes
    bf16: bool


def evaluate_split(model, split, bf16):
    """Predict the labels of a Split and score them -> Result."""
    task = model.task
    with autocast(device_of(model), bf16):
        logits = predict_logits(model, split.features)
    predictions = decode(task, split.examples, split.features, logits)
    guesses = [prediction.guess for prediction in predictions]
    return Result(score(task, split.examples, guesses), predictions)


def fine_tune(setup, splits, mode, seed, lr):
    """Make one run, with one mode, seed and rate -> (the model, {name of a split: Result}).

    splits: {name: Split}; "train" is trained on, the others are measured
    FloatingPointError if the training diverges; SystemExit after a signal, such as Ctrl-C
    """
    args = setup.args
    features = splits["train"].features
    torch.manual_seed(seed)                              # for the random values of new parameters
    # New adapters are fitted to this sample of the data.
    sample = collate(features[:64])
    model = load_classifier(setup.model_path, setup.task, mode, args.dropout, sample,
                            args.recursions)
    model.to(setup.processes.device)
    task_loss = TaskLoss(
        model, features, args.batch_size, seed, teacher=setup.teacher,
        hidden_weight=setup.hidden_weight, micro_batch_size=args.micro_batch_size,
        processes=setup.processes, bf16=setup.bf16)
    options = options_of_run(setup, task_loss, mode, seed, lr)
    # The training loop is train() of distill.py. Each of its steps gets the losses from task_loss.
    results = train_and_measure(setup, model, task_loss, splits, options)
    return model, results


# ---- From here on: plumbing -------------------------------------------------------------

# ---- Helpers of the functions above -----------------------------------------------------

def check_examples(task, examples):
    """Raise ValueError if an example does not fit the task."""
    known_labels = set(task.labels)
    for example in examples:
        has_two_texts = example.second_text is not None
        if has_two_texts != task.pair:
            raise ValueError(f"{example.location}, {example.text!r:.60}: this task needs "
                             f"{describe_number_of_texts(task)}; --text names the columns")
        if example.label is None:                        # a test set without labels
            continue
        unknown = labels_of_example(example, task.kind) - known_labels
        if unknown:
            raise ValueError(f"{example.location}: label {min(unknown)!r:.60} does not occur in "
                             f"the training set, whose labels are {first_few(task.labels)}")
        if task.kind == "tagging" and len(example.text) != len(example.label):
            raise ValueError(f"{example.location}, {example.text!r:.60}: words and tags are not "
                             f"equally many: {len(example.text)} and {len(example.label)}")
        if task.kind == "regression" and not math.isfinite(example.label):
            raise ValueError(f"{example.location}, {example.text!r:.60}: the number is "
                             f"{example.label}")


def tokenise_texts(task, examples, tokenizer):
    """Yield (first_ids, encoding) for each example: the token numbers of the first of two texts, or
    None if there is one text, and the Encoding of the main text."""
    # Many texts are tokenised in one call, because one by one would be much slower.
    chunk_size = 1000
    for begin in range(0, len(examples), chunk_size):
        chunk = examples[begin:begin + chunk_size]
        texts = [example.text for example in chunk]
        if task.pair:
            first_encodings = tokenise_beginnings(texts, task.length, tokenizer)
            ids_of_first_texts = [encoding.ids for encoding in first_encodings]
            main_texts = [example.second_text for example in chunk]
        else:
            ids_of_first_texts = [None] * len(chunk)     # there is only the main text
            main_texts = texts
        if task.kind == "tagging":                       # each text is a list of words
            encodings = tokenizer.backend.encode_batch(main_texts, is_pretokenized=True,
                                                       add_special_tokens=False)
        elif task.kind == "qa":
            encodings = tokenise_contexts(main_texts, tokenizer)
        else:
            encodings = tokenise_beginnings(main_texts, task.length, tokenizer)
        yield from zip(ids_of_first_texts, encodings)


def tokenise_beginnings(texts, length, tokenizer):
    """Tokenise texts of which only the first `length` tokens are needed -> their Encodings. To save
    time only the beginning of a long text is tokenised, if the beginning has enough tokens.
    ValueError if one of the texts is not a text."""
    check_are_texts(texts)
    # A beginning may end inside a word. Then the tokens of this last word may be wrong. With
    # WordPiece these are at most max_input_chars_per_word tokens (100 in a BERT): a word has no
    # more tokens than characters, and a word with more characters than that is one [UNK].
    max_wrong = getattr(tokenizer.backend.model, "max_input_chars_per_word", None)
    if max_wrong is None:                                # not WordPiece: there is no such limit
        return tokenizer.backend.encode_batch(texts, add_special_tokens=False)
    num_needed = length + max_wrong
    max_characters = 20 * num_needed                     # most texts have about four in a token
    beginnings = [text[:max_characters] for text in texts]
    encodings = tokenizer.backend.encode_batch(beginnings, add_special_tokens=False)
    for i, text in enumerate(texts):
        has_more_text = len(text) > max_characters
        has_too_few_tokens = len(encodings[i].ids) <= num_needed     # it may be mostly spaces
        if has_more_text and has_too_few_tokens:
            encodings[i] = tokenizer.backend.encode(text, add_special_tokens=False)
    return encodings


def tokenise_contexts(texts, tokenizer):
    """Tokenise the contexts of questions -> their Encodings. ValueError if one is not a text."""
    check_are_texts(texts)
    contexts = sorted(set(texts))                        # several questions may have the same one
    encodings = tokenizer.backend.encode_batch(contexts, add_special_tokens=False)
    encoding_of_context = dict(zip(contexts, encodings))
    return [encoding_of_context[text] for text in texts]


@torch.no_grad()
def fit_adapters_to_identity(encoder, ids, mask, segments):
    """Fit the LayerNorm of each new adapter so that the adapter returns almost its input when the
    encoder runs on ids (B, T). For mask and segments see collate.

    A new adapter's `up` is 0, so it would output LayerNorm(x) instead of x. So in each channel the
    weight and the bias of its LayerNorm are set by least squares such that
    weight * normalised + bias is close to x.
    """
    def fit(adapter, inputs):
        """Fit the LayerNorm of an adapter. PyTorch calls this just before the adapter runs."""
        x = inputs[0]                                    # (B, T, C), its only input
        states = x[mask]                                 # (N, C), the N real tokens
        # The adapter's LayerNorm, but with weight 1 and bias 0 -> (N, C).
        normalised = F.layer_norm(states, states.shape[1:], eps=adapter.norm.eps)
        weight, bias = fit_lines(normalised, states)
        adapter.norm.weight.copy_(weight)
        adapter.norm.bias.copy_(bias)

    hooks = []
    for adapter in list(encoder.attention_adapters) + list(encoder.feed_forward_adapters):
        hooks.append(adapter.register_forward_pre_hook(fit))
    encoder.eval()
    # One pass is enough: when an adapter is fitted, all adapters before it are fitted already.
    encoder(ids, mask, segments)
    for hook in hooks:
        hook.remove()


def fit_lines(x, y):
    """Fit a straight line in each channel by least squares -> weight (C,), bias (C,), such that
    weight * x + bias is close to y. x and y: (N, C)

    The weight is the covariance of x and y divided by the variance of x.
    """
    covariance = ((x - x.mean(0)) * (y - y.mean(0))).mean(0)                  # (C,)
    weight = covariance / x.var(0, correction=0)
    bias = y.mean(0) - weight * x.mean(0)
    return weight, bias


# ---- The training of a run --------------------------------------------------------------

def options_of_run(setup, task_loss, mode, seed, lr):
    """Return the TrainingOptions of a run."""
    args = setup.args
    steps = args.steps
    if steps is None:
        steps = max(1, round(args.epochs * task_loss.steps_per_epoch))
    # find_best_rate makes runs with the mode, rate and seed of a later run, but on fewer Features.
    # The number of Features is in the folder's name, so that both runs get different folders.
    num_features = len(task_loss.features)
    out = os.path.join(args.out, f"{mode}-{num_features}-lr{lr:g}-seed{seed}")
    return TrainingOptions(
        steps=steps, lr=lr, warmup=steps // 10, weight_decay=args.weight_decay, seed=seed,
        log_every=args.log_every, eval_every=args.eval_every, save_every=args.save_every, out=out,
        resume=args.resume)


def train_and_measure(setup, model, task_loss, splits, options):
    """Train the model, or go on with its training, and measure it -> {name of a split: Result}. For
    the splits see fine_tune."""
    dev_name = first_dev_split(splits)
    results = {}                                         # {name of a split: Result}

    def measure_dev():
        """Measure the dev set and return its scores for the log. train() calls this now and then
        and after the last step, so `results` keeps the Result of the trained model."""
        results[dev_name] = evaluate_split(model, splits[dev_name], setup.bf16)
        return results[dev_name].scores

    def save_nothing():
        """Save no model beside a checkpoint: run_seeds() saves the model of the first run, after
        its training."""

    if setup.processes.rank == 0:                        # only this process writes into --out
        os.makedirs(options.out, exist_ok=True)
    print(f"{options.steps:,} steps at the learning rate {options.lr:g}; their log is "
          f"{options.out}/log.jsonl", flush=True)
    begin_time = time.perf_counter()
    # In the settings of the command "lr" may be a list, "steps" and "hidden_weight" may be None,
    # and "seed" is the first seed. Here these four get the values of this run.
    settings = setup.settings | options.settings() | {"hidden_weight": setup.hidden_weight}
    run_state = begin_or_resume(model, options, settings, setup.processes)
    num_steps = options.steps - run_state.first_step     # without those made before a --resume
    with explaining_failures():
        train(task_loss, run_state, options, measure_dev, save_nothing, setup.processes)
    # train() measures only the dev set, only in the first process, and only if a step is left to
    # make. The rest is measured here.
    for name, split in splits.items():
        if name != "train" and name not in results:
            results[name] = evaluate_split(model, split, setup.bf16)
    seconds = time.perf_counter() - begin_time
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{options.out}: {num_trained:,} trained parameters, {num_steps:,} steps in "
          f"{seconds:.0f} s, with evaluation", flush=True)
    return results


# ---- Fine-tuned models on disk ----------------------------------------------------------
# The encoder is saved as by checkpoint.save; head.safetensors and task.json are beside it.

def save_classifier(path, model, tokenizer):
    """Write a fine-tuned model, its Task and its tokenizer into the folder path."""
    save(model.encoder, path)
    tokenizer.save(path)
    write_safetensors(model.output.state_dict(), os.path.join(path, "head.safetensors"))
    write_json(os.path.join(path, "task.json"), asdict(model.task))


def load_classifier(path, task=None, mode="all", dropout=0.0, sample=None, recursions=None):
    """Load a model for a task -> Classifier. For the other arguments see load_encoder.

    If task is None, the saved task is used, and the folder must hold a fine-tuned model. If the
    folder holds one and mode is not "random", its task head is loaded. In all other cases the head
    is new. In regression the saved task may have another mean and sd than this one. Then the loaded
    head is changed so that it predicts the same numbers as before.

    ValueError if the saved head is for another kind of task, for other labels or for another number
    of texts, if the task has two texts, but the model knows only one segment, or if the task's
    sequences are longer than the model allows.
    """
    saved_task = load_task(path)                         # None: the folder has no task.json
    if task is None:
        task = saved_task
    if task is None:
        raise ValueError(f"{path}: not the folder of a fine-tuned model: it has no task.json; give "
                         "the --out of finetune.py, or first train it with --task TASK")
    encoder = load_encoder(path, mode, dropout, sample, recursions)
    num_segments = encoder.config.type_vocab_size
    if task.pair and num_segments < 2:
        raise ValueError(f"{path}: type_vocab_size is {num_segments}, so the model cannot tell two "
                         "texts apart")
    num_positions = encoder.config.max_position_embeddings
    if task.length > num_positions:
        raise ValueError(f"{path}: the model has {num_positions} positions, but the task's length "
                         f"is {task.length}; say --length {num_positions}")
    model = Classifier(encoder, task, dropout)           # its head is new
    if saved_task is not None and mode != "random":
        load_head(model.output, path, saved_task, task)
    return model


def load_task(path):
    """Read the Task of a fine-tuned model; None if the folder holds none."""
    task_path = os.path.join(path, "task.json")
    if not os.path.isfile(task_path):
        return None
    facts = read_json(task_path)
    with expecting(task_path, "a task"):
        return Task(**facts)


def load_head(head, path, saved_task, task):
    """Load the task head in the folder path into `head`, a linear layer for task. ValueError if it
    is for another kind of task, for other labels or for another number of texts."""
    needed = (task.kind, task.labels, task.pair)
    if (saved_task.kind, saved_task.labels, saved_task.pair) != needed:
        raise ValueError(f"{path} was fine-tuned for {describe_task(saved_task)}, not for "
                         f"{describe_task(task)}; fine-tune a teacher for this task; or, to "
                         "use only the encoder of a --model, remove task.json from a copy of it")
    head_path = os.path.join(path, "head.safetensors")
    weights, _ = read_safetensors(head_path)             # {name: tensor}
    check_tensors(head_path, head.state_dict(), weights)
    check_finite(head_path, weights)
    head.load_state_dict(weights)
    change_normalisation(head, saved_task, task)


@torch.no_grad()
def change_normalisation(head, saved_task, task):
    """Change a head for regression in place, from the mean and sd of saved_task to those of task.
    It predicts the same y as before.

    The head computes z = (y - saved mean) / saved sd, so y = saved sd * z + saved mean. After the
    change it computes (y - mean) / sd. Other kinds of tasks have the mean 0 and the sd 1, so
    nothing changes.
    """
    if (saved_task.mean, saved_task.sd) == (task.mean, task.sd):
        return
    head.weight.mul_(saved_task.sd / task.sd)
    y_of_bias = saved_task.sd * head.bias + saved_task.mean      # the y that belongs to z = bias
    head.bias.copy_((y_of_bias - task.mean) / task.sd)


def describe_task(task):
    """Describe a task in a few words, such as "tagging of one text (B-code; I-code; O)"."""
    description = f"{task.kind} of {describe_number_of_texts(task)}"
    if task.labels:
        description += f" ({first_few(task.labels)})"
    return description


def describe_number_of_texts(task):
    """Say whether the examples of a task have two texts or one."""
    if task.pair:
        return "two texts"
    return "one text"


# ---- The command line: flags ------------------------------------------------------------

def add_model_flags(parser):
    """Add the flags about the model, and about what is done with it besides training."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", default=DEFAULT_OUT, metavar="DIR",
                       help="the model, a student or a BERT: its folder or, to fine-tune it with "
                       f"--task, its Hugging Face name (default: {DEFAULT_OUT})")
    group.add_argument("--recursions", type=integer_from(1), metavar="R",
                       help="use only the first R recursions of the --model, or layers of a BERT, "
                       "to train or to predict: it is faster then (default: all)")
    group.add_argument("--distill-from", metavar="DIR",
                       help="also learn from this model, which was fine-tuned for the same task "
                       "(for files of yours: of the same kind, with the same labels)")
    group.add_argument("--hidden-weight", type=real_number(), metavar="W",
                       help="with --distill-from: weight of 1 - cosine of the hidden states with "
                       "the teacher's (default: 3; 0 with --freeze, and where they cannot be "
                       "compared: the teacher has another width, or neither of the two numbers of "
                       "layers divides the other)")
    group.add_argument("--predict", metavar="TEXT_OR_FILE",
                       help="print what the fine-tuned --model predicts for a text, or for each "
                       "line of a file; a tab separates two texts, such as a question and its "
                       "context. The answers to a SQuAD file (.json) are written to --out "
                       "(default: predictions.json) as SQuAD's own script wants them. Nothing is "
                       "trained")
    group.add_argument("--evaluate", action="store_true",
                       help="only measure the fine-tuned --model: on --dev and --test files of "
                       "yours or, if it was trained on code or a task of GLUE, on that task's "
                       "files; nothing is trained")


def add_data_flags(parser):
    """Add the flags about the task and its files."""
    group = parser.add_argument_group("data")
    group.add_argument("--task", choices=list(GLUE) + list(KINDS) + ["code"], metavar="TASK",
                       help=f"a task of GLUE: {', '.join(GLUE)}; or the kind of your own files: "
                       f"{', '.join(KINDS)}; or code, the built-in task: which words of the "
                       "documentation were marked as code (default: code, trained three times: the "
                       "whole model, as with --adapters-only, and the whole model from random "
                       "weights)")
    group.add_argument("--data", type=path_name, metavar="DIR",
                       help="folder with the files of the GLUE task (default: download them)")
    group.add_argument("--train", type=path_name, nargs="+", action="extend", metavar="FILE",
                       help="your own training files: .tsv, .txt, .csv or .jsonl with named "
                       "columns; for tagging CoNLL; for qa SQuAD")
    group.add_argument("--dev", type=path_name, nargs="+", action="extend", metavar="FILE",
                       help="files to measure on (default: a tenth of --train is held out)")
    group.add_argument("--test", type=path_name, nargs="+", action="extend", metavar="FILE",
                       help="more files to measure on")
    group.add_argument("--text", nargs="+", action="extend", metavar="COLUMN",
                       help="the column with the text, or the two columns of two texts (default: "
                       "text)")
    group.add_argument("--label", default="label", metavar="COLUMN",
                       help="the column of the label (default: label)")
    group.add_argument("--length", type=integer_from(8), metavar="T",
                       help="largest number of tokens in a sequence; longer texts are cut, but "
                       "texts to tag and contexts of questions are read in windows (default: 128, "
                       "for qa 384, but no more than the model's positions)")
    group.add_argument("--stride", type=integer_from(1), default=128, metavar="N",
                       help="qa: tokens that two neighbouring windows of a context share; at most "
                       "half a window (default: 128)")


def add_training_flags(parser):
    """Add the flags about training."""
    group = parser.add_argument_group("training")
    mode_flags = group.add_mutually_exclusive_group()
    mode_flags.add_argument("--adapters-only", dest="modes", action="store_const",
                            const=["adapters"],
                            help="train only the head and what each recursion has of its own, "
                            "adapters or corrections; a model with neither gets adapters")
    mode_flags.add_argument("--freeze", dest="modes", action="store_const", const=["head"],
                            help="train only the head")
    parser.set_defaults(modes=["all"])
    group.add_argument("--lr", type=real_number(), nargs="+", action="extend", metavar="X",
                       help="highest learning rate: the rate grows to it in the first tenth of the "
                       "steps and then falls towards 0; of several the best is chosen on a tenth "
                       "of the training set (default, each times 768 / width: for the whole model "
                       "5e-5, with a hidden loss 1.5e-4, and without --task 4e-4, or 2e-4 if it "
                       "has corrections; for adapters or the head alone 1e-3; for corrections "
                       "alone 2.5e-4, with a hidden loss 5e-4)")
    group.add_argument("--seeds", type=integer_from(1), default=1, metavar="N",
                       help="number of runs, with the seeds --seed, --seed + 1, ...; the mean and "
                       "the standard deviation are printed (default: 1)")
    group.add_argument("--epochs", type=real_number(smallest=0.001), default=3.0, metavar="X",
                       help="number of passes through the training set (default: 3)")
    group.add_argument("--steps", type=integer_from(1), metavar="N",
                       help="steps to train (default: from --epochs; 200 if neither --task nor "
                       "--epochs is given)")
    group.add_argument("--batch-size", type=integer_from(1), default=32, metavar="B",
                       help="sequences in a step, of all processes together (default: 32)")
    group.add_argument("--micro-batch-size", type=integer_from(0), default=0, metavar="B",
                       help="sequences in memory at once; apart from dropout and rounding the "
                       "result is the same (default: 0, a process's whole share at once)")
    group.add_argument("--weight-decay", type=real_number(), default=0.01, metavar="X",
                       help="weight decay of AdamW; biases and LayerNorms have none (default: "
                       "0.01)")
    group.add_argument("--dropout", type=real_number(upper=1.0), default=0.0, metavar="P",
                       help="probability of dropout (default: 0; 0.1 is usual for a BERT, but has "
                       "harmed students of this project)")


PREDICT_FLAGS = ("--predict", "--model", "--recursions", "--device", "--bf16", "--out",
                 "--overwrite")
EVALUATE_FLAGS = ("--evaluate", "--model", "--recursions", "--task", "--data", "--dev", "--test",
                  "--text", "--label", "--device", "--bf16")


def arguments(argv):
    """Parse the command line. A new flag that changes what is trained also belongs in
    settings_of_command."""
    parser = CommandParser("finetune.py", __doc__)
    add_model_flags(parser)
    add_data_flags(parser)
    add_training_flags(parser)
    add_run_flags(parser, "folder for the runs and the model of the first seed (default: out/TASK)",
                  eval_every_default="0", save_every_default="200")
    parser.set_defaults(eval_every=0, save_every=200)    # "0" and "200" are for --help alone
    args = parser.parse_args(argv)
    if args.text is None:
        # This is not the flag's default, because action="extend" adds the given columns to it.
        args.text = ["text"]
    if len(args.text) > 2 or len(set(args.text)) < len(args.text):
        raise ValueError("--text: give one column or two different ones")
    if args.label in args.text:
        raise ValueError(f"--text and --label: {args.label!r} cannot be both")
    given = given_flags(argv)
    if args.predict is not None:
        allow_only(given, PREDICT_FLAGS, "--predict")
    elif args.evaluate:
        allow_only(given, EVALUATE_FLAGS, "--evaluate")
    else:
        fill_in_defaults(args, given)
        check_flags(args, given)
    return args


def fill_in_defaults(args, given):
    """Fill in --task and --out if they were not given, and --steps if --task was not. Add
    args.without_task, whether --task was not given. Such a command trains models in three modes
    (args.modes)."""
    args.without_task = args.task is None
    if args.without_task:
        args.task = "code"
        args.modes = ["all", "adapters", "random"]
        if args.steps is None and "--epochs" not in given:
            args.steps = 200
    if args.out is None:
        args.out = os.path.join("out", args.task)


# The flags about data that only some tasks use, each with these tasks.
TASKS_OF_FLAG = {
    "--data": GLUE,
    "--train": KINDS, "--dev": KINDS, "--test": KINDS,
    "--text": ("classification", "regression"),
    "--label": ("classification", "regression"),
    "--stride": ("qa",),
}


def check_flags(args, given):
    """Raise ValueError for flags that a training would ignore, or if the --task needs --train, but
    it was not given. The defaults of args have been filled in."""
    if args.without_task:
        refuse_flags(given, ["--adapters-only", "--freeze"],
                     "without --task the built-in task is trained, and this would be ignored")
    check_data_flags(args.task, given)
    if args.task in KINDS and args.train is None:
        raise ValueError(f"--task {args.task} needs files of yours: give --train FILE and, if you "
                         "have them, --dev FILE and --test FILE (to measure a fine-tuned model "
                         "add --evaluate)")
    if "--steps" in given:
        refuse_flags(given, ["--epochs"], "--steps says already how long to train")
    if args.lr is not None and len(set(args.lr)) < len(args.lr):
        raise ValueError("--lr: the same rate is given twice")
    if args.distill_from is None:
        refuse_flags(given, ["--hidden-weight"], "there is no teacher without --distill-from")
    if args.modes == ["head"]:
        refuse_flags(given, ["--hidden-weight"], "with --freeze the hidden states do not change")


def check_data_flags(task_name, given):
    """Raise ValueError for a flag in TASKS_OF_FLAG that the task would ignore."""
    for flag, tasks in TASKS_OF_FLAG.items():
        if flag in given and task_name not in tasks:
            listed = ", ".join(tasks)
            raise ValueError(f"{flag}: the task {task_name} does not use it; it is for --task "
                             f"{listed}")


# ---- All runs of a command --------------------------------------------------------------

def run(args):
    """Make all runs of a command that trains, and print what can come next."""
    setup, datasets = prepare(args)
    inputs = paths_to_read(args, setup.model_path)
    with lock_folder(args, "finetune.py", setup.settings, inputs, setup.processes):
        run_modes(setup, datasets)
    placeholder = "TEXT"
    if setup.task.pair:
        placeholder = "$'TEXT\\tTEXT'"                   # a shell turns \t into a tab
    print(f"In {args.out} are the model of seed {args.seed} ({args.modes[0]}), its predictions and "
          "all scores. Next:\n"
          f"    python finetune.py --model {shlex.quote(args.out)} --predict {placeholder}")


def prepare(args):
    """Read the data and check the model and the teacher -> (Setup, {name of a split: examples})."""
    # Without --task, or with the default --model, --model must be a folder, such as a student of
    # distill.py. It cannot be the name of a model on the hub.
    must_exist = args.without_task or args.model == DEFAULT_OUT
    if must_exist and not os.path.exists(args.model):
        raise ValueError(f"--model {args.model}: there is no such folder. Run python distill.py "
                         "first, or give another model")
    processes = set_up_processes(args.device)
    check_batch_size(args.batch_size, processes)
    bf16 = uses_bf16(args.bf16, processes.device)
    model_path = fetch(args.model)
    # Only the Config is used here (--recursions changes it); each run loads the model again. The
    # tokenizer is read after the model, so that for a RoBERTa the message says what the model is,
    # and not only that its tokenizer does not fit.
    config = load(model_path, args.recursions).config
    tokenizer = Tokenizer(model_path)
    check_vocabulary(tokenizer, config)
    kind = kind_of_task(args.task)
    length = choose_length(args.length, kind, config.max_position_embeddings)
    with one_per_machine_first(processes):
        datasets = read_datasets(args, args.task, kind)
    task = make_task(args.task, kind, datasets, length, args.stride)
    teacher = load_teacher(args.distill_from, task, tokenizer)
    hidden_weight = choose_hidden_weight(args.hidden_weight, args.modes, teacher, config)
    settings = settings_of_command(args, task, datasets, tokenizer, teacher, bf16)
    # This also checks whether the model fits the task: load_classifier raises the ValueErrors.
    settings |= fingerprints_of_saved_model(model_path, task, args.recursions)
    print_saved_task(model_path)
    setup = Setup(
        args=args, model_path=model_path, config=config, task=task, tokenizer=tokenizer,
        teacher=teacher, hidden_weight=hidden_weight, settings=settings, processes=processes,
        bf16=bf16)
    return setup, datasets


def check_vocabulary(tokenizer, config):
    """Raise ValueError if the model with this Config has fewer tokens than its tokenizer."""
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(f"{tokenizer.path}: its tokenizer has {tokenizer.vocab_size} tokens, the "
                         f"model only {config.vocab_size}")


def choose_length(length, kind, num_positions):
    """Return --length, or its default. load_classifier checks whether it is too large."""
    if length is None:
        length = 128
        if kind == "qa":
            length = 384
        length = min(length, num_positions)
    return length


def settings_of_command(args, task, datasets, tokenizer, teacher, bf16):
    """Collect the settings that must be the same to resume a command: {name: value}. prepare()
    adds those of the model."""
    teacher_shape = None
    if teacher is not None:
        teacher_shape = vars(teacher.encoder.config)
    return {
        # What is trained, and on what:
        "task": task.name, "modes": args.modes, "recursions": args.recursions,
        "training_set": hash_examples(datasets["train"]),
        "dev_set": hash_examples(datasets[first_dev_split(datasets)]),
        "tokenizer": tokenizer.digest,
        "teacher": fingerprint(teacher), "teacher_shape": teacher_shape,
        "hidden_weight": args.hidden_weight,
        # How it is trained:
        "lr": args.lr, "seed": args.seed, "epochs": args.epochs, "steps": args.steps,
        "batch_size": args.batch_size, "dropout": args.dropout, "weight_decay": args.weight_decay,
        "length": task.length, "stride": args.stride, "bf16": bf16}


def hash_examples(examples):
    """Compute a hash of the texts and labels of Examples. It does not change if a file is moved."""
    digest = 0
    for example in examples:
        content = (example.text, example.second_text, example.label)
        # crc32 goes on from the digest of the examples before.
        digest = zlib.crc32(ascii(content).encode(), digest)
    return digest


def fingerprints_of_saved_model(path, task, recursions):
    """Load a model for a task. Return the hash and the shape of its encoder and the hash of its
    task head: {name: hash or shape}.

    By these --resume sees whether the model is still the same. New adapters and a new head are not
    hashed: a resumed run makes them anew, before it restores their trained values, and on another
    processor the last digits of the new values may differ.
    """
    model = load_classifier(path, task, recursions=recursions)
    fingerprints = {"encoder": fingerprint(model.encoder), "head": None,
                    "shape": vars(model.encoder.config)}
    if load_task(path) is not None:                      # the folder holds a head, too
        fingerprints["head"] = hash_file(os.path.join(path, "head.safetensors"))
    return fingerprints


def print_saved_task(model_path):
    """If the model is a fine-tuned one, print that its task head is trained further."""
    saved_task = load_task(model_path)
    if saved_task is not None:
        print(f"{model_path} was fine-tuned for {saved_task.name} already: training goes on with "
              "its head, unless it begins from random weights")


def paths_to_read(args, model_path):
    """List the folders and files that the command reads: none of these folders may be --out. A path
    is None if its flag was not given."""
    paths = [model_path, args.distill_from, args.data]
    for files in (args.train, args.dev, args.test):
        if files is not None:
            paths += files
    return paths


def run_modes(setup, datasets):
    """Fine-tune in all modes. Print the scores, and write the files of the command into --out.

    datasets: {name of a split: examples}
    """
    args = setup.args
    task = setup.task
    tokenizer = setup.tokenizer
    print_task(task, datasets)
    splits_for_rates = make_splits_for_rates(setup, datasets["train"])
    splits = encode_splits(task, datasets, tokenizer)
    check_texts(task, splits, tokenizer)
    check_trainable(splits["train"].features)
    warn_of_known_texts(datasets)
    if task.kind == "tagging":
        warn_of_split_words(datasets["train"])
    if setup.teacher is not None:
        print_teacher_scores(setup, splits)
    if setup.processes.rank == 0:
        # The files of an earlier run are removed only now. So if something above fails, --overwrite
        # loses nothing.
        claim_folder(args.out, "finetune.py", setup.settings, args.resume)
    baseline = results_of_majority(task, datasets)
    rate_of_mode = {}
    results_of_modes = {}
    for mode in args.modes:
        lr = choose_rate(setup, mode, splits_for_rates)
        results_of_modes[mode] = run_seeds(setup, splits, mode, lr)
        rate_of_mode[mode] = lr
    if setup.processes.rank == 0:
        write_results(args, task, datasets, baseline, rate_of_mode, results_of_modes)
    print_scores("majority", [baseline])
    for mode in args.modes:
        print_scores(mode, results_of_modes[mode])


def make_splits_for_rates(setup, examples):
    """Hold out a tenth of the training set for find_best_rate -> {"dev": Split, "train": Split}.
    Without several rates there is nothing to choose, and None is returned."""
    rates = setup.args.lr
    if rates is None or len(rates) == 1:
        return None
    held_out, rest = hold_out_a_tenth(examples, setup.task.kind)
    # held_out is not the real dev set, but train_and_measure() needs a split called "dev".
    splits = encode_splits(setup.task, {"dev": held_out, "train": rest}, setup.tokenizer)
    check_trainable(splits["train"].features)
    return splits


def print_teacher_scores(setup, splits):
    """Move the teacher to the device, where it stays for the training. Print how good it is on the
    first dev set."""
    setup.teacher.to(setup.processes.device)
    dev_split = splits[first_dev_split(splits)]
    result = evaluate_split(setup.teacher, dev_split, setup.bf16)
    print(f"teacher {setup.args.distill_from}: {describe_scores(result.scores)}")


def choose_rate(setup, mode, splits_for_rates):
    """Return the learning rate for a mode: the default, or the only --lr, or the best of several on
    the splits_for_rates (see find_best_rate)."""
    args = setup.args
    rates = args.lr
    if rates is None:
        learns_hidden = setup.hidden_weight > 0
        return default_rate(mode, setup.config, args.without_task, learns_hidden)
    if len(rates) == 1:
        return rates[0]
    lr = find_best_rate(setup, mode, splits_for_rates)
    # All processes take the rate that the first one has chosen. Others may have rounded their
    # scores differently and chosen another one.
    rate_index = torch.tensor(rates.index(lr), device=setup.processes.device)
    broadcast([rate_index], setup.processes)
    return rates[rate_index.item()]


def default_rate(mode, config, without_task, learns_hidden=False):
    """Return the learning rate for a mode and a model with this Config.

    without_task: whether --task was not given. Without more flags a run then has 200 steps
    learns_hidden: whether there is a hidden loss. Then corrections alone need a higher rate, and
        so does a whole model, if a --task was given

    The rate must be higher if few parameters are trained, or if there are few steps. Corrections
    need a lower rate than adapters. EXPERIMENTS.md compares rates.
    """
    if mode == "adapters" and config.has_corrections:    # the mode also trains corrections: MODES
        rate = 2.5e-4
        if learns_hidden:
            rate = 5e-4
    elif mode in ("adapters", "head"):
        rate = 1e-3
    elif without_task:                                   # "all" or "random"
        rate = 4e-4
        if config.has_corrections:
            rate = 2e-4
    else:                                                # the same modes, with --task
        rate = 5e-5
        if learns_hidden:
            rate = 1.5e-4
    # These rates are for the width of bert-base, 768. A narrower model needs a higher rate.
    return rate * 768 / config.hidden_size


def find_best_rate(setup, mode, splits):
    """Choose the best of the rates that --lr gives: that with the highest score. The models are
    dropped: run_seeds() trains again, on the whole training set.

    splits: {"train": a part of the training set, "dev": its other examples}, each a Split; the
        scores are those on "dev", which is not the real dev set
    """
    args = setup.args
    rates = args.lr
    metric = setup.task.metrics[0]
    score_of_rate = {}
    for lr in rates:
        try:
            model, results = fine_tune(setup, splits, mode, args.seed, lr)
            del model                                    # before the next run loads its own
        except FloatingPointError as error:              # the rate is too high
            print(f"--lr {lr:g}: {error}", flush=True)
            # A single process can drop this rate and try the next one. Several processes cannot:
            # during the training only process 0 evaluates. If its evaluation fails, the others are
            # still training with this rate. They would wait for process 0 for ever.
            if setup.processes.world_size > 1:
                raise
        else:
            score_of_rate[lr] = results["dev"].scores[metric]
    if not score_of_rate:
        all_rates = ", ".join(f"{lr:g}" for lr in rates)
        raise FloatingPointError(f"--lr: the training diverges with each of {all_rates}")
    best_first = sorted(score_of_rate, key=score_of_rate.get, reverse=True)
    rates_and_scores = ", ".join(f"{lr:g} {score_of_rate[lr]:.2%}" for lr in best_first)
    print(f"learning rates, best first ({metric} on a held-out tenth of the training set): "
          f"{rates_and_scores}")
    return best_first[0]


def run_seeds(setup, splits, mode, lr):
    """Make the runs of all seeds in a mode -> a list: for each run {name of a split: Result}. The
    model of the first mode and seed, and its predictions, are written into the folder --out."""
    args = setup.args
    results_of_seeds = []
    for seed in range(args.seed, args.seed + args.seeds):
        model, results = fine_tune(setup, splits, mode, seed, lr)
        results_of_seeds.append(results)
        is_first_run = mode == args.modes[0] and seed == args.seed
        if is_first_run and setup.processes.rank == 0:
            save_classifier(args.out, model, setup.tokenizer)
            for split_name, result in results.items():
                write_predictions(args.out, setup.task, split_name,
                                  splits[split_name].examples, result.predictions)
        del model                                        # before the next run loads its own
    return results_of_seeds


# ---- The teacher of --distill-from ------------------------------------------------------

def load_teacher(path, task, tokenizer):
    """Load the fine-tuned teacher of --distill-from -> Classifier, or None if there is none.

    ValueError if the teacher does not fit the task or the tokenizer.
    """
    if path is None:
        return None
    saved_task = load_task(path)
    if saved_task is None:
        raise ValueError(f"--distill-from {path}: not the folder of a fine-tuned model: it has no "
                         "task.json")
    teacher = load_classifier(path, task)
    # Only tasks of GLUE are told apart by name: those of the user's own files have no such names.
    if saved_task.name in GLUE and task.name in GLUE and saved_task.name != task.name:
        raise ValueError(f"--distill-from {path} was fine-tuned for {saved_task.name}, not for "
                         f"{task.name}; fine-tune a teacher for this task")
    if Tokenizer(path).digest != tokenizer.digest:
        raise ValueError(f"--distill-from {path}: its tokenizer differs from the model's")
    return teacher


DEFAULT_HIDDEN_WEIGHT = 3.0         # of the hidden loss in fine-tuning, with --distill-from


def choose_hidden_weight(given_weight, modes, teacher, config):
    """Return the weight of the hidden loss for a teacher (a Classifier or None) and a model with
    this Config. given_weight is that of --hidden-weight, or None if it was not given.

    The hidden states can be compared if both models have the same width and one of the two numbers
    of layers divides the other. If they cannot be compared, a given weight above 0 is a ValueError.
    If none was given, the weight is 0 then, and the reason is printed.
    """
    if teacher is None or modes == ["head"] or given_weight == 0:
        return 0.0                                       # nothing is to be compared
    num_recursions = config.num_hidden_layers
    num_layers = teacher.encoder.config.num_hidden_layers
    width = config.hidden_size
    teacher_width = teacher.encoder.config.hidden_size
    if teacher_width == width and can_match_layers(num_recursions, num_layers):
        if given_weight is None:
            return DEFAULT_HIDDEN_WEIGHT
        return given_weight
    reason = (f"the teacher has {num_layers} layers of width {teacher_width}, the model "
              f"{num_recursions} recursions of width {width}")
    if given_weight is not None:
        raise ValueError(f"--hidden-weight {given_weight:g}: the hidden states cannot be compared: "
                         f"{reason}")
    print(f"the hidden states are not compared with the teacher's: {reason}")
    return 0.0


# ---- The data ---------------------------------------------------------------------------

def read_datasets(args, task_name, kind, with_train=True):
    """Read the task's examples -> {name of a split: examples}. If there is a training set, but no
    dev set, a tenth of the training set is held out as one.

    with_train: False for --evaluate: the training set is left out, and its file may be missing
    """
    if task_name in GLUE:
        folder = args.data
        if folder is None:
            folder = download_glue(task_name)
        datasets = read_glue(task_name, folder, with_train)
    elif task_name == "code":
        datasets = read_code_task(docs_on_this_machine())
        if not with_train:
            del datasets["train"]
    else:
        # with_train is not needed here, because --evaluate does not allow --train.
        files = {}
        for split_name, paths in [("train", args.train), ("dev", args.dev), ("test", args.test)]:
            if paths is not None:
                files[split_name] = paths
        datasets = read_own_files(kind, files, args.text, args.label)
    has_dev = any(split_name.startswith("dev") for split_name in datasets)
    if "train" in datasets and not has_dev:
        held_out, rest = hold_out_a_tenth(datasets["train"], kind)
        datasets["dev"] = held_out
        datasets["train"] = rest
    if kind == "regression":
        warn_of_equal_numbers(datasets)
    return datasets


def warn_of_equal_numbers(datasets):
    """Warn if all examples of a dev or test set have the same number, because no correlation can be
    computed then. (With such a training set make_task raises an error.)"""
    for split_name, examples in datasets.items():
        numbers = {example.label for example in examples}
        if split_name != "train" and len(numbers) == 1 and None not in numbers:
            warn(f"{split_name}: all {len(examples):,} examples have the number {min(numbers):g}, "
                 "so its correlations are 0; are its labels not published?")


def first_dev_split(split_names):
    """Return the name of the first dev set; MNLI has two. split_names may be a dict of splits."""
    return [name for name in split_names if name.startswith("dev")][0]


def print_task(task, datasets):
    """Print in one line what is to be learned."""
    sizes = []
    for name, examples in datasets.items():
        size = f"{len(examples):,} {name}"
        if examples[0].label is None:                    # GLUE keeps those of its test sets secret
            size += " without labels, so without scores"
        sizes.append(size)
    line = f"{task.name}: "
    if task.kind != task.name:
        line += f"{task.kind}; "
    line += ", ".join(sizes)
    if task.labels:                                      # there are none in regression and qa
        line += f"; labels {first_few([printable(label) for label in task.labels], limit=30)}"
    print(line, flush=True)


def encode_splits(task, datasets, tokenizer):
    """Tokenise all datasets, {name of a split: examples} -> {name of a split: Split}."""
    splits = {}
    for name, examples in datasets.items():
        splits[name] = Split(examples, encode(task, examples, tokenizer))
    return splits


def check_trainable(features):
    """Raise ValueError if no Feature has a token for which something is predicted, so that nothing
    can be learned, or if a label is not known."""
    if not any(feature.positions for feature in features):
        raise ValueError("no example has a token that could be trained on")
    for feature in features:
        if feature.labels is None:
            raise ValueError(f"example {feature.example_number} has no label to train on")


def check_texts(task, splits, tokenizer):
    """Print a warning if many characters are unknown to the tokenizer, and one if texts were cut.

    ValueError if over half of the characters of the training set are unknown. For --evaluate and
    --predict there is no training set.
    """
    for name, split in splits.items():
        check_characters(name, split.examples, tokenizer)
        warn_of_cut(name, split, task.length)


def check_characters(split_name, examples, tokenizer):
    """Print a warning if over a tenth of the characters of the examples become [UNK]: see
    data.count_characters. ValueError if over half of them do in a training set."""
    texts = []
    for example in examples:
        if isinstance(example.text, list):               # the words of a text to tag
            texts.append(" ".join(example.text))
        else:
            texts.append(example.text)
        if example.second_text is not None:
            texts.append(example.second_text)
    num_characters, num_unknown = count_characters(texts, tokenizer)         # in a sample
    unknown_share = num_unknown / max(1, num_characters)
    check_unknown_share(split_name, unknown_share, tokenizer, only_warn=split_name != "train")


def warn_of_cut(split_name, split, length):
    """Print a warning if texts of a Split were cut. Texts to tag and contexts in qa are not cut,
    but read in windows. So in qa only questions are counted."""
    # A question that was cut may have many windows with was_cut, but is counted once.
    cut_examples = {feature.example_number for feature in split.features if feature.was_cut}
    if cut_examples:
        warn(f"{split_name}: in {len(cut_examples):,} of {len(split.examples):,} examples a text "
             f"is too long for --length {length} and was cut")


def warn_of_known_texts(datasets):
    """Warn if over 2 % of another split's examples are in the training set, too. (In the official
    files of CoLA 1.8 % of the test set are. The limit is just above that.)"""
    known_texts = {hash_of_text(example) for example in datasets["train"]}
    for split_name, examples in datasets.items():
        if split_name == "train":
            continue
        known = [example for example in examples if hash_of_text(example) in known_texts]
        if len(known) > len(examples) / 50:
            warn(f"{split_name}: {len(known):,} of {len(examples):,} examples are in the training "
                 "set, too, so the scores may be too high")


def hash_of_text(example):
    """Return a number for the one or two texts of an Example: equal texts have the same."""
    return hash(f"{example.text}\t{example.second_text}")


def warn_of_split_words(examples):
    """Warn if --predict would split over 1 % of the words of these sentences. For example, it makes
    three words of "IL-2", which may be one word in a file."""
    counts = Counter()
    for example in examples:
        counts.update(example.text)
    changed = [word for word in counts if split_words(word) != [word]]
    num_changed = sum(counts[word] for word in changed)
    if num_changed > counts.total() / 100:
        warn(f"--predict would split {num_changed:,} of {counts.total():,} words to train on, such "
             f"as {changed[0]!r:.60}, so its predictions may be worse than the scores")


# ---- The scores -------------------------------------------------------------------------

def results_of_majority(task, datasets):
    """Score the guesses of majority(), which need no model -> {name of a split: Result}."""
    results = {}
    for split_name, examples in datasets.items():
        if split_name != "train":
            guesses = majority(task, datasets["train"], examples)
            results[split_name] = Result(score(task, examples, guesses), predictions=[])
    return results


def print_scores(name, results_of_seeds):
    """Print the rows of a table that begin with a name, which is a mode, "majority" or "model".

    results_of_seeds: for each run {name of a split: Result}
    """
    for split_name, first_result in results_of_seeds[0].items():
        for metric in first_result.scores:
            values = [results[split_name].scores[metric] for results in results_of_seeds]
            deviation = ""
            if len(values) > 1:
                deviation = f" +- {np.std(values, ddof=1):.2%} of {len(values)} seeds"
            print(f"{name:10}{split_name:16}{metric:12}{np.mean(values):8.2%}{deviation}")


def describe_scores(scores):
    """Put scores {metric: value} into one line of text."""
    if not scores:
        return "no score, because some labels are not known"
    return ", ".join(f"{metric} {value:.2%}" for metric, value in scores.items())


def write_results(args, task, datasets, baseline, rate_of_mode, results_of_modes):
    """Write results.json into --out. For each mode and split it has the scores of all seeds and,
    for the first seed only, the scores of each class or type of entity.

    baseline: {name of a split: Result} of the guesses without a model
    rate_of_mode: {mode: its learning rate}
    results_of_modes: {mode: for each seed {name of a split: Result}}
    """
    baseline_scores = {split_name: result.scores for split_name, result in baseline.items()}
    modes = {}
    for mode, results_of_seeds in results_of_modes.items():
        splits_of_mode = {}
        for split_name, first_result in results_of_seeds[0].items():
            scores = [results[split_name].scores for results in results_of_seeds]
            guesses = [prediction.guess for prediction in first_result.predictions]
            details = detailed_scores(task, datasets[split_name], guesses)
            splits_of_mode[split_name] = {"scores": scores, "details": details}
        modes[mode] = splits_of_mode
    seeds = list(range(args.seed, args.seed + args.seeds))
    written = {"task": task.name, "kind": task.kind, "model": args.model, "seeds": seeds,
               "lr": rate_of_mode, "majority": baseline_scores, "modes": modes}
    write_json(os.path.join(args.out, "results.json"), written)


# ---- The command line: --evaluate and --predict -----------------------------------------

def use_fine_tuned(args, given):
    """Do what --predict or --evaluate says. given: the list of the flags on the command line"""
    processes = set_up_processes(args.device)
    if processes.rank > 0:
        return                                           # one process is enough without training
    bf16 = uses_bf16(args.bf16, processes.device)
    model = load_classifier(args.model, recursions=args.recursions)
    tokenizer = Tokenizer(args.model)
    check_vocabulary(tokenizer, model.encoder.config)
    if model.encoder.config.has_corrections and not bf16:
        # The corrections are added to the matrices once, here, instead of in each batch. This is
        # not done in bfloat16, where it would change the predictions a little: the training rounds
        # a correction to bfloat16 before it is added.
        model.encoder = merge_corrections(model.encoder)
    model.to(processes.device)
    if args.evaluate:
        run_evaluation(args, given, model, tokenizer, bf16)
        return
    # A question and its context have a tab between them; the name of a file has none.
    is_json_name = args.predict.lower().endswith(".json") and "\t" not in args.predict
    if model.task.kind == "qa" and is_json_name:
        write_answers(args, model, tokenizer, bf16)
    else:
        print_predictions(args, model, tokenizer, bf16)


def run_evaluation(args, given, model, tokenizer, bf16):
    """Measure a fine-tuned model on files of its task and print the scores. For given see
    use_fine_tuned."""
    task = model.task
    if args.task is not None and args.task not in (task.name, task.kind):
        raise ValueError(f"--task {args.task}: {args.model} was fine-tuned for {task.name}")
    check_data_flags(task.name, given)
    if task.name in KINDS and args.dev is None and args.test is None:
        raise ValueError("--evaluate: give files to measure on with --dev FILE or --test FILE")
    datasets = read_datasets(args, task.name, task.kind, with_train=False)
    results = predict_datasets(datasets, model, tokenizer, bf16)
    for name, result in results.items():
        if not result.scores:
            print(f"{name}: its labels are not known, so it cannot be scored")
    print_scores("model", [results])


def predict_datasets(datasets, model, tokenizer, bf16):
    """Predict the labels of datasets, {name: examples} -> {name: Result}. Warnings say whether
    characters are unknown and whether texts are cut."""
    splits = encode_splits(model.task, datasets, tokenizer)
    check_texts(model.task, splits, tokenizer)
    return {name: evaluate_split(model, split, bf16) for name, split in splits.items()}


def print_predictions(args, model, tokenizer, bf16):
    """Print what the fine-tuned model predicts for a text, or for each line of a file."""
    task = model.task
    if args.out is not None or args.overwrite:
        raise ValueError("--out and --overwrite: only the answers to a SQuAD file (.json) are "
                         "written")
    lines = lines_to_predict(args.predict)
    full_lines = [(location, line) for location, line in lines if line.strip()]
    examples = [example_of_line(line, task, location) for location, line in full_lines]
    if not examples:
        raise ValueError(f"--predict {args.predict!r:.60}: there is no text")
    if task.kind == "tagging":
        check_are_sentences(args.predict, [line for _, line in full_lines])
    results = predict_datasets({"--predict": examples}, model, tokenizer, bf16)
    predictions = iter(results["--predict"].predictions)     # one for each line that is not empty
    for _, line in lines:
        if line.strip():
            print(describe_prediction(task, line, next(predictions)))
        else:
            print()                                      # for an empty line an empty line


def lines_to_predict(text_or_file):
    """List the lines that --predict gives, each as (location, line): those of the file, or the text
    as the only line. ValueError for a folder or a table, or if there is no such file."""
    if not os.path.exists(text_or_file):
        # It looks like the name of a file if it has no space, but a slash or an ending, or is "-".
        if re.fullmatch(r"\S*[/\\]\S*|\S+\.[A-Za-z0-9]{1,7}|-", text_or_file):
            raise ValueError(f"--predict {text_or_file}: there is no such file; if it is meant as "
                             "a text, add a space to it")
        # Bytes of the command line that are not UTF-8 are surrogates in Python's text, which cannot
        # be printed. Here they become question marks.
        text = text_or_file.encode("utf-8", "replace").decode()
        return [("--predict", text)]
    if not os.path.isfile(text_or_file) or re.search(r"(?i)\.(csv|jsonl?)$", text_or_file):
        raise ValueError(f"--predict {text_or_file}: give a regular file with a text on each line, "
                         "not a folder, a table or a .json; if it is meant as a text, add a space")
    return [(f"{text_or_file}:{number}", line) for number, line in lines_of(text_or_file)]


def example_of_line(line, task, location="the text"):
    """Make the Example of a line of text; a tab separates two texts. The location is where the line
    stands, for messages."""
    if task.kind == "qa":
        texts = line.split("\t", 1)                      # a context may have tabs
    else:
        texts = line.split("\t")
    num_texts = 2 if task.pair else 1
    if len(texts) != num_texts:
        needed = describe_number_of_texts(task)
        raise ValueError(f"{location} {line!r:.60}: this model needs {needed}; a tab separates two "
                         "texts (inside a text put a space in its place); for a file with labels "
                         "or tags say --evaluate --test FILE")
    text = texts[0]
    if task.kind == "tagging":
        text = split_words(text)
    second_text = None
    if task.pair:
        second_text = texts[1]
    return Example(text, second_text, location=location)


def check_are_sentences(path, lines):
    """Raise ValueError if each of these lines is a word and its tag: a tagger would take it for a
    sentence."""
    # This is the pattern of "Rome NNP B-LOC" and of "lives O". In some files a tag has no type: it
    # is B or I alone.
    pattern = r"\S+ (.* )?(O|B|I|[BIMESLU]-\S+)"
    if len(lines) > 1 and all(re.fullmatch(pattern, line) for line in lines):
        raise ValueError(f"--predict {path}: each line has a word and a tag, but here a line is a "
                         "sentence without tags; --evaluate --test FILE reads words and tags. (If "
                         "the lines are sentences, end one with a full stop)")


def describe_prediction(task, line, prediction):
    """Put a Prediction for a line of text into one line; of classes the most probable is first."""
    guess = prediction.guess
    if task.kind == "classification":
        probabilities = prediction.probabilities
        ordered = sorted(probabilities, key=probabilities.get, reverse=True)
        return ", ".join(f"{printable(label)} {probabilities[label]:.1%}" for label in ordered)
    if task.kind == "regression":
        return f"{guess:.6g}"
    if task.kind == "tagging":
        return describe_entities(line, guess)
    # The kind is qa.
    if guess == "":
        return "no answer"
    return printable(guess)


def describe_entities(text, tags):
    """List in one line the entities of a text, as they stand in it, with their types.

    tags: one for each of its words
    """
    spans = find_words(text)
    found = []
    for first, end, entity_type in sorted(entities(tags)):
        begin_of_entity, _ = spans[first]
        _, end_of_entity = spans[end - 1]
        entity = printable(text[begin_of_entity:end_of_entity])
        found.append(f"{entity} ({printable(entity_type)})")
    if not found:
        return "no entity"
    return ", ".join(found)


def write_answers(args, model, tokenizer, bf16):
    """Answer the questions of a SQuAD file, and write {id: answer} for SQuAD's own script."""
    out = args.out
    if out is None:
        out = "predictions.json"
    check_answers_path(out, args)
    examples = read_squad(args.predict)
    results = predict_datasets({"--predict": examples}, model, tokenizer, bf16)
    result = results["--predict"]
    answers = {}
    for example, prediction in zip(examples, result.predictions):
        answers[example.id] = prediction.guess
    with replace_file(out, shared=True) as file:
        file.write(json.dumps(answers).encode())
    print(f"{out}: {len(answers):,} answers; {describe_scores(result.scores)}")


def check_answers_path(out, args):
    """Raise ValueError if write_answers cannot or must not write the file out."""
    if os.path.realpath(out) == os.path.realpath(args.predict):
        raise ValueError(f"--out {out}: this file is read from; choose another one")
    folder = os.path.dirname(os.path.join(".", out))     # "." if out is a name alone
    if not os.path.isdir(folder):
        raise ValueError(f"--out {out}: there is no folder {folder}")
    if os.path.realpath(folder) == os.path.realpath(args.model):
        raise ValueError(f"--out {out}: the model is in this folder; choose another one")
    if os.path.exists(out) and not os.path.isfile(out):
        raise ValueError(f"--out {out}: this is not a regular file")
    if os.path.exists(out) and not args.overwrite:
        raise ValueError(f"--out {out} exists already: --overwrite replaces it")


def main(argv=None):
    """Run the command line argv (None: that of the program) -> exit status: see run_command."""
    def action():
        args = arguments(argv)
        if args.predict is not None or args.evaluate:
            use_fine_tuned(args, given_flags(argv))
        else:
            run(args)
        leave_processes()
    return run_command("finetune.py", action)


if __name__ == "__main__":
    sys.exit(main())
