"""A comparison to be read: on the terminal, as a LaTeX table, and as a page with a picture."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.messages import WIDTH
from model.comparison.finished import Finished
from model.evaluation.keys import MetricKey
from model.evaluation.metric_table import COLUMNS
from model.results.drawing import attempt
from model.results.latex import escape, latex_table
from model.results.metric_text import LEGEND, UNDEFINED, arrow, best, cell, columns, interval, main_metrics, name_of
from model.results.pages import Picture, Section, write_page
from model.results.pareto import accuracy_against_fairness, fairness_metrics
from model.results.text_table import Table

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
    """Make a booktabs table, runs as rows: the best of a column bold, stars where a run differs from the first."""
    k, table = comparison.k, comparison.table
    attribute = next(iter(runs[0].groups.columns), "")
    shown = columns(COLUMNS, {key for run in runs for key in run.metrics}, k, attribute)
    marks = {
        (row.run, row.metric): _stars(row.p_holm) for row in table[table["family"] == f"all users @{k}"].itertuples()
    }
    cells = []
    for text_of_key in shown:
        key, numbers = MetricKey.parse(text_of_key), [run.metrics.get(text_of_key, math.nan) for run in runs]
        winners = best(key, numbers)
        for place, (run, number) in enumerate(zip(runs, numbers, strict=True)):
            text = escape(cell(key, number)) if text_of_key in run.metrics else ""
            text = rf"\textbf{{{text}}}" if place in winners else text
            stars = marks.get((run.name, text_of_key), "")
            cells.append(f"{text}$^{{{stars}}}$" if stars else text)
    by_run = [cells[place :: len(runs)] for place in range(len(runs))]
    rows = [[escape(run.name), *row] for run, row in zip(runs, by_run, strict=True)]
    legend = (
        f"HR, NDCG and MRR are in percent; head, tail and gap are NDCG of head and tail items and between groups by "
        f"{attribute or 'no attribute'}. Best in bold. Stars: "
    )
    levels = ", ".join(f"$^{{{stars}}}$ $p < {level}$" for level, stars in sorted(LEVELS.items(), reverse=True))
    caption = f"{escape(comparison.caption)} {escape(legend)}{levels} against the first row."
    return "% needs booktabs\n" + latex_table(["run", *map(escape, shown.values())], rows, caption, "tab:comparison")


def _stars(p: float) -> str:
    return next((stars for level, stars in sorted(LEVELS.items()) if p < level), "")


def tables_against(comparison: Comparison, baseline: Finished, other: Finished) -> list[Table]:
    """Make the tables of `other` against the baseline at the primary K.

    They are tests over all users and by group, gaps between groups, and what has no test.
    """
    k, table = comparison.k, comparison.table[comparison.table["run"] == other.name]
    at_k = table[table["k"] == k]
    paired, gaps = at_k[at_k["kind"] == "paired"], at_k[at_k["kind"] == "gap"]
    overall = paired[paired["attribute"].isna()]
    ndcg, tested = MetricKey("ndcg", k), [*VALUE_HEADERS, *TEST_HEADERS]
    of_ndcg = np.array([MetricKey.parse(text).name == ndcg.name for text in paired["metric"]], dtype=bool)
    groups = paired[of_ndcg & paired["attribute"].notna()]
    parts = {
        "All users; accuracy in percent": (tested, _tests(overall, of_group=False)),
        f"{name_of(ndcg)} by user group, in percent": (tested, _tests(groups, of_group=True)),
        "Gap between user groups, largest less smallest mean; accuracy in percent": (
            [*VALUE_HEADERS, TEST_HEADERS[0]],
            [[_named(MetricKey.parse(row.metric)), *_values(row), _interval(row)] for row in gaps.itertuples()],
        ),
        "Numbers of the whole list, which have no test; accuracy in percent": (
            VALUE_HEADERS,
            _side_by_side(table[table["kind"] == "untested"], (baseline, other), k),
        ),
    }
    return [Table(title, ["", *headers], rows) for title, (headers, rows) in parts.items() if rows]


def legend() -> str:
    """Say what the marks in the tables mean."""
    stars = ", ".join(f"{stars} below {level}" for level, stars in sorted(LEVELS.items(), reverse=True))
    return (
        f"Stars: p after Holm {stars}.  d_z: mean difference over its standard deviation.\n"
        f"r: rank-biserial correlation.  {LEGEND}, blank: not measured."
    )


def terminal_report(comparison: Comparison, runs: Sequence[Finished]) -> str:
    """Write the comparison at the primary K as text."""
    blocks = [textwrap.fill(comparison.caption, WIDTH)]
    for other in runs[1:]:
        blocks.append(f"=== {other.name} against {runs[0].name} (baseline)")
        blocks += [table.text() for table in tables_against(comparison, runs[0], other)]
    return "\n" + "\n\n".join([*blocks, legend()])


def write_report(comparison: Comparison, runs: Sequence[Finished], command: str) -> None:
    """Draw accuracy against fairness for all runs, and write `report.html` with that picture and the tables."""
    accuracy, points = str(MetricKey("ndcg", comparison.k)), {run.name: run.metrics for run in runs}
    title = f"Comparison with {runs[0].name}"
    sections = [Section("Runs", f"{comparison.caption}\n\n{legend()}")]
    if fairness_metrics(points, accuracy):
        with attempt("the picture accuracy_against_fairness"):
            paths = accuracy_against_fairness(points, comparison.directory / "accuracy_against_fairness", accuracy)
            picture = Picture("Accuracy against fairness", PARETO_CAPTION, tuple(paths))
            sections.append(Section("Accuracy against fairness", images=[picture]))
    for other in runs[1:]:
        sections.append(
            Section(f"{other.name} against {runs[0].name}", tables=tables_against(comparison, runs[0], other))
        )
    with attempt("report.html"):
        write_page(comparison.directory / "report.html", title, command, sections)


def _named(key: MetricKey) -> str:
    """The metric's name, without what stands in brackets, and its better side."""
    name = re.sub(r" \([^)]*\)", "", name_of(key))
    return f"{name} {arrow(key)}"


def _values(row: Any) -> list[str]:
    key = MetricKey.parse(row.metric)
    return [cell(key, row.baseline_value), cell(key, row.value), cell(key, row.difference, signed=True)]


def _side_by_side(untested: pd.DataFrame, pair: tuple[Finished, Finished], k: int) -> list[list[str]]:
    rows, table = {row.metric: row for row in untested.itertuples()}, []
    for key in main_metrics(rows, k):
        measured = [str(key) in run.metrics for run in pair]
        cells = zip(_values(rows[str(key)]), [*measured, all(measured)], strict=True)
        table.append([_named(key), *(text if there else "" for text, there in cells)])
    return table


def _interval(row: Any) -> str:
    return interval(MetricKey.parse(row.metric), row.low, row.high, signed=True)


def _tests(rows: pd.DataFrame, of_group: bool) -> list[list[str]]:
    table = []
    for row in rows.itertuples():
        name = f"{row.attribute} {row.group}" if of_group else _named(MetricKey.parse(row.metric))
        chances = [_p(row.p), f"{_p(row.p_holm)} {_stars(row.p_holm):<3}"]
        effects = [UNDEFINED if math.isnan(effect) else f"{effect:+.3f}" for effect in (row.d_z, row.rank_biserial)]
        table.append([name, *_values(row), _interval(row), *chances, *effects])
    return table


def _p(value: float) -> str:
    return UNDEFINED if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"
