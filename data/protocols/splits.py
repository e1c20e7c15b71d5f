"""Splits of what is known: what protocols share when they hold interactions out."""

from __future__ import annotations

import numpy as np

from data.structs import Group, Histories, InteractionData, ItemLists, Split


def shuffled_by_user(
    users: np.ndarray, num_users: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put the rows of `users [N]` in order of user, and each user's in random order.

    Gives the rows in that order and the place of each among its user's, from 0, `[N]` both, and how many rows each user
    has, `[U]`.
    """
    order = np.lexsort((rng.random(len(users)), users))
    count = np.bincount(users, minlength=num_users)
    return order, np.arange(len(users)) - np.repeat(np.cumsum(count) - count, count), count


def popularity_group(degree: np.ndarray, warm_threshold: float) -> Group:
    """Split items into head and tail by train degree `[I]`; equal degrees go to the tail in order of item id.

    The tail is the first `int((1 - warm_threshold) * I)` items in ascending order of degree (Decision 11).
    Raises ValueError for a threshold outside [0, 1].
    """
    if not 0 <= warm_threshold <= 1:
        raise ValueError(f"warm_threshold {warm_threshold} is not allowed; use the head's share of items, in [0, 1]")
    num_tail = int((1 - warm_threshold) * len(degree))
    codes = np.zeros(len(degree), dtype=np.int64)
    codes[np.argsort(degree, kind="stable")[:num_tail]] = 1
    return Group("popularity", codes, ("head", "tail"))


def _lists_of(user_id: np.ndarray, item_id: np.ndarray, num_users: int) -> ItemLists:
    lists = Histories.build(user_id, item_id, None, num_users)
    return ItemLists(lists.indptr, lists.item)


def make_split(
    data: InteractionData,
    warm_threshold: float,
    train: tuple[np.ndarray, np.ndarray, np.ndarray | None],
    valid: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> Split:
    """Make the split of train rows (user ids, item ids, times), validation and test rows (user ids, item ids).

    Histories are the train rows, in training and at test.
    """
    histories = Histories.build(*train, data.num_users)
    degree = np.bincount(histories.item, minlength=data.num_items)
    groups = {"popularity": popularity_group(degree, warm_threshold)}
    held_out = (_lists_of(*part, data.num_users) for part in (valid, test))
    return Split(histories, *held_out, histories, histories, degree, groups)
