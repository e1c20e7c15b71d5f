"""Statistics of runs against closed forms, scipy called naively and literal twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from model.comparison.statistics import (
    SEED,
    bootstrap,
    cohen_d_z,
    compare_gaps,
    compare_paired,
    compare_seeds,
    compare_users_within_seeds,
    holm,
    mean_interval,
    rank_biserial,
    summarise,
    wilcoxon,
)

NAN = math.nan
NUMBERS = ("baseline", "other", "difference", "low", "high", "p", "d_z", "rank_biserial")


def test_mean_and_interval_over_seeds_in_closed_form():
    found = summarise([1.0, 2.0, 3.0])
    assert (found.count, found.mean, found.std) == (3, 2.0, 1.0)
    # t of 0.975 with two degrees of freedom is 4.302653
    assert (found.low, found.high) == pytest.approx(
        (2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-6
    )


def test_the_interval_over_seeds_is_student_s():
    values = np.random.default_rng(0).normal(size=7)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = summarise(values)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.std == pytest.approx(np.std(values, ddof=1), rel=1e-12)


@pytest.mark.parametrize(
    ("bounds", "to", "back", "slope"),
    [
        ((0, 1), special.logit, special.expit, lambda mean: 1 / (mean * (1 - mean))),
        ((-1, 1), lambda x: special.logit((x + 1) / 2), lambda x: 2 * special.expit(x) - 1, lambda m: 2 / (1 - m * m)),
        ((0, math.inf), np.log, np.exp, lambda mean: 1 / mean),
    ],
)
def test_the_interval_over_seeds_is_student_s_on_a_scale_without_ends(bounds, to, back, slope):
    values = [0.02, 0.05, 0.4]
    plain, found = summarise(values), summarise(values, bounds)
    assert (found.count, found.mean, found.std) == (plain.count, plain.mean, plain.std)
    half = (plain.high - plain.low) / 2 * slope(plain.mean)
    expected = back(to(plain.mean) - half), back(to(plain.mean) + half)
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-12)
    assert plain.low < bounds[0] or bounds[0] == -1
    assert bounds[0] < found.low < found.mean < found.high < bounds[1]


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_seeds_that_agree_have_an_interval_of_one_point(value):
    found = summarise([value] * 3, (0, 1))
    assert (found.low, found.mean, found.high) == (value, value, value)


def test_undefined_values_are_no_seeds():
    assert summarise([1.0, NAN, 3.0]) == summarise([1.0, 3.0])
    # at a bound but for rounding
    for bounds in ((0.0, 1.0), (-1.0, 1.0)):
        found = summarise([1.0, 1.0 - 2.0**-53, 1.0], bounds)
        assert found.low <= found.mean <= found.high and found.high - found.low < 1e-14
    one = summarise([0.5, NAN])
    assert (one.count, one.mean) == (1, 0.5)
    assert all(map(math.isnan, (one.std, one.low, one.high)))
    none = summarise([NAN, NAN])
    assert none.count == 0 and math.isnan(none.mean)


@pytest.mark.parametrize("seed", range(6))
def test_wilcoxon_is_scipy_s(seed):
    generator = np.random.default_rng(seed)
    # few different values: ties; many zeros, as of hits
    differences = generator.choice([-1.0, 0.0, 0.0, 0.5, 1.0], size=30 * (seed + 1))
    assert wilcoxon(differences) == stats.wilcoxon(differences).pvalue
    differences = generator.normal(0.2, 1, size=9 * (seed + 1))
    assert wilcoxon(differences) == pytest.approx(stats.wilcoxon(differences).pvalue, rel=1e-9)


def twin_rank_biserial(differences):
    moved = sorted((d for d in differences if d), key=abs)
    ranks = [sum((abs(e) < abs(d)) + (abs(e) == abs(d)) / 2 for e in moved) + 0.5 for d in moved]
    signed = sum(rank if d > 0 else -rank for rank, d in zip(ranks, moved, strict=True))
    return signed / sum(ranks) if moved else NAN


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-3, 3), max_size=40))
def test_rank_biserial_equals_a_literal_twin(differences):
    found = rank_biserial(np.array(differences, dtype=np.float64))
    assert found == pytest.approx(twin_rank_biserial(differences), abs=1e-12, nan_ok=True)


def test_effect_sizes_in_closed_form():
    assert rank_biserial(np.array([1.0, 2.0, 3.0, 0.0])) == 1
    assert rank_biserial(np.array([1.0, 2.0, -3.0])) == 0
    assert rank_biserial(np.array([1.0, -2.0])) == pytest.approx(-1 / 3)
    assert cohen_d_z(np.array([1.0, 2.0, 3.0])) == 2
    assert math.isnan(cohen_d_z(np.array([2.0, 2.0]))) and math.isnan(cohen_d_z(np.array([2.0])))


def test_no_difference_is_p_of_one_and_no_effect():
    assert wilcoxon(np.zeros(5)) == 1
    assert math.isnan(rank_biserial(np.zeros(5))) and math.isnan(cohen_d_z(np.zeros(5)))
    assert all(math.isnan(measure(np.zeros(0))) for measure in (wilcoxon, rank_biserial, cohen_d_z))


def test_what_averaging_leaves_of_equal_values_is_no_difference():
    one, other = (0.1 + 0.2 + 0.3) / 3, (0.3 + 0.2 + 0.1) / 3
    assert one != other
    assert wilcoxon(np.array([one - other] * 4)) == 1
    assert math.isnan(cohen_d_z(np.array([one - other, 0.0])))


def twin_holm(p):
    adjusted, largest = [0.0] * len(p), 0.0
    for step, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - step) * p[place]))
        adjusted[place] = largest
    return adjusted


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), max_size=12), st.integers(0, 3))
def test_holm_equals_a_naive_twin_and_leaves_what_was_not_tested(p, untested):
    found = holm(np.array(p + [NAN] * untested))
    assert found[: len(p)] == pytest.approx(twin_holm(p), rel=1e-12, abs=1e-300)
    assert np.isnan(found[len(p) :]).all()


def test_holm_in_closed_form():
    # times 3, 2 and 1 in ascending order, and never below the one before
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.02, NAN, 0.02])) == pytest.approx([0.04, NAN, 0.04], nan_ok=True)
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]
    assert holm(np.array([])).tolist() == [] and np.isnan(holm(np.array([NAN]))).all()


def pairs(seed=0, metrics=3, users=40):
    generator = np.random.default_rng(seed)
    baseline = generator.random((metrics, users))
    return baseline, baseline + generator.normal(0.05, 0.3, (metrics, users))


def naive_interval(baseline, other, resamples):
    found = stats.bootstrap(
        (other, baseline),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    return found.confidence_interval


def test_the_bootstrap_interval_is_scipy_s_paired_one():
    baseline, other = pairs()
    found = compare_paired(baseline, other, resamples=500)
    for row in range(len(baseline)):
        expected = naive_interval(baseline[row], other[row], 500)
        assert (found.low[row], found.high[row]) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.difference == pytest.approx((other - baseline).mean(axis=1), rel=1e-12)


def test_users_without_a_value_in_both_are_left_out_metric_by_metric():
    baseline, other = pairs()
    baseline[1, :5], other[1, 3:9], other[2] = NAN, NAN, NAN
    found = compare_paired(baseline, other, resamples=200)
    assert found.users.tolist() == [40, 31, 0]
    alone = compare_paired(baseline[1:2, 9:], other[1:2, 9:], resamples=200)
    for name in NUMBERS:
        assert getattr(found, name)[1] == pytest.approx(getattr(alone, name)[0], rel=1e-12)
        assert math.isnan(getattr(found, name)[2])


def test_a_constant_difference_has_an_interval_of_one_point():
    baseline = np.arange(20.0)[None]
    found = compare_paired(baseline, baseline + 0.5, resamples=200)
    assert (found.low[0], found.difference[0], found.high[0]) == pytest.approx((0.5, 0.5, 0.5))
    same = compare_paired(baseline, baseline, resamples=200)
    assert (same.low[0], same.high[0], same.p[0]) == (0, 0, 1)


def test_one_user_has_a_difference_and_no_interval():
    found = compare_paired(np.array([[0.25]]), np.array([[0.5]]))
    assert found.difference[0] == 0.25 and found.users[0] == 1
    assert math.isnan(found.low[0]) and math.isnan(found.d_z[0])


def test_the_interval_is_the_same_each_time_and_in_any_blocks(monkeypatch):
    baseline, other = pairs(users=50)
    found = compare_paired(baseline, other, resamples=300)
    monkeypatch.setattr("model.comparison.statistics.INDICES", 1_000)
    assert compare_paired(baseline, other, resamples=300).low == pytest.approx(found.low, rel=1e-12)


def coverage(simulations, users, resamples):
    """How often the interval of the mean of normal differences holds the true mean."""
    values = np.random.default_rng(1).normal(0.3, 1.0, (simulations, users))
    low, high = bootstrap([values], lambda means: means[0], resamples)
    return np.mean((low <= 0.3) & (high >= 0.3))


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    # 600 draws of a chance of .94 are within .03 of it
    assert 0.91 <= coverage(600, 60, 600) <= 0.98


@pytest.mark.slow
def test_the_interval_holds_the_truth_as_often_as_it_says():
    assert coverage(20_000, 400, 4_000) == pytest.approx(0.95, abs=0.006)


@pytest.mark.slow
def test_the_interval_of_a_gap_s_change_holds_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(2)
    codes = np.repeat([0, 1], [150, 250])
    # the gap between the groups' means grows from 1 to 1.5
    baseline = generator.normal(codes[None], 1.0, (4_000, 400))
    other = baseline + generator.normal(0.5 * codes[None], 1.0, (4_000, 400))
    found = compare_gaps(baseline, other, codes, 2, resamples=2_000)
    assert np.mean((found.low <= 0.5) & (found.high >= 0.5)) == pytest.approx(0.95, abs=0.012)


def test_the_change_of_a_gap_in_closed_form():
    codes = np.array([0, 0, 1, 1, 2, 2, -1])
    baseline = np.array([[1.0, 1, 2, 2, 5, 5, 100]])
    other = np.array([[1.0, 1, 2, 2, 3, 3, 0]])
    found = compare_gaps(baseline, other, codes, 3, resamples=100)
    assert (found.baseline[0], found.other[0], found.difference[0]) == (4, 2, -2)
    # users of a group are all alike, and are drawn again within it
    assert (found.low[0], found.high[0]) == (-2, -2)


def test_the_interval_of_a_gap_s_change_is_a_stratified_bootstrap_s():
    baseline, other = pairs(metrics=2, users=30)
    codes = np.repeat([0, 1, 2], [6, 10, 14])
    found = compare_gaps(baseline, other, codes, 3, resamples=2_000)
    generator, changes = np.random.default_rng(5), []
    for _ in range(2_000):
        drawn = [generator.choice(np.flatnonzero(codes == group), (codes == group).sum()) for group in range(3)]
        gaps = [np.ptp([run[0, users].mean() for users in drawn]) for run in (baseline, other)]
        changes.append(gaps[1] - gaps[0])
    expected = np.percentile(changes, [2.5, 97.5])
    assert (found.low[0], found.high[0]) == pytest.approx(expected, abs=0.03)


def test_a_gap_needs_two_groups_and_its_interval_two_users_of_each():
    values = np.array([[0.1, 0.4, 0.3, 0.9]])
    one = compare_gaps(values, values + 1, np.array([0, 0, 0, -1]), 2)
    assert math.isnan(one.difference[0]) and math.isnan(one.low[0])
    lonely = compare_gaps(values, 2 * values, np.array([0, 0, 0, 1]), 2)
    assert lonely.difference[0] == pytest.approx(0.9 - 0.8 / 3)
    assert math.isnan(lonely.low[0])
    # a group whose values are all undefined is no group
    undefined = np.array([[0.1, 0.4, NAN, NAN, 0.9, 0.8]])
    found = compare_gaps(undefined, 2 * undefined, np.array([0, 0, 1, 1, 2, 2]), 3, resamples=50)
    assert found.difference[0] == pytest.approx(0.6) and not math.isnan(found.low[0])


def test_differences_over_seeds_are_student_s_of_pairs():
    baseline, other = pairs(metrics=3, users=5)
    baseline[1, 2], other[2, :4] = NAN, NAN
    found = compare_seeds(baseline, other)
    assert found.seeds.tolist() == [5, 4, 1]
    for row, kept in ((0, [0, 1, 2, 3, 4]), (1, [0, 1, 3, 4])):
        expected = stats.ttest_rel(other[row, kept], baseline[row, kept]).confidence_interval(0.95)
        assert (found.low[row], found.high[row]) == pytest.approx((expected.low, expected.high), rel=1e-9)
        assert found.difference[row] == pytest.approx((other - baseline)[row, kept].mean())
    assert found.difference[2] == pytest.approx(other[2, 4] - baseline[2, 4]) and math.isnan(found.low[2])


def seeds_and_users(generator, seeds, users, spread=0.3):
    """Differences of 0 in truth: a part of the seed, a part of the user, and noise, `[1, S, T]`."""
    return (
        spread * generator.normal(size=(seeds, 1))
        + generator.normal(size=users)
        + generator.normal(size=(seeds, users))
    )[None]


def test_the_interval_of_users_within_seeds_is_a_literal_bootstrap_s():
    generator = np.random.default_rng(0)
    differences = seeds_and_users(generator, 4, 30)
    baseline = generator.random(differences.shape)
    found = compare_users_within_seeds(baseline, baseline + differences, resamples=4_000)
    means = []
    for _ in range(4_000):
        users = generator.integers(30, size=30)
        means.append(differences[0, generator.integers(4, size=3)][:, users].mean())
    assert (found.low[0], found.high[0]) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.06)
    assert (found.seeds[0], found.users[0]) == (4, 30)
    assert found.difference[0] == pytest.approx(differences.mean())
    baseline[0, 1, :3] = NAN
    assert compare_users_within_seeds(baseline, baseline + differences, resamples=50).users[0] == 27
    one = compare_users_within_seeds(baseline[:, :1], baseline[:, :1] + differences[:, :1])
    assert math.isnan(one.low[0]) and one.difference[0] == pytest.approx(differences[0, 0].mean())


@pytest.mark.slow
def test_the_interval_of_users_within_seeds_holds_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(1)
    held = []
    for _ in range(1_500):
        differences = seeds_and_users(generator, 8, 60)
        found = compare_users_within_seeds(np.zeros_like(differences), differences, resamples=400)
        held.append(found.low[0] <= 0 <= found.high[0])
    assert 0.90 <= np.mean(held) <= 0.975


def test_the_interval_of_a_mean_is_the_bootstrap_s():
    values, _ = pairs(metrics=2)
    values[1, :4] = NAN
    low, high = mean_interval(values, resamples=300)
    for row, kept in ((0, slice(None)), (1, slice(4, None))):
        expected = bootstrap([values[row : row + 1, kept]], lambda means: means[0], 300)
        assert (low[row], high[row]) == pytest.approx((expected[0][0], expected[1][0]))
    assert np.isnan(mean_interval(np.array([[0.5, NAN]]))).all()
