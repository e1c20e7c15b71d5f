"""Tables of text that fit the console; the report shows the same ones."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from data.messages import WIDTH, wrapped
from model.results.metric_text import WITHIN

# The first column is narrowed down to this, and longer words of a header are broken, where a table is too wide.
NARROW = 24
# behind what stands out in its column
BEST = "*"

Row = list[str]


@dataclass(frozen=True)
class Table:
    """A table of texts: the first `left` columns are aligned left, numbers right; `note` stands below it.

    `best` are the cells (row, column) that stand out: `BEST` is behind them, on a page they are bold. Below the first
    `ruled` rows there is a rule (None: nowhere).
    """

    caption: str
    headers: Row
    rows: list[Row]
    left: int = 1
    note: str = ""
    best: frozenset[tuple[int, int]] = frozenset()
    ruled: int | None = None

    def text(self) -> str:
        """Write the table as the console shows it."""
        note = "\n".join(map(wrapped, self.note.splitlines()))
        rows = [
            [cell + BEST * ((place, column) in self.best) for column, cell in enumerate(row)]
            for place, row in enumerate(self.rows)
        ]
        parts = (wrapped(self.caption), grid(self.headers, rows, self.left, self.ruled), note)
        return "\n".join(part for part in parts if part)


def grid(headers: Row, rows: Sequence[Row], left: int = 1, ruled: int | None = None) -> str:
    """Write cells in aligned columns: the first `left` columns are aligned left, the others right.

    Below the first `ruled` rows there is a rule (None: nowhere). Where that is wider than the console, headers are
    broken between words, and if need be the first column is.
    """
    columns = _columns(headers, rows)
    widths = [max(map(len, column)) for column in columns]
    if _total(widths) > WIDTH:
        wide, widths = widths, [_least_width(*column) for column in columns]
        widths[0] = min(NARROW, widths[0])
        # what room is left goes to the first columns that it suffices for; the very first takes any
        for place, width in enumerate(wide):
            room = WIDTH - _total(widths)
            if place == 0 or width - widths[place] <= room:
                widths[place] += max(0, min(room, width - widths[place]))
    header, *body = [
        [textwrap.wrap(cell, width) if len(cell) > width else [cell] for cell, width in zip(row, widths, strict=True)]
        for row in zip(*columns, strict=True)
    ]
    height = max(map(len, header))
    lines = [*zip(*([""] * (height - len(cell)) + cell for cell in header), strict=True)]
    lines.append(tuple("-" * width for width in widths))
    for place, row in enumerate(body):
        if place == ruled:
            lines.append(lines[height])
        lines += zip_longest(*row, fillvalue="")
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _columns(headers: Row, rows: Sequence[Row]) -> list[Row]:
    """The columns, each with its header; numbers stay aligned where some of them have a mark behind."""
    columns = []
    for header, *cells in zip(headers, *rows, strict=True):
        marks = [len(cell) - len(cell.rstrip(WITHIN + BEST)) for cell in cells]
        columns.append([header, *(cell + " " * (max(marks) - count) for cell, count in zip(cells, marks, strict=True))])
    return columns


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _least_width(header: str, *cells: str) -> int:
    """How narrow a column can be: cells stay whole, and so do words of the header."""
    return max([min(NARROW, len(word)) for word in header.split()] + [len(cell) for cell in cells], default=0)


def fitted(table: Table, blocks: Sequence[int]) -> list[Table]:
    """Cut the table into parts that are no wider than the console, each with the first column.

    `blocks` are the numbers of columns, from the second on, that stay together.
    """
    first, *widths = [_least_width(*column) for column in _columns(table.headers, table.rows)]
    parts, used, place = [[]], min(NARROW, first), 1
    for size in blocks:
        block = [*range(place, place + size)]
        width = sum(widths[number - 1] + 2 for number in block)
        if parts[-1] and used + width > WIDTH:
            parts.append([])
            used = min(NARROW, first)
        parts[-1] += block
        used, place = used + width, place + size
    if len(parts) == 1:
        return [table]
    head, comma, rest = table.caption.partition(",")
    return [
        Table(
            f"{head} ({number}){comma}{rest}",
            [table.headers[0], *(table.headers[place] for place in part)],
            # what was measured in other parts alone has no row here
            [[row[0], *(row[place] for place in part)] for row in table.rows if any(row[place] for place in part)],
            note=table.note if number == len(parts) else "",
            best=frozenset(
                (row, column) for column, place in enumerate(part, 1) for row, old in table.best if old == place
            ),
            ruled=table.ruled,
        )
        for number, part in enumerate(parts, 1)
    ]


def result_text(header: Mapping[str, str], tables: Sequence[Table]) -> str:
    """Write the `header` lines and `tables` as text for the console."""
    return "\n\n".join(block for block in (_header_lines(header), *(table.text() for table in tables)) if block)


def _header_lines(header: Mapping[str, str]) -> str:
    margin = max((len(name) for name in header), default=0) + 2
    options = {"subsequent_indent": " " * margin, "break_long_words": False, "break_on_hyphens": False}
    return "\n".join(textwrap.fill(f"{name:<{margin}}{value}", WIDTH, **options) for name, value in header.items())
