"""Files of any age are read; code in them never runs."""

import argparse
import builtins
import os
import pickle
import subprocess
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deformable_detr.conversion.content import content_of, read_content
from deformable_detr.conversion.pickles import read_pickle
from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint


class Call:
    """Object that is pickled as a function call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


class CallOnBuild:
    """Object that is pickled with a state."""

    def __init__(self, function: Callable[..., Any], state: Any) -> None:
        self._reduced = function, (), state

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...], Any]:
        return self._reduced


@pytest.fixture(params=[True, False], ids=["archive", "bare pickle"])
def save(request: pytest.FixtureRequest) -> Callable[[object, Path], None]:
    """Run `torch.save` with either format."""

    def write(content: object, path: Path) -> None:
        torch.save(content, path, _use_new_zipfile_serialization=request.param)

    return write


Save = Callable[[object, Path], None]


def test_options_of_an_official_run_are_read_as_data(tmp_path: Path, save: Save) -> None:
    options = argparse.Namespace(nheads=8, dilation=True, lr=2e-4, backbone="resnet50", x=[1, None])
    weights = {"a.weight": torch.rand(3, 2)}
    save({"model": OrderedDict(weights), "args": options, "epoch": 49}, tmp_path / "a.pth")

    content = read_content(tmp_path / "a.pth")

    assert torch.equal(content.state_dict["a.weight"], weights["a.weight"])
    assert content.about["args"] == vars(options)


def test_run_without_options_is_read(tmp_path: Path, save: Save) -> None:
    save({"model": {"a": torch.zeros(1)}, "args": argparse.Namespace()}, tmp_path / "a.pth")
    assert read_content(tmp_path / "a.pth").about == {"args": {}}


def test_weights_with_numpy_numbers_and_mmengine_logs_are_read(
    tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("mmengine.logging.history_buffer")
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    history = type("HistoryBuffer", (), {"__module__": module.__name__})
    module.HistoryBuffer = history  # type: ignore[attr-defined]
    buffer = history()
    buffer._history = np.arange(3.0)
    content = {
        "state_dict": {"a.weight": torch.ones(2)},
        "meta": {"dataset_meta": {"classes": ("cat", "dog")}, "seed": np.int64(3)},
        "message_hub": {"loss": buffer, "lr": np.float64(0.1), "kind": np.dtype("float32")},
        "args": {"dilation": False},
    }
    save(content, tmp_path / "a.pth")
    monkeypatch.undo()

    read = content_of(read_pickle(tmp_path / "a.pth"), "weights")

    assert read.state_dict["a.weight"].tolist() == [1, 1]
    assert read.about == {"classes": ["cat", "dog"], "args": {"dilation": False}}


CANARY = "canary"
HOSTILE: dict[str, Callable[[], object]] = {
    "os.system": lambda: Call(os.system, f"touch {CANARY}"),
    "eval": lambda: Call(eval, f"open('{CANARY}', 'w')"),
    "exec": lambda: Call(exec, f"open('{CANARY}', 'w')"),
    "open": lambda: Call(open, CANARY, "w"),
    "subprocess": lambda: Call(subprocess.call, ["touch", CANARY]),
    "getattr": lambda: Call(builtins.getattr, "text", "upper"),
    "pickle in a pickle": lambda: Call(pickle.loads, pickle.dumps(Call(os.mkdir, CANARY))),
    "torch.load": lambda: Call(torch.load, CANARY),
    "an unknown class": lambda: CallOnBuild(subprocess.Popen, {"args": ["touch", CANARY]}),
    "as a key": lambda: {Call(os.mkdir, CANARY): 1},
    "inside the options": lambda: argparse.Namespace(lr=Call(os.mkdir, CANARY)),
    "as the state of the options": lambda: CallOnBuild(argparse.Namespace, Call(os.mkdir, CANARY)),
    "as an argument of what is allowed": lambda: Call(OrderedDict, Call(os.mkdir, CANARY)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_code_in_a_file_is_rejected_in_one_sentence_and_never_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Save, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save({"model": {"a": torch.zeros(1)}, "args": HOSTILE[kind]()}, Path("bad.pth"))

    with pytest.raises(ValueError, match=r"^checkpoint bad\.pth must hold tensors .* this file$"):
        read_content(Path("bad.pth"))

    assert not Path(CANARY).exists()


def test_same_file_runs_code_if_loaded_as_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(HOSTILE["inside the options"](), "bad.pth")

    torch.load("bad.pth", weights_only=False)

    assert Path(CANARY).exists()


@pytest.mark.parametrize(
    "content",
    [
        Call(OrderedDict, 1, 2, 3),
        Call(argparse.Namespace, "a", {}),
        Call(torch.device, 3, "x"),
        Call(torch._utils._rebuild_tensor_v2, 1, 2, 3, 4, 5, 6),
        CallOnBuild(OrderedDict, 5),
    ],
    ids=["OrderedDict", "Namespace", "device", "tensor", "state"],
)
def test_allowed_class_with_invalid_arguments_is_a_clear_error(
    tmp_path: Path, save: Save, content: object
) -> None:
    save({"args": content}, tmp_path / "bad.pth")

    with pytest.raises(ValueError, match=r"^checkpoint .*bad\.pth (is damaged \(|must hold)"):
        read_content(tmp_path / "bad.pth")


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.99])
def test_error_names_a_truncated_file(tmp_path: Path, save: Save, keep: float) -> None:
    save({"model": {"a": torch.zeros(1000)}}, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: int(keep * len(content))])

    with pytest.raises(ValueError, match=r"^checkpoint .*cut\.pth is (damaged|truncated) "):
        read_content(tmp_path / "cut.pth")


def test_error_names_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text("hello")
    with pytest.raises(ValueError, match=r"a\.pth is not a file that PyTorch wrote \(5 bytes\)"):
        read_content(tmp_path / "a.pth")
    (tmp_path / "a.safetensors").write_text("hello")
    with pytest.raises(ValueError, match=r"a\.safetensors must be a safetensors file \("):
        read_content(tmp_path / "a.safetensors")


def test_error_names_a_missing_file_or_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.pth does not exist; check the path"):
        read_content(tmp_path / "no.pth")
    with pytest.raises(FileNotFoundError, match=r"must hold model\.safetensors or"):
        read_content(tmp_path)


@pytest.mark.parametrize("read", [read_content, load_checkpoint])
def test_a_url_is_called_one(read: Any) -> None:
    with pytest.raises(ValueError, match=r"^checkpoint https:/a/b\.pth must be a path, got a URL"):
        read(Path("https://a/b.pth"))
