"""The oracle of the other parity tests, compared with numbers printed by the official code."""

import pytest
import torch
from helpers.official_losses import cost_matrix, focal_loss, official_criterion

LOGITS = torch.tensor([[[0.0, 1.0, -2.0], [2.0, -1.0, 0.5], [-1.0, -1.0, 3.0]]]).double()
BOXES = torch.tensor(
    [[[0.5, 0.5, 0.4, 0.4], [0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.5, 0.3]]], dtype=torch.float64
)
OBJECTS = ([1, 2], [[0.5, 0.5, 0.5, 0.5], [0.7, 0.6, 0.4, 0.4]])


def test_the_oracles_cost_is_the_official_one():
    golden = [[-1.3214734, 2.1274621], [5.3801274, 6.0152884], [2.4648733, -4.3125238]]
    cost = cost_matrix(LOGITS[0], BOXES[0], *OBJECTS)
    torch.testing.assert_close(
        torch.from_numpy(cost), torch.tensor(golden).double(), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("objects", "golden"),
    [
        (OBJECTS, (0.8543038, 0.2, 0.3892106, 0.0, 0.0)),
        (([], []), (4.3040271, 0.0, 0.0, 100.0, 2.0)),
    ],
)
def test_the_oracles_values_are_the_official_ones(objects, golden):
    result = official_criterion({"": (LOGITS, BOXES)}, [objects])
    names = ("loss_ce", "loss_bbox", "loss_giou", "class_error", "cardinality_error")
    for name, expected in zip(names, golden, strict=True):
        assert float(result.values[name]) == pytest.approx(expected, abs=1e-6), name


def test_the_oracles_focal_loss_is_the_official_one():
    loss = focal_loss(torch.tensor([[0.3], [-0.7]]), torch.tensor([[1.0], [0.0]]), 1.0, 0.25)
    assert loss.item() == pytest.approx(0.0291956, abs=1e-6)
