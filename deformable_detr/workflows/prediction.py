"""Prediction: detections in image files as tensors, pictures and a JSON file."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from deformable_detr.detector import DEFAULT_BATCH_SIZE, DEFAULT_THRESHOLD, Detector
from deformable_detr.engine.run.progress import Tracked
from deformable_detr.engine.run.tracking import Callback
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.files import write_whole
from deformable_detr.labels import LabelSpace
from deformable_detr.photos import JPEG_SUFFIXES, Exif, photo_suffixes, read_photo
from deformable_detr.structures import Detections
from deformable_detr.visualize.objects import draw_detections
from deformable_detr.workflows.places import require_folder_place
from deformable_detr.workflows.session import kept_torch_state

NUM_NAMED = 3  # names of passed-over files in a message
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
JPEG_QUALITY = 92
DETECTIONS_FILE = "detections.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictionResult:
    """Detections in image files.

    Attributes:
        detections: detections by image file, in the order given; boxes are as `Detector.predict`
            gives them.
        pictures: the picture written for each image file; empty if `out` was not given.
        num_photos: number of images given.
        failures: one error message per image that could not be read.
    """

    detections: dict[Path, Detections]
    pictures: dict[Path, Path]
    num_photos: int
    failures: tuple[str, ...]

    @property
    def num_objects(self) -> int:
        """Number of objects in all images."""
        return sum(len(found) for found in self.detections.values())


def predict(
    photos: str | Path | Sequence[str | Path],
    *,
    checkpoint: str | Path | Detector,
    out: str | Path | None = None,
    threshold: float = DEFAULT_THRESHOLD,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    batch_size: int = DEFAULT_BATCH_SIZE,
    callback: Callback | None = None,
) -> PredictionResult:
    """Detect objects in image files; draw them and write `detections.json` if `out` is given.

    `Detector.predict` does the same for images in memory. An image that cannot be read is reported
    in the result; the others are processed.

    Args:
        photos: an image file or a folder of images, or several of them.
        checkpoint: a file as for `Detector.from_checkpoint`, or a detector.
        out: folder for one picture per image, and for `detections.json` with all objects.
        threshold: score threshold, in [0, 1].
        classes: names of the classes to detect; None for all.
        device: as for `Detector.from_checkpoint`; a detector stays on its device.
        batch_size: images per batch.
        callback: called with "progress", the number of finished images and their total.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder holds no image, a picture would overwrite an image, a class is unknown,
            or a number is out of range.
    """
    folder = None if out is None else Path(out)
    if folder is not None:
        require_folder_place("out", folder)
    files = find_photos([photos] if isinstance(photos, str | Path) else photos)
    pictures = {} if folder is None else picture_files(files, folder)
    with kept_torch_state(device) as chosen:
        if not isinstance(checkpoint, Detector):
            checkpoint = Detector.from_checkpoint(checkpoint, str(chosen))
        reader = _Reader(files, checkpoint.exif)
        found = checkpoint.predict_each(
            reader, threshold=threshold, classes=classes, batch_size=batch_size
        )
        names = checkpoint.label_space.names
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        detections: dict[Path, Detections] = {}
        for position, one in Tracked(found, "predicting", total=len(files), callback=callback):
            file, photo = reader.take(position)
            detections[file] = one
            if folder is not None:
                picture = draw_detections(photo, one, names)
                picture.save(pictures[file], quality=JPEG_QUALITY)
    ordered = {file: detections[file] for file in files if file in detections}
    if folder is not None:
        results = _results(ordered, checkpoint.label_space)
        with write_whole(folder / DETECTIONS_FILE) as temporary:
            temporary.write_text(json.dumps(results, indent=1), encoding="utf-8")
    drawn = {file: picture for file, picture in pictures.items() if file in detections}
    return PredictionResult(ordered, drawn, len(files), tuple(reader.failures))


class _Reader:
    """Iterable over the readable images of a list of files.

    Attributes:
        failures: error messages of the images that could not be read.
    """

    def __init__(self, files: Sequence[Path], exif: Exif) -> None:
        self._files = files
        self._exif: Exif = exif
        self._read: list[Path] = []
        self._waiting: dict[int, Image.Image] = {}
        self.failures: list[str] = []

    def __iter__(self) -> Iterator[Image.Image]:
        for file in self._files:
            try:
                photo = read_photo(file, exif=self._exif)
            except (OSError, ValueError) as error:
                self.failures.append(str(error))
                continue
            self._waiting[len(self._read)] = photo
            self._read.append(file)
            yield photo

    def take(self, position: int) -> tuple[Path, Image.Image]:
        """Return the file and the image read at `position`, and release the image."""
        return self._read[position], self._waiting.pop(position)


def find_photos(paths: Sequence[str | Path]) -> list[Path]:
    """List the image files: files as given, and from a folder those with an image suffix.

    A file that is named by several paths is listed once. What a folder holds besides is logged.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder holds no image.
    """
    named: list[Path] = []
    for path in map(Path, paths):
        if not path.is_file() and not path.is_dir():
            raise FileNotFoundError(f"image or folder {path} must exist, found nothing there")
        named += [path] if path.is_file() else _images_in(path)
    files: dict[Path, Path] = {}
    repeated = [str(one) for one in named if files.setdefault(one.resolve(), one) is not one]
    if repeated:
        logger.warning("images named again are read once: %s", _counted(repeated))
    return list(files.values())


def _images_in(folder: Path) -> list[Path]:
    """List the images of a folder, and log what is passed over."""
    images: list[Path] = []
    passed: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        if path.is_dir():
            passed.setdefault("subfolders, to be named themselves", []).append(path.name)
        elif path.is_file() and suffix in photo_suffixes():
            images.append(path)
        elif suffix in HEIF_SUFFIXES:
            passed.setdefault("HEIF files, to be converted to JPEG", []).append(path.name)
        else:
            passed.setdefault("other files", []).append(path.name)
    found = "; ".join(f"{kind}: {_counted(names)}" for kind, names in passed.items())
    if not images:
        raise ValueError(
            f"folder {folder} must hold images ({', '.join(photo_suffixes())}), found "
            f"{found or 'none'}"
        )
    if passed:
        logger.warning("folder %s: passed over %s", folder, found)
    return images


def _counted(names: Sequence[str]) -> str:
    """Return the number of names, and the first of them."""
    more = ", ..." if len(names) > NUM_NAMED else ""
    return f"{len(names)} ({', '.join(names[:NUM_NAMED])}{more})"


def picture_files(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Choose the picture file of each image: its own name, with a number if that is taken.

    Raises:
        ValueError: a picture would overwrite an image.
    """
    originals = {file.resolve() for file in files}
    taken: set[Path] = set()
    pictures = {}
    for file in files:
        suffix = ".jpg" if file.suffix.lower() in JPEG_SUFFIXES else ".png"
        picture, number = folder / f"{file.stem}{suffix}", 1
        while picture in taken:
            number += 1
            picture = folder / f"{file.stem}_{number}{suffix}"
        if picture.resolve() in originals:
            raise ValueError(
                f"out must be another folder than that of the images, got {folder}, "
                f"where {picture.name} would be overwritten"
            )
        taken.add(picture)
        pictures[file] = picture
    return pictures


def _results(found: dict[Path, Detections], space: LabelSpace) -> list[dict[str, Any]]:
    """Return COCO results with file and class names; images are numbered from 1."""
    results = []
    for image_id, (file, detections) in enumerate(found.items(), start=1):
        for result in DetectionTable.from_detections(image_id, detections, space).to_results():
            name = space.names[space.label(result["category_id"])]
            results.append({"file_name": file.as_posix(), **result, "category_name": name})
    return results
