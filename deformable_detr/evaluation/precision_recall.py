"""Precision-recall curves as COCO averages them, and both against the score threshold."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pycocotools.cocoeval import COCOeval

from deformable_detr.evaluation.coco_eval import NOT_DEFINED, precision_by_class
from deformable_detr.evaluation.matched_objects import NONE, MatchedObjects

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision-recall curves of pycocotools, for all object sizes, 100 detections per image.

    Attributes:
        ious: (10,) IoU thresholds 0.50 to 0.95.
        recalls: (101,) recall values 0 to 1 at which precision is sampled.
        precision: (10, 101, K) in [0, 1]; -1 for a class without objects.
    """

    ious: Floats
    recalls: Floats
    precision: Floats

    @classmethod
    def from_coco(cls, scorer: COCOeval) -> "PrecisionRecall":
        """Return the curves of an evaluator of `coco_eval.run_coco`."""
        return cls(scorer.params.iouThrs, scorer.params.recThrs, precision_by_class(scorer))

    def of_all_classes(self) -> Floats:
        """Return (10, 101) means over the classes with objects; 0 if there are none."""
        has_objects = (self.precision > NOT_DEFINED).all((0, 1))
        if not has_objects.any():
            return np.zeros(self.precision.shape[:2])
        means: Floats = self.precision[:, :, has_objects].mean(-1)
        return means


@dataclass(frozen=True)
class ScoreCurve:
    """Precision and recall against the score threshold.

    All classes are counted together, at an IoU of 0.5.

    Attributes:
        thresholds: (101,) score thresholds 0 to 1.
        precision: (101,) fraction of the detections that match an object; NaN without detections.
        recall: (101,) fraction of the objects that are matched; 0 without objects.
    """

    thresholds: Floats
    precision: Floats
    recall: Floats

    @classmethod
    def of(cls, matched: MatchedObjects) -> "ScoreCurve":
        """Compute the curve of matched objects."""
        detected = matched.detected
        thresholds = np.linspace(0, 1, 101)
        is_right = (detected.matched_index != NONE) & ~detected.is_ignored
        right = _at_least(detected.scores[is_right], thresholds)
        counted = _at_least(detected.scores[~detected.is_ignored], thresholds)
        num_objects = int((~matched.annotated.is_ignored).sum())
        precision = np.divide(right, counted, out=np.full(101, np.nan), where=counted > 0)
        return cls(thresholds, precision, right / (num_objects or 1))

    @property
    def f1(self) -> Floats:
        """Harmonic mean of precision and recall, (101,); 0 where one is 0 or undefined."""
        total = self.precision + self.recall
        return np.divide(
            2 * self.precision * self.recall, total, out=np.zeros(101), where=total > 0
        )

    @property
    def best(self) -> int:
        """Index of the lowest threshold with the highest F1."""
        return int(self.f1.argmax())


def _at_least(scores: Floats, thresholds: Floats) -> Floats:
    """Return the (101,) number of scores at or above each threshold."""
    ordered = np.sort(scores)
    return (len(ordered) - np.searchsorted(ordered, thresholds, side="left")).astype(np.float64)
