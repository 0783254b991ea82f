"""Backbones from timm: all models with feature maps."""

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from timm.models.efficientnet import EfficientNetFeatures
from timm.models.mobilenetv3 import MobileNetV3Features
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn

from deformable_detr.models.backbones.base import Backbone, freeze, require_strides
from deformable_detr.models.backbones.weights import load_backbone_weights
from deformable_detr.structures import IMAGENET_MEAN, IMAGENET_STD


class TimmBackbone(Backbone):
    """A timm `features_only` model whose input gets the normalization it was trained with.

    Args:
        name: timm's model name, without a pre-trained tag.
        out_strides: strides of the output maps, finest first; the last map of each is taken.
        freeze_up_to_stride: modules up to the last map of at most this stride are not trained.
        freeze_norm: whether batch norms use their stored statistics and are not trained.
        weights: a file, one of timm's pre-trained tags for this model, or None.

    Raises:
        ValueError: an unknown model, tag or stride, or a file that does not fit.
    """

    _scale: Tensor
    _shift: Tensor

    def __init__(
        self,
        name: str,
        *,
        out_strides: Sequence[int],
        freeze_up_to_stride: int,
        freeze_norm: bool = True,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise ValueError(
                f"timm model must be one of timm.list_models(), got {name!r}; a pre-trained tag "
                "goes into model.backbone.weights"
            )
        tag = f".{weights}" if isinstance(weights, str) else ""
        if tag and f"{name}{tag}" not in timm.list_pretrained(f"{name}.*"):
            tags = [entry.partition(".")[2] for entry in timm.list_pretrained(f"{name}.*")]
            raise ValueError(f"weights of {name} must be a file or one of {tags}, got {weights!r}")
        whole = timm.create_model(name, features_only=True)
        reductions = whole.feature_info.reduction()
        require_strides(out_strides, reductions, name)
        last_of_stride = {stride: index for index, stride in enumerate(reductions)}
        self.body = timm.create_model(
            f"{name}{tag}",
            features_only=True,
            pretrained=bool(tag),
            out_indices=tuple(last_of_stride[stride] for stride in out_strides),
        )
        if isinstance(self.body, EfficientNetFeatures | MobileNetV3Features):
            # timm removes unused blocks from all networks but these, which run every block.
            last_stage = int(self.body.feature_info.module_name()[-1].removeprefix("blocks."))
            self.body.blocks = self.body.blocks[: last_stage + 1]
        if isinstance(weights, Path):
            load_backbone_weights(self.body, weights)
        if freeze_norm:
            freeze_batch_norm_2d(self.body)
        self.strides = tuple(out_strides)
        self.channels = tuple(self.body.feature_info.channels())
        mean, std = (torch.tensor(self.body.default_cfg[key]) for key in ("mean", "std"))
        scale, shift = torch.tensor(IMAGENET_STD) / std, (torch.tensor(IMAGENET_MEAN) - mean) / std
        self.register_buffer("_scale", scale.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_shift", shift.view(1, 3, 1, 1), persistent=False)
        self._channels_last = getattr(self.body, "output_fmt", "NCHW") == "NHWC"
        last_map = last_of_stride[out_strides[-1]]
        self._maps = tuple((info["module"], info["reduction"]) for info in whole.feature_info.info)
        self._maps = self._maps[: last_map + 1]
        frozen_maps = [module for module, stride in self._maps if stride <= freeze_up_to_stride]
        if frozen_maps:
            freeze(_modules_up_to(self.body, frozen_maps[-1]))

    def blocks(self) -> list[tuple[int, nn.Module]]:
        """See `Backbone`."""
        found: dict[nn.Module, int] = {}
        for last, stride in self._maps:
            for module in _modules_up_to(self.body, last):
                found.setdefault(module, stride)
        return [(stride, module) for module, stride in found.items()]

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone`."""
        # From the normalization by ImageNet's statistics to that of the network's training.
        features: list[Tensor] = self.body(images * self._scale + self._shift)
        if self._channels_last:
            features = [feature.permute(0, 3, 1, 2).contiguous() for feature in features]
        return features


def _modules_up_to(network: nn.Module, last: str) -> list[nn.Module]:
    """Return the children of `network` and of its containers that run no later than `last`.

    timm writes the name of a module inside a container with a dot, or with an underscore where
    it flattened the container.
    """
    modules = dict(network.named_children())
    flat = last.replace(".", "_")
    if flat in modules:
        names = list(modules)
        return [modules[name] for name in names[: names.index(flat) + 1]]
    container, _, rest = last.partition(".")
    if container not in modules:
        raise ValueError(f"freeze_up_to_stride must be 0 for this network, which has no {last!r}")
    names = list(modules)
    before = [modules[name] for name in names[: names.index(container)]]
    return (
        before + _modules_up_to(modules[container], rest) if rest else [*before, modules[container]]
    )
