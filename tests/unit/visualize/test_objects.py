import time
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from deformable_detr.labels import LabelSpace
from deformable_detr.structures import Detections
from deformable_detr.visualize import objects
from deformable_detr.visualize.objects import (
    CAPTION_BACKGROUND,
    MIN_LONG_SIDE_PX,
    class_color,
    draw_annotations,
    draw_detections,
    side_by_side,
)

Mask = npt.NDArray[np.bool_]
GRAY = (90, 90, 90)
CATEGORIES = LabelSpace((7, 8), ("cat", "dog"))
TREE = LabelSpace((7,), ("tree",))


def _detections(*boxes: tuple[float, ...], label: int = 0) -> Detections:
    count = len(boxes)
    return Detections(
        torch.full((count,), 0.87),
        torch.full((count,), label),
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
    )


def _photo(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), GRAY)


def _changed(picture: Image.Image) -> Mask:
    """Return a (height, width) mask of the pixels that were drawn."""
    return (np.asarray(picture) != GRAY).any(axis=2)


def _filled(picture: Image.Image, label: int) -> int:
    """Return the pixels with the color of a class."""
    return int((np.asarray(picture) == class_color(label)).all(axis=2).sum())


def test_box_is_drawn_at_its_place_in_the_color_of_its_class() -> None:
    photo = _photo(1000, 800)

    drawn = _changed(draw_detections(photo, _detections((300, 200, 700, 600)), CATEGORIES))

    assert drawn[400, 300]
    assert drawn[400, 700]
    assert drawn[600, 500]
    assert not drawn[400, 320:680].any()
    assert not drawn[:, :299].any()
    assert not drawn[:, 702:].any()
    assert (np.asarray(photo) == GRAY).all(), "the image itself must not change"


def test_small_image_is_enlarged_by_an_integer_factor() -> None:
    picture = draw_detections(_photo(256, 200), _detections((64, 50, 192, 150)), CATEGORIES)

    factor = picture.width // 256
    assert max(picture.size) >= MIN_LONG_SIDE_PX
    assert picture.size == (256 * factor, 200 * factor)
    assert _changed(picture)[100 * factor, 64 * factor]


def test_large_image_keeps_its_size_and_has_thicker_lines_and_larger_text() -> None:
    def line_and_label(scale: int) -> tuple[int, int]:
        box = tuple(100.0 * scale * corner for corner in (3, 3, 7, 7))
        photo = _photo(1000 * scale, 1000 * scale)
        drawn = _changed(draw_detections(photo, _detections(box), CATEGORIES))
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
        boxes_only = draw_annotations(photo, found.boxes_xyxy, found.labels, TREE)
        return _filled(draw_detections(photo, found, CATEGORIES), 1) - _filled(boxes_only, 1)

    assert plate_area(box) > 0.75 * plate_area((400, 300, 440, 340))


def test_boxes_outside_the_picture_or_without_extent_do_not_fail() -> None:
    boxes = [(-90.0, -90, -10, -10), (2000, 2000, 3000, 3000), (500, 400, 500, 400)]

    assert _changed(draw_detections(_photo(1000, 800), _detections(*boxes), CATEGORIES)).any()


def test_scores_of_one_crowded_class_are_omitted() -> None:
    few = _detections((300, 300, 340, 340))
    many = _detections(
        *((x, y, x + 9.0, y + 9) for x in range(0, 990, 40) for y in range(0, 990, 40))
    )
    photo = _photo(1000, 1000)

    def differing(found: Detections) -> Mask:
        """Return the pixels of anything but boxes."""
        plain = draw_annotations(photo, found.boxes_xyxy, found.labels, TREE)
        return (np.asarray(draw_detections(photo, found, TREE)) != np.asarray(plain)).any(axis=2)

    note = differing(many)
    assert note[970:, 850:].any()
    assert not note[:970].any()
    assert not note[:, :850].any()
    score = differing(few)
    assert score[200:340].any()
    assert not score[970:].any()


def test_no_detections_leave_the_image_unchanged() -> None:
    assert not _changed(draw_detections(_photo(1000, 800), _detections(), CATEGORIES)).any()


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
        draw_detections(_photo(100, 80), found, CATEGORIES)
    found = _detections((10, 10, 50, 50))
    found.scores[0] = torch.inf
    with pytest.raises(ValueError, match=r"scores must be finite to be drawn, got 1 of 1 numbers"):
        draw_detections(_photo(100, 80), found, CATEGORIES)


@pytest.mark.parametrize("label", range(6))
def test_box_is_visible_on_an_image_of_its_color(label: int) -> None:
    photo = Image.new("RGB", (1000, 800), class_color(label))
    found = _detections((300, 200, 700, 600), label=label)
    names = LabelSpace(tuple(range(6)), tuple("abcdef"))

    drawn = np.asarray(draw_detections(photo, found, names)).astype(int)

    contrast = np.abs(drawn - class_color(label)).max(axis=2) > 100
    for row, column in ((400, 300), (400, 700), (200, 500), (600, 500)):
        assert contrast[row - 4 : row + 5, column - 4 : column + 5].any()
    label_top = np.flatnonzero(contrast.any(axis=1))[0]
    assert contrast[label_top, 300:340].all(), "the label has a rim"


def test_labels_left_out_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = []

    def record(canvas: object, place: object, text: tuple[str, str], *rest: object) -> None:
        notes.append(text)

    monkeypatch.setattr(objects, "_draw_plate", record)
    photo, boxes = _photo(1000, 800), [(300.0, 200.0, 340.0, 240.0)] * 13

    draw_detections(photo, _detections(*boxes), CATEGORIES)
    shown, note = notes[:-1], notes[-1]
    assert note == ("", f"+{13 - len(shown)} labels")
    assert shown == [("cat", "0.87")] * len(shown)

    notes.clear()
    draw_detections(photo, _detections(boxes[0]), CATEGORIES)
    assert notes == [("cat", "0.87")]


def test_label_is_cut_and_keeps_its_score() -> None:
    label = objects._fitted(objects._Label("L" * 80, "0.87"), 16, 500)

    assert label.score == "0.87"
    assert label.name.endswith("L...")
    assert 300 < objects._plate_size(label, 16)[0] <= 320
    row = side_by_side([_photo(40, 900)] * 2, ["annotated: 5", ""])
    assert (np.asarray(row)[:12, 40:] == CAPTION_BACKGROUND).all(), "captions end in their column"


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (1, 1), (2, 40)])
def test_strips_and_tiny_images_are_drawn(size: tuple[int, int]) -> None:
    found = _detections((0, 0, *size), (0, size[1] / 2, *size))
    picture = draw_detections(_photo(*size), found, CATEGORIES)

    assert max(picture.size) <= max(20_000, 2 * MIN_LONG_SIDE_PX)
    assert _changed(picture).any()


def test_ten_thousand_boxes_are_drawn_in_seconds() -> None:
    corners = torch.rand(10_000, 2, generator=torch.Generator().manual_seed(0)) * 950
    boxes = torch.cat((corners, corners + 20), dim=1)
    found = Detections(torch.full((10_000,), 0.9), torch.zeros(10_000, dtype=torch.int64), boxes)
    before = time.process_time()

    draw_detections(_photo(1000, 1000), found, CATEGORIES)

    assert time.process_time() - before < 8
