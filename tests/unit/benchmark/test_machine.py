import os

import pytest
from helpers.benchmark_report import make_machine

from deformable_detr.benchmark import machine
from deformable_detr.benchmark.limits import Limits
from deformable_detr.benchmark.machine import describe_machine


@pytest.mark.parametrize(
    ("load_average", "busy_cores", "is_warned"),
    [
        (5.0, 0.1, False),  # the average remembers what is over
        (0.0, 0.5, True),
        (0.1, None, False),
        (0.5, None, True),
        (None, None, False),
    ],
)
def test_a_busy_machine_is_warned_about(
    load_average: float | None, busy_cores: float | None, is_warned: bool
) -> None:
    warning = make_machine(load_average=load_average, busy_cores=busy_cores).warning

    assert (warning is not None) == is_warned
    if warning is not None:
        assert warning.startswith("other programs keep 0.5 of 2 cores busy: ")


def test_this_machine_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_busy_cores", lambda: 0.0)
    described = describe_machine("cpu")

    assert 1 <= described.cores <= (os.cpu_count() or 1)
    assert described.gpu is None
    assert described.warning is None
    assert all((described.cpu, described.instruction_set, described.torch, described.python))


def test_busy_cores_are_the_growth_of_the_busy_times(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    stat = machine.Path(str(tmp_path)) / "stat"
    stat.write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")
    # One core busy for a second (user and steal), one idle.
    after = f"cpu  {ticks // 2} 0 0 {ticks} 9 0 0 {ticks - ticks // 2} 5 5\n"
    monkeypatch.setattr(machine, "_STAT", stat)
    monkeypatch.setattr(machine.time, "sleep", lambda seconds: stat.write_text(after))

    assert machine._busy_cores() == 1.0


def test_a_limit_gives_the_shortest_time() -> None:
    limits = Limits(read_gb_s=30.0, gflop_s=200.0)

    assert limits.shortest_ms(num_bytes=60_000_000, flop=584_000_000) == pytest.approx((2.0, 2.92))
