"""Watchdog: when a run of several processes stands still, says which of them holds it up."""

import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
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
    """What a process tells the others about itself, once a second.

    Attributes:
        rank: of the process.
        host: the machine's name.
        pid: of the process.
        beat: how many signs it has given.
        doing: what, in words.
        at: the line of code that its main thread is at.
        is_waiting: whether that waits for other processes.
        end: how its part of the run ended; "" while it goes on.
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
        """The process, for people."""
        return f"process {self.rank} ({self.host}, pid {self.pid})"

    def stands_still(self) -> str:
        """A sentence about a process that all others wait for."""
        return f"{self.describe()} keeps the others waiting: it is {self.place()}"

    def place(self) -> str:
        """What the process was doing, and the line of code, where it had the time to tell."""
        return f"{self.doing}, at {self.at}" if self.at else self.doing


class Watchdog:
    """Ends this process when it has made no progress for `timeout_s`, naming who is to blame.

    PyTorch's own time limit ends a collective operation that some process does not join, but does
    not say which one. Here each process tells where it is, through the store by which processes
    have found each other, and one that stands still, or whose connection to another has broken,
    reads what all have told. It is used as a context around the loop; alone it does nothing.

    Args:
        timeout_s: of no progress; what takes longer in one piece, such as the scoring of a large
            validation set, needs a larger one.
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
        """The items, any number of times; to get one is progress, and to have dealt with it."""
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
        """Name the process whose loss has broken an operation of this one, if that happened."""
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
        """Note what this process does from now on."""
        self._sign = replace(self._sign, doing=doing)
        self._since = time.monotonic()

    def _watch(self) -> None:
        """In a thread of its own: give signs, and end the process when it stands still."""
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
                named = self._who() or "no process can be named"
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
        """The processes that hold the others up, in words; "" if none can be told."""
        assert self._board is not None
        before = self._signs()
        time.sleep(_SILENT_BEATS * self._beat_s)
        return name_culprits(before, self._signs(), me=self._sign.rank)

    def _signs(self) -> list[Sign | None]:
        assert self._board is not None
        texts = [self._board.read(str(rank)) for rank in range(distributed.world_size())]
        return [Sign(**json.loads(text)) if text else None for text in texts]


@dataclass(frozen=True)
class _Watched(Iterable[_T]):
    items: Iterable[_T]
    what: str
    watchdog: Watchdog

    def __iter__(self) -> Iterator[_T]:
        self.watchdog.progress(f"reading {self.what}")
        for item in self.items:
            self.watchdog.progress(f"computing on {self.what}")
            yield item
            self.watchdog.progress(f"reading {self.what}")
        self.watchdog.progress(f"done with each {self.what.removeprefix('a ')}")


def name_culprits(before: Sequence[Sign | None], after: Sequence[Sign | None], *, me: int) -> str:
    """Which processes hold the others up.

    Args:
        before: the signs of all processes by rank; None where none can be read.
        after: the same some beats later.
        me: the rank of the process that asks.

    Returns:
        A sentence: that this process itself does, if it is not waiting; else a sentence for each
        that has ended, or is silent; else for each that is not waiting; "" if all are waiting.
    """
    own = after[me]
    if own is None:
        return "the process that all others are connected to, 0 or the launcher, is gone"
    if not own.is_waiting:
        return own.stands_still()
    gone, busy = [], []
    for rank, (old, new) in enumerate(zip(before, after, strict=True)):
        if new is None:
            gone.append(f"process {rank} has not started its work")
        elif new.end:
            gone.append(f"{new.describe()} has ended: {new.end}")
        elif rank != me and old is not None and old.beat == new.beat:
            gone.append(f"{new.describe()} has died or is stopped: it was {new.place()}")
        elif not new.is_waiting:
            busy.append(new.stands_still())
    return "; ".join(gone or busy)


def _is_waiting(frame: FrameType | None) -> bool:
    """Whether a thread is in a collective operation, or a backward pass, which ends in some."""
    if frame is None:
        return False
    module = frame.f_globals.get("__name__", "")
    return module.startswith(("torch.distributed", "torch.nn.parallel")) or (
        module == "torch.autograd.graph"
    )


def _innermost(trace: TracebackType | None) -> FrameType | None:
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    return frames[-1] if frames else None
