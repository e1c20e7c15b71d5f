"""Runs without what takes longer than a tiny run itself: its pictures and its probes of leakage."""

from __future__ import annotations

import contextlib
from unittest import mock

from model.evaluation.evaluator import Evaluator
from model.runs.run import Run


def _nothing(*arguments, **options):
    return {}


@contextlib.contextmanager
def light_runs(pictures: bool = False, probes: bool = False):
    """Leave out of runs what is not asked for."""
    with contextlib.ExitStack() as stack:
        if not pictures:
            stack.enter_context(mock.patch.object(Run, "draws", False))
        if not probes:
            stack.enter_context(mock.patch.object(Evaluator, "leakage", _nothing))
        yield
