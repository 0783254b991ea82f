"""Forward parity with the maintained implementation in transformers, on the same weights."""

import pytest
import torch
from helpers.models import VARIANTS
from helpers.transformers_oracle import (
    NUM_CLASSES,
    NUM_LAYERS,
    NUM_QUERIES,
    build_oracle,
    our_state_dict,
)

from deformable_detr.boxes import inverse_sigmoid
from deformable_detr.build import build_model
from deformable_detr.config_io import load_config
from deformable_detr.structures import ImageBatch, Predictions

SETTINGS = {
    "single_scale": {"single_scale": True},
    "multi_scale": {},
    "refine": {"box_refinement": True},
    "two_stage": {"box_refinement": True, "two_stage": True},
}


def oracle_layers(oracle, output) -> list[Predictions]:
    """Predictions of each decoder layer, from their intermediate states."""
    layers = []
    for index in range(NUM_LAYERS):
        reference = output.init_reference_points
        if index > 0:
            reference = output.intermediate_reference_points[:, index - 1]
        query = output.intermediate_hidden_states[:, index]
        offsets = oracle.bbox_embed[index](query)
        offsets[..., : reference.shape[-1]] += inverse_sigmoid(reference)
        layers.append(Predictions(oracle.class_embed[index](query), offsets.sigmoid()))
    return layers


@pytest.mark.parametrize("variant", SETTINGS)
def test_outputs_equal_transformers_on_the_same_randomised_weights(variant):
    oracle = build_oracle(**SETTINGS[variant])
    overrides = [
        "model.backbone.weights=none",
        f"model.encoder.num_layers={NUM_LAYERS}",
        f"model.decoder.num_layers={NUM_LAYERS}",
        f"model.queries.num_queries={NUM_QUERIES}",
    ]
    config = load_config(VARIANTS[variant], overrides)
    detector = build_model(config, num_classes=NUM_CLASSES).eval()
    detector.load_state_dict(our_state_dict(oracle))
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.randn(3, 96, 128, generator=generator),
        torch.randn(3, 120, 100, generator=generator),
    ]
    batch = ImageBatch.from_images(images)

    with torch.no_grad():
        ours = detector(images)
        theirs = oracle(pixel_values=batch.images, pixel_mask=(~batch.padding_mask).long())
        expected = oracle_layers(oracle, theirs)

    torch.testing.assert_close(theirs.logits, expected[-1].logits)
    for actual, wanted in zip([*ours.auxiliary, ours.last], expected, strict=True):
        torch.testing.assert_close(actual.logits, wanted.logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(actual.boxes, wanted.boxes, rtol=0, atol=1e-5)
    if ours.encoder is not None:
        boxes = theirs.enc_outputs_coord_logits.sigmoid()
        torch.testing.assert_close(ours.encoder.logits, theirs.enc_outputs_class, rtol=0, atol=1e-4)
        torch.testing.assert_close(ours.encoder.boxes, boxes, rtol=0, atol=1e-5)
