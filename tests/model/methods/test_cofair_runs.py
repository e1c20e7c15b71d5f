"""Cofair by the whole program: levels in every file, what selects the epoch, serving, and runs that were cut off."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from absl.testing import flagsaver

import main
from model.methods.cofair import Cofair
from model.training.progress import Progress
from tests.support.light import light_runs
from tests.support.runs import TINY, recommended, refused, run_main
from tests.support.stops import at_call, crash, outputs, terminate

BY_IDS = {"backbone": "bprmf", "embedding_dim": 8, "num_negatives": 1, "user_hidden": None, "item_hidden": None}
BY_IDS |= {"protocol": "cofair", "lr": 0.02, "epochs": 3}
FAIR = {**BY_IDS, "enable_fairness": True, "fairness_method": "cofair"}
OPTIONS = ["epochs=2", "batch_size=256", "lr=0.02", "lambda0=0.1", "alpha=0.1"]
LEVELS = [f"t{number}" for number in range(6)]


def cofair(*options, **values):
    """The flags of a run whose second stage is short; `options` of the method come behind its own and win."""
    chosen = dict(option.split("=") for option in (*OPTIONS, *options))
    return {**FAIR, "method_option": [f"{name}={value}" for name, value in chosen.items()], **values}


def upon(pretrained, *options, **values):
    """The same flags with the backbone of another run."""
    return cofair(*options, backbone_checkpoint=str(pretrained / "run"), batch_size=None, lr=None, **values)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder above a finished run of two stages."""
    folder = tmp_path_factory.mktemp("cofair")
    with light_runs():
        run_main(folder, **cofair())
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The folder above a finished run of the backbone alone."""
    folder = tmp_path_factory.mktemp("pretrained")
    with light_runs():
        run_main(folder, **BY_IDS)
    return folder


def rows_of(folder):
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def result_of(folder, name="run"):
    return json.loads((folder / name / "result.json").read_text())


def served(trained, **values):
    """Run a mode on the checkpoint of `trained`."""
    unset = {name: main.FLAGS[name].default for name in TINY}
    with flagsaver.flagsaver(**{**unset, "checkpoint": str(trained / "run"), **values}):
        main.main(["main.py"])


# --- Levels ---


def test_every_level_is_in_every_file(trained):
    result = result_of(trained)
    assert result["lists"] == [f"test/{level}" for level in LEVELS]
    per_user = pd.read_parquet(trained / "run" / "per_user.parquet")
    lists, items = {}, []
    for level in LEVELS:
        for name in ("recall@5", "ndcg@10", "dp_js@10/gender", "eo_js@10/gender"):
            assert f"test/{level}/{name}" in result["metrics"]
        mean = result["metrics"][f"test/{level}/recall@10"]
        assert 0 < mean < 1 and per_user[f"test/{level}/recall@10"].mean() == pytest.approx(mean)
        lists[level] = recommended(trained / "run", f"test/{level}")
        items.append(tuple(lists[level]["item"]))
    assert len(set(items)) == 6
    rows = rows_of(trained)
    assert [(row["stage"], row["epoch"]) for row in rows] == [
        ("backbone", 1), ("backbone", 2), ("backbone", 3), ("method", 1), ("method", 2),
    ]  # fmt: skip
    adversary = [f"train/adversary/{level}" for level in LEVELS[1:]]
    assert all(np.isfinite([row[name] for name in adversary]).all() for row in rows[3:])
    assert not set(adversary) & set(rows[0])


def test_items_and_backbone_are_those_of_the_run_without_a_method(trained, pretrained, tmp_path):
    """Level 0 is the plain run bit for bit, of a first stage of its own or with that run's backbone."""
    run_main(tmp_path, **upon(pretrained, "epochs=1", "levels=1"))
    assert {row["stage"] for row in rows_of(tmp_path)} == {"method"}
    plain = result_of(pretrained)["metrics"]
    weights = [
        torch.load(folder / "run" / "checkpoint.pt", weights_only=True)["backbone"]
        for folder in (pretrained, trained, tmp_path)
    ]
    for folder, own in zip((trained, tmp_path), weights[1:], strict=True):
        assert all(torch.equal(own[name], weights[0][name]) for name in weights[0])
        metrics, compared = result_of(folder)["metrics"], [key for key in plain if key.startswith("test/")]
        assert len(compared) > 20
        for key in compared:
            assert metrics[key.replace("test/", "test/t0/", 1)] == plain[key], key
        lists = [recommended(pretrained / "run"), recommended(folder / "run", "test/t0")]
        pd.testing.assert_frame_equal(*lists, check_exact=True)


@pytest.mark.parametrize(("name", "value"), [("lr", 0.02), ("table_start", "normal"), ("l2", 0.5)])
def test_settings_of_the_first_stage_have_no_effect_on_another_runs_backbone(pretrained, tmp_path, capsys, name, value):
    error = refused(capsys, tmp_path, **{**upon(pretrained), name: value})
    assert f"--{name}" in error and "has no effect" in error


def test_a_level_is_served_by_its_name(trained, tmp_path, capsys):
    path = tmp_path / "lists.parquet"
    for level, flag in (("t0", None), ("t3", "t3")):
        served(trained, mode="recommend", users=["all"], recommendations=str(path), control=flag)
        assert f"under {level}" in capsys.readouterr().out
        own, found = recommended(trained / "run", f"test/{level}", k=5), pd.read_parquet(path)
        found = found[found["user"].isin(own["user"])].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, own, check_exact=True, check_dtype=False)
    served(trained, mode="evaluate", output_dir=str(tmp_path), run_name="one", control="t2")
    own, one = result_of(trained), result_of(tmp_path, "one")
    assert one["lists"] == ["test/t2"]
    assert all(own["metrics"][key] == value for key, value in one["metrics"].items() if key.startswith("test/t2/"))
    with pytest.raises(SystemExit):
        served(trained, mode="recommend", users=["all"], control="t6")
    assert "--control=t6: allowed is one of t0, t1, t2, t3, t4, t5" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "asked"), [("select=last", ["t2"]), ("select=mean", ["t1", "t2"])])
def test_the_epoch_is_selected_by_the_last_level_or_by_the_mean_of_all(tmp_path, monkeypatch, option, asked):
    served, transform = [], Cofair.transform_users

    def watched(self, user, users, control):
        served.append(control)
        return transform(self, user, users, control)

    monkeypatch.setattr(Cofair, "transform_users", watched)
    result = run_main(tmp_path, **cofair(option, "levels=2"))
    # a validation an epoch, and one test
    assert served == ["t0"] * 3 + asked * 2 + ["t0", "t1", "t2"]
    rows = rows_of(tmp_path)
    for row in rows[3:]:
        if option == "select=mean":
            values = [row[f"valid/{level}/recall@10"] for level in asked]
            assert row["valid/recall@10"] == pytest.approx(np.mean(values)) and len(set(values)) > 1
        assert "valid/t0/recall@10" not in row
    validations = [round(row["valid/recall@10"], 4) for row in rows[3:]]
    assert result["epoch"] == 1 + int(np.argmax(validations)) and result["validation"] == max(validations)


def test_another_number_of_levels_and_a_whole_batch_of_options(tmp_path):
    options = ("levels=2", "shared_width=0", "disc_update=after", "regularise=users", "spare_probe_users=True")
    result = run_main(tmp_path, **{**cofair(*options), "protocol": "loo", "user_attribute": ["age"]})
    assert result["lists"] == ["test/t0", "test/t1", "test/t2"]
    # more than two groups, under leave-one-out, which has no recall
    assert "test/t2/dp_js@10/age" in result["metrics"] and "test/t2/recall@10" not in result["metrics"]


def test_it_stops_after_21_epochs_without_a_better_validation(tmp_path, pretrained, capsys):
    # at this rate no vector changes, so that the first validation stays the best
    result = run_main(tmp_path, **upon(pretrained, "lr=1e-30", "epochs=40", "levels=1", epochs=40))
    assert result["epoch"] == 1 and [row["epoch"] for row in rows_of(tmp_path)] == list(range(1, 23))
    assert "for 21 epochs: stopped" in capsys.readouterr().out


# --- Other backbones ---


def test_a_backbone_with_a_history_is_encoded_once_and_batches_of_the_second_stage_have_none(tmp_path, monkeypatch):
    seen, sizes, step = {}, {}, Cofair.train_step

    def watched(self, batch, stage, name, update):
        seen.setdefault(stage, set()).add(batch.history is None)
        sizes[stage] = max(sizes.get(stage, 0), len(batch.users))
        return step(self, batch, stage, name, update)

    monkeypatch.setattr(Cofair, "train_step", watched)
    towers = {"user_hidden": ["16"], "item_hidden": ["16"], "embedding_dim": None, "protocol": "loo"}
    result = run_main(tmp_path, **{**cofair("levels=2", backbone="sparsenn"), **towers, "epochs": 1})
    assert seen == {"backbone": {False}, "method": {True}} and sizes == {"backbone": 128, "method": 256}
    assert len({result["metrics"][f"test/{level}/gini@5"] for level in ("t0", "t1", "t2")}) == 3


@pytest.mark.parametrize("backbone", ["lightgcn", "ncf"])
def test_it_works_on_graphs_and_networks(tmp_path, backbone):
    protocol = "cofair" if backbone == "lightgcn" else "loo"
    result = run_main(tmp_path, **{**cofair("levels=1", backbone=backbone), "epochs": 1, "protocol": protocol})
    assert result["lists"] == ["test/t0", "test/t1"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"backbone": "slim", "embedding_dim": None}, "this backbone is fitted at once"),
        ({"backbone": "sparsenn", "embedding_dim": None, "protocol": "loo", "upstream_compat": True}, "leave --ups"),
        ({"fairness_weight": 0.7}, "--fairness_weight"),
    ],
)
def test_what_it_cannot_do_is_an_error(tmp_path, capsys, values, words):
    values = {**cofair(), "num_negatives": None, "lr": None, "batch_size": None, "epochs": None, **values}
    assert words in refused(capsys, tmp_path, **values)


# --- Runs that are cut off, and seeds ---


def cut_off(monkeypatch, folder, number, action, **values):
    """Run until training step `number` does `action`; the progress that was saved."""
    with monkeypatch.context() as patch, pytest.raises((SystemExit, Exception)):
        patch.setattr(Cofair, "train_step", at_call(number, action, Cofair.train_step))
        run_main(folder, **values)
    assert not (folder / "run" / "result.json").exists()
    return Progress.of(torch.load(folder / "run" / "state.pt", weights_only=True), 0.0)


# three epochs of 6 steps, then two of 3
@pytest.mark.parametrize(
    ("number", "action", "place"),
    [
        (9, terminate, (0, 2)),
        (19, terminate, (1, 1)),
        pytest.param(20, terminate, (1, 1), marks=pytest.mark.slow),
        pytest.param(24, crash, (1, 2), marks=pytest.mark.slow),
    ],
)
def test_a_run_cut_off_in_either_stage_goes_on_to_the_same_bytes(tmp_path, monkeypatch, trained, number, action, place):
    values = cofair(checkpoint_every="1")
    progress = cut_off(monkeypatch, tmp_path, number, action, **values)
    assert (progress.stage, progress.epoch) == place
    run_main(tmp_path, **values, resume=True)
    assert outputs(tmp_path) == outputs(trained)


def test_another_seed_gives_other_bytes(tmp_path, trained):
    run_main(tmp_path, **cofair(), seed=1)
    found, expected = outputs(tmp_path), outputs(trained)
    assert all(found[name] != expected[name] for name in found)
