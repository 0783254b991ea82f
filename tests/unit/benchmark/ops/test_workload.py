import pytest
import torch

from deformable_detr.benchmark.ops.workload import (
    DECODER,
    ENCODER,
    ENCODER_PAIR,
    Shape,
    make_workload,
)
from deformable_detr.ops.ms_deformable_attention.reference import sampling_locations

SMALL = Shape("small", ((4, 6), (2, 3)), M=2, D=3, P=2)


def test_encoder_has_the_published_size() -> None:
    assert (ENCODER.N, ENCODER.M, ENCODER.D, ENCODER.L, ENCODER.P) == (1, 8, 32, 4, 4)
    assert ENCODER.S == ENCODER.num_queries == 17_821
    assert ENCODER.samples == 2_281_088
    assert ENCODER.flop("forward") == 583_958_528
    assert ENCODER.flop("backward") == 2 * ENCODER.flop("forward")


def test_other_shapes_differ_in_one_number() -> None:
    assert (DECODER.num_queries, DECODER.samples) == (300, 38_400)
    assert ENCODER_PAIR.samples == 2 * ENCODER.samples


def test_encoder_moves_the_bytes_of_its_tensors() -> None:
    """Nearly all cells are touched, so forward moves value, points, weights and output once."""
    workload = make_workload(ENCODER)
    tensors = (workload.value, workload.sampling_locations, workload.attention_weights)
    inputs = sum(tensor.numel() * 4 for tensor in tensors)
    output = 17_821 * 256 * 4

    forward, backward = (
        workload.compulsory_bytes(direction, value_bytes=4, is_fused=False)
        for direction in ("forward", "backward")
    )

    assert forward == pytest.approx(inputs + output, rel=1e-4)
    assert backward == pytest.approx(2 * (inputs + output), rel=1e-4)
    references = workload.reference_points.numel() * 4
    assert (
        workload.compulsory_bytes("forward", value_bytes=4, is_fused=True) == forward + references
    )
    assert workload.compulsory_bytes("forward", value_bytes=2, is_fused=False) == (
        forward - 2 * 17_821 * 256 * 2
    )


def test_offsets_have_the_stated_spread_in_every_level() -> None:
    offsets = make_workload(ENCODER).sampling_offsets

    for level in range(ENCODER.L):
        assert float(offsets[..., level, :, :].std()) == pytest.approx(3.0, rel=0.01)


def test_both_forms_of_the_operator_have_the_same_points_and_weights() -> None:
    workload = make_workload(SMALL)

    expected = sampling_locations(
        workload.reference_points, workload.sampling_offsets, SMALL.level_shapes
    )
    torch.testing.assert_close(workload.sampling_locations, expected)
    torch.testing.assert_close(
        workload.attention_weights.sum((-1, -2)), torch.ones(1, SMALL.S, SMALL.M)
    )


def test_encoder_queries_are_at_cell_centers() -> None:
    references = make_workload(SMALL).reference_points

    assert references.shape == (1, 24 + 6, 2, 2)
    torch.testing.assert_close(references[0, 0, 0], torch.tensor([0.5 / 6, 0.5 / 4]))
    torch.testing.assert_close(references[0, 7, 1], torch.tensor([1.5 / 6, 1.5 / 4]))
    torch.testing.assert_close(references[0, -1, 0], torch.tensor([2.5 / 3, 1.5 / 2]))


def test_touched_rows_are_those_with_a_gradient() -> None:
    from deformable_detr.ops.ms_deformable_attention.reference import ms_deform_attn_core_pytorch

    workload = make_workload(Shape("few", ((9, 11), (5, 6)), Q=3, N=2, M=2, D=3, P=2))
    value = workload.value.requires_grad_()
    ms_deform_attn_core_pytorch(
        value,
        workload.shape.level_shapes,
        workload.sampling_locations,
        workload.attention_weights,
    ).sum().backward()

    assert value.grad is not None
    assert workload.touched_rows == int((value.grad != 0).any(-1).sum())
    assert 0 < workload.touched_rows < value.grad[..., 0].numel()


def test_workloads_are_deterministic() -> None:
    first, second = make_workload(SMALL), make_workload(SMALL)

    assert torch.equal(first.value, second.value)
    assert torch.equal(first.sampling_locations, second.sampling_locations)
