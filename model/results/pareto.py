"""Accuracy against fairness: many runs in one picture, and which of them others beat by more than noise."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from model.evaluation.keys import EXCESS, MetricKey
from model.evaluation.metric_kinds import HEADLINE, PARETO
from model.evaluation.metric_table import shown_in
from model.results.drawing import honest_limits, legend_columns, new_figure, own_style, save
from model.results.metric_text import RANGE, axis_name, axis_reference, chance_of
from model.results.pareto_marks import Curves, Marks, marks_of, name_points

# fewer points show nothing that a table does not show better
FEWEST_POINTS = 3
PANELS_IN_A_ROW = 3
# letters of a line below a panel
LINE = 28
# half of the central 95 % of a normal distribution, in standard deviations
CENTRAL = 1.96

Points = Mapping[str, Mapping[str, float | None]]
Intervals = Mapping[str, Mapping[str, tuple[float, float]]]


@dataclass(frozen=True)
class Axis:
    """The points on one axis, as drawn: `values`, and their intervals `low` to `high`, all `[N]`; the axis' `label`.

    `sign` is 1 where higher is better and -1 where lower is. An interval that is not known has no length. `within [N]`
    tells of an excess whether chance gives it too. `most` is 1 in the axis' unit. `reference` is a value that the axis
    shows in any case, and `chance` how far from it labels permuted among the users reach.
    """

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    sign: int
    label: str
    within: np.ndarray
    most: float
    reference: tuple[float, ...] = ()
    chance: float = 0.0

    @property
    def goodness(self) -> np.ndarray:
        """The ends of the intervals `[N, 2]`, turned so that higher is better; what is within chance counts as 0."""
        ends = np.where(self.within[:, None], 0.0, np.stack([self.low, self.high], axis=1))
        return ends if self.sign > 0 else -ends[:, ::-1]

    @property
    def limits(self) -> tuple[float, float]:
        """The ends of the axis."""
        band = [at + side * self.chance for at in self.reference for side in (-1, 1)]
        return honest_limits(self.low, self.high, *band, most=self.most)


@own_style()
def accuracy_against_fairness(
    points: Points,
    path_stem: Path | str,
    accuracy: str = "ndcg@10",
    fairness: Sequence[str] | None = None,
    intervals: Intervals | None = None,
    joined: Curves | None = None,
) -> list[Path]:
    """Draw each run of `points` (label -> metric, without a prefix such as test/ -> fraction), a panel per metric.

    Panels are those of `fairness`, by default all of `fairness_metrics`. `intervals` (label -> metric, named as it is
    drawn -> low, high) are whiskers where they are known; a point is hollow where another one beats it beyond them
    (`undominated`). Points on one curve of `joined` have one look, a line through them in order, and their text beside
    each. `how_to_read` says the same to the reader. ValueError without any panel.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    metrics = fairness_metrics(points, accuracy) if fairness is None else list(fairness)
    if not metrics:
        raise ValueError(
            f"no fairness metric beside {accuracy} is defined in {FEWEST_POINTS} of the runs {', '.join(points)}"
        )
    marks = marks_of(list(points), joined or {})
    in_a_row = legend_columns(marks.names)
    columns = min(PANELS_IN_A_ROW, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = new_figure(2.5 * rows + 0.19 * -(-(len(marks.names) + 3) // in_a_row) + 0.2)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    heights = _axis(points, accuracy, intervals)
    axes = [_axis(points, metric, intervals) for metric in metrics]
    for place, (panel, axis) in enumerate(zip(panels, axes, strict=False)):
        _draw_panel(panel, axis, heights, marks)
        if place % columns == 0:
            panel.set_ylabel(heights.label)
    for panel in panels[len(metrics) :]:
        panel.set_axis_off()
    handles = [Line2D([], [], markersize=6, label=name, **look) for name, look in marks.names.items()]
    beaten = {"marker": "o", "color": "0.4", "markerfacecolor": "white", "linestyle": ""}
    handles += [
        Line2D([], [], color="0.45", linestyle="--", linewidth=1, label="Pareto front"),
        Line2D([], [], label="hollow: dominated", **beaten),
    ]
    if any(axis.chance for axis in axes):
        handles.append(Patch(color="0.88", label="within chance"))
    figure.legend(handles=handles, loc="outside upper center", ncols=in_a_row)
    if any(marks.texts):
        # texts go where there is room, which is known only after the layout
        figure.get_layout_engine().execute(figure)
        for panel, axis in zip(panels, axes, strict=False):
            places = np.stack([axis.values, heights.values], axis=1)
            name_points(panel, places, _lines(axis, heights, marks), marks)
    return save(figure, path_stem)


def fairness_metrics(
    points: Points, accuracy: str, places: Sequence[str] = (HEADLINE, PARETO), fewest: int = FEWEST_POINTS
) -> list[str]:
    """Choose the metrics to set against `accuracy`: those of `places` in the metric table that `fewest` runs have at
    its K.

    A figure with a chance level is drawn as its excess where all runs that have it know its excess.
    """
    against = MetricKey.parse(accuracy)
    order = list(dict.fromkeys(row.name for place in places for row in shown_in(place)))
    found = {}
    for text in dict.fromkeys(text for metrics in points.values() for text in metrics):
        key = MetricKey.parse(text)
        wanted = not key.part and key.judged_by.name in order and key.k in (None, against.k)
        if key.spread:
            wanted = wanted and key.name == against.name
        if not wanted:
            continue
        having = [metrics for metrics in points.values() if math.isfinite(_value(metrics, text))]
        if len(having) >= fewest:
            excess = str(key.of(EXCESS))
            drawn = excess if all(math.isfinite(_value(metrics, excess)) for metrics in having) else text
            found[drawn] = order.index(key.judged_by.name)
    return sorted(found, key=found.get)


def how_to_read(
    what: str, metrics: Sequence[str], intervals: Intervals | None = None, joined: Curves | None = None
) -> str:
    """Say how to read the picture of `metrics`, in which a point is a `what`."""
    if any((intervals or {}).values()):
        noise = "better beyond the 95 % intervals (whiskers; what has none counts as exact)"
    else:
        noise = "better (how much of a difference is noise is not known here)"
    text = (
        f"Each point is a {what}; arrows point to the better side. A mark is hollow where another {what} is {noise} in "
        f"one of the two and not worse in the other; the dashed line joins those of the rest that buy the one with the "
        f"other."
    )
    if joined:
        text += (
            " A thin solid line joins the levels of one training, from the most accurate to the fairest as the method "
            "orders them."
        )
    if any(MetricKey.parse(metric).part for metric in metrics):
        text += (
            " Above chance: the figure less what it is when labels are shuffled among the users. In the grey band (of "
            f"the {what} for which it is widest) are 95 % of such shuffles; what is within its own chance counts as 0."
        )
    return text


def undominated(accuracy: np.ndarray, fairness: np.ndarray) -> np.ndarray:
    """Tell which points no other one dominates: `[N]` bool.

    `accuracy` and `fairness` are intervals `[N, 2]` (low, high) of which higher is better. A point dominates another
    where it is better in one of them, the intervals apart, and not worse in the other, the intervals apart. A point
    with a NaN is neither (Decision 51).
    """
    front = ~(np.isnan(accuracy).any(axis=1) | np.isnan(fairness).any(axis=1))
    first, second = (_better(ends[front]) for ends in (accuracy, fairness))  # [F, F]
    front[front] = ~((first | second) & ~first.T & ~second.T).any(axis=0)
    return front


def front_line(accuracy: np.ndarray, fairness: np.ndarray) -> list[int]:
    """Choose the undominated points that differ: from the fairest on, each less fair and more accurate than the last.

    Intervals are those of `undominated`; those of two points that follow each other are apart in both.
    """
    line: list[int] = []
    chosen = np.flatnonzero(undominated(accuracy, fairness))
    for place in chosen[np.argsort(-fairness[chosen].sum(axis=1), kind="stable")].tolist():
        if not line or (accuracy[place, 0] > accuracy[line[-1], 1] and fairness[place, 1] < fairness[line[-1], 0]):
            line.append(place)
    return line


def _better(ends: np.ndarray) -> np.ndarray:
    """Tell whether the interval `[F, 2]` of a row is above that of a column: `[F, F]`."""
    return ends[:, None, 0] > ends[None, :, 1]


def _value(metrics: Mapping[str, float | None], name: str) -> float:
    value = metrics.get(name)
    return math.nan if value is None else float(value)


def _axis(points: Points, metric: str, intervals: Intervals | None) -> Axis:
    """Turn a metric of `points` into what is drawn: distances where values near 0, or near 1, are the better ones."""
    key = MetricKey.parse(metric)
    direction, label, scale = key.judged_by.better, axis_name(key), key.metric.scale
    values = np.array([_value(metrics, metric) for metrics in points.values()])
    known = [(intervals or {}).get(name, {}).get(metric, (math.nan, math.nan)) for name in points]
    low, high = np.array(known, dtype=np.float64).T
    unknown = ~np.isfinite(low + high)
    low, high = np.where(unknown, values, low), np.where(unknown, values, high)
    if direction == "one":
        with np.errstate(divide="ignore", invalid="ignore"):
            values, low, high = np.log(values), np.log(low), np.log(high)
        values = np.where(np.isfinite(values), values, np.nan)
        label = f"|ln({label})|"
    elif direction == "zero":
        label = f"|{label}|"
    if direction in ("zero", "one"):
        around = (low < 0) & (high > 0)
        low, high = np.minimum(np.abs(low), np.abs(high)), np.maximum(np.abs(low), np.abs(high))
        values, low = np.abs(values), np.where(around, 0.0, low)
    undefined = np.isnan(values)
    low, high = np.where(undefined, np.nan, low), np.where(undefined, np.nan, high)
    reference, chance, within = axis_reference(key), 0.0, np.zeros(len(values), dtype=bool)
    if key.part:
        levels = [chance_of(metrics, key.of("")) for metrics in points.values()]
        within = np.array([level is not None and level.p > RANGE[0] for level in levels])
        spreads = [level.std for level in levels if level is not None]
        chance = CENTRAL * scale * max(spreads, default=0.0)
    sides = {True: "better \N{RIGHTWARDS ARROW}", False: "\N{LEFTWARDS ARROW} better"}
    higher = direction == "higher"
    label = f"{textwrap.fill(label, LINE)}\n{sides[higher]}"
    return Axis(scale * values, scale * low, scale * high, 1 if higher else -1, label, within, scale, reference, chance)


def _lines(axis: Axis, heights: Axis, marks: Marks) -> np.ndarray:
    """Give the whiskers and the pieces of the curves of a panel: `[L, 2, 2]`, start and end, x and y."""
    ends = np.array([pair for places in marks.lines for pair in pairwise(places)], dtype=np.int64).reshape(-1, 2)
    curves = np.stack([axis.values[ends], heights.values[ends]], axis=2)
    across = np.stack([[axis.low, heights.values], [axis.high, heights.values]]).transpose(2, 0, 1)
    upright = np.stack([[axis.values, heights.low], [axis.values, heights.high]]).transpose(2, 0, 1)
    return np.concatenate([curves, across, upright])


def _draw_panel(panel: Any, axis: Axis, heights: Axis, marks: Marks) -> None:
    accuracy, fairness = heights.goodness, axis.goodness
    best, line = undominated(accuracy, fairness), front_line(accuracy, fairness)
    if axis.chance:
        panel.axvspan(axis.reference[0] - axis.chance, axis.reference[0] + axis.chance, color="0.88", zorder=0)
    for at in axis.reference:
        panel.axvline(at, color="0.5", linestyle="-.", linewidth=0.9, zorder=1)
    panel.step(
        axis.values[line], heights.values[line], where="post", color="0.45", linestyle="--", linewidth=1, zorder=2
    )
    for ends, at, draw in ((axis, heights, panel.hlines), (heights, axis, panel.vlines)):
        known = np.flatnonzero(ends.high > ends.low)
        colors = [marks.looks[place]["color"] for place in known]
        draw(at.values[known], ends.low[known], ends.high[known], colors=colors, linewidth=1, zorder=2)
    for places in marks.lines:
        # a level that is undefined is passed over
        known = [place for place in places if not np.isnan(axis.values[place] + heights.values[place])]
        panel.plot(axis.values[known], heights.values[known], color=marks.looks[places[0]]["color"], linewidth=0.9)
    for x, y, look, is_best in zip(axis.values, heights.values, marks.looks, best, strict=True):
        panel.plot(x, y, markersize=6, markerfacecolor=look["color"] if is_best else "white", zorder=3, **look)
    panel.set_xlim(*axis.limits)
    panel.set_ylim(*heights.limits)
    panel.set_xlabel(axis.label)
    panel.locator_params(nbins=4)
    panel.grid(alpha=0.3)
