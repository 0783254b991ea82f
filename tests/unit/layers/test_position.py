import pytest
import torch

from deformable_detr.layers.position import LearnedPositionEmbedding, SinePositionEmbedding


def test_sine_embedding_golden_values():
    padding_mask = torch.zeros(1, 2, 3, dtype=torch.bool)
    padding_mask[:, :, 2] = True
    embedding = SinePositionEmbedding(256)(padding_mask)[0]
    channels = [0, 1, 2, 3, 127, 128, 129, 130, 255]
    golden = {
        (0, 0): [1.0, 7e-7, 0.9779176, 0.2089912, 1.0, 1.0, 7e-7, 0.9779176, 1.0],
        (0, 1): [1.0, 7e-7, 0.9779176, 0.2089912, 1.0, -1.0, -1.9e-6, -0.8070661, 0.9999999],
        (1, 1): [
            -1.0, -1.9e-6, -0.8070661, -0.5904610, 0.9999999,
            -1.0, -1.9e-6, -0.8070661, 0.9999999,
        ],
    }  # fmt: skip
    for (y, x), expected in golden.items():
        actual = embedding[channels, y, x]
        torch.testing.assert_close(actual, torch.tensor(expected), rtol=0, atol=1e-5)
    assert embedding.isfinite().all()


def test_sine_embedding_of_dino_golden_values():
    padding_mask = torch.zeros(1, 2, 3, dtype=torch.bool)
    padding_mask[:, :, 2] = True
    embedding = SinePositionEmbedding(256, temperature=20, offset=0)(padding_mask)[0]
    row = [0.0000013, -1, 0.1431715, -0.9896979, 0.9864829]
    golden = {
        (0, 0): [*row, 0.0000013, -1, 0.1431715, 0.9864829],
        (0, 1): [*row, -0.0000027, 1, -0.2833931, 0.9462968],
        (1, 1): [
            -0.0000027, 1, -0.2833931, 0.9590038, 0.9462968,
            -0.0000027, 1, -0.2833931, 0.9462968,
        ],
    }  # fmt: skip
    for (y, x), expected in golden.items():
        actual = embedding[[0, 1, 2, 3, 127, 128, 129, 130, 255], y, x]
        torch.testing.assert_close(actual, torch.tensor(expected), rtol=0, atol=1e-5)


def test_sine_embedding_does_not_depend_on_padding():
    padding_mask = torch.ones(1, 5, 7, dtype=torch.bool)
    padding_mask[:, :4, :6] = False
    embed = SinePositionEmbedding(32)
    alone = embed(torch.zeros(1, 4, 6, dtype=torch.bool))
    torch.testing.assert_close(embed(padding_mask)[:, :, :4, :6], alone)


def test_learned_embedding_is_column_then_row():
    embed = LearnedPositionEmbedding(8, max_cells=50)
    embedding = embed(torch.zeros(2, 3, 5, dtype=torch.bool))
    assert embedding.shape == (2, 8, 3, 5)
    expected = torch.cat((embed.column_embed.weight[4], embed.row_embed.weight[1]))
    torch.testing.assert_close(embedding[1, :, 1, 4], expected)


def test_learned_embedding_of_a_larger_map_raises():
    with pytest.raises(ValueError, match=r"max_cells = 50 rows and columns, got 51 x 3; raise"):
        LearnedPositionEmbedding(8, max_cells=50)(torch.zeros(1, 51, 3, dtype=torch.bool))


def test_invalid_embed_dim_raises():
    with pytest.raises(ValueError, match="embed_dim must be a multiple of 4, got 6"):
        SinePositionEmbedding(6)
    with pytest.raises(ValueError, match="embed_dim must be even, got 7"):
        LearnedPositionEmbedding(7, max_cells=50)
