"""The files of a run tell every figure of its result: computed again with pandas alone."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from tests.support import time_order
from tests.support.blocks import run_of, small_and_quick
from tests.support.light import light_runs
from tests.support.recomputed import recomputed, reported
from tests.support.runs import run_main

BY_IDS = {"backbone": "bprmf", "embedding_dim": 8, "num_negatives": 1, "user_hidden": None, "item_hidden": None}
RERANKED = {
    "enable_fairness": True, "fairness_method": "none", "rerank_fair": True, "exposure_floor": 0.8, "rerank_pool": 10,
}  # fmt: skip


def check(folder, lists, further, first=""):
    """Every figure that is reported and defined (of `lists` too) is what the files give, and there is no other."""
    ours, theirs = (
        {name: value for name, value in figures.items() if not math.isnan(value)}
        for figures in (recomputed(folder, first), reported(folder))
    )
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-12)
    assert all(f"{name}/{metric}" in theirs for name in lists for metric in further)


def test_a_reranked_run_by_leave_one_out(tmp_path):
    with light_runs():
        result = run_main(tmp_path, **BY_IDS, **RERANKED, user_attribute=["gender", "age"])
    assert 0 < result["metrics"]["test/reranked/infeasible_users"] < result["users"] == 60
    further = ("hr@5/std/age", "dtr@10", "eo_rate@10/age")
    check(tmp_path / "run", ["test", "test/reranked", "reference/popular", "reference/random"], further)


def test_a_run_under_the_definitions_of_fda(tmp_path):
    with light_runs():
        result = run_main(
            tmp_path, **BY_IDS, **RERANKED, protocol="fda", eval_k=["10", "20"], synthetic_interactions=400
        )
    further = ("dp_code@20/gender", "eo_code@20/gender", "ndcg@10")
    check(tmp_path / "run", ["test", "test/reranked", "reference/popular"], further)
    per_user = pd.read_parquet(tmp_path / "run" / "per_user.parquet")
    assert len(per_user) < result["users"] == 60, "there are users whom nobody asks"


def test_a_run_under_cofairs_protocol_with_its_levels(tmp_path):
    values = {"enable_fairness": True, "fairness_method": "cofair", "protocol": "cofair"}
    with light_runs():
        run_main(tmp_path, **{**BY_IDS, **values}, method_option=["levels=2", "epochs=1"], eval_k=["10", "20"])
    further = ("recall@10", "recall@20/gap/gender", "recall@10/tail", "dp_js@20/gender", "eo_js@10/gender")
    check(tmp_path / "run", ["test/t0", "test/t1", "test/t2", "reference/popular"], further)


def test_a_run_under_fades_protocol_with_its_means(tmp_path, monkeypatch):
    small_and_quick(monkeypatch)
    with light_runs():
        run_main(tmp_path, **run_of())
    tasks = [f"{phase}/{task}" for phase in ("snapshot-0", "snapshot-2", "mean") for task in ("next", "remain")]
    lists = [f"{root}/{task}" for task in tasks for root in ("test", "reference/random")]
    further = ("f1@5", "recall@5", "ndcg_hits@5/gap/gender", "ndcg_hits@5/difference/gender", "f1@5/tail")
    check(tmp_path / "run", lists, further, first="M")


def test_a_run_of_several_phases_and_tasks(tmp_path, monkeypatch):
    time_order.register(monkeypatch)
    with light_runs():
        run_main(tmp_path, **time_order.RUN, rerank_fair=True)
    tasks = ["first/lists", "second/lists", "second/drawn"]
    lists = [f"{root}/{task}" for task in tasks for root in ("test", "reference/popular")]
    check(tmp_path / "run", [*lists, *(f"test/{task}/reranked" for task in tasks)], ["ndcg@5/tail", "eo@10/gender"])
