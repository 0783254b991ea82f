"""Native CPU operators: outputs and all gradients against the definition in wider floats."""

import itertools
from dataclasses import replace

import pytest
import torch
from helpers.operator_calls import (
    DTYPES,
    FORMS,
    assert_as_exact_as_the_reference,
    points_like,
    random_call,
    requires_native,
    truth_of,
)
from helpers.operator_truth import errors

pytestmark = requires_native

# Few queries leave most of the value unread, many read every cell several times.
FEW, MANY = {"Q": 7, "N": 8}, {"Q": 40, "N": 2}
QUERIES = pytest.mark.parametrize("queries", [FEW, MANY], ids=["few", "many"])


@pytest.fixture(params=FORMS.values(), ids=FORMS.keys())
def references(request):
    return request.param


@QUERIES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_on_every_instruction_set(dtype, queries, references, instruction_set):
    call = random_call(dtype, **queries, M=4, D=32, L=4, references=references)
    assert_as_exact_as_the_reference(call)


def test_largest_errors_at_the_size_of_a_real_call(references):
    """The results have enough numbers to compare the largest errors directly."""
    levels = ((50, 67), (25, 34), (13, 17), (7, 9))
    call = random_call(N=1, Q=400, M=8, D=32, L=4, levels=levels, references=references)
    truth = truth_of(call)
    results = zip(
        call.run_with_gradients("native"),
        call.run_with_gradients("reference"),
        (truth.output, *truth.gradients),
        strict=True,
    )
    for native, reference, exact in results:
        counts = truth.counts(exact)
        assert errors(native, exact)[counts].max() <= 2 * errors(reference, exact)[counts].max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_few_queries_on_a_large_value(dtype, references, instruction_set):
    """The gradient of value is so large that it is written past the caches."""
    call = random_call(dtype, N=1, Q=20, M=8, D=32, levels=((90, 100),), references=references)
    assert call.tensors[0].numel() > 2**21
    assert_as_exact_as_the_reference(call)


@QUERIES
@pytest.mark.parametrize("D", [1, 2, 16, 30, 64, 71])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_head_width(dtype, D, queries, references):
    call = random_call(dtype, **queries, M=4, D=D, references=references)
    assert_as_exact_as_the_reference(call)


@QUERIES
@pytest.mark.parametrize("D", [1, 30])
@pytest.mark.parametrize("P", [1, 3])
def test_odd_sizes_on_every_instruction_set(D, P, queries, references, instruction_set):
    call = random_call(**queries, M=4, D=D, L=3, P=P, references=references)
    assert_as_exact_as_the_reference(call)


def test_memory_is_never_read_before_it_is_written(references, instruction_set):
    """The scratch memory of a narrow call contains NaN from a wide call."""
    wide = random_call(D=128, L=4, P=4, Q=150, references=references)
    nowhere = replace(
        wide,
        tensors=(torch.full_like(wide.tensors[0], torch.nan), *wide.tensors[1:]),
        grad_output=torch.full_like(wide.grad_output, torch.nan),
    )
    for D, P, queries in itertools.product((1, 30, 33), (1, 3, 4), (FEW, MANY)):
        nowhere.run_with_gradients("native")
        narrow = random_call(**queries, D=D, P=P, references=references)
        assert all(result.isfinite().all() for result in narrow.run_with_gradients("native"))


@QUERIES
@pytest.mark.parametrize(
    ("L", "P"), [(1, 1), (1, 4), (2, 3), (3, 2), (4, 4), (5, 8), (6, 4), (7, 1), (8, 4)]
)
def test_every_number_of_levels_and_points(L, P, queries, references):
    call = random_call(**queries, M=4, L=L, P=P, references=references)
    assert_as_exact_as_the_reference(call)


@pytest.mark.parametrize(
    ("N", "M", "Q"), [(1, 1, 1), (2, 8, 1), (3, 1, 1), (1, 8, 40), (2, 1, 40), (3, 8, 40)]
)
def test_every_batch(N, M, Q, references):
    draws = 1 + 100 // (N * M * Q)
    calls = (random_call(N=N, M=M, Q=Q, references=references, seed=seed) for seed in range(draws))
    assert_as_exact_as_the_reference(*calls)


@QUERIES
@pytest.mark.parametrize("kind", ["inside", "lattice", "border", "far", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kind_of_location(dtype, kind, queries):
    call = random_call(dtype, **queries, L=4)
    locations = points_like(call.tensors[1], kind, call.level_shapes)
    assert_as_exact_as_the_reference(call.with_points(locations))


@QUERIES
@pytest.mark.parametrize("kind", ["far", "mixed"])
@pytest.mark.parametrize("last", [2, 4])
def test_offsets_far_away_and_not_finite(last, kind, queries):
    call = random_call(**queries, L=4, references=last)
    offsets = points_like(call.tensors[2], kind, call.level_shapes)
    assert_as_exact_as_the_reference(call.with_points(offsets))


@QUERIES
@pytest.mark.parametrize("last", [2, 4])
def test_references_that_are_not_finite(last, queries):
    call = random_call(**queries, L=4, references=last)
    value, references, *others = call.tensors
    references = points_like(references, "mixed", ((1, 1),))
    assert_as_exact_as_the_reference(replace(call, tensors=(value, references, *others)))


def test_softmax_of_large_logits():
    call = random_call(**FEW, references=2)
    *others, logits = call.tensors
    assert_as_exact_as_the_reference(replace(call, tensors=(*others, 100 * logits)))


@QUERIES
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_cells_that_no_sample_touches_never_leak(bad, queries):
    """One level is as wide as the next is high, so that neighbors in memory are covered too."""
    call = random_call(D=32, levels=((6, 8), (8, 6)), L=2, **queries)
    value, locations, weights = call.tensors
    locations = 0.1 + 0.3 * locations.clamp(0, 1)  # columns and rows 0 to 3
    poisoned = value.clone()
    poisoned[:, :48].unflatten(1, (6, 8))[:, :, 4:] = bad
    poisoned[:, 48:].unflatten(1, (8, 6))[:, 4:] = bad
    clean = replace(call, tensors=(value, locations, weights))
    dirty = replace(call, tensors=(poisoned, locations, weights))
    results = zip(
        clean.run_with_gradients("native"), dirty.run_with_gradients("native"), strict=True
    )
    assert all(torch.equal(expected, actual) for expected, actual in results)


@pytest.mark.parametrize("Q", [1, 40])  # few queries, and many
def test_levels_without_cells_change_nothing(Q, instruction_set):
    call = random_call(N=2, Q=Q, M=2, D=32, levels=((0, 5), (6, 9), (4, 0)))
    value, locations, weights = call.tensors
    only = replace(
        call,
        tensors=(value, locations[:, :, :, 1:2].clone(), weights[:, :, :, 1:2].clone()),
        level_shapes=((6, 9),),
    )
    output, *gradients = call.run_with_gradients("native")
    expected, *expected_gradients = only.run_with_gradients("native")
    assert torch.equal(output, expected)
    assert torch.equal(gradients[0], expected_gradients[0])
    for gradient, of_the_level in zip(gradients[1:], expected_gradients[1:], strict=True):
        assert torch.equal(gradient[:, :, :, 1:2], of_the_level)
        assert not gradient[:, :, :, ::2].any()


@pytest.mark.parametrize("Q", [1, 40])
@pytest.mark.parametrize("boxes", [2, 4])
def test_offsets_in_levels_without_cells_have_no_gradient(Q, boxes, instruction_set):
    levels = ((0, 5), (6, 9), (4, 0))
    call = random_call(N=2, Q=Q, M=2, D=32, references=boxes, levels=levels)
    output, _, grad_references, grad_offsets, grad_logits = call.run_with_gradients("native")
    assert output.any()
    assert not grad_offsets[:, :, :, ::2].any()
    assert not grad_references[:, :, ::2].any()
    assert grad_logits[:, :, :, ::2].any()  # they take part in the softmax
