"""The README tells the truth: its commands are commands, its files and its caps exist."""
import os
import re
import shlex

import pytest

import data
import distill
import finetune

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def text(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


def commands():
    """The lines of the README's indented and fenced blocks that run something of ours."""
    joined = text("README.md").replace("\\\n", " ")
    return sorted({part.strip() for line in joined.splitlines() for part in line.split("&&")
                   if re.match(r"\s*(python (data|distill|finetune)|torchrun .*)\.py", part)})


def test_the_readme_has_commands():
    assert len(commands()) >= 8


@pytest.mark.parametrize("command", commands())
def test_each_command_of_the_readme_is_understood(command):
    words = shlex.split(command.split("#")[0])
    script = next(word for word in words if word.endswith(".py"))
    flags = words[words.index(script) + 1:]
    {"data.py": data, "distill.py": distill, "finetune.py": finetune}[script].arguments(flags)


def test_an_unknown_flag_would_be_noticed():
    with pytest.raises(ValueError):
        distill.arguments(["--no-such-flag"])


def test_every_file_the_readme_links_to_is_there():
    for name in re.findall(r"\]\(([\w./-]+)\)", text("README.md")):
        assert os.path.exists(os.path.join(ROOT, name)), name


def test_every_function_named_in_the_table_from_paper_to_code_exists():
    table = text("README.md").split("## From the paper")[1].split("##")[0]
    named = set(re.findall(r"`(\w+)(?:\.\w+)?`", table))
    code = "".join(text(name) for name in ("minialbert.py", "data.py", "distill.py"))
    assert named and all(re.search(rf"\b{name}\b", code) for name in named), named


@pytest.mark.parametrize("name, cap", [("minialbert.py", 420), ("data.py", 480),
                                       ("distill.py", 420), ("finetune.py", 480)])
def test_a_file_stays_small_enough_to_be_read(name, cap):
    lines = text(name).splitlines()
    assert len(lines) <= cap and max(map(len, lines)) <= 100
