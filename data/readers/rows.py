"""Rows of raw files, read in bulk: a row that cannot be read is counted with its line number, never guessed.

A last row without a line end is rejected (Decision 21): it may have been cut anywhere, and "1" may be the rest of "10".
"""

from __future__ import annotations

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
NEWLINE, CARRIAGE_RETURN, COLON, ZERO = b"\n\r:0"
UNREADABLE = re.compile("[\x00\ud800-\udfff]")  # NUL, and what surrogateescape made of undecodable bytes
CUT_OFF = "no line end, so the row may be cut off"


class DataError(ValueError):
    """Data that cannot be read; the message names the file, what is expected and the remedy."""


class FileRows:
    """The rows of one file that are still accepted, by column, and those rejected so far."""

    def __init__(self, file: str, columns: dict[str, np.ndarray], lines: np.ndarray, rejected: list[Rejected]):
        self.file = file
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
        """Drop the rows where `is_bad [N]` bool, and count them under `reason`."""
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


def parse_integers(text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parse unsigned decimal integers from str objects `[N]`: values `[N]` int64 (0 where invalid), validity `[N]`.

    A trailing ".0", which pandas writes in a column with gaps, is no part of the number.
    """
    codes, distinct = pd.factorize(text)
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
    """Read `::`-separated latin-1 text without header into str objects, one column per name."""
    lines, numbers, rejected = _readable_lines(path, "latin-1")
    text = pd.Series(lines, dtype=object).str.removesuffix("\n").str.removesuffix("\r")
    is_good = (text.str.count("::") == len(names) - 1).to_numpy(dtype=bool)
    if not is_good.all():
        rejected.append(_rejected(path.name, f"not {len(names)} fields", numbers[~is_good]))
    fields = text[is_good].str.split("::", expand=True).reindex(columns=range(len(names)))
    columns = {name: fields[index].to_numpy(dtype=object) for index, name in enumerate(names)}
    return FileRows(path.name, columns, numbers[is_good], rejected)


def read_integer_rows(path: Path, names: Sequence[str]) -> FileRows:
    """Read `::`-separated unsigned integers without header into int64, one column per name.

    Works on the bytes: fields are found and their digits summed for all rows at once.
    """
    data = _read_bytes(path)
    buffer = np.frombuffer(data, dtype=np.uint8)
    stops = np.flatnonzero(buffer == NEWLINE)
    starts = np.concatenate([[0], stops + 1])
    rejected = []
    if starts[-1] < len(data):
        rejected.append(_rejected(path.name, CUT_OFF, np.array([len(starts)])))
    starts, numbers = starts[:-1], np.arange(1, len(starts))

    is_colon = buffer == COLON
    separators = np.flatnonzero(is_colon[:-1] & is_colon[1:])
    first, last = np.searchsorted(separators, [starts, stops])
    is_good = last - first == len(names) - 1
    if not is_good.all():
        rejected.append(_rejected(path.name, f"not {len(names)} fields", numbers[~is_good]))
    starts, stops, first, numbers = (array[is_good] for array in (starts, stops, first, numbers))
    stops = stops - (buffer[stops - 1] == CARRIAGE_RETURN)

    between = [separators[first + field] for field in range(len(names) - 1)]
    begins = [starts, *(position + len("::") for position in between)]
    ends = [*between, stops]
    fields = [_digits(buffer, begin, end) for begin, end in zip(begins, ends, strict=True)]
    rows = FileRows(path.name, {name: fields[index][0] for index, name in enumerate(names)}, numbers, rejected)
    rows.reject(~np.logical_and.reduce([is_integer for _, is_integer in fields]), "a field is not a whole number")
    return rows


def _digits(buffer: np.ndarray, begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values `[N]` int64 of the decimal digits in `buffer[begin:end]`, and whether they are 1 to 18 digits."""
    lengths = end - begin
    is_integer = (lengths >= 1) & (lengths <= MAX_DIGITS)
    lengths = np.where(is_integer, lengths, 0)
    values = np.zeros(len(begin), dtype=np.int64)
    for place in range(lengths.max(initial=0)):
        is_inside = place < lengths
        # uint8 wraps: a byte below "0" becomes large, so one comparison tells digits.
        digit = buffer[np.where(is_inside, begin + place, 0)] - np.uint8(ZERO)
        is_integer &= ~is_inside | (digit < 10)
        values = np.where(is_inside & is_integer, values * 10 + digit, values)
    return np.where(is_integer, values, 0), is_integer


def read_csv_rows(path: Path, names: Mapping[str, str], encoding: str, escape: str | None = None) -> FileRows:
    """Read `;`-separated text with a header into str objects; `names` maps header fields to column names.

    Quoted fields may hold `;`, line ends and doubled quotes; with `escape`, also escaped characters. Reading
    resumes on the line after the first line of a broken row, so that one stray quote costs one line; a row of more
    than `LONGEST_ROW` lines is broken.
    """
    lines, numbers, rejected = _readable_lines(path, encoding)
    dialect = {"delimiter": ";", "quotechar": '"', "escapechar": escape, "doublequote": True, "strict": True}
    header = _header(path, lines, numbers, names, dialect)
    fields, starts, broken = _tokenize(lines, numbers, len(header), dialect)
    rejected += [_rejected(path.name, reason, numbers[np.array(bad)]) for reason, bad in broken.items()]
    table = np.array(fields, dtype=object).reshape(len(starts), len(header))
    columns = {name: table[:, header.index(field)] for field, name in names.items()}
    rows = FileRows(path.name, columns, numbers[np.array(starts, dtype=np.int64)], rejected)
    rows.reject((table == np.array(header, dtype=object)).all(axis=1), "repeats the header")
    return rows


def _header(path: Path, lines: list[str], numbers: np.ndarray, names: Mapping[str, str], dialect: dict) -> list[str]:
    try:
        header = next(csv.reader(lines[:1], **dialect), [])
    except csv.Error:
        header = []
    if len(numbers) == 0 or numbers[0] != 1 or any(header.count(field) != 1 for field in names):
        found = ";".join(header)[:200] if header else "nothing that can be read"
        raise DataError(
            f"{path.name}: the first line is {found!r}, it must have the columns {';'.join(names)}, each once; "
            "replace the file with a complete copy"
        )
    return header


def _tokenize(
    lines: list[str], numbers: np.ndarray, width: int, dialect: dict
) -> tuple[list[str], list[int], dict[str, list[int]]]:
    """Split `lines` after the header into rows of `width` fields: all fields in one list, first lines, bad lines."""
    fields, starts, broken = [], [], {}
    # a row never goes on beyond a line that could not be read
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


def _readable_lines(path: Path, encoding: str) -> tuple[list[str], np.ndarray, list[Rejected]]:
    """Lines of a text file with their line ends, their 1-based numbers, and the lines that cannot be decoded."""
    text = _read_bytes(path).decode(encoding, errors="surrogateescape")
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
    return lines, numbers, rejected


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror}); put a readable copy there") from error
    if not data:
        raise DataError(f"{path.name}: the file is empty; replace it with a complete copy")
    return data


def _rejected(file: str, reason: str, lines: np.ndarray) -> Rejected:
    return Rejected(file, reason, len(lines), tuple(int(line) for line in lines[:LINES_NAMED]))


def _join(lines: Sequence[int]) -> str:
    return ", ".join(str(line) for line in lines)
