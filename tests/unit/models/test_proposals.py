import math

import pytest
import torch
from helpers.golden import golden_memory

from deformable_detr.layers.position import box_embedding
from deformable_detr.models.proposals import ProposalQueries, proposal_logits
from deformable_detr.structures import Memory

FULL_LEVELS = ((100, 134), (50, 67), (25, 34), (13, 17))


def plain_memory(level_shapes, *, width=32):
    S = sum(height * width for height, width in level_shapes)
    return Memory(
        tokens=torch.randn(2, S, width),
        positions=torch.zeros(2, S, width),
        padding_mask=torch.zeros(2, S, dtype=torch.bool),
        level_shapes=level_shapes,
        valid_ratios=torch.ones(2, len(level_shapes), 2),
    )


def start_of(memory):
    masks = (memory.valid_ratios, memory.padding_mask)
    return proposal_logits(memory.level_shapes, *masks, base_size=0.05)


def test_golden_start_boxes():
    logits, is_valid = start_of(golden_memory())
    first = torch.tensor([-1.0986123, -1.0986123, -2.9444389, -2.9444389])
    seventh = torch.tensor([0.0, 0.0, -2.1972246, -2.1972246])
    torch.testing.assert_close(logits[0, 0], first, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits[0, 6], seventh, rtol=0, atol=1e-5)
    assert (logits[0, [2, 5, 7]] == math.inf).all()
    assert is_valid[0].tolist() == [True, True, False, True, True, False, True, False]


def test_start_boxes_double_from_the_base_size():
    memory = plain_memory(((6, 8), (3, 4)))
    logits, is_valid = proposal_logits(
        memory.level_shapes, memory.valid_ratios, memory.padding_mask, base_size=0.1
    )
    sizes = logits.sigmoid()[0, :, 2:]
    assert is_valid.all()
    torch.testing.assert_close(sizes[:48], torch.full((48, 2), 0.1))
    torch.testing.assert_close(sizes[48:], torch.full((12, 2), 0.2))


def test_tokens_near_the_border_are_not_valid():
    _, is_valid = start_of(plain_memory(FULL_LEVELS))
    sizes = [height * width for height, width in FULL_LEVELS]
    counts = [part.sum().item() for part in is_valid[0].split(sizes)]
    assert counts == [12936, 3120, 850, 221]


def test_a_sixth_level_is_too_coarse_to_propose():
    _, is_valid = start_of(plain_memory(((4, 4),) * 6))
    assert is_valid[0, 64:80].all()
    assert not is_valid[0, 80:].any()


def test_golden_box_embedding():
    embedding = box_embedding(torch.tensor([0.0, 1.0, -1.0, 2.0]).sigmoid(), 512)
    channels = [0, 1, 2, 128, 129, 256, 257, 384, 385]
    golden = [-1e-7, -1, 0.4087512, -0.9929264, -0.1187316, 0.9929264, -0.1187318, -0.6808878]
    expected = torch.tensor([*golden, 0.7323877])
    torch.testing.assert_close(embedding[channels], expected, rtol=0, atol=1e-5)
    narrow = box_embedding(torch.tensor([[0.25, 0.5, 0.75, 1.0]]), 32)
    assert torch.equal(narrow[0, :8], box_embedding(torch.full((4,), 0.25), 32)[8:16])


def test_the_best_tokens_of_class_0_become_queries():
    memory = plain_memory(((6, 8), (3, 4)))
    part = ProposalQueries(5, num_classes=3, embed_dim=32, base_size=0.05)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    queries, proposals = part(memory)
    best = proposals.logits[..., 0].topk(5).indices
    expected = proposals.boxes.gather(1, best[..., None].expand(-1, -1, 4))
    torch.testing.assert_close(queries.reference_points, expected)
    assert proposals.boxes.shape == (2, 60, 4)


def randomized(**options):
    part = ProposalQueries(5, num_classes=3, embed_dim=32, base_size=0.05, **options)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return part


def test_ranked_by_class_the_chosen_tokens_are_supervised_with_gradient():
    memory = plain_memory(((6, 8), (3, 4)))
    part = randomized(ranking="class")
    queries, chosen = part(memory)
    part.ranking = "objectness"
    _, everything = part(memory)
    best = everything.logits.max(dim=-1).values.topk(5).indices[..., None]
    assert not torch.equal(best[..., 0], everything.logits[..., 0].topk(5).indices)
    assert torch.equal(chosen.logits, everything.logits.gather(1, best.expand(-1, -1, 3)))
    assert torch.equal(chosen.boxes, everything.boxes.gather(1, best.expand(-1, -1, 4)))
    assert torch.equal(queries.reference_points, chosen.boxes)
    assert not queries.reference_points.requires_grad
    (chosen.logits.square().sum() + chosen.boxes.square().sum()).backward()
    assert all(parameter.grad.any() for parameter in part.class_head.parameters())
    assert all(parameter.grad.any() for parameter in part.box_head.parameters())


@pytest.mark.parametrize("has_positions", [True, False])
def test_learned_content_goes_by_rank(has_positions):
    part = randomized(content="learned", has_positions=has_positions)
    queries, _ = part(plain_memory(((6, 8), (3, 4))))
    assert torch.equal(queries.query, part.content.expand(2, -1, -1))
    few, _ = part(plain_memory(((1, 3),)))
    assert torch.equal(few.query, part.content[:3].expand(2, -1, -1))
    names = {name.partition(".")[0] for name, _ in part.named_parameters()}
    assert ("query_proj" in names) == ("query_norm" in names) == has_positions
    if has_positions:
        embedding = box_embedding(queries.reference_points, 64)
        expected = part.query_norm(part.query_proj(embedding))
        torch.testing.assert_close(queries.query_pos, expected)
    else:
        assert queries.query_pos is None


def test_only_the_box_is_detached():
    memory = plain_memory(((6, 8),))
    memory.tokens.requires_grad_()
    part = ProposalQueries(5, num_classes=3, embed_dim=32, base_size=0.05)
    queries, proposals = part(memory)
    assert not queries.reference_points.requires_grad
    assert torch.autograd.grad(
        queries.query.sum(), memory.tokens, allow_unused=True, retain_graph=True
    ) == (None,)
    (gradient,) = torch.autograd.grad(proposals.logits.square().sum(), memory.tokens)
    assert (gradient != 0).any()


def test_content_may_be_the_chosen_tokens_own_features():
    memory = plain_memory(((6, 8),))
    part = ProposalQueries(5, num_classes=3, embed_dim=32, content="memory", base_size=0.05)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    queries, proposals = part(memory)
    assert queries.query_pos.shape == (2, 5, 32)
    best = proposals.logits[..., 0].topk(5).indices
    is_valid = start_of(memory)[1]
    features = part.memory_norm(part.memory_proj(memory.tokens * is_valid[..., None]))
    expected = features.gather(1, best[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(queries.query, expected)
    assert queries.query.requires_grad


def test_invalid_tokens_may_be_chosen_and_are_the_far_corner_without_gradient():
    memory = golden_memory()
    part = ProposalQueries(8, num_classes=1, embed_dim=4, base_size=0.05)
    memory.tokens.requires_grad_()
    queries, proposals = part(memory)
    assert queries.query.shape == (1, 8, 4)
    is_corner = (queries.reference_points[0] == 1).all(-1)
    assert is_corner.sum() == 3
    assert (proposals.boxes[0, [2, 5, 7]] == 1).all()
    proposals.boxes[0, [2, 5, 7]].sum().backward()
    assert all((p.grad == 0).all() for p in part.box_head.parameters())


def test_an_image_with_fewer_tokens_than_queries_gets_as_many_queries_as_tokens():
    part = ProposalQueries(300, num_classes=1, embed_dim=32, base_size=0.05)
    queries, _ = part(plain_memory(((2, 3),)))
    assert queries.query.shape == (2, 6, 32)
    assert queries.reference_points.shape == (2, 6, 4)


def test_center_offsets_of_proposals_in_units_of_their_start():
    torch.manual_seed(0)
    memory = plain_memory(((6, 8), (3, 4)))
    queries = ProposalQueries(5, num_classes=2, embed_dim=32, base_size=0.1, center_offset="box")
    torch.nn.init.normal_(queries.box_head.output.weight)
    start, is_valid = proposal_logits(
        memory.level_shapes, memory.valid_ratios, memory.padding_mask, base_size=0.1
    )
    tokens = memory.tokens.masked_fill(~is_valid[..., None], 0.0)
    offsets = queries.box_head(queries.memory_norm(queries.memory_proj(tokens)))
    sizes = torch.full((48 + 12, 2), 0.1)
    sizes[48:] = 0.2
    offsets = torch.cat((4 * sizes * offsets[..., :2], offsets[..., 2:]), -1)
    _, proposals = queries(memory)
    expected = (start + offsets).sigmoid()
    torch.testing.assert_close(proposals.boxes[is_valid], expected[is_valid])
    assert proposals.boxes.isfinite().all()
