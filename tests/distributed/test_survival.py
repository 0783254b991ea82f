"""Runs that are killed or stopped by a signal, and resumed, with the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.coco_files import write_coco_set
from helpers.scripts import SCRIPTS, load_script
from helpers.small_run import SMALL_RUN, data_settings

import deformable_detr
from deformable_detr.cli.train import EXIT_PREEMPTED
from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint
from deformable_detr.engine.metrics import read_records
from deformable_detr.engine.run.folder import RunFolder

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
survive_kills = load_script("survive_kills")
STEPS = 24
HANGS_S = 120.0
SMALLER_BACKBONE = "model.backbone={kind: timm, name: mobilenetv3_small_050, out_strides: [16]}"
TRAIN = ("-m", "deformable_detr", "train")


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(deformable_detr.__file__).parents[1]))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("survival")


@pytest.fixture(scope="module")
def arguments(folder: Path) -> list[str]:
    """Return arguments of `train`, with dropout, averaging and evaluation every eight steps."""
    files = write_coco_set(folder / "data", num_images=8, empty=[2])
    small = [setting for setting in SMALL_RUN if not setting.startswith("model.backbone.")]
    more = [f"train.max_steps={STEPS}", "train.checkpoint_every=2", "train.ema_decay=0.9"]
    more += ["train.eval_every_epochs=4", SMALLER_BACKBONE, *data_settings(files, files)]
    return ["--config", "deformable_detr_r50", "--device", "cpu", *small, *more]


@pytest.fixture(scope="module")
def killed(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the script; its folder then also has the uninterrupted run `reference`."""
    script = [sys.executable, str(SCRIPTS / "survive_kills.py"), "--out", str(folder)]
    return subprocess.run(
        [*script, "--kills", "3", "--", *arguments], capture_output=True, text=True, check=False
    )


def test_a_run_whose_workers_and_launcher_are_killed_equals_an_uninterrupted_one(
    killed: subprocess.CompletedProcess[str],
) -> None:
    assert killed.returncode == 0, killed.stdout + killed.stderr
    *rows, result = killed.stdout.splitlines()[1:]
    assert [row[5:32].split("  ")[0] for row in rows] == [
        "a worker",
        "all workers",
        "the launcher",
    ]
    assert "while writing" in rows[1]
    assert result.endswith("of both runs are the same, bit by bit")


@contextmanager
def started(*command: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, **environment}
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(HANGS_S)


def stop_at(
    step: int, process: subprocess.Popen[bytes], number: signal.Signals, files: RunFolder
) -> tuple[int, float]:
    """Signal a run after some steps; return its exit code, and the seconds until its end."""
    run = survive_kills.Run(files, 0, [])
    survive_kills.wait_until(lambda: run.recorded_step() >= step, f"step {step}")
    process.send_signal(number)
    begin = time.monotonic()
    code = process.wait(HANGS_S)
    took = time.monotonic() - begin
    state = json.loads(files.state.read_text())
    assert state["state"] == "preempted"
    assert state["step"] == load_checkpoint(files.last).step == run.recorded_step() < STEPS
    return code, took


def test_a_run_stopped_by_a_signal_resumes_with_any_number_of_processes(
    folder: Path, arguments: list[str], killed: subprocess.CompletedProcess[str]
) -> None:
    assert killed.returncode == 0
    files, log = RunFolder(folder / "asked"), folder / "asked.log"
    train = [*TRAIN, "--run-dir", str(files.path), "--resume", "auto", *arguments]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

    # Two processes with one data worker each, which must survive: torchrun signals all of them.
    with started(sys.executable, *launcher, *train, "data.num_workers=1", log=log) as process:
        code, took = stop_at(3, process, signal.SIGTERM, files)
    assert code == 1  # torchrun's own, for any exit codes of its workers
    assert took < 30, "torchrun kills processes that have not ended by then"

    with started(sys.executable, *train, log=log) as process:
        code, _ = stop_at(8, process, signal.SIGUSR1, files)
    assert code == EXIT_PREEMPTED == 75

    script = str(SCRIPTS / "train_torchrun.sh")
    start = {"NPROC_PER_NODE": "2", "PYTHON": sys.executable}
    with started(script, str(files.path), *arguments, log=log, **start) as process:
        assert process.wait(HANGS_S) == 0

    expected, got = (
        [record for record in read_records(run.metrics) if record.pop("kind") == "train"]
        for run in (RunFolder(folder / "reference"), files)
    )
    assert [record["step"] for record in got] == list(range(1, STEPS + 1))
    for record, reference in zip(got, expected, strict=True):
        assert record == pytest.approx(reference, rel=1e-5), record["step"]


def test_a_preempted_job_is_queued_again(
    folder: Path, arguments: list[str], tmp_path: Path
) -> None:
    """Use stand-ins for Slurm: `srun` runs its command, `scontrol` records its arguments."""
    files, queued = RunFolder(tmp_path / "job"), tmp_path / "queued"
    for name, content in {
        "srun": 'while [[ $1 == -* ]]; do shift; done; exec "$@"',
        "scontrol": f'[ "$1" = show ] && echo localhost || echo "$*" >> {queued}',
    }.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{content}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(SCRIPTS.parent), "SLURM_JOB_NODELIST": "node[1-2]"}
    job |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "77", "NPROC_PER_NODE": "1"}
    job |= {"PYTHON": sys.executable, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = str(SCRIPTS / "train_slurm.sh")
    log = tmp_path / "log"
    with started(script, str(files.path), *arguments, log=log, **job) as process:
        code, _ = stop_at(2, process, signal.SIGUSR1, files)
    assert code == 0
    assert queued.read_text() == "requeue 77\n"
