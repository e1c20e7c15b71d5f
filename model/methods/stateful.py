"""Parts with a state: how a module, an optimiser, a random stream or a tensor is saved and put back."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

Stateful = nn.Module | torch.optim.Optimizer | torch.Generator | torch.Tensor


def state_of(part: Stateful) -> Any:
    """Give the state of `part`: tensors and plain values, which share memory with it."""
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part.detach() if isinstance(part, torch.Tensor) else part.state_dict()


@torch.no_grad()
def put_state(part: Stateful, state: Any) -> None:
    """Put `part` back into the `state` that `state_of` gave."""
    if isinstance(part, torch.Generator):
        part.set_state(state)
    elif isinstance(part, torch.Tensor):
        part.copy_(state)
    else:
        part.load_state_dict(state)
