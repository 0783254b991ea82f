"""Backbones from torchvision: ResNets and MobileNetV2."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from deformable_detr.layers.reparam.folding import fold_frozen_norms
from deformable_detr.messages import in_brief
from deformable_detr.models.backbones.base import Backbone, freeze, require_strides
from deformable_detr.models.backbones.input_channels import (
    set_input_channels,
    with_input_channels,
)
from deformable_detr.models.backbones.weights import load_backbone_weights
from deformable_detr.pixels.channels import RGB

NormLayer = Callable[[int], nn.Module]
Block = tuple[str, nn.Module, int, int]  # name, block, stride and channels after it
_RESNETS = {depth: f"resnet{depth}" for depth in (18, 34, 50, 101, 152)}
_BOTTLENECK_FROM_DEPTH = 50


class StagedBackbone(Backbone):
    """A chain of blocks; the outputs of some of them are the features.

    Blocks after the last one needed are removed: an unused parameter would stop distributed
    training.

    Args:
        blocks: the blocks, in the order they run.
        out_strides: strides of the output maps, finest first; the last block of each is taken.
        freeze_up_to_stride: blocks of at most this stride are not trained; 0 trains all.
        network: name of the network in error messages.
        in_channels: channels of the images.

    Raises:
        ValueError: a stride that the network does not have.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        out_strides: Sequence[int],
        freeze_up_to_stride: int,
        network: str,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        require_strides(out_strides, (stride for _, _, stride, _ in blocks), network)
        last_of_stride = {stride: position for position, (_, _, stride, _) in enumerate(blocks)}
        self._taken = frozenset(last_of_stride[stride] for stride in out_strides)
        kept = blocks[: max(self._taken) + 1]
        self.strides = tuple(out_strides)
        self.channels = tuple(blocks[last_of_stride[stride]][3] for stride in out_strides)
        # A sequence shows `conv_norm_pairs` that a norm follows the stem's convolution.
        self.body = nn.Sequential(
            OrderedDict((name, fold_frozen_norms(block)) for name, block, _, _ in kept)
        )
        self._block_strides = tuple(stride for _, _, stride, _ in kept)
        freeze(block for _, block, stride, _ in kept if stride <= freeze_up_to_stride)

    def blocks(self) -> list[tuple[int, nn.Module]]:
        """See `Backbone`."""
        return list(zip(self._block_strides, self.body, strict=True))

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone`."""
        features = []
        if images.device.type == "cpu":
            # CPU convolutions compute in this layout, and would convert any other each time.
            images = images.contiguous(memory_format=torch.channels_last)
        for position, block in enumerate(self.body):
            images = block(images)
            if position in self._taken:
                features.append(images)
        return features


def build_resnet(
    depth: int,
    *,
    out_strides: Sequence[int],
    dilation: bool = False,
    freeze_up_to_stride: int,
    norm_layer: NormLayer = FrozenBatchNorm2d,
    weights: str | Path | None = None,
    in_channels: int = RGB,
) -> Backbone:
    """Build a torchvision ResNet of 18 to 152 layers.

    Args:
        depth: 18, 34, 50, 101 or 152.
        out_strides: a subset of 4, 8, 16, 32.
        dilation: whether to build the DC5 variant, whose last stage keeps stride 16 and is
            dilated instead; depth 50 and above.
        freeze_up_to_stride: 4 freezes the stem and the first stage, as the paper does.
        norm_layer: makes a norm from a number of channels.
        weights: a file, a name of torchvision's published weights, or None.
        in_channels: channels of the images; see `repeat_input_channels` for weights of three.

    Raises:
        ValueError: an unknown depth, stride or name, or a file that does not fit.
    """
    if depth not in _RESNETS:
        raise ValueError(f"depth must be one of {sorted(_RESNETS)}, got {depth}")
    if dilation and depth < _BOTTLENECK_FROM_DEPTH:
        raise ValueError(
            f"dilation must be false below ResNet-50, got depth {depth}; its basic blocks have "
            "no dilated form"
        )
    network = getattr(torchvision.models, _RESNETS[depth])(
        norm_layer=norm_layer, replace_stride_with_dilation=(False, False, dilation)
    )
    set_input_channels(network, in_channels)
    _load(network, _RESNETS[depth], weights)
    kept = ((n, block) for n, block in network.named_children() if n not in ("avgpool", "fc"))
    return StagedBackbone(
        _measure_blocks(kept),
        out_strides=out_strides,
        freeze_up_to_stride=freeze_up_to_stride,
        network=_RESNETS[depth],
        in_channels=in_channels,
    )


def build_mobilenet_v2(
    *,
    out_strides: Sequence[int],
    freeze_up_to_stride: int,
    norm_layer: NormLayer = FrozenBatchNorm2d,
    weights: str | Path | None = None,
    in_channels: int = RGB,
) -> Backbone:
    """Build torchvision's MobileNetV2; arguments as in `build_resnet`, strides 2 to 32."""
    network = torchvision.models.mobilenet_v2(norm_layer=norm_layer)
    set_input_channels(network, in_channels)
    _load(network, "mobilenet_v2", weights)
    return StagedBackbone(
        _measure_blocks(network.features.named_children()),
        out_strides=out_strides,
        freeze_up_to_stride=freeze_up_to_stride,
        network="mobilenet_v2",
        in_channels=in_channels,
    )


def _measure_blocks(blocks: Iterable[tuple[str, nn.Module]]) -> list[Block]:
    """Return the stride and the channels after every block, read from its main path."""
    measured = []
    stride, channels = 1, 0
    for name, block in blocks:
        for path, module in block.named_modules():
            if "downsample" in path:
                continue
            if isinstance(module, nn.Conv2d):
                stride *= module.stride[0]
                channels = module.out_channels
            elif isinstance(module, nn.MaxPool2d):
                assert isinstance(module.stride, int)
                stride *= module.stride
        measured.append((name, block, stride, channels))
    return measured


def _load(network: nn.Module, name: str, weights: str | Path | None) -> None:
    if weights is None:
        return
    if isinstance(weights, Path):
        load_backbone_weights(network, weights)
        return
    published = torchvision.models.get_model_weights(name)
    by_name = {member.name.lower(): member for member in published}
    if weights.lower() not in by_name:
        raise ValueError(
            f"weights of {name} must be a file or one of {sorted(by_name)}, got {in_brief(weights)}"
        )
    state = by_name[weights.lower()].get_state_dict(progress=False, check_hash=True)
    state = with_input_channels(network.state_dict(), state)
    network.load_state_dict(
        {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
        strict=not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()),
    )
