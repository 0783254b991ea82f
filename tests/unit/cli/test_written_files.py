"""What a command finds at the places that it writes to: replaced if it is its own, else kept."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.coco_files import write_coco_set
from helpers.command_line import CommandLine
from helpers.full_disk import nearly_full_disk
from helpers.tiny_checkpoint import LABEL_SPACE

import deformable_detr
from deformable_detr.files.output_folder import MANIFEST
from deformable_detr.workflows import evaluation_places
from deformable_detr.workflows.evaluation import UnwrittenError

CATEGORIES = dict(zip(LABEL_SPACE.category_ids, LABEL_SPACE.names, strict=True))
EVALUATE = "evaluate --checkpoint {set}/c.pth --images {set}/images --annotations {set}/set.json"
# Arguments, one of the files written, one of the files read.
COMMANDS = {
    "predict": ("predict {set}/images --checkpoint {set}/c.pth --out {out}", "0001.png", "images"),
    "predict_json": (
        "predict {set}/images --checkpoint {set}/c.pth --annotations {set}/set.json --out {out}",
        "detections.json",
        "set.json",
    ),
    "evaluate_out": (EVALUATE + " --num-workers 0 --out {out}/r.json", "r.json", "set.json"),
    "evaluate_pictures": (EVALUATE + " --num-workers 0 --pictures {out}", "1.png", "c.pth"),
    "explain": (
        "explain {set}/images/0001.png --checkpoint {set}/c.pth --out {out} --queries 1",
        "query_1.png",
        "c.pth",
    ),
    "convert": ("convert {set}/c.pth {out}/a.pth", "a.pth", "c.pth"),
    "convert_folder": (
        "convert {set}/c.pth {out} --to transformers",
        "config.json",
        "c.pth",
    ),
}


class Case:
    """A command with the files that it reads, and what lies there."""

    def __init__(self, name: str, folder: Path, checkpoint: Path) -> None:
        self.folder, self.set, self.out = folder, folder / "set", folder / "out"
        command, target, source = COMMANDS[name]
        files = write_coco_set(self.set, num_images=1, size=(32, 48), categories=CATEGORIES)
        files.annotations.rename(self.set / "set.json")
        (self.set / "c.pth").write_bytes(checkpoint.read_bytes())
        self.arguments = [word.format(set=self.set, out=self.out) for word in command.split()]
        self.target = self.out / target
        source = "images/0001.png" if source == "images" else source
        self.source = self.set / source

    def snapshot(self) -> dict[Path, object]:
        return {
            path: path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
        }


@pytest.fixture(params=COMMANDS)
def case(request: pytest.FixtureRequest, tmp_path: Path, checkpoint: Path) -> Case:
    return Case(request.param, tmp_path, checkpoint)


def test_own_files_are_replaced_and_others_only_with_overwrite(
    case: Case, run: CommandLine
) -> None:
    case.out.mkdir()
    case.target.write_text("foreign")
    (case.out / "notes").write_text("mine")
    before = case.snapshot()
    message = run.fails(*case.arguments)
    assert f"must not replace {case.target} (not of deformable-detr); give --overwrite" in message
    assert case.snapshot() == before

    case.target.unlink()
    for _ in range(2):  # the second time, the files are its own
        outcome = run(*case.arguments)
        assert outcome.code == 0, outcome.err
    names = [json.loads(line)["name"] for line in (case.out / MANIFEST).read_text().splitlines()]
    written = {path.name for path in case.out.iterdir()} - {MANIFEST, "notes"}
    assert set(names) == written
    assert len(names) == 2 * len(written)

    whole = case.target.read_bytes()
    case.target.write_bytes(whole + b"edited")
    before = case.snapshot()
    message = run.fails(*case.arguments)
    assert f"{case.target} (changed since deformable-detr wrote it); give --overwrite" in message
    assert case.snapshot() == before
    case.target.unlink()
    case.target.symlink_to(case.out / "notes")
    assert run(*case.arguments, "--overwrite").code == 0
    assert not case.target.is_symlink()  # replaced, not written through
    assert (case.out / "notes").read_text() == "mine"


@pytest.mark.parametrize("kind", ["input", "link", "hard_link", "folder", "device", "below_a_file"])
def test_inputs_folders_and_devices_are_never_replaced(
    case: Case, run: CommandLine, kind: str
) -> None:
    words = "must not replace"
    case.out.mkdir()
    if kind == "input":
        case.source.rename(case.target)
        case.arguments = [
            word.replace(str(case.source), str(case.target)) for word in case.arguments
        ]
        words = "must not replace an input"
        if case.source.parent.name == "images":  # the command was given its folder
            case.target.rename(case.source)
            case.target.symlink_to(case.source)
            case.arguments[1] = str(case.target)
    elif kind == "link":
        case.target.symlink_to(case.source)
        words = "must not replace an input"
    elif kind == "hard_link":
        os.link(case.source, case.target)
        words = "must not replace an input"
    elif kind == "folder":
        case.target.mkdir()
        words = (
            "the folder" if "r.json" in str(case.target) or "a.pth" in str(case.target) else words
        )
    elif kind == "device":
        os.mkfifo(case.target)
    else:
        case.out.rmdir()
        case.out.write_text("a file")
        words = f"must be a folder, or a path where one can be created, got {case.out}, where "
    before = case.snapshot()
    for overwrite in ((), ("--overwrite",)):
        message = run.fails(*case.arguments, *overwrite)
        assert words in message
        assert str(case.out) in message
        assert len(message.splitlines()) == 1
    assert case.snapshot() == before


@pytest.mark.parametrize("option", ["--out", "--pictures"])
def test_an_image_of_the_evaluated_set_is_never_replaced(
    tmp_path: Path, checkpoint: Path, run: CommandLine, option: str
) -> None:
    case = Case("evaluate_out", tmp_path, checkpoint)
    image = (case.set / "images" / "0001.png").rename(case.set / "images" / "1.png")
    annotations = case.set / "set.json"
    annotations.write_text(annotations.read_text().replace("0001.png", image.name))
    place = image if option == "--out" else image.parent
    before = case.snapshot()
    message = run.fails(*case.arguments[:-2], option, place, "--overwrite")
    assert "must not replace an input" in message
    assert case.snapshot() == before


def test_a_place_that_cannot_be_written_is_found_before_the_checkpoint(
    case: Case, run: CommandLine
) -> None:
    (case.set / "c.pth").write_text("no checkpoint")  # would be the next error
    long = case.folder / ("x" * 300)
    for place, reason in (
        (Path("/proc/nothing"), ""),
        (long, "File name too long"),
        (long / "y", ""),
    ):
        arguments = [word.replace(str(case.out), str(place)) for word in case.arguments]
        message = run.fails(*arguments)
        assert f"where nothing can be written ({reason}" in message
        assert str(place)[-200:] in message
    assert not case.out.exists()


@pytest.mark.parametrize(
    "case", ["predict", "evaluate_out", "evaluate_pictures", "convert_folder"], indirect=True
)
def test_a_full_disk_is_one_line_that_names_the_file_and_the_old_file_stays(
    case: Case, run: CommandLine
) -> None:
    assert run(*case.arguments).code == 0
    before = case.snapshot()
    with nearly_full_disk(300):
        outcome = run(*case.arguments)
    assert outcome.code == 2
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {case.out}")
    assert "could not be written (File too large); what " in line
    if "--pictures" in case.arguments:
        assert "AP50" in outcome.out  # what was measured is not lost
    after = case.snapshot()
    assert {path.name for path in after if path not in before} <= {"r.json.partial.jsonl"}
    assert {path.name for path in before if before[path] != after[path]} <= {MANIFEST}


def test_the_metrics_of_an_evaluation_whose_file_is_lost_are_in_the_error(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("evaluate_out", tmp_path, checkpoint)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(evaluation_places, "to_json", full)
    with pytest.raises(UnwrittenError, match=r"r\.json could not be written") as caught:
        deformable_detr.evaluate(
            checkpoint,
            images=case.set / "images",
            annotations=case.set / "set.json",
            num_workers=0,
            out=case.out / "r.json",
        )
    assert caught.value.result.num_images == 1
    assert np.isfinite(list(caught.value.result.metrics.values())).all()
    assert (case.out / "r.json.partial.jsonl").is_file()  # the same command continues
    assert not (case.out / "r.json").exists()
