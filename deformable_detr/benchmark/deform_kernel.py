"""Times deform_kernel_conv2d beside its reference, forward and backward, in turns on one thread."""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from deformable_detr.ops.deform_kernel.dispatch import deform_kernel_conv2d
from deformable_detr.ops.deform_kernel.reference import deform_kernel_conv2d_core_pytorch
from deformable_detr.ops.geometry import ConvGeometry

SHAPE = (1, 96, 50, 67)
SCOPE = 4
GEOMETRY = ConvGeometry((3, 3), padding=(1, 1))
NUM_TAPS = 9
ROUNDS, WARM_UP = 50, 10
# For a tap of a channel at a position: a kernel value of four corners and the sum, forward and
# again backward for the map's gradient (2 * 10); one product with the gradient of the output, which
# goes to four cells of the scope (8) and is compared with them for the rotation (8).
FLOP_PER_TAP = 2 * 10 + 1 + 8 + 8


def _call(function: Callable[..., Tensor], tensors: list[Tensor], grad: Tensor) -> None:
    """Forward and backward."""
    torch.autograd.grad(function(*tensors, geometry=GEOMETRY), tensors, grad)


def _milliseconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall clock and processor time of a call."""
    wall, processor = time.perf_counter(), time.thread_time()
    work()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.thread_time() - processor)


def _spread(times: list[float]) -> str:
    """Median, tenth and ninetieth percentile."""
    low, *_, high = statistics.quantiles(times, n=10)
    return f"{statistics.median(times):7.2f} ({low:.2f} to {high:.2f})"


def _roofline(size: Tensor, rotation: Tensor) -> tuple[float, str]:
    """The larger of arithmetic and memory time in ms, at rates measured here and now; in words."""
    flop = FLOP_PER_TAP * NUM_TAPS * size.numel()
    moved = 4 * (5 * size.numel() + 3 * rotation.numel())  # x twice, out, its gradient, x's
    matrix, copied = torch.randn(1024, 1024), torch.randn(2**24)
    target = torch.empty_like(copied)
    product = min(_milliseconds(lambda: matrix @ matrix)[1] for _ in range(20))
    copy = min(_milliseconds(lambda: target.copy_(copied))[1] for _ in range(20))
    flop_ms = flop / (2 * 1024**3 / product)
    bytes_ms = moved / (2 * 4 * 2**24 / copy)
    text = f"{flop / 1e6:.0f} MFLOP in {flop_ms:.2f} ms, {moved / 1e6:.1f} MB in {bytes_ms:.2f} ms"
    return max(flop_ms, bytes_ms), text


def measure(rounds: int = ROUNDS) -> Iterator[str]:
    """Measure at (1, 96, 50, 67), scope 4, kernel 3; medians, tenth and ninetieth percentiles.

    By the wall clock and by the thread's own processor time, which other programs on the core
    inflate less; and what the operation would take at the rates that this machine reaches in a
    matrix product and in a copy.

    Args:
        rounds: turns of each, of which the first `WARM_UP` do not count.

    Yields:
        Lines to print.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _measure(rounds)
    finally:
        torch.set_num_threads(threads)


def _measure(rounds: int) -> Iterator[str]:
    torch.manual_seed(0)
    N, C, H, W = SHAPE
    tensors = [
        torch.randn(SHAPE),
        torch.randn(C, 1, SCOPE, SCOPE),
        0.5 * torch.randn(N, 2 * NUM_TAPS, H, W),
    ]
    for tensor in tensors:
        tensor.requires_grad_()
    grad = torch.randn(SHAPE)
    functions = {"fast": deform_kernel_conv2d, "reference": deform_kernel_conv2d_core_pytorch}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for _ in range(rounds + WARM_UP):
        for name, function in functions.items():
            times[name].append(_milliseconds(partial(_call, function, tensors, grad)))
    bound, text = _roofline(grad, tensors[2])
    yield text
    for clock, label in enumerate(("wall clock", "processor")):
        measured = {name: [t[clock] for t in all_[WARM_UP:]] for name, all_ in times.items()}
        for name, numbers in measured.items():
            yield f"{label:10} {name:9} {_spread(numbers)} ms"
        fast, reference = (statistics.median(measured[name]) for name in functions)
        yield f"{label:10} {reference / fast:.2f} times faster; roofline / fast {bound / fast:.0%}"
