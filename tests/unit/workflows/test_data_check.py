"""Planted faults that a check of a data set finds, sound sets, and repaired copies."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.image_formats import png
from helpers.planted_faults import (
    ENTRY_FAULTS,
    FILE_FAULTS,
    NUM_IMAGES,
    Planting,
    mutate,
    write_sound_set,
)
from helpers.shared_data import shared_data
from helpers.small_run import SMALL_RUN
from helpers.turned_images import write_turned_set

from deformable_detr import train
from deformable_detr.data.coco import CocoDataset
from deformable_detr.inspection.kinds import KINDS
from deformable_detr.inspection.repair import Repair
from deformable_detr.workflows.doctor import data_check
from deformable_detr.workflows.doctor.data_check import DataCheck, check_data

NUM_PLANTED = 200
PER_SET = 14
TRAINED = ["box not a number", "file cut", "image null", "box outside", "iscrowd a text", "crowded"]
UNREPAIRABLE = {"iscrowd 2", "category id twice"}


def planted_set(folder: Path, names: list[str], seed: int) -> tuple[CocoFiles, list[Any]]:
    """Write a set with faults, each in an image of its own; return what must be found."""
    files = CocoFiles(folder / "a", folder / "a.json")
    record = write_sound_set(files, seed)
    random = np.random.default_rng(seed)
    places = random.permutation(np.arange(1, NUM_IMAGES - 1))
    expected = []
    for name, index in zip(names, places.tolist(), strict=False):
        expected.append(ENTRY_FAULTS[name](Planting(files, record, index, random)))
    files.annotations.write_text(json.dumps(record))
    return files, expected


def errors(check: DataCheck) -> list[str]:
    return [f"{one.kind}: {one.message}" for one in check.findings if one.level == "error"]


def test_200_planted_faults_are_found_with_kind_and_entry(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rest = NUM_PLANTED - len(FILE_FAULTS) - len(ENTRY_FAULTS)  # files: by the next test
    more = random.choice(sorted(ENTRY_FAULTS), rest).tolist()
    names = [*random.permutation(sorted(ENTRY_FAULTS)).tolist(), *more]
    for seed, start in enumerate(range(0, len(names), PER_SET)):
        part = names[start : start + PER_SET]
        files, expected = planted_set(tmp_path / str(seed), part, seed)
        check = check_data(files.annotations)
        found = {(one.kind, one.section, one.position) for one in check.findings}
        missing = [
            (name, one) for name, one in zip(part, expected, strict=True) if one not in found
        ]
        assert missing == []
        entries = {one[1:] for one in expected}
        others = [
            one
            for one in check.findings
            if one.level == "error"
            and (one.section, one.position) not in entries
            and one.kind != "unknown-image"  # the objects of an image without a sound id
        ]
        assert others == []
        shutil.rmtree(tmp_path / str(seed))


@pytest.mark.parametrize("name", FILE_FAULTS)
def test_faults_of_a_file_as_a_whole_are_found(tmp_path: Path, name: str) -> None:
    kind, change = FILE_FAULTS[name]
    files = CocoFiles(tmp_path / "a", tmp_path / "a.json")
    content = change(write_sound_set(files, 0))
    if isinstance(content, bytes):
        files.annotations.write_bytes(content)
    else:
        files.annotations.write_text(json.dumps(content))
    check = check_data(files.annotations)
    assert kind in check.counts
    assert KINDS[kind].level == "error"
    json.dumps(check.as_json(), allow_nan=False)


def test_sizes_that_disagree_about_exif_are_found(tmp_path: Path) -> None:
    images = {"a.jpg": (6, "upright"), "b.jpg": (6, "stored"), "c.jpg": (1, "stored")}
    files = write_turned_set(tmp_path, images)
    assert "images-turned" in check_data(files.annotations, images=files.images).counts


def test_sizes_of_stored_images_are_right_if_no_image_shows_another_reading(tmp_path: Path) -> None:
    files = write_turned_set(tmp_path, {"a.jpg": (6, "stored"), "b.jpg": (1, "stored")})
    check = check_data(files.annotations, images=files.images)
    assert not {"images-turned", "image-size", "image-size-swapped"} & set(check.counts)


def folder_of(tmp_path: Path) -> Path:
    """Write the standard layout, sound."""
    for seed, split in enumerate(("train", "val")):
        files = CocoFiles(tmp_path / split, tmp_path / f"{split}.json")
        files.write(write_sound_set(files, seed))
    return tmp_path


def test_disagreement_of_two_sets_is_found(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "d")
    assert check_data(folder).counts == {}
    shutil.copy(folder / "train" / "03.png", folder / "val" / "05.png")
    files = CocoFiles(folder / "val", folder / "val.json")
    record = files.read()
    record["categories"][0]["name"] = "shrub"
    files.write(record)
    check = check_data(folder)
    found = [(one.kind, one.position) for one in check.findings]
    assert found == [("categories-differ", None), ("image-in-both-sets", 5)]
    other = CocoFiles(folder / "train", folder / "train.json")
    sound, record = other.read(), other.read()
    record["images"].append(record["images"][3] | {"file_name": "05.png"})  # an ambiguous id
    record["annotations"] = [one for one in record["annotations"] if one["image_id"] != 4]
    other.write(record)
    assert record["images"][3]["id"] == 4
    left = check_data(folder, fix=tmp_path / "fixed").left
    assert [one.kind for one in left] == ["categories-differ"]
    other.write(sound)
    files.annotations.unlink()
    shutil.rmtree(folder / "train")
    assert set(check_data(folder).counts) == {"file-missing", "folder-missing"}


def crowds_with_masks(record: dict[str, Any]) -> None:
    mask = {"counts": [0, 10, 3062], "size": [48, 64]}
    for entry in record["annotations"][::2]:
        entry |= {"iscrowd": 1, "segmentation": mask, "bbox": [0, 0, 64, 48], "area": 10}
    record["annotations"][0]["bbox"] = [70, 50, 5, 5]  # a region may lie anywhere


def sparse_ids(record: dict[str, Any]) -> None:
    for section in record.values():
        for entry in section:
            entry["id"] = entry["id"] * 10**12
    for entry in record["annotations"]:
        entry["image_id"] *= 10**12
        entry["category_id"] *= 10**12


def without_areas(record: dict[str, Any]) -> None:
    for entry in record["annotations"]:
        del entry["area"], entry["iscrowd"]


def rounded_areas(record: dict[str, Any]) -> None:
    for entry in record["annotations"]:
        entry["area"] += 5  # of a mask whose rim the box cuts by rounding


def without_objects(record: dict[str, Any]) -> None:
    record["annotations"] = record["annotations"][:3]
    record["categories"].append({"id": 99, "name": "\u6a39"})


@pytest.mark.parametrize(
    "change",
    [crowds_with_masks, sparse_ids, without_areas, rounded_areas, without_objects, dict.copy],
)
def test_sound_variants_have_neither_errors_nor_warnings(tmp_path: Path, change: Any) -> None:
    files = CocoFiles(tmp_path / "images", tmp_path / "a.json")
    record = write_sound_set(files, 0)
    change(record)
    files.annotations.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8-sig")
    if change is dict.copy:  # a folder of links, of which one has another name
        for path in files.images.iterdir():
            moved = path.rename(tmp_path / f"moved {path.name}")
            path.symlink_to(moved)
        (files.images / "not listed.png").write_bytes(png(np.eye(9, dtype=np.uint8)[..., None]))
    check = check_data(files.annotations, images=files.images)
    assert errors(check) == []
    assert check.count("warning") == 0
    assert len(CocoDataset(files.images, files.annotations)) == NUM_IMAGES
    counted = {
        crowds_with_masks: {"crowds": 16},
        without_objects: {"categories-unused": 2, "images-without-objects": 14},
        dict.copy: {"images-unlisted": 1},
    }
    assert check.counts == counted.get(change, {})


def test_shared_sets_have_no_errors() -> None:
    coco = shared_data("coco_val2014_100/instances_val2014_100.json")
    assert errors(check_data(coco, photos=False)) == []
    assert errors(check_data(shared_data("nuclei200"))) == []
    tiny = shared_data("tinycoco")
    for split in ("train2017", "val2017"):
        file, images = tiny / f"annotations/instances_{split}.json", tiny / "images" / split
        assert errors(check_data(file, images=images)) == []


def test_a_repaired_copy_has_no_errors_and_nothing_else_has_changed(tmp_path: Path) -> None:
    chosen = [name for name in ENTRY_FAULTS if name not in UNREPAIRABLE]
    size = NUM_IMAGES - 2
    for seed, start in enumerate(range(0, len(chosen), size)):
        files, _ = planted_set(tmp_path / str(seed), chosen[start : start + size], seed)
        before = state_of(tmp_path)
        fixed = tmp_path / f"fixed {seed}.json"
        check = check_data(files.annotations, fix=fixed)
        assert [one.message for one in check.left] == []
        assert check.repairs
        assert errors(check_data(fixed, images=files.images)) == []
        assert sum(CocoDataset(files.images, fixed).num_objects)
        assert {fixed: fixed.stat().st_size, **before} == state_of(tmp_path)


def state_of(folder: Path) -> dict[Path, Any]:
    return {path: path.lstat().st_size for path in folder.rglob("*") if path.suffix != ".partial"}


def test_what_training_refuses_is_an_error_and_what_is_repaired_is_not_refused(
    tmp_path: Path,
) -> None:
    files, random = CocoFiles(tmp_path / "a", tmp_path / "a.json"), np.random.default_rng(0)
    sound = write_sound_set(files, 0)
    num_refused = num_repaired = 0
    for number in range(60):
        record = copy.deepcopy(sound)
        for _ in range(random.choice([1, 2, 10])):
            mutate(record, random)
        files.write(record)
        check = check_data(files.annotations, fix=tmp_path / f"{number}.json")
        json.dumps(check.as_json(), allow_nan=False)
        try:
            is_refused = not any(CocoDataset(files.images, files.annotations).num_objects)
        except (ValueError, OSError):
            is_refused = True
        assert check.count("error") or not is_refused, record
        num_refused += is_refused
        if check.fixed and not check.left:
            assert any(CocoDataset(files.images, check.fixed).num_objects)
            num_repaired += is_refused
    assert num_refused > 30
    assert num_repaired > 15


def test_what_is_sound_is_not_changed_by_a_repair(tmp_path: Path) -> None:
    files = CocoFiles(tmp_path / "a", tmp_path / "a.json")
    record = write_sound_set(files, 0) | {"info": {"year": 2017}, "licenses": []}
    crowds_with_masks(record)
    crowd = record["annotations"][2]
    record["annotations"].append(crowd | {"id": 999})  # crowds may be equal
    boxes = [[-0.9, -0.9, 20.8, 20], [0.5, 0.25, 63.5, 48]]  # of rounded corners
    for entry, box in zip(record["annotations"][1::2], boxes, strict=False):
        entry |= {"bbox": box, "area": box[2] * box[3]}
    files.write(record)
    check = check_data(files.annotations, fix=tmp_path / "b.json")
    assert (check.repairs, check.left) == ({}, ())
    assert json.loads((tmp_path / "b.json").read_text()) == record


def repaired(annotations: list[tuple[int, int, int]]) -> list[int]:
    """Return the ids that a repair leaves of (id, category, left side of the box)."""
    record = {
        "images": [{"id": 1, "file_name": "a.png", "height": 48, "width": 64}],
        "categories": [{"id": number, "name": str(number)} for number in (1, 2, 3)],
        "annotations": [
            {"id": one, "image_id": 1, "category_id": category, "bbox": [left, 5, 9, 9]}
            for one, category, left in annotations
        ],
    }
    return [entry["id"] for entry in Repair(record, {}).record["annotations"]]


def test_all_copies_of_objects_are_deleted_and_no_other_object() -> None:
    assert repaired([(1, 1, 5), (2, 2, 5), (3, 3, 5), (4, 2, 5), (5, 2, 6)]) == [1, 2, 3, 5]


@pytest.mark.parametrize("largest", [7, 2**63 - 2, 2**63 - 1])
def test_repeated_ids_become_unused_ones_of_64_bits(largest: int) -> None:
    ids = [3, largest, 3, 3, 3, 1]
    found = repaired([(one, 1, left) for left, one in enumerate(ids)])
    assert len(set(found)) == 6
    assert [found[0], found[1], found[5]] == [3, largest, 1]
    assert max(found) < 2**63


@pytest.mark.parametrize(
    "name", [*sorted(UNREPAIRABLE), "boxes of corners", "labels shifted", "cut"]
)
def test_what_cannot_be_repaired_without_a_guess_stays_an_error(tmp_path: Path, name: str) -> None:
    if name in ENTRY_FAULTS:
        files, _ = planted_set(tmp_path, [name], 0)
        kind = "annotation-iscrowd" if name == "iscrowd 2" else name.replace(" ", "-")
    else:
        files = CocoFiles(tmp_path / "a", tmp_path / "a.json")
        kind, change = FILE_FAULTS[name]
        content = change(write_sound_set(files, 0))
        if isinstance(content, bytes):
            files.annotations.write_bytes(content)
        else:
            files.write(content)
    check = check_data(files.annotations, fix=tmp_path / "b.json")
    assert kind in {one.kind for one in check.left}
    assert (check.fixed is None) is (name == "cut") is not (tmp_path / "b.json").exists()


def test_a_repaired_folder_trains(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    planted_set(folder, TRAINED, 0)
    for path in list(folder.iterdir()):
        path.rename(path.with_name(path.name.replace("a", "train")))
    (folder / "val").symlink_to(folder_of(tmp_path / "sound") / "val")
    shutil.copy(tmp_path / "sound" / "val.json", folder)
    fixed = tmp_path / "fixed"
    with pytest.raises(ValueError, match=r"train.json: (images|annotations)"):
        train("deformable_detr_r50", data=folder, overrides=SMALL_RUN, run_dir=tmp_path / "run")
    assert check_data(folder, fix=fixed).left == ()
    settings = [*SMALL_RUN, "train.max_steps=1", "train.eval_every_epochs=100"]
    run = tmp_path / "run"
    train("deformable_detr_r50", data=fixed, overrides=settings, run_dir=run, device="cpu")
    assert (run / "last.pth").is_file()


def test_a_repaired_folder_appears_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, fixed = folder_of(tmp_path / "sound"), tmp_path / "fixed"
    for photos in (True, False):
        with pytest.raises(ValueError, match="fix must be outside the folder of the images"):
            check_data(folder, fix=folder / "val" / "fixed", photos=photos)
    contents = iter(['{"images": []}', KeyboardInterrupt()])

    def interrupted(*_: object) -> str:
        content = next(contents)
        if isinstance(content, BaseException):
            raise content
        return content

    with monkeypatch.context() as patched:
        patched.setattr(data_check, "to_json", interrupted)
        with pytest.raises(KeyboardInterrupt):
            check_data(folder, fix=fixed)
    assert check_data(folder, fix=fixed).left == ()
    assert {path.name for path in fixed.iterdir()} == {"train.json", "train", "val.json", "val"}


def test_what_appears_during_the_check_is_not_replaced(tmp_path: Path) -> None:
    files, fixed = CocoFiles(tmp_path / "a", tmp_path / "a.json"), tmp_path / "b.json"
    files.write(write_sound_set(files, 0))
    with pytest.raises(ValueError, match=r"fix must be a new path, got .*b\.json, which exists"):
        check_data(files.annotations, fix=fixed, callback=lambda *_: fixed.write_text("mine"))
    assert fixed.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a.json", "b.json"}


def test_the_page_has_the_table_of_kinds() -> None:
    page = (Path(__file__).parents[3] / "docs" / "doctor.md").read_text(encoding="utf-8")
    rows = [
        f"| `{kind.name}` | {kind.level} | {kind.meaning} | {kind.remedy} |"
        for kind in KINDS.values()
    ]
    table = "\n".join(rows)
    assert f"|---|---|---|---|\n{table}\n\n" in page, f"the table must be\n{table}"


def test_arrays_are_images(tmp_path: Path) -> None:
    files = write_coco_set(tmp_path, num_images=3)
    record = files.read()
    shape = (96, 128, 4)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    arrays = (noise, np.full(shape, np.nan), np.zeros(shape))
    for image, pixels in zip(record["images"], arrays, strict=True):
        (files.images / image["file_name"]).unlink()
        image["file_name"] = f"{image['id']}.npy"
        np.save(files.images / image["file_name"], pixels)
    files.write(record)
    assert check_data(files.annotations, images=files.images).counts == {
        "image-unreadable": 1,
        "image-blank": 1,
    }
