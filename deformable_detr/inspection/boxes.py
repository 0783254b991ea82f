"""Inspection of boxes: one by one, and the format of all."""

import numpy as np
import numpy.typing as npt

from deformable_detr.inspection.findings import Findings
from deformable_detr.inspection.objects import SoundObjects

_SLACK_PX = 1.0  # rounding of corners
_FEWEST = 3  # boxes outside that say something about the format
_SHARE = 0.05
_LARGEST_POINT = 2  # an image of which a box may be within 0..1 pixels
_LARGER = 1.01  # of an area that is no rounding


def inspect_boxes(objects: SoundObjects, findings: Findings) -> None:
    """Add the findings about boxes and areas; crowds may reach anywhere."""
    if not len(objects.positions):
        return
    if other := format_of(objects):
        findings.add(*other, section="annotations", key="bbox")
    start, extent = objects.boxes[:, :2], objects.boxes[:, 2:]
    is_one = ~objects.is_crowd
    is_negative = (extent < 0).any(axis=1) & is_one
    is_outside = ((start + extent <= 0) | (start >= objects.limits)).any(axis=1)
    is_outside &= is_one & (extent > 0).all(axis=1)
    is_flat = is_one & ~objects.is_inside & ~is_outside & ~is_negative
    is_sound = is_one & objects.is_inside
    over = np.maximum(-start, start + extent - objects.limits).max(axis=1)
    is_partly = is_sound & (over > _SLACK_PX)
    is_tiny = is_sound & (extent < 1).all(axis=1)
    _add(objects, findings, "box-negative", is_negative)
    _add(objects, findings, "box-outside", is_outside)
    _add(objects, findings, "box-without-extent", is_flat)
    _add(objects, findings, "box-partly-outside", is_partly)
    _add(objects, findings, "box-tiny", is_tiny)
    _inspect_whole(objects, findings, is_sound)
    _inspect_areas(objects, findings, is_sound)
    _inspect_copies(objects, findings, is_sound)


def _add(objects: SoundObjects, findings: Findings, kind: str, mask: npt.NDArray[np.bool_]) -> None:
    for index in np.flatnonzero(mask).tolist():
        width, height = (f"{side:g}" for side in objects.limits[index])
        box = ", ".join(f"{side:g}" for side in objects.boxes[index])
        objects.add(findings, kind, index, f"bbox [{box}] in {width} x {height}", "bbox")


def format_of(objects: SoundObjects) -> tuple[str, str] | None:
    """Find a reading by which all boxes lie inside, where as [x, y, width, height] many do not.

    Returns:
        Kind of the finding and its description; None if the boxes are in COCO's format, or too few
        show another one.
    """
    use = ~objects.is_crowd & np.isfinite(objects.limits).all(axis=1)
    boxes, limits = objects.boxes[use], objects.limits[use]
    if not len(boxes):
        return None
    start, end = boxes[:, :2], boxes[:, 2:]
    if (np.abs(boxes) <= 1).all() and (end > 0).any() and (limits > _LARGEST_POINT).all():
        return "boxes-normalized", f"all {len(boxes)} boxes are within 0..1"
    outside = int(((start + end) > limits + _SLACK_PX).any(axis=1).sum())
    if outside < max(_FEWEST, _SHARE * len(boxes)):
        return None
    as_corners = ((start >= -_SLACK_PX) & (end > start) & (end <= limits + _SLACK_PX)).all()
    half = end / 2
    as_centers = ((end > 0) & (start - half >= -_SLACK_PX)).all()
    as_centers &= (start + half <= limits + _SLACK_PX).all()
    for kind, fits in (("boxes-xyxy", as_corners), ("boxes-centered", as_centers)):
        if fits:
            text = f"{outside} of {len(boxes)} boxes reach over their image; read so, none does"
            return kind, text
    return None


def _inspect_whole(
    objects: SoundObjects, findings: Findings, is_sound: npt.NDArray[np.bool_]
) -> None:
    start, end = objects.boxes[:, :2], objects.boxes[:, :2] + objects.boxes[:, 2:]
    is_whole = is_sound & ((start <= 0) & (end >= objects.limits)).all(axis=1)
    _, places, counts = np.unique(objects.image_ids, return_inverse=True, return_counts=True)
    _add(objects, findings, "box-whole-image", is_whole & (counts[places] > _FEWEST))


def _inspect_areas(
    objects: SoundObjects, findings: Findings, is_sound: npt.NDArray[np.bool_]
) -> None:
    of_box = objects.boxes[:, 2] * objects.boxes[:, 3]
    # Corners of polygons and boxes are rounded apart from each other, by a pixel of the rim.
    rim = objects.boxes[:, 2:].sum(axis=1) + 1
    with np.errstate(invalid="ignore"):
        flat, large = objects.area == 0, objects.area > of_box * _LARGER + rim
    for kind, mask in (("area-zero", flat), ("area-too-large", large)):
        for index in np.flatnonzero(mask & is_sound).tolist():
            text = f"area {objects.area[index]:g}, of the box {of_box[index]:g}"
            objects.add(findings, kind, index, text, "area")


def _inspect_copies(
    objects: SoundObjects, findings: Findings, is_sound: npt.NDArray[np.bool_]
) -> None:
    for kind, mask, first in find_copies(objects, is_sound):
        for index in np.flatnonzero(mask).tolist():
            twin = objects.positions[first[index]]
            objects.add(findings, kind, index, f"the box of annotations[{twin}]", "bbox")


def find_copies(
    objects: SoundObjects, among: npt.NDArray[np.bool_]
) -> list[tuple[str, npt.NDArray[np.bool_], npt.NDArray[np.int64]]]:
    """Find objects with image and box of an earlier one.

    Returns:
        Two rows: kind, (T,) bool for the later ones, and (T,) the index of the earlier one. Those
        of the same category are "box-twice", the others "box-of-two-categories".
    """
    places = np.flatnonzero(among)
    keys = (*objects.boxes[places].T, objects.image_ids[places])
    order = np.lexsort((places, *keys))
    rows = np.stack([key[order] for key in keys]) if len(places) else np.zeros((5, 0))
    repeats = np.flatnonzero((rows[:, 1:] == rows[:, :-1]).all(axis=0)) + 1
    same, other = np.zeros(len(among), np.bool_), np.zeros(len(among), np.bool_)
    first = np.arange(len(among))
    known: dict[int, set[int]] = {}  # categories of a box, by the index of the first object
    for place in repeats.tolist():
        later, earlier = places[order[place]], places[order[place - 1]]
        first[later] = first[earlier]
        at = int(first[later])
        categories = known.setdefault(at, {int(objects.categories[at])})
        category = int(objects.categories[later])
        (same if category in categories else other)[later] = True
        categories.add(category)
    return [("box-twice", same, first), ("box-of-two-categories", other, first)]
