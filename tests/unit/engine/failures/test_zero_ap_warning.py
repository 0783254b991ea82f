from typing import Any

import pytest

from deformable_detr.engine.failures.zero_ap import ap_stays_zero


def history(losses: list[float], ap50s: list[float]) -> list[dict[str, Any]]:
    """Return records with an evaluation after every second record of the loss."""
    records: list[dict[str, Any]] = []
    for number, loss in enumerate(losses):
        records.append({"kind": "train", "total": loss})
        if number % 2:
            records.append({"kind": "evaluation", "AP50": ap50s[number // 2]})
    return records


def test_a_loss_that_falls_while_ap_stays_zero_is_reported_once() -> None:
    losses = [10.0, 9.0, 7.0, 6.0, 5.0, 4.0]
    assert not ap_stays_zero(history(losses[:2], [0.0]))
    assert ap_stays_zero(history(losses[:4], [0.0, 0.0005]))
    assert not ap_stays_zero(history(losses, [0.0, 0.0005, 0.0]))


def test_the_warning_comes_once_the_loss_has_fallen_enough() -> None:
    losses = [10.0, 9.9, 9.8, 9.7, 7.0, 6.0]
    assert not ap_stays_zero(history(losses[:4], [0.0, 0.0]))
    assert ap_stays_zero(history(losses, [0.0, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("losses", "ap50s"),
    [
        ([10.0, 9.0, 7.0, 6.0], [0.0, 0.002]),
        ([10.0, 9.0, 8.5, 8.1], [0.0, 0.0]),
        ([10.0, 2.0], [0.0]),
        ([], []),
    ],
)
def test_a_run_that_learns_or_has_just_begun_gets_no_warning(
    losses: list[float], ap50s: list[float]
) -> None:
    assert not ap_stays_zero(history(losses, ap50s))
