import math

import pytest

from deformable_detr.engine.schedule import CosineSchedule, StepSchedule


def test_the_paper_drops_once_at_epoch_forty_of_fifty() -> None:
    steps_per_epoch = 3
    schedule = StepSchedule(drop_steps=40 * steps_per_epoch)
    factors = [schedule(step) for step in range(50 * steps_per_epoch)]
    assert factors == pytest.approx([1.0] * 120 + [0.1] * 30)


def test_drops_multiply() -> None:
    schedule = StepSchedule(drop_steps=10, drop_factor=0.5)
    assert [schedule(step) for step in (9, 10, 19, 20, 30)] == [1.0, 0.5, 0.5, 0.25, 0.125]


def test_the_cosine_ends_at_zero() -> None:
    schedule = CosineSchedule(total_steps=8)
    expected = [0.5 + 0.5 * math.cos(math.pi * step / 8) for step in range(9)]
    assert [schedule(step) for step in range(9)] == pytest.approx(expected)
    assert schedule(0) == 1.0
    assert schedule(8) == schedule(20) == 0.0


@pytest.mark.parametrize(
    "schedule",
    [StepSchedule(drop_steps=100, warmup_steps=4), CosineSchedule(100, warmup_steps=4)],
)
def test_the_warm_up_rises_linearly_to_one(schedule: StepSchedule | CosineSchedule) -> None:
    assert [schedule(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_the_cosine_starts_after_the_warm_up() -> None:
    assert CosineSchedule(12, warmup_steps=4)(8) == pytest.approx(0.5)


def test_impossible_lengths_raise() -> None:
    with pytest.raises(ValueError, match="drop_steps must be at least 1, got 0"):
        StepSchedule(drop_steps=0)
    with pytest.raises(ValueError, match="warmup_steps must be at least 0, got -1"):
        CosineSchedule(10, warmup_steps=-1)
    with pytest.raises(ValueError, match="warmup_steps must be at least 0, got -1"):
        StepSchedule(10, warmup_steps=-1)
    with pytest.raises(ValueError, match="total_steps must be greater than warmup_steps 5, got 5"):
        CosineSchedule(5, warmup_steps=5)
