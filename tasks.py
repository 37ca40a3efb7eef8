"""Read task files into Examples, and measure how good predictions are.

There are readers for GLUE in its official layout, tables with named columns, CoNLL files and SQuAD
files. One more task, "code", is made from the documentation on this machine. A fault in a file
raises a ValueError that names the file and, if possible, the line. Published tasks are scored with
the metrics of their authors.
"""
import io
import json
import math
import os
import re
import string
import tempfile
import unicodedata
import urllib.request
import zipfile
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from checkpoint import check_readable, expecting, parse_json_object, read_json, replace_file
from command import warn
from data import CACHE, is_held_out, rows_of_csv

# This command finds the code that depends on the kind of a task:
# grep -nE "(kind|task_name) (==|!=|in|not in) |task.labels" tasks.py finetune.py
# A new kind also needs its METRICS and COMPUTED_METRICS, its label in Example, its fields in
# Feature, its place in TASKS_OF_FLAG of finetune.py, and the help of --task and --train. What
# stands after these ifs, with an `else` or without one, is about all other kinds, so look at it,
# too. For example, majority() would take a new kind for tagging, without an error.
KINDS = ("classification", "regression", "tagging", "qa")


class Example(NamedTuple):
    """One row of a task. Its label, if it is known, is

    classification      a class, which is a text
    regression          a number
    tagging             a list of the words' tags
    qa                  a list of right answers, each (index of its first character in the context,
                        text); the list is empty if the context does not have the answer
    """
    text: object                # a text; in qa the question; in tagging a list of words
    second_text: object = None  # a second text; in qa the context; None if there is none
    label: object = None        # see above; None if it is not known
    id: str = ""                # qa: the id of the question; "code": the index of its line in the
                                # file; else the index of the example in the files of its split,
                                # also after it was held out. Indices count from 0, the line
                                # numbers in `location` from 1
    location: str = "an example"    # for messages: "file:line", in qa file and id of the question


@dataclass
class Task:
    """The facts that are needed to use a fine-tuned head. They are saved beside it as task.json.

    A new field needs a default, because older files lack it. If it changes what the head computes,
    load_head of finetune.py must compare it: a head may be loaded for another Task than it had.
    """
    name: str               # a key of GLUE, "code", or, for a user's own files, the kind
    kind: str               # one of KINDS
    labels: list            # all labels, sorted; in regression and qa empty
    metrics: list           # names of metrics; the first one decides between learning rates
    length: int             # the largest number of tokens in a sequence, T
    stride: int             # qa: how many tokens neighbouring windows of a context share, but not
                            # more than half a window (see answer_features of finetune.py)
    pair: bool              # whether each example has two texts
    mean: float             # regression: the mean of the training labels y, else 0
    sd: float               # regression: their standard deviation; the head predicts
                            # (y - mean) / sd. For other kinds it is 1
    unanswerable: bool      # qa: whether some training questions have no answer

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            allowed_types = [field.type]
            if field.type is float:
                allowed_types.append(int)                # JSON may have 0 instead of 0.0
            # type() is used, because isinstance() would take True for an int.
            if type(value) not in allowed_types:
                raise ValueError(f"{field.name} is {value!r:.60}, not {field.type.__name__}")
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r:.60}, not one of {', '.join(KINDS)}")
        if not self.metrics:
            raise ValueError("metrics is empty")
        known_metrics = COMPUTED_METRICS[self.kind]
        for metric in self.metrics:
            if metric not in known_metrics:
                raise ValueError(f"metrics has {metric!r:.60}, which is none of a task of kind "
                                 f"{self.kind}: {', '.join(known_metrics)}")
        for label in self.labels:
            if not isinstance(label, str):
                raise ValueError(f"labels has {label!r:.60}, but a label must be a text")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels has the same label twice")
        if self.length < 8:
            raise ValueError(f"length {self.length} is below 8")
        if self.kind != kind_of_task(self.name):
            raise ValueError(f"name is {self.name!r:.60}, which is no task of kind {self.kind}; a "
                             "task of your own has its kind as its name")


class Prediction(NamedTuple):
    """What a model predicts for an example."""
    guess: object           # a class, a number, a list of tags, or the text of an answer
    probabilities: dict     # classification: {class: probability}, at most the 100 largest; other
                            # kinds: {}


class GlueTask(NamedTuple):
    """What the official files of a task of GLUE look like."""
    folder: str             # the name of its folder
    text_columns: list      # the columns of the one or two texts
    label_column: str       # the column of the label
    kind: str
    metrics: list


# A new task also needs an entry in WRITTEN_BY_RUNS of checkpoint.py: the name of the .tsv that
# write_predictions writes for it. Here the metrics f1 and matthews are those of the label "1".
GLUE = {
    "cola": GlueTask("CoLA", ["sentence"], "label", "classification", ["matthews"]),
    "sst2": GlueTask("SST-2", ["sentence"], "label", "classification", ["accuracy"]),
    "mrpc": GlueTask("MRPC", ["#1 String", "#2 String"], "Quality", "classification",
                     ["f1", "accuracy"]),
    "stsb": GlueTask("STS-B", ["sentence1", "sentence2"], "score", "regression",
                     ["pearson", "spearman"]),
    "qqp": GlueTask("QQP", ["question1", "question2"], "is_duplicate", "classification",
                    ["f1", "accuracy"]),
    "mnli": GlueTask("MNLI", ["sentence1", "sentence2"], "gold_label", "classification",
                     ["accuracy"]),
    "qnli": GlueTask("QNLI", ["question", "sentence"], "label", "classification", ["accuracy"]),
    "rte": GlueTask("RTE", ["sentence1", "sentence2"], "label", "classification", ["accuracy"]),
    "wnli": GlueTask("WNLI", ["sentence1", "sentence2"], "label", "classification", ["accuracy"]),
}

# A larger value of each metric, here and in GLUE, must be better, because find_best_rate of
# finetune.py takes the rate with the highest score. print_scores shows 1 as 100 %.
METRICS = {                 # of tasks outside GLUE, by their kind
    "classification": ["accuracy", "macro_f1"],
    "regression": ["pearson", "spearman"],
    "tagging": ["f1", "precision", "recall"],            # of entities
    "qa": ["f1", "exact_match"],                         # f1 of words
}

COMPUTED_METRICS = {        # all that score() computes, by the kind of a task
    "classification": ["accuracy", "f1", "macro_f1", "matthews"],
    "regression": ["pearson", "spearman"],
    "tagging": ["precision", "recall", "f1"],
    "qa": ["f1", "exact_match"],
}


def kind_of_task(name):
    """Return the kind of a task. A task of a user's own files has its kind as its name."""
    if name in GLUE:
        return GLUE[name].kind
    if name == "code":
        return "tagging"
    return name


# ---- Metrics ----------------------------------------------------------------------------
# gold is the list of the true labels, guesses the list of the predicted ones.

def score(task, examples, guesses):
    """Score guesses by the task's metrics -> {metric: value}; {} if a label is unknown.

    A correlation is from -1 to 1, every other value from 0 to 1. ValueError if there are more or
    fewer guesses than examples. FloatingPointError if a predicted number is not finite.
    """
    gold = [example.label for example in examples]
    if len(gold) != len(guesses):
        raise ValueError(f"{len(guesses)} guesses for {len(gold)} examples")
    if any(label is None for label in gold):
        return {}
    if task.kind == "classification":
        scores = classification_scores(gold, guesses)
    elif task.kind == "regression":
        if not np.isfinite(guesses).all():
            raise FloatingPointError(f"{task.name}: the predictions are not finite")
        scores = regression_scores(gold, guesses)
    elif task.kind == "tagging":
        scores = entity_scores(gold, guesses)
    else:
        scores = answer_scores(gold, guesses)
    return {metric: scores[metric] for metric in task.metrics}


# Precision, recall and F1 compare two sets of items: the gold ones and the guessed ones.
#   classification: an item is (index of the example, class)
#   tagging: an item is an entity, (index of the sentence, first word, one past the last, type)
#   qa: an item is a word of an answer; the same word may be several items (see word_f1)
# A guessed item is correct if it is among the gold items. The "name" of an item is its last field:
# a class, or the type of an entity. (A word has no name.)

def item_scores(num_correct, num_gold, num_guessed):
    """Compute precision, recall and F1 from the numbers of correct items, of gold items and of
    guessed items.

        precision = correct / guessed        recall = correct / gold
        F1 = 2 precision recall / (precision + recall) = 2 correct / (gold + guessed)

    A fraction with the denominator 0 is 0.
    """
    return {"precision": num_correct / max(1, num_guessed),
            "recall": num_correct / max(1, num_gold),
            "f1": 2 * num_correct / max(1, num_gold + num_guessed)}


def scores_by_name(gold_items, guessed_items):
    """Score the items of each name separately -> {name: {metric: value}}.

    The metrics are those of item_scores, and "count", the number of gold items of this name.
    """
    num_correct = Counter(item[-1] for item in gold_items & guessed_items)
    num_gold = Counter(item[-1] for item in gold_items)
    num_guessed = Counter(item[-1] for item in guessed_items)
    scores = {}
    for name in sorted(num_gold | num_guessed):
        # A Counter has 0 for a name that it has not counted.
        scores[name] = item_scores(num_correct[name], num_gold[name], num_guessed[name])
        scores[name]["count"] = num_gold[name]
    return scores


def classification_scores(gold, guesses):
    """Score classes: accuracy, f1, macro_f1 and Matthews' correlation. As in GLUE, f1 and matthews
    are those of the label "1". macro_f1 is the mean F1 of all labels in gold or in guesses."""
    gold_items = set(enumerate(gold))
    guessed_items = set(enumerate(guesses))
    num_correct = len(gold_items & guessed_items)
    f1_of_label = {}
    for label, scores in scores_by_name(gold_items, guessed_items).items():
        f1_of_label[label] = scores["f1"]
    # Matthews' correlation is Pearson's correlation of numbers that are 1 for the label "1" and 0
    # for any other.
    gold_is_1 = [label == "1" for label in gold]
    guess_is_1 = [label == "1" for label in guesses]
    return {"accuracy": num_correct / len(gold),
            "f1": f1_of_label.get("1", 0.0),
            "macro_f1": sum(f1_of_label.values()) / len(f1_of_label),
            "matthews": pearson_correlation(gold_is_1, guess_is_1)}


def regression_scores(gold, guesses):
    """Score numbers: Pearson's correlation, and Spearman's, which is Pearson's of the ranks."""
    return {"pearson": pearson_correlation(gold, guesses),
            "spearman": pearson_correlation(ranks(gold), ranks(guesses))}


def pearson_correlation(x, y):
    """Compute Pearson's correlation of two lists of numbers; 0 if one of them is constant."""
    if len(set(x)) == 1 or len(set(y)) == 1:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def ranks(numbers):
    """Rank each number among all, from 1; equal numbers share the mean of their ranks."""
    # Equal numbers form a group. Smaller numbers are in earlier groups. group_of_number[i] is the
    # index of the group of numbers[i].
    _, group_of_number, group_sizes = np.unique(numbers, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(group_sizes)                   # the highest rank in each group
    first_rank = last_rank - group_sizes + 1
    mean_rank = (first_rank + last_rank) / 2
    return mean_rank[group_of_number]


def entity_scores(gold, guesses):
    """Score tags: precision, recall and F1 of entities, counted over all sentences, as conlleval
    and seqeval do. Only an exact match is correct."""
    gold_items = entities_of_all(gold)
    guessed_items = entities_of_all(guesses)
    num_correct = len(gold_items & guessed_items)
    return item_scores(num_correct, len(gold_items), len(guessed_items))


def entities_of_all(tags_of_sentences):
    """Collect the entities of sentences: {(index of the sentence, first, end, type)}."""
    found = set()
    for index, tags in enumerate(tags_of_sentences):
        for first, end, entity_type in entities(tags):
            found.add((index, first, end, entity_type))
    return found


def entities(tags):
    """Read the entities off IOB2 tags: {(first word, one past the last, type)}.

    An I- tag that does not continue an entity begins a new one, as in conlleval.
    """
    found = set()
    first = None                                         # first word of the open entity
    open_type = None                                     # its type; None: no entity is open
    for i, tag in enumerate(list(tags) + ["O"]):         # the added O closes an entity at the end
        if open_type is not None:
            if tag == f"I-{open_type}":
                continue                                 # the open entity goes on
            found.add((first, i, open_type))
        if tag == "O":
            open_type = None
        else:
            first = i
            open_type = tag[2:]                          # "PER" of "B-PER"
    return found


def answer_scores(gold, guesses):
    """Score answers: mean F1 of words and mean exact match, as the script of SQuAD 2.0 does.

    gold has for each question a list of right answers (first character, text). If the list is
    empty, the question has no answer, and "" is the right guess.
    """
    f1_total = 0.0
    num_exact = 0
    for answers, guess in zip(gold, guesses):
        guess_words = normal_words(guess)
        words_of_answers = []
        for _, text in answers:
            words = normal_words(text)
            if words:                                    # the script ignores answers such as "the"
                words_of_answers.append(words)
        if not words_of_answers:                         # then a guess without words is right
            words_of_answers = [[]]
        f1_total += max(word_f1(words, guess_words) for words in words_of_answers)
        if guess_words in words_of_answers:
            num_exact += 1
    return {"f1": f1_total / len(gold), "exact_match": num_exact / len(gold)}


def normal_words(answer):
    """List the words of an answer in lower case, without punctuation and articles."""
    delete_punctuation = str.maketrans("", "", string.punctuation)
    text = answer.lower().translate(delete_punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def word_f1(gold_words, guess_words):
    """Compute the F1 of a guessed answer's words against the words of a right answer."""
    if not gold_words and not guess_words:
        return 1.0                                       # both say that there is no answer
    # A word that occurs twice in both counts twice: & takes the smaller count of each word.
    shared = Counter(gold_words) & Counter(guess_words)
    return item_scores(shared.total(), len(gold_words), len(guess_words))["f1"]


def detailed_scores(task, examples, guesses):
    """Score each class, or each type of entity, separately -> {name: {metric: value}}.

    The metrics are precision, recall, f1, and count: how many true labels, or true entities, have
    this name. The result is {} for regression and qa, and if a label is not known.
    """
    gold = [example.label for example in examples]
    if any(label is None for label in gold):
        return {}
    if task.kind == "classification":
        return scores_by_name(set(enumerate(gold)), set(enumerate(guesses)))
    if task.kind == "tagging":
        return scores_by_name(entities_of_all(gold), entities_of_all(guesses))
    return {}


def majority(task, train_examples, examples):
    """Guess without a model: the most frequent label, in regression the mean, in qa no answer. In
    tagging each word gets its most frequent tag, or O if the word is new."""
    if task.kind == "regression":
        return [task.mean] * len(examples)
    if task.kind == "qa":
        return [""] * len(examples)
    if task.kind == "classification":
        counts = Counter(example.label for example in train_examples)
        return [counts.most_common(1)[0][0]] * len(examples)
    counts_of_word = defaultdict(Counter)                # {word: a Counter of its tags}
    for example in train_examples:
        for word, tag in zip(example.text, example.label):
            counts_of_word[word][tag] += 1
    tag_of_word = {}
    for word, counts in counts_of_word.items():
        tag_of_word[word] = counts.most_common(1)[0][0]
    return [[tag_of_word.get(word, "O") for word in example.text] for example in examples]


# ---- Reading tables: .tsv, .csv and .jsonl ----------------------------------------------

def lines_of(path):
    """Yield (number, line) of a file in UTF-8. Lines end at line feeds only, not at the other line
    separators of Unicode."""
    check_readable(path)
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            encoding = "utf-8"
            if number == 1:
                check_first_line(path, raw)
                encoding = "utf-8-sig"                   # a byte order mark may come first
            with expecting(f"{path}:{number}", "UTF-8 (unpack it, or convert it with iconv)"):
                line = raw.decode(encoding).rstrip("\r\n")
            yield number, line


def check_first_line(path, raw):
    """Raise ValueError if the first line of a file, as bytes, has NUL bytes, or if it is the whole
    file, in which carriage returns alone end the lines."""
    if b"\0" in raw:
        raise ValueError(f"{path}: its first line has NUL bytes. If it is in UTF-16 or UTF-32, "
                         "iconv converts it; if it is compressed, unpack it")
    # Old programs for the Mac, and Excel still, can end lines with a carriage return alone. Such a
    # file would be read as a single line.
    if b"\r" in raw.strip() and not raw.endswith(b"\n"):
        raise ValueError(f"{path}: a carriage return alone ends its lines: "
                         "tr '\\r' '\\n' < FILE > NEW makes line feeds of them")


def rows_of(path, header=None):
    """Yield (number of the line, {column: value}) of a table.

    The file name's ending decides the format. A .jsonl has one JSON object per line. A .csv may
    have quoted cells. In a .tsv or .txt tabs separate the cells, and quotes are ordinary text.
    In a .csv, .tsv or .txt the first row names the columns, unless `header` does. If a row has line
    breaks in quotes, the number is that of its last line.
    """
    check_readable(path)             # first, so that a missing file is not refused for its ending
    ending = os.path.splitext(path)[1].lower()
    if ending == ".jsonl":
        for number, line in lines_of(path):
            if line.strip():
                with expecting(f"{path}:{number}", "a JSON object"):
                    row = parse_json_object(line)
                yield number, row
        return
    if ending == ".csv":
        # lines_of has removed the line ends. They are needed, because a quoted cell may have some.
        lines = (line + "\n" for _, line in lines_of(path))
        rows = rows_of_csv(path, lines)
    elif ending in (".tsv", ".txt"):
        rows = ((number, line.split("\t")) for number, line in lines_of(path) if line)
    else:
        raise ValueError(f"{path}: the ending of a table must be .tsv, .txt, .csv or .jsonl (also "
                         "for a .json with an object on each line); other files, also compressed "
                         "ones, must be converted first")
    yield from name_cells(path, rows, header)


def name_cells(path, rows, header):
    """Yield (number, {column: cell}) for the rows of a table, each (number, list of cells). Empty
    rows are left out. header: the names of the columns; None: they are in the first row"""
    for number, cells in rows:
        location = f"{path}:{number}"
        if header is None:                               # the first row names the columns
            for column, count in Counter(cells).items():
                # A spreadsheet may end with several empty columns, which have no names.
                if count > 1 and column != "":
                    raise ValueError(f"{location}: {count} columns have the name {column!r:.60}")
            header = cells
            continue
        if not any(cells):                               # a spreadsheet may end with empty rows
            continue
        if len(cells) != len(header):
            raise ValueError(f"{location}: {len(cells)} columns, not {len(header)}; commas "
                             "separate the cells of a .csv (a cell with a comma needs quotes), "
                             "tabs those of a .tsv (quotes are text)")
        if cells == header:                              # files were joined, each with its header
            raise ValueError(f"{location}: this row repeats the names of the columns")
        yield number, dict(zip(header, cells))


def read_table(path, text_columns, label_column, header=None, kind="classification"):
    """Read Examples from the named columns of a table.

    text_columns: one or two names
    label_column: a name, or None if there are no labels
    kind: that of the task
    """
    examples = []
    num_empty = 0                                        # examples with an empty text
    for number, row in rows_of(path, header):
        location = f"{path}:{number}"
        texts = [cell(row, column, location, (str,)) for column in text_columns]
        label = None
        if label_column is not None:
            label = read_label(row, label_column, location, kind)
        second_text = texts[1] if len(texts) > 1 else None
        examples.append(Example(texts[0], second_text, label, id=str(len(examples)),
                                location=location))
        if any(text.strip() == "" for text in texts):
            num_empty += 1
    if num_empty > 0:
        warn(f"{path}: in {num_empty:,} of {len(examples):,} examples a text is empty")
    check_not_empty(examples, path)
    return examples


def read_label(row, column, location, kind):
    """Return the label in a row {column: value}. It is a text, or in regression a finite number.
    ValueError if it is missing."""
    # In Python a bool is an int. So the true and false of a .jsonl are classes, too: "True" and
    # "False".
    label = str(cell(row, column, location, (str, int, float))).strip()
    if label.lower() in ("", "nan"):                     # numpy writes nan for a missing number
        raise ValueError(f"{location}: the label in column {column!r} is {label!r}, which stands "
                         "for a missing one")
    if kind != "regression":
        return label
    with expecting(f"{location}: {column} {label!r:.60}", "a number, such as 3.29"):
        number = float(label)
        if not math.isfinite(number):
            raise ValueError("it is not finite")
    return number


def cell(row, column, location, types):
    """Return a cell of a row {column: value}. ValueError if the column is missing, or if the value
    has none of the types."""
    if column not in row:
        columns = ", ".join(repr(name) for name in row)
        raise ValueError(f"{location}: the column {column!r} is missing among {columns:.300}; tabs "
                         "separate columns in a .tsv, commas in a .csv, the first row must name "
                         "them, a .jsonl has a JSON object on each line, and --text and --label "
                         "say which to read")
    value = row[column]
    if not isinstance(value, types):
        expected = " or ".join(allowed.__name__ for allowed in types)
        raise ValueError(f"{location}: the column {column!r} is {value!r:.60}, not {expected}")
    return value


def check_not_empty(examples, path):
    """Raise ValueError if there are no examples."""
    if not examples:
        raise ValueError(f"{path}: the file has no examples")


# ---- Reading tags, questions, own files, GLUE -------------------------------------------

def read_tags(path):
    """Read Examples from a CoNLL file.

    Each line has a word in its first column and the tag in its last. Tabs or spaces separate the
    columns. An empty line or -DOCSTART- ends a sentence. The tags become IOB2. If they have no
    type, as in BioBERT's files, the type is "entity".
    """
    examples = []
    num_columns = None                                   # all lines must have as many as the first
    tags_have_type = None                                # the first tag that is not O decides this
    for sentence in sentences_of(path):
        words = []
        tags = []
        for location, line in sentence:
            columns = columns_of(line)
            if num_columns is None:
                num_columns = max(2, len(columns))       # at least a word and a tag
            tag = tag_of_line(line, columns, num_columns, location)
            if tag != "O":
                has_type = "-" in tag
                if tags_have_type is None:
                    tags_have_type = has_type
                if has_type != tags_have_type:
                    raise ValueError(f"{location}: of the tags up to {tag!r:.60} some have a type "
                                     "and some have none")
                if not has_type:
                    tag += "-entity"
            words.append(columns[0])
            tags.append(tag)
        first_location, _ = sentence[0]
        examples.append(Example(words, label=iob2(tags), id=str(len(examples)),
                                location=first_location))
    check_first_column(examples, num_columns, path)
    check_not_empty(examples, path)
    return examples


def sentences_of(path):
    """Yield the sentences of a CoNLL file, each a list of (location of the line, line)."""
    sentence = []
    for number, line in lines_of(path):
        is_boundary = not line.strip() or line.split()[0] == "-DOCSTART-"
        if not is_boundary:
            sentence.append((f"{path}:{number}", line))
        elif sentence:
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def columns_of(line):
    """Split a line of a CoNLL file at its tabs, or at its spaces if it has no tab. Other white
    space, such as a no-break space, belongs to the words."""
    if "\t" in line:
        return line.split("\t")
    return re.split(" +", line.strip(" "))


def tag_of_line(line, columns, num_columns, location):
    """Return the tag of a line of a CoNLL file. ValueError unless the line has num_columns columns,
    the first of them a word and the last a tag.

    columns: what columns_of has made of the line
    """
    if len(columns) != num_columns:
        raise ValueError(f"{location}: {line!r:.60} is not a word and a tag in {num_columns} "
                         "columns; tabs or spaces separate them")
    if not columns[0].strip():
        raise ValueError(f"{location}: {line!r:.60} has no word in its first column")
    tag = columns[-1].strip()
    if not re.fullmatch(r"O|[BIMESLU](-.+)?", tag):
        raise ValueError(f"{location}: the tag {tag!r:.60} is neither O nor one of B, I, M, E, S, "
                         "L, U, alone or with - and a type; no line may be a comment or name the "
                         "columns; a .csv or .jsonl must be converted: a word and its tag on each "
                         "line, with a tab between them")
    return tag


def iob2(tags):
    """Turn tags in IOB1, IOB2, BIOES, BMES or BILOU into IOB2, with the same entities.

    The first letter of a tag says where a word is: B begins an entity, I and M are inside one, E
    and L end one. S and U are for an entity of one word. In IOB1 an entity may begin with I. In
    IOB2 it always begins with B, and its other words have I. After E, L, S or U the entity has
    ended, so the next word cannot continue it.
    """
    converted = []
    previous = "O"                                       # the tag before, as it was given
    for tag in tags:
        is_open = previous[0] in ("B", "I", "M")         # an entity has begun and has not ended
        may_continue = tag[0] in ("I", "M", "E", "L")
        has_same_type = tag[1:] == previous[1:]          # such as "-PER"
        if tag == "O":
            converted.append("O")
        elif is_open and may_continue and has_same_type:
            converted.append("I" + tag[1:])
        else:
            converted.append("B" + tag[1:])
        previous = tag
    return converted


def check_first_column(examples, num_columns, path):
    """Raise ValueError if the first column cannot be the words. In some formats it numbers them, as
    in CoNLL-U, or it has the name of the document or of the sentence on each line. In WikiANN a
    language stands before each word, as in en:Paris."""
    sentences = [example.text for example in examples if len(example.text) > 1]
    if not sentences:
        return
    is_numbered = all(words[:2] in (["0", "1"], ["1", "2"]) for words in sentences)
    repeats_one_word = all(len(set(words)) == 1 for words in sentences)
    if is_numbered or (repeats_one_word and num_columns > 2):
        raise ValueError(f"{path}: the first column must have the words, but in the first sentence "
                         f"it has {' '.join(sentences[0])!r:.60}")
    all_words = []
    for words in sentences:
        all_words += words
    prefix = os.path.commonprefix(all_words)
    if re.fullmatch("[a-z-]+:", prefix):
        raise ValueError(f"{path}: all words begin with {prefix!r}, which must be removed, as "
                         f"sed 's/^{prefix}//' does")


def read_squad(path):
    """Read Examples from a file of SQuAD v1.1 or v2.0.

    The label of a question is None if its answers are not known: see right_answers.
    """
    # A table of questions, as the library datasets writes SQuAD, is refused by this.
    content = read_json(path, "a file in SQuAD's form (one JSON object with data, paragraphs and "
                        "qas; a table of questions must be converted)")
    examples = []
    with expecting(path, "SQuAD"):
        for article in field_of(content, "data", list):
            for paragraph in field_of(article, "paragraphs", list):
                context = field_of(paragraph, "context", str)
                for question in field_of(paragraph, "qas", list):
                    examples.append(squad_example(path, question, context))
    for question_id, count in Counter(example.id for example in examples).items():
        if count > 1:
            raise ValueError(f"{path}: {count} questions have the id {question_id!r:.60}")
    check_not_empty(examples, path)
    return examples


def squad_example(path, question, context):
    """Make the Example of a question. ValueError if a field is missing or of a wrong type, or as in
    right_answers."""
    question_id = field_of(question, "id", str)
    text = field_of(question, "question", str)
    location = f"{path}, question {question_id!r:.60}"
    return Example(text, context, right_answers(question, context), question_id, location)


def right_answers(question, context):
    """List the right answers to a question, each (index of its first character in the context,
    text). The list is empty if there is no answer. The result is None if the answers are not known.
    ValueError if an answer has no words or is not at its offset, or if a field is of a wrong type.

    A question may come without right answers. Then its fields decide about the result:

        is_impossible   answers         result
        true            anything        []
        false           empty           None, because the file keeps the answers secret
        missing         empty           []
        false, missing  missing         None
    """
    is_version_2 = question.get("is_impossible") is not None         # v1.1 does not have this field
    if is_version_2 and field_of(question, "is_impossible", bool):
        return []
    if "answers" not in question:
        return None
    answers = []
    for answer in field_of(question, "answers", list):
        text = field_of(answer, "text", str)
        start = field_of(answer, "answer_start", int)
        if not text.strip() or start < 0 or context[start:start + len(text)] != text:
            raise ValueError(f"the answer {text!r:.40} of question {question['id']!r:.60} is not "
                             f"at its offset {start} in the context, or has no words")
        answers.append((start, text))
    if is_version_2 and not answers:
        return None
    return answers


def field_of(value, name, field_type):
    """Return value[name]. ValueError unless value is a dict and the field is of this type."""
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.60} is not a JSON object with the field {name!r}")
    if name not in value:
        raise ValueError(f"the field {name!r} is missing in {value!r:.100}")
    if type(value[name]) is not field_type:
        raise ValueError(f"the field {name!r} is {value[name]!r:.60}, not {field_type.__name__}, "
                         f"in {value!r:.100}")
    return value[name]


def read_own_files(kind, files, text_columns, label_column):
    """Read a user's own files {name of a split: list of paths} -> {name of a split: examples}."""
    datasets = {}
    for split_name, paths in files.items():
        examples = []
        for path in paths:
            if kind == "tagging":
                examples += read_tags(path)
            elif kind == "qa":
                examples += read_squad(path)
            else:
                examples += read_table(path, text_columns, label_column, kind=kind)
        if kind == "qa":
            for example in examples:
                if example.label is None:
                    raise ValueError(f"{example.location}: its answers are missing")
        else:
            # In each file the indices of the examples count from 0. Here the examples of all files
            # of the split get new indices.
            examples = [example._replace(id=str(index))
                        for index, example in enumerate(examples)]
        datasets[split_name] = examples
    return datasets


def read_glue(name, folder, with_train=True):
    """Read a GLUE task in its official layout -> {name of a split: examples}. MNLI has two dev sets
    and two test sets. A test set may be missing. Its labels are not published, so its Examples have
    none.

    with_train: whether to read the training set
    """
    glue_task = GLUE[name]
    split_names = ["train", "dev", "test"]
    if name == "mnli":
        split_names = ["train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched"]
    if not with_train:
        split_names.remove("train")
    datasets = {}
    for split_name in split_names:
        path = os.path.join(folder, f"{split_name}.tsv")
        is_test = split_name.startswith("test")
        if is_test and not os.path.isfile(path):
            continue
        label_column = glue_task.label_column
        header = None                                    # the first line has it
        if is_test:
            label_column = None
        elif name == "cola":
            # CoLA's train.tsv and dev.tsv have no line with the names of the columns.
            header = ["source", "label", "star", "sentence"]
        datasets[split_name] = read_table(path, glue_task.text_columns, label_column, header,
                                          glue_task.kind)
    return datasets


GLUE_URL = "https://dl.fbaipublicfiles.com/glue/data/"
ZIP_NAMES = {"qqp": "QQP-clean", "qnli": "QNLIv2"}       # zips not named like their folders


def download_glue(name, cache=CACHE):
    """Return the folder of a GLUE task; its official zip is downloaded on first use. ValueError if
    that fails, and for MRPC, which has no zip, if the folder is not there."""
    folder_name = GLUE[name].folder
    folder = os.path.join(cache, "glue", folder_name)
    if os.path.isdir(folder):
        return folder
    if name == "mrpc":
        raise ValueError("mrpc: there is no official zip; get its files yourself (see "
                         "gluebenchmark.com/tasks), name them train.tsv and dev.tsv, and give "
                         "their folder with --data DIR")
    url = f"{GLUE_URL}{ZIP_NAMES.get(name, folder_name)}.zip"
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    # MNLI has two dev sets and two test sets, with these endings.
    pattern = r"[^/]+/(train|dev|test)(_matched|_mismatched)?\.tsv"
    print(f"downloading {url}", flush=True)
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            archive = zipfile.ZipFile(io.BytesIO(response.read()))
        with tempfile.TemporaryDirectory(dir=os.path.dirname(folder)) as temporary:
            unpacked = os.path.join(temporary, folder_name)
            for member in archive.infolist():
                if re.fullmatch(pattern, member.filename):
                    member.filename = os.path.basename(member.filename)  # extracted to this name
                    archive.extract(member, unpacked)
            os.replace(unpacked, folder)                 # only now, when all files are there
    except Exception as error:      # of the network, the zip file or the disk
        raise ValueError(f"{url}: {error}; if you have the files, give their folder with "
                         "--data DIR") from error
    return folder


# ---- Splitting a text into words, and the built-in task "code" --------------------------

# Some accents and vowel signs are characters of their own, in Unicode's categories M (marks). Other
# characters are invisible, such as the joiners of Persian and the soft hyphen (category Cf). All of
# them belong to the word in which they stand. A pattern cannot name the categories M and Cf. So
# find_words first replaces each of these characters by MARK, which a pattern can name. The
# zero-width space, also in Cf, separates words instead, so it is replaced by a space.
MARK = "\u0300"
ZERO_WIDTH_SPACE = "\u200b"
CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"     # ranges of characters
# [^\W...] is what \w matches, without the Chinese characters: letters, digits and underscores.
LETTER = rf"(?:[^\W{CHINESE}]|{MARK})"
WORD_PATTERN = re.compile(rf"""
    [{CHINESE}] {MARK}*                         # a Chinese character
    # A word, or a name with dots: torch.nn. A dot before a MARK is a punctuation character instead.
    | {LETTER}+ (?: \. (?!{MARK}) {LETTER}+ )*
    | [^\w\s] {MARK}*                           # a punctuation character
    """, re.VERBOSE)


def split_words(text):
    """Split a text into words and punctuation characters, which are then tagged. As in BERT, each
    Chinese character is a word."""
    return [text[begin:end] for begin, end in find_words(text)]


def find_words(text):
    """Find the words of split_words: [(first character, one past the last), ...].

    A mark (see MARK) belongs to the word or punctuation character before it. After a space or at
    the beginning it begins a word.
    """
    # Each replacement is as long as what it replaces, so all positions stay.
    text_to_match = text.replace(ZERO_WIDTH_SPACE, " ")
    if not text.isascii():                               # no ASCII character is in M or Cf
        for character in set(text_to_match):
            category = unicodedata.category(character)
            if category.startswith("M") or category == "Cf":
                text_to_match = text_to_match.replace(character, MARK)
    return [match.span() for match in WORD_PATTERN.finditer(text_to_match)]


def read_code_task(path):
    """Read the built-in task "code" -> {name of a split: examples}. The task is to find the words
    that were marked as code.

    path: the file of data.docs_on_this_machine. Each line is a paragraph: {"text": the paragraph
        without its mark-up, "code": [[begin, end], ...], the characters that were marked as code}

    A word that begins in a span of code gets the tag B-code or I-code, any other word O. Two spans
    with no word between them become one entity. Paragraphs without code are skipped. A tenth of the
    paragraphs, chosen by the hash of their text, is held out as dev.
    """
    datasets = {"train": [], "dev": []}
    for number, row in rows_of(path):
        if not row["code"]:
            continue
        text = row["text"]
        words = []
        tags = []
        for word_begin, word_end in find_words(text):
            words.append(text[word_begin:word_end])
            is_code = any(begin <= word_begin < end for begin, end in row["code"])
            tag = "O"
            if is_code:
                tag = "I-code"                           # iob2() below makes the first one B-code
            tags.append(tag)
        example = Example(words, label=iob2(tags), id=str(number - 1), location=f"{path}:{number}")
        if is_held_out(text, 10):
            datasets["dev"].append(example)
        else:
            datasets["train"].append(example)
    return datasets


# ---- Making a task, and writing its predictions -----------------------------------------

def hold_out_a_tenth(examples, kind):
    """Split examples -> (held out, rest). A tenth of them, rounded up, is held out, or fewer: an
    example is held out only if each of its labels stays in the rest, too.

    A hash of the texts orders the examples. So the split is the same on every machine, and the
    order in the file does not matter.

    kind: that of the task. In qa only the context is hashed, so all questions about a context are
        neighbours. They come into the same part; only the context at the border of the two parts
        may have questions in both.
    ValueError if no example can be held out, or if none would be left.
    """
    wanted = math.ceil(len(examples) / 10)
    num_left = Counter()                 # {label: how many examples outside held_out have it}
    for example in examples:
        num_left.update(labels_of_example(example, kind))
    held_out = []
    rest = []
    for example in sorted(examples, key=lambda example: sorting_key(example, kind)):
        labels = labels_of_example(example, kind)
        is_last_with_a_label = any(num_left[label] == 1 for label in labels)
        if len(held_out) == wanted or is_last_with_a_label:
            rest.append(example)
        else:
            held_out.append(example)
            num_left.subtract(labels)
    if not held_out or not rest:
        raise ValueError(f"{examples[0].location}: no example can be held out, because this is the "
                         "only one to train on (in a file of tags an empty line ends each "
                         "sentence), or each has a label that no other example has; give --dev "
                         "FILE, and no more than one --lr")
    return held_out, rest


def sorting_key(example, kind):
    """Return the key by which hold_out_a_tenth sorts the examples: (a hash, a text)."""
    if kind == "qa":
        to_hash = example.second_text
    else:
        to_hash = (example.text, example.second_text)
    # repr() would not do here. It escapes a character that Python does not know yet, such as a new
    # emoji, so it depends on the version of Python. ascii() escapes all that are not ASCII.
    text_hash = zlib.crc32(ascii(to_hash).encode())
    # In qa all questions about a context have the same hash. The second part of the key orders them
    # by the question and its label.
    return text_hash, ascii((example.text, example.label))


def labels_of_example(example, kind):
    """Return the set of an example's labels: its class, or its tags.

    In regression and qa it is empty: a number or an answer is not one of a task's labels.
    """
    if kind == "classification":
        return {example.label}
    if kind == "tagging":
        return set(example.label)
    return set()


def make_task(name, kind, datasets, length, stride):
    """Make the Task for datasets, {name of a split: examples}. Its labels, mean and sd are those of
    the training set. The sd of N numbers is computed with the denominator N, not N - 1.

    ValueError if all examples to train on have the same label or number.
    """
    train = datasets["train"]
    labels = labels_to_learn(train, kind)
    metrics = METRICS[kind]
    if name in GLUE:
        metrics = GLUE[name].metrics
    mean = 0.0
    sd = 1.0
    if kind == "regression":
        numbers = [example.label for example in train]
        mean = float(np.mean(numbers))
        sd = float(np.std(numbers))
        if min(numbers) == max(numbers):                 # not sd == 0: it may be 1e-17 by rounding
            raise ValueError(f"{train[0].location}: this and all other examples to train on have "
                             f"the number {numbers[0]:g}")
    unanswerable = False
    if kind == "qa":
        unanswerable = any(not example.label for example in train)           # [] means no answer
    return Task(name=name, kind=kind, labels=labels, metrics=metrics, length=length, stride=stride,
                pair=train[0].second_text is not None, mean=mean, sd=sd, unanswerable=unanswerable)


def labels_to_learn(train, kind):
    """List the labels of a training set, sorted. In tagging they are O and, for each type of
    entity, one with B- and one with I-. In regression and qa there are none.

    ValueError if there is only one class, or if all tags are O.
    """
    labels = set()
    for example in train:
        labels |= labels_of_example(example, kind)
    if kind == "tagging":
        types = {tag[2:] for tag in labels if tag != "O"}
        labels = {"O"}
        for entity_type in types:
            labels |= {f"B-{entity_type}", f"I-{entity_type}"}
    if kind in ("classification", "tagging") and len(labels) < 2:
        raise ValueError(f"{train[0].location}: this and all other examples to train on have "
                         f"only the label {min(labels)!r:.60}")
    return sorted(labels)


def write_predictions(out, task, split_name, examples, predictions):
    """Write a split's predictions into the folder out, as {split_name}.jsonl with one JSON object
    per line. For a test set of GLUE the file is a .tsv that the leaderboard accepts.

    predictions: for each example a Prediction
    """
    lines = []
    if task.name in GLUE and split_name.startswith("test"):
        ending = {"test": "", "test_matched": "-m", "test_mismatched": "-mm"}[split_name]
        file_name = f"{GLUE[task.name].folder}{ending}.tsv"
        lines.append("index\tprediction")
        for i, (guess, _) in enumerate(predictions):
            if task.name == "stsb":
                # The leaderboard refuses a file with a number outside 0 to 5.
                guess = min(max(guess, 0.0), 5.0)
            lines.append(f"{i}\t{guess}")
    else:
        file_name = f"{split_name}.jsonl"
        for example, (guess, probabilities) in zip(examples, predictions):
            row = {"key": example.id, "gold": example.label, "prediction": guess,
                   "probabilities": probabilities}
            if task.kind == "tagging":
                row["words"] = example.text              # each tag belongs to one of them
            lines.append(json.dumps(row))
    with replace_file(os.path.join(out, file_name)) as file:
        for line in lines:
            file.write(f"{line}\n".encode())
