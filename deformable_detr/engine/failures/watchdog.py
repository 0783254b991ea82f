"""Watchdog: reports which rank a stalled run of several processes is waiting for."""

import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import asdict, dataclass, replace
from types import FrameType, TracebackType
from typing import TypeVar

from deformable_detr import distributed

logger = logging.getLogger(__name__)
EXIT_STALLED = 1  # a launcher restarts the processes
_BEAT_S = 1.0
_SILENT_BEATS = 4  # missed in a row by a process that is stopped or gone
_T = TypeVar("_T")


@dataclass(frozen=True)
class Sign:
    """Status that each process publishes to the others once per second.

    Attributes:
        rank: rank of the process.
        host: name of the machine.
        pid: id of the process.
        beat: number of signs published so far.
        doing: current activity.
        at: current line of code of the main thread.
        is_waiting: whether the main thread is waiting for other processes.
        end: outcome of this rank's part of the run; "" while it continues.
    """

    rank: int
    host: str
    pid: int
    beat: int = 0
    doing: str = "starting"
    at: str = ""
    is_waiting: bool = False
    end: str = ""

    def describe(self) -> str:
        """Return rank, host and process id as text."""
        return f"rank {self.rank} ({self.host}, pid {self.pid})"

    def stands_still(self) -> str:
        """Return a sentence about a rank that all others wait for."""
        return f"{self.describe()} keeps the others waiting: it is {self.place()}"

    def place(self) -> str:
        """Return the activity and, if it is known, the line of code."""
        return f"{self.doing}, at {self.at}" if self.at else self.doing


class Watchdog:
    """Timeout that ends this process after `timeout_s` without progress, and names the cause.

    PyTorch's own timeout ends a collective operation that some rank does not join, but does not
    name the rank. Here each process publishes its status through the store that the processes
    initialized their group with. A process that stalls, or whose connection to another has broken,
    reads the status of all. Use it as a context manager around the loop; in a run of a single
    process it does nothing.

    Args:
        timeout_s: seconds without progress. It must be longer than any single operation, such as
            the scoring of a large validation set.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._beat_s = min(_BEAT_S, timeout_s / 10)
        self._board = distributed.Board("watchdog") if distributed.is_started() else None
        self._sign = Sign(distributed.rank(), socket.gethostname(), os.getpid())
        self._since = time.monotonic()
        self._main_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def over(self, items: Iterable[_T], what: str) -> Iterable[_T]:
        """Return an iterable over `items` that reports progress before and after each item.

        It can be iterated as often as `items`.
        """
        return _Watched(items, what, self)

    def __enter__(self) -> "Watchdog":
        if self._board is not None:
            self._tell(self._sign)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Name the rank whose end has broken a collective operation of this one, if any."""
        if self._board is None:
            return
        self._stopped.set()
        self._thread.join()
        end = "it has finished" if error is None else f"{type(error).__name__}: {error}"
        named = ""
        if isinstance(error, RuntimeError) and _is_waiting(_innermost(trace)):
            self._sign = replace(self._sign, is_waiting=True)
            named = self._who()
        self._tell(replace(self._sign, end=named or end))
        if named:
            raise RuntimeError(named) from error

    def progress(self, doing: str) -> None:
        """Record the current activity, and restart the timeout."""
        self._sign = replace(self._sign, doing=doing)
        self._since = time.monotonic()

    def _watch(self) -> None:
        """Publish the status, and end the process when it stalls; runs in a thread of its own."""
        while not self._stopped.wait(self._beat_s):
            frame = sys._current_frames()[self._main_thread]
            self._sign = replace(
                self._sign,
                beat=self._sign.beat + 1,
                at=f"{frame.f_code.co_filename}:{frame.f_lineno}",
                is_waiting=_is_waiting(frame),
            )
            self._tell(self._sign)
            if time.monotonic() - self._since > self._timeout_s:
                stack = "".join(traceback.format_stack(frame))
                named = self._who() or "the stalled rank could not be determined"
                logger.critical(
                    "no progress for %g s (train.timeout_s): %s\nthis process is at:\n%s",
                    self._timeout_s,
                    named,
                    stack,
                )
                self._tell(replace(self._sign, end=named))  # else it would seem to have died
                logging.shutdown()
                os._exit(EXIT_STALLED)  # the main thread cannot be woken up

    def _tell(self, sign: Sign) -> None:
        assert self._board is not None
        self._board.write(str(sign.rank), json.dumps(asdict(sign)))

    def _who(self) -> str:
        """Return a sentence about the ranks that stall the run, or "" if none is known."""
        assert self._board is not None
        before = self._signs()
        time.sleep(_SILENT_BEATS * self._beat_s)
        return name_culprits(before, self._signs(), own=self._sign)

    def _signs(self) -> list[Sign | None]:
        assert self._board is not None
        texts = [self._board.read(str(rank)) for rank in range(distributed.world_size())]
        return [Sign(**json.loads(text)) if text else None for text in texts]


@dataclass(frozen=True)
class _Watched(Iterable[_T]):
    items: Iterable[_T]
    what: str
    watchdog: Watchdog

    def __len__(self) -> int:
        assert isinstance(self.items, Sized)
        return len(self.items)

    def __iter__(self) -> Iterator[_T]:
        self.watchdog.progress(f"reading {self.what}")
        for item in self.items:
            self.watchdog.progress(f"computing on {self.what}")
            yield item
            self.watchdog.progress(f"reading {self.what}")
        self.watchdog.progress(f"done with each {self.what.removeprefix('a ')}")


def name_culprits(before: Sequence[Sign | None], after: Sequence[Sign | None], *, own: Sign) -> str:
    """Return a sentence about each rank that stalls the run.

    Args:
        before: the signs of all ranks; None for one that cannot be read.
        after: the same some beats later.
        own: the sign of this process, which needs no store: rank 0, with the store, may be gone.

    Returns:
        A sentence about this rank, if it is not waiting; else about each rank that has ended or
        is silent; else about each that is not waiting; "" if all are waiting.
    """
    if not own.is_waiting:
        return own.stands_still()
    if after[own.rank] is None:
        return "the process that all others are connected to, rank 0 or the launcher, is gone"
    gone, busy = [], []
    for rank, (old, new) in enumerate(zip(before, after, strict=True)):
        if new is None:
            gone.append(f"rank {rank} has not started its work")
        elif new.end:
            gone.append(f"{new.describe()} has ended: {new.end}")
        elif rank != own.rank and old is not None and old.beat == new.beat:
            gone.append(f"{new.describe()} has died or is stopped: it was {new.place()}")
        elif not new.is_waiting:
            busy.append(new.stands_still())
    return "; ".join(gone or busy)


def _is_waiting(frame: FrameType | None) -> bool:
    """Return whether a thread is in a collective operation, or in a backward pass with one."""
    if frame is None:
        return False
    module = frame.f_globals.get("__name__", "")
    return module.startswith(("torch.distributed", "torch.nn.parallel")) or (
        module == "torch.autograd.graph"
    )


def _innermost(trace: TracebackType | None) -> FrameType | None:
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    return frames[-1] if frames else None
