"""A rank that sleeps forever, or is killed, is named by the other, and both end."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import deformable_detr

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
TIMEOUT_S = 4.0
HANGS_AFTER_S = 300  # far more than a start takes on a busy machine, less than the sleep


def run_two(harm: str, folder: Path) -> list[tuple[int, str]]:
    """Return the exit code and the messages of each rank."""
    tests, checkout = Path(__file__).parents[1], Path(deformable_detr.__file__).parents[1]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (checkout, tests))),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    script = Path(__file__).with_name("standing_still.py")
    command = [sys.executable, str(script), harm, str(folder), str(TIMEOUT_S)]
    processes = [
        subprocess.Popen(
            command,
            env=environment | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        return [
            (process.returncode, errors)
            for process in processes
            for _, errors in [process.communicate(timeout=HANGS_AFTER_S)]
        ]
    finally:
        for process in processes:
            process.kill()


def test_a_rank_that_sleeps_forever_is_named_and_the_job_ends(tmp_path: Path) -> None:
    (code, errors), (other_code, other_errors) = run_two("sleeps", tmp_path)
    for text in (errors, other_errors):
        assert "rank 1 (" in text
        assert "keeps the others waiting: it is reading a training batch, at " in text
        assert "standing_still.py:" in text
        assert "rank 0 (" not in text
    assert "no progress for 4 s (train.timeout_s)" in other_errors
    assert "time.sleep(600)" in other_errors  # the line of code
    assert code == other_code == 1


def test_a_rank_that_is_killed_is_named(tmp_path: Path) -> None:
    (code, errors), (other_code, _) = run_two("is killed", tmp_path)
    assert "has died or is stopped: it was reading a training batch, at " in errors
    assert "RuntimeError: rank 1 (" in errors
    assert (code, other_code) == (1, -9)
