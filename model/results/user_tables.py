"""Tables of one row per user or per recommended item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from data.structs import Group, Ranking
from model.evaluation.keys import ListKey, is_result, key, split_key
from model.evaluation.questions import Answer
from model.runs.files import write_frame

# columns that tell lists of several phases, tasks and controls apart
LEVELS = ("phase", "task", "control")


def values_by_user(answers: Sequence[Answer]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Collect the values of all lists per user: `users [T]` who have a list, ascending, and values by key.

    Values are `[T]`, NaN for a user whom the list is not for.
    """
    users = np.unique(np.concatenate([answer.ranking.users for answer in answers]))
    values = {}
    for answer in answers:
        for name, user_values in answer.per_user.items():
            values[key(answer.key, name)] = _spread(users, answer.ranking.users, user_values)
    return users, values


def _spread(users: np.ndarray, owners: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`values` of `owners` among all `users` (ascending), NaN for the others."""
    if np.array_equal(owners, users):
        return values
    whole = np.full(len(users), np.nan)
    whole[np.searchsorted(users, owners)] = values
    return whole


def with_earlier(
    frame: pd.DataFrame,
    users: np.ndarray,
    values: Mapping[str, np.ndarray],
    originals: np.ndarray,
    phases: set[str],
    many_tasks: bool = False,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """`values_by_user` with the columns of earlier `phases` of a written `frame` in front."""
    measured = {name: split_key(name)[0] for name in frame if is_result(name)}
    kept = [name for name, owner in measured.items() if ListKey.parse(owner, True, many_tasks).phase in phases]
    before = pd.Index(originals).get_indexer(frame["user"])
    everybody = np.union1d(before, users)
    old = {name: _spread(everybody, before, frame[name].to_numpy()) for name in kept}
    return everybody, old | {name: _spread(everybody, users, user_values) for name, user_values in values.items()}


def label_rows(frame: pd.DataFrame, list_key: ListKey, levels: Sequence[str]) -> pd.DataFrame:
    """Put columns before a list's table that say which of several lists it is."""
    labels = {level: [getattr(list_key, level)] * len(frame) for level in levels}
    return pd.concat([pd.DataFrame(labels), frame], axis=1)


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
    """Make a table of the first `k` items of every list, one row each: user, rank (from 1), item, title, score.

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
