"""A run that is cut off anywhere goes on to the same results, byte for byte."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import random
import signal
import time

import pytest
import torch
from absl.testing import flagsaver

import main
from model import METHODS
from model.modes import train
from model.runs.setting import saving_interval
from model.training.progress import Progress
from tests.support.runs import TINY, refused, run_main
from tests.support.stops import FAIR, CutOff, at_call, crash, outputs, terminate

KINDS = {
    "none": {"synthesis_type": "none", "user_hidden": None, "item_hidden": None},
    "mean": {"synthesis_type": "mean", **FAIR, "epochs": 3},
    "attention": {"synthesis_type": "attention", **FAIR},
    "gru": {"synthesis_type": "gru", "upstream_compat": True, "num_negatives": 1, "sample_size": 3},
    "fda": {
        "backbone": "gccf",
        "user_hidden": None,
        "item_hidden": None,
        "enable_fairness": True,
        "fairness_method": "fda",
        "method_option": ["warmup_epochs=1", "noise_lr=0.05"],
        "epochs": 3,
    },
}
# updates of a step: the discriminators' two and the joint one
UPDATES = {"none": 1, "mean": 3, "attention": 3, "gru": 1, "fda": 2}
STEPS = 7


KNOWN = {}


@pytest.fixture
def whole(tmp_path_factory):
    """A function: kind of run -> the result bytes of a run that nothing cut off."""

    def result(kind):
        if kind not in KNOWN:
            folder = tmp_path_factory.mktemp(kind)
            run_main(folder, **KINDS[kind])
            KNOWN[kind] = outputs(folder)
        return KNOWN[kind]

    return result


def cut_off(monkeypatch, folder, kind, owner, name, number, action, **values):
    """Run until call `number` of `owner.name` does `action`; give how the run ended."""
    with monkeypatch.context() as patch, pytest.raises((CutOff, SystemExit)) as caught:
        patch.setattr(owner, name, at_call(number, action, getattr(owner, name)))
        run_main(folder, **{**KINDS[kind], **values})
    return caught.value


@pytest.mark.parametrize(
    "kind", [kind if kind in ("none", "gru") else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
@pytest.mark.parametrize("action", [pytest.param(crash, marks=pytest.mark.slow), terminate])
def test_a_run_cut_off_at_a_step_goes_on_to_the_same_bytes(tmp_path, monkeypatch, whole, kind, action):
    number = random.Random(f"{kind} {action.__name__}").randrange(1, 2 * STEPS * UPDATES[kind])
    ended = cut_off(monkeypatch, tmp_path, kind, train, "update", number, action)
    assert not (tmp_path / "run" / "result.json").exists()
    if action is terminate:
        assert ended.code == 128 + signal.SIGTERM
        progress = Progress.of(torch.load(tmp_path / "run" / "state.pt", weights_only=True), 0.0)
        # the step in hand is finished, and nothing after it; several passes count steps of their own
        assert kind == "fda" or (progress.epoch - 1) * STEPS + progress.step == (number - 1) // UPDATES[kind] + 1
    run_main(tmp_path, **KINDS[kind], resume=True)
    assert outputs(tmp_path) == whole(kind)
    assert not list((tmp_path / "run").glob("state.pt")) and not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize(
    ("kind", "owner", "name", "number", "action"),
    [
        # validation of the first epoch and of the second; the test; in each the network may have drawn
        ("gru", train.Evaluator, "rank_scores", 1, terminate),
        pytest.param("mean", train.Evaluator, "rank_scores", 2, crash, marks=pytest.mark.slow),
        ("mean", train.Evaluator, "rank_scores", 2, terminate),
        pytest.param("gru", train.Evaluator, "rank_scores", 5, terminate, marks=pytest.mark.slow),
        ("none", train.Evaluator, "leakage", 1, crash),
        # while a state, a checkpoint or the results are written
        pytest.param("mean", torch, "save", 1, crash, marks=pytest.mark.slow),
        pytest.param("mean", torch, "save", 2, crash, marks=pytest.mark.slow),
        ("mean", torch, "save", 4, terminate),
        ("none", os, "replace", 3, crash),
        pytest.param("none", train, "append_jsonl", 2, terminate, marks=pytest.mark.slow),
        ("none", train, "write_results", 1, crash),
    ],
)
def test_a_run_cut_off_elsewhere_goes_on_to_the_same_bytes(
    tmp_path, monkeypatch, whole, kind, owner, name, number, action
):
    cut_off(monkeypatch, tmp_path, kind, owner, name, number, action)
    run_main(tmp_path, **KINDS[kind], resume=True)
    assert outputs(tmp_path) == whole(kind)


def test_a_run_may_be_cut_off_many_times(tmp_path, monkeypatch, whole):
    for number in (5, 1, 2, 11):
        cut_off(monkeypatch, tmp_path, "mean", train, "update", number, terminate, resume=True)
    run_main(tmp_path, **KINDS["mean"], resume=True)
    assert outputs(tmp_path) == whole("mean")


def test_a_state_is_tensors_and_plain_values(tmp_path, monkeypatch):
    cut_off(monkeypatch, tmp_path, "mean", train, "update", 3 * STEPS + 2, terminate)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    progress = json.loads(state["progress"])
    assert (progress["epoch"], progress["step"]) == (2, 1)
    assert [row["epoch"] for row in progress["rows"]] == [1]
    assert progress["seconds"]["train"] > 0


def test_states_may_be_further_apart(tmp_path, monkeypatch, whole):
    cut_off(monkeypatch, tmp_path, "mean", train, "update", 2 * 3 * STEPS + 2, crash, checkpoint_every="2")
    assert Progress.of(torch.load(tmp_path / "run" / "state.pt", weights_only=True), 0.0).epoch == 3
    # how often states are written may change
    run_main(tmp_path, **KINDS["mean"], resume=True, checkpoint_every="1")
    assert outputs(tmp_path) == whole("mean")
    cut_off(monkeypatch, tmp_path / "late", "mean", train, "update", 2 * 3 * STEPS, crash, checkpoint_every="2")
    assert not (tmp_path / "late" / "run" / "state.pt").exists()


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("1", (1, None)),
        ("20", (20, None)),
        ("10min", (None, 10.0)),
        ("0.01min", (None, 0.01)),
        ("1.5min", (None, 1.5)),
    ],
)
def test_an_interval_of_states_is_epochs_or_minutes(text, interval):
    assert saving_interval(text) == interval


@pytest.mark.parametrize(
    "text", ["0", "0min", "0.0min", "-1", "1.5", "", "min", "10 min", "10m", "10s", "1e3min", "nan", "infmin", ".5min"]
)
def test_another_interval_of_states_is_refused(tmp_path, capsys, text):
    assert f"--checkpoint_every={text}: allowed is" in refused(capsys, tmp_path, checkpoint_every=text)


@pytest.mark.parametrize(
    "kind", ["mean", "gru", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("none", "attention"))]
)
def test_states_by_the_clock_are_written_within_an_epoch_and_go_on_to_the_same_bytes(
    tmp_path, monkeypatch, whole, kind
):
    # the clock runs a second a look, and every step looks: a state each third step and no other
    ticks = itertools.count()
    monkeypatch.setattr(train.time, "monotonic", lambda: float(next(ticks)))
    # in the fifth step: the last state is that of the third
    cut_off(monkeypatch, tmp_path, kind, train, "update", 4 * UPDATES[kind] + 1, crash, checkpoint_every="0.05min")
    progress = Progress.of(torch.load(tmp_path / "run" / "state.pt", weights_only=True), 0.0)
    assert (progress.epoch, progress.step) == (1, 3)
    cut_off(monkeypatch, tmp_path, kind, train, "update", 2 * UPDATES[kind], crash, resume=True)
    run_main(tmp_path, **KINDS[kind], resume=True, checkpoint_every="0.05min")
    assert outputs(tmp_path) == whole(kind)


def test_a_state_after_the_last_step_of_an_epoch_goes_on_with_its_validation(tmp_path, monkeypatch, whole):
    every = {"checkpoint_every": "0.00001min"}
    cut_off(monkeypatch, tmp_path, "gru", train.Evaluator, "rank_scores", 1, crash, **every)
    progress = Progress.of(torch.load(tmp_path / "run" / "state.pt", weights_only=True), 0.0)
    assert (progress.epoch, progress.turn, progress.step) == (1, 0, STEPS)
    run_main(tmp_path, **KINDS["gru"], resume=True, **every)
    assert outputs(tmp_path) == whole("gru")


def test_a_signal_while_the_evaluator_puts_the_network_s_stream_back_does_no_harm(tmp_path, monkeypatch, whole):
    put_back = staticmethod(at_call(1, terminate, train.Evaluator._put_back))
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(train.Evaluator, "_put_back", put_back)
        run_main(tmp_path, **KINDS["gru"])
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert json.loads(state["progress"])["turn"] == 1
    run_main(tmp_path, **KINDS["gru"], resume=True)
    assert outputs(tmp_path) == whole("gru")


def test_the_checkpoint_of_a_resumed_run_holds_what_was_selected(tmp_path, monkeypatch):
    cut_off(monkeypatch, tmp_path, "none", train, "update", STEPS + 3, terminate)
    path = tmp_path / "run" / "checkpoint.pt"
    # such as a later epoch left that other rounding does not select again
    content = torch.load(path, weights_only=True)
    torch.save({**content, "epoch": 9, "backbone": {}}, path)
    monkeypatch.setattr(train.Selection, "offer", lambda *arguments: False)
    result = run_main(tmp_path, **KINDS["none"], resume=True)
    kept = torch.load(path, weights_only=True)
    assert kept["epoch"] == result["epoch"] == 1 and kept["validation"] == result["validation"]
    assert kept["backbone"].keys() == content["backbone"].keys()
    assert all(torch.equal(kept["backbone"][name], value) for name, value in content["backbone"].items())


def test_time_adds_up_over_resumptions(tmp_path, monkeypatch):
    def cost():
        state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
        return json.loads(state["progress"])["seconds"]

    cut_off(monkeypatch, tmp_path, "none", train, "update", 4, terminate)
    first = cost()
    # in the second process an hour passes between any two looks at the clock
    with monkeypatch.context() as patch:
        clock, hours = time.perf_counter, itertools.count()
        patch.setattr(time, "perf_counter", lambda: clock() + 3600 * next(hours))
        cut_off(monkeypatch, tmp_path, "none", train, "update", 2, terminate, resume=True)
    second = cost()
    assert first["read"] > 0 and first["train"] > 0 and first["test"] == 0
    assert second["read"] >= first["read"] + 3600 and second["train"] >= first["train"] + 3600
    # what a killed process has done since its last state counts for nothing
    cut_off(monkeypatch, tmp_path, "none", train, "update", 2, crash, resume=True)
    run_main(tmp_path, **KINDS["none"], resume=True)
    seconds = json.loads((tmp_path / "run" / "cost.json").read_text())["seconds"]
    assert seconds["train"] > second["train"] and seconds["test"] > 0 and seconds["read"] > second["read"]
    assert (
        sum(second.values())
        < seconds["total"]
        == pytest.approx(sum(value for name, value in seconds.items() if name != "total"))
    )


def test_a_phase_of_two_stages_and_two_passes_goes_on_too(tmp_path, monkeypatch):
    monkeypatch.setattr(METHODS["none"], "stages", lambda self: ("first", "second"))
    monkeypatch.setattr(METHODS["none"], "passes", lambda self, stage, epoch: ("one", "two"))
    run_main(tmp_path / "whole", **KINDS["none"], epochs=1)
    # second pass of the first stage, its end, second stage
    for number in (STEPS + 3, 2 * STEPS, 3 * STEPS + 2):
        folder = tmp_path / str(number)
        cut_off(monkeypatch, folder, "none", train, "update", number, terminate, epochs=1)
        run_main(folder, **KINDS["none"], epochs=1, resume=True)
        assert outputs(folder) == outputs(tmp_path / "whole")


def test_resume_without_a_state_begins(tmp_path, monkeypatch, whole):
    run_main(tmp_path / "new", **KINDS["none"], resume=True)
    assert outputs(tmp_path / "new") == whole("none")
    cut_off(monkeypatch, tmp_path, "none", train, "update", 3, crash)
    assert not (tmp_path / "run" / "state.pt").exists()
    assert "--resume" in refused_like(tmp_path, "none")
    run_main(tmp_path, **KINDS["none"], resume=True)
    assert outputs(tmp_path) == whole("none")


def test_a_finished_run_says_so_and_stays(tmp_path, capsys):
    run_main(tmp_path, **KINDS["none"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    capsys.readouterr()
    run_main(tmp_path, **KINDS["none"], resume=True)
    assert "holds a finished run" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def refused_like(folder, kind, **values):
    """Run `main`, which must end with exit code 2; give its one line."""
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        error = []
        with flagsaver.flagsaver(output_dir=str(folder), **{**TINY, **KINDS[kind], **values}):
            try:
                train.execute(main.settings_from_flags().config(), time.perf_counter())
            except ValueError as refusal:
                error.append(str(refusal))
    assert len(error) == 1
    return error[0]


def test_other_settings_or_data_are_refused_with_the_difference(tmp_path, monkeypatch):
    cut_off(monkeypatch, tmp_path, "mean", train, "update", 4, terminate)
    state = (tmp_path / "run" / "state.pt").read_bytes()
    error = refused_like(tmp_path, "mean", resume=True, lr=0.5, seed=1)
    assert "--lr was 0.001, is 0.5" in error and "--seed was 0, is 1" in error and "fingerprint" in error
    assert "--resume" not in error.split("cannot resume")[1].split(";")[0]
    assert "already holds a run" in refused_like(tmp_path, "mean")
    assert (tmp_path / "run" / "state.pt").read_bytes() == state
    content = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    torch.save({**content, "device": "cuda"}, tmp_path / "run" / "state.pt")
    assert "device was cuda, is cpu" in refused_like(tmp_path, "mean", resume=True)
    torch.save({**content, "format": 0}, tmp_path / "run" / "state.pt")
    assert "state format 0, this version reads" in refused_like(tmp_path, "mean", resume=True)
    (tmp_path / "run" / "state.pt").write_bytes(state[:1000])
    assert "delete it" in refused_like(tmp_path, "mean", resume=True)


def test_a_setting_newer_than_the_state_had_its_default(tmp_path, monkeypatch, whole):
    cut_off(monkeypatch, tmp_path, "none", train, "update", 4, terminate)
    path = tmp_path / "run" / "state.pt"
    content = torch.load(path, weights_only=True)
    settings = json.loads(content["config"])
    torch.save({**content, "config": json.dumps({**settings, "warmth": 1})}, path)
    assert "cannot resume" in (error := refused_like(tmp_path, "none", resume=True)) and "warmth" in error
    del settings["weight_decay"], settings["lr"]
    torch.save({**content, "config": json.dumps(settings)}, path)
    assert "--weight_decay was 0.0, is 0.1" in refused_like(tmp_path, "none", resume=True, weight_decay=0.1)
    run_main(tmp_path, **KINDS["none"], resume=True)
    assert outputs(tmp_path) == whole("none")


def test_one_folder_serves_one_process_at_a_time(tmp_path, monkeypatch):
    cut_off(monkeypatch, tmp_path, "none", train, "update", 4, terminate)
    with open(tmp_path / "run" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "in use by another process" in refused_like(tmp_path, "none", resume=True)
    run_main(tmp_path, **KINDS["none"], resume=True)


def test_the_tracker_goes_on_with_its_run_and_learns_how_each_part_ended(tmp_path, monkeypatch):
    started, ended = [], []

    class FakeTracker:
        @classmethod
        def of(cls, config, directory, run_id, active):
            started.append(run_id)
            return cls()

        id = "abc"

        def log(self, row, step):
            pass

        def finish(self, *arguments, exit_code=0):
            ended.append(exit_code)

    monkeypatch.setattr(train, "Tracker", FakeTracker)
    cut_off(monkeypatch, tmp_path, "none", train, "update", 4, terminate)
    cut_off(monkeypatch, tmp_path, "none", train, "update", 2, crash, resume=True)
    run_main(tmp_path, **KINDS["none"], resume=True)
    assert started == [None, "abc", "abc"] and ended == [128 + signal.SIGTERM, 1, 0]
