import math
from dataclasses import replace

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


def decoder(*, box_refinement=True, two_stage=False, num_layers=3, randomize=True, **options):
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
        **options,
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
    dino = inverse_sigmoid(torch.tensor([0.0, 1.0, 0.25, 0.0005, 0.002]), eps=1e-3)
    expected = torch.tensor([-6.907755, 6.907755, -1.098612, -6.907255, -6.212606])
    torch.testing.assert_close(dino, expected, rtol=0, atol=1e-5)
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


def position_embedding(boxes):
    """Return the embedding of (..., 4) boxes as in DINO's paper: y, x, width, height."""
    pairs = torch.arange(16) // 2 * 2  # a quarter of twice the width of `decoder`
    angles = 2 * math.pi * boxes[..., [1, 0, 2, 3], None] / 10000 ** (pairs / 16)
    return torch.where(torch.arange(16) % 2 == 0, angles.sin(), angles.cos()).flatten(-2)


def dino_predictions(built, queries, memory, *, twice, norm):
    """Run a decoder as DINO does, written down anew."""
    query, reference, start = queries.query, queries.reference_points, queries.reference_points
    eps = 1e-3 if norm else 1e-5
    boxes, classes = [], []
    for index, layer in enumerate(built.layers):
        query_pos = queries.query_pos
        if norm:
            scaled = reference * memory.valid_ratios[:, None, 0].repeat(1, 1, 2)
            first, second = built.position_head.layers
            query_pos = second(first(position_embedding(scaled)).relu())
        query = layer(query, query_pos, reference, memory)
        head = built.box_heads[index % len(built.box_heads)].mlp
        hidden = built.norm(query) if norm else query
        boxes.append((head(hidden) + inverse_sigmoid(start, eps=eps)).sigmoid())
        classes.append(built.class_heads[index % len(built.class_heads)](hidden))
        refined = (head(query) + inverse_sigmoid(reference, eps=eps)).sigmoid()
        reference = refined.detach()
        start = refined if twice else reference
    return boxes, classes


@pytest.mark.parametrize("share_heads", [False, True])
@pytest.mark.parametrize("position", ["query", "reference"])
@pytest.mark.parametrize("twice", [False, True])
def test_decoder_of_dino(twice, position, share_heads):
    built = decoder(
        two_stage=True, position=position, look_forward_twice=twice, share_heads=share_heads
    )
    assert len(built.box_heads) == len(built.class_heads) == (1 if share_heads else 3)
    queries, memory = memory_and_queries(last=4)
    references = queries.reference_points.detach().clone()
    references[0, 0] = torch.tensor([2e-4, 0.9999, 2e-5, 1.0])  # beyond either eps
    queries = replace(queries, reference_points=references)
    wanted, classes = dino_predictions(
        built, queries, memory, twice=twice, norm=position == "reference"
    )
    found = built(queries, memory)
    for number, one in enumerate(found):
        torch.testing.assert_close(one.boxes, wanted[number], rtol=0, atol=1e-6)
        torch.testing.assert_close(one.logits, classes[number], rtol=0, atol=1e-5)
    weights = torch.arange(1.0, 5.0)
    losses = [
        sum((one.square() * weights).sum() for one in side)
        for side in ([one.boxes for one in found], wanted)
    ]
    parameters = [p for p in built.parameters() if p is not None]
    for own, theirs in zip(
        *(torch.autograd.grad(loss, parameters, allow_unused=True) for loss in losses), strict=True
    ):
        if theirs is None:
            assert own is None
        else:
            torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", ["query", "reference"])
def test_looking_forward_twice_trains_the_box_head_of_the_layer_before_only(position):
    queries, memory = memory_and_queries(last=4)
    for twice, trained in ((True, [False, True, True]), (False, [False, False, True])):
        built = decoder(two_stage=True, position=position, look_forward_twice=twice)
        last = built(queries, memory)[-1].boxes.square().sum()
        for head, is_trained in zip(built.box_heads, trained, strict=True):
            gradients = torch.autograd.grad(
                last, list(head.parameters()), allow_unused=True, retain_graph=True
            )
            assert all((one is not None and one.any()) == is_trained for one in gradients)


def test_positions_follow_the_padding():
    """DINO scales references by the valid ratio of the finest level, so that padding matters."""
    built = decoder(two_stage=True, position="reference")
    queries, memory = memory_and_queries(last=4)
    seen = []
    built.layers[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    for ratios in (memory.valid_ratios, torch.ones_like(memory.valid_ratios)):
        built(queries, replace(memory, valid_ratios=ratios))
    assert not torch.allclose(*seen)


def test_a_query_does_not_attend_where_the_mask_is_true():
    built = decoder(two_stage=True)
    queries, memory = memory_and_queries(last=4)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1:, 0] = True  # the others do not see the first
    changed = queries.query.clone()
    changed[:, 0] += 1
    boxes = [
        built(replace(queries, query=query, attention_mask=mask), memory)[-1].boxes
        for query in (queries.query, changed)
    ]
    assert torch.equal(boxes[0][:, 1:], boxes[1][:, 1:])
    assert not torch.equal(boxes[0][:, 0], boxes[1][:, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box_refinement": False, "look_forward_twice": True}, "must be true for look_forward"),
        ({"position": "reference"}, "two_stage must be true for position='reference', got false"),
    ],
)
def test_combinations_that_mean_nothing_raise(options, message):
    with pytest.raises(ValueError, match=message):
        decoder(**options)


def test_two_stage_without_refinement_raises():
    with pytest.raises(ValueError, match="box_refinement must be true for two-stage queries"):
        decoder(box_refinement=False, two_stage=True)


def test_center_offsets_may_be_in_units_of_the_reference():
    torch.manual_seed(0)
    offsets = torch.randn(2, 3, 4, dtype=torch.float64) * 0.01
    references = 0.5 + 0.05 * torch.rand(2, 3, 4, dtype=torch.float64)
    references[..., 2:] *= torch.tensor([0.1, 1.0])
    boxes = boxes_from_offsets(offsets, references, center_offset="box")
    plain = boxes_from_offsets(offsets, references)
    assert boxes[..., 2:].equal(plain[..., 2:])
    moved = boxes[..., :2] - references[..., :2]
    # As in R-CNN near the center of the image, for all sizes; 1 % for the curve of the sigmoid.
    torch.testing.assert_close(moved, offsets[..., :2] * references[..., 2:], rtol=0.02, atol=1e-6)
    with pytest.raises(ValueError, match="two_stage must be true for center_offset='box'"):
        decoder(center_offset="box")


def test_all_layers_have_the_same_unit_of_center_offsets():
    queries, memory = memory_and_queries(last=4)
    model = decoder(two_stage=True, center_offset="box")
    found = model(queries, memory)
    references = queries.reference_points
    for layer, head in zip(found, model.box_heads, strict=True):
        offsets = head(layer.hidden)
        scale = torch.cat((4 * references[..., 2:], torch.ones(1, 4, 2)), -1)
        expected = (inverse_sigmoid(references) + scale * offsets).sigmoid()
        torch.testing.assert_close(layer.boxes, expected)
        references = layer.boxes.detach()
