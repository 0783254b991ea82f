"""Headers of image files: sizes, orientation, and whether a file is whole, without decoding."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from deformable_detr.data.channel_images import (
    NPY,
    UPRIGHT,
    require_equal_pages,
    require_readable_as,
)
from deformable_detr.photos import (
    UNREADABLE,
    Exif,
    header_depth_problem,
    num_pages,
    open_image,
    open_regular,
    orientation_of,
    stored_size,
    upright_size,
)
from deformable_detr.pixels.channels import RGB
from deformable_detr.pixels.modes import num_planes
from deformable_detr.pixels.npy import SUFFIX as NPY_SUFFIX
from deformable_detr.pixels.npy import is_npy, read_npy_header
from deformable_detr.structures import Size

_SOI, _SOS, _EOI = b"\xff\xd8", 0xDA, b"\xff\xd9"  # markers of JPEG: start, pixels, end
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}
_TAIL_BYTES = 4096  # some cameras and tools append bytes after the end marker
_PNG_HEADER_BYTES = 8
_PNG_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # may hold an orientation


@dataclass(frozen=True, slots=True)
class ImageFile:
    """Header of an image file.

    Attributes:
        stored: (height, width) of the stored pixels.
        orientation: EXIF orientation, in 1..8.
        num_pages: number of images in a TIFF file, of which the first is read; else 1.
        is_whole: whether the end of a JPEG or PNG file was found; None for other formats, whose end
            is known by decoding only.
        format: Pillow's name of the format, or "NPY".
        num_planes: number of channels of the first page.
    """

    stored: Size
    orientation: int
    num_pages: int = 1
    is_whole: bool | None = None
    format: str = ""
    num_planes: int = 3

    @property
    def upright(self) -> Size:
        """(height, width) of the image turned upright."""
        return upright_size(self.stored, self.orientation)

    def size(self, exif: Exif) -> Size:
        """Return (height, width) of the pixels that are read."""
        return self.upright if exif == "upright" else self.stored


def read_header(path: Path) -> ImageFile:
    """Read the header of an image file.

    Raises:
        ValueError: the depth of its pixels is refused; see `photos.UNREADABLE` for files that
            cannot be read.
    """
    with open_regular(path) as file:
        if is_npy(file):
            npy = read_npy_header(file)
            return ImageFile(npy.shape[:2], UPRIGHT, 1, npy.is_whole, NPY, npy.shape[2])
    with path.open("rb") as file, open_image(file) as image:
        kind = image.format or ""
        is_whole, late_exif = None, False
        if kind == "PNG":
            is_whole, late_exif = _walk_png(path)
        if problem := header_depth_problem(image):
            raise ValueError(problem)
        return ImageFile(
            stored_size(image),
            orientation_of(image, may_decode=late_exif),
            num_pages(image),
            _is_whole_jpeg(file) if kind in ("JPEG", "MPO") else is_whole,
            kind,
            num_planes(image),
        )


def channels_of(file: Path) -> int:
    """Return the channels of a .npy file, and three for any other file.

    An unreadable file has three too; the check of all images reports it.
    """
    if file.suffix.lower() != NPY_SUFFIX:
        return RGB
    try:
        return read_header(file).num_planes
    except UNREADABLE:
        return RGB


def require_channels(path: Path, header: ImageFile, channels: int) -> None:
    """Raise a `RefusedImageError` if a file cannot be read with a number of channels.

    Args:
        path: path of the file.
        header: its header.
        channels: number of channels wanted.
    """
    require_readable_as(header.format, header.num_planes, header.num_pages, channels)
    if channels != RGB and header.num_pages > 1:
        with open_image(path) as image:
            require_equal_pages(image, header.num_pages)


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
