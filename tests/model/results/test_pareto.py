"""Runs against each other: who dominates whom, and the picture of it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from model.results import pareto, pareto_marks
from model.results.drawing import honest_limits
from model.results.pareto import accuracy_against_fairness, fairness_metrics, front_line, how_to_read, undominated
from tests.support.pictures import looks_drawn

NAN = float("nan")
LONG = "ml-fda-bprmf-with-a-mask-ratio-of-0.4-and-a-very-long-name-{}"
NUMBERS = st.integers(0, 5).map(float) | st.just(NAN)
ENDS = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(lambda pair: (float(min(pair)), float(max(pair))))


def dominates(one, other):
    """Whether `one` dominates `other`, both (accuracy, fairness) of (low, high): literally."""
    better = [one[side][0] > other[side][1] for side in (0, 1)]
    worse = [other[side][0] > one[side][1] for side in (0, 1)]
    return any(better) and not any(worse)


@given(st.lists(st.tuples(ENDS, ENDS), max_size=12))
def test_the_front_is_what_no_other_point_dominates_beyond_noise(pairs):
    accuracy, fairness = np.array(pairs, dtype=float).reshape(-1, 2, 2).transpose(1, 0, 2)
    expected = [not any(dominates(one, pair) for one in pairs) for pair in pairs]
    assert undominated(accuracy, fairness).tolist() == expected
    line = front_line(accuracy, fairness)
    assert all(expected[place] for place in line) and (line or not any(expected))
    for one, other in pairwise(line):
        assert accuracy[other, 0] > accuracy[one, 1] and fairness[other, 1] < fairness[one, 0]


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=25))
def test_without_intervals_the_front_is_the_usual_one(pairs):
    accuracy, fairness = np.array(pairs, dtype=float).reshape(-1, 2).T
    defined = [pair for pair in pairs if not np.isnan(pair).any()]
    expected = [
        pair in defined and not any(one[0] >= pair[0] and one[1] >= pair[1] and one != pair for one in defined)
        for pair in pairs
    ]
    ends = [np.repeat(values[:, None], 2, axis=1) for values in (accuracy, fairness)]
    assert undominated(*ends).tolist() == expected
    # of equal points the line has one
    assert len(front_line(*ends)) == len({pair for pair, front in zip(pairs, expected, strict=True) if front})


def test_every_metric_is_turned_so_that_high_is_good():
    for metric, values, goodness in (
        ("gini@10", [0.2, 0.4], [-0.2, -0.4]),
        ("coverage@10", [0.2, 0.4], [0.2, 0.4]),
        ("exposure_gap@10", [-0.2, 0.1], [-0.2, -0.1]),
        ("dtr@10", [0.5, 2.0, 0.0], [-np.log(2), -np.log(2), NAN]),
        ("ndcg@10/gap/gender", [0.1, 0.0], [-10, 0]),
    ):
        points = {str(place): {metric: value} for place, value in enumerate(values)}
        axis = pareto._axis(points, metric, None)
        np.testing.assert_allclose(axis.goodness, np.repeat(np.array(goodness)[:, None], 2, axis=1))


def test_intervals_turn_with_their_metric():
    points = {"a": {"exposure_gap@10": -0.2}, "b": {"exposure_gap@10": 0.1}, "c": {"exposure_gap@10": None}}
    intervals = {"a": {"exposure_gap@10": (-0.3, -0.1)}, "b": {"exposure_gap@10": (-0.1, 0.3)}}
    axis = pareto._axis(points, "exposure_gap@10", intervals)
    np.testing.assert_allclose(axis.goodness, [[-0.3, -0.1], [-0.3, 0], [NAN, NAN]])
    np.testing.assert_allclose(axis.values, [0.2, 0.1, NAN])


def with_chance(value, excess, std=0.01, p=0.001, name="leakage_auc{}/gender"):
    """A figure by user group with its chance level."""
    parts = {"": value, "/chance": value - excess, "/chance_std": std, "/excess": excess, "/p": p}
    return {name.format(part): number for part, number in parts.items()}


def test_what_chance_gives_too_counts_as_none():
    points = {"a": with_chance(0.5, 0.1), "b": with_chance(0.6, 0.015, p=0.1), "c": with_chance(0.4, -0.02, p=0.98)}
    assert fairness_metrics({name: {"ndcg@10": 0.1} | point for name, point in points.items()}, "ndcg@10") == [
        "leakage_auc/excess/gender"
    ]
    axis = pareto._axis(points, "leakage_auc/excess/gender", None)
    np.testing.assert_allclose(axis.goodness[:, 0], [-0.1, 0, 0])
    np.testing.assert_allclose(axis.values, [0.1, 0.015, -0.02])
    assert axis.chance == pytest.approx(1.96 * 0.01) and axis.label.replace("\n", " ").endswith("above chance ← better")
    start, end = axis.limits
    assert start < -0.02 and end > 0.1


POINTS = {
    "BUHS": {"ndcg@10": 0.03, "gini@10": 0.8, "coverage@10": 0.5, "exposure_gap@10": -0.6, "leakage_auc/gender": 0.98,
             "gini@20": 0.7, "dp_debiased@10/gender": None, "ndcg@10/gap/gender": 0.002, "hr@10/gap/gender": 0.01},
    "FA-BUHS": {"ndcg@10": 0.031, "gini@10": 0.7, "coverage@10": 0.6, "exposure_gap@10": -0.5, "gini@20": 0.6,
                "leakage_auc/gender": 0.83, "dp_debiased@10/gender": 0.4, "ndcg@10/gap/gender": NAN},
    "other <run>": {"ndcg@10": 0.02, "gini@10": 0.6, "coverage@10": 0.6, "dp_debiased@10/gender": 0.3, "gini@20": 0.6,
                    "leakage_auc/gender": 0.7},
}  # fmt: skip


def test_panels_are_metrics_that_three_runs_have_at_the_same_cut_off():
    found = fairness_metrics(POINTS, "ndcg@10")
    assert set(found) == {"gini@10", "coverage@10", "leakage_auc/gender"}
    assert set(fairness_metrics(POINTS, "ndcg@20")) == {"gini@20", "leakage_auc/gender"}
    assert not fairness_metrics({name: POINTS[name] for name in ("BUHS", "FA-BUHS")}, "ndcg@10")
    # one run's chance level is not known, so that the figures themselves are drawn
    mixed = {name: with_chance(0.5, 0.1) for name in "ab"} | {"c": {"leakage_auc/gender": 0.4}}
    assert fairness_metrics(mixed, "ndcg@10") == ["leakage_auc/gender"]


def test_the_picture_names_every_run_and_the_better_side(tmp_path):
    intervals = {name: {"ndcg@10": (0.9 * point["ndcg@10"], 1.1 * point["ndcg@10"])} for name, point in POINTS.items()}
    first, second = (accuracy_against_fairness(POINTS, tmp_path / name, intervals=intervals) for name in ("a", "b"))
    for one, other in zip(first, second, strict=True):
        looks_drawn(one)
        assert one.read_bytes() == other.read_bytes()
    text = first[1].read_text()
    for words in ("BUHS", "FA-BUHS", "Pareto front", "dominated", "NDCG@10 (%)", "Gini of exposure", "← better"):
        assert f"<!-- {words}" in text or words in text
    assert text.count("better →") == 2  # coverage, and accuracy in its row
    with pytest.raises(ValueError, match="no fairness metric beside ndcg@10"):
        accuracy_against_fairness({"one": POINTS["BUHS"]}, tmp_path / "none")


def test_what_is_not_known_of_noise_is_said():
    assert "noise is not known" in how_to_read("run", ["gini@10"])
    known = how_to_read("list", ["leakage_auc/excess/gender"], {"a": {"ndcg@10": (0.1, 0.2)}})
    assert "95 % intervals" in known and "shuffled among the users" in known and "not known" not in known


def drawn(monkeypatch, points, joined=None):
    """The figure of `points`, laid out."""
    figures = []
    monkeypatch.setattr(pareto, "save", lambda figure, stem: figures.append(figure) or [])
    accuracy_against_fairness(points, "nowhere", joined=joined)
    (figure,) = figures
    figure.draw_without_rendering()
    return figure


def overlaps(texts):
    boxes = [Text.get_window_extent(text) for text in texts]
    return [(a, b) for a, one in enumerate(boxes) for b, other in enumerate(boxes[:a]) if one.overlaps(other)]


def test_crowded_points_keep_their_numbers_apart(monkeypatch):
    points = {str(n): {"ndcg@10": 0.03 + 1e-5 * n, "gini@10": 0.8 - 1e-5 * n} for n in range(8)}
    points["far"] = {"ndcg@10": 0.06, "gini@10": 0.4}
    panel = drawn(monkeypatch, points).axes[0]
    assert [text.get_text() for text in panel.texts] == [str(number) for number in range(1, 10)]
    assert not overlaps(panel.texts)


@pytest.mark.parametrize(("count", "name"), [(3, "run {}"), (8, LONG), (20, "run {}"), (20, LONG)])
def test_runs_are_told_apart_and_every_text_has_its_room(monkeypatch, count, name):
    metrics = ("gini@10", "coverage@10", "exposure_gap@10")
    points = {
        name.format(n): {"ndcg@10": 0.03 + 0.001 * (n % 5), "leakage_auc/gender": 0.6 + 0.01 * n}
        | dict.fromkeys(metrics, 0.1 + 0.03 * (n % 7))
        | with_chance(0.5, 0.01 * n, name="dp_js@10{}/gender")
        for n in range(count)
    }
    figure = drawn(monkeypatch, points)
    assert len(figure.axes) == 6 and bool(figure.axes[0].texts) == (count > 7)
    looks = [(line.get_color(), line.get_marker()) for line in figure.legends[0].legend_handles[:count]]
    assert len(set(looks)) == count
    legend = figure.legends[0].get_window_extent()
    labels = [panel.xaxis.label for panel in figure.axes if panel.axison]
    assert not overlaps([*figure.legends[0].get_texts(), *labels])
    for box in (legend, *map(Text.get_window_extent, labels)):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_names_are_shortened_only_where_they_stay_different():
    long = "a" * 30 + "b" * 30
    assert pareto_marks._short([long, "c"]) == ["a" * 12 + "…" + "b" * 23, "c"]
    alike = [long[:30] + letter + long[30:] for letter in "xy"]
    assert pareto_marks._short(alike) == alike


def test_levels_are_one_curve_with_a_name_beside_each(monkeypatch):
    levels = {f"run:t{n}": {"ndcg@10": 0.2 - 0.01 * n, "gini@10": 0.9 - 0.05 * n} for n in range(6)}
    levels["run:t2"]["gini@10"] = None
    others = {name: {"ndcg@10": 0.15, "gini@10": 0.6 + 0.05 * n} for n, name in enumerate(("own lambda", "plain"))}
    # the picture follows the curve's order, whatever that of the points
    points = dict(reversed(levels.items())) | others
    figure = drawn(monkeypatch, points, {"run": {f"run:t{n}": f"t{n}" for n in range(6)}})
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["run, t0 to t5", "own lambda", "plain", "Pareto front", "hollow: dominated"]
    panel = figure.axes[0]
    (curve,) = [line for line in panel.lines if line.get_marker() == "None" and line.get_linestyle() == "-"]
    np.testing.assert_allclose(curve.get_xdata(), [0.9, 0.85, 0.75, 0.7, 0.65])
    np.testing.assert_allclose(curve.get_ydata(), [20, 19, 17, 16, 15])
    assert {text.get_text() for text in panel.texts} == {"t0", "t1", "t3", "t4", "t5"}
    assert not overlaps(panel.texts)
    looks = [(line.get_color(), line.get_marker()) for line in panel.lines if line.get_marker() != "None"]
    assert len(looks) == 8 and len(set(looks)) == 3


def test_points_on_no_curve_are_numbered_where_there_are_many():
    marks = pareto_marks.marks_of(["a:t0", "a:t1", *"bcdefghi"], {"a": {"a:t0": "t0", "a:t1": "t1"}})
    assert list(marks.names)[:3] == ["a, t0 to t1", "2 b", "3 c"] and marks.lines == [[0, 1]]
    assert marks.texts == ["t0", "t1", *"23456789"] and marks.looks[0] == marks.looks[1] != marks.looks[2]


def test_a_line_between_levels_is_told_to_the_reader():
    assert "joins the levels" in how_to_read("list", ["gini@10"], joined={"this run": {"t0": "t0"}})
    assert "joins the levels" not in how_to_read("list", ["gini@10"], joined={})


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=9), st.floats(0, 30), st.sampled_from([100.0, np.inf]))
def test_an_axis_shows_all_and_is_long_beside_its_noise(values, width, most):
    values = np.array(values)
    start, end = honest_limits(values, values + width, most=most)
    assert start <= values.min() and end >= values.max() + width
    length = (end - start) / 1.14
    wanted = max(0.25 * np.abs([values, values + width]).max(), 3 * width)
    above, below = values.min() >= 0, values.max() + width <= most
    assert length >= min(wanted, most if above and below else np.inf) * (1 - 1e-9)
    if above:
        assert start >= -0.071 * length
    if below:
        assert end <= most + 0.071 * length
