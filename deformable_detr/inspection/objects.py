"""SoundObjects: the annotations whose values meet the rules, as columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deformable_detr.coco_json.reading import is_integer
from deformable_detr.coco_json.rules import RULES
from deformable_detr.inspection.findings import Findings
from deformable_detr.messages import in_brief, shown

HOLDS = {(rule.section, rule.key): rule.holds for rule in RULES}


@dataclass(frozen=True)
class SoundObjects:
    """Annotations of known images and categories with a box, T of them.

    Attributes:
        positions: their indices in the file.
        entries: the entries.
        names: `file_name` of the image of each, or "".
        image_ids: (T,) int64.
        categories: (T,) int64 category ids.
        boxes: (T, 4) float64 xywh in pixels, as in the file.
        limits: (T, 2) float64 width and height of the image, infinite if unknown.
        area: (T,) float64; NaN where it is missing or breaks its rule.
        is_crowd: (T,) bool.
    """

    positions: Sequence[int]
    entries: Sequence[Mapping[str, Any]]
    names: Sequence[str]
    image_ids: npt.NDArray[np.int64]
    categories: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    limits: npt.NDArray[np.float64]
    area: npt.NDArray[np.float64]
    is_crowd: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "SoundObjects":
        """Select the annotations of a file of which any entry may be wrong."""
        images = _by_id(record, "images")
        categories = _by_id(record, "categories")
        rows = [
            (position, entry, images[entry["image_id"]])
            for position, entry in enumerate(_list_of(record, "annotations"))
            if isinstance(entry, dict)
            and is_integer(entry.get("image_id"))
            and is_integer(entry.get("category_id"))
            and entry["image_id"] in images
            and entry["category_id"] in categories
            and HOLDS["annotations", "bbox"](entry.get("bbox"))
        ]
        area_holds = HOLDS["annotations", "area"]
        entries = [entry for _, entry, _ in rows]
        return cls(
            [position for position, _, _ in rows],
            entries,
            [_name(image) for _, _, image in rows],
            np.array([entry["image_id"] for entry in entries], dtype=np.int64),
            np.array([entry["category_id"] for entry in entries], dtype=np.int64),
            np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4),
            np.array([_limits(image) for _, _, image in rows], dtype=np.float64).reshape(-1, 2),
            np.array(
                [entry["area"] if area_holds(entry.get("area")) else np.nan for entry in entries],
                dtype=np.float64,
            ),
            np.array([entry.get("iscrowd") in (1, True, "1") for entry in entries], dtype=np.bool_),
        )

    @property
    def is_inside(self) -> npt.NDArray[np.bool_]:
        """(T,) bool, whether a box has an area inside its image."""
        start, extent = self.boxes[:, :2], self.boxes[:, 2:]
        low, high = start.clip(0, self.limits), (start + extent).clip(0, self.limits)
        return np.asarray((low.astype(np.float32) < high.astype(np.float32)).all(axis=1))

    @property
    def is_learned(self) -> npt.NDArray[np.bool_]:
        """(T,) bool, whether training learns an object."""
        return self.is_inside & ~self.is_crowd

    def add(self, findings: Findings, kind: str, index: int, text: str, key: str) -> None:
        """Add a finding about an object; `text` describes it."""
        entry, position, name = self.entries[index], self.positions[index], self.names[index]
        findings.add(
            kind,
            f"annotations[{position}] (id {in_brief(entry.get('id'))}, image {shown(name)}): "
            f"{text}",
            section="annotations",
            position=position,
            entry=entry,
            image=name,
            key=key,
        )


def _list_of(record: Mapping[str, Any], section: str) -> list[Any]:
    found = record.get(section)
    return found if isinstance(found, list) else []


def _by_id(record: Mapping[str, Any], section: str) -> dict[int, Mapping[str, Any]]:
    """Return the first entry of each id."""
    found: dict[int, Mapping[str, Any]] = {}
    for entry in _list_of(record, section):
        if isinstance(entry, dict) and is_integer(entry.get("id")):
            found.setdefault(entry["id"], entry)
    return found


def _name(image: Mapping[str, Any]) -> str:
    name = image.get("file_name")
    return name if isinstance(name, str) else ""


def _limits(image: Mapping[str, Any]) -> tuple[float, float]:
    holds = HOLDS["images", "width"]
    sides: list[Any] = [image.get(key) for key in ("width", "height")]
    width, height = (float(side) if holds(side) else np.inf for side in sides)
    return width, height
