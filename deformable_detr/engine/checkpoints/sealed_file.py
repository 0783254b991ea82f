"""File of tensors that is written atomically, and verified by its hash when it is read.

The file is a zip archive as written by `torch.save`, and can be read by `torch.load`. The archive's
comment, its last bytes, is the SHA-256 of all bytes before it.
"""

import hashlib
import itertools
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from deformable_detr.files import WriteError, require_regular_file, write_whole
from deformable_detr.files.torch_files import ZIP_MAGIC, load_torch_file
from deformable_detr.messages import in_brief, shown

HASH_LABEL = b"sha256:"
HASH_BYTES = len(HASH_LABEL) + 2 * hashlib.sha256().digest_size  # in hexadecimal digits
_END_MAGIC, _END_BYTES = b"PK\x05\x06", 22  # the end record of an archive without a comment
_COMMENT_SIZE = struct.Struct("<H")  # the last field of the end record
_CHUNK = 1 << 20
_SHOWN_KEYS = 3


def write_file(
    path: Path, content: object, *, previous: Path | None = None, noun: str = "checkpoint"
) -> None:
    """Write `content` atomically: at any moment `path` is the complete old or new file.

    Args:
        path: the file.
        content: tensors and plain values.
        previous: path at which the old file is kept, or None to discard it.
        noun: name of the kind of file in errors.

    Raises:
        RuntimeError: the file could not be written; the old one is untouched.
    """
    try:
        with write_whole(path, previous=previous) as temporary, temporary.open("w+b") as file:
            torch.save(content, file)
            _seal(file)
    except (OSError, RuntimeError) as error:
        reason = error.reason if isinstance(error, WriteError) else error
        raise RuntimeError(
            f"{noun} {shown(path)} could not be written ({reason}); what was there before is "
            "untouched; free space or choose another run folder"
        ) from error


def read_file(path: Path, *, noun: str = "checkpoint") -> Any:
    """Read the content onto the CPU; no code in the file is ever run.

    A file without a hash, as earlier versions wrote it, is read without this check.

    Args:
        path: the file.
        noun: name of the kind of file in errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is incomplete, was altered, or holds more than tensors and plain
            values, or asks for more memory than its own size.
    """
    if path.is_dir():
        raise ValueError(
            f"{noun} must be a file, got the folder {shown(path)}; "
            f"a run folder has {path / 'best.pth'} and {path / 'last.pth'}"
        )
    try:
        require_regular_file(path, noun)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{noun} {shown(path)} does not exist; check the path") from error
    require_unaltered(path, noun)
    return load_torch_file(path, f"{noun} {shown(path)}")


def outline(content: Any) -> str:
    """Return a short description of the content of a foreign file."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    names = ", ".join(in_brief(key) for key in itertools.islice(content, _SHOWN_KEYS))
    more = ", ..." if len(content) > _SHOWN_KEYS else ""
    return f"a dictionary of {len(content)} keys ({names}{more})"


def _seal(file: BinaryIO) -> None:
    """Append the hash of a whole archive as its comment."""
    file.seek(-_COMMENT_SIZE.size, os.SEEK_END)
    file.write(_COMMENT_SIZE.pack(HASH_BYTES))
    size = file.tell()
    file.seek(0)
    digest = _hash(file, size)
    file.seek(size)
    file.write(digest)


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal digits, read from its end.

    It is computed for a file without a hash, as earlier versions wrote it.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - HASH_BYTES))
        end = file.read()
        if not end.startswith(HASH_LABEL):
            file.seek(0)
            end = _hash(file, size)
    return end.removeprefix(HASH_LABEL).decode("ascii")


def is_sealed(path: Path) -> bool:
    """Return whether a file ends with a hash, which `read_file` compares with its content."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - HASH_BYTES))
        return file.read().startswith(HASH_LABEL)


def require_unaltered(path: Path, noun: str = "checkpoint") -> None:
    """Raise if the file is not an archive, or its content does not match the hash at its end.

    Raises:
        ValueError: it is not.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC and not zipfile.is_zipfile(path):
            raise ValueError(
                f"{noun} {shown(path)} is not a file that PyTorch wrote ({size} bytes)"
            )
        file.seek(max(0, size - HASH_BYTES))
        end = file.read()
        file.seek(0)
        is_sealed = end.startswith(HASH_LABEL)
        if is_sealed and _hash(file, size - HASH_BYTES) != end:
            raise ValueError(
                f"{noun} {shown(path)} has been altered since it was written: "
                "its content does not have the SHA-256 that it ends with"
            )
    has_no_comment = end[-_END_BYTES:].startswith(_END_MAGIC) and end.endswith(b"\0\0")
    if not is_sealed and not has_no_comment:
        raise ValueError(
            f"{noun} {shown(path)} is truncated, or its end has been altered ({size} bytes)"
        )


def _hash(file: BinaryIO, size: int) -> bytes:
    """Return the label and the SHA-256 of the next `size` bytes."""
    digest = hashlib.sha256()
    while size > 0:
        chunk = file.read(min(size, _CHUNK))
        digest.update(chunk)
        size -= len(chunk)
        if not chunk:
            break
    return HASH_LABEL + digest.hexdigest().encode("ascii")
