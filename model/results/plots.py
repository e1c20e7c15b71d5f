"""Pictures of a run, each as PNG and SVG: the same bytes for the same numbers, readable in greyscale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from model.results.drawing import new_figure, own_style, save

ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
# Most points of a curve: a catalogue may have hundreds of thousands of items, more than anyone can see.
CURVE_POINTS = 501


class Style(NamedTuple):
    """How a series looks; line, marker and hatch tell series apart where there is no colour."""

    color: str
    line: str
    marker: str
    hatch: str


STYLES = (
    Style("black", "-", "o", ""),
    Style("tab:red", "--", "s", "////"),
    Style("tab:blue", "-.", "^", "----"),
    Style("tab:green", ":", "D", "xxxx"),
)
# above the panel: inside it the legend could hide a line
LEGEND_ABOVE = {
    "loc": "lower right",
    "bbox_to_anchor": (1, 1),
    "ncols": 3,
    "fontsize": "small",
    "frameon": False,
    "borderaxespad": 0.1,
}
# these have the same look in every picture
RANKINGS = ("this run", "re-ranked", "most popular", "random")


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Choose a style for each series: a fixed one for the names in `RANKINGS`, else one by its place."""
    return {
        name: STYLES[RANKINGS.index(name) if name in RANKINGS else place % len(STYLES)]
        for place, name in enumerate(names)
    }


@own_style()
def training_curves(
    rows: Sequence[Mapping],
    path_stem: Path | str,
    loss: str = "train/loss",
    metric: str = "valid/ndcg@10",
    selected_epoch: int | None = None,
) -> list[Path]:
    """Draw `loss`, the other values that training reports and `metric` by epoch, and mark the selected epoch.

    `rows` are those of metrics.jsonl. A value that is missing or undefined (None or NaN) has no point. Stages and
    phases, whose epochs start again from 1, are drawn one after the other; `selected_epoch` is an epoch of the last
    one (None: the one with the best `metric`).
    """
    from matplotlib.ticker import MaxNLocator

    epochs, starts = _positions(rows)
    others = dict.fromkeys(key for row in rows for key in row if key.startswith("train/") and key != loss)
    parts = {"training loss": [loss], "adversaries and\nother losses": list(others), "validation": [metric]}
    parts = {title: keys for title, keys in parts.items() if keys}
    figure = new_figure(6.4, 1.9 * len(parts) + 0.5)
    panels = figure.subplots(len(parts), 1, sharex=True)
    for panel, (title, keys) in zip(panels, parts.items(), strict=True):
        for place, key in enumerate(keys):
            style, (at, values) = STYLES[place % len(STYLES)], _curve(rows, epochs, key)
            look = {"color": style.color, "linestyle": style.line, "marker": style.marker, "markersize": 3.5}
            panel.plot(at, values, label=key, **look)
        if len(keys) > 1:
            panel.set_ylabel(title)
            panel.legend(**LEGEND_ABOVE)
        else:
            panel.set_ylabel(f"{title}\n({keys[0]}{', fraction' if keys[0] == metric else ''})")
        for start in starts[1:]:
            panel.axvline(start + 0.5, color="0.8", linewidth=0.8)
        panel.grid(alpha=0.3)
    at, values = _curve(rows, epochs, metric)
    if selected_epoch is not None:
        selected = starts[-1] + selected_epoch
    else:
        selected = at[np.argmax(values)] if len(values) else None
    if selected is not None:
        label = f"selected: epoch {selected - starts[-1]:.0f}"
        marks = [panel.axvline(selected, color="0.4", linestyle=":", label=label, zorder=1) for panel in panels]
        panels[-1].legend(handles=marks[-1:], **LEGEND_ABOVE)
    panels[-1].set_xlabel("epoch" if len(starts) == 1 else "epoch, counted over all stages")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(rows) == 1:
        panels[-1].set_xlim(epochs[0] - 1, epochs[0] + 1)
    return save(figure, path_stem)


@own_style()
def exposure_lorenz(exposures: Mapping[str, np.ndarray], path_stem: Path | str) -> list[Path]:
    """Draw the Lorenz curve of each list's exposure `[I]` over the whole catalogue, its Gini index in the legend."""
    figure = new_figure(5.2, 4.8)
    panel = figure.subplots()
    panel.plot([0, 100], [0, 100], color="0.6", linewidth=1, label="equal exposure (Gini 0)")
    for name, style in styles(exposures).items():
        share, gini = _lorenz(exposures[name])
        label = f"{name} (Gini {gini:.3f})" if np.isfinite(gini) else f"{name} (no exposure)"
        grid = np.linspace(0, 1, CURVE_POINTS)
        heights = np.interp(grid, np.linspace(0, 1, len(share)), share)
        panel.plot(100 * grid, 100 * heights, color=style.color, linestyle=style.line, linewidth=1.8, label=label)
    panel.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    panel.set_xlabel("items, least exposed first (% of the catalogue)")
    panel.set_ylabel("share of position-discounted exposure (%)")
    panel.grid(alpha=0.3)
    # no Lorenz curve is above the diagonal
    panel.legend(loc="upper left", fontsize="small")
    return save(figure, path_stem)


@own_style()
def exposure_by_popularity(
    shares: Mapping[str, np.ndarray], catalogue: np.ndarray, train: np.ndarray, path_stem: Path | str
) -> list[Path]:
    """Draw the share of exposure that each ranking gives to each popularity bucket `[B]`, least popular first, as bars.

    A line shows the bucket's share of the `catalogue [B]`, a mark its share of the `train [B]` interactions.
    """
    buckets, width = np.arange(1, len(catalogue) + 1), 0.8 / len(shares)
    figure = new_figure(6.4, 3.8)
    panel = figure.subplots()
    for place, (name, style) in enumerate(styles(shares).items()):
        left = buckets - 0.4 + width * place
        look = {"facecolor": "white" if style.hatch else style.color, "edgecolor": style.color, "hatch": style.hatch}
        panel.bar(left, 100 * shares[name], width, align="edge", linewidth=0.8, label=name, **look)
    edges = np.append(buckets - 0.5, len(buckets) + 0.5)
    panel.stairs(100 * catalogue, edges, baseline=None, color="0.35", linestyle="--", label="share of the catalogue")
    panel.plot(buckets, 100 * train, "_", color="tab:orange", markersize=24, markeredgewidth=4, zorder=3)
    panel.plot(buckets, 100 * train, "_", color="black", markersize=24, markeredgewidth=1, zorder=3)
    panel.plot([], [], color="tab:orange", linewidth=4, label="share of train interactions")
    panel.set_xticks(buckets)
    panel.set_xlim(0.5, len(buckets) + 0.5)
    # the tail's shares are small beside the head's, and some are 0
    panel.set_yscale("function", functions=(np.sqrt, np.square))
    panel.set_ylim(0, 100)
    panel.set_yticks([0, 1, 5, 10, 20, 40, 60, 80, 100])
    panel.set_xlabel(f"items by train interactions, least popular first ({len(buckets)} parts of equal size)")
    panel.set_ylabel("share of discounted exposure\n(%, square-root scale)")
    panel.grid(axis="y", alpha=0.3)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize="small")
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
    width = 4.8 + 0.08 * max(map(len, labels))
    figure = new_figure(width, height)
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
        panel.set_title(f"{metric} (%)", fontsize="medium")
        panel.grid(axis="x", alpha=0.3)
    figure.supxlabel("mean over users and its 95 % interval (%)", fontsize="medium")
    panels[0].set_yticks(np.arange(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    if len(rankings) > 1:
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=len(names), fontsize="small")
    return save(figure, path_stem)


@own_style()
def history_distributions(
    shares: Mapping[str, np.ndarray], labels: Sequence[str], path_stem: Path | str, group: str = ""
) -> list[Path]:
    """Draw the expected share of each popularity bucket in the first draw, with a panel per way of sampling.

    `shares`: title of the panel -> `[G, B]`; `labels` name its rows, the groups of the attribute `group`.
    """
    figure = new_figure(2.5 * len(shares) + 0.8, 3.7)
    panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    for panel, (title, values) in zip(panels, shares.items(), strict=True):
        buckets = np.arange(1, values.shape[1] + 1)
        for row, label, style in zip(values, labels, STYLES, strict=False):
            panel.plot(
                buckets, 100 * row, color=style.color, linestyle=style.line, marker=style.marker, markersize=4.5,
                markerfacecolor="white", label=label,
            )  # fmt: skip
        panel.set_title(title, fontsize="medium")
        panel.set_xticks(buckets)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    parts = f"({len(buckets)} parts of equal size)"
    figure.supxlabel(f"items by train interactions, least popular first {parts}", fontsize="medium")
    panels[0].set_ylabel("share of the first draw (%)")
    columns = len(labels) if sum(map(len, labels)) < 10 * len(shares) else 2
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, title=group, loc="outside upper center", ncols=columns, fontsize="small")
    return save(figure, path_stem)


@own_style()
def rerank_trade_off(
    curves: pd.DataFrame, metric: str, chosen: tuple[float, float], path_stem: Path | str, due: float | None = None
) -> list[Path]:
    """Draw accuracy against the tail's share of exposure under re-ranking: a line per floor, a point per alpha.

    `curves` has a row per setting: `floor`, `alpha`, `accuracy` and `tail_share` (fractions). `chosen` is the (floor,
    alpha) to mark, `due` the tail's target share.
    """
    figure = new_figure(6.0, 4.2)
    panel = figure.subplots()
    floors = list(dict.fromkeys(curves["floor"]))
    for place, (floor, style) in enumerate(zip(floors, STYLES, strict=False)):
        curve = curves[curves["floor"] == floor].sort_values("alpha")
        at, accuracy = 100 * curve["tail_share"].to_numpy(), 100 * curve["accuracy"].to_numpy()
        look = {"color": style.color, "linestyle": style.line, "marker": style.marker, "zorder": 3 - place}
        size, face = (4.5, style.color) if place == 0 else (8, "white")
        panel.plot(at, accuracy, markersize=size, markerfacecolor=face, label=f"floor {floor:g}", **look)
        if place == 0:
            for alpha in (0, 0.5, 1):
                near = int(np.abs(curve["alpha"].to_numpy() - alpha).argmin())
                place_of = {"xytext": (-6, -6), "textcoords": "offset points", "ha": "right", "va": "top"}
                panel.annotate(f"{ALPHA} = {curve['alpha'].iloc[near]:g}", (at[near], accuracy[near]), **place_of)
    curve = curves[(curves["floor"] == chosen[0]) & np.isclose(curves["alpha"], chosen[1])]
    panel.plot(
        100 * curve["tail_share"], 100 * curve["accuracy"], "*", markersize=17, color="gold", markeredgecolor="black",
        zorder=4, label=f"chosen: {ALPHA} = {chosen[1]:g}, floor {chosen[0]:g}",
    )  # fmt: skip
    if due is not None:
        panel.axvline(100 * due, color="0.5", linestyle=":", label="target share of the tail")
    panel.margins(0.12)
    panel.set_xlabel("tail's share of discounted exposure (%)")
    panel.set_ylabel(f"validation {metric} (%)")
    panel.grid(alpha=0.3)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize="small")
    return save(figure, path_stem)


def _positions(rows: Sequence[Mapping]) -> tuple[np.ndarray, list[int]]:
    """Compute where each row lies on the axis of epochs `[N]`, and how many epochs come before each stage."""
    epochs = np.array([row["epoch"] for row in rows], dtype=np.int64)
    anew = np.flatnonzero(np.diff(epochs) <= 0) + 1
    if not len(anew):
        return epochs, [0]
    return np.arange(1, len(epochs) + 1), [0, *anew.tolist()]


def _curve(rows: Sequence[Mapping], epochs: np.ndarray, key: str) -> tuple[np.ndarray, np.ndarray]:
    values = np.array([np.nan if row.get(key) is None else row[key] for row in rows], dtype=np.float64)
    defined = np.isfinite(values)
    return epochs[defined], values[defined]


def _lorenz(exposure: np.ndarray) -> tuple[np.ndarray, float]:
    """Compute the Lorenz curve `[I + 1]`, least exposed first, and the Gini index: 1 - 2 * the area below the curve."""
    total = float(np.sum(exposure))
    if not total > 0:
        return np.full(2, np.nan), np.nan
    share = np.concatenate([[0.0], np.cumsum(np.sort(exposure)) / total])
    area = (share.sum() - (share[0] + share[-1]) / 2) / (len(share) - 1)
    return share, float(1 - 2 * area)
