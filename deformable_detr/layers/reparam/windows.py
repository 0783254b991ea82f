"""The windows that a convolution or a pooling looks through."""

import dataclasses

from torch import Tensor, nn

from deformable_detr.layers.reparam.algebra import average_pool_as_conv

Size = int | tuple[int, ...]  # for both directions, or for (rows, columns)
Pair = tuple[int, int]  # (rows, columns)


@dataclasses.dataclass(frozen=True)
class Window:
    """Where a convolution or a pooling looks, as of `nn.Conv2d`."""

    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @property
    def reach(self) -> Pair:
        """How far (rows, columns) the middle of an odd window is from its first cell."""
        return (
            self.dilation[0] * (self.kernel_size[0] // 2),
            self.dilation[1] * (self.kernel_size[1] // 2),
        )

    def without_padding(self) -> "Window":
        """The same in a map that has its padding already."""
        return dataclasses.replace(self, padding=(0, 0))

    def conv(
        self, in_channels: int, out_channels: int, *, groups: int, bias: bool = False
    ) -> nn.Conv2d:
        """A convolution that looks there."""
        return nn.Conv2d(
            in_channels, out_channels, **dataclasses.asdict(self), groups=groups, bias=bias
        )

    def average_pool(self) -> nn.Module:
        """An average over the same cells; zeros of the padding count."""
        if self.dilation == (1, 1):
            return nn.AvgPool2d(self.kernel_size, self.stride, self.padding)
        return DilatedAvgPool2d(self)


def square_window(*, kernel_size: Size, stride: Size, padding: Size, dilation: Size) -> Window:
    """The window of such a convolution.

    Raises:
        ValueError: an even or oblong kernel, or a value out of range.
    """
    window = Window(
        kernel_size=_pair("kernel_size", kernel_size, 1),
        stride=_pair("stride", stride, 1),
        padding=_pair("padding", padding, 0),
        dilation=_pair("dilation", dilation, 1),
    )
    height, width = window.kernel_size
    if height != width or height % 2 == 0:
        raise ValueError(f"kernel_size must be square and odd, got {kernel_size}")
    return window


def _pair(name: str, value: Size, least: int) -> Pair:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(number, int) and number >= least for number in pair):
        raise ValueError(
            f"{name} must be an integer of at least {least}, or two of them, got {value!r}"
        )
    return pair[0], pair[1]


class DilatedAvgPool2d(nn.Module):
    """`nn.AvgPool2d` with a dilation; zeros of the padding count."""

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, output height, output width), as of a convolution."""
        window, channels = self.window, features.shape[1]
        weight, _ = average_pool_as_conv(
            channels,
            window.kernel_size[0],
            groups=channels,
            dtype=features.dtype,
            device=features.device,
        )
        geometry = (window.stride, window.padding, window.dilation)
        return nn.functional.conv2d(features, weight, None, *geometry, groups=channels)

    def extra_repr(self) -> str:
        """See `nn.Module`."""
        return str(self.window)
