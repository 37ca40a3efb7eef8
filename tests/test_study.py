"""bench/study.py: steps, logs, time to quality and kept shares are right; a row that is done is not
run again, and one that fails does not stop the others. bench/dropout.py: what it measures.
bench/gpu.py: its toy. No test trains a model."""
import json
import os
import shutil
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data
import distill
import finetune
from checkpoint import load
from conftest import ROOT, write_file
from minialbert import Config, MiniALBERT, count_parameters

sys.path.insert(0, os.path.join(ROOT, "bench"))
import dropout
import study
import study_tables
from gpu_worker import TOY, Setup, make_distillation
from study_results import (ACCURACY, LOSS, distillation_outcome, kept_shares, time_to,
                           time_to_quality, tuning_outcome)
from study_rows import (MODELS, MORE_MODELS, OURS, STUDENTS, TASKS, VARIANTS, Row, Sizes,
                        TaskSizes, list_rows, steps_of_tokens, student_row, task_row,
                        teacher_row)

SIZES = Sizes(tokens=21_000, teacher_tokens=42_000, batch_size=3, length=7, lr=1e-3,
              teacher_lr=5e-4, evaluations=20, bf16=False)
TASK_SIZES = TaskSizes(task_steps=250, rates=None, adapter_rates=[1e-3, 3e-3], bf16=True)
PLACES = {"study": "S", "data": "D", "minilm": "M"}
PRINTED = """           parameters     applied  MLM accuracy  MLM loss
teacher     1,355,136   1,355,136         43.7%     3.104
student       517,568   1,112,384         10.0%     6.634
step 40 of 40: loss 3.0, valid_accuracy 0.3, valid_loss 4.0
student       517,568   1,112,384         30.0%     4.000
"""
# The second line about the rates is of a second attempt: it was killed after the first.
PRINTED_BY_FINETUNE = """majority  dev             f1            81.22%
majority  dev             accuracy      68.38%
learning rates, best first (f1 on a held-out tenth of the training set): 1e-05 81.20%, 0.003 7.00%
learning rates, best first (on a held-out tenth of the training set): [0.003, 1e-05]
adapters  dev             accuracy      75.00%
"""


def parsed(row):
    """Parse the flags of a Row with the program that it runs."""
    flags = [flag.format(**PLACES) for flag in row.flags]
    if row.script == "distill.py":
        return distill.arguments(flags)
    if row.script == "data.py":
        return data.arguments(flags)
    assert row.script == "finetune.py"
    return finetune.arguments(flags)


def value_after(flag, words):
    """Return the word after a flag."""
    return words[words.index(flag) + 1]


# ---- The rows ---------------------------------------------------------------------------

@pytest.mark.parametrize("tokens, steps", [(21, 1), (5, 1), (42, 2), (21_000, 1000), (21_008, 1000),
                                           (21_012, 1001)])
def test_steps_are_the_tokens_divided_by_those_of_a_step(tokens, steps):
    assert steps_of_tokens(tokens, SIZES) == steps


def test_a_run_has_its_warmup_and_its_evaluations():
    flags = student_row("ours", SIZES).flags
    assert value_after("--steps", flags) == "1000"
    assert value_after("--warmup", flags) == "70"
    assert value_after("--eval-every", flags) == "50"


def test_the_command_of_each_row_is_understood():
    parts = ["students", "tasks"]
    students = list(STUDENTS)
    models = MODELS + MORE_MODELS
    rows = list_rows(parts, students, list(TASKS), models, [0, 1], SIZES, TASK_SIZES)
    assert len(rows) == 2 + len(students) + 2 * len(TASKS) * len(models)
    for row in rows:
        args = parsed(row)
        if row.script != "data.py" and row.about.get("model") != "minilm":
            assert args.out == f"S/{row.name}/model"
        if row.script == "finetune.py":
            assert args.bf16
            assert value_after("--dropout", row.flags) == "0.0"      # whatever the default is
            usual_steps = min(250, TASKS[row.about["task"]].steps)
            times_longer = 1
            if "longer" in row.about["model"]:
                times_longer = 3
            assert args.steps == times_longer * usual_steps


def test_the_rows_of_depth_are_fine_tuned_with_each_number_of_recursions():
    rows = list_rows(["depth"], [], ["sst2"], [], [3], SIZES, TASK_SIZES)
    found = []
    for row in rows:
        if row.part == "depth":
            args = parsed(row)
            assert args.recursions == row.about["recursions"]
            assert args.seed == 3
            found.append((args.model, args.recursions))
    expected = []
    for model in ("ours", "elastic"):
        for recursions in range(1, 7):
            expected.append((f"S/{model}/model", recursions))
    assert found == expected


def test_the_teacher_has_its_own_rate_and_tokens():
    args = parsed(teacher_row(SIZES))
    assert args.lr == 5e-4
    assert args.steps == 2000                            # 42,000 tokens in batches of 3 x 7


def test_the_rates_of_a_whole_model_are_those_asked_for():
    row = task_row("rte", "ours", 0, TASK_SIZES._replace(rates=[1e-5, 2e-5]))
    assert parsed(row).lr == [1e-5, 2e-5]


def test_a_student_differs_from_ours_only_as_its_name_says():
    ours = parsed(student_row("ours", SIZES))
    # These have nothing to correct, or the paper's adapters, and wider embeddings at the same size.
    others = ["adapters", "no-adapters", "unshared"]
    for name, flags in STUDENTS.items():
        if name in ("authors", "authors-own-rate", "long"):
            continue
        different = set()
        for key, value in vars(parsed(student_row(name, SIZES))).items():
            if value != getattr(ours, key):
                different.add(key.replace("_", "-"))
        expected = {key for key, value in flags.items() if OURS.get(key) != value}
        if name in others:
            expected |= set(OURS)
        assert different - {"out"} == expected, name


def test_ours_and_the_student_with_adapters_have_27_percent_of_the_teachers_parameters():
    minilm = Config(30522, 384, 384, 6, 6, 12, 1536)
    teacher = SimpleNamespace(config=minilm)
    sizes = {}
    for name in ("ours", "adapters"):
        args = parsed(student_row(name, SIZES))
        with torch.device("meta"):
            student = MiniALBERT(distill.student_config(args, teacher, 30522), head=False)
            sizes[name] = count_parameters(student)["body"]
    with torch.device("meta"):
        whole = count_parameters(MiniALBERT(minilm, head=False))["body"]
    assert sizes["ours"] < 0.27 * whole
    assert abs(sizes["ours"] / sizes["adapters"] - 1) < 0.01


def test_the_long_student_sees_nine_times_as_many_tokens_in_batches_twice_as_large():
    row = student_row("long", SIZES)
    args = parsed(row)
    tokens_per_step = row.about["tokens_per_step"]
    assert tokens_per_step == args.batch_size * args.length == 2 * SIZES.batch_size * SIZES.length
    assert args.steps == round(9 * SIZES.tokens / tokens_per_step)
    assert args.lr == 1.5 * SIZES.lr
    ours = parsed(student_row("ours", SIZES))
    assert args.embedding_size == ours.embedding_size
    assert args.correction_rank == ours.correction_rank
    assert args.hidden_weight == distill.LOSS_WEIGHTS["hidden"]
    assert args.attention_weight == distill.LOSS_WEIGHTS["attention"]
    assert ours.attention_weight == 3 / SIZES.length     # the authors'


def test_the_authors_row_is_their_recipe_with_our_steps_and_rate():
    args = parsed(student_row("authors", SIZES))
    assert (args.init, args.tie_decoder, args.dropout) == ("random", False, 0.1)
    assert (args.weight_decay, args.lr, args.steps) == (1e-4, 1e-3, 1000)


def test_adapters_alone_are_those_of_ours_at_several_rates():
    row = task_row("mrpc", "adapters-alone", 2, TASK_SIZES)
    assert row.needs == ["ours"]
    args = parsed(row)
    assert (args.model, args.modes) == ("S/ours/model", ["adapters"])
    assert (args.lr, args.seed) == ([1e-3, 3e-3], 2)


def test_each_row_comes_after_the_one_that_it_needs():
    parts = ["students", "tasks", "depth"]
    rows = list_rows(parts, ["ours"], list(TASKS), None, [0], SIZES, TASK_SIZES)
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    for row in rows:
        for name in row.needs:
            assert names.index(name) < names.index(row.name)
    # The other students are not there to be fine-tuned.
    models = {row.about["model"] for row in rows if row.part == "task"}
    assert models == {"teacher", "ours", "taught", "adapters-alone"}


def test_taught_is_ours_with_the_teacher_that_was_tuned_for_the_same_task_with_the_same_seed():
    row = task_row("rte", "taught", 2, TASK_SIZES)
    assert row.needs == ["ours", "tasks/rte/teacher/seed2"]
    args = parsed(row)
    assert (args.model, args.modes, args.seed) == ("S/ours/model", ["all"], 2)
    assert args.distill_from == "S/tasks/rte/teacher/seed2/model"


@pytest.mark.parametrize("model, folder, lr, mode, is_taught", [
    ("ours", "ours", None, "all", False), ("taught", "ours", None, "all", True),
    ("taught-longer", "ours", None, "all", True), ("high-rate", "ours", [3e-4], "all", False),
    ("high-rate-longer", "ours", [3e-4], "all", False),
    ("adapters-alone", "ours", [1e-3, 3e-3], "adapters", False),
    ("adapters-alone-taught", "ours", [1e-3, 3e-3], "adapters", True),
    ("authors-taught", "authors", None, "all", True),
    ("adapters-taught", "adapters", None, "all", True),
    ("no-adapters-taught", "no-adapters", None, "all", True),
    ("unshared-taught", "unshared", None, "all", True),
    ("long-taught", "long", None, "all", True), ("long-taught-longer", "long", None, "all", True),
    ("long-adapters-alone-taught", "long", [1e-3, 3e-3], "adapters", True),
    ("teacher-longer", "teacher", None, "all", False)])
def test_a_variant_differs_from_the_usual_fine_tuning_as_its_name_says(
        model, folder, lr, mode, is_taught):
    args = parsed(task_row("rte", model, 0, TASK_SIZES))
    assert args.model == f"S/{folder}/model"
    assert (args.lr, args.modes) == (lr, [mode])
    assert (args.distill_from is not None) == is_taught


def test_the_rate_without_a_teacher_is_the_default_of_finetune_with_one():
    config = SimpleNamespace(hidden_size=384, correction_rank=30)
    rate = finetune.default_rate("all", config, is_default_run=False, learns_hidden=True)
    assert VARIANTS["high-rate"].lr == rate


# ---- What is read -----------------------------------------------------------------------

def test_the_outcome_of_a_distillation_is_read_from_its_log():
    log = [{"step": 10, "tokens_per_second": 200}]
    log.append({"step": 20, "tokens_per_second": 50, "valid_accuracy": 0.2, "valid_loss": 5.0})
    log.append({"step": 40, "tokens_per_second": 100, "valid_accuracy": 0.3, "valid_loss": 4.0})
    outcome = distillation_outcome(log, PRINTED, tokens_per_step=100)
    assert outcome["parameters"] == 517_568
    assert outcome["curve"] == [[0, 0.1, 6.634], [2000, 0.2, 5.0], [4000, 0.3, 4.0]]
    # 10 steps of 100 tokens at 200 tokens a second, 10 at 50, 20 at 100.
    assert outcome["seconds_of_curve"] == [0.0, 25.0, 45.0]
    assert (outcome["steps"], outcome["tokens"], outcome["seconds"]) == (40, 4000, 45.0)


def test_the_outcome_of_a_fine_tuning_is_that_of_the_tasks_metric_and_split():
    dev = {"scores": [{"f1": 0.8, "accuracy": 0.75}]}
    test = {"scores": [{}]}                              # its labels are not known
    results = {"modes": {"adapters": {"dev": dev, "test": test}}}
    outcome = tuning_outcome(results, PRINTED_BY_FINETUNE, TASKS["mrpc"])
    assert outcome["score"] == 0.75
    assert outcome["majority"] == pytest.approx(0.6838)
    assert outcome["rate"] == 0.003


def test_a_score_that_is_missing_is_an_error():
    results = {"modes": {"all": {"dev": {"scores": [{"f1": 0.8}]}}}}
    with pytest.raises(ValueError, match="no accuracy of dev"):
        tuning_outcome(results, "", TASKS["mrpc"])


# ---- Time to quality and kept shares ----------------------------------------------------

CURVE = [[0, 0.0, 10.0], [100, 0.2, 6.0], [200, 0.3, 4.0]]
SECONDS = [0.0, 20.0, 30.0]


@pytest.mark.parametrize("column, target, expected", [
    (LOSS, 8.0, (50, 10.0)), (LOSS, 6.0, (100, 20.0)), (LOSS, 4.5, (175, 27.5)),
    (LOSS, 11.0, (0, 0.0)), (LOSS, 3.9, None),
    (ACCURACY, 0.05, (25, 5.0)), (ACCURACY, 0.3, (200, 30.0)), (ACCURACY, 0.31, None)])
def test_time_to_a_quality_lies_on_the_line_between_two_evaluations(column, target, expected):
    found = time_to(CURVE, SECONDS, column, target)
    if expected is None:
        assert found is None
    else:
        assert found == pytest.approx(expected)


def test_time_to_quality_compares_steps_and_seconds():
    fast = {"curve": CURVE, "seconds_of_curve": SECONDS}
    slow = {"curve": [[0, 0.0, 10.0], [1000, 0.5, 5.0]], "steps": 100, "seconds": 250.0}
    loss, accuracy = time_to_quality(fast, slow, tokens_per_step=10, authors_seconds=5.0)
    assert (loss["quality"], loss["target"]) == ("loss", 5.0)
    assert loss["steps"] == pytest.approx(15)
    assert loss["share_of_steps"] == pytest.approx(0.15)
    assert loss["share_of_seconds"] == pytest.approx(0.1)
    assert loss["share_of_authors"] == pytest.approx(25 / 500)
    assert "steps" not in accuracy                       # it never has an accuracy of 0.5


def test_kept_shares_are_of_the_tasks_that_both_have():
    # In c the teacher is below the majority, so nothing of what is above it can be kept.
    teacher = {"a": 0.8, "b": 0.5, "c": 0.0, "d": 0.6}
    student = {"a": 0.7, "b": 0.4, "c": 0.1}
    majorities = {"a": 0.6, "b": 0.0, "c": 0.2, "d": 0.1}
    share, share_above, num_tasks = kept_shares(student, teacher, majorities)
    assert share == pytest.approx((0.7 + 0.4 + 0.1) / (0.8 + 0.5 + 0.0))
    assert share_above == pytest.approx((0.1 / 0.2 + 0.4 / 0.5) / 2)
    assert num_tasks == 3
    assert kept_shares({}, teacher, majorities) == (None, None, 0)


# ---- Running and resuming ---------------------------------------------------------------

def row_named(name, needs=()):
    """Make a Row of study_depth.py, whose outcome is the last line that it prints."""
    flags = ["--student", "{study}/x"]
    return Row(name, "accuracy", "bench/study_depth.py", flags, needs, {"model": name})


class FakeRunner:
    """Runs nothing, but notes what it was to run and prints an outcome.

    failing: names of rows that fail; interrupting: the name of a row at which Ctrl-C is pressed
    """

    def __init__(self, failing=(), interrupting=None):
        self.failing = failing
        self.interrupting = interrupting
        self.ran = []

    def __call__(self, words, folder, stopping):
        name = os.path.basename(folder)
        self.ran.append(name)
        if name == self.interrupting:
            raise KeyboardInterrupt
        if name in self.failing:
            return "ValueError: it went wrong"
        with open(os.path.join(folder, "printed.txt"), "w") as file:
            file.write('some line\n{"accuracy_after": [0.5]}\n')
        return None


def read_nothing(row, folder):
    """Stand in for read_outcome, which would look for what a real command leaves."""
    return {}


def run(rows, folder, runner):
    """Run rows with a fake runner -> {name of the row: its state}."""
    study.run_rows(rows, str(folder), PLACES, runner)
    return {result["name"]: result["state"] for result in study.all_results(str(folder))}


@pytest.mark.parametrize("model, is_kept", [("teacher", True), ("ours", False), ("taught", False)])
def test_of_the_fine_tuned_models_only_those_of_the_teacher_are_kept(
        tmp_path, monkeypatch, model, is_kept):
    row = task_row("rte", model, 0, TASK_SIZES)._replace(needs=[])
    os.makedirs(tmp_path / row.name / "model")
    monkeypatch.setattr(study, "read_outcome", read_nothing)
    assert run([row], tmp_path, FakeRunner()) == {row.name: "done"}
    assert os.path.exists(tmp_path / row.name / "model") == is_kept


def test_a_tuned_teacher_that_was_deleted_is_made_again_if_a_row_needs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "read_outcome", read_nothing)
    teacher = task_row("rte", "teacher", 0, TASK_SIZES)._replace(needs=[])
    run([teacher], tmp_path, FakeRunner())
    assert study.rows_to_run([teacher], str(tmp_path)) == []
    taught = task_row("rte", "taught", 0, TASK_SIZES)._replace(needs=[teacher.name])
    assert study.rows_to_run([teacher, taught], str(tmp_path)) == [taught, teacher]
    os.makedirs(tmp_path / teacher.name / "model")       # as an interrupted run leaves it
    assert study.rows_to_run([teacher, taught], str(tmp_path)) == [taught, teacher]
    (tmp_path / teacher.name / "model" / "task.json").write_text("{}")
    assert study.rows_to_run([teacher, taught], str(tmp_path)) == [taught]
    os.makedirs(tmp_path / taught.name / "model")
    run([teacher, taught], tmp_path, FakeRunner())
    shutil.rmtree(tmp_path / teacher.name / "model")
    assert study.rows_to_run([teacher, taught], str(tmp_path)) == []


def test_taught_brings_the_tuned_teacher_with_it():
    rows = list_rows(["tasks"], ["ours"], ["rte"], ["taught"], [0], SIZES, TASK_SIZES)
    names = [row.name for row in rows if row.part == "task"]
    assert names == ["tasks/rte/teacher/seed0", "tasks/rte/taught/seed0"]
    rows = list_rows(["tasks"], ["ours"], ["rte"], ["taught-longer"], [0], SIZES, TASK_SIZES)
    assert "tasks/rte/teacher/seed0" in [row.name for row in rows]
    for models in (["teacher", "ours"], ["ours", "teacher"]):
        rows = list_rows(["tasks"], ["ours"], ["rte"], models, [0], SIZES, TASK_SIZES)
        assert [row.about["model"] for row in rows if row.part == "task"] == ["teacher", "ours"]


def test_a_model_whose_student_is_not_there_is_refused():
    with pytest.raises(ValueError, match="--models long-taught: its student long is not among"):
        list_rows(["tasks"], ["ours"], ["rte"], ["long-taught"], [0], SIZES, TASK_SIZES)
    rows = list_rows(["students", "tasks", "depth"], ["ours"], ["rte"], ["elastic"], [0], SIZES,
                     TASK_SIZES)
    assert "tasks/rte/elastic/seed0" in [row.name for row in rows]


def test_a_folder_without_texts_is_refused_unless_the_corpus_is_there(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    words = ["--out", tmp_path / "study", "--data", tmp_path, "--minilm", tmp_path, "--tokens", 1e6,
             "--parts", "students", "--rows", "full-weights"]
    args = study.make_parser().parse_args([str(word) for word in words])
    with pytest.raises(ValueError, match="there is no folder .*text"):
        study.run_study(args)
    assert not (tmp_path / "study").exists()
    ran = []
    monkeypatch.setattr(study, "run_rows", lambda rows, *rest: ran.extend(rows) or 0)
    write_file(tmp_path / "study/corpus/result.json", '{"name": "corpus", "state": "done"}')
    monkeypatch.setattr(study, "write_study", lambda *arguments: None)
    assert study.run_study(args) == 0
    assert [row.name for row in ran] == ["corpus", "teacher", "full-weights"]
    assert value_after("--attention-weight", ran[2].flags) == "3"
    assert value_after("--hidden-weight", ran[2].flags) == "10"


@pytest.mark.parametrize("text", ["0", "-5", "1e400", "nan"])
def test_a_number_of_tokens_that_cannot_be_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        study.make_parser().parse_args(["--out", "x", "--tokens", text])
    assert f"{text} is not from 1 to" in capsys.readouterr().err


def test_a_row_that_is_done_is_not_run_again(tmp_path):
    rows = [row_named("a"), row_named("b", needs=["a"])]
    first = FakeRunner()
    assert run(rows, tmp_path, first) == {"a": "done", "b": "done"}
    assert first.ran == ["a", "b"]
    second = FakeRunner()
    run(rows + [row_named("c")], tmp_path, second)
    assert second.ran == ["c"]
    assert study.read_result(str(tmp_path), "a")["accuracy_after"] == [0.5]


@pytest.mark.parametrize("script, is_training", [
    ("distill.py", True), ("finetune.py", True), ("data.py", False)])
def test_a_training_goes_on_where_an_earlier_attempt_ended(script, is_training, tmp_path):
    commands = []

    def note_command(words, folder, stopping):
        commands.append(words)
        return "it was killed"

    run([row_named("a")._replace(script=script)], tmp_path, note_command)
    assert commands[0][:4] == [sys.executable, script, "--student", "S/x"]
    assert ("--resume" in commands[0]) == is_training


def test_a_row_that_was_interrupted_is_run_again(tmp_path):
    rows = [row_named("a"), row_named("b")]
    with pytest.raises(KeyboardInterrupt):
        run(rows, tmp_path, FakeRunner(interrupting="b"))
    again = FakeRunner()
    run(rows, tmp_path, again)
    assert again.ran == ["b"]


def test_ctrl_c_asks_the_rows_that_are_running_to_stop(tmp_path):
    was_asked = []

    def run_two(words, folder, stopping):
        if os.path.basename(folder) == "b":
            raise KeyboardInterrupt
        was_asked.append(stopping.wait(timeout=5))       # False after 5 seconds

    with pytest.raises(KeyboardInterrupt):
        study.run_rows([row_named("a"), row_named("b")], str(tmp_path), PLACES, run_two, jobs=2)
    assert was_asked == [True]


def test_a_row_that_fails_is_recorded_and_does_not_stop_the_others(tmp_path):
    rows = [row_named("a"), row_named("b", needs=["a"]), row_named("c")]
    runner = FakeRunner(failing=["a"])
    assert run(rows, tmp_path, runner) == {"a": "failed", "b": "failed", "c": "done"}
    assert runner.ran == ["a", "c"]                      # b cannot run without a
    assert study.read_result(str(tmp_path), "a")["error"] == "ValueError: it went wrong"
    again = FakeRunner()
    assert run(rows, tmp_path, again) == {"a": "done", "b": "done", "c": "done"}
    assert again.ran == ["a", "b"]


def test_an_outcome_that_cannot_be_read_is_a_failure(tmp_path):
    def print_nothing_of_use(words, folder, stopping):
        with open(os.path.join(folder, "printed.txt"), "w") as file:
            file.write("no JSON\n")

    assert run([row_named("a")], tmp_path, print_nothing_of_use) == {"a": "failed"}


def test_a_command_that_fails_gives_the_last_line_of_its_error(tmp_path):
    command = ["sh", "-c", "echo out; echo first >&2; echo last >&2; echo >&2; exit 3"]
    stopping = threading.Event()
    assert study.run_command(command, str(tmp_path), stopping) == "last"
    assert study.run_command(["sh", "-c", "exit 3"], str(tmp_path), stopping) == "exit status 3"
    assert study.run_command(["true"], str(tmp_path), stopping) is None
    assert (tmp_path / "printed.txt").read_text() == "out\n"


def test_a_command_that_is_to_stop_is_terminated(tmp_path):
    stopping = threading.Event()
    stopping.set()
    command = ["sh", "-c", "trap 'echo saved >&2; exit 3' TERM; while true; do sleep 0.01; done"]
    assert study.run_command(command, str(tmp_path), stopping) in ("saved", "exit status -15")


def test_a_row_waits_for_all_that_it_needs_and_for_a_free_job():
    a = row_named("a")
    b = row_named("b")
    c = row_named("c", needs=["a", "b"])
    assert study.rows_to_start([c], [b], jobs=3) == []
    assert study.rows_to_start([b, c], [], jobs=3) == [b]
    assert study.rows_to_start([c], [], jobs=3) == [c]
    assert study.rows_to_start([a, b], [], jobs=1) == [a]
    assert study.rows_to_start([b], [a], jobs=1) == []


def test_rows_run_at_the_same_time_but_after_those_they_need(tmp_path):
    # b and c wait for one another, so they run at the same time; both need a.
    meeting = threading.Barrier(2, timeout=20)
    order = []

    def meet(words, folder, stopping):
        name = os.path.basename(folder)
        order.append(name)
        if name in ("b", "c"):
            meeting.wait()
        return FakeRunner()(words, folder, stopping)

    rows = [row_named("a"), row_named("b", needs=["a"]), row_named("c", needs=["a"]),
            row_named("d", needs=["a", "c"])]
    assert study.run_rows(rows, str(tmp_path), PLACES, meet, jobs=2) == 0
    assert order[0] == "a"
    assert order[3] == "d"


def test_other_sizes_are_not_mixed_into_a_study(tmp_path):
    study.check_sizes(str(tmp_path), SIZES)
    study.check_sizes(str(tmp_path), SIZES)
    with pytest.raises(ValueError, match="tokens 21000, not 42000"):
        study.check_sizes(str(tmp_path), SIZES._replace(tokens=42_000))


def test_a_row_that_was_made_with_other_flags_is_refused(tmp_path):
    row = row_named("a")
    run([row], tmp_path, FakeRunner())
    study.check_rows([row], str(tmp_path))
    with pytest.raises(ValueError, match="another command"):
        study.check_rows([row._replace(flags=["--student", "other"])], str(tmp_path))
    # The corpus and the teacher may have been copied from another study.
    for part in ("corpus", "teacher"):
        study.check_rows([row._replace(flags=["--student", "other"], part=part)], str(tmp_path))


# ---- Tables -----------------------------------------------------------------------------

def distilled(name, part, curve):
    """Make the result of a distillation."""
    return {"name": name, "part": part, "state": "done", "command": f"python {name}",
            "about": {"tokens_per_step": 10}, "parameters": 1234, "steps": 20, "tokens": 200,
            "seconds": 30.0, "curve": curve, "seconds_of_curve": SECONDS}


def tuned(model, seed, score):
    """Make the result of a fine-tuning for MRPC."""
    return {"name": f"tasks/mrpc/{model}/seed{seed}", "part": "task", "state": "done",
            "about": {"task": "mrpc", "model": model, "seed": seed}, "score": score,
            "majority": 0.5, "seconds": 7.0, "command": "python finetune.py"}


def write_results(folder, results):
    """Write each result into the folder of its row."""
    for result in results:
        path = folder / result["name"] / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(result))


def test_the_tables_and_study_json_hold_what_was_measured(tmp_path, capsys):
    slow_curve = [[0, 0.0, 10.0], [200, 0.1, 8.0]]
    results = [distilled("teacher", "teacher", CURVE)]
    results.append(distilled("ours", "student", CURVE))
    results.append(distilled("authors", "student", slow_curve))
    # Ours has no seed 2, so the teacher's is not compared with anything.
    results += [tuned("teacher", 0, 0.9), tuned("teacher", 1, 0.9), tuned("teacher", 2, 0.6)]
    results += [tuned("ours", 0, 0.7), tuned("ours", 1, 0.9)]
    write_results(tmp_path, results)
    study.write_study(str(tmp_path), authors_seconds=None)
    printed = capsys.readouterr().out
    # The last evaluation in the first three quarters of the 200 tokens was after 100.
    assert "| 1,234 | 200 | 30.0% | 4.000 | 2.000 since 100 tokens | 30 | `python tea" in printed
    assert "| ours | 1,234 | 200 | 30.0% | 100.0% | 4.000 | 30 | `python ours` |" in printed
    assert "| authors | loss 8.000 | 20 | 30 | 5 | 10.0 | 25.0% | 33.3% | - |" in printed
    assert "| ours | 80.0 ± 14.1 | 14 |" in printed
    assert "| majority | 50.0 | - |" in printed
    content = json.loads((tmp_path / "study.json").read_text())
    assert len(content["rows"]) == len(results)
    assert content["kept"]["ours"] == pytest.approx([0.8 / 0.9, 0.75, 1])
    assert content["rows"][0]["curve"][-1] == [200, 0.1, 8.0]


def test_the_tables_about_depth_and_of_what_failed():
    accuracy = {"part": "accuracy", "state": "done", "name": "depth/accuracy/ours",
                "about": {"model": "ours"}, "accuracy_after": [0.1, 0.25]}
    tunings = []
    for seed, score in ((0, 0.7), (1, 0.9)):
        about = {"task": "sst2", "model": "ours", "seed": seed, "recursions": 2}
        tunings.append({"part": "depth", "state": "done", "name": f"depth/{seed}", "about": about,
                        "score": score})
    failed = {"part": "student", "state": "failed", "name": "noise", "error": "no space left",
              "command": "python distill.py"}
    tables = study_tables.all_tables([accuracy, *tunings, failed], authors_seconds=None)
    assert "| ours | 10.0% | 25.0% |" in tables
    assert "| sst2 | ours | 2 | 80.0 ± 14.1 |" in tables
    assert "| noise | no space left | `python distill.py` |" in tables


def test_the_speed_of_the_authors_code_is_remembered(tmp_path):
    for authors_seconds in (5.0, None):
        study.write_study(str(tmp_path), authors_seconds)
        content = json.loads((tmp_path / "study.json").read_text())
        assert content["authors_seconds"] == 5.0


def test_an_empty_study_has_no_tables():
    assert study_tables.all_tables([], None) == ""


# ---- bench/dropout.py -------------------------------------------------------------------

def test_dropout_disturbs_a_model_where_it_is_switched_on(toy):
    model = load(toy / "teacher")
    tokenizer = data.Tokenizer(str(toy / "teacher"))
    tokens = np.tile(np.arange(5, 95), 2)
    batches = data.MaskedBatches(tokens, tokenizer, T=16, batch_size=3)
    assert batches.count == 12
    losses = {}
    for name, places in dropout.COLUMNS.items():
        noisy = dropout.with_dropout(model, places)
        accuracy, losses[name] = dropout.measure(noisy, batches, num_batches=4)
        if name == "off":
            scores = distill.evaluate(model, batches)
            assert scores == {"accuracy": accuracy, "loss": pytest.approx(losses["off"])}
    assert len(set(losses.values())) == 5


# ---- bench/gpu.py -----------------------------------------------------------------------

@pytest.mark.filterwarnings("ignore:.torch.jit.script_method")            # torch itself uses it
@pytest.mark.parametrize("compiled, cuda_graphs", [(False, False), (True, False), (True, True)])
def test_the_toy_of_the_gpu_bench_makes_all_kinds_of_losses(tmp_path, compiled, cuda_graphs):
    setup = Setup(toy=True, device="cpu", folder=str(tmp_path), tokenizer="", corpus=None,
                  authors=[], authors_python="", values={}, answers=None)
    distillation = make_distillation(setup, TOY, bf16=False, compiled=compiled, full_recipe=True,
                                     cuda_graphs=cuda_graphs)
    assert (distillation.losses_graph is not None) == cuda_graphs
