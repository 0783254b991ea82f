import pytest
import torch
from helpers.golden import golden_memory

from deformable_detr.boxes import inverse_sigmoid
from deformable_detr.models.decoder import (
    DeformableTransformerDecoder,
    DeformableTransformerDecoderLayer,
    references_in_levels,
)
from deformable_detr.models.heads import boxes_from_offsets
from deformable_detr.structures import Memory, Queries


def decoder(*, box_refinement=True, two_stage=False, num_layers=3, randomize=True):
    layers = [
        DeformableTransformerDecoderLayer(
            embed_dim=32, num_heads=4, num_levels=2, num_points=2, ffn_dim=48, dropout=0.0
        )
        for _ in range(num_layers)
    ]
    built = DeformableTransformerDecoder(
        layers,
        num_classes=3,
        embed_dim=32,
        box_refinement=box_refinement,
        two_stage=two_stage,
    )
    if randomize:
        for parameter in built.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return built


def memory_and_queries(*, last=2):
    generator = torch.Generator().manual_seed(0)
    small = golden_memory()
    memory = Memory(
        tokens=torch.randn(1, 8, 32, generator=generator),
        positions=torch.zeros(1, 8, 32),
        padding_mask=small.padding_mask,
        level_shapes=small.level_shapes,
        valid_ratios=small.valid_ratios,
    )
    query, query_pos = torch.randn(2, 1, 4, 32, generator=generator)
    references = 0.2 + 0.6 * torch.rand(1, 4, last, generator=generator)
    return Queries(query, query_pos, references.requires_grad_()), memory


def test_references_are_scaled_to_each_padded_level():
    valid_ratios = torch.tensor([[[0.5, 1.0], [0.25, 0.75]]])
    points = torch.tensor([[[0.4, 0.8]]])
    expected = torch.tensor([[[[0.2, 0.8], [0.1, 0.6]]]])
    torch.testing.assert_close(references_in_levels(points, valid_ratios), expected)
    boxes = torch.tensor([[[0.4, 0.8, 0.2, 0.4]]])
    expected = torch.tensor([[[[0.2, 0.8, 0.1, 0.4], [0.1, 0.6, 0.05, 0.3]]]])
    torch.testing.assert_close(references_in_levels(boxes, valid_ratios), expected)


def test_boxes_are_offsets_from_points_or_boxes_in_logit_space():
    offsets = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]])
    from_points = boxes_from_offsets(offsets, torch.full((1, 1, 2), 0.25))
    expected = (torch.tensor([-1.0986123, -1.0986123, 0, 0]) + offsets).sigmoid()
    torch.testing.assert_close(from_points, expected)
    from_boxes = boxes_from_offsets(offsets, torch.full((1, 1, 4), 0.25))
    torch.testing.assert_close(from_boxes, (offsets - 1.0986123).sigmoid())


def test_inverse_sigmoid_golden_values():
    actual = inverse_sigmoid(torch.tensor([0.0, 1.0, 0.25, -3.0, 7.0]))
    expected = torch.tensor([-11.5129251, 11.5129251, -1.0986123, -11.5129251, 11.5129251])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_refined_boxes_do_not_train_earlier_layers():
    built = decoder()
    queries, memory = memory_and_queries()
    predictions = built(queries, memory)
    for later in (1, 2):
        gradients = torch.autograd.grad(
            predictions[later].boxes.sum(),
            list(built.box_heads[0].parameters()),
            allow_unused=True,
            retain_graph=True,
        )
        assert all(gradient is None for gradient in gradients)


def test_first_layer_boxes_train_the_reference_points():
    queries, memory = memory_and_queries()
    predictions = decoder()(queries, memory)
    (gradient,) = torch.autograd.grad(predictions[0].boxes.sum(), queries.reference_points)
    assert (gradient != 0).all()


def test_refinement_moves_the_reference_of_the_next_layer():
    queries, memory = memory_and_queries()
    built = decoder()
    seen = []
    for layer in built.layers:
        layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[2]))
    predictions = built(queries, memory)
    torch.testing.assert_close(seen[0], queries.reference_points)
    torch.testing.assert_close(seen[1], predictions[0].boxes.detach())
    torch.testing.assert_close(seen[2], predictions[1].boxes.detach())


def test_without_refinement_references_are_fixed_and_layers_share_heads():
    queries, memory = memory_and_queries()
    built = decoder(box_refinement=False)
    assert len(built.class_heads) == len(built.box_heads) == 1
    seen = []
    for layer in built.layers:
        layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[2]))
    built(queries, memory)
    assert all(reference is queries.reference_points for reference in seen)


def test_boxes_start_with_the_golden_size():
    queries, memory = memory_and_queries()
    boxes = decoder(randomize=False)(queries, memory)[0].boxes
    torch.testing.assert_close(boxes[..., 2:].mean().item(), 0.1192023, rtol=0, atol=1e-5)


def test_heads_of_all_layers_start_equal():
    built = decoder(randomize=False)
    first = built.class_heads[0].weight
    assert all(torch.equal(head.weight, first) for head in built.class_heads)
    assert built.class_heads[1].weight is not first


def test_two_stage_without_refinement_raises():
    with pytest.raises(ValueError, match="box_refinement must be true for two-stage queries"):
        decoder(box_refinement=False, two_stage=True)
