"""Tables over the phases of a run: accuracy, and how far user groups are apart, phase by phase and on average."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from model.evaluation.keys import CHANCE, ListKey, MetricKey
from model.evaluation.metric_kinds import ACCURACY, PHASES, SPREAD
from model.evaluation.metric_table import computed
from model.results.metric_text import LEGEND, WITHIN, cell_of, figure
from model.results.text_table import Table, fitted

GAP = "gap"
# how a spread is written whose sign says which group is ahead
SIGNED = "{spread}: mean of {first} less mean of {second}; absolute: its absolute values.\n"
NOTE = (
    "chance: the mean absolute value when labels are permuted among the users.\n"
    f"{WITHIN} within the central 95 % of permutations.  {LEGEND}."
)


def tables_over_phases(
    results: Mapping[str, Mapping[str, float]],
    lists: Sequence[ListKey],
    attribute: str,
    labels: Sequence[str],
    k: int,
    further: Collection[str],
    averages: Collection[str],
) -> list[Table]:
    """Make a table for each task of `lists`, a line for each phase and each of `averages`: accuracy at k.

    Beside each metric stand the spread between the groups of `attribute`, which are `labels`, with its sign where
    `further`, the metrics of the protocol alone, have one, and its chance level.
    """
    metrics = [row for row in computed(ACCURACY, further) if PHASES in row.places]
    spread = [row for row in computed(SPREAD, further) if PHASES in row.places][-1].name
    tables = []
    for task, control in dict.fromkeys((key.task, key.control) for key in lists):
        lines = {}
        for key in [key for key in lists if (key.task, key.control) == (task, control)]:
            lines[key.label] = results[str(key)], spread
            if key.phase in averages and spread != GAP:
                lines[f"{key.label}, absolute"] = results[str(key)], GAP
        rows = [
            [label, *(cell for metric in metrics for cell in _cells(*line, MetricKey(metric.name, k, attribute)))]
            for label, line in lines.items()
        ]
        headers = [name for metric in metrics for name in (f"{metric.title}@{k}", spread, CHANCE)]
        named = ", ".join(part for part in (f"task {task}" * bool(task), control) if part)
        caption = f"By phase{f', {named}' * bool(named)}, in percent; groups by {attribute}"
        tables += fitted(Table(caption, ["", *headers], rows), [3] * len(metrics))
    note = SIGNED.format(spread=spread, first=labels[0], second=labels[1]) if spread != GAP and len(labels) == 2 else ""
    return [*tables[:-1], replace(tables[-1], note=note + NOTE)] if tables else []


def _cells(metrics: Mapping[str, float], spread: str, key: MetricKey) -> tuple[str, str, str]:
    """The accuracy of all users, its spread between the groups of `key`, and the chance level of its absolute value."""
    gap = replace(key, spread=GAP, part=CHANCE)
    return cell_of(metrics, replace(key, group="")), figure(metrics, replace(key, spread=spread)), cell_of(metrics, gap)
