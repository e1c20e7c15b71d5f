"""Metrics against closed forms, literal loops, independent packages and stored oracle values."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import ndcg_score

import fairness_utils as metrics
from data.protocols.base import Definitions
from data.protocols.fda import DEFINITIONS
from data.structs import Group, Ranking
from model.evaluation.keys import MetricKey
from model.evaluation.lists import Lists
from model.evaluation.metric_kinds import COUNT, LEAKAGE
from model.evaluation.metric_table import METRICS
from model.evaluation.metrics import evaluate, list_metrics, per_user_accuracy
from model.evaluation.parity import ByGroup, dp_code, eo_code
from tests.support.lists import demographic_parity, item_lists, js_distance, make_ranking, make_split, random_case
from tests.support.metric_twins import (
    twin_accuracy,
    twin_debiased,
    twin_dtr,
    twin_exposure,
    twin_gap,
    twin_gini,
    twin_in_list,
    twin_js,
    twin_mean,
    twin_parity,
)

TOLERANCE = 1e-12
WITH_RECALL = Definitions(further=("recall",))
AS_FADE = Definitions(further=("recall", "f1", "ndcg_hits", "difference"))


def close(actual, expected):
    assert actual == pytest.approx(expected, rel=1e-9, abs=TOLERANCE, nan_ok=True)


@pytest.mark.parametrize("seed", range(12))
def test_list_metrics_equal_literal_loops(seed):
    groups = 2 + seed % 4
    topk, relevant, codes, tail, degree, _ = random_case(seed, groups=groups)
    num_items, k = len(degree), 5
    lists = topk[:, :k]
    discounted, counts = twin_exposure(lists, num_items, True), twin_exposure(lists, num_items, False)
    result = list_metrics(Lists(lists, item_lists(relevant), tail, degree), {"a": codes}).summary
    expected = {
        "gini@5": twin_gini(discounted),
        "gini_count@5": twin_gini(counts),
        "coverage@5": sum(count > 0 for count in counts) / num_items,
        "arp@5": twin_in_list(lists, degree.tolist()),
        "aplt@5": twin_in_list(lists, tail.tolist()),
        "exposure_gap@5": twin_gap(discounted, tail, [1] * num_items),
        "dtr@5": twin_dtr(discounted, tail, degree.tolist()),
        "dp@5/a": twin_parity(lists, codes, num_items),
        "dp_rate@5/a": twin_parity(lists, codes, num_items, by_rate=True),
        "dp_js@5/a": twin_js(lists, codes, num_items),
        "eo@5/a": twin_parity(lists, codes, num_items, relevant=relevant),
        "eo_rate@5/a": twin_parity(lists, codes, num_items, by_rate=True, relevant=relevant),
        "eo_js@5/a": twin_js(lists, codes, num_items, relevant=relevant),
        "dp_debiased@5/a": twin_debiased(lists, codes),
        "eo_debiased@5/a": twin_debiased(lists, codes, relevant),
    }
    assert set(result) == set(expected)
    for name, value in expected.items():
        # few hits are shared by two users
        assert not math.isnan(value) or name == "eo_debiased@5/a", name
        assert result[name] == pytest.approx(value, rel=1e-9, abs=TOLERANCE, nan_ok=True), name
    close(metrics.exposure_share_gap(np.array(discounted), tail, degree), twin_gap(discounted, tail, degree.tolist()))


@pytest.mark.parametrize("seed", range(8))
def test_evaluate_equals_literal_loops(seed):
    topk, relevant, codes, tail, degree, generator = random_case(seed, groups=2 + seed % 3)
    k, ranking = 4, make_ranking(topk, relevant, len(degree), generator)
    group = Group("a", codes, tuple(f"g{code}" for code in range(2 + seed % 3)))
    result = evaluate(ranking, make_split(degree, tail, len(topk)), {"a": group}, [k], AS_FADE)
    ranks = [[] for _ in relevant]
    for owner, item, rank in zip(ranking.relevant.owner, ranking.relevant.item, ranking.ranks, strict=True):
        ranks[owner].append((int(item), int(rank)))
    users = [twin_accuracy([rank for _, rank in entries], k) for entries in ranks]
    for metric in users[0]:
        values = [user[metric] for user in users]
        assert result.per_user[f"{metric}@4"] == pytest.approx(values, rel=1e-12, nan_ok=True)
        close(result.summary[f"{metric}@4"], twin_mean(values))
        for label, wanted in (("head", False), ("tail", True)):
            bucket = [[rank for item, rank in entries if bool(tail[item]) == wanted] for entries in ranks]
            close(result.summary[f"{metric}@4/{label}"], twin_mean([twin_accuracy(row, k)[metric] for row in bucket]))
        means = [
            twin_mean([value for value, code in zip(values, codes, strict=True) if code == wanted])
            for wanted in range(group.num_groups)
        ]
        for label, mean in zip(group.labels, means, strict=True):
            close(result.summary[f"{metric}@4/a/{label}"], mean)
        close(result.summary[f"{metric}@4/gap/a"], max(means) - min(means))
        spread = math.sqrt(sum((mean - sum(means) / len(means)) ** 2 for mean in means) / len(means))
        close(result.summary[f"{metric}@4/std/a"], spread)
        close(result.summary[f"{metric}@4/difference/a"], means[0] - means[1] if len(means) == 2 else math.nan)
    listed = list_metrics(Lists(topk[:, :k], ranking.relevant, tail, degree), {"a": codes}).summary
    assert {name: result.summary[name] for name in listed} == pytest.approx(listed, nan_ok=True)


@pytest.fixture(scope="module")
def oracle():
    stored = json.loads((Path(__file__).parent / "oracle_rankings.json").read_text())
    topk = np.array(stored["lists"], dtype=np.int64)
    relevant = [[item] for item in stored["target"]]
    tail = np.array(stored["item_is_tail"], dtype=bool)
    ranking = make_ranking(topk, relevant, stored["num_items"], np.random.default_rng(0))
    split = make_split(np.full(stored["num_items"], 3), tail, stored["num_users"])
    group = Group("group", np.array(stored["user_group"], dtype=np.int64), ("0", "1"))
    return stored["oracle"], evaluate(ranking, split, {"group": group}, [stored["k"]]).summary


def test_oracle_values(oracle):
    values, summary = oracle
    plain, tail_share = values["plain_python"], values["plain_python"]["tail catalogue share"]
    pairs = [
        (summary["hr@10"], values["ranx"]["hit_rate@10"]),
        (summary["ndcg@10"], values["ranx"]["ndcg@10"]),
        (summary["mrr@10"], values["ranx"]["mrr@10"]),
        (summary["hr@10"], values["lenskit"]["Hit@10"]),
        (summary["ndcg@10"], values["lenskit"]["NDCG@10"]),
        (summary["mrr@10"], values["lenskit"]["RecipRank@10"]),
        (summary["gini_count@10"], values["lenskit"]["ListGini@10"]),
        (summary["gini@10"], values["lenskit"]["ExposureGini@10"]),
        (summary["gini_count@10"], plain["gini count"]),
        (summary["gini@10"], plain["gini exposure log2"]),
        (summary["coverage@10"], plain["coverage"]),
        (summary["dp@10/group"], plain["DP@K covered items, raw counts"]),
        (summary["dp_rate@10/group"], plain["DP@K covered items, rate normalised"]),
        (summary["eo@10/group"], plain["EO@K hit items, raw counts"]),
        (summary["eo_rate@10/group"], plain["EO@K hit items, rate normalised (by group size)"]),
        (summary["dp_js@10/group"], plain["JS distance DP@K, natural log"]),
        (summary["dp_js@10/group"] ** 2 / math.log(2), plain["JS divergence DP@K, base 2"]),
        (summary["exposure_gap@10"] + tail_share, plain["tail exposure share"]),
        (summary["aplt@10"], plain["APLT"]),
        # With the same merit for every item, DTR is the ratio of the groups' mean exposures.
        (summary["dtr@10"], plain["mean exposure ratio tail/head"]),
        (abs(summary["hr@10/group/0"] - summary["hr@10/group/1"]), plain["HR gap group0-group1"]),
        (summary["hr@10/gap/group"], plain["HR gap group0-group1"]),
    ]
    for actual, expected in pairs:
        assert actual == pytest.approx(expected, abs=1e-6)
    assert len({expected for _, expected in pairs}) >= 17


RANX_SCRIPT = """
import json, sys
from ranx import Qrels, Run, evaluate
qrels, run = json.load(sys.stdin)
names = ["hit_rate@5", "ndcg@5", "mrr@5", "recall@5"]
scores = evaluate(Qrels(qrels), Run(run), names, return_mean=False, make_comparable=True)
print(json.dumps({name: list(map(float, scores[name])) for name in names}))
"""


def test_accuracy_equals_ranx():
    topk, relevant, _, _, degree, generator = random_case(3, users=60, short=False)
    relevant = [wanted or [0] for wanted in relevant]
    ranking = make_ranking(topk, relevant, len(degree), generator)
    names = [f"{row:03d}" for row in range(len(topk))]
    qrels = {name: {str(item): 1 for item in wanted} for name, wanted in zip(names, relevant, strict=True)}
    run = {name: {} for name in names}
    # Relevant items keep their ranks, all other places are filled with items that nobody asked for.
    for owner, item, rank in zip(ranking.relevant.owner, ranking.relevant.item, ranking.ranks, strict=True):
        run[names[owner]][str(item)] = -float(rank)
    for name in names:
        taken = set(run[name].values())
        run[name] |= {f"filler{rank}": -float(rank) for rank in range(1, len(degree) + 1) if -rank not in taken}
    # Its own process with compilation off: compiling ranx takes minutes, running these few lists takes none.
    answer = subprocess.run(
        [sys.executable, "-c", RANX_SCRIPT],
        input=json.dumps([qrels, run]),
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = json.loads(answer.stdout.strip().splitlines()[-1])
    actual = per_user_accuracy(ranking, 5, definitions=WITH_RECALL)
    for ours, theirs in (("hr", "hit_rate@5"), ("ndcg", "ndcg@5"), ("mrr", "mrr@5"), ("recall", "recall@5")):
        assert actual[ours] == pytest.approx(expected[theirs], abs=1e-9)
        assert 0 < np.mean(actual[ours]) < 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_ndcg_equals_sklearn(seed, k):
    topk, relevant, _, _, degree, generator = random_case(seed, users=8)
    relevant = [wanted or [0] for wanted in relevant]
    ranking = make_ranking(topk, relevant, len(degree), generator)
    labels, scores = np.zeros((8, len(degree))), np.zeros((8, len(degree)))
    owner = ranking.relevant.owner
    # Rank-derived scores: relevant items take theirs, the others the remaining places in any order.
    for row in range(8):
        ranks = ranking.ranks[owner == row]
        others = np.setdiff1d(np.arange(1, len(degree) + 1), ranks)
        labels[row, : len(ranks)] = 1
        scores[row] = -np.concatenate([ranks, others])
    expected = [ndcg_score(labels[row : row + 1], scores[row : row + 1], k=k) for row in range(8)]
    assert per_user_accuracy(ranking, k)["ndcg"] == pytest.approx(expected, abs=1e-9)


def test_accuracy_by_hand():
    relevant = item_lists([[4], [1, 2, 3], [], [0]])
    ranks = np.array([3, 7, 2, 5, 6])
    topk = np.tile(np.arange(5), (4, 1))
    ranking = Ranking(np.arange(4), relevant, ranks, topk, -topk.astype(float), np.full(4, 8))
    actual = per_user_accuracy(ranking, 5)
    both = (1 / math.log2(3) + 1 / math.log2(6)) / (1 + 1 / math.log2(3) + 0.5)
    assert actual["hr"] == pytest.approx([1, 1, math.nan, 0], nan_ok=True)
    assert actual["ndcg"] == pytest.approx([0.5, both, math.nan, 0], nan_ok=True)
    assert actual["mrr"] == pytest.approx([1 / 3, 1 / 2, math.nan, 0], nan_ok=True)
    # More relevant items than places: two hits at the top of K = 2 are perfect.
    perfect = Ranking(np.arange(4), relevant, np.array([1, 1, 2, 3, 1]), topk, -topk.astype(float), np.full(4, 8))
    assert per_user_accuracy(perfect, 2)["ndcg"] == pytest.approx([1, 1, math.nan, 1], nan_ok=True)


def test_recall_by_hand():
    # two of four items within the first five; one of one; none of two; nobody asks the last user
    relevant, ranks = item_lists([[4, 1, 2, 3], [0], [5, 6], []]), np.array([3, 5, 6, 9, 1, 7, 8])
    topk = np.tile(np.arange(5), (4, 1))
    ranking = Ranking(np.arange(4), relevant, ranks, topk, -topk.astype(float), np.full(4, 10))
    expected = {5: [0.5, 1, 0, math.nan], 2: [0, 1, 0, math.nan], 10: [1, 1, 1, math.nan]}
    for k, values in expected.items():
        assert per_user_accuracy(ranking, k, definitions=WITH_RECALL)["recall"] == pytest.approx(values, nan_ok=True)
    assert "recall" not in per_user_accuracy(ranking, 5)
    # with more relevant items than places it stays below 1, unlike the share of hits among what could be hit
    shares = Definitions(hit_rate="share", further=("recall",))
    perfect = dataclasses.replace(ranking, ranks=np.array([1, 2, 3, 4, 1, 1, 2]))
    found = per_user_accuracy(perfect, 1, definitions=shares)
    assert found["recall"] == pytest.approx([0.25, 1, 0.5, math.nan], nan_ok=True)
    assert found["hr"] == pytest.approx([1, 1, 1, math.nan], nan_ok=True)


def test_ndcg_among_the_hits_and_f1_by_hand():
    def found(relevant, ranks, k=5):
        topk = np.arange(5)[None]
        ranking = Ranking(
            np.arange(1), item_lists([relevant]), np.array(ranks), topk, -topk.astype(float), np.array([9])
        )
        return {name: value[0] for name, value in per_user_accuracy(ranking, k, definitions=AS_FADE).items()}

    # one hit at rank 1 is perfect however many items are missed, which the standard NDCG counts
    for missed in (0, 1, 3):
        own = found([0, *range(5, 5 + missed)], [1, *range(6, 6 + missed)])
        assert own["ndcg_hits"] == 1
        assert own["f1"] == pytest.approx(2 / (5 + 1 + missed)) and own["recall"] == 1 / (1 + missed)
        assert own["ndcg"] == pytest.approx(1 / sum(1 / math.log2(place + 1) for place in range(1, 2 + missed)))
    second = found([1, 7], [2, 8])
    assert second["ndcg_hits"] == pytest.approx(0.6309, abs=5e-5) != second["ndcg"]
    nothing = found([7, 8], [8, 9])
    assert (nothing["ndcg_hits"], nothing["f1"], nothing["recall"]) == (0, 0, 0)
    # more items to find than places: all places are hits
    full = found([0, 1, 2, 3], [1, 2, 3, 4], k=2)
    assert full["ndcg_hits"] == 1 and full["f1"] == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert not {"f1", "ndcg_hits"} & set(
        per_user_accuracy(make_ranking(np.arange(5)[None], [[0]], 5, np.random.default_rng(0)), 5)
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_difference_has_a_sign_that_swapped_labels_turn(seed):
    topk, relevant, codes, tail, degree, generator = random_case(seed)
    ranking, split = make_ranking(topk, relevant, len(degree), generator), make_split(degree, tail, len(topk))

    def summary(codes, labels="ab"):
        return evaluate(ranking, split, {"a": Group("a", codes, tuple(labels))}, [5], AS_FADE).summary

    own, swapped = summary(codes), summary(np.where(codes < 0, codes, 1 - codes))
    assert (
        own["recall@5/difference/a"] == own["recall@5/a/a"] - own["recall@5/a/b"] == -swapped["recall@5/difference/a"]
    )
    assert abs(own["recall@5/difference/a"]) == own["recall@5/gap/a"] == swapped["recall@5/gap/a"] > 0
    # of three groups, or of one that has members, there is none
    assert math.isnan(summary(codes, "abc")["recall@5/difference/a"])
    assert math.isnan(summary(np.minimum(codes, 0))["recall@5/difference/a"])


def test_gini_closed_forms():
    assert metrics.gini(np.full(7, 2.5)) == pytest.approx(0, abs=TOLERANCE)
    assert metrics.gini(np.array([0.0, 0, 0, 9])) == pytest.approx(3 / 4)
    assert metrics.gini(np.array([1.0, 3.0])) == pytest.approx(1 / 4)
    assert metrics.gini(np.array([5.0])) == 0
    assert math.isnan(metrics.gini(np.zeros(4)))
    assert math.isnan(metrics.gini(np.zeros(0)))


def test_exposure_by_hand():
    topk = np.array([[2, 0, -1], [2, -1, -1], [-1, -1, -1]])
    assert metrics.position_weights(3) == pytest.approx([1, 1 / math.log2(3), 0.5])
    assert metrics.exposure(topk, 4, metrics.position_weights(3)) == pytest.approx([1 / math.log2(3), 0, 2, 0])
    counts = metrics.exposure(topk, 4)
    assert counts.tolist() == [1, 0, 2, 0]
    assert counts.dtype == np.float64
    assert metrics.coverage(counts) == 0.5
    # The empty list is no list: the mean runs over two users, not three.


def test_exposure_adds_up_over_blocks_of_users_but_gini_does_not():
    topk, _, _, _, degree, _ = random_case(4)
    weights = metrics.position_weights(topk.shape[1])
    whole = metrics.exposure(topk, len(degree), weights)
    parts = [metrics.exposure(block, len(degree), weights) for block in (topk[:7], topk[7:])]
    assert whole == pytest.approx(parts[0] + parts[1])
    assert metrics.gini(whole) != pytest.approx(np.mean([metrics.gini(part) for part in parts]), abs=1e-3)


def test_keep_hits_is_not_fooled_by_padding():
    # Row 1 is padded where row 0 asks for the last item: as a flat key, both are the same number.
    topk = np.array([[3, 0], [2, -1], [3, 1]])
    relevant = item_lists([[3], [0], [3, 1]])
    assert metrics.keep_hits(topk, relevant, 4).tolist() == [[3, -1], [-1, -1], [3, 1]]


def test_parity_by_hand():
    topk = np.array([[0, 1], [0, 2], [0, 1], [3, 1]])
    codes = np.array([0, 0, 0, 1])
    # Counts of group 0: 3, 2, 1, 0; of group 1: 0, 1, 0, 1; item 4 is shown to nobody and does not count.
    assert demographic_parity(topk, codes, 5) == pytest.approx((1 + 1 / 3 + 1 + 1) / 4)
    rate = (1 + (1 - 2 / 3) / (1 + 2 / 3) + 1 + 1) / 4
    assert demographic_parity(topk, codes, 5, by_rate=True) == pytest.approx(rate)
    assert js_distance(topk, codes, 5) == pytest.approx(jensenshannon([3, 2, 1, 0, 0], [0, 1, 0, 1, 0]))
    disjoint = np.array([[0, 1], [2, 3]])
    assert demographic_parity(disjoint, np.array([0, 1]), 5) == 1
    assert js_distance(disjoint, np.array([0, 1]), 5) == pytest.approx(math.sqrt(math.log(2)))


def test_three_groups_average_their_pairs():
    topk, _, codes, _, degree, _ = random_case(5, groups=3)
    for metric in (demographic_parity, js_distance):
        pairs = [metric(topk, np.where(codes == left_out, -1, codes), len(degree)) for left_out in range(3)]
        assert metric(topk, codes, len(degree)) == pytest.approx(np.mean(pairs))
    # A gap in the codes is an empty group, not a third one.
    two = np.where(codes == 1, -1, codes)
    expected = demographic_parity(topk, np.minimum(two, 1), len(degree))
    assert demographic_parity(topk, two, len(degree)) == expected


def test_unknown_users_count_in_no_group():
    topk, _, codes, _, degree, _ = random_case(6)
    known = codes >= 0
    assert 0 < known.sum() < len(codes)
    for metric in (demographic_parity, js_distance):
        assert metric(topk, codes, len(degree)) == metric(topk[known], codes[known], len(degree))


def test_undefined_is_nan():
    topk, nobody = np.array([[0, 1], [2, -1]]), np.zeros((0, 3), dtype=np.int64)
    empty, codes = np.full((2, 2), -1), np.array([0, 1])
    no_hits = metrics.keep_hits(topk, item_lists([[4], []]), 5)
    for lists, groups in (
        (no_hits, codes),
        (empty, codes),
        (topk, np.array([1, 1])),
        (topk, np.array([-1, 0])),
        (topk, np.array([-1, -1])),
        (nobody, np.zeros(0, dtype=np.int64)),
    ):
        assert math.isnan(demographic_parity(lists, groups, 5))
        assert math.isnan(demographic_parity(lists, groups, 5, by_rate=True))
        assert math.isnan(js_distance(lists, groups, 5))
    one_sided = np.array([[0, 1], [-1, -1]])
    assert demographic_parity(one_sided, codes, 5) == 1
    assert math.isnan(js_distance(one_sided, codes, 5))
    # A third group that is shown nothing leaves the defined pair alone.
    three = np.array([[0, 1], [0, 2], [-1, -1]])
    assert js_distance(three, np.array([0, 1, 2]), 5) == js_distance(three[:2], codes, 5)
    tail = np.array([False, True, True])
    shown, merit = np.array([2.0, 1.0, 0.0]), np.array([3, 1, 0])
    assert metrics.disparate_treatment_ratio(shown, tail, merit) == pytest.approx((1 / 1) / (2 / 3))
    assert math.isnan(metrics.disparate_treatment_ratio(shown, tail, np.array([3, 0, 0])))
    assert math.isnan(metrics.disparate_treatment_ratio(shown, tail, np.array([0, 1, 0])))
    assert math.isnan(metrics.disparate_treatment_ratio(np.array([0.0, 1, 1]), tail, merit))
    assert math.isnan(metrics.disparate_treatment_ratio(shown, np.zeros(3, dtype=bool), merit))
    assert math.isnan(metrics.exposure_share_gap(np.zeros(3), tail))
    assert math.isnan(metrics.exposure_share_gap(shown, tail, np.zeros(3)))


@pytest.mark.filterwarnings("error")
def test_evaluate_with_empty_buckets_is_nan_without_warnings():
    topk = np.array([[0, 1], [1, -1], [-1, -1]])
    ranking = make_ranking(topk, [[0], [], []], 4, np.random.default_rng(0))
    split = make_split([2, 1, 0, 0], [False, False, True, True], 3)
    group = Group("a", np.array([0, 1, -1]), ("x", "y", "z"))
    summary = evaluate(ranking, split, {"a": group}, [2]).summary
    assert summary["hr@2"] == 1
    assert summary["hr@2/head"] == 1
    assert summary["hr@2/a/x"] == 1
    for name in ("hr@2/tail", "ndcg@2/tail", "hr@2/a/y", "hr@2/a/z", "mrr@2/gap/a", "mrr@2/std/a", "eo_js@2/a"):
        assert math.isnan(summary[name]), name
    # Users who are asked nothing are shown lists all the same.
    assert summary["coverage@2"] == 0.5
    assert summary["gini_count@2"] == pytest.approx(twin_gini([1, 2, 0, 0]))
    nobody = Ranking(
        np.zeros(0, dtype=np.int64), item_lists([]), np.zeros(0, dtype=np.int64), topk[:0], topk[:0] * 1.0, np.zeros(0)
    )
    nothing = evaluate(nobody, split, {"a": group}, [1, 2]).summary
    assert {name for name, value in nothing.items() if not math.isnan(value)} == {"coverage@1", "coverage@2"}


def test_users_pick_their_group():
    topk = np.array([[0, 1], [2, 3], [1, 0]])
    ranking = make_ranking(topk, [[0], [0], [0]], 4, np.random.default_rng(0))
    ranking = Ranking(
        np.array([4, 1, 2]), ranking.relevant, ranking.ranks, topk, ranking.scores, np.full(3, 4)
    )  # users out of order, some not ranked
    group = Group("a", np.array([1, 1, 0, 1, 0]), ("x", "y"))
    summary = evaluate(ranking, make_split([1, 1, 1, 1], [0, 0, 1, 1], 5), {"a": group}, [1]).summary
    assert summary["hr@1/a/x"] == 0.5
    assert summary["hr@1/a/y"] == 0
    assert summary["hr@1/gap/a"] == 0.5
    assert summary["hr@1/std/a"] == 0.25


@pytest.mark.parametrize("k", [0, 7])
def test_cutoff_beyond_the_lists_is_an_error(k):
    topk, relevant, _, tail, degree, generator = random_case(0)
    ranking = make_ranking(topk, relevant, len(degree), generator)
    with pytest.raises(ValueError, match=rf"cut-off K = {k}: allowed is 1\.\.6"):
        evaluate(ranking, make_split(degree, tail, len(topk)), {}, [5, k])


def test_several_cutoffs_equal_single_ones():
    topk, relevant, codes, tail, degree, generator = random_case(1)
    ranking, split = make_ranking(topk, relevant, len(degree), generator), make_split(degree, tail, len(topk))
    group = {"a": Group("a", codes, ("x", "y"))}
    both = evaluate(ranking, split, group, [2, 6])
    single = [evaluate(ranking, split, group, [k]) for k in (2, 6)]
    assert both.summary == pytest.approx(single[0].summary | single[1].summary, nan_ok=True)
    assert both.per_user.keys() == {f"{metric}@{k}" for metric in ("hr", "ndcg", "mrr", "arp", "aplt") for k in (2, 6)}


@pytest.mark.parametrize("seed", range(4))
def test_popularity_and_tail_share_of_each_list_equal_literal_loops(seed):
    topk, relevant, _, tail, degree, generator = random_case(seed)
    topk[0] = -1
    result = evaluate(
        make_ranking(topk, relevant, len(degree), generator), make_split(degree, tail, len(topk)), {}, [3]
    )
    for name, values in (("arp", degree.tolist()), ("aplt", tail.tolist())):
        expected = [twin_in_list(row[None, :3], values) for row in topk]
        assert math.isnan(expected[0])
        assert result.per_user[f"{name}@3"] == pytest.approx(expected, rel=1e-12, nan_ok=True)
        close(result.summary[f"{name}@3"], twin_mean(expected))


def test_popularity_and_tail_share_of_a_list_in_closed_form():
    topk = np.array([[0, 2, 1], [2, -1, -1], [-1, -1, -1]])
    degree, tail = np.array([10, 4, 1]), np.array([False, True, True])
    assert metrics.list_means(topk, degree) == pytest.approx([5, 1, math.nan], nan_ok=True)
    assert metrics.list_means(topk[:, :2], degree) == pytest.approx([5.5, 1, math.nan], nan_ok=True)
    assert metrics.list_means(topk, tail) == pytest.approx([2 / 3, 1, math.nan], nan_ok=True)


def test_an_evaluation_has_every_metric_of_the_table_that_is_computed():
    topk, relevant, codes, tail, degree, generator = random_case(2)
    ranking, split = make_ranking(topk, relevant, len(degree), generator), make_split(degree, tail, len(topk))
    definitions = Definitions(further=tuple(name for name, row in METRICS.items() if row.further))
    names = evaluate(ranking, split, {"a": Group("a", codes, ("x", "y"))}, [3], definitions).summary
    keys = [MetricKey.parse(name) for name in names]
    measured_elsewhere = {name for name, row in METRICS.items() if row.kind in (LEAKAGE, COUNT)}
    assert {key.name for key in keys} | {key.spread for key in keys} - {""} | measured_elsewhere == set(METRICS)


# Properties that need no oracle.


def every_metric(topk, relevant, codes, tail, degree):
    return list_metrics(Lists(topk, item_lists(relevant), tail, degree), {"a": codes}).summary


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_order_of_users_and_names_of_groups_do_not_matter(seed, groups):
    topk, relevant, codes, tail, degree, generator = random_case(seed, groups=groups)
    expected = every_metric(topk, relevant, codes, tail, degree)
    order = generator.permutation(len(topk))
    shuffled = every_metric(topk[order], [relevant[row] for row in order], codes[order], tail, degree)
    assert shuffled == pytest.approx(expected, nan_ok=True)
    renamed = np.append(generator.permutation(groups), -1)[codes]
    assert every_metric(topk, relevant, renamed, tail, degree) == pytest.approx(expected, nan_ok=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_order_inside_lists_matters_to_exposure_alone(seed):
    topk, relevant, codes, tail, degree, generator = random_case(seed, short=False)
    expected = every_metric(topk, relevant, codes, tail, degree)
    shuffled = every_metric(generator.permuted(topk, axis=1), relevant, codes, tail, degree)
    exposed = {"gini@6", "exposure_gap@6", "dtr@6"}
    for name, value in expected.items():
        if name not in exposed:
            assert shuffled[name] == pytest.approx(value, nan_ok=True), name
    assert shuffled["gini@6"] != pytest.approx(expected["gini@6"], rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_swapping_head_and_tail_inverts_dtr_and_negates_the_gap(seed):
    generator = np.random.default_rng(seed)
    exposures, merit = generator.random(12) + 0.01, generator.integers(1, 30, 12)
    tail = generator.permutation(np.arange(12) < generator.integers(1, 12))
    ratio = metrics.disparate_treatment_ratio(exposures, tail, merit)
    assert metrics.disparate_treatment_ratio(exposures, ~tail, merit) == pytest.approx(1 / ratio)
    for due in (None, merit):
        gap = metrics.exposure_share_gap(exposures, tail, due)
        assert metrics.exposure_share_gap(exposures, ~tail, due) == pytest.approx(-gap, abs=TOLERANCE)
    assert metrics.disparate_treatment_ratio(merit * 3.0, tail, merit) == pytest.approx(1)
    assert metrics.exposure_share_gap(merit * 3.0, tail, merit) == pytest.approx(0, abs=TOLERANCE)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any), st.integers(1, 10))
def test_gini_range_scale_and_unseen_items(values, unseen):
    exposures = np.array(values, dtype=np.float64)
    value = metrics.gini(exposures)
    assert -TOLERANCE <= value <= (len(values) - 1) / len(values) + TOLERANCE
    assert metrics.gini(exposures * 7) == pytest.approx(value, abs=TOLERANCE)
    assert value == pytest.approx(twin_gini(values), abs=TOLERANCE)
    larger = np.concatenate([exposures, np.zeros(unseen)])
    assert metrics.gini(larger) > value
    assert metrics.coverage(larger) < metrics.coverage(exposures)


def test_blind_recommender_sits_on_the_floor_of_raw_dp():
    """4,331 men and 1,709 women, lists drawn without regard to either: the raw form cannot reach 0."""
    generator = np.random.default_rng(7)
    codes = np.repeat([0, 1], [4331, 1709])
    topk = np.argsort(generator.random((6040, 20)), axis=1)[:, :10]
    floor = (4331 - 1709) / 6040
    assert demographic_parity(topk, codes, 20) == pytest.approx(floor, abs=0.01)
    assert demographic_parity(topk, codes, 20, by_rate=True) < 0.02
    assert js_distance(topk, codes, 20) < 0.02
    same = np.tile(np.arange(10), (6040, 1))
    assert demographic_parity(same, codes, 20) == pytest.approx(floor)
    assert demographic_parity(same, codes, 20, by_rate=True) == 0
    # An item shown once scores 1, whoever saw it.
    once = np.full((6040, 1), -1)
    once[0] = 3
    assert demographic_parity(once, codes, 20) == 1


def test_equal_groups_with_equal_lists_have_parity():
    topk, relevant, _, tail, degree, _ = random_case(9)
    doubled = np.concatenate([topk, topk])
    result = every_metric(doubled, relevant + relevant, np.repeat([0, 1], len(topk)), tail, degree)
    for name in ("dp@6/a", "eo@6/a", "dp_rate@6/a", "eo_rate@6/a", "dp_js@6/a", "eo_js@6/a"):
        assert result[name] == pytest.approx(0, abs=1e-7), name


def test_accuracy_falls_as_ranks_grow():
    rows = np.arange(12)
    topk = np.tile(np.arange(10), (12, 1))
    ranking = Ranking(rows, item_lists([[0]] * 12), np.arange(1, 13), topk, -topk.astype(float), np.full(12, 30))
    actual = per_user_accuracy(ranking, 10)
    assert actual["hr"].tolist() == [1] * 10 + [0, 0]
    for metric in ("ndcg", "mrr"):
        assert all(better > worse for better, worse in pairwise(actual[metric][:11]))
        assert actual[metric][10:].tolist() == [0, 0]


# FDA's definitions (Chen et al., WWW 2023), kept apart from ours.


def fda_case(relevant, ranks, topk, codes, num_items=8):
    ranking = Ranking(
        np.arange(len(topk)), item_lists(relevant), np.array(ranks), topk, -topk.astype(float), np.full(len(topk), 8)
    )
    split = make_split(np.ones(num_items, dtype=np.int64), np.arange(num_items) > 0, len(topk))
    return evaluate(ranking, split, {"a": Group("a", codes, ("x", "y"))}, [2, 4], DEFINITIONS)


def test_hit_rate_of_fda_is_hits_over_what_could_be_hit():
    topk = np.array([[5, 6, 1, 2], [1, 2, 3, 4], [0, 1, 2, 3]])
    relevant, ranks = [[5, 6, 7], [3], []], [1, 2, 8, 3]
    found = fda_case(relevant, ranks, topk, np.array([0, 1, 1]))
    # all places are hits though there are more relevant items than places; a user without a test item is not asked
    assert found.per_user["hr@2"] == pytest.approx([1, 0, math.nan], nan_ok=True)
    assert found.per_user["hr@4"] == pytest.approx([2 / 3, 1, math.nan], nan_ok=True)
    assert found.summary["hr@4"] == pytest.approx(5 / 6)
    # she counts as 0 in NDCG
    ndcg = [(1 + 1 / math.log2(3)) / (1 + 1 / math.log2(3) + 0.5), 0.5]
    assert found.per_user["ndcg@4"][:2] == pytest.approx(ndcg)
    assert found.summary["ndcg@4"] == pytest.approx(sum(ndcg) / 3)
    # and in no group's NDCG, which is ours
    assert found.summary["ndcg@4/a/y"] == pytest.approx(0.5)


def test_parity_of_the_released_code_splits_an_item_into_hit_and_miss():
    topk, codes = np.array([[1, 2], [1, 2], [1, 3], [0, 3]]), np.array([0, 0, 1, 1])
    relevant = [[1], [2], [1], [0, 3]]
    lists = Lists(topk, item_lists(relevant), np.ones(8, dtype=bool), np.ones(8))
    seen = ByGroup.of(lists, codes)
    dp, eo = dp_code(seen), eo_code(seen)
    # item 1: hit by users 0 and 2 (gap 0), missed by 1 (gap 1); item 2: missed by 0, hit by 1; item 3: missed by 2, hit
    # by 3; item 0: hit by 3
    assert dp == pytest.approx(np.mean([0, 1, 1, 1, 1, 1, 1]))
    # a hit of item 0 is lost, so that items 1 (gap 0), 2 and 3 (gap 1) are left
    assert eo == pytest.approx(2 / 3)
    ours = demographic_parity(topk, codes, 8)
    assert ours == pytest.approx(np.mean([1, 1 / 3, 1, 1])) and ours != pytest.approx(dp)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_released_parity_equals_a_loop_over_twice_as_many_items(seed):
    topk, relevant, codes, _, degree, _ = random_case(seed)
    size, entries, hits = len(degree), {}, {}
    for row, items in enumerate(topk.tolist()):
        for item in items:
            if item < 0 or codes[row] < 0:
                continue
            hit = item in relevant[row]
            entries.setdefault(item + size * hit, []).append(codes[row])
            # the released code takes an index above N, where it begins with N, for a hit
            if hit and item > 0:
                hits.setdefault(item, []).append(codes[row])

    def gap(groups):
        gaps = [abs(own.count(0) - own.count(1)) / len(own) for own in groups.values()]
        return np.mean(gaps) if gaps else math.nan

    lists = Lists(topk, item_lists(relevant), degree > 0, degree)
    seen = ByGroup.of(lists, codes)
    found = (float(dp_code(seen)), float(eo_code(seen)))
    assert found == pytest.approx((gap(entries), gap(hits)), nan_ok=True)


def test_gap_of_an_item_in_closed_form():
    codes = np.array([0, 0, 0, 1])
    for lists, expected in (([0, 0, 0, -1], 1), ([0, -1, -1, 0], 0), ([2, 2, 2, 2], 0.5)):
        assert demographic_parity(np.array(lists)[:, None], codes, 3) == pytest.approx(expected)


def test_definitions_are_never_mixed():
    topk = np.array([[1, 2, 3, 4], [1, 2, 3, 4]])
    found = fda_case([[1, 5], [2]], [1, 6, 2], topk, np.array([0, 1])).summary
    assert {"dp_code@4/a", "eo_code@4/a", "dp@4/a", "eo@4/a"} <= set(found)
    ranking = Ranking(
        np.arange(2), item_lists([[1, 5], [2]]), np.array([1, 6, 2]), topk, -topk.astype(float), np.full(2, 8)
    )
    split = make_split(np.ones(8, dtype=np.int64), np.arange(8) > 0, 2)
    plain = evaluate(ranking, split, {"a": Group("a", np.array([0, 1]), ("x", "y"))}, [2, 4]).summary
    assert not {"dp_code@4/a", "eo_code@4/a"} & set(plain) and plain["hr@4"] == 1 != found["hr@4"]
    with pytest.raises(ValueError, match="hit_rate 'paper'; allowed is one of any, share"):
        Definitions(hit_rate="paper")
