"""Optimisers of a module's parameters."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn


def make_optimisers(
    module: nn.Module, lr: float, weight_decay: float = 0.0, exempt: Collection[str] = ()
) -> tuple[torch.optim.Optimizer, ...]:
    """Make Adam for `module`, and its sparse variant for embeddings with sparse gradients, where there are any.

    `weight_decay` times a weight is added to its gradient (Adam's own, coupled form; Decision 40), but not for the
    parameters named in `exempt`. The sparse variant moves only rows with a gradient, and their momentum with them
    (Decision 26): with weight decay, which would move all rows, it is a ValueError.
    """
    lazy = [part.weight for part in module.modules() if isinstance(part, nn.Embedding) and part.sparse]
    if lazy and weight_decay:
        raise ValueError(
            f"--weight_decay={weight_decay} moves every weight in each step, and --sparse_updates only the rows that a "
            "step reads; leave one of the two out"
        )
    names = dict(module.named_parameters())
    unknown = sorted(set(exempt) - set(names))
    if unknown:
        raise ValueError(f"weight decay cannot exempt {', '.join(unknown)}; parameters are {', '.join(names)}")
    apart = {id(weight) for weight in lazy}
    decayed, spared = [], []
    for name, parameter in names.items():
        if id(parameter) not in apart:
            (spared if name in exempt else decayed).append(parameter)
    groups = [{"params": decayed}] + ([{"params": spared, "weight_decay": 0.0}] if spared else [])
    optimisers = [torch.optim.Adam(groups, lr=lr, weight_decay=weight_decay, fused=True)]
    return (*optimisers, torch.optim.SparseAdam(lazy, lr=lr)) if lazy else tuple(optimisers)
