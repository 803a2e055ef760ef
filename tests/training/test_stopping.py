"""SIGTERM stops training at a step from which it can be resumed, once, and only while a trainer runs."""

import os
import signal
import threading
from types import SimpleNamespace

import pytest
from transformers import TrainerControl

from lab_utils.training.stopping import StopOnSIGTERM

ONE_PROCESS = SimpleNamespace(device="cpu", world_size=1)


@pytest.fixture(autouse=True)
def nothing_requested(monkeypatch):
    monkeypatch.setattr(StopOnSIGTERM, "requested", False)


def steps_until_stop(stop: StopOnSIGTERM, signal_at: int, max_steps: int) -> int | None:
    """Go through the steps of a run, with SIGTERM during step `signal_at`; return where it stops."""
    for step in range(1, max_steps + 1):
        if step == signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        control = TrainerControl()
        stop.on_step_end(ONE_PROCESS, SimpleNamespace(global_step=step, max_steps=max_steps), control)
        assert control.should_save == control.should_training_stop == stop.stopped
        if control.should_training_stop:
            return step
    return None


@pytest.mark.parametrize(
    ("every", "signal_at", "max_steps", "stops_at"),
    [(1, 3, 10, 3), (4, 3, 10, 4), (4, 5, 10, 8), (4, 9, 10, 10), (4, 10, 10, 10), (3, 0, 10, None)],
)
def test_it_stops_at_the_next_step_that_can_be_resumed(every, signal_at, max_steps, stops_at):
    stop = StopOnSIGTERM(every)
    with stop.listening():
        assert steps_until_stop(stop, signal_at, max_steps) == stops_at


def test_a_request_is_answered_once():
    first, second = StopOnSIGTERM(1), StopOnSIGTERM(1)
    with first.listening():
        assert steps_until_stop(first, 2, 5) == 2
    with second.listening():
        assert steps_until_stop(second, 0, 5) is None


def test_a_signal_after_the_last_step_stops_the_next_stage():
    first, second = StopOnSIGTERM(1), StopOnSIGTERM(2)
    with first.listening():
        assert steps_until_stop(first, 0, 5) is None
        os.kill(os.getpid(), signal.SIGTERM)
    with second.listening():
        assert steps_until_stop(second, 0, 5) == 2


def test_the_handler_of_before_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError), StopOnSIGTERM(1).listening():
        assert signal.getsignal(signal.SIGTERM) != before
        raise ValueError("training failed")
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_another_thread_no_handler_is_installed():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with StopOnSIGTERM(1).listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
