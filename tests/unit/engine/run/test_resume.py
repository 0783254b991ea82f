import logging
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.tiny_training import tiny_state

from deformable_detr.engine.checkpoints.checkpoint import save_checkpoint
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.run.resume import checkpoint_to_resume


@pytest.fixture
def files(tmp_path: Path) -> RunFolder:
    """Return the folder of a run that was saved at steps 4 and 6."""
    folder = RunFolder(tmp_path)
    checkpoint = tiny_state().to_checkpoint()
    for step in (4, 6):
        save_checkpoint(folder.last, replace(checkpoint, step=step), previous=folder.previous)
    return folder


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("resume", [True, "auto"])
def test_the_newest_checkpoint_is_selected(files: RunFolder, resume: bool) -> None:
    found = checkpoint_to_resume(files, resume)
    assert found is not None
    assert (found[0], found[1].step) == (files.last, 6)


def test_a_new_run_selects_no_checkpoint(files: RunFolder) -> None:
    assert checkpoint_to_resume(files, False) is None


def test_a_damaged_checkpoint_raises_and_names_the_previous_one(files: RunFolder) -> None:
    damage(files.last)
    with pytest.raises(ValueError, match=r"last\.pth .*; --resume auto continues .*previous\.pth$"):
        checkpoint_to_resume(files, True)
    files.previous.unlink()
    with pytest.raises(ValueError, match=r"its end has been altered \(\d+ bytes\)$"):
        checkpoint_to_resume(files, True)


def test_auto_falls_back_to_the_previous_checkpoint_and_renames_the_damaged_one(
    files: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    damage(files.last)
    content = files.last.read_bytes()
    with caplog.at_level(logging.WARNING):
        found = checkpoint_to_resume(files, "auto")
    assert found is not None
    assert (found[0], found[1].step) == (files.previous, 4)
    assert "last.pth is truncated" in caplog.text
    assert "continuing from" in caplog.text
    assert not files.last.exists()
    assert files.damaged.read_bytes() == content
    # The next save must not make the damaged file the previous one.
    save_checkpoint(files.last, replace(found[1], step=5), previous=files.previous)
    again = checkpoint_to_resume(RunFolder(files.path), "auto")
    assert again is not None
    assert again[1].step == 5
    assert files.previous.exists()


def test_auto_selects_the_previous_checkpoint_if_the_newest_is_missing(files: RunFolder) -> None:
    files.last.unlink()
    found = checkpoint_to_resume(files, "auto")
    assert found is not None
    assert found[0] == files.previous
    assert not files.damaged.exists()


def test_auto_does_not_overwrite_damaged_checkpoints(files: RunFolder) -> None:
    damage(files.last)
    damage(files.previous)
    with pytest.raises(ValueError, match=r"last\.pth is.*previous\.pth is.*--overwrite$"):
        checkpoint_to_resume(files, "auto")
    assert files.last.exists()


def test_auto_starts_from_scratch_without_a_checkpoint(tmp_path: Path) -> None:
    assert checkpoint_to_resume(RunFolder(tmp_path), "auto") is None
    (tmp_path / "best.pth").touch()
    with pytest.raises(FileNotFoundError, match=r"has a best\.pth but neither"):
        checkpoint_to_resume(RunFolder(tmp_path), "auto")
