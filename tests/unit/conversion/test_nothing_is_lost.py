"""What `convert` writes in any format is read back whole: settings, classes, sizes and weights."""

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.other_settings import compared_with_defaults, other_settings
from helpers.transformers_oracle import randomize

from deformable_detr import Detector
from deformable_detr.builders import build_model
from deformable_detr.config import RunConfig
from deformable_detr.config.loading import load_config, load_run_config, to_yaml, validate_config
from deformable_detr.conversion.files import read_weights
from deformable_detr.data.transforms import Resize
from deformable_detr.engine.checkpoints.checkpoint import Checkpoint, save_checkpoint
from deformable_detr.environment import current_versions
from deformable_detr.labels import LabelSpace
from deformable_detr.workflows.conversion import Target, convert
from deformable_detr.workflows.finetuning import FinetuneSource

TARGETS: tuple[Target, ...] = ("official", "transformers", "detrex", "mmdet", "native")
DINO_TARGETS: tuple[Target, ...] = ("dino", "detrex-dino", "mmdet-dino")
SPACE = LabelSpace((3, 7, 11), ("Äpfel 苹果", "no", "N/A"))

# Settings that every target can hold in this form only, small enough to build in no time.
_HELD = {
    "model.backbone.kind": "resnet",
    "model.backbone.conv.kind": "plain",
    "model.neck.kind": "channel_mapper",
    "model.neck.num_levels": 2,
    "model.embed_dim": 64,
    "model.attention.num_heads": 4,
    "model.attention.backend": "reference",
    "model.encoder.num_layers": 1,
    "model.encoder.ffn_dim": 32,
    "model.encoder.num_points": 3,
    "model.decoder.num_layers": 2,
    "model.decoder.ffn_dim": 48,
    "model.decoder.num_points": 5,
    "data.eval_size": 321,
    "data.eval_max_size": 777,
    "train.total_batch": 12,
    "train.micro_batch": 3,
}
_SINE = {
    "model.position.kind": "sine",
    "model.position.temperature": 10000.0,
    "model.position.offset": -0.5,
}
_LEARNED_POSITION = {"model.position.kind": "learned", "model.position.max_cells": 50}
_PLAIN_DECODER = {"model.decoder.position": "query", "model.decoder.look_forward_twice": False}
_OWN_HEADS = {"model.decoder.share_heads": False}
_TWO_STAGE = _PLAIN_DECODER | {
    "model.queries.kind": "two_stage",
    "model.queries.content": "box",
    "model.queries.ranking": "objectness",
    "model.queries.base_size": 0.05,
    "model.queries.center_offset": "image",
    "model.decoder.share_heads": False,
}
_DINO = {
    "model.position.kind": "sine",
    "model.position.offset": 0.0,
    "model.queries.kind": "two_stage",
    "model.queries.content": "learned",
    "model.queries.base_size": 0.05,
    "model.queries.center_offset": "image",
}
_ONE_STAGE = _PLAIN_DECODER | {"model.queries.kind": "learned", "model.denoising": None}
_RESNET18 = {
    "model.backbone.depth": 18,
    "model.backbone.dilation": False,
    "model.backbone.out_strides": [8, 16],
}
_TIMM = {
    "model.backbone.kind": "timm",
    "model.backbone.name": "resnet18",
    "model.backbone.out_strides": [8, 16],
}
_DILATED = {
    "model.backbone.depth": 50,
    "model.backbone.dilation": True,
    "model.backbone.out_strides": [8],
}
_FROZEN_NORM = {"model.backbone.norm": "frozen_batch_norm"}
_NO_MIMICKING: dict[str, Any] = {"model.mimicking": None}
_SHARED_HEADS = {"model.decoder.box_refinement": False}
_OTHER_KINDS = {
    "match_official": False,
    "data.augmentation.kind": "coco",
    "train.schedule.kind": "step",
    "train.optimizer.kind": "adamw",
}
_OWN_PARTS = _TIMM | {
    "model.backbone.conv.kind": "modulated_deform",
    "model.backbone.conv.strides": [16],
    "model.backbone.conv.mask_scale": 1.0,
    "model.neck.kind": "asff",
    "model.position.kind": "learned",
    "model.queries.kind": "two_stage",
    "model.mimicking": None,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "one_stage": _RESNET18 | _SINE | _ONE_STAGE | _NO_MIMICKING | _SHARED_HEADS,
    "refine": _DILATED | _SINE | _ONE_STAGE | _OWN_HEADS | _FROZEN_NORM,
    "two_stage": _TIMM | _SINE | _TWO_STAGE | _NO_MIMICKING | _OTHER_KINDS,
    "learned_position": _RESNET18
    | _LEARNED_POSITION
    | _ONE_STAGE
    | _OWN_HEADS
    | _FROZEN_NORM
    | {"data.augmentation.kind": "none"},
    "dino": _RESNET18 | _DINO | _NO_MIMICKING,
    "dino_untrained": _RESNET18 | _DINO | _OWN_HEADS | _NO_MIMICKING,
    "own_parts": _OWN_PARTS,
}
# Targets that have no such model.
LACKING: dict[str, tuple[Target, ...]] = {
    "learned_position": ("detrex", "mmdet"),
    "own_parts": ("official", "transformers", "detrex", "mmdet", "dino"),
}
CASES = [
    (variant, target)
    for variant in VARIANTS
    for target in ((*DINO_TARGETS, "native") if variant.startswith("dino") else TARGETS)
    if target == "native" or target not in LACKING.get(variant, ())
]


@functools.cache
def config_of(variant: str) -> RunConfig:
    content = other_settings(_HELD | VARIANTS[variant])
    return validate_config(content, source=variant)


def labels_of(config: RunConfig) -> LabelSpace:
    return SPACE.with_raw_labels() if config.match_official else SPACE


@functools.cache
def weights_of(variant: str) -> dict[str, torch.Tensor]:
    config = config_of(variant)
    num_classes = labels_of(config).num_classes
    model = build_model(config, num_classes=num_classes, load_backbone_weights=False)
    randomize(model)
    state = model.state_dict()
    if variant == "dino_untrained":  # the heads of all layers are equal, but not the same
        for name, tensor in state.items():
            if ".class_heads." in name or ".box_heads." in name:
                tensor.copy_(state[re.sub(r"heads\.\d+", "heads.0", name)])
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(123)
    return state


def write_checkpoint(path: Path, variant: str) -> Path:
    """Write a checkpoint whose moving average is what is used, not the weights themselves."""
    config, state = config_of(variant), weights_of(variant)
    checkpoint = Checkpoint(
        model={name: torch.zeros_like(tensor) for name, tensor in state.items()},
        ema=state,
        optimizer={},
        epoch=1,
        step=1,
        best_ap=None,
        label_space=labels_of(config),
        config=config.model_dump(mode="json"),
        versions=current_versions(),
    )
    save_checkpoint(path, checkpoint)
    return path


def test_every_setting_differs_from_its_default_in_one_of_the_variants() -> None:
    compared = [
        item
        for variant in VARIANTS
        for item in compared_with_defaults(config_of(variant).model_dump(mode="json"))
    ]
    changed = {key for key, is_default in compared if not is_default}
    assert {key for key, _ in compared} - changed == set()


@pytest.mark.parametrize(("variant", "target"), CASES)
def test_converted_file_holds_all_of_the_checkpoint(
    tmp_path: Path, variant: str, target: Target
) -> None:
    config, state = config_of(variant), weights_of(variant)
    out = tmp_path / "out"
    convert(write_checkpoint(tmp_path / "in.pth", variant), out, to=target)

    weights = read_weights(out)
    detector = Detector.from_checkpoint(out, device="cpu")

    assert weights.source == target
    assert weights.config == config.model_dump(mode="json")
    assert weights.assumed == ()
    assert weights.label_space == detector.label_space == labels_of(config)
    assert FinetuneSource.read(out).label_space == labels_of(config)
    assert weights.state_dict.keys() == state.keys()
    assert all(torch.equal(weights.state_dict[name], tensor) for name, tensor in state.items())
    assert detector.transform == Resize(321, 777)
    loaded = detector.model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("variant", "target"), [(variant, target) for variant in LACKING for target in LACKING[variant]]
)
def test_target_that_lacks_the_model_is_refused(
    tmp_path: Path, variant: str, target: Target
) -> None:
    source = write_checkpoint(tmp_path / "in.pth", variant)
    with pytest.raises(ValueError, match=r"^(model|two-stage queries) must have "):
        convert(source, tmp_path / "out", to=target)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_of_a_run_folder_holds_every_setting(tmp_path: Path, variant: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config_of(variant)), encoding="utf-8")
    assert load_run_config(path) == load_config(path) == config_of(variant)
