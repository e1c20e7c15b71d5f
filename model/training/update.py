"""The one optimiser step that every method takes."""

from __future__ import annotations

import math

import torch

from model.runs.errors import NotFiniteError
from model.runs.processes import ALONE, Processes


def update(
    loss: torch.Tensor,
    *optimisers: torch.optim.Optimizer,
    processes: Processes = ALONE,
) -> None:
    """Take one step of each of `optimisers` on the sum of the processes' `loss`.

    A loss that is not finite is a NotFiniteError.
    """
    # reading every loss from a GPU would make the host wait; there the epoch's mean is checked instead
    if loss.device.type == "cpu" and not math.isfinite(loss.item()):
        raise NotFiniteError(f"the training loss is {loss.item()}")
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    loss.backward()
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    processes.sum_gradients(parameter for group in groups for parameter in group["params"])
    for optimiser in optimisers:
        optimiser.step()
