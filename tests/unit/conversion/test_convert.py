"""`convert`: labels follow the config, and damaged files are refused."""

import json
from pathlib import Path

import pytest
import torch
from helpers.foreign_files import small_config, small_model, without_stored, write_foreign
from helpers.models import DINO
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from deformable_detr import Detector, export_weights
from deformable_detr.builders import build_model
from deformable_detr.config.loading import to_yaml
from deformable_detr.conversion.coco_categories import COCO
from deformable_detr.conversion.files import read_weights
from deformable_detr.conversion.stored import KEY, TENSORS_FILE, Stored
from deformable_detr.conversion.writing import write_weights
from deformable_detr.workflows.conversion import convert

A_HEAD = "decoder.class_heads.0.bias"
PROPOSALS_HEAD = "queries.class_head.bias"


def write_config(path: Path, *overrides: str) -> Path:
    path.write_text(to_yaml(small_config("two_stage", *overrides)))
    return path


def test_labels_are_as_match_official_says(tmp_path: Path) -> None:
    """The official file keeps all of its 91 rows; from others, those without a category are new."""
    raw = COCO.with_raw_labels()
    state = export_weights(small_model("two_stage", num_classes=91), "official")
    torch.save({"model": state}, tmp_path / "official.pth")
    official = write_config(tmp_path / "official.yaml", "match_official=true")
    own = write_config(tmp_path / "own.yaml")

    convert(tmp_path / "official.pth", tmp_path / "raw.pth", config=official)
    convert(tmp_path / "raw.pth", tmp_path / "own.pth", config=own)
    mmdet = write_foreign(tmp_path, "mmdet", "two_stage")
    result = convert(mmdet, tmp_path / "spread.pth", config=official)

    kept, ours, spread = (read_weights(tmp_path / f"{n}.pth") for n in ("raw", "own", "spread"))
    assert (kept.config["match_official"], kept.label_space) == (True, raw)
    assert (ours.config["match_official"], ours.label_space) == (False, COCO)
    assert (spread.config["match_official"], spread.label_space) == (True, raw)
    assert "class rows: 80 became 91, one for each category id" in result.describe()
    rows = list(COCO.category_ids)
    head = state["class_embed.0.bias"]
    assert torch.equal(kept.state_dict[A_HEAD], head)
    assert torch.equal(ours.state_dict[A_HEAD], head[rows])
    proposals = state["transformer.decoder.class_embed.3.bias"]
    assert torch.equal(kept.state_dict[PROPOSALS_HEAD], proposals)
    given = small_model("two_stage").state_dict()
    assert torch.equal(spread.state_dict[A_HEAD][rows], given[A_HEAD])
    assert torch.equal(spread.state_dict[PROPOSALS_HEAD][:80], given[PROPOSALS_HEAD])


def test_pre_trained_weights_of_a_config_stay_in_its_file(tmp_path: Path) -> None:
    config = write_config(tmp_path / "a.yaml", "model.backbone.weights=imagenet1k_v1")
    convert(write_foreign(tmp_path, "detrex", "two_stage"), tmp_path / "out.pth", config=config)
    backbone = read_weights(tmp_path / "out.pth").config["model"]["backbone"]
    assert backbone["weights"] == "imagenet1k_v1"


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (7, r"'deformable_detr' of checkpoint .*mmdet\.pth must hold config, .* got int of \[\]"),
        ({"config": {}}, r"must hold config, categories and tensors, .* got dict of \['config'\]"),
        ({"config": {}, "categories": [3]}, r"got dict of \['categories', 'config'\]; convert the"),
        ({"config": {}, "categories": []}, r"mmdet\.pth holds an incomplete config \('model'\)"),
    ],
)
def test_damaged_settings_are_refused(tmp_path: Path, stored: object, message: str) -> None:
    path = write_foreign(tmp_path, "mmdet")
    torch.save({**torch.load(path, weights_only=True), KEY: stored}, path)
    with pytest.raises(ValueError, match=message):
        read_weights(path)


def test_stored_settings_get_their_current_names() -> None:
    former = {"config": {"compat": "official"}, "categories": []}
    assert Stored.from_plain(former, "a file").config == {"match_official": True}


def test_file_of_tensors_beside_the_weights_belongs_to_them(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path, "transformers", "refine", "model.mimicking={max_regions: 3}")
    beside, file = folder / TENSORS_FILE, folder / "model.safetensors"
    tensors = load_file(beside)
    assert read_weights(folder).state_dict.keys() > tensors.keys()

    save_file({"mimicking.other": torch.zeros(1)}, beside)
    with pytest.raises(ValueError, match=r"\.safetensors must belong to .*, got 1 other tensors"):
        read_weights(folder)
    beside.unlink()
    with pytest.raises(ValueError, match=r"needs .*deformable_detr\.safetensors beside it"):
        read_weights(folder)

    with safe_open(file, "pt") as opened:
        stored = opened.metadata()[KEY]
    state = load_file(file)
    save_file(state, file, metadata={KEY: stored[:-1]})
    with pytest.raises(ValueError, match=r"'deformable_detr' of .* must be JSON, got "):
        read_weights(folder)
    save_file(state, file)  # as another program saves it
    assert not read_weights(folder).has_all_settings


def test_config_of_another_program_does_not_describe_an_official_file(tmp_path: Path) -> None:
    path = write_foreign(tmp_path, "official")
    beside = {"model_type": "deformable_detr", "encoder_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(beside))
    assert read_weights(path).config["model"]["attention"]["num_heads"] == 8


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"activation_function": "gelu"}, r"activation_function of .* must be relu, got 'gelu'"),
        ({"decoder_attention_heads": 4}, r"decoder_attention_heads of .* must be 8, got 4"),
    ],
)
def test_transformers_model_that_computes_something_else_is_refused(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    file = write_foreign(tmp_path, "transformers") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(ValueError, match=message):
        read_weights(file.parent)


def test_options_that_transformers_leaves_out_have_its_values(tmp_path: Path) -> None:
    """`save_pretrained` writes what differs from them; the backbone's config says DC5."""
    overrides = ("model.encoder.num_points=2", "model.decoder.num_points=2")
    folder = write_foreign(tmp_path, "transformers", "single_scale_dc5", *overrides)
    config = json.loads((without_stored(folder) / "config.json").read_text())
    short = {name: config[name] for name in ("model_type", "backbone_config", "id2label")}
    (folder / "config.json").write_text(json.dumps(short))

    weights = read_weights(folder)

    model = weights.config["model"]
    assert (model["attention"]["num_heads"], model["decoder"]["num_points"]) == (8, 2)
    assert model["backbone"]["dilation"]
    assert weights.assumed == ()


def test_config_says_otherwise_than_the_assumed_positions_of_dino(tmp_path: Path) -> None:
    path = without_stored(write_foreign(tmp_path, "mmdet-dino", "two_stage"))
    positions = ("model.position.temperature=10000", "model.position.offset=-0.5")
    config = write_config(tmp_path / "a.yaml", *DINO, *positions)

    assumed = convert(path, tmp_path / "assumed.pth")
    convert(path, tmp_path / "told.pth", config=config)

    (line,) = (line for line in assumed.describe() if line.startswith("assumed"))
    assert "--config): position.temperature: 20, position.offset: 0 (its config `imp" in line
    models = [
        read_weights(tmp_path / f"{name}.pth").config["model"] for name in ("assumed", "told")
    ]
    found = [(model["position"]["temperature"], model["position"]["offset"]) for model in models]
    assert found == [(20, 0), (10000, -0.5)]


def test_a_detector_of_other_channels_is_written_for_transformers_and_read(tmp_path: Path) -> None:
    config = small_config("two_stage", "model.backbone.in_channels=4")
    model = build_model(config, num_classes=80)
    folder = tmp_path / "folder"
    content = config.model_dump(mode="json")
    write_weights(folder, model, to="transformers", label_space=COCO, config=content)
    stated = json.loads((folder / "config.json").read_text())
    assert stated["backbone_config"]["num_channels"] == 4
    normalized = json.loads((folder / "preprocessor_config.json").read_text())
    assert normalized["image_mean"] == pytest.approx([(0.485 + 0.456 + 0.406) / 3] * 4)
    assert normalized["image_std"] == pytest.approx([(0.229 + 0.224 + 0.225) / 3] * 4)
    assert Detector.from_checkpoint(folder, "cpu").channels == 4
