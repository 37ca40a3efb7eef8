"""The tables of bench/study.py, as markdown. all_tables makes all of them.

A result is what the result.json of a row holds, a dict: the fields of study_rows.Row, the state
("done" or "failed"), the command, and what read_outcome of study.py has read.
"""
import statistics

from study_rows import MODELS, MORE_MODELS, STUDENTS, TASKS

# The columns of a curve, see distillation_outcome in study.py.
TOKENS = 0
ACCURACY = 1
LOSS = 2


def all_tables(results):
    """Make all tables that the results allow -> a text in markdown."""
    tables = [teacher_table(results), student_table(results), time_table(results)]
    tables += [task_table(results), kept_table(results), accuracy_table(results)]
    tables += [depth_table(results), failure_table(results)]
    return "\n\n".join(table for table in tables if table != "")


def make_table(title, columns, rows):
    """Make a table of rows, each a list of texts; "" if there are none, so that a study that is not
    yet complete shows no empty tables."""
    if not rows:
        return ""
    lines = [f"### {title}", ""]
    lines.append("| " + " | ".join(columns) + " |")
    lines.append("|" + "---|" * len(columns))
    for row in rows:
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def done_distillations(results):
    """Find the results of the teacher and of the students that are done: {name: result}.

    Each has what distillation_outcome of study.py collects, such as its curve.
    """
    done = {}
    for result in results:
        if result["part"] in ("teacher", "student") and result["state"] == "done":
            done[result["name"]] = result
    return done


def percent(value):
    """Write a share as a percentage; None, a share that is not known, as a dash."""
    if value is None:
        return "-"
    return f"{value:.1%}"


def mean_in_percent(values):
    """Write the mean of scores; if there are several, with their standard deviation."""
    text = f"{statistics.mean(values) * 100:.1f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values) * 100:.1f}"
    return text


# ---- Distillations ----------------------------------------------------------------------

TEACHER_COLUMNS = ["parameters", "tokens", "held-out accuracy", "loss",
                   "the loss fell by", "seconds", "command"]
STUDENT_COLUMNS = ["row", "parameters", "tokens", "held-out accuracy", "of the teacher's", "loss",
                   "seconds", "command"]
# "It" is the authors' recipe in this project's code, with which ours is compared.
TIME_COLUMNS = ["it ended with", "its steps", "its seconds", "ours had that after steps",
                "after seconds", "share of its steps", "share of its seconds"]


def teacher_table(results):
    """Say how good the teacher's head is, and whether its loss still fell at the end."""
    done = done_distillations(results)
    rows = []
    if "teacher" in done:
        teacher = done["teacher"]
        curve = teacher["curve"]
        end = curve[-1]
        # The fall is measured from the last evaluation in the first three quarters of the run. If
        # there is none, it is measured from the first point, that before the training.
        earlier = curve[0]
        for point in curve:
            if point[TOKENS] <= 0.75 * end[TOKENS]:
                earlier = point
        fall = earlier[LOSS] - end[LOSS]
        row = [f"{teacher['parameters']:,}", f"{end[TOKENS]:,}", percent(end[ACCURACY])]
        row += [f"{end[LOSS]:.3f}", f"{fall:.3f} since {earlier[TOKENS]:,} tokens"]
        row += [f"{teacher['seconds']:.0f}", f"`{teacher['command']}`"]
        rows.append(row)
    return make_table("The teacher with a head", TEACHER_COLUMNS, rows)


def student_table(results):
    """List the students with what they cost and how good they are.

    Seconds are those of the training steps, without the evaluations."""
    done = done_distillations(results)
    teacher_accuracy = 0.0                               # if it is not known
    if "teacher" in done:
        teacher_accuracy = done["teacher"]["curve"][-1][ACCURACY]
    rows = []
    for name in STUDENTS:
        if name not in done:
            continue
        student = done[name]
        tokens, accuracy, loss = student["curve"][-1]
        kept = None
        if teacher_accuracy > 0:
            kept = accuracy / teacher_accuracy
        row = [name, f"{student['parameters']:,}", f"{tokens:,}"]
        row += [percent(accuracy), percent(kept), f"{loss:.3f}"]
        row += [f"{student['seconds']:.0f}", f"`{student['command']}`"]
        rows.append(row)
    return make_table("Students", STUDENT_COLUMNS, rows)


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


def time_table(results):
    """Say when ours had the quality with which the authors' recipe ended."""
    done = done_distillations(results)
    if "ours" not in done or "authors" not in done:
        return ""
    ours = done["ours"]
    authors = done["authors"]
    rows = []
    for quality, column in (("loss", LOSS), ("accuracy", ACCURACY)):
        target = authors["curve"][-1][column]
        target_text = f"{target:.3f}"
        if quality == "accuracy":
            target_text = percent(target)
        row = [f"{quality} {target_text}", str(authors["steps"]), f"{authors['seconds']:.0f}"]
        reached = time_to(ours["curve"], ours["seconds_of_curve"], column, target)
        if reached is None:
            row += ["never", "-", "-", "-"]
        else:
            tokens, seconds = reached
            steps = tokens / ours["about"]["tokens_per_step"]
            row += [f"{steps:.0f}", f"{seconds:.1f}"]
            row += [percent(steps / authors["steps"]), percent(seconds / authors["seconds"])]
        rows.append(row)
    return make_table("Time to quality", TIME_COLUMNS, rows)


# ---- Tasks ------------------------------------------------------------------------------

def scores_of_seeds(results):
    """Collect the scores in the tasks {(model, task): {seed: score}}, and {task: majority}."""
    scores = {}
    majorities = {}
    for result in results:
        if result["part"] == "task" and result["state"] == "done":
            about = result["about"]
            key = (about["model"], about["task"])
            scores.setdefault(key, {})[about["seed"]] = result["score"]
            majorities[about["task"]] = result["majority"]
    return scores, majorities


def task_table(results):
    """List the scores of each model in each task, in percent: the mean over the seeds and their
    standard deviation. The last row has the scores of guesses made without a model."""
    scores, majorities = scores_of_seeds(results)
    tasks = [task for task in TASKS if task in majorities]
    tuned_models = {model for model, task in scores}
    rows = []
    for model in MODELS + MORE_MODELS:
        if model not in tuned_models:
            continue
        row = [model]
        for task in tasks:
            if (model, task) in scores:
                row.append(mean_in_percent(list(scores[model, task].values())))
            else:
                row.append("-")
        rows.append(row)
    if rows:
        guesses = [mean_in_percent([majorities[task]]) for task in tasks]
        rows.append(["majority"] + guesses)
    columns = ["model"]
    for task in tasks:
        columns.append(f"{task}, {TASKS[task].split}, {TASKS[task].metric}")
    return make_table("Tasks", columns, rows)


def kept_table(results):
    """Say what each model keeps of the teacher's scores.

    A score is first averaged over the seeds that the model and the teacher have both done.
    """
    scores, majorities = scores_of_seeds(results)
    rows = []
    for model in MODELS + MORE_MODELS:
        model_means = {}
        teacher_means = {}
        for task in majorities:
            of_model = scores.get((model, task), {})
            of_teacher = scores.get(("teacher", task), {})
            seeds = [seed for seed in of_model if seed in of_teacher]
            if seeds:
                model_means[task] = statistics.mean(of_model[seed] for seed in seeds)
                teacher_means[task] = statistics.mean(of_teacher[seed] for seed in seeds)
        if model_means:
            share, share_above = kept_shares(model_means, teacher_means, majorities)
            rows.append([model, percent(share), percent(share_above), str(len(model_means))])
    columns = ["model", "of the mean score", "of what is above the majority's", "tasks"]
    return make_table("Kept of the teacher's scores", columns, rows)


def kept_shares(scores, teacher_scores, majorities):
    """Compute how much of the teacher's scores a model keeps -> (share, share above the majority).

    The first two arguments are {task: mean score} of the same tasks.

        share = sum(score) / sum(teacher's score)
        share above = mean over the tasks of (score - majority) / (teacher's score - majority)

    A task in which the teacher is not above the majority does not count in the second. A share is
    None if there is nothing to divide by.
    """
    share = None
    teacher_sum = sum(teacher_scores.values())
    if teacher_sum > 0:
        share = sum(scores.values()) / teacher_sum
    shares_above = []
    for task, score in scores.items():
        gain = teacher_scores[task] - majorities[task]
        if gain > 0:
            shares_above.append((score - majorities[task]) / gain)
    if not shares_above:
        return share, None
    return share, statistics.mean(shares_above)


# ---- Depth ------------------------------------------------------------------------------

def accuracy_table(results):
    """List the held-out accuracy of the students after each recursion; "after 0" is that of the
    embeddings."""
    done = done_distillations(results)
    rows = []
    longest = 0
    for name in STUDENTS:
        if name in done:
            accuracies = [percent(accuracy) for accuracy in done[name]["accuracy_after"]]
            rows.append([name] + accuracies)
            longest = max(longest, len(accuracies))
    columns = ["student"] + [f"after {number}" for number in range(longest)]
    return make_table("Held-out accuracy after each recursion", columns, rows)


def depth_table(results):
    """List the scores of the students that were fine-tuned with fewer recursions."""
    values = {}                             # {(task, model, recursions): scores of all seeds}
    for result in results:
        if result["part"] == "depth" and result["state"] == "done":
            about = result["about"]
            key = (about["task"], about["model"], about["recursions"])
            values.setdefault(key, []).append(result["score"])
    columns = ["task", "student", "recursions", "score"]
    rows = []
    for (task, model, recursions), scores in sorted(values.items()):
        rows.append([task, model, str(recursions), mean_in_percent(scores)])
    return make_table("Tasks with fewer recursions", columns, rows)


def failure_table(results):
    """List the rows that failed; the same command of the study tries them again."""
    rows = []
    for result in results:
        if result["state"] == "failed":
            rows.append([result["name"], result["error"], f"`{result['command']}`"])
    return make_table("Failed", ["row", "last line of the error", "command"], rows)
