"""The adversarial baseline of FADE's first release: networks, a whole step against its code, and what it serves."""

from __future__ import annotations

import copy
import dataclasses
import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from data.options import parse_options
from model.methods.fade_adversary import FADEAdversary, UserFilter, make_discriminator
from model.runs.processes import Processes
from model.training.update import update
from tests.support.fade import LiteralAdversary
from tests.support.methods import identical
from tests.support.runs import refused, run_main

ALTERNATING = np.arange(60) % 2
PARTLY_KNOWN = np.where(np.arange(60) % 3 == 0, -1, ALTERNATING)


@pytest.fixture
def make(made):
    """A function: backbone, options, codes and settings -> (backbone, the method on it, a batch)."""
    return functools.partial(made, name="fade_adversary")


def spread_out(network, method):
    """Give all weights a size at which vectors and losses differ."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for part in (network.user, network.item, method.filter.layers, method.discriminator):
            for weight in part.parameters():
                # a unit of one sign in a whole batch has a bias without a gradient, but for rounding
                weight.normal_(std=0.5 if weight.dim() > 1 else 0.02, generator=generator)


# --- The networks ---


def layers_of(network):
    return [(part.in_features, part.out_features) for part in network.modules() if isinstance(part, nn.Linear)]


def slopes_of(network):
    return [part.negative_slope for part in network.modules() if isinstance(part, nn.LeakyReLU)]


def test_sizes_slopes_and_initial_weights_are_those_of_the_release():
    torch.manual_seed(0)
    networks = UserFilter(64), make_discriminator(64, 0.3, 2)
    assert layers_of(networks[0]) == [(64, 128), (128, 64)] and slopes_of(networks[0]) == [0.01] * 2
    widths = [64, 128, 256, 128, 128, 64, 32, 2]
    assert layers_of(networks[1]) == list(pairwise(widths))
    assert slopes_of(networks[1]) == [0.2] * 6
    assert [part.share for part in networks[1] if not isinstance(part, nn.Linear | nn.LeakyReLU)] == [0.3] * 6
    for network in networks:
        linear = [part for part in network.modules() if isinstance(part, nn.Linear)]
        drawn = torch.cat([weight.detach().flatten() for part in linear for weight in (part.weight, part.bias)])
        assert float(drawn.std()) == pytest.approx(0.01, rel=0.02) and all(part.bias.any() for part in linear)
    assert layers_of(make_discriminator(9, 0, 5))[-2:] == [(9, 4), (4, 5)]
    assert layers_of(make_discriminator(1, 0, 2))[-1] == (1, 2)


def test_training_normalises_by_the_batch_and_serving_by_what_training_met():
    torch.manual_seed(0)
    network = UserFilter(4)
    for parameter in network.layers.parameters():
        nn.init.normal_(parameter)
    user = torch.randn(50, 4)
    filtered = network(user).detach()
    # LeakyReLU lies below it: columns whose units are all negative vary little
    assert_close(filtered.mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    assert float(filtered.std(0).max()) == pytest.approx(1, abs=0.05)
    norm = network.norm
    with torch.no_grad():
        served = network.serve(user)
        expected = (network.layers(user) - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        assert_close(served, expected)
        assert not torch.allclose(served, filtered)
        kept = copy.deepcopy(network.state_dict())
        # one row has no variance of its own
        assert_close(network(user[:1]), served[:1])
        assert_close(torch.cat([network.serve(row) for row in user.split(1)]), served)
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())


# --- A step ---


@pytest.mark.parametrize(("groups", "steps"), [(2, 3), (4, 1)])
def test_a_step_equals_that_of_the_released_code(make, groups, steps):
    codes = np.where(PARTLY_KNOWN < 0, -1, np.arange(60) % groups)
    options = ["dropout=0", f"discriminator_steps={steps}", "weight=2"]
    network, method, batch = make("bprmf", options, codes, tuple("abcd"[:groups]), weight_decay=1e-2, lr=0.01)
    spread_out(network, method)
    literal = LiteralAdversary(method)
    for _ in range(3):
        own = method.train_step(batch, "method", "train", update)
        ranking, met = literal.step(batch)
        assert_close(own["loss"], ranking, rtol=1e-4, atol=1e-6)
        assert_close(own["adversary"], met, rtol=1e-4, atol=1e-6)
    linear = [layer for layer in method.discriminator if isinstance(layer, nn.Linear)]
    pairs = [(network.user, literal.user), (network.item, literal.item), (method.filter.norm, literal.norm)]
    pairs += list(zip((method.filter.layers[0], method.filter.layers[2]), literal.layers, strict=True))
    pairs += list(zip(linear, literal.readers, strict=True))
    for own, other in pairs:
        for (name, weight), expected in zip(own.named_parameters(), other.parameters(), strict=True):
            assert_close(weight.detach(), expected.detach(), rtol=0, atol=3e-4, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("backbone", ["bprmf", "sparsenn", "lightgcn", "ncf"])
def test_a_step_moves_every_network_and_training_scores_what_is_filtered(make, backbone):
    changes = {"ncf_form": "neumf"} if backbone == "ncf" else {}
    network, method, batch = make(backbone, codes=ALTERNATING, **changes)
    parts = network, method.filter, method.discriminator
    before = copy.deepcopy(parts)
    values = method.train_step(batch, "method", "train", update)
    assert values["adversary"].item() == pytest.approx(np.log(2), abs=0.02)
    assert not any(identical(*pair) for pair in zip(parts, before, strict=True))
    forward = method.forward(batch)
    assert_close(network.score(forward.context, forward.user, batch.items), forward.scores)
    assert_close(forward.user, method.filter(network.encode_users(forward.context, batch.users, batch.history)))


def test_the_model_steps_once_and_then_the_discriminator_alone(make):
    _, method, batch = make(codes=ALTERNATING)
    updates = []

    def watched(loss, *optimisers):
        updates.append(optimisers)
        update(loss, *optimisers)

    method.train_step(batch, "method", "train", watched)
    assert updates == [(*method.optimisers, method.filter_optimiser)] + [(method.discriminator_optimiser,)] * 10


def test_without_weight_groups_make_no_difference_to_the_model(make):
    states = []
    for codes in (ALTERNATING, 1 - ALTERNATING):
        torch.manual_seed(0)
        network, method, batch = make(options=["weight=0", "dropout=0"], codes=codes)
        for _ in range(2):
            method.train_step(batch, "method", "train", update)
        assert method.hides() == ()
        states.append((network, method.filter))
    assert all(identical(*pair) for pair in zip(*states, strict=True))


def test_users_of_unknown_group_are_in_the_ranking_loss_alone(make):
    network, method, batch = make(options=["dropout=0"], codes=PARTLY_KNOWN)
    spread_out(network, method)
    user = torch.randn(len(batch.users), 8, generator=torch.Generator().manual_seed(0))
    known = method.codes[batch.users] >= 0
    assert 0 < known.sum() < len(known)
    expected = method.group_loss(user[known], batch.users[known])
    assert_close(method.group_loss(user, batch.users), expected)
    assert method.group_loss(user[~known], batch.users[~known]).item() == 0


def test_the_model_raises_what_the_discriminator_loses_and_its_steps_lower_it(make):
    # nothing but the adversary counts
    options = ["weight=10000", "dropout=0", "discriminator_steps=1"]
    network, method, batch = make(options=options, codes=ALTERNATING)
    spread_out(network, method)

    def loss(discriminator, vectors):
        method.discriminator, own = discriminator, method.discriminator
        value = method.group_loss(vectors, batch.users).item()
        method.discriminator = own
        return value

    for _ in range(4):
        met, seen = copy.deepcopy(method.discriminator), method.forward(batch).user.detach()
        method.train_step(batch, "method", "train", update)
        now = method.forward(batch).user.detach()
        assert loss(met, now) > loss(met, seen) > loss(method.discriminator, seen)


# --- Settings and whole runs ---


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("weight=-1", "a finite number of 0 or more"),
        ("weight=inf", "a finite number of 0 or more"),
        ("discriminator_steps=0", "1 or more"),
        ("dropout=1", r"a share in \[0, 1\)"),
    ],
)
def test_an_option_out_of_range_is_an_error(assignment, words):
    with pytest.raises(ValueError, match=f"{assignment.split('=')[0]}=.*allowed is {words}"):
        parse_options(FADEAdversary.Options, [assignment])


def test_one_group_and_several_processes_are_refused(make):
    with pytest.raises(ValueError, match="needs two groups"):
        make(codes=np.zeros(60, dtype=np.int64), labels=("all",))
    network, method, _ = make()
    with pytest.raises(ValueError, match="run it in one process"):
        FADEAdversary(network, dataclasses.replace(method.environment, processes=Processes(rank=0, world=2)))


RUN = {"enable_fairness": True, "fairness_method": "fade_adversary", "user_hidden": None, "item_hidden": None}


def test_a_whole_run_says_what_it_hides(tmp_path, capsys):
    result = run_main(tmp_path, **RUN, backbone="bprmf", embedding_dim=8, user_attribute=["age"])
    assert result["hidden_attributes"] == ["age"] and 0 < result["metrics"]["test/hr@10"] < 1
    assert "leakage asked to hide age" in " ".join(capsys.readouterr().out.split())


def test_a_history_for_every_item_of_a_row_is_refused(tmp_path, capsys):
    values = RUN | {"user_hidden": ["16"], "item_hidden": ["16"]}
    assert "leave --upstream_compat out" in refused(capsys, tmp_path, **values, upstream_compat=True)
