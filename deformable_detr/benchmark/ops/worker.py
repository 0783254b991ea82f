"""Child process: runs the job that is given as JSON on its command line.

It writes lines of JSON: any number of `{"progress": text}`, then one `{"result": ...}`.
"""

import contextlib
import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from pydantic import TypeAdapter

from deformable_detr.benchmark.memory import peak_extra_megabytes
from deformable_detr.benchmark.ops.calls import BoundImplementation, check_agreement
from deformable_detr.benchmark.ops.implementations import find_implementations
from deformable_detr.benchmark.ops.jobs import (
    Job,
    LimitsJob,
    Memory,
    MemoryJob,
    Timing,
    TimingJob,
    Timings,
)
from deformable_detr.benchmark.ops.limits import Limits, measure_limits
from deformable_detr.benchmark.ops.workload import DIRECTIONS, Direction, make_workload
from deformable_detr.benchmark.timing import Task, clock_for, measure


def main() -> None:
    """Run the job of the command line."""
    output = sys.stdout

    def write(**line: Any) -> None:
        print(json.dumps(line, allow_nan=False), file=output, flush=True)

    job: Job = TypeAdapter(Job).validate_json(sys.argv[1])
    with contextlib.redirect_stdout(sys.stderr):  # some libraries print on import
        result = execute(job, lambda text: write(progress=text))
    write(result=TypeAdapter(type(result)).dump_python(result, mode="json"))


def execute(job: Job, report: Callable[[str], None]) -> Limits | Timings | Memory:
    """Run a job in this process."""
    match job:
        case LimitsJob():
            report("measuring the limits of the machine")
            return measure_limits(job.device)
        case TimingJob():
            return _measure_timings(job, report)
        case MemoryJob():
            report(f"{job.implementation}, {job.span}")
            return _measure_memory(job)


def _measure_timings(job: TimingJob, report: Callable[[str], None]) -> Timings:
    found, missing = find_implementations(job.device, getattr(torch, job.dtype))
    wanted = [one for one in found if not job.implementations or one.name in job.implementations]
    bound = []
    for shape in job.shapes:
        workload = make_workload(shape, job.device)
        check_agreement([BoundImplementation(one, workload) for one in found])
        bound += [BoundImplementation(one, workload) for one in wanted]
    timings = []
    for direction in DIRECTIONS:
        tasks = {_task_name(one, direction): one for one in bound}
        taken = measure(
            [Task(name, functools.partial(one.prepare, direction)) for name, one in tasks.items()],
            rounds=job.rounds,
            clock=clock_for(job.device),
            report=report,
        )
        timings += [
            Timing(rounds=taken[name], **_description(one, direction))
            for name, one in tasks.items()
        ]
    return Timings(timings, missing)


def _task_name(bound: BoundImplementation, direction: Direction) -> str:
    return f"{bound.implementation.name}, {bound.workload.shape.name}, {direction}"


def _description(bound: BoundImplementation, direction: Direction) -> dict[str, Any]:
    implementation, shape = bound.implementation, bound.workload.shape
    return {
        "shape": shape.name,
        "direction": direction,
        "implementation": implementation.name,
        "baseline": implementation.baseline,
        "samples": shape.samples,
        "flop": shape.flop(direction),
        "num_bytes": bound.workload.compulsory_bytes(
            direction, value_bytes=implementation.dtype.itemsize, is_fused=implementation.is_fused
        ),
    }


def _measure_memory(job: MemoryJob) -> Memory:
    found, missing = find_implementations(job.device, getattr(torch, job.dtype))
    implementation = next((one for one in found if one.name == job.implementation), None)
    if implementation is None:
        raise RuntimeError(
            f"{job.implementation} cannot run here: {missing.get(job.implementation)}"
        )
    bound = BoundImplementation(implementation, make_workload(job.shape, job.device))
    # Creating the inputs has started the threads, and this loads code that every backward needs.
    # The implementation itself must not run yet: buffers that it keeps are part of its peak.
    torch.ones(2, requires_grad=True).sum().backward()
    call = bound.forward if job.span == "forward" else lambda: bound.record()()
    return Memory(job.implementation, job.span, peak_extra_megabytes(call, device=job.device))
