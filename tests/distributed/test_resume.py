"""A run that one process started and two resume, and fine-tuning in two processes."""

from pathlib import Path

import pytest
from helpers.coco_files import write_coco_set
from helpers.processes import run_in_processes
from recorded_runs import (
    STOP_AFTER,
    TOTAL_STEPS,
    Recording,
    record_run,
    resume_and_finetune,
)

from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint
from deformable_detr.engine.metrics import read_records

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
OTHER_CATEGORIES = {4: "Blue thing", 5: "green thing"}  # the data's: red thing, blue thing


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Recording:
    """Record a complete run in a single process; a second run of the same is stopped early."""
    files = write_coco_set(folder / "data", num_images=8, empty=[2])
    write_coco_set(folder / "other", num_images=4, categories=OTHER_CATEGORIES)
    recording = record_run(folder / "whole", files, max_steps=TOTAL_STEPS)
    record_run(folder / "parts", files, max_steps=STOP_AFTER)
    return recording


@pytest.fixture(scope="module")
def together(folder: Path, alone: Recording) -> list[dict[str, Recording]]:
    return run_in_processes(resume_and_finetune, folder)


def test_two_processes_continue_with_the_samples_of_one(
    alone: Recording, together: list[dict[str, Recording]]
) -> None:
    first, second = (one["resumed"].steps for one in together)
    assert [len(step) for step in alone.steps] == [2] * TOTAL_STEPS  # micro-batches of two images
    assert len(first) == len(second) == TOTAL_STEPS - STOP_AFTER
    resumed = [[*one, *other] for one, other in zip(first, second, strict=True)]
    assert resumed == alone.steps[STOP_AFTER:]
    seen = [image_id for step in alone.steps for batch in step for image_id in batch]
    assert sorted(seen) == sorted([*range(1, 9)] * 3)


def test_two_processes_continue_with_the_losses_of_one(
    folder: Path, together: list[dict[str, Recording]]
) -> None:
    whole, parts = (
        [
            (record["step"], record["total"], record["grad_norm"], record["lr"])
            for record in read_records(folder / name / "metrics.jsonl")
            if record["kind"] == "train"
        ]
        for name in ("whole", "parts")
    )
    assert [step for step, *_ in whole] == list(range(1, TOTAL_STEPS + 1))
    assert parts[:STOP_AFTER] == whole[:STOP_AFTER]
    for expected, got in zip(whole, parts, strict=True):
        assert got == pytest.approx(expected, rel=1e-5)


def test_every_rank_starts_with_the_weights_to_fine_tune(
    folder: Path, together: list[dict[str, Recording]]
) -> None:
    source = load_checkpoint(folder / "whole" / "last.pth").model
    first, second = (one["fine-tuned"].start for one in together)
    assert list(first) == list(second) == list(source)
    heads = {"decoder.class_heads.0.weight", "decoder.class_heads.0.bias"}
    for name, value in first.items():
        assert value.equal(second[name]), name
        if name in heads:
            assert value[0].equal(source[name][1])  # blue thing
            assert not value[1].equal(source[name][0])
        else:
            assert value.equal(source[name]), name
