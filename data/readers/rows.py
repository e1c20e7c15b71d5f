"""Rows of raw files, read in bulk: a row that cannot be read is counted with its line number, never guessed.

A last row without a line end is rejected (Decision 21): it may have been cut anywhere, and "1" may be the rest of "10".
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path

import numpy as np
import pandas as pd

from data.structs import Rejected

LINES_NAMED = 5
REASONS_NAMED = 3
MAX_DIGITS = 18  # the most that always fit int64
LONGEST_ROW = 32  # lines; a quote that nothing closes would otherwise run through the whole file
UNREADABLE = re.compile("[\x00\ud800-\udfff]")  # NUL, and what surrogateescape made of undecodable bytes
CUT_OFF = "no line end, so the row may be cut off"


class DataError(ValueError):
    """Data that cannot be read; the message names the file, what is expected and the remedy."""


class FileRows:
    """The rows of one file that are still accepted, by column, and those rejected so far."""

    def __init__(
        self,
        file: str,
        columns: dict[str, np.ndarray],
        lines: np.ndarray,
        rejected: list[Rejected],
        encoding: str | None = None,
    ):
        """`encoding` is the one that had to be found, None where there was nothing to find."""
        self.file = file
        self.encoding = encoding
        self.columns = columns
        self.lines = lines
        self.rejected = rejected

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def num_rejected(self) -> int:
        return sum(entry.count for entry in self.rejected)

    @property
    def num_rows(self) -> int:
        """Rows in the file, accepted or not, without the header."""
        return len(self) + self.num_rejected

    def reject(self, is_bad: np.ndarray, reason: str) -> None:
        """Drop the rows where `is_bad [N]` (bool) is true, and count them under `reason`."""
        if not is_bad.any():
            return
        self.rejected.append(_rejected(self.file, reason, self.lines[is_bad]))
        self.columns = {name: values[~is_bad] for name, values in self.columns.items()}
        self.lines = self.lines[~is_bad]

    def read_integers(self, name: str, low: int, high: int) -> None:
        """Turn column `name` from text into int64 within `low..high`; reject rows where it is anything else."""
        values, is_integer = parse_integers(self[name])
        self.columns[name] = values
        self.reject(~is_integer, f"{name} is not a whole number")
        self.reject((self[name] < low) | (self[name] > high), f"{name} is outside {low}-{high}")

    def check(self, max_bad_rows: float) -> None:
        """Raise DataError when no row is left, or more than the fraction `max_bad_rows` was rejected."""
        if self.num_rows == 0:
            raise DataError(f"{self.file}: the file has no rows; replace it with a complete copy")
        fraction = self.num_rejected / self.num_rows
        if len(self) and fraction <= max_bad_rows:
            return
        worst = sorted(self.rejected, key=lambda entry: -entry.count)
        reasons = [f"{entry.reason}: {entry.count:,}, line {_join(entry.lines)}" for entry in worst[:REASONS_NAMED]]
        if len(worst) > REASONS_NAMED:
            reasons.append(f"{len(worst) - REASONS_NAMED} more reasons")
        remedy = "replace it with a complete copy" if len(self) == 0 else "repair it, or raise --max_bad_rows"
        raise DataError(
            f"{self.file}: {self.num_rejected:,} of {self.num_rows:,} rows ({fraction:.3%}) cannot be read, allowed is "
            f"{max_bad_rows:.3%} and at least one good row ({'; '.join(reasons)}); {remedy}"
        )


def parse_integers(text: np.ndarray, gaps: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Parse unsigned decimal integers from str objects `[N]`: values `[N]` int64 (0 where invalid), validity `[N]`.

    With `gaps`, a trailing ".0" is no part of the number: pandas writes it in a column with gaps.
    """
    codes, distinct = pd.factorize(text)
    if gaps:
        distinct = pd.Series(distinct, dtype=object).str.removesuffix(".0").to_numpy(dtype=object)
    is_integer = matches(distinct, f"[0-9]{{1,{MAX_DIGITS}}}")
    values = np.zeros(len(distinct), dtype=np.int64)
    values[is_integer] = distinct[is_integer].astype(np.int64)
    return values[codes], is_integer[codes]


def matches(text: np.ndarray, pattern: str) -> np.ndarray:
    """Tell which str objects `[N]` match the regular expression as a whole."""
    return pd.Series(text, dtype=object).str.fullmatch(pattern).to_numpy(dtype=bool)


def is_repeated(*keys: np.ndarray) -> np.ndarray:
    """Tell which rows repeat the keys of an earlier row: `[N]` bool."""
    return pd.DataFrame(dict(enumerate(keys))).duplicated().to_numpy()


def read_text_rows(path: Path, names: Sequence[str]) -> FileRows:
    """Read `::`-separated text without header, latin-1 or UTF-8, into str objects, one column per name."""
    lines, numbers, rejected, actual_encoding = _readable_lines(path, "latin-1")
    text = pd.Series(lines, dtype=object).str.removesuffix("\n").str.removesuffix("\r")
    is_good = (text.str.count("::") == len(names) - 1).to_numpy(dtype=bool)
    if not is_good.all():
        rejected.append(_rejected(path.name, f"not {len(names)} fields", numbers[~is_good]))
    fields = text[is_good].str.split("::", expand=True).reindex(columns=range(len(names)))
    columns = {name: fields[index].to_numpy(dtype=object) for index, name in enumerate(names)}
    return FileRows(path.name, columns, numbers[is_good], rejected, actual_encoding)


def read_integer_rows(path: Path, names: Sequence[str]) -> FileRows:
    """Read `::`-separated unsigned integers without header into int64, one column per name."""
    table = _plain_integers(_read_bytes(path), len(names))
    if table is not None:
        columns = {name: table[index].to_numpy() for index, name in enumerate(names)}
        return FileRows(path.name, columns, np.arange(1, len(table) + 1), [])
    # some row is malformed: read again, slowly, to find which
    rows = read_text_rows(path, names)
    fields = {name: parse_integers(rows[name], gaps=False) for name in names}
    rows.columns = {name: values for name, (values, _) in fields.items()}
    rows.reject(
        ~np.logical_and.reduce([is_integer for _, is_integer in fields.values()]), "a field is not a whole number"
    )
    return rows


def _plain_integers(data: bytes, width: int) -> pd.DataFrame | None:
    """Read `::`-separated integers `[N, width]` int64 at once; None where a row is anything else."""
    data = data.removeprefix(codecs.BOM_UTF8)
    if data.translate(None, b"0123456789:\r\n") or not data.endswith(b"\n"):
        return None
    # leading zeros would be lost
    if data.startswith(b"0") or b"\n0" in data or b":0" in data:
        return None
    try:
        # the fast parser takes separators of one character only
        text = io.BytesIO(data.replace(b"::", b"\t"))
        table = pd.read_csv(text, sep="\t", header=None, dtype=np.int64, na_filter=False, skip_blank_lines=False)
    except (ValueError, OverflowError):
        return None
    is_plain = table.shape == (data.count(b"\n"), width) and table.to_numpy().max() < 10**MAX_DIGITS
    return table if is_plain else None


def read_csv_rows(
    path: Path, names: Mapping[str, str], encoding: str, escape: str | None = None, delimiter: str = ";"
) -> FileRows:
    """Read `delimiter`-separated text with a header into str objects; `names` maps header fields to column names.

    Quoted fields may hold the delimiter, line ends and doubled quotes; with `escape`, also escaped characters. Reading
    resumes on the line after the first line of a broken row, so that one stray quote costs one line; a row of more
    than `LONGEST_ROW` lines is broken.
    """
    lines, numbers, rejected, actual_encoding = _readable_lines(path, encoding)
    dialect = {"delimiter": delimiter, "quotechar": '"', "escapechar": escape, "doublequote": True, "strict": True}
    header = _header(path, lines, numbers, names, dialect)
    fields, starts, broken = _tokenize(lines, numbers, len(header), dialect)
    rejected += [_rejected(path.name, reason, numbers[np.array(bad)]) for reason, bad in broken.items()]
    table = np.array(fields, dtype=object).reshape(len(starts), len(header))
    columns = {name: table[:, header.index(field)] for field, name in names.items()}
    rows = FileRows(path.name, columns, numbers[np.array(starts, dtype=np.int64)], rejected, actual_encoding)
    rows.reject((table == np.array(header, dtype=object)).all(axis=1), "repeats the header")
    return rows


def _header(path: Path, lines: list[str], numbers: np.ndarray, names: Mapping[str, str], dialect: dict) -> list[str]:
    try:
        header = next(csv.reader(lines[:1], **dialect), [])
    except csv.Error:
        header = []
    if len(numbers) == 0 or numbers[0] != 1 or any(header.count(field) != 1 for field in names):
        delimiter = dialect["delimiter"]
        first_line = delimiter.join(header)[:200] if header else "nothing that can be read"
        raise DataError(
            f"{path.name}: the first line is {first_line!r}, it must have the columns {delimiter.join(names)!r}, each "
            "once; replace the file with a complete copy"
        )
    return header


def _tokenize(
    lines: list[str], numbers: np.ndarray, width: int, dialect: dict
) -> tuple[list[str], list[int], dict[str, list[int]]]:
    """Split `lines` after the header into rows of `width` fields: all fields in one list, first lines, bad lines."""
    fields, starts, broken = [], [], {}
    # a row ends at the latest before a line that could not be read
    follows = np.diff(numbers, prepend=-1) == 1
    start = 1

    def rest(position: int) -> Iterator[str]:
        for index in range(position, len(lines)):
            if index > start and (index - start >= LONGEST_ROW or not follows[index]):
                raise csv.Error("the row does not end")
            yield lines[index]

    while start < len(lines):
        position = start
        reader = csv.reader(rest(position), **dialect)
        reason = f"not {width} fields"
        try:
            for record in reader:
                if len(record) != width:
                    break
                fields.extend(record)  # one flat list: a million small ones would slow the garbage collector
                starts.append(start)
                start = position + reader.line_num
            else:
                return fields, starts, broken
        except csv.Error:
            reason = "broken quoting"
        broken.setdefault(reason, []).append(start)
        start += 1
    return fields, starts, broken


def _readable_lines(path: Path, encoding: str) -> tuple[list[str], np.ndarray, list[Rejected], str | None]:
    """Lines of a text file with their line ends, their 1-based numbers, the lines that cannot be decoded, and the
    encoding where it had to be found."""
    text, actual_encoding = _decoded(_read_bytes(path), encoding)
    lines = io.StringIO(text, newline="\n").readlines()
    numbers = np.arange(1, len(lines) + 1)
    rejected = []
    if lines and not lines[-1].endswith("\n"):
        rejected.append(_rejected(path.name, CUT_OFF, numbers[-1:]))
        lines, numbers = lines[:-1], numbers[:-1]
    if UNREADABLE.search(text):
        is_good = np.array([UNREADABLE.search(line) is None for line in lines], dtype=bool)
        if not is_good.all():
            rejected.append(_rejected(path.name, "NUL or undecodable bytes", numbers[~is_good]))
        lines, numbers = list(compress(lines, is_good)), numbers[is_good]
    return lines, numbers, rejected, actual_encoding


def _decoded(data: bytes, encoding: str) -> tuple[str, str | None]:
    """Decode a file whose format says `encoding`, without byte order mark; and the encoding where it had to be found.

    Any bytes are valid latin-1, so text with other characters than ASCII is tried as UTF-8 first (Decision 38).
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    if encoding != "latin-1" or data.isascii():
        return data.decode(encoding, errors="surrogateescape"), None
    try:
        return data.decode("utf-8"), "UTF-8"
    except UnicodeDecodeError:
        return data.decode(encoding), encoding


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror}); put a readable copy there") from error
    if not data:
        raise DataError(f"{path.name}: the file is empty; replace it with a complete copy")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path.name}: the file is UTF-16; save it as UTF-8")
    return data


def _rejected(file: str, reason: str, lines: np.ndarray) -> Rejected:
    return Rejected(file, reason, len(lines), tuple(int(line) for line in lines[:LINES_NAMED]))


def _join(lines: Sequence[int]) -> str:
    return ", ".join(str(line) for line in lines)
