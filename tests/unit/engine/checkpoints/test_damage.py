"""Checkpoints that a run must not resume from: each raises an error of its own."""

import errno
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.full_disk import nearly_full_disk
from helpers.recipe import paper_groups
from helpers.tiny_training import TinyDetector, tiny_state
from torch import nn

from deformable_detr.engine.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from deformable_detr.engine.checkpoints.sealed_file import HASH_BYTES
from deformable_detr.engine.optimizer import sgd
from deformable_detr.labels import LabelSpace


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def flip_weight(path: Path) -> None:
    weight = load_checkpoint(path).model["box_head.weight"].numpy().tobytes()
    flip(path, path.read_bytes().index(weight) + 100)


def flip_directory(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        flip(path, archive.start_dir + 20)


def keep(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def change(path: Path, **fields: object) -> None:
    save_checkpoint(path, replace(load_checkpoint(path), **fields))


def rewrite(path: Path, *, without: str = "", **fields: object) -> None:
    content = {**torch.load(path, weights_only=True), **fields}
    content.pop(without, None)
    torch.save(content, path)


def other_model(path: Path) -> None:
    change(path, model=TinyDetector(num_classes=5).state_dict())


def other_optimizer(path: Path) -> None:
    model = TinyDetector()
    change(path, optimizer=sgd(paper_groups(model), momentum=0.9).state_dict())


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("hostile_code_ran"),)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bit of a weight": (flip_weight, "has been altered since it was written"),
    "a bit of the first header": (lambda path: flip(path, 0), "has been altered since"),
    "a bit of the directory": (flip_directory, "has been altered since"),
    "a bit of the hash": (lambda path: flip(path, -1), "has been altered since"),
    "a bit before the hash": (lambda path: flip(path, -HASH_BYTES), "its end has been altered"),
    "half of the file": (lambda path: keep(path, 4000), r"is truncated, .* \(4000 bytes\)"),
    "without the hash": (lambda path: keep(path, -HASH_BYTES), "is truncated, or its end"),
    "empty": (lambda path: keep(path, 0), r"is not a file that PyTorch wrote \(0 bytes\)"),
    "a folder": (become_folder, "must be a file, got the folder"),
    "hostile": (
        lambda path: rewrite(path, model=Hostile()),
        "must hold tensors and plain values only, got other objects, which could run code",
    ),
    "of another project": (
        lambda path: torch.save({"model": {}, "args": 3}, path),
        "must be one that this package wrote, got a dictionary of 2 keys",
    ),
    "of another format": (
        lambda path: rewrite(path, format_version=9),
        "must have format version 1, got 9",
    ),
    "without the step": (lambda path: rewrite(path, without="step"), "is missing step$"),
    "other classes": (
        lambda path: change(path, label_space=LabelSpace((1, 2, 8), ("a", "b", "d"))),
        r"the training set must have the categories of checkpoint .* only .* has \{8: d\}",
    ),
    "another model": (other_model, r"has 2 parameters of another shape, first: class_head\.weight"),
    "another optimizer": (other_optimizer, "the saved optimizer must be AdamW, got SGD"),
}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "last.pth", stored())
    return tmp_path / "last.pth"


def stored() -> Checkpoint:
    state = tiny_state()
    state.step = 7
    return state.to_checkpoint()


@pytest.mark.parametrize("name", DAMAGE)
def test_a_run_does_not_resume_from_a_damaged_checkpoint(path: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    damage(path)
    state = tiny_state()
    before = [value.clone() for value in state.model.state_dict().values()]
    with pytest.raises(ValueError, match=message):
        state.restore(load_checkpoint(path), f"checkpoint {path}")
    assert not Path("hostile_code_ran").exists()
    assert state.step == 0
    if name != "another optimizer":  # checked after the weights
        after = state.model.state_dict().values()
        assert all(a.equal(b) for a, b in zip(before, after, strict=True))


def test_a_flipped_bit_in_any_byte_is_detected(path: Path) -> None:
    whole = path.read_bytes()
    begin_of_end = len(whole) - HASH_BYTES - 22  # from here on, every byte is tried
    for position in (*range(0, begin_of_end, 101), *range(begin_of_end, len(whole))):
        content = bytearray(whole)
        content[position] ^= 1 << position % 8
        path.write_bytes(content)
        with pytest.raises(ValueError, match="altered"):
            load_checkpoint(path)


def test_a_file_without_a_hash_is_loaded(path: Path) -> None:
    torch.save(torch.load(path, weights_only=True), path)
    assert load_checkpoint(path).step == 7


def test_the_file_is_a_zip_archive_that_pytorch_can_read(path: Path) -> None:
    assert torch.load(path, weights_only=True)["step"] == 7
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"sha256:")


def test_a_full_disk_keeps_the_old_checkpoint(path: Path) -> None:
    weights = nn.Linear(1000, 100).state_dict()
    words = r"last\.pth could not be written \(File too large"
    with nearly_full_disk(100_000), pytest.raises(RuntimeError, match=words):
        save_checkpoint(path, replace(stored(), model=weights), previous=path.with_name("p"))
    assert load_checkpoint(path).step == 7
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pth"]


def test_the_old_checkpoint_is_kept_at_the_previous_path(path: Path) -> None:
    previous = path.with_name("previous.pth")
    for step in (8, 9):
        save_checkpoint(path, replace(stored(), step=step), previous=previous)
        assert (load_checkpoint(previous).step, load_checkpoint(path).step) == (step - 1, step)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["last.pth", "previous.pth"]


def test_the_old_checkpoint_is_kept_without_hard_links_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    previous = path.with_name("previous.pth")
    save_checkpoint(path, replace(stored(), step=8), previous=previous)
    assert (load_checkpoint(previous).step, load_checkpoint(path).step) == (7, 8)
