"""A comparison to be read: on the terminal, and as a page with a picture."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from data.messages import WIDTH, wrapped
from model.comparison.compare_summary import summary_lines
from model.comparison.overview import Overview, overview_tables
from model.comparison.periods import periods_of_runs
from model.evaluation.keys import EXCESS, MetricKey
from model.evaluation.metric_kinds import COLUMNS
from model.results.drawing import attempt
from model.results.finished import Finished
from model.results.levels import curves_of
from model.results.metric_text import UNDEFINED, arrow, cell, columns, interval, main_metrics, name_of, short_name
from model.results.pages import Picture, Section, write_page
from model.results.pareto import accuracy_against_fairness, fairness_metrics, how_to_read
from model.results.text_table import BEST, Table, fitted

VALUE_HEADERS = ["baseline", "run", "change"]
BEYOND_NOISE = f"{BEST} (bold on the page) differs beyond noise."
OF_THE_EXCESS = "Change: of the excess, what the figure is above its mean under permuted labels."


@dataclass(frozen=True)
class Comparison:
    """What a comparison found: runs' `names` (the first is the baseline) and `labels`, their `metrics` (name -> key ->
    number), the primary `k`, the long `table` of `comparison.csv`, the `overview` of all runs, a `caption` that says
    what it is of, the `method` by which it was computed, and the folder of its files."""

    names: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: dict[str, dict[str, float]]
    k: int
    table: pd.DataFrame
    overview: Overview
    caption: str
    method: str
    directory: Path


def tables_against(comparison: Comparison, baseline: Finished, other: Finished) -> list[Table]:
    """Make the tables of `other` against the baseline at the primary K.

    They are tests over all users and by group, gaps and parity between groups, what has no test, and, where both have
    the same seeds, differences over these.
    """
    k, table = comparison.k, comparison.table[comparison.table["run"] == other.name]
    shown = {str(key): None for key in main_metrics([*baseline.metrics, *other.metrics], k)}

    def of(kind: str, chosen: Callable[[Any], bool] = lambda row: True) -> list[Any]:
        rows = table[(table["kind"] == kind) & (table["k"].isna() | (table["k"] == k).fillna(value=False))]
        return [row for row in rows.itertuples() if chosen(row)]

    ndcg, tested, effects = MetricKey("ndcg", k), ["95 % interval", "p (Holm)"], ["d_z", "r"]
    parts = [
        _table(
            "All users; accuracy in percent", [*tested, *effects], of("paired", lambda row: pd.isna(row.attribute)),
            _short, _interval, _p_holm, _effect("d_z"), _effect("rank_biserial"),
            note="d_z: mean difference over its standard deviation. r: rank-biserial correlation.",
        ),
        _table(
            f"{name_of(ndcg)} by user group, in percent", [*tested, *effects],
            of("paired", lambda row: not pd.isna(row.attribute) and MetricKey.parse(row.metric).name == ndcg.name),
            lambda row: f"{row.attribute} {row.group}", _interval, _p_holm, _effect("d_z"), _effect("rank_biserial"),
        ),
        _table(
            "Parity between user groups", tested, of("parity"), _short, _interval, _p_holm, note=OF_THE_EXCESS,
        ),
        _table(
            "Gap between user groups, largest less smallest mean; accuracy in percent", tested[:1],
            of("gap", lambda row: row.metric in shown), _short, _interval, note=OF_THE_EXCESS,
        ),
        _table(
            "Numbers of the whole list, which have no test; accuracy in percent", [],
            of("untested", lambda row: row.metric in shown), _named,
            note="The change of an AUC is that of its excess over chance.",
            present=({*baseline.metrics}, {*other.metrics}),
        ),
        _table(
            f"Over the seeds {', '.join(map(str, other.seeds))}, paired, with Student's interval; accuracy in percent",
            tested[:1], _over_seeds(of("seeds"), baseline, k), _short, _interval,
        ),
        _table(
            "Over users within seeds, both drawn again; accuracy in percent", tested[:1],
            of("users within seeds"), _short, _interval,
        ),
    ]  # fmt: skip
    return [part for part in parts if part.rows]


def _table(
    title: str,
    headers: Sequence[str],
    rows: Sequence[Any],
    name: Callable[[Any], str],
    *cells: Callable[[Any], str],
    note: str = "",
    present: Sequence[set[str]] = (),
) -> Table:
    """A table with a line for each of `rows`: its name, both values and their difference, and further `cells`.

    `present` are the metrics that each of both runs has; without them both have all.
    """
    body = []
    for row in rows:
        measured = [row.metric in metrics for metrics in present] or [True, True]
        values = zip(_values(row), [*measured, all(measured)], strict=True)
        body.append([name(row), *(text if there else "" for text, there in values), *(made(row) for made in cells)])
    best = frozenset((place, len(VALUE_HEADERS)) for place, row in enumerate(rows) if row.differs is True)
    note = f"{note} {BEYOND_NOISE * bool(best)}".strip()
    return Table(title, ["", *VALUE_HEADERS, *headers], body, note=note, best=best)


def _named(row: Any) -> str:
    """The metric's name, without what stands in brackets, and its better side."""
    key = MetricKey.parse(row.metric)
    name = re.sub(r" \([^)]*\)", "", name_of(key))
    return f"{name} {arrow(key)}"


def _short(row: Any) -> str:
    """The metric's short name, whose groups it is of, and its better side."""
    key = MetricKey.parse(row.metric)
    of_whom = "".join(f", {text}" for text in (key.group, key.part) if text)
    return f"{short_name(key)}{of_whom} {arrow(key)}"


def _over_seeds(rows: Sequence[Any], baseline: Finished, k: int) -> list[Any]:
    """The rows of an overview's figures, in its order; of a figure that has a chance level, that of the excess."""
    by_metric, chosen = {row.metric: row for row in rows}, {}
    for attribute in ("", *baseline.groups):
        for key in map(MetricKey.parse, columns(COLUMNS, baseline.metrics, k, attribute)):
            excess = key if key.metric.debiased else key.of(EXCESS)
            found = [text for text in (str(excess), str(key)) if text in by_metric]
            chosen |= {text: by_metric[text] for text in found[:1]}
    return list(chosen.values())


def _values(row: Any) -> list[str]:
    key = MetricKey.parse(row.metric)
    change = row.difference + _offset(row)
    return [cell(key, row.baseline_value), cell(key, row.value), cell(key, change, signed=True)]


def _offset(row: Any) -> float:
    """What turns a difference of figures by groups into that of their excesses."""
    of_excess = row.kind in ("parity", "gap", "untested") and not pd.isna(row.excess_difference)
    return row.excess_difference - row.difference if of_excess else 0.0


def _interval(row: Any) -> str:
    low, high = row.low + _offset(row), row.high + _offset(row)
    return interval(MetricKey.parse(row.metric), low, high, signed=True)


def _p_holm(row: Any) -> str:
    return UNDEFINED if math.isnan(row.p_holm) else "<0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}"


def _effect(name: str) -> Callable[[Any], str]:
    def effect(row: Any) -> str:
        value = getattr(row, name)
        return UNDEFINED if math.isnan(value) else f"{value:+.3f}"

    return effect


def console(table: Table, sizes: Sequence[int] = ()) -> list[str]:
    """Write a table as the console shows it, cut where it is too wide; `sizes` as in `fitted` (none: anywhere)."""
    return [part.text() for part in fitted(table, sizes or [1] * (len(table.headers) - 1))]


def terminal_report(comparison: Comparison, runs: Sequence[Finished]) -> str:
    """Write the comparison at the primary K as text: all runs first, then each against the first one."""
    overview = comparison.overview
    blocks = [textwrap.fill(comparison.caption, WIDTH)]
    blocks += ["\n".join(["Runs:", *overview.legend])] if overview.legend else []
    blocks += [text for table, sizes in overview_tables(overview) for text in console(table, sizes)]
    for name, warnings in warnings_of(runs).items():
        blocks.append("\n".join([f"Warnings of {name}:", *(wrapped(f"- {text}") for text in warnings)]))
    for other in runs[1:]:
        blocks.append(wrapped(f"=== {other.name} against {runs[0].name} (baseline)"))
        blocks += [text for table in tables_against(comparison, runs[0], other) for text in console(table)]
    return "\n" + "\n\n".join([*blocks, textwrap.fill(comparison.method, WIDTH)])


def warnings_of(runs: Sequence[Finished]) -> Mapping[str, Sequence[str]]:
    """Give what each run warned of, by its name; runs without warnings, and those older than these, are left out."""
    return {run.name: run.warnings for run in runs if run.warnings}


def write_report(comparison: Comparison, runs: Sequence[Finished], command: str) -> None:
    """Draw accuracy against fairness for all runs, and write `report.html` with that picture and the tables."""
    accuracy, points = str(MetricKey("ndcg", comparison.k)), {run.name: run.metrics for run in runs}
    overview, title = comparison.overview, f"Comparison with {runs[0].name}"
    warnings = [f"{name}: {line}" for name, lines in warnings_of(runs).items() for line in lines]
    sections = [
        Section("Summary", lines=summary_lines(comparison.table, runs, comparison.k)),
        *([Section("Warnings", warnings=warnings)] if warnings else []),
        Section("All runs", comparison.caption, [table for table, _ in overview_tables(overview, full_names=True)]),
    ]
    metrics = fairness_metrics(points, accuracy)
    if metrics:
        with attempt("the picture accuracy_against_fairness"):
            stem, intervals = comparison.directory / "accuracy_against_fairness", _as_drawn(overview, metrics)
            curves = curves_of(runs)
            paths = accuracy_against_fairness(points, stem, accuracy, metrics, intervals, curves)
            reading = how_to_read("run", metrics, intervals, curves)
            picture = Picture("Accuracy against fairness", reading, tuple(paths))
            sections.append(Section("Accuracy against fairness", images=[picture]))
    pictures = periods_of_runs(runs, comparison.k, comparison.directory)
    sections += [Section("Over phases", images=pictures)] if pictures else []
    for other in runs[1:]:
        sections.append(
            Section(f"{other.name} against {runs[0].name}", tables=tables_against(comparison, runs[0], other))
        )
    sections.append(Section("How it was computed", comparison.method))
    with attempt("report.html"):
        write_page(comparison.directory / "report.html", title, command, sections)


def _as_drawn(overview: Overview, metrics: Sequence[str]) -> dict[str, dict[str, tuple[float, float]]]:
    """The intervals of an overview; a debiased figure's excess, where it is what is drawn, has that of the figure."""
    drawn = {str(key.of("")): str(key) for key in map(MetricKey.parse, metrics) if key.metric.debiased}
    return {
        name: {drawn.get(text, text): ends for text, ends in intervals.items()}
        for name, intervals in overview.intervals.items()
    }
