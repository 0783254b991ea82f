import math

import pytest
import torch

from deformable_detr.structures import Target

LABEL = torch.tensor([0])


@pytest.mark.parametrize(
    ("box", "got"),
    [
        ([50.0, 40.0, 20.0, 10.0], "numbers from 10 to 50; divide pixels by its width and height"),
        ([0.5, 0.5, 1.2, 0.1], "numbers from 0.1 to 1.2"),
        ([-0.2, 0.5, 0.1, 0.1], "numbers from -0.2 to 0.5"),
        ([math.nan, 0.5, 0.1, 0.1], "numbers from nan to nan"),
    ],
)
def test_boxes_outside_the_image_are_refused(box: list[float], got: str) -> None:
    message = rf"^boxes of image 7 must be cxcywh relative to the image, in \[0, 1\], got {got}"
    with pytest.raises(ValueError, match=message):
        Target(torch.tensor([box]), LABEL, image_id=7)


def test_negative_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^labels of image 7 must be at least 0, got -1"):
        Target(torch.rand(2, 4), torch.tensor([0, -1]), image_id=7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_box_of_the_whole_image_and_no_boxes_are_valid(dtype: torch.dtype) -> None:
    whole = Target(torch.tensor([[0.5, 0.5, 1 + 1e-6, 1.0]], dtype=dtype), LABEL)
    none = Target(torch.zeros(0, 4, dtype=dtype), torch.zeros(0, dtype=torch.int64))
    assert (len(whole), len(none)) == (1, 0)
