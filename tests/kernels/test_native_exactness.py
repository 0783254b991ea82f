"""Native CPU operators: outputs and all gradients against the definition in wider floats."""

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
)

pytestmark = requires_native

# Few queries leave most of the value unseen, many see every cell several times. There are enough
# images for largest errors not to be a matter of luck.
FEW, MANY = {"Q": 7, "N": 32}, {"Q": 150, "N": 6}
QUERIES = pytest.mark.parametrize("queries", [FEW, MANY], ids=["few", "many"])


@pytest.fixture(params=FORMS.values(), ids=FORMS.keys())
def references(request):
    return request.param


@QUERIES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype, queries, references):
    call = random_call(dtype, **queries, M=4, D=32, L=4, references=references)
    assert_as_exact_as_the_reference(call)


@QUERIES
@pytest.mark.parametrize("D", [1, 2, 16, 30, 64, 71])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_head_width(dtype, D, queries, references):
    call = random_call(dtype, **queries, M=4, D=D, references=references)
    assert_as_exact_as_the_reference(call)


@QUERIES
@pytest.mark.parametrize(
    ("L", "P"), [*((L, 4) for L in range(1, 9)), (1, 1), (3, 2), (4, 1), (2, 3), (5, 8), (8, 8)]
)
def test_every_number_of_levels_and_points(L, P, queries, references):
    call = random_call(**queries, M=4, L=L, P=P, references=references)
    assert_as_exact_as_the_reference(call)


@pytest.mark.parametrize("Q", [1, 150])
@pytest.mark.parametrize("N", [1, 2, 3])
@pytest.mark.parametrize("M", [1, 8])
def test_every_batch(N, M, Q, references):
    draws = 1 + 1000 // (N * M * Q)
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
def test_offsets_far_and_not_finite(last, kind, queries):
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
    """One level is as wide as the next is high, so that neighbours in memory are tried too."""
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
