"""`deformable-detr doctor`: find out what is wrong, in one pass."""

import typer

from deformable_detr.cli.doctor.bundle import bundle
from deformable_detr.cli.doctor.checkpoint import checkpoint
from deformable_detr.cli.doctor.data import data
from deformable_detr.cli.doctor.env import env
from deformable_detr.cli.help import Command, Group

app = typer.Typer(cls=Group, no_args_is_help=True)
app.command(cls=Command)(env)
app.command(cls=Command)(data)
app.command(cls=Command)(bundle)
app.command(cls=Command)(checkpoint)


@app.callback()
def _root() -> None:
    """Find out what is wrong.

    With an installation, a data set, a checkpoint or a failed step of a run.

    Examples:
        deformable-detr doctor env
        deformable-detr doctor data photos
        deformable-detr doctor checkpoint runs/photos/best.pth
    """
