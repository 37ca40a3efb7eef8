"""bench/figures.py: every picture is drawn for a run of odd sizes or a small study, shows the
numbers that were measured, and comes out the same twice; what cannot be drawn is said in one
line."""
import itertools
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
from checkpoint import load, read_json, read_safetensors, save, write_json
from conftest import H, ROOT, distill_flags, files_below, read_log
from data import Tokenizer
from distill import LOSS_WEIGHTS

sys.path.insert(0, os.path.join(ROOT, "bench"))
import figures
from study_rows import STUDENTS

PICTURES = ["architecture", "losses", "attention", "depth", "parameters"]
SENTENCE = "w3 w10 w17 w24 ."
LIGHT = figures.THEMES["light"]
ALMOST_ONE = 1.0 - 1e-6             # its logarithm and that of the rest are finite
# {(model, task, seed): score}
TASK_SCORES = {("teacher", "qa", 0): 0.5, ("teacher", "mrpc", 0): 0.8, ("ours", "mrpc", 0): 0.6,
               ("taught", "mrpc", 0): 0.7, ("taught", "mrpc", 1): 0.74}


def fake_evaluate(model, batches, each_recursion=False):
    """Return accuracies that say after how many recursions they were measured."""
    num_recursions = model.config.num_hidden_layers
    accuracy_after = [0.1 * r for r in range(num_recursions + 1)]
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


def draw_study_of(folder):
    """Draw the study in a folder -> the exit status."""
    out = str(folder / "out")
    return figures.main(["--study", str(folder), "--out", out])


def change_settings(path, **changes):
    """Change settings in the run.json of a run."""
    run = read_json(path / "run.json")
    run["settings"].update(changes)
    write_json(path / "run.json", run)


def arguments_of(*flags):
    """Parse a command line, whose flags may also be paths."""
    return figures.arguments([str(flag) for flag in flags])


def load_material(toy, path):
    """Load what is drawn of a run, with the toy teacher."""
    args = arguments_of(path, "--teacher", toy / "teacher")
    return figures.load_material(args)


def write_study(folder, names, state="done"):
    """Write a study.json with a teacher and students: the one with the number i has (6 + i) million
    parameters and ends with an accuracy of 0.4 + 0.001 i.

    state: of each student's row
    """
    teacher_curve = [[0, 0.0, 11.0], [9_000_000, 0.45, 3.1]]
    teacher = {"name": "teacher", "part": "teacher", "state": "done", "parameters": 22_744_506,
               "curve": teacher_curve}
    corpus = {"name": "corpus", "part": "corpus", "state": "done", "train": 5}
    rows = [teacher, corpus]
    for i, name in enumerate(names):
        num_parameters = (6 + i) * 1_000_000
        last_accuracy = 0.4 + 0.001 * i
        curve = [[0, 0.1, 7.5], [700_000, 0.3, 4.5], [2_100_000, last_accuracy, 3.5]]
        rows.append({"name": name, "part": "student", "state": state,
                     "parameters": num_parameters, "curve": curve})
    write_json(folder / "study.json", {"rows": rows})


def rows_of(folder):
    """Read the rows of a study."""
    return read_json(folder / "study.json")["rows"]


def add_task_scores(folder, scores):
    """Add scores {(model, task, seed): score} to a study.json; each majority is 0.25."""
    content = read_json(folder / "study.json")
    for (model, task, seed), score in scores.items():
        name = f"tasks/{task}/{model}/seed{seed}"
        about = {"model": model, "task": task, "seed": seed}
        row = {"name": name, "part": "task", "state": "done", "about": about, "score": score,
               "majority": 0.25}
        content["rows"].append(row)
    write_json(folder / "study.json", content)


def assert_no_overlap(texts, number):
    """Assert that so many texts stand in a picture and none covers another."""
    areas = [text.get_window_extent() for text in texts]
    assert len(areas) == number
    for one, other in itertools.combinations(areas, 2):
        assert not one.overlaps(other)


def words_of(path):
    """List the texts in a picture: matplotlib writes each as a comment beside its outlines."""
    return re.findall("<!-- (.*?) -->", path.read_text())


def assert_words(path, words):
    """Assert that a picture has these texts, and perhaps others."""
    assert set(words) <= set(words_of(path))


def pictures_in(folder):
    """Return the set of the names of the pictures in a folder, without their themes."""
    return {name.split("-")[0] for name in os.listdir(folder)}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("scheme, other_scheme", [("dark", "light"), ("light", "dark")])
def test_each_picture_is_drawn_for_light_and_dark(drawn, name, scheme, other_scheme):
    text = (drawn / f"{name}-{scheme}.svg").read_text()
    root = xml.etree.ElementTree.fromstring(text)
    assert root.get("width") == "622.5pt"                # 830 pixels
    assert len(text) < 150_000
    assert figures.THEMES[scheme]["text"] in text
    assert figures.THEMES[other_scheme]["text"] not in text


def test_the_same_command_writes_the_same_bytes(
        toy, finished, drawn, tmp_path, quick, monkeypatch):
    # A reader's own settings of matplotlib change nothing.
    monkeypatch.setitem(figures.matplotlib.rcParams, "axes.linewidth", 9.0)
    assert draw_all(toy, finished, tmp_path) is None
    found = files_below(tmp_path)
    assert len(found) == len(PICTURES)
    for name, content in found.items():
        assert content == (drawn / name).read_bytes(), name


def test_no_other_pictures_are_drawn(drawn):
    assert len(os.listdir(drawn)) == 2 * len(PICTURES)


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
        assert_words(drawn / f"{name}-{scheme}.svg", words)


def test_without_a_run_the_architecture_is_drawn_with_the_weights_of_the_program(
        monkeypatch, tmp_path, quick):
    monkeypatch.setitem(LOSS_WEIGHTS, "hidden", 7.5)
    assert figures.main(["--out", str(tmp_path)]) is None
    assert os.listdir(tmp_path) == ["architecture-dark.svg"]
    assert_words(tmp_path / "architecture-dark.svg", ["7.5 × hidden loss"])


# ---- What the pictures show --------------------------------------------------------------

def map_of(path, ids, number, head):
    """Compute an attention map (T, T) of the model in a folder; number and head count from 1."""
    model = load(path)
    layer = number - 1
    _, log_maps = model(ids, maps=[layer])
    log_map = log_maps[layer][0, head - 1]
    return log_map.exp().detach().numpy()


def test_the_maps_are_those_of_the_matched_layers(toy, finished):
    """The 2 recursions of the student are matched to the layers 2 and 4 of the teacher."""
    material = load_material(toy, finished)
    words, pairs, caption = figures.prepare_attention(material, SENTENCE, head=2).args
    assert words == "[CLS] w3 w10 w17 w24 . [SEP]".split()
    assert f"Head 2 of {H}" in caption
    tokenizer = Tokenizer(str(finished))
    ids = torch.tensor([tokenizer(SENTENCE)])
    assert [pair.layer for pair in pairs] == [2, 4]
    assert [pair.recursion for pair in pairs] == [1, 2]
    for pair in pairs:
        of_teacher = map_of(toy / "teacher", ids, pair.layer, head=2)
        of_student = map_of(finished, ids, pair.recursion, head=2)
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
    maps = {1: first_layer, 3: third_layer}
    assert figures.sharpest_head(maps, num_heads=3) == 2
    assert figures.sharpest_head(maps, num_heads=2) == 1
    assert figures.sharpest_head(maps, num_heads=1) == 0
    # The largest probabilities are 0.6 and 0.68 in the second head, but 0.2 and 1 in the third.
    third_layer = maps_of_heads(0.0, 0.6, ALMOST_ONE)
    maps = {1: first_layer, 3: third_layer}
    assert figures.sharpest_head(maps, num_heads=3) == 1


def heights_of(curve):
    """List the heights of a curve's points, which matplotlib has in an array."""
    return list(curve.get_ydata())


def texts_of(axes):
    """List the texts inside a diagram."""
    return [text.get_text() for text in axes.texts]


def log_line(step, **losses):
    """Make a line of a run's log."""
    line = {"step": step, "loss": 9.0}
    line.update(losses)
    return line


def test_the_curves_of_the_losses_are_shares_and_below_is_the_accuracy():
    """A loss that begins with 0 has no share, so it is left out."""
    first = log_line(5, a=4.0, b=2.0, zero=0.0)
    last = log_line(6, a=1.0, b=3.0, zero=1.0, valid_accuracy=0.3)
    figure = figures.draw_losses([first, last], ["a", "zero", "b"], LIGHT)
    upper, lower = figure.axes
    curve_of_a, curve_of_b = upper.get_lines()
    assert heights_of(curve_of_a) == [1.0, 0.25]
    assert heights_of(curve_of_b) == [1.0, 1.5]
    assert texts_of(upper) == ["a: 25%", "b: 150%"]
    assert upper.get_title() == "Each loss as a share of what it was at step 5"
    curve_below, = lower.get_lines()
    assert heights_of(curve_below) == [0.3]


def test_the_losses_of_a_long_log_are_shares_of_its_first_line():
    """Not of the first point, which is a mean of many lines."""
    lines = [log_line(1, a=100.0)]
    for step in range(2, 3001):
        lines.append(log_line(step, a=10.0))
    figure = figures.draw_losses(lines, ["a"], LIGHT)
    assert texts_of(figure.axes[0]) == ["a: 10%"]


def test_the_curves_of_depth_are_the_accuracies():
    accuracies = {"teacher": [0.1, 0.3, 0.2], "student": [0.1, 0.25]}
    axes, = figures.draw_depth(accuracies, LIGHT).axes
    of_teacher, of_student, *_ = axes.get_lines()
    assert heights_of(of_teacher) == [0.1, 0.3, 0.2]
    assert heights_of(of_student) == [0.1, 0.25]
    assert list(of_student.get_xdata()) == [0, 1]


def test_the_accuracies_are_those_of_the_held_out_text(toy, finished):
    args = arguments_of(finished, "--teacher", toy / "teacher", "--plain", finished,
                        "--corpus", toy / "corpus.txt", "--cache", toy / "cache")
    material = figures.load_material(args)
    batches = figures.open_batches(args, material)
    accuracies = figures.measure_depth(material, batches)
    assert list(accuracies) == ["teacher", "student", "without elastic loss"]
    assert accuracies["without elastic loss"] == accuracies["student"]
    for model, name in ((material.teacher, "teacher"), (material.student, "student")):
        assert len(accuracies[name]) == model.config.num_hidden_layers + 1
        scores = distill.evaluate(model, batches)
        assert accuracies[name][-1] == scores["accuracy"]
    last_line = read_log(finished)[-1]
    assert accuracies["student"][-1] == last_line["valid_accuracy"]


def millions_of_parameters(path):
    """Count the parameters in the file of a model."""
    tensors, _ = read_safetensors(path / "model.safetensors")
    num_parameters = sum(tensor.numel() for tensor in tensors.values())
    return num_parameters / 1e6


def test_the_points_are_parameters_and_accuracies(toy, finished, quick):
    material = load_material(toy, finished)
    material.compared["other"] = material.teacher
    accuracies = {"teacher": [0.1, 0.5], "student": [0.1, 0.2, 0.35]}    # after each recursion
    points, = figures.prepare_parameters(material, accuracies, batches=None).args
    size_of_teacher = millions_of_parameters(toy / "teacher")
    size_of_student = millions_of_parameters(finished)
    # The other model is measured here: fake_evaluate gives 0.4 for 4 layers.
    assert points == [("teacher", size_of_teacher, 0.5), ("student", size_of_student, 0.35),
                      ("other", size_of_teacher, 0.4)]


def test_a_long_log_becomes_means_of_neighbours():
    lines = []
    for i in range(1, 1001):
        lines.append(log_line(7 * i, mlm=float(i)))
    steps, values = figures.curve(lines, "mlm")
    assert len(steps) == 143                             # 7 lines for each of at most 150 points
    assert steps[0] == 49
    assert values[0] == 4.0                              # the mean of 1 to 7
    assert steps[-1] == 7000
    assert values[-1] == 997.5                           # the mean of 995 to 1000


def test_a_short_log_is_drawn_as_it_is():
    lines = [log_line(7, mlm=1.0), log_line(14, mlm=2.0), log_line(21, mlm=3.0)]
    steps, values = figures.curve(lines, "mlm")
    assert steps == [7, 14, 21]
    assert values == [1.0, 2.0, 3.0]


def test_what_no_line_of_a_log_has_is_an_empty_curve():
    lines = [log_line(7, mlm=1.0), log_line(14, mlm=2.0)]
    steps, values = figures.curve(lines, "valid_accuracy")
    assert steps == []
    assert values == []


def test_the_labels_of_points_do_not_cover_each_other_and_stay_inside():
    points = [("teacher", 1.3, 0.43), ("student", 0.5, 0.4), ("a", 0.5, 0.4), ("b", 0.51, 0.401),
              ("a long name", 1.29, 0.429), ("a name too long to stand on the right", 1.3, 0.2)]
    axes, = figures.draw_parameters(points, LIGHT).axes
    assert_no_overlap(axes.texts, 6)
    for text in axes.texts:
        area = text.get_window_extent()
        assert axes.bbox.x0 < area.x0
        assert area.x1 < axes.bbox.x1


def test_the_labels_of_losses_do_not_cover_each_other():
    # All three end at nearly the same height.
    first = log_line(1, a=1.0, b=1.0, c=1.0)
    last = log_line(2, a=0.0, b=0.01, c=0.0)
    figure = figures.draw_losses([first, last], ["a", "b", "c"], LIGHT)
    assert_no_overlap(figure.axes[0].texts, 3)


def assert_spread(heights, expected):
    """Assert that heights which need a gap of 0.1 are moved to the expected ones."""
    assert figures.spread(heights, gap=0.1) == pytest.approx(expected)


def test_heights_that_are_far_enough_apart_stay():
    assert_spread([0.1, 0.5, 0.9], [0.1, 0.5, 0.9])


def test_heights_that_are_too_close_are_moved_apart_around_their_mean():
    assert_spread([0.5, 0.5], [0.45, 0.55])
    assert_spread([0.5, 0.52, 0.9], [0.46, 0.56, 0.9])


def test_a_height_that_others_come_too_close_to_is_moved_with_them():
    # 0.44 and 0.46 become 0.4 and 0.5. That leaves 0.3 alone, but not 0.32.
    assert_spread([0.3, 0.44, 0.46], [0.3, 0.4, 0.5])
    mean = (0.32 + 0.44 + 0.46) / 3
    assert_spread([0.32, 0.44, 0.46], [mean - 0.1, mean, mean + 0.1])


def test_heights_stay_between_0_and_1():
    assert_spread([0.0, 0.01], [0.0, 0.1])
    assert_spread([0.98, 1.0, 1.0], [0.8, 0.9, 1.0])


def plot_study(folder):
    """Draw the curves of the study in a folder -> matplotlib's Axes."""
    students, teacher = figures.read_study(rows_of(folder))
    figure = figures.draw_study(students, teacher, LIGHT)
    return figure.axes[0]


def test_the_curves_of_a_study_are_its_accuracies(tmp_path):
    write_study(tmp_path, ["two-groups", "noise", "ours"])
    axes = plot_study(tmp_path)
    *curves, dashed = axes.get_lines()
    # Those with plain words come first, ours before all others, in whatever order they were run.
    for curve, last_accuracy in zip(curves, [0.402, 0.401, 0.4], strict=True):
        assert list(curve.get_xdata()) == [0, 0.7, 2.1]              # millions of tokens
        assert heights_of(curve) == [0.1, 0.3, last_accuracy]
    assert heights_of(dashed) == [0.45, 0.45]
    assert dashed.get_linestyle() == "--"
    assert axes.get_xlim() == (0, 2.1)
    lowest, _ = axes.get_ylim()
    assert lowest == 0


def test_the_labels_of_a_study_have_the_colours_of_its_curves(tmp_path):
    write_study(tmp_path, ["two-groups", "noise", "ours"])
    axes = plot_study(tmp_path)
    of_ours, of_noise, of_two_groups, of_teacher = axes.get_lines()
    colours = {text.get_text(): text.get_color() for text in axes.texts}
    assert colours == {"one layer, corrections: 8 M": of_ours.get_color(),
                       "from noise: 7 M": of_noise.get_color(),
                       "two-groups: 6 M": of_two_groups.get_color(),
                       "teacher: 22.7 M": of_teacher.get_color()}
    assert len(set(colours.values())) == 4


@pytest.mark.parametrize("change", [0.0, 0.05, -0.4])
def test_the_labels_of_a_study_do_not_cover_each_other(tmp_path, change):
    write_study(tmp_path, list(STUDENTS))
    students, teacher = figures.read_study(rows_of(tmp_path))
    teacher.accuracies[-1] += change                     # among, above and far below the students
    with figures.matplotlib.rc_context(figures.style(LIGHT)):
        figure = figures.draw_study(students, teacher, LIGHT)
        axes = figure.axes[0]
        assert_no_overlap([*axes.texts, axes.title], 8)
        for text in axes.texts:
            area = text.get_window_extent()
            assert axes.bbox.x1 < area.x0
            assert area.x1 < figure.bbox.x1


def test_of_many_students_those_with_plain_words_are_drawn(tmp_path, capsys):
    """All curves together could not be told apart."""
    write_study(tmp_path, ["an-old-name", *reversed(STUDENTS)])
    students, _ = figures.read_study(rows_of(tmp_path))
    words = [student.words.split(":")[0] for student in students]
    assert words == list(figures.PLAIN_WORDS.values())
    output = capsys.readouterr().out
    assert output.startswith("study shows 6 students, without authors-own-rate, three-recursions, ")
    assert output.endswith(", an-old-name\n")


def test_a_study_is_drawn_without_a_run(tmp_path, quick):
    write_study(tmp_path, ["ours", "unshared"])
    assert draw_study_of(tmp_path) is None
    out = tmp_path / "out"
    assert sorted(os.listdir(out)) == ["architecture-dark.svg", "study-dark.svg"]
    assert_words(out / "study-dark.svg", [
        "one layer, corrections: 6 M", "a layer for each recursion: 7 M", "teacher: 22.7 M"])


def test_a_study_is_drawn_beside_the_pictures_of_a_run(toy, finished, tmp_path, quick):
    write_study(tmp_path, ["ours"])
    out = tmp_path / "out"
    assert draw(toy, finished, out, "--study", tmp_path) is None
    assert {"study", "losses", "depth"} <= pictures_in(out)


def draw_task_scores(folder, task_scores):
    """Write a study with these scores into a folder and draw them -> Figure."""
    write_study(folder, ["ours"])
    add_task_scores(folder, task_scores)
    scores, majorities = figures.read_task_scores(rows_of(folder))
    with figures.matplotlib.rc_context(figures.style(LIGHT)):
        return figures.draw_tasks(scores, majorities, LIGHT)


def test_the_points_of_a_task_are_the_means_of_its_scores(tmp_path):
    """The points of a model are (score, height of the task)."""
    axes = draw_task_scores(tmp_path, TASK_SCORES).axes[0]
    # The order of the tasks is that of the study: MRPC at the height 2, questions at 1.
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["MRPC", "questions"]
    points = {}
    for line in axes.get_lines():
        scores = [round(float(score), 6) for score in line.get_xdata()]
        model = line.get_label()
        points[model] = list(zip(scores, heights_of(line), strict=True))
    assert points == {"guess without a model": [(0.25, 2), (0.25, 1)],
                      "fewer tokens, labels alone": [(0.6, 2)],
                      "fewer tokens, taught": [(0.72, 2)],
                      "teacher": [(0.8, 2), (0.5, 1)]}


def test_a_study_with_tasks_is_drawn_with_them(tmp_path, quick, capsys):
    write_study(tmp_path, ["ours"])
    picture = tmp_path / "out" / "tasks-dark.svg"
    assert draw_study_of(tmp_path) is None
    assert "tasks is left out: no model of the study was fine-tuned" in capsys.readouterr().out
    assert not picture.exists()
    add_task_scores(tmp_path, TASK_SCORES)
    assert draw_study_of(tmp_path) is None
    assert_words(picture, ["fewer tokens, taught"])


def test_the_legend_of_the_tasks_fits_into_the_picture(tmp_path):
    task_scores = {(model, "mrpc", 0): 0.5 for model in figures.TASK_LOOKS}
    figure = draw_task_scores(tmp_path, task_scores)
    axes = figure.axes[0]
    with figures.matplotlib.rc_context(figures.style(LIGHT)):
        legend = axes.get_legend().get_window_extent()
        title = axes.title.get_window_extent()
    assert figure.bbox.x0 <= legend.x0
    assert legend.x1 <= figure.bbox.x1
    # The title stands above the legend, and both are in the picture.
    assert legend.y1 <= title.y0
    assert title.y1 <= figure.bbox.y1


def test_a_study_without_a_teacher_has_the_curves_of_its_students(tmp_path):
    write_study(tmp_path, ["ours"])
    path = tmp_path / "study.json"
    content = read_json(path)
    del content["rows"][0]
    write_json(path, content)
    axes = plot_study(tmp_path)
    assert len(axes.get_lines()) == 1                    # that of the teacher is missing


# ---- What is left out, and what is refused -----------------------------------------------

def assert_one_line(capsys, words):
    """Assert that what was printed as an error is one line with these words."""
    error = capsys.readouterr().err
    assert error.startswith("figures.py: error: ")
    assert error.count("\n") == 1
    assert words in error


def test_without_a_teacher_and_a_log_architecture_and_depth_are_drawn(
        toy, copied, tmp_path, quick, capsys):
    """Pictures that cannot be drawn are left out, each with a line that says why."""
    change_settings(copied, teacher=None)
    (copied / "log.jsonl").unlink()
    assert draw(toy, copied, tmp_path / "out") is None
    assert pictures_in(tmp_path / "out") == {"architecture", "depth"}
    output = capsys.readouterr().out
    assert "losses is left out: there is no " in output
    assert "attention is left out: there is no teacher" in output
    assert "parameters is left out: there are no two models to compare" in output


def test_without_a_head_or_a_bundled_teacher_some_pictures_are_left_out(
        toy, copied, tmp_path, quick, capsys):
    model = load(copied)
    model.head = None
    save(model, copied)
    status = draw(toy, copied, tmp_path / "out", "--sentence", "what the toy does not know")
    assert status is None
    output = capsys.readouterr().out
    assert "is not the bundled one: --teacher says where it is" in output
    assert "depth is left out: the student has no MLM head" in output
    assert "parameters is left out: the student has no MLM head" in output


@pytest.mark.parametrize("sentence, head, words", [
    ("w1 " * 23, None, "has 25 tokens, more than 24"),
    ("this is another language", None, "does not know the words"),
    (SENTENCE, H + 1, "there is no head 4"),
])
def test_a_sentence_that_cannot_be_shown_leaves_the_attention_out(
        toy, finished, sentence, head, words):
    material = load_material(toy, finished)
    with pytest.raises(figures.LeftOut, match=words):
        figures.prepare_attention(material, sentence, head)


def test_layers_that_cannot_be_matched_leave_the_attention_out(toy, finished):
    material = load_material(toy, finished)
    material.student.config.num_hidden_layers = 3
    with pytest.raises(figures.LeftOut, match="3 recursions cannot be spread evenly"):
        figures.prepare_attention(material, SENTENCE, None)


@pytest.mark.parametrize("more, words", [
    (["--teacher", "headless"], "had another teacher"),
    (["--compare", "nothing"], "--compare nothing: it must be NAME=DIR"),
    (["--compare", "student=teacher"], "the name student is that of a model of the run"),
    (["--compare", "bundled=" + distill.BUNDLED_TEACHER], "its tokenizer is not that of"),
    (["--plain", "nowhere"], "nowhere: this is not a folder"),
    (["--head", "0"], "argument --head: 0 is not from 1"),
])
def test_what_does_not_fit_to_the_run_is_refused(
        toy, finished, tmp_path, monkeypatch, capsys, more, words):
    monkeypatch.chdir(toy)
    out = tmp_path / "out"
    assert draw(toy, finished, out, *more) == 2
    assert_one_line(capsys, words)
    assert not out.exists()


def test_folders_that_are_no_runs_are_refused(toy, copied, tmp_path, capsys):
    assert draw(toy, toy / "teacher", tmp_path / "out") == 2
    assert_one_line(capsys, "is not the folder of a run of distill.py")
    (copied / "run.json").write_text('{"script": "finetune.py", "settings": {}}')
    assert draw(toy, copied, tmp_path / "out") == 2
    assert_one_line(capsys, "is not the folder of a run of distill.py")


def test_flags_that_need_a_run_are_refused(tmp_path, capsys):
    out = str(tmp_path / "out")
    assert figures.main(["--sentence", "a", "--out", out]) == 2
    assert_one_line(capsys, "--sentence: without RUN it would be ignored")


def test_a_folder_without_a_study_is_refused(tmp_path, capsys):
    assert draw_study_of(tmp_path) == 2
    assert_one_line(capsys, "study.json: No such file or directory")
    write_study(tmp_path, ["ours", "noise"], state="failed")
    assert draw_study_of(tmp_path) == 2
    assert_one_line(capsys, "no student in its study.json is done")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", ["[]", "{"])
def test_a_damaged_log_is_refused(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(ValueError, match="log.jsonl: not the log of a run: "):
        figures.read_log(path)


def test_without_matplotlib_it_says_how_to_get_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(figures, "matplotlib", None)
    out = str(tmp_path / "out")
    assert figures.main(["--out", out]) == 2
    assert_one_line(capsys, "pip install -r requirements-dev.txt")
