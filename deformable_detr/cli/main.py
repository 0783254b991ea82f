"""`deformable-detr`: entry point that registers the subcommands and reports their errors."""

import atexit
import re
import signal
import sys
import threading
from types import FrameType
from typing import Annotated, Any

import typer
from typer import rich_utils

from deformable_detr.cli import benchmark, data, doctor
from deformable_detr.cli.convert import convert
from deformable_detr.cli.evaluate import evaluate
from deformable_detr.cli.explain import explain
from deformable_detr.cli.help import Command, Group
from deformable_detr.cli.listings.configs import configs
from deformable_detr.cli.listings.settings import settings
from deformable_detr.cli.predict import predict
from deformable_detr.cli.report import report
from deformable_detr.cli.terminal import print_error, print_traceback, set_up_output
from deformable_detr.cli.train import train
from deformable_detr.messages import in_lines
from deformable_detr.version import __version__

DEBUG = "--debug"
EXIT_ERROR = 2  # also the code of a usage error
EXIT_INTERRUPTED = 130  # by Ctrl-C
_UsageError: Any = typer.BadParameter.__mro__[2]  # Typer exports no common base of these errors

app = typer.Typer(
    name="deformable-detr",
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain: texts in the full width, flags without a type
)
app.command(cls=Command)(train)
app.command(cls=Command)(evaluate)
app.command(cls=Command)(report)
app.command(cls=Command)(predict)
app.command(cls=Command)(convert)
app.command(cls=Command)(explain)
app.command(cls=Command)(configs)
app.command(cls=Command)(settings)
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
    """Deformable DETR: train an object detector, evaluate it, and detect objects in images.

    Each command has its own help: deformable-detr train -h

    Examples:
        deformable-detr train --data photos
        deformable-detr evaluate --checkpoint runs/photos/best.pth
        deformable-detr predict --checkpoint runs/photos/best.pth --out found photos
    """  # `main` and `_print_version` handle the options


def main() -> None:
    """Run the command line; an expected error is printed without traceback, with exit code 2."""
    set_up_output()
    before = sys.unraisablehook
    if _on_interrupt() is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _end_or_print
    arguments = [argument for argument in sys.argv[1:] if argument != DEBUG]
    try:
        if empty := [one for one in arguments if not one or re.fullmatch(r"--[\w-]+=", one)]:
            # Typer would turn it into the path of the current folder.
            raise ValueError(f"an argument must not be empty, got {empty[0]!r}")
        code = app(arguments, standalone_mode=False)  # None, or the code of `typer.Exit`
        if code == EXIT_INTERRUPTED:
            typer.echo("interrupted", err=True)
        sys.exit(code)
    except _UsageError as error:
        error.message = in_lines(error.message)
        rich_utils.rich_format_error(error)
        sys.exit(error.exit_code)
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        if DEBUG in sys.argv:
            sys.excepthook = print_traceback
            raise
        print_error(error)
        sys.exit(EXIT_ERROR)
    except Exception:  # a bug
        sys.excepthook = print_traceback
        raise
    finally:
        if _on_interrupt() is _interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = before
        # The last one that is registered runs first, before those of libraries.
        atexit.unregister(_end_on_interrupt)
        atexit.register(_end_on_interrupt)


def _on_interrupt() -> Any:
    """Return what handles Ctrl-C; None in a thread, which cannot change it."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    return signal.getsignal(signal.SIGINT) if is_main_thread else None


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; another Ctrl-C ends the process at once.

    During the cleanup Python would print a traceback and go on. Under torchrun both come, one from
    the terminal and one from torchrun.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def _end_or_print(ignored: Any) -> None:
    """End at a Ctrl-C that Python would ignore, with its traceback, as in a loader's `__del__`."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    sys.__unraisablehook__(ignored)


def _end_on_interrupt() -> None:
    """Let Ctrl-C end the process without a traceback: all work is done."""
    if _on_interrupt() is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
