import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.tiny_training import tiny_state

from deformable_detr.engine import memory
from deformable_detr.engine.memory import record_peak_memory
from deformable_detr.engine.metrics import read_records
from deformable_detr.engine.run.folder import RunFolder

# In a separate process, as memory freed by earlier tests would reduce the measured difference. The
# parent process has more memory, which must not be counted.
ALLOCATE_500_MB = """
import numpy as np
import torch
from deformable_detr.engine.memory import peak_memory

def peak():
    return peak_memory(torch.device("cpu"))["peak_resident_mb"]

before = peak()
extra = np.ones(500_000_000, dtype=np.uint8)
del extra
print(before, peak())
"""


def test_the_peak_includes_memory_that_was_freed() -> None:
    command = [sys.executable, "-c", ALLOCATE_500_MB]
    ours = np.ones(2_000_000_000, dtype=np.uint8)
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert ours[-1] == 1
    before, after = map(float, output.split())
    assert before + 400 < after < before + 600


def test_the_peak_of_an_epoch_is_recorded_and_described(tmp_path: Path) -> None:
    state, folder = tiny_state(), RunFolder(tmp_path)
    state.step, state.epoch = 7, 2
    line = record_peak_memory(state, folder)
    (record,) = read_records(folder.metrics)
    assert (record["kind"], record["step"], record["epoch"]) == ("memory", 7, 2)
    assert line == f"step 7: peak memory resident {record['peak_resident_mb']:,.0f} MB"


@pytest.mark.parametrize(
    ("device", "sizes", "trims"),
    [
        ("cpu", [(8, side) for side in range(50)], 10),
        ("cpu", [(8, 8)] * 50, 0),
        ("cpu", [(8, 8)] * 25 + [(8, 9)] * 25, 0),
        ("meta", [(8, side) for side in range(50)], 0),
    ],
)
def test_freed_memory_is_returned_while_sizes_change(
    monkeypatch: pytest.MonkeyPatch, device: str, sizes: list[tuple[int, int]], trims: int
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(memory, "return_freed_memory", lambda: calls.append(None))
    freed = memory.FreedMemory(torch.device(device))
    for size in sizes:
        freed.after_batch(size)
    assert len(calls) == trims


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is of glibc")
def test_memory_is_returned_by_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    library = SimpleNamespace(malloc_trim=calls.append)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: library)
    memory.return_freed_memory()
    assert calls == [0]
