"""What the program says to its user: warnings, and words that messages share."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

_silences: list[bool] = []


def warn(text: str) -> None:
    """Print `warning: text` on standard error, above a progress bar where there is one."""
    if not _silences:
        tqdm.write(f"warning: {' '.join(text.split())}", file=sys.stderr)


def counted(count: int, noun: str) -> str:
    """Give a number of things in words: "1 row", "2,000 rows"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def shown(value: Any) -> str:
    """A setting's value as it is typed on the command line."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def suggestion(text: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown `text`: the one of the `known` names that is most like it, or nothing."""
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
