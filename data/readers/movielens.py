"""MovieLens-1M: raw files -> InteractionData."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from data.readers.cache import cached
from data.readers.download import download_movielens
from data.readers.options import DEFAULT_DATASET_DIR, ReadOptions
from data.readers.rows import DataError, FileRows, is_repeated, read_integer_rows, read_text_rows
from data.readers.tables import categories, feature_table, positions, read_report
from data.readers.titles import encode_titles
from data.readers.vocabulary import AGE_CODES, AGES, GENDERS, GENRES, OCCUPATIONS
from data.structs import Group, InteractionData

YEAR_PATTERN = r"^(?P<title>.*)\((?P<year>(?:18|19|20)[0-9]{2})\)\s*$"
LAST_TIMESTAMP = 4_102_444_800  # seconds, the year 2100


def read_movielens(options: ReadOptions) -> InteractionData:
    """Read MovieLens-1M from `dataset_dir/ml-1m`, downloading it when that folder is missing.

    Every user and movie of the files is kept, rated or not, and every rating is an interaction. Raises DataError.
    """
    users_file, movies_file, ratings_file = _movielens_files(options)
    if not users_file.parent.exists():
        if not (options.may_download and options.may_write):
            raise DataError(
                f"{users_file.parent} is missing; pass the folder that holds ml-1m as --dataset_dir (training without "
                f"--dry_run downloads MovieLens-1M into a folder that exists, or into ./{DEFAULT_DATASET_DIR})"
            )
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
    year, num_years = categories(parts["year"].to_numpy(dtype=object), has_year)
    plain_titles = np.where(has_year, parts["title"].str.rstrip(), movies["title"]).astype(object)
    return InteractionData(
        name="ml",
        users=feature_table(
            ("id", np.arange(len(users)), len(users)),
            *((group.name, group.codes, group.num_groups) for group in groups),
        ),
        items=feature_table(
            ("id", np.arange(len(movies)), len(movies)),
            ("year", year, num_years),
            ("genres", genres, len(GENRES)),
            ("title", encode_titles(plain_titles, options.title_encoder, options.cache_dir, options.may_write), None),
        ),
        user_id=user_id,
        item_id=item_id,
        rating=ratings["rating"].astype(np.float32),
        time=ratings["timestamp"],
        user_groups={group.name: group for group in groups},
        original_user_ids=users["user id"],
        original_item_ids=movies["movie id"],
        item_titles=movies["title"],
        report=read_report((users, movies, ratings), {}),
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
        users.columns[name] = positions(values, users[name])
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
    return pd.Series(positions(GENRES, parts.to_numpy(dtype=object)), index=parts.index)


def _movielens_ratings(ratings: FileRows, users: np.ndarray, movies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check the ratings and return their users and items `[E]` as rows of the other two files."""
    ratings.reject((ratings["rating"] < 1) | (ratings["rating"] > 5), "rating is outside 1-5")
    ratings.reject(ratings["timestamp"] > LAST_TIMESTAMP, "timestamp is after the year 2100")
    for name, ids in (("user id", users), ("movie id", movies)):
        ratings.columns[name] = positions(ids, ratings[name])
        ratings.reject(ratings[name] < 0, f"unknown {name.removesuffix(' id')}")
    pair = ratings["user id"] * len(movies) + ratings["movie id"]
    ratings.reject(is_repeated(pair), "repeats a user's rating of a movie")
    return ratings["user id"], ratings["movie id"]


read = cached("ml", read_movielens, _movielens_files)
