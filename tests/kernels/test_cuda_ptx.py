"""The CUDA kernels, compiled to PTX and executed on a PTX interpreter, against the definition."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.cuda_kernels import (
    SOURCES,
    SimulatedCall,
    compiled,
    requires_interpreter,
    requires_nvcc,
)
from helpers.operator_calls import (
    DTYPES,
    assert_as_exact_as_the_reference,
    points_like,
    random_call,
)

pytestmark = [requires_nvcc, requires_interpreter]

# PTX without and with vector additions to memory.
ARCHITECTURES = ("sm_80", "sm_90")


def simulated(dtype=torch.float32, *, architecture="sm_80", deterministic=False, **sizes):
    call = random_call(dtype, **sizes)
    return SimulatedCall(
        call.tensors,
        call.level_shapes,
        call.grad_output,
        architecture=architecture,
        deterministic=deterministic,
    )


F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16


# Covers every D, L, P, N, form of the points and architecture in float32, and every form of the
# kernels in the other dtypes. Q leaves the last block partly empty.
@pytest.mark.parametrize(
    ("dtypes", "D", "N", "Q", "L", "P", "references", "architecture"),
    [
        ((F32, F64), 1, 2, 39, 3, 1, None, "sm_80"),
        ((F32, F16), 2, 1, 33, 1, 4, 2, "sm_90"),
        ((F32, F16), 16, 3, 70, 4, 4, 4, "sm_80"),
        ((F32, BF16), 16, 1, 65, 5, 1, None, "sm_90"),
        ((F32, F64), 30, 2, 17, 3, 4, 4, "sm_90"),
        ((F32, BF16), 32, 1, 67, 4, 4, None, "sm_80"),
        ((F32, F16), 32, 2, 37, 4, 4, 2, "sm_90"),
        ((F32, BF16), 32, 3, 5, 5, 8, 4, "sm_80"),
        ((F32, BF16), 64, 1, 35, 3, 4, 2, "sm_80"),
        ((F32, F16), 64, 2, 17, 4, 4, None, "sm_90"),
        ((F32, F64, F16), 71, 1, 15, 1, 8, 2, "sm_80"),
    ],
)
def test_results_are_as_exact_as_the_reference(dtypes, D, N, Q, L, P, references, architecture):
    for dtype in dtypes:
        call = simulated(
            dtype, D=D, N=N, Q=Q, M=2, L=L, P=P, references=references, architecture=architecture
        )
        assert_as_exact_as_the_reference(call)


@pytest.mark.parametrize(
    ("D", "N", "L", "P", "references"), [(16, 2, 4, 4, None), (30, 2, 3, 1, 2), (71, 2, 1, 8, 4)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_deterministic_results_are_as_exact_as_the_reference(dtype, D, N, L, P, references):
    call = simulated(
        dtype, D=D, N=N, Q=23, M=2, L=L, P=P, references=references, deterministic=True
    )
    assert_as_exact_as_the_reference(call)


@pytest.mark.parametrize("kind", ["inside", "lattice", "border", "far", "mixed"])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("D", [2, 32])
def test_points_anywhere_are_as_exact_as_the_reference(D, deterministic, kind):
    call = simulated(D=D, Q=21, deterministic=deterministic)
    points = points_like(call.tensors[-2], kind, call.level_shapes)
    assert_as_exact_as_the_reference(call.with_points(points))


@pytest.mark.parametrize("references", [2, 4])
@pytest.mark.parametrize("deterministic", [False, True])
def test_non_finite_offsets_have_only_the_gradient_of_the_softmax(deterministic, references):
    call = simulated(D=16, Q=11, references=references, deterministic=deterministic)
    offsets = call.tensors[-2].clone()
    offsets[:, ::3, :, :, 0, 0] = math.nan
    offsets[:, 1::3, :, :, 1, 1] = math.inf
    changed = call.with_points(offsets)
    assert_as_exact_as_the_reference(changed)
    grad_offsets = changed.backward()[2]
    assert (grad_offsets[~offsets.isfinite().all(-1)] == 0).all()


def test_non_finite_references_have_no_gradient():
    call = simulated(D=32, Q=6, references=4)
    references = call.tensors[1].clone()
    references[:, 0, :, 0] = math.nan
    references[:, 1, :, 2] = math.inf
    changed = replace(call, tensors=(call.tensors[0], references, *call.tensors[2:]))
    assert changed.forward()[:, :2].eq(0).all()
    _, grad_references, grad_offsets, _ = changed.backward()
    assert grad_references[:, :2].eq(0).all()
    assert grad_offsets[:, :2].eq(0).all()
    assert grad_references[:, 2:].ne(0).any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("D", [2, 32])
@pytest.mark.parametrize("references", [None, 2])
def test_cells_without_samples_do_not_leak(references, D, architecture):
    call = simulated(D=D, Q=5, references=references, architecture=architecture)
    touched = call.backward()[0].ne(0).any(-1, keepdim=True)
    assert 0.1 < touched.float().mean() < 0.9
    value = torch.where(touched, call.tensors[0], math.nan)
    poisoned = replace(call, tensors=(value, *call.tensors[1:]))
    for clean, actual in zip(
        call.run_with_gradients("native"), poisoned.run_with_gradients("native"), strict=True
    ):
        assert torch.equal(clean, actual)


def test_without_reference_gradient_the_others_are_the_same():
    call = simulated(D=32, Q=9, references=4)
    alone = replace(call, needs_reference_grad=False)
    value, _, offsets, logits = call.backward()
    for expected, actual in zip((value, offsets, logits), alone.backward(), strict=True):
        assert torch.equal(expected, actual)


def test_general_form_agrees_with_the_vector_form():
    call = simulated(D=32, Q=35, references=2)
    general = replace(call, general=True)
    assert_as_exact_as_the_reference(general)
    assert torch.equal(call.forward(), general.forward())


def test_several_grids_handle_more_images_than_one_grid_allows():
    call = simulated(D=32, N=3, Q=9, references=4)
    split = replace(call, images_per_grid=2)
    assert_as_exact_as_the_reference(split)
    assert torch.equal(call.forward(), split.forward())


def test_a_level_without_cells_contributes_nothing():
    call = simulated(D=16, levels=((5, 7), (0, 4), (3, 0), (2, 2)), L=4, references=None)
    assert_as_exact_as_the_reference(call)
    assert call.backward()[1][:, :, :, 1:3].eq(0).all()


def test_deterministic_backward_is_bitwise_the_same_in_any_order_of_blocks(monkeypatch):
    call = simulated(D=30, Q=70, N=2, deterministic=True)
    first = call.backward()
    module = compiled(torch.float32, 0, "sm_80")
    # The interpreter runs as many blocks together as its limit of threads allows.
    monkeypatch.setattr(module, "max_threads", 256)
    for expected, actual in zip(first, call.backward(), strict=True):
        assert torch.equal(expected, actual)


PLANTED_FAULTS = {
    "no __syncwarp after the samples are shared": (
        "samples.cuh",
        "    __syncwarp();\n  }\n};",
        "  }\n};",
    ),
    "no __syncwarp before the samples are overwritten": (
        "samples.cuh",
        "    __syncwarp();  // all lanes have read what this overwrites\n",
        "",
    ),
    "a corner off by one": (
        "samples.cuh",
        "corner + row_step + step : -1",
        "corner + row_step : -1",
    ),
    "the right border ignored": (
        "samples.cuh",
        "has_right = column + 1 < shape.width",
        "has_right = true",
    ),
    "the last row read past its end": (
        "samples.cuh",
        "has_bottom = row + 1 < shape.height",
        "has_bottom = true",
    ),
    "shared memory too short": ("samples.cuh", "kPlaces = kQueries * (kLanes + 1)", "kPlaces = 8"),
    "groups past the last query at work": ("samples.cuh", "active = query < Q;", "active = true;"),
    "one shuffle missing": (
        "im2col.cuh",
        "exchange(is_upper, lower.bottom_left, upper.bottom_left, kStep)",
        "lower.bottom_left",
    ),
}


@pytest.mark.parametrize("fault", PLANTED_FAULTS)
def test_a_planted_fault_is_detected(fault, tmp_path):
    name, right, wrong = PLANTED_FAULTS[fault]
    shutil.copytree(SOURCES, tmp_path / "src")
    path = tmp_path / "src" / "cuda" / "ms_deformable_attention" / name
    text = path.read_text()
    assert text.count(right) == 1, "the source has changed: update the planted fault"
    path.write_text(text.replace(right, wrong))
    compiled(torch.float32, 32, "sm_80", tmp_path / "src")  # compiles without an error
    call = simulated(D=32, N=1, M=1, Q=37, L=4)
    points = points_like(call.tensors[-2], "border", call.level_shapes)
    for tensors in (call.tensors, call.with_points(points).tensors):
        faulty = replace(call, tensors=tensors, sources=tmp_path / "src")
        try:
            assert_as_exact_as_the_reference(faulty)
        except (AssertionError, RuntimeError):  # a wrong result, or a memory fault
            return
    pytest.fail("not detected")


def test_a_short_buffer_is_detected():
    call = simulated(D=32, Q=3)
    short = replace(call, tensors=(call.tensors[0][:, :-1].contiguous(), *call.tensors[1:]))
    points = np.full_like(short.tensors[-2].numpy(), 0.999)
    with pytest.raises(RuntimeError, match="out-of-bounds global load"):
        short.with_points(torch.from_numpy(points)).forward()
