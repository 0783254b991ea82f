"""The fast reading of annotation files accepts what the rules accept, and reads the same."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deformable_detr.coco_json.columns import AnnotationColumns, read_columns, sound_columns
from deformable_detr.coco_json.reading import parse_json
from deformable_detr.coco_json.rules import RULES, SECTIONS, Use, check_annotations
from deformable_detr.packed import PackedTexts

FILE = Path("a.json")
GONE = object()
RECORD = {
    "info": {"a": [1, {"b": "\u00fc"}]},
    "images": [
        {"id": 7, "file_name": "\u00fc/7.png", "height": 40, "width": 50, "extra": None},
        {"id": -3, "file_name": "3.png", "height": 60, "width": 30},
    ],
    "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat", "supercategory": "x"}],
    "annotations": [
        {"id": 1, "image_id": -3, "category_id": 9, "bbox": [1, 2.5, 3, 4], "area": 11.5},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [-1, 2, 0, 4], "iscrowd": 1},
        {"id": 3, "image_id": 7, "category_id": 9, "bbox": [0, 0, 9, 9], "segmentation": [[1, 2]]},
    ],
}
KEYS = sorted({(rule.section, rule.key) for rule in RULES if rule.section in SECTIONS})
PLACES = [
    *((section, key) for section, key in KEYS for _ in range(2)),
    *(("categories", "name"), ("categories", "is_category"), ("annotations", "segmentation")),
]
VALUES = [
    *(GONE, None, True, False, "", "1", "\ud800", "../x.png", "/x.png", "a\0", [], {}),
    *(0, 1, 2, 3, 7, 9, -1, -3, 0.0, 1.0, -0.0, 1.5, 1e9, 10**9, 10**9 + 1, 1e10, 1e10 + 1, 10**30),
    *(2**63 - 1, 2**63, -(2**63), -(2**63) + 1, float("nan"), float("inf"), 10**400),
    *([1, 2, 3], [1, 2, 3, 4, 5], [1, 2, True, 4], [1, 2, "3", 4], [1, 2, None, 4], [[1], 2, 3, 4]),
    *([0, 0, 1e5, 1e5], [0, 0, 1e5, 1e5 + 1], [1e9, 0, 1, -1], [2e9, 0, 1, 1], [0, 0, -1e9, 9e8]),
]
changes = st.lists(
    st.tuples(st.sampled_from(PLACES), st.integers(0, 2), st.sampled_from(VALUES)), max_size=2
)
repeats = st.sampled_from(
    [(b"", b"")] * 4
    + [
        (b'"id"', b'"id": 5, "id"'),  # the last one counts
        (b'"id": 1,', b'"id": 1, "id": 1.0,'),
        (b'"iscrowd": 1', b'"iscrowd": 1, "iscrowd": true'),
        (b'"area"', b'"area": -1, "area"'),
        (b'"info"', b'"images": [], "info"'),
        (b'"info"', b'"annotations": 3, "info"'),
        (b'"extra"', b'"extra": "\xff", "other"'),
        (b'"extra"', b'"\xff": 1, "other"'),
        (b'"extra"', b'"extra": "\xed\xa0\x80", "other"'),
        (b'"extra"', b'"extra": 0' + b"1" * 5_000 + b', "other"'),
        (b'"extra"', b'"extra": ' + b"1" * 5_000 + b', "other"'),
        (b'"id"', b'"\\u0069d"'),
        (b"]}", b"],}"),
        (b"]}", b"]}\0"),
    ]
)
codings = st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"])


def _changed(done: list[tuple[tuple[str, str], int, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = copy.deepcopy(RECORD)
    for (section, key), number, value in done:
        entry = record[section][number % len(record[section])]
        if value is GONE:
            entry.pop(key, None)
        else:
            entry[key] = value
    return record


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """Return the columns by plain Python."""
    images, objects = record["images"], record.get("annotations", [])
    categories = sorted(record["categories"], key=lambda one: one["id"])
    places = {one["id"]: place for place, one in enumerate(images)}
    labels = {one["id"]: place for place, one in enumerate(categories)}

    def area(one: dict[str, Any]) -> float:
        return max(one["bbox"][2], 0.0) * max(one["bbox"][3], 0.0)

    return {
        "image_ids": [one["id"] for one in images],
        "file_names": [one.get("file_name", "") for one in images],
        "image_sizes": [[one.get("height", 0), one.get("width", 0)] for one in images],
        "categories": [
            {
                "id": one["id"],
                "name": one.get("name", one["id"]),
                "is_category": one.get("is_category", True),
            }
            for one in categories
        ],
        "images": [places[one["image_id"]] for one in objects],
        "labels": [labels[one["category_id"]] for one in objects],
        "boxes_xywh": [one["bbox"] for one in objects],
        "area": [one.get("area", area(one)) for one in objects],
        "is_crowd": [one.get("iscrowd", 0) for one in objects],
    }


def _shown(columns: AnnotationColumns) -> dict[str, Any]:
    return {
        key: value.tolist() if isinstance(value, np.ndarray) else list(value)
        for key, value in vars(columns).items()
    }


def _by_rules(content: bytes, use: Use) -> dict[str, Any] | None:
    """Return the columns of a file that the rules accept, else None."""
    try:
        record = parse_json(content, FILE, "file")
        check_annotations(record, FILE, use)
    except ValueError:
        return None
    return record


def _require_agreement(content: bytes, use: Use) -> None:
    record, columns = _by_rules(content, use), sound_columns(content, use)
    if record is None:
        assert columns is None
        return
    assert _shown(AnnotationColumns.of(record)) == _plain(record)
    if columns is not None:
        assert _shown(columns) == _plain(record)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(changes, repeats, codings, st.booleans(), st.sampled_from(["training", "scoring"]))
@example([], (b'"extra"', b'"extra": "\xff", "other"'), "utf-8", False, "training")
@example([(("annotations", "iscrowd"), 0, True)], (b"", b""), "utf-8", True, "training")
@example([(("annotations", "id"), 0, 1.0)], (b"", b""), "utf-8", True, "scoring")
def test_what_is_read_fast_meets_the_rules_and_is_the_same(
    done: list[tuple[tuple[str, str], int, Any]],
    repeat: tuple[bytes, bytes],
    coding: str,
    escape: bool,
    use: Use,
) -> None:
    text = json.dumps(_changed(done), ensure_ascii=escape)
    _require_agreement(text.encode(coding, "surrogatepass").replace(*repeat, 1), use)


@pytest.mark.parametrize("use", ["training", "scoring"])
def test_a_single_value_is_read_fast_only_if_the_rules_accept_it(use: Use) -> None:
    for place in dict.fromkeys(PLACES):
        for number in range(len(RECORD[place[0]])):
            for value in VALUES:
                content = json.dumps(_changed([(place, number, value)])).encode()
                _require_agreement(content, use)


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("use", ["training", "scoring"])
def test_a_sound_file_is_read_fast(coding: str, use: Use, tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(json.dumps(RECORD, ensure_ascii=False).encode(coding))
    monkeypatch.delattr("deformable_detr.coco_json.columns.parse_json")
    assert _shown(read_columns(file, use)) == _plain(RECORD)


def test_a_file_with_nan_in_an_unused_key_is_read_by_json(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(_changed([(("annotations", "segmentation"), 0, float("nan"))])))
    assert _shown(read_columns(file, "training")) == _plain(RECORD)


@given(st.lists(st.text(st.characters(), max_size=4)))
@settings(derandomize=True, max_examples=30, deadline=None)
def test_packed_texts_are_a_sequence(texts: list[str]) -> None:
    packed = PackedTexts(texts)
    assert list(packed) == texts
    assert packed[1:] == tuple(texts[1:])
    assert [packed[place - len(texts)] for place in range(len(texts))] == texts
    with pytest.raises(IndexError):
        packed[len(texts)]
