"""The default data set: trees in aerial photos, written as COCO sets of one class.

One photo trains, one of another place of the same site validates, and two of other sites show
how far that carries. Choices are made on `holdout`, a strip of the training photo that `fit` does
not see, so that `val` stays unseen.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

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
MIN_VISIBILITY = 0.4  # a cut box stays if this share of its area is inside
HOLDOUT_SHARE = 0.25  # of the training photo's columns, at its right
SETS = ("train", "train_photo", "fit", "fit_photo", "holdout", "val", "ood")
MANIFEST = "trees_manifest.json"
RECIPE = 1  # to be raised by every change of what is written


@dataclass(frozen=True)
class TreeSet:
    """One of the written sets: `images` is its folder, `annotations` its COCO file."""

    name: str
    images: Path
    annotations: Path
    num_images: int
    num_boxes: int


def write_trees(folder: Path, *, wheel_file: Path | None = None) -> tuple[TreeSet, ...]:
    """Write every set below `folder`, or only check them if they are there already.

    Each set is a folder of PNG files and a COCO file beside it: `train/`, `train.json`. The
    sets of tiles are train, val, ood (two other sites), fit and holdout (the training photo
    without its right quarter, and that quarter). `train_photo` and `fit_photo` are the same
    pixels as train and fit in one piece, for training on random crops.

    Args:
        folder: made if it does not exist; may hold the wheel.
        wheel_file: the wheel, where it is not to be downloaded and lies elsewhere.
    """
    manifest = folder / MANIFEST
    if not _is_complete(folder):
        contents = WHEEL.read(folder, wheel_file=wheel_file)
        manifest.unlink(missing_ok=True)
        files: list[Path] = []
        for name, windows in _plan(contents).items():
            files += _write_set(folder, name, windows)
        record = {"recipe": RECIPE, "sha256": {_key(folder, file): _hash(file) for file in files}}
        manifest.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return tuple(_describe(folder, name) for name in SETS)


def tile_windows(area: Window) -> list[Window]:
    """Square tiles that cover `area` row by row; the last row and column are shifted inside."""
    lefts, tops = (
        sorted({min(start, end - TILE) for start in range(begin, end, TILE)})
        for begin, end in ((area.left, area.right), (area.top, area.bottom))
    )
    return [Window(left, top, left + TILE, top + TILE) for top in tops for left in lefts]


def cut_boxes(boxes: Sequence[Window], window: Window) -> list[Window]:
    """The boxes seen in `window`, cut to it, in its own coordinates."""
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


def _write_set(folder: Path, name: str, windows: Sequence[tuple[TreePhoto, Window]]) -> list[Path]:
    (folder / name).mkdir(parents=True, exist_ok=True)
    files, images = [], []
    annotations: list[dict[str, object]] = []
    for image_id, (photo, window) in enumerate(windows, start=1):
        file = folder / name / f"{photo.name}_x{window.left:04}_y{window.top:04}.png"
        pixels = photo.pixels[window.top : window.bottom, window.left : window.right]
        Image.fromarray(pixels).save(file)
        files.append(file)
        size = {"width": window.width, "height": window.height}
        images.append({"id": image_id, "file_name": file.name, **size})
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
    (folder / f"{name}.json").write_text(json.dumps(record) + "\n")
    return [*files, folder / f"{name}.json"]


def _is_complete(folder: Path) -> bool:
    try:
        record = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return record["recipe"] == RECIPE and all(
        (folder / name).is_file() and _hash(folder / name) == sha256
        for name, sha256 in record["sha256"].items()
    )


def _key(folder: Path, file: Path) -> str:
    return file.relative_to(folder).as_posix()


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _describe(folder: Path, name: str) -> TreeSet:
    annotations = folder / f"{name}.json"
    record = json.loads(annotations.read_text())
    return TreeSet(
        name, folder / name, annotations, len(record["images"]), len(record["annotations"])
    )
