"""What the program says to its user: warnings, and numbers of things."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from tqdm import tqdm

_silences: list[bool] = []


def warn(text: str) -> None:
    """Print `warning: text` on standard error, above a progress bar where there is one."""
    if not _silences:
        tqdm.write(f"warning: {' '.join(text.split())}", file=sys.stderr)


def counted(count: int, noun: str) -> str:
    """Give a number of things in words: "1 row", "2,000 rows"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Print no warnings in this block: of many processes, the first one speaks for all."""
    _silences.append(True)
    try:
        yield
    finally:
        _silences.pop()
