"""Tables of a run's lists: a row per user, per recommended item, per test item and per item of the catalogue.

From them every figure of the result but leakage, which needs the weights, can be computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data.protocols.base import Phase
from data.rankings import LIST
from data.structs import Group, InteractionData, Ranking
from fairness_utils import keep_hits
from model.evaluation.keys import TEST, ListKey, is_result, key, split_key
from model.evaluation.questions import Answer
from model.runs.files import write_frame, write_parts

PER_USER, RECOMMENDATIONS, RANKS, ITEMS = (
    f"{name}.parquet" for name in ("per_user", "recommendations", "ranks", "items")
)


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


def write_judged(
    directory: Path, data: InteractionData, answers: Sequence[Answer], k: int, earlier: set[str], many_tasks: bool
) -> None:
    """Write the lists of `answers` and the ranks of their test items: `RECOMMENDATIONS` and `RANKS`, a list at a time.

    Lists have `k` places, those that a method scored as many as were ranked, which re-ranking reads. Lists of `earlier`
    phases that the files hold already stay in front; the run's own stand before the yardsticks.
    """
    answers = sorted(answers, key=lambda answer: answer.key.source != TEST)
    # lists and yardsticks need not be scored in the same precision
    precision = np.result_type(*(answer.ranking.scores for answer in answers))
    for name, frame_of in (
        (RECOMMENDATIONS, lambda answer: _judged_frame(answer, data, k, precision)),
        (RANKS, lambda answer: _ranks_frame(answer, data)),
    ):
        write_parts(directory / name, _parts(directory / name, answers, frame_of, earlier, many_tasks))


def _parts(path: Path, answers, frame_of, earlier: set[str], many_tasks: bool) -> Iterator[pa.Table]:
    """Tables of the lists of `earlier` phases in the file that is there, then those of `answers`."""
    if earlier and path.exists():
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                part = file.read_row_group(number)
                if ListKey.parse(part[LIST][0].as_py(), True, many_tasks).phase in earlier:
                    yield part
    for answer in answers:
        yield pa.Table.from_pandas(frame_of(answer), preserve_index=False)


def _judged_frame(answer: Answer, data: InteractionData, k: int, precision: np.dtype) -> pd.DataFrame:
    """The places of a judged list: a recommendation each, in which list it is, and whether it is a test item."""
    ranking = answer.ranking
    is_pool = answer.key.source == TEST and not answer.key.reranked
    topk = ranking.topk if is_pool else ranking.topk[:, :k]
    originals = data.original_user_ids, data.original_item_ids
    frame = recommendation_frame(ranking, *originals, data.item_titles, topk.shape[1])
    hits = keep_hits(topk, ranking.relevant, data.num_items)
    # a column without a single title would have no type
    frame = frame.astype({"title": "string", "score": precision})
    frame.insert(0, LIST, str(answer.key))
    return frame.assign(relevant=hits[topk >= 0] >= 0)


def _ranks_frame(answer: Answer, data: InteractionData) -> pd.DataFrame:
    """The rank of every test item in a judged list."""
    users, relevant = answer.ranking.users, answer.ranking.relevant
    columns = {
        LIST: str(answer.key),
        "user": np.asarray(data.original_user_ids)[users[relevant.owner]],
        "item": np.asarray(data.original_item_ids)[relevant.item],
        "rank": answer.ranking.ranks.astype(np.int32),
    }
    return pd.DataFrame(columns)


def item_frame(data: InteractionData, phases: Sequence[Phase]) -> pd.DataFrame:
    """Make a table of the catalogue under each of `phases`, a row per item in order of the program's own ids."""
    frames = []
    for phase in phases:
        popularity = phase.split.item_groups["popularity"]
        columns = {
            "phase": phase.name,
            "item": data.original_item_ids,
            "title": data.item_titles,
            "train_degree": phase.split.degree,
            "popularity": np.array(popularity.labels, dtype=object)[popularity.codes],
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)
