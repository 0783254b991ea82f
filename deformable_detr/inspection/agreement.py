"""Agreement of the training and the validation set of a folder."""

from collections.abc import Mapping
from typing import Any

from deformable_detr.inspection.content import entries_of
from deformable_detr.inspection.findings import Findings
from deformable_detr.inspection.photo_files import PhotoFile
from deformable_detr.messages import in_brief, shown


def inspect_agreement(
    train: Any,
    val: Any,
    train_photos: Mapping[str, PhotoFile],
    val_photos: Mapping[str, PhotoFile],
    findings: Findings,
) -> None:
    """Add the findings about two sets that a run uses together to those of the validation set."""
    ours, theirs = categories_of(train), categories_of(val)
    if ours and theirs and ours != theirs:
        only = {
            name: sorted(one.items() - other.items(), key=str)[:5]
            for name, one, other in (("train", ours, theirs), ("val", theirs, ours))
        }
        text = "; ".join(f"only {name} has {in_brief(dict(pairs))}" for name, pairs in only.items())
        findings.add("categories-differ", text, section="categories")
    listed = {str(entry.get("file_name")) for _, entry in entries_of(train, "images")}
    by_digest = {
        photo.digest: name
        for name, photo in train_photos.items()
        if photo.digest and name in listed
    }
    for position, entry in entries_of(val, "images"):
        name = entry.get("file_name")
        photo = val_photos.get(name) if isinstance(name, str) else None
        if photo is None or photo.digest not in by_digest:
            continue
        twin = by_digest[photo.digest]
        findings.add(
            "image-in-both-sets",
            f"images[{position}] (id {in_brief(entry.get('id'))}, {shown(name)}): the content of "
            f"the training image {shown(twin)}",
            section="images",
            position=position,
            entry=entry,
            image=str(name),
            key="file_name",
        )


def categories_of(record: Any) -> dict[int, str]:
    """Return the names of the categories by id, as far as both are sound."""
    return {
        entry["id"]: str(entry.get("name", entry["id"]))
        for _, entry in entries_of(record, "categories")
        if type(entry.get("id")) is int and entry.get("is_category") is not False
    }
