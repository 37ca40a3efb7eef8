"""data.py against naive loops, against transformers and tokenizers, and against hostile files."""
import bz2
import csv
import errno
import gzip
import hashlib
import importlib.metadata
import io
import json
import lzma
import math
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import time
import tracemalloc
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tqdm import tqdm

import data
from checkpoint import parsing, read_json
from command import run_command
from conftest import ROOT
from data import (MaskedBatches, SPECIAL_TOKENS, Tokenizer, TokenFile, corpus_files,
                  docs_on_this_machine, hash_file, is_prose, main, mask_tokens, open_corpus,
                  paragraphs, read_corpus, remove_markup, tokenise, train_tokenizer)

OPEN = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
WORDS = "the cat sat on a mat and saw no dog near its house by the old river in spring".split()


def make_documents(count, seed=0):
    """Make documents of one to four lines of a few words, no two the same."""
    rng = random.Random(seed)
    documents = []
    for i in range(count):
        lines = []
        for line in range(rng.randint(1, 4)):
            words = " ".join(rng.choices(WORDS, k=rng.randint(2, 7)))
            lines.append(f"{words} {i} {line}")
        documents.append(lines)
    return documents


def put(path, documents):
    """Write documents in the format that the file's name says; return the path as a string."""
    if ".jsonl" in path.name:
        rows = [{"text": "\n".join(lines), "id": 1} for lines in documents]
        text = "".join(json.dumps(row) + "\n" for row in rows)
    elif ".csv" in path.name:
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(["id", "text"])
        for lines in documents:
            writer.writerow([1, "\n".join(lines)])
        text = table.getvalue()
    else:
        text = "\n\n".join("\n".join(lines) for lines in documents) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = OPEN.get(path.suffix, open)
    with opener(path, "wb") as file:
        file.write(text.encode())
    return str(path)


def raw(path, content):
    """Write text or bytes as they are; return the path as a string."""
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    return str(path)


def naive_tokens(documents, tokenizer):
    """Return the lists of token numbers (to train on, held out), made one line at a time."""
    train = []
    valid = []
    for lines in documents:
        beginning = "".join(lines)[:10_000]
        held_out = zlib.crc32(beginning.encode()) % 50 == 0
        part = valid if held_out else train
        for line in lines:
            part.extend(tokenizer.backend.encode(line, add_special_tokens=False).ids)
        part.append(tokenizer.sep_id)
    return train, valid


def vocab_folder(path, words, config=None):
    path.mkdir(parents=True, exist_ok=True)
    raw(path / "vocab.txt", "\n".join(words) + "\n")
    if config is not None:
        raw(path / "tokenizer_config.json", json.dumps(config))
    return str(path)


def document_of(lines, held_out):
    """Return the lines of a document with one more line before them, by which the document is held
    out, or is not."""
    i = 0
    document = [f"start {i:03}"] + lines
    while (zlib.crc32("".join(document).encode()) % 50 == 0) != held_out:
        i += 1
        document = [f"start {i:03}"] + lines
    return document


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer([put(folder / "a.txt", make_documents(99))], 120, str(folder / "tok"))


@pytest.fixture(scope="module")
def token_file_once(tokenizer, tmp_path_factory):
    """Make a folder with a token file and its corpus, which nobody changes."""
    folder = tmp_path_factory.mktemp("token_file")
    corpus = [put(folder / "a.txt", make_documents(300))]
    tokenise(corpus, tokenizer, str(folder / "a.bin"))
    return folder


@pytest.fixture
def token_file(token_file_once, tmp_path):
    shutil.copytree(token_file_once, tmp_path, dirs_exist_ok=True)
    return TokenFile(str(tmp_path / "a.bin"))


# ---- Reading a corpus ----------------------------------------------------------------------------

def test_any_mix_of_files_and_folders_is_read_in_a_fixed_order(tmp_path):
    names = ["x/c.txt.xz", "x/a.txt", "x/a\n.txt", "x/b/z.jsonl.gz", "x/b/y.txt.bz2", "x/b/x.jsonl",
             "one.txt.gz", "x/d.jsonl.bz2", "x/e.jsonl.xz", "x/notes.md", "x/f.csv.gz"]
    documents = make_documents(len(names) * 3)
    parts = {name: documents[i * 3:i * 3 + 3] for i, name in enumerate(names)}
    for name in names:
        put(tmp_path / name, parts[name])
    order = ["one.txt.gz", "x/a\n.txt", "x/a.txt", "x/b/x.jsonl", "x/b/y.txt.bz2", "x/b/z.jsonl.gz",
             "x/c.txt.xz", "x/d.jsonl.bz2", "x/e.jsonl.xz", "x/f.csv.gz"]
    corpus = [str(tmp_path / "one.txt.gz"), str(tmp_path / "x")]
    assert corpus_files(corpus) == [str(tmp_path / name) for name in order]
    found = "\n".join(read_corpus(corpus_files(corpus))).split("\n\n")
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
    list(read_corpus(corpus_files([str(tmp_path)])))
    assert bars[0].n == bars[0].total == sum(os.path.getsize(tmp_path / name) for name in names)


def test_bad_bytes_are_replaced_and_counted_exactly(tmp_path, capsys):
    bad = b"one \xff\xfe two\nthree \xc3( four \xed\xa0\x80 five\nsix\x00seven\n"
    bad += "é 中 \ufffd 🙂\n".encode()
    lines = list(read_corpus([raw(tmp_path / "a.txt", bad)]))
    assert lines == ["one \ufffd\ufffd two", "three \ufffd( four \ufffd\ufffd\ufffd five",
                     "six\ufffdseven", "é 中 \ufffd 🙂", ""]
    message = capsys.readouterr().err.strip()
    assert "\n" not in message and "a.txt" in message and " 7 " in message


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_a_corpus_in_another_encoding_is_refused(encoding, tmp_path):
    text = "schöne Grüße aus Köln\n" * 200
    path = raw(tmp_path / "a.txt", text.encode(encoding))
    message = f"^{path}: not UTF-8: of [0-9,]+ characters [0-9,]+ are "
    if encoding in ("utf-16", "utf-32"):                 # these begin with a mark
        message = f"^{path}: not UTF-8, but UTF-16 or UTF-32; iconv "
    with pytest.raises(ValueError, match=message):
        list(read_corpus([path]))


@pytest.mark.parametrize("name, content", [("a.jsonl", '{"text": "one"}\n'),
                                           ("a.csv", "text\na\n")])
def test_a_table_in_utf_16_is_refused_for_its_encoding(tmp_path, name, content):
    path = raw(tmp_path / name, content.encode("utf-16"))
    with pytest.raises(ValueError, match=f"^{path}: not UTF-8, but UTF-16 or UTF-32; iconv "):
        list(read_corpus([path]))


def test_many_small_files_in_another_encoding_are_refused_together(tmp_path, capsys):
    """Each has only three bytes that are not UTF-8, which alone would be taken for damage."""
    for number in range(20):
        raw(tmp_path / f"{number:02}.txt", f"grüne Grüße {number}\n".encode("latin-1"))
    message = f"^{tmp_path}/19.txt and the files before it: not UTF-8: of [0-9]+ characters 60 "
    with pytest.raises(ValueError, match=message):
        list(read_corpus(corpus_files([str(tmp_path)])))
    reports = capsys.readouterr().err.splitlines()
    assert reports == [f"{tmp_path}/{number:02}.txt: replaced 3 NULs or bytes that are not UTF-8"
                       for number in range(20)]


@pytest.mark.parametrize("name_of_clean_file", ["a.txt", "z.txt"])
def test_a_large_clean_file_makes_up_for_small_damaged_ones_in_any_order(
        name_of_clean_file, tmp_path, capsys):
    for name in ("k.txt", "l.txt"):
        raw(tmp_path / name, b"damaged \xff\xff\xff\xff\xff\xff\n")
    raw(tmp_path / name_of_clean_file, "a clean line\n" * 2000)
    assert len(list(read_corpus(corpus_files([str(tmp_path)])))) == 2 + 2000 + 3


def test_a_large_corpus_in_another_encoding_is_refused_before_all_of_it_is_read(tmp_path, capsys):
    """Ten bytes that are not UTF-8 are taken for damage in each file. Over 111 of these files have
    a million characters."""
    for number in range(120):
        raw(tmp_path / f"{number:03}.txt", b"x" * 8999 + b"\n" + b"\xff" * 10 + b"\n")
    message = f"^{tmp_path}/110.txt and the files before it: not UTF-8"
    with pytest.raises(ValueError, match=message):
        list(read_corpus(corpus_files([str(tmp_path)])))


@pytest.mark.parametrize("num_clean, is_refused", [(10_978, True), (10_989, False)])
def test_one_bad_byte_in_a_thousand_is_damage_and_more_are_another_encoding(
        num_clean, is_refused, tmp_path, capsys):
    bad = b"x" * (num_clean - 1) + b"\n" + b"\xff" * 11           # with its 11 bad bytes
    path = raw(tmp_path / "a.txt", bad)
    if is_refused:
        with pytest.raises(ValueError, match=f"not UTF-8: of {num_clean + 11:,} characters 11 "):
            list(read_corpus([path]))
    else:
        list(read_corpus([path]))
        assert "replaced 11 NULs" in capsys.readouterr().err


def test_nuls_at_the_end_and_escapes_are_not_another_encoding(tmp_path, capsys):
    text = raw(tmp_path / "a.txt", "plain text\n" * 200 + "\0" * 512)
    row = json.dumps({"text": "ab" * 40}).replace("ab", "a\\u0000", 9).replace("ab", "\\ud83d", 9)
    rows = raw(tmp_path / "b.jsonl", f"{row}\n" * 20)
    list(read_corpus([text, rows]))
    assert capsys.readouterr().err == f"{text}: replaced 512 NULs or bytes that are not UTF-8\n"


def test_a_large_file_in_another_encoding_is_not_read_to_its_end(tmp_path):
    line = ("x" * 99_999 + "\n").encode("utf-16-le")
    path = raw(tmp_path / "a.txt", line * 40)
    with pytest.raises(ValueError, match="not UTF-8: of [1-3],") as caught:
        list(read_corpus([path]))
    assert "of 8," not in str(caught.value)


def test_a_large_file_is_judged_where_a_million_characters_were_read(tmp_path):
    """All of its bad bytes stand at the beginning. At the end their share would be small enough."""
    bad = b"\xff" * 1500 + b"\n"
    path = raw(tmp_path / "a.txt", bad + (b"x" * 9999 + b"\n") * 200)
    with pytest.raises(ValueError, match="not UTF-8: of 1,00.,... characters 1,500 are bytes"):
        list(read_corpus([path]))


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
             '{"other": {"text": 1}, "text": "e\tf"}', r'{"text": "g\rh"}']
    found = list(read_corpus([raw(tmp_path / "a.jsonl", "\ufeff" + "\n".join(lines))]))
    assert [line for line in found if line] == ["a\ufffdb \ufffd c 🙂", "d", "e\tf", "g", "h"]
    assert found[2] == "" and found[-1] == ""


@pytest.mark.parametrize("line", [
    "no json", "[1, 2]", "3", "null", '"text"', '{"title": "x"}', '{"text": 3}',
    '{"text": ["x"]}', '{"text": {}}', '{"text": "x"', "[" * 100_000,
    '{"text": "x"} {"text": "y"}'])
def test_a_line_of_jsonl_that_is_no_document_is_named(line, tmp_path):
    file = raw(tmp_path / "a.jsonl", '{"text": "good"}\n\n' + line + '\n{"text": "good"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:3: "):
        list(read_corpus([file]))


@pytest.mark.parametrize("line, message", [
    ("[1, 2]", "it is a list"),
    ('{"title": "x", "id": 1}',
     "it has no 'text' among its fields 'title', 'id'; --text names the field"),
    ('{"text": 3}', "'text' is 3, which is no text"),
    ('{"text": x}', "Expecting value, at character 10"),
    ('  {"text": "x"', "Expecting ',' delimiter, at character 15")])
def test_it_is_said_what_a_line_of_jsonl_is_instead_of_a_document(line, message, tmp_path):
    expected = rf"a\.jsonl:1: not a JSON object with a text 'text': {message}$"
    with pytest.raises(ValueError, match=expected):
        list(read_corpus([raw(tmp_path / "a.jsonl", line)]))


def test_a_line_of_jsonl_that_is_too_long_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LONGEST_ROW", 100)
    fits = json.dumps({"text": "x" * 85})
    too_long = json.dumps({"text": "y" * 99})
    assert "x" * 85 in list(read_corpus([raw(tmp_path / "a.jsonl", fits)]))
    with pytest.raises(ValueError, match=r"a\.jsonl: .*: line 2 has more than 100 char"):
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
    damaged = bytearray(whole)
    if damage == "cut":
        damaged = damaged[:middle]
    elif damage == "other":
        damaged = b"no archive at all"
    elif damage == "flipped":
        damaged[middle] ^= 255
    else:
        damaged[middle:middle + 99] = b"\xff" * 99
    raw(path, damaged)
    with pytest.raises(ValueError, match=path.name):
        tokenise([str(path)], tokenizer, str(tmp_path / "out.bin"))
    with pytest.raises(ValueError, match=path.name):
        train_tokenizer([str(path)], 120, str(tmp_path / "tok"))
    assert os.listdir(tmp_path) == [path.name]


def test_a_document_of_jsonl_or_csv_longer_than_a_chunk_comes_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 10)
    documents = [["a" * 35, "b" * 10, "c" * 11], ["d"]]
    for name in ("a.jsonl", "a.csv"):
        assert list(read_corpus([put(tmp_path / name, documents)])) == [
            "a" * 10, "a" * 10, "a" * 10, "a" * 5, "b" * 10, "c" * 10, "c", "", "d", "", ""], name


def test_a_line_of_exactly_a_chunk_does_not_end_its_document(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 10)
    path = raw(tmp_path / "a.txt", "a" * 10 + "\n" + "b" * 20 + "\nc\n\n" + "d" * 10 + "\n\ne")
    assert list(read_corpus([path])) == [
        "a" * 10, "b" * 10, "b" * 10, "c", "", "d" * 10, "", "e", ""]


def test_white_space_after_a_long_line_does_not_end_its_document(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 10)
    text = "a" * 10 + "  \nb"
    assert list(read_corpus([raw(tmp_path / "a.txt", text + "\n \nc\n")])) == [
        "a" * 10, "b", "", "c", ""]
    path = raw(tmp_path / "a.jsonl", json.dumps({"text": text}))
    assert list(read_corpus([path])) == ["a" * 10, "b", "", ""]


def test_a_line_of_csv_that_is_too_long_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LONGEST_ROW", 1000)
    fits = "a" * 997 + ",b\n"
    assert list(read_corpus([raw(tmp_path / "a.csv", "text,id\n" + fits)])) == ["a" * 997, "", ""]
    # csv would take what is over the limit for a row of its own.
    too_long = "a" * 997 + ",b" * 3 + "\n"
    for text in ("text,id\n" + too_long, "text\n" + "a" * 5000 + "\n"):
        with pytest.raises(ValueError, match="a.csv: .*: line 2 has more than 1000 char"):
            list(read_corpus([raw(tmp_path / "a.csv", text)]))
    field_over_two_lines = 'text\n"' + "a" * 600 + "\n" + "a" * 600 + '"\n'
    with pytest.raises(ValueError, match="a.csv:3: .*limit"):
        list(read_corpus([raw(tmp_path / "a.csv", field_over_two_lines)]))


@pytest.mark.parametrize("name, text", [
    ("a.jsonl", '{"text": "no", "body": "one\\ntwo"}\n\n{"body": "three, four"}\n'),
    ("a.csv", '\ufefftext,body\r\nno,"one\ntwo"\r\n\r\nno,"three, four"\r\n')])
def test_the_column_of_the_text_can_be_chosen(name, text, tmp_path, tokenizer):
    corpus = [raw(tmp_path / name, text)]
    lines = list(read_corpus(corpus_files(corpus), "body"))
    assert [line for line in lines if line] == ["one", "two", "three, four"]
    assert lines[2] == lines[4] == ""
    folder = str(tmp_path / "tok")
    assert "w" in train_tokenizer(corpus, 100, folder, text_column="body").backend.get_vocab()
    made = open_corpus(corpus, tokenizer, str(tmp_path), text_column="body")
    assert made.made_from["text"] == "body"
    train, valid = naive_tokens([["one", "two"], ["three, four"]], tokenizer)
    assert sorted(made.train_tokens.tolist() + made.valid_tokens.tolist()) == sorted(train + valid)


@pytest.mark.parametrize("text, message", [
    ("id,body\n1,x\n", ": 0 of its columns have the name 'text', not one, in .'id', 'body'.; "),
    ("id;text\n1;x\n", "--text names the column, and commas separate the columns$"),
    ("", ": 0 of its columns have the name 'text'"), ("\n\n", ": 0 of its columns have the name"),
    ("text,text\nx,y\n", ": 2 of its columns have the name 'text'"),
    ("id,text\n1,x\n2,y,z\n", ":3: 3 columns, not 2; a text with a comma in it needs quotes$"),
    ("id,text\n1,x\n2\n", ":3: 1 columns, not 2$"),
    ('id,text\n1,a\n2,"x\ny\n', ":4: unexpected end.*; the row begins in line 3$"),
    ('id,text\n1,"x"y\n', ":2: .* expected.*; the row begins in line 2, and commas must ")])
def test_a_csv_that_will_not_do_is_named(text, message, tmp_path):
    with pytest.raises(ValueError, match=rf"a\.csv.*{message}"):
        list(read_corpus([raw(tmp_path / "a.csv", text)]))


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("between", [b"", bytes(4), bytes(70_000)])
def test_a_file_of_several_compressed_streams_is_read_to_its_end(packed, between, tmp_path):
    texts = [b"one\ntw", b"", b"o\n" + b"three " * 30_000 + b"\n", b"\nfour"]
    content = between.join(PACK[packed](text) for text in texts)
    if packed == ".xz":
        content += between
    lines = list(read_corpus([raw(tmp_path / f"a.txt{packed}", content)]))
    assert lines == ["one", "two", ("three " * 30_000).strip(), "", "four", ""]


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("damage", ["overwritten", "cut", "cut at once", "other"])
def test_damage_after_the_first_stream_is_an_error(packed, damage, tmp_path):
    first = PACK[packed](b"one\n" * 10)
    second = PACK[packed](random.Random(0).randbytes(2000))
    broken = {"overwritten": second[:1000] + b"x" * 99 + second[1099:], "cut": second[:-1],
              "cut at once": second[:3], "other": b"this is no stream"}[damage]
    corpus = [raw(tmp_path / f"a.txt{packed}", first + broken)]
    with pytest.raises(ValueError, match=f"a.txt{packed}: not a whole, undamaged file"):
        list(read_corpus(corpus_files(corpus)))


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz"])
def test_an_empty_packed_file_is_damaged(packed, tmp_path):
    raw(tmp_path / f"a.txt{packed}", b"")
    raw(tmp_path / "b.txt", b"text\n")
    with pytest.raises(ValueError, match=f"a.txt{packed}: not a whole, undamaged file"):
        list(read_corpus(corpus_files([str(tmp_path)])))


def test_a_name_of_a_column_must_be_utf_8(tokenizer, tmp_path):
    corpus = [raw(tmp_path / "a.csv", b"caf\xe9\nb\n")]
    with pytest.raises(ValueError, match=r"^'caf.udce9': not a name in UTF-8"):
        tokenise(corpus, tokenizer, str(tmp_path / "a.bin"), "caf\udce9")
    assert os.listdir(tmp_path) == ["a.csv"]


def test_a_link_to_a_module_that_is_not_there_is_left_out(tmp_path):
    raw(tmp_path / "a.py", b'"""Text."""\n')
    os.symlink(tmp_path / "none.py", tmp_path / "b.py")
    assert data.docstrings("p", str(tmp_path)) == [("p.a", "Text.")]


def test_what_is_skipped_in_a_folder_is_counted_once(tokenizer, tmp_path, capsys):
    put(tmp_path / "c" / "a.txt", make_documents(200))
    raw(tmp_path / "c" / "notes.md", "text")
    (tmp_path / "c" / "sub").mkdir()
    os.mkfifo(tmp_path / "c" / "sub" / "pipe.txt")       # nobody writes into it
    os.symlink("/dev/zero", tmp_path / "c" / "sub" / "zero.txt")
    os.symlink(tmp_path, tmp_path / "c" / "linked")      # a loop; it is not entered
    corpus = [str(tmp_path / "c")]
    assert corpus_files(corpus) == [str(tmp_path / "c" / "a.txt")]
    message = f"{tmp_path}/c: skipped files and folders: 4; they are not .txt, .jsonl or "
    assert message in capsys.readouterr().err
    tokenise(corpus, tokenizer, str(tmp_path / "a.bin"))
    assert capsys.readouterr().err.count("skipped files and") == 1


def test_hidden_files_and_folders_in_a_folder_are_skipped(tmp_path, capsys):
    folder = tmp_path / ".corpus"                        # it is named by the user
    for name in ("a.txt", ".b.txt", ".ipynb_checkpoints/a-checkpoint.txt", "sub/.git/c.txt"):
        put(folder / name, make_documents(1))
    assert corpus_files([str(folder)]) == [str(folder / "a.txt")]
    assert "skipped files and folders: 3; " in capsys.readouterr().err
    assert corpus_files([str(folder / ".b.txt")]) == [str(folder / ".b.txt")]


def test_the_case_of_an_ending_does_not_matter(tmp_path):
    raw(tmp_path / "A.TXT", "one\n")
    raw(tmp_path / "B.Csv.GZ", gzip.compress(b"body\ntwo\n"))
    lines = list(read_corpus(corpus_files([str(tmp_path)]), "body"))
    assert [line for line in lines if line] == ["one", "two"]


@pytest.mark.parametrize("packed", PACK)
def test_a_compressed_file_without_its_ending_is_told(packed, tmp_path):
    path = raw(tmp_path / "a.txt", PACK[packed](b"one\n"))
    with pytest.raises(ValueError, match=f"^{path}: it is compressed; its name must end in .gz, "):
        list(read_corpus([path]))


def test_documents_without_a_text_are_skipped(tmp_path):
    rows = ['{"text": "one"}', '{"text": null}', '{"text": " "}', "", '{"text": "two"}']
    paths = [raw(tmp_path / "a.jsonl", "\n".join(rows)),
             raw(tmp_path / "b.csv", "id,text\n1,three\n2,\n3,four\n"),
             raw(tmp_path / "c.txt", "five\n\n\n\nsix\n"),
             raw(tmp_path / "d.jsonl", '{"text": "seven"}')]
    found = [line for line in read_corpus(paths) if line]
    assert found == ["one", "two", "three", "four", "five", "six", "seven"]


def test_the_name_of_a_file_cannot_write_to_the_terminal(tmp_path, capsys):
    folder = tmp_path / "corpus"
    folder.mkdir()
    raw(folder / "\x1b[31mred\nname.txt", "one\0two\n")
    raw(folder / "x.pdf", "")
    assert [line for line in read_corpus(corpus_files([str(folder)])) if line] == ["one\ufffdtwo"]
    error = capsys.readouterr().err
    assert "\x1b" not in error and error.count("\n") == 2
    assert r"\x1b[31mred\nname.txt: replaced 1 NULs" in error


@pytest.mark.parametrize("begin, end, pad_id, is_refused", [
    (0, 8000, 0, True), (0, 2048, 0, True), (5952, 8000, 0, True), (3000, 6000, 0, True),
    (4000, 5000, 0, False), (0, 8000, 1, False)])
def test_zeros_in_place_of_tokens_are_noticed(begin, end, pad_id, is_refused, tmp_path):
    """A thousand are too few to be a hole. If 0 is not [PAD], they may be text."""
    tokens = np.ones(9000, np.uint16)
    tokens[begin:end] = 0
    tokens.tofile(tmp_path / "t.bin")
    facts = {"dtype": "uint16", "train": 8000, "valid": 1000, "digest": "0", "made_from": {}}
    (tmp_path / "t.bin.json").write_text(json.dumps(facts))
    made_with = types.SimpleNamespace(pad_id=pad_id, digest="", path="")
    if is_refused:
        with pytest.raises(ValueError, match="t.bin: from token .* there are zeros in place"):
            open_corpus(str(tmp_path / "t.bin"), made_with)
    else:
        assert len(open_corpus(str(tmp_path / "t.bin"), made_with).train_tokens) == 8000


def test_a_pipe_alone_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(ValueError, match="pipe.txt: not a regular file whose name ends in"):
        corpus_files([str(tmp_path / "pipe.txt")])


def test_a_subfolder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    put(tmp_path / "a.txt", make_documents(1))
    put(tmp_path / "locked" / "b.txt", make_documents(1))
    scandir = os.scandir

    def scandir_of_a_user(path):                         # root may read what has the mode 000
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir_of_a_user)
    with pytest.raises(PermissionError, match="locked"):
        corpus_files([str(tmp_path)])


def test_a_file_that_is_named_twice_is_refused(tmp_path):
    path = put(tmp_path / "c" / "a.txt", make_documents(3))
    with pytest.raises(ValueError, match="a.txt is named 2 times"):
        corpus_files([str(tmp_path / "c"), path])
    os.symlink(path, tmp_path / "b.txt")                 # another name is another file
    assert corpus_files([str(tmp_path / "b.txt"), path]) == [str(tmp_path / "b.txt"), path]


def test_a_corpus_whose_name_is_not_utf8_is_refused_before_it_is_read(tokenizer, tmp_path):
    folder = os.path.join(str(tmp_path), os.fsdecode(b"c\xff"))
    os.mkdir(folder)
    shutil.copy(put(tmp_path / "a.txt", make_documents(200)), os.path.join(folder, "a.txt"))
    with pytest.raises(ValueError, match="not a name in UTF-8"):
        tokenise([folder], tokenizer, str(tmp_path / "a.bin"))
    assert not (tmp_path / "a.bin").exists()


def test_white_space_at_the_beginning_of_a_long_line_ends_no_document(monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 3)
    text = io.StringIO("a\n     b\n\n   \nc\n  \n")
    assert list(data.lines_of_text("c.txt", text)) == ["a\n", "  b", "\n", "c\n", "  \n"]


def test_a_vocabulary_is_not_learned_for_a_name_of_a_file(tmp_path):
    path = put(tmp_path / "a.txt", make_documents(3))
    with pytest.raises(ValueError, match="a.txt: this is not a folder"):
        train_tokenizer([path], 200, path)
    with pytest.raises(ValueError, match="^--out is empty"):
        train_tokenizer([path], 200, "")


def test_a_row_of_a_csv_may_end_after_its_text(tmp_path):
    path = raw(tmp_path / "a.csv", "text,id\nx,1\ny\n")
    assert [line for line in read_corpus([path]) if line] == ["x", "y"]


def test_a_csv_may_begin_with_empty_lines(tmp_path):
    path = raw(tmp_path / "a.csv", "\n\r\nid,text\n1,x\n\n2,y\n")
    assert [line for line in read_corpus([path]) if line] == ["x", "y"]


def test_a_path_that_does_not_exist_is_said_to(tmp_path):
    with pytest.raises(ValueError, match="^.*/none.txt does not exist$"):
        corpus_files([str(tmp_path / "none.txt")])


# ---- Token files ---------------------------------------------------------------------------------

@pytest.mark.parametrize("chunk", [1, 300, 1 << 20])
def test_the_token_file_is_what_a_naive_loop_makes(chunk, tokenizer, tmp_path, monkeypatch):
    documents = make_documents(400) + [["\x7f\x7f only what is dropped", "\x7f"]]
    put(tmp_path / "c" / "a.txt.gz", documents[:150])
    put(tmp_path / "c" / "b.jsonl", documents[150:])
    chunks_of_lines = data.chunks_of_lines
    chunks = []

    def smaller_chunks_of_lines(lines):
        lines = list(lines)     # They are read before CHUNK changes: it would cut them as well.
        with monkeypatch.context() as patch:
            patch.setattr(data, "CHUNK", chunk)
            chunks.extend(chunks_of_lines(lines))
        return chunks

    monkeypatch.setattr(data, "chunks_of_lines", smaller_chunks_of_lines)
    made = tokenise([str(tmp_path / "c")], tokenizer, str(tmp_path / "a.bin"))
    train, valid = naive_tokens(documents, tokenizer)
    assert len(valid) > 20
    assert made.train_tokens.tolist() == train
    assert made.valid_tokens.tolist() == valid
    assert made.train_tokens.dtype == made.valid_tokens.dtype == np.uint16
    assert (len(chunks) > 100) == (chunk == 1)
    assert (len(chunks) == 1) == (chunk == 1 << 20)
    assert os.path.getsize(made.path) == 2 * (len(train) + len(valid))


@pytest.mark.parametrize("size, dtype", [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_large_vocabularies_get_wider_numbers(size, dtype, tmp_path):
    words = SPECIAL_TOKENS + [f"w{i}" for i in range(size - len(SPECIAL_TOKENS))]
    wide = Tokenizer(vocab_folder(tmp_path / "tok", words))
    assert wide.vocab_size == size
    corpus = [raw(tmp_path / "a.txt", f"{words[-1]} w0 {words[-1]}\n" * 30)]
    made = tokenise(corpus, wide, str(tmp_path / "a.bin"))
    assert made.train_tokens.dtype == made.valid_tokens.dtype == dtype
    assert made.train_tokens[:3].tolist() == [size - 1, 5, size - 1]
    assert TokenFile(made.path).valid_tokens.tolist() == made.valid_tokens.tolist()


def test_a_token_file_is_made_once_and_made_anew_when_it_is_stale(
        tokenizer, tmp_path, monkeypatch, capsys):
    source, other = tmp_path / "c" / "a.txt", tmp_path / "c" / "b.txt"
    documents = make_documents(60)
    put(source, documents)
    out = str(tmp_path / "sub" / "a.bin")

    def made_anew(tokenizer=tokenizer):
        inode_before = None
        if os.path.exists(out):
            inode_before = os.stat(out).st_ino
        made = tokenise([str(tmp_path / "c")], tokenizer, out)
        assert TokenFile(out).made_from == made.made_from
        is_new = os.stat(out).st_ino != inode_before
        is_replaced = is_new and inode_before is not None
        assert ("it is made anew" in capsys.readouterr().err) == is_replaced
        return is_new

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
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = SPECIAL_TOKENS + letters + ["##" + letter for letter in letters]
    other_tokenizer = Tokenizer(vocab_folder(tmp_path / "tok", words))
    assert made_anew(other_tokenizer) and not made_anew(other_tokenizer)
    monkeypatch.setattr(data, "HOLD_OUT_ONE_IN", 10)
    assert made_anew(other_tokenizer) and not made_anew(other_tokenizer)
    assert sorted(os.listdir(tmp_path / "sub")) == ["a.bin", "a.bin.json"]


def test_what_is_held_out_does_not_depend_on_the_order_of_the_documents(tokenizer, tmp_path):
    documents = make_documents(3000)

    def held_out(name, documents):
        put(tmp_path / name / "1.txt", documents[:999])
        put(tmp_path / name / "2.jsonl", documents[999:])
        made = tokenise([str(tmp_path / name)], tokenizer, str(tmp_path / f"{name}.bin"))
        ends = np.flatnonzero(made.valid_tokens == tokenizer.sep_id) + 1
        parts = np.split(made.valid_tokens, ends)
        assert len(parts[-1]) == 0
        return sorted(part.tolist() for part in parts[:-1])

    first = held_out("first", documents)
    assert first == held_out("second", documents[::-1])
    assert 35 <= len(first) <= 90                            # 60 are expected


def test_documents_that_begin_with_the_same_line_are_not_all_on_one_side(
        tokenizer, tmp_path, capsys):
    documents = []
    for i in range(1000):
        documents.append(["the cat", f"the dog {i}", "the river"])
    made = tokenise([put(tmp_path / "a.txt", documents)], tokenizer, str(tmp_path / "a.bin"))
    assert capsys.readouterr().err == ""                     # no "too few different documents"
    num_held_out = (made.valid_tokens == tokenizer.sep_id).sum()
    assert 8 <= num_held_out <= 40                           # 20 are expected


def test_of_a_long_document_only_the_beginning_decides(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DECIDING_CHARACTERS", 200)
    parts = []
    for last_word in ("red", "blue"):
        documents = make_documents(200)
        for document in documents:
            document += ["a line of the document"] * 10 + [last_word]
        made = tokenise([put(tmp_path / f"{last_word}.txt", documents)], tokenizer,
                        str(tmp_path / f"{last_word}.bin"))
        ends = np.flatnonzero(made.valid_tokens == tokenizer.sep_id) + 1
        parts.append([part[:9].tolist() for part in np.split(made.valid_tokens, ends)])
    assert parts[0] == parts[1]
    assert len(parts[0]) > 1


def test_each_line_of_a_long_document_comes_once_and_with_one_mark(monkeypatch):
    monkeypatch.setattr(data, "DECIDING_CHARACTERS", 20)
    lines = []
    for number in range(300):
        lines += [f"document {number}"] * (number % 5) + [""]
    expected = [line for i, line in enumerate(lines) if line != "" or (i > 0 and lines[i - 1])]
    marked = list(data.mark_held_out(lines))
    assert [line for line, _ in marked] == expected
    marks_of_documents = []
    for i, (line, held_out) in enumerate(marked):
        if line != "":
            assert marked[i + 1][1] == held_out              # the same up to its empty line
        else:
            marks_of_documents.append(held_out)
    assert 0 < sum(marks_of_documents) < 60                  # of 240 documents; 5 are expected


@pytest.mark.parametrize("drawn", [False, True])
def test_tokens_are_held_out_where_documents_are_too_few(drawn, tokenizer, tmp_path, capsys):
    documents = [document_of([" ".join(WORDS)] * 20, drawn)]
    made = tokenise([put(tmp_path / "a.txt", documents)], tokenizer, str(tmp_path / "a.bin"))
    train, valid = naive_tokens(documents, tokenizer)
    all_tokens = train + valid                               # one of the two is empty
    assert made.train_tokens.tolist() + made.valid_tokens.tolist() == all_tokens
    assert len(made.valid_tokens) == len(all_tokens) // 50 > 0
    assert f"last {len(made.valid_tokens)} tokens" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "\n\n \n", "\ufeff", "\0" * 9, "\0\n\n\0\0\n"])
def test_a_corpus_without_text_is_an_error_and_nothing_is_written(text, tokenizer, tmp_path):
    corpus = [raw(tmp_path / "a.txt", text)]
    with pytest.raises(ValueError, match="no text"):
        tokenise(corpus, tokenizer, str(tmp_path / "a.bin"))
    with pytest.raises(ValueError, match="no text"):
        train_tokenizer(corpus, 100, str(tmp_path / "tok"))
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("chunk", [5, 1 << 20])
@pytest.mark.parametrize("held_out", [False, True])
def test_a_corpus_of_which_most_words_are_unknown_is_an_error(
        held_out, chunk, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", chunk)
    # 158 characters are known: 50 words and the line before them.
    for name, num_unknown in (("half.txt", 150), ("most.txt", 170)):
        document = document_of(["the"] * 50 + ["中"] * num_unknown, held_out)
        corpus = [put(tmp_path / name, [document])]
        if num_unknown == 150:
            tokenise(corpus, tokenizer, str(tmp_path / "a.bin"))
        else:
            with pytest.raises(ValueError, match=r"most\.txt: 52% of the characters become"):
                tokenise(corpus, tokenizer, str(tmp_path / "b.bin"))
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.bin.json", "half.txt", "most.txt"]


def test_unknown_text_in_any_part_of_a_corpus_counts(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 100)              # a chunk has about so many characters
    monkeypatch.setattr(data, "SAMPLE", 40)              # of the first chunk; 10 of each other one
    corpus = [put(tmp_path / "a.txt", [["the"] * 30] + [["中"] * 100] * 2)]
    with pytest.raises(ValueError, match="become .UNK. with the tokenizer in"):
        tokenise(corpus, tokenizer, str(tmp_path / "a.bin"))


@pytest.mark.parametrize("num_long, is_refused", [(150, True), (40, False)])
def test_a_corpus_of_which_most_characters_are_unknown_is_an_error(
        num_long, is_refused, tokenizer, tmp_path):
    """A run of over 100 letters is one [UNK], so only a sixth of the tokens are [UNK]."""
    corpus = [put(tmp_path / "a.txt", [["the the the the the " + "t" * num_long]] * 500)]
    if is_refused:
        with pytest.raises(ValueError, match=r"a\.txt: 91% of the characters become \[UNK\]"):
            tokenise(corpus, tokenizer, str(tmp_path / "a.bin"))
        assert os.listdir(tmp_path) == ["a.txt"]
    else:
        tokenise(corpus, tokenizer, str(tmp_path / "a.bin"))


@pytest.mark.parametrize("num_unknown, is_warned", [(9, False), (11, True)])
def test_a_corpus_of_which_over_a_tenth_is_unknown_has_a_warning(
        num_unknown, is_warned, tokenizer, tmp_path, capsys):
    line = "cat " * 30 + "中" * num_unknown               # 90 characters that are known
    corpus = [put(tmp_path / "a.txt", [[line]] * 50)]
    tokenise(corpus, tokenizer, str(tmp_path / "a.bin"))
    error = capsys.readouterr().err
    assert ("a.txt: 11% of the characters become [UNK]" in error) is is_warned


def test_unknown_characters_are_counted_in_a_sample_of_the_lines(tokenizer):
    texts = ["the 中 cat", "the cat", "t" * 2000, ""]
    assert data.count_characters(texts, tokenizer) == (7 + 6 + 2000, 1 + 2000)
    assert data.count_characters([], tokenizer) == (0, 0)
    # The sample of 70 characters is ten lines of seven.
    assert data.count_characters(["the cat"] * 500, tokenizer, 70) == (10 * 6, 0)
    lines = ["the 中 cat", "the cat", ""] * 500           # not only those at certain places
    num_characters, num_unknown = data.count_characters(lines, tokenizer, 1000)
    assert 500 < num_characters < 1000
    assert 20 < num_unknown < 80


def test_a_token_file_may_be_named_by_a_path_of_pathlib(tmp_path, tokenizer):
    put(tmp_path / "one.txt", make_documents(200))
    token_file = tokenise(tmp_path / "one.txt", tokenizer, tmp_path / "a.bin")
    assert token_file.path == str(tmp_path / "a.bin")


def test_tokens_of_another_corpus_are_replaced_only_with_overwrite(tmp_path, tokenizer, capsys):
    one = put(tmp_path / "one.txt", make_documents(200))
    two = put(tmp_path / "two.txt", make_documents(200, seed=1))
    out = str(tmp_path / "a.bin")
    flags = ["--tokenizer", tokenizer.path, "--out", out, "--corpus"]
    assert main(flags + [one]) is None
    assert main(flags + [one]) is None                   # the same corpus again
    before = Path(out).read_bytes()
    assert main(flags + [two]) == 2
    error = capsys.readouterr().err
    assert f"error: {out} was made from other files" in error
    assert "choose another --out, or say --overwrite" in error
    assert Path(out).read_bytes() == before
    assert main(flags + [two, "--overwrite"]) is None
    assert TokenFile(out).made_from["corpus"][0][0] == two
    assert main(["--corpus", one, "--train-tokenizer", "100", "--out", str(tmp_path / "v"),
                 "--overwrite"]) == 2


def test_of_a_few_words_at_least_one_token_is_held_out(tokenizer, tmp_path, capsys):
    made = tokenise([put(tmp_path / "a.txt", [["the the"]])], tokenizer, str(tmp_path / "a.bin"))
    assert "the last 1 tokens are held out instead" in capsys.readouterr().err
    assert len(made.train_tokens) == 2
    assert list(made.valid_tokens) == [tokenizer.sep_id]


def test_a_token_file_may_be_in_the_working_directory(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "a.txt", make_documents(200))
    made = tokenise(["a.txt"], tokenizer, "a.bin")
    assert sorted(os.listdir()) == ["a.bin", "a.bin.json", "a.txt"]
    before = os.stat("a.bin")
    absolute = tokenise([str(tmp_path / "a.txt")], tokenizer, str(tmp_path / "a.bin"))
    assert os.stat("a.bin") == before
    assert absolute.valid_tokens.tolist() == made.valid_tokens.tolist()


def test_reading_a_token_file_cannot_change_it(token_file):
    assert isinstance(token_file.train_tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        token_file.train_tokens[0] = 1


def test_old_tokens_never_stand_beside_a_new_description(
        token_file, tokenizer, tmp_path, monkeypatch):
    def full_disk(path, value, shared):
        raise OSError("the disk is full")

    monkeypatch.setattr(data, "write_json", full_disk)
    with pytest.raises(OSError, match="full"):
        tokenise([put(tmp_path / "b.txt", make_documents(300))], tokenizer, token_file.path)
    assert not os.path.exists(token_file.path)
    monkeypatch.undo()
    made = tokenise([str(tmp_path / "b.txt")], tokenizer, token_file.path)
    assert made.train_tokens.tolist() == naive_tokens(make_documents(300), tokenizer)[0]


def test_old_tokens_may_be_removed_by_another_process_first(
        token_file, tokenizer, tmp_path, monkeypatch):
    removed = []

    def remove_twice(path):
        remove(path)                                         # as the other process does
        if path == token_file.path:
            removed.append(path)
            remove(path)                                     # there is no such file now

    remove = os.remove
    monkeypatch.setattr(os, "remove", remove_twice)
    made = tokenise([put(tmp_path / "b.txt", make_documents(300))], tokenizer, token_file.path)
    assert removed == [token_file.path]
    assert made.train_tokens.tolist() == naive_tokens(make_documents(300), tokenizer)[0]


def test_the_same_tokens_of_another_process_are_not_removed(tokenizer, tmp_path, monkeypatch):
    corpus = [put(tmp_path / "a.txt", make_documents(300))]
    out = str(tmp_path / "a.bin")

    def write_while_another_process_finishes(path, value, shared):
        # The other process has made its file while this one was tokenising. Now it opens it.
        assert len(TokenFile(out).train_tokens) > 0
        write_json(path, value, shared=shared)

    def hash_while_another_process_finishes(path):
        monkeypatch.setattr(data, "hash_file", hash_file)
        tokenise(corpus, tokenizer, out)
        monkeypatch.setattr(data, "write_json", write_while_another_process_finishes)
        return hash_file(path)

    hash_file = data.hash_file
    write_json = data.write_json
    monkeypatch.setattr(data, "hash_file", hash_while_another_process_finishes)
    made = tokenise(corpus, tokenizer, out)
    assert data.write_json is write_while_another_process_finishes
    assert made.train_tokens.tolist() == naive_tokens(make_documents(300), tokenizer)[0]


def test_half_characters_in_escapes_do_not_count_as_another_encoding(tmp_path, capsys):
    """The second half of an emoji that a program has cut off is such an escape."""
    rows = [json.dumps({"text": "cut \udc80 off \0"})] * 50
    path = raw(tmp_path / "a.jsonl", "\n".join(rows))
    lines = [line for line in read_corpus([path]) if line]
    assert lines == ["cut \ufffd off \ufffd"] * 50
    assert capsys.readouterr().err == ""


def test_bytes_and_escapes_of_one_row_are_all_counted(tmp_path, capsys):
    path = raw(tmp_path / "a.jsonl", b'{"text": "a \xff and \\ud800 and \\ud83d"}\n')
    assert list(read_corpus([path]))[0] == "a \ufffd and \ufffd and \ufffd"
    assert "replaced 3 NULs or bytes" in capsys.readouterr().err


def test_bytes_of_another_encoding_beside_the_text_of_a_jsonl_do_no_harm(tmp_path):
    row = '{"text": "all of this can be read", "author": "Andr\xe9"}\n'
    path = raw(tmp_path / "a.jsonl", (row * 50).encode("latin-1"))
    lines = [line for line in read_corpus([path]) if line]
    assert lines == ["all of this can be read"] * 50


def test_two_processes_may_make_the_same_token_file_at_once(tokenizer, tmp_path, monkeypatch):
    corpus = [put(tmp_path / "a.txt", make_documents(200))]
    out = str(tmp_path / "a.bin")
    write_tokens = data.write_tokens

    def write_tokens_while_another_process_does(*arguments):
        monkeypatch.setattr(data, "write_tokens", write_tokens)
        tokenise(corpus, tokenizer, out)
        return write_tokens(*arguments)

    monkeypatch.setattr(data, "write_tokens", write_tokens_while_another_process_does)
    made = tokenise(corpus, tokenizer, out)
    assert made.train_tokens.tolist() == naive_tokens(make_documents(200), tokenizer)[0]
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.bin.json", "a.txt"]


def test_tokens_of_two_processes_with_different_corpora_are_not_mixed(
        tokenizer, tmp_path, monkeypatch):
    """Another process writes other tokens after this one has written its description."""
    path = tmp_path / "a.txt"
    put(path, make_documents(200))
    out = str(tmp_path / "a.bin")
    write_json = data.write_json

    def pause_afterwards(*arguments, **options):
        write_json(*arguments, **options)
        monkeypatch.undo()
        put(path, make_documents(200)[::-1])                 # as many bytes as before
        tokenise([str(path)], tokenizer, out)

    monkeypatch.setattr(data, "write_json", pause_afterwards)
    with pytest.raises(ValueError, match="a.bin: another process has written other tokens"):
        tokenise([str(path)], tokenizer, out)
    made = tokenise([str(path)], tokenizer, out)
    assert made.train_tokens.tolist() == naive_tokens(make_documents(200)[::-1], tokenizer)[0]


def test_a_name_that_is_no_file_or_has_another_files_json_is_refused(tokenizer, tmp_path):
    corpus = [put(tmp_path / "a.txt", make_documents(200))]
    with pytest.raises(ValueError, match="/new/': the name of a token file must end in .bin"):
        tokenise(corpus, tokenizer, str(tmp_path / "new") + "/")
    with pytest.raises(ValueError, match="/new': the name of a token file must end in .bin"):
        tokenise(corpus, tokenizer, str(tmp_path / "new"))
    out = str(tmp_path / "table.bin")
    raw(tmp_path / "table.bin.json", '{"rows": []}')
    with pytest.raises(ValueError, match=r"table\.bin\.json exists and is not"):
        tokenise(corpus, tokenizer, out)
    assert (tmp_path / "table.bin.json").read_text() == '{"rows": []}'
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "table.bin.json"]
    raw(tmp_path / "table.bin.json", '{"made_from": {}}')        # what a kill may leave behind
    assert len(tokenise(corpus, tokenizer, out).train_tokens) > 0


def test_a_corpus_is_tokenised_once_for_each_tokenizer(tokenizer, tmp_path):
    cache = str(tmp_path / "cache")
    documents = make_documents(200)
    corpus = [put(tmp_path / "a.txt", documents), put(tmp_path / "b.txt", documents[:9])]
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789")
    words = SPECIAL_TOKENS + letters + ["##" + letter for letter in letters]
    other = Tokenizer(vocab_folder(tmp_path / "tok", words))
    first = open_corpus(corpus, tokenizer, cache)
    before = os.stat(first.path)
    second = open_corpus(corpus, other, cache)
    part = open_corpus(corpus[:1], tokenizer, cache)
    assert len({first.path, second.path, part.path}) == 3
    assert len(os.listdir(cache)) == 6
    assert open_corpus(corpus, tokenizer, cache).path == first.path
    assert os.stat(first.path) == before
    for made, made_by, all_documents in ((first, tokenizer, documents + documents[:9]),
                                         (second, other, documents + documents[:9]),
                                         (part, tokenizer, documents)):
        train, valid = naive_tokens(all_documents, made_by)
        assert made.train_tokens.tolist() == train
        assert made.valid_tokens.tolist() == valid


def test_the_same_name_in_two_folders_is_two_corpora_and_a_column_another_one(
        tokenizer, tmp_path, monkeypatch, capsys):
    cache = str(tmp_path / "cache")
    paths = []
    for folder in ("one", "two"):
        os.mkdir(tmp_path / folder)
        put(tmp_path / folder / "a.txt", make_documents(200))
        monkeypatch.chdir(tmp_path / folder)
        paths.append(open_corpus(["a.txt"], tokenizer, cache).path)
        assert open_corpus([str(tmp_path / folder / "a.txt")], tokenizer, cache).path == paths[-1]
    row = {"text": "a cat sat", "body": "a dog sat"}
    table = raw(tmp_path / "rows.jsonl", f"{json.dumps(row)}\n" * 200)
    for column in ("text", "body"):
        paths.append(open_corpus([str(table)], tokenizer, cache, column).path)
    assert len(set(paths)) == 4
    assert "made anew" not in capsys.readouterr().err


def test_a_damaged_table_is_named_once(tokenizer, tmp_path):
    packed = gzip.compress(b"text\n" + b"the cat sat on a mat\n" * 999)
    path = raw(tmp_path / "a.csv.gz", packed[:-9])
    with pytest.raises(ValueError, match=r"a\.csv\.gz: not a whole, undamaged file: ") as error:
        list(read_corpus([str(path)]))
    assert str(error.value).count("a.csv.gz") == 1


def test_a_token_file_is_opened_as_it_is_if_its_tokenizer_is_the_same(
        token_file, tokenizer, tmp_path):
    cache = tmp_path / "cache"
    opened = open_corpus([token_file.path], tokenizer, str(cache))
    assert opened.path == token_file.path and not cache.exists()
    other = Tokenizer(vocab_folder(tmp_path / "tok", SPECIAL_TOKENS + ["a"]))
    with pytest.raises(ValueError, match=r"a\.bin was made with another tokenizer than .*tok"):
        open_corpus([token_file.path], other, str(cache))
    with pytest.raises(ValueError, match=r"a\.bin: a token file cannot be read together"):
        open_corpus([token_file.path, str(tmp_path / "a.txt")], tokenizer, str(cache))
    description = read_json(f"{token_file.path}.json")
    description["made_from"] = {}                            # it does not say which tokenizer
    raw(tmp_path / "a.bin.json", json.dumps(description))
    assert open_corpus([token_file.path], other, str(cache)).path == token_file.path


def test_a_failure_leaves_the_old_token_file_as_it_was(token_file, tokenizer, tmp_path):
    before = Path(token_file.path).read_bytes()
    names = sorted(os.listdir(tmp_path))
    raw(tmp_path / "a.txt.gz", b"no archive")
    with pytest.raises(ValueError, match="damaged"):
        tokenise([str(tmp_path / "a.txt"), str(tmp_path / "a.txt.gz")], tokenizer, token_file.path)
    assert Path(token_file.path).read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == sorted(names + ["a.txt.gz"])
    assert len(TokenFile(token_file.path).train_tokens) == len(token_file.train_tokens)


def test_a_file_that_is_no_token_file_is_not_overwritten(tokenizer, tmp_path):
    corpus = put(tmp_path / "a.txt", make_documents(9))
    before = Path(corpus).read_bytes()
    for out in (corpus, str(tmp_path)):
        with pytest.raises((ValueError, OSError), match=str(tmp_path)):
            tokenise([corpus], tokenizer, out)
    assert Path(corpus).read_bytes() == before and os.listdir(tmp_path) == ["a.txt"]


REMOVED = object()                  # the field is to be left out


@pytest.mark.parametrize("damage", [
    "", "no json", "[]", "3", "{}", '{"dtype": "uint16"}', "\xff", "[" * 100_000,
    {"dtype": "int8"}, {"dtype": ["uint16"]}, {"dtype": "uint32"}, {"train": "1"}, {"train": None},
    {"train": -1}, {"train": 1.0}, {"train": 10**30}, {"valid": 1}, {"valid": "x"},
    {"train": 10**6, "valid": 0}, {"made_from": REMOVED}, {"made_from": []}, {"made_from": None}])
def test_a_damaged_description_of_a_token_file_is_an_error(damage, token_file):
    facts = read_json(f"{token_file.path}.json")
    content = damage                                     # the whole text, or changes of its fields
    if isinstance(damage, dict):
        facts.update(damage)
        left = {name: value for name, value in facts.items() if value is not REMOVED}
        content = json.dumps(left)
    with open(f"{token_file.path}.json", "w", encoding="latin-1") as file:
        file.write(content)
    with pytest.raises(ValueError, match=f"^{token_file.path}: .*delete it and its .json, and"):
        TokenFile(token_file.path)


@pytest.mark.parametrize("size_change", [-2, -1, 2, -10**9])         # the last one empties it
def test_a_token_file_of_the_wrong_size_is_an_error(size_change, token_file):
    size = os.path.getsize(token_file.path)
    os.truncate(token_file.path, max(0, size + size_change))
    with pytest.raises(ValueError, match=token_file.path):
        TokenFile(token_file.path)


def test_a_token_file_that_is_gone_is_an_error(token_file):
    os.remove(token_file.path)
    with pytest.raises(ValueError, match=token_file.path):
        TokenFile(token_file.path)


def test_a_token_file_is_recognised_by_what_is_in_it(token_file, tokenizer, tmp_path):
    content = Path(token_file.path).read_bytes()
    expected = hashlib.blake2b(content, digest_size=16).hexdigest()
    assert token_file.digest == TokenFile(token_file.path).digest == expected
    description = read_json(f"{token_file.path}.json")
    assert description["digest"] == expected
    # A copy of the corpus that is elsewhere and newer gives the same digest, another text not.
    copy = [put(tmp_path / "elsewhere" / "copy.jsonl", make_documents(300))]
    assert tokenise(copy, tokenizer, str(tmp_path / "b.bin")).digest == expected
    other = [put(tmp_path / "other.txt", make_documents(300, seed=1))]
    assert tokenise(other, tokenizer, str(tmp_path / "c.bin")).digest != expected
    del description["digest"]                            # as an earlier version wrote it
    raw(tmp_path / "a.bin.json", json.dumps(description))
    assert TokenFile(token_file.path).digest == expected


@pytest.mark.parametrize("size", [0, 1, 10, 25])
def test_the_hash_of_a_file_is_that_of_its_bytes(size, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 10)
    content = random.Random(0).randbytes(size)
    expected = hashlib.blake2b(content, digest_size=16).hexdigest()
    assert hash_file(raw(tmp_path / "x", content)) == expected


def test_what_a_killed_run_left_in_the_cache_is_removed_by_the_next(tokenizer, tmp_path):
    corpus = [put(tmp_path / "a.txt", make_documents(200))]
    two_days_ago = time.time() - 2 * 24 * 60 * 60
    for name in ("a.bin.99999-0a1b2c3d.tmp", "a.bin.json.99999-0a1b2c3d.tmp"):
        os.utime(raw(tmp_path / name, "half of it"), (two_days_ago, two_days_ago))
    tokenise(corpus, tokenizer, str(tmp_path / "a.bin"))
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.bin.json", "a.txt"]


# ---- Tokenizers ----------------------------------------------------------------------------------

def test_a_tokenizer_that_allows_endless_words_is_refused(tokenizer, tmp_path):
    facts = json.loads(tokenizer.backend.to_str())
    facts["model"]["max_input_chars_per_word"] = 10**12
    raw(tmp_path / "tokenizer.json", json.dumps(facts))
    with pytest.raises(ValueError, match="tokenizer.json: .*max_input_chars_per_word is 10{12}"):
        Tokenizer(str(tmp_path))


TRICKY = [
    "Ünïcode Éclair naïve café CAFÉ", "中文字符 mixed中with文latin",
    "don't stop-it! (really?) [x] {y}",
    "a\u0301 e\u0300 İstanbul ΣΊΣΥΦΟΣ straße",
    "tabs\tand\u00a0odd\u2003spaces\u200bzero \x07bell",
    "x" * 150, "[MASK] is special, [mask] is not, nor is [ MASK ]",
    "🙂 $5.00 3½ 100% «quoted» “too”", "", "   ", "UPPER lower MiXeD", "\ufffd\x00",
    "Zażółć gęślą jaźń ﬁ ﬂ"]


def tricky_words(cased):
    """Letters, with and without ##, as BERT's normaliser leaves them, and a few longer words."""
    text = set("".join(TRICKY)) | set("".join(TRICKY).lower()) | set("aeiouncszglz\u0301")
    letters = sorted(c for c in text if c.isprintable() and not c.isspace()
                     and (cased or c == c.lower()) and c != "🙂")    # which is to be [UNK]
    continued = ["##" + c for c in letters if c.isalnum() or c == "\u0301"]
    longer = ["stop", "cafe", "real", "##ly", "lower", "[unused1]"]
    return SPECIAL_TOKENS + letters + continued + longer


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
        second.no_padding()
        second.no_truncation()
    mine = Tokenizer(folder).encode(TRICKY)
    assert mine == [second.encode(text, add_special_tokens=False).ids for text in TRICKY]
    first = reference.from_pretrained(folder, do_lower_case=not cased)
    assert mine == first(TRICKY, add_special_tokens=False)["input_ids"]
    lower, mixed = Tokenizer(folder).encode(["upper lower mixed", "UPPER lower MiXeD"])
    assert (lower != mixed) == cased
    smile = Tokenizer(folder).encode(["🙂"])[0]
    assert smile == [SPECIAL_TOKENS.index("[UNK]")]          # the vocabulary does not have it
    assert sum(len(ids) for ids in mine) > 180               # few other words are [UNK] as a whole


@pytest.mark.parametrize("words, config, lower", [
    (["a", "b"], None, True), (["a", "B"], None, False), (["a", "##Bc"], None, False),
    (["a", "[unused1]", "[END]"], None, True), (["a", "[B", "c"], None, False),
    (["a", "É"], None, True),
    (["a", "B"], {"do_lower_case": True}, True), (["a", "b"], {"do_lower_case": False}, False),
    (["a", "B"], {"model_max_length": 512}, False), (["a", "B"], {"do_lower_case": None}, False)])
def test_a_vocabulary_with_capitals_is_cased_unless_told_otherwise(words, config, lower, tmp_path):
    core = Tokenizer(vocab_folder(tmp_path, SPECIAL_TOKENS + words, config)).backend
    assert core.normalizer.normalize_str("AB") == ("ab" if lower else "AB")


def test_accents_are_kept_where_the_files_say_so(tmp_path):
    config = {"do_lower_case": True, "strip_accents": False}
    core = Tokenizer(vocab_folder(tmp_path, SPECIAL_TOKENS + ["a"], config)).backend
    assert core.normalizer.normalize_str("É") == "é"


def test_line_ends_and_odd_words_in_a_vocabulary_do_not_shift_the_numbers(tmp_path):
    odd = SPECIAL_TOKENS + ["a\u2028b", "\x85", "\u00a0", "last"]
    text = "\n".join(odd)
    with_line_end = text + "\n"
    for variant in (text, with_line_end, with_line_end.replace("\n", "\r\n"), "\ufeff" + text):
        raw(tmp_path / "vocab.txt", variant)
        found = Tokenizer(str(tmp_path))
        assert found.vocab_size == len(odd) and found.backend.token_to_id("last") == len(odd) - 1
        named = (found.pad_id, found.unk_id, found.cls_id, found.sep_id, found.mask_id)
        assert named == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("words, lowercase", [(["a", "B"], False), (["a", "b"], True)])
def test_a_saved_vocabulary_says_whether_it_is_cased(words, lowercase, tmp_path):
    """transformers would lower-case where nothing says so."""
    os.mkdir(tmp_path / "out")
    tokenizer = Tokenizer(vocab_folder(tmp_path / "v", SPECIAL_TOKENS + words))
    tokenizer.save(tmp_path / "out")
    config = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert config == {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}
    assert Tokenizer(tmp_path / "out").digest == tokenizer.digest


@pytest.mark.parametrize("config, lowercase", [
    ({"model_max_length": 9}, False), ({"do_lower_case": None}, False),
    ({"do_lower_case": True, "x": 1}, True)])
def test_a_saved_config_says_whether_it_is_cased(config, lowercase, tmp_path):
    os.mkdir(tmp_path / "out")
    tokenizer = Tokenizer(vocab_folder(tmp_path / "v", SPECIAL_TOKENS + ["a", "B"], config))
    tokenizer.save(tmp_path / "out")
    saved = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert saved == config | {"do_lower_case": lowercase}
    assert Tokenizer(tmp_path / "out").digest == tokenizer.digest
    # The folder that was read stays as it was.
    assert json.loads((tmp_path / "v/tokenizer_config.json").read_text()) == config


@pytest.mark.parametrize("text, message", [
    (b"", "PAD"), (b"\n", "PAD"), (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n", r"no \[MASK\]$"),
    (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\na\n", "8 lines, but only 7 "),
    (b"[PAD]\n\xff\n", "utf-8")])
def test_a_vocabulary_that_will_not_do_is_named(text, message, tmp_path):
    raw(tmp_path / "vocab.txt", text)
    with pytest.raises(ValueError, match=r"vocab\.txt: .*" + message):
        Tokenizer(str(tmp_path))


@pytest.mark.parametrize("text", [
    "", "no json", "[]", "3", '{"do_lower_case": "no"}', '{"do_lower_case": 1}',
    '{"strip_accents": 3}', '{"strip_accents": 1}', "[" * 100_000, b"\xff"])
def test_a_tokenizer_config_that_will_not_do_is_named(text, tmp_path):
    vocab_folder(tmp_path, SPECIAL_TOKENS + ["a"])
    raw(tmp_path / "tokenizer_config.json", text)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: "):
        Tokenizer(str(tmp_path))


@pytest.mark.parametrize("text", [
    b"", b"no json", b"{}", b"\xff", b"[]", b'{"model": {"type": "Odd"}}'])
def test_a_tokenizer_json_that_will_not_do_is_named(text, tmp_path):
    raw(tmp_path / "tokenizer.json", text)
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer: [^\n]+$"):
        Tokenizer(str(tmp_path))


def test_a_tokenizer_without_a_token_for_an_unknown_word_is_named(tmp_path):
    ids = {word: i for i, word in enumerate(SPECIAL_TOKENS + ["a"])}
    model = tokenizers.models.WordPiece(ids, unk_token="<unk>")      # there is no <unk> in ids
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer: .*Missing"):
        Tokenizer(str(tmp_path))


def test_a_tokenizer_in_which_unknown_words_vanish_is_refused(tmp_path):
    core = tokenizers.Tokenizer(tokenizers.models.BPE())                      # without an unk_token
    core.train_from_iterator(["the cat"], tokenizers.trainers.BpeTrainer(
        vocab_size=60, special_tokens=SPECIAL_TOKENS, show_progress=False))
    core.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="tokenizer.json: .*words that it does not know vanish"):
        Tokenizer(str(tmp_path))


def test_another_token_for_unknown_words_is_refused(tmp_path):
    ids = {word: i for i, word in enumerate([*SPECIAL_TOKENS, "a", "<unk>"])}
    model = tokenizers.models.WordPiece(ids, unk_token="<unk>")
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"its unk_token is '<unk>', not \[UNK\]"):
        Tokenizer(str(tmp_path))


def test_a_tokenizer_that_pads_to_a_huge_length_does_no_harm(tmp_path):
    backend = data.make_wordpiece([*SPECIAL_TOKENS, "a"])
    backend.enable_padding(length=2**40)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(str(tmp_path)).encode(["a"]) == [[5]]


@pytest.mark.parametrize("config", [
    {}, {"do_lower_case": None}, {"do_lower_case": False}, {"do_lower_case": True},
    {"do_lower_case": True, "strip_accents": False}, {"tokenize_chinese_chars": False}])
@pytest.mark.parametrize("lowercase", [False, True])
def test_the_config_counts_if_it_contradicts_the_tokenizer_json(config, lowercase, tmp_path):
    words = [*SPECIAL_TOKENS, "e", "é", "E", "É", "中", "##文", "文"]
    backend = data.make_wordpiece(words, lowercase)
    backend.save(str(tmp_path / "tokenizer.json"))
    raw(tmp_path / "tokenizer_config.json", json.dumps(config))
    if config.get("do_lower_case") is not None:
        lowercase = config["do_lower_case"]
    text = "É"
    if lowercase:
        text = "é" if config.get("strip_accents") is False else "e"
    expected = [words.index(text)]
    expected += [9, 11] if config.get("tokenize_chinese_chars", True) else [9, 10]
    assert Tokenizer(str(tmp_path)).encode(["É 中文"]) == [expected]
    Tokenizer(str(tmp_path)).save(str(tmp_path / "saved"))
    assert Tokenizer(str(tmp_path / "saved")).digest == Tokenizer(str(tmp_path)).digest


def test_a_class_for_any_kind_of_tokenizer_does_not_obey_the_config(tmp_path):
    words = [*SPECIAL_TOKENS, "paris", "Paris"]
    data.make_wordpiece(words, do_lower_case=False).save(str(tmp_path / "tokenizer.json"))
    for kind, expected in (("PreTrainedTokenizerFast", 6), ("BertTokenizerFast", 5), (None, 5),
                           ("DistilBertTokenizer", 5), ("TokenizersBackend", 6)):
        config = {"tokenizer_class": kind, "do_lower_case": True}
        raw(tmp_path / "tokenizer_config.json", json.dumps(config))
        assert Tokenizer(str(tmp_path)).encode(["Paris"]) == [[expected]]


@pytest.mark.parametrize("lowercase", [False, True])
def test_a_saved_tokenizer_json_says_its_case_to_transformers(lowercase, tmp_path):
    words = [*SPECIAL_TOKENS, "paris", "Paris"]
    data.make_wordpiece(words, do_lower_case=lowercase).save(str(tmp_path / "tokenizer.json"))
    Tokenizer(str(tmp_path)).save(str(tmp_path / "saved"))
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert config["do_lower_case"] is lowercase
    assert Tokenizer(str(tmp_path / "saved")).digest == Tokenizer(str(tmp_path)).digest


def test_added_tokens_that_the_vocabulary_does_not_have_are_refused(tmp_path):
    vocab_folder(tmp_path, [*SPECIAL_TOKENS, "a"])
    for harmless in ("{}", '{"[MASK]": 4}'):
        raw(tmp_path / "added_tokens.json", harmless)
        Tokenizer(str(tmp_path))
    raw(tmp_path / "added_tokens.json", '{"[MASK]": 4, "<drug>": 6}')
    with pytest.raises(ValueError, match="added_tokens.json: <drug>: not in vocab.txt"):
        Tokenizer(str(tmp_path))
    data.make_wordpiece([*SPECIAL_TOKENS, "a"]).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="added_tokens.json: <drug>: not in tokenizer.json"):
        Tokenizer(str(tmp_path))
    data.make_wordpiece([*SPECIAL_TOKENS, "a", "<drug>"]).save(str(tmp_path / "tokenizer.json"))
    Tokenizer(str(tmp_path)).save(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "added_tokens.json").exists()


def test_a_config_says_whether_chinese_characters_are_words(tmp_path):
    words = [*SPECIAL_TOKENS, "中", "##文", "文"]
    assert Tokenizer(vocab_folder(tmp_path / "a", words)).encode(["中文"]) == [[5, 7]]
    whole = vocab_folder(tmp_path / "b", words, {"tokenize_chinese_chars": False})
    assert Tokenizer(whole).encode(["中文"]) == [[5, 6]]


@pytest.mark.parametrize("special", [SPECIAL_TOKENS, SPECIAL_TOKENS[:-1]])
def test_any_kind_of_tokenizer_will_do_if_it_has_the_special_tokens(special, tmp_path):
    core = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    core.train_from_iterator([" ".join(WORDS)] * 9, tokenizers.trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<s>"] + special, show_progress=False))
    core.save(str(tmp_path / "tokenizer.json"))
    if special != SPECIAL_TOKENS:
        with pytest.raises(ValueError, match=r"tokenizer\.json: it has no \[MASK\]"):
            Tokenizer(str(tmp_path))
        return
    found = Tokenizer(str(tmp_path))
    assert found.special_ids.tolist() == [1, 2, 3, 4, 5] and found.mask_id == 5
    assert found.encode(["the cat"]) == [core.encode("the cat").ids]


def test_decoding_puts_words_together_and_leaves_special_tokens_out(tokenizer, tmp_path):
    bert = Tokenizer(vocab_folder(tmp_path, SPECIAL_TOKENS + ["the", "ca", "##t", "sat", "."]))
    ids = bert.encode(["The cat sat."])[0]
    assert ids == [5, 6, 7, 8, 9]
    assert bert.decode([bert.cls_id] + ids + [bert.sep_id]) == "the cat sat."
    for text in ("the cat sat on a mat", "old river", ""):
        assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_a_text_becomes_token_numbers_between_cls_and_sep(tokenizer):
    ids = tokenizer("the [MASK] sat")
    assert ids == [tokenizer.cls_id, *tokenizer.encode(["the [MASK] sat"])[0], tokenizer.sep_id]
    assert ids.count(tokenizer.mask_id) == 1
    assert tokenizer("") == [tokenizer.cls_id, tokenizer.sep_id]


def test_the_name_of_a_special_token_in_a_text_is_that_token(tokenizer):
    ids = tokenizer.encode(["[MASK] the [SEP]"])[0]
    assert ids[0] == tokenizer.mask_id and ids[-1] == tokenizer.sep_id


def test_a_tokens_number_has_a_limit(tmp_path, monkeypatch):
    vocab_folder(tmp_path, SPECIAL_TOKENS + ["a", "b"])
    monkeypatch.setattr(data, "LARGEST_VOCAB_SIZE", 7)
    assert Tokenizer(str(tmp_path)).vocab_size == 7
    monkeypatch.setattr(data, "LARGEST_VOCAB_SIZE", 6)
    with pytest.raises(ValueError, match=r"vocab\.txt: 6 is too large for a token's number"):
        Tokenizer(str(tmp_path))


def test_numbers_that_no_token_has_are_never_drawn(tmp_path):
    ids = {word: 3 * i for i, word in enumerate(SPECIAL_TOKENS + ["a", "b"])}
    tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]")).save(
        str(tmp_path / "tokenizer.json"))
    found = Tokenizer(str(tmp_path))
    assert found.vocab_size == 19 and found.ordinary_ids.tolist() == [15, 18]
    assert found.special_ids.tolist() == [0, 3, 6, 9, 12]


def test_two_special_tokens_with_one_number_are_refused(tmp_path):
    ids = {word: i for i, word in enumerate(SPECIAL_TOKENS + ["x"])}
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]")).save(str(path))
    content = json.loads(path.read_text())
    content["model"]["vocab"]["[MASK]"] = ids["[SEP]"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="tokenizer.json: two of .* have the same number"):
        Tokenizer(str(tmp_path))


def test_a_tokenizer_that_fails_at_a_very_long_word_is_refused(tmp_path):
    words = SPECIAL_TOKENS + ["a"]
    kind = tokenizers.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(kind)
    backend.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex("[^a]"), "")
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="tokenizer.json: not a tokenizer"):
        Tokenizer(str(tmp_path))


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=str(path)):
            Tokenizer(str(path))


def test_tokenizers_that_differ_have_different_digests(tmp_path):
    cased = {"do_lower_case": False}
    kinds = [(["a", "b"], None), (["b", "a"], None), (["a", "c"], None), (["a", "b"], cased)]
    digests = [Tokenizer(vocab_folder(tmp_path / str(i), SPECIAL_TOKENS + words, config)).digest
               for i, (words, config) in enumerate(kinds)]
    assert len(set(digests)) == 4


def test_a_saved_tokenizer_is_the_same_and_replaces_another_one(tmp_path):
    words = SPECIAL_TOKENS + ["a", "B"]
    small = Tokenizer(vocab_folder(tmp_path / "a", words, {"do_lower_case": True}))
    ids = {word: i for i, word in enumerate(SPECIAL_TOKENS + ["x"])}
    other = tokenizers.BertWordPieceTokenizer(ids)
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
    assert made.vocab_size == len(words) == 100 and words[:5] == SPECIAL_TOKENS
    assert words[5:] == sorted(words[5:])                    # so that it does not vary with the run
    assert any("T" in word for word in words[5:]) == (not lowercase)
    assert made.backend.normalizer.normalize_str("A") == ("a" if lowercase else "A")
    config = json.loads((tmp_path / "tok" / "tokenizer_config.json").read_text())
    assert config == {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}
    assert made.unk_id not in made.encode(["The Cat Sat On A Mat"])[0]


def test_a_vocabulary_is_not_learned_where_it_could_not_be_read_again(tmp_path):
    corpus = [put(tmp_path / "a.txt", make_documents(9))]
    (tmp_path / "tok").mkdir()
    for name in ("tokenizer.json", "vocab.txt", "added_tokens.json", "tokenizer_config.json"):
        raw(tmp_path / "tok" / name, "{}")
        with pytest.raises(ValueError, match=f"it has (a|another) {name} already"):
            train_tokenizer(corpus, 100, str(tmp_path / "tok"))
        assert os.listdir(tmp_path / "tok") == [name]
        os.remove(tmp_path / "tok" / name)
    for size in (99, 2**20 + 1):
        with pytest.raises(ValueError, match=str(size)):
            train_tokenizer(corpus, size, str(tmp_path / "other"))
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "tok"]


def test_the_folder_of_a_vocabulary_is_tried_before_anything_is_learned(tmp_path, monkeypatch):
    corpus = [put(tmp_path / "a.txt", make_documents(9))]
    monkeypatch.setattr(data, "learn_words", lambda *arguments: pytest.fail("too early"))
    with pytest.raises(OSError, match="Not a directory"):
        train_tokenizer(corpus, 100, f"{corpus[0]}/words")
    (tmp_path / "tok").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)           # it may be run by root
    with pytest.raises(ValueError, match="tok: this user may not write into this folder$"):
        train_tokenizer(corpus, 100, str(tmp_path / "tok"))


def test_ctrl_c_while_words_are_learned_leaves_no_empty_folder(tmp_path, monkeypatch):
    def interrupt(*arguments):
        assert os.path.isdir(tmp_path / "tok")
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "learn_words", interrupt)
    corpus = [put(tmp_path / "a.txt", make_documents(9))]
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(corpus, 100, str(tmp_path / "tok"))
    assert os.listdir(tmp_path) == ["a.txt"]
    (tmp_path / "tok").mkdir()                           # the user's own folder stays
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(corpus, 100, str(tmp_path / "tok"))
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "tok"]


# ---- Masked batches ------------------------------------------------------------------------------

def restored(batch):
    """The ids of a batch with its labels put back."""
    ids, places, labels = batch
    ids = ids.copy()
    ids.ravel()[places] = labels
    return ids


@pytest.mark.parametrize("T", [3, 7, 64])
def test_sequences_are_packed_and_lose_no_token(T, token_file, tokenizer):
    tokens = token_file.train_tokens
    batches = MaskedBatches(tokens, tokenizer, T, 4)
    ids = batches.sequences(np.arange(batches.count))
    assert ids.shape == (len(tokens) // (T - 2), T) and ids.dtype == np.int64
    assert (ids[:, 0] == tokenizer.cls_id).all() and (ids[:, -1] == tokenizer.sep_id).all()
    assert not (ids == tokenizer.pad_id).any()
    body = ids[:, 1:-1].ravel()
    assert body.tolist() == tokens[:len(body)].tolist() and 0 <= len(tokens) - len(body) < T - 2


@pytest.mark.parametrize("B", [1, 4, 200])
def test_each_epoch_visits_each_sequence_once_in_another_order(B, token_file, tokenizer):
    T = 23
    n = len(token_file.valid_tokens) // (T - 2)
    tokens = np.arange(n * (T - 2) + 5) % 50 + 5             # no two sequences alike
    batches = MaskedBatches(tokens, tokenizer, T, B, seed=3)
    assert 4 < n == batches.count < 50
    steps = range(math.ceil(3 * n / B))                      # of three epochs
    rows = []
    for step in steps:
        rows.extend(tuple(row) for row in restored(batches.batch(step)))
    all_sequences = sorted(tuple(row) for row in batches.sequences(np.arange(n)))
    assert len(set(all_sequences)) == n
    orders = {tuple(all_sequences)}                          # sorted: no epoch's order
    for first in (0, n, 2 * n):
        epoch = rows[first:first + n]
        assert sorted(epoch) == all_sequences
        orders.add(tuple(epoch))
    assert len(orders) == 1 + 3


def test_batches_are_a_function_of_seed_and_step_alone(token_file, tokenizer):
    def make_batches(seed):
        return MaskedBatches(token_file.train_tokens, tokenizer, 16, 5, seed)

    def as_bytes(batch):
        return [part.tobytes() for part in batch]

    steps = [0, 1, 40, 41, 200, 1000]
    forward = make_batches(1)
    backward = make_batches(1)
    first = {step: as_bytes(forward.batch(step)) for step in steps}
    assert {step: as_bytes(backward.batch(step)) for step in reversed(steps)} == first
    assert as_bytes(forward.batch(40)) == first[40]
    other_seed = make_batches(2).batch(0)
    assert as_bytes(other_seed)[0] != first[0][0]
    assert not (restored(forward.batch(0)) == restored(other_seed)).all()
    ordinary = np.full(500, tokenizer.ordinary_ids[0])       # all places are open to masking
    positions = []
    for seed in (1, 2):
        for step in (0, 1, 2):
            batch = MaskedBatches(ordinary, tokenizer, 102, 5, seed).batch(step)
            positions.append(tuple(batch[1]))
    assert len(set(positions)) == 6
    assert {len(some) for some in positions} == {75}


def test_too_few_tokens_for_a_sequence_are_an_error(tokenizer):
    assert MaskedBatches(np.arange(5, 13), tokenizer, 10, 1).count == 1
    for count in (7, 0):
        with pytest.raises(ValueError, match=f"^{count} tokens.* 10 "):
            MaskedBatches(np.arange(count), tokenizer, 10, 1)
    for T in (2, 0, -1):
        with pytest.raises(ValueError, match=f"^a sequence of {T} has no room"):
            MaskedBatches(np.arange(7), tokenizer, T, 1)


def test_a_token_beyond_the_vocabulary_is_an_error(tokenizer):
    tokens = np.full(50, tokenizer.vocab_size - 1, np.uint16)
    assert MaskedBatches(tokens, tokenizer, 12, 5).batch(0)[0].shape == (5, 12)
    tokens[7] += 1
    with pytest.raises(ValueError, match=f"token {tokenizer.vocab_size} "):
        MaskedBatches(tokens, tokenizer, 12, 5).batch(0)


# ---- Masking -------------------------------------------------------------------------------------

def random_ids(tokenizer, B, T, specials=0.1):
    rng = np.random.default_rng(5)
    ids = rng.choice(tokenizer.ordinary_ids, (B, T))
    ids[rng.random((B, T)) < specials] = tokenizer.sep_id
    ids[:, 0] = tokenizer.cls_id
    return ids


def test_masking_has_berts_proportions(tokenizer):
    B, T = 1000, 102
    ids = random_ids(tokenizer, B, T)
    masked, places, labels = mask_tokens(ids, tokenizer, np.random.default_rng(0))
    M = len(places)
    assert M == B * 15
    assert (np.bincount(places // T) == 15).all()            # 15 in each row

    def assert_share(is_so, expected):
        """Assert that a share of the M places is as expected, within four standard deviations."""
        deviation = math.sqrt(expected * (1 - expected) / M)
        assert abs(is_so.mean() - expected) < 4 * deviation

    def assert_even(counts):
        """Assert that all counts are their mean, within five standard deviations of a Poisson."""
        assert abs(counts - counts.mean()).max() < 5 * math.sqrt(counts.mean())

    now = masked.ravel()[places]
    is_mask = now == tokenizer.mask_id
    is_kept = now == labels
    assert_share(is_mask, 0.8)
    same_by_chance = 1 / len(tokenizer.ordinary_ids)         # a random token may be the true one
    assert_share(is_kept, 0.1 + 0.1 * same_by_chance)
    random_tokens = now[~is_mask & ~is_kept]
    assert np.isin(random_tokens, tokenizer.ordinary_ids).all()
    counts = np.bincount(random_tokens, minlength=tokenizer.vocab_size)
    assert_even(counts[tokenizer.ordinary_ids])
    chosen_in_column = np.bincount(places % T, minlength=T)
    assert chosen_in_column[0] == 0                          # [CLS]
    assert_even(chosen_in_column[1:])


def test_masking_never_takes_a_special_token_and_changes_nothing_else(tokenizer):
    ids = random_ids(tokenizer, 30, 41, specials=0.4)
    before = ids.copy()
    masked, places, labels = mask_tokens(ids, tokenizer, np.random.default_rng(1))
    assert (ids == before).all() and masked.shape == ids.shape
    assert (labels == ids.ravel()[places]).all()
    assert not np.isin(labels, tokenizer.special_ids).any()
    assert len(set(places.tolist())) == len(places) and (np.diff(places) > 0).all()
    others = np.setdiff1d(np.arange(ids.size), places)
    assert (masked.ravel()[others] == ids.ravel()[others]).all()
    now = masked.ravel()[places]
    never = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id]
    assert not np.isin(now, never).any()


@pytest.mark.parametrize("token", [-5, 10**6])
def test_a_token_that_the_tokenizer_does_not_have_is_refused(token, tokenizer):
    batches = MaskedBatches([token] * 50, tokenizer, T=8, batch_size=2)
    with pytest.raises(ValueError, match=f"^token {token} is in the corpus, but those of the "):
        batches.batch(0)


def test_an_empty_path_of_a_corpus_is_named(tokenizer):
    with pytest.raises(ValueError, match="^--corpus: a path is empty$"):
        open_corpus([""], tokenizer)


def test_sequences_of_special_tokens_have_few_places_or_none(tokenizer):
    ids = np.full((3, 42), tokenizer.sep_id)
    masked, places, labels = mask_tokens(ids, tokenizer, np.random.default_rng(0))
    assert len(places) == len(labels) == 0 and (masked == ids).all()
    ids[1, 7:9] = tokenizer.ordinary_ids[:2]
    ids[2] = tokenizer.ordinary_ids[3]
    places = mask_tokens(ids, tokenizer, np.random.default_rng(0))[1]
    assert np.bincount(places // 42, minlength=3).tolist() == [0, 2, 6]
    short = np.array([[tokenizer.cls_id, 9, tokenizer.sep_id]])
    assert mask_tokens(short, tokenizer, np.random.default_rng(0))[1].tolist() == [1]


def test_masking_is_what_a_plain_loop_does(tokenizer):
    T = 33
    num_masked = 5                                           # 15 % of T - 2, rounded
    ids = random_ids(tokenizer, 5, T)
    found = mask_tokens(ids, tokenizer, np.random.default_rng([7, 2, 9]))
    rng = np.random.default_rng([7, 2, 9])
    draw = rng.random(ids.shape)
    positions = []
    for b, row in enumerate(ids):
        ordinary = [t for t in range(T) if row[t] not in tokenizer.special_ids]
        ordinary.sort(key=lambda t: draw[b, t])
        positions.extend(b * T + t for t in sorted(ordinary[:num_masked]))
    fates = rng.random(len(positions))
    random_tokens = rng.choice(tokenizer.ordinary_ids, len(positions))
    masked_ids = ids.ravel().tolist()
    for position, fate, random_token in zip(positions, fates, random_tokens):
        if fate < 0.8:
            masked_ids[position] = tokenizer.mask_id
        elif fate < 0.9:
            masked_ids[position] = random_token
    assert found[0].ravel().tolist() == masked_ids
    assert found[1].tolist() == positions
    assert found[2].tolist() == ids.ravel()[positions].tolist()


# ---- The default corpus -------------------------------------------------------------------------

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
    lines = text.splitlines()
    found, _ = remove_markup(lines)
    assert is_prose(lines, found) == (want is not None)
    if want is not None:
        assert found == want


@pytest.mark.parametrize("text, want", [
    ("The cat is on the mat and sits.", True),               # 8 words, the fewest
    ("The cat is on the mat now.", False),
    ("The 12 of 34 is in the list.", True),                  # 6 of 8 words are plain, the fewest
    ("The 12 of 34 is 56 the list.", False),
    ("The cats like all of these small animals.", True),     # 2 of 8 words are common, the fewest
    ("The cats like many other kinds, small ones.", False)])
def test_prose_has_eight_words_of_which_enough_are_plain_and_common(text, want):
    assert is_prose([text], text) == want


@pytest.mark.parametrize("lines, want, code", [
    (["plain  words", "  on two lines"], "plain words on two lines", []), ([""], "", []),
    (["The :func:`~numpy.copy` of ``a b``", "  and `c`."], "The numpy.copy of a b and c.",
     ["numpy.copy", "a b", "c"]),
    (["``all of it``"], "all of it", ["all of it"]), (["a *b* **c**"], "a b c", []),
    (["See :ref:`the manual <manual-2>` and :pep:`8`::"], "See the manual and 8:", []),
    (["`The docs <https://x.y>`_, `more`__ and `it`_ of :py:class:`A <b>`, :math:`n`."],
     "The docs, more and it of A, n.", ["A"]),
    (["If `mode' is given, use `name' and ``a``."], "If mode' is given, use name' and a.", []),
    (["The ``mode'' of ``it``."], "The mode'' of it``.", []),
    (["Not `f'x` is one."], "Not f'x is one.", ["f'x"])])
def test_it_is_known_where_the_code_in_a_paragraph_was(lines, want, code):
    text, code_spans = remove_markup(lines)
    assert text == want
    assert [text[begin:end] for begin, end in code_spans] == code


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

        Quoted, not code.

    Of three
          lines which
       are uneven.

        Deep line.
    Another paragraph, less deep.

    z : int
        The third argument.
    """
    found = [" ".join(" ".join(lines).split()) for lines in paragraphs(docstring)]
    assert found == [
        "Summary of it, on two lines.", "Args:", "what goes in and its second line", "Another one.",
        "an item", "the next goes on", "An example::", "Not code.",
        "Quoted, not code.", "Of three lines which are uneven.", "Deep line.",
        "Another paragraph, less deep.", "z : int", "The third argument."]
    assert [lines for lines in paragraphs("") if lines] == []


def test_the_indentation_of_the_source_does_not_make_text_code():
    docstring = """Do it like this::

        code

    Text.
    """
    assert list(paragraphs(docstring)) == [["Do it like this::"], ["Text."]]


@pytest.fixture
def fake_machine(tmp_path, monkeypatch):
    """A Python, a torch and a numpy with a few modules that cannot be imported."""
    def module(path, *paragraphs):
        path = tmp_path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "\n\n".join(paragraphs)
        path.write_text(f'raise SystemExit("imported")\n\ndef f():\n    r"""{text}\n    """\n')

    def about(word):
        """Make a paragraph that is found: PLAIN about something else."""
        return PLAIN.replace("array", word)

    list_again = about("list").replace("function", "Function")       # differs in a capital alone
    module("python/zlib.py", about("list"), "Short.", list_again)
    module("python/abc/base.py", about("tree"), about("list"), about("pile"))
    module("python/xyz/deep.py", about("pile"))
    module("python/notes.txt", PLAIN)
    module("python/test/test_abc.py", PLAIN)
    module("python/site-packages/other.py", PLAIN)
    module("site/torch/nn.py", about("heap"))
    graph_with_code = about("graph").replace("copy", "``copy``")
    module("site/numpy/core.py", graph_with_code, about("heap"))
    not_ascii = b"'''\xff" + PLAIN.encode() + b"''' "
    queue = b"'''" + about("queue").encode() + b"'''"
    raw(tmp_path / "python" / "odd.py", not_ascii + queue)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "python"))
    versions = {"torch": "2.1", "numpy": "3.2"}
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: types.SimpleNamespace(
        version=versions[name], locate_file=lambda file: tmp_path / "site" / file))
    monkeypatch.setitem(sys.modules, "pydoc_data.topics",
                        types.SimpleNamespace(topics={"b": about("stack"), "a": about("tree")}))
    want = [("python.reference", about("tree")), ("python.reference", about("stack")),
            ("python.odd", about("queue")), ("python.zlib", about("list")),
            ("python.abc.base", about("pile")), ("torch.nn", about("heap")),
            ("numpy.core", about("graph"))]
    return versions, want


def test_the_documentation_is_collected_once_without_duplicates(fake_machine, tmp_path):
    versions, want = fake_machine
    path = docs_on_this_machine(str(tmp_path / "cache"))
    found = [json.loads(line) for line in Path(path).read_text().splitlines()]
    assert [(paragraph["part"], paragraph["text"]) for paragraph in found] == want
    begin = found[-1]["text"].index("copy")
    assert found[-1]["code"] == [[begin, begin + len("copy")]]
    assert all(paragraph["code"] == [] for paragraph in found[:-1])
    before = os.stat(path)
    (tmp_path / "python" / "zlib.py").unlink()
    assert docs_on_this_machine(str(tmp_path / "cache")) == path and os.stat(path) == before
    versions["torch"] = "2.2"
    assert docs_on_this_machine(str(tmp_path / "cache")) != path
    assert len(os.listdir(tmp_path / "cache")) == 2
    assert [line for line in read_corpus([path]) if line] == [text for _, text in want]


def test_the_documentation_of_another_process_is_kept(fake_machine, tmp_path, monkeypatch):
    """A token file counts as made from another corpus if its corpus is written again."""
    cache = str(tmp_path / "cache")
    makedirs = os.makedirs
    written = []

    def makedirs_late(path, exist_ok):
        makedirs(path, exist_ok=exist_ok)
        if not written:
            written.append("by another process")
            written.append(os.stat(docs_on_this_machine(cache)))

    monkeypatch.setattr(os, "makedirs", makedirs_late)
    path = docs_on_this_machine(cache)
    assert os.stat(path) == written[1]


def test_the_corpus_that_needs_no_download_is_the_documentation(fake_machine, tmp_path):
    _, want = fake_machine
    letters = list("abcdefghijklmnopqrstuvwxyz.")
    words = SPECIAL_TOKENS + letters + ["##" + letter for letter in letters]
    tokenizer = Tokenizer(vocab_folder(tmp_path / "tok", words))
    made = open_corpus(None, tokenizer, str(tmp_path / "cache"))
    train, valid = naive_tokens([[text] for _, text in want], tokenizer)
    assert made.train_tokens.tolist() + made.valid_tokens.tolist() == train + valid
    assert len(os.listdir(tmp_path / "cache")) == 3          # the documentation, .bin, .bin.json


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
        made.train_tokens.tolist(), made.valid_tokens.tolist())
    said = capsys.readouterr()
    assert f"{len(made.train_tokens):,} tokens to train on" in said.out
    assert f"{len(made.valid_tokens):,} held out" in said.out
    assert said.err == ""


def test_the_command_fetches_a_tokenizer_by_its_name(tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "hub"
    folder.mkdir()

    def snapshot_download(name, allow_patterns):
        assert name == "some/bert"
        for file in allow_patterns:
            source = os.path.join(tokenizer.path, file)
            if os.path.exists(source):
                shutil.copy(source, folder)
        return str(folder)

    stand_in = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    corpus = put(tmp_path / "a.txt", make_documents(200))
    out = str(tmp_path / "a.bin")
    assert not main(["--corpus", corpus, "--tokenizer", "some/bert", "--out", out])
    assert TokenFile(out).made_from["tokenizer"] == tokenizer.digest
    assert sorted(os.listdir(folder)) == ["tokenizer_config.json", "vocab.txt"]


@pytest.mark.parametrize("options, lower", [
    ([], True), (["--lowercase"], True), (["--no-lowercase"], False)])
def test_the_command_learns_a_vocabulary_from_the_default_corpus(
        options, lower, fake_machine, tmp_path, monkeypatch, capsys):
    docs = docs_on_this_machine(str(tmp_path / "cache"))
    monkeypatch.setattr(data, "docs_on_this_machine", lambda: docs)
    assert not main(["--train-tokenizer", "5000", "--out", str(tmp_path / "tok"), *options])
    made = Tokenizer(str(tmp_path / "tok"))
    assert f"{made.vocab_size} tokens of the 5000 asked for" in capsys.readouterr().out
    assert made.backend.normalizer.normalize_str("A") == ("a" if lower else "A")
    assert made.encode(["the heap"]) == [[made.backend.token_to_id(w) for w in ("the", "heap")]]


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

    def snapshot_download(name, allow_patterns):
        raise OSError("no net")

    hub_without_net = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub_without_net)
    monkeypatch.setattr(data, "docs_on_this_machine", lambda: names["GOOD"])
    before = {name: os.stat(name).st_mtime_ns for name in os.listdir()}
    assert main(arguments.split()) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("data.py: error: ") and said.err.count("\n") == 1
    assert {name: os.stat(name).st_mtime_ns for name in os.listdir()} == before


@pytest.mark.parametrize("error", [
    ValueError("one\ntwo"), FloatingPointError("one two"), OSError("one\ntwo")])
def test_what_a_user_can_cause_is_printed_in_one_line(error, capsys):
    def action():
        raise error

    assert run_command("some.py", action) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err == "some.py: error: one two\n"


def test_whoever_changes_the_program_can_see_where_an_error_was_raised():
    script = "import command; command.run_command('some.py', lambda: int('one'))"
    ended = subprocess.run([sys.executable, "-X", "dev", "-c", script], capture_output=True,
                           text=True, cwd=ROOT)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr and "in <lambda>" in ended.stderr


def test_an_error_shows_what_a_terminal_would_obey_and_is_not_long(capsys):
    def action():
        raise ValueError("a\x1b]0;title\x07" + "b" * 10**6)

    assert run_command("some.py", action) == 2
    said = capsys.readouterr().err
    assert said.startswith("some.py: error: a\\x1b]0;title\\x07bbb")
    assert len(said) < 2100


@pytest.mark.parametrize("error, reason", [
    (MemoryError(), ""),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory:\nyou tried"),
     ": DefaultCPUAllocator: can't allocate memory: you tried"),
    (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"),       # on Windows
     ": DefaultCPUAllocator: not enough memory: you tried"),
])
def test_a_lack_of_memory_is_printed_in_one_line(error, reason, capsys):
    def action():
        raise error

    assert run_command("some.py", action) == 2
    said = capsys.readouterr()
    assert said.err == f"some.py: error: there is not enough memory{reason}\n"


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "no memory")])
def test_a_lack_of_memory_while_a_file_is_read_names_the_file(error, capsys):
    def action():
        with parsing("a.txt", "a text"):
            raise error

    assert run_command("some.py", action) == 2
    assert capsys.readouterr().err == "some.py: error: there is not enough memory: a.txt\n"


def test_an_interrupt_is_one_line_and_status_130(capsys):
    def action():
        raise KeyboardInterrupt

    assert run_command("some.py", action) == 130
    said = capsys.readouterr()
    assert said.out == "" and said.err.strip() == "some.py: interrupted"


def test_a_command_whose_output_is_closed_ends_well(tmp_path):
    script = "from command import run_command; import sys; sys.exit(run_command('x', lambda: None))"
    done = subprocess.run(["sh", "-c", f'"{sys.executable}" -c "{script}" >&-'], cwd=ROOT,
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_has_its_status_where_standard_error_is_closed(tmp_path):
    script = ("import sys; from command import run_command; from tqdm import tqdm; "
              "sys.exit(run_command('x', lambda: int(list(tqdm(['no']))[0])))")
    done = subprocess.run(["sh", "-c", f'"{sys.executable}" -c "{script}" 2>&-'], cwd=ROOT,
                          capture_output=True)
    assert (done.returncode, done.stdout) == (2, b"")


def test_ctrl_c_has_its_status_where_standard_error_is_closed():
    script = ("import os, signal; from command import end_at_interrupt; end_at_interrupt(); "
              "os.kill(os.getpid(), signal.SIGINT)")
    done = subprocess.run(["sh", "-c", f'"{sys.executable}" -c "{script}" 2>&-'], cwd=ROOT)
    assert done.returncode == 130


@pytest.mark.parametrize("action", ["lambda: None", "lambda: int('no')"])
def test_ctrl_c_after_the_action_is_one_line_and_status_130(action):
    script = ("import os, signal; from command import end_at_interrupt, run_command; "
              f"end_at_interrupt(); run_command('x', {action}); "
              "os.kill(os.getpid(), signal.SIGINT)")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "-c: interrupted"
    assert "Traceback" not in done.stderr


def test_a_tokenizer_whose_rule_takes_for_ever_is_an_error(tmp_path, capfd):
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(
        {token: i for i, token in enumerate([*SPECIAL_TOKENS, "a"])}, unk_token="[UNK]"))
    rule = tokenizers.Regex("(a+)+$")
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(rule, "isolated")
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(str(tmp_path))
    assert run_command("some.py", lambda: tokenizer.encode(["a" * 40 + "b"])) == 2
    last_line = capfd.readouterr().err.splitlines()[-1]  # the library prints lines of its own
    assert last_line.startswith("some.py: error: the tokenizers library gave up, ")
    assert "a rule in tokenizer.json is too slow: " in last_line


@pytest.mark.parametrize("kind", [TypeError, RuntimeError])
def test_a_defect_of_the_program_keeps_its_traceback(kind):
    def action():
        raise kind("a defect")

    with pytest.raises(kind, match="a defect"):
        run_command("some.py", action)


def test_a_command_that_goes_well_has_no_exit_status():
    assert run_command("some.py", list) is None


def test_the_program_explains_itself(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr()
    assert said.err == ""
    example = "\n    python data.py --corpus wiki/ --tokenizer bert-base-uncased --out wiki.bin\n"
    assert example in said.out
    for flag in ("--corpus", "--text", "--tokenizer", "--train-tokenizer", "--lowercase", "--out"):
        assert flag in said.out


def test_the_program_ends_with_the_status_and_has_not_imported_the_hub(tmp_path):
    """huggingface_hub is slow to import, and most runs do not need it."""
    # With importtime Python prints a line about each module that it has imported.
    command = [sys.executable, "-X", "importtime", data.__file__, "--odd"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    modules = []
    errors = []
    for line in run.stderr.splitlines():
        if line.startswith("import time:"):
            modules.append(line.split("|")[-1].strip())  # import time: 123 | 456 |   module
        else:
            errors.append(line)
    assert run.returncode == 2
    assert run.stdout == ""
    assert len(errors) == 1
    assert "tokenizers" in modules
    assert "huggingface_hub" not in modules
