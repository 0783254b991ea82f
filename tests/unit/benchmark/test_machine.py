import os
from pathlib import Path

import pytest
from helpers.benchmark_report import make_machine

from deformable_detr.benchmark import machine
from deformable_detr.benchmark.machine import OtherPrograms, describe_machine
from deformable_detr.benchmark.ops.limits import Limits


@pytest.mark.parametrize(
    ("load_average", "busy_cores", "is_warned"),
    [
        (5.0, 0.1, False),  # the average includes earlier load
        (0.0, 0.5, True),
        (0.1, None, False),
        (0.5, None, True),
        (None, None, False),
    ],
)
def test_busy_machine_gives_a_warning(
    load_average: float | None, busy_cores: float | None, is_warned: bool
) -> None:
    warning = make_machine(load_average=load_average, busy_cores=busy_cores).warning

    assert (warning is not None) == is_warned
    if warning is not None:
        assert warning.startswith("other programs keep 0.5 of 2 cores busy: ")


def test_this_machine_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(OtherPrograms, "busy_cores", lambda self: 0.0)
    described = describe_machine("cpu")

    assert 1 <= described.cores <= (os.cpu_count() or 1)
    assert described.gpu is None
    assert described.warning is None
    assert all((described.cpu, described.instruction_set, described.torch, described.python))


@pytest.fixture
def stat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the path of a stand-in for /proc/stat."""
    path = tmp_path / "stat"
    monkeypatch.setattr(machine, "_STAT", path)
    return path


def test_busy_cores_are_the_increase_of_busy_time_of_others(
    monkeypatch: pytest.MonkeyPatch, stat: Path
) -> None:
    second = os.sysconf("SC_CLK_TCK")
    own = iter([(1.0, 0.5, 2.0, 0.0, 0.0), (1.5, 0.5, 6.5, 0.0, 0.0)])  # five more
    clock = iter([100.0, 104.0])
    monkeypatch.setattr(machine.os, "times", lambda: next(own))
    monkeypatch.setattr(machine.time, "monotonic", lambda: next(clock))
    stat.write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")
    others = OtherPrograms()
    # Seven seconds of work (user, system and steal) in four, on two cores.
    stat.write_text(f"cpu  {4 * second} 0 {2 * second} 99 9 0 0 {second} 5 5\n")

    assert others.busy_cores() == pytest.approx((7 - 5) / 4)


def test_busy_cores_are_none_on_other_platforms(stat: Path) -> None:
    assert OtherPrograms().busy_cores() is None


def test_limits_give_the_shortest_time() -> None:
    limits = Limits(read_gb_s=30.0, gflop_s=200.0)

    assert limits.shortest_ms(num_bytes=60_000_000, flop=584_000_000) == pytest.approx((2.0, 2.92))
