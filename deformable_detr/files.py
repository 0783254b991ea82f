"""Checks of files that users name, and atomic writing of files."""

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deformable_detr.formats import kind_of_folder
from deformable_detr.messages import shown

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # pathlib makes one slash of two; not a drive
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def as_path(name: str, value: str | Path) -> Path:
    """Return a path that a user gave; raise for an empty one, which would be the current folder.

    Args:
        name: name of the argument in errors.
        value: the path.

    Raises:
        ValueError: `value` is "".
    """
    if not str(value):
        raise ValueError(f"{name} must be a path, got an empty text")
    return Path(value)


def require_regular_file(path: Path, what: str) -> None:
    """Raise unless there is a regular file; symbolic links are followed.

    Opening a named pipe or a device may never return.

    Args:
        path: path as the user gave it.
        what: name of the file in errors, as in "annotation file".

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: there is something else, or no file can have such a path.
    """
    place = f"{what} {shown(path)}"
    if _URL.match(str(path)):
        raise ValueError(f"{place} must be a path, got a URL; download the file first")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{place} must exist, found nothing there") from error
    except (OSError, ValueError) as error:  # of a path with a null byte, it is a ValueError
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"{place} must be a path of a file, got: {reason}") from error
    if not stat.S_ISREG(mode):
        is_folder = stat.S_ISDIR(mode)
        kind = kind_of_folder(path) if is_folder else _KINDS.get(stat.S_IFMT(mode), "another thing")
        raise ValueError(f"{place} must be a regular file, found {kind}")


def partial_path(path: Path) -> Path:
    """Return the temporary name of a file that is being written; a leftover is incomplete."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def write_whole(path: Path, *, previous: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` at the end of the block.

    At any moment `path` is a complete file: the old or the new one. If the block raises, the
    temporary file is deleted and the old file is kept.

    Args:
        path: path of a file, or of a folder that does not exist yet.
        previous: path to keep the old file at.

    Raises:
        OSError: the file could not be written.
    """
    temporary = partial_path(path)
    try:
        yield temporary
        if temporary.is_file():
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        temporary.replace(path)
    except BaseException:
        _delete(temporary)
        raise


def _keep(path: Path, previous: Path) -> None:
    """Keep the file at `path` under the name `previous`, before `path` is replaced."""
    previous.unlink(missing_ok=True)
    try:
        os.link(path, previous)
    except OSError:  # no hard links on this file system: `path` is missing for a moment
        path.replace(previous)


def _delete(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # a file that cannot be deleted stays
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
