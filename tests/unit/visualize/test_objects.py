from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.structures import Detections
from deformable_detr.visualize.objects import (
    CAPTION_BACKGROUND,
    MIN_LONG_SIDE_PX,
    class_color,
    draw_annotations,
    draw_detections,
    side_by_side,
)

GRAY = (90, 90, 90)
NAMES = ("cat", "dog")


def _detections(*boxes: tuple[float, ...], label: int = 0) -> Detections:
    count = len(boxes)
    return Detections(
        torch.full((count,), 0.87),
        torch.full((count,), label),
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
    )


def _photo(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), GRAY)


def _changed(picture: Image.Image) -> np.ndarray:
    """Return a (height, width) mask of the pixels that were drawn."""
    return (np.asarray(picture) != GRAY).any(axis=2)


def _filled(picture: Image.Image, label: int) -> int:
    """Return the pixels with the color of a class."""
    return int((np.asarray(picture) == class_color(label)).all(axis=2).sum())


def test_box_is_drawn_at_its_place_in_the_color_of_its_class() -> None:
    photo = _photo(1000, 800)

    drawn = _changed(draw_detections(photo, _detections((300, 200, 700, 600)), NAMES))

    assert drawn[400, 300]
    assert drawn[400, 700]
    assert drawn[600, 500]
    assert not drawn[400, 320:680].any()
    assert not drawn[:, :299].any()
    assert not drawn[:, 702:].any()
    assert (np.asarray(photo) == GRAY).all(), "the image itself must not change"


def test_small_image_is_enlarged_by_an_integer_factor() -> None:
    picture = draw_detections(_photo(256, 200), _detections((64, 50, 192, 150)), NAMES)

    factor = picture.width // 256
    assert max(picture.size) >= MIN_LONG_SIDE_PX
    assert picture.size == (256 * factor, 200 * factor)
    assert _changed(picture)[100 * factor, 64 * factor]


def test_large_image_keeps_its_size_and_has_thicker_lines_and_larger_text() -> None:
    def line_and_label(scale: int) -> tuple[int, int]:
        box = tuple(100.0 * scale * corner for corner in (3, 3, 7, 7))
        photo = _photo(1000 * scale, 1000 * scale)
        drawn = _changed(draw_detections(photo, _detections(box), NAMES))
        assert drawn.shape == (1000 * scale, 1000 * scale)
        return int(drawn[500 * scale].sum()), int(drawn[: 300 * scale].any(axis=1).sum())

    line, label = line_and_label(1)
    large_line, large_label = line_and_label(4)

    assert large_line == pytest.approx(4 * line, rel=0.2)
    assert large_label == pytest.approx(4 * label, rel=0.2)


@pytest.mark.parametrize(
    "box", [(0, 0, 40, 40), (950, 0, 1000, 30), (960, 770, 1000, 800), (-50, -50, 1200, 900)]
)
def test_label_of_a_box_at_an_edge_is_inside_the_picture(box: tuple[float, ...]) -> None:
    def plate_area(corners: tuple[float, ...]) -> int:
        found = _detections(corners, label=1)
        photo = _photo(1000, 800)
        boxes_only = draw_annotations(photo, found.boxes_xyxy, found.labels, ("",))
        return _filled(draw_detections(photo, found, NAMES), 1) - _filled(boxes_only, 1)

    assert plate_area(box) > 0.75 * plate_area((400, 300, 440, 340))


def test_boxes_outside_the_picture_or_without_extent_do_not_fail() -> None:
    boxes = [(-90.0, -90, -10, -10), (2000, 2000, 3000, 3000), (500, 400, 500, 400)]

    assert _changed(draw_detections(_photo(1000, 800), _detections(*boxes), NAMES)).any()


def test_scores_of_one_crowded_class_are_omitted() -> None:
    few = _detections((300, 300, 340, 340))
    many = _detections(
        *((x, y, x + 9.0, y + 9) for x in range(0, 990, 40) for y in range(0, 990, 40))
    )
    photo = _photo(1000, 1000)

    def lines_only(found: Detections) -> bool:
        plain = draw_annotations(photo, found.boxes_xyxy, found.labels, ("tree",))
        return draw_detections(photo, found, ("tree",)).tobytes() == plain.tobytes()

    assert lines_only(many)
    assert not lines_only(few)


def test_no_detections_leave_the_image_unchanged() -> None:
    assert not _changed(draw_detections(_photo(1000, 800), _detections(), NAMES)).any()


def test_neighboring_classes_have_distinct_and_stable_colors() -> None:
    colors = [class_color(label) for label in range(12)]

    assert class_color(0) == (255, 181, 38)
    for first, second in combinations(colors, 2):
        assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) > 40


def test_pictures_are_side_by_side_below_their_captions() -> None:
    left, right = Image.new("RGB", (300, 200), "red"), Image.new("RGB", (300, 200), "blue")

    row = side_by_side([left, right], ["annotated", "detected"])

    bar = row.height - 200
    assert row.getpixel((150, bar + 100)) == (255, 0, 0)
    assert row.getpixel((row.width - 150, bar + 100)) == (0, 0, 255)
    assert row.getpixel((row.width - 1, 0)) == CAPTION_BACKGROUND
    assert (np.asarray(row)[:bar] == 255).all(axis=2).any(), "captions are white"


def test_boxes_and_scores_that_are_not_finite_are_not_drawn() -> None:
    found = _detections((10, 10, 50, 50), (20, 20, 60, torch.nan))
    with pytest.raises(ValueError, match=r"boxes must be finite to be drawn, got 1 of 8 numbers"):
        draw_detections(_photo(100, 80), found, NAMES)
    found = _detections((10, 10, 50, 50))
    found.scores[0] = torch.inf
    with pytest.raises(ValueError, match=r"scores must be finite to be drawn, got 1 of 1 numbers"):
        draw_detections(_photo(100, 80), found, NAMES)
