"""All runs of a comparison side by side: columns of values, and which are the best beyond noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from model.comparison.compare import USED, Parity, comparison_rows, shared_metrics
from model.comparison.run_parity import intervals_of
from model.comparison.statistics import LEVEL, mean_interval
from model.evaluation.keys import CHANCE_STD, EXCESS, YARDSTICKS, MetricKey
from model.evaluation.metric_kinds import ACCURACY, COLUMNS, EPOCHS, EXPOSURE, HEADLINE, LEAKAGE, PARITY, SPREAD
from model.evaluation.metric_table import shown_in
from model.results.finished import Finished
from model.results.metric_text import LEGEND, WITHIN, arrow, cell_of, excess_cell, figure, interval
from model.results.metric_text import short_name as short_metric
from model.results.text_table import BEST, Table

# longer names of runs are numbers in tables, and stand in a legend
LONGEST_NAME = 14

Intervals = Mapping[str, Mapping[str, tuple[float, float]]]


@dataclass(frozen=True)
class Column:
    """A figure of all runs: its `key`, a `header`, and `cells` of the runs and then of the yardsticks.

    `best` are the places of the best run and of those that do not differ from it beyond noise. `better` and `worse` say
    how surely a run differs from the first one: its place -> p. A column that `belongs` is shown beside the one before.
    """

    key: MetricKey
    header: str
    cells: list[str]
    best: frozenset[int] = frozenset()
    better: dict[int, float] = field(default_factory=dict)
    worse: dict[int, float] = field(default_factory=dict)
    belongs: bool = False


@dataclass(frozen=True)
class Block:
    """Columns that stand in one table under a `title`, with a `note` on how to read them."""

    title: str
    columns: list[Column]
    note: str = ""


@dataclass(frozen=True)
class Overview:
    """All runs at one cut-off: the `names` of the runs and of the `yardsticks` in the order of the cells, `blocks`, and
    `intervals` over users, run -> metric key -> low and high."""

    names: list[str]
    yardsticks: list[str]
    blocks: list[Block]
    intervals: Intervals

    @property
    def numbered(self) -> bool:
        """Whether names are too long for a table, so that numbers stand for them."""
        return max(map(len, self.names)) > LONGEST_NAME

    def heads(self, full: bool) -> list[str]:
        """Give what stands at the beginning of each row: names, or where these are too long and not `full`, numbers."""
        names = self.names if full or not self.numbered else map(str, range(1, len(self.names) + 1))
        return [*names, *self.yardsticks]

    @property
    def legend(self) -> list[str]:
        """Which run each number is; nothing where names stand in the tables."""
        return [f"{place}  {name}" for place, name in enumerate(self.names, 1)] if self.numbered else []


def overview_of(runs: Sequence[Finished], table: pd.DataFrame, k: int, parity: Mapping[str, Parity]) -> Overview:
    """Set all `runs` side by side at cut-off `k`; `table` are the rows of each against the first."""
    intervals = {run.name: _intervals(run, k, parity[run.name]) for run in runs}
    yardsticks = {title: runs[0].yardsticks[name] for name, title in YARDSTICKS.items() if name in runs[0].yardsticks}
    rows = _by_pair(table.to_dict("records"))
    pairs = {(runs[0].name, run.name) for run in runs[1:]}

    def row_of(first: Finished, other: Finished, key: MetricKey) -> Mapping:
        """The row of two runs in either order; runs of which none is the baseline are compared when it is asked."""
        if (other.name, first.name) in pairs:
            first, other = other, first
        if (first.name, other.name) not in pairs:
            pairs.add((first.name, other.name))
            new = comparison_rows(first, other, [k], parity, by_group=False)
            rows.update(_by_pair(new))
        return rows.get((first.name, other.name, str(key)), {})

    def column(key: MetricKey, header: str, text: Callable[[Mapping, MetricKey], str], **more: bool) -> Column:
        cells = [text(run.metrics, key) for run in runs] + [text(metrics, key) for metrics in yardsticks.values()]
        return Column(key, header, cells, **more)

    def with_interval(key: MetricKey, header: str) -> Column:
        """The figure, with its interval where it is one of the main ones."""
        found = column(key, f"{header} {arrow(key)}", figure)
        for place, run in enumerate(runs):
            if str(key) in intervals[run.name] and (key.by_groups or EPOCHS in key.metric.places):
                found.cells[place] += f" {interval(key, *intervals[run.name][str(key)])}"
        return _judged(found, runs, row_of)

    def beside_chance(key: MetricKey) -> list[Column]:
        """The figure; with its spread by chance and its excess, which is judged, unless it is its own excess."""
        if key.metric.debiased or not any(str(key.of(EXCESS)) in run.metrics for run in runs):
            return [with_interval(key, short_metric(key))]
        if key.metric.kind == LEAKAGE:
            return [_judged(column(key, f"{short_metric(key)} {arrow(key)}", _with_spread), runs, row_of)]
        excess = column(key, f"excess {arrow(key)}", excess_cell, belongs=True)
        return [column(key, short_metric(key), _with_spread), _judged(excess, runs, row_of)]

    shown = [MetricKey(row.name, k) for row in shown_in(COLUMNS) if row.kind in (ACCURACY, EXPOSURE)]
    accuracy = [with_interval(key, key.metric.head) for key in shown if key.metric.kind == ACCURACY]
    parts = [with_interval(MetricKey("ndcg", k, part), part) for part in ("head", "tail")]
    exposure = [with_interval(key, key.metric.head) for key in shown if key.metric.kind == EXPOSURE]
    blocks = [
        Block(
            f"Accuracy at K = {k} in percent, with 95 % intervals over users",
            [*accuracy, *parts],
            "head, tail: NDCG of head and of tail items.",
        ),
        Block(f"Exposure at K = {k}", exposure),
    ]
    for attribute in runs[0].groups:
        columns = [column for key in figures_by_groups(attribute, k) for column in beside_chance(key)]
        note = f"±: spread when labels are permuted among the users; {WITHIN} these reach the value as well."
        blocks.append(Block(f"Parity and leakage by {attribute} at K = {k}; gaps in percent", columns, note))
    blocks = [replace(block, columns=[one for one in block.columns if any(one.cells[: len(runs)])]) for block in blocks]
    return Overview([run.name for run in runs], list(yardsticks), [one for one in blocks if one.columns], intervals)


def _by_pair(rows: Iterable[Mapping]) -> dict[tuple[str, str, str], Mapping]:
    """Rows that say whether two runs differ, by the names of these and the metric; those over seeds are left out."""
    return {(row["baseline"], row["run"], row["metric"]): row for row in rows if "differs" in USED[row["kind"]]}


def figures_by_groups(attribute: str, k: int) -> list[MetricKey]:
    """List the figures by groups of an attribute that are compared, those that claims are made on first."""
    rows = {row.name: row for place in (HEADLINE, COLUMNS) for row in shown_in(place)}
    keys = []
    for row in rows.values():
        if row.kind == SPREAD:
            keys.append(MetricKey("ndcg", k, attribute, spread=row.name))
        elif row.kind in (PARITY, LEAKAGE):
            keys.append(MetricKey(row.name, k if row.at_k else None, attribute))
    return keys


def _with_spread(metrics: Mapping[str, float], key: MetricKey) -> str:
    """A figure with the standard deviation of its chance level, where it has one."""
    std = cell_of(metrics, key.of(CHANCE_STD))
    return f"{figure(metrics, key)} ± {std}" if std else figure(metrics, key)


def _intervals(run: Finished, k: int, parity: Parity) -> dict[str, tuple[float, float]]:
    keys = [key for key in shared_metrics([run], k) if key.metric.kind == ACCURACY]
    low, high = mean_interval(run.values[list(map(str, keys))].to_numpy().T)
    ends = {str(key): (float(one), float(other)) for key, one, other in zip(keys, low, high, strict=True)}
    return ends | intervals_of(run, {place: found for place, found in parity.items() if place[0] == k})


def _judged(column: Column, runs: Sequence[Finished], row_of: Callable) -> Column:
    """Find the best run and those within noise of it, and which differ from the first."""
    key = column.key
    goodness = [_goodness(run.metrics, key) for run in runs]
    defined = [place for place, value in enumerate(goodness) if not math.isnan(value)]
    # a yardstick that is compared as a run is no candidate
    able = [place for place in defined if not runs[place].is_yardstick]
    if not able:
        return column
    top = max(able, key=lambda place: goodness[place])
    best = {place for place in able if _within(row_of, runs, top, place, column)}
    better, worse = {}, {}
    for place in defined[1:] if defined[0] == 0 else []:
        row = row_of(runs[0], runs[place], key)
        if row.get("differs") is True and goodness[place] != goodness[0]:
            p = row.get("p_holm", math.nan)
            # what has an interval alone is known at its level
            p = LEVEL if p is None or math.isnan(p) else p
            (better if goodness[place] > goodness[0] else worse)[place] = p
    return replace(column, best=frozenset(best if len(best) < len(able) else ()), better=better, worse=worse)


def _within(row_of: Callable, runs: Sequence[Finished], top: int, place: int, column: Column) -> bool:
    if place == top:
        return True
    differs = row_of(runs[top], runs[place], column.key).get("differs")
    if differs is None or pd.isna(differs):
        return column.cells[place] == column.cells[top]
    return not differs


def _goodness(metrics: Mapping[str, float], key: MetricKey) -> float:
    """The value turned so that higher is better; of figures by groups their excess, where below chance is as good."""
    excess = metrics.get(str(key.of(EXCESS)), math.nan) if key.by_groups else math.nan
    value = metrics.get(str(key), math.nan) if math.isnan(excess) else max(0.0, excess)
    target = {"zero": 0.0, "one": 1.0}.get(key.judged_by.better)
    if target is not None:
        return -abs(value - target)
    return value if key.judged_by.better == "higher" else -value


def overview_tables(overview: Overview, full_names: bool = False) -> list[tuple[Table, list[int]]]:
    """Make the tables of an overview, each with the numbers of its columns that stay together."""
    tables = []
    for block in overview.blocks:
        rows = [
            [head, *(column.cells[place] for column in block.columns)]
            for place, head in enumerate(overview.heads(full_names))
        ]
        table = Table(
            block.title,
            ["", *(column.header for column in block.columns)],
            rows,
            note=block.note,
            best=frozenset((place, at) for at, column in enumerate(block.columns, 1) for place in column.best),
            ruled=len(overview.names) if overview.yardsticks else None,
        )
        tables.append((table, _sizes(block.columns)))
    last, sizes = tables[-1]
    return [*tables[:-1], (replace(last, note=f"{last.note}\n{how_to_read()}".strip()), sizes)]


def how_to_read() -> str:
    """Say what marks the best, and what is known of noise."""
    return (
        f"{BEST} (bold on the page): the best run and those within noise of it, none where these are all. Figures by "
        "groups are judged by their excess over chance. Head, tail, Gini and coverage have no test: the best as shown."
        f"\n{LEGEND}."
    )


def _sizes(columns: Iterable[Column]) -> list[int]:
    sizes: list[int] = []
    for column in columns:
        if column.belongs:
            sizes[-1] += 1
        else:
            sizes.append(1)
    return sizes
