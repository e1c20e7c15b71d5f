"""Standard output and standard error that cannot end a run."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO


class _Lenient(io.FileIO):
    """A file descriptor to write to, whose errors do not count: nobody reads it any more, or its disk is full."""

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
