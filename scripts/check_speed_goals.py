"""Measure the native operators on a CPU and compare them with their goals.

The goals were set with a prototype on two cores of a Zen 4 (AVX-512), for the shapes of
`deformable_detr/benchmark/ops/workload.py`. A speed-up passes at 0.85 of its goal, since machines
differ; upper limits have no tolerance. Takes about six minutes on two cores, which should be idle.

Usage: .venv/bin/python scripts/check_speed_goals.py [--rounds 9]
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console

from deformable_detr.benchmark.machine import describe_machine
from deformable_detr.benchmark.ops.implementations import (
    NATIVE,
    NATIVE_BFLOAT16,
    NATIVE_FUSED,
    REFERENCE,
    REFERENCE_MODULE,
    TRANSFORMERS,
)
from deformable_detr.benchmark.ops.jobs import Allocator, Memory, MemorySpan, Timing, find, ratio
from deformable_detr.benchmark.ops.suite import SHAPES, Plan, Report, run
from deformable_detr.benchmark.ops.tables import show
from deformable_detr.benchmark.ops.workload import (
    DECODER,
    ENCODER,
    ENCODER_PAIR,
    Direction,
    Shape,
)

ROUNDS = 9  # fewer are not reliable
GATE_SHARE = 0.85
REFERENCE_TOLERANCE = 0.10  # maximum relative difference from the function of transformers

TimingsByAllocator = dict[Allocator, list[Timing]]


@dataclass(frozen=True)
class Verdict:
    """Goal and its measurement.

    Attributes:
        measured: for implementations "a / b" the speed-up of a over b, for "N = 2 / N = 1" the
            ratio of times, for memory the megabytes; None if it was not measured.
        ns_per_sample: time per sample of the first of a ratio; None if there is none.
    """

    title: str
    goal: float
    gate: float
    kind: Literal["at least", "at most", "within"]
    unit: Literal["x", "MB"]
    measured: float | None
    ns_per_sample: float | None

    @property
    def passes(self) -> bool:
        """True if the measurement is within the gate; False if nothing was measured."""
        if self.measured is None:
            return False
        match self.kind:
            case "at least":
                return self.measured >= self.gate
            case "at most":
                return self.measured <= self.gate
            case "within":
                return abs(self.measured - 1) <= self.gate

    def describe(self) -> str:
        """Describe the verdict in one line."""
        gate = f"1 +- {self.gate:.2f}" if self.kind == "within" else f"{self.gate:.1f}"
        found = "not measured" if self.measured is None else f"{self.measured:.2f} {self.unit}"
        cost = "" if self.ns_per_sample is None else f", {self.ns_per_sample:.2f} ns per sample"
        return (
            f"{'pass' if self.passes else 'FAIL'}  {self.title}: {found}, must be {self.kind} "
            f"{gate} (goal {self.goal:g}){cost}"
        )


@dataclass(frozen=True)
class _Speed:
    """Required speed-up of an implementation over a baseline."""

    goal: float
    allocator: Allocator
    shape: Shape
    direction: Direction
    implementation: str
    baseline: str = REFERENCE


_SPEEDS = (
    _Speed(45, "warm", ENCODER, "forward", NATIVE),
    _Speed(75, "default", ENCODER, "forward", NATIVE),
    _Speed(45, "warm", ENCODER, "forward", NATIVE_FUSED, REFERENCE_MODULE),
    _Speed(60, "warm", ENCODER, "forward", NATIVE_BFLOAT16),
    _Speed(30, "warm", DECODER, "forward", NATIVE),
    _Speed(37, "warm", ENCODER, "backward", NATIVE),
    _Speed(13, "warm", DECODER, "backward", NATIVE),
)
_MEGABYTES: dict[MemorySpan, float] = {"forward": 26, "forward+backward": 75}
_PAIR_COST = 2.1  # maximum time of two images relative to one


def main() -> int:
    """Measure, and print tables and goals; the exit code is 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    if rounds < ROUNDS:
        parser.error(f"--rounds must be at least {ROUNDS}, got {rounds}")
    plan = Plan("cpu", "float32", SHAPES["all"], rounds=rounds, with_extras=True)
    report = run(plan, describe_machine("cpu"), lambda text: print(text, file=sys.stderr))
    console = Console(highlight=False, width=100)
    for part in show(report):
        console.print(part)
    verdicts = judge(report)
    print("\nGoals", *map(Verdict.describe, verdicts), sep="\n")
    return 0 if all(verdict.passes for verdict in verdicts) else 1


def judge(report: Report) -> list[Verdict]:
    """Judge all goals; the goals of the baseline come first."""
    return [
        *_judge_reference(report.timings),
        *(_judge_speed(speed, report.timings) for speed in _SPEEDS),
        *_judge_scaling(report.scaling),
        *_judge_memory(report.memory),
    ]


def _ns_per_sample(timing: Timing | None) -> float | None:
    return None if timing is None else timing.ns_per_sample


def _judge_speed(speed: _Speed, timings: TimingsByAllocator) -> Verdict:
    taken = timings.get(speed.allocator, [])
    baseline, own = (
        find(taken, speed.shape.name, speed.direction, name)
        for name in (speed.baseline, speed.implementation)
    )
    return Verdict(
        title=f"{speed.shape.name} {speed.direction}, {speed.allocator}: "
        f"{speed.implementation} / {speed.baseline}",
        goal=speed.goal,
        gate=GATE_SHARE * speed.goal,
        kind="at least",
        unit="x",
        measured=ratio(baseline, own),
        ns_per_sample=_ns_per_sample(own),
    )


def _judge_reference(timings: TimingsByAllocator) -> list[Verdict]:
    """Check that the reference, the baseline, is as fast as the function of transformers."""
    judged = dict.fromkeys((s.allocator, s.shape, s.direction) for s in _SPEEDS)
    verdicts = []
    for allocator, shape, direction in judged:
        taken = timings.get(allocator, [])
        theirs, ours = (
            find(taken, shape.name, direction, name) for name in (TRANSFORMERS, REFERENCE)
        )
        verdicts.append(
            Verdict(
                title=f"{shape.name} {direction}, {allocator}: {REFERENCE} / {TRANSFORMERS}",
                goal=1,
                gate=REFERENCE_TOLERANCE,
                kind="within",
                unit="x",
                measured=ratio(theirs, ours),
                ns_per_sample=_ns_per_sample(ours),
            )
        )
    return verdicts


def _judge_scaling(scaling: Sequence[Timing]) -> list[Verdict]:
    verdicts = []
    for direction in ("forward", "backward"):
        pair, single = (
            find(scaling, shape.name, direction, NATIVE) for shape in (ENCODER_PAIR, ENCODER)
        )
        verdicts.append(
            Verdict(
                title=f"encoder {direction}, default: {NATIVE}, N = 2 / N = 1",
                goal=_PAIR_COST,
                gate=_PAIR_COST,
                kind="at most",
                unit="x",
                measured=ratio(pair, single),
                ns_per_sample=_ns_per_sample(pair),
            )
        )
    return verdicts


def _judge_memory(memory: Sequence[Memory]) -> list[Verdict]:
    measured = {one.span: one.megabytes for one in memory if one.implementation == NATIVE}
    return [
        Verdict(
            title=f"encoder {span}: {NATIVE}, peak extra memory",
            goal=ceiling,
            gate=ceiling,
            kind="at most",
            unit="MB",
            measured=measured.get(span),
            ns_per_sample=None,
        )
        for span, ceiling in _MEGABYTES.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
