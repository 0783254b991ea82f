"""`deformable-detr report`: a run folder on one page."""

from pathlib import Path
from typing import Annotated

import typer

import deformable_detr
from deformable_detr.cli.options import Device


def report(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings that replace the run's, such as data.val.images=DIR where its "
            "validation set has moved.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Write report.html: curves, AP of each class, confusion, the worst mistakes, settings.

    Training does so at its end. Where the detections of the best checkpoint on the validation set
    are not in the folder, as in old runs, the checkpoint is evaluated first.
    """
    page = deformable_detr.report(run_dir, overrides=overrides or (), device=device)
    typer.echo(f"the report is {page}")
