"""What a comparison found, in a few sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from data.messages import counted
from model.comparison.compare import USED
from model.evaluation.keys import MetricKey
from model.evaluation.metric_kinds import ACCURACY, HEADLINE, PARITY
from model.evaluation.metric_table import shown_in
from model.results.finished import Finished
from model.results.metric_text import cell, chance_of, interval, name_of

# so many runs are named in a sentence, the others counted
NAMED = 3


def summary_lines(table: pd.DataFrame, runs: Sequence[Finished], k: int) -> list[str]:
    """Say how the runs differ from the first at cut-off `k`: accuracy, tail, parity, leakage, warnings."""
    rows, over_seeds = {}, {}
    for row in table.to_dict("records"):
        # what draws users and seeds again comes after what draws seeds alone, and takes its place
        (rows if "differs" in USED[row["kind"]] else over_seeds)[row["run"], row["metric"]] = row
    attributes = [name for name in runs[0].groups if all(name in run.groups for run in runs)]
    parity = [
        MetricKey(row.name, k, attribute)
        for attribute in attributes
        for row in shown_in(HEADLINE)
        if row.kind == PARITY
    ]
    leakage = [MetricKey("leakage_auc", None, attribute) for attribute in attributes]
    lines = [
        _line("Accuracy", [MetricKey("ndcg", k)], rows, over_seeds, runs),
        _line("Tail", [MetricKey("ndcg", k, "tail"), MetricKey("aplt", k)], rows, over_seeds, runs),
        _line("Parity", parity, rows, over_seeds, runs),
        _line("Leakage", leakage, rows, over_seeds, runs),
        _warnings(runs),
    ]
    return [line for line in lines if line]


def _line(subject: str, keys: Sequence[MetricKey], rows: Mapping, over_seeds: Mapping, runs: Sequence[Finished]) -> str:
    """A sentence on `keys`: the first run's values, and how the others differ; nothing where it has none of them."""
    baseline, others = runs[0], runs[1 : 1 + NAMED]
    parts = []
    for key in keys:
        if math.isnan(baseline.metrics.get(str(key), math.nan)):
            continue
        told = [
            f"{run.name} {_change(rows.get((run.name, str(key))), over_seeds.get((run.name, str(key))), key)}"
            for run in others
        ]
        what = _what(key)
        parts.append(f"{what} is {_amount(baseline, key)} in {baseline.name}; {', '.join(told)}")
    if not parts:
        return ""
    more = len(runs) - 1 - len(others)
    rest = f"; {counted(more, 'more run')} below" if more else ""
    return f"{subject}: {'. '.join(parts)}{rest}."


def _what(key: MetricKey) -> str:
    if key.group in ("head", "tail"):
        return f"{key.metric.title}@{key.k} on {key.group} items"
    return f"{key.metric.head} by {key.group}" if key.metric.of_attribute else name_of(key)


def _amount(run: Finished, key: MetricKey) -> str:
    unit = " %" if key.metric.kind == ACCURACY else ""
    chance = chance_of(run.metrics, key)
    within = ", within chance," if chance is not None and chance.within else ""
    return f"{cell(key, run.metrics[str(key)])}{unit}{within}"


def _change(row: Mapping | None, over_seeds: Mapping | None, key: MetricKey) -> str:
    """The difference with its interval and whether it is beyond noise, where that is known, and that over seeds."""
    if row is None or math.isnan(row["difference"]):
        return "has none"
    text = cell(key, row["difference"], signed=True)
    if not math.isnan(row["low"]):
        text += f" {interval(key, row['low'], row['high'], signed=True)}"
    verdict = {True: "beyond noise", False: "within noise"}.get(row["differs"], "not tested")
    if over_seeds is not None and not math.isnan(over_seeds["low"]):
        verdict += f"; with seeds {interval(key, over_seeds['low'], over_seeds['high'], signed=True)}"
    return f"{text} ({verdict})"


def _warnings(runs: Sequence[Finished]) -> str:
    if all(run.warnings is None for run in runs):
        return ""
    told = [f"{run.name} {len(run.warnings)}" for run in runs if run.warnings]
    return f"Warnings: {', '.join(told)}, listed below." if told else "Warnings: none."
