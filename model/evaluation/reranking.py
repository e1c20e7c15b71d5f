"""Re-rank a whole ranking: its lists by `fairness_utils.rerank`, and the ranks that follow from them."""

from __future__ import annotations

import numpy as np

from data.structs import Group, Ranking
from fairness_utils import rerank


def rerank_ranking(
    ranking: Ranking,
    item_groups: Group,
    alpha: float,
    exposure_floor: float,
    k: int,
    target: np.ndarray,
    pool: int | None = None,
    protected: str = "tail",
) -> tuple[Ranking, np.ndarray]:
    """Re-rank the first `pool` columns (default: all) of a ranking; return it and the infeasible users `[T]` bool.

    A relevant item inside the pool gets its new position as rank. Before, its rank may have been worse than its
    position, because ranks count tied candidates as above; the new order has no ties. A relevant item below the
    pool keeps its rank (at least pool + 1). With alpha 0 and floor 0 the ranking comes back unchanged, ranks too.
    """
    pool = ranking.topk.shape[1] if pool is None else min(pool, ranking.topk.shape[1])
    if pool < k <= ranking.topk.shape[1]:
        raise ValueError(f"rerank_pool {pool} is smaller than K {k}; raise it to at least K")
    if alpha == 0 and exposure_floor == 0:
        return ranking, np.zeros(len(ranking.users), dtype=bool)
    head, head_scores = ranking.topk[:, :pool], ranking.scores[:, :pool]
    result = rerank(head, head_scores, item_groups, alpha, exposure_floor, k, target, protected)
    topk = np.concatenate([result.topk, ranking.topk[:, pool:]], axis=1)
    scores = np.concatenate([result.scores, ranking.scores[:, pool:]], axis=1)
    return ranking.replace_lists(topk, scores, _positional_ranks(ranking, result.topk)), result.infeasible


def _positional_ranks(ranking: Ranking, pool_items: np.ndarray) -> np.ndarray:
    owner, wanted = ranking.relevant.owner, ranking.relevant.item
    lengths = (pool_items >= 0).sum(axis=1)
    ranks = np.maximum(ranking.ranks, lengths[owner] + 1)
    row, column = np.nonzero(pool_items >= 0)
    if not len(row):
        return ranks
    stride = max(int(pool_items.max()), int(wanted.max(initial=0))) + 1
    keys = row * stride + pool_items[row, column]
    order = keys.argsort()
    sought = owner * stride + wanted
    at = order[np.minimum(np.searchsorted(keys, sought, sorter=order), len(keys) - 1)]
    return np.where(keys[at] == sought, column[at] + 1, ranks)
