"""ModCloth with its users' body size, the marketing-bias release or the form prepared from it -> InteractionData."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data.readers.cache import cached
from data.readers.options import ReadOptions
from data.readers.rows import DataError, FileRows, is_repeated, matches, read_csv_rows
from data.readers.tables import categories, feature_table, positions, read_report
from data.structs import Group, InteractionData, ReadReport

RELEASE = "df_modcloth.csv"
PREPARED = ("modcloth.csv", "user_attr.csv")
SIZES = ("Small", "Large")
FEWEST_STARS, MOST_STARS = 1, 5
# of the release's columns, what is said of an item: column -> feature
ITEM_COLUMNS = {"category": "category", "brand": "brand", "year": "year", "model_attr": "model_size"}
# text that is no value to pandas, which wrote the release and with which its authors read it
MISSING = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
    *("N/A", "NA", "NULL", "NaN", "n/a", "nan", "null"),
)
NOT_GIVEN = 3.0
WITHOUT_RATINGS = f"{PREPARED[0]} gives no ratings, all are 3 or more: each is read as a 3"
TIME_PATTERN = r"(19[7-9]|20[0-9])[0-9]-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-5][0-9](\.[0-9]{1,9})?\+00:00"
WHOLE_SECONDS = len("2010-01-21 08:00:00")


@dataclass(frozen=True)
class Reviews:
    """Rows that are kept `[E]`: ids as in the files, seconds, sizes as indices into SIZES, and facts of their items."""

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    time: np.ndarray
    size: np.ndarray
    facts: dict[str, np.ndarray]
    report: ReadReport


def read_modcloth(options: ReadOptions) -> InteractionData:
    """Read ModCloth from `dataset_dir/modcloth`: the marketing-bias release where it is, else the prepared form.

    Users and items are those of the rows that are kept, in the order of their ids. Rows of users without a name or a
    size are left out. What an item's first row says of it holds. Raises DataError.
    """
    files = _modcloth_files(options)
    reviews = _release(*files, options.max_bad_rows) if len(files) == 1 else _prepared(*files, options.max_bad_rows)
    if not len(reviews.user):
        counts = "; ".join(f"{reason}: {count:,}" for reason, count in reviews.report.filtered.items())
        raise DataError(f"{files[0]}: no row is left ({counts}); use complete files")
    users, first_of_user, user_id = np.unique(reviews.user, return_index=True, return_inverse=True)
    items, first_of_item, item_id = np.unique(reviews.item, return_index=True, return_inverse=True)
    size = Group("size", reviews.size[first_of_user], SIZES)
    facts = {name: values[first_of_item] for name, values in reviews.facts.items()}
    titles = items.astype(str).astype(object)
    if "category" in facts:
        titles = np.where(facts["category"] == "", titles, titles + " (" + facts["category"] + ")")
    return InteractionData(
        name="modcloth",
        users=feature_table(("id", np.arange(len(users)), len(users)), ("size", size.codes, size.num_groups)),
        items=feature_table(
            ("id", np.arange(len(items)), len(items)),
            *((name, *categories(values, values != "")) for name, values in facts.items()),
        ),
        user_id=user_id.astype(np.int64),
        item_id=item_id.astype(np.int64),
        rating=reviews.rating,
        time=reviews.time,
        user_groups={size.name: size},
        original_user_ids=users,
        original_item_ids=items,
        item_titles=titles,
        report=reviews.report,
    )


def _modcloth_files(options: ReadOptions) -> tuple[Path, ...]:
    folder = options.dataset_dir / "modcloth"
    for names in ((RELEASE,), PREPARED):
        if all((folder / name).is_file() for name in names):
            return tuple(folder / name for name in names)
    raise DataError(
        f"ModCloth is not in {folder}: put {RELEASE} (the marketing-bias release of Wan et al., WSDM 2020) or "
        f"{' and '.join(PREPARED)} (prepared from it) there, or pass the folder that holds modcloth as --dataset_dir; "
        "datasets/README.md says where they come from, --dataset=synthetic needs no files"
    )


def _release(path: Path, max_bad_rows: float) -> Reviews:
    text = ("user_id", "user_attr", *ITEM_COLUMNS)
    names = ("item_id", "rating", "timestamp", *text)
    rows = read_csv_rows(path, {name: name for name in names}, "utf-8", delimiter=",")
    for name in text:
        rows.columns[name] = np.where(pd.Series(rows[name]).isin(MISSING), "", rows[name]).astype(object)
    rows.read_integers("item_id", 0, np.iinfo(np.int64).max)
    rows.read_integers("rating", FEWEST_STARS, MOST_STARS)
    _read_times(rows)
    rows.columns["size"] = positions(SIZES, rows["user_attr"])
    rows.reject((rows["size"] < 0) & (rows["user_attr"] != ""), "unknown user_attr")
    # nobody knows whether two rows without a user are of one person
    rows.reject((rows["user_id"] != "") & is_repeated(rows["user_id"], rows["item_id"]), "repeats a user's rating")
    known = pd.Series(rows["size"]).where(rows["size"] >= 0)
    first = known.groupby(rows["user_id"]).transform("first")
    contradicts = (known.notna() & (known != first)).to_numpy(dtype=bool)
    rows.reject((rows["user_id"] != "") & contradicts, "another user_attr than the user's first")
    rows.check(max_bad_rows)

    has_size, has_user = rows["size"] >= 0, rows["user_id"] != ""
    is_kept = has_size & has_user
    filtered = {
        "ratings by users without a size": int((~has_size).sum()),
        "ratings of a known size without a user": int((has_size & ~has_user).sum()),
    }
    return Reviews(
        user=rows["user_id"][is_kept],
        item=rows["item_id"][is_kept],
        rating=rows["rating"][is_kept].astype(np.float32),
        time=rows["timestamp"][is_kept],
        size=rows["size"][is_kept],
        facts={feature: rows[name][is_kept] for name, feature in ITEM_COLUMNS.items()},
        report=read_report((rows,), filtered),
    )


def _prepared(reviews_file: Path, users_file: Path, max_bad_rows: float) -> Reviews:
    names = {reviews_file: ("user_id", "item_id", "timestamp"), users_file: ("user_id", "user_attr")}
    rows, users = (
        read_csv_rows(path, {name: name for name in fields}, "utf-8", delimiter="\t") for path, fields in names.items()
    )
    for name in ("user_id", "item_id"):
        rows.read_integers(name, 0, np.iinfo(np.int64).max)
    _read_times(rows)
    rows.reject(is_repeated(rows["user_id"], rows["item_id"]), "repeats a user's row of an item")
    rows.check(max_bad_rows)
    users.read_integers("user_id", 0, np.iinfo(np.int64).max)
    users.read_integers("user_attr", 0, len(SIZES) - 1)
    users.reject(is_repeated(users["user_id"]), "repeats a user")
    users.check(max_bad_rows)

    user = positions(users["user_id"], rows["user_id"])
    is_kept = user >= 0
    filtered = {
        "rows of users without a size": int((~is_kept).sum()),
        "users without a row": len(users) - len(np.unique(user[is_kept])),
    }
    return Reviews(
        user=rows["user_id"][is_kept],
        item=rows["item_id"][is_kept],
        rating=np.full(is_kept.sum(), NOT_GIVEN, dtype=np.float32),
        time=rows["timestamp"][is_kept],
        size=users["user_attr"][user[is_kept]],
        facts={},
        report=read_report((rows, users), filtered, notes=(WITHOUT_RATINGS,)),
    )


def _read_times(rows: FileRows) -> None:
    """Turn `timestamp`, as 2019-06-29 13:55:16.542000+00:00, into whole seconds; reject rows where it is not that."""
    text = pd.Series(rows["timestamp"], dtype=object)
    plain = text.where(matches(rows["timestamp"], TIME_PATTERN)).str.slice(stop=WHOLE_SECONDS)
    times = pd.to_datetime(plain, format="%Y-%m-%d %H:%M:%S", errors="coerce")
    rows.columns["timestamp"] = times.to_numpy().astype("datetime64[s]").astype(np.int64)
    rows.reject(times.isna().to_numpy(), "timestamp is not a time of 1970-2099, as 2010-01-21 08:00:00+00:00")


read = cached("modcloth", read_modcloth, _modcloth_files)
