"""tasks.py: its metrics against published definitions, its readers, downloads, what is held out."""
import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import re
import string
import threading
import warnings
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

import tasks
from checkpoint import files_of_run
from conftest import make_squad, make_task_of_kind, write_documentation, write_file
from tasks import (GLUE, Example, Task, answer_scores, classification_scores, detailed_scores,
                   entities, entity_scores, hold_out_a_tenth, iob2, lines_of, majority, make_task,
                   read_code_task, read_glue, read_own_files, read_squad, read_table, read_tags,
                   regression_scores, score, write_predictions)


def text_example(text, label, second_text=None, location="a:1"):
    return Example(text, second_text, label, "0", location)


def texts_and_label(example):
    return (example.text, example.second_text, example.label)


def texts_of(examples):
    return [example.text for example in examples]


def second_texts_of(examples):
    return {example.second_text for example in examples}


def labels_of(examples):
    return [example.label for example in examples]


def write_json(path, content):
    return write_file(path, json.dumps(content))


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- What is known about a task ---------------------------------------------------------

@pytest.mark.parametrize("kind, change, message", [
    ("qa", {"name": 3}, "name is 3, not str"),
    ("qa", {"labels": "ab"}, "labels is 'ab', not list"),
    ("qa", {"length": True}, "length is True, not int"),
    ("qa", {"length": 16.0}, "length is 16.0, not int"),
    ("qa", {"unanswerable": 1}, "unanswerable is 1, not bool"),
    ("qa", {"mean": True}, "mean is True, not float"),
    ("qa", {"mean": "0"}, "mean is '0', not float"),
    ("qa", {"length": 7}, "^length 7 is below 8$"),
    ("classification", {"labels": [3]}, "labels has 3, but a label must be a text"),
    ("tagging", {"kind": "tags"}, "kind is 'tags', not one of classification, regression"),
    ("tagging", {"metrics": []}, "metrics is empty"),
    ("tagging", {"metrics": ["f1", "accuracy"]},
     "metrics has 'accuracy', which is none of a task of kind tagging: precision, recall, f1"),
    ("qa", {"metrics": [["f1"]]}, r"metrics has \['f1'\], which is none of a task of kind qa"),
])
def test_a_task_with_a_wrong_field_is_refused(kind, change, message):
    task = make_task_of_kind(kind)
    with pytest.raises(ValueError, match=message):
        replace(task, **change)


def test_a_task_may_have_a_whole_number_as_mean_and_an_empty_class():
    task = make_task_of_kind("regression", mean=3, sd=2)
    assert task.mean == 3
    task = make_task_of_kind("classification", ["", "x"])
    assert task.labels == ["", "x"]


# ---- Metrics ----------------------------------------------------------------------------

@pytest.fixture
def no_warnings():
    """Silence the oracles, which warn of what they divide by zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_classification_scores_are_those_of_scikit_learn(no_warnings):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = random.Random(0)
    for _ in range(30):
        num_labels = rng.choice([1, 2, 2, 4])            # two labels are the most usual case
        labels = ["0", "1", "two", "x y"][:num_labels]
        size = rng.randint(1, 12)
        gold = rng.choices(labels, k=size)
        guesses = rng.choices(labels, k=size)
        gold_is_1 = [label == "1" for label in gold]
        guess_is_1 = [label == "1" for label in guesses]
        expected = {
            "accuracy": metrics.accuracy_score(gold, guesses),
            "f1": metrics.f1_score(gold_is_1, guess_is_1, zero_division=0),
            "macro_f1": metrics.f1_score(gold, guesses, average="macro"),
            "matthews": metrics.matthews_corrcoef(gold_is_1, guess_is_1),
        }
        found = classification_scores(gold, guesses)
        assert found == pytest.approx(expected, abs=1e-9), (gold, guesses)


def test_correlations_are_those_of_scipy_and_0_for_a_constant():
    """The numbers are few and far from 0: so there are ties, and rounding could be seen."""
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for _ in range(200):
        size = rng.integers(2, 12)
        gold = rng.integers(0, 5, size) / 3 + 1000.0
        guesses = rng.integers(0, 5, size) / 3 + 1000.0
        is_constant = len(set(gold)) == 1 or len(set(guesses)) == 1
        if is_constant:
            expected = {"pearson": 0.0, "spearman": 0.0}
        else:
            pearson, _ = stats.pearsonr(gold, guesses)
            spearman, _ = stats.spearmanr(gold, guesses)
            expected = {"pearson": pearson, "spearman": spearman}
        scores = regression_scores(gold.tolist(), guesses.tolist())
        assert scores == pytest.approx(expected, abs=1e-9), (gold, guesses)


def random_tags(rng, tags):
    """Draw the right tags and the guessed tags of one to three sentences of up to 7 words."""
    gold = []
    guesses = []
    for _ in range(rng.randint(1, 3)):
        num_words = rng.randint(1, 7)
        gold.append(rng.choices(tags, k=num_words))
        guesses.append(rng.choices(tags, k=num_words))
    return gold, guesses


def test_entity_scores_are_those_of_seqeval(no_warnings):
    seqeval = pytest.importorskip("seqeval.metrics")
    rng = random.Random(0)
    for _ in range(300):
        gold, guesses = random_tags(rng, ["O", "O", "B-x", "I-x", "B-y", "I-y"])
        expected = {
            "f1": seqeval.f1_score(gold, guesses),
            "precision": seqeval.precision_score(gold, guesses),
            "recall": seqeval.recall_score(gold, guesses),
        }
        assert entity_scores(gold, guesses) == pytest.approx(expected), (gold, guesses)


def published_words(answer):
    """Normalise an answer as evaluate-v2.0.py of SQuAD does, then split it."""
    without_punctuation = ""
    for character in answer.lower():
        if character not in string.punctuation:
            without_punctuation += character
    without_articles = re.sub(r"\b(a|an|the)\b", " ", without_punctuation)
    return without_articles.split()


def published_pair(right, guess):
    """Compute F1 and exact match of a guess and one right answer, as evaluate-v2.0.py does."""
    right_words = published_words(right)
    guess_words = published_words(guess)
    exact = int(right_words == guess_words)
    if not right_words or not guess_words:
        return exact, exact
    num_common = 0
    for word in set(right_words):
        num_common += min(right_words.count(word), guess_words.count(word))
    if num_common == 0:
        return 0, exact
    precision = num_common / len(guess_words)
    recall = num_common / len(right_words)
    return 2 * precision * recall / (precision + recall), exact


def published_scores(right_answers, guess):
    """Compute the best F1 and the best exact match over the right answers of one question."""
    right_answers = [text for text in right_answers if published_words(text)]
    if not right_answers:
        right_answers = [""]
    best_f1 = 0
    best_exact = 0
    for right in right_answers:
        f1, exact = published_pair(right, guess)
        best_f1 = max(best_f1, f1)
        best_exact = max(best_exact, exact)
    return best_f1, best_exact


def random_answer(rng):
    """Draw a text of up to four words, with articles, punctuation, capitals and numbers."""
    words = ["the", "a", "An", "cat", "Cat.", "sat", "sat,", "-", "", "1,000", "theory", "é",
             "the-cat"]
    num_words = rng.randint(0, 4)
    return " ".join(rng.choices(words, k=num_words))


def test_answer_scores_are_the_published_ones_for_each_question_and_their_mean_for_all():
    rng = random.Random(0)
    all_gold = []
    all_guesses = []
    all_expected = []
    for _ in range(1000):
        num_right = rng.randint(0, 3)
        texts = [random_answer(rng) for _ in range(num_right)]
        guess = random_answer(rng)
        gold = [(0, text) for text in texts]
        f1, exact = published_scores(texts, guess)
        expected = {"f1": f1, "exact_match": exact}
        assert answer_scores([gold], [guess]) == pytest.approx(expected), (texts, guess)
        all_gold.append(gold)
        all_guesses.append(guess)
        all_expected.append((f1, exact))
    f1, exact = np.mean(all_expected, axis=0)
    expected = {"f1": f1, "exact_match": exact}
    assert answer_scores(all_gold, all_guesses) == pytest.approx(expected)


@pytest.mark.parametrize("kind, gold, guesses, expected", [
    ("classification", ["a", "b", "b"], ["a", "b", "a"], {"accuracy": 2 / 3, "macro_f1": 2 / 3}),
    ("regression", [1.0, 2.0, 4.0], [2.0, 4.0, 8.0], {"pearson": 1.0, "spearman": 1.0}),
    ("tagging", [["B-x", "O"]], [["B-x", "B-x"]], {"f1": 2 / 3, "precision": 0.5, "recall": 1.0}),
    ("qa", [[(0, "a red cat")], []], ["red dog", ""], {"f1": 0.75, "exact_match": 0.5}),
])
def test_a_task_is_scored_by_its_own_metrics_in_their_order(kind, gold, guesses, expected):
    task = make_task_of_kind(kind)
    examples = [text_example("t", label) for label in gold]
    scores = score(task, examples, guesses)
    assert scores == pytest.approx(expected)
    names = list(expected)
    assert list(scores) == names
    task.metrics = names[:1]
    scores = score(task, examples, guesses)
    assert list(scores) == names[:1]


def test_a_test_set_without_labels_has_no_scores():
    task = make_task_of_kind("classification", ["x", "y"])
    example = text_example("t", None)
    assert score(task, [example], ["x"]) == {}


def test_the_scores_of_each_class_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = random.Random(0)
    task = make_task_of_kind("classification", ["0", "1", "x y"])
    for _ in range(40):
        size = rng.randint(1, 9)
        gold = rng.choices(task.labels, k=size)
        guesses = rng.choices(task.labels, k=size)
        names = sorted(set(gold) | set(guesses))
        precision, recall, f1, count = metrics.precision_recall_fscore_support(
            gold, guesses, labels=names, zero_division=0)
        examples = [text_example("t", label) for label in gold]
        found = detailed_scores(task, examples, guesses)
        assert list(found) == names
        for i, name in enumerate(names):
            scores = found[name]
            assert scores.keys() == {"precision", "recall", "f1", "count"}
            assert scores["precision"] == pytest.approx(precision[i]), (gold, guesses)
            assert scores["recall"] == pytest.approx(recall[i]), (gold, guesses)
            assert scores["f1"] == pytest.approx(f1[i]), (gold, guesses)
            assert scores["count"] == count[i], (gold, guesses)


def test_the_scores_of_each_type_of_entity_are_those_of_seqeval(no_warnings):
    seqeval = pytest.importorskip("seqeval.metrics")
    rng = random.Random(0)
    task = make_task_of_kind("tagging")
    for _ in range(100):
        gold, guesses = random_tags(rng, ["O", "O", "B-x", "I-x", "B-y-z", "I-y-z"])
        if not tasks.entities_of_all(gold) and not tasks.entities_of_all(guesses):
            continue                                     # seqeval cannot report on nothing
        report = seqeval.classification_report(gold, guesses, output_dict=True)
        examples = [text_example("t", sentence_tags) for sentence_tags in gold]
        found = detailed_scores(task, examples, guesses)
        # The report also has the averages over all types, such as "micro avg".
        types = {name for name in report if not name.endswith("avg")}
        assert found.keys() == types
        for name, scores in found.items():
            expected = report[name]
            assert scores.keys() == {"precision", "recall", "f1", "count"}
            assert scores["precision"] == pytest.approx(expected["precision"]), (gold, guesses)
            assert scores["recall"] == pytest.approx(expected["recall"]), (gold, guesses)
            assert scores["f1"] == pytest.approx(expected["f1-score"]), (gold, guesses)
            assert scores["count"] == expected["support"], (gold, guesses)


@pytest.mark.parametrize("kind, label, guess", [
    ("classification", None, "x"),
    ("tagging", None, ["O"]),
    ("regression", 1.0, 2.0),
    ("qa", [(0, "a")], "a"),
])
def test_without_classes_or_labels_there_are_no_details(kind, label, guess):
    task = make_task_of_kind(kind)
    example = text_example("t", label)
    assert detailed_scores(task, [example], [guess]) == {}


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("guess", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_an_error(guess):
    examples = [text_example("t", number) for number in (1.0, 2.0, 4.0)]
    task = make_task_of_kind("regression", name="stsb")
    with pytest.raises(FloatingPointError, match="^stsb: the predictions are not finite$"):
        score(task, examples, [1.0, guess, 3.0])


# ---- Tags -------------------------------------------------------------------------------

# The letters of a scheme with four: (of an entity of one word, of the last word of a longer one).
SINGLE_AND_END = {"BIOES": ("S", "E"), "BMES": ("S", "E"), "BILOU": ("U", "L")}


def letter_of_tag(scheme, is_first, is_last, touches):
    """Return the letter of a word in an entity.

    touches: whether the word just before the entity belongs to another one of the same type
    """
    if scheme == "IOB1":
        # Here B is only used where two entities could not be told apart without it.
        if is_first and touches:
            return "B"
        return "I"
    if scheme == "IOB2":
        if is_first:
            return "B"
        return "I"
    single, end = SINGLE_AND_END[scheme]
    if is_first and is_last:
        return single
    if is_first:
        return "B"
    if is_last:
        return end
    if scheme == "BMES":
        return "M"
    return "I"


def tags_of(spans, num_words, scheme):
    """Write entities [(first, one past the last, type), ...] as tags in a scheme."""
    ends = {(end, entity_type) for _, end, entity_type in spans}
    tags = ["O"] * num_words
    for begin, end, entity_type in spans:
        touches = (begin, entity_type) in ends           # another one ends where this one begins
        for i in range(begin, end):
            is_first = i == begin
            is_last = i == end - 1
            letter = letter_of_tag(scheme, is_first, is_last, touches)
            tags[i] = f"{letter}-{entity_type}"
    return tags


def random_spans(num_words, rng):
    """Draw entities of 1 to 3 words, [(first, one past the last, type), ...]. Some touch."""
    spans = []
    begin = 0
    while begin < num_words:
        end = min(num_words, begin + rng.randint(1, 3))
        is_entity = rng.random() < 0.6
        if is_entity:
            entity_type = rng.choice(["x", "y-z"])
            spans.append((begin, end, entity_type))
        begin = end
    return spans


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "BIOES", "BMES", "BILOU"])
def test_every_tagging_scheme_becomes_iob2_with_the_same_entities(scheme):
    rng = random.Random(0)
    for _ in range(500):
        num_words = rng.randint(1, 9)
        spans = random_spans(num_words, rng)
        tags = tags_of(spans, num_words, scheme)
        found = iob2(tags)
        assert entities(found) == set(spans)
        assert found == tags_of(spans, num_words, "IOB2")


@pytest.mark.parametrize("tags, expected", [
    (["S-x", "I-x"], ["B-x", "B-x"]),
    (["B-x", "E-x", "I-x"], ["B-x", "I-x", "B-x"]),
    (["U-x", "L-x"], ["B-x", "B-x"]),
    (["O", "E-x"], ["O", "B-x"]),
    (["B-x", "I-y"], ["B-x", "B-y"]),
])
def test_a_tag_that_continues_no_open_entity_begins_a_new_one(tags, expected):
    assert iob2(tags) == expected


def test_a_type_may_be_called_none():
    """None must not stand for "no entity is open"."""
    found = entities(["I-None", "I-None", "O"])
    assert found == {(0, 2, "None")}


# ---- Tables -----------------------------------------------------------------------------

def read_t_and_y(path, **more):
    """Read a table with the column t of texts and the column y of labels."""
    return read_table(path, ["t"], "y", **more)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_a_table_in_utf_16_or_utf_32_is_refused(tmp_path, encoding):
    """Some begin with a byte order mark, others are known by their NULs alone."""
    path = write_file(tmp_path / "a.tsv", "t\ty\nword\t1\n".encode(encoding))
    with pytest.raises(ValueError, match=f"^{path}: its first line has NUL bytes"):
        read_t_and_y(path)


@pytest.mark.parametrize("name, rows", [("a.csv", "t,y\nword,1\n,\n\n,\n"),
                                        ("a.tsv", "t\ty\nword\t1\n\t\n\n\t\n")])
def test_empty_rows_of_a_spreadsheet_are_skipped(tmp_path, name, rows):
    example, = read_t_and_y(write_file(tmp_path / name, rows))
    assert texts_and_label(example) == ("word", None, "1")


def test_it_is_said_how_many_texts_are_empty(tmp_path, capsys):
    """Of two texts of an example one empty text is enough. A space alone is empty, too."""
    path = write_file(tmp_path / "a.csv", 't,u,y\na,b,1\n"",b,1\n" ",b,1\na,"",0\n')
    assert len(read_table(path, ["t", "u"], "y")) == 4
    warned = capsys.readouterr().err
    assert warned == f"warning: {path}: in 3 of 4 examples a text is empty\n"
    assert len(read_table(path, ["t"], "y")) == 4
    warned = capsys.readouterr().err
    assert warned == f"warning: {path}: in 2 of 4 examples a text is empty\n"


def test_lines_are_ended_by_line_feeds_alone_and_a_mark_is_taken_from_the_first(tmp_path):
    """Python's splitlines would also split at U+2028 and \\x0b. The mark is the byte order mark."""
    path = write_file(tmp_path / "a", "\ufeffa\u2028b\r\n\ufeffc\x0bd\n\n e ")
    lines = list(lines_of(path))
    numbers = [number for number, _ in lines]
    texts = [text for _, text in lines]
    assert numbers == [1, 2, 3, 4]
    assert texts == ["a\u2028b", "\ufeffc\x0bd", "", " e "]


@pytest.mark.parametrize("read", [read_t_and_y, read_tags])
def test_lines_that_end_with_a_carriage_return_alone_are_refused(tmp_path, read):
    """All of them would be one line: in a file of tags one word with the last word's tag."""
    path = write_file(tmp_path / "a.tsv", "t\ty\rEU\tB-ORG\rrejects\tO\r")
    with pytest.raises(ValueError, match=f"^{path}: a carriage return alone ends its lines: tr"):
        read(path)


def test_a_carriage_return_inside_a_line_is_text(tmp_path):
    path = write_file(tmp_path / "a", "a\rb\nc\rd")
    assert list(lines_of(path)) == [(1, "a\rb"), (2, "c\rd")]
    path = write_file(tmp_path / "b", "a line\r")
    assert list(lines_of(path)) == [(1, "a line")]


def test_glue_files_are_read_in_their_official_layout_with_quotes_as_text(tmp_path):
    folder = tmp_path / "cola"
    write_file(folder / "train.tsv", 'gj04\t1\t\tHe said "yes.\ngj04\t0\t*\tThey "ran.\n')
    write_file(folder / "dev.tsv", "gj04\t1\t\tHe ran.\r\n")
    write_file(folder / "test.tsv", "index\tsentence\n0\tShe ran.\n")
    splits = read_glue("cola", str(folder))
    first, second = splits["train"]
    assert texts_and_label(first) == ('He said "yes.', None, "1")
    assert texts_and_label(second) == ('They "ran.', None, "0")
    assert splits["dev"][0].text == "He ran."
    assert texts_and_label(splits["test"][0]) == ("She ran.", None, None)


def test_mnli_has_two_dev_sets_and_two_test_sets(tmp_path):
    splits = ["train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched"]
    for split in splits:
        last_column = "gold_label"
        if split.startswith("test"):
            last_column = "x"                            # a test set has no labels
        header = f"\ufeffindex\tsentence1\tsentence2\t{last_column}\n"
        row = f"0\ta\u2028b\t{split}\tneutral\n"
        write_file(tmp_path / f"{split}.tsv", header + row)
    found = read_glue("mnli", str(tmp_path))
    assert list(found) == splits
    dev_example, = found["dev_mismatched"]
    assert texts_and_label(dev_example) == ("a\u2028b", "dev_mismatched", "neutral")
    test_example, = found["test_matched"]
    assert texts_and_label(test_example) == ("a\u2028b", "test_matched", None)


# The first lines of the official files, with < for a tab, and which of the columns are read.
@pytest.mark.parametrize("name, header, text_columns, label_column", [
    ("sst2", "sentence<label", ["sentence"], "label"),
    ("mrpc", "Quality<#1 ID<#2 ID<#1 String<#2 String", ["#1 String", "#2 String"], "Quality"),
    ("stsb", "index<genre<filename<year<old_index<source1<source2<sentence1<sentence2<score",
     ["sentence1", "sentence2"], "score"),
    ("qqp", "id<qid1<qid2<question1<question2<is_duplicate", ["question1", "question2"],
     "is_duplicate"),
    ("qnli", "index<question<sentence<label", ["question", "sentence"], "label"),
    ("rte", "index<sentence1<sentence2<label", ["sentence1", "sentence2"], "label"),
    ("wnli", "index<sentence1<sentence2<label", ["sentence1", "sentence2"], "label"),
])
def test_a_glue_task_is_read_by_its_columns_and_needs_no_test_set(
        name, header, text_columns, label_column, tmp_path):
    columns = header.split("<")
    cells = []
    for column in columns:
        if column == label_column:
            cells.append("4.250")
        else:
            cells.append(f"in {column}")
    first_row = "\t".join(columns)
    second_row = "\t".join(cells)
    table = f"{first_row}\n{second_row}\n"
    for split in ("train", "dev"):
        write_file(tmp_path / f"{split}.tsv", table)
    splits = read_glue(name, str(tmp_path))
    assert list(splits) == ["train", "dev"]
    example = splits["dev"][0]
    texts = [example.text]
    if example.second_text is not None:
        texts.append(example.second_text)
    assert texts == [f"in {column}" for column in text_columns]
    if name == "stsb":                                   # its labels are numbers
        assert example.label == 4.25
    else:
        assert example.label == "4.250"


def test_a_csv_has_quoted_cells_with_commas_quotes_and_line_breaks(tmp_path):
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["y", "t", "u"])
    writer.writerow(["1", 'a "b", c', "two\nlines"])
    writer.writerow(["0", "d", "e"])
    path = write_file(tmp_path / "a.csv", table.getvalue())
    first, second = read_table(path, ["t", "u"], "y")
    assert texts_and_label(first) == ('a "b", c', "two\nlines", "1")
    assert second == ("d", "e", "0", "1", f"{path}:4")


def test_a_cell_of_a_csv_may_be_longer_than_the_limit_of_the_csv_module(tmp_path):
    csv.field_size_limit(131072)
    text = "word " * 30000
    path = write_file(tmp_path / "a.csv", f"t,y\n{text},1\n")
    example, = read_t_and_y(path)
    assert len(example.text) == 150000


def test_a_jsonl_has_an_object_a_line_and_other_fields_and_empty_lines(tmp_path):
    """A label that is no text becomes one, as it would be read from a .csv."""
    rows = ['{"t": "d", "y": 1, "more": [1]}', '', '{"t": "e", "y": true}', '{"t": "f", "y": 2.5}']
    path = write_file(tmp_path / "a.jsonl", "\n".join(rows))
    first, second, third = read_t_and_y(path)
    assert first == ("d", None, "1", "0", f"{path}:1")
    assert second == ("e", None, "True", "1", f"{path}:3")
    assert third == ("f", None, "2.5", "2", f"{path}:4")


def test_a_tsv_has_no_quotes_and_empty_lines_are_left_out(tmp_path):
    """An empty line may also come before the names of the columns."""
    path = write_file(tmp_path / "a.tsv", '\nt\ty\n\n"d\t1e-1\n')
    example, = read_t_and_y(path, kind="regression")
    assert example == ('"d', None, 0.1, "0", f"{path}:4")


@pytest.mark.parametrize("row, num_columns", [("c", 1), ("c\tx\ty", 3)])
@pytest.mark.parametrize("ending", ["tsv", "csv"])
def test_a_row_with_too_few_or_too_many_columns_is_named(row, num_columns, ending, tmp_path):
    text = f"t\ty\na\tx\n{row}\n"
    if ending == "csv":
        text = text.replace("\t", ",")
    path = write_file(tmp_path / f"a.{ending}", text)
    with pytest.raises(ValueError, match=f"{path}:3: {num_columns} columns, not 2"):
        read_t_and_y(path)


@pytest.mark.parametrize("value", [1, None, ["a"], {"a": 1}])
def test_a_text_must_be_text(value, tmp_path):
    row = json.dumps({"t": value, "y": 1})
    path = write_file(tmp_path / "a.jsonl", row)
    shown = re.escape(repr(value))
    with pytest.raises(ValueError, match=f"^{path}:1: the column 't' is {shown}, not str$"):
        read_t_and_y(path)


def test_a_missing_column_is_named_with_those_that_there_are(tmp_path):
    path = write_file(tmp_path / "a.tsv", "t\ty\nb\t1\n")
    error = (f"^{path}:2: the column 'text' is missing among 't', 'y'; tabs separate columns in a "
             ".tsv, commas in a .csv, the first row must name them, a .jsonl has a JSON object on "
             "each line, and --text and --label say which")
    with pytest.raises(ValueError, match=error):
        read_table(path, ["text"], "y")


@pytest.mark.parametrize("ending, text, error", [
    ("csv", "t,y\na,b,1\n", "3 columns, not 2"),
    ("csv", "t;y\na,b;1\n", "2 columns, not 1"),
    ("tsv", "t,y\na\tb,1\n", "2 columns, not 1"),
    ("tsv", 't\ty\n"b\nc"\t1\n', "1 columns, not 2")])
def test_a_row_of_another_width_has_a_hint_about_quotes(ending, text, error, tmp_path):
    path = write_file(tmp_path / f"a.{ending}", text)
    with pytest.raises(ValueError, match=f"^{path}:2: {error}; commas separate the cells"):
        read_t_and_y(path)


def test_an_error_in_a_csv_names_the_line_in_which_its_row_begins(tmp_path):
    path = write_file(tmp_path / "a.csv", 't,y\n"a\nb",1\n"b\nc" x,1\n')
    with pytest.raises(ValueError, match=f"^{path}:5: .*; the row begins in line 4$"):
        read_t_and_y(path)


def test_a_column_may_have_the_separator_of_another_format_in_its_name(tmp_path):
    path = write_file(tmp_path / "a.csv", "t;y,z\nb,1\n")
    example, = read_table(path, ["t;y"], "z")
    assert example.text == "b"


@pytest.mark.parametrize("present, missing", [("dev", "train"), ("train", "dev")])
def test_a_file_of_glue_that_is_not_there_is_named(present, missing, tmp_path):
    write_file(tmp_path / f"{present}.tsv", "sentence\tlabel\na\t1\n")
    with pytest.raises(FileNotFoundError, match=f"'{tmp_path}/{missing}.tsv'$"):
        read_glue("sst2", str(tmp_path))


@pytest.mark.parametrize("label, value", [
    ("3", 3.0),
    ("-.5", -0.5),
    ("+2.", 2.0),
    ("1E3", 1000.0),
    ("1.5e-2", 0.015),
    ("9e29", 9e29),
    ("5e-007", 5e-7),
    ("1e-100", 1e-100),
])
def test_a_number_is_read(label, value, tmp_path):
    path = write_file(tmp_path / "a.tsv", f"t\ty\na\t{label}\n")
    example, = read_t_and_y(path, kind="regression")
    assert example.label == value


def test_spaces_around_a_label_are_no_part_of_it(tmp_path):
    path = write_file(tmp_path / "a.csv", "text,label\nx, a\ny,a \nz,b c\n")
    examples = read_table(path, ["text"], "label")
    assert labels_of(examples) == ["a", "a", "b c"]


@pytest.mark.parametrize("label", ["x", "1,5", "-nan", "inf", "1e999"])
def test_what_is_no_number_or_too_large_a_one_is_refused(label, tmp_path):
    path = write_file(tmp_path / "a.tsv", f"t\ty\na\t1\nb\t{label}\n")
    with pytest.raises(ValueError, match=f"{path}:3: y '{label}': not a number"):
        read_t_and_y(path, kind="regression")


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("ending, text", [
    ("tsv", "t\ty\na\t1\nb\t\n"),
    ("tsv", "t\ty\na\t1\nb\t  \n"),
    ("csv", "t,y\na,1\nb,\n"),
    ("jsonl", '{"t": "a", "y": 1}\n\n{"t": "b", "y": ""}\n')])
def test_a_missing_label_is_named_with_its_line(kind, ending, text, tmp_path):
    path = write_file(tmp_path / f"a.{ending}", text)
    with pytest.raises(ValueError, match=f"^{path}:3: the label in column 'y' is '', which"):
        read_own_files(kind, {"train": [path]}, ["t"], "y")


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("ending, text, label", [
    ("tsv", "t\ty\na\t1\nb\tNaN\n", "NaN"),
    ("jsonl", '{"t": "a", "y": 1}\n\n{"t": "b", "y": NaN}\n', "nan")])
def test_a_label_nan_is_said_to_stand_for_a_missing_one(kind, ending, text, label, tmp_path):
    path = write_file(tmp_path / f"a.{ending}", text)
    message = f"^{path}:3: the label in column 'y' is '{label}', which stands for a missing one$"
    with pytest.raises(ValueError, match=message):
        read_own_files(kind, {"train": [path]}, ["t"], "y")


@pytest.mark.parametrize("module, name", [(gzip, "a.gz"), (bz2, "a.bz2"), (lzma, "a.txt")])
def test_a_compressed_file_is_to_be_unpacked_first(module, name, tmp_path):
    path = write_file(tmp_path / name, module.compress(b"a\tO\n"))
    with pytest.raises(ValueError, match=f"^{path}:.* unpack it"):
        read_tags(path)


@pytest.mark.parametrize("line", ["# document", "# sent_id = 1"])
def test_a_comment_in_a_conll_file_is_refused(line, tmp_path):
    path = write_file(tmp_path / "a.txt", f"a O\n\n{line}\n")
    with pytest.raises(ValueError, match=f"^{path}:3: .*(no line may be a comment|in 2 columns)"):
        read_tags(path)


@pytest.mark.parametrize("row", ['{"t": "b", "y": null}', '{"t": "b"}', '{"t": "b", "y": [1]}'])
def test_a_label_that_is_null_or_not_there_is_named_with_its_line(row, tmp_path):
    path = write_file(tmp_path / "a.jsonl", '{"t": "a", "y": 1}\n' + row)
    expected = f"^{path}:2: the column 'y' (is missing|is .*, not str or int or float$)"
    with pytest.raises(ValueError, match=expected):
        read_t_and_y(path)


@pytest.mark.parametrize("ending, header", [("tsv", "t\ty\tt"), ("csv", 't,y,"t"')])
def test_two_columns_of_the_same_name_are_refused(ending, header, tmp_path):
    path = write_file(tmp_path / f"a.{ending}", f"{header}\n")
    with pytest.raises(ValueError, match=f"^{path}:1: 2 columns have the name 't'$"):
        read_t_and_y(path)


@pytest.mark.parametrize("ending, separator", [("tsv", "\t"), ("csv", ",")])
def test_several_columns_may_have_no_name(ending, separator, tmp_path):
    text = ",t,y,,\n0,a,1,,\n1,b,2,c,\n".replace(",", separator)
    path = write_file(tmp_path / f"a.{ending}", text)
    examples = read_t_and_y(path)
    assert [(example.text, example.label) for example in examples] == [("a", "1"), ("b", "2")]


@pytest.mark.parametrize("name", ["a.tsv", "a.TSV", "a.txt"])
def test_these_endings_stand_for_a_table_with_tabs(name, tmp_path):
    path = write_file(tmp_path / name, "t\ty\na\t1\n")
    example, = read_t_and_y(path)
    assert example.text == "a"


@pytest.mark.parametrize("name", ["a", "a.tsv.gz", "a.xlsx", "a.json"])
def test_a_table_with_another_ending_is_refused(name, tmp_path):
    path = write_file(tmp_path / name, "t\ty\na\t1\n")
    message = f"^{path}: the ending of a table must be .tsv, .* a .json with an object on each line"
    with pytest.raises(ValueError, match=message):
        read_t_and_y(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    """To open a pipe waits until another program writes into it, which may be never."""
    path = tmp_path / "a.tsv"
    os.mkfifo(path)
    for reader in (read_t_and_y, read_tags, read_squad):
        with pytest.raises(ValueError, match=f"{path} is not a regular file"):
            reader(str(path))


@pytest.mark.parametrize("name, table", [
    ("a.tsv", "text\tlabel\na\tx\n"),
    ("a.csv", "text,label\na,x\n"),
])
def test_names_of_columns_amid_a_table_are_no_example(name, table, tmp_path):
    """They come there if files are joined, each with its first row."""
    path = write_file(tmp_path / name, table + table)
    with pytest.raises(ValueError, match=f"{name}:3: this row repeats the names of the columns"):
        read_table(path, ["text"], "label")


# ---- CoNLL and SQuAD --------------------------------------------------------------------

def test_white_space_around_a_tag_is_no_part_of_it(tmp_path):
    path = write_file(tmp_path / "a.txt", "a\tB-x \nb\t I-x\nc\tO \n")
    example, = read_tags(path)
    assert example.label == ["B-x", "I-x", "O"]


def test_conll_files_are_read_with_tabs_or_spaces_and_any_columns(tmp_path):
    """The word is in the first column and the tag in the last one."""
    rows = "-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\nsays V I-VP O\n\n\nPeter NNP I-NP I-PER\n"
    path = write_file(tmp_path / "a.txt", rows)
    first, second = read_tags(path)
    assert first == (["EU", "says"], None, ["B-ORG", "O"], "0", f"{path}:3")
    assert second == (["Peter"], None, ["B-PER"], "1", f"{path}:7")
    path = write_file(tmp_path / "b.tsv", "two words\tS-x\n\nb\tO")
    first, second = read_tags(path)
    assert first == (["two words"], None, ["B-x"], "0", f"{path}:1")
    assert second == (["b"], None, ["O"], "1", f"{path}:3")


def test_a_word_of_conll_may_have_a_no_break_space(tmp_path):
    path = write_file(tmp_path / "a.txt", "10\u00a0000  NN O\n\u00a0dogs NN O \n")
    example, = read_tags(path)
    assert example.text == ["10\u00a0000", "\u00a0dogs"]


def test_only_a_line_whose_first_word_is_docstart_ends_a_sentence(tmp_path):
    path = write_file(tmp_path / "a.txt", "a O\n  -DOCSTART- O\nb O\n-DOCSTART-X O\n-DOCS O\n")
    first, second = read_tags(path)
    assert first.text == ["a"]
    assert second.text == ["b", "-DOCSTART-X", "-DOCS"]


def test_tags_without_a_type_have_the_type_entity(tmp_path):
    path = write_file(tmp_path / "a.tsv", "a\tB\nb\tI\nc\tO\nd\tS\n\ne\tI\n")
    first, second = read_tags(path)
    assert first.label == ["B-entity", "I-entity", "O", "B-entity"]
    assert second.label == ["B-entity"]


def test_tags_of_chinese_files_are_read(tmp_path):
    """Their letters are B, M, E and S."""
    content = "吴 B-NAME\n重 M-NAME\n阳 E-NAME\n， O\n王 S-NAME\n"
    path = write_file(tmp_path / "a.bmes", content)
    sentence, = read_tags(path)
    assert sentence.text == ["吴", "重", "阳", "，", "王"]
    assert sentence.label == ["B-NAME", "I-NAME", "I-NAME", "O", "B-NAME"]


@pytest.mark.parametrize("first, second", [("B", "I-x"), ("B-x", "I"), ("S", "B-entity")])
def test_a_file_with_and_without_types_is_refused(first, second, tmp_path):
    path = write_file(tmp_path / "a.tsv", f"a\tO\nb\t{first}\n\nc\tO\nd\t{second}\n")
    with pytest.raises(ValueError, match=f"^{path}:5: of the tags up to '{second}' some have a"):
        read_tags(path)


@pytest.mark.parametrize("line", ["b O O", "b", "O", "\tO", " \tO", "b\tNOUN", "b\tO-x", "b\tB-"])
def test_a_line_that_is_no_word_and_tag_is_named(line, tmp_path):
    path = write_file(tmp_path / "a.txt", f"a\tO\n{line}\n")
    with pytest.raises(ValueError, match=f"^{path}:2: "):
        read_tags(path)


@pytest.mark.parametrize("line", [
    '{"tokens": ["EU", "rejects"], "ner_tags": [3, 0]}',     # as the library datasets writes them
    "Sentence #,Word,POS,Tag",
    "Sentence: 1,London,NNP,B-geo",
])
def test_a_csv_or_jsonl_of_tags_is_refused_with_advice(line, tmp_path):
    path = write_file(tmp_path / "a.csv", f"{line}\n")
    with pytest.raises(ValueError, match=f"^{path}:1: .* a .csv or .jsonl must be converted: a "):
        read_tags(path)


@pytest.mark.parametrize("lines", ["1 the O\n2 city B-x\n\n1 paris B-x\n",
                                   "0 the O\n1 city B-x\n\n0 in O\n1 paris B-x\n"])
def test_a_first_column_of_numbers_is_refused_if_they_count_the_words(lines, tmp_path):
    path = write_file(tmp_path / "a.txt", lines)
    with pytest.raises(ValueError, match=f"^{path}: the first column must have the words, but in "):
        read_tags(path)


def test_a_first_column_that_names_the_document_or_the_sentence_is_refused(tmp_path):
    text = "a1\tthe\tO\na1\tcity\tB-x\n\na2\tin\tO\na2\tparis\tB-x\n\na3\tdull\tO\n"
    path = write_file(tmp_path / "a.txt", text)
    message = f"^{path}: the first column must have the words, but .* it has 'a1 a1'"
    with pytest.raises(ValueError, match=message):
        read_tags(path)


def test_words_that_all_begin_with_their_language_are_refused(tmp_path):
    """WikiANN has such files."""
    text = "en:the\tO\nen:city\tB-x\n\nen::\tO\nen:paris\tB-x\n"
    path = write_file(tmp_path / "a.txt", text)
    with pytest.raises(ValueError, match=f"^{path}: all words begin with 'en:', .* sed 's/.en://'"):
        read_tags(path)
    path = write_file(tmp_path / "b.txt", text + "\nthe\tO\nend\tO\n")
    assert len(read_tags(path)) == 3


def test_one_sentence_may_repeat_a_word_if_others_do_not(tmp_path):
    path = write_file(tmp_path / "a.txt", "no\tUH\tO\nno\tUH\tO\n\nthe\tDT\tO\ncity\tNN\tB-x\n")
    assert texts_of(read_tags(path)) == [["no", "no"], ["the", "city"]]


def test_a_word_may_be_repeated(tmp_path):
    """With two columns the first one can only be the words."""
    example, = read_tags(write_file(tmp_path / "a.txt", "no O\nno O\n"))
    assert example.text == ["no", "no"]


@pytest.mark.parametrize("lines", ["1 O\n\n1 O\n", "1 O\n2 O\n\n2 O\n3 O\n"])
def test_numbers_may_be_words(lines, tmp_path):
    first, _ = read_tags(write_file(tmp_path / "a.txt", lines))
    assert first.text[0] == "1"


def test_a_word_alone_is_no_line_even_if_it_comes_first(tmp_path):
    """The first line decides how many columns the file has. Two is the least."""
    path = write_file(tmp_path / "a.txt", "O\nb\tO\n")
    with pytest.raises(ValueError, match="a.txt:1: 'O' is not a word and a tag in 2 columns; tabs"):
        read_tags(path)


def test_a_word_of_white_space_is_no_word(tmp_path):
    path = write_file(tmp_path / "a.txt", "b\tO\n\u00a0\tO\n")
    with pytest.raises(ValueError, match=r"a.txt:2: '.xa0.tO' has no word in its first column$"):
        read_tags(path)


def make_squad_content(questions):
    """Make what is in a SQuAD file of these questions -> all of it, the list of its questions."""
    content = json.loads(make_squad(questions))
    return content, content["data"][0]["paragraphs"][0]["qas"]


def test_squad_files_give_questions_with_all_their_answers(tmp_path):
    context = "the red city. john lives in paris, not in the red city."
    questions = [("where is john", ["paris", "in paris"]), ("who is red", [])]
    path = write_file(tmp_path / "a.json", make_squad(questions, context))
    first, second = read_squad(path)
    answers = [(28, "paris"), (25, "in paris")]
    assert first == ("where is john", context, answers, "q0", f"{path}, question 'q0'")
    assert second == ("who is red", context, [], "q1", f"{path}, question 'q1'")


def test_an_empty_list_of_answers_means_no_answer_in_squad_1(tmp_path):
    """The field is_impossible came with SQuAD 2."""
    content, questions = make_squad_content([("who", [])])
    del questions[0]["is_impossible"]
    path = write_json(tmp_path / "a.json", content)
    question, = read_squad(path)
    assert question.label == []


def test_the_answers_of_an_impossible_question_are_not_read(tmp_path):
    """They may be missing, or be no list."""
    content, questions = make_squad_content([("who", []), ("where", [])])
    del questions[0]["answers"]
    questions[1]["answers"] = "none"
    path = write_json(tmp_path / "a.json", content)
    first, second = read_squad(path)
    assert first.label == []
    assert second.label == []


def write_with_is_impossible(path, value):
    """Write a SQuAD file with one question, which has an answer and also the field is_impossible
    with this value."""
    content, questions = make_squad_content([("where", ["paris"])])
    questions[0]["is_impossible"] = value
    return write_json(path, content)


@pytest.mark.parametrize("value, num_answers", [(False, 1), (None, 1), (True, 0)])
def test_a_question_is_impossible_only_if_it_says_true(value, num_answers, tmp_path):
    path = write_with_is_impossible(tmp_path / "a.json", value)
    question, = read_squad(path)
    assert len(question.label) == num_answers


def test_a_question_that_says_impossible_in_another_way_is_refused(tmp_path):
    path = write_with_is_impossible(tmp_path / "a.json", "false")
    with pytest.raises(ValueError, match="the field 'is_impossible' is 'false', not bool"):
        read_squad(path)


def test_a_question_that_is_not_impossible_needs_an_answer(tmp_path):
    content, questions = make_squad_content([("where", [])])
    questions[0]["is_impossible"] = False
    path = write_json(tmp_path / "a.json", content)
    with pytest.raises(ValueError, match=f"^{path}, question 'q0': its answers are missing$"):
        read_own_files("qa", {"train": [path]}, None, None)
    # Where no answers are needed, this is a question of a hidden test set.
    question, = read_squad(path)
    assert question.label is None


def test_answers_may_be_missing_only_where_none_are_needed(tmp_path):
    content, questions = make_squad_content([("where", ["paris"]), ("who", ["john"])])
    del questions[1]["answers"]
    path = write_json(tmp_path / "a.json", content)
    for split in ("train", "dev", "test"):
        with pytest.raises(ValueError, match=f"^{path}, question 'q1': its answers are missing$"):
            read_own_files("qa", {split: [path]}, None, None)
    first, second = read_squad(path)
    assert first.label != []
    assert second.label is None
    # One question without a label is enough: there are no scores then.
    task = make_task_of_kind("qa")
    assert score(task, [first, second], ["paris", "john"]) == {}


def test_two_questions_of_a_file_with_the_same_id_are_refused(tmp_path):
    content, questions = make_squad_content([("where", ["paris"]), ("who", ["john"])])
    questions[1]["id"] = "q0"
    path = write_json(tmp_path / "a.json", content)
    with pytest.raises(ValueError, match=f"^{path}: 2 questions have the id 'q0'$"):
        read_squad(path)


@pytest.mark.parametrize("old, new", [
    ('"answers": [', '"answers": [5, '),
    ('"text": "paris"', '"text": ""'),
    ('"text": "paris"', '"text": 5'),
    ('"question": "where"', '"question": null'),
    ('"qas": [', '"qas": [["id"], '),
    ('"paragraphs": [', '"paragraphs": [null, '),
    ('"data": [', '"data": ["x", '),
    ('"context": "', '"contexts": "'),
    ('"id": "q0"', '"id": 0'),
])
def test_what_is_no_question_or_answer_is_one_line_with_the_file(old, new, tmp_path):
    text = make_squad([("where", ["paris"])])
    assert text.count(old) == 1
    path = write_file(tmp_path / "a.json", text.replace(old, new))
    with pytest.raises(ValueError, match=rf"^{path}(:\d+)?: not SQuAD: .*") as error:
        read_squad(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ['{"id": "a"}\n{"id": "b"}\n', '[{"id": "a"}]', "id,question\n"])
def test_a_table_of_questions_is_refused_with_advice(text, tmp_path):
    """The library datasets writes SQuAD as rows, each with a question and its context."""
    path = write_file(tmp_path / "a.json", text)
    advice = r"not a file in SQuAD's form \(one JSON object .*; a table .* must be converted\): "
    with pytest.raises(ValueError, match=f"^{path}: {advice}"):
        read_squad(path)


@pytest.mark.parametrize("start, message", [
    (29, "the answer 'paris' of question 'q1' is not at its offset 29"),
    (-27, "offset -27"),
    (True, "'answer_start' is True, not int, in .*'paris'"),
    ("28", "'answer_start' is '28', not int, in .*'paris'"),
])
def test_an_answer_elsewhere_is_named(start, message, tmp_path):
    content, questions = make_squad_content([("who", ["john"]), ("where", ["paris"])])
    answer, = questions[1]["answers"]
    answer["answer_start"] = start
    path = write_json(tmp_path / "a.json", content)
    with pytest.raises(ValueError, match=f"^{path}: not SQuAD: .*{message}"):
        read_squad(path)


@pytest.mark.parametrize("reader, text", [
    (read_tags, "-DOCSTART- O\n\n"),
    (read_tags, ""),
    (read_squad, '{"data": []}'),
    (read_t_and_y, "t\ty\n"),
    (read_t_and_y, ""),
])
def test_a_file_without_an_example_is_named(reader, text, tmp_path):
    path = write_file(tmp_path / "a.tsv", text)
    with pytest.raises(ValueError, match=f"{path}: the file has no examples"):
        reader(path)


# ---- Downloads --------------------------------------------------------------------------

class Server:
    """A server that sends the same bytes for every path and notes the paths asked for. It announces
    num_missing bytes more than it sends."""

    def __init__(self, content, num_missing=0):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(content) + num_missing))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        self.asked = asked

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def make_zip(files):
    """Pack files {name: content} into a zip -> its bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def test_a_glue_task_is_downloaded_once_and_only_its_tables_are_unpacked(tmp_path, monkeypatch):
    table = "index\tquestion\tsentence\tlabel\n0\ta\tb\tentailment\n"
    files = {"QNLI/train.tsv": table, "QNLI/dev.tsv": table}
    for name in ("QNLI/original/dev.tsv", "../evil.tsv", "QNLI/notes.tsv"):
        files[name] = "this is not to be unpacked"
    files["QNLI/large.txt"] = random.Random(0).randbytes(200_000)
    server = Server(make_zip(files))
    monkeypatch.setattr(tasks, "GLUE_URL", server.url)
    cache = tmp_path / "cache"
    for _ in range(2):
        folder = tasks.download_glue("qnli", str(cache))
    server.stop()
    assert server.asked == ["/QNLIv2.zip"]
    assert names_in(cache / "glue/QNLI") == ["dev.tsv", "train.tsv"]
    assert names_in(cache / "glue") == ["QNLI"]
    assert names_in(tmp_path) == ["cache"]
    splits = read_glue("qnli", folder)
    assert splits["dev"][0].label == "entailment"


def test_a_bad_answer_and_no_answer_are_one_line_and_leave_nothing(tmp_path, monkeypatch):
    server = Server(b"not a zip file")
    monkeypatch.setattr(tasks, "GLUE_URL", server.url)
    message = r"^http://127.*/RTE.zip: .*--data DIR\Z"
    with pytest.raises(ValueError, match=message):
        tasks.download_glue("rte", str(tmp_path))
    server.stop()
    with pytest.raises(ValueError, match=message):
        tasks.download_glue("rte", str(tmp_path))
    assert names_in(tmp_path / "glue") == []


def test_a_download_that_breaks_off_is_an_error(tmp_path, monkeypatch):
    server = Server(b"ab", num_missing=1)
    monkeypatch.setattr(tasks, "GLUE_URL", server.url)
    with pytest.raises(ValueError, match=r"RTE.zip: IncompleteRead\(2 bytes read, 1 more expected"):
        tasks.download_glue("rte", str(tmp_path))
    server.stop()


def test_mrpc_has_no_official_zip(tmp_path):
    with pytest.raises(ValueError, match="mrpc.*--data"):
        tasks.download_glue("mrpc", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


# ---- The task without files -------------------------------------------------------------

def test_the_code_task_tags_what_was_marked_as_code(tmp_path):
    path = write_documentation(tmp_path / "docs.jsonl")
    with open(path) as file:
        rows = [json.loads(line) for line in file]
    rows_with_code = [row for row in rows if row["code"]]
    splits = read_code_task(path)
    examples = splits["train"] + splits["dev"]
    assert len(examples) == len(rows_with_code)
    for example in examples:
        row_number = int(example.id)
        text = rows[row_number]["text"]
        assert example.location == f"{path}:{row_number + 1}"
        assert "".join(example.text) == text.replace(" ", "")
        # The third word is a name with a dot, such as a.b, and the only code of the paragraph.
        assert "." in example.text[2]
        num_after = len(example.text) - 3
        assert example.label == ["O", "O", "B-code"] + ["O"] * num_after


def test_of_the_code_task_a_tenth_is_held_out_and_none_of_its_texts_is_trained_on(tmp_path):
    write_documentation(tmp_path / "docs.jsonl")
    lines = (tmp_path / "docs.jsonl").read_text()
    path = write_file(tmp_path / "twice.jsonl", lines + lines)      # each text is there twice
    splits = read_code_task(path)
    num_train = len(splits["train"])
    num_dev = len(splits["dev"])
    assert 0.02 < num_dev / (num_train + num_dev) < 0.25
    train_texts = {str(example.text) for example in splits["train"]}
    dev_texts = {str(example.text) for example in splits["dev"]}
    assert train_texts & dev_texts == set()


@pytest.mark.parametrize("text, code, words, tags", [
    ("say import os, or die", ["import os"], ["say", "import", "os", ",", "or", "die"],
     ["O", "B-code", "I-code", "O", "O", "O"]),
    # An accent that is a character of its own does not cut a word.
    ("see gene\u0300ve", ["gene\u0300ve"], ["see", "gene\u0300ve"], ["O", "B-code"]),
    # A dot joins two names, also after such an accent. An accent belongs to a sign before it.
    ("see a\u0301.b!\u0301c", ["a\u0301"], ["see", "a\u0301.b", "!\u0301", "c"],
     ["O", "B-code", "O", "O"]),
    # Invisible characters belong to their word: a joiner of Persian, a soft hyphen, and a mark of
    # the direction of writing, even before the first letter. A zero-width space separates words.
    ("\u0639\u200c\u067e\u200bis Donau\u00adschiff\u200b \u200f\u05d0", ["Donau"],
     ["\u0639\u200c\u067e", "is", "Donau\u00adschiff", "\u200f\u05d0"], ["O", "O", "B-code", "O"]),
    # A mark after a full stop does not join the stop to the word before it.
    ("to IBM.\u200e go", ["IBM"], ["to", "IBM", ".\u200e", "go"], ["O", "B-code", "O", "O"]),
    # A Chinese character is a word, also next to others and to letters.
    ("a\u8bca\u65adb", ["\u65ad"], ["a", "\u8bca", "\u65ad", "b"], ["O", "O", "B-code", "O"]),
    # So is a rare one, of each range, with the mark that chooses a variant of it.
    ("\u845b\U000e0100\u3400b\uf900c\U00030000d", ["\u3400"],
     ["\u845b\U000e0100", "\u3400", "b", "\uf900", "c", "\U00030000", "d"],
     ["O", "B-code", "O", "O", "O", "O", "O"]),
    # A word is code if its first letter is: of Tensors it is, of unset it is not.
    ("Tensors are unset", ["Tensor", "set"], ["Tensors", "are", "unset"], ["B-code", "O", "O"]),
])
def test_words_that_begin_in_marked_text_are_code_and_neighbours_one_entity(
        text, code, words, tags, tmp_path):
    spans = []
    for marked in code:
        begin = text.index(marked)
        spans.append([begin, begin + len(marked)])
    row = json.dumps({"part": "x", "text": text, "code": spans})
    path = write_file(tmp_path / "docs.jsonl", row)
    splits = read_code_task(path)
    example, = splits["train"] + splits["dev"]
    assert example.text == words
    assert example.label == tags


# ---- Putting a task together ------------------------------------------------------------

def test_the_files_of_a_split_are_read_one_after_the_other(tmp_path):
    first = write_file(tmp_path / "a.tsv", "t\tu\ty\na\tb\t1\n")
    second = write_file(tmp_path / "b.jsonl", '{"t": "c", "u": "d", "y": 2}')
    files = {"train": [first, second], "test": [second]}
    splits = read_own_files("regression", files, ["t", "u"], "y")
    assert list(splits) == ["train", "test"]
    found = [texts_and_label(example) for example in splits["train"]]
    assert found == [("a", "b", 1.0), ("c", "d", 2.0)]
    splits = read_own_files("classification", files, ["u"], "y")
    found = [texts_and_label(example) for example in splits["train"]]
    assert found == [("b", None, "1"), ("d", None, "2")]


def test_numbers_that_are_all_equal_are_refused():
    """They are divided by their standard deviation, which would be 0."""
    examples = [text_example("a", 0.1)] * 3
    with pytest.raises(ValueError, match="this and all other examples .* have the number 0.1"):
        make_task("regression", "regression", {"train": examples}, 8, 1)


def test_the_tenth_that_is_held_out_does_not_depend_on_the_order():
    examples = [text_example(str(i), "x", location=f"f:{i}") for i in range(95)]
    tenth, rest = hold_out_a_tenth(examples, "classification")
    tenth_again, rest_again = hold_out_a_tenth(examples[::-1], "classification")
    assert tenth == tenth_again
    assert rest == rest_again
    assert sorted(tenth + rest) == sorted(examples)
    assert tenth != examples[:10]
    assert len(tenth) == 10                              # 95 / 10 is rounded up
    tenth_of_90, _ = hold_out_a_tenth(examples[:90], "classification")
    assert len(tenth_of_90) == 9


def test_the_tenth_that_is_held_out_does_not_depend_on_the_version_of_python():
    """The shaking face is an emoji of 2022, which Python knows since version 3.12. The acute e is
    known to all. The expected numbers are those of each version."""
    texts = [f"{i} \u00e9 \U0001fae8" for i in range(40)]
    examples = [text_example(text, "x") for text in texts]
    tenth, _ = hold_out_a_tenth(examples, "classification")
    assert [texts.index(example.text) for example in tenth] == [29, 5, 36, 22]


def test_for_equal_texts_the_label_decides_what_is_held_out():
    examples = [text_example("the same", label) for label in "xyzxyzxyzxyz"]
    tenth, _ = hold_out_a_tenth(examples, "classification")
    tenth_again, _ = hold_out_a_tenth(examples[::-1], "classification")
    assert tenth == tenth_again


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["classification", "tagging"])
def test_a_label_that_occurs_once_stays_in_the_rest(kind, seed):
    """Otherwise it would be measured, but could not have been learned."""
    rng = random.Random(seed)
    labels = ["common"] * 30 + ["twice", "twice"]
    for i in range(60):
        labels.append(f"rare{i}")
    rng.shuffle(labels)
    examples = []
    for label in labels:
        word = str(rng.random())
        if kind == "classification":
            examples.append(text_example(word, label))
        else:
            examples.append(text_example([word, "a"], [label, "O"]))
    tenth, rest = hold_out_a_tenth(examples, kind)
    assert len(tenth) == 10                              # of 92
    labels_of_rest = set()
    for example in rest:
        label = example.label
        if kind == "tagging":
            label = example.label[0]
        labels_of_rest.add(label)
    assert labels_of_rest == set(labels)


def test_where_each_label_occurs_once_nothing_can_be_held_out():
    examples = [text_example("a", "x", location="f:1"), text_example("b", "y")]
    message = "^f:1: .* each has a label that no other example has; give --dev FILE, "
    with pytest.raises(ValueError, match=message):
        hold_out_a_tenth(examples, "classification")


@pytest.mark.parametrize("kind, labels", [
    ("regression", [1.0, 2.0, 3.0]),
    ("qa", [[(0, "a")], [(1, "b")], [(3, "c")]]),
])
def test_any_number_or_answer_may_be_held_out(kind, labels):
    """It need not occur a second time, as a class must."""
    examples = [text_example(str(i), label) for i, label in enumerate(labels)]
    tenth, rest = hold_out_a_tenth(examples, kind)
    assert len(tenth) == 1
    assert len(rest) == 2


def test_both_texts_decide_what_is_held_out():
    examples = [text_example("the same", "x", str(i), f"f:{i}") for i in range(40)]
    expected = hold_out_a_tenth(examples, "classification")
    assert hold_out_a_tenth(examples[::-1], "classification") == expected


def test_questions_about_one_context_are_held_out_together():
    """Otherwise a model would be measured on contexts that it has learned."""
    examples = []
    for number in range(20):
        for question in "abcde":
            examples.append(text_example(question, [(0, "x")], f"context {number}"))
    tenth, rest = hold_out_a_tenth(examples, "qa")
    assert len(tenth) == 10
    assert len(second_texts_of(tenth)) == 2
    assert second_texts_of(tenth).isdisjoint(second_texts_of(rest))
    tenth_again, rest_again = hold_out_a_tenth(examples[::-1], "qa")
    assert tenth == tenth_again
    assert rest == rest_again
    # For regression, pairs with the same second text are not held out together.
    tenth, _ = hold_out_a_tenth(examples, "regression")
    assert len(second_texts_of(tenth)) > 5


def test_one_example_alone_cannot_be_held_out():
    example = text_example("a", "x", location="f:7")
    with pytest.raises(ValueError, match="^f:7: .* this is the only one .*; give --dev FILE,"):
        hold_out_a_tenth([example], "classification")
    number = text_example("a", 1.5, location="f:7")
    with pytest.raises(ValueError, match="^f:7: .* this is the only one .*; give --dev FILE,"):
        hold_out_a_tenth([number], "regression")
    sentence = text_example(["a"], ["O"], location="f:7")
    with pytest.raises(ValueError, match="an empty line ends each sentence"):
        hold_out_a_tenth([sentence], "tagging")


def test_a_task_has_the_labels_of_its_training_set_sorted():
    train = [text_example("a", label) for label in ("no", "yes", "10", "9", "no")]
    dev = [text_example("a", "yes")]
    task = make_task("sst2", "classification", {"train": train, "dev": dev}, 16, 3)
    labels = ["10", "9", "no", "yes"]
    expected = Task("sst2", "classification", labels, ["accuracy"], length=16, stride=3,
                    pair=False, mean=0.0, sd=1.0, unanswerable=False)
    assert task == expected


def test_a_task_of_tags_has_both_tags_of_each_type_and_o():
    first = text_example(["a", "b"], ["O", "B-y"])
    second = text_example(["a"], ["B-x"])
    task = make_task("tagging", "tagging", {"train": [first, second]}, 16, 3)
    assert task.labels == ["B-x", "B-y", "I-x", "I-y", "O"]
    assert task.metrics == ["f1", "precision", "recall"]


def test_a_task_of_numbers_knows_their_mean_and_deviation():
    train = [text_example("a", number, "b") for number in (1.0, 2.0, 6.0)]
    task = make_task("stsb", "regression", {"train": train}, 16, 3)
    assert task.labels == []
    assert task.metrics == ["pearson", "spearman"]
    assert task.pair is True
    assert task.mean == pytest.approx(3.0)
    assert task.sd == pytest.approx((14 / 3)**0.5)       # 14 is 2**2 + 1**2 + 3**2


@pytest.mark.parametrize("answers, unanswerable", [
    ([[(0, "a")], [(0, "b")]], False), ([[(0, "a")], []], True)])
def test_a_task_of_questions_knows_whether_some_have_no_answer(answers, unanswerable):
    train = [text_example("who", label, "a b") for label in answers]
    task = make_task("qa", "qa", {"train": train}, 16, 3)
    assert task.unanswerable == unanswerable
    assert task.pair is True
    assert task.labels == []
    assert task.mean == 0.0
    assert task.sd == 1.0


def test_the_majority_tag_of_a_word_is_its_most_frequent_one_and_o_for_a_new_word():
    train = [text_example(["a", "b"], ["B-x", "O"]),
             text_example(["a", "b"], ["B-x", "B-x"]),
             text_example(["b"], ["O"])]
    asked = text_example(["b", "a", "c"], [])
    task = make_task_of_kind("tagging")
    tags, = majority(task, train, [asked])
    assert tags == ["O", "B-x", "O"]


def test_the_majority_is_the_most_frequent_class_the_mean_or_no_answer():
    train = [text_example("a", "x"), text_example("a", "y"), text_example("a", "y")]
    asked = train[:2]
    task = make_task_of_kind("classification", ["x", "y"])
    assert majority(task, train, asked) == ["y", "y"]
    task = make_task_of_kind("regression", mean=2.5)
    assert majority(task, train, asked) == [2.5, 2.5]
    task = make_task_of_kind("qa")
    assert majority(task, train, asked) == ["", ""]


# ---- Predictions on disk ----------------------------------------------------------------

def test_predictions_are_written_with_the_ids_and_the_true_labels(tmp_path):
    task = make_task_of_kind("classification", ["x", "y"])
    first_example = Example("a", None, "x", "17", "")
    second_example = Example("b", None, None, "18", "")
    first_probabilities = {"x": 0.25, "y": 0.75}
    second_probabilities = {"x": 1.0, "y": 0.0}
    predictions = [("y", first_probabilities), ("x", second_probabilities)]
    examples = [first_example, second_example]
    write_predictions(str(tmp_path), task, "test", examples, predictions)
    assert names_in(tmp_path) == ["test.jsonl"]
    lines = (tmp_path / "test.jsonl").read_text().splitlines()
    first, second = [json.loads(line) for line in lines]
    assert first == {"key": "17", "gold": "x", "prediction": "y",
                     "probabilities": first_probabilities}
    assert second == {"key": "18", "gold": None, "prediction": "x",
                      "probabilities": second_probabilities}


def test_predicted_tags_are_written_with_their_words(tmp_path):
    task = make_task_of_kind("tagging", ["B-PER", "I-PER", "O"])
    example = Example(["Ada", "sleeps"], None, ["B-PER", "O"], "0", "")
    prediction = (["O", "O"], {})
    write_predictions(str(tmp_path), task, "dev", [example], [prediction])
    line = (tmp_path / "dev.jsonl").read_text()
    assert json.loads(line) == {
        "key": "0", "gold": ["B-PER", "O"], "prediction": ["O", "O"], "probabilities": {},
        "words": ["Ada", "sleeps"]}


@pytest.mark.parametrize("name, split, file", [
    ("sst2", "dev", "dev.jsonl"),
    ("sst2", "test", "SST-2.tsv"),
    ("mnli", "dev_matched", "dev_matched.jsonl"),
    ("mnli", "test_matched", "MNLI-m.tsv"),
    ("mnli", "test_mismatched", "MNLI-mm.tsv"),
])
def test_predictions_for_a_test_set_of_glue_are_as_its_leaderboard_wants(
        name, split, file, tmp_path):
    task = make_task_of_kind("classification", ["x", "y"], name=name)
    examples = [text_example("a", None), text_example("b", None)]
    predictions = [("y", {}), ("x", {})]
    write_predictions(str(tmp_path), task, split, examples, predictions)
    assert names_in(tmp_path) == [file]
    if file.endswith(".tsv"):
        written = (tmp_path / file).read_text()
        assert written == "index\tprediction\n0\ty\n1\tx\n"


def test_numbers_for_the_leaderboard_are_from_0_to_5(tmp_path):
    task = make_task_of_kind("regression", name="stsb")
    examples = [text_example("a", None)] * 3
    predictions = [(-0.2, {}), (2.5, {}), (5.31, {})]
    write_predictions(str(tmp_path), task, "test", examples, predictions)
    written = (tmp_path / "STS-B.tsv").read_text()
    assert written == "index\tprediction\n0\t0.0\n1\t2.5\n2\t5.0\n"


@pytest.mark.parametrize("name", ["classification", *GLUE])
def test_all_predictions_are_among_the_files_that_a_new_run_removes(name, tmp_path):
    splits = ["dev", "test"]
    if name == "mnli":
        splits = ["dev_matched", "dev_mismatched", "test_matched", "test_mismatched"]
    kind = "classification"
    label = "y"
    if name == "stsb":
        kind = "regression"
        label = 2.5
    task = make_task_of_kind(kind, name=name)
    example = text_example("a", "x")
    for split in splits:
        write_predictions(str(tmp_path), task, split, [example], [(label, {})])
    assert len(os.listdir(tmp_path)) == len(splits)
    found = {os.path.basename(path) for path in files_of_run(str(tmp_path))}
    assert found == set(os.listdir(tmp_path)), "a file is missing in WRITTEN_BY_RUNS"
