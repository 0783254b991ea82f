"""Small weight files in the formats of other implementations."""

import functools
from pathlib import Path

import torch
from helpers.models import DINO, VARIANTS, reduced_config
from helpers.transformers_oracle import randomize
from safetensors.torch import load_file, save_file

from deformable_detr.builders import build_model
from deformable_detr.config import RunConfig
from deformable_detr.conversion.coco_categories import COCO
from deformable_detr.conversion.recognition import DINO_SOURCES
from deformable_detr.conversion.stored import KEY
from deformable_detr.conversion.writing import write_weights
from deformable_detr.labels import LabelSpace
from deformable_detr.models.deformable_detr import DeformableDETR

FILE_NAMES = {
    "official": "official.pth",
    "transformers": "transformers",
    "detrex": "detrex.pth",
    "mmdet": "mmdet.pth",
}
DINO_FILE_NAMES = {source: f"{source}.pth" for source in DINO_SOURCES}
# ResNet-18 without its last stage, which has most of the weights.
_SMALL = ("model.backbone.out_strides=[8, 16]", "model.neck.num_levels=3")
# Settings assumed for a file without options.
_HEADS = ("model.attention.num_heads=8",)


def small_config(variant: str, *overrides: str) -> RunConfig:
    levels = () if variant.startswith("single") else _SMALL
    return reduced_config(VARIANTS[variant], *_HEADS, *levels, *overrides)


@functools.cache
def small_model(variant: str, *overrides: str, num_classes: int = 80) -> DeformableDETR:
    """Return a model in eval mode with random weights; tests must not change it."""
    config = small_config(variant, *overrides)
    model = build_model(config, num_classes=num_classes)
    randomize(model)
    return model.eval()


def write_foreign(
    folder: Path,
    source: str,
    variant: str = "refine",
    *overrides: str,
    label_space: LabelSpace = COCO,
) -> Path:
    """Write the small model in the format of `source`, and return the path.

    For a source of DINO, the variant gets its settings.
    """
    path = folder / (FILE_NAMES | DINO_FILE_NAMES)[source]
    if source in DINO_FILE_NAMES:
        overrides = (*DINO, *overrides)
    write_weights(
        path,
        small_model(variant, *overrides, num_classes=label_space.num_classes),
        to=source,
        label_space=label_space,
        config=small_config(variant, *overrides).model_dump(mode="json"),
    )
    return path


def without_stored(path: Path) -> Path:
    """Remove what only this package reads from a written file, as if another had written it."""
    if path.is_dir():
        file = path / "model.safetensors"
        save_file(load_file(file), file, metadata={"format": "pt"})
    else:
        content = torch.load(path, weights_only=True)
        del content[KEY]
        torch.save(content, path)
    return path
