"""PartialResults: detections that a command has found so far, kept if it does not reach its end.

They are JSON lines beside the file that the command writes at its end. The first line has the
identity of the work, so that the same command continues; each other line has one image.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from deformable_detr import distributed
from deformable_detr.files import require_regular_file
from deformable_detr.messages import listed, shown
from deformable_detr.structures import Detections
from deformable_detr.version import __version__

logger = logging.getLogger(__name__)
Key = str | int  # of an image: its path or its id
_BEGIN = '{"partial_results": '  # of the first line
_CHUNK = 1 << 20


def partial_results_path(result: Path, rank: int = 0) -> Path:
    """Return the path of the partial results of one process, by the path of the final result."""
    return result.with_name(f"{result.name}.partial.{f'{rank}.' if rank else ''}jsonl")


def partial_results_files(result: Path) -> list[Path]:
    """List the existing files of partial results, of any process."""
    if not result.parent.is_dir():
        return []
    begin = f"{result.name}.partial."
    return sorted(
        file
        for file in result.parent.iterdir()
        if file.name.startswith(begin)
        and (file.name[len(begin) :] == "jsonl" or file.name[len(begin) : -6].isdigit())
        and file.name.endswith(".jsonl")
    )


def identity_of(
    model: nn.Module, files: Sequence[Path], annotations: Path | None, **settings: Any
) -> dict[str, Any]:
    """Return what detections depend on, in terms of JSON: weights, images, settings, versions.

    Args:
        model: the model, with its weights.
        files: the images; their content counts as changed if size or time of change is another.
        annotations: annotation file, or None.
        settings: settings that detections depend on, as a user knows them.
    """
    return {
        "checkpoint": _hash_of_model(model),
        "images": _hash(_describe_file(file) for file in files),
        "annotations": None if annotations is None else _hash(_chunks(annotations)),
        **settings,
        "version": f"{__version__}, PyTorch {torch.__version__}",
    }


class PartialResults:
    """Detections found so far; use it as a context manager around the work and its last write.

    If the block ends, the file is deleted. If it raises, the file stays, and the log names it.
    All images of a batch are kept or none: the others would form other batches when the work is
    continued, and the last bits of detections depend on the batch.

    Args:
        result: path of the file that the command writes at its end.
        identity: what the detections depend on, see `identity_of`.
        num_images: number of images of the work.
        usable: whether an image that is in a file need not be computed again.
        overwrite: delete a file of other work, or of another kind, that is in the way; None if
            the command has no such option, so that an error does not name it.
        inputs: files of the work, which are never deleted.

    Attributes:
        found: detections by image that were found before; those that this process has to add.
        done: all images found before, by any process.

    Raises:
        ValueError: there is a file of other work, or another kind of file in its place, without
            `overwrite`; or an input is in its place.
    """

    def __init__(
        self,
        result: Path,
        identity: Mapping[str, Any],
        *,
        num_images: int,
        usable: Callable[[Key], bool] = lambda _: True,
        overwrite: bool | None = None,
        inputs: Collection[Path] = (),
    ) -> None:
        self.path = partial_results_path(result, distributed.rank())
        self.found: dict[Key, Detections] = {}
        self._result, self._identity, self._num_images = result, dict(identity), num_images
        self._file: BinaryIO | None = None
        self._end = 0  # of the whole batches in this process's file
        in_the_way = []
        for path in partial_results_files(result):
            _require_no_input(path, inputs)
            try:
                batches, end = _read(path, self._identity)
            except _ForeignError as error:
                if not overwrite:
                    raise error.with_remedy(names_overwrite=overwrite is not None) from None
                in_the_way.append((path, error))
                continue
            if path == self.path:
                self._end = end
            for batch in batches:
                if all(map(usable, batch)):
                    self.found |= batch
        held = distributed.all_gather_objects(list(self.found))
        self.done = {key for keys in held for key in keys}
        for key in {key for keys in held[: distributed.rank()] for key in keys}:
            self.found.pop(key, None)
        self._count = len(self.done)
        # All processes have read all files. Each deletes its own, which it may open at any time.
        others = {partial_results_path(result, rank) for rank in range(len(held))} - {self.path}
        for path, reason in in_the_way:
            if path == self.path or (distributed.is_main() and path not in others):
                logger.warning("%s is deleted, as --overwrite says", reason.what)
                path.unlink(missing_ok=True)

    def __enter__(self) -> "PartialResults":
        if self.done and distributed.is_main():
            logger.info(
                "%d of %d images are taken over from %s",
                len(self.done),
                self._num_images,
                shown(partial_results_path(self._result)),
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
        if not distributed.is_main():
            return
        if error is None:
            for file in partial_results_files(self._result):
                file.unlink(missing_ok=True)
        elif self._count:
            logger.warning(
                "%d of %d images are kept in %s; the same command continues after them",
                self._count,
                self._num_images,
                shown(self.path),
            )

    def add(self, batch: Mapping[Any, Detections]) -> None:
        """Append the detections of a whole batch, by the key of the image.

        Raises:
            OSError: the file could not be written; what it held before can be read.
        """
        lines = [
            json.dumps(
                {
                    "image": key,
                    "left_in_batch": left,
                    "scores": one.scores.tolist(),
                    "labels": one.labels.tolist(),
                    "boxes_xyxy": one.boxes_xyxy.tolist(),
                },
                allow_nan=False,
            )
            for left, (key, one) in zip(reversed(range(len(batch))), batch.items(), strict=True)
        ]
        try:
            self._append("".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise OSError(
                f"{shown(self.path)} could not be written ({error.strerror}); what it held before "
                "can be read; free space, and the same command continues"
            ) from error
        self._count += len(batch)

    def _append(self, text: str) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)  # closing it writes nothing
            self._file.truncate(self._end)  # a line that was cut off
            if not self._end:
                text = f"{_BEGIN}{json.dumps(self._identity, allow_nan=False)}}}\n{text}"
        rest = memoryview(text.encode("ascii"))
        while rest:
            rest = rest[self._file.write(rest) :]


class _ForeignError(ValueError):
    """There is a file that this work must not continue.

    Args:
        what: the file, and what it is.
        remedy: what else to do than to delete it.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what, self._remedy = what, remedy

    def with_remedy(self, *, names_overwrite: bool) -> ValueError:
        """Return the error for the user."""
        delete = "give --overwrite to delete the file" if names_overwrite else "delete the file"
        return ValueError(f"{self.what}; {self._remedy}, {delete}, or choose another output")


def _require_no_input(path: Path, inputs: Iterable[Path]) -> None:
    for one in inputs:
        with suppress(FileNotFoundError):
            if path.samefile(one):
                raise ValueError(
                    f"{shown(path)} must not be an input, as it is written and deleted; choose "
                    "another output"
                )


def _read(path: Path, identity: Mapping[str, Any]) -> tuple[list[dict[Key, Detections]], int]:
    """Read the whole batches of a file, and the offset of their end.

    A last line that is cut off, and whatever follows a damaged one, is left out.
    """
    require_regular_file(path, "partial results")
    batches: list[dict[Key, Detections]] = []
    batch: dict[Key, Detections] = {}
    with path.open("rb") as file:
        header = file.readline()
        before = _identity_in(header, path)
        offset = end = len(header)
        for line in file:
            parsed = _parsed(line)
            if parsed is None:
                break
            key, left, batch[key] = parsed
            offset += len(line)
            if not left:
                batches.append(batch)
                batch, end = {}, offset
    if not batches or before is None:
        return [], 0
    if before != identity:
        names = {name for name in {**before, **identity} if before.get(name) != identity.get(name)}
        raise _ForeignError(
            f"{shown(path)} holds {sum(map(len, batches))} images of other work, which differs in "
            f"{listed(sorted(names))}",
            "repeat that command to finish it",
        )
    return batches, end


def _identity_in(header: bytes, path: Path) -> dict[str, Any] | None:
    """Return the identity in a first line; None if it was cut off."""
    begin = _BEGIN.encode("ascii")
    if not header.endswith(b"\n") and header[: len(begin)] == begin[: len(header)]:
        return None
    try:
        identity = json.loads(header)["partial_results"]
    except (ValueError, KeyError, TypeError, RecursionError):
        identity = None
    if not isinstance(identity, dict):
        raise _ForeignError(
            f"{shown(path)} must be partial results of this package, found another kind of file",
            "move it",
        )
    return identity


def _parsed(line: bytes) -> tuple[Key, int, Detections] | None:
    """Return image, number of images left in its batch, and detections; None if damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        content = json.loads(line)
        key, left = content["image"], content["left_in_batch"]
        detections = Detections(
            torch.tensor(content["scores"], dtype=torch.float32),
            torch.tensor(content["labels"], dtype=torch.int64),
            torch.tensor(content["boxes_xyxy"], dtype=torch.float32).view(-1, 4),
        )
    except (ValueError, KeyError, TypeError, RuntimeError, RecursionError):
        return None
    is_sound = type(key) in (str, int) and type(left) is int
    is_finite = detections.scores.isfinite().all() and detections.boxes_xyxy.isfinite().all()
    return (key, left, detections) if is_sound and is_finite else None


def _describe_file(file: Path) -> bytes:
    try:
        status = file.stat()
    except OSError:  # reading it will fail too
        return f"{file}\0".encode("utf-8", "surrogateescape")
    text = f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0"
    return text.encode("utf-8", "surrogateescape")


def _hash_of_model(model: nn.Module) -> str:
    """Return a hash of all weights, and of the numbers and switches of all modules."""
    return _hash(_parts(model))


def _parts(model: nn.Module) -> Iterator[bytes]:
    for name, module in model.named_modules():
        simple = {
            key: value
            for key, value in sorted(vars(module).items())
            if isinstance(value, bool | int | float | str) and key != "training"
        }
        yield f"{name} {type(module).__name__} {simple}".encode()
    for name, value in model.state_dict().items():
        yield f"{name} {value.dtype} {tuple(value.shape)}".encode()
        yield _bytes_of(value)


def _bytes_of(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
