"""Tables by user and by recommended item: original ids, and users whom not every list is for."""

import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from data.structs import Group, ItemLists, Ranking
from model.evaluation.keys import ListKey
from model.evaluation.questions import Answer
from model.results.user_tables import (
    item_frame,
    recommendation_frame,
    values_by_user,
    with_earlier,
    write_judged,
    write_per_user,
)
from model.runs.files import write_frame

NAN = float("nan")


def toy_ranking():
    topk = np.array([[2, 0, 1], [1, -1, -1], [-1, -1, -1]])
    scores = np.array([[0.5, 0.25, 0.125], [1, -np.inf, -np.inf], [-np.inf] * 3], dtype=np.float32)
    nothing = ItemLists(np.zeros(4, np.int64), np.zeros(0, np.int64))
    return Ranking(np.array([3, 0, 1]), nothing, np.zeros(0, np.int64), topk, scores, np.array([3, 1, 0]))


def test_recommendations_have_original_ids_and_no_padding(tmp_path):
    path = tmp_path / "recommendations.parquet"
    users, items, titles = np.array([10, 11, 12, 13]), np.array(["a", "b", "c"]), np.array(["A", None, "C"], object)
    write_frame(path, recommendation_frame(toy_ranking(), users, items, titles, 2))
    frame = pd.read_parquet(path)
    assert list(frame.columns) == ["user", "rank", "item", "title", "score"]
    assert frame["user"].tolist() == [13, 13, 10] and frame["rank"].tolist() == [1, 2, 1]
    assert frame["item"].tolist() == ["c", "a", "b"] and frame["title"].tolist()[:2] == ["C", "A"]
    assert pd.isna(frame["title"][2]) and frame["score"].tolist() == [0.5, 0.25, 1.0]
    before = path.read_bytes()
    write_frame(path, recommendation_frame(toy_ranking(), users, items, titles, 2))
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="k is 4, but the ranking holds 3"):
        recommendation_frame(toy_ranking(), users, items, titles, 4)


def test_per_user_has_groups_as_labels(tmp_path):
    path = tmp_path / "per_user.parquet"
    gender = Group("gender", np.array([0, 1, -1, 1]), ("F", "M"))
    values = {"hr@10": np.array([1.0, NAN, 0.0])}
    write_per_user(path, np.array([3, 2, 0]), np.array(["x", "y", "z", "w"]), values, {"gender": gender})
    frame = pd.read_parquet(path)
    assert list(frame.columns) == ["user", "gender", "hr@10"]
    assert frame["user"].tolist() == ["w", "z", "x"] and frame["gender"].isna().tolist() == [False, True, False]
    assert frame["gender"].dropna().tolist() == ["M", "F"]
    np.testing.assert_array_equal(frame["hr@10"], values["hr@10"])
    with pytest.raises(ValueError, match="named like other columns"):
        write_per_user(path, np.array([0]), np.arange(4), {"gender": np.zeros(1)}, {"gender": gender})
    assert os.listdir(tmp_path) == ["per_user.parquet"]


def ranking(users):
    lists = ItemLists(np.arange(len(users) + 1), np.zeros(len(users), dtype=np.int64))
    topk = np.zeros((len(users), 1), dtype=np.int64)
    return Ranking(np.array(users), lists, np.ones(len(users)), topk, topk.astype(float), np.ones(len(users)))


def test_users_whom_a_task_does_not_ask_have_no_value_there():
    answers = [
        Answer(ListKey(task="next"), ranking([1, 4]), {}, {"hr@5": np.array([1.0, 0.5])}),
        Answer(ListKey(task="rest"), ranking([0, 1, 3]), {}, {"hr@5": np.array([0.1, 0.2, 0.3])}),
    ]
    users, values = values_by_user(answers)
    assert users.tolist() == [0, 1, 3, 4]
    np.testing.assert_array_equal(values["test/next/hr@5"], [np.nan, 1.0, np.nan, 0.5])
    np.testing.assert_array_equal(values["test/rest/hr@5"], [0.1, 0.2, 0.3, np.nan])


def test_columns_of_earlier_phases_are_kept_and_others_are_not():
    originals = np.array(["a", "b", "c", "d"])
    frame = pd.DataFrame({"user": ["c", "a"], "gender": ["F", "M"], "test/one/hr@5": [0.1, 0.2]})
    frame["reference/popular/one/hr@5"], frame["test/two/hr@5"] = [0.3, 0.4], [9.0, 9.0]
    users, values = with_earlier(frame, np.array([1, 2]), {"test/two/hr@5": np.array([0.5, 0.6])}, originals, {"one"})
    assert users.tolist() == [0, 1, 2]
    assert list(values) == ["test/one/hr@5", "reference/popular/one/hr@5", "test/two/hr@5"]
    np.testing.assert_array_equal(values["test/one/hr@5"], [0.2, np.nan, 0.1])
    np.testing.assert_array_equal(values["test/two/hr@5"], [np.nan, 0.5, 0.6])


def answer(key, width):
    """An answer to a list of two users, of the items from 0 on; the first item is the test item of the second user."""
    topk = np.tile(np.arange(width), (2, 1))
    lists = ItemLists(np.array([0, 1, 2]), np.array([30, 0]))
    scores = -topk.astype(np.float64 if key.source == "test" else np.float32)
    return Answer(key, Ranking(np.array([3, 5]), lists, np.array([31, 2]), topk, scores, np.array([40, 40])), {}, {})


def test_judged_lists_of_earlier_phases_stay_and_pools_are_whole(tmp_path, tiny_data):
    popular = ListKey("reference", "popular", phase="one")
    one = [answer(key, 6) for key in (popular, ListKey(phase="one"), ListKey(phase="one", reranked=True))]
    again = [answer(ListKey(phase="two"), 6)]
    write_judged(tmp_path, tiny_data, one, 4, set(), False)
    first = pd.read_parquet(tmp_path / "recommendations.parquet")
    assert first.groupby("list", sort=False).size().to_dict() == {
        "test/one": 12, "test/one/reranked": 8, "reference/popular/one": 8,
    }  # fmt: skip
    users, items = tiny_data.original_user_ids[[3, 5]].tolist(), tiny_data.original_item_ids
    hits = first[first["relevant"]]
    assert hits[["user", "item", "rank"]].to_numpy().tolist() == [[users[1], items[0], 1]] * 3
    assert first["score"].dtype == np.float64 and first["title"].tolist()[:6] == list(tiny_data.item_titles[:6])
    ranks = pd.read_parquet(tmp_path / "ranks.parquet")
    assert ranks["rank"].tolist() == [31, 2] * 3 and ranks["item"].tolist() == [items[30], items[0]] * 3

    for _ in range(2):  # what is judged again takes the place of what the phase wrote before
        write_judged(tmp_path, tiny_data, again, 4, {"one"}, False)
        both = pd.read_parquet(tmp_path / "recommendations.parquet")
        pd.testing.assert_frame_equal(both[:28], first)
        assert both["list"][28:].tolist() == ["test/two"] * 12
        assert len(pd.read_parquet(tmp_path / "ranks.parquet")) == 8
    write_judged(tmp_path, tiny_data, again, 4, set(), False)
    assert set(pd.read_parquet(tmp_path / "ranks.parquet")["list"]) == {"test/two"}


def test_lists_without_titles_are_written(tmp_path, tiny_data):
    data = replace(tiny_data, item_titles=np.where(np.arange(40) < 6, None, tiny_data.item_titles))
    answers = [answer(ListKey(), 6), answer(ListKey("reference", "random"), 10)]
    write_judged(tmp_path, data, answers, 10, set(), False)
    frame = pd.read_parquet(tmp_path / "recommendations.parquet")
    assert frame["title"].isna().sum() == 24 and frame["title"].notna().sum() == 8


def test_the_catalogue_stands_there_for_every_phase(tiny_data, tiny_phase):
    split = tiny_phase.split
    frame = item_frame(tiny_data, [replace(tiny_phase, name="one"), replace(tiny_phase, name="two")])
    assert frame["phase"].tolist() == ["one"] * 40 + ["two"] * 40
    assert frame["item"].tolist() == 2 * tiny_data.original_item_ids.tolist()
    assert frame["train_degree"].tolist() == 2 * split.degree.tolist()
    assert (frame["popularity"][:40] == "tail").tolist() == split.is_tail.tolist()
