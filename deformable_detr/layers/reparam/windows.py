"""Square, odd windows of the branches of a block."""

from torch import Tensor, nn

from deformable_detr.layers.reparam.algebra import average_pool_as_conv
from deformable_detr.ops.geometry import ConvGeometry, IntPair, pair


def square_window(
    *, kernel_size: IntPair, stride: IntPair, padding: IntPair, dilation: IntPair
) -> ConvGeometry:
    """Return the geometry of a convolution whose kernel is square and odd.

    Raises:
        ValueError: the kernel is not square and odd, or a value is out of range.
    """
    window = ConvGeometry(
        _checked("kernel_size", kernel_size, 1),
        _checked("stride", stride, 1),
        _checked("padding", padding, 0),
        _checked("dilation", dilation, 1),
    )
    height, width = window.kernel_size
    if height != width or height % 2 == 0:
        raise ValueError(f"kernel_size must be square and odd, got {kernel_size}")
    return window


def _checked(name: str, value: IntPair, least: int) -> tuple[int, int]:
    is_two = isinstance(value, int) or len(value) == 2
    if not is_two or not all(isinstance(n, int) and n >= least for n in pair(value)):
        raise ValueError(
            f"{name} must be an integer of at least {least}, or two of them, got {value!r}"
        )
    return pair(value)


def conv_through(
    window: ConvGeometry, in_channels: int, out_channels: int, *, groups: int, bias: bool = False
) -> nn.Conv2d:
    """Return a convolution with the geometry of a window."""
    return nn.Conv2d(in_channels, out_channels, *window, groups=groups, bias=bias)


def average_pool(window: ConvGeometry) -> nn.Module:
    """Return an average pooling over a window; zeros of the padding count."""
    if window.dilation == (1, 1):
        return nn.AvgPool2d(window.kernel_size, window.stride, window.padding)
    return DilatedAvgPool2d(window)


class DilatedAvgPool2d(nn.Module):
    """`nn.AvgPool2d` with a dilation; zeros of the padding count."""

    def __init__(self, window: ConvGeometry) -> None:
        super().__init__()
        self.window = window

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, output height, output width), like a convolution."""
        channels = features.shape[1]
        weight, _ = average_pool_as_conv(
            channels,
            self.window.kernel_size[0],
            groups=channels,
            dtype=features.dtype,
            device=features.device,
        )
        return nn.functional.conv2d(features, weight, None, *self.window[1:], groups=channels)

    def extra_repr(self) -> str:
        """See `nn.Module`."""
        return str(self.window)
