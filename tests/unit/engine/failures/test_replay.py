import math
from collections.abc import Sequence

import pytest
import torch
from helpers.models import VARIANTS, small_detector
from helpers.tiny_training import TinyDetector, tiny_batch, tiny_criterion, tiny_detector
from torch import Tensor, nn

from deformable_detr.engine.failures.replay import Examination, examine
from deformable_detr.structures import ImageBatch, ModelOutput, Target


class Planted(nn.Module):
    """Identity with a fault in the forward or the backward pass."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, features: Tensor) -> Tensor:
        match self.fault:
            case "forward":
                return (features + math.inf) - math.inf
            case "backward":  # the square root has an infinite slope at 0
                return features + (features - features.detach()).abs().sqrt()
            case _:
                return features


class Faulty(TinyDetector):
    """Detector with a fault after the linear layer of `sampling`."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.sampling = nn.Sequential(nn.Linear(16, 16), Planted(fault), nn.Identity())


def look(model: nn.Module, *, scale: float = 1.0) -> Examination:
    batch = tiny_batch([1, 2], [2, 1])
    return examine(model, tiny_criterion(), batch, num_boxes=3.0, dropout_seed=5, loss_scale=scale)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_found_in_a_healthy_step(variant: str) -> None:
    model = small_detector(variant, num_classes=3).train()
    batch = tiny_batch([1, 2], [2, 0], size=64)
    batch.images.padding_mask[1, :, 40:] = True
    found = examine(model, tiny_criterion(), batch, num_boxes=2.0, dropout_seed=0)
    assert found.is_finite
    assert (found.refusal, found.forward, found.backward) == ("", "", "")
    assert len(found.gradient_norms) == sum(p.requires_grad for p in model.parameters())


def test_the_first_module_with_a_non_finite_output_is_named() -> None:
    torch.manual_seed(0)
    found = look(Faulty("forward"))
    assert found.forward == "the output of sampling.1 (Planted)"
    assert 0 < found.largest_input < 10
    assert "predictions must be finite to be matched" in found.refusal
    assert found.gradient_norms == {}
    assert not found.is_finite


def test_the_first_non_finite_gradient_is_named() -> None:
    torch.manual_seed(0)
    found = look(Faulty("backward"))
    assert found.forward == ""
    assert math.isfinite(found.loss)
    assert found.backward == "the gradient of the output of sampling.0 (Linear)"
    assert not math.isfinite(found.gradient_norms["sampling.0.weight"])
    assert math.isfinite(found.gradient_norms["box_head.weight"])
    assert not found.is_finite


def test_a_fault_between_two_modules_is_found_at_the_input_of_the_second() -> None:
    class Between(TinyDetector):
        def forward(
            self, images: ImageBatch, targets: Sequence[Target] | None = None
        ) -> ModelOutput:
            return super().forward(ImageBatch(images.images / 0.0, images.padding_mask), targets)

    torch.manual_seed(0)
    assert look(Between()).forward == "the input of backbone (Linear)"


def test_gradient_norms_are_those_of_a_backward_pass_without_loss_scale() -> None:
    model = tiny_detector(dropout=0.5)
    batch = tiny_batch([1, 2], [2, 1])
    torch.manual_seed(5)
    criterion = tiny_criterion()
    total = criterion(model(batch.images), batch.targets, 3.0).losses["total"]
    gradients = torch.autograd.grad(total, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    for scale in (1.0, 1024.0):
        found = look(model, scale=scale)
        assert found.loss == total.item()
        for name, gradient in zip(names, gradients, strict=True):
            assert found.gradient_norms[name] == pytest.approx(gradient.norm().item(), rel=1e-5)


def test_all_hooks_are_removed() -> None:
    model = tiny_detector()
    look(model)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_gradients_too_large_for_their_common_norm_are_not_finite() -> None:
    norms = {"a": 3e38, "b": 3e38}
    assert Examination(1.0, "", "", "", 0.0, {"a": 3e38}).is_finite
    assert not Examination(1.0, "", "", "", 0.0, norms).is_finite
