import math

import pytest
import torch
from helpers.tiny_training import tiny_batch, tiny_criterion, tiny_state, weights
from torch import Tensor

from deformable_detr.engine.schedule import StepSchedule
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.step import NonFiniteError
from deformable_detr.engine.train import train_step


def gradients(state: TrainState) -> Tensor:
    grads = [parameter.grad for parameter in state.model.parameters()]
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


@pytest.mark.parametrize("size", [1, 2])
def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(size: int) -> None:
    together, apart = tiny_state(dtype=torch.float64), tiny_state(dtype=torch.float64)
    image_ids, counts = [1, 2, 3, 4], [3, 0, 1, 2]
    whole = tiny_batch(image_ids, counts, dtype=torch.float64)
    pieces = [
        tiny_batch(image_ids[i : i + size], counts[i : i + size], dtype=torch.float64)
        for i in range(0, 4, size)
    ]
    values = train_step(together, [whole], tiny_criterion(), seed=0, max_grad_norm=0)
    parts = train_step(apart, pieces, tiny_criterion(), seed=0, max_grad_norm=0)
    difference = (gradients(together) - gradients(apart)).norm() / gradients(together).norm()
    assert difference < 1e-12
    for name, value in values.items():
        rtol = 1e-12 if value.dtype == torch.float64 else 1e-6  # metrics are in float32
        torch.testing.assert_close(parts[name], value, rtol=rtol, atol=0)
    assert 0 <= values["class_error"] <= 100  # a percentage, of however many images


def test_the_gradient_is_clipped_and_its_norm_before_that_is_reported() -> None:
    state = tiny_state()
    batch = tiny_batch([1, 2], [2, 1])
    values = train_step(state, [batch], tiny_criterion(), seed=0, max_grad_norm=0.1)
    assert values["grad_norm"] > 1
    assert gradients(state).norm().item() == pytest.approx(0.1, rel=1e-4)


def test_without_clipping_the_norm_is_still_the_two_norm() -> None:
    state = tiny_state()
    batch = tiny_batch([1, 2], [2, 1])
    values = train_step(state, [batch], tiny_criterion(), seed=0, max_grad_norm=0)
    assert gradients(state).norm().item() == pytest.approx(values["grad_norm"].item(), rel=1e-6)


def test_a_step_uses_the_learning_rate_of_its_schedule() -> None:
    state = tiny_state(schedule=StepSchedule(drop_steps=2, drop_factor=0.0), lr=0.1)
    batch = tiny_batch([1, 2], [2, 1])
    seen = []
    for _ in range(3):
        before = weights(state)
        train_step(state, [batch], tiny_criterion(), seed=0, max_grad_norm=0.1)
        seen.append(any(not a.equal(b) for a, b in zip(before, weights(state), strict=True)))
    assert seen == [True, True, False]


def test_dropout_depends_on_seed_and_step_only() -> None:
    def loss(seed: int, step: int, drawn_before: int) -> float:
        state = tiny_state(dropout=0.5)
        state.step = step
        torch.randn(drawn_before)
        batch = tiny_batch([1, 2], [2, 1])
        values = train_step(state, [batch], tiny_criterion(), seed=seed, max_grad_norm=0.1)
        return values["total"].item()

    assert loss(1, 5, 0) == loss(1, 5, 100)
    assert loss(1, 5, 0) != loss(2, 5, 0)
    assert loss(1, 5, 0) != loss(1, 6, 0)


def test_dropout_differs_between_the_micro_batches_of_a_step() -> None:
    state = tiny_state(dropout=0.5)
    drawn = []
    state.model.dropout.register_forward_hook(
        lambda module, inputs, output: drawn.append(output == 0)
    )
    batch = tiny_batch([1, 2], [2, 1])
    train_step(state, [batch, batch], tiny_criterion(), seed=0, max_grad_norm=0.1)
    assert not drawn[0].equal(drawn[1])


def test_a_step_without_any_object_has_a_finite_loss_and_trains_the_classes() -> None:
    state = tiny_state()
    values = train_step(
        state, [tiny_batch([1, 2], [0, 0])], tiny_criterion(), seed=0, max_grad_norm=0.1
    )
    assert values["total"].isfinite()
    assert state.model.class_head.weight.grad.abs().sum() > 0


def test_a_non_finite_loss_names_its_terms_and_changes_nothing() -> None:
    state = tiny_state()
    before = weights(state)
    batch = tiny_batch([1, 2], [0, 0])
    batch.images.images[0, 0, 0, 0] = math.nan
    with pytest.raises(
        NonFiniteError,
        match=r"the loss of step 0 must be finite, got rank 0: loss_class nan.*total nan",
    ):
        train_step(state, [batch], tiny_criterion(), seed=0, max_grad_norm=0.1)
    assert state.step == 0
    assert all(a.equal(b) for a, b in zip(before, weights(state), strict=True))


def test_predictions_that_cannot_be_matched_stop_the_run_with_the_matchers_message() -> None:
    batch = tiny_batch([1, 2], [1, 1])
    batch.images.images[1] = math.inf
    with pytest.raises(NonFiniteError, match="rank 0: predictions must be finite"):
        train_step(tiny_state(), [batch], tiny_criterion(), seed=0, max_grad_norm=0.1)


def test_a_non_finite_gradient_stops_the_run_and_changes_nothing() -> None:
    state = tiny_state()
    before = weights(state)
    batch = tiny_batch([1, 2], [1, 1])
    state.model.box_head.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteError, match="gradient of step 0 must be finite, got nan"):
        train_step(state, [batch], tiny_criterion(), seed=0, max_grad_norm=0.1)
    assert state.step == 0
    assert all(a.equal(b) for a, b in zip(before, weights(state), strict=True))


def test_a_step_updates_the_moving_average() -> None:
    state = tiny_state(ema_decay=0.5)
    assert state.ema is not None
    before = [parameter.clone() for parameter in state.ema.model.parameters()]
    train_step(state, [tiny_batch([1], [2])], tiny_criterion(), seed=0, max_grad_norm=0)
    after = list(state.ema.model.parameters())
    assert any(not old.equal(new) for old, new in zip(before, after, strict=True))
