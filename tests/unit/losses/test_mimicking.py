import math

import pytest
import torch

from deformable_detr.losses.mimicking import mimic_loss, mimicking_losses
from deformable_detr.models.mimicking import MimicFeatures


def random_features(R=3, *, num_logits=5):
    return MimicFeatures(
        student=torch.randn(R, 6, requires_grad=True),
        teacher=torch.randn(R, 6, requires_grad=True),
        logits=torch.randn(R, num_logits, requires_grad=True),
        labels=torch.arange(R) % num_logits,
    )


def test_the_loss_of_identical_features_is_zero():
    features = torch.randn(4, 1024)
    torch.testing.assert_close(mimic_loss(features, features), torch.tensor(0.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        mimic_loss(features, 3 * features), torch.tensor(0.0), rtol=0, atol=1e-5
    )


def test_the_loss_per_region_is_one_if_orthogonal_and_two_if_opposite():
    across, along = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[0.0, 2.0]] * 3)
    assert mimic_loss(across, along).item() == 3.0
    assert mimic_loss(across, -5 * across).item() == pytest.approx(6.0)


def test_the_loss_is_the_sum_over_regions_of_one_minus_the_cosine():
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64)
    expected = 0.0
    for one, other in zip(student.tolist(), teacher.tolist(), strict=True):
        dot = sum(a * b for a, b in zip(one, other, strict=True))
        expected += 1 - dot / (math.hypot(*one) * math.hypot(*other))
    assert mimic_loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_the_loss_without_regions_is_zero_with_a_gradient_of_zeros():
    features = random_features(0)
    losses = mimicking_losses(features, 1.0)
    assert [value.item() for value in losses.values()] == [0.0, 0.0]
    sum(losses.values()).backward()
    assert all(t.grad.shape == t.shape for t in (features.student, features.teacher))


def test_both_sides_get_a_gradient():
    features = random_features()
    mimic_loss(features.student, features.teacher).backward()
    for side in (features.student, features.teacher):
        assert (side.grad != 0).any(1).all()


def test_the_loss_of_a_zero_feature_is_one_with_a_finite_gradient():
    student, teacher = torch.zeros(1, 4, requires_grad=True), torch.randn(1, 4)
    loss = mimic_loss(student, teacher.requires_grad_())
    loss.backward()
    assert loss.item() == 1.0
    assert student.grad.isfinite().all()
    assert teacher.grad.isfinite().all()


def test_low_precision_features_are_compared_in_float32():
    student, teacher = torch.randn(2, 4, 1024).bfloat16()
    loss = mimic_loss(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, mimic_loss(student.float(), teacher.float()))


def test_sums_are_divided_by_the_number_of_boxes():
    features = random_features()
    losses = mimicking_losses(features, 4.0)
    expected = mimic_loss(features.student, features.teacher) / 4
    torch.testing.assert_close(losses["loss_mimic"], expected)
    probability = features.logits.exp() / features.logits.exp().sum(1, keepdim=True)
    expected = -probability[torch.arange(3), features.labels].log().sum() / 4
    torch.testing.assert_close(losses["loss_mimic_class"], expected)


def test_features_of_different_shapes_raise():
    message = r"teacher must have the shape \(R, F\) of student, got \(3, 4\) and \(3, 5\)"
    with pytest.raises(ValueError, match=message):
        mimic_loss(torch.zeros(3, 5), torch.zeros(3, 4))
