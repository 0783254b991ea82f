"""What one child process is asked to measure, and what it answers."""

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
    """Measure what the machine can do at best; answered by `Limits`."""

    device: Device
    task: Literal["limits"] = "limits"


@dataclass(frozen=True)
class TimingJob:
    """Time implementations at shapes, all interleaved; answered by `Timings`.

    Attributes:
        implementations: their names; empty for all that can run here.
    """

    device: Device
    dtype: DType
    shapes: tuple[Shape, ...]
    rounds: int
    implementations: tuple[str, ...] = ()
    task: Literal["timing"] = "timing"


@dataclass(frozen=True)
class MemoryJob:
    """Measure the peak of one call, in a process that made none before; answered by `Memory`."""

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
        flop, num_bytes: what a call of the shape cannot avoid.
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
        """Of one call, by the judged clock."""
        return summarize(self.rounds.ms)

    @property
    def wall_ms(self) -> Summary:
        """Of one call, by the wall clock."""
        return summarize(self.rounds.wall_ms)

    @property
    def page_faults(self) -> Summary:
        """Of one call."""
        return summarize(self.rounds.page_faults)

    @property
    def ns_per_sample(self) -> float:
        """The median call's, by the judged clock."""
        return self.ms.median * 1e6 / self.samples

    def speedup_over(self, baseline: "Timing") -> Summary:
        """Speed-up over a baseline by the judged clock, paired by round."""
        return paired_ratio(baseline.rounds.ms, self.rounds.ms)

    def shares_of(self, limits: Limits) -> tuple[float, float]:
        """Which parts of the memory and the arithmetic limit the median call reaches."""
        shortest = limits.shortest_ms(num_bytes=self.num_bytes, flop=self.flop)
        read, arithmetic = (ms / self.wall_ms.median for ms in shortest)
        return read, arithmetic


def find(
    timings: Sequence[Timing], shape: str, direction: Direction, implementation: str
) -> Timing | None:
    """The timing of an implementation at a shape in a direction, if it was taken."""
    wanted = (shape, direction, implementation)
    for timing in timings:
        if (timing.shape, timing.direction, timing.implementation) == wanted:
            return timing
    return None


def ratio(baseline: Timing | None, own: Timing | None) -> float | None:
    """The median speed-up over a baseline, if both were taken."""
    return None if baseline is None or own is None else own.speedup_over(baseline).median


@dataclass(frozen=True)
class Timings:
    """Timings, and why implementations are not among them."""

    timings: list[Timing]
    missing: dict[str, str]


@dataclass(frozen=True)
class Memory:
    """The peak of one call above what was there before, in 10^6 bytes; None if it is not told."""

    implementation: str
    span: MemorySpan
    megabytes: float | None
