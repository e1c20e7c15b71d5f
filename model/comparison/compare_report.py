"""A comparison to be read: on the terminal, as a LaTeX table, and as a page with a picture."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from model.comparison.finished import Finished
from model.results.pages import Picture, Section, write_page
from model.results.pareto import accuracy_against_fairness, fairness_metrics
from model.results.shown import best, comparison_columns, escape, latex_table, main_metrics, shown
from model.results.tables import ARROWS, UNDEFINED, WIDTH, Table

VALUE_HEADERS = ["baseline", "run", "difference"]
TEST_HEADERS = ["95 % interval", "p", "p (Holm)", "d_z", "r"]
LEVELS = {0.001: "***", 0.01: "**", 0.05: "*"}
PARETO_CAPTION = (
    "Each point is a run. The step line joins those that no other run beats in both at once; the others are hollow. "
    "Numbers are those of the legend, arrows point to the better side."
)


@dataclass(frozen=True)
class Comparison:
    """What a comparison found: runs' `names` (the first is the baseline) and `labels`, their `metrics` (name -> key ->
    number), the primary `k`, the long `table` of `comparison.csv`, the `caption` and the folder of its files."""

    names: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: dict[str, dict[str, float]]
    k: int
    table: pd.DataFrame
    caption: str
    directory: Path


def latex_report(comparison: Comparison, runs: Sequence[Finished]) -> str:
    """A booktabs table, runs as rows: the best of each column bold, stars where a run differs from the first."""
    k, table = comparison.k, comparison.table
    attribute = next(iter(runs[0].groups.columns), "")
    columns = comparison_columns({key for run in runs for key in run.metrics}, k, attribute)
    marks = {
        (row.run, row.metric): _stars(row.p_holm) for row in table[table["family"] == f"all users @{k}"].itertuples()
    }
    cells = []
    for key in columns:
        metric, numbers = shown(key), [run.metrics.get(key, math.nan) for run in runs]
        winners = best(metric, numbers)
        for place, (run, number) in enumerate(zip(runs, numbers, strict=True)):
            text = escape(metric.cell(number)) if key in run.metrics else ""
            text = rf"\textbf{{{text}}}" if place in winners else text
            stars = marks.get((run.name, key), "")
            cells.append(f"{text}$^{{{stars}}}$" if stars else text)
    by_run = [cells[place :: len(runs)] for place in range(len(runs))]
    rows = [[escape(run.name), *row] for run, row in zip(runs, by_run, strict=True)]
    legend = (
        f"HR, NDCG and MRR are in percent; head, tail and gap are NDCG of head and tail items and between groups by "
        f"{attribute or 'no attribute'}. Best in bold. Stars: "
    )
    levels = ", ".join(f"$^{{{stars}}}$ $p < {level}$" for level, stars in sorted(LEVELS.items(), reverse=True))
    caption = f"{escape(comparison.caption)} {escape(legend)}{levels} against the first row."
    return "% needs booktabs\n" + latex_table(["run", *map(escape, columns.values())], rows, caption, "tab:comparison")


def _stars(p: float) -> str:
    return next((stars for level, stars in sorted(LEVELS.items()) if p < level), "")


def tables_against(comparison: Comparison, baseline: Finished, other: Finished) -> list[Table]:
    """One run against the baseline at the primary K: tests over all users and by group, gaps, and what has no test."""
    k, table = comparison.k, comparison.table[comparison.table["run"] == other.name]
    at_k = table[table["k"] == k]
    paired, gaps = at_k[at_k["kind"] == "paired"], at_k[at_k["kind"] == "gap"]
    overall = paired[paired["attribute"].isna()]
    groups = paired[paired["metric"].str.startswith(f"ndcg@{k}/")]
    parts = {
        "All users; accuracy in percent": ([*VALUE_HEADERS, *TEST_HEADERS], _tests(overall, of_group=False)),
        f"NDCG@{k} by user group, in percent": ([*VALUE_HEADERS, *TEST_HEADERS], _tests(groups, of_group=True)),
        "Gap between user groups, largest less smallest mean; accuracy in percent": (
            [*VALUE_HEADERS, TEST_HEADERS[0]],
            [[_named(row.metric), *_values(row), _interval(row)] for row in gaps.itertuples()],
        ),
        "Numbers of the whole list, which have no test; accuracy in percent": (
            VALUE_HEADERS,
            _side_by_side(table[table["kind"] == "untested"], (baseline, other), k),
        ),
    }
    return [Table(title, ["", *headers], rows) for title, (headers, rows) in parts.items() if rows]


def legend() -> str:
    """What the marks in the tables mean."""
    stars = ", ".join(f"{stars} below {level}" for level, stars in sorted(LEVELS.items(), reverse=True))
    return (
        f"Stars: p after Holm {stars}.  d_z: mean difference over its standard deviation.\n"
        "r: rank-biserial correlation.  Better: ↓ lower, ↑ higher, →0 near 0, →1 near 1.  "
        f"{UNDEFINED} undefined, blank: not measured."
    )


def terminal_report(comparison: Comparison, runs: Sequence[Finished]) -> str:
    """The comparison at the primary K as text."""
    blocks = [textwrap.fill(comparison.caption, WIDTH)]
    for other in runs[1:]:
        blocks.append(f"=== {other.name} against {runs[0].name} (baseline)")
        blocks += [table.text() for table in tables_against(comparison, runs[0], other)]
    return "\n" + "\n\n".join([*blocks, legend()])


def write_report(comparison: Comparison, runs: Sequence[Finished], command: str) -> None:
    """Draw accuracy against fairness for all runs, and write `report.html` with that picture and the tables."""
    accuracy, points = f"ndcg@{comparison.k}", {run.name: run.metrics for run in runs}
    title = f"Comparison with {runs[0].name}"
    sections = [Section("Runs", f"{comparison.caption}\n\n{legend()}")]
    if fairness_metrics(points, accuracy):
        paths = accuracy_against_fairness(points, comparison.directory / "accuracy_against_fairness", accuracy)
        picture = Picture("Accuracy against fairness", PARETO_CAPTION, tuple(paths))
        sections.append(Section("Accuracy against fairness", images=[picture]))
    for other in runs[1:]:
        sections.append(
            Section(f"{other.name} against {runs[0].name}", tables=tables_against(comparison, runs[0], other))
        )
    write_page(comparison.directory / "report.html", title, command, sections)


def _named(key: str) -> str:
    """The metric's name, without what stands in brackets, and its better side."""
    metric = shown(key)
    name = re.sub(r" \([^)]*\)", "", metric.name)
    return f"{name} {ARROWS.get(metric.better, '')}"


def _values(row: Any) -> list[str]:
    metric = shown(row.metric)
    return [metric.cell(row.baseline_value), metric.cell(row.value), metric.cell(row.difference, signed=True)]


def _side_by_side(untested: pd.DataFrame, pair: tuple[Finished, Finished], k: int) -> list[list[str]]:
    rows, table = {row.metric: row for row in untested.itertuples()}, []
    for metric in main_metrics(rows, k):
        measured = [metric.key in run.metrics for run in pair]
        cells = zip(_values(rows[metric.key]), [*measured, all(measured)], strict=True)
        table.append([_named(metric.key), *(cell if there else "" for cell, there in cells)])
    return table


def _interval(row: Any) -> str:
    return shown(row.metric).interval(row.low, row.high, signed=True)


def _tests(rows: pd.DataFrame, of_group: bool) -> list[list[str]]:
    table = []
    for row in rows.itertuples():
        name = f"{row.attribute} {row.group}" if of_group else _named(row.metric)
        chances = [_p(row.p), f"{_p(row.p_holm)} {_stars(row.p_holm):<3}"]
        effects = [UNDEFINED if math.isnan(effect) else f"{effect:+.3f}" for effect in (row.d_z, row.rank_biserial)]
        table.append([name, *_values(row), _interval(row), *chances, *effects])
    return table


def _p(value: float) -> str:
    return UNDEFINED if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"
