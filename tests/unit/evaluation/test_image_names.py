import json
import time
from pathlib import Path

import pytest

from deformable_detr.evaluation.image_names import match_images
from deformable_detr.ground_truth import GroundTruth, read_ground_truth

NAMES = ["a.jpg", "val/b.jpg", "train/b.jpg", "val/deep/c.jpg", "./d.jpg", "e.jpg", "e.jpg", ""]
NAMES += ["f.jpg", "deep/f.jpg"]


@pytest.fixture
def annotations(tmp_path: Path) -> GroundTruth:
    file = tmp_path / "annotations.json"
    images = [{"id": 10 * place, "file_name": name} for place, name in enumerate(NAMES)]
    images = [{key: value for key, value in one.items() if value != ""} for one in images]
    categories = [{"id": 1, "name": "cat"}]
    file.write_text(json.dumps({"images": images, "categories": categories, "annotations": []}))
    return read_ground_truth(file)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("a.jpg", 0),
        ("photos/a.jpg", 0),
        ("/data/photos/val/b.jpg", 1),  # of two images of this base name, the one in this folder
        ("photos/train/b.jpg", 2),
        ("val/deep/c.jpg", 3),
        ("deep/c.jpg", 3),  # the annotations start at a higher folder
        ("c.jpg", 3),
        ("photos/d.jpg", 4),
        ("photos/deep/f.jpg", 9),  # the longest name
        ("photos/f.jpg", 8),
        ("photosdeep/f.jpg", 8),  # names of folders are compared as a whole
    ],
)
def test_a_path_and_the_name_of_its_image_end_alike(
    annotations: GroundTruth, path: str, place: int
) -> None:
    assert match_images([Path(path)], annotations) == [place]


def test_images_have_the_order_of_the_files(annotations: GroundTruth) -> None:
    files = [Path("deep/c.jpg"), Path("x/a.jpg"), Path("x/val/b.jpg")]
    assert match_images(files, annotations) == [3, 0, 1]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("x/z.jpg", "no such file_name"),
        ("x/A.jpg", "no such file_name"),
        ("test/b.jpg", "no such file_name"),  # nor a base name alone
        ("b.jpg", "several: val/b.jpg, train/b.jpg"),
        ("x/e.jpg", "several: e.jpg, e.jpg"),
    ],
)
def test_a_file_of_no_image_or_of_several_is_refused(
    annotations: GroundTruth, path: str, found: str
) -> None:
    with pytest.raises(ValueError, match="predict without annotations") as error:
        match_images([Path("x/a.jpg"), Path(path)], annotations)
    assert str(error.value).startswith(
        f"image {Path(path)} must be one image of annotation file {annotations.file}, "
        f"found {found}; leave it out"
    )


def test_two_files_of_one_image_are_refused(annotations: GroundTruth) -> None:
    files = [Path("x/a.jpg"), Path("y/a.jpg")]
    with pytest.raises(ValueError, match=r"x/a.jpg and y/a.jpg, both a.jpg; leave one out"):
        match_images(files, annotations)


def test_images_of_one_base_name_are_found_without_comparing_all_of_them(tmp_path: Path) -> None:
    number = 20_000
    file = tmp_path / "annotations.json"
    images = [{"id": place, "file_name": f"set/{place}/rgb.png"} for place in range(number)]
    file.write_text(json.dumps({"images": images, "categories": [{"id": 1}]}))
    annotations = read_ground_truth(file)

    start = time.perf_counter()
    below = match_images(
        [Path(f"photos/set/{place}/rgb.png") for place in range(number)], annotations
    )
    above = match_images([Path(f"{place}/rgb.png") for place in range(number)], annotations)

    assert below == above == list(range(number))
    assert time.perf_counter() - start < 10  # all pairs take a minute or more
