"""Batches of interactions with sampled negatives and histories: vectorised, on any device.

Draws are made for the whole batch from an explicit `torch.Generator`, so the same seed gives the same batches whatever
the number of processes and the sizes of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from data.protocols.base import BLOCKS, SHUFFLED
from data.sampling.negatives import NegativeSampler
from data.sampling.sources import HistorySource
from data.structs import Batch, Histories, History

ONCE_ROWS = 1 << 16  # rows whose negatives are drawn at a time where they are drawn once, to bound memory


def edge_batches(num_edges: int, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield shuffled indices `[B]`, each below `num_edges` once; the last batch may be smaller."""
    order = torch.randperm(num_edges, generator=generator, device=generator.device)
    yield from order.split(batch_size)


class BatchSampler:
    """The sampler of batches: rows of the train split -> `Batch`, with one history per positive (Decision 2)."""

    def __init__(
        self,
        train: Histories,
        negatives: NegativeSampler,
        history: HistorySource | None,
        exclude_target: bool = True,
        history_per_row: bool = False,
        rows: np.ndarray | None = None,
        order: str = SHUFFLED,
        draws_once: bool = False,
    ):
        """`history_per_row` draws one history for the positive and one for each negative (`--upstream_compat`).

        `rows [N]` (positions in `train`; None: all), `order` and `draws_once` (negatives once per phase instead of at
        each visit) are `Phase.train_rows`, `Phase.order` and `Phase.negatives`.
        """
        device = negatives.keys.device
        self.user = torch.from_numpy(train.owner).to(device)
        self.item = torch.from_numpy(train.item).to(device)
        self.rows = None if rows is None else torch.from_numpy(rows).to(device)
        self.num_rows = len(self.user if rows is None else rows)
        self.order, self.draws_once, self.drawn = order, draws_once, None
        self.negatives, self.history = negatives, history
        self.exclude_target, self.history_per_row = exclude_target, history_per_row
        if history is not None and exclude_target and not torch.equal(history.item, self.item):
            raise ValueError("a target can be left out only of histories that are the train split's own, in its order")

    def steps(self, batch_size: int) -> int:
        """Count the batches of one pass over the rows."""
        return -(-self.num_rows // batch_size)

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
        """Yield the places `[B]` of one pass, batch by batch: positions in training order, from 0."""
        if self.order == SHUFFLED:
            return edge_batches(self.num_rows, batch_size, generator)
        blocks = torch.arange(self.num_rows, device=self.user.device).split(batch_size)
        if self.order == BLOCKS:
            return iter(blocks)
        order = torch.randperm(len(blocks), generator=generator, device=generator.device)
        return (blocks[index] for index in order.tolist())

    def sample(self, places: torch.Tensor, negative_rng: torch.Generator, history_rng: torch.Generator | None) -> Batch:
        """Make the batch of `places [B]`, which are positions in training order, as `batches` yields them.

        Without a `history_rng` it has no history.
        """
        rows = self._rows_at(places)
        users, positives = self.user[rows], self.item[rows]  # [B] each
        negatives = self._negatives(places, users, positives, negative_rng)
        if self.history is None or history_rng is None:
            return Batch(users, positives, negatives, None, rows)
        exclude = rows if self.exclude_target else None
        positive = self.history.sample(users, exclude, history_rng)
        if not self.history_per_row:
            return Batch(users, positives, negatives, positive, rows)
        negative = self.history.sample(users.repeat_interleave(negatives.shape[1]), None, history_rng)

        def join(first, rest):
            # [B, N] and [B * M, N] -> [B * (1 + M), N], the positive's first
            return torch.cat([first[:, None], rest.view(len(rows), -1, self.history.length)], dim=1).flatten(0, 1)

        history = History(join(positive.items, negative.items), join(positive.mask, negative.mask))
        return Batch(users, positives, negatives, history, rows)

    def _rows_at(self, places: torch.Tensor) -> torch.Tensor:
        """Positions in the train CSR of `places [B]`."""
        return places if self.rows is None else self.rows[places]

    def _negatives(
        self, places: torch.Tensor, users: torch.Tensor, positives: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Give the negatives `[B, M]` of a batch: drawn now, or all rows' drawn once and these looked up."""
        if not self.draws_once:
            return self.negatives.sample(users, positives, generator)
        if self.drawn is None:
            # from the beginning of the stream, so that a resumed phase draws the same ones (Decision 35)
            fresh = torch.Generator(generator.device).manual_seed(generator.initial_seed())
            parts = torch.arange(self.num_rows, device=self.user.device).split(ONCE_ROWS)
            rows = [self._rows_at(part) for part in parts]
            self.drawn = torch.cat(
                [self.negatives.sample(self.user[part_rows], self.item[part_rows], fresh) for part_rows in rows]
            )
        return self.drawn[places]
