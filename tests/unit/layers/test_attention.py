import pytest
import torch
import torch.nn.functional as F

from deformable_detr.layers.attention import MSDeformAttn
from deformable_detr.ops.ms_deformable_attention.reference import ms_deform_attn_core_pytorch

LEVEL_SHAPES = ((6, 4), (3, 2))


def random_call(attention, *, last=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 5, 32, generator=generator)
    value = torch.randn(2, 30, 32, generator=generator)
    references = torch.rand(2, 5, 2, last, generator=generator)
    padding_mask = torch.zeros(2, 30, dtype=torch.bool)
    padding_mask[1, 20:24] = True
    return query, references, value, LEVEL_SHAPES, padding_mask


def randomized_attention():
    attention = MSDeformAttn(32, num_heads=4, num_levels=2, num_points=3)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return attention


def test_initial_offsets_point_in_eight_directions():
    bias = MSDeformAttn(256, num_heads=8, num_levels=4, num_points=4).sampling_offsets.bias.detach()
    golden = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    offsets = bias.view(8, 4, 4, 2)
    torch.testing.assert_close(
        offsets[:, 0, 0], torch.tensor(golden, dtype=torch.float32), rtol=0, atol=1e-6
    )
    first = torch.tensor([1.0, 0, 2, 0, 3, 0, 4, 0] * 2)
    torch.testing.assert_close(bias[:16], first, rtol=0, atol=1e-6)


def test_initial_weights_are_uniform_and_independent_of_the_query():
    attention = MSDeformAttn(256, num_heads=8, num_levels=4, num_points=4)
    for parameter in (
        attention.sampling_offsets.weight,
        attention.attention_weights.weight,
        attention.attention_weights.bias,
        attention.value_proj.bias,
        attention.output_proj.bias,
    ):
        assert (parameter == 0).all()
    bound = (6 / 512) ** 0.5  # xavier uniform
    assert attention.value_proj.weight.abs().max() <= bound
    assert attention.value_proj.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_content_under_padding_is_never_read():
    attention = randomized_attention()
    query, references, value, shapes, padding_mask = random_call(attention)
    before = attention(query, references, value, shapes, padding_mask)
    changed = value.clone()
    changed[padding_mask] = 1e4
    after = attention(query, references, changed, shapes, padding_mask)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_padding_is_zero_even_with_a_value_bias():
    attention = MSDeformAttn(32, num_heads=4, num_levels=2, num_points=3)
    torch.nn.init.ones_(attention.value_proj.bias)
    query, references, value, shapes, _ = random_call(attention)
    everything = torch.ones(2, 30, dtype=torch.bool)
    assert (attention(query, references, value, shapes, everything) == 0).all()


def test_autocast_keeps_coordinates_exact():
    attention = randomized_attention()
    arguments = random_call(attention, last=4)
    seen = {}

    def spy(value, level_shapes, references, offsets, logits, *, backend):
        seen.update(
            value=value.dtype,
            references=references.dtype,
            offsets=offsets.dtype,
            logits=logits.dtype,
        )
        return torch.zeros(*offsets.shape[:2], 32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deformable_detr.layers.attention.ms_deform_attn_fused", spy)
        with torch.autocast("cpu", torch.bfloat16):
            attention(*arguments)
    assert seen == {
        "value": torch.bfloat16,
        "references": torch.float32,
        "offsets": torch.float32,
        "logits": torch.float32,
    }


def test_embed_dim_must_be_divisible_by_num_heads():
    with pytest.raises(ValueError, match="embed_dim must be divisible by num_heads, got 256 and 7"):
        MSDeformAttn(256, num_heads=7, num_levels=4, num_points=4)


def test_a_head_dim_that_is_not_a_power_of_two_warns():
    with pytest.warns(UserWarning, match="= 12 is not a power of two"):
        MSDeformAttn(96, num_heads=8, num_levels=4, num_points=4)


def test_reference_points_must_be_points_or_boxes():
    attention = randomized_attention()
    query, references, *rest = random_call(attention, last=3)
    with pytest.raises(ValueError, match=r"must end in 2 \(points\) or 4 \(boxes\), got shape"):
        attention(query, references, *rest)


def test_weights_of_the_official_module_load_by_name():
    C, M, L, P = 32, 4, 2, 3
    official = {
        "sampling_offsets.weight": torch.randn(M * L * P * 2, C),
        "sampling_offsets.bias": torch.randn(M * L * P * 2),
        "attention_weights.weight": torch.randn(M * L * P, C),
        "attention_weights.bias": torch.randn(M * L * P),
        "value_proj.weight": torch.randn(C, C),
        "value_proj.bias": torch.randn(C),
        "output_proj.weight": torch.randn(C, C),
        "output_proj.bias": torch.randn(C),
    }
    attention = MSDeformAttn(C, num_heads=M, num_levels=L, num_points=P)
    attention.load_state_dict(official, strict=True)

    query, references, value, shapes, padding_mask = random_call(attention)

    def project(name, tensor):
        return F.linear(tensor, official[f"{name}.weight"], official[f"{name}.bias"])

    projected = project("value_proj", value).masked_fill(padding_mask[..., None], 0.0)
    offsets = project("sampling_offsets", query).view(2, 5, M, L, P, 2)
    weights = project("attention_weights", query).view(2, 5, M, L * P).softmax(-1)
    sizes = torch.tensor([(width, height) for height, width in shapes])
    locations = references[:, :, None, :, None] + offsets / sizes[:, None]
    sampled = ms_deform_attn_core_pytorch(
        projected.view(2, 30, M, -1), shapes, locations, weights.view(2, 5, M, L, P)
    )
    torch.testing.assert_close(
        attention(query, references, value, shapes, padding_mask), project("output_proj", sampled)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_module_of_another_dtype_computes_in_that_dtype(dtype):
    attention = randomized_attention()
    arguments = random_call(attention, last=4)
    expected = attention(*arguments)
    query, references, value, *rest = arguments
    actual = attention.to(dtype)(query.to(dtype), references, value.to(dtype), *rest)
    assert actual.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float64 else 2**-5 * expected.abs().max().item()
    torch.testing.assert_close(actual.float(), expected, rtol=0, atol=tolerance)
