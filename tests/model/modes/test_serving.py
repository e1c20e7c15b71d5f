"""`--mode=evaluate` and `--mode=recommend`: the run's own numbers again, other questions, and broken checkpoints."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pooch
import pytest
import torch
from absl.testing import flagsaver

import main
from data.protocols import PROTOCOLS
from data.protocols.base import Task, protocol
from data.protocols.loo import leave_one_out
from data.structs import Histories, ItemLists
from model.evaluation.evaluator import Evaluator
from model.modes import setup, train
from tests.support.light import light_runs
from tests.support.movielens import write_movielens
from tests.support.runs import (
    FLAGS,
    TINY,
    recommended,
    refused,
    run_main,
)

TRAINED = {"enable_fairness": True, "fairness_sampling": True, "rerank_fair": True, "rerank_pool": 30, "epochs": 1}
UNSET = {name: FLAGS[name].default for name in TINY}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run on files in MovieLens's format; one user has two interactions and trains only."""
    root = tmp_path_factory.mktemp("trained")
    with flagsaver.flagsaver(**TINY):
        data = setup.prepare(main.settings_from_flags().config()).data
    few = np.flatnonzero(data.user_id == 7)[2:]
    columns = {name: np.delete(getattr(data, name), few) for name in ("user_id", "item_id", "rating", "time")}
    write_movielens(replace(data, **columns), root)
    values = {name: FLAGS[name].default for name in TINY if name.startswith("synthetic_")}
    values |= {"dataset": "ml", "dataset_dir": str(root), "cache_dir": str(root / "cache"), "title_encoder": "hash"}
    with light_runs():
        run_main(root, **{**values, **TRAINED})
    return root / "run"


def served(folder, trained, **values) -> None:
    """Run a mode on the checkpoint of `trained`."""
    place = {} if values["mode"] == "recommend" else {"output_dir": str(folder)}
    with flagsaver.flagsaver(**{**UNSET, **place, "checkpoint": str(trained), **values}):
        main.main(["main.py"])


def evaluated(folder, trained, **values) -> dict:
    """Evaluate the checkpoint into `folder`; give the content of result.json."""
    served(folder, trained, mode="evaluate", **{"run_name": "again", **values})
    return json.loads((folder / "again" / "result.json").read_text())


def unserved(capsys, folder, checkpoint, mode="evaluate", **values) -> str:
    """The one line with which a mode refuses a checkpoint."""
    if mode == "recommend":
        folder = FLAGS["output_dir"].default
    return refused(capsys, folder, **{**UNSET, "mode": mode, "checkpoint": str(checkpoint), **values})


@pytest.mark.parametrize("place", [".", "checkpoint.pt"])
def test_evaluation_gives_the_bytes_of_the_run(tmp_path, trained, place):
    evaluated(tmp_path, trained / place)
    tables = {f"{name}.parquet" for name in ("per_user", "recommendations", "ranks", "items")}
    for name in ("result.json", *tables):
        assert (tmp_path / "again" / name).read_bytes() == (trained / name).read_bytes(), name
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert names == {"config.json", "cost.json", "report.html", "result.json", *tables}


@pytest.mark.parametrize("mode", ["evaluate", "recommend"])
def test_data_that_are_elsewhere_are_an_error_and_not_downloaded(tmp_path, capsys, trained, monkeypatch, mode):
    monkeypatch.setattr(pooch, "retrieve", lambda *a, **k: pytest.fail("downloaded"))
    checkpoint = torch.load(trained / "checkpoint.pt", weights_only=True)
    settings = json.loads(checkpoint["config"]) | {"dataset_dir": "datasets"}
    torch.save({**checkpoint, "config": json.dumps(settings)}, tmp_path / "checkpoint.pt")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    users = {"users": ["all"]} if mode == "recommend" else {}
    error = unserved(capsys, tmp_path / "again", tmp_path / "checkpoint.pt", mode, **users)
    assert "datasets/ml-1m is missing" in error and "--dataset_dir" in error
    assert not list((tmp_path / "elsewhere").iterdir()) and not (tmp_path / "again").exists()
    if mode == "evaluate":
        evaluated(tmp_path, tmp_path / "checkpoint.pt", dataset_dir=str(trained.parent))


def test_evaluation_may_ask_other_questions(tmp_path, trained):
    own = json.loads((trained / "result.json").read_text())["metrics"]
    result = evaluated(
        tmp_path,
        trained,
        eval_k=["7"],
        user_attribute=["age", "gender"],
        rerank_alpha=0.0,
        exposure_floor=0.0,
        warm_threshold=0.4,
        eval_history_draws=2,
    )
    metrics = result["metrics"]
    assert "test/ndcg@7/gap/age" in metrics and "test/ndcg@7/gender/F" in metrics and "test/ndcg@5" not in metrics
    assert metrics["test/reranked/ndcg@7"] == metrics["test/ndcg@7"], "a re-ranking by relevance alone"
    # what was selected, and by what, is the run's
    assert (result["selected_by"], result["epoch"], result["method"]) == ("ndcg@5", 1, "fabuhs")
    # popularity does not depend on the weights: other cut-offs and head shares of the same ranking
    assert own["reference/popular/hr@5"] <= metrics["reference/popular/hr@7"] <= own["reference/popular/hr@10"]


def test_evaluation_may_leave_the_attributes_order_to_the_user(tmp_path, trained):
    own = json.loads((trained / "result.json").read_text())["metrics"]
    metrics = evaluated(tmp_path, trained, user_attribute=["age"])["metrics"]
    # what was trained on gender stays masked and sampled by gender
    assert metrics["test/ndcg@5"] == own["test/ndcg@5"] and "test/ndcg@5/gap/gender" not in metrics


def test_evaluation_does_not_touch_a_folder_in_use(tmp_path, capsys, trained):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    error = unserved(capsys, trained.parent, trained, run_name="run")
    assert "already holds a run" in error
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before


@protocol()
def two_left(data, settings, rng, options):
    """Leave-one-out that asks for validation and test items at once: the same train split, another question."""
    made = leave_one_out(data, settings, rng)
    (phase,) = made.phases
    split = phase.split
    both = split.valid.merge(split.test)
    nothing = ItemLists(np.zeros_like(both.indptr), np.zeros(0, dtype=np.int64))
    split = replace(split, valid=nothing, test=both)
    phase = replace(phase, split=split, tests=(Task("test", both, split.train, None),))
    return replace(made, name="two left", description="the last two items", phases=(phase,))


@protocol()
def all_but_one(data, settings, rng, options):
    """Leave-one-out that trains on the validation item too: another train split."""
    made = leave_one_out(data, settings, rng)
    (phase,) = made.phases
    split = phase.split
    joined = split.train.merge(split.valid)
    train = Histories(joined.indptr, joined.item, np.zeros(len(joined.item), dtype=np.int64))
    nothing = ItemLists(np.zeros_like(joined.indptr), np.zeros(0, dtype=np.int64))
    degree = np.bincount(train.item, minlength=split.num_items)
    split = replace(split, train=train, valid=nothing, histories=train, test_histories=train, degree=degree)
    return replace(made, name="all but one", phases=(replace(phase, split=split),))


def test_another_protocol_is_accepted_on_the_same_train_split_only(tmp_path, capsys, monkeypatch, trained):
    monkeypatch.setitem(PROTOCOLS, "two left", two_left)
    monkeypatch.setitem(PROTOCOLS, "all but one", all_but_one)
    own = json.loads((trained / "result.json").read_text())
    result = evaluated(tmp_path, trained, protocol="two left")
    assert result["protocol"] == "two left" and result["fingerprint"] != own["fingerprint"]
    assert result["metrics"]["test/hr@10"] > own["metrics"]["test/hr@10"], "two items to find instead of one"
    error = unserved(capsys, tmp_path, trained, run_name="other", protocol="all but one")
    assert "--protocol=all but one" in error and "fingerprint" in error and not (tmp_path / "other").exists()


def test_data_that_changed_since_are_refused(tmp_path, capsys, trained):
    shutil.copytree(trained.parent / "ml-1m", tmp_path / "ml-1m")
    ratings = tmp_path / "ml-1m" / "ratings.dat"
    ratings.write_text("".join(ratings.read_text().splitlines(keepends=True)[1:]))
    for mode in ("evaluate", "recommend"):
        error = unserved(capsys, tmp_path, trained, mode, dataset_dir=str(tmp_path))
        assert "fingerprint" in error and str(tmp_path) in error
    # the same interactions, and a year that no other movie has
    shutil.copytree(trained.parent / "ml-1m", tmp_path / "b" / "ml-1m")
    movies = tmp_path / "b" / "ml-1m" / "movies.dat"
    first, *rest = movies.read_text(encoding="latin-1").splitlines(keepends=True)
    number, _, genres = first.split("::")
    movies.write_text("".join([f"{number}::Changed (1899)::{genres}", *rest]), encoding="latin-1")
    error = unserved(capsys, tmp_path, trained, dataset_dir=str(tmp_path / "b"))
    assert "do not fit" in error and "size mismatch" in error


def content_of(trained):
    return torch.load(trained / "checkpoint.pt", weights_only=True)


def foreign(trained, **changes):
    """The checkpoint with other settings."""
    content = content_of(trained)
    config = json.loads(content["config"]) | changes
    return content | {"config": json.dumps({name: value for name, value in config.items() if value != "gone"})}


def without(trained, name):
    content = content_of(trained)
    del content[name]
    return content


BROKEN = {
    "random bytes": (lambda trained: np.random.default_rng(0).bytes(5000), "cannot be read as a checkpoint"),
    "empty": (lambda trained: b"", "cannot be read as a checkpoint"),
    "truncated": (lambda trained: (trained / "checkpoint.pt").read_bytes()[:5000], "cannot be read as a checkpoint"),
    "pickle": (lambda trained: pickle.dumps({"format": 2}), "cannot be read as a checkpoint"),
    "pickled code": (lambda trained: pickle.dumps(print), "cannot be read as a checkpoint"),
    "tensor": (lambda trained: torch.zeros(3), "cannot be read as a checkpoint"),
    "other format": (lambda trained: content_of(trained) | {"format": 99}, "checkpoint format 99"),
    "a part missing": (lambda trained: without(trained, "train_fingerprint"), "no whole checkpoint"),
    "weights missing": (lambda trained: without(trained, "backbone"), "no whole checkpoint"),
    "settings unknown": (lambda trained: foreign(trained, colour=1), "unknown setting colour"),
    "other architecture": (lambda trained: foreign(trained, user_hidden=[8]), "do not fit the model"),
    "other synthesis": (lambda trained: foreign(trained, synthesis_type="gru"), "do not fit the model"),
    "other data set": (lambda trained: foreign(trained, dataset="netflix"), "--dataset=netflix"),
    "other backbone": (lambda trained: foreign(trained, backbone="nothing"), "--backbone=nothing"),
    "other method": (lambda trained: foreign(trained, fairness_method="nothing"), "--fairness_method=nothing"),
    "other protocol": (lambda trained: foreign(trained, protocol="nothing"), "--protocol=nothing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_or_foreign_checkpoint_is_one_line(tmp_path, capsys, trained, name):
    make, words = BROKEN[name]
    content, path = make(trained), tmp_path / "checkpoint.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    error = unserved(capsys, tmp_path, path)
    assert words in error and str(path) in error and not (tmp_path / "run").exists()


def test_a_state_or_nothing_is_no_checkpoint(tmp_path, capsys, monkeypatch, trained):
    assert "is no file" in unserved(capsys, tmp_path, tmp_path / "missing.pt")
    assert "is no file" in unserved(capsys, tmp_path, tmp_path)
    assert "cannot be read as a checkpoint" in unserved(capsys, tmp_path, trained / "result.json")

    def stop(*arguments):
        raise RuntimeError("a crash")

    with monkeypatch.context() as patch, contextlib.suppress(RuntimeError):
        patch.setattr(train, "ask_tests", stop)
        run_main(tmp_path, epochs=1)
    assert "checkpoint format" in unserved(capsys, tmp_path, tmp_path / "run" / "state.pt")
    # a run that did not come to its end can be judged from what it selected
    assert 0 <= evaluated(tmp_path, tmp_path / "run")["metrics"]["test/ndcg@5"] <= 1


# Recommendations


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_recommendations_are_those_of_the_run(tmp_path, capsys, trained, suffix):
    path = tmp_path / f"lists.{suffix}"
    served(tmp_path, trained, mode="recommend", users=["all"], recommendations=str(path))
    frame = pd.read_parquet(path) if suffix == "parquet" else pd.read_csv(path)
    own = recommended(trained, "test/reranked", k=5)
    assert f"{len(frame):,} rows in {path}" in capsys.readouterr().out
    # user 8 of the file trains only
    assert set(frame["user"]) - set(own["user"]) == {8} and len(frame) == len(own) + 5
    asked = frame[frame["user"] != 8].reset_index(drop=True)
    assert asked[["user", "rank", "item", "title"]].equals(own.astype(asked.dtypes)[["user", "rank", "item", "title"]])
    np.testing.assert_allclose(asked["score"], own["score"], rtol=1e-5)
    assert not (tmp_path / "run").exists(), "nothing else is written"


def test_a_few_users_are_printed_in_the_order_asked_for(tmp_path, capsys, trained):
    served(tmp_path, trained, mode="recommend", users=["8", "3", "8"], eval_k=["4"], rerank_fair=False)
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.split()[:1] in (["3"], ["8"])]
    assert [row[:2] for row in rows] == [[user, str(rank)] for user in ("8", "3") for rank in range(1, 5)]
    assert any("best 4 items by score of 2 users" in line for line in lines)
    known = pd.read_csv(trained.parent / "ml-1m" / "ratings.dat", sep="::", engine="python", header=None)
    assert not {int(row[2]) for row in rows[:4]} & set(known.loc[known[0] == 8, 1])


@pytest.mark.parametrize(
    ("users", "words"), [([], "nobody"), (["no one"], "1 unknown, such as no one"), (["3", ""], "1 unknown")]
)
def test_unknown_users_are_refused(tmp_path, capsys, trained, users, words):
    error = unserved(capsys, tmp_path, trained, "recommend", users=users)
    assert words in error and "all" in error


@pytest.mark.parametrize("name", ["lists.txt", "lists", "missing/lists.csv", "file/lists.csv", "folder.csv"])
def test_recommendations_that_cannot_be_written_are_refused_first(tmp_path, capsys, monkeypatch, trained, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    monkeypatch.setattr(Evaluator, "rank", lambda *arguments, **options: pytest.fail("ranked in vain"))
    values = {"users": ["3"], "recommendations": str(tmp_path / name)}
    error = unserved(capsys, tmp_path, trained, "recommend", **values)
    assert name in error and "allowed is" in error


def test_a_full_disk_keeps_the_lists_from_before(tmp_path, capsys, monkeypatch, trained):
    path = tmp_path / "lists.csv"
    path.write_text("before")

    def refuse(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", refuse)
    values = {"users": ["3"], "recommendations": str(path)}
    error = unserved(capsys, tmp_path, trained, "recommend", **values)
    assert "lists.csv" in error and "make room" in error and path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["lists.csv"]
