"""Accuracy against fairness: many runs in one picture, and which of them others dominate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.evaluation.keys import MetricKey
from model.evaluation.metric_table import PARETO, shown_in
from model.results.drawing import new_figure, own_style, save
from model.results.metric_text import name_of

PANELS_IN_A_ROW = 3
# where a number may stand beside its point, in points of type: nearest first
OFFSETS = np.array([(r * math.cos(a), r * math.sin(a)) for r in (10, 17, 25) for a in np.arange(8) * math.pi / 4])


@own_style()
def accuracy_against_fairness(
    points: Mapping[str, Mapping[str, float]],
    path_stem: Path | str,
    accuracy: str = "ndcg@10",
    fairness: Sequence[str] | None = None,
) -> list[Path]:
    """Draw each run of `points` (label -> metric, without a prefix such as test/ -> fraction), a panel per metric.

    Panels are those of `fairness`, by default all of `fairness_metrics`. A step line is the Pareto front; a run that
    another dominates is hollow. Numbers beside the points are those of the legend. ValueError without any panel.
    """
    from matplotlib.lines import Line2D

    metrics = fairness_metrics(points, accuracy) if fairness is None else list(fairness)
    if not metrics:
        raise ValueError(f"no fairness metric beside {accuracy} is defined in two runs of {', '.join(points)}")
    columns = min(PANELS_IN_A_ROW, len(metrics))
    rows = -(-len(metrics) // columns)
    legend = -(-len(points) // 2)
    figure = new_figure(3.3 * columns + 0.4, 3.1 * rows + 0.22 * legend + 0.2)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    heights = 100 * np.array([_value(metrics_of, accuracy) for metrics_of in points.values()])
    placed = []
    for place, (panel, metric) in enumerate(zip(panels, metrics, strict=False)):
        values, badness, label = _axis(metric, np.array([_value(metrics_of, metric) for metrics_of in points.values()]))
        front = pareto_front(heights, badness)
        _draw_front(panel, values[front], heights[front], badness[front])
        for chosen, face in ((front, "black"), (~front, "white")):
            panel.plot(
                values[chosen], heights[chosen], "o", color="black", markerfacecolor=face, markersize=6, zorder=3
            )
        panel.set_xlabel(label, fontsize="small")
        if place % columns == 0:
            panel.set_ylabel(f"{name_of(MetricKey.parse(accuracy))} (%)\nbetter \N{RIGHTWARDS ARROW}", fontsize="small")
        panel.tick_params(labelsize="small")
        panel.grid(alpha=0.3)
        placed.append((panel, values))
    for panel in panels[len(metrics) :]:
        panel.set_axis_off()
    handles = [
        Line2D([], [], color="black", marker=f"${number}$", linestyle="", markersize=4 + 3 * len(str(number)))
        for number in range(1, len(points) + 1)
    ]
    handles += [
        Line2D([], [], color="black", marker="o", linestyle="--", linewidth=1),
        Line2D([], [], color="black", marker="o", linestyle="", markerfacecolor="white"),
    ]
    names = [*points, "Pareto front", "dominated"]
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize="small")
    # numbers go where there is room, which is known only after the layout
    figure.get_layout_engine().execute(figure)
    for panel, values in placed:
        _number(panel, values, heights)
    return save(figure, path_stem)


def fairness_metrics(points: Mapping[str, Mapping[str, float]], accuracy: str) -> list[str]:
    """Choose the metrics to set against `accuracy`, by the metric table: those at its K that at least two runs have."""
    against = MetricKey.parse(accuracy)
    order = [row.name for row in shown_in(PARETO)]
    places = {}
    for text in dict.fromkeys(text for metrics in points.values() for text in metrics):
        key = MetricKey.parse(text)
        wanted = not key.part and key.judged_by.name in order and key.k in (None, against.k)
        if key.spread:
            wanted = wanted and key.name == against.name
        if wanted and sum(math.isfinite(_value(metrics, text)) for metrics in points.values()) > 1:
            places[text] = order.index(key.judged_by.name)
    return sorted(places, key=places.get)


def pareto_front(accuracy: np.ndarray, badness: np.ndarray) -> np.ndarray:
    """Tell which points `[N]` no other point dominates, by being as good in both and better in one: `[N]` bool.

    `accuracy` is better when higher, `badness` when lower; a point with a NaN is not in the front.
    """
    defined = ~(np.isnan(accuracy) | np.isnan(badness))
    front = np.zeros(len(accuracy), dtype=bool)
    levels, level = np.unique(badness[defined], return_inverse=True)
    best = np.full(len(levels), -np.inf)
    np.maximum.at(best, level, accuracy[defined])
    before = np.concatenate([[-np.inf], np.maximum.accumulate(best)[:-1]])
    front[defined] = (accuracy[defined] == best[level]) & (accuracy[defined] > before[level])
    return front


def _value(metrics: Mapping[str, float], name: str) -> float:
    value = metrics.get(name)
    return math.nan if value is None else float(value)


def _axis(metric: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """What is drawn of a metric's `values`, the same as something to be low, and the label with the better side."""
    key = MetricKey.parse(metric)
    direction, name = key.judged_by.better, name_of(key)
    if direction == "zero":
        values, name = np.abs(values), f"|{name}|"
    elif direction == "one":
        with np.errstate(divide="ignore", invalid="ignore"):
            logarithm = np.abs(np.log(values))
        values, name = np.where(np.isfinite(logarithm), logarithm, np.nan), f"|ln({name})|"
    if direction == "higher":
        return values, -values, f"{name}\nbetter \N{RIGHTWARDS ARROW}"
    return values, values, f"{name}\n\N{LEFTWARDS ARROW} better"


def _draw_front(panel: Any, values: np.ndarray, heights: np.ndarray, badness: np.ndarray) -> None:
    order = np.argsort(badness, kind="stable")
    panel.step(values[order], heights[order], where="post", color="0.45", linestyle="--", linewidth=1, zorder=2)
    panel.margins(0.16)


def _number(panel: Any, values: np.ndarray, heights: np.ndarray) -> None:
    """Write each point's number beside it, where it is farthest from other points and numbers."""
    points = panel.transData.transform(np.stack([values, heights], axis=1))
    defined = ~np.isnan(points).any(axis=1)
    scale = panel.figure.dpi / 72
    box = panel.bbox
    taken = points[defined]
    for number in np.flatnonzero(defined):
        spots = points[number] + scale * OFFSETS
        room = np.linalg.norm(spots[:, None] - taken, axis=2).min(axis=1)
        inside = np.all((spots > box.min + 6 * scale) & (spots < box.max - 6 * scale), axis=1)
        # the first that is far enough, else the farthest
        best = int(np.argmax(np.where(inside, np.minimum(room, 9.5 * scale), -1)))
        taken = np.concatenate([taken, spots[best : best + 1]])
        far = np.linalg.norm(OFFSETS[best]) > 11
        panel.annotate(
            str(number + 1), (values[number], heights[number]), xytext=OFFSETS[best], textcoords="offset points",
            ha="center", va="center", fontsize="small", zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3},
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkB": 3} if far else None,
        )  # fmt: skip
