"""Statistics of finished runs: a mean over seeds, and paired comparisons of two runs over the same users or seeds.

Arrays in, numbers out. Where users are the sample an interval says what other users of the same kind might have given;
where seeds are, what other seeds might; and where both are, what either might.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit, ndtri, stdtrit

from fairness_utils import mean_defined

LEVEL = 0.05
CONFIDENCE = 1 - LEVEL
RESAMPLES = 5_000
# so many standard errors to each side hold the middle of a normal distribution
NORMAL = float(ndtri((1 + CONFIDENCE) / 2))
SEED = 20_260_101
# differences are rounded to this many decimals: what is left of equal values after averaging is no difference, and a
# test on ranks would take it for one
DECIMALS = 12
# resampled indices held at a time
INDICES = 1 << 21


@dataclass(frozen=True)
class Summary:
    """The `count` defined values of a metric over seeds: mean, standard deviation (n - 1), interval of the mean."""

    count: int
    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Paired comparisons of M metrics, each field `[M]`.

    `baseline` and `other` are means over the `users` with a value in both; `difference` is other minus baseline, `low`
    and `high` its bootstrap interval, `p` the p-value, `d_z` and `rank_biserial` effect sizes.
    """

    users: np.ndarray
    baseline: np.ndarray
    other: np.ndarray
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    d_z: np.ndarray
    rank_biserial: np.ndarray


@dataclass(frozen=True)
class GapChange:
    """Changes of the gap between user groups (largest minus smallest mean), each field `[M]`.

    `baseline` and `other` are the gaps, `difference` is other minus baseline, `low` and `high` its bootstrap interval.
    """

    baseline: np.ndarray
    other: np.ndarray
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Change:
    """Changes of M figures, each field `[M]`: means of `baseline` and `other`, and `difference`, other less baseline,
    with its interval from `low` to `high`, over `seeds` and, where these are a sample too, `users`."""

    baseline: np.ndarray
    other: np.ndarray
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: np.ndarray
    users: np.ndarray


def summarise(values: Sequence[float], bounds: tuple[float, float] = (-np.inf, np.inf)) -> Summary:
    """Summarise the defined `values [S]` over seeds: mean, spread and 95 % interval of the mean.

    The interval is Student's on a scale without ends, the mean's standard error taken there by the delta method: the
    logit between two `bounds`, the logarithm above one, the values themselves without any: it stays between them
    (Decision 53).
    Spread and interval of fewer than two values are NaN, and so is everything of none.
    """
    values = np.asarray(values, dtype=np.float64)
    defined = values[~np.isnan(values)]
    count, mean = len(defined), mean_defined(values)
    if count < 2:
        return Summary(count, mean, np.nan, np.nan, np.nan)
    std = float(defined.std(ddof=1))
    low, high = _within(bounds, mean, _student(count) * std / np.sqrt(count))
    return Summary(count, mean, std, float(low), float(high))


def _student(count: int) -> float:
    return float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))


def _within(bounds: tuple[float, float], mean: float, half: float) -> np.ndarray:
    """The ends of an interval of `half` to each side of the mean, turned so that they stay within `bounds`: `[2]`."""
    low, high = bounds
    steps = np.array([-half, half])
    share = 0.5 if np.isinf(high) else (mean - low) / (high - low)
    # values that are all at a bound do not spread, but for rounding
    if half == 0 or np.isinf(low) or mean <= low or not 0 < share < 1:
        return mean + steps
    if np.isinf(high):
        return low + (mean - low) * np.exp(steps / (mean - low))
    slope = 1 / (share * (1 - share) * (high - low))
    return low + (high - low) * expit(logit(share) + slope * steps)


def holm(p: np.ndarray) -> np.ndarray:
    """Adjust the p-values of one family, `[M]`, by Holm's step-down rule; NaN is no test and stays."""
    adjusted, tested = np.full(len(p), np.nan), np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested])]
    # the smallest p times the number of tests, the next times one less, ...; none below the one before or above 1
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def wilcoxon(differences: np.ndarray) -> float:
    """Compute the two-sided p of Wilcoxon's signed-rank test of `differences [T]` (no NaN).

    Zeros are left out (`zero_method="wilcox"`), so the test is about the users whom two runs serve differently. Without
    any such user p is 1, without users NaN.
    """
    from scipy import stats

    differences = np.round(differences, DECIMALS)
    if not differences.any():
        return 1.0 if len(differences) else np.nan
    return float(stats.wilcoxon(differences, zero_method="wilcox").pvalue)


def rank_biserial(differences: np.ndarray) -> float:
    """Compute the matched-pairs rank-biserial correlation (W+ - W-) / (W+ + W-) of `differences [T]`.

    Zeros are left out as in `wilcoxon`; NaN where nothing is left.
    """
    from scipy import stats

    differences = np.round(differences, DECIMALS)
    moved = differences[differences != 0]
    ranks = stats.rankdata(np.abs(moved))
    return float((ranks * np.sign(moved)).sum() / ranks.sum()) if len(moved) else np.nan


def cohen_d_z(differences: np.ndarray) -> float:
    """Divide the mean of paired `differences [T]` by their standard deviation (n - 1); NaN where that is undefined."""
    differences = np.round(differences, DECIMALS)
    if len(differences) < 2 or np.ptp(differences) == 0:
        return np.nan
    return float(differences.mean() / differences.std(ddof=1))


def bootstrap(
    strata: Sequence[np.ndarray], statistic: Callable[[list[np.ndarray]], np.ndarray], resamples: int = RESAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the percentile bootstrap interval of a `statistic` of means over users: its lower and upper ends, `[S]`.

    Users are drawn again within each stratum. `strata` are values `[C, T_g]` of at least two users, whose columns stay
    together (paired); `statistic` gets their means, `[C, B]` per stratum, and gives `[S, B]`.
    """
    from scipy import stats

    columns = [np.ascontiguousarray(values.T) for values in strata]

    def of_means(*chosen: np.ndarray, axis: int = -1) -> np.ndarray:
        return statistic([_means(values, users) for values, users in zip(columns, chosen, strict=True)])

    result = stats.bootstrap(
        [np.arange(len(values)) for values in columns],
        of_means,
        n_resamples=resamples,
        batch=max(1, INDICES // max(len(values) for values in columns)),
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    return result.confidence_interval.low, result.confidence_interval.high


def _means(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Means of `values [T, C]` over each row of `chosen [..., T]`: `[C, ...]`."""
    # counts of the users drawn, times the values: many times faster than gathering the values
    size = len(values)
    rows = chosen.reshape(-1, size)
    cells = rows + size * np.arange(len(rows))[:, None]
    times = np.bincount(cells.ravel(), minlength=rows.size).reshape(rows.shape)
    return (times.astype(np.float64) @ values / size).T.reshape(-1, *chosen.shape[:-1])


def _families(defined: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of `defined [M, T]` (bool) that agree: pairs of row numbers and the mask `[T]` that they share."""
    masks, which = np.unique(defined, axis=0, return_inverse=True)
    return [(np.flatnonzero(which.ravel() == number), mask) for number, mask in enumerate(masks)]


def compare_paired(baseline: np.ndarray, other: np.ndarray, resamples: int = RESAMPLES) -> Paired:
    """Compare the per-user values `[M, T]` of two runs, metric by metric, over the users with a value in both.

    The interval of the difference is a paired percentile bootstrap over users, NaN with fewer than two.
    """
    defined = ~(np.isnan(baseline) | np.isnan(other))
    columns = {name: np.full(len(baseline), np.nan) for name in Paired.__dataclass_fields__}
    columns["users"] = defined.sum(axis=1)
    for rows, mask in _families(defined):
        pair = baseline[np.ix_(rows, mask)], other[np.ix_(rows, mask)]
        differences = pair[1] - pair[0]
        if mask.any():
            columns["baseline"][rows], columns["other"][rows] = pair[0].mean(axis=1), pair[1].mean(axis=1)
            columns["difference"][rows] = differences.mean(axis=1)
        if mask.sum() > 1:
            columns["low"][rows], columns["high"][rows] = bootstrap([differences], lambda means: means[0], resamples)
        for row, values in zip(rows, differences, strict=True):
            columns["p"][row], columns["d_z"][row] = wilcoxon(values), cohen_d_z(values)
            columns["rank_biserial"][row] = rank_biserial(values)
    return Paired(**columns)


def compare_gaps(
    baseline: np.ndarray, other: np.ndarray, codes: np.ndarray, num_groups: int, resamples: int = RESAMPLES
) -> GapChange:
    """Compare the gaps between the groups `codes [T]` (-1: unknown) in two runs' per-user values `[M, T]`.

    Users are drawn again within their group. Groups without a value are left out of both runs; with fewer than two
    groups there is no gap, and with a group of one user no interval. A gap is never below 0, so chance widens small
    ones: where groups hardly differ, the interval leans to larger gaps.
    """
    defined = ~(np.isnan(baseline) | np.isnan(other)) & (codes >= 0)
    columns = {name: np.full(len(baseline), np.nan) for name in GapChange.__dataclass_fields__}
    for rows, mask in _families(defined):
        sizes = np.bincount(codes[mask], minlength=num_groups)
        present = np.flatnonzero(sizes)
        if len(present) < 2:
            continue
        strata = [
            np.concatenate([run[np.ix_(rows, mask & (codes == group))] for run in (baseline, other)])
            for group in present
        ]
        gaps = _gaps([values.mean(axis=1)[:, None] for values in strata])[:, 0]
        columns["baseline"][rows], columns["other"][rows] = np.split(gaps, 2)
        if sizes[present].min() > 1:
            columns["low"][rows], columns["high"][rows] = bootstrap(strata, _gap_changes, resamples)
    columns["difference"] = columns["other"] - columns["baseline"]
    return GapChange(**columns)


def _gaps(means: list[np.ndarray]) -> np.ndarray:
    """Largest less smallest of the groups' `means`, each `[2M, B]`."""
    return np.ptp(np.stack(means), axis=0)


def _gap_changes(means: list[np.ndarray]) -> np.ndarray:
    before, after = np.split(_gaps(means), 2)
    return after - before


def compare_seeds(baseline: np.ndarray, other: np.ndarray) -> Change:
    """Compare M figures `[M, S]` of two runs over the same seeds: Student's interval of the mean paired difference.

    Seeds without a value in both are left out; with fewer than two there is no interval.
    """
    columns = {name: np.full(len(baseline), np.nan) for name in Change.__dataclass_fields__}
    defined = ~(np.isnan(baseline) | np.isnan(other))
    columns["seeds"], columns["users"] = defined.sum(axis=1), np.zeros(len(baseline), dtype=np.int64)
    for rows, mask in _families(defined):
        pair, count = [run[np.ix_(rows, mask)] for run in (baseline, other)], int(mask.sum())
        if count:
            columns["baseline"][rows], columns["other"][rows] = (run.mean(axis=1) for run in pair)
            columns["difference"][rows] = (pair[1] - pair[0]).mean(axis=1)
        if count > 1:
            half = _student(count) * (pair[1] - pair[0]).std(axis=1, ddof=1) / np.sqrt(count)
            columns["low"][rows] = columns["difference"][rows] - half
            columns["high"][rows] = columns["difference"][rows] + half
    return Change(**columns)


def compare_users_within_seeds(baseline: np.ndarray, other: np.ndarray, resamples: int = RESAMPLES) -> Change:
    """Compare per-user values `[M, S, T]` of two runs with the same seeds, where seeds and users are both a sample.

    The interval is that of a percentile bootstrap that draws users and, independently, seeds (the pigeonhole bootstrap,
    Owen 2007), of the S seeds S - 1 (Rao and Wu 1988: S would give too little spread where S is small). Users without a
    value in all of both runs are left out; fewer than two users or seeds have no interval.
    """
    differences = other - baseline
    metrics, seeds, _ = differences.shape
    columns = {name: np.full(metrics, np.nan) for name in Change.__dataclass_fields__}
    defined = ~np.isnan(differences).any(axis=1)  # [M, T]
    columns["seeds"], columns["users"] = np.full(metrics, seeds), defined.sum(axis=1)
    for rows, mask in _families(defined):
        users = int(mask.sum())
        if not users:
            continue
        columns["baseline"][rows], columns["other"][rows] = (
            run[rows][..., mask].mean(axis=(1, 2)) for run in (baseline, other)
        )
        of_users = differences[rows][..., mask]  # [m, S, N]
        columns["difference"][rows] = of_users.mean(axis=(1, 2))
        if users > 1 and seeds > 1:
            ends = _drawn(of_users.reshape(-1, users).T, len(rows), resamples)
            columns["low"][rows], columns["high"][rows] = ends
    return Change(**columns)


def _drawn(values: np.ndarray, metrics: int, resamples: int) -> np.ndarray:
    """The ends of the interval of the means of `values [N, M * S]`, users and seeds drawn again: `[2, M]`."""
    generator = np.random.default_rng(SEED)
    seeds, block = values.shape[1] // metrics, max(1, INDICES // len(values))
    means = []
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        of_seeds = _means(values, generator.integers(len(values), size=(count, len(values))))  # [M * S, B]
        shares = generator.multinomial(seeds - 1, np.full(seeds, 1 / seeds), count) / (seeds - 1)  # [B, S]
        means.append(np.einsum("msb,bs->mb", of_seeds.reshape(metrics, seeds, count), shares))
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(np.concatenate(means, axis=1), [tail, 1 - tail], axis=1)


def mean_interval(values: np.ndarray, resamples: int = RESAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Compute the percentile bootstrap interval over users of the mean of per-user values `[M, T]`: its ends, `[M]`."""
    low, high = np.full((2, len(values)), np.nan)
    for rows, mask in _families(~np.isnan(values)):
        if mask.sum() > 1:
            low[rows], high[rows] = bootstrap([values[np.ix_(rows, mask)]], lambda means: means[0], resamples)
    return low, high
