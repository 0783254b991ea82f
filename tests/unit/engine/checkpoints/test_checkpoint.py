import errno
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from deformable_detr.engine.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    weights_for_inference,
)
from deformable_detr.environment import current_versions
from deformable_detr.labels import LabelSpace


@pytest.fixture
def stored() -> Checkpoint:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return Checkpoint(
        model=model.state_dict(),
        ema={name: value + 1 for name, value in model.state_dict().items()},
        optimizer=optimizer.state_dict(),
        epoch=2,
        step=7,
        best_ap=0.25,
        label_space=LabelSpace((3, 90), ("car", "toothbrush")),
        config={"train": {"lr": 2e-4, "betas": [0.9, 0.999]}},
        versions=current_versions(),
        origin="fine-tuned from a.pth",
    )


def rewrite(path: Path, **changes: object) -> None:
    content = torch.load(path, weights_only=True)
    torch.save({**content, **changes}, path)


def test_a_loaded_checkpoint_equals_the_saved_one(tmp_path: Path, stored: Checkpoint) -> None:
    save_checkpoint(tmp_path / "last.pth", stored)
    loaded = load_checkpoint(tmp_path / "last.pth")
    assert loaded.ema is not None
    assert stored.ema is not None
    for name, value in stored.model.items():
        assert loaded.model[name].equal(value)
        assert loaded.ema[name].equal(stored.ema[name])
    assert loaded.optimizer["state"][0]["exp_avg"].equal(stored.optimizer["state"][0]["exp_avg"])
    assert loaded.label_space == stored.label_space
    assert (loaded.epoch, loaded.step, loaded.best_ap) == (2, 7, 0.25)
    assert loaded.config == stored.config
    assert loaded.versions == current_versions()
    assert loaded.origin == "fine-tuned from a.pth"
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth"]


def test_a_failed_write_keeps_the_old_checkpoint(
    tmp_path: Path, stored: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(path, stored)

    def fill_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fill_disk)
    with pytest.raises(RuntimeError, match=r"last\.pth could not be written .*No space left"):
        save_checkpoint(path, replace(stored, step=8))
    assert load_checkpoint(path).step == 7
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pth"]


def test_a_missing_folder_is_named_in_the_error(tmp_path: Path, stored: Checkpoint) -> None:
    with pytest.raises(RuntimeError, match=r"gone/last\.pth could not be written"):
        save_checkpoint(tmp_path / "gone" / "last.pth", stored)


def test_a_missing_file_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.pth does not exist"):
        load_checkpoint(tmp_path / "no.pth")


def test_the_error_for_a_folder_names_its_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a file, got the folder .*best\.pth"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("keep", [100, -1000])
def test_a_truncated_file_raises(tmp_path: Path, stored: Checkpoint, keep: int) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(path, stored)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        ValueError, match=r"last\.pth is truncated, or its end has been altered \(\d+ bytes\)"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps({"model": {}})])
def test_a_file_of_another_kind_raises(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pth is not a file that PyTorch wrote"):
        load_checkpoint(path)


def test_another_zip_archive_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/readme", "hello")
    with pytest.raises(ValueError, match=r"a\.zip is damaged \("):
        load_checkpoint(path)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("hostile_code_ran"),)


def test_code_in_a_file_raises_and_never_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "deformable_detr", "model": Hostile()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="must hold tensors and plain values only"):
        load_checkpoint(tmp_path / "a.pth")
    assert not (tmp_path / "hostile_code_ran").exists()


def test_weights_of_another_project_raise(tmp_path: Path) -> None:
    torch.save({"model": {}, "args": 3}, tmp_path / "official.pth")
    with pytest.raises(
        ValueError, match=r"must be one that this package wrote, got a dictionary of 2 keys"
    ):
        load_checkpoint(tmp_path / "official.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="that this package wrote, got a list"):
        load_checkpoint(tmp_path / "list.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "must have format version 1, got 2"),
        ({"step": "seven"}, r"step of checkpoint .* must be int, got str"),
        ({"model": None}, r"model of checkpoint .* must be dict, got NoneType"),
        ({"ema": {"weight": 1}}, r"ema\.weight of checkpoint .* must be a tensor, got int"),
        ({"origin": 3}, r"origin of checkpoint .* must be str, got int"),
        ({"label_space": []}, "has no usable label space: categories must hold at least one"),
    ],
)
def test_a_wrong_field_is_named(
    tmp_path: Path, stored: Checkpoint, changes: dict[str, object], message: str
) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(path, stored)
    rewrite(path, **changes)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path)


def test_missing_fields_are_named(tmp_path: Path, stored: Checkpoint) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(path, stored)
    content = torch.load(path, weights_only=True)
    del content["optimizer"], content["step"]
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"last\.pth is missing optimizer, step$"):
        load_checkpoint(path)


def test_a_file_without_fields_of_later_versions_is_loaded(
    tmp_path: Path, stored: Checkpoint
) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(path, stored)
    content = torch.load(path, weights_only=True)
    for name in ("origin", "rules"):
        del content[name]
    torch.save(content, path)
    loaded = load_checkpoint(path)
    assert (loaded.origin, loaded.rules) == ("", 1)


def test_settings_of_an_earlier_version_are_renamed(tmp_path: Path, stored: Checkpoint) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(path, replace(stored, config={"compat": "official", "seed": 1}))
    assert load_checkpoint(path).config == {"match_official": True, "seed": 1}


def test_inference_uses_the_average_if_there_is_one(stored: Checkpoint) -> None:
    assert weights_for_inference(stored) is stored.ema
    assert weights_for_inference(replace(stored, ema=None)) is stored.model


def test_weights_that_match_are_copied() -> None:
    source, model = nn.Linear(3, 2), nn.Linear(3, 2)
    load_weights(model, source.state_dict(), "checkpoint a.pth")
    assert model.weight.equal(source.weight)


@pytest.mark.parametrize(
    ("state_dict", "message"),
    [
        ({"weight": torch.zeros(2, 3)}, "a is missing 1 parameters, first: bias"),
        (
            {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "x": torch.zeros(1)},
            "a has 1 unexpected parameters, first: x",
        ),
        (
            {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)},
            r"a has 1 parameters of another shape, first: weight is \(2, 4\) and must be \(2, 3\)",
        ),
    ],
)
def test_weights_that_do_not_match_raise(state_dict: dict[str, torch.Tensor], message: str) -> None:
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(ValueError, match=message):
        load_weights(model, state_dict, "a")
    assert model.weight.equal(before)
