import pytest
import torch
from helpers.models import VARIANTS, make_target, randomize_weights, small_detector

from deformable_detr.builders import build_criterion, build_model
from deformable_detr.config import LossConfig, RunConfig
from deformable_detr.config.loading import load_config

COUNTS = {
    "single_scale": 34_066_593,
    "single_scale_dc5": 34_066_593,
    "multi_scale": 40_069_665,
    "refine": 40_849_660,
    "two_stage": 41_181_529,
}
IMAGES = {"different": ((96, 128), (120, 100)), "equal": ((96, 128), (96, 128))}


def full_detector(variant):
    config = load_config(VARIANTS[variant])
    return build_model(config, num_classes=91, load_backbone_weights=False)


def random_images(kind="different"):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(3, *size, generator=generator) for size in IMAGES[kind]]


@pytest.mark.parametrize("variant", COUNTS)
def test_the_number_of_parameters_is_the_official_one(variant):
    detector = full_detector(variant)
    parameters = list(detector.parameters())
    assert sum(p.numel() for p in parameters) == COUNTS[variant]
    assert sum(p.numel() for p in parameters if not p.requires_grad) == 222_400


def test_roles_have_the_sizes_of_the_official_groups():
    detector = full_detector("multi_scale")
    roles = detector.parameter_roles()
    assert roles.keys() == dict(detector.named_parameters()).keys()
    counts = {"default": [0, 0], "backbone": [0, 0], "sampling": [0, 0]}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            counts[roles[name]][0] += parameter.numel()
            counts[roles[name]][1] += 1
    assert counts["default"] == [15_824_735, 230]
    assert counts["backbone"] == [23_232_512, 42]
    assert counts["sampling"] == [790_018, 26]


TARGETS = {
    "objects": lambda: [make_target(1, 0, 3), make_target(2, seed=1)],
    "one_empty": lambda: [make_target(1, 0, 3), make_target()],
    "all_empty": lambda: [make_target(), make_target()],
}


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("auxiliary", [True, False])
def test_every_trainable_parameter_gets_a_gradient(variant, targets, auxiliary):
    detector = small_detector(variant).train()
    criterion = build_criterion(RunConfig(loss=LossConfig(auxiliary=auxiliary)))
    wanted = TARGETS[targets]()
    num_boxes = max(1, sum(len(target) for target in wanted))
    losses = criterion(detector(random_images()), wanted, num_boxes).losses
    assert all(value.isfinite() for value in losses.values())
    losses["total"].backward()
    without = [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.requires_grad)


@pytest.mark.parametrize("auxiliary", [True, False])
def test_all_parts_of_proposals_and_queries_get_gradients(auxiliary):
    detector = small_detector("two_stage")
    randomize_weights(detector)
    criterion = build_criterion(RunConfig(loss=LossConfig(auxiliary=auxiliary)))
    criterion(detector(random_images()), TARGETS["objects"]()).losses["total"].backward()
    parts = ("memory_proj", "memory_norm", "class_head", "box_head", "query_proj", "query_norm")
    for (
        part
    ) in parts:  # officially enc_output, enc_output_norm, the last heads, pos_trans, its norm
        for name, parameter in getattr(detector.queries, part).named_parameters():
            assert (parameter.grad != 0).any(), f"{part}.{name}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_stage_and_two_stage_outputs_have_their_shapes(variant):
    detector = small_detector(variant).eval()
    output = detector(random_images())
    assert len(output.auxiliary) == 2
    for predictions in (output.last, *output.auxiliary):
        assert predictions.logits.shape == (2, 10, 5)
        assert predictions.boxes.shape == (2, 10, 4)
    assert (output.encoder is not None) == (variant == "two_stage")


def test_a_tiny_image_gives_a_two_stage_model_fewer_queries():
    detector = small_detector("two_stage", "model.queries.num_queries=300").eval()
    output = detector([torch.randn(3, 64, 64)])
    tokens = 8 * 8 + 4 * 4 + 2 * 2 + 1
    assert output.encoder.logits.shape == (1, tokens, 5)
    assert output.last.logits.shape == (1, tokens, 5)


def test_two_stage_boxes_start_with_the_golden_size():
    detector = small_detector(
        "two_stage",
        "model.backbone.out_strides=[8]",
        "model.neck.num_levels=1",
        "model.queries.num_queries=4",
    ).eval()
    sizes = detector(random_images("equal")).last.boxes[..., 2:]
    torch.testing.assert_close(sizes, torch.full((2, 4, 2), 0.05), rtol=0, atol=1e-5)


def test_two_levels_work():
    detector = small_detector(
        "multi_scale", "model.backbone.out_strides=[16, 32]", "model.neck.num_levels=2"
    ).eval()
    assert detector(random_images()).last.boxes.isfinite().all()


def test_two_stage_works_at_any_width():
    detector = small_detector("two_stage", "model.embed_dim=128").eval()
    assert detector(random_images()).last.boxes.isfinite().all()


def test_eval_mode_is_deterministic_and_training_has_dropout():
    detector = small_detector("refine")
    images = random_images()
    detector.eval()
    assert torch.equal(detector(images).last.boxes, detector(images).last.boxes)
    detector.train()
    assert not torch.equal(detector(images).last.logits, detector(images).last.logits)


def test_images_must_be_rgb():
    with pytest.raises(ValueError, match=r"images\[1\] must have shape \(3, height, width\)"):
        small_detector("refine")([torch.randn(3, 64, 64), torch.randn(1, 64, 64)])
