import pytest
import torch
from helpers.models import small_detector
from helpers.recipe import criterion_for, paper_groups
from helpers.tiny_training import CONSTANT, LABEL_SPACE, NUM_CLASSES, tiny_criterion
from torch import nn

from deformable_detr.engine.memory import warm_up
from deformable_detr.engine.optimizer import adamw
from deformable_detr.engine.precision import Precision
from deformable_detr.engine.state import TrainState
from deformable_detr.structures import ImageBatch

MIMICKING = "model.mimicking={max_regions: 2, crop_size_px: 32}"
BATCH_NORM = ("model.backbone.norm=batch_norm", "model.backbone.freeze_up_to_stride=0")


def make_state(*overrides: str, precision: Precision = "float32") -> TrainState:
    model = small_detector("multi_scale", *overrides, num_classes=NUM_CLASSES)
    return TrainState(
        model,
        adamw(paper_groups(model)),
        CONSTANT,
        label_space=LABEL_SPACE,
        config={},
        precision=precision,
    )


@pytest.mark.parametrize("was_training", [True, False])
@pytest.mark.parametrize("overrides", [BATCH_NORM, (MIMICKING,)])
def test_warm_up_runs_the_largest_batch_and_changes_no_state(
    overrides: tuple[str, ...], was_training: bool
) -> None:
    state = make_state(*overrides, precision="bfloat16")
    state.model.train(was_training)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    random_state = torch.get_rng_state()
    seen: list[tuple[int, ...]] = []
    gradients: list[str] = []

    def look(module: nn.Module, inputs: tuple[ImageBatch], output: object) -> None:
        seen.append(tuple(inputs[0].images.shape))
        assert module.training

    state.model.register_forward_hook(look)
    for name, parameter in state.model.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda _, name=name: gradients.append(name))
    warm_up(state, criterion_for(state.model), num_images=2, size=(64, 96))

    assert seen == [(2, 3, 64, 96)]
    trained = [
        name for name, parameter in state.model.named_parameters() if parameter.requires_grad
    ]
    assert sorted(gradients) == sorted(trained)
    assert torch.get_rng_state().equal(random_state)
    assert state.model.training == was_training
    assert all(parameter.grad is None for parameter in state.model.parameters())
    assert not state.optimizer.state
    for name, value in state.model.state_dict().items():
        assert value.equal(before[name]), name


def test_too_little_memory_raises_with_the_size_and_remedies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = make_state()
    before = {name: value.clone() for name, value in state.model.state_dict().items()}

    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(state.model.encoder, "forward", run_out)
    with pytest.raises(
        RuntimeError,
        match=r"2 images of 64 x 96 pixels, must fit into memory.*lower train\.micro_batch",
    ):
        warm_up(state, tiny_criterion(), num_images=2, size=(64, 96))
    for name, value in state.model.state_dict().items():
        assert value.equal(before[name]), name
