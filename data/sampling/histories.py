"""Draws of a user's history without replacement, by Gumbel top-k: the plain exact form, on any device."""

from __future__ import annotations

import numpy as np
import torch

from data.structs import Histories, History, HistoryWeights, ItemLists

BLOCK_KEYS = 1 << 24  # numbers that whole rows may take at a time, to bound memory


def normalised(log_weights: np.ndarray, lists: ItemLists) -> tuple[np.ndarray, np.ndarray]:
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
    # 1 - p loses its digits where one item has nearly all the mass; a list has at most one such item
    without = log_total(np.where(dominant, -np.inf, log_p))
    return log_p, np.where(dominant, without, np.log1p(-np.where(dominant, 0.0, p)))


def take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Read `values[index]` from one column four times as fast as indexing does."""
    return values.index_select(0, index.flatten()).view_as(index)


def exponential(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw exponentially distributed times of rate 1, in the shape of `like`."""
    # torch's own exponential_ takes four times as long
    return torch.empty_like(like).uniform_(generator=generator).clamp_(min=1e-30).log_().neg_()


class HistorySampler:
    """Draws of N items of each user's history without replacement (Decision 3); N is at most the longest history.

    Each item arrives after an exponentially distributed time of rate p, and the first N are the sample: Gumbel top-k in
    log space, over whole rows padded to the longest history.
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
        self.longest = int(histories.lengths.max(initial=1))
        # places beyond the longest history would only take memory
        self.length = length if with_replacement else min(length, self.longest)
        self.with_replacement, self.device = with_replacement, device
        self.indptr = torch.from_numpy(histories.indptr).to(device)
        self.item = torch.from_numpy(histories.item).to(device)
        parts = [normalised(row, histories) for row in weights.log_weights]
        # mixing weights are part of the probabilities, [C, E]
        log_p = np.stack([mix + log_p for mix, (log_p, _) in zip(weights.log_mix, parts, strict=True)])
        log_rest = np.stack([rest for _, rest in parts])
        self.log_p = torch.from_numpy(log_p.astype(np.float32)).to(device)
        self.log_rest = torch.from_numpy(log_rest.astype(np.float32)).to(device)
        self._prepare(log_p, histories)

    def _prepare(self, log_p: np.ndarray, histories: ItemLists) -> None:
        """Get ready for draws by the components' `log_p [C, E]`, here in float64."""

    def _log_probability(self, index: torch.Tensor, exclude: torch.Tensor | None) -> torch.Tensor:
        """Mixture log probability of the entries `index`; components are renormalised without `exclude`, like it."""
        total = None
        for log_p, log_rest in zip(self.log_p, self.log_rest, strict=True):
            part = take(log_p, index)
            if exclude is not None:
                part = part - take(log_rest, exclude)
            total = part if total is None else torch.logaddexp(total, part)
        return total

    def _whole_rows(
        self, users: torch.Tensor, exclude: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Lay rows out, padded to the longest: starts `[b, 1]`, CSR positions and which may not be drawn `[b, L]`."""
        start, end = self.indptr[users][:, None], self.indptr[users + 1][:, None]
        position = start + torch.arange(max(self.longest, self.length), device=users.device)
        forbidden = position >= end
        if exclude is not None:
            forbidden |= position == exclude[:, None]
        return start, position.clamp(max=len(self.item) - 1), forbidden

    def _earliest(
        self, log_p: torch.Tensor, arrival: torch.Tensor, forbidden: torch.Tensor, start: torch.Tensor
    ) -> torch.Tensor:
        """The first N to arrive of whole rows: CSR positions `[b, N]`, E as padding at the end; spoils its inputs."""
        keys = log_p.sub_(arrival.log_()).masked_fill_(forbidden, -torch.inf)  # [b, L]
        best, place = keys.topk(self.length, dim=1)  # [b, N] each
        return torch.where(best > -torch.inf, start + place, len(self.item))

    def _first(self, users: torch.Tensor, exclude: torch.Tensor | None, generator: torch.Generator) -> torch.Tensor:
        """Draw from whole rows: CSR positions `[b, N]`, E as padding at the end."""
        start, index, forbidden = self._whole_rows(users, exclude)
        log_p = self._log_probability(index, None if exclude is None else exclude[:, None])
        return self._earliest(log_p, exponential(log_p, generator), forbidden, start)

    def _choose(self, users: torch.Tensor, exclude: torch.Tensor | None, generator: torch.Generator) -> torch.Tensor:
        """Draw for `users [B]`: CSR positions `[B, N]`, E as padding at the end."""
        # blocks of sizes that the host knows: reading sizes from the device would make the host wait
        parts = self._blocks(users)
        rests = [None] * len(parts) if exclude is None else self._blocks(exclude)
        return torch.cat([self._first(part, rest, generator) for part, rest in zip(parts, rests, strict=True)])

    def _blocks(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Split `rows` so that as many of them padded to the longest history keep to `BLOCK_KEYS` keys."""
        return rows.split(max(1, BLOCK_KEYS // max(self.longest, self.length)))

    def _repeat_short(self, chosen, users, exclude, generator) -> torch.Tensor:
        """Replace the draws of rows with fewer than N items by N draws with replacement (upstream's rule)."""
        # the items of such a row are among its first N entries
        position = self.indptr[users][:, None] + torch.arange(self.length, device=users.device)  # [B, N]
        allowed = position < self.indptr[users + 1][:, None]
        rest = None if exclude is None else exclude[:, None]
        if exclude is not None:
            allowed &= position != rest
        log_p = self._log_probability(position.clamp(max=len(self.item) - 1), rest)
        log_p = log_p.masked_fill(~allowed, -torch.inf)[:, None, :].expand(-1, self.length, -1)
        noise = torch.empty_like(log_p).uniform_(generator=generator).clamp_(min=1e-30).log_().neg_().log_()
        repeated = position.gather(1, (log_p - noise).argmax(2))  # [B, N]
        short = (chosen[:, :1] < len(self.item)) & (chosen[:, -1:] == len(self.item))
        return torch.where(short, repeated, chosen)

    def sample(self, users: torch.Tensor, exclude: torch.Tensor | None, generator: torch.Generator) -> History:
        """Draw a history for each of `users [B]`.

        `exclude [B]` are the targets' positions in the lists, which are left out (None: nothing is).
        """
        chosen = self._choose(users, exclude, generator)
        if self.with_replacement:
            chosen = self._repeat_short(chosen, users, exclude, generator)
        chosen = chosen.sort(dim=1).values  # [B, N]
        mask = chosen < len(self.item)
        items = torch.where(mask, take(self.item, chosen.clamp(max=len(self.item) - 1)), 0)
        return History(items, mask)
