"""What bench/study.py reads out of a row's folder, and the sums of its tables.

A curve is a list of [tokens, held-out accuracy, held-out loss], a point for each evaluation and one
for the model before its training.
"""
import json
import os
import re

from checkpoint import read_json
from study_rows import TASKS

# A line that distill.py prints: a model, its parameters, those that are applied to a token, its
# held-out accuracy and loss. The groups are the last two.
STUDENT_LINE = re.compile(r"student +[\d,]+ +[\d,]+ +([\d.]+)% +([\d.]+)")
TOKENS = 0                  # columns of a curve
ACCURACY = 1
LOSS = 2


# ---- Of a row ---------------------------------------------------------------------------

def read_outcome(row, folder):
    """Read what a finished row left in its folder -> {name: value} for its result.json."""
    if row.part == "corpus":
        description = read_json(os.path.join(folder, "corpus.bin.json"))
        return {"train": description["train"], "valid": description["valid"]}
    results = read_json(os.path.join(folder, "model", "results.json"))
    if row.part in ("task", "depth"):
        return tuning_outcome(results, TASKS[row.about["task"]])
    log = read_log(os.path.join(folder, "model", "log.jsonl"))
    with open(os.path.join(folder, "printed.txt"), encoding="utf-8") as file:
        printed = file.read()                            # in all attempts of the row
    return distillation_outcome(results, log, printed, row.about["tokens_per_step"])


def read_log(path):
    """Read a log.jsonl -> a list of its lines, each a dict."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def distillation_outcome(results, log, printed, tokens_per_step):
    """Collect parameters, steps, seconds, the curve and the accuracies after 0, 1, ... recursions
    of a distillation.

    results: what is in its results.json; log: the lines of its log.jsonl
    printed: what it printed. The first table in it was printed before the training, also if the run
        was killed and resumed later
    """
    first_line = STUDENT_LINE.search(printed)
    if first_line is None:
        raise ValueError("distill.py printed no line about the student with its accuracy and loss")
    accuracy, loss = first_line.groups()
    points = [[0, float(accuracy) / 100, float(loss)]]
    seconds_of_points = [0.0]
    seconds = 0.0
    last_step = 0
    for line in log:
        # Each line has the speed of its steps, without evaluations. The seconds are computed from
        # it, so that they are right even if the run was killed and went on hours later.
        seconds += (line["step"] - last_step) * tokens_per_step / line["tokens_per_second"]
        last_step = line["step"]
        if "valid_loss" in line:
            tokens = last_step * tokens_per_step
            points.append([tokens, line["valid_accuracy"], line["valid_loss"]])
            seconds_of_points.append(seconds)
    student = results["student"]
    return {"parameters": student["parameters"], "accuracy_after": student["accuracy_after"],
            "steps": last_step, "seconds": seconds, "curve": points,
            "seconds_of_curve": seconds_of_points}


def tuning_outcome(results, task):
    """Collect the score of a fine-tuning with one seed, what the majority scores, and the learning
    rate.

    results: what is in its results.json
    task: one of TASKS, which says of which split and by which metric the scores are
    """
    (mode,) = results["modes"]                           # a command trains in one mode
    scores = results["modes"][mode][task.split]["scores"]
    return {"score": scores[0][task.metric], "rate": results["lr"][mode],
            "majority": results["majority"][task.split][task.metric]}


# ---- Time to quality --------------------------------------------------------------------

def time_to(curve, seconds_of_curve, column, target):
    """Find when a run reached a quality -> (tokens, seconds), or None if it never did.

    column: ACCURACY, which has to grow to the target, or LOSS, which has to fall to it. Between
    two evaluations a straight line is assumed.
    """
    for i, point in enumerate(curve):
        is_reached = point[column] >= target
        if column == LOSS:
            is_reached = point[column] <= target
        if not is_reached:
            continue
        if i == 0:
            return 0, 0.0                                # before the first step
        before = curve[i - 1]
        # How much of the way from the evaluation before to this one.
        share = (target - before[column]) / (point[column] - before[column])
        tokens = before[TOKENS] + share * (point[TOKENS] - before[TOKENS])
        seconds_between = seconds_of_curve[i] - seconds_of_curve[i - 1]
        return tokens, seconds_of_curve[i - 1] + share * seconds_between
    return None


def time_to_quality(fast, slow, tokens_per_step):
    """Compare two distillations: when the fast one reached what the slow one ended with.

    Returns a list of dicts, one for the loss and one for the accuracy.
    """
    compared = []
    for quality, column in (("loss", LOSS), ("accuracy", ACCURACY)):
        target = slow["curve"][-1][column]
        found = {"quality": quality, "target": target, "slow_steps": slow["steps"],
                 "slow_seconds": slow["seconds"]}
        reached = time_to(fast["curve"], fast["seconds_of_curve"], column, target)
        if reached is not None:
            tokens, seconds = reached
            found["steps"] = tokens / tokens_per_step
            found["seconds"] = seconds
            found["share_of_steps"] = found["steps"] / slow["steps"]
            found["share_of_seconds"] = seconds / slow["seconds"]
        compared.append(found)
    return compared


# ---- What is kept of the teacher's scores -----------------------------------------------

def kept_shares(scores, teacher_scores, majorities):
    """Compute how much of the teacher's scores a model keeps -> (share, share above the majority,
    number of tasks).

    The arguments are {task: mean score}; only tasks that both models have done are compared.

        share = sum(score) / sum(teacher's score)
        share above = mean over the tasks of (score - majority) / (teacher's score - majority)

    A task in which the teacher is not above the majority does not count in the second. A share is
    None if there is nothing to divide by.
    """
    shares_above = []
    tasks = [task for task in scores if task in teacher_scores]
    for task in tasks:
        gain = teacher_scores[task] - majorities[task]
        if gain > 0:
            shares_above.append((scores[task] - majorities[task]) / gain)
    share = None
    teacher_sum = sum(teacher_scores[task] for task in tasks)
    if teacher_sum > 0:
        share = sum(scores[task] for task in tasks) / teacher_sum
    return share, mean_or_none(shares_above), len(tasks)


def mean_or_none(values):
    """Return the mean of a list, or None if it is empty."""
    if not values:
        return None
    return sum(values) / len(values)
