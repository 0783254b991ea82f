from itertools import permutations

import torch
from helpers.recipe import paper_matcher
from hypothesis import given
from hypothesis import strategies as st

from deformable_detr.structures import Predictions, Target


def random_problem(seed, num_queries, num_targets):
    generator = torch.Generator().manual_seed(seed)
    boxes = 0.1 + 0.5 * torch.rand(num_queries + num_targets, 4, generator=generator)
    logits = torch.randn(1, num_queries, 3, generator=generator)
    labels = torch.randint(3, (num_targets,), generator=generator)
    predictions = Predictions(logits, boxes[None, :num_queries])
    return predictions, Target(boxes[num_queries:], labels, 0, (10, 10))


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 4))
def test_no_assignment_is_cheaper(seed, num_queries, num_targets):
    predictions, target = random_problem(seed, num_queries, num_targets)
    matcher = paper_matcher()
    cost = matcher.cost(predictions.logits[0], predictions.boxes[0], target)
    (((match,),)) = matcher([(predictions, [target])])
    found = cost[match.query_index, match.target_index].sum()
    wide = cost if num_queries >= num_targets else cost.T
    cheapest = min(
        sum(wide[row, column] for column, row in enumerate(rows))
        for rows in permutations(range(wide.shape[0]), wide.shape[1])
    )
    torch.testing.assert_close(found, cheapest)
    assert len(set(match.query_index.tolist())) == min(num_queries, num_targets)


@given(st.integers(0, 10**6), st.permutations(range(4)))
def test_the_match_follows_a_permutation_of_the_objects(seed, order):
    predictions, target = random_problem(seed, 6, 4)
    shuffled = Target(target.boxes[list(order)], target.labels[list(order)], 0, (10, 10))
    matcher = paper_matcher()
    ((before,), (after,)) = matcher([(predictions, [target]), (predictions, [shuffled])])
    pairs = set(zip(before.query_index.tolist(), before.target_index.tolist(), strict=True))
    restored = {
        (query, order[index])
        for query, index in zip(
            after.query_index.tolist(), after.target_index.tolist(), strict=True
        )
    }
    assert pairs == restored
