"""Sound files, which hostile inputs are made from and tried with."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deformable_detr.builders import build_model
from deformable_detr.config.loading import load_config, to_yaml
from deformable_detr.engine.checkpoints.checkpoint import Checkpoint, save_checkpoint
from deformable_detr.environment import current_versions
from deformable_detr.labels import LabelSpace

PHOTO_SIZE = (48, 40)  # (width, height)
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
SETTINGS = (
    "model.backbone={kind: timm, name: test_resnet, out_strides: [16, 32], weights: none}",
    "model.neck.num_levels=2",
    "model.embed_dim=64",
    "model.attention.num_heads=2",
    "model.encoder.num_layers=1",
    "model.encoder.ffn_dim=16",
    "model.decoder.num_layers=1",
    "model.decoder.ffn_dim=16",
    "model.queries.num_queries=5",
    "data.augmentation.sizes=[48]",
    "data.augmentation.pre_crop_sizes=[48]",
    "data.augmentation.crop_sizes=[32, 48]",
    "data.eval_size=48",
    "data.eval_max_size=96",
    "data.num_workers=0",
    "train.total_batch=2",
    "train.micro_batch=2",
    "train.max_steps=1",
    "train.log_every=1",
)


@dataclass(frozen=True)
class Sound:
    """A folder with photos, annotations, results, a config and a run."""

    folder: Path

    @property
    def photos(self) -> Path:
        """Folder of the photos."""
        return self.folder / "photos"

    @property
    def runs(self) -> Path:
        """Folder of the checkpoint."""
        return self.folder / "runs"

    @property
    def checkpoint(self) -> Path:
        """Checkpoint of an untrained detector."""
        return self.runs / "last.pth"

    @property
    def annotations(self) -> Path:
        """COCO annotations of the photos."""
        return self.folder / "annotations.json"

    @property
    def results(self) -> Path:
        """COCO results for these annotations."""
        return self.folder / "results.json"

    @property
    def config(self) -> Path:
        """Config of a small detector."""
        return self.folder / "config.yaml"


def write_sound(folder: Path) -> Sound:
    """Write the files to a new folder."""
    sound = Sound(folder)
    sound.photos.mkdir(parents=True)
    random = np.random.default_rng(0)
    width, height = PHOTO_SIZE
    for number in range(1, 4):
        pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(sound.photos / f"{number}.png")
    sound.annotations.write_text(json.dumps(annotations()))
    sound.results.write_text(json.dumps(results()))
    sound.config.write_text(to_yaml(load_config("deformable_detr_r50", SETTINGS)))
    sound.runs.mkdir()
    _write_checkpoint(sound)
    return sound


def annotations() -> dict[str, Any]:
    """Return sound annotations of the photos."""
    width, height = PHOTO_SIZE
    return {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": width, "height": height}
            for n in range(1, 4)
        ],
        "annotations": [
            {
                "id": n,
                "image_id": 1 + n % 3,
                "category_id": CATEGORIES[n % 2]["id"],
                "bbox": [2 + n, 3, 12.5, 9],
                "area": 112.5,
                "iscrowd": 0,
            }
            for n in range(1, 6)
        ],
        "categories": [dict(one) for one in CATEGORIES],
    }


def results() -> list[dict[str, Any]]:
    """Return sound results for the annotations."""
    return [
        {"image_id": n, "category_id": 3, "bbox": [2, 3, 12, 9], "score": 0.25 * n}
        for n in range(1, 4)
    ]


def _write_checkpoint(sound: Sound) -> None:
    config = load_config(sound.config)
    torch.manual_seed(0)
    space = LabelSpace.from_categories(CATEGORIES)
    model = build_model(config, num_classes=space.num_classes)
    checkpoint = Checkpoint(
        model=model.state_dict(),
        ema=None,
        optimizer={},
        epoch=1,
        step=1,
        best_ap=None,
        label_space=space,
        config=config.model_dump(mode="json"),
        versions=current_versions(),
    )
    save_checkpoint(sound.checkpoint, checkpoint)
