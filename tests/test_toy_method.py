"""A method is one file and one entry: a toy of two stages, several controls and own state, by the whole program."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from absl.testing import flagsaver
from torch import nn

import main
from data.messages import WIDTH
from data.protocols import PROTOCOLS
from data.protocols.base import FRESH, Phase, Protocol, Task, protocol
from data.protocols.loo import leave_one_out
from data.structs import ItemLists
from model import BACKBONES, METHODS
from model.comparison import statistics
from model.evaluation.keys import split_key
from model.factorisation import MatrixFactorisation
from model.methods.base import Method, Schedule
from model.modes import compare as compare_mode
from model.modes import seeds, train
from model.training.progress import Progress
from tests.support.light import light_runs
from tests.support.pictures import blank_pictures
from tests.support.runs import (
    TINY,
    recommended,
    refused,
    result_bytes,
    run_main,
)

OUTPUTS = ("recommendations.parquet", "ranks.parquet", "items.parquet", "per_user.parquet", "metrics.jsonl")


class Shift(Method):
    """A backbone, then a small trained shift of its frozen user vectors that can be served at several strengths."""

    two_stages = True

    @dataclass(frozen=True)
    class Options:
        """`strength` is how much of the shift the strong control takes, `small` the batches of the second stage."""

        strength: float = 2.0
        small: int = 64

    def __init__(self, backbone, environment):
        super().__init__(backbone, environment)
        self.generator = torch.Generator().manual_seed(environment.seeds["noise"])
        linear = nn.Linear(backbone.vector_width, backbone.vector_width)
        with torch.no_grad():
            linear.weight.normal_(std=0.3, generator=self.generator)
            linear.bias.zero_()
        self.layer = nn.Sequential(linear, nn.Dropout(0.1))
        self.optimiser = torch.optim.Adam(self.layer.parameters(), lr=0.01)
        self.begun, self.strengths = [], {"none": 0.0, "half": 0.5, "strong": self.options.strength}

    def schedule(self, stage, phase):
        if stage == "backbone":
            return super().schedule(stage, phase)
        return Schedule(self.options.small, 3, 2, 10)

    def begin_stage(self, stage):
        super().begin_stage(stage)
        if stage == "method":
            self.freeze_backbone()

    def begin_epoch(self, stage, epoch):
        self.begun.append((stage, epoch))

    def passes(self, stage, epoch):
        return ("train",) if stage == "backbone" else ("shift", "shrink")

    def train_step(self, batch, stage, name, update):
        if stage == "backbone":
            return super().train_step(batch, stage, name, update)
        if name == "shrink":
            weight = self.layer[0].weight
            update(0.01 * weight.square().sum(), self.optimiser)
            return {"size": weight.detach().square().mean()}
        forward = self.forward(batch)
        # a draw that only an exact resume repeats
        noise = torch.randn(forward.user.shape, generator=self.generator)
        loss = (self.layer(forward.user) - 0.1 * noise).square().mean()
        update(loss, self.optimiser)
        return {"loss": loss.detach()}

    def controls(self):
        return tuple(self.strengths)

    def selection_controls(self, stage):
        return ("none",) if stage == "backbone" else ("none", "strong")

    def transform_users(self, user, users, control):
        strength = self.strengths[control]
        return user + strength * self.layer(user) if strength else user

    def networks(self):
        return {"shift": self.layer}

    def stateful(self):
        return {**super().stateful(), "shift optimiser": self.optimiser, "generator": self.generator}


class Dropped(MatrixFactorisation):
    """A toy backbone: matrix factorisation that drops parts of its user vectors in training."""

    def __init__(self, num_users, num_items, dim):
        super().__init__(num_users, num_items, dim)
        self.dropout = nn.Dropout(0.2)

    def vectors(self, user, item):
        return self.dropout(user), item


class Squared(MatrixFactorisation):
    """A toy backbone: matrix factorisation of squared user vectors."""

    def vectors(self, user, item):
        return user.square(), item


@protocol()
def two_periods(data, settings, rng, options) -> Protocol:
    """A toy protocol: two phases on one split, the second selected by its last epoch, two test tasks each."""
    made = leave_one_out(data, settings, rng)
    (loo,) = made.phases
    split = loo.split
    even = ItemLists.take(loo.tests[0].relevant, np.arange(split.num_users))
    lengths = np.where(np.arange(split.num_users) % 2 == 0, even.lengths, 0)
    owner = even.owner
    half = ItemLists(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), even.item[owner % 2 == 0])
    excluded = loo.tests[0].excluded
    tasks = (Task("half", half, excluded, None), Task("all", loo.tests[0].relevant, excluded, None))
    first = Phase("first", split, 2, loo.metric, 1, 2, loo.valid, tasks)
    second = Phase("second", split, 2, loo.metric, 1, 2, None, tasks)
    third = Phase("third", split, 1, loo.metric, 1, 1, loo.valid, tasks, start="first")
    again = Phase("again", split, 2, loo.metric, 1, 2, loo.valid, tasks, start=FRESH)

    phases = (first, second, third, again)
    averages = {"mean": tuple(phase.name for phase in phases)}
    return Protocol("periods", "two periods", settings.ks, phases, averages=averages)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """One entry each, and nothing else."""
    monkeypatch.setitem(METHODS, "shift", Shift)
    monkeypatch.setitem(BACKBONES, "squared", Squared)
    monkeypatch.setitem(BACKBONES, "dropped", Dropped)
    monkeypatch.setitem(PROTOCOLS, "periods", two_periods)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    for function in (statistics.compare_paired, statistics.compare_gaps, statistics.bootstrap):
        monkeypatch.setattr(function, "__defaults__", (50,))
    monkeypatch.setattr(compare_mode, "write_report", lambda *arguments: None)


BY_IDS = {"backbone": "bprmf", "embedding_dim": 8, "num_negatives": 1, "user_hidden": None, "item_hidden": None}
TOY = {**BY_IDS, "enable_fairness": True, "fairness_method": "shift", "method_option": ["strength=3"]}


def rows_of(folder):
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def outputs(folder):
    return {"result.json": result_bytes(folder), **{name: (folder / "run" / name).read_bytes() for name in OUTPUTS}}


def lists_by_control(folder):
    names = pd.read_parquet(folder / "recommendations.parquet")["list"].unique()
    return {name.removeprefix("test/"): recommended(folder, name) for name in names if name.startswith("test")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder above a finished run of the toy method, pictures and probes included, and what it printed."""
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "shift", Shift)
        blank_pictures(patch)
        run_main(folder, **TOY)
    return folder


def served(trained, **values):
    """Run a mode on the checkpoint of `trained`."""
    unset = {name: main.FLAGS[name].default for name in TINY}
    with flagsaver.flagsaver(**{**unset, "checkpoint": str(trained / "run"), **values}):
        main.main(["main.py"])


# --- The method ---


def test_every_control_is_tested_and_gives_lists_of_its_own(trained):
    result = json.loads((trained / "run" / "result.json").read_text())
    metrics = result["metrics"]
    assert result["lists"] == ["test/none", "test/half", "test/strong"]
    for control in ("none", "half", "strong"):
        for name in ("ndcg@5", "hr@10/gap/gender", "dp_rate@5/gender", "leakage_auc/gender"):
            assert f"test/{control}/{name}" in metrics
    assert "test/ndcg@5" not in metrics and "reference/popular/ndcg@5" in metrics
    lists = lists_by_control(trained / "run")
    assert set(lists) == {"none", "half", "strong"}
    assert not lists["none"]["item"].equals(lists["half"]["item"])
    assert not lists["half"]["item"].equals(lists["strong"]["item"])
    per_user = pd.read_parquet(trained / "run" / "per_user.parquet")
    for control in lists:
        assert per_user[f"test/{control}/ndcg@5"].mean() == pytest.approx(metrics[f"test/{control}/ndcg@5"])


def test_validation_is_logged_by_control_and_their_mean_selects(trained):
    rows = rows_of(trained)
    assert [(row["stage"], row["epoch"]) for row in rows] == [
        ("backbone", 1), ("backbone", 2), ("method", 1), ("method", 2), ("method", 3),
    ]  # fmt: skip
    # one control in the first stage; validation every second epoch and at the end in the second
    assert "valid/none/ndcg@5" not in rows[0] and "valid/ndcg@5" in rows[0]
    asked = [row for row in rows if row["stage"] == "method" and "valid/ndcg@5" in row]
    assert [row["epoch"] for row in asked] == [2, 3]
    for row in asked:
        both = [row[f"valid/{control}/ndcg@5"] for control in ("none", "strong")]
        assert row["valid/ndcg@5"] == pytest.approx(np.mean(both)) and "valid/half/ndcg@5" not in row
    result = json.loads((trained / "run" / "result.json").read_text())
    assert result["validation"] == max(row["valid/ndcg@5"] for row in asked)
    assert rows[2]["train/size"] > rows[4]["train/size"]


def test_the_page_has_a_line_for_each_control(trained):
    page = (trained / "run" / "report.html").read_text()
    for caption in ("Accuracy, in percent", "Exposure, top 5", "Parity and leakage by gender (1), top 5"):
        assert caption in page
    assert "The other pictures show control none." in page and (trained / "run" / "settings.png").exists()
    assert "of 3 (best validation ndcg@5" in page


def test_the_console_shows_controls_side_by_side_within_its_width(tmp_path, capsys):
    metrics = run_main(tmp_path, **TOY)["metrics"]
    text = capsys.readouterr().out
    table = text[text.index("data set") :]
    # a path is never cut
    assert max(len(line) for line in table.splitlines() if str(tmp_path) not in line) <= WIDTH
    for control in ("none", "half", "strong"):
        (line, *_) = (line.split() for line in table.splitlines() if line.startswith(control))
        assert line[1:3] == [f"{100 * metrics[f'test/{control}/{name}@5']:.2f}" for name in ("hr", "ndcg")]
    assert "most popular" in table and "DP rate ↓" in table


def test_the_backbone_stays_as_the_first_stage_left_it(tmp_path, monkeypatch):
    """In its second stage no weight of the backbone moves or gets a gradient, and no dropout is drawn in it.

    Its own dropout works in training, and neither works while users are served, before and after a validation.
    """
    seen, modes, served = [], [], []
    stage, step, transform = train.train_stage, Shift.train_step, Shift.transform_users

    def watched(session, phase, sampler, name):
        stage(session, phase, sampler, name)
        state = session.training.backbone.state_dict()
        seen.append({key: value.clone() for key, value in state.items()})
        seen.append(session.training.method.begun[-1])

    def mode(method):
        return method.backbone.training, method.backbone.dropout.training, method.layer[1].training

    def stepped(self, batch, name, turn, update):
        values = step(self, batch, name, turn, update)
        parameters = list(self.backbone.parameters())
        held = any(parameter.grad is not None or parameter.requires_grad for parameter in parameters)
        modes.append((name, *mode(self), held))
        return values

    def transformed(self, *arguments):
        served.append(mode(self))
        return transform(self, *arguments)

    monkeypatch.setattr(train, "train_stage", watched)
    monkeypatch.setattr(Shift, "train_step", stepped)
    monkeypatch.setattr(Shift, "transform_users", transformed)
    run_main(tmp_path, **{**TOY, "backbone": "dropped"})
    first, last, second, end = seen
    assert last == ("backbone", 2) and end == ("method", 3)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert set(modes) == {("backbone", True, True, True, True), ("method", False, False, True, False)}
    assert served and set(served) == {(False, False, False)}


def test_a_stage_has_batches_of_its_own(tmp_path, monkeypatch):
    sizes = {}
    step = Shift.train_step

    def counted(self, batch, stage, name, update):
        sizes.setdefault(stage, []).append(len(batch.users))
        return step(self, batch, stage, name, update)

    monkeypatch.setattr(Shift, "train_step", counted)
    run_main(tmp_path, **{**TOY, "method_option": ["small=50"]})
    assert max(sizes["backbone"]) == 128 and max(sizes["method"]) == 50


@pytest.mark.parametrize("backbone", ["sparsenn", "squared", "dropped"])
def test_it_works_on_other_backbones(tmp_path, backbone):
    values = {**TOY, "backbone": backbone}
    if backbone == "sparsenn":
        values |= {"embedding_dim": None, "user_hidden": ["16"], "item_hidden": ["16"]}
    metrics = run_main(tmp_path, **values, epochs=1)["metrics"]
    assert len({metrics[f"test/{control}/gini@5"] for control in ("none", "half", "strong")}) == 3


def test_an_unknown_option_is_refused_with_the_known_ones(tmp_path, capsys):
    error = refused(capsys, tmp_path, **{**TOY, "method_option": ["size=3"]})
    assert "--method_option=size=3" in error and "one of small, strength" in error


@pytest.mark.probes
def test_its_checkpoint_is_judged_to_the_same_numbers(tmp_path, trained):
    served(trained, mode="evaluate", output_dir=str(tmp_path), run_name="again")
    own, again = (json.loads((path / "result.json").read_text()) for path in (trained / "run", tmp_path / "again"))
    # which may change while tests run
    assert again | {"commit": None} == own | {"commit": None}
    served(trained, mode="evaluate", output_dir=str(tmp_path), run_name="one", control="strong", rerank_fair=True)
    one = json.loads((tmp_path / "one" / "result.json").read_text())
    assert one["lists"] == ["test/strong", "test/strong/reranked"]
    assert one["metrics"]["test/strong/ndcg@5"] == own["metrics"]["test/strong/ndcg@5"]


def test_recommendations_are_served_under_the_control_that_is_asked(tmp_path, trained, capsys):
    own = lists_by_control(trained / "run")
    for control, flag in (("none", None), ("strong", "strong")):
        path = tmp_path / f"{control}.parquet"
        served(trained, mode="recommend", users=["all"], recommendations=str(path), control=flag)
        assert f"under {control}" in capsys.readouterr().out
        everybody = pd.read_parquet(path)
        asked = everybody[everybody["user"].isin(own[control]["user"])].reset_index(drop=True)
        first = own[control][own[control]["rank"] <= 5].reset_index(drop=True)
        pd.testing.assert_frame_equal(asked, first, check_exact=True, check_dtype=False)


def unserved(capsys, trained, **values):
    with pytest.raises(SystemExit) as caught:
        served(trained, mode="recommend", users=["all"], **values)
    assert caught.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_an_unknown_control_is_refused(tmp_path, trained, capsys):
    assert "--control=weak: allowed is one of none, half, strong" in unserved(capsys, trained, control="weak")
    assert "--mode=evaluate" in refused(capsys, tmp_path, **TOY, control="none")
    run_main(tmp_path, **BY_IDS, epochs=1)
    assert "has one setting only; leave --control out" in unserved(capsys, tmp_path, control="none")


def test_the_dry_run_has_a_line_a_stage(tmp_path, capsys):
    with flagsaver.flagsaver(output_dir=str(tmp_path), dry_run=True, **{**TINY, **TOY}):
        main.main(["main.py"])
    text = " ".join(capsys.readouterr().out.split())
    assert "controls: none, half, strong" in text
    assert re.search(r"loo, backbone: 7 steps an epoch .* at most 2 epochs", text)
    assert re.search(r"loo, method: 13 steps an epoch .* at most 3 epochs", text)


def cut_off(monkeypatch, folder, number, values):
    """Send SIGTERM in step `number` of the run."""
    calls, update = 0, train.update

    def counted(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(train, "update", counted)
        run_main(folder, **values)
    return Progress.of(torch.load(folder / "run" / "state.pt", weights_only=True), 0.0)


def test_a_run_cut_off_in_its_second_stage_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    values = {**TOY, "backbone": "dropped"}
    run_main(tmp_path / "whole", **values)
    # two epochs of 7 steps, then passes of 13: the first epoch's first and second pass, and the third epoch
    for number, place in ((18, (1, 0)), (30, (1, 1)), (70, (3, 0))):
        folder = tmp_path / str(number)
        progress = cut_off(monkeypatch, folder, number, values)
        assert (progress.stage, progress.epoch, progress.turn) == (1, *place)
        run_main(folder, **values, resume=True)
        assert outputs(folder) == outputs(tmp_path / "whole")


def test_seeds_are_summarised_by_control(tmp_path, monkeypatch, capsys):

    def in_this_process(children, kept):
        for seed in children.work.seeds:
            with flagsaver.flagsaver():
                main.FLAGS(["main.py", "--seeds=", *children.work.command(seed)[2:]])
                train.execute(main.settings_from_flags().config(), 0.0)
        return {}

    monkeypatch.setattr(seeds.Children, "run", in_this_process)
    values = {**TINY, **TOY, "epochs": 1, "seeds": ["3", "4"]}
    with flagsaver.flagsaver(output_dir=str(tmp_path), **values):
        main.main(["main.py"])
    text = capsys.readouterr().out
    table = text[text.index("All lists (1), mean ± standard deviation") :].splitlines()
    rule = next(place for place, line in enumerate(table) if line.startswith("---"))
    assert [line.split()[0] for line in table[rule + 1 : rule + 4]] == ["none", "half", "strong"]
    assert "±" in table[rule + 1]
    content = json.loads((tmp_path / "run" / "seeds.json").read_text())
    assert "test/half/ndcg@5" in content["metrics"]
    assert "All lists, mean" in (tmp_path / "run" / "seeds.tex").read_text()


def compared(folder, runs):
    unset = {name: main.FLAGS[name].default for name in TINY}
    values = {**unset, "mode": "compare", "runs": runs, "output_dir": str(folder), "run_name": "comparison"}
    with flagsaver.flagsaver(**values):
        main.main(["main.py"])


def test_controls_are_compared_by_name(tmp_path, trained, capsys):
    compared(tmp_path, [f"{trained}/run:none", f"{trained}/run:strong", f"{trained}/run:popular"])
    content = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert [one["name"] for one in content["runs"]] == ["run:none", "run:strong", "run:popular"]
    assert "=== run:strong against run:none (baseline)" in capsys.readouterr().out
    own = json.loads((trained / "run" / "result.json").read_text())["metrics"]
    (row,) = (
        row for row in content["rows"] if (row["run"], row["metric"], row["kind"]) == ("run:strong", "ndcg@5", "paired")
    )
    assert row["baseline_value"] == pytest.approx(own["test/none/ndcg@5"])
    assert row["value"] == pytest.approx(own["test/strong/ndcg@5"])
    with pytest.raises(SystemExit):
        compared(tmp_path / "other", [f"{trained}/run", f"{trained}/run:none"])
    assert "has several lists; name one behind a colon: none, half, strong" in capsys.readouterr().err


# --- A backbone that another run trained ---


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The folder above a finished run without a fairness method, whose backbone later runs take."""
    folder = tmp_path_factory.mktemp("pretrained")
    with light_runs():
        run_main(folder, **BY_IDS)
    return folder


def weights_of(folder):
    return torch.load(folder / "run" / "checkpoint.pt", weights_only=True)["backbone"]


def test_a_backbone_of_another_run_takes_the_place_of_the_first_stage(tmp_path, pretrained, monkeypatch):
    values = {**TOY, "backbone_checkpoint": str(pretrained / "run")}
    result = run_main(tmp_path / "whole", **values)
    assert {row["stage"] for row in rows_of(tmp_path / "whole")} == {"method"}
    own, before = weights_of(tmp_path / "whole"), weights_of(pretrained)
    assert all(torch.equal(own[name], before[name]) for name in before)
    # under the neutral control it is the other run's, bit for bit
    plain = json.loads((pretrained / "run" / "result.json").read_text())["metrics"]
    compared = {key: value for key, value in plain.items() if key.startswith("test/")}
    assert len(compared) > 20
    for key, value in compared.items():
        other = result["metrics"][key.replace("test/", "test/none/", 1)]
        assert other == value or (other != other and value != value), key
    # 13 batches in each of two passes
    for number in (5, 20):
        folder = tmp_path / str(number)
        progress = cut_off(monkeypatch, folder, number, values)
        assert (progress.stage, progress.epoch) == (0, 1)
        run_main(folder, **values, resume=True)
        assert outputs(folder) == outputs(tmp_path / "whole")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"embedding_dim": 16}, "another network: --embedding_dim was 8, is 16"),
        ({"backbone": "pmf"}, "--backbone was bprmf, is pmf"),
        ({"seed": 1}, "was trained on data of fingerprint"),
        ({"fairness_method": "parity", "method_option": []}, "has no effect with --fairness_method=parity"),
        ({"backbone_checkpoint": "nowhere"}, "nowhere is no file"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused(tmp_path, pretrained, capsys, values, words):
    error = refused(capsys, tmp_path, **{**TOY, "backbone_checkpoint": str(pretrained / "run"), **values})
    assert words in error
    assert not (tmp_path / "run").exists()


def test_a_backbone_that_a_method_trained_is_refused(tmp_path, pretrained, capsys):
    content = torch.load(pretrained / "run" / "checkpoint.pt", weights_only=True)
    fair = {"enable_fairness": True, "fairness_method": "parity"}
    settings = json.dumps(json.loads(content["config"]) | fair)
    torch.save({**content, "config": settings}, tmp_path / "fair.pt")
    error = refused(capsys, tmp_path, **{**TOY, "backbone_checkpoint": str(tmp_path / "fair.pt")})
    assert "was trained by --fairness_method=parity; pass a run of method none" in error


def test_a_dry_run_times_the_stages_that_are_left(tmp_path, pretrained, capsys):
    values = {**TINY, **TOY, "backbone_checkpoint": str(pretrained / "run"), "dry_run": True}
    with flagsaver.flagsaver(output_dir=str(tmp_path), **values):
        main.main(["main.py"])
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r" loo: 13 steps an epoch .* at most 3 epochs", text)
    assert "7 steps" not in text.partition("Warnings:")[0]
    assert not list(tmp_path.iterdir())


# --- Backbone and protocol ---

PERIODS = {**BY_IDS, "protocol": "periods", "backbone": "squared"}


def test_a_backbone_is_one_class_and_one_entry(tmp_path):
    metrics = run_main(tmp_path, **{**BY_IDS, "backbone": "squared"}, epochs=1)["metrics"]
    other = run_main(tmp_path / "other", **BY_IDS, epochs=1)["metrics"]
    assert metrics["test/gini@5"] != other["test/gini@5"]


@pytest.fixture(scope="module")
def periods(tmp_path_factory):
    """The folder above a finished run of the toy protocol."""
    folder = tmp_path_factory.mktemp("periods")
    with pytest.MonkeyPatch.context() as patch:
        for registry, name, entry in ((PROTOCOLS, "periods", two_periods), (BACKBONES, "squared", None)):
            patch.setitem(registry, name, entry or Squared)
        blank_pictures(patch)
        with light_runs(pictures=True):
            run_main(folder, **PERIODS)
    return folder


PHASES = ("first", "second", "third", "again")


def test_phases_and_tasks_are_levels_of_the_keys(periods):
    result = json.loads((periods / "run" / "result.json").read_text())
    metrics = result["metrics"]
    for phase in PHASES:
        for task in ("half", "all"):
            assert 0 <= metrics[f"test/{phase}/{task}/ndcg@5"] <= 1
            assert f"reference/popular/{phase}/{task}/ndcg@5" in metrics
    lists = [f"test/{phase}/{task}" for phase in PHASES for task in ("half", "all")]
    assert result["lists"] == [*lists, "test/mean/half", "test/mean/all"]
    mean = np.mean([metrics[f"test/{phase}/all/ndcg@5"] for phase in PHASES])
    assert metrics["test/mean/all/ndcg@5"] == pytest.approx(mean)
    assert not {"test", "test/half", "test/all"} & {split_key(key)[0] for key in metrics}


def test_files_hold_every_phase_and_task(periods):
    metrics = json.loads((periods / "run" / "result.json").read_text())["metrics"]
    per_user = pd.read_parquet(periods / "run" / "per_user.parquet")
    lists = pd.read_parquet(periods / "run" / "recommendations.parquet")
    for phase in PHASES:
        for task in ("half", "all"):
            values = per_user[f"test/{phase}/{task}/ndcg@5"]
            assert values.mean() == pytest.approx(metrics[f"test/{phase}/{task}/ndcg@5"])
            asked = lists[lists["list"] == f"test/{phase}/{task}"]["user"].unique()
            assert set(asked) == set(per_user["user"][values.notna()])
    assert per_user["test/first/half/ndcg@5"].notna().sum() < len(per_user) == per_user["user"].nunique()
    assert (periods / "run" / "periods.png").exists()


def test_phases_start_as_they_say(periods):
    """The last one starts like the first, with random streams of its own; the third goes on from the first."""
    rows = {(row["phase"], row["epoch"]): row for row in rows_of(periods)}
    first, again = (rows[phase, 1]["train/loss"] for phase in ("first", "again"))
    assert again != first and again == pytest.approx(first, rel=0.02)
    for phase in ("second", "third"):
        assert rows[phase, 1]["train/loss"] < min(first, again)
    # without validation the last epoch is taken
    assert not any(key.startswith("valid/") for key in rows["second", 2])


# phases of 2, 2, 1 and 2 epochs of 7 steps; the last two begin otherwise than where the one before ended
@pytest.mark.parametrize(
    ("number", "phase"), [(38, 3), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((17, 1), (31, 2)))]
)
def test_a_run_cut_off_in_any_phase_goes_on_to_the_same_bytes(tmp_path, monkeypatch, periods, number, phase):
    assert cut_off(monkeypatch, tmp_path, number, PERIODS).phase == phase
    run_main(tmp_path, **PERIODS, resume=True)
    assert outputs(tmp_path) == outputs(periods)


def test_the_last_phase_is_judged_again(tmp_path, periods):
    served(periods, mode="evaluate", output_dir=str(tmp_path), run_name="again")
    own, again = (json.loads((path / "result.json").read_text()) for path in (periods / "run", tmp_path / "again"))
    assert again["lists"] == ["test/again/half", "test/again/all"]
    assert all(own["metrics"][key] == value or value != value for key, value in again["metrics"].items())
    compared(tmp_path, [f"{periods}/run:again/half", f"{tmp_path}/again:again/half"])


def test_phases_take_part_in_a_dry_run(tmp_path, capsys):
    with flagsaver.flagsaver(output_dir=str(tmp_path), dry_run=True, **{**TINY, **PERIODS}):
        main.main(["main.py"])
    text = capsys.readouterr().out
    assert all(re.search(rf"^{phase}: 7 steps an epoch", text, re.MULTILINE) for phase in PHASES)


def test_a_phase_that_starts_from_a_later_one_is_refused(tiny_phase):
    with pytest.raises(ValueError, match="starts from 'later'"):
        Protocol("toy", "", (5,), (replace(tiny_phase, start="later"),))
