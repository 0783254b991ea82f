"""The official table agrees with independently recorded names and shapes."""

import functools

import pytest
import torch
from helpers.models import VARIANTS
from helpers.official_weights import (
    NUM_KEYS,
    OFFICIAL_VARIANTS,
    REDUCED,
    REDUCED_OVERRIDES,
    OfficialModel,
    official_shapes,
    official_state_dict,
)
from torch import Tensor

from deformable_detr import export_weights, import_weights
from deformable_detr.builders import build_model
from deformable_detr.config.loading import load_config
from deformable_detr.models.deformable_detr import DeformableDETR


@functools.cache
def reduced_weights(variant: str) -> dict[str, Tensor]:
    return official_state_dict(OfficialModel(**OFFICIAL_VARIANTS[variant], **REDUCED))


@functools.cache
def reduced_detector(variant: str, num_classes: int = 91) -> DeformableDETR:
    config = load_config(VARIANTS[variant], REDUCED_OVERRIDES)
    return build_model(config, num_classes=num_classes)


@pytest.mark.parametrize("variant", OFFICIAL_VARIANTS)
def test_exported_names_shapes_and_order_are_the_official_ones(variant: str) -> None:
    config = load_config(VARIANTS[variant], ["model.backbone.weights=none"])
    with torch.device("meta"):
        model = build_model(config, num_classes=91)

    exported = export_weights(model, to="official")

    expected = official_shapes(OfficialModel(**OFFICIAL_VARIANTS[variant]))
    assert len(expected) == NUM_KEYS[variant]
    assert [(name, tuple(t.shape)) for name, t in exported.items()] == list(expected.items())


@pytest.mark.parametrize("variant", OFFICIAL_VARIANTS)
def test_official_weights_imported_and_exported_are_bitwise_equal(variant: str) -> None:
    official = reduced_weights(variant)
    model = reduced_detector(variant)

    report = import_weights(model, official)
    back = export_weights(model, to="official")

    assert report.source == "official"
    assert report.num_loaded == len(official)
    assert list(back) == list(official)
    assert all(torch.equal(back[name], tensor) for name, tensor in official.items())


def test_norms_of_decoder_layers_are_mapped_by_execution_order() -> None:
    official = reduced_weights("multi_scale")
    model = reduced_detector("multi_scale")

    import_weights(model, official)

    ours = model.decoder.layers[1]
    prefix = "transformer.decoder.layers.1"
    for norm, theirs in ((ours.norm1, "norm2"), (ours.norm2, "norm1"), (ours.norm3, "norm3")):
        assert torch.equal(norm.weight, official[f"{prefix}.{theirs}.weight"])


def test_80_classes_are_rows_by_category_id_in_both_directions() -> None:
    variant = "two_stage"
    official = reduced_weights(variant)
    model = reduced_detector(variant, num_classes=80)

    report = import_weights(model, official)
    back = export_weights(model, to="official")

    assert report.class_rows == "80 of 91 rows, those with a category"
    # person is 1; 12 is not a category, so stop sign, 13, is the twelfth; toothbrush is 90
    head = model.decoder.class_heads[1]
    for label, category_id in ((0, 1), (11, 13), (79, 90)):
        assert torch.equal(head.bias[label], official["class_embed.1.bias"][category_id])
    gaps = [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    used = [row for row in range(91) if row not in gaps]
    for name, tensor in official.items():
        if "class_embed.2" in name:  # of the proposals: by position
            assert torch.equal(back[name][:80], tensor[:80])
        elif "class_embed" in name:
            assert torch.equal(back[name][used], tensor[used])
            unused = torch.full_like(tensor[gaps], -4.59511985 if "bias" in name else 0.0)
            torch.testing.assert_close(back[name][gaps], unused)
        else:
            assert torch.equal(back[name], tensor)


def test_proposals_keep_the_row_that_separates_objects_from_background() -> None:
    variant = "two_stage"
    official = reduced_weights(variant)
    model = reduced_detector(variant, num_classes=80)

    import_weights(model, official)

    assert torch.equal(model.queries.class_head.weight[0], official["class_embed.2.weight"][0])
