import itertools
import time
from collections import Counter
from collections.abc import Sequence

import pytest

from deformable_detr.benchmark.timing import (
    MOST_CALLS,
    SHORTEST_TURN_MS,
    Call,
    CpuClock,
    Lap,
    Task,
    clock_for,
    measure,
    order_of_round,
)


@pytest.mark.parametrize("count", range(1, 9))
def test_each_task_has_each_position_once(count: int) -> None:
    orders = [order_of_round(count, index) for index in range(count)]

    for place in range(count):
        assert sorted(order[place] for order in orders) == list(range(count))


@pytest.mark.parametrize("count", range(2, 9))
def test_each_task_follows_each_other_task_equally_often(count: int) -> None:
    pairs = Counter(
        pair
        for index in range(2 * count)
        for order in [order_of_round(count, index)]
        for pair in itertools.pairwise(order)
    )

    assert len(pairs) == count * (count - 1)
    assert set(pairs.values()) == {2}


class FakeClock:
    """Clock that takes the duration of a call from the call."""

    name = "fake"

    def time(self, calls: Sequence[Call]) -> Lap:
        durations = [call() for call in calls]
        assert all(isinstance(ms, float) for ms in durations)
        total = float(sum(durations))  # type: ignore[arg-type]
        return Lap(ms=total, wall_ms=total / 2, page_faults=3 * len(calls))


def make_task(name: str, ms: float, turns: list[str]) -> Task:
    def prepare(calls: int) -> list[Call]:
        turns.append(name)
        return [lambda: ms] * calls

    return Task(name, prepare)


def test_results_are_per_call() -> None:
    taken = measure(
        [make_task("quick", 2.0, []), make_task("slow", 300.0, [])],
        rounds=3,
        clock=FakeClock(),
        report=lambda text: None,
    )

    assert taken["quick"].ms == pytest.approx([2.0] * 3)
    assert taken["quick"].wall_ms == pytest.approx([1.0] * 3)
    assert taken["quick"].page_faults == pytest.approx([3.0] * 3)
    assert taken["slow"].ms == [300.0] * 3


@pytest.mark.parametrize(("ms", "calls"), [(300.0, 1), (2.0, SHORTEST_TURN_MS), (1e-9, MOST_CALLS)])
def test_short_calls_are_repeated_for_a_long_turn(ms: float, calls: int) -> None:
    taken = measure(
        [make_task("one", ms, [])], rounds=1, clock=FakeClock(), report=lambda text: None
    )

    assert taken["one"].calls == calls  # by the shorter of both clocks, half of ms


def test_order_of_tasks_differs_between_rounds() -> None:
    turns: list[str] = []
    tasks = [make_task(name, 100.0, turns) for name in "abcd"]

    measure(tasks, rounds=4, clock=FakeClock(), report=lambda text: None)

    rounds = turns[4:]  # after one warm-up call each
    orders = ["".join(rounds[start : start + 4]) for start in range(0, 16, 4)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list("abcd") for order in orders)


def test_cpu_clock_does_not_count_sleep_but_the_wall_clock_does() -> None:
    lap = CpuClock().time([lambda: time.sleep(0.05)])

    assert lap.wall_ms >= 50
    assert lap.ms < lap.wall_ms / 2


def test_cpu_clock_counts_work() -> None:
    def work() -> None:
        begin = time.process_time()
        while time.process_time() - begin < 0.02:
            pass

    assert CpuClock().time([work, work]).ms >= 40


def test_gpu_has_its_own_clock() -> None:
    assert clock_for("cpu").name == "process CPU time, all threads"
    assert clock_for("cuda").name == "CUDA events"
