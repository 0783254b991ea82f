"""Jobs for a child process, and their results."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deformable_detr.benchmark.ops.limits import Limits
from deformable_detr.benchmark.ops.workload import Direction, Shape
from deformable_detr.benchmark.summary import Summary, paired_ratio, summarize
from deformable_detr.benchmark.timing import Rounds

Device = Literal["cpu", "cuda"]
DType = Literal["float32", "bfloat16", "float16"]
Allocator = Literal["default", "warm"]
MemorySpan = Literal["forward", "forward+backward"]


@dataclass(frozen=True)
class LimitsJob:
    """Measurement of the machine's limits; the result is `Limits`."""

    device: Device
    task: Literal["limits"] = "limits"


@dataclass(frozen=True)
class TimingJob:
    """Interleaved timing of implementations at shapes; the result is `Timings`.

    Attributes:
        implementations: names of the implementations; empty for all that can run here.
    """

    device: Device
    dtype: DType
    shapes: tuple[Shape, ...]
    rounds: int
    implementations: tuple[str, ...] = ()
    task: Literal["timing"] = "timing"


@dataclass(frozen=True)
class MemoryJob:
    """Peak memory of one call in a fresh process; the result is `Memory`."""

    device: Device
    dtype: DType
    shape: Shape
    implementation: str
    span: MemorySpan
    task: Literal["memory"] = "memory"


Job = LimitsJob | TimingJob | MemoryJob


@dataclass(frozen=True)
class Timing:
    """All rounds of one implementation at one shape in one direction.

    Attributes:
        flop, num_bytes: minimum number of operations and bytes per call at that shape.
    """

    shape: str
    direction: Direction
    implementation: str
    baseline: str
    samples: int
    flop: int
    num_bytes: int
    rounds: Rounds

    @property
    def ms(self) -> Summary:
        """Time per call by the primary clock."""
        return summarize(self.rounds.ms)

    @property
    def wall_ms(self) -> Summary:
        """Time per call by the wall clock."""
        return summarize(self.rounds.wall_ms)

    @property
    def page_faults(self) -> Summary:
        """Page faults per call."""
        return summarize(self.rounds.page_faults)

    @property
    def ns_per_sample(self) -> float:
        """Median time per sample by the primary clock."""
        return self.ms.median * 1e6 / self.samples

    def speedup_over(self, baseline: "Timing") -> Summary:
        """Return the speed-up over a baseline by the primary clock, paired by round."""
        return paired_ratio(baseline.rounds.ms, self.rounds.ms)

    def shares_of(self, limits: Limits) -> tuple[float, float]:
        """Return the fractions of the memory and arithmetic limits that the median call reaches."""
        shortest = limits.shortest_ms(num_bytes=self.num_bytes, flop=self.flop)
        read, arithmetic = (ms / self.wall_ms.median for ms in shortest)
        return read, arithmetic


def find(
    timings: Sequence[Timing], shape: str, direction: Direction, implementation: str
) -> Timing | None:
    """Return the timing of an implementation at a shape in a direction, or None."""
    wanted = (shape, direction, implementation)
    for timing in timings:
        if (timing.shape, timing.direction, timing.implementation) == wanted:
            return timing
    return None


def ratio(baseline: Timing | None, own: Timing | None) -> float | None:
    """Return the median speed-up over a baseline, or None if one is missing."""
    return None if baseline is None or own is None else own.speedup_over(baseline).median


@dataclass(frozen=True)
class Timings:
    """Timings, and reasons for missing implementations."""

    timings: list[Timing]
    missing: dict[str, str]


@dataclass(frozen=True)
class Memory:
    """Peak memory of one call above the memory before it, in 10^6 bytes, or None."""

    implementation: str
    span: MemorySpan
    megabytes: float | None
