"""Cautions: each appears where there is reason, with its numbers, and a healthy run has none."""

from __future__ import annotations

import dataclasses
import re
import textwrap

import numpy as np
import pytest
from absl.testing import flagsaver

import main
from data.structs import Group, Ranking
from model.evaluation.keys import CHANCE, CHANCE_STD, EXCESS, ListKey, MetricKey, P
from model.evaluation.metric_kinds import HEADLINE
from model.evaluation.metric_table import METRICS
from model.evaluation.questions import Answer
from model.modes.setup import prepare
from model.results import cautions
from model.results.cautions import before_training, caution_text, cautions_of
from model.runs.presets import RECIPES
from tests.support.pages import read_page
from tests.support.runs import TINY, run_main

K = 10
HEALTHY = {
    "synthetic_users": 600,
    "synthetic_items": 200,
    "synthetic_interactions": 24_000,
    "batch_size": 512,
    "epochs": 15,
    "patience": 5,
    "enable_fairness": False,
    "fairness_method": "fabuhs",
}
GOOD, POPULAR, RERANKED = {f"ndcg@{K}": 0.2}, {f"ndcg@{K}": 0.1}, {f"ndcg@{K}": 0.19, "infeasible_users": 6}
RESULTS = {"reference/popular": POPULAR, "test": GOOD, "test/reranked": RERANKED}


@pytest.fixture(scope="module")
def healthy(make_config):
    return prepare(make_config(**HEALTHY))


def changed(run, groups=None, held_out=None, **settings):
    """The run with other settings, groups or held-out users, on the same data."""
    environment = dataclasses.replace(run.environment, config=dataclasses.replace(run.config, **settings))
    if groups is not None:
        environment = dataclasses.replace(environment, user_groups=groups)
    if held_out is not None:
        environment = dataclasses.replace(environment, held_out=held_out)
    return dataclasses.replace(run, environment=environment)


def phased(run, **changes):
    """The run with another phase."""
    phase = dataclasses.replace(run.protocol.phases[-1], **changes)
    return dataclasses.replace(run, protocol=dataclasses.replace(run.protocol, phases=(phase,)))


def rows_of(values, stage="method", every=1):
    """Rows of epochs whose validations are `values`."""
    rows = [{"phase": "loo", "stage": stage, "epoch": epoch} for epoch in range(1, every * len(values) + 1)]
    for row, value in zip(rows[every - 1 :: every], values, strict=True):
        row[f"valid/ndcg@{K}"] = value
    return rows


def answers_of(run, rank):
    """The run's list with every relevant item at `rank`."""
    task = run.protocol.phases[-1].tests[0]
    users = np.flatnonzero(task.relevant.lengths > 0)
    relevant = task.relevant.take(users)
    topk = np.zeros((len(users), 1), dtype=np.int64)
    ranks = np.full(len(relevant.item), rank)
    ranking = Ranking(users, relevant, ranks, topk, np.zeros(topk.shape), np.full(len(users), run.data.num_items))
    return [Answer(ListKey(), ranking, {}, {})]


CALM = rows_of([0.1, 0.2, 0.3, 0.2, 0.2, 0.2, 0.1])


def said(run, results=RESULTS, rows=CALM, rank=1, trained=True):
    """The cautions about a run, each of which takes at most two lines."""
    found = cautions_of(run, results, rows, answers_of(run, rank), trained)
    for text in found:
        assert len(textwrap.wrap(f"- {text}", 80)) <= 2, text
        assert text.endswith(".")
    return found


def test_a_healthy_run_has_none(healthy):
    assert said(healthy) == before_training(healthy) == []
    assert caution_text([]) == ""


def test_below_the_most_popular_items(healthy):
    results = RESULTS | {"test": {f"ndcg@{K}": 0.0305, "ndcg@20": 0.032}, "reference/popular": {f"ndcg@{K}": 0.139}}
    (text,) = said(healthy, results)
    assert text.startswith("This is below the most popular items: NDCG@10 3.05 against 13.90;") and "--lr" in text
    (text,) = said(healthy, results, trained=False)
    assert "--lr" not in text and "the file's ids" in text
    assert said(healthy, {"test": {f"ndcg@{K}": 0.0}}) == [], "without a yardstick there is nothing to say"


def test_below_the_most_popular_items_in_the_metric_that_selected(healthy):
    results = {"reference/popular": POPULAR | {"ndcg@20": 0.3}, "test": GOOD | {"ndcg@20": 0.2}}
    assert said(healthy, results) == []
    (text,) = said(phased(healthy, metric="ndcg@20"), results)
    assert "NDCG@20 20.00 against 30.00" in text and "NDCG@10" not in text


def test_below_the_most_popular_items_in_some_lists(healthy):
    results = {"reference/popular": POPULAR, "test/mild": GOOD, "test/strong": {f"ndcg@{K}": 0.01}}
    (text,) = said(healthy, results)
    assert "in 1 of 2 lists, as strong: NDCG@10 1.00 against 10.00" in text


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (rows_of([0.1, 0.2, 0.3]), "is 3 of 3"),
        (rows_of([0.1] * 38 + [0.2, 0.1]), "is 39 of 40"),
        (rows_of([0.1] * 37 + [0.2, 0.1, 0.1]), None),
        (rows_of([0.1, 0.2], every=4), "is 8 of 8"),
        (rows_of([0.2, 0.1], every=4), None),
        (rows_of([float("nan"), float("nan")]), None),
        (rows_of([0.1, 0.2], "backbone") + CALM, "of loo, backbone is 2 of 2"),
        (rows_of([0.1, 0.2], "backbone") + rows_of([0.1, 0.2]), "is 2 of 2, and so in 1 more"),
    ],
)
def test_the_best_epoch_is_one_of_the_last(healthy, rows, words):
    found = said(healthy, rows=rows)
    assert bool(found) == (words is not None)
    assert words is None or (words in found[0] and "--epochs" in found[0])


def test_early_stopping_is_not_cut_short(healthy):
    rows = rows_of([0.1] * 98 + [0.2, 0.1])
    assert said(phased(healthy, patience=2), rows=rows) and not said(phased(healthy, patience=1), rows=rows)


def test_a_phase_without_validation_and_a_fitted_backbone_are_not_cut_short(healthy):
    rising = rows_of([0.1, 0.2])
    assert said(healthy, rows=rising) and not said(phased(healthy, valid=None), rows=rising)
    assert not said(changed(healthy, backbone="slim"), rows=rising)


def test_a_published_schedule_ends_where_it_is_meant_to(healthy, monkeypatch):
    rising = rows_of([0.1, 0.2])
    fda = changed(healthy, dataset="ml", backbone="bprmf", protocol="fda", batch_size=512, epochs=200, lr=1.0)
    monkeypatch.setitem(cautions.MADE_FOR, "ml", ("MovieLens-1M", 24_000))
    assert said(fda, rows=rising) == []
    assert said(changed(fda, epochs=199), rows=rising), "another length is nobody's schedule"
    monkeypatch.setitem(cautions.MADE_FOR, "ml", ("MovieLens-1M", 1_000_209))
    found = said(fda, rows=rising)
    assert [text.startswith("Training may have been cut short") for text in found] == [True, False]


def test_a_batch_larger_than_a_tenth_of_the_data(healthy):
    rows = healthy.protocol.phases[0].num_rows  # 24,000 less two of each user
    assert rows == 22_800 and said(changed(healthy, batch_size=2280)) == []
    (text,) = said(changed(healthy, batch_size=2281))
    assert "2,281 is more than a tenth of the 22,800" in text and "10 steps" in text and "--batch_size=2280" in text
    assert before_training(changed(healthy, batch_size=2281)) == [text]
    assert said(changed(healthy, batch_size=2281), trained=False) == []
    assert said(changed(healthy, batch_size=2281, backbone="slim")) == [], "a backbone fitted at once has no batches"


def test_presets_of_other_data(healthy, monkeypatch):
    monkeypatch.setitem(cautions.MADE_FOR, "synthetic", ("synthetic data", 48_001))
    (text,) = said(healthy)
    assert "--batch_size=512, --epochs=15, --lr=0.001 for synthetic data (48,001), not these 24,000" in text
    assert before_training(healthy) == [text] and said(healthy, trained=False) == []
    assert said(changed(healthy, batch_size=511, epochs=14, lr=0.1)) == [], "what is given is no preset"
    monkeypatch.setitem(cautions.MADE_FOR, "synthetic", ("synthetic data", 48_000))
    assert said(healthy) == []
    tuned = RECIPES["tuned"]
    (text,) = said(changed(healthy, recipe="tuned", lr=tuned["lr"], epochs=tuned["epochs"]))
    assert "--epochs=15, --lr=0.001 for MovieLens-1M (1,000,209)" in text and "512" not in text


def test_an_exposure_floor_out_of_reach(healthy):
    assert said(healthy, RESULTS | {"test/reranked": RERANKED | {"infeasible_users": 6}}) == []
    (text,) = said(healthy, RESULTS | {"test/reranked": RERANKED | {"infeasible_users": 7}}, trained=False)
    assert text.startswith("--exposure_floor=0.1 is out of reach for 7 of 600 users (1.2 %)")
    assert "--rerank_pool=20" in text


def with_small_group(run, size):
    codes = np.zeros(run.data.num_users, dtype=np.int64)
    codes[:size] = 1
    return changed(run, groups={"age": Group("age", codes, ("old", "young", "nobody"))}, held_out=codes >= 0)


def test_a_group_of_few_users_or_hits(healthy):
    assert said(with_small_group(healthy, 100)) == []
    (text,) = said(with_small_group(healthy, 99))
    assert text.startswith("Small groups by age: young (99 users, 99 hits);") and "chance" in text
    assert before_training(with_small_group(healthy, 99)) == [text.replace(", 99 hits", "")]
    (text,) = said(with_small_group(healthy, 200), rank=K + 1, trained=False)
    assert "young (200 users, 0 hits), old (400 users, 0 hits);" in text


def test_many_small_groups_are_counted_the_smallest_first(healthy):
    labels = tuple(f"tradesman {place}" for place in range(21))
    codes = np.arange(healthy.data.num_users) % 21
    codes[codes == 4] = -1
    codes[4] = 4
    (text,) = said(changed(healthy, groups={"occupation": Group("occupation", codes, labels)}), trained=False)
    assert "occupation: tradesman 4 (1 user, 1 hit), " in text and "and 19 more;" in text


def test_few_held_out_users_of_a_class(healthy):
    run = with_small_group(healthy, 200)
    codes = run.groups["age"].codes
    held_out = (codes == 0) | (np.arange(len(codes)) < 30)
    assert said(changed(run, held_out=held_out)) == []
    (text,) = said(changed(run, held_out=held_out & (np.arange(len(codes)) > 0)))
    assert "Leakage by age is tested on fewer than 30 users of young (29);" in text
    assert before_training(changed(run, held_out=held_out & (np.arange(len(codes)) > 0))) == [text]
    assert said(changed(run, held_out=held_out & False), trained=False) == [], "rankings of others have no vectors"


def figure(value, p, name="dp_rate", **of):
    key = MetricKey(name, K, "gender", **of)
    parts = {CHANCE: 0.51, CHANCE_STD: 0.011, EXCESS: value - 0.51, P: p}
    return {str(key): value} | {str(key.of(part)): number for part, number in parts.items()}


def test_parity_within_chance(healthy, monkeypatch):
    for name in ("dp_rate", "eo_js"):
        row, places = METRICS[name], {HEADLINE} if name == "dp_rate" else set()
        monkeypatch.setitem(METRICS, name, dataclasses.replace(row, places=tuple({*row.places, HEADLINE} & places)))
    beyond = GOOD | figure(0.616, 0.005) | figure(0.51, 0.5, "eo_js")
    assert said(healthy, RESULTS | {"test": beyond}) == [], "eo_js is no headline"
    (text,) = said(healthy, RESULTS | {"test": GOOD | figure(0.52, 0.2)}, trained=False)
    assert text.startswith("Within chance: DP rate by gender 0.520 (chance 0.510 ± 0.011); claim nothing on it")
    several = {"test": beyond | figure(0.52, 0.2), "test/reranked": RERANKED | figure(0.5, 0.7)}
    (text,) = said(healthy, RESULTS | several)
    assert "DP rate by gender, re-ranked, 0.500 (chance" in text and text.endswith("on them.")


# Where they are said


def test_a_run_says_them_in_the_console_the_report_and_the_result(tmp_path, capsys):
    result = run_main(tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    page = read_page(tmp_path / "run" / "report.html")
    shown = " ".join(page.text.split())
    assert len(result["warnings"]) >= 3
    for text in result["warnings"]:
        assert f"- {text}" in printed and text in shown
    assert any("batch of 128 is more than a tenth of the 780" in text for text in result["warnings"])
    assert printed.index("Warnings:") > printed.index("Accuracy, in percent")


def test_a_dry_run_says_what_is_known_before_training(capsys):
    with flagsaver.flagsaver(**{**TINY, "dry_run": True}):
        main.main(["main.py"])
    printed = capsys.readouterr().out
    said_before = re.findall(r"^- (.*)", printed.partition("\nWarnings:\n")[2], re.MULTILINE)
    starts = [text.split()[0] for text in said_before]
    assert starts == ["The", "Presets", "Small", "Leakage"]
