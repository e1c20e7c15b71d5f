"""Chance levels: what figures by user group are where groups do not matter.

The lists stay as they are, and the labels are permuted among the users of known label, `PERMUTATIONS` times. A figure
stands beside the mean and the standard deviation of its permutations (`level`); those of one attribute are the same
for every figure, cut-off and list of the same users, so that lists can be compared permutation by permutation
(Decision 49).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from scipy.sparse import csr_matrix

from data.protocols.base import Definitions
from data.structs import EvalResult, Group, Ranking, Split
from fairness_utils import over
from model.evaluation.keys import CHANCE, CHANCE_STD, EXCESS, MetricKey, P
from model.evaluation.lists import Lists, lists_at
from model.evaluation.metric_kinds import ACCURACY, PARITY, SPREAD, Metric
from model.evaluation.metric_table import computed
from model.evaluation.metrics import spread
from model.evaluation.parity import ByGroup

PERMUTATIONS = 200
SEED = 20_260_102
# numbers held at a time: few enough to stay near the processor
CELLS = 1 << 21
# a permutation reaches a value where it differs in rounding alone
TOLERANCE = 1e-9


def level(value: float, permuted: np.ndarray) -> dict[str, float]:
    """Set a figure beside its permutations `[P]`: its parts by the names of `CHANCE_PARTS`.

    `p` is the share of permutations, the figure itself among them, that reach it: one-sided, for figures whose larger
    values are the less fair. Undefined permutations are left out; without two defined ones all is NaN.
    """
    permuted = permuted[~np.isnan(permuted)]
    if np.isnan(value) or len(permuted) < 2:
        return dict.fromkeys((CHANCE, CHANCE_STD, EXCESS, P), np.nan)
    mean = float(permuted.mean())
    reached = np.sum(permuted >= value - TOLERANCE)
    parts = (mean, float(permuted.std(ddof=1)), value - mean, float((1 + reached) / (1 + len(permuted))))
    return dict(zip((CHANCE, CHANCE_STD, EXCESS, P), parts, strict=True))


def permutations(codes: np.ndarray, count: int = PERMUTATIONS, at_once: int | None = None) -> Iterator[np.ndarray]:
    """Permute group codes `[N]` `count` times, in blocks `[p, N]` of at most `at_once` (None: what fits in memory)."""
    generator = np.random.default_rng(SEED)
    at_once = at_once or max(1, CELLS // max(1, len(codes)))
    for start in range(0, count, at_once):
        yield np.stack([generator.permutation(codes) for _ in range(min(at_once, count - start))])


def _members(labels: np.ndarray, num_groups: int) -> np.ndarray:
    """Which user is in which group: `[p, N]` -> `[N, G, p]` float32 (exact for counts below 2^24)."""
    return (labels.T[:, None] == np.arange(num_groups)[:, None]).astype(np.float32)


def permuted_parity(
    lists: Lists, codes: np.ndarray, rows: Sequence[Metric], count: int = PERMUTATIONS
) -> dict[str, np.ndarray]:
    """Compute parity metrics `rows` under each permutation of the group codes `[T]` (-1: unknown): name -> `[P]`."""
    known = codes >= 0
    _, codes = np.unique(codes[known], return_inverse=True)
    sizes = np.bincount(codes)
    topk, hits = lists.topk[known], lists.hits[known]
    items, column = np.unique(topk[topk >= 0], return_inverse=True)  # [I]
    shown = _incidence(topk >= 0, column, len(items))
    hit = _incidence(hits >= 0, column[(hits >= 0)[topk >= 0]], len(items))
    values: dict[str, list[np.ndarray]] = {row.name: [] for row in rows}
    at_once = max(1, CELLS // max(1, len(sizes) * max(len(items), len(codes))))
    for labels in permutations(codes, count, at_once):
        members = _members(labels, len(sizes))
        seen = ByGroup(_counted(shown, members), _counted(hit, members), sizes, items)
        for row in rows:
            values[row.name].append(row.function(seen))
    return {name: np.concatenate(blocks) for name, blocks in values.items()}


def _incidence(present: np.ndarray, column: np.ndarray, num_items: int) -> csr_matrix:
    """Which item is in which user's list: `[I, N]`, from the entries that are `present [N, K]` and their items."""
    user = np.nonzero(present)[0]
    return csr_matrix((np.ones(len(user), dtype=np.float32), (column, user)), (num_items, len(present)))


def _counted(incidence: csr_matrix, members: np.ndarray) -> np.ndarray:
    """Count each item in the lists of each group: `[I, N] x [N, G, p]` -> `[p, G, I]` float64."""
    users, groups, count = members.shape
    counts = incidence @ members.reshape(users, groups * count)  # [I, G * p]
    return counts.reshape(incidence.shape[0], groups, count).transpose(2, 1, 0).astype(np.float64, order="C")


def permuted_spreads(
    values: np.ndarray, codes: np.ndarray, count: int = PERMUTATIONS, further: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Compute the spreads between group means of per-user values `[M, T]` (NaN: none) under permutations: `[P, M]`.

    Spreads of `further` are among them.
    """
    known = codes >= 0
    codes, values = codes[known], values[:, known]
    defined = ~np.isnan(values)
    both = np.concatenate([np.where(defined, values, 0), defined]).T  # [N, 2M]
    num_groups = int(codes.max(initial=-1)) + 1
    rows = computed(SPREAD, further)
    spreads: dict[str, list[np.ndarray]] = {row.name: [] for row in rows}
    for labels in permutations(codes, count, max(1, CELLS // max(1, num_groups * len(codes)))):
        members = _members(labels, num_groups).astype(np.float64)
        sums = np.tensordot(members, both, (0, 0))  # [G, p, 2M]
        totals, counts = np.split(sums.transpose(1, 2, 0), 2, axis=1)  # [p, M, G]
        for row in rows:
            spreads[row.name].append(spread(row, over(totals, counts)))
    return {name: np.concatenate(blocks) for name, blocks in spreads.items()}


def chance_levels(
    ranking: Ranking,
    split: Split,
    user_groups: Mapping[str, Group],
    ks: Sequence[int],
    outcome: EvalResult,
    definitions: Definitions,
    count: int = PERMUTATIONS,
) -> dict[str, float]:
    """Compute the chance level of every parity metric and spread of a ranking's `outcome`: parts by metric key."""
    levels: dict[str, float] = {}
    rows, accuracy = (computed(kind, definitions.further) for kind in (PARITY, ACCURACY))

    def add(key: MetricKey, permuted: np.ndarray) -> None:
        parts = level(outcome.summary[str(key)], permuted)
        levels.update({str(key.of(part)): value for part, value in parts.items()})

    lists = {k: lists_at(ranking, split, k) for k in ks}  # which keep their hits for all attributes
    for name, group in user_groups.items():
        codes = group.codes[ranking.users]
        for k, at_k in lists.items():
            for row_name, permuted in permuted_parity(at_k, codes, rows, count).items():
                add(MetricKey(row_name, k, name), permuted)
        keys = [MetricKey(row.name, k) for k in ks for row in accuracy]
        values = np.stack([outcome.per_user[str(key)] for key in keys])  # [M, T]
        for spread_name, permuted in permuted_spreads(values, codes, count, definitions.further).items():
            for key, column in zip(keys, permuted.T, strict=True):
                add(MetricKey(key.name, key.k, name, spread=spread_name), column)
    return levels
