"""BookCrossing, the cleaned files or the 2004 dump: raw files -> InteractionData."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data.readers.cache import cached
from data.readers.options import ReadOptions
from data.readers.rows import DataError, FileRows, is_repeated, matches, parse_integers, read_csv_rows
from data.readers.tables import categories, feature_table, positions, read_report
from data.readers.titles import encode_titles
from data.structs import FeatureTable, Group, InteractionData

LONGEST_ID = 64  # characters

YOUNGEST, OLDEST = 5, 110  # years
UNKNOWN_AGE = OLDEST + 1
AGE_BINS = (25, 35, 50)
AGE_BIN_LABELS = ("<=24", "25-34", "35-49", ">=50")
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
        """Tell whether all files of this form are in `folder`."""
        return all((folder / file).is_file() for file in self.files)


USER_FIELDS = {"User-ID": "User-ID", "Location": "Location", "Age": "Age"}
CLEANED = BookCrossingForm(
    files=("Books.csv", "Users.csv", "Ratings.csv"),
    encoding="utf-8",
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
    user, item = positions(users["User-ID"], ratings["User-ID"]), positions(books["ISBN"], ratings["ISBN"])
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
        report=read_report((books, users, ratings), filtered),
    )


def _find_bookcrossing(dataset_dir: Path) -> tuple[Path, BookCrossingForm]:
    inner, dump = dataset_dir / "BookCrossing", dataset_dir / "BookCrossing-2004"
    places = [(inner, CLEANED), (inner, DUMP_2004), (dump, DUMP_2004), (dataset_dir, CLEANED), (dataset_dir, DUMP_2004)]
    for folder, form in places:
        if form.is_in(folder):
            return folder, form
    raise DataError(
        f"BookCrossing is not in {dataset_dir}: put {', '.join(CLEANED.files)} (cleaned) or "
        f"{', '.join(DUMP_2004.files)} (the 2004 dump) into {inner}, or pass the folder that holds them "
        "as --dataset_dir; datasets/README.md says where they come from, --dataset=synthetic needs no files"
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


def countries() -> set[str]:
    """Give the names of all countries in lower case, and "usa"."""
    import pycountry  # its list takes a moment to load

    return {country.name.lower() for country in pycountry.countries} | {"usa"}


def _demographics(users: FileRows) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Age in years `[U]` (-1 unknown), country in lower case `[U]` ("" unknown), and how many are unknown why."""
    age, has_age = parse_integers(users["Age"])
    is_odd = has_age & ((age < YOUNGEST) | (age > OLDEST))
    age = np.where(has_age & ~is_odd, age, -1)
    third = pd.Series(users["Location"], dtype=object).str.split(",", n=3).str[2].astype(object).str.strip().str.lower()
    country = third.where(third.isin(countries()), "").to_numpy(dtype=object)
    counts = {
        "users without an age": ~has_age,
        f"users aged outside {YOUNGEST}-{OLDEST}": is_odd,
        "users of known age without a known country": (age >= 0) & (country == ""),
    }
    return age, country, {reason: int(mask.sum()) for reason, mask in counts.items()}


def _bookcrossing_users(age: np.ndarray, country: np.ndarray) -> tuple[FeatureTable, dict[str, Group]]:
    codes, num_countries = categories(country, country != "")
    table = feature_table(
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
    titles = encode_titles(books["Title"], options.title_encoder, options.cache_dir, options.may_write)
    return feature_table(
        *((name, *categories(values, is_known)) for name, (values, is_known) in columns.items()),
        ("title", titles, None),
    )


read = cached("bx", read_bookcrossing, _bookcrossing_files)
