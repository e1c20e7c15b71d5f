"""Read one list of a finished run back as arrays: which items each user is shown, and which of them are test items."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.rankings import LIST
from model.results.user_tables import ITEMS, RANKS, RECOMMENDATIONS


@dataclass(frozen=True)
class FinishedLists:
    """A list of T users: `users [T]` (the data set's own ids, ascending), `topk [T, K]` and `relevant [T, K]`.

    `topk` holds items as places in the catalogue of `num_items` (the run's `items.parquet`), -1 where a list is
    shorter; `relevant` says which of them are test items of their user.
    """

    users: np.ndarray
    topk: np.ndarray
    relevant: np.ndarray
    num_items: int


def read_lists(folder: Path, name: str, k: int | None = None) -> FinishedLists:
    """Read the first `k` places (None: all) of the list `name` ("test/reranked") of the finished run in `folder`.

    Users are those whom its task asks. Raises ValueError for files that lack, as older runs' do, and an unknown list.
    """
    shown = _of_list(folder / RECOMMENDATIONS, name, ["user", "rank", "item", "relevant"])
    asked = _of_list(folder / RANKS, name, ["user"])
    items = _table(folder / ITEMS, ["phase", "item"], None)
    # a catalogue stands there once for each phase, always in the same order
    catalogue = pd.Index(items.filter(pc.equal(items["phase"], items["phase"][0]))["item"].to_pandas())
    users = np.unique(asked["user"].to_pandas())
    places = shown["rank"].to_numpy() - 1
    width = k or int(places.max(initial=-1)) + 1
    kept = places < width
    where = pd.Index(users).get_indexer(shown["user"].to_pandas())[kept], places[kept]
    topk = np.full((len(users), width), -1)
    topk[where] = catalogue.get_indexer(shown["item"].to_pandas())[kept]
    relevant = np.zeros(topk.shape, dtype=bool)
    relevant[where] = shown["relevant"].to_numpy()[kept]
    return FinishedLists(users, topk, relevant, len(catalogue))


def _of_list(path: Path, name: str, columns: list[str]) -> pa.Table:
    table = _table(path, columns, [(LIST, "==", name)])
    if not table.num_rows:
        there = ", ".join(_table(path, [LIST], None)[LIST].unique().to_pylist())
        raise ValueError(f"{path} has no list {name}; it has {there or 'none'}")
    return table


def _table(path: Path, columns: list[str], filters: list | None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns, filters=filters)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        remedy = "test the run again with --mode=evaluate"
        raise ValueError(f"{path} cannot be read as lists of this version ({reason}); {remedy}") from error
