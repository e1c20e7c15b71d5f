"""Which tables a run has, for console and report: those of one list, or of several with a line for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from model.evaluation.keys import HIGH, HITS, LOW, TEST, USERS, YARDSTICKS, ListKey, MetricKey
from model.evaluation.metric_kinds import ACCURACY, COLUMNS, COUNT, HEADLINE, RUN, SPREAD, Metric
from model.evaluation.metric_table import METRICS, of_kind
from model.results.metric_text import (
    LEGEND,
    WITHIN,
    arrow,
    cell_of,
    chance_cell,
    count_cell,
    excess_cell,
    figure,
    interval,
    name_of,
    parsed,
    short_name,
)
from model.results.text_table import Table, fitted

# Groups whose columns take no more than this stand beside others; the rest get a table of their own, a group a row.
GROUP_COLUMNS_WIDTH = 14
USUAL_RANGE = "0 to 1"
PARITY_LEGEND = (
    "DP: demographic parity.  EO: equal opportunity.\n"
    "AUC: leakage by the strongest attacker, 0.5 is none.\n"
    "Chance: mean ± standard deviation when labels are permuted among the users.\n"
    f"Excess: value less chance.  {WITHIN} within the central 95 % of permutations."
)

# metrics of one list: metric key -> value
Metrics = Mapping[str, float]


def fits_columns(labels: Sequence[str]) -> bool:
    """Tell whether groups with these labels fit into a table beside other columns."""
    # a value in percent is five wide, columns are two apart
    return sum(max(len(label), 5) + 2 for label in labels) <= GROUP_COLUMNS_WIDTH


def _keys(lists: Iterable[Metrics], k: int, attribute: str, places: Sequence[str]) -> list[MetricKey]:
    """What is shown of whole lists at cut-off `k` of the metrics of `places`, in the order of the metric table.

    Without an `attribute` this is exposure, with one parity, accuracy gaps and leakage by its groups.
    """
    order = list(METRICS)
    chosen = [
        key
        for key in {key for metrics in lists for key in parsed(metrics)}
        if not key.part
        and key.group == attribute
        and key.k in (None, k)
        and key.judged_by.kind not in (ACCURACY, COUNT)
        and set(places) & set(key.judged_by.places)
    ]
    return sorted(chosen, key=lambda key: (order.index(key.judged_by.name), order.index(key.name)))


def _parity_note(keys: Iterable[MetricKey]) -> str:
    """What the words and marks in tables of parity mean, and the ranges that are not the usual one."""
    ranges: dict[str, dict[str, None]] = {}
    for key in keys:
        if not key.spread and key.metric.range != USUAL_RANGE:
            ranges.setdefault(key.metric.range, {})[key.metric.head] = None
    lines = [f"{', '.join(heads)}: from {bounds}." for bounds, heads in ranges.items()]
    return "\n".join([PARITY_LEGEND, *lines, f"{LEGEND}."])


# --- One list ---


def tables_of_one(results: Mapping[str, Metrics], groups: Mapping[str, Sequence[str]], k: int) -> list[Table]:
    """Make the tables of the one list of a run (list -> metric -> fraction), its re-ranked form and yardsticks.

    Accuracy in percent comes first (`groups`: attribute -> labels; the first attribute is in the main table where it is
    small), then exposure, then parity, gaps and leakage by attribute with their chance level. Arrows point to the
    better side. A column without any value is left out. A dash is an undefined value (NaN), a blank one that was not
    measured. ValueError for a metric that the metric table does not have.
    """
    run = ListKey(TEST)
    runs = {"": results[str(run)]}
    if str(run.after_reranking()) in results:
        runs["re-ranked"] = results[str(run.after_reranking())]
    yardsticks = {
        title: results[str(run.beside(name))] for name, title in YARDSTICKS.items() if str(run.beside(name)) in results
    }
    first = next(iter(groups), None)
    inline = first if first is not None and fits_columns(groups[first]) else None
    tables = _accuracy_tables(runs, yardsticks, k, inline, groups)
    for name, labels in groups.items():
        counted = any(str(MetricKey("hr", k, name, label, part=HITS)) in runs[""] for label in labels)
        if name != inline or counted:
            tables += _group_tables(runs, k, name, labels)
    lists = {name or "this run": metrics for name, metrics in runs.items()} | yardsticks
    tables += _exposure_tables(lists, k)
    return [table for table in [*tables, *_parity_tables(lists, yardsticks, groups, k)] if table.rows]


def _accuracy(lists: Iterable[Metrics], k: int) -> list[Metric]:
    """List the accuracy metrics that one of `lists` has: some are of one protocol alone."""
    known = set().union(*lists)
    return [metric for metric in of_kind(ACCURACY) if str(MetricKey(metric.name, k)) in known]


def _accuracy_tables(runs, yardsticks, k: int, attribute: str | None, groups) -> list[Table]:
    parts = {"overall": {}, "head": {"group": "head"}, "tail": {"group": "tail"}}
    if attribute is not None:
        parts |= {label: {"group": attribute, "label": label} for label in groups[attribute]}
    first = next(iter(groups), None)
    if first is not None:
        parts["gap" if attribute is not None else f"gap {first}"] = {"group": first, "spread": "gap"}
    rows = []
    for metric in _accuracy(runs.values(), k):
        for run, metrics in runs.items():
            row = [f"{metric.title}@{k}{', ' if run else ''}{run}"]
            row += [figure(metrics, MetricKey(metric.name, k, **part)) for part in parts.values()]
            row += ["" if run else cell_of(other, MetricKey(metric.name, k)) for other in yardsticks.values()]
            rows.append(row)
    of_whom = f"; groups and gap by {attribute}" if attribute is not None else ""
    table = Table(f"Accuracy, in percent{of_whom}", ["", *parts, *yardsticks], rows)
    return fitted(table, [1] * len(table.headers[1:]))


def _group_tables(runs, k: int, attribute: str, labels: Sequence[str]) -> list[Table]:
    """The accuracy of each group: how many users and hits it rests on, and the interval of NDCG."""
    headers, columns, blocks = [attribute], [], []
    for run, metrics in runs.items():
        before = len(columns)
        for part in (HITS, USERS):
            keys = [MetricKey("hr", k, attribute, label, part=part) for label in labels]
            if any(str(key) in metrics for key in keys) and (part == HITS or not run):
                headers.append(f"{part}{', ' if run else ''}{run}")
                columns.append([count_cell(metrics, key) for key in keys] + [""])
        for metric in _accuracy([metrics], k):
            keys = [MetricKey(metric.name, k, attribute, label) for label in labels]
            headers.append(f"{metric.title}@{k}{', ' if run else ''}{run}")
            columns.append([*(cell_of(metrics, key) for key in keys), figure(metrics, _gap(metric.name, k, attribute))])
            if metric.name == "ndcg" and any(str(key.of(LOW)) in metrics for key in keys):
                headers.append("95 % interval")
                columns.append(
                    [interval(key, *(metrics[str(key.of(end))] for end in (LOW, HIGH))) for key in keys] + [""]
                )
        blocks.append(len(columns) - before)
    rows = [list(row) for row in zip([*labels, "gap"], *columns, strict=True)]
    return fitted(Table(f"Accuracy by {attribute}, in percent", headers, rows), blocks)


def _gap(name: str, k: int, attribute: str) -> MetricKey:
    return MetricKey(name, k, attribute, spread="gap")


def _exposure_tables(lists: Mapping[str, Metrics], k: int) -> list[Table]:
    rows = [
        [f"{name_of(key)} {arrow(key)}", *(cell_of(metrics, key) for metrics in lists.values())]
        for key in _keys(lists.values(), k, "", [RUN])
    ]
    return [Table(f"Exposure, top {k}", ["", *lists], rows, note=f"{LEGEND}.")]


def _parity_tables(lists: Mapping[str, Metrics], yardsticks, groups, k: int) -> list[Table]:
    """What depends on user groups, with its chance level; of yardsticks the excess alone. Notes are below the last."""
    tables, shown = [], []
    for attribute in groups:
        keys = _keys(lists.values(), k, attribute, [RUN])
        columns = []
        for name, metrics in lists.items():
            writers = {name: figure, "chance": chance_cell, "excess": excess_cell}
            if name in yardsticks:
                del writers["chance"]
            columns += [(name, header, [write(metrics, key) for key in keys]) for header, write in writers.items()]
        columns = [column for column in columns if any(column[2])]
        rows = [
            [f"{short_name(key)} {arrow(key)}", *cells]
            for key, cells in zip(keys, zip(*(cells for _, _, cells in columns), strict=True), strict=True)
        ]
        caption = f"Parity and leakage by {attribute}, top {k}; gaps in percent"
        table = Table(caption, ["", *(header for _, header, _ in columns)], rows)
        tables += fitted(table, [len([*block]) for _, block in groupby(columns, key=lambda column: column[0])])
        shown += keys
    return [*tables[:-1], replace(tables[-1], note=_parity_note(shown))] if shown else []


# --- Several lists ---


def tables_of_several(
    results: Mapping[str, Metrics], lists: Sequence[ListKey], groups: Mapping[str, Sequence[str]], k: int
) -> list[Table]:
    """Make tables of `results` with a line for each of `lists` and its yardsticks, separate ones for each task.

    Accuracy in percent comes first, then exposure, then what a claim about parity is made on, by attribute; see
    `tables_of_one`.
    """
    tables = []
    for task in dict.fromkeys(key.task for key in lists):
        of_task = f" of task {task}" if task else ""
        lines = _lines([key for key in lists if key.task == task], results)
        tables += [*_accuracy_lines(lines, groups, k, of_task), *_group_lines(lines, groups, k, of_task)]
        tables += [*_exposure_lines(lines, k, of_task), *_parity_lines(lines, groups, k, of_task)]
    # a protocol's summary need not have every metric
    tables = [replace(table, rows=[row for row in table.rows if any(row[1:])]) for table in tables]
    return [table for table in tables if table.rows]


def _lines(lists: Sequence[ListKey], results: Mapping[str, Metrics]) -> dict[str, Metrics]:
    """What stands at the beginning of each line -> metrics; yardsticks follow the last list of their phase."""
    lines = {}
    for phase in dict.fromkeys(key.phase for key in lists):
        of_phase = [key for key in lists if key.phase == phase]
        lines |= {key.label: results[str(key)] for key in of_phase}
        for name, title in YARDSTICKS.items():
            beside = str(of_phase[0].beside(name))
            if beside in results:
                lines[f"{phase}, {title}" if phase else title] = results[beside]
    return lines


def _accuracy_lines(lines: Mapping[str, Metrics], groups, k: int, of_task: str) -> list[Table]:
    columns = {f"{metric.title}@{k}": MetricKey(metric.name, k) for metric in _accuracy(lines.values(), k)}
    columns |= {part: MetricKey("ndcg", k, part) for part in ("head", "tail")}
    first = next(iter(groups), None)
    if first is not None and fits_columns(groups[first]):
        columns |= {label: MetricKey("ndcg", k, first, label) for label in groups[first]}
    rows = [[name, *(cell_of(metrics, key) for key in columns.values())] for name, metrics in lines.items()]
    table = Table(f"Accuracy{of_task}, in percent; from head on, parts of NDCG@{k}", ["", *columns], rows)
    return fitted(table, [1] * len(columns))


def _group_lines(lines: Mapping[str, Metrics], groups, k: int, of_task: str) -> list[Table]:
    tables = []
    for place, (name, labels) in enumerate(groups.items()):
        if place == 0 and fits_columns(labels):
            continue
        rows = [
            [label, *(cell_of(metrics, MetricKey("ndcg", k, name, label)) for metrics in lines.values())]
            for label in labels
        ]
        table = Table(f"Accuracy{of_task} by {name}, NDCG@{k} in percent", [name, *lines], rows)
        tables += fitted(table, [1] * len(lines))
    return tables


def _exposure_lines(lines: Mapping[str, Metrics], k: int, of_task: str) -> list[Table]:
    keys = _keys(lines.values(), k, "", [RUN])
    rows = [[name, *(cell_of(metrics, key) for key in keys)] for name, metrics in lines.items()]
    headers = [f"{short_name(key)} {arrow(key)}" for key in keys]
    return fitted(Table(f"Exposure{of_task}, top {k}", ["", *headers], rows, note=f"{LEGEND}."), [1] * len(keys))


def _parity_lines(lines: Mapping[str, Metrics], groups, k: int, of_task: str) -> list[Table]:
    """Value and excess of what depends on user groups; of the gaps that of NDCG alone. Notes are below the last."""
    tables, shown = [], []
    for attribute in groups:
        keys = _keys(lines.values(), k, attribute, [COLUMNS, HEADLINE])
        keys = [key for key in keys if key.judged_by.kind != SPREAD or key.name == "ndcg"]
        columns = {}
        for key in keys:
            columns[key, f"{short_name(key)} {arrow(key)}"] = [figure(metrics, key) for metrics in lines.values()]
            columns[key, "excess"] = [excess_cell(metrics, key) for metrics in lines.values()]
        columns = {name: cells for name, cells in columns.items() if any(cells)}
        rows = [[name, *cells] for name, cells in zip(lines, zip(*columns.values(), strict=True), strict=True)]
        caption = f"Parity and leakage{of_task} by {attribute}, top {k}; gaps in percent"
        table = Table(caption, ["", *(header for _, header in columns)], rows)
        tables += fitted(table, [len([*block]) for _, block in groupby(columns, key=lambda name: name[0])])
        shown += keys
    return [*tables[:-1], replace(tables[-1], note=_parity_note(shown))] if shown else []
