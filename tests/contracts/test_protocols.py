"""What every protocol of the registry must keep to: nothing that is asked is known, and the seed decides the rest."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data.protocols import PROTOCOLS
from data.protocols.base import CONTINUE, FRESH, ProtocolSettings
from model.evaluation.metric_kinds import ACCURACY
from model.evaluation.metric_table import METRICS
from model.modes import setup
from tests.support.contracts import config_of

every_protocol = pytest.mark.parametrize("name", PROTOCOLS)


@pytest.fixture(scope="module")
def runs():
    """A function: protocol and flags -> the run that it sets up, once."""
    known = {}

    def get(name, **values):
        key = name, tuple(sorted(values.items()))
        if key not in known:
            known[key] = setup.prepare(config_of(protocol=name, **values))
        return known[key]

    return get


def keys(lists, num_items):
    return lists.owner * num_items + lists.item


def asked(phase):
    """The tasks of a phase: validation where there is one, and tests."""
    return [task for task in (phase.valid, *phase.tests) if task is not None]


@every_protocol
def test_it_says_what_its_numbers_mean(name, runs):
    protocol = runs(name).protocol
    assert protocol.name == name and len(protocol.description) > 20 and "\n" not in protocol.description
    assert protocol.ks and min(protocol.ks) >= 1
    names = [phase.name for phase in protocol.phases]
    assert names and len(set(names)) == len(names)
    for phase in protocol.phases:
        tasks = [task.name for task in phase.tests]
        assert len(set(tasks)) == len(tasks)
    assert any(phase.tests for phase in protocol.phases)


@every_protocol
def test_phases_can_be_trained(name, runs):
    run, known = runs(name), {CONTINUE, FRESH}
    for phase in run.protocol.phases:
        assert min(phase.epochs, phase.every, phase.patience) >= 1
        assert phase.start in known
        known.add(phase.name)
        if phase.valid is not None:
            base, _, k = phase.metric.partition("@")
            assert METRICS[base].kind == ACCURACY and int(k) in run.protocol.ks
            assert len(phase.valid.relevant.item)
        split = phase.split
        assert (split.num_users, split.num_items) == (run.data.num_users, run.data.num_items)
        assert set(split.item_groups["popularity"].labels) == {"head", "tail"}
        assert all(len(task.relevant.item) for task in phase.tests)


@every_protocol
def test_what_is_asked_is_a_candidate_and_what_is_known_is_none(name, runs):
    for phase in runs(name).protocol.phases:
        items = phase.split.num_items
        for task in asked(phase):
            relevant, excluded = keys(task.relevant, items), keys(task.excluded, items)
            assert len(np.unique(relevant)) == len(relevant)
            assert not np.intersect1d(relevant, excluded).size
            read = phase.split.histories if task is phase.valid else phase.split.test_histories
            assert np.isin(keys(read, items), excluded).all(), "what is read may not be recommended"


@every_protocol
def test_nothing_that_is_asked_is_trained_on(name, runs):
    for phase in runs(name).protocol.phases:
        split, items = phase.split, phase.split.num_items
        train = keys(split.train, items)
        for task in asked(phase):
            assert not np.intersect1d(keys(task.relevant, items), train).size
            assert not np.intersect1d(keys(task.relevant, items), keys(split.histories, items)).size
        for task in phase.tests:
            assert not np.intersect1d(keys(task.relevant, items), keys(split.test_histories, items)).size
        np.testing.assert_array_equal(split.degree, np.bincount(split.train.item, minlength=items))


@every_protocol
def test_every_interaction_is_of_the_data_and_keeps_its_time(name, runs):
    run = runs(name)
    data, items = run.data, run.data.num_items
    known = data.user_id * items + data.item_id
    times = dict(zip(known.tolist(), data.time.tolist(), strict=True))
    for phase in run.protocol.phases:
        split = phase.split
        for lists in (split.train, split.valid, split.test, *(task.relevant for task in asked(phase))):
            assert np.isin(keys(lists, items), known).all()
        for lists in (split.train, split.histories, split.test_histories):
            assert [times[key] for key in keys(lists, items).tolist()] == lists.time.tolist()
            inner = np.diff(lists.owner) == 0
            assert (np.diff(lists.time)[inner] >= 0).all()


@every_protocol
def test_the_seed_decides_the_split(name, runs):
    first = runs(name)
    again = setup.prepare(first.config)
    assert again.fingerprint == first.fingerprint
    assert [phase.name for phase in again.protocol.phases] == [phase.name for phase in first.protocol.phases]
    assert setup.prepare(dataclasses.replace(first.config, seed=1)).fingerprint != first.fingerprint
    # settings of training do not touch it
    assert setup.prepare(dataclasses.replace(first.config, lr=0.5, epochs=3)).fingerprint == first.fingerprint


@every_protocol
def test_phases_are_as_long_as_asked(name, runs):
    config = runs(name).config
    longer = setup.prepare(dataclasses.replace(config, epochs=config.epochs + 5)).protocol
    for before, after in zip(runs(name).protocol.phases, longer.phases, strict=True):
        assert after.epochs in (before.epochs, before.epochs + 5)


@every_protocol
def test_data_in_another_order_are_split_as_soundly(name, runs):
    # files come in any order, and without times nothing may lean on them
    run = runs(name)
    order = np.random.default_rng(2).permutation(len(run.data.user_id))
    columns = {part: getattr(run.data, part)[order] for part in ("user_id", "item_id", "rating")}
    untimed = dataclasses.replace(run.data, **columns, time=None)
    config = run.config
    options = ProtocolSettings(config.warm_threshold, config.eval_k, config.epochs, config.patience)
    try:
        rules = PROTOCOLS[name]
        protocol = rules(untimed, options, np.random.default_rng(0), rules.Options())
    except ValueError as error:
        assert "time" in str(error), "a protocol that needs times says so"
        return
    for phase in protocol.phases:
        items = phase.split.num_items
        assert phase.split.train.time is None
        for task in asked(phase):
            assert not np.intersect1d(keys(task.relevant, items), keys(phase.split.train, items)).size
