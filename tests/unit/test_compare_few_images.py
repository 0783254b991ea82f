"""Comparison of detectors on few images: it continues, and trains what it says."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from few_images import faster_rcnn
from few_images.measured import DivergedError, Run, seconds_per_step, steps_in
from few_images.preset import train_preset
from helpers.coco_files import write_coco_set
from helpers.scripts import load_script

SMALL = (
    "data.augmentation={kind: none, size: 64, max_size: 96}",
    "data.eval_size=64",
    "data.eval_max_size=96",
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a data set and, where the preset looks for them, random weights of the backbone."""
    monkeypatch.chdir(tmp_path)
    for seed, split in enumerate(("train", "val")):
        files = write_coco_set(tmp_path / f"{split}_set", num_images=4, seed=seed)
        files.images.rename(tmp_path / split)
        shutil.move(files.annotations, tmp_path / f"{split}.json")
    weights = tmp_path / "data" / "weights" / "mobilenet_v2-b0353104.pth"
    weights.parent.mkdir(parents=True)
    torch.save(torchvision.models.mobilenet_v2().state_dict(), weights)
    return tmp_path


def test_runs_in_the_file_are_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("compare_few_images")
    runs: list[dict[str, Any]] = []

    def run(key: dict[str, Any]) -> dict[str, Any]:
        runs.append(key)
        scores = dict.fromkeys(("AP", "AP50", "AP75"), 0.1 + 0.2 * key["seed"])
        return {"steps": key.get("steps", 7), "training_seconds": 30.0, **scores}

    monkeypatch.setattr(script, "in_own_process", run)
    out = tmp_path / "runs.jsonl"
    command = ["compare.py", "preset", "faster_rcnn lr=0.1", "--data", str(tmp_path)]
    command += ["--minutes", "3", "--steps", "7", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    script.main()
    assert len(runs) == 4  # the steps of a run of minutes are not those that were asked for
    monkeypatch.setattr(sys, "argv", [*command, "--seeds", "0", "1"])
    script.main()
    assert [one["seed"] for one in runs[4:]] == [1] * 4
    assert len(out.read_text().splitlines()) == 8
    assert capsys.readouterr().out.splitlines()[-1] == (
        "| faster_rcnn lr=0.1 | 7 steps | 2 | 7 | 30 | 0.200 (0.100 to 0.300) | "
        "0.200 (0.100 to 0.300) | 0.200 (0.100 to 0.300) |"
    )
    assert json.loads(out.read_text().splitlines()[0])["arm"] == "preset"


def test_a_run_that_diverges_ends_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_script("compare_few_images")

    def run(key: dict[str, Any]) -> dict[str, Any]:
        raise DivergedError("the loss of step 3 is nan")

    monkeypatch.setattr(script, "in_own_process", run)
    command = ["compare.py", "faster_rcnn lr=9", "--data", str(tmp_path), "--steps", "7"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "runs.jsonl")])
    with pytest.raises(SystemExit, match=r"error: faster_rcnn lr=9, seed 0: the loss of step 3"):
        script.main()
    assert not (tmp_path / "runs.jsonl").exists()


def test_steps_fit_into_the_time_without_the_slow_first_ones() -> None:
    marks = [(step, 100.0 + 2.0 * (step > 5) + 0.5 * step) for step in range(1, 31)]
    assert seconds_per_step(marks) == pytest.approx(0.5)
    assert steps_in(1.5, lambda steps: Run(0.5, {})) == 180


def test_preset_is_trained_for_the_steps(data: Path) -> None:
    found = train_preset(data, SMALL, seed=0, steps=3, folder=data / "run")
    assert found.step_seconds > 0
    assert {*found.metrics} == {"AP", "AP50", "AP75"}
    kept = torch.load(data / "run" / "last.pth", weights_only=True)
    assert kept["step"] == 3


def test_faster_rcnn_sees_the_images_of_the_preset(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    made = []

    def train(model: Any, config: Any, opened: Any, *, lr: float, steps: int) -> Any:
        made.append(model)
        for batch in faster_rcnn._batches(opened, steps):
            images, targets = faster_rcnn._unpadded(batch)
            seen.extend(tuple(image.shape[1:]) for image in images)
            assert all(float(one["boxes"].max()) <= 96 + 1e-3 for one in targets)
            assert {int(label) for one in targets for label in one["labels"]} <= {1, 2}
        assert lr == 0.01
        return [(1, 0.0), (2, 1.0), (3, 2.0)]

    monkeypatch.setattr(faster_rcnn, "_train", train)
    settings = (*SMALL, "lr=0.01", "train.micro_batch=2")
    found = faster_rcnn.train_faster_rcnn(data, settings, seed=0, steps=3, folder=data / "run")
    assert found.step_seconds == 1
    assert all(0 <= value <= 1 for value in found.metrics.values())
    assert {*seen} == {(64, 85)}
    sizes = [size for (size,) in made[0].rpn.anchor_generator.sizes]
    record = json.loads((data / "train.json").read_text())
    sides = np.sqrt([one["bbox"][2] * one["bbox"][3] for one in record["annotations"]]) * 64 / 96
    assert min(sides) - 1 <= sizes[0] < sizes[-1] <= max(sides) + 1
