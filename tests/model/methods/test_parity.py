"""Regularisation towards parity: the disparity against loops over users, and what it does to planted groups."""

from __future__ import annotations

import json
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.options import parse_options
from model.methods.parity import Parity
from model.training.update import update
from tests.support.runs import refused, run_main


def twin_disparity(scores, train, codes, groups, kind):
    """Mean over pairs and items of the gap between mean scores `[U, I]`, means over those users that `kind` counts."""
    pairs = []
    for own, other in combinations(range(groups), 2):
        gaps = []
        for item in range(scores.shape[1]):
            means = []
            for code in (own, other):
                users = [user for user in np.flatnonzero(codes == code) if kind == "dp" or item in train[user].tolist()]
                means.append(np.mean(scores[users, item]) if len(users) else math.nan)
            if not math.isnan(means[0]) and not math.isnan(means[1]):
                gaps.append(abs(means[0] - means[1]))
        pairs.append(np.mean(gaps) if gaps else 0.0)
    return np.mean(pairs)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    groups=st.integers(2, 4),
    kind=st.sampled_from(["dp", "eo"]),
    backbone=st.sampled_from(["bprmf", "gccf", "lightgcn"]),
)
def test_disparity_equals_a_loop_over_users(shared_made, tiny_phase, seed, groups, kind, backbone):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, groups, 60)
    labels = tuple("abcd"[:groups])
    network, method, _ = shared_made(backbone, [f"kind={kind}"], codes, labels, name="parity")
    with torch.no_grad():
        for weight in (network.user.weight, network.item.weight):
            weight.copy_(torch.from_numpy(rng.normal(size=weight.shape)))
        context = network.prepare()
        scores = (context.users @ context.items.T).numpy()
        actual = method.disparity(context.users, context.items)
    assert float(actual) == pytest.approx(twin_disparity(scores, tiny_phase.split.train, codes, groups, kind), rel=1e-4)


@pytest.mark.parametrize("kind", ["dp", "eo"])
def test_users_who_are_alike_have_no_disparity(made, kind):
    network, method, _ = made(options=[f"kind={kind}"], name="parity")
    with torch.no_grad():
        network.user.weight.copy_(network.user.weight[0].expand_as(network.user.weight))
        context = network.prepare()
        assert float(method.disparity(context.users, context.items)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["dp", "eo"])
def test_the_loss_without_weight_is_the_plain_one_and_with_it_the_disparity_falls(made, kind):
    ends = {}
    for weight in (0, 30):
        network, method, batch = made(options=[f"kind={kind}", f"weight={weight}"], name="parity", lr=0.02)
        for _ in range(80):
            values = method.train_step(batch, "method", "train", update)
        ends[weight] = float(values["disparity"]), float(values["loss"])
        if not weight:
            plain, none, _ = made(name="none", lr=0.02)
            for _ in range(80):
                none.train_step(batch, "method", "train", update)
            assert torch.equal(plain.item.weight, network.item.weight)
    assert ends[30][0] < 0.3 * ends[0][0] and ends[30][1] > ends[0][1]


def test_a_group_that_nobody_belongs_to_leaves_the_loss_finite(made):
    for kind in ("dp", "eo"):
        _, method, batch = made(
            options=[f"kind={kind}"], codes=np.zeros(60, dtype=int), labels=("a", "b"), name="parity"
        )
        values = method.train_step(batch, "method", "train", update)
        assert float(values["disparity"]) == 0 and math.isfinite(values["loss"])


@pytest.mark.parametrize(
    ("assignment", "words"),
    [("kind=both", "allowed is dp or eo"), ("weight=-1", "0 or more"), ("weight=inf", "finite")],
)
def test_an_option_out_of_range_is_an_error(assignment, words):
    with pytest.raises(ValueError, match=words):
        parse_options(Parity.Options, [assignment])


FAIR = {"enable_fairness": True, "fairness_method": "parity", "user_hidden": None, "item_hidden": None}


@pytest.mark.parametrize("backbone", ["ncf", "sparsenn"])
def test_a_backbone_without_inner_products_is_an_error(tmp_path, capsys, backbone):
    line = refused(capsys, tmp_path, **FAIR, backbone=backbone)
    assert "bprmf, pmf, gccf, lightgcn" in line and f"--backbone={backbone}" in line


@pytest.mark.parametrize(("kind", "backbone"), [("dp", "bprmf"), ("eo", "gccf")])
def test_a_whole_run(tmp_path, kind, backbone):
    options = [f"kind={kind}", "weight=5"]
    result = run_main(tmp_path, **FAIR, backbone=backbone, method_option=options)
    assert result["method"] == "parity" and 0 < result["metrics"]["test/hr@10"] < 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["train/disparity"] >= 0 for row in rows)
