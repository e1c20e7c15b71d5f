"""What the program says to its user: warnings, progress, lines of a readable length, and words that messages share."""

from __future__ import annotations

import contextlib
import difflib
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm import tqdm

# what the program prints is no wider than this, whatever the width of the terminal
WIDTH = 80
# in a line that is broken, what stands between two commas stays together up to this length
UNBROKEN = 50
# seconds between two lines about progress where there is no terminal
PACE = 60.0
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"

_silences: list[bool] = []


def warn(text: str) -> None:
    """Print `warning: text` on standard error, above a progress bar where there is one."""
    if not _silences:
        tqdm.write(f"warning: {' '.join(text.split())}", file=sys.stderr)


@contextlib.contextmanager
def progress_shown(
    name: str | None, total: int, unit: str, done: int = 0, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int], Any]]:
    """Show on standard error how far the work in this block is; give a function to call with how much more is done.

    A terminal gets a bar. Elsewhere (a log) a line is printed every `PACE` seconds at most, so none about short work.
    `total` is counted in `unit`, `done` of it before the block; without a `name` nothing is shown. `clock` gives
    seconds.
    """
    if name is None or sys.stderr.isatty():
        with tqdm(None, name, total, initial=done, unit=unit, leave=False, disable=name is None) as bar:
            yield bar.update
    else:
        yield _Pace(name, total, unit, done, clock).advance


class _Pace:
    """Prints how far work is, at a steady pace."""

    def __init__(self, name: str, total: int, unit: str, done: int, clock: Callable[[], float]):
        self.name, self.total, self.unit, self.done, self.clock = name, total, unit, done, clock
        self.first, self.started = done, clock()
        self.spoke = self.started

    def advance(self, count: int) -> None:
        """Count what is done; print a line where the last one is long enough ago."""
        self.done += count
        now = self.clock()
        if now - self.spoke < PACE:
            return
        self.spoke = now
        left = (now - self.started) / (self.done - self.first) * (self.total - self.done) / 60
        where = f"{self.unit} {self.done:,} of {self.total:,}"
        print(f"{self.name}: {where}, {left:.1f} min left", file=sys.stderr, flush=True)


def wrapped(line: str) -> str:
    """Break a line that is wider than `WIDTH`, after commas where that is possible and else between words.

    What follows is indented by two more than the line. A word is never broken: a setting or path can be copied.
    """
    margin = " " * (len(line) - len(line.lstrip()))
    parts = re.split(r"(?<=[,;:]) ", line.strip())
    whole = " ".join(part.replace(" ", NO_BREAK_SPACE) if len(part) <= UNBROKEN else part for part in parts)
    options = {"break_long_words": False, "break_on_hyphens": False}
    lines = textwrap.wrap(whole, WIDTH, initial_indent=margin, subsequent_indent=margin + "  ", **options)
    return "\n".join(lines).replace(NO_BREAK_SPACE, " ")


def counted(count: int, noun: str) -> str:
    """Give a number of things in words: "1 row", "2,000 rows"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def shown(value: Any) -> str:
    """Write the value of a setting as it is typed on the command line."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def suggestion(text: str, known: Iterable[str]) -> str:
    """Write the end of an error about an unknown `text`: the most similar of the `known` names, or nothing."""
    known = list(known)
    if text in known:  # the error is about something else
        return ""
    near = difflib.get_close_matches(text, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Print no warnings in this block: of many processes, the first one speaks for all."""
    _silences.append(True)
    try:
        yield
    finally:
        _silences.pop()
