"""Trackers of a run's records, whose errors never stop training, and callbacks."""

import importlib.util
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger(__name__)
Callback = Callable[[str, Mapping[str, Any]], None]  # kind of a record, and its values by name


class Tracker(Protocol):
    """Receiver of records: a kind, such as "train", and values by name, including `step`."""

    def __call__(self, kind: str, values: Mapping[str, Any]) -> None:
        """Write one record; it may raise any exception."""


class Tracking:
    """Distribution of records to trackers and callbacks.

    A tracker is disabled after its first error, with one warning. Errors of callbacks propagate.

    Attributes:
        callbacks: functions of the caller, called with each record after the trackers.
    """

    def __init__(self) -> None:
        self._trackers: dict[str, Tracker] = {}
        self.callbacks: list[Callback] = []

    def open(self, name: str, make: Callable[[], Tracker]) -> None:
        """Add the tracker that `make` creates; the warning names it by `name`."""

        def add() -> None:
            self._trackers[name] = make()

        self._try(name, add)

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Pass a record to every tracker that is not disabled, then to the callbacks."""
        for name, tracker in list(self._trackers.items()):
            self._try(name, partial(tracker, kind, values))
        for callback in self.callbacks:
            callback(kind, values)

    def close(self) -> None:
        """Close the trackers that have a `close` method, which writes their buffers."""
        for name, tracker in list(self._trackers.items()):
            self._try(name, getattr(tracker, "close", lambda: None))

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # of any kind: a lost record must not end the run
            self._trackers.pop(name, None)
            logger.warning(
                "%s is disabled after an error (%s: %s); training continues",
                name,
                type(error).__name__,
                error,
            )


def require_tensorboard() -> None:
    """Raise before training if TensorBoard could not write its first record.

    Raises:
        RuntimeError: TensorBoard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise RuntimeError(
            "train.tensorboard needs the package tensorboard, which is not installed; "
            'pip install "deformable-detr[tracking]", or leave it false: metrics.jsonl is '
            "written anyway"
        )


class TensorBoard:
    """Tracker that writes each number of a record to a curve named KIND/NAME.

    Args:
        folder: folder of the event files.
        first_step: values that an earlier part of the run wrote from this step on are hidden.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def __call__(self, kind: str, values: Mapping[str, Any]) -> None:
        """Write one record."""
        for name, value in values.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(f"{kind}/{name}", value, values["step"])

    def close(self) -> None:
        """Write the values that are still in memory."""
        self._writer.close()
