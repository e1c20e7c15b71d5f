"""The loop, by toys through the whole program: patience, dropout, stages, and phases that ask nothing."""

from __future__ import annotations

import dataclasses
import json
from typing import ClassVar

import pytest
import torch
from torch import nn

from data.protocols import PROTOCOLS
from data.protocols.base import Phase, Protocol, protocol
from data.protocols.loo import leave_one_out
from model import BACKBONES, METHODS
from model.factorisation import MatrixFactorisation
from model.methods.base import Method
from model.runs.streams import STREAMS, global_generators, stream_seeds
from tests.support.runs import run_main
from tests.support.stops import at_call, crash, outputs, terminate

BY_IDS = {"backbone": "bprmf", "embedding_dim": 8, "num_negatives": 1, "user_hidden": None, "item_hidden": None}


class Dropping(MatrixFactorisation):
    """Matrix factorisation that drops parts of its user vectors in training."""

    def __init__(self, num_users, num_items, dim):
        super().__init__(num_users, num_items, dim)
        self.dropout = nn.Dropout(0.3)

    def vectors(self, user, item):
        return self.dropout(user), item


class Noted(Method):
    """A method of two stages that notes when they begin, and what it had counted by then."""

    two_stages = True
    begun: ClassVar[list] = []
    modes: ClassVar[list] = []

    def begin_phase(self, phase, total_steps):
        self.steps = torch.zeros(())

    def begin_stage(self, stage):
        super().begin_stage(stage)
        self.begun.append((stage, int(self.steps)))
        if stage == "method":
            self.freeze_backbone()

    def train_step(self, batch, stage, name, update):
        self.steps += 1
        if stage == "backbone":
            return super().train_step(batch, stage, name, update)
        self.modes.append((self.backbone.training, self.backbone.dropout.training))
        return {"steps": self.steps.clone()}

    def stateful(self):
        return {**super().stateful(), "steps": self.steps}


@protocol()
def warmed_up(data, settings, rng, options):
    """A toy protocol: a phase that only trains, then one that is validated and tested."""
    (loo,) = leave_one_out(data, settings, rng).phases
    first = Phase("warm-up", loo.split, 2, loo.metric, 1, 2, None, ())
    second = Phase("asked", loo.split, 2, loo.metric, 1, 2, loo.valid, loo.tests)
    return Protocol("warmed_up", "a phase without tests first", settings.ks, (first, second))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(BACKBONES, "dropping", Dropping)
    monkeypatch.setitem(METHODS, "noted", Noted)
    monkeypatch.setitem(PROTOCOLS, "warmed_up", warmed_up)
    monkeypatch.setattr(Noted, "begun", [])
    monkeypatch.setattr(Noted, "modes", [])


def rows_of(folder):
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def cut_off(monkeypatch, folder, number, action=terminate, kind=Method, **values):
    """Run until training step `number` does `action`."""
    with monkeypatch.context() as patch, pytest.raises((SystemExit, Exception)):
        patch.setattr(kind, "train_step", at_call(number, action, kind.train_step))
        run_main(folder, **values)
    assert not (folder / "run" / "result.json").exists()


# --- Patience ---


def test_patience_below_the_interval_of_validations_throws_nothing_away(tmp_path):
    result = run_main(tmp_path, **BY_IDS, epochs=7, eval_every=5, patience=2)
    rows = rows_of(tmp_path)
    assert [row["epoch"] for row in rows] == list(range(1, 8))
    assert [row["epoch"] for row in rows if "valid/ndcg@5" in row] == [5, 7]
    assert result["epoch"] in (5, 7)


def test_no_epoch_is_trained_beyond_the_last_validation(tmp_path, capsys):
    # at this rate no weight changes, so that the first validation stays the best
    result = run_main(tmp_path, **BY_IDS, epochs=40, eval_every=4, patience=10, lr=1e-30)
    rows = rows_of(tmp_path)
    assert result["epoch"] == 4 and len(rows) == 16
    assert "valid/ndcg@5" in rows[-1]
    assert "for 10 epochs: stopped" in capsys.readouterr().out


def test_validations_are_compared_as_precisely_as_the_phase_says(tmp_path, monkeypatch):
    """To no digit every epoch is as good as the first, which is kept, and patience runs out."""
    epochs = {}
    for digits in (None, 0):

        @protocol()
        def rounded(data, settings, rng, options, digits=digits):
            made = leave_one_out(data, settings, rng)
            return dataclasses.replace(made, phases=(dataclasses.replace(made.phases[0], digits=digits),))

        monkeypatch.setitem(PROTOCOLS, "rounded", rounded)
        folder = tmp_path / str(digits)
        result = run_main(folder, **BY_IDS, protocol="rounded", epochs=9, patience=4, lr=0.02)
        epochs[digits] = result["epoch"], len(rows_of(folder))
        assert (result["validation"] == 0) == (digits == 0)
    assert epochs[0] == (1, 5) and epochs[None][0] > 1


# --- Random streams ---


def test_every_phase_has_streams_of_its_own_and_the_first_those_of_a_run_of_one_phase():
    seeds = [stream_seeds(3, number) for number in range(4)]
    assert seeds[0] == stream_seeds(3)
    assert len({seed for phase in seeds for seed in phase.values()}) == 4 * len(STREAMS)


def test_every_process_has_a_dropout_stream_of_its_own():
    state = torch.get_rng_state()
    cpu, drawn = torch.device("cpu"), []
    for rank in (0, 1, 0):
        (name,) = global_generators(5, cpu, rank)
        assert name == f"dropout/{rank}"
        drawn.append(torch.rand(4))
    torch.set_rng_state(state)
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])


DROPPING = {**BY_IDS, "backbone": "dropping"}


def test_dropout_is_the_seed_s_and_goes_on_where_a_run_was_cut_off(tmp_path, monkeypatch):
    run_main(tmp_path / "whole", **DROPPING)
    torch.rand(5)
    run_main(tmp_path / "again", **DROPPING)
    assert outputs(tmp_path / "again") == outputs(tmp_path / "whole")
    run_main(tmp_path / "without", **BY_IDS)
    assert rows_of(tmp_path / "without")[0]["train/loss"] != rows_of(tmp_path / "whole")[0]["train/loss"]
    # seven steps an epoch: within the first and the second
    for number in (3, 10):
        folder = tmp_path / str(number)
        cut_off(monkeypatch, folder, number, **DROPPING)
        torch.rand(5)
        run_main(folder, **DROPPING, resume=True)
        assert outputs(folder) == outputs(tmp_path / "whole")


# --- Stages ---

NOTED = {**DROPPING, "enable_fairness": True, "fairness_method": "noted"}


def test_a_stage_begins_once_and_again_after_the_state_is_loaded(tmp_path, monkeypatch):
    run_main(tmp_path / "whole", **NOTED)
    assert Noted.begun == [("backbone", 0), ("method", 14)]
    Noted.begun.clear()
    cut_off(monkeypatch, tmp_path, 17, kind=Noted, **NOTED)
    run_main(tmp_path, **NOTED, resume=True)
    assert Noted.begun == [("backbone", 0), ("method", 14), ("method", 17)]
    assert outputs(tmp_path) == outputs(tmp_path / "whole")


def test_a_frozen_backbone_stays_in_evaluation_mode_after_a_validation(tmp_path):
    run_main(tmp_path, **NOTED)
    assert Noted.modes == [(False, False)] * 14
    assert "valid/ndcg@5" in rows_of(tmp_path)[2]


# --- Phases that ask nothing ---

WARMED_UP = {**BY_IDS, "protocol": "warmed_up"}


def test_a_phase_without_tests_and_validation_only_trains(tmp_path, monkeypatch):
    result = run_main(tmp_path / "whole", **WARMED_UP)
    tested = {key.split("/")[1] for key in result["metrics"] if key.startswith("test/")}
    assert tested == {"asked"}
    rows = rows_of(tmp_path / "whole")
    assert [row["phase"] for row in rows] == ["warm-up"] * 2 + ["asked"] * 2
    assert not any(key.startswith("valid/") for row in rows[:2] for key in row)
    assert rows[2]["train/loss"] < rows[0]["train/loss"]
    for number, action in ((9, terminate), (16, terminate), (16, crash)):
        folder = tmp_path / f"{number}{action.__name__}"
        cut_off(monkeypatch, folder, number, action, **WARMED_UP)
        run_main(folder, **WARMED_UP, resume=True)
        assert outputs(folder) == outputs(tmp_path / "whole")


def test_a_last_phase_without_a_test_is_refused(tiny_phase):
    with pytest.raises(ValueError, match="phase loo is the last and has no test"):
        Protocol("toy", "", (5,), (Phase("loo", tiny_phase.split, 1, "ndcg@5", 1, 1, None, ()),))
