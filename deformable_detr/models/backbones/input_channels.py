"""First convolution of a backbone, for images of another number of channels than three."""

from collections.abc import Mapping

from torch import Tensor, nn

from deformable_detr.pixels.channels import RGB


def repeat_input_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt the weights of a first convolution from three input channels to another number.

    One channel gets the sum of the three. For others the three are repeated, R, G, B, R, ..., and
    multiplied by 3 / channels, as timm does. So an image whose channels are all equal gives what a
    gray RGB image gives, for one channel and for multiples of three. For other numbers the first
    colors count once more than the last ones.

    Args:
        weight: (O, 3, kernel height, kernel width).
        channels: number of input channels.

    Returns:
        (O, channels, kernel height, kernel width).
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeats = -(-channels // RGB)
    return weight.repeat(1, repeats, 1, 1)[:, :channels] * (RGB / channels)


def with_input_channels(
    wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the given weights, those of a first convolution adapted to the wanted channels.

    Args:
        wanted: tensors of the network by name.
        given: tensors for it by the same names; there may be others.
    """
    return {
        name: fit_input(value, wanted[name]) if name in wanted else value
        for name, value in given.items()
    }


def fit_input(value: Tensor, wanted: Tensor) -> Tensor:
    """Return weights with the wanted number of input channels, if they have three; else as is."""
    is_first = value.ndim == wanted.ndim == 4 and value.shape[1] == RGB != wanted.shape[1]
    rest = (0, *range(2, value.ndim))
    if not is_first or any(value.shape[axis] != wanted.shape[axis] for axis in rest):
        return value
    return repeat_input_channels(value, wanted.shape[1])


def set_input_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution of a network by one of another number of input channels.

    Its weights are drawn as torchvision draws them.

    Args:
        network: network of torchvision for three channels.
        channels: number of input channels; with three, nothing is changed.
    """
    if channels == RGB:
        return
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    weight = first.weight.new_empty(first.out_channels, channels, *first.kernel_size)
    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
    first.weight, first.in_channels = nn.Parameter(weight), channels


def input_channels(model: nn.Module) -> int:
    """Return the number of channels of the images of a model; three if it has no backbone."""
    channels: int = getattr(getattr(model, "backbone", None), "in_channels", RGB)
    return channels


def spread_statistic(values: Tensor, channels: int) -> Tensor:
    """Return a mean or deviation of the three colors for each channel: their mean, if not three."""
    return values if channels == RGB else values.mean().expand(channels)
