from pathlib import Path
from typing import Any

import pytest

from deformable_detr.engine.metrics import read_records
from deformable_detr.engine.run.folder import RunFolder


def test_a_new_folder_is_created(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "a")
    folder.claim()
    assert folder.path.is_dir()


def test_an_empty_folder_can_be_claimed(tmp_path: Path) -> None:
    RunFolder(tmp_path).claim()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_raises(tmp_path: Path) -> None:
    (tmp_path / "last.pth").touch()
    with pytest.raises(ValueError, match=r"must be new or empty, got .*--resume or --overwrite"):
        RunFolder(tmp_path).claim()


def test_files_of_an_evaluation_do_not_block_a_run(tmp_path: Path) -> None:
    (tmp_path / "results.json").touch()
    RunFolder(tmp_path).claim()
    (tmp_path / "notes").touch()
    with pytest.raises(ValueError, match="must be new or empty"):
        RunFolder(tmp_path).claim()


def test_the_best_checkpoint_is_evaluated_if_there_is_one_else_the_last(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("options", [{"overwrite": True}, {"resume": "auto"}])
@pytest.mark.parametrize("name", ["config.yaml", "curves.png", "report.html", "best.pth"])
def test_where_there_is_no_run_files_with_names_of_a_run_are_not_replaced(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    (tmp_path / name).write_text("mine")
    (tmp_path / "results.json").write_text("of an evaluation, or mine")
    words = rf"must hold a run, or no files with names of a run's, got .*, which holds {name};"
    with pytest.raises(ValueError, match=words):
        RunFolder(tmp_path).claim(**options)
    assert (tmp_path / name).read_text() == "mine"
    (tmp_path / name).rename(tmp_path / "notes")
    RunFolder(tmp_path).claim(**options)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["notes", "results.json"]


def test_a_run_that_was_killed_before_its_first_checkpoint_is_started_again(tmp_path: Path) -> None:
    for name in (".lock", "config.yaml"):
        (tmp_path / name).touch()
    RunFolder(tmp_path).claim(resume="auto")
    RunFolder(tmp_path).claim(overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


def test_resuming_keeps_every_file(tmp_path: Path) -> None:
    (tmp_path / "last.pth").touch()
    RunFolder(tmp_path).claim(resume=True)
    assert (tmp_path / "last.pth").exists()


def test_resuming_without_a_run_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no last\.pth to resume from"):
        RunFolder(tmp_path).claim(resume=True)


def test_without_the_newest_checkpoint_only_auto_resumes_from_the_previous_one(
    tmp_path: Path,
) -> None:
    (tmp_path / "previous.pth").touch()
    with pytest.raises(FileNotFoundError, match=r"--resume auto continues from .*previous\.pth"):
        RunFolder(tmp_path).claim(resume=True)
    RunFolder(tmp_path).claim(resume="auto")


def test_partial_files_of_a_killed_process_are_deleted_on_resume(tmp_path: Path) -> None:
    for name in ("last.pth", ".last.pth.partial"):
        (tmp_path / name).touch()
    RunFolder(tmp_path).claim(resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth"]


def test_a_leftover_lock_file_does_not_block_a_run(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    RunFolder(tmp_path).claim()
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


def test_resuming_and_overwriting_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume and overwrite must not both be given"):
        RunFolder(tmp_path).claim(resume=True, overwrite=True)


def test_a_record_has_a_kind_and_can_be_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.rewind(0)
    folder.record("train", {"step": 1, "total": 1.0})
    folder.record("evaluation", {"step": 2, "AP": 0.1, "AP50": 0.2})
    folder.rewind(1)
    assert read_records(folder.metrics) == [{"kind": "train", "step": 1, "total": 1.0}]
