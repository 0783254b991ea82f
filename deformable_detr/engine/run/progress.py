"""How far training is: a bar on a terminal, plain lines elsewhere."""

import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from deformable_detr import distributed

logger = logging.getLogger(__name__)
SHOWN = ("total", "loss_class", "loss_l1", "loss_giou", "lr")  # of a record, where there


class TrainingProgress:
    """Shows the main process's progress; used as a context around the loop.

    Args:
        first_step: steps taken before, by the run that is resumed.
        last_step: where training will end.
        console: where to draw; a bar if it is a terminal.
    """

    def __init__(self, *, first_step: int, last_step: int, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._first_step, self._last_step = first_step, last_step
        self._started = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal and distributed.is_main():
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=console,
            )
            self._task = self._bar.add_task("", total=last_step, completed=first_step)

    def __enter__(self) -> "TrainingProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """Show that `step` steps have been taken."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Show the values of a logging step."""
        text = ", ".join(f"{name} {values[name]:.4g}" for name in SHOWN if name in values)
        if self._bar is not None:
            self._bar.update(self._task, description=text)
            return
        elapsed = time.monotonic() - self._started
        pace = elapsed / max(1, step - self._first_step)
        left = timedelta(seconds=round(pace * (self._last_step - step)))
        logger.info(
            "step %d of %d, %s, %.3g s a step, %s left", step, self._last_step, text, pace, left
        )

    def say(self, text: str) -> None:
        """Show a line that stays."""
        if self._bar is None:
            logger.info(text)
        else:
            self._bar.console.print(text, highlight=False)
