"""Class names are drawn in a font that has their letters, else as category ids."""

import logging
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import features

from deformable_detr.labels import LabelSpace
from deformable_detr.visualize import fonts
from deformable_detr.visualize.fonts import default_font_file, drawn_name, font, font_file

CACHED = (fonts._log_missing_font, fonts._other_fonts, fonts.font_file)
CAT = "\u732b"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Return the list of the system's fonts, at first empty."""
    files: list[str] = []
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: files)
    for one in CACHED:
        one.cache_clear()
    yield files
    for one in CACHED:
        one.cache_clear()


def _font_with(characters: str, path: Path) -> str:
    """Write a font that has a square for each of the characters."""
    names = [".notdef", *(f"u{ord(one):x}" for one in characters)]
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(dict(zip(map(ord, characters), names[1:], strict=True)))
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (900, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupPost()
    builder.save(path)
    return str(path)


def _drawn(name: str) -> str:
    return drawn_name(LabelSpace((17, 99), (name, "other")), 0)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("dog", "dog"),
        ("e\u0301cole", "\u00e9cole"),
        ("a\n\tb\u3000c ", "a b c"),
        ("a\x1b[31m\u202eb", "a\\x1b[31m\\u202eb"),
        ("\ud800", "\\ud800"),
        ("L" * 3000, "L" * 77 + "..."),
        ("", "id 17"),
        (" \n", "id 17"),
        (CAT, "id 17"),
        ("\u0915\u0941\u0924\u094d\u0924\u093e", "id 17"),
        ("dog \U0001faa2", "id 17"),
    ],
)
def test_name_is_shown_as_one_line_of_letters_that_a_font_has(
    installed: list[str], name: str, shown: str
) -> None:
    assert _drawn(name) == shown


def test_font_of_the_system_is_used_if_it_has_all_letters(
    installed: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "a_broken_sans_bold.ttf"
    broken.write_bytes(b"no font")
    everything = _font_with(CAT + " .", tmp_path / "LastResort.ttf")
    own = _font_with(CAT + " .", tmp_path / "own.ttf")
    installed += [str(broken), everything, own]

    assert _drawn(CAT) == CAT
    assert font_file(CAT) == own
    assert not caplog.records
    assert font(own, 40).getlength(CAT) == pytest.approx(36)
    assert fonts.matplotlib_families(CAT)[-1] == "own"
    assert fonts.matplotlib_families("dog") == matplotlib.rcParams["font.family"]
    assert font_file("dog") == default_font_file()


def test_missing_font_is_logged_once(
    installed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert [_drawn(name) for name in (CAT, "\u72ac", "")] == ["id 17"] * 3

    [record] = caplog.records
    assert "install a font with their letters, such as Noto Sans CJK" in record.message


def test_joined_letters_need_raqm(installed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    hebrew = "\u05db\u05dc\u05d1"
    if features.check("raqm"):
        assert _drawn(hebrew) == hebrew
    font_file.cache_clear()
    monkeypatch.setattr(features, "check", lambda name: False)
    assert _drawn(hebrew) == "id 17"
    assert _drawn("dog") == "dog"
