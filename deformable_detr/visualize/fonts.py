"""Fonts that have the characters of a class name, and class names as pictures can show them."""

import logging
import re
import unicodedata
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.font_manager import FontProperties, findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont, features

from deformable_detr.labels import LabelSpace
from deformable_detr.messages import printable

MAX_CHARACTERS = 80
ELLIPSIS = "..."
_LEFT_TO_RIGHT = "\u200e"  # invisible; the direction of what is beside it
JOINERS = frozenset("\u200c\u200d")  # invisible; choose the shapes of letters beside them
# Such fonts have an empty box or a blank for every character, or pictures instead of outlines.
_NO_LETTERS = re.compile("lastresort|blank|color", re.IGNORECASE)
logger = logging.getLogger(__name__)


def drawn_name(categories: LabelSpace, label: int) -> str:
    """Return the name of a class as a picture can show it, else its category id.

    White space becomes single spaces; other control characters are escaped; long names are cut.
    The id replaces an empty name, and one with a character that no installed font has. The first
    time, the log says so.

    Args:
        categories: categories of the labels.
        label: class label in 0..K-1.
    """
    name = legible(categories.names[label])
    if name and font_file(name) is not None:
        return name
    if name:
        _log_missing_font()
    return f"id {categories.category_ids[label]}"


@lru_cache(maxsize=1)
def _log_missing_font() -> None:
    logger.warning(
        "pictures show category ids instead of class names that no installed font can write; "
        "install a font with their letters, such as Noto Sans CJK (package fonts-noto-cjk of "
        "Debian) for Chinese, Japanese and Korean, or Noto Sans (fonts-noto-core) for others%s",
        "" if features.check("raqm") else ", and libraqm for scripts whose letters join",
    )


@lru_cache(maxsize=4096)
def legible(name: str) -> str:
    """Return a class name in one line of at most 80 characters, all of them visible."""
    start = unicodedata.normalize("NFC", " ".join(name[: 10 * MAX_CHARACTERS].split()))
    text = "".join(one if one in JOINERS else printable(one) for one in start)
    if len(text) <= MAX_CHARACTERS:
        return text
    return text[: MAX_CHARACTERS - len(ELLIPSIS)] + ELLIPSIS


def needs_shaping(text: str) -> bool:
    """Return whether letters must be joined, reordered or written from right to left."""
    return any(
        unicodedata.category(one).startswith("M") or unicodedata.bidirectional(one) in ("R", "AL")
        for one in text
    )


@lru_cache(maxsize=4096)
def font_file(text: str) -> str | None:
    """Return the file of a font that has all characters of a text; None if none is installed.

    The font of all other text comes first, then the others of Matplotlib and of the system.
    """
    if needs_shaping(text) and not features.check("raqm"):
        return None
    wanted = np.array(sorted({ord(one) for one in text} - {ord(one) for one in JOINERS}))
    for file in (default_font_file(), *_other_fonts()):
        if np.isin(wanted, _characters(file)).all():
            return file
    return None


def title_text(name: str) -> str:
    """Return a drawn name as a part of a Matplotlib title: no formula, no change of direction."""
    escaped = name.replace("$", r"\$")
    return f"{_LEFT_TO_RIGHT}{escaped}{_LEFT_TO_RIGHT}" if needs_shaping(name) else escaped


def matplotlib_families(text: str) -> list[str]:
    """Return the names of fonts in which Matplotlib can draw a text that `drawn_name` returned."""
    file = font_file(text)
    families = list(matplotlib.rcParams["font.family"])
    if file is None or file == default_font_file():
        return families
    fontManager.addfont(file)  # its list may be older than the font
    return [*families, FontProperties(fname=file).get_name()]


@lru_cache(maxsize=256)
def font(file: str | None, size: int) -> ImageFont.FreeTypeFont:
    """Return the font of a file, or the default font, at a size in pixels."""
    return ImageFont.truetype(file or default_font_file(), size)


@lru_cache(maxsize=1)
def default_font_file() -> str:
    """Return the font that Matplotlib ships; it has Greek, Cyrillic, Hebrew and Arabic letters."""
    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf"))


@lru_cache(maxsize=1)
def _other_fonts() -> tuple[str, ...]:
    """List the system's fonts, bold ones without serifs first."""

    def order(file: str) -> tuple[bool, bool, str]:
        name = Path(file).name.lower()
        return "sans" not in name, "bold" not in name, file

    # Not Matplotlib's own list, which lacks fonts installed since it was made.
    files = (file for file in findSystemFonts() if not _NO_LETTERS.search(Path(file).name))
    return tuple(sorted(files, key=order))


@cache
def _characters(file: str) -> npt.NDArray[np.uint32]:
    """Return the characters that a font can write; none if it cannot be read or scaled."""
    try:
        face = FT2Font(file)
        codes = face.get_charmap() if face.scalable else {}
    except (OSError, RuntimeError, ValueError):
        codes = {}
    return np.fromiter(codes, dtype=np.uint32)
