"""The picture over phases of finished runs: strategies of one protocol, and seeds."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from absl.testing import flagsaver

import main
from model.comparison.periods import labels_of, over_seeds, periods_of_runs, periods_of_seeds
from model.comparison.seeds_page import write_seeds_page
from model.comparison.seeds_summary import Seeds
from model.comparison.statistics import summarise
from model.evaluation.keys import ListKey
from model.modes import compare as compare_mode
from model.results.finished import load, read_result
from model.results.period_numbers import Periods, metrics_by_phase
from model.runs.files import write_json
from model.runs.processes import ALONE
from tests.support.light import light_runs
from tests.support.pages import read_page
from tests.support.runs import run_main
from tests.support.time_order import RUN, register

LIST = "second/lists"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with runs of two strategies, `blocks` and `shuffled`, and two seeds of the first one."""
    folder = tmp_path_factory.mktemp("runs")
    # in this order: what is patched last is restored first
    with light_runs(), pytest.MonkeyPatch.context() as patch:
        register(patch)
        for order in ("blocks", "shuffled"):
            run_main(folder, **{**RUN, "protocol_option": [f"order={order}"]})
            (folder / "run").rename(folder / order)
    for seed in (0, 1):
        shutil.copytree(folder / "blocks", folder / "seeds" / f"seed{seed}")
    # the synthetic data of another seed would be others
    path = folder / "seeds" / "seed1" / "result.json"
    result = json.loads(path.read_text())
    metrics = {key: 0.9 * value if "/ndcg@5" in key else value for key, value in result["metrics"].items()}
    write_json(path, result | {"seed": 1, "metrics": metrics})
    write_json(folder / "seeds" / "seeds.json", {"seeds": [0, 1], "failed": {}})
    return folder


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    register(monkeypatch)


@pytest.mark.slow
@pytest.mark.pictures
def test_strategies_of_one_protocol_are_lines_of_one_picture(runs, tmp_path):
    compared = compare_mode.load_runs([f"{name}:{LIST}" for name in ("blocks", "shuffled", "seeds")], runs)
    # one list of a run is as good as another of its control, and a yardstick is a line of its own
    more = [load(f"blocks:{name}", runs) for name in ("first/lists", "popular/second/lists")]
    (picture,) = periods_of_runs([*compared, *more], 5, tmp_path)
    svg = picture.paths[1].read_text()
    for label in ("blocks", "blocks:popular", "seeds"):
        assert svg.count(f"<!-- {label} (order=blocks) -->") == 1
    assert "<!-- shuffled (order=shuffled) -->" in svg and "<!-- task lists -->" in svg
    # which one phase alone asks
    assert "<!-- task drawn -->" not in svg
    assert "over seeds of a run that has several, else users" in picture.caption


@pytest.mark.slow
@pytest.mark.pictures
def test_the_pages_of_comparisons_and_of_seeds_have_the_picture(runs, tmp_path, capsys):
    names = [f"{runs / name}:{LIST}" for name in ("blocks", "shuffled")]
    flags = {"mode": "compare", "runs": names, "output_dir": str(tmp_path), "run_name": "comparison"}
    with flagsaver.flagsaver(**flags):
        compare_mode.compare_runs(main.settings_from_flags(), 0.0, ALONE)
    shutil.copytree(runs / "seeds", tmp_path / "seeds")
    results = {seed: read_result(runs / "seeds" / f"seed{seed}") for seed in (0, 1)}
    write_seeds_page(tmp_path / "seeds", Seeds(results, {}, False, 5), "command")
    for folder in ("comparison", "seeds"):
        assert (tmp_path / folder / "periods.png").exists()
        assert "Accuracy and fairness over phases" in read_page(tmp_path / folder / "report.html").text
    assert "is left out" not in capsys.readouterr().err


@pytest.mark.slow
def test_the_mean_of_seeds_has_an_interval_over_them(runs):
    results = [read_result(runs / "seeds" / f"seed{seed}") for seed in (0, 1)]
    periods, metrics = Periods.read(results[0]), metrics_by_phase(5, "gender")
    assert periods == Periods(("first", "second"), ("lists", "drawn"))
    parts = [{"test/first/lists": {"ndcg@5": value, "ndcg@5/gap/gender": 2 * value}} for value in (0.1, 0.3)]
    series = over_seeds(ListKey(), periods, parts, metrics)
    for metric, values in (("ndcg@5", [0.1, 0.3]), ("ndcg@5/gap/gender", [0.2, 0.6])):
        found = summarise(values, (0, 1))
        assert series.results["test/first/lists"][metric] == pytest.approx(np.mean(values))
        assert series.intervals["test/first/lists"][metric] == (found.low, found.high)
    assert np.isnan(series.results["test/second/lists"]["ndcg@5"])


@pytest.mark.slow
@pytest.mark.pictures
def test_several_seeds_are_one_line_beside_the_most_popular(runs, tmp_path):
    folders = [runs / "seeds" / f"seed{seed}" for seed in (0, 1)]
    (picture,) = periods_of_seeds([*map(read_result, folders)], f"test/{LIST}", folders[0], 5, tmp_path)
    svg = picture.paths[1].read_text()
    assert "<!-- mean of 2 seeds -->" in svg and "<!-- most popular -->" in svg
    assert "95 % intervals of the mean over seeds" in picture.caption


def test_a_label_tells_what_differs(make_config):
    plain = {"backbone": "bprmf", "enable_fairness": True, "fairness_method": "fda"}
    configs = {
        "a": make_config(**plain, method_option=("mask_ratio=0.3",)),
        "b": make_config(**plain),
        "c": make_config(backbone="bprmf", enable_fairness=False, protocol="fda", protocol_option=("liked=2",)),
    }
    labels = labels_of(configs)
    assert labels == {"a": "a (fda, mask_ratio=0.3)", "b": "b (fda, mask_ratio=0.4)", "c": "c (none, liked=2.0)"}
    assert labels_of({"a": configs["a"], "again": configs["a"]}) == {"a": "a", "again": "again"}
