"""Hostile files, mistakes of users, full disks, kills between two writes, and the hub: whatever
happens, one line says what is wrong, and what was there before is as it was."""
import builtins
import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import data
import distill
import finetune
import minialbert
import tasks
from data import SPECIAL, Tokenizer, TokenFile
from minialbert import Config, MiniALBERT, load, read_safetensors, save, write_safetensors

WORDS = [f"w{i}" for i in range(60)] + list("abcdefghijklmnopqrstuvwxyz")
SIZES = dict(vocab_size=101, embedding_size=12, hidden_size=24, num_hidden_layers=2, adapter_size=2,
             num_attention_heads=3, intermediate_size=40, max_position_embeddings=32)


def put(path, content):
    """Writes bytes or text, for which folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def prose(documents, seed=0):
    rng = random.Random(seed)
    return "\n\n".join("\n".join(" ".join(rng.choices(WORDS, k=12)) for _ in range(3))
                       for _ in range(documents)) + "\n"


def snapshot(folder):
    """{name: content} of the files below a folder; of the folders None."""
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
            for path in folder.rglob("*")}


# ---- Mutated files: each is read, or is a ValueError of one line that names the file -------------

HOSTILE = [0, -1, 1.5, 2**24, 2**31, 2**63, 10**30, 1e999, float("nan"), True, None, "", "x",
           "a\nb", "\ud800", "0" * 300, [], {}, [0], ["x"], [[]], {"a": 1}]
NOISE = [b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"', b"'", b"\\", b"\\ud800", b"-",
         b"9", b"e99", b"9" * 5000, b"[" * 5000, b'{"a":' * 3000, b"\r", b"\n", b"\n\n", b"\t",
         b",", b" ", b"\x0b", "\u2028".encode(), "\u4e2d".encode()]


def exchanged(value, rng):
    """A copy of what JSON said with one value in it exchanged, lost or put in twice."""
    box = owner = {"all": json.loads(json.dumps(value))}
    key = "all"
    while isinstance(owner[key], (dict, list)) and owner[key] and rng.random() < 0.85:
        owner = owner[key]
        key = rng.choice(list(owner) if isinstance(owner, dict) else range(len(owner)))
    if isinstance(owner, list) and rng.random() < 0.2:
        owner.insert(key, owner[key])
    elif owner is not box and rng.random() < 0.2:
        del owner[key]
    else:
        owner[key] = rng.choice(HOSTILE)
    return box["all"]


def mutants(content, count=500, seed=0, parse=None):
    """Flipped bits, cuts, inserted bytes, lines lost, doubled and moved; of JSON, which is one
    value or one in each line, also values exchanged."""
    rng = random.Random(seed)
    for _ in range(count):
        kind, at = rng.randrange(5 if parse is None else 8), rng.randrange(len(content))
        if kind == 0:
            yield content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1:]
        elif kind == 1:
            yield content[:at]
        elif kind == 2:
            yield content[:at] + rng.choice(NOISE) + content[at:]
        elif kind in (3, 4):
            lines = content.splitlines(keepends=True)
            i = rng.randrange(len(lines))
            lines[i:i + 1] = [lines[i]] * 2 if kind == 3 else []
            if rng.random() < 0.3:
                rng.shuffle(lines)
            yield b"".join(lines)
        else:
            rows = content.splitlines() if parse == "lines" else [content]
            i = rng.randrange(len(rows))
            rows[i] = json.dumps(exchanged(json.loads(rows[i]), rng)).encode()
            yield b"\n".join(rows)
    yield b""
    yield b"[" * 100_000


def survive(path, content, read, parse=None, seed=0, count=500):
    """Feeds a reader all mutants of a file; each is read, or one line names the file."""
    taken, named = 0, str(path).removesuffix(".json")    # a token file's .json is named as its .bin
    with open(path, "wb") as file:                       # one file: 500 would be slow
        for mutant in mutants(content, count, seed, parse):
            file.seek(0), file.write(mutant), file.truncate(), file.flush()
            try:
                read(mutant)
                taken += 1
            except ValueError as error:
                said = str(error)
                good = named in said and len(said.splitlines()) == 1 and len(said) < 2000
                assert good, f"{said:.300} of {mutant[:300]}"
            except BaseException as error:               # a panic in Rust is no Exception
                raise AssertionError(f"{error!r:.300} of {mutant[:300]}") from error
    assert 20 < taken < 0.96 * count, taken              # some are harmless, most are not


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a small student and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save(MiniALBERT(Config(**SIZES)), folder)
    put(folder / "vocab.txt", "\n".join([*SPECIAL, ".", *WORDS]) + "\n")
    return folder


def test_mutated_configs(model, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    usual = Config.read(path)

    def read(mutant):
        found = Config.read(path)
        if found != usual:                               # the weights are of another shape, or are
            try:                                         # not: a rate of dropout, an epsilon
                assert vars(load(path.parent).config) == vars(found)
            except ValueError as error:
                assert str(path.parent) in str(error) and "\n" not in str(error)
    survive(path, path.read_bytes(), read, "whole")


@pytest.mark.parametrize("sizes", [
    {"hidden_size": 2**24, "embedding_size": 2**24, "num_attention_heads": 1},
    {"hidden_size": 2**24, "num_attention_heads": 1, "intermediate_size": 2**24},
    {"vocab_size": 2**24, "max_position_embeddings": 2**24, "type_vocab_size": 2**24},
    {"num_hidden_layers": 128, "adapter_size": 2**24}])
def test_a_config_of_any_size_costs_no_memory(sizes, model, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    facts = json.loads((model / "config.json").read_text())
    put(tmp_path / "m/config.json", json.dumps(facts | sizes))
    with pytest.raises(ValueError, match="16777216"):
        load(tmp_path / "m")


def test_a_pickle_is_no_larger_than_its_file(model, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m/model.safetensors").unlink()
    for tensor in (torch.ones(1).expand(2**20, 2**20), torch.ones(2**20, 2**20, device="meta")):
        torch.save({"embeddings.word_embeddings.weight": tensor}, tmp_path / "m/pytorch_model.bin")
        with pytest.raises(ValueError, match="larger than the file"):
            load(tmp_path / "m")


def test_a_token_of_a_huge_number_is_refused_before_it_costs_memory(model, tmp_path):
    facts = json.loads(Tokenizer(str(model)).core.to_str())
    facts["model"]["vocab"]["w7"] = 2**27                # the library writes a line for each number
    put(tmp_path / "tokenizer.json", json.dumps(facts))
    with pytest.raises(ValueError, match="tokenizer.json: 134217728 is no number"):
        Tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer_config.json", "tokenizer.json"])
def test_mutated_tokenizers(name, model, tmp_path):
    usual = Tokenizer(str(model))
    folder = put(tmp_path / "t" / "vocab.txt", (model / "vocab.txt").read_bytes()).parent
    content = {"vocab.txt": (model / "vocab.txt").read_bytes(),
               "tokenizer_config.json": b'{"do_lower_case": true, "strip_accents": null, "a": [1]}',
               "tokenizer.json": usual.core.to_str().encode()}[name]

    def read(mutant):
        found = Tokenizer(str(folder))
        ids, = found.encode(["w1 w2 q\u00e9\u4e2d A \ufffd zz"])
        assert all(0 <= i < found.vocab_size for i in ids)
        assert max(found.special) < found.vocab_size
        if name == "vocab.txt":                          # a line is a token, in its order
            words = mutant.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
            words = words.removesuffix("\n").split("\n")
            assert [found.core.id_to_token(i) for i in range(len(words))] == words
            assert found.vocab_size == len(words)
    survive(folder / name, content, read, None if name == "vocab.txt" else "whole")


@pytest.fixture(scope="module")
def tokens(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    return data.tokenise([str(put(folder / "c.txt", prose(60)))], Tokenizer(str(model)),
                         str(folder / "t.bin"))


@pytest.mark.parametrize("end", ["", ".json"])
def test_mutated_token_files(end, tokens, tmp_path):
    path = tmp_path / "t.bin"
    for suffix in ("", ".json"):
        shutil.copy(f"{tokens.path}{suffix}", f"{path}{suffix}")

    def read(mutant):
        found = TokenFile(str(path))
        size = os.path.getsize(path) // found.train.itemsize
        assert len(found.train) + len(found.valid) == size
        assert {**found.made_from} == found.made_from
    survive(tmp_path / f"t.bin{end}", (tmp_path / f"t.bin{end}").read_bytes(), read,
            end and "whole" or None)


def squad():
    context = "Paris is the capital. It lies on the Seine, in the north."
    asked = [{"id": f"q{i}", "question": f"what {i} ?", "is_impossible": i == 2, "answers": [
        {"text": context[i:i + 5], "answer_start": i}] * (i != 2)} for i in range(4)]
    return json.dumps({"version": "2.0", "data": [
        {"title": "x", "paragraphs": [{"context": context, "qas": asked}]}]}, indent=1)


TABLE = [("a b c", "yes", 1.5), ("d \u00e9", "no", -2), ("e, f", "yes", 0), ("g", "no", 3e3)]
TASKS = {                                                # reader, its file and content
    "glue": (lambda path: tasks.read_glue("sst2", os.path.dirname(path))["train"], "train.tsv",
             "sentence\tlabel\n" + "".join(f"{a}\t{b}\n" for a, b, _ in TABLE)),
    "numbers": (lambda path: tasks.read_table(path, ["text"], "score", numeric=True), "t.csv",
                "text,score\n" + "".join(f'"{a}",{x}\n' for a, _, x in TABLE)),
    "table": (lambda path: tasks.read_table(path, ["text"], "label"), "t.csv",
              "text,label\n" + "".join(f'"{a}",{b}\n' for a, b, _ in TABLE)),
    "lines": (lambda path: tasks.read_table(path, ["text"], "label"), "t.jsonl",
              "".join(json.dumps({"text": a, "label": b, "x": [x]}) + "\n" for a, b, x in TABLE)),
    "tags": (tasks.read_tags, "t.tsv",
             "-DOCSTART-\tO\n\nMr\tO\nX\tB-per\nY\tI-per\n\nof\tO\nZ\tS-loc\n"),
    "squad": (tasks.read_squad, "t.json", squad())}


@pytest.mark.parametrize("name", TASKS)
def test_mutated_task_files(name, model, tmp_path):
    read, file, content = TASKS[name]
    path, tokenizer = tmp_path / file, Tokenizer(str(model))
    put(tmp_path / "dev.tsv", TASKS["glue"][2])

    def check(mutant):
        for e in read(str(path)):
            texts = e.a if name == "tags" else [text for text in (e.a, e.b) if text is not None]
            assert texts and tokenizer.encode(texts)     # whatever was read, a tokenizer takes
            if name == "tags":
                assert len(e.a) == len(e.label)
            elif name == "numbers":
                assert abs(e.label) < 1e30
            elif name == "squad":
                assert all(e.b[at:at + len(text)] == text for at, text in e.label)
            else:
                assert isinstance(e.label, str)
    survive(path, content.encode(), check, {"lines": "lines", "squad": "whole"}.get(name))


# ---- The hub: its own client against a server on this machine ------------------------------------

COMMIT = "0123456789" * 4
WANTED = distill.MODEL + data.TOKENIZER
CLIENT = """
import json, sys, time
time.sleep = lambda seconds: None                        # between the client's six attempts
import data
import distill  # noqa: F401
for line in sys.stdin:
    try:
        print(json.dumps([data.fetch(*json.loads(line)), ""]), flush=True)
    except ValueError as error:
        print(json.dumps(["", str(error)]), flush=True)
"""


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for the repositories {name: {file: content}} of its server; a file in
    server.cut ends in the middle. server.log has the files asked for."""
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        about = re.fullmatch(r"/api/models/(.+?)/(revision|tree)/.*", self.path)
        one = re.fullmatch(r"/(.+)/resolve/[^/]+/(.+)", self.path)
        files = self.server.repositories.get((about or one)[1])
        if files is None:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        numbered = [(name, f"{i:040x}") for i, name in enumerate(files)]
        if one:
            if self.command == "GET":
                self.server.log.append(one[2])
            return self.answer(200, {"ETag": dict(numbered)[one[2]], "X-Repo-Commit": COMMIT},
                               files[one[2]], one[2] in self.server.cut)
        facts = {"id": about[1], "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        if about[2] == "tree":
            facts = [{"type": "file", "path": name, "oid": number, "size": len(files[name])}
                     for name, number in numbered]
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(facts).encode())

    def answer(self, status, headers, content=b"", cut=False):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:len(content) // 2] if cut else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(model, tmp_path):
    """The server, and ask(name, wanted, **environment) -> (folder or "", what was said)."""
    pytest.importorskip("huggingface_hub", reason="it is where tokenizers is")
    server, clients = ThreadingHTTPServer(("127.0.0.1", 0), Hub), {}
    files = {name: (model / name).read_bytes() for name in os.listdir(model)}
    tensors, names = read_safetensors(model / "model.safetensors")[0], {}
    for i in (0, 1):
        shard, some = f"model-0000{i + 1}-of-00002.safetensors", sorted(tensors)[i::2]
        names |= dict.fromkeys(some, shard)
        write_safetensors({name: tensors[name] for name in some}, tmp_path / shard)
    whole = files | {"README.md": b"x", "tf_model.h5": b"x", "onnx/model.onnx": b"x"}
    shards = {name: (tmp_path / name).read_bytes() for name in set(names.values())} | {
        "model.safetensors.index.json": json.dumps({"weight_map": names}).encode()}
    server.repositories = {"some/bert": whole, "cut/bert": whole, "large/bert": shards | {
        name: whole[name] for name in whole if name != "model.safetensors"}}
    server.cut, server.log = [], []

    def ask(name, wanted=WANTED, **environment):
        if str(environment) not in clients:
            clients[str(environment)] = subprocess.Popen(
                [sys.executable, "-c", CLIENT], cwd=os.path.dirname(data.__file__), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=os.environ | {
                    "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "",
                    "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1",
                    "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment)
        client = clients[str(environment)]
        print(json.dumps([name, wanted]), file=client.stdin, flush=True)
        server.log.clear()
        folder, said = json.loads(client.stdout.readline())
        assert bool(folder) != bool(said) and len(said.splitlines()) < 2 and name in said + name
        return folder, said
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server, ask
    server.shutdown(), thread.join(), server.server_close()
    for client in clients.values():
        client.kill(), client.communicate(timeout=20)


def test_a_name_of_the_hub_is_fetched_kept_and_refused_in_one_line(hub, model):
    server, ask = hub
    usual = load(model).state_dict()
    folder, _ = ask("some/bert")                         # no more than is needed
    assert sorted(server.log) == ["config.json", "model.safetensors", "vocab.txt"]
    assert sorted(os.listdir(folder)) == sorted(server.log)
    assert all(torch.equal(usual[name], p) for name, p in load(folder).state_dict().items())
    assert Tokenizer(folder).digest == Tokenizer(str(model)).digest
    assert ask("some/bert")[0] == folder and not server.log
    folder, _ = ask("large/bert")                        # in two files
    assert len(server.log) == 5 and server.log.count("model.safetensors.index.json") == 1
    assert all(torch.equal(usual[name], p) for name, p in load(folder).state_dict().items())
    assert "no such folder" in (said := ask("no/such")[1]) and "no/such" in said and "404" in said
    assert "no tokenizer.model" in ask("some/bert", [["tokenizer.model"]])[1]
    server.cut.append("model.safetensors")               # the connection breaks in the middle
    assert "cut/bert" in (said := ask("cut/bert")[1]) and "received" in said
    server.cut.clear()
    assert load(ask("cut/bert")[0]) and "vocab.txt" in server.log


def test_without_a_net_what_was_fetched_before_is_found(hub):
    server, ask = hub
    folder, _ = ask("some/bert")
    assert ask("some/bert", HF_HUB_OFFLINE="1")[0] == folder
    assert "large/bert: no such folder" in ask("large/bert", HF_HUB_OFFLINE="1")[1]
    server.shutdown(), server.server_close()             # nothing answers any more
    assert ask("some/bert")[0] == folder
    assert "large/bert: no such folder" in ask("large/bert")[1]


# ---- Mistakes of users ---------------------------------------------------------------------------

@pytest.fixture(scope="module")
def desk(model, tmp_path_factory):
    """A folder with what the mistakes below are made with."""
    folder, rng = tmp_path_factory.mktemp("desk"), random.Random(0)
    noise = bytes(rng.randrange(256) for _ in range(4000))
    shutil.copytree(model, folder / "m")
    torch.manual_seed(1)
    for name, more in (("six", {"num_hidden_layers": 6, "adapter_size": 0}),
                       ("wide", {"hidden_size": 48, "num_attention_heads": 6})):
        save(MiniALBERT(Config(**SIZES | more)), folder / name)
        shutil.copy(model / "vocab.txt", folder / name)
    for name in ("cut", "novocab", "noconfig", "relu"):
        shutil.copytree(model, folder / name)
    put(folder / "cut/model.safetensors", (model / "model.safetensors").read_bytes()[:-9])
    (folder / "novocab/vocab.txt").unlink(), (folder / "noconfig/config.json").unlink()
    facts = json.loads((model / "config.json").read_text())
    put(folder / "relu/config.json", json.dumps(facts | {"hidden_act": "relu"}))
    put(folder / "file", "x"), put(folder / "md/readme.md", prose(3))
    put(folder / "c.txt", prose(60)), put(folder / "short.txt", "w1 w2 w3.\n")
    put(folder / "zh.txt", "\n\n".join(["\u6211\u7231\u5317\u4eac\u5929\u5b89\u95e8 " * 9] * 80))
    put(folder / "x.pdf", b"%PDF-1.4\n" + noise), put(folder / "pdf.txt", b"%PDF-1.4\n" + noise)
    put(folder / "png.txt", b"\x89PNG\r\n\x1a\n" + noise), put(folder / "text.gz", prose(9))
    put(folder / "text.txt.gz", prose(9)), put(folder / "prose.jsonl", prose(9))
    put(folder / "x.json", json.dumps({"mine": 1}))
    data.tokenise([str(folder / "c.txt")], Tokenizer(str(model)), str(folder / "t.bin"))
    put(folder / "alone.bin", b"\1\0" * 999), put(folder / "list.bin", b"\1\0" * 999)
    facts = {"dtype": "uint16", "train": 899, "valid": 100, "made_from": []}
    put(folder / "list.bin.json", json.dumps(facts))
    put(folder / "high.bin", b"\xff\xff" * 999)
    put(folder / "high.bin.json", json.dumps(facts | {"made_from": {}}))
    rows = "".join(f"w{i} w2\t{'ab'[i % 2]}\n" for i in range(20))
    for name, text in {
            "good.tsv": "text\tlabel\n" + rows, "headless.tsv": rows, "empty.tsv": "",
            "header.tsv": "text\tlabel\n", "single.tsv": "text\tlabel\nw1\ta\n",
            "same.tsv": "text\tlabel\n" + "w1\ta\n" * 9, "z.tsv": "text\tlabel\nw1\tz\n",
            "comma.tsv": "text,label\n" + rows.replace("\t", ","), "x.xlsx": b"PK\3\4" + noise,
            "semicolon.csv": "text;label\n" + rows.replace("\t", ";"),
            "utf16.tsv": ("text\tlabel\n" + rows).encode("utf-16"),
            "array.jsonl": json.dumps([{"text": "w1", "label": "a"}] * 9),
            "half.jsonl": '{"text": "\\ud800", "label": "a"}\n' * 9,
            "null.jsonl": '{"text": "w1", "label": null}\n' * 9,
            "break.jsonl": '{"text": "w1", "label": "a\\nb"}\n{"text": "w2", "label": "c"}\n' * 9,
            "huge.tsv": "text\tlabel\n" + f"w1\t{'9' * 400}\n" * 9, "pos.tsv": "w1\tNN\n" * 9,
            "glue/train.tsv": "sentence\tlabel\n" + rows, "squad.json": '{"data": []}'}.items():
        put(folder / name, text)
    shutil.copytree(model, folder / "tuned")
    write_safetensors({"weight": torch.zeros(2, 24), "bias": torch.zeros(2)},
                      folder / "tuned/head.safetensors")
    facts = dict(name="classification", kind="classification", labels=["a", "b"], length=16,
                 metrics=["accuracy"], stride=8, pair=False, mean=0.0, sd=1.0, unanswerable=False)
    put(folder / "tuned/task.json", json.dumps(facts))
    for name, change in {"text": {"length": "x"}, "none": {"length": 0}, "labels": {"labels": 5},
                         "three": {"labels": ["a", "b", "c"]}, "kind": {"kind": "x"},
                         "qa": {"kind": "qa"}, "mean": {"mean": "x"}, "more": {"more": 1}}.items():
        shutil.copytree(folder / "tuned", folder / f"bad-{name}")
        put(folder / f"bad-{name}/task.json", json.dumps(facts | change))
    shutil.copytree(folder / "tuned", folder / "bad-head")
    put(folder / "bad-head/head.safetensors", "x")
    return folder


MAIN = {"data": data.main, "distill": distill.main, "finetune": finetune.main}
USUAL = {                                                # of a command with nothing wrong
    "data": "--corpus c.txt --tokenizer m --out out.bin",
    "learn": "--corpus c.txt --train-tokenizer 100 --out out",
    "distill": "--teacher m --corpus c.txt --cache cache --out out --length 16 --batch-size 4 "
               "--steps 2 --device cpu",
    "finetune": "--model m --task classification --train good.tsv --steps 1 --batch-size 4 "
                "--length 16 --device cpu --out out",
    "predict": "--model tuned --predict w1"}
MISTAKES = """
data      --corpus x.pdf                            x.pdf: no .txt or .jsonl
data      --corpus text.gz                          text.gz: no .txt or .jsonl
data      --corpus md                               md: no .txt or .jsonl
data      --corpus c.txt md/readme.md               md/readme.md: no .txt
data      --corpus c.txt nowhere                    nowhere: no .txt
data      --corpus nowhere.txt                      nowhere.txt: no .txt
data      --corpus text.txt.gz                      text.txt.gz: damaged
data      --corpus prose.jsonl                      prose.jsonl:1: not a JSON object
data      --corpus pdf.txt                          pdf.txt: most tokens are [UNK]
data      --corpus png.txt                          png.txt: most tokens are [UNK]
data      --corpus zh.txt                           zh.txt: most tokens are [UNK]: m is of
data      --corpus t.bin                            t.bin: no .txt
data      --corpus m/model.safetensors              model.safetensors: no .txt
data      --tokenizer c.txt                         c.txt: no such folder
data      --tokenizer m/vocab.txt                   m/vocab.txt: no such folder
data      --tokenizer m/model.safetensors           m/model.safetensors: no such folder
data      --tokenizer md                            md: no tokenizer.json or vocab.txt
data      --tokenizer novocab                       novocab: no tokenizer.json or vocab.txt
data      --tokenizer bert-base-uncased             bert-base-uncased: no such folder
data      --tokenizer http://a.b/c                  http://a.b/c: no such folder
data      --tokenizer=                              no such folder
data      --out c.txt                               c.txt: not a token file
data      --out m                                   m: not a token file
data      --out alone.bin                           alone.bin: not a token file
data      --out x                                   x.json is there and of
data      --out c.txt/x.bin                         c.txt
data      --out=                                    '' will not do as a name
data      --out new/                                'new/' will not do
data      --train-tokenizer 100                     one of --tokenizer and --train-tokenizer
data      extra                                     extra
learn     --train-tokenizer 99                      99 is no size
learn     --train-tokenizer 1e3                     --train-tokenizer: invalid int
learn     --corpus zh.txt --out m                   m: it has a vocab.txt
learn     --out file                                file
learn     --corpus x.pdf                            x.pdf: no .txt
distill   --teacher six --num-hidden-layers 4       4 recursions cannot be spread
distill   --student six                             6 recursions cannot be spread
distill   --student wide                            hidden_size of the teacher 24
distill   --teacher bert-base-uncased               bert-base-uncased: no such folder
distill   --student bert-base-uncased               bert-base-uncased: no such folder
distill   --tokenizer bert-base-uncased             bert-base-uncased: no such folder
distill   --teacher m/model.safetensors             m/model.safetensors: no such folder
distill   --teacher c.txt                           c.txt: no such folder
distill   --teacher cut                             cut/model.safetensors: not safetensors
distill   --teacher noconfig                        noconfig/config.json
distill   --teacher novocab                         novocab: no tokenizer.json or vocab.txt
distill   --teacher relu                            relu/config.json: hidden_act 'relu'
distill   --corpus zh.txt                           zh.txt: most tokens are [UNK]
distill   --corpus pdf.txt                          pdf.txt: most tokens are [UNK]
distill   --corpus x.pdf                            x.pdf: no .txt
distill   --corpus alone.bin                        alone.bin: not a token file
distill   --corpus list.bin                         list.bin: not a token file
distill   --corpus high.bin                         65535
distill   --corpus t.bin c.txt                      t.bin: no .txt
distill   --corpus c.txt t.bin                      t.bin: no .txt
distill   --cache file                              file
distill   --out file/x                              file
distill   --dropout nan                             --dropout nan
distill   --seed -1                                 --seed -1
distill   --adapter-size 99999999                   adapter_size is 99999999
finetune  --train nowhere.tsv                       nowhere.tsv
finetune  --train m                                 m
finetune  --train empty.tsv                         empty.tsv: empty
finetune  --train header.tsv                        header.tsv: no example
finetune  --train single.tsv                        single.tsv:2: the only example
finetune  --train same.tsv                          same.tsv:*all examples have the label 'a'
finetune  --train headless.tsv                      headless.tsv:2: no column 'text'
finetune  --train comma.tsv                         comma.tsv:2: no column 'text'
finetune  --train semicolon.csv                     semicolon.csv:2: no column 'text'
finetune  --train utf16.tsv                         utf16.tsv:1: not UTF-8
finetune  --train x.xlsx                            x.xlsx:1: not UTF-8
finetune  --train array.jsonl                       array.jsonl:1: not a JSON object
finetune  --train half.jsonl                        half.jsonl:1: *surrogates
finetune  --train null.jsonl                        null.jsonl:1: no column 'label'
finetune  --train break.jsonl --dev z.tsv           z.tsv:2: label 'z' is not
finetune  --train good.tsv --dev z.tsv              z.tsv:2: label 'z' is not
finetune  --train good.tsv --test empty.tsv         empty.tsv: empty
finetune  --task regression                         good.tsv:2: label 'a' is not a number
finetune  --task regression --train huge.tsv        huge.tsv:2: label '999*is not a number
finetune  --task tagging                            good.tsv:1: tag 'label'
finetune  --task tagging --train pos.tsv            pos.tsv:1: tag 'NN'
finetune  --task qa                                 good.tsv:1: not SQuAD
finetune  --task qa --train squad.json              squad.json: no example
finetune  --task sst2 --data nowhere                nowhere/train.tsv
finetune  --task sst2 --data good.tsv               good.tsv/train.tsv
finetune  --task sst2 --data glue                   glue/dev.tsv
finetune  --task mnli --data glue                   glue/train.tsv:2: no column 'sentence1'
finetune  --task cola --data glue                   glue/train.tsv:1: 2 columns, not 4
finetune  --task SST2                               'SST2'
finetune  --text nope                               good.tsv:2: no column 'nope'
finetune  --label nope                              good.tsv:2: no column 'nope'
finetune  --model bert-base-uncased                 bert-base-uncased: no such folder
finetune  --model cut                               cut/model.safetensors: not safetensors
finetune  --model md                                md: no tokenizer.json or vocab.txt
finetune  --model noconfig                          noconfig/config.json
finetune  --out m                                   --out m
finetune  --out file/x                              file
finetune  --lr 1e-3 nan                             --lr nan
finetune  --epochs inf                              --epochs inf
finetune  --stride 0                                --stride 0
finetune  --distill-from m                          m/task.json
finetune  --distill-from nowhere                    nowhere/config.json
predict   --model m                                 m/task.json
predict   --model nowhere                           nowhere
predict   --model bad-text                          bad-text: *length is 'x'
predict   --model bad-none                          bad-none: *length=0
predict   --model bad-labels                        bad-labels: *labels is 5
predict   --model bad-three                         bad-three: *size mismatch
predict   --model bad-kind                          bad-kind: *kind='x'
predict   --model bad-qa                            bad-qa: *kind='qa'
predict   --model bad-mean                          bad-mean: *mean is 'x'
predict   --model bad-more                          bad-more: *more
predict   --model bad-head                          bad-head/head.safetensors: not safetensors
"""


@pytest.mark.parametrize("line", MISTAKES.strip().splitlines())
def test_a_mistake_is_one_line_and_nothing_is_written(line, desk, monkeypatch, capsys):
    command, flags, said = re.fullmatch(r"(\w+) +(.+?)  +(.+)", line).groups()
    name = {"learn": "data", "predict": "finetune"}.get(command, command)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(desk)
    before = snapshot(desk)
    capsys.readouterr()
    assert MAIN[name]([*USUAL[command].split(), *flags.split()]) == 2
    *notices, error = capsys.readouterr().err.splitlines()
    assert error.startswith(f"{name}.py: error: ") and len(error) < 700
    assert re.search(".*".join(map(re.escape, said.split("*"))), error), error
    assert all("replaced" in notice for notice in notices)       # of bytes that are no text
    shutil.rmtree("cache", ignore_errors=True)                   # tokens are made before training
    assert snapshot(desk) == before


# ---- A full disk ---------------------------------------------------------------------------------

class Disk:
    """Counts what is done to files that are written; the one numbered `full` does half of it and
    finds no space. last: the file it was done to."""
    def __init__(self, monkeypatch):
        self.full, self.done, self.last = None, 0, ""
        for module in (data, distill, minialbert):
            monkeypatch.setattr(module, "open", self.open, raising=False)
        temporary, fsync, replace = tempfile.TemporaryFile, os.fsync, os.replace
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda: File(temporary(), self, "tmp"))
        monkeypatch.setattr(os, "fsync", lambda number: (self.tick(), fsync(number)))
        monkeypatch.setattr(os, "replace", lambda a, b: (self.tick(b), replace(a, b)))

    def tick(self, name=None):
        self.last, self.done = str(name or self.last), self.done + 1
        if self.done == self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open(self, path, mode="r", **options):
        if not set(mode) & set("wa+"):
            return builtins.open(path, mode, **options)
        return File(builtins.open(path, mode, **options), self, path)


class File:
    """A file on such a Disk."""
    def __init__(self, file, disk, name):
        self.file, self.disk, self.name = file, disk, name

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        try:
            self.disk.tick(self.name)
        except OSError:
            self.file.write(content[:len(content) // 2])
            raise
        return self.file.write(content)

    def writelines(self, parts):
        self.write(b"".join(map(bytes, parts)))


def bytes_of(folder):
    """What a run leaves, without what the clock decides: the speed in log.jsonl and so its size,
    which is in the header of training.safetensors."""
    found = {name: content or b"" for name, content in snapshot(folder).items()}
    return {name: content[8 + int.from_bytes(content[:8], "little"):]
            if name.endswith("training.safetensors")
            else re.sub(rb'"tokens_per_second": \d+', b"", content)
            for name, content in found.items()}


@pytest.mark.parametrize("command, flags, half", [
    ("data", "--out out/t.bin", 0), ("learn", "", 0),
    ("distill", "--save-every 1 --log-every 2", 13),
    ("finetune", "--save-every 1 --log-every 2 --steps 2", 4)])
def test_a_full_disk_is_one_line_and_nothing_is_lost(command, flags, half, desk, tmp_path,
                                                     monkeypatch, capsys):
    """At every write of a run that goes on from its first checkpoint, after which, as its write
    numbered half, the log's second line would come."""
    name = {"learn": "data"}.get(command, command)
    monkeypatch.chdir(tmp_path)
    for file in ("c.txt", "good.tsv"):
        shutil.copy(desk / file, file)
    shutil.copytree(desk / "m", "m"), os.mkdir("half")
    out, more = tmp_path / "out", ["--resume"] if half else []

    def run(full=None):
        disk.full, disk.done = full, 0
        with warnings.catch_warnings(action="ignore"):
            return MAIN[name]([*USUAL[command].split(), *flags.split(), *more])
    disk = Disk(monkeypatch)
    assert run() is None                                 # also: all tokens are in the cache
    whole, writes = bytes_of(out), disk.done
    if half:
        shutil.rmtree("half"), shutil.rmtree(out)
        assert run(half) == 2 and list(out.rglob("training.safetensors")) and out.rename("half")
        shutil.copytree("half", out)
        assert run() is None and bytes_of(out) == whole
        writes = disk.done
    old = bytes_of(tmp_path / "half")
    for full in range(1, writes + 1):
        shutil.rmtree(out), shutil.copytree("half", out)
        capsys.readouterr()
        assert run(full) == 2
        *notices, error = capsys.readouterr().err.splitlines()
        assert error.startswith(f"{name}.py: error: ") and "No space left" in error, error
        file = os.path.basename(disk.last)               # the one without a name is in /tmp
        assert file.split(".")[0] in error or file in ("log.jsonl", "tmp"), error
        assert all("documents" in notice for notice in notices)
        for file, content in bytes_of(out).items():      # no other file, and no half of one
            assert content in (old.get(file), whole[file]) or file.endswith("log.jsonl"), file
        if full % 4 == 0 or not half:
            assert run() is None and bytes_of(out) == whole      # there is space again


@pytest.mark.parametrize("command", ["data", "learn", "distill", "finetune"])
def test_a_folder_that_is_locked_is_named(command, desk, tmp_path, monkeypatch, capsys):
    name = {"learn": "data"}.get(command, command)
    monkeypatch.chdir(desk)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.geteuid() == 0:                                # whom no mode keeps out
        def refuse(path, *_):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        usual = os.mkdir
        monkeypatch.setattr(os, "mkdir", lambda path, *mode: (
            refuse if str(locked) in str(path) else usual)(path, *mode))
    flags = USUAL[command].replace("--cache cache", f"--cache {tmp_path}/cache").split()
    capsys.readouterr()
    assert MAIN[name]([*flags, "--out", str(locked / "a" / "b")]) == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith(f"{name}.py: error: ") and "Permission denied" in error
    assert str(locked) in error and not list(locked.iterdir())


# ---- A kill between two writes -------------------------------------------------------------------

class Kill(BaseException):
    pass


@pytest.mark.parametrize("stale", [False, True])
def test_tokens_that_a_kill_left_half_written_are_made_anew(stale, model, tmp_path, monkeypatch):
    """Before and after each step at which a file comes, goes or changes its name."""
    tokenizer, out = Tokenizer(str(model)), str(tmp_path / "t.bin")
    corpus, other = (str(put(tmp_path / f"{seed}.txt", prose(60, seed))) for seed in (1, 2))
    content = {path: data.tokenise([path], tokenizer, out) and bytes_of(tmp_path)["t.bin"]
               for path in (corpus, other)}
    usual, calls = {name: getattr(os, name) for name in ("fsync", "remove", "replace")}, []

    def step(name, *paths):
        calls.append(name)
        if len(calls) == killed:
            raise Kill
        usual[name](*paths)
    for killed in range(1, 9):
        for path in (out, f"{out}.json"):
            if os.path.exists(path):
                usual["remove"](path)
        if stale:
            data.tokenise([other], tokenizer, out)
        with monkeypatch.context() as patch:
            for name in usual:
                patch.setattr(os, name, lambda *paths, name=name: step(name, *paths))
            calls.clear()
            try:
                data.tokenise([corpus], tokenizer, out)
            except Kill:
                pass
        if os.path.exists(out):                          # tokens are never beside facts of others
            made = TokenFile(out).made_from["corpus"][0][0]
            assert bytes_of(tmp_path)["t.bin"] == content[made]
        else:
            with pytest.raises(ValueError, match="t.bin: not a token file"):
                TokenFile(out)
        data.tokenise([corpus], tokenizer, out)
        assert bytes_of(tmp_path)["t.bin"] == content[corpus]
    assert killed > len(calls) >= 4                      # the last time nothing was left to kill
