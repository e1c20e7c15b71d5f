"""What readers share: codes of values, feature tables, the report."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from data.readers.rows import FileRows
from data.structs import FeatureSpec, FeatureTable, ReadReport


def positions(values, queries: np.ndarray) -> np.ndarray:
    """Find the place of each query `[N]` in the distinct `values`, -1 where it is none of them: `[N]` int64."""
    return pd.Index(values, dtype=queries.dtype).get_indexer(queries).astype(np.int64)


def categories(values: np.ndarray, is_known: np.ndarray) -> tuple[np.ndarray, int]:
    """Number distinct known values `[N]` in sorted order, unknown ones last: codes `[N]` int64 and how many codes."""
    known, distinct = pd.factorize(values[is_known], sort=True)
    codes = np.full(len(values), len(distinct), dtype=np.int64)
    codes[is_known] = known
    return codes, len(distinct) + int(not is_known.all())


def feature_table(*columns: tuple[str, np.ndarray, int | None]) -> FeatureTable:
    """Make a feature table of (name, values, size): categorical `[N]`, multi-hot `[N, size]` or dense (size None)."""
    schema, tensors = [], {}
    for name, values, size in columns:
        kind = "dense" if size is None else "categorical" if values.ndim == 1 else "multi_hot"
        schema.append(FeatureSpec(name, kind, values.shape[1] if size is None else size))
        tensors[name] = torch.from_numpy(np.ascontiguousarray(values))
    return FeatureTable(tuple(schema), tensors)


def read_report(files: tuple[FileRows, ...], filtered: dict[str, int], notes: tuple[str, ...] = ()) -> ReadReport:
    """Make the report of `files` that were read, of rows `filtered` by documented rules (reason -> count), and
    `notes` on what the files do not say."""
    rejected = tuple(entry for rows in files for entry in rows.rejected)
    encodings = {rows.file: rows.encoding for rows in files if rows.encoding is not None}
    return ReadReport({rows.file: rows.num_rows for rows in files}, rejected, filtered, encodings, notes)
