"""Shared by the tests of models and training: a tiny data set, its leave-one-out phase and runs' settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data.protocols.base import ProtocolOptions
from data.protocols.loo import leave_one_out
from data.readers.options import ReadOptions
from data.readers.synthetic import read_synthetic
from model.results import writer as run
from model.runs.config import Config
from tests.support.settings import SETTINGS, TINY

torch.set_num_threads(1)
# modules of fixtures that several tests share
pytest_plugins = ["tests.support.fda", "tests.support.training"]


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Leave a run's pictures out, which take longer than a tiny run itself, but for tests marked `pictures`."""
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr(run, "draw_run", lambda *arguments: {})


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_config():
    """A function: settings that differ from the tiny run's -> Config."""
    return lambda **changes: Config(**(SETTINGS | changes))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """60 users, 40 items and 900 interactions of synthetic data."""
    options = ReadOptions(Path("datasets"), "hash", tmp_path_factory.mktemp("titles"), synthetic=TINY)
    return read_synthetic(options)


@pytest.fixture(scope="session")
def tiny_phase(tiny_data):
    """The one phase of the leave-one-out protocol on the tiny data."""
    options = ProtocolOptions(warm_threshold=0.2, ks=(10,), epochs=2, patience=2)
    return leave_one_out(tiny_data, options, np.random.default_rng(0)).phases[0]
