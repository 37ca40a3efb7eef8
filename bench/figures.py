"""Pictures for README.md and EXPERIMENTS.md: of the default run of distill.py and of a study.

    python bench/figures.py
        draws the architecture, which needs no run
    python bench/figures.py out/student --plain out/plain \\
        --compare unshared=DIR adapters=DIR "authors' settings=DIR"
        also draws the default run, beside other runs with its teacher and its corpus
    python bench/figures.py --study out/study
        also draws a study, the --out folder of bench/study.py

architecture  the two models and the paper's four losses
losses        how far each loss has fallen, and the held-out accuracy, during the run
attention     attention maps of teacher and student for one sentence
depth         held-out accuracy after each recursion, or each layer of the teacher
parameters    the number of parameters of each model against its held-out accuracy
study         held-out accuracy of a study's students against the tokens that each has seen
tasks         scores of a study's teacher and students in the tasks

The pictures replace those in assets/, unless --out names another folder. Each is two files,
NAME-light.svg and NAME-dark.svg, because no colour of letters is easy to read on white and on
black. A README shows the one that fits:

    <picture>
      <source media="(prefers-color-scheme: dark)" srcset="assets/depth-dark.svg">
      <img src="assets/depth-light.svg" alt="what the picture says, in words">
    </picture>

The words beside points and curves have places that were chosen by hand for the results of
EXPERIMENTS.md. With the same matplotlib the same command writes the same bytes.
"""
import argparse
import json
import os
import statistics
import sys
from functools import partial
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)            # our modules, from any folder

from architecture import BODY, PIXELS_PER_INCH, SMALL, WIDTH, draw_architecture
from checkpoint import load, read_json
from data import Tokenizer
from distill import BUNDLED_TEACHER, match_layers
from study_rows import TASKS
from study_tables import ACCURACY, TOKENS, done_distillations, scores_of_seeds

SENTENCE = "It returns a new array with the same shape."


# ---- The style of all pictures ----------------------------------------------------------

# "paper" is GitHub's background; the background of a picture itself is transparent. The five hues
# follow Okabe and Ito, so that colour-blind readers can tell them apart, too. The contrast of
# letters to the paper is at least 4.5.
THEMES = {
    "light": {"paper": "#ffffff", "text": "#1f2328", "muted": "#59636e", "grid": "#d1d9e0",
              "blue": "#0072b2", "orange": "#bf5000", "green": "#007a57", "purple": "#9a4f8e",
              "gold": "#856400"},
    "dark": {"paper": "#0d1117", "text": "#f0f6fc", "muted": "#9198a1", "grid": "#3d444d",
             "blue": "#56b4e9", "orange": "#ff9a4d", "green": "#2cc295", "purple": "#e08cc8",
             "gold": "#e3c14a"},
}


def style(theme):
    """Return matplotlib's settings for a theme {name of a colour: colour}."""
    return {
        "font.family": "DejaVu Sans",                    # matplotlib brings it along
        "font.size": BODY, "axes.titlesize": BODY, "axes.labelsize": BODY,
        "legend.fontsize": BODY, "xtick.labelsize": SMALL, "ytick.labelsize": SMALL,
        "text.color": theme["text"], "axes.titlecolor": theme["text"],
        "axes.labelcolor": theme["text"], "axes.edgecolor": theme["muted"],
        "xtick.color": theme["muted"], "ytick.color": theme["muted"],
        "xtick.major.size": 0, "ytick.major.size": 0,
        "axes.facecolor": "none", "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "axes.axisbelow": True, "grid.color": theme["grid"],
        "axes.titlelocation": "left", "legend.frameon": False,
        "lines.linewidth": 1.8, "lines.markersize": 5,
        # Letters are stored as outlines: they look the same where the font is not installed.
        "svg.fonttype": "path",
        "svg.hashsalt": "minialbert",                    # names inside the file are not random
    }


def write_picture(name, out, draw):
    """Draw a picture in each theme and write it into the folder out. draw(theme) -> Figure."""
    for scheme, theme in THEMES.items():
        path = os.path.join(out, f"{name}-{scheme}.svg")
        with matplotlib.rc_context(style(theme)):
            figure = draw(theme)
            # Without these two the date and matplotlib's version would be in the file.
            no_metadata = {"Date": None, "Creator": None}
            figure.savefig(path, format="svg", transparent=True, metadata=no_metadata)
        print(path)


def make_figure(height):
    """Make an empty Figure as wide as a README and `height` pixels high."""
    return Figure(figsize=(WIDTH / PIXELS_PER_INCH, height / PIXELS_PER_INCH))


def add_axes(figure, left, top, width, height):
    """Add axes to a figure. The four numbers are pixels, from the figure's top left corner."""
    figure_height = figure.get_figheight() * PIXELS_PER_INCH
    bottom = figure_height - top - height
    place = (left / WIDTH, bottom / figure_height, width / WIDTH, height / figure_height)
    return figure.add_axes(place)


def upper_edge(figure, pixels):
    """Return the height `pixels` below the upper edge as a part of the figure's height."""
    return 1 - pixels / (figure.get_figheight() * PIXELS_PER_INCH)


def write_in_percent(axis):
    """Write the numbers on an axis in percent, with as many decimals as they need."""
    def percent(value, _):
        return f"{100 * value:g}%"

    axis.set_major_formatter(percent)
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=2))


def begin_at_zero(axes, values):
    """Let y go from 0 to a little above the largest of the values."""
    axes.set_ylim(0, 1.12 * max(values))


def label_curve(axes, height, words, colour):
    """Write words right of the axes, at a height on the scale of y."""
    axes.text(1.015, height, words, color=colour, transform=axes.get_yaxis_transform(),
              va="center_baseline")


# ---- Losses -----------------------------------------------------------------------------

# {loss: (its hue, how far above the end of its curve its name stands)}
LOSS_LOOKS = {"mlm": ("blue", 0.0), "attention": ("orange", 0.0325), "hidden": ("green", 0.0164),
              "output": ("purple", -0.0489), "elastic": ("gold", 0.0)}


def draw_losses(lines, theme):
    """Draw how far each loss has fallen, over the steps of a run. A second panel has the held-out
    accuracy. lines: the lines of the log"""
    figure = make_figure(478)
    upper = add_axes(figure, 56, 34, 610, 240)
    draw_falling(upper, lines, theme)
    lower = add_axes(figure, 56, 326, 610, 100)
    draw_progress(lower, lines, theme)
    for axes in (upper, lower):
        axes.set_xlim(0, lines[-1]["step"])
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
    return figure


def draw_falling(axes, lines, theme):
    """Draw each loss as a share of what it was in the first line, so that large and small ones can
    be compared."""
    axes.set_title(f"Each loss as a share of what it was at step {lines[0]['step']}")
    steps = [line["step"] for line in lines]
    shares_of_all = []                                   # all of them, for the scale of y
    for name, (hue, above) in LOSS_LOOKS.items():
        shares = [line[name] / lines[0][name] for line in lines]
        axes.plot(steps, shares, color=theme[hue])
        end = shares[-1]
        label_curve(axes, end + above, f"{name}: {end:.0%}", theme[hue])
        shares_of_all += shares
    begin_at_zero(axes, shares_of_all)
    write_in_percent(axes.yaxis)


def draw_progress(axes, lines, theme):
    """Draw the held-out accuracy over the steps."""
    axes.set_xlabel("step")
    axes.set_title("MLM accuracy on held-out text")
    measured = [line for line in lines if "valid_accuracy" in line]
    steps = [line["step"] for line in measured]
    accuracies = [line["valid_accuracy"] for line in measured]
    axes.plot(steps, accuracies, color=theme["orange"], marker="o", markersize=3)
    label_curve(axes, accuracies[-1], f"{accuracies[-1]:.1%}", theme["orange"])
    begin_at_zero(axes, accuracies)
    write_in_percent(axes.yaxis)


# ---- Attention --------------------------------------------------------------------------

class Pair(NamedTuple):
    """The maps (T, T) of a matched pair: row i has the probabilities with which word i looks at
    each word. Layers and recursions are counted from 1."""
    layer: int
    teacher_map: np.ndarray
    recursion: int
    student_map: np.ndarray


def draw_attention(words, pairs, caption, theme):
    """Draw attention maps: a column for each matched pair, the teacher's map above the student's.

    words: the T words of the sentence; pairs: a list of Pairs
    """
    top = 34                                             # pixels for the caption
    title = 24                                           # and for the title of a map
    gap = 10                                             # between two columns
    margin = 16 + 7 * max(len(word) for word in words)   # for the words beside and below the maps
    side = (WIDTH - margin) / len(pairs) - gap           # of a map
    figure = make_figure(top + 2 * (title + side) + margin)
    shades = LinearSegmentedColormap.from_list("shades", [theme["paper"], theme["blue"]])
    largest = 0.0                                        # the largest probability in all maps
    for pair in pairs:
        largest = max(largest, pair.teacher_map.max(), pair.student_map.max())
    for i, pair in enumerate(pairs):
        x = margin + i * (side + gap)
        upper = add_axes(figure, x, top + title, side, side)
        lower = add_axes(figure, x, top + title + side + title, side, side)
        draw_map(upper, pair.teacher_map, shades, largest)
        draw_map(lower, pair.student_map, shades, largest)
        upper.set_title(f"teacher's layer {pair.layer}", color=theme["blue"])
        lower.set_title(f"student's recursion {pair.recursion}", color=theme["orange"])
        lower.set_xticks(range(len(words)), words, rotation=90)
        if i == 0:
            upper.set_yticks(range(len(words)), words)
            lower.set_yticks(range(len(words)), words)
    figure.text(20 / WIDTH, upper_edge(figure, 16), caption, va="center")
    draw_scale(figure, shades, largest)
    return figure


def draw_map(axes, attention, shades, largest):
    """Draw one map; the value `largest` has the strongest shade."""
    axes.imshow(attention, shades, vmin=0, vmax=largest, interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(matplotlib.rcParams["grid.color"])
    axes.set_xticks([])
    axes.set_yticks([])


def draw_scale(figure, shades, largest):
    """Draw which shade stands for which probability, beside the caption."""
    axes = add_axes(figure, 680, 10, 90, 12)
    axes.imshow([range(64)], shades, aspect="auto")
    axes.set_axis_off()
    height = upper_edge(figure, 16)
    figure.text(672 / WIDTH, height, "0%", ha="right", va="center")
    figure.text(778 / WIDTH, height, f"{largest:.0%}", va="center")


# ---- Depth ------------------------------------------------------------------------------

DEPTH_LOOKS = {"teacher": ("blue", "o"), "student": ("orange", "s"),
               "without elastic loss": ("green", "^")}         # {name: (its hue, its marker)}


def draw_depth(accuracies, theme):
    """Draw the held-out accuracy after each recursion, or after each layer of the teacher.

    accuracies: {name of a model: [accuracy after 0, 1, 2, ... recursions]}
    """
    figure = make_figure(390)
    axes = add_axes(figure, 56, 62, 754, 270)
    for name, values in accuracies.items():
        hue, marker = DEPTH_LOOKS[name]
        axes.plot(range(len(values)), values, color=theme[hue], marker=marker,
                  label=f"{name}: {values[-1]:.1%} at full depth")
    largest_values = [max(values) for values in accuracies.values()]
    begin_at_zero(axes, largest_values)
    write_in_percent(axes.yaxis)
    axes.set_title("MLM accuracy on held-out text", pad=30)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 0.99), ncols=3, handlelength=1.5)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.set_xlabel("layers applied: the teacher has different ones, a student repeats its own")
    return figure


# ---- Parameters -------------------------------------------------------------------------

# {name of a model: (its hue, its marker)}
POINT_LOOKS = {"teacher": ("blue", "o"), "student": ("orange", "s"), "unshared": ("purple", "D"),
               "adapters": ("gold", "v"), "authors' settings": ("green", "P")}


def draw_parameters(points, theme):
    """Draw parameters against held-out accuracy: points [(name, millions, accuracy), ...]."""
    figure = make_figure(390)
    axes = add_axes(figure, 56, 34, 754, 298)
    for name, millions, accuracy in points:
        hue, marker = POINT_LOOKS[name]
        axes.plot(millions, accuracy, marker, color=theme[hue], markersize=9)
        words = f"{name}\n{millions:.3g} M, {accuracy:.1%}"
        axes.annotate(words, (millions, accuracy), xytext=(9, 0), textcoords="offset points",
                      va="center", linespacing=1.3)
    most = max(millions for _, millions, _ in points)
    axes.set_xlim(0, 1.25 * most)                        # there is room for words on the right
    axes.margins(y=0.25)
    axes.set_title("MLM accuracy on held-out text")
    axes.set_xlabel("parameters, in millions")
    axes.xaxis.set_major_formatter("{x:g}")
    write_in_percent(axes.yaxis)
    return figure


# ---- A study ----------------------------------------------------------------------------

# {row of the study: (what the picture calls it, its hue, how far above the end of its curve its
# words stand)}
STUDY_LOOKS = {"ours": ("one layer, corrections", "orange", 0.0119),
               "authors": ("the authors' recipe", "green", 0.0),
               "adapters": ("one layer, adapters", "purple", 0.0005),
               "no-adapters": ("one layer, nothing of its own", "gold", -0.0142),
               "unshared": ("a layer for each recursion", "text", -0.0112),
               "teacher": ("teacher", "blue", 0.0129)}


def draw_study(distillations, theme):
    """Draw the held-out accuracy of students over the tokens that each has seen, and that of the
    teacher at its end. distillations: {row of the study: its result}"""
    figure = make_figure(430)
    axes = add_axes(figure, 56, 34, 500, 338)
    all_accuracies = []
    for name, (words, hue, above) in STUDY_LOOKS.items():
        if name not in distillations:
            continue
        result = distillations[name]
        tokens = [point[TOKENS] / 1e6 for point in result["curve"]]      # in millions
        accuracies = [point[ACCURACY] for point in result["curve"]]
        millions = result["parameters"] / 1e6
        colour = theme[hue]
        if name == "teacher":
            axes.axhline(accuracies[-1], color=colour, linestyle="--")
        else:
            axes.plot(tokens, accuracies, color=colour, marker="o", markersize=3, clip_on=False)
            axes.set_xlim(0, tokens[-1])                 # all students have seen as many
        label_curve(axes, accuracies[-1] + above, f"{words}: {millions:.3g} M", colour)
        all_accuracies += accuracies
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("tokens that a student has seen, in millions")
    begin_at_zero(axes, all_accuracies)
    write_in_percent(axes.yaxis)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.set_title("MLM accuracy on held-out text (M: millions of parameters)")
    return figure


# {fine-tuned model of a study: (what the picture calls it, hue, marker)}. "student" is the row
# "long", as in the README.
TASK_LOOKS = {"long": ("student, labels alone", "orange", "x"),
              "long-taught": ("student, taught", "orange", "s"),
              "long-adapters-alone-taught": ("its corrections alone, taught", "green", "d"),
              "teacher": ("teacher", "blue", "o")}
TASK_WORDS = {"sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "rte": "RTE", "cola": "CoLA",
              "bc5cdr-disease": "BC5CDR", "chemprot": "ChemProt", "qa": "questions"}


def draw_tasks(scores, majorities, theme):
    """Draw the scores of the models of TASK_LOOKS, a line for each task.

    scores: {(model, task): mean score}, from 0 to 1, or from -1 for a correlation
    majorities: {task: the score of guesses made without a model}
    """
    tasks = [task for task in TASKS if task in majorities]
    figure = make_figure(170 + 34 * len(tasks))
    axes = add_axes(figure, 96, 128, 714, 34 * len(tasks))
    heights = range(len(tasks), 0, -1)                   # the first task stands at the top
    guesses = [majorities[task] for task in tasks]
    axes.plot(guesses, heights, "|", color=theme["muted"], markersize=14, markeredgewidth=2,
              label="guess without a model")
    for model, (words, hue, marker) in TASK_LOOKS.items():
        values = []
        places = []
        for task, height in zip(tasks, heights):
            if (model, task) in scores:
                values.append(scores[model, task])
                places.append(height)
        if values:
            axes.plot(values, places, marker, color=theme[hue], markersize=8, label=words)
    axes.set_yticks(heights, [TASK_WORDS[task] for task in tasks])
    axes.set_ylim(0.4, len(tasks) + 0.6)
    write_in_percent(axes.xaxis)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_title("Scores in the tasks", pad=84)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 0.99), ncols=3, handletextpad=0.3,
                columnspacing=1.5)
    return figure


# ---- From here on: what the pictures show, taken from folders ----------------------------

def draw_run(run, plain, compared, out):
    """Draw the four pictures of the default run.

    run: its folder; plain: that of a student without the elastic loss, or None
    compared: a list of "NAME=DIR", which name other students
    out: the folder for the pictures
    """
    with open(os.path.join(run, "log.jsonl"), encoding="utf-8") as log:
        lines = [json.loads(line) for line in log]
    write_picture("losses", out, partial(draw_losses, lines))

    words, pairs, caption = attention_of_sentence(load(BUNDLED_TEACHER), load(run), Tokenizer(run))
    write_picture("attention", out, partial(draw_attention, words, pairs, caption))

    results = read_results(run)                          # of the teacher and of the student
    accuracies = {name: result["accuracy_after"] for name, result in results.items()}
    if plain is not None:
        accuracies["without elastic loss"] = read_results(plain)["student"]["accuracy_after"]
    write_picture("depth", out, partial(draw_depth, accuracies))

    for pair in compared:
        name, folder = pair.split("=", 1)
        results[name] = read_results(folder)["student"]
    points = []
    for name, result in results.items():
        points.append((name, result["parameters"] / 1e6, result["accuracy"]))
    write_picture("parameters", out, partial(draw_parameters, points))


def read_results(run):
    """Read the results.json of a run -> {"teacher": its results, "student": its results}."""
    return read_json(os.path.join(run, "results.json"))


@torch.no_grad()
def attention_of_sentence(teacher, student, tokenizer):
    """Compute the attention maps of SENTENCE, of the head whose maps in the teacher are sharpest ->
    the words, the Pairs and the caption for draw_attention."""
    ids = tokenizer(SENTENCE)
    matches = match_layers(student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    ids_tensor = torch.tensor([ids])                     # (1, T)
    _, student_maps = student(ids_tensor, maps=[r for r, _ in matches])
    _, teacher_maps = teacher(ids_tensor, maps=[layer for _, layer in matches])
    head = sharpest_head(teacher_maps)
    pairs = []
    for r, layer in matches:
        teacher_map = teacher_maps[layer][0, head].exp().numpy()              # (T, T)
        student_map = student_maps[r][0, head].exp().numpy()
        pairs.append(Pair(layer + 1, teacher_map, r + 1, student_map))
    words = [tokenizer.backend.id_to_token(token) for token in ids]
    num_heads = teacher.config.num_attention_heads
    caption = f"Head {head + 1} of {num_heads}. Each row shows where its word looks."
    return words, pairs, caption


def sharpest_head(maps):
    """Return the number of the head, from 0, in which a word's most attended word gets most.

    maps: {layer: log-probabilities (1, H, T, T)}
    """
    sharpness = 0.0
    for log_map in maps.values():
        largest = log_map[0].exp().amax(-1)              # (H, T)
        sharpness = sharpness + largest.mean(-1)
    return sharpness.argmax().item()


def draw_pictures_of_study(folder, out):
    """Draw the two pictures of a study. out: the folder for the pictures"""
    rows = read_json(os.path.join(folder, "study.json"))["rows"]
    write_picture("study", out, partial(draw_study, done_distillations(rows)))
    score_of_seeds, majorities = scores_of_seeds(rows)
    scores = {}
    for key, score_of_seed in score_of_seeds.items():
        scores[key] = statistics.mean(score_of_seed.values())
    write_picture("tasks", out, partial(draw_tasks, scores, majorities))


# ---- The command line -------------------------------------------------------------------

def main(argv=None):
    """Draw the pictures that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", metavar="RUN",
                        help="the --out folder of `python distill.py` (default: the run is not "
                        "drawn)")
    parser.add_argument("--plain", metavar="DIR",
                        help="the same with --elastic 0, for the picture depth")
    parser.add_argument("--compare", nargs="+", default=[], metavar="NAME=DIR",
                        help="other students for the picture parameters; POINT_LOOKS has their "
                        "names")
    parser.add_argument("--study", metavar="DIR",
                        help="the --out folder of bench/study.py, for the pictures study and "
                        "tasks")
    parser.add_argument("--out", default=os.path.join(ROOT, "assets"), metavar="DIR",
                        help="the folder for the pictures (default: assets/)")
    args = parser.parse_args(argv)
    matplotlib.rcdefaults()         # a reader's own matplotlibrc does not change the pictures
    os.makedirs(args.out, exist_ok=True)
    write_picture("architecture", args.out, draw_architecture)
    if args.run is not None:
        draw_run(args.run, args.plain, args.compare, args.out)
    if args.study is not None:
        draw_pictures_of_study(args.study, args.out)


if __name__ == "__main__":
    main()
