"""The report page of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from data.messages import shown
from model.evaluation.keys import validation_key, validation_metrics
from model.evaluation.metric_kinds import EPOCHS
from model.results.metric_text import UNDEFINED, columns
from model.results.pages import Picture, Section
from model.results.text_table import Table
from model.runs.config import Config
from model.runs.run import Run
from model.runs.setting import declared


def run_sections(
    run: Run,
    header: Mapping[str, str],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    rows: Sequence[Mapping],
    trained: bool,
    summary: Sequence[str] = (),
    cautions: Sequence[str] = (),
) -> list[Section]:
    """Make the sections of a run's page: what it found (`summary`) and the `cautions` about it, then its parts.

    `rows` are those of `metrics.jsonl`, which only a `trained` run has.
    """
    config = run.config
    mode, values = "train" if trained else "score", config.as_json()
    names = [name for name, setting in declared(Config).items() if mode in setting.modes]
    settings = [[f"--{name}", "" if values[name] is None else shown(values[name])] for name in names]
    sections = [
        *([Section("Summary", lines=summary, warnings=cautions)] if summary or cautions else []),
        Section("Run", tables=[Table("", ["", ""], [[name, value] for name, value in header.items()], left=2)]),
        Section("Results", tables=tables),
        *([Section("Pictures", images=pictures)] if pictures else []),
    ]
    if rows:
        text = "Validation at the first K; metrics.jsonl has every value of every epoch."
        sections.append(Section("Metrics by epoch", text, [frame_table(epoch_frame(rows, config.eval_k[0]))]))
    data = Section("Data", "\n".join(run.data_lines()))
    return [*sections, data, Section("Settings", tables=[Table("", ["flag", "value"], settings, left=2)], folded=True)]


def epoch_frame(rows: Sequence[Mapping], k: int) -> pd.DataFrame:
    """Make a table with a row per epoch: what training reported, and the main validation metrics at cut-off `k`."""
    frame = pd.DataFrame(
        [{key: float("nan") if value is None else value for key, value in row.items()} for row in rows]
    )
    validation = columns(EPOCHS, validation_metrics(frame.columns), k)
    lead = ["epoch"] if frame["epoch"].is_unique else ["phase", "stage", "epoch"]
    training = [name for name in frame.columns if name.startswith("train/")]
    return frame[[name for name in (*lead, *training, *map(validation_key, validation)) if name in frame.columns]]


def frame_table(frame: pd.DataFrame) -> Table:
    """Make a table of texts from a data frame: floats with four digits."""
    return Table("", list(frame.columns), [[_cell(value) for value in row] for row in frame.itertuples(index=False)])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return UNDEFINED if value != value else f"{value:.4f}"
    return str(value)
