"""The child process: does the job that its command line holds, as JSON.

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

from deformable_detr.benchmark.calls import BoundContender, check_agreement
from deformable_detr.benchmark.contenders import find_contenders
from deformable_detr.benchmark.jobs import (
    Job,
    LimitsJob,
    Memory,
    MemoryJob,
    Timing,
    TimingJob,
    Timings,
)
from deformable_detr.benchmark.limits import Limits, measure_limits
from deformable_detr.benchmark.memory import peak_extra_megabytes
from deformable_detr.benchmark.timing import Task, clock_for, measure
from deformable_detr.benchmark.workload import DIRECTIONS, Direction, make_workload


def main() -> None:
    """Do the job of the command line."""
    output = sys.stdout

    def write(**line: Any) -> None:
        print(json.dumps(line), file=output, flush=True)

    job: Job = TypeAdapter(Job).validate_json(sys.argv[1])
    with contextlib.redirect_stdout(sys.stderr):  # libraries greet
        result = execute(job, lambda text: write(progress=text))
    write(result=TypeAdapter(type(result)).dump_python(result, mode="json"))


def execute(job: Job, report: Callable[[str], None]) -> Limits | Timings | Memory:
    """Do a job in this process."""
    match job:
        case LimitsJob():
            report("measuring the limits of the machine")
            return measure_limits(job.device)
        case TimingJob():
            return _measure_timings(job, report)
        case MemoryJob():
            report(f"{job.contender}, {job.span}")
            return _measure_memory(job)


def _measure_timings(job: TimingJob, report: Callable[[str], None]) -> Timings:
    found, missing = find_contenders(job.device, getattr(torch, job.dtype))
    wanted = [one for one in found if not job.contenders or one.name in job.contenders]
    bound = []
    for shape in job.shapes:
        workload = make_workload(shape, job.device)
        check_agreement([BoundContender(one, workload) for one in found])
        bound += [BoundContender(one, workload) for one in wanted]
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


def _task_name(bound: BoundContender, direction: Direction) -> str:
    return f"{bound.contender.name}, {bound.workload.shape.name}, {direction}"


def _description(bound: BoundContender, direction: Direction) -> dict[str, Any]:
    contender, shape = bound.contender, bound.workload.shape
    return {
        "shape": shape.name,
        "direction": direction,
        "contender": contender.name,
        "baseline": contender.baseline,
        "samples": shape.samples,
        "flop": shape.flop(direction),
        "num_bytes": bound.workload.compulsory_bytes(
            direction, value_bytes=contender.dtype.itemsize, is_fused=contender.is_fused
        ),
    }


def _measure_memory(job: MemoryJob) -> Memory:
    found, missing = find_contenders(job.device, getattr(torch, job.dtype))
    contender = next((one for one in found if one.name == job.contender), None)
    if contender is None:
        raise RuntimeError(f"{job.contender} cannot run here: {missing.get(job.contender)}")
    bound = BoundContender(contender, make_workload(job.shape, job.device))
    # Making the inputs has started the threads, and this loads what every backward needs. The
    # contender itself must not run yet: scratch that it keeps is part of its peak.
    torch.ones(2, requires_grad=True).sum().backward()
    call = bound.forward if job.span == "forward" else lambda: bound.record()()
    return Memory(job.contender, job.span, peak_extra_megabytes(call, device=job.device))
