from dataclasses import replace

from deformable_detr.engine.failures.watchdog import Sign, Watchdog, name_culprits

WAITING = [Sign(rank, "host", 100 + rank, 5, "computing", "c10d.py:1", True) for rank in range(3)]


def later(*changes: dict[str, object]) -> list[Sign | None]:
    """Return the signs a few beats later, while all processes continue to publish them."""
    given = [*changes, *({} for _ in range(len(WAITING) - len(changes)))]
    return [
        replace(sign, **{"beat": 9, **change}) for sign, change in zip(WAITING, given, strict=True)
    ]


def test_a_rank_that_is_not_waiting_is_named() -> None:
    after = later({}, {}, {"is_waiting": False, "doing": "reading", "at": "coco.py:7"})
    assert name_culprits(WAITING, after, own=WAITING[0]) == (
        "rank 2 (host, pid 102) keeps the others waiting: it is reading, at coco.py:7"
    )


def test_a_silent_rank_is_named_before_a_busy_one() -> None:
    after = later({}, {"beat": 5}, {"is_waiting": False})
    assert name_culprits(WAITING, after, own=WAITING[0]) == (
        "rank 1 (host, pid 101) has died or is stopped: it was computing, at c10d.py:1"
    )


def test_a_rank_that_has_ended_is_named_with_its_error() -> None:
    after = later({}, {"end": "ValueError: no"}, {"is_waiting": False})
    assert name_culprits(WAITING, after, own=WAITING[0]) == (
        "rank 1 (host, pid 101) has ended: ValueError: no"
    )


def test_a_rank_that_stalls_itself_names_no_other() -> None:
    own = replace(WAITING[0], is_waiting=False)
    for after in (later({}, {"end": "RuntimeError: timed out"}), [None] * 3):
        assert name_culprits(WAITING, after, own=own).startswith("rank 0 (host, pid 100) keeps")


def test_a_rank_that_died_before_its_first_beat_is_named_without_a_place() -> None:
    before = [WAITING[0], replace(WAITING[1], beat=0, doing="starting", at=""), WAITING[2]]
    after = later({}, {"beat": 0, "doing": "starting", "at": ""})
    assert name_culprits(before, after, own=WAITING[0]).endswith(
        "has died or is stopped: it was starting"
    )


def test_an_unreadable_store_is_reported() -> None:
    assert "the launcher, is gone" in name_culprits([None] * 3, [None] * 3, own=WAITING[0])


def test_no_rank_is_named_if_all_are_waiting() -> None:
    assert name_culprits(WAITING, later(), own=WAITING[1]) == ""


def test_in_a_single_process_it_only_iterates() -> None:
    with Watchdog(0.001) as watchdog:
        watched = watchdog.over([1, 2, 3], "a batch")
        assert [list(watched), list(watched)] == [[1, 2, 3]] * 2
