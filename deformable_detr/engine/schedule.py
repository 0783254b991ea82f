"""Learning rate schedules: the factor on every initial learning rate, as a function of the step.

They have no state, so a resumed run needs nothing but its step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]  # steps taken so far -> factor for the next one

DROP_FACTOR = 0.1  # official recipe


def _require_at_least(minimum: int, **values: int) -> None:
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def _warmup(step: int, warmup_steps: int) -> float:
    """Return a linear factor that reaches 1 at the last warm-up step."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


@dataclass(frozen=True)
class StepSchedule:
    """Step decay: a linear warm-up, and a multiplication by `drop_factor` every `drop_steps`.

    Attributes:
        drop_steps: steps between two drops.
        drop_factor: factor of one drop.
        warmup_steps: steps in which the factor rises linearly at first.
    """

    drop_steps: int
    drop_factor: float = DROP_FACTOR
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _require_at_least(1, drop_steps=self.drop_steps)
        _require_at_least(0, warmup_steps=self.warmup_steps)

    def __call__(self, step: int) -> float:
        """Return the factor for the step that follows `step` earlier ones."""
        drops = step // self.drop_steps
        return float(_warmup(step, self.warmup_steps) * self.drop_factor**drops)


@dataclass(frozen=True)
class CosineSchedule:
    """Linear warm-up, followed by half a cosine down to zero.

    Attributes:
        total_steps: step at which the factor reaches zero.
        warmup_steps: steps in which the factor rises linearly at first.
    """

    total_steps: int
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _require_at_least(0, warmup_steps=self.warmup_steps)
        if self.total_steps <= self.warmup_steps:
            raise ValueError(
                f"total_steps must be greater than warmup_steps {self.warmup_steps}, "
                f"got {self.total_steps}; train longer (train.epochs, train.max_steps, "
                "data.repeats) or shorten the warm-up (train.schedule.warmup_steps)"
            )

    def __call__(self, step: int) -> float:
        """Return the factor for the step that follows `step` earlier ones."""
        if step < self.warmup_steps:
            return _warmup(step, self.warmup_steps)
        done = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
