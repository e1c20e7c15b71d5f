"""ModCloth in both of its forms: exact values, every reject and filter, the counts of the real files, a run."""

from __future__ import annotations

import numpy as np
import pytest
from absl.testing import flagsaver

import main
from data.readers.modcloth import WITHOUT_RATINGS, read_modcloth
from data.readers.rows import DataError
from data.structs import InteractionData, Rejected
from tests.support.raw_files import (
    PREPARED_ROWS,
    PREPARED_USERS,
    RELEASE_HEADER,
    REVIEWS,
    options,
    prepared_bytes,
    release_bytes,
    write,
)
from tests.support.real_data import real_data
from tests.support.runs import FLAGS, TINY, run_main

NO_TIME = "timestamp is not a time of 1970-2099, as 2010-01-21 08:00:00+00:00"
FIRST, FRACTION, LATE, LAST = 1264060800, 1561583713, 1561650306, 1561816516
ROW = dict(zip(RELEASE_HEADER.split(","), REVIEWS[0], strict=True))


def events(data: InteractionData) -> list[tuple]:
    users, items = data.original_user_ids[data.user_id], data.original_item_ids[data.item_id]
    return list(zip(users.tolist(), items.tolist(), data.rating.tolist(), data.time.tolist(), strict=True))


def review(**changes: str) -> tuple[str, ...]:
    """A row of the release that differs from the first one."""
    return tuple((ROW | changes).values())


def test_the_release_is_read_exactly(tmp_path):
    data = read_modcloth(options(write(tmp_path, release_bytes())))
    assert events(data) == [
        ("Robyn", 7443, 4, FIRST),
        ("Alex", 7443, 2, FIRST + 6 * 86_400),
        ("Bern", 154797, 5, FRACTION),
        ('O"Neil, amy', 71607, 3, LATE),
        ("Bern", 7443, 1, 1561705200),
        ("Robyn", 154797, 3, LAST),
    ]
    assert data.original_user_ids.tolist() == ["Alex", "Bern", 'O"Neil, amy', "Robyn"], "sorted"
    assert data.original_item_ids.tolist() == [7443, 71607, 154797], "by number, not by text"
    assert [(s.name, s.kind, s.size) for s in data.users.schema] == [
        ("id", "categorical", 4),
        ("size", "categorical", 2),
    ]
    assert data.user_groups["size"].labels == ("Small", "Large"), "the advantaged group is first"
    assert data.user_groups["size"].codes.tolist() == data.users.columns["size"].tolist() == [1, 1, 0, 0]
    assert {name: (spec.size, data.items.columns[name].tolist()) for name, spec in zip(
        data.items.columns, data.items.schema, strict=True
    )} == {
        "id": (3, [0, 1, 2]),
        "category": (3, [0, 1, 2]),
        "brand": (2, [1, 0, 1]),
        "year": (3, [0, 1, 2]),
        "model_size": (2, [0, 1, 1]),
    }  # fmt: skip
    assert data.item_titles.tolist() == ["7443 (Dresses)", "71607 (Tops)", "154797"]
    assert data.report.rows == {"df_modcloth.csv": 8} and data.report.rejected == () and data.report.notes == ()
    assert data.report.filtered == {
        "ratings by users without a size": 1,
        "ratings of a known size without a user": 1,
    }


def test_the_prepared_form_is_read_exactly(tmp_path):
    data = read_modcloth(options(write(tmp_path, prepared_bytes())))
    assert events(data) == [(2, 0, 3, FIRST), (0, 2, 3, FRACTION), (1, 1, 3, LATE), (2, 2, 3, LAST)]
    assert data.user_groups["size"].codes.tolist() == [1, 0, 0]
    assert list(data.users.columns) == ["id", "size"] and list(data.items.columns) == ["id"]
    assert data.item_titles.tolist() == ["0", "1", "2"]
    assert data.report.rows == {"modcloth.csv": 4, "user_attr.csv": 3} and data.report.rejected == ()
    assert data.report.filtered == {"rows of users without a size": 0, "users without a row": 0}
    assert data.report.lines()[-1] == WITHOUT_RATINGS


def test_both_forms_number_users_and_items_alike(tmp_path):
    release = read_modcloth(options(write(tmp_path / "release", release_bytes())))
    prepared = read_modcloth(options(write(tmp_path / "prepared", prepared_bytes())))
    is_kept = release.rating >= 3
    for name in ("user_id", "item_id"):
        places = np.unique(getattr(release, name)[is_kept], return_inverse=True)[1]
        assert places.tolist() == getattr(prepared, name).tolist()
    assert release.time[is_kept].tolist() == prepared.time.tolist()
    sizes = [data.user_groups["size"].codes[data.user_id].tolist() for data in (release, prepared)]
    assert np.array(sizes[0])[is_kept].tolist() == sizes[1]


def test_the_release_is_preferred(tmp_path):
    write(tmp_path, prepared_bytes())
    assert "modcloth.csv" in read_modcloth(options(tmp_path)).report.rows
    write(tmp_path, release_bytes())
    assert "df_modcloth.csv" in read_modcloth(options(tmp_path)).report.rows


@pytest.mark.parametrize("missing", ["df_modcloth.csv", "user_attr.csv"])
def test_missing_files_say_what_to_get_and_where(tmp_path, missing):
    files = release_bytes() if missing == "df_modcloth.csv" else prepared_bytes()
    write(tmp_path, {name: content for name, content in files.items() if missing not in name})
    with pytest.raises(DataError, match=r"is not in .*/modcloth: put df_modcloth\.csv \(.*Wan et al\.") as caught:
        read_modcloth(options(tmp_path))
    assert all(part in str(caught.value) for part in (missing, "--dataset_dir", "--dataset=synthetic"))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (review(item_id="x"), "item_id is not a whole number"),
        (review(item_id=""), "item_id is not a whole number"),
        (review(rating="0", user_id="new"), "rating is outside 1-5"),
        (review(rating="6", user_id="new"), "rating is outside 1-5"),
        (review(rating="3.5", user_id="new"), "rating is not a whole number"),
        (review(user_attr="Medium", user_id="new"), "unknown user_attr"),
        (review(user_attr="small", user_id="new"), "unknown user_attr"),
        (review(user_attr="Large", item_id="8"), "another user_attr than the user's first"),
        (review(rating="5"), "repeats a user's rating"),
        (review()[:-1], "not 12 fields"),
        (tuple(RELEASE_HEADER.split(",")), "repeats the header"),
        *(
            (review(timestamp=time, user_id="new"), NO_TIME)
            for time in (
                "", "2010-01-21", "2010-01-21 08:00:00", "2010-01-21 08:00:00+01:00", "2010-02-30 08:00:00+00:00",
                "2010-01-21 24:00:00+00:00", "2010-01-21 08:00:60+00:00", "1969-12-31 23:59:59+00:00", "1264060800",
                "2100-01-01 00:00:00+00:00",
            )
        ),
    ],
)  # fmt: skip
def test_a_bad_row_of_the_release_is_rejected_alone(tmp_path, bad, reason):
    plain = read_modcloth(options(write(tmp_path / "plain", release_bytes())))
    data = read_modcloth(options(write(tmp_path / "bad", release_bytes([*REVIEWS, bad])), max_bad_rows=0.5))
    assert data.report.rejected == (Rejected("df_modcloth.csv", reason, 1, (len(REVIEWS) + 2,)),)
    assert events(data) == events(plain) and data.report.filtered == plain.report.filtered


@pytest.mark.parametrize(
    ("file", "bad", "reason"),
    [
        ("modcloth.csv", "3\t0", "not 3 fields"),
        ("modcloth.csv", "x\t0\t2010-01-21 08:00:00+00:00", "user_id is not a whole number"),
        ("modcloth.csv", "1\t-1\t2010-01-21 08:00:00+00:00", "item_id is not a whole number"),
        ("modcloth.csv", "2\t0\t2011-01-21 08:00:00+00:00", "repeats a user's row of an item"),
        ("user_attr.csv", "2\t1", "repeats a user"),
        ("user_attr.csv", "9\t2", "user_attr is outside 0-1"),
        ("user_attr.csv", "9\t", "user_attr is not a whole number"),
    ],
)
def test_a_bad_row_of_the_prepared_form_is_rejected_alone(tmp_path, file, bad, reason):
    plain = read_modcloth(options(write(tmp_path / "plain", prepared_bytes())))
    files = prepared_bytes()
    files[f"modcloth/{file}"] += f"{bad}\n".encode()
    data = read_modcloth(options(write(tmp_path / "bad", files), max_bad_rows=0.5))
    assert [(entry.file, entry.reason, entry.count) for entry in data.report.rejected] == [(file, reason, 1)]
    assert events(data) == events(plain) and data.report.filtered == plain.report.filtered


@pytest.mark.parametrize("column", ["user_id", "user_attr"])
@pytest.mark.parametrize("word", ["", "NA", "nan", "NULL", "#N/A"])
def test_what_pandas_reads_as_missing_is_missing(tmp_path, column, word):
    # twice the same item: rows without a user repeat nobody's
    rows = [
        review(**{"user_id": "new", column: word, "item_id": item})
        for item in ("5", "5" if column == "user_id" else "6")
    ]
    data = read_modcloth(options(write(tmp_path, release_bytes([*REVIEWS, *rows]))))
    assert sum(data.report.filtered.values()) == 4 and "new" not in data.original_user_ids
    assert not data.report.rejected and 5 not in data.original_item_ids


def test_a_user_called_none_is_somebody(tmp_path):
    data = read_modcloth(options(write(tmp_path, release_bytes([*REVIEWS, review(user_id="None")]))))
    assert "None" in data.original_user_ids


def test_the_first_row_of_an_item_holds(tmp_path):
    rows = [*REVIEWS, review(user_id="new", category="Tops", brand="Late", year="2000")]
    data = read_modcloth(options(write(tmp_path, release_bytes(rows))))
    assert data.item_titles[0] == "7443 (Dresses)" and data.items.schema[2].size == 2


def test_users_of_one_file_alone_are_left_out(tmp_path):
    rows, users = [*PREPARED_ROWS, ("7", "0", PREPARED_ROWS[0][2])], [*PREPARED_USERS, ("8", "1"), ("9", "0")]
    data = read_modcloth(options(write(tmp_path, prepared_bytes(rows, users))))
    assert data.report.filtered == {"rows of users without a size": 1, "users without a row": 2}
    assert data.original_user_ids.tolist() == [0, 1, 2] and len(data.user_id) == 4


@pytest.mark.parametrize(
    "files", [release_bytes([review(user_attr=""), review(user_id="")]), prepared_bytes(users=[("9", "1")])]
)
def test_filters_that_leave_no_row_are_an_error(tmp_path, files):
    with pytest.raises(DataError, match=r"modcloth\.csv: no row is left .*size: [14].*complete files"):
        read_modcloth(options(write(tmp_path, files)))


def test_bad_rows_beyond_the_limit_are_an_error(tmp_path):
    files = release_bytes([*REVIEWS, review(rating="9")])
    with pytest.raises(DataError, match=r"df_modcloth\.csv: 1 of 9 rows .*outside 1-5: 1, line 10.*--max_bad_rows"):
        read_modcloth(options(write(tmp_path, files)))


@pytest.mark.slow
def test_a_run_and_recommendations_from_it(tmp_path, capsys):
    names = ["Ann", "Bo", "Cy", "Di", "Ed", "Flo", "Gil", "Hal"]
    times = [f"2015-01-{day:02d} 08:00:00+00:00" for day in range(1, 6)]
    sizes = ["Small", "Large"] * 4
    rows = [
        review(user_id=name, user_attr=size, item_id=str(10 + (3 * number + day) % 12), timestamp=time)
        for day, time in enumerate(times)
        for number, (name, size) in enumerate(zip(names, sizes, strict=True))
    ]
    write(tmp_path, release_bytes(rows))
    unset = {name: FLAGS[name].default for name in TINY if name.startswith("synthetic_")}
    place = {"dataset_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
    result = run_main(tmp_path, **{**unset, **place, "dataset": "modcloth", "warm_threshold": 0.5, "epochs": 1})
    assert "test/ndcg@10/gap/size" in result["metrics"]
    capsys.readouterr()
    unset = {name: FLAGS[name].default for name in TINY}
    with flagsaver.flagsaver(**unset, mode="recommend", checkpoint=str(tmp_path / "run"), users=["Cy"]):
        main.main(["main.py"])
    shown = capsys.readouterr().out
    assert "Cy" in shown and "(Dresses)" in shown


# The real files


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder = real_data("modcloth")
    return read_modcloth(options(folder))


def test_the_real_prepared_files_have_the_counts_of_the_authors(real):
    if real.report.notes == ():
        pytest.skip("the release is there, not the prepared form")
    assert (len(real.user_id), real.num_users, real.num_items) == (83_147, 37_142, 1_014)
    assert real.user_groups["size"].counts().tolist() == [28_374, 8_768]
    rows = np.bincount(real.user_groups["size"].codes[real.user_id])
    assert rows.tolist() == [66_663, 16_484]
    assert (np.diff(real.time) >= 0).all() and not real.report.rejected and not sum(real.report.filtered.values())
    assert len(np.unique(real.user_id * real.num_items + real.item_id)) == len(real.user_id)
    assert real.original_user_ids.tolist() == list(range(real.num_users))


def test_the_real_release_has_the_counts_of_the_sheet(real):
    if real.report.notes:
        pytest.skip("the prepared form is there, not the release")
    assert real.report.filtered == {
        "ratings by users without a size": 99_893 - 91_526, "ratings of a known size without a user": 1,
    }  # fmt: skip
    liked = real.rating >= 3
    assert (liked.sum(), len(np.unique(real.user_id[liked])), len(np.unique(real.item_id[liked]))) == (
        83_147,
        37_142,
        1_014,
    )
