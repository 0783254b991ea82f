"""Checkpoints that ask for more than they hold: refused in one line, before it is allocated."""

import copy
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_checkpoint import CONFIG, write_checkpoint

from deformable_detr import Detector
from deformable_detr.builders import build_model
from deformable_detr.builders.model_size import least_parameters, require_held_by
from deformable_detr.config import ConfigError
from deformable_detr.config.loading import load_config
from deformable_detr.conversion.content import read_content
from deformable_detr.conversion.pickles import read_pickle
from deformable_detr.engine.checkpoints.sealed_file import read_file
from deformable_detr.files import torch_files
from deformable_detr.files.torch_files import load_torch_file
from deformable_detr.models.backbones.weights import read_state_dict

SECONDS = 5
NAME = "encoder.layers.0.linear1.weight"
Content = dict[str, Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Content:
    path = tmp_path_factory.mktemp("sound") / "a.pth"
    write_checkpoint(path)
    content: Content = torch.load(path, weights_only=True)
    return content


def assert_refused(read: Callable[[Path], Any], path: Path, problem: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ValueError, match=problem) as caught:
        read(path)
    assert time.perf_counter() - start < SECONDS
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    assert len(message) < 400
    for advice in ("weights_only", "torch.load", "safe_globals"):
        assert advice not in message


TENSORS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "expanded": (lambda _: torch.zeros(1).expand(100_000, 100_000), "a number for each cell"),
    "overlapping": (lambda _: torch.zeros(999).as_strided((900, 99), (1, 1)), "a number for each"),
    "meta": (lambda _: torch.empty(10**6, 10**6, device="meta"), "must hold values"),
    "sparse": (lambda value: value.to_sparse(), "must be dense"),
    "complex": (lambda value: value.to(torch.complex64), "must have a usual type"),
    "float8": (lambda value: value.to(torch.float8_e4m3fn), "must have a usual type"),
    "integers": (lambda value: value.to(torch.int8), "int8 and must be torch.float32"),
    "truths": (lambda value: value.to(torch.bool), "bool and must be torch.float32"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_weight_must_hold_floating_numbers_of_its_own(
    tmp_path: Path, sound: Content, kind: str
) -> None:
    change, problem = TENSORS[kind]
    weights = {**sound["model"], NAME: change(sound["model"][NAME])}
    torch.save({**sound, "model": weights}, tmp_path / "a.pth")
    assert_refused(lambda path: Detector.from_checkpoint(path, "cpu"), tmp_path / "a.pth", problem)


def test_many_views_of_one_memory_are_refused(tmp_path: Path) -> None:
    memory = torch.zeros(100_000)
    views = {f"{start}": memory[start:] for start in range(100)}
    torch.save(views, tmp_path / "a.pth")
    assert_refused(read_content, tmp_path / "a.pth", "must have memory of its own")


def repeated(content: Content, levels: int) -> None:
    value: list[Any] = [1]
    for _ in range(levels):
        value = [value, value]
    content["config"]["data"]["x"] = value


def cyclic(content: Content) -> None:
    content["config"]["data"]["x"] = content["config"]


def of_names(content: Content) -> None:
    value: list[Any] = ["x"]
    for _ in range(19):
        value = [value, value]
    content["label_space"][0]["name"] = value


PLAIN: dict[str, tuple[Callable[[Content], None], str]] = {
    "shared lists": (lambda content: repeated(content, 15), "at most 4096 values"),
    "endless shared lists": (lambda content: repeated(content, 30), "at most 20 deep"),
    "a cycle": (cyclic, "at most 20 deep"),
    "names": (of_names, "at most 20 deep|at most 1048576 values"),
    "a category": (lambda content: content["label_space"].append(3), "must hold categories"),
    "a step": (lambda content: content.update(step=-1), "step of .* must be at least 0"),
    "a key": (lambda content: content["model"].update({(1,): NAME}), "must have names|must hold"),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_values_are_bounded(tmp_path: Path, sound: Content, kind: str) -> None:
    change, problem = PLAIN[kind]
    content = {**sound, **{name: copy.deepcopy(sound[name]) for name in ("config", "label_space")}}
    content["model"] = dict(sound["model"])
    change(content)
    torch.save(content, tmp_path / "a.pth")
    assert_refused(lambda path: Detector.from_checkpoint(path, "cpu"), tmp_path / "a.pth", problem)


READERS = [read_content, read_file, read_state_dict]


@pytest.mark.parametrize("read", READERS)
def test_compressed_archives_are_refused(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    torch.save({"a": torch.zeros(10_000_000)}, tmp_path / "b.pth")
    with (
        zipfile.ZipFile(tmp_path / "b.pth") as stored,
        zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for entry in stored.infolist():
            deflated.writestr(entry.filename, stored.read(entry))
    assert_refused(read, tmp_path / "a.pth", "must be stored without compression")


class Bytes:
    def __reduce__(self) -> Any:
        return bytearray, (3 << 30,)


@pytest.mark.parametrize("is_archive", [True, False])
@pytest.mark.parametrize("read", [read_content, read_state_dict])
def test_a_pickle_allocates_nothing_by_a_call(
    tmp_path: Path, read: Callable[[Path], Any], is_archive: bool
) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a": Bytes()}, path, _use_new_zipfile_serialization=is_archive)
    assert_refused(read, path, "must hold tensors and plain values only")


def test_a_pickle_of_too_many_steps_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a": list(range(3000))}, path)
    assert len(load_torch_file(path, "file a.pth")["a"]) == 3000
    monkeypatch.setattr(torch_files, "MOST_OPCODES", 1000)
    monkeypatch.setattr(torch_files, "_FEW_BYTES", 1000)
    assert_refused(read_pickle, path, "must have a pickle of at most 1000 steps, got more")


@pytest.mark.parametrize("read", READERS)
def test_files_of_other_kinds_are_named(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    assert_refused(read, path, "got a TorchScript model")
    path.write_bytes(pickle.dumps({"a": 1}, protocol=2))
    assert_refused(read, path, "is damaged|is not a file that PyTorch wrote|must hold")
    path.unlink()
    os.mkfifo(path)
    assert_refused(read, path, "found a named pipe")


SETTINGS = {
    "model.encoder.num_layers": 10**6,
    "model.decoder.num_layers": 10**6,
    "model.encoder.ffn_dim": 10**9,
    "model.decoder.num_points": 10**6,
    "model.embed_dim": 32 * 10**7,
    "model.queries.num_queries": 10**9,
    "model.neck.num_levels": 10**6,
    "model.attention.num_heads": 10**6,
    "model.position": {"kind": "learned", "max_cells": 10**9},
    "data.eval_size": 60_000,
    "data.eval_max_size": 60_000,
    "data.repeats": 10**9,
    "data.num_workers": 100_000,
    "train.micro_batch": 10**9,
    "train.total_batch": 10**9,
    "train.eval_batch": 10**9,
}


@pytest.mark.parametrize("key", SETTINGS)
def test_a_setting_has_a_limit(key: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"override {key}.* must be (less than or equal|an integer in 1\.\.)"
    ):
        load_config("quickstart", {key: SETTINGS[key]})


@pytest.mark.parametrize(
    ("key", "value"),
    [("encoder.num_layers", 64), ("encoder.ffn_dim", 65536), ("embed_dim", 8192)],
)
def test_settings_are_compared_with_the_file_before_a_model_is_built(
    tmp_path: Path, sound: Content, key: str, value: int
) -> None:
    content = {**sound, "config": copy.deepcopy(sound["config"])}
    *above, last = key.split(".")
    section = content["config"]["model"]
    for part in above:
        section = section[part]
    section[last] = value
    torch.save(content, tmp_path / "a.pth")
    problem = f"hold the weights that its settings ask for.*model.{above[0] if above else ''}"
    assert_refused(lambda path: Detector.from_checkpoint(path, "cpu"), tmp_path / "a.pth", problem)


def test_a_model_must_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("quickstart", {"model.encoder.num_layers": 60})
    monkeypatch.setattr("deformable_detr.builders.model_size._memory_of_machine", lambda: 20 << 20)
    with pytest.raises(ConfigError, match=r"^model\.encoder: must make a model that fits"):
        build_model(config, load_backbone_weights=False)


@pytest.mark.parametrize("two_stage", [False, True])
def test_the_bound_counts_what_the_model_has(two_stage: bool) -> None:
    overrides = {
        "model.queries.kind": "two_stage" if two_stage else "learned",
        "model.decoder.box_refinement": two_stage,
        "model.position": {"kind": "learned", "max_cells": 77},
        "model.encoder.num_layers": 2,
        "model.decoder.num_points": 3,
        "model.backbone.weights": "none",
    }
    config = load_config(CONFIG, overrides)
    model = build_model(config, num_classes=3, load_backbone_weights=False)
    parts = {
        "model.encoder": model.encoder,
        "model.decoder": model.decoder,
        "model.queries": model.queries,
        "model.position": model.memory_builder.position,
        "model.neck": model.neck,
    }
    for part, least in least_parameters(config.model).items():
        assert least <= sum(p.numel() for p in parts[part].parameters())
    encoder = sum(p.numel() for name, p in model.encoder.named_parameters() if p.ndim > 1)
    assert least_parameters(config.model)["model.encoder"] == encoder
    require_held_by(model.state_dict(), config.model, "it")
