"""The last items of a user's history."""

from __future__ import annotations

import torch

from data.sampling.histories import take
from data.structs import Histories, History


class RecentHistory:
    """The last N items of each user's history, in time order; N is at most the longest history."""

    def __init__(self, histories: Histories, length: int, device: torch.device):
        self.length = min(length, int(histories.lengths.max(initial=1)))
        self.indptr = torch.from_numpy(histories.indptr).to(device)
        self.item = torch.from_numpy(histories.item).to(device)

    def sample(self, users: torch.Tensor, exclude: torch.Tensor | None, generator: torch.Generator) -> History:
        """Read the last items of each of `users [B]`; nothing is drawn, so `generator` stays as it is.

        `exclude [B]` are the targets' positions in the lists: items before the target are read (None: up to the end).
        """
        end = self.indptr[users + 1] if exclude is None else exclude
        first = torch.maximum(self.indptr[users], end - self.length)
        position = first[:, None] + torch.arange(self.length, device=users.device)  # [B, N]
        mask = position < end[:, None]
        items = torch.where(mask, take(self.item, position.clamp(max=len(self.item) - 1)), 0)
        return History(items, mask)
