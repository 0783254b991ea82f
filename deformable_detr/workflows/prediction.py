"""Prediction: detections in image files as tensors, pictures and a JSON file."""

import logging
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from deformable_detr.arguments import (
    MOST_BATCH,
    checked,
    require_fraction,
    require_integer,
)
from deformable_detr.data.channel_images import read_image
from deformable_detr.data.found_photos import find_photos
from deformable_detr.data.image_files import decide_exif
from deformable_detr.detector import DEFAULT_BATCH_SIZE, DEFAULT_THRESHOLD, Detector
from deformable_detr.engine.run.progress import Tracked
from deformable_detr.engine.run.tracking import Callback
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.evaluation.image_names import match_images
from deformable_detr.evaluation.partial_results import PartialResults
from deformable_detr.files import WriteError, as_path, encoded
from deformable_detr.files.output_folder import OutputFolder
from deformable_detr.finite import NonFinitePredictionsError, to_json
from deformable_detr.ground_truth import GroundTruth, read_ground_truth
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import SHOWN, counted, shown
from deformable_detr.photos import JPEG_SUFFIXES, Exif
from deformable_detr.pixels.channels import AnyImage, to_rgb
from deformable_detr.structures import Detections, Size
from deformable_detr.visualize.objects import draw_detections
from deformable_detr.workflows.session import kept_torch_state
from deformable_detr.workflows.unfinished import partial_results_of

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


@checked
def predict(
    photos: str | Path | Sequence[str | Path],
    *,
    checkpoint: str | Path | Detector,
    out: str | Path | None = None,
    annotations: str | Path | None = None,
    threshold: float = DEFAULT_THRESHOLD,
    classes: Sequence[str] | None = None,
    max_detections: int | None = None,
    overwrite: bool = False,
    device: str = "auto",
    batch_size: int = DEFAULT_BATCH_SIZE,
    callback: Callback | None = None,
) -> PredictionResult:
    """Detect objects in image files; draw them and write `detections.json` if `out` is given.

    `Detector.predict` does the same for images in memory. An image that cannot be read is reported
    in the result; the others are processed. If an error or Ctrl-C ends the work, what was found is
    kept in `out`, in `detections.json.partial.jsonl`, and the same call continues after it.

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
        overwrite: replace files in `out` that this program did not write, that have changed since,
            or that were kept of other work. Without it such a file is an error before any image is
            read. Inputs are never replaced.
        device: as for `Detector.from_checkpoint`; a detector stays on its device.
        batch_size: images per batch.
        callback: called with "progress", the number of finished images and their total.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder holds no image, no image can be read, an image is not in `annotations`,
            a file would be replaced that must not be, a class is unknown, a number is out of
            range, or `out` has what was found by other work that was not finished.
        WriteError: a file could not be written, as on a full disk; the earlier ones are kept.
        NonFinitePredictionsError: the model's logits or boxes of an image are infinite or NaN.
    """
    require_fraction("threshold", threshold)
    require_integer("batch_size", batch_size, at_least=1, at_most=MOST_BATCH)
    if max_detections is not None:
        require_integer("max_detections", max_detections, at_least=1)
    if not isinstance(checkpoint, Detector):
        checkpoint = as_path("checkpoint", checkpoint)
    folder = None if out is None else OutputFolder(as_path("out", out), "out", overwrite=overwrite)
    files = find_photos([photos] if isinstance(photos, str | Path) else photos)
    pictures = {} if folder is None else picture_names(files)
    given = [Path(one) for one in (checkpoint, annotations) if isinstance(one, str | Path)]
    if folder is not None:
        folder.check([*pictures.values(), DETECTIONS_FILE], inputs=[*files, *given])
    listed = None if annotations is None else read_ground_truth(as_path("annotations", annotations))
    identities = _identities(files, listed)
    with kept_torch_state(device) as chosen:
        if not isinstance(checkpoint, Detector):
            checkpoint = Detector.from_checkpoint(checkpoint, str(chosen))
        if listed is not None:
            checkpoint.label_space.contiguous().require_same(
                listed.label_space,
                this="the detector",
                that=f"annotation file {shown(listed.file)}",
            )
        exif = _exif(files, identities, listed, otherwise=checkpoint.exif)
        settings: dict[str, Any] = {
            "threshold": threshold,
            "classes": None if classes is None else list(classes),
            "max_detections": max_detections,
            "batch_size": batch_size,
        }
        logger.info(
            "%s, score threshold %g, %s, %s",
            counted(len(files), "image"),
            threshold,
            "all classes" if classes is None else f"classes {', '.join(map(shown, classes))}",
            "no limit of detections" if max_detections is None else f"limit {max_detections}",
        )
        drawing = _Drawing(folder, pictures, checkpoint.label_space)
        with partial_results_of(
            None if folder is None else folder.path / DETECTIONS_FILE,
            checkpoint,
            files,
            annotations=None if listed is None else listed.file,
            usable=lambda key: drawing.take_over(Path(str(key))),
            overwrite=overwrite,
            inputs=given,
            **settings,
            exif=exif,
            clip_boxes=checkpoint.clip_boxes,
        ) as kept:
            found_before = {} if kept is None else kept.found
            before = {Path(str(key)): one for key, one in found_before.items()}
            unread = [file for file in files if file not in before]
            reader = _Reader(unread, exif, checkpoint.channels)
            batches = checkpoint.predict_batches(reader, **settings)
            found = _finished(batches, reader, drawing, kept)
            tracked = Tracked(
                chain(before.items(), found), "predicting", total=len(files), callback=callback
            )
            detections = dict(tracked)
            if not detections:
                raise ValueError(_nothing_read(reader.failures))
            ordered = {file: detections[file] for file in files if file in detections}
            if folder is not None:
                results = _results(ordered, identities, checkpoint.label_space)
                drawing.write_results(to_json(results, DETECTIONS_FILE, indent=1))
    image_ids = {file: identities[file].image_id for file in ordered}
    drawn = {file: drawing.written[file] for file in ordered if file in drawing.written}
    return PredictionResult(ordered, image_ids, drawn, len(files), tuple(reader.failures))


def _finished(
    batches: Iterable[Sequence[tuple[int, Detections]]],
    reader: "_Reader",
    drawing: "_Drawing",
    kept: PartialResults | None,
) -> Iterator[tuple[Path, Detections]]:
    """Draw the pictures of each batch and keep its detections, then yield them by image file."""
    for batch in reader.naming_files(batches):
        found: dict[Path, Detections] = {}
        for position, one in batch:
            file, photo = reader.take(position)
            found[file] = one
            drawing.draw(file, photo, one)
        if kept is not None:
            kept.add({str(file): one for file, one in found.items()})
        yield from found.items()


class _Drawing:
    """Output folder, and the pictures that have been drawn into it.

    Attributes:
        written: the picture written for each image file.
    """

    def __init__(
        self, folder: OutputFolder | None, pictures: Mapping[Path, str], categories: LabelSpace
    ) -> None:
        self._folder, self._pictures, self._categories = folder, pictures, categories
        self.written: dict[Path, Path] = {}

    def take_over(self, file: Path) -> bool:
        """Return whether the picture of an image was written before, and need not be drawn."""
        if self._folder is None or file not in self._pictures:
            return False
        name = self._pictures[file]
        if not self._folder.holds(name):
            return False
        self.written[file] = self._folder.path / name
        return True

    def draw(self, file: Path, photo: AnyImage, found: Detections) -> None:
        """Draw the detections and write the picture, if there is a folder."""
        if self._folder is None:
            return
        picture = draw_detections(to_rgb(photo), found, self._categories)
        self.written[file] = self._write(
            self._pictures[file],
            lambda temporary: temporary.write_bytes(
                encoded(picture, self._pictures[file], quality=JPEG_QUALITY)
            ),
        )

    def write_results(self, text: str) -> None:
        """Write `detections.json`."""
        self._write(DETECTIONS_FILE, lambda temporary: temporary.write_text(text, "utf-8"))

    def _write(self, name: str, write: Callable[[Path], object]) -> Path:
        assert self._folder is not None
        try:
            return self._folder.write(name, write)
        except WriteError as error:
            kept = f"; {len(self.written)} of {len(self._pictures)} pictures are written"
            raise WriteError(f"{error}{kept}", error.reason) from error


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
        file: _Identity(int(listed.image_ids[place]), listed.file_names[place])
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
    sizes: dict[int, Size] = {
        image_id: (height, width)
        for image_id, (height, width) in zip(
            listed.image_ids.tolist(), listed.image_sizes.tolist(), strict=True
        )
    }
    return decide_exif(
        files,
        [sizes[identities[file].image_id] for file in files],
        otherwise=otherwise,
        what=shown(listed.file),
    )


def _nothing_read(failures: Sequence[str]) -> str:
    """Describe images of which none could be read: one in a line, several with a line each."""
    if len(failures) == 1:
        return failures[0]
    more = [f"and {len(failures) - SHOWN} more"] if len(failures) > SHOWN else []
    heading = f"{len(failures)} of {counted(len(failures), 'image')} could not be read"
    return "\n".join([heading, *failures[:SHOWN], *more])


class _Reader:
    """Iterable over the readable images of a list of files.

    Attributes:
        failures: error messages of the images that could not be read.
    """

    def __init__(self, files: Sequence[Path], exif: Exif, channels: int) -> None:
        self._files = files
        self._exif: Exif = exif
        self._channels = channels
        self._read: list[Path] = []
        self._waiting: dict[int, AnyImage] = {}
        self.failures: list[str] = []

    def __iter__(self) -> Iterator[AnyImage]:
        for file in self._files:
            try:
                photo = read_image(file, exif=self._exif, channels=self._channels)
            except (OSError, ValueError) as error:
                self.failures.append(str(error))
                continue
            self._waiting[len(self._read)] = photo
            self._read.append(file)
            yield photo

    def take(self, position: int) -> tuple[Path, AnyImage]:
        """Return the file and the image read at `position`, and release the image."""
        return self._read[position], self._waiting.pop(position)

    def naming_files(self, items: Iterable[_T]) -> Iterator[_T]:
        """Yield the items; an error of predictions that are not finite names the file."""
        try:
            yield from items
        except NonFinitePredictionsError as error:
            raise error.renamed(f"image {self._read[error.position]}") from None


def picture_names(files: Sequence[Path]) -> dict[Path, str]:
    """Choose the name of each image's picture: its own, with a number if that is taken.

    Names that differ in upper and lower case only are one file on some systems, and count as taken.
    """
    taken: set[str] = set()
    names = {}
    for file in files:
        suffix = ".jpg" if file.suffix.lower() in JPEG_SUFFIXES else ".png"
        name, number = f"{file.stem}{suffix}", 1
        while _folded(name) in taken:
            number += 1
            name = f"{file.stem}_{number}{suffix}"
        taken.add(_folded(name))
        names[file] = name
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


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
