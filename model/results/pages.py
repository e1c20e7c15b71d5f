"""A report as one file: text, tables and pictures in one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import functools
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.files import atomic_path
from model.results.text_table import Table

MIME = {".png": "image/png", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Picture:
    """A picture: its title, a sentence that says how to read it, and the same picture in one or more formats."""

    title: str
    caption: str
    paths: tuple[Path, ...]

    @property
    def data_uri(self) -> str:
        """The smallest of its files, to be put into a page."""
        path = min(self.paths, key=lambda path: path.stat().st_size)
        return f"data:{MIME[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


@dataclass(frozen=True)
class Section:
    """A part of a page: `text` (line ends are kept), then tables, then pictures."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    images: Sequence[Picture] = ()


def typed_command() -> str:
    """Give the command by which this program was called, ready to paste."""
    return shlex.join(["python", *sys.argv])


def write_page(path: Path | str, title: str, command: str, sections: Sequence[Section]) -> None:
    """Write `sections` as one HTML file, whole or not at all, under a `title` and the `command` that gave it."""
    page = _template().render(title=title, command=command, sections=sections)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


@functools.cache
def _template() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    return jinja2.Environment(loader=loader, **options).get_template("report.html")
