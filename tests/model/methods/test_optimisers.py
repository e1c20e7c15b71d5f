"""Optimisers of a module: weight decay, exemptions from it, and what does not go together."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from model.methods.optimisers import make_optimisers
from tests.support.methods import identical
from tests.support.runs import refused, run_main


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))


def stepped(made, optimisers, steps=3):
    for _ in range(steps):
        for optimiser in optimisers:
            optimiser.zero_grad()
        made(torch.ones(2, 3)).square().sum().backward()
        for optimiser in optimisers:
            optimiser.step()
    return made


def test_without_weight_decay_steps_are_those_of_plain_adam():
    plain, ours = module(), module()
    stepped(plain, [torch.optim.Adam(plain.parameters(), lr=0.1, fused=True)])
    assert identical(plain, stepped(ours, make_optimisers(ours, 0.1)))


def test_weight_decay_is_added_to_the_gradient():
    plain, ours = module(), module()
    optimiser = torch.optim.Adam(plain.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        loss = plain(torch.ones(2, 3)).square().sum()
        loss = loss + 0.3 / 2 * sum(parameter.square().sum() for parameter in plain.parameters())
        loss.backward()
        optimiser.step()
    stepped(ours, make_optimisers(ours, 0.1, weight_decay=0.3))
    for own, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert_close(own, other)


def test_a_parameter_named_is_exempt():
    spared, plain, decayed = module(), module(), module()
    (optimiser,) = make_optimisers(spared, 0.1, weight_decay=0.3, exempt=["0.bias"])
    by_decay = {group["weight_decay"]: group["params"] for group in optimiser.param_groups}
    assert by_decay[0.0] == [spared[0].bias] and len(by_decay[0.3]) == 3
    for made, optimisers in (
        (spared, [optimiser]),
        (plain, make_optimisers(plain, 0.1)),
        (decayed, make_optimisers(decayed, 0.1, 0.3)),
    ):
        stepped(made, optimisers, steps=1)
    assert torch.equal(spared[0].bias, plain[0].bias) and torch.equal(spared[1].bias, decayed[1].bias)
    with pytest.raises(ValueError, match=r"cannot exempt 2\.bias; parameters are 0\.weight"):
        make_optimisers(spared, 0.1, 0.3, exempt=["2.bias"])


def test_sparse_gradients_have_no_weight_decay():
    table = nn.Embedding(5, 2, sparse=True)
    mixed = nn.ModuleList([table, nn.Linear(2, 2)])
    assert len(make_optimisers(mixed, 0.1)) == 2
    with pytest.raises(ValueError, match=r"--weight_decay=0\.1 moves every weight"):
        make_optimisers(mixed, 0.1, weight_decay=0.1)


def test_the_flag_reaches_training_and_is_refused_with_sparse_updates(tmp_path, capsys):
    error = refused(capsys, tmp_path / "refused", weight_decay=0.1, sparse_updates=True)
    assert "--weight_decay=0.1" in error and "--sparse_updates" in error
    losses = []
    for decay in (0.0, 0.5):
        run_main(tmp_path / str(decay), weight_decay=decay, epochs=1)
        checkpoint = torch.load(tmp_path / str(decay) / "run" / "checkpoint.pt", weights_only=True)
        losses.append(float(checkpoint["backbone"]["user_encoder.columns.id.weight"].norm()))
    assert losses[1] < losses[0]
