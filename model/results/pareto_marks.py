"""How the points of accuracy against fairness are told apart: looks, the legend's names, and names beside points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.results.drawing import BLACK, BLUE, GREEN, MARKERS, ORANGE, PURPLE, RED, SKY

# of another length than the markers, so that the pairs repeat late
COLORS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK)
# letters of a run's name in the legend
MOST_LETTERS = 36
# where a text may stand beside its point, in points of type: nearest first
OFFSETS = np.array([(r * math.cos(a), r * math.sin(a)) for r in (11, 19, 28) for a in np.arange(8) * math.pi / 4])
# points of a line from which texts stay away
STEPS = 25

# name of a curve -> its points in order, each with what stands beside it
Curves = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Marks:
    """What tells N points apart: each curve, and each point that is on none, has one look and one name.

    `names` are those of the legend, `looks [N]` a point's colour and marker, `texts [N]` what stands beside it (""
    for nothing) and `inks [N]` in which colour, and `lines` the places of a curve's points, in order.
    """

    names: dict[str, dict[str, str]]
    looks: list[dict[str, str]]
    texts: list[str]
    inks: list[str]
    lines: list[list[int]]


def marks_of(points: Sequence[str], joined: Curves) -> Marks:
    """Choose the marks of `points`, those on the curves `joined` together.

    Where there are more looks than colours, points on no curve have numbers.
    """
    places = {point: place for place, point in enumerate(points)}
    texts = {point: text for curve in joined.values() for point, text in curve.items()}
    curve_of = {point: name for name, curve in joined.items() for point in curve}
    # each curve and each point on none, in order
    owners = list(dict.fromkeys((curve_of.get(point, point), point in curve_of) for point in points))
    many = len(owners) > len(COLORS)
    names, looks = {}, {}
    for number, ((owner, is_curve), name) in enumerate(zip(owners, _short([name for name, _ in owners]), strict=True)):
        look = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}
        if is_curve:
            ends = list(joined[owner].values())
            names[f"{name}, {ends[0]} to {ends[-1]}"] = look | {"linestyle": "-", "linewidth": 0.9}
            looks |= dict.fromkeys(joined[owner], look)
        else:
            names[f"{number + 1} {name}" if many else name] = look | {"linestyle": ""}
            looks[owner] = look
            texts[owner] = str(number + 1) if many else ""
    return Marks(
        names,
        [looks[point] for point in points],
        [texts[point] for point in points],
        # of several curves the levels' names are the same
        [looks[point]["color"] if point in curve_of else BLACK for point in points],
        [[places[point] for point in curve] for curve in joined.values()],
    )


def _short(names: Sequence[str]) -> list[str]:
    """Shorten long names in their middle, unless two of them would then be the same."""
    # names of runs differ at their end more often
    start = MOST_LETTERS // 3
    end = MOST_LETTERS - start - 1
    short = [name if len(name) <= MOST_LETTERS else f"{name[:start]}…{name[-end:]}" for name in names]
    return short if len(set(short)) == len(short) else list(names)


def name_points(panel: Any, places: np.ndarray, drawn: np.ndarray, marks: Marks) -> None:
    """Write each point's text beside its place `[N, 2]`, far from other points and texts and from the lines `drawn`.

    Lines are `[L, 2, 2]` (start and end; x and y). The layout of the figure has to be known.
    """
    points = panel.transData.transform(places)
    defined = ~np.isnan(points).any(axis=1)
    scale = panel.figure.dpi / 72
    box = panel.bbox
    along = np.linspace(0, 1, STEPS)[:, None, None]
    lines = ((1 - along) * drawn[:, 0] + along * drawn[:, 1]).reshape(-1, 2)  # [STEPS L, 2]
    taken = np.concatenate([points[defined], panel.transData.transform(lines[~np.isnan(lines).any(axis=1)])])
    for place in np.flatnonzero(defined):
        if not marks.texts[place]:
            continue
        spots = points[place] + scale * OFFSETS
        room = np.linalg.norm(spots[:, None] - taken, axis=2).min(axis=1)
        inside = np.all((spots > box.min + 6 * scale) & (spots < box.max - 6 * scale), axis=1)
        # the first that is far enough, else the farthest
        best = int(np.argmax(np.where(inside, np.minimum(room, 10.5 * scale), -1)))
        taken = np.concatenate([taken, spots[best : best + 1]])
        far = np.linalg.norm(OFFSETS[best]) > 12
        panel.annotate(
            marks.texts[place], places[place], xytext=OFFSETS[best], textcoords="offset points",
            ha="center", va="center", zorder=4, color=marks.inks[place],
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3},
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkB": 3} if far else None,
        )  # fmt: skip
