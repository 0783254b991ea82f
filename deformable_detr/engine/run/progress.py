"""Progress of long operations: a bar on a terminal, a line in a notebook, else log lines."""

import html
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

from deformable_detr import distributed
from deformable_detr.engine.run.tracking import Callback
from deformable_detr.messages import in_lines

logger = logging.getLogger(__name__)
WIDTH = 78  # of the line on a terminal, which stays one line after most changes of its width
_BAR_WIDTH = 10
SHOWN = ("total", "loss_class", "loss_l1", "loss_giou", "lr")  # values of a record, if present
_T = TypeVar("_T")


class _View(Protocol):
    """A display of progress."""

    def start(self) -> None:
        """Show the display."""

    def stop(self) -> None:
        """Stop updating the display, which stays visible."""

    def advance(self, done: int) -> None:
        """Show the number of items that are done."""

    def describe(self, text: str) -> bool:
        """Show a changing text beside the progress; return False if there is no place for it."""

    def say(self, text: str) -> None:
        """Show a line that stays."""


class _Line(ProgressColumn):
    """Line with name, steps, rate and remaining time first, then what else there is room for."""

    def __init__(self, name: str, first: int, console: Console) -> None:
        super().__init__()
        self._name, self._first, self._console = name, first, console
        self._started = time.monotonic()

    def render(self, task: Task) -> Text:
        """Return the line, cut to the width of the terminal."""
        done, total = int(task.completed), int(task.total or 0)
        parts = [f"{self._name} {done}/{total}"]
        if done > self._first:
            seconds = (time.monotonic() - self._started) / (done - self._first)
            left = timedelta(seconds=round(seconds * (total - done)))
            parts.append(f"{seconds:.3g} s each" if seconds >= 1 else f"{1 / seconds:.3g}/s")
            parts.append(f"{left} left")
        filled = round(_BAR_WIDTH * done / total) if total else _BAR_WIDTH
        parts.append("#" * filled + "-" * (_BAR_WIDTH - filled))
        parts += task.description.split(", ") if task.description else []
        width = min(WIDTH, self._console.width - 1)
        line = parts[0]
        for part in parts[1:]:
            if len(line) + 2 + len(part) > width:
                break
            line += f"  {part}"
        return Text(line[:width], no_wrap=True, overflow="crop")


class _Bar:
    """A line on a terminal, with a bar."""

    def __init__(self, name: str, *, done: int, total: int, console: Console) -> None:
        self._bar = Progress(_Line(name, done, console), console=console, refresh_per_second=4)
        self._task = self._bar.add_task("", total=total, completed=done)

    def start(self) -> None:
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def advance(self, done: int) -> None:
        self._bar.update(self._task, completed=done)

    def describe(self, text: str) -> bool:
        self._bar.update(self._task, description=text)
        return True

    def say(self, text: str) -> None:
        self._bar.console.print(in_lines(text), highlight=False, markup=False)


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

    def start(self) -> None:
        self._handle = self._display(self._html(self._page()), display_id=True)

    def stop(self) -> None:
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


class _Log:
    """Log lines, for output that goes to a file and for processes without a terminal."""

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def advance(self, done: int) -> None:
        pass

    def describe(self, text: str) -> bool:
        return False

    def say(self, text: str) -> None:
        logger.info(text)


def _view(name: str, *, done: int, total: int, console: Console | None) -> _View:
    """Return the display that suits the output of the main process."""
    console = console or Console(stderr=True)
    if not distributed.is_main():
        return _Log()
    if console.is_jupyter:
        return _NotebookLine(name, done=done, total=total)
    if console.is_terminal:
        return _Bar(name, done=done, total=total, console=console)
    return _Log()


class TrainingProgress:
    """Progress of training in the main process; use it as a context manager around the loop.

    Args:
        first_step: number of steps taken before, if the run is resumed.
        last_step: last step of training.
        console: output; the standard error stream, or the notebook, if None.
    """

    def __init__(self, *, first_step: int, last_step: int, console: Console | None = None) -> None:
        self._first_step, self._last_step = first_step, last_step
        self._started = time.monotonic()
        self._view = _view("training", done=first_step, total=last_step, console=console)

    def __enter__(self) -> "TrainingProgress":
        self._view.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._view.stop()

    def advance(self, step: int) -> None:
        """Show that `step` steps have been taken."""
        self._view.advance(step)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Show the values of a logging step."""
        text = ", ".join(f"{name} {values[name]:.4g}" for name in SHOWN if name in values)
        if self._view.describe(text):
            return
        elapsed = time.monotonic() - self._started
        pace = elapsed / max(1, step - self._first_step)
        left = timedelta(seconds=round(pace * (self._last_step - step)))
        logger.info(
            "step %d of %d, %.3g s per step, %s left, %s", step, self._last_step, pace, left, text
        )

    def say(self, text: str) -> None:
        """Show a line that stays."""
        self._view.say(text)


class Tracked(Iterable[_T]):
    """Iterable over the items of another one that shows progress.

    Args:
        items: the items; must have a length, unless `total` is given.
        name: name of the operation, such as "predicting".
        total: number of items.
        callback: called with "progress" and {"done": ..., "total": ...} after each item.
    """

    def __init__(
        self,
        items: Iterable[_T],
        name: str,
        *,
        total: int | None = None,
        callback: Callback | None = None,
    ) -> None:
        if total is None:
            assert isinstance(items, Sized)
            total = len(items)
        self._items, self._name, self._total, self._callback = items, name, total, callback

    def __iter__(self) -> Iterator[_T]:
        view = _view(self._name, done=0, total=self._total, console=None)
        view.start()
        try:
            for done, item in enumerate(self._items, start=1):
                yield item
                view.advance(done)
                if self._callback is not None and distributed.is_main():
                    self._callback("progress", {"done": done, "total": self._total})
        finally:
            view.stop()
