"""Displays of progress: a line of a terminal, an element of a notebook, or lines of the log."""

import html
import logging
import sys
import threading
import time
from datetime import timedelta
from typing import Any, Protocol

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType, Segment, Segments
from rich.text import Text

from deformable_detr import distributed
from deformable_detr.engine.run.redirection import PrintedLines
from deformable_detr.messages import in_lines

logger = logging.getLogger(__name__)
WIDTH = 78  # of the line of a terminal, which stays one line after most changes of its width
_BAR_WIDTH = 10
# To the end of the screen: if the terminal has become narrower, the line takes several rows.
_ERASE = Segment("\r\x1b[J", None, [(ControlType.CARRIAGE_RETURN,), (ControlType.ERASE_IN_LINE, 2)])


class Display(Protocol):
    """A display of progress."""

    def start(self) -> None:
        """Show the display."""

    def stop(self) -> None:
        """Stop updating the display, which stays visible unless it was shown inside another."""

    def advance(self, done: int) -> None:
        """Show the number of items that are done."""

    def describe(self, text: str) -> bool:
        """Show a changing text beside the progress; return False if there is no place for it."""

    def say(self, text: str) -> None:
        """Show a line that stays."""


class _Pace:
    """Rate and remaining time since the first item."""

    def __init__(self, first: int, total: int) -> None:
        self._first, self._total = first, total
        self._started = time.monotonic()

    def parts(self, done: int) -> list[str]:
        """Return rate and remaining time as text; nothing before the first item is done."""
        if done <= self._first:
            return []
        seconds = (time.monotonic() - self._started) / (done - self._first)
        left = timedelta(seconds=round(seconds * (self._total - done)))
        rate = f"{seconds:.3g} s each" if seconds >= 1 else f"{1 / seconds:.3g}/s"
        return [rate, f"{left} left"]


class _TerminalLine:
    """A line of a terminal: name, items, rate and remaining time, then what there is room for.

    One line is on the screen: one that is started inside another takes its place until it stops.
    The cursor waits at the beginning of the line, and stays there when a change of the width breaks
    it, so that the whole line can be erased in every terminal. What is printed appears above.
    """

    EVERY_S = 0.1  # between two updates

    def __init__(self, name: str, *, done: int, total: int, console: Console) -> None:
        self._name, self._done, self._total, self._console = name, done, total, console
        self._pace = _Pace(done, total)
        self._text = ""
        self._drawn_at = 0.0

    def start(self) -> None:
        with _LOCK:
            if not _LINES:
                _PRINTED.start()
                self._console.show_cursor(False)
            _LINES.append(self)
            self._draw()

    def stop(self) -> None:
        with _LOCK:
            if self not in _LINES:
                return
            self._draw()
            del _LINES[_LINES.index(self) :]  # with those inside that an error has left
            if _LINES:
                _LINES[-1]._draw()
                return
            self._console.print()
            self._console.show_cursor(True)
            _PRINTED.stop()

    def advance(self, done: int) -> None:
        self._done = done
        if time.monotonic() - self._drawn_at > self.EVERY_S:
            with _LOCK:
                self._draw()

    def describe(self, text: str) -> bool:
        self._text = text
        return True

    def say(self, text: str) -> None:
        _show_above(text)

    def _draw(self, above: str | None = None) -> None:
        if _LINES[-1] is not self:
            return
        self._drawn_at = time.monotonic()
        with self._console:  # written at once
            self._console.print(Segments([_ERASE]), end="")
            if above is not None:
                self._console.print(Text(above), soft_wrap=True)
            self._console.print(Text(self._line()), end="", no_wrap=True, overflow="crop")
            self._console.control(Control(ControlType.CARRIAGE_RETURN))

    def _line(self) -> str:
        """Return the line, cut to the width of the terminal."""
        filled = _BAR_WIDTH * self._done // self._total if self._total else _BAR_WIDTH
        parts = self._pace.parts(self._done)
        parts.append("#" * filled + "-" * (_BAR_WIDTH - filled))
        parts += self._text.split(", ") if self._text else []
        width = min(WIDTH, self._console.width - 1)
        line = f"{self._name} {self._done}/{self._total}"
        for part in parts:
            if len(line) + 2 + len(part) > width:
                break
            line += f"  {part}"
        return line[:width]


_LINES: list[_TerminalLine] = []  # each inside the one before; the last one is on the screen
_LOCK = threading.RLock()


def _show_above(text: str) -> bool:
    """Show lines above the one on the screen; return False if there is none."""
    with _LOCK:
        if _LINES:
            _LINES[-1]._draw(above=in_lines(text))
        return bool(_LINES)


_PRINTED = PrintedLines(_show_above)


class _NotebookLine:
    """An HTML progress element in the output of a notebook cell, above the lines that stay."""

    EVERY_S = 0.5  # between two updates, which are messages to the browser

    def __init__(self, name: str, *, done: int, total: int) -> None:
        from IPython.display import HTML, display  # always installed in a notebook

        self._name, self._done, self._total = name, done, total
        self._text = ""
        self._lines: list[str] = []
        self._shown_at = 0.0
        self._html, self._display = HTML, display
        self._handle: Any = None
        self._is_inner = bool(_NOTEBOOK_LINES)

    def start(self) -> None:
        _NOTEBOOK_LINES.append(self)
        self._handle = self._display(self._html(self._page()), display_id=True)

    def stop(self) -> None:
        if self in _NOTEBOOK_LINES:
            del _NOTEBOOK_LINES[_NOTEBOOK_LINES.index(self) :]
        if self._is_inner:  # many of them, as of the evaluations of a run, would pile up
            self._handle.update(self._html(""))
        else:
            self._show()

    def advance(self, done: int) -> None:
        self._done = done
        if time.monotonic() - self._shown_at > self.EVERY_S:
            self._show()

    def describe(self, text: str) -> bool:
        self._text = text
        return True

    def say(self, text: str) -> None:
        self._lines.append(text)
        self._show()

    def _show(self) -> None:
        self._shown_at = time.monotonic()
        self._handle.update(self._html(self._page()))

    def _page(self) -> str:
        state = f"{self._name} {self._done}/{self._total} {self._text}"
        lines = "".join(f"<br>{html.escape(line)}" for line in self._lines)
        bar = f'<progress value="{self._done}" max="{self._total}"></progress>'
        return f"<div>{bar} {html.escape(state)}{lines}</div>"


_NOTEBOOK_LINES: list[_NotebookLine] = []  # each inside the one before


class _LogLines:
    """Log lines, for output that goes to a file and for processes without a terminal."""

    EVERY_S = 30.0  # between two lines

    def __init__(self, name: str, *, done: int, total: int, is_quiet: bool) -> None:
        self._name, self._total, self._is_quiet = name, total, is_quiet
        self._pace = _Pace(done, total)
        self._said_at = time.monotonic()

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def advance(self, done: int) -> None:
        if self._is_quiet or time.monotonic() - self._said_at < self.EVERY_S:
            return
        self._said_at = time.monotonic()
        state = ", ".join([f"{done} of {self._total}", *self._pace.parts(done)])
        logger.info("%s: %s", self._name, state)

    def describe(self, text: str) -> bool:
        return False

    def say(self, text: str) -> None:
        logger.info(text)


def display_for(
    name: str, *, done: int, total: int, console: Console | None, has_reports: bool = False
) -> Display:
    """Return the display that suits the output of the main process; others show nothing.

    Args:
        name: name of the operation, such as "predicting".
        done: number of items that were done before.
        total: number of all items.
        console: output; the standard error stream, or the notebook, if None.
        has_reports: whether the caller logs the progress where `describe` has no place.
    """
    console = console or Console(file=getattr(sys.stderr, "original", sys.stderr))
    if not distributed.is_main():
        return _LogLines(name, done=done, total=total, is_quiet=True)
    if console.is_jupyter:
        return _NotebookLine(name, done=done, total=total)
    if console.is_terminal and not console.is_dumb_terminal:
        return _TerminalLine(name, done=done, total=total, console=console)
    return _LogLines(name, done=done, total=total, is_quiet=has_reports)
