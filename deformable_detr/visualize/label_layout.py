"""Place the labels of boxes so that they hide neither other labels nor objects."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Rectangle = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

# A label may cover up to this fraction of the area of another box.
MAX_HIDDEN_SHARE = 0.25
# A box with less than this many times the area of its label has the label outside.
MIN_BOX_IN_LABELS = 4.0
MAX_LABELS = 2000  # more are not tried: the time grows with their number times that of boxes


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
        R rectangles, None for a label that does not fit, and for those after `MAX_LABELS`.
    """
    all_boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    most_hidden = MAX_HIDDEN_SHARE * _areas(all_boxes)
    placed = np.empty((len(boxes), 4))
    num_placed = 0
    places: list[Rectangle | None] = []
    for number, (box, size) in enumerate(zip(boxes, sizes, strict=True)):
        limits = most_hidden.copy()
        limits[number] = np.inf  # a label may hide its own box
        for candidate in _candidates(box, size, picture) if number < MAX_LABELS else ():
            hides_label = (_overlap(candidate, placed[:num_placed]) > 0).any()
            if not hides_label and not (_overlap(candidate, all_boxes) > limits).any():
                placed[num_placed] = candidate
                num_placed += 1
                places.append(candidate)
                break
        else:
            places.append(None)
    return places


def place_note(
    size: tuple[float, float], taken: Sequence[Rectangle], picture: tuple[int, int]
) -> Rectangle | None:
    """Place a note in the corner of the picture where it hides least; None if it does not fit.

    Args:
        size: (width, height) of the note.
        taken: rectangles that should stay visible.
        picture: (width, height) of the picture.
    """
    right, bottom = picture[0] - 1 - size[0], picture[1] - 1 - size[1]
    if right < 0 or bottom < 0:
        return None
    corners = [(left, top) for top in (bottom, 0.0) for left in (right, 0.0)]
    places = [(left, top, left + size[0], top + size[1]) for left, top in corners]
    rectangles = np.array(taken, dtype=np.float64).reshape(-1, 4)
    return min(places, key=lambda place: float(_overlap(place, rectangles).sum()))


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


def _overlap(place: Rectangle, rectangles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the area that `place` shares with each of (R, 4) rectangles."""
    width = np.minimum(place[2], rectangles[:, 2]) - np.maximum(place[0], rectangles[:, 0])
    height = np.minimum(place[3], rectangles[:, 3]) - np.maximum(place[1], rectangles[:, 1])
    shared: npt.NDArray[np.float64] = width.clip(min=0) * height.clip(min=0)
    return shared


def _areas(rectangles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    sides = rectangles[:, 2:] - rectangles[:, :2]
    areas: npt.NDArray[np.float64] = sides[:, 0] * sides[:, 1]
    return areas


def _area(rectangle: Rectangle) -> float:
    return (rectangle[2] - rectangle[0]) * (rectangle[3] - rectangle[1])
