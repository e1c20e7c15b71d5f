"""What the program says: lines of a readable length, and progress at a steady pace."""

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.messages import PACE, WIDTH, progress_shown, wrapped


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@given(st.lists(st.text("abc=,;: ", min_size=1, max_size=70), max_size=12), st.integers(0, 8))
def test_a_wrapped_line_keeps_its_words_and_fits(parts, margin):
    line = " " * margin + ", ".join(parts).strip()
    lines = wrapped(line).splitlines()
    assert " ".join(" ".join(lines).split()) == " ".join(line.split())
    assert all(len(part) <= WIDTH or len(part.split()) == 1 for part in lines)
    assert all(part.startswith(" " * (margin + 2)) for part in lines[1:])


def test_a_line_is_broken_between_settings_and_not_inside_one():
    settings = [f"name_of_a_setting_{number}=1,2,3" for number in range(6)] + ["other or not specified 711"] * 4
    lines = wrapped("  data set: " + ", ".join(settings)).splitlines()
    assert len(lines) > 3 and all(line.endswith(",") for line in lines[:-1])
    path = "/a-long/path" * 10
    assert path in wrapped(f"written to {path}").splitlines()[-1]


def test_a_log_gets_a_line_a_minute(capsys):
    clock = Clock()
    with progress_shown("epoch 3", 400, "step", done=100, clock=clock) as advance:
        for _ in range(300):
            clock.now += 0.5
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "epoch 3: step 220 of 400, 1.5 min left",
        "epoch 3: step 340 of 400, 0.5 min left",
    ]


@pytest.mark.parametrize(("name", "seconds"), [("epoch 3", PACE / 10), (None, 10 * PACE)])
def test_short_or_nameless_work_is_silent(capsys, name, seconds):
    clock = Clock()
    with progress_shown(name, 10, "step", clock=clock) as advance:
        for _ in range(9):
            clock.now += seconds
            advance(1)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_shown("epoch 3", 10, "step") as advance:
        advance(10)
    assert "\r" in terminal.getvalue() and "epoch 3" in terminal.getvalue()
