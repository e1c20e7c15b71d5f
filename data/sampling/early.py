"""Draws of a user's history without replacement on a CPU, by looking only at the items that arrive early."""

from __future__ import annotations

import numpy as np
import torch

from data.sampling.histories import HistorySampler, exponential, take
from data.structs import ItemLists

NEWTON_STEPS = 20
EARLY_ROWS = 64  # rows of similar length that share a pass: few, so that little is padded and all stays in the cache


def arrival_limits(log_p: np.ndarray, lists: ItemLists, kept: float) -> tuple[np.ndarray, np.ndarray]:
    """Find the times until which about `kept` entries of each list arrive, at rates `exp(log_p) [E]`.

    Gives the limits `[N]` (infinite for lists of up to `kept` entries) and each entry's probability to arrive in time,
    `[E]` float64. The expected number is concave in the limit, so Newton's method climbs to it from below; where it
    stops early, fewer entries arrive, which costs time alone.
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
    # a rate may round to zero in float64, and zero times infinity is NaN
    return limit, -np.expm1(-np.maximum(rate, 1e-300) * limit[owner])


def _unit(draw: torch.Tensor) -> torch.Tensor:
    """Map two-byte numbers, `-2 ** 15` up to `2 ** 15`, to 0 up to 1."""
    return (draw + 2.0**15) / 2.0**16


class EarlyHistorySampler(HistorySampler):
    """The draws of `HistorySampler`, faster on a CPU and from other random numbers.

    Each item arrives after an exponentially distributed time, and the first N are the sample. Two random bytes tell
    whether an item arrives before a limit that slightly more than N items meet; of a long history that is a tenth.
    Exact times are drawn for these items alone. Where they do not settle which items are first, the row is drawn in
    full.
    """

    def _prepare(self, log_p: np.ndarray, histories: ItemLists) -> None:
        # so many that fewer than N arrive early hardly ever
        kept = self.length + 3 * self.length**0.5 + 3
        self._limit_arrivals(np.logaddexp.reduce(log_p), histories, kept)

    def _limit_arrivals(self, log_p: np.ndarray, histories: ItemLists, kept: float) -> None:
        """Let about `kept` entries of each list arrive early; their chances become thresholds of two random bytes."""
        limit, chance = arrival_limits(log_p, histories, kept)
        self.log_limit = torch.from_numpy(np.log(limit))
        # an entry is early where its draw is at most this, with chances rounded up; rows are read beyond the last entry
        threshold = np.ceil(chance * 2**16).clip(min=1) - 1 - 2**15
        threshold = np.append(threshold.astype(np.int16), np.zeros(self.longest, dtype=np.int16))
        self.threshold = torch.from_numpy(threshold)

    def _choose(self, users: torch.Tensor, exclude: torch.Tensor | None, generator: torch.Generator) -> torch.Tensor:
        """Draw for `users [B]`: CSR positions `[B, N]`, E as padding at the end."""
        order = torch.argsort(self.indptr[users + 1] - self.indptr[users])
        chosen = users.new_empty((len(users), self.length))
        chosen[order] = self._first_early(users[order], None if exclude is None else exclude[order], generator)
        return chosen

    def _early(self, users, generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Entries of `users`, in order of length, that arrive early: rows in order, CSR positions, arrival times."""
        rows, positions, bytes_drawn = [], [], []
        start = self.indptr[users]
        length = (self.indptr[users + 1] - start).int()
        for first in range(0, len(users), EARLY_ROWS):
            block = slice(first, first + EARLY_ROWS)
            shortest, pad = int(length[block][0]), max(int(length[block][-1]), 1)
            threshold = self.threshold.as_strided((len(self.item) + 1, pad), (1, 1)).index_select(0, start[block])
            # each number of eight bytes holds four draws of two bytes
            drawn = torch.empty((len(threshold), -(-pad // 4)), dtype=torch.int64)
            drawn = drawn.random_(-(2**63), None, generator=generator).view(torch.int16)
            is_early = drawn[:, :pad] <= threshold
            is_early[:, shortest:] &= torch.arange(shortest, pad, dtype=torch.int32) < length[block, None]
            # numpy is many times faster than torch here
            flat_places = np.flatnonzero(is_early.numpy())
            row = torch.from_numpy(flat_places // pad)
            column = torch.from_numpy(flat_places) - row * pad
            bytes_drawn.append(take(drawn.view(-1), row * drawn.shape[1] + column))
            rows.append(row.add_(first))
            positions.append(take(start, row) + column)
        drawn = torch.cat(bytes_drawn)
        # added to a number near zero, and not to one near -2 ** 15, the random rest keeps its digits
        chance = _unit(drawn) + torch.rand(len(drawn), generator=generator) / 2**16
        return torch.cat(rows), torch.cat(positions), -torch.log1p(-chance.clamp_(1e-30, 1 - 2**-24))

    def _first_early(self, users, exclude, generator) -> torch.Tensor:
        """Draw for `users`, in order of length, by the entries that arrive early: CSR positions as from `_first`."""
        row, index, arrival = self._early(users, generator)
        rest = None if exclude is None else take(exclude, row)
        key = self._log_probability(index, rest).sub_(arrival.log())  # [e] of e early entries
        if exclude is not None:
            key.masked_fill_(index == rest, -torch.inf)
        first = torch.searchsorted(row, torch.arange(len(users) + 1))
        slot = torch.arange(len(row)) - take(first, row)  # [e]: place in its row
        width = max(int(first.diff().amax()), self.length)
        place = row * width + slot
        keys = torch.full((len(users), width), -torch.inf)  # [B, width]
        keys.view(-1)[place] = key
        entries = torch.empty((len(users), width), dtype=torch.int64)
        entries.view(-1)[place] = index
        best, place = keys.topk(self.length, dim=1)
        chosen = torch.where(best > -torch.inf, entries.gather(1, place), len(self.item))  # [B, N]
        # the largest key that an entry which arrives later can have
        ceiling = -self.log_limit[users]
        if exclude is not None:
            ceiling = ceiling - self.log_rest[:, exclude].amin(0)
        unsettled = torch.nonzero(best[:, -1] < ceiling).squeeze(1)
        if len(unsettled):
            self._settle(chosen, unsettled, users, exclude, (row, index, arrival), generator)
        return chosen

    def _settle(self, chosen, unsettled, users, exclude, early, generator) -> None:
        """Finish the rows `unsettled` of `chosen` in full, given what arrived early: rows, positions and times."""
        row, index, arrival = early
        for block in self._blocks(unsettled):
            local = torch.full((len(users),), -1)
            local[block] = torch.arange(len(block))
            local = local[row]
            mine = torch.nonzero(local >= 0).squeeze(1)
            drawn = local[mine], index[mine], arrival[mine]
            rest = None if exclude is None else exclude[block]
            chosen[block] = self._first_given(users[block], rest, generator, drawn)

    def _first_given(self, users, exclude, generator, early) -> torch.Tensor:
        """Draw from whole rows, given the entries that arrived early; all others arrive later than the limit."""
        row, place, drawn = early
        start, index, forbidden = self._whole_rows(users, exclude)
        log_p = self._log_probability(index, None if exclude is None else exclude[:, None])
        # exponential times have no memory: a later arrival is the limit plus another exponential time
        arrival = exponential(log_p, generator) - torch.log1p(-_unit(take(self.threshold, index) + 1.0))
        arrival[row, place - start[row, 0]] = drawn
        return self._earliest(log_p, arrival, forbidden, start)
