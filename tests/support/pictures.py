"""Tell whether a picture shows something, and leave out what takes long to draw."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from model.results import epoch_plots, plots


def looks_drawn(path: Path) -> None:
    """Check that a PNG or SVG file is whole and not blank."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
            grey = np.asarray(image.convert("L"))
        assert grey.shape[1] >= 700 and (grey < 100).mean() > 0.005 and (grey > 250).mean() > 0.5
    else:
        names = [element.tag.rpartition("}")[2] for element in ElementTree.parse(path).iter()]
        assert names[0] == "svg" and names.count("path") > 20


def blank_pictures(patch: pytest.MonkeyPatch) -> None:
    """Replace the pictures that every run has by empty ones."""

    def blank(*arguments, **options):
        path = arguments[-1].with_suffix(".svg")
        path.write_text("<svg/>")
        return [path]

    for name in ("exposure_lorenz", "exposure_by_popularity", "accuracy_intervals"):
        patch.setattr(plots, name, blank)
    for name in ("training_curves", "fairness_by_epoch"):
        patch.setattr(epoch_plots, name, blank)
