"""Result keys such as `test/<phase>/<task>/<control>/reranked/ndcg@10/gap/gender`, made and read here alone.

A key is the name of a list (`ListKey`) and of a metric of it (`MetricKey`). Results are kept as list -> metric ->
value; `flat` makes the keys that files hold, and `by_list` reads them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from model.evaluation.metric_kinds import SPREAD, Metric
from model.evaluation.metric_table import METRICS, metric

TEST, REFERENCE, VALID, RERANKED = "test", "reference", "valid", "reranked"
# what a figure by user group has beside its value: the mean and the standard deviation of the same figure under labels
# permuted among the users (its chance level), the value less that mean, and the one-sided p of the permutations
CHANCE, CHANCE_STD, EXCESS, P = "chance", "chance_std", "excess", "p"
CHANCE_PARTS = (CHANCE, CHANCE_STD, EXCESS, P)
# what the accuracy of a user group has beside its value: the 95 % interval of the mean over users, and of the hit rate
# the users who were asked and those with a hit too
LOW, HIGH, USERS, HITS = "low", "high", "users", "hits"
PARTS = (*CHANCE_PARTS, LOW, HIGH, USERS, HITS)
# rankings that a run's own stand beside: name in keys -> name in tables
POPULAR = "popular"
YARDSTICKS = {POPULAR: "most popular", "random": "random"}


@dataclass(frozen=True)
class MetricKey:
    """A metric of one list: its name, its cut-off K (None: it has none), and of whom it is.

    `group` is a user attribute, or "head" or "tail" (items); `label` is one group of the attribute; `spread` ("gap" or
    "std") says that the value is a spread between these groups. `part`, one of `PARTS`, says that the value is not the
    figure itself but a part of its chance level or of its interval.
    """

    name: str
    k: int | None = None
    group: str = ""
    label: str = ""
    spread: str = ""
    part: str = ""

    def __str__(self) -> str:
        name = self.name if self.k is None else f"{self.name}@{self.k}"
        return "/".join(text for text in (name, self.spread, self.part, self.group, self.label) if text)

    @classmethod
    @functools.cache
    def parse(cls, text: str) -> MetricKey:
        """Read what `str` writes; ValueError where the metric table has no such metric."""
        name, _, of_whom = text.partition("/")
        name, _, k = name.partition("@")
        metric(name)
        first, _, rest = of_whom.partition("/")
        spread = part = ""
        if first in METRICS and METRICS[first].kind == SPREAD and rest:
            spread, (first, _, rest) = first, rest.partition("/")
        if first in PARTS and rest:
            part, (first, _, rest) = first, rest.partition("/")
        return cls(name, int(k) if k else None, first, rest, spread, part)

    @property
    def by_groups(self) -> bool:
        """Whether the value depends on which users are in which group, so that it has a chance level."""
        return bool(self.spread) or self.metric.of_attribute

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest value that there can be (inf: none)."""
        low, high = self.judged_by.bounds
        of_parts = {CHANCE_STD: (0.0, high - low), EXCESS: (low - high, high - low), P: (0.0, 1.0)}
        return of_parts.get(self.part, (low, high))

    def of(self, part: str) -> MetricKey:
        """Name a part of this figure's chance level or interval."""
        return replace(self, part=part)

    @property
    def metric(self) -> Metric:
        """The row of the metric in the metric table."""
        return metric(self.name)

    @property
    def judged_by(self) -> Metric:
        """The row that says which values are better: that of the spread where the value is one, else the metric's."""
        return metric(self.spread or self.name)


@dataclass(frozen=True)
class ListKey:
    """One evaluated list: `source` is the test or, with the name of a `yardstick`, the reference.

    `phase`, `task` and `control` are "" where there is only one; `reranked` says whether the list is re-ranked.
    """

    source: str = TEST
    yardstick: str = ""
    phase: str = ""
    task: str = ""
    control: str = ""
    reranked: bool = False

    def __str__(self) -> str:
        parts = (self.source, self.yardstick, self.phase, self.task, self.control, RERANKED * self.reranked)
        return "/".join(part for part in parts if part)

    @classmethod
    def parse(cls, text: str, many_phases: bool = False, many_tasks: bool = False) -> ListKey:
        """Read what `str` writes; whether the protocol has several phases and tasks says what the parts are."""
        source, *parts = text.split("/")
        yardstick = parts.pop(0) if source == REFERENCE else ""
        reranked = parts[-1:] == [RERANKED]
        parts = parts[:-1] if reranked else parts
        phase = parts.pop(0) if parts and many_phases else ""
        task = parts.pop(0) if parts and many_tasks else ""
        return cls(source, yardstick, phase, task, "/".join(parts), reranked)

    def beside(self, yardstick: str) -> ListKey:
        """Name the `yardstick` list that this list is compared with."""
        return ListKey(REFERENCE, yardstick, self.phase, self.task)

    def after_reranking(self) -> ListKey:
        """Name the same list re-ranked."""
        return replace(self, reranked=True)

    @property
    def label(self) -> str:
        """The name of the list in a table whose title names the task."""
        return ", ".join(part for part in (self.phase, self.control, "re-ranked" * self.reranked) if part) or "this run"


def key(list_name: str | ListKey, metric_key: str | MetricKey) -> str:
    """Make the key of a metric of a list."""
    return f"{list_name}/{metric_key}"


def validation_key(metric_key: str | MetricKey) -> str:
    """Make the key of a validation metric in a row of metrics.jsonl."""
    return f"{VALID}/{metric_key}"


def validation_metrics(names: Iterable[str]) -> list[str]:
    """List the validation metrics among the names in a row of metrics.jsonl."""
    start = f"{VALID}/"
    return [name.removeprefix(start) for name in names if name.startswith(start)]


def split_key(text: str) -> tuple[str, str]:
    """Split a key into list and metric; ValueError where no part of it is in the metric table."""
    parts = text.split("/")
    for place in range(1, len(parts)):
        name, at, _ = parts[place].partition("@")
        if name in METRICS and METRICS[name].at_k == bool(at):
            return "/".join(parts[:place]), "/".join(parts[place:])
    metric_part = next((part for part in parts if "@" in part), parts[-1])
    metric(metric_part.partition("@")[0])
    raise ValueError(f"result key {text!r} names no metric of the metric table")


def flat(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Give results by key, as files hold them."""
    return {key(name, metric_key): value for name, metrics in results.items() for metric_key, value in metrics.items()}


def by_list(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Give results as list -> metric -> value, in the order of the keys."""
    results: dict[str, dict[str, Any]] = {}
    for text, value in values.items():
        name, metric_key = split_key(text)
        results.setdefault(name, {})[metric_key] = value
    return results


def is_result(column: str) -> bool:
    """Tell whether a column of per-user values is a metric of a list, and not the user or a group."""
    return column.startswith((f"{TEST}/", f"{REFERENCE}/"))


def run_lists(results: Mapping[str, Any]) -> list[str]:
    """List the run's own lists among those of `results`, in order; the others are yardsticks."""
    return [name for name in results if ListKey.parse(name).source == TEST]


def yardsticks_of(list_name: str, names: Iterable[str]) -> dict[str, str]:
    """Find the lists among `names` that a list stands beside, those of its phase and task: yardstick -> name."""
    # read as if there were one phase and task, so that these are at the beginning of the control
    own, found = ListKey.parse(list_name), {}
    for name in names:
        other = ListKey.parse(name)
        if other.source == REFERENCE and (not other.control or f"{own.control}/".startswith(f"{other.control}/")):
            found[other.yardstick] = name
    return found


def lists_by_control(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Group a run's own lists among `names` that differ in their control alone, of a method that has several.

    Groups are by the `label` of what their lists share; each is list -> control, in the order of `names`.
    """
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        # read as if there were one phase and task, so that the control is the last of what follows
        own = ListKey.parse(name)
        if own.source == TEST:
            place, _, control = own.control.rpartition("/")
            groups.setdefault(replace(own, control=place).label, {})[name] = control
    return groups


def choose_list(names: Iterable[str], chosen: str = "") -> str | None:
    """Find the list that `chosen` names, with or without `test` or `reference` in front; None where there is none.

    "" is the run's one plain list.
    """
    names = list(names)
    own = [name for name in names if name.partition("/")[0] == TEST]
    if chosen:
        found = [name for name in names if name == chosen]
        found += [name for name in (*own, *names) if short_name(name) == chosen]
    else:
        found = own if len(own) == 1 else [name for name in own if name == str(ListKey())]
    return found[0] if found else None


def list_keys(results: Mapping[str, Any], many_phases: bool, many_tasks: bool) -> list[ListKey]:
    """Read the names of `run_lists`; whether the protocol has several phases and tasks says what their parts are."""
    return [ListKey.parse(name, many_phases, many_tasks) for name in run_lists(results)]


def is_one(names: list[str]) -> bool:
    """Tell whether `names` are only the list of the one task under the one control, and its re-ranked form."""
    plain = ListKey()
    return set(names) <= {str(plain), str(plain.after_reranking())}


def short_name(list_name: str) -> str:
    """Give a list's name without `test` or `reference` in front; "" for the one list of a run."""
    return list_name.partition("/")[2]
