"""Objects to learn, from COCO annotation files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deformable_detr.ground_truth import EmptyBoxes, GroundTruth, read_all
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import shown
from deformable_detr.packed import PackedTexts
from deformable_detr.structures import Size

ImageOrder = Literal["id", "file_name"]


class ImageRecord(NamedTuple):
    """Entry of `images`; `size` is (height, width) as annotated."""

    image_id: int
    file_name: str
    size: Size


@dataclass(frozen=True, eq=False)
class ImageTable(Sequence[ImageRecord]):
    """Sequence of the images of an annotation file, stored as columns.

    Attributes:
        ids: (I,) int64 image ids; ascending, unless images are in the order of their file names.
        file_names: I paths below the image folder.
        sizes: (I, 2) int64 height and width in pixels.
    """

    ids: npt.NDArray[np.int64]
    file_names: PackedTexts
    sizes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[ImageRecord, ...]: ...

    def __getitem__(self, index: int | slice) -> ImageRecord | tuple[ImageRecord, ...]:
        places = range(len(self))[index]  # raises the IndexError
        if isinstance(places, range):
            return tuple(self[place] for place in places)
        height, width = self.sizes[places].tolist()
        return ImageRecord(int(self.ids[places]), self.file_names[places], (height, width))

    def index_of(self, image_id: int) -> int:
        """Return the index of an image; KeyError if the id is unknown."""
        by_id = np.argsort(self.ids, kind="stable")
        rank = int(np.searchsorted(self.ids, image_id, sorter=by_id))
        if rank == len(self) or self.ids[by_id[rank]] != image_id:
            raise KeyError(image_id)
        return int(by_id[rank])


@dataclass(frozen=True)
class Objects:
    """Annotated objects, T of them, as columns.

    Attributes:
        boxes_xyxy: (T, 4) float32 pixels, clipped to the image.
        labels: (T,) int64 in 0..K-1.
        area: (T,) float32 square pixels: `area` of the file if given, else the area of the box.
    """

    boxes_xyxy: Tensor
    labels: Tensor
    area: Tensor


@dataclass(frozen=True)
class Annotations:
    """Content of a COCO annotation file that passed all checks.

    Attributes:
        images: images sorted by id or file name, including those without objects.
        label_space: categories of the file and their labels.
        objects: objects to learn grouped by image, in file order within each image.
        offsets: (I + 1,) int64; the objects of images[i] are offsets[i] up to offsets[i + 1].
        num_dropped: number of annotations that are not learned per reason: "crowd" (iscrowd is 1),
            "degenerate" (no width or no height), "outside" (entirely outside the image).
        ground_truth: annotations to score detections against.
    """

    images: ImageTable
    label_space: LabelSpace
    objects: Objects
    offsets: npt.NDArray[np.int64]
    num_dropped: Mapping[str, int]
    ground_truth: GroundTruth


def read_annotations(
    file: Path,
    *,
    label_space: LabelSpace | None = None,
    raw_labels: bool = False,
    empty_boxes: EmptyBoxes = "missed",
    image_order: ImageOrder = "id",
) -> Annotations:
    """Read and check a COCO annotation file.

    Args:
        file: path of the JSON file.
        label_space: label space to use; the file must have the same categories.
        raw_labels: if no label space is given, use category ids as labels, as the official code.
        empty_boxes: see `GroundTruth.scored`; such boxes are never learned.
        image_order: order of the images, by "id" or by "file_name".

    Raises:
        FileNotFoundError: `file` does not exist.
        ValueError: the content is invalid; the message names the file and the entry.
    """
    truth = read_all(file, "training", empty_boxes)
    try:
        label_space = _choose_labels(truth.label_space, label_space, raw_labels=raw_labels)
    except ValueError as error:
        raise ValueError(f"{shown(file)}: {error}") from error
    masks = {"crowd": truth.is_crowd, **truth.empty()}
    in_order = _order(truth, image_order)
    positions = np.empty_like(in_order)
    positions[in_order] = np.arange(len(in_order))
    learned = np.flatnonzero(~np.logical_or.reduce(list(masks.values())))
    images = positions[truth.images[learned]]
    order = np.argsort(images, kind="stable")  # keeps file order within each image
    learned = learned[order]
    per_image = np.bincount(images, minlength=len(in_order))
    labels = [
        label_space.label(category_id) if category_id in label_space else -1  # never used
        for category_id in truth.label_space.category_ids
    ]
    return Annotations(
        images=ImageTable(
            truth.image_ids[in_order],
            PackedTexts(truth.file_names[place] for place in in_order.tolist()),
            truth.image_sizes[in_order],
        ),
        label_space=label_space,
        objects=Objects(
            boxes_xyxy=torch.from_numpy(truth.clipped_xyxy()[learned]),
            labels=torch.from_numpy(np.array(labels, dtype=np.int64)[truth.categories[learned]]),
            area=torch.from_numpy(truth.area[learned].astype(np.float32)),
        ),
        offsets=np.concatenate([[0], per_image.cumsum()]),
        num_dropped={reason: int(mask.sum()) for reason, mask in masks.items()},
        ground_truth=truth.scored(empty_boxes),
    )


def _order(truth: GroundTruth, image_order: ImageOrder) -> npt.NDArray[np.int64]:
    """Return the indices of the images of a file in the order of the data set."""
    if image_order == "id":
        return np.argsort(truth.image_ids, kind="stable")
    names = truth.file_names
    by_name = sorted(range(len(names)), key=lambda index: (names[index], truth.image_ids[index]))
    return np.array(by_name, dtype=np.int64)


def _choose_labels(
    found: LabelSpace, label_space: LabelSpace | None, *, raw_labels: bool
) -> LabelSpace:
    if label_space is None:
        return found.with_raw_labels() if raw_labels else found
    label_space.contiguous().require_same(found, this="the label space in use", that="the file")
    return label_space
