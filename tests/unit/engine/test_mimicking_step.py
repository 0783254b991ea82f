"""Feature mimicking in training: its losses are added to the total; inference does not run it."""

from pathlib import Path

import pytest
import torch
from helpers.models import small_detector
from helpers.recipe import criterion_for, paper_groups
from helpers.tiny_training import CONSTANT, LABEL_SPACE, NUM_CLASSES, tiny_batch
from torch import nn

from deformable_detr import export_weights, import_weights
from deformable_detr.config import ConfigError
from deformable_detr.config.loading import load_config
from deformable_detr.engine.optimizer import adamw
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.train import train_step
from deformable_detr.models.deformable_detr import DeformableDETR

MIMICKING = "model.mimicking={max_regions: 2, crop_size_px: 32}"


def detector(*overrides: str) -> DeformableDETR:
    return small_detector("multi_scale", *overrides, num_classes=NUM_CLASSES)


def step(model: DeformableDETR, *counts: int) -> dict[str, float]:
    """Return the losses of one step on images with `counts` objects, one image per micro-batch."""
    state = TrainState(
        model, adamw(paper_groups(model)), CONSTANT, label_space=LABEL_SPACE, config={}
    )
    model.train()
    batches = [tiny_batch([index + 1], [count], size=64) for index, count in enumerate(counts)]
    values = train_step(state, batches, criterion_for(model), seed=0, max_grad_norm=0)
    return {name: float(value) for name, value in values.items()}


def test_mimicking_losses_are_added_to_the_total_with_their_weight() -> None:
    plain, mimicking = step(detector(), 3, 1), step(detector(MIMICKING), 3, 1)
    added = {"loss_mimic", "loss_mimic_class"}
    assert mimicking.keys() - plain.keys() == added
    assert 0 < mimicking["loss_mimic"] < 2
    # Both have the same initial weights, as those of mimicking are drawn last.
    expected = plain["total"] + 0.1 * sum(mimicking[name] for name in added)
    assert mimicking["total"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("counts", [(3, 1), (0, 2), (0, 0)])
def test_every_parameter_has_a_gradient(counts: tuple[int, ...]) -> None:
    model = detector(MIMICKING)
    step(model, *counts)
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    moved = sum(float(p.grad.abs().sum()) for p in model.mimicking.parameters())
    assert (moved > 0) == any(counts)


def test_mimicking_does_not_run_at_inference() -> None:
    model = detector(MIMICKING).eval()
    called = []
    model.mimicking.register_forward_hook(lambda *arguments: called.append(1))
    with torch.no_grad():
        model([torch.randn(3, 64, 64)])
    assert called == []


def test_other_formats_neither_contain_nor_require_mimicking() -> None:
    model, plain = detector(MIMICKING), detector()
    state = {name: t.clone() for name, t in export_weights(model, to="official").items()}
    assert state.keys() == export_weights(plain, to="official").keys()
    nn.init.zeros_(model.decoder.layers[0].linear1.weight)
    import_weights(model, state)
    assert model.decoder.layers[0].linear1.weight.any()
    assert any(name.startswith("mimicking.") for name in export_weights(model, to="native"))


def test_trainable_batch_norm_raises() -> None:
    with pytest.raises(
        ConfigError, match=r"backbone\.norm must be frozen_batch_norm with mimicking"
    ):
        load_config("deformable_detr_r50", [MIMICKING, "model.backbone.norm=batch_norm"])


def test_the_mimicking_config_enables_it_and_quickstart_does_not(tmp_path: Path) -> None:
    assert load_config("mimicking").model.mimicking is not None
    assert load_config("quickstart").model.mimicking is None
