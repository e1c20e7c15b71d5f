"""A comparison as LaTeX tables that a paper can take."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from model.comparison.overview import Block, Column, Overview
from model.results.latex import escape, latex_table

LEVELS = {0.001: "***", 0.01: "**", 0.05: "*"}
# what got worse has this sign instead of stars, as often as it would have stars
WORSE = r"\dagger"
# a table of more letters in a row than fit into one of two columns spans both
ONE_COLUMN, BOTH_COLUMNS = 44, 100
MATH = {"↓": r"$\downarrow$", "↑": r"$\uparrow$", "→": r"$\to$", "±": r"$\pm$"}


def latex_report(overview: Overview, name: str, data: str, details: str) -> str:
    """Make booktabs tables of an overview, runs as rows, and yardsticks below a rule.

    The best run and those within noise of it are bold; stars are at what is better than in the first run, daggers at
    what is worse. `name` is that of the comparison, which labels begin with, `data` a few words on the data, and
    `details` stand in a comment.
    """
    tables = []
    for block in overview.blocks:
        for part in _parts(block, overview):
            tables.append(_table(overview, block, part, f"tab:{label_of(name)}-{len(tables) + 1}", data))
    return "\n".join([f"% needs booktabs\n{comment(details)}\n", *tables])


def comment(content: str) -> str:
    """Write a text as lines of a LaTeX comment."""
    return "\n".join(f"% {line}" for line in textwrap.wrap(content, 110))


def label_of(name: str) -> str:
    """Give a name that a LaTeX label may hold."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "comparison"


def _parts(block: Block, overview: Overview) -> list[list[Column]]:
    """The columns of a block, cut where a table would be wider than a page; what belongs together stays so."""
    together: list[list[Column]] = []
    for column in block.columns:
        if column.belongs:
            together[-1].append(column)
        else:
            together.append([column])
    parts: list[list[Column]] = [[]]
    for columns in together:
        if parts[-1] and _width([*parts[-1], *columns], overview) > BOTH_COLUMNS:
            parts.append([])
        parts[-1] += columns
    return parts


def _width(columns: Sequence[Column], overview: Overview) -> int:
    """Letters in a row, with three between columns."""
    names = max(len(name) for name in (*overview.names, *overview.yardsticks))
    return names + sum(3 + max(map(len, (column.header, *column.cells))) for column in columns)


def _table(overview: Overview, block: Block, columns: Sequence[Column], label: str, data: str) -> str:
    by_column = [
        [_cell(column, place) for place in range(len(overview.names) + len(overview.yardsticks))] for column in columns
    ]
    names = [*overview.names, *overview.yardsticks]
    rows = [[text(name), *(cells[place] for cells in by_column)] for place, name in enumerate(names)]
    caption = f"{text(block.title)} ({text(data)}). {_signs(columns)}".strip()
    headers = ["", *(text(column.header) for column in columns)]
    ruled = len(overview.names) if overview.yardsticks else None
    return latex_table(headers, rows, caption, label, wide=_width(columns, overview) > ONE_COLUMN, ruled=ruled)


def _cell(column: Column, place: int) -> str:
    content = text(column.cells[place])
    content = rf"\textbf{{{content}}}" if place in column.best else content
    for signs, mark in ((column.better, lambda stars: stars), (column.worse, lambda stars: WORSE * len(stars))):
        if place in signs:
            stars = next(stars for level, stars in sorted(LEVELS.items()) if signs[place] <= level)
            content += f"$^{{{mark(stars)}}}$"
    return content


def _signs(columns: Sequence[Column]) -> str:
    """Explain the signs that a table has."""
    parts = ["Bold: the best, and what does not differ from it beyond noise."] if any(c.best for c in columns) else []
    levels = ", ".join(f"{level:g}" for level in sorted(LEVELS, reverse=True))
    if any(column.better for column in columns):
        parts.append(rf"$^{{*}}$, $^{{**}}$, $^{{***}}$: better than the first run, $p < {levels}$.")
    if any(column.worse for column in columns):
        parts.append(rf"$^{{{WORSE}}}$: worse, at the same levels.")
    return " ".join(parts)


def text(content: str) -> str:
    """Escape a text, arrows and all."""
    escaped = escape(content)
    for sign, command in MATH.items():
        escaped = escaped.replace(sign, command)
    return escaped
