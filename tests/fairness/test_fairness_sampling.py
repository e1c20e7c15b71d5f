"""Fairness-constrained sampling: closed forms, and what the mixture does on skewed data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from data.structs import Group, Histories, HistoryWeights
from fairness_utils import (
    catalogue_log_weights,
    expected_group_distributions,
    fairness_history_weights,
    group_parity_log_weights,
    js_divergence,
    smoothing_share,
)


def make_histories(lists):
    lengths = [len(row) for row in lists]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Histories(indptr, np.array([i for row in lists for i in row], dtype=np.int64))


def make_group(codes, num_groups=2):
    return Group("gender", np.asarray(codes, dtype=np.int64), tuple("MFXYZ"[:num_groups]))


def skewed(num_users=600, num_items=200, seed=0, unknown=0.0):
    """A long-tailed catalogue whose two groups (70 : 30) like different halves of it."""
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, num_items + 1) ** 0.9
    taste = np.where(np.arange(num_items) % 2 == 0, 3.0, 1.0)
    codes = (rng.random(num_users) < 0.3).astype(np.int64)
    log_mass = np.log(np.stack([popularity * taste, popularity * (4 - taste)]))[codes]
    lengths = rng.integers(8, 50, num_users)
    order = np.argsort(-(log_mass + rng.gumbel(size=log_mass.shape)), axis=1)
    histories = make_histories([row[:n].tolist() for row, n in zip(order, lengths, strict=True)])
    codes[rng.random(num_users) < unknown] = -1
    degree = np.bincount(histories.item, minlength=num_items)
    return histories, make_group(codes), degree


def tail_of(degree, share=0.8):
    return np.argsort(degree, kind="stable")[: int(share * len(degree))]


def draw(histories, weights, size, seed):
    """First `size` items of every user without replacement, by Gumbel top-k on the mixture's log probability."""
    probability = np.concatenate(user_probabilities(histories, weights))
    keys = np.log(probability) + np.random.default_rng(seed).gumbel(size=len(probability))
    order = np.lexsort((-keys, histories.owner))
    return order[np.arange(len(order)) - histories.indptr[:-1].repeat(histories.lengths) < size]


def user_probabilities(histories, weights):
    """The mixture over each user's items by the definition, one user at a time."""
    rows = []
    for start, stop in zip(histories.indptr[:-1], histories.indptr[1:], strict=True):
        parts = np.exp(weights.log_weights[:, start:stop])
        rows.append(np.exp(weights.log_mix) @ (parts / parts.sum(axis=1, keepdims=True)) if stop > start else [])
    return rows


def test_catalogue_weights_by_hand():
    # Users without items lie at the start, in the middle and at the end.
    histories = make_histories([[], [0, 1, 2], [], [1], [2, 3], []])
    weights = catalogue_log_weights(histories, np.array([1, 2, 4, 0]), 0.5)
    assert weights.tolist() == [0.0, -1.0, -1.5, 0.0, -1.5, 0.0]
    assert not catalogue_log_weights(histories, np.array([1, 2, 4, 0]), np.inf).any()
    assert len(catalogue_log_weights(make_histories([[], []]), np.array([1]), 1.0)) == 0


def test_group_parity_weights_by_hand():
    histories = make_histories([[0, 1], [0], [1], [0, 1, 2]])
    group = make_group([0, 0, 1, -1])
    # kappa 3 over 3 items adds 1 each: P(.|M) = (3, 2, 1)/6, P(.|F) = (1, 2, 1)/4, mean (3/8, 5/12, 5/24).
    expected = np.log([(3 / 8) / (1 / 2), (5 / 12) / (1 / 3), (3 / 8) / (1 / 2), (5 / 12) / (1 / 2), 1, 1, 1])
    assert group_parity_log_weights(histories, group, 3) == pytest.approx(expected, abs=1e-14)
    assert smoothing_share(histories, group, 3) == pytest.approx([3 / 6, 3 / 4])
    assert smoothing_share(histories, group, 3, kappa=1.0) == pytest.approx([1 / 4, 1 / 2])


def test_group_parity_weights_equal_a_loop_for_any_number_of_groups():
    rng = np.random.default_rng(3)
    train = make_histories([rng.choice(12, rng.integers(0, 8), replace=False).tolist() for _ in range(40)])
    test = make_histories([[*train[user], int(rng.integers(12))] for user in range(40)])
    group = make_group(rng.choice([-1, 0, 1, 3, 4], 40), 5)
    kappa = 2.5
    share = np.full((5, 12), np.nan)
    for g in (0, 1, 3, 4):
        count = np.zeros(12)
        for user in np.flatnonzero(group.codes == g):
            for item in train[user]:
                count[item] += 1
        share[g] = (count + kappa / 12) / (count.sum() + kappa)
    mean = share[[0, 1, 3, 4]].mean(axis=0)
    expected = [
        0.0 if group.codes[user] < 0 else np.log(mean[item] / share[group.codes[user], item])
        for user in range(40)
        for item in test[user]
    ]
    assert group_parity_log_weights(test, group, 12, kappa, counts_from=train) == pytest.approx(expected, abs=1e-12)


def test_the_mixture_counts_groups_in_train_where_it_draws_from_other_histories():
    """Test histories that hold validation items: what a group likes is still counted in train alone."""
    train = make_histories([[0, 1], [0], [1], [2, 1]])
    test = make_histories([[0, 1, 2], [0, 2], [1, 0], [2, 1, 0]])
    group, degree = make_group([0, 0, 1, 1]), np.array([2, 3, 1])
    weights = fairness_history_weights(test, degree, group, 0.5, 1.0, kappa=3.0, counts_from=train)
    # P(.|M) = (3, 2, 1)/6, P(.|F) = (1, 3, 2)/6 with one more of each item, mean (4, 5, 3)/12
    mean, share = np.array([4, 5, 3]) / 12, np.array([[3, 2, 1], [1, 3, 2]]) / 6
    expected = np.log((mean / share)[group.codes[test.owner], test.item])
    assert weights.log_weights[1] == pytest.approx(expected, abs=1e-14)
    own = fairness_history_weights(test, degree, group, 0.5, 1.0, kappa=3.0)
    assert not np.allclose(own.log_weights[1], expected), "counts of the test histories would be others"


def test_users_of_unknown_group_draw_uniformly_and_count_nowhere():
    histories, group, _ = skewed(unknown=0.3, seed=5)
    known = group.codes >= 0
    weights = group_parity_log_weights(histories, group, 200)
    assert not weights[~known[histories.owner]].any()
    alone = histories.take(np.flatnonzero(known))
    only_known = Histories(alone.indptr, alone.item)
    assert np.array_equal(
        weights[known[histories.owner]], group_parity_log_weights(only_known, make_group(group.codes[known]), 200)
    )
    nobody = make_group(np.full(600, -1))
    assert not group_parity_log_weights(histories, nobody, 200).any()
    assert np.isnan(
        expected_group_distributions(histories, HistoryWeights(np.zeros(1), weights[None]), nobody, 200)
    ).all()


def test_one_group_only_is_uniform():
    histories, _, _ = skewed(seed=6)
    assert group_parity_log_weights(histories, make_group(np.zeros(600)), 200) == pytest.approx(0, abs=1e-12)


def test_full_reading_users_all_get_the_mean_distribution():
    # Every user has read everything: the importance weights make each group's draw P_mean / P, normalised.
    histories = make_histories([[0, 1, 2]] * 4)
    weights = fairness_history_weights(histories, np.full(3, 4), make_group([0, 0, 1, 1]), 0.0, 0.01)
    expected = expected_group_distributions(histories, weights, make_group([0, 0, 1, 1]), 3)
    assert expected == pytest.approx(np.full((2, 3), 1 / 3))


def test_importance_weights_move_both_groups_to_the_same_distribution():
    # One item a draw from a history that is a large sample of P(.|g): the expected item distribution is near P_mean.
    rng = np.random.default_rng(7)
    truth = np.array([[0.55, 0.25, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]])
    codes = np.repeat([0, 1], 30)
    histories = make_histories([rng.choice(4, 2000, p=truth[g]).tolist() for g in codes])
    group = make_group(codes)
    weights = fairness_history_weights(histories, np.bincount(histories.item), group, 0.0, 1.0)
    expected = expected_group_distributions(histories, weights, group, 4)
    assert expected == pytest.approx(np.tile(truth.mean(axis=0), (2, 1)), abs=0.005)


@pytest.mark.parametrize(("alpha", "mix"), [(1.0, [1.0]), (0.0, [1.0]), (0.3, [0.3, 0.7]), (0.5, [0.5, 0.5])])
def test_components_and_their_shares(alpha, mix):
    histories, group, degree = skewed(seed=8)
    weights = fairness_history_weights(histories, degree, group, alpha, 0.01)
    assert np.exp(weights.log_mix) == pytest.approx(mix)
    catalogue = catalogue_log_weights(histories, degree, 0.01)
    parity = group_parity_log_weights(histories, group, len(degree))
    expected = {1.0: [catalogue], 0.0: [parity]}.get(alpha, [catalogue, parity])
    assert np.array_equal(weights.log_weights, np.stack(expected))


def test_expected_distributions_equal_a_loop_over_users():
    histories, group, degree = skewed(num_users=80, seed=9, unknown=0.2)
    lists = [histories[user].tolist() if user % 7 else [] for user in range(80)]
    histories = make_histories(lists)
    weights = fairness_history_weights(histories, degree, group, 0.4, 0.1)
    expected, members = np.zeros((2, 200)), np.zeros(2)
    for user, probability in enumerate(user_probabilities(histories, weights)):
        if group.codes[user] >= 0 and lists[user]:
            expected[group.codes[user], lists[user]] += probability
            members[group.codes[user]] += 1
    result = expected_group_distributions(histories, weights, group, 200)
    assert result == pytest.approx(expected / members[:, None], abs=1e-12)
    assert result.sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_group_divergence_falls_as_the_weight_moves_to_group_parity(seed):
    histories, group, degree = skewed(seed=seed)
    expected, drawn = [], []
    for alpha in (1.0, 0.75, 0.5, 0.25, 0.0):
        weights = fairness_history_weights(histories, degree, group, alpha, 0.01)
        expected.append(js_divergence(*expected_group_distributions(histories, weights, group, 200)))
        counts = np.ones((2, 200)) * 1e-9
        for repeat in range(3):
            entries = draw(histories, weights, 5, 10 * seed + repeat)
            np.add.at(counts, (group.codes[histories.owner[entries]], histories.item[entries]), 1)
        drawn.append(js_divergence(*(counts / counts.sum(axis=1, keepdims=True))))
    assert np.all(np.diff(expected) < 0)
    assert np.all(np.diff(drawn) < 0)
    assert expected[-1] < expected[0] / 4


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tail_share_rises_with_the_weight_of_catalogue_parity(seed):
    histories, group, degree = skewed(seed=seed)
    tail = tail_of(degree)
    uniform = HistoryWeights(np.zeros(1), np.zeros((1, len(histories.item))))
    mixtures = [fairness_history_weights(histories, degree, group, a, 0.01) for a in (0.25, 0.5, 0.75, 1.0)]
    expected, drawn = [], []
    for weights in (uniform, *mixtures):
        expected.append(expected_group_distributions(histories, weights, group, 200)[:, tail].sum(axis=1))
        entries = np.concatenate([draw(histories, weights, 5, 10 * seed + repeat) for repeat in range(3)])
        drawn.append(np.isin(histories.item[entries], tail).mean())
    assert np.all(np.diff(expected, axis=0) > 0)
    assert np.all(np.diff(drawn) > 0)


def test_no_underflow_at_the_lowest_temperature():
    # Degree 1 beside degree 3,000 at T = .01: the ratio is e^-99.97, far below float32's smallest number.
    histories = make_histories([[0, 1], [1, 1]])
    degree = np.array([1, 3000])
    weights = fairness_history_weights(histories, degree, make_group([0, 1]), 1.0, 0.01)
    assert weights.log_weights[0] == pytest.approx([0, (1 / 3000 - 1) / 0.01, 0, 0])
    expected = expected_group_distributions(histories, weights, make_group([0, 1]), 2)
    assert expected[0, 1] == pytest.approx(np.exp(-(1 - 1 / 3000) / 0.01), rel=1e-9)
    assert expected[1].tolist() == [0.0, 1.0]
    # Even a temperature at which the plain exponential is 0 leaves a proper distribution.
    cold = fairness_history_weights(histories, degree, make_group([0, 1]), 1.0, 1e-6)
    assert expected_group_distributions(histories, cold, make_group([0, 1]), 2).sum(axis=1).tolist() == [1.0, 1.0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.floats(0, 1), st.floats(0.01, 10))
def test_weights_are_finite_and_distributions_proper(seed, num_groups, alpha, temperature):
    rng = np.random.default_rng(seed)
    histories = make_histories([rng.choice(15, rng.integers(0, 6), replace=False).tolist() for _ in range(20)])
    group = make_group(rng.integers(-1, num_groups, 20), num_groups)
    degree = np.bincount(histories.item, minlength=15)
    weights = fairness_history_weights(histories, degree, group, alpha, temperature)
    distributions = expected_group_distributions(histories, weights, group, 15)
    filled = np.bincount(group.codes[(group.codes >= 0) & (histories.lengths > 0)], minlength=num_groups) > 0
    assert distributions[filled].sum(axis=1) == pytest.approx(1)
    assert np.isnan(distributions[~filled]).all()
    # Swapping group codes swaps rows and nothing else.
    order = rng.permutation(num_groups)
    renamed = make_group(np.where(group.codes >= 0, order[group.codes], -1), num_groups)
    again = expected_group_distributions(
        histories, fairness_history_weights(histories, degree, renamed, alpha, temperature), renamed, 15
    )
    assert again[order] == pytest.approx(distributions, nan_ok=True, abs=1e-12)


def test_divergence_is_scipys_distance_squared():
    p, q = np.random.default_rng(0).dirichlet(np.ones(30), (2, 4))
    p[0, 3:] = 0
    p[0] /= p[0].sum()
    assert js_divergence(p, q) == pytest.approx(jensenshannon(p, q, axis=1) ** 2)
    assert js_divergence(np.array([1.0, 0]), np.array([0, 1.0])) == pytest.approx(np.log(2))


def test_bad_arguments_are_named():
    histories = make_histories([[0, 1], [1]])
    group = make_group([0, 1])
    for alpha in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"fairness_weight {alpha}"):
            fairness_history_weights(histories, np.ones(2), group, alpha, 1.0)
    for temperature in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"temperature {temperature}"):
            catalogue_log_weights(histories, np.ones(2), temperature)
    with pytest.raises(ValueError, match="kappa 0"):
        group_parity_log_weights(histories, group, 2, kappa=0)
    with pytest.raises(ValueError, match="3 codes; histories need 2"):
        group_parity_log_weights(histories, make_group([0, 1, 1]), 2)
    with pytest.raises(ValueError, match="item 1 is outside the catalogue of 1"):
        group_parity_log_weights(histories, group, 1)
