"""Pictures of the worst errors: false positives by score, false negatives by area."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from deformable_detr.evaluation.error_analysis import FalsePositive, Kind
from deformable_detr.evaluation.matched_objects import MatchedObjects
from deformable_detr.reporting.crops import Box, Outline, crop_uri
from deformable_detr.reporting.names import class_name

MAX_PICTURES = 12
# Okabe and Ito's colorblind-safe palette; the legend of the page has the same colors.
DETECTED = (230, 159, 0)
ANNOTATED = (86, 180, 233)
OTHER_DETECTED = (255, 221, 150)  # paler and thinner: not the subject of the picture
OTHER_ANNOTATED = (190, 225, 245)
MIN_SHOWN_IOU = 0.01
LINE_PX, OTHER_LINE_PX = 4, 2


@dataclass(frozen=True)
class Photo:
    """Image of the dataset and its file name."""

    image: Image.Image
    name: str


@dataclass(frozen=True)
class ErrorPicture:
    """Picture of an error, with a headline and an explanation."""

    uri: str
    headline: str
    text: str
    file: str


PhotoReader = Callable[[int], Photo]  # by image id


def false_positive_pictures(
    matched: MatchedObjects, false: Sequence[FalsePositive], read_photo: PhotoReader
) -> list[ErrorPicture]:
    """Draw the first of `false`, with all annotated objects around them."""
    pictures = []
    for one in false[:MAX_PICTURES]:
        image_id = int(matched.detected.image_ids[one.number])
        box = _box(matched.detected.boxes_xywh[one.number])
        photo = read_photo(image_id)
        around = np.flatnonzero(matched.annotated.image_ids == image_id)
        boxes = matched.annotated.boxes_xywh
        outlines = [
            Outline(_box(row), OTHER_ANNOTATED, OTHER_LINE_PX)
            for row in _distinct(boxes[around[around != one.nearest]])
        ]
        if one.nearest is not None:  # drawn on top of the others
            outlines.append(Outline(_box(boxes[one.nearest]), ANNOTATED, LINE_PX))
        name = class_name(matched.names[matched.detected.labels[one.number]])
        pictures.append(
            ErrorPicture(
                crop_uri(photo.image, box, [*outlines, Outline(box, DETECTED, LINE_PX)]),
                f"{name}, score {matched.detected.scores[one.number]:.2f}",
                _explanation(matched, one),
                photo.name,
            )
        )
    return pictures


def false_negative_pictures(
    matched: MatchedObjects, missed: Sequence[int], read_photo: PhotoReader, *, min_score: float
) -> list[ErrorPicture]:
    """Draw the first of `missed`, with all detections around them."""
    detected = matched.detected
    pictures = []
    for number in missed[:MAX_PICTURES]:
        image_id = int(matched.annotated.image_ids[number])
        box = _box(matched.annotated.boxes_xywh[number])
        photo = read_photo(image_id)
        around = np.flatnonzero((detected.image_ids == image_id) & (detected.scores >= min_score))
        outlines = [
            Outline(_box(detected.boxes_xywh[other]), OTHER_DETECTED, OTHER_LINE_PX)
            for other in around
        ]
        name = class_name(matched.names[matched.annotated.labels[number]])
        pictures.append(
            ErrorPicture(
                crop_uri(photo.image, box, [*outlines, Outline(box, ANNOTATED, LINE_PX)]),
                f"{name}, {box[2]:.0f} x {box[3]:.0f} px",
                _best_detection(matched, number, around),
                photo.name,
            )
        )
    return pictures


def _explanation(matched: MatchedObjects, one: FalsePositive) -> str:
    if one.nearest is None:
        return one.kind.value
    name = class_name(matched.names[matched.annotated.labels[one.nearest]])
    what = f"annotated as {name}" if one.kind is Kind.OTHER_CLASS else one.kind.value
    return f"{what}, IoU {one.iou:.2f}"


def _best_detection(matched: MatchedObjects, number: int, around: npt.NDArray[np.int64]) -> str:
    """Describe the detection that overlaps a missed object most."""
    overlaps = matched.overlaps(around, np.array([number]))
    if not (overlaps >= MIN_SHOWN_IOU).any():
        return "no detection overlaps it"
    best = int(overlaps.argmax())
    name = class_name(matched.names[matched.detected.labels[around[best]]])
    return f"best detection: {name}, IoU {float(overlaps[best, 0]):.2f}"


def _distinct(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Drop all but the last of equal boxes, of which a damaged file may have thousands."""
    _, from_end = np.unique(boxes[::-1], axis=0, return_index=True)
    return boxes[np.sort(len(boxes) - 1 - from_end)]


def _box(row: object) -> Box:
    left, top, width, height = np.asarray(row).tolist()
    return left, top, width, height
