"""Settings of the tiny run that tests share: what differs from the program's defaults."""

from __future__ import annotations

from pathlib import Path

from data.readers.options import SyntheticOptions
from model.runs.config import Config
from model.runs.presets import filled
from model.runs.setting import declared

TINY = SyntheticOptions(num_users=60, num_items=40, num_interactions=900)
CHANGES = {
    "dataset": "synthetic",
    "cache_dir": Path("cache"),
    "max_bad_rows": 0.0,
    "synthetic_users": TINY.num_users,
    "synthetic_items": TINY.num_items,
    "synthetic_interactions": TINY.num_interactions,
    "sample_size": 5,
    "user_hidden": (16,),
    "item_hidden": (16,),
    "enable_fairness": True,
    "rerank_pool": 20,
    "batch_size": 64,
    "num_negatives": 2,
    "device": "cpu",
    "ncf_form": "neumf",
    "eval_k": (10,),
    "run_name": "test",
    "wandb_project": "test",
}
SETTINGS = filled({name: one.converted(one.default) for name, one in declared(Config).items()} | CHANGES)
