"""DetectionTable: detections of many images as arrays, cheap to keep and to send."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deformable_detr.boxes import xywh_to_xyxy, xyxy_to_xywh
from deformable_detr.files import write_whole
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import shown
from deformable_detr.structures import Detections

_MOST_SHRINKING = 50
_SLACK = 1 << 20


@dataclass(frozen=True)
class DetectionTable:
    """Table of R detections of I images, with the ids of the annotation file.

    Attributes:
        seen: (I,) int64 ids of the images evaluated, including those without detections.
        image_ids: (R,) int64 image id of each detection.
        category_ids: (R,) int64 category id of each detection.
        boxes_xywh: (R, 4) float64 left, top, width, height in pixels of the original image.
        scores: (R,) float64.

    Raises:
        ValueError: a box or a score is infinite or NaN, which COCO would count as a match.
    """

    seen: npt.NDArray[np.int64]
    image_ids: npt.NDArray[np.int64]
    category_ids: npt.NDArray[np.int64]
    boxes_xywh: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        is_bad = ~(np.isfinite(self.scores) & np.isfinite(self.boxes_xywh).all(1))
        if is_bad.any():
            image_id = self.image_ids[is_bad][0]
            own = self.image_ids == image_id
            raise ValueError(
                f"detections must be finite, got {(is_bad & own).sum()} of {own.sum()} detections "
                f"of image {image_id} with scores or boxes that are not; check the weights of the "
                "detector"
            )

    @classmethod
    def empty(cls) -> "DetectionTable":
        """Return a table without images and detections."""
        return cls.from_results([], seen=[])

    @classmethod
    def from_detections(
        cls, image_id: int, detections: Detections, label_space: LabelSpace
    ) -> "DetectionTable":
        """Build the table of one image; labels, all of categories, become category ids."""
        labels = detections.labels.cpu().numpy()
        return cls(
            np.array([image_id], dtype=np.int64),
            np.full(len(labels), image_id, dtype=np.int64),
            label_space.ids_of(labels),
            xyxy_to_xywh(detections.boxes_xyxy.detach().double()).cpu().numpy(),
            detections.scores.detach().double().cpu().numpy(),
        )

    @classmethod
    def from_results(
        cls,
        results: Sequence[Mapping[str, Any]],
        *,
        seen: Sequence[int] | npt.NDArray[np.int64],
    ) -> "DetectionTable":
        """Build a table from COCO's list of results, for the images `seen`."""
        boxes = np.array([result["bbox"] for result in results], dtype=np.float64)
        return cls(
            np.array(seen, dtype=np.int64),
            np.array([result["image_id"] for result in results], dtype=np.int64),
            np.array([result["category_id"] for result in results], dtype=np.int64),
            boxes.reshape(-1, 4),
            np.array([result["score"] for result in results], dtype=np.float64),
        )

    @classmethod
    def concatenate(cls, tables: Sequence["DetectionTable"]) -> "DetectionTable":
        """Concatenate tables."""
        tables = [cls.empty(), *tables]
        return cls(
            np.concatenate([table.seen for table in tables]),
            np.concatenate([table.image_ids for table in tables]),
            np.concatenate([table.category_ids for table in tables]),
            np.concatenate([table.boxes_xywh for table in tables]),
            np.concatenate([table.scores for table in tables]),
        )

    @classmethod
    def merge(cls, tables: Sequence["DetectionTable"]) -> "DetectionTable":
        """Concatenate tables in the order of image ids, skipping images seen by an earlier table.

        The order of the detections of an image is kept, so the result does not depend on the
        shares of the processes. A sampler that pads its last batch gives some images to two ranks;
        counted twice, their detections would be false positives.
        """
        kept: list[DetectionTable] = []
        known = np.empty(0, dtype=np.int64)
        for table in tables:
            kept.append(table._without(known))
            known = np.union1d(known, table.seen)
        whole = cls.concatenate(kept)
        order = np.argsort(whole.image_ids, kind="stable")
        return cls(
            known,
            whole.image_ids[order],
            whole.category_ids[order],
            whole.boxes_xywh[order],
            whole.scores[order],
        )

    def _without(self, image_ids: npt.NDArray[np.int64]) -> "DetectionTable":
        keep = ~np.isin(self.image_ids, image_ids)
        return DetectionTable(
            self.seen[~np.isin(self.seen, image_ids)],
            self.image_ids[keep],
            self.category_ids[keep],
            self.boxes_xywh[keep],
            self.scores[keep],
        )

    def __len__(self) -> int:
        return len(self.scores)

    def of_image(self, image_id: int, label_space: LabelSpace) -> Detections:
        """Return the detections of one image, best first; category ids become labels again."""
        rows = np.flatnonzero(self.image_ids == image_id)
        labels = [label_space.label(category) for category in self.category_ids[rows].tolist()]
        return Detections(
            torch.from_numpy(self.scores[rows]).float(),
            torch.tensor(labels, dtype=torch.int64),
            xywh_to_xyxy(torch.from_numpy(self.boxes_xywh[rows])).float(),
        )

    def to_results(self) -> list[dict[str, Any]]:
        """Return COCO's list of results, not rounded: read back, they have the same metrics.

        Rounded scores would have ties, and rounded boxes other overlaps.
        """
        return [
            {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for image_id, category_id, box, score in zip(
                self.image_ids.tolist(),
                self.category_ids.tolist(),
                self.boxes_xywh.tolist(),
                self.scores.tolist(),
                strict=True,
            )
        ]

    def write(self, path: Path, *, step: int) -> None:
        """Write the table without loss of precision, with the step of its weights."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        with write_whole(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, step=np.array(step), **columns)

    @classmethod
    def read(cls, path: Path) -> tuple["DetectionTable", int]:
        """Read a file that `write` has written; return the table and the step.

        Raises:
            ValueError: the file is damaged or of another kind.
        """
        try:
            _require_bounded(path)
            with path.open("rb") as file, np.load(file) as columns:
                return cls(*(columns[field.name] for field in fields(cls))), int(columns["step"])
        except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"detections {shown(path)} must be a file that training has written, got: {error}; "
                "delete it"
            ) from error


def _require_bounded(path: Path) -> None:
    """Raise unless arrays are about as large as their file; scores and boxes hardly shrink."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        held = sum(entry.file_size for entry in archive.infolist())
    if held > _MOST_SHRINKING * size + _SLACK:
        raise ValueError(f"{size} bytes for {held}")
