"""A report as one file: text, tables and pictures in one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import functools
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.files import atomic_path
from model.results.text_table import Table

MIME = {".png": "image/png", ".svg": "image/svg+xml"}
# up to the end of the first whole number: "<0", "[-1,234", all of "–" and ""
WHOLE = re.compile(r"\D*(\d{1,3}(,\d{3})+|\d+)?")


@dataclass(frozen=True)
class Picture:
    """A picture: its title, a sentence that says how to read it, and the same picture in one or more formats."""

    title: str
    caption: str
    paths: tuple[Path, ...]

    @property
    def data_uri(self) -> str:
        """Its SVG file, to be put into a page: sharp, and with text of one size, at any width of the window."""
        path = next(path for path in self.paths if path.suffix == ".svg")
        return f"data:{MIME[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


@dataclass(frozen=True)
class Section:
    """A part of a page: a list of `lines` and one of `warnings`, `text` (line ends are kept), tables, then pictures.

    Of a line what stands before its first colon is bold. Where the part is `folded` its tables are hidden until the
    reader asks for them.
    """

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    images: Sequence[Picture] = ()
    lines: Sequence[str] = ()
    warnings: Sequence[str] = ()
    folded: bool = False


@dataclass(frozen=True)
class Cell:
    """A text in two parts: `before` ends where its first number has its point, `after` takes the room of `widest`.

    `widest` has a line for each form that `after` has in the column, and is "" where nothing must be aligned.
    """

    before: str
    after: str = ""
    widest: str = ""


def aligned(table: Table) -> list[list[Cell]]:
    """Cut the cells of `table` so that the numbers of a column stand below each other at their points."""
    columns = [
        [Cell(text) for text in column] if place < table.left else _aligned(column)
        for place, column in enumerate(zip(*table.rows, strict=True))
    ]
    return [list(row) for row in zip(*columns, strict=True)]


def _aligned(column: Sequence[str]) -> list[Cell]:
    ends = [WHOLE.match(text).end() for text in column]
    # all digits are equally wide
    forms = {re.sub(r"\d", "0", text[end:]) for text, end in zip(column, ends, strict=True) if text}
    widest = "\n".join(sorted(forms)) if len(forms) > 1 else ""
    return [Cell(text[:end], text[end:], widest) if text else Cell("") for text, end in zip(column, ends, strict=True)]


def typed_command() -> str:
    """Give the command by which this program was called, ready to paste."""
    return shlex.join(["python", *sys.argv])


def write_page(path: Path | str, title: str, command: str, sections: Sequence[Section]) -> None:
    """Write `sections` as one HTML file, whole or not at all, under a `title` and the `command` that gave it."""
    page = _template().render(title=title, command=command, sections=sections, aligned=aligned)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


@functools.cache
def _template() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    return jinja2.Environment(loader=loader, **options).get_template("report.html")
