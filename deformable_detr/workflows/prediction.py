"""Prediction: objects in photos, as numbers, pictures and a file."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from deformable_detr.detector import DEFAULT_BATCH_SIZE, DEFAULT_THRESHOLD, Detector
from deformable_detr.engine.run.progress import Tracked
from deformable_detr.engine.run.tracking import Callback
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.labels import LabelSpace
from deformable_detr.photos import read_photo
from deformable_detr.structures import Detections
from deformable_detr.visualize.objects import draw_detections
from deformable_detr.workflows.places import require_folder_place
from deformable_detr.workflows.session import kept_torch_state

JPEG_SUFFIXES = (".jpg", ".jpeg")
PHOTO_SUFFIXES = (*JPEG_SUFFIXES, ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")
JPEG_QUALITY = 92
DETECTIONS_FILE = "detections.json"


@dataclass(frozen=True)
class PredictionResult:
    """The objects found in photos.

    Attributes:
        detections: by photo, in the order of the photos; boxes are in pixels of the upright photo.
        pictures: the drawn picture of each photo; empty if none were asked for.
        num_photos: how many were given.
        failures: an error for each photo that could not be read.
    """

    detections: dict[Path, Detections]
    pictures: dict[Path, Path]
    num_photos: int
    failures: tuple[str, ...]

    @property
    def num_objects(self) -> int:
        """Number of objects in all photos."""
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
    """Find objects in photo files; draw them and write `detections.json` where `out` is given.

    `Detector.predict` does so for images in memory. A photo that cannot be read is reported in the
    result; the others are processed.

    Args:
        photos: files, and folders of photos; one, or several.
        checkpoint: a file as for `Detector.from_checkpoint`, or a detector.
        out: folder for a picture of each photo, and for the list of all objects.
        threshold: score threshold, in [0, 1].
        classes: names of the classes wanted; None for all.
        device: as for `Detector.from_checkpoint`; a detector stays where it is.
        batch_size: photos that run at once.
        callback: is called with "progress" and the numbers of photos done and in all.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder holds no photo, a picture would overwrite a photo, a class is unknown,
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
        reader = _Reader(files)
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
        (folder / DETECTIONS_FILE).write_text(json.dumps(results, indent=1), encoding="utf-8")
    drawn = {file: picture for file, picture in pictures.items() if file in detections}
    return PredictionResult(ordered, drawn, len(files), tuple(reader.failures))


class _Reader:
    """Reads photos one by one; those that cannot be read are skipped, and remembered.

    Attributes:
        failures: the errors of photos that could not be read.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._read: list[Path] = []
        self._waiting: dict[int, Image.Image] = {}
        self.failures: list[str] = []

    def __iter__(self) -> Iterator[Image.Image]:
        for file in self._files:
            try:
                photo = read_photo(file)
            except (OSError, ValueError) as error:
                self.failures.append(str(error))
                continue
            self._waiting[len(self._read)] = photo
            self._read.append(file)
            yield photo

    def take(self, position: int) -> tuple[Path, Image.Image]:
        """The file and the photo that was read at `position`, which is forgotten."""
        return self._read[position], self._waiting.pop(position)


def find_photos(paths: Sequence[str | Path]) -> list[Path]:
    """The photo files: files as they are given, of a folder those with a photo's suffix.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder holds no photo.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_file():
            files.append(path)
            continue
        if not path.is_dir():
            raise FileNotFoundError(f"photo or folder {path} must exist, found nothing there")
        inside = sorted(
            file
            for file in path.iterdir()
            if file.is_file() and file.suffix.lower() in PHOTO_SUFFIXES
        )
        if not inside:
            raise ValueError(
                f"folder {path} must hold photos ({', '.join(PHOTO_SUFFIXES)}), found none"
            )
        files.extend(inside)
    return list(dict.fromkeys(files))


def picture_files(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """The picture file of each photo: named as the photo, numbered where that name is taken.

    Raises:
        ValueError: a picture would overwrite a photo.
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
                f"out must be another folder than that of the photos, got {folder}, "
                f"where {picture.name} would be overwritten"
            )
        taken.add(picture)
        pictures[file] = picture
    return pictures


def _results(found: dict[Path, Detections], space: LabelSpace) -> list[dict[str, Any]]:
    """COCO results, photos numbered from 1, with their files and the names of the classes."""
    results = []
    for image_id, (file, detections) in enumerate(found.items(), start=1):
        for result in DetectionTable.from_detections(image_id, detections, space).to_results():
            name = space.names[space.label(result["category_id"])]
            results.append({"file_name": file.as_posix(), **result, "category_name": name})
    return results
