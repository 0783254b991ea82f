"""Progress of long operations: a line on a terminal or in a notebook, else log lines."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from datetime import timedelta
from types import TracebackType
from typing import TypeVar

from rich.console import Console

from deformable_detr import distributed
from deformable_detr.engine.run.displays import display_for
from deformable_detr.engine.run.tracking import Callback

logger = logging.getLogger(__name__)
SHOWN = ("total", "loss_class", "loss_l1", "loss_giou", "lr")  # values of a record, if present
_T = TypeVar("_T")


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
        self._display = display_for(
            "training", done=first_step, total=last_step, console=console, has_reports=True
        )

    def __enter__(self) -> "TrainingProgress":
        self._display.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._display.stop()

    def advance(self, step: int) -> None:
        """Show that `step` steps have been taken."""
        self._display.advance(step)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Show the values of a logging step."""
        text = ", ".join(f"{name} {values[name]:.4g}" for name in SHOWN if name in values)
        if self._display.describe(text):
            return
        elapsed = time.monotonic() - self._started
        pace = elapsed / max(1, step - self._first_step)
        left = timedelta(seconds=round(pace * (self._last_step - step)))
        logger.info(
            "step %d of %d, %.3g s per step, %s left, %s", step, self._last_step, pace, left, text
        )

    def say(self, text: str) -> None:
        """Show a line that stays."""
        self._display.say(text)


class Tracked(Iterable[_T]):
    """Iterable over the items of another one that shows progress.

    Inside another display of progress it takes its place, until it ends.

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
        display = display_for(self._name, done=0, total=self._total, console=None)
        display.start()
        try:
            for done, item in enumerate(self._items, start=1):
                yield item
                display.advance(done)
                if self._callback is not None and distributed.is_main():
                    self._callback("progress", {"done": done, "total": self._total})
        finally:
            display.stop()
