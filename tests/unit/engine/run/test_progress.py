import io
import logging
import re
import time

import pytest
from rich.console import Console

from deformable_detr.engine.run.progress import Tracked, TrainingProgress


def test_without_a_terminal_a_report_is_one_plain_line(caplog: pytest.LogCaptureFixture) -> None:
    console = Console(file=io.StringIO())
    with (
        caplog.at_level(logging.INFO),
        TrainingProgress(first_step=0, last_step=20, console=console) as progress,
    ):
        progress.advance(10)
        progress.report(10, {"total": 3.14159, "lr": 2e-4, "class_error": 50.0})
    assert len(caplog.messages) == 1
    pattern = r"step 10 of 20, \S+ s per step, 0:00:00 left, total 3.142, lr 0.0002"
    assert re.fullmatch(pattern, caplog.messages[0])
    assert console.file.getvalue() == ""


def test_without_a_terminal_a_long_operation_is_a_plain_line_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) / 2)  # each look takes 5 s
    with caplog.at_level(logging.INFO):
        assert list(Tracked("abcdefghijkl", "evaluating")) == list("abcdefghijkl")
    assert caplog.messages[0] == "evaluating: 6 of 12, 7.5 s each, 0:00:45 left"
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("width", [40, 80, 160])
def test_on_a_terminal_a_line_has_steps_rate_and_time_first(
    width: int, caplog: pytest.LogCaptureFixture
) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    with (
        caplog.at_level(logging.INFO),
        TrainingProgress(first_step=5, last_step=20, console=console) as progress,
    ):
        progress.report(10, {"total": 3.14159, "loss_class": 1.0, "loss_l1": 0.5, "lr": 2e-4})
        progress.advance(10)
        progress.say("AP 0.5")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", shown) if line.startswith("training ")]
    assert max(map(len, lines)) <= min(width - 1, 78)
    assert re.match(r"training 10/20  \S+/s", lines[-1])
    assert "/s  0:00:00 left" in lines[-1] or width < 80
    assert ("#####-----  total 3.142" in lines[-1]) == (width >= 80)
    assert "AP 0.5" in shown
    assert caplog.messages == []
