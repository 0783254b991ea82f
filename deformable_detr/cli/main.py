"""`deformable-detr`: entry point that registers the subcommands and reports their errors."""

import logging
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from deformable_detr.cli import benchmark, data, doctor
from deformable_detr.cli.convert import convert
from deformable_detr.cli.evaluate import evaluate
from deformable_detr.cli.explain import explain
from deformable_detr.cli.predict import predict
from deformable_detr.cli.report import report
from deformable_detr.cli.train import train
from deformable_detr.version import __version__

DEBUG = "--debug"
EXIT_ERROR = 2  # also the code of a usage error

app = typer.Typer(
    name="deformable-detr",
    help=(
        "Deformable DETR: train an object detector on images in COCO format, evaluate it, "
        "and detect objects in images."
    ),
    epilog="Start with: deformable-detr COMMAND --help",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # rewraps docstrings
)
app.command()(train)
app.command()(evaluate)
app.command()(report)
app.command()(predict)
app.command()(convert)
app.command()(explain)
app.add_typer(data.app, name="data")
app.add_typer(doctor.app, name="doctor")
app.add_typer(benchmark.app, name="benchmark")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deformable-detr {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option(DEBUG, help="Show the traceback of an error; accepted anywhere.")
    ] = False,
) -> None:
    """Declare the options before the subcommand; `main` and `_print_version` handle them."""


def main() -> None:
    """Run the command line; an expected error is printed in one line, with exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    arguments = [argument for argument in sys.argv[1:] if argument != DEBUG]
    try:
        app(arguments)
    except (ValueError, RuntimeError, OSError) as error:
        if DEBUG in sys.argv:
            raise
        message = str(error) or type(error).__name__
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print(Text(f"error: {message}", style="bold red"))
        sys.exit(EXIT_ERROR)
