"""Pieces of the training loop that live apart from it: the one update, epoch selection, checkpoints."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.config import Config
from model.methods.base import Method
from model.report import atomic_path

CHECKPOINT_FORMAT = 1


def update(loss: torch.Tensor, *optimisers: torch.optim.Optimizer) -> None:
    """Take one step of each of `optimisers` on `loss`; a loss that is not finite is a ValueError."""
    # asking a GPU for every loss would stall it; there the epoch's mean is checked instead
    if loss.device.type == "cpu" and not math.isfinite(loss.item()):
        raise ValueError(f"the training loss is {loss.item()}; lower --lr or the adversarial weights")
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    loss.backward()
    for optimiser in optimisers:
        optimiser.step()


@dataclass
class Selection:
    """Which epoch is best so far on validation, its weights, and when to stop looking (Decision 22)."""

    patience: int
    epoch: int = 0
    value: float = -math.inf
    weights: dict[str, Any] = field(default_factory=dict)

    def offer(self, epoch: int, value: float, backbone: nn.Module, method: Method) -> bool:
        """Tell whether `epoch` is the best so far, and keep its weights if so; a NaN never is."""
        if not value > self.value:
            return False
        # a numpy number would need pickle, which a checkpoint must not
        self.epoch, self.value = epoch, float(value)
        self.weights = copy.deepcopy({"backbone": backbone.state_dict(), "method": method.state_dict()})
        return True

    def exhausted(self, epoch: int) -> bool:
        """Tell whether `patience` epochs have brought nothing better."""
        return epoch - self.epoch >= self.patience

    def restore(self, backbone: nn.Module, method: Method) -> None:
        """Put the best weights back."""
        backbone.load_state_dict(self.weights["backbone"])
        method.load_state_dict(self.weights["method"])


def save_checkpoint(path: Path, config: Config, fingerprint: str, selection: Selection) -> None:
    """Write the selected weights, whole or not at all: tensors and plain JSON, readable with `weights_only=True`."""
    content = {
        "format": CHECKPOINT_FORMAT,
        "config": json.dumps(config.as_json(), sort_keys=True),
        "fingerprint": fingerprint,
        "epoch": selection.epoch,
        "validation": selection.value,
        **selection.weights,
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)
