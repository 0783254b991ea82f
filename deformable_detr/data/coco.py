"""CocoDataset: images and boxes from a COCO annotation file."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from deformable_detr.data.annotations import ImageRecord, read_annotations
from deformable_detr.ground_truth import EmptyBoxes
from deformable_detr.labels import LabelSpace
from deformable_detr.photos import UNREADABLE, decode
from deformable_detr.structures import Sample, Size

# Marker in the last bytes of a complete file, by Pillow's format name.
_END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL_BYTES = 4096  # some cameras and tools append bytes after the end marker


class CocoDataset(Dataset[Sample]):
    """COCO detection dataset: images sorted by id, each with the objects to learn.

    All checks happen in the constructor, before the first step: the annotation file is valid, and
    each image exists, is complete and has the annotated size. Images without objects are kept;
    crowds, boxes without area and boxes outside their image are dropped and counted.

    Sizes and boxes refer to the stored pixels, as in COCO: an EXIF orientation is not applied.
    Images of every mode are converted to RGB.

    Args:
        images: folder that the file names are relative to.
        annotations: path of the COCO JSON file.
        label_space: label space to use; the file must have the same categories.
        raw_labels: if no label space is given, use category ids as labels, as the official code.
        empty_boxes: whether boxes without area inside their image are "missed" or "ignored" in
            evaluation; they are never learned.
        cache_images: keep decoded images in memory; meant for few, large images.

    Attributes:
        label_space: categories of the file and their labels.
        image_ids: image ids by index.
        files: paths of the images by index.
        sizes: (height, width) by index.
        num_dropped: number of dropped annotations per reason; see `Annotations`.
        annotations: annotations of the file to score detections against.
        num_objects: number of objects to learn by index.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        *,
        label_space: LabelSpace | None = None,
        raw_labels: bool = False,
        empty_boxes: EmptyBoxes = "missed",
        cache_images: bool = False,
    ) -> None:
        parsed = read_annotations(
            annotations, label_space=label_space, raw_labels=raw_labels, empty_boxes=empty_boxes
        )
        if not images.is_dir():
            raise FileNotFoundError(f"images must be a folder, got {images}: no such folder")
        with ThreadPoolExecutor() as pool:  # the work is bound by disk latency
            for _ in pool.map(lambda image: _check_image(images, image), parsed.images):
                pass

        self.label_space = parsed.label_space
        self.image_ids = tuple(image.image_id for image in parsed.images)
        self.sizes = [image.size for image in parsed.images]
        self.num_dropped: Mapping[str, int] = parsed.num_dropped
        self.annotations = parsed.ground_truth
        self.files = [images / image.file_name for image in parsed.images]
        # Flat columns are cheap to send to worker processes. Segmentations are not needed there.
        self._boxes_xyxy = parsed.objects.boxes_xyxy
        self._labels = parsed.objects.labels
        self._area = parsed.objects.area
        self._offsets = parsed.offsets
        self.num_objects = tuple(end - start for start, end in pairwise(parsed.offsets))
        self._cache: dict[int, Image.Image] | None = {} if cache_images else None

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        objects = slice(self._offsets[index], self._offsets[index + 1])
        return Sample(
            image=self._image(index),
            boxes_xyxy=self._boxes_xyxy[objects].clone(),
            labels=self._labels[objects].clone(),
            area=self._area[objects].clone(),
            image_id=self.image_ids[index],
            original_size=self.sizes[index],
        )

    def describe(self, index: int) -> str:
        """Return the id and the path of an image, for messages."""
        return f"image {self.image_ids[index]} ({self.files[index]})"

    def describe_id(self, image_id: int) -> str:
        """Return the id and the path of an image, for messages."""
        return self.describe(self.image_ids.index(image_id))

    def _image(self, index: int) -> Image.Image:
        if self._cache is None:
            return _decode(self.files[index])
        if index not in self._cache:
            self._cache[index] = _decode(self.files[index])
        return self._cache[index]


def _decode(file: Path) -> Image.Image:
    return decode(file, str(file), upright=False)


def _check_image(folder: Path, record: ImageRecord) -> None:
    """Raise if an image is missing, unreadable, truncated or not of the recorded size."""
    path = folder / record.file_name
    what = f"image {record.image_id} ({path})"
    try:
        with path.open("rb") as file, Image.open(file) as image:
            size: Size = (image.height, image.width)
            file_format = image.format or ""
            file.seek(0, 2)
            file.seek(max(file.tell() - _TAIL_BYTES, 0))
            is_whole = _END_MARKS.get(file_format, b"no such mark") in file.read()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{what} must exist, got no such file; file names are relative to {folder}"
        ) from error
    except UNREADABLE as error:
        raise ValueError(f"{what} must be a readable image, got: {error}") from error
    if size != record.size:
        raise ValueError(
            f"{what} must be {record.size} (height, width) as its annotations say, got {size}; "
            "sizes are those of the stored pixels, before any EXIF orientation"
        )
    if not is_whole:  # or of a format without a known end marker
        _decode(path)
