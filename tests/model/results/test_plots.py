"""Pictures from made-up numbers: the same bytes for the same numbers, and what they name."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.results import plots

NAN = float("nan")
ROWS = [
    {"epoch": epoch, "train/loss": 1 / epoch, "valid/ndcg@10": None if epoch % 2 else 0.01 * epoch * (9 - epoch)}
    for epoch in range(1, 9)
]


def test_pictures_are_the_same_bytes_and_name_what_they_show(tmp_path):
    exposures = {"this run": np.array([0, 1, 2, 5.0]), "most popular": np.array([0, 0, 0, 8.0]), "none": np.zeros(4)}
    written = [plots.training_curves(ROWS, tmp_path / str(n) / "curves") for n in range(2)]
    written = [
        paths + plots.exposure_lorenz(exposures, tmp_path / str(n) / "lorenz") for n, paths in enumerate(written)
    ]
    assert [path.name for path in written[0]] == ["curves.png", "curves.svg", "lorenz.png", "lorenz.svg"]
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes() and first.stat().st_size > 2000
    curves, lorenz = (path.read_text() for path in written[0] if path.suffix == ".svg")
    assert "selected: epoch 4" in curves and "train/loss" in curves
    # Gini of (0, 1, 2, 5) is (-3 * 0 - 1 * 1 + 1 * 2 + 3 * 5) / (4 * 8), of one item in four 3 / 4.
    assert (
        "this run (Gini 0.500)" in lorenz and "most popular (Gini 0.750)" in lorenz and "none (no exposure)" in lorenz
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any))
def test_lorenz_gini_equals_mean_absolute_difference(values):
    values = np.array(values, dtype=np.float64)
    share, gini = plots._lorenz(values)
    pairs = np.abs(values[:, None] - values).mean() / (2 * values.mean())
    assert gini == pytest.approx(pairs, abs=1e-12)
    assert share[0] == 0 and share[-1] == pytest.approx(1) and np.all(np.diff(share, 2) > -1e-12)


def test_curves_without_any_point(tmp_path):
    paths = plots.training_curves([{"epoch": 1, "train/loss": NAN}], tmp_path / "empty")
    assert all(path.exists() for path in paths)
    assert sorted(os.listdir(tmp_path)) == ["empty.png", "empty.svg"]
