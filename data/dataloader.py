"""Batches of interactions with sampled negatives and histories: vectorised, on any device.

Every draw belongs to the whole batch and comes from an explicit `torch.Generator`, so that the same seed gives the
same batches whatever the number of processes or the device's block sizes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from data.sampling.histories import HistorySampler
from data.sampling.negatives import NegativeSampler
from data.structs import Batch, Histories, History


def edge_batches(num_edges: int, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield shuffled edge indices `[B]`, each of `num_edges` once; the last batch may be smaller."""
    order = torch.randperm(num_edges, generator=generator, device=generator.device)
    yield from order.split(batch_size)


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

    def steps(self, batch_size: int) -> int:
        """Number of batches in one pass over the edges."""
        return -(-len(self.user) // batch_size)

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
        """Yield the edges `[B]` of one pass, batch by batch."""
        return edge_batches(len(self.user), batch_size, generator)

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
