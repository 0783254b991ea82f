"""Trackers of a run's records, which never stop training, and callbacks."""

import importlib.util
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from deformable_detr.engine.run import tracker_process
from deformable_detr.engine.run.tracker_process import TrackerSetup
from deformable_detr.messages import in_lines

logger = logging.getLogger(__name__)
Callback = Callable[[str, Mapping[str, Any]], None]  # kind of a record, and its values by name
CLOSE_S = 30.0  # for a tracker to write what it has received
MOST_WAITING = 1000  # records that a tracker may be behind
_KILLED_S = 1.0  # for a killed process to disappear; on a disk that hangs it may not


class Tracker(Protocol):
    """Receiver of records: a kind, such as "train", and values by name, including `step`."""

    def __call__(self, kind: str, values: Mapping[str, Any]) -> None:
        """Write one record; it may raise any exception."""


class Tracking:
    """Distribution of records to trackers and callbacks.

    A tracker is disabled after its first error, with one warning. Errors of callbacks propagate.

    Attributes:
        callbacks: functions of the caller, called with each record after the trackers.
    """

    def __init__(self) -> None:
        self._trackers: dict[str, Tracker] = {}
        self.callbacks: list[Callback] = []

    def open(self, name: str, make: Callable[[], Tracker]) -> None:
        """Add the tracker that `make` creates; the warning names it by `name`."""

        def add() -> None:
            self._trackers[name] = make()

        self._try(name, add)

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Pass a record to every tracker that is not disabled, then to the callbacks."""
        for name, tracker in list(self._trackers.items()):
            self._try(name, partial(tracker, kind, values))
        for callback in self.callbacks:
            callback(kind, values)

    def close(self) -> None:
        """End the trackers' processes; those that have not ended after `CLOSE_S` are killed."""
        processes = [one for one in self._trackers.values() if isinstance(one, TrackerProcess)]
        for process in processes:
            process.finish()
        end = time.monotonic() + CLOSE_S
        for process in processes:
            process.wait(end)

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # of any kind: a lost record must not end the run
            self._trackers.pop(name, None)
            _warn(name, f"{type(error).__name__}: {error}")


def _warn(name: str, reason: str) -> None:
    line = in_lines(" ".join(reason.split()))
    logger.warning("%s is disabled after an error (%s); training continues", name, line)


class TrackerProcess:
    """Tracker in a process of its own, which can raise, hang or crash without harm to the run.

    Records wait in a queue, from which a thread sends them. If the tracker fails or falls too far
    behind, its process is killed, with one warning, and later records are dropped. A Ctrl-C in the
    terminal does not reach it. If the process of the run is killed, it ends by itself.

    Args:
        name: "tensorboard", "wandb" or "mlflow".
        folder: the run folder.
        run_file: file that keeps the tracker's id of the run, so that a resumed run continues it.
        first_step: first step of this part of the run.
        config: the settings of the run by dotted key.
        most_waiting: maximum number of records in the queue.

    Raises:
        RuntimeError: the tracker's package is not installed.
        OSError: the process cannot be started.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        run_file: Path,
        first_step: int,
        config: Mapping[str, Any],
        most_waiting: int = MOST_WAITING,
    ) -> None:
        _require_installed(name)
        setup = TrackerSetup(
            name=name,
            path=sys.path,
            folder=str(folder.absolute()),
            run_file=str(run_file.absolute()),
            first_step=first_step,
            config=dict(config),
            close_s=CLOSE_S + _KILLED_S,  # for the case that nobody is left to kill it
        )
        self._name = name
        self._queue: queue.Queue[str | None] = queue.Queue(most_waiting)
        self._queue.put(json.dumps(setup))
        self._stopped = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-I", tracker_process.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_report, daemon=True)
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._reader.start()
        self._sender.start()

    def __call__(self, kind: str, values: Mapping[str, Any]) -> None:
        """Queue one record."""
        if self._stopped.is_set():
            return
        try:
            self._queue.put_nowait(json.dumps([kind, values], default=str))
        except queue.Full:
            self._stop(f"it is {self._queue.maxsize} records behind")

    def finish(self) -> None:
        """Ask the process to write what it has received, and to end."""
        if not self._stopped.is_set():
            try:
                self._queue.put_nowait(None)
            except queue.Full:
                self._stop(f"it is {self._queue.maxsize} records behind")

    def wait(self, end: float) -> None:
        """Wait for the end of the process until the time `end` of the monotonic clock."""
        try:
            self._process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._stop("it did not end in time; its newest records are lost")
        for thread in (self._reader, self._sender):
            thread.join(_KILLED_S)

    def _send(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # then the process has ended, and its report says why
            while (line := self._queue.get()) is not None and not self._stopped.is_set():
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()
        with suppress(OSError):
            self._process.stdin.close()

    def _read_report(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as report:
            text = report.read()
        code = self._process.wait()
        if not text:
            self._stop(f"its process ended with code {code}")
        elif error := text.strip():
            self._stop(error)
        else:
            self._stop(None)

    def _stop(self, reason: str | None) -> None:
        """Drop what follows and kill the process; warn of the first reason, if there is one."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        if reason is not None:
            _warn(self._name, reason)
        if self._process.poll() is None:
            if hasattr(os, "killpg"):  # with what the library has started
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        with suppress(queue.Full):  # then it is awake
            self._queue.put_nowait(None)  # wakes the sender


def _require_installed(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # a folder of that name is no package
        extra = "tracking" if name == "tensorboard" else name
        raise RuntimeError(
            f'the package {name} is not installed; pip install "deformable-detr[{extra}]"'
        )
