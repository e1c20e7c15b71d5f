"""Pictures of a run, each as PNG and SVG: the same bytes for the same numbers, readable in greyscale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from model.report import atomic_path

LINE_STYLES = (("black", "-"), ("tab:red", "--"), ("tab:blue", "-."), ("tab:green", ":"))
# A curve needs no more points than this, and a catalogue may have hundreds of thousands of items.
CURVE_POINTS = 501


def training_curves(
    rows: Sequence[Mapping],
    path_stem: Path | str,
    loss: str = "train/loss",
    metric: str = "valid/ndcg@10",
    selected_epoch: int | None = None,
) -> list[Path]:
    """Draw `loss` and `metric` by `epoch`, the selected epoch marked (by default the first with the best metric).

    A row without one of the two, or where it is undefined (None or NaN), has no point on that curve.
    """
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    curves = [_curve(rows, key) for key in (loss, metric)]
    for panel, (epochs, values), (color, style), marker in zip(panels, curves, LINE_STYLES, "os", strict=False):
        panel.plot(epochs, values, color=color, linestyle=style, marker=marker, markersize=3)
        panel.grid(alpha=0.3)
    epochs, values = curves[1]
    if selected_epoch is None and len(values):
        selected_epoch = int(epochs[np.argmax(values)])
    if selected_epoch is not None:
        for panel in panels:
            panel.axvline(selected_epoch, color="0.4", linestyle=":", label=f"selected: epoch {selected_epoch}")
        panels[1].legend(loc="best", fontsize="small")
    panels[0].set_ylabel(f"training loss\n({loss})")
    panels[1].set_ylabel(f"validation metric\n({metric}, fraction)")
    panels[1].set_xlabel("epoch")
    panels[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return _save(figure, path_stem)


def exposure_lorenz(exposures: Mapping[str, np.ndarray], path_stem: Path | str) -> list[Path]:
    """Draw the Lorenz curve of each list's exposure `[I]` over the whole catalogue, its Gini index in the legend."""
    figure = Figure(figsize=(5.2, 4.8), layout="constrained")
    panel = figure.subplots()
    panel.plot([0, 100], [0, 100], color="0.6", linewidth=1, label="equal exposure (Gini 0)")
    for (name, exposure), (color, style) in zip(exposures.items(), cycle(LINE_STYLES), strict=False):
        share, gini = _lorenz(exposure)
        label = f"{name} (Gini {gini:.3f})" if np.isfinite(gini) else f"{name} (no exposure)"
        grid = np.linspace(0, 1, CURVE_POINTS)
        heights = np.interp(grid, np.linspace(0, 1, len(share)), share)
        panel.plot(100 * grid, 100 * heights, color=color, linestyle=style, linewidth=1.8, label=label)
    panel.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    panel.set_xlabel("items, least exposed first (% of the catalogue)")
    panel.set_ylabel("share of position-discounted exposure (%)")
    panel.grid(alpha=0.3)
    panel.legend(loc="upper left", fontsize="small")
    return _save(figure, path_stem)


def _curve(rows: Sequence[Mapping], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
    points = np.array(points, dtype=np.float64).reshape(-1, 2)
    points = points[np.isfinite(points[:, 1])]
    return points[:, 0], points[:, 1]


def _lorenz(exposure: np.ndarray) -> tuple[np.ndarray, float]:
    """Cumulative shares `[I + 1]`, least exposed first, and the Gini index: one less twice the area below them."""
    total = float(np.sum(exposure))
    if not total > 0:
        return np.full(2, np.nan), np.nan
    share = np.concatenate([[0.0], np.cumsum(np.sort(exposure)) / total])
    area = (share.sum() - (share[0] + share[-1]) / 2) / (len(share) - 1)
    return share, float(1 - 2 * area)


def _save(figure: Figure, path_stem: Path | str) -> list[Path]:
    stem = Path(path_stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    # The salt and the empty metadata keep random ids, dates and versions out of the files.
    with matplotlib.rc_context({"svg.hashsalt": "fabuhs"}):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            path = stem.with_name(f"{stem.name}.{kind}")
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format=kind, dpi=150, metadata=metadata)
            paths.append(path)
    return paths
