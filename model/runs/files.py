"""Files of a run: JSON, tables, and folders that one process owns."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from data.files import WriteError, atomic_path, remove_unfinished
from model.runs.setting import check_table_path


def write_json(path: Path | str, value) -> None:
    """Write `value` as JSON with sorted keys, whole or not at all; the same value gives the same bytes.

    JSON has no NaN, so an undefined value is `null`; floats keep every digit. An infinity is a ValueError.
    """
    text = json.dumps(_plain(value, "$"), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def append_jsonl(path: Path | str, row: Mapping) -> None:
    """Append `row` as one line of JSON (NaN as `null`); a line that a killed run left half-written is cut off.

    Raises WriteError, and leaves the whole lines, where the file system refuses.
    """
    line = _line(row)
    try:
        with open(path, "a+b", buffering=0) as file:
            file.seek(0)
            end = file.truncate(file.read().rfind(b"\n") + 1)
            try:
                _write_all(file, line)
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise WriteError.of(Path(path), error) from error


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write all of `data` to an unbuffered file, which may take a part at a time."""
    while data:
        data = data[file.write(data) :]


def write_jsonl(path: Path | str, rows: Sequence[Mapping]) -> None:
    """Write `rows` as `append_jsonl` would one after the other, in place of what `path` holds, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"".join(map(_line, rows)))


def read_jsonl(path: Path | str) -> list[dict]:
    """Read the whole lines of what `append_jsonl` wrote; none where there is no such file.

    A line that is no JSON is a ValueError.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore it, or move the checkpoint away from it") from error


def _line(row: Mapping) -> bytes:
    return (json.dumps(_plain(row, "$"), sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _plain(value, where: str):
    """Turn numpy values into Python's and NaN into None; `where` is the path for the error."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{where}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError(f"{where} is {value}; JSON holds finite numbers only (undefined is NaN)")
        return None if math.isnan(value) else value
    if value is None or isinstance(value, str | int):
        return value
    raise ValueError(f"{where} is a {type(value).__name__}; allowed: dict, list, str, int, float, bool, None, numpy")


def write_frame(path: Path | str, frame: pd.DataFrame) -> None:
    """Write a table as parquet or CSV, by the suffix of `path`, whole or not at all."""
    check_table_path(path)
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".csv":
            frame.to_csv(temporary, index=False)
        else:
            frame.to_parquet(temporary, engine="pyarrow", index=False)


def write_parts(path: Path | str, parts: Iterable[pa.Table]) -> None:
    """Write tables of the same columns into one parquet file, whole or not at all; each starts a row group of its own.

    Only one part is held at a time. Types are those of the first one; no part at all is a ValueError.
    """
    parts = iter(parts)
    first = next(parts, None)
    if first is None:
        raise ValueError(f"{path}: there is no table to write")
    # digits of scores hardly repeat, their leading bytes do
    floats = [field.name for field in first.schema if pa.types.is_floating(field.type)]
    others = [name for name in first.schema.names if name not in floats]
    options = {"compression": "zstd", "use_dictionary": others, "use_byte_stream_split": floats}
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, first.schema, **options) as writer:
        for part in itertools.chain([first], parts):
            writer.write_table(part.cast(first.schema))


def make_folder(directory: Path, remedy: str) -> None:
    """Create a folder unless it exists; a place that cannot be written is a ValueError that ends in `remedy`."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may try the same
    except OSError as error:
        raise ValueError(f"cannot write to {directory} ({error.strerror}); {remedy}") from error


# A folder with one of these holds a run, runs of several seeds or a comparison.
HOLDS = ("result.json", "config.json", "seeds.json", "comparison.json")


def reserve_run_dir(
    output_dir: Path | str, run_name: str, resume: bool = False, unfinished: str = "config.json"
) -> Path:
    """Create the folder `output_dir`/`run_name` for a new run, or with `resume` take one that holds only `unfinished`.

    A name that is not a plain folder name, a folder that holds a run already, and a place that cannot be written are
    ValueErrors.
    """
    if run_name in ("", ".", "..") or Path(run_name).name != run_name:
        raise ValueError(f"--run_name is {run_name!r}; it must be a plain folder name, without a slash")
    directory = Path(output_dir) / run_name
    remedy = "pass another --run_name or --output_dir"
    make_folder(directory, remedy)
    for name in HOLDS:
        if (directory / name).exists() and not (resume and name == unfinished):
            raise ValueError(
                f"{directory} already holds a run ({name}); {remedy}, continue that run with --resume, or delete it"
            )
    return directory


@contextlib.contextmanager
def lock_run_dir(directory: Path) -> Iterator[Path]:
    """Hold a run's folder for this process alone; one that another process holds is a ValueError.

    The operating system drops the lock with the process, however that ends.
    """
    path = directory / ".lock"
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"{directory} is in use by another process; wait for it, or pass another --run_name"
        ) from error
    except OSError as error:
        raise WriteError.of(path, error) from error
    try:
        remove_unfinished(directory)
        yield directory
    finally:
        # another process that locks the removed file meanwhile notices, and tries again
        path.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def own_run_dir(
    output_dir: Path | str, run_name: str, resume: bool = False, unfinished: str = "config.json"
) -> Iterator[Path]:
    """Reserve and lock a run's folder; a run that another process made in between is seen, and a ValueError."""
    wanted = (output_dir, run_name, resume, unfinished)
    with lock_run_dir(reserve_run_dir(*wanted)):
        yield reserve_run_dir(*wanted)
