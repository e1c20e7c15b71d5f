"""Recommendation lists made by hand: random ones, and ones whose dependence on the user's group is planted."""

from __future__ import annotations

import numpy as np

from data.structs import Group, Histories, ItemLists, Ranking, Split
from fairness_utils import count_by_group, js_between, relative_difference


def item_lists(lists):
    lengths = [len(entries) for entries in lists]
    items = np.array([item for entries in lists for item in entries], dtype=np.int64)
    return ItemLists(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), items)


def make_split(degree, tail, num_users):
    """A split whose train interactions give each item its degree; the other sets are empty."""
    items = np.repeat(np.arange(len(degree)), degree)
    order = np.concatenate([np.arange(count) for count in degree]) if len(items) else items
    train = Histories.build(order.astype(np.int64), items.astype(np.int64), None, num_users)
    empty = ItemLists(np.zeros(num_users + 1, dtype=np.int64), np.zeros(0, dtype=np.int64))
    group = Group("popularity", np.asarray(tail).astype(np.int64), ("head", "tail"))
    return Split(train, empty, empty, train, train, np.asarray(degree, dtype=np.int64), {"popularity": group})


def make_ranking(topk, relevant, num_items, generator):
    """A ranking over the whole catalogue: items beyond the list rank in a random order below it."""
    ranks = []
    for row, wanted in zip(topk, relevant, strict=True):
        shown = [item for item in row if item >= 0]
        order = shown + [item for item in generator.permutation(num_items) if item not in shown]
        ranks += [order.index(item) + 1 for item in wanted]
    scores = np.where(topk >= 0, -np.arange(topk.shape[1], dtype=np.float64), -np.inf)
    return Ranking(
        np.arange(len(topk)),
        item_lists(relevant),
        np.array(ranks, dtype=np.int64),
        topk,
        scores,
        np.full(len(topk), num_items),
    )


def random_case(seed, users=25, num_items=18, k=6, groups=2, short=True, most_relevant=4):
    """Random lists (short ones padded), relevant items (none for some), groups (unknown for some), degrees."""
    generator = np.random.default_rng(seed)
    topk = np.stack([generator.permutation(num_items)[:k] for _ in range(users)]).astype(np.int64)
    if short:
        topk[np.arange(k)[None, :] >= generator.integers(0, k + 1, users)[:, None]] = -1
    relevant = [
        generator.permutation(num_items)[: generator.integers(0, most_relevant + 1)].tolist() for _ in range(users)
    ]
    codes = generator.integers(-1, groups, users)
    tail = generator.random(num_items) < 0.6
    degree = generator.integers(0, users, num_items)
    return topk, relevant, codes, tail, degree, generator


def planted_lists(difference, users, share, concentration, seed, num_items=400, length=10):
    """Lists `[T, num_items]` (padded) and group codes `[T]` with a known difference between the groups' rates.

    Item i is in the list of a user of group 0 with probability r_i (1 + s_i d), of group 1 with r_i (1 - s_i d), where
    d is the `difference` and the signs s_i are random: |r0 - r1| / (r0 + r1) is d for every item. `concentration` is
    the exponent of the items' popularity r_i, whose sum is `length`, and `share` the part of users in group 1.
    """
    generator = np.random.default_rng(seed)
    codes = (generator.permutation(users) < share * users).astype(np.int64)
    popularity = (1.0 + np.arange(num_items)) ** -concentration
    rates = np.minimum(popularity / popularity.sum() * length, 0.45)
    while rates.sum() < length - 1e-9:
        free = rates < 0.45
        rates[free] *= (length - rates[~free].sum()) / rates[free].sum()
        rates = np.minimum(rates, 0.45)
    signs = generator.choice([-1, 1], num_items)
    of_user = np.stack([rates * (1 + signs * difference), rates * (1 - signs * difference)])[codes]  # [T, I]
    return np.where(generator.random(of_user.shape) < of_user, np.arange(num_items), -1), codes


def demographic_parity(topk, codes, num_items, by_rate=False):
    """Demographic parity between the groups `codes [T]` of the lists `topk [T, K]`."""
    counts, sizes = count_by_group(topk, codes, num_items)
    return float(relative_difference(counts, sizes if by_rate else None))


def js_distance(topk, codes, num_items):
    """The Jensen-Shannon distance between the groups `codes [T]` of the lists `topk [T, K]`."""
    return float(js_between(count_by_group(topk, codes, num_items)[0]))
