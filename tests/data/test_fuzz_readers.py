"""Files of twelve kinds, damaged at random: what is read is exactly what a naive reader of the same bytes finds.

Either both give the same data and the same number of rejected rows, or the reader raises DataError with one line. The
naive readers below share no code with `data.rows`: they go character by character and row by row. Closed-form cases of
the formats are in `test_datareader.py` and `test_modcloth.py`.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.readers import bookcrossing, movielens
from data.readers.bookcrossing import countries, read_bookcrossing
from data.readers.modcloth import ITEM_COLUMNS, MISSING, SIZES, read_modcloth
from data.readers.movielens import LAST_TIMESTAMP, read_movielens
from data.readers.rows import LONGEST_ROW, DataError
from data.readers.vocabulary import AGE_CODES, GENRES
from tests.support.raw_files import (
    BOOK_USERS,
    BOOKS,
    REVIEWS,
    cleaned_bytes,
    dump_bytes,
    options,
    prepared_bytes,
    release_bytes,
    write,
)

COUNTRIES = countries()

# Small files of about 30 rows each


def movielens_files() -> dict[str, bytes]:
    users = [f"{user}::{'MF'[user % 2]}::{AGE_CODES[user % 7]}::{user % 21}::{48000 + user}" for user in range(1, 31)]
    movies = [f"{10 * movie}::Film {movie} ({1960 + movie})::{GENRES[movie % 18]}|Drama" for movie in range(1, 29)]
    movies += ["7::Crying: Game, The (1992)::Drama", "8::Misérables, Les ::War|Western"]
    ratings = [f"{1 + row % 30}::{10 * (1 + row * 7 % 28)}::{1 + row % 5}::{978300000 + row}" for row in range(32)]
    files = {"users.dat": users, "movies.dat": movies, "ratings.dat": ratings}
    return {f"ml-1m/{name}": "".join(f"{row}\n" for row in rows).encode("latin-1") for name, rows in files.items()}


BOOK_ROWS = BOOKS + [
    (
        f"{book:09d}X",
        "Title;" + "\n" * (book % 4) + str(book),
        f"Author {book % 7}",
        str(1980 + book),
        f"House & {book % 3}",
    )
    for book in range(25)
]
USER_ROWS = BOOK_USERS + [
    (str(user), f"town, region, {('usa', 'spain', 'nowhere', 'Canada ')[user % 4]}", str(3 + 5 * (user - 20)))
    for user in range(20, 43)
]
RATING_ROWS = [(USER_ROWS[row * 5 % 30][0], BOOK_ROWS[row * 7 % 30][0], str(row % 11)) for row in range(30)] + [
    ("8", "unknown", "7"),
    ("99", "0000000001", "7"),
]
REVIEW_ROWS = REVIEWS + [
    (str(70 + 3 * row % 21), f"user {row * 5 % 17}", str(1 + row % 5), f"2015-{1 + row % 12:02d}-03 07:00:00+00:00", "",
     "", ("Small", "Large")[row * 5 % 17 % 2], "Small", "Dresses", f"Brand {row % 4}", str(2010 + row % 3), "0")
    for row in range(24)
]  # fmt: skip
REVIEWER_ROWS = [(str(user), str(user % 2)) for user in range(30)]
SHORT_ROWS = [(str(row * 7 % 29), str(row % 11), f"2016-05-{1 + row % 28:02d} 07:00:00.5+00:00") for row in range(30)]


@pytest.fixture(scope="module", autouse=True)
def title_vectors():
    """Replace the encoder, which has its own tests."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (bookcrossing, movielens):
            patch.setattr(module, "encode_titles", lambda titles, *_: np.zeros((len(titles), 1), dtype=np.float32))
        yield


# Naive readers


class Rejecting:
    """Naive rows of one file: those accepted so far, first come first served, and how many were not."""

    def __init__(self):
        self.kept, self.rejected = {}, 0

    def offer(self, key, row, is_good: bool) -> None:
        if is_good and key not in self.kept:
            self.kept[key] = row
        else:
            self.rejected += 1


def number(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def naive_lines(data: bytes, encoding: str = "latin-1") -> list[str]:
    """Lines without their line feed; what has none at the end is no line. What is latin-1 may be UTF-8 as well."""
    if data[:3] == b"\xef\xbb\xbf":
        data = data[3:]
    if encoding == "latin-1":
        try:
            return data.decode("utf-8").split("\n")[:-1]
        except UnicodeDecodeError:
            pass
    return data.decode(encoding, "surrogateescape").split("\n")[:-1]


def is_utf_16(data: bytes) -> bool:
    return data[:2] in (b"\xff\xfe", b"\xfe\xff")


def has_cut_off_row(data: bytes) -> bool:
    return bool(data) and not data.endswith(b"\n")


def naive_movielens(files: dict[str, bytes], keep_incomplete: bool) -> dict | None:
    """What `read_movielens` should give for these bytes; None where it should refuse them."""
    if any(map(is_utf_16, files.values())):
        return None
    users, movies, ratings = Rejecting(), Rejecting(), Rejecting()
    ages = [str(code) for code in AGE_CODES]
    occupations = [str(code) for code in range(21)]
    for line in naive_lines(files["ml-1m/users.dat"]):
        fields = line.removesuffix("\r").split("::")
        is_good = len(fields) == 5 and "\0" not in line and number(fields[0].removesuffix(".0")) is not None
        is_good = is_good and fields[1] in ("M", "F") and fields[2] in ages and fields[3] in occupations
        user = number(fields[0].removesuffix(".0"))
        users.offer(user, is_good and ("MF".index(fields[1]), ages.index(fields[2]), int(fields[3])), is_good)
    for line in naive_lines(files["ml-1m/movies.dat"]):
        fields = line.removesuffix("\r").split("::")
        is_good = len(fields) == 3 and "\0" not in line and number(fields[0].removesuffix(".0")) is not None
        genres = fields[2].split("|") if is_good else []
        is_good = is_good and all(genre in GENRES for genre in genres)
        movies.offer(
            number(fields[0].removesuffix(".0")), is_good and (fields[1], {*map(GENRES.index, genres)}), is_good
        )
    for line in naive_lines(files["ml-1m/ratings.dat"]):
        fields = line.removesuffix("\r").split("::")
        values = [number(field) for field in fields]
        is_good = len(fields) == 4 and ":::" not in line and None not in values
        is_good = is_good and 1 <= values[2] <= 5 and values[3] <= LAST_TIMESTAMP
        is_good = is_good and values[0] in users.kept and values[1] in movies.kept
        ratings.offer(tuple(values[:2]), values[2:], is_good)
    parts = {"users.dat": users, "movies.dat": movies, "ratings.dat": ratings}
    if not all(part.kept for part in parts.values()):
        return None
    cut_off = {name: has_cut_off_row(files[f"ml-1m/{name}"]) for name in parts}
    return {
        "rejected": {name: part.rejected + cut_off[name] for name, part in parts.items()},
        "rows": {name: part.rejected + len(part.kept) + cut_off[name] for name, part in parts.items()},
        "users": users.kept,
        "items": movies.kept,
        "events": [(*pair, *rest) for pair, rest in ratings.kept.items()],
    }


def read_back_movielens(data) -> dict:
    codes = zip(*(data.user_groups[name].codes.tolist() for name in ("gender", "age", "occupation")), strict=True)
    genres = [set(np.flatnonzero(row).tolist()) for row in data.items.columns["genres"].numpy()]
    return {
        "users": dict(zip(data.original_user_ids.tolist(), codes, strict=True)),
        "items": dict(
            zip(data.original_item_ids.tolist(), zip(data.item_titles.tolist(), genres, strict=True), strict=True)
        ),
        "events": [
            (int(data.original_user_ids[user]), int(data.original_item_ids[item]), int(rating), int(time))
            for user, item, rating, time in zip(data.user_id, data.item_id, data.rating, data.time, strict=True)
        ],
    }


def naive_record(lines: list[str], escape: str | None, delimiter: str) -> tuple[list[str], int] | None:
    """Read one record from the start of `lines`: its fields and the lines it takes; None if broken."""
    fields, field, state = [], "", "start"
    for taken, line in enumerate(lines[:LONGEST_ROW], start=1):
        if re.search("[\0\ud800-\udfff]", line):
            return None
        if taken == 1 and line.rstrip("\r\n") == "" and "\r" not in line.removesuffix("\n").removesuffix("\r"):
            return [], 1
        for place, char in enumerate(line):
            ends = char in "\r\n"
            if state == "quoted" and char == escape:
                state = "quoted escape"
            elif state == "quoted":
                state, field = ("quote", field) if char == '"' else (state, field + char)
            elif state == "quoted escape":
                state, field = "quoted", field + char
            elif state == "escape":
                state, field = "after line end" if ends else "plain", field + char
            elif state == "quote" and char == '"':
                state, field = "quoted", field + char
            elif ends:
                return None if line[place:].strip("\r\n") else ([*fields, field], taken)
            elif char == delimiter:
                fields, field, state = [*fields, field], "", "start"
            elif state == "quote":
                return None
            elif state == "start" and char == '"':
                state = "quoted"
            elif char == escape:
                state = "escape"
            else:
                state, field = "plain", field + char
    return None


def naive_table(
    data: bytes, names: dict[str, str], encoding: str, escape: str | None = None, delimiter: str = ";"
) -> tuple[list[dict], int] | None:
    """Rows of a file as dictionaries by column name and the number of rows rejected; None for a wrong header."""
    if is_utf_16(data):
        return None
    lines = [f"{line}\n" for line in naive_lines(data, encoding)]
    header = naive_record(lines[:1], escape, delimiter)
    if header is None or any(header[0].count(field) != 1 for field in names):
        return None
    header, rows, rejected, start = header[0], [], int(has_cut_off_row(data)), 1
    while start < len(lines):
        record = naive_record(lines[start:], escape, delimiter)
        if record is None or len(record[0]) != len(header):
            rejected, start = rejected + 1, start + 1
            continue
        fields, taken = record
        start += taken
        if fields == header:
            rejected += 1
        else:
            rows.append({name: fields[header.index(field)] for field, name in names.items()})
    return rows, rejected


def naive_bookcrossing(form, files: dict[str, bytes], keep_incomplete: bool) -> dict | None:
    """What `read_bookcrossing` should give for these bytes; None where it should refuse them."""
    names = form.books, form.users, form.ratings
    tables = [
        naive_table(files[f"BookCrossing/{file}"], fields, form.encoding, form.escape)
        for file, fields in zip(form.files, names, strict=True)
    ]
    if None in tables:
        return None
    parts = books, users, ratings = Rejecting(), Rejecting(), Rejecting()
    for part, (_, rejected) in zip(parts, tables, strict=True):
        part.rejected = rejected
    for row in tables[0][0]:
        if form.escape:
            row |= {name: naive_text(row[name]) for name in ("Title", "Author", "Publisher")}
        books.offer(row["ISBN"], row, 1 <= len(row["ISBN"]) <= 64)
    for row in tables[1][0]:
        age = "" if form.escape and row["Age"] == "NULL" else row["Age"]
        years = number(age.removesuffix(".0"))
        third = (row["Location"].split(",", 3) + [""] * 3)[2].strip().lower()
        is_good = re.fullmatch("[0-9]{1,64}", row["User-ID"]) and (age == "" or years is not None)
        years = years if years is not None and 5 <= years <= 110 else -1
        users.offer(row["User-ID"], (years, third if third in COUNTRIES else ""), bool(is_good))
    for row in tables[2][0]:
        rating = number(row["Rating"].removesuffix(".0"))
        is_good = 1 <= len(row["ISBN"]) <= 64 and re.fullmatch("[0-9]{1,64}", row["User-ID"])
        is_good = bool(is_good) and rating is not None and rating <= 10
        ratings.offer((row["User-ID"], row["ISBN"]), rating, is_good)
    if not all(part.kept for part in parts):
        return None
    complete = {user for user, (age, country) in users.kept.items() if keep_incomplete or (age >= 0 and country)}
    events = [(*pair, rating) for pair, rating in ratings.kept.items() if pair[0] in complete and pair[1] in books.kept]
    active = {user for user, _, _ in events}
    return None if not events else {
        "rejected": {file: part.rejected for file, part in zip(form.files, parts, strict=True)},
        "rows": {file: part.rejected + len(part.kept) for file, part in zip(form.files, parts, strict=True)},
        "users": regions({user: values for user, values in users.kept.items() if user in active}),
        "items": [(isbn, book["Title"]) for isbn, book in books.kept.items()],
        "authors": ranked([book["Author"] for book in books.kept.values()]),
        "publishers": ranked([book["Publisher"] for book in books.kept.values()]),
        "events": events,
    }  # fmt: skip


def naive_text(text: str) -> str:
    try:
        return "" if text == "NULL" else html.unescape(text)
    except ValueError:
        return text


def ranked(values: list[str]) -> list[int]:
    """Places among the distinct values in sorted order, those missing last."""
    distinct = sorted({*values} - {""})
    return [distinct.index(value) if value else len(distinct) for value in values]


def read_back_bookcrossing(data) -> dict:
    age = [years if years <= 110 else -1 for years in data.users.columns["age"].tolist()]
    regions = data.user_groups["country"].codes.tolist()
    events = zip(
        data.original_user_ids[data.user_id].tolist(), data.original_item_ids[data.item_id].tolist(),
        map(int, data.rating), strict=True,
    )  # fmt: skip
    assert data.time is None
    return {
        "users": dict(zip(data.original_user_ids.tolist(), zip(age, regions, strict=True), strict=True)),
        "items": list(zip(data.original_item_ids.tolist(), data.item_titles.tolist(), strict=True)),
        "authors": data.items.columns["author"].tolist(),
        "publishers": data.items.columns["publisher"].tolist(),
        "events": list(events),
    }


def regions(users: dict) -> dict:
    """Users with their country as a group's code."""

    def code(country):
        return -1 if country == "" else 0 if country in ("usa", "united states") else 1

    return {user: (age, code(country)) for user, (age, country) in users.items()}


def naive_seconds(text: str) -> int | None:
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?\+00:00", text):
        return None
    try:
        seconds = int(datetime.strptime(text[:19] + "+0000", "%Y-%m-%d %H:%M:%S%z").timestamp())
    except ValueError:
        return None
    return seconds if 0 <= seconds < int(datetime(2100, 1, 1, tzinfo=UTC).timestamp()) else None


def naive_release(files: dict[str, bytes], keep_incomplete: bool) -> dict | None:
    """What `read_modcloth` should give for these bytes of the release; None where it should refuse them."""
    names = ("item_id", "user_id", "rating", "timestamp", "user_attr", *ITEM_COLUMNS)
    table = naive_table(files["modcloth/df_modcloth.csv"], dict(zip(names, names, strict=True)), "utf-8", None, ",")
    if table is None:
        return None
    rows, rejected = table
    good, seen, sizes = [], set(), {}
    for row in rows:
        row = {name: "" if value in MISSING and name in ("user_id", "user_attr", *ITEM_COLUMNS) else value
               for name, value in row.items()}  # fmt: skip
        user, size = row["user_id"], row["user_attr"]
        item, rating = (number(row[name].removesuffix(".0")) for name in ("item_id", "rating"))
        time = naive_seconds(row["timestamp"])
        is_good = None not in (item, rating, time) and 1 <= rating <= 5 and size in ("", *SIZES)
        is_good = is_good and not (user and (user, item) in seen)
        if is_good:
            seen.add((user, item))
        if is_good and user and size:
            is_good = sizes.setdefault(user, size) == size
        if is_good:
            good.append((user, item, rating, time, size, [row[name] for name in ITEM_COLUMNS]))
        else:
            rejected += 1
    kept = [row for row in good if row[0] and row[4]]
    if not kept:
        return None
    facts = {}
    for _, item, _, _, _, values in kept:
        facts.setdefault(item, values)
    facts = dict(sorted(facts.items()))
    return {
        "rejected": {"df_modcloth.csv": rejected},
        "rows": {"df_modcloth.csv": rejected + len(good)},
        "users": {user: SIZES.index(size) for user, size in sorted({row[0]: row[4] for row in kept}.items())},
        "items": list(facts),
        "facts": [ranked(list(column)) for column in zip(*facts.values(), strict=True)],
        "events": [row[:4] for row in kept],
    }


def naive_prepared(files: dict[str, bytes], keep_incomplete: bool) -> dict | None:
    """What `read_modcloth` should give for these bytes of the prepared form; None where it should refuse them."""
    names = {"modcloth.csv": ("user_id", "item_id", "timestamp"), "user_attr.csv": ("user_id", "user_attr")}
    tables = [
        naive_table(files[f"modcloth/{file}"], dict(zip(fields, fields, strict=True)), "utf-8", None, "\t")
        for file, fields in names.items()
    ]
    if None in tables:
        return None
    rows, users = Rejecting(), Rejecting()
    for part, (_, rejected) in zip((rows, users), tables, strict=True):
        part.rejected = rejected
    for row in tables[0][0]:
        user, item = (number(row[name].removesuffix(".0")) for name in ("user_id", "item_id"))
        time = naive_seconds(row["timestamp"])
        rows.offer((user, item), (3, time), None not in (user, item, time))
    for row in tables[1][0]:
        user, size = (number(row[name].removesuffix(".0")) for name in ("user_id", "user_attr"))
        users.offer(user, size, user is not None and size in (0, 1))
    events = [(*pair, *rest) for pair, rest in rows.kept.items() if pair[0] in users.kept]
    if not events:
        return None
    active = sorted({user for user, *_ in events})
    parts = dict(zip(names, (rows, users), strict=True))
    return {
        "rejected": {file: part.rejected for file, part in parts.items()},
        "rows": {file: part.rejected + len(part.kept) for file, part in parts.items()},
        "users": {user: users.kept[user] for user in active},
        "items": sorted({item for _, item, *_ in events}),
        "facts": [],
        "events": events,
    }


def read_back_modcloth(data) -> dict:
    users, items = data.original_user_ids[data.user_id].tolist(), data.original_item_ids[data.item_id].tolist()
    size = data.user_groups["size"].codes.tolist()
    return {
        "users": dict(zip(data.original_user_ids.tolist(), size, strict=True)),
        "items": data.original_item_ids.tolist(),
        "facts": [column.tolist() for name, column in data.items.columns.items() if name != "id"],
        "events": list(zip(users, items, map(int, data.rating), data.time.tolist(), strict=True)),
    }


# Forms


class Form(NamedTuple):
    """A form of files: what reads it, small files, what a naive reader gives for bytes, and what was read."""

    reader: Callable
    files: dict[str, bytes]
    naive: Callable
    read_back: Callable


FORMS = {
    "ml": Form(read_movielens, movielens_files(), naive_movielens, read_back_movielens),
    "bx": Form(
        read_bookcrossing,
        cleaned_bytes(BOOK_ROWS, USER_ROWS, RATING_ROWS),
        partial(naive_bookcrossing, bookcrossing.CLEANED),
        read_back_bookcrossing,
    ),
    "bx-2004": Form(
        read_bookcrossing,
        dump_bytes(BOOK_ROWS, USER_ROWS, RATING_ROWS),
        partial(naive_bookcrossing, bookcrossing.DUMP_2004),
        read_back_bookcrossing,
    ),
    "modcloth": Form(read_modcloth, prepared_bytes(SHORT_ROWS, REVIEWER_ROWS), naive_prepared, read_back_modcloth),
    "modcloth-release": Form(read_modcloth, release_bytes(REVIEW_ROWS), naive_release, read_back_modcloth),
}
FILES = [(form, name) for form, (_, files, *_) in FORMS.items() for name in files]


# Damage

TOKENS = [
    b"\0", b"\n", b"\r", b"\r\n", b"::", b":", b"|", b";", b'"', b'""', b'";"', b"\\", b"'", b",", b"\t", b" ", b"-1",
    b"-", b".0", b"1e9", b"nan", b"NULL", b"99999999999999999999", b"9" * 5000, b"&#" + b"9" * 5000 + b";", b"&amp;",
    b"\xef\xbb\xbf", b"\xff\xfe", b"\xe9", "é€𝄞".encode(), "Titel".encode("utf-16"), b"\xed\xa0\x80",
    b"\x1a", b"\x85", "\u2028".encode(),
]  # fmt: skip
PLACE = st.floats(0, 1, exclude_max=True)
BYTE_EDITS = st.one_of(
    st.tuples(st.just("flip"), PLACE, st.integers(0, 255)),
    st.tuples(st.just("delete"), PLACE, st.integers(1, 60)),
    st.tuples(st.just("insert"), PLACE, st.sampled_from(TOKENS)),
    st.tuples(st.just("insert"), PLACE, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("insert"), PLACE, st.sampled_from([b'"', b"\0", b";", b"\n"])),
    st.tuples(st.just("truncate"), PLACE, st.none()),
)
LINE_EDITS = st.one_of(
    st.tuples(st.just("duplicate"), PLACE, st.integers(1, 3)),
    st.tuples(st.just("swap"), PLACE, PLACE),
    st.tuples(st.just("drop"), PLACE, st.integers(1, 3)),
    st.tuples(st.just("strip quotes"), st.just(0.0), st.sampled_from([b'"', b'"1'])),
    st.tuples(st.just("shuffle"), st.just(0.0), st.randoms(use_true_random=False)),
    st.tuples(st.just("windows"), st.just(0.0), st.none()),
    st.tuples(st.just("mark"), st.just(0.0), st.none()),
    st.tuples(st.just("header"), PLACE, st.sampled_from(TOKENS)),
    st.tuples(st.just("concatenate"), st.just(0.0), st.sampled_from(["itself", "another"])),
    st.tuples(st.just("recode"), PLACE, st.sampled_from(["utf-8", "utf-16", "cp1252"])),
)
DAMAGE = st.lists(st.one_of(BYTE_EDITS, BYTE_EDITS, LINE_EDITS), min_size=1, max_size=3)
DAMAGE |= st.sampled_from([[("truncate", 0.0, None)], [("delete", 0.0, 10_000)]])


def damaged(data: bytes, edit: tuple, another: bytes) -> bytes:
    """The bytes after one edit."""
    kind, fraction, what = edit
    place = int(fraction * len(data))
    lines = data.splitlines(keepends=True)
    line = int(fraction * len(lines))
    if kind == "flip":
        return data[:place] + bytes([what]) + data[place + 1 :]
    if kind == "delete":
        return data[:place] + data[place + what :]
    if kind == "insert":
        return data[:place] + what + data[place:]
    if kind == "header":
        place = int(fraction * len(lines[0])) if lines else 0
        return data[:place] + what + data[place:]
    if kind == "truncate":
        return data[:place]
    if kind == "duplicate":
        return b"".join([*lines[:line], *lines[line : line + 1] * what, *lines[line:]])
    if kind == "drop":
        return b"".join([*lines[:line], *lines[line + what :]])
    if kind == "swap" and lines:
        other = int(what * len(lines))
        lines[line], lines[other] = lines[other], lines[line]
    if kind == "strip quotes":
        lines = lines[:1] + [line.rstrip(b"\r\n").strip(what) + b"\n" for line in lines[1:]]
    if kind == "shuffle":
        first = what.random() < 0.8  # mostly the header stays where it is
        rows = lines[first:]
        what.shuffle(rows)
        lines[first:] = rows
    if kind == "windows":
        return data.replace(b"\n", b"\r\n")
    if kind == "mark":
        return b"\xef\xbb\xbf" + data
    if kind == "concatenate":
        return data + (data if what == "itself" else another)
    if kind == "recode":
        lines[line:] = [line.decode("latin-1").encode(what, "replace") for line in lines[line:]]
    return b"".join(lines)


def fuzz(folder: Path, form: str, name: str, examples: int, derandomize: bool) -> Counter:
    """Damage one file `examples` times; count how often data and how often an error came of it."""
    reader, files, naive, read_back = FORMS[form]
    another = next((content for other, content in files.items() if other != name), b"")
    outcomes = Counter()
    write(folder, files)

    @settings(
        deadline=timedelta(seconds=20),
        max_examples=examples,
        derandomize=derandomize,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(DAMAGE, st.booleans())
    def check(edits, keep):
        content = files[name]
        for edit in edits:
            content = damaged(content, edit, another)
        write(folder, {name: content})
        expected = naive({**files, name: content}, keep)
        try:
            data = reader(options(folder, max_bad_rows=1.0, keep_incomplete_users=keep))
        except DataError as error:
            outcomes["error"] += 1
            assert expected is None, error
            assert str(error) and "\n" not in str(error)
            return
        outcomes["data"] += 1
        assert expected is not None
        rejected = Counter()
        for entry in data.report.rejected:
            rejected[entry.file] += entry.count
        assert data.report.rows == expected.pop("rows")
        assert {file: rejected[file] for file in data.report.rows} == expected.pop("rejected")
        found = read_back(data)
        assert found == expected
        assert list(found["users"]) == list(expected["users"])

    check()
    return outcomes


KINDS = pytest.mark.parametrize(("form", "name"), FILES, ids=[f"{form}-{Path(name).stem}" for form, name in FILES])


@KINDS
def test_damaged_files_give_the_data_of_a_naive_reader_or_one_line(tmp_path, form, name):
    outcomes = fuzz(tmp_path, form, name, examples=40, derandomize=True)
    assert outcomes["data"] and outcomes["error"]


@pytest.mark.slow
@KINDS
def test_many_damaged_files(tmp_path, form, name):
    outcomes = fuzz(tmp_path, form, name, examples=2000, derandomize=False)
    print(f"\n{form} {name}: {outcomes['data']} gave data, {outcomes['error']} an error")
    assert outcomes.total() >= 2000
    assert min(outcomes["data"], outcomes["error"]) > 20
