"""Raw files in both BookCrossing dialects and MovieLens: exact values, every reject and filter."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pooch
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.datareader import READERS
from data.readers import bookcrossing, download, movielens
from data.readers.bookcrossing import read_bookcrossing
from data.readers.movielens import read_movielens
from data.readers.options import SyntheticOptions
from data.readers.rows import DataError, read_csv_rows, read_integer_rows, read_text_rows
from data.readers.synthetic import read_synthetic
from data.readers.vocabulary import GENRES
from data.structs import InteractionData, Rejected
from tests.support.movielens import write_movielens
from tests.support.raw_files import (
    BOOK_RATINGS,
    BOOK_USERS,
    BOOKS,
    MOVIELENS,
    RATINGS,
    USERS,
    cleaned_bytes,
    dump_bytes,
    movielens_bytes,
    options,
    write,
)


@pytest.fixture(scope="module", autouse=True)
def title_vectors():
    """Replace the encoder, which has its own tests: a title's vector is its length and whether it is there."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (bookcrossing, movielens):
            patch.setattr(module, "encode_titles", _title_vectors)
        yield


def _title_vectors(titles, encoder, cache_dir, may_write):
    return np.array([[len(title), bool(title)] for title in titles], dtype=np.float32)


def events(data: InteractionData) -> list[tuple]:
    times = [None] * len(data.user_id) if data.time is None else data.time.tolist()
    users, items = data.original_user_ids[data.user_id], data.original_item_ids[data.item_id]
    return list(zip(users.tolist(), items.tolist(), data.rating.tolist(), times, strict=True))


def column(table, name: str) -> list:
    return table.columns[name].tolist()


def digest(data: InteractionData) -> str:
    parts = [events(data), data.original_user_ids.tolist(), data.original_item_ids.tolist(), data.item_titles.tolist()]
    parts += [(table.schema, [c.tolist() for c in table.columns.values()]) for table in (data.users, data.items)]
    parts += [(group.name, group.codes.tolist(), group.labels) for group in data.user_groups.values()]
    return hashlib.sha256(repr([*parts, data.report]).encode()).hexdigest()


# MovieLens


def test_movielens_is_read_exactly(tmp_path):
    data = read_movielens(options(write(tmp_path, movielens_bytes())))
    assert events(data) == [(1, 10, 5, 978300760), (5, 9, 1, 978302109), (1, 7, 3, 978301968), (2, 10, 4, 0)]
    assert data.user_id.tolist() == [0, 2, 0, 1] and data.item_id.tolist() == [0, 3, 1, 0]
    assert [(s.name, s.kind, s.size) for s in data.users.schema] == [
        ("id", "categorical", 3),
        ("gender", "categorical", 2),
        ("age", "categorical", 7),
        ("occupation", "categorical", 21),
    ]
    assert column(data.users, "gender") == [1, 0, 0]
    assert column(data.users, "age") == [0, 6, 2]
    assert column(data.users, "occupation") == [10, 16, 0]
    assert [(s.name, s.kind, s.size) for s in data.items.schema] == [
        ("id", "categorical", 4),
        ("year", "categorical", 3),
        ("genres", "multi_hot", 18),
        ("title", "dense", 2),
    ]
    assert column(data.items, "year") == [1, 0, 2, 1], "1992, 1995, then missing"
    assert [[GENRES[code] for code in np.flatnonzero(row)] for row in data.items.columns["genres"].numpy()] == [
        ["Animation", "Children's", "Comedy"],
        ["Drama"],
        ["War", "Western"],
        ["Crime", "Thriller"],
    ]
    plain = ["Toy Story", "Crying: Game, The", "Misérables, Les ", "Seven (Se7en)"]
    assert data.items.columns["title"][:, 0].tolist() == [len(title) for title in plain]
    assert data.item_titles[1] == "Crying: Game, The (1992)"
    for name in ("gender", "age", "occupation"):
        assert data.user_groups[name].codes.tolist() == column(data.users, name)
    assert data.user_groups["age"].labels == ("under 18", "18-24", "25-34", "35-44", "45-49", "50-55", "56+")
    assert data.user_groups["occupation"].labels[10] == "K-12 student"
    assert data.report.rows == {"users.dat": 3, "movies.dat": 4, "ratings.dat": 4}
    assert data.report.rejected == () and data.report.filtered == {}


def test_genres_are_in_the_official_order():
    assert "|".join(GENRES) == (
        "Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|Musical|Mystery|"
        "Romance|Sci-Fi|Thriller|War|Western"
    )


# What editors, spreadsheets and unpackers do to a text file without changing what it says, in an order that they bear
REWRITES = (
    lambda data: data if _is_utf_8(data) else data.decode("latin-1").encode(),
    lambda data: data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"),
    lambda data: b"\xef\xbb\xbf" + data,
)


def _is_utf_8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("reader", [read_movielens, read_bookcrossing])
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_rewritten_files_hold_the_same_data(tmp_path_factory, reader, data):
    # a quoted line end is data, which other line ends change
    books = [book for book in BOOKS if "\n" not in book[1]]
    ratings = [rating for rating in BOOK_RATINGS if rating[1] != "0000000001"]
    forms = {
        read_movielens: [movielens_bytes()],
        read_bookcrossing: [cleaned_bytes(books=books, ratings=ratings), dump_bytes(books=books, ratings=ratings)],
    }
    files = data.draw(st.sampled_from(forms[reader]))
    plain = reader(options(write(tmp_path_factory.mktemp("plain"), files)))
    changed = dict(files)
    for name in files:
        for rewrite in REWRITES:
            if data.draw(st.booleans()):
                changed[name] = rewrite(changed[name])
    found = reader(options(write(tmp_path_factory.mktemp("rewritten"), changed)))
    assert digest(dataclasses.replace(found, report=plain.report)) == digest(plain)
    assert (found.report.rows, found.report.rejected) == (plain.report.rows, plain.report.rejected)


def test_the_report_says_which_encoding_was_found(tmp_path):
    files = movielens_bytes()
    data = read_movielens(options(write(tmp_path / "latin", files)))
    assert data.report.encodings == {"movies.dat": "latin-1"}
    assert "movies.dat: 4 rows, read as latin-1" in data.report.lines()
    files["ml-1m/movies.dat"] = files["ml-1m/movies.dat"].decode("latin-1").encode()
    again = read_movielens(options(write(tmp_path / "utf", files)))
    assert again.item_titles.tolist() == data.item_titles.tolist() and "Misérables, Les " in data.item_titles
    assert "movies.dat: 4 rows, read as UTF-8" in again.report.lines()
    plain = read_movielens(
        options(
            write(
                tmp_path / "ascii",
                movielens_bytes(
                    {"movies.dat": [*MOVIELENS["movies.dat"][:2], "9::Seven (Se7en) (1995)::Crime|Thriller"]}
                ),
            )
        )
    )
    assert plain.report.encodings == {}


@pytest.mark.parametrize("name", [*movielens_bytes(), *cleaned_bytes(), *dump_bytes()])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_is_named(tmp_path, name, encoding):
    is_movielens = name.startswith("ml-1m")
    files = movielens_bytes() if is_movielens else cleaned_bytes() if "BX-" not in name else dump_bytes()
    text = files[name].decode("utf-8" if name in cleaned_bytes() else "latin-1")
    files[name] = text.encode(encoding) if encoding == "utf-16" else ("\ufeff" + text).encode(encoding)
    with pytest.raises(DataError, match=rf"{Path(name).name}: the file is UTF-16; save it as UTF-8"):
        (read_movielens if is_movielens else read_bookcrossing)(options(write(tmp_path, files)))


def test_synthetic_data_survive_the_movielens_format(tmp_path):
    settings_ = options(tmp_path, synthetic=SyntheticOptions(20, 30, 150))
    made = read_synthetic(settings_)
    write_movielens(made, tmp_path)
    data = read_movielens(settings_)
    assert events(data) == events(made)
    assert data.item_titles.tolist() == made.item_titles.tolist()
    for name in ("year", "genres"):
        assert column(data.items, name) == column(made.items, name)
    assert data.users.schema == made.users.schema
    assert READERS["synthetic"] is read_synthetic


@pytest.mark.parametrize(
    ("file", "bad", "reason"),
    [
        ("users.dat", "6::M::25::0", "not 5 fields"),
        ("users.dat", "6::M::25::0::1::2", "not 5 fields"),
        ("users.dat", "", "not 5 fields"),
        ("users.dat", "six::M::25::0::1", "user id is not a whole number"),
        ("users.dat", "99999999999999999999::M::25::0::1", "user id is not a whole number"),
        ("users.dat", "6::X::25::0::1", "unknown gender"),
        ("users.dat", "6::M::26::0::1", "unknown age"),
        ("users.dat", "6::M::25::21::1", "unknown occupation"),
        ("users.dat", "6::M::25::-1::1", "unknown occupation"),
        ("users.dat", "1::M::25::0::1", "repeats a user"),
        ("users.dat", "6::M::25::0::\x001", "NUL or undecodable bytes"),
        ("movies.dat", "11::A::B (1990)::Drama", "not 3 fields"),
        ("movies.dat", "11::A (1990)::Drama|Dramma", "unknown genre"),
        ("movies.dat", "11::A (1990)::", "unknown genre"),
        ("movies.dat", "11:::A (1990)::Drama", None),
        ("movies.dat", "7::A (1990)::Drama", "repeats a movie"),
        ("ratings.dat", "1::8::5", "not 4 fields"),
        ("ratings.dat", "1:::8::5::1", "a field is not a whole number"),
        ("ratings.dat", "1::8::x::1", "a field is not a whole number"),
        ("ratings.dat", "1::8::5::-1", "a field is not a whole number"),
        ("ratings.dat", "1::8::5::nan", "a field is not a whole number"),
        ("ratings.dat", "1::8::::1", "a field is not a whole number"),
        ("ratings.dat", "::8::5::1", "a field is not a whole number"),
        ("ratings.dat", "1::8::5::", "a field is not a whole number"),
        ("ratings.dat", "1::8::5::\r", "a field is not a whole number"),
        ("ratings.dat", "1::8::5::99999999999999999999999", "a field is not a whole number"),
        ("ratings.dat", "1::8::5::999999999999999999", "timestamp is after the year 2100"),
        ("ratings.dat", "1::8::0::1", "rating is outside 1-5"),
        ("ratings.dat", "1::8::6::1", "rating is outside 1-5"),
        ("ratings.dat", "3::8::5::1", "unknown user"),
        ("ratings.dat", "1::11::5::1", "unknown movie"),
        ("ratings.dat", "1::10::4::1", "repeats a user's rating of a movie"),
    ],
)
def test_a_bad_movielens_row_is_rejected_alone(tmp_path, file, bad, reason):
    rows = MOVIELENS[file]
    changes = {file: [*rows[:-1], bad, rows[-1]]}
    data = read_movielens(options(write(tmp_path, movielens_bytes(changes)), max_bad_rows=0.5))
    expected = () if reason is None else (Rejected(file, reason, 1, (len(rows),)),)
    assert data.report.rejected == expected
    assert data.report.rows[file] == len(rows) + 1
    assert len(events(data)) == 4 and data.num_users == 3 and data.num_items == 4 + (reason is None)


def test_ratings_of_rejected_users_are_rejected(tmp_path):
    changes = {"users.dat": ["1::?::1::10::48067", *USERS[1:]]}
    data = read_movielens(options(write(tmp_path, movielens_bytes(changes)), max_bad_rows=0.5))
    assert data.report.rejected[1] == Rejected("ratings.dat", "unknown user", 2, (1, 3))
    assert events(data) == [(5, 9, 1, 978302109), (2, 10, 4, 0)]


@pytest.mark.parametrize("file", MOVIELENS)
def test_a_cut_off_last_row_is_rejected(tmp_path, file):
    files = movielens_bytes()
    name = f"ml-1m/{file}"
    files[name] = files[name][:-1]
    data = read_movielens(options(write(tmp_path, files), max_bad_rows=0.5))
    reason = "no line end, so the row may be cut off"
    assert data.report.rejected[0] == Rejected(file, reason, 1, (len(MOVIELENS[file]),))


def test_the_report_names_the_first_five_lines(tmp_path):
    changes = {"ratings.dat": [*RATINGS, *(f"1::8::9::{time}" for time in range(7))]}
    data = read_movielens(options(write(tmp_path, movielens_bytes(changes)), max_bad_rows=0.7))
    assert data.report.rejected == (Rejected("ratings.dat", "rating is outside 1-5", 7, (5, 6, 7, 8, 9)),)
    assert "ratings.dat: 7 rows rejected (rating is outside 1-5; line 5, 6, 7, 8, 9)" in data.report.lines()


def test_the_threshold_is_a_fraction_of_one_files_rows(tmp_path):
    changes = {"ratings.dat": [*RATINGS, "1::8::9::1"]}
    folder = write(tmp_path, movielens_bytes(changes))
    assert len(read_movielens(options(folder, max_bad_rows=0.2)).user_id) == 4
    with pytest.raises(DataError) as error:
        read_movielens(options(folder, max_bad_rows=0.199))
    message = str(error.value)
    for part in ("ratings.dat", "1 of 5 rows", "20.000%", "19.900%", "outside 1-5: 1, line 5", "--max_bad_rows"):
        assert part in message
    with pytest.raises(ValueError, match=r"max_bad_rows is 1\.5"):
        options(folder, max_bad_rows=1.5)


@pytest.mark.parametrize("file", MOVIELENS)
@pytest.mark.parametrize("content", [b"", b"\n", b"\x7fELF\x00\x01\xff\xfe" * 50, b"bad\n" * 10])
def test_a_file_without_a_good_row_is_an_error_at_any_threshold(tmp_path, file, content):
    folder = write(tmp_path, movielens_bytes() | {f"ml-1m/{file}": content})
    with pytest.raises(DataError, match=file):
        read_movielens(options(folder, max_bad_rows=1.0))


def test_a_missing_or_unreadable_file_is_an_error_and_nothing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(pooch, "retrieve", lambda *a, **k: pytest.fail("downloaded over existing files"))
    folder = write(tmp_path, movielens_bytes())
    (folder / "ml-1m/movies.dat").unlink()
    with pytest.raises(DataError, match=r"movies\.dat.*No such file"):
        read_movielens(options(folder))
    (folder / "ml-1m/movies.dat").mkdir()
    with pytest.raises(DataError, match=r"movies\.dat"):
        read_movielens(options(folder))


# Download


@pytest.mark.parametrize(
    "failure", [ConnectionError("no route"), ValueError("hash differs"), zipfile.BadZipFile("cut")]
)
def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch, failure):
    def fail(*arguments, **keywords):
        raise failure

    monkeypatch.setattr(pooch, "retrieve", fail)
    with pytest.raises(DataError) as error:
        read_movielens(options(tmp_path / "datasets"))
    message = str(error.value)
    for part in (download.MOVIELENS_URL, "ml-1m/users.dat", "ml-1m/ratings.dat", "--dataset=synthetic", str(failure)):
        assert part in message
    assert list((tmp_path / "datasets").iterdir()) == [], "nothing half-done is left"


@pytest.mark.parametrize("held_back", ["may_download", "may_write"])
@pytest.mark.parametrize("exists", [False, True])
def test_without_leave_nothing_is_downloaded_and_no_folder_made(tmp_path, monkeypatch, held_back, exists):
    monkeypatch.setattr(pooch, "retrieve", lambda *a, **k: pytest.fail("downloaded"))
    folder = tmp_path / "datasets"
    if exists:
        folder.mkdir()
    with pytest.raises(DataError, match=r"datasets/ml-1m is missing; pass the folder .* as --dataset_dir"):
        read_movielens(options(folder, **{held_back: False}))
    assert folder.exists() == exists and not (tmp_path / "cache").exists()


def test_a_download_is_unpacked_into_place(tmp_path, monkeypatch):
    def retrieve(url, known_hash, fname, path, processor, progressbar):
        assert known_hash == "md5:c4d9eecfca2ab87c1945afe126590906" and progressbar
        archive = Path(path) / fname
        with zipfile.ZipFile(archive, "w") as handle:
            for name, data in movielens_bytes().items():
                handle.writestr(name, data)
        return processor(str(archive), "download", None)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert len(read_movielens(options(tmp_path)).user_id) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ml-1m"]


# BookCrossing


@pytest.mark.parametrize("files", [cleaned_bytes(), dump_bytes()], ids=["cleaned", "dump"])
def test_bookcrossing_is_read_exactly(tmp_path, files):
    data = read_bookcrossing(options(write(tmp_path, files)))
    assert events(data) == [
        ("12", "0449003787", 0, None),
        ("8", "0002005018", 10, None),
        ("8", "0000000001", 7, None),
        ("10", "0000000001", 3, None),
    ]
    assert data.user_id.tolist() == [2, 0, 0, 1] and data.time is None
    assert data.original_user_ids.tolist() == ["8", "10", "12"], "in the order of the users' file"
    assert data.original_item_ids.tolist() == [book[0] for book in BOOKS]
    assert data.item_titles.tolist() == [book[1] for book in BOOKS]
    assert [(s.name, s.kind, s.size) for s in data.users.schema] == [
        ("id", "categorical", 3),
        ("country", "categorical", 3),
        ("age", "categorical", 112),
    ]
    assert column(data.users, "country") == [0, 1, 2]
    assert column(data.users, "age") == [34, 24, 50]
    assert [(s.name, s.kind, s.size) for s in data.items.schema] == [
        ("author", "categorical", 5),
        ("year", "categorical", 3),
        ("publisher", "categorical", 4),
        ("title", "dense", 2),
    ]
    assert column(data.items, "author") == [1, 2, 4, 3, 0]
    assert column(data.items, "year") == [1, 0, 2, 1, 2]
    assert column(data.items, "publisher") == [2, 1, 3, 2, 0]
    assert data.items.columns["title"][4].tolist() == [0, 0]
    assert data.user_groups["age"].codes.tolist() == [1, 0, 3]
    assert data.user_groups["age"].labels == ("<=24", "25-34", "35-49", ">=50")
    assert data.user_groups["country"].codes.tolist() == [1, 1, 0]
    assert data.user_groups["country"].labels == ("USA", "other")
    assert list(data.report.rows.values()) == [5, 7, 9]
    assert data.report.rejected == ()
    assert data.report.filtered == {
        "users without an age": 1,
        "users aged outside 5-110": 1,
        "users of known age without a known country": 1,
        "ratings of an unknown book": 2,
        "ratings of an unknown user": 1,
        "ratings of users without a known age and country": 2,
        "users without a rating that is kept": 1,
    }


def test_incomplete_users_can_be_kept_as_unknown(tmp_path):
    data = read_bookcrossing(options(write(tmp_path, cleaned_bytes()), keep_incomplete_users=True))
    assert data.original_user_ids.tolist() == ["8", "9", "10", "11", "12"]
    assert column(data.users, "age") == [34, 111, 24, 40, 50]
    assert column(data.users, "country") == [0, 2, 1, 3, 2]
    assert data.user_groups["age"].codes.tolist() == [1, -1, 0, 2, 3]
    assert data.user_groups["country"].codes.tolist() == [1, 0, 1, -1, 0]
    assert len(data.user_id) == 6
    assert data.report.filtered["users without a rating that is kept"] == 2
    assert "users without an age" not in data.report.filtered


def test_ages_at_the_edges(tmp_path):
    ages = ["4", "5", "24", "25", "34", "35", "49", "50.0", "110", "111", "0"]
    users = [(str(user), "a, b, united states", age) for user, age in enumerate(ages)]
    ratings = [(user, "0002005018", "1") for user, _, _ in users]
    data = read_bookcrossing(options(write(tmp_path, cleaned_bytes(users=users, ratings=ratings))))
    assert column(data.users, "age") == [5, 24, 25, 34, 35, 49, 50, 110]
    assert data.user_groups["age"].codes.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert data.user_groups["country"].counts().tolist() == [8, 0]
    assert data.report.filtered["users aged outside 5-110"] == 3


@pytest.mark.parametrize(
    ("file", "bad", "reason"),
    [
        ("Books.csv", "1;a;b;2000", "not 5 fields"),
        ("Books.csv", "1;a;b;2000;c;d", "not 5 fields"),
        ("Books.csv", "", "not 5 fields"),
        ("Books.csv", ";a;b;2000;c", "ISBN is not 1-64 characters"),
        ("Books.csv", f"{'1' * 65};a;b;2000;c", "ISBN is not 1-64 characters"),
        ("Books.csv", f"1;{'a' * 200_000};b;2000;c", "broken quoting"),
        ("Books.csv", "0002005018;a;b;2000;c", "repeats an ISBN"),
        ("Books.csv", "ISBN;Title;Author;Year;Publisher", "repeats the header"),
        ("Books.csv", '1;"a;b;2000;c', "broken quoting"),
        ("Books.csv", '1;"a"x;b;2000;c', "broken quoting"),
        ("Books.csv", "1;\udcff;b;2000;c", "NUL or undecodable bytes"),
        ("Books.csv", "1;\x00;b;2000;c", "NUL or undecodable bytes"),
        ("Books.csv", "1;a\rb;c;2000;d", "broken quoting"),
        ("Users.csv", "20;a, b, canada;young", "Age is not a whole number"),
        ("Users.csv", "20;a, b, canada;-3", "Age is not a whole number"),
        ("Users.csv", "20;a, b, canada;99999999999999999999", "Age is not a whole number"),
        ("Users.csv", "x;a, b, canada;30", "User-ID is not a whole number"),
        ("Users.csv", "8;a, b, canada;30", "repeats a user"),
        ("Ratings.csv", "12;0002005018;", "Rating is not a whole number"),
        ("Ratings.csv", "12;0002005018;nan", "Rating is not a whole number"),
        ("Ratings.csv", "12;0002005018;11", "Rating is outside 0-10"),
        ("Ratings.csv", "User-ID;ISBN;Rating", "repeats the header"),
        ("Ratings.csv", "12;0449003787;9", "repeats a user's rating of a book"),
    ],
)
def test_a_bad_bookcrossing_row_is_rejected_alone(tmp_path, file, bad, reason):
    plain = read_bookcrossing(options(write(tmp_path / "plain", cleaned_bytes())))
    files = cleaned_bytes()
    lines = files[f"BookCrossing/{file}"].split(b"\n")
    lines.insert(3, bad.encode("utf-8", "surrogateescape"))
    files[f"BookCrossing/{file}"] = b"\n".join(lines)
    data = read_bookcrossing(options(write(tmp_path / "bad", files), max_bad_rows=0.5))
    assert data.report.rejected == (Rejected(file, reason, 1, (4,)),)
    assert data.report.rows[file] == plain.report.rows[file] + 1
    assert data.report.filtered == plain.report.filtered
    assert events(data) == events(plain) and data.item_titles.tolist() == plain.item_titles.tolist()


def test_line_numbers_count_lines_within_quotes(tmp_path):
    books = [*BOOKS, ("0000000003", "a", "b", "2000", "c")]
    files = cleaned_bytes(books=[*books, BOOKS[0]])
    data = read_bookcrossing(options(write(tmp_path, files), max_bad_rows=0.5))
    assert data.report.rejected == (Rejected("Books.csv", "repeats an ISBN", 1, (9,)),)


def test_the_nasty_rows_of_the_2004_dump(tmp_path):
    path = tmp_path / "BX-Books.csv"
    path.write_bytes(
        b'"ISBN";"Title";"Image"\r\n'
        b'"1";"\\\\O\\\\\\" Is for Outlaw\\"";"i"\r\n'
        b'"2";"Ends \\\\";"i"\r\n'
        b'"3";"semi;colon &amp; \xe9";"i"\r\n'
        b'"4";"Readers)\\";Michael Teitelbaum";"i"\r\n'
        b'"5";"two\r\nlines";"i"\r\n'
        b'"6";NULL;"i"\r\n'
        b'"7";"doubled ""quotes""";""\r\n'
        b'"8";"Readers)\\";"Michael";"i"\r\n'
        b'"9";"fine";"i"\r\n'
    )
    rows = read_csv_rows(path, {"ISBN": "isbn", "Title": "title"}, "latin-1", "\\")
    assert dict(zip(rows["isbn"], rows["title"], strict=True)) == {
        "1": '\\O\\" Is for Outlaw"',
        "2": "Ends \\",
        "3": "semi;colon &amp; é",
        "4": 'Readers)";Michael Teitelbaum',
        "5": "two\r\nlines",
        "6": "NULL",
        "7": 'doubled "quotes"',
        "9": "fine",
    }
    assert rows.rejected == [Rejected("BX-Books.csv", "broken quoting", 1, (10,))]
    assert rows.num_rows == 9


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (b"ISBN;Title;Author;Year", "Year"),
        (b"ISBN;Title;Author;Year;Year;Publisher", "Year;Year"),
        (b"1;2;3;4;5", "1;2;3;4;5"),
        (b'"ISBN;Title;Author;Year;Publisher', "nothing"),
        (b"\x00ISBN;Title;Author;Year;Publisher", "nothing|0002005018"),
    ],
)
def test_a_wrong_header_is_an_error_at_any_threshold(tmp_path, header, found):
    files = cleaned_bytes()
    files["BookCrossing/Books.csv"] = (
        header + files["BookCrossing/Books.csv"][len("ISBN;Title;Author;Year;Publisher") :]
    )
    with pytest.raises(DataError, match=rf"Books\.csv: the first line is .*({found})"):
        read_bookcrossing(options(write(tmp_path, files), max_bad_rows=1.0))


def test_column_order_and_byte_order_mark_do_not_matter(tmp_path):
    files = cleaned_bytes()
    rows = [";".join((rating, isbn, user)) for user, isbn, rating in [("User-ID", "ISBN", "Rating"), *BOOK_RATINGS]]
    files["BookCrossing/Ratings.csv"] = ("\ufeff" + "\n".join(rows) + "\n").encode("utf-8")
    plain = read_bookcrossing(options(write(tmp_path / "plain", cleaned_bytes())))
    assert digest(read_bookcrossing(options(write(tmp_path / "other", files)))) == digest(plain)


@pytest.mark.parametrize("content", [b"", b"\n", b"\x7fELF\x00\xff" * 50, "ISBN;Title\n".encode("utf-16")])
@pytest.mark.parametrize("file", ["Books.csv", "Users.csv", "Ratings.csv"])
def test_a_bookcrossing_file_of_garbage_is_an_error(tmp_path, file, content):
    folder = write(tmp_path, cleaned_bytes() | {f"BookCrossing/{file}": content})
    with pytest.raises(DataError, match=file):
        read_bookcrossing(options(folder, max_bad_rows=1.0))


def test_a_header_alone_is_an_error(tmp_path):
    folder = write(tmp_path, cleaned_bytes(ratings=[]))
    with pytest.raises(DataError, match=r"Ratings\.csv: the file has no rows"):
        read_bookcrossing(options(folder))


def test_filters_that_leave_no_rating_are_an_error(tmp_path):
    folder = write(tmp_path, cleaned_bytes(ratings=[("9", "0002005018", "5")]))
    with pytest.raises(DataError, match=r"no rating is left .*country: 1.*--keep_incomplete_users"):
        read_bookcrossing(options(folder))


def test_where_bookcrossing_is_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"Books\.csv.*BX-Books\.csv.*--dataset=synthetic"):
        read_bookcrossing(options(tmp_path))
    dump = {name.replace("BookCrossing/", "BookCrossing-2004/"): data for name, data in dump_bytes().items()}
    write(tmp_path, dump)
    assert "BX-Books.csv" in read_bookcrossing(options(tmp_path)).report.rows
    assert "BX-Books.csv" in read_bookcrossing(options(tmp_path / "BookCrossing-2004")).report.rows
    write(tmp_path, cleaned_bytes())
    assert "Books.csv" in read_bookcrossing(options(tmp_path)).report.rows
    assert "Books.csv" in read_bookcrossing(options(tmp_path / "BookCrossing")).report.rows


PLAIN_TEXT = st.text(st.characters(max_codepoint=255, exclude_characters="\x00"), max_size=12)
BOOK_TEXT = st.one_of(PLAIN_TEXT, st.text(st.sampled_from('";\\\n\r& a'), max_size=8))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(BOOK_TEXT, BOOK_TEXT, BOOK_TEXT), min_size=1, max_size=5))
def test_any_text_survives_both_dialects(texts):
    books = [(str(n), title, author, "2000", publisher) for n, (title, author, publisher) in enumerate(texts)]
    books = [tuple("" if value == "NULL" else value for value in book) for book in books]
    books.append(("last", "no UTF-8: \xe9.", "", "2000", ""))
    ratings = [("8", "0", "5")]
    with tempfile.TemporaryDirectory() as folder:
        cleaned = read_bookcrossing(options(write(Path(folder) / "a", cleaned_bytes(books, ratings=ratings))))
        dump = read_bookcrossing(options(write(Path(folder) / "b", dump_bytes(books, ratings=ratings))))
    assert cleaned.item_titles.tolist() == dump.item_titles.tolist() == [book[1] for book in books]
    for name in ("author", "publisher"):
        assert column(cleaned.items, name) == column(dump.items, name)


# Twins


def naive_integer_rows(data: bytes, width: int) -> dict[int, tuple[int, ...]]:
    rows = {}
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        line = line.removesuffix(b"\r")
        fields = line.split(b"::")
        is_digits = all(0 < len(field) <= 18 and set(field) <= set(b"0123456789") for field in fields)
        if len(fields) == width and b":::" not in line and is_digits:
            rows[number] = tuple(int(field) for field in fields)
    return rows


@settings(deadline=None, max_examples=80)
@given(
    st.lists(
        st.one_of(
            st.from_regex(rb"\A[0-9]{1,19}::[0-9]{1,19}\r?\n\Z"),
            st.lists(st.sampled_from([b":", b"::", b"7", b"\n", b"\r", b"\x00", b"-", b"/", b"\xff"])).map(b"".join),
        ),
        min_size=1,
    )
)
def test_integers_match_the_naive_reader(pieces):
    data = b"".join(pieces) or b"\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ratings.dat"
        path.write_bytes(data)
        rows = read_integer_rows(path, ("left", "right"))
    values = zip(rows["left"].tolist(), rows["right"].tolist(), strict=True)
    assert dict(zip(rows.lines.tolist(), values, strict=True)) == naive_integer_rows(data, 2)
    assert rows.num_rows == data.count(b"\n") + (not data.endswith(b"\n"))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.sampled_from([":", "::", "a", "é", "\r", "\x00", ""])).map("".join), min_size=1))
def test_text_rows_account_for_every_line(lines):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "users.dat"
        path.write_bytes("".join(f"{line}\n" for line in lines).encode("latin-1"))
        rows = read_text_rows(path, ("left", "right"))
    good = [line for line in lines if line.count("::") == 1 and "\x00" not in line]
    assert [f"{left}::{right}" for left, right in zip(rows["left"], rows["right"], strict=True)] == [
        line.removesuffix("\r") for line in good
    ]
    assert rows.num_rows == len(lines)


def test_ids_do_not_depend_on_the_hash_seed(tmp_path):
    write(tmp_path, movielens_bytes() | cleaned_bytes())
    here = [digest(reader(options(tmp_path))) for reader in (read_movielens, read_bookcrossing)]
    script = (
        "from tests.data.test_datareader import *; from tests.data.test_datareader import _title_vectors\n"
        "movielens.encode_titles = bookcrossing.encode_titles = _title_vectors\n"
        f"print(*(digest(reader(options({str(tmp_path)!r}))) for reader in (read_movielens, read_bookcrossing)))"
    )
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    root = Path(movielens.__file__).parents[2]
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
    there = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    assert there.stdout.split() == here


def test_users_none_of_whom_names_a_country_are_kept_as_unknown(tmp_path):
    users = [(name, "lisbon, portugal", age) for name, _, age in BOOK_USERS]
    write(tmp_path, cleaned_bytes(users=users))
    data = read_bookcrossing(dataclasses.replace(options(tmp_path), keep_incomplete_users=True))
    assert (data.user_groups["country"].codes == -1).all()
