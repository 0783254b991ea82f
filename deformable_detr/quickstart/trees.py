"""Default dataset: trees in aerial images, written as COCO sets of one class.

One image is for training, one of another place at the same site for validation, and two of other
sites measure generalization. Choices are made on `holdout`, a strip of the training image that
`fit` does not contain, so that `val` stays unseen.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from deformable_detr.files import write_whole
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
    """
    manifest = folder / MANIFEST
    if not _is_complete(folder):
        contents = WHEEL.read(folder, wheel_file=wheel_file)
        manifest.unlink(missing_ok=True)
        files: list[Path] = []
        for name, windows in _plan(contents).items():
            files += _write_set(folder, name, windows)
        record = {"recipe": RECIPE, "sha256": {_key(folder, file): _hash(file) for file in files}}
        with write_whole(manifest) as temporary:
            text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False)
            temporary.write_text(f"{text}\n")
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
    with write_whole(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(record, allow_nan=False) + "\n")
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
