import os
import signal
from pathlib import Path

import pytest

from deformable_detr.benchmark.ops import processes
from deformable_detr.benchmark.ops.implementations import REFERENCE, REFERENCE_MODULE
from deformable_detr.benchmark.ops.jobs import LimitsJob, MemoryJob, TimingJob, Timings
from deformable_detr.benchmark.ops.limits import Limits
from deformable_detr.benchmark.ops.processes import environment_of, run_job
from deformable_detr.benchmark.ops.workload import DIRECTIONS, Shape

TINY = Shape("tiny", ((4, 6), (2, 3)), M=2, D=4, P=2)


def test_allocators_differ_in_glibc_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")
    default, warm = environment_of("default"), environment_of("warm")

    assert not [name for name in default if name.startswith(("MALLOC_", "GLIBC_"))]
    assert {name: value for name, value in warm.items() if name not in default} == {
        "MALLOC_MMAP_THRESHOLD_": "4000000000",
        "MALLOC_TRIM_THRESHOLD_": "8000000000",
    }
    for environment in (default, warm):
        assert environment["PATH"] == os.environ["PATH"]
        assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
        assert environment["GOMP_SPINCOUNT"] == "0"


def test_job_runs_in_a_child_and_returns_its_result() -> None:
    progress: list[str] = []
    job = TimingJob(
        "cpu", "float32", (TINY,), rounds=2, implementations=(REFERENCE, REFERENCE_MODULE)
    )

    answer = run_job(job, Timings, allocator="warm", report=progress.append)

    assert [(one.implementation, one.direction) for one in answer.timings] == [
        (name, direction) for direction in DIRECTIONS for name in (REFERENCE, REFERENCE_MODULE)
    ]
    for timing in answer.timings:
        assert timing.shape == "tiny"
        assert timing.samples == TINY.samples == 30 * 2 * 2 * 2
        assert timing.flop == TINY.flop(timing.direction)
        assert len(timing.rounds.ms) == len(timing.rounds.wall_ms) == 2
        assert 0 < timing.ms.min <= timing.ms.median
    assert "round 2 of 2: reference, tiny, backward" in progress


def test_error_of_a_failed_job_has_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A checkout in the working directory is not used.
    (tmp_path / "deformable_detr").mkdir()
    (tmp_path / "deformable_detr" / "__init__.py").write_text("raise RuntimeError('another one')")
    monkeypatch.chdir(tmp_path)
    job = MemoryJob("cpu", "float32", TINY, "nobody", "forward")

    with pytest.raises(
        RuntimeError, match=r"^the memory job ended with code 1: RuntimeError: nobody cannot run"
    ):
        run_job(job, Limits, report=lambda text: None)


def test_error_names_the_signal_that_killed_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel kills processes like this when memory is short."""
    source = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(processes, "_COMMAND", (*processes._COMMAND[:1], "-c", source))

    with pytest.raises(RuntimeError, match=r"was ended by SIGKILL: no error output"):
        run_job(LimitsJob("cpu"), Limits, report=lambda text: None)


def test_interrupt_ends_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "import json, os, time\n"
        "print(json.dumps({'progress': str(os.getpid())}), flush=True)\n"
        "time.sleep(60)"
    )
    monkeypatch.setattr(processes, "_COMMAND", (*processes._COMMAND[:1], "-c", source))
    children: list[int] = []

    def interrupt(text: str) -> None:
        children.append(int(text))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(LimitsJob("cpu"), Limits, report=interrupt)

    (child,) = children
    with pytest.raises(ProcessLookupError):
        os.kill(child, signal.SIG_DFL)
