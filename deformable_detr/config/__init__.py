"""Config of a run: one frozen pydantic model per section, with the paper's values as defaults.

`config.loading` reads the models from YAML, `builders` turns them into objects. Layers below
`builders` do not see them. Sizes are in pixels; learning rates apply to the total batch.

Nearly all settings have defaults. A new setting gets a default that keeps the meaning of configs
without it, since checkpoints hold configs and old ones must stay readable.
"""

from deformable_detr.config.backbone import (
    ACBlockConfig,
    BackboneBase,
    BackboneConfig,
    ConvConfig,
    DeformConvConfig,
    DeformKernelConfig,
    DiverseBranchConfig,
    MobileNetV2Config,
    ModulatedDeformConvConfig,
    PlainConvConfig,
    ReplacedConvConfig,
    ResNetConfig,
    TimmConfig,
)
from deformable_detr.config.base import ConfigError, FrozenModel
from deformable_detr.config.data import (
    AugmentationConfig,
    CocoAugmentationConfig,
    DataConfig,
    NoAugmentationConfig,
    SplitConfig,
    ZoomCropAugmentationConfig,
)
from deformable_detr.config.model import (
    ASFFNeckConfig,
    AttentionConfig,
    ChannelMapperConfig,
    DecoderConfig,
    DeformKernelNeckConfig,
    EncoderConfig,
    LearnedPositionConfig,
    LearnedQueriesConfig,
    MimickingConfig,
    ModelConfig,
    NeckConfig,
    PositionConfig,
    QueriesConfig,
    SinePositionConfig,
    TwoStageQueriesConfig,
)
from deformable_detr.config.train import (
    AdamWConfig,
    CosineScheduleConfig,
    FocalLossConfig,
    LossConfig,
    OptimizerConfig,
    QualityLossConfig,
    ScheduleConfig,
    SGDConfig,
    StepScheduleConfig,
    TrainConfig,
)

__all__ = [
    "ACBlockConfig",
    "ASFFNeckConfig",
    "AdamWConfig",
    "AttentionConfig",
    "AugmentationConfig",
    "BackboneBase",
    "BackboneConfig",
    "ChannelMapperConfig",
    "CocoAugmentationConfig",
    "ConfigError",
    "ConvConfig",
    "CosineScheduleConfig",
    "DataConfig",
    "DecoderConfig",
    "DeformConvConfig",
    "DeformKernelConfig",
    "DeformKernelNeckConfig",
    "DiverseBranchConfig",
    "EncoderConfig",
    "FocalLossConfig",
    "FrozenModel",
    "LearnedPositionConfig",
    "LearnedQueriesConfig",
    "LossConfig",
    "MimickingConfig",
    "MobileNetV2Config",
    "ModelConfig",
    "ModulatedDeformConvConfig",
    "NeckConfig",
    "NoAugmentationConfig",
    "OptimizerConfig",
    "PlainConvConfig",
    "PositionConfig",
    "QualityLossConfig",
    "QueriesConfig",
    "ReplacedConvConfig",
    "ResNetConfig",
    "RunConfig",
    "SGDConfig",
    "ScheduleConfig",
    "SinePositionConfig",
    "SplitConfig",
    "StepScheduleConfig",
    "TimmConfig",
    "TrainConfig",
    "TwoStageQueriesConfig",
    "ZoomCropAugmentationConfig",
]


class RunConfig(FrozenModel):
    """Config of a run."""

    match_official: bool = False
    """Reproduce the official code where this package deviates from it on purpose: labels are raw
    category ids (91 classes for COCO), the matching cost has alpha 0.25 and gamma 2 regardless of
    `loss`, proposals have no loss weight without auxiliary losses, steps with fewer objects than
    processes have smaller gradients, samples have the order of `train.sample_order: official`,
    `data.exif: auto` means stored, and evaluation does not clip boxes to the image."""

    model: ModelConfig = ModelConfig()
    """The detector. The number of classes is not a setting; it follows from the categories of the
    data."""

    loss: LossConfig = LossConfig()
    """Matching costs and loss weights."""

    data: DataConfig = DataConfig()
    """Data sets and image preparation."""

    train: TrainConfig = TrainConfig()
    """The training loop."""
