"""Place the labels of boxes so that they hide neither other labels nor objects."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Rectangle = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

# A label may cover up to this fraction of the area of another box.
MAX_HIDDEN_SHARE = 0.25
# A box with less than this many times the area of its label has the label outside.
MIN_BOX_IN_LABELS = 4.0


def place_labels(
    boxes: Sequence[Rectangle], sizes: Sequence[tuple[float, float]], picture: tuple[int, int]
) -> list[Rectangle | None]:
    """Place labels in order, so that the first boxes have priority.

    A label is placed above its box, else inside its upper left corner, else below it: the first
    place that is inside the picture and hides no earlier label and little of other boxes.

    Args:
        boxes: (left, top, right, bottom) of the R boxes, inside the picture.
        sizes: (width, height) of the R labels; a label of width 0 is not placed.
        picture: (width, height) of the picture.

    Returns:
        R rectangles, None for a label that does not fit.
    """
    all_boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    placed: list[Rectangle] = []
    places: list[Rectangle | None] = []
    for number, (box, size) in enumerate(zip(boxes, sizes, strict=True)):
        others = np.delete(all_boxes, number, axis=0)
        place = next(
            (
                candidate
                for candidate in _candidates(box, size, picture)
                if not _hides(candidate, others, placed)
            ),
            None,
        )
        if place is not None:
            placed.append(place)
        places.append(place)
    return places


def _candidates(
    box: Rectangle, size: tuple[float, float], picture: tuple[int, int]
) -> list[Rectangle]:
    width, height = size
    limit_x, limit_y = picture[0] - 1, picture[1] - 1
    if width == 0 or width > limit_x:
        return []
    left = min(box[0], limit_x - width)
    tops = [box[1] - height, box[3]]
    if _area(box) >= MIN_BOX_IN_LABELS * width * height:
        tops.insert(1, box[1])
    return [
        (left, top, left + width, top + height)
        for top in tops
        if top >= 0 and top + height <= limit_y
    ]


def _hides(place: Rectangle, others: npt.NDArray[np.float64], placed: Sequence[Rectangle]) -> bool:
    if placed and _overlap(place, np.array(placed)).max() > 0:
        return True
    areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    return bool((_overlap(place, others) > MAX_HIDDEN_SHARE * areas).any())


def _overlap(place: Rectangle, rectangles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the area that `place` shares with each of (R, 4) rectangles."""
    width = np.minimum(place[2], rectangles[:, 2]) - np.maximum(place[0], rectangles[:, 0])
    height = np.minimum(place[3], rectangles[:, 3]) - np.maximum(place[1], rectangles[:, 1])
    shared: npt.NDArray[np.float64] = width.clip(min=0) * height.clip(min=0)
    return shared


def _area(rectangle: Rectangle) -> float:
    return (rectangle[2] - rectangle[0]) * (rectangle[3] - rectangle[1])
