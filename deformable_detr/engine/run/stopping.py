"""StopRequest: a run is asked to stop by a signal, and stops in all processes at the same place."""

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
    """The run was asked to stop before its end, and can go on from where it is."""


class StopRequest:
    """Whether any process of the run was asked to stop, by SIGTERM or SIGUSR1.

    Used as a context, in which the signals do nothing but ask. What follows happens in every
    process at once, at the end of a step or of a batch that is evaluated, as those that a process
    has alone would leave the others waiting. Outside the main thread signals are not listened to.
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
        """Stop here if any process was asked to; every process must call.

        Raises:
            PreemptedError: in every process.
        """
        asked = torch.tensor(float(self._asked_by is not None))
        if distributed.all_reduce_sum(asked) > 0:
            raise PreemptedError(self._reason)

    def check_between(self, items: Iterable[_T]) -> Iterator[_T]:
        """The items of this process, of which others may have fewer, with a `check` before each.

        Raises:
            PreemptedError: in every process, between two items.
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
                yield item  # type: ignore[misc]  # which is no end
