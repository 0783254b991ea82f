"""Checkpoint of an untrained detector, small enough to build and run within one second."""

from dataclasses import replace
from pathlib import Path

import torch
from helpers.models import randomize_weights

from deformable_detr.builders import build_model
from deformable_detr.config import (
    AttentionConfig,
    ChannelMapperConfig,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    LearnedQueriesConfig,
    ModelConfig,
    ResNetConfig,
    RunConfig,
)
from deformable_detr.engine.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from deformable_detr.environment import current_versions
from deformable_detr.labels import LabelSpace
from deformable_detr.models.deformable_detr import DeformableDETR

LABEL_SPACE = LabelSpace((0, 7, 90), ("cat", "dog", "tree"))
CONFIG = RunConfig(
    model=ModelConfig(
        backbone=ResNetConfig(depth=18, out_strides=(16, 32), weights="none"),
        neck=ChannelMapperConfig(num_levels=2),
        embed_dim=64,
        attention=AttentionConfig(num_heads=2),
        encoder=EncoderConfig(num_layers=1, ffn_dim=16),
        decoder=DecoderConfig(num_layers=1, ffn_dim=16),
        queries=LearnedQueriesConfig(num_queries=5),
    ),
    data=DataConfig(eval_size=48, eval_max_size=96),
)


def write_checkpoint(path: Path, *, drop_parameter: bool = False) -> DeformableDETR:
    """Write the checkpoint, optionally without one parameter, and return its model."""
    torch.manual_seed(0)
    model = build_model(CONFIG, num_classes=LABEL_SPACE.num_classes)
    weights = model.state_dict()
    if drop_parameter:
        weights.popitem()
    checkpoint = Checkpoint(
        model=weights,
        ema=None,
        optimizer={},
        epoch=1,
        step=1,
        best_ap=None,
        label_space=LABEL_SPACE,
        config=CONFIG.model_dump(mode="json"),
        versions=current_versions(),
    )
    save_checkpoint(path, checkpoint)
    return model


def write_random_checkpoint(path: Path) -> Path:
    """Write a checkpoint whose detections depend on the image and on its padding."""
    write_checkpoint(path)
    checkpoint = load_checkpoint(path)
    model = build_model(CONFIG, num_classes=LABEL_SPACE.num_classes)
    randomize_weights(model)
    save_checkpoint(path, replace(checkpoint, model=model.state_dict()))
    return path
