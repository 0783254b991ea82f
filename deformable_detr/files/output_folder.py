"""Folders that commands write into: what may be replaced there, and a manifest of their files.

A file that is on the manifest and has not changed since is replaced. Any other file is replaced
with `overwrite` only. Inputs of the command are never replaced.
"""

import errno
import hashlib
import json
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from deformable_detr.files import write_whole
from deformable_detr.messages import listed, shown

MANIFEST = ".deformable_detr.jsonl"
_CHUNK = 1 << 20
_FEW_LINES = 1000  # up to which a manifest is not shortened
_State = tuple[int, int, int, int]  # of a file: device, inode, size, time of the last change
_Content = tuple[int, str]  # size and SHA-256
logger = logging.getLogger(__name__)


class OutputFolder:
    """Folder that one command writes files into.

    The manifest has one JSON record per line: name, size and SHA-256 of a file. A line is added
    before the file is renamed to its name, so that a process that is killed leaves no file of ours
    without one. Of several lines of a name, each counts.

    Args:
        path: the folder; created at the first `write`.
        argument: name of the argument, for errors.
        overwrite: replace files that are not on the manifest, or have changed; None if the command
            has no such option, so that an error does not name it.

    Raises:
        ValueError: there cannot be such a folder, or it cannot be written to.
    """

    def __init__(self, path: Path, argument: str, *, overwrite: bool | None = False) -> None:
        require_folder_place(argument, path)
        self.path = path
        self._argument = argument
        self._overwrite = overwrite
        self._found: dict[str, _State | None] = {}
        self._contents: dict[str, list[_Content]] | None = None  # for `holds`
        self._has_written = False

    def check(self, names: Iterable[str], *, inputs: Iterable[Path] = ()) -> None:
        """Raise if a file must not be written; call it before the work, or again with more names.

        Args:
            names: names of the files to write.
            inputs: files that the command reads; of a folder, the files in it. Missing ones are
                passed over.

        Raises:
            ValueError: a name is that of an input, of a folder, of a device, or of a file that
                needs `overwrite`.
        """
        found = {name: self._state(name) for name in (MANIFEST, *names)}
        existing = [name for name, state in found.items() if state is not None]
        if existing:
            protected = _identities(inputs)
            for name in existing:
                self._require_replaceable(self.path / name, protected)
            known = self._known()  # opened only now: it may have been a named pipe
            foreign = [
                name
                for name in existing
                if name != MANIFEST and not self._is_ours(self.path / name, known)
            ]
            if foreign and not self._overwrite:
                self._refuse(foreign, known)
        self._found |= found

    def holds(self, name: str) -> bool:
        """Return whether a file is there, on the manifest and unchanged."""
        if self._contents is None:
            self._contents = self._known()
        return self._state(name) is not None and self._is_ours(self.path / name, self._contents)

    def write(self, name: str, write: Callable[[Path], object]) -> Path:
        """Write a file whole, and return its path.

        If another program has put something there since `check`, the file gets another name, and
        a warning says so: the result of long work is not lost.

        Args:
            name: name of the file.
            write: function that writes the content to the path that it is given.

        Raises:
            WriteError: the file could not be written.
        """
        path = self.path / self._free_name(name)
        created = [one for one in (self.path, *self.path.parents) if not one.exists()]
        try:
            with write_whole(path) as temporary:
                self.path.mkdir(parents=True, exist_ok=True)
                write(temporary)
                self._record(path.name, temporary)
        except BaseException:
            for folder in created:
                with suppress(OSError):  # it does not exist, or is not empty
                    folder.rmdir()
            raise
        self._found[path.name] = self._state(path.name)
        return path

    def _require_replaceable(self, path: Path, protected: set[tuple[int, int]]) -> None:
        """Raise if nothing may replace what is at `path`, with or without `overwrite`."""
        place = f"{self._argument} must not replace"
        try:
            status = path.stat()
        except OSError:  # a link that leads nowhere
            status = path.lstat()
        if (status.st_dev, status.st_ino) in protected:
            raise ValueError(f"{place} an input, got {shown(path)}; choose another place")
        if not stat.S_ISREG(status.st_mode) and not path.is_symlink():
            kind = "a folder" if path.is_dir() else "no regular file"
            raise ValueError(f"{place} {shown(path)}, which is {kind}; choose another place")
        if path.name == MANIFEST and path.is_symlink():
            raise ValueError(f"{shown(path)} must be a regular file, got a link; remove it")

    def _is_ours(self, path: Path, known: dict[str, list[_Content]]) -> bool:
        """Return whether `path` is a file that we have written, unchanged."""
        contents = known.get(path.name, [])
        if path.is_symlink() or not any(size == path.stat().st_size for size, _ in contents):
            return False
        return _content(path) in contents

    def _refuse(self, names: list[str], known: dict[str, list[_Content]]) -> None:
        edited = [name for name in names if name in known]
        why = "changed since deformable-detr wrote it" if edited else "not of deformable-detr"
        files = listed([self.path / name for name in edited or names])
        what = "it" if len(names) == 1 else f"{len(names)} such files"
        remedy = "remove" if self._overwrite is None else "give --overwrite to replace"
        raise ValueError(
            f"{self._argument} must not replace {files} ({why}); {remedy} {what}, or choose "
            "another place"
        )

    def _free_name(self, name: str) -> str:
        """Return the name, or another one if something has appeared there since `check`."""
        state = self._state(name)
        if state is None or state == self._found.get(name):
            return name
        if self._overwrite and not (self.path / name).is_dir():
            return name
        stem, suffix = Path(name).stem, Path(name).suffix
        number = 2
        while self._state(f"{stem}_{number}{suffix}") is not None:
            number += 1
        other = f"{stem}_{number}{suffix}"
        logger.warning(
            "%s has appeared or changed since the start, and is kept; the new file is %s",
            shown(self.path / name),
            shown(self.path / other),
        )
        return other

    def _state(self, name: str) -> _State | None:
        """Return the state of what has a name, links not followed; None if there is nothing."""
        path = self.path / name
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:  # of a path with a null byte, it is a ValueError
            raise ValueError(
                f"{self._argument} must be a place for {shown(path)}, got: {_said(error)}"
            ) from error
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def _known(self) -> dict[str, list[_Content]]:
        """Read the manifest; lines that are no records are passed over."""
        known: dict[str, list[_Content]] = {}
        with suppress(FileNotFoundError), (self.path / MANIFEST).open("rb") as file:
            for line in file:
                with suppress(ValueError, TypeError, KeyError, RecursionError):
                    record = json.loads(line)
                    known.setdefault(str(record["name"]), []).append(
                        (int(record["size"]), str(record["sha256"]))
                    )
        return known

    def _record(self, name: str, file: Path) -> None:
        """Add a file that will have this name to the manifest."""
        if not self._has_written:
            self._shorten()
            self._has_written = True
        manifest = self.path / MANIFEST
        line = _line(name, _content(file))
        # Not through a link that has appeared since `check`.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(manifest, flags, 0o666), "ab", buffering=0) as target:
            size = os.fstat(target.fileno()).st_size
            if target.write(line) < len(line):  # the disk is nearly full
                target.truncate(size)  # no part of a line
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _shorten(self) -> None:
        """Keep the last two lines of each name, if there are many more than names."""
        known = self._known()
        num_lines = sum(map(len, known.values()))
        if num_lines > max(_FEW_LINES, 4 * len(known)):
            with write_whole(self.path / MANIFEST) as temporary:
                temporary.write_bytes(
                    b"".join(_line(name, one) for name, all_ in known.items() for one in all_[-2:])
                )


class OutputFile:
    """Single file that a command writes, on the manifest of its folder; see `OutputFolder`.

    Args:
        path: the file.
        argument: name of the argument, for errors.
        overwrite: as for `OutputFolder`.

    Raises:
        ValueError: there cannot be such a file, or its folder cannot be written to.
    """

    def __init__(self, path: Path, argument: str, *, overwrite: bool | None = False) -> None:
        require_file_place(argument, path)
        self.path = path
        self._name = path.name
        self._folder = OutputFolder(path.parent, argument, overwrite=overwrite)

    def check(self, *, inputs: Iterable[Path] = ()) -> None:
        """Raise if the file must not be written, as `OutputFolder.check` does."""
        self._folder.check([self._name], inputs=inputs)

    def write(self, write: Callable[[Path], object]) -> Path:
        """Write the file whole, and return its path, as `OutputFolder.write` does."""
        return self._folder.write(self._name, write)


def require_folder_place(name: str, folder: Path) -> None:
    """Raise if files cannot be written to `folder`; tried with a temporary file.

    Args:
        name: name of the argument, for the error.
        folder: folder to write to; it need not exist.

    Raises:
        ValueError: `folder` or one of its parents is a file, or the system refuses.
    """
    place = f"{name} must be a folder, or a path where one can be created, got {shown(folder)}"
    nearest = next(one for one in (folder, *folder.parents, Path()) if os.path.lexists(one))
    if not _is_folder(nearest):
        raise ValueError(f"{place}, where {shown(nearest)} is a file; choose another path")
    try:
        _require_short_names(folder, nearest)
        with tempfile.NamedTemporaryFile(dir=nearest, prefix=".deformable_detr_"):
            pass
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{place}, where nothing can be written ({_said(error)}); choose another path"
        ) from error


def require_file_place(name: str, file: Path) -> None:
    """Raise if `file` cannot be written; tried with a temporary file in its folder.

    Args:
        name: name of the argument, for the error.
        file: file to write.

    Raises:
        ValueError: `file` is a directory, or `require_folder_place` of its parent raises.
    """
    if _is_folder(file):
        raise ValueError(f"{name} must be a file, got the folder {shown(file)}; name a file in it")
    require_folder_place(name, file.parent)


def _require_short_names(folder: Path, nearest: Path) -> None:
    """Raise the system's error if a folder to create has too long a name, or a null byte."""
    missing = folder
    while missing != nearest:
        with suppress(FileNotFoundError):
            (nearest / missing.name).lstat()
        missing = missing.parent


def _is_folder(path: Path) -> bool:
    with suppress(OSError, ValueError):  # no path of this system
        return path.is_dir()
    return False


def _identities(paths: Iterable[Path]) -> set[tuple[int, int]]:
    """Return device and inode of each file: equal for links and other spellings of its path."""
    found = set()
    for path in paths:
        with suppress(OSError, ValueError):
            for one in path.iterdir() if path.is_dir() else (path,):
                status = one.stat()
                found.add((status.st_dev, status.st_ino))
    return found


def _content(file: Path) -> _Content:
    """Return size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as source:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _line(name: str, content: _Content) -> bytes:
    size, sha256 = content
    record = {"name": name, "size": size, "sha256": sha256}
    return json.dumps(record, allow_nan=False).encode("ascii") + b"\n"


def _said(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
