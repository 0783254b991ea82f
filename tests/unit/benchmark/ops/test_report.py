import dataclasses
import io
import json

import pytest
from helpers.benchmark_report import make_machine, make_report, make_timing
from rich.console import Console

from deformable_detr.benchmark.ops import suite
from deformable_detr.benchmark.ops.implementations import NATIVE, REFERENCE
from deformable_detr.benchmark.ops.limits import Limits
from deformable_detr.benchmark.ops.record import as_record
from deformable_detr.benchmark.ops.suite import Report, allocators_of, check_device
from deformable_detr.benchmark.ops.tables import show
from deformable_detr.benchmark.ops.workload import ENCODER

WIDTH = 100


def printed(report: Report) -> str:
    console = Console(file=io.StringIO(), width=WIDTH)
    for part in show(report):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_record_has_these_keys_and_survives_json() -> None:
    report = make_report()
    record = json.loads(json.dumps(as_record(report)))

    assert list(record) == [
        "format",
        "machine",
        "device",
        "dtype",
        "rounds",
        "clock",
        "limits",
        "shapes",
        "timings",
        "scaling",
        "memory",
        "missing",
    ]
    assert record["format"] == 2
    assert list(record["timings"][0]) == [
        "shape",
        "direction",
        "allocator",
        "implementation",
        "calls_per_round",
        "ms",
        "wall_ms",
        "page_faults",
        "ns_per_sample",
        "samples",
        "flop",
        "bytes",
        "baseline",
        "ratio",
        "ratio_to_reference_bfloat16",
        "share_of_read_limit",
        "share_of_arithmetic_limit",
        "rounds_ms",
        "rounds_wall_ms",
    ]
    assert record["shapes"][0]["samples"] == 2_281_088


def test_record_holds_the_measurements() -> None:
    record = as_record(make_report())
    native = next(
        one
        for one in record["timings"]
        if (one["implementation"], one["shape"], one["allocator"]) == (NATIVE, "encoder", "warm")
    )

    assert native["ms"]["median"] == 10.0
    assert native["wall_ms"]["median"] == 5.0
    assert native["ns_per_sample"] == pytest.approx(10e6 / 2_281_088)
    assert native["ratio"]["median"] == pytest.approx(75.0)
    assert native["ratio_to_reference_bfloat16"]["median"] == pytest.approx(70.0)
    assert native["share_of_read_limit"] == pytest.approx(60 / 30 / 5)  # MB, GB/s, ms
    assert native["share_of_arithmetic_limit"] == pytest.approx(583.958528 / 200 / 5)


def test_tables_fit_into_a_hundred_columns_without_truncation() -> None:
    text = printed(make_report(reference=3456.0, native=3.14))

    assert max(map(len, text.splitlines())) <= WIDTH
    assert "\u2026" not in text  # an ellipsis
    for word in (
        "encoder, forward: 2,281,088 samples",
        "decoder, backward: 38,400 samples",
        "3456",
        "1101x",
        "load average",
        "GB/s read",
        "AVX512",
        "default allocator",
        "warm allocator",
    ):
        assert word in text
    remarks = " ".join(text.split())
    assert "two images take native 2.00 times the time of one" in remarks
    assert (
        "encoder, forward: native bfloat16 / reference bfloat16: 77.8x (default), 77.8x (warm)"
    ) in remarks


def test_missing_implementations_are_named_with_the_reason() -> None:
    report = make_report()
    timings = {
        allocator: [one for one in taken if one.implementation == REFERENCE]
        for allocator, taken in report.timings.items()
    }
    report = dataclasses.replace(
        report, timings=timings, scaling=[], memory=[], missing={NATIVE: "not built [here]"}
    )

    text = printed(report)

    assert "native was not measured: not built [here]" in text
    assert "reference only" in text


def test_missing_gpu_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite.torch.cuda, "is_available", lambda: False)

    with pytest.raises(RuntimeError, match=r"found none; choose --device cpu$"):
        check_device("cuda")


def test_only_glibc_has_two_allocators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "has_glibc", lambda: True)
    assert allocators_of("cpu") == ("default", "warm")
    assert allocators_of("cuda") == ("default",)

    monkeypatch.setattr(suite, "has_glibc", lambda: False)
    assert allocators_of("cpu") == ("default",)
    report = make_report()
    del report.timings["warm"]
    assert "requires glibc, which is not available" in " ".join(printed(report).split())


def test_each_measurement_of_a_plan_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_report()
    jobs = []

    def run_job(job, answer, *, allocator="default", report):  # type: ignore[no-untyped-def]
        jobs.append((job.task, allocator))
        match job.task:
            case "limits":
                return Limits(1.0, 1.0)
            case "timing":
                return suite.Timings([make_timing(NATIVE, ENCODER, ms=1.0)], {})
        return whole.memory[0]

    monkeypatch.setattr(suite, "run_job", run_job)
    monkeypatch.setattr(suite, "has_glibc", lambda: True)

    report = suite.run(whole.plan, whole.machine, lambda text: None)

    timing = [allocator for task, allocator in jobs if task == "timing"]
    assert timing == ["default", "default", "warm", "warm", "default"]  # the last: two images
    assert [task for task, _ in jobs].count("memory") == 6
    assert len(report.timings["warm"]) == 2


def test_warning_of_a_busy_machine_is_above_the_tables() -> None:
    report = dataclasses.replace(make_report(), machine=make_machine(busy_cores=1.5))

    text = printed(report)

    assert "warning: other programs keep 1.5 of 2 cores busy" in text
    assert text.index("warning") < text.index("encoder, forward")
    assert as_record(report)["machine"]["warning"] == report.machine.warning
