import re
from pathlib import Path

import pytest

from deformable_detr.coco_json.reading import read_json


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [', "Expecting value"),
        (b"\xff\xfe\x00", "codec can't decode"),
        ('{"name": "B\u00e4r"}'.encode("latin-1"), "codec can't decode"),
    ],
)
def test_a_broken_file_is_named_and_asked_whether_it_is_whole(
    tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(
        ValueError,
        match=rf"^file .*a\.json must be JSON in UTF-8, got .*{message}.*; is the file",
    ):
        read_json(file, "file")


OTHER_FORMATS = {
    "XML": ("<annotation><object/></annotation>", "an XML file of Pascal VOC"),
    "page": ("<!DOCTYPE html><html></html>", "an XML or HTML file"),
    "YAML": ("# trees\nnames: [tree]\nnc: 1\n", "a YAML file"),
    "labels of YOLO": ("0 0.5 0.5 0.1 0.2\n", "a label file of YOLO"),
    "image": ("\x89PNG\r\n\x1a\n", "a PNG image"),
    "checkpoint": ("PK\x03\x04", "a ZIP file, such as a checkpoint of PyTorch"),
    "nothing": ("", "an empty file"),
}


@pytest.mark.parametrize(("text", "kind"), OTHER_FORMATS.values(), ids=OTHER_FORMATS)
def test_a_file_of_another_format_is_called_so(tmp_path: Path, text: str, kind: str) -> None:
    file = tmp_path / "a\n.json"
    file.write_text(text, encoding="latin-1")
    shown = rf"{tmp_path}/a\n.json"
    message = (
        f"annotation file {shown} must be JSON in UTF-8, got {kind}; "
        "convert the annotations to COCO JSON"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read_json(file, "annotation file")


def test_lists_nested_too_deeply_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"a\.json must be JSON, got lists nested too deeply"):
        read_json(file, "file")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^file .*none.json must exist"):
        read_json(tmp_path / "none.json", "file")


def test_integers_of_thousands_of_digits_are_infinite_and_others_exact(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(f"\ufeff[{'1' * 5000}, -{'1' * 5000}, {10**400}]", encoding="utf-8")
    assert read_json(file, "file") == [float("inf"), float("-inf"), 10**400]
