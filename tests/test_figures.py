"""bench/figures.py: every picture is drawn for a run or a small study, shows the numbers that were
measured, and comes out the same twice."""
import os
import re
import sys
import xml.etree.ElementTree

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="it draws the pictures; it is in requirements-dev.txt")

import distill
from checkpoint import load, read_json, write_json
from conftest import ROOT, files_below
from data import Tokenizer
from distill import BUNDLED_TEACHER, LOSS_WEIGHTS

sys.path.insert(0, os.path.join(ROOT, "bench"))
import figures

PICTURES = ["architecture", "losses", "attention", "depth", "parameters", "study", "tasks"]
LIGHT = figures.THEMES["light"]
ALMOST_ONE = 1.0 - 1e-6             # its logarithm and that of the rest are finite
# {(model, task, seed): score}
TASK_SCORES = {("teacher", "qa", 0): 0.5, ("teacher", "mrpc", 0): 0.8, ("long", "mrpc", 0): 0.6,
               ("long-taught", "mrpc", 0): 0.7, ("long-taught", "mrpc", 1): 0.74}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Distil the bundled teacher for four steps -> the folder of the run."""
    folder = tmp_path_factory.mktemp("figures")
    corpus = folder / "corpus.txt"
    corpus.write_text("The function returns a new array with the same shape.\n\n" * 500)
    flags = ["--corpus", corpus, "--cache", folder / "cache", "--length", 16, "--batch-size", 4,
             "--steps", 4, "--log-every", 1, "--eval-every", 2, "--out", folder / "run"]
    distill.main([str(flag) for flag in flags])
    return folder / "run"


def write_study(folder):
    """Write a study.json with a teacher, two students and their scores; each majority is 0.25."""
    rows = [{"name": "corpus", "part": "corpus", "state": "done"}]
    for name, part, num_parameters, last_accuracy in [
            ("teacher", "teacher", 22_744_506, 0.45), ("ours", "student", 6_210_000, 0.4),
            ("unshared", "student", 14_800_000, 0.41), ("noise", "student", 6_210_000, 0.2)]:
        curve = [[0, 0.1, 7.5], [700_000, 0.3, 4.5], [2_100_000, last_accuracy, 3.5]]
        rows.append({"name": name, "part": part, "state": "done", "parameters": num_parameters,
                     "curve": curve})
    for (model, task, seed), score in TASK_SCORES.items():
        about = {"model": model, "task": task, "seed": seed}
        rows.append({"name": f"tasks/{task}/{model}/seed{seed}", "part": "task", "state": "done",
                     "about": about, "score": score, "majority": 0.25})
    write_json(folder / "study.json", {"rows": rows})


def draw_all(finished, study, out):
    """Draw all pictures, with the run itself beside it."""
    figures.main([str(finished), "--plain", str(finished), "--compare", f"unshared={finished}",
                  "--study", str(study), "--out", str(out)])


@pytest.fixture(scope="module")
def drawn(finished, tmp_path_factory):
    """Draw all pictures -> their folder."""
    study = tmp_path_factory.mktemp("study")
    write_study(study)
    draw_all(finished, study, study / "out")
    return study / "out"


def words_of(path):
    """List the texts in a picture: matplotlib writes each as a comment beside its outlines."""
    return re.findall("<!-- (.*?) -->", path.read_text())


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("scheme, other_scheme", [("dark", "light"), ("light", "dark")])
def test_each_picture_is_drawn_for_light_and_dark(drawn, name, scheme, other_scheme):
    text = (drawn / f"{name}-{scheme}.svg").read_text()
    root = xml.etree.ElementTree.fromstring(text)
    assert root.get("width") == "622.5pt"                # 830 pixels
    assert len(text) < 150_000
    assert figures.THEMES[scheme]["text"] in text
    assert figures.THEMES[other_scheme]["text"] not in text


def test_the_same_command_writes_the_same_bytes(finished, drawn, tmp_path, monkeypatch):
    # A reader's own settings of matplotlib change nothing.
    monkeypatch.setitem(figures.matplotlib.rcParams, "axes.linewidth", 9.0)
    draw_all(finished, drawn.parent, tmp_path)
    found = files_below(tmp_path)
    assert len(found) == 2 * len(PICTURES)
    for name, content in found.items():
        assert content == (drawn / name).read_bytes(), name


@pytest.mark.parametrize("name, words", [
    ("architecture", ["BERT teacher", "MiniALBERT student", "correction $r$", "1 × MLM loss",
                      "3 × attention loss", "10 × hidden loss", "5 × output loss"]),
    ("losses", ["Each loss as a share of what it was at step 1", "step"]),
    ("attention", ["teacher's layer 1", "student's recursion 1", "teacher's layer 4",
                   "student's recursion 4", "[CLS]", "returns", "shape", "[SEP]"]),
    ("depth", ["MLM accuracy on held-out text"]),
    ("parameters", ["teacher", "student", "unshared", "parameters, in millions"]),
    ("study", ["one layer, corrections: 6.21 M", "a layer for each recursion: 14.8 M",
               "teacher: 22.7 M"]),
    ("tasks", ["guess without a model", "student, taught", "teacher", "MRPC"]),
])
def test_a_picture_has_its_words(drawn, name, words):
    for scheme in ("light", "dark"):
        assert set(words) <= set(words_of(drawn / f"{name}-{scheme}.svg"))


def test_without_a_run_the_architecture_is_drawn_with_the_weights_of_the_program(
        monkeypatch, tmp_path):
    monkeypatch.setitem(LOSS_WEIGHTS, "hidden", 7.5)
    figures.main(["--out", str(tmp_path)])
    assert sorted(os.listdir(tmp_path)) == ["architecture-dark.svg", "architecture-light.svg"]
    assert "7.5 × hidden loss" in words_of(tmp_path / "architecture-dark.svg")


# ---- What the pictures show --------------------------------------------------------------

def map_of(model, ids, number, head):
    """Compute an attention map (T, T) of a model; number and head count from 1."""
    layer = number - 1
    _, log_maps = model(ids, maps=[layer])
    log_map = log_maps[layer][0, head - 1]
    return log_map.exp().detach().numpy()


def test_the_maps_are_those_of_the_matched_layers(finished):
    """The 4 recursions of the student are matched to the 4 layers of the teacher."""
    teacher = load(BUNDLED_TEACHER)
    student = load(finished)
    tokenizer = Tokenizer(str(finished))
    words, pairs, caption = figures.attention_of_sentence(teacher, student, tokenizer)
    assert words == "[CLS] it returns a new array with the same shape . [SEP]".split()
    head = int(re.match(r"Head (\d) of 4\.", caption)[1])
    ids = torch.tensor([tokenizer(figures.SENTENCE)])
    assert [pair.layer for pair in pairs] == [1, 2, 3, 4]
    assert [pair.recursion for pair in pairs] == [1, 2, 3, 4]
    for pair in pairs:
        of_teacher = map_of(teacher, ids, pair.layer, head)
        of_student = map_of(student, ids, pair.recursion, head)
        np.testing.assert_allclose(pair.teacher_map, of_teacher, atol=1e-6)
        np.testing.assert_allclose(pair.student_map, of_student, atol=1e-6)


def test_the_teachers_map_is_drawn_above_the_students():
    maps = np.random.default_rng(0).random((4, 3, 3))
    first = figures.Pair(layer=2, teacher_map=maps[0], recursion=1, student_map=maps[1])
    second = figures.Pair(layer=4, teacher_map=maps[2], recursion=2, student_map=maps[3])
    figure = figures.draw_attention(["a", "b", "c"], [first, second], "", LIGHT)
    titles = ["teacher's layer 2", "student's recursion 1", "teacher's layer 4",
              "student's recursion 2"]
    *axes_of_maps, _ = figure.axes                       # the last ones have the scale of shades
    for axes, title, expected in zip(axes_of_maps, titles, maps, strict=True):
        assert axes.get_title() == title
        image, = axes.get_images()
        np.testing.assert_array_equal(image.get_array(), expected)
    first_of_teacher, first_of_student, second_of_teacher, second_of_student = axes_of_maps
    assert first_of_teacher.bbox.y0 > first_of_student.bbox.y1
    assert second_of_teacher.bbox.y0 > second_of_student.bbox.y1


def maps_of_heads(*shares):
    """Make the log-probabilities (1, H, 5, 5) of a layer. In a head, each word gives this share of
    its attention to itself, and the rest of it to all five words alike."""
    heads = []
    for share in shares:
        probs = share * torch.eye(5) + (1 - share) / 5
        heads.append(probs.log())
    return torch.stack(heads)[None]


def test_the_sharpest_head_is_found():
    """What counts is the mean over all layers."""
    first_layer = maps_of_heads(0.0, 0.5, 0.0)
    third_layer = maps_of_heads(0.0, 0.0, ALMOST_ONE)
    assert figures.sharpest_head({1: first_layer, 3: third_layer}) == 2
    # The largest probabilities are 0.6 and 0.68 in the second head, but 0.2 and 1 in the third.
    third_layer = maps_of_heads(0.0, 0.6, ALMOST_ONE)
    assert figures.sharpest_head({1: first_layer, 3: third_layer}) == 1


def heights_of(curve):
    """List the heights of a curve's points, which matplotlib has in an array."""
    return list(curve.get_ydata())


def texts_of(axes):
    """List the texts inside a diagram."""
    return [text.get_text() for text in axes.texts]


def test_the_curves_of_the_losses_are_shares_and_below_is_the_accuracy():
    first = {"step": 5, "mlm": 4.0, "attention": 2.0, "hidden": 1.0, "output": 1.0, "elastic": 1.0}
    last = {"step": 6, "mlm": 1.0, "attention": 3.0, "hidden": 0.5, "output": 1.0, "elastic": 1.0,
            "valid_accuracy": 0.3}
    upper, lower = figures.draw_losses([first, last], LIGHT).axes
    of_mlm, of_attention, *_ = upper.get_lines()
    assert heights_of(of_mlm) == [1.0, 0.25]
    assert heights_of(of_attention) == [1.0, 1.5]
    assert texts_of(upper)[:3] == ["mlm: 25%", "attention: 150%", "hidden: 50%"]
    assert upper.get_title() == "Each loss as a share of what it was at step 5"
    curve_below, = lower.get_lines()
    assert heights_of(curve_below) == [0.3]
    assert texts_of(lower) == ["30.0%"]


def test_the_curves_of_depth_are_the_accuracies():
    accuracies = {"teacher": [0.1, 0.3, 0.2], "student": [0.1, 0.25]}
    axes, = figures.draw_depth(accuracies, LIGHT).axes
    of_teacher, of_student, *_ = axes.get_lines()
    assert heights_of(of_teacher) == [0.1, 0.3, 0.2]
    assert heights_of(of_student) == [0.1, 0.25]
    assert list(of_student.get_xdata()) == [0, 1]


def test_the_points_are_parameters_and_accuracies():
    points = [("teacher", 1.25, 0.5), ("student", 0.625, 0.25)]
    axes, = figures.draw_parameters(points, LIGHT).axes
    of_teacher, of_student = axes.get_lines()
    assert list(of_teacher.get_xdata()) == [1.25]
    assert heights_of(of_teacher) == [0.5]
    assert heights_of(of_student) == [0.25]
    assert texts_of(axes) == ["teacher\n1.25 M, 50.0%", "student\n0.625 M, 25.0%"]


def test_the_curves_of_a_study_are_its_accuracies(drawn):
    rows = read_json(drawn.parent / "study.json")["rows"]
    axes, = figures.draw_study(figures.done_distillations(rows), LIGHT).axes
    of_ours, of_unshared, of_teacher = axes.get_lines()              # the row noise is not shown
    assert list(of_ours.get_xdata()) == [0, 0.7, 2.1]                # millions of tokens
    assert heights_of(of_ours) == [0.1, 0.3, 0.4]
    assert heights_of(of_unshared) == [0.1, 0.3, 0.41]
    assert heights_of(of_teacher) == [0.45, 0.45]
    assert axes.get_xlim() == (0, 2.1)
    colours = {text.get_text(): text.get_color() for text in axes.texts}
    assert colours == {"one layer, corrections: 6.21 M": of_ours.get_color(),
                       "a layer for each recursion: 14.8 M": of_unshared.get_color(),
                       "teacher: 22.7 M": of_teacher.get_color()}


def test_the_points_of_a_task_are_its_scores():
    """The points of a model are (score, height of the task)."""
    scores = {("teacher", "qa"): 0.5, ("teacher", "mrpc"): 0.8, ("long", "mrpc"): 0.6}
    axes, = figures.draw_tasks(scores, {"qa": 0.0, "mrpc": 0.25}, LIGHT).axes
    # The order of the tasks is that of the study: MRPC at the height 2, questions at 1.
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["MRPC", "questions"]
    points = {}
    for line in axes.get_lines():
        points[line.get_label()] = list(zip(line.get_xdata(), heights_of(line), strict=True))
    assert points == {"guess without a model": [(0.25, 2), (0.0, 1)],
                      "student, labels alone": [(0.6, 2)],
                      "teacher": [(0.8, 2), (0.5, 1)]}
