"""Samplers: exact distributions by enumeration, validity by naive loops."""

from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import chi2, chisquare, poisson

from data.dataloader import BatchSampler, edge_batches
from data.sampling.early import EarlyHistorySampler, arrival_limits
from data.sampling.histories import HistorySampler, normalised
from data.sampling.negatives import NegativeSampler
from data.sampling.recent import RecentHistory
from data.sampling.sources import history_source
from data.structs import Histories, HistoryWeights
from fairness_utils import catalogue_log_weights
from tests.support.no_host_sync import NoHostSync

torch.set_num_threads(1)
CPU = torch.device("cpu")
DRAWS = 20_000
P_VALUE = 1e-4  # seeds are fixed, so that a right sampler passes always
LISTS = st.lists(st.lists(st.integers(0, 30), max_size=20, unique=True), min_size=1, max_size=12).filter(any)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_histories(lists):
    indptr = np.array([0, *np.cumsum([len(row) for row in lists])], dtype=np.int64)
    return Histories(indptr, np.array([item for row in lists for item in row], dtype=np.int64))


def weigh(*components, mix=None):
    mix = np.full(len(components), 1 / len(components)) if mix is None else np.array(mix)
    return HistoryWeights(np.log(mix), np.stack([np.asarray(row, dtype=np.float64) for row in components]))


def uniform_weights(histories):
    return weigh(np.zeros(len(histories.item)))


# How a sampler works: "plain" draws whole rows; "early" looks at early arrivals first, of which the lists here are too
# short to leave any out; a number of entries that are to arrive early makes it leave some out and finish some rows in
# full.
WAYS = ["plain", "early", 0.5, 3.0]


def make_sampler(histories, weights, length, way="early", **options):
    kind = HistorySampler if way == "plain" else EarlyHistorySampler
    sampler = kind(histories, weights, length, CPU, **options)
    if way not in ("plain", "early"):
        parts = zip(weights.log_mix, weights.log_weights, strict=True)
        log_p = np.logaddexp.reduce([mix + normalised(row, histories)[0] for mix, row in parts])
        sampler._limit_arrivals(log_p, histories, way)
    return sampler


def mixture(weights, entries):
    """Log probability of each of `entries`, every component normalised over them, by the definition."""
    pairs = zip(weights.log_mix, weights.log_weights, strict=True)
    parts = [mix + row[entries] - logsumexp(row[entries]) for mix, row in pairs]
    return logsumexp(parts, axis=0)


def set_probabilities(log_p, size):
    """Probability of every set of `size` entries under sequential draws without replacement, by enumeration."""
    total = {}
    for order in permutations(range(len(log_p)), size):
        left, value = set(range(len(log_p))), 0.0
        for entry in order:
            value += log_p[entry] - logsumexp(log_p[sorted(left)])
            left.remove(entry)
        total[tuple(sorted(order))] = total.get(tuple(sorted(order)), 0.0) + np.exp(value)
    return total


def assert_counts(observed, probability):
    """Chi-square of `observed` counts against `probability`; cells too rare to expect five are pooled."""
    observed, expected = np.asarray(observed, dtype=float), np.asarray(probability) * np.sum(observed)
    assert expected.sum() == pytest.approx(observed.sum())
    rare = expected < 5
    if expected[rare].sum() < 5:
        assert poisson.sf(observed[rare].sum() - 1, expected[rare].sum()) > P_VALUE
        observed, expected = observed[~rare], expected[~rare]
    else:
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    if len(observed) > 1:
        assert chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > P_VALUE


def check_sets(sampler, lists, user, keep, log_p, exclude, seed):
    """Draw many histories of `user` among those of other users; compare its sets with the enumeration."""
    size = sampler.length
    others = torch.arange(len(lists)).repeat(50)
    users = torch.cat([torch.full((DRAWS,), user), others])
    rest = None if exclude is None else torch.cat([torch.full((DRAWS,), exclude), sampler.indptr[others]])
    history = sampler.sample(users, rest, generator(seed))
    assert bool(history.mask[:DRAWS].all())
    place = {lists[user][entry]: n for n, entry in enumerate(keep)}
    drawn = [tuple(place[item] for item in row) for row in history.items[:DRAWS].tolist()]
    expected = set_probabilities(log_p, size)
    assert set(drawn) <= set(expected)
    count = dict.fromkeys(expected, 0)
    for key in drawn:
        count[key] += 1
    assert_counts(list(count.values()), list(expected.values()))


# --- Histories: distribution ---

USERS = [[7], [30, 10, 50, 20, 40], [1, 2, 3, 4, 5, 6, 8, 9, 11, 12, 13], [60, 61]]
START = 1  # CSR position of the second user's first entry


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("excluded", [None, 3])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_draws_follow_sequential_sampling_without_replacement(size, excluded, way):
    histories, rng = make_histories(USERS), np.random.default_rng(5)
    weights = weigh(*rng.normal(size=(2, len(histories.item))), mix=(0.3, 0.7))
    keep = [n for n in range(5) if n != excluded]
    log_p = mixture(weights, [START + n for n in keep])
    exclude = None if excluded is None else START + excluded
    check_sets(make_sampler(histories, weights, size, way), USERS, 1, keep, log_p, exclude, seed=size)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1, 3, 4])
def test_draws_do_not_underflow_at_a_low_temperature(size, way):
    histories = make_histories(USERS)
    degree = np.full(62, 3000)
    degree[[30, 10, 50, 20, 40]] = [1, 1, 60, 200, 3000]
    weights = weigh(catalogue_log_weights(histories, degree, temperature=0.01))
    rows = weights.log_weights[0][START : START + 5]
    assert rows.min() < -99
    # in float32, as a naive port would hold it, all but two of the five have no mass or next to none
    assert np.sum(np.exp(rows.astype(np.float32)) > np.finfo(np.float32).tiny) == 2
    log_p = mixture(weights, list(range(START, START + 5)))
    check_sets(make_sampler(histories, weights, size, way), USERS, 1, range(5), log_p, None, seed=size)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("excluded_log_rest", [np.log(1e-12), -60.0, -100.0])
def test_mixture_is_renormalised_without_a_target_that_held_all_the_mass(excluded_log_rest, way):
    histories = make_histories(USERS)
    target = 2  # of five: the others share exp(excluded_log_rest) of the first component, 1 : 3 : 1 : 5
    log_weights = np.zeros((2, len(histories.item)))
    others = np.log([1, 3, 1, 5]) - np.log(10) + excluded_log_rest
    log_weights[0, START : START + 5] = np.insert(others, target, 0.0)
    log_weights[1, START : START + 5] = np.log([8, 1, 3, 1, 1])
    weights = weigh(*log_weights, mix=(0.6, 0.4))
    keep = [0, 1, 3, 4]
    entries = [START + n for n in keep]
    expected = 0.6 * np.array([1, 3, 1, 5]) / 10 + 0.4 * np.array([8, 1, 1, 1]) / 11
    assert np.exp(mixture(weights, entries)) == pytest.approx(expected, rel=1e-9)
    sampler = make_sampler(histories, weights, 1, way)
    found = sampler._log_probability(torch.tensor([entries]), torch.tensor([START + target]))
    assert found[0].exp().numpy() == pytest.approx(expected, rel=2e-5)
    check_sets(sampler, USERS, 1, keep, np.log(expected), START + target, seed=3)


@given(LISTS, st.integers(0, 2**32 - 1), st.sampled_from([0.1, 3.0, 100.0, 1000.0]))
@settings(max_examples=60, deadline=None)
def test_normalised_equals_a_loop(lists, seed, spread):
    histories = make_histories(lists)
    log_weights = np.random.default_rng(seed).normal(scale=spread, size=len(histories.item))
    log_p, log_rest = normalised(log_weights, histories)
    for start, stop in zip(histories.indptr[:-1], histories.indptr[1:], strict=True):
        row = log_weights[start:stop]
        for n in range(len(row)):
            assert log_p[start + n] == pytest.approx(row[n] - logsumexp(row), rel=1e-12, abs=1e-12)
            rest = np.delete(row, n)
            expected = logsumexp(rest) - logsumexp(row) if len(rest) else -np.inf
            assert log_rest[start + n] == pytest.approx(expected, rel=1e-11, abs=1e-11)


# --- Histories: validity ---


def assert_valid(lists, users, exclude, length, history):
    assert history.items.dtype == torch.int64 and history.mask.dtype == torch.bool
    length = min(length, max([1, *map(len, lists)]))  # no wider than the longest
    assert tuple(history.items.shape) == tuple(history.mask.shape) == (len(users), length)
    for user, place, items, mask in zip(users, exclude, history.items.tolist(), history.mask.tolist(), strict=True):
        allowed = [item for n, item in enumerate(lists[user]) if n != place]
        size = min(length, len(allowed))
        assert mask == [True] * size + [False] * (length - size)
        assert items[size:] == [0] * (length - size)
        assert items[:size] == [item for item in allowed if item in items[:size]], "in time order, each once"


@given(LISTS, st.integers(1, 7), st.booleans(), st.sampled_from(WAYS), st.data())
@settings(max_examples=120, deadline=None)
def test_histories_are_valid_for_any_mixture_of_lengths(lists, length, excludes, way, data):
    lists = [[item + 1 for item in row] for row in lists]  # item 0 is then padding alone
    histories = make_histories(lists)
    seed = data.draw(st.integers(0, 2**32 - 1))
    weights = weigh(*np.random.default_rng(seed).normal(scale=30, size=(2, len(histories.item))))
    candidates = [n for n, row in enumerate(lists) if row or not excludes]
    users = data.draw(st.lists(st.sampled_from(candidates), min_size=1, max_size=15))
    exclude = [data.draw(st.integers(0, len(lists[user]) - 1)) if excludes else None for user in users]
    position = (
        torch.tensor([histories.indptr[u] + n for u, n in zip(users, exclude, strict=True)]) if excludes else None
    )
    sampler = make_sampler(histories, weights, length, way)
    history = sampler.sample(torch.tensor(users), position, generator(seed))
    assert_valid(lists, users, exclude, length, history)


@pytest.mark.parametrize("way", WAYS)
def test_users_without_an_item_left_get_an_empty_history(way):
    lists = [[], [5], [6, 7], []]
    sampler = make_sampler(make_histories(lists), weigh([0, 0, -3], [0, 2, 1]), 2, way)
    history = sampler.sample(torch.tensor([0, 3, 1, 2]), None, generator())
    assert history.mask.tolist() == [[False, False], [False, False], [True, False], [True, True]]
    assert history.items.tolist() == [[0, 0], [0, 0], [5, 0], [6, 7]]
    history = sampler.sample(torch.tensor([1, 2, 2]), torch.tensor([0, 1, 2]), generator())
    assert history.mask.tolist() == [[False, False], [True, False], [True, False]]
    assert history.items.tolist() == [[0, 0], [7, 0], [6, 0]]


def test_the_same_generator_gives_the_same_histories():
    rng = np.random.default_rng(0)
    lists = [rng.permutation(200)[: rng.integers(0, 90)].tolist() for _ in range(40)]
    sampler = make_sampler(make_histories(lists), uniform_weights(make_histories(lists)), 5)
    users = torch.arange(40)
    first, again, other = (sampler.sample(users, None, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.items, again.items) and torch.equal(first.mask, again.mask)
    assert not torch.equal(first.items, other.items)
    state = generator(1)
    sampler.sample(users, None, state)
    assert not torch.equal(first.items, sampler.sample(users, None, state).items)


def test_weights_of_other_histories_are_refused():
    histories = make_histories([[1, 2], [3]])
    with pytest.raises(ValueError, match="for 2 entries, not 3"):
        HistorySampler(histories, weigh([0.0, 0.0]), 2, CPU)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("excludes", [False, True])
def test_with_replacement_short_rows_repeat_their_own_items(excludes, way):
    lists = [[5], [6, 7, 8], [11, 12, 13, 14], [], [9, 10], [15, 16, 17, 18, 19]]
    histories = make_histories(lists)
    log_weights = np.zeros(len(histories.item))
    log_weights[8:10] = np.log([1, 3])
    sampler = make_sampler(histories, weigh(log_weights), 4, way, with_replacement=True)
    users = torch.tensor([0, 1, 2, 4, 5] if excludes else [0, 1, 2, 3, 4, 5]).repeat(2000)
    exclude = histories.indptr[users.numpy()] if excludes else None
    history = sampler.sample(users, torch.from_numpy(exclude) if excludes else None, generator(4))
    for user, items, mask in zip(users.tolist(), history.items.tolist(), history.mask.tolist(), strict=True):
        allowed = lists[user][1:] if excludes else lists[user]
        assert mask == [bool(allowed)] * 4
        if len(allowed) >= 4:
            assert items == [item for item in allowed if item in items], "long rows hold no repeats"
        elif allowed:
            assert set(items) <= set(allowed) and items == sorted(items)
    if not excludes:
        drawn = history.items[users == 4]
        assert_counts([(drawn == 9).sum(), (drawn == 10).sum()], [0.25, 0.75])


def test_a_step_of_rows_too_many_for_one_block_is_the_same_draw(monkeypatch):
    histories = make_histories(USERS)
    sampler = make_sampler(histories, uniform_weights(histories), 3, "plain")
    users = torch.tensor([1, 2, 0, 3, 2, 1, 2])
    whole = sampler.sample(users, None, generator(1))
    monkeypatch.setattr("data.sampling.histories.BLOCK_KEYS", 25)  # two rows of eleven
    blocks = sampler.sample(users, None, generator(1))
    # the draws are made row by row, so that blocks see the numbers that the whole saw
    assert torch.equal(whole.items, blocks.items) and torch.equal(whole.mask, blocks.mask)


@given(LISTS, st.floats(0.3, 25), st.floats(0.1, 30), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_the_expected_number_arrives_early(lists, kept, spread, seed):
    histories = make_histories(lists)
    log_weights = np.random.default_rng(seed).normal(scale=spread, size=len(histories.item))
    log_p = normalised(log_weights, histories)[0]
    limit, chance = arrival_limits(log_p, histories, kept)
    for n, (start, stop) in enumerate(pairwise(histories.indptr)):
        if stop - start <= kept:
            assert np.isinf(limit[n]) and (chance[start:stop] == 1).all()
        else:
            assert chance[start:stop] == pytest.approx(-np.expm1(-np.exp(log_p[start:stop]) * limit[n]), abs=1e-12)
            assert chance[start:stop].sum() <= kept * (1 + 1e-9)
            if spread < 3:
                assert chance[start:stop].sum() >= 0.99 * kept


@pytest.mark.parametrize("excluded", [None, 17])
def test_the_fast_sampler_draws_like_the_plain_one_from_long_histories(excluded):
    """How often each of 150 entries is drawn, where most rows leave most entries unlooked at."""
    rng = np.random.default_rng(6)
    histories = make_histories([rng.permutation(400)[:size].tolist() for size in (30, 150, 90)])
    weights = weigh(*rng.normal(scale=2, size=(2, len(histories.item))), mix=(0.4, 0.6))
    users = torch.ones(6000, dtype=torch.int64)
    exclude = None if excluded is None else torch.full((6000,), 30 + excluded)
    counts = []
    for way in ("plain", "early"):
        history = make_sampler(histories, weights, 6, way).sample(users, exclude, generator(1))
        assert bool(history.mask.all())
        counts.append(np.bincount(history.items.flatten().numpy(), minlength=400)[histories[1]])
    plain, early = (np.delete(count, [] if excluded is None else excluded) for count in counts)
    both = plain + early
    often = both >= 20
    # entries of a draw exclude each other, which makes counts vary less than independent ones would
    statistic = ((plain - early)[often] ** 2 / both[often]).sum()
    assert often.sum() > 60 and statistic < chi2.isf(P_VALUE, often.sum())
    assert excluded is None or counts[0][excluded] == counts[1][excluded] == 0


def test_few_rows_of_a_long_tail_are_finished_in_full():
    rng = np.random.default_rng(2)
    lists = [rng.permutation(3000)[:size].tolist() for size in rng.integers(1, 600, size=300)]
    histories = make_histories(lists)
    weights = weigh(catalogue_log_weights(histories, rng.zipf(1.3, 3000).clip(1, 3000), temperature=0.01))
    sampler = make_sampler(histories, weights, 15)
    settle, finished = sampler._settle, []

    def count(chosen, unsettled, *rest):
        finished.append(len(unsettled))
        settle(chosen, unsettled, *rest)

    sampler._settle = count
    users = torch.from_numpy(histories.lengths.argsort()).repeat_interleave(20)
    row, *_ = sampler._early(users, generator())
    assert len(row) < 0.15 * len(histories.item) * 20, "most of the entries are never looked at"
    sampler.sample(users, None, generator())
    assert sum(finished) < 0.02 * len(users)


# --- Recent histories, and sources by name ---


@given(LISTS, st.integers(1, 7), st.booleans(), st.data())
@settings(max_examples=80, deadline=None)
def test_recent_histories_equal_a_loop(lists, length, excludes, data):
    lists = [[item + 1 for item in row] for row in lists]  # item 0 is then padding alone
    histories = make_histories(lists)
    source = RecentHistory(histories, length, CPU)
    candidates = [n for n, row in enumerate(lists) if row or not excludes]
    users = data.draw(st.lists(st.sampled_from(candidates), min_size=1, max_size=15))
    places = [data.draw(st.integers(0, len(lists[user]) - 1)) if excludes else len(lists[user]) for user in users]
    exclude = histories.indptr[users] + np.array(places) if excludes else None
    state = generator(3)
    history = source.sample(torch.tensor(users), None if exclude is None else torch.from_numpy(exclude), state)
    assert source.length == min(length, max(map(len, lists)))
    for user, place, items, mask in zip(users, places, history.items.tolist(), history.mask.tolist(), strict=True):
        wanted = lists[user][max(0, place - source.length) : place]
        padding = source.length - len(wanted)
        assert items == wanted + [0] * padding and mask == [True] * len(wanted) + [False] * padding
    assert torch.equal(state.get_state(), generator(3).get_state()), "nothing is drawn"


def test_a_source_is_made_by_its_name():
    histories = make_histories([[1, 2, 3], [4]])
    weights = uniform_weights(histories)
    for device, kind in ((CPU, EarlyHistorySampler), (torch.device("meta"), HistorySampler)):
        assert type(history_source("sampled", histories, weights, 2, device)) is kind
    assert history_source("sampled", histories, weights, 5, CPU, with_replacement=True).length == 5
    recent = history_source("recent", histories, None, 2, CPU)
    assert recent.sample(torch.tensor([0, 1]), None, generator()).items.tolist() == [[2, 3], [4, 0]]
    with pytest.raises(ValueError, match="history 'last': allowed is one of sampled, recent"):
        history_source("last", histories, weights, 2, CPU)


# --- Negatives ---


def make_negatives(known, num_items, num_uniform=3, num_in_batch=3, way="host"):
    sampler = NegativeSampler(make_histories(known), num_items, num_uniform, num_in_batch, CPU)
    if way == "device":
        sampler.device = torch.device("cuda")
    return sampler


def draw_uniform(known, num_items, users, count, way, seed):
    return make_negatives(known, num_items, count, 0, way).sample(users, users, generator(seed))


def kth_missing(known, num_items, rank):
    return [item for item in range(num_items) if item not in known][rank]


@given(st.lists(st.sets(st.integers(0, 7)), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_unknown_items_equal_the_kth_missing_item(known, seed):
    num_items, rng = 8, np.random.default_rng(seed)
    sampler = make_negatives([rng.permutation(sorted(row)).tolist() for row in known], num_items)
    users = torch.arange(len(known)).repeat(3)
    found = sampler.unknown(users, 5, generator(seed))
    draw = torch.rand((len(users), 5), generator=generator(seed), dtype=torch.float64).tolist()
    for user, row, drawn in zip(users.tolist(), found.tolist(), draw, strict=True):
        missing = set() if len(known[user]) == num_items else known[user]
        unknown = num_items - len(missing)
        assert row == [kth_missing(missing, num_items, int(value * unknown)) for value in drawn]


@given(st.integers(1, 700), st.integers(0, 2**32 - 1), st.sampled_from(["device", "host"]))
@settings(max_examples=40, deadline=None)
def test_known_items_are_told_from_others(num_items, seed, way):
    # short lists of a large catalogue are folded over in the bitmaps, long ones are not
    rng = np.random.default_rng(seed)
    known = [rng.permutation(num_items)[: rng.integers(0, 12)].tolist() for _ in range(6)]
    sampler = make_negatives(known, num_items, way=way)
    users = torch.tensor([3, 0, 1, 2, 5, 4, 0])
    table = sampler.is_known(users, torch.arange(num_items).expand(len(users), -1)).numpy()
    for user, row in zip(users.tolist(), table, strict=True):
        assert sorted(known[user]) == np.flatnonzero(row).tolist()


def test_bitmaps_are_no_larger_than_the_data():
    known = [list(range(5)), [], list(range(0, 100_000, 10))]
    sampler = make_negatives(known, 100_000)
    assert sampler.filter_words.numel() <= 2 * sum(map(len, known)) + len(known)
    assert sampler.filter_is_exact.tolist() == [False, False, True]


@pytest.mark.parametrize("way", ["device", "host"])
@pytest.mark.parametrize("known", [[], [0], [6], [0, 1, 5, 6], [1, 3, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6]])
def test_uniform_negatives_are_uniform_over_unknown_items(known, way):
    users = torch.ones(2000, dtype=torch.int64)
    drawn = draw_uniform([[2, 3], known, [0, 6]], 7, users, 10, way, seed=1).flatten().numpy()
    unknown = [item for item in range(7) if item not in known] or list(range(7))
    count = np.bincount(drawn, minlength=7)
    assert count.sum() == count[unknown].sum(), "no known item is drawn, unless there is no other"
    assert_counts(count[unknown], np.full(len(unknown), 1 / len(unknown)))


def test_negatives_where_nobody_knows_anything_or_interactions_repeat():
    nothing = make_negatives([[], []], 4)
    assert not nothing.is_known(torch.tensor([0, 1]), torch.arange(4).expand(2, -1)).any()
    users = torch.tensor([0, 1])
    assert set(draw_uniform([[], []], 4, users, 50, "host", 0).flatten().tolist()) == {0, 1, 2, 3}
    drawn = draw_uniform([[2, 0, 2, 2], [1, 1]], 4, users, 300, "host", 0)
    assert [sorted(set(row)) for row in drawn.tolist()] == [[1, 3], [0, 2, 3]]


@pytest.mark.parametrize(("known", "count"), [([2], 2), ([0, 4], 3), ([], 1), ([1, 3, 4], 2), ([0, 1, 2, 3, 4], 2)])
def test_distinct_negatives_are_every_arrangement_of_unknown_items_alike(known, count):
    unknown = [item for item in range(5) if item not in known] or list(range(5))
    sampler = NegativeSampler(make_histories([[0, 1], known]), 5, count, 0, CPU, distinct=True)
    drawn = sampler.sample(torch.ones(6000, dtype=torch.int64), torch.ones(6000), generator(3))
    arrangements = {row: number for number, row in enumerate(permutations(unknown, count))}
    found = np.bincount([arrangements[tuple(row)] for row in drawn.tolist()], minlength=len(arrangements))
    assert_counts(found, np.full(len(arrangements), 1 / len(arrangements)))


@given(st.lists(st.sets(st.integers(0, 7)), min_size=1, max_size=6), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_distinct_negatives_repeat_only_where_a_user_has_too_few(known, count, seed):
    sampler = NegativeSampler(make_histories(list(map(sorted, known))), 8, count, 0, CPU, distinct=True)
    users = torch.arange(len(known)).repeat(3)
    for user, row in zip(users.tolist(), sampler.sample(users, users, generator(seed)).tolist(), strict=True):
        unknown = set(range(8)) - known[user] or set(range(8))
        assert set(row) <= unknown and len(row) == count
        assert len(set(row)) == min(count, len(unknown))


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32 - 1), st.sampled_from(["device", "host"]))
@settings(max_examples=80, deadline=None)
def test_in_batch_negatives_are_other_rows_that_the_user_does_not_know(rows, wanted, seed, way):
    rng, num_items = np.random.default_rng(seed), 40
    known = [rng.permutation(num_items)[: rng.integers(1, 30)].tolist() for _ in range(4)]
    sampler = make_negatives(known, num_items, 0, wanted, way)
    users = torch.from_numpy(rng.integers(0, 4, rows))
    positives = torch.from_numpy(rng.integers(0, num_items, rows))  # a row's own need not be known
    drawn = sampler.sample(users, positives, generator(seed))
    assert tuple(drawn.shape) == (rows, wanted)
    assert not sampler.is_known(users, drawn).any()
    # an item that does not exist shows how many came from the batch
    sampler.unknown = lambda users, count, generator: torch.full((len(users), count), num_items)
    marked = sampler.sample(users, positives, generator(seed)).tolist()
    offered = min(rows - 1, 3 * wanted)
    for row, items in enumerate(marked):
        user = int(users[row])
        others = [int(item) for n, item in enumerate(positives) if n != row and int(item) not in known[user]]
        taken = [item for item in items if item < num_items]
        assert items == taken + [num_items] * (wanted - len(taken)), "the batch first, then the fill"
        assert all(taken.count(item) <= others.count(item) for item in taken), "each other row at most once"
        assert len(taken) <= min(wanted, len(others))
        if offered == rows - 1:
            assert len(taken) == min(wanted, len(others)), "the fill stands in only where the batch has no more"


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_tiny_batches_take_what_the_batch_has(rows):
    # three users who know one item each: every other row's positive is a negative
    sampler = make_negatives([[0], [1], [2]], 9, 2, 4)
    users = positives = torch.arange(rows)
    negatives = sampler.sample(users, positives, generator(2))
    assert tuple(negatives.shape) == (rows, 6)
    for row, items in enumerate(negatives.tolist()):
        assert row not in items
        assert sorted(items[2 : 1 + rows]) == [n for n in range(rows) if n != row]


def test_in_batch_candidates_are_taken_in_the_order_of_the_offsets():
    # nobody knows another row's item: the offsets drawn first are the ones taken, the same for all rows
    sampler = make_negatives([[n] for n in range(30)], 30, 0, 4)
    users = torch.arange(30)
    drawn = sampler.sample(users, users, generator(5))
    offsets = torch.randperm(29, generator=generator(5))[:4] + 1
    assert torch.equal(drawn, (users[:, None] + offsets) % 30)


def test_fill_is_used_when_the_batch_holds_known_items_only():
    sampler = make_negatives([[0, 1, 2, 3], [0, 1, 2, 3]], 6, 0, 3)
    users, positives = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 2, 3])
    assert set(sampler.sample(users, positives, generator()).flatten().tolist()) == {4, 5}


def test_in_batch_offsets_reach_every_other_row():
    sampler = make_negatives([[n] for n in range(6)], 6, 0, 1)
    users = torch.arange(6)
    state = generator(3)
    drawn = torch.cat([sampler.sample(users, users, state) for _ in range(3000)], dim=1)
    for row in range(6):
        count = np.bincount(drawn[row].numpy(), minlength=6)
        assert count[row] == 0
        assert_counts(np.delete(count, row), np.full(5, 0.2))


def test_only_the_kinds_asked_for_are_drawn():
    users = torch.arange(3)
    for kinds in [(2, 0), (0, 2), (1, 3)]:
        sampler = make_negatives([[0], [1], [2]], 9, *kinds)
        assert sampler.sample(users, users, generator()).shape == (3, sum(kinds))


# --- Edges and batches ---


def test_edge_batches_visit_every_edge_once_in_a_new_order_each_epoch():
    state = generator(1)
    epochs = [list(edge_batches(10, 4, state)) for _ in range(2)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert sorted(torch.cat(batches).tolist()) == list(range(10))
    first, second = (torch.cat(batches) for batches in epochs)
    assert not torch.equal(first, second) and first.tolist() != list(range(10))
    assert torch.equal(first, torch.cat(list(edge_batches(10, 4, generator(1)))))


def make_batches(length=4, **options):
    rng = np.random.default_rng(3)
    lists = [rng.permutation(np.arange(1, 60))[: rng.integers(1, 12)].tolist() for _ in range(30)]
    train = make_histories(lists)
    history = make_sampler(train, uniform_weights(train), length)
    negatives = make_negatives(lists, 60, 2, 1)
    edges = torch.cat(list(edge_batches(len(train.item), 64, generator())))
    sampler = BatchSampler(train, negatives, history, **options)
    return lists, train, edges, sampler.sample(edges, generator(1), generator(2))


def places(lists, train, edges):
    return [int(edge - train.indptr[user]) for edge, user in zip(edges.tolist(), train.owner[edges], strict=True)]


def test_batches_hold_the_edges_and_histories_without_the_target():
    lists, train, edges, batch = make_batches()
    assert batch.users.tolist() == train.owner[edges].tolist()
    assert batch.positives.tolist() == train.item[edges].tolist()
    assert tuple(batch.negatives.shape) == (len(edges), 3)
    known = [lists[user] for user in batch.users.tolist()]
    assert not any(item in row for row, items in zip(known, batch.negatives.tolist(), strict=True) for item in items)
    assert_valid(lists, batch.users.tolist(), places(lists, train, edges), 4, batch.history)


def test_the_target_stays_sometimes_when_it_is_not_excluded():
    lists, _, edges, batch = make_batches(exclude_target=False)
    assert_valid(lists, batch.users.tolist(), [None] * len(edges), 4, batch.history)
    inside = (batch.history.items == batch.positives[:, None]).any(1)
    short = torch.tensor([len(lists[user]) <= 4 for user in batch.users.tolist()])
    assert inside[short].all() and 0 < inside[~short].float().mean() < 1


@pytest.mark.parametrize("exclude_target", [True, False])
def test_a_history_per_row_puts_the_positive_first_and_its_negatives_after(exclude_target):
    lists, train, edges, batch = make_batches(history_per_row=True, exclude_target=exclude_target)
    rows, width = len(edges), 4
    assert tuple(batch.history.items.shape) == (rows * width, 4)
    users = batch.users.repeat_interleave(width).tolist()
    place = np.full((rows, width), None)
    if exclude_target:
        place[:, 0] = places(lists, train, edges)
    assert_valid(lists, users, place.flatten().tolist(), 4, batch.history)
    inside = (batch.history.items.view(rows, width, 4) == batch.positives[:, None, None]).any(2)
    assert inside[:, 1:].float().mean() > 0.2, "the negatives' histories may hold the positive"
    assert inside[:, 0].any() == (not exclude_target)
    assert not torch.equal(batch.history.items[1::width], batch.history.items[2::width]), "a draw per row"


def test_a_backbone_without_history_gets_none():
    train = make_histories([[1, 2], [3]])
    batch = BatchSampler(train, make_negatives([[1, 2], [3]], 5), None).sample(
        torch.arange(3), generator(), generator()
    )
    assert batch.history is None and batch.positives.tolist() == [1, 2, 3]


def test_negatives_and_histories_have_streams_of_their_own():
    train = make_histories([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11]])
    history = make_sampler(train, uniform_weights(train), 2)
    sampler = BatchSampler(train, make_negatives([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11]], 30), history)
    edges = torch.arange(11)
    first, second, third = (sampler.sample(edges, generator(n), generator(h)) for n, h in [(1, 2), (1, 3), (4, 2)])
    assert torch.equal(first.negatives, second.negatives) and not torch.equal(first.negatives, third.negatives)
    assert torch.equal(first.history.items, third.history.items)
    assert not torch.equal(first.history.items, second.history.items)


# --- Rows, order and negatives of a phase ---

PHASE_LISTS = [[1, 2, 3, 4], [5, 6], [7, 8, 9, 10, 11], [12]]
PHASE_ROWS = np.array([10, 2, 0, 7, 5, 11, 3])  # users 2, 0, 0, 2, 1, 3 and 0


def phase_sampler(num_in_batch=0, kind="recent", **options):
    train = make_histories(PHASE_LISTS)
    history = history_source(kind, train, uniform_weights(train), 3, CPU)
    return BatchSampler(train, make_negatives(PHASE_LISTS, 40, 3, num_in_batch), history, rows=PHASE_ROWS, **options)


def pass_of(sampler, size=3, seed=0):
    return [places.tolist() for places in sampler.batches(size, generator(seed))]


@pytest.mark.parametrize("order", ["shuffled", "blocks", "shuffled blocks"])
def test_only_the_phases_rows_are_trained_each_once_a_pass(order):
    sampler = phase_sampler(order=order)
    assert (sampler.num_rows, [sampler.steps(size) for size in (1, 3, 7, 8)]) == (7, [7, 3, 1, 1])
    batches = pass_of(sampler)
    assert sorted(place for batch in batches for place in batch) == list(range(7))
    assert len(batches) == sampler.steps(3)
    rows = []
    for places in batches:
        batch = sampler.sample(torch.tensor(places), generator(), generator())
        assert batch.rows.tolist() == PHASE_ROWS[places].tolist()
        train = make_histories(PHASE_LISTS)
        assert batch.users.tolist() == train.owner[PHASE_ROWS[places]].tolist()
        assert batch.positives.tolist() == train.item[PHASE_ROWS[places]].tolist()
        # the past of a target is what lies before it in its user's history
        for user, item, items, mask in zip(batch.users, batch.positives, *vars(batch.history).values(), strict=True):
            own = PHASE_LISTS[user]
            assert items[mask].tolist() == own[: own.index(item)][-3:]
        rows += batch.rows.tolist()
    assert sorted(rows) == sorted(PHASE_ROWS.tolist())


def test_blocks_come_in_training_order_and_shuffled_blocks_stay_whole():
    blocks = [[0, 1, 2], [3, 4, 5], [6]]
    assert pass_of(phase_sampler(order="blocks")) == blocks
    orders = {tuple(map(tuple, pass_of(phase_sampler(order="shuffled blocks"), seed=seed))) for seed in range(40)}
    assert orders == set(permutations(map(tuple, blocks)))
    state = generator(2)
    passes = [[places.tolist() for places in phase_sampler(order="shuffled blocks").batches(1, state)] for _ in "ab"]
    assert passes[0] != passes[1], "a new order each pass"


@pytest.mark.parametrize("num_in_batch", [0, 2])
def test_negatives_drawn_once_are_the_same_at_every_visit_of_a_row(num_in_batch):
    sampler = phase_sampler(num_in_batch, draws_once=True)
    state = generator(5)
    whole = sampler.sample(torch.arange(7), state, generator()).negatives
    assert torch.equal(state.get_state(), generator(5).get_state()), "the stream stays where a resumed one begins"
    assert tuple(whole.shape) == (7, 3 + num_in_batch)
    for places in pass_of(sampler, seed=3):
        later = sampler.sample(torch.tensor(places), state, generator()).negatives
        assert torch.equal(later, whole[places])
    # a phase that is resumed draws the same ones, although its stream has moved on
    moved = generator(5)
    torch.rand(9, generator=moved)
    again = phase_sampler(num_in_batch, draws_once=True).sample(torch.tensor([6, 2]), moved, generator()).negatives
    assert torch.equal(again, whole[[6, 2]])
    other = phase_sampler(num_in_batch, draws_once=True).sample(torch.arange(7), generator(6), generator()).negatives
    assert not torch.equal(other, whole)
    visits = [phase_sampler(num_in_batch).sample(torch.arange(7), state, generator()).negatives for _ in "ab"]
    assert not torch.equal(*visits), "else they are drawn anew at each visit"


def test_negatives_drawn_once_do_not_depend_on_the_parts_they_are_drawn_in(monkeypatch):
    monkeypatch.setattr("data.dataloader.ONCE_ROWS", 2)
    drawn = phase_sampler(draws_once=True).sample(torch.arange(7), generator(5), generator()).negatives
    train, state = make_histories(PHASE_LISTS), generator(5)
    negatives = make_negatives(PHASE_LISTS, 40, 3, 0)
    for start in range(0, 7, 2):
        rows = PHASE_ROWS[start : start + 2]
        users, items = torch.from_numpy(train.owner[rows]), torch.from_numpy(train.item[rows])
        assert torch.equal(drawn[start : start + 2], negatives.sample(users, items, state))


def test_what_is_barred_is_never_a_negative():
    train = make_histories([[1], [2]])
    negatives = NegativeSampler(make_histories([[0, 1, 3, 4, 5], [2, 6]]), 7, 4, 2, CPU)
    sampler = BatchSampler(train, negatives, None)
    drawn = sampler.sample(torch.arange(2).repeat(100), generator(), generator()).negatives.view(100, 2, 6)
    assert set(drawn[:, 0].flatten().tolist()) == {2, 6}
    assert set(drawn[:, 1].flatten().tolist()) == {0, 1, 3, 4, 5}


# --- The branch of an accelerator ---


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("exclude_target", [True, False])
def test_a_batch_on_a_device_keeps_the_host_going(compat, exclude_target):
    rng = np.random.default_rng(3)
    lists = [rng.permutation(np.arange(1, 60))[: rng.integers(1, 12)].tolist() for _ in range(30)]
    train = make_histories(lists)
    weights = weigh(*rng.normal(size=(2, len(train.item))), mix=(0.3, 0.7))
    samplers = {
        way: BatchSampler(
            train,
            make_negatives(lists, 60, 2, 3, way),
            make_sampler(train, weights, 4, {"device": "plain", "host": "early"}[way], with_replacement=compat),
            exclude_target=exclude_target,
            history_per_row=compat,
        )
        for way in ("device", "host")
    }
    with NoHostSync():
        edges = next(edge_batches(len(train.item), 64, generator()))
        batch = samplers["device"].sample(edges, generator(1), generator(2))
    known = [lists[user] for user in batch.users.tolist()]
    assert not any(item in row for row, items in zip(known, batch.negatives.tolist(), strict=True) for item in items)
    with pytest.raises(AssertionError, match="makes the host wait"), NoHostSync():
        samplers["host"].sample(edges, generator(1), generator(2))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.tolist(),
        lambda x: x[0].item(),
        lambda x: int(x[0]),
        lambda x: bool(x[0] > 0),
        lambda x: x.numpy(),
        lambda x: x[x > 0],
        lambda x: torch.nonzero(x),
        lambda x: torch.unique(x),
        lambda x: torch.masked_select(x, x > 0),
        lambda x: torch.repeat_interleave(x, x),
        lambda x: x.index_put_((x > 0,), torch.tensor(1)),
    ],
)
def test_no_host_sync_refuses_what_waits(call):
    with pytest.raises(AssertionError, match="makes the host wait"), NoHostSync():
        call(torch.tensor([0, 1, 2]))


def test_no_host_sync_lets_the_rest_pass():
    with NoHostSync():
        x = torch.arange(6).view(2, 3)
        y = torch.where(x > 2, x, 0)[torch.tensor([1, 0])].sort(1).values.topk(2, 1).values
        z = x.repeat_interleave(2, dim=0).cumsum(1)
    assert y.tolist() == [[5, 4], [0, 0]] and z[1].tolist() == [0, 1, 3]
