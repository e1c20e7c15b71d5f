"""What pictures share: figures without the user's matplotlib settings, files, and failures that cost a warning."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.files import atomic_path
from data.messages import warn

# Read when matplotlib is imported: pictures need neither a backend that the user chose for windows, nor TeX or a font
# of the user's own matplotlibrc, either of which may be missing.
os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}

DPI = 150
# the salt keeps random ids out of the files
SETTINGS = {"svg.hashsalt": "fabuhs", "figure.autolayout": False, "figure.constrained_layout.use": False}


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


def new_figure(width: float, height: float) -> Any:
    """Make an empty matplotlib Figure of `width` x `height` inches whose parts make room for each other."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


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
