"""Output of commands: lines, log lines and errors, escaped and cut for a terminal."""

import copy
import errno
import io
import logging
import os
import shutil
import sys
import textwrap
import threading
import traceback
from pathlib import Path, PurePath
from types import TracebackType

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from deformable_detr.messages import in_lines, printable, shown

_TRACEBACK_LINE = 300  # characters


class PrintableFormatter(logging.Formatter):
    """Formatter of log lines: the message, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the whole line; a path in the arguments has no line break of its own."""
        record = copy.copy(record)
        if isinstance(record.args, tuple):
            record.args = tuple(
                shown(value) if isinstance(value, PurePath) else value for value in record.args
            )
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of the base class
        """Return the message in printable lines."""
        return in_lines(super().formatMessage(record))

    def formatException(  # noqa: N802 - of the base class
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        """Return the traceback in printable lines."""
        return _printable_traceback(super().formatException(ei))


def set_up_output() -> None:
    """Log to stderr, and escape characters that the encoding of the terminal lacks.

    An error that ends a thread is printed by `print_thread_error`, unless the caller has set a
    function for it.
    """
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = print_thread_error
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def echo(text: str) -> None:
    """Print to stdout."""
    typer.echo(in_lines(text))


def wrapped(text: str, *, indent: int = 0) -> str:
    """Break a text into lines that fit into the terminal, indented from the second one on."""
    return textwrap.fill(
        text,
        _columns(),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def in_one_line(text: str, *, indent: int = 0) -> str:
    """Indent a text, and cut it to the width of the terminal."""
    cut = textwrap.shorten(text, _columns() - indent, placeholder="...", break_on_hyphens=False)
    return " " * indent + cut


def _columns() -> int:
    """Return the width of lines; 80 without a terminal, and not too long to read in a wide one."""
    return max(40, min(100, shutil.get_terminal_size().columns))


def cell(text: object) -> str:
    """Return a foreign text for a table."""
    return escape(shown(text))


def sentence(text: str) -> str:
    """Return a foreign sentence for a table, in one line."""
    return escape(in_lines(" ".join(text.splitlines())))


def print_error(error: BaseException) -> None:
    """Print an error to stderr, without its traceback."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text(f"error: {in_lines(_describe(error))}", style="bold red"))


def print_traceback(
    kind: type[BaseException], error: BaseException, place: TracebackType | None
) -> None:
    """Print an error with its traceback to stderr; for `sys.excepthook`."""
    text = "".join(traceback.format_exception(kind, error, place))
    sys.stderr.write(_printable_traceback(text) + "\n")


def print_thread_error(ended: threading.ExceptHookArgs) -> None:
    """Print the error that has ended a thread to stderr, as one that writes to a full disk.

    One of the system is a line, another one, a bug, has its traceback. The process goes on.
    """
    if isinstance(ended.exc_value, OSError):
        reason = in_lines(_describe(ended.exc_value))
        sys.stderr.write(f"a thread in the background has ended: {reason}\n")
    elif ended.exc_value is not None:
        print_traceback(ended.exc_type, ended.exc_value, ended.exc_traceback)


def _describe(error: BaseException) -> str:
    """Return the message of an error; that of the system gets the name of the file."""
    match error:
        case MemoryError():
            return "out of memory; close other programs, or ask for less, such as smaller batches"
        case RecursionError():
            return "something in a file is nested too deeply; --debug shows the place"
        case OSError(errno=int(), strerror=str(reason)):
            files = [
                shown(Path(os.fsdecode(name)) if isinstance(name, str | bytes) else name)
                for name in (error.filename, error.filename2)
                if name is not None
            ]
            full = "; free space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            return f"{' and '.join(files) or 'a file'}: {reason}{full}"
        case _:
            return str(error) or type(error).__name__


def _printable_traceback(text: str) -> str:
    lines = (printable(line[: _TRACEBACK_LINE + 1]) for line in text.rstrip("\n").split("\n"))
    return "\n".join(
        line if len(line) <= _TRACEBACK_LINE else f"{line[: _TRACEBACK_LINE - 3]}..."
        for line in lines
    )
