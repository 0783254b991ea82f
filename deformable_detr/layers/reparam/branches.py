"""Branches of re-parameterized blocks; each is equivalent to one convolution."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deformable_detr.layers.norm import Norm, scale_and_shift
from deformable_detr.layers.reparam.algebra import (
    Kernel,
    average_pool_as_conv,
    chain_1x1_kxk,
    fuse_conv_norm,
    kernel_of,
    without_bias,
)
from deformable_detr.layers.reparam.windows import average_pool, conv_through
from deformable_detr.ops.geometry import ConvGeometry

NormLayer = Callable[[int], Norm]


class IdentityConv1x1(nn.Module):
    """1x1 convolution with kernel `weight + identity`, where `weight` starts at 0.

    Diverse Branch Block paper, section 3.3. The identity is not in the state dict.

    Args:
        channels: channels of the input and of the output.
        groups: groups of the convolution.
    """

    identity: Tensor

    def __init__(self, channels: int, *, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        identity, _ = average_pool_as_conv(channels, 1, groups=groups)
        self.weight = nn.Parameter(torch.zeros_like(identity))
        self.register_buffer("identity", identity, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, channels, H, W)."""
        return nn.functional.conv2d(features, self.weight + self.identity, groups=self.groups)

    def equivalent_kernel(self) -> Kernel:
        """See `ReparameterizedBlock`."""
        return without_bias(self.weight + self.identity)

    def extra_repr(self) -> str:
        """See `nn.Module`."""
        return f"{self.weight.shape[0]}, groups={self.groups}"


class NormAndPad(nn.Module):
    """Norm followed by padding with the norm's output for zeros.

    With any other border, the convolution before the norm and an unpadded convolution after it
    could not be fused. The border follows the stored statistics in training too, and gets no
    gradient.

    Args:
        norm: norm of C channels, after a convolution without bias.
        padding: (rows, columns) added on either side.
    """

    def __init__(self, norm: Norm, padding: tuple[int, int]) -> None:
        super().__init__()
        self.bn = norm
        self.padding = padding

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H + 2 * rows, W + 2 * columns)."""
        normed: Tensor = self.bn(features)
        border = scale_and_shift(self.bn)[1].detach().to(normed.dtype)[:, None, None]
        # Pad the difference with zeros: exporters turn writes into a border into scatter operators.
        rows, columns = self.padding
        return nn.functional.pad(normed - border, (columns, columns, rows, rows)) + border

    def extra_repr(self) -> str:
        """See `nn.Module`."""
        return f"padding={self.padding}"


class ConvNormBranch(nn.Module):
    """A convolution without bias and its norm."""

    def __init__(self, conv: nn.Conv2d, norm: Norm) -> None:
        super().__init__()
        self.conv = conv
        self.bn = norm

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, output height, output width)."""
        return self.bn(self.conv(features))

    def equivalent_kernel(self) -> Kernel:
        """See `ReparameterizedBlock`."""
        return fuse_conv_norm(kernel_of(self.conv), self.bn)


class AverageBranch(nn.Module):
    """1x1 convolution, norm, average pooling, norm; only the last two if depthwise.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        window: geometry of the pooling.
        groups: groups of the 1x1 convolution.
        norm_layer: makes the norms.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        window: ConvGeometry,
        groups: int,
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.conv: nn.Conv2d | None = None
        self.bn: NormAndPad | None = None
        if not groups == in_channels == out_channels:
            self.conv = nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False)
            self.bn = NormAndPad(norm_layer(out_channels), window.padding)
            window = window._replace(padding=(0, 0))
        self.kernel_size = window.kernel_size[0]
        self.avg = average_pool(window)
        self.avgbn = norm_layer(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, output height, output width)."""
        if self.conv is not None and self.bn is not None:
            features = self.bn(self.conv(features))
        return self.avgbn(self.avg(features))

    def equivalent_kernel(self) -> Kernel:
        """See `ReparameterizedBlock`."""
        gamma = self.avgbn.weight
        average = average_pool_as_conv(
            gamma.shape[0],
            self.kernel_size,
            groups=self.groups,
            dtype=gamma.dtype,
            device=gamma.device,
        )
        pooled = fuse_conv_norm(average, self.avgbn)
        if self.conv is None or self.bn is None:
            return pooled
        first = fuse_conv_norm(kernel_of(self.conv), self.bn.bn)
        return chain_1x1_kxk(first, pooled, groups=self.groups)


class ChainBranch(nn.Module):
    """1x1 convolution, norm, KxK convolution, norm.

    Args:
        in_channels: C_in.
        internal_channels: channels between the convolutions; if equal to C_in, the first
            convolution starts as the identity.
        out_channels: C_out.
        window: geometry of the second convolution.
        groups: groups of both convolutions.
        norm_layer: makes the norms.
    """

    def __init__(
        self,
        in_channels: int,
        internal_channels: int,
        out_channels: int,
        *,
        window: ConvGeometry,
        groups: int,
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.idconv1: IdentityConv1x1 | None = None
        self.conv1: nn.Conv2d | None = None
        if internal_channels == in_channels:
            self.idconv1 = IdentityConv1x1(in_channels, groups=groups)
        else:
            self.conv1 = nn.Conv2d(in_channels, internal_channels, 1, groups=groups, bias=False)
        self.bn1 = NormAndPad(norm_layer(internal_channels), window.padding)
        padded = window._replace(padding=(0, 0))
        self.conv2 = conv_through(padded, internal_channels, out_channels, groups=groups)
        self.bn2 = norm_layer(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, output height, output width)."""
        first = self.idconv1 if self.conv1 is None else self.conv1
        assert first is not None
        return self.bn2(self.conv2(self.bn1(first(features))))

    def equivalent_kernel(self) -> Kernel:
        """See `ReparameterizedBlock`."""
        if self.conv1 is not None:
            first = kernel_of(self.conv1)
        else:
            assert self.idconv1 is not None
            first = self.idconv1.equivalent_kernel()
        first = fuse_conv_norm(first, self.bn1.bn)
        second = fuse_conv_norm(kernel_of(self.conv2), self.bn2)
        return chain_1x1_kxk(first, second, groups=self.groups)
