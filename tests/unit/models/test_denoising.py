"""Queries of contrastive denoising; golden values are those of the official code of DINO."""

import pytest
import torch
from torch import Tensor

from deformable_detr.boxes import cxcywh_to_xyxy, iou_xyxy
from deformable_detr.models.denoising import (
    DenoisingQueries,
    NoisyQueries,
    group_mask,
    noisy_boxes,
    num_groups,
)
from deformable_detr.structures import Target

K, C = 91, 8


def denoising(num_queries: int = 100, *, num_classes: int = K, **noise: float) -> DenoisingQueries:
    torch.manual_seed(0)
    noise = {"label_noise": 0.5, "box_noise": 1.0} | noise
    return DenoisingQueries(num_classes=num_classes, embed_dim=C, num_queries=num_queries, **noise)


def objects(*labels: int) -> Target:
    """Return objects with boxes far enough from the borders for any shift."""
    sizes = torch.rand(len(labels), 2) * 0.2 + 0.05
    return Target(
        torch.cat((0.4 + 0.2 * torch.rand(len(labels), 2), sizes), dim=1),
        torch.tensor(labels, dtype=torch.int64),
    )


def of_counts(*counts: int) -> list[Target]:
    return [objects(*range(count)) for count in counts]


@pytest.mark.parametrize(
    ("counts", "groups", "slots"),
    [
        ((0, 0), 1, 0),
        ((1, 0), 100, 200),
        ((2, 1), 50, 200),
        ((3, 5), 20, 200),
        ((7, 2), 14, 196),
        ((20, 1), 5, 200),
        ((33, 1), 3, 198),
        ((34, 2), 2, 136),
        ((50, 50), 2, 200),
        ((51, 1), 1, 102),
        ((99, 3), 1, 198),
        ((100, 2), 1, 200),
        # More objects than queries, where the official code has more slots.
        ((101, 3), 1, 200),
        ((300, 2), 1, 200),
    ],
)
def test_golden_numbers_of_groups_and_slots(
    counts: tuple[int, int], groups: int, slots: int
) -> None:
    noisy = denoising(num_classes=300)(of_counts(*counts))
    assert noisy.num_groups == groups
    assert noisy.query.shape == (2, slots, C)
    assert noisy.reference_points.shape == (2, slots, 4)
    copied = [min(count, 100) for count in counts]
    assert [len(target) for target in noisy.targets] == copied


@pytest.mark.parametrize(("num_queries", "groups"), [(50, 16), (300, 100)])
def test_golden_numbers_of_groups_for_other_numbers_of_queries(
    num_queries: int, groups: int
) -> None:
    assert num_groups(num_queries, 3) == groups


def test_an_image_with_more_objects_than_queries_gets_a_random_choice_of_them() -> None:
    (target,) = of_counts(10)
    part = denoising(4)
    choices = [part([target]).targets[0] for _ in range(20)]
    for choice in choices:
        assert choice.labels.unique().numel() == 4
        assert choice.boxes.equal(target.boxes[choice.labels])  # labels are places here
    assert torch.cat([choice.labels for choice in choices]).unique().numel() == 10


def test_golden_attention_mask() -> None:
    rows = 4 * ["00001111000"] + 4 * ["11110000000"] + 3 * ["11111111000"]
    expected = torch.tensor([[letter == "1" for letter in row] for row in rows])
    assert group_mask(2, 4, 3).equal(expected)


@pytest.mark.parametrize(
    ("counts", "masked"), [((1, 0), 40_600), ((3, 5), 39_000), ((51, 1), 510), ((0, 0), 0)]
)
def test_golden_numbers_of_masked_pairs(counts: tuple[int, int], masked: int) -> None:
    groups = num_groups(100, max(counts))
    assert group_mask(groups, 2 * max(counts), 5).sum() == masked


def test_golden_slots_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    part = denoising(4)
    targets = [objects(3, 7), objects(1)]
    monkeypatch.setattr(part, "noise", lambda labels: (labels, torch.zeros(*labels.shape, 4)))
    noisy = part(targets)
    assert noisy.num_groups == 2
    embed = part.label_embed.weight
    assert noisy.query[0].equal(embed[[3, 7] * 4])
    assert noisy.query[1, ::2].equal(embed[[1] * 4])
    assert not noisy.query[1, 1::2].any()
    torch.testing.assert_close(noisy.reference_points[0], targets[0].boxes.repeat(4, 1))
    torch.testing.assert_close(noisy.reference_points[1, ::2], targets[1].boxes.repeat(4, 1))
    assert (noisy.reference_points[1, 1::2] == 0.5).all()


@pytest.mark.parametrize(
    ("shifts", "expected"),
    [
        ((0.5, -0.5, -0.25, 0.75), (0.5125, 0.525, 0.125, 0.65)),
        ((1.5, -0.5, -1.5, 1), (0.5, 0.55, 0.000999, 0.7)),  # left and right have changed places
        ((-1.2, -1.9, 1.2, 1.9), (0.5, 0.5, 0.44, 0.999001)),
        ((-9, 0, 0, 0), (0.3, 0.5, 0.6, 0.4)),  # the left side stays within the image
    ],
)
def test_sides_are_shifted_in_halves_of_the_size(
    shifts: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    found = noisy_boxes(torch.tensor([0.5, 0.5, 0.2, 0.4]), torch.tensor(shifts))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


def test_shifts_of_positive_and_negative_queries_have_their_ranges() -> None:
    labels = torch.randint(K, (2, 50, 2, 20))
    _, shifts = denoising(box_noise=0.4).noise(labels)
    positive, negative = (shifts[:, :, side].abs() / 0.4 for side in (0, 1))
    for found, low in ((positive, 0), (negative, 1)):
        assert low <= found.min()
        assert found.max() <= low + 1
        assert found.mean() == pytest.approx(low + 0.5, abs=0.01)
    assert (shifts > 0).float().mean() == pytest.approx(0.5, abs=0.01)


def test_labels_change_with_half_the_label_noise() -> None:
    labels = torch.randint(K, (2, 100, 2, 100))
    for noise, share in ((0.5, 0.25 * 90 / 91), (1.0, 0.5 * 90 / 91), (0.0, 0.0)):
        changed, _ = denoising(label_noise=noise).noise(labels)
        is_changed = changed != labels
        for side in (0, 1):
            found = is_changed[:, :, side].float().mean()
            assert found == pytest.approx(share, abs=0.01)
        drawn = changed[is_changed].bincount(minlength=K)
        assert len(drawn) == K
        assert noise == 0 or drawn.min() > 0


def test_a_single_class_has_no_label_noise() -> None:
    part = denoising(num_classes=1, label_noise=1.0)
    noisy = part([Target(objects(0, 0).boxes, torch.zeros(2, dtype=torch.int64))])
    assert noisy.query.equal(part.label_embed.weight.expand(1, 200, C))


def overlaps(noisy: NoisyQueries, target: Target, side: int) -> Tensor:
    """Return the IoU of all copies of a side with their objects."""
    copies = noisy.reference_points[0].view(noisy.num_groups, 2, len(target), 4)[:, side]
    return iou_xyxy(cxcywh_to_xyxy(copies), cxcywh_to_xyxy(target.boxes)).flatten()


def test_golden_overlaps_of_positive_and_negative_queries() -> None:
    part = denoising(10_000)
    target = objects(*range(4))
    noisy = part([target])
    positive, negative = (overlaps(noisy, target, side) for side in (0, 1))
    assert positive.mean() == pytest.approx(0.385, abs=0.005)
    assert positive.quantile(0.05) == pytest.approx(0.151, abs=0.01)
    assert negative.mean() == pytest.approx(0.039, abs=0.005)
    assert negative.quantile(0.95) == pytest.approx(0.16, abs=0.01)
    assert negative.max() < 0.25
    has_no_width = noisy.reference_points[0].view(-1, 2, 4, 4)[:, 1, :, 2:] < 0.001
    assert has_no_width.float().mean() == pytest.approx(0.25, abs=0.01)
    assert has_no_width.any(-1).float().mean() == pytest.approx(0.44, abs=0.01)


def test_without_objects_the_embedding_gets_a_gradient_of_zeros() -> None:
    part = denoising()
    noisy = part(of_counts(0, 0))
    noisy.query.sum().backward()
    gradient = part.label_embed.weight.grad
    assert gradient is not None
    assert not gradient.any()
