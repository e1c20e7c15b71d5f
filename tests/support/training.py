"""A method and a network of a few numbers, and an epoch selection that holds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from model.training.checkpoints import Selection


class StatefulMethod:
    """A method with one tensor of its own."""

    def __init__(self):
        self.level = torch.zeros(2)

    def state_dict(self):
        return {"level": self.level}

    def load_state_dict(self, state):
        self.level = state["level"].clone()


def make_module():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


@pytest.fixture
def selection():
    kept = Selection()
    # a metric may come as a numpy number, which `weights_only` would refuse
    kept.offer(3, np.float64(0.25), make_module(), StatefulMethod())
    return kept
