"""What pictures share: figures without the user's matplotlib settings, files, and failures that cost a warning."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.files import atomic_path
from data.messages import warn

# Read when matplotlib is imported: pictures need neither a backend that the user chose for windows, nor TeX or a font
# of the user's own matplotlibrc, either of which may be missing.
os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}

DPI = 150
# Every figure is as wide (inches) and has one size of text (points): so text is equally large in all pictures of a
# page, also where a narrow window makes them smaller.
WIDTH, TEXT = 7.0, 9
SETTINGS = {
    # keeps random ids out of the files
    "svg.hashsalt": "fabuhs",
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
    "font.size": TEXT,
    **dict.fromkeys(("axes.titlesize", "figure.titlesize", "figure.labelsize"), "medium"),
}
# Okabe and Ito's colours, told apart by colour-blind readers too; their yellow is too pale for lines on white
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = (
    "#000000",
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#0072b2",
    "#d55e00",
    "#cc79a7",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
# An axis is at least so many times as long as its largest value, and as its longest interval: less would make
# differences that are noise, or next to nothing, look large.
OF_LARGEST, OF_INTERVAL = 0.25, 3
# inches of a letter of an average name
LETTER = 0.072
# A line of more points is an image inside the SVG, which otherwise would grow with every epoch.
MOST_POINTS = 1000


class Style(NamedTuple):
    """How a series looks; line and marker tell series apart where there is no colour."""

    color: str
    line: str
    marker: str


# inches
SMALL_PANEL = 1.7
# above the panel: inside it the legend could hide a line
LEGEND_ABOVE = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 3, "frameon": False, "borderaxespad": 0.1}

STYLES = (Style(BLACK, "-", "o"), Style(RED, "--", "s"), Style(BLUE, "-.", "^"), Style(GREEN, ":", "D"))


@contextlib.contextmanager
def attempt(what: str) -> Iterator[None]:
    """Turn any failure inside into one warning that says which picture or page is missing, and why."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        warn(f"{what} is left out ({reason}); the results are complete")


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """Draw with matplotlib's defaults, whatever the user's matplotlibrc says."""
    # it would warn of missing fonts, and of mistakes in a matplotlibrc that is not used here
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def new_figure(height: float) -> Any:
    """Make an empty matplotlib Figure of `height` inches whose parts make room for each other."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def legend_columns(names: Iterable[str], most: int = 4) -> int:
    """Choose how many of `names` fit beside each other in a legend as wide as a figure, at most `most`."""
    return max(1, min(most, int((WIDTH - 0.2) / (LETTER * max(map(len, names)) + 0.5))))


def honest_limits(low: np.ndarray, high: np.ndarray, *reference: float, most: float = np.inf) -> tuple[float, float]:
    """Choose the ends of an axis for intervals `low` to `high [N]` and the values `reference`.

    Small differences stay small. Where nothing is below 0, or above `most`, the axis hardly goes there. Undefined is
    left out.
    """
    shown = np.concatenate([low, high, reference])
    shown = shown[np.isfinite(shown)]
    if not len(shown) or not shown.any():
        return -0.05, 1.05
    start, end, widths = shown.min(), shown.max(), (high - low)[np.isfinite(high - low)]
    missing = max(OF_LARGEST * np.abs(shown).max(), OF_INTERVAL * widths.max(initial=0.0), end - start) - (end - start)
    # no longer than from 0 to `most`, where both end it
    missing = min(missing, (start if start >= 0 else np.inf) + (most - end if end <= most else np.inf))
    # half of it on each side, unless a side has less room than that
    below = missing / 2 if start < 0 else min(missing / 2, start)
    above = missing - below if end > most else min(missing - below, most - end)
    start, end = start - (missing - above), end + above
    margin = 0.07 * (end - start)
    return float(start - margin), float(end + margin)


def save(figure: Any, path_stem: Path | str) -> list[Path]:
    """Write a figure as PNG and SVG: `path_stem` and those suffixes; the same figure gives the same bytes."""
    stem = Path(path_stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    with own_style():
        # otherwise the layout would be computed, and the figure drawn, anew for each file
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine(None)
        # empty metadata keep dates and versions out of the files
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            path = stem.with_name(f"{stem.name}.{kind}")
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)
            paths.append(path)
    return paths
