"""Tell whether a picture shows something."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

# --- Drawing ---


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
