"""What the native operators must reach on a CPU, and whether they do.

The goals were set with a prototype on two cores of a Zen 4 (AVX-512); the shapes are those of
`workload.py`. A ratio passes at 0.85 of its goal, since machines differ; a ceiling is a ceiling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deformable_detr.benchmark.contenders import (
    NATIVE,
    NATIVE_BFLOAT16,
    NATIVE_FUSED,
    REFERENCE,
    REFERENCE_MODULE,
    TRANSFORMERS,
)
from deformable_detr.benchmark.jobs import Allocator, Memory, MemorySpan, Timing
from deformable_detr.benchmark.workload import DECODER, ENCODER, ENCODER_PAIR, Direction, Shape

LEAST_ROUNDS = 9
GATE_SHARE = 0.85
REFERENCE_TOLERANCE = 0.10  # by which it may differ from transformers' function

TimingsByAllocator = dict[Allocator, list[Timing]]


@dataclass(frozen=True)
class Verdict:
    """One goal, and what was measured; None if nothing was.

    Attributes:
        measured: a ratio "a / b" of contenders is one of speeds, "N = 2 / N = 1" one of costs.
        ns_a_sample: what the first of a ratio costs.
    """

    title: str
    goal: float
    gate: float
    kind: Literal["at least", "at most", "within"]
    unit: Literal["x", "MB"]
    measured: float | None
    ns_a_sample: float | None

    @property
    def passes(self) -> bool:
        """Whether the gate is met; what was not measured does not pass."""
        if self.measured is None:
            return False
        match self.kind:
            case "at least":
                return self.measured >= self.gate
            case "at most":
                return self.measured <= self.gate
            case "within":
                return abs(self.measured - 1) <= self.gate


@dataclass(frozen=True)
class _Speed:
    """How often a contender must fit into a baseline."""

    goal: float
    allocator: Allocator
    shape: Shape
    direction: Direction
    contender: str
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
_PAIR_COST = 2.1  # of two images, in times of one


def judge(
    timings: TimingsByAllocator, scaling: Sequence[Timing], memory: Sequence[Memory]
) -> list[Verdict]:
    """Every goal, beginning with those that make the others' baseline trustworthy."""
    return [
        *_judge_reference(timings),
        *(_judge_speed(speed, timings) for speed in _SPEEDS),
        *_judge_scaling(scaling),
        *_judge_memory(memory),
    ]


def find(
    timings: Sequence[Timing], shape: Shape, direction: Direction, contender: str
) -> Timing | None:
    """The timing of a contender, if it was taken."""
    wanted = (shape.name, direction, contender)
    for timing in timings:
        if (timing.shape, timing.direction, timing.contender) == wanted:
            return timing
    return None


def ratio(baseline: Timing | None, own: Timing | None) -> float | None:
    """The median ratio of two timings, if both were taken."""
    if baseline is None or own is None:
        return None
    return own.times_less_than(baseline).median


def _ns_a_sample(timing: Timing | None) -> float | None:
    return None if timing is None else timing.ns_a_sample


def _judge_speed(speed: _Speed, timings: TimingsByAllocator) -> Verdict:
    taken = timings.get(speed.allocator, [])
    baseline, own = (
        find(taken, speed.shape, speed.direction, name)
        for name in (speed.baseline, speed.contender)
    )
    return Verdict(
        title=f"{speed.shape.name} {speed.direction}, {speed.allocator}: "
        f"{speed.contender} / {speed.baseline}",
        goal=speed.goal,
        gate=GATE_SHARE * speed.goal,
        kind="at least",
        unit="x",
        measured=ratio(baseline, own),
        ns_a_sample=_ns_a_sample(own),
    )


def _judge_reference(timings: TimingsByAllocator) -> list[Verdict]:
    """The reference must be no easier and no harder to beat than what others use."""
    judged = dict.fromkeys((s.allocator, s.shape, s.direction) for s in _SPEEDS)
    verdicts = []
    for allocator, shape, direction in judged:
        taken = timings.get(allocator, [])
        theirs, ours = (find(taken, shape, direction, name) for name in (TRANSFORMERS, REFERENCE))
        verdicts.append(
            Verdict(
                title=f"{shape.name} {direction}, {allocator}: {REFERENCE} / {TRANSFORMERS}",
                goal=1,
                gate=REFERENCE_TOLERANCE,
                kind="within",
                unit="x",
                measured=ratio(theirs, ours),
                ns_a_sample=_ns_a_sample(ours),
            )
        )
    return verdicts


def _judge_scaling(scaling: Sequence[Timing]) -> list[Verdict]:
    verdicts = []
    for direction in ("forward", "backward"):
        pair, single = (
            find(scaling, shape, direction, NATIVE) for shape in (ENCODER_PAIR, ENCODER)
        )
        verdicts.append(
            Verdict(
                title=f"encoder {direction}, default: {NATIVE}, N = 2 / N = 1",
                goal=_PAIR_COST,
                gate=_PAIR_COST,
                kind="at most",
                unit="x",
                measured=ratio(pair, single),
                ns_a_sample=_ns_a_sample(pair),
            )
        )
    return verdicts


def _judge_memory(memory: Sequence[Memory]) -> list[Verdict]:
    measured = {one.span: one.megabytes for one in memory if one.contender == NATIVE}
    return [
        Verdict(
            title=f"encoder {span}: {NATIVE}, peak extra memory",
            goal=ceiling,
            gate=ceiling,
            kind="at most",
            unit="MB",
            measured=measured.get(span),
            ns_a_sample=None,
        )
        for span, ceiling in _MEGABYTES.items()
    ]
