"""Places of COCO annotation files and of their images, as the common tools lay them out."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deformable_detr.messages import listed, shown

NAME = "COCO JSON"
_VAL = ("val", "valid", "validation", "val2017", "val2014", "instances_val2017")
_TRAIN = ("train", "train2017", "train2014")
_PREFIXES = ("instances_", "")
_ROBOFLOW = "_annotations.coco.json"
_HEAD = 1 << 26  # bytes of a JSON file that are looked at
_FOLDERS_OF_IMAGES = ("images", "JPEGImages", "photos")


@dataclass(frozen=True)
class CocoFiles:
    """A COCO annotation file and the folder of its images."""

    annotations: Path
    images: Path


def find_coco(path: Path) -> dict[str, CocoFiles]:
    """Find COCO annotation files with their images.

    Known layouts: `train.json` beside `train/`; `train/_annotations.coco.json` among the images
    (Roboflow); `annotations/instances_train.json` with `images/train/` or `train/` (CVAT, COCO,
    where names end with a year); one JSON file beside or above its images; and the file itself.

    Args:
        path: folder of the data set, or an annotation file.

    Returns:
        The sets "train" and "val", as far as there are any; empty if no file is found.

    Raises:
        ValueError: several files could be meant, or the images are not found.
    """
    if path.is_file():
        return {"train": CocoFiles(path, _images_of(path, path.parent, ("train",)))}
    found = {}
    for split, words in (("train", _TRAIN), ("val", _VAL)):
        file = next((place for place in _places(path, words) if place.is_file()), None)
        if file is not None:
            found[split] = CocoFiles(file, _images_of(file, path, words))
    if found:
        if "train" not in found:
            raise ValueError(
                f"{shown(path)} has annotations for validation, {shown(found['val'].annotations)}, "
                "but none for training, such as train.json"
            )
        return found
    others = [
        file for place in (path, path / "annotations") for file in sorted(place.glob("*.json"))
    ]
    others = [file for file in others if _is_coco(file)]
    if len(others) > 1:
        raise ValueError(
            f"{shown(path)} must have train.json and val.json, or one annotation file, got "
            f"{listed(others)}; name one of them, or rename two"
        )
    if not others:
        return {}
    return {"train": CocoFiles(others[0], _images_of(others[0], path, ("train",)))}


def _places(folder: Path, words: tuple[str, ...]) -> Iterator[Path]:
    """Iterate over the places where the annotations of a set may be."""
    for word in words:
        yield folder / f"{word}.json"
        yield folder / word / _ROBOFLOW
        for prefix in _PREFIXES:
            yield folder / "annotations" / f"{prefix}{word}.json"
        yield folder / word / "annotations.json"


def _images_of(file: Path, folder: Path, words: tuple[str, ...]) -> Path:
    """Return the folder in which the first image of the file is."""
    name = first_image(file)
    own = [folder / file.stem, file.parent / file.stem]
    named = [place for word in words for place in (folder / word, folder / "images" / word)]
    rest = [folder / one for one in _FOLDERS_OF_IMAGES]
    # Of a file in `annotations` that is named alone: the folders beside that one.
    word = file.stem.removeprefix(_PREFIXES[0])
    beside = [file.parent.parent / word, file.parent.parent / "images" / word]
    inside = [file.parent / "images", *beside, folder.parent / "images", folder.parent]
    places = [*own, *named, file.parent, *rest, folder, *inside]
    if name is None:  # the rules say what is wrong with the file
        return next((place for place in places if place.is_dir()), folder)
    found = next((place for place in places if (place / name).is_file()), None)
    if found is None:
        existing = [place for place in dict.fromkeys(places) if place.is_dir()]
        raise ValueError(
            f"{shown(file)}: image {shown(name)} is in none of {listed(existing)}; name the folder "
            "with data.train.images and data.val.images, and the file with data.train.annotations"
        )
    return found


def first_image(file: Path) -> str | None:
    """Return `file_name` of the first image, or None if there is none at the start of the file."""
    decoder = json.JSONDecoder()
    with file.open("rb") as opened:
        text = opened.read(_HEAD).decode("utf-8", "replace")
    start = text.find('"images"')
    start = text.find("{", start) if start >= 0 else -1
    if start < 0:
        return None
    try:
        entry, _ = decoder.raw_decode(text, start)
    except ValueError:
        return None
    name = entry.get("file_name") if isinstance(entry, dict) else None
    return name if isinstance(name, str) and name and "\0" not in name else None


def _is_coco(file: Path) -> bool:
    with file.open("rb") as opened:
        content = opened.read(_HEAD)
    return b'"images"' in content and b'"annotations"' in content
