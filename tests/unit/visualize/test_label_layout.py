from itertools import combinations

import numpy as np
import pytest

from deformable_detr.visualize.label_layout import Rectangle, place_labels

PICTURE = (200, 100)  # width, height


def _place(*boxes: Rectangle, size: tuple[float, float] = (30, 10)) -> list[Rectangle | None]:
    return place_labels(boxes, [size] * len(boxes), PICTURE)


def test_label_is_above_its_box() -> None:
    assert _place((50, 40, 120, 90)) == [(50, 30, 80, 40)]


def test_label_moves_inside_a_large_box_at_the_upper_edge() -> None:
    assert _place((50, 5, 120, 90)) == [(50, 5, 80, 15)]


def test_label_moves_below_a_small_box_at_the_upper_edge() -> None:
    assert _place((50, 5, 70, 20)) == [(50, 20, 80, 30)]


def test_label_is_moved_inside_the_right_edge() -> None:
    assert _place((190, 40, 199, 90)) == [(169, 30, 199, 40)]


def test_labels_are_inside_the_picture_for_all_boxes() -> None:
    corners = np.random.default_rng(0).uniform((0, 0), (195, 95), (200, 2))
    boxes = [(x, y, min(x + 20, 199), min(y + 20, 99)) for x, y in corners]

    kept = [place for box in boxes for place in _place(box) if place is not None]

    assert len(kept) == len(boxes)
    assert all(
        left >= 0 and top >= 0 and right < 200 and bottom < 100 for left, top, right, bottom in kept
    )


def test_labels_do_not_overlap_and_the_first_has_priority() -> None:
    places = _place((50, 40, 120, 90), (55, 42, 121, 88), (56, 43, 122, 87))

    assert places[0] == (50, 30, 80, 40)
    kept = [place for place in places if place is not None]
    for first, second in combinations(kept, 2):
        assert (
            first[2] <= second[0]
            or second[2] <= first[0]
            or first[3] <= second[1]
            or second[3] <= first[1]
        )


def test_label_that_would_hide_another_object_is_omitted() -> None:
    above, below = (50.0, 30.0, 75.0, 40.0), (50.0, 50.0, 75.0, 60.0)

    assert _place(above, (50, 40, 70, 50), below)[1] is None


@pytest.mark.parametrize("size", [(0, 0), (250, 10), (30, 150)])
def test_label_without_text_or_room_is_omitted(size: tuple[float, float]) -> None:
    assert _place((50, 40, 120, 90), size=size) == [None]


def test_no_boxes_give_no_labels() -> None:
    assert _place() == []
