"""Image files that a user names: files, and what is in folders."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from deformable_detr.files import as_path, require_regular_file
from deformable_detr.messages import in_brief, shown
from deformable_detr.photos import photo_suffixes
from deformable_detr.pixels.npy import SUFFIX as NPY_SUFFIX

NUM_NAMED = 3  # names of passed-over files in a message
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
logger = logging.getLogger(__name__)


def find_photos(paths: Sequence[str | Path]) -> list[Path]:
    """List the image files: files as given, and from a folder those with an image suffix.

    Of a folder, .npy files are images only if it holds no others.

    A file that is named by several paths is listed once. What a folder holds besides is logged.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a folder holds no image, or there are no paths.
    """
    if not isinstance(paths, Sequence) or isinstance(paths, bytes):
        raise ValueError(f"photos must be a path, or a list of paths, got {in_brief(paths)}")
    if not paths:
        raise ValueError("photos must be a path, or a list of paths, got none")
    named: list[Path] = []
    for path in [as_path("image or folder", one) for one in paths]:
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


def images_among(files: Iterable[Path]) -> list[Path]:
    """Return the image files, by their suffix; .npy files only if there are no others.

    Other tools keep decoded images, masks or depths in .npy files beside the images.
    """
    suffixes = photo_suffixes()
    listed = list(files)
    images = [file for file in listed if file.suffix.lower() in suffixes]
    return images or [file for file in listed if file.suffix.lower() == NPY_SUFFIX]


def _images_in(folder: Path) -> list[Path]:
    """List the images of a folder, and log what is passed over."""
    images: list[Path] = []
    arrays: list[Path] = []
    passed: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        if path.is_dir():
            passed.setdefault("subfolders, to be named themselves", []).append(path.name)
        elif path.is_file() and suffix in photo_suffixes():
            images.append(path)
        elif path.is_file() and suffix == NPY_SUFFIX:
            arrays.append(path)
        elif suffix in HEIF_SUFFIXES:
            passed.setdefault("HEIF files, to be converted to JPEG", []).append(path.name)
        else:
            passed.setdefault("other files", []).append(path.name)
    if not images:
        images = arrays
    elif arrays:
        names = [path.name for path in arrays]
        passed.setdefault(f"{NPY_SUFFIX} files beside other images", []).extend(names)
    found = "; ".join(f"{kind}: {_counted(names)}" for kind, names in passed.items())
    if not images:
        raise ValueError(
            f"folder {shown(folder)} must hold images ({', '.join(photo_suffixes())}; or only "
            f"{NPY_SUFFIX} files), found "
            f"{found or 'none'}"
        )
    if passed:
        logger.warning("folder %s: passed over %s", shown(folder), found)
    return images


def _counted(names: Sequence[str]) -> str:
    """Return the number of names, and the first of them."""
    more = ", ..." if len(names) > NUM_NAMED else ""
    return f"{len(names)} ({', '.join(map(shown, names[:NUM_NAMED]))}{more})"
