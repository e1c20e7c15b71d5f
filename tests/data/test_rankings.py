"""Rankings of other programs: what is read, what is refused, and the lists that come of them, against plain loops."""

from __future__ import annotations

import dataclasses
import gzip
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.protocols.base import Task
from data.rankings import RankedLists, read_rankings
from data.structs import ItemLists
from model.modes.score_lists import found, match_rankings
from tests.support.trec import write_trec

USERS = np.array(["7", "007", "70", "8"], dtype=object)
ITEMS = np.array(["0012", "12", "NA", 'a,"b"', "x y", "true"], dtype=object)


@pytest.fixture(scope="module")
def books(tiny_data):
    """Four users and six items with ids that only text tells apart."""
    users = dataclasses.replace(
        tiny_data.users, columns={name: column[:4] for name, column in tiny_data.users.columns.items()}
    )
    items = dataclasses.replace(
        tiny_data.items, columns={name: column[:6] for name, column in tiny_data.items.columns.items()}
    )
    return dataclasses.replace(
        tiny_data, name="books", users=users, items=items, user_id=np.arange(4), item_id=np.arange(4),
        rating=np.ones(4, np.float32), time=None, user_groups={}, original_user_ids=USERS, original_item_ids=ITEMS,
        item_titles=ITEMS,
    )  # fmt: skip


@pytest.fixture
def plain(books):
    """The same with whole numbers as ids."""
    return dataclasses.replace(books, original_user_ids=np.arange(1, 5), original_item_ids=np.arange(10, 16))


def frame_of(data, rows):
    user, item, rank, score = (np.array(column) for column in zip(*rows, strict=True))
    ids = {"user": np.asarray(data.original_user_ids)[user], "item": np.asarray(data.original_item_ids)[item]}
    return pd.DataFrame({**ids, "rank": rank, "score": score})


def lists_of(given: RankedLists):
    return [given.lists[user].tolist() for user in range(len(given.lists.indptr) - 1)]


ROWS = [(0, 1, 2, 0.5), (1, 3, 1, 9.0), (0, 0, 1, 0.7), (3, 2, 40, -1.0), (3, 5, 7, 2.0), (0, 2, 9, 0.1)]
LISTS = [[0, 1, 2], [3], [], [5, 2]]


def test_the_three_forms_give_the_same_lists_and_ids_are_text(books, tmp_path):
    frame = frame_of(books, ROWS)
    frame.assign(title="é\nü").to_csv(tmp_path / "a.csv", index=False)
    frame.drop(columns="rank").to_csv(tmp_path / "b.csv", index=False, encoding="utf-8-sig")
    frame.drop(columns="score").astype({"user": "category"}).to_parquet(tmp_path / "c.parquet")
    for name in ("a.csv", "b.csv", "c.parquet"):
        given = read_rankings(tmp_path / name, books)
        assert lists_of(given) == LISTS
        if given.scores is not None:
            assert given.scores.tolist() == [0.7, 0.5, 0.1, 9.0, 2.0, -1.0]
    assert given.scores is None


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "run", ""])
@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "trec"])
def test_the_content_tells_the_form(plain, tmp_path, form, suffix, zipped):
    """Every form in a file of every name, gzip or not; only a TREC run may not be called a table."""
    if suffix == "parquet" != form or (form == "trec" and suffix in ("csv", "tsv")):
        return
    frame, content = frame_of(plain, ROWS), io.BytesIO()
    if form == "parquet":
        frame.to_parquet(content)
    elif form == "trec":
        write_trec(content, frame)
    else:
        frame.to_csv(content, index=False, sep={"csv": ",", "tsv": "\t"}[form], encoding="utf-8-sig")
    name = "rankings" + f".{suffix}" * bool(suffix) + ".gz" * zipped
    (tmp_path / name).write_bytes(gzip.compress(content.getvalue()) if zipped else content.getvalue())
    given = read_rankings(tmp_path / name, plain)
    assert lists_of(given) == LISTS
    assert given.note == ""


@pytest.mark.parametrize("ranks", [[0] * 6, range(6), [3, 2, 1, 0, 5, 4], [1.5, 2, 1, 4, 5, 6]])
def test_the_score_decides_in_a_trec_run_whatever_the_ranks(plain, tmp_path, ranks):
    frame = frame_of(plain, ROWS).assign(rank=list(ranks))
    write_trec(tmp_path / "run.txt", frame)
    assert lists_of(read_rankings(tmp_path / "run.txt", plain)) == LISTS


def test_equal_scores_of_a_trec_run_go_by_rank_then_by_item(plain, tmp_path):
    rows = [(0, 0, 3, 1.0), (0, 1, 1, 1.0), (0, 2, 1, 1.0), (0, 3, 9, 2.0)]
    write_trec(tmp_path / "run.txt", frame_of(plain, rows))
    assert lists_of(read_rankings(tmp_path / "run.txt", plain))[0] == [3, 1, 2, 0]


def test_the_note_says_which_of_rank_and_score_counts(plain, tmp_path):
    rows = [(0, 1, 1, 0.5), (0, 0, 2, 0.7), (1, 2, 1, 3.0), (1, 3, 2, 3.0), (2, 0, 5, 1.0)]
    frame = frame_of(plain, rows)
    frame.to_csv(tmp_path / "a.csv", index=False)
    given = read_rankings(tmp_path / "a.csv", plain)
    assert lists_of(given)[0] == [1, 0] and given.note == "rank and score disagree in 1 list: the rank counts"
    write_trec(tmp_path / "a.run", frame)
    given = read_rankings(tmp_path / "a.run", plain)
    assert lists_of(given)[0] == [0, 1]
    assert given.note == "rank and score disagree in 1 list: the score counts, as in trec_eval"
    frame.drop(columns="rank").to_csv(tmp_path / "b.csv", index=False)
    assert read_rankings(tmp_path / "b.csv", plain).note == ""


def test_trec_runs_are_read_with_any_blanks(plain, tmp_path):
    write_trec(tmp_path / "run.txt", frame_of(plain, ROWS))
    text = (tmp_path / "run.txt").read_text().replace("\t", "  \t ", 5)
    (tmp_path / "run.txt").write_text("\n" + text)
    assert lists_of(read_rankings(tmp_path / "run.txt", plain)) == LISTS


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.string(), pa.large_string(), "dictionary", "view"])
def test_parquet_columns_of_many_types_match(plain, tmp_path, kind):
    table = pa.Table.from_pandas(frame_of(plain, ROWS))
    for name in ("user", "item"):
        place, column = table.column_names.index(name), table[name]
        if kind == "dictionary":
            # two chunks, whose dictionaries differ
            chunks = [part.cast(pa.string()).dictionary_encode() for part in (column[:2], column[2:])]
            column = pa.chunked_array([chunk for part in chunks for chunk in part.chunks])
        else:
            column = column.cast(pa.string_view() if kind == "view" else kind)
        table = table.set_column(place, name, column)
    pq.write_table(table, tmp_path / "a.parquet")
    assert lists_of(read_rankings(tmp_path / "a.parquet", plain)) == LISTS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "none"),
        ("user,item,rank\n", "no rows"),
        ("user,item\n1,10\n", "'user', 'item'"),
        ("user\titem\tplace\n1\t10\t1\n", "rename"),
        ("user,item,rank\n1,10,1\n".encode("utf-16"), "is UTF-16"),
        (b"\x1f\x8b and no more", "cannot be read as gzip"),
        ("user,item,rank,rank\n1,10,1,1\n", "once each"),
        ("user,item,rank\n1,10,1\n9,10,1\n01,10,1\n", "'9' (row 2), '01' (row 3)"),
        ("user,item,rank\n1,10,1\n2,,1\n", "'' (row 2)"),
        ("user,item,rank\n1,10,1\n1,11,1\n", "user 1, item 11 (row 2)"),
        ("user,item,score\n1,10,1\n2,10,3\n1,10,3\n", "user 1, item 10 (row 3)"),
        ("user,item,rank\n1,10,0\n1,11,1\n", "count places from 1"),
        ("user,item,rank\n1,10,1.5\n", "'1.5' (row 1)"),
        ("user,item,rank\n1,10,first\n1,11,2\n", "'first' (row 1)"),
        ("user,item,score\n1,10,nan\n1,11,inf\n1,12,\n", "'nan' (row 1), 'inf' (row 2), '' (row 3)"),
        ("user,item,rank,score\n1,10,1,nan\n", "score that is no finite number"),
        ("user,item,rank\n1,10,1\n1,11\n", "Expected 3 columns, got 2"),
        (b"user,item,rank\n\xff,10,1\n", "UTF"),
    ],
)
def test_bad_csv_files_are_refused_with_rows_and_remedy(plain, tmp_path, text, words):
    path = tmp_path / "bad.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"bad.csv") as caught:
        read_rankings(path, plain)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        ("1 Q0 10 1 0.5 me\n1 Q0 11 2\n", "1 row with more or less than 6 fields, such as 1 (row 2)"),
        ("1 Q0 10 1 0.5 me and you and all the others\n", "more or less than 6 fields"),
        ("user,rank\n1,1\n", "user Q0 item rank score tag"),
        ("1 Q0 10 first 0.5 me\n", "'first' (row 1)"),
        (b"\xff\xfe1\x00 \x00", "is UTF-16"),
        ("1 Q0 10 1 0.5 me\n1 Q0 11 2 x me\n", "'x' (row 2)"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_trec_runs_are_refused(plain, tmp_path, text, words):
    path = tmp_path / "bad.run"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"bad.run") as caught:
        read_rankings(path, plain)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_of_several_lists_is_read(plain, tmp_path):
    frame = frame_of(plain, ROWS)
    other = frame.assign(rank=100 - frame["rank"])
    both = pd.concat([frame.assign(list="a"), other.assign(list="b"), other.assign(list=None)])
    both.to_parquet(tmp_path / "a.parquet")
    both.to_csv(tmp_path / "a.csv", index=False)
    for name in ("a.parquet", "a.csv"):
        given = read_rankings(tmp_path / name, plain, lambda path, names: min(names))
        assert lists_of(given) == LISTS and given.name == "a"
        assert lists_of(read_rankings(tmp_path / name, plain, lambda path, names: max(names))) != LISTS
        with pytest.raises(ValueError, match="holds 2 lists, such as a, b; choose one, or rename the column list"):
            read_rankings(tmp_path / name, plain)
    frame.assign(list=[[1]] * len(frame)).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"column list holds list.*or rename it"):
        read_rankings(tmp_path / "b.parquet", plain)


def test_bad_parquet_files_are_refused(plain, tmp_path):
    path = tmp_path / "bad.parquet"
    frame = frame_of(plain, ROWS)
    for wrong, words in (
        (frame.astype({"user": float}), "column user holds double"),
        (frame.assign(item=[10, None, 11, 12, 13, 14]).astype({"item": "Int64"}), "None (row 2)"),
        (frame.assign(rank=[[1]] * 6), "rank"),
        (frame.assign(score=[1.0, None, 2, 3, 4, 5]), "(row 2)"),
    ):
        wrong.to_parquet(path)
        with pytest.raises(ValueError, match=r"bad.parquet") as caught:
            read_rankings(path, plain)
        assert words in str(caught.value)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        read_rankings(path, plain)
    for absent in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(ValueError, match="is no file"):
            read_rankings(absent, plain)


@st.composite
def cases(draw):
    """Rows of a file in any order, with ties, and a task: known items in lists, users without a list or a question."""
    num_users, num_items = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    pairs = st.tuples(st.integers(0, num_users - 1), st.integers(0, num_items - 1))
    rows = draw(st.lists(pairs, unique=True, min_size=1, max_size=30))
    by_rank, has_scores = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    ranks = draw(st.permutations(range(1, 2 * len(rows) + 1)))[: len(rows)]
    scores = draw(st.lists(st.integers(-2, 2), min_size=len(rows), max_size=len(rows)))
    excluded = set(draw(st.lists(pairs, max_size=10)))
    relevant = set(draw(st.lists(pairs, max_size=8))) - excluded
    return num_users, num_items, rows, ranks if by_rank else None, scores if has_scores else None, excluded, relevant


def csr(pairs, num_users):
    pairs = sorted(pairs)
    lengths = np.bincount([user for user, _ in pairs], minlength=num_users) if pairs else np.zeros(num_users, int)
    return ItemLists(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), np.array([i for _, i in pairs], int))


def naive(num_users, rows, ranks, scores, excluded):
    """Each user's closed-up list of (item, score), by loops."""
    lists = {}
    for user in range(num_users):
        own = [n for n, (owner, _) in enumerate(rows) if owner == user]
        key = (lambda n: ranks[n]) if ranks is not None else (lambda n: (-scores[n], rows[n][1]))
        kept = [n for n in sorted(own, key=key) if rows[n] not in excluded]
        lists[user] = [(rows[n][1], None if scores is None else scores[n]) for n in kept]
    return lists


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(1, 6))
def test_lists_equal_a_plain_loop(tiny_data, tmp_path_factory, case, top):
    num_users, num_items, rows, ranks, scores, excluded, relevant = case
    path = Path(tmp_path_factory.getbasetemp()) / "hypothesis.parquet"
    columns = {"user": [f"0{user}" for user, _ in rows], "item": [10 + item for _, item in rows]}
    columns |= {name: values for name, values in (("rank", ranks), ("score", scores)) if values is not None}
    pq.write_table(pa.table(columns), path)

    class Data:
        name, original_user_ids, original_item_ids = "data", np.array([f"0{u}" for u in range(num_users)]), None

    Data.num_users, Data.num_items, Data.original_item_ids = num_users, num_items, np.arange(10, 10 + num_items)
    task = Task("test", csr(relevant, num_users), csr(excluded, num_users), None)
    users = np.flatnonzero(task.relevant.lengths > 0)
    ranking, counts = match_rankings(read_rankings(path, Data), task, users, num_items, top, 3)
    lists = naive(num_users, rows, ranks, scores, excluded)

    width = min(top, num_items)
    falls = all(
        scores is None or all(a[1] >= b[1] for a, b in zip(lists[user], lists[user][1:], strict=False))
        for user in users
    )
    expected_ranks, cut, short, candidates = [], 0, 0, []
    for row, user in enumerate(users):
        items = [item for item, _ in lists[user]]
        padding = max(0, width - len(items))
        assert ranking.topk[row].tolist() == items[:width] + [-1] * padding
        known = scores is not None and falls
        relevance = [score if known else -place for place, (_, score) in enumerate(lists[user], 1)][:width]
        assert ranking.scores[row].tolist() == relevance + [-np.inf] * padding
        wanted = sorted(item for owner, item in relevant if owner == user)
        expected_ranks += [items.index(item) + 1 if item in items else num_items + 1 for item in wanted]
        candidates.append(num_items - sum(owner == user for owner, _ in excluded))
        cut += len(items) > width
        short += any(owner == user for owner, _ in rows) and len(items) < min(3, candidates[-1])
    assert ranking.ranks.tolist() == expected_ranks
    assert ranking.candidates.tolist() == candidates
    listed, asked = {user for user, _ in rows}, set(users.tolist())
    assert counts["users_asked"] == len(asked)
    assert counts["users_without_list"] == len(asked - listed)
    assert counts["users_ignored"] == len(listed - asked)
    assert counts["entries_left_out"] == sum(pair in excluded and pair[0] in asked for pair in rows)
    assert (counts["lists_cut"], counts["lists_short"]) == (cut, short)
    assert counts["relevant_not_listed"] == expected_ranks.count(num_items + 1)
    assert (counts["lists_scored_by_rank"] > 0) == (not falls)
    assert len(found(counts, num_items, width, 3)) == sum(value > 0 for value in counts.values()) - (len(asked) > 0)
