"""CheckpointWriter: puts checkpoints on disk while training goes on."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from deformable_detr.engine.checkpoints.checkpoint import Checkpoint, save_checkpoint


class CheckpointWriter:
    """Writes in a thread of its own what a run was between two steps.

    The copy that it writes from is as large as the checkpoint and is in the CPU's memory, from
    `write` until the file is there; as one file is written at a time, there never is another.
    Used as a context: at its end everything is on disk.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._newest: tuple[Path, int, int | None] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def write(self, path: Path, checkpoint: Checkpoint, *, previous: Path | None = None) -> None:
        """Start to write, after the file before is done; the state may change once this returns.

        What was written last is not written again.

        Args:
            path: as for `save_checkpoint`.
            checkpoint: is copied.
            previous: as for `save_checkpoint`.

        Raises:
            RuntimeError: the file before could not be written.
        """
        self.wait()
        newest = (path, checkpoint.step, checkpoint.evaluated)
        if newest == self._newest:
            return
        self._newest = newest
        copy = snapshot(checkpoint)
        self._writing = self._thread.submit(save_checkpoint, path, copy, previous=previous)

    def check(self) -> None:
        """Raise what went wrong in the thread, if anything has so far; does not wait."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Return when the file is on disk.

        Raises:
            RuntimeError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def snapshot(checkpoint: Checkpoint) -> Checkpoint:
    """A copy on the CPU that shares no memory with what training goes on to change."""
    copies: dict[Any, Tensor] = {}  # weights that have two names stay one tensor
    values = {field.name: getattr(checkpoint, field.name) for field in fields(Checkpoint)}
    return Checkpoint(**{name: _copied(value, copies) for name, value in values.items()})


def _copied(value: Any, copies: dict[Any, Tensor]) -> Any:
    match value:
        case Tensor():
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            if key not in copies or not value.numel():
                copies[key] = value.detach().to("cpu", copy=True)
            return copies[key]
        case dict():
            return {name: _copied(part, copies) for name, part in value.items()}
        case list():
            return [_copied(part, copies) for part in value]
        case _:
            return value
