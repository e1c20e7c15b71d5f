"""Metrics of one ranking, overall and per group: accuracy from ranks, exposure and parity from lists.

`evaluate` computes every row of the metric table that has a function. The functions here are those of the rows: they
get `Found` (accuracy), `Lists` (exposure), `ByGroup` (parity) or group means (spreads).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.protocols.base import Definitions
from data.structs import EvalResult, Group, ItemLists, Ranking, Split
from fairness_utils import coverage as coverage_of
from fairness_utils import (
    disparate_treatment_ratio,
    exposure_share_gap,
    list_means,
    mean_defined,
    position_weights,
)
from fairness_utils import gini as gini_of
from model.evaluation.keys import MetricKey
from model.evaluation.lists import Lists, lists_at
from model.evaluation.metric_kinds import ACCURACY, EXPOSURE, PARITY, SPREAD, Metric
from model.evaluation.metric_table import computed, of_kind
from model.evaluation.parity import ByGroup

STANDARD = Definitions()

# --- Accuracy ---


@dataclass(frozen=True)
class Found:
    """What accuracy metrics read: each user's `relevant` items, their ranks in the same order, and the cut-off K."""

    relevant: ItemLists
    ranks: np.ndarray
    k: int
    definitions: Definitions

    @cached_property
    def asked(self) -> np.ndarray:
        """Users with a relevant item: `[T]` bool."""
        return self.relevant.lengths > 0

    @cached_property
    def hit(self) -> np.ndarray:
        """Relevant items of rank at most K: bool, in the order of `ranks`."""
        return self.ranks <= self.k

    @cached_property
    def owner(self) -> np.ndarray:
        """The row of the user of each relevant item that is a hit."""
        return self.relevant.owner[self.hit]

    @cached_property
    def hits(self) -> np.ndarray:
        """Hits of each user: `[T]`."""
        return np.bincount(self.owner, minlength=len(self.asked))

    @cached_property
    def gain(self) -> np.ndarray:
        """The DCG of each user, the sum of 1/log2(rank + 1) over her hits: `[T]`."""
        gains = 1 / np.log2(self.ranks[self.hit] + 1.0)
        return np.bincount(self.owner, weights=gains, minlength=len(self.asked))

    def of_asked(self, values: np.ndarray, divisor: np.ndarray | float = 1.0) -> np.ndarray:
        """Divide `values [T]` by `divisor`; NaN for users without a relevant item."""
        return np.divide(values, divisor, out=np.full(len(self.asked), np.nan), where=self.asked)


def hit_rate(found: Found) -> np.ndarray:
    """Compute whether any relevant item is a hit, or the share of hits among min(K, relevant items): `[T]`."""
    if found.definitions.hit_rate == "share":
        return found.of_asked(found.hits, np.minimum(found.relevant.lengths, found.k))
    return found.of_asked((found.hits > 0).astype(np.float64))


def ndcg(found: Found) -> np.ndarray:
    """Divide the DCG by that of the best list, which begins with min(K, relevant items) hits: `[T]`."""
    ideal = np.concatenate([[0.0], np.cumsum(position_weights(found.k))])
    return found.of_asked(found.gain, ideal[np.minimum(found.relevant.lengths, found.k)])


def mrr(found: Found) -> np.ndarray:
    """Compute one over the rank of the first hit, 0 without a hit: `[T]`."""
    reciprocal = np.zeros(len(found.asked))
    np.maximum.at(reciprocal, found.owner, 1.0 / found.ranks[found.hit])
    return found.of_asked(reciprocal)


def recall(found: Found) -> np.ndarray:
    """Compute the share of hits among the relevant items: `[T]`."""
    return found.of_asked(found.hits, found.relevant.lengths)


def f1(found: Found) -> np.ndarray:
    """Compute the harmonic mean 2 hits / (K + relevant items) of precision and recall: `[T]`."""
    return found.of_asked(2.0 * found.hits, found.k + found.relevant.lengths)


def ndcg_hits(found: Found) -> np.ndarray:
    """Divide the DCG by that of the same number of hits at the top of the list, 0 without a hit: `[T]`."""
    ideal = np.concatenate([[1.0], np.cumsum(position_weights(found.k))])
    return found.of_asked(found.gain, ideal[np.minimum(found.hits, found.k)])


def per_user_accuracy(
    ranking: Ranking, k: int, among: np.ndarray | None = None, definitions: Definitions = STANDARD
) -> dict[str, np.ndarray]:
    """Compute every accuracy metric at cut-off k of each user from ranks alone: name -> `[T]`.

    `among [I]` (bool) counts only these items as relevant ones. Users without a relevant item have NaN.
    """
    relevant, ranks = ranking.relevant, ranking.ranks
    if among is not None:
        kept = among[relevant.item]
        indptr = np.concatenate([[0], np.cumsum(kept)])[relevant.indptr].astype(np.int64)
        relevant, ranks = ItemLists(indptr, relevant.item[kept]), ranks[kept]
    found = Found(relevant, ranks, k, definitions)
    return {row.name: row.function(found) for row in computed(ACCURACY, definitions.further)}


# --- Exposure, and parity of whole lists ---


def gini(lists: Lists) -> float:
    """Compute the Gini index of exposure."""
    return gini_of(lists.exposures)


def gini_count(lists: Lists) -> float:
    """Compute the Gini index of counts."""
    return gini_of(lists.counts)


def coverage(lists: Lists) -> float:
    """Compute the share of the catalogue that is shown."""
    return coverage_of(lists.counts)


def arp(lists: Lists) -> np.ndarray:
    """Compute the mean train interactions of each list's items: `[T]`."""
    return list_means(lists.topk, lists.degree)


def aplt(lists: Lists) -> np.ndarray:
    """Compute the share of tail items in each list: `[T]`."""
    return list_means(lists.topk, lists.tail)


def exposure_gap(lists: Lists) -> float:
    """Compute the tail's share of exposure minus its share of the catalogue."""
    return exposure_share_gap(lists.exposures, lists.tail)


def dtr(lists: Lists) -> float:
    """Compute the disparate treatment ratio of tail and head, by train interactions."""
    return disparate_treatment_ratio(lists.exposures, lists.tail, lists.degree)


def list_metrics(lists: Lists, codes: Mapping[str, np.ndarray], further: Collection[str] = ()) -> EvalResult:
    """Compute every exposure and parity metric of `lists`, those of `further` included.

    `codes`: user attribute -> group codes `[T]`.
    """
    k, summary, per_user = lists.topk.shape[1], {}, {}
    for row in of_kind(EXPOSURE):
        key, value = str(MetricKey(row.name, k)), row.function(lists)
        if row.per_user:
            per_user[key], value = value, mean_defined(value)
        summary[key] = value
    for attribute, group_codes in codes.items():
        seen = ByGroup.of(lists, group_codes)
        for row in computed(PARITY, further):
            summary[str(MetricKey(row.name, k, attribute))] = float(row.function(seen))
    return EvalResult(summary, per_user)


# --- All of a ranking ---


def gap(means: np.ndarray) -> np.ndarray:
    """Subtract the smallest from the largest of the group means `[..., G]`: `[...]`; NaN means are left out."""
    return np.fmax.reduce(means, axis=-1, initial=np.nan) - np.fmin.reduce(means, axis=-1, initial=np.nan)


def std(means: np.ndarray) -> np.ndarray:
    """Compute the population standard deviation of the group means `[..., G]`: `[...]`; NaN means are left out."""
    defined = ~np.isnan(means)
    count = np.maximum(defined.sum(axis=-1, keepdims=True), 1)
    centred = np.where(defined, means - np.where(defined, means, 0).sum(axis=-1, keepdims=True) / count, 0)
    return np.sqrt((centred**2).sum(axis=-1) / count[..., 0])


def difference(means: np.ndarray) -> np.ndarray:
    """Subtract the second from the first of two group means `[..., G]`: `[...]`; NaN for another number of groups."""
    return means[..., 0] - means[..., 1] if means.shape[-1] == 2 else np.full(means.shape[:-1], np.nan)


def spread(row: Metric, means: np.ndarray) -> np.ndarray:
    """Compute the spread `row` of the group means `[..., G]`: `[...]`, NaN where fewer than two are defined."""
    return np.where((~np.isnan(means)).sum(axis=-1) > 1, row.function(means), np.nan)


def _of_groups(
    key: MetricKey, values: np.ndarray, codes: np.ndarray, group: Group, further: Collection[str]
) -> dict[str, float]:
    """Means of `values [T]` by user group, and the spreads between them, those of `further` included."""
    counted = (codes >= 0) & ~np.isnan(values)
    sizes = np.bincount(codes[counted], minlength=group.num_groups)
    totals = np.bincount(codes[counted], weights=values[counted], minlength=group.num_groups)
    means = np.divide(totals, sizes, out=np.full(group.num_groups, np.nan), where=sizes > 0)
    summary = {
        str(MetricKey(key.name, key.k, group.name, label)): float(mean)
        for label, mean in zip(group.labels, means, strict=True)
    }
    return summary | {
        str(MetricKey(key.name, key.k, group.name, spread=row.name)): float(spread(row, means))
        for row in computed(SPREAD, further)
    }


def _check_cutoffs(ks: Sequence[int], width: int) -> None:
    for k in ks:
        if not 1 <= k <= width:
            raise ValueError(
                f"cut-off K = {k}: allowed is 1..{width}, the length of the ranked lists; rank with a larger top-K "
                "or report a smaller one (a list is never longer than the catalogue)"
            )


def evaluate(
    ranking: Ranking,
    split: Split,
    user_groups: Mapping[str, Group],
    ks: Sequence[int],
    definitions: Definitions = STANDARD,
) -> EvalResult:
    """Compute all metrics of a ranking at each cut-off of `ks`, as fractions.

    Summary names: `hr@10` (also ndcg, mrr), `hr@10/head` and `/tail` (relevant items restricted to these),
    `hr@10/gender/F`, `hr@10/gap/gender` (largest less smallest group mean), `hr@10/std/gender` (population
    standard deviation of the group means), and those of `list_metrics`. Means are over users with a relevant
    item; every ranked user counts in the exposure metrics. Per user: `hr@10`, ..., and of the list `arp@10` (mean
    train degree) and `aplt@10` (share of tail items) -> `[T]`. Raises ValueError for a cut-off beyond the ranked lists.
    """
    _check_cutoffs(ks, ranking.topk.shape[1])
    popularity = split.item_groups["popularity"]
    parts = {label: popularity.codes == code for code, label in enumerate(popularity.labels)}
    codes = {name: group.codes[ranking.users] for name, group in user_groups.items()}
    summary: dict[str, float] = {}
    per_user: dict[str, np.ndarray] = {}
    for k in ks:
        restricted = {label: per_user_accuracy(ranking, k, items, definitions) for label, items in parts.items()}
        for name, values in per_user_accuracy(ranking, k, definitions=definitions).items():
            key = MetricKey(name, k)
            per_user[str(key)], summary[str(key)] = values, mean_defined(values)
            for label, part_values in restricted.items():
                summary[str(MetricKey(name, k, label))] = mean_defined(part_values[name])
            for group in user_groups.values():
                summary |= _of_groups(key, values, codes[group.name], group, definitions.further)
        if definitions.unasked_ndcg == "zero":
            summary[str(MetricKey("ndcg", k))] *= (ranking.relevant.lengths > 0).sum() / split.num_users
        listed = list_metrics(lists_at(ranking, split, k), codes, definitions.further)
        summary, per_user = summary | listed.summary, per_user | listed.per_user
    return EvalResult(summary, per_user)
