"""What a run leaves behind: the table on the console and the files of its folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np
import pandas as pd
from tabulate import tabulate

from data.structs import Group, Ranking

WIDTH = 120
UNDEFINED = "\N{EN DASH}"
ARROWS = {"lower": "↓", "higher": "↑", "zero": "→0", "one": "→1"}
REFERENCES = {"most popular": "reference/popular", "random": "reference/random"}
ACCURACY = {"hr": "HR", "ndcg": "NDCG", "mrr": "MRR"}
EXPOSURE_AND_PARITY = {
    "gini": "Gini of exposure",
    "gini_count": "Gini of counts",
    "coverage": "Catalogue coverage",
    "arp": "Average popularity (train interactions)",
    "aplt": "Tail share of the list",
    "exposure_gap": "Tail's exposure share less its catalogue share",
    "dtr": "Exposure per train interaction, tail / head",
    "dp_code": "DP as FDA's code computes it",
    "eo_code": "EO as FDA's code computes it",
    "dp": "Demographic parity, raw counts",
    "eo": "Equal opportunity, raw counts",
    "dp_rate": "Demographic parity, rates",
    "eo_rate": "Equal opportunity, rates",
    "dp_js": "Demographic parity, JS distance",
    "eo_js": "Equal opportunity, JS distance",
    "leakage_auc": "Leakage AUC, strongest attacker (0.5: none)",
    "leakage_auc_erased": "Leakage AUC after linear erasure",
}
# More groups than this, or longer labels, get a table of their own with one group a row.
GROUP_COLUMNS, GROUP_COLUMNS_WIDTH = 4, 36
KEY = re.compile(r"(?P<base>[^@/]+)(@(?P<k>\d+))?(/(?P<tail>.+))?")

Row = list[str]


@dataclass(frozen=True)
class Table:
    """A table of texts: the first `left` columns are aligned left, numbers right; `note` stands below it."""

    caption: str
    headers: Row
    rows: list[Row]
    left: int = 1
    note: str = ""

    def text(self) -> str:
        """The table as the console shows it."""
        alignment = ["left"] * self.left + ["right"] * (len(self.headers) - self.left)
        body = tabulate(self.rows, self.headers, tablefmt="simple", disable_numparse=True, colalign=alignment)
        return "\n".join(part for part in (self.caption, body, self.note) if part)


def result_text(header: Mapping[str, str], tables: Sequence[Table]) -> str:
    """The `header` lines and `tables` as text that a reader takes in at a glance."""
    return "\n\n".join(block for block in (_header_lines(header), *(table.text() for table in tables)) if block)


def result_tables(
    results: Mapping[str, float],
    groups: Mapping[str, Sequence[str]],
    k: int,
    directions: Mapping[str, str],
    prefix: str = "test",
    references: Mapping[str, str] = REFERENCES,
) -> list[Table]:
    """Lay out one evaluation's `results` (flat keys, fractions) as tables.

    Accuracy in percent comes first (`groups`: attribute -> labels; the first attribute shares the main table when it
    is small), then exposure and parity with an arrow from `directions` (base name -> lower, higher, zero or one) for
    the better side; a metric that has neither a name here nor a direction is left out. `references` gives each
    yardstick column its key prefix; a column without any value is left out. A dash is an undefined value (NaN), a
    blank one that was not measured.
    """
    runs = {"": prefix}
    if any(name.startswith(f"{prefix}/reranked/") for name in results):
        runs["re-ranked"] = f"{prefix}/reranked"
    yardsticks = {name: root for name, root in references.items() if any(key.startswith(f"{root}/") for key in results)}
    first = next(iter(groups), None)
    inline = first if first is not None and fits_columns(groups[first]) else None
    tables = [_accuracy_table(results, runs, yardsticks, k, inline, groups)]
    tables += [_group_table(results, runs, k, name, groups[name]) for name in groups if name != inline]
    columns = {"this run": prefix, **{name: root for name, root in runs.items() if name}, **yardsticks}
    tables.append(_exposure_table(results, columns, k, directions))
    return [table for table in tables if table.rows]


def fits_columns(labels: Sequence[str]) -> bool:
    """Whether groups of these labels share a table with the rest."""
    return len(labels) <= GROUP_COLUMNS and sum(len(label) + 2 for label in labels) <= GROUP_COLUMNS_WIDTH


def _header_lines(header: Mapping[str, str]) -> str:
    margin = max((len(name) for name in header), default=0) + 2
    return "\n".join(
        textwrap.fill(f"{name:<{margin}}{value}", WIDTH, subsequent_indent=" " * margin)
        for name, value in header.items()
    )


def cell(results: Mapping[str, float], key: str, scale: float = 100, digits: int = 2) -> str:
    """A metric as text: `scale` times it, a dash where it is undefined, nothing where it was not measured."""
    if key not in results:
        return ""
    value = results[key]
    return UNDEFINED if value is None or math.isnan(value) else f"{scale * value:.{digits}f}"


def _accuracy_table(results, runs, yardsticks, k, attribute, groups) -> Table:
    tails = {"overall": "", "head": "/head", "tail": "/tail"}
    if attribute is not None:
        tails |= {label: f"/{attribute}/{label}" for label in groups[attribute]}
    first = next(iter(groups), None)
    if first is not None:
        tails["gap" if attribute is not None else f"gap {first}"] = f"/gap/{first}"
    rows = []
    for base, name in ACCURACY.items():
        for run, root in runs.items():
            row = [f"{name}@{k}{', ' if run else ''}{run}"]
            row += [cell(results, f"{root}/{base}@{k}{tail}") for tail in tails.values()]
            row += ["" if run else cell(results, f"{other}/{base}@{k}") for other in yardsticks.values()]
            rows.append(row)
    of_whom = f"; groups and gap by {attribute}" if attribute is not None else ""
    return Table(f"Accuracy, in percent{of_whom}", ["", *tails, *yardsticks], rows)


def _group_table(results, runs, k, attribute, labels) -> Table:
    columns = [(base, run) for run in runs for base in ACCURACY]
    headers = [attribute] + [f"{ACCURACY[base]}@{k}{', ' if run else ''}{run}" for base, run in columns]
    tails = {**{label: f"{attribute}/{label}" for label in labels}, "gap": f"gap/{attribute}"}
    rows = [
        [label] + [cell(results, f"{runs[run]}/{base}@{k}/{tail}") for base, run in columns]
        for label, tail in tails.items()
    ]
    return Table(f"Accuracy by {attribute}, in percent", headers, rows)


def _exposure_table(results, columns, k, directions) -> Table:
    # Any other name under the prefix is a phase, a task or a control with a table of its own.
    known = (set(directions) | set(EXPOSURE_AND_PARITY)) - set(ACCURACY)
    found = {}
    for root in columns.values():
        for key in results:
            match = KEY.fullmatch(key[len(root) + 1 :]) if key.startswith(f"{root}/") else None
            if match and match["base"] in known and match["k"] in (None, str(k)):
                found[match.group()] = (match["base"], match["tail"] or "")
    order = {base: place for place, base in enumerate(EXPOSURE_AND_PARITY)}
    rows = []
    for tail, (base, of_whom) in sorted(found.items(), key=lambda e: (order.get(e[1][0], len(order)), e[1])):
        name = EXPOSURE_AND_PARITY.get(base, base) + (f", {of_whom}" if of_whom else "")
        digits = 1 if base == "arp" else 4
        cells = [cell(results, f"{root}/{tail}", 1, digits) for root in columns.values()]
        rows.append([name, ARROWS.get(directions.get(base), ""), *cells])
    caption = f"Exposure and parity of the top {k}, as fractions unless a unit is given"
    legend = f"Better: ↓ lower, ↑ higher, →0 near 0, →1 near 1.  {UNDEFINED} undefined."
    return Table(caption, ["", "better", *columns], rows, left=2, note=legend)


class WriteError(OSError):
    """A file that could not be written; the message names it and the remedy, and what was there before is whole."""

    @classmethod
    def of(cls, path: Path, error: OSError) -> WriteError:
        """The error for `path`."""
        return cls(f"cannot write {path} ({error.strerror or error}); make room there, or choose another place")


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path` that takes its place when the block ends well, and is removed if not.

    Raises WriteError where the file system refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch wraps what its file raised
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise WriteError.of(path, cause) from error
    finally:
        with contextlib.suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)


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


def check_table_path(path: Path | str) -> None:
    """Raise ValueError where `write_frame` could not write: the suffix is another one, or there is no such folder."""
    path = Path(path)
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"{path}: allowed is a file name that ends in .csv or .parquet")
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write {path}: allowed is a file in a folder that exists and can be written")


def write_frame(path: Path | str, frame: pd.DataFrame) -> None:
    """Write a table as parquet or CSV, by the suffix of `path`, whole or not at all."""
    check_table_path(path)
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".csv":
            frame.to_csv(temporary, index=False)
        else:
            frame.to_parquet(temporary, engine="pyarrow", index=False)


def make_folder(directory: Path, remedy: str) -> None:
    """Create a folder where there is none; a place that cannot be written is a ValueError that ends in `remedy`."""
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
    """Create `output_dir`/`run_name` for a new run; with `resume` a folder will do that holds `unfinished` alone.

    A name that is not a plain folder name, a folder that already holds a run, and a place that cannot be written
    are ValueErrors.
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
    with _locked(path):
        try:
            yield directory
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path) -> TextIO:
    """Open and lock a file that is still at `path` then: who held it before may have removed it in between."""
    while True:
        try:
            file = open(path, "w")  # noqa: SIM115 (the caller closes it)
        except OSError as error:
            raise WriteError.of(path, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise ValueError(
                f"{path.parent} is in use by another process; wait for it, or pass another --run_name"
            ) from error
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


@contextlib.contextmanager
def own_run_dir(
    output_dir: Path | str, run_name: str, resume: bool = False, unfinished: str = "config.json"
) -> Iterator[Path]:
    """Reserve and lock a run's folder; a run that another process made in between is seen, and a ValueError."""
    wanted = (output_dir, run_name, resume, unfinished)
    with lock_run_dir(reserve_run_dir(*wanted)):
        yield reserve_run_dir(*wanted)
