"""StopRequest: graceful stop on SIGTERM, SIGUSR1 or Ctrl-C, at the same step on every rank."""

import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch

from deformable_detr import distributed

logger = logging.getLogger(__name__)
# Windows has no SIGUSR1.
SIGNALS = [number for number in signal.Signals if number.name in ("SIGTERM", "SIGUSR1")]
ON_INTERRUPT = b"stopping after this step, and saving; Ctrl-C again ends at once without saving\n"
_STDERR = 2
_T = TypeVar("_T")


class PreemptedError(Exception):
    """The run was asked to stop before its end, and can be resumed."""


class StopRequest:
    """Request to stop the run, by SIGTERM or SIGUSR1 to any of its processes, or by Ctrl-C.

    Use it as a context manager, in which the signals only set a flag. All processes stop together,
    at the end of a step or of an evaluated batch, as one that stopped alone would leave the others
    waiting. Outside the main thread it does not handle signals.

    Ctrl-C (SIGINT) is a request inside `taking_interrupts` only. Elsewhere there is nothing to
    save, and it raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self._asked_by: str | None = None
        self._interrupted = False
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def taking_interrupts(self) -> Iterator[None]:
        """Take the first Ctrl-C of the block as a request to stop; a second one ends at once.

        Where SIGINT is ignored, as in a background job of a shell script, it stays ignored.

        Raises:
            KeyboardInterrupt: at a second Ctrl-C; or at the end of the block, if the first came
                too late for a `check`.
        """
        before = signal.getsignal(signal.SIGINT)
        is_main_thread = threading.current_thread() is threading.main_thread()
        if not is_main_thread or not callable(before):  # ignored, or not set from Python
            yield
            return

        def interrupt(number: int, frame: FrameType | None) -> None:
            if self._interrupted:
                before(number, frame)
                return
            self._interrupted = True
            self._asked_by = "Ctrl-C (SIGINT)"
            if distributed.is_main():  # a log may be in use by the code that was interrupted
                with suppress(OSError):
                    os.write(_STDERR, ON_INTERRUPT)

        signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        if self._interrupted:
            raise KeyboardInterrupt

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked_by = signal.Signals(number).name

    @property
    def _reason(self) -> str:
        return f"asked to stop by {self._asked_by or 'a signal to another process'}"

    def check(self) -> None:
        """Raise if any process was asked to stop; every process must call.

        Raises:
            PreemptedError: on every rank.
        """
        asked = torch.tensor(float(self._asked_by is not None))
        if distributed.all_reduce_sum(asked) > 0:
            raise PreemptedError(self._reason)

    def check_between(self, items: Iterable[_T]) -> Iterator[_T]:
        """Yield this rank's items, of which other ranks may have fewer; `check` before each.

        Raises:
            PreemptedError: on every rank, between two items.
        """
        iterator, end = iter(items), object()
        while True:
            item = next(iterator, end)
            state = torch.tensor([self._asked_by is not None, item is not end], dtype=torch.float32)
            asked, left = distributed.all_reduce_sum(state).tolist()
            if asked:
                raise PreemptedError(self._reason)
            if not left:
                return
            if item is not end:
                yield item  # type: ignore[misc]  # not the end marker
