"""What a detector gets wrong: class by class, and each false detection in a word."""

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from deformable_detr.evaluation.matched_objects import (
    IOU_THRESHOLD,
    MatchedObjects,
    by_image,
)

MIN_TOUCHING_IOU = 0.1  # TIDE (Bolya et al., 2020): less than this is background


class Kind(Enum):
    """Why a detection is false; the first that holds."""

    DUPLICATE = "second box of an object"
    OTHER_CLASS = "object of another class"
    LOOSE = "loose box"
    NOTHING = "no object there"


@dataclass(frozen=True)
class FalseDetection:
    """A detection that meets no object.

    Attributes:
        number: of the detection.
        kind: why it is false.
        nearest: the number of the object that `kind` speaks of, None for no object.
        iou: with it.
    """

    number: int
    kind: Kind
    nearest: int | None = None
    iou: float = 0.0


def false_detections(matched: MatchedObjects, min_score: float) -> list[FalseDetection]:
    """The false detections of that score or more, the highest score first."""
    wrong = _in_order(matched, matched.is_false(min_score))
    wrong_by_image = by_image(matched.detected.image_ids[wrong])
    objects_by_image = _numbers_by_image(matched, ~matched.annotated.is_ignored)
    nothing_there = np.empty(0, dtype=np.int64)
    found: list[FalseDetection | None] = [None] * len(wrong)
    for image_id, places in wrong_by_image.items():
        objects = objects_by_image.get(image_id, nothing_there)
        overlaps = matched.overlaps(wrong[places], objects)
        for place, row in zip(places.tolist(), overlaps, strict=True):
            found[place] = _explain(matched, int(wrong[place]), objects, row)
    return [one for one in found if one is not None]


def missed_objects(matched: MatchedObjects, min_score: float) -> list[int]:
    """The numbers of the objects that no detection of that score or more meets, largest first."""
    missed = np.flatnonzero(matched.is_missed(min_score))
    areas: npt.NDArray[np.float64] = matched.annotated.areas[missed]
    ordered: list[int] = missed[np.argsort(-areas, kind="stable")].tolist()
    return ordered


def confusion_matrix(matched: MatchedObjects, min_score: float) -> npt.NDArray[np.int64]:
    """Count what annotated objects were taken for, and detections of what is not there.

    COCO's matches, within a class, come first. Detections that are left then choose, the highest
    score first, the object of another class that they overlap most, if by an IoU of 0.5 or more
    and if none has chosen it.

    Args:
        matched: K classes, T objects and R detections.
        min_score: least score of a detection that counts.

    Returns:
        (K + 1, K + 1) counts. Row: the annotated class, or nothing (last). Column: the detected
        class, or nothing (last). The last corner is 0.
    """
    K = len(matched.names)
    annotated, detected = matched.annotated, matched.detected
    counts = np.zeros((K + 1, K + 1), dtype=np.int64)
    found = annotated.labels[matched.is_found(min_score)]
    counts[range(K), range(K)] = np.bincount(found, minlength=K)

    wrong = _in_order(matched, matched.is_false(min_score))
    is_free = matched.is_missed(min_score)
    objects_by_image = _numbers_by_image(matched, is_free)
    for image_id, places in by_image(detected.image_ids[wrong]).items():
        objects = objects_by_image.get(image_id, np.empty(0, dtype=np.int64))
        overlaps = matched.overlaps(wrong[places], objects)
        for number, row in zip(wrong[places].tolist(), overlaps, strict=True):
            other = annotated.labels[objects] != detected.labels[number]
            choice = other & (row >= IOU_THRESHOLD) & is_free[objects]
            label = K
            if choice.any():
                chosen = objects[np.where(choice, row, -1).argmax()]
                is_free[chosen] = False
                label = annotated.labels[chosen]
            counts[label, detected.labels[number]] += 1
    counts[:K, K] = np.bincount(annotated.labels[is_free], minlength=K)
    return counts


def _explain(
    matched: MatchedObjects,
    number: int,
    objects: npt.NDArray[np.int64],
    overlaps: npt.NDArray[np.float64],
) -> FalseDetection:
    is_own = matched.annotated.labels[objects] == matched.detected.labels[number]
    for kind, candidates, least in (
        (Kind.DUPLICATE, is_own, IOU_THRESHOLD),
        (Kind.OTHER_CLASS, ~is_own, IOU_THRESHOLD),
        (Kind.LOOSE, is_own, MIN_TOUCHING_IOU),
    ):
        values = np.where(candidates, overlaps, -1)
        if len(values) and values.max() >= least:
            best = int(values.argmax())
            return FalseDetection(number, kind, int(objects[best]), float(values[best]))
    return FalseDetection(number, Kind.NOTHING)


def _in_order(matched: MatchedObjects, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The numbers of the chosen detections, the highest score first."""
    numbers = np.flatnonzero(chosen)
    scores: npt.NDArray[np.float64] = matched.detected.scores[numbers]
    return numbers[np.argsort(-scores, kind="stable")]


def _numbers_by_image(
    matched: MatchedObjects, chosen: npt.NDArray[np.bool_]
) -> dict[int, npt.NDArray[np.int64]]:
    """The numbers of the chosen objects of each image."""
    numbers = np.flatnonzero(chosen)
    places = by_image(matched.annotated.image_ids[numbers])
    return {image_id: numbers[rows] for image_id, rows in places.items()}
