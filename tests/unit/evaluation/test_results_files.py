import json
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.evaluation.coco_eval import evaluate_results
from deformable_detr.evaluation.results_files import read_results
from deformable_detr.ground_truth import GroundTruth

NAMES = {20: "a.png", 10: "sub/b.png", 3: "c.png", 4: "x/d.png", 5: "y/d.png"}
RESULT = {"category_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5}


def _truth(names: dict[int, str]) -> GroundTruth:
    images = [{"id": image_id, "file_name": name} for image_id, name in names.items()]
    record = {"images": images, "categories": [{"id": 7, "name": "tree"}], "annotations": []}
    return GroundTruth.of(Path("a.json"), record)


def _read(folder: Path, *images: tuple[int | None, str | None], **names: Any) -> list[int]:
    """Write one result per (id, file name), and return the ids that are read."""
    entries = [
        {key: value for key, value in one.items() if value is not None}
        for one in (RESULT | {"image_id": id_, "file_name": name} for id_, name in images)
    ]
    path = folder / "r.json"
    path.write_text(json.dumps(entries))
    return [one["image_id"] for one in read_results(path, _truth(names.get("names", NAMES)))]


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("image_id", (3, *range(31, 39)), "got unknown 31, 32, 33, 34, 35 and 3 more"),
        ("category_id", (7, 8), "of the annotation file, got unknown 8"),
    ],
)
def test_unknown_ids_are_listed(
    tmp_path: Path, key: str, values: tuple[int, ...], message: str
) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps([RESULT | {"image_id": 3} | {key: value} for value in values]))
    with pytest.raises(ValueError, match=f"results of .*r.json must use the {key} .*{message}"):
        read_results(path, _truth(NAMES))


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([(20, None), (3, None)], [20, 3]),
        ([(20, "a.png"), (3, "c.png"), (20, "a.png")], [20, 3, 20]),
        ([(1, "photos/a.png"), (1, "photos/a.png"), (2, "photos/sub/b.png")], [20, 20, 10]),
        ([(1, "./b.png"), (3, "/data/y/d.png")], [10, 5]),  # the ids of images 2 and 3 lack
        ([(3, "a.png"), (4, "c.png")], [20, 3]),  # ids of other images, but in order
        ([(4, "d.png")], [4]),  # ambiguous, and the id decides
        ([(None, "c.png"), (None, "a.png")], [3, 20]),
        ([], []),
    ],
)
def test_file_names_decide_which_image_a_result_is_of(
    tmp_path: Path, images: list[tuple[int | None, str | None]], expected: list[int]
) -> None:
    assert _read(tmp_path, *images) == expected


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([(20, None), (None, None)], r"results.1. must have an image_id, got nothing"),
        ([(20, "a.png"), (3, None)], "must all have a file_name or none, got 1 of 2, .*results.1"),
        ([(1, "e.png"), (2, "f.png")], "an image of a.json, got 'e.png' and 1 more that it does"),
        ([(1, "z/sub/c/b.png")], "must name an image of a.json, got 'z/sub/c/b.png'"),
        ([(1, "d.png")], "must name one image of a.json, got 'd.png', which can be .* 4, 5;"),
        ([(1, "p/a.png"), (2, "q/a.png")], "got 'p/a.png' and 'q/a.png' for 20"),
        ([(1, "a.png"), (2, "a.png")], "must have one image_id, got 1 and 2 for 'a.png'"),
        # ids of the annotations, of which one disagrees with its name
        ([(20, "a.png"), (3, "sub/b.png")], "got 'sub/b.png', whose id is 10, with 3, and 0 more"),
        ([(3, "c.png"), (10, "a.png")], "the same image of a.json, got 'a.png', whose id is 20"),
        # numbers that are not 1, 2, ...
        ([(0, "a.png"), (1, "c.png")], "got 'a.png', whose id is 20, with 0, and 1 more"),
        ([(1, "a.png"), (1, "c.png")], "got 'a.png', whose id is 20, with 1, and 1 more"),
    ],
)
def test_names_that_do_not_fit_are_refused(
    tmp_path: Path, images: list[tuple[int | None, str | None]], message: str
) -> None:
    with pytest.raises(ValueError, match=f"r.json.*{message}"):
        _read(tmp_path, *images)


def test_names_need_names_in_the_annotations(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images of a.json must have a file_name .* got none"):
        _read(tmp_path, (1, "a.png"), names={1: "", 2: ""})


def test_an_image_under_two_ids_is_that_of_the_given_id(tmp_path: Path) -> None:
    twins = {1: "a.png", 2: "a.png"}
    assert _read(tmp_path, (2, "a.png"), names=twins) == [2]
    with pytest.raises(ValueError, match="which can be the images 1, 2"):
        _read(tmp_path, (3, "a.png"), names=twins)


def test_numbered_images_are_scored_as_those_they_name(tmp_path: Path) -> None:
    images = [{"id": 7 - number, "file_name": f"{number}.png"} for number in range(1, 6)]
    objects = [
        {"image_id": 7 - number, "category_id": 7, "bbox": [10 * number, 0, 8, 8]}
        for number in range(1, 6)
    ]
    content = {"images": images, "categories": [{"id": 7}], "annotations": objects}
    found = [
        {"file_name": f"photos/{number}.png", **one, "image_id": number, "score": 0.9}
        for number, one in enumerate(objects, start=1)
    ]
    annotations, results = tmp_path / "a.json", tmp_path / "r.json"
    annotations.write_text(json.dumps(content))
    results.write_text(json.dumps(found))
    assert evaluate_results(results, annotations).statistics["AP"] == pytest.approx(1)
