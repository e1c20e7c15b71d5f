"""Exposure-aware re-ranking against a literal per-user loop, its guarantee, and its limits."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.structs import Group, ItemLists, Ranking
from fairness_utils import rerank, target_shares
from model.evaluation.reranking import rerank_ranking

TOLERANCE = 1e-9


def weights(k):
    return 1 / np.log2(np.arange(2, k + 2))


def make_groups(codes, labels=("head", "tail")):
    return Group("popularity", np.asarray(codes, dtype=np.int64), labels)


def random_case(rng, num_users, pool, num_items, num_groups=2, levels=None, unknown=0.0, short=False):
    """Random pools without repeats, best first; `levels` makes ties, `short` pads some lists with -1."""
    topk = rng.permuted(np.tile(np.arange(num_items), (num_users, 1)), axis=1)[:, :pool].copy()
    scores = rng.normal(size=topk.shape) if levels is None else rng.integers(0, levels, topk.shape).astype(float)
    scores = -np.sort(-scores, axis=1)
    if short:
        padding = np.arange(pool) >= rng.integers(0, pool + 1, num_users)[:, None]
        topk[padding], scores[padding] = -1, -np.inf
    codes = rng.integers(0, num_groups, num_items)
    codes[rng.random(num_items) < unknown] = -1
    return topk, scores, make_groups(codes, ("head", "tail", "middle", "other")[:num_groups])


def protected_exposure(topk, groups, k, protected="tail"):
    shown = topk[:, :k]
    is_protected = (shown >= 0) & (groups.codes[shown] == groups.labels.index(protected))
    return is_protected @ weights(k)[: shown.shape[1]]


def naive_rerank(items, scores, groups, alpha, floor, k, target, protected="tail"):
    """One user's list by the definition, with Python loops only."""
    pairs = [(int(i), float(s)) for i, s in zip(items, scores, strict=True) if i >= 0]
    w = weights(k).tolist()
    low, high = min((s for _, s in pairs), default=0), max((s for _, s in pairs), default=0)
    relevance = [(s - low) / (high - low) if high > low else 0.0 for _, s in pairs]
    group = [int(groups.codes[i]) for i, _ in pairs]
    tail = groups.labels.index(protected)
    remaining, chosen, exposure = list(range(len(pairs))), [], [0.0] * groups.num_groups
    infeasible = sum(w[: group.count(tail)]) < floor * sum(w) - 1e-12
    for step in range(min(k, len(pairs))):
        value = {}
        for position in remaining:
            deficit = 0.0
            if group[position] >= 0:
                share = exposure[group[position]] / sum(w[:step]) if step else 0.0
                deficit = max(0.0, float(target[group[position]]) - share)
            value[position] = (1 - alpha) * relevance[position] + alpha * deficit
        best = min(remaining, key=lambda position: (-value[position], position))
        tails = [position for position in remaining if group[position] == tail]
        after = exposure[tail] + sum(w[step + 1 : min(k, step + 1 + len(tails))])
        if group[best] != tail and tails and after < floor * sum(w) - 1e-12:
            best = min(tails, key=lambda position: (-value[position], position))
        remaining.remove(best)
        chosen.append(best)
        if group[best] >= 0:
            exposure[group[best]] += w[step]
    order = chosen + remaining
    padding = len(items) - len(pairs)
    return [pairs[p][0] for p in order] + [-1] * padding, [pairs[p][1] for p in order], infeasible


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_definition_user_by_user(seed):
    rng = np.random.default_rng(seed)
    topk, scores, groups = random_case(
        rng, 40, int(rng.integers(1, 14)), 30, 2 + seed % 3, levels=[None, 2, 4][seed % 3], unknown=0.15, short=seed > 3
    )
    alpha, floor, k = [0.0, 0.2, 0.7, 1.0][seed % 4], [0.0, 0.1, 0.5, 0.9, 1.0][seed % 5], int(rng.integers(1, 12))
    target = rng.dirichlet(np.ones(groups.num_groups))
    result = rerank(topk, scores, groups, alpha, floor, k, target)
    for row in range(len(topk)):
        items, values, infeasible = naive_rerank(topk[row], scores[row], groups, alpha, floor, k, target)
        assert result.topk[row].tolist() == items
        assert result.scores[row, : len(values)].tolist() == values
        assert result.infeasible[row] == infeasible


def test_hand_worked_list():
    # Relevance 1, .9, .6, 0; tail items 2 and 3; target .5 each; w = 1, .6309, .5.
    groups = make_groups([0, 0, 1, 1])
    topk, scores = np.array([[0, 1, 2, 3]]), np.array([[10.0, 9.0, 6.0, 0.0]])
    target = np.array([0.5, 0.5])
    # alpha .5: step 1 head .5+.25; step 2 head .45+0, tail .3+.25; step 3 head share 1/1.6309: head .45, tail 0+.0566.
    assert rerank(topk, scores, groups, 0.5, 0.0, 3, target).topk.tolist() == [[0, 2, 1, 3]]
    # A floor of .6 needs 1.2786 of 2.1309: only w1 + w2 or w1 + w3 reaches it, so the first must be tail; after it
    # a head item at step 2 still leaves 1 + .5.
    assert rerank(topk, scores, groups, 0.0, 0.6, 3, target).topk.tolist() == [[2, 0, 3, 1]]
    assert not rerank(topk, scores, groups, 0.0, 1.6309 / 2.1309, 3, target).infeasible.any()
    assert rerank(topk, scores, groups, 0.0, 0.77, 3, target).infeasible.all()


def test_infeasible_users_get_all_protected_items_first():
    groups = make_groups([0, 0, 0, 1, 1])
    result = rerank(np.array([[0, 1, 3, 2, 4]]), np.arange(5.0, 0, -1)[None], groups, 0.0, 0.9, 5, np.array([0.6, 0.4]))
    assert result.infeasible.tolist() == [True]
    assert result.topk.tolist() == [[3, 4, 0, 1, 2]]
    assert result.scores.tolist() == [[3.0, 1.0, 5.0, 4.0, 2.0]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1), st.integers(1, 15), st.integers(2, 4))
def test_every_feasible_user_meets_the_floor(seed, alpha, floor, k, num_groups):
    rng = np.random.default_rng(seed)
    topk, scores, groups = random_case(rng, 25, 12, 25, num_groups, levels=5, unknown=0.1, short=True)
    result = rerank(topk, scores, groups, alpha, floor, k, target_shares(groups))
    share = protected_exposure(result.topk, groups, k) / weights(k).sum()
    assert np.all(share[~result.infeasible] >= floor - TOLERANCE)
    assert np.all(share[result.infeasible] < floor)
    assert np.array_equal(np.sort(result.topk, axis=1), np.sort(topk, axis=1))


def test_greedy_alone_misses_floors_that_the_rule_meets():
    topk, scores, groups = random_case(np.random.default_rng(1), 500, 20, 40)
    target = target_shares(groups)
    greedy, ruled = (rerank(topk, scores, groups, 0.2, floor, 10, target) for floor in (0.0, 0.6))
    feasible = ~ruled.infeasible
    needed = 0.6 * weights(10).sum()
    assert np.mean(protected_exposure(greedy.topk, groups, 10)[feasible] < needed - TOLERANCE) > 0.1
    assert np.all(protected_exposure(ruled.topk, groups, 10)[feasible] >= needed - TOLERANCE)


@pytest.mark.parametrize("k", [1, 3, 4, 6])
def test_feasibility_equals_brute_force_over_all_orders(k):
    rng = np.random.default_rng(k)
    for floor in (0.0, 0.3, 0.55, 0.8, 1.0):
        topk, scores, groups = random_case(rng, 6, 5, 10, levels=3, short=True)
        result = rerank(topk, scores, groups, 0.2, floor, k, target_shares(groups))
        for row, infeasible in zip(topk, result.infeasible, strict=True):
            orders = np.array(list(permutations(row)))
            best = protected_exposure(orders, groups, k).max()
            assert infeasible == (best < floor * weights(k).sum() - TOLERANCE)


def test_alpha_zero_and_floor_zero_is_the_identity():
    topk, scores, groups = random_case(np.random.default_rng(2), 60, 15, 40, 3, levels=4, unknown=0.1, short=True)
    result = rerank(topk, scores, groups, 0.0, 0.0, 10, target_shares(groups))
    assert np.array_equal(result.topk, topk)
    assert np.array_equal(result.scores, scores)
    assert not result.infeasible.any()


def test_alpha_one_follows_the_target_and_ignores_relevance():
    # Groups alternate with the deficit; within a group the original order holds.
    groups = make_groups([0] * 30 + [1] * 30)
    topk, scores = np.arange(60)[None], np.linspace(5, -5, 60)[None]
    for tail_target in (0.2, 0.5, 0.8):
        result = rerank(topk, scores, groups, 1.0, 0.0, 25, np.array([1 - tail_target, tail_target]))
        share = protected_exposure(result.topk, groups, 25)[0] / weights(25).sum()
        assert share == pytest.approx(tail_target, abs=0.03)
        for group in (0, 1):
            shown = result.topk[0, :25]
            assert np.all(np.diff(shown[groups.codes[shown] == group]) > 0)
    # Equal deficits at step 1 go to the better-ranked item; at step 2 only the tail has a deficit.
    assert rerank(topk, scores, groups, 1.0, 0.0, 2, np.array([0.5, 0.5])).topk[0, :2].tolist() == [0, 30]


def test_constant_scores_leave_only_the_deficit():
    groups = make_groups([0, 0, 0, 1, 1])
    result = rerank(np.arange(5)[None], np.full((1, 5), 7.0), groups, 0.01, 0.0, 2, np.array([0.4, 0.6]))
    assert result.topk.tolist() == [[3, 0, 1, 2, 4]]


def test_below_k_the_pool_keeps_its_order():
    topk, scores, groups = random_case(np.random.default_rng(3), 30, 20, 50)
    result = rerank(topk, scores, groups, 0.6, 0.5, 6, target_shares(groups))
    assert not np.array_equal(result.topk, topk)
    for before, after in zip(topk.tolist(), result.topk.tolist(), strict=True):
        places = [before.index(item) for item in after[6:]]
        assert places == sorted(places)


def test_users_are_independent_of_each_other():
    rng = np.random.default_rng(4)
    topk, scores, groups = random_case(rng, 50, 12, 30, 3, levels=5, short=True)
    order = rng.permutation(50)
    arguments = (groups, 0.3, 0.4, 8, target_shares(groups))
    whole, shuffled = rerank(topk, scores, *arguments), rerank(topk[order], scores[order], *arguments)
    assert np.array_equal(whole.topk[order], shuffled.topk)
    assert np.array_equal(whole.infeasible[order], shuffled.infeasible)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(-3, 6), st.integers(-100, 100), st.floats(0, 1))
def test_order_ignores_the_scale_and_offset_of_scores(seed, exponent, offset, alpha):
    topk, scores, groups = random_case(np.random.default_rng(seed), 10, 12, 30, levels=9)
    arguments = (groups, alpha, 0.2, 8, target_shares(groups))
    moved = rerank(topk, scores * 2.0**exponent + offset, *arguments)
    assert np.array_equal(rerank(topk, scores, *arguments).topk, moved.topk)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.6, 1.0])
def test_tail_exposure_grows_with_the_floor(alpha):
    topk, scores, groups = random_case(np.random.default_rng(5), 400, 30, 60)
    target = target_shares(groups)
    floors = np.linspace(0, 1, 9)
    exposure = [protected_exposure(rerank(topk, scores, groups, alpha, f, 10, target).topk, groups, 10) for f in floors]
    means = np.mean(exposure, axis=1)
    assert np.all(np.diff(means) >= -TOLERANCE)
    assert means[-1] > means[0] * 1.2


def test_tail_exposure_grows_with_alpha_when_the_tail_is_ranked_last():
    groups = make_groups([0] * 20 + [1] * 80)
    topk = np.random.default_rng(6).permuted(np.tile(np.arange(20), (50, 1)), axis=1)
    topk = np.concatenate([topk, np.tile(np.arange(20, 60), (50, 1))], axis=1)
    scores = -np.sort(-np.random.default_rng(7).normal(size=topk.shape), axis=1)
    means = [
        protected_exposure(rerank(topk, scores, groups, alpha, 0.0, 10, target_shares(groups)).topk, groups, 10).mean()
        for alpha in (0.0, 0.3, 0.5, 0.7, 1.0)
    ]
    assert means[0] == 0
    assert np.all(np.diff(means) >= 0)
    assert means[-1] / weights(10).sum() > 0.7


def test_protected_group_is_a_label_of_any_position():
    topk, scores, groups = random_case(np.random.default_rng(8), 100, 20, 40)
    swapped = make_groups(1 - groups.codes, ("tail", "head"))
    target = target_shares(groups)
    assert np.array_equal(
        rerank(topk, scores, groups, 0.2, 0.6, 10, target).topk,
        rerank(topk, scores, swapped, 0.2, 0.6, 10, target[::-1]).topk,
    )
    other = rerank(topk, scores, groups, 0.2, 0.6, 10, target, protected="head")
    share = protected_exposure(other.topk, groups, 10, "head") / weights(10).sum()
    assert np.all(share[~other.infeasible] >= 0.6 - TOLERANCE)


def test_target_shares_count_items_or_interactions_and_keep_unknown_items_in_the_whole():
    groups = make_groups([0, 1, 1, -1])
    assert target_shares(groups).tolist() == [0.25, 0.5]
    assert target_shares(groups, np.array([5, 2, 1, 2])).tolist() == [0.5, 0.3]


def ranking_of(topk, scores, relevant, ranks):
    lengths = [len(row) for row in relevant]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    lists = ItemLists(indptr, np.array([i for row in relevant for i in row], dtype=np.int64))
    users = np.arange(len(topk))
    return Ranking(users, lists, np.array(ranks, dtype=np.int64), topk, scores, np.full(len(topk), 50))


def test_ranks_of_relevant_items_follow_their_new_positions():
    groups = make_groups([0] * 4 + [1] * 4)
    topk = np.array([[0, 1, 4, 5, 2], [2, 3, 0, 6, -1], [-1, -1, -1, -1, -1]])
    scores = np.where(topk >= 0, np.array([5.0, 4, 3, 2, 1]), -np.inf)
    # User 0 has items in the pool (0, 5, 2) and below it (7); user 1 none in the pool.
    ranking = ranking_of(topk, scores, [[2, 7, 0, 5], [7], []], [5, 9, 1, 4, 8])
    after, infeasible = rerank_ranking(ranking, groups, 0.0, 1.0, 2, np.array([0.5, 0.5]))
    assert after.topk.tolist() == [[4, 5, 0, 1, 2], [6, 2, 3, 0, -1], [-1] * 5]
    assert after.ranks.tolist() == [5, 9, 3, 2, 8]
    assert infeasible.tolist() == [False, True, True]
    assert after.scores[0].tolist() == [3.0, 2.0, 5.0, 4.0, 1.0]


def test_ranking_agrees_with_a_search_per_relevant_item():
    rng = np.random.default_rng(9)
    topk, scores, groups = random_case(rng, 80, 20, 40, 3, short=True)
    relevant = [rng.choice(40, rng.integers(0, 5), replace=False).tolist() for _ in topk]
    ranks = [
        row.index(i) + 1 if i in row else 30 + n
        for row, r in zip(topk.tolist(), relevant, strict=True)
        for n, i in enumerate(r)
    ]
    after, _ = rerank_ranking(ranking_of(topk, scores, relevant, ranks), groups, 0.3, 0.4, 7, target_shares(groups))
    expected = [
        row.index(i) + 1 if i in row else 30 + n
        for row, r in zip(after.topk.tolist(), relevant, strict=True)
        for n, i in enumerate(r)
    ]
    assert after.ranks.tolist() == expected
    assert after.ranks.tolist() != ranks


def test_only_the_pool_is_reordered_and_columns_below_it_stay():
    topk, scores, groups = random_case(np.random.default_rng(10), 40, 20, 60)
    relevant = [[row[15]] for row in topk]
    ranking = ranking_of(topk, scores, relevant, [16] * 40)
    after, _ = rerank_ranking(ranking, groups, 0.5, 0.9, 5, target_shares(groups), pool=12)
    assert np.array_equal(after.topk[:, 12:], topk[:, 12:])
    assert np.array_equal(after.scores[:, 12:], scores[:, 12:])
    assert np.array_equal(after.ranks, ranking.ranks)
    assert not np.array_equal(after.topk, topk)
    with pytest.raises(ValueError, match="rerank_pool 4 is smaller than K 5"):
        rerank_ranking(ranking, groups, 0.5, 0.9, 5, target_shares(groups), pool=4)


def test_ranking_comes_back_unchanged_with_alpha_zero_and_floor_zero():
    # Tied scores: ranks (all tied candidates above) are worse than positions and must survive.
    groups = make_groups([0, 0, 1, 1])
    ranking = ranking_of(np.array([[0, 1, 2]]), np.zeros((1, 3)), [[1, 3]], [3, 4])
    after, infeasible = rerank_ranking(ranking, groups, 0.0, 0.0, 2, np.array([0.5, 0.5]))
    assert after.ranks.tolist() == [3, 4]
    assert np.array_equal(after.topk, ranking.topk)
    assert not infeasible.any()


def test_relevant_items_tied_at_the_edge_of_the_pool_never_share_a_rank():
    # Items 0 and 1 tie; relevant ones are ranked in list order (1 first), the pool is cut by id (0 is in).
    groups = make_groups([0, 0])
    ranking = ranking_of(np.array([[0]]), np.zeros((1, 1)), [[1, 0]], [1, 2])
    after, _ = rerank_ranking(ranking, groups, 0.2, 0.0, 1, np.array([1.0, 0.0]))
    assert after.ranks.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 1.2}, "rerank_alpha 1.2"),
        ({"alpha": float("nan")}, "rerank_alpha nan"),
        ({"exposure_floor": -0.1}, "exposure_floor -0.1"),
        ({"k": 0}, "K 0"),
        ({"protected": "cold"}, "'cold'.*head"),
        ({"target": np.ones(3) / 3}, r"shape \(3,\)"),
        ({"scores": np.array([[1.0, 2.0]])}, "row 0"),
        ({"scores": np.array([[np.nan, 2.0]])}, "row 0"),
        ({"scores": np.array([[np.inf, 2.0]])}, "row 0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {
        "topk": np.array([[0, 1]]),
        "scores": np.array([[2.0, 1.0]]),
        "item_groups": make_groups([0, 1]),
        "alpha": 0.2,
        "exposure_floor": 0.1,
        "k": 2,
        "target": np.array([0.5, 0.5]),
    }
    with pytest.raises(ValueError, match=message):
        rerank(**(arguments | change))
