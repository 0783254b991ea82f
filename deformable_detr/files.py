"""Atomic writing of files."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
