"""Raw files -> InteractionData, for MovieLens-1M and BookCrossing; READERS names every data set."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pycountry
import torch

from data.cache import cached
from data.download import download_movielens
from data.options import ReadOptions
from data.rows import (
    DataError,
    FileRows,
    is_repeated,
    matches,
    parse_integers,
    read_csv_rows,
    read_integer_rows,
    read_text_rows,
)
from data.structs import FeatureSpec, FeatureTable, Group, InteractionData, ReadReport
from data.synthetic import read_synthetic
from data.titles import encode_titles
from data.vocabulary import AGE_CODES, AGES, GENDERS, GENRES, OCCUPATIONS

YEAR_PATTERN = r"^(?P<title>.*)\((?P<year>(?:18|19|20)[0-9]{2})\)\s*$"
LAST_TIMESTAMP = 4_102_444_800  # seconds, the year 2100
LONGEST_ID = 64  # characters

YOUNGEST, OLDEST = 5, 110  # years
UNKNOWN_AGE = OLDEST + 1
AGE_BINS = (25, 35, 50)
AGE_BIN_LABELS = ("<=24", "25-34", "35-49", ">=50")
COUNTRIES = (*(country.name.lower() for country in pycountry.countries), "usa")
USA_NAMES = ("usa", "united states")
FIRST_YEAR, LAST_YEAR = 1400, 2030


@dataclass(frozen=True)
class BookCrossingForm:
    """One dialect of BookCrossing: file names, encoding, and header fields -> column names."""

    files: tuple[str, str, str]
    encoding: str
    escape: str | None
    books: dict[str, str]
    ratings: dict[str, str]
    users: dict[str, str]

    def is_in(self, folder: Path) -> bool:
        return all((folder / file).is_file() for file in self.files)


USER_FIELDS = {"User-ID": "User-ID", "Location": "Location", "Age": "Age"}
CLEANED = BookCrossingForm(
    files=("Books.csv", "Users.csv", "Ratings.csv"),
    encoding="utf-8-sig",
    escape=None,
    books={"ISBN": "ISBN", "Title": "Title", "Author": "Author", "Year": "Year", "Publisher": "Publisher"},
    ratings={"User-ID": "User-ID", "ISBN": "ISBN", "Rating": "Rating"},
    users=USER_FIELDS,
)
DUMP_2004 = BookCrossingForm(
    files=("BX-Books.csv", "BX-Users.csv", "BX-Book-Ratings.csv"),
    encoding="latin-1",
    escape="\\",
    books={
        "ISBN": "ISBN",
        "Book-Title": "Title",
        "Book-Author": "Author",
        "Year-Of-Publication": "Year",
        "Publisher": "Publisher",
    },
    ratings={"User-ID": "User-ID", "ISBN": "ISBN", "Book-Rating": "Rating"},
    users=USER_FIELDS,
)


def read_movielens(options: ReadOptions) -> InteractionData:
    """Read MovieLens-1M from `dataset_dir/ml-1m`, downloading it when that folder is missing.

    Every user and movie of the files is kept, rated or not, and every rating is an interaction. Raises DataError.
    """
    users_file, movies_file, ratings_file = _movielens_files(options)
    if not users_file.parent.exists():
        download_movielens(options.dataset_dir)
    users = read_text_rows(users_file, ("user id", "gender", "age", "occupation", "zip code"))
    groups = _movielens_groups(users)
    users.check(options.max_bad_rows)
    movies = read_text_rows(movies_file, ("movie id", "title", "genres"))
    genres = _movielens_genres(movies)
    movies.check(options.max_bad_rows)
    ratings = read_integer_rows(ratings_file, ("user id", "movie id", "rating", "timestamp"))
    user_id, item_id = _movielens_ratings(ratings, users["user id"], movies["movie id"])
    ratings.check(options.max_bad_rows)

    parts = pd.Series(movies["title"], dtype=object).str.extract(YEAR_PATTERN)
    has_year = parts["year"].notna().to_numpy()
    year, num_years = _categories(parts["year"].to_numpy(dtype=object), has_year)
    plain_titles = np.where(has_year, parts["title"].str.rstrip(), movies["title"]).astype(object)
    return InteractionData(
        name="ml",
        users=_table(
            ("id", np.arange(len(users)), len(users)),
            *((group.name, group.codes, group.num_groups) for group in groups),
        ),
        items=_table(
            ("id", np.arange(len(movies)), len(movies)),
            ("year", year, num_years),
            ("genres", genres, len(GENRES)),
            ("title", encode_titles(plain_titles, options.title_encoder, options.cache_dir), None),
        ),
        user_id=user_id,
        item_id=item_id,
        rating=ratings["rating"].astype(np.float32),
        time=ratings["timestamp"],
        user_groups={group.name: group for group in groups},
        original_user_ids=users["user id"],
        original_item_ids=movies["movie id"],
        item_titles=movies["title"],
        report=_report((users, movies, ratings), {}),
    )


def _movielens_files(options: ReadOptions) -> tuple[Path, Path, Path]:
    folder = options.dataset_dir / "ml-1m"
    return folder / "users.dat", folder / "movies.dat", folder / "ratings.dat"


def _movielens_groups(users: FileRows) -> tuple[Group, ...]:
    users.read_integers("user id", 0, np.iinfo(np.int64).max)
    columns = {
        "gender": (GENDERS, GENDERS),
        "age": (tuple(str(code) for code in AGE_CODES), AGES),
        "occupation": (tuple(str(code) for code in range(len(OCCUPATIONS))), OCCUPATIONS),
    }
    for name, (values, _) in columns.items():
        users.columns[name] = _positions(values, users[name])
        users.reject(users[name] < 0, f"unknown {name}")
    users.reject(is_repeated(users["user id"]), "repeats a user")
    return tuple(Group(name, users[name], labels) for name, (_, labels) in columns.items())


def _movielens_genres(movies: FileRows) -> np.ndarray:
    """Check the movies and return their genres `[I, 18]` float32 in {0, 1}."""
    movies.read_integers("movie id", 0, np.iinfo(np.int64).max)
    codes = _genre_codes(movies["genres"])
    movies.reject(codes.lt(0).groupby(level=0).any().to_numpy(), "unknown genre")
    movies.reject(is_repeated(movies["movie id"]), "repeats a movie")
    codes = _genre_codes(movies["genres"])
    genres = np.zeros((len(movies), len(GENRES)), dtype=np.float32)
    genres[codes.index, codes] = 1
    return genres


def _genre_codes(genres: np.ndarray) -> pd.Series:
    """Index into GENRES, or -1, of every genre listed; the index of the series is the row."""
    parts = pd.Series(genres, dtype=object).str.split("|").explode()
    return pd.Series(_positions(GENRES, parts.to_numpy(dtype=object)), index=parts.index)


def _movielens_ratings(ratings: FileRows, users: np.ndarray, movies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check the ratings and return their users and items `[E]` as rows of the other two files."""
    ratings.reject((ratings["rating"] < 1) | (ratings["rating"] > 5), "rating is outside 1-5")
    ratings.reject(ratings["timestamp"] > LAST_TIMESTAMP, "timestamp is after the year 2100")
    for name, ids in (("user id", users), ("movie id", movies)):
        ratings.columns[name] = _positions(ids, ratings[name])
        ratings.reject(ratings[name] < 0, f"unknown {name.removesuffix(' id')}")
    pair = ratings["user id"] * len(movies) + ratings["movie id"]
    ratings.reject(is_repeated(pair), "repeats a user's rating of a movie")
    return ratings["user id"], ratings["movie id"]


def read_bookcrossing(options: ReadOptions) -> InteractionData:
    """Read BookCrossing, the cleaned files or the 2004 dump, from `dataset_dir` or a folder in it (Decision 20).

    Ratings 0-10 are all interactions. Users without a known age and country are left out, or kept as unknown with
    `keep_incomplete_users`; users without ratings are left out, books without ratings are kept. Raises DataError.
    """
    folder, form = _find_bookcrossing(options.dataset_dir)
    books, users, ratings = _bookcrossing_rows(folder, form)
    for rows in (books, users, ratings):
        rows.check(options.max_bad_rows)

    age, country, filtered = _demographics(users)
    is_dropped = np.zeros(len(users), dtype=bool) if options.keep_incomplete_users else (age < 0) | (country == "")
    user, item = _positions(users["User-ID"], ratings["User-ID"]), _positions(books["ISBN"], ratings["ISBN"])
    is_lost = {
        "ratings of an unknown book": item < 0,
        "ratings of an unknown user": (item >= 0) & (user < 0),
        "ratings of users without a known age and country": (item >= 0) & (user >= 0) & is_dropped[user],
    }
    is_kept = ~np.logical_or.reduce(list(is_lost.values()))
    is_active = np.bincount(user[is_kept], minlength=len(users)) > 0
    if options.keep_incomplete_users:
        filtered = {}
    filtered |= {reason: int(mask.sum()) for reason, mask in is_lost.items()}
    filtered["users without a rating that is kept"] = int((~is_dropped & ~is_active).sum())
    if not is_kept.any():
        counts = "; ".join(f"{reason}: {count:,}" for reason, count in filtered.items())
        raise DataError(f"{folder}: no rating is left ({counts}); use complete files, or --keep_incomplete_users")
    user_index = np.cumsum(is_active) - 1
    user_table, groups = _bookcrossing_users(age[is_active], country[is_active])
    return InteractionData(
        name="bx",
        users=user_table,
        items=_bookcrossing_items(books, options),
        user_id=user_index[user[is_kept]],
        item_id=item[is_kept],
        rating=ratings["Rating"][is_kept].astype(np.float32),
        time=None,
        user_groups=groups,
        original_user_ids=users["User-ID"][is_active],
        original_item_ids=books["ISBN"],
        item_titles=books["Title"],
        report=_report((books, users, ratings), filtered),
    )


def _find_bookcrossing(dataset_dir: Path) -> tuple[Path, BookCrossingForm]:
    inner, dump = dataset_dir / "BookCrossing", dataset_dir / "BookCrossing-2004"
    places = [(inner, CLEANED), (inner, DUMP_2004), (dump, DUMP_2004), (dataset_dir, CLEANED), (dataset_dir, DUMP_2004)]
    for folder, form in places:
        if form.is_in(folder):
            return folder, form
    raise DataError(
        f"BookCrossing is not in {dataset_dir}: put {', '.join(CLEANED.files)} (cleaned) or "
        f"{', '.join(DUMP_2004.files)} (the 2004 dump) into {inner}; datasets/README.md says where they come from, "
        "--dataset=synthetic needs no files"
    )


def _bookcrossing_files(options: ReadOptions) -> tuple[Path, ...]:
    folder, form = _find_bookcrossing(options.dataset_dir)
    return tuple(folder / file for file in form.files)


def _bookcrossing_rows(folder: Path, form: BookCrossingForm) -> tuple[FileRows, FileRows, FileRows]:
    """Read and check the three files: books, users, ratings."""
    fields = (form.books, form.users, form.ratings)
    files = zip(form.files, fields, strict=True)
    books, users, ratings = (read_csv_rows(folder / file, names, form.encoding, form.escape) for file, names in files)
    if form is DUMP_2004:
        for name in ("Title", "Author", "Publisher"):
            books.columns[name] = _plain_text(books[name])
        users.columns["Age"] = np.where(users["Age"] == "NULL", "", users["Age"]).astype(object)

    for rows in (books, ratings):
        rows.reject(~matches(rows["ISBN"], rf"(?s:.){{1,{LONGEST_ID}}}"), f"ISBN is not 1-{LONGEST_ID} characters")
    for rows in (users, ratings):
        rows.reject(~matches(rows["User-ID"], f"[0-9]{{1,{LONGEST_ID}}}"), "User-ID is not a whole number")
    books.reject(is_repeated(books["ISBN"]), "repeats an ISBN")
    users.reject(~matches(users["Age"], r"([0-9]{1,18}(\.0)?)?"), "Age is not a whole number")
    users.reject(is_repeated(users["User-ID"]), "repeats a user")
    ratings.read_integers("Rating", 0, 10)
    ratings.reject(is_repeated(ratings["User-ID"], ratings["ISBN"]), "repeats a user's rating of a book")
    return books, users, ratings


def _plain_text(text: np.ndarray) -> np.ndarray:
    """Undo the 2004 dump's HTML entities, and its NULL for missing text `[N]`."""
    series = pd.Series(np.where(text == "NULL", "", text), dtype=object)
    has_entity = series.str.contains("&", regex=False).to_numpy(dtype=bool)
    series[has_entity] = series[has_entity].map(_unescaped)
    return series.to_numpy(dtype=object)


def _unescaped(text: str) -> str:
    try:
        return html.unescape(text)
    except ValueError:  # a number of thousands of digits is no entity
        return text


def _demographics(users: FileRows) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Age in years `[U]` (-1 unknown), country in lower case `[U]` ("" unknown), and how many are unknown why."""
    age, has_age = parse_integers(users["Age"])
    is_odd = has_age & ((age < YOUNGEST) | (age > OLDEST))
    age = np.where(has_age & ~is_odd, age, -1)
    third = pd.Series(users["Location"], dtype=object).str.split(",", n=3).str[2].str.strip().str.lower()
    country = third.where(third.isin(COUNTRIES), "").to_numpy(dtype=object)
    counts = {
        "users without an age": ~has_age,
        f"users aged outside {YOUNGEST}-{OLDEST}": is_odd,
        "users of known age without a known country": (age >= 0) & (country == ""),
    }
    return age, country, {reason: int(mask.sum()) for reason, mask in counts.items()}


def _bookcrossing_users(age: np.ndarray, country: np.ndarray) -> tuple[FeatureTable, dict[str, Group]]:
    codes, num_countries = _categories(country, country != "")
    table = _table(
        ("id", np.arange(len(age)), len(age)),
        ("country", codes, num_countries),
        ("age", np.where(age >= 0, age, UNKNOWN_AGE), UNKNOWN_AGE + 1),
    )
    bins = np.where(age >= 0, np.searchsorted(AGE_BINS, age, side="right"), -1)
    is_usa = np.isin(country.astype(str), USA_NAMES)
    regions = np.where(country == "", -1, np.where(is_usa, 0, 1))
    groups = (Group("age", bins, AGE_BIN_LABELS), Group("country", regions, ("USA", "other")))
    return table, {group.name: group for group in groups}


def _bookcrossing_items(books: FileRows, options: ReadOptions) -> FeatureTable:
    year, is_number = parse_integers(books["Year"])
    columns = {
        "author": (books["Author"], books["Author"] != ""),
        "year": (year, is_number & (year >= FIRST_YEAR) & (year <= LAST_YEAR)),
        "publisher": (books["Publisher"], books["Publisher"] != ""),
    }
    titles = encode_titles(books["Title"], options.title_encoder, options.cache_dir)
    return _table(
        *((name, *_categories(values, is_known)) for name, (values, is_known) in columns.items()),
        ("title", titles, None),
    )


def _positions(values, queries: np.ndarray) -> np.ndarray:
    """Place of each query `[N]` in the distinct `values`, -1 where it is none of them: `[N]` int64."""
    return pd.Index(values, dtype=queries.dtype).get_indexer(queries).astype(np.int64)


def _categories(values: np.ndarray, is_known: np.ndarray) -> tuple[np.ndarray, int]:
    """Number distinct known values `[N]` in sorted order, unknown ones last: codes `[N]` int64 and how many codes."""
    known, distinct = pd.factorize(values[is_known], sort=True)
    codes = np.full(len(values), len(distinct), dtype=np.int64)
    codes[is_known] = known
    return codes, len(distinct) + int(not is_known.all())


def _table(*columns: tuple[str, np.ndarray, int | None]) -> FeatureTable:
    """Make a feature table of (name, values, size): categorical `[N]`, multi-hot `[N, size]` or dense (size None)."""
    schema, tensors = [], {}
    for name, values, size in columns:
        kind = "dense" if size is None else "categorical" if values.ndim == 1 else "multi_hot"
        schema.append(FeatureSpec(name, kind, values.shape[1] if size is None else size))
        tensors[name] = torch.from_numpy(np.ascontiguousarray(values))
    return FeatureTable(tuple(schema), tensors)


def _report(files: tuple[FileRows, ...], filtered: dict[str, int]) -> ReadReport:
    rejected = tuple(entry for rows in files for entry in rows.rejected)
    return ReadReport({rows.file: rows.num_rows for rows in files}, rejected, filtered)


READERS: dict[str, Callable[[ReadOptions], InteractionData]] = {
    "ml": cached("ml", read_movielens, _movielens_files),
    "bx": cached("bx", read_bookcrossing, _bookcrossing_files),
    "synthetic": read_synthetic,
}
