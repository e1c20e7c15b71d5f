"""SIGINT and SIGTERM wait for a place from which a run can go on, and get their former meaning back."""

from __future__ import annotations

import os
import shlex
import signal
import sys

import pytest

from model.runs.processes import ALONE, Processes
from model.training.signals import Stopped, StopSignals, resume_command

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


def test_the_command_that_goes_on_is_the_one_that_was_typed(monkeypatch, make_config):
    config = make_config(run_name="it's here; now")
    typed = ["main.py", "--epochs=3", "--output_dir=a b/$HOME"]
    monkeypatch.setattr(sys, "argv", typed)
    command = resume_command(config, ALONE)
    assert shlex.split(command) == [sys.executable, *typed, "--run_name=it's here; now", "--resume"]
    assert "\n" not in command
    # what was said already is not said again
    monkeypatch.setattr(sys, "argv", [*typed, "--resume"])
    assert resume_command(config, ALONE).count("--resume") == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    many = shlex.split(resume_command(config, Processes(0, 2)))
    assert many[1:4] == ["-m", "torch.distributed.run", "--nproc_per_node=2"] and many[4:7] == typed
