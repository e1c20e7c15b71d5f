"""Compare finished runs: the first is the baseline, and each other one is compared with it over the same users.

Runs of the same seeds are also compared over seeds, and over users within seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import pandas as pd

from model.comparison.parity_statistics import change_interval, compare_excess, debiased_change_interval, signed_square
from model.comparison.run_parity import PERMUTATIONS, RunParity, shift
from model.comparison.statistics import (
    CONFIDENCE,
    LEVEL,
    NORMAL,
    RESAMPLES,
    compare_gaps,
    compare_paired,
    compare_seeds,
    compare_users_within_seeds,
    holm,
)
from model.evaluation.keys import EXCESS, MetricKey
from model.evaluation.metric_table import METRICS
from model.results.finished import Finished
from model.results.metric_text import chance_of

# names of what the statistics give, as columns of the long table
VALUES = {"baseline": "baseline_value", "other": "value"}
NUMBERS = ("baseline_value", "value", "difference")
EXCESSES = ("baseline_chance", "chance", "baseline_excess", "excess", "excess_difference")
INTERVAL = ("low", "high")
TEST = ("p", "p_holm", "family")
# what a row of each kind has beside its run, baseline, kind, K and metric
USED = {
    "paired": (*NUMBERS, *INTERVAL, "users", *TEST, "d_z", "rank_biserial", "attribute", "group", "differs"),
    "gap": (*NUMBERS, *INTERVAL, *EXCESSES, "attribute", "differs"),
    "parity": (*NUMBERS, *INTERVAL, *EXCESSES, *TEST, "attribute", "differs"),
    "untested": (*NUMBERS, *EXCESSES, "differs"),
    "seeds": (*NUMBERS, *INTERVAL, "seeds"),
    "users within seeds": (*NUMBERS, *INTERVAL, "users", "seeds"),
}
FIELDS = ["baseline", "run", "kind", "k", "metric", *dict.fromkeys(name for names in USED.values() for name in names)]

# parity of a run by cut-off and attribute
Parity = Mapping[tuple[int, str], RunParity]


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


def shared_metrics(runs: Iterable[Finished], k: int) -> list[MetricKey]:
    """Give those of `per_user_metrics` that all `runs` have."""
    runs = list(runs)
    return [key for key in per_user_metrics(k) if all(str(key) in run.values for run in runs)]


def comparison_rows(
    baseline: Finished, other: Finished, ks: Sequence[int], parity: Mapping[str, Parity], by_group: bool = True
) -> Iterator[dict]:
    """Make the rows of the long table for one pair of runs; `parity` is that of every run, by name.

    These are paired tests at each K over all users and (`by_group`) by group, changes of the gaps between groups,
    permutation tests of parity, differences without a test of what is one number for the whole list, and, where both
    have the same seeds, differences over seeds and over users within seeds.
    """
    pair, reported = {"baseline": baseline.name, "run": other.name}, set()
    shared = baseline.groups.columns.intersection(other.groups.columns)
    for k in ks:
        keys = shared_metrics((baseline, other), k)
        values = [run.values[list(map(str, keys))].to_numpy().T for run in (baseline, other)]
        rows = _corrected(_paired_rows(keys, *values, {"k": k, "family": f"all users @{k}"}))
        if by_group:
            rows += _corrected(_group_rows(baseline, shared, keys, values, k))
        for attribute in shared:
            rows += _gap_rows(baseline, other, attribute, keys, values, k)
        rows += _corrected(_parity_rows(baseline, other, shared, parity, k))
        reported |= {row["metric"] for row in rows}
        yield from (pair | row | {"differs": _differs(row)} for row in rows)
    for text in dict.fromkeys([*baseline.metrics, *other.metrics]):
        key = MetricKey.parse(text)
        if text not in reported and not key.part and (key.k is None or key.k in ks):
            row = {"k": key.k, "kind": "untested", "metric": text} | _difference(baseline, other, text)
            yield pair | row | {"differs": _beyond_chance(baseline, other, key)}
    if have_same_seeds((baseline, other)):
        yield from (pair | row for row in _seed_rows(baseline, other, ks))


def have_same_seeds(runs: Sequence[Finished]) -> bool:
    """Tell whether all `runs` are of the same seeds, more than one, so that they can be compared over these."""
    return len(runs[0].seeds) > 1 and all(run.seeds == runs[0].seeds for run in runs)


def _group_rows(run: Finished, attributes: Iterable[str], keys: Sequence[MetricKey], values: list, k: int) -> list:
    rows = []
    for attribute in attributes:
        codes, labels = run.codes(attribute)
        for code, label in enumerate(labels):
            members = [of_run[:, codes == code] for of_run in values]
            same = {"k": k, "family": f"user groups @{k}", "attribute": attribute, "group": label}
            of_group = [replace(key, group=attribute, label=label) for key in keys]
            rows += _paired_rows(of_group, *members, same)
    return rows


def _paired_rows(keys: Sequence[MetricKey], baseline: np.ndarray, other: np.ndarray, same: dict) -> list[dict]:
    statistics = asdict(compare_paired(baseline, other))
    return [same | {"kind": "paired", "metric": str(key)} | _entry(statistics, place) for place, key in enumerate(keys)]


def _gap_rows(
    baseline: Finished, other: Finished, attribute: str, keys: Sequence[MetricKey], values: list, k: int
) -> list[dict]:
    codes, labels = baseline.codes(attribute)
    changes = asdict(compare_gaps(*values, codes, len(labels)))
    rows = []
    for place, key in enumerate(keys):
        gap = replace(key, group=attribute, spread="gap")
        same = {"k": k, "kind": "gap", "attribute": attribute, "metric": str(gap)}
        rows.append(same | _excesses(baseline, other, gap) | _entry(changes, place))
    return rows


def _parity_rows(
    baseline: Finished, other: Finished, attributes: Iterable[str], parity: Mapping[str, Parity], k: int
) -> list[dict]:
    rows = []
    for attribute in attributes:
        first, second = (parity[run.name].get((k, attribute)) for run in (baseline, other))
        if first is None or second is None:
            continue
        for name in (name for name in first.permuted if name in second.permuted):
            key = MetricKey(name, k, attribute)
            values = [run.metrics[str(key)] for run in (baseline, other)]
            permuted = [run.permuted[name] for run in (first, second)]
            found = compare_excess(*values, *permuted)
            p = found.p
            if key.metric.debiased:
                left_out = [run.jackknives[name] for run in (first, second)]
                shifts = [shift(value, run) for value, run in zip(values, left_out, strict=True)]
                ends = np.array(debiased_change_interval(*left_out)) + shifts[1] - shifts[0]
                # near 0, where permutations are, the root is so steep that its differences tell nothing
                p = compare_excess(*map(signed_square, values), *map(signed_square, permuted)).p
            else:
                ends = change_interval(values[1] - values[0], first.parts[name], second.parts[name])
            levels = (found.baseline_chance, found.chance)
            excesses = [value - level for value, level in zip(values, levels, strict=True)]
            rows.append(
                {"k": k, "kind": "parity", "metric": str(key), "attribute": attribute, "family": f"parity @{k}"}
                | dict(zip(NUMBERS, (*values, values[1] - values[0]), strict=True))
                | dict(zip(EXCESSES, (*levels, *excesses, found.difference), strict=True))
                | dict(zip(INTERVAL, map(float, ends), strict=True))
                | {"p": p}
            )
    return rows


def _seed_rows(baseline: Finished, other: Finished, ks: Sequence[int]) -> Iterator[dict]:
    """Rows over seeds, the excess of figures by groups among them, and over users within seeds."""
    both = [MetricKey.parse(text) for text in baseline.metrics if text in other.metrics]
    keys = [key for key in both if key.part in ("", EXCESS) and (key.k is None or key.k in ks)]
    values = [
        np.array([[one.metrics.get(str(key), np.nan) for one in run.parts] for key in keys])
        for run in (baseline, other)
    ]
    found = asdict(compare_seeds(*values))
    for place, key in enumerate(keys):
        yield {"k": key.k, "kind": "seeds", "metric": str(key)} | _entry(found, place)
    for k in ks:
        keys = shared_metrics((baseline, other), k)
        names = list(map(str, keys))
        values = [np.stack([one.values[names].to_numpy().T for one in run.parts], axis=1) for run in (baseline, other)]
        found = asdict(compare_users_within_seeds(*values))
        for place, name in enumerate(names):
            yield {"k": k, "kind": "users within seeds", "metric": name} | _entry(found, place)


def _difference(baseline: Finished, other: Finished, text: str) -> dict[str, float]:
    values = [run.metrics.get(text, np.nan) for run in (baseline, other)]
    numbers = dict(zip(NUMBERS, (*values, values[1] - values[0]), strict=True))
    return numbers | _excesses(baseline, other, MetricKey.parse(text))


def _excesses(baseline: Finished, other: Finished, key: MetricKey) -> dict[str, float]:
    """The chance level of a figure in both runs, and what it is above it; nothing where it has none in both."""
    chances = [chance_of(run.metrics, key) for run in (baseline, other)]
    if None in chances:
        return {}
    means, excesses = ([getattr(chance, name) for chance in chances] for name in ("mean", "excess"))
    return dict(zip(EXCESSES, (*means, *excesses, excesses[1] - excesses[0]), strict=True))


def _differs(row: Mapping) -> bool | None:
    """Tell whether the runs of a tested row differ beyond noise; None where that cannot be told.

    What has an interval differs where it does not hold 0 (of figures by groups: the interval of the excess), and what
    has a p where that is below .05 after Holm's correction; what has both, where both say so.
    """
    difference = row["difference"]
    offset = row.get("excess_difference", difference) - difference
    says = []
    if not np.isnan(row["low"]):
        says.append(not row["low"] + offset <= 0 <= row["high"] + offset)
    if not np.isnan(row.get("p_holm", np.nan)):
        says.append(row["p_holm"] < LEVEL)
    return all(says) if says else None


def _beyond_chance(baseline: Finished, other: Finished, key: MetricKey) -> bool | None:
    """Tell whether excesses are farther apart than the spreads of both chance levels; None without chance levels."""
    chances = [chance_of(run.metrics, key) for run in (baseline, other)]
    if None in chances:
        return None
    first, second = chances
    return bool(abs(second.excess - first.excess) > NORMAL * np.hypot(first.std, second.std))


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


def what_of(runs: Sequence[Finished], k: int) -> str:
    """Say in a line what the numbers are of: data, users, protocol and K."""
    facts = runs[0].facts
    return (
        f"{facts['dataset']} (fingerprint {facts['fingerprint']}), {len(runs[0].values):,} users; "
        f"{facts['description']}; K = {k}."
    )


def sample_of(runs: Sequence[Finished]) -> str:
    """Say what is drawn in thought: users, seeds, or both."""
    if all(len(run.seeds) <= 1 for run in runs):
        return "One seed each: what is tested is users, and nothing is said about other seeds."
    users = "Values of a user are means over seeds."
    same = [run.name for run in runs[1:] if have_same_seeds((runs[0], run))]
    if not same:
        return f"{users} The seeds are not the same: what is tested is users, not seeds."
    others = "" if len(same) == len(runs) - 1 else " (the others over users alone)"
    return (
        f"{users} {', '.join(same)}: the same seeds as {runs[0].name}, so compared over users, over seeds, and over "
        f"users within seeds{others}."
    )


def caption_of(runs: Sequence[Finished], k: int) -> str:
    """Say what the numbers are of: data, task, runs, and what is drawn in thought."""
    labels = "; ".join(f"{run.name} = {label_of(run)}" for run in runs)
    return f"{what_of(runs, k)} {labels}. {sample_of(runs)}"


def method_of(runs: Sequence[Finished], table: pd.DataFrame, k: int) -> str:
    """Say how the numbers were computed."""
    tested = table[(table["family"] == f"all users @{k}") & (table["run"] == runs[1].name)]
    return (
        f"Differences are to {runs[0].name}, paired by user: {100 * CONFIDENCE:.0f} % percentile bootstrap intervals "
        f"over users ({RESAMPLES:,} resamples; of gaps within user groups), p by Wilcoxon's signed-rank test (users "
        f"without a difference left out), Holm-corrected over the {len(tested)} metrics of a pair of runs at this K; "
        "user groups and parity are families of their own. The test ranks differences, so it need not agree with the "
        "interval of their mean; beyond noise is what both call a difference. Excess is a figure less its mean under "
        f"labels permuted among the users. p of parity: {PERMUTATIONS:,} permutations, the same for both runs; the "
        "null is that labels matter in neither run. Intervals of parity: jackknife over users. AUC differs beyond "
        "noise where its excesses differ by more than the spread of both chance levels."
    )
