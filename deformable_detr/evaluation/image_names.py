"""Match image files with the images of an annotation file, by name."""

import posixpath
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from deformable_detr.ground_truth import GroundTruth
from deformable_detr.messages import listed, shown


class ImageNames:
    """Index of the file names of an annotation file.

    A path names the image with the same `file_name`; else the one with the longest `file_name` that
    the path ends with, folder by folder: of `photos/val/1.jpg` that is `val/1.jpg` or else `1.jpg`;
    else the images whose `file_name` ends with the path, as annotations may start at a higher
    folder. A base name alone is not enough: `val/1.jpg` never names `train/1.jpg`.

    Args:
        annotations: the annotation file.
    """

    def __init__(self, annotations: GroundTruth) -> None:
        self._places: dict[str, list[int]] = defaultdict(list)
        for place, name in enumerate(annotations.file_names):
            if name:
                self._places[posixpath.normpath(name)].append(place)

    def find(self, name: str) -> list[int]:
        """Return the indices into `image_ids` of the images that a path can name."""
        path = f"/{posixpath.normpath(name)}"
        start = path.find("/")
        while start >= 0:  # the longest end first
            if found := self._places.get(path[start + 1 :]):
                return list(found)
            start = path.find("/", start + 1)
        wanted = path[::-1]
        found = []
        position = bisect_left(self._backward, wanted)
        while position < len(self._backward) and self._backward[position].startswith(wanted):
            found += self._places[self._backward[position][::-1]]
            position += 1
        return sorted(found)

    @cached_property
    def _backward(self) -> list[str]:
        """The file names from their ends, in order: those with the same end are neighbors."""
        return sorted(path[::-1] for path in self._places)


def match_images(files: Sequence[Path], annotations: GroundTruth) -> list[int]:
    """Find the image of each file in an annotation file, as `ImageNames` does.

    Args:
        files: paths of image files.
        annotations: the annotation file.

    Returns:
        Index into `annotations.image_ids` per file, all distinct.

    Raises:
        ValueError: a file matches no image or several, or two files match the same image.
    """
    names = ImageNames(annotations)
    matched: dict[int, Path] = {}
    for file in files:
        found = names.find(file.as_posix())
        if len(found) != 1:
            raise ValueError(
                _problem(file, [annotations.file_names[one] for one in found], annotations)
            )
        [place] = found
        if place in matched:
            name = shown(annotations.file_names[place])
            raise ValueError(
                f"images must be different images of annotation file {shown(annotations.file)}, "
                f"got {shown(matched[place])} and {shown(file)}, both {name}; "
                "leave one out"
            )
        matched[place] = file
    return list(matched)


def _problem(file: Path, candidates: Sequence[str], annotations: GroundTruth) -> str:
    """Say why the images of the given names do not identify the file."""
    found = f"several: {listed(candidates)}" if candidates else "no such file_name"
    return (
        f"image {shown(file)} must be one image of annotation file {shown(annotations.file)}, "
        f"found {found}; "
        "leave it out, or predict without annotations"
    )
