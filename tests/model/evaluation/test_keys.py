"""Result keys: what is made is read back the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.evaluation.keys import (
    PARTS,
    REFERENCE,
    TEST,
    ListKey,
    MetricKey,
    by_list,
    choose_list,
    flat,
    is_one,
    is_result,
    lists_by_control,
    run_lists,
    split_key,
    yardsticks_of,
)

LABELS = st.sampled_from(["F", "25-34", "college/grad student", "K-12 student", "a@b"])
SOME_PART = st.sampled_from(["", *PARTS])
METRIC_KEYS = (
    st.builds(MetricKey, st.sampled_from(["hr", "ndcg", "gini", "arp"]), st.integers(1, 99))
    | st.builds(MetricKey, st.just("ndcg"), st.integers(1, 99), st.sampled_from(["head", "tail"]))
    | st.builds(
        MetricKey, st.just("ndcg"), st.integers(1, 99), st.sampled_from(["gender", "age"]), LABELS, part=SOME_PART
    )
    | st.builds(MetricKey, st.just("hr"), st.just(5), st.just("age"), st.just(""), st.sampled_from(["gap", "std"]))
    | st.builds(MetricKey, st.sampled_from(["dp_rate", "eo_js"]), st.just(5), st.just("gender"), part=SOME_PART)
    | st.builds(MetricKey, st.just("leakage_auc"), st.none(), st.just("gender"), part=SOME_PART)
    | st.builds(MetricKey, st.just("hr"), st.just(5), st.just("age"), spread=st.just("gap"), part=SOME_PART)
    | st.just(MetricKey("infeasible_users"))
)
CONTROLS = st.sampled_from(["", "none", "gender+age", "t5", "a/b", "gini", "0.5"])
LISTS = st.tuples(st.booleans(), st.booleans()).flatmap(
    lambda several: st.tuples(
        st.just(several),
        st.builds(
            ListKey,
            st.just(TEST),
            phase=st.sampled_from(["p1", "first"]) if several[0] else st.just(""),
            task=st.sampled_from(["next", "rest"]) if several[1] else st.just(""),
            control=CONTROLS,
            reranked=st.booleans(),
        )
        | st.builds(
            ListKey,
            st.just(REFERENCE),
            st.sampled_from(["popular", "random"]),
            st.just("p1") if several[0] else st.just(""),
            st.just("rest") if several[1] else st.just(""),
        ),
    )
)


@given(METRIC_KEYS)
def test_a_metric_key_is_read_back(key):
    assert MetricKey.parse(str(key)) == key


@given(LISTS, METRIC_KEYS)
def test_a_key_is_taken_apart_into_list_and_metric(case, metric):
    (many_phases, many_tasks), name = case
    key = f"{name}/{metric}"
    assert split_key(key) == (str(name), str(metric)) and is_result(key)
    assert ListKey.parse(str(name), many_phases, many_tasks) == name


@pytest.mark.parametrize(
    ("several", "text", "key"),
    [
        ((False, False), "test", ListKey()),
        ((False, False), "test/reranked", ListKey(reranked=True)),
        ((False, False), "test/gender+age", ListKey(control="gender+age")),
        ((False, False), "test/5/reranked", ListKey(control="5", reranked=True)),
        ((True, False), "test/later", ListKey(phase="later")),
        ((False, True), "test/next/5", ListKey(task="next", control="5")),
        ((True, True), "test/later/next/5/reranked", ListKey(TEST, "", "later", "next", "5", True)),
        ((True, True), "reference/popular/later/next", ListKey(REFERENCE, "popular", "later", "next")),
    ],
)
def test_the_name_of_a_list_says_what_it_is(several, text, key):
    assert ListKey.parse(text, *several) == key and str(key) == text
    assert key.beside("random") == ListKey(REFERENCE, "random", key.phase, key.task)


def test_results_keep_their_structure_through_files():
    results = {
        "reference/popular": {"ndcg@5": 0.1},
        "test/b": {"ndcg@5": 0.2, "ndcg@5/occupation/sales/marketing": 0.3, "leakage_auc/gender": 0.5},
        "test/a": {"dp@50/gender": 0.4},
        "test/a/reranked": {"infeasible_users": 3},
    }
    assert by_list(flat(results)) == results
    assert run_lists(results) == ["test/b", "test/a", "test/a/reranked"]
    assert is_one(["test", "test/reranked"]) and not is_one(["test/a"]) and not is_one(["test", "test/a"])


def test_lists_that_differ_in_their_control_alone_are_grouped_in_order():
    names = ["reference/popular", "test/t1", "test/t0", "test/t1/reranked", "test/t0/reranked"]
    assert lists_by_control(names) == {
        "this run": {"test/t1": "t1", "test/t0": "t0"},
        "re-ranked": {"test/t1/reranked": "t1", "test/t0/reranked": "t0"},
    }
    tasks = ["test/next/t0", "test/rest/t0", "test/next/t1", "test/rest/t1", "reference/popular/next"]
    assert {label: list(group.values()) for label, group in lists_by_control(tasks).items()} == {
        "next": ["t0", "t1"],
        "rest": ["t0", "t1"],
    }


@pytest.mark.parametrize("key", ["test/novelty@5", "test/control/novelty@5/gender", "test/novelty"])
def test_a_key_without_a_known_metric_is_an_error_that_names_it(key):
    with pytest.raises(ValueError, match="metric 'novelty' is not in the metric table; add a row to METRICS"):
        split_key(key)


@pytest.mark.parametrize(
    ("names", "chosen", "found"),
    [
        ("reference/popular test test/reranked", "", "test"),
        ("test/half test/reranked", "", None),
        ("reference/popular test/half", "", "test/half"),
        ("reference/popular", "", None),
        ("test test/reranked", "reranked", "test/reranked"),
        ("test test/reranked", "test/reranked", "test/reranked"),
        ("reference/popular test", "popular", "reference/popular"),
        ("reference/popular test/popular", "popular", "test/popular"),
        ("reference/popular test/popular", "reference/popular", "reference/popular"),
        ("test x", "x", "x"),
        ("test", "half", None),
        ("", "", None),
    ],
)
def test_a_list_is_chosen_by_its_name_whole_or_short(names, chosen, found):
    assert choose_list(names.split(), chosen) == found


def test_a_list_stands_beside_the_yardsticks_of_its_phase_and_task():
    one = ["test", "test/reranked", "reference/popular", "reference/random"]
    for name in one[:2]:
        assert yardsticks_of(name, one) == {"popular": "reference/popular", "random": "reference/random"}
    tasks = ["test/next/gender", "test/rest/gender", "reference/popular/next", "reference/popular/rest"]
    assert yardsticks_of("test/rest/gender", tasks) == {"popular": "reference/popular/rest"}
    assert yardsticks_of("test/next", tasks) == {"popular": "reference/popular/next"}
    assert yardsticks_of("test/nex", tasks) == {}
