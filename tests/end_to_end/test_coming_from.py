"""The commands and programs on the pages about other implementations run as they stand."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.coco_files import write_coco_set
from helpers.command_line import CommandLine
from helpers.foreign_files import write_foreign
from PIL import Image

from deformable_detr.conversion.coco_categories import COCO
from deformable_detr.conversion.files import read_weights

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "coming_from"
# The file that each page begins with, and the small model in it.
GIVEN = {
    "official": ("official", "r50_deformable_detr-checkpoint.pth", "multi_scale"),
    "transformers": ("transformers", "deformable-detr", "two_stage"),
    "detrex": ("detrex", "deformable_detr_with_box_refinement_50ep.pth", "refine"),
    "mmdetection": ("mmdet", "deformable-detr_r50_16xb2-50e_coco.pth", "multi_scale"),
    "dino": ("dino", "checkpoint0011_4scale.pth", "two_stage"),
}
# Last file that each page writes.
LAST = {
    "official": "back.pth",
    "transformers": "for-transformers",
    "detrex": "for_detrex.pth",
    "mmdetection": "for_mmdetection.pth",
    "dino": "back.pth",
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


def blocks(page: str, language: str) -> list[str]:
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    return [shlex.split(line) for block in blocks(page, "bash") for line in block.splitlines()]


def write_inputs(folder: Path, page: str) -> None:
    source, name, variant = GIVEN[page]
    write_foreign(folder, source, variant).rename(folder / name)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.jpg")
    files = write_coco_set(folder / "set", num_images=1, categories={1: "person", 90: "toothbrush"})
    files.write({**files.read(), "categories": COCO.to_json()})
    (folder / "coco" / "annotations").mkdir(parents=True)
    files.images.rename(folder / "coco" / "val2017")
    files.annotations.rename(folder / "coco" / "annotations" / "instances_val2017.json")


def test_there_is_a_page_for_every_source() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} == set(GIVEN)


@pytest.mark.parametrize("page", GIVEN)
def test_every_command_and_program_on_the_page_runs(
    page: str,
    run: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path, page)
    source, name, _ = GIVEN[page]

    for program, *arguments in commands(page):
        assert program == "deformable-detr"
        if arguments[0] == "evaluate":
            arguments += ["--num-workers", "0"]  # PyTorch warns about the default on one core
        outcome = run(*arguments)
        assert outcome.code == 0, outcome.err
    for code in blocks(page, "python"):
        exec(compile(code, f"{page}.md", "exec"), {})

    assert capsys.readouterr().out  # the program prints its results
    assert (tmp_path / "pictures" / "detections.json").is_file()
    given, last = read_weights(tmp_path / name), read_weights(tmp_path / LAST[page])
    assert last.source == source
    assert given.label_space == last.label_space
    assert given.state_dict.keys() == last.state_dict.keys()
    assert all(torch.equal(last.state_dict[key], t) for key, t in given.state_dict.items())


@pytest.mark.parametrize("page", GIVEN)
def test_the_readme_links_the_page(page: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"(docs/coming_from/{page}.md)" in readme
