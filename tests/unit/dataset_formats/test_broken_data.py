"""Broken data sets: one line that names file and entry, or training on the rest, with a count."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.dataset_formats import write_voc, write_yolo

from deformable_detr.data.coco import CocoDataset
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.workflows.datasets.preparation import OwnData, own_data


def load(path: Path, run: Path, split_by: str | None = None) -> OwnData:
    """Do all that precedes the first step."""
    own = own_data(path, RunFolder(run), resume=False, split_by=split_by)
    for split in ("train", "val"):
        CocoDataset(
            Path(own.settings[f"data.{split}.images"]),
            Path(own.settings[f"data.{split}.annotations"]),
            image_order=own.settings["data.image_order"],
        )
    return own


@pytest.fixture
def files(tmp_path: Path) -> CocoFiles:
    return write_coco_set(tmp_path / "set", num_images=4)


def put(name: str, text: str | bytes) -> Callable[[Path], object]:
    """Return a damage that replaces a file."""

    def damage(folder: Path) -> None:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())

    return damage


def replaced(name: str, pattern: str, by: str) -> Callable[[Path], object]:
    """Return a damage that replaces the first match of a pattern in a file."""

    def damage(folder: Path) -> None:
        text = (folder / name).read_text()
        changed = re.sub(pattern, by, text, count=1)
        assert changed != text
        (folder / name).write_text(changed)

    return damage


def removed(name: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        place = folder / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()

    return damage


def copied(name: str, to: str) -> Callable[[Path], object]:
    """Return a damage that copies a file."""

    def damage(folder: Path) -> None:
        (folder / to).parent.mkdir(exist_ok=True)
        shutil.copy(folder / name, folder / to)

    return damage


def moved(page: str, to: str, twin: str) -> Callable[[Path], object]:
    """Return a damage that moves an XML file away from its image, which gets a twin."""

    def damage(folder: Path) -> None:
        copied(page, to)(folder)
        copied(page.replace(".xml", ".png"), twin)(folder)
        (folder / page).unlink()

    return damage


LABELS, PAGE, IMAGE = "labels/train/0001.txt", "train/0001.xml", "images/train/0001.png"
BOMB = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
YOLO = {
    "word": (put(LABELS, "a b c d e"), r"0001.txt line 1: must be numbers, got 'a b c d e'; a row"),
    "short": (put(LABELS, "0 .5 .5 .2 .2\n0 .1 .1"), r"0001.txt line 2: must have 5 numbers, or a"),
    "score": (put(LABELS, "0 .5 .5 .2 .2 .9"), r"line 1: .* a sixth number is a score"),
    "odd": (put(LABELS, "0 .1 .1 .2 .2 .3 .3 .4"), r"line 1: must have 5 numbers, .* got 8"),
    "class": (put(LABELS, "2 .5 .5 .2 .2"), r"line 1: the class must be one of \{0: red .* got 2"),
    "half": (put(LABELS, "0.5 .5 .5 .2 .2"), r"line 1: the class must be one of .* got 0.5"),
    "pixels": (
        put(LABELS, "0 64 48 20 20"),
        r"line 1: coordinates must be in \[0, 1\], got 64; div",
    ),
    "nan": (put(LABELS, "0 nan .5 .2 .2"), r"line 1: must be finite numbers"),
    "negative": (put(LABELS, "0 .5 .5 -.2 .2"), r"line 1: coordinates must be .* got -0.2"),
    "binary": (put(LABELS, b"\xff\xfe\x00\x80"), r"^\S*0001.txt: must be text in UTF-8"),
    "image": (put(IMAGE, b"\x89PNG\r\n\x1a\n"), r"0001.png: no readable image"),
    "cut": (put(IMAGE, b""), r"0001.png: no readable image"),
    "twins": (put("images/train/0001.jpg", b"x"), r"0001.png: .* same name as 0001.jpg"),
    "no-names": (replaced("data.yaml", "names:.*", ""), r"data.yaml: names must list the classes"),
    "count": (replaced("data.yaml", "$", "\nnc: 3"), r"data.yaml: nc must be .* 2, got 3"),
    "name": (
        replaced("data.yaml", r"'red thing'", "null"),
        r"data.yaml: names\[0\] must be a name",
    ),
    "folder": (
        removed("images/val"),
        r"data.yaml: val must be a folder .* there is no .*images/val",
    ),
    "empty": (removed(IMAGE.replace("0001.png", "")), r"data.yaml: train must be a folder"),
    "yaml": (put("data.yaml", "names: [a"), r"data.yaml: must be YAML, got"),
    "list": (put("data.yaml", "[1, 2]"), r"data.yaml must hold keys"),
    "no-train": (replaced("data.yaml", "train:", "test:"), r"data.yaml: train must name a folder"),
    "no-labels": (removed("labels"), r"labels/train: no image has a label file"),
}
VOC = {
    "broken": (put(PAGE, "<annotation><object>"), r"0001.xml: must be XML, got .*line 1"),
    "bomb": (put(PAGE, BOMB), r"0001.xml: must have no document type declaration"),
    "html": (put(PAGE, "<html></html>"), r"0001.xml: must be an annotation of .* got <html>"),
    "no-name": (replaced(PAGE, "<name>.*?</name>", ""), r"0001.xml object 1: must have a <name>"),
    "no-box": (replaced(PAGE, "<xmin>.*?</xmin>", ""), r"object 1: <bndbox> must hold .* xmin nan"),
    "text": (replaced(PAGE, "<ymax>.*?<", "<ymax>a<"), r"object 1: <bndbox> must .* ymax nan"),
    "swapped": (
        replaced(PAGE, "<xmax>.*?<", "<xmax>0<"),
        r"object 1: xmax and ymax must be at least",
    ),
    "size": (replaced(PAGE, "<width>.*?<", "<width>99<"), r"0001.png\) must be \(96, 99\)"),
    "image": (put("train/0001.png", b"no"), r"0001.png: no readable image"),
    "huge": (replaced(PAGE, "<xmax>.*?<", "<xmax>1e12<"), r"object 1: bbox must be four finite"),
}
TWIN = "train/sub/0001.png"
VOC |= {
    "two-pages": (copied(PAGE, "train/sub/0001.xml"), r"sub/0001.xml: its image .* another XML"),
    "two-images": (moved(PAGE, "train/xml/0001.xml", TWIN), r"xml/0001.xml: its image may be any"),
}
COCO = {
    "text": (put("train.json", b"\xff"), r"^annotation file \S*train.json must be JSON"),
    "json": (put("train.json", "{"), r"train.json must be JSON"),
    "bbox": (
        replaced("train.json", r'"bbox": \[\d+', '"bbox": ["a"'),
        r"train.json: annotations\[0\]",
    ),
    "category": (
        replaced("val.json", r'"category_id": \d+', '"category_id": 5'),
        r"val.json: annot",
    ),
    "gone": (removed("train/0001.png"), r"0001.png"),
    "no-images": (removed("train"), r"train.json: image 0001.png is in none of"),
    "only-val": (
        removed("train.json"),
        r"annotations for validation, .*val.json, but none for train",
    ),
}
CASES = [
    pytest.param(kind, *case, id=f"{kind}-{name}")
    for kind, cases in (("yolo", YOLO), ("voc", VOC), ("coco", COCO))
    for name, case in cases.items()
]


def written(kind: str, folder: Path, files: CocoFiles) -> Path:
    if kind != "coco":
        return {"yolo": write_yolo, "voc": write_voc}[kind](folder, train=files, val=files)
    for split in ("train", "val"):
        shutil.copytree(files.images, folder / split)
        shutil.copy(files.annotations, folder / f"{split}.json")
    return folder


@pytest.mark.parametrize(("kind", "damage", "message"), CASES)
def test_damage_is_one_line_with_file_and_entry(
    kind: str,
    damage: Callable[[Path], object],
    message: str,
    files: CocoFiles,
    tmp_path: Path,
) -> None:
    folder = written(kind, tmp_path / "data", files)
    load(folder, tmp_path / "run")
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        load(folder, tmp_path / "run")
    text = str(raised.value)
    assert len(text.splitlines()) == 1
    assert text.count("0001.txt") + text.count("train.json") <= 1


@pytest.mark.parametrize(
    ("kind", "damage", "line"),
    [
        (
            "yolo",
            put("labels/train/9.txt", "0 .5 .5 .1 .1"),
            r"left out, label file .*: 1, such as .*/9.txt",
        ),
        ("yolo", removed(LABELS), r"1 of 4 images have no label file: no objects"),
        ("yolo", put(LABELS, ""), r"train: 4 images"),
        (
            "voc",
            put("train/9.xml", "<annotation/>"),
            r"left out, XML file without an image: 1, such as .*9.x",
        ),
        ("voc", removed(PAGE), r"left out, image without an XML file: 1, such as .*0001.png"),
    ],
)
def test_what_is_whole_is_used_and_the_rest_counted(
    kind: str,
    damage: Callable[[Path], object],
    line: str,
    files: CocoFiles,
    tmp_path: Path,
) -> None:
    folder = written(kind, tmp_path / "data", files)
    damage(folder)
    own = load(folder, tmp_path / "run")
    assert any(re.search(line, decision) for decision in own.decisions)
    kept = (tmp_path / "run" / "annotations" / "decisions.txt").read_text()
    assert kept.splitlines() == list(own.decisions)


@pytest.mark.parametrize(
    ("split_by", "message"),
    [
        ("(", r"split_by must be a regular expression, got '\('"),
        ("scene", r"split_by must match file names, got 'scene', which matches none, such as 0001"),
        (r"\.png", r"at least two images .* kept together by '\\\\.png'; give"),
    ],
)
def test_split_by_must_make_two_groups(
    split_by: str, message: str, files: CocoFiles, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load(files.annotations, tmp_path / "run", split_by)


def test_folder_without_annotations_is_described(tmp_path: Path, files: CocoFiles) -> None:
    with pytest.raises(ValueError, match=r"which has 4 images, but no annotations that are"):
        load(files.images, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"which has neither images nor annotations"):
        load(tmp_path / "empty", tmp_path / "run")
    with pytest.raises(ValueError, match=r"no such file"):
        load(tmp_path / "missing", tmp_path / "run")


def test_split_set_is_written_with_its_own_images(tmp_path: Path, files: CocoFiles) -> None:
    own = load(files.annotations, tmp_path / "run")
    parts = [
        json.loads(Path(own.settings[f"data.{split}.annotations"]).read_text())
        for split in ("train", "val")
    ]
    names = [{one["file_name"] for one in part["images"]} for part in parts]
    assert sorted(map(len, names)) == [1, 3] or sorted(map(len, names)) == [2, 2]
    assert names[0] | names[1] == {one["file_name"] for one in files.read()["images"]}
    assert sum(len(part["annotations"]) for part in parts) == len(files.read()["annotations"])
