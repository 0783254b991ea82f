"""Gradient checkpointing: the same gradients with less memory."""

import pytest
import torch
from helpers.models import DINO_PARTS, small_detector
from helpers.tiny_training import NUM_CLASSES, tiny_batch, tiny_criterion
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from deformable_detr.builders import build_model
from deformable_detr.config.loading import load_config
from deformable_detr.models.deformable_detr import DeformableDETR

ON = "train.gradient_checkpointing=true"
DROPOUT = ("model.encoder.dropout=0.3", "model.decoder.dropout=0.3")


def gradients(model: DeformableDETR, *, low_precision: bool) -> list[Tensor]:
    model.train()
    batch = tiny_batch([1, 2], [2, 3], size=64)
    torch.manual_seed(4)
    with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
        output = model(batch.images, batch.targets)
    tiny_criterion()(output, batch.targets).losses["total"].backward()
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in wanted)
    return [parameter.grad for parameter in wanted if parameter.grad is not None]


@pytest.mark.parametrize("low_precision", [False, True])
@pytest.mark.parametrize("variant", ["multi_scale", "refine", "two_stage", "dino"])
def test_gradients_are_bitwise_the_same_with_dropout(variant: str, low_precision: bool) -> None:
    parts: tuple[str, ...] = ()
    if variant == "dino":
        variant, parts = "two_stage", (*DINO_PARTS, "model.denoising={num_queries: 4}")
    plain, saving = (
        small_detector(variant, *DROPOUT, *parts, *more, num_classes=NUM_CLASSES)
        for more in ((), (ON,))
    )
    expected = gradients(plain, low_precision=low_precision)
    got = gradients(saving, low_precision=low_precision)
    assert all(a.equal(b) for a, b in zip(expected, got, strict=True))
    without_dropout = gradients(
        small_detector(variant, *parts, num_classes=NUM_CLASSES), low_precision=low_precision
    )
    assert not all(a.equal(b) for a, b in zip(without_dropout, got, strict=True))


def kept_bytes(model: DeformableDETR) -> int:
    """Return the bytes of all storages, except weights, that a forward pass saves for backward."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # keeps the tensors alive, so that no address is reused

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(tiny_batch([1], [2], size=128).images)
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)


def test_six_and_six_layers_need_less_than_60_percent_of_the_memory() -> None:
    plain, saving = (
        build_model(load_config("deformable_detr_r50", ["model.backbone.weights=none", *more]))
        for more in ((), (ON,))
    )
    assert kept_bytes(saving) < 0.6 * kept_bytes(plain)


@pytest.mark.parametrize(("training", "runs"), [(True, 2), (False, 1)])
def test_a_layer_runs_again_for_the_gradient_in_training_only(training: bool, runs: int) -> None:
    model = small_detector("two_stage", ON, num_classes=NUM_CLASSES).train(training)
    calls: list[nn.Module] = []
    layers = [*model.encoder.layers, *model.decoder.layers]
    for layer in layers:
        layer.register_forward_pre_hook(lambda module, *_: calls.append(module))
    batch = tiny_batch([1], [1], size=64)
    tiny_criterion()(model(batch.images), batch.targets).losses["total"].backward()
    assert [calls.count(layer) for layer in layers] == [runs] * 5
