"""Files that are written whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def partial_path(path: Path) -> Path:
    """The temporary name of a file that is being written; one that stays was not finished."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def write_whole(path: Path, *, previous: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` at the end of the block.

    At any moment there is a whole file at `path`: the old one or the new one. Where the block
    raises, the temporary file is deleted and the old one is untouched.

    Args:
        path: of a file; or of a folder, which must not exist yet.
        previous: gets the file that `path` was until now.

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
    """Make `previous` another name of the file, as `path` is about to name the next one."""
    previous.unlink(missing_ok=True)
    try:
        os.link(path, previous)
    except OSError:  # a file system without hard links: for a moment nothing is at `path`
        path.replace(previous)


def _delete(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # where even that is refused it stays
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
