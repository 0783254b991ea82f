"""Line and bar charts by matplotlib: as a PNG, or as SVG that is styled by the page.

Classes of the page's style sheet style the parts of the SVG: `s0`, `s1`, ... for the series,
with `line` or `part`, and `axis`.
"""

import io
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from deformable_detr.files import write_whole

# Okabe and Ito's colorblind-safe palette; colors that are faint on white are darkened.
COLORS = ("#1c2024", "#0072b2", "#c45400", "#00805e", "#a64d83", "#8a6d00")
MAX_MARKERS = 30  # over the width of a chart; a line of denser points has none
MAX_POINTS = 300  # a longer line is averaged
SMALLEST_PLAIN = 1e-3  # a smaller number on an axis has an exponent
SVG_INCHES = (6.4, 3.6)
SVG_FONT_SIZE = 12  # as in the page's style sheet
PNG_INCHES, PNG_DPI = (5.5, 4.2), 130
MARKER_SIZE = 4.5
STEPS = (1, 2, 2.5, 5, 10)  # between ticks, times a power of ten
LOG_STEPS = (1, 2, 5)  # on a logarithmic axis
BAR_WIDTH = 0.72  # relative to the distance between bars

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Series with a name and points (x, y)."""

    label: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Stack:
    """Stacked bar: its label, and its parts from the bottom up."""

    label: str
    parts: tuple[float, ...]


@dataclass(frozen=True)
class Chart:
    """Line chart, or chart of stacked bars.

    Attributes:
        title: title above the chart.
        x_label: label of the horizontal axis.
        y_label: label of the vertical axis.
        labels: names of the series, in the order of their colors.
        lines: one line per series.
        stacks: bars with one part per series.
        y_range: limits of the vertical axis; None for those of the data.
        log_y: whether the vertical axis is logarithmic.
        note: text below the chart.
    """

    title: str
    x_label: str
    y_label: str
    labels: tuple[str, ...]
    lines: tuple[Line, ...] = ()
    stacks: tuple[Stack, ...] = ()
    y_range: tuple[float, float | None] | None = None
    log_y: bool = False
    note: str = ""

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to draw."""
        return not self.lines and not any(sum(stack.parts) for stack in self.stacks)

    @property
    def summary(self) -> str:
        """Text description of the chart, for screen readers."""
        ends = ((line.label, line.points[0][1], line.points[-1][1]) for line in self.lines)
        lines = [f"{label} from {first:.3g} to {last:.3g}" for label, first, last in ends]
        return "; ".join(lines or self.bar_texts())

    def bar_texts(self) -> Iterator[str]:
        """Yield a description of each part of the bars, in drawing order."""
        for index, label in enumerate(self.labels):
            for stack in self.stacks:
                yield f"{stack.label}: {stack.parts[index]:g} {label}"


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float | None] | None = None,
    log_y: bool = False,
    note: str = "",
) -> Chart:
    """Build a chart of all lines that have points; see `Chart`.

    Points that are not finite are skipped and counted in the note; a logarithmic chart skips
    points that are not positive. Long lines are averaged.
    """
    gaps = sum(not math.isfinite(y) for line in lines for _, y in line.points)
    if gaps:
        note = f"{note} {gaps} values that are not finite are left out.".strip()
        lines = [
            replace(line, points=[p for p in line.points if math.isfinite(p[1])]) for line in lines
        ]
    lines = [Line(line.label, [p for p in line.points if p[1] > 0 or not log_y]) for line in lines]
    lines = [line for line in lines if line.points]
    largest = max((len(line.points) for line in lines), default=0)
    if largest > MAX_POINTS:
        size = math.ceil(largest / MAX_POINTS)
        lines = [replace(line, points=_averaged(line.points, size)) for line in lines]
        note = f"{note} Each point is the mean of {size} records.".strip()
    return Chart(
        title,
        x_label,
        y_label,
        labels=tuple(line.label for line in lines),
        lines=tuple(lines),
        y_range=y_range,
        log_y=log_y,
        note=note,
    )


def write_png(path: Path, charts: Sequence[Chart]) -> None:
    """Write charts with titles and legends as a PNG, side by side with a common horizontal axis."""
    width, height = PNG_INCHES
    figure = Figure(figsize=(width * len(charts), height), layout="constrained")
    FigureCanvasAgg(figure)
    every_axes = figure.subplots(1, len(charts), sharex=True, squeeze=False)[0]
    for axes, chart in zip(every_axes, charts, strict=True):
        _draw(axes, chart)
        axes.set_title(chart.title)
        if not chart.is_empty:
            axes.legend(chart.labels, frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=PNG_DPI)
    with write_whole(path) as temporary:
        temporary.write_bytes(data.getvalue())


def to_svg(chart: Chart) -> str:
    """Return the chart without title and legend, as an SVG element of an HTML page.

    It has no ids except those of its markers, no styles of its own, and is deterministic.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # Ids of markers must be unique within the page.
    options = {"svg.fonttype": "none", "svg.hashsalt": chart.title, "font.size": SVG_FONT_SIZE}
    with matplotlib.rc_context(options):
        figure = Figure(figsize=SVG_INCHES, layout="constrained")
        _draw(figure.subplots(), chart)
        figure.savefig(file, format="svg", metadata=nothing, transparent=True)
    return _for_page(file.getvalue(), chart)


def _draw(axes: Axes, chart: Chart) -> None:
    for index, line in enumerate(chart.lines):
        axes.plot(
            *zip(*line.points, strict=True),
            color=COLORS[index],
            marker="o" if _has_markers(line, chart) else "",
            markersize=MARKER_SIZE,
            gid=f"line s{index}",
        )
    names, bottoms = [stack.label for stack in chart.stacks], [0.0] * len(chart.stacks)
    for index in range(len(chart.labels) if names else 0):
        parts = [stack.parts[index] for stack in chart.stacks]
        bars = axes.bar(range(len(names)), parts, BAR_WIDTH, bottoms, color=COLORS[index + 1])
        for bar in bars:
            bar.set_gid(f"part s{index + 1}")
        bottoms = [low + part for low, part in zip(bottoms, parts, strict=True)]
    if names:
        axes.set_xticks(range(len(names)), names)  # Matplotlib takes numbers in texts for numbers
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    _scale(axes, chart)
    axes.grid(axis="y", alpha=0.3, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_gid("axis")


def _scale(axes: Axes, chart: Chart) -> None:
    if chart.lines:
        axes.margins(x=0.02)
        whole = all(float(x).is_integer() for line in chart.lines for x, _ in line.points)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _text(value)))
        axes.xaxis.set_major_locator(
            MaxNLocator(nbins=7, steps=STEPS, integer=whole, min_n_ticks=1)
        )
    if chart.log_y and chart.lines:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=LOG_STEPS))
        values = [y for line in chart.lines for _, y in line.points]
        low, high = _log_tick(min(values), above=False), _log_tick(max(values), above=True)
        # Else Matplotlib labels a narrow range with long numbers, which cover the axis title.
        if sys.float_info.min < low and high <= min(10 * low, sys.float_info.max):
            axes.set_ylim(low, high)
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=STEPS, integer=bool(chart.stacks)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _text(value)))
    if chart.y_range is not None:
        axes.set_ylim(*chart.y_range)


def _log_tick(value: float, *, above: bool) -> float:
    """Return the tick of a logarithmic axis next to a positive value, on one side of it."""
    decade = 10.0 ** math.floor(math.log10(value))
    ticks = [step * decade for step in (*LOG_STEPS, 10)]
    beside = [tick for tick in ticks if (tick > value if above else tick < value)]
    if not beside:  # the value is a power of ten
        return 20 * decade if above else decade / 2
    return beside[0] if above else beside[-1]


def _has_markers(line: Line, chart: Chart) -> bool:
    """Return whether the points stand far enough apart for a marker each."""
    width = _extent([x for line in chart.lines for x, _ in line.points])
    share = _extent([x for x, _ in line.points]) / width if width else 1.0
    return len(line.points) <= max(1, MAX_MARKERS * share)


def _extent(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _averaged(points: Sequence[Point], size: int) -> list[Point]:
    """Average groups of `size` points; short lines are unchanged."""
    if len(points) <= MAX_POINTS:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _text(value: float) -> str:
    """Format shortly, such as 0.002 and 2e-4."""
    if value == 0 or abs(value) >= SMALLEST_PLAIN:
        return f"{value:g}"
    digits, _, exponent = f"{value:.3e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def _for_page(svg: str, chart: Chart) -> str:
    """Return Matplotlib's SVG with classes instead of styles, and a text per marker and bar."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}clipPath", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = dict(_attributes(element))
    texts = chart.bar_texts() if chart.stacks else _point_texts(chart)
    drawn = [one for one in root.iter() if one.tag == "use" or "part" in one.get("class", "")]
    for element, text in zip(drawn, texts, strict=True):
        ElementTree.SubElement(element, "title").text = text
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": f"{chart.title}: {chart.summary}",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _attributes(element: ElementTree.Element) -> Iterator[tuple[str, str]]:
    for name, value in element.attrib.items():
        match name.rpartition("}")[2]:
            case "id" if element.tag == "path":  # of a marker
                yield name, value
            case "id" if value.startswith(("line s", "part s", "axis")):
                yield "class", value
            case "id" if re.match("[xy]tick_", value):
                yield "class", "axis"
            case "style" if anchor := re.search(r"text-anchor: (\w+)", value):
                yield "text-anchor", anchor[1]
            case "viewBox" | "d" | "href" | "x" | "y" | "transform" as kept:
                yield kept, value


def _point_texts(chart: Chart) -> Iterator[str]:
    for line in chart.lines:
        for x, y in line.points if _has_markers(line, chart) else ():
            yield f"{line.label} at {x:g}: {y:.4g}"
