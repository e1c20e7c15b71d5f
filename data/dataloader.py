"""Batches of interactions with sampled negatives and sampled histories: vectorised, on any device.

Every draw belongs to the whole batch and comes from an explicit `torch.Generator`, so that the same seed gives the
same batches whatever the number of processes or the device's block sizes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from data.structs import Batch, Histories, History, HistoryWeights, ItemLists


def edge_batches(num_edges: int, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield shuffled edge indices `[B]`, each of `num_edges` once; the last batch may be smaller."""
    order = torch.randperm(num_edges, generator=generator, device=generator.device)
    yield from order.split(batch_size)


class NegativeSampler:
    """Uniform and in-batch negatives that the user has not interacted with in `known` (Decision 10).

    A uniform draw is exact and needs no rejection: the r-th unknown item of a user is found by one binary search,
    since in a sorted list of known items `known[j] - j` counts the unknown items before `known[j]`.
    """

    def __init__(self, known: ItemLists, num_items: int, num_uniform: int, num_in_batch: int, device: torch.device):
        keys = np.unique(known.owner * num_items + known.item)
        owner, item = np.divmod(keys, num_items)
        count = np.bincount(owner, minlength=len(known.lengths))
        indptr = np.concatenate([[0], np.cumsum(count)])
        self.num_items, self.num_uniform, self.num_in_batch = num_items, num_uniform, num_in_batch
        # a last key that no pair has, so that every search ends inside
        self.keys = torch.from_numpy(np.append(keys, np.iinfo(np.int64).max)).to(device)
        position = np.arange(len(item)) - indptr[owner]
        # num_items + 1 values, 0..num_items, of `item - position` are possible per user
        self.gap_keys = torch.from_numpy(owner * (num_items + 1) + item - position).to(device)
        self.indptr = torch.from_numpy(indptr).to(device)
        unknown = num_items - count
        # A user who knows every item gets negatives from the whole catalogue: there is no other item to draw.
        self.knows_all = torch.from_numpy(unknown == 0).to(device)
        self.num_unknown = torch.from_numpy(np.where(unknown == 0, num_items, unknown)).to(device)

    def is_known(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Tell for `users [B]` and `items [B, M]` which pairs are known: `[B, M]` bool."""
        wanted = users[:, None] * self.num_items + items
        return self.keys[torch.searchsorted(self.keys, wanted)] == wanted

    def uniform(self, users: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draw `count` unknown items for each of `users [B]`, uniformly with replacement: `[B, count]`."""
        limit = self.num_unknown[users][:, None]
        draw = torch.rand((len(users), count), generator=generator, device=users.device, dtype=torch.float64)
        rank = torch.minimum((draw * limit).long(), limit - 1)
        wanted = users[:, None] * (self.num_items + 1) + rank
        below = torch.searchsorted(self.gap_keys, wanted, right=True) - self.indptr[users][:, None]
        return torch.where(self.knows_all[users][:, None], rank, rank + below)

    def in_batch(self, users: torch.Tensor, positives: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Take other rows' positives, each row once, that the user does not know: `[B, num_in_batch]`.

        Candidates are the rows at a few random distinct offsets, the same for the whole batch; where too few of
        them are unknown to the user, uniform negatives fill the gap.
        """
        rows, wanted = len(users), self.num_in_batch
        offsets = torch.randperm(rows - 1, generator=generator, device=users.device)[: 3 * wanted] + 1
        fill = self.uniform(users, wanted, generator)
        if len(offsets) < wanted:
            offsets = torch.cat([offsets, offsets.new_zeros(wanted - len(offsets))])
        index = (torch.arange(rows, device=users.device)[:, None] + offsets) % rows
        candidates = positives[index]
        refused = self.is_known(users, candidates) | (offsets == 0)
        refused, order = torch.sort(refused.byte(), dim=1, stable=True)
        chosen = candidates.gather(1, order[:, :wanted])
        return torch.where(refused[:, :wanted].bool(), fill, chosen)

    def sample(self, users: torch.Tensor, positives: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw the negatives of `users [B]`: uniform ones first, then in-batch ones, `[B, M]`."""
        parts = []
        if self.num_uniform:
            parts.append(self.uniform(users, self.num_uniform, generator))
        if self.num_in_batch:
            parts.append(self.in_batch(users, positives, generator))
        return torch.cat(parts, dim=1)


def _normalised(log_weights: np.ndarray, lists: ItemLists) -> tuple[np.ndarray, np.ndarray]:
    """Normalise each list's log weights `[E]`; also give the log mass left when one entry is taken out, `[E]`."""
    owner = lists.owner
    filled = np.flatnonzero(lists.lengths > 0)
    starts = lists.indptr[filled]
    row = np.cumsum(lists.lengths > 0)[owner] - 1

    def log_total(values):
        peak = np.maximum.reduceat(values, starts)[row]
        finite = np.where(np.isfinite(peak), peak, 0.0)
        with np.errstate(divide="ignore"):
            return np.log(np.add.reduceat(np.exp(values - finite), starts))[row] + finite

    log_p = log_weights - log_total(log_weights)
    p = np.exp(log_p)
    dominant = p > 0.5
    # 1 - p cancels where one item holds nearly all the mass; there is at most one such item per list
    without = log_total(np.where(dominant, -np.inf, log_p))
    return log_p, np.where(dominant, without, np.log1p(-np.where(dominant, 0.0, p)))


class HistorySampler:
    """Draw N items of each user's history without replacement by Gumbel top-k in log space (Decision 3)."""

    def __init__(
        self,
        histories: Histories,
        weights: HistoryWeights,
        length: int,
        device: torch.device,
        with_replacement: bool = False,
    ):
        """`with_replacement` repeats items where a history is shorter than `length`, as upstream does."""
        entries, weighted = len(histories.item), weights.log_weights.shape[1]
        if entries != weighted:
            raise ValueError(f"history weights are for {weighted} entries, not {entries}; use these histories")
        self.length, self.with_replacement, self.device = length, with_replacement, device
        self.indptr = torch.from_numpy(histories.indptr).to(device)
        self.item = torch.from_numpy(histories.item).to(device)
        self.longest = int(histories.lengths.max(initial=1))
        normalised = [_normalised(row, histories) for row in weights.log_weights]
        parts = [(mix + log_p, rest) for mix, (log_p, rest) in zip(weights.log_mix, normalised, strict=True)]
        self.log_p = torch.from_numpy(np.stack([part[0] for part in parts]).astype(np.float32)).to(device)
        self.log_rest = torch.from_numpy(np.stack([part[1] for part in parts]).astype(np.float32)).to(device)

    def _log_probability(self, index: torch.Tensor, exclude: torch.Tensor | None) -> torch.Tensor:
        """Mixture log probability of the entries `index [b, L]`; components are renormalised without `exclude [b]`."""
        total = None
        for log_p, log_rest in zip(self.log_p, self.log_rest, strict=True):
            part = log_p[index]
            if exclude is not None:
                part = part - log_rest[exclude][:, None]
            total = part if total is None else torch.logaddexp(total, part)
        return total

    def _draw(self, users, exclude, pad: int, generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw from rows no longer than `pad`: CSR positions `[b, N]` in time order, padding last, and their mask."""
        start, end = self.indptr[users][:, None], self.indptr[users + 1][:, None]
        position = start + torch.arange(pad, device=users.device)
        allowed = position < end
        if exclude is not None:
            allowed &= position != exclude[:, None]
        index = position.clamp(max=len(self.item) - 1)
        log_p = self._log_probability(index, exclude)
        # log of an exponential draw; torch's own exponential_ takes four times as long
        noise = torch.empty_like(log_p).uniform_(generator=generator).clamp_(min=1e-30).log_().neg_().log_()
        keys = log_p.sub_(noise).masked_fill_(~allowed, -torch.inf)
        best, place = keys.topk(min(self.length, pad), dim=1)
        last = len(self.item)
        chosen = torch.where(best > -torch.inf, start + place, last)
        if chosen.shape[1] < self.length:
            chosen = torch.nn.functional.pad(chosen, (0, self.length - chosen.shape[1]), value=last)
        if self.with_replacement:
            chosen = self._repeat_short(chosen, index, exclude, allowed, generator)
        chosen = chosen.sort(dim=1).values
        return chosen, chosen < last

    def _repeat_short(self, chosen, index, exclude, allowed, generator) -> torch.Tensor:
        """Replace the draws of rows with fewer than N items by N draws with replacement (upstream's rule)."""
        count = allowed.sum(1)
        short = torch.nonzero((count < self.length) & (count > 0)).squeeze(1)
        if not len(short):
            return chosen
        log_p = self._log_probability(index[short], None if exclude is None else exclude[short])
        probability = log_p.masked_fill(~allowed[short], -torch.inf).softmax(1)
        draws = torch.multinomial(probability, self.length, replacement=True, generator=generator)
        chosen[short] = index[short].gather(1, draws)
        return chosen

    def sample(self, users: torch.Tensor, exclude: torch.Tensor | None, generator: torch.Generator) -> History:
        """Draw a history for each of `users [B]` without the target at CSR position `exclude [B]`."""
        if self.device.type == "cuda":
            # one padded pass: buckets would ask the host for their sizes
            chosen, mask = self._draw(users, exclude, self.longest, generator)
        else:
            chosen = users.new_empty((len(users), self.length))
            mask = torch.empty((len(users), self.length), dtype=torch.bool)
            length = (self.indptr[users + 1] - self.indptr[users]).clamp(min=1)
            # rows of similar length share a pass, so that padding at most doubles the work
            bucket = torch.ceil(torch.log2(length.double())).long()
            for size in torch.unique(bucket).tolist():
                rows = torch.nonzero(bucket == size).squeeze(1)
                pad = int(length[rows].max())
                rest = None if exclude is None else exclude[rows]
                chosen[rows], mask[rows] = self._draw(users[rows], rest, pad, generator)
        items = torch.where(mask, self.item[chosen.clamp(max=len(self.item) - 1)], 0)
        return History(items, mask)


class BatchSampler:
    """Turn edges of the train split into `Batch`es, one history per positive (Decision 2); None where none is read."""

    def __init__(
        self,
        train: Histories,
        negatives: NegativeSampler,
        history: HistorySampler | None,
        exclude_target: bool = True,
        history_per_row: bool = False,
    ):
        """`history_per_row` draws one history for the positive and one for each negative (`--upstream_compat`)."""
        device = negatives.keys.device
        self.user = torch.from_numpy(train.owner).to(device)
        self.item = torch.from_numpy(train.item).to(device)
        self.negatives, self.history = negatives, history
        self.exclude_target, self.history_per_row = exclude_target, history_per_row
        if history is not None and exclude_target and not torch.equal(history.item, self.item):
            raise ValueError("a target can be left out only of histories that are the train split's own, in its order")

    def sample(self, edges: torch.Tensor, negative_rng: torch.Generator, history_rng: torch.Generator) -> Batch:
        """Make the batch of `edges [B]` (positions in the train CSR)."""
        users, positives = self.user[edges], self.item[edges]
        negatives = self.negatives.sample(users, positives, negative_rng)
        if self.history is None:
            return Batch(users, positives, negatives, None)
        exclude = edges if self.exclude_target else None
        if not self.history_per_row:
            return Batch(users, positives, negatives, self.history.sample(users, exclude, history_rng))
        own = self.history.sample(users, exclude, history_rng)
        others = self.history.sample(users.repeat_interleave(negatives.shape[1]), None, history_rng)
        rows = len(users)

        def join(first, rest):
            return torch.cat([first[:, None], rest.view(rows, -1, self.history.length)], dim=1).flatten(0, 1)

        return Batch(users, positives, negatives, History(join(own.items, others.items), join(own.mask, others.mask)))
