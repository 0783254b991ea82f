"""All measurements of a benchmark, one child process after another."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from deformable_detr.benchmark.machine import Machine, OtherPrograms, has_glibc
from deformable_detr.benchmark.ops.implementations import NATIVE, NATIVE_FUSED, REFERENCE
from deformable_detr.benchmark.ops.jobs import (
    Allocator,
    Device,
    DType,
    LimitsJob,
    Memory,
    MemoryJob,
    MemorySpan,
    Timing,
    TimingJob,
    Timings,
)
from deformable_detr.benchmark.ops.limits import Limits
from deformable_detr.benchmark.ops.processes import run_job
from deformable_detr.benchmark.ops.workload import DECODER, ENCODER, ENCODER_PAIR, Shape
from deformable_detr.benchmark.timing import clock_for

ShapeChoice = Literal["encoder", "decoder", "all"]
SHAPES: dict[ShapeChoice, tuple[Shape, ...]] = {
    "encoder": (ENCODER,),
    "decoder": (DECODER,),
    "all": (ENCODER, DECODER),
}
SPANS: tuple[MemorySpan, ...] = ("forward", "forward+backward")


@dataclass(frozen=True)
class Plan:
    """Plan of a benchmark.

    Attributes:
        shapes: shapes to time.
        with_extras: also measure memory, and two images against one, at the encoder's shape.
    """

    device: Device
    dtype: DType
    shapes: tuple[Shape, ...]
    rounds: int
    with_extras: bool


@dataclass(frozen=True)
class Report:
    """Results of a benchmark.

    Attributes:
        clock: name of the primary clock, used for ratios.
        timings: timings by allocator.
        scaling: timings of two images and of one, with the default allocator.
        missing: reasons why implementations were not measured, by name.
    """

    plan: Plan
    machine: Machine
    clock: str
    limits: Limits
    timings: dict[Allocator, list[Timing]]
    scaling: list[Timing]
    memory: list[Memory]
    missing: dict[str, str]


def check_device(device: Device) -> None:
    """Raise early if the device is not available.

    Raises:
        RuntimeError: `device` is "cuda" and PyTorch finds no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "device cuda must be a GPU that PyTorch can use, found none; choose --device cpu"
        )


def allocators_of(device: Device) -> tuple[Allocator, ...]:
    """Return the allocators to measure: both with glibc on a CPU, else only the default."""
    return ("default", "warm") if device == "cpu" and has_glibc() else ("default",)


def run(plan: Plan, machine: Machine, report: Callable[[str], None]) -> Report:
    """Run all measurements; takes minutes.

    Raises:
        RuntimeError: a child process failed.
    """
    others = OtherPrograms()
    limits = run_job(LimitsJob(plan.device), Limits, report=report)
    timings: dict[Allocator, list[Timing]] = {}
    missing: dict[str, str] = {}
    for allocator in allocators_of(plan.device):
        timings[allocator] = []
        for shape in plan.shapes:
            job = TimingJob(plan.device, plan.dtype, (shape,), plan.rounds)
            answer = run_job(
                job,
                Timings,
                allocator=allocator,
                report=_within(f"{shape.name}, {allocator} allocator", report),
            )
            timings[allocator] += answer.timings
            missing |= answer.missing
    with_native = NATIVE not in missing
    scaling = _measure_scaling(plan, report) if plan.with_extras and with_native else []
    memory = _measure_memory(plan, with_native, report) if plan.with_extras else []
    return Report(
        plan=plan,
        machine=replace(machine, busy_cores=others.busy_cores()),
        clock=clock_for(plan.device).name,
        limits=limits,
        timings=timings,
        scaling=scaling,
        memory=memory,
        missing=missing,
    )


def _within(stage: str, report: Callable[[str], None]) -> Callable[[str], None]:
    """Prefix progress reports with a stage of the benchmark."""
    return lambda text: report(f"{stage}: {text}")


def _measure_scaling(plan: Plan, report: Callable[[str], None]) -> list[Timing]:
    job = TimingJob(plan.device, plan.dtype, (ENCODER, ENCODER_PAIR), plan.rounds, (NATIVE,))
    return run_job(job, Timings, report=_within("two images and one", report)).timings


def _measure_memory(plan: Plan, with_native: bool, report: Callable[[str], None]) -> list[Memory]:
    names = (REFERENCE, NATIVE, NATIVE_FUSED) if with_native else (REFERENCE,)
    return [
        run_job(
            MemoryJob(plan.device, plan.dtype, ENCODER, name, span),
            Memory,
            report=_within("memory", report),
        )
        for name in names
        for span in SPANS
    ]
