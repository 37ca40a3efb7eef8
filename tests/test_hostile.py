"""Hostile files, mistakes of users, full disks, kills between two writes, and the hub: whatever
happens, one line says what is wrong, and what was there before is as it was."""
import builtins
import errno
import json
import math
import os
import pickle
import random
import re
import shutil
import tempfile
import threading
import time
import warnings
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import checkpoint
import data
import distill
import finetune
import tasks
from checkpoint import load, read_config, read_json, read_safetensors, save, write_safetensors
from conftest import LETTERS, assert_equal_tensors, make_squad, write_file
from data import SPECIAL_TOKENS, Tokenizer, TokenFile
from minialbert import Config, MiniALBERT

VOCABULARY = [f"w{i}" for i in range(60)] + list(LETTERS)
# The sizes of the small student.
SIZES = {"vocab_size": 101, "embedding_size": 12, "hidden_size": 24, "num_hidden_layers": 2,
         "adapter_size": 2, "num_attention_heads": 3, "intermediate_size": 40,
         "max_position_embeddings": 32}


def make_prose(num_documents, seed=0):
    """Make the text of a corpus: documents of three lines of 12 words."""
    rng = random.Random(seed)
    documents = []
    for _ in range(num_documents):
        lines = []
        for _ in range(3):
            words = rng.choices(VOCABULARY, k=12)
            lines.append(" ".join(words))
        documents.append("\n".join(lines))
    return "\n\n".join(documents) + "\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Make a folder with a small student and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save(MiniALBERT(Config(**SIZES)), folder)
    words = SPECIAL_TOKENS + ["."] + VOCABULARY
    write_file(folder / "vocab.txt", "\n".join(words) + "\n")
    return folder


def write_changed(path, facts, changes):
    """Write a file of JSON with facts, a dict, of which some are changed."""
    facts = dict(facts)
    facts.update(changes)
    write_file(path, json.dumps(facts))


# ---- Mutated files: each is read, or is a ValueError of one line that names the file ----

# What a value of JSON is exchanged for.
HOSTILE_VALUES = [0, -1, 4, 8, 1.0, 1.5, 2**24, 2**31, 2**63, 10**30, 1e999, float("nan"), True,
                  None, "", "x", "a\nb", "\ud800", "0" * 300, "F16", [], {}, [0], [-0.0], ["x"],
                  [[]], [2, 3], {"a": 1}]
# Bytes that are put into a file.
NOISE = [b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"', b"'", b"\\", b"\\ud800",
         b"-", b"9", b"e99", b"9" * 5000, b"[" * 5000, b'{"a":' * 3000, b"\r", b"\n", b"\n\n",
         b"\t", b",", b" ", b"\x0b", "\u2028".encode(), "\u4e2d".encode()]


def with_a_value_exchanged(value, rng):
    """Copy a value of JSON with one value in it exchanged, lost or put in twice."""
    # owner[key] is the value that will be changed. It is looked for from the box downwards, to a
    # random depth. The box is there so that the copy can be exchanged as a whole, too.
    box = {"all": json.loads(json.dumps(value))}
    owner = box
    key = "all"
    while isinstance(owner[key], (dict, list)) and owner[key] and rng.random() < 0.85:
        owner = owner[key]                               # one level down
        if isinstance(owner, dict):
            key = rng.choice(list(owner))
        else:
            key = rng.randrange(len(owner))
    fate = rng.random()
    if fate < 0.2 and isinstance(owner, list):
        owner.insert(key, owner[key])
    elif fate < 0.4 and owner is not box:
        del owner[key]
    else:
        owner[key] = rng.choice(HOSTILE_VALUES)
    return box["all"]


def with_header_exchanged(content, rng):
    """Change a value in the header of a safetensors file. For its parts see checkpoint.py."""
    data_begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:data_begin])
    exchanged = json.dumps(with_a_value_exchanged(header, rng)).encode()
    return len(exchanged).to_bytes(8, "little") + exchanged + content[data_begin:]


def mutate(content, rng, json_in):
    """Change the bytes of a file in one way: a bit is flipped, the end is cut off, noise is
    inserted, a line is lost or doubled (lines may then change their order), a value of JSON is
    exchanged.

    json_in: where there is JSON in the file. None: nowhere; "whole": the file is one value;
        "lines": each line is one; "header": the file is one of safetensors
    """
    kinds = ["flip", "cut", "insert", "double a line", "lose a line"]
    if json_in is not None:
        kinds += ["exchange"] * 3
    kind = rng.choice(kinds)
    position = rng.randrange(len(content))
    before = content[:position]
    if kind == "flip":
        changed = content[position] ^ (1 << rng.randrange(8))
        return before + bytes([changed]) + content[position + 1:]
    if kind == "cut":
        return before
    if kind == "insert":
        return before + rng.choice(NOISE) + content[position:]
    if kind == "exchange" and json_in == "header":
        return with_header_exchanged(content, rng)
    if kind == "exchange":
        rows = [content]
        if json_in == "lines":
            rows = content.splitlines()
        i = rng.randrange(len(rows))
        value = json.loads(rows[i])
        exchanged = with_a_value_exchanged(value, rng)
        rows[i] = json.dumps(exchanged).encode()
        return b"\n".join(rows)
    lines = content.splitlines(keepends=True)
    i = rng.randrange(len(lines))
    if kind == "double a line":
        lines.insert(i, lines[i])
    else:
        del lines[i]
    if rng.random() < 0.3:
        rng.shuffle(lines)
    return b"".join(lines)


def assert_survives(path, read, json_in=None, count=500):
    """Write many mutants to the path of a file and call read(mutant) for each. Assert that it is
    read, or is a ValueError of one line that names the file. json_in: as in mutate."""
    path = str(path)
    rng = random.Random(0)
    with open(path, "rb") as file:
        content = file.read()
    mutants = [mutate(content, rng, json_in) for _ in range(count)]
    mutants += [b"", b"[" * 100_000]
    named = path.removesuffix(".json")       # the .json beside a token file is named as its .bin
    num_read = 0
    with open(path, "wb") as file:                       # one file, because many would be slow
        for mutant in mutants:
            file.seek(0)
            file.write(mutant)
            file.truncate()
            file.flush()
            try:
                read(mutant)
                num_read += 1
            except ValueError as error:
                message = str(error)
                explanation = f"{message:.300} of {mutant[:300]}"
                assert named in message, explanation
                assert "\n" not in message, explanation
                assert len(message) < 2000, explanation
            except BaseException as error:               # a panic in Rust is no Exception
                raise AssertionError(f"{error!r:.300} of {mutant[:300]}") from error
    assert 20 < num_read < 0.96 * count                  # some are harmless, most are not


def test_a_mutated_safetensors_file_is_read_as_by_the_official_package_or_refused(tmp_path):
    official = pytest.importorskip("safetensors.torch", reason="it is in requirements-dev.txt")
    tensors = {"a": torch.randn(2, 3), "b.weight": torch.arange(4), "c": torch.ones(3).half(),
               "none": torch.zeros(0, 2), "one": torch.tensor(2.0), "t": torch.tensor([True])}
    path = tmp_path / "x.safetensors"
    write_safetensors(tensors, path, {"format": "pt"})

    def read(mutant):
        found, _ = read_safetensors(path)
        assert_equal_tensors(found, official.load(mutant))

    assert_survives(path, read, "header", count=2000)


def test_a_mutated_config_is_read_or_refused(model, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(model, folder)
    usual = read_config(folder / "config.json")

    def read(mutant):
        config = read_config(folder / "config.json")
        if config == usual:
            return
        # Either the weights are of another shape, or the change is of another kind: an epsilon.
        try:
            assert load(folder).config == config
        except ValueError as error:
            assert str(folder) in str(error)
            assert "\n" not in str(error)

    assert_survives(folder / "config.json", read, "whole")


@pytest.mark.parametrize("sizes", [
    {"hidden_size": 2**24, "embedding_size": 2**24, "num_attention_heads": 1},
    {"hidden_size": 2**24, "num_attention_heads": 1, "intermediate_size": 2**24},
    {"vocab_size": 2**24, "max_position_embeddings": 2**24, "type_vocab_size": 2**24},
    {"num_hidden_layers": 128, "adapter_size": 2**24}])
def test_a_config_of_any_size_costs_no_memory(sizes, model, tmp_path):
    """The sizes are compared with the file of weights before a model is made."""
    shutil.copytree(model, tmp_path / "m")
    facts = read_json(model / "config.json")
    write_changed(tmp_path / "m/config.json", facts, sizes)
    with pytest.raises(ValueError, match="16777216"):
        load(tmp_path / "m")


@pytest.mark.parametrize("tensor", [
    torch.ones(1).expand(2**20, 2**20), torch.ones(2**20, 2**20, device="meta")])
def test_a_pickle_of_any_size_costs_no_memory(tensor, model, tmp_path):
    """A file of some bytes may say that it holds 4 TB: one number, repeated, or none at all."""
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m/model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": tensor}, tmp_path / "m/pytorch_model.bin")
    with pytest.raises(ValueError, match="word_embeddings.weight' is .1048576"):
        load(tmp_path / "m")


def test_a_token_of_a_huge_number_is_refused_before_it_costs_memory(model, tmp_path):
    facts = json.loads(Tokenizer(str(model)).backend.to_str())
    facts["model"]["vocab"]["w7"] = 2**27                # the library writes a line for each number
    write_file(tmp_path / "tokenizer.json", json.dumps(facts))
    with pytest.raises(ValueError, match="tokenizer.json: 134217728 is too large"):
        Tokenizer(str(tmp_path))


@pytest.mark.parametrize("name, json_in", [
    ("vocab.txt", None), ("tokenizer_config.json", "whole"), ("tokenizer.json", "whole")])
def test_a_mutated_tokenizer_is_read_or_refused(name, json_in, model, tmp_path):
    shutil.copy(model / "vocab.txt", tmp_path / "vocab.txt")
    if name == "tokenizer_config.json":
        config = {"do_lower_case": True, "strip_accents": None, "a": [1]}
        write_file(tmp_path / name, json.dumps(config))
    elif name == "tokenizer.json":
        write_file(tmp_path / name, Tokenizer(str(model)).backend.to_str())

    def read(mutant):
        tokenizer = Tokenizer(str(tmp_path))
        ids = tokenizer.encode(["w1 w2 q\u00e9\u4e2d A \ufffd zz"])[0]
        assert min(ids) >= 0
        assert max(ids) < tokenizer.vocab_size
        assert max(tokenizer.special_ids) < tokenizer.vocab_size
        if name == "vocab.txt":                          # a line is a token, in its order
            text = mutant.decode("utf-8-sig")            # a mark of UTF-8 may be before the text
            text = text.replace("\r\n", "\n").replace("\r", "\n")
            words = text.removesuffix("\n").split("\n")
            tokens = [tokenizer.backend.id_to_token(i) for i in range(len(words))]
            assert tokens == words
            assert tokenizer.vocab_size == len(words)

    assert_survives(tmp_path / name, read, json_in)


@pytest.mark.parametrize("name, json_in", [("t.bin", None), ("t.bin.json", "whole")])
def test_a_mutated_token_file_is_read_or_refused(name, json_in, model, tmp_path):
    corpus = write_file(tmp_path / "c.txt", make_prose(60))
    path = str(tmp_path / "t.bin")
    data.tokenise([corpus], Tokenizer(str(model)), path)

    def read(mutant):
        token_file = TokenFile(path)
        num_tokens = os.path.getsize(path) // token_file.train_tokens.itemsize
        assert len(token_file.train_tokens) + len(token_file.valid_tokens) == num_tokens
        assert isinstance(token_file.made_from, dict)

    assert_survives(tmp_path / name, read, json_in)


# A text, its class and its number, for each row of a table.
ROWS = [("a b c", "yes", 1.5), ("d \u00e9", "no", -2), ("e, f", "yes", 0), ("g", "no", 3e3)]


def table_texts():
    """Write ROWS in four formats -> {"glue": text, "table": ..., "numbers": ..., "lines": ...}."""
    glue = "sentence\tlabel\n"
    table = "text,label\n"
    numbers = "text,score\n"
    lines = ""
    for text, label, number in ROWS:
        glue += f"{text}\t{label}\n"
        table += f'"{text}",{label}\n'
        numbers += f'"{text}",{number}\n'
        row = {"text": text, "label": label, "x": [number]}
        lines += json.dumps(row) + "\n"
    return {"glue": glue, "table": table, "numbers": numbers, "lines": lines}


TABLES = table_texts()
SQUAD = make_squad([("who", ["john"]), ("where", ["paris"]), ("why", []), ("what", ["red"])])
TAGS = "-DOCSTART-\tO\n\nMr\tO\nX\tB-per\nY\tI-per\n\nof\tO\nZ\tS-loc\n"
# What it is -> the name of the file, its text, where there is JSON in it.
TASK_FILES = {
    "glue": ("train.tsv", TABLES["glue"], None),
    "numbers": ("t.csv", TABLES["numbers"], None),
    "table": ("t.csv", TABLES["table"], None),
    "lines": ("t.jsonl", TABLES["lines"], "lines"),
    "tags": ("t.tsv", TAGS, None),
    "squad": ("t.json", SQUAD, "whole"),
}


def read_task_file(name, path):
    """Read one of TASK_FILES -> its examples."""
    if name == "glue":
        return tasks.read_glue("sst2", os.path.dirname(path))["train"]
    if name == "numbers":
        return tasks.read_table(path, ["text"], "score", kind="regression")
    if name == "tags":
        return tasks.read_tags(path)
    if name == "squad":
        return tasks.read_own_files("qa", {"train": [path]}, None, None)["train"]
    return tasks.read_table(path, ["text"], "label")


@pytest.mark.parametrize("name", TASK_FILES)
def test_a_mutated_file_of_a_task_is_read_or_refused(name, model, tmp_path):
    file_name, text, json_in = TASK_FILES[name]
    path = write_file(tmp_path / file_name, text)
    write_file(tmp_path / "dev.tsv", TABLES["glue"])     # GLUE needs it; it is not mutated
    tokenizer = Tokenizer(str(model))

    def read(mutant):
        for example in read_task_file(name, path):
            texts = [example.text]
            if name == "tags":
                texts = example.text
                assert len(example.text) == len(example.label)
            elif name == "numbers":
                assert math.isfinite(example.label)
            elif name == "squad":
                texts.append(example.second_text)
                for begin, answer in example.label:
                    end = begin + len(answer)
                    assert example.second_text[begin:end] == answer
            else:
                assert isinstance(example.label, str)
            assert texts
            assert tokenizer.encode(texts)               # whatever was read, a tokenizer takes

    assert_survives(path, read, json_in)


# ---- The hub: its own client against a server on this machine ---------------------------

COMMIT = "0123456789" * 4


def answer_fetches(requests, environment):
    """Call fetch() in this process with the arguments that come through a connection, and send back
    (folder, "") or ("", error), until it is killed."""
    for name in list(os.environ):
        if name.startswith("HF_"):                       # a user may have set HF_HUB_OFFLINE
            del os.environ[name]
    os.environ.update(environment)                       # before huggingface_hub is imported
    time.sleep = do_nothing                              # between the client's six attempts
    while True:
        name, weights = requests.recv()
        folder = ""
        message = ""
        try:
            folder = checkpoint.fetch(name, weights)
        except ValueError as error:
            message = str(error)
        requests.send((folder, message))


def do_nothing(seconds):
    """Stand in for time.sleep."""


class HubHandler(BaseHTTPRequestHandler):
    """Answers as the hub does for the repositories {name: {file: content}} of its server.

    server.cut lists the files of which only the first half is sent, server.log those asked for.
    """

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        file_request = re.fullmatch(r"/(.+)/resolve/[^/]+/(.+)", self.path)
        if file_request is not None:
            repository, file = file_request.groups()
            self.answer_file(repository, file)
        else:
            request = re.fullmatch(r"/api/models/(.+?)/(revision|tree)/.*", self.path)
            repository, kind = request.groups()
            self.answer_listing(repository, kind)

    def answer_file(self, repository, file):
        files = self.server.repositories.get(repository)
        if files is None:
            self.answer(404, {"X-Error-Code": "RepoNotFound"}, b"", 0)
            return
        content = files[file]
        if self.command == "GET":
            self.server.log.append(file)
        num_sent = len(content)
        if file in self.server.cut:
            num_sent = len(content) // 2
        number = list(files).index(file)
        headers = {"ETag": f"{number:040x}", "X-Repo-Commit": COMMIT}
        self.answer(200, headers, content, num_sent)

    def answer_listing(self, repository, kind):
        files = self.server.repositories.get(repository)
        if files is None:
            self.answer(404, {"X-Error-Code": "RepoNotFound"}, b"", 0)
            return
        if kind == "tree":
            facts = []
            for i, (name, content) in enumerate(files.items()):
                entry = {"type": "file", "path": name, "oid": f"{i:040x}", "size": len(content)}
                facts.append(entry)
        else:
            siblings = [{"rfilename": name} for name in files]
            facts = {"id": repository, "sha": COMMIT, "siblings": siblings}
        content = json.dumps(facts).encode()
        self.answer(200, {"Content-Type": "application/json"}, content, len(content))

    def answer(self, status, headers, content, num_sent):
        """Announce the whole content and send num_sent bytes of it."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:num_sent])

    def log_message(self, *args):
        """Print nothing."""


class Hub:
    """A server of HubHandler, and clients in processes of their own.

    A client reads its environment when it is started, so there is one for each environment.
    clients: {the environment as text: (the process, the connection to it)}
    """

    def __init__(self, folder, forked):
        self.folder = folder
        self.forked = forked
        self.clients = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
        self.server.repositories = {}
        self.server.cut = []
        self.server.log = []
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def fetch(self, name, weights=True, **environment):
        """Call fetch() in a process with this environment -> (the folder or "", the error)."""
        key = str(environment)
        if key not in self.clients:
            self.clients[key] = self.start_client(environment)
        self.server.log.clear()                          # before the client can ask for anything
        _, connection = self.clients[key]
        connection.send((name, weights))
        folder, error = connection.recv()
        if folder == "":
            assert name in error
            assert len(error.splitlines()) == 1
        return folder, error

    def start_client(self, environment):
        """Start a client -> its process and the connection to it."""
        settings = {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}", "HF_TOKEN": "",
            "HF_HOME": str(self.folder / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        settings.update(environment)
        connection, of_client = self.forked.Pipe()
        process = self.forked.Process(target=answer_fetches, args=(of_client, settings))
        process.start()
        of_client.close()                                # the process has its own
        return process, connection

    def stop_server(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def stop(self):
        self.stop_server()
        for process, connection in self.clients.values():
            process.kill()
            process.join()
            connection.close()


def in_two_shards(model, folder):
    """Split model.safetensors -> the files of a checkpoint in two shards: {name: bytes}."""
    tensors, _ = read_safetensors(model / "model.safetensors")
    file_of_tensor = {}
    files = {}
    for i in range(2):
        shard = f"model-0000{i + 1}-of-00002.safetensors"
        names = sorted(tensors)[i::2]
        write_safetensors({name: tensors[name] for name in names}, folder / shard)
        files[shard] = (folder / shard).read_bytes()
        for name in names:
            file_of_tensor[name] = shard
    index = json.dumps({"weight_map": file_of_tensor})
    files["model.safetensors.index.json"] = index.encode()
    return files


@pytest.fixture
def hub(model, tmp_path, forked):
    """Start a Hub with three repositories; one of them has its weights in two files."""
    pytest.importorskip("huggingface_hub", reason="it comes with tokenizers")
    whole = {name: (model / name).read_bytes() for name in sorted(os.listdir(model))}
    # Files that nobody needs: they are in many repositories.
    whole.update({"README.md": b"x", "tf_model.h5": b"x", "onnx/model.onnx": b"x"})
    large = dict(whole)
    del large["model.safetensors"]
    large.update(in_two_shards(model, tmp_path))
    hub = Hub(tmp_path, forked)
    hub.server.repositories = {"some/bert": whole, "cut/bert": whole, "large/bert": large}
    yield hub
    hub.stop()


def assert_same_weights(folder, other_folder):
    model = load(folder)
    other_model = load(other_folder)
    assert_equal_tensors(model.state_dict(), other_model.state_dict())


def test_only_the_files_that_are_needed_are_fetched_from_the_hub_and_each_once(hub, model):
    folder, _ = hub.fetch("some/bert", weights=False)
    assert sorted(hub.server.log) == ["config.json", "vocab.txt"]
    folder, _ = hub.fetch("some/bert")
    assert hub.server.log == ["model.safetensors"]
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors", "vocab.txt"]
    assert_same_weights(folder, model)
    assert Tokenizer(folder).digest == Tokenizer(str(model)).digest
    same_folder, _ = hub.fetch("some/bert")
    assert same_folder == folder
    assert hub.server.log == []


def test_weights_in_two_files_are_fetched_from_the_hub(hub, model):
    folder, _ = hub.fetch("large/bert")
    assert len(hub.server.log) == 5                      # with config.json and vocab.txt
    assert hub.server.log.count("model.safetensors.index.json") == 1
    assert_same_weights(folder, model)


def test_a_name_that_the_hub_does_not_know_is_one_line(hub):
    """Hub.fetch asserts that the error is one line with the name."""
    _, error = hub.fetch("no/such")
    assert "no such folder" in error
    assert "404" in error


def test_a_fetch_that_breaks_off_is_one_line_and_the_next_one_goes_on(hub, model):
    """Hub.fetch asserts that the error is one line with the name."""
    hub.server.cut.append("model.safetensors")
    _, error = hub.fetch("cut/bert")
    # Versions of huggingface_hub say this in different words; all give the numbers of bytes.
    assert re.search(r"received|\d+ bytes read", error)
    hub.server.cut.clear()
    folder, _ = hub.fetch("cut/bert")
    assert hub.server.log == ["model.safetensors"]
    assert_same_weights(folder, model)


def test_without_a_net_what_was_fetched_before_is_found(hub):
    folder, _ = hub.fetch("some/bert")
    found_offline, _ = hub.fetch("some/bert", HF_HUB_OFFLINE="1")
    assert found_offline == folder
    _, error = hub.fetch("large/bert", HF_HUB_OFFLINE="1")
    assert "large/bert: there is no such folder" in error
    hub.stop_server()                                    # nothing answers any more
    found_alone, _ = hub.fetch("some/bert")
    assert found_alone == folder
    _, error = hub.fetch("large/bert")
    assert "large/bert: there is no such folder" in error


# ---- Mistakes of users ------------------------------------------------------------------

def write_models(folder, model):
    """Write models: m, a good one; others of another shape, or with a file missing or broken."""
    shutil.copytree(model, folder / "m")
    other_shapes = {
        "six": {"num_hidden_layers": 6, "adapter_size": 0},
        "one-segment": {"type_vocab_size": 1},
        "wide": {"hidden_size": 48, "num_attention_heads": 6},
    }
    torch.manual_seed(1)
    for name, changes in other_shapes.items():
        sizes = dict(SIZES)
        sizes.update(changes)
        save(MiniALBERT(Config(**sizes)), folder / name)
        shutil.copy(model / "vocab.txt", folder / name)
    for name in ("cut", "novocab", "noconfig", "pickle"):
        shutil.copytree(model, folder / name)
    whole = (model / "model.safetensors").read_bytes()
    write_file(folder / "cut/model.safetensors", whole[:-9])
    (folder / "novocab/vocab.txt").unlink()
    (folder / "noconfig/config.json").unlink()
    write_file(folder / "roberta/config.json", '{"model_type": "roberta"}')
    write_file(folder / "roberta/vocab.json", "{}")
    (folder / "pickle/model.safetensors").unlink()
    write_file(folder / "pickle/pytorch_model.bin", pickle.dumps(os.system, protocol=4))


def write_corpora(folder, model, noise):
    """Write corpora and token files: c.txt and t.bin, which are good, and others."""
    chinese = "\u6211\u7231\u5317\u4eac\u5929\u5b89\u95e8 " * 9
    files = {
        # Corpora; the good one is c.txt.
        "file": "x",
        "md/readme.md": make_prose(3),
        "c.txt": make_prose(60),
        "zh.txt": f"{chinese}\n\n" * 80,
        "x.pdf": b"%PDF-1.4\n" + noise,
        "pdf.txt": b"%PDF-1.4\n" + noise,
        "text.txt.gz": make_prose(9),
        "prose.jsonl": make_prose(9),
        # Parts of token files.
        "x.bin.json": json.dumps({"mine": 1}),
        "cut.bin.json": '{"made_from": ',
        "alone.bin": b"\1\0" * 999,
        "high.bin": b"\xff\xff" * 999,                   # no vocabulary has the token 65535
    }
    for name, content in files.items():
        write_file(folder / name, content)
    data.tokenise([str(folder / "c.txt")], Tokenizer(str(model)), str(folder / "t.bin"))
    facts = {"dtype": "uint16", "train": 899, "valid": 100}
    write_changed(folder / "high.bin.json", facts, {"made_from": {}})


def write_tables(folder, noise):
    """Write files of tasks: good.tsv, which is good, and others."""
    header = "text\tlabel\n"
    rows = ""
    for i in range(10):
        rows += f"w{i} w2\ta\n"
        rows += f"w{i} w3\tb\n"
    table = header + rows
    pairs = "text\tnext\tlabel\n" + rows.replace("\t", "\tw3\t")
    files = {
        # Tables; the good ones are good.tsv and pairs.tsv.
        "good.tsv": table,
        "pairs.tsv": pairs,
        "headless.tsv": rows,
        "empty.tsv": "",
        "single.tsv": header + "w1\ta\n",
        "same.tsv": header + "w1\ta\n" * 9,
        "z.tsv": header + "w1\tz\n",
        "semicolon.csv": table.replace("\t", ";"),
        "x.xlsx": b"PK\3\4" + noise,
        "utf16.tsv": table.encode("utf-16"),
        "array.jsonl": json.dumps([{"text": "w1", "label": "a"}] * 9),
        # Texts to predict, and files of the other kinds of tasks.
        "blank.txt": " \n\n",
        "o.tsv": "w1\tO\n\nw2\tO\n",
        "space.json": make_squad([("who", [" "])]),
    }
    for name, content in files.items():
        write_file(folder / name, content)


def write_fine_tuned_models(folder, model):
    """Write fine-tuned models: tuned, a good one, and others with a broken task.json or head."""
    tuned = folder / "tuned"
    shutil.copytree(model, tuned)
    head = {"weight": torch.zeros(2, 24), "bias": torch.zeros(2)}
    write_safetensors(head, tuned / "head.safetensors")
    facts = {"name": "classification", "kind": "classification", "labels": ["a", "b"],
             "metrics": ["accuracy"], "length": 16, "stride": 8, "pair": False, "mean": 0.0,
             "sd": 1.0, "unanswerable": False}
    write_file(tuned / "task.json", json.dumps(facts))
    changes_of_task = {
        # Two other tasks with which nothing is wrong.
        "pair": {"pair": True},
        "qa": {"name": "qa", "kind": "qa", "metrics": ["f1"], "pair": True, "labels": [],
               "length": 32},
        # Facts that are wrong.
        "bad-text": {"length": "x"},
        "bad-three": {"labels": ["a", "b", "c"]},        # the head is for two labels
        "bad-twice": {"labels": ["a", "a"]},
        "bad-metric": {"metrics": ["accuracy", "bleu"]},
        "bad-more": {"more": 1},
    }
    for name, changes in changes_of_task.items():
        shutil.copytree(tuned, folder / name)
        write_changed(folder / name / "task.json", facts, changes)
    for name in ("headless", "bad-head", "bad-infinite", "bad-vocab"):
        shutil.copytree(tuned, folder / name)
    (folder / "headless/head.safetensors").unlink()
    write_file(folder / "bad-head/head.safetensors", "x")
    head["weight"] = torch.full((2, 24), 3e38)           # a sum of two is infinite
    write_safetensors(head, folder / "bad-infinite/head.safetensors")
    words = (model / "vocab.txt").read_text()
    more_words = "\n".join(f"more{i}" for i in range(11))
    write_file(folder / "bad-vocab/vocab.txt", words + more_words)


@pytest.fixture(scope="module")
def desk(model, tmp_path_factory):
    """Make a folder with all that the mistakes below are made with: good files and bad ones."""
    folder = tmp_path_factory.mktemp("desk")
    noise = random.Random(0).randbytes(4000)
    write_models(folder, model)
    write_corpora(folder, model, noise)
    write_tables(folder, noise)
    write_fine_tuned_models(folder, model)
    return folder


MAIN = {"data": data.main, "distill": distill.main, "finetune": finetune.main}
# The script of each command.
SCRIPT = {"data": "data", "learn": "data", "distill": "distill", "finetune": "finetune",
          "glue": "finetune", "predict": "finetune", "measure": "distill", "score": "finetune"}
# The flags of each command with which nothing is wrong.
USUAL = {
    "data": "--corpus c.txt --tokenizer m --out out.bin",
    "learn": "--corpus c.txt --train-tokenizer 100 --out out",
    "distill": "--teacher m --corpus c.txt --cache cache --out out --length 16 --batch-size 4 "
               "--steps 2 --device cpu",
    "finetune": "--model m --task classification --train good.tsv --steps 1 --batch-size 4 "
                "--length 16 --device cpu --out out",
    "glue": "--model m --steps 1 --batch-size 4 --length 16 --device cpu --out out",
    "predict": "--model tuned --predict w1",
    "measure": "--teacher m --corpus c.txt --cache cache --length 16 --device cpu",
    "score": "--model tuned --device cpu"}


def exchange_flags(command, flags):
    """List the usual flags of a command without those that `flags` gives, and then these."""
    words = USUAL[command].split()
    kept = []
    for name, value in zip(words[::2], words[1::2]):
        if name not in flags:
            kept += [name, value]
    return kept + flags


# A command, the flags that are exchanged, what the error says; * stands for anything. Two spaces
# or more are between the flags and the error.
MISTAKES = """
data      --corpus x.pdf                        x.pdf: not a regular file whose name ends in .txt
data      --corpus md                           md: no .txt, .jsonl or .csv
data      --corpus nowhere.txt                  nowhere.txt does not exist
data      --corpus text.txt.gz                  text.txt.gz: not a whole, undamaged file
data      --corpus prose.jsonl                  prose.jsonl:1: not a JSON object
data      --corpus pdf.txt                      pdf.txt: not UTF-8
data      --corpus zh.txt                       zh.txt: 100% of the characters become [UNK]
data      --text body                           --text body: *c.txt: a .txt has no columns
data      --tokenizer c.txt                     c.txt: this is a file; give the folder
data      --tokenizer novocab                   novocab: it has no tokenizer.json and no vocab.txt
data      --tokenizer no-such/bert              no-such/bert: there is no such folder
data      --tokenizer=                          a name is empty
data      --out c.txt                           --out 'c.txt': the name of a token file must end
data      --out alone.bin                       alone.bin: not a token file
data      --out x.bin                           x.bin.json exists and is not the description
data      --out cut.bin                         cut.bin.json: not a JSON object
data      --out c.txt/x.bin                     c.txt: File exists
data      --out=                                argument --out: a path is empty
data      --train-tokenizer 100                 --train-tokenizer: not allowed with argument --tok
data      --input c.txt                         unrecognized arguments: --input c.txt
finetune  --data=                               --data: a path is empty
distill   --cache=                              --cache: a path is empty
distill   --corpus=                             --corpus: a path is empty
data      --corpus=                             --corpus: a path is empty
finetune  --train=                              --train: a path is empty
learn     --train-tokenizer 99                  --train-tokenizer 99: the size must be from 100
learn     --out file                            file: File exists
distill   --teacher no-such/bert                no-such/bert: there is no such folder
distill   --teacher cut                         cut/model.safetensors: not a safetensors file
distill   --teacher pickle                      pickle/pytorch_model.bin: *no pickle, or holds more
distill   --corpus t.bin --text body            --text body: a token file has no columns
distill   --teacher noconfig                    noconfig/config.json: No such file or directory
distill   --corpus high.bin                     token 65535 is in the corpus, but those of the
distill   --corpus c.txt t.bin                  t.bin: a token file (.bin) must be
distill   --cache file                          file: File exists
distill   --out file/x                          file/x: Not a directory
finetune  --train nowhere.tsv                   nowhere.tsv: No such file or directory
finetune  --train m                             error: m is not a regular file
finetune  --train empty.tsv                     empty.tsv: the file has no examples
finetune  --train single.tsv                    single.tsv:2: *this is the only one
finetune  --train same.tsv                      same.tsv:*: this and all other examples to
finetune  --train headless.tsv                  headless.tsv:2: the column 'text' is missing
finetune  --train utf16.tsv                     utf16.tsv: its first line has NUL bytes. If it is in
finetune  --train x.xlsx                        x.xlsx: the ending of a table must be
finetune  --train array.jsonl                   array.jsonl:1: not a JSON object
finetune  --text text text                      --text: give one column or two different ones
finetune  --text text label                     --text and --label: 'label' cannot be both
finetune  --task tagging --train o.tsv          o.tsv:*: this and all other *only the label 'O'
finetune  --task qa --train space.json          space.json:*the answer ' ' *has no words
finetune  --distill-from pair                   pair was fine-tuned for classification of two texts
finetune  --train good.tsv --dev z.tsv          z.tsv:2: label 'z' does not occur
finetune  --task regression                     good.tsv:2: label 'a': not a number
finetune  --task tagging                        good.tsv:1: the tag 'label' is neither O nor one of
finetune  --task qa                             good.tsv: not a file in SQuAD's form (one JSON
glue      --task sst2 --data nowhere            nowhere/train.tsv
finetune  --task SST2                           --task: invalid choice: 'SST2'
finetune  --lr 1e-3 2e-3 0.001                  --lr: the same rate is given twice
finetune  --text nope                           good.tsv:2: the column 'nope' is missing
finetune  --label nope                          good.tsv:2: the column 'nope' is missing
finetune  --model no-such/bert                  no-such/bert: there is no such folder
finetune  --model md                            md/config.json: No such file or directory
finetune  --model novocab                       novocab: it has no tokenizer.json and no vocab.txt
finetune  --model roberta                       roberta/config.json: *model_type is 'roberta', but
finetune  --out m                               --out m: this folder is read from
finetune  --out tuned --distill-from tuned      --out tuned: this folder is read from
finetune  --out md                              --out md is not empty
finetune  --out bad-head --resume               there is no run of finetune.py in bad-head
distill   --out tuned --student tuned           --out tuned: this folder is read from
distill   --out wide --tokenizer wide           --out wide: this folder is read from
distill   --out md                              --out md is not empty
distill   --out six --resume                    there is no run of distill.py in six
distill   --warmup 3                            --warmup 3 is more than --steps 2
measure   --evaluate --length 33                --length 33: the teacher has only 32 positions
measure   --evaluate --teacher none             give a --teacher or a --student to measure
measure   --evaluate --device cuda              --device cuda: torch finds no GPU here
score     --evaluate                            give files to measure on with --dev FILE or --test
score     --evaluate --dev good.tsv --data glue  --data: the task classification does not use it
score     --evaluate --dev z.tsv                z.tsv:2: label 'z' does not occur
score     --evaluate --dev good.tsv --task qa   --task qa: tuned was fine-tuned for classification
score     --evaluate --dev pairs.tsv --text text next  pairs.tsv:2, *: this task needs one text
score     --evaluate --dev good.tsv --model bad-vocab  bad-vocab: its tokenizer has 103 tokens
score     --evaluate --dev good.tsv --model m   m: not the folder of a fine-tuned model
finetune  --device cuda                         --device cuda: torch finds no GPU here
finetune  --task tagging --text text            --text: the task tagging does not use it; it is for
finetune  --task qa --label label               --label: the task qa does not use it
finetune  --stride 3                            --stride: the task classification does not use it
finetune  --data glue                           --data: the task classification does not use it
finetune  --epochs 2                            --epochs: --steps says already how long
finetune  --hidden-weight 3                     --hidden-weight: there is no teacher
finetune  --distill-from tuned --hidden-weight 1 --freeze  --hidden-weight: with --freeze
finetune  --model one-segment --train pairs.tsv --text text next  one-segment: type_vocab_size is 1
glue      --train good.tsv                      --train: the task code does not use it; it is for
glue      --freeze                              --freeze: without --task the built-in task
glue      --task sst2 --dev good.tsv            --dev: the task sst2 does not use it; *regression
glue      --task regression --model nowhere     --task regression needs files of yours
finetune  --out file/x                          file/x: Not a directory
finetune  --lr 1e-3 nan                         --lr: nan
finetune  --epochs inf                          --epochs: inf
finetune  --seeds 0                             --seeds: 0 is not from 1
finetune  --adapters-only --freeze              --freeze: not allowed with argument --adapters-only
finetune  --stride 0                            --stride: 0
finetune  --distill-from m                      m: not the folder of a fine-tuned model
finetune  --distill-from nowhere                nowhere: not the folder of a fine-tuned model
predict   --predict nowhere.txt                 --predict nowhere.txt: there is no such file
predict   --predict=                            --predict '': there is no text
predict   --predict blank.txt                   --predict 'blank.txt': there is no text
predict   --predict semicolon.csv               --predict semicolon.csv: *not a folder, a table
predict   --model bad-infinite                  what the model computes is not finite
predict   --model bad-vocab                     bad-vocab: its tokenizer has 103 tokens
predict   --model qa --predict space.json --out space.json --overwrite  this file is read from
predict   --predict md                          --predict md: give a regular file*not a folder
predict   --device cuda                         --device cuda: torch finds no GPU here
predict   --out file                            --out and --overwrite: only the answers to a SQuAD
predict   --overwrite                           --out and --overwrite: only the answers to a SQuAD
predict   --model m                             m: not the folder of a fine-tuned model: *first
predict   --model m/vocab.txt                   m/vocab.txt: not the folder of a fine-tuned
predict   --model headless                      headless/head.safetensors: No such file
predict   --model bad-text                      bad-text/task.json: not a task: length is 'x'
predict   --model bad-three                     bad-three/head.safetensors: 'bias' is [2], not [3]
predict   --model bad-twice                     bad-twice/task.json: *the same label twice
predict   --model bad-metric                    bad-metric/task.json: *metrics has 'bleu'
predict   --model bad-more                      bad-more/task.json: not a task: *'more'
predict   --model bad-head                      bad-head/head.safetensors: not a safetensors file
"""


def stamps(folder):
    """List all files and folders below a folder: {path: (size, time of the last write)}; for a
    folder None. snapshot, below, reads the files instead, which takes four times as long."""
    found = {}
    for path in folder.rglob("*"):
        found[path] = None
        if not path.is_dir():
            about = path.stat()
            found[path] = (about.st_size, about.st_mtime_ns)
    return found


def read_error(capsys, script):
    """Read standard error and assert that its last line is an error of the script -> (the lines
    before it, the error)."""
    lines = capsys.readouterr().err.splitlines()
    error = lines[-1]
    assert error.startswith(f"{script}.py: error: ")
    return lines[:-1], error


def return_false():
    """Stand in for torch.backends.mps.is_available."""
    return False


@pytest.mark.parametrize("line", MISTAKES.strip().splitlines())
def test_a_mistake_is_one_line_and_nothing_is_written(line, desk, monkeypatch, capsys):
    command, flags, message = re.fullmatch(r"(\w+) +(.+?)  +(.+)", line).groups()
    script = SCRIPT[command]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.backends.mps, "is_available", return_false)
    monkeypatch.chdir(desk)
    before = stamps(desk)
    capsys.readouterr()
    status = MAIN[script](exchange_flags(command, flags.split()))
    assert status == 2
    notices, error = read_error(capsys, script)
    assert len(error) < 700
    pattern = re.escape(message).replace(r"\*", ".*")
    assert re.search(pattern, error), error
    for notice in notices:                               # warnings about what is in a file
        assert re.search("replaced|is empty", notice)
    shutil.rmtree("cache", ignore_errors=True)           # tokens are made before training
    assert stamps(desk) == before


# ---- A full disk ------------------------------------------------------------------------

UNNAMED = "a file without a name"


class Disk:
    """A disk that is full in one step of a program.

    A step is the first write into a file, its fsync, which brings it to the disk for good, or its
    renaming. The steps are counted from 1. In the step full_at there is no space; None: never.
    names: the name of the file in each step so far
    """

    def __init__(self, monkeypatch):
        self.full_at = None
        self.names = []
        self.name_of_descriptor = {}                     # of each file that was opened to write
        self.original_temporary_file = tempfile.TemporaryFile
        self.original_fsync = os.fsync
        self.original_replace = os.replace
        for module in (checkpoint, data, distill):
            monkeypatch.setattr(module, "open", self.open, raising=False)
        monkeypatch.setattr(tempfile, "TemporaryFile", self.temporary_file)
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "replace", self.replace)

    def step(self, name):
        """Count a step with a file. OSError if there is no space."""
        self.names.append(str(name))
        if len(self.names) == self.full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # The other methods stand in for the functions of Python by which the program writes.

    def open(self, path, mode="r", **options):
        file = builtins.open(path, mode, **options)
        if mode in ("r", "rb"):
            return file
        return self.written_file(file, path)

    def temporary_file(self, dir):
        file = self.original_temporary_file(dir=dir)
        return self.written_file(file, UNNAMED)

    def written_file(self, file, name):
        self.name_of_descriptor[file.fileno()] = name
        return WrittenFile(file, self, name)

    def fsync(self, descriptor):
        self.step(self.name_of_descriptor[descriptor])
        self.original_fsync(descriptor)

    def replace(self, source, target):
        self.step(target)
        self.original_replace(source, target)


class WrittenFile:
    """A file on a Disk. Its first write is a step. If there is no space, half of what should be
    written is in the file, as on a real disk."""

    def __init__(self, file, disk, name):
        self.file = file
        self.disk = disk
        self.name = name
        self.is_empty = True

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.file.close()

    def write(self, content):
        if self.is_empty:
            self.is_empty = False
            try:
                self.disk.step(self.name)
            except OSError:
                half = len(content) // 2
                self.file.write(content[:half])
                raise
        return self.file.write(content)


class Command:
    """A command that is run again and again on a Disk. It writes into the folder out."""

    def __init__(self, name, flags, disk, capsys):
        self.script = SCRIPT[name]
        self.flags = exchange_flags(name, flags)
        self.disk = disk
        self.capsys = capsys

    def run(self, full_at):
        """Run the command -> what its main() returns."""
        self.disk.full_at = full_at
        self.disk.names.clear()
        main = MAIN[self.script]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return main(self.flags)

    def succeed(self):
        """Run the command on a disk with enough space -> the name of the file in each step."""
        assert self.run(full_at=None) is None
        return list(self.disk.names)

    def fail(self, full_at):
        """Run the command on a disk that is full in a step. One line must say so."""
        self.capsys.readouterr()
        assert self.run(full_at) == 2
        notices, error = read_error(self.capsys, self.script)
        assert "No space left" in error
        assert_names_file(error, self.disk.names[full_at - 1])
        for notice in notices:
            assert notice.startswith("warning: ")
            assert "documents" in notice


def assert_names_file(error, name):
    """Assert that an error names a file that is written on a Disk; for a temporary file it must
    name the file whose place that was to take."""
    name = os.path.basename(name)
    if name == UNNAMED:
        assert "t.bin" in error                          # part of the token file is there meanwhile
    else:
        name = re.sub(r"(\.[0-9a-f]{16})?\.tmp$", "", name)
        assert name in error


def snapshot(folder):
    """Read all files below a folder: {name: bytes}; for a folder in it None."""
    contents = {}
    for path in folder.rglob("*"):
        content = None
        if path.is_file():
            content = path.read_bytes()
        name = str(path.relative_to(folder))
        contents[name] = content
    return contents


def bytes_of_run(folder):
    """Read what a run leaves, {name: bytes}, without what the clock decides: the speed and the
    time in log.jsonl and so its size, which is in the header of training.safetensors."""
    contents = {}
    for name, content in snapshot(folder).items():
        if content is None:                              # a folder
            content = b""
        elif name.endswith("training.safetensors"):
            header_size = int.from_bytes(content[:8], "little")
            content = content[8 + header_size:]
        else:
            content = re.sub(rb'"(tokens_per_second|time)": \d+', b"", content)
        contents[name] = content
    return contents


def assert_no_half_files(folder, before, whole):
    """Assert that each file in a folder is as it was before a run or as a whole run leaves it, and
    that no file is missing and none is left over. Only the log may be between the two."""
    found = bytes_of_run(folder)
    assert before.keys() <= found.keys()
    assert found.keys() <= whole.keys()
    for name, content in found.items():
        if not name.endswith("log.jsonl"):
            assert content in (before.get(name), whole[name]), name


@pytest.fixture
def workplace(desk, tmp_path, monkeypatch):
    """Make a working directory with a corpus, a table and a model of a single recursion, with which
    a command that is run many times is fast."""
    for name in ("c.txt", "good.tsv"):
        shutil.copy(desk / name, tmp_path)
    sizes = SIZES | {"num_hidden_layers": 1, "adapter_size": 0}
    save(MiniALBERT(Config(**sizes)), tmp_path / "m")
    shutil.copy(desk / "m" / "vocab.txt", tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name, flags", [("data", ["--out", "out/t.bin"]), ("learn", [])])
def test_a_full_disk_is_one_line_and_leaves_no_half_of_a_file(
        name, flags, workplace, monkeypatch, capsys):
    """The disk is full in each step in turn."""
    out = workplace / "out"
    command = Command(name, flags, Disk(monkeypatch), capsys)
    num_steps = len(command.succeed())
    whole = bytes_of_run(out)
    for full_at in range(1, num_steps + 1):
        shutil.rmtree(out)
        command.fail(full_at)
        assert_no_half_files(out, {}, whole)
        command.succeed()                                # there is space again
        assert bytes_of_run(out) == whole


def leave_first_step(command, out, first_step):
    """Run a training command of two steps into `out`, let the disk be full after the checkpoint of
    the first one, and move what is left to the folder first_step."""
    names = [os.path.basename(path) for path in command.succeed()]
    shutil.rmtree(out)
    # The log is first written after the first checkpoint. The steps of a Disk count from 1.
    command.fail(names.index("log.jsonl") + 1)
    assert list(out.rglob("training.safetensors"))
    out.rename(first_step)


@pytest.mark.parametrize("name", ["distill", "finetune"])
def test_a_full_disk_ends_a_training_run_with_one_line_and_it_can_go_on(
        name, workplace, monkeypatch, capsys):
    """The run goes on from the checkpoint of its first step. The disk is full in each of its own
    steps in turn."""
    out = workplace / "out"
    first_step = workplace / "first_step"
    flags = ["--steps", "2", "--save-every", "1", "--log-every", "2", "--resume"]
    command = Command(name, flags, Disk(monkeypatch), capsys)
    command.succeed()                                    # from here on the tokens are in the cache
    whole = bytes_of_run(out)
    shutil.rmtree(out)
    leave_first_step(command, out, first_step)
    before = bytes_of_run(first_step)
    shutil.copytree(first_step, out)
    num_steps = len(command.succeed())
    assert bytes_of_run(out) == whole
    for full_at in range(1, num_steps + 1):
        shutil.rmtree(out)
        shutil.copytree(first_step, out)
        command.fail(full_at)
        assert_no_half_files(out, before, whole)
        if full_at % 4 == 0:                             # to go on each time would take long
            command.succeed()                            # there is space again
            assert bytes_of_run(out) == whole


@pytest.mark.parametrize("command", ["data", "learn", "distill", "finetune"])
def test_a_folder_that_is_locked_is_named(command, desk, tmp_path, monkeypatch, capsys):
    script = SCRIPT[command]
    monkeypatch.chdir(desk)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)                             # nothing can be written into it
    original_mkdir = os.mkdir

    def mkdir(path, *mode):
        if str(locked) in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        original_mkdir(path, *mode)

    if os.geteuid() == 0:                                # root is kept out by no mode
        monkeypatch.setattr(os, "mkdir", mkdir)
    flags = USUAL[command].replace("--cache cache", f"--cache {tmp_path}/cache").split()
    flags += ["--out", str(locked / "a" / "b.bin")]
    capsys.readouterr()
    status = MAIN[script](flags)
    assert status == 2
    _, error = read_error(capsys, script)
    assert "Permission denied" in error
    assert str(locked) in error
    assert list(locked.iterdir()) == []


# ---- A kill between two writes ----------------------------------------------------------

class Kill(BaseException):
    """The end of a process: from then on it changes no file."""


class KillAtStep:
    """Kills the process before the step with this number, counted from 1.

    A step is a call of os.fsync, os.remove or os.replace, by which a file comes, goes or changes
    its name.
    """

    def __init__(self, number, monkeypatch):
        self.number = number
        self.num_steps = 0
        for name in ("fsync", "remove", "replace"):
            original_function = getattr(os, name)
            monkeypatch.setattr(os, name, partial(self.step, original_function))

    def step(self, original_function, *arguments):
        self.num_steps += 1
        if self.num_steps >= self.number:                # no later step is made, either
            raise Kill
        original_function(*arguments)


@pytest.mark.parametrize("has_other_tokens", [False, True])
def test_tokens_that_a_kill_left_half_written_are_made_anew(
        has_other_tokens, model, tmp_path, monkeypatch):
    """The process is killed at each step in turn. Tokens of another corpus may be there before.
    Those of one corpus must never stand beside the description of the other."""
    tokenizer = Tokenizer(str(model))
    token_path = tmp_path / "t.bin"
    description_path = tmp_path / "t.bin.json"
    corpus = write_file(tmp_path / "1.txt", make_prose(60, 1))
    other_corpus = write_file(tmp_path / "2.txt", make_prose(60, 2))

    def tokenise(path):
        data.tokenise([path], tokenizer, str(token_path))

    tokens_of = {}
    for path in (corpus, other_corpus):
        tokenise(path)
        tokens_of[path] = token_path.read_bytes()
    for number in range(1, 100):
        token_path.unlink(missing_ok=True)
        description_path.unlink(missing_ok=True)
        if has_other_tokens:
            tokenise(other_corpus)
        was_killed = False
        with monkeypatch.context() as patch:
            KillAtStep(number, patch)
            try:
                tokenise(corpus)
            except Kill:
                was_killed = True
        if token_path.exists():
            made_from = TokenFile(str(token_path)).made_from["corpus"][0][0]
            assert token_path.read_bytes() == tokens_of[made_from]
        else:
            with pytest.raises(ValueError, match="t.bin: not a token file"):
                TokenFile(str(token_path))
        tokenise(corpus)
        assert token_path.read_bytes() == tokens_of[corpus]
        if not was_killed:                               # it has fewer steps than that
            break
    assert number > 4                                    # at least four steps could be killed
