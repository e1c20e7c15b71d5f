"""The independent random streams that come from one seed."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

# a seed depends on the position of its stream: add new ones at the end
STREAMS = (
    "split", "order", "negatives", "history", "initialisation", "evaluation", "adversary", "probe", "noise", "dropout",
)  # fmt: skip


def stream_seeds(seed: int, phase: int = 0) -> dict[str, int]:
    """Give one independent seed per random stream and phase, all from one `SeedSequence` (Decision 24)."""
    seeds = {}
    for place, name in enumerate(STREAMS):
        # the first phase has the streams of a run with one phase
        key = (place, phase) if phase else (place,)
        child = np.random.SeedSequence(seed, spawn_key=key)
        seeds[name] = int(child.generate_state(1, np.uint64)[0]) >> 1
    return seeds


def torch_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a generator on `device` with its own state."""
    return torch.Generator(device=device).manual_seed(seed)


def global_generators(seed: int, device: torch.device, rank: int) -> dict[str, torch.Generator]:
    """Seed torch's global generators, from which dropout draws, and give them by name (Decision 34).

    Each process has its own stream, because it drops numbers of its own rows.
    """
    generators = {f"dropout/{rank}": torch.default_generator}
    if device.type == "cuda":
        generators[f"dropout/{rank}/cuda"] = torch.cuda.default_generators[device.index]
    own_seed = int(np.random.SeedSequence((seed, rank)).generate_state(1, np.uint64)[0]) >> 1
    for generator in generators.values():
        generator.manual_seed(own_seed)
    return generators


def own_generators(network: nn.Module) -> dict[str, torch.Generator]:
    """List the random streams that a network holds itself (upstream's GRU), by the name of their place."""
    return {
        f"{name}.{key}": value
        for name, module in network.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, torch.Generator)
    }
