"""data.py against naive loops, against transformers and tokenizers, and against hostile files; the
errors of a command, as command.py prints them."""
import bz2
import csv
import gc
import gzip
import hashlib
import importlib.metadata
import io
import itertools
import json
import lzma
import math
import os
import random
import runpy
import shutil
import signal
import string
import subprocess
import sys
import sysconfig
import time
import tracemalloc
import types
import unicodedata
import warnings
import zlib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tqdm import tqdm

import data
from checkpoint import read_json
from command import end_at_interrupt, run_command
from conftest import LETTERS, ROOT, call_forked, write_file
from data import (MaskedBatches, SPECIAL_TOKENS, Tokenizer, TokenFile, corpus_files,
                  docs_on_this_machine, hash_file, is_prose, main, mask_tokens, open_corpus,
                  paragraphs, read_corpus, remove_markup, tokenise, train_tokenizer)

OPEN = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
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


def jsonl_of(documents):
    """Write each document as a JSON object in a line of its own."""
    text = ""
    for lines in documents:
        row = {"text": "\n".join(lines), "id": 1}
        text += json.dumps(row) + "\n"
    return text


def csv_of(documents):
    """Write each document as a row of a table with two columns."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["id", "text"])
    for lines in documents:
        writer.writerow([1, "\n".join(lines)])
    return table.getvalue()


def plain_text_of(documents):
    """Write an empty line between two documents."""
    texts = ["\n".join(lines) for lines in documents]
    return "\n\n".join(texts) + "\n"


def write_documents(path, documents):
    """Write documents in the format that the file's name says; return the path as a string."""
    if ".jsonl" in path.name:
        text = jsonl_of(documents)
    elif ".csv" in path.name:
        text = csv_of(documents)
    else:
        text = plain_text_of(documents)
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = OPEN.get(path.suffix, open)
    with opener(path, "wb") as file:
        file.write(text.encode())
    return str(path)


def lines_with_text(files, text_column="text"):
    """Read a corpus and list its lines that are not empty."""
    return [line for line in read_corpus(files, text_column) if line]


def is_held_out(lines):
    """Tell whether a document is one of the fiftieth that is held out. Its beginning decides."""
    beginning = "".join(lines)[:10_000]
    return zlib.crc32(beginning.encode()) % 50 == 0


def naive_tokens(documents, tokenizer):
    """Return the lists of token numbers (to train on, held out), made one line at a time."""
    train = []
    valid = []
    for lines in documents:
        part = train
        if is_held_out(lines):
            part = valid
        for line in lines:
            encoding = tokenizer.backend.encode(line, add_special_tokens=False)
            part.extend(encoding.ids)
        part.append(tokenizer.sep_id)
    return train, valid


def assert_tokens_of(token_file, documents, tokenizer):
    """Assert that a token file holds what the naive loop makes of these documents."""
    train, valid = naive_tokens(documents, tokenizer)
    assert token_file.train_tokens.tolist() == train
    assert token_file.valid_tokens.tolist() == valid


def vocab_folder(path, words, config=None):
    """Write a vocabulary, and a tokenizer_config.json if there is a config -> the folder."""
    write_file(path / "vocab.txt", "\n".join(words) + "\n")
    if config is not None:
        write_file(path / "tokenizer_config.json", json.dumps(config))
    return str(path)


def spelling_tokenizer(folder, characters):
    """Make a Tokenizer that knows no word but can spell any that consists of these characters."""
    first_pieces = list(characters)
    later_pieces = [f"##{character}" for character in characters]
    return Tokenizer(vocab_folder(folder, SPECIAL_TOKENS + first_pieces + later_pieces))


def document_of(lines, held_out):
    """Return the lines of a document with one more line before them, by which the document is held
    out, or is not."""
    for i in itertools.count():
        document = [f"start {i:03}"] + lines
        if is_held_out(document) == held_out:
            return document


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Learn a small vocabulary from make_documents(99)."""
    folder = tmp_path_factory.mktemp("tokenizer")
    corpus = [write_documents(folder / "a.txt", make_documents(99))]
    return train_tokenizer(corpus, 120, str(folder / "tok"))


@pytest.fixture(scope="module")
def token_file_once(tokenizer, tmp_path_factory):
    """Make a folder with a token file and its corpus, which nobody changes."""
    folder = tmp_path_factory.mktemp("token_file")
    corpus = [write_documents(folder / "a.txt", make_documents(300))]
    tokenise(corpus, tokenizer, str(folder / "a.bin"))
    return folder


@pytest.fixture
def token_file(token_file_once, tmp_path):
    """Copy the token file and its corpus to a folder in which a test may change them."""
    shutil.copytree(token_file_once, tmp_path, dirs_exist_ok=True)
    return TokenFile(str(tmp_path / "a.bin"))


# ---- Reading a corpus -------------------------------------------------------------------

def test_any_mix_of_files_and_folders_is_read_in_a_fixed_order(tmp_path):
    names = ["x/c.txt.xz", "x/a.txt", "x/a\n.txt", "x/b/z.jsonl.gz", "x/b/y.txt.bz2", "x/b/x.jsonl",
             "one.txt.gz", "x/d.jsonl.bz2", "x/e.jsonl.xz", "x/notes.md", "x/f.csv.gz"]
    documents = make_documents(len(names) * 3)
    parts = {}
    for i, name in enumerate(names):
        parts[name] = documents[i * 3:i * 3 + 3]
        write_documents(tmp_path / name, parts[name])
    order = ["one.txt.gz", "x/a\n.txt", "x/a.txt", "x/b/x.jsonl", "x/b/y.txt.bz2", "x/b/z.jsonl.gz",
             "x/c.txt.xz", "x/d.jsonl.bz2", "x/e.jsonl.xz", "x/f.csv.gz"]
    files = corpus_files([str(tmp_path / "one.txt.gz"), str(tmp_path / "x")])
    assert files == [str(tmp_path / name) for name in order]
    expected = []
    for name in order:
        expected.extend(parts[name])
    found = []
    text = "\n".join(read_corpus(files))
    for document in text.split("\n\n"):
        lines = document.strip().split("\n")
        if lines != [""]:
            found.append(lines)
    assert found == expected


def test_the_bar_counts_the_bytes_on_the_disk(tmp_path, monkeypatch):
    """Of a packed file it counts the packed bytes, so that its total is known from the start."""
    bars = []

    class Bar(tqdm):
        def __init__(self, *args, **options):
            options["disable"] = False
            options["file"] = io.StringIO()
            super().__init__(*args, **options)
            bars.append(self)

    monkeypatch.setattr(data, "tqdm", Bar)
    for i, name in enumerate(["a.txt", "b.jsonl.gz", "c.txt.bz2", "d.txt.xz"]):
        write_documents(tmp_path / name, make_documents(40, seed=i))
    write_file(tmp_path / "empty.txt", "\n")
    files = corpus_files([str(tmp_path)])
    assert len(files) == 5
    list(read_corpus(files))
    num_bytes = sum(os.path.getsize(path) for path in files)
    assert bars[0].total == num_bytes
    assert bars[0].n == num_bytes


def test_bad_bytes_are_replaced_and_counted_exactly(tmp_path, capsys):
    content = b"one \xff\xfe two\nthree \xc3( four \xed\xa0\x80 five\nsix\x00seven\n"
    content += "é 中 \ufffd 🙂\n".encode()                # these are good
    path = write_file(tmp_path / "a.txt", content)
    assert list(read_corpus([path])) == [
        "one \ufffd\ufffd two", "three \ufffd( four \ufffd\ufffd\ufffd five", "six\ufffdseven",
        "é 中 \ufffd 🙂", ""]
    assert capsys.readouterr().err == f"{path}: replaced 7 NULs or bytes that are not UTF-8\n"


@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.jsonl", "x.txt.gz"])
def test_a_corpus_that_git_lfs_has_not_downloaded_is_refused(name, tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"
    path = write_file(tmp_path / name, pointer)
    with pytest.raises(ValueError, match=f"^{path}: .*git lfs pull downloads it$"):
        list(read_corpus([path]))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_a_corpus_in_another_encoding_is_refused(encoding, tmp_path):
    text = "schöne Grüße aus Köln\n" * 200
    path = write_file(tmp_path / "a.txt", text.encode(encoding))
    message = f"^{path}: not UTF-8: of [0-9,]+ characters [0-9,]+ are "
    if encoding in ("utf-16", "utf-32"):                 # these begin with a mark
        message = f"^{path}: not UTF-8, but UTF-16 or UTF-32; iconv "
    with pytest.raises(ValueError, match=message):
        list(read_corpus([path]))


@pytest.mark.parametrize("name, content", [("a.jsonl", '{"text": "one"}\n'),
                                           ("a.csv", "text\na\n")])
def test_a_table_in_utf_16_is_refused_for_its_encoding(tmp_path, name, content):
    path = write_file(tmp_path / name, content.encode("utf-16"))
    with pytest.raises(ValueError, match=f"^{path}: not UTF-8, but UTF-16 or UTF-32; iconv "):
        list(read_corpus([path]))


def test_many_small_files_in_another_encoding_are_refused_together(tmp_path, capsys):
    """Each has only three bytes that are not UTF-8, which alone would be taken for damage."""
    expected_reports = []
    for number in range(20):
        content = f"grüne Grüße {number}\n".encode("latin-1")
        path = write_file(tmp_path / f"{number:02}.txt", content)
        expected_reports.append(f"{path}: replaced 3 NULs or bytes that are not UTF-8")
    files = corpus_files([str(tmp_path)])
    message = f"^{tmp_path}/19.txt and the files before it: not UTF-8: of [0-9]+ characters 60 "
    with pytest.raises(ValueError, match=message):
        list(read_corpus(files))
    assert capsys.readouterr().err.splitlines() == expected_reports


@pytest.mark.parametrize("name_of_clean_file", ["a.txt", "z.txt"])
def test_a_large_clean_file_makes_up_for_small_damaged_ones_in_any_order(
        name_of_clean_file, tmp_path, capsys):
    for name in ("k.txt", "l.txt"):
        write_file(tmp_path / name, b"damaged \xff\xff\xff\xff\xff\xff\n")
    write_file(tmp_path / name_of_clean_file, "a clean line\n" * 2000)
    files = corpus_files([str(tmp_path)])
    lines = list(read_corpus(files))
    assert len(lines) == 2 + 2000 + 3                    # an empty line follows each file


@pytest.mark.parametrize("packed", PACK)
def test_an_empty_packed_file_is_damaged(packed, tmp_path):
    """Even nothing, if it is packed, has a header."""
    write_file(tmp_path / f"a.txt{packed}", b"")
    write_file(tmp_path / "b.txt", b"text\n")
    files = corpus_files([str(tmp_path)])
    with pytest.raises(ValueError, match=f"a.txt{packed}: not a whole, undamaged file"):
        list(read_corpus(files))


@pytest.mark.parametrize("num_clean, is_refused", [(10_978, True), (10_989, False)])
def test_one_bad_byte_in_a_thousand_is_damage_and_more_are_another_encoding(
        num_clean, is_refused, tmp_path, capsys):
    content = b"x" * (num_clean - 1) + b"\n" + b"\xff" * 11
    path = write_file(tmp_path / "a.txt", content)
    if is_refused:
        num_characters = num_clean + 11
        message = f"not UTF-8: of {num_characters:,} characters 11 "
        with pytest.raises(ValueError, match=message):
            list(read_corpus([path]))
    else:
        list(read_corpus([path]))
        assert "replaced 11 NULs" in capsys.readouterr().err


@pytest.mark.parametrize("num_nuls, is_refused", [(10, False), (11, True)])
def test_more_than_ten_nuls_in_a_short_text_are_another_encoding(num_nuls, is_refused, tmp_path):
    path = write_file(tmp_path / "a.txt", "\0" * num_nuls + "plain text\n")
    if is_refused:
        with pytest.raises(ValueError, match="not UTF-8: of 22 characters 11 are NULs"):
            list(read_corpus([path]))
    else:
        assert list(read_corpus([path])) == ["\ufffd" * 10 + "plain text", ""]


def test_half_characters_in_escapes_do_not_count_as_another_encoding(tmp_path, capsys):
    """The second half of an emoji that a program has cut off is such an escape."""
    row = json.dumps({"text": "cut \udc80 off \0"})
    path = write_file(tmp_path / "a.jsonl", f"{row}\n" * 50)
    assert lines_with_text([path]) == ["cut \ufffd off \ufffd"] * 50
    assert capsys.readouterr().err == ""


def test_bytes_of_another_encoding_beside_the_text_of_a_jsonl_do_no_harm(tmp_path):
    row = '{"text": "all of this can be read", "author": "Andr\xe9"}\n'
    path = write_file(tmp_path / "a.jsonl", (row * 50).encode("latin-1"))
    assert lines_with_text([path]) == ["all of this can be read"] * 50


def test_a_large_file_is_judged_where_a_million_characters_were_read(tmp_path):
    """All of its bad bytes stand at the beginning. At the end their share would be small enough."""
    bad_line = b"\xff" * 1500 + b"\n"
    good_line = b"x" * 9999 + b"\n"
    path = write_file(tmp_path / "a.txt", bad_line + good_line * 200)
    with pytest.raises(ValueError, match="not UTF-8: of 1,00.,... characters 1,500 are NULs or"):
        list(read_corpus([path]))


def test_byte_order_marks_line_ends_and_blanks_do_not_matter(tmp_path):
    plain = write_file(tmp_path / "a.txt", "one\ntwo\n\nthree\n")
    odd = write_file(tmp_path / "b.txt", "\ufeffone  \r\n\t two\r\n \t \r\nthree")
    for path in (plain, odd):
        assert list(read_corpus([path])) == ["one", "two", "", "three", ""]
    empty = write_file(tmp_path / "c.txt", "")
    assert list(read_corpus([empty])) == [""]


def test_a_warning_says_that_json_lines_in_a_txt_are_read_as_text(tmp_path, capsys):
    path = write_file(tmp_path / "a.txt", '{"text": "one"}\n')
    assert lines_with_text([path]) == ['{"text": "one"}']
    assert capsys.readouterr().err.startswith(f"warning: {path}: it begins as a .jsonl does, but ")
    other = write_file(tmp_path / "b.txt", '{one}\n{"text": "two"}\n')
    lines_with_text([other])
    assert "warning" not in capsys.readouterr().err


def test_what_wiki_extractor_writes_around_an_article_is_no_text(tmp_path):
    text = ('<doc id="12" url="https://en.wikipedia.org/wiki?curid=12" title="Anarchism">\n'
            'Anarchism\n<doc> is no </doc> of it.\n</doc>\n'
            '<doc id="25" url="https://en.wikipedia.org/wiki?curid=25" title="Autism">\r\n'
            'Autism\r\n</doc>')
    path = write_file(tmp_path / "a.txt", text)
    lines = list(read_corpus([path]))
    assert lines == ["", "Anarchism", "<doc> is no </doc> of it.", "", "", "Autism", "", ""]


def test_lines_of_jsonl_may_hold_what_json_may(tmp_path):
    """There may be escapes, line ends in a text, other fields and empty lines."""
    rows = [r'{"text": "a\u0000b \ud800 c \ud83d\ude42\r\n\n  d  "}', "", "  ", '{"text": ""}',
            '{"other": {"text": 1}, "text": "e\tf"}', r'{"text": "g\rh"}']
    path = write_file(tmp_path / "a.jsonl", "\ufeff" + "\n".join(rows))
    found = list(read_corpus([path]))
    assert found[:3] == ["a\ufffdb \ufffd c 🙂", "d", ""]
    assert [line for line in found[3:] if line] == ["e\tf", "g", "h"]
    assert found[-1] == ""


@pytest.mark.parametrize("line, message", [
    ("[1, 2]", "it is a list"),
    ('{"title": "x", "id": 1}',
     "it has no 'text' among its fields 'title', 'id'; --text names the field"),
    ('{"text": 3}', "'text' is 3, which is no text"),
    ('{"text": x}', "Expecting value, at character 10"),
    ('  {"text": "x"', "Expecting ',' delimiter, at character 16"),
    ("[" * 100_000, "RecursionError: .*")])
def test_it_is_said_what_a_line_of_jsonl_is_instead_of_a_document(line, message, tmp_path):
    good = '{"text": "good"}'
    path = write_file(tmp_path / "a.jsonl", f"{good}\n\n{line}\n{good}\n")
    expected = rf"a\.jsonl:3: not a JSON object with a text 'text': {message}$"
    with pytest.raises(ValueError, match=expected):
        list(read_corpus([path]))


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_line_of_any_length_is_read_in_constant_memory(packed, tmp_path):
    path = tmp_path / f"a.txt{packed}"
    opener = OPEN.get(packed, open)
    with opener(path, "wb") as file:
        for _ in range(30):
            file.write(b"word " * 200_000)               # 30 MB without the end of a line
    tracemalloc.start()
    num_words = 0
    for line in read_corpus([str(path)]):
        num_words += line.count("w")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_words == 6_000_000
    assert peak < 10e6                                   # bytes


def damaged_copy(content, damage):
    """Return the bytes of an archive after a kind of damage."""
    middle = len(content) // 2
    before = content[:middle]
    if damage == "cut":
        return before
    if damage == "flipped":
        return before + bytes([content[middle] ^ 255]) + content[middle + 1:]
    if damage == "overwritten":
        return before + b"\xff" * 99 + content[middle + 99:]
    assert damage == "other"
    return b"no archive at all"


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz"])
@pytest.mark.parametrize("damage", ["cut", "other", "flipped", "overwritten"])
def test_a_damaged_archive_is_named_and_leaves_no_tokens(packed, damage, tokenizer, tmp_path):
    path = tmp_path / f"a.txt{packed}"
    write_documents(path, make_documents(2000))
    write_file(path, damaged_copy(path.read_bytes(), damage))
    with pytest.raises(ValueError, match=path.name):
        tokenise([str(path)], tokenizer, str(tmp_path / "out.bin"))
    with pytest.raises(ValueError, match=path.name):
        train_tokenizer([str(path)], 120, str(tmp_path / "tok"))
    assert sorted(os.listdir(tmp_path)) == [path.name, "tok"]


def test_a_damaged_table_is_named_once(tmp_path):
    packed = gzip.compress(b"text\n" + b"the cat sat on a mat\n" * 999)
    path = write_file(tmp_path / "a.csv.gz", packed[:-9])
    with pytest.raises(ValueError, match=r"a\.csv\.gz: not a whole, undamaged file: ") as error:
        list(read_corpus([path]))
    message = str(error.value)
    assert message.count("a.csv.gz") == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_document_of_jsonl_or_csv_longer_than_a_chunk_comes_in_pieces(
        name, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 10)
    long_document = ["a" * 35, "b" * 10, "c" * 11]
    path = write_documents(tmp_path / name, [long_document, ["d"]])
    assert list(read_corpus([path])) == [
        "a" * 10, "a" * 10, "a" * 10, "a" * 5, "b" * 10, "c" * 10, "c", "", "d", "", ""]


def test_a_line_of_exactly_a_chunk_does_not_end_its_document(tmp_path, monkeypatch):
    """The end of such a line, read alone, looks like an empty line."""
    monkeypatch.setattr(data, "CHUNK", 10)
    one_chunk = "a" * 10
    two_chunks = "b" * 20
    another_chunk = "d" * 10
    path = write_file(tmp_path / "a.txt", f"{one_chunk}\n{two_chunks}\nc\n\n{another_chunk}\n\ne")
    found = list(read_corpus([path]))
    assert found == [one_chunk, "b" * 10, "b" * 10, "c", "", another_chunk, "", "e", ""]


def test_white_space_after_a_long_line_does_not_end_its_document(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 10)
    one_chunk = "a" * 10
    text = f"{one_chunk}  \nb"
    plain = write_file(tmp_path / "a.txt", f"{text}\n \nc\n")
    assert list(read_corpus([plain])) == [one_chunk, "b", "", "c", ""]
    rows = write_file(tmp_path / "a.jsonl", json.dumps({"text": text}))
    assert list(read_corpus([rows])) == [one_chunk, "b", "", ""]


def test_a_cell_of_csv_that_is_too_long_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LONGEST_CELL", 1000)
    longest_text = "a" * 1000
    path = write_file(tmp_path / "a.csv", f"text,id\n{longest_text},b\n")
    assert list(read_corpus([path])) == [longest_text, "", ""]
    line = "a" * 600                                     # two lines are too long for one cell
    path = write_file(tmp_path / "a.csv", f'text\n"{line}\n{line}"\n')
    with pytest.raises(ValueError, match="a.csv:3: .*limit"):
        list(read_corpus([path]))


@pytest.mark.parametrize("name, text", [
    ("a.jsonl", '{"text": "no", "body": "one\\ntwo"}\n\n{"body": "three, four"}\n'),
    ("a.csv", '\ufefftext,body\r\nno,"one\ntwo"\r\n\r\nno,"three, four"\r\n')])
def test_the_column_of_the_text_can_be_chosen(name, text, tmp_path, tokenizer):
    corpus = [write_file(tmp_path / name, text)]
    lines = list(read_corpus(corpus_files(corpus), "body"))
    assert lines[:5] == ["one", "two", "", "three, four", ""]
    assert set(lines[5:]) <= {""}
    learned = train_tokenizer(corpus, 100, str(tmp_path / "tok"), text_column="body")
    assert "w" in learned.backend.get_vocab()            # it is in "two" and not in "no"
    made = open_corpus(corpus, tokenizer, str(tmp_path), text_column="body")
    assert made.made_from["text"] == "body"
    train, valid = naive_tokens([["one", "two"], ["three, four"]], tokenizer)
    found = made.train_tokens.tolist() + made.valid_tokens.tolist()
    assert sorted(found) == sorted(train + valid)


@pytest.mark.parametrize("text, message", [
    ("id,body\n1,x\n", ": 0 of its columns have the name 'text', not one, in .'id', 'body'.; "),
    ("id;text\n1;x\n", "--text names the column, and commas separate the columns$"),
    ("", ": 0 of its columns have the name 'text'"),
    ("\n\n", ": 0 of its columns have the name 'text'"),
    ("text,text\nx,y\n", ": 2 of its columns have the name 'text'"),
    ("id,text\n1,x\n2,y,z\n", ":3: 3 columns, not 2; a text with a comma in it needs quotes$"),
    ("id,text\n1,x\n2\n", ":3: 1 columns, not 2; "),
    ('id,text\n1,a\n2,"x\ny\n', ":4: unexpected end.*; the row begins in line 3$"),
    ('id,text\n1,"x"y\n', ":2: ',' expected after '\"'; the row begins in line 2$"),
    # As two rows these would be the texts "one" and "a label"; "two" would be lost.
    ("id,text,label\n1,one\rtwo,a label\n", ":2: a carriage return has neither .*; the row ")])
def test_a_csv_that_will_not_do_is_named(text, message, tmp_path):
    with pytest.raises(ValueError, match=rf"a\.csv.*{message}"):
        list(read_corpus([write_file(tmp_path / "a.csv", text)]))


@pytest.mark.parametrize("packed", PACK)
def test_a_file_of_several_compressed_streams_is_read_to_its_end(packed, tmp_path):
    """Wikipedia's dumps have many streams."""
    texts = [b"one\ntw", b"", b"o\n" + b"three " * 30_000 + b"\n", b"\nfour"]
    compress = PACK[packed]
    content = b"".join(compress(text) for text in texts)
    path = write_file(tmp_path / f"a.txt{packed}", content)
    long_line = ("three " * 30_000).strip()
    assert list(read_corpus([path])) == ["one", "two", long_line, "", "four", ""]


def test_a_name_of_a_column_must_be_utf_8(tokenizer, tmp_path):
    corpus = [write_file(tmp_path / "a.csv", b"caf\xe9\nb\n")]
    with pytest.raises(ValueError, match=r"^'caf.udce9': not a name in UTF-8"):
        tokenise(corpus, tokenizer, str(tmp_path / "a.bin"), "caf\udce9")
    assert os.listdir(tmp_path) == ["a.csv"]


def test_what_is_skipped_in_a_folder_is_counted_once(tokenizer, tmp_path, capsys):
    folder = tmp_path / "c"
    path = write_documents(folder / "a.txt", make_documents(200))
    write_file(folder / "notes.md", "text")
    (folder / "sub").mkdir()
    os.mkfifo(folder / "sub" / "pipe.txt")               # nobody writes into it
    os.symlink("/dev/zero", folder / "sub" / "zero.txt")
    os.symlink(tmp_path, folder / "linked")              # a loop; it is not entered
    assert corpus_files([str(folder)]) == [path]
    warning = capsys.readouterr().err
    assert f"{folder}: skipped files and folders: 4; they are not .txt, .jsonl or " in warning
    assert "or links to folders" in warning
    tokenise([str(folder)], tokenizer, str(tmp_path / "a.bin"))
    assert capsys.readouterr().err.count("skipped files and") == 1


def test_hidden_files_and_folders_in_a_folder_are_skipped(tmp_path, capsys):
    folder = tmp_path / ".corpus"
    for name in ("a.txt", ".b.txt", ".ipynb_checkpoints/a-checkpoint.txt", "sub/.git/c.txt"):
        write_documents(folder / name, make_documents(1))
    assert corpus_files([str(folder)]) == [str(folder / "a.txt")]
    assert "skipped files and folders: 3; " in capsys.readouterr().err
    # What the user names is read: this hidden file, and the hidden folder above.
    hidden_file = str(folder / ".b.txt")
    assert corpus_files([hidden_file]) == [hidden_file]


def test_the_case_of_an_ending_does_not_matter(tmp_path):
    write_file(tmp_path / "A.TXT", "one\n")
    write_file(tmp_path / "B.Csv.GZ", gzip.compress(b"body\ntwo\n"))
    files = corpus_files([str(tmp_path)])
    assert lines_with_text(files, "body") == ["one", "two"]
    path = write_file(tmp_path / "C.Txt", "three\n")
    with pytest.raises(ValueError, match="^--text body: .*C.Txt: a .txt has no columns"):
        list(read_corpus([path], "body"))


def test_documents_without_a_text_are_skipped(tmp_path):
    rows = ['{"text": "one"}', '{"text": null}', '{"text": " "}', "", '{"text": "two"}']
    paths = [write_file(tmp_path / "a.jsonl", "\n".join(rows)),
             write_file(tmp_path / "b.csv", "id,text\n1,three\n2,\n3,four\n"),
             write_file(tmp_path / "c.txt", "five\n\n\n\nsix\n"),
             write_file(tmp_path / "d.jsonl", '{"text": "seven"}')]
    found = lines_with_text(paths)
    assert found == ["one", "two", "three", "four", "five", "six", "seven"]


def test_the_name_of_a_file_cannot_write_to_the_terminal(tmp_path, capsys):
    """A name may hold the codes by which a terminal changes its colours, or worse."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_file(folder / "\x1b[31mred\nname.txt", "one\0two\n")
    write_file(folder / "x.pdf", "")
    files = corpus_files([str(folder)])
    assert lines_with_text(files) == ["one\ufffdtwo"]
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert error.count("\n") == 2                        # a line about each of the two files
    assert r"\x1b[31mred\nname.txt: replaced 1 NULs" in error


def test_a_pipe_alone_is_refused(tmp_path):
    path = str(tmp_path / "pipe.txt")
    os.mkfifo(path)
    with pytest.raises(ValueError, match="pipe.txt: not a regular file .* a .json with an"):
        corpus_files([path])


def test_a_subfolder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    write_documents(tmp_path / "a.txt", make_documents(1))
    write_documents(tmp_path / "locked" / "b.txt", make_documents(1))
    original_scandir = os.scandir

    def scandir_of_a_user(path):                         # root may read what has the mode 000
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", path)
        return original_scandir(path)

    monkeypatch.setattr(os, "scandir", scandir_of_a_user)
    with pytest.raises(PermissionError, match="locked"):
        corpus_files([str(tmp_path)])


def test_a_corpus_whose_name_is_not_utf8_is_refused_before_it_is_read(tokenizer, tmp_path):
    """The .json of a token file, which names its corpus, is in UTF-8."""
    folder = os.path.join(str(tmp_path), os.fsdecode(b"c\xff"))
    os.mkdir(folder)
    path = write_documents(tmp_path / "a.txt", make_documents(200))
    shutil.copy(path, folder)
    with pytest.raises(ValueError, match="not a name in UTF-8"):
        tokenise([folder], tokenizer, str(tmp_path / "a.bin"))
    assert not (tmp_path / "a.bin").exists()


def test_white_space_at_the_beginning_of_a_long_line_ends_no_document(monkeypatch):
    """The first piece of the line with b is blank, but the line is not."""
    monkeypatch.setattr(data, "CHUNK", 3)
    text = io.StringIO("a\n     b\n\n   \nc\n  \n")
    lines = list(data.lines_of_text("c.txt", text))
    assert lines == ["a\n", "  b", "\n", "c\n", "  \n"]


def test_a_row_of_a_csv_may_end_after_its_text(tmp_path):
    path = write_file(tmp_path / "a.csv", "text,id\nx,1\ny\n")
    assert lines_with_text([path]) == ["x", "y"]


def test_a_csv_may_begin_with_empty_lines(tmp_path):
    path = write_file(tmp_path / "a.csv", "\n\r\nid,text\n1,x\n\n2,y\n")
    assert lines_with_text([path]) == ["x", "y"]


# ---- Token files ------------------------------------------------------------------------

@pytest.mark.parametrize("num_lines", [1, 30, 10**6])
def test_the_token_file_is_what_a_naive_loop_makes(num_lines, tokenizer, tmp_path, monkeypatch):
    """It is made in chunks, here of so many lines."""
    def chunks_of_lines(marked_lines):
        marked_lines = list(marked_lines)
        for begin in range(0, len(marked_lines), num_lines):
            yield marked_lines[begin:begin + num_lines]

    monkeypatch.setattr(data, "chunks_of_lines", chunks_of_lines)
    dropped = ["\x7f\x7f only what is dropped", "\x7f"]
    documents = make_documents(400) + [dropped]
    write_documents(tmp_path / "c" / "a.txt.gz", documents[:150])
    write_documents(tmp_path / "c" / "b.jsonl", documents[150:])
    made = tokenise([str(tmp_path / "c")], tokenizer, str(tmp_path / "a.bin"))
    assert_tokens_of(made, documents, tokenizer)
    assert len(made.valid_tokens) > 20
    assert made.train_tokens.dtype == np.uint16
    assert made.valid_tokens.dtype == np.uint16
    num_tokens = len(made.train_tokens) + len(made.valid_tokens)
    assert os.path.getsize(made.path) == 2 * num_tokens


def test_a_chunk_ends_with_the_line_that_makes_it_too_large(monkeypatch):
    """The end of a line counts as one character, so that empty lines count, too."""
    monkeypatch.setattr(data, "CHUNK", 4)
    lines = [("ab", True), ("", True), ("a", False), ("abcdef", False), ("b", False)]
    chunks = list(data.chunks_of_lines(lines))
    assert chunks == [lines[:3], lines[3:4], lines[4:]]


@pytest.mark.parametrize("size, dtype", [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_large_vocabularies_get_wider_numbers(size, dtype, tmp_path):
    num_words = size - len(SPECIAL_TOKENS)
    words = SPECIAL_TOKENS.copy()
    for i in range(num_words):
        words.append(f"w{i}")
    wide = Tokenizer(vocab_folder(tmp_path / "tok", words))
    assert wide.vocab_size == size
    last_word = words[-1]
    corpus = [write_file(tmp_path / "a.txt", f"{last_word} w0 {last_word}\n" * 30)]
    made = tokenise(corpus, wide, str(tmp_path / "a.bin"))
    assert made.train_tokens.dtype == dtype
    assert made.valid_tokens.dtype == dtype
    assert made.train_tokens[:3].tolist() == [size - 1, 5, size - 1]
    read_again = TokenFile(made.path)
    assert read_again.valid_tokens.tolist() == made.valid_tokens.tolist()


def test_a_token_file_is_made_once_and_made_anew_when_it_is_stale(
        tokenizer, tmp_path, monkeypatch, capsys):
    """It is stale if a file of the corpus has another size or time, if there is one more, if the
    tokenizer is another one, or if another share is held out."""
    source = tmp_path / "c" / "a.txt"
    other = tmp_path / "c" / "b.txt"
    documents = make_documents(60)
    write_documents(source, documents)
    out = str(tmp_path / "sub" / "a.bin")

    def is_made_anew(tokenizer=tokenizer):
        """Tokenise and tell whether a new file was written."""
        inode_before = None
        if os.path.exists(out):
            inode_before = os.stat(out).st_ino
        made = tokenise([str(tmp_path / "c")], tokenizer, out)
        assert TokenFile(out).made_from == made.made_from
        is_new = os.stat(out).st_ino != inode_before
        is_replaced = is_new and inode_before is not None
        message = capsys.readouterr().err
        assert ("it is made anew" in message) == is_replaced
        return is_new

    assert is_made_anew()
    assert not is_made_anew()
    write_documents(source, documents + [["more"]])
    assert is_made_anew()
    assert not is_made_anew()
    write_documents(other, make_documents(9, seed=1))
    assert is_made_anew()
    assert not is_made_anew()
    # A file that is as large as before, but newer.
    before = os.stat(other)
    write_file(other, other.read_bytes().replace(b"cat", b"dog"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns + 1000))
    assert is_made_anew()
    assert not is_made_anew()
    # A file that is as old as before, but smaller.
    before = os.stat(other)
    write_documents(other, make_documents(8, seed=1))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert is_made_anew()
    assert not is_made_anew()
    other_tokenizer = spelling_tokenizer(tmp_path / "tok", LETTERS)
    assert is_made_anew(other_tokenizer)
    assert not is_made_anew(other_tokenizer)
    monkeypatch.setattr(data, "HOLD_OUT_ONE_IN", 10)
    assert is_made_anew(other_tokenizer)
    assert not is_made_anew(other_tokenizer)
    assert sorted(os.listdir(tmp_path / "sub")) == ["a.bin", "a.bin.json"]


def held_out_documents(token_file, tokenizer):
    """List the token numbers of each document that is held out; the last one of each is [SEP]."""
    ends = np.flatnonzero(token_file.valid_tokens == tokenizer.sep_id) + 1
    *documents, rest = np.split(token_file.valid_tokens, ends)
    assert len(rest) == 0
    return [document.tolist() for document in documents]


@pytest.mark.parametrize("has_terminal", [False, True])
def test_only_without_a_terminal_tokenising_prints_a_line_a_minute(
        has_terminal, tokenizer, tmp_path, monkeypatch, capsys):
    """Here the clock goes on by half a minute whenever it is looked at."""
    clock = itertools.count(0, 30)
    monkeypatch.setattr(data, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(data, "CHUNK", 0)                # so each line is a chunk
    monkeypatch.setattr(data, "is_held_out", lambda text, one_in: text == "city")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: has_terminal)
    with open(tmp_path / "tokens", "wb") as file:
        counts = data.write_tokens(file, ["good", "", "city", ""], tokenizer, np.uint16)
    num_tokens = counts.num_train + counts.num_valid
    expected = f"{counts.num_train} tokens so far\n{num_tokens} tokens so far\n"
    if has_terminal:
        expected = ""
    assert counts.num_valid > 0
    assert capsys.readouterr().err == expected


def test_only_the_beginning_of_a_document_decides_if_it_is_held_out(monkeypatch):
    """The beginning may end in the middle of a line."""
    deciding = []
    monkeypatch.setattr(data, "is_held_out", lambda text, one_in: deciding.append(text))
    list(data.mark_held_out(["x" * 9_999, "yz", ""]))
    assert deciding == ["x" * 9_999 + "y"]


def test_what_is_held_out_does_not_depend_on_the_order_of_the_documents(tokenizer, tmp_path):
    documents = make_documents(3000)
    held_out = []
    for name in ("first", "second"):
        write_documents(tmp_path / name / "1.txt", documents[:999])
        write_documents(tmp_path / name / "2.jsonl", documents[999:])
        made = tokenise([str(tmp_path / name)], tokenizer, str(tmp_path / f"{name}.bin"))
        held_out.append(held_out_documents(made, tokenizer))
        documents.reverse()
    first, second = held_out
    assert sorted(first) == sorted(second)
    assert first != second
    assert 35 <= len(first) <= 90                        # 60 are expected


def test_each_line_of_a_document_comes_once_and_has_its_mark(monkeypatch):
    """Here documents that begin with "out" are held out. Twenty characters decide it, or the end of
    the document. Empty lines before a document are left out."""
    def is_held_out(text, one_in):
        return text.startswith("out")

    monkeypatch.setattr(data, "DECIDING_CHARACTERS", 20)
    monkeypatch.setattr(data, "is_held_out", is_held_out)
    lines = ["", "out", "", "", "in 345678", "in 345678", "in 345678", "in 345678", "",
             "out 456789", "out 456789", "in", ""]
    assert list(data.mark_held_out(lines)) == [
        ("out", True), ("", True),
        ("in 345678", False), ("in 345678", False), ("in 345678", False), ("in 345678", False),
        ("", False),
        ("out 456789", True), ("out 456789", True), ("in", True), ("", True)]


@pytest.mark.parametrize("drawn", [False, True])
def test_tokens_are_held_out_where_documents_are_too_few(drawn, tokenizer, tmp_path, capsys):
    """One document would be on one side as a whole, so its last fiftieth is held out instead."""
    documents = [document_of([" ".join(WORDS)] * 20, drawn)]
    corpus = [write_documents(tmp_path / "a.txt", documents)]
    made = tokenise(corpus, tokenizer, str(tmp_path / "a.bin"))
    train, valid = naive_tokens(documents, tokenizer)
    all_tokens = train + valid                           # one of the two is empty
    assert made.train_tokens.tolist() + made.valid_tokens.tolist() == all_tokens
    num_held_out = len(all_tokens) // 50
    assert num_held_out > 0
    assert len(made.valid_tokens) == num_held_out
    assert f"last {num_held_out} tokens" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "\n\n \n", "\ufeff", "\0" * 9, "\0\n\n\0\0\n"])
def test_a_corpus_without_text_is_an_error_and_leaves_no_tokens(text, tokenizer, tmp_path):
    corpus = [write_file(tmp_path / "a.txt", text)]
    with pytest.raises(ValueError, match="no text"):
        tokenise(corpus, tokenizer, str(tmp_path / "a.bin"))
    with pytest.raises(ValueError, match="no text"):
        train_tokenizer(corpus, 100, str(tmp_path / "tok"))
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "tok"]
    assert os.listdir(tmp_path / "tok") == []


def test_unknown_text_in_any_part_of_a_corpus_counts(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 100)              # a chunk has about so many characters
    monkeypatch.setattr(data, "SAMPLE", 40)              # of the first chunk; 10 of each other one
    known = ["the"] * 30
    unknown = ["中"] * 100
    corpus = [write_documents(tmp_path / "a.txt", [known, unknown, unknown])]
    with pytest.raises(ValueError, match="become .UNK. with the tokenizer in"):
        tokenise(corpus, tokenizer, str(tmp_path / "a.bin"))


@pytest.mark.parametrize("num_long, is_refused", [(150, True), (40, False)])
def test_a_corpus_of_which_most_characters_are_unknown_is_an_error(
        num_long, is_refused, tokenizer, tmp_path):
    """A run of over 100 letters is one [UNK], so only a sixth of the tokens are [UNK]."""
    line = "the the the the the " + "t" * num_long
    corpus = [write_documents(tmp_path / "a.txt", [[line]] * 500)]
    out = str(tmp_path / "a.bin")
    if is_refused:
        with pytest.raises(ValueError, match=r"a\.txt: 91% of the characters become \[UNK\]"):
            tokenise(corpus, tokenizer, out)
        assert os.listdir(tmp_path) == ["a.txt"]
    else:
        tokenise(corpus, tokenizer, out)


@pytest.mark.parametrize("num_unknown, is_warned", [(9, False), (11, True)])
def test_a_corpus_of_which_over_a_tenth_is_unknown_has_a_warning(
        num_unknown, is_warned, tokenizer, tmp_path, capsys):
    line = "cat " * 30 + "中" * num_unknown               # 90 characters that are known
    corpus = [write_documents(tmp_path / "a.txt", [[line]] * 50)]
    tokenise(corpus, tokenizer, str(tmp_path / "a.bin"))
    error = capsys.readouterr().err
    assert ("a.txt: 11% of the characters become [UNK]" in error) is is_warned


@pytest.mark.parametrize("form, becomes_unknown", [("NFC", False), ("NFD", True)])
def test_accents_that_are_characters_of_their_own_are_named_as_a_cause_of_unknown_words(
        form, becomes_unknown, tmp_path):
    """A cased vocabulary has the letter with its accent, but often not the accent alone."""
    words = "Tiếng Việt được viết bằng chữ Quốc ngữ"
    write_file(tmp_path / "learn.txt", words)
    train_tokenizer(str(tmp_path / "learn.txt"), 100, str(tmp_path / "tok"), lowercase=False)
    tokenizer = Tokenizer(str(tmp_path / "tok"))
    corpus = write_file(tmp_path / "a.txt", unicodedata.normalize(form, words))
    if becomes_unknown:
        with pytest.raises(ValueError, match=r"characters of their own \(uconv -x nfc joins"):
            tokenise(corpus, tokenizer, str(tmp_path / "a.bin"))
    else:
        tokenise(corpus, tokenizer, str(tmp_path / "a.bin"))


def test_unknown_characters_are_counted_in_a_sample_of_the_lines(tokenizer):
    """They are counted -> (characters, unknown ones), without the spaces."""
    texts = ["the 中 cat", "the cat", "t" * 2000, ""]
    assert data.count_characters(texts, tokenizer) == (7 + 6 + 2000, 1 + 2000)
    assert data.count_characters([], tokenizer) == (0, 0)
    # The sample of 68 characters is ten lines of seven, because no line is cut.
    assert data.count_characters(["the cat"] * 500, tokenizer, 68) == (10 * 6, 0)
    # The sample does not stand at fixed places, so it has lines of all three kinds.
    lines = ["the 中 cat", "the cat", ""] * 500
    num_characters, num_unknown = data.count_characters(lines, tokenizer, 1000)
    assert 500 < num_characters < 1000
    assert 20 < num_unknown < 80
    # Nor is it the beginning of the text.
    _, num_unknown = data.count_characters(["the cat"] * 100 + ["中"] * 100, tokenizer, 200)
    assert num_unknown > 0


def test_no_other_disk_has_to_hold_the_tokens(tokenizer, tmp_path, monkeypatch):
    """The folder of temporary files may lie in memory."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    corpus = [write_documents(tmp_path / "a.txt", make_documents(20))]
    assert len(tokenise(corpus, tokenizer, str(tmp_path / "a.bin")).train_tokens) > 0


def test_a_token_file_may_be_named_by_a_path_of_pathlib(tmp_path, tokenizer):
    corpus = tmp_path / "one.txt"
    write_documents(corpus, make_documents(200))
    made = tokenise(corpus, tokenizer, tmp_path / "a.bin")
    assert made.path == str(tmp_path / "a.bin")


def test_tokens_of_another_corpus_are_replaced_only_with_overwrite(tmp_path, tokenizer, capsys):
    one = write_documents(tmp_path / "one.txt", make_documents(200))
    two = write_documents(tmp_path / "two.txt", make_documents(200, seed=1))
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
    first_file = TokenFile(out).made_from["corpus"][0]
    path, _, _ = first_file                              # its size and its time
    assert path == two


def test_a_learned_vocabulary_is_not_replaced_with_overwrite_either(tmp_path, capsys):
    corpus = write_documents(tmp_path / "a.txt", make_documents(200))
    out = str(tmp_path / "vocabulary")
    flags = ["--corpus", corpus, "--train-tokenizer", "100", "--out", out]
    assert main(flags) is None
    assert main(flags + ["--overwrite"]) == 2
    assert "has a vocab.txt already; choose another --out" in capsys.readouterr().err


def test_a_token_file_may_be_in_the_working_directory(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "a.txt", make_documents(200))
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


def test_old_tokens_are_removed_but_not_those_that_another_process_has_just_made(token_file):
    """If they are gone already, that is no error: another process has removed them first."""
    data.remove_old_tokens(token_file.path, token_file.made_from)
    assert os.path.exists(token_file.path)
    for _ in range(2):
        data.remove_old_tokens(token_file.path, {"corpus": []})
        assert not os.path.exists(token_file.path)


def test_two_processes_may_make_the_same_token_file_at_once(tokenizer, tmp_path, monkeypatch):
    """The other process has finished when this one writes its description, and is about to open its
    file, which must be there."""
    documents = make_documents(200)
    corpus = [write_documents(tmp_path / "a.txt", documents)]
    out = str(tmp_path / "a.bin")
    original_write_tokens = data.write_tokens
    original_write_json = data.write_json

    def write_tokens_while_another_process_does(*arguments):
        monkeypatch.setattr(data, "write_tokens", original_write_tokens)
        tokenise(corpus, tokenizer, out)                 # this is the other process
        monkeypatch.setattr(data, "write_json", write_json_and_look)
        return original_write_tokens(*arguments)

    def write_json_and_look(path, value, shared):
        assert os.path.exists(out)
        original_write_json(path, value, shared)

    monkeypatch.setattr(data, "write_tokens", write_tokens_while_another_process_does)
    made = tokenise(corpus, tokenizer, out)
    assert data.write_json is write_json_and_look
    assert_tokens_of(made, documents, tokenizer)
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.bin.json", "a.txt"]


def test_a_name_that_is_no_file_or_has_another_files_json_is_refused(tokenizer, tmp_path):
    corpus = [write_documents(tmp_path / "a.txt", make_documents(200))]
    with pytest.raises(ValueError, match="/new/': the name of a token file must end in .bin"):
        tokenise(corpus, tokenizer, f"{tmp_path}/new/")
    with pytest.raises(ValueError, match="/new': the name of a token file must end in .bin"):
        tokenise(corpus, tokenizer, f"{tmp_path}/new")
    out = str(tmp_path / "table.bin")
    description = tmp_path / "table.bin.json"
    write_file(description, '{"rows": []}')
    with pytest.raises(ValueError, match=r"table\.bin\.json exists and is not"):
        tokenise(corpus, tokenizer, out)
    assert description.read_text() == '{"rows": []}'
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "table.bin.json"]
    write_file(description, '{"made_from": {}}')                # what a kill may leave behind
    made = tokenise(corpus, tokenizer, out)
    assert len(made.train_tokens) > 0


def test_a_corpus_is_tokenised_once_for_each_tokenizer(tokenizer, tmp_path):
    cache = str(tmp_path / "cache")
    one = make_documents(200)
    two = one[:9]
    corpus = [write_documents(tmp_path / "a.txt", one), write_documents(tmp_path / "b.txt", two)]
    other_tokenizer = spelling_tokenizer(tmp_path / "tok", LETTERS + string.digits)
    first = open_corpus(corpus, tokenizer, cache)
    before = os.stat(first.path)
    second = open_corpus(corpus, other_tokenizer, cache)
    part = open_corpus(corpus[:1], tokenizer, cache)
    assert len({first.path, second.path, part.path}) == 3
    assert len(os.listdir(cache)) == 6                   # a .bin and a .json of each
    again = open_corpus(corpus, tokenizer, cache)
    assert again.path == first.path
    assert os.stat(first.path) == before
    assert_tokens_of(first, one + two, tokenizer)
    assert_tokens_of(second, one + two, other_tokenizer)
    assert_tokens_of(part, one, tokenizer)


def test_the_same_name_in_two_folders_is_two_corpora_and_a_column_another_one(
        tokenizer, tmp_path, monkeypatch, capsys):
    cache = str(tmp_path / "cache")
    paths = []
    for folder in ("one", "two"):
        absolute = write_documents(tmp_path / folder / "a.txt", make_documents(200))
        monkeypatch.chdir(tmp_path / folder)
        token_file = open_corpus(["a.txt"], tokenizer, cache)
        assert open_corpus([absolute], tokenizer, cache).path == token_file.path
        paths.append(token_file.path)
    row = json.dumps({"text": "a cat sat", "body": "a dog sat"})
    table = write_file(tmp_path / "rows.jsonl", f"{row}\n" * 200)
    for column in ("text", "body"):
        token_file = open_corpus([table], tokenizer, cache, column)
        paths.append(token_file.path)
    assert len(set(paths)) == 4
    assert "made anew" not in capsys.readouterr().err


def test_a_token_file_is_opened_as_it_is_if_its_tokenizer_is_the_same(
        token_file, tokenizer, tmp_path):
    cache = str(tmp_path / "cache")
    opened = open_corpus([token_file.path], tokenizer, cache)
    assert opened.path == token_file.path
    assert not os.path.exists(cache)
    other = Tokenizer(vocab_folder(tmp_path / "tok", SPECIAL_TOKENS + ["a"]))
    with pytest.raises(ValueError, match=r"a\.bin was made with another tokenizer than .*tok"):
        open_corpus([token_file.path], other, cache)
    with pytest.raises(ValueError, match=r"a\.bin; .*a\.txt: a token file .* must be the only"):
        open_corpus([token_file.path, str(tmp_path / "a.txt")], tokenizer, cache)
    description = read_json(f"{token_file.path}.json")
    description["made_from"] = {}                        # it does not say which tokenizer
    write_file(tmp_path / "a.bin.json", json.dumps(description))
    opened = open_corpus([token_file.path], other, cache)
    assert opened.path == token_file.path


REMOVED = object()                                       # the field is to be left out


@pytest.mark.parametrize("damage", [
    "", "no json", "[]", "3", "{}", '{"dtype": "uint16"}', "\xff", "[" * 100_000,
    {"dtype": "int8"}, {"dtype": ["uint16"]}, {"dtype": "uint32"}, {"train": "1"}, {"train": None},
    {"train": -1}, {"train": 1.0}, {"train": 10**30}, {"valid": 1}, {"valid": "x"},
    {"train": 10**6, "valid": 0}, {"made_from": REMOVED}, {"made_from": []}, {"made_from": None}])
def test_a_damaged_description_of_a_token_file_is_an_error(damage, token_file):
    content = damage                                     # the whole text, or changes of its fields
    if isinstance(damage, dict):
        facts = read_json(f"{token_file.path}.json")
        for name, value in damage.items():
            if value is REMOVED:
                del facts[name]
            else:
                facts[name] = value
        content = json.dumps(facts)
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


def test_a_token_file_is_recognised_by_what_is_in_it(token_file, tokenizer, tmp_path):
    content = Path(token_file.path).read_bytes()
    expected = hashlib.blake2b(content, digest_size=16).hexdigest()
    assert token_file.digest == expected
    description = read_json(f"{token_file.path}.json")
    assert description["digest"] == expected
    # A copy of the corpus that is elsewhere and newer gives the same digest, another text not.
    copy = [write_documents(tmp_path / "elsewhere" / "copy.jsonl", make_documents(300))]
    of_copy = tokenise(copy, tokenizer, str(tmp_path / "b.bin"))
    assert of_copy.digest == expected
    other = [write_documents(tmp_path / "other.txt", make_documents(300, seed=1))]
    of_other = tokenise(other, tokenizer, str(tmp_path / "c.bin"))
    assert of_other.digest != expected
    del description["digest"]                            # as an earlier version wrote it
    write_file(tmp_path / "a.bin.json", json.dumps(description))
    assert TokenFile(token_file.path).digest == expected


@pytest.mark.parametrize("size", [0, 1, 10, 25])
def test_the_hash_of_a_file_is_that_of_its_bytes(size, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 10)               # it is read in pieces of so many bytes
    content = random.Random(0).randbytes(size)
    path = write_file(tmp_path / "x", content)
    expected = hashlib.blake2b(content, digest_size=16).hexdigest()
    assert hash_file(path) == expected


@pytest.mark.parametrize("are_tokenised", [False, True])
def test_what_a_killed_run_left_in_the_cache_is_removed_by_the_next(
        are_tokenised, tokenizer, tmp_path):
    """It is also removed if another run has made the tokens in the meantime."""
    corpus = [write_documents(tmp_path / "a.txt", make_documents(200))]
    if are_tokenised:
        tokenise(corpus, tokenizer, str(tmp_path / "a.bin"))
    two_days_ago = time.time() - 2 * 24 * 60 * 60
    path = write_file(tmp_path / "a.bin.0a1b2c3d4e5f6071.tmp", "half of it")
    os.utime(path, (two_days_ago, two_days_ago))
    tokenise(corpus, tokenizer, str(tmp_path / "a.bin"))
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.bin.json", "a.txt"]


# ---- Tokenizers -------------------------------------------------------------------------

TRICKY = [
    "Ünïcode Éclair naïve café CAFÉ", "中文字符 mixed中with文latin",
    "don't stop-it! (really?) [x] {y}",
    "a\u0301 e\u0300 İstanbul ΣΊΣΥΦΟΣ straße",
    "tabs\tand\u00a0odd\u2003spaces\u200bzero \x07bell",
    "x" * 150, "[MASK] is special, [mask] is not, nor is [ MASK ]",
    "🙂 $5.00 3½ 100% «quoted» “too”", "", "   ", "UPPER lower MiXeD", "\ufffd\x00",
    "Zażółć gęślą jaźń ﬁ ﬂ"]


def tricky_words(cased):
    """List special tokens, all characters of TRICKY that BERT's normaliser may leave, with and
    without ##, and a few longer words. The smile is left out, so that it is [UNK]."""
    text = "".join(TRICKY)
    characters = set(text + text.lower() + "aeiouncszglz\u0301")
    words = SPECIAL_TOKENS.copy()
    for character in sorted(characters):
        is_visible = character.isprintable() and not character.isspace()
        has_right_case = cased or character == character.lower()
        if is_visible and has_right_case and character != "🙂":
            words.append(character)
            if character.isalnum() or character == "\u0301":
                words.append(f"##{character}")
    return words + ["stop", "cafe", "real", "##ly", "lower", "[unused1]"]


@pytest.mark.parametrize("cased", [False, True])
@pytest.mark.parametrize("config_says_it", [False, True])
@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
def test_the_ids_are_those_of_the_reference_tokenizers(cased, config_says_it, file, tmp_path):
    """The references are BERT's tokenizers in the packages tokenizers and transformers."""
    transformers = pytest.importorskip("transformers", reason="the oracle")
    config = None
    if config_says_it:
        config = {"do_lower_case": not cased}
    folder = vocab_folder(tmp_path / "v", tricky_words(cased), config)
    vocab = os.path.join(folder, "vocab.txt")
    reference = tokenizers.BertWordPieceTokenizer(vocab, lowercase=not cased)
    if file == "tokenizer.json":
        os.remove(vocab)
        # Such a file may ask for padding and truncation, but ours must do neither.
        reference.enable_padding(length=40)
        reference.enable_truncation(5)
        reference.save(os.path.join(folder, file))
        reference.no_padding()
        reference.no_truncation()
    ours = Tokenizer(folder)
    found = ours.encode(TRICKY)
    for text, ids in zip(TRICKY, found, strict=True):
        assert ids == reference.encode(text, add_special_tokens=False).ids, text
    other_reference = transformers.BertTokenizerFast.from_pretrained(
        folder, do_lower_case=not cased)
    assert found == other_reference(TRICKY, add_special_tokens=False)["input_ids"]
    lower, mixed = ours.encode(["upper lower mixed", "UPPER lower MiXeD"])
    assert (lower != mixed) == cased
    assert ours.encode(["🙂"]) == [[ours.unk_id]]
    assert sum(len(ids) for ids in found) > 180          # few other words are [UNK] as a whole


def lowercases(tokenizer):
    """Tell whether a tokenizer makes small letters of capitals."""
    normalised = tokenizer.backend.normalizer.normalize_str("AB")
    assert normalised in ("ab", "AB")
    return normalised == "ab"


@pytest.mark.parametrize("words, config, lower", [
    (["a", "b"], None, True),
    (["a", "B"], None, False),
    (["a", "##Bc"], None, False),
    (["a", "[unused1]", "[END]"], None, True),
    (["a", "[B", "c"], None, False),
    (["a", "É"], None, False),
    (["мир", "Мир"], None, False),
    ([*"abcdefghijklmnopqr", "é"], None, True),
    ([*"abcdefghijklmnopqr", "<T>", "中"], None, True),
    ([*"abcdefghijklmnopqr", "<T>", "<S>"], None, False),
    (["a", "B"], {"do_lower_case": True}, True),
    (["a", "b"], {"do_lower_case": False}, False),
    (["a", "B"], {"model_max_length": 512}, False),
    (["a", "B"], {"do_lower_case": None}, False),
])
def test_a_vocabulary_with_capitals_is_cased_unless_told_otherwise(words, config, lower, tmp_path):
    """A single one of 20 tokens does not count, and none in brackets, as in [END]."""
    folder = vocab_folder(tmp_path, SPECIAL_TOKENS + words, config)
    assert lowercases(Tokenizer(folder)) == lower


def test_line_ends_and_odd_words_in_a_vocabulary_do_not_shift_the_numbers(tmp_path):
    """Python's splitlines() would divide some of these words, and strip() would empty others."""
    words = SPECIAL_TOKENS + ["a\u2028b", "\x85", "\u00a0", "last"]
    text = "\n".join(words)
    with_line_end = text + "\n"
    of_windows = with_line_end.replace("\n", "\r\n")
    with_byte_order_mark = "\ufeff" + text
    for variant in (text, with_line_end, of_windows, with_byte_order_mark):
        write_file(tmp_path / "vocab.txt", variant)
        found = Tokenizer(str(tmp_path))
        assert found.vocab_size == len(words)
        assert found.backend.token_to_id("last") == len(words) - 1
        special_ids = [found.pad_id, found.unk_id, found.cls_id, found.sep_id, found.mask_id]
        assert special_ids == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("words, lowercase", [(["a", "B"], False), (["a", "b"], True)])
def test_a_saved_vocabulary_says_whether_it_is_cased(words, lowercase, tmp_path):
    """transformers would lower-case where nothing says so."""
    tokenizer = Tokenizer(vocab_folder(tmp_path / "v", SPECIAL_TOKENS + words))
    tokenizer.save(tmp_path / "out")
    config = read_json(tmp_path / "out" / "tokenizer_config.json")
    assert config == {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}
    assert Tokenizer(tmp_path / "out").digest == tokenizer.digest


@pytest.mark.parametrize("config, lowercase", [
    ({"model_max_length": 9}, False), ({"do_lower_case": None}, False),
    ({"do_lower_case": True, "x": 1}, True)])
def test_a_saved_config_says_whether_it_is_cased(config, lowercase, tmp_path):
    tokenizer = Tokenizer(vocab_folder(tmp_path / "v", SPECIAL_TOKENS + ["a", "B"], config))
    tokenizer.save(tmp_path / "out")
    expected = config.copy()
    expected["do_lower_case"] = lowercase
    assert read_json(tmp_path / "out" / "tokenizer_config.json") == expected
    assert Tokenizer(tmp_path / "out").digest == tokenizer.digest
    # The folder that was read stays as it was.
    assert read_json(tmp_path / "v" / "tokenizer_config.json") == config


@pytest.mark.parametrize("text, message", [
    (b"", "PAD"),
    (b"\n", "PAD"),
    (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n", r"no \[MASK\], which .* XLM-R"),
    (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\na\n\n\n", "stand in several: 'a'; ''[.]"),
    (b"[PAD]\n\xff\n", "utf-8"),
])
def test_a_vocabulary_that_will_not_do_is_named(text, message, tmp_path):
    write_file(tmp_path / "vocab.txt", text)
    with pytest.raises(ValueError, match=r"vocab\.txt: .*" + message):
        Tokenizer(str(tmp_path))


@pytest.mark.parametrize("text", [
    "", "no json", "[]", "3", '{"do_lower_case": "no"}', '{"do_lower_case": 1}',
    '{"strip_accents": 3}', '{"strip_accents": 1}', "[" * 100_000, b"\xff"])
def test_a_tokenizer_config_that_will_not_do_is_named(text, tmp_path):
    vocab_folder(tmp_path, SPECIAL_TOKENS + ["a"])
    write_file(tmp_path / "tokenizer_config.json", text)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: "):
        Tokenizer(str(tmp_path))


@pytest.mark.parametrize("text", [
    b"", b"no json", b"{}", b"\xff", b"[]", b'{"model": {"type": "Odd"}}'])
def test_a_tokenizer_json_that_will_not_do_is_named(text, tmp_path):
    write_file(tmp_path / "tokenizer.json", text)
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer: [^\n]+$"):
        Tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_a_tokenizer_that_git_lfs_has_not_downloaded_is_named(name, tmp_path):
    write_file(tmp_path / name, b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    with pytest.raises(ValueError, match=f"{name}: .*git lfs pull downloads it$"):
        Tokenizer(str(tmp_path))


def numbered(words):
    """Return {word: its place in the list}."""
    return {word: i for i, word in enumerate(words)}


def save_bpe(folder, special_tokens, **options):
    """Write a tokenizer.json of another kind than BERT's, byte pair encoding -> its backend."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(**options))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=60, special_tokens=special_tokens,
                                             show_progress=False)
    backend.train_from_iterator([" ".join(WORDS)] * 9, trainer)
    backend.save(str(folder / "tokenizer.json"))
    return backend


def test_a_tokenizer_in_which_unknown_words_vanish_is_refused(tmp_path):
    save_bpe(tmp_path, SPECIAL_TOKENS)                   # it has no unk_token
    with pytest.raises(ValueError, match="tokenizer.json: .*words that it does not know vanish"):
        Tokenizer(str(tmp_path))


def test_a_kind_of_tokenizer_that_stores_only_the_number_of_unk_is_read(tmp_path):
    pieces = [(token, -1.0) for token in SPECIAL_TOKENS + ["a"]]
    model = tokenizers.models.Unigram(pieces, unk_id=SPECIAL_TOKENS.index("[UNK]"))
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(str(tmp_path)).encode(["a", "b"]) == [[5], [1]]


def test_a_tokenizer_that_pads_to_a_huge_length_does_no_harm(tmp_path):
    backend = data.make_wordpiece(SPECIAL_TOKENS + ["a"], lowercase=True)
    backend.enable_padding(length=2**40)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(str(tmp_path)).encode(["a"]) == [[5]]


@pytest.mark.parametrize("config", [
    {}, {"do_lower_case": None}, {"do_lower_case": False}, {"do_lower_case": True},
    {"do_lower_case": True, "strip_accents": False}, {"tokenize_chinese_chars": False}])
@pytest.mark.parametrize("lowercase", [False, True])
def test_the_config_counts_if_it_contradicts_the_tokenizer_json(config, lowercase, tmp_path):
    words = SPECIAL_TOKENS + ["e", "é", "E", "É", "中", "##文", "文"]
    backend = data.make_wordpiece(words, lowercase)
    backend.save(str(tmp_path / "tokenizer.json"))
    write_file(tmp_path / "tokenizer_config.json", json.dumps(config))
    if config.get("do_lower_case") is not None:
        lowercase = config["do_lower_case"]
    expected = ["É", "中", "文"]
    if lowercase:
        expected[0] = "e"
        if config.get("strip_accents") is False:
            expected[0] = "é"
    if config.get("tokenize_chinese_chars") is False:
        expected[2] = "##文"                             # the two characters are one word
    ids_of_words = numbered(words)
    found = Tokenizer(str(tmp_path))
    assert found.encode(["É 中文"]) == [[ids_of_words[word] for word in expected]]
    found.save(str(tmp_path / "saved"))
    assert Tokenizer(str(tmp_path / "saved")).digest == found.digest


@pytest.mark.parametrize("tokenizer_class, expected", [
    ("PreTrainedTokenizerFast", "Paris"),
    ("BertTokenizerFast", "paris"),
    (None, "paris"),
    ("DistilBertTokenizer", "paris"),
    ("TokenizersBackend", "Paris"),
])
def test_a_class_for_any_kind_of_tokenizer_does_not_obey_the_config(
        tokenizer_class, expected, tmp_path):
    """In transformers only the tokenizers of a BERT look at do_lower_case."""
    words = SPECIAL_TOKENS + ["paris", "Paris"]
    backend = data.make_wordpiece(words, lowercase=False)
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": tokenizer_class, "do_lower_case": True}
    write_file(tmp_path / "tokenizer_config.json", json.dumps(config))
    assert Tokenizer(str(tmp_path)).encode(["Paris"]) == [[words.index(expected)]]


@pytest.mark.parametrize("lowercase", [False, True])
def test_a_saved_tokenizer_json_says_its_case_to_transformers(lowercase, tmp_path):
    words = SPECIAL_TOKENS + ["paris", "Paris"]
    backend = data.make_wordpiece(words, lowercase=lowercase)
    backend.save(str(tmp_path / "tokenizer.json"))
    found = Tokenizer(str(tmp_path))
    found.save(str(tmp_path / "saved"))
    config = read_json(tmp_path / "saved" / "tokenizer_config.json")
    assert config["do_lower_case"] is lowercase
    assert Tokenizer(str(tmp_path / "saved")).digest == found.digest


def test_added_tokens_that_the_vocabulary_does_not_have_are_refused(tmp_path):
    """transformers would use such a token, but this program would not."""
    words = SPECIAL_TOKENS + ["a"]
    vocab_folder(tmp_path, words)
    for harmless in ("{}", '{"[MASK]": 4}'):
        write_file(tmp_path / "added_tokens.json", harmless)
        Tokenizer(str(tmp_path))
    write_file(tmp_path / "added_tokens.json", '{"[MASK]": 4, "<drug>": 6}')
    with pytest.raises(ValueError, match="<drug>: .* but here they would be split"):
        Tokenizer(str(tmp_path))
    data.make_wordpiece(words, lowercase=True).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="<drug>: .* but here they would be split"):
        Tokenizer(str(tmp_path))
    backend = data.make_wordpiece(words, lowercase=True)
    backend.add_tokens(["<drug>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    Tokenizer(str(tmp_path)).save(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "added_tokens.json").exists()


@pytest.mark.parametrize("file_name", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize("name, content", [
    ("added_tokens.json", {"[e1]": 6}),
    ("tokenizer_config.json", {"added_tokens_decoder": {"6": {
        "content": "[e1]", "lstrip": False, "rstrip": False, "normalized": False,
        "single_word": False, "special": True}}}),
    ("tokenizer_config.json", {"additional_special_tokens": ["[e1]"]}),
    ("tokenizer_config.json", {"additional_special_tokens": [
        {"content": "[e1]", "__type": "AddedToken"}]}),
    ("special_tokens_map.json", {"mask_token": "[MASK]", "additional_special_tokens": ["[e1]"]}),
])
def test_a_token_that_transformers_keeps_whole_is_not_split(file_name, name, content, tmp_path):
    """In the text "[e1] a" transformers finds the token [e1], because it is an added token. If it
    were only in the vocabulary, it would be split into [, e1 and ]."""
    transformers = pytest.importorskip("transformers", reason="the oracle")
    words = SPECIAL_TOKENS + ["a", "[e1]"]
    vocab_folder(tmp_path, words)
    backend = data.make_wordpiece(words, lowercase=True)
    if file_name == "tokenizer.json":
        backend.save(str(tmp_path / "tokenizer.json"))
    write_file(tmp_path / name, json.dumps(content))
    theirs = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    assert theirs("[e1] a", add_special_tokens=False)["input_ids"] == [6, 5]
    message = r": \[e1\]: transformers keeps these tokens whole, but here they would be split"
    with pytest.raises(ValueError, match=message):
        Tokenizer(str(tmp_path))
    backend.add_special_tokens(["[e1]"])
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(str(tmp_path)).encode(["[e1] a"]) == [[6, 5]]


@pytest.mark.parametrize("config", [
    {"additional_special_tokens": ["a", 5]},
    {"added_tokens_decoder": {"6": {"content": None}}},
])
def test_an_added_token_that_is_no_text_is_refused(config, tmp_path):
    vocab_folder(tmp_path, SPECIAL_TOKENS + ["a"], config)
    with pytest.raises(ValueError, match="_config.json: .*the added token (5|None) is not a text"):
        Tokenizer(str(tmp_path))


@pytest.mark.parametrize("kind", ["mecab", "basic"])
def test_the_tokenizer_of_a_japanese_bert_is_refused(kind, tmp_path):
    """Its words come from a dictionary. Here each Chinese character would be a word, and hiragana
    without a space between them another one. The config is like those of the Tohoku BERTs."""
    config = {"do_lower_case": False, "word_tokenizer_type": kind,
              "subword_tokenizer_type": "wordpiece", "model_max_length": 512}
    vocab_folder(tmp_path, SPECIAL_TOKENS + ["東京", "は", "雨"], config)
    with pytest.raises(ValueError, match=f"config.json: word_tokenizer_type is '{kind}': .*MeCab"):
        Tokenizer(str(tmp_path))


def test_any_kind_of_tokenizer_will_do_if_it_has_the_special_tokens(tmp_path):
    backend = save_bpe(tmp_path, ["<s>"] + SPECIAL_TOKENS, unk_token="[UNK]")
    found = Tokenizer(str(tmp_path))
    assert found.special_ids.tolist() == [1, 2, 3, 4, 5]
    assert found.mask_id == 5
    assert found.encode(["the cat"]) == [backend.encode("the cat").ids]


def test_any_kind_of_tokenizer_without_a_special_token_is_refused(tmp_path):
    without_mask = SPECIAL_TOKENS[:-1]
    save_bpe(tmp_path, ["<s>"] + without_mask, unk_token="[UNK]")
    with pytest.raises(ValueError, match=r"tokenizer\.json: it has no \[MASK\]"):
        Tokenizer(str(tmp_path))


def test_decoding_puts_words_together_and_leaves_special_tokens_out(tokenizer, tmp_path):
    bert = Tokenizer(vocab_folder(tmp_path, SPECIAL_TOKENS + ["the", "ca", "##t", "sat", "."]))
    ids = bert("The cat sat.")
    assert ids == [bert.cls_id, 5, 6, 7, 8, 9, bert.sep_id]
    assert bert.decode(ids) == "the cat sat."
    for text in ("the cat sat on a mat", "old river", ""):
        assert tokenizer.decode(tokenizer(text)) == text


def test_a_text_becomes_token_numbers_between_cls_and_sep(tokenizer):
    text = "the [MASK] sat"
    ids = tokenizer(text)
    assert ids[0] == tokenizer.cls_id
    assert ids[1:-1] == tokenizer.encode([text])[0]
    assert ids[-1] == tokenizer.sep_id
    assert ids.count(tokenizer.mask_id) == 1
    assert tokenizer("") == [tokenizer.cls_id, tokenizer.sep_id]


def test_a_tokens_number_has_a_limit(tmp_path, monkeypatch):
    vocab_folder(tmp_path, SPECIAL_TOKENS + ["a", "b"])
    monkeypatch.setattr(data, "LARGEST_VOCAB_SIZE", 7)
    assert Tokenizer(str(tmp_path)).vocab_size == 7
    monkeypatch.setattr(data, "LARGEST_VOCAB_SIZE", 6)
    with pytest.raises(ValueError, match=r"vocab\.txt: 6 is too large for a token's number"):
        Tokenizer(str(tmp_path))


def test_numbers_that_no_token_has_are_never_drawn(tmp_path):
    """Masking draws random tokens from ordinary_ids. Here only each third number is a token's."""
    words = SPECIAL_TOKENS + ["a", "b"]
    number_of_word = {word: 3 * i for i, word in enumerate(words)}
    model = tokenizers.models.WordPiece(number_of_word, unk_token="[UNK]")
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    found = Tokenizer(str(tmp_path))
    assert found.vocab_size == 19
    assert found.special_ids.tolist() == [0, 3, 6, 9, 12]
    assert found.ordinary_ids.tolist() == [15, 18]


def test_a_tokenizer_that_fails_at_a_very_long_word_is_refused(tmp_path):
    """It makes an a of every letter, so it knows all words. But one of over 100 letters becomes
    <unk>, and there is no <unk>."""
    ids = numbered(SPECIAL_TOKENS + ["a", "##a"])
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="<unk>"))
    any_letter = tokenizers.Regex(".")
    backend.normalizer = tokenizers.normalizers.Replace(any_letter, "a")
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer: .*Missing"):
        Tokenizer(str(tmp_path))


def test_a_saved_tokenizer_is_the_same_and_replaces_another_one(tmp_path):
    """One has a vocab.txt and the other one a tokenizer.json, which must not stay beside it."""
    words = SPECIAL_TOKENS + ["a", "B"]
    first = Tokenizer(vocab_folder(tmp_path / "a", words, {"do_lower_case": True}))
    (tmp_path / "b").mkdir()
    backend = tokenizers.BertWordPieceTokenizer(numbered(SPECIAL_TOKENS + ["x"]))
    backend.save(str(tmp_path / "b" / "tokenizer.json"))
    second = Tokenizer(str(tmp_path / "b"))
    assert first.digest != second.digest
    target = str(tmp_path / "c")
    for saved in (second, first):
        saved.save(target)
        assert Tokenizer(target).digest == saved.digest
    assert sorted(os.listdir(target)) == sorted(os.listdir(first.path))
    first.save(first.path)                               # onto itself
    assert Tokenizer(first.path).digest == first.digest
    assert sorted(os.listdir(target)) == sorted(os.listdir(first.path))


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_learned_vocabulary_has_the_size_asked_for(lowercase, tmp_path):
    """It is sorted, because the library's order varies, and it is as cased as asked for."""
    lines = [" ".join(document).title() for document in make_documents(50)]
    corpus = [write_file(tmp_path / "a.txt", "\n".join(lines))]
    made = train_tokenizer(corpus, 100, str(tmp_path / "tok"), lowercase)
    words = (tmp_path / "tok" / "vocab.txt").read_text().splitlines()
    assert made.vocab_size == 100
    assert len(words) == 100
    assert words[:5] == SPECIAL_TOKENS
    learned = words[5:]
    assert learned == sorted(learned)
    has_capitals = any("T" in word for word in learned)
    assert has_capitals == (not lowercase)
    assert lowercases(made) == lowercase
    config = read_json(tmp_path / "tok" / "tokenizer_config.json")
    assert config == {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}
    assert made.unk_id not in made("The Cat Sat On A Mat")


@pytest.mark.parametrize("name", [
    "tokenizer.json", "vocab.txt", "added_tokens.json", "special_tokens_map.json",
    "tokenizer_config.json"])
def test_a_vocabulary_is_not_learned_where_it_could_not_be_read_again(name, tmp_path):
    """Another tokenizer's file beside it would contradict it."""
    corpus = [write_documents(tmp_path / "a.txt", make_documents(9))]
    folder = tmp_path / "tok"
    folder.mkdir()
    write_file(folder / name, "{}")
    with pytest.raises(ValueError, match=f"it has (a|another) {name} already"):
        train_tokenizer(corpus, 100, str(folder))
    assert os.listdir(folder) == [name]


@pytest.mark.parametrize("size", [99, 2**20 + 1])
def test_a_size_of_a_vocabulary_that_cannot_be_is_refused(size, tmp_path):
    corpus = [write_documents(tmp_path / "a.txt", make_documents(9))]
    with pytest.raises(ValueError, match=str(size)):
        train_tokenizer(corpus, size, str(tmp_path / "tok"))
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("size", [100, 2**20])
def test_the_ends_of_the_range_of_sizes_are_allowed(size, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "learn_tokens", lambda *arguments: ["a"])
    corpus = [write_documents(tmp_path / "a.txt", make_documents(3))]
    assert train_tokenizer(corpus, size, str(tmp_path / "tok")).vocab_size == 6


def test_a_run_that_was_stopped_before_it_wrote_its_vocabulary_may_be_repeated(
        tmp_path, monkeypatch):
    monkeypatch.setattr(data, "learn_tokens", lambda *arguments: ["a"])
    corpus = [write_documents(tmp_path / "a.txt", make_documents(3))]
    train_tokenizer(corpus, 100, str(tmp_path / "tok"))
    os.remove(tmp_path / "tok" / "vocab.txt")
    assert train_tokenizer(corpus, 100, str(tmp_path / "tok")).vocab_size == 6


@pytest.mark.parametrize("out", ["c", "c/tok"])
def test_a_vocabulary_is_not_learned_into_its_corpus(out, tmp_path):
    """Its vocab.txt would be read as text by the next command."""
    (tmp_path / "c").mkdir()
    write_documents(tmp_path / "c/a.txt", make_documents(9))
    with pytest.raises(ValueError, match=f"--out .*{out} is in the corpus .*c, so its files"):
        train_tokenizer(str(tmp_path / "c"), 100, str(tmp_path / out))
    assert os.listdir(tmp_path / "c") == ["a.txt"]


def test_the_folder_of_a_vocabulary_is_tried_before_anything_is_learned(tmp_path, monkeypatch):
    def fail(*arguments):
        pytest.fail("too early")

    def refuse(*arguments):                              # the tests may be run by root
        raise PermissionError

    corpus = [write_documents(tmp_path / "a.txt", make_documents(9))]
    monkeypatch.setattr(data, "learn_tokens", fail)
    with pytest.raises(OSError, match="Not a directory"):
        train_tokenizer(corpus, 100, f"{corpus[0]}/words")
    monkeypatch.setattr(data, "replace_file", refuse)
    with pytest.raises(PermissionError):
        train_tokenizer(corpus, 100, str(tmp_path / "tok"))


# ---- Masked batches ---------------------------------------------------------------------

def restored(batch):
    """Return the ids of a batch with its labels put back."""
    ids, places, labels = batch
    ids = ids.copy()
    ids.ravel()[places] = labels
    return ids


@pytest.mark.parametrize("T", [3, 7, 64])
def test_sequences_are_packed_and_lose_no_token(T, token_file, tokenizer):
    """Each is [CLS], T - 2 tokens of the corpus, [SEP]. Only a rest at the end is left out."""
    tokens = token_file.train_tokens
    batches = MaskedBatches(tokens, tokenizer, T, 4)
    ids = batches.sequences(np.arange(batches.count))
    assert ids.shape == (len(tokens) // (T - 2), T)
    assert ids.dtype == np.int64
    assert (ids[:, 0] == tokenizer.cls_id).all()
    assert (ids[:, -1] == tokenizer.sep_id).all()
    assert (ids != tokenizer.pad_id).all()
    body = ids[:, 1:-1].ravel()
    assert body.tolist() == tokens[:len(body)].tolist()
    num_left_out = len(tokens) - len(body)
    assert 0 <= num_left_out < T - 2


@pytest.mark.parametrize("name, content", [("a.txt", "a b\n"), ("a.jsonl", '{"text": "a b"}\n'),
                                           ("a.csv", "text\na b\n")])
def test_each_file_of_a_corpus_is_closed(tmp_path, name, content):
    """python -X dev shows a warning for each that is not."""
    path = write_file(tmp_path / name, content)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert "a b" in " ".join(read_corpus([path]))
        gc.collect()
    assert [str(warning.message) for warning in warned] == []


@pytest.mark.parametrize("B", [1, 4, 200])
def test_each_epoch_visits_each_sequence_once_in_another_order(B, token_file, tokenizer):
    T = 23
    num_sequences = len(token_file.valid_tokens) // (T - 2)
    num_tokens = num_sequences * (T - 2) + 5             # with a rest that is left out
    tokens = np.arange(num_tokens) % 50 + 5              # no two sequences alike
    batches = MaskedBatches(tokens, tokenizer, T, B, seed=3)
    assert batches.count == num_sequences
    assert 4 < num_sequences < 50
    rows = []
    num_steps = math.ceil(3 * num_sequences / B)         # of three epochs
    for step in range(num_steps):
        ids = restored(batches.batch(step))
        rows.extend(tuple(row) for row in ids)
    in_order_of_corpus = [tuple(row) for row in batches.sequences(np.arange(num_sequences))]
    all_sequences = set(in_order_of_corpus)
    assert len(all_sequences) == num_sequences
    orders = {tuple(in_order_of_corpus)}
    for epoch in range(3):
        first = epoch * num_sequences
        visited = rows[first:first + num_sequences]
        assert set(visited) == all_sequences
        orders.add(tuple(visited))
    assert len(orders) == 1 + 3


def test_an_epoch_is_shuffled_only_once(token_file, tokenizer):
    """In a large corpus this takes longer than a step."""
    batches = MaskedBatches(token_file.valid_tokens, tokenizer, 23, 4)
    order = batches.order_of_epoch(1)
    assert batches.order_of_epoch(1) is order
    assert batches.order_of_epoch(0) is not order


def as_bytes(batch):
    """Return the bytes of the ids, the places and the labels of a batch."""
    return [part.tobytes() for part in batch]


def test_batches_are_a_function_of_seed_and_step_alone(token_file, tokenizer):
    """So a run that goes on, or that asks for its steps in another order, has the same batches."""
    tokens = token_file.train_tokens
    steps = [0, 1, 40, 41, 200, 1000]
    forward = MaskedBatches(tokens, tokenizer, 16, 5, seed=1)
    backward = MaskedBatches(tokens, tokenizer, 16, 5, seed=1)
    found = {}
    for step in steps:
        found[step] = as_bytes(forward.batch(step))
    for step in reversed(steps):
        assert as_bytes(backward.batch(step)) == found[step]
    assert as_bytes(forward.batch(40)) == found[40]


def test_another_seed_or_step_masks_other_places(tokenizer):
    tokens = np.full(500, tokenizer.ordinary_ids[0])     # all places are open to masking
    choices = set()
    for seed in (1, 2):
        batches = MaskedBatches(tokens, tokenizer, 102, 5, seed)
        for step in (0, 1, 2):
            _, places, _ = batches.batch(step)
            assert len(places) == 75                     # 15 % of the 5 x 100 tokens
            choices.add(tuple(places))
    assert len(choices) == 6


def test_too_few_tokens_for_a_sequence_are_an_error(tokenizer):
    batches = MaskedBatches(np.arange(5, 13), tokenizer, 10, 1)
    assert batches.count == 1                            # 8 tokens, [CLS] and [SEP]
    for count in (7, 0):
        with pytest.raises(ValueError, match=f"^{count} tokens.* 10 "):
            MaskedBatches(np.arange(count), tokenizer, 10, 1)
    for T in (2, 0, -1):
        with pytest.raises(ValueError, match=f"^a sequence of {T} has no room"):
            MaskedBatches(np.arange(7), tokenizer, T, 1)


def test_a_token_that_the_tokenizer_does_not_have_is_refused(tokenizer):
    for token in (-1, tokenizer.vocab_size):
        batches = MaskedBatches([5] * 49 + [token], tokenizer, T=12, batch_size=5)
        with pytest.raises(ValueError, match=f"^token {token} is in the corpus, but those of the "
                           f"tokenizer are 0 to {tokenizer.vocab_size - 1}: "):
            batches.batch(0)


# ---- Masking ----------------------------------------------------------------------------

def random_ids(tokenizer, B, T):
    """Make ids (B, T) of ordinary tokens, but a tenth is [SEP], and each row begins with [CLS]."""
    rng = np.random.default_rng(5)
    ids = rng.choice(tokenizer.ordinary_ids, (B, T))
    is_special = rng.random((B, T)) < 0.1
    ids[is_special] = tokenizer.sep_id
    ids[:, 0] = tokenizer.cls_id
    return ids


def test_masking_has_berts_proportions(tokenizer):
    """Of each row 15 % are predicted. Of these 80 % become [MASK], 10 % a random token, and 10 %
    stay as they are."""
    B = 1000
    T = 102
    ids = random_ids(tokenizer, B, T)
    masked, places, labels = mask_tokens(ids, tokenizer, np.random.default_rng(0))
    M = len(places)
    assert M == B * 15
    chosen_in_row = np.bincount(places // T)
    assert (chosen_in_row == 15).all()

    def assert_share(is_so, expected):
        """Assert that a share of the M places is as expected, within four standard deviations."""
        deviation = math.sqrt(expected * (1 - expected) / M)
        assert abs(is_so.mean() - expected) < 4 * deviation

    def assert_even(counts):
        """Assert that all counts are their mean, within five standard deviations of a Poisson."""
        deviation = math.sqrt(counts.mean())
        largest_difference = abs(counts - counts.mean()).max()
        assert largest_difference < 5 * deviation

    now = masked.ravel()[places]
    is_mask = now == tokenizer.mask_id
    is_kept = now == labels
    assert_share(is_mask, 0.8)
    same_by_chance = 1 / len(tokenizer.ordinary_ids)     # a random token may be the true one
    assert_share(is_kept, 0.1 + 0.1 * same_by_chance)
    random_tokens = now[~is_mask & ~is_kept]
    assert np.isin(random_tokens, tokenizer.ordinary_ids).all()
    count_of_token = np.bincount(random_tokens, minlength=tokenizer.vocab_size)
    assert_even(count_of_token[tokenizer.ordinary_ids])
    chosen_in_column = np.bincount(places % T, minlength=T)
    assert chosen_in_column[0] == 0                      # [CLS]
    assert_even(chosen_in_column[1:])


def test_sequences_of_special_tokens_have_few_places_or_none(tokenizer):
    T = 45
    ids = np.full((3, T), tokenizer.sep_id)
    masked, places, labels = mask_tokens(ids, tokenizer, np.random.default_rng(0))
    assert len(places) == 0
    assert len(labels) == 0
    assert np.array_equal(masked, ids)
    # The second row has two ordinary tokens and the third row has no others.
    ids[1, 7:9] = tokenizer.ordinary_ids[:2]
    ids[2] = tokenizer.ordinary_ids[3]
    _, places, _ = mask_tokens(ids, tokenizer, np.random.default_rng(0))
    places_in_row = np.bincount(places // T, minlength=3)
    assert places_in_row.tolist() == [0, 2, 6]           # 15 % of T - 2; of T - 1: seven
    shortest = np.array([[tokenizer.cls_id, 9, tokenizer.sep_id]])
    _, places, _ = mask_tokens(shortest, tokenizer, np.random.default_rng(0))
    assert places.tolist() == [1]


def test_masking_is_what_a_plain_loop_does(tokenizer):
    T = 33
    num_masked = 5                                       # 15 % of T - 2, rounded
    ids = random_ids(tokenizer, 5, T)
    found_ids, found_places, found_labels = mask_tokens(
        ids, tokenizer, np.random.default_rng([7, 2, 9]))
    rng = np.random.default_rng([7, 2, 9])
    draw = rng.random(ids.shape)
    places = []
    for b, row in enumerate(ids):
        ordinary = [t for t in range(T) if row[t] not in tokenizer.special_ids]
        ordinary.sort(key=lambda t: draw[b, t])
        for t in sorted(ordinary[:num_masked]):
            places.append(b * T + t)
    fates = rng.random(len(places))
    random_tokens = rng.choice(tokenizer.ordinary_ids, len(places))
    masked_ids = ids.ravel().tolist()
    for place, fate, random_token in zip(places, fates, random_tokens, strict=True):
        if fate < 0.8:
            masked_ids[place] = tokenizer.mask_id
        elif fate < 0.9:
            masked_ids[place] = random_token
    assert found_ids.ravel().tolist() == masked_ids
    assert found_places.tolist() == places
    assert found_labels.tolist() == ids.ravel()[places].tolist()


# ---- The default corpus -----------------------------------------------------------------

PLAIN = "The function returns a copy of the array if that is what the caller wants."


@pytest.mark.parametrize("text, want", [
    (PLAIN[:-1] + ":", True),
    (PLAIN[:-1] + " (or so)", True),
    ("The cat is on the mat and sits.", True),           # 8 words, the fewest
    ("The cat is on the mat now.", False),
    ("The 12 of 34 is in the list.", True),              # 6 of 8 words are plain, the fewest
    ("The 12 of 34 is 56 the list.", False),
    ("The cats like all of these small animals.", True),     # 2 of 8 words are common
    ("The cats like many other kinds, small ones.", False),
    # 3 of 20 words are common, and then 2 of 20.
    ("Most old cats like many small kinds of food, raw fish, sweet milk, and they never ever "
     "share the bowl.", True),
    ("Most old cats like many small kinds of food, raw fish, sweet milk, and they never ever "
     "share their bowl.", False)])
def test_prose_has_eight_words_of_which_enough_are_plain_and_common(text, want):
    assert is_prose([text], text) == want


@pytest.mark.parametrize("lines, want, code", [
    (["plain  words", "  on two lines"], "plain words on two lines", []),
    ([""], "", []),
    (["The :func:`~numpy.copy` of ``a b``", "  and `c`."], "The numpy.copy of a b and c.",
     ["numpy.copy", "a b", "c"]),
    (["``all of it``"], "all of it", ["all of it"]),
    (["a *b* **c**"], "a b c", []),
    (["See :ref:`the manual <manual-2>` and :pep:`8`::"], "See the manual and 8:", []),
    (["`The docs <https://x.y>`_, `more`__ and `it`_ of :py:class:`A <b>`, :math:`n`."],
     "The docs, more and it of A, n.", ["A"]),
    (["If `mode' is given, use `name' and ``a``."], "If mode' is given, use name' and a.", []),
    (["If `a.b()' is in `c.d' or ``e``."], "If a.b()' is in c.d' or e.", []),
    (["The ``mode'' of ``it``."], "The mode'' of it``.", []),
    (["Not `f'x` is one."], "Not f'x is one.", ["f'x"])])
def test_it_is_known_where_the_code_in_a_paragraph_was(lines, want, code):
    text, code_spans = remove_markup(lines)
    assert text == want
    assert [text[begin:end] for begin, end in code_spans] == code


@pytest.mark.parametrize("text", [
    "Too short for the model.", PLAIN[:-1], "(" + PLAIN + ")",
    ">>> if the cat is on the mat: print(it)\n... and this is the same as that.",
    "x = the_function(of, the, array)\n" + PLAIN, "def f(a):\n" + PLAIN,
    "import the module\n" + PLAIN, ".. note:: " + PLAIN,
    ":param x: " + PLAIN, "The cat     on\n--------    --\n" + PLAIN,
    "The | cat | is | on | the | mat | and | it | is.",
    "The result is {a, b} or the sum of these, which is what the caller wants.",
    "The value of x is such that a < b <= c and it is the least of all of them.",
    "Print %s if the value is not in the list of all that are known to it.",
    "Große Häuser are in the list of all that are known to it and the others.",
    "The 1234 of 5678 is 9012 and the 55 66 of the 77 88 is 99.",
    "Tokenizer corpus vocabulary sequence document paragraph sentence word."])
def test_code_tables_and_fragments_are_no_prose(text):
    lines = text.splitlines()
    found, _ = remove_markup(lines)
    assert not is_prose(lines, found)


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
    found = []
    for lines in paragraphs(docstring):
        words = " ".join(lines).split()
        found.append(" ".join(words))
    assert found == [
        "Summary of it, on two lines.", "Args:", "what goes in and its second line", "Another one.",
        "an item", "the next goes on", "An example::", "Not code.",
        "Quoted, not code.", "Of three lines which are uneven.", "Deep line.",
        "Another paragraph, less deep.", "z : int", "The third argument."]


def write_module(path, *paragraphs):
    """Write a module that cannot be imported; its function has a docstring of these paragraphs."""
    text = "\n\n".join(paragraphs)
    write_file(path, f'raise SystemExit("imported")\n\ndef f():\n    r"""{text}\n    """\n')


def about(word):
    """Make a paragraph of prose: PLAIN about something else."""
    return PLAIN.replace("array", word)


@pytest.fixture
def fake_machine(tmp_path, monkeypatch):
    """Put a Python, a torch and a numpy with a few modules in the place of the true ones ->
    {package: its version} and the paragraphs to be found [(part, text), ...]."""
    python = tmp_path / "python"
    site = tmp_path / "site"
    list_again = about("list").replace("function", "Function")       # differs in a capital alone
    write_module(python / "zlib.py", about("list"), "Short.", list_again)
    write_module(python / "abc" / "base.py", about("tree"), about("list"), about("pile"))
    write_module(python / "xyz" / "deep.py", about("pile"))
    write_module(python / "notes.txt", PLAIN)
    write_module(python / "test" / "test_abc.py", PLAIN)
    write_module(python / "pydoc_data" / "topics.py", PLAIN)
    write_module(python / "site-packages" / "other.py", PLAIN)
    write_module(site / "torch" / "nn.py", about("heap"))
    graph_with_code = about("graph").replace("copy", "``copy``")
    write_module(site / "numpy" / "core.py", graph_with_code, about("heap"))
    not_ascii = b"'''\xff" + PLAIN.encode() + b"''' "
    queue = b"'''" + about("queue").encode() + b"'''"
    write_file(python / "odd.py", not_ascii + queue)
    topics = types.SimpleNamespace(topics={"b": about("stack"), "a": about("tree")})
    versions = {"torch": "2.1", "numpy": "3.2"}

    def get_path(name):
        return str(python)

    def locate_file(name):
        return site / name

    def distribution(name):
        return types.SimpleNamespace(version=versions[name], locate_file=locate_file)

    monkeypatch.setattr(sysconfig, "get_path", get_path)
    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", topics)
    expected = [("python.reference", about("tree")), ("python.reference", about("stack")),
                ("python.odd", about("queue")), ("python.zlib", about("list")),
                ("python.abc.base", about("pile")), ("torch.nn", about("heap")),
                ("numpy.core", about("graph"))]
    return versions, expected


def test_the_documentation_is_collected_once_without_duplicates(fake_machine, tmp_path):
    versions, expected = fake_machine
    cache = str(tmp_path / "cache")
    path = docs_on_this_machine(cache)
    found = [json.loads(line) for line in Path(path).read_text().splitlines()]
    assert [(paragraph["part"], paragraph["text"]) for paragraph in found] == expected
    *others, last = found
    begin = last["text"].index("copy")
    assert last["code"] == [[begin, begin + len("copy")]]
    for paragraph in others:
        assert paragraph["code"] == []
    assert lines_with_text([path]) == [text for _, text in expected]
    # It is made again only for another version of a package.
    before = os.stat(path)
    (tmp_path / "python" / "zlib.py").unlink()
    assert docs_on_this_machine(cache) == path
    assert os.stat(path) == before
    versions["torch"] = "2.2"
    assert docs_on_this_machine(cache) != path
    assert len(os.listdir(cache)) == 2


def test_a_link_to_a_module_that_is_not_there_is_left_out(tmp_path):
    write_file(tmp_path / "a.py", b'"""Text."""\n')
    os.symlink(tmp_path / "none.py", tmp_path / "b.py")
    assert data.docstrings("p", str(tmp_path)) == [("p.a", "Text.")]


def test_the_documentation_of_another_process_is_kept(fake_machine, tmp_path, monkeypatch):
    """A token file counts as made from another corpus if its corpus is written again."""
    cache = str(tmp_path / "cache")
    original_makedirs = os.makedirs
    stats_of_other_process = []

    def makedirs_while_another_process_finishes(path, exist_ok):
        original_makedirs(path, exist_ok=exist_ok)
        monkeypatch.setattr(os, "makedirs", original_makedirs)      # for the other process
        written = docs_on_this_machine(cache)
        stats_of_other_process.append(os.stat(written))

    monkeypatch.setattr(os, "makedirs", makedirs_while_another_process_finishes)
    path = docs_on_this_machine(cache)
    assert stats_of_other_process == [os.stat(path)]


def test_the_corpus_that_needs_no_download_is_the_documentation(fake_machine, tmp_path):
    _, expected = fake_machine
    tokenizer = spelling_tokenizer(tmp_path / "tok", LETTERS + ".")
    made = open_corpus(None, tokenizer, str(tmp_path / "cache"))
    train, valid = naive_tokens([[text] for _, text in expected], tokenizer)
    assert made.train_tokens.tolist() + made.valid_tokens.tolist() == train + valid
    assert len(os.listdir(tmp_path / "cache")) == 3      # the documentation, .bin, .bin.json


def test_without_a_home_each_user_has_a_folder_of_his_own(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.home_folder() == str(tmp_path)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert data.home_folder() == str(tmp_path / "minialbert-54321")


# ---- The command ------------------------------------------------------------------------

def test_the_command_tokenises(tokenizer, tmp_path, capsys):
    documents = make_documents(200)
    more_documents = make_documents(9, seed=1)
    first = write_documents(tmp_path / "a.txt", documents)
    second = write_documents(tmp_path / "b.jsonl.gz", more_documents)
    out = str(tmp_path / "new" / "a.bin")
    status = main(["--corpus", first, second, "--tokenizer", tokenizer.path, "--out", out])
    assert status is None
    made = TokenFile(out)
    assert_tokens_of(made, documents + more_documents, tokenizer)
    printed = capsys.readouterr()
    assert f"{len(made.train_tokens):,} tokens to train on" in printed.out
    assert f"{len(made.valid_tokens):,} held out" in printed.out
    assert printed.err == ""


def test_the_command_fetches_a_tokenizer_by_its_name_without_weights(
        tokenizer, tmp_path, monkeypatch):
    fetched = []

    def fetch(name, weights):
        fetched.append((name, weights))
        return tokenizer.path

    monkeypatch.setattr(data, "fetch", fetch)
    corpus = write_documents(tmp_path / "a.txt", make_documents(200))
    out = str(tmp_path / "a.bin")
    assert main(["--corpus", corpus, "--tokenizer", "some/bert", "--out", out]) is None
    assert fetched == [("some/bert", False)]
    assert TokenFile(out).made_from["tokenizer"] == tokenizer.digest


@pytest.mark.parametrize("flags, message", [
    (["--out", "x"], "one of the arguments --tokenizer --train-tokenizer is required"),
    (["--tokenizer", "x"], "the following arguments are required: --out")])
def test_a_flag_that_is_needed_is_named(flags, message):
    with pytest.raises(ValueError, match=message):
        data.arguments(flags)


@pytest.mark.parametrize("options, lower", [
    ([], True), (["--lowercase"], True), (["--no-lowercase"], False)])
def test_the_command_learns_a_vocabulary_from_the_default_corpus(
        options, lower, fake_machine, tmp_path, monkeypatch, capsys):
    docs = docs_on_this_machine(str(tmp_path / "cache"))
    out = str(tmp_path / "tok")
    monkeypatch.setattr(data, "docs_on_this_machine", lambda: docs)
    assert main(["--train-tokenizer", "5000", "--out", out] + options) is None
    made = Tokenizer(out)
    assert f"{made.vocab_size} tokens of the 5000 asked for" in capsys.readouterr().out
    assert lowercases(made) == lower
    ids = [made.backend.token_to_id(word) for word in ("the", "heap")]
    assert None not in ids
    assert made.encode(["the heap"]) == [ids]


@pytest.mark.parametrize("error", [
    ValueError("one\ntwo"), FloatingPointError("one two"), OSError("one\ntwo")])
def test_what_a_user_can_cause_is_printed_in_one_line(error, capsys):
    def action():
        raise error

    assert run_command("some.py", action) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "some.py: error: one two\n"


def run_python(script, *options):
    """Run a text as a Python program in a process of its own -> subprocess.CompletedProcess."""
    return subprocess.run([sys.executable, *options, "-c", script], capture_output=True, text=True,
                          cwd=ROOT)


def test_whoever_changes_the_program_can_see_where_an_error_was_raised():
    script = "import command; command.run_command('some.py', lambda: int('one'))"
    ended = run_python(script, "-X", "dev")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "in <lambda>" in ended.stderr


def test_an_error_shows_what_a_terminal_would_obey_and_is_not_long(capsys):
    def action():
        raise ValueError("a\x1b]0;title\x07" + "b" * 10**6)

    assert run_command("some.py", action) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("some.py: error: a\\x1b]0;title\\x07bbb")
    assert len(printed) < 2100


@pytest.mark.parametrize("error, reason", [
    (MemoryError(), ""),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory:\nyou tried"),
     ": DefaultCPUAllocator: can't allocate memory: you tried"),
    (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"),       # on Windows
     ": DefaultCPUAllocator: not enough memory: you tried"),
    (OSError(12, "Cannot allocate memory"), ": [Errno 12] Cannot allocate memory"),
])
def test_a_lack_of_memory_is_printed_in_one_line(error, reason, capsys):
    def action():
        raise error

    assert run_command("some.py", action) == 2
    printed = capsys.readouterr()
    assert printed.err == f"some.py: error: there is not enough memory{reason}\n"


def test_an_interrupt_is_one_line_and_status_130(capsys):
    def action():
        raise KeyboardInterrupt

    assert run_command("some.py", action) == 130
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.strip() == "some.py: interrupted"


def test_an_error_has_its_status_where_standard_error_is_closed():
    """tqdm draws its bar there, which must not end the program in another way."""
    script = ("import sys; from command import run_command; from tqdm import tqdm; "
              "sys.exit(run_command('x', lambda: int(list(tqdm(['no']))[0])))")
    command = f'"{sys.executable}" -c "{script}" 2>&-'
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 2
    assert ended.stdout == ""


def test_a_command_whose_output_is_closed_ends_well():
    script = "import sys; from command import run_command; sys.exit(run_command('x', lambda: None))"
    command = f'"{sys.executable}" -c "{script}" >&-'
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0
    assert ended.stderr == ""


def test_what_standard_output_cannot_show_is_an_escape():
    script = ("import sys; from command import run_command; "
              "sys.stdout.reconfigure(encoding='ascii'); "
              "sys.exit(run_command('x', lambda: print('gut \\u03a9')))")
    ended = run_python(script)
    assert ended.returncode == 0
    assert ended.stdout == "gut \\u03a9\n"


def test_an_interactive_session_keeps_its_handler_of_ctrl_c(monkeypatch):
    """In IPython's %run a session goes on after the script. It has a prompt."""
    handler = signal.getsignal(signal.SIGINT)
    assert handler is signal.default_int_handler
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    end_at_interrupt()
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("action", ["lambda: None", "lambda: int('no')"])
def test_ctrl_c_after_the_action_is_one_line_and_status_130(action):
    script = ("import os, signal; from command import end_at_interrupt, run_command; "
              f"end_at_interrupt(); run_command('x', {action}); "
              "os.kill(os.getpid(), signal.SIGINT)")
    ended = run_python(script)
    assert ended.returncode == 130
    last_line = ended.stderr.splitlines()[-1]
    assert last_line == "-c: interrupted"
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("kind", [TypeError, RuntimeError])
def test_a_defect_of_the_program_keeps_its_traceback(kind):
    def action():
        raise kind("a defect")

    with pytest.raises(kind, match="a defect"):
        run_command("some.py", action)


def test_the_program_explains_itself(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    example = "\n    python data.py --corpus wiki/ --tokenizer bert-base-uncased --out wiki.bin\n"
    assert example in printed.out
    for flag in ("--corpus", "--text", "--tokenizer", "--train-tokenizer", "--lowercase", "--out"):
        assert flag in printed.out


def run_as_program(flags):
    """Run data.py in this process as Python runs a program -> its exit status, what it prints to
    standard output and standard error, and the names of all modules that have been imported."""
    sys.argv = ["data.py"] + flags
    with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
        with pytest.raises(SystemExit) as end:
            runpy.run_path(data.__file__, run_name="__main__")
    return end.value.code, output.getvalue(), errors.getvalue(), list(sys.modules)


def test_the_program_ends_with_the_status_and_has_not_imported_the_hub(forked):
    """huggingface_hub is slow to import, and most runs do not need it. This process may have it."""
    status, output, errors, modules = call_forked(forked, run_as_program, ["--odd"])
    assert status == 2
    assert output == ""
    assert errors.count("\n") == 1
    assert "tokenizers" in modules
    assert "huggingface_hub" not in modules
