"""Which detection meets which annotated object, as COCO decides it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask
from pycocotools.cocoeval import COCOeval

from deformable_detr.evaluation.coco_eval import distinct_names
from deformable_detr.labels import LabelSpace

IOU_THRESHOLD = 0.5  # what AP50 calls found
NONE = -1  # no partner


@dataclass(frozen=True)
class AnnotatedObjects:
    """T annotated objects.

    Attributes:
        image_ids: (T,) int64.
        labels: (T,) int64 in 0..K-1.
        boxes_xywh: (T, 4) float64 left, top, width, height in pixels.
        areas: (T,) float64 square pixels, as annotated.
        is_ignored: (T,) bool: need not be found, as a crowd or in an image not looked at.
        partners: (T,) int64 number of the detection that meets it, or -1.
    """

    image_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    boxes_xywh: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64]
    is_ignored: npt.NDArray[np.bool_]
    partners: npt.NDArray[np.int64]


@dataclass(frozen=True)
class DetectedObjects:
    """R detections.

    Attributes:
        image_ids: (R,) int64.
        labels: (R,) int64 in 0..K-1.
        boxes_xywh: (R, 4) float64 left, top, width, height in pixels.
        scores: (R,) float64.
        is_ignored: (R,) bool: neither right nor wrong, as in a crowd or beyond the 100 best.
        partners: (R,) int64 number of the object that it meets, or -1.
    """

    image_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    boxes_xywh: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    is_ignored: npt.NDArray[np.bool_]
    partners: npt.NDArray[np.int64]


@dataclass(frozen=True)
class MatchedObjects:
    """Annotated and detected objects, matched at an IoU of 0.5 within their class.

    COCO lets detections choose in the order of their scores. Those above a threshold are therefore
    matched as if there were no others.

    Attributes:
        names: K distinct class names.
        annotated: what there is.
        detected: what was found.
    """

    names: list[str]
    annotated: AnnotatedObjects
    detected: DetectedObjects

    @classmethod
    def from_coco(cls, scorer: COCOeval, ground_truth: Mapping[str, Any]) -> "MatchedObjects":
        """The matches of a scorer of `coco_eval.run_coco`, given the same `ground_truth`."""
        label_space = LabelSpace.from_categories(ground_truth["categories"])
        truths = scorer.cocoGt.dataset["annotations"]
        found = scorer.cocoDt.dataset["annotations"]
        T, R = len(truths), len(found)
        # What COCO does not look at stays ignored.
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
        """(R,) whether a detection of that score or more meets no object."""
        detected = self.detected
        is_wrong = (detected.partners == NONE) & ~detected.is_ignored
        return is_wrong & (detected.scores >= min_score)

    def is_found(self, min_score: float) -> npt.NDArray[np.bool_]:
        """(T,) whether an object is met by a detection of that score or more."""
        partners = self.annotated.partners
        found = np.zeros(len(partners), dtype=np.bool_)
        has = partners != NONE
        found[has] = self.detected.scores[partners[has]] >= min_score
        return found

    def is_missed(self, min_score: float) -> npt.NDArray[np.bool_]:
        """(T,) whether an object that should be is not found."""
        return ~self.is_found(min_score) & ~self.annotated.is_ignored

    def overlaps(
        self, detections: npt.NDArray[np.int64], objects: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """(len(detections), len(objects)) IoU of each with each, given their numbers."""
        if not len(detections) or not len(objects):
            return np.zeros((len(detections), len(objects)))
        boxes = self.detected.boxes_xywh[detections], self.annotated.boxes_xywh[objects]
        return np.asarray(mask.iou(*boxes, [0] * len(objects)))


def _columns(
    items: Sequence[Mapping[str, Any]], label_space: LabelSpace
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Image ids, labels and boxes of annotations or results."""
    return (
        np.array([item["image_id"] for item in items], dtype=np.int64),
        np.array([label_space.label(item["category_id"]) for item in items], dtype=np.int64),
        np.array([item["bbox"] for item in items], dtype=np.float64).reshape(-1, 4),
    )


def by_image(image_ids: npt.NDArray[np.int64]) -> dict[int, npt.NDArray[np.int64]]:
    """The places of each image id, in their order."""
    order = np.argsort(image_ids, kind="stable")
    ids, starts = np.unique(image_ids[order], return_index=True)
    return dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True)) if len(ids) else {}
