"""Draws of items that a user does not know."""

from __future__ import annotations

import numpy as np
import torch

from data.structs import ItemLists


class NegativeSampler:
    """Uniform and in-batch negatives that are not among the user's `known` items (Decision 10).

    A draw from the items that a user does not know is exact and needs no second try. In a sorted list of known items
    `known[j] - j` counts the unknown items below `known[j]`, so one binary search finds the r-th unknown item.
    """

    def __init__(
        self,
        known: ItemLists,
        num_items: int,
        num_uniform: int,
        num_in_batch: int,
        device: torch.device,
        distinct: bool = False,
    ):
        """`distinct`: the uniform negatives of a row differ, as far as its user has as many unknown items."""
        # numpy's own unique goes through a hash table, at ten times the cost of a sort
        keys = np.sort(known.owner * num_items + known.item)
        keys = keys[np.diff(keys, prepend=-1) > 0]
        owner, item = np.divmod(keys, num_items)
        count = np.bincount(owner, minlength=len(known.lengths))
        indptr = np.concatenate([[0], np.cumsum(count)])
        self.num_items, self.num_uniform, self.num_in_batch, self.device = num_items, num_uniform, num_in_batch, device
        self.is_distinct = distinct
        # a last key that no pair has, so that every search ends within the array
        self.keys = torch.from_numpy(np.append(keys, np.iinfo(np.int64).max)).to(device)
        position = np.arange(len(item)) - indptr[owner]
        # `item - position` takes num_items + 1 values per user, 0..num_items
        self.gap_keys = torch.from_numpy(owner * (num_items + 1) + item - position).to(device)
        self.indptr = torch.from_numpy(indptr).to(device)
        unknown = num_items - count
        # A user who knows every item gets negatives from the whole catalogue: there is no other item to draw.
        self.knows_all = torch.from_numpy(unknown == 0).to(device)
        self.num_unknown = torch.from_numpy(np.where(unknown == 0, num_items, unknown)).to(device)
        if device.type == "cpu":
            self._build_filter(owner, item, count)

    def _build_filter(self, owner: np.ndarray, item: np.ndarray, count: np.ndarray) -> None:
        """Mark each user's known items in a bitmap of their own: one bit per item, folded over to 64 bits per pair."""
        exponent = np.ceil(np.log2(np.minimum(self.num_items, 64 * count).clip(min=64))).astype(np.int64)
        size = np.left_shift(1, exponent)
        first = np.cumsum(size) - size
        bit = first[owner] + (item & (size - 1)[owner])
        words = np.zeros(size.sum() // 64, dtype=np.int64)
        np.bitwise_or.at(words, bit // 64, np.left_shift(1, bit % 64))
        self.filter_words, self.filter_first = torch.from_numpy(words), torch.from_numpy(first)
        self.filter_mask = torch.from_numpy(size - 1)
        self.filter_is_exact = torch.from_numpy(size >= self.num_items)

    def is_known(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Tell for `users [B]` and `items [B, M]` which pairs are known: `[B, M]` bool."""
        if self.device.type != "cpu":
            return self._search(users[:, None], items)
        # a bitmap takes a fifth of a search's time; only a hit in a folded one needs the search
        bit = self.filter_first[users][:, None] + (items & self.filter_mask[users][:, None])
        known = (self.filter_words[bit >> 6] >> (bit & 63) & 1).bool()
        row, column = torch.nonzero(known & ~self.filter_is_exact[users][:, None], as_tuple=True)
        known[row, column] = self._search(users[row], items[row, column])
        return known

    def _search(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        wanted = users * self.num_items + items
        return self.keys[torch.searchsorted(self.keys, wanted)] == wanted

    def unknown(self, users: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draw `count` unknown items for each of `users [B]`, uniformly with replacement: `[B, count]`."""
        limit = self.num_unknown[users][:, None]  # [B, 1]
        draw = torch.rand((len(users), count), generator=generator, device=users.device, dtype=torch.float64)
        return self._unknown_at(users, torch.minimum((draw * limit).long(), limit - 1))

    def distinct(self, users: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draw `count` distinct unknown items for each of `users [B]`, uniformly: `[B, count]`.

        A user with fewer than `count` unknown items gets some of them twice.
        """
        limit = self.num_unknown[users]  # [B]
        draw = torch.rand((count, len(users)), generator=generator, device=users.device, dtype=torch.float64)
        taken = limit.new_empty((len(users), 0))  # [B, drawn], ascending
        ranks = []
        for place, uniform in enumerate(draw):
            left = (limit - place).clamp(min=1)
            rank = torch.minimum((uniform * left).long(), left - 1)
            # the rank-th of those that are left: one further for each taken one at or below it
            for earlier in taken.unbind(1):
                rank = rank + (rank >= earlier)
            ranks.append(torch.minimum(rank, limit - 1))
            taken = torch.cat([taken, ranks[-1][:, None]], dim=1).sort(1).values
        return self._unknown_at(users, torch.stack(ranks, dim=1))

    def _unknown_at(self, users: torch.Tensor, rank: torch.Tensor) -> torch.Tensor:
        """Find the unknown items of `users [B]` at places `rank [B, count]` among them, from 0: `[B, count]`."""
        wanted = users[:, None] * (self.num_items + 1) + rank
        below = torch.searchsorted(self.gap_keys, wanted, right=True) - self.indptr[users][:, None]
        return torch.where(self.knows_all[users][:, None], rank, rank + below)

    def uniform(self, users: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw from the whole catalogue: items `[B, num_uniform]` and which of them are known.

        With the known ones drawn again from the unknown items, every unknown item is equally likely.
        """
        if self.is_distinct:
            items = self.distinct(users, self.num_uniform, generator)
            return items, torch.zeros_like(items, dtype=torch.bool)
        shape = (len(users), self.num_uniform)
        items = torch.randint(self.num_items, shape, generator=generator, device=users.device)
        return items, self.is_known(users, items)

    def in_batch(
        self, users: torch.Tensor, positives: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take other rows' positives, each row once, that the user does not know: `[B, num_in_batch]`.

        Candidates are the rows at a few random distinct offsets, the same for the whole batch; the second tensor marks
        places for which too few of them are unknown to the user.
        """
        rows, wanted = len(users), self.num_in_batch
        offsets = torch.randperm(rows - 1, generator=generator, device=users.device)[: 3 * wanted] + 1
        # the positives twice in a row: so an index need not be taken modulo rows
        candidates = positives.repeat(2)[torch.arange(rows, device=users.device)[:, None] + offsets]
        accepted = ~self.is_known(users, candidates)  # [B, offsets]
        place = accepted.cumsum(1)
        # candidates that are known, or more than are wanted, go to a last column, which is dropped
        place = torch.where(accepted & (place <= wanted), place - 1, wanted)
        chosen = positives.new_zeros((rows, wanted + 1)).scatter_(1, place, candidates)[:, :wanted]
        missing = torch.arange(wanted, device=users.device) >= accepted.sum(1, keepdim=True)  # [B, num_in_batch]
        return chosen, missing

    def sample(self, users: torch.Tensor, positives: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw the negatives of `users [B]`: uniform ones first, then in-batch ones, `[B, M]`.

        Where a draw failed, an item drawn uniformly from the user's unknown ones takes its place.
        """
        parts = []
        if self.num_uniform:
            parts.append(self.uniform(users, generator))
        if self.num_in_batch:
            parts.append(self.in_batch(users, positives, generator))
        items, failed = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        if self.device.type != "cpu":
            return torch.where(failed, self.unknown(users, items.shape[1], generator), items)
        row, column = torch.nonzero(failed, as_tuple=True)
        items[row, column] = self.unknown(users[row], 1, generator).squeeze(1)
        return items
