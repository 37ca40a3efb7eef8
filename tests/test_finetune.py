"""Fine-tuning: metrics against published definitions, tasks, heads, frozen parts, bad input."""
import csv
import json
import math
import os
import random
import re
import signal
import string
import threading
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch

import data
import finetune
import tasks
from data import Tokenizer
from finetune import (Classifier, Task, TaskLoss, build, collate, decode, encode, main, majority,
                      outputs, settle_adapters)
from tasks import (GLUE, Example, answer_scores, class_scores, embedded_task, entities,
                   entity_scores, held_out, iob2, number_scores, read_glue, read_squad, read_table,
                   read_tags)
from minialbert import Config, MiniALBERT, load, read_safetensors, save

PIECES = "abcdefghijklmnopqrstuvwxyz"
SIZES = dict(hidden_size=24, embedding_size=12, num_hidden_layers=2, num_attention_heads=3,
             intermediate_size=40, max_position_embeddings=48)


def make_tokenizer(path):
    path.mkdir(parents=True, exist_ok=True)
    words = ("good bad film very the not is red blue green one two name city john paris lives in "
             "who where").split()
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.punctuation, *string.digits,
             *words, *PIECES, *("##" + c for c in PIECES)]
    (path / "vocab.txt").write_text("\n".join(dict.fromkeys(vocab)))
    return Tokenizer(str(path))


@pytest.fixture
def tokenizer(tmp_path):
    return make_tokenizer(tmp_path / "model")


@pytest.fixture
def model(tmp_path, tokenizer):
    """A folder with a tiny model without adapters."""
    torch.manual_seed(1)
    save(MiniALBERT(Config(vocab_size=tokenizer.vocab_size, **SIZES)), tmp_path / "model")
    return str(tmp_path / "model")


def task_of(kind, labels=(), length=24, **more):
    facts = dict(name=kind, stride=4, pair=kind == "qa", mean=0.0, sd=1.0, unanswerable=False,
                 metrics=tasks.METRICS[kind])
    return Task(kind=kind, labels=list(labels), length=length, **facts | more)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


# ---- Metrics -------------------------------------------------------------------------------------


def test_classification_scores_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = random.Random(0)
    for case in range(200):
        labels = ["0", "1", "two", "x y"][:rng.choice([1, 2, 2, 4])]
        n = rng.randint(1, 12)
        gold, guess = ([rng.choice(labels) for _ in range(n)] for _ in range(2))
        ones = [[label == "1" for label in side] for side in (gold, guess)]
        with warnings.catch_warnings(action="ignore"):
            want = {"accuracy": metrics.accuracy_score(gold, guess),
                    "macro_f1": metrics.f1_score(gold, guess, average="macro"),
                    "f1": metrics.f1_score(*ones, zero_division=0),
                    "matthews": metrics.matthews_corrcoef(gold, guess)}
        assert class_scores(gold, guess) == pytest.approx(want, abs=1e-9), (gold, guess)


def test_correlations_are_scipys_and_0_for_a_constant():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for case in range(600):
        n = rng.integers(2, 12)
        gold, guess = (rng.integers(0, 5, n) / 3 + 1000.0 for _ in range(2))
        scores = number_scores(gold.tolist(), guess.tolist())
        if len(set(gold)) == 1 or len(set(guess)) == 1:
            assert scores == {"pearson": 0.0, "spearman": 0.0}
        else:
            assert scores["pearson"] == pytest.approx(stats.pearsonr(gold, guess)[0], abs=1e-9)
            assert scores["spearman"] == pytest.approx(stats.spearmanr(gold, guess)[0], abs=1e-9)


def test_entity_scores_are_seqevals():
    seqeval = pytest.importorskip("seqeval.metrics")
    rng, tags = random.Random(0), ["O", "O", "B-x", "I-x", "B-y", "I-y"]
    for case in range(1500):
        lengths = [rng.randint(1, 7) for _ in range(rng.randint(1, 3))]
        gold, guess = ([[rng.choice(tags) for _ in range(n)] for n in lengths] for _ in range(2))
        with warnings.catch_warnings(action="ignore"):
            want = {"f1": seqeval.f1_score(gold, guess),
                    "precision": seqeval.precision_score(gold, guess),
                    "recall": seqeval.recall_score(gold, guess)}
        assert entity_scores(gold, guess) == pytest.approx(want), (gold, guess)


def published_squad(gold, guess):
    """evaluate-v2.0's definition, written anew: (F1, exact match), the best of the gold answers."""
    def tokens(text):
        kept = "".join(c for c in text.lower() if c not in set(string.punctuation))
        kept = re.compile(r"\b(a|an|the)\b", re.UNICODE).sub(" ", kept)
        return " ".join(kept.split()).split(" ")

    def pair(right):
        a, b = ([t for t in tokens(text) if t] for text in (right, guess))
        exact = int(a == b)
        common = sum(min(a.count(t), b.count(t)) for t in set(a))
        if not a or not b:
            return exact, exact
        if common == 0:
            return 0, exact
        precision, recall = common / len(b), common / len(a)
        return 2 * precision * recall / (precision + recall), exact

    gold = [text for text in gold if any(tokens(text)) and tokens(text) != [""]] or [""]
    return max(pair(text)[0] for text in gold), max(pair(text)[1] for text in gold)


def test_answer_scores_are_the_published_ones():
    rng = random.Random(0)
    words = ["the", "a", "An", "cat", "Cat.", "sat", "sat,", "-", "", "1,000", "theory", "é",
             "the-cat"]

    def text():
        return " ".join(rng.choice(words) for _ in range(rng.randint(0, 4)))

    for case in range(4000):
        gold, guess = [text() for _ in range(rng.randint(0, 3))], text()
        want = published_squad(gold, guess)
        assert tuple(answer_scores(gold, guess)) == pytest.approx(want), (gold, guess)


def render(spans, n, scheme):
    tags = ["O"] * n
    before = None
    for begin, end, kind in spans:
        touching = before and before[1] == begin and before[2] == kind
        for i in range(begin, end):
            first, last = i == begin, i == end - 1
            letter = {"IOB2": "B" if first else "I",
                      "IOB1": "B" if first and touching else "I",
                      "BIOES": "S" if first and last else "B" if first else "E" if last else "I",
                      "BILOU": "U" if first and last else "B" if first else "L" if last else "I"}
            tags[i] = letter[scheme] + "-" + kind
        before = begin, end, kind
    return tags


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "BIOES", "BILOU"])
def test_every_tagging_scheme_becomes_iob2_with_the_same_entities(scheme):
    rng = random.Random(0)
    for case in range(500):
        n, i, spans = rng.randint(1, 9), 0, []
        while i < n:
            end = min(n, i + rng.randint(1, 3))
            if rng.random() < 0.6:
                spans.append((i, end, rng.choice(["x", "y-z"])))
            i = end
        tags = iob2(render(spans, n, scheme))
        assert entities(tags) == set(spans) and tags == render(spans, n, "IOB2")


# ---- Readers -------------------------------------------------------------------------------------


def test_glue_files_are_read_in_their_official_layout_with_quotes_as_text(tmp_path):
    write(tmp_path / "cola/train.tsv", 'gj04\t1\t\tHe said "yes.\ngj04\t0\t*\tThey "ran.\n')
    write(tmp_path / "cola/dev.tsv", "gj04\t1\t\tHe ran.\r\n")
    write(tmp_path / "cola/test.tsv", "index\tsentence\n0\tShe ran.\n")
    splits = read_glue("cola", str(tmp_path / "cola"))
    train = [(e.a, e.b, e.label) for e in splits["train"]]
    assert train == [('He said "yes.', None, "1"), ('They "ran.', None, "0")]
    assert splits["dev"][0].a == "He ran."
    assert splits["test"][0].label is None and splits["test"][0].a == "She ran."
    names = ["train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched"]
    for split in names:
        label = "x" if "test" in split else "gold_label"
        write(tmp_path / f"mnli/{split}.tsv", f"\ufeffindex\tsentence1\tsentence2\t{label}\n"
              f"0\ta\u2028b\t{split}\tneutral\n")
    splits = read_glue("mnli", str(tmp_path / "mnli"))
    assert list(splits) == names
    assert splits["dev_mismatched"][0][:3] == ("a\u2028b", "dev_mismatched", "neutral")
    for name, (_, texts, label) in GLUE.items():
        if name not in ("cola", "mnli"):
            for split in ("train", "dev"):
                write(tmp_path / f"{name}/{split}.tsv", "\t".join(["id", *texts, label]) + "\n"
                      + "\t".join(["7", *texts, "4.250"]) + "\n")
            splits = read_glue(name, str(tmp_path / name))
            assert list(splits) == ["train", "dev"], "a test set is not a must"
            assert splits["dev"][0].label == (4.25 if name == "stsb" else "4.250")
            assert [splits["dev"][0].a, splits["dev"][0].b][:len(texts)] == texts


def test_tables_are_read_by_the_names_of_their_columns(tmp_path):
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([["y", "t", "u"], ["1", 'a "b", c', "two\nlines"],
                                    ["0", "d", "e"]])
    write(tmp_path / "a.jsonl", '{"t": "d", "y": 1, "more": [1]}\n\n{"t": "e", "y": true}\n')
    write(tmp_path / "a.tsv", 't\ty\n"d\t1e-1\n')
    first, second = read_table(str(tmp_path / "a.csv"), ["t", "u"], "y")
    assert first[:3] == ('a "b", c', "two\nlines", "1") and second.where.endswith("a.csv:4")
    rows = read_table(str(tmp_path / "a.jsonl"), ["t"], "y")
    assert [(e.a, e.label) for e in rows] == [("d", "1"), ("e", "True")]
    rows = read_table(str(tmp_path / "a.tsv"), ["t"], "y", numeric=True)
    assert [(e.a, e.label) for e in rows] == [('"d', 0.1)]


def test_conll_files_are_read_with_tabs_or_spaces_and_any_columns(tmp_path):
    write(tmp_path / "a.txt", "-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\nsays V I-VP O\n\n\n"
          "Peter NNP I-NP I-PER\n")
    write(tmp_path / "b.tsv", "two words\tS-x\n\nb\tO")
    one, two = read_tags(str(tmp_path / "a.txt"))
    assert (one.a, one.label) == (["EU", "says"], ["B-ORG", "O"]) and one.where.endswith("a.txt:3")
    assert two.a == ["Peter"] and two.where.endswith("a.txt:7")
    sentences = [(e.a, e.label) for e in read_tags(str(tmp_path / "b.tsv"))]
    assert sentences == [(["two words"], ["B-x"]), (["b"], ["O"])]


def squad(*questions, context="the red city. john lives in paris, not in the red city."):
    qas = []
    for i, (question, *texts) in enumerate(questions):
        answers = [{"text": text, "answer_start": context.index(text)} for text in texts]
        qas.append({"id": f"q{i}", "question": question, "answers": answers})
        if not texts:
            qas[-1]["is_impossible"] = True
    paragraphs = [{"context": context, "qas": qas}]
    return json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}, indent=1)


def test_squad_files_give_questions_with_all_their_answers(tmp_path):
    questions = ("where is john", "paris", "in paris"), ("who is red",)
    one, two = read_squad(write(tmp_path / "a.json", squad(*questions)))
    assert one.a == "where is john" and one.b[one.label[0][0]:][:5] == "paris"
    assert len(one.label) == 2 and one.key == "q0" and two.label == []


def server(content, status=200):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            Handler.asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    Handler.asked = []
    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    return http, Handler.asked


def test_a_glue_task_is_downloaded_once_and_a_bad_answer_leaves_nothing(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as packed:
        for name in ("QNLI/train.tsv", "QNLI/dev.tsv", "QNLI/original/dev.tsv", "../evil.tsv"):
            packed.writestr(name, "index\tquestion\tsentence\tlabel\n0\ta\tb\tentailment\n")
    http, asked = server((tmp_path / "z.zip").read_bytes())
    monkeypatch.setattr(tasks, "GLUE_URL", f"http://127.0.0.1:{http.server_port}/")
    for _ in range(2):
        folder = tasks.download_glue("qnli", str(tmp_path / "cache"))
    assert asked == ["/QNLIv2.zip"]
    names = sorted(p.name for p in (tmp_path / "cache/glue/QNLI").iterdir())
    assert names == ["dev.tsv", "train.tsv"]
    assert read_glue("qnli", folder)["dev"][0].label == "entailment"
    http.shutdown(), http.server_close()
    http, _ = server(b"not a zip file")
    monkeypatch.setattr(tasks, "GLUE_URL", f"http://127.0.0.1:{http.server_port}/")
    with pytest.raises(ValueError, match="RTE.zip.*--data DIR"):
        tasks.download_glue("rte", str(tmp_path / "cache"))
    http.shutdown(), http.server_close()
    with pytest.raises(ValueError, match="RTE.zip"):
        tasks.download_glue("rte", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="mrpc.*--data"):
        tasks.download_glue("mrpc", str(tmp_path / "cache"))
    assert [p.name for p in (tmp_path / "cache/glue").iterdir()] == ["QNLI"]


def test_the_mark_up_that_docs_lose_is_kept_as_spans():
    lines = ["Use ``os.path`` or :func:`~torch.nn` when the *first* of `these names` is not in "
             "**it**."]
    text = "Use os.path or torch.nn when the first of these names is not in it."
    spans = re.findall("<(.*?)>", data.unmarked(lines, "<{}>"))
    assert data.prose(lines) == text and spans == ["os.path", "torch.nn", "these names"]


def documentation(path):
    rows = []
    for i in range(120):
        name = f"{PIECES[i % 26]}.{PIECES[i % 7]}"
        part = ("torch.nn.x", "numpy.ma", "other")[i // 40]
        text = f"the good {name} is very {PIECES[i % 11]} {i}"
        rows.append({"part": part, "text": text, "code": [[9, 12]] if i % 3 else []})
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def test_embedded_tasks_are_what_the_documentation_says(tmp_path):
    path = documentation(tmp_path / "docs.jsonl")
    rows = [json.loads(line) for line in open(path)]
    code, part, follows = (embedded_task(name, path) for name in ("code", "part", "follows"))
    for task in (code, part, follows):
        texts = [{str(e.a) for e in task[split]} for split in ("train", "dev")]
        assert all(texts) and not texts[0] & texts[1]
    for e in [*code["train"], *code["dev"]]:
        tagged = [(word, tag) for word, tag in zip(e.a, e.label) if tag != "O"]
        assert tagged == [(e.a[2], "B-code")] and "." in e.a[2]
    assert {e.label for e in part["train"]} == {"torch.nn", "numpy.ma"}
    for e in follows["train"]:
        assert (rows[int(e.key) + 1]["text"] == e.b) == (e.label == "yes")


# ---- Examples as tokens --------------------------------------------------------------------------


def words_of(rng, n):
    words = ["good", "zq", "abcde", "the", "\u0007", "paris.", "very"]
    return [rng.choice(words) for _ in range(n)]


def test_each_word_is_asked_for_once_at_its_first_piece_and_no_sentence_is_dropped(tokenizer):
    rng, task = random.Random(0), task_of("tagging", ["O", "B-x", "I-x"], length=11)
    examples = [Example(words := words_of(rng, n), None, [rng.choice(task.labels) for _ in words],
                        "", "") for n in (1, 3, 30, 9, 200)]
    examples.append(Example([PIECES * 2, "good"], None, ["B-x", "O"], "", ""))
    features = list(encode(task, examples, tokenizer))
    assert max(len(f.ids) for f in features) <= 11
    assert {f.example for f in features} == set(range(6))
    for i, e in enumerate(examples):
        asked = [(word, f.ids[place], label) for f in features if f.example == i
                 for word, place, label in zip(f.about, f.places, f.label)]
        want = [(w, tokenizer.encode([word])[0]) for w, word in enumerate(e.a)]
        labels = [task.labels.index(label) for label in e.label]
        assert asked == [(w, pieces[0], labels[w]) for w, pieces in want if pieces]
    for f in features:
        assert f.ids[0] == tokenizer.cls and f.ids[-1] == tokenizer.sep
        assert tokenizer.sep not in f.ids[:-1]


def perfect(features, n):
    """Logits that put all on the labels."""
    found = []
    for f in features:
        x = np.full((len(f.places), n), -9.0, np.float32)
        x[range(len(f.places)), np.array(f.label, int)] = 9.0
        found.append(x)
    return found


def test_perfect_logits_give_the_gold_tags_back(tokenizer):
    rng, task = random.Random(1), task_of("tagging", ["O", "B-x", "I-x"], length=9)
    examples = [Example(words := ["ab"] * n, None, [rng.choice(task.labels) for _ in words], "", "")
                for n in (1, 4, 40)]
    features = list(encode(task, examples, tokenizer))
    decoded = decode(task, examples, features, perfect(features, 3))
    assert [tags for tags, _ in decoded] == [e.label for e in examples]


def test_two_texts_share_the_room_and_the_longer_gives_way(tokenizer):
    task = task_of("classification", ["0", "1"], length=13)
    for a, b, kept in ((2, 3, (2, 3)), (20, 3, (7, 3)), (2, 20, (2, 8)), (20, 20, (5, 5)),
                       (0, 0, (0, 0))):
        f, = encode(task, [Example(" ".join("x" * a), " ".join("y" * b), "1", "", "")], tokenizer)
        assert f.first == kept[0] + 2 and len(f.ids) == sum(kept) + 3
        assert f.label == [1] and f.places == [0]
        ids, mask, segments, labels = collate([f], 0, False)
        assert segments.sum() == kept[1] + 1 and labels[0, 0] == 1 and np.isnan(labels[0, 1:]).all()
    f, = encode(task, [Example(" ".join("x" * 20), None, "0", "", "")], tokenizer)
    assert len(f.ids) == 13 and collate([f], 0, False)[2].sum() == 0


@pytest.mark.parametrize("length, stride", [(16, 4), (40, 100), (12, 1)])
def test_windows_cover_each_context_and_perfect_logits_give_the_answers_back(
        tokenizer, length, stride):
    context = "the red city, john lives in paris; not in the red city. who is the good one? " * 2
    examples = [Example("where", context, [(s, context[s:s + n])], str(s), "")
                for s, n in ((context.index("paris"), 5), (context.rindex("city."), 4), (0, 7))] + [
                    Example("who", "zq", [], "-", ""), Example("who", "", [], "-", "")]
    task = task_of("qa", length=length, stride=stride, unanswerable=True)
    features, found = list(encode(task, examples, tokenizer)), []
    for f in features:
        x = np.full((1 + len(f.places), 2), -9.0)
        for column, place in enumerate(f.label):
            x[0 if place == 0 else 1 + f.places.index(place), column] = 9.0
        found.append(x)
    assert max(len(f.ids) for f in features) <= length
    texts = [text for text, _ in decode(task, examples, features, found)]
    assert texts == [e.label[0][1] if e.label else "" for e in examples]
    whole = tokenizer.core.encode(context, add_special_tokens=False)
    for i in range(3):
        seen = [(f.ids[p], about) for f in features if f.example == i
                for p, about in zip(f.places, f.about)]
        for token, (begin, end) in zip(whole.ids, whole.offsets):
            assert any(token == t and x <= begin and end <= y for t, (x, y) in seen)
    assert any(f.label == [0, 0] for f in features if f.example == 0) or len(features) == 5


def test_an_answer_is_at_most_so_long_never_reversed_and_empty_only_where_that_may_be(tokenizer):
    context, rng = " ".join("abcdefghij" * 4), np.random.default_rng(0)
    examples = [Example("q", context, [], "", "")]
    for case in range(50):
        task = task_of("qa", length=24, unanswerable=bool(case % 2))
        features = list(encode(task, examples, tokenizer))
        found = [rng.normal(size=(1 + len(f.places), 2)) for f in features]
        (text, _), = finetune.decode_answers(task, examples, features, found, longest=5)
        best = max((x[1 + i, 0] + x[1 + j, 1], context[f.about[i][0]:f.about[j][1]])
                   for f, x in zip(features, found) for i in range(len(f.places))
                   for j in range(i, min(i + 5, len(f.places))))
        null = min(x[0].sum() for x in found)
        assert text == ("" if task.unanswerable and null > best[0] else best[1])


def test_batches_are_a_function_of_seed_and_step_and_little_of_them_is_padding(tokenizer):
    rng, task = random.Random(0), task_of("tagging", ["O"], length=40)
    examples = [Example(["a"] * rng.randint(1, 38), None, None, "", "") for _ in range(1003)]
    features = list(encode(task, examples, tokenizer))
    one, two, other = (TaskLoss(None, None, features, 8, seed, 0) for seed in (3, 3, 4))
    steps = [7, 0, 126, 300, 1]

    def batch(loss, step):
        return [id(f) for f in loss.batch(step)]

    forth = [batch(one, s) for s in steps]
    back = [batch(two, s) for s in sorted(steps, reverse=True)][::-1]
    assert forth == back or all(batch(one, s) == batch(two, s) for s in steps)
    for epoch in (0, 2):
        steps = range(epoch * one.epoch, (epoch + 1) * one.epoch)
        seen = [f for step in steps for f in batch(one, step)]
        assert sorted(seen) == sorted(map(id, features)), "each example once an epoch"
    assert batch(one, 0) != batch(other, 0) and batch(one, 0) != batch(one, 126)
    assert one.padding < 0.06 < 0.3 < 1 - one.lengths.mean() / 40
    lengths = [len(one.batch(step)[0].ids) for step in range(30)]
    assert lengths != sorted(lengths), "long and short batches are mixed"


# ---- The model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classification", "regression", "tagging", "qa"])
def test_neither_company_nor_padding_changes_a_prediction_or_the_loss(kind, tokenizer):
    torch.manual_seed(0)
    rng = random.Random(0)
    labels = ["O", "B-x", "I-x"] if kind in ("classification", "tagging") else ()
    task = task_of(kind, labels, length=20)
    label = {"classification": lambda w: "B-x", "regression": lambda w: float(len(w)),
             "tagging": lambda w: ["O"] * len(w), "qa": lambda w: [(0, w[0])]}[kind]
    examples = []
    for n in (3, 9, 5):
        words = [rng.choice(["good", "bad", "city"]) for _ in range(n)]
        text = " ".join(words)
        a, b = {"tagging": (words, None), "qa": ("who", text)}.get(kind, (text, None))
        examples.append(Example(a, b, label(words), "", ""))
    config = Config(vocab_size=tokenizer.vocab_size, **SIZES)
    model = Classifier(MiniALBERT(config, head=False), task).eval()
    features = list(encode(task, examples, tokenizer))
    together = outputs(model, features, tokenizer.pad)
    alone = [outputs(model, [f], tokenizer.pad)[0] for f in features]
    for x, y in zip(together, alone):
        np.testing.assert_allclose(x, y, atol=1e-5)
    loss, = TaskLoss(model, task, features, 3, 0, tokenizer.pad)(0)
    total, count = 0.0, 0                                # the same by hand
    for f, x in zip(features, alone):
        if kind == "qa":
            for column, place in enumerate(f.label):
                p = np.exp(x[:, column]) / np.exp(x[:, column]).sum()
                total, count = total - math.log(p[[0, *f.places].index(place)]), count + 1
            continue
        for row, want in zip(x, f.label):
            if kind == "regression":
                total += (row[0] - want) ** 2
            else:
                total -= math.log((np.exp(row) / np.exp(row).sum())[want])
            count += 1
    if kind != "qa":
        assert loss["task"].item() == pytest.approx(total / count, rel=1e-5)
    else:                                                # the final [SEP] may be pointed at, too
        assert 0 <= loss["task"].item() - total / count < 0.5


@pytest.mark.parametrize("kind", ["classification", "regression", "tagging", "qa"])
def test_a_tuned_teacher_is_followed_where_the_head_is_asked(kind, tokenizer):
    torch.manual_seed(0)
    labels = ["O", "B-x"] if kind in ("classification", "tagging") else ()
    task, known = (task_of(kind, labels, mean=mean, sd=sd)
                   for mean, sd in ((2.0, 4.0), (-1.0, 0.5)))
    words = ["good", "bad", "city", "zq"]
    label = {"classification": "O", "regression": 3.0, "tagging": ["O"] * 4,
             "qa": [(0, "good")]}[kind]
    b = "good city" if kind == "qa" else None
    examples = [Example(words[n:] + words[:n] if kind == "tagging" else "good bad"[n:], b, label,
                        "", "") for n in range(3)]
    config = Config(vocab_size=tokenizer.vocab_size, **SIZES)
    model, teacher = (Classifier(MiniALBERT(config, head=False), task).eval() for _ in range(2))
    features = list(encode(task, examples, tokenizer))
    terms, = TaskLoss(model, task, features, 3, 0, tokenizer.pad, (teacher, known))(0)
    alone, = TaskLoss(model, task, features, 3, 0, tokenizer.pad)(0)
    assert set(alone) == {"task"} and terms["task"].item() == alone["task"].item()
    want, count = 0.0, 0
    for x, y in zip(*(outputs(side, features, tokenizer.pad) for side in (model, teacher))):
        if kind == "regression":
            want, count = want + ((y[0, 0] * 0.5 - 1 - 2) / 4 - x[0, 0]) ** 2, count + 1
            continue
        for a, b in zip(x, y) if kind != "qa" else ():
            p, q = (np.exp(z) / np.exp(z).sum() for z in (b, a))
            want, count = want + (p * np.log(p / q)).sum(), count + 1
    if kind == "qa":
        assert terms["distill"].item() > 1e-6
        teacher.load_state_dict(model.state_dict())
        terms, = TaskLoss(model, task, features, 3, 0, tokenizer.pad, (teacher, known))(0)
        assert terms["distill"].item() == pytest.approx(0, abs=1e-6)
    else:
        assert terms["distill"].item() == pytest.approx(want / count, rel=2e-3)
    terms["distill"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert model.output.weight.grad is not None


@pytest.mark.parametrize("kind", ["classification", "regression", "tagging", "qa"])
def test_micro_batches_and_ranks_share_out_one_gradient(kind, tokenizer):
    """Of five examples: the last micro-batch of four is short, and the seventh rank has none."""
    torch.manual_seed(0)
    task = task_of(kind, ["O", "B-x"] if kind in ("classification", "tagging") else ())
    words = ["good", "bad", "city", "paris"]
    label = {"classification": "O", "regression": 3.0, "tagging": ["O"] * 4, "qa": [(0, "good")]}
    examples = [Example(words if kind == "tagging" else "who is" + " red" * n,
                        "good city" if kind == "qa" else None, label[kind], "", "")
                for n in range(5)]
    config = Config(vocab_size=tokenizer.vocab_size, **SIZES)
    model, teacher = (Classifier(MiniALBERT(config, head=False), task).eval() for _ in range(2))
    features = list(encode(task, examples, tokenizer))

    def gradient(micro, world):
        model.zero_grad()
        for rank in range(world):
            for terms in TaskLoss(model, task, features, 7, 0, tokenizer.pad, (teacher, task),
                                  micro, rank, world)(0):
                sum(terms.values()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    whole = gradient(None, 1)
    for micro, world in ((1, 1), (2, 1), (4, 1), (None, 2), (1, 3), (None, 7)):
        assert (gradient(micro, world) - whole).norm() <= 1e-5 * whole.norm(), (micro, world)


def test_the_teachers_own_score_comes_first_and_one_of_other_labels_is_refused(
        tmp_path, model, capsys):
    sentiment(tmp_path / "d/train.tsv"), sentiment(tmp_path / "d/dev.tsv", 24, 1)
    more = ["--model", model, "--task", "sst2", "--data", tmp_path / "d"]
    run(capsys, *more, "--steps", 40, "--lr", "1e-2", "--out", tmp_path / "t")
    out = run(capsys, *more, "--steps", 3, "--distill-from", tmp_path / "t",
              "--out", tmp_path / "s").out
    assert float(re.search(r"^teacher .*'accuracy': ([\d.]+)", out, re.M)[1]) > 0.95
    log = [json.loads(line) for line in open(next((tmp_path / "s").glob("*/log.jsonl")))]
    assert {"task", "distill"} <= set(log[-1])
    other = write(tmp_path / "o.csv", "text,label\na,yes\nb,no\n")
    err = run(capsys, "--model", model, "--task", "classification", "--train", other,
              "--dev", other, "--distill-from", tmp_path / "t", "--out", tmp_path / "x", code=2).err
    assert err.count("\n") == 1
    assert "tuned for classification 0 1, not for classification no yes" in err


def test_new_adapters_hardly_change_a_trained_encoder(tmp_path, tokenizer):
    torch.manual_seed(0)
    old = MiniALBERT(Config(vocab_size=tokenizer.vocab_size, **SIZES), head=False).eval()
    with torch.no_grad():
        for name, p in old.named_parameters():           # as training leaves them
            p.add_(torch.randn(p.shape) * 0.15) if "norm" in name else p.mul_(8)
    ids = torch.randint(5, tokenizer.vocab_size, (16, 20))
    mask = torch.arange(20) < torch.randint(5, 21, (16, 1))
    new = MiniALBERT(Config(**vars(old.config) | {"adapter_size": 4}), head=False).eval()
    new.load_state_dict(new.state_dict() | old.state_dict())

    def change():
        with torch.no_grad():
            a, b = (model(ids, mask)[0][-1][mask] for model in (old, new))
        return ((a - b).norm() / a.norm()).item()

    before = change()
    settle_adapters(new, ids, mask)
    assert change() < 0.7 * before, (before, change())
    with torch.no_grad():                                # no other line is nearer to what came in
        adapter, x = new.attention_adapters[0], new.embeddings(ids)[mask]
        best = (adapter(x) - x).square().sum()
        for p in (adapter.norm.weight, adapter.norm.bias):
            for by in (-0.01, 0.01):
                for c in range(len(p)):
                    p[c] += by
                    assert (adapter(x) - x).square().sum() > best
                    p[c] -= by


def sentiment(path, n=64, seed=0):
    rng = random.Random(seed)
    rows = [("good" if y else "bad", y) for y in (rng.randint(0, 1) for _ in range(n))]
    text = "sentence\tlabel\n"
    for word, y in rows:
        words = [rng.choice(["the", "film", "is", "very"]) for _ in range(rng.randint(1, 6))]
        text += f"{' '.join(words)} {word} .\t{y}\n"
    return write(path, text)


def run(capsys, *flags, code=None):
    with warnings.catch_warnings(action="ignore"):
        assert main([str(flag) for flag in flags]) == code
    return capsys.readouterr()


@pytest.mark.parametrize("flags, trained", [
    ([], "encoder"), (["--adapters-only"], "_adapters."), (["--freeze"], "nothing")])
def test_what_is_frozen_stays_as_it_was_without_gradient_or_optimiser_state(
        flags, trained, tmp_path, model, capsys):
    sentiment(tmp_path / "d/train.tsv"), sentiment(tmp_path / "d/dev.tsv", 9, 1)
    run(capsys, "--model", model, "--task", "sst2", "--data", tmp_path / "d", "--steps", 3,
        "--out", tmp_path / "o", *flags)
    state, _ = read_safetensors(next((tmp_path / "o").glob("*/training.safetensors")))
    names = {name.removeprefix("model.") for name in state if name.startswith("model.")}
    assert all(name.startswith("output.") or trained in name for name in names)
    assert "output.weight" in names and {name.split(".", 1)[1] for name in state} == names
    old, new = load(model).state_dict(), load(tmp_path / "o").state_dict()
    for name, p in old.items():
        if not name.startswith("head."):
            assert torch.equal(p, new[name]) == (trained != "encoder"), name
    assert (load(tmp_path / "o").config.adapter_size > 0) == (trained == "_adapters.")


# ---- The command ---------------------------------------------------------------------------------


def test_every_kind_of_task_is_learned(tmp_path, model, capsys):
    rng = random.Random(0)
    more = ["--model", model, "--lr", "1e-2", "--batch-size", 16, "--length", 24, "--dropout", 0]
    places = [(rng.choice(["john", "name"]), rng.choice(["paris", "city"])) for _ in range(64)]
    sentiment(tmp_path / "sst2/train.tsv"), sentiment(tmp_path / "sst2/dev.tsv", 24, 1)
    rated = "".join(f"{w} film {c},{10 + 2 * i}\n" for c in PIECES
                    for i, w in enumerate(["bad", "not", "good"]))
    write(tmp_path / "r/train.csv", "text,label\n" + rated)
    tagged = "".join(f"the O\n{n} B-who\nlives O\nin O\n{p} B-where\n\n" for n, p in places)
    write(tmp_path / "t/train.txt", tagged)
    paragraphs = []
    for i, pair in enumerate(places):
        context = "{} lives in {} .".format(*pair)
        qas = [{"id": f"{i}{k}", "question": question,
                "answers": [{"text": pair[k], "answer_start": context.index(pair[k])}]}
               for k, question in enumerate(("who", "where"))]
        paragraphs.append({"context": context, "qas": qas})
    write(tmp_path / "q/train.json", json.dumps({"data": [{"paragraphs": paragraphs}]}))
    flags = {"sst2": ["--data", tmp_path / "sst2"],
             "regression": ["--train", tmp_path / "r/train.csv"],
             "tagging": ["--train", tmp_path / "t/train.txt"],
             "qa": ["--train", tmp_path / "q/train.json"]}
    texts = {"sst2": "the film is good", "regression": "good film",
             "tagging": "the john lives in paris", "qa": "where\tname lives in city ."}
    starts = {"sst2": "1 9", "tagging": "john (who), paris (where)", "qa": "city"}
    for task, steps, metric in (("sst2", 40, "accuracy"), ("regression", 40, "pearson"),
                                ("tagging", 30, "f1"), ("qa", 70, "f1")):
        out = run(capsys, *more, "--task", task, *flags[task], "--steps", steps,
                  "--out", tmp_path / f"o{task}").out
        value = float(re.search(rf"^all +dev +{metric} +([\d.]+)%", out, re.M)[1])
        assert value > 95, out
        assert re.search(r"^majority +dev", out, re.M) and "padding" in out
        said = run(capsys, "--model", tmp_path / f"o{task}", "--predict", texts[task]).out.strip()
        if task == "regression":
            assert 12 < float(said) < 15
        else:
            assert said.startswith(starts[task]), said
        lines = [json.loads(line) for line in open(tmp_path / f"o{task}/dev.jsonl")]
        assert len(lines) > 2 and set(lines[0]) == {"key", "gold", "prediction", "probabilities"}
    write(tmp_path / "two.txt", "good\n\nbad\n")
    said = run(capsys, "--model", tmp_path / "osst2", "--predict", tmp_path / "two.txt").out
    assert [line[0] for line in said.splitlines()] == ["1", "0"]


def test_seeds_differ_the_rate_is_chosen_without_dev_and_a_saved_model_is_the_one_measured(
        tmp_path, model, capsys):
    sentiment(tmp_path / "d/train.tsv"), sentiment(tmp_path / "d/dev.tsv", 24, 1)
    write(tmp_path / "d/test.tsv", "index\tsentence\n0\tgood film\n1\tbad film\n")
    more = ["--task", "sst2", "--data", tmp_path / "d", "--out", tmp_path / "o", "--model", model]
    runs = ["--steps", 30, "--lr", "1e-9", "1e-2", "--seeds", 2, "--seed", 5]
    out = run(capsys, *more, *runs).out
    names = sorted(p.name for p in (tmp_path / "o").iterdir() if p.is_dir())
    assert names == ["all-57-lr0.01-seed5", "all-57-lr1e-09-seed5", "all-64-lr0.01-seed5",
                     "all-64-lr0.01-seed6"]
    files = [tmp_path / "o" / name / "training.safetensors" for name in names]
    weights = [read_safetensors(file)[0]["model.output.weight"] for file in files]
    assert not torch.equal(weights[2], weights[3])
    found = re.search(r"^all +dev +accuracy +([\d.]+)% \+- ([\d.]+)%", out, re.M)
    x = [float(v) for v in found.groups()]
    lines = [json.loads(line) for line in open(tmp_path / "o/dev.jsonl")]
    first = 100 * np.mean([line["gold"] == line["prediction"] for line in lines])
    second = 2 * x[0] - first
    assert x[1] == pytest.approx(np.std([first, second], ddof=1), abs=0.02)
    saved, task = build(str(tmp_path / "o"))
    tokenizer = Tokenizer(str(tmp_path / "o"))
    examples = read_glue("sst2", str(tmp_path / "d"))["dev"]
    features = list(encode(task, examples, tokenizer))
    decoded = decode(task, examples, features, outputs(saved, features, tokenizer.pad))
    assert [x for x, _ in decoded] == [line["prediction"] for line in lines]
    written = (tmp_path / "o/SST-2.tsv").read_text()
    assert re.fullmatch(r"index\tprediction\n0\t[01]\n1\t[01]\n", written)
    again = run(capsys, *more, *runs, "--resume").out
    before, after = ([line for line in text.splitlines() if re.search("^(all|majority) ", line)]
                     for text in (out, again))
    assert after == before
    err = run(capsys, *more, "--steps", 30, "--lr", "1e-2", "--seed", 5, "--dropout", 0,
              "--resume", code=2).err
    assert "dropout" in err
    assert "--overwrite" in run(capsys, *more, code=2).err


def test_bfloat16_trains_and_predicts_near_float32_but_not_alike(tmp_path, model, capsys):
    sentiment(tmp_path / "d/train.tsv"), sentiment(tmp_path / "d/dev.tsv", 9, 1)
    more = ["--model", model, "--task", "sst2", "--data", tmp_path / "d", "--steps", 9,
            "--dropout", 0, "--log-every", 1]
    losses = {}
    for out in ("whole", "half"):
        run(capsys, *more, *["--bf16"][:out == "half"], "--out", tmp_path / out)
        path, = (tmp_path / out).glob("*/log.jsonl")
        losses[out] = [json.loads(line)["loss"] for line in open(path)]
        rows = [json.loads(line) for line in open(tmp_path / out / "dev.jsonl")]
        told = [row["probabilities"]["1"] for row in rows]
        tuned, task = build(str(tmp_path / out))
        examples = read_glue("sst2", tmp_path / "d")["dev"]
        features = list(encode(task, examples, Tokenizer(str(tmp_path / out))))
        exact = [p["1"] for _, p in decode(task, examples, features, outputs(tuned, features, 0))]
        assert exact == pytest.approx(told, abs=0.01)
        assert (exact == pytest.approx(told, abs=1e-6)) == (out == "whole")
    assert losses["whole"] == pytest.approx(losses["half"], rel=0.01)
    assert losses["whole"][0] != losses["half"][0]       # no step had been made yet
    assert "'bf16': (True, False)" in run(
        capsys, *more, "--out", tmp_path / "half", "--resume", code=2).err


@pytest.mark.parametrize("flags", [[], ["--adapters-only"]])
def test_a_run_that_was_stopped_and_resumed_ends_bit_for_bit_as_one_that_was_not(
        flags, tmp_path, model, capsys, monkeypatch):
    sentiment(tmp_path / "d/train.tsv"), sentiment(tmp_path / "d/dev.tsv", 9, 1)
    more = ["--model", model, "--task", "sst2", "--data", tmp_path / "d", "--steps", 9,
            "--lr", "1e-2", "--seeds", 2, *flags]
    run(capsys, *more, "--out", tmp_path / "whole")
    batch, asked = TaskLoss.batch, []

    def stop_at_fourth(self, step):
        asked.append(step)
        if len(asked) in (4, 14):
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, step)

    monkeypatch.setattr(TaskLoss, "batch", stop_at_fourth)
    for again in ([], ["--resume"], ["--resume"]):
        try:
            run(capsys, *more, "--out", tmp_path / "parts", *again)
        except SystemExit as stop:
            assert stop.code == 143
        else:
            assert again
    assert asked == [*range(4), *range(4, 9), *range(5), *range(5, 9)]
    for name in ("model.safetensors", "head.safetensors", "dev.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_both_dev_sets_of_mnli_are_reported_and_its_test_sets_written(tmp_path, model, capsys):
    for split in ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched"):
        label = "\tgold_label" if "test" not in split else ""
        write(tmp_path / f"d/{split}.tsv", f"index\tsentence1\tsentence2{label}\n" + "".join(
            f"{i}\tgood\tbad{chr(9) + label if 'test' not in split else ''}\n"
            for i, label in enumerate(["neutral", "entailment", "contradiction"])))
    out = run(capsys, "--model", model, "--task", "mnli", "--data", tmp_path / "d", "--steps", 1,
              "--out", tmp_path / "o").out
    assert re.search("^all +dev_matched +accuracy", out, re.M)
    assert re.search("^all +dev_mismatched +accuracy", out, re.M)
    for name in ("MNLI-m.tsv", "MNLI-mm.tsv"):
        written = (tmp_path / "o" / name).read_text()
        assert re.fullmatch(r"index\tprediction\n0\t\w+\n1\t\w+\n2\t\w+\n", written)


def test_the_default_run_tunes_whole_through_adapters_and_from_noise(
        tmp_path, model, capsys, monkeypatch):
    path = documentation(tmp_path / "docs.jsonl")
    monkeypatch.setattr(tasks, "docs_on_this_machine", lambda: path)
    out = run(capsys, "--model", model, "--steps", 2, "--out", tmp_path / "o").out
    names = [line.split()[0] for line in out.splitlines() if " f1 " in line]
    assert names == ["majority", "all", "adapters", "random"]
    for task in ("part", "follows"):
        run(capsys, "--model", model, "--task", task, "--steps", 1, "--out", tmp_path / task)


def test_the_default_run_says_to_distil_first(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    err = run(capsys, code=2).err
    assert err.count("\n") == 1 and "python distill.py" in err


def test_another_tasks_head_is_refused_and_its_own_is_gone_on_with(tmp_path, model, capsys):
    sentiment(tmp_path / "d/train.tsv"), sentiment(tmp_path / "d/dev.tsv", 24, 1)
    other = write(tmp_path / "o.csv", "text,label\na,yes\nb,no\n")
    run(capsys, "--model", model, "--task", "sst2", "--data", tmp_path / "d", "--steps", 40,
        "--lr", "1e-2", "--out", tmp_path / "a")
    err = run(capsys, "--model", tmp_path / "a", "--task", "classification", "--train", other,
              "--dev", other, "--out", tmp_path / "b", code=2).err
    assert err.count("\n") == 1
    assert "tuned for classification 0 1, not for classification no yes" in err
    out = run(capsys, "--model", tmp_path / "a", "--task", "sst2", "--data", tmp_path / "d",
              "--steps", 1, "--lr", "1e-9", "--freeze", "--out", tmp_path / "c").out
    assert float(re.search(r"^head +dev +accuracy +([\d.]+)%", out, re.M)[1]) > 95
    assert "task.json" in run(capsys, "--model", model, "--predict", "good", code=2).err


def test_majority_guesses_look_at_no_sentence():
    known = [Example(["a", "b"], None, ["B-x", "O"], "", ""),
             Example(["a", "b"], None, ["B-x", "B-x"], "", ""), Example(["b"], None, ["O"], "", "")]
    asked = [Example(["b", "a", "c"], None, [], "", "")]
    assert majority(task_of("tagging"), known, asked) == [["O", "B-x", "O"]]
    known = [Example("a", None, label, "", "") for label in "xyy"]
    assert majority(task_of("classification", "xy"), known, known[:2]) == ["y", "y"]
    assert majority(task_of("regression", mean=2.5), known, known[:1]) == [2.5]
    assert majority(task_of("qa"), known, known[:1]) == [""]


def test_the_part_held_out_is_a_tenth_that_does_not_depend_on_the_order():
    examples = [Example(str(i), None, "x", "", f"f:{i}") for i in range(95)]
    part, rest = held_out(examples)
    again, _ = held_out(examples[::-1])
    assert len(part) == 10 and sorted(part) == sorted(again)
    assert sorted(part + rest) == sorted(examples)


TSV = "text\tlabel\na\tx\nb\ty\n"
SQUAD = squad(("q", "paris"))
BAD = {
    "a missing column": ("classification", "train.tsv", "txt\tlabel\na\tx\n",
                         ":2: no column 'text'"),
    "a test set without labels": ("classification", "test.tsv", "text\na\n",
                                  ":2: no column 'label'"),
    "an unknown label": ("classification", "dev.tsv", "text\tlabel\na\tx\na\tz\n",
                         ":3: label 'z' is not in the training set"),
    "an empty file": ("classification", "train.tsv", "", "empty"),
    "a header alone": ("classification", "train.tsv", "text\tlabel\n", "train.tsv"),
    "a ragged row": ("classification", "train.tsv", TSV + "c\n", ":4: 1 columns, not 2"),
    "an unclosed quote": ("classification", "train.csv", 'text,label\n"a,x\n', "train.csv:"),
    "no JSON": ("classification", "train.jsonl", '{"text": "a", "label": 1}\n{\n',
                ":2: not a JSON object"),
    "a list as text": ("classification", "train.jsonl", '{"text": [1], "label": 1}\n',
                       ":1: no column 'text'"),
    "bad bytes": ("classification", "train.tsv", "text\tlabel\na\udcff\tx\n", ":2: not UTF-8"),
    "a word for a number": ("regression", "train.tsv", "text\tlabel\na\tnan\n",
                            ":2: label 'nan' is not a number"),
    "a tag without a word": ("tagging", "train.tsv", "a\tO\n\tB-x\n", ":2: "),
    "a word without a tag": ("tagging", "train.tsv", "a\tO\nb\n", ":2: "),
    "a tag of no scheme": ("tagging", "train.tsv", "a\tO\nb\tNOUN\n", ":2: tag 'NOUN'"),
    "a type unknown": ("tagging", "dev.tsv", "a\tO\n\nb\tB-z\n",
                       ":3: label 'B-z' is not in the training set"),
    "an answer elsewhere": ("qa", "train.json",
                            SQUAD.replace('"answer_start": ', '"answer_start": 1'),
                            "train.json:10: not SQuAD: ValueError: the answer 'paris' of question "
                            "q0 is not at its offset"),
    "a question without answers": ("qa", "train.json", SQUAD.replace('"answers"', '"x"'), ":"),
    "half a file": ("qa", "train.json", '{"data": [', "not SQuAD"),
    "no training set": ("tagging", "", "", "say --train FILE"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_with_file_and_line(name, tmp_path, model, capsys):
    kind, file, text, said = BAD[name]
    good = {"classification": ("tsv", TSV), "regression": ("tsv", "text\tlabel\na\t1\nb\t2\n"),
            "tagging": ("tsv", "a\tB-x\nb\tO\n\nc\tO\n"),
            "qa": ("json", squad(("q", "paris"), ("r", "red")))}[kind]
    if file:
        (tmp_path / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    flags = ["--" + file.split(".")[0], tmp_path / file] if file else []
    for split in ("train", "dev") if file else ():
        if not file.startswith(split):
            flags += [f"--{split}", write(tmp_path / f"good-{split}.{good[0]}", good[1])]
    err = run(capsys, "--model", model, "--task", kind, *flags, "--steps", 1,
              "--out", tmp_path / "o", code=2).err
    assert err.count("\n") == 1 and err.startswith("finetune.py: error: ") and said in err, err
    assert file in err


@pytest.mark.parametrize("flags, said", [
    (["--task", "nosuch"], "invalid choice: 'nosuch'"), (["--adapters"], "unrecognized"),
    (["--seeds", "0"], "--seeds 0"), (["--adapters-only", "--freeze"], "not allowed with"),
    (["--text", "a", "b", "c"], "--text"), (["--lr", "x"], "--lr"),
    (["--length", "49"], "--length 49"), (["--model", "no/such/model"], "no/such/model"),
    (["--distill-from", "MODEL"], "task.json")])
def test_wrong_flags_are_refused_in_one_line(flags, said, tmp_path, model, capsys):
    sentiment(tmp_path / "d/train.tsv"), sentiment(tmp_path / "d/dev.tsv", 9, 1)
    flags = ["--task", "sst2", "--data", tmp_path / "d", "--model", model, "--out", tmp_path / "o",
             *flags]
    err = run(capsys, *(model if flag == "MODEL" else flag for flag in flags), code=2).err
    assert err.count("\n") == 1 and err.startswith("finetune.py: error: ") and said in err
    assert not (tmp_path / "o").exists()


def test_a_folder_without_weights_is_one_clear_line(tmp_path, model, capsys):
    (tmp_path / "model/model.safetensors").unlink()
    err = run(capsys, "--model", model, "--task", "sst2", "--adapters-only", "--data", tmp_path,
              "--out", tmp_path / "o", code=2).err
    assert err.count("\n") == 1 and "no model.safetensors" in err


def test_text_of_another_language_is_refused_and_a_name_or_two_is_not(tmp_path, model, capsys):
    for text, code in (("привет", 2), ("the film is привет", None)):
        table = write(tmp_path / "t.tsv", f"text\tlabel\n{text}\tx\n{text}\ty\n")
        err = run(capsys, "--model", model, "--task", "classification", "--train", table, "--dev",
                  table, "--steps", 1, "--out", tmp_path / f"o{code}", code=code).err
        assert not code or err.count("\n") == 1 and "[UNK]" in err and model in err
