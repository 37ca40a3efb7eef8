"""bench/study.py: steps, logs, time to quality and kept shares are right; a row that is done is not
run again, and one that fails does not stop the others. bench/dropout.py: what it measures.
bench/gpu.py: a batch is unusual. bench/fuzz.py: it damages and reads files. No test trains a
model."""
import json
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data
import distill
import finetune
from checkpoint import load, read_json
from conftest import ROOT, write_file
from minialbert import Config, MiniALBERT, count_parameters

sys.path.insert(0, os.path.join(ROOT, "bench"))
import dropout
import study
import study_tables
from gpu_worker import TOY, make_batch_unusual
from speed_ours import Clock, random_batches
from study_rows import (ADAPTER_RATES, MODELS, MORE_MODELS, OURS, STUDENTS, TASKS, VARIANTS, Row,
                        Sizes, list_rows, steps_of_tokens, student_row, task_row, teacher_row)
from study_tables import ACCURACY, LOSS, kept_shares, time_to

SIZES = Sizes(tokens=21_000, teacher_tokens=42_000, batch_size=3, length=7, lr=1e-3, evaluations=20,
              task_steps=250, bf16=True)
HIGH_RATES = [3e-4]                                      # of high-rate
PLACES = {"study": "S", "data": "D", "minilm": "M"}
PRINTED = """           parameters     applied  MLM accuracy  MLM loss
teacher     1,355,136   1,355,136         43.7%     3.104
student       517,568   1,112,384         10.0%     6.634
step 40 of 40: loss 3.0, valid_accuracy 0.3, valid_loss 4.0
student       517,568   1,112,384         30.0%     4.000
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

def rows_of(parts, students=("ours",), tasks=("rte",), models=None, seeds=(0,)):
    """List the rows of a study with the small SIZES; by default one student, task and seed."""
    return list_rows(parts, list(students), list(tasks), models, list(seeds), SIZES)


@pytest.mark.parametrize("tokens, steps", [
    (21, 1), (5, 1), (42, 2), (21_000, 1000), (21_008, 1000), (21_012, 1001)])
def test_steps_are_the_tokens_divided_by_those_of_a_step(tokens, steps):
    """A step has 3 x 7 tokens. The steps are rounded, and there is at least one."""
    assert steps_of_tokens(tokens, SIZES) == steps


def test_a_run_has_its_warmup_and_its_evaluations():
    flags = student_row("ours", SIZES).flags
    assert value_after("--steps", flags) == "1000"
    assert value_after("--warmup", flags) == "70"
    assert value_after("--eval-every", flags) == "50"    # 20 evaluations


def test_the_command_of_each_row_is_understood():
    models = MODELS + MORE_MODELS
    rows = rows_of(["students", "tasks"], STUDENTS, TASKS, models, seeds=[0, 1])
    # There are also a corpus and a teacher.
    assert len(rows) == 2 + len(STUDENTS) + 2 * len(TASKS) * len(models)
    for row in rows:
        args = parsed(row)
        if row.script != "data.py" and row.about.get("model") != "minilm":
            assert args.out == f"S/{row.name}/model"


def test_a_fine_tuning_has_the_steps_of_its_task_but_not_too_many():
    """A model whose name ends in longer has three times as many."""
    for row in rows_of(["tasks"], STUDENTS, TASKS, MODELS + MORE_MODELS):
        if row.script == "finetune.py":
            args = parsed(row)
            usual_steps = min(250, TASKS[row.about["task"]].steps)
            if "longer" in row.about["model"]:
                assert args.steps == 3 * usual_steps
            else:
                assert args.steps == usual_steps
            assert args.bf16


def test_the_rows_of_depth_are_fine_tuned_with_each_number_of_recursions():
    found = []
    for row in rows_of(["depth"], students=[], tasks=["sst2"], models=[], seeds=[3]):
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


def test_a_student_differs_from_ours_only_as_its_name_says():
    ours = vars(parsed(student_row("ours", SIZES)))
    for name, changed_flags in STUDENTS.items():
        if name in ("authors", "long"):
            continue
        different = set()
        student = vars(parsed(student_row(name, SIZES)))
        for flag, value in student.items():
            if value != ours[flag]:
                different.add(flag.replace("_", "-"))
        different.discard("out")
        expected = {flag for flag, value in changed_flags.items() if OURS.get(flag) != value}
        if name in ("adapters", "no-adapters", "unshared"):
            # They have nothing to correct, or the paper's adapters, and wider embeddings at the
            # same size.
            expected.update(OURS)
        assert different == expected, name


def num_parameters(config):
    """Count the parameters of a model without its head, which takes no memory here."""
    with torch.device("meta"):
        return count_parameters(MiniALBERT(config, head=False))["body"]


def test_ours_and_the_student_with_adapters_have_27_percent_of_the_teachers_parameters():
    minilm = Config(vocab_size=30522, embedding_size=384, hidden_size=384, num_hidden_layers=6,
                    num_hidden_groups=6, num_attention_heads=12, intermediate_size=1536)
    teacher = SimpleNamespace(config=minilm)
    sizes = {}
    for name in ("ours", "adapters"):
        args = parsed(student_row(name, SIZES))
        sizes[name] = num_parameters(distill.student_config(args, teacher, 30522))
    assert sizes["ours"] < 0.27 * num_parameters(minilm)
    assert sizes["ours"] == pytest.approx(sizes["adapters"], rel=0.01)


def test_the_long_student_sees_nine_times_as_many_tokens_in_batches_twice_as_large():
    row = student_row("long", SIZES)
    args = parsed(row)
    tokens_per_step = 2 * SIZES.batch_size * SIZES.length
    assert args.batch_size * args.length == tokens_per_step
    assert row.about["tokens_per_step"] == tokens_per_step
    assert args.steps == round(9 * SIZES.tokens / tokens_per_step)
    assert args.lr == 1.5 * SIZES.lr


def test_the_long_student_is_ours_with_the_loss_weights_of_the_program():
    args = parsed(student_row("long", SIZES))
    ours = parsed(student_row("ours", SIZES))
    assert args.embedding_size == ours.embedding_size
    assert args.correction_rank == ours.correction_rank
    assert args.hidden_weight == distill.LOSS_WEIGHTS["hidden"]
    assert args.attention_weight == distill.LOSS_WEIGHTS["attention"]
    assert ours.attention_weight == 3 / SIZES.length     # the authors'


def test_the_authors_row_is_their_recipe_with_our_steps_and_rate():
    args = parsed(student_row("authors", SIZES))
    assert args.init == "random"
    assert not args.tie_decoder
    assert args.dropout == 0.1
    assert args.weight_decay == 1e-4
    assert args.lr == SIZES.lr
    assert args.steps == 1000


def test_the_row_full_weights_has_the_weights_of_the_recipe():
    flags = student_row("full-weights", SIZES).flags
    assert value_after("--attention-weight", flags) == "3"
    assert value_after("--hidden-weight", flags) == "10"


def test_adapters_alone_are_those_of_ours_at_several_rates():
    row = task_row("mrpc", "adapters-alone", 2, SIZES)
    assert row.needs == ["ours"]
    args = parsed(row)
    assert args.model == "S/ours/model"
    assert args.modes == ["adapters"]
    assert args.lr == ADAPTER_RATES
    assert args.seed == 2


def test_each_row_comes_after_the_one_that_it_needs():
    rows = rows_of(["students", "tasks", "depth"], tasks=TASKS)
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    for row in rows:
        for name in row.needs:
            assert names.index(name) < names.index(row.name)
    # The other students are not there to be fine-tuned.
    models = {row.about["model"] for row in rows if row.part == "task"}
    assert models == {"teacher", "ours", "taught", "adapters-alone"}


def test_taught_is_ours_with_the_teacher_that_was_tuned_for_the_same_task_with_the_same_seed():
    row = task_row("rte", "taught", 2, SIZES)
    assert row.needs == ["ours", "tasks/rte/teacher/seed2"]
    args = parsed(row)
    assert args.model == "S/ours/model"
    assert args.distill_from == "S/tasks/rte/teacher/seed2/model"
    assert args.modes == ["all"]
    assert args.seed == 2


@pytest.mark.parametrize("model, folder, lr, mode, is_taught", [
    ("ours", "ours", None, "all", False),
    ("taught", "ours", None, "all", True),
    ("taught-longer", "ours", None, "all", True),
    ("high-rate", "ours", HIGH_RATES, "all", False),
    ("adapters-alone", "ours", ADAPTER_RATES, "adapters", False),
    ("authors-taught", "authors", None, "all", True),
    ("adapters-taught", "adapters", None, "all", True),
    ("no-adapters-taught", "no-adapters", None, "all", True),
    ("unshared-taught", "unshared", None, "all", True),
    ("long-taught", "long", None, "all", True),
    ("long-adapters-alone-taught", "long", ADAPTER_RATES, "adapters", True),
    ("teacher-longer", "teacher", None, "all", False),
])
def test_a_variant_differs_from_the_usual_fine_tuning_as_its_name_says(
        model, folder, lr, mode, is_taught):
    args = parsed(task_row("rte", model, 0, SIZES))
    assert args.model == f"S/{folder}/model"
    assert args.lr == lr
    assert args.modes == [mode]
    assert (args.distill_from is not None) == is_taught


def test_the_rate_without_a_teacher_is_the_default_of_finetune_with_one():
    config = SimpleNamespace(hidden_size=384, correction_rank=30)
    rate = finetune.default_rate("all", config, without_task=False, learns_hidden=True)
    assert VARIANTS["high-rate"].lr == rate


def names_of_tunings(models):
    """List the names of the fine-tunings in a study that is asked for these models."""
    rows = rows_of(["tasks"], models=models)
    return [row.name for row in rows if row.part == "task"]


def test_taught_brings_the_tuned_teacher_with_it():
    teacher = "tasks/rte/teacher/seed0"
    assert names_of_tunings(["taught"]) == [teacher, "tasks/rte/taught/seed0"]
    assert teacher in names_of_tunings(["taught-longer"])


@pytest.mark.parametrize("models", [["teacher", "ours"], ["ours", "teacher"]])
def test_the_teacher_is_tuned_first_in_whatever_order_models_are_named(models):
    assert names_of_tunings(models) == ["tasks/rte/teacher/seed0", "tasks/rte/ours/seed0"]


# ---- What is read -----------------------------------------------------------------------

def test_the_outcome_of_a_distillation_is_read_from_its_log():
    log = [{"step": 10, "tokens_per_second": 200},
           {"step": 20, "tokens_per_second": 50, "valid_accuracy": 0.2, "valid_loss": 5.0},
           {"step": 40, "tokens_per_second": 100, "valid_accuracy": 0.3, "valid_loss": 4.0}]
    results = {"student": {"parameters": 517_568, "accuracy_after": [0.1, 0.3]}}
    outcome = study.distillation_outcome(results, log, PRINTED, tokens_per_step=100)
    assert outcome["parameters"] == 517_568
    assert outcome["accuracy_after"] == [0.1, 0.3]
    assert outcome["steps"] == 40
    # The first point, before any step, was printed: 10.0% and 6.634.
    assert outcome["curve"] == [[0, 0.1, 6.634], [2000, 0.2, 5.0], [4000, 0.3, 4.0]]
    # 10 steps of 100 tokens at 200 tokens a second, 10 at 50, 20 at 100.
    assert outcome["seconds_of_curve"] == [0.0, 25.0, 45.0]
    assert outcome["seconds"] == 45.0


def test_the_outcome_of_a_fine_tuning_is_that_of_the_tasks_metric_and_split():
    dev = {"scores": [{"f1": 0.8, "accuracy": 0.75}]}
    test = {"scores": [{}]}                              # its labels are not known
    results = {"lr": {"adapters": 0.003}, "modes": {"adapters": {"dev": dev, "test": test}},
               "majority": {"dev": {"f1": 0.8122, "accuracy": 0.6838}}}
    outcome = study.tuning_outcome(results, TASKS["mrpc"])
    assert outcome == {"score": 0.75, "rate": 0.003, "majority": 0.6838}


# ---- Time to quality and kept shares ----------------------------------------------------

CURVE = [[0, 0.0, 10.0], [100, 0.2, 6.0], [200, 0.3, 4.0]]
SECONDS = [0.0, 20.0, 30.0]


@pytest.mark.parametrize("column, target, expected", [
    (LOSS, 8.0, (50, 10.0)),
    (LOSS, 6.0, (100, 20.0)),
    (LOSS, 4.5, (175, 27.5)),
    (LOSS, 11.0, (0, 0.0)),
    (LOSS, 3.9, None),
    (ACCURACY, 0.05, (25, 5.0)),
    (ACCURACY, 0.3, (200, 30.0)),
    (ACCURACY, 0.31, None),
])
def test_time_to_a_quality_lies_on_the_line_between_two_evaluations(column, target, expected):
    """It is (tokens, seconds), or None if the curve never comes so far."""
    found = time_to(CURVE, SECONDS, column, target)
    if expected is None:
        assert found is None
    else:
        assert found == pytest.approx(expected)


def test_kept_shares_are_of_the_sum_and_of_what_is_above_the_majority():
    # In c the teacher is below the majority, so nothing of what is above it can be kept.
    teacher = {"a": 0.8, "b": 0.5, "c": 0.0}
    student = {"a": 0.7, "b": 0.4, "c": 0.1}
    majorities = {"a": 0.6, "b": 0.0, "c": 0.2, "d": 0.1}
    share, share_above = kept_shares(student, teacher, majorities)
    assert share == pytest.approx((0.7 + 0.4 + 0.1) / (0.8 + 0.5 + 0.0))
    share_above_in_a = (0.7 - 0.6) / (0.8 - 0.6)
    share_above_in_b = 0.4 / 0.5
    assert share_above == pytest.approx((share_above_in_a + share_above_in_b) / 2)


# ---- Running and resuming ---------------------------------------------------------------

def row_named(name, needs=()):
    """Make a Row whose outcome are two numbers in the description of a corpus."""
    flags = ["--student", "{study}/x"]
    return Row(name, "corpus", "data.py", flags, needs, {})


class FakeRunner:
    """Runs nothing, but notes what it was to run and writes an outcome.

    failing: names of rows that fail; interrupting: the name of a row at which Ctrl-C is pressed
    """

    def __init__(self, failing=(), interrupting=None):
        self.failing = failing
        self.interrupting = interrupting
        self.ran = []

    def __call__(self, words, folder, stopping):
        name = Path(folder).name
        self.ran.append(name)
        if name == self.interrupting:
            raise KeyboardInterrupt
        if name in self.failing:
            return "ValueError: it went wrong"
        Path(folder, "corpus.bin.json").write_text('{"train": 50, "valid": 2}')
        return None


def tuning_row(model, needs=()):
    """Make the Row of a fine-tuning for RTE that needs only these rows."""
    row = task_row("rte", model, 0, SIZES)
    return row._replace(needs=list(needs))


def read_nothing(row, folder):
    """Stand in for read_outcome, which would look for what a real command leaves."""
    return {}


def run(rows, folder, runner):
    """Run rows with a fake runner -> {name of the row: its state}."""
    study.run_rows(rows, str(folder), PLACES, runner)
    results = study.all_results(str(folder))
    return {result["name"]: result["state"] for result in results}


@pytest.mark.parametrize("model, is_kept", [("teacher", True), ("ours", False), ("taught", False)])
def test_of_the_fine_tuned_models_only_those_of_the_teacher_are_kept(
        tmp_path, monkeypatch, model, is_kept):
    """The teacher's are needed to teach others. All together would fill the disk."""
    row = tuning_row(model)
    folder = tmp_path / row.name / "model"
    os.makedirs(folder)
    monkeypatch.setattr(study, "read_outcome", read_nothing)
    states = run([row], tmp_path, FakeRunner())
    assert states == {row.name: "done"}
    assert folder.exists() == is_kept


def test_a_row_that_is_done_is_not_run_again(tmp_path):
    rows = [row_named("a"), row_named("b", needs=["a"])]
    first = FakeRunner()
    states = run(rows, tmp_path, first)
    assert states == {"a": "done", "b": "done"}
    assert first.ran == ["a", "b"]
    second = FakeRunner()
    run(rows + [row_named("c")], tmp_path, second)
    assert second.ran == ["c"]
    result = study.read_result(str(tmp_path), "a")
    assert result["train"] == 50


@pytest.mark.parametrize("script, is_training", [
    ("distill.py", True), ("finetune.py", True), ("data.py", False)])
def test_a_training_goes_on_where_an_earlier_attempt_ended(script, is_training, tmp_path):
    commands = []

    def note_command(words, folder, stopping):
        commands.append(words)
        return "it was killed"

    row = row_named("a")._replace(script=script)
    run([row], tmp_path, note_command)
    command = commands[0]
    assert command[:4] == [sys.executable, script, "--student", "S/x"]
    assert ("--resume" in command) == is_training


def test_a_row_that_was_interrupted_is_run_again(tmp_path):
    rows = [row_named("a"), row_named("b")]
    with pytest.raises(KeyboardInterrupt):
        run(rows, tmp_path, FakeRunner(interrupting="b"))
    again = FakeRunner()
    run(rows, tmp_path, again)
    assert again.ran == ["b"]


def test_ctrl_c_asks_the_rows_that_are_running_to_stop(tmp_path):
    was_asked = []

    def interrupt_at_b(words, folder, stopping):
        if Path(folder).name == "b":
            raise KeyboardInterrupt
        was_asked.append(stopping.wait(timeout=5))       # False after 5 seconds

    rows = [row_named("a"), row_named("b")]
    with pytest.raises(KeyboardInterrupt):
        study.run_rows(rows, str(tmp_path), PLACES, interrupt_at_b, jobs=2)
    assert was_asked == [True]


def test_a_row_that_fails_is_recorded_and_does_not_stop_the_others(tmp_path):
    a = row_named("a")
    b = row_named("b", needs=["a"])
    c = row_named("c")
    rows = [a, b, c]
    runner = FakeRunner(failing=["a"])
    states = run(rows, tmp_path, runner)
    assert states == {"a": "failed", "b": "failed", "c": "done"}
    assert runner.ran == ["a", "c"]                      # b cannot run without a
    result = study.read_result(str(tmp_path), "a")
    assert result["error"] == "ValueError: it went wrong"
    again = FakeRunner()
    states = run(rows, tmp_path, again)
    assert states == {"a": "done", "b": "done", "c": "done"}
    assert again.ran == ["a", "b"]


def test_an_outcome_that_cannot_be_read_is_a_failure(tmp_path):
    def write_nothing_of_use(words, folder, stopping):
        Path(folder, "corpus.bin.json").write_text("no JSON\n")

    states = run([row_named("a")], tmp_path, write_nothing_of_use)
    assert states == {"a": "failed"}


def test_a_command_that_fails_gives_the_last_line_of_its_error(tmp_path):
    folder = str(tmp_path)
    stopping = threading.Event()
    failing = ["sh", "-c", "echo out; echo first >&2; echo last >&2; echo >&2; exit 3"]
    assert study.run_command(failing, folder, stopping) == "last"
    silent = ["sh", "-c", "exit 3"]
    assert study.run_command(silent, folder, stopping) == "exit status 3"
    assert study.run_command(["true"], folder, stopping) is None
    assert (tmp_path / "printed.txt").read_text() == "out\n"


def test_a_command_that_is_to_stop_is_terminated(tmp_path):
    stopping = threading.Event()
    stopping.set()
    command = ["sh", "-c", "trap 'echo saved >&2; exit 3' TERM; while true; do sleep 0.01; done"]
    error = study.run_command(command, str(tmp_path), stopping)
    assert error in ("saved", "exit status -15")         # -15: the trap was not yet set


def test_a_row_waits_for_all_that_it_needs_and_for_a_free_job():
    a = row_named("a")
    b = row_named("b")
    c = row_named("c", needs=["a", "b"])
    # Of each call the first list is of the rows that wait, the second of those that run.
    assert study.rows_to_start([c], [b], jobs=3) == []
    assert study.rows_to_start([b, c], [], jobs=3) == [b]
    assert study.rows_to_start([c], [], jobs=3) == [c]
    assert study.rows_to_start([a, b], [], jobs=1) == [a]
    assert study.rows_to_start([b], [a], jobs=1) == []


def test_rows_run_at_the_same_time_but_after_those_they_need(tmp_path):
    """b and c wait for one another, so they run at the same time; both need a."""
    meeting = threading.Barrier(2, timeout=20)
    order = []

    def meet(words, folder, stopping):
        name = Path(folder).name
        order.append(name)
        if name in ("b", "c"):
            meeting.wait()
        return FakeRunner()(words, folder, stopping)

    a = row_named("a")
    b = row_named("b", needs=["a"])
    c = row_named("c", needs=["a"])
    d = row_named("d", needs=["a", "c"])
    rows = [a, b, c, d]
    num_failed = study.run_rows(rows, str(tmp_path), PLACES, meet, jobs=2)
    assert num_failed == 0
    assert order[0] == "a"
    assert order[3] == "d"


def test_a_row_that_was_made_with_other_flags_is_refused(tmp_path):
    row = row_named("a")
    run([row], tmp_path, FakeRunner())
    changed = row._replace(flags=["--student", "other"], part="student")
    study.check_rows([changed._replace(flags=row.flags)], str(tmp_path))
    with pytest.raises(ValueError, match="another command"):
        study.check_rows([changed], str(tmp_path))
    # The corpus and the teacher may have been copied from another study.
    for part in ("corpus", "teacher"):
        study.check_rows([changed._replace(part=part)], str(tmp_path))


# ---- Tables -----------------------------------------------------------------------------

def distilled(name, part, curve):
    """Make the result of a distillation."""
    return {"name": name, "part": part, "state": "done", "command": f"python {name}",
            "about": {"tokens_per_step": 10}, "parameters": 1234, "steps": 20, "seconds": 30.0,
            "curve": curve, "seconds_of_curve": SECONDS, "accuracy_after": [0.1, 0.25]}


def tuned(model, seed, score):
    """Make the result of a fine-tuning for MRPC."""
    name = f"tasks/mrpc/{model}/seed{seed}"
    about = {"task": "mrpc", "model": model, "seed": seed}
    return {"name": name, "part": "task", "state": "done", "about": about, "score": score,
            "majority": 0.5, "seconds": 7.0, "command": "python finetune.py"}


def write_results(folder, results):
    """Write each result into the folder of its row."""
    for result in results:
        write_file(folder / result["name"] / "result.json", json.dumps(result))


def test_the_tables_and_study_json_hold_what_was_measured(tmp_path, capsys):
    slow_curve = [[0, 0.0, 10.0], [200, 0.1, 8.0]]
    # Ours has no seed 2, so the teacher's is not compared with anything.
    results = [distilled("teacher", "teacher", CURVE), distilled("ours", "student", CURVE),
               distilled("authors", "student", slow_curve),
               tuned("teacher", 0, 0.9), tuned("teacher", 1, 0.9), tuned("teacher", 2, 0.6),
               tuned("ours", 0, 0.7), tuned("ours", 1, 0.9)]
    write_results(tmp_path, results)
    study.write_study(str(tmp_path))
    printed = capsys.readouterr().out
    # The last evaluation in the first three quarters of the 200 tokens was after 100.
    assert "| 1,234 | 200 | 30.0% | 4.000 | 2.000 since 100 tokens | 30 | `python tea" in printed
    assert "| ours | 1,234 | 200 | 30.0% | 100.0% | 4.000 | 30 | `python ours` |" in printed
    assert "| loss 8.000 | 20 | 30 | 5 | 10.0 | 25.0% | 33.3% |" in printed
    assert "| accuracy 10.0% | 20 | 30 | 5 | 10.0 | 25.0% | 33.3% |" in printed
    assert "| ours | 80.0 ± 14.1 |\n" in printed
    assert "| majority | 50.0 |" in printed
    assert "| ours | 10.0% | 25.0% |" in printed
    # 0.8 / 0.9 of the teacher's score, 0.3 / 0.4 of what is above the majority's, in one task.
    assert "| ours | 88.9% | 75.0% | 1 |" in printed
    content = read_json(tmp_path / "study.json")
    assert len(content["rows"]) == len(results)
    first_row = content["rows"][0]
    assert first_row["name"] == "authors"
    assert first_row["curve"] == slow_curve


def tuned_at_depth(seed, score):
    """Make the result of a fine-tuning of ours for SST-2 with 2 recursions."""
    about = {"task": "sst2", "model": "ours", "seed": seed, "recursions": 2}
    return {"part": "depth", "state": "done", "name": f"depth/{seed}", "about": about,
            "score": score}


def test_there_are_tables_about_depth_and_of_what_failed():
    failed = {"part": "student", "state": "failed", "name": "noise", "error": "no space left",
              "command": "python distill.py"}
    results = [tuned_at_depth(0, 0.7), tuned_at_depth(1, 0.9), failed]
    tables = study_tables.all_tables(results)
    assert "| sst2 | ours | 2 | 80.0 ± 14.1 |" in tables
    assert "| noise | no space left | `python distill.py` |" in tables


def test_an_empty_study_has_no_tables():
    assert study_tables.all_tables([]) == ""


# ---- bench/dropout.py -------------------------------------------------------------------

def test_dropout_disturbs_a_model_where_it_is_switched_on(toy):
    """Each column of the table switches it on at other places, so each has another loss. Where it
    is off, accuracy and loss are those of distill.evaluate."""
    model = load(toy / "teacher")
    tokenizer = data.Tokenizer(str(toy / "teacher"))
    tokens = np.tile(np.arange(5, 95), 2)
    batches = data.MaskedBatches(tokens, tokenizer, T=16, batch_size=3)
    assert batches.count == 12
    losses = {}
    for name, places in dropout.COLUMNS.items():
        noisy = dropout.with_dropout(model, places)
        accuracy, loss = dropout.measure(noisy, batches, num_batches=4)
        losses[name] = loss
        if name == "off":
            expected = distill.evaluate(model, batches)
            assert accuracy == expected["accuracy"]
            assert loss == pytest.approx(expected["loss"])
    assert "off" in losses
    assert len(set(losses.values())) == 5


# ---- bench/gpu.py -----------------------------------------------------------------------

def test_one_batch_of_the_gpu_bench_is_unusual():
    """A CUDA graph is for the usual number of masked places: 2 in each of 6 sequences of 17."""
    batches = random_batches(TOY, Clock())
    make_batch_unusual(batches, step=5)
    assert [len(batches.batch(step)[1]) for step in range(12)] == [12] * 5 + [10] + [12] * 6


def test_damaged_files_are_read_as_by_the_official_package_or_refused():
    """bench/fuzz.py damages the files in the ways of tests/test_hostile.py."""
    pytest.importorskip("safetensors", reason="it is in requirements-dev.txt")
    import fuzz                                          # it imports safetensors
    outcomes, _, _ = fuzz.fuzz(fuzz.original_files()[0], 200)
    assert outcomes.total() == 200
    assert outcomes["read alike"] > 0
    for outcome in outcomes:
        assert outcome.startswith(("read alike", "refused"))
