"""Time deformable layers and fused models against their baselines, interleaved."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor

from deformable_detr.benchmark.summary import Summary, paired_ratio, summarize
from deformable_detr.benchmark.timing import Call, CpuClock, Task
from deformable_detr.benchmark.timing import measure as take_turns
from deformable_detr.builders.model import build_backbone
from deformable_detr.config import ResNetConfig
from deformable_detr.layers.deform_conv import DeformConv2d, ModulatedDeformConv2d
from deformable_detr.layers.reparam.fuse import fuse_model
from deformable_detr.models.backbones.surgery import (
    ac_block,
    diverse_branch_block,
    replace_convs,
)
from deformable_detr.ops.deform_kernel.dispatch import deform_kernel_conv2d
from deformable_detr.ops.deform_kernel.reference import deform_kernel_conv2d_core_pytorch
from deformable_detr.ops.geometry import ConvGeometry

DEFORM_LIMIT = 1.05  # relative to the time of torchvision's function
FUSED_LIMIT = 1.03  # relative to the time of the plain model
KERNEL_LIMIT = 1.0  # relative to the time of the plain PyTorch function
# The stages of strides 8 to 32 of a ResNet-50 at 800 x 1072: channels, height and width.
DEFORM_SHAPES = ((128, 100, 134), (256, 50, 67), (512, 25, 34))
KERNEL_SHAPE = (96, 50, 67)


@dataclass(frozen=True)
class Pair:
    """Own implementation and its baseline, with a limit on the ratio of their times.

    Attributes:
        name: description of the computation.
        own: call of the own implementation; returns the same as `other`.
        other: call of the baseline.
        limit: maximum time of `own` relative to `other`.
    """

    name: str
    own: Callable[[], Tensor]
    other: Callable[[], Tensor]
    limit: float


@dataclass(frozen=True)
class Comparison:
    """Times of a pair.

    Attributes:
        pair: pair that was timed.
        own_ms: CPU time of `own` over all threads, per call.
        other_ms: the same for `other`.
        ratio: own over other, paired by round.
    """

    pair: Pair
    own_ms: Summary
    other_ms: Summary
    ratio: Summary

    @property
    def holds(self) -> bool:
        """True if the median of the ratios is within the limit."""
        return self.ratio.median <= self.pair.limit

    def describe(self) -> str:
        """Return a one-line description."""
        verdict = "holds" if self.holds else "MISSED"
        return (
            f"{self.pair.name}: {self.own_ms.median:.2f} ms, {self.other_ms.median:.2f} ms, "
            f"ratio {self.ratio.describe(3)}, "
            f"limit {self.pair.limit:.2f} {verdict}"
        )


def measure(rounds: int, report: Callable[[str], None]) -> Iterator[Comparison]:
    """Time all pairs; the calls of a pair are interleaved."""
    torch.manual_seed(0)
    for pair in (*deform_pairs(), kernel_pair(), *fused_pairs()):

        def report_pair(text: str, name: str = pair.name) -> None:
            report(f"{name}: {text}")

        tasks = [Task(name, _prepare(call)) for name, call in _calls(pair)]
        taken = take_turns(tasks, rounds=rounds, clock=CpuClock(), report=report_pair)
        own, other = taken["own"].ms, taken["other"].ms
        yield Comparison(pair, summarize(own), summarize(other), paired_ratio(own, other))


def _calls(pair: Pair) -> tuple[tuple[str, Call], ...]:
    return ("own", pair.own), ("other", pair.other)


def _prepare(call: Call) -> Callable[[int], list[Call]]:
    return lambda count: [call] * count


def deform_pairs() -> Iterator[Pair]:
    """Yield our layers against torchvision's function: forward, and all gradients."""
    for shape in DEFORM_SHAPES:
        for kind in (DeformConv2d, ModulatedDeformConv2d):
            yield from _deform_pairs(kind, shape)


def _deform_pairs(
    kind: type[DeformConv2d | ModulatedDeformConv2d], shape: tuple[int, int, int]
) -> Iterator[Pair]:
    C = shape[0]
    layer = kind(C, C, 3, padding=1)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.3 / (9 * C) ** 0.5)
    features = torch.randn(1, *shape, requires_grad=True)

    def own() -> Tensor:
        output: Tensor = layer(features)
        return output

    def other() -> Tensor:
        offset, mask = layer.sampling(features)
        output: Tensor = torchvision.ops.deform_conv2d(
            features, offset, layer.weight, layer.bias, padding=1, mask=mask
        )
        return output

    def with_gradients(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        inputs = [features, *layer.parameters()]
        return lambda: torch.autograd.grad(call().sum(), inputs)[0]

    name = f"{kind.__name__} at {(1, *shape)}"
    yield Pair(f"{name}, forward", torch.no_grad()(own), torch.no_grad()(other), DEFORM_LIMIT)
    yield Pair(f"{name}, all gradients", with_gradients(own), with_gradients(other), DEFORM_LIMIT)


def kernel_pair() -> Pair:
    """Return deformable kernels against their reference, with all gradients."""
    C, H, W = KERNEL_SHAPE
    inputs = [
        torch.randn(1, C, H, W, requires_grad=True),
        torch.randn(C, 1, 4, 4, requires_grad=True),  # the scope
        (0.5 * torch.randn(1, 2 * 9, H, W)).requires_grad_(),  # rotations in cells of the scope
    ]
    grad_output = torch.randn(1, C, H, W)
    geometry = ConvGeometry((3, 3), padding=(1, 1))

    def with_gradients(function: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(
            function(*inputs, geometry=geometry), inputs, grad_output
        )[0]

    return Pair(
        f"deform_kernel_conv2d at {(1, C, H, W)}, all gradients",
        with_gradients(deform_kernel_conv2d),
        with_gradients(deform_kernel_conv2d_core_pytorch),
        KERNEL_LIMIT,
    )


def fused_pairs(*, depth: int = 50, size: int = 320) -> Iterator[Pair]:
    """Yield fused backbones against the plain backbone that they are equivalent to."""
    images = torch.randn(1, 3, size, size)
    for name, replacement in (
        ("ACBlock", ac_block()),
        ("DiverseBranchBlock", diverse_branch_block()),
    ):
        config = ResNetConfig.model_validate({"depth": depth, "weights": "none"})
        plain, blocks = build_backbone(config).eval(), build_backbone(config).eval()
        blocks.load_state_dict(plain.state_dict())
        replace_convs(blocks, replacement, strides=config.out_strides)
        yield Pair(
            f"ResNet-{depth} of {name}s, fused, {size} x {size}, forward",
            _last_map_of(fuse_model(blocks), images),
            _last_map_of(plain, images),
            FUSED_LIMIT,
        )


def _last_map_of(backbone: torch.nn.Module, images: Tensor) -> Callable[[], Tensor]:
    @torch.no_grad()
    def call() -> Tensor:
        last: Tensor = backbone(images)[-1]
        return last

    return call
