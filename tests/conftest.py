"""What several test files need: sizes, small random models, oracles and toy runs.

No test runs on a GPU, and each computes with one thread, which is best for tensors this small.
"""
import json
import math
import multiprocessing
import os
import random
import re
import signal
import string
import sys
from contextlib import contextmanager
from multiprocessing import forkserver

os.environ["CUDA_VISIBLE_DEVICES"] = ""                  # set before torch is imported
os.environ["no_proxy"] = "127.0.0.1"                     # the tests' own servers need no proxy
for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):        # a job on a cluster may have set them
    os.environ.pop(name, None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts a command in the background with Ctrl-C (SIGINT) ignored, and the processes
    # that the tests start would ignore it, too. Some tests send it, so it must end a process.
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))     # the modules, from anywhere
torch.set_num_threads(1)

from checkpoint import read_safetensors, save
from data import SPECIAL_TOKENS, Tokenizer
from minialbert import Config, MiniALBERT
from tasks import METRICS, Task

# The sizes are odd and all different, so that no test passes with two axes exchanged.
# They are named as in minialbert.py, but for F, which is called I there.
B = 3                                                    # sequences in a batch
T = 7                                                    # tokens in a sequence
C = 24                                                   # width of hidden states
H = 3                                                    # attention heads
D = C // H                                               # width of a head
V = 101                                                  # tokens in the vocabulary
E = 10                                                   # width of embeddings
F = 40                                                   # width of the feed-forward
A = 4                                                    # width of an adapter
K = 6                                                    # rank of a correction
R = 5                                                    # recursions
MAX_POSITIONS = 16

# The kinds of models, and the changes of small_config() that make each of them.
KINDS = {
    "bert": {"embedding_size": C, "num_hidden_groups": R},
    "bert, untied": {"embedding_size": C, "num_hidden_groups": R, "tie_decoder": False},
    "recursive": {},
    "recursive, E = C": {"embedding_size": C},
    "unshared, factorised": {"num_hidden_groups": R},
    "partly shared": {"num_hidden_groups": 2},
    "adapters": {"adapter_size": A},
    "adapters, E = C": {"adapter_size": A, "embedding_size": C},
    "adapters, untied": {"adapter_size": A, "tie_decoder": False},
    "corrections": {"correction_rank": K},
    "corrections, adapters, partly shared": {"correction_rank": K, "adapter_size": A,
                                             "num_hidden_groups": 2},
}


# ---- Small models and batches -----------------------------------------------------------

def small_config(**changes):
    """Make the Config of a small recursive student with these changes."""
    sizes = {
        "vocab_size": V, "embedding_size": E, "hidden_size": C, "num_hidden_layers": R,
        "num_attention_heads": H, "intermediate_size": F, "max_position_embeddings": MAX_POSITIONS,
    }
    sizes.update(changes)
    return Config(**sizes)


@torch.no_grad()
def randomise(module):
    """Give all parameters random values and return the module in eval mode.

    Nothing keeps a value that could hide a mistake: no norm is 1 and 0, no bias is 0.
    """
    for name, parameter in module.named_parameters():
        values = torch.randn_like(parameter) * 0.2
        is_norm_weight = parameter.ndim == 1 and "weight" in name
        if is_norm_weight:
            values = values + 1.0
        parameter.copy_(values)
    return module.eval()


def random_model(head=True, **changes):
    """Make a small model with random parameters, always the same ones, in eval mode."""
    torch.manual_seed(0)
    return randomise(MiniALBERT(small_config(**changes), head))


def make_batch():
    """Make ids, mask and segments (B, T), always the same; the rows have 7, 4 and 1 real tokens."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(V, (B, T), generator=generator)
    lengths = torch.tensor([[7], [4], [1]])
    mask = torch.arange(T) < lengths
    segments = torch.randint(2, (B, T), generator=generator)
    return ids, mask, segments


def assert_close(ours, theirs, limit=1e-5):
    """Assert that two tensors or arrays have the same shape and nearly the same values."""
    ours = torch.as_tensor(ours).double()
    theirs = torch.as_tensor(theirs).double()
    assert ours.shape == theirs.shape
    distance = (ours - theirs).abs().max()
    assert distance <= limit, f"their largest difference is {distance:.1e}, over {limit:.1e}"


def assert_close_states(found, expected, limit=1e-5):
    """Assert that two lists of hidden states have the same length and nearly the same values."""
    for found_state, expected_state in zip(found, expected, strict=True):
        assert_close(found_state, expected_state, limit)


def assert_equal_states(found, expected):
    """Assert that two lists of hidden states have the same length and the same values."""
    for found_state, expected_state in zip(found, expected, strict=True):
        assert torch.equal(found_state, expected_state)


def bytes_of(tensor):
    """List the bytes of a tensor: they can be compared where its numbers are nan, too."""
    return tensor.contiguous().view(-1).view(torch.uint8).tolist()


def assert_equal_tensors(found, expected):
    """Assert that two {name: tensor} are the same: names, shapes, types and every bit."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        assert found[name].dtype == tensor.dtype, name
        assert bytes_of(found[name]) == bytes_of(tensor), name


# ---- The oracle for a BERT: transformers ------------------------------------------------

@pytest.fixture
def transformers():
    """Import transformers, or skip the test."""
    return pytest.importorskip("transformers", reason="the oracle is in requirements-dev.txt")


def random_bert(transformers, kind="BertForMaskedLM", **changes):
    """Make a small BERT of transformers, of the class `kind`, with random parameters."""
    settings = {
        "vocab_size": V, "hidden_size": C, "num_hidden_layers": R, "num_attention_heads": H,
        "intermediate_size": F, "max_position_embeddings": MAX_POSITIONS,
        "attn_implementation": "eager",                  # the one that returns attention maps
    }
    settings.update(changes)
    config = transformers.BertConfig(**settings)
    bert_class = getattr(transformers, kind)
    torch.manual_seed(0)
    return randomise(bert_class(config))


@torch.no_grad()
def assert_same_as_bert(ours, bert, limit=1e-5):
    """Assert that our model computes what a BERT of transformers does, at every place of a batch:
    all hidden states, all attention maps and, where the BERT has a head, the logits."""
    ids, mask, segments = make_batch()
    bert.float()
    theirs = bert(ids, attention_mask=mask.long(), token_type_ids=segments,
                  output_hidden_states=True, output_attentions=True)
    num_layers = len(theirs.attentions)
    hidden, attention = ours(ids, mask, segments, maps=range(num_layers))
    assert_close_states(hidden, theirs.hidden_states, limit)
    for r, their_map in enumerate(theirs.attentions):
        assert_close(attention[r].exp(), their_map, limit)
    if "logits" in theirs:
        assert_close(ours.predict(hidden[-1]), theirs.logits, limit)
    elif "prediction_logits" in theirs:
        assert_close(ours.predict(hidden[-1]), theirs.prediction_logits, limit)
    else:
        assert ours.head is None


# ---- The oracle for a student: the authors' forward pass, multiplied out with numpy -----

LAYER = "encoder.albert_layer_groups.0.albert_layers.0"


def authors_weights(embedding_size, adapters):
    """Make random float64 arrays by the authors' names, without the prefixes of their files."""
    rng = np.random.default_rng(0)
    weights = {}

    def add_linear(name, size_out, size_in):
        weights[f"{name}.weight"] = rng.normal(0, 0.3, (size_out, size_in))
        weights[f"{name}.bias"] = rng.normal(0, 0.3, size_out)

    def add_norm(name, size):
        weights[f"{name}.weight"] = rng.normal(1, 0.3, size)
        weights[f"{name}.bias"] = rng.normal(0, 0.3, size)

    num_rows = {"word": V, "position": MAX_POSITIONS, "token_type": 2}
    for name, rows in num_rows.items():
        table = rng.normal(0, 1, (rows, embedding_size))
        weights[f"embeddings.{name}_embeddings.weight"] = table
    add_norm("embeddings.LayerNorm", embedding_size)
    if embedding_size != C:
        add_linear("projector", C, embedding_size)
    for name in ("query", "key", "value", "dense"):
        add_linear(f"{LAYER}.attention.{name}", C, C)
    add_norm(f"{LAYER}.attention.LayerNorm", C)
    add_linear(f"{LAYER}.ffn", F, C)
    add_linear(f"{LAYER}.ffn_output", C, F)
    add_norm(f"{LAYER}.full_layer_layer_norm", C)
    if adapters:
        for stack in ("att_adapters", "mlp_adapters"):
            for r in range(R):
                add_linear(f"{stack}.{r}.block.0", A, C)
                add_linear(f"{stack}.{r}.block.2", C, A)
                add_norm(f"{stack}.{r}.norm", C)
    add_linear("pooler", C, C)
    add_linear("vocab_transform", C, C)
    add_norm("vocab_layer_norm", C)
    add_linear("vocab_projector", V, C)
    return weights


class AuthorsModel:
    """The authors' forward pass in float64, matrix by matrix and head by head."""

    def __init__(self, weights):
        self.weights = weights

    def linear(self, x, name):
        weight = self.weights[f"{name}.weight"]
        bias = self.weights[f"{name}.bias"]
        return x @ weight.T + bias

    def norm(self, x, name):
        weight = self.weights[f"{name}.weight"]
        bias = self.weights[f"{name}.bias"]
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        scaled = centred / np.sqrt(variance + 1e-12)
        return scaled * weight + bias

    def gelu(self, x):
        erf = np.vectorize(math.erf)
        return x * (1 + erf(x / math.sqrt(2))) / 2

    def embed(self, ids, segments):
        word = self.weights["embeddings.word_embeddings.weight"][ids]
        position = self.weights["embeddings.position_embeddings.weight"][:T]
        segment = self.weights["embeddings.token_type_embeddings.weight"][segments]
        x = self.norm(word + position + segment, "embeddings.LayerNorm")
        if "projector.weight" in self.weights:
            x = self.linear(x, "projector")
        return x

    def adapter(self, x, name):
        if f"{name}.norm.weight" not in self.weights:
            return x
        bottleneck = self.gelu(self.linear(x, f"{name}.block.0"))
        widened = self.linear(bottleneck, f"{name}.block.2")
        return self.norm(x + widened, f"{name}.norm")

    def attention(self, x, mask):
        """Return what each token has gathered (B, T, C) and the attention map (B, H, T, T)."""
        query = self.linear(x, f"{LAYER}.attention.query")
        key = self.linear(x, f"{LAYER}.attention.key")
        value = self.linear(x, f"{LAYER}.attention.value")
        probs = np.zeros((B, H, T, T))
        mixed = np.zeros((B, T, C))
        for b in range(B):
            for h in range(H):
                columns = slice(h * D, (h + 1) * D)
                scores = query[b, :, columns] @ key[b, :, columns].T / math.sqrt(D)
                odds = np.exp(scores) * mask[b]
                probs[b, h] = odds / odds.sum(-1, keepdims=True)
                mixed[b, :, columns] = probs[b, h] @ value[b, :, columns]
        return self.linear(mixed, f"{LAYER}.attention.dense"), probs

    def forward(self, ids, mask, segments):
        """Return the hidden states, the attention maps and the logits at every place."""
        x = self.embed(ids, segments)
        hidden = [x]
        maps = []
        for r in range(R):
            x = self.adapter(x, f"att_adapters.{r}")
            attended, probs = self.attention(x, mask)
            x = self.norm(x + attended, f"{LAYER}.attention.LayerNorm")
            x = self.adapter(x, f"mlp_adapters.{r}")
            expanded = self.gelu(self.linear(x, f"{LAYER}.ffn"))
            contracted = self.linear(expanded, f"{LAYER}.ffn_output")
            x = self.norm(x + contracted, f"{LAYER}.full_layer_layer_norm")
            hidden.append(x)
            maps.append(probs)
        x = self.gelu(self.linear(x, "vocab_transform"))
        x = self.norm(x, "vocab_layer_norm")
        logits = self.linear(x, "vocab_projector")
        return hidden, maps, logits


def authors_checkpoint(weights, folder):
    """Write a checkpoint as the authors' code saves it and return its folder.

    The names of ALBERT's own tensors begin with albert.albert., those of the projector and the
    adapters, which the authors added, with albert., and those of the head have no prefix. There
    are a pooler and position_ids, too, but nothing uses them.
    """
    config = {
        "model_type": "albert", "architectures": ["MiniAlbertForMaskedLM"],
        "vocab_size": V, "hidden_size": C, "hidden_act": "gelu", "intermediate_size": F,
        "embedding_size": weights["embeddings.LayerNorm.weight"].size,
        "num_hidden_layers": R, "num_hidden_groups": 1, "inner_group_num": 1,
        "num_attention_heads": H, "max_position_embeddings": MAX_POSITIONS, "type_vocab_size": 2,
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "layer_norm_eps": 1e-12,
        "use_adapter": "att_adapters.0.norm.weight" in weights,
        "reduction_factor": 5,                           # 24 // 5 = 4, which is A
    }
    prefixes = {
        "embeddings": "albert.albert.", "encoder": "albert.albert.", "pooler": "albert.albert.",
        "projector": "albert.", "att_adapters": "albert.", "mlp_adapters": "albert.",
    }
    tensors = {"albert.albert.embeddings.position_ids": torch.arange(MAX_POSITIONS)[None]}
    for name, array in weights.items():
        part = name.split(".")[0]
        prefix = prefixes.get(part, "")
        tensors[prefix + name] = torch.from_numpy(array).float()
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


@torch.no_grad()
def assert_same_as_authors(model, weights):
    """Assert that our model computes what the authors' does: hidden states, maps and logits."""
    ids, mask, segments = make_batch()
    hidden, attention = model(ids, mask, segments, maps=range(R))
    authors_model = AuthorsModel(weights)
    expected_hidden, expected_maps, expected_logits = authors_model.forward(
        ids.numpy(), mask.numpy(), segments.numpy())
    assert_close_states(hidden, expected_hidden)
    for r in range(R):
        assert_close(attention[r].exp(), expected_maps[r])
    # The logits are as large as 10 or so, and float32 has only seven digits.
    assert_close(model.predict(hidden[-1]), expected_logits, 1e-4)


# ---- Runs of distill.py: a toy corpus, a toy teacher and the files of a run --------------

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORDS = [f"w{i}" for i in range(90)]                     # of the toy corpus
TOY_TEACHER = small_config(embedding_size=C, num_hidden_layers=4, num_hidden_groups=4,
                           max_position_embeddings=32)


@torch.no_grad()
def noisy_model(config, seed=1, head=True):
    """Make a model in train mode. Noise is added to its first values: no norm is 1, no bias 0."""
    torch.manual_seed(seed)
    model = MiniALBERT(config, head)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def sentence(first, num_words):
    """Make a text of the toy language, in which each word is 7 words after the one before."""
    words = []
    for i in range(num_words):
        number = (first + 7 * i) % len(WORDS)
        words.append(WORDS[number])
    return " ".join(words)


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Make a folder with corpus.txt, a teacher with its tokenizer, and headless, the same teacher
    without a head."""
    folder = tmp_path_factory.mktemp("toy")
    rng = random.Random(0)
    with open(folder / "corpus.txt", "w") as corpus:
        for _ in range(120):                             # documents
            for _ in range(3):
                first = rng.randrange(len(WORDS))
                corpus.write(f"{sentence(first, 11)} .\n")
            corpus.write("\n")
    vocabulary = SPECIAL_TOKENS + ["."] + WORDS
    save(noisy_model(TOY_TEACHER), folder / "teacher")
    save(noisy_model(TOY_TEACHER, head=False), folder / "headless")
    for name in ("teacher", "headless"):
        (folder / name / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    return folder


def distill_flags(toy, out, *more):
    """List the flags of a run of 12 steps that distils the toy teacher, and then those in more.

    If a flag is given twice, the last value counts. But the files of each --corpus are added up,
    so the toy corpus is in the list only if more has no --corpus.
    """
    flags = {
        "teacher": toy / "teacher", "cache": toy / "cache", "out": out, "length": 16,
        "batch-size": 4, "steps": 12, "warmup": 3, "lr": 0.01, "dropout": 0.1, "log-every": 1,
        "eval-every": 5, "save-every": 4, "device": "cpu",
    }
    if "--corpus" not in more:
        flags["corpus"] = toy / "corpus.txt"
    if "--student" not in more:                          # its model has a shape already
        flags["num-hidden-layers"] = 2
    words = [f"--{name}={value}" for name, value in flags.items()]
    return words + [str(word) for word in more]


def read_log(out):
    """Read the lines of a run's log.jsonl, without the speed and the time, which differ from run to
    run."""
    lines = []
    for text in (out / "log.jsonl").read_text().splitlines():
        line = json.loads(text)
        del line["tokens_per_second"]
        del line["time"]
        lines.append(line)
    return lines


def read_metadata(out):
    """Read the metadata of a run's last checkpoint: {"step": ..., "log": ..., "run": ...}."""
    _, metadata = read_safetensors(out / "training.safetensors")
    return metadata


def files_below(folder):
    """Read all files below a folder: {name: bytes}. A name begins in the folder: "sub/a.txt"."""
    contents = {}
    for path in folder.rglob("*"):
        if path.is_file():
            name = str(path.relative_to(folder))
            contents[name] = path.read_bytes()
    return contents


# ---- The help of a program --------------------------------------------------------------

def printed_help(capsys, main):
    """Let a program print its help, and return it as one line."""
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def assert_help_names_flags(printed, defaults):
    """Assert that a help names all these flags {flag: default}, with each default that is a number.
    """
    for flag, default in defaults.items():
        assert f"{flag} " in printed
        if type(default) in (int, float):
            # The flag, the name of its value, then its help, before which no other flag begins.
            found = re.search(rf"{flag} [A-Z]+ (?!\[|--).*?\(default: ([0-9.,]*[0-9])", printed)
            assert float(found[1].replace(",", "")) == default, flag


# ---- Processes --------------------------------------------------------------------------

@pytest.fixture(scope="session")
def forked():
    """Start a server that forks processes in milliseconds -> the multiprocessing context whose
    Process is forked by it.

    The server imports once what would take each process seconds. torch._dynamo is in its list
    because torch imports it only when an optimizer is made, which the server never does. Our two
    modules are found only if pytest was started in the folder of the repository; otherwise each
    process imports them itself.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["distill", "finetune", "torch._dynamo", "pytest"])
    forkserver.ensure_running()
    return context


def call_forked(forked, function, *arguments):
    """Call function(*arguments) in a process that is forked from the server -> what it returns.
    EOFError if the process ends before."""
    receiver, sender = forked.Pipe(duplex=False)
    process = forked.Process(target=send_result, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()                                       # the process has its own
    assert receiver.poll(300), "it takes more than 300 seconds"
    result = receiver.recv()
    process.join()
    return result


def send_result(connection, function, arguments):
    """Call function(*arguments) and send what it returns."""
    connection.send(function(*arguments))


# ---- Tasks to fine-tune on --------------------------------------------------------------

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TASK_WORDS = ("good bad film very the not is red blue green one two name city john paris lives in "
              "who where").split()


def write_file(path, content):
    """Write text or bytes into a file, whose folder is made; return the path as a string."""
    if isinstance(content, str):
        content = content.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def make_task_tokenizer(folder):
    """Write a vocabulary of TASK_WORDS, single characters and the pieces ##a to ##z into a folder;
    return its Tokenizer."""
    signs = list(string.punctuation + string.digits)
    later_pieces = [f"##{letter}" for letter in LETTERS]
    tokens = SPECIAL_TOKENS + signs + TASK_WORDS + list(LETTERS) + later_pieces
    write_file(folder / "vocab.txt", "\n".join(tokens))
    return Tokenizer(str(folder))


def make_task_of_kind(kind, labels=None, **changes):
    """Make a small Task of a kind; changes are other values of its fields."""
    if labels is None:
        labels = []
        if kind == "classification":
            labels = ["x", "y"]
        elif kind == "tagging":
            labels = ["O"]
    facts = {"name": kind, "kind": kind, "labels": list(labels), "metrics": METRICS[kind],
             "length": 24, "stride": 4, "pair": kind == "qa", "mean": 0.0, "sd": 1.0,
             "unanswerable": False}
    facts.update(changes)
    return Task(**facts)


def make_squad(questions, context="the red city. john lives in paris, not in the red city."):
    """Make the text of a SQuAD file of questions [(question, [answer, ...]), ...] on a context."""
    entries = []
    for i, (question, texts) in enumerate(questions):
        answers = []
        for text in texts:
            answers.append({"text": text, "answer_start": context.index(text)})
        entry = {"id": f"q{i}", "question": question, "answers": answers}
        if not texts:
            entry["is_impossible"] = True
        entries.append(entry)
    paragraph = {"context": context, "qas": entries}
    article = {"title": "t", "paragraphs": [paragraph]}
    return json.dumps({"data": [article]}, indent=1)


def write_documentation(path):
    """Write a file like docs_on_this_machine's of 120 paragraphs; two of three have code."""
    lines = []
    for i in range(120):
        name = f"{LETTERS[i % 26]}.{LETTERS[i % 7]}"
        text = f"the good {name} is very {LETTERS[i % 11]} {i}"
        code = []
        if i % 3 > 0:
            code = [[9, 12]]                             # where the name is in the text
        row = {"part": "other", "text": text, "code": code}
        lines.append(json.dumps(row) + "\n")
    return write_file(path, "".join(lines))


def note_first_process(monkeypatch, script, name):
    """Watch when a script calls its function `name`, and when it enters and leaves the block of
    one_per_machine_first() -> a list, to which each of these events is added as it happens."""
    happened = []
    original = getattr(script, name)

    @contextmanager
    def one_per_machine_first(processes):
        happened.append("the first process begins")
        yield
        happened.append("it has ended")

    def function(*arguments):
        happened.append(name)
        return original(*arguments)

    monkeypatch.setattr(script, "one_per_machine_first", one_per_machine_first)
    monkeypatch.setattr(script, name, function)
    return happened
