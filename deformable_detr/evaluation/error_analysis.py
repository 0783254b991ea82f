"""Error analysis: confusion matrix, and a type for each false positive (after TIDE)."""

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from deformable_detr.evaluation.matched_objects import (
    IOU_THRESHOLD,
    MatchedObjects,
    by_image,
)

MIN_TOUCHING_IOU = 0.1  # TIDE (Bolya et al., 2020): below this is background


class Kind(Enum):
    """Type of a false positive; the first that applies."""

    DUPLICATE = "duplicate detection"
    OTHER_CLASS = "wrong class"
    LOOSE = "poor localization"
    NOTHING = "background"


@dataclass(frozen=True)
class FalsePositive:
    """Detection that matches no object.

    Attributes:
        number: index of the detection.
        kind: type of the error.
        nearest: index of the object that `kind` refers to, None for background.
        iou: IoU with that object, 0 for background.
    """

    number: int
    kind: Kind
    nearest: int | None = None
    iou: float = 0.0


def false_positives(matched: MatchedObjects, min_score: float) -> list[FalsePositive]:
    """Return the false positives at a score threshold, highest score first."""
    wrong = _in_order(matched, matched.is_false(min_score))
    wrong_by_image = by_image(matched.detected.image_ids[wrong])
    objects_by_image = _numbers_by_image(matched, ~matched.annotated.is_ignored)
    nothing_there = np.empty(0, dtype=np.int64)
    found: list[FalsePositive | None] = [None] * len(wrong)
    for image_id, places in wrong_by_image.items():
        objects = objects_by_image.get(image_id, nothing_there)
        overlaps = matched.overlaps(wrong[places], objects)
        for place, row in zip(places.tolist(), overlaps, strict=True):
            found[place] = _explain(matched, int(wrong[place]), objects, row)
    return [one for one in found if one is not None]


def false_negatives(matched: MatchedObjects, min_score: float) -> list[int]:
    """Return the indices of the false negatives at a score threshold, largest first."""
    missed = np.flatnonzero(matched.is_false_negative(min_score))
    areas: npt.NDArray[np.float64] = matched.annotated.areas[missed]
    ordered: list[int] = missed[np.argsort(-areas, kind="stable")].tolist()
    return ordered


def confusion_matrix(matched: MatchedObjects, min_score: float) -> npt.NDArray[np.int64]:
    """Compute the confusion matrix, including false positives and false negatives.

    COCO's matches, within a class, come first. The remaining detections, highest score first, are
    then matched to the unmatched object of another class with the highest IoU, if it is at
    least 0.5.

    Args:
        matched: matches of K classes.
        min_score: score threshold.

    Returns:
        (K + 1, K + 1) counts. Row: annotated class, or background (last). Column: detected
        class, or background (last). The last corner is 0.
    """
    K = len(matched.names)
    annotated, detected = matched.annotated, matched.detected
    counts = np.zeros((K + 1, K + 1), dtype=np.int64)
    found = annotated.labels[matched.is_found(min_score)]
    counts[range(K), range(K)] = np.bincount(found, minlength=K)

    wrong = _in_order(matched, matched.is_false(min_score))
    is_free = matched.is_false_negative(min_score)
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
) -> FalsePositive:
    is_own = matched.annotated.labels[objects] == matched.detected.labels[number]
    for kind, candidates, threshold in (
        (Kind.DUPLICATE, is_own, IOU_THRESHOLD),
        (Kind.OTHER_CLASS, ~is_own, IOU_THRESHOLD),
        (Kind.LOOSE, is_own, MIN_TOUCHING_IOU),
    ):
        values = np.where(candidates, overlaps, -1)
        if len(values) and values.max() >= threshold:
            best = int(values.argmax())
            return FalsePositive(number, kind, int(objects[best]), float(values[best]))
    return FalsePositive(number, Kind.NOTHING)


def _in_order(matched: MatchedObjects, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the indices of the chosen detections, highest score first."""
    numbers = np.flatnonzero(chosen)
    scores: npt.NDArray[np.float64] = matched.detected.scores[numbers]
    return numbers[np.argsort(-scores, kind="stable")]


def _numbers_by_image(
    matched: MatchedObjects, chosen: npt.NDArray[np.bool_]
) -> dict[int, npt.NDArray[np.int64]]:
    """Return the indices of the chosen objects by image id."""
    numbers = np.flatnonzero(chosen)
    places = by_image(matched.annotated.image_ids[numbers])
    return {image_id: numbers[rows] for image_id, rows in places.items()}
