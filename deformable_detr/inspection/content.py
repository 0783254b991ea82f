"""Inspection of the content of an annotation file, without its images."""

import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from deformable_detr.coco_json.file_names import is_below_folder
from deformable_detr.coco_json.reading import is_integer
from deformable_detr.coco_json.rules import find_problems
from deformable_detr.inspection.boxes import inspect_boxes
from deformable_detr.inspection.findings import Findings
from deformable_detr.inspection.objects import SoundObjects
from deformable_detr.messages import in_brief, shown

Entry = Mapping[str, Any]
SCORED = 100  # detections of an image that COCO scores


def entries_of(record: Any, section: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Iterate over position and entry of a section, as far as they are objects."""
    found = record.get(section) if isinstance(record, dict) else None
    for position, entry in enumerate(found if isinstance(found, list) else []):
        if isinstance(entry, dict):
            yield position, entry


def inspect_content(record: Any, findings: Findings, *, num_queries: int) -> None:
    """Add the findings about the content of an annotation file.

    Args:
        record: the parsed file, of any type.
        findings: gets the findings.
        num_queries: queries of the model.
    """
    for problem in find_problems(record, "training"):
        findings.add_problem(problem)
    if not isinstance(record, dict):
        return
    objects = SoundObjects.of(record)
    inspect_boxes(objects, findings)
    _inspect_categories(record, objects, findings)
    _inspect_images(record, findings)
    _inspect_numbers(record, objects, findings, num_queries)


def shift_of_categories(record: Any) -> int:
    """Return 1 or -1 if adding it makes all ids known that annotations use, some of them unknown.

    0 means that all ids are known, or that no shift helps.
    """
    known = {entry["id"] for _, entry in entries_of(record, "categories") if _has_id(entry)}
    used = {
        entry["category_id"]
        for _, entry in entries_of(record, "annotations")
        if is_integer(entry.get("category_id"))
    }
    if used <= known:
        return 0
    return next((by for by in (1, -1) if {one + by for one in used} <= known), 0)


def _inspect_categories(record: Any, objects: SoundObjects, findings: Findings) -> None:
    by = shift_of_categories(record)
    if by:
        findings.add(
            "categories-shifted",
            f"annotations use category ids without a category, all of which have one {by:+d}",
            section="annotations",
            key="category_id",
        )
    used = set(objects.categories.tolist())
    seen: dict[str, int] = {}
    for position, entry in entries_of(record, "categories"):
        place: dict[str, Any] = {"section": "categories", "position": position, "entry": entry}
        name = entry.get("name")
        described = f"categories[{position}] (id {in_brief(entry.get('id'))})"
        if not isinstance(name, str) or not name.strip():
            findings.add(
                "category-name", f"{described}: name is {in_brief(name)}", key="name", **place
            )
        else:
            first = seen.setdefault(" ".join(name.split()).casefold(), position)
            if first != position:
                message = f"{described}: name {in_brief(name)} is that of categories[{first}]"
                findings.add("category-name-twice", message, key="name", **place)
        if _has_id(entry) and entry["id"] not in used and entry.get("is_category") is not False:
            findings.add("categories-unused", f"{described}: {in_brief(name)}", **place)


def _inspect_images(record: Any, findings: Findings) -> None:
    first: dict[str, tuple[int, Any]] = {}
    for position, entry in entries_of(record, "images"):
        name = entry.get("file_name")
        if not is_below_folder(name):
            continue
        twin = first.setdefault(posixpath.normpath(str(name)), (position, entry.get("id")))
        if twin[0] != position and twin[1] != entry.get("id"):
            findings.add(
                "image-twice",
                f"images[{position}] (id {in_brief(entry.get('id'))}): {in_brief(name)} is the "
                f"file of images[{twin[0]}] (id {in_brief(twin[1])})",
                section="images",
                position=position,
                entry=entry,
                image=str(name),
                key="file_name",
            )


def _inspect_numbers(
    record: Any, objects: SoundObjects, findings: Findings, num_queries: int
) -> None:
    """Count objects per image, crowds, and images without objects."""
    for index in objects.is_crowd.nonzero()[0].tolist():
        objects.add(findings, "crowds", index, "crowd region", "iscrowd")
    learned = objects.is_learned
    per_image = Counter(objects.image_ids[learned].tolist())
    listed_images = list(entries_of(record, "images"))
    for position, entry in listed_images:
        number = per_image[entry["id"]] if _has_id(entry) else 0
        place: dict[str, Any] = {"section": "images", "position": position, "entry": entry}
        place["image"] = entry["file_name"] if isinstance(entry.get("file_name"), str) else ""
        described = f"images[{position}] ({shown(place['image'])})"
        if number == 0:
            findings.add("images-without-objects", described, **place)
        for kind, limit in (
            ("more-objects-than-queries", num_queries),
            ("more-objects-than-scored", SCORED),
        ):
            if number > limit:
                findings.add(kind, f"{described}: {number} objects, limit {limit}", **place)
    if listed_images and not learned.any():
        total = sum(1 for _ in entries_of(record, "annotations"))
        findings.add(
            "no-object",
            f"no sound object with a box inside its image, in {total} annotations "
            f"({int(objects.is_crowd.sum())} crowds)",
        )


def _has_id(entry: Entry) -> bool:
    return is_integer(entry.get("id"))
