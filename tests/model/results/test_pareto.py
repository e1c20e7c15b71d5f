"""Runs against each other: who dominates whom, and the picture of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from model.results import pareto
from model.results.pareto import accuracy_against_fairness, fairness_metrics, pareto_front
from tests.support.pictures import looks_drawn

NAN = float("nan")
NUMBERS = st.integers(0, 5).map(float) | st.just(NAN)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=25))
def test_the_front_is_what_no_other_point_dominates(pairs):
    accuracy, badness = np.array(pairs, dtype=float).reshape(-1, 2).T

    def dominates(one, other):
        return one[0] >= other[0] and one[1] <= other[1] and one != other

    expected = [
        not np.isnan(pair).any() and not any(dominates(one, pair) for one in pairs if not np.isnan(one).any())
        for pair in pairs
    ]
    assert pareto_front(accuracy, badness).tolist() == expected


def test_every_metric_is_turned_so_that_low_is_bad_for_no_one():
    for metric, values, badness in (
        ("gini@10", [0.2, 0.4], [0.2, 0.4]),
        ("coverage@10", [0.2, 0.4], [-0.2, -0.4]),
        ("exposure_gap@10", [-0.2, 0.1], [0.2, 0.1]),
        ("dtr@10", [0.5, 2.0, 0.0], [np.log(2), np.log(2), NAN]),
        ("ndcg@10/gap/gender", [0.1, 0.0], [0.1, 0.0]),
    ):
        np.testing.assert_allclose(pareto._axis(metric, np.array(values))[1], badness)


POINTS = {
    "BUHS": {"ndcg@10": 0.03, "gini@10": 0.8, "coverage@10": 0.5, "exposure_gap@10": -0.6, "leakage_auc/gender": 0.98,
             "gini@20": 0.7, "dp_rate@10/gender": None, "ndcg@10/gap/gender": 0.002, "hr@10/gap/gender": 0.01},
    "FA-BUHS": {"ndcg@10": 0.031, "gini@10": 0.7, "coverage@10": 0.6, "exposure_gap@10": -0.5, "gini@20": 0.6,
                "leakage_auc/gender": 0.83, "dp_rate@10/gender": 0.4, "ndcg@10/gap/gender": NAN},
    "other <run>": {"ndcg@10": 0.02, "gini@10": 0.6, "coverage@10": 0.6, "dp_rate@10/gender": 0.3},
}  # fmt: skip


def test_panels_are_metrics_that_two_runs_have_at_the_same_cut_off():
    assert fairness_metrics(POINTS, "ndcg@10") == [
        "gini@10", "coverage@10", "exposure_gap@10", "dp_rate@10/gender", "leakage_auc/gender",
    ]  # fmt: skip
    assert fairness_metrics(POINTS, "ndcg@20") == ["gini@20", "leakage_auc/gender"]


def test_the_picture_names_every_run_and_the_better_side(tmp_path):
    first, second = (accuracy_against_fairness(POINTS, tmp_path / name) for name in ("a", "b"))
    for one, other in zip(first, second, strict=True):
        looks_drawn(one)
        assert one.read_bytes() == other.read_bytes()
    text = first[1].read_text()
    for words in ("BUHS", "FA-BUHS", "Pareto front", "dominated", "NDCG@10 (%)", "Gini of exposure", "← better"):
        assert f"<!-- {words}" in text or words in text
    assert text.count("better →") == 3  # coverage, and accuracy in each of two rows
    with pytest.raises(ValueError, match="no fairness metric beside ndcg@10"):
        accuracy_against_fairness({"one": POINTS["BUHS"]}, tmp_path / "none")


def test_crowded_points_keep_their_numbers_apart(tmp_path, monkeypatch):
    spots = []
    monkeypatch.setattr(pareto, "save", lambda figure, stem: spots.append(figure) or [])
    points = {str(n): {"ndcg@10": 0.03 + 1e-5 * n, "gini@10": 0.8 - 1e-5 * n} for n in range(8)}
    points["far"] = {"ndcg@10": 0.06, "gini@10": 0.4}
    accuracy_against_fairness(points, tmp_path / "crowded")
    (figure,) = spots
    figure.draw_without_rendering()
    panel = figure.axes[0]
    assert [text.get_text() for text in panel.texts] == [str(number) for number in range(1, 10)]
    boxes = [Text.get_window_extent(text) for text in panel.texts]
    overlaps = [(a, b) for a, one in enumerate(boxes) for b, other in enumerate(boxes[:a]) if one.overlaps(other)]
    assert not overlaps
