"""Output shared by several commands."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from deformable_detr.cli.launcher import is_main
from deformable_detr.cli.terminal import cell
from deformable_detr.messages import counted

if TYPE_CHECKING:
    from deformable_detr.workflows.evaluation import EvaluationResult


def print_metrics(result: "EvaluationResult") -> None:
    """Print tables of the metrics and of AP per class; rank 0 only."""
    if not is_main():
        return
    console = Console()
    detections = counted(result.num_detections, "detection")
    table = Table(title=f"{detections} in {counted(result.num_images, 'image')}")
    for heading in ("", "value"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("meaning")
    for name, value, meaning in result.rows():
        table.add_row(name, _number(value), meaning)
    console.print(table)

    name = next(iter(result.metrics))  # AP, or AP@300
    classes = Table(title=f"{name} per class")
    classes.add_column("class")
    classes.add_column(name, justify="right", no_wrap=True)
    for name, value in result.per_class.items():
        classes.add_row(cell(name), _number(value))
    console.print(classes)


@contextmanager
def printed_if_unwritten() -> Iterator[None]:
    """Print the metrics of an evaluation whose files could not be written; the error goes on."""
    from deformable_detr.workflows.evaluation import UnwrittenError

    try:
        yield
    except UnwrittenError as error:
        print_metrics(error.result)
        raise


def _number(value: float) -> str:
    """Format a metric with three digits; a dash for -1, which means no such annotated object."""
    return "-" if value < 0 else f"{value:.3f}"
