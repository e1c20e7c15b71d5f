"""The report page of several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from model.comparison.periods import periods_of_seeds
from model.comparison.seeds_summary import Seeds, folder_name, summary_tables
from model.comparison.statistics import Summary
from model.evaluation.keys import EXCESS, POPULAR, YARDSTICKS, MetricKey, by_list, choose_list, yardsticks_of
from model.evaluation.metric_kinds import ACCURACY, HEADLINE, PARITY
from model.evaluation.metric_table import shown_in
from model.results.drawing import attempt
from model.results.metric_text import cell, interval, name_of
from model.results.pages import Picture, Section, write_page
from model.results.pareto import accuracy_against_fairness, fairness_metrics, how_to_read
from model.results.text_table import Table

# summaries of one list by metric key
Metrics = Mapping[str, Summary]


def write_seeds_page(directory: Path, seeds: Seeds, command: str) -> None:
    """Draw the seeds' accuracy against fairness, and write `report.html` into the folder of the seeds."""
    warnings = [Section("Warnings", warnings=list(seeds.warnings))] if seeds.warnings else []
    sections = [
        Section("Summary", lines=summary_lines(seeds)),
        *warnings,
        Section("Results over seeds", seeds.caption, tables=summary_tables(seeds)),
        Section("Each seed", tables=[_each(directory, seeds)]),
    ]
    accuracy = str(MetricKey("ndcg", seeds.k))
    name = _main_list(seeds)
    points = {f"seed {seed}": by_list(result["metrics"]).get(name, {}) for seed, result in seeds.results.items()}
    metrics = fairness_metrics(points, accuracy)
    if metrics:
        with attempt("the picture accuracy_against_fairness"):
            paths = accuracy_against_fairness(points, directory / "accuracy_against_fairness", accuracy, metrics)
            picture = Picture("Accuracy against fairness of each seed", how_to_read("seed", metrics), tuple(paths))
            sections.insert(-1, Section("Accuracy against fairness", images=[picture]))
    folder = directory / folder_name(next(iter(seeds.results)))
    pictures = periods_of_seeds(list(seeds.results.values()), name, folder, seeds.k, directory)
    if pictures:
        sections.insert(-1, Section("Over phases", images=pictures))
    with attempt("report.html"):
        write_page(directory / "report.html", f"Seeds of {directory.name}", command, sections)


def _main_list(seeds: Seeds) -> str:
    """The list that the summary is about: the run's one plain list, or the first of several."""
    return choose_list(seeds.lists) or seeds.lists[0]


def _each(directory: Path, seeds: Seeds) -> Table:
    """A line for each seed: its selected epoch, accuracy, how many warnings, and where its report is."""
    key, rows = MetricKey("ndcg", seeds.k), []
    for seed, result in seeds.results.items():
        metrics = by_list(result["metrics"]).get(_main_list(seeds), {})
        warnings = result.get("warnings")
        rows.append(
            [
                f"seed {seed}",
                str(directory / folder_name(seed) / "report.html"),
                str(result["epoch"]),
                cell(key, metrics.get(str(key))),
                "" if warnings is None else str(len(warnings)),
            ]
        )
    rows += [[f"seed {seed}", f"failed: {reason}", "", "", ""] for seed, reason in seeds.failed.items()]
    return Table("", ["", "report", "epoch", f"{name_of(key)} in percent", "warnings"], rows, left=2)


def summary_lines(seeds: Seeds) -> list[str]:
    """Say what the seeds found at the primary cut-off: accuracy, tail, parity, leakage, warnings."""
    name, k, count = _main_list(seeds), seeds.k, len(seeds.results)
    metrics = seeds.by_list[name]
    attributes = dict.fromkeys(key.group for key in map(MetricKey.parse, metrics) if key.metric.of_attribute)
    headline = [row.name for row in shown_in(HEADLINE) if row.kind == PARITY]
    parity = [MetricKey(row_name, k, attribute) for attribute in attributes for row_name in headline]
    popular = seeds.by_list.get(yardsticks_of(name, seeds.by_list).get(POPULAR, ""), {})
    lines = [
        _line("Accuracy", [MetricKey("ndcg", k)], metrics, popular),
        _line("Tail", [MetricKey("ndcg", k, "tail"), MetricKey("aplt", k)], metrics, popular),
        _line("Parity", parity, metrics, popular),
        _line("Leakage", [MetricKey("leakage_auc", None, attribute) for attribute in attributes], metrics, popular),
    ]
    about = [] if len(seeds.lists) == 1 else [f"Of {len(seeds.lists)} lists this is about {name}."]
    warned = []
    if seeds.warnings is not None:
        warned = [f"Warnings: {len(seeds.warnings) or 'none'}{', listed below' if seeds.warnings else ''}."]
    failed = f", and {len(seeds.failed)} failed" if seeds.failed else ""
    return [*about, f"Seeds: {count}{failed}.", *filter(None, lines), *warned]


def _line(subject: str, keys: Sequence[MetricKey], metrics: Metrics, popular: Metrics) -> str:
    """A sentence on `keys`: mean and interval, beside chance and the most popular; nothing where none is measured."""
    told = []
    for key in keys:
        summary = metrics.get(str(key))
        if summary is None or not summary.count:
            continue
        unit = " %" if key.metric.kind == ACCURACY else ""
        of_whom = f"{key.metric.head} by {key.group}" if key.metric.of_attribute else name_of(key)
        ends = f" {interval(key, summary.low, summary.high)}" if summary.count > 1 else ""
        excess, yardstick = metrics.get(str(key.of(EXCESS))), popular.get(str(key))
        further = []
        if excess is not None and excess.count and not key.metric.debiased:
            further.append(f"{cell(key, excess.mean, signed=True)} above chance")
        if yardstick is not None and yardstick.count:
            further.append(f"{YARDSTICKS[POPULAR]} {cell(key, yardstick.mean)}{unit}")
        behind = f" ({', '.join(further)})" if further else ""
        told.append(f"{of_whom} is {cell(key, summary.mean)}{unit}{ends}{behind}")
    return f"{subject}: {'; '.join(told)}." if told else ""
