"""CocoDataset: photos and their boxes out of a COCO annotation file."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from deformable_detr.data.annotations import ImageRecord, read_annotations
from deformable_detr.labels import LabelSpace
from deformable_detr.photos import UNREADABLE, decode
from deformable_detr.structures import Sample, Size

# What the last bytes of a whole file hold, by Pillow's name of its format.
_END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL_BYTES = 4096  # some cameras and tools append a little after the end


class CocoDataset(Dataset[Sample]):
    """The images of a COCO set in the order of their ids, each with the objects to be learnt.

    Everything is checked here, before the first step: the annotation file, that each image is
    there, whole, and of the size that the annotations give it. Images without objects stay;
    crowds, boxes without area and boxes outside their image are left out and counted.

    Sizes and boxes are those of the file's own pixels, as in COCO: an orientation noted in the
    EXIF header is not applied. Every image mode becomes RGB.

    Args:
        images: the folder that the file names are relative to.
        annotations: the COCO JSON file.
        label_space: the space whose labels to use; the file must have the same categories.
        raw_labels: without a label space, use category ids as labels, as the official code does.
        cache_images: keep decoded images in memory, for few and large ones.

    Attributes:
        label_space: the file's categories and their labels.
        image_ids: ids by index.
        files: paths of the images by index.
        sizes: (height, width) by index.
        num_dropped: number of annotations left out, by reason; see `Annotations`.
        annotations: all that the file says, to score detections against.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        *,
        label_space: LabelSpace | None = None,
        raw_labels: bool = False,
        cache_images: bool = False,
    ) -> None:
        parsed = read_annotations(annotations, label_space=label_space, raw_labels=raw_labels)
        if not images.is_dir():
            raise FileNotFoundError(f"images must be a folder, got {images}: no such folder")
        with ThreadPoolExecutor() as pool:  # the time goes into waiting for the disk
            for _ in pool.map(lambda image: _check_image(images, image), parsed.images):
                pass

        self.label_space = parsed.label_space
        self.image_ids = tuple(image.image_id for image in parsed.images)
        self.sizes = [image.size for image in parsed.images]
        self.num_dropped: Mapping[str, int] = parsed.num_dropped
        self.annotations = parsed.ground_truth
        self.files = [images / image.file_name for image in parsed.images]
        # Flat columns: cheap to send to worker processes. Segmentations stay behind.
        self._boxes_xyxy = parsed.objects.boxes_xyxy
        self._labels = parsed.objects.labels
        self._area = parsed.objects.area
        self._offsets = parsed.offsets
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
        """The id and the file of an image, for people."""
        return f"image {self.image_ids[index]} ({self.files[index]})"

    def _image(self, index: int) -> Image.Image:
        if self._cache is None:
            return _decode(self.files[index])
        if index not in self._cache:
            self._cache[index] = _decode(self.files[index])
        return self._cache[index]


def _decode(file: Path) -> Image.Image:
    return decode(file, str(file), upright=False)


def _check_image(folder: Path, record: ImageRecord) -> None:
    """Refuse an image that is missing, unreadable, cut off or of another size than recorded."""
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
    if not is_whole:  # or of a format whose end we cannot tell
        _decode(path)
