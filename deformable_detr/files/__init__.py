"""Checks of files that users name, and atomic writing of files."""

import contextlib
import hashlib
import io
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deformable_detr.files.formats import kind_of_folder
from deformable_detr.messages import in_brief, shown

if TYPE_CHECKING:
    from PIL import Image

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # pathlib makes one slash of two; not a drive
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_LONGEST_NAME = 240  # bytes of a temporary name; most file systems allow 255
_JPEG_SUFFIXES = (".jpg", ".jpeg")
_FOREIGN_CODE = re.compile(r"\(os error (\d+)\)")  # how errors of Rust, as in safetensors, end


class WriteError(OSError):
    """Error of a file that could not be written; what was there before is untouched.

    Attributes:
        reason: what the system said, such as "No space left on device".
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


def as_path(name: str, value: str | Path) -> Path:
    """Return a path that a user gave; raise for an empty one, which would be the current folder.

    Args:
        name: name of the argument in errors.
        value: the path.

    Raises:
        ValueError: `value` is "", or neither a text nor a path.
    """
    if not isinstance(value, str | Path):
        raise ValueError(f"{name} must be a path, got {in_brief(value)}")
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


def is_utf8(path: str | Path) -> bool:
    """Return whether a path is valid UTF-8; libraries that are not of Python open no other one."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def partial_path(path: Path) -> Path:
    """Return the temporary name of a file that is being written; a leftover is incomplete."""
    name = f".{path.name}.partial"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}.partial"
    return path.with_name(name)


@contextmanager
def write_whole(path: Path, *, previous: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` at the end of the block.

    At any moment `path` is a complete file: the old or the new one. If the block raises, the
    temporary file is deleted and the old file is kept. A symbolic link at `path` is replaced; the
    file that it leads to is not touched.

    Args:
        path: path of a file, or of a folder that does not exist yet.
        previous: path to keep the old file at.

    Raises:
        WriteError: the file could not be written.
    """
    temporary = partial_path(path)
    try:
        delete(temporary)
        yield temporary
        if temporary.is_file():
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        temporary.replace(path)
    except BaseException as error:
        delete(temporary)
        reason = _reason(error)
        if reason is None:
            raise
        raise WriteError(
            f"{shown(path)} could not be written ({reason}); what was there before is untouched; "
            "free space or choose another place",
            reason,
        ) from error


def encoded(image: "Image.Image", name: str, *, quality: int = 75) -> bytes:
    """Encode an image for a file: as JPEG if the name has a suffix of JPEG, else as PNG.

    In memory, as Pillow's own errors on a full disk do not say that it is full.

    Args:
        image: the image.
        name: name of the file.
        quality: quality of a JPEG file, in [1, 100].
    """
    data = io.BytesIO()
    if name.lower().endswith(_JPEG_SUFFIXES):
        image.save(data, "JPEG", quality=quality)
    else:
        image.save(data, "PNG")
    return data.getvalue()


def _reason(error: BaseException) -> str | None:
    """Return what the system said about a failed write; None for another kind of error.

    PyTorch and safetensors wrap the system's error in errors of their own.
    """
    seen: BaseException | None = error
    while isinstance(seen, Exception):
        if isinstance(seen, WriteError) and seen.reason:
            return seen.reason
        if isinstance(seen, OSError):
            return seen.strerror or str(seen) or type(seen).__name__
        if code := _FOREIGN_CODE.search(str(seen)):
            return os.strerror(int(code[1]))
        if not isinstance(seen, RuntimeError):
            return None
        seen = seen.__cause__ or seen.__context__
    return None


def _keep(path: Path, previous: Path) -> None:
    """Keep the file at `path` under the name `previous`, before `path` is replaced."""
    previous.unlink(missing_ok=True)
    try:
        os.link(path, previous)
    except OSError:  # no hard links on this file system: `path` is missing for a moment
        path.replace(previous)


def delete(temporary: Path) -> None:
    """Delete a file, or a folder with its content; what cannot be deleted stays."""
    with contextlib.suppress(OSError, ValueError):
        if temporary.is_dir() and not temporary.is_symlink():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
