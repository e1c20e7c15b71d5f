"""Pictures from made-up numbers: the same bytes for the same numbers, and what they name."""

import math
import os
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

from model.results import epoch_plots, plots
from model.results.drawing import TEXT, WIDTH

NAN = float("nan")
ROWS = [
    {"epoch": epoch, "train/loss": 1 / epoch, "valid/ndcg@10": None if epoch % 2 else 0.01 * epoch * (9 - epoch)}
    for epoch in range(1, 9)
]


def test_pictures_are_the_same_bytes_and_name_what_they_show(tmp_path):
    exposures = {"this run": np.array([0, 1, 2, 5.0]), "most popular": np.array([0, 0, 0, 8.0]), "none": np.zeros(4)}
    written = [epoch_plots.training_curves(ROWS, tmp_path / str(n) / "curves") for n in range(2)]
    written = [
        paths + plots.exposure_lorenz(exposures, tmp_path / str(n) / "lorenz") for n, paths in enumerate(written)
    ]
    assert [path.name for path in written[0]] == ["curves.png", "curves.svg", "lorenz.png", "lorenz.svg"]
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes() and first.stat().st_size > 2000
    curves, lorenz = (path.read_text() for path in written[0] if path.suffix == ".svg")
    assert "selected: epoch 4" in curves and "train/loss" in curves and "NDCG@10 (%)" in curves
    # Gini of (0, 1, 2, 5) is (-3 * 0 - 1 * 1 + 1 * 2 + 3 * 5) / (4 * 8), of one item in four 3 / 4.
    for words in ("(Gini 0.500)", "(Gini 0.750)", "(no exposure)"):
        assert words in lorenz


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any))
def test_lorenz_gini_equals_mean_absolute_difference(values):
    values = np.array(values, dtype=np.float64)
    share, gini = plots._lorenz(values)
    pairs = np.abs(values[:, None] - values).mean() / (2 * values.mean())
    assert gini == pytest.approx(pairs, abs=1e-12)
    assert share[0] == 0 and share[-1] == pytest.approx(1) and np.all(np.diff(share, 2) > -1e-12)


def test_curves_without_any_point(tmp_path):
    paths = epoch_plots.training_curves([{"epoch": 1, "train/loss": NAN}], tmp_path / "empty")
    assert all(path.exists() for path in paths)
    assert sorted(os.listdir(tmp_path)) == ["empty.png", "empty.svg"]


MANY = [
    {
        "epoch": epoch,
        "train/loss": math.sin(epoch),
        "train/other": math.cos(epoch),
        "valid/ndcg@10": 0.1,
        "valid/gini@10": 0.9,
    }
    for epoch in range(1, 5001)
]
BUCKETS = np.arange(1, 11) / 55
PICTURES = {
    "curves": lambda stem: epoch_plots.training_curves(MANY, stem),
    "epochs": lambda stem: epoch_plots.fairness_by_epoch(ROWS, ["ndcg@10", "gini@10", "ndcg@10/tail"], stem),
    "lorenz": lambda stem: plots.exposure_lorenz({"this run": np.arange(100_000) ** 2}, stem),
    "popularity": lambda stem: plots.exposure_by_popularity({"this run": BUCKETS}, np.full(10, 0.1), BUCKETS, stem),
    "groups": lambda stem: plots.accuracy_intervals(
        {name: {"this run": np.full((22, 3), 0.5)} for name in ("NDCG@10", "HR@10")},
        {"": ["everyone"], "occupation": [f"occupation {'long ' * 6}{n}" for n in range(21)]},
        stem,
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_as_wide_with_text_of_one_size_and_small_for_a_page(tmp_path, monkeypatch, name):
    sizes = set()
    draw = Text.draw

    def noted(text, *arguments):
        if text.get_visible() and text.get_text():
            sizes.add(text.get_fontsize())
        return draw(text, *arguments)

    monkeypatch.setattr(Text, "draw", noted)
    svg = PICTURES[name](tmp_path / name)[1]
    assert sizes == {TEXT}
    source = svg.read_text()
    assert float(re.search(r'<svg [^>]*width="([\d.]+)pt"', source)[1]) == 72 * WIDTH
    assert len(source) < 300_000
    # readable on a dark page too
    assert "fill: #ffffff" in source[: source.index("axes_1")]


def test_accuracy_and_fairness_by_epoch_mark_the_same_epoch(tmp_path):
    rows = [row | {"valid/gini@10": 0.9, "valid/dp_rate@10/excess/gender": 0.1} for row in ROWS]
    metrics = ["ndcg@10", "gini@10", "dp_rate@10/excess/gender"]
    text = epoch_plots.fairness_by_epoch(rows, metrics, tmp_path / "epochs")[1].read_text()
    for words in (
        "selected: epoch 4",
        "NDCG@10 (%) ↑",
        "Gini of exposure ↓",
        "Demographic parity, rates, gender, above",
        "chance ↓",
    ):
        assert words in text


@pytest.mark.parametrize(("gain", "said", "weights"), [(0.5, "tail: 0.80 -->", 3), (1e-4, "tail: 0.80, beyond -->", 1)])
def test_a_re_ranking_that_moves_next_to_nothing_is_no_heap_beside_its_target(tmp_path, gain, said, weights):
    alpha = np.arange(11) / 10
    curves = pd.DataFrame({"floor": 0.1, "alpha": alpha, "accuracy": 0.2, "tail_share": 0.2 + gain * alpha})
    text = plots.rerank_trade_off(curves, "NDCG@10", (0.1, 0.2), tmp_path / "t", due=0.8)[1].read_text()
    assert said in text and sum(f"<!-- {plots.ALPHA} = {weight} -->" in text for weight in ("0", "0.5", "1")) == weights
