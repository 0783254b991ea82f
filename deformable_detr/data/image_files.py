"""Checks of the image files of a data set before the first step, by their headers."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deformable_detr import distributed
from deformable_detr.data.annotations import ImageRecord
from deformable_detr.data.channel_images import UPRIGHT, decode_image
from deformable_detr.data.image_headers import ImageFile, read_header, require_channels
from deformable_detr.files import require_regular_file
from deformable_detr.messages import in_brief, shown
from deformable_detr.photos import UNREADABLE, Exif, unreadable
from deformable_detr.pixels.channels import RGB
from deformable_detr.structures import Size

_LOGGER = logging.getLogger(__name__)
_SHOW_EVERY_S = 10.0
_AT_ONCE = 200  # images of one task of a thread

ExifRule = Literal["auto", "upright", "stored"]


@dataclass(frozen=True)
class CheckedImages:
    """Result of the check of all images of a data set.

    Attributes:
        exif: whether sizes and boxes are of the upright images or of the stored pixels.
        num_turned: number of images that differ between the two.
    """

    exif: Exif
    num_turned: int


def check_images(
    folder: Path,
    records: Sequence[ImageRecord],
    *,
    exif: ExifRule,
    otherwise: Exif,
    what: str,
    channels: int = RGB,
) -> CheckedImages:
    """Check that all images exist and are of the annotated size; decide how EXIF is applied.

    Headers are read, and the ends of JPEG and PNG files, which show whether they are whole. Only
    a file without such an end is decoded. Rank 0 checks, and all processes get its result or its
    error. Progress is logged.

    Images whose stored and upright sizes differ show by their annotated size which of the two the
    annotations mean, for the whole set.

    Args:
        folder: folder that the file names are relative to.
        records: the images.
        exif: "auto" to decide by the annotated sizes, or the decision.
        otherwise: the decision of "auto" if no image shows it.
        what: name of the annotations in messages.
        channels: number of channels to read the images with.

    Raises:
        FileNotFoundError: an image does not exist.
        ValueError: an image is unreadable, truncated, of another size or has another number of
            channels, or the sizes of some are upright and of others stored.
    """
    return distributed.from_main(
        lambda: _check_images(
            folder, records, exif=exif, otherwise=otherwise, what=what, channels=channels
        )
    )


def _check_images(
    folder: Path,
    records: Sequence[ImageRecord],
    *,
    exif: ExifRule,
    otherwise: Exif,
    what: str,
    channels: int,
) -> CheckedImages:
    files = _check_files(folder, records, what, channels)
    pages = [record for record, file in zip(records, files, strict=True) if file.num_pages > 1]
    if pages and channels == RGB:
        _LOGGER.warning(
            "%s: %d TIFF images have several pages, such as %s; only the first is read",
            what,
            len(pages),
            pages[0].file_name,
        )
    decided = _decide(records, files, otherwise=otherwise, what=what) if exif == "auto" else exif
    for record, file in zip(records, files, strict=True):
        _require_size(folder, record, file, decided, is_forced=exif != "auto")
    return CheckedImages(decided, sum(file.orientation != UPRIGHT for file in files))


def decide_exif(
    files: Sequence[Path], sizes: Sequence[Size], *, otherwise: Exif, what: str
) -> Exif:
    """Decide which pixels annotations mean by image files, which need not be all of their set.

    Args:
        files: the image files; those that cannot be read have no vote.
        sizes: annotated (height, width) per file; other sizes than those of the file have no vote.
        otherwise: the decision if no image shows it.
        what: name of the annotations in messages.

    Raises:
        ValueError: the sizes of some are upright and of others stored.
    """
    records, headers = [], []
    for file, size in zip(files, sizes, strict=True):
        try:
            header = read_header(file)
        except UNREADABLE:
            continue
        headers.append(header)
        records.append(ImageRecord(0, str(file), size))
    return _decide(records, headers, otherwise=otherwise, what=what)


def exif_votes(records: Sequence[ImageRecord], files: Sequence[ImageFile]) -> dict[Exif, list[str]]:
    """Return the names of the images that decide for upright and for stored pixels."""
    votes: dict[Exif, list[str]] = {"upright": [], "stored": []}
    for record, file in zip(records, files, strict=True):
        if file.stored != file.upright:
            for choice, names in votes.items():
                if record.size == file.size(choice):
                    names.append(record.file_name)
    return votes


def _decide(
    records: Sequence[ImageRecord], files: Sequence[ImageFile], *, otherwise: Exif, what: str
) -> Exif:
    """Decide as `decide_exif`, by the headers of the image files."""
    votes = exif_votes(records, files)
    undecided = [
        record.file_name
        for record, file in zip(records, files, strict=True)
        if file.stored == file.upright and file.orientation != UPRIGHT
    ]
    upright, stored = votes["upright"], votes["stored"]
    if upright and stored:
        raise ValueError(
            f"{what}: width and height must all be those of the upright images, or all those of "
            f"the stored pixels, got {len(upright)} upright (such as {upright[0]}) and "
            f"{len(stored)} stored (such as {stored[0]}), by the EXIF orientations of the images; "
            "export the annotations again with one tool, or split the set in two"
        )
    if upright or stored:
        return "upright" if upright else "stored"
    if undecided:
        _LOGGER.warning(
            "%s: %d images have an EXIF orientation, such as %s, and no width and height show "
            "whether boxes are of the upright images or of the stored pixels; taken as %s "
            "(data.exif, or evaluate --exif, decides: upright or stored)",
            what,
            len(undecided),
            undecided[0],
            otherwise,
        )
    return otherwise


def _require_size(
    folder: Path, record: ImageRecord, file: ImageFile, exif: Exif, *, is_forced: bool
) -> None:
    size = file.size(exif)
    if size == record.size:
        return
    of = ""
    if file.orientation != UPRIGHT:
        turned = "upright" if exif == "upright" else "before its EXIF orientation is applied"
        deciding = ("data.exif", "--exif", *(["match_official"] if exif == "stored" else []))
        of = f" {turned}" + (f", as {' or '.join(deciding)} says" if is_forced else "")
    raise ValueError(
        f"image {record.image_id} ({folder / record.file_name}) must be {record.size} "
        f"(height, width) as its annotations say, got {size}{of}"
    )


def _check_files(
    folder: Path, records: Sequence[ImageRecord], what: str, channels: int
) -> list[ImageFile]:
    """Read all headers; log the progress of a large set every ten seconds."""
    files: list[ImageFile] = []
    parts = [records[start : start + _AT_ONCE] for start in range(0, len(records), _AT_ONCE)]
    shown_at = time.monotonic()

    def check(part: Sequence[ImageRecord]) -> list[ImageFile]:
        return [_check_file(folder, one, channels) for one in part]

    pool = ThreadPoolExecutor()  # the work is bound by disk latency
    try:
        for part in pool.map(check, parts):
            files += part
            if time.monotonic() - shown_at > _SHOW_EVERY_S:
                shown_at = time.monotonic()
                _LOGGER.info("%s: checked %d of %d images", what, len(files), len(records))
    finally:
        pool.shutdown(cancel_futures=True)
    return files


def _check_file(folder: Path, record: ImageRecord, channels: int) -> ImageFile:
    """Read the header; raise if the file is missing, unreadable or known to be truncated."""
    path = folder / record.file_name
    what = f"image {record.image_id} ({shown(path)})"
    try:
        require_regular_file(path, f"image {record.image_id}")  # opening a pipe may never return
    except FileNotFoundError as error:
        twin = FolderNames().twin(path)
        hint = f"; found {in_brief(twin)} there" if twin else ""
        raise FileNotFoundError(
            f"{what} must exist, got no such file; file names are relative to {shown(folder)}{hint}"
        ) from error
    try:
        header = read_header(path)
        require_channels(path, header, channels)
    except UNREADABLE as error:
        raise unreadable(what, error) from error
    if header.is_whole is False:
        decode_image(path, what, exif="stored", channels=channels)
    return header


class FolderNames:
    """Names of the files in folders, each listed once."""

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, list[str]]] = {}

    def twin(self, path: Path) -> str | None:
        """Return the one file name that differs from a missing one in case or suffix only."""
        names = self._listed(path.parent)
        same = names.get(path.name.casefold(), [])
        others = names.get(path.stem.casefold(), [])
        return same[0] if len(same) == 1 else others[0] if not same and len(others) == 1 else None

    def _listed(self, folder: Path) -> dict[str, list[str]]:
        """Return the file names by their folded name, and by that without its suffix."""
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            try:
                found = sorted(file.name for file in folder.iterdir())
            except OSError:
                found = []
            for name in found:
                for key in {name.casefold(), Path(name).stem.casefold()}:
                    names.setdefault(key, []).append(name)
            self._names[folder] = names
        return self._names[folder]
