"""Benchmark report as a JSON object with stable keys."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from deformable_detr.benchmark.ops.implementations import REFERENCE_BFLOAT16
from deformable_detr.benchmark.ops.jobs import Allocator, Timing, find
from deformable_detr.benchmark.ops.suite import Report

FORMAT = 2  # increased when a key changes its meaning or is removed


def as_record(report: Report) -> dict[str, Any]:
    """Return the output of `--json`.

    Times are in milliseconds, memory in units of 10^6 bytes, shares in fractions of one.
    """
    return {
        "format": FORMAT,
        "machine": asdict(report.machine) | {"warning": report.machine.warning},
        "device": report.plan.device,
        "dtype": report.plan.dtype,
        "rounds": report.plan.rounds,
        "clock": report.clock,
        "limits": asdict(report.limits),
        "shapes": [
            asdict(shape) | {"Q": shape.num_queries, "S": shape.S, "samples": shape.samples}
            for shape in report.plan.shapes
        ],
        "timings": [
            _timing(timing, allocator, timings, report)
            for allocator, timings in report.timings.items()
            for timing in timings
        ],
        "scaling": [_timing(one, "default", report.scaling, report) for one in report.scaling],
        "memory": [asdict(memory) for memory in report.memory],
        "missing": report.missing,
    }


def _timing(
    timing: Timing, allocator: Allocator, timings: Sequence[Timing], report: Report
) -> dict[str, Any]:
    baseline, same_dtype = (
        find(timings, timing.shape, timing.direction, name)
        for name in (timing.baseline, REFERENCE_BFLOAT16)
    )
    read_share, arithmetic_share = timing.shares_of(report.limits)
    return {
        "shape": timing.shape,
        "direction": timing.direction,
        "allocator": allocator,
        "implementation": timing.implementation,
        "calls_per_round": timing.rounds.calls,
        "ms": asdict(timing.ms),
        "wall_ms": asdict(timing.wall_ms),
        "page_faults": asdict(timing.page_faults),
        "ns_per_sample": timing.ns_per_sample,
        "samples": timing.samples,
        "flop": timing.flop,
        "bytes": timing.num_bytes,
        "baseline": timing.baseline,
        "ratio": None if baseline is None else asdict(timing.speedup_over(baseline)),
        "ratio_to_reference_bfloat16": None
        if same_dtype is None
        else asdict(timing.speedup_over(same_dtype)),
        "share_of_read_limit": read_share,
        "share_of_arithmetic_limit": arithmetic_share,
        "rounds_ms": timing.rounds.ms,
        "rounds_wall_ms": timing.rounds.wall_ms,
    }
