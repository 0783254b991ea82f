"""Lock of a run folder, and `state.json`, the state of the process that writes to it."""

import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from deformable_detr import distributed
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.run.stopping import PreemptedError
from deformable_detr.engine.state import TrainState
from deformable_detr.files import require_regular_file, write_whole
from deformable_detr.messages import shown

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)
LOCK_WAIT_S = 10.0  # for a process that is ending


@contextmanager
def locked(files: RunFolder, *, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Lock the run folder against other starts of the run; every process must call.

    The lock is held by the main process and ends with it, even if the process is killed. It is a
    POSIX record lock, which NFS passes on to its server. On Windows, or on a file system without
    such locks, it only logs a warning.

    Args:
        files: the run folder, which is created.
        wait_s: seconds to wait for a process that holds the lock.

    Raises:
        RuntimeError: on every rank, if the folder cannot be written to or another start of the run
            still holds the lock after `wait_s`.
    """
    lock, failure = None, ""
    if distributed.is_main():
        try:
            files.path.mkdir(parents=True, exist_ok=True)
            lock = files.lock.open("ab")
            _acquire(lock, files, wait_s)
        except OSError as error:
            place = f"run folder {shown(files.path)}"
            failure = f"{place} cannot be written to ({error}); choose another --run-dir"
        except RuntimeError as error:
            failure = str(error)
    try:
        if failure := distributed.all_gather_objects(failure)[0]:
            raise RuntimeError(failure)
        yield
    finally:
        if lock is not None:
            lock.close()


def _acquire(lock: BinaryIO, files: RunFolder, wait_s: float) -> None:
    if fcntl is None:
        return _warn_of_no_lock(files, "not available on this platform")
    end = time.monotonic() + wait_s
    while True:
        try:
            return fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return _warn_of_no_lock(files, error.strerror)
        if time.monotonic() > end:
            raise RuntimeError(
                f"run folder must not be in use, got {shown(files.path)}, which "
                f"{_holder(files.state)} is writing to; wait for that run or end it, or choose "
                "another --run-dir"
            )
        time.sleep(0.2)


def _warn_of_no_lock(files: RunFolder, reason: str | None) -> None:
    logger.warning(
        "run folder %s cannot be locked (%s); make sure that nothing else writes to it",
        shown(files.path),
        reason,
    )


def _holder(state: Path) -> str:
    try:
        require_regular_file(state, "state file")
        content = json.loads(state.read_text(encoding="ascii"))
        return f"process {shown(content['pid'])} on {shown(content['host'])}"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "another process"


@contextmanager
def recorded_state(files: RunFolder, state: TrainState) -> Iterator[None]:
    """Keep `state.json`: "running" inside, then "finished", "preempted" or "failed".

    It is for the program that started the run, as a launcher's exit code does not distinguish
    these. A process that is killed leaves "running".
    """
    _write(files.state, "running", state.step)
    try:
        yield
    except PreemptedError:
        _write(files.state, "preempted", state.step)
        raise
    except BaseException:
        with suppress(OSError):  # on a full disk, the first error is the clearer one
            _write(files.state, "failed", state.step)
        raise
    _write(files.state, "finished", state.step)


def _write(path: Path, name: str, step: int) -> None:
    if not distributed.is_main():
        return
    content = {
        "state": name,
        "step": step,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="ascii")
