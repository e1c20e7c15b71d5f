"""SLIM over users and BN-SLIM: the optimum by independent oracles, what balance does, and runs from end to end."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from absl import flags
from absl.testing import flagsaver
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import ElasticNet
from torch.testing import assert_close

import main
from data.structs import Group
from model import slim
from model.methods.bnslim import group_signs
from model.modes import setup, train
from model.slim import NeighbourSLIM, Penalties, Problem
from tests.support.runs import (
    TINY,
    refused,
    result_bytes,
    run_main,
)

FLAGS = flags.FLAGS
EXACT = {"tolerance": 1e-9, "iterations": 20_000}
CODES = torch.arange(12) % 2
SLIM = dict.fromkeys(("epochs", "batch_size", "num_negatives", "user_hidden", "item_hidden")) | {"backbone": "slim"}
BALANCED = SLIM | {"enable_fairness": True, "fairness_method": "bnslim"}


def interactions(seed=0, users=12, items=30, density=0.3):
    return (torch.rand((users, items), generator=torch.Generator().manual_seed(seed)) < density).double()


def signs_of(codes, labels="MF"):
    return group_signs(Group("gender", np.asarray(codes, dtype=np.int64), tuple(labels)))


def solved(rows, penalties, signs=None):
    return Problem(rows @ rows.T, penalties, signs).solve(torch.arange(len(rows)))


def by_coordinates(rows, penalties, codes, sweeps=3000):
    """The same optimum one number at a time, with the balance as the published squared sum of signed weights."""
    gram, sign = (rows @ rows.T).numpy(), np.array([{0: 1.0, 1: -1.0, -1: 0.0}[int(code)] for code in codes])
    weights = np.zeros_like(gram)
    for user, own in enumerate(weights):
        for _ in range(sweeps):
            before = own.copy()
            for other in range(len(own)):
                if other == user:
                    continue
                rest = own.copy()
                rest[other] = 0
                pull = gram[user, other] - rest @ gram[other] - penalties.balance * sign[other] * (rest @ sign)
                curvature = gram[other, other] + penalties.l2 + penalties.balance * sign[other] ** 2
                own[other] = max(0.0, (pull - penalties.l1) / curvature)
            if np.abs(own - before).max() < 1e-10:
                break
    return torch.from_numpy(weights)


@pytest.mark.parametrize(("l1", "l2"), [(0.2, 0.4), (0.5, 0.5), (1.0, 10.0)])
def test_without_balance_the_weights_are_scikit_learns(l1, l2):
    rows = interactions()
    weights, _ = solved(rows, Penalties(l1, l2, **EXACT))
    items = rows.shape[1]
    for user in range(len(rows)):
        others = np.delete(np.arange(len(rows)), user)
        net = ElasticNet((l1 + l2) / items, l1_ratio=l1 / (l1 + l2), fit_intercept=False, positive=True, tol=1e-12)
        net.fit(rows[others].T.numpy(), rows[user].numpy())
        assert_close(weights[user, others].numpy(), net.coef_, atol=1e-6, rtol=0)


@pytest.mark.parametrize("balance", [1.0, 30.0])
def test_with_balance_the_weights_are_those_of_coordinate_descent(balance):
    rows, codes = interactions(1, users=8), torch.tensor([0, 1, 1, 0, -1, 0, 0, 1])
    penalties = Penalties(0.3, 1.0, balance, **EXACT)
    weights, _ = solved(rows, penalties, signs_of(codes))
    assert_close(weights, by_coordinates(rows, penalties, codes), atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 3.0]), st.sampled_from([0.1, 5.0]), st.sampled_from([0.0, 50.0])
)
def test_the_conditions_of_an_optimum_hold(seed, l1, l2, balance):
    rows, signs = interactions(seed), signs_of(CODES)
    penalties = Penalties(l1, l2, balance, **EXACT)
    weights, residuals = solved(rows, penalties, signs)
    gram = rows @ rows.T
    gradient = weights @ (gram + balance * signs @ signs.T) + l2 * weights + l1 - gram
    assert weights.min() >= 0
    assert not weights.diagonal().any()
    assert torch.where(weights > 0, gradient, 0).abs().max() < 1e-5
    free = ~torch.eye(len(rows), dtype=torch.bool) & (weights == 0)
    assert gradient[free].min() > -1e-5
    # the residual never rises, whatever the objective does
    assert all(after <= before * (1 + 1e-9) + 1e-12 for before, after in itertools.pairwise(residuals))


def test_the_objective_is_the_written_one_and_least_at_the_solution():
    rows, signs, penalties = interactions(2), signs_of(CODES), Penalties(0.4, 2.0, 7.0, **EXACT)
    problem, users = Problem(rows @ rows.T, penalties, signs), torch.arange(len(rows))
    weights, _ = problem.solve(users)

    def written(weights):
        signed = weights @ (1.0 - 2 * CODES.double())
        fit = (rows - weights @ rows).square().sum(1) / 2
        return fit + 0.4 * weights.abs().sum(1) + weights.square().sum(1) + 7 / 2 * signed.square()

    assert_close(problem.objective(users, weights), written(weights))
    moved = (weights + 0.01 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(0))).clamp(min=0)
    moved.fill_diagonal_(0)
    assert (written(moved) > written(weights)).all()
    early, _ = Problem(rows @ rows.T, Penalties(0.4, 2.0, 7.0, iterations=3), signs).solve(users)
    assert written(early).sum() > written(weights).sum()


def test_balance_draws_the_groups_together_and_unknown_neighbours_are_free_of_it():
    rows, codes = interactions(3, users=14), torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, -1, -1])
    sign = torch.where(codes >= 0, 1.0 - 2 * codes, 0).double()

    def imbalance(balance):
        weights, _ = solved(rows, Penalties(0.1, 1.0, balance, **EXACT), signs_of(codes))
        assert weights[:, codes < 0].any()
        assert weights.sum() > 1
        return (weights @ sign).abs().max()

    plain, some, much = imbalance(0.0), imbalance(10.0), imbalance(1e6)
    assert plain > 0.3
    assert some < plain
    assert much < 1e-4


def test_more_groups_are_compared_with_their_mean_as_two_are_with_each_other():
    codes, weights = torch.tensor([0, 1, 2, 2, -1, 0]), torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    shares = torch.stack([weights[:, codes == group].sum(1) for group in range(3)], dim=1).double()
    expected = 3 / 2 * (shares - shares.mean(1, keepdim=True)).square().sum(1)
    assert_close((weights.double() @ signs_of(codes, "abc")).square().sum(1), expected)
    two = codes.clamp(max=1)
    signed = weights.double() @ torch.where(two >= 0, 1.0 - 2 * two, 0).double()
    assert_close((weights.double() @ signs_of(two)).square().sum(1), signed.square())


def test_scores_are_weights_times_interactions_and_a_state_of_any_size_loads(tiny_phase, monkeypatch):
    monkeypatch.setattr(slim, "USERS_AT_A_TIME", 7)
    split = tiny_phase.split
    backbone, other = (NeighbourSLIM(split.num_users, split.num_items) for _ in range(2))
    rows = torch.zeros(split.num_users, split.num_items)
    rows[torch.from_numpy(split.train.owner), torch.from_numpy(split.train.item)] = 1
    penalties = Penalties(0.5, 2.0, tolerance=1e-6, iterations=500)
    for part in (backbone, other):
        part.begin_phase(split)
    found = backbone.fit(penalties)
    weights, _ = solved(rows.double(), penalties)
    other.load_state_dict(backbone.state_dict())
    users, items = torch.tensor([5, 0, 59]), torch.arange(split.num_items)
    for part in (backbone, other):
        context = part.prepare()
        user = part.encode_users(context, users, None)
        assert_close(user.double(), weights[users], atol=1e-4, rtol=0)
        scores = part.score_catalogue(user, part.encode_items(context, items))
        assert_close(scores, user @ rows, atol=1e-4, rtol=0)
        assert_close(part.score(context, user, items[:6].view(3, 2)), scores.gather(1, items[:6].view(3, 2)))
    assert found.residual <= 1e-6
    assert found.iterations < 500
    objective = Problem(rows.double() @ rows.double().T, penalties).objective(torch.arange(60), weights).sum()
    assert found.objective == pytest.approx(float(objective), rel=1e-4)


def test_no_interactions_give_no_weights():
    weights, residuals = solved(torch.zeros(3, 4), Penalties())
    assert not weights.any()
    assert residuals == [0.0]


@pytest.mark.parametrize("values", [SLIM, BALANCED], ids=["none", "bnslim"])
def test_a_run_fits_once_and_its_checkpoint_is_judged_the_same(tmp_path, capsys, values):
    result = run_main(tmp_path, **values)
    assert "fitted in " in capsys.readouterr().out
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == result["epoch"] == 1
    assert result["metrics"]["test/ndcg@10"] > result["metrics"]["reference/random/ndcg@10"]
    weights = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["backbone"]["weight"]
    assert 0 < len(weights) < 60 * 59
    unset = {name: FLAGS[name].default for name in TINY} | {"run_name": "run"}
    again = run_main(tmp_path / "again", **unset | {"mode": "evaluate", "checkpoint": str(tmp_path / "run")})
    assert again["metrics"] == result["metrics"]


def test_balance_shows_in_what_a_run_fits(tmp_path):
    def imbalance(name, **values):
        run_main(tmp_path / name, **values)
        state = torch.load(tmp_path / name / "run" / "checkpoint.pt", weights_only=True)["backbone"]
        with flagsaver.flagsaver(**{**TINY, **values}):
            data = setup.prepare(main.settings_from_flags().config()).data
        sign = 1.0 - 2 * torch.from_numpy(data.user_groups["gender"].codes)
        owner = torch.repeat_interleave(torch.arange(60), state["indptr"].diff())
        signed = torch.zeros(60).index_add_(0, owner, state["weight"] * sign[state["neighbour"]].float())
        return signed.abs().mean()

    options = ["l1=0.1", "l2=1", "iterations=2000"]
    plain = imbalance("plain", **BALANCED, method_option=[*options, "balance=0"])
    assert imbalance("fair", **BALANCED, method_option=[*options, "balance=1e5"]) < 0.05 * plain


class CutOff(Exception):
    """Ends a run as a crash does."""


@pytest.mark.parametrize(("place", "fits"), [("validate", 1), ("ask_tests", 0)])
def test_a_run_cut_off_goes_on_to_the_same_bytes(tmp_path, monkeypatch, place, fits):
    run_main(tmp_path / "whole", **BALANCED)

    def crash(*arguments):
        raise CutOff

    with monkeypatch.context() as patched, pytest.raises(CutOff):
        patched.setattr(train, place, crash)
        run_main(tmp_path / "cut", **BALANCED)
    calls, fit = [], NeighbourSLIM.fit
    monkeypatch.setattr(NeighbourSLIM, "fit", lambda *given, **named: calls.append(1) or fit(*given, **named))
    run_main(tmp_path / "cut", **BALANCED, resume=True)
    assert len(calls) == fits
    assert result_bytes(tmp_path / "cut") == result_bytes(tmp_path / "whole")
    for name in ("recommendations.parquet", "metrics.jsonl"):
        assert (tmp_path / "cut" / "run" / name).read_bytes() == (tmp_path / "whole" / "run" / name).read_bytes()


def test_a_dry_run_fits_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(NeighbourSLIM, "fit", None)
    with flagsaver.flagsaver(**{**TINY, **BALANCED, "dry_run": True, "output_dir": str(tmp_path)}):
        main.main(["main.py"])
    assert "fitted at once" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (SLIM | {"enable_fairness": True, "fairness_method": "fda"}, "this backbone is fitted at once"),
        (SLIM | {"enable_fairness": True, "fairness_method": "fabuhs"}, "this backbone is fitted at once"),
        (BALANCED | {"backbone": "bprmf"}, "it balances neighbours, which only slim has"),
        (SLIM | {"lr": 0.1}, "--lr=0.1 has no effect with --backbone=slim"),
        (SLIM | {"l2": 0.1}, "--l2=0.1 has no effect with --backbone=slim"),
        (BALANCED | {"method_option": ["l1=-1"]}, "l1=-1.0: allowed is 0 or more"),
        (BALANCED | {"method_option": ["l2=inf"]}, "l2=inf: allowed is 0 or more"),
        (BALANCED | {"method_option": ["balance=nan"]}, "balance=nan: allowed is 0 or more"),
        (BALANCED | {"method_option": ["tolerance=0"]}, "tolerance=0.0: allowed is"),
        (BALANCED | {"method_option": ["iterations=0"]}, "iterations=0: allowed is 1 or more"),
        (BALANCED | {"method_option": ["ridge=1"]}, "tolerance"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_bad_requests_end_with_one_line(tmp_path, capsys, values, words):
    assert words in refused(capsys, tmp_path, **values)


def test_more_users_than_a_gram_matrix_bears_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(slim, "MOST_NUMBERS", 2500)
    error = refused(capsys, tmp_path, **SLIM)
    assert "60 users x 60 numbers" in error
    assert "2,500" in error
    assert "another backbone" in error
