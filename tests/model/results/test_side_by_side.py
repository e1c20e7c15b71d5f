"""Lists of several phases, tasks and controls: their names, tables that fit, and values of users whom not all ask."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from data.protocols.base import Protocol
from data.structs import ItemLists, Ranking
from fairness_utils import DIRECTIONS
from model.results.side_by_side import (
    TestedList,
    is_one,
    label_rows,
    roots_of,
    tables_side_by_side,
    values_by_user,
    with_earlier,
)


@pytest.fixture
def protocols(tiny_phase):
    """Protocols by whether they have several phases and several tasks."""
    (task,) = tiny_phase.tests
    two = replace(tiny_phase, tests=(replace(task, name="next"), replace(task, name="rest")))
    later = [replace(phase, name="later") for phase in (tiny_phase, two)]
    phases = {(False, False): (tiny_phase,), (True, False): (tiny_phase, later[0])}
    phases |= {(False, True): (two,), (True, True): (tiny_phase, later[1])}
    return {several: Protocol("toy", "", (5,), some) for several, some in phases.items()}


@pytest.mark.parametrize(
    ("several", "root", "parts"),
    [
        ((False, False), "test", ("", "", "", False)),
        ((False, False), "test/reranked", ("", "", "", True)),
        ((False, False), "test/gender+age", ("", "", "gender+age", False)),
        ((False, False), "test/5/reranked", ("", "", "5", True)),
        ((True, False), "test/later", ("later", "", "", False)),
        ((False, True), "test/next/5", ("", "next", "5", False)),
        ((True, True), "test/later/next/5/reranked", ("later", "next", "5", True)),
    ],
)
def test_a_root_says_what_the_list_is(protocols, several, root, parts):
    one = TestedList.of(root, protocols[several])
    assert (one.phase, one.task, one.control, one.reranked) == parts
    level = "".join(f"/{part}" for part in parts[:2] if part)
    assert one.yardsticks()["most popular"] == f"reference/popular{level}"


def test_keys_say_phase_and_task_where_there_are_several(protocols):
    for (phases, tasks), protocol in protocols.items():
        phase = protocol.phases[-1]
        level = f"/{phase.name}" * phases + f"/{phase.tests[0].name}" * tasks
        assert protocol.level(phase, phase.tests[0]) == level


def test_roots_are_found_in_order_and_one_list_is_told_from_several():
    keys = ["reference/popular/ndcg@5", "test/b/hr@5", "test/b/ndcg@5", "test/b/ndcg@5/head", "test/b/ndcg@50",
            "test/a/ndcg@5", "test/a/reranked/ndcg@5"]  # fmt: skip
    assert roots_of(keys, 5) == ["test/b", "test/a", "test/a/reranked"]
    assert is_one(["test", "test/reranked"]) and not is_one(["test/a"]) and not is_one(["test", "test/a"])


def test_wide_tables_are_cut_to_the_width_of_the_console(protocols):
    controls = [f"gender and age and occupation {number}" for number in range(6)]
    labels = {"occupation": [f"occupation {number}" for number in range(21)]}
    results = {f"reference/popular/ndcg@5/occupation/{label}": 0.5 for label in labels["occupation"]}
    for place, control in enumerate(controls):
        results[f"test/{control}/ndcg@5"] = place / 100
        results[f"test/{control}/dp_rate@5/occupation"] = place / 10
        results |= {f"test/{control}/ndcg@5/occupation/{label}": place / 7 for label in labels["occupation"]}
    lists = [TestedList.of(f"test/{control}", protocols[False, False]) for control in controls]
    tables = tables_side_by_side(results, lists, labels, 5, DIRECTIONS)
    assert max(len(line) for table in tables for line in table.text().splitlines()) <= 120
    # a service files tables by what stands before the first comma
    names = [table.caption.partition(",")[0] for table in tables]
    assert len(set(names)) == len(names) and names[1:3] == ["Accuracy by occupation (1)", "Accuracy by occupation (2)"]
    columns = [header for table in tables if "by occupation (" in table.caption for header in table.headers[1:]]
    assert columns == [*controls, "most popular"]
    (parity,) = (table for table in tables if table.caption.startswith("Parity"))
    assert [row[0] for row in parity.rows] == controls and parity.rows[3][-1] == "0.3000"


def ranking(users):
    lists = ItemLists(np.arange(len(users) + 1), np.zeros(len(users), dtype=np.int64))
    topk = np.zeros((len(users), 1), dtype=np.int64)
    return Ranking(np.array(users), lists, np.ones(len(users)), topk, topk.astype(float), np.ones(len(users)))


def test_users_whom_a_task_does_not_ask_have_no_value_there():
    rankings = {"test/next": ranking([1, 4]), "test/rest": ranking([0, 1, 3])}
    per_user = {"test/next/hr@5": np.array([1.0, 0.5]), "test/rest/hr@5": np.array([0.1, 0.2, 0.3])}
    users, values = values_by_user(rankings, per_user)
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


def test_rows_of_a_list_say_which_it_is():
    frame = label_rows(
        pd.DataFrame({"user": [1, 2]}), TestedList("test/x", "", "next", "5", False), ["task", "control"]
    )
    assert frame.columns.tolist() == ["task", "control", "user"] and frame["control"].tolist() == ["5", "5"]
