"""A protocol is one function and one entry: a toy in time order with options of its own, by the whole program."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from absl.testing import flagsaver

import main
from data.dataloader import BatchSampler
from data.protocols.base import PER_PHASE
from model.evaluation.evaluator import Evaluator
from model.modes.setup import prepare
from tests.support.runs import TINY, refused, run_main
from tests.support.stops import CutOff, at_call, crash, outputs, terminate
from tests.support.time_order import MADE, RUN, Shaken, register


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    register(monkeypatch)


@pytest.fixture
def watched(monkeypatch):
    """What every batch was made of: the sampler's number (from 0), places, batch and the negatives' stream."""
    seen, samplers, sample = [], [], BatchSampler.sample

    def noted(self, places, negative_rng, history_rng):
        batch = sample(self, places, negative_rng, history_rng)
        if self not in samplers:
            samplers.append(self)
        seen.append((samplers.index(self), places.tolist(), batch, negative_rng.initial_seed()))
        return batch

    monkeypatch.setattr(BatchSampler, "sample", noted)
    return seen


def visits(watched, number):
    return [entry[1:] for entry in watched if entry[0] == number]


def test_every_phase_trains_its_newest_rows_in_time_order(tmp_path, watched):
    metrics = run_main(tmp_path, **RUN)["metrics"]
    phases = MADE[-1].phases
    assert [phase.num_rows for phase in phases[1:]] == [len(MADE[-1].phases[1].train_rows)] * 2
    for number, phase in enumerate(phases):
        train, rows = phase.split.train, [batch.rows.tolist() for _, batch, _ in visits(watched, number)]
        epochs = len(rows) // 2
        assert rows[:epochs] == rows[epochs:] or phase.order == "shuffled blocks"
        visited = [row for own in rows[:epochs] for row in own]
        if number == 0:
            assert sorted(visited) == list(range(len(train.item)))
            continue
        assert visited == phase.train_rows.tolist() and epochs == 2
        times = train.time[visited]
        assert (np.diff(times) >= 0).all()
        earlier = phases[number - 1].split.train
        assert len(train.item) == len(earlier.item) + phase.num_rows, "the rest is known and not trained again"
        assert times[0] >= earlier.time.max()
    levels = {tuple(key.split("/")[1:3]) for key in metrics if key.startswith("test/") and key.endswith("/ndcg@5")}
    assert levels == {("first", "lists"), ("second", "lists"), ("second", "drawn")}
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["phase"] for row in rows] == ["warm-up"] * 2 + ["first"] * 2 + ["second"] * 2
    assert ["valid/ndcg@5" in row for row in rows] == [False] * 2 + [True] * 4


def test_histories_are_the_items_last_read_and_negatives_are_never_touched(tmp_path, watched):
    run_main(tmp_path, **RUN)
    last = MADE[-1].phases[-1]
    touched = [set(last.barred[user].tolist()) for user in range(last.split.num_users)]
    for number, phase in enumerate(MADE[-1].phases):
        train, first = phase.split.train, {}
        for _, batch, _ in visits(watched, number):
            assert batch.history.items.shape[1] == 4
            rows = zip(batch.rows.tolist(), batch.users.tolist(), *vars(batch.history).values(), strict=True)
            for row, user, items, mask in rows:
                assert items[mask].tolist() == train.item[max(train.indptr[user], row - 4) : row].tolist()
            for row, user, drawn in zip(batch.rows.tolist(), batch.users.tolist(), batch.negatives, strict=True):
                assert not touched[user] & set(drawn.tolist())
                if phase.negatives == PER_PHASE:
                    assert first.setdefault(row, drawn.tolist()) == drawn.tolist(), "drawn once"


def test_given_and_drawn_candidates_are_what_is_ranked(tmp_path, monkeypatch):
    ranked, rank = {}, Evaluator.rank

    def noted(self, task, *arguments, **options):
        ranking = rank(self, task, *arguments, **options)
        ranked.setdefault(task.name, []).append((task, ranking))
        return ranking

    monkeypatch.setattr(Evaluator, "rank", noted)
    run_main(tmp_path, **RUN)
    assert len(ranked["lists"]) == 2 and len(ranked["drawn"]) == 1
    for task, ranking in ranked["lists"]:
        for user, count, top in zip(ranking.users, ranking.candidates, ranking.topk, strict=True):
            allowed = (set(task.given[user]) | set(task.relevant[user])) - set(task.excluded[user])
            assert count == len(allowed) and set(top[top >= 0]) <= allowed
    ((task, ranking),) = ranked["drawn"]
    assert np.array_equal(ranking.candidates, 9 + task.relevant.lengths[ranking.users])


@pytest.mark.parametrize("order", ["shuffled", "shuffled blocks"])
def test_phases_of_one_size_have_streams_of_their_own(tmp_path, watched, order):
    run_main(tmp_path, **{**RUN, "protocol_option": [f"order={order}"], "batch_size": 20})
    first, second = visits(watched, 1), visits(watched, 2)
    assert len(first) == len(second)
    assert [places for places, *_ in first] != [places for places, *_ in second]
    assert {seed for *_, seed in first}.isdisjoint(seed for *_, seed in second)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder above a finished run."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        run_main(folder, **RUN)
    return folder


# steps: 3 an epoch of the first phase, 2 of the others, 2 epochs each
@pytest.mark.parametrize(
    "number", [8, *(pytest.param(number, marks=pytest.mark.slow) for number in (2, 5, 10, 12, 14))]
)
@pytest.mark.parametrize("action", [terminate, pytest.param(crash, marks=pytest.mark.slow)])
def test_a_run_cut_off_anywhere_goes_on_to_the_same_bytes(tmp_path, monkeypatch, whole, number, action):
    with monkeypatch.context() as patch, pytest.raises((SystemExit, CutOff)):
        patch.setattr(Shaken, "train_step", at_call(number, action, Shaken.train_step))
        run_main(tmp_path, **RUN)
    assert not (tmp_path / "run" / "result.json").exists()
    run_main(tmp_path, **RUN, resume=True)
    assert outputs(tmp_path) == outputs(whole)


def test_options_reach_the_protocol_and_presets_fill_what_is_open(tmp_path):
    result = run_main(tmp_path, **{**RUN, "protocol_option": ["warm=0.2", "drawn=3"]})
    assert len(MADE[-1].phases[0].split.train.item) == 180
    assert MADE[-1].ks == (5, 10) and MADE[-1].phases[-1].tests[1].candidates == 3
    assert json.loads((tmp_path / "run" / "config.json").read_text())["protocol_option"] == ["warm=0.2", "drawn=3"]
    assert {"test/second/drawn/ndcg@10", "test/first/lists/ndcg@5"} <= set(result["metrics"])


def test_the_fingerprint_is_of_what_is_asked_alone():
    def run_of(order):
        with flagsaver.flagsaver(**{**TINY, **RUN, "protocol_option": [f"order={order}"]}):
            return prepare(main.settings_from_flags().config())

    def with_phases(run, phases):
        return replace(run, protocol=replace(run.protocol, phases=phases)).fingerprint

    run, other = run_of("blocks"), run_of("shuffled")
    warm, first, second = run.protocol.phases
    assert run.fingerprint == other.fingerprint and run.protocol.description == other.protocol.description
    assert "  training: new batches in order: blocks" in run.data_lines()
    assert run.fingerprint == with_phases(run, (first, second)) == with_phases(run, (first, warm, second))
    assert len({run.fingerprint, with_phases(run, (second,)), with_phases(run, (second, first))}) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol_option": ["cold=1"]}, "--protocol_option=cold=1: allowed is name=value with name one of drawn, "),
        ({"protocol_option": ["warm=2"]}, "--protocol_option=warm=2.0: allowed is a share between 0 and 1"),
        ({"protocol_option": ["drawn=few"]}, "--protocol_option=drawn=few: 'few' is not of the form of the default 12"),
        ({"protocol_option": ["order=sorted"]}, "order is 'sorted'; allowed is one of shuffled, blocks, "),
        ({"eval_negatives": 5}, "--eval_negatives=5 has no effect with --protocol=in_time_order; leave it out"),
        ({"protocol": "loo"}, "--protocol_option=drawn=9: there are no options"),
        ({"protocol": "fda", "protocol_option": [], "eval_negatives": 5}, "has no effect with --protocol=fda"),
    ],
)
def test_what_a_protocol_does_not_know_is_one_line(tmp_path, capsys, changes, words):
    assert words in refused(capsys, tmp_path, **{**RUN, **changes})
