"""Every command and program of README and docs runs, in one folder and with small models.

The pages about other implementations have a test of their own, with those implementations' files.
"""

import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.command_line import CommandLine
from helpers.dataset_formats import write_voc, write_yolo
from helpers.foreign_files import small_config, write_foreign
from PIL import Image

from deformable_detr.config import loading
from deformable_detr.finite import to_json
from deformable_detr.preset import constants
from deformable_detr.workflows import overfitting

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# How a command begins that is not run here, and why.
NOT_RUN = {
    "./scripts/quickstart.sh": "continuous integration runs it after the tests",
    "python -m venv": "installs; continuous integration does",
    "pip install": "installs; continuous integration does",
    "TORCH_CUDA_ARCH_LIST=": "compiles CUDA; tests/kernels does",
    "deformable-detr data": "fetches files; tests/unit/quickstart does from files of its own",
    "deformable-detr doctor": "needs a failed run; tests/unit/cli/test_doctor_bundle.py has one",
    "deformable-detr benchmark": "takes minutes; tests/unit/benchmark runs its parts",
    ".venv/bin/python scripts/compare_configs.py": "takes hours; has a test of its own",
    "torchrun": "starts processes; tests/distributed does",
    "NPROC_PER_NODE=": "starts processes; tests/distributed does",
    "sbatch": "needs Slurm",
}
SMALL = (
    "train.max_steps=1",
    "train.total_batch=2",
    "train.micro_batch=2",
    "data.num_workers=0",
    "data.augmentation={kind: none, size: 48, max_size: 64}",
    "data.eval_size=48",
    "data.eval_max_size=64",
)
CATEGORIES = {1: "person", 90: "toothbrush"}


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command of a page that is to be run."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if line and not line.startswith(tuple(NOT_RUN)):
                yield shlex.split(line, comments=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, configs and weights under the names that the pages use."""
    folder = tmp_path_factory.mktemp("pages")
    for split in ("photos/train", "photos/val", "data/trees/val", "data/trees/ood"):
        files = write_coco_set(folder / "parts" / split, num_images=4, categories=CATEGORIES)
        (folder / split).parent.mkdir(parents=True, exist_ok=True)
        files.images.rename(folder / split)
        files.annotations.rename(folder / f"{split}.json")
    sets = {}
    for split in ("train", "val"):
        sets[split] = write_coco_set(folder / "parts" / f"nuclei_{split}", num_images=4)
        shutil.copytree(sets[split].images, folder / "nuclei" / split)
        shutil.copyfile(sets[split].annotations, folder / "nuclei" / f"{split}.json")
    write_yolo(folder / "nuclei_yolo", **sets)
    write_voc(folder / "nuclei_voc", **sets)
    _write_arrays(folder / "multispectral", sets)
    shutil.copyfile(folder / "photos/train.json", folder / "photos/old_and_new.json")
    shutil.copytree(folder / "photos/val", folder / "photos/new")
    shutil.copyfile(folder / "photos/train.json", folder / "JSON")
    shutil.copytree(folder / "photos/train", folder / "DIR")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for name in ("photo.jpg", "photos/val/0001.jpg"):
        Image.fromarray(pixels).save(folder / name)
    official = write_foreign(folder, "official", "multi_scale")
    shutil.copyfile(official, folder / "old.pth")
    official.rename(folder / "r50_deformable_detr-checkpoint.pth")
    return folder


def _write_arrays(folder: Path, sets: dict[str, CocoFiles]) -> None:
    """Write a data set of arrays of four channels."""
    for split, files in sets.items():
        record = files.read()
        (folder / split).mkdir(parents=True)
        for entry in record["images"]:
            entry["file_name"] = Path(entry["file_name"]).with_suffix(".npy").name
            shape = (entry["height"], entry["width"], 4)
            np.save(folder / split / entry["file_name"], np.full(shape, 7, np.uint8))
        (folder / f"{split}.json").write_text(to_json(record, "annotations"))


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `folder` the current one, small configs those of the package, and checks short."""
    places = {
        f"data.{split}.{key}": str(folder / "photos" / f"{split}{suffix}")
        for split in ("train", "val")
        for key, suffix in (("images", ""), ("annotations", ".json"))
    }
    (folder / "configs").mkdir(exist_ok=True)
    for name in (*loading.config_names(), "NAME"):
        if "/" not in name:
            is_two_stage = name in ("deformable_detr_r50_two_stage", "quickstart")
            variant = "two_stage" if is_two_stage else "multi_scale"
            config = loading.load_config(small_config(variant, *SMALL), places)
            (folder / "configs" / f"{name}.yaml").write_text(loading.to_yaml(config))
    monkeypatch.setattr(loading, "_CONFIGS", folder / "configs")
    monkeypatch.setattr(overfitting, "STEPS", 2)
    monkeypatch.setattr(overfitting, "_WARMUP_STEPS", 1)
    for name, steps in (("STEPS", 2), ("LEAST_STEPS", 2), ("EPOCH_STEPS", 1)):  # of the preset
        monkeypatch.setattr(constants, name, steps)
    monkeypatch.setattr(constants, "LEAST_SIDE", 64)
    monkeypatch.setattr(constants, "MOST_PIXELS", {"cpu": 64 * 96, "gpu": 64 * 96})
    monkeypatch.chdir(folder)
    return folder


def make_room(arguments: list[str]) -> None:
    """Delete the run that a command starts, as pages show several commands for one folder."""
    if arguments[0] != "train" or "--resume" in arguments:
        return
    option = "--config" if "--config" in arguments else "--data"
    name = Path(arguments[arguments.index(option) + 1]).stem
    run = f"runs/{name}_overfit" if "--overfit" in arguments else f"runs/{name}"
    if "--run-dir" in arguments:
        run = arguments[arguments.index("--run-dir") + 1]
    shutil.rmtree(run, ignore_errors=True)


def given(folder: Path) -> dict[str, Any]:
    """Return the values that programs of the pages take from their context."""
    from deformable_detr import Detector

    checkpoint = folder / "r50_deformable_detr-checkpoint.pth"
    image = torch.randn(3, 48, 64)
    objects = [(torch.rand(1, 4) * 0.3 + 0.3, torch.tensor([1]))] * 2
    return {
        "detector": Detector.from_checkpoint(checkpoint, "cpu"),
        "image": image,
        "other": image,
        "objects": objects,
        "__name__": "__main__",
    }


# The default number of loading processes, for one core.
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_program_of_the_page_runs(
    page: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = CommandLine(monkeypatch, capsys)
    if not (here / "runs" / "quickstart" / "last.pth").is_file():
        assert run("train", "--config", "quickstart", "--device", "cpu").code == 0
    for words in commands(page):
        if words[:2] == ["python", "-m"]:
            sys.modules.pop(f"{words[2]}.__main__", None)  # runpy warns of a second copy
            runpy.run_module(words[2], run_name="__main__")
            continue
        assert words[0] == "deformable-detr", words
        make_room(words[1:])
        outcome = run(*words[1:])
        assert outcome.code == 0, f"{shlex.join(words)}: {outcome.err}"
    for program in blocks(page, "python"):
        shutil.rmtree("runs/deformable_detr_r50_two_stage", ignore_errors=True)
        exec(compile(program, page.name, "exec"), given(here))
    for name in ("MultiScaleDeformableAttention", "deformable_detr.compat.msda"):
        sys.modules.pop(name, None)  # other tests import the drop-in themselves
