import os
import signal
import threading

import pytest

from deformable_detr.engine.run.stopping import PreemptedError, StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_asks_to_stop_and_does_nothing_else(number: signal.Signals) -> None:
    with StopRequest() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        with pytest.raises(PreemptedError, match=f"asked to stop by {number.name}"):
            stop.check()


def test_afterwards_signals_do_what_they_did_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_one_that_does_not_listen_is_never_asked() -> None:
    StopRequest().check()
    assert list(StopRequest().check_between([1, 2])) == [1, 2]


def test_items_end_where_the_signal_came() -> None:
    seen = []

    def ask_at(stop: StopRequest, last: int) -> None:
        for item in stop.check_between(range(5)):
            seen.append(item)
            if item == last:
                os.kill(os.getpid(), signal.SIGTERM)

    with StopRequest() as stop, pytest.raises(PreemptedError):
        ask_at(stop, last=2)
    assert seen == [0, 1, 2]


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter() -> None:
        with StopRequest() as stop:
            stop.check()
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]
