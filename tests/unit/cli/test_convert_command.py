import argparse
from pathlib import Path

import torch
from helpers.command_line import CommandLine
from helpers.foreign_files import small_config, small_model, write_foreign
from helpers.tiny_checkpoint import LABEL_SPACE

from deformable_detr import Detector, export_weights
from deformable_detr.config.loading import to_yaml
from deformable_detr.conversion.coco_categories import COCO
from deformable_detr.conversion.files import read_weights
from deformable_detr.engine.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from deformable_detr.environment import current_versions


def test_a_native_file_holds_the_weights_and_no_optimizer_state(
    run: CommandLine, tmp_path: Path
) -> None:
    source, out = write_foreign(tmp_path, "official"), tmp_path / "new" / "native.pth"

    outcome = run("convert", source, out)

    assert outcome.code == 0, outcome.err
    assert "source: official," in outcome.out
    assert "class rows: kept the 80 of 91 that belong to a category" in outcome.out
    assert "classes: 80, {1: person, 2: bicycle, 3: car, and 77 more}" in outcome.out
    assert "neck.num_levels=3" in outcome.out
    assert "assumed, not" not in outcome.out
    assert f"written: {out} (native)" in outcome.out
    assert "It holds no optimizer state" in outcome.out
    checkpoint = load_checkpoint(out)
    assert (checkpoint.optimizer, checkpoint.step, checkpoint.epoch) == ({}, 0, 0)
    assert checkpoint.versions["converted_from"] == "official"
    assert checkpoint.label_space == COCO
    detector = Detector.from_checkpoint(out, device="cpu")
    for name, tensor in small_model("refine").state_dict().items():
        assert torch.equal(detector.model.state_dict()[name], tensor)


def test_a_chain_of_conversions_through_every_source_loses_nothing(
    run: CommandLine, tmp_path: Path
) -> None:
    given = write_foreign(tmp_path, "mmdet")

    for target in ("official", "transformers", "detrex", "native", "mmdet"):
        out = tmp_path / f"chain-{target}"
        outcome = run("convert", given, out, "--to", target)
        assert outcome.code == 0, outcome.err
        given = out

    weights = read_weights(given)
    assert (weights.source, weights.label_space) == ("mmdet", COCO)
    for name, tensor in small_model("refine").state_dict().items():
        assert torch.equal(weights.state_dict[name], tensor)


def test_a_native_checkpoint_is_exported_with_its_own_categories(
    run: CommandLine, checkpoint: Path, tmp_path: Path
) -> None:
    outcome = run("convert", checkpoint, tmp_path / "out.pth", "--to", "official")

    assert outcome.code == 0, outcome.err
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    assert content["model"]["class_embed.0.bias"].shape == (91,)  # its largest category id is 90
    assert content["args"]["nheads"] == 2
    assert read_weights(tmp_path / "out.pth").label_space == LABEL_SPACE


def test_assumed_settings_are_printed_and_a_config_overrides_them(
    run: CommandLine, tmp_path: Path
) -> None:
    state = export_weights(small_model("single_scale_dc5"), "official")
    torch.save({"model": state}, tmp_path / "in.pth")

    outcome = run("convert", tmp_path / "in.pth", tmp_path / "assumed.pth")
    assert "override with --config): backbone.dilation: false" in outcome.out

    config = tmp_path / "dc5.yaml"
    config.write_text(
        "model:\n"
        "  embed_dim: 64\n"
        "  backbone: {out_strides: [16], dilation: true}\n"
        "  neck: {num_levels: 1}\n"
        "  encoder: {num_layers: 2, ffn_dim: 64}\n"
        "  decoder: {num_layers: 3, ffn_dim: 64}\n"
        "  queries: {num_queries: 10}\n"
    )
    outcome = run("convert", tmp_path / "in.pth", tmp_path / "dc5.pth", "--config", config)
    assert outcome.code == 0, outcome.err
    assert "assumed, not" not in outcome.out
    model = load_checkpoint(tmp_path / "dc5.pth").config["model"]
    assert model["backbone"]["dilation"]


def test_an_ambiguous_number_of_heads_must_come_from_the_config(
    run: CommandLine, tmp_path: Path
) -> None:
    state = export_weights(small_model("refine", "model.attention.num_heads=4"), "detrex")
    torch.save({"model": state}, tmp_path / "in.pth")
    message = run.fails("convert", tmp_path / "in.pth", tmp_path / "out.pth")
    assert "must say how many attention heads it has" in message

    settings = small_config("refine", "model.attention.num_heads=4")
    config = tmp_path / "four_heads.yaml"
    config.write_text(to_yaml(settings))
    outcome = run("convert", tmp_path / "in.pth", tmp_path / "out.pth", "--config", config)
    assert outcome.code == 0, outcome.err
    written = load_checkpoint(tmp_path / "out.pth")
    assert written.config["model"]["attention"]["num_heads"] == 4
    assert written.origin == f"converted from {tmp_path / 'in.pth'} (detrex)"


def test_a_config_that_does_not_fit_is_refused(run: CommandLine, tmp_path: Path) -> None:
    source = write_foreign(tmp_path, "official")
    message = run.fails(
        "convert", source, tmp_path / "out.pth", "--config", "deformable_detr_r50_refine"
    )
    assert message.startswith(
        f"checkpoint {source} must hold the weights that its settings ask for, got "
    )
    assert not (tmp_path / "out.pth").exists()


def test_a_file_of_unknown_format_is_refused(run: CommandLine, tmp_path: Path) -> None:
    torch.save({"model": {"fc.weight": torch.zeros(1)}}, tmp_path / "in.pth")

    message = run.fails("convert", tmp_path / "in.pth", tmp_path / "out.pth")

    assert message.startswith(f"checkpoint {tmp_path / 'in.pth'} must be a Deformable DETR of ")
    assert "(fc.weight)" in message


def test_a_missing_file_is_named(run: CommandLine, tmp_path: Path) -> None:
    message = run.fails("convert", "none.pth", tmp_path / "out.pth")
    assert message == "checkpoint none.pth does not exist; check the path"


def test_a_model_that_the_target_cannot_hold_is_refused_and_no_file_is_left(
    run: CommandLine, tmp_path: Path
) -> None:
    source = tmp_path / "in.pth"
    overrides = ("model.backbone={kind: mobilenet_v2, weights: none}",)
    _write_native(source, "multi_scale", *overrides)

    message = run.fails("convert", source, tmp_path / "out.pth", "--to", "official")

    assert message.startswith("backbone must be a ResNet for its weights to have names elsewhere")
    assert [file.name for file in tmp_path.iterdir()] == ["in.pth"]


def _write_native(path: Path, variant: str, *overrides: str) -> None:
    config = small_config(variant, *overrides)
    checkpoint = Checkpoint(
        model=small_model(variant, *overrides).state_dict(),
        ema=None,
        optimizer={},
        epoch=0,
        step=0,
        best_ap=None,
        label_space=COCO,
        config=config.model_dump(mode="json"),
        versions=current_versions(),
    )
    save_checkpoint(path, checkpoint)


def test_the_options_of_the_official_file_survive(run: CommandLine, tmp_path: Path) -> None:
    state = export_weights(small_model("multi_scale", "model.attention.num_heads=4"), "official")
    options = argparse.Namespace(nheads=4, lr=1e-4)
    torch.save({"model": state, "args": options}, tmp_path / "in.pth")

    assert run("convert", tmp_path / "in.pth", tmp_path / "native.pth").code == 0

    model = load_checkpoint(tmp_path / "native.pth").config["model"]
    assert model["attention"]["num_heads"] == 4
    assert model["decoder"]["num_points"] == 4
