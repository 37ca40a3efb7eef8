"""The rows of bench/study.py: what is trained, by which command, and in which folder.

A row is one command of this project. Its flags hold {study} for the folder of the study, {data} for
the folder with the texts and tasks, and {minilm} for the folder of all-MiniLM. So a study may be
copied to another machine and go on there. (But a study in float32 cannot be continued on a GPU,
where each row is in bfloat16.)
"""
from typing import NamedTuple

from real_tasks import FLAGS_OF_TASKS


class Row(NamedTuple):
    """One command of the study."""
    name: str               # also its folder below the study's
    part: str               # corpus, teacher, student, task or depth
    script: str             # which program of this project it runs
    flags: list             # its flags, with {study}, {data} and {minilm} in them
    needs: list             # the names of the rows that have to be done before
    about: dict             # what the tables need to know of it, such as its task and its seed


# Wikipedia and books. A hash of each document decides whether it is held out. The sequences to
# train on come from all other documents of the four files, in a random order.
TEXTS = ["{data}/text/enwiki.txt.xz", "{data}/text/books_00.txt.xz", "{data}/text/books_01.txt.xz",
         "{data}/text/books_02.txt.xz"]
CORPUS = "{study}/corpus/corpus.bin"

# The shape of the student "ours". Its embeddings are so narrow that, with its corrections, it has
# as many parameters as the student "adapters", whose embeddings are 128 wide: 27 % of those of the
# teacher.
OURS = {"embedding-size": 96, "correction-rank": 30}


def ours_with(changes):
    """Return the flags of ours with some of them changed, and others added: {name: value}."""
    flags = dict(OURS)
    flags.update(changes)
    return flags


# {name of a student: its flags}. A student's flags come from three places; where two give the same
# flag, the later place counts:
#   1. training_flags: the recipe full, the sizes of the study, no dropout (no run gets through its
#      text so often that it could learn it by heart)
#   2. student_row: the authors' weights of the losses, 3 / length and 3, and no elastic loss
#   3. this table
# Other flags are the defaults of distill.py. For example, the width E of the embeddings is 128.
STUDENTS = {
    # One layer, 6 recursions with corrections of their own, started from the teacher; all losses.
    "ours": OURS,
    "noise": ours_with({"init": "random"}),
    # The authors' start, adapters, untied output matrix, weight decay and dropout, with the steps,
    # the rate and the warm-up of the other rows. Without the MLM head it is as large as ours. With
    # the head, which has the output matrix, it has 79 % of the teacher's parameters, and ours 27 %.
    "authors": {"recipe": "paper", "dropout": 0.1},
    # The paper's adapters of C / 16 in place of the corrections.
    "adapters": {"adapter-size": 24},
    "no-adapters": {"adapter-size": 0},                  # and no corrections
    "three-recursions": ours_with({"num-hidden-layers": 3}),
    "two-groups": ours_with({"num-hidden-groups": 2}),
    "three-groups": ours_with({"num-hidden-groups": 3}),
    # No layer is shared, so distill.py gives it neither corrections nor adapters.
    "unshared": {"num-hidden-groups": 6},
    "no-attention-loss": ours_with({"attention-weight": 0}),
    "no-hidden-loss": ours_with({"hidden-weight": 0}),
    "no-output-loss": ours_with({"output-weight": 0}),
    "dropout": ours_with({"dropout": 0.1}),
    # The teacher gives the first values and is not seen again.
    "mlm-alone": ours_with({"attention-weight": 0, "hidden-weight": 0, "output-weight": 0}),
    # Another seed: how much a difference between two rows means.
    "other-seed": ours_with({"seed": 1}),
    # Twice as many recursions, each with corrections of half the rank: as many parameters.
    "twelve-recursions": ours_with({"num-hidden-layers": 12, "correction-rank": 15}),
    # Wider embeddings: the student has 40 % of the teacher's parameters instead of 27 %.
    "embeddings-192": ours_with({"embedding-size": 192}),
    # Each of these two has one weight of the recipe "full". The other students have the weights of
    # the authors (see student_row).
    "attention-weight-3": ours_with({"attention-weight": 3}),
    "hidden-weight-10": ours_with({"hidden-weight": 10}),
    # Both weights of the recipe "full".
    "full-weights": ours_with({"attention-weight": 3, "hidden-weight": 10}),
    # The same with more tokens, a larger batch and a higher rate (see long_sizes).
    "long": ours_with({"attention-weight": 3, "hidden-weight": 10}),
    # For the part "depth": it is trained to be read after any of its recursions.
    "elastic": ours_with({"elastic": 2.5}),
}


class Variant(NamedTuple):
    """A way of fine-tuning a model. The defaults, apart from `start`, are the usual way."""
    start: str = "ours"             # the distillation that is fine-tuned, or minilm
    taught: bool = False            # --distill-from: the teacher tuned with the same task and seed
    adapters_alone: bool = False    # --adapters-only: only its corrections and the head are trained
    lr: float | None = None         # None: finetune.py's; with adapters_alone ADAPTER_RATES
    times_longer: int = 1           # how many times as many steps as usual


# The learning rate that finetune.py takes by default with a teacher, for a student 384 wide.
TAUGHT_LR = 3e-4
# {name of a variant: how it is fine-tuned}. A variant is of ours, unless its name begins with
# another student or with "teacher". "adapters-alone" is of ours, too: it is named after
# --adapters-only.
VARIANTS = {
    "taught": Variant(taught=True),
    "taught-longer": Variant(taught=True, times_longer=3),
    "teacher-longer": Variant(start="teacher", times_longer=3),
    # Labels alone, but with the learning rate of "taught". So the gain from the rate can be told
    # from the gain from the teacher.
    "high-rate": Variant(lr=TAUGHT_LR),
    "adapters-alone": Variant(adapters_alone=True),
    # The other students of MODELS, taught as ours is.
    "authors-taught": Variant(start="authors", taught=True),
    "adapters-taught": Variant(start="adapters", taught=True),
    "no-adapters-taught": Variant(start="no-adapters", taught=True),
    "unshared-taught": Variant(start="unshared", taught=True),
    # A student with other weights of the losses.
    "full-weights-taught": Variant(start="full-weights", taught=True),
    # The student "long", which has seen more tokens, taught in two ways.
    "long-taught": Variant(start="long", taught=True),
    "long-adapters-alone-taught": Variant(start="long", adapters_alone=True, taught=True),
}

# The models that are fine-tuned, unless --models says otherwise: names of distillations and of
# VARIANTS.
MODELS = ["teacher", "ours", "taught", "authors", "adapters", "no-adapters", "unshared",
          "adapters-alone"]
# What --models may name beside them: the other variants, the other students, and minilm, which is
# all-MiniLM as it was before the row "teacher" trained it and gave it an MLM head.
MORE_MODELS = ["minilm"]
for name in list(VARIANTS) + list(STUDENTS):
    if name not in MODELS:
        MORE_MODELS.append(name)
# The part "depth" is about these. Its students have DEPTH_RECURSIONS recursions.
DEPTH_STUDENTS = ["ours", "elastic"]
DEPTH_TASKS = ["sst2", "stsb"]
DEPTH_RECURSIONS = 6


class Task(NamedTuple):
    """What is measured in a task of real_tasks.py."""
    steps: int              # of 32 examples: three passes through the training set; of sst2 one
    metric: str
    split: str              # "test" if the labels of the test set are known, else "dev"


TASKS = {
    "sst2": Task(2105, "accuracy", "dev"),
    "mrpc": Task(344, "accuracy", "dev"),
    "stsb": Task(539, "pearson", "dev"),
    "rte": Task(234, "accuracy", "dev"),
    "cola": Task(802, "matthews", "dev"),
    "bc5cdr-disease": Task(428, "f1", "test"),
    "chemprot": Task(391, "accuracy", "test"),
    # 250 steps of 32 windows. The 27,626 questions have at least one window each, so most are not
    # seen.
    "qa": Task(250, "f1", "dev"),
}


TEACHER_LR = 5e-4           # highest learning rate of the teacher
# Learning rates of the models with adapters-alone in their name. The best one is chosen on a tenth
# of the training set. finetune.py's default for these is 5e-4, and 1e-3 if they are taught.
ADAPTER_RATES = [2.5e-4, 5e-4, 1e-3]


class Sizes(NamedTuple):
    """How large the study is; the flags of study.py with these names explain them."""
    tokens: int
    teacher_tokens: int
    batch_size: int
    length: int
    lr: float
    evaluations: int
    task_steps: int | None          # None: the steps in TASKS
    bf16: bool


def steps_of_tokens(tokens, sizes):
    """Return how many steps it takes to train on so many tokens, at least 1."""
    return max(1, round(tokens / (sizes.batch_size * sizes.length)))


# ---- From a name to a Row ---------------------------------------------------------------

def flag_list(values):
    """Make a list of words of {flag without its dashes: value}; a list gives several words."""
    words = []
    for name, value in values.items():
        words.append(f"--{name}")
        if isinstance(value, list):
            words += [str(item) for item in value]
        else:
            words.append(str(value))
    return words


def corpus_row():
    """Make the Row that tokenises the texts, once for all."""
    flags = flag_list({"corpus": TEXTS, "tokenizer": "{minilm}", "out": CORPUS})
    return Row("corpus", "corpus", "data.py", flags, [], {})


def training_flags(steps, lr, sizes):
    """Return the flags that all distillations have in common: {name: value}."""
    eval_every = max(1, steps // sizes.evaluations)
    return {
        "corpus": CORPUS,
        "recipe": "full",
        "steps": steps,
        "batch-size": sizes.batch_size,
        "length": sizes.length,
        "lr": lr,
        "warmup": round(0.07 * steps),
        "dropout": 0,
        "eval-every": eval_every,
        "save-every": eval_every,
    }


def teacher_row(sizes):
    """Make the Row that trains all-MiniLM and its new MLM head, as a student without a teacher."""
    values = {"teacher": "none", "student": "{minilm}"}
    steps = steps_of_tokens(sizes.teacher_tokens, sizes)
    values.update(training_flags(steps, TEACHER_LR, sizes))
    return distillation_row("teacher", "teacher", values, ["corpus"], sizes)


def student_row(name, sizes):
    """Make the Row that distils one of STUDENTS from the teacher."""
    if name == "long":
        sizes = long_sizes(sizes)
    steps = steps_of_tokens(sizes.tokens, sizes)
    values = {"teacher": model_folder("teacher")}
    values.update(training_flags(steps, sizes.lr, sizes))
    values["elastic"] = 0
    values["attention-weight"] = 3 / sizes.length        # the authors divide by the length
    values["hidden-weight"] = 3
    values.update(STUDENTS[name])
    return distillation_row(name, "student", values, ["teacher"], sizes)


def long_sizes(sizes):
    """Return the Sizes of the student "long": nine times as many tokens as the others.

    It has twice their batch, so that a GPU has enough to do, and therefore a higher rate.
    """
    return sizes._replace(tokens=9 * sizes.tokens, batch_size=2 * sizes.batch_size,
                          lr=1.5 * sizes.lr)


def distillation_row(name, part, values, needs, sizes):
    """Make a Row of distill.py with the flags {name: value} in values."""
    flags = flag_list(values) + last_flags(name, sizes)
    about = {"tokens_per_step": sizes.batch_size * sizes.length}
    return Row(name, part, "distill.py", flags, needs, about)


def last_flags(name, sizes):
    """Return the flags with which the command of each model ends."""
    flags = []
    if sizes.bf16:
        flags.append("--bf16")
    flags += ["--out", model_folder(name)]
    return flags


def model_folder(name):
    """Return the folder of a row's model, or of minilm."""
    if name == "minilm":
        return "{minilm}"
    return "{study}/" + name + "/model"


def task_row(task, model, seed, sizes):
    """Make the Row that fine-tunes a model for a task of TASKS with a seed.

    model: the name of a distillation, minilm, or the name of one of VARIANTS
    """
    variant = variant_of(model)
    steps = variant.times_longer * usual_steps(task, sizes)
    flags = tuning_flags(task, variant.start, steps, seed)
    needs = []
    if variant.start != "minilm":                        # all-MiniLM is there from the beginning
        needs.append(variant.start)
    if variant.adapters_alone:
        flags.append("--adapters-only")
    if variant.taught:
        tuned_teacher = name_of_task_row(task, "teacher", seed)
        needs.append(tuned_teacher)
        flags += flag_list({"distill-from": model_folder(tuned_teacher)})
    if variant.lr is not None:
        flags += flag_list({"lr": variant.lr})
    elif variant.adapters_alone:
        flags += flag_list({"lr": ADAPTER_RATES})
    name = name_of_task_row(task, model, seed)
    flags += last_flags(name, sizes)
    about = {"task": task, "model": model, "seed": seed}
    return Row(name, "task", "finetune.py", flags, needs, about)


def variant_of(model):
    """Return the Variant of a model's name. The name of a distillation, or minilm, is fine-tuned as
    usual."""
    if model in VARIANTS:
        return VARIANTS[model]
    return Variant(start=model)


def usual_steps(task, sizes):
    """Return how many steps a fine-tuning for a task has, unless its Variant is longer."""
    steps = TASKS[task].steps
    if sizes.task_steps is not None:
        steps = min(steps, sizes.task_steps)
    return steps


def name_of_task_row(task, model, seed):
    """Return the name of the row that fine-tunes a model for a task with a seed."""
    return f"tasks/{task}/{model}/seed{seed}"


def depth_row(task, model, recursions, seed, sizes):
    """Make the Row that fine-tunes a student of which only the first recursions are run."""
    name = f"depth/{task}/{model}/recursions{recursions}/seed{seed}"
    flags = tuning_flags(task, model, usual_steps(task, sizes), seed)
    flags += flag_list({"recursions": recursions}) + last_flags(name, sizes)
    about = {"task": task, "model": model, "seed": seed, "recursions": recursions}
    return Row(name, "depth", "finetune.py", flags, [model], about)


def tuning_flags(task, start, steps, seed):
    """Return the flags that all fine-tunings have in common, but without last_flags.

    start: see Variant
    """
    values = {"model": model_folder(start), "steps": steps, "seed": seed}
    return FLAGS_OF_TASKS[task].split() + flag_list(values)


# ---- All rows that are asked for --------------------------------------------------------

def list_rows(parts, students, tasks, models, seeds, sizes):
    """List the Rows of the parts students, tasks and depth, each after those that it needs.

    students: names in STUDENTS; the part depth adds its own
    models: what is fine-tuned, names in MODELS and MORE_MODELS. None stands for those of MODELS
        whose students are among `students`
    """
    rows = [corpus_row(), teacher_row(sizes)]
    distilled = []                                       # the students that get a row here
    if "students" in parts:
        distilled += students
    if "depth" in parts:
        for name in DEPTH_STUDENTS:
            if name not in distilled:
                distilled.append(name)
    rows += [student_row(name, sizes) for name in distilled]
    if "tasks" in parts:
        # `students` are there even without the part "students": an earlier command has distilled
        # them. `distilled` adds those of the part "depth".
        tuned_models = chosen_models(models, students + distilled)
        # All models come with the first seed before any comes with the second.
        for seed in seeds:
            for task in tasks:
                for model in tuned_models:
                    rows.append(task_row(task, model, seed, sizes))
    if "depth" in parts:
        rows += depth_rows(tasks, seeds, sizes)
    return rows


def chosen_models(models, students):
    """List the models to be fine-tuned: see list_rows.

    Models that are taught need the tuned teacher. So it comes first, and if there are such models
    it is in the list even if `models` lacks it.
    """
    if models is None:
        available = ["teacher"] + students
        models = [model for model in MODELS if variant_of(model).start in available]
    others = [model for model in models if model != "teacher"]
    if "teacher" in models or any(variant_of(model).taught for model in others):
        return ["teacher"] + others
    return others


def depth_rows(tasks, seeds, sizes):
    """List the Rows that fine-tune ours and the elastic student, cut off after each recursion."""
    rows = []
    for seed in seeds:
        for task in DEPTH_TASKS:
            if task not in tasks:
                continue
            for model in DEPTH_STUDENTS:
                for recursions in range(1, DEPTH_RECURSIONS + 1):
                    rows.append(depth_row(task, model, recursions, seed, sizes))
    return rows
