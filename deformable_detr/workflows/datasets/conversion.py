"""Conversion of data sets between formats, and splitting of a set."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from deformable_detr.arguments import checked
from deformable_detr.dataset_formats import coco_layouts, voc, yolo
from deformable_detr.dataset_formats.annotated_set import AnnotatedSet
from deformable_detr.dataset_formats.recognition import recognize_data
from deformable_detr.dataset_formats.splitting import VAL_FRACTION, part_of, split_images
from deformable_detr.dataset_formats.writing import Format, require_writable, write_data
from deformable_detr.files import as_path, write_whole
from deformable_detr.files.output_folder import require_folder_place
from deformable_detr.messages import in_brief, shown

_FORMATS: dict[str, Format] = {coco_layouts.NAME: "coco", yolo.NAME: "yolo", voc.NAME: "voc"}


@dataclass(frozen=True)
class WrittenData:
    """A data set that was written.

    Attributes:
        path: its folder.
        format: "coco", "yolo" or "voc".
        counts: number of images and of objects by set.
        left_out: what was left out of the data set that was read, one line per reason.
    """

    path: Path
    format: Format
    counts: Mapping[str, tuple[int, int]]
    left_out: tuple[str, ...]


@checked
def convert_data(path: str | Path, out: str | Path, *, to: Format) -> WrittenData:
    """Write a data set in another format, images included.

    Boxes, classes and their order are kept. What the format cannot hold is an error before anything
    is written; segmentations are not kept by YOLO and Pascal VOC.

    Args:
        path: the data set, in any format that `train` takes.
        out: a new folder.
        to: "coco", "yolo" or "voc"; see docs/annotations.md for the layouts.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: the data set breaks a rule, or `out` exists.
    """
    if to not in get_args(Format):
        raise ValueError(f"to must be one of {', '.join(get_args(Format))}, got {in_brief(to)}")
    sets = recognize_data(as_path("path", path)).open_all()
    return _write(sets, _new_folder(out), to)


@checked
def split_data(
    path: str | Path,
    out: str | Path,
    *,
    val_fraction: float = VAL_FRACTION,
    seed: int = 0,
    split_by: str | None = None,
) -> WrittenData:
    """Write a data set with its training images divided into training and validation.

    The format stays the same.

    Args:
        path: the data set, in any format that `train` takes, without a validation set.
        out: a new folder.
        val_fraction: share of the images for validation, in (0, 1).
        seed: seed of the choice.
        split_by: see `split_images`.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: the data set breaks a rule, has a validation set, or `out` exists.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must be between 0 and 1, got {val_fraction}")
    found = recognize_data(as_path("path", path))
    sets = found.open_all()
    if "val" in sets:
        raise ValueError(
            f"path must have no validation set, got {shown(path)}, which has one; name the "
            "annotations for training"
        )
    train = sets["train"]
    train.require_sound()
    chosen = split_images(train.record, val_fraction=val_fraction, seed=seed, split_by=split_by)
    every = {one["id"] for one in train.record["images"]}
    parts = {"train": every - chosen, "val": chosen}
    divided = {
        split: AnnotatedSet(train.format, train.images, part_of(train.record, images))
        for split, images in parts.items()
    }
    divided["train"].left_out = train.left_out
    return _write(divided, _new_folder(out), _FORMATS[found.format])


def _new_folder(out: str | Path) -> Path:
    folder = as_path("out", out)
    require_folder_place("out", folder)
    if folder.exists():
        raise ValueError(f"out must be a new folder, got {shown(folder)}, which exists")
    return folder


def _write(sets: Mapping[str, AnnotatedSet], out: Path, to: Format) -> WrittenData:
    for found in sets.values():
        found.require_sound()
        require_writable(found, to)
        for image in found.record["images"]:
            if not (found.images / image["file_name"]).is_file():
                raise FileNotFoundError(
                    f"there is no image {shown(found.images / image['file_name'])}"
                )
    with write_whole(out) as temporary:
        write_data(temporary, sets, to)
    counts = {
        split: (len(found.record["images"]), len(found.record["annotations"]))
        for split, found in sets.items()
    }
    lines = tuple(line for found in sets.values() for line in found.describe_left_out())
    return WrittenData(out, to, counts, lines)
