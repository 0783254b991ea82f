"""Forward parity with the maintained implementation in transformers, on the same weights."""

import pytest
import torch
from helpers.models import VARIANTS
from helpers.transformers_oracle import (
    NUM_CLASSES,
    NUM_LAYERS,
    NUM_QUERIES,
    build_oracle,
    oracle_output,
    randomize,
)
from torch import Tensor
from transformers import DeformableDetrForObjectDetection

from deformable_detr import export_weights, import_weights
from deformable_detr.builders import build_model
from deformable_detr.config.loading import load_config
from deformable_detr.models.deformable_detr import DeformableDETR
from deformable_detr.structures import ImageBatch, ModelOutput

SETTINGS = {
    "single_scale": {"single_scale": True},
    "single_scale_dc5": {"single_scale": True, "dilation": True},
    "multi_scale": {},
    "refine": {"box_refinement": True},
    "two_stage": {"box_refinement": True, "two_stage": True},
}


def detector(variant: str) -> DeformableDETR:
    overrides = [
        "model.backbone.weights=none",
        f"model.encoder.num_layers={NUM_LAYERS}",
        f"model.decoder.num_layers={NUM_LAYERS}",
        f"model.queries.num_queries={NUM_QUERIES}",
    ]
    config = load_config(VARIANTS[variant], overrides)
    return build_model(config, num_classes=NUM_CLASSES).eval()


def two_images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(3, 96, 128, generator=generator),
        torch.randn(3, 120, 100, generator=generator),
    ]


def assert_same_predictions(actual: ModelOutput, expected: ModelOutput) -> None:
    assert len(actual.auxiliary) == len(expected.auxiliary) == NUM_LAYERS - 1
    pairs = [
        (actual.last, expected.last),
        *zip(actual.auxiliary, expected.auxiliary, strict=True),
        (actual.encoder, expected.encoder),
    ]
    for ours, theirs in pairs:
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-4)
            torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=0, atol=1e-5)


@pytest.fixture(scope="module", params=SETTINGS)
def pair(
    request: pytest.FixtureRequest,
) -> tuple[DeformableDetrForObjectDetection, DeformableDETR]:
    """Build their and our model of one variant, with independent random weights."""
    oracle, model = build_oracle(**SETTINGS[request.param]), detector(request.param)
    randomize(model, seed=2)
    return oracle, model


def test_their_output_equals_ours_on_our_weights_exported(
    pair: tuple[DeformableDetrForObjectDetection, DeformableDETR],
) -> None:
    oracle, model = pair
    images = two_images()
    randomize(model, seed=2)
    oracle.load_state_dict(export_weights(model, to="transformers"))

    with torch.no_grad():
        ours = model(images)

    assert_same_predictions(ours, oracle_output(oracle, ImageBatch.from_images(images)))


def test_our_output_equals_theirs_on_their_weights_imported(
    pair: tuple[DeformableDetrForObjectDetection, DeformableDETR],
) -> None:
    oracle, model = pair
    images = two_images()
    randomize(oracle, seed=3)
    import_weights(model, oracle.state_dict())

    with torch.no_grad():
        ours = model(images)

    assert (ours.encoder is not None) == oracle.config.two_stage
    assert_same_predictions(ours, oracle_output(oracle, ImageBatch.from_images(images)))


def test_their_weights_imported_and_exported_are_bitwise_the_same(
    pair: tuple[DeformableDetrForObjectDetection, DeformableDETR],
) -> None:
    oracle, model = pair
    theirs = oracle.state_dict()
    import_weights(model, theirs)

    back = export_weights(model, to="transformers")

    assert list(back) == list(theirs)
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.items())
