"""The state of a training: what a later phase starts from stays as it was kept."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from data.protocols.base import FRESH
from model.runs.errors import NotFiniteError
from model.runs.processes import ALONE
from model.training.progress import Progress
from model.training.state import Training
from model.training.update import update

CONTINUE = SimpleNamespace(name="last", start="continue")


class Momentum:
    """A method with an optimiser that remembers, and a tensor of its own."""

    def __init__(self, backbone):
        self.level = torch.zeros(2)
        self.optimiser = torch.optim.Adam(backbone.parameters(), lr=0.1)

    def state_dict(self):
        return {"level": self.level}

    def load_state_dict(self, state):
        self.level.copy_(state["level"])

    def training_state(self):
        return {"optimisers": [self.optimiser.state_dict()]}

    def load_training_state(self, state):
        self.optimiser.load_state_dict(state["optimisers"][0])


def make_training(starts=()):
    torch.manual_seed(0)
    backbone = nn.Linear(3, 1)
    return Training(backbone, Momentum(backbone), Progress(), ALONE, frozenset(starts))


def step(training, count=3):
    for _ in range(count):
        update(training.backbone(torch.tensor([[1.0, -2.0, 0.5]])).square().sum(), training.method.optimiser)
        training.method.level += 1


def held(training):
    """What a phase ends with: weights, what the method keeps, moments of the optimiser."""
    return copy.deepcopy(
        [training.backbone.state_dict(), training.method.state_dict(), training.method.training_state()]
    )


def assert_same(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def assert_differ(first, second):
    with pytest.raises(AssertionError):
        assert_same(first, second)


def begin(training, number, start, name="phase"):
    training.progress.phase = number
    training.begin_phase(SimpleNamespace(name=name, start=start), {}, None)


def test_a_phase_may_start_from_the_beginning_however_far_others_have_trained():
    training = make_training({FRESH})
    begin(training, 0, "continue")
    before = held(training)
    for number in (1, 2):
        step(training)
        assert_differ(held(training), before)
        begin(training, number, FRESH)
        assert_same(held(training), before)


def test_two_phases_may_start_from_what_an_earlier_one_ended_with():
    training = make_training({"first"})
    begin(training, 0, "continue", "first")
    step(training)
    training.end_phase(SimpleNamespace(name="first"))
    ended = held(training)
    for number in (1, 2, 3):
        step(training)
        training.end_phase(SimpleNamespace(name="another"))
        assert_differ(held(training), ended)
        begin(training, number, "first")
        assert_same(held(training), ended)


def test_a_phase_goes_on_from_the_one_before():
    training = make_training({FRESH})
    begin(training, 0, "continue")
    step(training)
    ended = held(training)
    begin(training, 1, "continue")
    assert_same(held(training), ended)


def test_only_what_a_later_phase_starts_from_is_kept():
    training = make_training({"second"})
    begin(training, 0, "continue")
    for name in ("first", "second"):
        training.end_phase(SimpleNamespace(name=name))
    assert set(training.kept) == {"second"}


def test_what_is_kept_comes_back_with_a_saved_state():
    training = make_training({"first"})
    begin(training, 0, "continue")
    step(training)
    training.end_phase(SimpleNamespace(name="first"))
    ended = held(training)
    step(training)
    now, saved = held(training), copy.deepcopy(training.state())
    other = make_training({"first"})
    begin(other, 0, "continue")
    other.begin_phase(CONTINUE, {}, saved)
    assert_same(held(other), now)
    # going on changes neither what was saved nor what is kept
    step(other)
    assert_same(saved["training"], now[2])
    begin(other, 2, "first")
    assert_same(held(other), ended)


def test_random_streams_go_on_where_they_were():
    training, other = make_training(), make_training()
    for each, seed in ((training, 1), (other, 2)):
        each.begin_phase(CONTINUE, {"order": torch.Generator().manual_seed(seed)}, None)
    torch.rand(3, generator=training.generators["order"])
    other.set_generator_states(training.generator_states())
    drawn = [torch.rand(4, generator=each.generators["order"]) for each in (training, other)]
    assert torch.equal(*drawn)


def test_numbers_that_are_not_finite_are_named():
    training = make_training()
    training.check_finite()
    training.progress.totals = {"loss": torch.tensor(float("nan"))}
    with pytest.raises(NotFiniteError, match="mean of loss"):
        training.check_finite()
    training.progress.totals = {}
    training.method.level[1] = float("inf")
    with pytest.raises(NotFiniteError, match="level"):
        training.check_finite()
    training.method.level.zero_()
    with torch.no_grad():
        training.backbone.bias.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="bias"):
        training.check_finite()
