"""The ranking engine against literal twins, closed forms and its own invariances."""

import re
import sys
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from data.structs import ItemLists
from model.evaluation.candidates import popularity_scores, random_scores, sample_candidates
from model.evaluation.ranking import (
    ENGINE_FLOATS,
    SORTED_FROM,
    _count_at_least_compared,
    _count_at_least_sorted,
    block_users_for,
    rank_catalogue,
)
from tests.benchmarks import ranking as benchmark


def lists_of(rows):
    """CSR form of a list of lists of item ids."""
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return ItemLists(indptr, np.array([item for row in rows for item in row], np.int64))


def scorer_of(matrix):
    """Serve the rows of `[U, I]` as a scorer."""
    scores = torch.as_tensor(np.asarray(matrix, np.float32))
    return lambda users: scores[torch.from_numpy(users)]


def literal_ranking(scores, relevant, excluded, top, allowed=None):
    """Rank one user by the definition, entry by entry: ranks, top list, scores, number of candidates."""
    items = set(range(len(scores))) if allowed is None else set(allowed) | set(relevant)
    items -= set(excluded)
    ranks = []
    for place, item in enumerate(relevant):
        rank = 1
        for other in items - {item}:
            if scores[other] > scores[item]:
                rank += 1
            elif scores[other] == scores[item]:
                rank += other in relevant[:place] or other not in relevant
        ranks.append(rank)
    best = sorted(items, key=lambda other: (-scores[other], other))[:top]
    padding = min(top, len(scores)) - len(best)
    return ranks, best + [-1] * padding, [scores[i] for i in best] + [-np.inf] * padding, len(items)


@st.composite
def questions(draw):
    """A small catalogue with integer scores (many ties) and users with none, one or many relevant items."""
    num_items, num_users = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = generator.integers(-1, draw(st.integers(1, 6)), size=(num_users, num_items)).astype(float)
    users = generator.permutation(num_users)[: draw(st.integers(1, num_users))]
    excluded, relevant, allowed = [], [], []
    for _ in range(num_users):
        order = generator.permutation(num_items)
        cut = generator.integers(0, num_items + 1)
        excluded.append(order[:cut].tolist())
    for user in users:
        free = generator.permutation(np.setdiff1d(np.arange(num_items), excluded[user]))
        relevant.append(free[: generator.integers(0, len(free) + 1)].tolist())
        allowed.append(generator.permutation(num_items)[: generator.integers(0, num_items + 1)].tolist())
    sampled = draw(st.booleans())
    return scores, users, relevant, excluded, allowed if sampled else None


@settings(max_examples=150, deadline=None)
@given(questions(), st.integers(1, 14), st.integers(1, 7))
def test_equals_the_definition_with_many_ties(question, top, block_users):
    scores, users, relevant, excluded, allowed = question
    result = rank_catalogue(
        scorer_of(scores),
        users,
        lists_of(relevant),
        lists_of(excluded),
        scores.shape[1],
        top,
        block_users,
        candidates=None if allowed is None else lists_of(allowed),
    )
    for row, user in enumerate(users):
        own = None if allowed is None else allowed[row]
        ranks, best, best_scores, count = literal_ranking(scores[user], relevant[row], excluded[user], top, own)
        assert result.ranks[result.relevant.owner == row].tolist() == ranks
        assert result.topk[row].tolist() == best
        assert result.scores[row].tolist() == best_scores
        assert result.candidates[row] == count
    assert (result.topk.dtype, result.ranks.dtype, result.scores.dtype) == (np.int64, np.int64, np.float32)


def make_case(seed, num_users=40, num_items=97, per_user=3):
    """Random real scores with a fifth of the catalogue excluded and `per_user` relevant items each."""
    generator = np.random.default_rng(seed)
    scores = generator.standard_normal((num_users, num_items)).astype(np.float32)
    order = np.argsort(generator.random((num_users, num_items)), axis=1)
    excluded = lists_of(order[:, :19].tolist())
    relevant = lists_of(order[:, 19 : 19 + per_user].tolist())
    return scores, np.arange(num_users), relevant, excluded


@pytest.mark.parametrize("block_users", [1, 7, 39, 40, 1000])
def test_blocks_do_not_change_the_result(block_users):
    scores, users, relevant, excluded = make_case(0)
    scores = np.round(scores, 1)
    whole = rank_catalogue(scorer_of(scores), users, relevant, excluded, 97, 20, 40)
    result = rank_catalogue(scorer_of(scores), users, relevant, excluded, 97, 20, block_users)
    for name in ("ranks", "topk", "scores", "candidates"):
        np.testing.assert_array_equal(getattr(result, name), getattr(whole, name))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_ranks_survive_a_monotone_map_and_agree_with_the_list(seed):
    scores, users, relevant, excluded = make_case(seed)
    result = rank_catalogue(scorer_of(scores), users, relevant, excluded, 97, 30, 16)
    # Doubling is exact in float32, so it neither makes nor breaks a tie.
    mapped = rank_catalogue(scorer_of(scores * 2), users, relevant, excluded, 97, 30, 16)
    np.testing.assert_array_equal(result.ranks, mapped.ranks)
    np.testing.assert_array_equal(result.topk, mapped.topk)
    owner = relevant.owner
    shown = result.ranks <= 30
    np.testing.assert_array_equal(result.topk[owner[shown], result.ranks[shown] - 1], relevant.item[shown])
    assert not np.any(result.topk[owner[~shown]] == relevant.item[~shown, None])


def test_a_constant_scorer_hits_nothing_and_lists_the_lowest_ids():
    num_users, num_items = 50, 3000
    relevant = lists_of([[user] for user in range(num_users)])
    excluded = lists_of([[num_items - 1 - user] for user in range(num_users)])
    result = rank_catalogue(
        lambda users: torch.zeros(len(users), num_items), np.arange(num_users), relevant, excluded, num_items, 10, 8
    )
    assert np.mean(result.ranks <= 10) == 0
    assert np.all(result.ranks == num_items - 1)
    assert np.all(result.topk == np.arange(10))


def test_many_relevant_items_fill_the_first_ranks():
    scores = np.tile(np.arange(20.0)[::-1], (2, 1))
    relevant = lists_of([list(range(12)), []])
    result = rank_catalogue(scorer_of(scores), np.arange(2), relevant, lists_of([[], []]), 20, 5, 1)
    assert result.ranks.tolist() == list(range(1, 13))
    assert result.topk.tolist() == [[0, 1, 2, 3, 4]] * 2
    tied = rank_catalogue(scorer_of(0 * scores), np.arange(2), relevant, lists_of([[], []]), 20, 5, 1)
    assert tied.ranks.tolist() == list(range(9, 21))


@given(questions())
@settings(max_examples=60, deadline=None)
def test_sorting_a_row_counts_what_comparing_with_all_of_it_counts(question):
    scores, users, relevant, excluded, _ = question
    masked = torch.from_numpy(scores[users].astype(np.float32))
    for row, user in enumerate(users):
        masked[row, excluded[user]] = -torch.inf
    wanted = lists_of(relevant)
    if len(wanted.item):
        row, item = torch.from_numpy(wanted.owner), torch.from_numpy(wanted.item)
        value = masked[row, item]
        sorted_counts = _count_at_least_sorted(masked, wanted, row, value)
        assert torch.equal(sorted_counts, _count_at_least_compared(masked, row, value))


def test_users_with_many_relevant_items_are_ranked_by_the_definition():
    """More than are compared one by one, unevenly many, and tied."""
    generator = np.random.default_rng(8)
    scores = generator.integers(0, 9, size=(6, 90)).astype(float)
    relevant = [generator.permutation(80)[:size].tolist() for size in (80, 0, 1, 30, 70, 12)]
    assert sum(map(len, relevant)) > SORTED_FROM * len(relevant)
    excluded = [[], [3, 80], [85], [], [81, 82, 89], [88]]
    result = rank_catalogue(scorer_of(scores), np.arange(6), lists_of(relevant), lists_of(excluded), 90, 5, 6)
    for user in range(6):
        ranks, best, *_ = literal_ranking(scores[user], relevant[user], excluded[user], 5)
        assert result.ranks[result.relevant.owner == user].tolist() == ranks
        assert result.topk[user].tolist() == best


def test_float_ties_across_the_boundary_go_to_the_lowest_ids():
    generator = np.random.default_rng(3)
    levels = np.array([0.1, 0.1 + 1e-8, np.float32(1) / 3, -0.0, 0.0], np.float32)
    scores = levels[generator.integers(len(levels), size=(30, 500))]
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :100]
    empty = lists_of([[]] * 30)
    result = rank_catalogue(scorer_of(scores), np.arange(30), empty, empty, 500, 100, 11)
    np.testing.assert_array_equal(result.topk, expected)


def test_short_rows_end_in_padding_and_top_is_clipped():
    scores = np.array([[3.0, 1.0, 2.0, 2.0]])
    result = rank_catalogue(scorer_of(scores), np.array([0]), lists_of([[2]]), lists_of([[0, 0]]), 4, 9, 3)
    assert result.topk.tolist() == [[2, 3, 1, -1]]
    assert result.scores.tolist() == [[2.0, 2.0, 1.0, -np.inf]]
    assert (result.candidates.tolist(), result.ranks.tolist()) == ([3], [2])


def test_no_users_and_users_without_candidates():
    empty = lists_of([[0, 1]])
    nobody = rank_catalogue(scorer_of(np.zeros((1, 2))), np.zeros(0, np.int64), lists_of([]), empty, 2, 2, 4)
    assert nobody.topk.shape == (0, 2)
    assert len(nobody.ranks) == 0
    nothing = rank_catalogue(scorer_of(np.zeros((1, 2))), np.array([0]), lists_of([[]]), empty, 2, 2, 4)
    assert nothing.topk.tolist() == [[-1, -1]]
    assert nothing.candidates.tolist() == [0]


def test_one_block_is_held_at_a_time():
    seen, held = [], []

    def score_block(users):
        assert all(reference() is None for reference in held)
        seen.append(users.copy())
        scores = torch.ones(len(users), 6)
        held.append(weakref.ref(scores))
        return scores

    users = np.array([4, 0, 3, 1, 2])
    rank_catalogue(score_block, users, lists_of([[0]] * 5), lists_of([[]] * 5), 6, 2, 2)
    assert [block.tolist() for block in seen] == [[4, 0], [3, 1], [2]]


class Waits(TorchDispatchMode):
    """Collects the operations for which the host would wait on a GPU, but for the copies of results."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.seen.append(function)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("sampled", [True, False])
def test_a_block_asks_the_device_nothing_before_its_results_unless_a_tie_crosses_a_lists_end(sampled):
    scores, users, relevant, excluded = make_case(5)
    candidates = lists_of([list(range(50))] * 40) if sampled else None
    with Waits() as waits:
        rank_catalogue(scorer_of(scores), users, relevant, excluded, 97, 10, 7, candidates)
    assert not waits.seen
    with Waits() as waits:
        rank_catalogue(scorer_of(0 * scores), users, relevant, excluded, 97, 10, 7, candidates)
    assert waits.seen


def test_the_scorers_tensor_is_left_alone():
    scores = torch.arange(6.0).view(2, 3)
    rank_catalogue(lambda users: scores, np.arange(2), lists_of([[0], [1]]), lists_of([[2], [2]]), 3, 2, 2)
    assert torch.equal(scores, torch.arange(6.0).view(2, 3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_non_finite_candidate_is_named_and_an_excluded_one_is_not_looked_at(value):
    scores, users, relevant, excluded = make_case(1)
    blind = scores.copy()
    blind[excluded.owner, excluded.item] = value
    result = rank_catalogue(scorer_of(blind), users, relevant, excluded, 97, 10, 16)
    np.testing.assert_array_equal(
        result.ranks, rank_catalogue(scorer_of(scores), users, relevant, excluded, 97, 10, 16).ranks
    )
    item = int(np.setdiff1d(np.arange(97), excluded[33])[5])
    scores[33, item] = value
    with pytest.raises(ValueError, match=f"user 33, item {item}: the score is"):
        rank_catalogue(scorer_of(scores), users, relevant, excluded, 97, 10, 16)


def test_requests_that_cannot_be_answered_are_errors():
    scorer, users, one, none = scorer_of(np.zeros((2, 5))), np.arange(2), lists_of([[0], [1]]), lists_of([[], []])
    with pytest.raises(ValueError, match="item 1 of user 1 is both relevant and excluded"):
        rank_catalogue(scorer, users, one, lists_of([[], [1]]), 5, 2, 2)
    with pytest.raises(ValueError, match="item 4 is listed twice as relevant for user 1"):
        rank_catalogue(scorer, users, lists_of([[4], [4, 2, 4]]), none, 5, 2, 2)
    with pytest.raises(ValueError, match=r"scores are \[2, 5\]: need \[2, 6\]"):
        rank_catalogue(scorer, users, one, none, 6, 2, 2)
    with pytest.raises(ValueError, match=r"user ids span 0\.\.2: allowed is 0\.\.1"):
        rank_catalogue(scorer, np.array([0, 2]), one, none, 5, 2, 2)
    with pytest.raises(ValueError, match=r"relevant item ids span -1\.\.1"):
        rank_catalogue(scorer, users, lists_of([[-1], [1]]), none, 5, 2, 2)
    with pytest.raises(ValueError, match="1 lists of relevant items for 2 users"):
        rank_catalogue(scorer, users, lists_of([[0]]), none, 5, 2, 2)
    for top, block_users in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="is 0: allowed is 1 or more"):
            rank_catalogue(scorer, users, one, none, 5, top, block_users)


def test_block_size_follows_the_budget():
    assert block_users_for(3883, 64) == 64 * 2**20 // (4 * ENGINE_FLOATS * 3883)
    assert block_users_for(3883, 64, floats_per_score=200) == 64 * 2**20 // (800 * 3883)
    assert block_users_for(3883, 64, floats_per_score=1) == block_users_for(3883, 64)
    assert block_users_for(10**8, 1) == 1
    with pytest.raises(ValueError, match="must be positive"):
        block_users_for(3883, 0)


@settings(max_examples=40, deadline=None)
@given(questions(), st.integers(1, 14))
def test_sampled_candidates_hold_what_they_should(question, size):
    scores, users, relevant, excluded, _ = question
    num_items = scores.shape[1]
    sampled = sample_candidates(
        users, lists_of(relevant), lists_of(excluded), num_items, size, np.random.default_rng(size)
    )
    for row, user in enumerate(users):
        items, barred = sampled[row].tolist(), set(excluded[user]) | set(relevant[row])
        assert items == sorted(set(items))
        assert set(relevant[row]) <= set(items)
        assert not set(items) & set(excluded[user])
        assert len(items) == len(relevant[row]) + min(size, num_items - len(barred))


@settings(max_examples=40, deadline=None)
@given(questions(), st.integers(1, 14), st.booleans(), st.integers(0, 10_000))
def test_candidates_come_from_the_pool_and_may_know_nothing_of_what_is_asked(question, size, apart, seed):
    scores, users, relevant, excluded, _ = question
    num_items, generator = scores.shape[1], np.random.default_rng(seed)
    pool = np.flatnonzero(generator.random(num_items) < 0.6)

    def drawn(wanted):
        rng = np.random.default_rng(seed)
        return sample_candidates(users, lists_of(wanted), lists_of(excluded), num_items, size, rng, pool, apart)

    sampled, blind = drawn(relevant), drawn([[] for _ in relevant])
    for row, user in enumerate(users):
        items, wanted, allowed = set(sampled[row]), set(relevant[row]), set(pool) - set(excluded[user])
        assert wanted <= items <= allowed | wanted
        if apart:
            assert len(items - wanted) == min(size, len(allowed - wanted))
        else:
            assert items == wanted | set(blind[row]) and len(blind[row]) == min(size, len(allowed))


def test_sampled_candidates_are_uniform():
    num_users, num_items, size = 4000, 30, 7
    relevant, excluded = lists_of([[3]] * num_users), lists_of([[0, 5, 29]] * num_users)
    sampled = sample_candidates(np.arange(num_users), relevant, excluded, num_items, size, np.random.default_rng(5))
    counts = np.bincount(sampled.item, minlength=num_items)
    assert counts[3] == num_users
    assert counts[[0, 5, 29]].sum() == 0
    drawn = np.delete(counts, [0, 3, 5, 29])
    # Without replacement each count has variance p(1 - p), so the statistic is scaled from the multinomial's.
    statistic = stats.chisquare(drawn).statistic * (len(drawn) - 1) / (len(drawn) - size)
    assert stats.chi2.sf(statistic, len(drawn) - 1) > 1e-3


def test_sampling_block_by_block_gives_the_same_lists_and_ranks(monkeypatch):
    scores, users, relevant, excluded = make_case(2)
    sampled = sample_candidates(users, relevant, excluded, 97, 15, np.random.default_rng(1))
    monkeypatch.setattr("model.evaluation.candidates._SAMPLER_KEYS", 3 * 97)
    again = sample_candidates(users, relevant, excluded, 97, 15, np.random.default_rng(1))
    np.testing.assert_array_equal(sampled.item, again.item)
    generator = np.random.default_rng(1)

    def draw(rows):
        return sample_candidates(users[rows], relevant.take(rows), excluded, 97, 15, generator)

    whole = rank_catalogue(scorer_of(scores), users, relevant, excluded, 97, 10, 40, candidates=sampled)
    lazy = rank_catalogue(scorer_of(scores), users, relevant, excluded, 97, 10, 9, candidates=draw)
    np.testing.assert_array_equal(lazy.ranks, whole.ranks)
    np.testing.assert_array_equal(lazy.topk, whole.topk)
    assert np.all(lazy.candidates == 18)
    full = rank_catalogue(scorer_of(scores), users, relevant, excluded, 97, 10, 40)
    assert np.all(whole.ranks <= full.ranks)


def test_most_popular_equals_a_naive_list():
    generator = np.random.default_rng(4)
    degree = generator.integers(0, 6, size=60)
    excluded = [generator.permutation(60)[:20].tolist() for _ in range(25)]
    relevant = [[int(np.setdiff1d(np.arange(60), row)[7])] for row in excluded]
    result = rank_catalogue(popularity_scores(degree), np.arange(25), lists_of(relevant), lists_of(excluded), 60, 10, 4)
    for user in range(25):
        ranks, best, _, _ = literal_ranking(degree, relevant[user], excluded[user], 10)
        assert result.topk[user].tolist() == best
        assert result.ranks[user] == ranks[0]


def test_random_scores_depend_on_seed_user_and_item_alone():
    scorer = random_scores(50, seed=9)
    block = scorer(np.arange(7))
    assert torch.equal(scorer(np.array([6, 2])), block[[6, 2]])
    # the same on every machine, and for a smaller catalogue
    assert torch.equal(random_scores(20, seed=9)(np.arange(7)), block[:, :20])
    assert block[3, :3].tolist() == pytest.approx([0.9896567, 0.5867518, 0.3514614], abs=1e-6)
    assert not torch.equal(random_scores(50, seed=10)(np.arange(7)), block)
    assert len(np.unique(block)) > 340


def test_random_scores_are_uniform_and_hit_at_chance():
    num_users, num_items = 3000, 200
    scores = random_scores(num_items, seed=0)(np.arange(num_users)).numpy()
    assert stats.kstest(scores.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(scores[:-1].ravel(), scores[1:].ravel())[0, 1]) < 0.006
    relevant = lists_of([[user % num_items] for user in range(num_users)])
    result = rank_catalogue(
        random_scores(num_items, 0), np.arange(num_users), relevant, lists_of([[]] * num_users), num_items, 10, 256
    )
    hits = int(np.sum(result.ranks <= 10))
    assert stats.binomtest(hits, num_users, 10 / num_items).pvalue > 1e-3


@pytest.mark.parametrize("part", ["loop", "engine", "many"])
def test_the_benchmark_runs(monkeypatch, capsys, part):
    arguments = ["--only", part, "--size", "60", "300", "1500", "--sample", "5"]
    monkeypatch.setattr(sys, "argv", ["ranking", *arguments])
    benchmark.main()
    shown = capsys.readouterr().out
    assert "ratio" in shown
    assert float(re.search(r"agreement: ([\d.]+)% of ranks", shown)[1]) > 90
