"""Data sets as read, kept on disk as plain arrays, so that the next start need not read raw files again.

An entry is `cache_dir/data/<data set>/<key>.npz`. The key hashes everything that decides what is read: names and
bytes of the raw files, the options, this package's own source and the libraries behind it. So nothing has to be
cleared, or a version counted up, when any of them changes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from data.files import atomic_path
from data.messages import warn
from data.readers.options import ReadOptions
from data.readers.titles import encoder_parts
from data.structs import FeatureSpec, FeatureTable, Group, InteractionData, ReadReport, Rejected

KEPT = 8  # entries of one data set; the oldest go first
LIBRARIES = ("pandas", "pycountry", "scikit-learn")  # they parse fields, list countries and hash titles
PLAIN_FIELDS = ("user_id", "item_id", "rating", "time", "original_user_ids", "original_item_ids", "item_titles")
Reader = Callable[[ReadOptions], InteractionData]


def _file_hash(path: Path) -> tuple[str, str]:
    with path.open("rb") as handle:
        return path.name, hashlib.file_digest(handle, "sha256").hexdigest()


# Hashed on import: this is the code that runs, even if a file is edited later.
SOURCE = [_file_hash(path) for path in sorted(Path(__file__).parents[1].rglob("*.py"))]


def cached(name: str, read: Reader, raw_files: Callable[[ReadOptions], Sequence[Path]]) -> Reader:
    """Wrap a reader: what it read before from the same files with the same options is loaded from `options.cache_dir`.

    `raw_files` names every file that the reader will read; it may raise what the reader would. A cache that is broken
    or cannot be written costs time and one warning, never the run. Without `options.may_write` nothing is stored.
    """

    @functools.wraps(read)
    def read_cached(options: ReadOptions) -> InteractionData:
        files = raw_files(options)
        key = _key(name, files, options)
        path = Path(options.cache_dir) / "data" / name / f"{key}.npz"
        data = None if key is None else _load(path)
        if data is None:
            data = read(options)
            # If a file changed while it was read, the data do not belong to the key.
            if options.may_write and key is not None and key == _key(name, files, options):
                _store(path, data)
        return data

    return read_cached


def _key(name: str, files: Sequence[Path], options: ReadOptions) -> str | None:
    """Hash what decides the result, or None where a file cannot be read (the reader knows what to do about it)."""
    try:
        contents = [_file_hash(path) for path in files]
    except OSError:
        return None
    settings = [options.max_bad_rows, options.keep_incomplete_users, encoder_parts(options.title_encoder)]
    libraries = [version(library) for library in LIBRARIES]
    return hashlib.sha256(json.dumps([name, contents, settings, SOURCE, libraries]).encode()).hexdigest()[:32]


def _load(path: Path) -> InteractionData | None:
    try:
        # Reading a member of the archive checks its checksum, so damage is noticed.
        with np.load(path, allow_pickle=False) as entry:
            return _unpack({name: entry[name] for name in entry.files})
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except Exception as error:  # broken bytes can fail anywhere, and the raw files are still there
        reason = (str(error).splitlines() or [""])[0]
        warn(f"data cache {path} cannot be used ({type(error).__name__}: {reason}); reading anew")
        return None


def _store(path: Path, data: InteractionData) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **_pack(data))
        # Another process may move or remove files of the folder meanwhile; the next writer removes the rest.
        with contextlib.suppress(FileNotFoundError):
            for entry in sorted(path.parent.iterdir(), key=lambda entry: entry.stat().st_mtime_ns)[:-KEPT]:
                entry.unlink()
    except OSError as error:
        _warn_unwritable(path.parent, error.strerror or str(error))


@functools.cache
def _warn_unwritable(folder: Path, reason: str) -> None:
    warn(f"data cannot be cached in {folder} ({reason}); every start reads the raw files")


def _pack(data: InteractionData) -> dict[str, np.ndarray]:
    """Take a data set apart into arrays; text and everything small become one array of JSON bytes, `facts`."""
    fields = {name: getattr(data, name) for name in PLAIN_FIELDS if getattr(data, name) is not None}
    text = {name: values.tolist() for name, values in fields.items() if values.dtype == object}
    arrays = {name: values for name, values in fields.items() if name not in text}
    tables = {"users": data.users, "items": data.items}
    for side, table in tables.items():
        arrays |= {f"{side}/{name}": column.numpy() for name, column in table.columns.items()}
    arrays |= {f"groups/{name}": group.codes for name, group in data.user_groups.items()}
    facts = {
        "name": data.name,
        "text": text,
        "schemas": {side: [astuple(spec) for spec in table.schema] for side, table in tables.items()},
        "groups": {name: group.labels for name, group in data.user_groups.items()},
        "report": asdict(data.report),
    }
    return arrays | {"facts": np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)}


def _unpack(arrays: dict[str, np.ndarray]) -> InteractionData:
    """Put a data set together again, through the constructors that check it."""
    facts = json.loads(arrays["facts"].tobytes())
    fields = {name: arrays.get(name) for name in PLAIN_FIELDS}
    fields |= {name: np.array(values, dtype=object) for name, values in facts["text"].items()}
    for side, specs in facts["schemas"].items():
        schema = tuple(FeatureSpec(*spec) for spec in specs)
        fields[side] = FeatureTable(schema, {s.name: torch.from_numpy(arrays[f"{side}/{s.name}"]) for s in schema})
    groups = {name: Group(name, arrays[f"groups/{name}"], tuple(labels)) for name, labels in facts["groups"].items()}
    report = facts["report"]
    rejected = tuple(Rejected(**(entry | {"lines": tuple(entry["lines"])})) for entry in report["rejected"])
    report = ReadReport(report["rows"], rejected, report["filtered"], report["encodings"], tuple(report["notes"]))
    return InteractionData(name=facts["name"], user_groups=groups, report=report, **fields)
