"""StopRequest: graceful stop on SIGTERM or SIGUSR1, at the same step on every rank."""

import logging
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch

from deformable_detr import distributed

logger = logging.getLogger(__name__)
# Windows has no SIGUSR1.
SIGNALS = [number for number in signal.Signals if number.name in ("SIGTERM", "SIGUSR1")]
_T = TypeVar("_T")


class PreemptedError(Exception):
    """The run was asked to stop before its end, and can be resumed."""


class StopRequest:
    """Request to stop the run, by SIGTERM or SIGUSR1 to any of its processes.

    Use it as a context manager, in which the signals only set a flag. All processes stop together,
    at the end of a step or of an evaluated batch, as one that stopped alone would leave the others
    waiting. Outside the main thread it does not handle signals.
    """

    def __init__(self) -> None:
        self._asked_by: str | None = None
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
