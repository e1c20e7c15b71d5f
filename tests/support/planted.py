"""Interactions with a planted bias: who is in which group, what each likes and how popular items are is known.

Every item belongs to a class (0 or 1) and a genre; items of one class and genre make a cell. A user's j-th
interaction draws a class from the group's Bernoulli distribution and a genre from the user's own taste, independently
of each other and of what came before, then a new item of that cell by a Zipf law. So the number of a user's class-1
items is a sufficient statistic of the group, exactly Binomial(n, P(class 1 | group)): what can be known about the
group from a history, and how group parity moves it, has a closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binom

from data.structs import FeatureSpec, FeatureTable, Group, InteractionData

GROUPS = ("M", "F")


@dataclass(frozen=True)
class Planted:
    """Sizes and strengths: `lean` is P(class 1 | group) of each group, `share` the second group's part of the users."""

    num_users: int = 1500
    length: int = 22
    genres: int = 5
    cell_size: int = 24
    share: float = 0.3
    lean: tuple[float, float] = (0.4, 0.6)
    favourite: float = 0.7
    zipf: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.length > self.cell_size:
            raise ValueError("a cell must hold as many items as a user takes, or the classes are not independent")

    @property
    def num_items(self) -> int:
        return 2 * self.genres * self.cell_size


@dataclass(frozen=True)
class Truth:
    """Group of every user `[U]`, class, genre and popularity weight within its cell of every item `[I]`."""

    group: np.ndarray
    item_class: np.ndarray
    genre: np.ndarray
    weight: np.ndarray


def generate(options: Planted) -> tuple[InteractionData, Truth]:
    """Draw the data and tell what was planted."""
    users, length, cells, size = options.num_users, options.length, 2 * options.genres, options.cell_size
    rng = np.random.default_rng(options.seed)
    group = rng.permutation((np.arange(users) < round(options.share * users)).astype(np.int64))
    favourite = rng.integers(options.genres, size=users)
    item_class = rng.random((users, length)) < np.array(options.lean)[group][:, None]
    stays = rng.random((users, length)) < options.favourite
    genre = np.where(stays, favourite[:, None], rng.integers(options.genres, size=(users, length)))
    cell = 2 * genre + item_class  # [U, length]
    weight = np.arange(1, size + 1) ** -options.zipf
    # a cell's items in the order in which a user would take them, without replacement
    order = np.argsort(-(np.log(weight) + rng.gumbel(size=(users, cells, size))), axis=2)
    earlier = (cell[:, :, None] == cell[:, None, :]) & np.tri(length, k=-1, dtype=bool)
    place = order[np.arange(users)[:, None], cell, earlier.sum(2)]
    names = rng.permutation(options.num_items)  # an id tells nothing
    item = names[cell * size + place]
    where = np.argsort(names)
    truth = Truth(group, where // size % 2, where // (2 * size), weight[where % size])
    return _as_data(group, item, truth), truth


def _as_data(group: np.ndarray, item: np.ndarray, truth: Truth) -> InteractionData:
    (users, length), items = item.shape, len(truth.genre)
    genres = np.eye(truth.genre.max() + 1, dtype=np.float32)[truth.genre]
    user_schema = (FeatureSpec("id", "categorical", users), FeatureSpec("gender", "categorical", 2))
    item_schema = (
        FeatureSpec("id", "categorical", items),
        FeatureSpec("class", "categorical", 2),
        FeatureSpec("genres", "multi_hot", genres.shape[1]),
    )
    codes = torch.from_numpy(group)
    item_columns = {"id": torch.arange(items), "class": torch.from_numpy(truth.item_class)}
    return InteractionData(
        name="planted",
        users=FeatureTable(user_schema, {"id": torch.arange(users), "gender": codes}),
        items=FeatureTable(item_schema, {**item_columns, "genres": torch.from_numpy(genres)}),
        user_id=np.repeat(np.arange(users), length),
        item_id=item.ravel(),
        rating=np.ones(item.size, dtype=np.float32),
        time=np.tile(np.arange(length), users),
        user_groups={"gender": Group("gender", group, GROUPS)},
        original_user_ids=np.arange(users),
        original_item_ids=np.arange(items),
        item_titles=np.array([f"item {number}" for number in range(items)], dtype=object),
    )


def optimal_auc(length: int, lean: tuple[float, float]) -> float:
    """AUC of the best attacker who sees `length` items of a user: P(K_1 > K_0) + P(K_1 = K_0) / 2, K binomial."""
    count = np.arange(length + 1)
    low, high = (binom.pmf(count, length, part) for part in lean)
    return float(high @ (np.cumsum(low) - low / 2))


def expected_parity_share(length: int, group: int, lean: tuple[float, float]) -> float:
    """Class-1 share of a first draw by group parity from histories of `length` items, over the group's users.

    With K class-1 items the weights r_c = P_mean(c) / P(c | group) give K r_1 / (K r_1 + (n - K) r_0).
    """
    count, mean, own = np.arange(length + 1), sum(lean) / 2, lean[group]
    one, zero = count * mean / own, (length - count) * (1 - mean) / (1 - own)
    return float(binom.pmf(count, length, own) @ (one / (one + zero)))
