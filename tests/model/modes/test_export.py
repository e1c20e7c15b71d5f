"""The split as files for other programs: what they hold is the split, and rankings of them come back."""

from __future__ import annotations

import dataclasses
import json
import shlex

import numpy as np
import pandas as pd
import pytest
import torch
from absl import flags
from absl.testing import flagsaver

import main
from data.protocols.base import ProtocolSettings, Task
from data.protocols.loo import leave_one_out
from data.structs import Group, ItemLists
from model.modes.export_split import export_split
from model.modes.setup import prepare
from model.runs.environment import Environment
from model.runs.run import Run
from tests.support.movielens import write_movielens
from tests.support.runs import (
    TINY,
    refused,
)

FLAGS = flags.FLAGS
TEXT = {"user": str, "item": str}


@pytest.fixture
def make_run(make_config):
    """A function: data -> a run of the leave-one-out protocol on it."""

    def make(data, **changes):
        protocol = leave_one_out(data, ProtocolSettings(0.2, (10, 5), 2, 2), np.random.default_rng(0))
        config, device = make_config(**changes), torch.device("cpu")
        return Run(data, protocol, Environment(config, data.user_groups, np.array([]), {}, device))

    return make


def check_export(folder, data, split):
    """Exported sets hold the split's pairs with the ratings and times of the data, each user's in time order."""
    truth = {
        (str(data.original_user_ids[user]), str(data.original_item_ids[item])): number
        for number, (user, item) in enumerate(zip(data.user_id, data.item_id, strict=True))
    }
    for name in ("train", "valid", "test"):
        frame = pd.read_csv(folder / f"{name}.csv", dtype=TEXT)
        lists = getattr(split, name)
        pairs = list(zip(frame["user"], frame["item"], strict=True))
        users, items = data.original_user_ids[lists.owner], data.original_item_ids[lists.item]
        assert pairs == [(str(user), str(item)) for user, item in zip(users, items, strict=True)]
        rows = [truth[pair] for pair in pairs]
        assert frame["rating"].tolist() == data.rating[rows].tolist()
        assert ("timestamp" in frame) == (data.time is not None)
        if data.time is not None:
            assert frame["timestamp"].tolist() == data.time[rows].tolist()
            assert frame.groupby("user")["timestamp"].is_monotonic_increasing.all()
    items = pd.read_csv(folder / "items.csv", dtype={"item": str, "title": str}, keep_default_na=False)
    assert items["item"].tolist() == [str(item) for item in data.original_item_ids]
    assert items["title"].tolist() == list(data.item_titles)
    assert items["train_degree"].tolist() == split.degree.tolist()
    assert ((items["popularity"] == "tail") == (split.item_groups["popularity"].codes == 1)).all()
    users = pd.read_csv(folder / "users.csv", dtype=str, keep_default_na=False)
    assert users["user"].tolist() == [str(user) for user in data.original_user_ids]
    assert list(users.columns) == ["user", *data.user_groups]
    for name, group in data.user_groups.items():
        assert users[name].tolist() == [group.labels[code] if code >= 0 else "" for code in group.codes]
    content = json.loads((folder / "split.json").read_text())
    assert content["fingerprint"] == split.fingerprint()
    assert content["train_fingerprint"] == split.train_fingerprint()
    assert content["not_recommended"]["test"] == ["train.csv", "valid.csv"]
    assert content["not_recommended"]["valid"] == ["train.csv"]
    assert content["relevant"] == {"test": "test.csv"}


def test_the_export_is_the_split(tiny_data, make_run, tmp_path):
    run = make_run(tiny_data)
    export_split(run, tmp_path / "deep" / "split")
    check_export(tmp_path / "deep" / "split", tiny_data, run.protocol.phases[0].split)
    before = {path.name: path.read_bytes() for path in (tmp_path / "deep" / "split").iterdir()}
    export_split(run, tmp_path / "deep" / "split")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "deep" / "split").iterdir()}


def test_ids_of_books_keep_their_zeros_and_unknown_attributes_are_empty(tiny_data, make_run, tmp_path):
    isbn = np.array([f"{item // 2:0{9 + item % 2}d}" for item in range(tiny_data.num_items)], dtype=object)
    codes = np.arange(tiny_data.num_users) % 3 - 1
    titles = np.array([f'"A, {item}"\nand more' if item else "NA" for item in isbn], dtype=object)
    data = dataclasses.replace(
        tiny_data, original_item_ids=isbn, item_titles=titles, time=None,
        original_user_ids=np.array([f"{user:05d}" for user in range(tiny_data.num_users)], dtype=object),
        user_groups={"age": Group("age", codes, ("<=24", ">=50"))},
    )  # fmt: skip
    run = make_run(data)
    export_split(run, tmp_path)
    check_export(tmp_path, data, run.protocol.phases[0].split)


def test_a_movielens_file_set_round_trips(tiny_data, tmp_path):
    write_movielens(tiny_data, tmp_path)
    values = {"dataset": "ml", "dataset_dir": str(tmp_path), "title_encoder": "hash", "warm_threshold": 0.2}
    values |= {"cache_dir": str(tmp_path / "cache"), "dry_run": True, "eval_k": ["5"], "batch_size": 64}
    values |= {"user_hidden": ["8"], "item_hidden": ["8"], "num_negatives": 2}
    with flagsaver.flagsaver(export_split=str(tmp_path / "split"), **values):
        main.main(["main.py"])
        run = prepare(main.settings_from_flags().config())
    check_export(tmp_path / "split", run.data, run.protocol.phases[0].split)
    assert run.data.original_item_ids.tolist() == tiny_data.original_item_ids.tolist()


def test_the_command_of_an_export_scores_rankings_of_it(tmp_path, capsys):
    with flagsaver.flagsaver(dry_run=True, export_split=str(tmp_path / "split"), seed=3, **TINY):
        main.main(["main.py"])
    printed = capsys.readouterr().out
    assert printed.index("test.csv 60 rows") < printed.index("steps an epoch")
    command = json.loads((tmp_path / "split" / "split.json").read_text())["rankings"]["command"]
    test = pd.read_csv(tmp_path / "split" / "test.csv", dtype=str)
    test[["user", "item"]].assign(score=0.5).to_csv(tmp_path / "split" / "mine.csv", index=False)
    command = command.replace("FILE", str(tmp_path / "split" / "mine.csv")).replace("DIR", str(tmp_path))
    arguments = shlex.split(command)[1:]
    with flagsaver.flagsaver():
        FLAGS([*arguments, f"--output_dir={tmp_path}", "--run_name=scored"])
        main.main(["main.py"])
    result = json.loads((tmp_path / "scored" / "result.json").read_text())
    assert result["metrics"]["test/hr@5"] == 1
    assert "by split.json beside them" in capsys.readouterr().out


def test_phases_and_tasks_have_files_of_their_own(tiny_data, make_run, tmp_path):
    run = make_run(tiny_data)
    phase = run.protocol.phases[0]
    split, task = phase.split, phase.tests[0]
    wider = Task("wider", split.valid.merge(split.test), split.train, None)
    same = dataclasses.replace(task, name="same")
    half = split.train.lengths // 2
    kept = np.arange(len(split.train.item)) - split.train.indptr[split.train.owner] < half[split.train.owner]
    few = Task("few", split.test, ItemLists(np.concatenate([[0], np.cumsum(half)]), split.train.item[kept]), None)
    second = dataclasses.replace(phase, name="second", tests=(wider, same, few))
    run = dataclasses.replace(run, protocol=dataclasses.replace(run.protocol, phases=(phase, second)))
    export_split(run, tmp_path)
    check_export(tmp_path / "loo", tiny_data, split)
    assert not (tmp_path / "split.json").exists()
    content = json.loads((tmp_path / "second" / "split.json").read_text())
    assert content["relevant"] == {"wider": "test_wider.csv", "same": "test.csv", "few": "test.csv"}
    assert content["not_recommended"]["wider"] == ["train.csv"]
    assert content["not_recommended"]["same"] == ["train.csv", "valid.csv"]
    assert content["not_recommended"]["few"] == ["barred_few.csv"]
    assert len(pd.read_csv(tmp_path / "second" / "test_wider.csv")) == len(split.valid.item) + len(split.test.item)
    assert len(pd.read_csv(tmp_path / "second" / "barred_few.csv")) == half.sum()


def test_a_phase_without_validation_is_exported(tiny_data, make_run, tmp_path):
    run = make_run(tiny_data)
    phase = dataclasses.replace(run.protocol.phases[0], valid=None)
    export_split(dataclasses.replace(run, protocol=dataclasses.replace(run.protocol, phases=(phase,))), tmp_path)
    content = json.loads((tmp_path / "split.json").read_text())
    assert list(content["not_recommended"]) == [task.name for task in phase.tests]


def test_folders_that_cannot_take_an_export_are_refused(tiny_data, make_run, tmp_path):
    run = make_run(tiny_data)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write to"):
        export_split(run, tmp_path / "file")
    own = tmp_path / "own"
    own.mkdir()
    (own / "train.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"train.csv but no split.json"):
        export_split(run, own)
    assert (own / "train.csv").read_text() == "mine"
    (own / "split.json").write_text("{")
    with pytest.raises(ValueError, match=r"not the split.json of an export"):
        export_split(run, own)
    (own / "split.json").write_text('{"fingerprint": "0123"}')
    with pytest.raises(ValueError, match=r"export of fingerprint 0123, this split has .*; pass another"):
        export_split(run, own)
    assert (own / "train.csv").read_text() == "mine"


def test_an_export_that_score_mode_would_not_ask_is_refused(tmp_path, capsys):
    values = {"dry_run": True, "export_split": str(tmp_path / "split")}
    assert "--eval_negatives" in refused(capsys, tmp_path, **values, eval_negatives=5)
    assert "--upstream_compat" in refused(capsys, tmp_path, **values, upstream_compat=True)
    assert "--dry_run=True" in refused(capsys, tmp_path, export_split=str(tmp_path / "split"))
    assert not (tmp_path / "split").exists()
