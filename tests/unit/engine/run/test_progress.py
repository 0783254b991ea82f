import io
import logging

import pytest
from rich.console import Console

from deformable_detr.engine.run.progress import TrainingProgress


def test_without_a_terminal_a_report_is_one_plain_line(caplog: pytest.LogCaptureFixture) -> None:
    console = Console(file=io.StringIO())
    with (
        caplog.at_level(logging.INFO),
        TrainingProgress(first_step=0, last_step=20, console=console) as progress,
    ):
        progress.advance(10)
        progress.report(10, {"total": 3.14159, "lr": 2e-4, "class_error": 50.0})
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("step 10 of 20, total 3.142, lr 0.0002, ")
    assert caplog.messages[0].endswith("s per step, 0:00:00 left")
    assert console.file.getvalue() == ""


def test_on_a_terminal_the_bar_shows_step_and_values(caplog: pytest.LogCaptureFixture) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=150)
    with (
        caplog.at_level(logging.INFO),
        TrainingProgress(first_step=5, last_step=20, console=console) as progress,
    ):
        progress.report(10, {"total": 3.14159})
        progress.advance(10)
        progress.say("AP 0.5")
    assert "10/20" in console.file.getvalue()
    assert "total 3.142" in console.file.getvalue()
    assert "AP 0.5" in console.file.getvalue()
    assert caplog.messages == []
