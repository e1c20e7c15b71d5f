"""Real data sets, which are never part of the project: tests that count in them run where they are present."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# in the checkout, or in a folder beside it
PLACES = (ROOT / "datasets", ROOT / "shared" / "datasets", ROOT.parent / "shared" / "datasets")


def real_data(folder: str) -> Path:
    """Find the `--dataset_dir` that holds `folder`; skip the test where there is none."""
    found = [place for place in PLACES if (place / folder).is_dir()]
    if not found:
        pytest.skip(f"{folder} is in none of {', '.join(map(str, PLACES))}")
    return found[0]
