"""README.md and MANUAL.md tell the truth: their commands are understood, what they name and link to
exists; and the files of the repository are those that are promised, in lines short enough to be
read."""
import ast
import glob
import os
import re
import shlex
import shutil

import pytest
import torch

import data
import distill
import finetune
from checkpoint import read_json, save
from conftest import KINDS, ROOT, random_model
from minialbert import Config, MiniALBERT, count_parameters
from tasks import Example, make_task

TEACHER = os.path.join(ROOT, "assets", "teacher")
PROGRAM = ["minialbert.py", "checkpoint.py", "data.py", "distill.py", "finetune.py", "tasks.py",
           "command.py"]


def read(name):
    """Read a file of the repository."""
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


def text_of_both():
    return read("README.md") + read("MANUAL.md")


def commands():
    """List the commands in both files that run a script of ours, each once."""
    found = set()
    for line in text_of_both().replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            if re.match(r"\s*(python (data|distill|finetune)|torchrun .*)\.py", part):
                found.add(part.strip())
    return sorted(found)


def arguments_of(command):
    """Parse a command of these files with the script that it runs."""
    without_comment = command.split("#")[0]
    words = shlex.split(without_comment)
    scripts = [word for word in words if word.endswith(".py")]
    script = scripts[0]
    flags = words[words.index(script) + 1:]              # before it may be flags of torchrun
    if script == "data.py":
        return data.arguments(flags)
    if script == "distill.py":
        return distill.arguments(flags)
    assert script == "finetune.py"
    return finetune.arguments(flags)


def test_the_readme_has_commands():
    assert len(commands()) >= 8


@pytest.mark.parametrize("command", commands())
def test_each_command_of_the_readme_is_understood(command):
    arguments_of(command)


@pytest.mark.parametrize("script", ["data.py", "distill.py", "finetune.py"])
def test_an_unknown_flag_would_be_noticed(script):
    """So the test before this one can fail."""
    with pytest.raises(ValueError):
        arguments_of(f"python {script} --no-such-flag")


def without_code(text):
    """Leave out the blocks of code of a text in markdown."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def test_every_file_the_readme_links_to_is_there():
    text = without_code(text_of_both())
    links = re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text)
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert len(links) >= 8
    assert len(pictures) >= 8                            # four pictures, each light and dark
    for name in links + pictures:
        assert os.path.exists(os.path.join(ROOT, name)), name


def anchors_of(name):
    """List the anchors that GitHub makes of the headings in a file: "At work!" has #at-work."""
    headings = re.findall(r"^#+ (.+)$", without_code(read(name)), re.MULTILINE)
    anchors = []
    for heading in headings:
        words = re.sub(r"[^\w -]", "", heading.lower())
        anchors.append(words.replace(" ", "-"))
    return anchors


def test_every_section_the_readme_links_to_is_there():
    num_links = 0
    for file in ("README.md", "MANUAL.md"):
        # [words](FILE#anchor), or [words](#anchor) for a section of the same file
        for target, anchor in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", without_code(read(file))):
            if target == "":
                target = file
            assert anchor in anchors_of(target), f"{file}: {target}#{anchor}"
            num_links += 1
    assert num_links >= 8


def test_every_name_in_the_table_from_paper_to_code_exists():
    table = read("MANUAL.md").split("| the paper and its authors' code |")[1].split("\n\n")[0]
    names = set()
    for name, name_in_class in re.findall(r"`(\w+)(?:\.(\w+))?`", table):
        names.add(name)
        if name_in_class != "":                          # such as forward of MiniALBERT
            names.add(name_in_class)
    code = "".join(read(file) for file in PROGRAM)
    missing = []
    for name in sorted(names):
        if not re.search(rf"^ *(class|def) {name}\b|^{name} = ", code, re.M):
            missing.append(name)
    assert len(names) >= 10
    assert missing == []


def test_the_program_is_these_seven_files():
    assert sorted(glob.glob("*.py", root_dir=ROOT)) == sorted(PROGRAM)


def test_no_line_of_code_is_too_long_to_be_read():
    files = []                       # a user may have a virtual environment in the folder, too
    for pattern in ("*.py", "bench/*.py", "tests/*.py"):
        files += glob.glob(pattern, root_dir=ROOT)
    assert "tests/test_readme.py" in files
    too_long = []
    for file in files:
        for number, line in enumerate(read(file).splitlines(), 1):
            if len(line) > 100:
                too_long.append(f"{file}:{number}")
    assert too_long == []


def blocks_in_python():
    """List the blocks of code in Python of both files."""
    return re.findall(r"```python\n(.*?)```", text_of_both(), re.DOTALL)


def test_the_first_block_in_python_prints_the_words_predicted(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)                              # its paths begin in the repository
    names = {}
    exec(blocks_in_python()[0], names)
    words = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    assert len(set(words)) == 5
    assert "array" in words or "tensor" in words         # a new ... with the same shape
    T = names["ids"].shape[1]
    attention_map = names["attention"][3].exp()[0, 0]
    assert attention_map.shape == (T, T)
    assert attention_map.sum(1).tolist() == pytest.approx([1.0] * T, abs=1e-5)


def test_the_second_block_in_python_distils(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)                          # the block writes into out/mine
    corpus = str(tmp_path / "a.txt")
    with open(corpus, "w", encoding="utf-8") as file:
        file.write("The function returns a new tensor with the same shape.\n\n" * 500)
    # Here it learns from a small corpus and for four steps only.
    exchanged = {
        '"assets/teacher"': repr(TEACHER),
        "open_corpus(None, tokenizer)": f"open_corpus({corpus!r}, tokenizer, {str(tmp_path)!r})",
        "range(200)": "range(4)",
    }
    block = blocks_in_python()[1]
    for old, new in exchanged.items():
        assert old in block
        block = block.replace(old, new)
    exec(block, {})
    assert os.path.isfile(tmp_path / "out" / "mine" / "model.safetensors")
    lines = capsys.readouterr().out.splitlines()
    scores = ast.literal_eval(lines.pop())
    assert scores.keys() == {"accuracy", "loss"}
    steps = []
    losses = []
    for line in lines:
        step, loss = line.split()
        steps.append(int(step))
        losses.append(float(loss))
    assert steps == [0, 1, 2, 3]
    assert losses[3] < losses[0]


def test_the_third_block_in_python_writes_a_model_for_transformers(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TEACHER, "out/student")              # for its tokenizer
    save(random_model(**KINDS["corrections"]), "out/student")
    exec(blocks_in_python()[2], {})
    assert sorted(os.listdir("out/albert")) == sorted(os.listdir("out/student"))
    config = read_json("out/albert/config.json")
    assert config["model_type"] == "albert"


def test_the_fourth_block_in_python_tunes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TEACHER, "out/student")
    names = {}
    torch.manual_seed(0)                                 # the head is new
    exec(blocks_in_python()[3], names)
    assert names["step"] == 2
    model = finetune.load_classifier("out/films")
    examples = names["examples"]
    logits = finetune.predict_logits(model, names["features"])
    predictions = finetune.decode(model.task, examples, names["features"], logits)
    assert {label for label, _ in predictions} <= {"good", "bad"}


def test_the_fifth_block_in_python_prints_a_label_for_each_text(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with open("train.csv", "w", encoding="utf-8") as table:
        table.write("text,label\nfine,1\ndull,0\nlovely,1\ndreary,0\n")
    finetune.main(["--model", TEACHER, "--task", "classification", "--train", "train.csv",
                   "--dev", "train.csv", "--steps", "1", "--out", "out/sst2"])
    capsys.readouterr()
    exec(blocks_in_python()[4], {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line in lines:
        label, text = line.split(" ", 1)
        assert label in ("0", "1")
        probabilities = ast.literal_eval(text)           # {label: its probability}
        assert sum(probabilities.values()) == pytest.approx(1.0)


def test_the_sixth_block_in_python_prints_where_the_entities_stand(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    examples = [Example(["a", "b"], label=["O", "B-drug"])]
    task = make_task("tagging", "tagging", {"train": examples}, length=32, stride=8)
    model = finetune.load_classifier(TEACHER, task)
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.zero_()
        model.output.bias[task.labels.index("B-drug")] = 1.0
    finetune.save_classifier("out/ner", model, data.Tokenizer(TEACHER))
    names = {}
    exec(blocks_in_python()[5], names)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["0 8 drug", "9 17 drug"]
    assert lines[-1] == "41 42 drug"                     # the full stop
    assert len(lines) == len(names["words"]) == 7


def test_the_seventh_block_in_python_exchanges_the_parts_of_two_tasks(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    save(random_model(adapter_size=4, correction_rank=2), "out/student")
    shutil.copy(os.path.join(TEACHER, "vocab.txt"), "out/student")
    tokenizer = data.Tokenizer("out/student")
    for name in ("cola", "rte"):
        examples = [Example("a", label="0"), Example("b", label="1")]
        task = make_task("classification", "classification", {"train": examples}, 12, 12)
        model = finetune.load_classifier("out/student", task, mode="adapters")
        for parameter in model.parameters():
            if parameter.requires_grad:                  # as a tuning may change it
                torch.nn.init.normal_(parameter)
        finetune.save_classifier(f"out/{name}", model, tokenizer)
    cola = finetune.load_classifier("out/cola")
    rte = finetune.load_classifier("out/rte")
    assert finetune.fingerprint(cola.encoder) != finetune.fingerprint(rte.encoder)
    names = {}
    exec(blocks_in_python()[6], names)
    assert finetune.fingerprint(names["cola"].encoder) == finetune.fingerprint(rte.encoder)
    assert len(blocks_in_python()) == 7


# A number in README.md -> the shape of the model that has so many parameters.
SHAPES = {
    # The teacher in assets/teacher, and a student of it.
    "1,355,136": {"vocab_size": 4096, "embedding_size": 128, "num_hidden_layers": 4,
                  "num_hidden_groups": 4, "hidden_size": 128, "intermediate_size": 512,
                  "num_attention_heads": 4, "max_position_embeddings": 128},
    "645,504": {"vocab_size": 4096, "embedding_size": 64, "num_hidden_layers": 4,
                "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4,
                "max_position_embeddings": 128, "correction_rank": 16},
    # BERT, and students of it.
    "109.5 M": {"embedding_size": 768, "num_hidden_layers": 12, "num_hidden_groups": 12},
    "19.7 M": {"correction_rank": 96},
    "12.7 M": {"adapter_size": 48},
}


@pytest.mark.parametrize("number", SHAPES)
def test_the_numbers_of_parameters_are_true(number):
    with torch.device("meta"):                           # this takes no memory
        model = MiniALBERT(Config(**SHAPES[number]))
    stored = count_parameters(model)["stored"]
    assert number in (f"{stored:,}", f"{stored / 1e6:.1f} M")
    assert number in read("README.md")


def test_the_weights_of_the_losses_are_those_of_the_default_run():
    expected = distill.LOSS_WEIGHTS | {"elastic": distill.RECIPES["quick"]["elastic"]}
    del expected["embedding"]                            # its weight is 0
    rows = re.findall(r"^\| `(\w+)` \| ([0-9.]+) \|", read("README.md"), re.MULTILINE)
    assert {name: float(weight) for name, weight in rows} == expected
    line = re.search("loss = (.*)", distill.__doc__)[1]
    in_docstring = {}
    for term in line.split(" + "):
        weight, name = term.split(" * ")
        in_docstring[name.lower()] = float(weight)
    assert in_docstring == expected


def test_what_is_installed_are_the_seven_modules():
    tomllib = pytest.importorskip("tomllib", reason="it comes with Python 3.11")
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        settings = tomllib.load(file)
    modules = settings["tool"]["setuptools"]["py-modules"]
    assert sorted(f"{name}.py" for name in modules) == sorted(PROGRAM)
    files = [settings["project"]["readme"], settings["project"]["license"]["file"]]
    files += settings["tool"]["setuptools"]["dynamic"]["dependencies"]["file"]
    for name in files:
        assert os.path.isfile(os.path.join(ROOT, name))
