"""Curves of a run, from its metrics file: average precision, losses, learning rate, gradient."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deformable_detr.engine.metrics import read_records
from deformable_detr.files import WriteError
from deformable_detr.visualize.charts import Chart, Line, line_chart, write_png

# Labels by the key of a record.
LOSS_LINES = {
    "total": "total, weighted",
    "loss_class": "class",
    "loss_l1": "box L1",
    "loss_giou": "box GIoU",
}
AP_LINES = ("AP", "AP50", "AP75")
logger = logging.getLogger(__name__)
Records = Sequence[Mapping[str, Any]]


def draw_curves(metrics: Path, picture: Path) -> None:
    """Draw the losses and average precision that a run has recorded so far.

    A failed write, as on a full disk, is only logged: it must not fail a finished run.

    Args:
        metrics: the run's `metrics.jsonl`.
        picture: path of the PNG.
    """
    records = read_records(metrics)
    try:
        write_png(picture, [loss_chart(records), ap_chart(records)])
    except WriteError as error:
        logger.warning("%s", error)


def training_charts(records: Records) -> list[Chart]:
    """Return the charts of everything that is recorded per step."""
    rate = _line("learning rate", records, "train", "lr")
    norm = _line("gradient norm", records, "train", "grad_norm")
    charts = (
        ap_chart(records),
        loss_chart(records),
        line_chart(
            "Learning rate",
            [rate],
            x_label="step",
            y_label="",  # the title names it, and its tick labels are wide
            y_range=(0, None),
        ),
        line_chart(
            "Norm of the gradient before clipping",
            [norm],
            x_label="step",
            y_label="2-norm",
            log_y=True,
        ),
    )
    return [chart for chart in charts if not chart.is_empty]


def loss_chart(records: Records) -> Chart:
    """Return the chart of training losses, and of the validation loss if it is recorded."""
    lines = [_line(label, records, "train", key) for key, label in LOSS_LINES.items()]
    return line_chart(
        "Loss of the last decoder layer, and the total of all layers",
        [*lines, _line("total, validation", records, "evaluation", "validation/total")],
        x_label="step",
        y_label="loss per object",
        log_y=True,
    )


def ap_chart(records: Records) -> Chart:
    """Return the chart of average precision on the validation set."""
    return line_chart(
        "Average precision on the validation set",
        [_line(key, records, "evaluation", key) for key in AP_LINES],
        x_label="step",
        y_label="AP",
        y_range=(0, None),
    )


def _line(label: str, records: Records, kind: str, key: str) -> Line:
    own = [record for record in records if record["kind"] == kind and key in record]
    return Line(label, [(record["step"], record[key]) for record in own])
