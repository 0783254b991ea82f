"""What a run is made of: one frozen pydantic model a part, with the paper's values as defaults.

`config.loading` reads these from YAML, `builders` turns them into objects. Nothing below `builders`
sees them. Sizes are in pixels, learning rates belong to the total batch.

Every setting has a default, and a new one gets the default under which a config without it means
what it meant before: checkpoints hold configs, and old ones stay readable.
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
    LossConfig,
    OptimizerConfig,
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
    """A whole run."""

    match_official: bool = False
    """Compute what the official code computes, wherever this package does otherwise on purpose:
    labels are raw category ids (91 classes for COCO), the matching cost has alpha 0.25 and gamma 2
    whatever `loss` says, proposals have no weight without auxiliary losses, and samples come in
    the order of `train.sample_order: official`."""

    model: ModelConfig = ModelConfig()
    """The detector. The number of classes is not a setting: it comes from the data's categories."""

    loss: LossConfig = LossConfig()
    """Matching costs and loss weights."""

    data: DataConfig = DataConfig()
    """Images, and how they are prepared."""

    train: TrainConfig = TrainConfig()
    """The training loop."""
