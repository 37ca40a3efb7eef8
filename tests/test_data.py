"""data.py against naive loops, against transformers and tokenizers, and against hostile files."""
import bz2
import gzip
import importlib.metadata
import io
import json
import lzma
import os
import random
import subprocess
import sys
import sysconfig
import tracemalloc
import types
import zlib

import numpy as np
import pytest
import tokenizers
from tqdm import tqdm

import data
from data import (MaskedBatches, SPECIAL, Tokenizer, TokenFile, corpus_files, docs_on_this_machine,
                  fetch, main, mask, paragraphs, prose, read_corpus, tokenise, train_tokenizer)

OPEN = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
WORDS = "the cat sat on a mat and saw no dog near its house by the old river in spring".split()


def make_documents(count, seed=0):
    """Documents of one to four lines of a few words, no two the same."""
    rng = random.Random(seed)
    return [[f"{' '.join(rng.choices(WORDS, k=rng.randint(2, 7)))} {i} {line}"
             for line in range(rng.randint(1, 4))] for i in range(count)]


def put(path, documents):
    """Writes documents as the file's name says."""
    if ".jsonl" in path.name:
        documents = [{"text": "\n".join(lines), "id": 1} for lines in documents]
        text = "".join(json.dumps(document) + "\n" for document in documents)
    else:
        text = "\n\n".join("\n".join(lines) for lines in documents) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with OPEN.get(path.suffix, open)(path, "wb") as file:
        file.write(text.encode())
    return str(path)


def raw(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def naive_tokens(documents, tokenizer):
    """(train, valid) token numbers, one line at a time."""
    parts = [], []
    for lines in documents:
        held_out = zlib.crc32(lines[0].encode()) % 50 == 0
        for line in lines:
            parts[held_out].extend(tokenizer.core.encode(line, add_special_tokens=False).ids)
        parts[held_out].append(tokenizer.sep)
    return parts


def vocab_folder(path, words, config=None):
    path.mkdir(parents=True, exist_ok=True)
    raw(path / "vocab.txt", "\n".join(words) + "\n")
    if config is not None:
        raw(path / "tokenizer_config.json", json.dumps(config))
    return str(path)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer([put(folder / "a.txt", make_documents(99))], 120, str(folder / "tok"))


@pytest.fixture
def token_file(tokenizer, tmp_path):
    corpus = [put(tmp_path / "a.txt", make_documents(300))]
    return tokenise(corpus, tokenizer, str(tmp_path / "a.bin"))


# ---- Reading a corpus ----------------------------------------------------------------------------

def test_any_mix_of_files_and_folders_is_read_in_a_fixed_order(tmp_path):
    names = ["x/c.txt.xz", "x/a.txt", "x/b/z.jsonl.gz", "x/b/y.txt.bz2", "x/b/x.jsonl",
             "one.txt.gz", "x/d.jsonl.bz2", "x/e.jsonl.xz", "x/notes.md", "x/table.csv.gz"]
    documents = make_documents(len(names) * 3)
    parts = {name: documents[i * 3:i * 3 + 3] for i, name in enumerate(names)}
    for name in names:
        put(tmp_path / name, parts[name])
    order = ["one.txt.gz", "x/a.txt", "x/b/x.jsonl", "x/b/y.txt.bz2", "x/b/z.jsonl.gz",
             "x/c.txt.xz", "x/d.jsonl.bz2", "x/e.jsonl.xz"]
    corpus = [str(tmp_path / "one.txt.gz"), str(tmp_path / "x")]
    assert corpus_files(corpus) == [str(tmp_path / name) for name in order]
    found = "\n".join(read_corpus(corpus)).split("\n\n")
    found = [lines.strip().split("\n") for lines in found if lines.strip()]
    assert found == [lines for name in order for lines in parts[name]]


@pytest.mark.parametrize("name", ["nowhere", "empty", "notes.md", "a.txt.zip"])
def test_a_path_with_nothing_to_read_is_named(name, tmp_path):
    (tmp_path / "empty").mkdir()
    raw(tmp_path / "notes.md", "text")
    raw(tmp_path / "a.txt.zip", "text")
    with pytest.raises(ValueError, match=name):
        corpus_files([put(tmp_path / "good.txt", make_documents(1)), str(tmp_path / name)])


def test_the_bar_counts_the_bytes_on_the_disk(tmp_path, monkeypatch):
    bars = []

    class Bar(tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **options | {"disable": False, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr(data, "tqdm", Bar)
    names = ["a.txt", "b.jsonl.gz", "c.txt.bz2", "d.txt.xz", "empty.txt"]
    for i, name in enumerate(names):
        put(tmp_path / name, make_documents(40, seed=i) if i < 4 else [[]])
    list(read_corpus([str(tmp_path)]))
    assert bars[0].n == bars[0].total == sum(os.path.getsize(tmp_path / name) for name in names)


def test_bad_bytes_are_replaced_and_counted_exactly(tmp_path, capsys):
    bad = b"one \xff\xfe two\nthree \xc3( four \xed\xa0\x80 five\nsix\x00seven\n"
    bad += "é 中 \ufffd 🙂\n".encode()
    lines = list(read_corpus([raw(tmp_path / "a.txt", bad)]))
    assert lines == ["one \ufffd\ufffd two", "three \ufffd( four \ufffd\ufffd\ufffd five",
                     "six\ufffdseven", "é 中 \ufffd 🙂", ""]
    message = capsys.readouterr().err.strip()
    assert "\n" not in message and "a.txt" in message and " 7 " in message


def test_a_clean_file_gives_no_message(tmp_path, capsys):
    list(read_corpus([raw(tmp_path / "a.txt", "naïve 中文 🙂 \ufffd\n")]))
    assert capsys.readouterr().err == ""


def test_byte_order_marks_line_ends_and_blanks_do_not_matter(tmp_path):
    plain = list(read_corpus([raw(tmp_path / "a.txt", "one\ntwo\n\nthree\n")]))
    odd = list(read_corpus([raw(tmp_path / "b.txt", "\ufeffone  \r\n\t two\r\n \t \r\nthree")]))
    assert plain == odd == ["one", "two", "", "three", ""]
    assert list(read_corpus([raw(tmp_path / "c.txt", "")])) == [""]


def test_lines_of_jsonl_may_hold_what_json_may(tmp_path):
    lines = [r'{"text": "a\u0000b \ud800 c \ud83d\ude42\r\n\n  d  "}', "", "  ", '{"text": ""}',
             '{"other": {"text": 1}, "text": "e\tf"}']
    found = list(read_corpus([raw(tmp_path / "a.jsonl", "\ufeff" + "\n".join(lines))]))
    assert [line for line in found if line] == ["a\ufffdb \ufffd c 🙂", "d", "e\tf"]
    assert found[2] == "" and found[-1] == ""


@pytest.mark.parametrize("line", [
    "no json", "[1, 2]", "3", "null", '"text"', '{"title": "x"}', '{"text": 3}', '{"text": null}',
    '{"text": ["x"]}', '{"text": {}}', '{"text": "x"', "[" * 100_000,
    '{"text": "x"} {"text": "y"}'])
def test_a_line_of_jsonl_that_is_no_document_is_named(line, tmp_path):
    file = raw(tmp_path / "a.jsonl", '{"text": "good"}\n\n' + line + '\n{"text": "good"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:3: "):
        list(read_corpus([file]))


def test_a_line_of_jsonl_that_is_too_long_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LONGEST", 100)
    fits = json.dumps({"text": "x" * 85})
    too_long = json.dumps({"text": "y" * 99})
    assert "x" * 85 in list(read_corpus([raw(tmp_path / "a.jsonl", fits)]))
    with pytest.raises(ValueError, match=r"a\.jsonl:2: .*100"):
        list(read_corpus([raw(tmp_path / "a.jsonl", fits + "\n" + too_long)]))


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_line_of_any_length_is_read_in_constant_memory(packed, tmp_path):
    path = tmp_path / f"a.txt{packed}"
    with OPEN.get(packed, open)(path, "wb") as file:
        for _ in range(30):
            file.write(b"word " * 200_000)                   # 30 MB without the end of a line
    tracemalloc.start()
    count = sum(line.count("w") for line in read_corpus([str(path)]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 6_000_000 and peak < 10e6


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz"])
@pytest.mark.parametrize("damage", ["cut", "other", "flipped", "overwritten"])
def test_a_damaged_archive_is_named_and_leaves_nothing(packed, damage, tokenizer, tmp_path):
    path = tmp_path / f"a.txt{packed}"
    put(path, make_documents(2000))
    whole = path.read_bytes()
    middle = len(whole) // 2
    raw(path, {"cut": whole[:middle], "other": b"no archive at all",
               "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1:],
               "overwritten": whole[:middle] + b"\xff" * 99 + whole[middle + 99:]}[damage])
    with pytest.raises(ValueError, match=path.name):
        tokenise([str(path)], tokenizer, str(tmp_path / "out.bin"))
    with pytest.raises(ValueError, match=path.name):
        train_tokenizer([str(path)], 120, str(tmp_path / "tok"))
    assert os.listdir(tmp_path) == [path.name]


# ---- Token files ---------------------------------------------------------------------------------

@pytest.mark.parametrize("longest", [1, 300, 1 << 20])
def test_the_token_file_is_what_a_naive_loop_makes(longest, tokenizer, tmp_path, monkeypatch):
    documents = make_documents(400) + [["\x7f\x7f only what is dropped", "\x7f"]]
    put(tmp_path / "c" / "a.txt.gz", documents[:150])
    put(tmp_path / "c" / "b.jsonl", documents[150:])
    batches_of, sizes = data.batches_of, []

    def smaller(lines):
        lines = list(lines)                 # before, because LONGEST would cut the lines as well
        monkeypatch.setattr(data, "LONGEST", longest)
        sizes.extend(map(len, batches := list(batches_of(lines))))
        monkeypatch.undo()
        return batches

    monkeypatch.setattr(data, "batches_of", smaller)
    made = tokenise([str(tmp_path / "c")], tokenizer, str(tmp_path / "a.bin"))
    train, valid = naive_tokens(documents, tokenizer)
    assert made.train.tolist() == train and made.valid.tolist() == valid and len(valid) > 20
    assert made.train.dtype == made.valid.dtype == np.uint16
    assert (len(sizes) > 100) == (longest == 1) and (len(sizes) == 1) == (longest == 1 << 20)
    assert os.path.getsize(made.path) == 2 * (len(train) + len(valid))


@pytest.mark.parametrize("size, dtype", [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_large_vocabularies_get_wider_numbers(size, dtype, tmp_path):
    words = SPECIAL + [f"w{i}" for i in range(size - len(SPECIAL))]
    wide = Tokenizer(vocab_folder(tmp_path / "tok", words))
    assert wide.vocab_size == size
    corpus = [raw(tmp_path / "a.txt", f"{words[-1]} w0 {words[-1]}\n" * 30)]
    made = tokenise(corpus, wide, str(tmp_path / "a.bin"))
    assert made.train.dtype == made.valid.dtype == dtype
    assert made.train[:3].tolist() == [size - 1, 5, size - 1]
    assert TokenFile(made.path).valid.tolist() == made.valid.tolist()


def test_a_token_file_is_made_once_and_made_anew_when_it_is_stale(tokenizer, tmp_path, capsys):
    source, other = tmp_path / "c" / "a.txt", tmp_path / "c" / "b.txt"
    documents = make_documents(60)
    put(source, documents)
    out = str(tmp_path / "sub" / "a.bin")

    def made_anew(tokenizer=tokenizer):
        before = os.path.exists(out) and os.stat(out).st_ino
        made = tokenise([str(tmp_path / "c")], tokenizer, out)
        assert TokenFile(out).made_from == made.made_from
        said = "making it anew" in capsys.readouterr().err
        assert said == bool(before and os.stat(out).st_ino != before)
        return os.stat(out).st_ino != before

    assert made_anew() and not made_anew()
    put(source, documents + [["more"]])
    assert made_anew() and not made_anew()
    put(other, make_documents(9, seed=1))
    assert made_anew() and not made_anew()
    was = os.stat(other)
    raw(other, other.read_bytes().replace(b"cat", b"dog"))
    os.utime(other, ns=(was.st_atime_ns, was.st_mtime_ns + 1000))    # as large as before, but newer
    assert made_anew() and not made_anew()
    was = os.stat(other)
    put(other, make_documents(8, seed=1))
    os.utime(other, ns=(was.st_atime_ns, was.st_mtime_ns))           # as old as before, but smaller
    assert made_anew() and not made_anew()
    words = SPECIAL + [f"{mark}{x}" for x in "abcdefghijklmnopqrstuvwxyz" for mark in ("", "##")]
    assert made_anew(Tokenizer(vocab_folder(tmp_path / "tok", words)))
    assert sorted(os.listdir(tmp_path / "sub")) == ["a.bin", "a.bin.json"]


def test_what_is_held_out_does_not_depend_on_the_order_of_the_documents(tokenizer, tmp_path):
    documents = make_documents(3000)

    def held_out(name, documents):
        put(tmp_path / name / "1.txt", documents[:999])
        put(tmp_path / name / "2.jsonl", documents[999:])
        made = tokenise([str(tmp_path / name)], tokenizer, str(tmp_path / f"{name}.bin"))
        ends = np.flatnonzero(made.valid == tokenizer.sep) + 1
        return sorted(part.tolist() for part in np.split(made.valid, ends)[:-1])

    first = held_out("first", documents)
    assert first == held_out("second", documents[::-1]) and 35 <= len(first) <= 90     # of 60


@pytest.mark.parametrize("drawn", [False, True])
def test_tokens_are_held_out_where_documents_are_too_few(drawn, tokenizer, tmp_path, capsys):
    first = next(f"start {i}" for i in range(1000)
                 if (zlib.crc32(f"start {i}".encode()) % 50 == 0) == drawn)
    documents = [[first] + [" ".join(WORDS)] * 20]
    made = tokenise([put(tmp_path / "a.txt", documents)], tokenizer, str(tmp_path / "a.bin"))
    all_tokens = sum(naive_tokens(documents, tokenizer), [])
    assert made.train.tolist() + made.valid.tolist() == all_tokens
    assert len(made.valid) == len(all_tokens) // 50 > 0
    assert f"last {len(made.valid)} tokens" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "\n\n \n", "\ufeff"])
def test_a_corpus_without_text_is_an_error_and_nothing_is_written(text, tokenizer, tmp_path):
    corpus = [raw(tmp_path / "a.txt", text)]
    with pytest.raises(ValueError, match="no text"):
        tokenise(corpus, tokenizer, str(tmp_path / "a.bin"))
    with pytest.raises(ValueError, match="no text"):
        train_tokenizer(corpus, 100, str(tmp_path / "tok"))
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failure_leaves_the_old_token_file_as_it_was(token_file, tokenizer, tmp_path):
    before, names = open(token_file.path, "rb").read(), sorted(os.listdir(tmp_path))
    raw(tmp_path / "a.txt.gz", b"no archive")
    with pytest.raises(ValueError, match="damaged"):
        tokenise([str(tmp_path / "a.txt"), str(tmp_path / "a.txt.gz")], tokenizer, token_file.path)
    assert open(token_file.path, "rb").read() == before
    assert sorted(os.listdir(tmp_path)) == sorted(names + ["a.txt.gz"])
    assert len(TokenFile(token_file.path).train) == len(token_file.train)


def test_a_file_that_is_no_token_file_is_not_overwritten(tokenizer, tmp_path):
    corpus = put(tmp_path / "a.txt", make_documents(9))
    before = open(corpus, "rb").read()
    for out in (corpus, str(tmp_path)):
        with pytest.raises((ValueError, OSError), match=str(tmp_path)):
            tokenise([corpus], tokenizer, out)
    assert open(corpus, "rb").read() == before and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("damage", [
    "", "no json", "[]", "3", "{}", '{"dtype": "uint16"}', "\xff", "[" * 100_000,
    {"dtype": "int8"}, {"dtype": ["uint16"]}, {"dtype": "uint32"}, {"train": "1"}, {"train": None},
    {"train": -1}, {"train": 1.0}, {"train": 10**30}, {"valid": 1}, {"valid": "x"},
    {"made_from": ...}])
def test_a_damaged_description_of_a_token_file_is_an_error(damage, token_file):
    facts = json.load(open(f"{token_file.path}.json"))
    if isinstance(damage, dict):
        damage = json.dumps({k: v for k, v in (facts | damage).items() if v is not ...})
    with open(f"{token_file.path}.json", "w", encoding="latin-1") as file:
        file.write(damage)
    with pytest.raises(ValueError, match=token_file.path):
        TokenFile(token_file.path)


@pytest.mark.parametrize("change", [lambda b: b[:-2], lambda b: b[:-1], lambda b: b + b"12",
                                    lambda b: b"", None])
def test_a_token_file_of_the_wrong_size_is_an_error(change, token_file):
    content = open(token_file.path, "rb").read()
    os.remove(token_file.path)
    if change:
        with open(token_file.path, "wb") as file:
            file.write(change(content))
    with pytest.raises(ValueError, match=token_file.path):
        TokenFile(token_file.path)


# ---- Tokenizers ----------------------------------------------------------------------------------

TRICKY = [
    "Ünïcode Éclair naïve café CAFÉ", "中文字符 mixed中with文latin", "don't stop-it! (really?) [x] {y}",
    "a\u0301 e\u0300 İstanbul ΣΊΣΥΦΟΣ straße", "tabs\tand\u00a0odd\u2003spaces\u200bzero \x07bell",
    "x" * 150, "[MASK] is special, [mask] is not, nor is [ MASK ]",
    "🙂 $5.00 3½ 100% «quoted» “too”", "", "   ", "UPPER lower MiXeD", "\ufffd\x00",
    "Zażółć gęślą jaźń ﬁ ﬂ"]


def tricky_words(cased):
    """Letters, with and without ##, as BERT's normaliser leaves them, and a few longer words."""
    text = set("".join(TRICKY)) | set("".join(TRICKY).lower()) | set("aeiouncszglz\u0301")
    letters = sorted(c for c in text if c.isprintable() and not c.isspace()
                     and (cased or c == c.lower()) and c != "🙂")    # which is to be [UNK]
    return SPECIAL + letters + ["##" + c for c in letters if c.isalnum() or c == "\u0301"] + [
        "stop", "cafe", "real", "##ly", "lower", "[unused1]"]


@pytest.mark.parametrize("cased", [False, True])
@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
def test_the_ids_are_those_of_the_reference_tokenizers(cased, told, file, tmp_path):
    reference = pytest.importorskip("transformers", reason="the oracle").BertTokenizerFast
    words = tricky_words(cased)
    folder = vocab_folder(tmp_path / "v", words, {"do_lower_case": not cased} if told else None)
    vocab = os.path.join(folder, "vocab.txt")
    second = tokenizers.BertWordPieceTokenizer(vocab, lowercase=not cased)
    if file == "tokenizer.json":
        os.remove(vocab)
        second.enable_padding(length=40)
        second.enable_truncation(5)
        second.save(os.path.join(folder, "tokenizer.json"))
        second.no_padding(), second.no_truncation()
    mine = Tokenizer(folder).encode(TRICKY)
    assert mine == [second.encode(text, add_special_tokens=False).ids for text in TRICKY]
    first = reference.from_pretrained(folder, do_lower_case=not cased)
    assert mine == first(TRICKY, add_special_tokens=False)["input_ids"]
    assert mine[-3] != Tokenizer(folder).encode([TRICKY[-3].lower()])[0] or not cased
    assert sum(len(ids) for ids in mine) > 180 and 1 in mine[7]


@pytest.mark.parametrize("words, config, lower", [
    (["a", "b"], None, True), (["a", "B"], None, False), (["a", "##Bc"], None, False),
    (["a", "[unused1]", "[END]"], None, True), (["a", "[B", "c"], None, False),
    (["a", "É"], None, True),
    (["a", "B"], {"do_lower_case": True}, True), (["a", "b"], {"do_lower_case": False}, False),
    (["a", "B"], {"model_max_length": 512}, False), (["a", "B"], {"do_lower_case": None}, False)])
def test_a_vocabulary_with_capitals_is_cased_unless_told_otherwise(words, config, lower, tmp_path):
    core = Tokenizer(vocab_folder(tmp_path, SPECIAL + words, config)).core
    assert core.normalizer.normalize_str("AB") == ("ab" if lower else "AB")


def test_accents_are_kept_where_the_files_say_so(tmp_path):
    config = {"do_lower_case": True, "strip_accents": False}
    core = Tokenizer(vocab_folder(tmp_path, SPECIAL + ["a"], config)).core
    assert core.normalizer.normalize_str("É") == "é"


def test_line_ends_and_odd_words_in_a_vocabulary_do_not_shift_the_numbers(tmp_path):
    odd = SPECIAL + ["a\u2028b", "\x85", "\u00a0", "last"]
    text = "\n".join(odd)
    for variant in (text, text + "\n", (text + "\n").replace("\n", "\r\n"), "\ufeff" + text):
        raw(tmp_path / "vocab.txt", variant)
        found = Tokenizer(str(tmp_path))
        assert found.vocab_size == len(odd) and found.core.token_to_id("last") == len(odd) - 1
        assert (found.pad, found.unk, found.cls, found.sep, found.mask) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("text, message", [
    (b"", "PAD"), (b"\n", "PAD"), (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n", r"no \[MASK\]$"),
    (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\na\n", "8 lines, but 7"),
    (b"[PAD]\n\xff\n", "utf-8")])
def test_a_vocabulary_that_will_not_do_is_named(text, message, tmp_path):
    raw(tmp_path / "vocab.txt", text)
    with pytest.raises(ValueError, match=r"vocab\.txt: .*" + message):
        Tokenizer(str(tmp_path))


@pytest.mark.parametrize("text", [
    "", "no json", "[]", "3", '{"do_lower_case": "no"}', '{"words": []}', '{"strip_accents": 3}',
    "[" * 100_000, b"\xff"])
def test_a_tokenizer_config_that_will_not_do_is_named(text, tmp_path):
    vocab_folder(tmp_path, SPECIAL + ["a"])
    raw(tmp_path / "tokenizer_config.json", text)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: "):
        Tokenizer(str(tmp_path))


@pytest.mark.parametrize("text", [
    b"", b"no json", b"{}", b"\xff", b"[]", b'{"model": {"type": "Odd"}}'])
def test_a_tokenizer_json_that_will_not_do_is_named(text, tmp_path):
    raw(tmp_path / "tokenizer.json", text)
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer: [^\n]+$"):
        Tokenizer(str(tmp_path))


@pytest.mark.parametrize("special", [SPECIAL, SPECIAL[:-1]])
def test_any_kind_of_tokenizer_will_do_if_it_has_the_special_tokens(special, tmp_path):
    core = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    core.train_from_iterator([" ".join(WORDS)] * 9, tokenizers.trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<s>"] + special, show_progress=False))
    core.save(str(tmp_path / "tokenizer.json"))
    if special != SPECIAL:
        with pytest.raises(ValueError, match=r"tokenizer\.json: it has no \[MASK\]"):
            Tokenizer(str(tmp_path))
        return
    found = Tokenizer(str(tmp_path))
    assert found.special.tolist() == [1, 2, 3, 4, 5] and found.mask == 5
    assert found.encode(["the cat"]) == [core.encode("the cat").ids]


def test_numbers_that_no_token_has_are_never_drawn(tmp_path):
    ids = {word: 3 * i for i, word in enumerate(SPECIAL + ["a", "b"])}
    tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]")).save(
        str(tmp_path / "tokenizer.json"))
    found = Tokenizer(str(tmp_path))
    assert found.vocab_size == 19 and found.ordinary.tolist() == [15, 18]
    assert found.special.tolist() == [0, 3, 6, 9, 12]


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=str(path)):
            Tokenizer(str(path))


def test_tokenizers_that_differ_have_different_digests(tmp_path):
    cased = {"do_lower_case": False}
    kinds = [(["a", "b"], None), (["b", "a"], None), (["a", "c"], None), (["a", "b"], cased)]
    digests = [Tokenizer(vocab_folder(tmp_path / str(i), SPECIAL + words, config)).digest
               for i, (words, config) in enumerate(kinds)]
    assert len(set(digests)) == 4


def test_a_saved_tokenizer_is_the_same_and_replaces_another_one(tmp_path):
    small = Tokenizer(vocab_folder(tmp_path / "a", SPECIAL + ["a", "B"], {"do_lower_case": True}))
    other = tokenizers.BertWordPieceTokenizer({word: i for i, word in enumerate(SPECIAL + ["x"])})
    (tmp_path / "b").mkdir()
    other.save(str(tmp_path / "b" / "tokenizer.json"))
    target = tmp_path / "c"
    target.mkdir()
    for source in (Tokenizer(str(tmp_path / "b")), small):
        source.save(str(target))
        assert Tokenizer(str(target)).digest == source.digest != ""
    small.save(small.path)
    assert Tokenizer(small.path).digest == small.digest
    assert sorted(os.listdir(target)) == sorted(os.listdir(small.path))
    assert small.digest != Tokenizer(str(tmp_path / "b")).digest


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_learned_vocabulary_has_the_size_asked_for(lowercase, tmp_path):
    text = "\n".join(" ".join(words).title() for words in make_documents(50))
    corpus = [raw(tmp_path / "a.txt", text)]
    made = train_tokenizer(corpus, 100, str(tmp_path / "tok"), lowercase)
    words = (tmp_path / "tok" / "vocab.txt").read_text().splitlines()
    assert made.vocab_size == len(words) == 100 and words[:5] == SPECIAL
    assert words[5:] == sorted(words[5:])                    # so that it does not vary with the run
    assert any("T" in word for word in words[5:]) == (not lowercase)
    assert made.core.normalizer.normalize_str("A") == ("a" if lowercase else "A")
    assert made.unk not in made.encode(["The Cat Sat On A Mat"])[0]


def test_a_vocabulary_is_not_learned_where_it_could_not_be_read_again(tmp_path):
    corpus = [put(tmp_path / "a.txt", make_documents(9))]
    (tmp_path / "tok").mkdir()
    raw(tmp_path / "tok" / "tokenizer.json", "{}")
    with pytest.raises(ValueError, match="tokenizer.json"):
        train_tokenizer(corpus, 100, str(tmp_path / "tok"))
    for size in (99, 2**20 + 1):
        with pytest.raises(ValueError, match=str(size)):
            train_tokenizer(corpus, size, str(tmp_path / "other"))
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "tok"]


# ---- Models by name ------------------------------------------------------------------------------

def hub(monkeypatch, tmp_path, files=(), error=None):
    """A stand-in for the hub that has these files; the list of what it was asked for."""
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append(allow_patterns)
        if error:
            raise error
        if allow_patterns in files:
            raw(tmp_path / allow_patterns, "x")
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub",
                        types.SimpleNamespace(snapshot_download=snapshot_download))
    return asked


def test_only_what_is_wanted_is_fetched(monkeypatch, tmp_path):
    asked = hub(monkeypatch, tmp_path, ["vocab.txt", "model.safetensors", "pytorch_model.bin"])
    assert fetch("someone/bert", [("model.safetensors", "pytorch_model.bin"), ("config.json", None),
                                  ("tokenizer.json", "vocab.txt")]) == str(tmp_path)
    assert asked == ["model.safetensors", "config.json", "tokenizer.json", "vocab.txt"]
    with pytest.raises(ValueError, match="someone/bert: .*no a.json or b.json$"):
        fetch("someone/bert", [("a.json", "b.json")])


def test_a_folder_is_taken_as_it_is(monkeypatch, tmp_path):
    asked = hub(monkeypatch, tmp_path)
    assert fetch(str(tmp_path), [("vocab.txt",)]) == str(tmp_path) and not asked


@pytest.mark.parametrize("error", [
    OSError("no net\nread the manual"), ValueError("bad name\n\n"), OSError()])
def test_what_the_hub_refuses_is_one_line(error, monkeypatch, tmp_path):
    hub(monkeypatch, tmp_path, error=error)
    with pytest.raises(ValueError, match="^some/bert: no such folder, [^\n]+$"):
        fetch("some/bert", [("vocab.txt",)])


def test_the_hubs_own_errors_are_the_kinds_that_are_caught():
    errors = pytest.importorskip("huggingface_hub.errors", reason="it is where tokenizers is")
    for name in ("LocalEntryNotFoundError", "RepositoryNotFoundError", "HfHubHTTPError",
                 "OfflineModeIsEnabled", "HFValidationError"):
        assert issubclass(getattr(errors, name), (OSError, ValueError)), name


# ---- Masked batches ------------------------------------------------------------------------------

def restored(batch):
    """The ids of a batch with its labels put back."""
    ids, places, labels = batch
    ids = ids.copy()
    ids.ravel()[places] = labels
    return ids


@pytest.mark.parametrize("T", [3, 7, 64])
def test_sequences_are_packed_and_lose_no_token(T, token_file, tokenizer):
    tokens = token_file.train
    batches = MaskedBatches(tokens, tokenizer, T, 4)
    ids = batches.sequences(np.arange(batches.count))
    assert ids.shape == (len(tokens) // (T - 2), T) and ids.dtype == np.int64
    assert (ids[:, 0] == tokenizer.cls).all() and (ids[:, -1] == tokenizer.sep).all()
    assert not (ids == tokenizer.pad).any()
    body = ids[:, 1:-1].ravel()
    assert body.tolist() == tokens[:len(body)].tolist() and 0 <= len(tokens) - len(body) < T - 2


@pytest.mark.parametrize("B", [1, 4, 200])
def test_each_epoch_visits_each_sequence_once_in_another_order(B, token_file, tokenizer):
    T = 23
    n = len(token_file.valid) // (T - 2)
    tokens = np.arange(n * (T - 2) + 5) % 50 + 5             # no two sequences alike
    batches = MaskedBatches(tokens, tokenizer, T, B, seed=3)
    assert 4 < n == batches.count < 50
    steps = range(-(-n * 3 // B))
    rows = [tuple(row) for step in steps for row in restored(batches(step))][:n * 3]
    epochs = [rows[i * n:i * n + n] for i in range(3)]
    want = sorted(tuple(row) for row in batches.sequences(np.arange(n)))
    assert len(set(want)) == n and [sorted(epoch) for epoch in epochs] == [want] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert all(epoch != want for epoch in epochs)


def test_batches_are_a_function_of_seed_and_step_alone(token_file, tokenizer):
    def batches(seed, B=5):
        return MaskedBatches(token_file.train, tokenizer, 16, B, seed)

    def as_bytes(batch):
        return [part.tobytes() for part in batch]

    steps = [0, 1, 40, 41, 200, 1000]
    forward, backward = batches(1), batches(1)
    first = {step: as_bytes(forward(step)) for step in steps}
    assert {step: as_bytes(backward(step)) for step in reversed(steps)} == first
    assert as_bytes(forward(40)) == first[40]
    assert as_bytes(batches(2)(0))[0] != first[0][0]
    assert not (restored(forward(0)) == restored(batches(2)(0))).all()
    ordinary = np.full(500, tokenizer.ordinary[0])           # all places are open to masking
    places = [tuple(MaskedBatches(ordinary, tokenizer, 102, 5, seed)(step)[1])
              for seed in (1, 2) for step in (0, 1, 2)]
    assert len(set(places)) == 6 and {len(some) for some in places} == {75}


def test_too_few_tokens_for_a_sequence_are_an_error(tokenizer):
    assert MaskedBatches(np.arange(5, 13), tokenizer, 10, 1).count == 1
    for count, T in ((7, 10), (0, 10), (7, 2), (7, 0), (0, 2)):
        with pytest.raises(ValueError, match=f"^{count} tokens.* {T} "):
            MaskedBatches(np.arange(count), tokenizer, T, 1)


def test_a_token_beyond_the_vocabulary_is_an_error(tokenizer):
    tokens = np.full(50, tokenizer.vocab_size - 1, np.uint16)
    assert MaskedBatches(tokens, tokenizer, 12, 5)(0)[0].shape == (5, 12)
    tokens[7] += 1
    with pytest.raises(ValueError, match=f"token {tokenizer.vocab_size} "):
        MaskedBatches(tokens, tokenizer, 12, 5)(0)


# ---- Masking -------------------------------------------------------------------------------------

def random_ids(tokenizer, B, T, specials=0.1):
    rng = np.random.default_rng(5)
    ids = rng.choice(tokenizer.ordinary, (B, T))
    ids[rng.random((B, T)) < specials] = tokenizer.sep
    ids[:, 0] = tokenizer.cls
    return ids


def test_masking_has_berts_proportions(tokenizer):
    B, T = 1000, 102
    ids = random_ids(tokenizer, B, T)
    masked, places, labels = mask(ids, tokenizer, np.random.default_rng(0))
    M = len(places)
    assert M == B * 15 and (np.bincount(places // T) == 15).all()
    now = masked.ravel()[places]
    assert abs((now == tokenizer.mask).mean() - 0.8) < 4 * (0.8 * 0.2 / M) ** 0.5
    n = len(tokenizer.ordinary)
    kept = 0.1 + 0.1 / n                                     # the other token may be the same one
    assert abs((now == labels).mean() - kept) < 4 * (kept * (1 - kept) / M) ** 0.5
    others = now[(now != tokenizer.mask) & (now != labels)]
    counts = np.array([(others == i).sum() for i in tokenizer.ordinary])
    assert counts.sum() == len(others)
    assert abs(counts - counts.mean()).max() < 5 * counts.mean() ** 0.5
    where = np.bincount(places % T, minlength=T)             # every place is as likely as any other
    assert where[0] == 0 and abs(where[1:] - M / (T - 1)).max() < 5 * (M / (T - 1)) ** 0.5


def test_masking_never_takes_a_special_token_and_changes_nothing_else(tokenizer):
    ids = random_ids(tokenizer, 30, 41, specials=0.4)
    before = ids.copy()
    masked, places, labels = mask(ids, tokenizer, np.random.default_rng(1))
    assert (ids == before).all() and masked.shape == ids.shape
    assert (labels == ids.ravel()[places]).all() and not np.isin(labels, tokenizer.special).any()
    assert len(set(places.tolist())) == len(places) and (np.diff(places) > 0).all()
    others = np.setdiff1d(np.arange(ids.size), places)
    assert (masked.ravel()[others] == ids.ravel()[others]).all()
    now = masked.ravel()[places]
    assert not np.isin(now, [tokenizer.pad, tokenizer.unk, tokenizer.cls, tokenizer.sep]).any()


def test_sequences_of_special_tokens_have_few_places_or_none(tokenizer):
    ids = np.full((3, 42), tokenizer.sep)
    masked, places, labels = mask(ids, tokenizer, np.random.default_rng(0))
    assert len(places) == len(labels) == 0 and (masked == ids).all()
    ids[1, 7:9] = tokenizer.ordinary[:2]
    ids[2] = tokenizer.ordinary[3]
    places = mask(ids, tokenizer, np.random.default_rng(0))[1]
    assert np.bincount(places // 42, minlength=3).tolist() == [0, 2, 6]
    short = np.array([[tokenizer.cls, 9, tokenizer.sep]])
    assert mask(short, tokenizer, np.random.default_rng(0))[1].tolist() == [1]


def test_masking_is_what_a_plain_loop_does(tokenizer):
    ids, rng = random_ids(tokenizer, 5, 33), np.random.default_rng([7, 2, 9])
    found = mask(ids, tokenizer, np.random.default_rng([7, 2, 9]))
    lot, want = rng.random(ids.shape), []
    for b, row in enumerate(ids):
        ordinary = [t for t in range(33) if row[t] not in tokenizer.special]
        want += sorted(b * 33 + t for t in sorted(ordinary, key=lambda t: lot[b, t])[:5])
    fate, masked = rng.random(len(want)), ids.ravel().tolist()
    for place, f, other in zip(want, fate, rng.choice(tokenizer.ordinary, len(want))):
        masked[place] = tokenizer.mask if f < 0.8 else other if f < 0.9 else masked[place]
    assert found[0].ravel().tolist() == masked and found[1].tolist() == want
    assert found[2].tolist() == ids.ravel()[want].tolist()


# ---- The embedded corpus -------------------------------------------------------------------------

PLAIN = "The function returns a copy of the array if that is what the caller wants."


@pytest.mark.parametrize("text, want", [
    (PLAIN, PLAIN), (PLAIN[:-1] + ":", PLAIN[:-1] + ":"), (PLAIN[:-1] + "::", PLAIN[:-1] + ":"),
    ("The :func:`~numpy.copy` returns ``a copy`` of *the*\n  array if **that** is what "
     "`the caller`_ wants.",
     "The numpy.copy returns a copy of the array if that is what the caller wants."),
    ("See :ref:`the manual <manual-2>` for all of the ways in which this can be done.",
     "See the manual for all of the ways in which this can be done."),
    ("See `the manual <https://example.com>`__ for all of the ways in which this can be done.",
     "See the manual for all of the ways in which this can be done."),
    ("Too short for the model.", None), (PLAIN[:-1], None), ("and " + PLAIN, "and " + PLAIN),
    (">>> if the cat is on the mat: print(it)\n... and this is the same as that.", None),
    ("x = the_function(of, the, array)\n" + PLAIN, None), ("def f(a):\n" + PLAIN, None),
    ("import the module\n" + PLAIN, None), (".. note:: " + PLAIN, None),
    (":param x: " + PLAIN, None), ("The cat     on\n--------    --\n" + PLAIN, None),
    ("The | cat | is | on | the | mat | and | it | is.", None),
    ("The result is {a, b} or the sum of these, which is what the caller wants.", None),
    ("The value of x is such that a < b <= c and it is the least of all of them.", None),
    ("Print %s if the value is not in the list of all that are known to it.", None),
    ("Große Häuser are in the list of all that are known to it and the others.", None),
    ("The 1234 of 5678 is 9012 and the 55 66 of the 77 88 is 99.", None),
    ("(" + PLAIN + ")", None),
    ("Tokenizer corpus vocabulary sequence document paragraph sentence word.", None)])
def test_prose_is_told_from_code_tables_and_fragments(text, want):
    assert prose(text.splitlines()) == want


def test_a_docstring_falls_into_paragraphs_items_and_arguments():
    docstring = """Summary of it,
    on two lines.

    Args:
        x (Tensor, optional): what goes in
            and its second line
        y: Another one.
    - an item
    - the next
      goes on

    An example::

        this is
        
        code

    Not code.
    """
    assert [" ".join(" ".join(lines).split()) for lines in paragraphs(docstring)] == [
        "Summary of it, on two lines.", "Args:", "what goes in and its second line", "Another one.",
        "an item", "the next goes on", "An example::", "Not code."]
    assert [lines for lines in paragraphs("") if lines] == []


@pytest.fixture
def fake_machine(tmp_path, monkeypatch):
    """A Python, a torch and a numpy with a few modules that cannot be imported."""
    def module(path, *paragraphs):
        path = tmp_path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "\n\n".join(paragraphs)
        path.write_text(f'raise SystemExit("imported")\n\ndef f():\n    r"""{text}\n    """\n')

    a, b, c, d, e, f = (PLAIN.replace("array", word)
                        for word in ("list", "tree", "heap", "graph", "queue", "stack"))
    module("python/zlib.py", a, "Short.", a.replace("function", "Function"))
    module("python/abc/base.py", b, a)
    module("python/test/test_abc.py", PLAIN)
    module("python/site-packages/other.py", PLAIN)
    module("site/torch/nn.py", c)
    module("site/numpy/core.py", d, c)
    raw(tmp_path / "python" / "odd.py", b"'''\xff%s''' '''%s'''" % (PLAIN.encode(), e.encode()))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "python"))
    versions = {"torch": "2.1", "numpy": "3.2"}
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: types.SimpleNamespace(
        version=versions[name], locate_file=lambda file: tmp_path / "site" / file))
    monkeypatch.setitem(sys.modules, "pydoc_data.topics",
                        types.SimpleNamespace(topics={"b": f, "a": b}))
    return versions, [("python.reference", b), ("python.reference", f), ("python.odd", e),
                      ("python.zlib", a), ("torch.nn", c), ("numpy.core", d)]


def test_the_documentation_is_collected_once_without_duplicates(fake_machine, tmp_path):
    versions, want = fake_machine
    path = docs_on_this_machine(str(tmp_path / "cache"))
    found = [json.loads(line) for line in open(path)]
    assert [(paragraph["part"], paragraph["text"]) for paragraph in found] == want
    before = os.stat(path)
    (tmp_path / "python" / "zlib.py").unlink()
    assert docs_on_this_machine(str(tmp_path / "cache")) == path and os.stat(path) == before
    versions["torch"] = "2.2"
    assert docs_on_this_machine(str(tmp_path / "cache")) != path
    assert len(os.listdir(tmp_path / "cache")) == 2
    assert [line for line in read_corpus([path]) if line] == [text for _, text in want]


def test_a_cache_that_cannot_be_written_is_an_error(fake_machine, tmp_path):
    raw(tmp_path / "cache", "a file")
    for cache in (tmp_path / "cache", tmp_path / "cache" / "below"):
        with pytest.raises(OSError, match="cache"):
            docs_on_this_machine(str(cache))


# ---- The command ---------------------------------------------------------------------------------

def test_the_command_tokenises(tokenizer, tmp_path, capsys):
    corpus = [put(tmp_path / "a.txt", make_documents(200)),
              put(tmp_path / "b.jsonl.gz", make_documents(9, 1))]
    out = str(tmp_path / "new" / "a.bin")
    assert not main(["--corpus", *corpus, "--tokenizer", tokenizer.path, "--out", out])
    made = TokenFile(out)
    assert naive_tokens(make_documents(200) + make_documents(9, 1), tokenizer) == (
        made.train.tolist(), made.valid.tolist())
    said = capsys.readouterr()
    assert f"{len(made.train):,} tokens to train on, {len(made.valid):,} held out" in said.out
    assert said.err == ""


@pytest.mark.parametrize("options, lower", [
    ([], True), (["--lowercase"], True), (["--no-lowercase"], False)])
def test_the_command_learns_a_vocabulary_from_the_embedded_corpus(
        options, lower, fake_machine, tmp_path, monkeypatch, capsys):
    docs = docs_on_this_machine(str(tmp_path / "cache"))
    monkeypatch.setattr(data, "docs_on_this_machine", lambda: docs)
    assert not main(["--train-tokenizer", "5000", "--out", str(tmp_path / "tok"), *options])
    made = Tokenizer(str(tmp_path / "tok"))
    assert f"{made.vocab_size} tokens of the 5000 asked for" in capsys.readouterr().out
    assert made.core.normalizer.normalize_str("A") == ("a" if lower else "A")
    assert made.encode(["the heap"]) == [[made.core.token_to_id(w) for w in ("the", "heap")]]


@pytest.mark.parametrize("arguments", [
    "", "--out x", "--tokenizer TOK", "--out x --tokenizer TOK --train-tokenizer 200",
    "--out x --odd", "--out x --tok TOK --corpus GOOD", "--out x --corpus",
    "--out x --train-tokenizer many --corpus GOOD", "--out x --train-tokenizer 99 --corpus GOOD",
    "--out x --train-tokenizer -5 --corpus GOOD", "--out x --train-tokenizer 200 --corpus BAD",
    "--out x --train-tokenizer 200 --corpus EMPTY",
    "--out GOOD --train-tokenizer 200 --corpus GOOD",
    "--out x --tokenizer TOK --corpus nowhere", "--out x --tokenizer TOK --corpus BAD",
    "--out x --tokenizer TOK --corpus JSONL", "--out x --tokenizer TOK --corpus EMPTY",
    "--out x --tokenizer nowhere --corpus GOOD", "--out x --tokenizer GOOD --corpus GOOD",
    "--out x --tokenizer . --corpus GOOD", "--out GOOD --tokenizer TOK --corpus GOOD",
    "--out . --tokenizer TOK --corpus GOOD", "--out GOOD/x --tokenizer TOK --corpus GOOD"])
def test_a_user_error_is_one_line_and_status_2(arguments, tokenizer, tmp_path, monkeypatch, capsys):
    names = {"TOK": tokenizer.path, "GOOD": put(tmp_path / "good.txt", make_documents(60)),
             "BAD": raw(tmp_path / "b.txt.gz", "no archive"), "EMPTY": raw(tmp_path / "e.txt", ""),
             "JSONL": raw(tmp_path / "a.jsonl", "{}")}
    for name, path in names.items():
        arguments = arguments.replace(name, path)
    monkeypatch.chdir(tmp_path)
    hub(monkeypatch, tmp_path, error=OSError("no net"))
    monkeypatch.setattr(data, "docs_on_this_machine", lambda: names["GOOD"])
    before = {name: os.stat(name).st_mtime_ns for name in os.listdir()}
    assert main(arguments.split()) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("data.py: error: ") and said.err.count("\n") == 1
    assert {name: os.stat(name).st_mtime_ns for name in os.listdir()} == before


def test_the_program_explains_itself_and_ends_with_the_status(tmp_path):
    program = [sys.executable, data.__file__]
    run = subprocess.run([*program, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0 and run.stderr == "" and "wiki.bin     # tokenise once" in run.stdout
    for flag in ("--corpus", "--tokenizer", "--train-tokenizer", "--lowercase", "--out"):
        assert flag in run.stdout
    run = subprocess.run([*program, "--odd"], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 2 and run.stdout == "" and run.stderr.count("\n") == 1


def test_the_module_loads_without_torch():
    code = "import sys, data; assert not {'torch', 'huggingface_hub'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=os.path.dirname(data.__file__))
