"""`doctor data`: exit codes, output and what it refuses to overwrite."""

import json
import re
from pathlib import Path

import pytest
from helpers.coco_files import CocoFiles
from helpers.command_line import CommandLine
from helpers.planted_faults import write_sound_set

from deformable_detr import check_data


@pytest.fixture
def files(tmp_path: Path) -> CocoFiles:
    files = CocoFiles(tmp_path / "a", tmp_path / "a.json")
    files.write(write_sound_set(files, 0))
    return files


def with_fault(files: CocoFiles) -> None:
    record = files.read()
    record["annotations"][3] |= {"bbox": [1, float("nan"), 3, 4]}
    record["images"][4]["file_name"] = "[bold]\x1b[31m.png"
    files.write(record)


def test_a_sound_set_ends_with_0_and_errors_with_1(files: CocoFiles, run: CommandLine) -> None:
    outcome = run("doctor", "data", files.annotations)
    assert (outcome.code, outcome.out) == (0, "16 images, 32 annotations: 0 errors, 0 warnings\n")
    with_fault(files)
    outcome = run("doctor", "data", files.annotations)
    assert outcome.code == 1
    text = " ".join(outcome.out.replace("│", " ").split())
    assert text.startswith("16 images, 32 annotations: 2 errors, 0 warnings")
    assert "annotations[3] (id 4, image 01.png): bbox must be four finite numbers" in text
    assert "[bold]\\x1b[31m.png" in text
    assert "\x1b" not in outcome.out
    assert run("doctor", "data", files.annotations, "--no-photos").code == 1
    record = files.read()
    record["annotations"][3] |= {"bbox": [100, 1, 3, 4]}
    del record["images"][4]
    del record["annotations"][8:10]
    files.write(record)
    outcome = run("doctor", "data", files.annotations)
    assert outcome.code == 0
    assert "0 errors, 1 warnings" in outcome.out


def test_json_is_one_document_without_nan(files: CocoFiles, run: CommandLine) -> None:
    with_fault(files)
    outcome = run("doctor", "data", files.annotations, "--json")
    assert outcome.code == 1
    content = json.loads(outcome.out, parse_constant=pytest.fail)
    assert (content["errors"], content["warnings"]) == (2, 0)
    found = [(one["kind"], one["position"], one["image"]) for one in content["findings"]]
    assert ("annotation-bbox", 3, "01.png") in found
    assert ("image-missing", 4, "[bold]\\x1b[31m.png") in found


def test_fix_writes_new_paths_only(files: CocoFiles, run: CommandLine, tmp_path: Path) -> None:
    with_fault(files)
    content, other = files.annotations.read_bytes(), tmp_path / "other.json"
    other.write_text("mine")
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "nothing.json")
    for place in (files.annotations, other, link, tmp_path / "a" / ".." / "a.json"):
        error = run.fails("doctor", "data", files.annotations, "--fix", place)
        assert "fix must be a new path" in error
    for options in ([], ["--no-photos"]):
        fix = ["--fix", files.images / "new.json", *options]
        error = run.fails("doctor", "data", files.annotations, *fix)
        assert "fix must be outside the folder of the images" in error
    blocked = tmp_path / "other.json" / "b.json"
    assert "fix must be" in run.fails("doctor", "data", files.annotations, "--fix", blocked)
    place = "/proc/nowhere/b.json"
    assert "fix must be" in run.fails("doctor", "data", files.annotations, "--fix", place)
    with pytest.raises(ValueError, match=r"fix must be a path, got nu.*ll, with a null byte"):
        check_data(files.annotations, fix="nu\0ll")
    assert files.annotations.read_bytes() == content
    assert other.read_text() == "mine"
    outcome = run("doctor", "data", files.annotations, "--fix", tmp_path / "new" / "b.json")
    assert outcome.code == 0
    assert "1 annotations without a usable box deleted" in outcome.out
    options = ("--images", files.images)
    assert run("doctor", "data", tmp_path / "new" / "b.json", *options).code == 0


def test_what_a_repair_leaves_is_named_with_its_file(
    files: CocoFiles, run: CommandLine, tmp_path: Path
) -> None:
    record = files.read()
    record["annotations"] = []
    files.write(record)
    outcome = run("doctor", "data", files.annotations, "--fix", tmp_path / "b.json")
    assert outcome.code == 1
    text = outcome.out.replace("\n", "")
    assert f"left: {files.annotations}: no sound object with a box" in text
    deep = json.dumps(record)[:-1] + ', "x": ' + "[" * 900 + "]" * 900 + "}"
    files.annotations.write_text(deep)
    error = run.fails("doctor", "data", files.annotations, "--fix", tmp_path / "c.json")
    assert error.startswith(f"annotation file {files.annotations} must not have lists nested so")
    assert not (tmp_path / "c.json").exists()


def test_what_it_cannot_look_at_is_one_line(
    files: CocoFiles, run: CommandLine, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    moved = files.annotations.rename(tmp_path / "b.json")
    cases = {
        (tmp_path / "none.json",): "none.json must exist, found nothing there",
        (empty,): "data must be a folder with COCO JSON .*empty, which has neither images",
        (moved,): "no such folder; name it with --images DIR, or leave .* with --no-photos",
    }
    for arguments, message in cases.items():
        assert re.search(message, run.fails("doctor", "data", *arguments))
