"""The picture over phases: accuracy and the gap between user groups, a line for each run."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.evaluation.keys import MetricKey
from model.results.drawing import (
    MARKERS,
    ORANGE,
    PURPLE,
    SKY,
    STYLES,
    Style,
    honest_limits,
    legend_columns,
    new_figure,
    own_style,
    save,
)
from model.results.metric_text import arrow, axis_name
from model.results.pareto import CENTRAL
from model.results.period_numbers import Line, Panels, short_phases
from model.results.plots import styles

TITLE = "Accuracy and fairness over phases"
LOOKS = (
    *STYLES,
    Style(PURPLE, (0, (7, 1.5)), MARKERS[4]),
    Style(ORANGE, (0, (4, 1, 1, 1, 1, 1)), MARKERS[5]),
    Style(SKY, (0, (1, 0.6)), MARKERS[6]),
)
# lines lie beside each other, so that whiskers do not hide each other: over so much of the room that a phase has, and
# of that of all phases
ROOM, OF_ALL = 0.5, 0.04
# of more phases only every second, third, ... is named
MOST_NAMED = 12
# letters of the names below a row of panels that stand beside each other
LETTERS = 60
# letters of a line beside a panel
LINE = 20
# an axis of gaps ends at so many times the largest gap or level of chance, whatever the whiskers: those of a few seeds
# may reach far
OF_GAP = 1.8


@own_style()
def by_phase(panels: Panels, phases: Sequence[str], path_stem: Path | str) -> list[Path]:
    """Draw a row of panels for each metric and a column for each task, over `phases` in order.

    Whiskers are intervals. A grey band reaches from 0 to where chance does, and a dotted line is its mean, each of the
    line for which it is largest; `how_to_read` says the same to the reader.
    """
    from matplotlib.patches import Patch

    metrics = list(dict.fromkeys(metric for of_task in panels.values() for metric in of_task))
    rows = [[of_task.get(metric, {}) for of_task in panels.values()] for metric in metrics]
    looks = styles(dict.fromkeys(name for row in rows for lines in row for name in lines), LOOKS)
    in_a_row = legend_columns(looks)
    figure = new_figure(2.1 * len(metrics) + 0.19 * -(-(len(looks) + 1) // in_a_row) + 0.5)
    grid = figure.subplots(len(metrics), len(panels), sharex=True, sharey="row", squeeze=False)
    handles: dict[str, Any] = {}
    for drawn, metric, row in zip(grid, metrics, rows, strict=True):
        for panel, lines in zip(drawn, row, strict=True):
            handles |= _draw(panel, lines, looks, metric.metric.scale)
        drawn[0].set_ylim(*_limits(metric, [line for lines in row for line in lines.values()]))
        drawn[0].set_ylabel(textwrap.fill(f"{axis_name(metric)} {arrow(metric)}", LINE))
    title, names = short_phases(phases)
    _name_phases(grid[-1], names)
    figure.supxlabel(title)
    for panel, task in zip(grid[0], panels, strict=True):
        panel.set_title(f"task {task}" if task else "")
    if has_chance(panels):
        handles["within chance"] = Patch(color="0.9", label="within chance")
    figure.legend(handles=handles.values(), loc="outside upper center", ncols=in_a_row)
    return save(figure, path_stem)


def _draw(panel: Any, lines: Mapping[str, Line], looks: Mapping[str, Style], scale: float) -> dict[str, Any]:
    """Draw the lines of a panel; give what the legend shows of each."""
    top, chance = (_largest([getattr(line, name) for line in lines.values()]) for name in ("top", "chance"))
    at = np.arange(len(top))
    room = min(ROOM, OF_ALL * len(at))
    # as far as the lines beside each other go
    ends = [at[0] - room / 2, *at[1:-1], at[-1] + room / 2]
    panel.fill_between(ends, 0, scale * top, color="0.9", linewidth=0, zorder=0)
    panel.plot(ends, scale * chance, color="0.5", linestyle=":", linewidth=1, zorder=1)
    handles, places = {}, list(looks)
    for name, line in lines.items():
        look = looks[name]
        beside = at + room * ((places.index(name) + 0.5) / len(places) - 0.5)
        panel.vlines(beside, scale * line.low, scale * line.high, color=look.color, linewidth=0.9, zorder=2)
        style = {"color": look.color, "linestyle": look.line, "marker": look.marker, "markerfacecolor": "white"}
        (handles[name],) = panel.plot(
            beside, scale * line.values, label=name, linewidth=1.1, markersize=4, zorder=3, **style
        )
    panel.grid(alpha=0.3)
    return handles


def _largest(values: Sequence[np.ndarray]) -> np.ndarray:
    """The largest defined one of `values`, `[P]` each; NaN where none is."""
    whole = np.stack(values)  # [L, P]
    return np.where(np.isnan(whole).all(axis=0), np.nan, np.nan_to_num(whole, nan=-np.inf).max(axis=0))


def _limits(metric: MetricKey, lines: Sequence[Line]) -> tuple[float, float]:
    """Choose the ends of an axis; that of gaps begins at 0."""
    ends = [np.concatenate([getattr(line, name) for line in lines]) for name in ("values", "top", "low", "high")]
    values, top, low, high = (metric.metric.scale * end for end in ends)
    if not metric.by_groups:
        low, high = np.where(np.isnan(low), values, low), np.where(np.isnan(high), values, high)
        return honest_limits(low, high, most=metric.metric.scale)
    value, chance, whisker = (ends[np.isfinite(ends)].max(initial=0.0) for ends in (values, top, high))
    end = max(value, chance, min(whisker, OF_GAP * max(value, chance))) or 1.0
    return -0.05 * end, 1.07 * end


def _name_phases(panels: Sequence[Any], names: Sequence[str]) -> None:
    named = range(0, len(names), -(-len(names) // MOST_NAMED))
    shown = [names[place] for place in named]
    fits = len(panels) * sum(map(len, shown)) <= LETTERS
    turned = {} if fits else {"rotation": 40, "horizontalalignment": "right", "rotation_mode": "anchor"}
    for panel in panels:
        panel.set_xticks(named, shown, **turned)
        panel.set_xlim(-0.6, len(names) - 0.4)


def has_chance(panels: Panels) -> bool:
    """Tell whether any line has a chance level."""
    return any(
        np.isfinite(line.top).any() for rows in panels.values() for lines in rows.values() for line in lines.values()
    )


def how_to_read(panels: Panels, sample: str) -> str:
    """Say how to read the picture; `sample` is what its intervals are over."""
    text = (
        "Over the tested phases in order: accuracy, and how far it lies apart between user groups. Whiskers are 95 % "
        f"intervals of the mean over {sample} (Student's t) and go on where a panel ends; lines lie a little beside "
        "each other to show them."
    )
    if has_chance(panels):
        text += (
            " Labels shuffled among the users give gaps as large, too: the dotted line is their mean, and the grey "
            f"band ends {CENTRAL} standard deviations above it, for the line for which that is most."
        )
    return text
