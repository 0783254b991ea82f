"""DeformKernelConv2d: depthwise convolutions whose kernels depend on the input."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformable_detr.layers.deform_conv import OffsetGenerator
from deformable_detr.layers.precision import at_least_float32
from deformable_detr.ops.deform_kernel.dispatch import deform_kernel_conv2d
from deformable_detr.ops.deform_kernel.interpolation import linear_weights
from deformable_detr.ops.deform_kernel.scope import sample_scope
from deformable_detr.ops.geometry import ConvGeometry, IntPair, pair
from deformable_detr.structures import Size

DeformKernelMode = Literal["local", "global"]

_NORM_GROUPS = 32
_RESIDUAL_KERNEL_SIZE = 3


class DeformKernelConv2d(nn.Module):
    """Depthwise convolution whose taps are read from a larger kernel (Deformable Kernels, 2020).

    The taps keep their positions in the map; the value of each tap is read, by bilinear
    interpolation, at a displaced position in a larger stored kernel, the scope. These offsets in
    the scope, called rotations, are predicted from the input: one set per position ("local", by a
    convolution of the same geometry) or one per image ("global", by a linear layer on the mean).
    With `image_offsets` the taps are displaced in the map too, as in a deformable convolution. All
    generators start at zero: the taps are then read in the middle of the scope, one cell apart.

    Arguments up to `bias` are those of `nn.Conv2d`; pairs are (height, width). Parameters:
    `weight` (C, 1, S_h, S_w), `bias` (C), and the generators of rotations, `rotation_conv` (local)
    or `fc` (global), and of image offsets, `offset_conv`, with the original's names and layouts.

    Args:
        in_channels: C.
        out_channels: C too.
        kernel_size: number of taps.
        stride: stride of the grid of taps.
        padding: zeros around the map.
        dilation: distance between taps; image offsets are in units of it.
        groups: C too.
        bias: whether to add a bias.
        scope_size: at least the kernel's size; one larger, as in the paper, if None. With an odd
            kernel and an odd scope, zero offsets read whole cells.
        mode: "local" or "global".
        rotation_groups: R, a divisor of C; channel c has the rotations of group c % R.
        clip_to_scope: keep every tap in the scope, as in the paper.
        kernel_offsets: whether to predict rotations; may be False only with `image_offsets`.
        image_offsets: whether to predict image offsets, one set for all channels; local only.

    Raises:
        ValueError: the convolution is not depthwise, or an argument is out of range.
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
        scope_size: IntPair | None = None,
        mode: DeformKernelMode = "local",
        rotation_groups: int = 1,
        clip_to_scope: bool = True,
        kernel_offsets: bool = True,
        image_offsets: bool = False,
    ) -> None:
        super().__init__()
        self.geometry = ConvGeometry.of(kernel_size, stride, padding, dilation)
        k_h, k_w = self.geometry.kernel_size
        self.scope_size = (k_h + 1, k_w + 1) if scope_size is None else pair(scope_size)
        _check_depthwise(in_channels, out_channels, groups)
        _check_options(mode, clip_to_scope, kernel_offsets, image_offsets)
        _check_scope(self.scope_size, self.geometry.kernel_size)
        if rotation_groups < 1 or in_channels % rotation_groups:
            raise ValueError(
                f"rotation_groups must be a divisor of in_channels, "
                f"got {rotation_groups} and {in_channels}"
            )
        self.in_channels = self.out_channels = self.groups = in_channels
        self.mode = mode
        self.rotation_groups = rotation_groups
        self.clip_to_scope = clip_to_scope
        self.weight = nn.Parameter(torch.empty(in_channels, 1, *self.scope_size))
        self.bias = nn.Parameter(torch.empty(in_channels)) if bias else None
        rotations = k_h * k_w * 2 * rotation_groups
        self.rotation_conv = self.offset_conv = self.fc = None
        if kernel_offsets and mode == "local":
            self.rotation_conv = OffsetGenerator(in_channels, rotations, *self.geometry)
        elif kernel_offsets:
            self.fc = nn.Linear(in_channels, rotations)
        if image_offsets:
            self.offset_conv = OffsetGenerator(in_channels, k_h * k_w * 2, *self.geometry)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the scope like a convolution of the kernel's size; set generators to zero."""
        k_h, k_w = self.geometry.kernel_size
        bound = (k_h * k_w) ** -0.5  # of the kernel, not of the scope, as in the original
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        for generator in (self.rotation_conv, self.offset_conv):
            if generator is not None:
                generator.reset_parameters()
        if self.fc is not None:
            nn.init.zeros_(self.fc.weight)
            nn.init.zeros_(self.fc.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H_out, W_out)."""
        convolve = self._convolve_locally if self.mode == "local" else self._convolve_globally
        output = convolve(features)
        return output if self.bias is None else output + self.bias.to(output.dtype)[:, None, None]

    def _convolve_locally(self, features: Tensor) -> Tensor:
        offsets = None
        if self.offset_conv is not None:
            offsets = self.offset_conv(features).unflatten(1, (-1, 2))
            dilation = [offsets.new_full((1,), step) for step in self.geometry.dilation]
            offsets = (offsets * torch.cat(dilation)[:, None, None]).flatten(1, 2)
        if self.rotation_conv is not None:
            rotation = self.rotation_conv(features)
        else:
            assert offsets is not None
            rotation = torch.zeros_like(offsets)
        return deform_kernel_conv2d(
            features,
            self.weight,
            rotation,
            offsets,
            geometry=self.geometry,
            clip_to_scope=self.clip_to_scope,
        )

    def _convolve_globally(self, features: Tensor) -> Tensor:
        assert self.fc is not None
        N, C, H, W = features.shape
        rotation = at_least_float32(self.fc(features.mean((2, 3))))
        kernels = sample_scope(
            at_least_float32(self.weight),
            rotation,
            self.geometry.kernel_size,
            clip_to_scope=self.clip_to_scope,
        )
        # Every channel of every image is a group of its own.
        output = F.conv2d(
            features.reshape(1, N * C, H, W),
            kernels.to(features.dtype).flatten(0, 1)[:, None],
            stride=self.geometry.stride,
            padding=self.geometry.padding,
            dilation=self.geometry.dilation,
            groups=N * C,
        )
        return output.view(N, C, *output.shape[2:])

    def extra_repr(self) -> str:
        """Return the arguments that the child modules do not show."""
        geometry = ", ".join(f"{name}={value}" for name, value in self.geometry._asdict().items())
        return (
            f"{self.in_channels}, {self.out_channels}, {geometry}, groups={self.groups}, "
            f"bias={self.bias is not None}, scope_size={self.scope_size}, mode={self.mode!r}, "
            f"rotation_groups={self.rotation_groups}, clip_to_scope={self.clip_to_scope}"
        )


class DeformKernelResidual(nn.Module):
    """Residual block with a deformable kernel; starts as the identity.

    The residual is a depthwise `DeformKernelConv2d` of 3x3 taps, a 1x1 convolution and group norm.
    Its scale starts at zero, so that the block can be inserted into a trained model.

    Args:
        channels: C, a multiple of 32, at least 64.
        scope_size: see `DeformKernelConv2d`.
        mode: see `DeformKernelConv2d`.
        rotation_groups: see `DeformKernelConv2d`.
        clip_to_scope: see `DeformKernelConv2d`.
        kernel_offsets: see `DeformKernelConv2d`.
        image_offsets: see `DeformKernelConv2d`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        channels: int,
        *,
        scope_size: IntPair,
        mode: DeformKernelMode = "local",
        rotation_groups: int = 1,
        clip_to_scope: bool = True,
        kernel_offsets: bool = True,
        image_offsets: bool = False,
    ) -> None:
        super().__init__()
        if channels % _NORM_GROUPS or channels <= _NORM_GROUPS:
            # With one channel per group, a map of one cell would have nothing to normalize.
            raise ValueError(
                f"channels must be a multiple of {_NORM_GROUPS} and above it, got {channels}"
            )
        self.depthwise = DeformKernelConv2d(
            channels,
            channels,
            _RESIDUAL_KERNEL_SIZE,
            padding=_RESIDUAL_KERNEL_SIZE // 2,
            groups=channels,
            bias=False,
            scope_size=scope_size,
            mode=mode,
            rotation_groups=rotation_groups,
            clip_to_scope=clip_to_scope,
            kernel_offsets=kernel_offsets,
            image_offsets=image_offsets,
        )
        self.pointwise = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
        self.norm = nn.GroupNorm(_NORM_GROUPS, channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        return features + self.norm(self.pointwise(self.depthwise(features)))


def centered_scope_weight(kernel: Tensor, scope_size: IntPair) -> Tensor:
    """Return the scope of minimal norm from which zero rotations read a given kernel.

    If scope and kernel differ by an even number, this is the kernel surrounded by zeros.
    Otherwise every tap is a mean of cells, and the least-squares solution, though exact, is large:
    about 2.8 times the norm of a random 3x3 kernel for scope 4, and sensitive to rotations.

    Args:
        kernel: (C, 1, k_h, k_w) depthwise kernels.
        scope_size: at least the kernel's size.

    Returns:
        (C, 1, S_h, S_w) in the dtype of kernel.

    Raises:
        ValueError: the kernel is not depthwise, or larger than the scope.
    """
    if kernel.ndim != 4 or kernel.shape[1] != 1:
        raise ValueError(f"kernel must have shape (C, 1, k_h, k_w), got {tuple(kernel.shape)}")
    scope = pair(scope_size)
    _check_scope(scope, (kernel.shape[2], kernel.shape[3]))
    # Reading is a product with one matrix per axis, and so is its pseudo-inverse.
    rows, columns = (
        _reading_matrix(taps, cells).pinverse().to(kernel.device)
        for taps, cells in zip(kernel.shape[2:], scope, strict=True)
    )
    return (rows @ kernel.double() @ columns.mT).to(kernel.dtype)


def _reading_matrix(taps: int, cells: int) -> Tensor:
    """Return the (taps, cells) weight of each cell in each tap for zero rotations, on one axis."""
    coordinates = torch.arange(taps, dtype=torch.float64) + (cells - taps) / 2
    return linear_weights(coordinates[None, None], cells)[0, 0].mT


def _check_depthwise(in_channels: int, out_channels: int, groups: int) -> None:
    if not in_channels == out_channels == groups:
        raise ValueError(
            "in_channels, out_channels and groups must be equal (a depthwise convolution), "
            f"got {in_channels}, {out_channels} and {groups}"
        )


def _check_scope(scope_size: Size, kernel_size: Size) -> None:
    if scope_size[0] < kernel_size[0] or scope_size[1] < kernel_size[1]:
        raise ValueError(
            f"scope_size must be at least kernel_size, got {scope_size} and {kernel_size}"
        )


def _check_options(
    mode: DeformKernelMode, clip_to_scope: bool, kernel_offsets: bool, image_offsets: bool
) -> None:
    if mode not in get_args(DeformKernelMode):
        raise ValueError(f"mode must be one of {get_args(DeformKernelMode)}, got {mode!r}")
    if not isinstance(clip_to_scope, bool):
        raise ValueError(f"clip_to_scope must be True or False, got {clip_to_scope!r}")
    if image_offsets and mode == "global":
        raise ValueError("image_offsets must be False with mode 'global', got True; use 'local'")
    if not (kernel_offsets or image_offsets):
        raise ValueError(
            "kernel_offsets must be True without image_offsets, got False; "
            "use a depthwise nn.Conv2d"
        )
