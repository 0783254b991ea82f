"""Ways to interrupt a command: signals, a full disk, a limit on the size of a file."""

import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from survive_kills import children_of

from interruptions.place import CheckError, Place

SIGNALS = {"kill": signal.SIGKILL, "Ctrl-C": signal.SIGINT}
WAYS = (*SIGNALS, "full disk", "file size")
TIMEOUT_S = 300.0
OUTLIVES_S = 20.0  # after the end of a command, for its processes
POLL_S = 0.005
SHORT_S = 0.1  # of writing: too short for a signal; then it comes before, or by chance
EARLIEST = 0.6  # of the time until the last change; before, PyTorch is imported
PAGE = 4096
SHARE = (0.02, 0.9)  # of what the undisturbed command writes


@dataclass(frozen=True)
class Ended:
    """End of a process.

    Attributes:
        code: exit code.
        text: output.
        took: duration in seconds.
        first, last: seconds until the first and the last change in the folder; 0 without one.
    """

    code: int
    text: str
    took: float
    first: float = 0.0
    last: float = 0.0


@dataclass(frozen=True)
class Written:
    """Sizes in bytes of the files that a command has written or changed."""

    sizes: Sequence[int]

    @classmethod
    def since(cls, before: dict[Path, tuple[int, ...]], folder: Path) -> "Written":
        """Return the files that differ from a former state of the folder."""
        now = state_of(folder)
        return cls([state[2] for path, state in now.items() if before.get(path) != state])


def state_of(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Return inode, time of change and size of each file in a folder."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            found[path] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return found


def start(
    command: Sequence[str],
    watched: Path,
    *,
    signal_at: tuple[signal.Signals, float] | None = None,
    from_first: bool = True,
    **options: Any,
) -> Ended:
    """Run a command; send it a signal some seconds after the first change in a folder, or start."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before, output, begin = state_of(watched), [], time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
        **options,
    )
    with process:
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: output.append(process.stdout.read()), daemon=True)
        reader.start()
        first, last, due = None, begin, signal_at
        while process.poll() is None:
            now = time.monotonic()
            if now > begin + TIMEOUT_S:
                send(process, signal.SIGKILL)
                raise CheckError(f"no end within {TIMEOUT_S:g} s")
            if (state := state_of(watched)) != before:
                first, last, before = now if first is None else first, now, state
            since = first if from_first else begin
            if due is not None and since is not None and now >= since + due[1]:
                send(process, due[0])
                due = None
            time.sleep(POLL_S)
        end = time.monotonic()
        reader.join(OUTLIVES_S)
        if reader.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            reader.join()
            raise CheckError(f"a process of it is alive {OUTLIVES_S:g} s after its end")
    first = begin if first is None else first
    text = "".join(output)
    return Ended(process.returncode, text, end - begin, first - begin, last - begin)


def send(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal as a terminal does, to the group; SIGKILL to all descendants too."""
    others = descendants_of(process.pid) if number == signal.SIGKILL else set()
    os.killpg(process.pid, number)
    for pid in others:  # torchrun's processes have groups of their own
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def descendants_of(pid: int) -> set[int]:
    """Return the running children of a process, theirs and so on."""
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        children = children_of(waiting.pop())
        found |= children
        waiting += children
    return found


def can_mount(folder: Path) -> bool:
    """Return whether a small file system can be mounted here, in a new namespace."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = f"mount -t tmpfs -o size=100k tmpfs {folder}"
    command = ["unshare", "-rm", "sh", "-c", mount]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def interrupt(
    place: Place, way: str, reference: Ended, written: Written, draws: random.Random
) -> Ended:
    """Run the command of a place, and interrupt it in one way."""
    line = place.command_line()
    match way:
        case "kill" | "Ctrl-C":
            number = SIGNALS[way]
            wrote = reference.last - reference.first
            if wrote > SHORT_S:
                return start(line, place.out, signal_at=(number, wrote * draws.random()))
            after = reference.last * draws.uniform(EARLIEST, 1.0)
            return start(line, place.out, signal_at=(number, after), from_first=False)
        case "full disk":
            return _start_on_full_disk(place, _pages(written.sizes) * draws.uniform(*SHARE))
        case _:
            limit = int(max(written.sizes) * draws.uniform(*SHARE))
            return start(line, place.out, preexec_fn=lambda: _limit_files(limit))


def _pages(sizes: Sequence[int]) -> int:
    """Return the number of pages that files take."""
    return sum(-(-size // PAGE) for size in sizes)


def _start_on_full_disk(place: Place, room: float) -> Ended:
    """Run a command whose folder has room for some pages; its content then is in the folder."""
    copy = place.out.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(place.out, copy)
    used = _pages([file.stat().st_size for file in copy.rglob("*") if file.is_file()])
    size = (used + int(room)) * PAGE
    script = (
        f'mount -t tmpfs -o size={size} tmpfs "$0" && cp -a "$1/." "$0" && shift && '
        f'{{ "$@"; code=$?; }}; rm -rf "{copy}" && cp -a "$0" "{copy}"; exit $code'
    )
    line = ["unshare", "-rm", "sh", "-c", script, str(place.out), str(copy)]
    ended = start([*line, *place.command_line()], place.out)
    shutil.rmtree(place.out)
    copy.rename(place.out)
    return ended


def _limit_files(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
