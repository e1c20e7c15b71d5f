"""Write data in the format of MovieLens-1M."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd

from data.readers.vocabulary import AGE_CODES, GENDERS, GENRES
from data.structs import InteractionData


def write_movielens(data: InteractionData, folder: Path) -> None:
    """Write users.dat, movies.dat and ratings.dat of `data` under `folder/ml-1m` in the format of MovieLens-1M.

    Raises ValueError for what the format cannot carry: an unknown group, missing times, "::" or a line break in a
    title, a title that does not end in "(year)", text outside latin-1.
    """
    if data.time is None:
        raise ValueError(f"data set {data.name!r} has no times, which ratings.dat needs; write one that has")
    titles = pd.Series(data.item_titles, dtype=object).astype(str)
    bad = titles[~titles.str.fullmatch(r"[^\t\r\n]+ \(\d{4}\)") | titles.str.contains("::", regex=False)]
    if len(bad):
        raise ValueError(
            f"title {bad.iloc[0]!r} cannot be written to movies.dat: allowed is 'text (year)' without '::'"
        )
    codes = {name: data.user_groups[name].codes for name in ("gender", "age", "occupation")}
    for name, values in codes.items():
        if (values < 0).any():
            raise ValueError(f"{(values < 0).sum()} users of unknown {name}: users.dat has no code for it; drop them")
    genres = data.items.columns["genres"].cpu().numpy().astype(bool)
    users = pd.DataFrame(
        {
            "id": data.original_user_ids,
            "gender": np.array(GENDERS, dtype=object)[codes["gender"]],
            "age": np.array(AGE_CODES)[codes["age"]],
            "occupation": codes["occupation"],
            "zip": "00000",
        }
    )
    # Python's object product joins the names of the genres that are set: True * "War|" is "War|".
    names = (genres.astype(object) @ np.array([f"{genre}|" for genre in GENRES], dtype=object)).astype(str)
    movies = pd.DataFrame(
        {"id": data.original_item_ids, "title": titles, "genres": pd.Series(names, dtype=object).str.rstrip("|")}
    )
    ratings = pd.DataFrame(
        {
            "user": data.original_user_ids[data.user_id],
            "item": data.original_item_ids[data.item_id],
            "rating": data.rating.astype(np.int64),
            "time": data.time,
        }
    )
    target = Path(folder) / "ml-1m"
    target.mkdir(parents=True, exist_ok=True)
    for name, frame in (("users", users), ("movies", movies), ("ratings", ratings)):
        # pandas writes one-character separators only; no field holds a tab.
        text = frame.to_csv(sep="\t", header=False, index=False, quoting=csv.QUOTE_NONE, lineterminator="\n")
        (target / f"{name}.dat").write_bytes(text.replace("\t", "::").encode("latin-1"))
