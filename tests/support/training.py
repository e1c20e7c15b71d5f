"""An empty epoch selection."""

from __future__ import annotations

import numpy as np
import pytest

from model.training.checkpoints import Selection
from tests.model.training.test_training import StatefulMethod, make_module


@pytest.fixture
def selection():
    kept = Selection()
    # a metric may come as a numpy number, which `weights_only` would refuse
    kept.offer(3, np.float64(0.25), make_module(), StatefulMethod())
    return kept
