"""Run: what a training run on few images has measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

CALIBRATION_STEPS = 30
SKIPPED_STEPS = 10  # the first ones are slower


@dataclass(frozen=True)
class Run:
    """Result of a training run.

    Attributes:
        step_seconds: processor time per step, evaluations excluded.
        metrics: "AP", "AP50" and "AP75" on the validation set; empty where there was none.
    """

    step_seconds: float
    metrics: dict[str, float]


class DivergedError(RuntimeError):
    """The loss became infinite or NaN."""


class Trainer(Protocol):
    """Training of a detector."""

    def __call__(
        self, data: Path, settings: Sequence[str], *, seed: int, steps: int, folder: Path
    ) -> Run:
        """Train for a number of steps on one thread, and evaluate at the end.

        Args:
            data: folder for `train --data`, with a validation set.
            settings: KEY=VALUE, for the detector.
            seed: of weights, order and augmentation.
            steps: number of steps.
            folder: a new folder that the run may use.

        Raises:
            DivergedError: the loss became infinite or NaN.
        """
        ...


def seconds_per_step(marks: Sequence[tuple[int, float]]) -> float:
    """Compute the time per step from (step, time) in order, without the first steps."""
    later = [mark for mark in marks if mark[0] >= min(SKIPPED_STEPS, marks[-1][0] // 2)]
    (first, start), (last, end) = later[0], later[-1]
    return (end - start) / (last - first)


def steps_in(minutes: float, calibrate: Callable[[int], Run]) -> int:
    """Return how many steps take so many minutes of processor time."""
    return max(int(60 * minutes / calibrate(CALIBRATION_STEPS).step_seconds), SKIPPED_STEPS)
