"""Findings about image files, as the entries of an annotation file describe them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from deformable_detr.coco_json.file_names import is_below_folder
from deformable_detr.data.annotations import ImageRecord
from deformable_detr.data.channel_images import NPY, UPRIGHT
from deformable_detr.data.image_files import exif_votes
from deformable_detr.data.image_headers import ImageFile
from deformable_detr.inspection.content import entries_of
from deformable_detr.inspection.findings import Findings
from deformable_detr.inspection.objects import HOLDS
from deformable_detr.inspection.photo_files import PhotoFile, unlisted_images
from deformable_detr.messages import in_brief, printable, shown
from deformable_detr.photos import Exif
from deformable_detr.pixels.npy import SUFFIX as NPY_SUFFIX
from deformable_detr.structures import Size

_IS_SIDE = HOLDS["images", "width"]
_LONGEST = 300
_OF_JPEG = {"MPO": "JPEG"}


def photo_names(record: Any) -> list[str]:
    """List the file names of a set that may be opened, each once."""
    names: list[Any] = [entry.get("file_name") for _, entry in entries_of(record, "images")]
    return list(dict.fromkeys(name for name in names if is_below_folder(name)))


def size_of(entry: Mapping[str, Any]) -> Size | None:
    """Return (height, width) of an entry of `images`; None if they break their rules."""
    height, width = entry.get("height"), entry.get("width")
    return (height, width) if _IS_SIDE(height) and _IS_SIDE(width) else None  # type: ignore[return-value]


def votes_for_frame(record: Any, photos: Mapping[str, PhotoFile]) -> dict[Exif, list[str]]:
    """Return the names of images whose sizes are those of the upright and of the stored pixels."""
    records: list[ImageRecord] = []
    headers: list[ImageFile] = []
    for _, entry in entries_of(record, "images"):
        size, photo = size_of(entry), photo_of(entry, photos)
        if size is not None and photo is not None and photo.header is not None:
            records.append(ImageRecord(0, entry["file_name"], size))
            headers.append(photo.header)
    return exif_votes(records, headers)


def frame_of(votes: Mapping[Exif, Sequence[str]]) -> Exif | None:
    """Return which pixels the sizes of a set mean, upright if none shows it; None if both."""
    if votes["upright"] and votes["stored"]:
        return None
    return "stored" if votes["stored"] else "upright"


def photo_of(entry: Mapping[str, Any], photos: Mapping[str, PhotoFile]) -> PhotoFile | None:
    """Return the file of an entry of `images`; None if its name may not be opened."""
    name = entry.get("file_name")
    return photos.get(name) if isinstance(name, str) else None


def inspect_photos(
    record: Any, folder: Path, photos: Mapping[str, PhotoFile], findings: Findings
) -> None:
    """Add the findings about the image files of a set.

    Args:
        record: the parsed annotation file.
        folder: folder of the images.
        photos: the files by name, as `read_photos` yields them.
        findings: gets the findings.
    """
    votes = votes_for_frame(record, photos)
    frame = frame_of(votes)
    if frame is None:
        both = [
            f"{len(names)} {choice} (such as {shown(names[0])})" for choice, names in votes.items()
        ]
        findings.add("images-turned", " and ".join(both), section="images")
    first: dict[bytes, str] = {}
    for position, entry in entries_of(record, "images"):
        photo = photo_of(entry, photos)
        if photo is None:
            continue
        for kind, text, key in _problems(entry, photo, frame, first):
            findings.add(
                kind,
                f"images[{position}] (id {in_brief(entry.get('id'))}, "
                f"{shown(entry['file_name'])}): {text}",
                section="images",
                position=position,
                entry=entry,
                image=entry["file_name"],
                key=key,
            )
    for name in unlisted_images(folder, photos):
        findings.add("images-unlisted", shown(name), image=name)


def _problems(
    entry: Mapping[str, Any], photo: PhotoFile, frame: Exif | None, first: dict[bytes, str]
) -> list[tuple[str, str, str]]:
    """List kind, description and key of the findings about one image."""
    found = []
    name = str(entry["file_name"])
    if photo.problem:
        found.append((photo.problem, printable(photo.reason)[:_LONGEST], "file_name"))
    header = photo.header
    if header is None:
        return found
    size, annotated = header.size(frame or "upright"), size_of(entry)
    if frame is not None and annotated is not None and size != annotated:
        kind = "image-size-swapped" if size == annotated[::-1] else "image-size"
        text = f"(height, width) is {annotated}, of the file {size}"
        found.append((kind, text, "width" if annotated[1] != size[1] else "height"))
    if photo.is_blank:
        found.append(("image-blank", "all pixels are equal", "file_name"))
    if header.num_pages > 1:
        found.append(("images-with-pages", f"{header.num_pages} pages", "file_name"))
    if header.orientation != UPRIGHT:
        text = f"orientation {header.orientation}"
        found.append(("images-with-orientation", text, "file_name"))
    suffix = Path(name).suffix.lower()
    expected = NPY if suffix == NPY_SUFFIX else Image.registered_extensions().get(suffix)
    of_content = _OF_JPEG.get(header.format, header.format)
    if expected is None:
        found.append(("image-no-suffix", f"content is {of_content}", "file_name"))
    elif _OF_JPEG.get(expected, expected) != of_content:
        found.append(("image-other-format", f"content is {of_content}", "file_name"))
    twin = first.setdefault(photo.digest, name)
    if twin != name:
        found.append(("image-copy", f"the content of {in_brief(twin)}", "file_name"))
    return found
