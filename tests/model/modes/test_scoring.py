"""Rankings of other programs judged as a run's own: end to end, against runs of this program and against ranx."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from absl import flags
from absl.testing import flagsaver

import main
from data.datareader import READERS
from data.readers.options import SyntheticOptions
from data.readers.synthetic import read_synthetic
from model.evaluation.evaluator import Evaluator
from tests.support.light import light_runs
from tests.support.runs import (
    TINY,
    run_main,
)
from tests.support.trec import write_trec

DATA = {name: value for name, value in TINY.items() if name == "dataset" or name.startswith("synthetic_")}
BY_NEIGHBOURS = {
    "backbone": "slim", "enable_fairness": True, "fairness_method": "none", "rerank_fair": True, "exposure_floor": 0.3,
    **dict.fromkeys(("epochs", "batch_size", "num_negatives", "user_hidden", "item_hidden")),
}  # fmt: skip
UNSET = {name: flags.FLAGS[name].default for name in DATA if name != "dataset"}


def call(folder, **values):
    """Run `main` under flags in this process."""
    with flagsaver.flagsaver(output_dir=str(folder), **{**DATA, **values}):
        main.main(["main.py"])


def score(folder, rankings, **values):
    """Score `rankings` into `folder/name`; give the content of result.json."""
    name = values.pop("run_name", "scored")
    call(folder, mode="score", rankings=str(rankings), run_name=name, **{"eval_k": ["5", "10"], **values})
    return json.loads((folder / name / "result.json").read_text())


def refused(capsys, folder, **values):
    """Run `main`, which must end with exit code 2 and one line on standard error; give that line."""
    with pytest.raises(SystemExit) as caught:
        call(folder, **values)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


def judged(metrics, prefix="test/"):
    """Metrics below a prefix, but for those that need vectors and those of the re-ranked lists."""
    names = [name for name in metrics if name.startswith(prefix) and "leakage" not in name]
    return {name[len(prefix) :]: metrics[name] for name in names if prefix != "test/" or "reranked" not in name}


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """The tiny data's export."""
    folder = tmp_path_factory.mktemp("export")
    with flagsaver.flagsaver(dry_run=True, export_split=str(folder / "split"), **TINY):
        main.main(["main.py"])
    return folder / "split"


def popular(split):
    """Every item of the catalogue for every user of the test set, by train interactions, known ones left out."""
    train, valid, test = (pd.read_csv(split / f"{name}.csv") for name in ("train", "valid", "test"))
    items = pd.read_csv(split / "items.csv").sort_values("train_degree", ascending=False, kind="stable")
    frame = test[["user"]].merge(items[["item", "train_degree"]], how="cross")
    seen = pd.MultiIndex.from_frame(pd.concat([train, valid])[["user", "item"]])
    frame = frame[~pd.MultiIndex.from_frame(frame[["user", "item"]]).isin(seen)]
    frame["rank"] = frame.groupby("user").cumcount() + 1
    return frame.rename(columns={"train_degree": "score"})


def test_the_lists_of_a_run_score_as_the_run_did(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Evaluator, "leakage", lambda *arguments: {"leakage_auc/gender": 0.75})
    ks = ["5", "50", "10"]
    own = run_main(tmp_path, eval_k=ks, user_attribute=["gender", "occupation"])
    values = {"eval_k": ks, "user_attribute": ["gender", "occupation"]}
    rerank = {"rerank_fair": True, "exposure_floor": 0.3, "eval_k": ["10", "5"]}
    result = score(tmp_path, tmp_path / "run" / "recommendations.parquet", **values)
    assert judged(result["metrics"]) == judged(own["metrics"])
    assert judged(result["metrics"], "reference/") == judged(own["metrics"], "reference/")
    assert result.keys() - own.keys() == {"rankings"} and own.keys() - result.keys() == {"hidden_attributes"}
    of_lists, of_training = ("Small groups", "Within chance"), ("The batch", "Presets", "Leakage")
    assert any(text.startswith(of_training) for text in own["warnings"])
    assert not any(text.startswith(of_training) for text in result["warnings"])
    before, after = ([text for text in one["warnings"] if text.startswith(of_lists)] for one in (own, result))
    assert len(before) >= 2 and before == after
    assert (result["epoch"], result["method"]) == (None, "rankings of recommendations.parquet")
    assert result["fingerprint"] == own["fingerprint"]
    assert "test/leakage_auc/gender" in own["metrics"]
    assert not any("leakage" in name for name in result["metrics"])

    folders = tmp_path / "run", tmp_path / "scored"
    for name in ("per_user.parquet", "recommendations.parquet", "ranks.parquet", "items.parquet"):
        before, after = (pd.read_parquet(folder / name) for folder in folders)
        assert list(before.columns) == list(after.columns)
        pd.testing.assert_frame_equal(before, after, check_dtype=False)
    names = [{path.name for path in folder.iterdir()} for folder in folders]
    # beside the pictures, which these tests leave out
    assert names[0] - names[1] == {"checkpoint.pt", "metrics.jsonl"}
    assert not names[1] - names[0]

    # the same re-ranked, by scores; and what re-ranking gave, whose scores no longer fall, of fewer items
    call(
        tmp_path, mode="evaluate", checkpoint=str(tmp_path / "run"), run_name="again", user_attribute=["gender"],
        **UNSET, **rerank, dataset="ml",
    )  # fmt: skip
    again = json.loads((tmp_path / "again" / "result.json").read_text())
    whole = score(tmp_path, tmp_path / "run" / "recommendations.parquet", run_name="reranked", **rerank)
    assert judged(whole["metrics"], "test/reranked/") == judged(again["metrics"], "test/reranked/")
    assert judged(whole["metrics"]) == judged(again["metrics"])
    capsys.readouterr()
    path = f"{tmp_path}/again/recommendations.parquet:test/reranked"
    lists = score(tmp_path, path, run_name="lists", eval_k=["10", "5"])
    assert "lists whose scores rise along their ranks" in capsys.readouterr().out
    for name, value in judged(lists["metrics"]).items():
        assert value == again["metrics"][f"test/reranked/{name}"], name


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """The folder of a re-ranked run whose scores tie, and its result."""
    folder = tmp_path_factory.mktemp("several")
    with light_runs():
        result = run_main(folder, **BY_NEIGHBOURS, eval_k=["10", "20"])
    return folder / "run", result


@pytest.mark.parametrize(
    ("chosen", "name"),
    [
        ("", "test"),
        (":test", "test"),
        (":reranked", "test/reranked"),
        (":test/reranked", "test/reranked"),
        (":popular", "reference/popular"),
        (":reference/random", "reference/random"),
    ],
)
def test_each_list_of_a_run_scores_as_it_did(several, tmp_path, capsys, chosen, name):
    run, own = several
    result = score(tmp_path, f"{run}/recommendations.parquet{chosen}", eval_k=["10", "20"])
    assert f"  the list {name}\n" in capsys.readouterr().out
    assert judged(result["metrics"]) == {
        key: value
        for key, value in judged(own["metrics"], f"{name}/").items()
        if not key.startswith(("reranked", "inf"))
    }
    assert result["method"] == "rankings of recommendations.parquet" + f", list {name}" * bool(chosen)
    assert result["rankings"]["users_without_list"] == 0


def test_ties_rank_as_in_the_run_only_with_its_ranks(several, tmp_path, capsys):
    run, own = several
    (tmp_path / "recommendations.parquet").write_bytes((run / "recommendations.parquet").read_bytes())
    path = f"{tmp_path}/recommendations.parquet:popular"
    alone = score(tmp_path, path, eval_k=["10"])["metrics"]["test/mrr@10"]
    assert alone > own["metrics"]["reference/popular/mrr@10"], "a place is at least as good as the rank behind all ties"
    (tmp_path / "ranks.parquet").write_text("no table")
    error = refused(capsys, tmp_path, mode="score", rankings=path, run_name="bad", eval_k=["10"])
    assert "ranks.parquet cannot be read" in error and "take it away" in error


def test_a_list_that_is_not_there_is_one_line(several, split, tmp_path, capsys):
    values = {"mode": "score", "run_name": "bad", "eval_k": ["5"]}
    own = f"{several[0]}/recommendations.parquet"
    error = refused(capsys, tmp_path, rankings=f"{own}:half", **values)
    assert "has no list 'half'; name one behind a colon: test, test/reranked, reference/popular" in error
    frame = popular(split)
    path = _written(tmp_path / "a.csv", frame)
    assert "it has no column list" in refused(capsys, tmp_path, rankings=f"{path}:test", **values)
    path = _written(tmp_path / "b.csv", pd.concat([frame.assign(list=name) for name in ("x", "y")]))
    assert "has several lists; name one behind a colon: x, y" in refused(capsys, tmp_path, rankings=str(path), **values)
    wrong = pd.concat([frame.assign(list="x"), frame.assign(list="y", item=99999)])
    path = _written(tmp_path / "c.csv", wrong)
    assert "no item" in refused(capsys, tmp_path, rankings=f"{path}:y", **values)
    named, plain = score(tmp_path, f"{path}:x"), score(tmp_path, tmp_path / "a.csv", run_name="plain")
    assert named["metrics"] == plain["metrics"]
    one = _written(tmp_path / "d:e.csv", frame.assign(list="z"))
    assert score(tmp_path, one, run_name="one")["metrics"] == plain["metrics"]


def test_every_form_scores_the_same_and_popular_is_popular(split, tmp_path):
    frame = popular(split)
    shuffled = frame.sample(frac=1, random_state=0)
    shuffled[["user", "item", "rank"]].to_csv(tmp_path / "a.csv", index=False)
    shuffled[["user", "item", "score"]].to_parquet(tmp_path / "b.parquet")
    write_trec(tmp_path / "c.run", shuffled)
    results = [score(tmp_path, tmp_path / name, run_name=name[0]) for name in ("a.csv", "b.parquet", "c.run")]
    metrics = results[0]["metrics"]
    assert metrics == results[1]["metrics"] == results[2]["metrics"]
    for name, value in judged(metrics, "reference/popular/").items():
        if name.startswith(("hr", "ndcg", "mrr")):
            # a run counts candidates that tie with the wanted item as above it
            assert metrics[f"test/{name}"] >= value - 1e-9 or "/g" in name or "/std" in name
        else:
            assert metrics[f"test/{name}"] == value, name


RANX_SCRIPT = """
import json, sys
import pandas as pd
from ranx import Qrels, Run, evaluate
test = pd.read_csv(sys.argv[1], dtype=str)
qrels = Qrels({user: {item: 1} for user, item in zip(test.user, test.item)})
frame = pd.read_csv(sys.argv[2], dtype={"user": str, "item": str}).astype({"user": object, "item": object})
columns = {"q_id_col": "user", "doc_id_col": "item", "score_col": "score"}
runs = [Run.from_df(frame, **columns), Run.from_file(sys.argv[3], kind="trec")]
names = ["hit_rate@5", "ndcg@5", "mrr@5"]
print(json.dumps([evaluate(qrels, run, names, make_comparable=True) for run in runs]))
"""


@pytest.mark.slow
def test_accuracy_equals_ranx_on_the_same_files(split, tmp_path):
    frame = popular(split).drop(columns="rank")
    generator = np.random.default_rng(0)
    # lists of random length in random order; five users have none
    frame = frame.assign(score=generator.random(len(frame)))[generator.random(len(frame)) < 0.4]
    frame = frame[~frame["user"].isin(frame["user"].unique()[:5])]
    frame["rank"] = frame.groupby("user")["score"].rank(ascending=False).astype(int)
    frame[["user", "item", "score"]].to_csv(tmp_path / "a.csv", index=False)
    write_trec(tmp_path / "b.trec", frame)
    # its own process with compilation off: compiling takes minutes, running these few lists takes none
    answer = subprocess.run(
        [sys.executable, "-c", RANX_SCRIPT, split / "test.csv", tmp_path / "a.csv", tmp_path / "b.trec"],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    for name, theirs in zip(("a.csv", "b.trec"), json.loads(answer.stdout.splitlines()[-1]), strict=True):
        result = score(tmp_path, tmp_path / name, run_name=f"scored {name}", eval_k=["5"])
        assert result["rankings"]["users_without_list"] == 5
        for ours, key in (("hr", "hit_rate@5"), ("ndcg", "ndcg@5"), ("mrr", "mrr@5")):
            assert result["metrics"][f"test/{ours}@5"] == pytest.approx(theirs[key], abs=1e-9)
            assert 0 < theirs[key] < 1


def test_what_is_left_out_is_counted_and_printed(split, tmp_path, capsys):
    train, frame = pd.read_csv(split / "train.csv"), popular(split)
    whole = score(tmp_path, _written(tmp_path / "a.csv", frame), run_name="a")
    seen = train.groupby("user").head(2)[["user", "item"]].assign(score=1e9)
    padded = pd.concat([seen, frame.drop(columns="rank")])
    capsys.readouterr()
    result = score(tmp_path, _written(tmp_path / "b.csv", padded), run_name="b")
    assert result["metrics"] == whole["metrics"]
    assert result["rankings"]["entries_left_out"] == len(seen)
    printed = capsys.readouterr().out
    assert f"entries that their user has in train or validation (left out, lists close up): {len(seen)}" in printed
    assert "lists longer than the 10 items that are read (cut): 60" in printed
    assert f"made for fingerprint {whole['fingerprint']}" not in printed

    first = frame["user"].iloc[0]
    short = frame[(frame["user"] != first) & (frame["rank"] <= 7)]
    result = score(tmp_path, _written(tmp_path / "c.csv", short), run_name="c")
    printed = capsys.readouterr().out
    assert "users asked without a list (counted as empty): 1" in printed
    assert "lists shorter than the largest K, 10 (nothing is shown in their last places): 59" in printed
    assert "their rank is 51, beyond every K" in printed
    per_user = pd.read_parquet(tmp_path / "c" / "per_user.parquet").set_index("user")
    assert len(per_user) == 60
    assert per_user.loc[first, "test/hr@10"] == 0
    assert result["metrics"]["test/hr@5"] <= whole["metrics"]["test/hr@5"]


def _written(path, frame):
    frame.to_csv(path, index=False)
    return path


def test_the_split_beside_the_rankings_is_checked(split, tmp_path, capsys):
    path = _written(tmp_path / "a.csv", popular(split))
    # an editor may have saved it with a byte order mark
    (tmp_path / "split.json").write_bytes(b"\xef\xbb\xbf" + (split / "split.json").read_bytes())
    score(tmp_path, path)
    assert "made for fingerprint" in capsys.readouterr().out
    values = {"mode": "score", "rankings": str(path), "run_name": "other", "eval_k": ["5"]}
    error = refused(capsys, tmp_path, **values, seed=1)
    assert "these flags and data give" in error
    (tmp_path / "split.json").write_text("[]")
    assert "split.json" in refused(capsys, tmp_path, **values)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("mode", ["evaluate", "recommend"])
def test_a_scored_ranking_has_no_weights(split, tmp_path, capsys, mode):
    score(tmp_path, _written(tmp_path / "a.csv", popular(split)))
    where = {"output_dir": str(tmp_path)} if mode == "evaluate" else {}
    users = {"users": ["all"]} if mode == "recommend" else {}
    values = {name: flags.FLAGS[name].default for name in DATA}
    values |= {**where, **users, "mode": mode, "checkpoint": str(tmp_path / "scored")}
    with flagsaver.flagsaver(**values), pytest.raises(SystemExit):
        main.main(["main.py"])
    assert "holds scored rankings, which have no weights; pass the folder of a trained run" in capsys.readouterr().err


def test_bad_requests_end_with_one_line_and_leave_nothing(split, tmp_path, capsys):
    frame = popular(split)
    values = {"mode": "score", "run_name": "bad", "eval_k": ["5", "10"]}
    path = str(_written(tmp_path / "a.csv", frame.assign(item=frame["item"].replace(frame["item"].iloc[3], 99999))))
    assert "'99999' (row 4)" in refused(capsys, tmp_path, rankings=path, **values)
    assert "is no file" in refused(capsys, tmp_path, rankings=str(tmp_path / "absent.csv"), **values)
    assert "--rankings" in refused(capsys, tmp_path, **values)
    path = str(_written(tmp_path / "b.csv", frame))
    assert "no effect with --mode=score" in refused(capsys, tmp_path, rankings=path, epochs=3, **values)
    assert "no effect with --mode=score" in refused(capsys, tmp_path, rankings=path, eval_negatives=3, **values)
    folder = str(tmp_path)
    assert "no effect with --mode=score" in refused(capsys, tmp_path, rankings=path, export_split=folder, **values)
    assert "rerank_pool" in refused(capsys, tmp_path, rankings=path, rerank_fair=True, rerank_pool=4, **values)
    assert not (tmp_path / "bad").exists()


def test_ids_with_leading_zeros_are_scored(tmp_path, monkeypatch):
    def read_books(options):
        small = SyntheticOptions(num_users=20, num_items=30, num_interactions=200)
        data = read_synthetic(dataclasses.replace(options, synthetic=small))
        isbn = np.array([f"{item // 2:0{9 + item % 2}d}" for item in range(30)], dtype=object)
        return dataclasses.replace(data, name="books", original_item_ids=isbn, time=None)

    monkeypatch.setitem(READERS, "books", read_books)
    values = {**UNSET, "dataset": "books", "title_encoder": "hash", "user_attribute": ["gender"], "eval_k": ["5", "10"]}
    values["warm_threshold"] = 0.2
    call(tmp_path, dry_run=True, export_split=str(tmp_path / "split"), **values)
    test = pd.read_csv(tmp_path / "split" / "test.csv", dtype=str)
    assert list(test.columns) == ["user", "item", "rating"]
    test[["user", "item"]].assign(rank=1).to_csv(tmp_path / "perfect.csv", index=False)
    result = score(tmp_path, tmp_path / "perfect.csv", **values)
    assert result["metrics"]["test/ndcg@10"] == 1


def test_no_user_who_is_asked_is_an_error(tmp_path, capsys, monkeypatch):
    def read_sparse(options):
        data = read_synthetic(dataclasses.replace(options, synthetic=SyntheticOptions(20, 30, 200)))
        kept = (data.user_id > 0) | (np.cumsum(data.user_id == 0) <= 2)  # the first user has two interactions
        changed = {name: getattr(data, name)[kept] for name in ("user_id", "item_id", "rating", "time")}
        return dataclasses.replace(data, name="sparse", **changed)

    monkeypatch.setitem(READERS, "sparse", read_sparse)
    values = {**UNSET, "dataset": "sparse", "title_encoder": "hash", "mode": "score", "eval_k": ["5"]}
    path = _written(tmp_path / "a.csv", pd.DataFrame({"user": [1], "item": [1], "rank": [1]}))
    assert "none of the users" in refused(capsys, tmp_path, rankings=str(path), run_name="bad", **values)
    path = _written(tmp_path / "b.csv", pd.DataFrame({"user": [1, 2], "item": [1, 1], "rank": [1, 1]}))
    del values["mode"]
    assert score(tmp_path, path, **values)["rankings"]["users_ignored"] == 1
