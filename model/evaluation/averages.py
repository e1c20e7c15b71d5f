"""Means over the phases of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from data.protocols.base import Protocol
from model.evaluation.keys import CHANCE, EXCESS, ListKey, MetricKey, list_keys

Results = Mapping[str, Mapping[str, float]]


def averaged(results: Results, protocol: Protocol) -> dict[str, dict[str, float]]:
    """Compute `Protocol.averages` of `results` (list -> metric -> value), where every phase of an average has the list.

    The mean of a gap is one of absolute values (Decision 62). Parts whose mean is not that of the means (a
    standard deviation, a p, an interval) are left out.
    """
    names = {ListKey.parse(name, protocol.many_phases, protocol.many_tasks): name for name in results}
    found: dict[str, dict[str, float]] = {}
    for average, phases in protocol.averages.items():
        for key in [key for key in names if key.phase == phases[0]]:
            lists = [names.get(replace(key, phase=phase)) for phase in phases]
            if None not in lists:
                found[str(replace(key, phase=average))] = _mean([results[name] for name in lists])
    return found


def averages_of(results: Results, protocol: Protocol) -> list[ListKey]:
    """List the run's own lists among `results` that are means over phases, which stand for those of the phases."""
    lists = list_keys(results, protocol.many_phases, protocol.many_tasks)
    return [key for key in lists if key.phase in protocol.averages]


def _mean(lists: list[Mapping[str, float]]) -> dict[str, float]:
    shared = [name for name in lists[0] if all(name in metrics for metrics in lists)]
    kept = [name for name in shared if MetricKey.parse(name).part in ("", CHANCE, EXCESS)]
    return {name: float(np.mean([metrics[name] for metrics in lists])) for name in kept}
