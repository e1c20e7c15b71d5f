"""SIGINT and SIGTERM: a run ends where it can be resumed, and says how."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping

from model.runs.config import Config
from model.runs.processes import Processes


def torchrun_options(environment: Mapping[str, str]) -> list[str]:
    """Give the options of torchrun that can be read from `environment`: machines, and processes on each."""
    options = [f"--nproc_per_node={environment['LOCAL_WORLD_SIZE']}"]
    if int(environment.get("GROUP_WORLD_SIZE", 1)) > 1:
        variables = {"nnodes": "GROUP_WORLD_SIZE", "node_rank": "GROUP_RANK"}
        variables |= {"master_addr": "MASTER_ADDR", "master_port": "MASTER_PORT"}
        options += [f"--{option}={environment[name]}" for option, name in variables.items()]
    return options


def resume_command(config: Config, processes: Processes) -> str:
    """Give this program's command line with what resumes the run, ready to paste where it was typed."""
    command = [sys.executable]
    if processes.world > 1:
        command += ["-m", "torch.distributed.run", *torchrun_options(os.environ)]
    # where a flag is given twice, the last one counts
    wanted = [f"--run_name={config.run_name}", "--resume"]
    return shlex.join([*command, *sys.argv, *(flag for flag in wanted if flag not in sys.argv)])


class Stopped(BaseException):
    """The end of a run by a signal, where it can be resumed; it is no Exception, so that no part catches it."""

    def __init__(self, number: int, command: str):
        """Say that signal `number` ended the run, and that `command` resumes it."""
        super().__init__(f"stopped by {signal.Signals(number).name}; this goes on from here: {command}")
        self.exit_code = 128 + number


class StopSignals:
    """Signals that wait: SIGINT and SIGTERM raise `Stopped` at the next `check`, or at once within `at_once`.

    Several `processes` stop at the same `check` and never in between: if one left alone, the others would wait for it.
    """

    def __init__(self, processes: Processes, command: str):
        """Get ready; `command` is what `Stopped` tells the user to type in order to resume."""
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
        """Raise `Stopped` as soon as a signal arrives: for work that a resumed run does again."""
        self._at_once = self._processes.world == 1
        try:
            self.check()
            yield
        finally:
            self._at_once = False
