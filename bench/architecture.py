"""The picture of the two models and the paper's four losses, with the weights that they have here,
for bench/figures.py.

Each shape has its place by hand, not by a layout program: a number is a place or a size in pixels,
on a canvas as wide as a README on GitHub. The teacher stands on the left, the student on the right,
and the losses between them. Data go from the top to the bottom.
"""
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path

from distill import LOSS_WEIGHTS

WIDTH = 830                         # of a README on GitHub
HEIGHT = 698                        # of this picture
PIXELS_PER_INCH = 96                # as a browser counts

TITLE = 12                          # sizes of letters, in points: a point is 4/3 of a pixel
BODY = 9.5
SMALL = 8.5

# The x of the middle of each column.
TEACHER = 130
LOSSES = 400
STUDENT = 670
# Half the width of a box, by what is in it.
HALF_C = 100                        # data of the width C
HALF_E = 48                         # data of the width E
HALF_CORRECTION = 42
HALF_FRAME = 112                    # a whole layer or recursion
HALF_LOSS = 84

# What the small maps and vectors show: a row of digits for each row of squares. A digit is the
# strength of the colour, in tenths.
TEACHER_MAP = ["9311", "2591", "1834", "7126"]
STUDENT_MAP = ["8412", "3481", "1923", "5227"]
TEACHER_VECTOR = ["92517"]
STUDENT_VECTOR = ["83526"]
# What the models predict for [MASK]: the length of the bar beside each word.
WORDS = ["sat", "lay", "slept"]     # the first is the true one
TEACHER_BARS = [120, 72, 32]
STUDENT_BARS = [96, 80, 48]


# ---- What is drawn ----------------------------------------------------------------------

def draw_architecture(theme):
    """Draw the teacher, the student and the losses -> Figure. theme: {name of a colour: colour}."""
    figure = Figure(figsize=(WIDTH / PIXELS_PER_INCH, HEIGHT / PIXELS_PER_INCH))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(HEIGHT, 0)                             # y counts from the top
    axes.set_axis_off()
    teacher = Column(axes, theme, TEACHER, "blue")
    losses = Column(axes, theme, LOSSES, "purple")
    student = Column(axes, theme, STUDENT, "orange")
    draw_teacher(teacher)
    draw_student(student)
    draw_input(losses)
    draw_losses(losses, teacher, student)
    return figure


def draw_teacher(column):
    """Draw the teacher. Its layers are of different shades, because they have different weights."""
    column.title("BERT teacher", "$L$ different layers, frozen")
    column.box(60, 100, "embeddings", "$V$ tokens, width $C$")
    column.down(100, 145)
    column.box(146, 172, "layer 1", strength=0.1)
    column.dots(184)

    # This layer is drawn in full, because a recursion of the student is matched to it.
    column.box(197, 386, half=HALF_FRAME, strength=0.2)
    column.text(212, "layer $r\\,L/R$", size=SMALL)
    column.box(228, 268, "attention", "add, norm", strength=0.42)
    column.down(268, 333)
    column.box(334, 374, "feed-forward", "add, norm", strength=0.42)
    column.line([(TEACHER, 374), (TEACHER, 404)])

    column.dots(417)
    column.box(430, 456, "layer $L$", strength=0.32)
    column.down(456, 473)
    column.box(474, 500, "MLM head")
    column.down(500, 523)
    column.box(524, 564, "output matrix", "tied to the embeddings")
    column.down(564, 583)
    column.bars(588, TEACHER_BARS)


def draw_student(column):
    """Draw the student. What all recursions share is orange, what each has for itself is green.

    The green corrections stand beside the data flow, because they are added to weights, not to
    data.
    """
    column.title("MiniALBERT student", "ONE layer, applied $R$ times")
    column.box(60, 100, "embeddings", "width $E$", half=HALF_E)
    column.funnel(101, 125, HALF_E, HALF_C, "$E \\to C$")

    # The dashed frame holds one recursion; the thick arrow leads back to its beginning.
    column.box(148, 414, half=HALF_FRAME, strength=0.07, style="--")
    column.text(160, "recursion $r$", size=SMALL, right=-73)
    column.down(125, 227)
    column.box(228, 268, "attention", "add, norm", strength=0.34)
    column.corrections(228)
    column.down(268, 333)
    column.box(334, 374, "feed-forward", "add, norm", strength=0.34)
    column.corrections(334)
    column.down(374, 473)
    loop = [(STUDENT, 430), (806, 430), (806, 137), (STUDENT + 2, 137)]
    column.arrow(loop, "orange", width=2)
    column.text(284, "$R$ times", "orange", right=149, rotation=90)

    column.box(474, 500, "MLM head")
    column.funnel(501, 523, HALF_C, HALF_E, "$C \\to E$")
    column.box(524, 564, "output matrix", "tied", half=HALF_E)
    column.down(564, 583)
    column.bars(588, STUDENT_BARS)


def draw_input(column):
    """Draw the masked sentence, which both models read, and the notes between the models."""
    column.box(66, 94, "the cat [MASK] on the mat", colour="muted", strength=0.08)
    column.arrow([(LOSSES - HALF_C, 80), (TEACHER + HALF_C + 3, 80)])
    column.arrow([(LOSSES + HALF_C, 80), (STUDENT - HALF_E - 3, 80)])
    column.text(142, "Recursion $r$ learns from layer $r\\,L/R$:", "muted")
    column.text(160, "2, 4, 6, 8, 10 and 12 if $L$ = 12 and $R$ = 6.", "muted")
    column.text(480, "All recursions share the orange weights;", "muted")
    column.text(498, "each adds its own green corrections to them.", "muted")


def draw_losses(column, teacher, student):
    """Draw each loss between the two things that it compares, and what these look like."""
    teacher_edge = TEACHER + HALF_C                      # the right edge of the teacher's boxes
    student_edge = STUDENT - HALF_C                      # the left edge of the student's

    column.text(216, "attention maps", "muted")
    draw_loss(column, 248, "attention", "attention loss", "KL(teacher || student)", teacher_edge,
              student_edge)
    teacher.cells(248, TEACHER_MAP, 11, right=148)
    student.cells(248, STUDENT_MAP, 11, right=-148)

    column.text(367, "hidden states", "muted")
    draw_loss(column, 398, "hidden", "hidden loss", "1 − cosine", TEACHER, STUDENT)
    teacher.cells(398, TEACHER_VECTOR, 9, right=148)
    student.cells(398, STUDENT_VECTOR, 9, right=-148)

    column.text(580, "distributions at [MASK]", "muted")
    # The dotted line begins right of the teacher's bars and ends left of the student's words.
    draw_loss(column, 611, "output", "output loss", "KL(teacher || student)", TEACHER + 86,
              STUDENT - 76)

    draw_loss(column, 669, "mlm", "MLM loss", "cross-entropy", 280, STUDENT)
    column.line([(STUDENT, 669), (STUDENT, 642)], "purple", style=":")
    column.box(656, 682, "true word: sat", half=60, right=-180, colour="muted", strength=0.08)


def draw_loss(column, y, name, words, formula, begin_x, end_x):
    """Draw a loss, with its weight in the sum and its formula. A dotted line leads from the x of
    one of the two things that it compares to the x of the other."""
    column.line([(begin_x, y), (end_x, y)], "purple", style=":")
    words_with_weight = f"{LOSS_WEIGHTS[name]:g} × {words}"
    column.box(y - 21, y + 21, words_with_weight, formula, half=HALF_LOSS)


# ---- From here on: how it is drawn ------------------------------------------------------

class Column:
    """One of the columns of the picture: all its shapes are drawn around the same x.

    theme: {name of a colour: colour}, see figures.py
    colour: the name of the column's own colour, which a shape has unless it is given another

    In the methods, `right` is how many pixels to the right of the column's middle a thing stands,
    and `strength` is how strong the colour inside a shape is, from 0 (that of the paper) to 1.
    """

    def __init__(self, axes, theme, x, colour):
        self.axes = axes
        self.theme = theme
        self.x = x
        self.colour = colour

    def fill(self, shape, colour, strength, line_width=1.0):
        """Add a shape with a coloured edge; inside it the colour is mixed with paper."""
        ink = to_rgb(self.theme[colour])
        paper = to_rgb(self.theme["paper"])
        mixed = []                                       # red, green and blue
        for ink_part, paper_part in zip(ink, paper):
            mixed.append(strength * ink_part + (1 - strength) * paper_part)
        shape.set_facecolor(mixed)
        shape.set_edgecolor(self.theme[colour])
        shape.set_linewidth(line_width)
        self.axes.add_patch(shape)

    def text(self, y, words, colour="text", size=BODY, right=0, **font):
        """Write words whose middle is at the height y."""
        settings = {"ha": "center", "va": "center_baseline", "fontsize": size}
        settings.update(font)
        self.axes.text(self.x + right, y, words, color=self.theme[colour], **settings)

    def title(self, words, note):
        """Write the title of the column."""
        self.text(18, words, self.colour, TITLE, weight="bold")
        self.text(38, note, "muted")

    def box(self, top, bottom, words="", note="", half=HALF_C, right=0, colour=None, strength=0.18,
            style="-"):
        """Draw a box, with words and, in smaller letters below them, a note."""
        if colour is None:
            colour = self.colour
        corner = (self.x + right - half, top)
        shape = FancyBboxPatch(corner, 2 * half, bottom - top, "round,pad=0,rounding_size=5")
        shape.set_linestyle(style)
        self.fill(shape, colour, strength)
        middle = (top + bottom) / 2
        if note == "":
            self.text(middle, words, right=right)
        else:
            self.text(middle - 7, words, right=right)
            self.text(middle + 8, note, size=SMALL, right=right)

    def corrections(self, y):
        """Draw the corrections of all recursions as a pack of cards, with that of recursion r on
        top. They stand above the box that they correct, whose upper edge is at the height y. A plus
        on this edge says that they are added.
        """
        right = 55                                       # they do not cover the data flow
        top = y - 58
        bottom = y - 24
        middle = self.x + right
        self.line([(middle, bottom), (middle, y)], "green")
        for shift in (8, 4):
            self.box(top + shift, bottom + shift, half=HALF_CORRECTION, right=right + shift,
                     colour="green")
        self.box(top, bottom, "correction $r$", "rank $K$", half=HALF_CORRECTION, right=right,
                 colour="green")
        self.fill(Circle((middle, y), 7), "green", 1.0)
        self.line([(middle - 4, y), (middle + 4, y)], "paper", width=1.5)
        self.line([(middle, y - 4), (middle, y + 4)], "paper", width=1.5)

    def funnel(self, top, bottom, half_top, half_bottom, words):
        """Draw a projection from one width to another."""
        upper = [(self.x - half_top, top), (self.x + half_top, top)]
        lower = [(self.x + half_bottom, bottom), (self.x - half_bottom, bottom)]
        self.fill(Polygon(upper + lower), self.colour, 0.18)
        self.text((top + bottom) / 2, words, size=SMALL)

    def line(self, points, colour="muted", width=1.2, style="-"):
        """Draw a line through points [(x, y), ...]."""
        shape = PathPatch(Path(points), fill=False, linestyle=style, joinstyle="round")
        shape.set_edgecolor(self.theme[colour])
        shape.set_linewidth(width)
        self.axes.add_patch(shape)

    def arrow(self, points, colour="muted", width=1.2):
        """Draw a line with an arrowhead at its end. Its last part must be horizontal or
        vertical."""
        self.line(points, colour, width)
        x_before, y_before = points[-2]
        x, y = points[-1]
        ahead_x = direction(x_before, x)                 # one of the two is 0, the other -1 or 1
        ahead_y = direction(y_before, y)
        back_x = x - 7 * ahead_x                         # the head is 7 long and 8 wide
        back_y = y - 7 * ahead_y
        side_x = ahead_y                                 # at a right angle to the arrow
        side_y = ahead_x
        one_side = (back_x + 4 * side_x, back_y + 4 * side_y)
        other_side = (back_x - 4 * side_x, back_y - 4 * side_y)
        self.fill(Polygon([(x, y), one_side, other_side]), colour, 1.0, line_width=0.0)

    def down(self, top, bottom):
        """Draw an arrow straight down."""
        self.arrow([(self.x, top), (self.x, bottom)])

    def dots(self, y):
        """Draw three dots, one above the other: here layers are left out."""
        places = [self.x] * 3
        heights = [y - 7, y, y + 7]
        self.axes.plot(places, heights, "o", color=self.theme["muted"], markersize=2.5)

    def cells(self, y, rows, size, right):
        """Draw a small map or vector with its middle at the height y: a square for each digit."""
        width = size * len(rows[0])
        height = size * len(rows)
        left = self.x + right - width / 2
        top = y - height / 2
        self.fill(Rectangle((left, top), width, height), "paper", 1.0)     # hides the dotted line
        for i, row in enumerate(rows):
            for j, digit in enumerate(row):
                corner = (left + size * j + 0.5, top + size * i + 0.5)
                square = Rectangle(corner, size - 1, size - 1)
                self.fill(square, self.colour, int(digit) / 10, line_width=0.0)

    def bars(self, top, lengths):
        """Draw a distribution: a bar for each of WORDS."""
        left = self.x - 40
        for i, word in enumerate(WORDS):
            y = top + 17 * i
            self.text(y + 6, word, size=SMALL, right=-46, ha="right")
            bar = Rectangle((left, y), lengths[i], 12)
            self.fill(bar, self.colour, 1.0, line_width=0.0)


def direction(begin, end):
    """Return in which direction a number has changed: -1, 0 or 1."""
    if end > begin:
        return 1
    if end < begin:
        return -1
    return 0
