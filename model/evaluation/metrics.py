"""Metrics of one ranking, overall and per group: accuracy from ranks, exposure and parity from lists.

`evaluate` computes every row of the metric table that has a function. The functions here are those of the rows: they
get `Found` (accuracy) or `Lists` (exposure and parity).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.protocols.base import Definitions
from data.structs import EvalResult, Group, ItemLists, Ranking, Split
from fairness_utils import coverage as coverage_of
from fairness_utils import (
    demographic_parity,
    disparate_treatment_ratio,
    exposure,
    exposure_share_gap,
    js_distance,
    keep_hits,
    list_means,
    mean_defined,
    position_weights,
)
from fairness_utils import gini as gini_of
from model.evaluation.keys import MetricKey
from model.evaluation.metric_table import ACCURACY, EXPOSURE, PARITY, SPREAD, of_kind

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

    def of_asked(self, values: np.ndarray, divisor: np.ndarray | float = 1.0) -> np.ndarray:
        """Divide `values [T]` by `divisor`; NaN for users without a relevant item."""
        return np.divide(values, divisor, out=np.full(len(self.asked), np.nan), where=self.asked)


def hit_rate(found: Found) -> np.ndarray:
    """Compute whether any relevant item is a hit, or the share of hits among min(K, relevant items): `[T]`."""
    hits = np.bincount(found.owner, minlength=len(found.asked))
    if found.definitions.hit_rate == "share":
        return found.of_asked(hits, np.minimum(found.relevant.lengths, found.k))
    return found.of_asked((hits > 0).astype(np.float64))


def ndcg(found: Found) -> np.ndarray:
    """Divide the DCG by that of the best list, which begins with min(K, relevant items) hits: `[T]`."""
    gains = 1 / np.log2(found.ranks[found.hit] + 1.0)
    gain = np.bincount(found.owner, weights=gains, minlength=len(found.asked))
    ideal = np.concatenate([[0.0], np.cumsum(position_weights(found.k))])
    return found.of_asked(gain, ideal[np.minimum(found.relevant.lengths, found.k)])


def mrr(found: Found) -> np.ndarray:
    """Compute one over the rank of the first hit, 0 without a hit: `[T]`."""
    reciprocal = np.zeros(len(found.asked))
    np.maximum.at(reciprocal, found.owner, 1.0 / found.ranks[found.hit])
    return found.of_asked(reciprocal)


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
    return {row.name: row.function(found) for row in of_kind(ACCURACY)}


# --- Exposure and parity ---


@dataclass(frozen=True)
class Lists:
    """What exposure and parity metrics read of all lists.

    `topk [T, K]` are their first K places (-1: padding), `relevant` each user's relevant items, `tail [I]` (bool) says
    which items are in the tail, and `degree [I]` counts their train interactions.
    """

    topk: np.ndarray
    relevant: ItemLists
    tail: np.ndarray
    degree: np.ndarray

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return len(self.degree)

    @cached_property
    def hits(self) -> np.ndarray:
        """`topk [T, K]` with -1 in place of what is no hit."""
        return keep_hits(self.topk, self.relevant, self.num_items)

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each item is in a list: `[I]`."""
        return exposure(self.topk, self.num_items)

    @cached_property
    def exposures(self) -> np.ndarray:
        """Each item's exposure, discounted by position: `[I]`."""
        return exposure(self.topk, self.num_items, position_weights(self.topk.shape[1]))


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


def dp(lists: Lists, codes: np.ndarray) -> float:
    """Compute demographic parity on raw counts."""
    return demographic_parity(lists.topk, codes, lists.num_items)


def eo(lists: Lists, codes: np.ndarray) -> float:
    """Compute equal opportunity on raw counts."""
    return demographic_parity(lists.hits, codes, lists.num_items)


def dp_rate(lists: Lists, codes: np.ndarray) -> float:
    """Compute demographic parity on rates."""
    return demographic_parity(lists.topk, codes, lists.num_items, by_rate=True)


def eo_rate(lists: Lists, codes: np.ndarray) -> float:
    """Compute equal opportunity on rates."""
    return demographic_parity(lists.hits, codes, lists.num_items, by_rate=True)


def dp_js(lists: Lists, codes: np.ndarray) -> float:
    """Compute demographic parity as Jensen-Shannon distance."""
    return js_distance(lists.topk, codes, lists.num_items)


def eo_js(lists: Lists, codes: np.ndarray) -> float:
    """Compute equal opportunity as Jensen-Shannon distance."""
    return js_distance(lists.hits, codes, lists.num_items)


def dp_code(lists: Lists, codes: np.ndarray) -> float:
    """Compute DP as FDA's released code does: an item counts as two, one where it is a hit and one where it is not."""
    by_hit = np.where(lists.hits >= 0, lists.topk + lists.num_items, lists.topk)
    return demographic_parity(by_hit, codes, 2 * lists.num_items)


def eo_code(lists: Lists, codes: np.ndarray) -> float:
    """Compute EO as FDA's released code does: hits of item 0 are lost."""
    return demographic_parity(np.where(lists.hits > 0, lists.hits, -1), codes, lists.num_items)


def list_metrics(lists: Lists, codes: Mapping[str, np.ndarray], further: Iterable[str] = ()) -> EvalResult:
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
        for row in of_kind(PARITY):
            if not row.further or row.name in further:
                summary[str(MetricKey(row.name, k, attribute))] = row.function(lists, group_codes)
    return EvalResult(summary, per_user)


# --- All of a ranking ---


def _of_groups(key: MetricKey, values: np.ndarray, codes: np.ndarray, group: Group) -> dict[str, float]:
    """Means of `values [T]` by user group, and the spreads between them."""
    counted = (codes >= 0) & ~np.isnan(values)
    sizes = np.bincount(codes[counted], minlength=group.num_groups)
    totals = np.bincount(codes[counted], weights=values[counted], minlength=group.num_groups)
    means = np.divide(totals, sizes, out=np.full(group.num_groups, np.nan), where=sizes > 0)
    defined = means[sizes > 0]
    comparable = len(defined) > 1
    spreads = {"gap": np.ptp(defined), "std": defined.std()} if comparable else {}
    summary = {
        str(MetricKey(key.name, key.k, group.name, label)): float(mean)
        for label, mean in zip(group.labels, means, strict=True)
    }
    return summary | {
        str(MetricKey(key.name, key.k, group.name, spread=row.name)): float(spreads.get(row.name, np.nan))
        for row in of_kind(SPREAD)
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
                summary |= _of_groups(key, values, codes[group.name], group)
        if definitions.unasked_ndcg == "zero":
            summary[str(MetricKey("ndcg", k))] *= (ranking.relevant.lengths > 0).sum() / split.num_users
        lists = Lists(ranking.topk[:, :k], ranking.relevant, parts["tail"], split.degree)
        listed = list_metrics(lists, codes, definitions.further)
        summary, per_user = summary | listed.summary, per_user | listed.per_user
    return EvalResult(summary, per_user)
