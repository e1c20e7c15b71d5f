"""Tables by user and by recommended item: original ids, and users whom not every list is for."""

import os

import numpy as np
import pandas as pd
import pytest

from data.structs import Group, ItemLists, Ranking
from model.evaluation.keys import ListKey
from model.evaluation.questions import Answer
from model.results.user_tables import recommendation_frame, values_by_user, with_earlier, write_per_user
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
