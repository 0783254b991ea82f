"""GroundTruth: annotated objects that detections are scored against."""

import logging
import posixpath
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deformable_detr import distributed
from deformable_detr.coco_json.columns import AnnotationColumns, read_columns
from deformable_detr.coco_json.rules import Use
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import in_brief, listed, shown
from deformable_detr.packed import PackedTexts

EmptyBoxes = Literal["missed", "ignored"]
logger = logging.getLogger(__name__)
_RECALLS = np.linspace(0.0, 1.0, 101)  # where COCO samples the precision


@dataclass(frozen=True)
class GroundTruth:
    """Content of a COCO annotation file for scoring: T objects, crowds included, in file order.

    Objects are stored as columns, which are cheap to keep and to send to worker processes.

    Attributes:
        file: the annotation file.
        label_space: its categories, in the order of their ids.
        image_ids: (I,) int64 ids of the images.
        file_names: I names, `file_name` of the images, "" if not in the file.
        image_sizes: (I, 2) int64 height and width of the images in pixels, 0 if not in the file.
        images: (T,) int64 index into `image_ids` per object.
        categories: (T,) int64 index into `label_space.category_ids` per object.
        boxes_xywh: (T, 4) float64 boxes in pixels, as in the file.
        area: (T,) float64 areas in square pixels; area of the box if not in the file.
        is_crowd: (T,) bool.
    """

    file: Path
    label_space: LabelSpace
    image_ids: npt.NDArray[np.int64]
    file_names: PackedTexts
    image_sizes: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    categories: npt.NDArray[np.int64]
    boxes_xywh: npt.NDArray[np.float64]
    area: npt.NDArray[np.float64]
    is_crowd: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, file: Path, record: Mapping[str, Any]) -> "GroundTruth":
        """Build from the content of a file that has been checked."""
        return cls.from_columns(file, AnnotationColumns.of(record))

    @classmethod
    def from_columns(cls, file: Path, columns: AnnotationColumns) -> "GroundTruth":
        """Build from the columns of a file."""
        return cls(
            file,
            LabelSpace.from_categories(columns.categories),
            columns.image_ids,
            columns.file_names,
            columns.image_sizes,
            columns.images,
            columns.labels,
            columns.boxes_xywh,
            columns.area,
            columns.is_crowd,
        )

    def clipped_xyxy(self) -> npt.NDArray[np.float32]:
        """Return (T, 4) corners in pixels, clipped to the image as far as its size is known."""
        x, y, width, height = self.boxes_xywh.T
        corners = np.stack((x, y, x + width, y + height), axis=1).reshape(-1, 2, 2)
        clipped = np.clip(corners, 0.0, self._limits()[:, None])
        return clipped.reshape(-1, 4).astype(np.float32)

    def empty(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Return which boxes, crowds excepted, have no area inside their image, by reason.

        Returns:
            (T,) bool per reason: "degenerate" (no width or no height, in float32) and "outside"
            (entirely outside the image).
        """
        start, extent = self.boxes_xywh[:, :2], self.boxes_xywh[:, 2:]
        corners = self.clipped_xyxy()
        hidden = (corners[:, 2:] <= corners[:, :2]).any(axis=1) & ~self.is_crowd
        outside = ((start + extent <= 0) | (start >= self._limits())).any(axis=1)
        outside &= hidden & (extent > 0).all(axis=1)
        return {"degenerate": hidden & ~outside, "outside": outside}

    def _limits(self) -> npt.NDArray[np.float64]:
        """Return (T, 2) width and height of the image of each object, infinite if unknown."""
        limits = self.image_sizes[:, ::-1].astype(np.float64)
        return np.where(limits > 0, limits, np.inf)[self.images]

    def scored(self, empty_boxes: EmptyBoxes) -> "GroundTruth":
        """Return the objects to score detections against.

        Args:
            empty_boxes: boxes that have no area inside their image are "missed", objects that no
                detection finds, as in COCO's evaluation; or "ignored", left out.
        """
        return self if empty_boxes == "missed" else self._select(~_any(self.empty()))

    def _select(self, keep: npt.NDArray[np.bool_]) -> "GroundTruth":
        columns = ("images", "categories", "boxes_xywh", "area", "is_crowd")
        return replace(self, **{name: getattr(self, name)[keep] for name in columns})

    def to_coco(self) -> dict[str, Any]:
        """Return `images`, `categories` and `annotations` for pycocotools.

        Annotations are renumbered from 1: pycocotools treats id 0 as "not matched", and keeps only
        one of several annotations that share an id.
        """
        sizes = zip(self.image_ids.tolist(), self.image_sizes.tolist(), strict=True)
        objects = zip(
            self.image_ids[self.images].tolist(),
            self.label_space.ids_of(self.categories).tolist(),
            self.boxes_xywh.tolist(),
            self.area.tolist(),
            self.is_crowd.tolist(),
            strict=True,
        )
        return {
            "images": [
                {"id": image_id, "height": height, "width": width}
                for image_id, (height, width) in sizes
            ],
            "categories": self.label_space.to_json(),
            "annotations": [
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(is_crowd),
                }
                for number, (image_id, category_id, box, area, is_crowd) in enumerate(objects, 1)
            ],
        }


def read_ground_truth(file: Path, *, empty_boxes: EmptyBoxes = "missed") -> GroundTruth:
    """Read a COCO annotation file for scoring; its images need not exist.

    Args:
        file: path of the JSON file; for keys that may be missing see `coco_json.rules`.
        empty_boxes: see `GroundTruth.scored`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the content breaks a rule; the message names file, entry, key and value.
    """
    return read_all(file, "scoring", empty_boxes).scored(empty_boxes)


def read_all(file: Path, use: Use, empty_boxes: EmptyBoxes) -> GroundTruth:
    """Read and check a COCO annotation file; warn of what is legal but probably wrong.

    Args:
        file: path of the JSON file.
        use: decides which keys may be missing.
        empty_boxes: only the warning depends on it; the result has these boxes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the content breaks a rule; the message names file, entry, key and value.
    """
    truth = GroundTruth.from_columns(file, read_columns(file, use))
    if distributed.is_main():
        for line in remarks(truth, empty_boxes):
            logger.warning("%s: %s", shown(file), line)
    return truth


def remarks(truth: GroundTruth, empty_boxes: EmptyBoxes) -> list[str]:
    """Return a line about each kind of content that is legal, but probably wrong."""
    lines = [*_about_twins(truth), *_about_names(truth.label_space)]
    empty = truth.empty()
    hidden = _any(empty)
    if hidden.any():
        lines.append(_about_empty(truth, empty, empty_boxes))
    copies, originals = _copies(truth, ~truth.is_crowd & ~hidden)
    if copies.any():
        last = int(np.flatnonzero(copies)[0])
        lines.append(
            f"{_count(copies)} repeat another one (image, category and box), such as "
            f"annotations[{originals[last]}] and annotations[{last}]: delete the copies; where a "
            f"detector finds each object once, AP is {ap_ceiling(truth, copies):.3f} at most"
        )
    flat = (truth.area == 0) & ~truth.is_crowd & ~hidden
    if flat.any():
        lines.append(
            f"{_count(flat)} have area 0 but a box with extent, such as "
            f"annotations[{np.flatnonzero(flat)[0]}]: they count as small objects; without `area` "
            "the area of the box counts"
        )
    scored = truth.scored(empty_boxes)
    if scored.is_crowd.all():
        lines.append(
            f"no object to find in {len(truth.images)} annotations "
            f"({int(truth.is_crowd.sum())} crowd regions): AP is not defined, which is -1"
        )
    return lines


def ap_ceiling(truth: GroundTruth, missed: npt.NDArray[np.bool_]) -> float:
    """Compute the AP of a detector that finds all objects but some, and nothing else.

    Args:
        truth: the objects.
        missed: (T,) bool, True for the objects not found.

    Returns:
        The mean over classes with objects of the share of COCO's 101 recall values that the class
        reaches; -1 without objects.
    """
    num_classes = len(truth.label_space.category_ids)
    categories, is_missed = truth.categories[~truth.is_crowd], missed[~truth.is_crowd]
    total = np.bincount(categories, minlength=num_classes)
    found = np.bincount(categories[~is_missed], minlength=num_classes)[total > 0]
    reached = np.searchsorted(_RECALLS, found / total[total > 0], side="right")
    reached[found == 0] = 0
    return float(reached.mean() / len(_RECALLS)) if reached.size else -1.0


def _about_empty(
    truth: GroundTruth, empty: Mapping[str, npt.NDArray[np.bool_]], empty_boxes: EmptyBoxes
) -> str:
    hidden = _any(empty)
    reasons = {"degenerate": "without width or height", "outside": "outside"}
    parts = [f"{int(empty[key].sum())} {text}" for key, text in reasons.items() if empty[key].any()]
    where = "and of evaluation"
    if empty_boxes == "missed":
        where = (
            "and missed by every detector in evaluation, where AP is "
            f"{ap_ceiling(truth, hidden):.3f} at most; "
            "data.empty_boxes=ignored or evaluate --empty-boxes ignored leaves them out"
        )
    return (
        f"{_count(hidden)} have no area inside their image ({', '.join(parts)}), such as "
        f"annotations[{np.flatnonzero(hidden)[0]}]: left out of training {where}"
    )


def _about_twins(truth: GroundTruth) -> list[str]:
    ids: dict[str, list[int]] = {}
    for image_id, name in zip(truth.image_ids.tolist(), truth.file_names, strict=True):
        ids.setdefault(posixpath.normpath(name), []).append(image_id)
    twins = {name: found for name, found in ids.items() if len(found) > 1 and name != "."}
    if not twins:
        return []
    name, found = next(iter(twins.items()))
    return [
        f"{len(twins)} image files have several ids, such as {in_brief(name)} with "
        f"{listed(found)}: each id is trained and scored without the objects of the others; give "
        "the annotations of a file one image_id"
    ]


def _about_names(space: LabelSpace) -> list[str]:
    counts = Counter(space.names)
    shared = [name for name, count in counts.items() if count > 1]
    if not shared:
        return []
    ids = [space.category_ids[place] for place, name in enumerate(space.names) if name == shared[0]]
    return [
        f"{len(shared)} names belong to several categories, such as {in_brief(shared[0])} to "
        f"{listed(ids)}: they are different classes"
    ]


def _copies(
    truth: GroundTruth, among: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], dict[int, int]]:
    """Find objects with the image, category and box of an earlier one.

    Returns:
        (T,) bool, True for the copies; and the index of the earlier object by that of the copy.
    """
    places = np.flatnonzero(among)
    keys = (*truth.boxes_xywh[places].T, truth.categories[places], truth.images[places])
    order = np.lexsort(keys)  # stable: an object stands before its copies
    repeats = np.ones(max(len(places) - 1, 0), dtype=np.bool_)
    for key in keys:
        repeats &= key[order][1:] == key[order][:-1]
    later = np.flatnonzero(repeats) + 1
    is_copy = np.zeros(len(among), dtype=np.bool_)
    is_copy[places[order[later]]] = True
    return is_copy, dict(
        zip(places[order[later]].tolist(), places[order[later - 1]].tolist(), strict=True)
    )


def _any(masks: Mapping[str, npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
    return np.logical_or.reduce(list(masks.values()))


def _count(mask: npt.NDArray[np.bool_]) -> str:
    return f"{int(mask.sum())} of {len(mask)} annotations"
