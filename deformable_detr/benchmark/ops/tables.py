"""Benchmark report as tables of at most a hundred columns."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from deformable_detr.benchmark.ops.implementations import (
    MEANING,
    NATIVE,
    NATIVE_BFLOAT16,
    REFERENCE_BFLOAT16,
)
from deformable_detr.benchmark.ops.jobs import Timing, find, ratio
from deformable_detr.benchmark.ops.suite import Report
from deformable_detr.benchmark.ops.workload import (
    DIRECTIONS,
    ENCODER,
    ENCODER_PAIR,
    Direction,
    Shape,
)


def show(report: Report) -> Iterator[RenderableType]:
    """Yield the whole report, from top to bottom."""
    yield _machine(report)
    if report.machine.warning:
        yield Text(f"warning: {report.machine.warning}", style="yellow")
    for shape in report.plan.shapes:
        for direction in DIRECTIONS:
            yield _timings(report, shape, direction)
    yield Text()
    yield _legend(report)
    if report.memory:
        yield _memory(report)
    yield Text()
    yield from _remarks(report)


def _table(title: str) -> Table:
    return Table(
        title=f"\n{title}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )


def _machine(report: Report) -> Table:
    machine, limits = report.machine, report.limits
    caches = ", ".join(f"{level} {size}" for level, size in machine.caches.items())
    rows = {
        "processor": ", ".join(filter(None, (machine.cpu, machine.instruction_set, caches))),
        "GPU": machine.gpu,
        "cores": f"{machine.cores}; PyTorch uses {machine.threads} threads",
        "load average": None if machine.load_average is None else f"{machine.load_average:.2f}",
        "software": f"torch {machine.torch}, Python {machine.python}, {machine.c_library}",
        "system": machine.system,
        "back-ends": "native and reference" if NATIVE not in report.missing else "reference only",
        "limits": f"measured: {limits.read_gb_s:.1f} GB/s read, {limits.gflop_s:.0f} GFLOP/s",
        "clock": report.clock,
        "rounds": f"{report.plan.rounds}, interleaved; value in {report.plan.dtype}",
    }
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in rows.items():
        if text is not None:
            table.add_row(name, escape(text))
    return table


def _timings(report: Report, shape: Shape, direction: Direction) -> Table:
    table = _table(
        f"{shape.name}, {direction}: {shape.samples:,} samples, "
        f"{shape.flop(direction) / 1e9:.3g} GFLOP, Q = {shape.num_queries:,}, N = {shape.N}"
    )
    table.add_column("", no_wrap=True)
    for heading in (
        "ms",
        "min",
        "quartiles",
        "ns/sample",
        "wall ms",
        "faults",
        "MB",
        "read",
        "FMA",
        "ratio",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for allocator, timings in report.timings.items():
        table.add_row(f"[italic]{allocator} allocator[/]")
        for timing in timings:
            if (timing.shape, timing.direction) == (shape.name, direction):
                table.add_row(*_timing_row(timing, timings, report))
        table.add_section()
    return table


def _timing_row(timing: Timing, timings: Sequence[Timing], report: Report) -> list[str]:
    ms, wall_ms = timing.ms, timing.wall_ms.median
    read_share, arithmetic_share = timing.shares_of(report.limits)
    baseline = find(timings, timing.shape, timing.direction, timing.baseline)
    speedup = ratio(baseline, timing)
    return [
        timing.implementation,
        _digits(ms.median),
        _digits(ms.min),
        f"{_digits(ms.lower_quartile)}-{_digits(ms.upper_quartile)}",
        _digits(timing.ns_per_sample),
        _digits(wall_ms),
        f"{timing.page_faults.median:,.0f}",
        f"{timing.num_bytes / 1e6:.1f}",
        f"{read_share:.0%}",
        f"{arithmetic_share:.0%}",
        "" if speedup is None else _ratio(speedup),
    ]


def _digits(number: float) -> str:
    """Format with three significant digits, without decimals from 100 on."""
    if number >= 100:
        return f"{number:.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _ratio(number: float) -> str:
    return f"{_digits(number)}x"


def _legend(report: Report) -> Text:
    lines = [
        "ms: time per call by the clock above; median, minimum and quartiles of the rounds. A "
        "round of an implementation lasts 50 ms or one call. ns/sample: of the median. wall ms, "
        "faults (page faults): medians. MB: memory traffic with infinite caches. read, FMA: "
        "fractions of the limits above at the wall time, for these MB and the GFLOP; data cached "
        "between calls can raise the first above 100 %. ratio: speed-up over the reference, median "
        "of the rounds. backward: all three gradients, timed separately on a recorded graph.",
    ]
    names = {timing.implementation for taken in report.timings.values() for timing in taken}
    lines += [f"{name}: {meaning}." for name, meaning in MEANING.items() if name in names]
    return Text("\n".join(lines), style="dim")


def _memory(report: Report) -> Table:
    table = _table("encoder: peak memory above the inputs")
    table.add_column("")
    table.add_column("forward", justify="right")
    table.add_column("forward and backward", justify="right")
    by_name: dict[str, list[str]] = {}
    for one in report.memory:
        text = "not available" if one.megabytes is None else f"{one.megabytes:.1f} MB"
        by_name.setdefault(one.implementation, []).append(text)
    for name, cells in by_name.items():
        table.add_row(name, *cells)
    return table


def _remarks(report: Report) -> Iterator[Text]:
    for direction in DIRECTIONS:
        pair, single = (
            find(report.scaling, shape.name, direction, NATIVE) for shape in (ENCODER_PAIR, ENCODER)
        )
        cost = ratio(pair, single)
        if cost is not None:
            yield Text(
                f"encoder, {direction}, default allocator: two images take native {cost:.2f} times "
                "the time of one"
            )
    yield from _bfloat16_remarks(report)
    if report.plan.device == "cpu" and "warm" not in report.timings:
        yield Text("the warm allocator requires glibc, which is not available on this platform")
    for name, reason in report.missing.items():
        yield Text(f"{name} was not measured: {reason}", style="yellow")


def _bfloat16_remarks(report: Report) -> Iterator[Text]:
    """Yield native over reference, both in bfloat16; the table has the float32 reference."""
    for shape in report.plan.shapes:
        for direction in DIRECTIONS:
            times = []
            for allocator, timings in report.timings.items():
                own, baseline = (
                    find(timings, shape.name, direction, name)
                    for name in (NATIVE_BFLOAT16, REFERENCE_BFLOAT16)
                )
                speedup = ratio(baseline, own)
                if speedup is not None:
                    times.append(f"{_ratio(speedup)} ({allocator})")
            if times:
                yield Text(
                    f"{shape.name}, {direction}: {NATIVE_BFLOAT16} / {REFERENCE_BFLOAT16}: "
                    f"{', '.join(times)}"
                )
