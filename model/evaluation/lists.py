"""Recommendation lists as metrics read them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.structs import ItemLists, Ranking, Split
from fairness_utils import exposure, keep_hits, position_weights


@dataclass(frozen=True)
class Lists:
    """What exposure metrics read of all lists, and what parity metrics are counted from.

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


def lists_at(ranking: Ranking, split: Split, k: int) -> Lists:
    """Cut a ranking's lists off at `k`."""
    return Lists(ranking.topk[:, :k], ranking.relevant, split.is_tail, split.degree)
