"""The independent random streams that come from one seed."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

STREAMS = ("split", "order", "negatives", "history", "initialisation", "evaluation", "adversary", "probe", "noise")


def stream_seeds(seed: int) -> dict[str, int]:
    """One independent seed per random stream, all from one `SeedSequence` (Decision 24)."""
    children = np.random.SeedSequence(seed).spawn(len(STREAMS))
    return {
        name: int(child.generate_state(1, np.uint64)[0]) >> 1 for name, child in zip(STREAMS, children, strict=True)
    }


def torch_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` with its own state."""
    return torch.Generator(device=device).manual_seed(seed)


def own_generators(network: nn.Module) -> dict[str, torch.Generator]:
    """The random streams that a network holds itself (upstream's GRU), by the name of their place."""
    return {
        f"{name}.{key}": value
        for name, module in network.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, torch.Generator)
    }
