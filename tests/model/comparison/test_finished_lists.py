"""Lists of finished runs read back as arrays."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from model.comparison.finished_lists import read_lists
from tests.support.light import light_runs
from tests.support.runs import recommended, run_main

BY_IDS = {"backbone": "bprmf", "embedding_dim": 8, "num_negatives": 1, "user_hidden": None, "item_hidden": None}
RERANKED = {"enable_fairness": True, "fairness_method": "none", "rerank_fair": True, "exposure_floor": 0.5}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("lists")
    with light_runs():
        run_main(folder, **BY_IDS, **RERANKED, rerank_pool=20)
    return folder / "run"


@pytest.mark.parametrize(("name", "width"), [("test", 20), ("test/reranked", 10), ("reference/popular", 10)])
def test_lists_are_those_of_the_files(run, name, width):
    lists, frame = read_lists(run, name), recommended(run, name)
    per_user = pd.read_parquet(run / "per_user.parquet").set_index("user").sort_index()
    catalogue = pd.read_parquet(run / "items.parquet")["item"]
    assert lists.users.tolist() == per_user.index.tolist() and lists.num_items == len(catalogue) == 50
    assert lists.topk.shape == lists.relevant.shape == (60, width)
    for user, row in zip(lists.users, lists.topk, strict=True):
        own = frame[frame["user"] == user].sort_values("rank")["item"].tolist()
        assert catalogue[row[row >= 0]].tolist() == own
    # one test item a user, and no ties in these scores
    if name != "reference/popular":
        np.testing.assert_array_equal(lists.relevant[:, :5].any(axis=1), per_user[f"{name}/hr@5"] == 1)
    np.testing.assert_array_equal(read_lists(run, name, k=5).topk, lists.topk[:, :5])


def test_short_lists_end_in_padding_and_empty_ones_are_all_padding(run, tmp_path):
    for name in ("items", "ranks"):
        (tmp_path / f"{name}.parquet").write_bytes((run / f"{name}.parquet").read_bytes())
    whole = read_lists(run, "test", k=5)
    frame = pd.read_parquet(run / "recommendations.parquet")
    first, second = whole.users[:2]
    frame[(frame["user"] != first) & ((frame["user"] != second) | (frame["rank"] <= 2))].to_parquet(
        tmp_path / "recommendations.parquet"
    )
    lists = read_lists(tmp_path, "test", k=5)
    assert (lists.topk[0] == -1).all() and lists.topk[1].tolist() == [*whole.topk[1, :2], -1, -1, -1]
    assert not lists.relevant[0].any() and (lists.users == whole.users).all()


def test_what_is_not_there_is_one_line(run, tmp_path):
    with pytest.raises(ValueError, match="no list test/half; it has test, test/reranked, reference/popular, "):
        read_lists(run, "test/half")
    pd.DataFrame({"user": [1], "rank": [1], "item": [1]}).to_parquet(tmp_path / "recommendations.parquet")
    with pytest.raises(ValueError, match=r"recommendations\.parquet cannot be read as lists of this version"):
        read_lists(tmp_path, "test")
