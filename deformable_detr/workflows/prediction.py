"""Prediction: detections in image files as tensors, pictures and a JSON file."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from deformable_detr.arguments import (
    require_fraction,
    require_integer,
    require_names,
    require_path,
)
from deformable_detr.data.image_files import decide_exif
from deformable_detr.detector import DEFAULT_BATCH_SIZE, DEFAULT_THRESHOLD, Detector
from deformable_detr.engine.run.progress import Tracked
from deformable_detr.engine.run.tracking import Callback
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.evaluation.image_names import match_images
from deformable_detr.files import require_regular_file, write_whole
from deformable_detr.finite import NonFinitePredictionsError, to_json
from deformable_detr.ground_truth import GroundTruth, read_ground_truth
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import SHOWN, in_brief
from deformable_detr.photos import JPEG_SUFFIXES, Exif, photo_suffixes, read_photo
from deformable_detr.structures import Detections
from deformable_detr.visualize.objects import draw_detections
from deformable_detr.workflows.places import require_folder_place
from deformable_detr.workflows.session import kept_torch_state

NUM_NAMED = 3  # names of passed-over files in a message
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
JPEG_QUALITY = 92
DETECTIONS_FILE = "detections.json"
_T = TypeVar("_T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictionResult:
    """Detections in image files.

    Attributes:
        detections: detections by image file, in the order given; boxes are as `Detector.predict`
            gives them.
        image_ids: the image id of each of these files: that of the annotation file if one was
            given, else 1, 2, ... in the order given, counting images that could not be read.
        pictures: the picture written for each image file; empty if `out` was not given.
        num_photos: number of images given.
        failures: one error message per image that could not be read.
    """

    detections: dict[Path, Detections]
    image_ids: dict[Path, int]
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
    annotations: str | Path | None = None,
    threshold: float = DEFAULT_THRESHOLD,
    classes: Sequence[str] | None = None,
    max_detections: int | None = None,
    device: str = "auto",
    batch_size: int = DEFAULT_BATCH_SIZE,
    callback: Callback | None = None,
) -> PredictionResult:
    """Detect objects in image files; draw them and write `detections.json` if `out` is given.

    `Detector.predict` does the same for images in memory. An image that cannot be read is reported
    in the result; the others are processed.

    `detections.json` is a COCO results file with the numbers as computed, not rounded. With
    `annotations` it can be scored: with a threshold of 0 and at most 100 detections per image it
    has the metrics that `evaluate` has for the same images. Without them images are numbered in the
    order given, and `file_name` is the path as given.

    Args:
        photos: an image file or a folder of images, or several of them.
        checkpoint: a file as for `Detector.from_checkpoint`, or a detector.
        out: folder for one picture per image, and for `detections.json` with all objects.
        annotations: COCO annotation file that lists the images; its image ids and file names are
            used. An image is found by the longest `file_name` that its path ends with, else by one
            that ends with the path. The file must have the detector's categories; its objects are
            not used. If its sizes tell that it means upright images or stored pixels, such are
            read, whatever `Detector.exif` is.
        threshold: score threshold, in [0, 1].
        classes: names of the classes to detect; None for all.
        max_detections: maximum number of detections per image; None for all above the threshold. A
            warning counts the images where it leaves out some.
        device: as for `Detector.from_checkpoint`; a detector stays on its device.
        batch_size: images per batch.
        callback: called with "progress", the number of finished images and their total.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder holds no image, no image can be read, an image is not in `annotations`,
            a picture would overwrite an image, a class is unknown, or a number is out of range.
        NonFinitePredictionsError: the model's logits or boxes of an image are infinite or NaN.
    """
    require_fraction("threshold", threshold)
    require_integer("batch_size", batch_size, at_least=1)
    if max_detections is not None:
        require_integer("max_detections", max_detections, at_least=1)
    if classes is not None:
        require_names("classes", classes)
    for name, path in (("out", out), ("annotations", annotations)):
        if path is not None:
            require_path(name, path)
    if not isinstance(checkpoint, Detector):
        require_path("checkpoint", checkpoint)
    folder = None if out is None else Path(out)
    if folder is not None:
        require_folder_place("out", folder)
    files = find_photos([photos] if isinstance(photos, str | Path) else photos)
    pictures = {} if folder is None else picture_files(files, folder)
    listed = None if annotations is None else read_ground_truth(Path(annotations))
    identities = _identities(files, listed)
    with kept_torch_state(device) as chosen:
        if not isinstance(checkpoint, Detector):
            checkpoint = Detector.from_checkpoint(checkpoint, str(chosen))
        if listed is not None:
            checkpoint.label_space.contiguous().require_same(
                listed.label_space, this="the detector", that=f"annotation file {listed.file}"
            )
        reader = _Reader(files, _exif(files, identities, listed, otherwise=checkpoint.exif))
        logger.info(
            "%d images, score threshold %g, %s, %s",
            len(files),
            threshold,
            "all classes" if classes is None else f"classes {', '.join(classes)}",
            "no limit of detections" if max_detections is None else f"limit {max_detections}",
        )
        found = checkpoint.predict_each(
            reader,
            threshold=threshold,
            classes=classes,
            max_detections=max_detections,
            batch_size=batch_size,
        )
        tracked = Tracked(found, "predicting", total=len(files), callback=callback)
        detections = _collect(tracked, reader, pictures, checkpoint.label_space.names)
    if not detections:
        raise ValueError(_nothing_read(reader.failures))
    ordered = {file: detections[file] for file in files if file in detections}
    if folder is not None:
        results = _results(ordered, identities, checkpoint.label_space)
        with write_whole(folder / DETECTIONS_FILE) as temporary:
            temporary.write_text(to_json(results, DETECTIONS_FILE, indent=1), encoding="utf-8")
    drawn = {file: picture for file, picture in pictures.items() if file in detections}
    image_ids = {file: identities[file].image_id for file in ordered}
    return PredictionResult(ordered, image_ids, drawn, len(files), tuple(reader.failures))


def _collect(
    found: Iterable[tuple[int, Detections]],
    reader: "_Reader",
    pictures: Mapping[Path, Path],
    names: Sequence[str],
) -> dict[Path, Detections]:
    """Collect the detections by image file; draw each image that has a picture file at once."""
    for folder in {picture.parent for picture in pictures.values()}:
        folder.mkdir(parents=True, exist_ok=True)
    detections: dict[Path, Detections] = {}
    for position, one in reader.naming_files(found):
        file, photo = reader.take(position)
        detections[file] = one
        if file in pictures:
            draw_detections(photo, one, names).save(pictures[file], quality=JPEG_QUALITY)
    return detections


class _Identity(NamedTuple):
    """Image id and `file_name` of an image in `detections.json`."""

    image_id: int
    file_name: str


def _identities(files: Sequence[Path], listed: GroundTruth | None) -> dict[Path, _Identity]:
    """Take the identity of each image from an annotation file, or number the images from 1."""
    if listed is None:
        return {file: _Identity(number, file.as_posix()) for number, file in enumerate(files, 1)}
    places = match_images(files, listed)
    return {
        file: _Identity(listed.image_ids[place], listed.file_names[place])
        for file, place in zip(files, places, strict=True)
    }


def _exif(
    files: Sequence[Path],
    identities: Mapping[Path, _Identity],
    listed: GroundTruth | None,
    *,
    otherwise: Exif,
) -> Exif:
    """Decide which pixels to read: those that the annotations mean, else as the detector does."""
    if listed is None:
        return otherwise
    sizes = dict(zip(listed.image_ids, listed.image_sizes, strict=True))
    return decide_exif(
        files,
        [sizes[identities[file].image_id] for file in files],
        otherwise=otherwise,
        what=str(listed.file),
    )


def _nothing_read(failures: Sequence[str]) -> str:
    """Describe images of which none could be read."""
    more = [f"and {len(failures) - SHOWN} more"] if len(failures) > SHOWN else []
    heading = f"{len(failures)} of {len(failures)} images could not be read"
    return "\n".join([heading, *failures[:SHOWN], *more])


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

    def naming_files(self, items: Iterable[_T]) -> Iterator[_T]:
        """Yield the items; an error of predictions that are not finite names the file."""
        try:
            yield from items
        except NonFinitePredictionsError as error:
            raise error.renamed(f"image {self._read[error.position]}") from None


def find_photos(paths: Sequence[str | Path]) -> list[Path]:
    """List the image files: files as given, and from a folder those with an image suffix.

    A file that is named by several paths is listed once. What a folder holds besides is logged.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder holds no image.
    """
    if not isinstance(paths, Sequence) or isinstance(paths, bytes):
        raise ValueError(f"photos must be a path, or a list of paths, got {in_brief(paths)}")
    named: list[Path] = []
    for given in paths:
        require_path("image or folder", given)
        path = Path(given)
        if path.is_dir():
            named += _images_in(path)
        else:
            require_regular_file(path, "image or folder")
            named.append(path)
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


def _results(
    found: Mapping[Path, Detections], identities: Mapping[Path, _Identity], space: LabelSpace
) -> list[dict[str, Any]]:
    """Return COCO results with file and class names."""
    results = []
    for file, detections in found.items():
        image_id, file_name = identities[file]
        for result in DetectionTable.from_detections(image_id, detections, space).to_results():
            name = space.names[space.label(result["category_id"])]
            results.append({"file_name": file_name, **result, "category_name": name})
    return results
