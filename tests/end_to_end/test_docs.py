"""Python blocks and commands of README and docs run as they stand, on one tiny trained detector.

Commands that are not run here are in NOT_RUN with the reason; `tests/unit/test_docs_commands.py`
checks their options and settings, too.
"""

import inspect
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.coco_files import write_coco_set
from helpers.command_line import CommandLine
from helpers.foreign_files import write_foreign
from helpers.small_run import SMALL_RUN
from PIL import Image

import deformable_detr
from deformable_detr.workflows.training import TrainingResult

ROOT = Path(__file__).parents[2]
# test_coming_from.py runs the pages in coming_from.
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = {
    "benchmark": "takes minutes",
    "data": "needs a network; continuous integration runs scripts/quickstart.sh",
    "doctor": "needs a failed run; tests/unit/cli/test_doctor_bundle.py has one",
    "train": "needs ImageNet weights or minutes",
    "--version": "prints the version only",
}
OFFICIAL = "r50_deformable_detr-checkpoint.pth"


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [arguments[1:] for arguments in words if arguments[:1] == ["deformable-detr"]]


def write_photo(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages name: data sets, photos, and weights from elsewhere."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("photos/train", "photos/val", "data/trees/val", "data/trees/ood"):
        files = write_coco_set(folder / "sets" / name, num_images=2)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        files.images.rename(folder / name)
        files.annotations.rename(folder / f"{name}.json")
    (folder / "photos" / "new").mkdir()
    for photo in ("photo.jpg", "photos/val/0001.jpg", "photos/new/0001.jpg"):
        write_photo(folder / photo)
    official = write_foreign(folder, "official", "multi_scale").rename(folder / OFFICIAL)
    shutil.copy(official, folder / "old.pth")
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> TrainingResult:
    """A run of one step, under the names that the pages have for it."""
    result = deformable_detr.train(
        "deformable_detr_r50",
        data=place / "photos",
        overrides=[*SMALL_RUN, "train.max_steps=1"],
        run_dir=place / "runs" / "quickstart",
        device="cpu",
    )
    shutil.copytree(result.run_dir, place / "runs" / "deformable_detr_r50_two_stage")
    return result


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks(page, "python")],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_python_blocks_run(
    page: Path, place: Path, trained: TrainingResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    signature = inspect.signature(deformable_detr.train)

    def train(*arguments: Any, **options: Any) -> TrainingResult:
        signature.bind(*arguments, **options)
        return trained

    monkeypatch.setattr(deformable_detr, "train", train, raising=False)
    names = {
        "__name__": "__main__",
        "detector": trained.detector("cpu"),
        "image": torch.rand(3, 64, 96),
        "other": torch.rand(3, 96, 64),
        "objects": [(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([1]))] * 2,
    }
    for code in blocks(page, "python"):
        if "deformable_detr.compat" not in code:  # tests/unit/compat imports it in a new process
            exec(compile(code, page.name, "exec"), dict(names))


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(one[0] not in NOT_RUN for one in commands(page))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_commands_run(
    page: Path,
    place: Path,
    trained: TrainingResult,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    for arguments in commands(page):
        if arguments[0] in NOT_RUN:
            continue
        if arguments[0] == "evaluate":
            arguments += ["--num-workers", "0"]  # on one core PyTorch warns of the default
        outcome = CommandLine(monkeypatch, capsys)(*arguments)
        assert outcome.code == 0, outcome.err
