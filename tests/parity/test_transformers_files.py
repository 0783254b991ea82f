"""Model folders of transformers: ours read by transformers, and theirs read by this package."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.foreign_files import small_config, small_model, write_foreign
from helpers.transformers_oracle import oracle_output, randomize
from PIL import Image
from transformers import (
    AutoImageProcessor,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DeformableDetrImageProcessor,
    DeformableDetrImageProcessorPil,
)

from deformable_detr import Detector
from deformable_detr.pixels.normalization import IMAGENET_STD
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


@pytest.mark.parametrize(
    ("processor", "levels"),
    [(DeformableDetrImageProcessorPil, 0.001), (AutoImageProcessor, 1.001)],
    ids=["pillow", "automatic"],
)
@pytest.mark.parametrize("size", [(640, 480), (150, 200), (777, 321)])
def test_image_processors_compute_the_same_pixels(
    tmp_path: Path, processor: type[AutoImageProcessor], levels: float, size: tuple[int, int]
) -> None:
    """The default processor resizes with PyTorch, which rounds some values to the next level."""
    overrides = ("data.eval_size=321", "data.eval_max_size=777")
    folder = write_foreign(tmp_path, "transformers", "multi_scale", *overrides)
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)

    theirs = processor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"][0]
    ours = Detector.from_checkpoint(folder, device="cpu").preprocess(image)

    assert theirs.shape == ours.shape
    assert min(ours.shape[1:]) == 321
    one_level = 1 / 255 / torch.tensor(IMAGENET_STD)[:, None, None]
    assert ((theirs - ours).abs() / one_level).max() < levels


@pytest.mark.parametrize("kind", ["deep", "mimicking", "other losses"])
def test_from_pretrained_loads_models_with_settings_it_has_no_place_for(
    tmp_path: Path, kind: str
) -> None:
    overrides = {
        "deep": (
            "model.backbone={depth: 50, dilation: true, out_strides: [8]}",
            "model.neck.num_levels=2",
        ),
        "mimicking": ("model.mimicking={max_regions: 3}",),
        "other losses": ("loss.class_cost=2.5", "loss.l1_cost=6", "loss.auxiliary=false"),
    }
    folder = write_foreign(tmp_path, "transformers", "multi_scale", *overrides[kind])

    oracle, info = DeformableDetrForObjectDetection.from_pretrained(
        folder, output_loading_info=True
    )

    assert not any(info.values())
    model, images = small_model("multi_scale", *overrides[kind]), a_batch()
    with torch.no_grad():
        expected = model(images).last
        theirs = oracle_output(oracle.eval(), images).last
    torch.testing.assert_close(theirs.logits, expected.logits, rtol=0, atol=1e-4)
    if kind == "other losses":
        config = oracle.config
        assert (config.class_cost, config.bbox_cost, config.auxiliary_loss) == (1, 6, False)


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
