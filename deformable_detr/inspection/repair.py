"""Repair of the content of an annotation file, as far as it needs no guess."""

import math
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import numpy as np

from deformable_detr.coco_json.file_names import is_below_folder
from deformable_detr.coco_json.reading import is_integer
from deformable_detr.inspection.boxes import find_copies, format_of
from deformable_detr.inspection.content import entries_of, shift_of_categories
from deformable_detr.inspection.objects import HOLDS, SoundObjects
from deformable_detr.inspection.photo_files import PhotoFile
from deformable_detr.inspection.photos_of_set import (
    frame_of,
    photo_of,
    size_of,
    votes_for_frame,
)

Entry = dict[str, Any]
_ID_KEYS = {
    "images": ("id",),
    "categories": ("id",),
    "annotations": ("id", "image_id", "category_id"),
}
_NO = (0, None, "", "0", "false", "False")  # `in` compares by value, so also False and 0.0
_YES = (1, "1", "true", "True")
_INTEGER = re.compile(r"-?[0-9]{1,18}")  # of int64
_LARGEST_EXACT = 2**53  # integers up to here are exact as floats


class Repair:
    """Repaired copy of an annotation file; the given content stays as it is.

    Args:
        record: the parsed file.
        photos: its image files by name; empty if they have not been read.

    Attributes:
        record: the repaired content.
        done: number of changes by description.
    """

    def __init__(self, record: Mapping[str, Any], photos: Mapping[str, PhotoFile]) -> None:
        self._photos = photos
        self.done: Counter[str] = Counter()
        self.record: Entry = dict(record)
        for section in _ID_KEYS:
            found = record.get(section)
            self.record[section] = [dict(one) for _, one in entries_of(record, section)]
            lost = len(found) if isinstance(found, list) else 0
            self._count("entries that are no objects", lost - len(self.record[section]))
        self._write_ids_as_integers()
        self._repair_categories()
        self._repair_images()
        self._repair_annotations()
        if not format_of(SoundObjects.of(self.record)):  # else all boxes have to be converted
            self._repair_boxes()
        self._number_annotations()
        self.record = {
            key: _without_infinite(value, self.done) for key, value in self.record.items()
        }

    def _count(self, text: str, number: int = 1) -> None:
        if number:
            self.done[text] += number

    def _keep(self, section: str, text: str, keep: Callable[[Entry], bool]) -> None:
        entries = self.record[section]
        self.record[section] = [entry for entry in entries if keep(entry)]
        self._count(text, len(entries) - len(self.record[section]))

    def _write_ids_as_integers(self) -> None:
        for section, keys in _ID_KEYS.items():
            for entry in self.record[section]:
                for key in keys:
                    number = _as_integer(entry.get(key))
                    if number is not None:
                        entry[key] = number
                        self._count("ids written as integers")

    def _repair_categories(self) -> None:
        self._keep("categories", "categories without an id deleted", _has_id)
        seen: set[tuple[int, str]] = set()

        def is_first(entry: Entry) -> bool:
            pair = (entry["id"], repr(entry.get("name")))
            is_new = pair not in seen
            seen.add(pair)
            return is_new

        self._keep("categories", "repeated categories deleted", is_first)

    def _repair_images(self) -> None:
        self._keep("images", "images without an id deleted", _has_id)
        for entry in self.record["images"]:
            self._repair_name(entry)
        self._keep(
            "images",
            "images without a usable file_name deleted",
            lambda entry: is_below_folder(entry.get("file_name")),
        )
        self._keep(
            "images",
            "images that cannot be read deleted",
            lambda entry: not getattr(photo_of(entry, self._photos), "problem", ""),
        )
        self._repair_sizes()
        self._merge_images()

    def _repair_name(self, entry: Entry) -> None:
        photo = photo_of(entry, self._photos)
        if photo is not None and photo.twin:
            entry["file_name"] = posixpath.join(posixpath.dirname(entry["file_name"]), photo.twin)
            self._count("file names written as they are in the folder")

    def _repair_sizes(self) -> None:
        frame = frame_of(votes_for_frame(self.record, self._photos))
        if frame is None:  # some sizes are upright, some stored
            return
        for entry in self.record["images"]:
            photo = photo_of(entry, self._photos)
            if photo is not None and photo.header is not None:
                size = photo.header.size(frame)
                if size != size_of(entry):
                    entry["height"], entry["width"] = size
                    self._count("sizes taken from the image files")

    def _merge_images(self) -> None:
        """Give each image file one id; delete images of which the id is ambiguous."""
        names: dict[int, set[str]] = {}
        for entry in self.record["images"]:
            names.setdefault(entry["id"], set()).add(posixpath.normpath(entry["file_name"]))
        ambiguous = {image_id for image_id, found in names.items() if len(found) > 1}
        self._keep(
            "images",
            "images of an ambiguous id deleted",
            lambda entry: entry["id"] not in ambiguous,
        )
        first: dict[str, int] = {}
        merged: dict[int, int] = {}
        seen: set[int] = set()

        def is_first(entry: Entry) -> bool:
            name, image_id = posixpath.normpath(entry["file_name"]), entry["id"]
            merged[image_id] = first.setdefault(name, image_id)
            is_new = merged[image_id] == image_id and image_id not in seen
            seen.add(image_id)
            return is_new

        self._keep("images", "repeated images merged", is_first)
        for entry in self.record["annotations"]:
            image_id = entry.get("image_id")
            if is_integer(image_id) and image_id in merged:
                entry["image_id"] = merged[image_id]

    def _repair_annotations(self) -> None:
        images = {entry["id"] for entry in self.record["images"]}
        self._keep(
            "annotations",
            "annotations of no image deleted",
            lambda entry: is_integer(entry.get("image_id")) and entry["image_id"] in images,
        )
        if not shift_of_categories(self.record):
            known = {entry["id"] for entry in self.record["categories"]}
            self._keep(
                "annotations",
                "annotations of no category deleted",
                lambda entry: (
                    is_integer(entry.get("category_id")) and entry["category_id"] in known
                ),
            )
        for entry in self.record["annotations"]:
            self._repair_flags(entry)
            box = entry.get("bbox")
            if isinstance(box, list) and any(isinstance(side, str) for side in box):
                entry["bbox"] = [_as_number(side) for side in box]
                self._count("boxes written as numbers", HOLDS["annotations", "bbox"](entry["bbox"]))
        self._keep(
            "annotations",
            "annotations without a usable box deleted",
            lambda entry: HOLDS["annotations", "bbox"](entry.get("bbox")),
        )
        for entry in self.record["annotations"]:
            if "area" in entry and not HOLDS["annotations", "area"](entry["area"]):
                self._set_area(entry)

    def _repair_flags(self, entry: Entry) -> None:
        """Write `iscrowd` as 0 or 1; a region to ignore is a crowd."""
        for key in ("iscrowd", "ignore"):
            if key not in entry or HOLDS["annotations", key](entry[key]):
                continue
            value = entry[key]
            if isinstance(value, list | dict) or not (value in _NO or value in _YES):
                continue
            entry["iscrowd" if value in _YES else key] = int(value in _YES)
            if key == "ignore":
                del entry[key]
            self._count(f"{key} written as iscrowd 0 or 1")

    def _repair_boxes(self) -> None:
        objects = SoundObjects.of(self.record)
        inside = objects.is_inside
        copies = find_copies(objects, objects.is_learned)[0][1]
        delete = copies | ~(inside | objects.is_crowd)
        self._count(
            "boxes without an area inside their image deleted", int((delete & ~copies).sum())
        )
        self._count("copies of objects deleted", int(copies.sum()))
        for index in np.flatnonzero(objects.is_learned & ~delete).tolist():
            entry = self.record["annotations"][objects.positions[index]]
            self._clip(entry, objects, index)
        gone = {objects.positions[index] for index in np.flatnonzero(delete).tolist()}
        self.record["annotations"] = [
            entry
            for position, entry in enumerate(self.record["annotations"])
            if position not in gone
        ]

    def _clip(self, entry: Entry, objects: SoundObjects, index: int) -> None:
        x, y, width, height = objects.boxes[index].tolist()
        right, bottom = objects.limits[index].tolist()
        left, top = max(x, 0), max(y, 0)
        sides = [left, top, min(x + width, right) - left, min(y + height, bottom) - top]
        if max(abs(old - new) for old, new in zip((x, y, width, height), sides, strict=True)) > 1:
            entry["bbox"] = sides
            self._count("boxes clipped to their image")
        area, (width, height) = entry.get("area"), entry["bbox"][2:]
        if area is not None and (area == 0 or area > width * height * 1.01 + width + height + 1):
            self._set_area(entry)

    def _set_area(self, entry: Entry) -> None:
        width, height = entry["bbox"][2:]
        entry["area"] = max(width, 0) * max(height, 0)
        self._count("areas computed from boxes")

    def _number_annotations(self) -> None:
        entries = self.record["annotations"]
        used = {entry["id"] for entry in entries if _has_id(entry)}
        largest = max([0, *used])
        start = largest + 1 if largest + len(entries) < 2**63 else 1  # ids are of 64 bits
        free = (number for number in count(start) if number not in used)
        seen: set[int] = set()
        for entry in entries:
            if not _has_id(entry) or entry["id"] in seen:
                entry["id"] = next(free)
                self._count("annotations numbered again")
            seen.add(entry["id"])


def _has_id(entry: Mapping[str, Any]) -> bool:
    return is_integer(entry.get("id"))


def _as_integer(value: Any) -> int | None:
    """Return the integer that a text or a float means; None for an integer, or if there is none."""
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    if isinstance(value, float) and abs(value) < _LARGEST_EXACT and value.is_integer():
        return int(value)
    return None


def _as_number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) and len(value) < 40 else value
    except ValueError:
        return value


def _without_infinite(value: Any, done: Counter[str]) -> Any:
    """Return a value without the keys and the elements that are not finite."""
    if isinstance(value, dict):
        found = {key: _without_infinite(one, done) for key, one in value.items()}
        return {key: one for key, one in found.items() if not _is_infinite(one, done)}
    if isinstance(value, list):
        found_list = [_without_infinite(one, done) for one in value]
        return [one for one in found_list if not _is_infinite(one, done)]
    return value


def _is_infinite(value: Any, done: Counter[str]) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        done["numbers that are not finite deleted"] += 1
        return True
    return False
