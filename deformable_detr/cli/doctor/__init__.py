"""`deformable-detr doctor`: find out what is wrong, in one pass."""

import typer

from deformable_detr.cli.doctor.bundle import bundle
from deformable_detr.cli.doctor.checkpoint import checkpoint

app = typer.Typer(help="Find out what is wrong.", no_args_is_help=True)
app.command()(bundle)
app.command()(checkpoint)


@app.callback()
def _root() -> None:
    """Find out what is wrong with a run or a checkpoint."""
