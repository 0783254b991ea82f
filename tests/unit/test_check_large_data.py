"""`scripts/check_large_data.py` on a tiny data set: what it measures, and what it notices."""

import threading
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import cast

import pytest
from helpers.scripts import load_script

from deformable_detr.data.annotations import read_annotations

check = load_script("check_large_data")
IMAGES, BOXES = 6, 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    check.link_images(tmp_path / "images", images=IMAGES)
    check.write_annotations(tmp_path / "annotations.json", images=IMAGES, boxes=BOXES)
    return tmp_path


def test_the_generated_set_is_whole(folder: Path) -> None:
    parsed = read_annotations(folder / "annotations.json")
    assert (len(parsed.images), int(parsed.offsets[-1])) == (IMAGES, BOXES - 1)  # one is a crowd


def test_reading_and_passes_are_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, kept, peak = check.measure_reading(folder / "annotations.json")
    assert 0 < seconds < check.MAX_READ_S
    assert kept < check.MAX_KEPT_MB
    assert peak >= kept
    monkeypatch.setattr(check, "PROCESSES", 1)
    monkeypatch.setattr(check, "WORKERS", 1)
    alone = threading.Barrier(1)
    passes = cast(list[float], list(check.run_passes(folder, 0, alone, alone)))
    assert len(passes) == check.PASSES
    assert min(passes) > check.memory_mb("Pss", table="smaps_rollup")


def test_a_failed_process_ends_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process waits for it at the barrier."""

    def run_passes(folder: Path, rank: int, ready: Barrier, seen: Barrier) -> Iterator[float]:
        if rank == 1:
            raise ValueError
        ready.wait()
        yield 1.0

    monkeypatch.setattr(check, "START_METHOD", "fork")  # the change above reaches the processes
    monkeypatch.setattr(check, "run_passes", run_passes)
    with pytest.raises(ChildProcessError, match="exit code 1"):
        check.measure_passes(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "kept", "passes", "exceeded"),
    [
        (12, 250, [100, 103, 104.9], 0),
        (12.1, 250, [100, 103, 104.9], 1),
        (12, 251, [100, 103, 104.9], 1),
        (12, 250, [100, 103, 106], 1),
    ],
)
def test_figures_are_compared_with_their_limits(
    seconds: float,
    kept: float,
    passes: list[float],
    exceeded: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert check.is_within_limits(seconds, kept, passes) == (not exceeded)
    assert capsys.readouterr().out.count("EXCEEDED") == exceeded
