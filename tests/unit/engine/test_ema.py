import pytest
import torch
from torch import nn

from deformable_detr.engine.ema import ExponentialMovingAverage


def fill(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def test_a_warm_average_follows_the_closed_form() -> None:
    model = nn.Linear(2, 2).double()
    fill(model, 0.0)
    average = ExponentialMovingAverage(model, decay=0.9)
    fill(model, 1.0)
    for step in range(1000, 1005):
        average.update(model, step=step)
    torch.testing.assert_close(
        average.model.weight.detach(), torch.full((2, 2), 1 - 0.9**5, dtype=torch.float64)
    )


def test_the_decay_rises_to_its_limit() -> None:
    average = ExponentialMovingAverage(nn.Linear(1, 1), decay=0.99)
    assert average.decay_at(0) == pytest.approx(1 / 10)
    assert average.decay_at(8) == pytest.approx(9 / 18)
    assert average.decay_at(10_000) == 0.99


def test_an_early_average_forgets_the_initial_weights() -> None:
    model = nn.Linear(1, 1).double()
    fill(model, 0.0)
    average = ExponentialMovingAverage(model, decay=0.9999)
    expected = 0.0
    for step, value in enumerate((3.0, 1.0, 2.0)):
        fill(model, value)
        average.update(model, step=step)
        decay = (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * value
    assert average.model.bias.item() == pytest.approx(expected, rel=1e-12)


def test_statistics_are_averaged_and_counters_copied() -> None:
    model = nn.BatchNorm1d(2)
    average = ExponentialMovingAverage(model, decay=0.9)
    model(torch.randn(8, 2) + 5)
    model(torch.randn(8, 2) + 5)
    average.update(model, step=10_000)
    expected = 0.1 * model.running_mean
    torch.testing.assert_close(average.model.running_mean, expected)
    assert average.model.num_batches_tracked == 2


def test_the_average_is_a_separate_frozen_copy() -> None:
    model = nn.Linear(2, 2)
    average = ExponentialMovingAverage(model, decay=0.9)
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    before = average.model.weight.clone()
    fill(model, 7.0)
    assert average.model.weight.equal(before)
    assert model.weight.requires_grad


def test_a_saved_average_is_loaded() -> None:
    model = nn.Linear(2, 2)
    average = ExponentialMovingAverage(model, decay=0.9)
    saved = {name: value + 1 for name, value in model.state_dict().items()}
    average.load(saved)
    assert average.model.weight.equal(saved["weight"])


def test_a_decay_of_one_raises() -> None:
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1"):
        ExponentialMovingAverage(nn.Linear(1, 1), decay=1)
