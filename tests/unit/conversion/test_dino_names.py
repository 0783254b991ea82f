"""The tables of DINO agree with separately written lists of names and shapes."""

import functools
from pathlib import Path

import pytest
import torch
from helpers.dino_weights import SHAPES, SMALL_DINO, DinoModel, state_by_name
from helpers.models import DINO, VARIANTS, small_detector
from helpers.transformers_oracle import randomize
from torch import Tensor

from deformable_detr import export_weights
from deformable_detr.builders import build_model
from deformable_detr.builders.weights import model_with_weights
from deformable_detr.config.loading import load_config, validate_config
from deformable_detr.conversion.coco_categories import COCO
from deformable_detr.conversion.detector_structure import structure_of_model
from deformable_detr.conversion.files import read_weights
from deformable_detr.conversion.layout import name_pairs
from deformable_detr.conversion.recognition import layout_of, recognize
from deformable_detr.conversion.weights import Weights
from deformable_detr.models.deformable_detr import DeformableDETR

NUM_KEYS = {"dino": 626, "detrex-dino": 634, "mmdet-dino": 574}
LABELS = {
    "dino": "label_enc.weight",
    "detrex-dino": "label_enc.weight",
    "mmdet-dino": "dn_query_generator.label_embedding.weight",
}
CLASSES = {"dino": 91, "detrex-dino": 80, "mmdet-dino": 80}
FIVE_SCALES = ("model.backbone.out_strides=[4, 8, 16, 32]", "model.neck.num_levels=5")
SHARED = "model.decoder.share_heads=true"
A_POSITION = {
    "dino": (20, 0),
    "detrex-dino": (10000, -0.5),
    "mmdet-dino": (20, 0),
}


@functools.cache
def full_size(*overrides: str, num_classes: int) -> DeformableDETR:
    """Return DINO of ResNet-50 without memory for its weights."""
    sizes = ["model.queries.num_queries=900"]
    sizes += [f"model.{stack}.ffn_dim=2048" for stack in ("encoder", "decoder")]
    settings = [*DINO, *sizes, "model.backbone.weights=none", *overrides]
    with torch.device("meta"):
        return build_model(load_config(VARIANTS["two_stage"], settings), num_classes=num_classes)


@functools.cache
def small_state(source: str) -> dict[str, Tensor]:
    return state_by_name(SHAPES[source](DinoModel(classes=CLASSES[source], **SMALL_DINO)))


@functools.cache
def without_denoising() -> DeformableDETR:
    model = small_detector("two_stage", *DINO[:-1], "model.attention.num_heads=8", num_classes=80)
    randomize(model)
    return model


def read(folder: Path, source: str, state: dict[str, Tensor], **beside: object) -> Weights:
    path = folder / f"{source}.pth"
    torch.save({"state_dict" if source == "mmdet-dino" else "model": state, **beside}, path)
    return read_weights(path)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("five_scales", [False, True])
@pytest.mark.parametrize("source", SHAPES)
def test_table_has_the_names_and_shapes_of_the_source_and_all_of_ours(
    source: str, five_scales: bool, shared: bool
) -> None:
    count = CLASSES[source]
    overrides = (*FIVE_SCALES,) * five_scales + (SHARED,) * shared
    model = full_size(*overrides, num_classes=count)
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    pairs = name_pairs(layout_of(source), structure_of_model(model))

    expected = SHAPES[source](DinoModel(backbone_levels=3 + five_scales, classes=count))
    assert five_scales or len(expected) == NUM_KEYS[source]
    expected[LABELS[source]] = (count, 256)  # without the official row that is never used
    needed = [pair for pair in pairs if not pair.zero_if_absent]
    assert len({pair.theirs for pair in needed}) == len(needed)
    assert {pair.theirs: ours[pair.ours] for pair in needed} == expected
    assert {pair.ours for pair in pairs} == ours.keys()
    biases = {f"neck.projections.{level}.bias" for level in range(4 + five_scales)}
    extra = {pair.ours for pair in pairs if pair.zero_if_absent}
    assert extra == (biases if source == "mmdet-dino" else set())


def test_numbers_of_parameters_are_those_of_the_official_models() -> None:
    """Ours are 256 fewer, those of the row of the label embedding that is never used."""
    for overrides, num_classes, expected in (
        ((SHARED,), 91, 46_892_926),
        ((), 91, 47_672_921),
        ((), 80, 47_650_316),
        ((SHARED,), 80, 46_884_456),
        ((*FIVE_SCALES, SHARED), 91, 47_255_550),
    ):
        model = full_size(*overrides, num_classes=num_classes)
        assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("source", SHAPES)
def test_file_of_the_source_is_read_and_exported_bitwise(source: str, tmp_path: Path) -> None:
    state = small_state(source)
    assert recognize(state) == source

    weights = read(tmp_path, source, state)
    config = validate_config(weights.config, source="the file")
    model = model_with_weights(weights, config, "the file")
    back = export_weights(model, to=source)

    assert (weights.source, weights.label_space) == (source, COCO)
    assert config.model.queries.num_queries == 10
    assert config.model.decoder.share_heads is False
    assert config.model.backbone.out_strides == (8, 16, 32)
    used = list(COCO.category_ids) if source == "dino" else list(range(80))
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        is_by_class = "class_embed" in name or "cls_branches" in name or name == LABELS[source]
        rows = used if is_by_class else slice(None)
        assert torch.equal(back[name][rows], tensor[rows]), name


@pytest.mark.parametrize("source", SHAPES)
def test_position_is_assumed_by_source_and_the_assumption_told(source: str, tmp_path: Path) -> None:
    weights = read(tmp_path, source, small_state(source))

    temperature, offset = A_POSITION[source]
    position = {"kind": "sine", "temperature": temperature, "offset": offset}
    assert weights.config["model"]["position"] == position
    (told,) = weights.assumed
    assert told.startswith(f"position.temperature: {temperature}, position.offset: {offset}")


def test_temperature_of_an_official_file_is_taken_from_its_options(tmp_path: Path) -> None:
    options = {"pe_temperatureH": 40, "pe_temperatureW": 40}
    weights = read(tmp_path, "dino", small_state("dino"), args=options)
    position = weights.config["model"]["position"]
    assert (position["temperature"], position["offset"], weights.assumed) == (40, 0, ())

    with pytest.raises(ValueError, match=r"pe_temperatureW in the options of .* must be equal num"):
        read(tmp_path, "dino", small_state("dino"), args={**options, "pe_temperatureW": 20})


def test_moving_average_beside_the_weights_is_said_not_to_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = small_state("dino")
    read(tmp_path, "dino", state, ema_model={"module.a": torch.zeros(1)}, epoch=11)
    assert "dino.pth also holds averaged weights, 'ema_model', which are not read" in caplog.text


@pytest.mark.parametrize("absent", [True, False])
@pytest.mark.parametrize("source", SHAPES)
def test_model_without_denoising_is_written_with_zeros_and_read_without(
    source: str, absent: bool, tmp_path: Path
) -> None:
    model = without_denoising()
    exported = export_weights(model, to=source)
    assert exported[LABELS[source]].shape == (92 if source == "dino" else 80, 64)
    assert not exported[LABELS[source]].any()
    if absent:
        del exported[LABELS[source]]
    weights = read(tmp_path, source, exported)

    assert weights.config["model"]["denoising"] is None
    assert weights.state_dict.keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "label_enc.weight",
            (),
            r"label_enc\.weight must be at least \(91, 64\), one row for each",
        ),
        (
            "label_enc.weight",
            (90, 64),
            r"label_enc\.weight must be at least \(91, 64\), .* \(90, 64",
        ),
        (
            "transformer.tgt_embed.weight",
            (),
            r"queries\.content of .* must be one vector for each q",
        ),
    ],
)
def test_damaged_tensors_are_refused_by_name(
    name: str, shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, "dino", {**small_state("dino"), name: torch.ones(shape)})
