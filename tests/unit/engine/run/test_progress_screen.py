"""Progress on the screen of a terminal."""

import re
import sys

import pytest

if sys.platform == "win32":
    pytest.skip("there are no pseudo-terminals", allow_module_level=True)

from helpers.screen import Screen, Terminal

PROGRAM = """
import logging, sys, time
from deformable_detr.cli.terminal import set_up_output
from deformable_detr.engine.run.progress import Tracked, TrainingProgress
set_up_output()
values = {"total": 3.14159, "loss_class": 1.0, "loss_l1": 0.5, "loss_giou": 1.5, "lr": 2e-4}
def steps(*numbers):
    for step in numbers:
        time.sleep(0.3)
        progress.advance(step)
    sys.stdin.readline()
with TrainingProgress(first_step=0, last_step=40) as progress:
    progress.report(0, values)
    steps(1, 2)
    steps(3)
    steps(4)
    steps(5)
    logging.warning("a warning of a log")
    logging.warning("a long warning, " + 4 * "which is long, " + "and stays")
    steps(6)
    for one in Tracked(range(8), "evaluating"):
        time.sleep(0.3)
        if one == 4:
            print("a line of a library", file=sys.stderr)
            sys.stdin.readline()
    kept = sys.stderr
    progress.say("step 6: AP 0.500")
    steps(7)
print("late", file=kept)
logging.warning("the end")
sys.stdin.readline()
"""


@pytest.mark.parametrize("reflows", [True, False])
def test_the_line_is_readable_at_any_width_and_leaves_nothing_behind(reflows: bool) -> None:
    """Nothing is left of a line after a resize, a log line or an evaluation."""
    long = "a long warning, which is long, which is long, which is long, which is long, and stays"
    warnings = ["a warning of a log", long[:80].rstrip(), long[80:]]
    with Terminal(PROGRAM, 80, reflows=reflows) as terminal:
        for step, width in ((2, 80), (3, 50), (4, 100), (5, 160)):
            terminal.resize(width)
            [line] = terminal.wait_for(f"training {step}/40")
            assert re.match(rf"training {step}/40  [\d.]+/s  0:00:\d\d left", line)
            assert ("total 3.142" in line) == (width >= 80)
            assert len(line) < width
            terminal.go_on()
        terminal.resize(80)
        *kept, line = terminal.wait_for("training 6/40")
        assert kept == warnings
        terminal.go_on()

        terminal.wait_for("a line of a library")
        kept = terminal.wait_for("evaluating 4/8")
        assert kept[:-1] == [*warnings, "a line of a library"]
        assert re.match(r"evaluating 4/8  [\d.]+/s  0:00:\d\d left  #####-----", kept[-1])
        terminal.go_on()

        *kept, line = terminal.wait_for("training 7/40")
        assert kept == [*warnings, "a line of a library", "step 6: AP 0.500"]
        terminal.go_on()
        *kept, line, late, last = terminal.wait_for("the end")
        assert kept == [*warnings, "a line of a library", "step 6: AP 0.500"]
        assert line.startswith("training 7/40")
        assert (late, last) == ("late", "the end")


def test_the_screen_of_these_tests_breaks_lines_as_a_terminal_does() -> None:
    screen = Screen(10)
    screen.feed("0123456789abc\r\nxyz\rX")
    assert screen.lines == ["0123456789", "abc", "Xyz"]
    screen.resize(6)
    assert screen.lines == ["012345", "6789ab", "c", "Xyz"]
    screen.feed("Y\x1b[A\x1b[2K\x1b[A\r\x1b[K!")
    assert screen.lines == ["012345", "!", "", "XYz"]
    screen.resize(20)
    screen.feed("\x1b[J")
    assert screen.lines == ["012345!"]
