"""Model folders of transformers: ours read by transformers, and theirs read by this package."""

from pathlib import Path

import pytest
import torch
from helpers.foreign_files import small_config, small_model, write_foreign
from helpers.transformers_oracle import oracle_output, randomize
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DeformableDetrImageProcessor,
)

from deformable_detr import Detector
from deformable_detr.structures import ImageBatch, ModelOutput

VARIANTS = ["single_scale_dc5", "multi_scale", "refine", "two_stage"]


def a_batch() -> ImageBatch:
    generator = torch.Generator().manual_seed(1)
    return ImageBatch.from_images(
        [
            torch.randn(3, 96, 128, generator=generator),
            torch.randn(3, 120, 100, generator=generator),
        ]
    )


def assert_same_predictions(ours: ModelOutput, theirs: ModelOutput) -> None:
    assert len(ours.auxiliary) == len(theirs.auxiliary) > 0
    for mine, other in zip(
        (ours.last, *ours.auxiliary), (theirs.last, *theirs.auxiliary), strict=True
    ):
        torch.testing.assert_close(mine.logits, other.logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(mine.boxes, other.boxes, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_from_pretrained_loads_our_folder_with_the_same_predictions(
    tmp_path: Path, variant: str
) -> None:
    folder = write_foreign(tmp_path, "transformers", variant)

    oracle, info = DeformableDetrForObjectDetection.from_pretrained(
        folder, output_loading_info=True
    )

    assert not any(info.values())  # nothing missing, unexpected or of another shape
    model, images = small_model(variant), a_batch()
    with torch.no_grad():
        assert_same_predictions(model(images), oracle_output(oracle.eval(), images))
    config = small_config(variant).model
    assert oracle.config.id2label[0] == "person"
    assert oracle.config.dilation == (variant == "single_scale_dc5")
    assert oracle.config.encoder_n_points == config.encoder.num_points
    assert oracle.config.auxiliary_loss
    processor = DeformableDetrImageProcessor.from_pretrained(folder)
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (800, 1333)


@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_a_folder_from_save_pretrained_becomes_a_detector(tmp_path: Path, variant: str) -> None:
    """Their model shares one class head between layers with refinement but a single stage."""
    config = DeformableDetrConfig(
        encoder_layers=2,
        decoder_layers=2,
        d_model=64,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_labels=7,
        num_queries=5,
        two_stage_num_proposals=6,
        with_box_refine=variant in ("refine", "two_stage"),
        two_stage=variant == "two_stage",
        use_timm_backbone=True,
        backbone="resnet18",
    )
    oracle = DeformableDetrForObjectDetection(config).eval()
    randomize(oracle)
    oracle.save_pretrained(tmp_path)

    detector = Detector.from_checkpoint(tmp_path, device="cpu")

    images = a_batch()
    with torch.no_grad():
        assert_same_predictions(detector.model(images), oracle_output(oracle, images))
    assert detector.label_space.names[3] == "LABEL_3"
