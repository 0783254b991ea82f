"""Probe of a network: which image sizes it takes, and which of its parameters its maps depend on.

The network is copied to the "meta" device, where tensors have shapes and no numbers. So nothing is
computed, no random number is drawn, and neither the network's mode nor its statistics change.
"""

import copy
import functools
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deformable_detr.pixels.channels import RGB
from deformable_detr.structures import Size

# All odd, to tell from each other the ways in which a layer can round; 2^k + 1 stays odd when it is
# halved and rounded up, so that the last layers are tested as well as the first.
_ANY_SIZES: tuple[Size, ...] = ((65, 99), (103, 129))
# Of two images, in multiples; without a common divisor, so that no larger multiple passes.
_MULTIPLES: tuple[Size, ...] = ((3, 5), (5, 11))
_MAX_LETTERS = 100  # of a foreign message


class UnfitNetworkError(ValueError):
    """Network that has no maps of the right size for images of any size; the message says why."""


@dataclass(frozen=True)
class Probe:
    """Result of a probe.

    Attributes:
        multiple: number of pixels of which both sides of an image must be a multiple; 1 if the
            network takes any size, and its maps have ceil(side / stride) cells.
        unused: names of the parameters that the maps do not depend on.
    """

    multiple: int
    unused: tuple[str, ...]


def probe_network(
    network: nn.Module,
    strides: Sequence[int],
    *,
    multiples: Sequence[int],
    covering: bool,
    channels_last: bool,
    in_channels: int = RGB,
) -> Probe:
    """Find out which sizes a network takes, and which parameters it uses.

    Args:
        network: (N, in_channels, H, W) images -> one map per stride; it is not changed.
        strides: strides of its maps.
        multiples: multiples to try after 1, in this order, if the network does not take any size.
        covering: whether maps must cover all pixels of the image; otherwise the network must only
            run.
        channels_last: whether the maps are (N, H, W, C).
        in_channels: channels of the images.

    Raises:
        UnfitNetworkError: no multiple is right.
    """
    reasons: dict[int, str] = {}
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller's mode is
        shadow = _without_numbers(network)
        run = functools.partial(_run, shadow, in_channels)
        for multiple in dict.fromkeys((1, *multiples)):
            sizes = _ANY_SIZES if multiple == 1 else _times(_MULTIPLES, multiple)
            found = _first_fault(
                run, sizes, strides, covering=covering, channels_last=channels_last
            )
            if found is None:
                return Probe(multiple, _unused(shadow, run(sizes[0])))
            reasons[multiple] = found
    tried = " or ".join(str(multiple) for multiple in list(reasons)[1:])
    raise UnfitNetworkError(f"even if sides are multiples of {tried}, {list(reasons.values())[-1]}")


def _times(sizes: Sequence[Size], factor: int) -> tuple[Size, ...]:
    return tuple((height * factor, width * factor) for height, width in sizes)


def _without_numbers(network: nn.Module) -> nn.Module:
    """Return a copy in eval mode, with trainable parameters, whose tensors are on "meta"."""
    memo: dict[int, object] = {}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"))
    for buffer in network.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(network, memo).eval()


def _run(shadow: nn.Module, in_channels: int, size: Size) -> list[Tensor]:
    with torch.device("meta"):  # for tensors that the network creates
        maps: list[Tensor] = shadow(torch.empty(1, in_channels, *size))
    return maps


@torch.no_grad()
def _first_fault(
    run: Callable[[Size], list[Tensor]],
    sizes: Sequence[Size],
    strides: Sequence[int],
    *,
    covering: bool,
    channels_last: bool,
) -> str | None:
    """Describe what goes wrong for the first of the sizes that the network does not take."""
    for height, width in sizes:
        try:
            maps = run((height, width))
        except Exception as error:  # the checks and operators of any network raise any kind
            described = textwrap.shorten(f"{type(error).__name__}: {error}", _MAX_LETTERS)
            return f"images of {height} x {width} pixels end with {described.removesuffix(':')}"
        for features, stride in zip(maps, strides, strict=True):
            cells = tuple(features.shape[1:3] if channels_last else features.shape[2:])
            wanted = (-(-height // stride), -(-width // stride))
            if covering and cells != wanted:
                return (
                    f"the map of stride {stride} of {height} x {width} pixels has "
                    f"{_by(cells)} cells instead of {_by(wanted)}"
                )
    return None


def _by(cells: Sequence[int]) -> str:
    return " x ".join(str(count) for count in cells)


def _unused(shadow: nn.Module, maps: Sequence[Tensor]) -> tuple[str, ...]:
    total = torch.stack([features.sum() for features in maps]).sum()
    parameters = dict(shadow.named_parameters())
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters, gradients, strict=True)
    return tuple(name for name, gradient in pairs if gradient is None)
