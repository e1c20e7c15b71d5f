"""Several lists of one run, by phase, task and control: what their keys say, and tables with a line for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from data.protocols.base import Protocol
from data.structs import Ranking
from model.results.tables import (
    ACCURACY,
    ARROWS,
    EXPOSURE_AND_PARITY,
    KEY,
    REFERENCES,
    UNDEFINED,
    WIDTH,
    Table,
    fits_columns,
)
from model.results.tables import cell as shown_cell

TEST, RERANKED = "test", "reranked"
LEVELS = ("phase", "task", "control")
# Heads of columns.
SHORT = {
    "gini": "Gini",
    "gini_count": "Gini, counts",
    "coverage": "coverage",
    "arp": "popularity",
    "aplt": "tail share",
    "exposure_gap": "exposure gap",
    "dtr": "DTR",
    "dp_code": "DP, code",
    "eo_code": "EO, code",
    "dp": "DP, counts",
    "eo": "EO, counts",
    "dp_rate": "DP",
    "eo_rate": "EO",
    "dp_js": "DP, JS",
    "eo_js": "EO, JS",
    "leakage_auc": "AUC",
    "leakage_auc_erased": "AUC, erased",
}


@dataclass(frozen=True)
class TestedList:
    """One list that the test was asked with: the `root` of its keys, and what that says of it ("": there is one)."""

    root: str
    phase: str
    task: str
    control: str
    reranked: bool

    __test__ = False  # no test of pytest's

    @classmethod
    def of(cls, root: str, protocol: Protocol) -> TestedList:
        """Read a root of `test[/phase][/task][/control][/reranked]`."""
        _, *parts = root.split("/")
        reranked = parts[-1:] == [RERANKED]
        parts = parts[:-1] if reranked else parts
        phase = parts.pop(0) if parts and protocol.many_phases else ""
        task = parts.pop(0) if parts and protocol.many_tasks else ""
        return cls(root, phase, task, "/".join(parts), reranked)

    @property
    def label(self) -> str:
        """What a line calls it, where the task is said elsewhere."""
        return ", ".join(part for part in (self.phase, self.control, "re-ranked" * self.reranked) if part) or "this run"

    def yardsticks(self) -> dict[str, str]:
        """Roots of the rankings that it stands beside, by name."""
        level = "".join(f"/{part}" for part in (self.phase, self.task) if part)
        return {name: f"{root}{level}" for name, root in REFERENCES.items()}


def roots_of(keys: Iterable[str], k: int) -> list[str]:
    """The roots of all tested lists, in the order of `keys`."""
    end = f"/ndcg@{k}"
    return [key.removesuffix(end) for key in keys if key.endswith(end) and key.partition("/")[0] == TEST]


def is_one(roots: Iterable[str]) -> bool:
    """Whether there is no list but that of the one task under the one control, and its re-ranked form."""
    return set(roots) <= {TEST, f"{TEST}/{RERANKED}"}


def tables_side_by_side(
    results: Mapping[str, float],
    lists: Sequence[TestedList],
    groups: Mapping[str, Sequence[str]],
    k: int,
    directions: Mapping[str, str],
) -> list[Table]:
    """Lay `results` out with a line for each of `lists` and its yardsticks, each task in tables of its own.

    Accuracy in percent comes first, then exposure, then parity and leakage by attribute; see `result_tables`.
    """
    tables = []
    for task in dict.fromkeys(one.task for one in lists):
        of_task = f" of task {task}" if task else ""
        lines = _lines([one for one in lists if one.task == task], results)
        tables += [_accuracy(results, lines, groups, k, of_task), *_by_group(results, lines, groups, k, of_task)]
        tables += _whole_lists(results, lines, k, directions, of_task)
    # a protocol's summary need not have everything
    tables = [replace(table, rows=[row for row in table.rows if any(row[1:])]) for table in tables]
    return [part for table in tables if table.rows for part in _fitting(table)]


def _lines(lists: Sequence[TestedList], results: Mapping[str, float]) -> dict[str, str]:
    """What stands at the beginning of each line -> root; yardsticks follow the last list of their phase."""
    lines = {}
    for phase in dict.fromkeys(one.phase for one in lists):
        own = [one for one in lists if one.phase == phase]
        lines |= {one.label: one.root for one in own}
        for name, root in own[0].yardsticks().items():
            if any(key.startswith(f"{root}/") for key in results):
                lines[f"{phase}, {name}" if phase else name] = root
    return lines


def _accuracy(results, lines: Mapping[str, str], groups, k: int, of_task: str) -> Table:
    first = next(iter(groups), None)
    columns = {f"{name}@{k}": f"{base}@{k}" for base, name in ACCURACY.items()}
    columns |= {name: f"ndcg@{k}/{name}" for name in ("head", "tail")}
    if first is not None and fits_columns(groups[first]):
        columns |= {label: f"ndcg@{k}/{first}/{label}" for label in groups[first]}
    columns |= {f"gap, {name}": f"ndcg@{k}/gap/{name}" for name in groups}
    rows = [[name, *(shown_cell(results, f"{root}/{key}") for key in columns.values())] for name, root in lines.items()]
    return Table(f"Accuracy{of_task}, in percent; from head on, parts of NDCG@{k}", ["", *columns], rows)


def _by_group(results, lines: Mapping[str, str], groups, k: int, of_task: str) -> list[Table]:
    tables = []
    for place, (name, labels) in enumerate(groups.items()):
        if place == 0 and fits_columns(labels):
            continue
        rows = [
            [label, *(shown_cell(results, f"{root}/ndcg@{k}/{name}/{label}") for root in lines.values())]
            for label in labels
        ]
        tables.append(Table(f"Accuracy{of_task} by {name}, NDCG@{k} in percent", [name, *lines], rows))
    return tables


def _whole_lists(results, lines: Mapping[str, str], k: int, directions, of_task: str) -> list[Table]:
    """Exposure, and parity and leakage by attribute."""
    known = (set(directions) | set(EXPOSURE_AND_PARITY)) - set(ACCURACY)
    found: dict[str, dict[str, str]] = {"": {}}
    for key in results:
        for root in lines.values():
            match = KEY.fullmatch(key.removeprefix(f"{root}/")) if key.startswith(f"{root}/") else None
            if match and match["base"] in known and match["k"] in (None, str(k)):
                found.setdefault(match["tail"] or "", {})[match["base"]] = match.group()
    order = {base: place for place, base in enumerate(EXPOSURE_AND_PARITY)}
    tables = []
    for attribute, keys in found.items():
        bases = sorted(keys, key=lambda base: (order.get(base, len(order)), base))
        headers = [f"{SHORT.get(base, base)} {ARROWS.get(directions.get(base), '')}".strip() for base in bases]
        rows = [
            [name, *(shown_cell(results, f"{root}/{keys[base]}", 1, 1 if base == "arp" else 4) for base in bases)]
            for name, root in lines.items()
        ]
        what = f"Parity and leakage{of_task} by {attribute}" if attribute else f"Exposure{of_task}"
        if bases:
            tables.append(Table(f"{what}, top {k}", ["", *headers], rows))
    legend = (
        "DP, EO: of rates, unless it says of what else. AUC: leakage by the strongest attacker, 0.5 is none.\n"
        f"Better: ↓ lower, ↑ higher, →0 near 0, →1 near 1.  {UNDEFINED} undefined."
    )
    return [*tables[:-1], replace(tables[-1], note=legend)] if tables else []


def _fitting(table: Table) -> list[Table]:
    """The table cut into parts that are no wider than the console, each with the first column."""
    widths = [
        # tabulate gives heads room
        max(len(head) + 2, *(len(text) for text in column))
        for head, column in zip(table.headers, zip(*table.rows, strict=True), strict=True)
    ]
    parts, used = [[]], widths[0]
    for place, width in enumerate(widths[1:], 1):
        if parts[-1] and used + 2 + width > WIDTH:
            parts.append([])
            used = widths[0]
        parts[-1].append(place)
        used += 2 + width
    if len(parts) == 1:
        return [table]
    head, comma, rest = table.caption.partition(",")
    return [
        Table(
            f"{head} ({number}){comma}{rest}",
            [table.headers[0], *(table.headers[place] for place in part)],
            [[row[0], *(row[place] for place in part)] for row in table.rows],
            note=table.note if number == len(parts) else "",
        )
        for number, part in enumerate(parts, 1)
    ]


def values_by_user(
    rankings: Mapping[str, Ranking], per_user: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Everybody whom a list is for (`users [T]`, ascending), and all values by key: `[T]`, NaN for whom it is not."""
    users = np.unique(np.concatenate([ranking.users for ranking in rankings.values()]))
    values = {}
    for key, own in per_user.items():
        asked = rankings[key.rpartition("/")[0]].users
        if not np.array_equal(asked, users):
            whole = np.full(len(users), np.nan)
            whole[np.searchsorted(users, asked)] = own
            own = whole
        values[key] = own
    return users, values


def with_earlier(
    frame: pd.DataFrame, users: np.ndarray, values: Mapping[str, np.ndarray], originals: np.ndarray, phases: set[str]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """`values_by_user` with the columns of earlier `phases` of a written `frame` in front."""
    place = {TEST: 1, "reference": 2}
    kept = [
        name
        for name in frame
        if "@" in name and (parts := name.split("/"))[place[parts[0]]] in phases  # others are users and their groups
    ]
    before = pd.Index(originals).get_indexer(frame["user"])
    everybody = np.union1d(before, users)

    def spread(owners: np.ndarray, own: np.ndarray) -> np.ndarray:
        whole = np.full(len(everybody), np.nan)
        whole[np.searchsorted(everybody, owners)] = own
        return whole

    old = {name: spread(before, frame[name].to_numpy()) for name in kept}
    return everybody, old | {name: spread(users, own) for name, own in values.items()}


def label_rows(frame: pd.DataFrame, one: TestedList, levels: Sequence[str]) -> pd.DataFrame:
    """A list's table with columns in front that say which of several it is."""
    return pd.concat([pd.DataFrame({level: [getattr(one, level)] * len(frame) for level in levels}), frame], axis=1)
