"""Task files and metrics: what to classify, score, tag or answer, and how well it was done.

A reader for each file format gives Examples: GLUE in its official layout, tables with named
columns, CoNLL files, SQuAD files, and one task made from the documentation on this machine.
Whatever is wrong with a file is a ValueError that names the file and the line. The metrics are
those with which the tasks were published.
"""
import csv
import io
import json
import math
import os
import re
import shutil
import urllib.request
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from checkpoint import parse_json_object, parsing, replace_file
from data import CACHE, is_held_out

KINDS = ("classification", "regression", "tagging", "qa")


class Example(NamedTuple):
    """One row of a task."""
    text: object            # a text; in qa the question; in tagging a list of words
    second_text: object     # a second text; in qa the context; None if there is none
    label: object           # a name; a number; a tag for each word; in qa a list of answers, each
                            # (number of its first character in the context, text); None: unknown
    id: str                 # in qa the question's id, else the number of the row
    location: str           # "file:line", for messages


@dataclass
class Task:
    """What is to be known about a fine-tuned head to use it; saved as task.json beside it."""
    name: str               # a key of GLUE, "code", or the kind
    kind: str               # one of KINDS
    labels: list            # all labels, sorted; in regression and qa empty
    metrics: list           # names of scores; choices go by the first
    length: int             # tokens in a sequence at most, T
    stride: int             # qa: how many tokens two neighbouring windows of a context share
    pair: bool              # whether there are two texts
    mean: float             # regression: of the training labels; the head predicts (y - mean) / sd
    sd: float               # regression: their standard deviation
    unanswerable: bool      # qa: whether some questions have no answer

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            is_right = type(value) is field.type
            if field.type is float and type(value) is int:
                is_right = True
            if not is_right:
                raise ValueError(f"{field.name} is {value!r:.60}, not {field.type.__name__}")
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r:.60}, not one of {', '.join(KINDS)}")
        for label in self.labels:
            if not isinstance(label, str) or (label == "" and self.kind == "tagging"):
                raise ValueError(f"{label!r:.60} is not a label")
        if self.length < 8 or self.stride < 1:
            raise ValueError(f"length {self.length} is below 8, or stride {self.stride} below 1")
        if not abs(self.mean) < LARGEST_NUMBER or not abs(self.sd) < LARGEST_NUMBER:
            raise ValueError(f"mean {self.mean} or sd {self.sd} is not a usual number")
        if self.kind == "qa" and not self.pair:
            raise ValueError("in qa pair must be true: there are a question and a context")


class GlueTask(NamedTuple):
    folder: str             # the name of its folder, and of the zip that it is in
    texts: list             # the columns of the one or two texts
    label: str              # the column of the label
    kind: str
    metrics: list


LARGEST_NUMBER = 1e30       # a label in regression is below it, so that its square is finite
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
METRICS = {                 # of a user's own files, by the kind of task
    "classification": ["accuracy", "macro_f1"],
    "regression": ["pearson", "spearman"],
    "tagging": ["f1", "precision", "recall"],
    "qa": ["f1", "exact_match"],
}


# ---- Metrics ----------------------------------------------------------------------------
# gold and guesses are lists with a label for each example.

def score(task, examples, guesses):
    """Score guesses by the task's metrics -> {metric: value}; {} if the labels are unknown."""
    gold = [example.label for example in examples]
    if gold[0] is None:
        return {}
    if task.kind == "classification":
        scores = classification_scores(gold, guesses)
    elif task.kind == "regression":
        scores = regression_scores(gold, guesses)
    elif task.kind == "tagging":
        scores = entity_scores(gold, guesses)
    else:
        scores = answer_scores(gold, guesses)
    return {metric: scores[metric] for metric in task.metrics}


def classification_scores(gold, guesses):
    """Score classes: accuracy, F1 of the label "1" (GLUE's), the mean F1 of all labels, and
    Matthews' correlation."""
    correct = Counter(label for label, guess in zip(gold, guesses) if label == guess)
    gold_counts = Counter(gold)
    guess_counts = Counter(guesses)
    f1_of_label = {}
    for label in sorted(set(gold) | set(guesses)):
        # The harmonic mean of precision, correct / guessed, and recall, correct / gold.
        f1_of_label[label] = 2 * correct[label] / (gold_counts[label] + guess_counts[label])
    return {"accuracy": correct.total() / len(gold),
            "f1": f1_of_label.get("1", 0.0),
            "macro_f1": sum(f1_of_label.values()) / len(f1_of_label),
            "matthews": matthews_correlation(gold, guesses)}


def matthews_correlation(gold, guesses):
    """Compute Matthews' correlation for any number of classes (Gorodkin 2004); 0 if one side is
    constant.

    With N examples, c of them correct, and t_k, p_k examples whose label, guess is k:
    (c N - sum t_k p_k) / sqrt((N^2 - sum t_k^2) (N^2 - sum p_k^2)).
    """
    N = len(gold)
    num_correct = sum(1 for label, guess in zip(gold, guesses) if label == guess)
    gold_counts = Counter(gold)
    guess_counts = Counter(guesses)
    covariance = num_correct * N - sum(gold_counts[k] * guess_counts[k] for k in gold_counts)
    gold_variance = N**2 - sum(count**2 for count in gold_counts.values())
    guess_variance = N**2 - sum(count**2 for count in guess_counts.values())
    if gold_variance == 0 or guess_variance == 0:
        return 0.0
    return covariance / (gold_variance * guess_variance)**0.5


def regression_scores(gold, guesses):
    """Score numbers: Pearson's correlation, and Spearman's, which is that of their ranks."""
    return {"pearson": pearson_correlation(gold, guesses),
            "spearman": pearson_correlation(ranks(gold), ranks(guesses))}


def pearson_correlation(x, y):
    """Compute Pearson's correlation of two lists of numbers; 0 if one of them is constant."""
    x = np.array(x, np.float64)
    y = np.array(y, np.float64)
    if (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    x = x - x.mean()
    y = y - y.mean()
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def ranks(numbers):
    """Rank each number among all, from 1; equal numbers share the mean of their ranks."""
    _, which, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)                        # of each different number
    return (last_rank - (counts - 1) / 2)[which]


def entity_scores(gold, guesses):
    """Score tags: precision, recall and F1 of entities that match exactly, over all sentences, as
    conlleval and seqeval compute them."""
    gold_entities = entities_of_all(gold)
    guessed_entities = entities_of_all(guesses)
    num_correct = len(gold_entities & guessed_entities)
    return {"precision": num_correct / max(1, len(guessed_entities)),
            "recall": num_correct / max(1, len(gold_entities)),
            "f1": 2 * num_correct / max(1, len(gold_entities) + len(guessed_entities))}


def entities_of_all(sentences):
    """Collect the entities of sentences: {(number of the sentence, first, end, type)}."""
    found = set()
    for number, tags in enumerate(sentences):
        for first, end, kind in entities(tags):
            found.add((number, first, end, kind))
    return found


def entities(tags):
    """Read the entities off IOB2 tags: {(first word, one past the last, type)}.

    An I- tag that does not go on with an entity begins one, as in conlleval.
    """
    found = set()
    first = None                                         # of the entity that is open
    previous = "O"
    for i, tag in enumerate(list(tags) + ["O"]):         # the last one closes what is open
        goes_on = tag.startswith("I") and tag[1:] == previous[1:]
        if first is not None and not goes_on:
            found.add((first, i, previous[2:]))
            first = None
        if first is None and tag != "O":
            first = i
        previous = tag
    return found


def answer_scores(gold, guesses):
    """Score answers: mean F1 of words and mean exact match, as SQuAD's script computes them.

    gold has for each question a list of right answers (first character, text), which is empty if
    there is none; then "" is right.
    """
    f1_total = 0.0
    exact_total = 0.0
    for answers, guess in zip(gold, guesses):
        guess_words = normal_words(guess)
        right_answers = [normal_words(text) for _, text in answers]
        right_answers = [words for words in right_answers if words]
        if not right_answers:
            right_answers = [[]]
        f1_total += max(word_f1(words, guess_words) for words in right_answers)
        exact_total += float(guess_words in right_answers)
    return {"f1": f1_total / len(gold), "exact_match": exact_total / len(gold)}


def normal_words(answer):
    """List the words of an answer in lower case, without punctuation and articles."""
    text = re.sub(r"[!-/:-@[-`{-~]", "", answer.lower())      # the signs in string.punctuation
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def word_f1(gold_words, guess_words):
    """Compute the F1 of the words that two answers share."""
    if not gold_words or not guess_words:
        return float(gold_words == guess_words)
    shared = Counter(gold_words) & Counter(guess_words)
    return 2 * sum(shared.values()) / (len(gold_words) + len(guess_words))


def majority(task, train_examples, examples):
    """Guess without a model: the most frequent label, the mean, each word's most frequent tag (O
    if the word is new), or no answer."""
    if task.kind == "regression":
        return [task.mean] * len(examples)
    if task.kind == "qa":
        return [""] * len(examples)
    if task.kind == "classification":
        counts = Counter(str(example.label) for example in train_examples)
        return [counts.most_common(1)[0][0]] * len(examples)
    counts_of_word = {}
    for example in train_examples:
        for word, tag in zip(example.text, example.label):
            counts_of_word.setdefault(word, Counter())[tag] += 1
    tag_of_word = {}
    for word, counts in counts_of_word.items():
        tag_of_word[word] = counts.most_common(1)[0][0]
    return [[tag_of_word.get(word, "O") for word in example.text] for example in examples]


# ---- Reading tables: .tsv, .csv and .jsonl ----------------------------------------------

def lines_of(path):
    """Yield (number, line) of a file in UTF-8. Nothing but a line feed ends a line."""
    number = 0
    with open(path, "rb") as file:
        for raw in file:
            number += 1
            encoding = "utf-8"
            if number == 1:
                encoding = "utf-8-sig"                   # a byte order mark may come first
            with parsing(f"{path}:{number}", "UTF-8"):
                line = raw.decode(encoding).rstrip("\r\n")
            yield number, line
    if number == 0:
        raise ValueError(f"{path}: the file is empty")


def rows_of(path, header=None):
    """Yield (number of the line, {column: value}) of a table.

    The ending decides: .jsonl has an object a line, .csv has quoted cells, anything else is
    tab-separated and has no quotes. The first row names the columns unless `header` does.
    """
    if path.endswith(".jsonl"):
        yield from rows_of_jsonl(path)
        return
    if path.endswith(".csv"):
        rows = cells_of_csv(path)
    else:
        rows = cells_of_tsv(path)
    for number, cells in rows:
        if header is None:
            header = cells
        elif cells:
            if len(cells) != len(header):
                raise ValueError(f"{path}:{number}: {len(cells)} columns, not {len(header)}")
            yield number, dict(zip(header, cells))


def rows_of_jsonl(path):
    """Yield (number of the line, {name: value}) of a file with a JSON object a line."""
    for number, line in lines_of(path):
        if line.strip():
            with parsing(f"{path}:{number}", "a JSON object"):
                row = parse_json_object(line)
            yield number, row


def cells_of_tsv(path):
    """Yield (number of the line, its cells) of a tab-separated file; an empty line has none."""
    for number, line in lines_of(path):
        cells = []
        if line:
            cells = line.split("\t")
        yield number, cells


def cells_of_csv(path):
    """Yield (number of the last line, cells) of each row; a quoted cell may have line breaks."""
    rows = csv.reader((line + "\n" for _, line in lines_of(path)), strict=True)
    while True:
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise ValueError(f"{path}:{rows.line_num}: {error}") from error
        if cells is None:
            return
        yield rows.line_num, cells


def read_table(path, text_columns, label_column, header=None, numeric=False):
    """Read Examples from the named columns of a table.

    text_columns: one or two names; label_column: a name, or None if there are no labels;
    numeric: the label is a number
    """
    examples = []
    for number, row in rows_of(path, header):
        location = f"{path}:{number}"
        texts = [cell(row, column, (str,), location) for column in text_columns]
        label = None
        if label_column is not None:
            label = str(cell(row, label_column, (str, int, float), location))
            if numeric:
                label = read_number(label, label_column, location)
        second_text = texts[1] if len(texts) > 1 else None
        examples.append(Example(texts[0], second_text, label, str(len(examples)), location))
    return not_empty(examples, path)


def cell(row, column, types, location):
    """Return a cell of a row {column: value}. ValueError if there is none of these types."""
    value = row.get(column)
    if not isinstance(value, types):
        columns = ", ".join(repr(name) for name in row)
        raise ValueError(f"{location}: no column {column!r}, or no text in it; the columns are "
                         f"{columns:.300}")
    return value


def read_number(text, column, location):
    """Read a label that is a number, of a size whose square is finite, too."""
    pattern = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d{1,2})?"
    if not re.fullmatch(pattern, text.lower()) or abs(float(text)) >= LARGEST_NUMBER:
        raise ValueError(f"{location}: {column} {text!r:.60} is not a number")
    return float(text)


def not_empty(examples, path):
    """Return the examples. ValueError if there are none."""
    if not examples:
        raise ValueError(f"{path}: there is no example in it")
    return examples


# ---- Reading tags, questions, GLUE ------------------------------------------------------

def read_tags(path):
    """Read Examples from a CoNLL file: on each line a word first and its tag last, with tabs or
    spaces between; an empty line or -DOCSTART- ends a sentence. The tags become IOB2."""
    examples = []
    words = []
    tags = []
    num_columns = None                                   # that of the first line holds for all
    first_line = 1
    for number, line in list(lines_of(path)) + [(0, "")]:     # the last one ends the last sentence
        cells = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or cells[0] == "-DOCSTART-":
            if words:
                location = f"{path}:{first_line}"
                examples.append(Example(words, None, iob2(tags), str(len(examples)), location))
            words = []
            tags = []
            first_line = number + 1
            continue
        if num_columns is None:
            num_columns = max(2, len(cells))
        if len(cells) != num_columns or not cells[0].strip():
            raise ValueError(f"{path}:{number}: {line!r:.60} is not a word and a tag in "
                             f"{num_columns} columns")
        word = cells[0]
        tag = cells[-1]
        if not re.fullmatch(r"O|[BIESLU]-.+", tag):
            raise ValueError(f"{path}:{number}: the tag {tag!r:.60} is neither O nor like B-X, I-X")
        words.append(word)
        tags.append(tag)
    return not_empty(examples, path)


def iob2(tags):
    """Turn tags in IOB1, IOB2, BIOES or BILOU into IOB2, with the same entities.

    The first letter of a tag means: B begins an entity, I is inside, E and L end one, S and U are
    an entity of one word. In IOB1 an entity may begin with I. In IOB2 it begins with B, and I
    follows.
    """
    converted = []
    previous = "O"
    for tag in tags:
        same_type = tag[1:] == previous[1:]
        goes_on = tag[0] in "IEL" and previous[0] in "BI" and same_type
        if tag == "O":
            converted.append("O")
        elif goes_on:
            converted.append("I" + tag[1:])
        else:
            converted.append("B" + tag[1:])
        previous = tag
    return converted


def read_squad(path):
    """Read Examples from a file of SQuAD v1.1 or v2.0."""
    text = "\n".join(line for _, line in lines_of(path))
    examples = []
    for question, context in squad_questions(path, text):
        try:
            examples.append(squad_example(path, question, context))
        except ValueError as error:
            number = line_of_question(text, question)
            raise ValueError(f"{path}:{number}: not SQuAD: {error}") from error
    return not_empty(examples, path)


def squad_questions(path, text):
    """Yield (question, its context) of a SQuAD file's text; a question is a JSON object."""
    with parsing(path, "SQuAD"):
        for article in field_of(parse_json_object(text), "data", list):
            for paragraph in field_of(article, "paragraphs", list):
                context = field_of(paragraph, "context", str)
                for question in field_of(paragraph, "qas", list):
                    yield question, context


def squad_example(path, question, context):
    """Make the Example of a question. ValueError if an answer is not at its place."""
    question_id = field_of(question, "id", str)
    answers = []
    if not question.get("is_impossible"):                # a field of SQuAD v2.0
        for answer in field_of(question, "answers", list):
            text = field_of(answer, "text", str)
            start = field_of(answer, "answer_start", int)
            if text == "" or start < 0 or context[start:start + len(text)] != text:
                raise ValueError(f"the answer {text!r:.40} of question {question_id!r:.60} is "
                                 f"not at its offset {start} in the context")
            answers.append((start, text))
    return Example(field_of(question, "question", str), context, answers, question_id, path)


def line_of_question(text, question):
    """Find the line of a SQuAD file's text on which a question's id stands; 1 if it has none."""
    if not isinstance(question, dict) or not isinstance(question.get("id"), str):
        return 1
    position = max(0, text.find(json.dumps(question["id"])))
    return text.count("\n", 0, position) + 1


def field_of(value, name, kind):
    """Return value[name]. ValueError unless value is a dict and the field is of this kind."""
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.60} is not a JSON object with {name!r}")
    if type(value.get(name)) is not kind:
        raise ValueError(f"{name!r} is {value.get(name)!r:.60}, not a {kind.__name__}")
    return value[name]


def read_glue(name, folder):
    """Read a GLUE task in its official layout -> {split: examples}. MNLI has two dev sets."""
    task = GLUE[name]
    endings = ("",)
    if name == "mnli":
        endings = ("_matched", "_mismatched")
    splits = {"train": read_glue_file(name, folder, "train", task.label)}
    for ending in endings:
        splits[f"dev{ending}"] = read_glue_file(name, folder, f"dev{ending}", task.label)
    for ending in endings:
        if os.path.isfile(os.path.join(folder, f"test{ending}.tsv")):
            splits[f"test{ending}"] = read_glue_file(name, folder, f"test{ending}", None)
    return splits


def read_glue_file(name, folder, split, label_column):
    """Read the Examples of one split of a GLUE task; label_column None: its labels are secret."""
    task = GLUE[name]
    header = None
    if name == "cola" and label_column is not None:      # these files do not name their columns
        header = ["source", "label", "star", "sentence"]
    path = os.path.join(folder, f"{split}.tsv")
    return read_table(path, task.texts, label_column, header, task.kind == "regression")


GLUE_URL = "https://dl.fbaipublicfiles.com/glue/data/"
ZIP_NAMES = {"qqp": "QQP-clean", "qnli": "QNLIv2"}       # those unlike the folder's name


def download_glue(name, cache=CACHE):
    """Return the folder of a GLUE task; its official zip is downloaded on first use."""
    folder_name = GLUE[name].folder
    folder = os.path.join(cache, "glue", folder_name)
    if os.path.isdir(folder):
        return folder
    if name == "mrpc":
        raise ValueError("mrpc: there is no official zip; get its files (see "
                         "gluebenchmark.com/tasks) and give their folder with --data DIR")
    url = f"{GLUE_URL}{ZIP_NAMES.get(name, folder_name)}.zip"
    temporary = f"{folder}.tmp"
    os.makedirs(temporary, exist_ok=True)
    try:
        archive = zipfile.ZipFile(download(url))
        for member in archive.infolist():
            if re.fullmatch(r"[^/]+/(train|dev|test)(_\w+)?\.tsv", member.filename):
                member.filename = os.path.basename(member.filename)
                archive.extract(member, temporary)
        os.replace(temporary, folder)
    except Exception as error:      # of the network, of the zip or of the disk
        raise ValueError(f"{url}: {error}; if you have its files, say --data DIR") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def download(url):
    """Download a file into memory, with a progress bar -> a file object."""
    content = io.BytesIO()
    with urllib.request.urlopen(url, timeout=30) as answer:
        size = int(answer.headers.get("Content-Length", 0))
        with tqdm(total=size, unit="B", desc=url, unit_scale=True, disable=None) as bar:
            while True:
                chunk = answer.read(1 << 16)
                if not chunk:
                    break
                content.write(chunk)
                bar.update(len(chunk))
    content.seek(0)
    return content


# ---- The task without files -------------------------------------------------------------

TAGGED_WORD = re.compile(r"\w+(?:\.\w+)*|[^\w\s]")       # a word, a name with dots, or a sign


def read_code_task(path):
    """Read {split: examples} of the embedded task "code": tag what was marked as code.

    path: the file of docs_on_this_machine. The text has lost its marks; the tags are B-code and
    I-code where they were. A tenth of the paragraphs is the split dev.
    """
    splits = {"train": [], "dev": []}
    for number, row in rows_of(path):
        if not row["code"]:
            continue
        words = []
        tags = []
        for match in TAGGED_WORD.finditer(row["text"]):
            is_code = any(begin <= match.start() < end for begin, end in row["code"])
            words.append(match[0])
            tags.append("I-code" if is_code else "O")
        example = Example(words, None, iob2(tags), str(number - 1), f"{path}:{number}")
        if is_held_out(row["text"], 10):
            splits["dev"].append(example)
        else:
            splits["train"].append(example)
    return splits


# ---- Putting a task together ------------------------------------------------------------

def read_own_files(name, kind, files, text_columns, label_column):
    """Read a user's own files: files is {split: list of paths} -> {split: examples}."""
    if "train" not in files:
        raise ValueError(f"--task {name} is about files of yours: give --train FILE and, if you "
                         "have them, --dev FILE and --test FILE")
    splits = {}
    for split, paths in files.items():
        splits[split] = []
        for path in paths:
            if kind == "tagging":
                splits[split] += read_tags(path)
            elif kind == "qa":
                splits[split] += read_squad(path)
            else:
                splits[split] += read_table(path, text_columns, label_column,
                                            numeric=kind == "regression")
    return splits


def hold_out_a_tenth(examples):
    """Split examples -> (a tenth of them, the rest).

    They are ordered by the hash of their texts: the split is alike on every machine and does not
    depend on the order in the file.
    """
    def text_hash(example):
        return zlib.crc32(repr((example.text, example.second_text)).encode())

    if len(examples) < 2:
        raise ValueError(f"{examples[0].location}: this is the only example; none is left to "
                         "choose by")
    ordered = sorted(examples, key=text_hash)
    tenth = math.ceil(len(ordered) / 10)
    return ordered[:tenth], ordered[tenth:]


def make_task(name, kind, splits, length, stride):
    """Make the Task of {split: examples}. Its labels are those of the training set.

    ValueError names an example of another split with a label that is not among them.
    """
    train = splits["train"]
    labels = []
    if kind == "classification":
        labels = sorted({example.label for example in train})
        if len(labels) < 2:
            raise ValueError(f"{train[0].location}: all examples have the label "
                             f"{labels[0]!r:.60}")
    elif kind == "tagging":
        types = set()
        for example in train:
            types |= {tag[2:] for tag in example.label if tag != "O"}
        labels = sorted(["O"] + [f"B-{t}" for t in types] + [f"I-{t}" for t in types])
    if labels:
        check_labels(splits, kind, labels)
    metrics = METRICS[kind]
    if name in GLUE:
        metrics = GLUE[name].metrics
    mean = 0.0
    sd = 1.0
    if kind == "regression":
        numbers = [example.label for example in train]
        mean = float(np.mean(numbers))
        if np.std(numbers) > 0:
            sd = float(np.std(numbers))
    unanswerable = kind == "qa" and not all(example.label for example in train)
    return Task(name, kind, labels, metrics, length, stride, train[0].second_text is not None,
                mean, sd, unanswerable)


def check_labels(splits, kind, labels):
    """Raise ValueError if an example has a label that is not among the labels."""
    known = set(labels)
    for examples in splits.values():
        for example in examples:
            if example.label is None:                    # a test set without labels
                continue
            own_labels = example.label if kind == "tagging" else [example.label]
            for label in own_labels:
                if label not in known:
                    raise ValueError(f"{example.location}: label {label!r:.60} is not in the "
                                     f"training set: {' '.join(labels):.300}")


def write_predictions(out, task, split, examples, predictions):
    """Write a split's predictions into the folder out, as {split}.jsonl with an object a line;
    those for a test set of GLUE as its leaderboard wants them.

    predictions: for each example (what is predicted, {label: probability})
    """
    if task.name in GLUE and split.startswith("test"):
        ending = {"test": "", "test_matched": "-m", "test_mismatched": "-mm"}[split]
        file_name = f"{GLUE[task.name].folder}{ending}.tsv"
        lines = ["index\tprediction"]
        for i, (prediction, _) in enumerate(predictions):
            lines.append(f"{i}\t{prediction}")
    else:
        file_name = f"{split}.jsonl"
        lines = []
        for example, (prediction, probabilities) in zip(examples, predictions):
            lines.append(json.dumps({"key": example.id, "gold": example.label,
                                     "prediction": prediction, "probabilities": probabilities}))
    with replace_file(os.path.join(out, file_name)) as file:
        for line in lines:
            file.write(f"{line}\n".encode())
