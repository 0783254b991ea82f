"""Draws a run's metrics file as one picture: loss on the left, average precision on the right."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from deformable_detr.engine.metrics import read_records

# Labels and colours (Okabe and Ito's, distinct to colour-blind eyes) by the key of a record.
LOSS_LINES = {
    "total": ("total, weighted", "#000000"),
    "loss_class": ("class", "#0072B2"),
    "loss_l1": ("box L1", "#E69F00"),
    "loss_giou": ("box GIoU", "#009E73"),
}
AP_LINES = {
    "AP": ("AP", "#000000"),
    "AP50": ("AP50", "#0072B2"),
    "AP75": ("AP75", "#E69F00"),
}
MANY_POINTS = 40  # more than these are a line without markers


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draw what a run has recorded so far.

    Args:
        metrics: the run's `metrics.jsonl`.
        picture: where to write the PNG.
    """
    records = read_records(metrics)
    training = [record for record in records if record["kind"] == "train"]
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, ap_axes = figure.subplots(1, 2, sharex=True)
    _draw_losses(loss_axes, training, evaluations)
    _draw_ap(ap_axes, evaluations)
    for axes in (loss_axes, ap_axes):
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.3, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=130)


def _draw_losses(
    axes: Axes, training: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
) -> None:
    for key, (label, colour) in LOSS_LINES.items():
        width = 2.0 if key == "total" else 1.2
        _draw_line(axes, training, key, label=label, color=colour, linewidth=width)
    _draw_line(
        axes,
        evaluations,
        "validation/total",
        label="total, validation",
        color="#CC79A7",
        linestyle="--",
        marker="o",
        markersize=4,
    )
    axes.set_title("Loss of the last decoder layer, and the total of all layers")
    axes.set_ylabel("loss per object")
    if axes.lines:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.legend(frameon=False)


def _draw_ap(axes: Axes, evaluations: Sequence[Mapping[str, Any]]) -> None:
    marker = "o" if len(evaluations) <= MANY_POINTS else ""
    for key, (label, colour) in AP_LINES.items():
        _draw_line(axes, evaluations, key, label=label, color=colour, marker=marker, markersize=4)
    axes.set_title("Average precision on the validation set")
    axes.set_ylabel("AP")
    axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend(frameon=False, loc="upper left")


def _draw_line(axes: Axes, records: Sequence[Mapping[str, Any]], key: str, **style: Any) -> None:
    points = [(record["step"], record[key]) for record in records if key in record]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, **style)
