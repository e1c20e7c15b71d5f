"""User vectors before a method changes them: what evaluation serves, and what training on a frozen backbone reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from data.structs import Histories, History, Split
from model.runs.errors import in_blocks
from model.runs.streams import own_generators, torch_generator

USER_BLOCK = 4096


@torch.no_grad()
def encode_users(method: Any, context: Any, users: np.ndarray, histories: Histories, split: Split) -> torch.Tensor:
    """Encode `users [T]` with the backbone of `method`: vectors `[T, D]`, averaged over `--eval_history_draws`.

    `context` is the backbone's for all items. The draws of `histories` have a generator of their own that starts afresh
    each time (Decision 6).
    """
    environment = method.environment
    generator = torch_generator(environment.seeds["evaluation"], environment.device)
    source = method.histories.of(histories, split)
    draws = 1 if source is None else method.config.eval_history_draws
    rows = torch.from_numpy(users).to(environment.device)
    total = None
    for _ in range(draws):
        blocks = []
        for block in rows.split(USER_BLOCK):
            history = None if source is None else source.sample(block, None, generator)
            blocks += _encode_block(method.backbone, context, block, history)
        vectors = torch.cat(blocks)  # [T, D]
        total = vectors if total is None else total + vectors
    return total / draws


def _encode_block(backbone: Any, context: Any, users: torch.Tensor, history: History | None) -> list[torch.Tensor]:
    """Encode `users [b]` in parts that fit in memory."""
    parts = []

    def encode(rows: range) -> None:
        own = slice(rows.start, rows.stop)
        past = None if history is None else History(history.items[own], history.mask[own])
        parts.append(backbone.encode_users(context, users[own], past))

    # a network that draws noise itself would draw other noise in parts
    if own_generators(backbone):
        encode(range(len(users)))
    else:
        in_blocks(encode, len(users), len(users), "encoding users", lambda count: None)
    return parts
