"""Differences in excess and intervals of debiased parity: literal twins, and coverage on planted lists."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from fairness_utils import count_by_group, debiased_difference, js_between, relative_difference, signed_root
from model.comparison import parity_statistics
from model.comparison.parity_statistics import (
    averaged,
    change_interval,
    compare_excess,
    debiased_change_interval,
    debiased_interval,
    jackknife,
    leave_parts_out,
)
from model.evaluation.chance import permutations, permuted_parity
from model.evaluation.metric_kinds import PARITY
from model.evaluation.metric_table import computed
from model.evaluation.parity import ByGroup

ITEMS, K = 60, 5


@dataclass(frozen=True)
class Shown:
    """Lists of which every item is a hit."""

    topk: np.ndarray

    @property
    def hits(self):
        return self.topk


def drawn(generator, codes, weights):
    """Lists of K different items, drawn with the `weights [G, I]` of the user's group: `[T, K]`."""
    noise = generator.gumbel(size=(len(codes), weights.shape[1]))
    return np.argsort(-(np.log(weights)[codes] + noise), axis=1)[:, :K]


def leaning(strength, num_groups=2):
    """Popularity by Zipf's law; each group likes its own share of the items `strength` times as well: `[G, I]`."""
    weights = np.tile(1 / np.arange(1, ITEMS + 1), (num_groups, 1))
    for group in range(num_groups):
        weights[group, group::num_groups] *= strength
    return weights


def debiased(topk, codes, num_items=ITEMS):
    return float(debiased_difference(*count_by_group(topk, codes, num_items)))


@pytest.mark.parametrize("num_groups", [2, 3])
def test_the_jackknife_equals_a_literal_loop(num_groups):
    generator = np.random.default_rng(num_groups)
    codes = generator.permutation(np.repeat(np.arange(-1, num_groups), [4, 9, 13, 8][: num_groups + 1]))
    topk = drawn(generator, np.maximum(codes, 0), leaning(3.0, num_groups))
    topk[::5, 3:] = -1
    found = jackknife(topk, codes, ITEMS)
    variance = 0.0
    for group in range(num_groups):
        members = np.flatnonzero(codes == group)
        left = [debiased(np.delete(topk, user, 0), np.delete(codes, user)) for user in members]
        squares = [value * abs(value) for value in left]
        variance += (len(members) - 1) / len(members) * sum((square - np.mean(squares)) ** 2 for square in squares)
    assert found.error == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert signed_root(found.contrast) == pytest.approx(debiased(topk, codes), rel=1e-12)


def test_a_group_of_two_users_and_one_group_have_no_interval():
    generator = np.random.default_rng(0)
    for codes in (np.repeat([0, 1], [10, 2]), np.repeat([0, -1], 6)):
        topk = drawn(generator, np.maximum(codes, 0), leaning(2.0))
        found = jackknife(topk, codes, ITEMS)
        assert all(map(math.isnan, (*debiased_interval(found), *debiased_change_interval(found, found))))


def truth(weights):
    """The debiased difference of very many users."""
    codes = np.repeat(np.arange(len(weights)), 20_000)
    return debiased(drawn(np.random.default_rng(99), codes, weights), codes)


def coverage(strengths, times=100, sizes=(40, 90)):
    """How often the intervals of a run and of a difference hold the truth; users of two runs have one taste."""
    generator, codes = np.random.default_rng(3), np.repeat([0, 1], sizes)
    first, second = (leaning(strength) for strength in strengths)
    expected = [truth(weights) for weights in (first, second)]
    held = []
    for _ in range(times):
        noise = generator.gumbel(size=(len(codes), ITEMS))
        runs = [
            jackknife(np.argsort(-(np.log(weights)[codes] + noise), axis=1)[:, :K], codes, ITEMS)
            for weights in (first, second)
        ]
        low, high = debiased_interval(runs[0])
        change_low, change_high = debiased_change_interval(*runs)
        held.append((low <= expected[0] <= high, change_low <= expected[1] - expected[0] <= change_high))
    return np.mean(held, axis=0)


# without dependence the jackknife is wide (Efron and Stein), with it about right
@pytest.mark.parametrize(("strengths", "least"), [((1.0, 1.0), 0.95), ((3.0, 1.5), 0.88)])
def test_intervals_of_debiased_parity_hold_the_truth_about_as_often_as_they_say(strengths, least):
    assert (coverage(strengths) >= least).all()


@pytest.mark.slow
@pytest.mark.parametrize("strengths", [(1.0, 1.0), (1.0, 1.5), (1.5, 1.2), (3.0, 1.5), (3.0, 3.5)], ids=str)
def test_intervals_of_debiased_parity_hold_the_truth_as_often_as_they_say(strengths):
    found = coverage(strengths, times=2_000)
    assert (found >= 0.93).all()
    # without dependence, or with little, they are wide
    assert min(strengths) < 3 or (found <= 0.98).all()


def test_the_same_lists_differ_in_nothing_and_averages_of_one_are_itself():
    codes = np.repeat([0, 1], [20, 30])
    found = jackknife(drawn(np.random.default_rng(1), codes, leaning(2.0)), codes, ITEMS)
    assert debiased_change_interval(found, averaged([found, found])) == pytest.approx((0, 0), abs=1e-6)


def test_far_from_zero_the_interval_of_a_change_is_the_usual_one():
    codes = np.repeat([0, 1], [600, 900])
    generator = np.random.default_rng(5)
    first, second = (jackknife(drawn(generator, codes, leaning(s)), codes, ITEMS) for s in (6.0, 4.0))
    roots = [math.sqrt(run.contrast) for run in (first, second)]
    error = math.sqrt(np.sum((second.deviations / (2 * roots[1]) - first.deviations / (2 * roots[0])) ** 2))
    low, high = debiased_change_interval(first, second)
    assert ((low + high) / 2, (high - low) / 2) == pytest.approx((roots[1] - roots[0], 1.96 * error), rel=0.03)


def test_a_difference_in_excess_equals_a_literal_loop():
    codes = np.repeat([0, 1], [40, 60])
    generator = np.random.default_rng(7)
    runs = [drawn(generator, codes, leaning(strength)) for strength in (1.0, 4.0)]
    labels = [labels for block in permutations(codes, 99) for labels in block]
    permuted = [np.array([debiased(run, shuffled) for shuffled in labels]) for run in runs]
    values = [debiased(run, codes) for run in runs]
    found = compare_excess(*values, *permuted)
    mean = np.mean([b - a for a, b in zip(*permuted, strict=True)])
    assert found.difference == pytest.approx(values[1] - values[0] - mean)
    assert (found.baseline_chance, found.chance) == pytest.approx(tuple(run.mean() for run in permuted))
    reached = sum(abs(b - a - mean) >= abs(found.difference) for a, b in zip(*permuted, strict=True))
    assert found.p == (1 + reached) / 100 and found.p < 0.05
    assert compare_excess(values[0], values[0], permuted[0], permuted[0]).p == 1
    assert math.isnan(compare_excess(math.nan, 1.0, *permuted).p)
    one = np.array([0.1, math.nan, math.nan])
    assert math.isnan(compare_excess(0.1, 0.2, one, one).difference)


@pytest.mark.slow
def test_p_of_a_difference_in_excess_is_uniform_where_labels_do_not_matter():
    codes, generator = np.repeat([0, 1], [40, 60]), np.random.default_rng(11)
    found = []
    for _ in range(300):
        runs = [drawn(generator, np.zeros_like(codes), leaning(strength)) for strength in (1.0, 6.0)]
        labels = [labels for block in permutations(generator.permutation(codes), 59) for labels in block]
        permuted = [np.array([debiased(run, shuffled) for shuffled in labels]) for run in runs]
        found.append(compare_excess(*(debiased(run, codes) for run in runs), *permuted).p)
    assert stats.kstest(found, "uniform").pvalue > 0.001


def test_parts_of_users_left_out_equal_a_literal_loop(monkeypatch):
    monkeypatch.setattr(parity_statistics, "PARTS", 7)
    generator = np.random.default_rng(2)
    codes = generator.permutation(np.repeat([-1, 0, 1, 2], [3, 20, 17, 9]))
    topk = drawn(generator, np.maximum(codes, 0), leaning(3.0, 3))
    topk[::6, 2:] = -1
    hits = np.where(generator.random(topk.shape) < 0.3, topk, -1)
    rows = [row for row in computed(PARITY) if not row.debiased]
    found = leave_parts_out(topk, hits, codes, rows)
    monkeypatch.setattr(parity_statistics, "CELLS", 1)
    blocks = leave_parts_out(topk, hits, codes, rows)
    known = codes >= 0
    topk, hits, codes = topk[known], hits[known], codes[known]
    order = np.lexsort((np.random.default_rng(parity_statistics.SEED).random(len(codes)), codes))
    names = {"dp_rate": (topk, relative_difference, True), "dp_js": (topk, js_between, False)}
    names |= {"eo": (hits, relative_difference, False), "eo_js": (hits, js_between, False)}
    for name, (lists, function, by_rate) in names.items():
        left = []
        for part in range(7):
            kept = np.ones(len(codes), dtype=bool)
            kept[order[part::7]] = False
            counts, sizes = count_by_group(lists[kept], codes[kept], ITEMS)
            left.append(float(function(counts, sizes) if by_rate else function(counts)))
        expected = math.sqrt(6 / 7) * (np.array(left) - np.mean(left))
        assert found[name] == pytest.approx(expected, abs=1e-12)
        assert blocks[name] == pytest.approx(expected, abs=1e-12)


def test_a_group_that_is_left_out_whole_has_no_pairs():
    codes = np.repeat([0, 1, 2], [30, 20, 1])
    topk = drawn(np.random.default_rng(0), codes, leaning(2.0, 3))
    found = leave_parts_out(topk, topk, codes, [row for row in computed(PARITY) if row.name == "dp_rate"])["dp_rate"]
    counts, sizes = count_by_group(topk[:50], codes[:50], ITEMS)
    without = float(relative_difference(counts, sizes))
    # the part of the lonely user is the one that moves the mean over pairs most
    whole = [float(relative_difference(*count_by_group(np.delete(topk, one, 0), np.delete(codes, one), ITEMS)))
             for one in range(50)]  # fmt: skip
    assert np.isfinite(found).all()
    assert found.max() - found.min() == pytest.approx(abs(without - np.mean(whole)), rel=0.2)


def test_the_interval_of_a_change_by_parts_in_closed_form():
    first, second = np.zeros(100), np.full(100, 0.01)
    half = stats.t(99).ppf(0.975) * 0.1
    assert change_interval(0.5, first, second) == pytest.approx((0.5 - half, 0.5 + half))
    assert change_interval(0.0, second, second) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dp_rate", "dp_js"])
def test_the_interval_by_parts_of_a_difference_in_excess_holds_the_truth_as_often_as_it_says(name):
    generator, codes = np.random.default_rng(3), np.repeat([0, 1], [300, 500])
    row = next(row for row in computed(PARITY) if row.name == name)
    weights = [leaning(strength) for strength in (3.0, 1.5)]
    excesses, intervals = [], []
    for _ in range(250):
        noise = generator.gumbel(size=(len(codes), ITEMS))
        runs = [np.argsort(-(np.log(one)[codes] + noise), axis=1)[:, :K] for one in weights]
        counts = [count_by_group(run, codes, ITEMS)[0] for run in runs]
        values = [float(row.function(ByGroup(one, one, np.bincount(codes), np.arange(ITEMS)))) for one in counts]
        permuted = [permuted_parity(Shown(run), codes, [row], 40)[name] for run in runs]
        excess = compare_excess(*values, *permuted).difference
        parts = [leave_parts_out(run, run, codes, [row])[name] for run in runs]
        excesses.append(excess)
        intervals.append(change_interval(excess, *parts))
    held = np.mean([low <= np.mean(excesses) <= high for low, high in intervals])
    assert held >= 0.92
