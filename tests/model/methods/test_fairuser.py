"""FairUser: antidote profiles by closed forms, antidote rows in the loss, and runs from end to end."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from absl import flags
from absl.testing import flagsaver
from torch.nn import functional as F
from torch.testing import assert_close

import main
from data.protocols.base import ProtocolSettings
from data.protocols.loo import leave_one_out
from data.structs import Batch, Group
from model.factorisation import MatrixFactorisation
from model.methods import fairuser
from model.methods.fairuser import Antidote, FairUser, dense_rows, group_contrasts
from model.modes import train
from model.runs.environment import Environment
from model.runs.processes import ALONE, Processes
from model.runs.streams import stream_seeds
from model.training.update import update
from tests.support.planted import Planted, generate
from tests.support.runs import (
    TINY,
    refused,
    result_bytes,
    run_main,
)

FLAGS = flags.FLAGS
CPU = torch.device("cpu")
FAIR = {
    "user_hidden": None,
    "item_hidden": None,
    "backbone": "bprmf",
    "embedding_dim": 8,
    "enable_fairness": True,
    "fairness_method": "fairuser",
    "method_option": ["rounds=3", "users=0.1"],
}
BY_IDS = {"backbone": "bprmf", "embedding_dim": 8, "loss": "bpr", "fairness_method": "fairuser"}


@pytest.fixture
def make(tiny_data, tiny_phase, make_config):
    """A function: settings -> a FairUser at the beginning of a phase, on a backbone with vectors of size 1."""

    def build(groups=None, processes=ALONE, **changes):
        config = make_config(**BY_IDS | changes)
        seeds = stream_seeds(config.seed)
        backbone = MatrixFactorisation.build(tiny_data, config, seeds["initialisation"], CPU)
        environment = Environment(
            config, groups or tiny_data.user_groups, np.zeros(60, dtype=bool), seeds, CPU, processes
        )
        method = FairUser(backbone, environment)
        method.begin_phase(tiny_phase, 10)
        with torch.no_grad():
            for table in (backbone.user.weight, backbone.item.weight):
                table.normal_(generator=torch.Generator().manual_seed(1))
        return method

    return build


def batch_of(rows=40, negatives=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randint(60, (rows,), generator=generator),
        torch.randint(40, (rows,), generator=generator),
        torch.randint(40, (rows, negatives), generator=generator),
        None,
    )


def planted_problem(users=300, antidotes=150, seed=0):
    """A problem with real users of two tastes that the groups lean to, and copies of real users as profiles."""
    data, truth = generate(Planted(num_users=users, length=10, genres=2, cell_size=12, lean=(0.2, 0.8)))
    options = ProtocolSettings(warm_threshold=0.2, ks=(10,), epochs=1, patience=1)
    split = leave_one_out(data, options, np.random.default_rng(seed)).phases[0].split
    rows = dense_rows(split.train, torch.arange(users), split.num_items)
    left, values, _ = torch.linalg.svd(rows, full_matrices=False)
    user = left[:, :6] * values[:6].sqrt()
    problem = Antidote(user, split, group_contrasts(Group("gender", truth.group, ("M", "F"))), ridge=5.0)
    return (
        problem,
        user.double(),
        rows,
        rows[torch.randperm(users, generator=torch.Generator().manual_seed(seed))[:antidotes]],
    )


# --- The closed forms ---


def test_item_vectors_are_those_of_ridge_regression_and_antidote_vectors_too():
    problem, user, rows, profiles = planted_problem()
    profiles = profiles.double()
    antidote = torch.randn((len(profiles), 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    item = problem.items(antidote, profiles).requires_grad_()
    loss = (user @ item.T - rows).square().sum() + (antidote @ item.T - profiles).square().sum()
    (slope,) = torch.autograd.grad(loss + 5 * item.square().sum(), item)
    assert slope.abs().max() < 1e-8
    item = problem.items(0 * antidote, 0 * profiles)
    vectors = problem.vectors(profiles).requires_grad_()
    loss = (vectors @ item.T - profiles).square().sum() + 5 * vectors.square().sum()
    (slope,) = torch.autograd.grad(loss, vectors)
    assert slope.abs().max() < 1e-8


def test_the_objective_is_the_squared_difference_of_group_mean_scores():
    problem, user, _, profiles = planted_problem()
    codes = generate(Planted(num_users=300, length=10, genres=2, cell_size=12, lean=(0.2, 0.8)))[1].group
    item = problem.items(torch.zeros((len(profiles), 6), dtype=torch.float64), profiles.double())
    scores = user @ item.T
    expected = (scores[codes == 0].mean(0) - scores[codes == 1].mean(0)).square().mean()
    assert_close(problem.objective(item), expected)


def test_the_gradient_is_autograds_through_both_ridge_solutions():
    problem, _, _, profiles = planted_problem()
    profiles = profiles.double().requires_grad_()
    antidote = problem.vectors(profiles)
    item = problem.items(antidote, profiles)
    (expected,) = torch.autograd.grad(problem.objective(item), profiles)
    assert expected.abs().max() > 1e-9
    found = problem.gradient(profiles.detach(), antidote.detach(), item.detach())
    assert_close(found, expected, atol=1e-12, rtol=1e-6)


def test_optimisation_lowers_the_disparity_of_planted_data():
    problem, _, _, profiles = planted_problem()
    proposed, values = problem.optimise(profiles, 30)
    assert all(after < before for before, after in itertools.pairwise(values))
    assert values[-1] < 0.85 * values[0]
    without = problem.objective(problem.items(torch.zeros((len(profiles), 6), dtype=torch.float64), profiles.double()))
    assert values[-1] < without
    _, again = problem.optimise(proposed.clamp(0, 1), 1)
    assert again[0] == pytest.approx(values[-1])


def test_every_profile_that_is_judged_lies_in_the_unit_box(monkeypatch):
    problem, _, _, profiles = planted_problem()
    items, seen = problem.items, []

    def watched(antidote, profiles):
        seen.append(profiles)
        return items(antidote, profiles)

    monkeypatch.setattr(problem, "items", watched)
    proposed, _ = problem.optimise(profiles, 10)
    assert len(seen) > 5
    assert all(part.min() >= 0 and part.max() <= 1 for part in seen)
    assert proposed.max() > 1


def test_contrasts_of_groups_leave_unknown_users_and_empty_groups_out():
    codes = np.array([0, 1, -1, 1, 0, 0])
    user = torch.randn(6, 3, dtype=torch.float64)
    difference = user[codes == 0].mean(0) - user[codes == 1].mean(0)
    for labels in (("M", "F"), ("M", "F", "nobody")):
        found = group_contrasts(Group("gender", codes, labels)) @ user
        assert_close(found.T @ found, torch.outer(difference, difference))
    codes = np.array([0, 1, 2, 1, 0, -1])
    found = group_contrasts(Group("age", codes, ("a", "b", "c"))) @ user
    means = torch.stack([user[codes == group].mean(0) for group in range(3)])
    assert_close(found, (means - means.mean(0)) * 1.5**0.5)
    with pytest.raises(ValueError, match="fewer than two groups"):
        group_contrasts(Group("gender", np.zeros(3, dtype=np.int64), ("M", "F")))


# --- The method ---


def test_the_second_stage_begins_anew_with_antidote_users(make, tiny_phase):
    method = make(method_option=("users=0.1", "rounds=3", "interactions=7"))
    trained = method.backbone.user.weight.clone()
    method.begin_stage("backbone")
    assert torch.equal(method.backbone.user.weight, trained)
    assert not len(method.positives)
    optimisers = method.optimisers
    method.begin_stage("method")
    for name, value in method.backbone.state_dict().items():
        assert torch.equal(value, method.initial[name])
    assert not torch.equal(method.backbone.user.weight, trained)
    assert method.optimisers is not optimisers
    assert not method.optimisers[0].state
    assert method.positives.shape == (6, 7)
    assert all(len(set(row.tolist())) == 7 for row in method.positives)
    assert (method.positives >= 0).all()
    assert (method.positives < 40).all()
    positives = method.positives
    method.begin_stage("method")
    assert method.positives is positives
    assert method.backbone.user.num_embeddings == tiny_phase.split.num_users


def test_antidote_users_have_as_many_positives_as_real_ones_unless_told(make, tiny_phase):
    method = make()
    assert method.interactions == round(len(tiny_phase.split.train.item) / 60)
    assert method.count == 3


def test_antidote_rows_are_their_share_of_a_batch_and_their_negatives_are_no_positives(make, tiny_phase):
    method = make(method_option=("users=0.5", "interactions=10"))
    method.begin_stage("method")
    users, items = method.antidote_rows(400)
    assert len(users) == round(400 * 300 / len(tiny_phase.split.train.item))
    assert items.shape == (len(users), 1 + 2 + 2)
    own = method.positives[users]
    assert (items[:, :1, None] == own[:, None]).any(-1).all()
    assert not (items[:, 1:, None] == own[:, None]).any(-1).any()
    assert set(users.tolist()) == set(range(30))


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_the_loss_is_the_mean_over_real_and_antidote_rows(make, l2):
    method = make(l2=l2, in_batch_negatives=0)
    method.begin_stage("method")
    state, batch, losses = method.generator.get_state(), batch_of(), []
    with torch.no_grad():
        method.antidote.normal_(generator=torch.Generator().manual_seed(3))
    before = method.antidote.detach().clone()
    user, item = (table.weight.detach().clone() for table in (method.backbone.user, method.backbone.item))
    method.train_step(batch, "method", "train", lambda loss, *optimisers: losses.append(loss))
    method.generator.set_state(state)
    users, items = method.antidote_rows(len(batch.users))
    vectors = torch.cat([user[batch.users], before[users]])
    rows = torch.cat([torch.cat([batch.positives[:, None], batch.negatives], dim=1), items])
    scores = torch.einsum("bd,bmd->bm", vectors, item[rows])
    norms = vectors.square().sum(1) + item[rows].square().sum((1, 2))
    assert_close(losses[0].detach(), F.softplus(scores[:, 1:] - scores[:, :1]).mean() + l2 * norms.mean())
    method.generator.set_state(state)
    method.train_step(batch, "method", "train", update)
    moved = (method.antidote != before).any(1)
    assert moved.any()
    assert set(torch.nonzero(moved).flatten().tolist()) <= set(users.tolist())


def test_the_first_stage_is_plain_training(make):
    method, batch, losses = make(), batch_of(), []
    method.train_step(batch, "backbone", "train", lambda loss, *optimisers: losses.append((loss, optimisers)))
    scores = method.forward(batch).scores
    assert_close(losses[0][0], F.softplus(scores[:, 1:] - scores[:, :1]).mean())
    assert losses[0][1] == method.optimisers


def test_users_of_unknown_group_change_nothing_but_their_own_items(make, tiny_data):
    group = tiny_data.user_groups["gender"]
    codes = group.codes.copy()
    codes[:20] = -1
    method = make(groups={"gender": Group("gender", codes, group.labels)})
    assert not method.contrasts[:, :20].any()
    assert method.contrasts[:, 20:].all()


def test_a_state_goes_on_with_the_same_steps(make):
    first, second = make(in_batch_negatives=0), make(in_batch_negatives=0)
    first.begin_stage("method")
    first.train_step(batch_of(), "method", "train", update)
    second.load_training_state(copy.deepcopy(first.training_state()))
    second.backbone.load_state_dict(first.backbone.state_dict())
    second.begin_stage("method")
    for method in (first, second):
        method.train_step(batch_of(seed=1), "method", "train", update)
    assert torch.equal(first.antidote, second.antidote)
    assert torch.equal(first.positives, second.positives)
    for own, other in zip(first.backbone.parameters(), second.backbone.parameters(), strict=True):
        assert torch.equal(own, other)


# --- Runs ---


def test_a_run_trains_twice_and_ranks_real_users_alone(tmp_path, capsys):
    result = run_main(tmp_path, **FAIR)
    assert "disparity" in capsys.readouterr().out
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [row.count('"stage": "method"') for row in rows] == [0, 0, 1, 1]
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert checkpoint["backbone"]["user.weight"].shape == (60, 8)
    unset = {name: FLAGS[name].default for name in TINY} | {"run_name": "run"}
    again = run_main(tmp_path / "again", **unset | {"mode": "evaluate", "checkpoint": str(tmp_path / "run")})
    assert again["metrics"] == result["metrics"]
    plain = run_main(tmp_path / "plain", **FAIR | PLAIN)
    assert plain["fingerprint"] == result["fingerprint"]
    first, second = (
        (folder / "run" / "metrics.jsonl").read_text().splitlines() for folder in (tmp_path, tmp_path / "plain")
    )
    assert [row.replace('"backbone"', '"method"') for row in first[:2]] == second


PLAIN = {"enable_fairness": False, "fairness_method": "fabuhs", "method_option": []}


class CutOff(Exception):
    """Ends a run as a crash does."""


@pytest.mark.parametrize(("backbone", "call"), [("bprmf", 9), ("pmf", 23)])  # the second of four epochs, the last
def test_a_run_cut_off_goes_on_to_the_same_bytes(tmp_path, monkeypatch, backbone, call):
    monkeypatch.setattr(train.Evaluator, "leakage", lambda *arguments: {})
    values = FAIR | {"backbone": backbone}
    run_main(tmp_path / "whole", **values)
    take, calls = FairUser.train_step, []

    def step(*arguments):
        calls.append(1)
        if len(calls) == call:
            raise CutOff
        return take(*arguments)

    with monkeypatch.context() as patched, pytest.raises(CutOff):
        patched.setattr(FairUser, "train_step", step)
        run_main(tmp_path / "cut", **values)
    run_main(tmp_path / "cut", **values, resume=True)
    assert result_bytes(tmp_path / "cut") == result_bytes(tmp_path / "whole")
    for name in ("recommendations.parquet", "metrics.jsonl"):
        assert (tmp_path / "cut" / "run" / name).read_bytes() == (tmp_path / "whole" / "run" / name).read_bytes()


def test_a_dry_run_tells_what_both_stages_cost(tmp_path, capsys):
    with flagsaver.flagsaver(**{**TINY, **FAIR, "dry_run": True, "output_dir": str(tmp_path)}):
        main.main(["main.py"])
    text = capsys.readouterr().out
    assert "backbone: 7 steps" in text
    assert "method: 7 steps" in text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"backbone": "lightgcn"}, "it solves matrix factorisation in closed form (bprmf, pmf)"),
        ({"backbone": "ncf"}, "it solves matrix factorisation in closed form (bprmf, pmf)"),
        ({"method_option": ["users=0"]}, "users=0.0: allowed is a share in (0, 1]"),
        ({"method_option": ["users=1.5"]}, "users=1.5: allowed is a share in (0, 1]"),
        ({"method_option": ["interactions=-1"]}, "interactions=-1: allowed is 0"),
        ({"method_option": ["interactions=51"]}, "interactions=51: allowed are the 50 items"),
        ({"method_option": ["rounds=0"]}, "rounds=0: allowed is 1 or more"),
        ({"method_option": ["ridge=0"]}, "ridge=0.0: allowed is a positive number"),
        ({"method_option": ["ridge=inf"]}, "ridge=inf: allowed is a positive number"),
        ({"method_option": ["l1=1"]}, "interactions"),
    ],
)
def test_bad_requests_end_with_one_line(tmp_path, capsys, values, words):
    assert words in refused(capsys, tmp_path, **FAIR | values)


def test_more_numbers_than_memory_bears_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fairuser, "MOST_NUMBERS", 299)
    error = refused(capsys, tmp_path, **FAIR)
    assert "6 antidote users x 50 items are 300 numbers; allowed are 299: lower users" in error


def test_many_processes_are_refused(make):
    with pytest.raises(ValueError, match="run it in one process"):
        make(processes=Processes(rank=0, world=2))
