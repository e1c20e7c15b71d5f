"""What backbones read of a user's past, by the name of its kind."""

from __future__ import annotations

import torch

from data.sampling.early import EarlyHistorySampler
from data.sampling.histories import HistorySampler
from data.sampling.recent import RecentHistory
from data.structs import Histories, HistoryWeights

HistorySource = HistorySampler | RecentHistory


def history_source(
    kind: str,
    histories: Histories,
    weights: HistoryWeights | None,
    length: int,
    device: torch.device,
    with_replacement: bool = False,
) -> HistorySource:
    """Make the source of users' histories of `length` items: an object with `sample(users, exclude, generator) ->
    History`.

    "sampled" draws by `weights` without replacement; `with_replacement` repeats items of shorter histories. "recent"
    reads the last items and needs neither. Another kind is a ValueError.
    """
    if kind == "recent":
        return RecentHistory(histories, length, device)
    if kind != "sampled":
        raise ValueError(f"history {kind!r}: allowed is one of sampled, recent")
    sampler = EarlyHistorySampler if device.type == "cpu" else HistorySampler
    return sampler(histories, weights, length, device, with_replacement)
