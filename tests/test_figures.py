"""bench/figures.py: every picture is drawn for a run of odd sizes or a small study, shows the
numbers that were measured, and comes out the same twice; what cannot be drawn is said in one
line."""
import itertools
import json
import os
import re
import shutil
import sys
import xml.etree.ElementTree

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="it draws the pictures; it is in requirements-dev.txt")

import distill
from checkpoint import load, read_safetensors, save
from conftest import H, ROOT, distill_flags
from data import Tokenizer
from distill import LOSS_WEIGHTS

sys.path.insert(0, os.path.join(ROOT, "bench"))
import figures
from study_rows import STUDENTS

PICTURES = ["architecture", "losses", "attention", "depth", "parameters"]
SENTENCE = "w3 w10 w17 w24 ."


def fake_evaluate(model, batches, each_recursion=False):
    """Return accuracies that say after how many recursions they were measured."""
    accuracy_after = [0.1 * r for r in range(model.config.num_hidden_layers + 1)]
    scores = {"accuracy": accuracy_after[-1], "loss": 1.5}
    if each_recursion:
        scores["accuracy_after"] = accuracy_after
    return scores


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    """Distil the toy teacher of 4 layers into 2 recursions -> the folder of the run."""
    out = tmp_path_factory.mktemp("figures") / "run"
    distill.main(distill_flags(toy, out))
    return out


@pytest.fixture
def copied(finished, tmp_path):
    """Copy the run, so that a test may change it."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def quick(monkeypatch):
    """Draw in one theme only and measure nothing."""
    monkeypatch.setattr(figures, "THEMES", {"dark": figures.THEMES["dark"]})
    monkeypatch.setattr(figures, "evaluate", fake_evaluate)


@pytest.fixture(scope="module")
def drawn(toy, finished, tmp_path_factory):
    """Draw all pictures of the run -> their folder."""
    out = tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "evaluate", fake_evaluate)
        assert draw_all(toy, finished, out) is None
    return out


def draw_all(toy, finished, out):
    """Draw all pictures of the run, and the run itself beside it -> the exit status."""
    return draw(toy, finished, out, "--teacher", toy / "teacher", "--plain", finished,
                "--compare", f"other={finished}")


def draw(toy, path, out, *more):
    """Draw the pictures of the run in a folder -> the exit status."""
    flags = [path, "--corpus", toy / "corpus.txt", "--cache", toy / "cache", "--out", out,
             "--sentence", SENTENCE, *more]
    return figures.main([str(flag) for flag in flags])


def change_settings(path, **changes):
    """Change settings in the run.json of a run."""
    run = json.loads((path / "run.json").read_text())
    run["settings"].update(changes)
    (path / "run.json").write_text(json.dumps(run))


def load_material(toy, path):
    flags = [str(path), "--teacher", str(toy / "teacher")]
    return figures.load_material(figures.arguments(flags))


def write_study(folder, names, state="done", **changes):
    """Write a study.json with a teacher and students: the one with the number i has (6 + i) million
    parameters and ends with an accuracy of 0.4 + 0.001 i. changes are made to each student."""
    teacher_curve = [[0, 0.0, 11.0], [9_000_000, 0.45, 3.1]]
    teacher = {"name": "teacher", "part": "teacher", "state": "done", "parameters": 22_744_506,
               "curve": teacher_curve}
    corpus = {"name": "corpus", "part": "corpus", "state": "done", "train": 5}
    rows = [teacher, corpus]
    for i, name in enumerate(names):
        last_accuracy = 0.4 + 0.001 * i
        curve = [[0, 0.1, 7.5], [700_000, 0.3, 4.5], [2_100_000, last_accuracy, 3.5]]
        row = {"name": name, "part": "student", "state": state, "parameters": (6 + i) * 1_000_000,
               "curve": curve}
        row.update(changes)
        rows.append(row)
    (folder / "study.json").write_text(json.dumps({"rows": rows}))


def add_task_scores(folder, scores):
    """Add scores {(model, task, seed): score} to a study.json; each majority is 0.25."""
    content = json.loads((folder / "study.json").read_text())
    for (model, task, seed), score in scores.items():
        row = {"name": f"tasks/{task}/{model}/seed{seed}", "part": "task", "state": "done"}
        row["about"] = {"model": model, "task": task, "seed": seed}
        row["score"] = score
        row["majority"] = 0.25
        content["rows"].append(row)
    (folder / "study.json").write_text(json.dumps(content))


def assert_no_overlap(texts, number):
    """Assert that so many texts stand in a picture and none covers another."""
    areas = [text.get_window_extent() for text in texts]
    assert len(areas) == number
    for one, other in itertools.combinations(areas, 2):
        assert not one.overlaps(other)


def words_of(path):
    """List the texts in a picture: matplotlib writes each as a comment beside its outlines."""
    return re.findall("<!-- (.*?) -->", path.read_text())


def test_each_picture_is_drawn_for_light_and_dark(drawn):
    assert len(os.listdir(drawn)) == 2 * len(PICTURES)
    for name in PICTURES:
        for scheme, other_scheme in (("dark", "light"), ("light", "dark")):
            text = (drawn / f"{name}-{scheme}.svg").read_text()
            root = xml.etree.ElementTree.fromstring(text)
            assert root.get("width") == "622.5pt"        # 830 pixels
            assert len(text) < 150_000
            assert figures.THEMES[scheme]["text"] in text
            assert figures.THEMES[other_scheme]["text"] not in text


def test_the_same_command_writes_the_same_bytes(
        toy, finished, drawn, tmp_path, quick, monkeypatch):
    # A reader's own settings of matplotlib change nothing.
    monkeypatch.setitem(figures.matplotlib.rcParams, "axes.linewidth", 9.0)
    assert draw_all(toy, finished, tmp_path) is None
    paths = list(tmp_path.iterdir())
    assert len(paths) == len(PICTURES)
    for path in paths:
        assert path.read_bytes() == (drawn / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name, words", [
    ("architecture", ["BERT teacher", "MiniALBERT student", "correction $r$", "1 × MLM loss",
                      "3 × attention loss", "10 × hidden loss", "5 × output loss"]),
    ("losses", ["Each loss as a share of what it was at step 1", "step"]),
    ("attention", ["teacher's layer 2", "student's recursion 1", "teacher's layer 4",
                   "student's recursion 2", "[CLS]", "w3", "w10", "w24", "[SEP]"]),
    ("depth", ["teacher: 40.0% at full depth", "student: 20.0% at full depth",
               "without elastic loss: 20.0% at full depth"]),
    ("parameters", ["teacher", "student", "other", "parameters, in millions", "20%"]),
])
def test_a_picture_has_its_words(drawn, name, words):
    for scheme in ("light", "dark"):
        found = words_of(drawn / f"{name}-{scheme}.svg")
        assert set(words) - set(found) == set()


def test_without_a_run_the_architecture_is_drawn_with_the_weights_of_the_program(
        monkeypatch, tmp_path, quick):
    monkeypatch.setitem(LOSS_WEIGHTS, "hidden", 7.5)
    assert figures.main(["--out", str(tmp_path)]) is None
    assert os.listdir(tmp_path) == ["architecture-dark.svg"]
    assert "7.5 × hidden loss" in words_of(tmp_path / "architecture-dark.svg")


# ---- What the pictures show --------------------------------------------------------------

def map_of(path, ids, number, head):
    """Compute an attention map (T, T) of the model in a folder; number and head count from 1."""
    _, log_maps = load(path)(ids, maps=[number - 1])
    return log_maps[number - 1][0, head - 1].exp().detach().numpy()


def test_the_maps_are_those_of_the_matched_layers(toy, finished):
    material = load_material(toy, finished)
    words, pairs, caption = figures.prepare_attention(material, SENTENCE, head=2).args
    assert words == ["[CLS]", "w3", "w10", "w17", "w24", ".", "[SEP]"]
    assert f"Head 2 of {H}" in caption
    ids = torch.tensor([Tokenizer(str(finished))(SENTENCE)])
    assert [(pair.layer, pair.recursion) for pair in pairs] == [(2, 1), (4, 2)]
    for pair in pairs:
        of_teacher = map_of(toy / "teacher", ids, pair.layer, head=2)
        of_student = map_of(finished, ids, pair.recursion, head=2)
        np.testing.assert_allclose(pair.teacher_map, of_teacher, atol=1e-6)
        np.testing.assert_allclose(pair.student_map, of_student, atol=1e-6)


def test_the_teachers_map_is_drawn_above_the_students():
    maps = np.random.default_rng(0).random((4, 3, 3))
    pairs = [figures.Pair(2, maps[0], 1, maps[1]), figures.Pair(4, maps[2], 2, maps[3])]
    figure = figures.draw_attention(["a", "b", "c"], pairs, "", figures.THEMES["light"])
    titles = ["teacher's layer 2", "student's recursion 1", "teacher's layer 4",
              "student's recursion 2"]
    *axes_of_maps, _ = figure.axes                       # the last ones have the scale of shades
    for axes, title, expected in zip(axes_of_maps, titles, maps, strict=True):
        assert axes.get_title() == title
        image, = axes.get_images()
        np.testing.assert_array_equal(image.get_array(), expected)
    for upper, lower in (axes_of_maps[:2], axes_of_maps[2:]):
        assert upper.bbox.y0 > lower.bbox.y1


def log_map_of_head(share):
    """Make the log-probabilities (1, 1, 5, 5) of a head in which each word gives this share of its
    attention to itself, and the rest of it to all five words alike."""
    probs = share * torch.eye(5) + (1 - share) / 5
    return probs.log()[None, None]


def test_the_sharpest_head_is_found():
    flat = log_map_of_head(0.0)
    half = log_map_of_head(0.5)
    sharp = log_map_of_head(1.0 - 1e-6)
    maps = {1: torch.cat([flat, half, flat], dim=1), 3: torch.cat([flat, flat, sharp], dim=1)}
    assert figures.sharpest_head(maps, num_heads=3) == 2
    assert figures.sharpest_head(maps, num_heads=2) == 1
    assert figures.sharpest_head(maps, num_heads=1) == 0
    # What counts is the mean over all layers: (0.6 + 0.68) / 2 is more than (0.2 + 1.0) / 2.
    maps[3] = torch.cat([flat, log_map_of_head(0.6), sharp], dim=1)
    assert figures.sharpest_head(maps, num_heads=3) == 1


@pytest.mark.parametrize("accuracy, drawn_below", [
    ({"valid_accuracy": 0.3}, [[0.3]]), ({}, [[0.5, 0.25]])])
def test_the_curves_of_the_losses_are_shares_and_below_is_the_accuracy_or_the_rate(
        accuracy, drawn_below):
    first = {"step": 5, "loss": 9.0, "a": 4.0, "b": 2.0, "zero": 0.0, "lr": 0.5}
    last = {"step": 6, "loss": 8.0, "a": 1.0, "b": 3.0, "zero": 1.0, "lr": 0.25}
    last.update(accuracy)
    figure = figures.draw_losses([first, last], ["a", "zero", "b"], figures.THEMES["light"])
    upper, lower = figure.axes
    heights = [list(curve.get_ydata()) for curve in upper.get_lines()]
    assert heights == [[1.0, 0.25], [1.0, 1.5]]
    assert [text.get_text() for text in upper.texts] == ["a: 25%", "b: 150%"]
    assert upper.get_title() == "Each loss as a share of what it was at step 5"
    assert [list(curve.get_ydata()) for curve in lower.get_lines()] == drawn_below


def test_the_losses_of_a_long_log_are_shares_of_its_first_line():
    lines = [{"step": 1, "loss": 1.0, "a": 100.0, "lr": 0.5}]
    for step in range(2, 3001):
        lines.append({"step": step, "loss": 1.0, "a": 10.0, "lr": 0.5})
    figure = figures.draw_losses(lines, ["a"], figures.THEMES["light"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["a: 10%"]


def test_the_curves_of_depth_are_the_accuracies():
    figure = figures.draw_depth({"teacher": [0.1, 0.3, 0.2], "student": [0.1, 0.25]},
                                figures.THEMES["light"])
    curves = figure.axes[0].get_lines()
    assert list(curves[0].get_ydata()) == [0.1, 0.3, 0.2]
    assert list(curves[1].get_ydata()) == [0.1, 0.25]
    assert list(curves[1].get_xdata()) == [0, 1]


def test_the_accuracies_are_those_of_the_held_out_text(toy, finished):
    flags = [finished, "--teacher", toy / "teacher", "--plain", finished,
             "--corpus", toy / "corpus.txt", "--cache", toy / "cache"]
    args = figures.arguments([str(flag) for flag in flags])
    material = figures.load_material(args)
    batches = figures.open_batches(args, material)
    accuracies = figures.measure_depth(material, batches)
    assert list(accuracies) == ["teacher", "student", "without elastic loss"]
    assert accuracies["without elastic loss"] == accuracies["student"]
    for model, name in ((material.teacher, "teacher"), (material.student, "student")):
        expected = distill.evaluate(model, batches)["accuracy"]
        assert accuracies[name][-1] == expected
        assert len(accuracies[name]) == model.config.num_hidden_layers + 1
    logged = json.loads((finished / "log.jsonl").read_text().splitlines()[-1])
    assert accuracies["student"][-1] == logged["valid_accuracy"]


def test_the_points_are_parameters_and_accuracies(toy, finished, quick):
    material = load_material(toy, finished)
    material.compared["other"] = material.teacher
    accuracies = {"teacher": [0.1, 0.5], "student": [0.1, 0.2, 0.35]}
    points, = figures.prepare_parameters(material, accuracies, batches=None).args
    sizes = []
    for path in (toy / "teacher", finished):
        tensors, _ = read_safetensors(path / "model.safetensors")
        sizes.append(sum(tensor.numel() for tensor in tensors.values()) / 1e6)
    assert points == [("teacher", sizes[0], 0.5), ("student", sizes[1], 0.35),
                      ("other", sizes[0], 0.4)]


def test_a_long_log_becomes_means_of_neighbours():
    lines = [{"step": 7 * i, "mlm": float(i)} for i in range(1, 1001)]
    steps, values = figures.curve(lines, "mlm")
    assert len(steps) == 143                             # 7 lines for each of at most 150 points
    assert (steps[0], values[0]) == (49, 4.0)            # the mean of 1 to 7
    assert (steps[-1], values[-1]) == (7000, 997.5)      # of 995 to 1000
    assert figures.curve(lines[:3], "mlm") == ([7, 14, 21], [1.0, 2.0, 3.0])
    assert figures.curve(lines, "valid_accuracy") == ([], [])


def test_the_labels_of_points_do_not_cover_each_other_and_stay_inside():
    points = [("teacher", 1.3, 0.43), ("student", 0.5, 0.4), ("a", 0.5, 0.4), ("b", 0.51, 0.401),
              ("a long name", 1.29, 0.429), ("a name too long to stand on the right", 1.3, 0.2)]
    axes, = figures.draw_parameters(points, figures.THEMES["light"]).axes
    assert_no_overlap(axes.texts, 6)
    for text in axes.texts:
        area = text.get_window_extent()
        assert axes.bbox.x0 < area.x0
        assert area.x1 < axes.bbox.x1


def test_the_labels_of_losses_do_not_cover_each_other():
    # All three end at nearly the same height.
    line = {"step": 1, "loss": 9.0, "a": 1.0, "b": 1.0, "c": 1.0, "lr": 0.0}
    next_line = {"step": 2, "loss": 9.0, "a": 0.0, "b": 0.01, "c": 0.0, "lr": 0.0}
    figure = figures.draw_losses([line, next_line], ["a", "b", "c"], figures.THEMES["light"])
    assert_no_overlap(figure.axes[0].texts, 3)


@pytest.mark.parametrize("heights, expected", [
    ([0.1, 0.5, 0.9], [0.1, 0.5, 0.9]),
    ([0.5, 0.5], [0.45, 0.55]),
    ([0.5, 0.52, 0.9], [0.46, 0.56, 0.9]),
    ([0.3, 0.44, 0.46], [0.3, 0.4, 0.5]),
    ([0.32, 0.44, 0.46], [0.92 / 3 + 0.1 * i for i in range(3)]),    # the first one, too, moves
    ([0.0, 0.01], [0.0, 0.1]),
    ([0.98, 1.0, 1.0], [0.8, 0.9, 1.0]),
])
def test_heights_are_moved_apart_evenly(heights, expected):
    assert figures.spread(heights, gap=0.1) == pytest.approx(expected)


def test_the_curves_of_a_study_are_its_accuracies(tmp_path):
    write_study(tmp_path, ["two-groups", "noise", "ours"])
    students, teacher = figures.read_study(str(tmp_path))
    figure = figures.draw_study(students, teacher, figures.THEMES["light"])
    axes = figure.axes[0]
    *curves, dashed = axes.get_lines()
    assert len(curves) == 3
    for curve, end in zip(curves, [0.402, 0.401, 0.4], strict=True):
        assert list(curve.get_xdata()) == [0, 0.7, 2.1]              # in millions
        assert list(curve.get_ydata()) == [0.1, 0.3, end]
    assert list(dashed.get_ydata()) == [0.45, 0.45]
    assert dashed.get_linestyle() == "--"
    assert axes.get_xlim() == (0, 2.1)
    assert axes.get_ylim()[0] == 0
    colours = {text.get_text(): text.get_color() for text in axes.texts}
    assert colours == {"one layer, corrections: 8 M": curves[0].get_color(),
                       "from noise: 7 M": curves[1].get_color(),
                       "two-groups: 6 M": curves[2].get_color(),
                       "teacher: 22.7 M": dashed.get_color()}


@pytest.mark.parametrize("change", [0.0, 0.05, -0.4])
def test_the_labels_of_a_study_do_not_cover_each_other(tmp_path, change):
    write_study(tmp_path, list(STUDENTS))
    students, teacher = figures.read_study(str(tmp_path))
    teacher.accuracies[-1] += change                     # among, above and far below the students
    with figures.matplotlib.rc_context(figures.style(figures.THEMES["light"])):
        figure = figures.draw_study(students, teacher, figures.THEMES["light"])
        axes = figure.axes[0]
        assert_no_overlap([*axes.texts, axes.title], 8)
        for text in axes.texts:
            area = text.get_window_extent()
            assert axes.bbox.x1 < area.x0
            assert area.x1 < figure.bbox.x1


def test_of_many_students_those_with_plain_words_are_drawn(tmp_path, capsys):
    names = ["an-old-name", *reversed(STUDENTS)]
    write_study(tmp_path, names)
    students, _ = figures.read_study(str(tmp_path))
    words = [student.words.split(":")[0] for student in students]
    assert words == list(figures.PLAIN_WORDS.values())
    output = capsys.readouterr().out
    assert output.startswith("study shows 6 students, without authors-own-rate, three-recursions, ")
    assert output.endswith(", an-old-name\n")


def test_a_study_is_drawn_without_a_run(tmp_path, quick):
    write_study(tmp_path, ["ours", "unshared"])
    out = tmp_path / "out"
    assert figures.main(["--study", str(tmp_path), "--out", str(out)]) is None
    assert sorted(os.listdir(out)) == ["architecture-dark.svg", "study-dark.svg"]
    found = words_of(out / "study-dark.svg")
    words = ["one layer, corrections: 6 M", "a layer for each recursion: 7 M", "teacher: 22.7 M"]
    assert set(words) - set(found) == set()


def test_a_study_is_drawn_beside_the_pictures_of_a_run(toy, finished, tmp_path, quick):
    write_study(tmp_path, ["ours"])
    assert draw(toy, finished, tmp_path / "out", "--study", tmp_path) is None
    names = {name.split("-")[0] for name in os.listdir(tmp_path / "out")}
    assert {"study", "losses", "depth"} - names == set()


TASK_SCORES = {("teacher", "qa", 0): 0.5, ("teacher", "mrpc", 0): 0.8, ("ours", "mrpc", 0): 0.6,
               ("taught", "mrpc", 0): 0.7, ("taught", "mrpc", 1): 0.74}


def draw_task_scores(folder, task_scores):
    """Write a study with these scores into a folder and draw them -> Figure."""
    write_study(folder, ["ours"])
    add_task_scores(folder, task_scores)
    scores, majorities = figures.read_task_scores(str(folder))
    theme = figures.THEMES["light"]
    with figures.matplotlib.rc_context(figures.style(theme)):
        return figures.draw_tasks(scores, majorities, theme)


def test_the_points_of_a_task_are_the_means_of_its_scores(tmp_path):
    axes = draw_task_scores(tmp_path, TASK_SCORES).axes[0]
    # The order of the tasks is that of the study: MRPC at the height 2, questions at 1.
    assert [label.get_text() for label in axes.get_yticklabels()] == ["MRPC", "questions"]
    points = {}
    for line in axes.get_lines():
        pairs = zip(line.get_xdata(), line.get_ydata(), strict=True)
        points[line.get_label()] = [(pytest.approx(x), y) for x, y in pairs]
    assert points == {"guess without a model": [(0.25, 2), (0.25, 1)],
                      "fewer tokens, labels alone": [(0.6, 2)],
                      "fewer tokens, taught": [(0.72, 2)],
                      "teacher": [(0.8, 2), (0.5, 1)]}


def test_a_study_with_tasks_is_drawn_with_them(tmp_path, quick, capsys):
    write_study(tmp_path, ["ours"])
    out = tmp_path / "out"
    assert figures.main(["--study", str(tmp_path), "--out", str(out)]) is None
    assert "tasks is left out: no model of the study was fine-tuned" in capsys.readouterr().out
    assert not (out / "tasks-dark.svg").exists()
    add_task_scores(tmp_path, TASK_SCORES)
    assert figures.main(["--study", str(tmp_path), "--out", str(out)]) is None
    assert "fewer tokens, taught" in words_of(out / "tasks-dark.svg")


def test_the_legend_of_the_tasks_fits_into_the_picture(tmp_path):
    task_scores = {(model, "mrpc", 0): 0.5 for model in figures.TASK_LOOKS}
    figure = draw_task_scores(tmp_path, task_scores)
    with figures.matplotlib.rc_context(figures.style(figures.THEMES["light"])):
        area = figure.axes[0].get_legend().get_window_extent()
        title = figure.axes[0].title.get_window_extent()
    assert figure.bbox.x0 <= area.x0 and area.x1 <= figure.bbox.x1
    # The title stands above the legend, and both are in the picture.
    assert area.y1 <= title.y0 and title.y1 <= figure.bbox.y1


def test_a_study_without_a_teacher(tmp_path):
    write_study(tmp_path, ["ours"])
    content = json.loads((tmp_path / "study.json").read_text())
    content["rows"].pop(0)
    (tmp_path / "study.json").write_text(json.dumps(content))
    students, teacher = figures.read_study(str(tmp_path))
    figure = figures.draw_study(students, teacher, figures.THEMES["light"])
    assert teacher is None
    assert len(figure.axes[0].get_lines()) == 1


# ---- What is left out, and what is refused -----------------------------------------------

def test_a_run_without_a_teacher_and_without_a_log(toy, copied, tmp_path, quick, capsys):
    change_settings(copied, teacher=None)
    (copied / "log.jsonl").unlink()
    assert draw(toy, copied, tmp_path / "out") is None
    names = {name.split("-")[0] for name in os.listdir(tmp_path / "out")}
    assert names == {"architecture", "depth"}
    output = capsys.readouterr().out
    assert "losses is left out: there is no " in output
    assert "attention is left out: there is no teacher" in output
    assert "parameters is left out: there are no two models to compare" in output


def test_a_run_without_a_head_and_with_another_teacher(toy, copied, tmp_path, quick, capsys):
    model = load(copied)
    model.head = None
    save(model, copied)
    assert draw(toy, copied, tmp_path / "out", "--sentence", "what the toy does not know") is None
    output = capsys.readouterr().out
    assert "is not the bundled one: --teacher says where it is" in output
    assert "depth is left out: the student has no MLM head" in output
    assert "parameters is left out: the student has no MLM head" in output


@pytest.mark.parametrize("sentence, head, words", [
    ("w1 " * 23, None, "has 25 tokens, more than 24"),
    ("this is another language", None, "does not know the words"),
    (SENTENCE, H + 1, "there is no head 4"),
])
def test_a_sentence_that_cannot_be_shown(toy, finished, sentence, head, words):
    with pytest.raises(figures.LeftOut, match=words):
        figures.prepare_attention(load_material(toy, finished), sentence, head)


def test_layers_that_cannot_be_matched(toy, finished):
    material = load_material(toy, finished)
    material.student.config.num_hidden_layers = 3
    with pytest.raises(figures.LeftOut, match="3 recursions cannot be spread evenly"):
        figures.prepare_attention(material, SENTENCE, None)


@pytest.mark.parametrize("more, words", [
    (["--teacher", "headless"], "had another teacher"),
    (["--compare", "nothing"], "--compare nothing: it must be NAME=DIR"),
    (["--compare", "a=teacher", "a=headless"], "the name a stands for another folder already"),
    (["--compare", "bundled=" + distill.BUNDLED_TEACHER], "its tokenizer is not that of"),
    (["--plain", "nowhere"], "nowhere: this is not a folder"),
    (["--head", "0"], "argument --head: 0 is not from 1"),
])
def test_what_does_not_fit_to_the_run_is_refused(
        toy, finished, tmp_path, monkeypatch, capsys, more, words):
    monkeypatch.chdir(toy)
    assert draw(toy, finished, tmp_path / "out", *more) == 2
    assert_one_line(capsys, words)
    assert not (tmp_path / "out").exists()


def test_folders_that_are_no_runs_are_refused(toy, copied, tmp_path, capsys):
    assert draw(toy, toy / "teacher", tmp_path / "out") == 2
    assert_one_line(capsys, "is not the folder of a run of distill.py")
    (copied / "run.json").write_text('{"script": "finetune.py", "settings": {}}')
    assert draw(toy, copied, tmp_path / "out") == 2
    assert_one_line(capsys, "is not the folder of a run of distill.py")


def test_flags_that_need_a_run_are_refused(tmp_path, capsys):
    assert figures.main(["--sentence", "a", "--out", str(tmp_path / "out")]) == 2
    assert_one_line(capsys, "--sentence: without RUN it would be ignored")


def test_a_folder_without_a_study_is_refused(tmp_path, capsys):
    assert draw_study_of(tmp_path) == 2
    assert_one_line(capsys, "there is no study.json in it")
    write_study(tmp_path, ["ours", "noise"], state="failed")
    assert draw_study_of(tmp_path) == 2
    assert_one_line(capsys, "no student in its study.json is done")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changes, words", [
    ({"curve": [[0, 0.1, 7.5]]}, "the curve of ours has fewer than two points"),
    ({"curve": [[0, 0.1, 7.5], [7, float("nan"), 7.5]]}, "the curve of ours has the accuracy nan"),
    ({"curve": [[0, "0.1", 7.5]]}, "TypeError"),
    ({"parameters": None}, "TypeError"),
])
def test_a_damaged_study_is_refused(tmp_path, capsys, changes, words):
    write_study(tmp_path, ["ours"], **changes)
    assert draw_study_of(tmp_path) == 2
    assert_one_line(capsys, words)
    assert not (tmp_path / "out").exists()


def test_damaged_scores_are_refused(tmp_path, capsys):
    write_study(tmp_path, ["ours"])
    add_task_scores(tmp_path, {("ours", "mrpc", 0): "0.5"})
    assert draw_study_of(tmp_path) == 2
    assert_one_line(capsys, "TypeError")
    assert not (tmp_path / "out").exists()


def draw_study_of(folder):
    """Draw the study in a folder -> the exit status."""
    return figures.main(["--study", str(folder), "--out", str(folder / "out")])


@pytest.mark.parametrize("line", ["[]", "{", '{"step": 1, "lr": 0}',
                                  '{"step": 1, "loss": "1", "lr": 0}'])
def test_a_damaged_log_is_refused(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 1.5, "lr": 0}\n' + line + "\n")
    with pytest.raises(ValueError, match="log.jsonl: not the log of a run: "):
        figures.read_log(path)


def test_without_matplotlib_it_says_how_to_get_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(figures, "matplotlib", None)
    assert figures.main(["--out", str(tmp_path / "out")]) == 2
    assert_one_line(capsys, "pip install -r requirements-dev.txt")


def assert_one_line(capsys, words):
    """Assert that what was printed as an error is one line with these words."""
    error = capsys.readouterr().err
    assert error.startswith("figures.py: error: ")
    assert error.count("\n") == 1
    assert words in error
