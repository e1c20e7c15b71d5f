"""Compare finished runs: the first is the baseline, and each other one is compared with it over the same users."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

import numpy as np
import pandas as pd

from model.comparison.finished import Finished
from model.comparison.statistics import CONFIDENCE, RESAMPLES, compare_gaps, compare_paired, holm
from model.evaluation.keys import MetricKey
from model.evaluation.metric_table import METRICS

# names of what the statistics give, as columns of the long table
VALUES = {"baseline": "baseline_value", "other": "value"}
NUMBERS = ("baseline_value", "value", "difference")
# what a row of each kind has beside its run, baseline, kind, K and metric
USED = {
    "paired": (*NUMBERS, "low", "high", "users", "p", "p_holm", "family", "d_z", "rank_biserial", "attribute", "group"),
    "gap": (*NUMBERS, "low", "high", "attribute"),
    "untested": NUMBERS,
}
FIELDS = ["baseline", "run", "kind", "k", "metric", *USED["paired"]]


def common_cutoffs(runs: Sequence[Finished], requested: tuple[int, ...] | None) -> list[int]:
    """Give the cut-offs that every run has, the baseline's primary one first, or those `asked`.

    Cut-offs that are asked and that a run lacks, or none in common, are a ValueError.
    """
    common = [k for k in runs[0].ks if all(k in run.ks for run in runs)]
    each = "; ".join(f"{run.name} has {', '.join(map(str, run.ks))}" for run in runs)
    if not common:
        raise ValueError(f"the runs have no cut-off K in common ({each}); evaluate them anew with the same --eval_k")
    missing = [k for k in requested or () if k not in common]
    if missing:
        raise ValueError(f"--eval_k={','.join(map(str, requested))}: not every run has {missing} ({each})")
    return list(requested or common)


def per_user_metrics(k: int) -> list[MetricKey]:
    """Give the metrics at cut-off `k` of which every user has a value, by the metric table."""
    return [MetricKey(row.name, k) for row in METRICS.values() if row.per_user]


def comparison_rows(baseline: Finished, other: Finished, ks: Sequence[int]) -> Iterator[dict]:
    """Make the rows of the long table for one pair of runs.

    These are paired tests at each K over all users and by group, changes of the gaps between groups, and differences
    without a test of what is one number for the whole list.
    """
    pair, reported = {"baseline": baseline.name, "run": other.name}, set()
    for k in ks:
        both = [str(key) for key in per_user_metrics(k) if all(str(key) in run.values for run in (baseline, other))]
        keys = [MetricKey.parse(text) for text in both]
        values = [run.values[both].to_numpy().T for run in (baseline, other)]
        overall = _paired_rows(keys, *values, {"k": k, "family": f"all users @{k}"})
        by_group, gaps = [], []
        for attribute in baseline.groups.columns.intersection(other.groups.columns):
            codes, labels = pd.factorize(baseline.groups[attribute], sort=True)
            for code, label in enumerate(labels):
                members = [run[:, codes == code] for run in values]
                same = {"k": k, "family": f"user groups @{k}", "attribute": attribute, "group": label}
                of_group = [replace(key, group=attribute, label=str(label)) for key in keys]
                by_group += _paired_rows(of_group, *members, same)
            changes = asdict(compare_gaps(*values, codes, len(labels)))
            same = {"k": k, "kind": "gap", "attribute": attribute}
            for place, key in enumerate(keys):
                gap = {"metric": str(replace(key, group=attribute, spread="gap"))}
                gaps.append(same | gap | _entry(changes, place))
        rows = [*_corrected(overall), *_corrected(by_group), *gaps]
        reported |= {row["metric"] for row in rows}
        yield from (pair | row for row in rows)
    for key in dict.fromkeys([*baseline.metrics, *other.metrics]):
        k = MetricKey.parse(key).k
        if key not in reported and (k is None or k in ks):
            baseline_value, other_value = (run.metrics.get(key, np.nan) for run in (baseline, other))
            changes = (baseline_value, other_value, other_value - baseline_value)
            yield pair | {"k": k, "kind": "untested", "metric": key} | dict(zip(NUMBERS, changes, strict=True))


def _paired_rows(keys: Sequence[MetricKey], baseline: np.ndarray, other: np.ndarray, same: dict) -> list[dict]:
    statistics = asdict(compare_paired(baseline, other))
    return [same | {"kind": "paired", "metric": str(key)} | _entry(statistics, place) for place, key in enumerate(keys)]


def _entry(columns: dict[str, np.ndarray], place: int) -> dict[str, float]:
    return {VALUES.get(name, name): column[place] for name, column in columns.items()}


def _corrected(family: list[dict]) -> list[dict]:
    adjusted = holm(np.array([row["p"] for row in family]))
    return [row | {"p_holm": value} for row, value in zip(family, adjusted, strict=True)]


def label_of(run: Finished) -> str:
    """Say what a run is: method, list and seeds."""
    if not run.seeds:
        return run.label
    return f"{run.label}, {'seed' if len(run.seeds) == 1 else f'mean of {len(run.seeds)} seeds:'} {_listed(run.seeds)}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def caption_of(runs: Sequence[Finished], table: pd.DataFrame, k: int) -> str:
    """Say what the numbers are and how they were computed."""
    facts, tested = runs[0].facts, table[(table["family"] == f"all users @{k}") & (table["run"] == runs[1].name)]
    labels = "; ".join(f"{run.name} = {label_of(run)}" for run in runs)
    averaged = " Values of a user are means over seeds, and what is tested is users, not seeds." * any(
        len(run.seeds) > 1 for run in runs
    )
    return (
        f"{facts['dataset']} (fingerprint {facts['fingerprint']}), {len(runs[0].values):,} users; "
        f"{facts['description']}; K = {k}. {labels}.{averaged} Differences are to {runs[0].name}, paired by user: "
        f"{100 * CONFIDENCE:.0f} % percentile bootstrap intervals over users ({RESAMPLES:,} resamples), p by "
        "Wilcoxon's signed-rank test (users without a difference left out), Holm-corrected over the "
        f"{len(tested)} metrics of a pair of runs at this K; user groups are a family of their own. The test ranks "
        "differences, so it need not agree with the interval of their mean."
    )
