"""Where a run's records go; whatever goes wrong there never stops training."""

import importlib.util
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger(__name__)
Callback = Callable[[str, Mapping[str, Any]], None]  # kind of a record, and its values by name


class Tracker(Protocol):
    """Takes records: "train" or "evaluation", and values by name, `step` among them."""

    def __call__(self, kind: str, values: Mapping[str, Any]) -> None:
        """Write one record, or raise whatever it likes."""


class Tracking:
    """Hands records to trackers and callbacks.

    A tracker is disabled after its first error, with one warning. What a callback raises is raised.

    Attributes:
        callbacks: functions of the caller, called with each record after the trackers.
    """

    def __init__(self) -> None:
        self._trackers: dict[str, Tracker] = {}
        self.callbacks: list[Callback] = []

    def open(self, name: str, make: Callable[[], Tracker]) -> None:
        """Begin to hand records to the tracker that `make` makes; `name` is for the warning."""

        def add() -> None:
            self._trackers[name] = make()

        self._try(name, add)

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Hand a record to every tracker that has not failed yet."""
        for name, tracker in list(self._trackers.items()):
            self._try(name, partial(tracker, kind, values))
        for callback in self.callbacks:
            callback(kind, values)

    def close(self) -> None:
        """Let trackers that keep anything back write it."""
        for name, tracker in list(self._trackers.items()):
            self._try(name, getattr(tracker, "close", lambda: None))

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # of any kind: records are worth less than the run
            self._trackers.pop(name, None)
            logger.warning(
                "%s is off from here on, as it has failed (%s: %s); training goes on",
                name,
                type(error).__name__,
                error,
            )


def require_tensorboard() -> None:
    """Refuse, before training, what would fail at its first record.

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
    """Every number of a record as a curve named KIND/NAME.

    Args:
        folder: gets the event files.
        first_step: what an earlier part of the run has written from here on is not shown.
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
        """Write what is still in memory."""
        self._writer.close()
