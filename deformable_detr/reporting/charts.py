"""Lines and bars as coordinates, for the page to draw; ticks are matplotlib's choice."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import LogLocator, MaxNLocator

MAX_DOTS = 60  # a chart with a line of more points has none
MAX_POINTS = 300  # a line of more is averaged
SMALLEST_PLAIN = 1e-3  # a smaller number on an axis has an exponent
BAR_SHARE = 0.72  # of the room for a bar and the gap to the next

Point = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """The drawing, in its own units, of which a page shows about one a pixel; axes inside."""

    width: int = 460
    height: int = 270
    left: int = 52
    right: int = 448
    top: int = 12
    bottom: int = 226


FRAME = Frame()


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where in the drawing, and what it says."""

    place: float
    text: str


@dataclass(frozen=True)
class Dot:
    """A point in the drawing, and what it stands for."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class DrawnLine:
    """A line: its name, its corners as SVG wants them, and dots where they are few."""

    label: str
    corners: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Bar:
    """One part of a bar in the drawing."""

    x: float
    y: float
    width: float
    height: float
    series: int
    text: str


@dataclass(frozen=True)
class Chart:
    """What the page draws.

    Attributes:
        title: above it.
        x_label: below the horizontal axis.
        y_label: of the vertical axis.
        summary: for people who hear the page.
        labels: names of the series, in the order of their colours.
        x_ticks: from left to right.
        y_ticks: from bottom to top.
        lines: over each other.
        bars: beside and on each other.
        note: below it.
    """

    title: str
    x_label: str
    y_label: str
    summary: str
    labels: tuple[str, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[DrawnLine, ...] = ()
    bars: tuple[Bar, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A series to be drawn: its name and its points (x, y)."""

    label: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Stack:
    """A bar to be drawn: what stands below it, and its parts from the bottom up."""

    label: str
    parts: tuple[float, ...]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    y_range: Point | None = None,
    log_y: bool = False,
    note: str = "",
) -> Chart | None:
    """Lay out lines; None where no line has a point.

    Args:
        title: above the chart.
        lines: those without points are left out; of a logarithmic chart, points that are not
            positive, too.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        y_range: the ends of the vertical axis; None for those of the data.
        log_y: whether the vertical axis is logarithmic.
        note: below the chart.
    """
    lines = [Line(line.label, [p for p in line.points if p[1] > 0 or not log_y]) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    largest = max(len(line.points) for line in lines)
    with_dots = largest <= MAX_DOTS
    if largest > MAX_POINTS:
        size = math.ceil(largest / MAX_POINTS)
        lines = [Line(line.label, _averaged(line.points, size)) for line in lines]
        note = f"{note} Each point is the mean of {size} records.".strip()
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x_ticks = _ticks(min(xs), max(xs), count=6, whole=all(float(x).is_integer() for x in xs))
    low, high = y_range or (min(ys), max(ys))
    y_ticks = _log_ticks(low, high) if log_y else _ticks(low, high, count=5, beyond=True)
    x_scale = _Scale(*_ends(xs, x_ticks), FRAME.left, FRAME.right)
    y_scale = _Scale(*_ends([low, high], y_ticks), FRAME.bottom, FRAME.top, is_log=log_y)
    return Chart(
        title,
        x_label,
        y_label,
        "; ".join(
            f"{line.label} from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}"
            for line in lines
        ),
        tuple(line.label for line in lines),
        tuple(Tick(x_scale(value), _text(value)) for value in x_ticks),
        tuple(Tick(y_scale(value), _text(value)) for value in y_ticks),
        lines=tuple(_draw(line, x_scale, y_scale, with_dots=with_dots) for line in lines),
        note=note,
    )


def bar_chart(
    title: str, stacks: Sequence[Stack], labels: Sequence[str], *, x_label: str, y_label: str
) -> Chart | None:
    """Lay out stacked bars, one part for each of `labels`; None where all are empty."""
    highest = max((sum(stack.parts) for stack in stacks), default=0)
    if highest <= 0:
        return None
    y_ticks = _ticks(0, highest, count=5, beyond=True, whole=True)
    y_scale = _Scale(0, y_ticks[-1], FRAME.bottom, FRAME.top)
    room = (FRAME.right - FRAME.left) / len(stacks)
    bars = []
    for number, stack in enumerate(stacks):
        bottom = 0.0
        for series, part in enumerate(stack.parts):
            top = bottom + part
            x = round(FRAME.left + room * (number + (1 - BAR_SHARE) / 2), 1)
            text = f"{stack.label}: {part:g} {labels[series]}"
            y, height = y_scale(top), round(y_scale(bottom) - y_scale(top), 1)
            bars.append(Bar(x, y, round(room * BAR_SHARE, 1), height, series, text))
            bottom = top
    return Chart(
        title,
        x_label,
        y_label,
        "; ".join(bar.text for bar in bars),
        tuple(labels),
        tuple(
            Tick(FRAME.left + room * (number + 0.5), stack.label)
            for number, stack in enumerate(stacks)
        ),
        tuple(Tick(y_scale(value), _text(value)) for value in y_ticks),
        bars=tuple(bars),
    )


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (
            (math.log(self.low), math.log(self.high), math.log(value))
            if self.is_log
            else (self.low, self.high, value)
        )
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def _draw(line: Line, x_scale: _Scale, y_scale: _Scale, *, with_dots: bool) -> DrawnLine:
    places = [(x_scale(x), y_scale(y)) for x, y in line.points]
    dots = tuple(
        Dot(*place, f"{line.label} at {x:g}: {y:.4g}")
        for place, (x, y) in zip(places, line.points, strict=True)
    )
    corners = " ".join(f"{x:g},{y:g}" for x, y in places)
    return DrawnLine(line.label, corners, dots if with_dots else ())


def _averaged(points: Sequence[Point], size: int) -> list[Point]:
    """Means of `size` points each; a line that is short enough stays."""
    if len(points) <= MAX_POINTS:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _ticks(
    low: float, high: float, *, count: int, beyond: bool = False, whole: bool = False
) -> list[float]:
    """Round values within the ends, one at least; or, `beyond` the ends, around them."""
    if low == high:
        return [low]
    locator = MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10], integer=whole)
    values = [float(value) for value in locator.tick_values(low, high)]
    slack = 1e-9 * (high - low)
    if not beyond:
        values = [value for value in values if low - slack <= value <= high + slack]
    return [round(value, 12) + 0.0 for value in values] or [low]  # no -0


def _text(value: float) -> str:
    """Short: 0.002 and 2e-4."""
    if value == 0 or abs(value) >= SMALLEST_PLAIN:
        return f"{value:g}"
    digits, _, exponent = f"{value:.3e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def _log_ticks(low: float, high: float) -> list[float]:
    for digits in ((1,), (1, 2, 5), tuple(range(1, 10))):
        values = LogLocator(subs=digits).tick_values(low, high)
        inside = [float(f"{value:.6g}") for value in values if low <= value <= high]
        if len(inside) >= 3:
            break
    return inside or [low]


def _ends(values: Sequence[float], ticks: Sequence[float]) -> Point:
    return min(*values, ticks[0]), max(*values, ticks[-1])
