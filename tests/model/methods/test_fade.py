"""FADE: its fairness loss in closed form, a whole step against a loop over rows, adaptive weights, and whole runs."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from data.options import parse_options
from model.methods.fade import FADE, MEASURES, group_loss
from model.runs.processes import Processes
from model.training.progress import Progress
from model.training.update import update
from tests.support.fade import LiteralFADE
from tests.support.methods import identical
from tests.support.runs import run_main
from tests.support.stops import CutOff, at_call, crash, outputs, terminate

LN2 = math.log(2)
ALTERNATING = np.arange(60) % 2
# every third user's group is not known
PARTLY_KNOWN = np.where(np.arange(60) % 3 == 0, -1, ALTERNATING)


@pytest.fixture
def make(made):
    """A function: backbone, options, codes and settings -> (backbone, FADE on it, a batch)."""
    return functools.partial(made, name="fade", num_negatives=4)


def spread_out(network, size=0.7, seed=3):
    """Give users and items vectors of a size at which rows differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for table in (network.user, network.item):
            table.weight.normal_(std=size, generator=generator)


# --- The fairness loss ---


def test_the_loss_of_no_gap_is_ln_2_and_its_slope_the_sigmoid():
    gaps = torch.tensor([-30.0, -2.0, -0.3, 0.0, 0.3, 2.0, 30.0, 400.0], requires_grad=True)
    losses = group_loss(gaps)
    assert losses[3].item() == pytest.approx(LN2)
    assert (losses.diff() > 0).all() and losses.isfinite().all()
    (slope,) = torch.autograd.grad(losses.sum(), gaps)
    assert_close(slope, gaps.detach().sigmoid())


def test_the_absolute_form_is_symmetric_and_its_slope_jumps_at_0():
    gaps = torch.tensor([-2.0, -1e-6, 1e-6, 2.0], requires_grad=True)
    losses = group_loss(gaps, "absolute")
    assert_close(losses, losses.flip(0))
    assert losses[1].item() == pytest.approx(LN2, abs=1e-5)
    (slope,) = torch.autograd.grad(losses.sum(), gaps)
    expected = 1 / (1 + math.exp(-2))
    assert slope.tolist() == pytest.approx([-expected, -0.5, 0.5, expected], abs=1e-5)


# --- The gap ---


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), measure=st.sampled_from(list(MEASURES)))
def test_the_gap_is_that_of_means_over_rows_and_swapped_labels_turn_its_sign(shared_made, seed, measure):
    rng = np.random.default_rng(seed)
    codes, users = rng.integers(-1, 2, 60), torch.from_numpy(rng.integers(0, 60, 12))
    scores = torch.from_numpy(rng.normal(size=(12, 5))).float()
    _, method, _ = shared_made("bprmf", [f"measure={measure}"], codes, ("a", "b"), "fade", num_negatives=4)
    gap, has_both = method.gap(scores, users)
    quality = MEASURES[measure](scores, 1, 3.0).tolist()
    rows = [
        [value for value, user in zip(quality, users.tolist(), strict=True) if codes[user] == code] for code in (0, 1)
    ]
    assert has_both.item() == float(bool(rows[0]) and bool(rows[1]))
    if has_both:
        assert gap.item() == pytest.approx(np.mean(rows[0]) - np.mean(rows[1]), abs=1e-5)
    method.side = torch.from_numpy(np.where(codes < 0, -1, 1 - codes))
    swapped, again = method.gap(scores, users)
    assert swapped.item() == pytest.approx(-gap.item(), abs=1e-6) and torch.equal(again, has_both)


def test_rows_of_unknown_users_count_on_no_side(make):
    _, method, batch = make(codes=PARTLY_KNOWN)
    scores = torch.randn(len(batch.users), 5, generator=torch.Generator().manual_seed(0))
    known = method.side[batch.users] >= 0
    assert 0 < known.sum() < len(known)
    assert_close(method.gap(scores, batch.users)[0], method.gap(scores[known], batch.users[known])[0])
    nobody = batch.users[~known]
    assert method.gap(scores[~known], nobody)[1].item() == 0


@pytest.mark.parametrize("form", ["log", "absolute"])
def test_the_gradient_reaches_positives_and_negatives_of_both_groups_alone(make, form):
    _, method, batch = make(options=[f"form={form}"], codes=PARTLY_KNOWN)
    scores = torch.randn(len(batch.users), 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gap, _ = method.gap(scores, batch.users)
    (slope,) = torch.autograd.grad(group_loss(gap, form), scores)
    side = method.side[batch.users]
    assert (slope[side >= 0] != 0).any(0).all() and not slope[side < 0].any()
    for code in (0, 1):
        assert (slope[side == code, 0] != 0).all() and (slope[side == code, 1:] != 0).any(1).all()
        # descent lowers positives of the side that is ahead, and raises those of the other
        ahead = 0 if form == "log" or gap > 0 else 1
        assert ((slope[side == code, 0] > 0) == (code == ahead)).all()


# --- A step ---


STEPS = {
    "hit": [],
    "two places": ["k=2", "temperature=1"],
    "absolute": ["form=absolute"],
    "neural_ndcg": ["measure=neural_ndcg"],
    "approx_ndcg": ["measure=approx_ndcg", "temperature=1.5"],
    "score": ["measure=score", "form=absolute"],
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_equals_a_loop_over_rows(make, name):
    options = ["weight=4", *STEPS[name]]
    network, method, batch = make(options=options, codes=PARTLY_KNOWN, weight_decay=1e-3, lr=0.01, batch_size=12)
    spread_out(network)
    literal = LiteralFADE(method)
    before = network.user.weight.detach().clone()
    for _ in range(2):
        own = method.train_step(batch, "method", "train", update)
        loss, fairness = literal.step(batch)
        assert_close(own["loss"], loss, rtol=1e-5, atol=1e-6)
        assert_close(own["fairness"], fairness, rtol=1e-4, atol=1e-6)
        assert own["both_sides"].item() == 1 and own["fairness"].item() > 0
    for table, expected in ((network.user, literal.user), (network.item, literal.item)):
        assert_close(table.weight.detach(), expected.detach(), rtol=0, atol=5e-5)
    assert (network.user.weight.detach() - before).abs().max() > 0.01


def trained(made, name, backbone="bprmf", options=(), codes=None, steps=3, **changes):
    """A backbone after some steps of a method on one batch, and what the last of them reported."""
    network, method, batch = made(backbone, options, codes, None if codes is None else ("a", "b"), name, **changes)
    torch.manual_seed(0)
    for _ in range(steps):
        values = method.train_step(batch, "method", "train", update)
    return network, method, batch, values


@pytest.mark.parametrize("code", [0, 1, -1])
@pytest.mark.parametrize("option", ["adaptive=False", "adaptive=True"])
def test_a_batch_of_one_group_has_the_ranking_loss_alone(made, code, option):
    codes = np.full(60, code)
    plain, _, _, expected = trained(made, "none")
    fair, _, _, found = trained(made, "fade", options=["weight=50", option], codes=codes)
    assert identical(plain, fair) and torch.equal(found["loss"], expected["loss"])
    assert found["fairness"].item() == 0 and found["both_sides"].item() == 0


BACKBONES = [
    ("bprmf", {}),
    ("sparsenn", {}),
    ("lightgcn", {}),
    ("ncf", {"ncf_form": "neumf"}),
    ("ncf", {"ncf_form": "ncf_bpr"}),
]


@pytest.mark.parametrize(("backbone", "changes"), BACKBONES)
def test_without_weight_it_trains_the_same_bits_as_none_and_with_it_others(made, backbone, changes):
    plain, fair, unweighted = (
        trained(made, name, backbone, options, None if name == "none" else ALTERNATING, weight_decay=1e-4, **changes)[0]
        for name, options in (("none", []), ("fade", ["weight=5"]), ("fade", ["weight=0"]))
    )
    assert identical(plain, unweighted) and not identical(plain, fair)


def test_a_large_weight_turns_the_gap_around_and_the_absolute_form_does_not(made):
    gaps = {}
    for form in ("log", "absolute"):
        options = [f"form={form}", "weight=100"]
        _, method, batch, _ = trained(made, "fade", "bprmf", options, ALTERNATING, 60, num_negatives=4, lr=0.02)
        with torch.no_grad():
            gaps[form] = method.gap(method.forward(batch).scores, batch.users)[0].item()
    assert gaps["log"] < -0.3 and abs(gaps["absolute"]) < 0.1


def test_weight_decay_moves_rows_that_no_step_read_but_exempt_biases(made):
    network, _, batch, _ = trained(made, "fade", "bprmf", [], ALTERNATING, 1, weight_decay=0.1, batch_size=8)
    fresh, _, _ = made("bprmf", name="none", weight_decay=0.1, batch_size=8)
    unread = torch.ones(60, dtype=torch.bool)
    unread[batch.users] = False
    before, after = fresh.user.weight[unread], network.user.weight[unread]
    assert len(before) > 40 and ((after.abs() < before.abs()) | (before.abs() < 2e-3)).all() and (before != after).all()

    form = {"ncf_form": "ncf_bpr", "weight_decay": 0.1, "batch_size": 8}
    network, method, batch = made("ncf", [], ALTERNATING, ("a", "b"), "fade", **form)
    biases = {name: weight for name, weight in network.named_parameters() if name in network.undecayed}
    assert biases
    with torch.no_grad():
        for weight in network.parameters():
            weight.fill_(0.5)
    method.train_step(batch, "method", "train", update)
    read = {60: set(batch.users.tolist()), network.num_items: set(batch.items.flatten().tolist())}
    for name, weight in biases.items():
        rows = [row for row in range(len(weight)) if row not in read[len(weight)]]
        assert rows and (weight[rows] == 0.5).all(), name
    tables = [weight for name, weight in network.named_parameters() if name not in biases and len(weight) == 60]
    assert tables and all((weight != 0.5).all() for weight in tables)


# --- The weight that adapts ---


def slopes(method, batch):
    """The gap, its gradient, the ranking loss's and the step's, each by all weights in one vector."""
    losses = []
    values = method.train_step(batch, "method", "train", lambda loss, *optimisers: losses.append(loss))
    weights = list(method.backbone.parameters())

    def gradient(value):
        return torch.cat([part.flatten() for part in torch.autograd.grad(value, weights, retain_graph=True)]).double()

    gap, _ = method.gap(method.forward(batch).scores, batch.users)
    ranking = method.batch_loss(method.forward(batch), batch, "method")
    return gap.item(), gradient(gap), gradient(ranking), gradient(losses[0]), values


def oriented(make, options, spread, widening):
    """FADE and a batch where the ranking loss widens the gap (or narrows it); groups swap until it does."""
    for codes in (ALTERNATING, 1 - ALTERNATING):
        network, method, batch = make(options=["adaptive=True", *options], codes=codes)
        spread(network)
        gap, of_gap, of_ranking, *_ = slopes(method, batch)
        if (of_gap @ of_ranking < 0) == widening:
            return method, batch, gap
    raise AssertionError("swapped labels turn the gap's gradient around")


def no_gap(network):
    """Vectors at which all scores are equal, and their slopes are not."""
    spread_out(network)
    with torch.no_grad():
        network.user.weight.zero_()


def test_the_adapted_step_leaves_no_gap_as_it_is(make):
    method, batch, _ = oriented(make, [], no_gap, widening=True)
    gap, of_gap, of_ranking, of_loss, values = slopes(method, batch)
    assert gap == pytest.approx(0, abs=1e-7)
    scale = (of_gap.norm() * of_ranking.norm()).item()
    assert (of_gap @ of_ranking).item() < -1e-3 * scale
    # the plain step widens the gap, this one does not move it
    assert (of_gap @ of_loss).item() == pytest.approx(0, abs=1e-5 * scale)
    weight = -2 * (of_gap @ of_ranking).item() / of_gap.square().sum().item()
    assert values["fairness"].item() == pytest.approx(weight * LN2, rel=1e-3)


def test_the_adapted_step_rests_at_its_target(make):
    network, method, batch = make(options=["adaptive=True"], codes=1 - ALTERNATING)
    spread_out(network, seed=17)
    gap, of_gap, of_ranking, of_loss, _ = slopes(method, batch)
    scale = (of_gap.norm() * of_ranking.norm()).item()
    assert gap > 0.01 and (of_gap @ of_ranking).item() < -1e-2 * scale
    # a gap above the target 0 narrows
    assert (of_gap @ of_loss).item() > 1e-5 * scale
    method.options = dataclasses.replace(method.options, target=gap)
    *_, of_loss, _ = slopes(method, batch)
    assert (of_gap @ of_loss).item() == pytest.approx(0, abs=1e-6 * scale)


def test_the_adapted_weight_is_never_below_0(make):
    method, batch, _ = oriented(make, [], no_gap, widening=False)
    _, _, of_ranking, of_loss, values = slopes(method, batch)
    assert values["fairness"].item() == 0
    assert_close(of_loss, of_ranking, rtol=1e-5, atol=1e-9)


def test_the_adapted_weight_reads_no_weight(made):
    first, second = (
        trained(made, "fade", options=["adaptive=True", f"weight={weight}"], codes=ALTERNATING)[0] for weight in (0, 9)
    )
    assert identical(first, second) and not identical(first, trained(made, "none")[0])


# --- Options and refusals ---


def test_the_weight_is_that_of_the_data_set():
    assert parse_options(FADE.Options, [], dataset="modcloth").weight == 4
    assert parse_options(FADE.Options, [], dataset="ml").weight == 0.5
    assert parse_options(FADE.Options, ["weight=1"], dataset="modcloth").weight == 1


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("weight=-1", "0 or more"),
        ("weight=inf", "0 or more"),
        ("measure=ndcg", "one of hit, neural_ndcg, approx_ndcg, score"),
        ("k=0", "1 or more"),
        ("temperature=0", "above 0"),
        ("form=square", "one of log, absolute"),
        ("target=-0.1", "0 or more"),
    ],
)
def test_an_option_out_of_range_is_an_error(assignment, words):
    with pytest.raises(ValueError, match=f"{assignment.split('=')[0]}=.*allowed is {words}"):
        parse_options(FADE.Options, [assignment])


def test_it_compares_two_groups_in_one_process(make):
    with pytest.raises(ValueError, match=r"gender has 3: name an attribute of two groups first in --user_attribute"):
        make(codes=np.arange(60) % 3)
    with pytest.raises(ValueError, match="needs two groups"):
        make(codes=np.zeros(60, dtype=np.int64), labels=("all",))
    network, method, _ = make()
    with pytest.raises(ValueError, match="run it in one process"):
        FADE(network, dataclasses.replace(method.environment, processes=Processes(rank=0, world=2)))


# --- Whole runs under its protocol ---


RUN = {
    "protocol": "fade",
    "protocol_option": ["blocks=2", "averaged=1", "full=False", "epochs=2"],
    "backbone": "bprmf",
    "enable_fairness": True,
    "fairness_method": "fade",
    "synthetic_users": 20,
    "synthetic_items": 30,
    "synthetic_interactions": 300,
    "epochs": 2,
    "batch_size": 16,
    "embedding_dim": 8,
    "eval_k": ["5"],
    **dict.fromkeys(("user_hidden", "item_hidden", "num_negatives")),
}
ADAPTIVE = {**RUN, "method_option": ["adaptive=True"], "checkpoint_every": "1"}


@pytest.mark.parametrize("action", [crash, pytest.param(terminate, marks=pytest.mark.slow)])
def test_a_run_cut_off_inside_a_period_goes_on_to_the_same_bytes(tmp_path, monkeypatch, action):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_main(whole, **ADAPTIVE)
    rows = [json.loads(line) for line in (whole / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["phase"], row["epoch"]) for row in rows] == [
        ("snapshot-0", 1), ("snapshot-0", 2), ("snapshot-1", 1), ("snapshot-1", 2),
    ]  # fmt: skip
    assert all(row["train/fairness"] >= 0 and 0 < row["train/both_sides"] < 1 for row in rows)
    assert rows[-1]["train/fairness"] > 0
    with monkeypatch.context() as patch, pytest.raises((SystemExit, CutOff)):
        # nine steps an epoch, then three
        patch.setattr(FADE, "train_step", at_call(23, action, FADE.train_step))
        run_main(cut, **ADAPTIVE)
    progress = Progress.of(torch.load(cut / "run" / "state.pt", weights_only=True), 0.0)
    assert (progress.phase, progress.epoch) == (1, 2)
    run_main(cut, **ADAPTIVE, resume=True)
    assert outputs(cut) == outputs(whole)
