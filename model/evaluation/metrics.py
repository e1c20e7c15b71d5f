"""Accuracy from ranks, exposure and parity from the lists: what one ranking is worth, overall and per group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from data.structs import EvalResult, Group, ItemLists, Ranking, Split
from fairness_utils import list_means, list_metrics, mean_defined, position_weights, released_parity

# Whose definitions a protocol's numbers follow.
DEFINITIONS = ("standard", "fda")


def _accuracy(relevant: ItemLists, ranks: np.ndarray, k: int, definitions: str) -> dict[str, np.ndarray]:
    rows, owner, lengths = len(relevant.indptr) - 1, relevant.owner, relevant.lengths
    asked = lengths > 0
    hit = ranks <= k
    gain = np.bincount(owner[hit], weights=1 / np.log2(ranks[hit] + 1.0), minlength=rows)
    ideal = np.concatenate([[0.0], np.cumsum(position_weights(k))])[np.minimum(lengths, k)]
    reciprocal = np.zeros(rows)
    np.maximum.at(reciprocal, owner[hit], 1.0 / ranks[hit])
    if definitions == "fda":
        found = np.bincount(owner[hit], minlength=rows)
        hit_rate = np.divide(found, np.minimum(lengths, k), out=np.full(rows, np.nan), where=asked)
    else:
        hit_rate = np.where(asked, (reciprocal > 0).astype(np.float64), np.nan)
    return {
        "hr": hit_rate,
        "ndcg": np.divide(gain, ideal, out=np.full(rows, np.nan), where=asked),
        "mrr": np.where(asked, reciprocal, np.nan),
    }


def per_user_accuracy(
    ranking: Ranking, k: int, among: np.ndarray | None = None, definitions: str = "standard"
) -> dict[str, np.ndarray]:
    """Compute `hr`, `ndcg` and `mrr` at cut-off k of each user from ranks alone: name -> `[T]`, NaN if not asked.

    With one relevant item: hit, 1 / log2(rank + 1) and 1 / rank, each 0 where rank > k. With several: any hit,
    DCG over the DCG of min(k, relevant items) hits at the top, and 1 / rank of the first. `among [I]` (bool) counts
    only these items as relevant ones; users without any are not asked. With `definitions` fda, `hr` is the number of
    hits over min(k, relevant items).
    """
    relevant = ranking.relevant
    if among is None:
        return _accuracy(relevant, ranking.ranks, k, definitions)
    kept = among[relevant.item]
    indptr = np.concatenate([[0], np.cumsum(kept)])[relevant.indptr].astype(np.int64)
    return _accuracy(ItemLists(indptr, relevant.item[kept]), ranking.ranks[kept], k, definitions)


def _group_summary(key: str, values: np.ndarray, codes: np.ndarray, group: Group) -> dict[str, float]:
    counted = (codes >= 0) & ~np.isnan(values)
    sizes = np.bincount(codes[counted], minlength=group.num_groups)
    totals = np.bincount(codes[counted], weights=values[counted], minlength=group.num_groups)
    means = np.divide(totals, sizes, out=np.full(group.num_groups, np.nan), where=sizes > 0)
    defined = means[sizes > 0]
    comparable = len(defined) > 1
    summary = {f"{key}/{group.name}/{label}": float(mean) for label, mean in zip(group.labels, means, strict=True)}
    summary[f"{key}/gap/{group.name}"] = float(np.ptp(defined)) if comparable else float("nan")
    summary[f"{key}/std/{group.name}"] = float(defined.std()) if comparable else float("nan")
    return summary


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
    definitions: str = "standard",
) -> EvalResult:
    """Compute all metrics of a ranking at each cut-off of `ks`, as fractions.

    Summary names: `hr@10` (also ndcg, mrr), `hr@10/head` and `/tail` (relevant items restricted to these),
    `hr@10/gender/F`, `hr@10/gap/gender` (largest less smallest group mean), `hr@10/std/gender` (population
    standard deviation of the group means), and those of `list_metrics`. Means are over users with a relevant
    item; every ranked user counts in the exposure metrics. Per user: `hr@10`, ..., and of the list `arp@10` (mean
    train degree) and `aplt@10` (share of tail items) -> `[T]`. Raises ValueError for a cut-off beyond the ranked lists.

    `definitions` fda (Chen et al., WWW 2023): `hr@10` is a user's hits over min(K, relevant items), the overall
    `ndcg@10` counts users without a relevant item as 0, and `dp_code@10/gender`, `eo_code@10/gender` come beside ours.
    """
    if definitions not in DEFINITIONS:
        raise ValueError(f"metric definitions {definitions!r}: allowed is one of {', '.join(DEFINITIONS)}")
    _check_cutoffs(ks, ranking.topk.shape[1])
    popularity = split.item_groups["popularity"]
    buckets = {label: popularity.codes == code for code, label in enumerate(popularity.labels)}
    codes = {name: group.codes[ranking.users] for name, group in user_groups.items()}
    summary: dict[str, float] = {}
    per_user: dict[str, np.ndarray] = {}
    for k in ks:
        overall = per_user_accuracy(ranking, k, definitions=definitions)
        restricted = {label: per_user_accuracy(ranking, k, chosen, definitions) for label, chosen in buckets.items()}
        for metric, values in overall.items():
            key = f"{metric}@{k}"
            per_user[key] = values
            summary[key] = mean_defined(values)
            for label, bucket in restricted.items():
                summary[f"{key}/{label}"] = mean_defined(bucket[metric])
            for name, group in user_groups.items():
                summary |= _group_summary(key, values, codes[name], group)
        for metric, item_values in (("arp", split.degree), ("aplt", buckets["tail"])):
            per_user[f"{metric}@{k}"] = list_means(ranking.topk[:, :k], item_values)
        summary |= list_metrics(ranking.topk, ranking.relevant, codes, buckets["tail"], split.degree, k)
        if definitions == "fda":
            asked = (ranking.relevant.lengths > 0).sum()
            summary[f"ndcg@{k}"] *= asked / split.num_users
            for name, own in codes.items():
                parity = released_parity(ranking.topk[:, :k], ranking.relevant, own, len(split.degree))
                summary |= {
                    f"{key}@{k}/{name}": value for key, value in zip(("dp_code", "eo_code"), parity, strict=True)
                }
    return EvalResult(summary, per_user)
