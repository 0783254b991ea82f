"""Denoising in training steps: its noise and its losses, and other settings beside it."""

from typing import Any

import pytest
import torch
from helpers.models import DINO_PARTS, reduced_config, small_detector
from helpers.recipe import paper_groups
from helpers.tiny_training import CONSTANT, LABEL_SPACE, NUM_CLASSES, tiny_batch

from deformable_detr.builders import build_criterion
from deformable_detr.data.collate import Batch
from deformable_detr.engine.ema import ExponentialMovingAverage
from deformable_detr.engine.evaluate import validation_loss
from deformable_detr.engine.failures.replay import examine
from deformable_detr.engine.memory import warm_up
from deformable_detr.engine.optimizer import adamw
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.step import dropout_seed
from deformable_detr.engine.train import train_step
from deformable_detr.losses.criterion import SetCriterion

NO_DROPOUT = ("model.encoder.dropout=0", "model.decoder.dropout=0")
SETTINGS = (
    *DINO_PARTS,
    "model.denoising={num_queries: 6}",
    "model.backbone.freeze_up_to_stride=32",
    "model.encoder.num_layers=1",
    "model.decoder.num_layers=2",
)


def make_state(*overrides: str, **options: Any) -> TrainState:
    model = small_detector("two_stage", *SETTINGS, *overrides, num_classes=NUM_CLASSES).train()
    groups = paper_groups(model)
    return TrainState(model, adamw(groups), CONSTANT, label_space=LABEL_SPACE, config={}, **options)


def criterion_of(*overrides: str) -> SetCriterion:
    return build_criterion(reduced_config("deformable_detr_r50_two_stage", *SETTINGS, *overrides))


def batch_of(*counts: int) -> Batch:
    return tiny_batch(list(range(1, len(counts) + 1)), list(counts), size=64)


def step(state: TrainState, *batches: Batch, seed: int = 0) -> dict[str, float]:
    values = train_step(state, batches, criterion_of(), seed=seed, max_grad_norm=0)
    return {name: value.item() for name, value in values.items()}


def of_denoising(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name.startswith("denoising/")}


def test_noise_depends_on_the_seed_and_changes_no_other_loss() -> None:
    batches = (batch_of(2, 1), batch_of(3, 0))
    first, same, other = (step(make_state(*NO_DROPOUT), *batches, seed=s) for s in (0, 0, 1))
    assert first == same
    noisy = of_denoising(first)
    assert len(noisy) == 2 * 3
    for name, value in of_denoising(other).items():
        assert value != noisy[name], name
    ignored = {*noisy, "total", "grad_norm"}
    assert {n: v for n, v in first.items() if n not in ignored} == pytest.approx(
        {n: v for n, v in other.items() if n not in ignored}, rel=1e-5
    )


def test_steps_with_and_without_objects_have_the_same_losses() -> None:
    state = make_state()
    with_objects, without = step(state, batch_of(2, 0)), step(state, batch_of(0, 0))
    assert with_objects.keys() == without.keys()
    assert set(of_denoising(without).values()) == {0.0}


def test_a_replayed_step_has_the_same_noise() -> None:
    batch, state = batch_of(2, 1), make_state()
    model = state.model
    found = examine(
        model,
        criterion_of(),
        batch,
        num_boxes=3.0,
        dropout_seed=dropout_seed(5, 0, 0),
    )
    assert found.is_finite
    assert len(found.gradient_norms) == sum(p.requires_grad for p in model.parameters())
    assert found.gradient_norms["denoising.label_embed.weight"] > 0
    values = step(state, batch, seed=5)
    assert found.loss == values["total"]


def test_the_validation_loss_has_no_denoising() -> None:
    state = make_state()
    losses = validation_loss(
        state.model, [batch_of(2, 1)], criterion_of(), device=torch.device("cpu")
    )
    assert "encoder/loss_class" in losses
    assert of_denoising(losses) == {}
    assert state.model.training


def test_warm_up_has_as_many_noisy_queries_as_any_batch() -> None:
    state = make_state()
    seen: list[int] = []
    state.model.denoising.register_forward_hook(
        lambda module, inputs, noisy: seen.append(noisy.query.shape[1])
    )
    warm_up(state, criterion_of(), num_images=2, size=(64, 64))
    for counts in ((4, 2), (9, 1)):
        step(state, batch_of(*counts))
    assert seen == [12, 8, 12]


def test_every_other_setting_works_beside_it() -> None:
    others = (
        "model.mimicking={max_regions: 2, crop_size_px: 32}",
        "train.gradient_checkpointing=true",
    )
    state = make_state(*others, precision="bfloat16")
    model = state.model
    state.ema = ExponentialMovingAverage(model, decay=0.5)
    before = model.denoising.label_embed.weight.detach().clone()
    criterion = criterion_of(*others)
    warm_up(state, criterion, num_images=2, size=(64, 64))
    values = train_step(state, [batch_of(2, 1)], criterion, seed=0, max_grad_norm=0.1)
    assert all(value.isfinite() for value in values.values())
    assert {value.dtype for value in values.values()} == {torch.float32}
    assert {"loss_mimic", "denoising/loss_class", "encoder/loss_class"} <= values.keys()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    after = model.denoising.label_embed.weight
    averaged = state.ema.model.denoising.label_embed.weight
    assert not after.equal(before)
    assert not averaged.equal(before)
