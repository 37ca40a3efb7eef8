"""Pictures for the README, of any run of distill.py and of a study.

    python bench/figures.py
        draws the architecture, which needs no run
    python bench/figures.py out/student --out out/pictures
        draws all that can be drawn from this run, the --out folder of distill.py
        (without --out the pictures replace those of README.md, in assets/)
    python bench/figures.py out/student --plain out/plain \\
        --compare unshared=out/unshared authors=out/authors
        draws other runs of the same tokenizer beside it
    python bench/figures.py --study out/study
        draws the architecture and a study, the --out folder of bench/study.py

architecture  the two models and the paper's four losses
losses        how far each loss has fallen, and the held-out accuracy, during the run
attention     attention maps of teacher and student for one sentence
depth         held-out accuracy after each recursion, or each layer of the teacher
parameters    the number of parameters of each model against its held-out accuracy
study         held-out accuracy of a study's students against the tokens that each has seen
tasks         scores of a study's teacher and students in the tasks

Each picture is two files, NAME-light.svg and NAME-dark.svg, because no colour of
letters is easy to read on white and on black. A README shows the one that fits:

    <picture>
      <source media="(prefers-color-scheme: dark)" srcset="assets/depth-dark.svg">
      <img src="assets/depth-light.svg" alt="what the picture says, in words">
    </picture>

If a picture needs something that is not there, one line says so and the picture is
left out. With the same matplotlib the same command writes the same bytes.
"""
import math
import os
import statistics
import sys
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)            # our modules, from any folder

from checkpoint import (expecting, fetch, load, parse_json_object, read_json, read_run, read_text,
                        replace_file)
from command import CommandParser, run_command
from data import CACHE, Tokenizer, open_corpus
from distill import (BUNDLED_TEACHER, check_sizes, choose_device, evaluate, fingerprint,
                     given_flags, integer_from, make_valid_batches, match_layers, refuse_flags)
from minialbert import MiniALBERT, count_parameters
from study_rows import STUDENTS, TASKS
from study_tables import done_distillations, scores_of_seeds

try:
    import matplotlib
except ImportError:
    matplotlib = None               # run() says how to get it
else:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from matplotlib.transforms import Bbox

    from architecture import BODY, PIXELS_PER_INCH, SMALL, WIDTH, draw_architecture

SENTENCE = "It returns a new array with the same shape."
MOST_TOKENS = 24                    # of the sentence: more words beside a map could not be read
MOST_LETTERS = 12                   # of a word beside a map; the rest is cut off
MOST_POINTS = 150                   # on a curve; more would only make the file larger


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
HUES = ["blue", "orange", "green", "purple", "gold"]
# How a model looks in the pictures of a run: the hue and the marker.
LOOKS = {"teacher": ("blue", "o"), "student": ("orange", "s"),
         "without elastic loss": ("green", "^")}
OTHER_LOOKS = [("purple", "D"), ("gold", "v"), ("green", "P"), ("purple", "X"), ("gold", "*")]


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
        with matplotlib.rc_context(style(theme)), replace_file(path) as file:
            figure = draw(theme)
            # Without these two the date and matplotlib's version would be in the file.
            no_metadata = {"Date": None, "Creator": None}
            figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
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
    largest = max(values)
    if largest == 0:
        largest = 1.0
    axes.set_ylim(0, 1.12 * largest)


# ---- Losses -----------------------------------------------------------------------------

def draw_losses(lines, names, theme):
    """Draw how far each loss has fallen, over the steps of a run. A second panel has the held-out
    accuracy; it is empty if the student has no head.

    lines: the lines of the log; names: the losses to draw
    """
    figure = make_figure(478)
    upper = add_axes(figure, 56, 34, 610, 240)
    draw_falling(upper, lines, names, theme)
    lower = add_axes(figure, 56, 326, 610, 100)
    draw_progress(lower, lines, theme)
    for axes in (upper, lower):
        axes.set_xlim(0, lines[-1]["step"])
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
    return figure


def draw_falling(axes, lines, names, theme):
    """Draw each loss as a share of what it was in the first line, so that large and small ones can
    be compared."""
    axes.set_title(f"Each loss as a share of what it was at step {lines[0]['step']}")
    shares_of_all = [1.0]                                # all of them, for the scale of y
    ends = []                                            # what label_curves needs
    for i, name in enumerate(names):
        first_value = lines[0][name]
        if first_value == 0:                             # nothing is a share of 0
            continue
        steps, values = curve(lines, name)
        shares = [value / first_value for value in values]
        colour = theme[HUES[i % len(HUES)]]
        axes.plot(steps, shares, color=colour)
        shares_of_all += shares
        ends.append((shares[-1], f"{name}: {shares[-1]:.0%}", colour))
    begin_at_zero(axes, shares_of_all)
    write_in_percent(axes.yaxis)
    label_curves(axes, ends)


def draw_progress(axes, lines, theme):
    """Draw the held-out accuracy over the steps."""
    axes.set_xlabel("step")
    axes.set_title("MLM accuracy on held-out text")
    steps, accuracies = curve(lines, "valid_accuracy")
    if steps:
        axes.plot(steps, accuracies, color=theme["orange"], marker="o", markersize=3)
        begin_at_zero(axes, accuracies)
        write_in_percent(axes.yaxis)
        # The last point of the curve may be a mean of neighbours. The words are to be exact.
        last_accuracy = [line["valid_accuracy"] for line in lines if "valid_accuracy" in line][-1]
        label_curves(axes, [(accuracies[-1], f"{last_accuracy:.1%}", theme["orange"])])


def curve(lines, name):
    """Find what a log calls `name` -> its steps and its values, two lists of at most MOST_POINTS
    numbers: in a long log neighbours are replaced by their mean."""
    found = [line for line in lines if name in line]
    lines_per_point = max(1, math.ceil(len(found) / MOST_POINTS))
    steps = []
    values = []
    for begin in range(0, len(found), lines_per_point):
        neighbours = found[begin:begin + lines_per_point]
        total = sum(line[name] for line in neighbours)
        steps.append(neighbours[-1]["step"])
        values.append(total / len(neighbours))
    return steps, values


def label_curves(axes, ends):
    """Write words right of the axes, beside the ends of curves, so that none covers another.

    ends: [(value at the end, words, colour), ...]
    """
    axes.autoscale_view()                                # now the scale of y is what it will be
    axes_height = axes.bbox.height / axes.figure.dpi * PIXELS_PER_INCH
    gap = 18 / axes_height                               # 18 pixels, as a part of the height
    ends = sorted(ends)
    heights = []
    to_part_of_axes = axes.transAxes.inverted()          # (0, 0): lower left; (1, 1): upper right
    for value, _, _ in ends:
        place = axes.transData.transform((0, value))     # x and y on the picture
        _, height = to_part_of_axes.transform(place)
        heights.append(height)
    heights = spread(heights, gap)
    for i, (_, words, colour) in enumerate(ends):
        axes.text(1.015, heights[i], words, color=colour, transform=axes.transAxes,
                  va="center_baseline")


def spread(heights, gap):
    """Move heights apart until each is at least the gap above the one before it -> a list.

    heights: from 0 to 1, in ascending order. Those that are too near to each other become a group
    in which all gaps are equal, and whose middle is the mean of its heights.
    """
    groups = []                                          # lists of neighbouring heights
    for height in heights:
        group = [height]
        # A group that grows may come too near to the one below it, which then joins it.
        while groups:
            distance = lowest_of(group, gap) - highest_of(groups[-1], gap)
            if distance >= gap:
                break
            group = groups.pop() + group
        groups.append(group)
    moved = []
    for group in groups:
        lowest = lowest_of(group, gap)
        moved += [lowest + i * gap for i in range(len(group))]
    return moved


def lowest_of(group, gap):
    """Return where the lowest height of a group is moved to, so that all stay within 0 and 1."""
    length = (len(group) - 1) * gap
    middle = sum(group) / len(group)
    lowest = min(middle - length / 2, 1 - length)
    return max(0.0, lowest)


def highest_of(group, gap):
    """Return where the highest height of a group is moved to."""
    return lowest_of(group, gap) + (len(group) - 1) * gap


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
    per_row, side = arrange(len(words), len(pairs), margin, gap)
    row_height = 2 * (title + side) + margin
    num_rows = math.ceil(len(pairs) / per_row)
    figure = make_figure(top + num_rows * row_height)
    shades = LinearSegmentedColormap.from_list("shades", [theme["paper"], theme["blue"]])
    largest = 0.0                                        # the largest probability in all maps
    for pair in pairs:
        largest = max(largest, pair.teacher_map.max(), pair.student_map.max())
    for i, pair in enumerate(pairs):
        row, column = divmod(i, per_row)
        x = margin + column * (side + gap)
        y = top + row * row_height + title
        upper = add_axes(figure, x, y, side, side)
        lower = add_axes(figure, x, y + side + title, side, side)
        draw_map(upper, pair.teacher_map, shades, largest)
        draw_map(lower, pair.student_map, shades, largest)
        upper.set_title(f"teacher's layer {pair.layer}", color=theme["blue"])
        lower.set_title(f"student's recursion {pair.recursion}", color=theme["orange"])
        lower.set_xticks(range(len(words)), words, rotation=90)
        if column == 0:
            upper.set_yticks(range(len(words)), words)
            lower.set_yticks(range(len(words)), words)
    figure.text(20 / WIDTH, upper_edge(figure, 16), caption, va="center")
    draw_scale(figure, shades, largest)
    return figure


def arrange(num_words, num_pairs, margin, gap):
    """Choose how many pairs stand in a row, at most 4, and the side of a map in pixels."""
    smallest_side = 11.5 * num_words                     # with less, the words would overlap
    width = WIDTH - margin
    most_per_row = min(4, int(width // (smallest_side + gap)))
    num_rows = math.ceil(num_pairs / most_per_row)
    per_row = math.ceil(num_pairs / num_rows)            # so that all rows are about as long
    side = min(240, width / per_row - gap)
    return per_row, max(smallest_side, side)


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

def draw_depth(accuracies, theme):
    """Draw the held-out accuracy after each recursion, or after each layer of the teacher.

    accuracies: {name of a model: [accuracy after 0, 1, 2, ... recursions]}
    """
    figure = make_figure(390)
    axes = add_axes(figure, 56, 62, 754, 270)
    for name, values in accuracies.items():
        hue, marker = LOOKS[name]
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

def draw_parameters(points, theme):
    """Draw parameters against held-out accuracy: points [(name, millions, accuracy), ...]."""
    figure = make_figure(390)
    axes = add_axes(figure, 56, 34, 754, 298)
    num_others = 0
    for name, millions, accuracy in points:
        if name in LOOKS:
            hue, marker = LOOKS[name]
        else:
            hue, marker = OTHER_LOOKS[num_others % len(OTHER_LOOKS)]
            num_others += 1
        axes.plot(millions, accuracy, marker, color=theme[hue], markersize=9)
    most = max(millions for _, millions, _ in points)
    axes.set_xlim(0, 1.25 * most)                        # there is room for words on the right
    axes.margins(y=0.25)
    axes.set_title("MLM accuracy on held-out text")
    axes.set_xlabel("parameters, in millions")
    axes.xaxis.set_major_formatter("{x:g}")
    write_in_percent(axes.yaxis)
    axes.autoscale_view()                                # now the scale of y is what it will be
    label_points(axes, points)
    return figure


# Where the words of a point may stand: (how far to the right of it, how far above it, how they are
# aligned). The distances are in points of type. "left" means that the words begin there, "right"
# that they end there. The first place that is free is taken.
PLACES = [(9, 0, "left"), (-9, 0, "right"), (0, 20, "center"), (0, -20, "center"),
          (9, 18, "left"), (-9, 18, "right"), (9, -18, "left"), (-9, -18, "right"),
          (9, 34, "left"), (-9, 34, "right"), (9, -34, "left"), (-9, -34, "right")]


def label_points(axes, points):
    """Write each point's name and numbers beside it, where they cover nothing else."""
    occupied = []                                        # rectangles, in pixels
    for _, millions, accuracy in points:
        x, y = axes.transData.transform((millions, accuracy))
        occupied.append(Bbox.from_bounds(x - 5, y - 5, 10, 10))
    for name, millions, accuracy in points:
        words = f"{name}\n{millions:.3g} M, {accuracy:.1%}"
        label = axes.annotate(words, (millions, accuracy), textcoords="offset points",
                              xytext=(0, 0), va="center", linespacing=1.3)
        for right, up, side in PLACES:
            label.xyann = (right, up)
            label.set_ha(side)
            area = label.get_window_extent()
            if is_free(area, axes, occupied):
                break
        # If no place is free, the words stay at the last one.
        occupied.append(area)


def is_free(area, axes, occupied):
    """Tell whether an area, a rectangle in pixels, lies between the left and the right edge of the
    axes and below the upper one, and whether it keeps away from the occupied areas."""
    if not axes.bbox.containsx(area.x0) or not axes.bbox.containsx(area.x1):
        return False
    if not axes.bbox.containsy(area.y1):
        return False
    padded = area.padded(4)
    return not any(padded.overlaps(other) for other in occupied)


# ---- A study ----------------------------------------------------------------------------

STUDY_HUES = ["orange", "green", "purple", "gold", "text", "muted"]
MOST_STUDENTS = len(STUDY_HUES)     # more curves could not be told apart
# What a row of the study is called in the picture; the others keep their name.
PLAIN_WORDS = {"ours": "one layer, corrections", "adapters": "one layer, adapters",
               "no-adapters": "one layer, nothing of its own", "authors": "the authors' recipe",
               "unshared": "a layer for each recursion", "noise": "from noise"}


class StudyCurve(NamedTuple):
    """The held-out accuracy of a model of a study during its training."""
    words: str                      # what the picture calls the model, with its parameters
    tokens: list                    # how many millions it had seen; the first is 0, at the start
    accuracies: list                # what it had after so many tokens


def draw_study(students, teacher, theme):
    """Draw the held-out accuracy of students over the tokens that each has seen.

    students: StudyCurves, at most MOST_STUDENTS; teacher: the StudyCurve whose end is drawn as a
    dashed line, or None
    """
    figure = make_figure(430)
    axes = add_axes(figure, 56, 34, 500, 338)
    largest_values = []
    ends = []                                            # what label_curves needs
    for student, hue in zip(students, STUDY_HUES):
        axes.plot(student.tokens, student.accuracies, color=theme[hue], marker="o", markersize=3,
                  clip_on=False)
        largest_values.append(max(student.accuracies))
        ends.append((student.accuracies[-1], student.words, theme[hue]))
    if teacher is not None:
        accuracy = teacher.accuracies[-1]
        axes.axhline(accuracy, color=theme["blue"], linestyle="--")
        largest_values.append(accuracy)
        ends.append((accuracy, teacher.words, theme["blue"]))
    most_tokens = max(student.tokens[-1] for student in students)
    axes.set_xlim(0, most_tokens)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("tokens that a student has seen, in millions")
    begin_at_zero(axes, largest_values)
    write_in_percent(axes.yaxis)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.set_title("MLM accuracy on held-out text (M: millions of parameters)")
    label_curves(axes, ends)
    return figure


# {fine-tuned model of a study: (what the picture calls it, hue, marker)}. "student" is the row
# "long", as in the README. "ours" has the same shape, but has seen a ninth of its tokens.
TASK_LOOKS = {"ours": ("fewer tokens, labels alone", "muted", "x"),
              "long": ("student, labels alone", "orange", "x"),
              "authors-taught": ("authors' recipe, taught", "gold", "v"),
              "adapters-taught": ("adapters, taught", "purple", "D"),
              "taught": ("fewer tokens, taught", "green", "^"),
              "long-taught": ("student, taught", "orange", "s"),
              "long-adapters-alone-taught": ("its corrections alone, taught", "green", "d"),
              "unshared-taught": ("nothing shared, taught", "text", "P"),
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

class LeftOut(Exception):
    """Says why a picture cannot be drawn of this run."""


class Material(NamedTuple):
    """What is loaded once for all pictures."""
    path: str                       # the folder of the run
    settings: dict                  # of the run, from its run.json
    tokenizer: Tokenizer
    student: MiniALBERT
    teacher: MiniALBERT | None
    plain: MiniALBERT | None
    compared: dict                  # {name: model}, those of --compare


def load_material(args):
    """Load the run, its teacher and the models beside it -> Material.

    ValueError if a folder holds something else, or a model does not fit to the others.
    """
    run = read_run(args.run)
    if run.get("script") != "distill.py":
        raise ValueError(f"{args.run} is not the folder of a run of distill.py")
    settings = run["settings"]
    tokenizer = Tokenizer(args.run)
    student = load(args.run)
    teacher = load_teacher(args.teacher, args.run, settings.get("teacher"))
    plain = None
    if args.plain is not None:
        plain = load_beside("--plain", args.plain, tokenizer)
    compared = {}
    for pair in args.compare:
        name, equals, path = pair.partition("=")
        if not name or not equals or not path:
            raise ValueError(f"--compare {pair}: it must be NAME=DIR")
        if name in ("teacher", "student", "without elastic loss"):
            raise ValueError(f"--compare {pair}: the name {name} is that of a model of the run")
        compared[name] = load_beside("--compare", path, tokenizer)
    return Material(args.run, settings, tokenizer, student, teacher, plain, compared)


def load_teacher(path, run, wanted):
    """Load the teacher of a run, or return None if there is none or nobody says where it is.

    path: the flag --teacher, or None: then it may be the bundled teacher
    wanted: its fingerprint in the run's settings; None: the run had no teacher
    """
    if path is None:
        if wanted is None:
            return None
        teacher = load(BUNDLED_TEACHER)
        if fingerprint(teacher) == wanted:
            return teacher
        print(f"The teacher of {run} is not the bundled one: --teacher says where it is.")
        return None
    teacher = load(fetch(path))
    if wanted is not None and fingerprint(teacher) != wanted:
        raise ValueError(f"--teacher {path}: {run} had another teacher")
    return teacher


def load_beside(flag, path, tokenizer):
    """Load a model that is shown beside the run. ValueError if its tokenizer is another one, for
    then their accuracies cannot be compared."""
    model = load(path)
    if Tokenizer(path).digest != tokenizer.digest:
        raise ValueError(f"{flag} {path}: its tokenizer is not that of {tokenizer.path}")
    return model


def prepare_losses(material):
    """Read the log of the run -> a function that draws the losses in a theme."""
    path = os.path.join(material.path, "log.jsonl")
    if not os.path.isfile(path):
        raise LeftOut(f"there is no {path}")
    lines = read_log(path)
    if len(lines) < 2:
        raise LeftOut(f"{path} has fewer than two lines")
    names = [name for name in material.settings["weights"] if name in lines[0]]
    return partial(draw_losses, lines, names)


def read_log(path):
    """Read a log.jsonl -> a list of dicts {name: number}, one for each line."""
    with expecting(path, "the log of a run"):
        return [parse_json_object(text) for text in read_text(path).splitlines()]


@torch.no_grad()
def prepare_attention(material, sentence, head):
    """Compute the attention maps of a sentence -> a function that draws them in a theme.

    head: counted from 1; None: the head whose maps in the teacher are sharpest
    """
    student = material.student
    teacher = material.teacher
    if teacher is None:
        raise LeftOut("there is no teacher")
    ids = material.tokenizer(sentence)
    check_sentence(ids, material)
    try:
        matches = match_layers(student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    except ValueError as error:
        raise LeftOut(str(error)) from error
    ids_tensor = torch.tensor([ids])                     # (1, T)
    _, student_maps = student(ids_tensor, maps=[r for r, _ in matches])
    _, teacher_maps = teacher(ids_tensor, maps=[layer for _, layer in matches])
    num_heads = min(student.config.num_attention_heads, teacher.config.num_attention_heads)
    if head is None:
        head = 1 + sharpest_head(teacher_maps, num_heads)
    if head > num_heads:
        raise LeftOut(f"there is no head {head}: the models have {num_heads}")
    pairs = []
    for r, layer in matches:
        teacher_map = teacher_maps[layer][0, head - 1].exp().numpy()          # (T, T)
        student_map = student_maps[r][0, head - 1].exp().numpy()
        pairs.append(Pair(layer + 1, teacher_map, r + 1, student_map))
    words = [shorten(material.tokenizer.backend.id_to_token(token)) for token in ids]
    caption = f"Head {head} of {num_heads}. Each row shows where its word looks."
    return partial(draw_attention, words, pairs, caption)


def check_sentence(ids, material):
    """Raise LeftOut if the token numbers of a sentence are too many, or most are unknown."""
    most = MOST_TOKENS
    for model in (material.student, material.teacher):
        most = min(most, model.config.max_position_embeddings)
    if len(ids) > most:
        raise LeftOut(f"the sentence has {len(ids)} tokens, more than {most}: give a shorter "
                      "--sentence")
    if ids.count(material.tokenizer.unk_id) > len(ids) / 2:
        raise LeftOut("the tokenizer does not know the words of the sentence: give another "
                      "--sentence")


def sharpest_head(maps, num_heads):
    """Return the number of the head, from 0, in which a word's most attended word gets most.

    maps: {layer: log-probabilities (1, H, T, T)}
    """
    sharpness = torch.zeros(num_heads)
    for log_map in maps.values():
        largest = log_map[0, :num_heads].exp().amax(-1)  # (H, T)
        sharpness += largest.mean(-1)
    return sharpness.argmax().item()


def shorten(word):
    """Cut a word that is too long to stand beside a map."""
    if len(word) > MOST_LETTERS:
        word = word[:MOST_LETTERS - 1] + "…"
    return word


def prepare_depth(accuracies):
    """Return a function that draws the accuracies {name: list} at each depth in a theme."""
    if "student" not in accuracies:
        raise LeftOut("the student has no MLM head")
    return partial(draw_depth, accuracies)


def prepare_parameters(material, accuracies, batches):
    """Measure the models of --compare -> a function that draws all points in a theme."""
    if "student" not in accuracies:
        raise LeftOut("the student has no MLM head")
    points = []
    for name, model in (("teacher", material.teacher), ("student", material.student)):
        if name in accuracies:
            points.append((name, count_millions(model), accuracies[name][-1]))
    for name, model in material.compared.items():
        if model.head is None:
            raise LeftOut(f"{name} has no MLM head")
        accuracy = evaluate(model, batches)["accuracy"]
        points.append((name, count_millions(model), accuracy))
    if len(points) < 2:
        raise LeftOut("there are no two models to compare: --compare NAME=DIR adds one")
    return partial(draw_parameters, points)


def count_millions(model):
    """Return how many millions of parameters a model stores."""
    return count_parameters(model)["stored"] / 1e6


def open_batches(args, material):
    """Make the batches of the held-out text; the models move to a GPU if there is one."""
    length = material.settings["length"]
    models = {"student": material.student, **material.compared}
    if material.teacher is not None:
        models["teacher"] = material.teacher
    if material.plain is not None:
        models["without elastic loss"] = material.plain
    check_sizes(models, material.tokenizer, length)
    device = choose_device("auto")
    for model in models.values():
        model.to(device)
    corpus = open_corpus(args.corpus, material.tokenizer, args.cache, args.text)
    return make_valid_batches(corpus, material.tokenizer, length)


def measure_depth(material, batches):
    """Measure the models that have a head -> {name: [accuracy after 0, 1, ... recursions]}."""
    models = {"teacher": material.teacher, "student": material.student,
              "without elastic loss": material.plain}
    accuracies = {}
    for name, model in models.items():
        if model is not None and model.head is not None:
            scores = evaluate(model, batches, each_recursion=True)
            accuracies[name] = scores["accuracy_after"]
    return accuracies


def read_study(rows):
    """Take the curves from the rows of a study -> (students, teacher) for draw_study.

    At most MOST_STUDENTS are taken: first those with plain words, then the others of STUDENTS.
    ValueError if no student is done.
    """
    curves = {}
    for name, result in done_distillations(rows).items():
        curves[name] = study_curve(name, result)
    teacher = None
    if "teacher" in curves:
        teacher = curves.pop("teacher")
    if not curves:
        raise ValueError("--study: no student in its study.json is done")
    names = []
    for name in list(PLAIN_WORDS) + list(STUDENTS) + list(curves):
        if name in curves and name not in names:
            names.append(name)
    if len(names) > MOST_STUDENTS:
        left_out = ", ".join(names[MOST_STUDENTS:])
        print(f"study shows {MOST_STUDENTS} students, without {left_out}")
    students = [curves[name] for name in names[:MOST_STUDENTS]]
    return students, teacher


def read_task_scores(rows):
    """Take the scores from the rows of a study -> (scores, majorities) for draw_tasks. Both are
    empty if no model was fine-tuned."""
    scores, majorities = scores_of_seeds(rows)
    means = {}
    for key, score_of_seed in scores.items():
        means[key] = statistics.mean(score_of_seed.values())
    return means, majorities


def study_curve(name, result):
    """Take the StudyCurve of a model from its result in study.json."""
    words = name
    if name in PLAIN_WORDS:
        words = PLAIN_WORDS[name]
    millions = result["parameters"] / 1e6
    tokens = []
    accuracies = []
    for num_tokens, accuracy, _ in result["curve"]:
        tokens.append(num_tokens / 1e6)
        accuracies.append(accuracy)
    return StudyCurve(f"{words}: {millions:.3g} M", tokens, accuracies)


# ---- The command line -------------------------------------------------------------------

def arguments(argv):
    """Parse the command line."""
    parser = CommandParser("figures.py", __doc__)
    parser.add_argument("run", nargs="?", metavar="RUN",
                        help="the --out folder of a run of distill.py (default: only the "
                        "architecture is drawn)")
    parser.add_argument("--teacher", metavar="DIR",
                        help="the run's teacher, a folder or a Hugging Face name (default: the "
                        "bundled one, if it was that)")
    parser.add_argument("--plain", metavar="DIR",
                        help="a student that was trained with --elastic 0, for the picture depth")
    parser.add_argument("--compare", nargs="+", action="extend", default=[], metavar="NAME=DIR",
                        help="models for the picture parameters, and what they are called")
    parser.add_argument("--study", metavar="DIR",
                        help="the --out folder of bench/study.py, for the pictures study and "
                        "tasks")
    parser.add_argument("--sentence", default=SENTENCE, metavar="TEXT",
                        help=f"the sentence for the picture attention (default: {SENTENCE})")
    parser.add_argument("--head", type=integer_from(1), metavar="N",
                        help="the head for the picture attention (default: the one whose maps in "
                        "the teacher are sharpest)")
    parser.add_argument("--corpus", nargs="+", action="extend", metavar="PATH",
                        help="what distill.py was given: the accuracies are measured on its "
                        "held-out part (default: the documentation on this machine)")
    parser.add_argument("--text", default="text", metavar="COLUMN",
                        help="the field of the text in a .jsonl, the column in a .csv (default: "
                        "text)")
    parser.add_argument("--cache", default=CACHE, metavar="DIR",
                        help="where tokenised corpora are kept (default: ~/.cache/minialbert)")
    parser.add_argument("--out", default=os.path.join(ROOT, "assets"), metavar="DIR",
                        help="the folder for the pictures (default: assets/)")
    args = parser.parse_args(argv)
    if args.run is None:
        needs_run = ["--teacher", "--plain", "--compare", "--sentence", "--head", "--corpus",
                     "--text", "--cache"]
        refuse_flags(given_flags(argv), needs_run, "without RUN it would be ignored")
    return args


def run(args):
    """Draw all pictures that can be drawn."""
    if matplotlib is None:
        raise ValueError("the pictures need matplotlib: pip install -r requirements-dev.txt")
    matplotlib.rcdefaults()         # a reader's own matplotlibrc does not change the pictures
    material = None
    if args.run is not None:
        material = load_material(args)
    if args.study is not None:
        rows = read_json(os.path.join(args.study, "study.json"))["rows"]
        students, teacher = read_study(rows)
        scores, majorities = read_task_scores(rows)
    # Both folders have been read, so a wrong one is an error before any picture is written.
    os.makedirs(args.out, exist_ok=True)
    write_picture("architecture", args.out, draw_architecture)
    if args.study is not None:
        write_picture("study", args.out, partial(draw_study, students, teacher))
        if scores:
            write_picture("tasks", args.out, partial(draw_tasks, scores, majorities))
        else:
            print("tasks is left out: no model of the study was fine-tuned")
    if material is None:
        return
    try_picture("losses", args.out, prepare_losses, material)
    try_picture("attention", args.out, prepare_attention, material, args.sentence, args.head)
    batches = open_batches(args, material)
    accuracies = measure_depth(material, batches)
    try_picture("depth", args.out, prepare_depth, accuracies)
    try_picture("parameters", args.out, prepare_parameters, material, accuracies, batches)


def try_picture(name, out, prepare, *facts):
    """Write a picture, or say why it is left out. prepare(*facts) returns the function that draws
    it, or raises LeftOut."""
    try:
        draw = prepare(*facts)
    except LeftOut as reason:
        print(f"{name} is left out: {reason}")
        return
    write_picture(name, out, draw)


def main(argv=None):
    def action():
        run(arguments(argv))
    return run_command("figures.py", action)


if __name__ == "__main__":
    sys.exit(main())
