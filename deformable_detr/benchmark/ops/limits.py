"""Limits of the machine, measured with plain PyTorch operations."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from deformable_detr.benchmark.timing import Clock, clock_for

READ_BYTES = 512 * 2**20  # larger than any cache
MATRIX_SIZE = {"cpu": 1536, "cuda": 8192}
TRIALS = 7


@dataclass(frozen=True)
class Limits:
    """Best of several trials, by the wall clock and on all threads.

    Attributes:
        read_gb_s: memory read in 10^9 bytes per second: sum of a float32 vector of 512 MiB.
        gflop_s: float32 operations in 10^9 per second, of multiply-adds: square matrix product.
    """

    read_gb_s: float
    gflop_s: float

    def shortest_ms(self, *, num_bytes: int, flop: int) -> tuple[float, float]:
        """Return the minimum times for the given number of bytes and of operations."""
        return num_bytes / self.read_gb_s / 1e6, flop / self.gflop_s / 1e6


def measure_limits(device: str) -> Limits:
    """Measure both limits; takes a few seconds."""
    clock = clock_for(device)
    size = MATRIX_SIZE[device]
    vector = torch.ones(READ_BYTES // 4, device=device)
    left, right = torch.randn(2, size, size, device=device)
    # No TF32, which has another limit: the kernels multiply in float32.
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return Limits(
            read_gb_s=READ_BYTES / 1e6 / _shortest_ms(vector.sum, clock),
            gflop_s=2 * size**3 / 1e6 / _shortest_ms(lambda: left @ right, clock),
        )
    finally:
        torch.set_float32_matmul_precision(precision)


def _shortest_ms(call: Callable[[], object], clock: Clock) -> float:
    clock.time([call])
    return min(clock.time([call]).wall_ms for _ in range(TRIALS))
