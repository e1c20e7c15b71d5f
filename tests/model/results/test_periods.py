"""The picture over phases: which numbers it shows, and what is drawn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from model.evaluation.intervals import mean_interval
from model.evaluation.keys import ListKey
from model.results import period_plots
from model.results.pareto import CENTRAL
from model.results.period_numbers import (
    Periods,
    Series,
    intervals_over_users,
    metrics_by_phase,
    panels_of,
    short_phases,
)
from tests.support.pictures import blank_pictures, looks_drawn
from tests.support.runs import run_main
from tests.support.time_order import RUN, register

pytestmark = pytest.mark.pictures
NAN = float("nan")
NDCG, GAP = metrics_by_phase(5, "gender")
PERIODS = Periods(tuple(f"snapshot-{number}" for number in range(10)), ("next", "remain"))


def made_up(seed, tasks=PERIODS.tasks, far=0.0):
    """A series with random results under `tasks`; `far` is how far the last whisker of a gap goes."""
    random = np.random.default_rng(seed)
    results, intervals = {}, {}
    for task in tasks:
        for name in PERIODS.lists(ListKey(), task):
            level, gap = random.uniform(0.2, 0.3), random.uniform(0, 0.05)
            results[name] = {
                "ndcg@5": level,
                "ndcg@5/gap/gender": gap,
                "ndcg@5/gap/chance/gender": 0.02,
                "ndcg@5/gap/chance_std/gender": 0.005,
            }
            intervals[name] = {"ndcg@5": (level - 0.01, level + 0.01), "ndcg@5/gap/gender": (0.9 * gap, gap + far)}
    return Series(ListKey(), results, intervals)


def test_accuracy_and_its_gap_between_the_groups_are_drawn():
    assert (str(NDCG), str(GAP)) == ("ndcg@5", "ndcg@5/gap/gender")


def test_lists_are_those_of_a_control_in_each_phase():
    key = PERIODS.list_key("test/snapshot-3/next/t1/reranked")
    assert key == ListKey(control="t1", reranked=True)
    assert PERIODS.lists(key, "remain")[9] == "test/snapshot-9/remain/t1/reranked"
    assert PERIODS.lists(key.beside("popular"), "next")[0] == "reference/popular/snapshot-0/next"
    alone = Periods(("first", "second"), ("",))
    assert alone.list_key("test/first/t1") == ListKey(control="t1")
    assert alone.lists(ListKey(), "") == ["test/first", "test/second"]
    assert Periods.read({"periods": PERIODS.as_json()}) == PERIODS and Periods.read({}) is None


def test_lines_are_values_by_phase_with_their_intervals_and_chance():
    series = made_up(0)
    panels = panels_of(PERIODS, {"run": series}, [NDCG, GAP])
    assert list(panels) == ["next", "remain"] and list(panels["remain"]) == [NDCG, GAP]
    line = panels["remain"][GAP]["run"]
    names = [f"test/snapshot-{number}/remain" for number in range(10)]
    assert line.values.tolist() == [series.results[name][str(GAP)] for name in names]
    assert line.low.tolist() == [series.intervals[name][str(GAP)][0] for name in names]
    np.testing.assert_allclose([line.chance[3], line.top[3]], [0.02, 0.02 + CENTRAL * 0.005])
    assert np.isnan(panels["next"][NDCG]["run"].top).all()


def test_what_fewer_than_two_phases_know_and_a_third_task_are_left_out():
    periods = Periods(PERIODS.phases, ("once", "next", "remain", "third"))
    series = made_up(0, tasks=("next", "remain", "third"))
    series.results["test/snapshot-9/once"] = {"ndcg@5": 0.5}
    del series.results["test/snapshot-4/next"]["ndcg@5"]
    series.results["test/snapshot-5/next"]["ndcg@5"] = None
    # means over phases are no phase
    series.results["test/mean/next"] = {"ndcg@5": 0.7}
    few = Series(ListKey(), {"test/snapshot-1/next": {"ndcg@5": 0.5}}, {})
    panels = panels_of(periods, {"run": series, "few": few}, [NDCG, GAP])
    assert list(panels) == ["next", "remain"]
    assert list(panels["next"][NDCG]) == ["run"]
    assert np.flatnonzero(np.isnan(panels["next"][NDCG]["run"].values)).tolist() == [4, 5]
    assert panels_of(periods, {"few": few}, [NDCG, GAP]) == {}


def test_intervals_are_over_the_users_of_each_list(tmp_path):
    periods, values = Periods(("a", "b"), ("",)), np.array([[0.1, 0.4, NAN, 0.6], [0.2, 0.2, 0.9, NAN]])
    columns = {f"test/{name}/ndcg@5": row for name, row in zip("ab", values, strict=True)}
    pd.DataFrame({"user": range(4)} | columns).to_parquet(tmp_path / "per_user.parquet")
    results = {f"test/{name}": {"ndcg@5": np.nanmean(row)} for name, row in zip("ab", values, strict=True)}
    found = intervals_over_users(tmp_path, periods, [ListKey(), ListKey().beside("popular")], results, NDCG)
    assert found == {
        f"test/{name}": {"ndcg@5": tuple(mean_interval(row)[1:])} for name, row in zip("ab", values, strict=True)
    }


@pytest.mark.parametrize(
    ("names", "title", "short"),
    [
        (["snapshot-0", "snapshot-1", "snapshot-10"], "snapshot", ["0", "1", "10"]),
        (["snapshot-10", "snapshot-11"], "snapshot", ["10", "11"]),
        (["period1", "period2"], "period", ["1", "2"]),
        (["first", "fifth"], "phase", ["first", "fifth"]),
        (["update", "update-2"], "phase", ["update", "update-2"]),
        (["2001", "2002"], "phase", ["2001", "2002"]),
    ],
)
def test_phases_are_named_without_what_they_share(names, title, short):
    assert short_phases(names) == (title, short)


@pytest.fixture
def figure(monkeypatch):
    """A function: panels, phases -> the figure that would be saved."""

    def draw(panels, phases=PERIODS.phases):
        figures = []
        with monkeypatch.context() as patch:
            patch.setattr(period_plots, "save", lambda figure, stem: figures.append(figure) or [])
            period_plots.by_phase(panels, phases, "nowhere")
        return figures[0]

    return draw


@pytest.mark.slow
def test_seven_lines_over_ten_phases_are_told_apart(figure):
    series = {f"run {number}": made_up(number) for number in range(7)}
    drawn = figure(panels_of(PERIODS, series, [NDCG, GAP]))
    assert [panel.get_title() for panel in drawn.axes] == ["task next", "task remain", "", ""]
    for panel in drawn.axes[::2]:
        lines = [line for line in panel.lines if line.get_label() in series]
        assert len({line.get_marker() for line in lines}) == len({to_hex(line.get_color()) for line in lines}) == 7
    assert [tick.get_text() for tick in drawn.axes[2].get_xticklabels()] == list("0123456789")
    named = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert named == [*series, "within chance"] and drawn.get_supxlabel() == "snapshot"


def test_the_axis_of_gaps_begins_at_zero_and_is_not_stretched_by_a_whisker(figure):
    def ends(far):
        panel = figure(panels_of(PERIODS, {"run": made_up(3, far=far)}, [NDCG, GAP])).axes[2]
        largest = max(line.get_ydata().max() for line in panel.lines if line.get_label() == "run")
        return panel.get_ylim(), largest

    (low, high), largest = ends(0.001)
    assert -0.1 * largest < low < 0 and largest < high < 1.2 * largest
    (_, stretched), largest = ends(0.9)
    assert high < stretched < 2 * largest < 90


@pytest.mark.slow
def test_many_phases_and_long_names_have_room(figure):
    phases = tuple(f"week-{number}-of-the-year" for number in range(40))
    results = {f"test/{name}": {"ndcg@5": 0.1} for name in phases}
    panels = panels_of(Periods(phases, ("",)), {"run": Series(ListKey(), results, {})}, [NDCG, GAP])
    drawn = figure(panels, phases)
    (panel,) = drawn.axes
    labels = panel.get_xticklabels()
    assert [label.get_text() for label in labels][:2] == ["0-of-the-year", "4-of-the-year"] and len(labels) == 10
    assert labels[0].get_rotation() == 40
    # without a figure by groups there is no chance
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["run"]
    assert "shuffled" not in period_plots.how_to_read(panels, "users")


@pytest.mark.slow
def test_the_picture_names_what_it_shows(tmp_path):
    panels = panels_of(PERIODS, {"one": made_up(0), "other": made_up(1)}, [NDCG, GAP])
    png, svg = period_plots.by_phase(panels, PERIODS.phases, tmp_path / "periods")
    looks_drawn(png)
    text = svg.read_text()
    assert all(f"<!-- {words} -->" in text for words in ("one", "other", "within chance", "task remain", "snapshot"))
    reading = period_plots.how_to_read(panels, "seeds")
    assert "95 % intervals of the mean over seeds" in reading and "shuffled" in reading


def test_a_run_over_phases_has_the_picture(tmp_path, monkeypatch):
    register(monkeypatch)
    blank_pictures(monkeypatch)
    result = run_main(tmp_path, **RUN, epochs=1)
    assert result["periods"] == {"phases": ["first", "second"], "tasks": ["lists", "drawn"]}
    svg = (tmp_path / "run" / "periods.svg").read_text()
    for words in ("this run", "most popular", "task lists", "first", "second", "NDCG@5 (%) ↑", "within chance"):
        assert f"<!-- {words} -->" in svg
    page = (tmp_path / "run" / "report.html").read_text()
    assert period_plots.TITLE in page and "intervals of the mean over users" in page
