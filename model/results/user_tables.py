"""Tables of one row per user or per recommended item."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from data.structs import Group, Ranking
from model.runs.files import write_frame


def write_per_user(
    path: Path | str,
    users: np.ndarray,
    original_user_ids: np.ndarray,
    values: Mapping[str, np.ndarray],
    user_groups: Mapping[str, Group],
) -> None:
    """Write one row per evaluated user (`users [T]`) as parquet: original id, groups as labels, `values` name -> `[T]`.

    A user of unknown group has null there, an undefined value is NaN. A value named like a group is a ValueError.
    """
    columns = {"user": np.asarray(original_user_ids)[users]}
    for name, group in user_groups.items():
        labels = np.array([*group.labels, None], dtype=object)
        columns[name] = labels[group.codes[users]]
    taken = [name for name in values if name in columns]
    if taken:
        raise ValueError(f"per-user values {taken} are named like other columns; those are {list(columns)}")
    write_frame(path, pd.DataFrame({**columns, **values}))


def recommendation_frame(
    ranking: Ranking, original_user_ids: np.ndarray, original_item_ids: np.ndarray, titles: np.ndarray, k: int
) -> pd.DataFrame:
    """The first `k` items of every list, one row each: user, rank (from 1), item, title, score.

    Ids are the data set's own (`original_user_ids [U]`, `original_item_ids [I]`, `titles [I]`); padding has no row.
    """
    if k > ranking.topk.shape[1]:
        raise ValueError(f"k is {k}, but the ranking holds {ranking.topk.shape[1]} items per user; rank more of them")
    topk = ranking.topk[:, :k]
    row, place = np.nonzero(topk >= 0)
    item = topk[row, place]
    columns = {
        "user": np.asarray(original_user_ids)[ranking.users[row]],
        "rank": (place + 1).astype(np.int32),
        "item": np.asarray(original_item_ids)[item],
        "title": np.asarray(titles, dtype=object)[item],
        "score": ranking.scores[row, place],
    }
    return pd.DataFrame(columns)
