"""Training from a folder alone: the preset is used, said and written; its start."""

import logging
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from helpers.coco_files import write_coco_set
from helpers.tiny_checkpoint import write_checkpoint

from deformable_detr.config.loading import load_config, load_run_config
from deformable_detr.workflows import training
from deformable_detr.workflows.before_training.preset import choose_preset

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a data folder of the standard layout."""
    folder = tmp_path_factory.mktemp("own")
    for seed, name in enumerate(("train", "val")):
        files = write_coco_set(folder / f"{name}_set", num_images=6, size=(96, 128), seed=seed)
        files.images.rename(folder / name)
        shutil.move(files.annotations, folder / f"{name}.json")
    return folder


def data_of(folder: Path) -> dict[str, str]:
    return {
        f"data.{name}.{key}": str(folder / f"{name}{suffix}")
        for name in ("train", "val")
        for key, suffix in (("images", ""), ("annotations", ".json"))
    }


def test_train_with_data_alone_uses_writes_and_says_the_preset(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)  # no weights here
    caplog.set_level(logging.INFO)
    preset = choose_preset(data_of(folder), finetune_from=None, device=CPU)

    def fit(_: object, loop: Any) -> None:
        loop.folder.last.touch()

    with patch.multiple(training, fit=fit, report_after_training=lambda *_: None):
        run = tmp_path / "run"
        overrides: dict[str, Any] = {"train.seed": 7}
        training.train(data=folder, overrides=overrides, run_dir=run, device="cpu")
        overrides["data.image_order"] = "file_name"
        assert load_run_config(run / "config.yaml") == load_config(preset.config, overrides)
    said = [text for text in caplog.messages if text in preset.reasons]
    assert said == list(preset.reasons)
    assert "start    random" in said[-1]
    at = caplog.messages.index(said[0])
    assert caplog.messages[at - 1] == "preset   chosen for the data, before overrides:"
    before = [one[:9].rstrip() for one in caplog.messages[: at - 1]]
    assert [name for name in before if name] == ["run", "data", "model", "length", "rates"]
    numbers = next(one for one in caplog.messages if one.startswith("data "))
    assert numbers.startswith("data     COCO JSON in ")
    assert (run / "annotations" / "decisions.txt").read_text() == f"{numbers[9:]}\n"
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


def test_channels_are_those_of_arrays(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "arrays"
    shutil.copytree(folder, own)
    for file in (own / "train").iterdir():
        np.save(file.with_suffix(".npy"), np.zeros((96, 128, 5), np.uint16))
        file.unlink()
    annotations = own / "train.json"
    annotations.write_text(annotations.read_text().replace(".png", ".npy"))
    found = choose_preset(data_of(own), finetune_from=None, device=CPU)
    assert found.config.model.backbone.in_channels == 5
    assert "channels 5, as in the training images" in found.reasons
    assert len(found.reasons) <= 8


def test_a_start_from_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("data/weights/mobilenet_v2-b0353104.pth")
    file.parent.mkdir(parents=True)
    file.touch()
    found = choose_preset(data_of(folder), finetune_from=None, device=CPU)
    assert found.config.model.backbone.weights == str(file)
    assert found.reasons[-1] == f"start    the backbone of {file.name}"

    checkpoint = tmp_path / "detector.pth"
    write_checkpoint(checkpoint)
    tuned = choose_preset(data_of(folder), finetune_from=checkpoint, device=CPU)
    kept = torch.load(checkpoint, map_location="cpu", weights_only=True)["config"]["model"]
    assert tuned.config.model.model_dump(mode="json") == kept
    assert tuned.config.data.eval_size == found.config.data.eval_size
    assert tuned.reasons[-1] == "start    the detector of detector.pth"


def test_warmup_and_average_fit_an_overridden_length(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    preset = choose_preset(data_of(folder), finetune_from=None, device=CPU)

    def fitted(*overrides: str) -> tuple[int, float]:
        train = preset.overridden(overrides).train
        return train.schedule.warmup_steps, train.ema_decay

    assert fitted("train.seed=3") == (10, preset.config.train.ema_decay)  # of 350 steps
    assert fitted("train.max_steps=12") == (6, 0.97)
    assert fitted("train.epochs=400") == (300, 0.999)  # of 10,000 steps
    assert fitted("train.epochs=400", "train.ema_decay=0.5") == (300, 0.5)
    assert preset.overridden(["train.max_steps=12"]).train.max_steps == 12
