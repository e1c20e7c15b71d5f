"""Draws of a user's history without replacement, by Gumbel top-k."""

from __future__ import annotations

import numpy as np
import torch

from data.structs import Histories, History, HistoryWeights, ItemLists

NEWTON_STEPS = 20
EARLY_ROWS = 64  # rows of similar length that share a pass: few, so that little is padded and all stays in the cache
BLOCK_KEYS = 1 << 24  # numbers that whole rows may take at a time, to bound memory


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


def _arrival_limits(log_p: np.ndarray, lists: ItemLists, kept: float) -> tuple[np.ndarray, np.ndarray]:
    """Find the times until which about `kept` entries of each list arrive, at rates `exp(log_p) [E]`.

    Gives the limits `[N]` (infinite for lists of up to `kept` entries) and each entry's chance to arrive in time,
    `[E]` float64. The expected number is concave in the limit, so that Newton's method climbs to it from below; where
    it stops early, fewer entries arrive, which costs time and nothing else.
    """
    owner, rate, number = lists.owner, np.exp(log_p), len(lists.lengths)
    limit = np.full(number, float(kept))
    for _ in range(NEWTON_STEPS):
        late = np.exp(-rate * limit[owner])
        arrived = lists.lengths - np.bincount(owner, late, minlength=number)
        missing = np.where(lists.lengths > kept, kept - arrived, 0)
        if missing.max(initial=0) < 0.01 * kept:
            break
        late *= rate
        slope = np.bincount(owner, late, minlength=number)
        limit += np.divide(missing, slope, where=slope > 1e-200, out=np.zeros(number))
    limit[lists.lengths <= kept] = np.inf
    # a rate may be zero to float64 rounding, and zero times infinity is no number
    return limit, -np.expm1(-np.maximum(rate, 1e-300) * limit[owner])


def _take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Read `values[index]` from one column four times as fast as indexing does."""
    return values.index_select(0, index.flatten()).view_as(index)


def _unit(draw: torch.Tensor) -> torch.Tensor:
    """Map two-byte numbers, `-2 ** 15` up to `2 ** 15`, to 0 up to 1."""
    return (draw + 2.0**15) / 2.0**16


class HistorySampler:
    """Draw N items of each user's history without replacement (Decision 3); where no history has N, as many as the
    longest has.

    Each item arrives after an exponentially distributed time of rate p, and the first N are the sample: Gumbel top-k,
    in log space. On the host only items that arrive early are looked at, a tenth of a long history: whether one does
    costs two random bytes, its exact time is drawn when it does, and the row is finished in full where the early ones
    do not settle it.
    """

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
        longest = int(histories.lengths.max(initial=1))
        # places that no history can fill would only take memory
        length = length if with_replacement else min(length, max(longest, 1))
        self.length, self.with_replacement, self.device = length, with_replacement, device
        self.indptr = torch.from_numpy(histories.indptr).to(device)
        self.item = torch.from_numpy(histories.item).to(device)
        self.longest = longest
        normalised = [_normalised(row, histories) for row in weights.log_weights]
        parts = [(mix + log_p, rest) for mix, (log_p, rest) in zip(weights.log_mix, normalised, strict=True)]
        self.log_p = torch.from_numpy(np.stack([part[0] for part in parts]).astype(np.float32)).to(device)
        self.log_rest = torch.from_numpy(np.stack([part[1] for part in parts]).astype(np.float32)).to(device)
        if device.type == "cpu":
            # enough that hardly ever fewer than N of them arrive early
            kept = length + 3 * length**0.5 + 3
            self._limit_arrivals(np.logaddexp.reduce([part[0] for part in parts]), histories, kept)

    def _limit_arrivals(self, log_p: np.ndarray, histories: ItemLists, kept: float) -> None:
        """Let about `kept` entries of each list arrive early; their chances become thresholds of two random bytes."""
        limit, chance = _arrival_limits(log_p, histories, kept)
        self.log_limit = torch.from_numpy(np.log(limit))
        # early while the draw is at most this; a chance is rounded up, and rows are read beyond the last entry
        threshold = np.ceil(chance * 2**16).clip(min=1) - 1 - 2**15
        threshold = np.append(threshold.astype(np.int16), np.zeros(self.longest, dtype=np.int16))
        self.threshold = torch.from_numpy(threshold)

    def _log_probability(self, index: torch.Tensor, exclude: torch.Tensor | None) -> torch.Tensor:
        """Mixture log probability of the entries `index`; components are renormalised without `exclude`, like it."""
        total = None
        for log_p, log_rest in zip(self.log_p, self.log_rest, strict=True):
            part = _take(log_p, index)
            if exclude is not None:
                part = part - _take(log_rest, exclude)
            total = part if total is None else torch.logaddexp(total, part)
        return total

    def _first(self, users, exclude, generator, early=None) -> torch.Tensor:
        """Draw from whole rows, padded to the longest: CSR positions `[b, N]`, E as padding at the end.

        `early` are rows, positions and arrival times of entries already drawn; all others then arrive later than that.
        """
        start, end = self.indptr[users][:, None], self.indptr[users + 1][:, None]
        position = start + torch.arange(max(self.longest, self.length), device=users.device)
        index = position.clamp(max=len(self.item) - 1)
        forbidden = position >= end
        if exclude is not None:
            exclude = exclude[:, None]
            forbidden |= position == exclude
        keys = self._log_probability(index, exclude)
        # torch's own exponential_ takes four times as long
        arrival = torch.empty_like(keys).uniform_(generator=generator).clamp_(min=1e-30).log_().neg_()
        if early is not None:
            row, place, drawn = early
            # time that is left has no memory: it is the limit and another exponential
            arrival -= torch.log1p(-_unit(_take(self.threshold, index) + 1.0))
            arrival[row, place - start[row, 0]] = drawn
        keys = keys.sub_(arrival.log_()).masked_fill_(forbidden, -torch.inf)
        best, place = keys.topk(self.length, dim=1)
        return torch.where(best > -torch.inf, start + place, len(self.item))

    def _early(self, users, generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Entries of `users`, in order of length, that arrive early: rows in order, CSR positions, arrival times."""
        rows, positions, bytes_drawn = [], [], []
        start = self.indptr[users]
        length = (self.indptr[users + 1] - start).int()
        for first in range(0, len(users), EARLY_ROWS):
            block = slice(first, first + EARLY_ROWS)
            shortest, pad = int(length[block][0]), max(int(length[block][-1]), 1)
            threshold = self.threshold.as_strided((len(self.item) + 1, pad), (1, 1)).index_select(0, start[block])
            # four draws of two bytes from each of eight
            drawn = torch.empty((len(threshold), -(-pad // 4)), dtype=torch.int64)
            drawn = drawn.random_(-(2**63), None, generator=generator).view(torch.int16)
            is_early = drawn[:, :pad] <= threshold
            is_early[:, shortest:] &= torch.arange(shortest, pad, dtype=torch.int32) < length[block, None]
            # numpy finds and divides in a fraction of torch's time
            found = np.flatnonzero(is_early.numpy())
            row = torch.from_numpy(found // pad)
            column = torch.from_numpy(found) - row * pad
            bytes_drawn.append(_take(drawn.view(-1), row * drawn.shape[1] + column))
            rows.append(row.add_(first))
            positions.append(_take(start, row) + column)
        drawn = torch.cat(bytes_drawn)
        # added to what is near zero, not to -2 ** 15, the rest of the number keeps its digits
        chance = _unit(drawn) + torch.rand(len(drawn), generator=generator) / 2**16
        return torch.cat(rows), torch.cat(positions), -torch.log1p(-chance.clamp_(1e-30, 1 - 2**-24))

    def _first_early(self, users, exclude, generator) -> torch.Tensor:
        """Draw for `users`, in order of length, by the entries that arrive early: CSR positions as from `_first`."""
        row, index, arrival = self._early(users, generator)
        rest = None if exclude is None else _take(exclude, row)
        key = self._log_probability(index, rest).sub_(arrival.log())
        if exclude is not None:
            key.masked_fill_(index == rest, -torch.inf)
        first = torch.searchsorted(row, torch.arange(len(users) + 1))
        slot = torch.arange(len(row)) - _take(first, row)
        width = max(int(first.diff().amax()), self.length)
        place = row * width + slot
        keys = torch.full((len(users), width), -torch.inf)
        keys.view(-1)[place] = key
        entries = torch.empty((len(users), width), dtype=torch.int64)
        entries.view(-1)[place] = index
        best, place = keys.topk(self.length, dim=1)
        chosen = torch.where(best > -torch.inf, entries.gather(1, place), len(self.item))
        # no later entry can have a larger key than this
        ceiling = -self.log_limit[users]
        if exclude is not None:
            ceiling = ceiling - self.log_rest[:, exclude].amin(0)
        unsettled = torch.nonzero(best[:, -1] < ceiling).squeeze(1)
        if len(unsettled):
            self._settle(chosen, unsettled, users, exclude, (row, index, arrival), generator)
        return chosen

    def _settle(self, chosen, unsettled, users, exclude, early, generator) -> None:
        """Finish the rows `unsettled` of `chosen` in full, given what arrived early."""
        row, index, arrival = early
        for block in self._blocks(unsettled):
            local = torch.full((len(users),), -1)
            local[block] = torch.arange(len(block))
            local = local[row]
            mine = torch.nonzero(local >= 0).squeeze(1)
            drawn = local[mine], index[mine], arrival[mine]
            rest = None if exclude is None else exclude[block]
            chosen[block] = self._first(users[block], rest, generator, drawn)

    def _blocks(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Split `rows` so that as many of them padded to the longest history keep to `BLOCK_KEYS` keys."""
        return rows.split(max(1, BLOCK_KEYS // max(self.longest, self.length)))

    def _repeat_short(self, chosen, users, exclude, generator) -> torch.Tensor:
        """Replace the draws of rows with fewer than N items by N draws with replacement (upstream's rule)."""
        # the items of such a row are among its first N entries
        position = self.indptr[users][:, None] + torch.arange(self.length, device=users.device)
        allowed = position < self.indptr[users + 1][:, None]
        rest = None if exclude is None else exclude[:, None]
        if exclude is not None:
            allowed &= position != rest
        log_p = self._log_probability(position.clamp(max=len(self.item) - 1), rest)
        log_p = log_p.masked_fill(~allowed, -torch.inf)[:, None, :].expand(-1, self.length, -1)
        noise = torch.empty_like(log_p).uniform_(generator=generator).clamp_(min=1e-30).log_().neg_().log_()
        repeated = position.gather(1, (log_p - noise).argmax(2))
        short = (chosen[:, :1] < len(self.item)) & (chosen[:, -1:] == len(self.item))
        return torch.where(short, repeated, chosen)

    def sample(self, users: torch.Tensor, exclude: torch.Tensor | None, generator: torch.Generator) -> History:
        """Draw a history for each of `users [B]` without the target at CSR position `exclude [B]`."""
        if self.device.type == "cpu":
            order = torch.argsort(self.indptr[users + 1] - self.indptr[users])
            chosen = users.new_empty((len(users), self.length))
            chosen[order] = self._first_early(users[order], None if exclude is None else exclude[order], generator)
        else:
            # blocks of sizes that the host knows: asking the device for others would stall it
            parts = self._blocks(users)
            rests = [None] * len(parts) if exclude is None else self._blocks(exclude)
            drawn = [self._first(part, rest, generator) for part, rest in zip(parts, rests, strict=True)]
            chosen = torch.cat(drawn)
        if self.with_replacement:
            chosen = self._repeat_short(chosen, users, exclude, generator)
        chosen = chosen.sort(dim=1).values
        mask = chosen < len(self.item)
        items = torch.where(mask, _take(self.item, chosen.clamp(max=len(self.item) - 1)), 0)
        return History(items, mask)
