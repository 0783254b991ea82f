"""CheckpointWriter: writes checkpoints to disk while training continues."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from deformable_detr.engine.checkpoints.checkpoint import Checkpoint, save_checkpoint


class CheckpointWriter:
    """Writer of checkpoints, in a thread of its own.

    It writes from a copy in the CPU's memory, as large as the checkpoint, which exists from `write`
    until the file is complete. One file is written at a time, so there is at most one copy. Use it
    as a context manager: at its end everything is on disk.
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
        """Start writing, once the previous file is complete; the state may change afterwards.

        The checkpoint that was written last is not written again.

        Args:
            path: see `save_checkpoint`.
            checkpoint: copied before this returns.
            previous: see `save_checkpoint`.

        Raises:
            RuntimeError: the previous file could not be written.
        """
        self.wait()
        newest = (path, checkpoint.step, checkpoint.evaluated)
        if newest == self._newest:
            return
        self._newest = newest
        copy = snapshot(checkpoint)
        self._writing = self._thread.submit(save_checkpoint, path, copy, previous=previous)

    def check(self) -> None:
        """Raise the error of the thread, if there is one so far; do not wait."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the file is on disk.

        Raises:
            RuntimeError: the file could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def snapshot(checkpoint: Checkpoint) -> Checkpoint:
    """Return a copy on the CPU that shares no memory with the state of training."""
    copies: dict[Any, Tensor] = {}  # a weight that has two names stays one tensor
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
