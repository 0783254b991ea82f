"""`deformable-detr report`: write the HTML report of a run folder."""

from pathlib import Path
from typing import Annotated

import typer

import deformable_detr
from deformable_detr.cli.options import Device
from deformable_detr.cli.terminal import echo
from deformable_detr.messages import shown


def report(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="Run folder.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Override settings of the run, such as data.val.images=DIR if its validation set "
            "has moved.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Write report.html of a run folder: curves, AP, worst errors.

    Training writes the report at its end. If the folder lacks the detections of the best checkpoint
    on the validation set, as in old runs, the checkpoint is evaluated first.

    Examples:
        deformable-detr report runs/photos
        deformable-detr report runs/photos data.val.images=moved/val
    """
    page = deformable_detr.report(run_dir, overrides=overrides or (), device=device)
    echo(f"the report is {shown(page)}")
