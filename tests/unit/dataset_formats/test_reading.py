"""Data sets of all formats, read as the same images, classes and boxes."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.dataset_formats import write_devkit, write_voc, write_yolo

from deformable_detr.dataset_formats.annotated_set import AnnotatedSet
from deformable_detr.dataset_formats.recognition import recognize_data
from deformable_detr.dataset_formats.splitting import split_images

CATEGORIES = {3: "blue thing", 7: "red thing"}  # in the order of the names too


@pytest.fixture
def files(tmp_path: Path) -> CocoFiles:
    return write_coco_set(tmp_path / "set", num_images=6, categories=CATEGORIES, empty=(2,))


def content(found: AnnotatedSet, prefix: str = "") -> list[tuple[str, str, list[float]]]:
    """Return file name, class and box of each object, images without objects included."""
    found.require_sound()
    record = found.record
    names = {one["id"]: one["name"] for one in record["categories"]}
    rows = [
        (image["file_name"].removeprefix(prefix), names[one["category_id"]], one["bbox"])
        for image in record["images"]
        for one in record["annotations"]
        if one["image_id"] == image["id"]
    ]
    empty = {image["file_name"] for image in record["images"]} - {row[0] for row in rows}
    assert prefix or len(empty) == 1
    return rows


def coco(files: CocoFiles) -> AnnotatedSet:
    return AnnotatedSet("COCO JSON", files.images, files.read())


def as_roboflow(folder: Path, files: CocoFiles) -> Path:
    shutil.copytree(files.images, folder / "train")
    shutil.copy(files.annotations, folder / "train" / "_annotations.coco.json")
    shutil.copytree(folder / "train", folder / "valid")
    return folder


def as_cvat(folder: Path, files: CocoFiles) -> Path:
    shutil.copytree(files.images, folder / "images" / "train")
    (folder / "annotations").mkdir()
    shutil.copy(files.annotations, folder / "annotations" / "instances_train.json")
    return folder


def as_coco(folder: Path, files: CocoFiles) -> Path:
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copytree(files.images, folder / f"{split}2017")
        shutil.copy(files.annotations, folder / "annotations" / f"instances_{split}2017.json")
    return folder


def as_ours(folder: Path, files: CocoFiles) -> Path:
    for split in ("train", "val"):
        shutil.copytree(files.images, folder / split)
        shutil.copy(files.annotations, folder / f"{split}.json")
    return folder


def _alone(folder: Path, word: str) -> Path:
    """Return the path of an annotation file of a folder."""
    return folder / "annotations" / f"instances_{word}.json"


@pytest.mark.parametrize(
    ("write", "splits"),
    [
        (as_roboflow, {"train", "val"}),
        (as_cvat, {"train"}),
        (as_coco, {"train", "val"}),
        (as_ours, {"train", "val"}),
        (lambda _, files: files.annotations.parent, {"train"}),  # images/ below the file
        (lambda _, files: files.annotations, {"train"}),
        (lambda folder, files: _alone(as_coco(folder, files), "train2017"), {"train"}),
        (lambda folder, files: _alone(as_cvat(folder, files), "train"), {"train"}),
        (lambda folder, files: write_yolo(folder, train=files, val=files), {"train", "val"}),
        (lambda folder, files: write_yolo(folder, train=files), {"train"}),
        (lambda folder, files: write_yolo(folder, train=files) / "data.yaml", {"train"}),
        (lambda folder, files: write_voc(folder, train=files, valid=files), {"train", "val"}),
    ],
    ids=[
        "roboflow",
        "cvat",
        "coco",
        "ours",
        "one-json",
        "json",
        "coco-json",
        "cvat-json",
        "yolo",
        "yolo-train",
        "yaml",
        "voc",
    ],
)
def test_every_layout_has_the_same_content(
    write: object, splits: set[str], files: CocoFiles, tmp_path: Path
) -> None:
    sets = recognize_data(write(tmp_path / "data", files)).open_all()  # type: ignore[operator]
    assert {*sets} == splits
    for found in sets.values():
        assert content(found) == content(coco(files))
        assert all((found.images / one["file_name"]).is_file() for one in found.record["images"])
        names = [one["file_name"] for one in found.record["images"]]
        assert names == sorted(names)


def test_corners_of_the_devkit_count_from_1(files: CocoFiles, tmp_path: Path) -> None:
    folder = write_devkit(tmp_path / "voc", train=files, val=files)
    sets = recognize_data(folder).open_all()
    assert {*sets} == {"train", "val"}
    for split, found in sets.items():
        assert content(found, prefix=f"{split}_") == content(coco(files))
        assert found.notes == [
            "corners are those of the devkit: counted from 1, the last pixel included"
        ]


@pytest.mark.parametrize(
    ("rows", "box"),
    [
        ("0 0.5 0.5 0.25 0.5", [48, 24, 32, 48]),
        ("0 0.25 0.5 0.5 0.75 0.75 0.25", [32, 24, 64, 48]),  # a polygon
        ("0 .5 5e-1 0.25 0.5\n\n", [48, 24, 32, 48]),
        ("0 0.500 0.500 0.101 0.500", [57.536, 24, 12.928, 48]),  # no whole number of pixels
        ("0 0.5039 0.5 0.2578 0.5", [48, 24, 33, 48]),  # a whole number, rounded
    ],
)
def test_row_of_yolo_is_a_box_or_a_polygon(
    rows: str, box: list[float], files: CocoFiles, tmp_path: Path
) -> None:
    folder = write_yolo(tmp_path / "data", train=files)
    (folder / "labels" / "train" / "0002.txt").write_text(rows)
    found = recognize_data(folder).open_all()["train"]
    found.require_sound()
    [one] = [one for one in found.record["annotations"] if one["image_id"] == 2]
    assert one["bbox"] == pytest.approx(box, abs=1e-9)


def test_yaml_of_roboflow_names_folders_above_itself(files: CocoFiles, tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "data", train=files)
    for kind in ("images", "labels"):
        (folder / "train").mkdir(exist_ok=True)
        (folder / kind / "train").rename(folder / "train" / kind)
    text = "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['blue thing', 'red thing']"
    (folder / "data.yaml").write_text(text.replace("val: ../valid/images\n", ""))
    assert content(recognize_data(folder).open_all()["train"]) == content(coco(files))


def test_difficult_objects_are_regions_to_ignore(files: CocoFiles, tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "data", train=files)
    page = folder / "train" / "0001.xml"
    page.write_text(page.read_text().replace("<difficult>0<", "<difficult>1<", 1))
    found = recognize_data(folder).open_all()["train"]
    assert [one["iscrowd"] for one in found.record["annotations"]].count(1) == 1


def test_order_of_classes_is_that_of_a_label_map(files: CocoFiles, tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "data", train=files)
    (folder / "labelmap.txt").write_text("# label:color\nbackground:::\nred thing:::\n")
    found = recognize_data(folder).open_all()["train"]
    names = [(one["id"], one["name"]) for one in found.record["categories"]]
    assert names == [(1, "red thing"), (2, "blue thing")]


def record_of(classes: list[list[int]]) -> dict[str, object]:
    """Return a record with an image for each list of category ids."""
    return {
        "images": [{"id": n, "file_name": f"scene{n // 2}_{n}.png"} for n in range(len(classes))],
        "annotations": [
            {"image_id": n, "category_id": one} for n, ones in enumerate(classes) for one in ones
        ],
    }


def test_split_has_each_class_in_both_sets_and_keeps_groups_together() -> None:
    classes = [[1] * (1 + n % 7) for n in range(40)] + [[1, 2], [2], [3], []]
    record = record_of(classes)
    chosen = split_images(record)
    assert chosen == split_images(record) != split_images(record, seed=1)
    assert 8 <= len(chosen) <= 11
    for own in (1, 2):
        shows = [own in classes[n] for n in range(len(classes))]
        assert any(shows[n] for n in chosen)
        assert any(shows[n] for n in range(len(classes)) if n not in chosen)
    assert 42 not in chosen  # the only image of class 3 is for training
    mean = sum(len(classes[n]) for n in chosen) / len(chosen)
    assert mean == pytest.approx(sum(map(len, classes)) / len(classes), rel=0.25)
    together = split_images(record, split_by=r"^(scene\d+)_")
    assert {n ^ 1 for n in together} == together
    with pytest.raises(ValueError, match=r"at least two images .* got 1; give a validation set"):
        split_images(record_of([[1]]))


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.2, 0.35, 0.5, 0.9])
@pytest.mark.parametrize("sizes", [[1, 1], [1, 1, 1, 1, 1], [3, 9, 30], [2] * 12, [50], [1, 20]])
def test_split_has_the_fraction_exactly(sizes: list[int], fraction: float) -> None:
    classes = [[label] for label, size in enumerate(sizes) for _ in range(size)]
    chosen = split_images(record_of(classes), val_fraction=fraction)
    wanted = min(max(round(fraction * len(classes)), 1), len(classes) - 1)
    assert len(chosen) == wanted
    for label, size in enumerate(sizes):  # in proportion, and in both sets if there is room
        own = sum(classes[n] == [label] for n in chosen)
        if len(sizes) <= wanted <= len(classes) - len(sizes) and size > 1:
            assert 1 <= own < size
            assert abs(own - fraction * size) <= 1.5


def test_json_of_several_layouts_is_recognized_once(files: CocoFiles, tmp_path: Path) -> None:
    folder = as_ours(tmp_path / "data", files)
    (folder / "notes.json").write_text(json.dumps({"a": 1}))
    assert {*recognize_data(folder).coco} == {"train", "val"}
