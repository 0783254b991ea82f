"""CocoDataset: images and boxes from a COCO annotation file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch.utils.data import Dataset

from deformable_detr.data.annotations import ImageOrder, read_annotations
from deformable_detr.data.channel_images import decode_image
from deformable_detr.data.image_files import ExifRule, check_images
from deformable_detr.data.repeat_factors import repeat_factors
from deformable_detr.ground_truth import EmptyBoxes
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import shown
from deformable_detr.photos import Exif
from deformable_detr.pixels.channels import RGB, AnyImage
from deformable_detr.structures import Sample


class ImageFiles(Sequence[Path]):
    """Paths of the images of a data set, made when they are asked for.

    Args:
        folder: folder that the file names are relative to.
        file_names: the file names.
    """

    def __init__(self, folder: Path, file_names: Sequence[str]) -> None:
        self._folder = folder
        self._file_names = file_names

    def __len__(self) -> int:
        return len(self._file_names)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Path, ...]: ...

    def __getitem__(self, index: int | slice) -> Path | tuple[Path, ...]:
        if isinstance(index, slice):
            return tuple(self._folder / name for name in self._file_names[index])
        return self._folder / self._file_names[index]


class CocoDataset(Dataset[Sample]):
    """COCO detection dataset: images, each with the objects to learn.

    All checks happen in the constructor, before the first step: the annotation file is valid, and
    each image exists and has the annotated size; JPEG and PNG files are complete. Every process of
    a run must construct it, since rank 0 checks the images for all. Images without objects are
    kept; crowds, boxes without area and boxes outside their image are dropped and counted.

    Sizes and boxes refer either to the upright images or to the stored pixels, before any EXIF
    orientation. The annotated sizes decide, for the whole set: see `check_images`. Images are
    converted to RGB as in `deformable_detr.photos`, or read with another number of channels as in
    `deformable_detr.data.channel_images`.

    What is kept is arrays, without a Python object per image or per object: data workers share the
    memory of the process that started them until one writes to it, and reading a Python object
    writes its count of references.

    Args:
        images: folder that the file names are relative to.
        annotations: path of the COCO JSON file.
        label_space: label space to use; the file must have the same categories.
        raw_labels: if no label space is given, use category ids as labels, as the official code.
        empty_boxes: whether boxes without area inside their image are "missed" or "ignored" in
            evaluation; they are never learned.
        exif: pixels that sizes and boxes refer to, "upright" or "stored"; "auto" lets the annotated
            sizes decide.
        exif_otherwise: decision of "auto" if no image shows it.
        image_order: order of the images, by "id" or by "file_name".
        cache_images: keep decoded images in memory; meant for few, large images.
        channels: number of channels of the images, 1 to 16.

    Attributes:
        label_space: categories of the file and their labels.
        image_ids: (N,) int64 image ids by index.
        files: paths of the images by index.
        exif: pixels that sizes and boxes refer to, "upright" or "stored".
        image_order: order of the images, "id" or "file_name".
        num_turned: number of images with an EXIF orientation other than upright.
        sizes: (N, 2) int64 height and width in pixels by index.
        num_dropped: number of dropped annotations per reason; see `Annotations`.
        annotations: annotations of the file to score detections against.
        num_objects: (N,) int64 number of objects to learn by index.
        objects: these objects, in the order of the indices.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        *,
        label_space: LabelSpace | None = None,
        raw_labels: bool = False,
        empty_boxes: EmptyBoxes = "missed",
        exif: ExifRule = "auto",
        exif_otherwise: Exif = "upright",
        image_order: ImageOrder = "id",
        cache_images: bool = False,
        channels: int = RGB,
    ) -> None:
        parsed = read_annotations(
            annotations,
            label_space=label_space,
            raw_labels=raw_labels,
            empty_boxes=empty_boxes,
            image_order=image_order,
        )
        if not images.is_dir():
            raise FileNotFoundError(f"images must be a folder, got {shown(images)}: no such folder")
        checked = check_images(
            images,
            parsed.images,
            exif=exif,
            otherwise=exif_otherwise,
            what=str(annotations),
            channels=channels,
        )

        self.exif = checked.exif
        self.image_order = image_order
        self.num_turned = checked.num_turned
        self.label_space = parsed.label_space
        self.image_ids = parsed.images.ids
        self.sizes = parsed.images.sizes
        self.num_dropped: Mapping[str, int] = parsed.num_dropped
        self.annotations = parsed.ground_truth
        self.files = ImageFiles(images, parsed.images.file_names)
        self.num_objects = np.diff(parsed.offsets)
        self._images = parsed.images
        self.objects = parsed.objects
        self._offsets = parsed.offsets
        self._channels = channels
        self._cache: dict[int, AnyImage] | None = {} if cache_images else None

    def repeat_factors(self, threshold: float) -> npt.NDArray[np.float64]:
        """Return the (N,) repeat factors of the images, see `repeat_factors`."""
        return repeat_factors(
            self.objects.labels.numpy(),
            self.num_objects,
            num_classes=self.label_space.num_classes,
            threshold=threshold,
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        return self._sample(index, self._image(index))

    def blank(self, index: int) -> Sample:
        """Return a sample whose image is black, of the annotated size; no file is read."""
        height, width = self._images[index].size
        return self._sample(index, Image.new("L", (width, height)))

    def _sample(self, index: int, image: AnyImage) -> Sample:
        record = self._images[index]
        objects = slice(*self._offsets[index : index + 2].tolist())
        return Sample(
            image=image,
            boxes_xyxy=self.objects.boxes_xyxy[objects].clone(),
            labels=self.objects.labels[objects].clone(),
            area=self.objects.area[objects].clone(),
            image_id=record.image_id,
            original_size=record.size,
        )

    def file_name(self, index: int) -> str:
        """Return the path of an image below the folder of the images."""
        return self._images[index].file_name

    def shows(self, index: int, label: int) -> bool:
        """Return whether an image has an object of a class."""
        objects = slice(*self._offsets[index : index + 2].tolist())
        return bool((self.objects.labels[objects] == label).any())

    def index_of(self, image_id: int) -> int:
        """Return the index of an image; KeyError if the id is unknown."""
        return self._images.index_of(image_id)

    def describe(self, index: int) -> str:
        """Return the id and the path of an image, for messages."""
        return f"image {self.image_ids[index]} ({shown(self.files[index])})"

    def describe_id(self, image_id: int) -> str:
        """Return the id and the path of an image, for messages."""
        return self.describe(self.index_of(image_id))

    def _image(self, index: int) -> AnyImage:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        file = self.files[index]
        image = decode_image(file, str(file), exif=self.exif, channels=self._channels)
        if self._cache is not None:
            self._cache[index] = image
        return image
