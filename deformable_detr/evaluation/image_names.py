"""Match image files with the images of an annotation file, by name."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from deformable_detr.ground_truth import GroundTruth

_SHOWN = 5  # names that an error lists


def match_images(files: Sequence[Path], annotations: GroundTruth) -> list[int]:
    """Find the image of each file in an annotation file.

    A file is the image with the longest `file_name` that its path ends with, folder by folder: of
    `photos/val/1.jpg` that is `val/1.jpg` or else `1.jpg`. If there is none, it is the image whose
    base name is that of the file, provided that only one image has it.

    Args:
        files: paths of image files.
        annotations: the annotation file.

    Returns:
        Index into `annotations.image_ids` per file, all distinct.

    Raises:
        ValueError: a file matches no image or several, or two files match the same image.
    """
    whole: dict[tuple[str, ...], list[int]] = defaultdict(list)
    base: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(annotations.file_names):
        if parts := PurePosixPath(name).parts:
            whole[parts].append(place)
            base[parts[-1]].append(place)
    matched: dict[int, Path] = {}
    for file in files:
        parts = PurePosixPath(file.as_posix()).parts
        ends = (parts[start:] for start in range(len(parts)))
        found = next((whole[end] for end in ends if end in whole), base.get(file.name, []))
        if len(found) != 1:
            raise ValueError(
                _problem(file, [annotations.file_names[one] for one in found], annotations)
            )
        [place] = found
        if place in matched:
            raise ValueError(
                f"images must be different images of annotation file {annotations.file}, got "
                f"{matched[place]} and {file}, both {annotations.file_names[place]}; leave one out"
            )
        matched[place] = file
    return list(matched)


def _problem(file: Path, candidates: Sequence[str], annotations: GroundTruth) -> str:
    """Say why the images of the given names do not identify the file."""
    found = f"several: {', '.join(candidates[:_SHOWN])}" if candidates else "no such file_name"
    return (
        f"image {file} must be one image of annotation file {annotations.file}, found {found}; "
        "leave it out, or predict without annotations"
    )
