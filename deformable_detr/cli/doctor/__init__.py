"""`deformable-detr doctor`: find out what is wrong, in one pass."""

import typer

from deformable_detr.cli.doctor.bundle import bundle
from deformable_detr.cli.doctor.checkpoint import checkpoint
from deformable_detr.cli.doctor.data import data
from deformable_detr.cli.doctor.env import env

app = typer.Typer(help="Find out what is wrong.", no_args_is_help=True)
app.command()(env)
app.command()(data)
app.command()(bundle)
app.command()(checkpoint)


@app.callback()
def _root() -> None:
    """Find out what is wrong with an installation, a data set, a checkpoint or a run."""
