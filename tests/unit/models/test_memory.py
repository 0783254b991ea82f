import torch
from helpers.golden import LEVEL_SHAPES, golden_memory

from deformable_detr.layers.position import SinePositionEmbedding
from deformable_detr.models.memory import MemoryBuilder, encoder_reference_points
from deformable_detr.models.necks.channel_mapper import ChannelMapper
from deformable_detr.structures import Pyramid


def golden_pyramid() -> Pyramid:
    maps = tuple(torch.randn(1, 32, h, w) for h, w in LEVEL_SHAPES)
    masks = []
    for height, width in LEVEL_SHAPES:
        mask = torch.zeros(1, height, width, dtype=torch.bool)
        mask[:, :, -1] = True
        masks.append(mask)
    return Pyramid(maps, tuple(masks))


def test_golden_reference_points():
    points = encoder_reference_points(golden_memory())[0]
    expected = {
        0: ((1 / 6, 0.25), (0.125, 0.25)),
        5: ((5 / 6, 0.75), (0.625, 0.75)),
        7: ((1.0, 0.5), (0.75, 0.5)),
    }
    for token, levels in expected.items():
        torch.testing.assert_close(points[token], torch.tensor(levels), rtol=0, atol=1e-5)


def test_memory_is_ordered_by_level_and_row():
    pyramid = golden_pyramid()
    position = SinePositionEmbedding(32)
    builder = MemoryBuilder(position, embed_dim=32, num_levels=2)
    memory = builder(pyramid)
    assert memory.level_shapes == LEVEL_SHAPES
    torch.testing.assert_close(memory.tokens[0, 4], pyramid.maps[0][0, :, 1, 1])
    torch.testing.assert_close(memory.tokens[0, 7], pyramid.maps[1][0, :, 0, 1])
    expected = position(pyramid.padding_masks[1])[0, :, 0, 1] + builder.level_embed[1]
    torch.testing.assert_close(memory.positions[0, 7], expected)
    torch.testing.assert_close(memory.padding_mask, golden_memory().padding_mask)
    torch.testing.assert_close(memory.valid_ratios, golden_memory().valid_ratios)


def test_neck_takes_further_levels_from_the_last_map_and_then_from_each_other():
    neck = ChannelMapper((8, 16), embed_dim=64, num_levels=4)
    features = [torch.randn(1, 8, 13, 18), torch.randn(1, 16, 7, 9)]
    padding_mask = torch.zeros(1, 104, 144, dtype=torch.bool)
    padding_mask[:, 60:] = True
    pyramid = neck(features, padding_mask)
    assert [tuple(m.shape[2:]) for m in pyramid.maps] == [(13, 18), (7, 9), (4, 5), (2, 3)]
    third = neck.norms[2](neck.projections[2](features[-1]))
    torch.testing.assert_close(pyramid.maps[2], third)
    fourth = neck.norms[3](neck.projections[3](third))
    torch.testing.assert_close(pyramid.maps[3], fourth)
    rows = [mask[0, :, 0].tolist() for mask in pyramid.padding_masks]
    # Nearest neighbor: row i of a map of h rows reads row floor(i * 104 / h).
    assert rows[2] == [False, False, False, True]
    assert rows[3] == [False, False]
