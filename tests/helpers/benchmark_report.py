"""Synthetic benchmark reports with given times."""

from deformable_detr.benchmark.machine import Machine
from deformable_detr.benchmark.ops.implementations import (
    NATIVE,
    NATIVE_BFLOAT16,
    NATIVE_FUSED,
    REFERENCE,
    REFERENCE_BFLOAT16,
    REFERENCE_MODULE,
    TRANSFORMERS,
)
from deformable_detr.benchmark.ops.jobs import Allocator, Memory, Timing
from deformable_detr.benchmark.ops.limits import Limits
from deformable_detr.benchmark.ops.suite import SPANS, Plan, Report
from deformable_detr.benchmark.ops.workload import (
    DECODER,
    DIRECTIONS,
    ENCODER,
    ENCODER_PAIR,
    Direction,
    Shape,
)
from deformable_detr.benchmark.timing import Rounds

BASELINES = {NATIVE_FUSED: REFERENCE_MODULE}
# Times per call with which every goal is just reached.
MS = {
    REFERENCE: 750.0,
    REFERENCE_MODULE: 800.0,
    REFERENCE_BFLOAT16: 700.0,
    TRANSFORMERS: 760.0,
    NATIVE: 10.0,
    NATIVE_FUSED: 11.0,
    NATIVE_BFLOAT16: 9.0,
}


def make_timing(
    implementation: str, shape: Shape = ENCODER, direction: Direction = "forward", *, ms: float
) -> Timing:
    """Make a timing of three rounds around `ms`, with half of it as wall-clock time."""
    rounds = Rounds(calls=2)
    for factor in (0.9, 1.0, 1.1):
        rounds.ms.append(ms * factor)
        rounds.wall_ms.append(ms * factor / 2)
        rounds.page_faults.append(222_736.0)
    return Timing(
        shape=shape.name,
        direction=direction,
        implementation=implementation,
        baseline=BASELINES.get(implementation, REFERENCE),
        samples=shape.samples,
        flop=shape.flop(direction),
        num_bytes=60_000_000,
        rounds=rounds,
    )


def make_timings(**changed: float) -> dict[Allocator, list[Timing]]:
    """Make timings of all implementations, shapes and directions.

    Times may be changed by the implementation's name, with _ for a space.
    """
    times = MS | {name.replace("_", " "): ms for name, ms in changed.items()}
    timings = [
        make_timing(name, shape, direction, ms=ms)
        for shape in (ENCODER, DECODER)
        for direction in DIRECTIONS
        for name, ms in times.items()
    ]
    return {"default": timings, "warm": list(timings)}


def make_scaling(*, cost_of_pair: float = 2.0) -> list[Timing]:
    """Make timings of the native operator for one image and for two images."""
    return [
        make_timing(NATIVE, shape, direction, ms=ms)
        for direction in DIRECTIONS
        for shape, ms in ((ENCODER, 10.0), (ENCODER_PAIR, 10.0 * cost_of_pair))
    ]


def make_memory(*, forward: float | None = 25.0, both: float | None = 74.0) -> list[Memory]:
    """Make the memory peaks of the native operator and of the reference."""
    native = [Memory(NATIVE, span, peak) for span, peak in zip(SPANS, (forward, both), strict=True)]
    return [
        Memory(REFERENCE, "forward", 871.0),
        Memory(REFERENCE, "forward+backward", 938.0),
        *native,
    ]


def make_report(**changed: float) -> Report:
    """Make a report in which every goal is reached, unless changed times prevent it."""
    return Report(
        plan=Plan("cpu", "float32", (ENCODER, DECODER), rounds=3, with_extras=True),
        machine=make_machine(),
        clock="process CPU time, all threads",
        limits=Limits(read_gb_s=30.0, gflop_s=200.0),
        timings=make_timings(**changed),
        scaling=make_scaling(),
        memory=make_memory(),
        missing={},
    )


def make_machine(*, load_average: float | None = 0.1, busy_cores: float | None = 0.1) -> Machine:
    """Make a machine with two cores."""
    return Machine(
        cpu="a processor",
        cores=2,
        caches={"L1": "32K", "L2": "1024K"},
        instruction_set="AVX512",
        gpu=None,
        torch="2.10.0",
        threads=2,
        python="3.10.0",
        system="Linux",
        c_library="glibc 2.36",
        load_average=load_average,
        busy_cores=busy_cores,
    )
