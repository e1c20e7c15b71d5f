"""Pictures by epoch: losses and validation accuracy, and fairness beside that accuracy."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.evaluation.keys import MetricKey, validation_key
from model.results.drawing import (
    LEGEND_ABOVE,
    MARKERS,
    MOST_POINTS,
    SMALL_PANEL,
    STYLES,
    Style,
    honest_limits,
    new_figure,
    own_style,
    save,
)
from model.results.metric_text import arrow, axis_name, axis_reference

MARKERS_OF_A_CURVE = 25
# curves that a legend of a panel names, and letters of names that all stand in one row
MOST_NAMED, SHORT = 6, 6
# where viridis, which goes from 0 to 1, is too pale on white
LIGHTEST = 0.85
# letters of a line above a panel
LINE = 42


@own_style()
def training_curves(
    rows: Sequence[Mapping],
    path_stem: Path | str,
    loss: str = "train/loss",
    metric: str | None = "ndcg@10",
    selected_epoch: int | None = None,
) -> list[Path]:
    """Draw `loss`, the other values that training reports and the validation `metric` by epoch; mark the selected one.

    Without a `metric` there is no validation, and nothing is marked.

    `rows` are those of metrics.jsonl. A value that is missing or undefined (None or NaN) has no point. Stages and
    phases, whose epochs start again from 1, are drawn one after the other; `selected_epoch` is an epoch of the last
    one (None: the one with the best `metric`).
    """
    parts: dict[str, list[str]] = {"training loss": [loss]}
    for key in dict.fromkeys(key for row in rows for key in row if key.startswith("train/") and key != loss):
        # values of one kind, such as the losses of several adversaries, have a panel of their own
        kind = key.rpartition("/")[0]
        parts.setdefault(kind if kind != "train" else "other losses", []).append(key)
    count = len(parts) + (metric is not None)
    figure = new_figure(SMALL_PANEL * count + 0.5)
    panels = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    for panel, (title, keys) in zip(panels, parts.items(), strict=False):
        for key, style in zip(keys, _styles(len(keys)), strict=True):
            _draw_curve(panel, *_curve(rows, key), style, label=key.removeprefix(f"{title}/"))
        panel.set_ylabel(title if len(keys) > 1 else f"{title}\n({keys[0]})")
        if len(keys) > 1:
            # of very many curves, evenly chosen ones
            named = np.unique(np.linspace(0, len(keys) - 1, MOST_NAMED).round().astype(int))
            handles = [panel.lines[place] for place in named]
            short = max(len(handle.get_label()) for handle in handles) <= SHORT
            panel.legend(handles=handles, **LEGEND_ABOVE | ({"ncols": MOST_NAMED} if short else {}))
    if metric is not None:
        _draw_metric(panels[-1], rows, metric)
        panels[-1].set_ylabel(f"validation\n{axis_name(MetricKey.parse(metric))}")
    panels[-1].set_xlabel(_epoch_axis(rows, panels, metric, selected_epoch))
    return save(figure, path_stem)


@own_style()
def fairness_by_epoch(
    rows: Sequence[Mapping], metrics: Sequence[str], path_stem: Path | str, selected_epoch: int | None = None
) -> list[Path]:
    """Draw validation `metrics` by epoch, a panel each, accuracy first, as `training_curves` does."""
    height = -(-len(metrics) // 2)
    figure = new_figure((SMALL_PANEL + 0.2) * height + 0.4)
    panels = figure.subplots(height, 2, sharex=True, squeeze=False)
    for panel, metric in zip(panels.flat, metrics, strict=False):
        _draw_metric(panel, rows, metric)
        key = MetricKey.parse(metric)
        panel.set_title(textwrap.fill(f"{axis_name(key)} {arrow(key)}", LINE))
    for panel in panels.flat[len(metrics) :]:
        panel.remove()
    used = list(panels.flat[: len(metrics)])
    figure.supxlabel(_epoch_axis(rows, used, metrics[0], selected_epoch))
    for panel in used[-2:]:
        # the last of an odd number leaves the one beside it without a panel below
        panel.tick_params(labelbottom=True)
    return save(figure, path_stem)


def _draw_metric(panel: Any, rows: Sequence[Mapping], metric: str) -> None:
    at, values = _curve(rows, validation_key(metric))
    key = MetricKey.parse(metric)
    values = key.metric.scale * values
    _draw_curve(panel, at, values, STYLES[0])
    for reference in axis_reference(key):
        panel.axhline(reference, color="0.5", linestyle="-.", linewidth=0.9, zorder=1)
    panel.set_ylim(*honest_limits(values, values, *axis_reference(key), most=key.metric.scale))


def _styles(count: int) -> Sequence[Style]:
    """Choose the looks of `count` curves of a panel: of many, colours from dark to light in order."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if count <= len(STYLES):
        return STYLES[:count]
    colors = colormaps["viridis"](np.linspace(0, LIGHTEST, count))
    return [Style(to_hex(color), "-", MARKERS[place % len(MARKERS)]) for place, color in enumerate(colors)]


def _draw_curve(panel: Any, at: np.ndarray, values: np.ndarray, style: Style, **more: Any) -> None:
    look = {"color": style.color, "linestyle": style.line, "marker": style.marker, "markersize": 3.5}
    every = max(1, -(-len(at) // MARKERS_OF_A_CURVE))
    panel.plot(at, values, markevery=every, rasterized=len(at) > MOST_POINTS, **look, **more)


def _epoch_axis(rows: Sequence[Mapping], panels: Sequence[Any], metric: str | None, selected_epoch: int | None) -> str:
    """Mark the stages and the selected epoch in `panels`, and give the name of their common axis."""
    from matplotlib.ticker import MaxNLocator

    epochs, starts = positions(rows)
    selected = None
    if metric is not None and selected_epoch is not None:
        selected = starts[-1] + selected_epoch
    elif metric is not None:
        at, values = _curve(rows, validation_key(metric))
        selected = at[np.argmax(values)] if len(values) else None
    for panel in panels:
        panel.grid(alpha=0.3)
        for start in starts[1:]:
            panel.axvline(start + 0.5, color="0.8", linewidth=0.8)
        if selected is not None:
            mark = panel.axvline(selected, color="0.4", linestyle=":", zorder=1)
    if selected is not None:
        label = f"selected: epoch {selected - starts[-1]:.0f}"
        panels[0].figure.legend([mark], [label], loc="outside upper right", frameon=False)
    panels[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(rows) == 1:
        panels[0].set_xlim(epochs[0] - 1, epochs[0] + 1)
    return "epoch" if len(starts) == 1 else "epoch, counted over all stages"


def positions(rows: Sequence[Mapping]) -> tuple[np.ndarray, list[int]]:
    """Compute where each row lies on the axis of epochs `[N]`, and how many epochs come before each stage."""
    epochs = np.array([row["epoch"] for row in rows], dtype=np.int64)
    anew = np.flatnonzero(np.diff(epochs) <= 0) + 1
    if not len(anew):
        return epochs, [0]
    return np.arange(1, len(epochs) + 1), [0, *anew.tolist()]


def _curve(rows: Sequence[Mapping], key: str) -> tuple[np.ndarray, np.ndarray]:
    values = np.array([np.nan if row.get(key) is None else row[key] for row in rows], dtype=np.float64)
    defined = np.isfinite(values)
    return positions(rows)[0][defined], values[defined]
