"""Detectors are built from files of other implementations, without further settings."""

import argparse
import json
import logging
from pathlib import Path

import pytest
import torch
from helpers.foreign_files import (
    FILE_NAMES,
    small_config,
    small_model,
    without_stored,
    write_foreign,
)
from helpers.tiny_checkpoint import LABEL_SPACE, write_checkpoint
from safetensors.torch import save_file

from deformable_detr import Detector, export_weights
from deformable_detr.config.loading import validate_config
from deformable_detr.conversion.coco_categories import COCO
from deformable_detr.conversion.files import read_weights
from deformable_detr.conversion.sources.transformers import file_name
from deformable_detr.files import WriteError
from deformable_detr.labels import LabelSpace

PETS = LabelSpace((2, 11), ("cat", "dog"))


@pytest.mark.parametrize("source", FILE_NAMES)
@pytest.mark.parametrize("variant", ["multi_scale", "refine", "two_stage"])
def test_detector_is_built_from_the_file_alone(tmp_path: Path, source: str, variant: str) -> None:
    path = without_stored(write_foreign(tmp_path, source, variant))

    detector = Detector.from_checkpoint(path, device="cpu")

    expected = small_model(variant)
    images = [torch.rand(3, 96, 80), torch.rand(3, 64, 128)]
    with torch.no_grad():
        found, wanted = detector.model(images), expected(images)
    assert torch.equal(found.last.logits, wanted.last.logits)
    assert torch.equal(found.last.boxes, wanted.last.boxes)
    assert detector.label_space == COCO


@pytest.mark.parametrize("variant", ["multi_scale", "two_stage"])
def test_settings_equal_those_of_the_original_model(tmp_path: Path, variant: str) -> None:
    overrides = (
        "model.attention.num_heads=4",
        "model.decoder={num_points: 2, dropout: 0.3}",
        "model.encoder.dropout=0.3",
    )
    path = without_stored(write_foreign(tmp_path, "official", variant, *overrides))

    weights = read_weights(path)

    config = validate_config(weights.config, source="test")
    assert config.model == small_config(variant, *overrides).model
    assert weights.assumed == ()


def test_images_are_resized_as_in_the_paper(tmp_path: Path) -> None:
    path = without_stored(write_foreign(tmp_path, "official"))
    config = validate_config(read_weights(path).config, source="a")
    assert (config.data.eval_size, config.data.eval_max_size) == (800, 1333)


@pytest.mark.parametrize("source", FILE_NAMES)
def test_files_of_earlier_versions_are_read(tmp_path: Path, source: str) -> None:
    """They hold the categories in a place of their own, and transformers' only the names."""
    path = without_stored(write_foreign(tmp_path, source, label_space=PETS))
    if path.is_file():
        content = torch.load(path, weights_only=True)
        torch.save({**content, "categories": PETS.to_json()}, path)

    weights = read_weights(path)

    assert weights.state_dict["decoder.class_heads.0.bias"].shape == (2,)
    assert weights.label_space is not None
    assert weights.label_space.names == PETS.names
    if source != "transformers":
        assert weights.label_space == PETS


@pytest.mark.parametrize("source", FILE_NAMES)
def test_unused_rows_are_exported_without_a_category(tmp_path: Path, source: str) -> None:
    path = write_foreign(tmp_path, source, label_space=PETS.with_raw_labels())
    space = read_weights(path).label_space
    assert space is not None
    assert space.contiguous() == PETS


def test_91_official_rows_are_coco_categories(tmp_path: Path) -> None:
    torch.save(export_weights(small_model("refine"), "official"), tmp_path / "a.pth")

    weights = read_weights(tmp_path / "a.pth")

    assert weights.label_space == COCO
    assert weights.num_rows == 91
    for name, tensor in small_model("refine").state_dict().items():
        assert torch.equal(weights.state_dict[name], tensor)


def test_unnamed_classes_are_numbered(tmp_path: Path) -> None:
    torch.save(export_weights(small_model("refine", num_classes=3), "official"), tmp_path / "a.pth")

    assert read_weights(tmp_path / "a.pth").label_space is None
    names = Detector.from_checkpoint(tmp_path / "a.pth", device="cpu").label_space.names
    assert names == ("class 0", "class 1", "class 2")


def test_class_names_of_mmdetection_are_used(tmp_path: Path) -> None:
    state = export_weights(small_model("refine", num_classes=2), "mmdet")
    torch.save(
        {"state_dict": state, "meta": {"dataset_meta": {"CLASSES": ("cat", "dog")}}},
        tmp_path / "a.pth",
    )
    assert read_weights(tmp_path / "a.pth").label_space == LabelSpace((0, 1), ("cat", "dog"))


@pytest.mark.parametrize("gap_name", ["N/A", "street sign"])
def test_91_names_of_a_transformers_config_are_the_80_of_coco(
    tmp_path: Path, gap_name: str
) -> None:
    state = export_weights(small_model("refine", num_classes=91), "transformers")
    save_file({n: t.clone() for n, t in state.items()}, tmp_path / "model.safetensors")
    name_of = dict(zip(COCO.category_ids, COCO.names, strict=True))
    id2label = {str(row): name_of.get(row, gap_name) for row in range(91)}
    config = {"model_type": "deformable_detr", "id2label": id2label}
    (tmp_path / "config.json").write_text(json.dumps(config))

    weights = read_weights(tmp_path)

    assert weights.label_space == COCO
    expected = state["class_embed.1.bias"][list(COCO.category_ids)]
    assert torch.equal(weights.state_dict["decoder.class_heads.1.bias"], expected)


def test_row_names_with_gaps_are_rejected(tmp_path: Path) -> None:
    path = write_foreign(tmp_path, "transformers", label_space=PETS)
    config = json.loads((path / "config.json").read_text())
    config["id2label"] = {"cat": 0, "dog": 1}
    (path / "config.json").write_text(json.dumps(config))

    with pytest.raises(ValueError, match=r"id2label of .* must name rows 0 to 1, got cat, dog"):
        read_weights(path)


def test_rows_without_a_category_are_dropped(tmp_path: Path) -> None:
    space = LabelSpace((0, 1, 2), ("N/A", "cat", "dog"))
    path = without_stored(write_foreign(tmp_path, "transformers", label_space=space))
    weights = read_weights(path)
    assert weights.label_space == LabelSpace((1, 2), ("cat", "dog"))
    assert weights.num_rows == 3


def test_single_safetensors_file_is_read_with_file_names(tmp_path: Path) -> None:
    state = export_weights(small_model("multi_scale"), "transformers")
    # As in save_pretrained: only one name of each tied tensor.
    kept = {
        file_name(name): tensor.clone()
        for name, tensor in state.items()
        if not name.startswith(("class_embed.1", "class_embed.2", "bbox_embed.1", "bbox_embed.2"))
    }
    save_file(kept, tmp_path / "a.safetensors")

    weights = read_weights(tmp_path / "a.safetensors")

    assert weights.source == "transformers"
    for name, tensor in small_model("multi_scale").state_dict().items():
        assert torch.equal(weights.state_dict[name], tensor)


def test_pytorch_bin_of_transformers_is_read(tmp_path: Path) -> None:
    torch.save(
        export_weights(small_model("refine"), "transformers"), tmp_path / "pytorch_model.bin"
    )
    assert read_weights(tmp_path).source == "transformers"


def test_dilation_is_taken_from_the_options(tmp_path: Path) -> None:
    state = export_weights(small_model("single_scale"), "official")
    options = argparse.Namespace(dilation=True, nheads=8)
    torch.save({"model": state, "args": options}, tmp_path / "dc5.pth")

    weights = read_weights(tmp_path / "dc5.pth")

    backbone = weights.config["model"]["backbone"]
    assert (backbone["dilation"], backbone["out_strides"]) == (True, [16])
    assert weights.assumed == ()


def test_assumed_settings_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(export_weights(small_model("single_scale"), "official"), tmp_path / "one.pth")
    torch.save(export_weights(small_model("two_stage"), "detrex"), tmp_path / "two.pth")

    with caplog.at_level(logging.WARNING):
        Detector.from_checkpoint(tmp_path / "one.pth", device="cpu")
        Detector.from_checkpoint(tmp_path / "two.pth", device="cpu")

    assert (
        "one.pth does not determine all settings; assumed: backbone.dilation: false"
        in caplog.messages[0]
    )
    assert (
        "two.pth does not determine all settings; assumed: queries.num_queries: 300"
        in caplog.messages[1]
    )


def test_ambiguous_number_of_heads_is_an_error(tmp_path: Path) -> None:
    model = small_model("refine", "model.attention.num_heads=4")
    torch.save(export_weights(model, "official"), tmp_path / "a.pth")

    with pytest.raises(ValueError, match=r"a\.pth must say how many attention heads .* 16 points"):
        read_weights(tmp_path / "a.pth")


def test_file_with_a_missing_tensor_is_rejected(tmp_path: Path) -> None:
    state = export_weights(small_model("refine"), "official")
    del state["transformer.encoder.layers.0.linear2.bias"]
    torch.save(state, tmp_path / "a.pth")

    with pytest.raises(
        ValueError, match=r"a\.pth is missing 1 tensors, first: .*layers\.0\.linear2\.bi"
    ):
        read_weights(tmp_path / "a.pth")


def test_native_checkpoint_is_read_unchanged(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "last.pth")

    weights = read_weights(tmp_path / "last.pth")

    assert (weights.source, weights.label_space) == ("native", LABEL_SPACE)
    for name, tensor in model.state_dict().items():
        assert torch.equal(weights.state_dict[name], tensor)


@pytest.mark.parametrize("source", ["official", "transformers"])
def test_failed_write_leaves_nothing(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    monkeypatch.setattr("deformable_detr.conversion.writing.save_file", full)

    with pytest.raises(WriteError, match=r"could not be written \(No space left on device\)"):
        write_foreign(tmp_path, source)

    assert list(tmp_path.iterdir()) == []


def test_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    write_foreign(tmp_path, "official")
    with pytest.raises(FileExistsError, match=r"official\.pth must not exist yet"):
        write_foreign(tmp_path, "official")
