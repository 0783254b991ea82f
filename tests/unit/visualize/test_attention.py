import pytest
import torch
from helpers.fusion import halved_sizes, random_maps, randomize
from helpers.models import resnet, small_detector
from torch import Tensor, nn

from deformable_detr.layers.attention import MSDeformAttn
from deformable_detr.models.deformable_detr import DeformableDETR
from deformable_detr.models.necks.asff import ASFF
from deformable_detr.models.necks.level_fusion import LevelFusion
from deformable_detr.ops import ms_deform_attn
from deformable_detr.structures import ModelOutput, Predictions
from deformable_detr.visualize.attention import (
    AttentionCall,
    attention_of_best,
    image_share,
    record_attention,
    record_outputs,
)

ENCODER = [f"encoder.layers.{index}.self_attn" for index in range(2)]
DECODER = [f"decoder.layers.{index}.cross_attn" for index in range(3)]


def _detector(variant: str) -> DeformableDETR:
    model = small_detector(variant).eval()
    randomize(model)
    return model


def _tensors(output: ModelOutput) -> list[Tensor]:
    predictions = [output.last, *output.auxiliary, *filter(None, [output.encoder])]
    return [tensor for each in predictions for tensor in (each.logits, each.boxes)]


def _hooked(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize(
    ("variant", "grad"), [("multi_scale", True), ("refine", False), ("two_stage", False)]
)
def test_recording_keeps_the_output_bitwise_identical(variant: str, grad: bool) -> None:
    model = _detector(variant)
    images = [torch.randn(3, 50, 64), torch.randn(3, 64, 40)]

    with torch.set_grad_enabled(grad):
        before = _tensors(model(images))
        with record_attention(model) as calls:
            recorded = _tensors(model(images))

    assert all(torch.equal(a, b) for a, b in zip(before, recorded, strict=True))
    assert [call.module for call in calls] == ENCODER + DECODER
    assert _hooked(model) == []


@pytest.mark.parametrize("reference_dim", [2, 4])
def test_recorded_points_and_weights_reproduce_the_output(reference_dim: int) -> None:
    attention = MSDeformAttn(32, num_heads=4, num_levels=2, num_points=3)
    randomize(attention)
    shapes = ((6, 8), (3, 4))
    query, value = torch.randn(2, 5, 32), torch.randn(2, 60, 32)
    references = torch.rand(2, 5, 2, reference_dim)
    padding_mask = torch.rand(2, 60) < 0.2

    with record_attention(attention) as calls:
        output = attention(
            query,
            reference_points=references,
            value=value,
            level_shapes=shapes,
            padding_mask=padding_mask,
        )

    (call,) = calls
    projected = attention.value_proj(value).masked_fill(padding_mask[..., None], 0.0)
    sampled = ms_deform_attn(
        projected.view(2, 60, 4, 8),
        shapes,
        call.sampling_locations,
        call.attention_weights,
        backend="reference",
    )
    assert torch.allclose(attention.output_proj(sampled), output, atol=1e-5)
    assert torch.allclose(call.attention_weights.sum((-2, -1)), torch.ones(2, 5, 4))
    assert torch.equal(call.reference_points, references)
    assert call.level_shapes == shapes
    assert not call.sampling_locations.requires_grad


def test_hooks_are_removed_after_an_error() -> None:
    model = _detector("multi_scale")

    with pytest.raises(ValueError, match="images"), record_attention(model):
        model([torch.randn(1, 64, 64)])

    assert _hooked(model) == []


def test_outputs_of_a_module_class_are_recorded_by_name() -> None:
    fusion = ASFF(32, 3, init="uniform")
    maps = random_maps((32,) * 3, halved_sizes(16, 24, 3))

    with record_outputs(fusion, LevelFusion) as calls:
        outputs = fusion(maps)
    fusion(maps)

    assert [name for name, _ in calls] == ["levels.0", "levels.1", "levels.2"]
    assert all(torch.equal(o, level.output) for o, (_, level) in zip(outputs, calls, strict=True))
    assert _hooked(fusion) == []


def _predictions(scores: list[list[float]]) -> Predictions:
    return Predictions(torch.tensor([scores]).logit(), torch.rand(1, len(scores), 4))


def _call(Q: int, N: int = 1) -> AttentionCall:
    return AttentionCall(
        module="decoder.layers.0.cross_attn",
        reference_points=torch.rand(N, Q, 1, 4).expand(-1, -1, 2, -1),
        sampling_locations=torch.rand(N, Q, 4, 2, 3, 2),
        attention_weights=torch.rand(N, Q, 4, 2, 3),
        level_shapes=((6, 8), (3, 4)),
    )


def test_best_queries_come_first_and_only_once() -> None:
    predictions = _predictions([[0.2, 0.1], [0.8, 0.9], [0.3, 0.5]])
    call = _call(3)

    attentions = attention_of_best(predictions, call, 2)

    assert [(one.label, round(one.score, 5)) for one in attentions] == [(1, 0.9), (1, 0.5)]
    for attention, query in zip(attentions, (1, 2), strict=True):
        assert torch.equal(attention.box_cxcywh, predictions.boxes[0, query])
        assert torch.equal(attention.reference_point, call.reference_points[0, query, 0, :2])
        assert torch.equal(attention.points, call.sampling_locations[0, query])
        assert torch.equal(attention.weights, call.attention_weights[0, query])


def test_points_are_relative_to_the_image_without_its_padding() -> None:
    predictions, call = _predictions([[0.2], [0.8]]), _call(2)
    (attention,) = attention_of_best(predictions, call, 1, share=(0.5, 0.8))
    share = torch.tensor((0.5, 0.8))
    assert torch.equal(attention.reference_point * share, call.reference_points[0, 1, 0, :2])
    torch.testing.assert_close(attention.points * share, call.sampling_locations[0, 1])
    assert torch.equal(attention.box_cxcywh, predictions.boxes[0, 1])


def test_share_of_an_image_is_that_of_the_padded_input() -> None:
    backbone = resnet(18)
    model = nn.ModuleDict({"backbone": backbone})
    assert image_share(model, (30, 33)) == (1.0, 1.0)
    backbone.multiple = 32
    assert image_share(model, (30, 33)) == (33 / 64, 30 / 32)


def test_number_of_attentions_is_at_most_the_number_of_queries() -> None:
    assert len(attention_of_best(_predictions([[0.2], [0.8]]), _call(2), 9)) == 2


@pytest.mark.parametrize(("Q", "N"), [(4, 1), (3, 2)])
def test_call_of_other_queries_is_rejected(Q: int, N: int) -> None:
    predictions = _predictions([[0.2], [0.8], [0.5]])

    with pytest.raises(ValueError, match="predictions and call must be of one image"):
        attention_of_best(predictions, _call(Q, N), 1)
