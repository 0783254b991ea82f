"""`deformable-detr predict`: finds objects in photos, draws them and writes them down."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from deformable_detr.cli.outputs import require_folder_place

# What needs PyTorch is imported when the command runs, so that help is there at once.
if TYPE_CHECKING:
    from PIL import Image

    from deformable_detr.detector import Detector
    from deformable_detr.structures import Detections

JPEG_SUFFIXES = (".jpg", ".jpeg")
PHOTO_SUFFIXES = (*JPEG_SUFFIXES, ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")
JPEG_QUALITY = 92
DETECTIONS_FILE = "detections.json"


def predict(
    photos: Annotated[
        list[Path], typer.Argument(metavar="PHOTO_OR_FOLDER", help="Photos, and folders of photos.")
    ],
    checkpoint: Annotated[
        Path, typer.Option(metavar="FILE", help="Checkpoint of `train`, or weights from elsewhere.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the pictures and detections.json.")
    ],
    threshold: Annotated[
        float, typer.Option(help="Show objects with at least this score, from 0 to 1.")
    ] = 0.3,
    classes: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Show these classes only.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps; auto takes the fastest.")
    ] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Photos that run at once.")] = 4,
) -> None:
    """Find objects in photos: a picture of each photo, and a list in detections.json.

    Photos may be of any mode; they are turned as their EXIF orientation says, and boxes are in
    pixels of the photo so turned. A photo that cannot be read is named at the end, and the
    others are done all the same.
    """
    require_folder_place("--out", out)
    files = find_photos(photos)
    pictures = picture_files(files, out)
    names = None if classes is None else [name.strip() for name in classes.split(",")]

    from deformable_detr.detector import Detector
    from deformable_detr.photos import read_photo
    from deformable_detr.visualize.objects import draw_detections

    detector = Detector.from_checkpoint(checkpoint, device)
    reader = _Reader(files)
    found = detector.predict_each(reader, threshold=threshold, classes=names, batch_size=batch_size)
    out.mkdir(parents=True, exist_ok=True)
    detections_of: dict[Path, Detections] = {}
    console = Console(stderr=True)
    for position, detections in track(
        found, "predicting", total=len(files), console=console, disable=not console.is_terminal
    ):
        file = reader.done[position]
        picture = draw_detections(read_photo(file), detections, detector.label_space.names)
        picture.save(pictures[file], quality=JPEG_QUALITY)
        detections_of[file] = detections

    results = _results(detector, [(file, detections_of[file]) for file in reader.done])
    (out / DETECTIONS_FILE).write_text(json.dumps(results, indent=1), encoding="utf-8")
    typer.echo(f"{len(results)} objects in {len(reader.done)} photos, see {out}")
    if reader.failures:
        others = ", the others are done" if reader.done else ""
        raise ValueError(
            f"{len(reader.failures)} of {len(files)} photos could not be read{others}\n"
            + "\n".join(reader.failures)
        )


class _Reader:
    """Reads photos one by one; those that cannot be read are passed over, and remembered.

    Attributes:
        done: files read so far.
        failures: what was wrong with the others.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self.done: list[Path] = []
        self.failures: list[str] = []

    def __iter__(self) -> "Iterator[Image.Image]":
        for file in self._files:
            photo = self._read(file)
            if photo is not None:
                self.done.append(file)
                yield photo

    def _read(self, file: Path) -> "Image.Image | None":
        from deformable_detr.photos import read_photo

        try:
            return read_photo(file)
        except (OSError, ValueError) as error:
            self.failures.append(str(error))
            return None


def find_photos(paths: Sequence[Path]) -> list[Path]:
    """The files that are meant: photos as they are, of a folder those with a photo's suffix.

    Raises:
        FileNotFoundError: a path leads nowhere.
        ValueError: a folder holds no photo.
    """
    files: list[Path] = []
    for path in paths:
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
    """Where to write the picture of each photo: under its name, numbered where that is taken.

    Raises:
        ValueError: a picture would be written over a photo.
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
                f"--out must be another folder than that of the photos, got {folder}, "
                f"where {picture.name} would be overwritten"
            )
        taken.add(picture)
        pictures[file] = picture
    return pictures


def _results(
    detector: "Detector", found: "Sequence[tuple[Path, Detections]]"
) -> list[dict[str, Any]]:
    """COCO results, photos numbered from 1, with their files and the names of the classes."""
    from deformable_detr.evaluation.detection_table import DetectionTable

    space = detector.label_space
    results = []
    for image_id, (file, detections) in enumerate(found, start=1):
        for result in DetectionTable.from_detections(image_id, detections, space).to_results():
            name = space.names[space.label(result["category_id"])]
            results.append({"file_name": file.as_posix(), **result, "category_name": name})
    return results
