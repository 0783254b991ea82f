"""Inspection of the image files of a set: each is read and decoded once, in threads."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from deformable_detr.data.channel_images import NPY, decode_image
from deformable_detr.data.found_photos import images_among
from deformable_detr.data.image_files import FolderNames
from deformable_detr.data.image_headers import ImageFile, read_header
from deformable_detr.files import require_regular_file
from deformable_detr.photos import UNREADABLE
from deformable_detr.pixels.channels import RGB, AnyImage
from deformable_detr.pixels.limits import RefusedImageError

_READ_AT_ONCE = 2**20
_MOST_THREADS = 8  # each holds a decoded image
_AT_ONCE = 64  # images that wait for the threads, so that Ctrl-C ends soon


@dataclass(frozen=True, slots=True)
class PhotoFile:
    """Result of reading and decoding an image file.

    Attributes:
        problem: kind of the finding, or "" for a sound file.
        reason: description of the problem, or "".
        header: its header; None if it cannot be read.
        digest: hash of the content; b"" if it cannot be read.
        is_blank: whether all pixels are equal.
        twin: name of the file that a missing one means by all appearance, or "".
    """

    problem: str = ""
    reason: str = ""
    header: ImageFile | None = None
    digest: bytes = b""
    is_blank: bool = False
    twin: str = ""


def read_photos(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, PhotoFile]]:
    """Read and decode image files; yield the name and the result of each, in order.

    Args:
        folder: folder of the images.
        names: paths below it.
    """
    siblings = FolderNames()
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS))
    try:
        for start in range(0, len(names), _AT_ONCE):
            part = names[start : start + _AT_ONCE]
            found = pool.map(lambda name: _read(folder / name, siblings), part)
            yield from zip(part, found, strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _read(path: Path, siblings: FolderNames) -> PhotoFile:
    try:
        require_regular_file(path, "image")
    except FileNotFoundError:
        twin = siblings.twin(path)
        if twin is None:
            return PhotoFile("image-missing", "no such file")
        kind = "image-case" if twin.casefold() == path.name.casefold() else "image-suffix"
        return PhotoFile(kind, f"no such file, but {twin!a}", twin=twin)
    except ValueError as error:
        return PhotoFile("image-not-regular", str(error))
    try:
        digest = _digest(path)
        header = read_header(path)
    except UNREADABLE as error:
        return PhotoFile(_kind_of(error, "image-unreadable"), str(error) or type(error).__name__)
    try:
        channels = header.num_planes if header.format == NPY else RGB  # as many as there are
        photo = decode_image(path, f"image {path.name}", exif="stored", channels=channels)
    except ValueError as error:
        return PhotoFile(_kind_of(error, "image-truncated"), str(error), header, digest)
    is_blank = photo.width * photo.height > 1 and _is_blank(photo)
    return PhotoFile("", "", header, digest, is_blank)


def _kind_of(error: Exception, otherwise: str) -> str:
    """Return the kind of an error of reading; the texts are those of `photos`."""
    is_large = isinstance(error, Image.DecompressionBombError)
    if is_large or isinstance(error.__cause__, Image.DecompressionBombError):
        return "image-pixels"
    text = str(error)
    if "bits per channel" in text:
        return "image-depth"
    if "pixels" in text and "at most" in text:
        return "image-pixels"
    return "image-unreadable" if isinstance(error.__cause__, RefusedImageError) else otherwise


def _digest(path: Path) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while part := file.read(_READ_AT_ONCE):
            found.update(part)
    return found.digest()


def _is_blank(photo: AnyImage) -> bool:
    return all(low == high for low, high in (band.getextrema() for band in photo.split()))


def unlisted_images(folder: Path, names: Mapping[str, PhotoFile]) -> list[str]:
    """List the image files below a folder, by their suffix, that are not among the names."""
    listed = {os.path.normpath(name) for name in names}
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders.sort()
        found += (Path(place, file) for file in sorted(files))
    unlisted = (str(path.relative_to(folder)) for path in images_among(found))
    return [name for name in unlisted if os.path.normpath(name) not in listed]
