"""The surroundings that must not end a run: the console, and what torchrun left in the environment."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
TORCHRUN = frozenset({*_RANKS, "MASTER_ADDR", "MASTER_PORT"})


class _Lenient(io.FileIO):
    """A file descriptor to write to; errors do not count, as nobody reads there any more, or the disk is full."""

    def write(self, data) -> int:
        """Write what can be written; say that all was."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def make_console_lenient() -> None:
    """Replace sys.stdout and sys.stderr by streams to the same place that raise nothing when they cannot be written.

    A character that the place cannot show becomes a question mark. What a run finds is in its files; a closed pipe, a
    lost terminal or an old encoding is no reason to lose it.
    """
    sys.stdout, sys.stderr = _lenient(sys.stdout), _lenient(sys.stderr)


def _lenient(stream: TextIO | None) -> TextIO:
    if stream is None:  # its descriptor was closed before the program began
        return open(os.devnull, "w", encoding="utf-8")
    stream.flush()
    raw = _Lenient(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="replace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def torchrun_ranks() -> dict[str, int] | None:
    """Give RANK, LOCAL_RANK and WORLD_SIZE as torchrun set them; None where it did not start this process.

    Where only some of its variables are set, or one is no number, they were left by something else.
    """
    values = {name: os.environ.get(name, "") for name in _RANKS}
    if not (os.environ.keys() >= TORCHRUN and all(value.isdecimal() for value in values.values())):
        return None
    ranks = {name: int(value) for name, value in values.items()}
    return ranks if ranks["RANK"] < ranks["WORLD_SIZE"] else None
