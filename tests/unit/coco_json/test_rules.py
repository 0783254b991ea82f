"""Rules of annotation and results files, and that every reader of them applies the same ones."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.coco_json.rules import REQUIRED, RULES, Rule, find_problems
from deformable_detr.data.annotations import read_annotations
from deformable_detr.evaluation.coco_eval import evaluate_results
from deformable_detr.ground_truth import read_ground_truth
from deformable_detr.messages import listed

IMAGE = {"id": 1, "file_name": "a.png", "height": 100, "width": 200}
OBJECT = {"id": 5, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
RESULT = {"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5}
CONTENT: dict[str, Any] = {
    "images": [IMAGE, IMAGE | {"id": 2, "file_name": "b.png"}],
    "categories": [{"id": 7, "name": "tree"}, {"id": 8, "name": "bush"}],
    "annotations": [OBJECT, OBJECT | {"id": 6, "image_id": 2, "ignore": 0}],
}
RESULTS = [RESULT, RESULT | {"image_id": 2}]

NAN, INFINITY = float("nan"), float("inf")
NO_NUMBER = (None, True, "1", [1], {}, NAN, INFINITY, -INFINITY, 10**400, -(10**400))
NO_ID = (*NO_NUMBER, 1.0, 2**63, -(2**63), 10**30)
NO_SIDE = (*NO_ID, 0, -5, 10**10)
NO_NAME = (None, 5, "", ["a.png"], True)
ABOVE = ("/a.png", "//a.png", "../a.png", "a/../../b.png", "a/../b.png", "..", ".", "./", "a/..")
OF_WINDOWS = ("C:\\a.png", "c:/a.png", "\\\\server\\a.png", "\\a.png", "..\\a.png", "a\\..\\..\\b")
NO_PATH = ("a\0.png", "http://a/b.png", "file:/a.png", "a" * 256, "a/" * 3000 + "b", "\ud800.png")
NO_BOX = (None, 5, "1234", [], [1, 2, 3], [1, 2, 3, 4, 5], *([1, 2, 3, x] for x in NO_NUMBER))
TOO_LARGE = ([0, 0, 2e9, 1], [0, 0, 200_000, 200_000], [10**30, 0, 1, 1])
WRONG = {
    ("images", "id"): NO_ID,
    ("images", "file_name"): (*NO_NAME, *ABOVE, *OF_WINDOWS, *NO_PATH),
    ("images", "height"): NO_SIDE,
    ("images", "width"): NO_SIDE,
    ("categories", "id"): NO_ID,
    ("annotations", "id"): NO_ID,
    ("annotations", "image_id"): (*NO_ID, 99),
    ("annotations", "category_id"): (*NO_ID, 99),
    ("annotations", "bbox"): (*NO_BOX, *TOO_LARGE),
    ("annotations", "area"): (*NO_NUMBER, -1, -0.5, 1e11),
    ("annotations", "iscrowd"): (*NO_NUMBER, 2, -1, 0.5, 1.0),
    ("annotations", "ignore"): (*NO_NUMBER, 1, 2, 0.5),
    ("results", "image_id"): (*NO_ID, 99),
    ("results", "category_id"): (*NO_ID, 99),
    ("results", "bbox"): (*NO_BOX, *TOO_LARGE, [1, 2, -3, 4], [1, 2, 3, -4]),
    ("results", "score"): NO_NUMBER,
    ("results", "file_name"): NO_NAME,
}
Read = Callable[[dict[str, Any], list[Any]], Any]


@pytest.fixture(params=["training", "scoring", "results"])
def read(request: pytest.FixtureRequest, tmp_path: Path) -> Read:
    """Return each of the three ways of reading, given annotations and results."""
    return reader(request.param, tmp_path)


def reader(use: str, folder: Path) -> Read:
    """Return the way of reading for a use, given annotations and results."""

    def run(content: dict[str, Any], results: list[Any]) -> Any:
        annotations, found = folder / "a.json", folder / "r.json"
        annotations.write_text(json.dumps(content))
        found.write_text(json.dumps(results))
        if use == "training":
            return read_annotations(annotations)
        if use == "scoring":
            return read_ground_truth(annotations)
        return evaluate_results(found, annotations)

    run.__name__ = use
    return run


def edited(section: str, key: str, value: Any) -> tuple[dict[str, Any], list[Any]]:
    """Return content and results of which the second entry of a section has another value."""
    content, results = copy.deepcopy(CONTENT), copy.deepcopy(RESULTS)
    entry = results[1] if section == "results" else content[section][1]
    entry[key] = value
    return content, results


def test_each_rule_is_tried() -> None:
    assert WRONG.keys() == {(rule.section, rule.key) for rule in RULES}


@pytest.mark.parametrize(
    ("use", "rule"),
    [
        pytest.param(use, rule, id=f"{use}-{rule.section}.{rule.key}")
        for rule in RULES
        for use in ("training", "scoring", "results")
        if rule.section != "results" or use == "results"
    ],
)
def test_wrong_values_are_one_line_that_names_file_entry_and_key(
    use: str, rule: Rule, tmp_path: Path
) -> None:
    read, is_of_results = reader(use, tmp_path), rule.section == "results"
    for value in WRONG[rule.section, rule.key]:
        with pytest.raises(ValueError, match=rule.key) as caught:
            read(*edited(rule.section, rule.key, value))
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 600
        assert ("r.json" if is_of_results else "a.json") in message
        if not (is_of_results and value == 99):  # several unknown ids are listed together
            assert f"{rule.section}[1]" in message
            assert rule.must.split(",")[0].split()[-1] in message or value == 99


@pytest.mark.parametrize(
    "rule",
    [rule for rule in RULES if rule.section != "results"],
    ids=lambda rule: f"{rule.section}.{rule.key}",
)
def test_keys_may_be_missing_as_the_table_says(read: Read, rule: Rule) -> None:
    content, results = edited(rule.section, rule.key, 0)
    del content[rule.section][1][rule.key]
    if (rule.training if read.__name__ == "training" else rule.scoring) == REQUIRED:
        with pytest.raises(ValueError, match=f"{rule.section}.1. .*{rule.key} must .* got nothing"):
            read(content, results)
    else:
        read(content, results)


@pytest.mark.parametrize("section", ["images", "categories", "annotations"])
def test_ids_are_unique_for_every_reader(read: Read, section: str) -> None:
    content, results = edited(section, "id", CONTENT[section][0]["id"])
    with pytest.raises(ValueError, match=rf"{section}\[1\] .*id must be unique, got the id of .*0"):
        read(content, results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "images must hold at least one image, got none"),
        ({"categories": []}, "categories must hold at least one category, got none"),
        ({"annotations": None}, "annotations must be a list, got nothing"),
        ({"categories": {"1": "cat"}}, "categories must be a list, got a dict"),
        ({"images": [7]}, r"images\[0\] must be an object, got 7"),
    ],
)
def test_wrong_sections_are_named(read: Read, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"a.json: {message}"):
        read(CONTENT | change, RESULTS)


def test_results_are_refused_as_annotations_and_annotations_as_results(read: Read) -> None:
    if read.__name__ == "results":
        with pytest.raises(ValueError, match=r"r.json must hold a list of results, got a dict"):
            read(CONTENT, CONTENT)  # type: ignore[arg-type]
    else:
        with pytest.raises(ValueError, match=r"a.json: the file must hold one JSON object, got a"):
            read(RESULTS, [])  # type: ignore[arg-type]


def test_an_unknown_category_is_shown_with_those_of_the_file(read: Read) -> None:
    with pytest.raises(ValueError, match=r"must be one of {7: tree, 8: bush}, got 5"):
        read(*edited("annotations", "category_id", 5))
    content, results = edited("annotations", "category_id", 8)
    content["categories"][1]["is_category"] = False
    with pytest.raises(ValueError, match=r"must be one of {7: tree}, got 8"):
        read(content, results)


def test_an_error_lists_five_values_and_counts_the_others() -> None:
    assert listed(range(5)) == "0, 1, 2, 3, 4"
    assert listed(range(7)) == "0, 1, 2, 3, 4 and 2 more"


def test_the_largest_legal_values_are_read(read: Read) -> None:
    content, results = copy.deepcopy(CONTENT), copy.deepcopy(RESULTS)
    content["images"][1] |= {"id": 2**63 - 1, "height": 10**9, "width": 10**9}
    box, image_id = [-1e9, 0.0, 1e9, 10], 2**63 - 1
    content["annotations"][1] |= {"image_id": image_id, "bbox": box, "area": 10**10}
    results[1] |= {"image_id": image_id, "bbox": box, "score": -1.7e308}
    found = read(content, results)
    if read.__name__ == "results":
        assert found.num_detections == len(results)
    else:
        scored = found.ground_truth if read.__name__ == "training" else found
        assert scored.image_ids[-1] == image_id
        assert scored.boxes_xywh[1].tolist() == box


@pytest.mark.parametrize(
    "name",
    ["a/b.png", ".a.png", "..a..png", "a b.png", "a:b.png", "é.png", "./a.png", "a//b", "a\\b.png"],
)
def test_names_below_the_folder_are_read(read: Read, name: str) -> None:
    read(*edited("images", "file_name", name))


def test_all_problems_of_a_file_are_found_in_one_pass() -> None:
    content = copy.deepcopy(CONTENT)
    content["images"] += [7, IMAGE | {"id": [3], "height": 0}, IMAGE]
    content["categories"].append({"name": "no id"})
    content["annotations"] += [
        OBJECT | {"image_id": 99, "bbox": None, "iscrowd": "0"},
        OBJECT | {"id": None, "category_id": {}},
        OBJECT | {"id": 7, "category_id": 9},
    ]
    found = [(one.kind, one.position, one.entry_id) for one in find_problems(content, "training")]
    assert found == [
        ("entry-not-an-object", 2, None),
        ("image-id", 3, [3]),
        ("image-height", 3, [3]),
        ("image-id-twice", 4, 1),
        ("category-id", 2, None),
        ("annotation-id", 3, None),
        ("annotation-category-id", 3, None),
        ("annotation-bbox", 2, 5),
        ("annotation-iscrowd", 2, 5),
        ("annotation-id-twice", 2, 5),
        ("unknown-image", 2, 5),
        ("unknown-category", 4, 7),
    ]
    assert [one.kind for one in find_problems({"images": 5, "categories": []}, "training")] == [
        *("section-missing", "section-missing", "section-empty"),
    ]


def test_the_page_has_the_table_of_rules() -> None:
    page = (Path(__file__).parents[3] / "docs" / "annotations.md").read_text(encoding="utf-8")
    table = "\n".join(
        f"| `{rule.section}` | `{rule.key}` | {rule.must} "
        f"| {'' if rule.section == 'results' else rule.training} | {rule.scoring} |"
        for rule in RULES
    )
    assert f"|---|---|---|---|---|\n{table}\n\n" in page, f"the table must be\n{table}"
