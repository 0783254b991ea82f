from itertools import product

import numpy as np
import pytest

from deformable_detr.data.repeat_factors import repeat_factors
from deformable_detr.data.samplers import (
    BatchPlan,
    BucketSampler,
    DistributedOrderSampler,
    EvaluationSampler,
    MicroBatchSampler,
    SampleKey,
    derive_seed,
)


def plan_of(rank=0, world_size=1, *, total_batch=8, micro_batch=2):
    return BatchPlan(
        total_batch=total_batch, micro_batch=micro_batch, rank=rank, world_size=world_size
    )


def sampler_of(num_samples=50, rank=0, world_size=1, *, seed=3, **options):
    return MicroBatchSampler(num_samples, plan_of(rank, world_size, **options), seed=seed)


def global_order(world_size, epoch=0, **options):
    """Return the micro-batches of all ranks in the order of the optimizer's steps."""
    per_rank = []
    for rank in range(world_size):
        sampler = sampler_of(rank=rank, world_size=world_size, **options)
        sampler.set_epoch(epoch)
        per_rank.append(list(sampler))
    assert len({len(batches) for batches in per_rank}) == 1
    return [batch for turn in zip(*per_rank, strict=True) for batch in turn]


def indices(batches):
    return [key.index for batch in batches for key in batch]


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("num_samples", [50, 5])
def test_micro_batches_of_a_step_are_the_same_for_any_world_size(world_size, num_samples):
    alone = global_order(1, num_samples=num_samples)
    assert global_order(world_size, num_samples=num_samples) == alone


def test_rank_takes_every_other_micro_batch_of_a_step():
    alone = list(sampler_of())
    assert list(sampler_of(rank=1, world_size=2)) == alone[1::2]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_micro_batches_of_a_step_are_distributed_for_every_world_size(world_size):
    alone = sampler_of()
    steps = [list(alone)[begin : begin + 4] for begin in range(0, len(alone), 4)]
    for rank in range(world_size):
        sampler = sampler_of(rank=rank, world_size=world_size)
        size = sampler.micro_batches_per_step
        assert size in (4 // world_size, -(-4 // world_size))
        own = list(sampler)
        assert [own[size * i : size * (i + 1)] for i in range(len(steps))] == [
            step[rank::world_size] for step in steps
        ]
        sampler.start_at(4)
        assert list(sampler) == own[4 * size :]


def test_epoch_is_a_permutation_without_its_last_samples():
    order = indices(sampler_of())
    assert len(order) == len(set(order)) == 48
    assert order != sorted(order)
    assert set(order) < set(range(50))


def test_few_samples_are_repeated_to_fill_one_step():
    order = indices(sampler_of(3))
    assert sampler_of(3).steps_per_epoch == 1
    assert order == (order[:3] * 3)[:8]
    assert set(order) == {0, 1, 2}


def test_order_depends_on_seed_and_epoch():
    orders = {
        tuple(indices(global_order(1, epoch=epoch, seed=seed)))
        for epoch in (0, 1)
        for seed in (0, 1)
    }
    assert len(orders) == 4


def test_keys_carry_the_epoch():
    assert {key.epoch for batch in global_order(1, epoch=5) for key in batch} == {5}


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_epoch_resumes_at_a_step(rank, world_size):
    whole = list(sampler_of(rank=rank, world_size=world_size))
    resumed = sampler_of(rank=rank, world_size=world_size)
    resumed.start_at(4)
    assert len(resumed) == len(list(resumed)) == 2 * resumed.micro_batches_per_step
    assert list(resumed) == whole[4 * resumed.micro_batches_per_step :]


def test_next_epoch_starts_at_its_first_step():
    sampler = sampler_of()
    sampler.start_at(4)
    sampler.set_epoch(1)
    assert list(sampler) == global_order(1, epoch=1)
    sampler.start_at(0)
    assert list(sampler) == global_order(1, epoch=1)


def test_length_equals_number_of_batches():
    sampler = sampler_of(world_size=2)
    assert (sampler.steps_per_epoch, sampler.micro_batches_per_step) == (6, 2)
    assert len(sampler) == len(list(sampler)) == 12
    assert all(len(batch) == 2 for batch in sampler)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_batch": 9}, "total_batch must be a multiple of micro_batch, got 9 and 2"),
        (
            {"world_size": 5},
            "got 8 samples in micro-batches of 2 for 5 processes",
        ),
        ({"total_batch": 0}, "total_batch must be at least 1, got 0"),
        ({"micro_batch": 0}, "micro_batch must be at least 1, got 0"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, r"rank must be in 0..world_size - 1, got 2 of 2"),
    ],
)
def test_invalid_arguments_are_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        sampler_of(**change)


@pytest.mark.parametrize("step", [-1, 7])
def test_step_outside_the_epoch_is_rejected(step):
    with pytest.raises(ValueError, match=rf"step must be in 0..6, .* got {step}"):
        sampler_of().start_at(step)


def official(rank, *, num_samples=10, world_size=3, epoch=0, total_batch=3, micro_batch=1):
    plan = plan_of(rank, world_size, total_batch=total_batch, micro_batch=micro_batch)
    sampler = DistributedOrderSampler(num_samples, plan)
    sampler.set_epoch(epoch)
    return sampler


def test_official_order_of_epoch_1():
    orders = [indices(official(rank, epoch=1)) for rank in range(3)]
    assert orders == [[5, 6, 1, 2], [0, 8, 9, 3], [7, 4, 5, 6]]


def test_official_order_drops_an_incomplete_batch():
    sampler = official(0, total_batch=6, micro_batch=2, num_samples=13)
    assert indices(sampler) == [3, 4, 0, 2]  # the fifth of rank 0 has no counterpart on rank 1
    assert sampler.steps_per_epoch == 2


def test_official_order_resumes():
    whole = list(official(1))
    resumed = official(1)
    resumed.start_at(3)
    assert list(resumed) == whole[3:]


def test_official_order_rejects_uneven_shares():
    with pytest.raises(ValueError, match=r"in the official order, got 4, 1 and 3"):
        official(0, total_batch=4)


def test_official_order_rejects_fewer_samples_than_a_batch():
    with pytest.raises(ValueError, match=r"total_batch must be at most the 10 samples .* got 30"):
        official(0, total_batch=30)


SIZES = [(4, 6), (6, 4), (4, 6), (5, 5), (4, 6), (6, 4), (4, 6)]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9])
@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1], [(4, 6)] * 7, [(4, 6 + i) for i in range(7)]])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_evaluation_sees_each_sample_once_in_batches_of_one_size(sizes, batch_size, world_size):
    samplers = [
        EvaluationSampler(sizes, batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    shares = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(share) for share in shares]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    batches = [batch for share in shares for batch in share]
    assert sorted(indices(batches)) == list(range(len(sizes)))
    for batch in batches:
        assert len({sizes[key.index] for key in batch}) == 1
        assert len(batch) <= batch_size
    full = sum(-(-sizes.count(size) // batch_size) for size in set(sizes))
    assert len(batches) == full


def test_evaluation_batches_are_the_same_for_any_world_size():
    alone = list(EvaluationSampler(SIZES, batch_size=2, rank=0, world_size=1))
    assert [indices([batch]) for batch in alone] == [[0, 2], [1, 5], [3], [4, 6]]
    for rank in range(3):
        own = EvaluationSampler(SIZES, batch_size=2, rank=rank, world_size=3)
        assert list(own) == alone[rank::3]
    assert alone[0] == [SampleKey(0, 0), SampleKey(0, 2)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"rank": 1}, "rank must be in 0..world_size - 1, got 1 of 1"),
        ({"sizes": []}, "sizes must be those of at least one sample, got none"),
    ],
)
def test_evaluation_rejects_invalid_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        EvaluationSampler(**{"sizes": SIZES, "batch_size": 2, "rank": 0, "world_size": 1} | change)


FACTORS = np.array([1.0, 1.25, 2.5, 1.0, 1.0, 3.0, 1.0, 1.25])  # 12 in all


def repeated(rank=0, world_size=1, *, epoch=0, first_step=0, buckets=False):
    plan = plan_of(rank, world_size, total_batch=4)
    options = {"seed": 3, "factors": FACTORS}
    sampler = BucketSampler(RATIOS[:8], plan, **options) if buckets else None
    sampler = sampler or MicroBatchSampler(8, plan, **options)
    assert sampler.steps_per_epoch == 3
    sampler.set_epoch(epoch)
    sampler.start_at(first_step)
    return list(sampler)


def test_samples_are_repeated_as_their_factors_say_each_time_under_a_key_of_its_own():
    counts, epochs = np.zeros(8), 400
    for epoch in range(epochs):
        found = indices(repeated(epoch=epoch))
        assert len(found) == 12
        counts += np.bincount(np.array(found) % 8, minlength=8)
    # An epoch of more than 12 samples is cut, one of fewer has some twice.
    assert counts / epochs == pytest.approx(FACTORS, rel=0.1)
    whole = MicroBatchSampler(2, plan_of(total_batch=4), seed=3, factors=np.array([3.0, 1.0]))
    assert sorted(indices(whole)) == [0, 1, 2, 4]  # 0, 2 and 4 are sample 0


@pytest.mark.parametrize("buckets", [False, True])
def test_repeated_samples_are_the_same_for_two_processes_and_after_a_restart(buckets):
    alone = repeated(epoch=5, buckets=buckets)
    ranks = [repeated(rank, 2, epoch=5, buckets=buckets) for rank in range(2)]
    assert [batch for turn in zip(*ranks, strict=True) for batch in turn] == alone
    assert repeated(epoch=5, first_step=2, buckets=buckets) == alone[4:]
    assert repeated(epoch=6, buckets=buckets) != alone
    plain = steps_of_two(repeated(epoch=5))
    assert list(map(sorted, steps_of_two(alone))) == list(map(sorted, plain))


def steps_of_two(micro_batches):
    return [indices(micro_batches[begin : begin + 2]) for begin in range(0, 6, 2)]


def test_an_image_has_the_largest_factor_of_its_classes():
    labels = np.array([0, 0, 1, 0, 0, 2, 0])  # class 1 is in one of five images, as is 2
    factors = repeat_factors(labels, np.array([3, 1, 1, 0, 2]), num_classes=4, threshold=0.8)
    assert factors == pytest.approx([2.0, 1.0, 1.0, 1.0, 2.0])


def test_derived_seeds_differ_and_are_reproducible():
    parts = [(a, b, c)[:length] for length in range(4) for a, b, c in product(range(3), repeat=3)]
    parts += [(0, 2**32), (2**32,), (12, 3), (1, 23), (2**64 - 1, 0)]
    uses = ("order", "augmentation", "dropout")
    seeds = {derive_seed(use, *numbers) for use in uses for numbers in parts}
    assert len(seeds) == len(uses) * len(set(parts)) == 3 * (1 + 3 + 9 + 27 + 5)
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert derive_seed("order", 42, 0) == 862324723502097677


RATIOS = [((7 * index) % 50 + 1) / 10 for index in range(50)]  # height / width, all different


def bucket_order(world_size=1):
    """Return the micro-batches of all ranks in the order of the optimizer's steps."""
    per_rank = [
        list(BucketSampler(RATIOS, plan_of(rank, world_size), seed=3)) for rank in range(world_size)
    ]
    return [batch for turn in zip(*per_rank, strict=True) for batch in turn]


def steps_of(micro_batches):
    """Return the indices of each step of four micro-batches."""
    return [indices(micro_batches[begin : begin + 4]) for begin in range(0, len(micro_batches), 4)]


def test_buckets_keep_the_samples_of_each_step():
    plain, bucketed = steps_of(global_order(1)), steps_of(bucket_order())
    assert len(bucketed) == len(plain) == 6
    assert list(map(sorted, bucketed)) == list(map(sorted, plain))
    assert bucketed != plain


def test_micro_batches_of_a_step_go_from_wide_to_tall_images():
    for step in steps_of(bucket_order()):
        shapes = [RATIOS[index] for index in step]
        assert shapes == sorted(shapes)


@pytest.mark.parametrize("world_size", [2, 4])
def test_buckets_are_the_same_for_any_world_size(world_size):
    assert bucket_order(world_size) == bucket_order()


def test_buckets_resume_at_a_step():
    resumed = BucketSampler(RATIOS, plan_of(), seed=3)
    resumed.start_at(4)
    assert list(resumed) == bucket_order()[16:]
