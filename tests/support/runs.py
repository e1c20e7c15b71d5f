"""Runs of `main.py` in this process under flags, on small synthetic data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from absl import flags
from absl.testing import flagsaver

import main

ROOT = Path(__file__).parents[2]
FLAGS = flags.FLAGS
if not FLAGS.is_parsed():
    FLAGS(["main.py"])

TINY = {
    "dataset": "synthetic",
    "synthetic_users": 60,
    "synthetic_items": 50,
    "synthetic_interactions": 900,
    "epochs": 2,
    "batch_size": 128,
    "num_negatives": 4,
    "user_hidden": ["32"],
    "item_hidden": ["32"],
    "eval_k": ["5", "10"],
    "run_name": "run",
}


def run_main(folder: Path, **values) -> dict:
    """Run `main` under flags in this process; give the content of result.json."""
    with flagsaver.flagsaver(output_dir=str(folder), **{**TINY, **values}):
        main.main(["main.py"])
    return json.loads((folder / "run" / "result.json").read_text())


def recommended(run: Path, name: str = "test", k: int | None = None) -> pd.DataFrame:
    """A list of a run's recommendations, its first `k` places (None: all), as `--mode=recommend` shows them."""
    frame = pd.read_parquet(run / "recommendations.parquet", filters=[("list", "==", name)])
    frame = frame if k is None else frame[frame["rank"] <= k]
    return frame.drop(columns=["list", "relevant"]).reset_index(drop=True)


def without_commit(path: Path) -> bytes:
    """A file of a run, of result.json without the commit, which may change while tests run."""
    return re.sub(rb'\n *"commit": [^\n]*', b"", path.read_bytes())


def result_bytes(folder: Path) -> bytes:
    """result.json of the run in `folder`, without the commit."""
    return without_commit(folder / "run" / "result.json")


def refused(capsys, folder: Path, **values) -> str:
    """Run `main`, which must end with exit code 2 and one line on standard error; give that line."""
    with flagsaver.flagsaver(output_dir=str(folder), **{**TINY, **values}), pytest.raises(SystemExit) as caught:
        main.main(["main.py"])
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error
