"""What a method saves: every kind of part comes back, and its own networks nest plainly."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from model.methods.base import Method
from model.methods.stateful import put_state, state_of
from tests.support.methods import identical


def parts(seed):
    generator = torch.Generator().manual_seed(seed)
    module = nn.Linear(2, 2)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.1)
    module(torch.randn(3, 2, generator=generator)).sum().backward()
    optimiser.step()
    parameter = nn.Parameter(torch.randn(4, generator=generator))
    return {"module": module, "optimiser": optimiser, "generator": generator, "parameter": parameter}


def test_every_kind_of_part_comes_back():
    first, second = parts(0), parts(1)
    for name, part in first.items():
        put_state(second[name], copy.deepcopy(state_of(part)))
    assert identical(first["module"], second["module"])
    assert torch.equal(first["parameter"], second["parameter"]) and second["parameter"].requires_grad
    draws = [torch.rand(3, generator=made["generator"]) for made in (first, second)]
    assert torch.equal(*draws)
    moments = [made["optimiser"].state_dict()["state"][0]["exp_avg"] for made in (first, second)]
    assert torch.equal(*moments)


class Layered(Method):
    """A method with two networks and a random stream."""

    def __init__(self, seed):
        torch.manual_seed(seed)
        self.optimisers = ()
        self.encoders = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 3)])
        self.aggregator = nn.Linear(2, 1)
        self.generator = torch.Generator().manual_seed(seed)
        self.level = seed

    def networks(self):
        return {"encoders": self.encoders, "aggregator": self.aggregator}

    def stateful(self):
        return super().stateful() | {"generator": self.generator}

    def training_state(self):
        return super().training_state() | {"level": self.level}

    def load_training_state(self, state):
        super().load_training_state(state)
        self.level = state["level"]


def test_networks_and_parts_are_saved_by_name_and_come_back():
    first, second = Layered(0), Layered(1)
    torch.rand(5, generator=first.generator)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.load_training_state(copy.deepcopy(first.training_state()))
    assert first.state_dict().keys() == {"encoders", "aggregator"}
    assert all(torch.is_tensor(value) for state in first.state_dict().values() for value in state.values())
    assert identical(first.encoders, second.encoders) and identical(first.aggregator, second.aggregator)
    assert torch.equal(torch.rand(3, generator=first.generator), torch.rand(3, generator=second.generator))
    assert second.level == 0


def test_a_state_of_other_networks_is_refused():
    with pytest.raises(ValueError, match=r"holds \['encoders'\], and this method has \['aggregator', 'encoders'\]"):
        Layered(0).load_state_dict({"encoders": {}})


def test_a_method_of_two_stages_reads_the_backbone_s_checkpoint():
    config = SimpleNamespace()
    assert "backbone_checkpoint" in Layered.unread(config) and "adversarial_ramp" in Layered.unread(config)
    assert "backbone_checkpoint" not in type("Late", (Layered,), {"two_stages": True}).unread(config)
