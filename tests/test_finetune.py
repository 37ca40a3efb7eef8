"""finetune.py: features, losses, predictions and frozen parts against plain loops, whole runs of
the command, its bad input."""
import json
import math
import os
import random
import re
import shutil
import signal
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import finetune
from checkpoint import load, read_json, read_safetensors, save, write_safetensors
from conftest import (LETTERS, files_below, make_squad, make_task_of_kind, make_task_tokenizer,
                      noisy_model, note_first_process, randomise, write_documentation, write_file)
from data import Tokenizer
from distill import Processes, TrainingOptions, output_loss
from finetune import (Classifier, TaskLoss, change_normalisation, check_trainable,
                      choose_hidden_weight, choose_length, collate, collate_labels, decode,
                      decode_answers, default_rate, encode, encode_splits, evaluate_split,
                      first_dev_split, fit_adapters_to_identity, load_classifier, load_encoder,
                      main, predict_logits, save_classifier)
from minialbert import Config, MiniALBERT
from tasks import Example, Prediction, read_glue

ALL_KINDS = ["classification", "regression", "tagging", "qa"]
LABELS = {"classification": ["O", "B-x", "I-x"], "regression": [], "tagging": ["O", "B-x", "I-x"],
          "qa": []}


def small_config(tokenizer, **changes):
    sizes = {"vocab_size": tokenizer.vocab_size, "hidden_size": 24, "embedding_size": 12,
             "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
             "max_position_embeddings": 48,
             "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes.update(changes)
    return Config(**sizes)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_task_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def model_once(tmp_path_factory, tokenizer):
    """Make a folder with a small model without adapters and its tokenizer, which nobody changes."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    save(MiniALBERT(small_config(tokenizer)), folder)
    tokenizer.save(str(folder))
    return folder


@pytest.fixture
def model(model_once, tmp_path):
    """Make a folder with a small model without adapters, and its tokenizer."""
    torch.manual_seed(1)                                 # for a test that makes one more model
    return str(shutil.copytree(model_once, tmp_path / "model"))


def make_classifier(tokenizer, task, seed=0, **shape):
    """Make a small Classifier with random parameters, in eval mode; shape changes its Config."""
    torch.manual_seed(seed)
    encoder = MiniALBERT(small_config(tokenizer, **shape), head=False)
    return randomise(Classifier(encoder, task, dropout=0.5))


def make_text_example(text, label, second_text=None):
    return Example(text, second_text, label, "", "")


def make_examples(kind):
    """Make three examples of a kind, of 3, 9 and 5 words."""
    rng = random.Random(0)
    examples = []
    for num_words in (3, 9, 5):
        words = rng.choices(["good", "bad", "city"], k=num_words)
        text = " ".join(words)
        if kind == "classification":
            example = make_text_example(text, rng.choice(LABELS[kind]))
        elif kind == "regression":
            example = make_text_example(text, float(num_words))
        elif kind == "tagging":
            example = make_text_example(words, rng.choices(LABELS[kind], k=num_words))
        else:
            example = make_text_example("who", [(0, text[:8])], text)
        examples.append(example)
    return examples


def write_sentiment(path, num_rows, seed):
    """Write a file of the task sst2: texts with "good" are 1, those with "bad" 0."""
    rng = random.Random(seed)
    lines = ["sentence\tlabel\n"]
    for _ in range(num_rows):
        words = rng.choices(["the", "film", "is", "very"], k=rng.randint(1, 6))
        label = rng.randint(0, 1)
        words.append("good" if label == 1 else "bad")
        lines.append(f"{' '.join(words)} .\t{label}\n")
    write_file(path, "".join(lines))


@pytest.fixture
def sentiment(tmp_path):
    """Make a folder with the files of a small task sst2."""
    write_sentiment(tmp_path / "sst2/train.tsv", 64, seed=0)
    write_sentiment(tmp_path / "sst2/dev.tsv", 24, seed=1)
    return tmp_path / "sst2"


def run(capsys, *flags, code=None):
    """Run finetune.py, assert its exit status, return what it printed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status = main([str(flag) for flag in flags])
    printed = capsys.readouterr()
    assert status == code, printed
    return printed


def fail(capsys, *flags):
    """Run finetune.py with a mistake and return its error, which is one line."""
    error = run(capsys, *flags, code=2).err
    assert error.count("\n") == 1
    assert error.startswith("finetune.py: error: ")
    return error


def percent(printed, row, split, metric):
    """Find a score in the table that a run prints."""
    return float(re.search(rf"^{row} +{split} +{metric} +([\d.]+)%", printed, re.M)[1])


def read_json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- Texts as tokens --------------------------------------------------------------------

@pytest.mark.parametrize("num_first, num_second, kept_first, kept_second", [
    (2, 3, 2, 3), (20, 3, 7, 3), (2, 20, 2, 8), (20, 20, 5, 5), (0, 0, 0, 0)])
def test_two_texts_share_the_room_and_the_longer_gives_way(
        num_first, num_second, kept_first, kept_second, tokenizer):
    task = make_task_of_kind("classification", ["0", "1"], length=13, pair=True)
    example = make_text_example(" ".join("x" * num_first), "1", " ".join("y" * num_second))
    feature, = encode(task, [example], tokenizer)
    x, y = tokenizer.encode(["x y"])[0]
    expected = [tokenizer.cls_id] + [x] * kept_first + [tokenizer.sep_id]
    assert feature.num_before == len(expected)
    expected += [y] * kept_second + [tokenizer.sep_id]
    assert feature.ids.tolist() == expected
    assert (feature.labels, feature.positions) == ([1], [0])


def test_one_text_is_truncated_to_the_length(tokenizer):
    task = make_task_of_kind("regression", length=13)
    feature, = encode(task, [make_text_example(" ".join("x" * 20), 2.5)], tokenizer)
    x = tokenizer.encode(["x"])[0][0]
    assert feature.ids.tolist() == [tokenizer.cls_id] + [x] * 11 + [tokenizer.sep_id]
    assert (feature.num_before, feature.labels, feature.positions) == (1, [2.5], [0])


def test_a_question_gets_a_third_of_the_room(tokenizer):
    task = make_task_of_kind("qa", length=24)
    example = make_text_example(" ".join("x" * 30), [], " ".join("y" * 40))
    for feature in encode(task, [example], tokenizer):
        assert feature.num_before == 1 + 7 + 1           # (24 - 3) // 3 of the question


def test_features_have_the_number_of_their_example_in_any_chunk(tokenizer):
    task = make_task_of_kind("regression")
    examples = [make_text_example(f"{i}", float(i)) for i in range(2003)]
    features = list(encode(task, examples, tokenizer))
    assert [feature.example_number for feature in features] == list(range(2003))
    assert [feature.labels for feature in features] == [[float(i)] for i in range(2003)]


def test_a_text_without_a_label_becomes_a_batch_too(tokenizer):
    for kind in ALL_KINDS:
        task = make_task_of_kind(kind, LABELS[kind])
        examples = [example._replace(label=None) for example in make_examples(kind)]
        features = list(encode(task, examples, tokenizer))
        assert all(feature.labels is None for feature in features), kind
        assert len(collate(features)[0]) == len(features), kind
        with pytest.raises(ValueError, match="example 0 has no label to train on"):
            check_trainable(features)


@pytest.mark.parametrize("kind, text, label", [
    ("classification", "good film", "z"), ("tagging", ["good", "film"], ["O", "B-z"])])
def test_a_label_that_the_task_does_not_have_is_named(kind, text, label, tokenizer):
    example = Example(text, None, label, "0", "a.tsv:7")
    with pytest.raises(ValueError, match="^a.tsv:7: label '(B-)?z' does not occur"):
        list(encode(make_task_of_kind(kind), [example], tokenizer))


def test_a_batch_is_padded_and_labelled_where_the_head_is_read(tokenizer):
    task = make_task_of_kind("classification", ["0", "1"], pair=True)
    examples = [make_text_example("x", "1", "y y y"), make_text_example("x", "0", "y")]
    features = list(encode(task, examples, tokenizer))
    ids, mask, segments = collate(features)
    labels = collate_labels(features, ids.shape[1], "classification")
    assert ids[1].tolist() == features[1].ids.tolist() + [0, 0]
    assert mask.tolist() == [[True] * 7, [True] * 5 + [False] * 2]
    assert segments.tolist() == [[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0]]
    assert labels[:, 0].tolist() == [1, 0]
    assert np.isnan(labels[:, 1:]).all()
    single, = encode(replace(task, pair=False), [make_text_example("x", "1")], tokenizer)
    _, _, segments = collate([single])
    assert segments.sum() == 0


# ---- Sentences to tag -------------------------------------------------------------------

def random_words(rng, num_words):
    """Draw words of one, several and no tokens."""
    return rng.choices(["good", "zq", "abcde", "the", "\u0007", "paris.", "very"], k=num_words)


def test_each_word_is_asked_about_once_at_its_first_token_in_all_windows(tokenizer):
    rng = random.Random(0)
    task = make_task_of_kind("tagging", ["O", "B-x", "I-x"], length=11)
    examples = []
    for num_words in (1, 3, 30, 9, 200):
        words = random_words(rng, num_words)
        examples.append(make_text_example(words, rng.choices(task.labels, k=num_words)))
    examples.append(make_text_example([LETTERS * 2, "good"], ["B-x", "O"]))
    examples.append(make_text_example(["\u0007"], ["O"]))    # no token at all
    features = list(encode(task, examples, tokenizer))
    assert {feature.example_number for feature in features} == set(range(len(examples)))
    for i, example in enumerate(examples):
        asked = []
        for feature in features:
            if feature.example_number == i:
                first_tokens = [feature.ids[position] for position in feature.positions]
                asked += zip(feature.stands_for, first_tokens, feature.labels)
        expected = []
        for number, (word, label) in enumerate(zip(example.text, example.label)):
            tokens = tokenizer.encode([word])[0]
            if tokens:
                expected.append((number, tokens[0], task.labels.index(label)))
        assert asked == expected
    for feature in features:
        assert len(feature.ids) <= 11
        assert feature.ids[0] == tokenizer.cls_id
        assert feature.ids[-1] == tokenizer.sep_id
        assert tokenizer.sep_id not in feature.ids[:-1]


def test_perfect_logits_give_the_gold_tags_back(tokenizer):
    rng = random.Random(1)
    task = make_task_of_kind("tagging", ["B-x", "I-x", "O"], length=9)
    examples = []
    for num_words in (1, 4, 40):
        examples.append(make_text_example(["ab"] * num_words,
                                          rng.choices(task.labels, k=num_words)))
    examples.append(make_text_example(["\u0007", "ab"], ["O", "I-x"]))    # one has no token
    features = list(encode(task, examples, tokenizer))
    logits = []
    for feature in features:
        rows = np.full((len(feature.positions), 3), -9.0)
        for row, label in enumerate(feature.labels):
            rows[row, label] = 9.0
        logits.append(rows)
    tags = [tags for tags, _ in decode(task, examples, features, logits)]
    assert tags == [example.label for example in examples]


# ---- Questions --------------------------------------------------------------------------

CONTEXT = "the red city, john lives in paris; not in the red city. who is the good one? " * 2


def perfect_answer_logits(features):
    """Make logits (T, 2) that put all on the labels of each Feature."""
    logits = []
    for feature in features:
        rows = np.full((len(feature.ids), 2), -9.0)
        for column, label in enumerate(feature.labels):
            rows[label, column] = 9.0
        logits.append(rows)
    return logits


@pytest.mark.parametrize("length, stride", [(16, 4), (40, 100), (12, 1)])
def test_perfect_logits_give_the_answers_back(length, stride, tokenizer):
    examples = []
    for begin, size in ((CONTEXT.index("paris"), 5), (CONTEXT.rindex("city."), 4), (0, 7)):
        answer = (begin, CONTEXT[begin:begin + size])
        examples.append(make_text_example("where", [answer, (0, "the")], CONTEXT))
    examples.append(make_text_example("who", [], "zq"))
    examples.append(make_text_example("who", [], ""))
    task = make_task_of_kind("qa", length=length, stride=stride, unanswerable=True)
    features = list(encode(task, examples, tokenizer))
    assert max(len(feature.ids) for feature in features) <= length
    predictions = decode(task, examples, features, perfect_answer_logits(features))
    expected = ["paris", "city", "the red", "", ""]
    assert [answer for answer, _ in predictions] == expected


@pytest.mark.parametrize("length, stride", [(16, 4), (40, 100), (12, 1), (24, 7)])
def test_windows_have_all_tokens_and_neighbours_share_the_stride_or_half_the_room(
        length, stride, tokenizer):
    task = make_task_of_kind("qa", length=length, stride=stride)
    features = list(encode(task, [make_text_example("where", [], CONTEXT)], tokenizer))
    whole = tokenizer.backend.encode(CONTEXT, add_special_tokens=False)
    room = length - 4                                    # without [CLS] where [SEP] and [SEP]
    shared = min(stride, room // 2)
    begin = 0
    for feature in features:
        end = min(begin + room, len(whole.ids))
        assert feature.ids[3:-1].tolist() == whole.ids[begin:end]
        assert list(feature.positions) == list(range(3, 3 + end - begin))
        # Here each word is one token.
        assert [tuple(pair) for pair in feature.stands_for] == whole.offsets[begin:end]
        begin = end - shared
    assert end == len(whole.ids)
    assert len(features) > 1


def test_an_answer_across_the_edge_of_a_window_is_whole_in_the_next(tokenizer):
    context = " ".join(LETTERS)
    task = make_task_of_kind("qa", length=14, stride=5)      # a window has 10 letters
    for begin in range(0, len(context) - 5, 2):
        answer = context[begin:begin + 5]                    # three letters
        example = make_text_example("who", [(begin, answer)], context)
        features = list(encode(task, [example], tokenizer))
        is_whole = [feature.labels != [0, 0] for feature in features]
        assert any(is_whole), answer
        assert not all(is_whole)
        predictions = decode(task, [example], features, perfect_answer_logits(features))
        assert predictions == [(answer, {})]


def test_an_answer_inside_a_word_of_several_tokens_is_that_word(tokenizer):
    context = "the abcd is red"                          # "abcd" has four tokens
    task = make_task_of_kind("qa")
    example = make_text_example("who", [(context.index("bc"), "bc")], context)
    features = list(encode(task, [example], tokenizer))
    assert features[0].labels == [3 + 2, 3 + 3]          # [CLS] who [SEP] the a ##b ##c ##d
    predictions = decode(task, [example], features, perfect_answer_logits(features))
    assert predictions == [("abcd", {})]


# Two accents, and a vowel sign of Hindi, whose combining class is 0.
@pytest.mark.parametrize("marks", ["\u0301\u0302", "\u0941"])
def test_an_answer_has_the_marks_that_the_tokenizer_removes(marks, tokenizer):
    context = f"a cafe{marks} b cafe"
    examples = [make_text_example("q", [], context)]
    task = make_task_of_kind("qa", length=24)
    (feature,) = encode(task, examples, tokenizer)
    for first_character, answer in [(2, f"cafe{marks}"), (9 + len(marks), "cafe")]:
        logits = np.zeros((len(feature.ids), 2))
        for token, (begin, _) in enumerate(feature.stands_for):
            if begin == first_character:                 # a token of the answer
                logits[feature.positions[token]] = 9.0
        assert decode_answers(task, examples, [feature], [logits]) == [answer]


@pytest.mark.parametrize("unanswerable", [False, True])
def test_the_best_span_is_not_too_long_never_reversed_and_empty_only_where_allowed(
        unanswerable, tokenizer):
    context = " ".join("abcdefghij" * 4)
    rng = np.random.default_rng(0)
    examples = [make_text_example("q", [], context)]
    task = make_task_of_kind("qa", length=24, unanswerable=unanswerable)
    features = list(encode(task, examples, tokenizer))
    num_empty = 0
    for _ in range(25):
        logits = [rng.normal(size=(len(feature.ids), 2)) for feature in features]
        for rows in logits:
            rows[0] += 2.0                               # [CLS] wins now and then
        best_score = -math.inf
        no_answer_scores = []
        for feature, rows in zip(features, logits):
            no_answer_scores.append(rows[0].sum())
            num_tokens = len(feature.positions)
            for first in range(num_tokens):
                for last in range(first, min(first + 5, num_tokens)):
                    value = rows[3 + first, 0] + rows[3 + last, 1]
                    if value > best_score:
                        best_score = value
                        begin = feature.stands_for[first][0]
                        end = feature.stands_for[last][1]
                        expected = context[begin:end]
        if unanswerable and min(no_answer_scores) > best_score:
            expected = ""
            num_empty += 1
        assert decode_answers(task, examples, features, logits, longest=5) == [expected]
    assert (num_empty > 3) == unanswerable
    assert num_empty < 22


def test_an_answer_has_at_most_30_tokens(tokenizer):
    task = make_task_of_kind("qa", length=48)
    context = " ".join("x" * 40)
    example = make_text_example("q", [], context)
    features = list(encode(task, [example], tokenizer))
    rows = np.zeros((len(features[0].ids), 2))
    rows[3, 0] = 9.0
    rows[3 + 30, 1] = 9.0                                # 31 tokens: too long
    rows[3 + 29, 1] = 8.0                                # 30 tokens
    (answer, _), = decode(task, [example], features, [rows])
    assert len(answer.split()) == 30


# ---- The model --------------------------------------------------------------------------

@pytest.mark.parametrize("kind, num_outputs", [
    ("classification", 3), ("regression", 1), ("tagging", 3), ("qa", 2)])
def test_a_new_head_has_an_output_for_each_label_and_small_weights(kind, num_outputs, tokenizer):
    encoder = MiniALBERT(small_config(tokenizer), head=False)
    model = Classifier(encoder, make_task_of_kind(kind, LABELS[kind]))
    assert model.output.weight.shape == (num_outputs, 24)
    assert 0 < model.output.weight.abs().max() < 0.1
    assert not model.output.bias.any()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_is_before_the_head_and_only_in_training(dropout, tokenizer):
    torch.manual_seed(0)
    task = make_task_of_kind("classification", ["x", "y"])
    model = randomise(Classifier(MiniALBERT(small_config(tokenizer), head=False), task, dropout))
    inputs = (torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.bool),
              torch.zeros(1, 3, dtype=torch.long))
    _, calm = model(*inputs)
    _, again = model(*inputs)
    assert torch.equal(again, calm)
    model.train()
    _, trained = model(*inputs)
    assert torch.equal(trained, calm) == (dropout == 0)
    # What is dropped is a state, never a logit: with weights of 0 all logits are the bias.
    torch.nn.init.zeros_(model.output.weight)
    _, logits = model(*inputs)
    assert (logits == model.output.bias).all()


def test_logits_are_one_linear_layer_on_the_last_hidden_states(tokenizer):
    model = make_classifier(tokenizer, make_task_of_kind("tagging", LABELS["tagging"]))
    ids = torch.tensor([[2, 40, 41, 3, 0], [2, 44, 45, 46, 3]])
    mask = ids > 0
    segments = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]])
    hidden, _ = model.encoder(ids, mask, segments)
    expected = hidden[-1] @ model.output.weight.T + model.output.bias
    _, logits = model(ids, mask, segments)
    assert torch.allclose(logits, expected, atol=1e-5)


def test_no_answer_lies_in_the_question_but_cls_and_the_context_keep_their_scores(tokenizer):
    model = make_classifier(tokenizer, make_task_of_kind("qa"))
    ids = torch.tensor([[2, 40, 41, 3, 42, 43, 3], [2, 44, 3, 45, 3, 0, 0]])
    mask = ids > 0
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0]])
    hidden, _ = model.encoder(ids, mask, segments)
    scores = model.output(hidden[-1])                    # (2, 7, 2)
    _, logits = model(ids, mask, segments)
    for row in range(2):
        for position in range(7):
            if position == 0 or segments[row, position] == 1:
                assert torch.allclose(logits[row, position], scores[row, position], atol=1e-5)
            else:
                assert (logits[row, position] == -1e4).all()


# ---- Batches ----------------------------------------------------------------------------

def loss_of_lengths(seed, num_features=1003, batch_size=8):
    """Make a TaskLoss of Features of random lengths, as far as its batches need it."""
    rng = np.random.default_rng(0)
    features = []
    for i in range(num_features):
        ids = np.zeros(rng.integers(3, 41), np.int32)
        features.append(finetune.Feature(ids, 1, i, [0], [0], [0]))
    return TaskLoss(None, None, features, batch_size, seed)


def numbers_of_batch(loss, step):
    return [feature.example_number for feature in loss.batch(step)]


def test_a_batch_is_a_function_of_seed_and_step():
    steps = [7, 0, 126, 300, 1]
    forward = loss_of_lengths(seed=3)
    backward = loss_of_lengths(seed=3)
    in_order = {step: numbers_of_batch(forward, step) for step in sorted(steps)}
    reversed_order = {step: numbers_of_batch(backward, step) for step in steps}
    assert in_order == reversed_order
    other = loss_of_lengths(seed=4)
    assert in_order[0] != numbers_of_batch(other, 0)
    assert in_order[0] != in_order[126]                  # the first batch of the second epoch


def test_an_epoch_has_each_feature_once():
    loss = loss_of_lengths(seed=3)
    assert loss.steps_per_epoch == 126
    assert loss.tokens_per_step == int(8 * loss.lengths.mean())
    for epoch in (0, 2):
        seen = []
        for step in range(epoch * 126, (epoch + 1) * 126):
            seen += numbers_of_batch(loss, step)
        assert sorted(seen) == list(range(1003))


def test_batches_have_like_lengths_and_come_in_any_order():
    loss = loss_of_lengths(seed=3)
    num_padding = 0
    num_positions = 0
    longest = []
    for step in range(126):
        lengths = [len(feature.ids) for feature in loss.batch(step)]
        num_padding += sum(max(lengths) - length for length in lengths)
        num_positions += max(lengths) * len(lengths)
        longest.append(max(lengths))
    assert num_padding / num_positions < 0.06
    assert longest[:30] != sorted(longest[:30])


def test_pools_are_of_50_batches_so_that_lengths_are_drawn_from_all():
    loss = loss_of_lengths(seed=3, num_features=4000)
    order = np.random.default_rng([3, 3, 0]).permutation(4000)                # see batches_of_epoch
    expected = set()
    for pool in np.split(order, 10):                     # of 50 batches of 8
        by_length = sorted(pool, key=lambda number: loss.lengths[number])
        for begin in range(0, 400, 8):
            expected.add(frozenset(by_length[begin:begin + 8]))
    found = {frozenset(numbers_of_batch(loss, step)) for step in range(500)}
    assert found == expected


# ---- The loss ---------------------------------------------------------------------------

def logits_alone(model, feature):
    """Compute the logits (T, n) of a Feature in a batch of its own, made by hand."""
    ids = torch.from_numpy(feature.ids.astype(np.int64))[None]
    segments = torch.zeros_like(ids)
    if feature.num_before > 1:
        segments[0, feature.num_before:] = 1
    with torch.no_grad():
        _, logits = model(ids, torch.ones_like(ids, dtype=torch.bool), segments)
    return logits[0]


def rows_alone(model, feature):
    """List what a Feature's labels are compared with, and the labels: [(logits (n,), label)]."""
    logits = logits_alone(model, feature)
    if model.kind == "qa":
        return list(zip(logits.T, feature.labels))       # (T,) each for begin and end
    return list(zip(logits[feature.positions], feature.labels))


def naive_task_loss(model, task, features):
    """Compute the mean cross-entropy, or squared error, with a loop over all labels."""
    values = []
    for feature in features:
        for logits, label in rows_alone(model, feature):
            if task.kind == "regression":
                values.append((logits[0].item() - (label - task.mean) / task.sd)**2)
            else:
                values.append(-logits.log_softmax(0)[label].item())
    return sum(values) / len(values)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_loss_is_the_mean_over_all_labels_whatever_the_padding(kind, tokenizer):
    task = make_task_of_kind(kind, LABELS[kind], length=20, mean=2.0, sd=4.0)
    model = make_classifier(tokenizer, task)
    features = list(encode(task, make_examples(kind), tokenizer))
    losses, = TaskLoss(model, task, features, 3, 0).losses_of_micro_batches(0)
    assert set(losses) == {"task"}
    expected = naive_task_loss(model, task, features)
    assert losses["task"].item() == pytest.approx(expected, rel=1e-4)


def test_large_numbers_keep_their_differences_until_they_are_normalised(tokenizer):
    """In float32 both labels would be the same number."""
    task = make_task_of_kind("regression", length=20, mean=1e9, sd=1.0)
    model = make_classifier(tokenizer, task)
    losses_of_label = []
    for label in (1e9 - 1, 1e9 + 1):
        features = list(encode(task, [make_text_example("good", label)], tokenizer))
        losses, = TaskLoss(model, task, features, 1, 0).losses_of_micro_batches(0)
        assert losses["task"].item() == pytest.approx(naive_task_loss(model, task, features))
        losses_of_label.append(losses["task"].item())
    output = logits_alone(model, features[0])[0].item()
    assert losses_of_label == pytest.approx([(output + 1)**2, (output - 1)**2])


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_neither_company_nor_padding_changes_a_prediction(kind, tokenizer):
    task = make_task_of_kind(kind, LABELS[kind], length=20)
    model = make_classifier(tokenizer, task)
    model.train()                                        # predict_logits turns dropout off
    features = list(encode(task, make_examples(kind) * 3, tokenizer))
    for batch_size in (64, 2):
        found = predict_logits(model, features, batch_size)
        for feature, rows in zip(features, found, strict=True):
            positions = list(feature.positions)
            if kind == "qa":
                positions = list(range(len(feature.ids)))
            expected = logits_alone(model, feature)[positions]
            np.testing.assert_allclose(rows, expected, atol=1e-4)
    assert not model.training


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_fine_tuned_teacher_is_followed_where_the_head_is_read(kind, tokenizer):
    task = make_task_of_kind(kind, LABELS[kind], length=20, mean=2.0, sd=4.0)
    teacher_task = make_task_of_kind(kind, LABELS[kind], length=20, mean=-1.0, sd=0.5)
    model = make_classifier(tokenizer, task, seed=0)
    teacher = make_classifier(tokenizer, task, seed=1)
    features = list(encode(task, make_examples(kind), tokenizer))
    told = [rows_alone(teacher, feature) for feature in features]
    if kind == "regression":                             # only there mean and sd are used
        change_normalisation(teacher.output, teacher_task, task)
    task_loss = TaskLoss(model, task, features, 3, 0, teacher=teacher)
    losses, = task_loss.losses_of_micro_batches(0)
    assert task_loss.loss_weights == {"task": 1.0, "distill": 1.0}
    assert losses["task"].item() == pytest.approx(naive_task_loss(model, task, features), rel=1e-4)
    values = []
    for feature, teacher_rows in zip(features, told):
        for (logits, _), (teacher_logits, _) in zip(rows_alone(model, feature), teacher_rows):
            if kind == "regression":
                number = teacher_logits[0] * 0.5 - 1.0
                values.append(((number - 2.0) / 4.0 - logits[0])**2)
            else:
                values.append(output_loss(logits[None], teacher_logits[None]))
    expected = (sum(values) / len(values)).item()
    assert losses["distill"].item() == pytest.approx(expected, rel=1e-4)
    losses["distill"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert model.output.weight.grad is not None


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_hidden_states_of_a_fine_tuned_teacher_are_followed_at_each_token(kind, tokenizer):
    task = make_task_of_kind(kind, LABELS[kind], length=20)
    model = make_classifier(tokenizer, task, seed=0, num_hidden_layers=2)
    teacher = make_classifier(tokenizer, task, seed=1, num_hidden_layers=4).train()
    features = list(encode(task, make_examples(kind), tokenizer))
    task_loss = TaskLoss(model, task, features, 5, 0, teacher=teacher, hidden_weight=0.7)
    losses, = task_loss.losses_of_micro_batches(0)
    assert task_loss.loss_weights == {"task": 1.0, "distill": 1.0, "hidden": 0.7}
    assert not teacher.training
    total = 0.0
    num_tokens = 0
    for feature in features:                             # each alone: so there is no padding
        ids, _, segments = collate([feature])
        with torch.no_grad():
            ours, _ = model.encoder(torch.from_numpy(ids), None, torch.from_numpy(segments))
            theirs, _ = teacher.encoder(torch.from_numpy(ids), None, torch.from_numpy(segments))
        for ours_after, theirs_after in ((ours[1], theirs[2]), (ours[2], theirs[4])):
            total += (1 - torch.cosine_similarity(ours_after, theirs_after, dim=-1)).sum().item()
        num_tokens += len(feature.ids)
    assert losses["hidden"].item() == pytest.approx(total / num_tokens, rel=1e-4)


NOT_COMPARED = "the hidden states are not compared with the teacher's: "
OTHER_WIDTH = "the teacher has 4 layers of width 48, the model 2 recursions of width 24"
OTHER_DEPTH = "the teacher has 3 layers of width 24, the model 2 recursions of width 24"


@pytest.mark.parametrize("flag, mode, teacher_shape, expected, printed", [
    (None, "all", {}, 3.0, ""), (None, "adapters", {}, 3.0, ""), (0.5, "all", {}, 0.5, ""),
    (0.0, "all", {}, 0.0, ""), (None, "head", {}, 0.0, ""), (None, "all", None, 0.0, ""),
    (0.0, "all", {"hidden_size": 48}, 0.0, ""),
    (None, "all", {"hidden_size": 48}, 0.0, f"{NOT_COMPARED}{OTHER_WIDTH}\n"),
    (None, "all", {"num_hidden_layers": 3}, 0.0, f"{NOT_COMPARED}{OTHER_DEPTH}\n"),
])
def test_hidden_states_are_compared_if_they_can_be(
        flag, mode, teacher_shape, expected, printed, tokenizer, capsys):
    config = small_config(tokenizer, num_hidden_layers=2)
    teacher = None
    if teacher_shape is not None:
        task = make_task_of_kind("regression", [])
        shape = {"num_hidden_layers": 4} | teacher_shape
        teacher = make_classifier(tokenizer, task, **shape)
    assert choose_hidden_weight(flag, [mode], teacher, config) == expected
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("teacher_shape, reason", [
    ({"hidden_size": 48, "num_hidden_layers": 4}, OTHER_WIDTH),
    ({"num_hidden_layers": 3}, OTHER_DEPTH)])
def test_to_ask_for_a_comparison_of_hidden_states_that_differ_in_shape_is_an_error(
        teacher_shape, reason, tokenizer):
    teacher = make_classifier(tokenizer, make_task_of_kind("regression", []), **teacher_shape)
    config = small_config(tokenizer, num_hidden_layers=2)
    with pytest.raises(ValueError, match=f"^--hidden-weight 2: .* cannot be compared: {reason}$"):
        choose_hidden_weight(2.0, ["all"], teacher, config)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_micro_batches_and_processes_share_one_gradient(kind, tokenizer):
    """Of six examples: of 7 rows, the last micro-batch of four is short. The seventh of one row is
    empty, but the model gets a row all the same."""
    task = make_task_of_kind(kind, LABELS[kind], length=20)
    model = make_classifier(tokenizer, task, seed=0)
    teacher = make_classifier(tokenizer, task, seed=1)
    features = list(encode(task, make_examples(kind) * 2, tokenizer))

    num_rows = []

    def note_rows(encoder, inputs):
        num_rows.append(len(inputs[0]))

    model.encoder.register_forward_pre_hook(note_rows)

    def gradient(micro_batch_size, world):
        model.zero_grad()
        for rank in range(world):
            task_loss = TaskLoss(model, task, features, 7, 0, teacher=teacher, hidden_weight=2.0,
                                 micro_batch_size=micro_batch_size,
                                 processes=Processes(rank=rank, world_size=world))
            for losses in task_loss.losses_of_micro_batches(0):
                sum(losses.values()).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    whole = gradient(0, 1)
    for micro_batch_size, world in ((1, 1), (2, 1), (4, 1), (0, 2), (1, 3), (0, 7)):
        distance = (gradient(micro_batch_size, world) - whole).norm()
        assert distance <= 1e-5 * whole.norm(), (micro_batch_size, world)
    assert min(num_rows) == 1


# ---- New adapters -----------------------------------------------------------------------

def test_new_adapters_hardly_change_a_trained_encoder(tokenizer):
    torch.manual_seed(0)
    old = MiniALBERT(small_config(tokenizer), head=False).eval()
    with torch.no_grad():
        for name, parameter in old.named_parameters():   # about as training leaves them
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.15)
            elif "project" in name:              # not the size that a LayerNorm would give
                parameter.mul_(0.5)
            else:
                parameter.mul_(8)
    ids = torch.randint(5, tokenizer.vocab_size, (16, 20))
    mask = torch.arange(20) < torch.randint(5, 21, (16, 1))
    segments = (torch.arange(20) > 3).long().expand(16, 20)
    new = MiniALBERT(small_config(tokenizer, adapter_size=4), head=False).eval()
    new.load_state_dict(new.state_dict() | old.state_dict())

    @torch.no_grad()
    def relative_change():
        before = old(ids, mask, segments)[0][-1][mask]
        after = new(ids, mask, segments)[0][-1][mask]
        return ((before - after).norm() / before.norm()).item()

    change_at_first = relative_change()
    fit_adapters_to_identity(new, ids, mask, segments)
    assert relative_change() < 0.7 * change_at_first


@torch.no_grad()
def test_a_fitted_adapter_has_the_line_of_least_squares_in_each_channel(tokenizer):
    encoder = noisy_model(small_config(tokenizer, adapter_size=4), head=False)
    for adapter in list(encoder.attention_adapters) + list(encoder.feed_forward_adapters):
        adapter.up.weight.zero_()                        # as a new adapter is
        adapter.up.bias.zero_()
    ids = torch.randint(5, tokenizer.vocab_size, (6, 20))
    mask = torch.arange(20) < torch.randint(5, 21, (6, 1))
    segments = (torch.arange(20) > 3).long().expand(6, 20)
    fit_adapters_to_identity(encoder, ids, mask, segments)
    inputs = {}

    def note(adapter, adapter_inputs):
        inputs[adapter] = adapter_inputs[0]

    adapters = list(encoder.attention_adapters) + list(encoder.feed_forward_adapters)
    for adapter in adapters:
        assert not adapter._forward_pre_hooks            # the hooks of the fit are gone
        adapter.register_forward_pre_hook(note)
    encoder(ids, mask, segments)
    assert len(inputs) == len(adapters) == 4
    for adapter in adapters:
        values = inputs[adapter][mask].double().numpy()
        centred = values - values.mean(1, keepdims=True)
        normalised = centred / centred.std(1, keepdims=True)
        for channel in range(24):
            slope, shift = np.polyfit(normalised[:, channel], values[:, channel], 1)
            assert adapter.norm.weight[channel].item() == pytest.approx(slope, abs=1e-3)
            assert adapter.norm.bias[channel].item() == pytest.approx(shift, abs=1e-3)


# ---- Predictions ------------------------------------------------------------------------

def test_the_probabilities_of_labels_are_a_softmax_of_any_logits(tokenizer):
    task = make_task_of_kind("classification", ["x", "y", "z"])
    logits = np.array([[1.0, 3.0, 2.0]], np.float32)
    for shift in (0.0, 1000.0, -1000.0):
        (label, probabilities), = decode(task, [None], [None], [logits + np.float32(shift)])
        assert label == "y"
        assert list(probabilities) == ["x", "y", "z"]
        expected = torch.tensor([1.0, 3.0, 2.0]).softmax(0).tolist()
        assert list(probabilities.values()) == pytest.approx(expected, abs=1e-6)


def test_of_many_labels_only_the_most_probable_ones_have_probabilities():
    labels = [f"{i:03}" for i in range(150)]
    logits = np.random.default_rng(0).normal(size=(1, 150)).astype(np.float32)
    (label, probabilities), = decode(make_task_of_kind("classification", labels), [None], [None],
                                     [logits])
    assert len(probabilities) == 100
    assert list(probabilities) == sorted(probabilities)
    exact = torch.tensor(logits[0]).softmax(0).sort(descending=True)
    assert label == labels[exact.indices[0]]
    assert set(probabilities) == {labels[i] for i in exact.indices[:100]}
    assert sorted(probabilities.values(), reverse=True) == pytest.approx(
        exact.values[:100].tolist(), abs=1e-6)


def test_a_number_is_in_the_unit_of_the_training_labels(tokenizer):
    task = make_task_of_kind("regression", mean=10.0, sd=4.0)
    assert decode(task, [None], [None], [np.array([[0.5]])]) == [(12.0, {})]


def test_a_split_is_scored_by_its_own_labels_and_mnli_by_its_first_dev_set(tokenizer):
    task = make_task_of_kind("classification", ["x", "y"])
    model = make_classifier(tokenizer, task)
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.copy_(torch.tensor([1.0, 0.0]))    # it always says "x"
    labels_of_split = {"test": "yx", "dev_matched": "xxxy", "dev_mismatched": "y"}
    datasets = {}
    for name, labels in labels_of_split.items():
        datasets[name] = [make_text_example("good", label) for label in labels]
    splits = encode_splits(task, datasets, tokenizer)
    results = {name: evaluate_split(model, task, split, False) for name, split in splits.items()}
    assert first_dev_split(splits) == "dev_matched"
    accuracies = {name: result.scores["accuracy"] for name, result in results.items()}
    assert accuracies == {"test": 0.5, "dev_matched": 0.75, "dev_mismatched": 0.0}
    assert [label for label, _ in results["test"].predictions] == ["x", "x"]


def test_the_test_set_is_predicted_once_and_the_dev_set_at_each_evaluation(
        tmp_path, model, sentiment, capsys, monkeypatch):
    rows = [f"{i}\tthe film is good\n" for i in range(30)]
    write_file(sentiment / "test.tsv", "index\tsentence\n" + "".join(rows))
    sizes = []
    usual = finetune.evaluate_split

    def count(model, task, split, bf16):
        sizes.append(len(split.examples))
        return usual(model, task, split, bf16)

    monkeypatch.setattr(finetune, "evaluate_split", count)
    run(capsys, "--model", model, "--task", "sst2", "--data", sentiment, "--steps", 3,
        "--eval-every", 1, "--out", tmp_path / "o")
    assert sizes == [24, 24, 24, 30]


def test_the_majority_is_that_of_the_training_set():
    task = make_task_of_kind("classification", ["x", "y"])
    datasets = {}
    for name, labels in (("train", "xxy"), ("dev", "yyyx"), ("test", "xy")):
        datasets[name] = [make_text_example("good", label) for label in labels]
    results = finetune.results_of_majority(task, datasets)
    accuracies = {name: result.scores["accuracy"] for name, result in results.items()}
    assert accuracies == {"dev": 0.25, "test": 0.5}


# ---- Models on disk ---------------------------------------------------------------------

@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_saved_classifier_is_the_one_that_is_loaded(kind, tokenizer, tmp_path):
    task = make_task_of_kind(kind, LABELS[kind], length=20, mean=2.0)
    model = make_classifier(tokenizer, task)
    save_classifier(str(tmp_path / "m"), model, task, tokenizer)
    loaded, loaded_task = load_classifier(str(tmp_path / "m"))
    assert loaded_task == task
    assert Tokenizer(str(tmp_path / "m")).digest == tokenizer.digest
    for name, parameter in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], parameter), name
    # A new Task for the same labels is kept; its mean may be another.
    new_task = make_task_of_kind(kind, LABELS[kind], length=24, mean=5.0)
    _, loaded_task = load_classifier(str(tmp_path / "m"), new_task)
    assert loaded_task == new_task


def test_a_head_for_regression_predicts_the_same_numbers_in_a_task_with_another_mean(
        tokenizer, tmp_path):
    task = make_task_of_kind("regression", [], mean=3.0, sd=1.5)
    save_classifier(str(tmp_path), make_classifier(tokenizer, task), task, tokenizer)
    new_task = replace(task, mean=50.0, sd=20.0)
    numbers = []
    for given in (task, new_task):
        model, _ = load_classifier(str(tmp_path), given)
        _, logits = model(torch.tensor([[2, 7, 3]]), torch.ones(1, 3, dtype=torch.bool),
                          torch.zeros(1, 3, dtype=torch.int64))
        numbers.append(logits * given.sd + given.mean)
    assert (numbers[0] - 3.0).abs().max() > 0.01
    torch.testing.assert_close(numbers[1], numbers[0])


@pytest.mark.parametrize("is_fine_tuned", [False, True])
def test_a_loaded_model_has_the_dropout_asked_for(is_fine_tuned, tokenizer, tmp_path):
    task = make_task_of_kind("classification", ["x", "y"])
    model = make_classifier(tokenizer, task)
    save(model.encoder, tmp_path)
    if is_fine_tuned:
        save_classifier(str(tmp_path), model, task, tokenizer)
    loaded, _ = load_classifier(str(tmp_path), task, dropout=0.25)
    assert loaded.dropout.p == 0.25
    assert loaded.encoder.config.hidden_dropout_prob == 0.25


@pytest.mark.parametrize("change", [{"kind": "qa", "name": "qa", "pair": True},
                                    {"labels": ["a", "b"]},
                                    {"kind": "tagging", "name": "tagging", "labels": ["O"]}])
def test_a_model_for_another_kind_or_other_labels_is_refused(change, tokenizer, tmp_path):
    task = make_task_of_kind("classification", ["x", "y"])
    save_classifier(str(tmp_path), make_classifier(tokenizer, task), task, tokenizer)
    told = f"{tmp_path} was fine-tuned for classification of one text \\(x; y\\), not"
    with pytest.raises(ValueError, match=told):
        load_classifier(str(tmp_path), replace(task, **change))


def test_a_head_for_another_number_of_labels_is_refused(tokenizer, tmp_path):
    task = make_task_of_kind("classification", ["x", "y", "z"])
    save_classifier(str(tmp_path), make_classifier(tokenizer, task), task, tokenizer)
    facts = json.loads((tmp_path / "task.json").read_text())
    (tmp_path / "task.json").write_text(json.dumps(facts | {"labels": ["x", "y"]}))
    with pytest.raises(ValueError, match=r"head.safetensors: 'bias' is \[3\], not \[2\]"):
        load_classifier(str(tmp_path))


def test_random_knows_nothing_of_the_saved_model_but_its_shape(tokenizer, tmp_path):
    task = make_task_of_kind("classification", ["x", "y"])
    model = make_classifier(tokenizer, task)
    save_classifier(str(tmp_path), model, task, tokenizer)
    torch.manual_seed(7)
    loaded, _ = load_classifier(str(tmp_path), task, mode="random")
    assert loaded.encoder.config == model.encoder.config
    old = model.state_dict()
    for name, parameter in loaded.state_dict().items():
        assert not torch.equal(parameter, old[name]), name


@pytest.mark.parametrize("adapter_size, expected_size", [(0, 24 // 16), (3, 3)])
def test_adapters_are_added_only_where_there_are_none_and_nothing_else_changes(
        adapter_size, expected_size, tokenizer, tmp_path):
    ids = np.random.default_rng(0).integers(5, tokenizer.vocab_size, (6, 20))
    old = noisy_model(small_config(tokenizer, adapter_size=adapter_size))
    save(old, tmp_path)
    mask = np.ones((6, 20), bool)
    segments = np.zeros((6, 20), np.int64)
    encoder = load_encoder(str(tmp_path), "adapters", dropout=0.25, sample=(ids, mask, segments))
    assert encoder.config.adapter_size == expected_size
    assert encoder.config.hidden_dropout_prob == 0.25
    assert encoder.config.attention_probs_dropout_prob == 0.25
    assert encoder.head is None
    for name, parameter in old.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(encoder.state_dict()[name], parameter), name
    if adapter_size == 0:
        for adapter in list(encoder.attention_adapters) + list(encoder.feed_forward_adapters):
            assert (adapter.norm.weight != 1).any()      # it was fitted


def test_what_a_corrected_model_has_of_its_own_is_tuned_and_no_adapters_are_added(
        tmp_path, tokenizer, sentiment, capsys):
    folder = tmp_path / "corrected"
    save(noisy_model(small_config(tokenizer, correction_rank=3)), folder)
    tokenizer.save(str(folder))
    run(capsys, "--model", folder, "--task", "sst2", "--data", sentiment, "--steps", 3,
        "--out", tmp_path / "o", "--adapters-only")
    old = load(folder).state_dict()
    tuned = load(tmp_path / "o")
    assert tuned.config.adapter_size == 0
    for name, parameter in tuned.state_dict().items():
        is_same = torch.equal(parameter, old[name])
        assert is_same == (not name.startswith("corrections.")), name


# ---- Choices of the command -------------------------------------------------------------

def test_the_length_is_128_or_384_but_no_more_than_the_positions():
    assert choose_length(None, "classification", 512) == 128
    assert choose_length(None, "qa", 512) == 384
    assert choose_length(None, "qa", 64) == 64
    assert choose_length(8, "qa", 64) == 8
    assert choose_length(64, "tagging", 64) == 64
    for length, num_positions in ((65, 64), (7, 64), (None, 7)):
        with pytest.raises(ValueError, match=f"not from 8 to {num_positions}, the number of pos"):
            choose_length(length, "tagging", num_positions)


@pytest.mark.parametrize("mode, is_default_run, width, rate, rate_with_corrections", [
    ("all", False, 768, 5e-5, 5e-5),
    ("all", False, 128, 3e-4, 3e-4),
    ("random", False, 768, 5e-5, 5e-5),
    ("head", False, 384, 2e-3, 2e-3),
    ("adapters", False, 768, 1e-3, 2.5e-4),
    ("adapters", True, 768, 1e-3, 2.5e-4),
    ("all", True, 768, 4e-4, 2e-4),
    ("random", True, 768, 4e-4, 2e-4),
])
def test_the_default_rate_depends_on_the_width_and_on_what_is_trained(
        mode, is_default_run, width, rate, rate_with_corrections):
    config = Config(hidden_size=width, num_attention_heads=4)
    assert default_rate(mode, config, is_default_run) == pytest.approx(rate)
    corrected = replace(config, correction_rank=8)
    assert default_rate(mode, corrected, is_default_run) == pytest.approx(rate_with_corrections)


@pytest.mark.parametrize("mode, is_default_run, rank, factor", [
    ("all", False, 0, 3), ("all", False, 8, 3), ("adapters", False, 8, 2),
    ("adapters", False, 0, 1), ("head", False, 8, 1), ("all", True, 8, 1)])
def test_with_a_hidden_loss_the_default_rate_is_higher(mode, is_default_run, rank, factor):
    config = Config(hidden_size=384, num_attention_heads=4, correction_rank=rank)
    rate = default_rate(mode, config, is_default_run)
    assert default_rate(mode, config, is_default_run, True) == pytest.approx(factor * rate)


def test_every_task_has_its_kind():
    assert finetune.kind_of_task("stsb") == "regression"
    assert finetune.kind_of_task("rte") == "classification"
    assert finetune.kind_of_task("code") == "tagging"
    assert finetune.kind_of_task("qa") == "qa"


def test_a_file_to_predict_with_the_line_ends_of_old_macs_is_refused(tmp_path):
    path = write_file(tmp_path / "a.txt", "one film\rtwo film\r")
    with pytest.raises(ValueError, match="a.txt:1: there is a carriage return in "):
        finetune.lines_of_file(path)
    path = write_file(tmp_path / "b.txt", "one\rfilm\ntwo\n")
    assert finetune.lines_of_file(path) == [(f"{path}:1", "one\rfilm"), (f"{path}:2", "two")]


def test_a_line_to_predict_becomes_an_example():
    example_of_line = finetune.example_of_line
    task = make_task_of_kind("tagging", LABELS["tagging"])
    words = ["see", "os.path", ",", "john", "'", "s", "!"]
    assert example_of_line("see os.path, john's!", task) == (words, None, None, "", "the text")
    # Accents and vowel signs that are characters of their own stay in their words.
    words = ["Gene\u0300ve", ",", "\u0939\u093f\u0928\u094d\u0926\u0940", "!", "a", "b"]
    line = "Gene\u0300ve, \u0939\u093f\u0928\u094d\u0926\u0940! a b"
    assert example_of_line(line, task).text == words
    assert example_of_line("\u0301 a\u0301 b", task).text == ["\u0301", "a\u0301", "b"]
    with pytest.raises(ValueError, match="for a file of words and tags say --evaluate --test FILE"):
        example_of_line("john\tB-x", task)
    task = make_task_of_kind("qa")
    with pytest.raises(ValueError, match="^a.txt:7 'who': this model needs two texts"):
        example_of_line("who", task, "a.txt:7")
    assert example_of_line("who\ta\tb", task) == ("who", "a\tb", None, "", "the text")
    with pytest.raises(ValueError, match="'who': this model needs two texts"):
        example_of_line("who", task)
    task = make_task_of_kind("regression")
    assert example_of_line(" a b", task) == (" a b", None, None, "", "the text")
    with pytest.raises(ValueError, match="this model needs one text"):
        example_of_line("a\tb", task)
    pair = make_task_of_kind("regression", pair=True)
    assert example_of_line("a\tb", pair) == ("a", "b", None, "", "the text")
    for task in (task, pair):
        with pytest.raises(ValueError, match="^x.tsv:1 'a.tb.tlabel': this model needs (one|two)"):
            example_of_line("a\tb\tlabel", task, "x.tsv:1")


@pytest.mark.parametrize("kind", ["classification", "tagging", "qa"])
def test_text_is_refused_if_most_characters_are_unknown(kind, tokenizer):
    """A run of over 100 letters or digits is one [UNK]."""
    for num_known, is_refused in ((24, True), (27, False)):    # 104 of 200 and of 212 are unknown
        text = "good " * num_known + "g" * 104
        example = make_text_example(text, "x")
        if kind == "tagging":
            example = make_text_example(text.split(), ["O"] * (num_known + 1))
        elif kind == "qa":
            example = make_text_example("good", [(0, "good")], text)
        if is_refused:
            with pytest.raises(ValueError, match=r"\d+ become \[UNK\] .* over 100 letters in"):
                finetune.check_characters([example], tokenizer, is_training=True)
        else:
            finetune.check_characters([example], tokenizer, is_training=True)


@pytest.mark.parametrize("rank, is_printed", [(None, True), ("0", True), ("1", False)])
def test_a_warning_is_one_printable_line_of_the_first_process(rank, is_printed, monkeypatch,
                                                              capsys):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    finetune.warn("a\x1b[2J\nb")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == ("warning: a\\x1b[2J\\nb\n" if is_printed else "")


@pytest.mark.parametrize("num_known, is_warned", [(9, True), (20, False)])
def test_it_is_said_if_a_tenth_of_the_characters_is_unknown(
        num_known, is_warned, tokenizer, capsys):
    example = make_text_example("good " * num_known + "привет", "x")
    finetune.check_characters([example], tokenizer, is_training=True)
    warning = f"of {4 * num_known + 6} characters 6 become [UNK]"
    assert (warning in capsys.readouterr().err) is is_warned


@pytest.mark.parametrize("flag", ["--dev", "--test"])
def test_a_measured_set_of_another_language_is_said_when_the_model_is_trained(
        flag, tmp_path, model, sentiment, capsys):
    rows = "привет привет\t1\ngood\t0\n"
    russian = write_file(tmp_path / "ru.tsv", "sentence\tlabel\n" + rows)
    told = run(capsys, "--model", model, "--task", "classification", "--train",
               sentiment / "train.tsv", flag, russian, "--text", "sentence", "--steps", 1, "--out",
               tmp_path / "o").err
    assert f"warning: {russian}:2: of 16 characters 12 become [UNK]" in told


@pytest.mark.parametrize("texts, is_cut", [
    (("good " * 6, None), False), (("good " * 7, None), True),
    (("good " * 2, "bad " * 3), False), (("good " * 2, "bad " * 4), True),
    (("good " * 4, "bad "), False), (("good " * 5, "bad "), True)])
def test_texts_that_were_cut_are_counted(texts, is_cut, tokenizer, capsys):
    first, second = texts
    pair = second is not None
    task = make_task_of_kind("regression", pair=pair, length=8)
    short = make_text_example("good", 1.0, "bad" if pair else None)
    examples = [short, make_text_example(first, 1.0, second), short]
    split = finetune.Split(examples, list(encode(task, examples, tokenizer)))
    finetune.warn_of_cut(task, {"dev": split})
    told = capsys.readouterr().err
    assert told.startswith("warning: dev: 1 of 3 examples are too") if is_cut else told == ""


@pytest.mark.parametrize("text, is_refused", [
    ("", True), ("\u200b", True), ("[SEP] [MASK]", True), ("good", False), ("привет", False)])
def test_texts_without_any_word_are_refused(text, is_refused, tokenizer):
    task = make_task_of_kind("classification", ["x", "y"])
    features = list(encode(task, [make_text_example(text, "x")] * 2, tokenizer))
    if is_refused:
        with pytest.raises(ValueError, match="the texts to train on have no words"):
            finetune.check_words(features, tokenizer)
    else:
        finetune.check_words(features, tokenizer)


# ---- Whole runs -------------------------------------------------------------------------

@pytest.mark.parametrize("flags, trained", [
    ([], "encoder"), (["--adapters-only"], "_adapters."), (["--freeze"], "nothing")])
def test_what_is_frozen_stays_as_it_was_without_optimiser_state(
        flags, trained, tmp_path, model, sentiment, capsys):
    run(capsys, "--model", model, "--task", "sst2", "--data", sentiment, "--steps", 3,
        "--out", tmp_path / "o", *flags)
    state, _ = read_safetensors(next((tmp_path / "o").glob("*/training.safetensors")))
    names = {name.removeprefix("model.") for name in state if name.startswith("model.")}
    assert "output.weight" in names
    for name in names:
        assert name.startswith("output.") or trained in name
    assert {name.split(".", 1)[1] for name in state} == names
    old = load(model).state_dict()
    tuned = load(tmp_path / "o")
    for name, parameter in old.items():
        if not name.startswith("head."):
            is_same = torch.equal(parameter, tuned.state_dict()[name])
            assert is_same == (trained != "encoder"), name
    assert (tuned.config.adapter_size > 0) == (trained == "_adapters.")


def test_new_adapters_are_fitted_to_the_first_64_texts(
        tmp_path, model, sentiment, capsys, monkeypatch):
    samples = []

    def note(encoder, ids, mask, segments):
        samples.append((ids, mask))

    monkeypatch.setattr(finetune, "fit_adapters_to_identity", note)
    write_sentiment(sentiment / "train.tsv", 70, seed=0)
    run(capsys, "--model", model, "--task", "sst2", "--data", sentiment, "--steps", 1,
        "--adapters-only", "--out", tmp_path / "o")
    (ids, mask), = samples
    task = make_task_of_kind("classification", ["0", "1"])
    examples = read_glue("sst2", str(sentiment))["train"][:64]
    features = list(encode(task, examples, Tokenizer(model)))
    assert mask.sum(1).tolist() == [len(feature.ids) for feature in features]
    assert ids[63][mask[63]].tolist() == features[63].ids.tolist()


def test_a_run_trains_as_the_flags_say(tmp_path, model, sentiment, monkeypatch, capsys):
    trained = []

    def train(model, objective, run_state, options, *others):
        trained.append((objective, options))
        return []

    monkeypatch.setattr(finetune, "train", train)
    flags = {"steps": 31, "lr": 0.5, "weight_decay": 0.25, "seed": 11, "log_every": 13,
             "eval_every": 17, "save_every": 19}
    more = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    run(capsys, "--model", model, "--task", "sst2", "--data", sentiment, "--batch-size", 4,
        "--micro-batch-size", 1, "--dropout", 0.2, "--bf16", "--out", tmp_path / "o", *more)
    (objective, options), = trained
    assert options == TrainingOptions(**flags, warmup=3, out=options.out, resume=False)
    assert options.out.startswith(f"{tmp_path}/o/all-")
    assert (objective.batch_size, objective.seed, objective.bf16) == (4, 11, True)
    assert objective.micro_batch_bounds == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert objective.model.dropout.p == 0.2


def test_a_class_is_learned_and_told(tmp_path, model, sentiment, capsys):
    out = tmp_path / "o"
    printed = run(capsys, "--model", model, "--lr", "1e-2", "--batch-size", 16, "--length", 24,
                  "--task", "sst2", "--data", sentiment, "--steps", 40,
                  "--out", out).out
    assert percent(printed, "all", "dev", "accuracy") > 95
    assert re.search(r"^majority +dev", printed, re.M)
    assert re.search(r"40 steps in \d+ s, with evaluation$", printed, re.M)
    assert "warning" not in printed
    assert f"--model {out} --predict" in printed
    told = run(capsys, "--model", out, "--predict", "the film is good").out
    assert re.fullmatch(r"1 9\d\.\d%, 0 \d\.\d%\n", told)
    lines = read_json_lines(out / "dev.jsonl")
    assert len(lines) == 24
    assert set(lines[0]) == {"key", "gold", "prediction", "probabilities"}
    texts = write_file(tmp_path / "two.txt", "good\n\nbad\n")
    told = run(capsys, "--model", out, "--predict", texts).out
    assert [line[:1] for line in told.splitlines()] == ["1", "", "0"]
    error = fail(capsys, "--model", out, "--predict", "good\tbad")
    assert "this model needs one text; a tab separates two texts" in error


def test_a_number_is_learned_and_told(tmp_path, model, capsys):
    rows = []
    for letter in LETTERS:
        for i, word in enumerate(["bad", "not", "good"]):
            rows.append(f"{word} film {letter},{10 + 2 * i}\n")
    table = write_file(tmp_path / "train.csv", "text,label\n" + "".join(rows))
    printed = run(capsys, "--model", model, "--lr", "1e-2", "--batch-size", 16, "--length", 24,
                  "--task", "regression", "--train", table, "--steps", 40,
                  "--out", tmp_path / "o").out
    assert percent(printed, "all", "dev", "pearson") > 95
    assert percent(printed, "majority", "dev", "pearson") == 0
    assert re.search(r"^regression: \d+ train, \d+ dev$", printed, re.M)
    told = run(capsys, "--model", tmp_path / "o", "--predict", "good film").out
    assert 12 < float(told) < 15


def test_tags_are_learned_and_told(tmp_path, model, capsys):
    rng = random.Random(0)
    sentences = []
    for _ in range(64):
        name = rng.choice(["john", "name"])
        place = rng.choice(["paris", "city"])
        sentences.append(f"the O\n{name} B-who\nlives O\nin O\n{place} B-where\n\n")
    train = write_file(tmp_path / "train.txt", "".join(sentences))
    printed = run(capsys, "--model", model, "--lr", "1e-2", "--batch-size", 16, "--length", 24,
                  "--task", "tagging", "--train", train, "--steps", 30,
                  "--out", tmp_path / "o").out
    assert percent(printed, "all", "dev", "f1") > 95
    told = run(capsys, "--model", tmp_path / "o", "--predict", "the john lives in paris").out
    assert told == "john (who), paris (where)\n"
    texts = write_file(tmp_path / "texts.txt", "the name lives in city\n\nthe john lives in city\n")
    told = run(capsys, "--model", tmp_path / "o", "--predict", texts).out
    assert told == "name (who), city (where)\n\njohn (who), city (where)\n"
    assert run(capsys, "--model", tmp_path / "o", "--predict", "the the").out == "no entity\n"
    dev = read_json(tmp_path / "o/results.json")["modes"]["all"]["dev"]
    assert dev["details"].keys() == {"where", "who"}
    lines = read_json_lines(tmp_path / "o/dev.jsonl")
    for name, scores in dev["details"].items():
        num_gold = sum(line["gold"].count(f"B-{name}") for line in lines)
        assert scores["count"] == num_gold
        assert scores["f1"] > 0.95


def test_answers_are_learned_and_told(tmp_path, model, capsys, monkeypatch):
    rng = random.Random(0)
    paragraphs = []
    for i in range(64):
        name = rng.choice(["john", "name"])
        place = rng.choice(["paris", "city"])
        # The letters make the contexts different, so those of the dev set are new.
        context = f"{LETTERS[i % 8]} {name} lives in {place} {LETTERS[i // 8]} ."
        questions = []
        for question, answer in (("who", name), ("where", place)):
            answers = [{"text": answer, "answer_start": context.index(answer)}]
            questions.append({"id": f"{i}{question}", "question": question, "answers": answers})
        paragraphs.append({"context": context, "qas": questions})
    train = write_file(tmp_path / "train.json", json.dumps({"data": [{"paragraphs": paragraphs}]}))
    printed = run(capsys, "--model", model, "--lr", "1e-2", "--batch-size", 16, "--length", 24,
                  "--task", "qa", "--train", train, "--steps", 70,
                  "--stride", 9, "--out", tmp_path / "o").out
    assert percent(printed, "all", "dev", "f1") > 95
    assert read_json(tmp_path / "o/task.json")["stride"] == 9
    text = "where\ta name lives in city b ."
    told = run(capsys, "--model", tmp_path / "o", "--predict", text).out
    assert told == "city\n"
    error = fail(capsys, "--model", tmp_path / "o", "--predict", "where")
    assert "this model needs two texts; a tab separates two texts" in error
    text = "who\ta name lives in city b ."
    told = run(capsys, "--model", tmp_path / "o", "--predict", text).out
    text = "where\ta name lives in city.json"              # a context, not the name of a file
    assert run(capsys, "--model", tmp_path / "o", "--predict", text).out
    check_answers_to_a_file(tmp_path, capsys, {"a": "city", "b": told.strip()})
    monkeypatch.chdir(tmp_path)
    run(capsys, "--model", "o", "--predict", "questions.json")
    assert read_json("predictions.json") == {"a": "city", "b": told.strip()}


def check_answers_to_a_file(folder, capsys, expected):
    """Assert that the model in folder/o answers two questions of a SQuAD file so, in a file that
    is never replaced unless it is said."""
    context = "a name lives in city b ."
    questions = []
    for question_id, question in (("a", "where"), ("b", "who")):
        questions.append({"id": question_id, "question": question,
                          "answers": [{"text": "city", "answer_start": 16}]})
    content = json.dumps({"data": [{"paragraphs": [{"context": context, "qas": questions}]}]})
    squad = write_file(folder / "questions.json", content)
    flags = ["--model", folder / "o", "--predict", squad, "--out", folder / "answers.json"]
    printed = run(capsys, *flags).out
    assert "answers.json: 2 answers; f1 " in printed
    assert read_json(folder / "answers.json") == expected
    for question in questions:                           # a test set of SQuAD has no answers
        del question["answers"]
    content = json.dumps({"data": [{"paragraphs": [{"context": context, "qas": questions}]}]})
    hidden = write_file(folder / "hidden.json", content)
    printed = run(capsys, *flags[:3], hidden, "--out", folder / "more.json").out
    words = "more.json: 2 answers; some answers are not known, so there is no score"
    assert words in printed
    assert read_json(folder / "more.json") == expected
    error = fail(capsys, *flags[:4], "--out", folder / "none/answers.json", "--overwrite")
    assert f"there is no folder {folder / 'none'}" in error
    error = fail(capsys, *flags[:4], "--out", folder, "--overwrite")
    assert "this is not a regular file" in error
    for name in ("", f"{folder}/new/"):
        error = fail(capsys, *flags[:4], "--out", name)
        assert f"--out '{name}': give the name of a file, not of a folder" in error
    os.mkfifo(folder / "pipe")
    error = fail(capsys, *flags[:4], "--out", folder / "pipe", "--overwrite")
    assert "pipe: this is not a regular file" in error
    write_file(folder / "answers.json", "mine")
    assert "answers.json exists already: --overwrite" in fail(capsys, *flags)
    assert (folder / "answers.json").read_text() == "mine"
    run(capsys, *flags, "--overwrite")
    assert read_json(folder / "answers.json") == expected


def test_seeds_differ_and_the_rate_is_chosen_without_the_dev_set(
        tmp_path, model, sentiment, capsys):
    write_file(sentiment / "test.tsv", "index\tsentence\n0\tgood film\n1\tbad film\n")
    out = tmp_path / "o"
    flags = ["--task", "sst2", "--data", sentiment, "--out", out, "--model", model]
    more = ["--steps", 30, "--lr", "1e-9", "1e-2", "--seeds", 2, "--seed", 5]
    printed = run(capsys, *flags, *more).out
    names = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert names == ["all-57-lr0.01-seed5", "all-57-lr1e-09-seed5", "all-64-lr0.01-seed5",
                     "all-64-lr0.01-seed6"]
    weights = []
    for name in names:
        state, _ = read_safetensors(out / name / "training.safetensors")
        weights.append(state["model.output.weight"])
    assert not torch.equal(weights[2], weights[3])
    assert re.search(r"^all +dev +accuracy .* of 2 seeds$", printed, re.M)
    lines = read_json_lines(out / "dev.jsonl")
    # The model on disk is the one of the first seed, and the one that was measured.
    saved, task = load_classifier(str(out))
    assert torch.equal(saved.output.weight, weights[2])
    saved_tokenizer = Tokenizer(str(out))
    examples = read_glue("sst2", str(sentiment))["dev"]
    features = list(encode(task, examples, saved_tokenizer))
    logits = predict_logits(saved, features)
    labels = [label for label, _ in decode(task, examples, features, logits)]
    assert labels == [line["prediction"] for line in lines]
    written = (out / "SST-2.tsv").read_text()
    assert re.fullmatch(r"index\tprediction\n0\t[01]\n1\t[01]\n", written)
    results = read_json(out / "results.json")
    assert (results["task"], results["kind"]) == ("sst2", "classification")
    assert len(results["modes"]["all"]["dev"]["scores"]) == 2
    assert results["seeds"] == [5, 6]
    assert set(results["majority"]["dev"]) == {"accuracy"}
    rates = [float(name) for name in re.findall(r"the learning rate (\S+);", printed)]
    assert results["lr"] == {"all": rates[-1]}

    def table(text):
        return [line for line in text.splitlines() if re.match("(all|majority) ", line)]

    again = run(capsys, *flags, *more, "--resume").out       # all runs are finished already
    assert table(again) == table(printed)
    assert again.count(": all 30 steps were made before\n") == 4
    assert again.count(" trained parameters, 0 steps in ") == 4
    error = fail(capsys, *flags, "--steps", 30, "--lr", "1e-2", "--seed", 5, "--dropout", 0.1,
                 "--resume")
    assert "dropout was 0.0, now it is 0.1" in error
    assert "--overwrite" in fail(capsys, *flags)


def test_the_mean_and_the_deviation_are_of_all_seeds(
        tmp_path, model, sentiment, capsys, monkeypatch):
    usual_fine_tune = finetune.fine_tune

    def fine_tune(tuning, splits, mode, seed, lr):
        tuned, results = usual_fine_tune(tuning, splits, mode, seed, lr)
        return tuned, {"dev": results["dev"]._replace(scores={"accuracy": seed / 10})}

    monkeypatch.setattr(finetune, "fine_tune", fine_tune)
    printed = run(capsys, "--task", "sst2", "--data", sentiment, "--out", tmp_path / "o",
                  "--model", model, "--steps", 1, "--freeze", "--seeds", 3, "--seed", 2).out
    assert re.search(r"^head +dev +accuracy +30\.00% \+- 10\.00% of 3 seeds$", printed, re.M)


def test_a_model_that_changes_between_two_seeds_is_refused(
        tmp_path, model, sentiment, tokenizer, capsys, monkeypatch):
    usual_fine_tune = finetune.fine_tune

    def fine_tune(*args):
        results = usual_fine_tune(*args)
        save(MiniALBERT(small_config(tokenizer)), model)
        return results

    monkeypatch.setattr(finetune, "fine_tune", fine_tune)
    printed = run(capsys, "--task", "sst2", "--data", sentiment, "--out", tmp_path / "o",
                  "--model", model, "--steps", 1, "--seeds", 2, code=2)
    assert f"error: {model} has changed since this command began" in printed.err
    assert (tmp_path / "o" / "model.safetensors").exists()        # of the first seed


@pytest.mark.parametrize("dev_line, is_warned", [("bad film\ty\n", True), ("a film\ty\n", False)])
def test_a_dev_set_that_is_the_training_set_is_warned_of(
        tmp_path, model, capsys, dev_line, is_warned):
    train = write_file(tmp_path / "a.tsv", "text\tlabel\ngood film\tx\nbad film\ty\n")
    dev = write_file(tmp_path / "b.tsv", "text\tlabel\ngood film\tx\n" + dev_line)
    printed = run(capsys, "--task", "classification", "--model", model, "--train", train, "--dev",
                  dev, "--steps", 1, "--out", tmp_path / "o")
    assert ("warning: the dev set is the training set" in printed.err) is is_warned


def test_a_seed_decides_the_first_values_of_the_head(tmp_path, model, sentiment, capsys):
    run(capsys, "--task", "sst2", "--data", sentiment, "--out", tmp_path / "o", "--model", model,
        "--steps", 1, "--lr", 0, "--freeze", "--seeds", 2)
    weights = []
    for path in sorted((tmp_path / "o").glob("*/training.safetensors")):
        state, _ = read_safetensors(path)
        weights.append(state["model.output.weight"])
    assert len(weights) == 2
    assert not torch.equal(weights[0], weights[1])


def test_a_run_goes_on_only_with_the_same_model_teacher_data_and_flags(
        tmp_path, model, sentiment, tokenizer, capsys):
    task = make_task_of_kind("classification", ["0", "1"])
    teachers = [str(tmp_path / "teacher0"), str(tmp_path / "teacher1")]
    for seed, path in enumerate(teachers):
        save_classifier(path, make_classifier(tokenizer, task, seed), task, tokenizer)
    flags = ["--task", "sst2", "--data", sentiment, "--out", tmp_path / "o", "--model", model,
             "--distill-from", teachers[0], "--steps", 2]
    run(capsys, *flags)
    run(capsys, *flags, "--resume")
    error = fail(capsys, *flags, "--resume", "--weight-decay", 0.5)
    assert "weight_decay was 0.01, now it is 0.5" in error
    error = fail(capsys, *flags, "--resume", "--hidden-weight", 0.5)
    assert "hidden_weight was None, now it is 0.5" in error
    error = fail(capsys, *flags, "--resume", "--distill-from", teachers[1])
    assert re.search(r"settings: teacher was '\w+', now it is '\w+'", error)
    error = fail(capsys, *flags, "--resume", "--model", teachers[1])
    assert re.search(r"encoder was '\w+', now it is '\w+'; head was None,", error)
    text = (sentiment / "train.tsv").read_text()
    (sentiment / "train.tsv").write_text(text.replace("film", "name", 1))
    assert re.search(r"training_set was \d+, now it is \d+", fail(capsys, *flags, "--resume"))
    (sentiment / "train.tsv").write_text(text)
    with open(sentiment / "dev.tsv", "a") as file:
        file.write("good film .\t1\n")
    error = fail(capsys, *flags, "--resume")
    assert re.search(r"dev_set was \d+, now it is \d+\.", error)


def test_a_run_goes_on_where_new_adapters_and_heads_are_rounded_differently(
        tmp_path, model, sentiment, capsys, monkeypatch):
    flags = ["--task", "sst2", "--data", sentiment, "--out", tmp_path / "o", "--model", model,
             "--adapters-only"]
    run(capsys, *flags, "--steps", 2)
    usual_load_classifier = finetune.load_classifier

    def load_classifier(*arguments, **more):
        classifier, task = usual_load_classifier(*arguments, **more)
        for name, parameter in classifier.named_parameters():
            if name.startswith("output.") or "_adapters." in name:
                parameter.data.mul_(1 + 1e-6)
        return classifier, task

    monkeypatch.setattr(finetune, "load_classifier", load_classifier)
    run(capsys, *flags, "--steps", 2, "--resume")


def test_a_run_goes_on_only_with_the_same_head(tmp_path, sentiment, tokenizer, capsys):
    task = make_task_of_kind("classification", ["0", "1"])
    classifier = make_classifier(tokenizer, task)
    save_classifier(tmp_path / "m", classifier, task, tokenizer)
    flags = ["--task", "sst2", "--data", sentiment, "--out", tmp_path / "o", "--model",
             tmp_path / "m", "--steps", 1]
    run(capsys, *flags)
    run(capsys, *flags, "--resume")
    classifier.output.weight.data[0, 0] += 1
    save_classifier(tmp_path / "m", classifier, task, tokenizer)
    error = fail(capsys, *flags, "--resume")
    assert re.search(r"settings: head was '\w+', now it is '\w+'\.", error)


def test_the_model_is_measured_every_so_many_steps(tmp_path, model, sentiment, capsys):
    run(capsys, "--task", "sst2", "--data", sentiment, "--out", tmp_path / "o", "--model", model,
        "--freeze", "--steps", 5, "--eval-every", 2)
    path, = (tmp_path / "o").glob("*/log.jsonl")
    assert [line["step"] for line in read_json_lines(path)] == [2, 4, 5]


def test_steps_follow_from_epochs_and_the_rate_grows_over_a_tenth_of_them(
        tmp_path, model, sentiment, capsys):
    run(capsys, "--task", "sst2", "--data", sentiment, "--out", tmp_path / "o", "--model", model,
        "--batch-size", 6, "--epochs", "1.8", "--lr", "1e-3", "--log-every", 1)
    path, = (tmp_path / "o").glob("*/log.jsonl")
    lines = read_json_lines(path)
    assert len(lines) == 20                              # an epoch has 11 batches
    rates = [line["lr"] for line in lines]
    expected = [0.5e-3, 1e-3] + [1e-3 * (20 - step) / 18 for step in range(2, 20)]
    assert rates == pytest.approx(expected)
    assert "valid_accuracy" in lines[-1]
    assert "valid_accuracy" not in lines[0]


@pytest.mark.parametrize("more", [[], ["--bf16"]])
def test_to_evaluate_prints_the_scores_of_the_run_and_writes_nothing(
        tmp_path, model, sentiment, capsys, more):
    write_file(sentiment / "test.tsv", "index\tsentence\n0\tgood film\n")
    flags = ["--task", "sst2", "--data", sentiment, *more]
    printed = run(capsys, *flags, "--model", model, "--steps", 12, "--lr", "1e-2",
                  "--out", tmp_path / "o").out
    assert " dev, 1 test without labels, so without scores; labels 0; 1\n" in printed
    os.remove(sentiment / "train.tsv")                   # it is not needed
    before = files_below(tmp_path)
    found = run(capsys, *flags, "--model", tmp_path / "o", "--evaluate").out
    expected = percent(printed, "all", "dev", "accuracy")
    assert percent(found, "model", "dev", "accuracy") == expected
    assert "test: its labels are not known, so it cannot be scored" in found
    assert "train" not in found
    assert files_below(tmp_path) == before


def test_to_evaluate_leaves_the_training_set_out(monkeypatch):
    monkeypatch.setattr(finetune, "docs_on_this_machine", lambda: "docs.jsonl")
    monkeypatch.setattr(finetune, "read_code_task", lambda path: {"train": ["a"], "dev": ["b"]})
    assert finetune.read_datasets(None, "code", "tagging", with_train=False) == {"dev": ["b"]}


def test_to_evaluate_measures_on_files_of_yours(tmp_path, model, capsys):
    rows = "".join(f"{word} film {letter}\t{word}\n" for letter in LETTERS
                   for word in ("good", "bad"))
    table = write_file(tmp_path / "a.tsv", f"text\tlabel\n{rows}")
    other = write_file(tmp_path / "b.tsv", f"words\tname\n{rows}")
    printed = run(capsys, "--model", model, "--task", "classification", "--train", table,
                  "--dev", table, "--steps", 20, "--lr", "1e-2", "--out", tmp_path / "o").out
    found = run(capsys, "--model", tmp_path / "o", "--evaluate", "--dev", other, "--text", "words",
                "--label", "name").out
    for metric in ("accuracy", "macro_f1"):
        expected = percent(printed, "all", "dev", metric)
        assert percent(found, "model", "dev", metric) == expected
    assert "train" not in found


def test_a_second_run_in_the_same_folder_is_refused_and_the_first_ends_well(
        tmp_path, model, sentiment, capsys, monkeypatch):
    flags = ["--model", model, "--task", "sst2", "--data", sentiment, "--steps", 4]
    run(capsys, *flags, "--out", tmp_path / "whole")
    usual_batch = TaskLoss.batch
    errors = []
    steps = []

    def start_another(self, step):
        steps.append(step)
        if steps == [0, 1, 2]:                           # only once
            with torch.random.fork_rng():                # the dropout of this step stays the same
                errors.append(fail(capsys, *flags, "--out", tmp_path / "o", "--resume"))
        return usual_batch(self, step)

    monkeypatch.setattr(TaskLoss, "batch", start_another)
    run(capsys, *flags, "--out", tmp_path / "o")
    assert len(errors) == 1
    assert "another run is writing into it" in errors[0]
    for name in ("model.safetensors", "head.safetensors", "dev.jsonl", "results.json"):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert whole == (tmp_path / "o" / name).read_bytes(), name


def test_to_overwrite_removes_what_runs_wrote_and_nothing_else(tmp_path, model, sentiment, capsys):
    out = tmp_path / "o"
    flags = ["--model", model, "--task", "sst2", "--data", sentiment, "--out", out]
    write_file(sentiment / "test.tsv", "index\tsentence\n0\tgood film\n")
    run(capsys, *flags, "--steps", 1)
    (out / "notes.txt").write_text("mine")
    os.remove(sentiment / "test.tsv")
    run(capsys, *flags, "--steps", 2, "--freeze", "--overwrite")
    names = {path.name for path in out.iterdir()}
    assert names == {"config.json", "model.safetensors", "vocab.txt", "run.json", "task.json",
                     "head.safetensors", "dev.jsonl", "results.json", "notes.txt",
                     "head-64-lr0.032-seed0", "tokenizer_config.json"}
    assert (out / "notes.txt").read_text() == "mine"


def test_a_folder_with_files_that_are_read_is_no_folder_for_a_run(
        tmp_path, model, sentiment, capsys):
    table = write_file(tmp_path / "a.tsv", "text\tlabel\ngood film\tx\nbad film\ty\n")
    flags = ["--task", "classification", "--model", model, "--train", table, "--dev", table,
             "--steps", 1]
    run(capsys, *flags, "--out", tmp_path / "o")
    test = write_file(tmp_path / "o" / "test.jsonl", '{"text": "good film", "label": "x"}\n')
    error = fail(capsys, *flags, "--test", test, "--out", tmp_path / "o", "--resume")
    assert "o: this folder is read from" in error
    assert (tmp_path / "o" / "test.jsonl").read_text().startswith('{"text"')
    error = fail(capsys, "--task", "sst2", "--data", sentiment, "--model", model, "--out",
                 sentiment, "--overwrite")
    assert "sst2: this folder is read from" in error


def test_the_fingerprints_are_of_what_is_used_of_the_folder(tmp_path, tokenizer):
    task = make_task_of_kind("regression", [])
    classifier = make_classifier(tokenizer, task, num_hidden_groups=2)
    path = str(tmp_path / "m")
    save_classifier(path, classifier, task, tokenizer)
    of_one = finetune.fingerprints_of_saved_model(path, task, recursions=1)
    of_two = finetune.fingerprints_of_saved_model(path, task, recursions=2)
    other_task = replace(task, mean=5.0, sd=3.0)         # of other data
    assert finetune.fingerprints_of_saved_model(path, other_task, recursions=1) == of_one
    classifier.encoder.layers[1].norm.bias.data += 1
    save_classifier(path, classifier, task, tokenizer)
    assert finetune.fingerprints_of_saved_model(path, task, recursions=1) == of_one
    assert finetune.fingerprints_of_saved_model(path, task, recursions=2) != of_two


@pytest.mark.parametrize("name, change", [
    ("teacher", "no teacher"), ("training_set", "a line more"), ("encoder", "another model")])
def test_a_resume_that_would_train_anew_in_another_subfolder_is_refused(
        tmp_path, model, sentiment, tokenizer, capsys, name, change):
    task = make_task_of_kind("classification", ["0", "1"])
    teacher = str(tmp_path / "teacher")
    save_classifier(teacher, make_classifier(tokenizer, task), task, tokenizer)
    flags = ["--task", "sst2", "--data", sentiment, "--out", tmp_path / "o", "--steps", 1,
             "--adapters-only", "--model", model]
    run(capsys, *flags, "--distill-from", teacher)
    before = files_below(tmp_path / "o")
    more = ["--distill-from", teacher]
    if change == "no teacher":
        more = []
    elif change == "a line more":
        with open(sentiment / "train.tsv", "a") as file:
            file.write("good film .\t1\n")
    else:
        save(MiniALBERT(small_config(tokenizer, adapter_size=3)), model)
    error = fail(capsys, *flags, *more, "--resume")
    assert re.search(rf"run.json is of a run with other settings: {name} was '?\w+'?, now", error)
    assert files_below(tmp_path / "o") == before


def test_a_resume_with_other_windows_or_another_tokenizer_is_refused(tmp_path, model, capsys):
    squad = make_squad([("who", ["john"]), ("where", ["paris"])])
    questions = write_file(tmp_path / "a.json", squad)
    flags = ["--task", "qa", "--train", questions, "--dev", questions, "--model", model,
             "--steps", 1, "--out", tmp_path / "o"]
    run(capsys, *flags)
    before = files_below(tmp_path / "o")
    for flag, name in (("--stride", "stride"), ("--length", "length")):
        error = fail(capsys, *flags, flag, 9, "--resume")
        assert re.search(rf"of a run with other settings: {name} was \d+, now it is 9", error)
    with open(os.path.join(model, "vocab.txt"), "r+") as file:
        vocabulary = file.read()
        file.seek(0)
        file.write(vocabulary.replace("\nfilm", "\nmovi"))
    error = fail(capsys, *flags, "--resume")
    assert "run.json is of a run with other settings: tokenizer was" in error
    assert files_below(tmp_path / "o") == before


def test_a_checkpoint_has_the_settings_of_its_own_run(tmp_path, model, sentiment, capsys):
    flags = ["--task", "sst2", "--data", sentiment, "--model", model, "--steps", 3]
    run(capsys, *flags, "--out", tmp_path / "teacher")
    run(capsys, *flags, "--out", tmp_path / "o", "--distill-from", tmp_path / "teacher", "--seeds",
        2, "--lr", 1e-3)
    path, = (tmp_path / "o").glob("all-*-seed1/training.safetensors")
    _, metadata = read_safetensors(path)
    settings = json.loads(metadata["run"])
    expected = read_json(tmp_path / "o/run.json")["settings"]
    expected |= {"lr": 1e-3, "seed": 1, "hidden_weight": 3.0}    # in run.json: a list, 0, null
    assert settings == expected


def test_of_several_evaluations_the_last_one_counts(
        tmp_path, model, sentiment, capsys, monkeypatch):
    usual_evaluate_split = finetune.evaluate_split
    accuracies = iter([0.1, 0.2, 0.3])

    def evaluate_split(*arguments):
        result = usual_evaluate_split(*arguments)
        return result._replace(scores={"accuracy": next(accuracies)})

    monkeypatch.setattr(finetune, "evaluate_split", evaluate_split)
    run(capsys, "--task", "sst2", "--data", sentiment, "--model", model, "--steps", 3,
        "--eval-every", 1, "--out", tmp_path / "o")
    scores = read_json(tmp_path / "o/results.json")["modes"]["all"]["dev"]["scores"]
    assert scores == [{"accuracy": 0.3}]


def test_a_frozen_model_does_not_learn_hidden_states(tmp_path, model, sentiment, capsys):
    flags = ["--task", "sst2", "--data", sentiment, "--model", model, "--steps", 1]
    run(capsys, *flags, "--out", tmp_path / "teacher")
    run(capsys, *flags, "--out", tmp_path / "o", "--distill-from", tmp_path / "teacher", "--freeze")
    path, = (tmp_path / "o").glob("head-*/log.jsonl")
    line = read_json_lines(path)[-1]
    assert "distill" in line and "hidden" not in line


def test_a_line_to_predict_is_named_by_its_file_and_number(tmp_path, model, sentiment, capsys):
    run(capsys, "--task", "sst2", "--data", sentiment, "--out", tmp_path / "o", "--steps", 1,
        "--model", model)
    lines = write_file(tmp_path / "lines.txt", "good\n\nbad\tfilm\n")
    error = fail(capsys, "--model", tmp_path / "o", "--predict", lines)
    assert f"{lines}:3 'bad\\tfilm': this model needs one text" in error
    error = fail(capsys, "--model", tmp_path / "o", "--predict", "bad\tfilm")
    assert "error: --predict 'bad\\tfilm': this model needs one text" in error
    table = write_file(tmp_path / "x.CSV", "text,label\n")
    assert "not a folder, a table" in fail(capsys, "--model", tmp_path / "o", "--predict", table)


def test_a_predicted_number_has_six_digits():
    task = make_task_of_kind("regression", [])
    assert finetune.describe_prediction(task, None, Prediction(2.0401134253, {})) == "2.04011"


def test_the_hash_of_examples_is_of_texts_and_labels_alone():
    examples = make_examples("qa")
    moved = [example._replace(location="elsewhere:1", id="other") for example in examples]
    assert finetune.hash_examples(moved) == finetune.hash_examples(examples)
    for change in ({"text": "\ud800"}, {"second_text": "x"}, {"label": []}):
        changed = examples[:2] + [examples[2]._replace(**change)]
        assert finetune.hash_examples(changed) != finetune.hash_examples(examples)


def test_corrections_are_merged_to_predict(tmp_path, sentiment, tokenizer, capsys, monkeypatch):
    torch.manual_seed(1)
    for name, rank in (("m", 4), ("n", 0)):
        config = small_config(tokenizer, correction_rank=rank)
        save(randomise(MiniALBERT(config)), tmp_path / name)
        tokenizer.save(str(tmp_path / name))
    flags = ["--task", "sst2", "--data", sentiment]
    printed = run(capsys, *flags, "--model", tmp_path / "m", "--out", tmp_path / "o", "--steps", 9)
    expected = percent(printed.out, "all", "dev", "accuracy")
    ranks = []
    usual_evaluate_split = finetune.evaluate_split

    def evaluate_split(model, *arguments):
        ranks.append(model.encoder.config.correction_rank)
        return usual_evaluate_split(model, *arguments)

    monkeypatch.setattr(finetune, "evaluate_split", evaluate_split)
    found = run(capsys, *flags, "--model", tmp_path / "o", "--evaluate").out
    assert percent(found, "model", "dev", "accuracy") == expected
    run(capsys, "--model", tmp_path / "o", "--predict", "good film")
    assert ranks == [0, 0]
    run(capsys, "--model", tmp_path / "o", "--predict", "good film", "--bf16")
    assert ranks == [0, 0, 4]                            # it computes what the training computed
    run(capsys, *flags, "--model", tmp_path / "n", "--out", tmp_path / "p", "--steps", 1)
    args = finetune.arguments(["--model", str(tmp_path / "p"), "--evaluate"])
    classifier, _, _ = finetune.load_fine_tuned(args, torch.device("cpu"), bf16=False)
    assert classifier.encoder.config.num_hidden_groups == 1     # nothing is to be merged


def test_to_overwrite_removes_nothing_if_the_model_is_for_other_labels(
        tmp_path, sentiment, tokenizer, capsys):
    task = make_task_of_kind("classification", ["x", "y"])
    save_classifier(tmp_path / "m", make_classifier(tokenizer, task), task, tokenizer)
    flags = ["--task", "sst2", "--data", sentiment, "--steps", 1]
    run(capsys, *flags, "--model", tmp_path / "m", "--out", tmp_path / "none", code=2)
    save_classifier(tmp_path / "n", make_classifier(tokenizer, task), task, tokenizer)
    os.remove(tmp_path / "n" / "task.json")
    run(capsys, *flags, "--model", tmp_path / "n", "--out", tmp_path / "o")
    before = files_below(tmp_path / "o")
    error = fail(capsys, *flags, "--model", tmp_path / "m", "--out", tmp_path / "o", "--overwrite")
    assert "one text (x; y), not for classification of one text (0; 1)" in error
    assert files_below(tmp_path / "o") == before


def test_training_examples_without_a_place_to_predict_are_refused(tmp_path, model, capsys):
    questions = [{"id": "a", "question": "who", "answers": [], "is_impossible": True}]
    content = json.dumps({"data": [{"paragraphs": [{"context": "", "qas": questions}]}]})
    train = write_file(tmp_path / "train.json", content)
    error = fail(capsys, "--task", "qa", "--train", train, "--dev", train, "--model", model,
                 "--out", tmp_path / "o")
    assert "no example has a token that could be trained on" in error


def test_a_rate_is_chosen_by_contexts_on_which_it_was_not_trained(
        tmp_path, model, monkeypatch, capsys):
    """The real dev set has a context of its own. It is not looked at before the rate is chosen."""
    texts_of_runs = []

    def fine_tune(tuning, splits, mode, seed, lr):
        train_texts = {example.second_text for example in splits["train"].examples}
        dev_texts = {example.second_text for example in splits["dev"].examples}
        texts_of_runs.append((train_texts, dev_texts))
        return None, {"dev": finetune.Result({"f1": lr, "exact_match": lr}, [])}

    monkeypatch.setattr(finetune, "fine_tune", fine_tune)
    monkeypatch.setattr(finetune, "save_classifier", lambda *others: None)
    paragraphs = []
    for number in range(11):
        questions = []
        for question in ("who", "what", "why"):
            questions.append({"id": f"{number} {question}", "question": question,
                              "answers": [{"text": "good", "answer_start": 0}]})
        paragraphs.append({"context": f"good {number}", "qas": questions})
    train = write_file(tmp_path / "train.json",
                       json.dumps({"data": [{"paragraphs": paragraphs[:10]}]}))
    dev = write_file(tmp_path / "dev.json", json.dumps({"data": [{"paragraphs": paragraphs[10:]}]}))
    printed = run(capsys, "--task", "qa", "--train", train, "--dev", dev, "--model", model,
                  "--lr", 0.1, 0.3, 0.2, "--out", tmp_path / "o").out
    assert "held-out tenth of the training set): 0.3 30.00%, 0.2 20.00%, 0.1 10.00%" in printed
    all_training_texts = {f"good {number}" for number in range(10)}
    for train_texts, dev_texts in texts_of_runs[:3]:
        assert train_texts.isdisjoint(dev_texts)
        assert train_texts | dev_texts == all_training_texts
    assert texts_of_runs[3:] == [(all_training_texts, {"good 10"})]


def test_a_rate_that_diverges_is_not_chosen(tmp_path, model, sentiment, capsys):
    flags = ["--task", "sst2", "--data", sentiment, "--model", model, "--steps", 3]
    printed = run(capsys, *flags, "--out", tmp_path / "o", "--lr", "2e9", "1e-3").out
    assert re.search(r"--lr 2e\+09: step \d, ", printed)
    assert re.search(r"\(accuracy on a held-out tenth of the training set\): 0\.001 \d+\.\d\d%\n",
                     printed)
    error = fail(capsys, *flags, "--out", tmp_path / "p", "--lr", "2e9", "1e9")
    assert "--lr: the training diverges with each of 2e+09, 1e+09" in error


def test_a_rate_whose_model_cannot_be_measured_is_not_chosen(
        tmp_path, model, sentiment, capsys, monkeypatch):
    usual_predict_logits = finetune.predict_logits
    calls = []

    def predict_logits(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise FloatingPointError("what the model computes is not finite")
        return usual_predict_logits(*arguments)

    monkeypatch.setattr(finetune, "predict_logits", predict_logits)
    printed = run(capsys, "--task", "sst2", "--data", sentiment, "--model", model, "--steps", 1,
                  "--out", tmp_path / "o", "--lr", "1e-2", "1e-3").out
    assert "--lr 0.01: what the model computes is not finite" in printed
    assert "set): 0.001 " in printed


def test_the_first_process_reads_the_task_first(tmp_path, model, sentiment, monkeypatch, capsys):
    """It may download the task or collect the documentation; the others find the result."""
    happened = note_first_process(monkeypatch, finetune, "read_datasets")
    run(capsys, "--task", "sst2", "--data", sentiment, "--model", model, "--steps", 1, "--out",
        tmp_path / "o")
    assert happened == ["the first process begins", "read_datasets", "it has ended"]


def test_several_processes_stop_at_a_rate_that_diverges(monkeypatch):
    """The first process may have found it alone; the others would train on and wait for it."""
    def fine_tune(tuning, splits, mode, seed, lr):
        raise FloatingPointError("step 2: the held-out loss is nan")

    monkeypatch.setattr(finetune, "fine_tune", fine_tune)
    tuning = SimpleNamespace(task=make_task_of_kind("classification", ["x"]),
                             processes=Processes(world_size=2),
                             args=SimpleNamespace(lr=[0.5, 0.1], seed=0))
    with pytest.raises(FloatingPointError, match="nan; try without --lr 0.5, or with one process"):
        finetune.find_best_rate(tuning, "all", {})


def test_to_overwrite_removes_nothing_if_the_contexts_have_no_words(tmp_path, model, capsys):
    train = write_file(tmp_path / "train.json", make_squad([("who", [])], context="  "))
    flags = ["--task", "qa", "--dev", train, "--model", model, "--out", tmp_path / "o"]
    table = write_file(tmp_path / "a.tsv", "text\tlabel\ngood film\tx\nbad film\ty\n")
    run(capsys, "--task", "classification", "--train", table, "--dev", table, "--model", model,
        "--out", tmp_path / "o", "--steps", 1)
    before = files_below(tmp_path / "o")
    error = fail(capsys, *flags, "--train", train, "--steps", 1, "--overwrite")
    assert "no example has a token that could be trained on" in error
    assert files_below(tmp_path / "o") == before


def test_to_overwrite_removes_nothing_if_no_rate_can_be_chosen(tmp_path, model, capsys):
    table = write_file(tmp_path / "a.tsv", "text\tlabel\ngood film\tx\nbad film\ty\n")
    flags = ["--task", "classification", "--train", table, "--dev", table, "--model", model,
             "--out", tmp_path / "o", "--steps", 1]
    run(capsys, *flags)
    before = files_below(tmp_path / "o")
    assert "give one --lr" in fail(capsys, *flags, "--lr", "1e-3", "1e-4", "--overwrite")
    assert files_below(tmp_path / "o") == before


def test_to_overwrite_removes_nothing_if_only_the_examples_held_out_for_a_rate_have_words(
        tmp_path, model, capsys):
    paragraphs = []
    for context in ("paris", ""):                     # by its hash the first one is held out
        questions = [{"id": context, "question": "who", "answers": []}]
        paragraphs.append({"context": context, "qas": questions})
    train = write_file(tmp_path / "t.json", json.dumps({"data": [{"paragraphs": paragraphs}]}))
    flags = ["--task", "qa", "--train", train, "--dev", train, "--model", model, "--out",
             tmp_path / "o", "--steps", 1]
    run(capsys, *flags)
    before = files_below(tmp_path / "o")
    error = fail(capsys, *flags, "--lr", "1e-3", "1e-4", "--overwrite")
    assert "no example has a token that could be trained on" in error
    assert files_below(tmp_path / "o") == before


def test_two_rates_with_one_folder_are_refused():
    with pytest.raises(ValueError, match="--lr: two rates are the same, to six digits: 0.01 0.01"):
        finetune.arguments(["--lr", "1e-2", "1.0000001e-2"])


def test_to_choose_a_rate_there_must_be_an_example_to_hold_out(tmp_path, model, capsys):
    table = write_file(tmp_path / "a.tsv", "text\tlabel\ngood film\tx\nbad film\ty\n")
    error = fail(capsys, "--task", "classification", "--train", table, "--dev", table, "--model",
                 model, "--out", tmp_path / "o", "--lr", "1e-3", "1e-4")
    assert error.endswith("each has a label that no other example has; give one --lr\n")


def test_a_state_that_is_not_finite_is_found_before_the_model_is_written(
        tmp_path, model, sentiment, capsys):
    flags = ["--model", model, "--task", "sst2", "--data", sentiment, "--out", tmp_path / "o",
             "--steps", 1]
    run(capsys, *flags)
    path, = (tmp_path / "o").glob("*/training.safetensors")
    tensors, metadata = read_safetensors(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    tensors["model.output.bias"][0] = math.nan
    write_safetensors(tensors, path, metadata)
    before = files_below(tmp_path)
    error = fail(capsys, *flags, "--resume")
    assert "training.safetensors: there are values that are not finite in model.output.b" in error
    assert files_below(tmp_path) == before


def test_ctrl_c_in_an_evaluation_is_one_line_and_status_130(
        tmp_path, model, sentiment, capsys, monkeypatch):
    def stop(*others):
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "predict_logits", stop)
    error = run(capsys, "--model", model, "--task", "sst2", "--data", sentiment, "--steps", 1,
                "--out", tmp_path / "o", code=130).err
    assert error.split("\n") == ["", "finetune.py: interrupted", ""]


def test_bfloat16_trains_and_predicts_near_float32_but_not_alike(
        tmp_path, model, sentiment, capsys):
    flags = ["--model", model, "--task", "sst2", "--data", sentiment, "--steps", 9,
             "--log-every", 1]
    losses = {}
    for name, more in (("whole", []), ("half", ["--bf16"])):
        out = tmp_path / name
        run(capsys, *flags, *more, "--out", out)
        path, = out.glob("*/log.jsonl")
        losses[name] = [line["loss"] for line in read_json_lines(path)]
        told = [line["probabilities"]["1"] for line in read_json_lines(out / "dev.jsonl")]
        tuned, task = load_classifier(str(out))
        examples = read_glue("sst2", str(sentiment))["dev"]
        features = list(encode(task, examples, Tokenizer(str(out))))
        predictions = decode(task, examples, features, predict_logits(tuned, features))
        exact = [probabilities["1"] for _, probabilities in predictions]
        assert exact == pytest.approx(told, abs=0.01)
        assert (exact == pytest.approx(told, abs=1e-6)) == (name == "whole")
    assert losses["whole"] == pytest.approx(losses["half"], rel=0.01)
    assert losses["whole"][0] != losses["half"][0]       # no step had been made yet
    error = fail(capsys, *flags, "--out", tmp_path / "half", "--resume")
    assert "bf16 was True, now it is False" in error


@pytest.mark.parametrize("flags", [[], ["--adapters-only"]])
def test_a_run_that_was_stopped_and_resumed_ends_bit_for_bit_as_one_that_was_not(
        flags, tmp_path, model, sentiment, capsys, monkeypatch):
    flags = ["--model", model, "--task", "sst2", "--data", sentiment, "--steps", 9,
             "--lr", "1e-2", "--seeds", 2, "--dropout", 0.1, *flags]
    run(capsys, *flags, "--out", tmp_path / "whole")
    usual_batch = TaskLoss.batch
    asked = []

    # Two seeds of nine steps: a signal amid the first, in its last step and amid the second.
    stops = [(0, 3), (0, 8), (1, 4)]                     # (seed, step)

    def batch_and_stop(self, step):
        asked.append((self.seed, step))
        if (self.seed, step) in stops:
            os.kill(os.getpid(), signal.SIGTERM)
        return usual_batch(self, step)

    monkeypatch.setattr(TaskLoss, "batch", batch_and_stop)
    for more in ([], ["--resume"], ["--resume"]):
        with pytest.raises(SystemExit) as stop:
            run(capsys, *flags, "--out", tmp_path / "parts", *more)
        assert stop.value.code == 128 + signal.SIGTERM
    run(capsys, *flags, "--out", tmp_path / "parts", "--resume")
    expected = []                                        # no step is made twice
    for seed in (0, 1):
        for step in range(9):
            expected.append((seed, step))
    assert asked == expected
    for name in ("model.safetensors", "head.safetensors", "dev.jsonl"):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert whole == (tmp_path / "parts" / name).read_bytes(), name


def test_the_score_of_the_teacher_comes_first(tmp_path, model, sentiment, capsys):
    flags = ["--model", model, "--task", "sst2", "--data", sentiment]
    run(capsys, *flags, "--steps", 40, "--lr", "1e-2", "--out", tmp_path / "teacher")
    printed = run(capsys, *flags, "--steps", 3, "--distill-from", tmp_path / "teacher",
                  "--out", tmp_path / "o").out
    assert float(re.search(r"^teacher .*: accuracy ([\d.]+)%$", printed, re.M)[1]) > 95
    path, = (tmp_path / "o").glob("*/log.jsonl")
    assert "-lr0.0048-" in path.parent.name              # 1.5e-4 * 768 / 24
    line = read_json_lines(path)[-1]
    parts = line["task"] + line["distill"] + 3 * line["hidden"]
    assert line["loss"] == pytest.approx(parts, rel=1e-4)
    run(capsys, *flags, "--steps", 3, "--distill-from", tmp_path / "teacher", "--hidden-weight", 0,
        "--out", tmp_path / "without")
    path, = (tmp_path / "without").glob("*/log.jsonl")
    assert "-lr0.0016-" in path.parent.name
    assert "hidden" not in read_json_lines(path)[-1]


def test_what_a_terminal_would_obey_is_not_printed_in_a_prediction():
    tagging = make_task_of_kind("tagging", ["O", "B-x", "I-x"])
    example = Example(["a\x1b[2Jb", "c"], None, None, "", "")
    shown = finetune.describe_prediction(tagging, example, Prediction(["B-x", "I-x"], {}))
    assert shown == r"a\x1b[2Jb c (x)"
    qa = make_task_of_kind("qa", [])
    shown = finetune.describe_prediction(qa, example, Prediction("10\u00a0km\n\x07", {}))
    assert shown == "10\u00a0km\\n\\x07"


def test_tags_that_are_not_known_are_no_labels(tokenizer):
    task = make_task_of_kind("tagging", LABELS["tagging"], length=20)
    feature, = encode(task, [Example(["good", "city"], None, None, "", "")], tokenizer)
    assert feature.labels is None


def test_a_teacher_of_numbers_says_the_same_in_the_units_of_the_task(tmp_path, tokenizer):
    saved_task = make_task_of_kind("regression", length=20, mean=-1.0, sd=0.5)
    task = replace(saved_task, mean=2.0, sd=4.0)
    path = str(tmp_path / "teacher")
    save_classifier(path, make_classifier(tokenizer, saved_task), saved_task, tokenizer)
    features = list(encode(task, make_examples("regression"), tokenizer))
    numbers = []
    for one_task, classifier in ((saved_task, load_classifier(path)[0]),
                                 (task, finetune.load_teacher(path, task, tokenizer))):
        logits = predict_logits(classifier, features)
        numbers.append([number for number, _ in decode(one_task, features, features, logits)])
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-4)


def test_a_teacher_is_measured_on_the_dev_set(tmp_path, model, sentiment, capsys):
    flags = ["--model", model, "--task", "sst2", "--data", sentiment, "--out"]
    run(capsys, *flags, tmp_path / "teacher", "--steps", 60, "--lr", 1e-2)
    lines = (sentiment / "dev.tsv").read_text().splitlines()
    wrong = [lines[0]] + [line[:-1] + str(1 - int(line[-1])) for line in lines[1:]]
    (sentiment / "dev.tsv").write_text("\n".join(wrong) + "\n")
    told = run(capsys, *flags, tmp_path / "o", "--steps", 1, "--distill-from",
               tmp_path / "teacher").out
    assert float(re.search(r"^teacher .*: accuracy ([\d.]+)%$", told, re.M)[1]) < 5


def test_a_model_of_a_glue_task_is_only_measured_on_its_files(tmp_path, model, sentiment, capsys):
    run(capsys, "--model", model, "--task", "sst2", "--data", sentiment, "--steps", 1, "--out",
        tmp_path / "o")
    error = fail(capsys, "--evaluate", "--model", tmp_path / "o", "--dev", "x.tsv")
    assert "--dev: the task sst2 does not use it" in error
    assert "; sst2 reads the files in the folder --data" in error


def test_a_teacher_of_other_labels_or_of_another_tokenizer_is_refused(
        tmp_path, model, sentiment, tokenizer, capsys):
    task = make_task_of_kind("classification", ["0", "1"])
    save_classifier(str(tmp_path / "teacher"), make_classifier(tokenizer, task), task, tokenizer)
    table = write_file(tmp_path / "o.csv", "text,label\na,yes\nb,no\n")
    error = fail(capsys, "--model", model, "--task", "classification", "--train", table,
                 "--dev", table, "--distill-from", tmp_path / "teacher", "--out", tmp_path / "o")
    assert f"--distill-from {tmp_path / 'teacher'} was fine-tuned for" in error
    assert "one text (0; 1), not for classification of one text (no; yes)" in error
    vocabulary = (tmp_path / "teacher/vocab.txt").read_text()
    (tmp_path / "teacher/vocab.txt").write_text(vocabulary.replace("\nfilm", "\nmovie"))
    error = fail(capsys, "--model", model, "--task", "sst2", "--data", sentiment,
                 "--distill-from", tmp_path / "teacher", "--out", tmp_path / "o")
    assert f"--distill-from {tmp_path / 'teacher'}: its tokenizer differs" in error


def test_a_teacher_with_fewer_tokens_than_its_tokenizer_is_refused(
        tmp_path, model, sentiment, tokenizer, capsys):
    task = make_task_of_kind("classification", ["0", "1"])
    teacher = make_classifier(tokenizer, task, vocab_size=tokenizer.vocab_size - 1)
    save_classifier(str(tmp_path / "teacher"), teacher, task, tokenizer)
    error = fail(capsys, "--model", model, "--task", "sst2", "--data", sentiment,
                 "--distill-from", tmp_path / "teacher", "--out", tmp_path / "o")
    assert f"{tmp_path / 'teacher'}: its tokenizer has {tokenizer.vocab_size} tokens" in error


def test_a_teacher_of_another_task_of_glue_is_refused(
        tmp_path, model, sentiment, tokenizer, capsys):
    task = make_task_of_kind("classification", ["0", "1"], name="cola")
    save_classifier(str(tmp_path / "teacher"), make_classifier(tokenizer, task), task, tokenizer)
    error = fail(capsys, "--model", model, "--task", "sst2", "--data", sentiment,
                 "--distill-from", tmp_path / "teacher", "--out", tmp_path / "o")
    assert f"--distill-from {tmp_path / 'teacher'} was fine-tuned for cola, not for sst2" in error


def test_a_teacher_with_fewer_positions_is_refused_before_the_training(
        tmp_path, model, sentiment, tokenizer, capsys):
    task = make_task_of_kind("classification", ["0", "1"], name="sst2")
    teacher = make_classifier(tokenizer, task, max_position_embeddings=3)
    save_classifier(str(tmp_path / "teacher"), teacher, task, tokenizer)
    error = fail(capsys, "--model", model, "--task", "sst2", "--data", sentiment, "--length", 16,
                 "--distill-from", tmp_path / "teacher", "--out", tmp_path / "o")
    assert error.endswith("teacher: it has only 3 positions; say --length 3\n")


def test_both_dev_sets_of_mnli_are_reported_and_its_test_sets_written(tmp_path, model, capsys):
    labels = ["neutral", "entailment", "contradiction"]
    for split in ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched"):
        lines = ["index\tsentence1\tsentence2"]
        for i in range(3):
            lines.append(f"{i}\tgood\tbad")
        if "test" not in split:
            lines[0] += "\tgold_label"
            for i in range(3):
                lines[1 + i] += f"\t{labels[i]}"
        write_file(tmp_path / f"mnli/{split}.tsv", "\n".join(lines) + "\n")
    printed = run(capsys, "--model", model, "--task", "mnli", "--data", tmp_path / "mnli",
                  "--steps", 1, "--out", tmp_path / "o").out
    for split in ("dev_matched", "dev_mismatched"):
        assert percent(printed, "all", split, "accuracy") >= 0
        assert percent(printed, "majority", split, "accuracy") == pytest.approx(33.33)
    for name in ("MNLI-m.tsv", "MNLI-mm.tsv"):
        written = (tmp_path / "o" / name).read_text()
        assert re.fullmatch(r"index\tprediction\n0\t\w+\n1\t\w+\n2\t\w+\n", written)


def test_the_default_run_tunes_whole_through_adapters_and_from_noise(
        tmp_path, model, capsys, monkeypatch):
    path = write_documentation(tmp_path / "docs.jsonl")
    monkeypatch.setattr(finetune, "docs_on_this_machine", lambda: path)
    monkeypatch.chdir(tmp_path)
    printed = run(capsys, "--model", model, "--steps", 2).out
    rows = [line.split()[0] for line in printed.splitlines() if " f1 " in line]
    assert rows == ["majority", "all", "adapters", "random"]
    names = sorted(path.name for path in (tmp_path / "out/code").iterdir() if path.is_dir())
    assert [name.split("-")[0] for name in names] == ["adapters", "all", "random"]
    # The model is 24 wide, so the rates are 32 times those of a model of 768.
    rates = [name.split("-lr")[1].split("-seed")[0] for name in names]
    assert rates == ["0.032", "0.0128", "0.0128"]
    state, _ = read_safetensors(os.path.join("out/code", names[1], "training.safetensors"))
    from_noise, _ = read_safetensors(os.path.join("out/code", names[2], "training.safetensors"))
    assert from_noise.keys() == state.keys()             # all parameters are trained, too
    saved, _ = load_classifier("out/code")               # it is the first one, "all"
    assert torch.equal(saved.output.weight, state["model.output.weight"])


def test_the_default_run_is_short_and_one_with_a_task_is_not():
    assert finetune.arguments([]).steps == 200
    assert finetune.arguments(["--steps", "7"]).steps == 7
    assert finetune.arguments(["--task", "code"]).steps is None


def test_the_built_in_task_can_be_asked_for_by_its_name(tmp_path, model, capsys, monkeypatch):
    path = write_documentation(tmp_path / "docs.jsonl")
    monkeypatch.setattr(finetune, "docs_on_this_machine", lambda: path)
    printed = run(capsys, "--model", model, "--task", "code", "--steps", 1, "--freeze",
                  "--out", tmp_path / "o").out
    rows = [line.split()[0] for line in printed.splitlines() if " f1 " in line]
    assert rows == ["majority", "head"]


def test_the_default_run_says_to_distil_first(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "python distill.py" in fail(capsys)


def test_a_glue_task_without_a_folder_is_downloaded(
        tmp_path, model, sentiment, capsys, monkeypatch):
    asked = []

    def download(name):
        asked.append(name)
        return str(sentiment)

    monkeypatch.setattr(finetune, "download_glue", download)
    run(capsys, "--model", model, "--task", "sst2", "--steps", 1, "--out", tmp_path / "o")
    assert asked == ["sst2"]


def test_a_fine_tuned_model_goes_on_with_its_own_head_and_refuses_other_labels(
        tmp_path, model, sentiment, capsys):
    run(capsys, "--model", model, "--task", "sst2", "--data", sentiment, "--steps", 40,
        "--lr", "1e-2", "--out", tmp_path / "a")
    table = write_file(tmp_path / "o.csv", "text,label\na,yes\nb,no\n")
    error = fail(capsys, "--model", tmp_path / "a", "--task", "classification",
                 "--train", table, "--dev", table, "--out", tmp_path / "b")
    assert "one text (0; 1), not for classification of one text (no; yes)" in error
    printed = run(capsys, "--model", tmp_path / "a", "--task", "sst2", "--data", sentiment,
                  "--steps", 1, "--lr", "1e-9", "--freeze", "--out", tmp_path / "c").out
    assert percent(printed, "head", "dev", "accuracy") > 95


def test_a_fine_tuned_model_is_measured_and_predicts_in_bfloat16_if_it_is_said(
        tokenizer, tmp_path, capsys, monkeypatch):
    task = make_task_of_kind("classification", ["x", "y"])
    save_classifier(str(tmp_path / "m"), make_classifier(tokenizer, task), task, tokenizer)
    table = write_file(tmp_path / "t.tsv", "text\tlabel\ngood\tx\nbad\ty\n")
    usual_predict = finetune.predict_logits
    dtypes = []

    def predict_and_note(*others):
        dtypes.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return usual_predict(*others)

    monkeypatch.setattr(finetune, "predict_logits", predict_and_note)
    for what in (["--predict", "good"], ["--evaluate", "--dev", table]):
        for more in ([], ["--bf16"], ["--no-bf16"]):
            run(capsys, "--model", tmp_path / "m", "--device", "cpu", *what, *more)
    assert dtypes == [torch.float32, torch.bfloat16, torch.float32] * 2


def test_the_results_have_the_scores_of_all_seeds_and_the_details_of_the_first(tmp_path):
    task = make_task_of_kind("classification", ["x", "y"])
    examples = [make_text_example("good", label) for label in "xxy"]
    results_of_seeds = []
    for guesses, accuracy in (("xyy", 2 / 3), ("yyy", 1 / 3)):
        predictions = [Prediction(guess, {}) for guess in guesses]
        results_of_seeds.append({"dev": finetune.Result({"accuracy": accuracy}, predictions)})
    args = finetune.arguments(["--task", "classification", "--train", "x", "--model", "m",
                               "--seed", "3", "--seeds", "2", "--out", str(tmp_path)])
    baseline = {"dev": finetune.Result({"accuracy": 0.5}, [])}
    finetune.write_results(args, task, {"dev": examples}, baseline, {"head": 1e-3},
                           {"head": results_of_seeds})
    details = {"x": {"precision": 1.0, "recall": 1 / 2, "f1": 2 / 3, "count": 2},
               "y": {"precision": 1 / 2, "recall": 1.0, "f1": 2 / 3, "count": 1}}
    dev = {"scores": [{"accuracy": 2 / 3}, {"accuracy": 1 / 3}], "details": details}
    assert read_json(tmp_path / "results.json") == {
        "task": "classification", "kind": "classification", "model": "m", "seeds": [3, 4],
        "lr": {"head": 1e-3}, "majority": {"dev": {"accuracy": 0.5}},
        "modes": {"head": {"dev": dev}}}


ALLOWED_FLAGS = {
    "--predict": {"--predict", "--model", "--recursions", "--device", "--bf16", "--out",
                  "--overwrite"},
    "--evaluate": {"--evaluate", "--model", "--recursions", "--task", "--data", "--dev", "--test",
                   "--text", "--label", "--device", "--bf16"}}


def test_a_model_is_tuned_with_its_first_recursions_and_saved_so(
        tmp_path, model, sentiment, capsys):
    out = tmp_path / "o"
    flags = ["--model", model, "--task", "sst2", "--data", sentiment, "--lr", "1e-2"]
    printed = run(capsys, *flags, "--recursions", 1, "--steps", 40, "--out", out).out
    assert percent(printed, "all", "dev", "accuracy") > 95
    assert load(str(out)).config.num_hidden_layers == 1
    assert load(model).config.num_hidden_layers == 2
    error = fail(capsys, *flags, "--steps", 40, "--out", out, "--resume")
    assert "recursions" in error
    error = fail(capsys, *flags, "--recursions", 3, "--out", tmp_path / "p")
    assert "the model has 2 recursions, so 3 of them cannot be kept" in error
    assert not (tmp_path / "p").exists()


def test_a_fine_tuned_model_predicts_with_fewer_recursions(tmp_path, model, sentiment, capsys):
    out = tmp_path / "o"
    flags = ["--task", "sst2", "--data", sentiment]
    run(capsys, *flags, "--model", model, "--steps", 12, "--lr", "1e-2", "--out", out)
    found = [run(capsys, "--model", out, "--predict", "the film", *more).out
             for more in ([], ["--recursions", 2], ["--recursions", 1])]
    assert found[0] == found[1]
    assert found[0] != found[2]
    classifier, _ = finetune.load_classifier(str(out), recursions=1)
    assert classifier.encoder.config.num_hidden_layers == 1
    scores = [run(capsys, "--model", out, "--evaluate", *flags, *more).out
              for more in ([], ["--recursions", 1])]
    for printed in scores:
        assert re.match(r"model +dev +accuracy ", printed)


def test_help_names_each_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        finetune.main(["--help"])
    assert caught.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    args = vars(finetune.arguments(["--evaluate"]))     # with other flags it has more entries
    flag_of_name = {"modes": "--adapters-only"}
    for name, value in args.items():
        flag = flag_of_name.get(name, "--" + name.replace("_", "-"))
        assert f"{flag} " in printed
        if type(value) in (int, float):
            found = re.search(rf"{flag} [A-Z]+ (?!\[|--).*?\(default: ([0-9.,]*[0-9])", printed)
            assert float(found[1].replace(",", "")) == value, flag


@pytest.mark.parametrize("mode", ALLOWED_FLAGS)
def test_to_predict_or_evaluate_refuses_the_flags_of_a_training(mode):
    given = [mode]
    if mode == "--predict":
        given.append("good")
    values = {"task": "code", "data": "x", "train": "x", "dev": "x", "test": "x", "out": "x",
              "distill_from": "x", "dropout": "0.5", "predict": "x", "model": "x"}
    flags = {"--adapters-only": [], "--freeze": []}
    for name, usual in vars(finetune.arguments(["--evaluate"])).items():
        if name == "modes":                              # its two flags are in the dict already
            continue
        words = []                                       # what stands after the flag
        if type(usual) is not bool and name != "bf16":
            words = [values.get(name, "8")]
        flags["--" + name.replace("_", "-")] = words
    refused = set(flags) - ALLOWED_FLAGS[mode]
    assert len(refused) > 20
    for flag in refused - set(ALLOWED_FLAGS):            # the two modes exclude each other
        with pytest.raises(ValueError, match=f"{flag}: {mode} trains nothing"):
            finetune.arguments([*given, flag, *flags[flag]])
    with pytest.raises(ValueError, match="--evaluate|--predict"):
        finetune.arguments(["--predict", "x", "--evaluate"])


def test_a_question_without_an_answer_is_told(tokenizer, tmp_path, capsys):
    task = make_task_of_kind("qa", unanswerable=True)
    classifier = make_classifier(tokenizer, task)
    with torch.no_grad():                                # all places are alike, and [CLS] is best
        classifier.output.weight.zero_()
        classifier.output.bias.zero_()
    save_classifier(str(tmp_path / "m"), classifier, task, tokenizer)
    texts = write_file(tmp_path / "texts.txt", "who\tgood city\n \nwho\t\n")
    told = run(capsys, "--model", tmp_path / "m", "--predict", texts).out
    assert told == "good\n\nno answer\n"               # the second context has no tokens


def test_a_flag_of_several_values_may_be_given_again():
    args = finetune.arguments(["--task", "classification", "--train", "a.csv", "--text", "one",
                               "--text", "two", "--lr", "1e-4", "--lr", "2e-4"])
    assert args.text == ["one", "two"]
    assert args.lr == [1e-4, 2e-4]
    assert finetune.arguments([]).text == ["text"]


@pytest.mark.parametrize("text", ["good.txt", "a/b.tsv", "x.csv", "x.json", "x.jsonl", "x.CSV",
                                  "notes.md", "lines.txt.gz", "/nowhere/lines", "-"])
def test_a_file_that_is_not_there_is_no_text(text, capsys):
    with pytest.raises(ValueError, match=f"--predict {text}: there is no such file"):
        finetune.check_not_file_name(text)
    finetune.check_not_file_name(f"see {text}")
    has_ending = "." in text
    warning = f"warning: there is no file 'see {text}', so this is taken as a text\n"
    assert capsys.readouterr().err == (warning if has_ending else "")


def test_a_label_is_shown_without_what_a_terminal_would_obey():
    assert finetune.printable("C:\\x é 中") == "C:\\x é 中"
    assert finetune.printable("a\x1b[2J\nb\u202e'\"") == "a\\x1b[2J\\nb\\u202e'\""
    for text in ("\u0645\u06cc\u200c\u062e", "\U0001f469\u200d\U0001f4bb"):
        assert finetune.printable(text) == text          # Persian and an emoji have joiners


def test_without_a_task_epochs_are_obeyed():
    assert finetune.arguments([]).steps == 200
    assert finetune.arguments(["--epochs", "2"]).steps is None
    assert finetune.arguments(["--steps", "9"]).steps == 9


def test_half_a_character_on_the_command_line_is_no_error(tokenizer, tmp_path, capsys):
    task = make_task_of_kind("classification", ["x", "y"])
    save_classifier(str(tmp_path), make_classifier(tokenizer, task), task, tokenizer)
    assert "%" in run(capsys, "--model", tmp_path, "--predict", "good \udcff").out


def test_it_is_said_how_many_answers_are_lost(tmp_path, model, capsys):
    """Lost are answers inside words and, at length 8, those with more than 5 tokens."""
    message = "1 of 3 questions to train on have an answer that begins or ends inside a word"
    lost_at_length = {"paris": [], "in paris,": [], " paris": [], "pari": [8, 48], "aris": [8, 48],
                      "john lives in paris, not in": [8]}
    for answer, lengths in lost_at_length.items():
        squad = make_squad([("who", ["john"]), ("where", [answer]), ("-", [])])
        questions = write_file(tmp_path / "a.json", squad)
        for length in (8, 48):
            out = run(capsys, "--model", model, "--task", "qa", "--train", questions, "--dev",
                      questions, "--steps", 1, "--out", tmp_path / "o", "--overwrite", "--length",
                      length).out
            assert (message in out) is (length in lengths), (answer, length)
            assert ("an answer that" in out) is (length in lengths)


def test_it_is_said_that_a_head_is_trained_on(tmp_path, tokenizer, model, capsys):
    table = write_file(tmp_path / "t.tsv", "text\tlabel\ngood film\t1\nbad film\t0\n")
    task = make_task_of_kind("classification", ["0", "1"])
    save_classifier(str(tmp_path / "m"), make_classifier(tokenizer, task), task, tokenizer)
    message = (f"{tmp_path}/m was fine-tuned for classification already: training goes on with its "
               "head\n")
    for model_path, is_said in ((tmp_path / "m", True), (model, False)):
        out = run(capsys, "--model", model_path, "--task", "classification", "--train", table,
                  "--dev", table, "--steps", 1, "--out", tmp_path / "o", "--overwrite").out
        assert (message in out) is is_said
        assert ("already" in out) is is_said


def test_it_is_said_how_many_questions_were_cut(tmp_path, model, capsys):
    """Of 8 tokens three are [CLS] and two [SEP], and a third of the others is for the question."""
    squad = make_squad([("who", ["john"]), ("where is", ["paris"])])
    questions = write_file(tmp_path / "a.json", squad)
    out = tmp_path / "o"
    told = run(capsys, "--model", model, "--task", "qa", "--train", questions, "--dev", questions,
               "--steps", 1, "--length", 8, "--out", out).err
    message = "1 of 2 questions are too long for --length 8 and were cut\n"
    assert f"warning: train: {message}" in told
    assert f"warning: dev: {message}" in told
    told = run(capsys, "--model", out, "--evaluate", "--dev", questions).err
    assert f"warning: dev: {message}" in told
    answers = tmp_path / "answers.json"
    told = run(capsys, "--model", out, "--predict", questions, "--out", answers).err
    assert f"warning: --predict: {message}" in told
    told = run(capsys, "--model", out, "--predict", "where is\tjohn lives in paris").err
    assert "warning: --predict: 1 of 1 questions are too long" in told
    assert run(capsys, "--model", out, "--predict", "who\tjohn lives in paris").err == ""


def test_answers_are_not_written_into_the_folder_of_the_model(tmp_path, model, capsys):
    questions = write_file(tmp_path / "a.json", make_squad([("who", ["john"])]))
    out = tmp_path / "o"
    run(capsys, "--model", model, "--task", "qa", "--train", questions, "--dev", questions,
        "--steps", 1, "--out", out)
    error = fail(capsys, "--model", out, "--predict", questions, "--out", out / "task.json",
                 "--overwrite")
    assert f"--out {out / 'task.json'}: the model is in this folder" in error
    run(capsys, "--model", out, "--predict", "who\tjohn lives in paris")


def test_it_is_said_how_many_texts_were_cut(tmp_path, model, capsys):
    rows = [f"{'good ' * n}\t{n % 2}\n" for n in (3, 6, 7, 20)]
    table = write_file(tmp_path / "t.tsv", "text\tlabel\n" + "".join(rows))
    told = run(capsys, "--model", model, "--task", "classification", "--train", table, "--dev",
               table, "--steps", 1, "--length", 8, "--out", tmp_path / "o").err
    message = "2 of 4 examples are too long for --length 8 and were cut\n"
    assert f"warning: train: {message}" in told
    assert f"warning: dev: {message}" in told
    told = run(capsys, "--model", tmp_path / "o", "--evaluate", "--test", table).err
    assert f"warning: test: {message}" in told
    told = run(capsys, "--model", tmp_path / "o", "--predict", "good " * 7).err
    assert "warning: --predict: 1 of 1 examples are too long for --length 8 and" in told
    assert run(capsys, "--model", tmp_path / "o", "--predict", "good " * 6).err == ""


def test_a_text_of_unknown_tokens_is_predicted_with_a_warning(tokenizer, tmp_path, capsys):
    task = make_task_of_kind("classification", ["x", "y"])
    save_classifier(str(tmp_path / "m"), make_classifier(tokenizer, task), task, tokenizer)
    lines = ["good", "", "привет привет good", "привет good"]
    texts = write_file(tmp_path / "t.txt", "\n".join(lines) + "\n")
    printed = run(capsys, "--model", tmp_path / "m", "--predict", texts)
    assert printed.err == (f"warning: {texts}:1: of 30 characters 18 become [UNK] with the "
                           f"tokenizer in {tmp_path}/m\n")
    assert printed.out.count("%") == 6
    table = write_file(tmp_path / "t.tsv", "text\tlabel\nпривет привет good\tx\n")
    told = run(capsys, "--model", tmp_path / "m", "--evaluate", "--test", table).err
    assert f"warning: {table}:2: of 16 characters 12 become [UNK]" in told


def test_of_several_processes_the_first_one_predicts(tokenizer, tmp_path, capsys, monkeypatch):
    task = make_task_of_kind("classification", ["x", "y"])
    save_classifier(str(tmp_path), make_classifier(tokenizer, task), task, tokenizer)
    for rank in (0, 1):
        monkeypatch.setattr(finetune, "set_up_processes", lambda device: Processes(
            rank, rank, 2, torch.device("cpu")))
        printed = run(capsys, "--model", tmp_path, "--predict", "good").out
        assert ("%" in printed) == (rank == 0)


def test_results_are_written_before_the_table_is_printed(
        tmp_path, model, sentiment, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = []

    def print_rows(rows):
        written.append(os.path.isfile("two words/results.json"))

    monkeypatch.setattr(finetune, "print_rows", print_rows)
    printed = run(capsys, "--task", "sst2", "--data", sentiment, "--model", model, "--steps", 1,
                  "--out", "two words").out
    assert written == [True]
    assert "python finetune.py --model 'two words' --predict TEXT" in printed


def test_only_a_fine_tuned_model_predicts(model, capsys):
    remedy = f"fine-tune it first: finetune.py --model {model} --task TASK"
    error = fail(capsys, "--model", model, "--predict", "good")
    assert f"{model}: not a fine-tuned model: it has no task.json; {remedy}" in error


def test_a_model_whose_head_was_removed_does_not_predict(tokenizer, tmp_path, capsys):
    task = make_task_of_kind("classification", ["x", "y"])
    save_classifier(str(tmp_path), make_classifier(tokenizer, task), task, tokenizer)
    os.remove(tmp_path / "head.safetensors")
    error = fail(capsys, "--model", tmp_path, "--predict", "good")
    assert f"{tmp_path}/head.safetensors: No such file or directory" in error


# ---- Bad input --------------------------------------------------------------------------

TABLE = "text\tlabel\na\tx\nb\ty\n"
GOOD = {"classification": ("tsv", TABLE),
        "regression": ("tsv", "text\tlabel\na\t1\nb\t2\n"),
        "tagging": ("tsv", "a\tB-x\nb\tO\n\nc\tO\n"),
        "qa": ("json", make_squad([("q", ["paris"]), ("r", ["red"])]))}
SQUAD = make_squad([("q", ["paris"])])
# What is wrong -> the kind of task, the file, its content, what the error says.
BAD = {
    "a missing column": ("classification", "train.tsv", "txt\tlabel\na\tx\n",
                         "train.tsv:2: the column 'text' is missing among 'txt', 'label'; the"),
    "a test set without labels": ("classification", "test.tsv", "text\na\n",
                                  "test.tsv:2: the column 'label' is missing"),
    "an unknown label": ("classification", "dev.tsv", "text\tlabel\na\tx\na\tz\n",
                         "dev.tsv:3: label 'z' does not occur in the training set"),
    "an empty file": ("classification", "train.tsv", "", "train.tsv: the file has no examples"),
    "a header alone": ("classification", "train.tsv", "text\tlabel\n",
                       "train.tsv: the file has no examples"),
    "a ragged row": ("classification", "train.tsv", TABLE + "c\n",
                     "train.tsv:4: 1 columns, not 2"),
    "an unclosed quote": ("classification", "train.csv", 'text,label\n"a,x\n',
                         "train.csv:2: unexpected end of data"),
    "no JSON": ("classification", "train.jsonl", '{"text": "a", "label": 1}\n{\n',
                "train.jsonl:2: not a JSON object"),
    "a list as text": ("classification", "train.jsonl", '{"text": [1], "label": 1}\n',
                       "train.jsonl:1: the column 'text' is [1], not str"),
    "bad bytes": ("classification", "train.tsv", b"text\tlabel\na\xff\tx\n",
                  "train.tsv:2: not UTF-8"),
    "a word for a number": ("regression", "train.tsv", "text\tlabel\na\tmany\n",
                            "train.tsv:2: label 'many' is not a number"),
    "a label that is missing": ("regression", "train.tsv", "text\tlabel\na\tnan\n",
                                "train.tsv:2: the label in column 'label' is 'nan'"),
    "a tag without a word": ("tagging", "train.tsv", "a\tO\n\tB-x\n",
                             "train.tsv:2: '\\tB-x' is not a word and a tag"),
    "a word without a tag": ("tagging", "train.tsv", "a\tO\nb\n",
                             "train.tsv:2: 'b' is not a word and a tag"),
    "a tag of no scheme": ("tagging", "train.tsv", "a\tO\nb\tNOUN\n",
                           "train.tsv:2: the tag 'NOUN' is neither"),
    "a type unknown": ("tagging", "dev.tsv", "a\tO\n\nb\tB-z\n",
                       "dev.tsv:3: label 'B-z' does not occur in the training"),
    "an answer elsewhere": ("qa", "train.json",
                            SQUAD.replace('"answer_start": ', '"answer_start": 1'),
                            "train.json: not SQuAD: the answer 'paris' of question 'q0' is "
                            "not at its offset"),
    "a question without answers": ("qa", "train.json", SQUAD.replace('"answers"', '"x"'),
                                   "train.json, question 'q0': its answers are missing"),
    "half a file": ("qa", "train.json", '{"data": [', "train.json: not SQuAD"),
    "no training set": ("tagging", None, None, "give --train FILE"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_with_file_and_line(name, tmp_path, model, capsys):
    kind, file, content, message = BAD[name]
    flags = []
    if file is not None:
        bad_split = file.split(".")[0]
        flags += [f"--{bad_split}", write_file(tmp_path / file, content)]
        ending, good_content = GOOD[kind]
        for split in ("train", "dev"):
            if split != bad_split:
                good = write_file(tmp_path / f"good-{split}.{ending}", good_content)
                flags += [f"--{split}", good]
    error = fail(capsys, "--model", model, "--task", kind, *flags, "--steps", 1,
                 "--out", tmp_path / "o")
    assert message in error
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("flags, message", [
    (["--task", "nosuch"], "invalid choice: 'nosuch'"),
    (["--adapters"], "unrecognized"),
    (["--seeds", "0"], "--seeds: 0"),
    (["--adapters-only", "--freeze"], "not allowed with"),
    (["--text", "a", "b", "c"], "--text: give one column or two different ones"),
    (["--text", "a", "a"], "--text: give one column or two different ones"),
    (["--text", "a", "label"], "--text and --label: 'label' cannot be both"),
    (["--lr", "x"], "--lr"),
    (["--length", "49"], "--length: 49 is not from 8 to 48"),
    (["--model", "no/such/model"], "no/such/model"),
    (["--distill-from", "MODEL"], "it has no task.json"),
])
def test_wrong_flags_are_refused_in_one_line(flags, message, tmp_path, model, sentiment, capsys):
    flags = [model if flag == "MODEL" else flag for flag in flags]
    error = fail(capsys, "--task", "sst2", "--data", sentiment, "--model", model,
                 "--out", tmp_path / "o", *flags)
    assert message in error
    assert not (tmp_path / "o").exists()


def test_a_folder_without_weights_is_one_clear_line(tmp_path, model, sentiment, capsys):
    os.remove(os.path.join(model, "model.safetensors"))
    error = fail(capsys, "--model", model, "--task", "sst2", "--adapters-only",
                 "--data", sentiment, "--out", tmp_path / "o")
    assert "no model.safetensors" in error


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(
        tmp_path, model, sentiment, capsys):
    with open(os.path.join(model, "vocab.txt"), "a") as file:
        file.write("\nmovie")
    error = fail(capsys, "--model", model, "--task", "sst2", "--data", sentiment,
                 "--out", tmp_path / "o")
    assert re.search(r"its tokenizer has (\d+) tokens, the model only (\d+)", error)


def test_text_of_another_language_is_refused(tmp_path, model, capsys):
    table = write_file(tmp_path / "t.tsv", "text\tlabel\nпривет\tx\nпривет\ty\n")
    error = fail(capsys, "--model", model, "--task", "classification", "--train", table,
                 "--dev", table, "--steps", 1, "--out", tmp_path / "o")
    assert f"{table}:2: of 12 characters 12 become [UNK] with the tokenizer in {model}" in error
