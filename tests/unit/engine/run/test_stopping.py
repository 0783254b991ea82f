import os
import signal
import threading

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
        with StopRequest() as stop:
            stop.check()
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]
