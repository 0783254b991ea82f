"""Mixed precision: the parts in low precision, the parts in float32, and overflow in float16."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.coco_files import write_coco_set
from helpers.models import DINO_PARTS, VARIANTS, small_detector
from helpers.recipe import criterion_for, paper_groups
from helpers.tiny_training import (
    CONSTANT,
    LABEL_SPACE,
    NUM_CLASSES,
    tiny_batch,
    tiny_criterion,
    tiny_state,
)
from torch import Tensor, nn

from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from deformable_detr.engine.evaluate import evaluate
from deformable_detr.engine.optimizer import adamw
from deformable_detr.engine.precision import Precision, autocast
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.step import NonFiniteError
from deformable_detr.engine.train import train_step
from deformable_detr.evaluation.coco_eval import CocoEvaluator
from deformable_detr.ground_truth import read_ground_truth
from deformable_detr.layers import attention
from deformable_detr.models.heads import BoxHead
from deformable_detr.models.queries import LearnedQueries
from deformable_detr.structures import ModelOutput

CPU = torch.device("cpu")
DTYPES: dict[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
MIMICKING = "model.mimicking={max_regions: 2, crop_size_px: 32}"
CATEGORIES = dict(zip(LABEL_SPACE.category_ids, LABEL_SPACE.names, strict=True))


def detector_state(variant: str, *overrides: str, precision: Precision) -> TrainState:
    model = small_detector(variant, *overrides, num_classes=NUM_CLASSES).train()
    return TrainState(
        model,
        adamw(paper_groups(model)),
        CONSTANT,
        label_space=LABEL_SPACE,
        config={},
        precision=precision,
    )


def weights(state: TrainState) -> list[Tensor]:
    return [value.clone() for value in state.model.state_dict().values()]


@pytest.mark.parametrize(
    ("variant", "precision"),
    # float16 is slow on a CPU
    [*((variant, "bfloat16") for variant in (*VARIANTS, "dino")), ("two_stage", "float16")],
)
def test_coordinates_boxes_and_losses_are_in_float32(
    variant: str, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = (*DINO_PARTS, "model.denoising={num_queries: 4}") if variant == "dino" else ()
    state = detector_state("two_stage" if parts else variant, *parts, precision=precision)
    outputs: list[ModelOutput] = []
    state.model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    calls: list[tuple[Tensor, ...]] = []
    operator = attention.ms_deform_attn_fused

    def record(value: Tensor, shapes: Any, *others: Tensor, **options: Any) -> Tensor:
        calls.append((value, *others))
        return operator(value, shapes, *others, **options)

    monkeypatch.setattr(attention, "ms_deform_attn_fused", record)
    values = train_step(
        state, [tiny_batch([1, 2], [2, 3], size=64)], tiny_criterion(), seed=0, max_grad_norm=0.1
    )

    assert {value.dtype for value in values.values()} == {torch.float32}
    output = outputs[0]
    predictions = [output.last, *output.auxiliary, *([output.encoder] if output.encoder else [])]
    predictions += output.denoised.layers if output.denoised else ()
    assert {one.boxes.dtype for one in predictions} == {torch.float32}
    assert {one.logits.dtype for one in predictions} == {DTYPES[precision]}  # autocast is on
    assert {value.dtype for value, *_ in calls} == {DTYPES[precision]}
    assert {tensor.dtype for _, *others in calls for tensor in others} == {torch.float32}
    assert {parameter.dtype for parameter in state.model.parameters()} == {torch.float32}


def test_mimicking_uses_the_same_autocast() -> None:
    state = detector_state("multi_scale", MIMICKING, precision="bfloat16")
    seen = []
    mimicking = state.model.mimicking
    assert isinstance(mimicking, nn.Module)
    mimicking.register_forward_hook(lambda module, inputs, output: seen.append(output))
    batch = tiny_batch([1, 2], [2, 3], size=64)
    values = train_step(state, [batch], criterion_for(state.model), seed=0, max_grad_norm=0.1)
    assert seen[0].teacher.dtype == torch.bfloat16
    assert values["loss_mimic"].dtype == torch.float32


def test_box_heads_and_reference_points_are_bitwise_those_of_float32() -> None:
    head = BoxHead(32)
    nn.init.normal_(head.output.weight)
    queries = LearnedQueries(7, 32)
    features = torch.randn(2, 7, 32)
    memory = _memory_of(features)
    with autocast("bfloat16", CPU):
        boxes = head(features)
        points = queries(memory)[0].reference_points
        rounded = head.mlp(features)
    assert boxes.equal(head(features))
    assert points.equal(queries(memory)[0].reference_points)
    assert not rounded.float().equal(boxes)


def _memory_of(tokens: Tensor) -> Any:
    class _Memory:
        pass

    memory = _Memory()
    memory.tokens = tokens  # type: ignore[attr-defined]
    return memory


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_losses_of_low_precision_predictions_are_those_of_the_same_values_in_float32(
    dtype: torch.dtype,
) -> None:
    batch = tiny_batch([1, 2], [2, 3])
    state = tiny_state()
    with torch.autocast("cpu", dtype):
        narrow = state.model(batch.images)
    assert narrow.last.boxes.dtype == dtype
    wide = ModelOutput(_widened(narrow.last), tuple(map(_widened, narrow.auxiliary)), None)
    expected = tiny_criterion()(wide, batch.targets).losses
    losses = tiny_criterion()(narrow, batch.targets).losses
    for name, value in expected.items():
        assert losses[name].equal(value), name


def _widened(predictions: Any) -> Any:
    return type(predictions)(predictions.logits.float(), predictions.boxes.float())


def test_evaluation_is_in_float32(tmp_path: Path) -> None:
    files = write_coco_set(tmp_path, num_images=1, categories=CATEGORIES)
    state = tiny_state(precision="bfloat16")
    seen = []
    state.model.register_forward_hook(
        lambda module, inputs, output: seen.append(output.last.logits.dtype)
    )
    train_step(state, [tiny_batch([1], [1])], tiny_criterion(), seed=0, max_grad_norm=0.1)
    evaluator = CocoEvaluator(read_ground_truth(files.annotations), LABEL_SPACE)
    evaluate(state.model, [tiny_batch([1], [1])], evaluator, device=CPU)
    assert seen == [torch.bfloat16, torch.float32]


def set_scale(state: TrainState, scale: float) -> None:
    state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": scale})


def overflow(state: TrainState, attempts: int) -> list[float]:
    """Make a gradient infinite in the first `attempts`; return the loss scale per attempt."""
    scales: list[float] = []

    def plant(gradient: Tensor) -> Tensor:
        scales.append(state.scaler.get_scale())
        return torch.full_like(gradient, math.inf) if len(scales) <= attempts else gradient

    state.model.box_head.weight.register_hook(plant)  # type: ignore[union-attr]
    return scales


def test_a_step_that_overflows_is_computed_again_at_half_the_loss_scale(
    caplog: pytest.LogCaptureFixture,
) -> None:
    batch = tiny_batch([1, 2], [2, 1])
    once, never = (tiny_state(precision="float16", dropout=0.5, ema_decay=0.9) for _ in range(2))
    set_scale(once, 64.0)
    set_scale(never, 32.0)
    scales = overflow(once, attempts=1)
    with caplog.at_level(logging.INFO):
        train_step(once, [batch], tiny_criterion(), seed=0, max_grad_norm=0.1)
    assert scales == [64.0, 32.0]
    assert once.step == 1
    assert "gradients overflowed in float16 at a loss scale of 64;" in caplog.text

    train_step(never, [batch], tiny_criterion(), seed=0, max_grad_norm=0.1)
    for one, other in zip(weights(once), weights(never), strict=True):
        assert one.equal(other)
    assert once.ema is not None
    assert never.ema is not None
    for one, other in zip(once.ema.model.parameters(), never.ema.model.parameters(), strict=True):
        assert one.equal(other)


def test_gradients_that_overflow_at_any_scale_stop_the_run() -> None:
    state = tiny_state(precision="float16")
    before = weights(state)
    scales = overflow(state, attempts=1000)
    with pytest.raises(NonFiniteError, match="the gradient of step 0 must be finite, got inf"):
        train_step(state, [tiny_batch([1, 2], [2, 1])], tiny_criterion(), seed=0, max_grad_norm=0.1)
    assert scales[-1] == 1
    assert state.step == 0
    assert all(a.equal(b) for a, b in zip(before, weights(state), strict=True))


def test_the_gradient_norm_is_that_of_the_unscaled_gradient() -> None:
    batch = tiny_batch([1, 2], [2, 1])
    norms = []
    for scale in (1.0, 64.0):
        state = tiny_state(precision="float16")
        set_scale(state, scale)
        values = train_step(state, [batch], tiny_criterion(), seed=0, max_grad_norm=0.1)
        norms.append(values["grad_norm"].item())
    assert norms[1] == pytest.approx(norms[0], rel=1e-2)  # float16 keeps 11 bits of each factor


def test_a_non_finite_loss_raises_in_float16_too() -> None:
    state = tiny_state(precision="float16")
    batch = tiny_batch([1, 2], [0, 0])
    batch.images.images[0, 0, 0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="the loss of step 0 must be finite"):
        train_step(state, [batch], tiny_criterion(), seed=0, max_grad_norm=0.1)


def test_the_loss_scale_is_in_the_checkpoint(tmp_path: Path) -> None:
    state = tiny_state(precision="float16")
    set_scale(state, 128.0)
    save_checkpoint(tmp_path / "last.pth", state.to_checkpoint())
    resumed = tiny_state(precision="float16")
    resumed.restore(load_checkpoint(tmp_path / "last.pth"), "checkpoint")
    assert resumed.scaler.state_dict() == state.scaler.state_dict()
    assert resumed.scaler.get_scale() == 128.0


def test_a_float16_run_resumes_from_a_float32_checkpoint_and_vice_versa() -> None:
    narrow, wide = tiny_state(precision="float16"), tiny_state()
    narrow.restore(wide.to_checkpoint(), "checkpoint")
    assert narrow.scaler.get_scale() == 65536.0
    wide.restore(narrow.to_checkpoint(), "checkpoint")
    assert wide.scaler.get_scale() == 1.0
