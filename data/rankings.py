"""Rankings of another program: a parquet, CSV, TSV or TREC run file, gzip or not -> checked lists of 0-based ids.

Rows are counted from 1, a header left out. Ids are compared as text, so that leading zeros count.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from data.messages import counted
from data.structs import InteractionData, ItemLists

COLUMNS = {
    "user": "the data set's own id of the user, as text",
    "item": "the data set's own id of the item, as text",
    "rank": "place in the user's list, a whole number from 1 (only the order counts, gaps are allowed)",
    "score": "a finite number; without a rank it orders the list, highest first, equal ones by order of items.csv",
    "list": "only where the file holds several lists of a user: which one, named as in --rankings=FILE:LIST",
}
LIST = "list"
NUMBERS = ("rank", "score")
TREC_FIELDS = ("user", "Q0", "item", "rank", "score", "tag")
# suffix -> what the table is called; other text is a table too where its first line names user and item
TABLES = {".csv": "CSV", ".tsv": "TSV"}
GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
OFFENDERS_NAMED = 3


@dataclass(frozen=True)
class RankedLists:
    """Lists of another program, best first: `lists` has one per user id; `scores [E]` of its entries, None without.

    `note` says which of rank and score counts where they disagree, and is empty where they do not. `name` is that of
    the list that was chosen, "" where the file has only one; `least_ranks [E]` are the ranks that entries have at least
    (None: their places).
    """

    lists: ItemLists
    scores: np.ndarray | None
    note: str = ""
    name: str = ""
    least_ranks: np.ndarray | None = None


def only_list(path: Path, names: list[str]) -> str:
    """Choose the list of a file that holds one list per user; several are a ValueError."""
    if len(names) > 1:
        few = ", ".join(names[:OFFENDERS_NAMED])
        raise ValueError(f"{path} holds {len(names)} lists, such as {few}; choose one, or rename the column {LIST}")
    return names[0] if names else ""


def read_rankings(
    path: Path, data: InteractionData, choose: Callable[[Path, list[str]], str] = only_list
) -> RankedLists:
    """Read lists of `data`'s users and items from parquet, a CSV or TSV with a header, or a TREC run.

    Parquet, CSV and TSV have the columns of `COLUMNS`, with rank, score or both, of which rank decides; others are
    ignored. In a TREC run the score decides as in trec_eval, whatever the ranks; equal scores go by rank, then in the
    order of items.csv. Of the names in a column `list` (none without it), `choose` gives the one to read, and rows are
    counted within it. Raises ValueError for a file that cannot be read or is empty, missing columns, unknown ids, a
    (user, item) that occurs twice, numbers that are not finite, and where rank decides ranks that are not whole, below
    1 or repeated.
    """
    table, is_trec = _read(path)
    if not table.num_rows:
        raise ValueError(f"{path} has no rows; write one for each item of each user's list")
    names = _list_names(path, table)
    chosen = choose(path, [name for name in names.unique().to_pylist() if name])
    if chosen:
        table = table.filter(pc.equal(names, chosen))
    user = _ids(path, "user", table["user"], data.original_user_ids, data.name)
    item = _ids(path, "item", table["item"], data.original_item_ids, data.name)
    numbers = {name: _numbers(path, name, table[name]) for name in NUMBERS if name in table.column_names}
    rank, score = numbers.get("rank"), numbers.get("score")

    def pair(row: int) -> str:
        return f"user {data.original_user_ids[user[row]]}, item {data.original_item_ids[item[row]]}"

    order = np.argsort(user * data.num_items + item, kind="stable")
    twice = (np.diff(user[order]) == 0) & (np.diff(item[order]) == 0)
    _refuse(path, np.sort(order[1:][twice]), "an item that its user's list has already", pair, "list each item once")
    if rank is None:
        order = np.lexsort((item, -score, user))
    elif is_trec:  # Decision 37
        order = np.lexsort((item, rank, -score, user))
    else:
        is_place = (rank >= 1) & (rank % 1 == 0)
        what = "a rank that is not a whole number from 1 up"
        _refuse(
            path, np.flatnonzero(~is_place), what, lambda row: repr(table["rank"][row].as_py()), "count places from 1"
        )
        order = np.lexsort((rank, user))
        twice = (np.diff(user[order]) == 0) & (np.diff(rank[order]) == 0)
        remedy = "give each item of a list a rank of its own, or leave the column out and give scores"
        _refuse(path, np.sort(order[1:][twice]), "a rank that its user's list has already", pair, remedy)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=data.num_users))]).astype(np.int64)
    scores = None if score is None else score[order]
    return RankedLists(ItemLists(indptr, item[order]), scores, _disagreement(user, rank, score, is_trec), chosen)


def with_ranks(given: RankedLists, path: Path, data: InteractionData) -> RankedLists:
    """Add to lists of a run the ranks of its test items, from its file of ranks (columns list, user, item, rank).

    An item that ties with others ranks behind all of them, which the lists do not show (Decision 8).
    """
    try:
        table = pa.parquet.read_table(path, columns=["user", "item", "rank"], filters=[(LIST, "==", given.name)])
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read ({reason}); put the run's own there, or take it away") from error
    user = _ids(path, "user", table["user"], data.original_user_ids, data.name)
    item = _ids(path, "item", table["item"], data.original_item_ids, data.name)
    counted_as = pd.Series(_numbers(path, "rank", table["rank"]).astype(np.int64), user * data.num_items + item)
    entries = given.lists.owner * data.num_items + given.lists.item
    return replace(given, least_ranks=counted_as.reindex(entries, fill_value=0).to_numpy())


def _disagreement(user: np.ndarray, rank: np.ndarray | None, score: np.ndarray | None, is_trec: bool) -> str:
    """Say in how many lists a worse rank has a better score, and which of both counts; nothing where there is none."""
    if rank is None or score is None:
        return ""
    order = np.lexsort((-score, rank, user))
    rises = (np.diff(user[order]) == 0) & (np.diff(score[order]) > 0)
    lists = len(np.unique(user[order][1:][rises]))
    counts = "the score counts, as in trec_eval" if is_trec else "the rank counts"
    return f"rank and score disagree in {counted(lists, 'list')}: {counts}" if lists else ""


def _read(path: Path) -> tuple[pa.Table, bool]:
    """The rows of a file, and whether it is a TREC run."""
    if not path.is_file():
        raise ValueError(f"--rankings={path} is no file; pass a parquet, CSV, TSV or TREC run file, gzip or not")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix, form = suffixes[-1] if suffixes else "", "text"
    try:
        content = path.read_bytes()
        if content.startswith(GZIP):
            form = "gzip"
            content = gzip.decompress(content)
        if suffix == ".parquet" or content.startswith(PARQUET):
            form = "parquet"
            return _read_parquet(path, content), False
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise _Refused(f"{path} is UTF-16; save it as UTF-8")
        content = content.removeprefix(codecs.BOM_UTF8)
        names, separator = _header(content)
        if suffix in TABLES or {"user", "item"} <= set(names):
            form = TABLES.get(suffix, "CSV")
            return _read_csv(path, content, names, separator), False
        form = "TREC run"
        return _read_trec(path, content), True
    except _Refused:
        raise
    except (ValueError, OSError, EOFError, zlib.error, csv.Error, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as {form}: {reason}; write it anew, in UTF-8") from error


class _Refused(ValueError):
    """Error that says all there is to say about a file, and needs no more context."""


def _chosen(path: Path, names: list[str]) -> list[str]:
    chosen = [name for name in COLUMNS if name in names]
    lacks = chosen[:2] != ["user", "item"] or not set(NUMBERS) & set(chosen)
    if lacks or any(names.count(name) > 1 for name in chosen):
        raise _Refused(
            f"{path} has the columns {', '.join(map(repr, names)) or 'none'}: needed are user, item, and rank or "
            "score, once each (a CSV or TSV names them in its first row); rename them"
        )
    return chosen


def _read_parquet(path: Path, content: bytes) -> pa.Table:
    with pa.parquet.ParquetFile(pa.BufferReader(content)) as file:
        return file.read(columns=_chosen(path, file.schema_arrow.names))


def _header(content: bytes) -> tuple[list[str], str]:
    """The fields of the first line, and what separates them: tabs where it has one."""
    line = content.partition(b"\n")[0].decode(errors="replace")
    separator = "\t" if "\t" in line else ","
    return next(csv.reader([line], delimiter=separator), []), separator


def _read_csv(path: Path, content: bytes, names: list[str], separator: str) -> pa.Table:
    names = _chosen(path, names)
    text = pa.dictionary(pa.int32(), pa.string())
    return pa.csv.read_csv(
        pa.BufferReader(content),
        # with one thread an error names the row that cannot be read
        read_options=pa.csv.ReadOptions(use_threads=False),
        parse_options=pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            include_columns=names, column_types={name: pa.string() if name in NUMBERS else text for name in names}
        ),
    )


def _read_trec(path: Path, content: bytes) -> pa.Table:
    width = len(TREC_FIELDS)
    with warnings.catch_warnings():
        # one column too many shows which rows are too long; what lies behind it may be dropped
        warnings.simplefilter("ignore", pd.errors.ParserWarning)
        frame = pd.read_csv(
            io.BytesIO(content),
            sep=r"\s+",
            header=None,
            names=range(width + 1),
            index_col=False,
            dtype={0: "category", 2: "category", **dict.fromkeys((1, 3, 4, 5, 6), str)},
            na_filter=False,
            quoting=csv.QUOTE_NONE,
            encoding="utf-8",
        )
    wrong = (frame[width - 1] == "") | (frame[width] != "")
    remedy = f"each row is: {' '.join(TREC_FIELDS)}"
    _refuse(path, np.flatnonzero(wrong), f"more or less than {width} fields", lambda row: frame[0][row], remedy)
    kept = frame.rename(columns=dict(enumerate(TREC_FIELDS)))[["user", "item", *NUMBERS]]
    return pa.Table.from_pandas(kept, preserve_index=False)


def _list_names(path: Path, table: pa.Table) -> pa.ChunkedArray:
    """The column that says which list a row is of, as text; empty where there is none."""
    if LIST not in table.column_names:
        return pa.chunked_array([], pa.string())
    try:
        return table[LIST].cast(pa.string())
    except pa.ArrowException as error:
        kind = table[LIST].type
        raise ValueError(f"{path}: column {LIST} holds {kind}; store names of lists as text, or rename it") from error


def _ids(path: Path, name: str, column: pa.ChunkedArray, originals: np.ndarray, data_name: str) -> np.ndarray:
    """0-based ids `[E]` of a column of `originals`."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_string_view(kind):
        column, kind = column.cast(pa.large_string()), pa.large_string()
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"{path}: column {name} holds {kind}; store ids as text or as whole numbers")
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    encoded = encoded.unify_dictionaries().combine_chunks()
    texts = encoded.dictionary.cast(pa.large_string()).to_numpy(zero_copy_only=False)
    known = pd.Index(originals.astype(str).astype(object)).get_indexer(pd.Index(texts, dtype=object))
    # a null has index -1, which reads the -1 appended here
    ids = np.append(known, -1)[encoded.indices.cast(pa.int64()).fill_null(-1).to_numpy()]
    few = ", ".join(map(str, originals[:3]))
    remedy = f"use the data set's own ids as in {name}s.csv of --export_split (such as {few})"
    rows = np.flatnonzero(ids < 0)
    _refuse(path, rows, f"an id that is no {name} of {data_name}", lambda row: repr(encoded[row].as_py()), remedy)
    return ids.astype(np.int64)


def _numbers(path: Path, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """Ranks or scores `[E]` float64, checked."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = column.cast(pa.float64(), safe=False).to_numpy()
    else:
        try:
            values = column.cast(pa.float64()).to_numpy()
        except pa.ArrowException:  # pandas is slower, but says which are no numbers
            values = pd.to_numeric(column.to_pandas().astype(object), errors="coerce").to_numpy(np.float64)
    wrong, what, remedy = ~np.isfinite(values), f"a {name} that is no finite number", "every row needs one"
    _refuse(path, np.flatnonzero(wrong), what, lambda row: repr(column[row].as_py()), remedy)
    return values


def _refuse(path: Path, rows: np.ndarray, what: str, shown: Callable[[int], str], remedy: str) -> None:
    """Raise ValueError for the bad `rows` (from 0), naming the first few, where there are any."""
    if len(rows):
        few = ", ".join(f"{shown(row)} (row {row + 1})" for row in rows[:OFFENDERS_NAMED].tolist())
        raise _Refused(f"{path}: {counted(len(rows), 'row')} with {what}, such as {few}; {remedy}")
