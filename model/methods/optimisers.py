"""Optimisers of a module's parameters."""

from __future__ import annotations

import torch
from torch import nn


def make_optimisers(module: nn.Module, lr: float) -> tuple[torch.optim.Optimizer, ...]:
    """Adam for `module`, and its sparse variant for embeddings with sparse gradients, where there are any.

    The sparse one moves only rows with a gradient, and their momentum with them (Decision 26).
    """
    lazy = [part.weight for part in module.modules() if isinstance(part, nn.Embedding) and part.sparse]
    own = {id(weight) for weight in lazy}
    dense = [parameter for parameter in module.parameters() if id(parameter) not in own]
    optimisers = [torch.optim.Adam(dense, lr=lr, fused=True)]
    return (*optimisers, torch.optim.SparseAdam(lazy, lr=lr)) if lazy else tuple(optimisers)
