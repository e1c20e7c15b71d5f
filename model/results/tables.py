"""Tables of one run for console and report: of one list, or of several with a line for each."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from model.evaluation.keys import TEST, YARDSTICKS, ListKey, MetricKey
from model.evaluation.metric_table import ACCURACY, COUNT, METRICS, RUN, of_kind
from model.results.metric_text import ARROWS, LEGEND, arrow, cell_of, name_of, parsed

WIDTH = 120
# More groups than this, or longer labels, get a table of their own with one group a row.
GROUP_COLUMNS, GROUP_COLUMNS_WIDTH = 4, 36

Row = list[str]
# metrics of one list: metric key -> value
Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """A table of texts: the first `left` columns are aligned left, numbers right; `note` stands below it."""

    caption: str
    headers: Row
    rows: list[Row]
    left: int = 1
    note: str = ""

    def text(self) -> str:
        """Write the table as the console shows it."""
        return "\n".join(part for part in (self.caption, grid(self.headers, self.rows, self.left), self.note) if part)


def grid(headers: Row, rows: Sequence[Row], left: int = 1) -> str:
    """Write cells in aligned columns: the first `left` columns are aligned left, the others right."""
    from tabulate import tabulate

    alignment = ["left"] * left + ["right"] * (len(headers) - left)
    return tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=alignment)


def result_text(header: Mapping[str, str], tables: Sequence[Table]) -> str:
    """Write the `header` lines and `tables` as text for the console."""
    return "\n\n".join(block for block in (_header_lines(header), *(table.text() for table in tables)) if block)


def _header_lines(header: Mapping[str, str]) -> str:
    margin = max((len(name) for name in header), default=0) + 2
    return "\n".join(
        textwrap.fill(f"{name:<{margin}}{value}", WIDTH, subsequent_indent=" " * margin)
        for name, value in header.items()
    )


def fits_columns(labels: Sequence[str]) -> bool:
    """Tell whether groups with these labels fit into a table beside other columns."""
    return len(labels) <= GROUP_COLUMNS and sum(len(label) + 2 for label in labels) <= GROUP_COLUMNS_WIDTH


# --- One list ---


def tables_of_one(results: Mapping[str, Metrics], groups: Mapping[str, Sequence[str]], k: int) -> list[Table]:
    """Make the tables of the one list of a run (list -> metric -> fraction), its re-ranked form and yardsticks.

    Accuracy in percent comes first (`groups`: attribute -> labels; the first attribute is in the main table where it is
    small), then exposure and parity with an arrow to the better side. A column without any value is left out. A dash is
    an undefined value (NaN), a blank one that was not measured. ValueError for a metric that the metric table does not
    have.
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
    tables = [_accuracy_table(runs, yardsticks, k, inline, groups)]
    tables += [_group_table(runs, k, name, groups[name]) for name in groups if name != inline]
    tables.append(_exposure_table({name or "this run": metrics for name, metrics in runs.items()} | yardsticks, k))
    return [table for table in tables if table.rows]


def _accuracy_table(runs, yardsticks, k: int, attribute: str | None, groups) -> Table:
    parts = {"overall": {}, "head": {"group": "head"}, "tail": {"group": "tail"}}
    if attribute is not None:
        parts |= {label: {"group": attribute, "label": label} for label in groups[attribute]}
    first = next(iter(groups), None)
    if first is not None:
        parts["gap" if attribute is not None else f"gap {first}"] = {"group": first, "spread": "gap"}
    rows = []
    for metric in of_kind(ACCURACY):
        for run, metrics in runs.items():
            row = [f"{metric.title}@{k}{', ' if run else ''}{run}"]
            row += [cell_of(metrics, MetricKey(metric.name, k, **part)) for part in parts.values()]
            row += ["" if run else cell_of(other, MetricKey(metric.name, k)) for other in yardsticks.values()]
            rows.append(row)
    of_whom = f"; groups and gap by {attribute}" if attribute is not None else ""
    return Table(f"Accuracy, in percent{of_whom}", ["", *parts, *yardsticks], rows)


def _group_table(runs, k: int, attribute: str, labels: Sequence[str]) -> Table:
    columns = [(metric, run) for run in runs for metric in of_kind(ACCURACY)]
    headers = [attribute] + [f"{metric.title}@{k}{', ' if run else ''}{run}" for metric, run in columns]
    parts = {**{label: {"label": label} for label in labels}, "gap": {"spread": "gap"}}
    rows = [
        [label] + [cell_of(runs[run], MetricKey(metric.name, k, attribute, **part)) for metric, run in columns]
        for label, part in parts.items()
    ]
    return Table(f"Accuracy by {attribute}, in percent", headers, rows)


def _whole_list_keys(lists: Iterable[Metrics], k: int) -> list[MetricKey]:
    """What the tables show of whole lists (all but accuracy) at cut-off `k`, in the order of the metric table."""
    order = list(METRICS)
    keys = {key for metrics in lists for key in parsed(metrics)}
    chosen = [
        key
        for key in keys
        if not key.part and key.metric.kind not in (ACCURACY, COUNT) and RUN in key.metric.places and key.k in (None, k)
    ]
    return sorted(chosen, key=lambda key: (order.index(key.name), key.group))


def _exposure_table(columns: Mapping[str, Metrics], k: int) -> Table:
    rows = [
        [name_of(key), arrow(key), *(cell_of(metrics, key) for metrics in columns.values())]
        for key in _whole_list_keys(columns.values(), k)
    ]
    caption = f"Exposure and parity of the top {k}, as fractions unless a unit is given"
    return Table(caption, ["", "better", *columns], rows, left=2, note=f"{LEGEND}.")


# --- Several lists ---


def tables_of_several(
    results: Mapping[str, Metrics], lists: Sequence[ListKey], groups: Mapping[str, Sequence[str]], k: int
) -> list[Table]:
    """Make tables of `results` with a line for each of `lists` and its yardsticks, separate ones for each task.

    Accuracy in percent comes first, then exposure, then parity and leakage by attribute; see `tables_of_one`.
    """
    tables = []
    for task in dict.fromkeys(key.task for key in lists):
        of_task = f" of task {task}" if task else ""
        lines = _lines([key for key in lists if key.task == task], results)
        tables += [_accuracy_lines(lines, groups, k, of_task), *_group_lines(lines, groups, k, of_task)]
        tables += _whole_list_lines(lines, k, of_task)
    # a protocol's summary need not have every metric
    tables = [replace(table, rows=[row for row in table.rows if any(row[1:])]) for table in tables]
    return [part for table in tables if table.rows for part in _fitting(table)]


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


def _accuracy_lines(lines: Mapping[str, Metrics], groups, k: int, of_task: str) -> Table:
    columns = {f"{metric.title}@{k}": MetricKey(metric.name, k) for metric in of_kind(ACCURACY)}
    columns |= {part: MetricKey("ndcg", k, part) for part in ("head", "tail")}
    first = next(iter(groups), None)
    if first is not None and fits_columns(groups[first]):
        columns |= {label: MetricKey("ndcg", k, first, label) for label in groups[first]}
    columns |= {f"gap, {name}": MetricKey("ndcg", k, name, spread="gap") for name in groups}
    rows = [[name, *(cell_of(metrics, key) for key in columns.values())] for name, metrics in lines.items()]
    return Table(f"Accuracy{of_task}, in percent; from head on, parts of NDCG@{k}", ["", *columns], rows)


def _group_lines(lines: Mapping[str, Metrics], groups, k: int, of_task: str) -> list[Table]:
    tables = []
    for place, (name, labels) in enumerate(groups.items()):
        if place == 0 and fits_columns(labels):
            continue
        rows = [
            [label, *(cell_of(metrics, MetricKey("ndcg", k, name, label)) for metrics in lines.values())]
            for label in labels
        ]
        tables.append(Table(f"Accuracy{of_task} by {name}, NDCG@{k} in percent", [name, *lines], rows))
    return tables


def _whole_list_lines(lines: Mapping[str, Metrics], k: int, of_task: str) -> list[Table]:
    """Exposure, and parity and leakage by attribute."""
    keys = _whole_list_keys(lines.values(), k)
    # attributes in the order of the results, after metrics without one
    attributes = dict.fromkeys(key.group for metrics in lines.values() for key in parsed(metrics) if key in keys)
    tables = []
    for attribute in sorted(attributes, key=bool):
        columns = [key for key in keys if key.group == attribute]
        headers = [f"{key.metric.head} {ARROWS[key.metric.better]}" for key in columns]
        rows = [[name, *(cell_of(metrics, key) for key in columns)] for name, metrics in lines.items()]
        what = f"Parity and leakage{of_task} by {attribute}" if attribute else f"Exposure{of_task}"
        tables.append(Table(f"{what}, top {k}", ["", *headers], rows))
    note = f"AUC: leakage by the strongest attacker, 0.5 is none.\n{LEGEND}."
    return [*tables[:-1], replace(tables[-1], note=note)] if tables else []


def _fitting(table: Table) -> list[Table]:
    """The table cut into parts that are no wider than the console, each with the first column."""
    widths = [
        # tabulate pads headers by two
        max(len(head) + 2, *(len(text) for text in column))
        for head, column in zip(table.headers, zip(*table.rows, strict=True), strict=True)
    ]
    parts, used = [[]], widths[0]
    for place, width in enumerate(widths[1:], 1):
        if parts[-1] and used + 2 + width > WIDTH:
            parts.append([])
            used = widths[0]
        parts[-1].append(place)
        used += 2 + width
    if len(parts) == 1:
        return [table]
    head, comma, rest = table.caption.partition(",")
    return [
        Table(
            f"{head} ({number}){comma}{rest}",
            [table.headers[0], *(table.headers[place] for place in part)],
            [[row[0], *(row[place] for place in part)] for row in table.rows],
            note=table.note if number == len(parts) else "",
        )
        for number, part in enumerate(parts, 1)
    ]
