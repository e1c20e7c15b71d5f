"""A report as one file: text, tables and pictures in one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import functools
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from data.files import atomic_path
from model.results.tables import UNDEFINED, Table
from model.runs.run import Run
from model.runs.settings import MODE_SETTINGS

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
    """A part of a page: `text` (line ends are kept), then tables, then pictures.

    A table is a `Table`, a pair (headers, rows), or a data frame, whose floats are shown with four digits.
    """

    title: str
    text: str = ""
    tables: Sequence[Table | tuple[Sequence, Sequence[Sequence]] | pd.DataFrame] = ()
    images: Sequence[Picture] = ()


def typed_command() -> str:
    """The command that this program was called by, ready to paste."""
    return shlex.join(["python", *sys.argv])


def write_page(path: Path | str, title: str, command: str, sections: Sequence[Section]) -> None:
    """Write `sections` as one HTML file, whole or not at all, under a `title` and the `command` that gave it."""
    sections = [dataclasses.replace(part, tables=[_table(table) for table in part.tables]) for part in sections]
    page = _template().render(title=title, command=command, sections=sections)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    return jinja2.Environment(loader=loader, **options).get_template("report.html")


def _table(table) -> Table:
    if isinstance(table, Table):
        return table
    headers, rows = (table.columns, table.itertuples(index=False)) if isinstance(table, pd.DataFrame) else table
    return Table("", [str(header) for header in headers], [[_cell(value) for value in row] for row in rows])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return UNDEFINED if value != value else f"{value:.4f}"
    return "" if value is None else str(value)


def run_sections(
    run: Run,
    header: Mapping[str, str],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    rows: Sequence[Mapping],
    trained: bool,
) -> list[Section]:
    """What the page of a run holds; `rows` are those of `metrics.jsonl`, which only a `trained` run has."""
    config = run.config
    names = MODE_SETTINGS["train" if trained else "score"]
    settings = [(f"--{name}", _setting(value)) for name, value in config.as_json().items() if name in names]
    sections = [
        Section("Run", tables=[Table("", ["", ""], [[name, value] for name, value in header.items()], left=2)]),
        Section("Results", tables=tables),
        Section("Pictures", images=pictures),
    ]
    if rows:
        text = "Validation at the first K; metrics.jsonl has every value of every epoch."
        sections.append(Section("Metrics by epoch", text, [epoch_frame(rows, config.eval_k[0])]))
    data = Section("Data", "\n".join(run.data_lines()))
    return [*sections, data, Section("Settings", tables=[Table("", ["flag", "value"], settings, left=2)])]


def epoch_frame(rows: Sequence[Mapping], k: int) -> pd.DataFrame:
    """A row per epoch: what training reported, and the main validation metrics at cut-off `k`."""
    frame = pd.DataFrame(
        [{key: float("nan") if value is None else value for key, value in row.items()} for row in rows]
    )
    names = ["hr@{k}", "ndcg@{k}", "ndcg@{k}/head", "ndcg@{k}/tail", "gini@{k}", "coverage@{k}", "aplt@{k}"]
    validation = [f"valid/{name.format(k=k)}" for name in names]
    lead = ["epoch"] if frame["epoch"].is_unique else ["phase", "stage", "epoch"]
    training = [name for name in frame.columns if name.startswith("train/")]
    return frame[[name for name in (*lead, *training, *validation) if name in frame.columns]]


def _setting(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else "" if value is None else str(value)
