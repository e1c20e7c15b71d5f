"""Sampled candidates, and the yardsticks' scores: popularity and chance."""

from __future__ import annotations

import numpy as np
import torch

from data.structs import ItemLists
from model.evaluation.ranking import ScoreBlock, check_request

# Random keys that the candidate sampler holds at once (about 17 bytes each).
_SAMPLER_KEYS = 1 << 22


def sample_candidates(
    users: np.ndarray,
    relevant: ItemLists,
    excluded: ItemLists,
    num_items: int,
    size: int,
    generator: np.random.Generator,
    pool: np.ndarray | None = None,
    apart: bool = True,
) -> ItemLists:
    """Draw `size` items per user, uniformly without replacement, and add the relevant ones (ascending ids).

    Items are drawn among `pool [P]` (None: all). Neither excluded nor relevant items are drawn (where not `apart`, the
    relevant ones may be); where fewer than `size` remain, all of them are taken. The lists
    do not depend on how `users [T]` are cut into successive calls, so a caller for whom `8 * T * size` bytes are
    too many hands `rank_catalogue` a function that samples each block. Raises ValueError for a size below 1.
    """
    if size < 1:
        raise ValueError(f"{size} sampled candidates per user: allowed is 1 or more; drop it to rank the catalogue")
    check_request(users, relevant, excluded, num_items, top=1, block_users=1)
    step = max(1, _SAMPLER_KEYS // num_items)
    outside = None if pool is None else np.setdiff1d(np.arange(num_items), pool)
    lengths, items = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)]
    for start in range(0, len(users), step):
        rows = np.arange(start, min(start + step, len(users)))
        wanted, barred = relevant.take(rows), excluded.take(users[rows])
        taken = (wanted, barred) if apart else (barred,)
        chosen = _draw_without_replacement(taken, num_items, size, generator, outside)
        chosen[wanted.owner, wanted.item] = True
        lengths.append(chosen.sum(1))
        items.append(np.nonzero(chosen)[1])
    return ItemLists(np.cumsum(np.concatenate(lengths)), np.concatenate(items))


def popularity_scores(degree: np.ndarray) -> ScoreBlock:
    """Score every item by its train interactions `degree [I]`, the same for all users (the most-popular yardstick)."""
    row = torch.as_tensor(degree, dtype=torch.float32)
    return lambda users: row.expand(len(users), -1)


def random_scores(num_items: int, seed: int) -> ScoreBlock:
    """Score items uniformly in [0, 1), a fixed function of (seed, user, item) whatever the blocks.

    A user's scores come from a Philox generator whose key is the seed and the user (Salmon et al., SC 2011; Decision
    36).
    """
    (key,) = np.random.SeedSequence(seed).generate_state(1, np.uint64)

    def score_block(users: np.ndarray) -> torch.Tensor:
        scores = np.empty((len(users), num_items), np.float32)
        for row, user in zip(scores, users, strict=True):
            bits = np.random.Philox(key=np.array([key, user], np.uint64))
            np.random.Generator(bits).random(out=row, dtype=np.float32)
        return torch.from_numpy(scores)

    return score_block


def _draw_without_replacement(
    taken: tuple[ItemLists, ...],
    num_items: int,
    size: int,
    generator: np.random.Generator,
    outside: np.ndarray | None,
) -> np.ndarray:
    """Mark `size` random items per row, none of those that are `taken` or `outside` (all where fewer exist): `[b, I]`
    bool.
    """
    keys = generator.random((len(taken[0].indptr) - 1, num_items), dtype=np.float32)
    for lists in taken:
        keys[lists.owner, lists.item] = 2.0
    if outside is not None:
        keys[:, outside] = 2.0
    available = keys < 1.0
    if size >= num_items:
        return available
    smallest = np.argpartition(keys, size - 1, axis=1)[:, :size]
    chosen = np.zeros_like(available)
    np.put_along_axis(chosen, smallest, True, axis=1)
    return chosen & available
