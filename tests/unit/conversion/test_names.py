"""Name tables are bijections in both directions, for all variants."""

import copy
import functools
import itertools

import pytest
import torch
from helpers.models import DINO, VARIANTS, small_detector
from helpers.transformers_oracle import randomize

from deformable_detr import export_weights, import_weights
from deformable_detr.conversion.detector_structure import structure_of_model, structure_of_names
from deformable_detr.conversion.recognition import DINO_SOURCES, SOURCES, layout_of
from deformable_detr.models.deformable_detr import DeformableDETR

FOREIGN = [source for source in SOURCES if source not in ("native", *DINO_SOURCES)]
# DC5 has the same tensors as the single-scale model.
PAPER_VARIANTS = [v for v in VARIANTS if v not in ("learned_position", "single_scale_dc5")]
CASES = list(itertools.product(FOREIGN, PAPER_VARIANTS))
DINO_VARIANTS = {
    "dino": DINO,
    "dino_shared": (*DINO, "model.decoder.share_heads=true"),
    "dino_without_denoising": DINO[:-1],
}
DINO_CASES = list(itertools.product(DINO_SOURCES, DINO_VARIANTS))
LEARNED = [(source, "learned_position") for source in ("official", "transformers")]


@functools.cache
def random_detector(variant: str) -> DeformableDETR:
    """Shared model; no test modifies it."""
    if variant in DINO_VARIANTS:
        model = small_detector("two_stage", *DINO_VARIANTS[variant])
    else:
        overrides = ["model.position.max_cells=50"] if variant == "learned_position" else []
        model = small_detector(variant, *overrides)
    randomize(model)
    return model


@functools.cache
def target_detector(variant: str) -> DeformableDETR:
    """Return the same model, as the target of an import."""
    return copy.deepcopy(random_detector(variant))


@pytest.mark.parametrize(("source", "variant"), [*CASES, *LEARNED, *DINO_CASES])
def test_weights_exported_and_imported_are_bitwise_equal(source: str, variant: str) -> None:
    model, other = random_detector(variant), target_detector(variant)
    for tensor in other.state_dict().values():
        tensor.zero_()

    exported = export_weights(model, to=source)
    report = import_weights(other, exported)

    assert report.source == source
    state = other.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("source", "variant"), [*CASES, *DINO_CASES])
def test_structure_of_a_model_follows_from_the_names(source: str, variant: str) -> None:
    model = random_detector(variant)

    layout = layout_of(source)
    exported = layout.normalize(export_weights(model, to=source))

    assert structure_of_names(layout, exported) == structure_of_model(model)


def test_equal_heads_are_recognized_as_separate_by_names_only() -> None:
    model = small_detector("refine")
    for heads in (model.decoder.class_heads, model.decoder.box_heads):
        for head in heads[1:]:
            head.load_state_dict(heads[0].state_dict())

    for source in ("official", "transformers", "detrex"):
        structure = structure_of_names(layout_of(source), export_weights(model, to=source))
        assert structure.box_refinement
    structure = structure_of_names(layout_of("mmdet"), export_weights(model, to="mmdet"))
    assert not structure.box_refinement  # its names do not distinguish it


def test_equal_heads_of_two_stage_models_are_never_shared() -> None:
    model = small_detector("two_stage")  # not trained: all heads have the same initial values
    structure = structure_of_names(layout_of("mmdet"), export_weights(model, to="mmdet"))
    assert structure == structure_of_model(model)


MS_DEFORM_ATTN = [
    f"{part}.{leaf}"
    for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    for leaf in ("weight", "bias")
]
MULTIHEAD_ATTN = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]


def affine(*names: str) -> list[str]:
    return [f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")]


def test_detrex_names_are_those_of_its_modules() -> None:
    model = small_detector("two_stage", "model.decoder.num_layers=2")
    names = list(export_weights(model, to="detrex"))

    assert names[:6] == [
        "backbone.stem.conv1.weight",
        *(f"backbone.stem.conv1.norm.{leaf}" for leaf in ("weight", "bias")),
        *(f"backbone.stem.conv1.norm.{leaf}" for leaf in ("running_mean", "running_var")),
        "backbone.res2.0.conv1.weight",
    ]
    assert "backbone.res3.0.shortcut.weight" in names
    assert "backbone.res3.0.shortcut.norm.running_var" in names
    # Stage 1 of ResNet-18 has identity shortcuts.
    assert "backbone.res2.0.shortcut.weight" not in names
    decoder_layer = [
        *(f"attentions.0.attn.{name}" for name in MULTIHEAD_ATTN),
        *(f"attentions.1.{name}" for name in MS_DEFORM_ATTN),
        *affine("ffns.0.layers.0.0", "ffns.0.layers.1", "norms.0", "norms.1", "norms.2"),
    ]
    encoder_layer = [
        *(f"attentions.0.{name}" for name in MS_DEFORM_ATTN),
        *affine("ffns.0.layers.0.0", "ffns.0.layers.1", "norms.0", "norms.1"),
    ]
    boxes = [f"bbox_embed.{head}.layers.{layer}" for head in range(3) for layer in range(3)]
    classes = [f"class_embed.{head}" for head in range(3)]
    assert [name for name in names if not name.startswith("backbone")] == [
        *affine(*(f"neck.convs.{i}.{part}" for i in range(3) for part in ("conv", "norm"))),
        *affine("neck.extra_convs.0.conv", "neck.extra_convs.0.norm"),
        "transformer.level_embeds",
        *(f"transformer.encoder.layers.{i}.{name}" for i in range(2) for name in encoder_layer),
        *(f"transformer.decoder.layers.{i}.{name}" for i in range(2) for name in decoder_layer),
        *affine(*(f"transformer.decoder.{name}" for name in [*boxes, *classes])),
        *affine("transformer.enc_output", "transformer.enc_output_norm"),
        *affine("transformer.pos_trans", "transformer.pos_trans_norm"),
        *affine(*classes, *boxes),
    ]


def test_mmdetection_names_are_those_of_its_modules() -> None:
    model = small_detector("multi_scale", "model.decoder.num_layers=2")
    names = list(export_weights(model, to="mmdet"))

    assert names[:2] == ["level_embed", "backbone.conv1.weight"]
    assert "backbone.layer2.0.downsample.1.running_mean" in names
    encoder_layer = [
        *(f"self_attn.{name}" for name in MS_DEFORM_ATTN),
        *affine("ffn.layers.0.0", "ffn.layers.1", "norms.0", "norms.1"),
    ]
    decoder_layer = [
        *(f"self_attn.attn.{name}" for name in MULTIHEAD_ATTN),
        *(f"cross_attn.{name}" for name in MS_DEFORM_ATTN),
        *affine("ffn.layers.0.0", "ffn.layers.1", "norms.0", "norms.1", "norms.2"),
    ]
    levels = [*(f"neck.convs.{level}" for level in range(3)), "neck.extra_convs.0"]
    assert [name for name in names[1:] if not name.startswith("backbone")] == [
        *(f"{level}.{n}" for level in levels for n in ("conv.weight", "gn.weight", "gn.bias")),
        *affine(*(f"bbox_head.cls_branches.{layer}" for layer in range(2))),
        *affine(*(f"bbox_head.reg_branches.{i}.{j}" for i in range(2) for j in (0, 2, 4))),
        *(f"encoder.layers.{i}.{name}" for i in range(2) for name in encoder_layer),
        *(f"decoder.layers.{i}.{name}" for i in range(2) for name in decoder_layer),
        "query_embedding.weight",
        *affine("reference_points_fc"),
    ]


def test_mmdetection_two_stage_names_are_those_of_its_modules() -> None:
    names = list(export_weights(small_detector("two_stage"), to="mmdet"))

    parts = ("memory_trans_fc", "memory_trans_norm", "pos_trans_fc", "pos_trans_norm")
    assert names[-8:] == affine(*parts)
    assert "bbox_head.cls_branches.3.weight" in names  # of the proposals, after three layers
    assert "query_embedding.weight" not in names


def test_biases_before_a_norm_are_omitted_for_mmdetection_only_if_zero() -> None:
    model = small_detector("multi_scale")
    assert "neck.convs.0.conv.bias" not in export_weights(model, to="mmdet")

    with torch.no_grad():
        model.neck.projections[1].bias[0] = 1.0

    biases = [name for name in export_weights(model, to="mmdet") if name.endswith("conv.bias")]
    assert len(biases) == 4
