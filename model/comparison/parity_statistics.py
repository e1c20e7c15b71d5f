"""Statistics of parity between two runs over the same users: what labels permuted among them give, and intervals.

Arrays in, numbers out. A permutation says whether labels matter, an interval what other users of the same groups might
have given: where lists do depend on the group, the permutations spread less than the figures of such users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from fairness_utils import count_by_group, mean_contrast, signed_root
from model.comparison.statistics import CONFIDENCE, NORMAL, SEED
from model.evaluation.chance import CELLS, TOLERANCE
from model.evaluation.metric_kinds import Metric
from model.evaluation.parity import ByGroup

# directions in which an ellipse is searched for its ends
DIRECTIONS = np.linspace(0, 2 * np.pi, 721)
# an interval needs so many users of each group: pairs of the others are left when one is left out
FEWEST_USERS = 3
# parts that the users are cut into, of which each is left out once
PARTS = 100


@dataclass(frozen=True)
class ExcessChange:
    """The difference of a figure's excess over chance between two runs (other less baseline), and its two-sided `p`."""

    baseline_chance: float
    chance: float
    difference: float
    p: float


def compare_excess(baseline: float, other: float, permuted_baseline: np.ndarray, permuted_other: np.ndarray):
    """Compare how far a figure of two runs is above chance: an `ExcessChange`.

    `permuted_baseline` and `permuted_other` `[P]` are the same figure under the same permutations. Their mean
    difference is that of the chance levels, so the observed one less it is the difference in excess. The null of `p` is
    that labels matter in neither run. Undefined permutations are left out; without two defined ones all is NaN.
    """
    changes = permuted_other - permuted_baseline
    defined = ~np.isnan(changes)
    observed, changes = other - baseline, changes[defined]
    if np.isnan(observed) or len(changes) < 2:
        return ExcessChange(np.nan, np.nan, np.nan, np.nan)
    mean = changes.mean()
    reached = np.sum(np.abs(changes - mean) >= abs(observed - mean) - TOLERANCE)
    return ExcessChange(
        baseline_chance=float(permuted_baseline[defined].mean()),
        chance=float(permuted_other[defined].mean()),
        difference=float(observed - mean),
        p=float((1 + reached) / (1 + len(changes))),
    )


def signed_square(values: np.ndarray | float) -> np.ndarray | float:
    """Square, with the sign of `values`: undoes `signed_root` (Decision 52)."""
    return values * np.abs(values)


@dataclass(frozen=True)
class Jackknife:
    """What leaving out each user once tells of a debiased parity: `contrast`, the square of it with its sign, and
    `deviations [N]` of that, whose squares sum up to its variance."""

    contrast: float
    deviations: np.ndarray

    @property
    def error(self) -> float:
        """The standard error of the contrast."""
        return float(np.sqrt(np.sum(self.deviations**2)))


def jackknife(topk: np.ndarray, codes: np.ndarray, num_items: int) -> Jackknife:
    """Leave each user out once of the `debiased_difference` of the groups `codes [T]` (-1: unknown, left out).

    `topk [T, K]` are the users' lists (-1: padding). A user's absence changes the pairs of users with shared items by
    what the user's own list shares, so there is no loop over users. Groups are strata: the variance is
    sum_g (n_g - 1)/n_g sum_i (V_-i - mean_g V_-i)^2 (Efron and Stein 1981: never too small in expectation). A group of
    fewer than three users makes it undefined.
    """
    known = codes >= 0
    _, codes = np.unique(codes[known], return_inverse=True)
    counts, sizes = count_by_group(topk[known], codes, num_items)  # [G, I], [G]
    if len(sizes) < 2 or sizes.min() < FEWEST_USERS:
        return Jackknife(np.nan, np.full(len(codes), np.nan))
    shown, users = topk[known] >= 0, np.arange(len(codes))
    lengths = shown.sum(axis=1)
    # how often each group is shown the items of each user's list: [N, G]
    overlap = np.where(shown, counts[:, topk[known]], 0).sum(axis=-1).T
    shared = counts @ counts.T  # [G, G]
    own = np.diagonal(shared) - counts.sum(axis=1)  # [G]
    own_without, sizes_without = (np.tile(values, (len(users), 1)) for values in (own, sizes))  # [N, G]
    own_without[users, codes] -= 2 * (overlap[users, codes] - lengths)
    sizes_without[users, codes] -= 1
    shared_without = np.tile(shared, (len(users), 1, 1))  # [N, G, G]
    shared_without[users, codes, :] -= overlap
    shared_without[users, :, codes] -= overlap
    left_out = mean_contrast(own_without, shared_without, sizes_without)  # [N]
    means = np.bincount(codes, weights=left_out) / sizes
    deviations = (left_out - means[codes]) * np.sqrt(1 - 1 / sizes)[codes]
    return Jackknife(float(mean_contrast(own, shared, sizes)), deviations)


def averaged(parts: Sequence[Jackknife]) -> Jackknife:
    """Average over seeds, whose users are the same."""
    return Jackknife(
        float(np.mean([part.contrast for part in parts])), np.mean([part.deviations for part in parts], axis=0)
    )


def debiased_interval(found: Jackknife) -> tuple[float, float]:
    """Compute the 95 % interval of a debiased parity: that of its contrast, whose root is taken at both ends."""
    ends = found.contrast + NORMAL * found.error * np.array([-1.0, 1.0])
    low, high = signed_root(np.clip(ends, -1, 1))
    return float(low), float(high)


def debiased_change_interval(baseline: Jackknife, other: Jackknife) -> tuple[float, float]:
    """Compute the 95 % interval of the difference of two debiased parities, other less baseline, of the same users.

    It holds the differences of all pairs of contrasts on the ellipse that is 1.96 standard errors wide in every
    direction, so it is the usual one where the root is nearly straight, and stays right near 0, where it is steep.
    """
    errors = np.array([baseline.error, other.error])
    if np.isnan(errors).any():
        return np.nan, np.nan
    product = errors.prod()
    correlation = np.clip(np.dot(baseline.deviations, other.deviations) / product, -1, 1) if product else 0.0
    first = np.cos(DIRECTIONS)
    second = correlation * first + np.sqrt(1 - correlation**2) * np.sin(DIRECTIONS)
    points = np.clip(
        np.array([[baseline.contrast], [other.contrast]]) + NORMAL * errors[:, None] * np.stack([first, second]), -1, 1
    )
    before, after = signed_root(points)
    return float((after - before).min()), float((after - before).max())


def leave_parts_out(
    topk: np.ndarray, hits: np.ndarray, codes: np.ndarray, rows: Sequence[Metric]
) -> dict[str, np.ndarray]:
    """Compute parity metrics `rows` without each of `PARTS` parts of the users: name -> deviations `[PARTS]`.

    Their squares sum up to the variance (delete-a-group jackknife, Kott 2001). Parts are drawn at random, with equal
    shares of each group of `codes [T]` (-1: unknown, left out), the same for the same codes. `topk`, `hits` `[T, K]`
    are the users' lists (-1: padding, no hit).
    """
    known = codes >= 0
    _, codes = np.unique(codes[known], return_inverse=True)
    topk, hits = topk[known], hits[known]
    generator, part, num_groups = np.random.default_rng(SEED), np.empty_like(codes), int(codes.max(initial=-1)) + 1
    part[np.lexsort((generator.random(len(codes)), codes))] = np.arange(len(codes)) % PARTS
    items, column = np.unique(topk[topk >= 0], return_inverse=True)
    columns = np.full(topk.shape, -1)
    columns[topk >= 0] = column

    def counted(present: np.ndarray, start: int, stop: int) -> np.ndarray:
        """How often each item is in the lists of each group, without each part in turn: `[stop - start, G, I]`."""
        shown = np.where(present, columns, -1)
        whole, _ = count_by_group(shown, codes, len(items))  # [G, I]
        chosen = (part >= start) & (part < stop)
        cells = ((part[chosen] - start) * num_groups + codes[chosen])[:, None] * len(items) + shown[chosen]
        size = (stop - start) * num_groups * len(items)
        own = np.bincount(cells[shown[chosen] >= 0], minlength=size).reshape(-1, num_groups, len(items))
        return whole - own

    sizes = np.bincount(codes) - np.bincount(part * num_groups + codes, minlength=PARTS * num_groups).reshape(PARTS, -1)
    # a group of whom nobody is left has no rates
    sizes = np.where(sizes > 0, sizes, np.nan)
    values: dict[str, list[np.ndarray]] = {row.name: [] for row in rows}
    at_once = max(1, CELLS // max(1, num_groups * len(items)))
    for start in range(0, PARTS, at_once):
        stop = min(start + at_once, PARTS)
        seen = ByGroup(
            counted(topk >= 0, start, stop).astype(np.float64),
            counted(hits >= 0, start, stop).astype(np.float64),
            sizes[start:stop],
            items,
        )
        for row in rows:
            values[row.name].append(row.function(seen))
    left_out = {name: np.concatenate(blocks) for name, blocks in values.items()}
    return {name: np.sqrt(1 - 1 / PARTS) * (found - found.mean()) for name, found in left_out.items()}


def change_interval(difference: float, baseline: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Compute the 95 % interval of the difference of a figure of two runs from their deviations by `leave_parts_out`.

    Chance levels are taken as known, so the interval of the difference in excess is as long.
    """
    half = stdtrit(PARTS - 1, (1 + CONFIDENCE) / 2) * np.sqrt(np.sum((other - baseline) ** 2))
    return float(difference - half), float(difference + half)
