import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from deformable_detr.benchmark import memory
from deformable_detr.benchmark.memory import peak_extra_megabytes
from deformable_detr.benchmark.ops.jobs import Memory, MemoryJob, MemorySpan
from deformable_detr.benchmark.ops.processes import run_job
from deformable_detr.benchmark.ops.workload import Shape

needs_peak = pytest.mark.skipif(
    not memory._CLEAR_REFS.exists(), reason="this system cannot reset the peak of its memory"
)


@needs_peak
def test_peak_includes_memory_freed_during_the_call() -> None:
    def call() -> object:
        kept = np.ones(10_000_000, np.uint8)
        passing = np.ones(40_000_000, np.uint8)
        return kept, int(passing[0])

    # NumPy asks for huge pages: an array may take almost one of 2 MiB more than it needs.
    assert peak_extra_megabytes(call, device="cpu") == pytest.approx(50, abs=2 * 2.1)


@needs_peak
def test_memory_freed_before_the_call_does_not_hide_the_peak() -> None:
    size = 50_000  # small enough to come from the heap

    def call() -> object:
        return [b"x" * size for _ in range(1000)]

    for _ in range(2):
        assert peak_extra_megabytes(call, device="cpu") == pytest.approx(50, abs=3)


@needs_peak
def test_loaded_code_is_not_included() -> None:
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    with library.open("rb") as file:

        def call() -> object:
            mapped = mmap.mmap(file.fileno(), 30_000_000, access=mmap.ACCESS_READ)
            # All pages are touched; none is copied.
            return mapped, sum(mapped[offset] for offset in range(0, 30_000_000, mmap.PAGESIZE))

        assert peak_extra_megabytes(call, device="cpu") == pytest.approx(0, abs=2)


@needs_peak
@pytest.mark.parametrize("span", ["forward", "forward+backward"])
def test_peak_of_the_reference_is_the_size_of_its_tensors(span: MemorySpan) -> None:
    shape = Shape("small", ((50, 60), (25, 30)), M=4, D=16, P=4)
    samples = shape.samples * shape.D * 4 / 1e6  # D float32 numbers each
    job = MemoryJob("cpu", "float32", shape, "reference", span)

    peak = run_job(job, Memory, report=lambda text: None).megabytes

    # Of each level, stacked, and weighted; and points, maps and the output, all much smaller.
    assert peak is not None
    assert 3 * samples < peak < 4 * samples


def test_result_is_none_on_other_platforms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "absent" / "file")

    assert peak_extra_megabytes(lambda: None, device="cpu") is None
