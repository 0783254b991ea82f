import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.coco_files import write_coco_set
from helpers.small_run import SMALL_RUN, data_settings

import deformable_detr
from deformable_detr.engine.metrics import read_records

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def train(*launcher: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    checkout = str(Path(deformable_detr.__file__).parents[1])
    options = ["--config", "deformable_detr_r50", "--device", "cpu", "--run-dir", str(folder)]
    command = ["-m", "deformable_detr", "train", *options, *SMALL_RUN, *arguments]
    return subprocess.run(
        [sys.executable, *launcher, *command],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": checkout, "OMP_NUM_THREADS": "1"},
    )


def test_the_same_command_under_torchrun_trains_the_same(tmp_path: Path) -> None:
    files = write_coco_set(tmp_path / "data", num_images=8, empty=[2])
    arguments = [*data_settings(files, files), "train.max_steps=2"]
    train(arguments=arguments, folder=tmp_path / "alone")
    result = train(*TORCHRUN, arguments=arguments, folder=tmp_path / "together")
    assert result.stderr.count("total batch 4 = 2 images x 2 processes x") == 1
    alone, together = (
        [
            record["total"]
            for record in read_records(tmp_path / name / "metrics.jsonl")
            if record["kind"] == "train"
        ]
        for name in ("alone", "together")
    )
    assert together == pytest.approx(alone, rel=1e-4)
