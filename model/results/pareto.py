"""Accuracy against fairness: many runs in one picture, and which of them others dominate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fairness_utils import DIRECTIONS
from model.results.plots import save
from model.results.tables import ACCURACY, EXPOSURE_AND_PARITY, KEY

# base names of the panels, in this order, where nothing else is asked for
FAIRNESS = ("gini", "coverage", "aplt", "exposure_gap", "dp_rate", "dp_js", "gap", "leakage_auc")
COLUMNS = 3
# where a number may stand beside its point, in points of type: nearest first
OFFSETS = np.array([(r * math.cos(a), r * math.sin(a)) for r in (10, 17, 25) for a in np.arange(8) * math.pi / 4])


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
    metrics = fairness_metrics(points, accuracy) if fairness is None else list(fairness)
    if not metrics:
        raise ValueError(f"no fairness metric beside {accuracy} is defined in two runs of {', '.join(points)}")
    columns = min(COLUMNS, len(metrics))
    rows = -(-len(metrics) // columns)
    legend = -(-len(points) // 2)
    figure = Figure(figsize=(3.3 * columns + 0.4, 3.1 * rows + 0.22 * legend + 0.2), layout="constrained")
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
            panel.set_ylabel(f"{_shown(accuracy)} (%)\nbetter \N{RIGHTWARDS ARROW}", fontsize="small")
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
    # numbers go where there is room, which only the finished layout tells
    figure.get_layout_engine().execute(figure)
    for panel, values in placed:
        _number(panel, values, heights)
    return save(figure, path_stem)


def fairness_metrics(points: Mapping[str, Mapping[str, float]], accuracy: str) -> list[str]:
    """Metrics to set against `accuracy`: those of `FAIRNESS`, at the same K, that at least two runs have."""
    k = KEY.fullmatch(accuracy)["k"]
    found = {}
    for name in dict.fromkeys(name for metrics in points.values() for name in metrics):
        base = base_name(name)
        match = KEY.fullmatch(name)
        wanted = base in FAIRNESS and match["k"] in (None, k) and (base != "gap" or name.startswith(f"{accuracy}/gap/"))
        if wanted and sum(math.isfinite(_value(metrics, name)) for metrics in points.values()) > 1:
            found[name] = FAIRNESS.index(base)
    return sorted(found, key=found.get)


def base_name(metric: str) -> str:
    """The name under which `DIRECTIONS` has a metric: gini of gini@10, gap of ndcg@10/gap/gender."""
    match = KEY.fullmatch(metric)
    first = (match["tail"] or "").partition("/")[0]
    return first if first in ("gap", "std") else match["base"]


def pareto_front(accuracy: np.ndarray, badness: np.ndarray) -> np.ndarray:
    """Tell which points `[N]` no other dominates, as good in both and better in one; one with a NaN is not of them.

    `accuracy` is better when higher, `badness` when lower.
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


def _shown(metric: str) -> str:
    match, base = KEY.fullmatch(metric), base_name(metric)
    if base in ("gap", "std") or base in ACCURACY:
        name = f"{ACCURACY[match['base']]}@{match['k']}"
        return name if base in ACCURACY else f"{name} {base}, {match['tail'].partition('/')[2]}"
    return EXPOSURE_AND_PARITY.get(base, base) + (f", {match['tail']}" if match["tail"] else "")


def _axis(metric: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """What is drawn of a metric's `values`, the same as something to be low, and the label with the better side."""
    direction, name = DIRECTIONS[base_name(metric)], _shown(metric)
    if direction == "zero":
        values, name = np.abs(values), f"|{name}|"
    elif direction == "one":
        with np.errstate(divide="ignore", invalid="ignore"):
            logarithm = np.abs(np.log(values))
        values, name = np.where(np.isfinite(logarithm), logarithm, np.nan), f"|ln({name})|"
    if direction == "higher":
        return values, -values, f"{name}\nbetter \N{RIGHTWARDS ARROW}"
    return values, values, f"{name}\n\N{LEFTWARDS ARROW} better"


def _draw_front(panel: Axes, values: np.ndarray, heights: np.ndarray, badness: np.ndarray) -> None:
    order = np.argsort(badness, kind="stable")
    panel.step(values[order], heights[order], where="post", color="0.45", linestyle="--", linewidth=1, zorder=2)
    panel.margins(0.16)


def _number(panel: Axes, values: np.ndarray, heights: np.ndarray) -> None:
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
