import os
import signal
import threading
from contextlib import suppress

import pytest

from deformable_detr.engine.run.stopping import PreemptedError, StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_only_requests_a_stop(number: signal.Signals) -> None:
    with StopRequest() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        with pytest.raises(PreemptedError, match=f"asked to stop by {number.name}"):
            stop.check()


def test_previous_signal_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_request_outside_its_context_never_stops() -> None:
    StopRequest().check()
    assert list(StopRequest().check_between([1, 2])) == [1, 2]


def test_items_end_at_the_signal() -> None:
    seen = []

    def ask_at(stop: StopRequest, last: int) -> None:
        for item in stop.check_between(range(5)):
            seen.append(item)
            if item == last:
                os.kill(os.getpid(), signal.SIGTERM)

    with StopRequest() as stop, pytest.raises(PreemptedError):
        ask_at(stop, last=2)
    assert seen == [0, 1, 2]


def test_signals_are_not_handled_outside_the_main_thread() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter() -> None:
        with StopRequest() as stop, stop.taking_interrupts():
            stop.check()
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_first_interrupt_is_a_request_and_a_second_one_ends_at_once(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop, suppress(PreemptedError), stop.taking_interrupts():
        interrupt()
        with pytest.raises(PreemptedError, match=r"asked to stop by Ctrl-C \(SIGINT\)"):
            stop.check()
        line = "stopping after this step, and saving; Ctrl-C again ends at once without saving\n"
        assert capfd.readouterr().err == line
        with pytest.raises(KeyboardInterrupt):
            interrupt()
        stop.check()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_ends_at_once_where_there_is_nothing_to_save() -> None:
    with StopRequest() as stop:
        with pytest.raises(KeyboardInterrupt):
            interrupt()
        with suppress(PreemptedError), stop.taking_interrupts():
            interrupt()
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            interrupt()


def test_an_interrupt_after_the_last_step_is_not_lost() -> None:
    with StopRequest() as stop:
        late = stop.taking_interrupts()
        late.__enter__()
        interrupt()
        with pytest.raises(KeyboardInterrupt):
            late.__exit__(None, None, None)


def test_an_ignored_interrupt_stays_ignored() -> None:
    """A shell script starts background jobs so; Ctrl-C means the script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop, stop.taking_interrupts():
            interrupt()
            stop.check()
    finally:
        signal.signal(signal.SIGINT, before)
