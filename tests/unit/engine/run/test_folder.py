from pathlib import Path

import pytest

from deformable_detr.engine.metrics import read_records
from deformable_detr.engine.run.folder import RunFolder


def test_a_new_folder_is_made(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "a")
    folder.claim()
    assert folder.path.is_dir()


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    RunFolder(tmp_path).claim()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "last.pth").touch()
    with pytest.raises(ValueError, match=r"must be new or empty, got .*--resume or --overwrite"):
        RunFolder(tmp_path).claim()


def test_what_an_evaluation_left_does_not_keep_a_run_out(tmp_path: Path) -> None:
    (tmp_path / "results.json").touch()
    RunFolder(tmp_path).claim()
    (tmp_path / "notes").touch()
    with pytest.raises(ValueError, match="must be new or empty"):
        RunFolder(tmp_path).claim()


def test_the_best_checkpoint_is_evaluated_or_else_the_last(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has neither best\.pth nor last\.pth"):
        _ = folder.best_or_last
    folder.last.touch()
    assert folder.best_or_last == folder.last
    folder.best.touch()
    assert folder.best_or_last == folder.best


def test_overwriting_deletes_the_files_of_the_run_and_no_others(tmp_path: Path) -> None:
    checkpoints = ("last.pth", "previous.pth", "damaged.pth", "best.pth", ".last.pth.partial")
    own = ("metrics.jsonl", "curves.png", "config.yaml", "state.json", "results.json")
    pages = ("best_detections.npz", "report.html")
    for name in (*checkpoints, *own, *pages, "failure_step_7_rank_0.pth", "notes"):
        (tmp_path / name).touch()
    RunFolder(tmp_path).claim(overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_resuming_keeps_every_file(tmp_path: Path) -> None:
    (tmp_path / "last.pth").touch()
    RunFolder(tmp_path).claim(resume=True)
    assert (tmp_path / "last.pth").exists()


def test_there_must_be_a_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no last\.pth to resume from"):
        RunFolder(tmp_path).claim(resume=True)


def test_without_its_newest_checkpoint_a_run_is_resumed_from_the_one_before(
    tmp_path: Path,
) -> None:
    (tmp_path / "previous.pth").touch()
    with pytest.raises(FileNotFoundError, match=r"--resume auto continues from .*previous\.pth"):
        RunFolder(tmp_path).claim(resume=True)
    RunFolder(tmp_path).claim(resume="auto")


def test_what_a_killed_process_did_not_finish_goes_when_the_run_is_resumed(tmp_path: Path) -> None:
    for name in ("last.pth", ".last.pth.partial"):
        (tmp_path / name).touch()
    RunFolder(tmp_path).claim(resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth"]


def test_a_lock_that_was_left_does_not_keep_a_run_out(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    RunFolder(tmp_path).claim()
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


def test_resuming_and_overwriting_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume and overwrite must not both be given"):
        RunFolder(tmp_path).claim(resume=True, overwrite=True)


def test_a_record_says_its_kind_and_can_be_taken_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.rewind(0)
    folder.record("train", {"step": 1})
    folder.record("evaluation", {"step": 2})
    folder.rewind(1)
    assert read_records(folder.metrics) == [{"kind": "train", "step": 1}]
