"""finetune.py: features, losses, predictions and frozen parts against plain loops, whole runs of
the command. Its bad input is in tests/test_hostile.py and tests/test_tasks.py."""
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
import tokenizers
import torch

import finetune
from checkpoint import load, read_json, read_safetensors, save, write_safetensors
from conftest import (LETTERS, assert_help_names_flags, files_below, make_squad, make_task_of_kind,
                      make_task_tokenizer, noisy_model, note_first_process, printed_help, randomise,
                      write_documentation, write_file)
from data import Tokenizer
from distill import Processes, TrainingOptions, output_loss
from finetune import (Classifier, TaskLoss, change_normalisation, check_trainable,
                      choose_hidden_weight, choose_length, collate, collate_targets, decode,
                      decode_answers, default_rate, encode, encode_splits, evaluate_split,
                      first_dev_split, fit_adapters_to_identity, load_classifier, load_encoder,
                      main, predict_logits, save_classifier)
from minialbert import Config, MiniALBERT
from tasks import KINDS, Example, Prediction, read_glue

TAGS = ["O", "B-x", "I-x"]
LABELS = {"classification": TAGS, "regression": [], "tagging": TAGS, "qa": []}


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


def save_random_classifier(folder, task, tokenizer, seed=0, **shape):
    """Save a small Classifier with random parameters into a folder, and return it."""
    classifier = make_classifier(tokenizer, task, seed, **shape)
    save_classifier(str(folder), classifier, tokenizer)
    return classifier


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
            tags = rng.choices(LABELS[kind], k=num_words)
            example = make_text_example(words, tags)
        else:
            answer = (0, text[:8])
            example = make_text_example("who", [answer], text)
        examples.append(example)
    return examples


def write_sentiment(path, num_rows, seed, last_word="."):
    """Write a file of the task sst2: texts with "good" are 1, those with "bad" 0."""
    rng = random.Random(seed)
    lines = ["sentence\tlabel\n"]
    for _ in range(num_rows):
        num_words = rng.randint(1, 6)
        words = rng.choices(["the", "film", "is", "very"], k=num_words)
        label = rng.randint(0, 1)
        if label == 1:
            words.append("good")
        else:
            words.append("bad")
        text = " ".join(words)
        lines.append(f"{text} {last_word}\t{label}\n")
    write_file(path, "".join(lines))


@pytest.fixture
def sentiment(tmp_path):
    """Make a folder with the files of a small task sst2."""
    write_sentiment(tmp_path / "sst2/train.tsv", 64, seed=0)
    # Its texts end otherwise, so none of them is in the training set, too.
    write_sentiment(tmp_path / "sst2/dev.tsv", 24, seed=1, last_word="!")
    return tmp_path / "sst2"


def add_line(path):
    """Append an example to a file of the task sst2."""
    with open(path, "a") as file:
        file.write("good film .\t1\n")


@pytest.fixture
def sst2_flags(model, sentiment):
    """List the flags of a run that tunes `model` on the files in `sentiment`; --out is missing."""
    return ["--model", model, "--task", "sst2", "--data", sentiment]


@pytest.fixture
def two_texts(tmp_path):
    """Write a table with one text of each of two classes, and return its path."""
    return write_file(tmp_path / "a.tsv", "text\tlabel\ngood film\tx\nbad film\ty\n")


@pytest.fixture
def documentation(tmp_path, monkeypatch):
    """Let the task without files, code, read a small file of documentation."""
    path = write_documentation(tmp_path / "docs.jsonl")
    monkeypatch.setattr(finetune, "docs_on_this_machine", lambda: path)


def file_flags(model, task_name, path):
    """List the flags of a run that tunes a model on a file, which is its dev set, too."""
    return ["--model", model, "--task", task_name, "--train", path, "--dev", path]


@pytest.fixture
def out(tmp_path):
    """Name the folder that a run is to make."""
    return tmp_path / "o"


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
    line = re.search(rf"^{row} +{split} +{metric} +([\d.]+)%", printed, re.M)
    return float(line[1])


def read_json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_only_log(out):
    """Read the lines of the log of a command that made one run."""
    path, = out.glob("*/log.jsonl")
    return read_json_lines(path)


# ---- Texts as tokens --------------------------------------------------------------------

@pytest.mark.parametrize("num_first, num_second, kept_first, kept_second", [
    (2, 3, 2, 3),
    (20, 3, 7, 3),
    (2, 20, 2, 8),
    (20, 20, 5, 5),
    (0, 0, 0, 0),
])
def test_two_texts_share_the_room_and_the_longer_gives_way(
        num_first, num_second, kept_first, kept_second, tokenizer):
    """Of 13 tokens three are [CLS], [SEP] and [SEP], so there is room for ten."""
    task = make_task_of_kind("classification", ["0", "1"], length=13, pair=True)
    first_text = " ".join("x" * num_first)
    second_text = " ".join("y" * num_second)
    example = make_text_example(first_text, "1", second_text)
    feature, = encode(task, [example], tokenizer)
    x, y = tokenizer.encode(["x y"])[0]
    expected = [tokenizer.cls_id] + [x] * kept_first + [tokenizer.sep_id]
    assert feature.prefix_length == len(expected)
    expected += [y] * kept_second + [tokenizer.sep_id]
    assert feature.ids.tolist() == expected
    assert feature.labels == [1]
    assert feature.positions == [0]


def test_one_text_is_truncated_to_the_length(tokenizer):
    task = make_task_of_kind("regression", length=13)
    example = make_text_example(" ".join("x" * 20), 2.5)
    feature, = encode(task, [example], tokenizer)
    x = tokenizer.encode(["x"])[0][0]
    expected = [tokenizer.cls_id] + [x] * 11 + [tokenizer.sep_id]
    assert feature.ids.tolist() == expected
    assert feature.prefix_length == 1
    assert feature.labels == [2.5]
    assert feature.positions == [0]


def test_a_question_gets_a_third_of_the_room(tokenizer):
    task = make_task_of_kind("qa", length=24)
    question = " ".join("x" * 30)
    context = " ".join("y" * 40)
    example = make_text_example(question, [], context)
    for feature in encode(task, [example], tokenizer):
        assert feature.prefix_length == 1 + 7 + 1        # (24 - 3) // 3 of the question


def test_features_have_the_number_of_their_example_in_any_chunk(tokenizer):
    """Texts are tokenized a thousand at a time, so 2003 of them make three chunks."""
    task = make_task_of_kind("regression")
    examples = []
    for number in range(2003):
        examples.append(make_text_example(str(number), float(number)))
    features = encode(task, examples, tokenizer)
    assert len(features) == 2003
    for number, feature in enumerate(features):
        assert feature.example_number == number
        assert feature.labels == [float(number)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_without_a_label_becomes_a_batch_too(kind, tokenizer):
    """A test set may have no labels, but a training set needs them."""
    task = make_task_of_kind(kind, LABELS[kind])
    examples = [example._replace(label=None) for example in make_examples(kind)]
    features = encode(task, examples, tokenizer)
    for feature in features:
        assert feature.labels is None
    ids, _, _ = collate(features)
    assert len(ids) == len(features)
    with pytest.raises(ValueError, match="example 0 has no label to train on"):
        check_trainable(features)


@pytest.mark.parametrize("kind, text, label", [
    ("classification", "good film", "z"), ("tagging", ["good", "film"], ["O", "B-z"])])
def test_a_label_that_the_task_does_not_have_is_named(kind, text, label, tokenizer):
    task = make_task_of_kind(kind)
    example = Example(text, None, label, "0", "a.tsv:7")
    message = f"^a.tsv:7: label '(B-)?z' does not .* whose labels are {'; '.join(task.labels)}$"
    with pytest.raises(ValueError, match=message):
        encode(task, [example], tokenizer)


def test_a_batch_is_padded_and_labelled_where_the_head_is_read(tokenizer):
    task = make_task_of_kind("classification", ["0", "1"], pair=True)
    examples = [make_text_example("x", "1", "y y y"), make_text_example("x", "0", "y")]
    features = encode(task, examples, tokenizer)
    ids, mask, segments = collate(features)
    rows, columns, targets = collate_targets(features, "classification")
    unpadded = features[1].ids.tolist()
    assert ids[1].tolist() == unpadded + [0, 0]
    assert mask[0].all()
    assert mask[1].tolist() == [True] * 5 + [False] * 2
    # [CLS] x [SEP] are of the first text; then follow the second text and [SEP].
    assert segments[0].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert segments[1].tolist() == [0, 0, 0, 1, 1, 0, 0]
    # The head of a classifier is read at [CLS] of each sequence, and nowhere else.
    assert rows.tolist() == [0, 1]
    assert columns.tolist() == [0, 0]
    assert targets.tolist() == [1, 0]


# ---- Sentences to tag -------------------------------------------------------------------

def random_words(rng, num_words):
    """Draw words of one, several and no tokens."""
    return rng.choices(["good", "zq", "abcde", "the", "\u0007", "paris.", "very"], k=num_words)


def random_sentences(rng, labels):
    """Draw Examples of words and tags: short and long sentences, a word of many tokens and one of
    none."""
    examples = []
    for num_words in (1, 3, 30, 9, 200):
        words = random_words(rng, num_words)
        tags = rng.choices(labels, k=num_words)
        examples.append(make_text_example(words, tags))
    examples.append(make_text_example([LETTERS * 2, "good"], ["B-x", "O"]))
    no_token_at_all = ["\u0007"]
    examples.append(make_text_example(no_token_at_all, ["O"]))
    return examples


def test_each_word_is_asked_about_once_at_its_first_token_in_all_windows(tokenizer):
    """The end of a window may cut a word. Its tag is learned and predicted once all the same."""
    task = make_task_of_kind("tagging", ["O", "B-x", "I-x"], length=11)
    examples = random_sentences(random.Random(0), task.labels)
    features = encode(task, examples, tokenizer)
    numbers = {feature.example_number for feature in features}
    assert numbers == set(range(len(examples)))
    for i, example in enumerate(examples):
        asked = []                                       # (number of the word, token, label)
        for feature in features:
            if feature.example_number == i:
                first_tokens = [feature.ids[position] for position in feature.positions]
                asked += zip(feature.stands_for, first_tokens, feature.labels)
        expected = []
        for number, word in enumerate(example.text):
            tokens = tokenizer.encode([word])[0]
            if tokens:
                label = task.labels.index(example.label[number])
                expected.append((number, tokens[0], label))
        assert asked == expected


def test_a_window_of_a_sentence_has_the_length_at_most_and_one_sep(tokenizer):
    task = make_task_of_kind("tagging", ["O", "B-x", "I-x"], length=11)
    examples = random_sentences(random.Random(0), task.labels)
    for feature in encode(task, examples, tokenizer):
        assert len(feature.ids) <= 11
        assert feature.ids[0] == tokenizer.cls_id
        assert feature.ids[-1] == tokenizer.sep_id
        assert tokenizer.sep_id not in feature.ids[:-1]


def test_perfect_logits_give_the_gold_tags_back(tokenizer):
    """Features and predictions must count words alike, over windows and words without a token."""
    rng = random.Random(1)
    task = make_task_of_kind("tagging", ["B-x", "I-x", "O"], length=9)
    examples = []
    for num_words in (1, 4, 40):
        words = ["ab"] * num_words
        tags = rng.choices(task.labels, k=num_words)
        examples.append(make_text_example(words, tags))
    words = ["\u0007", "ab"]                             # the first one has no token
    examples.append(make_text_example(words, ["O", "I-x"]))
    features = encode(task, examples, tokenizer)
    logits = []
    for feature in features:
        rows = np.full((len(feature.positions), 3), -9.0)
        for row, label in enumerate(feature.labels):
            rows[row, label] = 9.0
        logits.append(rows)
    predictions = decode(task, examples, features, logits)
    for example, (tags, _) in zip(examples, predictions, strict=True):
        assert tags == example.label


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
    """An answer may lie in any window, or in none: then the right answer is empty."""
    spans = [(CONTEXT.index("paris"), 5), (CONTEXT.rindex("city."), 4), (0, 7)]
    examples = []
    for begin, size in spans:
        answer = (begin, CONTEXT[begin:begin + size])
        other_answer = (0, "the")                        # only the first one is trained on
        examples.append(make_text_example("where", [answer, other_answer], CONTEXT))
    examples.append(make_text_example("who", [], "zq"))
    examples.append(make_text_example("who", [], ""))
    task = make_task_of_kind("qa", length=length, stride=stride, unanswerable=True)
    features = encode(task, examples, tokenizer)
    for feature in features:
        assert len(feature.ids) <= length
    predictions = decode(task, examples, features, perfect_answer_logits(features))
    answers = [answer for answer, _ in predictions]
    assert answers == ["paris", "city", "the red", "", ""]


@pytest.mark.parametrize("length, stride", [(16, 4), (40, 100), (12, 1), (24, 7)])
def test_windows_have_all_tokens_and_neighbours_share_the_stride_or_half_the_room(
        length, stride, tokenizer):
    task = make_task_of_kind("qa", length=length, stride=stride)
    example = make_text_example("where", [], CONTEXT)
    features = encode(task, [example], tokenizer)
    whole = tokenizer.backend.encode(CONTEXT, add_special_tokens=False)
    room = length - 4                                    # without [CLS] where [SEP] and [SEP]
    shared = min(stride, room // 2)
    begin = 0
    for feature in features:
        end = min(begin + room, len(whole.ids))
        assert feature.ids[3:-1].tolist() == whole.ids[begin:end]
        positions = range(3, 3 + end - begin)
        assert list(feature.positions) == list(positions)
        # Here each word is one token.
        spans = [tuple(span) for span in feature.stands_for]
        assert spans == whole.offsets[begin:end]
        begin = end - shared
    assert end == len(whole.ids)
    assert len(features) > 1


def test_an_answer_across_the_edge_of_a_window_is_whole_in_the_next(tokenizer):
    context = " ".join(LETTERS)
    task = make_task_of_kind("qa", length=14, stride=5)  # a window has 10 letters
    for begin in range(0, len(context) - 5, 2):
        answer = context[begin:begin + 5]                # three letters
        example = make_text_example("who", [(begin, answer)], context)
        features = encode(task, [example], tokenizer)
        # A window without the answer has the label 0, which is [CLS].
        is_whole = [feature.labels != [0, 0] for feature in features]
        assert any(is_whole), answer
        assert not all(is_whole)
        predictions = decode(task, [example], features, perfect_answer_logits(features))
        assert predictions == [(answer, {})]


def test_an_answer_inside_a_word_of_several_tokens_is_that_word(tokenizer):
    context = "the abcd is red"                          # "abcd" has four tokens
    task = make_task_of_kind("qa")
    answer = (context.index("bc"), "bc")
    example = make_text_example("who", [answer], context)
    features = encode(task, [example], tokenizer)
    assert features[0].labels == [3 + 2, 3 + 3]          # [CLS] who [SEP] the a ##b ##c ##d
    predictions = decode(task, [example], features, perfect_answer_logits(features))
    assert predictions == [("abcd", {})]


# Two accents, and a vowel sign of Hindi, whose combining class is 0.
@pytest.mark.parametrize("marks", ["\u0301\u0302", "\u0941"])
def test_an_answer_has_the_marks_that_the_tokenizer_removes(marks, tokenizer):
    """The tokenizer knows "cafe" alone, but an answer is a piece of the text as it was written."""
    context = f"a cafe{marks} b cafe"
    examples = [make_text_example("q", [], context)]
    task = make_task_of_kind("qa", length=24)
    feature, = encode(task, examples, tokenizer)
    begin_of_second = 9 + len(marks)
    for begin_of_answer, answer in [(2, f"cafe{marks}"), (begin_of_second, "cafe")]:
        logits = np.zeros((len(feature.ids), 2))
        for token, (begin, _) in enumerate(feature.stands_for):
            if begin == begin_of_answer:
                position = feature.positions[token]
                logits[position] = 9.0
        assert decode_answers(task, examples, [feature], [logits]) == [answer]


def naive_best_span(features, logits, longest):
    """Find the best span of all windows with two loops -> its score, its first character and one
    past its last one."""
    best_score = -math.inf
    best_begin = None
    best_end = None
    for feature, rows in zip(features, logits):
        num_tokens = len(feature.positions)
        for first in range(num_tokens):
            for last in range(first, min(first + longest, num_tokens)):
                # The context stands after [CLS] q [SEP].
                score = rows[3 + first, 0] + rows[3 + last, 1]
                if score > best_score:
                    best_score = score
                    best_begin, _ = feature.stands_for[first]
                    _, best_end = feature.stands_for[last]
    return best_score, best_begin, best_end


@pytest.mark.parametrize("unanswerable", [False, True])
def test_the_best_span_is_not_too_long_never_reversed_and_empty_only_where_allowed(
        unanswerable, tokenizer):
    context = " ".join("abcdefghij" * 4)
    rng = np.random.default_rng(0)
    examples = [make_text_example("q", [], context)]
    task = make_task_of_kind("qa", length=24, unanswerable=unanswerable)
    features = encode(task, examples, tokenizer)
    num_empty = 0
    for _ in range(25):
        logits = []
        no_answer_scores = []
        for feature in features:
            rows = rng.normal(size=(len(feature.ids), 2))
            rows[0] += 2.0                               # [CLS] wins now and then
            no_answer_scores.append(rows[0].sum())
            logits.append(rows)
        score, begin, end = naive_best_span(features, logits, longest=5)
        expected = context[begin:end]
        # There is no answer only if no window has one.
        if unanswerable and min(no_answer_scores) > score:
            expected = ""
            num_empty += 1
        assert decode_answers(task, examples, features, logits, longest=5) == [expected]
    assert (num_empty > 3) == unanswerable
    assert num_empty < 22


def test_an_answer_has_at_most_30_tokens(tokenizer):
    task = make_task_of_kind("qa", length=48)
    context = " ".join("x" * 40)
    example = make_text_example("q", [], context)
    feature, = encode(task, [example], tokenizer)
    rows = np.zeros((len(feature.ids), 2))
    rows[3, 0] = 9.0
    rows[3 + 30, 1] = 9.0                                # 31 tokens: too long
    rows[3 + 29, 1] = 8.0                                # 30 tokens
    prediction, = decode(task, [example], [feature], [rows])
    answer, _ = prediction
    assert len(answer.split()) == 30


# ---- The model --------------------------------------------------------------------------

@pytest.mark.parametrize("kind, num_outputs", [
    ("classification", 3), ("regression", 1), ("tagging", 3), ("qa", 2)])
def test_a_new_head_has_an_output_for_each_label_and_small_weights(kind, num_outputs, tokenizer):
    encoder = MiniALBERT(small_config(tokenizer), head=False)
    task = make_task_of_kind(kind, LABELS[kind])
    model = Classifier(encoder, task)
    assert model.output.weight.shape == (num_outputs, 24)
    assert 0 < model.output.weight.abs().max() < 0.1
    assert not model.output.bias.any()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_is_before_the_head_and_only_in_training(dropout, tokenizer):
    torch.manual_seed(0)
    task = make_task_of_kind("classification", ["x", "y"])
    encoder = MiniALBERT(small_config(tokenizer), head=False)
    model = randomise(Classifier(encoder, task, dropout))
    ids = torch.tensor([[5, 6, 7]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    segments = torch.zeros(1, 3, dtype=torch.long)
    _, calm = model(ids, mask, segments)
    _, again = model(ids, mask, segments)
    assert torch.equal(again, calm)
    model.train()
    _, trained = model(ids, mask, segments)
    assert torch.equal(trained, calm) == (dropout == 0)
    # What is dropped is a state, never a logit: with weights of 0 all logits are the bias.
    torch.nn.init.zeros_(model.output.weight)
    _, logits = model(ids, mask, segments)
    assert (logits == model.output.bias).all()


def test_logits_are_one_linear_layer_on_the_last_hidden_states(tokenizer):
    task = make_task_of_kind("tagging", LABELS["tagging"])
    model = make_classifier(tokenizer, task)
    ids = torch.tensor([[2, 40, 41, 3, 0], [2, 44, 45, 46, 3]])
    mask = ids > 0
    segments = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]])
    hidden, _ = model.encoder(ids, mask, segments)
    expected = hidden[-1] @ model.output.weight.T + model.output.bias
    _, logits = model(ids, mask, segments)
    assert torch.allclose(logits, expected, atol=1e-5)


def test_no_answer_lies_in_the_question_but_cls_and_the_context_keep_their_scores(tokenizer):
    task = make_task_of_kind("qa")
    model = make_classifier(tokenizer, task)
    ids = torch.tensor([[2, 40, 41, 3, 42, 43, 3], [2, 44, 3, 45, 3, 0, 0]])
    mask = ids > 0
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0]])
    hidden, _ = model.encoder(ids, mask, segments)
    scores = model.output(hidden[-1])                    # (2, 7, 2)
    _, logits = model(ids, mask, segments)
    for row in range(2):
        for position in range(7):
            found = logits[row, position]
            if position == 0 or segments[row, position] == 1:
                assert torch.allclose(found, scores[row, position], atol=1e-5)
            else:
                assert (found == -1e4).all()


# ---- Batches ----------------------------------------------------------------------------

def loss_of_lengths(seed, num_features=1003):
    """Make a TaskLoss of Features of random lengths. It has no model: it only makes batches."""
    rng = np.random.default_rng(0)
    features = []
    for i in range(num_features):
        length = rng.integers(3, 41)
        ids = np.zeros(length, np.int32)
        features.append(finetune.Feature(ids, 1, i, [0], [0], [0]))
    return TaskLoss(None, features, batch_size=8, seed=seed)


def numbers_of_batch(loss, step):
    """List the numbers of the examples in the batch of a step."""
    return [feature.example_number for feature in loss.batch(step)]


def test_a_batch_is_a_function_of_seed_and_step():
    """A run that is resumed at a step must get the batch that it would have got."""
    steps = [7, 0, 126, 300, 1]
    one_loss = loss_of_lengths(seed=3)
    same_loss = loss_of_lengths(seed=3)
    batches_in_order = {step: numbers_of_batch(one_loss, step) for step in sorted(steps)}
    batches_as_asked = {step: numbers_of_batch(same_loss, step) for step in steps}
    assert batches_in_order == batches_as_asked
    other_loss = loss_of_lengths(seed=4)
    first_batch = batches_in_order[0]
    assert first_batch != numbers_of_batch(other_loss, 0)
    assert first_batch != batches_in_order[126]          # the first batch of the second epoch


def test_an_epoch_is_shuffled_only_once(monkeypatch):
    """In a large training set this takes longer than a small step."""
    loss = loss_of_lengths(seed=3)
    shuffle = loss.batches_of_epoch
    shuffled = []

    def shuffle_and_note(epoch):
        shuffled.append(epoch)
        return shuffle(epoch)

    monkeypatch.setattr(loss, "batches_of_epoch", shuffle_and_note)
    for step in range(130):                              # an epoch has 126
        loss.batch(step)
    assert shuffled == [0, 1]


def test_an_interrupted_epoch_is_shuffled_anew(monkeypatch):
    """In a notebook Ctrl-C may come at any time. The batches of the epoch before must not stay."""
    def interrupt(epoch):
        raise KeyboardInterrupt

    loss = loss_of_lengths(seed=3)
    loss.batch(0)
    with monkeypatch.context() as patch:
        patch.setattr(loss, "batches_of_epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            loss.batch(126)                              # the first batch of the second epoch
    assert numbers_of_batch(loss, 126) == numbers_of_batch(loss_of_lengths(seed=3), 126)


def test_an_epoch_has_each_feature_once():
    loss = loss_of_lengths(seed=3)
    assert loss.steps_per_epoch == 126                   # 1003 features in batches of 8
    assert loss.tokens_per_step == int(8 * loss.lengths.mean())
    for first_step in (0, 252):                          # of the first and of the third epoch
        seen = []
        for step in range(first_step, first_step + 126):
            seen += numbers_of_batch(loss, step)
        assert sorted(seen) == list(range(1003))


def test_batches_have_like_lengths_and_come_in_any_order():
    """Like lengths save padding, but short texts must not all come first."""
    loss = loss_of_lengths(seed=3)
    num_tokens = 0
    num_positions = 0
    longest_of_batches = []
    for step in range(126):
        lengths = [len(feature.ids) for feature in loss.batch(step)]
        longest = max(lengths)
        num_tokens += sum(lengths)
        num_positions += longest * len(lengths)
        longest_of_batches.append(longest)
    num_padding = num_positions - num_tokens
    assert num_padding / num_positions < 0.06
    first_batches = longest_of_batches[:30]
    assert first_batches != sorted(first_batches)


def test_pools_are_of_50_batches_so_that_lengths_are_drawn_from_all():
    loss = loss_of_lengths(seed=3, num_features=4000)
    rng = np.random.default_rng([3, 3, 0])               # see batches_of_epoch
    order = rng.permutation(4000)
    expected = set()
    for pool in np.split(order, 10):                     # of 50 batches of 8
        by_length = sorted(pool, key=lambda number: loss.lengths[number])
        for begin in range(0, 400, 8):
            batch = by_length[begin:begin + 8]
            expected.add(frozenset(batch))
    found = set()
    for step in range(500):
        found.add(frozenset(numbers_of_batch(loss, step)))
    assert found == expected


# ---- The loss ---------------------------------------------------------------------------

def logits_alone(model, feature):
    """Compute the logits (T, n) of a Feature in a batch of its own, made by hand."""
    ids = torch.tensor(feature.ids, dtype=torch.int64)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    segments = torch.zeros_like(ids)
    if feature.prefix_length > 1:
        segments[0, feature.prefix_length:] = 1
    with torch.no_grad():
        _, logits = model(ids, mask, segments)
    return logits[0]


def rows_alone(model, feature):
    """List what a Feature's labels are compared with, and the labels: [(logits (n,), label)]."""
    logits = logits_alone(model, feature)
    if model.task.kind == "qa":
        return list(zip(logits.T, feature.labels))       # (T,) each for begin and end
    return list(zip(logits[feature.positions], feature.labels))


def naive_task_loss(model, task, features):
    """Compute the mean cross-entropy, or squared error, with a loop over all labels."""
    values = []
    for feature in features:
        for logits, label in rows_alone(model, feature):
            if task.kind == "regression":
                expected = (label - task.mean) / task.sd
                value = (logits[0].item() - expected)**2
            else:
                value = -logits.log_softmax(0)[label].item()
            values.append(value)
    return sum(values) / len(values)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_mean_over_all_labels_whatever_the_padding(kind, tokenizer):
    task = make_task_of_kind(kind, LABELS[kind], length=20, mean=2.0, sd=4.0)
    model = make_classifier(tokenizer, task)
    features = encode(task, make_examples(kind), tokenizer)
    task_loss = TaskLoss(model, features, 3, 0)
    losses, = task_loss.losses_of_micro_batches(0)
    assert set(losses) == {"task"}
    expected = naive_task_loss(model, task, features)
    assert losses["task"].item() == pytest.approx(expected, rel=1e-4)


def test_a_batch_of_words_without_a_token_has_the_loss_0(tokenizer):
    task = make_task_of_kind("tagging", LABELS["tagging"], length=20)
    model = make_classifier(tokenizer, task)
    examples = [make_text_example([word], ["O"]) for word in ("\u0007", "good")]
    features = encode(task, examples, tokenizer)
    task_loss = TaskLoss(model, features, 1, 0)
    for step in range(2):
        feature, = task_loss.batch(step)
        losses, = task_loss.losses_of_micro_batches(step)
        if feature.positions:
            assert losses["task"] > 0
        else:
            assert losses["task"] == 0


def test_large_numbers_keep_their_differences_until_they_are_normalised(tokenizer):
    """In float32 both labels would be the same number."""
    task = make_task_of_kind("regression", length=20, mean=1e9, sd=1.0)
    model = make_classifier(tokenizer, task)
    losses_of_label = []
    for label in (1e9 - 1, 1e9 + 1):
        example = make_text_example("good", label)
        features = encode(task, [example], tokenizer)
        task_loss = TaskLoss(model, features, 1, 0)
        losses, = task_loss.losses_of_micro_batches(0)
        value = losses["task"].item()
        assert value == pytest.approx(naive_task_loss(model, task, features))
        losses_of_label.append(value)
    output = logits_alone(model, features[0])[0].item()
    # The labels are -1 and 1 once the mean is subtracted.
    assert losses_of_label == pytest.approx([(output + 1)**2, (output - 1)**2])


@pytest.mark.parametrize("kind", KINDS)
def test_neither_the_rest_of_a_batch_nor_its_padding_changes_a_prediction(kind, tokenizer):
    task = make_task_of_kind(kind, LABELS[kind], length=20)
    model = make_classifier(tokenizer, task)
    model.train()                                        # predict_logits turns dropout off
    features = encode(task, make_examples(kind) * 3, tokenizer)
    for batch_size in (64, 2):
        found = predict_logits(model, features, batch_size)
        for feature, rows in zip(features, found, strict=True):
            if kind == "qa":
                positions = range(len(feature.ids))
            else:
                positions = feature.positions
            expected = logits_alone(model, feature)[list(positions)]
            np.testing.assert_allclose(rows, expected, atol=1e-4)
    assert not model.training


@pytest.mark.parametrize("kind", KINDS)
def test_a_fine_tuned_teacher_is_followed_where_the_head_is_read(kind, tokenizer):
    """A teacher of numbers was trained with another mean and deviation. It is followed in the
    student's units."""
    task = make_task_of_kind(kind, LABELS[kind], length=20, mean=2.0, sd=4.0)
    teacher_task = make_task_of_kind(kind, LABELS[kind], length=20, mean=-1.0, sd=0.5)
    model = make_classifier(tokenizer, task, seed=0)
    teacher = make_classifier(tokenizer, task, seed=1)
    features = encode(task, make_examples(kind), tokenizer)
    all_teacher_rows = [rows_alone(teacher, feature) for feature in features]
    if kind == "regression":                             # only there mean and sd are used
        change_normalisation(teacher.output, teacher_task, task)
    task_loss = TaskLoss(model, features, 3, 0, teacher=teacher)
    losses, = task_loss.losses_of_micro_batches(0)
    assert task_loss.loss_weights == {"task": 1.0, "distill": 1.0}
    expected = naive_task_loss(model, task, features)
    assert losses["task"].item() == pytest.approx(expected, rel=1e-4)
    values = []
    for feature, teacher_rows in zip(features, all_teacher_rows):
        rows = rows_alone(model, feature)
        for (logits, _), (teacher_logits, _) in zip(rows, teacher_rows):
            if kind == "regression":
                number = teacher_logits[0] * 0.5 - 1.0
                wanted = (number - 2.0) / 4.0
                value = (wanted - logits[0])**2
            else:
                value = output_loss(logits[None], teacher_logits[None])
            values.append(value)
    expected = sum(values).item() / len(values)
    assert losses["distill"].item() == pytest.approx(expected, rel=1e-4)
    losses["distill"].backward()
    for parameter in teacher.parameters():
        assert parameter.grad is None
    assert model.output.weight.grad is not None


@pytest.mark.parametrize("kind", KINDS)
def test_the_hidden_states_of_a_fine_tuned_teacher_are_followed_at_each_token(kind, tokenizer):
    """Layers 2 and 4 of the teacher are learned by recursions 1 and 2 of the student."""
    task = make_task_of_kind(kind, LABELS[kind], length=20)
    model = make_classifier(tokenizer, task, seed=0, num_hidden_layers=2)
    teacher = make_classifier(tokenizer, task, seed=1, num_hidden_layers=4).train()
    features = encode(task, make_examples(kind), tokenizer)
    task_loss = TaskLoss(model, features, 5, 0, teacher=teacher, hidden_weight=0.7)
    losses, = task_loss.losses_of_micro_batches(0)
    assert task_loss.loss_weights == {"task": 1.0, "distill": 1.0, "hidden": 0.7}
    assert not teacher.training
    total = 0.0
    num_tokens = 0
    for feature in features:                             # each alone: so there is no padding
        ids, _, segments = collate([feature])
        ids = torch.from_numpy(ids)
        segments = torch.from_numpy(segments)
        with torch.no_grad():
            student_states, _ = model.encoder(ids, None, segments)
            teacher_states, _ = teacher.encoder(ids, None, segments)
        for recursion, layer in ((1, 2), (2, 4)):
            cosines = torch.cosine_similarity(
                student_states[recursion], teacher_states[layer], dim=-1)
            total += (1 - cosines).sum().item()
        num_tokens += len(feature.ids)
    assert losses["hidden"].item() == pytest.approx(total / num_tokens, rel=1e-4)


NOT_COMPARED = "the hidden states are not compared with the teacher's: "
OTHER_WIDTH = "the teacher has 4 layers of width 48, the model 2 recursions of width 24"
OTHER_DEPTH = "the teacher has 3 layers of width 24, the model 2 recursions of width 24"


@pytest.mark.parametrize("flag, mode, teacher_shape, expected, printed", [
    (None, "all", {}, 3.0, ""),
    (None, "adapters", {}, 3.0, ""),
    (0.5, "all", {}, 0.5, ""),
    (0.0, "all", {}, 0.0, ""),
    (None, "head", {}, 0.0, ""),
    (None, "all", None, 0.0, ""),                        # there is no teacher
    (0.0, "all", {"hidden_size": 48}, 0.0, ""),
    (None, "all", {"hidden_size": 48}, 0.0, f"{NOT_COMPARED}{OTHER_WIDTH}\n"),
    (None, "all", {"num_hidden_layers": 3}, 0.0, f"{NOT_COMPARED}{OTHER_DEPTH}\n"),
])
def test_hidden_states_are_compared_if_they_can_be(
        flag, mode, teacher_shape, expected, printed, tokenizer, capsys):
    """Without the flag --hidden-weight the weight is 3, or 0 where a comparison makes no sense."""
    config = small_config(tokenizer, num_hidden_layers=2)
    if teacher_shape is None:
        teacher = None
    else:
        task = make_task_of_kind("regression", [])
        shape = {"num_hidden_layers": 4}
        shape.update(teacher_shape)
        teacher = make_classifier(tokenizer, task, **shape)
    assert choose_hidden_weight(flag, [mode], teacher, config) == expected
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("teacher_shape, reason", [
    ({"hidden_size": 48, "num_hidden_layers": 4}, OTHER_WIDTH),
    ({"num_hidden_layers": 3}, OTHER_DEPTH)])
def test_to_ask_for_a_comparison_of_hidden_states_that_differ_in_shape_is_an_error(
        teacher_shape, reason, tokenizer):
    task = make_task_of_kind("regression", [])
    teacher = make_classifier(tokenizer, task, **teacher_shape)
    config = small_config(tokenizer, num_hidden_layers=2)
    with pytest.raises(ValueError, match=f"^--hidden-weight 2: .* cannot be compared: {reason}$"):
        choose_hidden_weight(2.0, ["all"], teacher, config)


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_and_processes_share_one_gradient(kind, tokenizer):
    """A batch may have seven rows, but there are only six examples. So the second micro-batch of
    four has two rows. The seventh micro-batch of one has none, but the model gets a row all the
    same."""
    task = make_task_of_kind(kind, LABELS[kind], length=20)
    model = make_classifier(tokenizer, task, seed=0)
    teacher = make_classifier(tokenizer, task, seed=1)
    features = encode(task, make_examples(kind) * 2, tokenizer)
    num_rows = []

    def note_rows(encoder, inputs):
        num_rows.append(len(inputs[0]))

    model.encoder.register_forward_pre_hook(note_rows)

    def gradient(micro_batch_size, num_processes):
        model.zero_grad()
        for rank in range(num_processes):
            processes = Processes(rank=rank, world_size=num_processes)
            task_loss = TaskLoss(model, features, 7, 0, teacher=teacher, hidden_weight=2.0,
                                 micro_batch_size=micro_batch_size, processes=processes)
            for losses in task_loss.losses_of_micro_batches(0):
                sum(losses.values()).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    whole = gradient(0, 1)
    limit = 1e-5 * whole.norm()
    cases = [(1, 1), (2, 1), (4, 1), (0, 2), (1, 3), (0, 7)]
    for micro_batch_size, num_processes in cases:
        shared = gradient(micro_batch_size, num_processes)
        distance = (shared - whole).norm()
        assert distance <= limit, (micro_batch_size, num_processes)
    assert min(num_rows) == 1


# ---- New adapters -----------------------------------------------------------------------

def make_padded_batch(tokenizer, num_rows):
    """Make random ids, mask and segments of rows of 5 to 20 tokens."""
    ids = torch.randint(5, tokenizer.vocab_size, (num_rows, 20))
    lengths = torch.randint(5, 21, (num_rows, 1))
    mask = torch.arange(20) < lengths
    is_second = torch.arange(20) > 3
    segments = is_second.long().expand(num_rows, 20)
    return ids, mask, segments


def adapters_of(encoder):
    return list(encoder.attention_adapters) + list(encoder.feed_forward_adapters)


def test_new_adapters_hardly_change_a_trained_encoder(tokenizer):
    """A new adapter ends in a LayerNorm, so it is no identity until it has been fitted to be one.
    What the encoder has learned would be lost."""
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
    ids, mask, segments = make_padded_batch(tokenizer, 16)
    new = MiniALBERT(small_config(tokenizer, adapter_size=4), head=False).eval()
    new.load_state_dict(old.state_dict(), strict=False)  # the adapters keep their values

    @torch.no_grad()
    def relative_change():
        old_states, _ = old(ids, mask, segments)
        new_states, _ = new(ids, mask, segments)
        before = old_states[-1][mask]
        after = new_states[-1][mask]
        change = (before - after).norm() / before.norm()
        return change.item()

    change_at_first = relative_change()
    fit_adapters_to_identity(new, ids, mask, segments)
    assert relative_change() < 0.7 * change_at_first


@torch.no_grad()
def test_a_fitted_adapter_has_the_line_of_least_squares_in_each_channel(tokenizer):
    """The line maps what the LayerNorm gives back to what came into the adapter."""
    encoder = noisy_model(small_config(tokenizer, adapter_size=4), head=False)
    adapters = adapters_of(encoder)
    for adapter in adapters:
        adapter.up.weight.zero_()                        # as a new adapter is
        adapter.up.bias.zero_()
    ids, mask, segments = make_padded_batch(tokenizer, 6)
    fit_adapters_to_identity(encoder, ids, mask, segments)
    inputs = {}

    def note(adapter, adapter_inputs):
        inputs[adapter] = adapter_inputs[0]

    for adapter in adapters:
        assert not adapter._forward_pre_hooks            # the hooks of the fit are gone
        adapter.register_forward_pre_hook(note)
    encoder(ids, mask, segments)
    assert len(adapters) == 4
    for adapter in adapters:
        values = inputs[adapter][mask].double().numpy()
        centred = values - values.mean(1, keepdims=True)
        normalised = centred / centred.std(1, keepdims=True)
        for channel in range(24):
            slope, shift = np.polyfit(normalised[:, channel], values[:, channel], 1)
            assert adapter.norm.weight[channel].item() == pytest.approx(slope, abs=1e-3)
            assert adapter.norm.bias[channel].item() == pytest.approx(shift, abs=1e-3)


# ---- Predictions ------------------------------------------------------------------------

def test_the_probabilities_of_labels_are_a_softmax_of_any_logits():
    """Without care the exponential of 1000 would be infinite."""
    task = make_task_of_kind("classification", ["x", "y", "z"])
    logits = np.array([[1.0, 3.0, 2.0]], np.float32)
    expected = torch.tensor([1.0, 3.0, 2.0]).softmax(0).tolist()
    for shift in (0.0, 1000.0, -1000.0):
        shifted = logits + np.float32(shift)
        (label, probabilities), = decode(task, [None], [None], [shifted])
        assert label == "y"
        assert list(probabilities) == ["x", "y", "z"]
        assert list(probabilities.values()) == pytest.approx(expected, abs=1e-6)


def test_of_many_labels_only_the_most_probable_ones_have_probabilities():
    labels = [f"{i:03}" for i in range(150)]
    task = make_task_of_kind("classification", labels)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 150)).astype(np.float32)
    (label, probabilities), = decode(task, [None], [None], [logits])
    assert len(probabilities) == 100
    assert list(probabilities) == sorted(probabilities)
    exact_probabilities = torch.tensor(logits[0]).softmax(0)
    exact = exact_probabilities.sort(descending=True)
    best_labels = [labels[i] for i in exact.indices[:100]]
    best_probabilities = exact.values[:100].tolist()
    assert label == best_labels[0]
    assert set(probabilities) == set(best_labels)
    found = sorted(probabilities.values(), reverse=True)
    assert found == pytest.approx(best_probabilities, abs=1e-6)


def test_a_number_is_in_the_unit_of_the_training_labels():
    task = make_task_of_kind("regression", mean=10.0, sd=4.0)
    logits = np.array([[0.5]])
    prediction, = decode(task, [None], [None], [logits])
    assert prediction == (12.0, {})


def accuracies_of(results):
    """Pick the accuracies out of {split: Result}."""
    return {split: result.scores["accuracy"] for split, result in results.items()}


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
    assert first_dev_split(splits) == "dev_matched"
    results = {}
    for name, split in splits.items():
        results[name] = evaluate_split(model, split, False)
    assert accuracies_of(results) == {"test": 0.5, "dev_matched": 0.75, "dev_mismatched": 0.0}
    labels = [label for label, _ in results["test"].predictions]
    assert labels == ["x", "x"]


def test_the_test_set_is_predicted_once_and_the_dev_set_at_each_evaluation(
        out, sst2_flags, sentiment, capsys, monkeypatch):
    rows = [f"{i}\tthe film is good\n" for i in range(30)]
    write_file(sentiment / "test.tsv", "index\tsentence\n" + "".join(rows))
    sizes = []
    original_evaluate_split = finetune.evaluate_split

    def evaluate_and_note(model, split, bf16):
        sizes.append(len(split.examples))
        return original_evaluate_split(model, split, bf16)

    monkeypatch.setattr(finetune, "evaluate_split", evaluate_and_note)
    run(capsys, *sst2_flags, "--steps", 3, "--eval-every", 1, "--out", out)
    assert sizes == [24, 24, 24, 30]


def test_the_majority_is_that_of_the_training_set():
    task = make_task_of_kind("classification", ["x", "y"])
    datasets = {}
    labels_of_split = {"train": "xxy", "dev": "yyyx", "test": "xy"}
    for name, labels in labels_of_split.items():
        datasets[name] = [make_text_example("good", label) for label in labels]
    results = finetune.results_of_majority(task, datasets)
    assert accuracies_of(results) == {"dev": 0.25, "test": 0.5}


# ---- Models on disk ---------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_classifier_is_the_one_that_is_loaded(kind, tokenizer, tmp_path):
    task = make_task_of_kind(kind, LABELS[kind], length=20, mean=2.0)
    model = save_random_classifier(tmp_path, task, tokenizer)
    loaded = load_classifier(str(tmp_path))
    assert loaded.task == task
    assert Tokenizer(str(tmp_path)).digest == tokenizer.digest
    found = loaded.state_dict()
    for name, parameter in model.state_dict().items():
        assert torch.equal(found[name], parameter), name
    # A new Task for the same labels is kept; its mean may be another.
    new_task = make_task_of_kind(kind, LABELS[kind], length=24, mean=5.0)
    assert load_classifier(str(tmp_path), new_task).task == new_task


def test_a_head_for_regression_predicts_the_same_numbers_in_a_task_with_another_mean(
        tokenizer, tmp_path):
    task = make_task_of_kind("regression", [], mean=3.0, sd=1.5)
    save_random_classifier(tmp_path, task, tokenizer)
    new_task = replace(task, mean=50.0, sd=20.0)
    ids = torch.tensor([[2, 7, 3]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    segments = torch.zeros(1, 3, dtype=torch.int64)
    numbers = []
    for given_task in (task, new_task):
        model = load_classifier(str(tmp_path), given_task)
        _, logits = model(ids, mask, segments)
        numbers.append(logits * given_task.sd + given_task.mean)
    assert (numbers[0] - 3.0).abs().max() > 0.01
    torch.testing.assert_close(numbers[1], numbers[0])


@pytest.mark.parametrize("is_fine_tuned", [False, True])
def test_a_loaded_model_has_the_dropout_asked_for(is_fine_tuned, tokenizer, tmp_path):
    task = make_task_of_kind("classification", ["x", "y"])
    model = make_classifier(tokenizer, task)
    save(model.encoder, tmp_path)
    if is_fine_tuned:
        save_classifier(str(tmp_path), model, tokenizer)
    loaded = load_classifier(str(tmp_path), task, dropout=0.25)
    assert loaded.dropout.p == 0.25
    assert loaded.encoder.config.hidden_dropout_prob == 0.25


@pytest.mark.parametrize("change", [
    {"kind": "qa", "name": "qa", "metrics": ["f1"], "pair": True},
    {"labels": ["a", "b"]},
    {"kind": "tagging", "name": "tagging", "metrics": ["f1"], "labels": ["O"]},
])
def test_a_model_for_another_kind_or_other_labels_is_refused(change, tokenizer, tmp_path):
    task = make_task_of_kind("classification", ["x", "y"])
    save_random_classifier(tmp_path, task, tokenizer)
    other_task = replace(task, **change)
    told = f"{tmp_path} was fine-tuned for classification of one text \\(x; y\\), not"
    with pytest.raises(ValueError, match=told):
        load_classifier(str(tmp_path), other_task)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_head_that_is_not_finite_is_refused(value, tokenizer, tmp_path):
    task = make_task_of_kind("classification", ["x", "y"])
    save_random_classifier(tmp_path, task, tokenizer)
    head = {"weight": torch.zeros(2, 24), "bias": torch.full((2,), value, dtype=torch.float64)}
    write_safetensors(head, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match="head.safetensors: there are values that are not finite"):
        load_classifier(str(tmp_path))


def test_random_knows_nothing_of_the_saved_model_but_its_shape(tokenizer, tmp_path):
    task = make_task_of_kind("classification", ["x", "y"])
    model = save_random_classifier(tmp_path, task, tokenizer)
    torch.manual_seed(7)
    loaded = load_classifier(str(tmp_path), task, mode="random")
    assert loaded.encoder.config == model.encoder.config
    old = model.state_dict()
    for name, parameter in loaded.state_dict().items():
        assert not torch.equal(parameter, old[name]), name


@pytest.mark.parametrize("width, adapter_size, expected_size", [
    (24, 0, 24 // 16), (12, 0, 1), (24, 3, 3)])
def test_adapters_are_added_only_where_there_are_none_and_nothing_else_changes(
        width, adapter_size, expected_size, tokenizer, tmp_path):
    config = small_config(tokenizer, hidden_size=width, adapter_size=adapter_size)
    old = noisy_model(config)
    save(old, tmp_path)
    rng = np.random.default_rng(0)
    ids = rng.integers(5, tokenizer.vocab_size, (6, 20))
    mask = np.ones((6, 20), bool)
    segments = np.zeros((6, 20), np.int64)
    sample = (ids, mask, segments)
    encoder = load_encoder(str(tmp_path), "adapters", dropout=0.25, sample=sample)
    assert encoder.config.adapter_size == expected_size
    assert encoder.config.hidden_dropout_prob == 0.25
    assert encoder.config.attention_probs_dropout_prob == 0.25
    assert encoder.head is None
    found = encoder.state_dict()
    for name, parameter in old.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(found[name], parameter), name
    if adapter_size == 0:
        for adapter in adapters_of(encoder):
            assert (adapter.norm.weight != 1).any()      # it was fitted


def test_adapters_only_tunes_the_corrections_of_a_model_that_has_them_and_adds_no_adapters(
        tmp_path, out, tokenizer, sentiment, capsys):
    """They belong to one recursion each, as the adapters of another model do."""
    folder = tmp_path / "corrected"
    save(noisy_model(small_config(tokenizer, correction_rank=3)), folder)
    tokenizer.save(str(folder))
    flags = ["--model", folder, "--task", "sst2", "--data", sentiment, "--out", out]
    run(capsys, *flags, "--steps", 3, "--adapters-only")
    old = load(folder).state_dict()
    tuned = load(out)
    assert tuned.config.adapter_size == 0
    for name, parameter in tuned.state_dict().items():
        is_tuned = not torch.equal(parameter, old[name])
        assert is_tuned == name.startswith("corrections."), name


# ---- Choices of the command -------------------------------------------------------------

def test_the_length_is_128_or_384_but_no_more_than_the_positions():
    assert choose_length(None, "classification", 512) == 128
    assert choose_length(None, "qa", 512) == 384
    assert choose_length(None, "qa", 64) == 64
    assert choose_length(8, "qa", 64) == 8
    assert choose_length(64, "tagging", 64) == 64


@pytest.mark.parametrize("mode, without_task, width, rate, rate_with_corrections", [
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
        mode, without_task, width, rate, rate_with_corrections):
    config = Config(hidden_size=width, num_attention_heads=4)
    found = default_rate(mode, config, without_task)
    assert found == pytest.approx(rate)
    corrected = replace(config, correction_rank=8)
    found = default_rate(mode, corrected, without_task)
    assert found == pytest.approx(rate_with_corrections)


@pytest.mark.parametrize("mode, without_task, correction_rank, factor", [
    ("all", False, 0, 3),
    ("all", False, 8, 3),
    ("adapters", False, 8, 2),
    ("adapters", False, 0, 1),
    ("head", False, 8, 1),
    ("all", True, 8, 1),
])
def test_with_a_hidden_loss_the_default_rate_is_higher(
        mode, without_task, correction_rank, factor):
    config = Config(hidden_size=384, num_attention_heads=4, correction_rank=correction_rank)
    rate = default_rate(mode, config, without_task)
    rate_with_hidden_loss = default_rate(mode, config, without_task, True)
    assert rate_with_hidden_loss == pytest.approx(factor * rate)


def test_a_line_to_tag_is_split_into_words_and_punctuation():
    task = make_task_of_kind("tagging", LABELS["tagging"])
    words = ["see", "os.path", ",", "john", "'", "s", "!"]
    example = finetune.example_of_line("see os.path, john's!", task)
    assert example == (words, None, None, "", "the text")
    with pytest.raises(ValueError, match="for a file with labels or tags say --evaluate"):
        finetune.example_of_line("john\tB-x", task)


@pytest.mark.parametrize("line, words", [
    ("Gene\u0300ve, \u0939\u093f\u0928\u094d\u0926\u0940! a b",
     ["Gene\u0300ve", ",", "\u0939\u093f\u0928\u094d\u0926\u0940", "!", "a", "b"]),
    ("\u0301 a\u0301 b", ["\u0301", "a\u0301", "b"]),
])
def test_accents_and_vowel_signs_that_are_characters_of_their_own_stay_in_their_words(line, words):
    task = make_task_of_kind("tagging", LABELS["tagging"])
    assert finetune.example_of_line(line, task).text == words


def test_a_line_to_answer_is_split_at_its_first_tab():
    """The context after it may have tabs, too."""
    task = make_task_of_kind("qa")
    example = finetune.example_of_line("who\ta\tb", task)
    assert example == ("who", "a\tb", None, "", "the text")
    with pytest.raises(ValueError, match="^a.txt:7 'who': this model needs two texts"):
        finetune.example_of_line("who", task, "a.txt:7")
    with pytest.raises(ValueError, match="'who': this model needs two texts"):
        finetune.example_of_line("who", task)


def test_a_line_for_another_model_of_two_texts_has_one_tab():
    task = make_task_of_kind("regression", pair=True)
    example = finetune.example_of_line("a\tb", task)
    assert example == ("a", "b", None, "", "the text")
    with pytest.raises(ValueError, match="^x.tsv:1 'a.tb.tlabel': this model needs two"):
        finetune.example_of_line("a\tb\tlabel", task, "x.tsv:1")


def test_a_line_for_a_model_of_one_text_is_kept_whole_and_has_no_tab():
    task = make_task_of_kind("regression")
    example = finetune.example_of_line(" a b", task)
    assert example == (" a b", None, None, "", "the text")
    message = "this model needs one text; .*inside a text put a space in its place"
    with pytest.raises(ValueError, match=message):
        finetune.example_of_line("a\tb", task)
    with pytest.raises(ValueError, match="^x.tsv:1 'a.tb.tlabel': this model needs one"):
        finetune.example_of_line("a\tb\tlabel", task, "x.tsv:1")


@pytest.mark.parametrize("num_known, is_refused", [(24, True), (27, False)])
@pytest.mark.parametrize("kind", ["classification", "tagging", "qa"])
def test_text_is_refused_if_most_characters_are_unknown(kind, num_known, is_refused, tokenizer):
    """A run of over 100 letters or digits is one [UNK]: 104 of 200 or of 212 are unknown."""
    text = "good " * num_known + "g" * 104
    if kind == "classification":
        example = make_text_example(text, "x")
    elif kind == "tagging":
        example = make_text_example(text.split(), ["O"] * (num_known + 1))
    else:
        example = make_text_example("good", [(0, "good")], text)
    if is_refused:
        message = r"% of the characters become \[UNK\] .* over 100 letters in"
        with pytest.raises(ValueError, match=message):
            finetune.check_characters("train", [example], tokenizer)
    else:
        finetune.check_characters("train", [example], tokenizer)


@pytest.mark.parametrize("rank, is_printed", [(None, True), ("0", True), ("1", False)])
def test_a_warning_is_one_printable_line_of_the_first_process(
        rank, is_printed, monkeypatch, capsys):
    """Of several processes each meets what is to be warned of. RANK is not set if there is one."""
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    finetune.warn("a\x1b[2J\nb")
    printed = capsys.readouterr()
    assert printed.out == ""
    if is_printed:
        assert printed.err == "warning: a\\x1b[2J\\nb\n"
    else:
        assert printed.err == ""


@pytest.mark.parametrize("num_known, is_warned", [(9, True), (20, False)])
def test_it_is_said_if_a_tenth_of_the_characters_is_unknown(
        num_known, is_warned, tokenizer, capsys):
    example = make_text_example("good " * num_known + "привет", "x")
    finetune.check_characters("train", [example], tokenizer)
    share = 6 / (4 * num_known + 6)
    warning = f": {share:.0%} of the characters become [UNK]"
    assert (warning in capsys.readouterr().err) is is_warned


@pytest.mark.parametrize("flag", ["--dev", "--test"])
def test_a_measured_set_in_another_language_is_warned_of_in_the_training(
        flag, tmp_path, out, model, sentiment, capsys):
    rows = "привет привет\t1\ngood\t0\n"
    russian = write_file(tmp_path / "ru.tsv", "sentence\tlabel\n" + rows)
    flags = ["--model", model, "--task", "classification", "--train", sentiment / "train.tsv"]
    warned = run(capsys, *flags, flag, russian, "--text", "sentence", "--steps", 1,
                 "--out", out).err
    assert f"warning: {flag[2:]}: 75% of the characters become [UNK]" in warned


@pytest.mark.parametrize("first, second, is_cut", [
    ("good " * 6, None, False),
    ("good " * 7, None, True),
    ("good " * 2, "bad " * 3, False),
    ("good " * 2, "bad " * 4, True),
    ("good " * 4, "bad ", False),
    ("good " * 5, "bad ", True),
])
def test_texts_that_were_cut_are_counted(first, second, is_cut, tokenizer, capsys):
    """Of 8 tokens two are [CLS] and [SEP], or three where there are two texts."""
    pair = second is not None
    short_second = None
    if pair:
        short_second = "bad"
    task = make_task_of_kind("regression", pair=pair, length=8)
    short = make_text_example("good", 1.0, short_second)
    examples = [short, make_text_example(first, 1.0, second), short]
    features = encode(task, examples, tokenizer)
    split = finetune.Split(examples, features)
    finetune.warn_of_cut("dev", split, length=8)
    warned = capsys.readouterr().err
    if is_cut:
        assert warned.startswith("warning: dev: in 1 of 3 examples a text is too")
    else:
        assert warned == ""


# ---- Whole runs -------------------------------------------------------------------------

@pytest.mark.parametrize("flags, trained", [
    ([], "encoder"), (["--adapters-only"], "_adapters."), (["--freeze"], "nothing")])
def test_what_is_frozen_stays_as_it_was_without_optimiser_state(
        flags, trained, out, model, sst2_flags, capsys):
    run(capsys, *sst2_flags, "--steps", 3, "--out", out, *flags)
    path, = out.glob("*/training.safetensors")
    state, _ = read_safetensors(path)
    trained_names = set()
    names_of_all_tensors = set()                         # the moments of the optimiser, too
    for name in state:
        prefix, parameter_name = name.split(".", 1)
        names_of_all_tensors.add(parameter_name)
        if prefix == "model":
            trained_names.add(parameter_name)
    assert names_of_all_tensors == trained_names
    assert "output.weight" in trained_names
    for name in trained_names:
        assert name.startswith("output.") or trained in name
    tuned = load(out)
    found = tuned.state_dict()
    for name, parameter in load(model).state_dict().items():
        if not name.startswith("head."):
            is_same = torch.equal(parameter, found[name])
            assert is_same == (trained != "encoder"), name
    has_adapters = tuned.config.adapter_size > 0
    assert has_adapters == (trained == "_adapters.")


def test_new_adapters_are_fitted_to_the_first_64_texts(
        out, model, sentiment, sst2_flags, capsys, monkeypatch):
    samples = []

    def note(encoder, ids, mask, segments):
        samples.append((ids, mask))

    monkeypatch.setattr(finetune, "fit_adapters_to_identity", note)
    write_sentiment(sentiment / "train.tsv", 70, seed=0)
    run(capsys, *sst2_flags, "--steps", 1, "--adapters-only", "--out", out)
    (ids, mask), = samples
    task = make_task_of_kind("classification", ["0", "1"])
    examples = read_glue("sst2", str(sentiment))["train"][:64]
    features = encode(task, examples, Tokenizer(model))
    lengths = [len(feature.ids) for feature in features]
    assert mask.sum(1).tolist() == lengths
    last_ids = ids[63][mask[63]]
    assert last_ids.tolist() == features[63].ids.tolist()


def test_a_run_trains_as_the_flags_say(out, sst2_flags, monkeypatch, capsys):
    trained = []

    def train(objective, run_state, options, *others):
        trained.append((objective, options))
        return []

    monkeypatch.setattr(finetune, "train", train)
    values = {"steps": 31, "lr": 0.5, "weight_decay": 0.25, "seed": 11, "log_every": 13,
              "eval_every": 17, "save_every": 19}
    more = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        more.append(f"--{flag}={value}")
    run(capsys, *sst2_flags, "--batch-size", 4, "--micro-batch-size", 1, "--dropout", 0.2,
        "--bf16", "--out", out, *more)
    (objective, options), = trained
    assert options == TrainingOptions(**values, warmup=3, out=options.out, resume=False)
    assert options.out.startswith(f"{out}/all-")
    assert objective.batch_size == 4
    assert objective.seed == 11
    assert objective.bf16 is True
    assert objective.micro_batch_bounds == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert objective.model.dropout.p == 0.2


# Enough to learn a toy task within a second.
FAST = ["--lr", "1e-2", "--batch-size", 16, "--length", 24]


def test_a_class_is_learned_and_told(tmp_path, out, sst2_flags, capsys):
    printed = run(capsys, *sst2_flags, *FAST, "--steps", 40, "--out", out).out
    assert percent(printed, "all", "dev", "accuracy") > 95
    assert re.search(r"^majority +dev", printed, re.M)
    assert re.search(r"40 steps in \d+ s, with evaluation$", printed, re.M)
    assert "warning" not in printed
    assert f"--model {out} --predict" in printed
    predicted = run(capsys, "--model", out, "--predict", "the film is good").out
    assert re.fullmatch(r"1 9\d\.\d%, 0 \d\.\d%\n", predicted)
    lines = read_json_lines(out / "dev.jsonl")
    assert len(lines) == 24
    assert set(lines[0]) == {"key", "gold", "prediction", "probabilities"}
    texts = write_file(tmp_path / "two.txt", "good\n\nbad\n")
    predicted = run(capsys, "--model", out, "--predict", texts).out
    labels = [line[:1] for line in predicted.splitlines()]
    assert labels == ["1", "", "0"]
    error = fail(capsys, "--model", out, "--predict", "good\tbad")
    assert "this model needs one text; a tab separates two texts" in error


def test_a_number_is_learned_and_told(tmp_path, out, model, capsys):
    """No dev set is given, so a tenth of the training set is held out."""
    numbers_of_words = {"bad": 10, "not": 12, "good": 14}
    rows = []
    for letter in LETTERS:
        for word, number in numbers_of_words.items():
            rows.append(f"{word} film {letter},{number}\n")
    table = write_file(tmp_path / "train.csv", "text,label\n" + "".join(rows))
    flags = ["--model", model, "--task", "regression", "--train", table, "--out", out]
    printed = run(capsys, *flags, *FAST, "--steps", 40).out
    assert percent(printed, "all", "dev", "pearson") > 95
    assert percent(printed, "majority", "dev", "pearson") == 0
    assert re.search(r"^regression: \d+ train, \d+ dev$", printed, re.M)
    predicted = run(capsys, "--model", out, "--predict", "good film").out
    assert 12 < float(predicted) < 15


def test_tags_are_learned_and_told(tmp_path, out, model, capsys):
    rng = random.Random(0)
    sentences = []
    for _ in range(64):
        name = rng.choice(["john", "name"])
        place = rng.choice(["paris", "city"])
        sentences.append(f"the O\n{name} B-who\nlives O\nin O\n{place} B-where\n\n")
    train = write_file(tmp_path / "train.txt", "".join(sentences))
    flags = ["--model", model, "--task", "tagging", "--train", train, "--out", out]
    printed = run(capsys, *flags, *FAST, "--steps", 30).out
    assert percent(printed, "all", "dev", "f1") > 95
    predict = ["--model", out, "--predict"]
    predicted = run(capsys, *predict, "the john lives in paris").out
    assert predicted == "john (who), paris (where)\n"
    texts = write_file(tmp_path / "texts.txt", "the name lives in city\n\nthe john lives in city\n")
    predicted = run(capsys, *predict, texts).out
    assert predicted == "name (who), city (where)\n\njohn (who), city (where)\n"
    predicted = run(capsys, *predict, "the the").out
    assert predicted == "no entity\n"
    results = read_json(out / "results.json")
    details = results["modes"]["all"]["dev"]["details"]
    assert details.keys() == {"where", "who"}
    lines = read_json_lines(out / "dev.jsonl")
    for name, scores in details.items():
        num_gold = 0
        for line in lines:
            num_gold += line["gold"].count(f"B-{name}")
        assert scores["count"] == num_gold
        assert scores["f1"] > 0.95


def squad_content(paragraphs):
    """Make the text of a SQuAD file of these paragraphs."""
    return json.dumps({"data": [{"paragraphs": paragraphs}]})


def tune_to_answer(capsys, model, folder, out):
    """Tune a model on questions who lives where, and return what the run printed."""
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
    train = write_file(folder / "train.json", squad_content(paragraphs))
    flags = ["--model", model, "--task", "qa", "--train", train, "--out", out]
    # With some seeds 70 steps are not enough.
    return run(capsys, *flags, *FAST, "--steps", 70, "--stride", 9, "--seed", 2).out


def write_two_questions(path, with_answers=True):
    """Write a SQuAD file of the questions a, where, and b, who. A test set has no answers."""
    questions = []
    for question_id, text in (("a", "where"), ("b", "who")):
        question = {"id": question_id, "question": text}
        if with_answers:
            question["answers"] = [{"text": "city", "answer_start": 16}]
        questions.append(question)
    paragraph = {"context": "a name lives in city b .", "qas": questions}
    return write_file(path, squad_content([paragraph]))


def test_answers_are_learned_and_told(tmp_path, out, model, capsys, monkeypatch):
    printed = tune_to_answer(capsys, model, tmp_path, out)
    assert percent(printed, "all", "dev", "f1") > 95
    # The two texts are a question and its context.
    assert printed.endswith("--predict $'TEXT\\tTEXT'\n")
    assert read_json(out / "task.json")["stride"] == 9
    predict = ["--model", out, "--predict"]
    predicted = run(capsys, *predict, "where\ta name lives in city b .").out
    assert predicted == "city\n"
    error = fail(capsys, *predict, "where")
    assert "this model needs two texts; a tab separates two texts" in error
    # This is a context, not the name of a file.
    assert run(capsys, *predict, "where\ta name lives in city.json").out
    who = run(capsys, *predict, "who\ta name lives in city b .").out
    expected = {"a": "city", "b": who.strip()}
    questions = write_two_questions(tmp_path / "questions.json")
    answers = tmp_path / "answers.json"
    printed = run(capsys, *predict, questions, "--out", answers).out
    assert "answers.json: 2 answers; f1 " in printed
    assert read_json(answers) == expected
    monkeypatch.chdir(tmp_path)
    run(capsys, *predict, questions)                     # without --out
    assert read_json("predictions.json") == expected


@pytest.fixture
def qa_model(out, tokenizer):
    """Save a model with random parameters that answers questions, and return its folder."""
    task = make_task_of_kind("qa")
    save_random_classifier(out, task, tokenizer)
    return out


def test_questions_without_known_answers_are_answered_but_not_scored(tmp_path, qa_model, capsys):
    answers = tmp_path / "answers.json"
    predict = ["--model", qa_model, "--out", answers, "--overwrite", "--predict"]
    run(capsys, *predict, write_two_questions(tmp_path / "a.JSON"))   # the case does not matter
    expected = read_json(answers)
    assert expected.keys() == {"a", "b"}
    hidden = write_two_questions(tmp_path / "hidden.json", with_answers=False)
    printed = run(capsys, *predict, hidden).out
    words = "answers.json: 2 answers; no score, because some labels are not known"
    assert words in printed
    assert read_json(answers) == expected


def test_what_cannot_be_a_file_of_answers_is_refused(tmp_path, qa_model, capsys):
    questions = write_two_questions(tmp_path / "questions.json")
    predict = ["--model", qa_model, "--predict", questions, "--overwrite", "--out"]
    error = fail(capsys, *predict, tmp_path / "none/answers.json")
    assert f"there is no folder {tmp_path / 'none'}" in error
    error = fail(capsys, *predict, tmp_path)
    assert "this is not a regular file" in error
    error = fail(capsys, *predict, f"{tmp_path}/new/")
    assert f"--out {tmp_path}/new/: there is no folder {tmp_path}/new\n" in error
    os.mkfifo(tmp_path / "pipe")
    error = fail(capsys, *predict, tmp_path / "pipe")
    assert "pipe: this is not a regular file" in error


def test_a_file_of_answers_is_only_replaced_if_it_is_said(tmp_path, qa_model, capsys):
    questions = write_two_questions(tmp_path / "questions.json")
    answers = tmp_path / "answers.json"
    answers.write_text("mine")
    flags = ["--model", qa_model, "--predict", questions, "--out", answers]
    error = fail(capsys, *flags)
    assert "answers.json exists already: --overwrite" in error
    assert answers.read_text() == "mine"
    run(capsys, *flags, "--overwrite")
    assert read_json(answers).keys() == {"a", "b"}


def test_seeds_differ_and_the_rate_is_chosen_without_the_dev_set(
        out, sst2_flags, sentiment, capsys):
    """Two rates are tried with one seed on 57 of the 64 examples, then the better one is used with
    two seeds on all of them."""
    write_file(sentiment / "test.tsv", "index\tsentence\n0\tgood film\n1\tbad film\n")
    flags = sst2_flags + ["--out", out, "--steps", 30, "--lr", "1e-9", "1e-2"]
    flags += ["--seeds", 2, "--seed", 5]
    printed = run(capsys, *flags).out
    folders = [path for path in out.iterdir() if path.is_dir()]
    names = sorted(path.name for path in folders)
    assert names == ["all-57-lr0.01-seed5", "all-57-lr1e-09-seed5", "all-64-lr0.01-seed5",
                     "all-64-lr0.01-seed6"]
    assert re.search(r"^all +dev +accuracy .* of 2 seeds$", printed, re.M)
    first_state, _ = read_safetensors(out / "all-64-lr0.01-seed5/training.safetensors")
    second_state, _ = read_safetensors(out / "all-64-lr0.01-seed6/training.safetensors")
    first_weight = first_state["model.output.weight"]
    assert not torch.equal(first_weight, second_state["model.output.weight"])

    # The model on disk is the one of the first seed, and the one that was measured.
    saved = load_classifier(str(out))
    assert torch.equal(saved.output.weight, first_weight)
    examples = read_glue("sst2", str(sentiment))["dev"]
    features = encode(saved.task, examples, Tokenizer(str(out)))
    predictions = decode(saved.task, examples, features, predict_logits(saved, features))
    labels = [label for label, _ in predictions]
    written_labels = [line["prediction"] for line in read_json_lines(out / "dev.jsonl")]
    assert labels == written_labels
    written = (out / "SST-2.tsv").read_text()
    assert re.fullmatch(r"index\tprediction\n0\t[01]\n1\t[01]\n", written)

    results = read_json(out / "results.json")
    assert results["task"] == "sst2"
    assert results["kind"] == "classification"
    assert results["seeds"] == [5, 6]
    assert len(results["modes"]["all"]["dev"]["scores"]) == 2
    assert set(results["majority"]["dev"]) == {"accuracy"}
    best_rate = re.findall(r"the learning rate (\S+);", printed)[-1]
    assert results["lr"] == {"all": float(best_rate)}

    def table(text):
        return [line for line in text.splitlines() if re.match("(all|majority) ", line)]

    again = run(capsys, *flags, "--resume").out          # all runs are finished already
    assert table(again) == table(printed)
    assert again.count(": all 30 steps are done already\n") == 4
    assert again.count(" trained parameters, 0 steps in ") == 4


def test_a_folder_with_a_run_is_used_again_only_if_it_is_said(out, sst2_flags, capsys):
    flags = sst2_flags + ["--out", out, "--steps", 1]
    run(capsys, *flags)
    error = fail(capsys, *flags)
    assert "--overwrite" in error
    error = fail(capsys, *flags, "--dropout", 0.1, "--resume")
    assert "dropout was 0.0, now it is 0.1" in error


def test_the_mean_and_the_deviation_are_of_all_seeds(out, sst2_flags, capsys, monkeypatch):
    original_fine_tune = finetune.fine_tune

    def fine_tune(setup, splits, mode, seed, lr):
        tuned, results = original_fine_tune(setup, splits, mode, seed, lr)
        result = results["dev"]._replace(scores={"accuracy": seed / 10})
        return tuned, {"dev": result}

    monkeypatch.setattr(finetune, "fine_tune", fine_tune)
    printed = run(capsys, *sst2_flags, "--out", out, "--steps", 1, "--freeze", "--seeds", 3,
                  "--seed", 2).out
    # The accuracies are 20 %, 30 % and 40 %.
    assert re.search(r"^head +dev +accuracy +30\.00% \+- 10\.00% of 3 seeds$", printed, re.M)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_it_is_said_how_many_examples_are_in_the_training_set_too(
        tmp_path, out, model, two_texts, capsys, split):
    """Their labels may differ."""
    other = write_file(tmp_path / "b.tsv", "text\tlabel\nbad film\tx\na film\ty\nfilm\ty\n")
    flags = ["--task", "classification", "--model", model, "--train", two_texts]
    if split == "test":
        flags += ["--dev", write_file(tmp_path / "c.tsv", "text\tlabel\na city\tx\ncity\ty\n")]
    warned = run(capsys, *flags, f"--{split}", other, "--steps", 1, "--out", out).err
    assert warned == (f"warning: {split}: 1 of 3 examples are in the training set, too, so the "
                      "scores may be too high\n")


@pytest.mark.parametrize("num_known, is_warned", [(0, False), (2, False), (3, True)])
def test_over_2_percent_of_known_texts_are_warned_of(num_known, is_warned, capsys):
    texts = [f"text {i}" for i in range(100)]
    known_texts = texts[:num_known] + ["another text"]
    datasets = {"train": [make_text_example(text, "x") for text in known_texts],
                "dev": [make_text_example(text, "y") for text in texts]}
    finetune.warn_of_known_texts(datasets)
    assert ("of 100 examples are in the training set" in capsys.readouterr().err) is is_warned


def test_a_pair_is_known_only_if_both_of_its_texts_are(capsys):
    datasets = {"train": [Example("a", "b")], "dev": [Example("a", "c"), Example("b", "b")]}
    finetune.warn_of_known_texts(datasets)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("second_number, is_warned", [(-1, True), (0, False)])
def test_equal_numbers_to_compare_with_are_warned_of(second_number, is_warned, tmp_path, capsys):
    """A test set whose labels are not published often has -1 everywhere."""
    test = write_file(tmp_path / "test.tsv", f"text\tlabel\na film\t-1\nfilm\t{second_number}\n")
    args = finetune.arguments(["--evaluate", "--task", "regression", "--test", test])
    finetune.read_datasets(args, "regression", "regression", with_train=False)
    expected = ""
    if is_warned:
        expected = ("warning: test: all 2 examples have the number -1, so its correlations are 0; "
                    "are its labels not published?\n")
    assert capsys.readouterr().err == expected


def test_unknown_numbers_are_not_called_equal(capsys):
    finetune.warn_of_equal_numbers({"test": [make_text_example("a film", None)] * 2})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("word, is_warned", [("IL-2", True), ("city", False)])
def test_words_that_predict_would_split_are_warned_of(
        tmp_path, out, model, capsys, word, is_warned):
    table = write_file(tmp_path / "a.txt", f"the\tO\n{word}\tB-x\n\nparis\tB-x\nis\tO\n")
    printed = run(capsys, *file_flags(model, "tagging", table), "--steps", 1, "--out", out).err
    message = "--predict would split 1 of 4 words to train on, such as 'IL-2', so its predictions"
    assert (message in printed) is is_warned


@pytest.mark.parametrize("num_split, is_warned", [(1, False), (2, True)])
def test_over_1_percent_of_split_words_are_warned_of(num_split, is_warned, capsys):
    words = ["city"] * (100 - num_split) + ["5%"] * num_split
    finetune.warn_of_split_words([make_text_example(words, ["O"] * 100)])
    message = f"--predict would split {num_split} of 100 words to train on, such as '5%'"
    assert (message in capsys.readouterr().err) is is_warned


def test_a_seed_decides_the_first_values_of_the_head(out, sst2_flags, capsys):
    """With a rate of 0 the heads stay as they were made."""
    run(capsys, *sst2_flags, "--out", out, "--steps", 1, "--lr", 0, "--freeze", "--seeds", 2)
    weights = []
    for path in sorted(out.glob("*/training.safetensors")):
        state, _ = read_safetensors(path)
        weights.append(state["model.output.weight"])
    assert len(weights) == 2
    assert not torch.equal(weights[0], weights[1])


def test_a_run_goes_on_only_with_the_same_model_teacher_data_and_flags(
        tmp_path, out, sst2_flags, sentiment, tokenizer, capsys):
    task = make_task_of_kind("classification", ["0", "1"])
    teacher = tmp_path / "teacher0"
    other_teacher = tmp_path / "teacher1"
    save_random_classifier(teacher, task, tokenizer, seed=0)
    save_random_classifier(other_teacher, task, tokenizer, seed=1)
    flags = sst2_flags + ["--out", out, "--distill-from", teacher, "--steps", 2]
    run(capsys, *flags)
    flags.append("--resume")
    run(capsys, *flags)
    error = fail(capsys, *flags, "--weight-decay", 0.5)
    assert "weight_decay was 0.01, now it is 0.5" in error
    error = fail(capsys, *flags, "--hidden-weight", 0.5)
    assert "hidden_weight was None, now it is 0.5" in error
    error = fail(capsys, *flags, "--distill-from", other_teacher)
    assert "settings: teacher has other contents now. To" in error
    error = fail(capsys, *flags, "--model", other_teacher)
    assert "settings: encoder has other contents now; head was None, now it is '" in error
    error = fail(capsys, *sst2_flags, "--out", out, "--steps", 2, "--resume")
    assert re.search("teacher was '[0-9a-f]+', now it is None", error)
    train = sentiment / "train.tsv"
    text = train.read_text()
    train.write_text(text.replace("film", "name", 1))
    error = fail(capsys, *flags)
    assert "settings: training_set has other contents now. To" in error
    train.write_text(text)
    add_line(sentiment / "dev.tsv")
    error = fail(capsys, *flags)
    assert "settings: dev_set has other contents now. To" in error


def test_a_run_goes_on_where_new_adapters_and_heads_are_rounded_differently(
        out, sst2_flags, capsys, monkeypatch):
    """Another machine may round the fit of new adapters in another way. That is no other model."""
    flags = sst2_flags + ["--out", out, "--adapters-only", "--steps", 2]
    run(capsys, *flags)
    original_load_classifier = finetune.load_classifier

    def load_classifier(*arguments, **more):
        classifier = original_load_classifier(*arguments, **more)
        for name, parameter in classifier.named_parameters():
            if name.startswith("output.") or "_adapters." in name:
                parameter.data.mul_(1 + 1e-6)
        return classifier

    monkeypatch.setattr(finetune, "load_classifier", load_classifier)
    run(capsys, *flags, "--resume")


def test_a_run_goes_on_only_with_the_same_head(tmp_path, out, sentiment, tokenizer, capsys):
    """A model that was fine-tuned before has a head, with which the training begins."""
    task = make_task_of_kind("classification", ["0", "1"])
    folder = tmp_path / "m"
    classifier = save_random_classifier(folder, task, tokenizer)
    flags = ["--model", folder, "--task", "sst2", "--data", sentiment, "--out", out, "--steps", 1]
    run(capsys, *flags)
    run(capsys, *flags, "--resume")
    classifier.output.weight.data[0, 0] += 1
    save_classifier(folder, classifier, tokenizer)
    error = fail(capsys, *flags, "--resume")
    assert "settings: head has other contents now. To" in error


def test_the_model_is_measured_every_so_many_steps(out, sst2_flags, capsys):
    run(capsys, *sst2_flags, "--out", out, "--freeze", "--steps", 5, "--eval-every", 2)
    steps = [line["step"] for line in read_only_log(out)]
    assert steps == [2, 4, 5]


def test_steps_follow_from_epochs_and_the_rate_grows_over_a_tenth_of_them(
        out, sst2_flags, capsys):
    run(capsys, *sst2_flags, "--out", out, "--batch-size", 6, "--epochs", "1.8", "--lr", "1e-3",
        "--log-every", 1)
    lines = read_only_log(out)
    assert len(lines) == 20                              # an epoch has 11 batches
    rates = [line["lr"] for line in lines]
    expected = [0.5e-3, 1e-3]
    for step in range(2, 20):
        expected.append(1e-3 * (20 - step) / 18)
    assert rates == pytest.approx(expected)
    assert "valid_accuracy" in lines[-1]
    assert "valid_accuracy" not in lines[0]


def test_a_run_has_at_least_one_step():
    args = finetune.arguments(["--task", "code", "--epochs", "0.001"])
    task_loss = SimpleNamespace(steps_per_epoch=2, features=[])
    options = finetune.options_of_run(SimpleNamespace(args=args), task_loss, "all", 0, 0.1)
    assert options.steps == 1


@pytest.mark.parametrize("more", [[], ["--bf16"]])
def test_to_evaluate_prints_the_scores_of_the_run_and_writes_nothing(
        tmp_path, out, model, sentiment, capsys, more):
    write_file(sentiment / "test.tsv", "index\tsentence\n0\tgood film\n")
    flags = ["--task", "sst2", "--data", sentiment] + more
    printed = run(capsys, *flags, "--model", model, "--steps", 12, "--lr", "1e-2",
                  "--out", out).out
    assert " dev, 1 test without labels, so without scores; labels 0; 1\n" in printed
    expected = percent(printed, "all", "dev", "accuracy")
    os.remove(sentiment / "train.tsv")                   # it is not needed
    before = files_below(tmp_path)
    printed = run(capsys, *flags, "--model", out, "--evaluate").out
    assert percent(printed, "model", "dev", "accuracy") == expected
    assert "test: its labels are not known, so it cannot be scored" in printed
    assert "train" not in printed
    assert files_below(tmp_path) == before


def test_to_evaluate_leaves_the_training_set_out(documentation):
    datasets = finetune.read_datasets(None, "code", "tagging", with_train=False)
    assert datasets.keys() == {"dev"}
    assert datasets["dev"]


def test_to_evaluate_measures_on_files_of_yours(tmp_path, out, model, capsys):
    """They may have other names of columns than the files of the training."""
    rows = ""
    for letter in LETTERS:
        for word in ("good", "bad"):
            rows += f"{word} film {letter}\t{word}\n"
    table = write_file(tmp_path / "a.tsv", f"text\tlabel\n{rows}")
    other = write_file(tmp_path / "b.tsv", f"words\tname\n{rows}")
    flags = file_flags(model, "classification", table)
    printed = run(capsys, *flags, "--steps", 20, "--lr", "1e-2", "--out", out).out
    found = run(capsys, "--model", out, "--evaluate", "--dev", other, "--text", "words",
                "--label", "name").out
    for metric in ("accuracy", "macro_f1"):
        expected = percent(printed, "all", "dev", metric)
        assert percent(found, "model", "dev", metric) == expected
    assert "train" not in found


def assert_same_files(names, folder, other_folder):
    """Assert that files of these names are the same in two folders, byte by byte."""
    for name in names:
        content = (folder / name).read_bytes()
        other_content = (other_folder / name).read_bytes()
        assert content == other_content, name


def test_to_overwrite_removes_what_runs_wrote_and_nothing_else(out, sst2_flags, sentiment, capsys):
    write_file(sentiment / "test.tsv", "index\tsentence\n0\tgood film\n")
    run(capsys, *sst2_flags, "--out", out, "--steps", 1)
    (out / "notes.txt").write_text("mine")
    os.remove(sentiment / "test.tsv")
    run(capsys, *sst2_flags, "--out", out, "--steps", 2, "--freeze", "--overwrite")
    names = {path.name for path in out.iterdir()}
    assert names == {"config.json", "model.safetensors", "vocab.txt", "run.json", "task.json",
                     "head.safetensors", "dev.jsonl", "results.json", "notes.txt",
                     "head-64-lr0.032-seed0", "tokenizer_config.json"}
    assert (out / "notes.txt").read_text() == "mine"


def test_a_folder_with_files_that_are_read_is_no_folder_for_a_run(
        out, model, sentiment, sst2_flags, two_texts, capsys):
    """A run with --overwrite would remove the files that it is to read."""
    flags = file_flags(model, "classification", two_texts) + ["--steps", 1, "--out", out]
    run(capsys, *flags)
    test = write_file(out / "test.jsonl", '{"text": "good film", "label": "x"}\n')
    error = fail(capsys, *flags, "--test", test, "--resume")
    assert "o: this folder is read from" in error
    assert (out / "test.jsonl").read_text().startswith('{"text"')
    error = fail(capsys, *sst2_flags, "--out", sentiment, "--overwrite")
    assert "sst2: this folder is read from" in error


def test_the_fingerprints_are_of_what_is_used_of_the_folder(tmp_path, tokenizer):
    """A change of what the run does not use must not stop it from going on."""
    task = make_task_of_kind("regression", [])
    path = str(tmp_path / "m")
    classifier = save_random_classifier(path, task, tokenizer, num_hidden_groups=2)
    fingerprints = finetune.fingerprints_of_saved_model
    of_one = fingerprints(path, task, recursions=1)
    of_two = fingerprints(path, task, recursions=2)
    other_task = replace(task, mean=5.0, sd=3.0)         # of other data
    assert fingerprints(path, other_task, recursions=1) == of_one
    classifier.encoder.layers[1].norm.bias.data += 1
    save_classifier(path, classifier, tokenizer)
    assert fingerprints(path, task, recursions=1) == of_one
    assert fingerprints(path, task, recursions=2) != of_two


@pytest.mark.parametrize("name, change", [
    ("teacher", "no teacher"), ("training_set", "a line more"), ("encoder", "another model")])
def test_a_resume_that_would_train_anew_in_another_subfolder_is_refused(
        tmp_path, out, model, sst2_flags, sentiment, tokenizer, capsys, name, change):
    """The subfolder of a run is named after what it trains, on how many examples, its rate and its
    seed. With another name there is nothing to go on with."""
    task = make_task_of_kind("classification", ["0", "1"])
    teacher = tmp_path / "teacher"
    save_random_classifier(teacher, task, tokenizer)
    flags = sst2_flags + ["--out", out, "--steps", 1, "--adapters-only"]
    run(capsys, *flags, "--distill-from", teacher)
    before = files_below(out)
    more = ["--distill-from", teacher]
    if change == "no teacher":
        more = []
    elif change == "a line more":
        add_line(sentiment / "train.tsv")
    else:
        save(MiniALBERT(small_config(tokenizer, adapter_size=3)), model)
    error = fail(capsys, *flags, *more, "--resume")
    assert re.search(rf"run.json is of a run with other settings: {name} (was|has)", error)
    assert files_below(out) == before


def rename_token(folder, old, new):
    """Give a token of the vocabulary in a folder another name."""
    path = os.path.join(folder, "vocab.txt")
    with open(path) as file:
        vocabulary = file.read()
    assert f"\n{old}\n" in vocabulary
    with open(path, "w") as file:
        file.write(vocabulary.replace(f"\n{old}\n", f"\n{new}\n"))


def test_a_resume_with_other_windows_or_another_tokenizer_is_refused(
        tmp_path, out, model, capsys):
    squad = make_squad([("who", ["john"]), ("where", ["paris"])])
    questions = write_file(tmp_path / "a.json", squad)
    flags = file_flags(model, "qa", questions) + ["--steps", 1, "--out", out]
    run(capsys, *flags)
    before = files_below(out)
    for flag, name in (("--stride", "stride"), ("--length", "length")):
        error = fail(capsys, *flags, flag, 9, "--resume")
        assert re.search(rf"of a run with other settings: {name} was \d+, now it is 9", error)
    rename_token(model, "film", "movi")
    error = fail(capsys, *flags, "--resume")
    assert "run.json is of a run with other settings: tokenizer has other contents now" in error
    assert files_below(out) == before


# A resumed command may have other values of these flags. The hashes of the model, the teacher and
# the examples show a change of those in the last line.
MAY_DIFFER = {"device", "eval_every", "evaluate", "log_every", "micro_batch_size", "out",
              "overwrite", "predict", "resume", "save_every", "seeds", "test",
              "data", "dev", "distill_from", "label", "model", "text", "train"}


def test_each_flag_is_a_setting_of_the_command_or_may_differ(out, sst2_flags, capsys):
    """A new flag that changes what is trained belongs in settings_of_command."""
    run(capsys, *sst2_flags, "--steps", 1, "--out", out)
    settings = read_json(out / "run.json")["settings"]
    args = finetune.arguments(["--evaluate"])
    assert vars(args).keys() - settings.keys() - MAY_DIFFER == set()


def test_a_checkpoint_has_the_settings_of_its_own_run(tmp_path, out, sst2_flags, capsys):
    """run.json has the settings of the command, which makes several runs."""
    flags = sst2_flags + ["--steps", 3]
    teacher = tmp_path / "teacher"
    run(capsys, *flags, "--out", teacher)
    run(capsys, *flags, "--out", out, "--distill-from", teacher, "--seeds", 2, "--lr", 1e-3)
    path, = out.glob("all-*-seed1/training.safetensors")
    _, metadata = read_safetensors(path)
    settings = json.loads(metadata["run"])
    expected = read_json(out / "run.json")["settings"]
    expected["lr"] = 1e-3                                # in run.json a list
    expected["seed"] = 1                                 # there 0
    expected["hidden_weight"] = 3.0                      # there null
    expected["warmup"] = 0                               # there missing; it follows from the steps
    assert settings == expected


def test_of_several_evaluations_the_last_one_counts(out, sst2_flags, capsys, monkeypatch):
    original_evaluate_split = finetune.evaluate_split
    accuracies = iter([0.1, 0.2, 0.3])

    def evaluate_split(*arguments):
        result = original_evaluate_split(*arguments)
        return result._replace(scores={"accuracy": next(accuracies)})

    monkeypatch.setattr(finetune, "evaluate_split", evaluate_split)
    run(capsys, *sst2_flags, "--steps", 3, "--eval-every", 1, "--out", out)
    results = read_json(out / "results.json")
    scores = results["modes"]["all"]["dev"]["scores"]
    assert scores == [{"accuracy": 0.3}]


def test_a_frozen_model_does_not_learn_hidden_states(tmp_path, out, sst2_flags, capsys):
    flags = sst2_flags + ["--steps", 1]
    teacher = tmp_path / "teacher"
    run(capsys, *flags, "--out", teacher)
    run(capsys, *flags, "--out", out, "--distill-from", teacher, "--freeze")
    last_line = read_only_log(out)[-1]
    assert "distill" in last_line
    assert "hidden" not in last_line


def test_a_line_to_predict_is_named_by_its_file_and_number(tmp_path, out, sst2_flags, capsys):
    run(capsys, *sst2_flags, "--out", out, "--steps", 1)
    predict = ["--model", out, "--predict"]
    lines = write_file(tmp_path / "lines.txt", "good\n\nbad\tfilm\n")
    error = fail(capsys, *predict, lines)
    assert f"{lines}:3 'bad\\tfilm': this model needs one text" in error
    error = fail(capsys, *predict, "bad\tfilm")
    assert "error: --predict 'bad\\tfilm': this model needs one text" in error
    table = write_file(tmp_path / "x.CSV", "text,label\n")
    error = fail(capsys, *predict, table)
    assert "not a folder, a table" in error


def test_a_predicted_number_has_six_digits():
    task = make_task_of_kind("regression", [])
    prediction = Prediction(2.0401134253, {})
    assert finetune.describe_prediction(task, None, prediction) == "2.04011"


def test_the_hash_of_examples_is_of_texts_and_labels_alone():
    """A run may go on if its files were moved, but not if an example was changed."""
    examples = make_examples("qa")
    hash_before = finetune.hash_examples(examples)
    moved = [example._replace(location="elsewhere:1", id="other") for example in examples]
    assert finetune.hash_examples(moved) == hash_before
    changes = [{"text": "\ud800"}, {"second_text": "x"}, {"label": []}]
    for i, change in enumerate(changes):                 # of another example each time
        changed = list(examples)
        changed[i] = examples[i]._replace(**change)
        assert finetune.hash_examples(changed) != hash_before


def save_with_corrections(folder, tokenizer, rank):
    """Save a model with low-rank corrections, or without any if their rank is 0."""
    torch.manual_seed(1)
    config = small_config(tokenizer, correction_rank=rank)
    save(randomise(MiniALBERT(config)), folder)
    tokenizer.save(str(folder))


def test_corrections_are_merged_to_predict(
        tmp_path, out, sentiment, tokenizer, capsys, monkeypatch):
    """Merged into the matrices they cost no time. In bfloat16 they stay apart, as in the training,
    because a merged matrix is rounded in another way."""
    save_with_corrections(tmp_path / "m", tokenizer, rank=4)
    flags = ["--task", "sst2", "--data", sentiment]
    printed = run(capsys, *flags, "--model", tmp_path / "m", "--out", out, "--steps", 9).out
    expected = percent(printed, "all", "dev", "accuracy")
    ranks = []
    original_evaluate_split = finetune.evaluate_split

    def evaluate_split(model, *arguments):
        ranks.append(model.encoder.config.correction_rank)
        return original_evaluate_split(model, *arguments)

    monkeypatch.setattr(finetune, "evaluate_split", evaluate_split)
    found = run(capsys, *flags, "--model", out, "--evaluate").out
    assert percent(found, "model", "dev", "accuracy") == expected
    run(capsys, "--model", out, "--predict", "good film")
    assert ranks == [0, 0]
    run(capsys, "--model", out, "--predict", "good film", "--bf16")
    assert ranks == [0, 0, 4]                            # it computes what the training computed


def test_a_model_without_corrections_keeps_its_one_group_to_predict(
        tmp_path, out, sentiment, tokenizer, capsys, monkeypatch):
    """To merge corrections makes a group of parameters for each recursion."""
    save_with_corrections(tmp_path / "m", tokenizer, rank=0)
    flags = ["--model", tmp_path / "m", "--task", "sst2", "--data", sentiment]
    run(capsys, *flags, "--out", out, "--steps", 1)
    merged = []
    monkeypatch.setattr(finetune, "merge_corrections", merged.append)
    run(capsys, "--model", out, "--predict", "good film")
    assert merged == []


def test_to_overwrite_removes_nothing_if_the_model_is_for_other_labels(
        tmp_path, out, sentiment, tokenizer, capsys):
    task = make_task_of_kind("classification", ["x", "y"])
    fine_tuned = tmp_path / "m"
    save_random_classifier(fine_tuned, task, tokenizer)
    encoder_alone = tmp_path / "n"
    save_random_classifier(encoder_alone, task, tokenizer)
    os.remove(encoder_alone / "task.json")
    flags = ["--task", "sst2", "--data", sentiment, "--steps", 1]
    run(capsys, *flags, "--model", fine_tuned, "--out", tmp_path / "none", code=2)
    run(capsys, *flags, "--model", encoder_alone, "--out", out)
    before = files_below(out)
    error = fail(capsys, *flags, "--model", fine_tuned, "--out", out, "--overwrite")
    assert "one text (x; y), not for classification of one text (0; 1)" in error
    assert files_below(out) == before


def test_training_examples_without_a_place_to_predict_are_refused(tmp_path, out, model, capsys):
    questions = [{"id": "a", "question": "who", "answers": [], "is_impossible": True}]
    content = squad_content([{"context": "", "qas": questions}])
    train = write_file(tmp_path / "train.json", content)
    error = fail(capsys, *file_flags(model, "qa", train), "--out", out)
    assert "no example has a token that could be trained on" in error


def test_a_rate_is_chosen_by_contexts_on_which_it_was_not_trained(
        tmp_path, out, model, monkeypatch, capsys):
    """The real dev set has a context of its own. It is not looked at before the rate is chosen."""
    texts_of_runs = []

    def fine_tune(setup, splits, mode, seed, lr):
        train_texts = {example.second_text for example in splits["train"].examples}
        dev_texts = {example.second_text for example in splits["dev"].examples}
        texts_of_runs.append((train_texts, dev_texts))
        # The larger the rate is, the better it seems.
        result = finetune.Result({"f1": lr, "exact_match": lr}, [])
        return None, {"dev": result}

    monkeypatch.setattr(finetune, "fine_tune", fine_tune)
    monkeypatch.setattr(finetune, "save_classifier", lambda *others: None)
    paragraphs = []
    for number in range(11):
        questions = []
        for question in ("who", "what", "why"):
            answers = [{"text": "good", "answer_start": 0}]
            question_id = f"{number} {question}"
            questions.append({"id": question_id, "question": question, "answers": answers})
        paragraphs.append({"context": f"good {number}", "qas": questions})
    train = write_file(tmp_path / "train.json", squad_content(paragraphs[:10]))
    dev = write_file(tmp_path / "dev.json", squad_content(paragraphs[10:]))
    flags = ["--task", "qa", "--train", train, "--dev", dev, "--model", model, "--out", out]
    printed = run(capsys, *flags, "--lr", 0.1, 0.3, 0.2).out
    assert "held-out tenth of the training set): 0.3 30.00%, 0.2 20.00%, 0.1 10.00%" in printed
    all_training_texts = {f"good {number}" for number in range(10)}
    for train_texts, dev_texts in texts_of_runs[:3]:
        assert train_texts.isdisjoint(dev_texts)
        assert train_texts | dev_texts == all_training_texts
    assert texts_of_runs[3:] == [(all_training_texts, {"good 10"})]


def test_a_rate_that_diverges_is_not_chosen(tmp_path, out, sst2_flags, capsys):
    flags = sst2_flags + ["--steps", 3]
    printed = run(capsys, *flags, "--out", out, "--lr", "2e9", "1e-3").out
    assert re.search(r"--lr 2e\+09: step \d, ", printed)
    table = r"\(accuracy on a held-out tenth of the training set\): 0\.001 \d+\.\d\d%\n"
    assert re.search(table, printed)
    error = fail(capsys, *flags, "--out", tmp_path / "p", "--lr", "2e9", "1e9")
    assert "--lr: the training diverges with each of 2e+09, 1e+09" in error


def test_a_rate_whose_model_cannot_be_measured_is_not_chosen(
        out, sst2_flags, capsys, monkeypatch):
    original_predict_logits = finetune.predict_logits
    calls = []

    def predict_logits(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise FloatingPointError("what the model computes is not finite")
        return original_predict_logits(*arguments)

    monkeypatch.setattr(finetune, "predict_logits", predict_logits)
    printed = run(capsys, *sst2_flags, "--steps", 1, "--out", out, "--lr", "1e-2", "1e-3").out
    assert "--lr 0.01: what the model computes is not finite" in printed
    assert "set): 0.001 " in printed


def test_the_first_process_reads_the_task_first(out, sst2_flags, monkeypatch, capsys):
    """It may download the task or collect the documentation; the others find the result."""
    happened = note_first_process(monkeypatch, finetune, "read_datasets")
    run(capsys, *sst2_flags, "--steps", 1, "--out", out)
    assert happened == ["the first process begins", "read_datasets", "it has ended"]


def test_several_processes_stop_at_a_rate_that_diverges(monkeypatch):
    """The first process may have found it alone; the others would train on and wait for it."""
    def fine_tune(setup, splits, mode, seed, lr):
        raise FloatingPointError("step 2: the held-out loss is nan")

    monkeypatch.setattr(finetune, "fine_tune", fine_tune)
    task = make_task_of_kind("classification", ["x"])
    args = SimpleNamespace(lr=[0.5, 0.1], seed=0)
    setup = SimpleNamespace(task=task, processes=Processes(world_size=2), args=args)
    with pytest.raises(FloatingPointError, match="nan$"):
        finetune.find_best_rate(setup, "all", {})


def test_to_overwrite_removes_nothing_if_the_contexts_have_no_words(
        tmp_path, out, model, two_texts, capsys):
    run(capsys, *file_flags(model, "classification", two_texts), "--out", out, "--steps", 1)
    before = files_below(out)
    squad = make_squad([("who", [])], context="  ")
    train = write_file(tmp_path / "train.json", squad)
    flags = file_flags(model, "qa", train) + ["--out", out, "--steps", 1]
    error = fail(capsys, *flags, "--overwrite")
    assert "no example has a token that could be trained on" in error
    assert files_below(out) == before


def test_to_overwrite_removes_nothing_if_no_rate_can_be_chosen(out, model, two_texts, capsys):
    """A rate is chosen on examples that are held out, and of two classes neither can be spared."""
    flags = file_flags(model, "classification", two_texts) + ["--out", out, "--steps", 1]
    run(capsys, *flags)
    before = files_below(out)
    error = fail(capsys, *flags, "--lr", "1e-3", "1e-4", "--overwrite")
    assert "no more than one --lr" in error
    assert files_below(out) == before


def test_to_overwrite_removes_nothing_if_only_the_examples_held_out_for_a_rate_have_words(
        tmp_path, out, model, capsys):
    paragraphs = []
    for context in ("paris", ""):                        # by its hash the first one is held out
        questions = [{"id": context, "question": "who", "answers": []}]
        paragraphs.append({"context": context, "qas": questions})
    train = write_file(tmp_path / "t.json", squad_content(paragraphs))
    flags = file_flags(model, "qa", train) + ["--out", out, "--steps", 1]
    run(capsys, *flags)
    before = files_below(out)
    error = fail(capsys, *flags, "--lr", "1e-3", "1e-4", "--overwrite")
    assert "no example has a token that could be trained on" in error
    assert files_below(out) == before


def positive_probabilities_in_float32(folder, sentiment):
    """Predict the dev set with a saved model in float32, and list the probabilities of label 1."""
    tuned = load_classifier(str(folder))
    examples = read_glue("sst2", str(sentiment))["dev"]
    features = encode(tuned.task, examples, Tokenizer(str(folder)))
    predictions = decode(tuned.task, examples, features, predict_logits(tuned, features))
    return [probabilities["1"] for _, probabilities in predictions]


def test_bfloat16_trains_and_predicts_near_float32_but_not_alike(
        tmp_path, sentiment, sst2_flags, capsys):
    flags = sst2_flags + ["--steps", 9, "--log-every", 1]
    losses = {}
    for name, more in (("whole", []), ("half", ["--bf16"])):
        folder = tmp_path / name
        run(capsys, *flags, *more, "--out", folder)
        losses[name] = [line["loss"] for line in read_only_log(folder)]
        lines = read_json_lines(folder / "dev.jsonl")
        written = [line["probabilities"]["1"] for line in lines]
        exact = positive_probabilities_in_float32(folder, sentiment)
        assert exact == pytest.approx(written, abs=0.01)
        are_same = exact == pytest.approx(written, abs=1e-6)
        assert are_same == (name == "whole")
    assert losses["whole"] == pytest.approx(losses["half"], rel=0.01)
    assert losses["whole"][0] != losses["half"][0]       # no step had been made yet
    error = fail(capsys, *flags, "--out", tmp_path / "half", "--resume")
    assert "bf16 was True, now it is False" in error


@pytest.mark.parametrize("more", [[], ["--adapters-only"]])
def test_a_run_that_was_stopped_and_resumed_ends_bit_for_bit_as_one_that_was_not(
        more, tmp_path, sst2_flags, capsys, monkeypatch):
    """Two seeds of nine steps: a signal comes amid the first, in its last step and amid the
    second."""
    whole = tmp_path / "whole"
    parts = tmp_path / "parts"
    flags = sst2_flags + ["--epochs", 4.5, "--lr", "1e-2", "--seeds", 2, "--dropout", 0.1] + more
    run(capsys, *flags, "--out", whole)
    original_batch = TaskLoss.batch
    stops = [(0, 3), (0, 8), (1, 4)]                     # (seed, step)
    asked = []

    def batch_and_stop(self, step):
        asked.append((self.seed, step))
        if (self.seed, step) in stops:
            os.kill(os.getpid(), signal.SIGTERM)
        return original_batch(self, step)

    monkeypatch.setattr(TaskLoss, "batch", batch_and_stop)
    for how in ([], ["--resume"], ["--resume"]):
        with pytest.raises(SystemExit) as stop:
            run(capsys, *flags, "--out", parts, *how)
        assert stop.value.code == 128 + signal.SIGTERM
    run(capsys, *flags, "--out", parts, "--resume")
    expected = []                                        # no step is made twice
    for seed in (0, 1):
        for step in range(9):
            expected.append((seed, step))
    assert asked == expected
    assert_same_files(("model.safetensors", "head.safetensors", "dev.jsonl"), whole, parts)


def accuracy_of_teacher(printed):
    """Find the accuracy of the teacher, in percent, in what a run prints."""
    line = re.search(r"^teacher .*: accuracy ([\d.]+)%$", printed, re.M)
    return float(line[1])


def test_a_teacher_is_measured_and_its_hidden_states_make_the_default_rate_three_times_as_high(
        tmp_path, out, sst2_flags, capsys):
    teacher = tmp_path / "teacher"
    run(capsys, *sst2_flags, "--steps", 40, "--lr", "1e-2", "--out", teacher)
    flags = sst2_flags + ["--steps", 3, "--distill-from", teacher]
    printed = run(capsys, *flags, "--out", out).out
    assert accuracy_of_teacher(printed) > 95
    path, = out.glob("*/log.jsonl")
    assert "-lr0.0048-" in path.parent.name              # 1.5e-4 * 768 / 24
    last_line = read_json_lines(path)[-1]
    loss = last_line["task"] + last_line["distill"] + 3 * last_line["hidden"]
    assert last_line["loss"] == pytest.approx(loss, rel=1e-4)
    without = tmp_path / "without"
    run(capsys, *flags, "--hidden-weight", 0, "--out", without)
    path, = without.glob("*/log.jsonl")
    assert "-lr0.0016-" in path.parent.name
    assert "hidden" not in read_json_lines(path)[-1]


def test_what_a_terminal_would_obey_is_not_printed_in_a_prediction():
    tagging = make_task_of_kind("tagging", ["O", "B-x", "I-x"])
    tags = Prediction(["B-x", "I-x", "I-x"], {})         # of a, the unprintable character, b
    assert finetune.describe_prediction(tagging, "a\x1bb c", tags) == r"a\x1bb (x)"
    tags = Prediction(["B-\x1b"], {})
    assert finetune.describe_prediction(tagging, "a", tags) == r"a (\x1b)"
    classification = make_task_of_kind("classification", ["\x1b", "x"])
    label = Prediction("\x1b", {"\x1b": 1.0})
    assert finetune.describe_prediction(classification, "a", label) == r"\x1b 100.0%"
    qa = make_task_of_kind("qa", [])
    answer = Prediction("10\u00a0km\n\x07", {})
    assert finetune.describe_prediction(qa, "", answer) == "10\u00a0km\\n\\x07"


@pytest.mark.parametrize("text, tags, expected", [
    ("see the  big  city .", ["O", "B-x", "I-x", "I-x", "O"], "the  big  city (x)"),
    ("IL-2 (low) and non-Hodgkin's", ["B-x", "I-x", "I-x", "O", "B-y", "O", "O"] + ["B-x"] * 5,
     "IL-2 (x), low (y), non (x), - (x), Hodgkin (x), ' (x), s (x)"),
    ("\u8bca\u65ad\u4e3a\u80ba\u708e\u3002", ["O", "O", "O", "B-x", "I-x", "O"],
     "\u80ba\u708e (x)"),
    ("no thing", ["O", "O"], "no entity"),
])
def test_an_entity_is_printed_as_it_stands_in_the_text(text, tags, expected):
    task = make_task_of_kind("tagging", ["O", "B-x", "I-x", "B-y"])
    assert finetune.describe_prediction(task, text, Prediction(tags, {})) == expected


@pytest.mark.parametrize("words, tags, numbers", [
    (["a", "b"], ["O"], "2 and 1"), (["a"], ["O", "O"], "1 and 2")])
def test_each_word_must_have_a_tag(words, tags, numbers, tokenizer):
    task = make_task_of_kind("tagging")
    example = Example(words, None, tags, "", "here")
    with pytest.raises(ValueError, match=f"^here, .*: words and tags are not .*: {numbers}$"):
        list(finetune.encode(task, [example], tokenizer))


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_label_of_a_regression_must_be_a_number(number, tokenizer):
    """In a batch nan stands for no label, so this one would be left out without a word."""
    task = make_task_of_kind("regression")
    with pytest.raises(ValueError, match=f"^here, 'a': the number is {number}$"):
        finetune.encode(task, [Example("a", None, number, "", "here")], tokenizer)


@pytest.mark.parametrize("not_a_text", [("a", "b"), ["a", "b"], 3])
def test_only_texts_can_be_classified(not_a_text, tokenizer):
    """The library would take a tuple or a list of two texts for a pair, and join them."""
    task = make_task_of_kind("classification", pair=True)
    for example in (Example(not_a_text, "c", "x"), Example("c", not_a_text, "x")):
        with pytest.raises(ValueError, match=" is not a text$"):
            list(finetune.encode(task, [example], tokenizer))


@pytest.mark.parametrize("not_a_text", [("a", "b"), ["a", "b"], 3])
def test_only_a_text_can_be_a_context(not_a_text, tokenizer):
    task = make_task_of_kind("qa")
    with pytest.raises(ValueError, match=" is not a text$"):
        list(finetune.encode(task, [Example("who", not_a_text, [])], tokenizer))


LONG_TEXTS = {
    "short": "the good city",
    "long": "the good city is not very bad . " * 100,
    "spaces": "the" + " " * 5000 + "city " * 300,
    "a word of 5,000 letters": "a" * 5000 + " city" * 300,
    # The beginning ends inside this word. Its 50 letters there are 50 tokens, all 150 are [UNK].
    "a word that is cut": "the" + " " * 2427 + "z" * 150 + " city" * 300,
}


@pytest.mark.parametrize("text", LONG_TEXTS.values(), ids=LONG_TEXTS)
def test_of_a_long_text_only_the_beginning_is_tokenised(text, tokenizer):
    """The tokens that a sequence has room for are the same as those of the whole text."""
    length = 24
    encoding, = finetune.tokenise_beginnings([text], length, tokenizer)
    whole, = tokenizer.encode([text])
    assert encoding.ids[:length] == whole[:length]
    assert (len(encoding.ids) > length) == (len(whole) > length)


def test_a_context_of_several_questions_is_tokenised_once(tokenizer):
    task = make_task_of_kind("qa", length=24, stride=128)
    contexts = ["the red city.", "john lives in paris.", "the red city."]
    examples = [make_text_example("who", [], context) for context in contexts]
    (_, first), (_, second), (_, third) = finetune.tokenise_texts(task, examples, tokenizer)
    assert first is third
    assert [first.ids, second.ids] == tokenizer.encode(contexts[:2])


def test_how_much_of_a_long_text_is_tokenised_depends_on_the_longest_word(tokenizer):
    """A word of 450 letters is one [UNK] here, but its first 400 letters would be 400 tokens."""
    other = Tokenizer(tokenizer.path)
    vocabulary = other.backend.get_vocab()
    other.backend.model = tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]",
                                                      max_input_chars_per_word=400)
    text = "the" + " " * 2077 + "z" * 450 + " city" * 300
    encoding, = finetune.tokenise_beginnings([text], 24, other)
    assert encoding.ids == other.encode([text])[0]
    assert other.unk_id in encoding.ids
    # BPE has no longest word. Its merges join the letters of a word from its beginning to its end.
    other.backend.model = tokenizers.models.BPE(vocabulary, [], unk_token="[UNK]")
    encoding, = finetune.tokenise_beginnings([text], 24, other)
    assert encoding.ids == other.encode([text])[0]


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("pair", [False, True])
def test_the_rest_of_a_long_text_is_not_tokenised(kind, pair, tokenizer):
    """For a sequence of 24 tokens 2,480 characters are tokenised, which are 620 tokens here."""
    task = make_task_of_kind(kind, pair=pair)
    text = "the " * 10_000
    example = Example(text)
    if pair:
        example = Example(text, text)
    (first_ids, encoding), = finetune.tokenise_texts(task, [example], tokenizer)
    assert len(encoding.ids) == 620
    if pair:
        assert len(first_ids) == 620


def test_a_teacher_is_measured_on_the_dev_set(tmp_path, out, sst2_flags, sentiment, capsys):
    """It is right about the training set. In the dev set all labels are turned round."""
    teacher = tmp_path / "teacher"
    run(capsys, *sst2_flags, "--out", teacher, "--steps", 60, "--lr", 1e-2)
    header, *rows = (sentiment / "dev.tsv").read_text().splitlines()
    lines = [header]
    for row in rows:
        text, label = row.split("\t")
        wrong_label = 1 - int(label)
        lines.append(f"{text}\t{wrong_label}")
    (sentiment / "dev.tsv").write_text("\n".join(lines) + "\n")
    printed = run(capsys, *sst2_flags, "--out", out, "--steps", 1, "--distill-from", teacher).out
    assert accuracy_of_teacher(printed) < 5


def test_a_model_of_a_glue_task_is_only_measured_on_its_files(out, sst2_flags, capsys):
    run(capsys, *sst2_flags, "--steps", 1, "--out", out)
    error = fail(capsys, "--evaluate", "--model", out, "--dev", "x.tsv")
    assert "--dev: the task sst2 does not use it" in error


def test_a_teacher_of_another_tokenizer_is_refused(
        tmp_path, out, sst2_flags, tokenizer, capsys):
    task = make_task_of_kind("classification", ["0", "1"])
    teacher = tmp_path / "teacher"
    save_random_classifier(teacher, task, tokenizer)
    rename_token(teacher, "film", "movie")
    error = fail(capsys, *sst2_flags, "--distill-from", teacher, "--out", out)
    assert f"--distill-from {teacher}: its tokenizer differs" in error


def test_a_teacher_of_another_task_of_glue_is_refused(
        tmp_path, out, sst2_flags, tokenizer, capsys):
    """Its labels have the same names, but another meaning."""
    task = make_task_of_kind("classification", ["0", "1"], name="cola")
    teacher = tmp_path / "teacher"
    save_random_classifier(teacher, task, tokenizer)
    error = fail(capsys, *sst2_flags, "--distill-from", teacher, "--out", out)
    assert f"--distill-from {teacher} was fine-tuned for cola, not for sst2" in error


def test_a_teacher_with_fewer_positions_is_refused_before_the_training(
        tmp_path, out, sst2_flags, tokenizer, capsys):
    task = make_task_of_kind("classification", ["0", "1"], name="sst2", length=9)
    teacher = tmp_path / "teacher"
    save_random_classifier(teacher, task, tokenizer, max_position_embeddings=9)
    error = fail(capsys, *sst2_flags, "--length", 16, "--distill-from", teacher, "--out", out)
    assert error.endswith("positions, but the task's length is 16; say --length 9\n")


def test_a_task_with_longer_sequences_than_the_model_allows_is_refused(tmp_path, tokenizer):
    task = make_task_of_kind("classification", length=24)
    save_random_classifier(tmp_path / "long", task, tokenizer, max_position_embeddings=24)
    load_classifier(tmp_path / "long")
    save_random_classifier(tmp_path / "short", task, tokenizer, max_position_embeddings=23)
    with pytest.raises(ValueError, match="short: the model has 23 positions, but the task's leng"):
        load_classifier(tmp_path / "short")


def test_both_dev_sets_of_mnli_are_reported_and_its_test_sets_written(
        tmp_path, out, model, capsys):
    folder = tmp_path / "mnli"
    with_labels = "index\tsentence1\tsentence2\tgold_label\n"
    without_labels = "index\tsentence1\tsentence2\n"
    for i, label in enumerate(["neutral", "entailment", "contradiction"]):
        with_labels += f"{i}\tgood\tbad\t{label}\n"
        without_labels += f"{i}\tgood\tbad\n"
    for split in ("train", "dev_matched", "dev_mismatched"):
        write_file(folder / f"{split}.tsv", with_labels)
    for split in ("test_matched", "test_mismatched"):
        write_file(folder / f"{split}.tsv", without_labels)
    flags = ["--model", model, "--task", "mnli", "--data", folder]
    printed = run(capsys, *flags, "--steps", 1, "--out", out).out
    for split in ("dev_matched", "dev_mismatched"):
        assert percent(printed, "all", split, "accuracy") >= 0
        assert percent(printed, "majority", split, "accuracy") == pytest.approx(33.33)
    for name in ("MNLI-m.tsv", "MNLI-mm.tsv"):
        written = (out / name).read_text()
        assert re.fullmatch(r"index\tprediction\n0\t\w+\n1\t\w+\n2\t\w+\n", written)


@pytest.mark.parametrize("flags", [
    [], ["--task", "classification", "--train", "a.tsv"], ["--model", "nowhere"]])
def test_if_distill_py_has_not_been_run_it_is_named(flags, tmp_path, monkeypatch, capsys):
    """Without --model or --task its student is tuned. Nothing is looked for on the hub."""
    monkeypatch.chdir(tmp_path)
    error = fail(capsys, *flags)
    assert ": there is no such folder. Run python distill.py first" in error
    assert list(tmp_path.iterdir()) == []


def rows_of_table(printed):
    """List the first words of the rows with f1 in the table that a run prints."""
    rows = [line for line in printed.splitlines() if " f1 " in line]
    return [row.split()[0] for row in rows]


def test_the_default_run_tunes_all_parameters_then_adapters_alone_then_a_random_model(
        tmp_path, model, documentation, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = run(capsys, "--model", model, "--steps", 2).out
    assert rows_of_table(printed) == ["majority", "all", "adapters", "random"]
    folder = tmp_path / "out/code"
    states = {}
    rates = {}
    paths = list(folder.glob("*/training.safetensors"))
    assert len(paths) == 3
    for path in paths:
        name = path.parent.name                          # such as all-104-lr0.0128-seed0
        mode = name.split("-")[0]
        rates[mode] = name.split("-lr")[1].split("-seed")[0]
        states[mode], _ = read_safetensors(path)
    # The model is 24 wide, so the rates are 32 times those of a model of 768.
    assert rates == {"adapters": "0.032", "all": "0.0128", "random": "0.0128"}
    # Of a random model all parameters are trained, too.
    assert states["random"].keys() == states["all"].keys()
    saved = load_classifier(str(folder))                 # it is the first one, "all"
    assert torch.equal(saved.output.weight, states["all"]["model.output.weight"])


def test_only_a_run_without_a_task_has_a_default_number_of_steps():
    """The run of a newcomer is short. Other numbers of steps follow from --epochs."""
    assert finetune.arguments([]).steps == 200
    assert finetune.arguments(["--steps", "9"]).steps == 9
    assert finetune.arguments(["--epochs", "2"]).steps is None
    assert finetune.arguments(["--task", "code"]).steps is None


def test_a_glue_task_without_a_folder_is_downloaded(out, model, sentiment, capsys, monkeypatch):
    asked = []

    def download(name):
        asked.append(name)
        return str(sentiment)

    monkeypatch.setattr(finetune, "download_glue", download)
    run(capsys, "--model", model, "--task", "sst2", "--steps", 1, "--out", out)
    assert asked == ["sst2"]


def test_a_fine_tuned_model_goes_on_with_its_own_head_and_refuses_other_labels(
        tmp_path, out, sst2_flags, sentiment, capsys):
    """With a rate of nearly 0 and a new head, its accuracy would be that of a guess."""
    run(capsys, *sst2_flags, "--steps", 40, "--lr", "1e-2", "--out", out)
    table = write_file(tmp_path / "o.csv", "text,label\na,yes\nb,no\n")
    error = fail(capsys, *file_flags(out, "classification", table), "--out", tmp_path / "b")
    assert "one text (0; 1), not for classification of one text (no; yes)" in error
    flags = ["--model", out, "--task", "sst2", "--data", sentiment, "--out", tmp_path / "c"]
    printed = run(capsys, *flags, "--steps", 1, "--lr", "1e-9", "--freeze").out
    assert percent(printed, "head", "dev", "accuracy") > 95


def test_a_fine_tuned_model_is_measured_and_predicts_in_bfloat16_if_it_is_said(
        tokenizer, tmp_path, two_texts, capsys, monkeypatch):
    task = make_task_of_kind("classification", ["x", "y"])
    save_random_classifier(tmp_path / "m", task, tokenizer)
    original_predict = finetune.predict_logits
    dtypes = []

    def predict_and_note(*others):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        dtypes.append(product.dtype)
        return original_predict(*others)

    monkeypatch.setattr(finetune, "predict_logits", predict_and_note)
    for what in (["--predict", "good"], ["--evaluate", "--dev", two_texts]):
        flags = ["--model", tmp_path / "m", "--device", "cpu"] + what
        for more in ([], ["--bf16"], ["--no-bf16"]):
            run(capsys, *flags, *more)
    assert dtypes == [torch.float32, torch.bfloat16, torch.float32] * 2


def test_the_results_have_the_scores_of_all_seeds_and_the_details_of_the_first(tmp_path):
    task = make_task_of_kind("classification", ["x", "y"])
    examples = [make_text_example("good", label) for label in "xxy"]
    results_of_seeds = []
    guesses_of_seeds = [("xyy", 2 / 3), ("yyy", 1 / 3)]
    for guesses, accuracy in guesses_of_seeds:
        predictions = [Prediction(guess, {}) for guess in guesses]
        result = finetune.Result({"accuracy": accuracy}, predictions)
        results_of_seeds.append({"dev": result})
    args = finetune.arguments(["--task", "classification", "--train", "x", "--model", "m",
                               "--seed", "3", "--seeds", "2", "--out", str(tmp_path)])
    baseline = {"dev": finetune.Result({"accuracy": 0.5}, [])}
    finetune.write_results(args, task, {"dev": examples}, baseline, {"head": 1e-3},
                           {"head": results_of_seeds})
    details = {
        "x": {"precision": 1.0, "recall": 1 / 2, "f1": 2 / 3, "count": 2},
        "y": {"precision": 1 / 2, "recall": 1.0, "f1": 2 / 3, "count": 1},
    }
    dev = {"scores": [{"accuracy": 2 / 3}, {"accuracy": 1 / 3}], "details": details}
    assert read_json(tmp_path / "results.json") == {
        "task": "classification", "kind": "classification", "model": "m", "seeds": [3, 4],
        "lr": {"head": 1e-3}, "majority": {"dev": {"accuracy": 0.5}},
        "modes": {"head": {"dev": dev}}}


def test_a_model_is_tuned_with_its_first_recursions_and_saved_so(
        tmp_path, out, model, sst2_flags, capsys):
    flags = sst2_flags + ["--lr", "1e-2", "--steps", 40]
    printed = run(capsys, *flags, "--recursions", 1, "--out", out).out
    assert percent(printed, "all", "dev", "accuracy") > 95
    assert load(str(out)).config.num_hidden_layers == 1
    assert load(model).config.num_hidden_layers == 2
    error = fail(capsys, *flags, "--out", out, "--resume")
    assert "recursions" in error
    error = fail(capsys, *flags, "--recursions", 3, "--out", tmp_path / "p")
    assert "the model has 2 recursions, so 3 of them cannot be kept" in error
    assert not (tmp_path / "p").exists()


def test_a_fine_tuned_model_predicts_with_fewer_recursions(out, sst2_flags, sentiment, capsys):
    run(capsys, *sst2_flags, "--steps", 12, "--lr", "1e-2", "--out", out)
    predict = ["--model", out, "--predict", "the film"]
    with_all = run(capsys, *predict).out
    with_two = run(capsys, *predict, "--recursions", 2).out
    with_one = run(capsys, *predict, "--recursions", 1).out
    assert with_two == with_all
    assert with_one != with_all
    classifier = load_classifier(str(out), recursions=1)
    assert classifier.encoder.config.num_hidden_layers == 1
    evaluate = ["--model", out, "--evaluate", "--task", "sst2", "--data", sentiment]
    # The last one names the kind of the task instead of the task.
    for more in ([], ["--recursions", 1], ["--task", "classification"]):
        printed = run(capsys, *evaluate, *more).out
        assert re.match(r"model +dev +accuracy ", printed)


def flag_of(name):
    """Return the flag whose value is in args.name."""
    if name == "modes":                                  # --freeze sets it, too
        return "--adapters-only"
    return "--" + name.replace("_", "-")


def test_help_names_each_flag_with_its_default(capsys):
    args = finetune.arguments(["--evaluate"])            # with other flags it has more entries
    defaults = {flag_of(name): value for name, value in vars(args).items()}
    assert_help_names_flags(printed_help(capsys, finetune.main), defaults)


def test_help_names_each_default_rate_and_weight(capsys):
    printed = printed_help(capsys, finetune.main)
    help_of_lr = re.search(r"--lr X.*?\((default, each .*?)\)", printed)[1]
    named_rates = {float(number) for number in re.findall(r"[0-9.]+e-[0-9]", help_of_lr)}
    rates = set()
    for mode in finetune.MODES:
        for correction_rank in (0, 8):
            config = Config(hidden_size=768, correction_rank=correction_rank)
            for without_task in (False, True):
                for learns_hidden in (False, True):
                    rates.add(default_rate(mode, config, without_task, learns_hidden))
    assert rates == named_rates
    help_of_weight = re.search(r"--hidden-weight W.*?\(default: ([0-9.]+)", printed)
    assert float(help_of_weight[1]) == finetune.DEFAULT_HIDDEN_WEIGHT


# The flags that may stand beside --predict or --evaluate. All others are for a training.
ALLOWED_FLAGS = {
    "--predict": {"--predict", "--model", "--recursions", "--device", "--bf16", "--out",
                  "--overwrite"},
    "--evaluate": {"--evaluate", "--model", "--recursions", "--task", "--data", "--dev", "--test",
                   "--text", "--label", "--device", "--bf16"},
}


def all_flags_with_values():
    """List what may be given on the command line: {flag: the words after it}."""
    # A flag that does not take "8", such as one with choices, needs a value here.
    values = {"task": "code", "data": "x", "train": "x", "dev": "x", "test": "x", "out": "x",
              "distill_from": "x", "dropout": "0.5", "predict": "x", "model": "x"}
    flags = {"--adapters-only": [], "--freeze": []}
    args = finetune.arguments(["--evaluate"])
    for name, usual_value in vars(args).items():
        if name == "modes":                              # its two flags are in the dict already
            continue
        is_switch = type(usual_value) is bool or name == "bf16"
        if is_switch:
            flags[flag_of(name)] = []
        else:
            flags[flag_of(name)] = [values.get(name, "8")]
    return flags


@pytest.mark.parametrize("mode", ALLOWED_FLAGS)
def test_to_predict_or_evaluate_refuses_the_flags_of_a_training(mode):
    given = [mode]
    if mode == "--predict":
        given.append("good")
    flags = all_flags_with_values()
    refused = set(flags) - ALLOWED_FLAGS[mode]
    assert len(refused) > 20
    for flag in refused - set(ALLOWED_FLAGS):            # the two modes exclude each other
        words = given + [flag] + flags[flag]
        with pytest.raises(ValueError, match=f"{flag}: {mode} trains nothing"):
            finetune.arguments(words)
    with pytest.raises(ValueError, match="--evaluate|--predict"):
        finetune.arguments(["--predict", "x", "--evaluate"])


def test_a_question_without_an_answer_is_told(tokenizer, tmp_path, capsys):
    task = make_task_of_kind("qa", unanswerable=True)
    classifier = make_classifier(tokenizer, task)
    with torch.no_grad():                                # all places are alike, and [CLS] is best
        classifier.output.weight.zero_()
        classifier.output.bias.zero_()
    save_classifier(str(tmp_path / "m"), classifier, tokenizer)
    texts = write_file(tmp_path / "texts.txt", "who\t\n \nwho\tgood city\n")
    printed = run(capsys, "--model", tmp_path / "m", "--predict", texts).out
    assert printed == "no answer\n\ngood\n"              # the first context has no tokens


def test_a_flag_of_several_values_may_be_given_again():
    args = finetune.arguments(["--task", "classification", "--train", "a.csv", "--text", "one",
                               "--text", "two", "--lr", "1e-4", "--lr", "2e-4"])
    assert args.text == ["one", "two"]
    assert args.lr == [1e-4, 2e-4]
    assert finetune.arguments([]).text == ["text"]


def test_a_file_of_words_and_tags_is_not_taken_for_sentences():
    finetune.check_are_sentences("a.txt", ["EU B-ORG"])  # one line may be a sentence
    finetune.check_are_sentences("a.txt", ["EU rejects", "the blood type O"])
    for tags in (["O", "B-ORG"], ["NN O", "NNP B-ORG"], ["O", "I"]):
        lines = [f"word {tag}" for tag in tags]
        with pytest.raises(ValueError, match="a.txt: each line has a word and a tag, but here"):
            finetune.check_are_sentences("a.txt", lines)


def test_a_tagger_does_not_predict_for_a_file_of_words_and_tags(tokenizer, tmp_path, capsys):
    task = make_task_of_kind("tagging", LABELS["tagging"])
    save_random_classifier(tmp_path / "m", task, tokenizer)
    texts = write_file(tmp_path / "a.txt", "good B-x\n\nfilm O\n")
    error = fail(capsys, "--model", tmp_path / "m", "--predict", texts)
    assert f"--predict {texts}: each line has a word and a tag" in error


@pytest.mark.parametrize("text", ["good.txt", "a/b.tsv", "x.csv", "x.json", "x.jsonl", "x.CSV",
                                  "notes.md", "lines.txt.gz", "/nowhere/lines", "-", "a.xlsx",
                                  "a.parquet", "a.conll"])
def test_a_file_that_is_not_there_is_no_text(text):
    """A mistyped name must not be classified as if it were a text. Amid other words it may be."""
    with pytest.raises(ValueError, match=f"--predict {text}: there is no such file"):
        finetune.lines_to_predict(text)
    assert finetune.lines_to_predict(f"see {text}") == [("--predict", f"see {text}")]


def test_a_label_is_shown_without_what_a_terminal_would_obey():
    assert finetune.printable("C:\\x é 中") == "C:\\x é 中"
    assert finetune.printable("a\x1b[2J\nb\u2028'\"") == "a\\x1b[2J\\nb\\u2028'\""
    # Persian and an emoji have joiners, German a soft hyphen, Hebrew a mark of its direction.
    for text in ("\u0645\u06cc\u200c\u062e", "\U0001f469\u200d\U0001f4bb", "Donau\u00adschiff",
                 "\u05d0\u05dc\u200f"):
        assert finetune.printable(text) == text


def test_half_a_character_on_the_command_line_is_no_error(tokenizer, tmp_path, capsys):
    task = make_task_of_kind("classification", ["x", "y"])
    save_random_classifier(tmp_path, task, tokenizer)
    printed = run(capsys, "--model", tmp_path, "--predict", "good \udcff").out
    assert "%" in printed


def test_it_is_said_that_a_head_is_trained_on(tmp_path, out, tokenizer, model, capsys):
    table = write_file(tmp_path / "t.tsv", "text\tlabel\ngood film\t1\nbad film\t0\n")
    task = make_task_of_kind("classification", ["0", "1"])
    fine_tuned = tmp_path / "m"
    save_random_classifier(fine_tuned, task, tokenizer)
    more = ["--steps", 1, "--out", out, "--overwrite"]
    printed = run(capsys, *file_flags(fine_tuned, "classification", table), *more).out
    message = "was fine-tuned for classification already: training goes on with its head, unless"
    assert f"{fine_tuned} {message}" in printed
    printed = run(capsys, *file_flags(model, "classification", table), *more).out
    assert "already" not in printed


def test_it_is_said_how_many_questions_were_cut(tmp_path, out, model, capsys):
    """Of 8 tokens three are [CLS] and two [SEP], and a third of the others is for the question."""
    squad = make_squad([("who", ["john"]), ("where is", ["paris"])])
    questions = write_file(tmp_path / "a.json", squad)
    flags = file_flags(model, "qa", questions) + ["--steps", 1, "--length", 8, "--out", out]
    warned = run(capsys, *flags).err
    message = "in 1 of 2 examples a text is too long for --length 8 and was cut\n"
    assert f"warning: train: {message}" in warned
    assert f"warning: dev: {message}" in warned
    warned = run(capsys, "--model", out, "--evaluate", "--dev", questions).err
    assert f"warning: dev: {message}" in warned
    predict = ["--model", out, "--predict"]
    warned = run(capsys, *predict, questions, "--out", tmp_path / "answers.json").err
    assert f"warning: --predict: {message}" in warned
    warned = run(capsys, *predict, "where is\tjohn lives in paris").err
    assert "warning: --predict: in 1 of 1 examples a text is too long" in warned
    warned = run(capsys, *predict, "who\tjohn lives in paris").err
    assert warned == ""


def test_answers_are_not_written_into_the_folder_of_the_model(tmp_path, qa_model, capsys):
    """One of its own files could be replaced, and it could not be loaded again."""
    questions = write_two_questions(tmp_path / "questions.json")
    path = qa_model / "task.json"
    error = fail(capsys, "--model", qa_model, "--predict", questions, "--out", path, "--overwrite")
    assert f"--out {path}: the model is in this folder" in error
    run(capsys, "--model", qa_model, "--predict", "who\tjohn lives in paris")


def test_it_is_said_how_many_texts_were_cut(tmp_path, out, model, capsys):
    rows = ""
    for num_words, label in ((3, 1), (6, 0), (7, 1), (20, 0)):
        rows += "good " * num_words + f"\t{label}\n"
    table = write_file(tmp_path / "t.tsv", "text\tlabel\n" + rows)
    flags = file_flags(model, "classification", table) + ["--steps", 1, "--length", 8]
    warned = run(capsys, *flags, "--out", out).err
    message = "in 2 of 4 examples a text is too long for --length 8 and was cut\n"
    assert f"warning: train: {message}" in warned
    assert f"warning: dev: {message}" in warned
    warned = run(capsys, "--model", out, "--evaluate", "--test", table).err
    assert f"warning: test: {message}" in warned
    warned = run(capsys, "--model", out, "--predict", "good " * 7).err
    assert "warning: --predict: in 1 of 1 examples a text is too long for --length 8" in warned
    warned = run(capsys, "--model", out, "--predict", "good " * 6).err
    assert warned == ""


def test_a_text_of_unknown_tokens_is_predicted_with_a_warning(tokenizer, tmp_path, out, capsys):
    task = make_task_of_kind("classification", ["x", "y"])
    save_random_classifier(out, task, tokenizer)
    lines = ["good", "", "привет привет good", "привет good"]
    texts = write_file(tmp_path / "t.txt", "\n".join(lines) + "\n")
    printed = run(capsys, "--model", out, "--predict", texts)
    assert printed.err.startswith("warning: --predict: 60% of the characters become [UNK] with "
                                  f"the tokenizer in {out}. Perhaps")
    assert printed.out.count("%") == 6                   # two labels of each of three texts
    table = write_file(tmp_path / "t.tsv", "text\tlabel\nпривет привет good\tx\n")
    warned = run(capsys, "--model", out, "--evaluate", "--test", table).err
    assert "warning: test: 75% of the characters become [UNK]" in warned


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_the_first_one_predicts(
        rank, tokenizer, tmp_path, capsys, monkeypatch):
    task = make_task_of_kind("classification", ["x", "y"])
    save_random_classifier(tmp_path, task, tokenizer)

    def set_up_processes(device):
        return Processes(rank, rank, 2, torch.device("cpu"))

    monkeypatch.setattr(finetune, "set_up_processes", set_up_processes)
    printed = run(capsys, "--model", tmp_path, "--predict", "good").out
    has_predicted = "%" in printed
    assert has_predicted == (rank == 0)


def test_results_are_written_before_the_table_is_printed(
        tmp_path, sst2_flags, capsys, monkeypatch):
    """If the output is piped into a command that ends early, the results must not be lost. The
    command for a prediction, which is printed last, can be copied: the name has its quotes."""
    monkeypatch.chdir(tmp_path)
    written = []

    def print_scores(name, results_of_seeds):
        written.append(os.path.isfile("two words/results.json"))

    monkeypatch.setattr(finetune, "print_scores", print_scores)
    printed = run(capsys, *sst2_flags, "--steps", 1, "--out", "two words").out
    assert written == [True, True]                       # for "majority" and for the mode "all"
    assert "python finetune.py --model 'two words' --predict TEXT" in printed


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(out, model, sst2_flags, capsys):
    with open(os.path.join(model, "vocab.txt"), "a") as file:
        file.write("\nmovie")
    error = fail(capsys, *sst2_flags, "--out", out)
    assert re.search(r"its tokenizer has (\d+) tokens, the model only (\d+)", error)


def test_text_of_another_language_is_refused(tmp_path, out, model, capsys):
    table = write_file(tmp_path / "t.tsv", "text\tlabel\nпривет\tx\nпривет\ty\n")
    error = fail(capsys, *file_flags(model, "classification", table), "--steps", 1, "--out", out)
    assert f"100% of the characters become [UNK] with the tokenizer in {model}" in error
