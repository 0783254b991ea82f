"""Matches between detections and annotated objects, as determined by COCO."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask
from pycocotools.cocoeval import COCOeval

from deformable_detr.evaluation.coco_eval import distinct_names
from deformable_detr.labels import LabelSpace

IOU_THRESHOLD = 0.5  # as in AP50
NONE = -1  # index of unmatched objects and detections


@dataclass(frozen=True)
class AnnotatedObjects:
    """Columns of T annotated objects.

    Attributes:
        image_ids: (T,) int64.
        labels: (T,) int64 in 0..K-1.
        boxes_xywh: (T, 4) float64 left, top, width, height in pixels.
        areas: (T,) float64 square pixels, as annotated.
        is_ignored: (T,) bool: not counted, such as crowds and objects of images not evaluated.
        matched_index: (T,) int64, the detection that matches the object, or -1.
    """

    image_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    boxes_xywh: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64]
    is_ignored: npt.NDArray[np.bool_]
    matched_index: npt.NDArray[np.int64]


@dataclass(frozen=True)
class DetectedObjects:
    """Columns of R detections.

    Attributes:
        image_ids: (R,) int64.
        labels: (R,) int64 in 0..K-1.
        boxes_xywh: (R, 4) float64 left, top, width, height in pixels.
        scores: (R,) float64.
        is_ignored: (R,) bool: not counted, such as those in a crowd or beyond the top 100.
        matched_index: (R,) int64, the object that the detection matches, or -1.
    """

    image_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    boxes_xywh: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    is_ignored: npt.NDArray[np.bool_]
    matched_index: npt.NDArray[np.int64]


@dataclass(frozen=True)
class MatchedObjects:
    """Annotated and detected objects, matched at an IoU of 0.5 within their class.

    COCO matches detections in the order of their scores. The matches of detections above a score
    threshold therefore do not depend on the others.

    Attributes:
        names: K distinct class names.
        annotated: annotated objects.
        detected: detections.
    """

    names: list[str]
    annotated: AnnotatedObjects
    detected: DetectedObjects

    @classmethod
    def from_coco(cls, scorer: COCOeval, ground_truth: Mapping[str, Any]) -> "MatchedObjects":
        """Return the matches of an evaluator of `run_coco`, given the same `ground_truth`."""
        label_space = LabelSpace.from_categories(ground_truth["categories"])
        truths = scorer.cocoGt.dataset["annotations"]
        found = scorer.cocoDt.dataset["annotations"]
        T, R = len(truths), len(found)
        # Objects and detections that COCO does not evaluate stay ignored.
        optional, harmless = np.ones(T, dtype=np.bool_), np.ones(R, dtype=np.bool_)
        finders, objects = np.full(T, NONE), np.full(R, NONE)
        all_areas = scorer.params.areaRng[0]
        [threshold] = np.flatnonzero(np.isclose(scorer.params.iouThrs, IOU_THRESHOLD))
        for one in scorer.evalImgs:
            if one is None or one["aRng"] != all_areas:
                continue
            # Both are numbered from 1; 0 stands for no match.
            truth_rows = np.array(one["gtIds"], dtype=np.int64) - 1
            found_rows = np.array(one["dtIds"], dtype=np.int64) - 1
            optional[truth_rows] = one["gtIgnore"]
            harmless[found_rows] = one["dtIgnore"][threshold]
            finders[truth_rows] = one["gtMatches"][threshold] - 1
            objects[found_rows] = one["dtMatches"][threshold] - 1
        finders[optional], objects[harmless] = NONE, NONE
        return cls(
            distinct_names(label_space),
            AnnotatedObjects(
                *_columns(truths, label_space),
                np.array([one["area"] for one in truths], dtype=np.float64),
                optional,
                finders,
            ),
            DetectedObjects(
                *_columns(found, label_space),
                np.array([one["score"] for one in found], dtype=np.float64),
                harmless,
                objects,
            ),
        )

    def is_false(self, min_score: float) -> npt.NDArray[np.bool_]:
        """Return (R,) whether each detection is a false positive at a score threshold."""
        detected = self.detected
        is_wrong = (detected.matched_index == NONE) & ~detected.is_ignored
        return is_wrong & (detected.scores >= min_score)

    def is_found(self, min_score: float) -> npt.NDArray[np.bool_]:
        """Return (T,) whether each object is matched at a score threshold."""
        matched_index = self.annotated.matched_index
        found = np.zeros(len(matched_index), dtype=np.bool_)
        has = matched_index != NONE
        found[has] = self.detected.scores[matched_index[has]] >= min_score
        return found

    def is_false_negative(self, min_score: float) -> npt.NDArray[np.bool_]:
        """Return (T,) whether each object is a false negative at a score threshold."""
        return ~self.is_found(min_score) & ~self.annotated.is_ignored

    def overlaps(
        self, detections: npt.NDArray[np.int64], objects: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Return the (len(detections), len(objects)) pairwise IoU, given their indices."""
        if not len(detections) or not len(objects):
            return np.zeros((len(detections), len(objects)))
        boxes = self.detected.boxes_xywh[detections], self.annotated.boxes_xywh[objects]
        return np.asarray(mask.iou(*boxes, [0] * len(objects)))


def _columns(
    items: Sequence[Mapping[str, Any]], label_space: LabelSpace
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return image ids, labels and boxes of annotations or results."""
    return (
        np.array([item["image_id"] for item in items], dtype=np.int64),
        np.array([label_space.label(item["category_id"]) for item in items], dtype=np.int64),
        np.array([item["bbox"] for item in items], dtype=np.float64).reshape(-1, 4),
    )


def by_image(image_ids: npt.NDArray[np.int64]) -> dict[int, npt.NDArray[np.int64]]:
    """Return the positions of each image id, in order."""
    order = np.argsort(image_ids, kind="stable")
    ids, starts = np.unique(image_ids[order], return_index=True)
    return dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True)) if len(ids) else {}
