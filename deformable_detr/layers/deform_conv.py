"""DeformConv2d and ModulatedDeformConv2d: convolutions with learned offsets of their taps."""

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deformable_detr.layers.precision import at_least_float32, without_autocast
from deformable_detr.ops import deform_conv2d
from deformable_detr.ops.geometry import ConvGeometry, IntPair

_OLD_SUFFIX = "_offset"


class OffsetGenerator(nn.Conv2d):
    """Convolution that predicts the offsets, and masks, of a deformable convolution.

    Its parameters start at zero. It runs in float32 or wider even under autocast, as does all
    that is computed from its output.
    """

    def reset_parameters(self) -> None:
        """Set the weight and the bias to zero, so that no tap is displaced."""
        nn.init.zeros_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, out_channels, H_out, W_out)."""
        input = at_least_float32(input)
        assert self.bias is not None
        with without_autocast(input.device):
            return self._conv_forward(input, self.weight.to(input), self.bias.to(input))


class _DeformableConvolution(nn.Module):
    """Base class of both versions, which document the other arguments.

    Args:
        maps_per_tap: number of maps that `conv_offset` predicts per tap: 2 offsets, or 3 with a
            mask.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair,
        padding: IntPair,
        dilation: IntPair,
        groups: int,
        bias: bool,
        *,
        offset_groups: int,
        maps_per_tap: int,
    ) -> None:
        super().__init__()
        for name, channels, parts_name, parts in (
            ("in_channels", in_channels, "groups", groups),
            ("out_channels", out_channels, "groups", groups),
            ("in_channels", in_channels, "offset_groups", offset_groups),
        ):
            if parts < 1 or channels % parts:
                raise ValueError(
                    f"{name} must be divisible by {parts_name}, got {channels} and {parts}"
                )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.geometry = ConvGeometry.of(kernel_size, stride, padding, dilation)
        k_h, k_w = self.geometry.kernel_size
        self.groups = groups
        self.offset_groups = offset_groups
        self.num_taps = k_h * k_w
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, k_h, k_w))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.conv_offset = OffsetGenerator(
            in_channels,
            maps_per_tap * offset_groups * self.num_taps,
            *self.geometry,
        )

    @abstractmethod
    def sampling(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute the offsets and the mask for `deformable_detr.ops.deform_conv2d`."""

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H_out, W_out) in the same dtype."""
        offset, mask = self.sampling(features)
        return deform_conv2d(features, offset, self.weight, self.bias, *self.geometry[1:], mask)

    def extra_repr(self) -> str:
        """Return the main arguments, then the others that differ from their defaults."""
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.geometry.kernel_size}, "
            f"stride={self.geometry.stride}"
        )
        for name, value, default in (
            ("padding", self.geometry.padding, (0, 0)),
            ("dilation", self.geometry.dilation, (1, 1)),
            ("groups", self.groups, 1),
        ):
            if value != default:
                text += f", {name}={value}"
        if self.bias is None:
            text += ", bias=False"
        return text + f", offset_groups={self.offset_groups}"


class DeformConv2d(_DeformableConvolution):
    """Deformable convolution (Dai et al., ICCV 2017, equation 2).

    A second convolution over the same input, `conv_offset`, predicts the offset of every tap at
    every output pixel. It starts at zero: the block then equals the `nn.Conv2d` of the same
    weight and bias. Parameter names are those of mmcv's `DeformConv2dPack`, which has no bias.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: as for `nn.Conv2d`; both convolutions share it, stride, padding and dilation.
        stride: as for `nn.Conv2d`.
        padding: as for `nn.Conv2d`.
        dilation: as for `nn.Conv2d`.
        groups: groups of the weight; offsets are predicted from all channels.
        bias: whether to add a bias to the output.
        offset_groups: number of groups of neighboring channels, each with its own offsets.

    Raises:
        ValueError: channels are not divisible by groups.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        offset_groups: int = 1,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            offset_groups=offset_groups,
            maps_per_tap=2,
        )
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def sampling(self, features: Tensor) -> tuple[Tensor, None]:
        """Return (N, 2 * G * K, H_out, W_out) offsets in pixels, float32 or wider, and no mask."""
        return self.conv_offset(features), None


class ModulatedDeformConv2d(_DeformableConvolution):
    """Deformable convolution whose samples are weighted (Zhu et al., CVPR 2019, equation 1).

    `conv_offset` also predicts a mask in (0, mask_scale), which starts at mask_scale / 2: the
    block then equals, apart from the bias, mask_scale / 2 times the `nn.Conv2d` of the same
    weight. Parameter names are those of mmcv's `ModulatedDeformConv2dPack`.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: as for `nn.Conv2d`; both convolutions share it, stride, padding and dilation.
        stride: as for `nn.Conv2d`.
        padding: as for `nn.Conv2d`.
        dilation: as for `nn.Conv2d`.
        groups: groups of the weight; offsets and masks are predicted from all channels.
        bias: whether to add a bias to the output.
        offset_groups: number of groups of neighboring channels, each with its own offsets and
            masks.
        mask_scale: 1 in the paper and in mmcv; 2 in the authors' example, which initially keeps
            pre-trained features unchanged, as required by a frozen norm after the block.

    Raises:
        ValueError: channels are not divisible by groups, or `mask_scale` is neither 1 nor 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        offset_groups: int = 1,
        mask_scale: float = 1.0,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            offset_groups=offset_groups,
            maps_per_tap=3,
        )
        if mask_scale not in (1, 2):
            raise ValueError(f"mask_scale must be 1 or 2, got {mask_scale}")
        self.mask_scale = mask_scale
        bound = 1 / math.sqrt(in_channels * self.num_taps)  # mmcv
        nn.init.uniform_(self.weight, -bound, bound)

    def sampling(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Compute offsets and masks in float32 or wider.

        Returns:
            (N, 2 * G * K, H_out, W_out) offsets in pixels, and (N, G * K, H_out, W_out) masks in
            (0, mask_scale).
        """
        num_masks = self.offset_groups * self.num_taps
        offset, logits = self.conv_offset(features).split((2 * num_masks, num_masks), dim=1)
        return offset, self.mask_scale * logits.sigmoid()

    def extra_repr(self) -> str:
        """See `DeformConv2d`."""
        return f"{super().extra_repr()}, mask_scale={self.mask_scale}"


def rename_old_offset_keys(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename `<name>_offset.weight` of early checkpoints to `<name>.conv_offset.weight`.

    Biases are renamed likewise. A key is renamed only if the state has a `<name>.weight` and the
    new key does not exist.
    """
    renamed = {}
    for key, value in state_dict.items():
        module, _, parameter = key.rpartition(".")
        name = module.removesuffix(_OLD_SUFFIX)
        new_key = f"{name}.conv_offset.{parameter}"
        is_old = name != module and f"{name}.weight" in state_dict and new_key not in state_dict
        renamed[new_key if is_old else key] = value
    return renamed
