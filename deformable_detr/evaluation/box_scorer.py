"""pycocotools' matching of boxes, with arrays."""

import copy
from collections import defaultdict
from collections.abc import Set
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.cocoeval import COCOeval

FEW_PAIRS = 128  # of a detection and an object; below, pycocotools' loop is faster


class BoxScorer(COCOeval):  # type: ignore[misc]  # pycocotools has no types
    """pycocotools' evaluator, spared the pairs of image and category that hold nothing.

    It matches many objects and detections of an image with arrays instead of pycocotools' loop
    over thresholds, detections and objects; the results are bitwise the same.
    """

    def evaluate(self) -> None:
        """Match each pair of image and category; `evalImgs` is None where it is empty."""
        params = self.params
        seen = set(params.imgIds)
        for one in self.cocoGt.dataset["annotations"]:
            one["ignore"] = one["iscrowd"]
        self._gts, self._dts = (
            _by_image_and_category(coco.dataset["annotations"], seen)
            for coco in (self.cocoGt, self.cocoDt)
        )
        pairs = self._gts.keys() | self._dts.keys()
        self.ious = {pair: self.computeIoU(*pair) for pair in pairs}
        is_crowded = {
            pair: len(self._gts.get(pair, ())) * len(self._dts.get(pair, ())) >= FEW_PAIRS
            for pair in pairs
        }
        ways = {True: self.evaluate_crowded, False: self.evaluateImg, None: _nothing}
        self.evalImgs = [
            ways[is_crowded.get((image_id, category_id))](
                image_id, category_id, areas, params.maxDets[-1]
            )
            for category_id in params.catIds
            for areas in params.areaRng
            for image_id in params.imgIds
        ]
        self._paramsEval = copy.deepcopy(params)

    def evaluate_crowded(
        self, image_id: int, category_id: int, areas: tuple[float, float], limit: int
    ) -> dict[str, Any]:
        """Do what `evaluateImg` does, faster where there are many objects and detections."""
        objects, found = self._gts[image_id, category_id], self._dts[image_id, category_id]
        low, high = areas
        ignored = np.array(
            [bool(one["ignore"] or one["area"] < low or one["area"] > high) for one in objects],
            dtype=np.int64,
        )
        order = np.argsort(ignored, kind="mergesort")  # ignored ones last
        objects, ignored = [objects[place] for place in order], ignored[order]
        best = np.argsort([-one["score"] for one in found], kind="mergesort")[:limit]
        found = [found[place] for place in best]
        found_ids = np.array([one["id"] for one in found], dtype=np.float64)
        matches = _match(
            self.ious[image_id, category_id][:, order],
            np.minimum(self.params.iouThrs, 1 - 1e-10),
            num_regular=len(objects) - int(ignored.sum()),
            is_crowd=np.array([bool(one["iscrowd"]) for one in objects], dtype=bool),
        )
        object_ids = np.array([one["id"] for one in objects], dtype=np.float64)
        matched = matches >= 0
        of_found = np.zeros(matches.shape)
        of_found[matched] = object_ids[matches[matched]]
        of_objects = np.zeros((len(matches), len(objects)))
        threshold, place = np.nonzero(matched)  # by score, so that a crowd keeps its last one
        of_objects[threshold, matches[matched]] = found_ids[place]
        outside = np.array([one["area"] < low or one["area"] > high for one in found], dtype=bool)
        left_out = ~matched & outside
        left_out[matched] = ignored[matches[matched]] == 1
        return {
            "image_id": image_id,
            "category_id": category_id,
            "aRng": areas,
            "maxDet": limit,
            "dtIds": [one["id"] for one in found],
            "gtIds": [one["id"] for one in objects],
            "dtMatches": of_found,
            "gtMatches": of_objects,
            "dtScores": [one["score"] for one in found],
            "gtIgnore": ignored,
            "dtIgnore": left_out,
        }


def _nothing(*_: object) -> None:
    """Return what `evaluateImg` returns of a pair of image and category that holds nothing."""


def _match(
    ious: npt.NDArray[np.float64],
    thresholds: npt.NDArray[np.float64],
    *,
    num_regular: int,
    is_crowd: npt.NDArray[np.bool_],
) -> npt.NDArray[np.intp]:
    """Match detections to objects as COCO does.

    Each detection, best score first, takes the free object of highest IoU that reaches the
    threshold, the last one of equals; an ignored object only if no regular one is left for it.
    Crowds are always free.

    Args:
        ious: (D, G) by detection, best score first, and object, ignored ones last.
        thresholds: (T,).
        num_regular: number of objects that are not ignored.
        is_crowd: (G,).

    Returns:
        (T, D) index of the object; -1 if there is none.
    """
    matches = np.full((len(thresholds), len(ious)), -1, dtype=np.intp)
    is_free = np.ones((len(thresholds), ious.shape[1]), dtype=bool)
    lowest = thresholds.min()
    for detection in np.flatnonzero((ious >= lowest).any(axis=1)):
        near = np.flatnonzero(ious[detection] >= lowest)
        reached = is_free[:, near] & (ious[detection, near] >= thresholds[:, None])
        split = int(np.searchsorted(near, num_regular))
        for part in (slice(split, None), slice(0, split)):  # a regular object has the last word
            values = np.where(reached[:, part], ious[detection, near[part]], -1.0)[:, ::-1]
            rows = np.flatnonzero(reached[:, part].any(axis=1))
            if len(rows):
                matches[rows, detection] = near[part][::-1][values[rows].argmax(axis=1)]
        rows = np.flatnonzero(matches[:, detection] >= 0)
        taken = matches[rows, detection]
        is_free[rows, taken] = is_crowd[taken]
    return matches


def _by_image_and_category(
    annotations: list[dict[str, Any]], seen: Set[int]
) -> dict[tuple[int, int], list[dict[str, Any]]]:
    groups: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for one in annotations:
        if one["image_id"] in seen:
            groups[one["image_id"], one["category_id"]].append(one)
    return groups
