"""Clocks, and interleaved rounds of measurements."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

# Far above the resolution of the clocks, and short compared with time slices of other programs.
SHORTEST_TURN_MS = 50.0
MOST_CALLS = 1000

Call = Callable[[], object]


@dataclass(frozen=True)
class Lap:
    """Total cost of several calls.

    Attributes:
        ms: time by the primary clock: process CPU time of all threads, or CUDA events.
        wall_ms: time by the wall clock.
        page_faults: number of page faults without I/O.
    """

    ms: float
    wall_ms: float
    page_faults: int


class Clock(Protocol):
    """Interface of clocks that time calls."""

    name: str

    def time(self, calls: Sequence[Call]) -> Lap:
        """Make the calls one after another, and return their cost."""
        ...


class CpuClock:
    """Clock of the process's CPU time over all threads, which other programs hardly affect."""

    name = "process CPU time, all threads"

    def time(self, calls: Sequence[Call]) -> Lap:
        """See `Clock`."""
        faults = _page_faults()
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        for call in calls:
            call()
        cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
        return Lap(cpu / 1e6, wall / 1e6, _page_faults() - faults)


class CudaClock:
    """Clock of the GPU time between two events around the calls."""

    name = "CUDA events"

    def time(self, calls: Sequence[Call]) -> Lap:
        """See `Clock`."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        faults, wall = _page_faults(), time.perf_counter_ns()
        begin.record()
        for call in calls:
            call()
        end.record()
        torch.cuda.synchronize()
        wall = time.perf_counter_ns() - wall
        return Lap(begin.elapsed_time(end), wall / 1e6, _page_faults() - faults)


def clock_for(device: str) -> Clock:
    """Return the primary clock for a device."""
    return CudaClock() if device == "cuda" else CpuClock()


def _page_faults() -> int:
    if sys.platform == "win32":  # has no such counter
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@dataclass(frozen=True)
class Task:
    """Task to time.

    Attributes:
        prepare: function that prepares the given number of calls, untimed, and returns them.
    """

    name: str
    prepare: Callable[[int], list[Call]]


@dataclass
class Rounds:
    """Cost per call of a task in each round."""

    calls: int
    ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    page_faults: list[float] = field(default_factory=list)

    def add(self, lap: Lap) -> None:
        """Add a round."""
        self.ms.append(lap.ms / self.calls)
        self.wall_ms.append(lap.wall_ms / self.calls)
        self.page_faults.append(lap.page_faults / self.calls)


def measure(
    tasks: Sequence[Task], *, rounds: int, clock: Clock, report: Callable[[str], None]
) -> dict[str, Rounds]:
    """Time the tasks in interleaved rounds, in a different order each round."""
    taken = {}
    for task in tasks:
        report(f"warming up {task.name}")
        taken[task.name] = Rounds(_calls_per_turn(task, clock))
    for index in range(rounds):
        for place in order_of_round(len(tasks), index):
            task = tasks[place]
            report(f"round {index + 1} of {rounds}: {task.name}")
            own = taken[task.name]
            own.add(clock.time(task.prepare(own.calls)))
    return taken


def _calls_per_turn(task: Task, clock: Clock) -> int:
    """Return the number of calls for a long enough turn; the preparation is the warm-up."""
    lap = clock.time(task.prepare(1))
    return min(MOST_CALLS, math.ceil(SHORTEST_TURN_MS / max(1e-3, min(lap.ms, lap.wall_ms))))


def order_of_round(count: int, round_index: int) -> list[int]:
    """Return the order of `count` tasks in a round.

    These are the rows of Williams' design: over `count` rounds each task has each position once,
    and (over twice as many rounds if `count` is odd) follows each other task equally often. With a
    mere rotation, a task would always inherit heap and caches of the same predecessor.
    """
    zigzag = [step // 2 if step % 2 == 0 else count - 1 - step // 2 for step in range(count)]
    order = [(place + round_index) % count for place in zigzag]
    return order[::-1] if round_index // count % 2 else order
