"""Containers: every check names the culprit, and the CSR operations equal plain Python lists."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.structs import (
    FeatureSpec,
    FeatureTable,
    Group,
    Histories,
    HistoryWeights,
    InteractionData,
    ItemLists,
    Ranking,
    ReadReport,
    Rejected,
    Split,
)

LISTS = st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=6)


def integers(*values):
    return np.array(values, dtype=np.int64)


def item_lists(lists):
    return ItemLists(integers(0, *np.cumsum([len(row) for row in lists])), integers(*[i for row in lists for i in row]))


def as_lists(lists):
    return [lists[n].tolist() for n in range(len(lists.indptr) - 1)]


def histories(lists):
    rows = item_lists(lists)
    return Histories(rows.indptr, rows.item)


def id_table(rows):
    return FeatureTable((FeatureSpec("id", "categorical", rows),), {"id": torch.arange(rows)})


# --- Features and groups ---


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("age", "ordinal", 3), "'age'.*'ordinal'.*categorical"),
        (("age", "dense", 0), "'age': size 0"),
        (("age", "dense", -1), "'age': size -1"),
    ],
)
def test_feature_spec_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        FeatureSpec(*arguments)


ID, GENRE = FeatureSpec("id", "categorical", 3), FeatureSpec("genre", "multi_hot", 2)


@pytest.mark.parametrize(
    "schema, columns, message",
    [
        ((), {}, "at least one column"),
        ((ID, ID), {"id": torch.arange(3)}, r"repeat: \['id', 'id'\]"),
        ((ID,), {"code": torch.arange(3)}, r"\['code'\].*\['id'\]"),
        ((ID, GENRE), {"genre": torch.zeros(3, 2), "id": torch.arange(3)}, "do not match the schema"),
        ((ID, GENRE), {"id": torch.arange(3), "genre": torch.zeros(4, 2)}, "'genre': 4 rows, not 3"),
        ((ID,), {"id": torch.arange(3).int()}, r"'id'.*\[N\] int64"),
        ((ID,), {"id": torch.zeros(3, 1, dtype=torch.int64)}, r"'id'.*\[N\] int64"),
        ((ID,), {"id": torch.tensor([0, 1, 3])}, r"'id': ids span 0\.\.3, allowed is 0\.\.2"),
        ((ID,), {"id": torch.tensor([0, -1, 2])}, r"'id': ids span -1\.\.2"),
        ((GENRE,), {"genre": torch.zeros(3, 3)}, r"'genre'.*\[N, 2\] float32, not \(3, 3\)"),
        ((GENRE,), {"genre": torch.zeros(3, 2, dtype=torch.float64)}, r"'genre'.*float64"),
    ],
)
def test_feature_table_names_the_column(schema, columns, message):
    with pytest.raises(ValueError, match=message):
        FeatureTable(schema, columns)


def test_feature_table_leaves_columns_out():
    table = FeatureTable((ID, GENRE), {"id": torch.arange(3), "genre": torch.zeros(3, 2)})
    assert table.num_rows == 3
    rest = table.without(("id",))
    assert rest.schema == (GENRE,) and list(rest.columns) == ["genre"]
    assert list(table.columns) == ["id", "genre"]
    with pytest.raises(ValueError, match=r"\['gender'\] are not in the table; it has \['id', 'genre'\]"):
        table.without(("gender",))


@pytest.mark.parametrize(
    "codes, message",
    [
        (np.array([0, 1], dtype=np.int32), "'gender': codes are int32"),
        (integers(0, 2), r"'gender': codes span 0\.\.2, allowed is -1\.\.1"),
        (integers(-2, 1), r"'gender': codes span -2\.\.1"),
    ],
)
def test_group_names_itself(codes, message):
    with pytest.raises(ValueError, match=message):
        Group("gender", codes, ("M", "F"))


def test_group_counts_leave_unknown_out_and_keep_empty_groups():
    group = Group("age", integers(0, -1, 2, 0, -1), ("young", "middle", "old", "oldest"))
    assert group.num_groups == 4
    assert group.counts().tolist() == [2, 0, 1, 0]
    assert Group("none", integers(), ("a",)).counts().tolist() == [0]


# --- Interactions ---


def interaction_data(**changes):
    values = {
        "name": "tiny",
        "users": id_table(2),
        "items": id_table(3),
        "user_id": integers(0, 0, 1),
        "item_id": integers(0, 2, 1),
        "rating": np.ones(3),
        "time": integers(5, 6, 7),
        "user_groups": {"gender": Group("gender", integers(0, 1), ("M", "F"))},
        "original_user_ids": np.array(["u", "v"]),
        "original_item_ids": np.array(["a", "b", "c"]),
        "item_titles": np.array(["A", "B", "C"]),
    }
    return InteractionData(**{**values, **changes})


def test_interaction_data_takes_its_sizes_from_the_features():
    data = interaction_data(time=None)
    assert (data.num_users, data.num_items) == (2, 3)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"user_id": integers(), "item_id": integers(), "rating": np.ones(0), "time": None},
            "'tiny' has no interactions",
        ),
        ({"item_id": integers(0, 1)}, "item_id has 2 rows, not 3"),
        ({"rating": np.ones(4)}, "rating has 4 rows, not 3"),
        ({"time": integers(1)}, "time has 1 rows, not 3"),
        ({"user_id": integers(0, 2, 1)}, r"user_id: ids span 0\.\.2, allowed is 0\.\.1"),
        ({"user_id": np.zeros(3, dtype=np.int32)}, "user_id: dtype is int32"),
        ({"item_id": integers(0, 1, 3)}, r"item_id: ids span 0\.\.3, allowed is 0\.\.2"),
        ({"item_id": integers(-1, 1, 2)}, r"item_id: ids span -1\.\.2"),
        ({"user_groups": {"sex": Group("gender", integers(0, 1), ("M", "F"))}}, "'gender' is filed under 'sex'"),
        ({"user_groups": {"age": Group("age", integers(0), ("all",))}}, "'age': 1 codes for 2 users"),
        ({"original_user_ids": np.array(["u"])}, "original_user_ids has 1 rows, not 2"),
        ({"original_item_ids": np.array(["a"])}, "original_item_ids has 1 rows, not 3"),
        ({"item_titles": np.array(["A"])}, "item_titles has 1 rows, not 3"),
    ],
)
def test_interaction_data_names_the_field(changes, message):
    with pytest.raises(ValueError, match=message):
        interaction_data(**changes)


def test_read_report_tells_rows_rejections_and_filters():
    report = ReadReport({"a.dat": 1234}, (Rejected("a.dat", "no rating", 2, (7, 9)),), {"no age": 1000})
    assert report.lines() == [
        "a.dat: 1,234 rows",
        "a.dat: 2 rows rejected (no rating; line 7, 9)",
        "filtered, no age: 1,000",
    ]


# --- Lists of items ---


@pytest.mark.parametrize(
    "indptr, item, message",
    [
        (np.array([0, 1], dtype=np.int32), integers(4), "indptr is int32"),
        (integers(0, 1), np.array([4.0]), "item is float64"),
        (integers(1, 1), integers(4), r"indptr spans \[1, 1\], not \[0, 1\]"),
        (integers(0, 2), integers(4), r"indptr spans \[0, 2\], not \[0, 1\]"),
        (integers(), integers(), r"indptr spans \[\], not \[0, 0\]"),
        (integers(0, 2, 1, 3), integers(4, 5, 6), "indptr decreases"),
    ],
)
def test_item_lists_name_the_array(indptr, item, message):
    with pytest.raises(ValueError, match=message):
        ItemLists(indptr, item)


@given(LISTS)
@settings(deadline=None)
def test_item_lists_lengths_and_owners_equal_a_loop(lists):
    rows = item_lists(lists)
    assert as_lists(rows) == lists
    assert rows.lengths.tolist() == [len(row) for row in lists]
    assert rows.owner.tolist() == [n for n, row in enumerate(lists) for _ in row]


@given(LISTS, st.lists(st.integers(0, 5), max_size=8))
@settings(deadline=None)
def test_take_equals_a_loop_in_any_order_and_with_repeats(lists, rows):
    rows = [row % len(lists) for row in rows]
    assert as_lists(item_lists(lists).take(integers(*rows))) == [lists[row] for row in rows]


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=4), st.lists(st.integers(0, 9), max_size=4)), min_size=1)
)
@settings(max_examples=50, deadline=None)
def test_merge_equals_a_loop(pairs):
    first, second = item_lists([a for a, _ in pairs]), item_lists([b for _, b in pairs])
    assert as_lists(first.merge(second)) == [a + b for a, b in pairs]


# --- Histories ---


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=30))
@settings(deadline=None)
def test_histories_sort_by_time_and_ties_keep_file_order(events):
    user, item, time = (integers(*column) for column in zip(*events, strict=True))
    by_time = [sorted((e for e in events if e[0] == u), key=lambda e: e[2]) for u in range(6)]
    timed = Histories.build(user, item, time, 6)
    assert as_lists(timed) == [[e[1] for e in row] for row in by_time]
    assert timed.time.tolist() == [e[2] for row in by_time for e in row]
    untimed = Histories.build(user, item, None, 6)
    assert as_lists(untimed) == [[e[1] for e in events if e[0] == u] for u in range(6)]
    assert untimed.time is None


def test_histories_need_a_time_per_item():
    with pytest.raises(ValueError, match="1 times for 2 items"):
        Histories(integers(0, 2), integers(4, 5), integers(1))
    with pytest.raises(ValueError, match="indptr"):
        Histories(integers(0, 1), integers(4, 5), integers(1, 2))


@pytest.mark.parametrize(
    "log_mix, log_weights, message",
    [
        (np.log([0.5, 0.5]), np.zeros((1, 3)), r"log_weights are \[1, 3\], allowed is \[2, E\]"),
        (np.zeros(1), np.zeros(3), r"log_weights are \[3\], allowed is \[1, E\]"),
        (np.zeros(1), np.array([[0.0, -np.inf]]), "log_weights are not all finite"),
        (np.zeros(1), np.array([[0.0, np.nan]]), "log_weights are not all finite"),
        (np.log([0.5, 0.4]), np.zeros((2, 3)), r"mixing weights sum to 0\.9"),
        (np.zeros(0), np.zeros((0, 3)), "mixing weights sum to 0"),
    ],
)
def test_history_weights_name_the_array(log_mix, log_weights, message):
    with pytest.raises(ValueError, match=message):
        HistoryWeights(log_mix, log_weights)


# --- Splits and rankings ---


def split(**changes):
    train = histories([[0, 1], [2]])
    values = {
        "train": train,
        "valid": item_lists([[2], []]),
        "test": item_lists([[3], []]),
        "histories": train,
        "test_histories": train,
        "degree": integers(1, 1, 1, 0),
        "item_groups": {"popularity": Group("popularity", integers(0, 0, 1, 1), ("head", "tail"))},
    }
    return Split(**{**values, **changes})


def test_the_tail_is_what_the_label_says_whatever_its_code():
    assert split().is_tail.tolist() == [False, False, True, True]
    turned = Group("popularity", integers(0, 0, 1, 1), ("tail", "head"))
    assert split(item_groups={"popularity": turned}).is_tail.tolist() == [True, True, False, False]


def test_split_sizes():
    assert (split().num_users, split().num_items) == (2, 4)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"valid": item_lists([[2]])}, "valid: 1 lists, not 2 users"),
        ({"test": item_lists([[3], [], []])}, "test: 3 lists, not 2 users"),
        ({"histories": histories([[0]])}, "histories: 1 lists, not 2 users"),
        ({"test_histories": histories([[0]])}, "test_histories: 1 lists, not 2 users"),
        ({"test": item_lists([[4], []])}, r"test: ids span 4\.\.4, allowed is 0\.\.3"),
        ({"histories": histories([[0], [-1]])}, r"histories: ids span -1\.\.0"),
        ({"valid": item_lists([[1], []])}, r"pairs \[\(0, 1\)\] occur twice"),
        ({"test": item_lists([[2], []])}, r"pairs \[\(0, 2\)\] occur twice"),
        ({"train": histories([[0, 0], [2]])}, r"pairs \[\(0, 0\)\] occur twice"),
        ({"train": histories([[], []])}, "train split is empty"),
        ({"degree": integers(1, 1, 0, 1)}, r"degree of items \[2, 3\]"),
        ({"item_groups": {"genre": Group("genre", integers(0), ("all",))}}, "'genre': 1 codes for 4 items"),
    ],
)
def test_split_names_the_set(changes, message):
    with pytest.raises(ValueError, match=message):
        split(**changes)


def ranking(**changes):
    values = {
        "users": integers(4, 7),
        "relevant": item_lists([[1], [2, 3]]),
        "ranks": integers(1, 2, 9),
        "topk": np.array([[1, 2], [0, -1]]),
        "scores": np.zeros((2, 2)),
        "candidates": integers(5, 1),
    }
    return Ranking(**{**values, **changes})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"relevant": item_lists([[1]])}, "one list of relevant items per user"),
        ({"ranks": integers(1, 2)}, "one rank per relevant item"),
        ({"topk": integers(1, 2)}, "topk needs one row per user"),
        ({"topk": np.zeros((3, 2))}, "topk needs one row per user"),
        ({"scores": np.zeros((2, 3))}, "scores and topk differ in shape"),
        ({"candidates": integers(5)}, "candidates needs one count per user"),
    ],
)
def test_ranking_names_the_array(changes, message):
    with pytest.raises(ValueError, match=message):
        ranking(**changes)


def test_replace_lists_keeps_the_question_and_checks_the_answer():
    before = ranking()
    after = before.replace_lists(np.array([[2], [0]]), np.ones((2, 1)), integers(3, 3, 3))
    assert after.topk.tolist() == [[2], [0]] and after.ranks.tolist() == [3, 3, 3] and after.scores.shape == (2, 1)
    assert after.relevant is before.relevant and after.users is before.users and after.candidates is before.candidates
    with pytest.raises(ValueError, match="scores and topk"):
        before.replace_lists(np.array([[2], [0]]), np.ones((2, 2)), integers(3, 3, 3))
