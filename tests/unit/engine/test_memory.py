import re
from pathlib import Path

import numpy as np
import torch
from helpers.tiny_training import tiny_state

from deformable_detr.engine.memory import peak_memory, record_peak_memory
from deformable_detr.engine.metrics import read_records
from deformable_detr.engine.run_folder import RunFolder

CPU = torch.device("cpu")


def test_the_peak_holds_what_was_there_for_a_moment() -> None:
    first = peak_memory(CPU)["peak_resident_mb"]
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    resident = int(found[1]) * 1024 / 1e6
    missing = max(first - resident, 0)  # below an earlier peak
    extra = np.ones(int((missing + 100) * 1e6), dtype=np.uint8)
    assert extra[-1] == 1
    del extra
    assert peak_memory(CPU)["peak_resident_mb"] > first + 50


def test_an_epochs_peak_is_a_record_and_a_line(tmp_path: Path) -> None:
    state, folder = tiny_state(), RunFolder(tmp_path)
    state.step, state.epoch = 7, 2
    line = record_peak_memory(state, folder)
    (record,) = read_records(folder.metrics)
    assert (record["kind"], record["step"], record["epoch"]) == ("memory", 7, 2)
    assert line == f"step 7: peak memory resident {record['peak_resident_mb']:,.0f} MB"
