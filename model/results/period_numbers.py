"""The numbers behind the picture over phases: accuracy and the gap between user groups, of protocols that test several.

A *phase* is one of those that are tested; the summaries that a protocol makes over its phases are none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.protocols.base import Protocol
from model.evaluation.keys import CHANCE, CHANCE_STD, ListKey, MetricKey, key
from model.evaluation.metric_kinds import PHASES, SPREAD
from model.evaluation.metric_table import shown_in
from model.results.pareto import CENTRAL
from model.results.picture_numbers import user_intervals
from model.results.user_tables import PER_USER

# more columns of panels are too narrow to read
MOST_TASKS = 2
NAN = (np.nan, np.nan)

# list -> metric -> value, and list -> metric -> low and high
Results = Mapping[str, Mapping[str, float | None]]
Intervals = Mapping[str, Mapping[str, tuple[float, float]]]


@dataclass(frozen=True)
class Periods:
    """The names of the `phases` that are tested and of the `tasks` that keys say ("": they say none), in order."""

    phases: tuple[str, ...]
    tasks: tuple[str, ...]

    @classmethod
    def of(cls, protocol: Protocol) -> Periods:
        """Read them off a protocol."""
        tested = [phase for phase in protocol.phases if phase.tests]
        tasks = dict.fromkeys(task.name for phase in tested for task in phase.tests)
        return cls(tuple(phase.name for phase in tested), tuple(tasks) if protocol.many_tasks else ("",))

    @classmethod
    def read(cls, result: Mapping[str, Any]) -> Periods | None:
        """Read them off a run's result.json; None of a protocol of one phase."""
        found = result.get("periods")
        return None if found is None else cls(tuple(found["phases"]), tuple(found["tasks"]))

    def as_json(self) -> dict[str, tuple[str, ...]]:
        """Give what `read` reads."""
        return {"phases": self.phases, "tasks": self.tasks}

    def list_key(self, name: str) -> ListKey:
        """Read the name of a list, as `Series.key` has it."""
        return replace(ListKey.parse(name, True, self.tasks != ("",)), phase="", task="")

    def lists(self, of: ListKey, task: str) -> list[str]:
        """Give the names of the lists `of` a control (or of a yardstick) in each phase."""
        return [str(replace(of, phase=phase, task=task)) for phase in self.phases]


@dataclass(frozen=True)
class Series:
    """What a line is made of: the lists, those of `key` in each phase, and their `results` and `intervals`."""

    key: ListKey
    results: Results
    intervals: Intervals


@dataclass(frozen=True)
class Line:
    """A metric of one series by phase, all `[P]`: `values`, their intervals `low` to `high`, the mean `chance` of its
    chance level and the `top`, which labels permuted among the users exceed in 2.5 % of cases. NaN: not known."""

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    chance: np.ndarray
    top: np.ndarray


# task -> metric -> name of a series -> its line
Panels = Mapping[str, Mapping[MetricKey, Mapping[str, Line]]]


def metrics_by_phase(k: int, attribute: str) -> list[MetricKey]:
    """List what is drawn: NDCG, and how far it lies apart between the groups of `attribute`."""
    spreads = [row.name for row in shown_in(PHASES) if row.kind == SPREAD and row.bounds[0] == 0]
    return [MetricKey("ndcg", k), *(MetricKey("ndcg", k, attribute, spread=name) for name in spreads)]


def panels_of(periods: Periods, series: Mapping[str, Series], metrics: Sequence[MetricKey]) -> Panels:
    """Make the lines of `series` (by name) under the first `MOST_TASKS` tasks that two phases or more ask."""
    panels: dict[str, dict[MetricKey, dict[str, Line]]] = {}
    for task in periods.tasks:
        found = {
            metric: {name: _line(one, periods.lists(one.key, task), metric) for name, one in series.items()}
            for metric in metrics
        }
        found = {
            metric: {name: line for name, line in lines.items() if _known(line)} for metric, lines in found.items()
        }
        if found := {metric: lines for metric, lines in found.items() if lines}:
            panels[task] = found
    return dict(list(panels.items())[:MOST_TASKS])


def _known(line: Line) -> bool:
    return np.isfinite(line.values).sum() > 1


def _line(series: Series, lists: Sequence[str], metric: MetricKey) -> Line:
    def by_phase(of: MetricKey) -> np.ndarray:
        return np.array([series.results.get(name, {}).get(str(of)) for name in lists], dtype=np.float64)

    ends = [series.intervals.get(name, {}).get(str(metric), NAN) for name in lists]
    chance = by_phase(metric.of(CHANCE))
    return Line(by_phase(metric), *np.array(ends).T, chance, chance + CENTRAL * by_phase(metric.of(CHANCE_STD)))


def intervals_over_users(
    folder: Path, periods: Periods, keys: Iterable[ListKey], results: Results, metric: MetricKey
) -> Intervals:
    """Compute the intervals over users of the mean `metric` of the lists of `keys`, from the values per user in a run's
    `folder`."""
    wanted = [name for of in keys for task in periods.tasks for name in periods.lists(of, task)]
    columns = {name: key(name, metric) for name in wanted if str(metric) in results.get(name, {})}
    frame = pd.read_parquet(folder / PER_USER, columns=list(columns.values()))
    return {
        name: user_intervals(results[name], {str(metric): frame[column].to_numpy()}, [str(metric)])
        for name, column in columns.items()
    }


def short_phases(names: Sequence[str]) -> tuple[str, list[str]]:
    """Take off the words that all `names` begin with: their common beginning ("phase": there is none), and the rest."""
    words = [re.findall(r"\d+|[^\W\d_]+|[\W_]+", name) for name in names]
    alike = takewhile(lambda same: len(set(same)) == 1, zip(*words, strict=False))
    shared = "".join(same[0] for same in alike)
    rest = [name.removeprefix(shared) for name in names]
    title = re.sub(r"[\W_]+$", "", shared)
    return (title, rest) if title and all(rest) else ("phase", list(names))
