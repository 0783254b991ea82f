import errno
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from helpers.tiny_training import tiny_batch, tiny_criterion, tiny_state

from deformable_detr.engine.failures.bundle import FailureBundle
from deformable_detr.engine.failures.recorder import FailureRecorder
from deformable_detr.engine.run.folder import RunFolder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = RunFolder(tmp_path)
    batch = tiny_batch([1, 2], [1, 1])
    recorder = FailureRecorder(folder, tiny_criterion(), seed=3)
    recorder.write(tiny_state(), [batch], "of a test")
    return folder.failure(0, 0)


def test_a_bundle_is_saved_even_if_the_step_does_not_fail_again(path: Path) -> None:
    bundle = FailureBundle.load(path)
    assert bundle.cause.startswith("not found")
    assert bundle.message == "of a test"
    assert (bundle.precision, bundle.low_precision, bundle.loss_scale) == ("float32", None, 1.0)
    assert bundle.learning_rates == {"default": 1e-2, "backbone": 2e-5, "sampling": 2e-5}
    assert [step for step, _ in bundle.weight_norms] == [0]


def test_a_bundle_holds_tensors_and_plain_values_only(path: Path) -> None:
    def assert_plain(value: object) -> None:
        if isinstance(value, dict):
            assert_plain([*value.keys(), *value.values()])
        elif isinstance(value, (list, tuple)):
            for item in value:
                assert_plain(item)
        else:
            assert isinstance(value, (str, int, float, torch.Tensor, type(None))), type(value)

    assert_plain(torch.load(path, weights_only=True))


def test_settings_of_an_earlier_version_are_renamed(path: Path) -> None:
    replace(FailureBundle.load(path), config={"compat": "none"}).save(path)
    assert FailureBundle.load(path).config == {"match_official": False}


def test_a_failed_write_of_a_bundle_does_not_hide_the_cause(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "gone")
    recorder = FailureRecorder(folder, tiny_criterion(), seed=3)
    text = recorder.write(tiny_state(), [tiny_batch([1, 2], [1, 1])], "of a test")
    assert "likely cause on rank 0: not found" in text
    assert f"(bundle {folder.failure(0, 0)} could not be written (" in text


def test_the_error_for_a_missing_bundle_names_the_file_pattern(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"failure_step_N_rank_R\.pth"):
        FailureBundle.load(tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("text", "is not a file that PyTorch wrote"),
        ("cut off", "is truncated"),
        ("altered", "has been altered since it was written"),
        ("checkpoint", "must be one that this version wrote, got another kind of file"),
        ("code", "must hold tensors and plain values only, got other objects"),
    ],
)
def test_a_file_of_another_kind_raises_with_a_reason(path: Path, kind: str, reason: str) -> None:
    match kind:
        case "text":
            path.write_text("hello")
        case "cut off":
            path.write_bytes(path.read_bytes()[:-1000])
        case "altered":
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        case "checkpoint":
            torch.save({"format": "deformable_detr", "model": {}}, path)
        case "code":
            torch.save({"format": "x", "run": pytest.raises}, path)
    with pytest.raises(ValueError, match=rf"^bundle {path} {reason}"):
        FailureBundle.load(path)


def test_a_bundle_is_written_atomically(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, before = FailureBundle.load(path), path.read_bytes()

    def fill_the_disk(content: object, file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(RuntimeError, match=rf"^bundle {path} could not be written \(.*No space"):
        bundle.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir() if file.suffix == ".partial"] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "\x1b[2J"},
        {"dropout_seed": -1},
        {"num_boxes": 0},
        {"message": None},
        {"precision": "\x1b[2J" * 1000},
        {"images": torch.zeros(3)},
        {"images": [1]},
        {"padding_mask": torch.zeros(2, 8, 8)},
        {"targets": []},
        {"targets": [{}]},
        {"targets": [1, 2]},
        {"weight_norms": [1]},
        {"learning_rates": {"default": "1"}},
        {"scaler": {"scale": "x"}},
        {"examination": {}},
        {"model": {1: torch.zeros(1)}},
        {"config": 7},
    ],
)
def test_a_hostile_field_is_named(path: Path, changes: dict[str, Any]) -> None:
    replace(FailureBundle.load(path), **changes).save(path)
    with pytest.raises(ValueError, match=r"bundle .*failure_step_0_rank_0\.pth") as raised:
        FailureBundle.load(path)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 600
