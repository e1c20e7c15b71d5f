"""Stop a run at a chosen call, and what it leaves."""

from __future__ import annotations

import os
import signal

from tests.support.runs import result_bytes

# seven steps an epoch; a discriminator is made anew within each
FAIR = {
    "enable_fairness": True,
    "fairness_sampling": True,
    "adversary_input": "pair",
    "method_option": ["reinitialise_every=3", "discriminator_widths=4,8"],
}


class CutOff(Exception):
    """Ends a run as a crash does: nothing is saved on the way out."""


def outputs(folder):
    names = ("recommendations.parquet", "ranks.parquet", "items.parquet", "per_user.parquet", "metrics.jsonl")
    return {"result.json": result_bytes(folder), **{name: (folder / "run" / name).read_bytes() for name in names}}


def at_call(number, action, function):
    """`function`, with `action` called before its call of that number (from 1) and never again."""
    calls = 0

    def wrapped(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == number:
            action()
        return function(*arguments, **options)

    return wrapped


def crash():
    raise CutOff


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
