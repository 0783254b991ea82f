"""`doctor checkpoint`: what a file holds, whether it can be used, and the code that says so."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.command_line import CommandLine
from helpers.tiny_checkpoint import CONFIG, write_checkpoint

from deformable_detr.cli.doctor.checkpoint import EXIT_NOT_USABLE
from deformable_detr.cli.main import EXIT_ERROR
from deformable_detr.config.loading import to_yaml
from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from deformable_detr.workflows.conversion import convert


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "a.pth")
    return tmp_path / "a.pth"


def lines(text: str) -> dict[str, str]:
    return {line[:14].strip(): line[15:] for line in text.splitlines()}


def test_a_sound_checkpoint_is_described(run: CommandLine, path: Path) -> None:
    outcome = run("doctor", "checkpoint", path)
    found = lines(outcome.out)
    assert outcome.code == 0
    assert found["source"] == "native"
    assert found["seal"] == "intact"
    assert found["trained"] == "1 steps, 1 epochs"
    assert found["finite"] == "all"
    assert found["variant"] == "multi-scale"
    assert found["backbone"] == "resnet 18, strides [16, 32]"
    assert found["queries"] == "5, learned"
    assert found["classes"].startswith("3, {0: cat")
    assert found["usable"] == "yes"


def test_weights_of_another_format_name_it_and_what_is_assumed(
    run: CommandLine, path: Path, tmp_path: Path
) -> None:
    convert(path, tmp_path / "b.pth", to="detrex")
    assert lines(run("doctor", "checkpoint", tmp_path / "b.pth").out)["source"] == "detrex"


def test_the_transfer_to_a_config_is_shown(run: CommandLine, path: Path, tmp_path: Path) -> None:
    model = CONFIG.model
    queries = model.queries.model_copy(update={"num_queries": 7})
    config = CONFIG.model_copy(update={"model": model.model_copy(update={"queries": queries})})
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    found = lines(run("doctor", "checkpoint", path, "--config", tmp_path / "c.yaml").out)
    assert "queries" in found["reinitialized"]
    assert found["classes"] == "3 kept: cat, dog, tree"
    assert found["usable"] == "yes"


def test_a_weight_that_is_not_finite_is_counted(run: CommandLine, path: Path) -> None:
    checkpoint = load_checkpoint(path)
    name = "encoder.layers.0.linear1.bias"
    weights = {**checkpoint.model, name: torch.full_like(checkpoint.model[name], torch.nan)}
    save_checkpoint(path, replace(checkpoint, model=weights))
    outcome = run("doctor", "checkpoint", path)
    found = lines(outcome.out)
    assert outcome.code == EXIT_NOT_USABLE
    assert found["finite"].startswith("1 of ")
    assert name in found["finite"]
    assert name in found["not usable"]


def test_a_damaged_file_is_one_line(run: CommandLine, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])
    outcome = run("doctor", "checkpoint", path)
    assert outcome.code == EXIT_NOT_USABLE
    assert len(outcome.out.splitlines()) == 1
    assert path.name in outcome.out


def test_a_missing_file_is_an_error(run: CommandLine, tmp_path: Path) -> None:
    assert run("doctor", "checkpoint", tmp_path / "no.pth").code == EXIT_ERROR
