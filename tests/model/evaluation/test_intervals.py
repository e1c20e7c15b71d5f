"""Intervals of the accuracy of user groups, and the counts that they rest on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from data.structs import EvalResult, Group
from model.evaluation.intervals import group_intervals, mean_interval
from model.evaluation.keys import by_list
from model.results.tables import tables_of_one
from tests.support.runs import run_main


def test_an_interval_is_students_and_stays_a_fraction():
    values = np.array([0.2, 0.4, np.nan, 0.9])
    defined = values[~np.isnan(values)]
    expected = stats.t.interval(0.95, 2, defined.mean(), stats.sem(defined))
    assert mean_interval(values) == pytest.approx([0.5, max(expected[0], 0), min(expected[1], 1)])
    assert (
        np.isnan(mean_interval(np.array([1.0, 1.0]))[1:]).all() and np.isnan(mean_interval(np.array([0.3]))[1:]).all()
    )


def test_groups_have_their_own_intervals_and_counts():
    group = Group("a", np.array([0, 1, 1, 0, -1, 1]), ("x", "y"))
    users, hits = np.array([0, 1, 2, 3, 4]), np.array([1.0, 0.0, 0.5, np.nan, 1.0])
    found = group_intervals(EvalResult({}, {"hr@5": hits, "ndcg@5": hits / 2, "arp@5": hits}), users, {"a": group})
    assert {key: found[key] for key in found if "hits" in key or "users" in key} == {
        "hr@5/hits/a/x": 1, "hr@5/users/a/x": 1, "hr@5/hits/a/y": 1, "hr@5/users/a/y": 2,
    }  # fmt: skip
    assert found["ndcg@5/low/a/y"] == mean_interval(np.array([0, 0.25]))[1] and np.isnan(found["ndcg@5/low/a/x"])
    assert not any("arp" in key for key in found)


def test_a_run_shows_hits_users_and_intervals_of_its_groups(tmp_path):
    metrics = by_list(run_main(tmp_path)["metrics"])["test"]
    assert metrics["hr@5/low/gender/F"] <= metrics["hr@5/gender/F"] <= metrics["hr@5/high/gender/F"]
    assert metrics["hr@5/hits/gender/F"] == round(metrics["hr@5/gender/F"] * metrics["hr@5/users/gender/F"])
    (table,) = (
        table
        for table in tables_of_one({"test": metrics}, {"gender": ("M", "F")}, 5)
        if table.caption.startswith("Accuracy by gender")
    )
    assert table.headers == ["gender", "hits", "users", "HR@5", "NDCG@5", "95 % interval", "MRR@5"]
    assert [row[2] for row in table.rows] == ["42", "18", ""]
