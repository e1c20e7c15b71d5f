"""Parity of lists between user groups: metrics of how often each group is shown each item.

They work on counts alone, with further axes in front, so that permuted groups take one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fairness_utils import count_by_group, debiased_difference, js_between, relative_difference
from model.evaluation.lists import Lists


@dataclass(frozen=True)
class ByGroup:
    """What parity metrics read: how often each user group is shown each item, and how often it is a hit.

    `shown`, `hits` are counts `[..., G, I]` of G groups and I items, with further axes where groups are permuted;
    `sizes [..., G]` are the groups' users, `items [I]` the ids of the items. A list holds an item at most once.
    """

    shown: np.ndarray
    hits: np.ndarray
    sizes: np.ndarray
    items: np.ndarray

    @cached_property
    def covered_hits(self) -> np.ndarray:
        """`hits [..., G, J]` of those J items that are a hit for anybody."""
        return self.hits[..., self.hits.any(axis=tuple(range(self.hits.ndim - 1)))]

    @classmethod
    def of(cls, lists: Lists, codes: np.ndarray) -> ByGroup:
        """Count the items of `lists` by the users' group `codes [T]` (-1: unknown, left out)."""
        shown, sizes = count_by_group(lists.topk, codes, lists.num_items)
        hits, _ = count_by_group(lists.hits, codes, lists.num_items)
        items = np.flatnonzero(shown.any(axis=0))
        return cls(shown[:, items], hits[:, items], sizes, items)


def dp(seen: ByGroup) -> np.ndarray:
    """Compute demographic parity on raw counts."""
    return relative_difference(seen.shown)


def eo(seen: ByGroup) -> np.ndarray:
    """Compute equal opportunity on raw counts."""
    return relative_difference(seen.covered_hits)


def dp_rate(seen: ByGroup) -> np.ndarray:
    """Compute demographic parity on rates."""
    return relative_difference(seen.shown, seen.sizes)


def eo_rate(seen: ByGroup) -> np.ndarray:
    """Compute equal opportunity on rates."""
    return relative_difference(seen.covered_hits, seen.sizes)


def dp_debiased(seen: ByGroup) -> np.ndarray:
    """Compute demographic parity without what chance adds."""
    return debiased_difference(seen.shown, seen.sizes)


def eo_debiased(seen: ByGroup) -> np.ndarray:
    """Compute equal opportunity without what chance adds."""
    return debiased_difference(seen.covered_hits, seen.sizes)


def dp_js(seen: ByGroup) -> np.ndarray:
    """Compute demographic parity as Jensen-Shannon distance."""
    return js_between(seen.shown)


def eo_js(seen: ByGroup) -> np.ndarray:
    """Compute equal opportunity as Jensen-Shannon distance."""
    return js_between(seen.covered_hits)


def dp_code(seen: ByGroup) -> np.ndarray:
    """Compute DP as FDA's released code does: an item counts as two, one where it is a hit and one where it is not."""
    return relative_difference(np.concatenate([seen.hits, seen.shown - seen.hits], axis=-1))


def eo_code(seen: ByGroup) -> np.ndarray:
    """Compute EO as FDA's released code does: hits of item 0 are lost."""
    return relative_difference(seen.hits[..., seen.items > 0])
