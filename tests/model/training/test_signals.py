"""SIGINT and SIGTERM wait for a place from which a run can go on, and get their former meaning back."""

from __future__ import annotations

import os
import signal

import pytest

from model.runs.processes import ALONE
from model.training.signals import Stopped, StopSignals

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def own_handlers():
    """Handlers of this test's own before, and those of the process after it."""
    own = {number: (lambda *arguments: None) for number in NUMBERS}
    former = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield own
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_waits_for_the_check_and_then_says_how_to_go_on(number):
    with StopSignals(ALONE, "go on so") as stop:
        stop.check()
        os.kill(os.getpid(), number)
        with pytest.raises(Stopped, match="go on so") as caught:
            stop.check()
    assert caught.value.exit_code == 128 + number


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_ends_at_once_what_is_done_again(number):
    with StopSignals(ALONE, "") as stop:
        with pytest.raises(Stopped), stop.at_once():
            os.kill(os.getpid(), number)
            pytest.fail("went on")
        # it stays known, so that no next piece of work begins
        with pytest.raises(Stopped), stop.at_once():
            pytest.fail("began")


def test_outside_of_the_work_that_is_done_again_a_signal_waits():
    with StopSignals(ALONE, "") as stop:
        with stop.at_once():
            pass
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("end", [None, ValueError, Stopped])
def test_former_handlers_are_back_however_the_work_ends(own_handlers, end):
    try:
        with StopSignals(ALONE, ""):
            assert all(signal.getsignal(number) != own_handlers[number] for number in NUMBERS)
            if end is not None:
                raise end(*([signal.SIGTERM, ""] if end is Stopped else []))
    except (ValueError, Stopped):
        assert end is not None
    assert {number: signal.getsignal(number) for number in NUMBERS} == own_handlers
