"""Pictures of a run, each as PNG and SVG: the same bytes for the same numbers, readable in greyscale.

Shares of exposure are fractions and accuracy is in percent, as in the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from model.results.drawing import ORANGE, STYLES, Style, honest_limits, new_figure, own_style, save

ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
# Most points of a curve: a catalogue may have hundreds of thousands of items, more than anyone can see.
CURVE_POINTS = 501
# Where the axis of exposure for the size of a bucket becomes linear.
LINEAR = 0.01
# The target is in the picture of the trade-off where it is at most so many times as far as the points are apart.
FAR = 8
# Named points are at least so far apart, in parts of the axes.
APART = 0.1


# these have the same look in every picture
RANKINGS = ("this run", "re-ranked", "most popular", "random")


def styles(names: Iterable[str], looks: Sequence[Style] = STYLES) -> dict[str, Style]:
    """Choose one of `looks` for each series: a fixed one for the names in `RANKINGS`, else one by its place."""
    return {
        name: looks[RANKINGS.index(name) if name in RANKINGS else place % len(looks)]
        for place, name in enumerate(names)
    }


@own_style()
def exposure_lorenz(exposures: Mapping[str, np.ndarray], path_stem: Path | str) -> list[Path]:
    """Draw the Lorenz curve of each list's exposure `[I]` over the whole catalogue, its Gini index in the legend."""
    figure = new_figure(4.2)
    panel = figure.subplots()
    panel.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="equal exposure\n(Gini 0)")
    for name, style in styles(exposures).items():
        share, gini = _lorenz(exposures[name])
        label = f"{name}\n(Gini {gini:.3f})" if np.isfinite(gini) else f"{name}\n(no exposure)"
        grid = np.linspace(0, 1, CURVE_POINTS)
        heights = np.interp(grid, np.linspace(0, 1, len(share)), share)
        panel.plot(grid, heights, color=style.color, linestyle=style.line, linewidth=1.8, label=label)
    panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    panel.set_xlabel("share of the catalogue, least exposed items first")
    panel.set_ylabel("share of position-discounted exposure")
    panel.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False)
    return save(figure, path_stem)


@own_style()
def exposure_by_popularity(
    shares: Mapping[str, np.ndarray], catalogue: np.ndarray, train: np.ndarray, path_stem: Path | str
) -> list[Path]:
    """Draw the exposure that each ranking gives to each popularity bucket `[B]`, least popular first, for its size.

    Values are the bucket's share of exposure over its share of the `catalogue [B]`; so is that of the `train [B]`
    interactions. The axis is logarithmic above `LINEAR`, and linear below it, so that 0 has a place.
    """
    buckets = np.arange(1, len(catalogue) + 1)
    figure = new_figure(3.9)
    panel = figure.subplots()
    panel.plot(buckets, train / catalogue, color=ORANGE, linewidth=4, alpha=0.6, label="train interactions")
    for name, style in styles(shares).items():
        look = {"color": style.color, "linestyle": style.line, "marker": style.marker, "markerfacecolor": "white"}
        panel.plot(buckets, shares[name] / catalogue, markersize=5, label=name, **look)
    panel.axhline(1, color="0.35", linewidth=1, linestyle=(0, (1, 2)), label="equal exposure")
    panel.set_xticks(buckets)
    panel.set_yscale("symlog", linthresh=LINEAR, linscale=0.5)
    panel.set_ylim(-LINEAR / 4, 1.3 * len(buckets))
    ticks = [0, LINEAR, 0.1, 1, 10]
    panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.set_xlabel(f"items by train interactions, least popular first ({len(buckets)} parts of equal size)")
    panel.set_ylabel("share of discounted exposure\n/ share of the catalogue")
    panel.grid(alpha=0.3)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return save(figure, path_stem)


@own_style()
def accuracy_intervals(
    estimates: Mapping[str, Mapping[str, np.ndarray]], blocks: Mapping[str, Sequence[str]], path_stem: Path | str
) -> list[Path]:
    """Draw means with their intervals as points and whiskers: a panel per metric, a row per label of `blocks`.

    `estimates`: metric -> ranking -> `[R, 3]` (mean, low, high; fractions), one row per label, all blocks in order; NaN
    is not drawn. The first label stands for all users; a dotted line marks its mean under the first ranking.
    """
    labels = [label for names in blocks.values() for label in names]
    rankings = list(next(iter(estimates.values())))
    step = 0.7 / len(rankings)
    height = max(0.3, 0.17 * len(rankings)) * len(labels) + 1.2
    figure = new_figure(height)
    panels = figure.subplots(1, len(estimates), sharey=True, squeeze=False)[0]
    for panel, (metric, values) in zip(panels, estimates.items(), strict=True):
        for place, (name, style) in enumerate(styles(rankings).items()):
            mean, low, high = 100 * np.asarray(values[name]).T
            at = np.arange(len(labels)) + (place - (len(rankings) - 1) / 2) * step
            panel.hlines(at, low, high, color=style.color, linewidth=1.2)
            face = style.color if place == 0 else "white"
            panel.plot(mean, at, style.marker, color=style.color, markersize=5, markerfacecolor=face, label=name)
        overall = 100 * values[rankings[0]][0][0]
        panel.axvline(overall, color="0.4", linestyle=":", linewidth=1, zorder=0)
        for end in np.cumsum([len(names) for names in blocks.values()])[:-1]:
            panel.axhline(end - 0.5, color="0.75", linewidth=0.8)
        panel.set_xlim(left=min(0, panel.get_xlim()[0]))
        panel.set_title(f"{metric} (%)")
        panel.grid(axis="x", alpha=0.3)
    figure.supxlabel("mean over users and its 95 % interval (%)")
    panels[0].set_yticks(np.arange(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    if len(rankings) > 1:
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=len(names))
    return save(figure, path_stem)


@own_style()
def history_distributions(
    shares: Mapping[str, np.ndarray], labels: Sequence[str], path_stem: Path | str, group: str = ""
) -> list[Path]:
    """Draw the expected share of each popularity bucket in the first draw, with a panel per way of sampling.

    `shares`: title of the panel -> `[G, B]`; `labels` name its rows, the groups of the attribute `group`.
    """
    figure = new_figure(3.5)
    panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    for panel, (title, values) in zip(panels, shares.items(), strict=True):
        buckets = np.arange(1, values.shape[1] + 1)
        for row, label, style in zip(values, labels, STYLES, strict=False):
            panel.plot(
                buckets, row, color=style.color, linestyle=style.line, marker=style.marker, markersize=4.5,
                markerfacecolor="white", label=label,
            )  # fmt: skip
        panel.set_title(title)
        panel.set_xticks(buckets)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    parts = f"({len(buckets)} parts of equal size)"
    figure.supxlabel(f"items by train interactions, least popular first {parts}")
    panels[0].set_ylabel("share of the first draw")
    columns = len(labels) if sum(map(len, labels)) < 10 * len(shares) else 2
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, title=group, loc="outside upper center", ncols=columns)
    return save(figure, path_stem)


@own_style()
def rerank_trade_off(
    curves: pd.DataFrame, metric: str, chosen: tuple[float, float], path_stem: Path | str, due: float
) -> list[Path]:
    """Draw accuracy against the tail's share of exposure under re-ranking: a line per floor, a point per alpha.

    `curves` has a row per setting: `floor`, `alpha`, `accuracy` and `tail_share` (fractions). `chosen` is the (floor,
    alpha) to mark, `due` the tail's target share.
    """
    figure = new_figure(4.0)
    panel = figure.subplots()
    floors = list(dict.fromkeys(curves["floor"]))
    for place, (floor, style) in enumerate(zip(floors, STYLES, strict=False)):
        curve = curves[curves["floor"] == floor].sort_values("alpha")
        at, accuracy = curve["tail_share"].to_numpy(), 100 * curve["accuracy"].to_numpy()
        look = {"color": style.color, "linestyle": style.line, "marker": style.marker, "zorder": 3 - place}
        size, face = (4.5, style.color) if place == 0 else (8, "white")
        panel.plot(at, accuracy, markersize=size, markerfacecolor=face, label=f"floor {floor:g}", **look)
    curve = curves[(curves["floor"] == chosen[0]) & np.isclose(curves["alpha"], chosen[1])]
    panel.plot(
        curve["tail_share"], 100 * curve["accuracy"], "*", markersize=17, color=ORANGE, markeredgecolor="black",
        zorder=4, label=f"chosen: {ALPHA} = {chosen[1]:g}, floor {chosen[0]:g}",
    )  # fmt: skip
    at, accuracy = curves["tail_share"].to_numpy(), 100 * curves["accuracy"].to_numpy()
    # a line far away would push the points into a heap
    near = [due] if abs(due - at.mean()) < FAR * np.ptp(at) else []
    panel.axvline(
        due, color="0.5", linestyle=":", label=f"target share of the tail: {due:.2f}{'' if near else ', beyond'}"
    )
    panel.set_xlim(*honest_limits(at, at, *near, most=1))
    panel.set_ylim(*honest_limits(accuracy, accuracy, most=100))
    _name_weights(panel, curves[curves["floor"] == floors[0]])
    panel.set_xlabel("tail's share of discounted exposure")
    panel.set_ylabel(f"validation {metric} (%)")
    panel.grid(alpha=0.3)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return save(figure, path_stem)


def _name_weights(panel: Any, curve: pd.DataFrame) -> None:
    """Write weights 0, 1/2 and 1 beside their points, where these are apart."""
    taken: list[np.ndarray] = []
    for alpha in (0, 1, 0.5):
        near = int(np.abs(curve["alpha"].to_numpy() - alpha).argmin())
        point = np.array([curve["tail_share"].iloc[near], 100 * curve["accuracy"].iloc[near]])
        spot = panel.transAxes.inverted().transform(panel.transData.transform(point))
        if all(np.linalg.norm(spot - other) > APART for other in taken):
            place_of = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center"}
            panel.annotate(f"{ALPHA} = {curve['alpha'].iloc[near]:g}", point, **place_of)
            taken.append(spot)


def _lorenz(exposure: np.ndarray) -> tuple[np.ndarray, float]:
    """Compute the Lorenz curve `[I + 1]`, least exposed first, and the Gini index: 1 - 2 * the area below the curve."""
    total = float(np.sum(exposure))
    if not total > 0:
        return np.full(2, np.nan), np.nan
    share = np.concatenate([[0.0], np.cumsum(np.sort(exposure)) / total])
    area = (share.sum() - (share[0] + share[-1]) / 2) / (len(share) - 1)
    return share, float(1 - 2 * area)
