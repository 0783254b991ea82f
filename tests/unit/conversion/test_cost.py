"""Time and memory of importing a full-size official checkpoint."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.official_weights import OfficialModel, official_state_dict

_MAX_EXTRA_MB = 500
_MAX_SECONDS = 3
# In its own process, so that nothing else has raised the peak before.
_PROGRAM = """
import sys, time
from pathlib import Path
from deformable_detr import import_weights
from deformable_detr.builders import build_model
from deformable_detr.config.loading import load_config

def peak_kb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

config = load_config("deformable_detr_r50", ["model.backbone.weights=none"])
model = build_model(config, num_classes=91)
before = peak_kb()
for path in sys.argv[1:]:
    start, cpu_start = time.perf_counter(), time.process_time()
    report = import_weights(model, path)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    print(report.num_loaded, (peak_kb() - before) / 1e3, seconds, cpu_seconds)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_official_checkpoint_of_40_million_parameters_imports_fast_and_in_little_memory(
    tmp_path: Path,
) -> None:
    content = {
        "model": official_state_dict(OfficialModel()),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(5_000_000)}}},
        "args": argparse.Namespace(nheads=8),
    }
    files = [tmp_path / "archive.pth", tmp_path / "bare_pickle.pth"]
    for file in files:
        is_archive = file.name == "archive.pth"
        torch.save(content, file, _use_new_zipfile_serialization=is_archive)

    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *files], capture_output=True, text=True, check=True
    )

    for file, line in zip(files, result.stdout.splitlines(), strict=True):
        num_loaded, extra_mb, seconds, cpu_seconds = map(float, line.split())
        file_mb = file.stat().st_size / 1e6
        figures = (
            f"{file_mb:.0f} MB, peak +{extra_mb:.0f} MB, {seconds:.2f} s, CPU {cpu_seconds:.2f}"
        )
        sys.stdout.write(f"{file.name}: {figures} s\n")  # shown by pytest -rP
        assert num_loaded == 561
        assert extra_mb < file_mb + _MAX_EXTRA_MB / 5  # a fifth of what may be
        assert cpu_seconds < _MAX_SECONDS
