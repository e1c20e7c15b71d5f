"""Parity of finished runs, counted again from their lists: under permuted labels, and without each user in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from data.messages import warn
from fairness_utils import signed_root
from model.comparison.finished_lists import FinishedLists, read_lists
from model.comparison.parity_statistics import Jackknife, averaged, debiased_interval, jackknife, leave_parts_out
from model.evaluation.chance import permuted_parity
from model.evaluation.keys import MetricKey
from model.evaluation.metric_kinds import PARITY
from model.evaluation.metric_table import of_kind
from model.results.finished import Finished

# more than a run's own: the smallest p must survive Holm's correction for many figures
PERMUTATIONS = 1_000


@dataclass(frozen=True)
class RunParity:
    """Parity figures of one run by one attribute at one cut-off, means over seeds: `permuted` by metric, `[P]` each.

    What leaving users out tells is in `jackknives` of the debiased ones, and in `parts` of the others (deviations).
    """

    permuted: dict[str, np.ndarray]
    jackknives: dict[str, Jackknife]
    parts: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Cut:
    """Lists cut off at K: `topk`, `hits` `[T, K]` (-1: padding, no hit) of `num_items`."""

    topk: np.ndarray
    hits: np.ndarray
    num_items: int

    @property
    def debiased(self) -> dict[str, np.ndarray]:
        """The debiased parity metrics -> the lists that they are of."""
        return {"dp_debiased": self.topk, "eo_debiased": self.hits}


def parity_of_runs(runs: Sequence[Finished], ks: Sequence[int]) -> dict[str, dict[tuple[int, str], RunParity]]:
    """Count parity of `runs` again at each of `ks`, for each user attribute, by the run's name.

    A run without lists has none, and one warning names all of these.
    """
    found, lacking = {}, {}
    for run in runs:
        try:
            found[run.name] = _parity_of(run, ks)
        except ValueError as error:
            found[run.name], lacking[run.name] = {}, str(error)
    if lacking:
        reason = next(iter(lacking.values()))
        warn(f"differences in parity are not tested for {', '.join(lacking)}: {reason}")
    return found


def _parity_of(run: Finished, ks: Sequence[int]) -> dict[tuple[int, str], RunParity]:
    lists = [read_lists(single.folder, run.root, max(ks)) for single in run.singles]
    rows = [_rows_of(one, run) for one in lists]
    found = {}
    for k in ks:
        cuts = [
            _Cut(one.topk[chosen, :k], np.where(one.relevant, one.topk, -1)[chosen, :k], one.num_items)
            for one, chosen in zip(lists, rows, strict=True)
        ]
        for attribute in run.groups:
            found[k, attribute] = _parity(run, cuts, attribute, k)
    return found


def _rows_of(lists: FinishedLists, run: Finished) -> np.ndarray:
    """Where the users of a run stand in its lists: `[T]`."""
    rows = pd.Index(lists.users).get_indexer(run.values.index)
    if (rows < 0).any():
        raise ValueError(f"{(rows < 0).sum():,} of its users have no list; repeat the run")
    return rows


def _parity(run: Finished, cuts: Sequence[_Cut], attribute: str, k: int) -> RunParity:
    codes, _ = run.codes(attribute)
    metrics = [row for row in of_kind(PARITY) if str(MetricKey(row.name, k, attribute)) in run.metrics]
    debiased = [row.name for row in metrics if row.debiased]
    others = [row for row in metrics if not row.debiased]
    permuted = [permuted_parity(cut, codes, metrics, PERMUTATIONS) for cut in cuts]
    parts = [leave_parts_out(cut.topk, cut.hits, codes, others) for cut in cuts]
    return RunParity(
        {row.name: np.mean([of_seed[row.name] for of_seed in permuted], axis=0) for row in metrics},
        {name: averaged([jackknife(cut.debiased[name], codes, cut.num_items) for cut in cuts]) for name in debiased},
        {row.name: np.mean([of_seed[row.name] for of_seed in parts], axis=0) for row in others},
    )


def intervals_of(run: Finished, parity: dict[tuple[int, str], RunParity]) -> dict[str, tuple[float, float]]:
    """Give the 95 % intervals over users of a run's debiased parity, by metric key."""
    intervals = {}
    for (k, attribute), found in parity.items():
        for name, left_out in found.jackknives.items():
            key = str(MetricKey(name, k, attribute))
            # of seeds the figure is the mean of roots, and the interval that of the root of the mean
            low, high = np.array(debiased_interval(left_out)) + shift(run.metrics[key], left_out)
            intervals[key] = (float(low), float(high))
    return intervals


def shift(value: float, left_out: Jackknife) -> float:
    """How far a mean of roots over seeds is from the root of their mean; 0 of one run."""
    return value - float(signed_root(left_out.contrast))
