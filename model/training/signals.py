"""SIGINT and SIGTERM: end a run where it can go on, and say how."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator

from model.runs.config import Config
from model.runs.processes import Processes


def resume_command(config: Config, processes: Processes) -> str:
    """This program's command line, made to go on with the run: ready to paste where it was typed."""
    command = [sys.executable]
    if processes.world > 1:
        command += [
            "-m",
            "torch.distributed.run",
            f"--nproc_per_node={os.environ.get('LOCAL_WORLD_SIZE', processes.world)}",
        ]
    # of a flag that is given twice the last one counts
    wanted = [f"--run_name={config.run_name}", "--resume"]
    return shlex.join([*command, *sys.argv, *(flag for flag in wanted if flag not in sys.argv)])


class Stopped(BaseException):
    """A signal ended the run at a place from which it can go on; not an Exception, as no part may swallow it."""

    def __init__(self, number: int, command: str):
        """`command` goes on from here."""
        super().__init__(f"stopped by {signal.Signals(number).name}; this goes on from here: {command}")
        self.exit_code = 128 + number


class StopSignals:
    """Within this context SIGINT and SIGTERM wait for `check`, which raises `Stopped`; in `at_once` they raise it.

    Many `processes` stop at the same `check`, and never in between: one that left would leave the others waiting.
    """

    def __init__(self, processes: Processes, command: str):
        """`command` is what `Stopped` tells the user to go on with."""
        self._processes, self._command = processes, command
        self._number, self._at_once = 0, False

    def __enter__(self) -> StopSignals:
        self._previous = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame) -> None:
        self._number = number
        if self._at_once:
            raise Stopped(number, self._command)

    def check(self) -> None:
        """Raise `Stopped` if a signal has come to any process."""
        number = self._processes.any_of(self._number)
        if number:
            raise Stopped(number, self._command)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise `Stopped` wherever a signal arrives: for work that is done again when the run goes on."""
        self._at_once = self._processes.world == 1
        try:
            self.check()
            yield
        finally:
            self._at_once = False
