"""Images of one and of four channels, through the command line: from training to pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.command_line import CommandLine, Outcome
from helpers.small_run import SMALL_RUN, data_settings
from PIL import Image

from deformable_detr import Detector
from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint

CONFIG = "deformable_detr_r50_two_stage"
RATES = "train.optimizer={lr: 1e-3, lr_backbone: 1e-4, lr_sampling: 1e-4}"
CROPS = "data.augmentation={kind: zoom_crop, size: 48, color_jitter: 0.3, soften: 0.5}"


def done(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


def as_arrays(files: CocoFiles) -> CocoFiles:
    """Replace the images by 16-bit arrays of four channels, in which only the last has objects."""
    record = files.read()
    random = np.random.default_rng(0)
    for image in record["images"]:
        file = files.images / image["file_name"]
        colors = np.asarray(Image.open(file)).astype(np.int32)
        noise = random.integers(0, 2**16, (*colors.shape[:2], 3))
        pixels = np.dstack([noise, 257 * (255 + colors[..., 0] - colors[..., 2]) // 2])
        file.unlink()
        image["file_name"] = Path(image["file_name"]).stem + ".npy"
        np.save(files.images / image["file_name"], pixels.astype(np.uint16))
    files.write(record)
    return files


def in_gray(files: CocoFiles) -> CocoFiles:
    for file in files.images.iterdir():
        Image.open(file).convert("L").save(file)
    return files


@pytest.mark.slow
@pytest.mark.parametrize("channels", [4, 1])
def test_channels_are_trained_evaluated_predicted_and_resumed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    channels: int,
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    run = CommandLine(monkeypatch, capsys)
    files = (as_arrays if channels == 4 else in_gray)(write_coco_set(tmp_path / "data"))
    setting = f"model.backbone.in_channels={channels}"

    def train(folder: Path, *more: str | Path) -> Outcome:
        options = ("--config", CONFIG, "--device", "cpu", "--run-dir", folder)
        data = (*SMALL_RUN, *data_settings(files, files), CROPS, RATES, setting)
        return done(run("train", *options, *data, *more))

    train(tmp_path / "whole", "train.max_steps=4")
    train(tmp_path / "halves", "train.max_steps=2")
    train(tmp_path / "halves", "train.max_steps=4", "--resume", "auto")
    whole, halves = (load_checkpoint(tmp_path / name / "last.pth") for name in ("whole", "halves"))
    assert whole.step == halves.step == 4
    assert whole.model["backbone.body.conv1.weight"].shape[1] == channels
    assert all(bool((value == halves.model[name]).all()) for name, value in whole.model.items())

    checkpoint = tmp_path / "whole" / "last.pth"
    data = ("--images", files.images, "--annotations", files.annotations)
    done(run("evaluate", "--checkpoint", checkpoint, *data, "--out", tmp_path / "found.json"))
    evaluated = json.loads((tmp_path / "found.json").read_text())
    assert {entry["image_id"] for entry in evaluated} == {1, 2, 3, 4}

    # Without a detection, pictures are the images: the first three channels, or gray.
    image, out = min(files.images.iterdir()), tmp_path / "pictures"
    done(run("predict", "--checkpoint", checkpoint, "--threshold", "1", "--out", out, files.images))
    pixels = np.load(image) if channels == 4 else np.asarray(Image.open(image))
    expected = pixels[..., :3] if channels == 4 else np.dstack([pixels] * 3)
    small = np.asarray(Image.open(out / "0001.png").reduce(8))  # pictures enlarge small images
    similar = np.corrcoef(small.reshape(-1, 3).T, expected.reshape(-1, 3).T)[:3, 3:]
    assert small.shape == expected.shape
    assert ((similar > 0.9) == (np.eye(3) if channels == 4 else np.ones((3, 3)))).all()
    done(run("explain", "--checkpoint", checkpoint, "--out", tmp_path / "looks", image))
    done(run("report", tmp_path / "whole"))
    assert "data:image/jpeg" in (tmp_path / "whole" / "report.html").read_text("utf-8")

    # A file and its array are the same image.
    detector = Detector.from_checkpoint(checkpoint, "cpu")
    of_file, of_array = (detector.predict(one, threshold=0) for one in (image, pixels))
    assert bool((of_file.scores == of_array.scores).all())
    assert len(of_file) > 0

    np.save(tmp_path / "other.npy", np.zeros((8, 9, channels + 1), np.uint8))
    refused = run.fails("predict", "--checkpoint", checkpoint, "--out", out, tmp_path / "other.npy")
    assert f"other.npy must have {channels} channel" in refused
