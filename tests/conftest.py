"""Shared by the tests of models and training: a tiny data set, its leave-one-out phase and runs' settings."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.options import ReadOptions, SyntheticOptions
from data.protocols import ProtocolOptions, leave_one_out
from data.synthetic import read_synthetic
from model import preset, run
from model.config import Config

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Leave a run's pictures out, which take longer than a tiny run itself, but for tests marked `pictures`."""
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr(run, "draw_run", lambda *arguments: {})


TINY = SyntheticOptions(num_users=60, num_items=40, num_interactions=900)
SETTINGS = preset("synthetic") | {
    "dataset": "synthetic",
    "dataset_dir": Path("datasets"),
    "cache_dir": Path("cache"),
    "max_bad_rows": 0.0,
    "keep_incomplete_users": False,
    "synthetic_users": TINY.num_users,
    "synthetic_items": TINY.num_items,
    "synthetic_interactions": TINY.num_interactions,
    "backbone": "sparsenn",
    "embedding_dim": 96,
    "graph_layers": 0,
    "l2": 0.0,
    "synthesis_type": "mean",
    "sample_size": 5,
    "attention_heads": 1,
    "scorer": "dot_compress",
    "user_hidden": (16,),
    "item_hidden": (16,),
    "upstream_compat": False,
    "enable_fairness": True,
    "fairness_method": "fabuhs",
    "method_option": (),
    "fairness_sampling": False,
    "fairness_weight": 0.5,
    "adversarial_lambda_user": 0.1,
    "adversarial_lambda_item": 0.1,
    "adversarial_ramp": 0.1,
    "item_adversary": "popularity",
    "adversary_input": "user",
    "mask_sensitive_feature": True,
    "rerank_fair": False,
    "rerank_alpha": 0.2,
    "exposure_floor": 0.1,
    "rerank_pool": 20,
    "rerank_target": "catalogue",
    "recipe": "upstream",
    "batch_size": 64,
    "num_negatives": 2,
    "in_batch_negatives": 2,
    "loss": "margin",
    "sparse_updates": False,
    "device": "cpu",
    "precision": "fp32",
    "protocol": "loo",
    "eval_k": (10,),
    "eval_every": 1,
    "eval_history_draws": 1,
    "eval_negatives": None,
    "eval_block_mb": 256,
    "seed": 0,
    "output_dir": Path("runs"),
    "run_name": "test",
    "resume": False,
    "checkpoint_every": "1",
    "wandb_mode": "disabled",
    "wandb_project": "test",
    "dry_run": False,
}


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
