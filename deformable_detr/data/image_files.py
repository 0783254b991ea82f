"""Checks of the image files of a data set before the first step, without decoding most of them."""

import io
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from deformable_detr.data.annotations import ImageRecord
from deformable_detr.messages import shown
from deformable_detr.photos import (
    UNREADABLE,
    Exif,
    decode,
    num_pages,
    open_image,
    orientation_of,
    stored_size,
    unreadable,
    upright_size,
)
from deformable_detr.structures import Size

_LOGGER = logging.getLogger(__name__)
_UPRIGHT = 1  # an EXIF orientation
_SOI, _SOS, _EOI = b"\xff\xd8", 0xDA, b"\xff\xd9"  # markers of JPEG: start, pixels, end
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}
_TAIL_BYTES = 4096  # some cameras and tools append bytes after the end marker
_PNG_HEADER_BYTES = 8
_PNG_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # may hold an orientation

ExifRule = Literal["auto", "upright", "stored"]


@dataclass(frozen=True)
class ImageFile:
    """Header of an image file.

    Attributes:
        stored: (height, width) of the stored pixels.
        orientation: EXIF orientation, in 1..8.
        num_pages: number of images in a TIFF file, of which the first is read; else 1.
    """

    stored: Size
    orientation: int
    num_pages: int = 1

    @property
    def upright(self) -> Size:
        """(height, width) of the image turned upright."""
        return upright_size(self.stored, self.orientation)

    def size(self, exif: Exif) -> Size:
        """Return (height, width) of the pixels that are read."""
        return self.upright if exif == "upright" else self.stored


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
) -> CheckedImages:
    """Check that all images are whole and of the annotated size; decide how EXIF is applied.

    Images whose stored and upright sizes differ show by their annotated size which of the two the
    annotations mean, for the whole set.

    Args:
        folder: folder that the file names are relative to.
        records: the images.
        exif: "auto" to decide by the annotated sizes, or the decision.
        otherwise: the decision of "auto" if no image shows it.
        what: name of the annotations in messages.

    Raises:
        FileNotFoundError: an image does not exist.
        ValueError: an image is unreadable, truncated or of another size, or the sizes of some are
            upright and of others stored.
    """
    with ThreadPoolExecutor() as pool:  # the work is bound by disk latency
        files = list(pool.map(lambda record: _check_file(folder, record), records))
    pages = [record for record, file in zip(records, files, strict=True) if file.num_pages > 1]
    if pages:
        _LOGGER.warning(
            "%s: %d TIFF images have several pages, such as %s; only the first is read",
            what,
            len(pages),
            pages[0].file_name,
        )
    decided = _decide(records, files, otherwise=otherwise, what=what) if exif == "auto" else exif
    for record, file in zip(records, files, strict=True):
        _require_size(folder, record, file, decided, is_forced=exif != "auto")
    return CheckedImages(decided, sum(file.orientation != _UPRIGHT for file in files))


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
            header, _ = _read_header(file)
        except UNREADABLE:
            continue
        headers.append(header)
        records.append(ImageRecord(0, str(file), size))
    return _decide(records, headers, otherwise=otherwise, what=what)


def _decide(
    records: Sequence[ImageRecord], files: Sequence[ImageFile], *, otherwise: Exif, what: str
) -> Exif:
    """Decide by the images whose stored and upright sizes differ."""
    votes: dict[Exif, list[str]] = {"upright": [], "stored": []}
    undecided = []
    for record, file in zip(records, files, strict=True):
        if file.stored != file.upright:
            for choice, names in votes.items():
                if record.size == file.size(choice):
                    names.append(record.file_name)
        elif file.orientation != _UPRIGHT:
            undecided.append(record.file_name)
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
    if file.orientation != _UPRIGHT:
        turned = "upright" if exif == "upright" else "before its EXIF orientation is applied"
        deciding = ("data.exif", "--exif", *(["match_official"] if exif == "stored" else []))
        of = f" {turned}" + (f", as {' or '.join(deciding)} says" if is_forced else "")
    raise ValueError(
        f"image {record.image_id} ({folder / record.file_name}) must be {record.size} "
        f"(height, width) as its annotations say, got {size}{of}"
    )


def _check_file(folder: Path, record: ImageRecord) -> ImageFile:
    """Read the header; raise if the file is missing, unreadable or truncated."""
    path = folder / record.file_name
    what = f"image {record.image_id} ({shown(path)})"
    try:
        header, is_whole = _read_header(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{what} must exist, got no such file; file names are relative to {shown(folder)}"
        ) from error
    except UNREADABLE as error:
        raise unreadable(what, error) from error
    if not is_whole:  # or of a format whose end is not known
        decode(path, what, exif="stored")
    return header


def _read_header(path: Path) -> tuple[ImageFile, bool]:
    """Return the header, and whether the file is known to be whole without decoding it."""
    with path.open("rb") as file, open_image(file) as image:
        kind = image.format or ""
        is_whole, late_exif = False, False
        if kind == "PNG":
            is_whole, late_exif = _walk_png(path)
        header = ImageFile(
            stored_size(image),
            orientation_of(image, may_decode=late_exif),
            num_pages(image),
        )
        if kind in ("JPEG", "MPO"):
            is_whole = _is_whole_jpeg(file)
    return header, is_whole


def _is_whole_jpeg(file: BinaryIO) -> bool:
    """Return whether an end marker follows the pixels; that of an EXIF thumbnail precedes them."""
    start = _start_of_pixels(file)
    if start is None:
        return False
    end = file.seek(0, io.SEEK_END)
    file.seek(max(end - _TAIL_BYTES, start))
    return _EOI in file.read()


def _start_of_pixels(file: BinaryIO) -> int | None:
    """Return the position after the start-of-scan marker of the main image, by its segments."""
    file.seek(0)
    if file.read(2) != _SOI:
        return None
    while (byte := file.read(1)) == b"\xff":
        while byte == b"\xff":  # any number of fill bytes
            byte = file.read(1)
        if not byte:
            return None
        marker = byte[0]
        if marker == _SOS:
            return file.tell()
        if marker not in _WITHOUT_LENGTH:
            length = int.from_bytes(file.read(2), "big")
            file.seek(length - 2, io.SEEK_CUR)
    return None


def _walk_png(path: Path) -> tuple[bool, bool]:
    """Return whether the last chunk is there, and whether EXIF data may follow the pixels."""
    after_pixels, late_exif = False, False
    with path.open("rb", buffering=0) as file:  # else every chunk would fill a buffer
        position = _PNG_HEADER_BYTES
        while True:
            file.seek(position)
            head = file.read(8 + max(map(len, _PNG_TEXTS)))
            length, kind, data = int.from_bytes(head[:4], "big"), head[4:8], head[8:]
            if len(kind) < 4:
                return False, late_exif
            if kind == b"IEND":
                return after_pixels, late_exif
            if kind == b"IDAT":
                after_pixels = True
            elif after_pixels and (kind == b"eXIf" or data.startswith(_PNG_TEXTS)):
                late_exif = True
            position += 12 + length  # with length, kind and checksum
