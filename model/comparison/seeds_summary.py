"""Summary of several seeds: mean, spread and interval of every metric, as files, on the terminal and as a page."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from data.files import atomic_path
from data.messages import WIDTH
from model.comparison.compare_latex import comment, label_of, text
from model.comparison.statistics import CONFIDENCE, Summary, summarise
from model.evaluation.keys import CHANCE, EXCESS, MetricKey, by_list, is_one, run_lists, short_name, split_key
from model.evaluation.metric_kinds import COLUMNS
from model.results.finished import FOLDER_OF_SEEDS, counted_warnings
from model.results.latex import escape, latex_table
from model.results.metric_text import UNDEFINED, cell, columns, interval, main_metrics, name_of
from model.results.metric_text import short_name as short_metric
from model.results.text_table import Table, fitted
from model.runs.files import write_frame, write_json

HEADERS = ("", "mean", "std", "95 % interval", "seeds")
HEADERS_BY_GROUP = ("", "mean", "std", "chance", "excess", "95 % interval", "seeds")
ALL_HEADERS = ("metric", "mean", "std", "95 % interval", "seeds")
BY_GROUP_NOTE = (
    "chance: mean under labels permuted among the users; excess: what a figure is above it, with its interval."
)


@dataclass(frozen=True)
class Seeds:
    """What the runs of several seeds gave: their `results` by seed, why others `failed`, whether the data or their
    split are `drawn` by the seed, and the primary cut-off `k`."""

    results: Mapping[int, dict]
    failed: Mapping[int, str]
    drawn: bool
    k: int

    @property
    def first(self) -> dict:
        """The result of the first seed."""
        return next(iter(self.results.values()))

    @cached_property
    def values(self) -> dict[str, list[float]]:
        """Each metric of every list, a value for each seed (NaN: it has none)."""
        keys = sorted({key for result in self.results.values() for key in result["metrics"]})
        return {key: [result["metrics"].get(key, math.nan) for result in self.results.values()] for key in keys}

    @cached_property
    def summaries(self) -> dict[str, Summary]:
        """Each metric of every list, summarised over the seeds."""
        return {key: summarise(entries, _bounds(key)) for key, entries in self.values.items()}

    @cached_property
    def by_list(self) -> dict[str, dict[str, Summary]]:
        """The same as list -> metric -> summary."""
        return by_list(self.summaries)

    @property
    def lists(self) -> list[str]:
        """The run's own lists."""
        return self.first.get("lists") or run_lists(self.by_list)

    @property
    def warnings(self) -> tuple[str, ...] | None:
        """What the seeds warned of, counted; None where their runs are older than warnings."""
        return counted_warnings([result.get("warnings") for result in self.results.values()])

    @property
    def caption(self) -> str:
        """What the numbers are and how they were computed."""
        of_all = f" ({len(self.results)} of {len(self.results) + len(self.failed)}, the others failed)"
        if self.drawn:
            data = "the data or their split are drawn by the seed, so fingerprints differ and the spread is theirs too"
        else:
            data = f"fingerprint {self.first['fingerprint']}"
        return (
            f"{self.first['method']} on {self.first['dataset']}, seeds {', '.join(map(str, self.results))}"
            f"{of_all if self.failed else ''}. Protocol: {self.first['description']}; {data}. Mean, standard deviation "
            f"(n - 1) and {100 * CONFIDENCE:.0f} % interval of the mean over seeds: Student's t on the logit between a "
            "metric's bounds (the logarithm where it has only a lower one), so that the interval stays within them."
        )


def _bounds(key: str) -> tuple[float, float]:
    return MetricKey.parse(split_key(key)[1]).bounds


def folder_name(seed: int) -> str:
    """Give the name of a seed's run folder."""
    return f"seed{seed}"


def write_summary(directory: Path, seeds: Seeds) -> None:
    """Write seeds.csv, seeds.tex and seeds.json into the folder of the seeds."""
    content = {name: seeds.first[name] for name in ("dataset", "protocol", "description", "method")}
    content |= {
        "seeds": list(seeds.results),
        "failed": {str(seed): reason for seed, reason in seeds.failed.items()},
        "fingerprints": {str(seed): result["fingerprint"] for seed, result in seeds.results.items()},
        "drawn_by_seed": seeds.drawn,
        "confidence": CONFIDENCE,
        "k": seeds.k,
        "warnings": seeds.warnings,
        "metrics": {
            key: dataclasses.asdict(summary) | {"values": seeds.values[key]} for key, summary in seeds.summaries.items()
        },
    }
    names = [folder_name(seed) for seed in seeds.results]
    rows = [
        {"metric": key, **dataclasses.asdict(summary), **dict(zip(names, seeds.values[key], strict=True))}
        for key, summary in seeds.summaries.items()
    ]
    write_frame(directory / "seeds.csv", pd.DataFrame(rows))
    with atomic_path(directory / "seeds.tex") as temporary:
        temporary.write_text(latex_summary(seeds, directory.name), encoding="utf-8")
    write_json(directory / FOLDER_OF_SEEDS, content)


def terminal_summary(seeds: Seeds) -> str:
    """Write the summary at the primary cut-off as text."""
    blocks = [textwrap.fill(seeds.caption, WIDTH)]
    blocks += [part.text() for table in summary_tables(seeds) for part in fitted(table, [1] * (len(table.headers) - 1))]
    if seeds.warnings:
        lines = [textwrap.fill(f"- {line}", WIDTH, subsequent_indent="  ") for line in seeds.warnings]
        blocks.append("\n".join(["Warnings:", *lines]))
    return "\n" + "\n\n".join(blocks)


def summary_tables(seeds: Seeds) -> list[Table]:
    """Make the tables at the primary cut-off: of every list, and, where there are several, all of them side by side."""
    tables = []
    for name in seeds.lists:
        metrics = seeds.by_list[name]
        keys = main_metrics(metrics, seeds.k)
        of_list = f", {name}" if len(seeds.lists) > 1 else ""
        plain = [[name_of(key), *_cells(key, metrics[str(key)])] for key in keys if not key.by_groups]
        caption = f"Over seeds{of_list}; accuracy in percent, the rest as fractions"
        tables.append(Table(caption, [*HEADERS], plain))
        groups = [[f"{short_metric(key)}, {key.group}", *_chance_cells(key, metrics)] for key in keys if key.by_groups]
        caption = f"By user groups, beside chance{of_list}; gaps of accuracy in percent"
        tables.append(Table(caption, [*HEADERS_BY_GROUP], groups, note=BY_GROUP_NOTE))
    if not is_one(seeds.lists):
        tables.append(_side_by_side(seeds))
    return [table for table in tables if table.rows]


def _side_by_side(seeds: Seeds) -> Table:
    """A line for each tested list: the columns of a comparison, mean and standard deviation."""
    metrics_of, lists = seeds.by_list, seeds.lists
    keys = dict.fromkeys(text for name in lists for text in metrics_of[name])
    attributes = [key.group for key in map(MetricKey.parse, metrics_of[lists[0]]) if key.spread and key.k == seeds.k]
    headers = columns(COLUMNS, keys, seeds.k, next(iter(attributes), ""))
    lines = []
    for name in lists:
        cells = []
        for key_text in headers:
            key, summary = MetricKey.parse(key_text), metrics_of[name].get(key_text)
            cells.append(f"{cell(key, summary.mean)} ± {cell(key, summary.std)}" if summary else "")
        lines.append([short_name(name) or name, *cells])
    return Table("All lists, mean ± standard deviation; accuracy in percent", ["", *headers.values()], lines)


def _cells(key: MetricKey, summary: Summary) -> list[str]:
    """A summary as the tables of one list show it."""
    ends = interval(key, summary.low, summary.high)
    return [cell(key, summary.mean), cell(key, summary.std), ends, str(summary.count)]


def _chance_cells(key: MetricKey, metrics: Mapping[str, Summary]) -> list[str]:
    """A summary of a figure by groups: the figure, its chance level, and its excess with the interval of that."""
    summary, chance, excess = (metrics.get(str(key.of(part))) for part in ("", CHANCE, EXCESS))
    mean, std, ends, count = _cells(key, summary)
    if chance is None or excess is None:
        return [mean, std, "", "", ends, count]
    ends = interval(key, excess.low, excess.high, signed=True)
    return [mean, std, cell(key, chance.mean), cell(key, excess.mean, signed=True), ends, count]


def _as_fractions(summary: Summary) -> list[str]:
    """A summary as the table of every metric shows it."""
    mean, std, low, high = (
        UNDEFINED if math.isnan(value) else f"{value:.4f}"
        for value in (summary.mean, summary.std, summary.low, summary.high)
    )
    return [mean, std, UNDEFINED if math.isnan(summary.low) else f"[{low}, {high}]", str(summary.count)]


def latex_summary(seeds: Seeds, name: str) -> str:
    """Make the tables at the primary cut-off, and behind them a long one of every metric; `name` is the run's."""
    parts = [f"% booktabs; the last table is every metric and needs longtable\n{comment(seeds.caption)}\n"]
    what = text(f" ({seeds.first['method']} on {seeds.first['dataset']}, {len(seeds.results)} seeds).")
    for number, table in enumerate(summary_tables(seeds), 1):
        title = text(table.caption) + what
        rows = [[text(cell_text) for cell_text in row] for row in table.rows]
        headers = [text(header) for header in table.headers]
        parts.append(latex_table(headers, rows, title, f"tab:{label_of(name)}-{number}", wide=len(headers) > 5))
    rows = [[escape(cell_text) for cell_text in (key, *_as_fractions(one))] for key, one in seeds.summaries.items()]
    title = f"Every metric as a fraction{what}"
    parts.append(latex_table([text(header) for header in ALL_HEADERS], rows, title, f"tab:{label_of(name)}-all", True))
    return "\n".join(parts)
