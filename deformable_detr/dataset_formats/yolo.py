"""YOLO: one text file per image, a line per object: class, and a box or a polygon in [0, 1]."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deformable_detr.data.found_photos import images_among
from deformable_detr.dataset_formats.annotated_set import (
    AnnotatedSet,
    Fault,
    annotation_entry,
    category_entries,
    image_entry,
    images_below,
    read_lines,
    read_small_text,
    require_unique_stems,
    upright_size_of,
)
from deformable_detr.messages import in_brief, listed, shown
from deformable_detr.yaml12 import read_yaml

NAME = "YOLO"
DATA_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_CLASS_FILES = ("classes.txt", "labels/classes.txt", "train/labels/classes.txt")
_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation")}
SLACK = 0.01  # above 1, from rounding
_MAX_SNAP = 0.02  # pixels
_DECIMAL = re.compile(r"-?\d*\.?\d+")
_FIX = "a row is: class x_center y_center width height, or class x1 y1 x2 y2 x3 y3 ..."


def data_file(folder: Path) -> Path | None:
    """Return the YAML file of a data set in a folder, or None."""
    return next((folder / name for name in DATA_FILES if (folder / name).is_file()), None)


def is_yolo(folder: Path) -> bool:
    """Return whether a folder holds a data set of YOLO."""
    return data_file(folder) is not None or any(
        (folder / name).is_dir() for name in ("labels", "train/labels")
    )


def read_yolo(path: Path) -> dict[str, AnnotatedSet]:
    """Read a data set of YOLO.

    Args:
        path: its folder, or its YAML file.

    Returns:
        The sets "train" and "val", as far as there are any.

    Raises:
        ValueError: names the file, and what is wrong with it.
    """
    file = data_file(path) if path.is_dir() else path
    if file is None:
        folder, names = path, _listed_classes(path)
        found = {split: _conventional(folder, words) for split, words in _SPLITS.items()}
        if not found["train"]:
            found = {"train": images_below(folder)}
    else:
        content = _content(file)
        if not isinstance(content, dict):
            raise ValueError(f"{shown(file)} must hold keys such as train and names, got {content}")
        folder, names = _root(file, content), _names(file, content)
        found = {
            split: _named_images(file, folder, content, words) for split, words in _SPLITS.items()
        }
        if not found["train"]:
            raise ValueError(f"{shown(file)}: train must name a folder of images, got nothing")
    return {
        split: _read_set(images, names, classes=shown(file or folder))
        for split, images in found.items()
        if images
    }


def _content(file: Path) -> Any:
    try:
        return read_yaml(file, "YAML file of YOLO")
    except ValueError as error:
        raise ValueError(f"{shown(file)}: {error}") from error


def label_file(image: Path) -> Path:
    """Return the path of the labels of an image: `labels` in place of the last `images`.

    Without a folder `images` among its own, the labels are beside the image.
    """
    parts = list(image.parent.parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts[last] = "labels"
    return Path(*parts) / f"{image.stem}.txt"


def _root(file: Path, content: Mapping[str, Any]) -> Path:
    """Return the folder that paths are relative to."""
    path = content.get("path")
    if path is None:
        return file.parent
    if not isinstance(path, str):
        raise ValueError(f"{shown(file)}: path must be a text, got {in_brief(path)}")
    found = file.parent / path  # or `path` alone, if it is absolute
    return found if found.is_dir() else file.parent


def _names(file: Path, content: Mapping[str, Any]) -> dict[int, str]:
    """Return the class names by index."""
    names = content.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise ValueError(
            f"{shown(file)}: names must list the classes, as names: [car, bus], got "
            f"{in_brief(names)}"
        )
    for index, name in names.items():
        if type(index) is not int or index < 0:
            raise ValueError(
                f"{shown(file)}: names must have indices from 0 up, got {in_brief(index)}"
            )
        if not isinstance(name, str | int) or isinstance(name, bool) or not str(name).strip():
            raise ValueError(
                f"{shown(file)}: names[{index}] must be a name, got {in_brief(name)}; put it in "
                "quotes"
            )
    count = content.get("nc")
    if count is not None and count != len(names):
        raise ValueError(
            f"{shown(file)}: nc must be the number of names, {len(names)}, got {in_brief(count)}"
        )
    return {index: str(name) for index, name in names.items()}


def _listed_classes(folder: Path) -> dict[int, str]:
    """Return the class names of a folder without a YAML file."""
    for name in _CLASS_FILES:
        if (folder / name).is_file():
            lines = read_lines(folder / name)
            names = [line.strip() for line in lines if line.strip()]
            if names:
                return dict(enumerate(names))
    raise ValueError(
        f"folder {shown(folder)} has labels of YOLO, but no names of the classes; write "
        f"{shown(folder / DATA_FILES[0])} with names: [...], train: ... and val: ..., or "
        "classes.txt with a name per line"
    )


def _named_images(
    file: Path, folder: Path, content: Mapping[str, Any], words: Sequence[str]
) -> list[Path]:
    """List the images that a key of the YAML file names: folders, or files that list images."""
    key = next((word for word in words if content.get(word)), None)
    if key is None:
        return []
    given = content[key] if isinstance(content[key], list) else [content[key]]
    images: list[Path] = []
    for one in given:
        if not isinstance(one, str):
            raise ValueError(
                f"{shown(file)}: {key} must be a path or a list of paths, got {in_brief(one)}"
            )
        place = _place(file, folder, one)
        if place is None:
            raise ValueError(
                f"{shown(file)}: {key} must be a folder of images or a text file that lists them, "
                f"got {shown(one)}; there is no {shown(folder / one)}"
            )
        found = images_below(place) if place.is_dir() else _listed_images(place)
        if not found:
            raise ValueError(f"{shown(file)}: {key} must name images, got none in {shown(place)}")
        images += found
    return sorted(dict.fromkeys(images))


def _place(file: Path, folder: Path, name: str) -> Path | None:
    """Return the folder or file of a path of the YAML file, or None.

    Roboflow writes `../train/images` for a folder `train/images` beside the YAML file.
    """
    tries = [folder / name, file.parent / name]
    if name.startswith("../"):
        tries.append(file.parent / name.removeprefix("../"))
    return next((place for place in tries if place.exists()), None)


def _listed_images(file: Path) -> list[Path]:
    """List the images of a text file with a path per line, relative to the file's folder."""
    images = []
    for number, line in enumerate(read_lines(file), 1):
        name = line.strip()
        if not name:
            continue
        image = file.parent / name
        if not image.is_file() or not images_among([image]):
            raise ValueError(
                f"{shown(file)} line {number}: must be the path of an image, got {shown(name)}; "
                f"there is no image {shown(image)}"
            )
        images.append(image)
    return images


def _conventional(folder: Path, words: Sequence[str]) -> list[Path]:
    """List the images of a set by the usual names of folders."""
    for word in words:
        for place in (folder / word / "images", folder / "images" / word, folder / word):
            if place.is_dir():
                return images_below(place)
    return []


def _read_set(images: list[Path], names: Mapping[int, str], *, classes: str) -> AnnotatedSet:
    folder = Path(os.path.commonpath([image.parent for image in images]))
    found = AnnotatedSet(NAME, folder, {"images": [], "annotations": []})
    found.record["categories"] = category_entries(names)
    found.places = {
        "images": [],
        "annotations": [],
        "categories": [f"{classes}: names[{index}]" for index in sorted(names)],
    }
    found.faults += require_unique_stems(images)
    without = 0
    for image_id, image in enumerate(images, 1):
        labels = label_file(image)
        size = upright_size_of(image)
        if isinstance(size, str):
            found.faults.append(Fault("label-file", shown(image), f"no readable image: {size}"))
            continue
        name = image.relative_to(folder).as_posix()
        found.record["images"].append(image_entry(image_id, name, size))
        found.places["images"].append(shown(image))
        if labels.exists():
            _read_labels(found, labels, names, image_id=image_id, size=size)
        else:
            without += 1
    if without:
        found.notes.append(f"{without} of {len(images)} images have no label file: no objects")
    _note_labels_without_image(found, images)
    if without == len(images):
        where = label_file(images[0])
        found.faults.append(
            Fault(
                "label-file",
                shown(where.parent),
                f"no image has a label file, such as {shown(where)}; labels of images/x.jpg are in "
                "labels/x.txt, or beside the image",
            )
        )
    return found


def _note_labels_without_image(found: AnnotatedSet, images: Sequence[Path]) -> None:
    """Count label files that belong to no image."""
    known = {label_file(image) for image in images}
    for folder in sorted({file.parent for file in known}):
        others = sorted(folder.glob("*.txt")) if folder.is_dir() else []
        for file in others:
            listing = file.name in ("classes.txt", "train.txt", "val.txt") or file in known
            if not listing and _looks_like_labels(file):
                found.leave_out("label file without an image", shown(file))


def _looks_like_labels(file: Path) -> bool:
    with file.open("rb") as opened:
        first = opened.read(200).decode("utf-8", "replace").split("\n")[0].split()
    return len(first) >= 5 and first[0].isdecimal()


def _read_labels(
    found: AnnotatedSet,
    file: Path,
    names: Mapping[int, str],
    *,
    image_id: int,
    size: tuple[int, int],
) -> None:
    """Add the objects of a label file."""
    try:
        lines = read_small_text(file).splitlines()
    except (OSError, ValueError) as error:
        found.faults.append(Fault("label-file", shown(file), str(error)))
        return
    annotations, places = found.record["annotations"], found.places["annotations"]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{shown(file)} line {number}"
        try:
            index, corners = _parse(line, names, size)
        except ValueError as error:
            found.faults.append(Fault("label-entry", place, str(error)))
            continue
        annotations.append(annotation_entry(len(annotations) + 1, image_id, index, corners))
        places.append(place)


def _parse(
    line: str, names: Mapping[int, str], size: tuple[int, int]
) -> tuple[int, tuple[float, float, float, float]]:
    """Return class index and corners in pixels of a row."""
    first, *rest = line.split()
    try:
        index, values = float(first), [float(text) for text in rest]
    except ValueError:
        raise ValueError(f"must be numbers, got {in_brief(line.strip())}; {_FIX}") from None
    if not index.is_integer() or int(index) not in names:
        known = listed([f"{key}: {name}" for key, name in sorted(names.items())])
        raise ValueError(f"the class must be one of {{{known}}}, got {shown(first)}")
    is_box = len(values) == 4
    if not is_box and (len(values) < 6 or len(values) % 2):
        hint = "; a sixth number is a score, which labels do not have" if len(values) == 5 else ""
        raise ValueError(f"must have 5 numbers, or a polygon, got {len(values) + 1}{hint}; {_FIX}")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"must be finite numbers, got {in_brief(line.strip())}")
    if min(values) < -SLACK or max(values) > 1 + SLACK:
        wrong = next(value for value in values if not -SLACK <= value <= 1 + SLACK)
        raise ValueError(
            f"coordinates must be in [0, 1], got {wrong:g}; divide pixels by the width or height "
            "of the image"
        )
    height, width = size
    if is_box:
        x, y, box_width, box_height = values
        if box_width < 0 or box_height < 0:
            raise ValueError(f"width and height must be at least 0, got {in_brief(line.strip())}")
        corners = (x - box_width / 2, y - box_height / 2, x + box_width / 2, y + box_height / 2)
    else:
        corners = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    precision = _precision(rest)
    left, right = (_pixel(value * width, precision * width) for value in corners[::2])
    top, bottom = (_pixel(value * height, precision * height) for value in corners[1::2])
    return int(index), (left, top, right, bottom)


def _precision(texts: Sequence[str]) -> float:
    """Return the error of a corner from the rounding of the numbers of a row; 0 if unknown."""
    if not all(_DECIMAL.fullmatch(text) for text in texts):
        return 0.0
    digits = max(len(text.partition(".")[2]) for text in texts)
    return 0.75 * 10.0**-digits  # half a unit of the center, and a quarter of one of the size


def _pixel(value: float, error: float) -> float:
    """Return a coordinate; a whole number of pixels if the text may have been one.

    Boxes are annotated in whole pixels mostly. With this, they are the same in every format.
    """
    whole = round(value)
    return float(whole) if abs(value - whole) <= min(error, _MAX_SNAP) + 1e-9 else value
