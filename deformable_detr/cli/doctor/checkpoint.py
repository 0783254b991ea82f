"""`deformable-detr doctor checkpoint`: show what a file of weights holds."""

from pathlib import Path
from typing import Annotated

import typer

from deformable_detr.cli.options import complete_config
from deformable_detr.messages import printable

EXIT_NOT_USABLE = 1


def checkpoint(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Checkpoint of `train`, or weights of another implementation.",
            show_default=False,
        ),
    ],
    config: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_FILE",
            autocompletion=complete_config,
            help="Also show what `train --finetune-from FILE` would take into a model of this "
            "config.",
        ),
    ] = None,
) -> None:
    """Show what a file of weights holds, and whether it can be used.

    The exit code is 1 if it cannot.

    Examples:
        deformable-detr doctor checkpoint runs/photos/best.pth
        deformable-detr doctor checkpoint r50.pth --config deformable_detr_r50
    """
    # PyTorch code is imported when the command runs, so that --help is fast.
    from deformable_detr.workflows.doctor.checkpoint_check import check_checkpoint

    report = check_checkpoint(path, config=config)
    for name, value in report.describe():
        typer.echo(f"{name:14} {printable(value)}")
    if report.problem:
        raise typer.Exit(EXIT_NOT_USABLE)
