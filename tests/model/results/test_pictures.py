"""The numbers behind the pictures of a run, and the pictures and the page that runs leave behind."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from absl.testing import flagsaver
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

import main
from data.structs import Group, Histories, HistoryWeights, ItemLists, Ranking
from fairness_utils import exposure, position_weights
from model import METHODS
from model.evaluation.evaluator import Evaluator
from model.evaluation.keys import ListKey
from model.evaluation.metrics import evaluate, per_user_accuracy
from model.evaluation.probes import held_out_users
from model.evaluation.questions import Answer
from model.modes.serving import evaluate_checkpoint
from model.results import epoch_plots, picture_numbers, pictures, plots, writer
from model.results.epoch_plots import positions
from model.results.picture_numbers import bucket_shares, expected_histories, mean_interval, popularity_buckets
from model.runs.environment import Environment
from model.runs.processes import ALONE
from model.runs.streams import stream_seeds
from model.sparsenn import SparseNN
from model.training.progress import Progress
from tests.support.light import light_runs
from tests.support.pages import read_page
from tests.support.pictures import blank_pictures, looks_drawn
from tests.support.runs import run_main

pytestmark = pytest.mark.pictures
NAN = float("nan")
DEGREES = st.lists(st.integers(0, 6), min_size=1, max_size=60).map(np.array)


# --- Numbers ---


@given(DEGREES, st.integers(1, 12))
def test_buckets_cut_the_catalogue_into_equal_parts_by_popularity(degree, count):
    codes = popularity_buckets(degree, count)
    order = sorted(range(len(degree)), key=lambda item: (degree[item], item))
    assert np.all(np.diff(codes[order]) >= 0)
    sizes = np.bincount(codes)
    assert len(sizes) == min(count, len(degree)) and sizes.min() >= 1 and np.ptp(sizes) <= 1


@given(DEGREES)
def test_shares_of_the_buckets_sum_to_one(degree):
    shares = bucket_shares(degree, popularity_buckets(degree))
    if degree.sum():
        assert shares.sum() == pytest.approx(1) and shares.min() >= 0
        # a more popular bucket of as many items has at least as large a share
        assert len(degree) % 10 or np.all(np.diff(shares) >= -1e-12)
    else:
        assert np.isnan(shares).all()


@given(st.lists(st.floats(0, 1) | st.just(NAN), min_size=1, max_size=40).map(np.array))
def test_an_interval_contains_its_mean_and_is_student_s(values):
    mean, low, high = mean_interval(values)
    known = values[~np.isnan(values)]
    if len(known) < 2 or np.ptp(known) == 0:
        assert math.isnan(low) and math.isnan(high)
        assert mean == pytest.approx(known.mean()) if len(known) else math.isnan(mean)
        return
    assert 0 <= low <= mean <= high <= 1
    with np.errstate(all="ignore"):
        oracle = ttest_1samp(known, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((max(oracle.low, 0), min(oracle.high, 1)), abs=1e-9)


def small_ranking():
    """Four users with one item each, of ranks 1, 2, 4 and 1; six items."""
    relevant = ItemLists(np.arange(5), np.array([0, 5, 1, 2]))
    topk = np.array([[0, 1, 2], [1, 5, 3], [0, 2, 3], [2, 1, 0]])
    return Ranking(np.array([0, 1, 2, 3]), relevant, np.array([1, 2, 4, 1]), topk, np.ones((4, 3)), np.full(4, 6))


def test_estimates_of_groups_are_means_of_their_users_and_say_how_many():
    ranking = small_ranking()
    group = Group("gender", np.array([0, 1, 1, -1]), ("F", "M", "X"))
    per_user = {f"{name}@3": values for name, values in per_user_accuracy(ranking, 3).items()}
    answer = Answer(ListKey(), ranking, {}, per_user)
    estimates, blocks = picture_numbers.group_estimates({"gender": group}, {"this run": answer}, 3)
    assert blocks == {
        "": ["everyone (n = 4)"],
        "gender": ["gender F (n = 1)", "gender M (n = 2)", "gender X (n = 0)"],
    }
    assert list(estimates) == ["NDCG@3", "HR@3"]
    np.testing.assert_allclose(estimates["HR@3"]["this run"][:, 0], [0.75, 1, 0.5, NAN])
    second = 1 / np.log2(3)
    np.testing.assert_allclose(estimates["NDCG@3"]["this run"][:, 0], [(2 + second) / 4, 1, second / 2, NAN])
    assert np.isnan(estimates["HR@3"]["this run"][1, 1:]).all()


def test_estimates_by_popularity_are_those_of_the_summary():
    ranking = small_ranking()
    popularity = Group("popularity", np.array([0, 0, 1, 1, 1, 1]), ("head", "tail"))
    degree = np.array([4, 3, 1, 1, 1, 1])
    split = SimpleNamespace(item_groups={"popularity": popularity}, degree=degree, is_tail=popularity.codes == 1)
    answer = Answer(ListKey(), ranking, {}, {})
    estimates, blocks = picture_numbers.popularity_estimates(split, {"this run": answer, "random": answer}, 3)
    summary = evaluate(ranking, split, {}, (3,)).summary
    for name, base in (("NDCG@3", "ndcg@3"), ("HR@3", "hr@3")):
        expected = [summary[base + part] for part in ("", "/head", "/tail")]
        for values in estimates[name].values():
            np.testing.assert_allclose(values[:, 0], expected)
    assert blocks["popularity"] == ["head items (n = 2)", "tail items (n = 2)"]


def test_groups_that_read_nothing_alike_are_ln_2_apart():
    histories = Histories(np.array([0, 2, 4, 4]), np.array([0, 1, 2, 3]))
    uniform = HistoryWeights(np.zeros(1), np.zeros((1, 4)))
    apart = Group("g", np.array([0, 1, 2]), ("a", "b", "c"))
    expected, divergence = expected_histories(histories, uniform, apart, 5)
    np.testing.assert_allclose(expected, [[0.5, 0.5, 0, 0, 0], [0, 0, 0.5, 0.5, 0], [NAN] * 5])
    assert divergence == pytest.approx(math.log(2))
    alone = Group("g", np.array([0, 0, 1]), ("a", "b"))
    assert math.isnan(expected_histories(histories, uniform, alone, 5)[1])


@pytest.fixture(scope="module")
def make_evaluator(tiny_data, tiny_phase, make_config):
    """A function: settings -> evaluator of an untrained run on the tiny data."""

    def make(**changes):
        config, cpu = make_config(**changes), torch.device("cpu")
        seeds = stream_seeds(config.seed)
        held_out = held_out_users(tiny_data.user_groups["gender"].codes, seed=1)
        backbone = SparseNN.build(tiny_data, config, seeds["initialisation"], cpu)
        environment = Environment(config, tiny_data.user_groups, held_out, seeds, cpu)
        return Evaluator(backbone, METHODS[config.method](backbone, environment), environment)

    return make


def divergences(ways):
    return {title.partition("\n")[0]: float(title.rpartition(" ")[2]) for title in ways}


def test_sampled_histories_by_way_of_sampling(tiny_data, tiny_phase, make_evaluator):
    split, group = tiny_phase.split, tiny_data.user_groups["gender"]
    buckets = popularity_buckets(split.degree)
    plain = picture_numbers.sampled_histories(make_evaluator(), split, group, buckets)
    assert list(divergences(plain)) == ["uniform", "tail-biased (BUHS), this run"]
    for values in plain.values():
        assert values.shape == (2, 10)
        np.testing.assert_allclose(values.sum(axis=1), 1)
    found = {}
    for weight in (0.0, 0.5, 1.0):
        evaluator = make_evaluator(fairness_sampling=True, fairness_weight=weight)
        found[weight] = divergences(picture_numbers.sampled_histories(evaluator, split, group, buckets))
    assert list(found[1.0]) == list(divergences(plain))
    own = [found[weight][f"this run ({plots.ALPHA} = {weight:g})"] for weight in (0.0, 0.5)]
    assert own[0] < own[1] < found[1.0]["tail-biased (BUHS), this run"]


def test_the_trade_off_begins_at_the_plain_ranking_and_reads_validation_alone(tiny_phase, make_evaluator):
    evaluator = make_evaluator(rerank_fair=True, rerank_alpha=0.25, exposure_floor=0.6)
    # whatever reads the test set fails
    split = dataclasses.replace(tiny_phase.split)
    object.__setattr__(split, "test", None)
    phase = dataclasses.replace(tiny_phase, split=split, tests=())
    curves = picture_numbers.trade_off(evaluator, phase).set_index(["floor", "alpha"])
    assert len(curves) == 2 * 12
    plain = evaluator.rank(phase.valid, split.histories, split, 20)
    popularity = split.item_groups["popularity"]
    due = popularity.counts()[1] / split.num_items
    for key, ranking in (
        ((0.0, 0.0), plain),
        ((0.6, 0.25), evaluator.rerank(plain, split)[0]),
    ):
        summary = evaluate(ranking, split, {}, (10,)).summary
        assert curves.loc[key, "accuracy"] == pytest.approx(summary["ndcg@10"], abs=1e-15)
        assert curves.loc[key, "tail_share"] == pytest.approx(summary["exposure_gap@10"] + due)
    # each list of a user has the floor's share
    assert curves.loc[0.6, "tail_share"].min() >= 0.6 - 1e-9
    assert (curves.loc[0.0, "tail_share"] - due).abs().is_monotonic_decreasing


def test_many_processes_do_not_wait_for_each_other_in_a_picture(tiny_phase, make_evaluator):
    evaluator = make_evaluator()
    evaluator.processes = SimpleNamespace(world=2, rank=0, first=True)
    assert len(evaluator.alone().rank(tiny_phase.valid, tiny_phase.split.histories, tiny_phase.split, 5).users) > 30
    assert evaluator.processes.world == 2


def test_training_curves_of_stages_come_one_after_the_other(tmp_path):
    rows = [
        {"epoch": epoch, "stage": stage, "train/loss": 1 / epoch, "valid/ndcg@10": 0.1 * epoch}
        for stage in ("backbone", "method")
        for epoch in (1, 2, 3)
    ]
    assert positions(rows)[0].tolist() == [1, 2, 3, 4, 5, 6] and positions(rows)[1] == [0, 3]
    png, svg = epoch_plots.training_curves(rows, tmp_path / "stages", selected_epoch=2)
    looks_drawn(png)
    assert "selected: epoch 2" in svg.read_text() and "counted over all stages" in svg.read_text()


@pytest.mark.parametrize("count", [2, 5, 20])
def test_values_of_one_kind_have_a_panel_and_a_short_legend(monkeypatch, count):
    figures = []
    monkeypatch.setattr(epoch_plots, "save", lambda figure, stem: figures.append(figure) or [])
    levels = {f"train/adversary/t{level}": 0.3 + 0.01 * level for level in range(1, count + 1)}
    rows = [{"epoch": epoch, "train/loss": 1 / epoch, "train/ranking": 0.5} | levels for epoch in (1, 2, 3)]
    epoch_plots.training_curves(rows, "nowhere")
    loss, ranking, adversary, _ = figures[0].axes
    assert (loss.get_ylabel(), ranking.get_ylabel()) == ("training loss\n(train/loss)", "other losses\n(train/ranking)")
    assert adversary.get_ylabel() == "train/adversary" and ranking.get_legend() is None
    looks = {(line.get_color(), line.get_marker()) for line in adversary.lines[:count]}
    assert len(looks) == count
    named = [text.get_text() for text in adversary.get_legend().get_texts()]
    assert named[0] == "t1" and named[-1] == f"t{count}" and len(named) == min(count, 6)


def test_undefined_and_empty_numbers_are_drawn_too(tmp_path):
    nothing = np.full((1, 3), NAN)
    plots.accuracy_intervals({"HR@10": {"this run": nothing}}, {"": ["everyone (n = 0)"]}, tmp_path / "intervals")
    empty = np.full(10, NAN)
    plots.exposure_by_popularity({"this run": empty}, np.full(10, 0.1), empty, tmp_path / "popularity")
    plots.history_distributions({"uniform\nJS nan": np.full((2, 10), NAN)}, ["F", "M"], tmp_path / "histories")
    assert len(list(tmp_path.iterdir())) == 6


def test_a_metric_has_an_interval_where_it_is_a_mean_over_users():
    values = np.array([0.0, 0.5, 1.0, NAN])
    per_user = dict.fromkeys(("ndcg@3", "hr@3", "arp@3"), values)
    # the mean of hr@3 counts the user without a value as 0
    metrics = {"ndcg@3": 0.5, "hr@3": 0.375, "arp@3": 0.5, "gini@3": 0.9}
    found = picture_numbers.user_intervals(metrics, per_user, ["ndcg@3", "hr@3", "gini@3"])
    assert found == {"ndcg@3": tuple(mean_interval(values)[1:])}


def test_what_is_drawn_by_epoch_is_fairness_of_which_two_epochs_have_a_value():
    rows = [
        {"epoch": epoch, "valid/ndcg@5": 0.1, "valid/ndcg@5/tail": 0.1, "valid/ndcg@5/head": 0.1, "valid/hr@5": 0.1,
         "valid/gini@5": 0.1, "valid/gini@10": 0.1, "valid/coverage@5": None if epoch > 1 else 0.1, "train/loss": 0.1}
        for epoch in (1, 2, 3)
    ]  # fmt: skip
    found = picture_numbers.metrics_by_epoch(rows, 5, "gender")
    assert [str(key) for key in found] == ["ndcg@5/tail", "gini@5"]
    assert not picture_numbers.metrics_by_epoch(rows[:1], 5, "gender")


# --- Whole runs ---

FAIR = {"enable_fairness": True, "fairness_sampling": True, "rerank_fair": True, "user_attribute": ["gender", "age"]}
OF_EVERY_RUN = {"exposure", "exposure_by_popularity", "accuracy_by_group", "accuracy_by_popularity"}
OF_THIS_RUN = OF_EVERY_RUN | {"training", "fairness_by_epoch", "histories", "rerank_trade_off"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with every picture: its folder, its result, and what its pictures were drawn from."""
    folder, asked = tmp_path_factory.mktemp("finished"), []
    with pytest.MonkeyPatch.context() as patch:

        def draw(*arguments):
            asked.append(arguments)
            return pictures.draw_run(*arguments)

        patch.setattr(writer, "draw_run", draw)
        patch.setattr(main.sys, "argv", ["main.py", "--run_name=a 'b' & c"])
        with light_runs(pictures=True):
            result = run_main(folder, **FAIR)
    (arguments,) = asked
    return folder / "run", result, arguments


def test_a_run_has_every_picture_in_both_formats(finished):
    folder, _, _ = finished
    found = {path.name for path in folder.iterdir() if path.suffix in (".png", ".svg")}
    assert found == {f"{name}.{kind}" for name in OF_THIS_RUN for kind in ("png", "svg")}
    for name in found:
        looks_drawn(folder / name)
    texts = {name: (folder / f"{name}.svg").read_text() for name in OF_THIS_RUN}
    for words in ("<!-- train/adversary -->", "<!-- user -->", "selected: epoch"):
        assert words in texts["training"]
    assert (
        "most popular" in texts["exposure_by_popularity"]
        and "share of the catalogue" in texts["exposure_by_popularity"]
        and "train interactions" in texts["exposure_by_popularity"]
    )
    assert re.search(r"gender F \(n = \d+\)", texts["accuracy_by_group"]) and "age 25-34" in texts["accuracy_by_group"]
    assert "95 % interval" in texts["accuracy_by_group"] and "random" in texts["accuracy_by_popularity"]
    assert texts["histories"].count("<!-- JS 0.") == 3
    assert f"chosen: {plots.ALPHA} = 0.2, floor 0.1" in texts["rerank_trade_off"]


@pytest.mark.slow
def test_the_same_numbers_give_the_same_pictures_whatever_the_matplotlibrc(finished, tmp_path):
    """No LaTeX is installed here, so a rc file that asks for it ends a picture that reads it."""
    folder, _, (of_run, _, *rest) = finished
    settings = {"text.usetex": True, "font.family": "no such font", "figure.figsize": (1, 1), "lines.linewidth": 9}
    with matplotlib.rc_context(settings):
        drawn = pictures.draw_run(of_run, tmp_path, *rest)
    assert set(drawn) == OF_THIS_RUN
    for picture in drawn.values():
        assert picture.caption.endswith(".") and "{" not in picture.caption
        assert all(path.read_bytes() == (folder / path.name).read_bytes() for path in picture.paths)


def test_pictures_change_no_result(finished, tmp_path, monkeypatch):
    folder, _, _ = finished
    monkeypatch.setattr(writer, "draw_run", lambda *arguments: {})
    run_main(tmp_path, **FAIR)
    assert (tmp_path / "run" / "result.json").read_bytes() == (folder / "result.json").read_bytes()


def test_the_trade_off_of_a_run_starts_at_its_validation_and_the_deciles_at_its_exposure(finished):
    _, result, (of_run, _, _, _, answers, evaluator) = finished
    (ranking,) = (answer.ranking for answer in answers if answer.key == ListKey())
    curves = picture_numbers.trade_off(evaluator, of_run.protocol.phases[-1]).set_index(["floor", "alpha"])
    assert curves.loc[(0.0, 0.0), "accuracy"] == pytest.approx(result["validation"], abs=1e-12)
    split = of_run.protocol.phases[-1].split
    shares = bucket_shares(
        exposure(ranking.topk[:, :5], split.num_items, position_weights(5)), popularity_buckets(split.degree)
    )
    assert shares.sum() == pytest.approx(1)
    # the tail is the first eight tenths of the catalogue
    assert shares[:8].sum() - 0.8 == pytest.approx(result["metrics"]["test/exposure_gap@5"])


def test_the_page_of_a_run_says_all_and_needs_nothing_else(finished):
    folder, result, _ = finished
    page = read_page(folder / "report.html")
    assert page.title == "synthetic, sparsenn (mean) with fabuhs: run"
    assert page.images == len(OF_THIS_RUN)
    text = page.text
    assert """python main.py '--run_name=a '"'"'b'"'"' & c'""" in text
    metrics = result["metrics"]
    for value in (
        f"{100 * metrics['test/ndcg@5']:.2f}",
        f"{metrics['test/reranked/gini@5']:.3f}",
        result["fingerprint"],
        result["description"],
        "--fairness_weight",
        "AUC: leakage",
        "Better:",
        "most popular",
    ):
        assert value in text, value
    assert result["commit"] is None or result["commit"] in text
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(f"{row['train/adversary/user']:.4f}" in text for row in rows)


@pytest.mark.slow
def test_an_evaluated_checkpoint_has_its_pictures_too(finished, tmp_path):
    folder, result, (of_run, *_) = finished
    values = {"mode": "evaluate", "checkpoint": str(folder), "output_dir": str(tmp_path), "run_name": "again"}
    with flagsaver.flagsaver(**values, user_attribute=["occupation"]):
        evaluate_checkpoint(main.settings_from_flags(), 0.0, ALONE)
    again = json.loads((tmp_path / "again" / "result.json").read_text())
    assert again["metrics"]["test/ndcg@5"] == result["metrics"]["test/ndcg@5"]
    assert {path.stem for path in (tmp_path / "again").glob("*.png")} == OF_THIS_RUN - {"training", "fairness_by_epoch"}
    page = read_page(tmp_path / "again" / "report.html")
    assert "Metrics by epoch" not in page.text and "drawn for the 4 largest of 21 groups" in page.text
    histories = (tmp_path / "again" / "histories.svg").read_text()
    labels = set(re.findall(r"<!-- (.*) -->", histories)) & set(of_run.data.user_groups["occupation"].labels)
    assert len(labels) == 4 and "<!-- occupation -->" in histories


def test_rankings_from_elsewhere_have_what_needs_no_weights(finished, tmp_path, capsys):
    _, _, (of_run, _, _, _, answers, _) = finished
    config = dataclasses.replace(of_run.config, rerank_fair=False)
    of_run = dataclasses.replace(of_run, environment=dataclasses.replace(of_run.environment, config=config))
    answers = [answer for answer in answers if not answer.key.reranked]
    progress = Progress.of(None, 0.0)
    progress.results = {"test": {"ndcg@5": 0.25}}
    origin = {"method": "other program", "seed": 0, "epoch": None}
    images = writer.write_results(of_run, tmp_path, progress, origin, answers, command="other --x")
    assert set(images) == OF_EVERY_RUN | {"report"}
    assert all(path.exists() for path in images.values())
    page = read_page(images["report"])
    assert page.images == len(OF_EVERY_RUN) and "other --x" in page.text and "25.00" in page.text
    assert "--lr" not in page.text and "--eval_k" in page.text
    assert json.loads((tmp_path / "result.json").read_text())["epoch"] is None


# --- The outside world ---


@pytest.mark.parametrize("broken", ["picture", "page", "font"])
def test_a_picture_that_fails_costs_a_line_and_no_run(tmp_path, monkeypatch, capsys, broken):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    if broken != "font":
        blank_pictures(monkeypatch)
    if broken == "picture":
        monkeypatch.setattr(plots, "exposure_lorenz", fail)
    elif broken == "page":
        monkeypatch.setattr("jinja2.Template.render", fail)
    else:
        monkeypatch.setattr("matplotlib.font_manager.FontManager.findfont", fail)
    result = run_main(tmp_path, backbone="bprmf", embedding_dim=8, user_hidden=None, item_hidden=None, epochs=1)
    text = capsys.readouterr()
    assert "test/ndcg@5" in result["metrics"] and "Gini of exposure" in text.out
    warnings = [line for line in text.err.splitlines() if line.startswith("warning: ")]
    assert warnings and all("is left out" in line for line in warnings)
    assert "No space left on device" in warnings[0]
    if broken == "picture":
        assert len(warnings) == 1 and (tmp_path / "run" / "report.html").exists()


def test_results_are_on_disk_before_anything_is_drawn(tmp_path, monkeypatch):
    seen = []

    def draw(of_run, directory, *arguments):
        seen.append({path.name for path in directory.iterdir()})
        return {}

    monkeypatch.setattr(writer, "draw_run", draw)
    run_main(tmp_path, epochs=1)
    assert seen[0] >= {"result.json", "cost.json", "per_user.parquet", "recommendations.parquet"}
