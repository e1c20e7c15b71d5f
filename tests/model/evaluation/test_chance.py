"""Chance levels: permuted labels against a literal loop, and the headline parity figure on planted dependence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from data.protocols.base import Definitions
from data.structs import Group
from model.evaluation import chance, probes
from model.evaluation.chance import chance_levels, level, permutations, permuted_parity, permuted_spreads
from model.evaluation.keys import CHANCE, CHANCE_PARTS, CHANCE_STD, EXCESS, ListKey, MetricKey, P, by_list
from model.evaluation.lists import Lists
from model.evaluation.metric_kinds import HEADLINE, PARITY
from model.evaluation.metric_table import computed, of_kind, shown_in
from model.evaluation.metrics import evaluate
from model.evaluation.parity import ByGroup
from tests.support.lists import item_lists, make_ranking, make_split, planted_lists, random_case
from tests.support.metric_twins import twin_debiased, twin_js, twin_parity
from tests.support.runs import run_main

ALL_PARITY = {row.name for row in of_kind(PARITY)}


def labels_of(codes, count):
    """The permuted labels of every user, one permutation after the other: unknown users stay unknown."""
    known = codes >= 0
    for block in permutations(np.unique(codes[known], return_inverse=True)[1], count):
        for labels in block:
            whole = np.full(len(codes), -1)
            whole[known] = labels
            yield whole


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_permuted_parity_equals_a_literal_loop(seed, groups):
    topk, relevant, codes, tail, degree, _ = random_case(seed, groups=groups)
    size = len(degree)
    found = permuted_parity(Lists(topk, item_lists(relevant), tail, degree), codes, computed(PARITY), 5)
    twins = {
        "dp": lambda labels: twin_parity(topk, labels, size),
        "dp_rate": lambda labels: twin_parity(topk, labels, size, by_rate=True),
        "dp_js": lambda labels: twin_js(topk, labels, size),
        "dp_debiased": lambda labels: twin_debiased(topk, labels),
        "eo": lambda labels: twin_parity(topk, labels, size, relevant=relevant),
        "eo_rate": lambda labels: twin_parity(topk, labels, size, by_rate=True, relevant=relevant),
        "eo_js": lambda labels: twin_js(topk, labels, size, relevant=relevant),
        "eo_debiased": lambda labels: twin_debiased(topk, labels, relevant),
    }
    assert set(found) == set(twins)
    for name, twin in twins.items():
        expected = [twin(labels) for labels in labels_of(codes, 5)]
        assert found[name] == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True), name


@pytest.mark.parametrize("seed", range(4))
def test_permuted_figures_are_those_of_plain_metrics_whatever_the_block(seed, monkeypatch):
    topk, relevant, codes, tail, degree, generator = random_case(seed, groups=2 + seed % 2)
    ranking, split = make_ranking(topk, relevant, len(degree), generator), make_split(degree, tail, len(topk))
    definitions = Definitions(further=frozenset({"dp_code", "eo_code", "ndcg_hits", "f1", "difference"}))
    group = Group("a", codes, tuple("xyz"[: 2 + seed % 2]))
    outcome = evaluate(ranking, split, {"a": group}, [3, 6], definitions)
    whole = chance_levels(ranking, split, {"a": group}, [3, 6], outcome, definitions, 7)
    monkeypatch.setattr(chance, "CELLS", 60)
    blocks = chance_levels(ranking, split, {"a": group}, [3, 6], outcome, definitions, 7)
    assert blocks == pytest.approx(whole, rel=1e-12, abs=1e-12, nan_ok=True)
    permuted = [
        evaluate(ranking, split, {"a": Group("a", labels, group.labels)}, [3, 6], definitions).summary
        for labels in labels_of(codes, 7)
    ]
    keys = {key for key in map(MetricKey.parse, outcome.summary) if key.by_groups}
    assert {key.name for key in keys} > ALL_PARITY
    assert set(whole) == {str(key.of(part)) for key in keys for part in CHANCE_PARTS}
    for key in keys:
        values = np.array([summary[str(key)] for summary in permuted])
        expected = level(outcome.summary[str(key)], values)
        assert {part: whole[str(key.of(part))] for part in CHANCE_PARTS} == pytest.approx(
            expected, rel=1e-9, abs=1e-12, nan_ok=True
        ), key


def test_level_in_closed_form():
    found = level(0.5, np.array([0.1, 0.3, np.nan, 0.5, 0.7]))
    assert found == pytest.approx({CHANCE: 0.4, CHANCE_STD: np.std([0.1, 0.3, 0.5, 0.7], ddof=1), EXCESS: 0.1, P: 0.6})
    # a value that nothing reaches has the smallest p there is
    assert level(9.0, np.zeros(199))[P] == 1 / 200
    # what differs in rounding alone is reached
    assert level(0.1 + 0.2, np.full(3, 0.3))[P] == 1
    for undefined in (level(math.nan, np.zeros(5)), level(0.1, np.array([0.2, np.nan]))):
        assert set(undefined) == set(CHANCE_PARTS) and np.isnan(list(undefined.values())).all()


def test_permutations_keep_the_sizes_of_groups_and_are_the_same_for_every_figure():
    codes = np.array([0, 0, 0, 1, 2, 2])
    blocks = [np.concatenate(list(permutations(codes, 11, at_once))) for at_once in (None, 1, 4)]
    assert blocks[0].shape == (11, 6) and (np.sort(blocks[0], axis=1) == codes).all()
    assert (blocks[0] == blocks[1]).all() and (blocks[0] == blocks[2]).all()
    assert len(np.unique(blocks[0], axis=0)) > 5


def test_spreads_of_values_that_no_group_shares():
    # one user of each group has a value: every permutation has another gap, and a group without a value is left out
    values, codes = np.array([[0.0, 1.0, np.nan, np.nan]]), np.array([0, 1, 1, -1])
    found = permuted_spreads(values, codes, 50)
    assert set(found) == {"gap", "std"} and found["gap"].shape == (50, 1)
    assert set(np.unique(found["gap"][~np.isnan(found["gap"])])) == {1.0}
    # both values in the group of two: one group alone has no gap
    assert np.isnan(found["gap"]).any()
    assert found["std"] == pytest.approx(found["gap"] / 2, nan_ok=True)


def test_the_difference_is_0_by_chance_and_its_absolute_value_is_not():
    rng = np.random.default_rng(4)
    values, codes = rng.random((1, 60)), (np.arange(60) < 20).astype(np.int64)
    found = {name: column[:, 0] for name, column in permuted_spreads(values, codes, 2000, ("difference",)).items()}
    assert abs(found["difference"].mean()) < 4 * found["difference"].std() / math.sqrt(2000)
    assert np.abs(found["difference"]) == pytest.approx(found["gap"]) and found["gap"].mean() > 0.05
    assert "difference" not in permuted_spreads(values, codes, 2)


# --- The headline: debiased parity on planted dependence ---

SETTINGS = [(users, share, zipf) for users, share in ((1000, 0.5), (1000, 0.2), (500, 0.3)) for zipf in (0.4, 1.4)]


def figures(difference, users, share, concentration, seed=0, count=16):
    """The parity figures of planted lists, and their excess over chance."""
    topk, codes = planted_lists(difference, users, share, concentration, seed)
    none = item_lists([[] for _ in topk])
    degree = np.ones(topk.shape[1])
    lists = Lists(topk, none, degree > 0, degree)
    rows = [row for row in computed(PARITY) if row.name in ("dp_rate", "dp_js", "dp_debiased")]
    permuted, seen = permuted_parity(lists, codes, rows, count), ByGroup.of(lists, codes)
    return {
        row.name: level(float(row.function(seen)), permuted[row.name]) | {"value": row.function(seen)} for row in rows
    }


@pytest.fixture(scope="module")
def planted():
    """The figures of every planted difference and setting."""
    return {(d, *s): figures(d, *s) for d in (0.0, 0.3, 0.6) for s in SETTINGS}


def test_the_headline_is_the_debiased_figure():
    assert [row.name for row in shown_in(HEADLINE)] == ["dp_debiased"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_debiased_parity_is_zero_where_lists_do_not_depend_on_the_group(planted, setting):
    found = planted[0.0, *setting]["dp_debiased"]
    assert abs(found[CHANCE]) < 0.05 and abs(found["value"]) < 3.5 * found[CHANCE_STD]
    # which the plain figures are not
    assert planted[0.0, *setting]["dp_rate"][CHANCE] > 0.1 and planted[0.0, *setting]["dp_js"][CHANCE] > 0.1


@pytest.mark.parametrize("difference", [0.3, 0.6])
def test_debiased_parity_is_the_planted_difference_and_moves_with_nothing_else(planted, difference):
    values = {s: planted[difference, *s] for s in SETTINGS}
    for setting, found in values.items():
        assert found["dp_debiased"]["value"] == pytest.approx(difference, abs=0.04), setting
    # the excess of the others moves with concentration and sizes alone, and so does the number of deviations
    for name, factor in {"dp_rate": 1.5, "dp_js": 1.2}.items():
        excess = [found[name][EXCESS] for found in values.values()]
        assert max(excess) > factor * min(excess), name
    deviations = [found["dp_js"][EXCESS] / found["dp_js"][CHANCE_STD] for found in values.values()]
    assert max(deviations) > 1.5 * min(deviations)


def test_debiased_parity_orders_planted_differences_across_settings(planted):
    of = {d: [planted[d, *s]["dp_debiased"]["value"] for s in SETTINGS] for d in (0.0, 0.3, 0.6)}
    assert max(of[0.0]) < min(of[0.3]) and max(of[0.3]) < min(of[0.6])
    # by the plain rates a concentrated list without any dependence looks worse than a wide one that has some
    plain = {d: [planted[d, *s]["dp_rate"]["value"] for s in SETTINGS] for d in (0.0, 0.3)}
    assert max(plain[0.0]) > min(plain[0.3])


# --- Leakage ---


@pytest.mark.parametrize("classes", [2, 4])
def test_an_attackers_auc_is_scikit_learns(classes):
    generator = np.random.default_rng(classes)
    scores = generator.integers(0, 6, (60, classes)).astype(float)  # with ties
    labels = generator.integers(0, classes, 60)
    labels[scores[:, 0] > 3] = 0
    value, permuted = probes.Attack({"linear": (labels, scores)}).of("linear")
    assert value == pytest.approx(roc_auc_score(labels[:, None] == np.arange(classes), scores, average="macro"))
    loop = [
        roc_auc_score(block[:, None] == np.arange(classes), scores, average="macro")
        for block in np.concatenate(list(permutations(labels)))[:5]
    ]
    assert permuted[:5] == pytest.approx(loop)


def test_the_strongest_of_several_attackers_has_the_chance_level_of_a_maximum():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 200)
    found = {name: (labels, generator.random((200, 2))) for name in probes.ATTACKERS}
    attack = probes.Attack(found)
    value, permuted = attack.strongest()
    each = {name: attack.of(name) for name in found}
    assert value == max(auc for auc, _ in each.values())
    assert permuted == pytest.approx(np.max([values for _, values in each.values()], axis=0))
    assert permuted.mean() > 0.51 > max(values.mean() for _, values in each.values())


def test_permuting_the_labels_of_held_out_users_is_as_good_as_attacking_shuffled_labels():
    generator = np.random.default_rng(1)
    vectors, codes = generator.normal(size=(400, 8)), generator.integers(0, 2, 400)
    test = np.arange(400) < 100

    def attack(codes):
        weights = np.linalg.lstsq(vectors[~test], codes[~test] - 0.5)[0]
        return codes[test], np.stack([-vectors[test] @ weights, vectors[test] @ weights], axis=1)

    cheap = probes.Attack({"linear": attack(codes)}).of("linear")[1]
    shuffled = (attack(generator.permutation(codes)) for _ in cheap)
    refitted = [roc_auc_score(labels, scores[:, 1]) for labels, scores in shuffled]
    assert cheap.mean() == pytest.approx(np.mean(refitted), abs=0.015)
    assert cheap.std() == pytest.approx(np.std(refitted), rel=0.2)


# --- Of a run ---


@pytest.mark.probes
def test_every_list_of_a_run_has_the_chance_level_of_every_figure_by_groups(tmp_path):
    result = run_main(tmp_path, enable_fairness=True, rerank_fair=True, epochs=1, user_attribute=["gender", "age"])
    lists = by_list(result["metrics"])
    plain = ListKey()
    assert set(lists) == {
        str(plain),
        str(plain.after_reranking()),
        *(str(plain.beside(n)) for n in ("popular", "random")),
    }
    for name, metrics in lists.items():
        keys = {key for key in map(MetricKey.parse, metrics) if key.by_groups and not key.part}
        assert {key.group for key in keys} == {"gender", "age"}
        assert any(key.spread for key in keys) and any(key.metric.kind == PARITY for key in keys)
        assert any(key.name == "leakage_auc" for key in keys) == (name == "test")
        for key in keys:
            parts = [metrics[str(key.of(part))] for part in CHANCE_PARTS]
            if parts[0] is None:
                continue
            value, (mean, _, excess, p) = metrics[str(key)], parts
            assert value - mean == pytest.approx(excess) and 1 / 201 <= p <= 1
    assert lists["test"]["dp_rate@10/chance/gender"] > 0
