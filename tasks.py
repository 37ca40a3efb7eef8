"""Task files and metrics: what to classify, score, tag or answer, and how well it was done.

GLUE in its official layout, tables with named columns, CoNLL tags, SQuAD, and three tasks made of
the documentation that is on every machine. A reader gives Examples; whatever is wrong with a file
is a ValueError that names file and line. Metrics are those the tasks are published with, in numpy.
"""
import csv
import io
import json
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

from data import CACHE, docs_on_this_machine, fail, write

class Example(NamedTuple):
    a: object                                            # a text; a question; the words to tag
    b: object                                            # a second text; the context; or None
    label: object        # a name, a number, or None; tags of the words; [(first character, answer)]
    key: str                                             # a question's id; else the row's number
    where: str                                           # file:line, for messages

@dataclass
class Task:
    """What is to be known of a head: the task.json beside it."""
    name: str                                            # of GLUE or EMBEDDED, or the kind
    kind: str                                            # classification regression tagging qa
    labels: list                                         # sorted; [] of regression and qa
    metrics: list                                        # choices go by the first
    length: int                                          # tokens at most of a sequence, T
    stride: int                                          # tokens that two windows of qa share
    pair: bool                                           # two texts, or a question and a context
    mean: float                                          # of the numbers to train on: outputs are
    sd: float                                            # in units of sd, from the mean
    unanswerable: bool                                   # qa: "" may be right

    def __post_init__(self):
        for field in fields(self):
            kind, x = field.type, getattr(self, field.name)
            if type(x) is not kind and (type(x), kind) != (int, float):
                raise TypeError(f"{field.name} is {x!r:.60}, not {kind.__name__}")
        if (self.kind not in list(METRICS)[:4] or self.length < 8 or self.stride < 1
                or not all(type(x) is str and (x or self.kind != "tagging") for x in self.labels)
                or not abs(self.mean) + abs(self.sd) < 1e31 or self.pair < (self.kind == "qa")):
            raise TypeError(f"{self!r:.500} cannot be")

GLUE = {                                                 # folder, columns of texts and label
    "cola": ("CoLA", ["sentence"], "label"), "sst2": ("SST-2", ["sentence"], "label"),
    "mrpc": ("MRPC", ["#1 String", "#2 String"], "Quality"),
    "stsb": ("STS-B", ["sentence1", "sentence2"], "score"),
    "qqp": ("QQP", ["question1", "question2"], "is_duplicate"),
    "mnli": ("MNLI", ["sentence1", "sentence2"], "gold_label"),
    "qnli": ("QNLI", ["question", "sentence"], "label"),
    "rte": ("RTE", ["sentence1", "sentence2"], "label"),
    "wnli": ("WNLI", ["sentence1", "sentence2"], "label")}
GLUE_URL, ZIPS = "https://dl.fbaipublicfiles.com/glue/data/", {"qqp": "QQP-clean", "qnli": "QNLIv2"}
WORD = re.compile(r"\w+(?:\.\w+)*|[^\w\s]")              # what is tagged in a plain text
EMBEDDED = {"code": "tagging", "part": "classification", "follows": "classification"}
PARTS = frozenset("python.reference python.asyncio python.email python.tkinter torch.nn torch.fx "
                  "torch.distributed torch._inductor torch._dynamo numpy.lib numpy.ma".split())

def lines_of(path):
    """(number, line) of a file in UTF-8; nothing but a line feed ends a line."""
    number = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8: {error}") from error
    if not number:
        raise ValueError(f"{path}: empty")

def from_json(text):
    """What JSON says. ValueError, too, for half a character, which no tokenizer takes."""
    found = json.loads(text)
    if "\\ud" in text.lower():
        json.dumps(found, ensure_ascii=False).encode()
    return found

def rows_of(path, header=None):
    """(number, {column: value}) of a .jsonl, a .csv or a .tsv, whose quotes are text; the first row
    of the latter two names the columns. ValueError names file and line of a ragged row."""
    if path.endswith(".jsonl"):
        for number, line in lines_of(path):
            try:
                if line.strip():
                    yield number, {} | from_json(line)
            except (ValueError, TypeError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: not a JSON object: {error}") from error
        return
    rows = (line.split("\t") if line else [] for _, line in lines_of(path))
    if path.endswith(".csv"):
        rows = csv.reader((line + "\n" for _, line in lines_of(path)), strict=True)
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            number = getattr(rows, "line_num", number)
            if header is None:
                header = row
            elif row and len(row) != len(header):
                raise ValueError(f"{path}:{number}: {len(row)} columns, not {len(header)}")
            elif row:
                yield number, dict(zip(header, row))
    except csv.Error as error:
        raise ValueError(f"{path}:{rows.line_num}: {error}") from error

def read_table(path, texts, label, header=None, numeric=False):
    """Examples from the named columns: one or two of text; the label's, None if there is none."""
    examples, names = [], [*texts, *[label] * (label is not None)]
    for number, row in rows_of(path, header):
        where = f"{path}:{number}"
        for name in names:
            if not isinstance(row.get(name), str if name in texts else (str, int, float)):
                raise ValueError(f"{where}: no column {name!r}, or no text in it: {[*row]!s:.300}")
        value = None if label is None else str(row[label])
        if numeric and value is not None:
            if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d{1,2})?", value.lower()) or not (
                    abs(float(value)) < 1e30):           # whose square is still a number
                raise ValueError(f"{where}: {label} {value!r:.60} is not a number")
            value = float(value)
        a, b = [*(row[name] for name in texts), None][:2]
        examples.append(Example(a, b, value, str(len(examples)), where))
    return some(examples, path)

def some(examples, path):
    if not examples:
        raise ValueError(f"{path}: no example in it")
    return examples

def read_tags(path):
    """Sentences of a CoNLL file: a word first and its tag last on a line, tabs or spaces between;
    an empty line or -DOCSTART- ends a sentence. The tags become IOB2."""
    examples, words, tags, columns, first = [], [], [], None, 1
    for number, line in [*lines_of(path), (0, "")]:
        row = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or row[0] == "-DOCSTART-":
            if words:
                where = f"{path}:{first}"
                examples.append(Example(words, None, iob2(tags), str(len(examples)), where))
            words, tags, first = [], [], number + 1
            continue
        columns = columns or max(2, len(row))
        if len(row) != columns or not row[0].strip():
            raise ValueError(f"{path}:{number}: {line!r:.60} is not a word and a tag in {columns} "
                             "columns")
        if not re.fullmatch(r"O|[BIESLU]-.+", row[-1]):
            raise ValueError(f"{path}:{number}: tag {row[-1]!r:.60} is neither O nor like B-X, I-X")
        words.append(row[0]), tags.append(row[-1])
    return some(examples, path)

def iob2(tags):
    """Tags in IOB1, IOB2, BIOES or BILOU -> the same entities in IOB2."""
    out, before = [], "O"
    for tag in tags:
        inside = tag[0] in "IEL" and before[0] in "BI" and before[1:] == tag[1:]
        out.append(tag if tag == "O" else ("I" if inside else "B") + tag[1:])
        before = tag
    return out

def read_squad(path):
    """Questions of SQuAD v1.1 or v2.0. ValueError names file and line of an answer that is not at
    its offset, or of a question without one of its fields."""
    text, examples, key = "\n".join(line for _, line in lines_of(path)), [], ""
    try:
        for paragraph in (p for article in from_json(text)["data"] for p in article["paragraphs"]):
            for question in paragraph["qas"]:
                key, context = question["id"] + "", paragraph["context"] + ""
                answers = [] if question.get("is_impossible") else [
                    (answer["answer_start"], answer["text"]) for answer in question["answers"]]
                for start, answer in answers:
                    if not answer or not 0 <= start == context.find(answer, start):
                        raise ValueError(f"the answer {answer!r:.40} of question {key} is not at "
                                         f"its offset {start} in the context")
                examples.append(Example(question["question"] + "", context, answers, key, path))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        line = text[:max(0, text.find(json.dumps(key)))].count("\n") + 1
        raise ValueError(f"{path}:{line}: not SQuAD: {type(error).__name__}: {error}") from error
    return some(examples, path)

def read_glue(name, folder):
    """{split: examples} of a GLUE task in its official layout: train, each dev and each test."""
    _, texts, label = GLUE[name]
    ends, splits = ("_matched", "_mismatched") if name == "mnli" else ("",), {}
    for split in ("train", *("dev" + end for end in ends), *("test" + end for end in ends)):
        path, test = os.path.join(folder, f"{split}.tsv"), split.startswith("test")
        if not test or os.path.isfile(path):             # a test set is not a must
            header = "source label star sentence".split() if name == "cola" and not test else None
            splits[split] = read_table(path, texts, None if test else label, header, name == "stsb")
    return splits

def download_glue(name, cache=CACHE):
    """The folder of a GLUE task, from its official zip, which is fetched once."""
    stem = GLUE[name][0]
    folder, url = os.path.join(cache, "glue", stem), f"{GLUE_URL}{ZIPS.get(name, stem)}.zip"
    if os.path.isdir(folder):
        return folder
    if name == "mrpc":
        raise ValueError("mrpc has no zip: see gluebenchmark.com/tasks, then say --data DIR")
    os.makedirs(f"{folder}.tmp", exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=30) as answer, io.BytesIO() as packed:
            with tqdm(total=int(answer.headers.get("Content-Length", 0)), unit="B", desc=url,
                      unit_scale=True, disable=None) as bar:
                while chunk := answer.read(1 << 16):
                    bar.update(packed.write(chunk))
            for member in zipfile.ZipFile(packed).infolist():
                if re.fullmatch(r"[^/]+/(train|dev|test)(_\w+)?\.tsv", member.filename):
                    member.filename = os.path.basename(member.filename)
                    zipfile.ZipFile(packed).extract(member, f"{folder}.tmp")
        os.replace(f"{folder}.tmp", folder)
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{url}: {error}; if you have its files, say --data DIR") from error
    finally:
        shutil.rmtree(f"{folder}.tmp", ignore_errors=True)
    return folder

def embedded_task(name, path):
    """{split: examples} from docs_on_this_machine: 'code', tag the names that its mark-up had made
    code; 'part', the module a paragraph is from; 'follows', whether b is the paragraph after a."""
    splits, rows = {"train": [], "dev": []}, [row for _, row in rows_of(path)]
    for i, (row, after) in enumerate(zip(rows, rows[1:])):
        a, b, label, lot = row["text"], None, None, zlib.crc32(row["text"].encode())
        part = ".".join(row["part"].split(".")[:2])
        if name == "code" and row["code"]:
            words = list(WORD.finditer(a))
            code = [any(x <= word.start() < y for x, y in row["code"]) for word in words]
            a, label = [word[0] for word in words], iob2(["I-code" if c else "O" for c in code])
        elif name == "part" and part in PARTS:
            label = part
        elif name == "follows" and row["part"] == after["part"]:
            label, b = ("yes", after) if lot & 1024 else ("no", rows[lot % len(rows)])
            b = b["text"]
        if label:
            example = Example(a, b, label, str(i), f"{path}:{i + 1}")
            splits["train" if lot % 10 else "dev"].append(example)
    return splits

def held_out(examples):
    """(a tenth of the examples, the rest): by the hash of their text, so alike on every machine."""
    order = sorted(examples, key=lambda e: zlib.crc32(repr((e.a, e.b)).encode()))
    if len(order) < 2:
        raise ValueError(f"{order[0].where}: the only example: none is left to choose by")
    return order[:-(-len(order) // 10)], order[-(-len(order) // 10):]

def read_splits(args, name, kind):
    """{split: examples}: train, what there is of test, and dev, or else a part of train for it."""
    if name in GLUE:
        splits = read_glue(name, args.data or download_glue(name))
    elif name in EMBEDDED:
        splits = embedded_task(name, docs_on_this_machine())
    elif not args.train:
        fail(f"--task {name} is of your own files: say --train FILE and, if you have them, --dev "
             "FILE and --test FILE")
    else:
        read = {"tagging": read_tags, "qa": read_squad}.get(kind, lambda path: read_table(
            path, args.text, args.label, numeric=kind == "regression"))
        splits = {split: [e for path in getattr(args, split) for e in read(path)]
                  for split in ("train", "dev", "test") if getattr(args, split)}
    if not any(split.startswith("dev") for split in splits):
        splits["dev"], splits["train"] = held_out(splits["train"])
    return splits

def make_task(args, name, kind, splits):
    """The Task; its labels are the training set's. ValueError names an example with another one."""
    known, labels = [e.label for e in splits["train"]], []
    if kind == "classification":
        labels = sorted(set(known))
        if len(labels) < 2:
            fail(f"{splits['train'][0].where}: all examples have the label {labels[0]!r:.60}")
    elif kind == "tagging":
        types = {tag[2:] for tags in known for tag in tags} - {""}
        labels = sorted(["O", *(f"{b}-{t}" for t in types for b in "BI")])
    for e in (e for split in splits.values() for e in split if labels and e.label is not None):
        for label in e.label if kind == "tagging" else [e.label]:
            if label not in labels:
                fail(f"{e.where}: label {label!r:.60} is not in the training set: "
                     f"{' '.join(labels):.300}")
    numbers = known if kind == "regression" else [0.0]
    return Task(name, kind, labels, METRICS.get(name, METRICS[kind]), args.length, args.stride,
                splits["train"][0].b is not None, float(np.mean(numbers)),
                float(np.std(numbers)) or 1.0, kind == "qa" and not all(known))

def write_predictions(out, task, split, examples, decoded):
    """Writes a split's (prediction, probabilities) as lines of JSON in the folder out; those for a
    test set of GLUE as its leaderboard wants them."""
    if task.name in GLUE and split.startswith("test"):
        end = {"_matched": "-m", "_mismatched": "-mm"}.get(split[4:], "")
        name, lines = f"{GLUE[task.name][0]}{end}.tsv", ["index\tprediction"]
        lines += [f"{i}\t{x}" for i, (x, _) in enumerate(decoded)]
    else:
        name, lines = f"{split}.jsonl", [
            json.dumps({"key": e.key, "gold": e.label, "prediction": x, "probabilities": p})
            for e, (x, p) in zip(examples, decoded)]
    write(os.path.join(out, name), [f"{line}\n".encode() for line in lines])

# ---- Metrics: gold and guess are lists of labels, one for each example ---------------------------
METRICS = {"classification": ["accuracy", "macro_f1"], "regression": ["pearson", "spearman"],
           "tagging": ["f1", "precision", "recall"], "qa": ["f1", "exact_match"],
           "cola": ["matthews"], "mrpc": ["f1", "accuracy"], "qqp": ["f1", "accuracy"]}
METRICS |= {name: ["accuracy"] for name in ("sst2", "mnli", "qnli", "rte", "wnli")}

def class_scores(gold, guess):
    """Accuracy, the F1 of label "1", the mean of all labels' F1, and Matthews' correlation, for any
    number of labels (Gorodkin 2004)."""
    names, numbers = np.unique([*gold, *guess], return_inverse=True)
    gold, guess = np.eye(len(names))[numbers].reshape(2, len(gold), -1)      # (examples, labels)
    f1 = 2 * (gold * guess).sum(0) / (gold + guess).sum(0)
    return {"accuracy": float((gold * guess).sum() / len(gold)), "macro_f1": float(f1.mean()),
            "f1": float(f1[names == "1"].sum()), "matthews": correlation(gold, guess)}

def number_scores(gold, guess):
    def ranks(x):                                        # equal numbers share their mean place
        _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    pair = np.array([gold, guess], np.float64)[..., None]
    return {"pearson": correlation(*pair), "spearman": correlation(*map(ranks, pair))}

def correlation(x, y):
    """Of (N, k) with (N, k); 0 where one of them never changes."""
    if any((z == z[0]).all() for z in (x, y)):
        return 0.0
    x, y = x - x.mean(0), y - y.mean(0)
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))

def entities(tags):
    """{(first word, the one after the last, type)} of IOB2 tags; an I- without a B- begins one."""
    found, begin = set(), None
    for i, (before, tag) in enumerate(zip(["O", *tags], [*tags, "O"])):
        if begin is not None and (tag[0] != "I" or tag[1:] != before[1:]):
            found.add((begin, i, before[2:]))
            begin = None
        begin = i if begin is None and tag != "O" else begin
    return found

def entity_scores(gold, guess):
    """Of the entities found exactly, over all sentences: as conlleval and seqeval count."""
    gold, guess = ({(i, *e) for i, t in enumerate(x) for e in entities(t)} for x in (gold, guess))
    right, total = len(gold & guess), len(gold) + len(guess)
    return {"f1": 2 * right / max(1, total), "precision": right / max(1, len(guess)),
            "recall": right / max(1, len(gold))}

def answer_scores(gold, guess):
    """(F1 of words, exact match) with the best of the right answers; [] wants "" (SQuAD v2.0)."""
    def words(answer):
        text = re.sub(r"[!-/:-@[-`{-~]", "", answer.lower())     # string.punctuation
        return re.sub(r"\b(a|an|the)\b", " ", text).split()
    guess, scores = words(guess), []
    for right in list(filter(None, map(words, gold))) or [[]]:
        same = sum((Counter(right) & Counter(guess)).values())
        exact = float(right == guess)
        scores.append((2 * same / (len(right) + len(guess)) if right and guess else exact, exact))
    return np.max(scores, axis=0)

def score(task, examples, guess):
    """{metric: value} of a guess for each example by the task's metrics; {} without labels."""
    gold = [e.label for e in examples]
    if gold[0] is None:
        return {}
    if task.kind == "qa":
        both = [answer_scores([text for _, text in label], g) for label, g in zip(gold, guess)]
        return dict(zip(task.metrics, np.mean(both, axis=0).tolist()))
    scores = {"tagging": entity_scores, "regression": number_scores}.get(task.kind, class_scores)
    return {metric: scores(gold, guess)[metric] for metric in task.metrics}

def majority(task, known, examples):
    """Guesses without a model: the commonest label, the mean, a word's commonest tag, no answer."""
    counts = {}
    for e in known:
        for word, tag in zip(e.a, e.label) if task.kind == "tagging" else [("", str(e.label))]:
            counts.setdefault(word, Counter())[tag] += 1
    best = {word: count.most_common(1)[0][0] for word, count in counts.items()}
    if task.kind == "tagging":
        return [[best.get(word, "O") for word in e.a] for e in examples]
    return [{"regression": task.mean, "qa": ""}.get(task.kind, best[""])] * len(examples)
