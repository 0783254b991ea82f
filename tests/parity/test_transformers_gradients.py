"""Gradient parity with the model of transformers, under the official losses; and a known gap.

Their model, the formulas of `helpers/official_losses.py` and autograd on one side; our model and
our criterion on the other, with the same weights and images.
"""

import pytest
import torch
import transformers
from helpers.models import VARIANTS, make_target
from helpers.official_losses import official_criterion
from helpers.transformers_oracle import (
    NUM_CLASSES,
    NUM_LAYERS,
    NUM_QUERIES,
    build_oracle,
)
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

from deformable_detr import build_criterion, build_model, import_weights, load_config
from deformable_detr.boxes import inverse_sigmoid
from deformable_detr.structures import ImageBatch

SETTINGS = {
    "single_scale": {"single_scale": True},
    "multi_scale": {},
    "refine": {"box_refinement": True},
    "two_stage": {"box_refinement": True, "two_stage": True},
}
OVERRIDES = (
    "match_official=true",
    "model.backbone.weights=none",
    f"model.encoder.num_layers={NUM_LAYERS}",
    f"model.decoder.num_layers={NUM_LAYERS}",
    "model.encoder.dropout=0",
    "model.decoder.dropout=0",
    f"model.queries.num_queries={NUM_QUERIES}",
)


def their_outputs(oracle, batch):
    """Return the predictions of all decoder layers and the encoder by the official suffixes."""
    output = oracle(pixel_values=batch.images, pixel_mask=(~batch.padding_mask).long())
    layers = []
    for index in range(NUM_LAYERS):
        reference = output.init_reference_points
        if index > 0:
            reference = output.intermediate_reference_points[:, index - 1]
        query = output.intermediate_hidden_states[:, index]
        offsets = oracle.bbox_embed[index](query)
        shift = torch.zeros_like(offsets)
        shift[..., : reference.shape[-1]] = inverse_sigmoid(reference)
        layers.append((oracle.class_embed[index](query), (offsets + shift).sigmoid()))
    outputs = {"": layers.pop()} | {f"_{index}": layer for index, layer in enumerate(layers)}
    if output.enc_outputs_class is not None:
        outputs["_enc"] = (output.enc_outputs_class, output.enc_outputs_coord_logits.sigmoid())
    return outputs


@pytest.mark.parametrize("variant", SETTINGS)
def test_gradient_norms_equal_those_of_transformers_under_the_official_losses(variant):
    oracle = build_oracle(**SETTINGS[variant])  # in eval mode: without dropout
    config = load_config(VARIANTS[variant], OVERRIDES)
    detector = build_model(config, num_classes=NUM_CLASSES)
    import_weights(detector, oracle.state_dict(), source="transformers")
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(3, *size, generator=generator) for size in ((96, 128), (120, 100))]
    targets = [make_target(1, 0, 6), make_target(3, seed=1)]

    outputs = their_outputs(oracle, ImageBatch.from_images(images))
    plain = [(target.labels.tolist(), target.boxes.tolist()) for target in targets]
    expected = official_criterion(outputs, plain)
    expected.total.backward()
    total = build_criterion(config)(detector(images), targets).losses["total"]
    total.backward()

    torch.testing.assert_close(total, expected.total, rtol=1e-4, atol=0)
    for parameter in oracle.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    by_our_names = build_model(config, num_classes=NUM_CLASSES)
    import_weights(by_our_names, oracle.state_dict(), source="transformers")
    theirs = dict(by_our_names.named_parameters())
    whole = torch.stack([theirs[n].norm() for n, _ in detector.named_parameters()]).norm()
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            atol = 1e-6 * whole.item()
            norm, wanted = parameter.grad.norm(), theirs[name].norm()
            torch.testing.assert_close(norm, wanted, rtol=1e-3, atol=atol, msg=name)


def test_transformers_still_trains_no_proposals():
    """The documentation states this about transformers 5.23; a failure means that it is fixed."""
    config = DeformableDetrConfig(
        encoder_layers=1,
        decoder_layers=2,
        d_model=256,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=10,
        two_stage_num_proposals=10,
        num_labels=3,
        two_stage=True,
        with_box_refine=True,
        auxiliary_loss=True,
    )
    model = DeformableDetrForObjectDetection(config)
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
    output = model(pixel_values=torch.randn(1, 3, 64, 64), labels=labels)
    output.loss.backward()
    without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    for part in ("enc_output.weight", "enc_output_norm.weight", "class_embed.2.weight"):
        assert any(name.endswith(part) for name in without), (
            f"transformers {transformers.__version__} now gives {part} a gradient: its two-stage "
            "training is fixed, and the documentation about it is out of date"
        )
    assert not any(name.endswith("_enc") for name in output.loss_dict)
