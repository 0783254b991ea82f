import math

import pytest
import torch
from helpers.dino_weights import official_weight

from deformable_detr.losses.class_loss import FocalLoss, QualityLoss

ALIGN = QualityLoss(score_power=0.25, iou_power=0.75, gamma=2.0, floor=0.01)
DEIM = QualityLoss(score_power=0.0, iou_power=1.5, gamma=1.5, floor=0.0)
FOCAL = FocalLoss(alpha=0.25, gamma=2.0)


@pytest.mark.parametrize(
    ("loss", "total", "norm"), [(ALIGN, 3.286431, 0.471827), (DEIM, 4.165770, 0.597339)]
)
def test_golden_losses_and_gradients(loss, total, norm):
    logits = official_weight("last.logits", (2, 4, 3)).requires_grad_()
    one_hot, iou = torch.zeros(2, 4, 3), torch.zeros(2, 4, requires_grad=True)
    one_hot[0, 0, 0] = one_hot[0, 2, 2] = 1
    with torch.no_grad():
        iou[0, 0], iou[0, 2] = 0.0302708, 0.5616354
    value = loss(logits, one_hot, iou) / 2
    value.backward()
    assert value.item() == pytest.approx(total, abs=1e-5)
    assert logits.grad.norm().item() == pytest.approx(norm, abs=1e-5)
    assert iou.grad is None  # a target has no gradient


@pytest.mark.parametrize(
    ("loss", "total", "matched"),
    [
        (FOCAL, 0.578716, 0.016893),
        (ALIGN, 1.405390, 0.656292),
        (DEIM, 1.632065, 0.718077),
    ],
)
def test_golden_small_case(loss, total, matched):
    logits = torch.tensor([[[-2, -1, 0.5], [1, -3, -1]]])
    one_hot, iou = torch.zeros(1, 2, 3), torch.tensor([[0.64, 0.0]])
    one_hot[0, 0, 2] = 1
    assert loss(logits, one_hot, iou).item() == pytest.approx(total, abs=1e-5)
    alone = (slice(None), slice(0, 1), slice(2, 3))
    found = loss(logits[alone], one_hot[alone], iou[:, :1])
    assert found.item() == pytest.approx(matched, abs=1e-5)


def test_a_match_without_overlap_is_background_but_for_the_floor():
    logits = torch.zeros(1, 1, 1)
    one_hot, iou = torch.ones(1, 1, 1), torch.zeros(1, 1)
    for loss, target in ((DEIM, 0.0), (ALIGN, 0.01)):
        expected = -(target * math.log(0.5) + (1 - target) * math.log(0.5))
        assert loss(logits, one_hot, iou).item() == pytest.approx(expected)


def test_logits_of_any_size_have_finite_losses_and_gradients():
    for loss in (FOCAL, ALIGN, DEIM):
        logits = torch.tensor([[[-200.0, 200.0], [200.0, -200.0]]], requires_grad=True)
        one_hot = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
        loss(logits, one_hot, torch.tensor([[0.5, 0.0]])).backward()
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [FOCAL, ALIGN])
def test_class_weights_are_factors_of_the_losses_of_each_class(loss):
    torch.manual_seed(0)
    logits, iou = torch.randn(2, 5, 3), torch.rand(2, 5)
    one_hot = torch.nn.functional.one_hot(torch.randint(3, (2, 5)), 3).float()
    one_hot[:, 3:] = 0
    weights = torch.tensor([0.5, 1.0, 4.0])
    parts = [loss(logits[..., k : k + 1], one_hot[..., k : k + 1], iou) for k in range(3)]
    expected = sum(float(weight) * part for weight, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(loss(logits, one_hot, iou, weights), expected)
