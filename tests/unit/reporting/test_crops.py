"""Crops show the place around a box, with outlines around the objects."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from deformable_detr.reporting.crops import CONTEXT, MIN_SIDE_PX, SIDE_PX, Outline, crop_uri

GREEN = (0, 200, 0)


def pixels(uri: str) -> np.ndarray:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)


def photo(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """Return a gray image, red inside the box (left, top, width, height)."""
    values = np.full((height, width, 3), 128, dtype=np.uint8)
    left, top, box_width, box_height = box
    values[top : top + box_height, left : left + box_width] = (255, 0, 0)
    return Image.fromarray(values)


@pytest.mark.parametrize("box", [(100, 80, 50, 40), (0, 0, 50, 40), (250, 160, 50, 40)])
def test_object_is_complete_in_the_crop_and_of_the_expected_size(
    box: tuple[int, int, int, int],
) -> None:
    crop = pixels(crop_uri(photo(300, 200, box), box, []))
    assert crop.shape == (SIDE_PX, SIDE_PX, 3)
    is_red = (crop[..., 0] > 200) & (crop[..., 1] < 60)
    factor = SIDE_PX / (CONTEXT * 50)
    assert is_red.sum() == pytest.approx(50 * 40 * factor**2, rel=0.05)


def test_crop_of_a_small_object_has_the_minimum_size() -> None:
    crop = pixels(crop_uri(photo(300, 200, (100, 80, 4, 4)), (100, 80, 4, 4), []))
    rows, columns = np.nonzero((crop[..., 0] > 180) & (crop[..., 1] < 90))
    width = columns.max() - columns.min()
    assert width == pytest.approx(4 * SIDE_PX / MIN_SIDE_PX, abs=4)
    assert rows.mean() == pytest.approx(SIDE_PX / 2, abs=4)


def test_crop_stops_at_the_edges_of_a_narrow_image() -> None:
    crop = pixels(crop_uri(photo(300, 50, (100, 5, 60, 40)), (100, 5, 60, 40), []))
    assert crop.shape == (round(50 * SIDE_PX / (CONTEXT * 60)), SIDE_PX, 3)


def test_outline_is_on_the_border_of_its_box() -> None:
    box = (100, 80, 60, 60)
    uri = crop_uri(photo(300, 240, box), box, [Outline(box, GREEN, 4)])
    crop = pixels(uri)
    rows, columns = np.nonzero((crop[..., 1] > 130) & (crop[..., 0] < 90))
    side = SIDE_PX / CONTEXT
    low, high = (SIDE_PX - side) / 2, (SIDE_PX + side) / 2
    found = (rows.min(), rows.max(), columns.min(), columns.max())
    assert found == pytest.approx((low, high, low, high), abs=3)
    assert crop[SIDE_PX // 2, SIDE_PX // 2] == pytest.approx((255, 0, 0), abs=12)
