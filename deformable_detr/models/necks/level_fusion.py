"""LevelFusion: one level of a pyramid as a weighted sum of all levels, cell by cell."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FusionNorm = Literal["group", "batch"]
Activation = Literal["leaky_relu", "silu", "relu6"]
FusionInit = Literal["own", "uniform"]

_WEIGHT_CHANNELS = 16  # GOATmessi7/ASFF, models/network_blocks.py
_RFB_WEIGHT_CHANNELS = 8
OWN_LOGIT = 3.0  # softmax gives the target level 0.87 of 4 levels
_LEAKY_SLOPE = 0.1  # GOATmessi7/ASFF, add_conv
_MAP_GROUPS = 32
_WEIGHT_GROUPS = 4


class ConvNormAct(nn.Module):
    """A convolution without bias that keeps or halves the size, a norm and an activation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd; the padding is half of it, rounded down.
        stride: 1 or 2.
        norm: "batch", or "group" with `norm_groups` groups.
        norm_groups: a divisor of `out_channels`.
        activation: "leaky_relu" has a slope of 0.1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        norm: FusionNorm,
        norm_groups: int = _MAP_GROUPS,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, (kernel_size - 1) // 2, bias=False
        )
        self.norm: nn.GroupNorm | nn.BatchNorm2d
        if norm == "group":
            self.norm = nn.GroupNorm(norm_groups, out_channels)
        else:
            self.norm = nn.BatchNorm2d(out_channels)
        self.activation = _activation(activation)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), rounded up."""
        return self.activation(self.norm(self.conv(features)))


def _activation(name: Activation) -> nn.Module:
    match name:
        case "leaky_relu":
            return nn.LeakyReLU(_LEAKY_SLOPE)
        case "silu":
            return nn.SiLU()
        case "relu6":
            return nn.ReLU6()


class FusedLevel(NamedTuple):
    """A fused target level, with the weights and the sum behind it.

    Attributes:
        output: (N, out_channels, H, W).
        weights: (N, L, H, W) share of each source level, finest first; they sum to 1.
        fused: (N, C, H, W) weighted sum of the resized levels, before the last convolution.
    """

    output: Tensor
    weights: Tensor
    fused: Tensor

    @property
    def channel_sum(self) -> Tensor:
        """(N, H, W) sum of `fused` over its channels, which the original code visualizes."""
        return self.fused.sum(dim=1)


class LevelFusion(nn.Module):
    """Resize all levels to the size and width of one target level, and add them, weighted.

        fused[:, :, i, j] = sum over k of weights[:, k, i, j] * resized_k[:, :, i, j]

    The weights are learned: a softmax over the levels, shared by all channels ("Learning Spatial
    Fusion for Single-Shot Object Detection", equations 1 and 2). A coarser level goes through a
    1x1 block and nearest-neighbor interpolation; a level one step finer goes through a 3x3 block
    of stride 2, and before it through a 3x3 max pooling of stride 2 for each further step.

    Args:
        channels: channels of the L levels, finest first.
        level: the target level; 0 is the finest.
        out_channels: channels of the output; None for those of the target level.
        rfb: reduce every resized level to 8 channels to compute the weights, as the original
            does to save memory, instead of 16.
        norm: "group" has 32 groups, or 4 in the blocks that compute the weights.
        activation: activation of every block.
        init: "uniform" is the original: PyTorch's own initialization. "own" starts as the
            identity: the target level is added to the output, the scale of the last norm is zero,
            and the weights favor the target level; needs unchanged channels.
        compress_equal: whether a coarser level that already has the target's width goes through
            a 1x1 block too; the original's YOLOv3 block has none there.
        logit_activation: add batch norm and SiLU to the last convolution of the weights, as in a
            published YOLOv5 variant. The logits are then above -0.2785, so that no level can be
            suppressed by its own logit; only for weights of that variant.

    Raises:
        ValueError: arguments contradict each other.
    """

    def __init__(
        self,
        channels: Sequence[int],
        level: int,
        *,
        out_channels: int | None = None,
        rfb: bool = False,
        norm: FusionNorm = "group",
        activation: Activation = "leaky_relu",
        init: FusionInit = "own",
        compress_equal: bool = True,
        logit_activation: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= level < len(channels):
            raise ValueError(f"level must be in 0..{len(channels) - 1}, got {level}")
        width = channels[level]
        out_channels = width if out_channels is None else out_channels
        _check_options(norm, activation, init, logit_activation=logit_activation)
        _check_widths((width, out_channels), norm, init)
        self.channels, self.level = tuple(channels), level
        self.is_residual = init == "own"
        c = _RFB_WEIGHT_CHANNELS if rfb else _WEIGHT_CHANNELS

        def block(in_channels: int, out: int, kernel_size: int, stride: int = 1) -> ConvNormAct:
            return ConvNormAct(
                in_channels, out, kernel_size, stride, norm=norm, activation=activation
            )

        self.resizers = nn.ModuleList()
        for source, source_width in enumerate(channels):
            if source < level:
                self.resizers.append(block(source_width, width, 3, 2))
            elif source == level or (source_width == width and not compress_equal):
                self.resizers.append(nn.Identity())
            else:
                self.resizers.append(block(source_width, width, 1))
        self.weight_blocks = nn.ModuleList(
            ConvNormAct(width, c, 1, norm=norm, norm_groups=_WEIGHT_GROUPS, activation=activation)
            for _ in channels
        )
        L = len(channels)
        self.weight_logits: nn.Module = (
            ConvNormAct(L * c, L, 1, norm="batch", activation="silu")
            if logit_activation
            else nn.Conv2d(L * c, L, kernel_size=1)
        )
        self.expand = block(width, out_channels, 3)
        if init == "own":
            self._start_as_identity()

    def _start_as_identity(self) -> None:
        assert isinstance(self.weight_logits, nn.Conv2d)
        assert self.weight_logits.bias is not None
        nn.init.zeros_(self.weight_logits.weight)
        nn.init.zeros_(self.weight_logits.bias)
        with torch.no_grad():
            self.weight_logits.bias[self.level] = OWN_LOGIT
        nn.init.zeros_(self.expand.norm.weight)

    def extra_repr(self) -> str:
        """Return the channels of the levels, the target level, and whether it is added."""
        return f"channels={self.channels}, level={self.level}, residual={self.is_residual}"

    def resize(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Resize the L levels (N, channels[k], H_k, W_k) to (N, C, H, W) of the target level."""
        height, width = maps[self.level].shape[2:]
        resized = []
        for source, (features, resizer) in enumerate(zip(maps, self.resizers, strict=True)):
            if source < self.level:
                for _ in range(self.level - source - 1):
                    features = F.max_pool2d(features, kernel_size=3, stride=2, padding=1)
                # Strides round sizes up; the maps of a backbone that rounds down lack these cells.
                resized.append(resizer(features)[..., :height, :width])
            elif source == self.level:
                resized.append(features)
            else:
                resized.append(F.interpolate(resizer(features), size=(height, width)))
        return resized

    def forward(self, maps: Sequence[Tensor], residual: Tensor | None = None) -> FusedLevel:
        """Fuse the levels.

        Args:
            maps: L tensors (N, channels[k], H_k, W_k), finest first, each half the size of the
                one before.
            residual: (N, C, H, W), added to the output if `init` is "own"; None for the target
                level of `maps`.
        """
        resized = self.resize(maps)
        reduced = [block(x) for block, x in zip(self.weight_blocks, resized, strict=True)]
        weights = self.weight_logits(torch.cat(reduced, dim=1)).softmax(dim=1)
        fused = torch.stack([x * weights[:, k : k + 1] for k, x in enumerate(resized)]).sum(dim=0)
        output = self.expand(fused)
        if self.is_residual:
            output = output + (maps[self.level] if residual is None else residual)
        return FusedLevel(output, weights, fused)


def _check_options(
    norm: FusionNorm, activation: Activation, init: FusionInit, *, logit_activation: bool
) -> None:
    for name, value, known in (
        ("norm", norm, ("group", "batch")),
        ("activation", activation, ("leaky_relu", "silu", "relu6")),
        ("init", init, ("own", "uniform")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")
    if init == "own" and activation == "relu6":
        raise ValueError(
            "activation must be 'leaky_relu' or 'silu' with init 'own', got 'relu6'; it has no "
            "gradient at zero, where that starts"
        )
    if init == "own" and logit_activation:
        raise ValueError("init must be 'uniform' with logit_activation, got 'own'")


def _check_widths(widths: tuple[int, int], norm: FusionNorm, init: FusionInit) -> None:
    """Raise if the norm or the residual does not allow the (target, output) channels."""
    for width in widths:
        if norm == "group" and width % _MAP_GROUPS:
            raise ValueError(
                f"channels must be multiples of {_MAP_GROUPS} with norm 'group', got {width}"
            )
    if init == "own" and widths[0] != widths[1]:
        raise ValueError(
            f"out_channels must be the target's {widths[0]} with init 'own', got {widths[1]}"
        )
