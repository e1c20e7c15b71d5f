"""Bad input and bad luck: each ends with one line and exit code 2, or goes on in a defined way.

Elsewhere: malformed rows, headers and downloads in `test_datareader.py`, damaged files in `test_fuzz_readers.py`;
caches that cannot be read or written in `test_cache.py` and `test_titles.py`; values out of range, CUDA without a GPU
and missing data in `test_main.py`; crashes, signals, changed settings and a folder in use in `test_resume.py`; names of
run folders and killed writes in `test_report.py`; W&B failures in `test_tracking.py`; checkpoints, `--mode=evaluate`
and `--mode=recommend` in `test_serving.py`.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from absl.testing import flagsaver

import main
from data.dataloader import BatchSampler
from data.datareader import READERS
from data.protocols import PROTOCOLS
from data.protocols.base import protocol
from data.protocols.loo import leave_one_out
from data.readers.rows import read_csv_rows
from data.structs import Group, Histories, ItemLists, Rejected
from model.evaluation.candidates import random_scores, sample_candidates
from model.evaluation.ranking import rank_catalogue
from model.modes import train
from model.results.metric_text import UNDEFINED
from model.runs import files
from model.runs.errors import is_out_of_memory
from model.sparsenn import SparseNN
from model.training.checkpoints import save_checkpoint
from model.training.update import update
from tests.support.light import light_runs
from tests.support.raw_files import cleaned_bytes, dump_bytes, movielens_bytes, prepared_bytes, release_bytes, write
from tests.support.runs import (
    FLAGS,
    TINY,
    recommended,
    refused,
    run_main,
)

UNSET = {name: FLAGS[name].default for name in TINY if name.startswith("synthetic_")}
FAIR = {"enable_fairness": True, "fairness_sampling": True, "rerank_fair": True, "rerank_pool": 12}
TOY = {
    **UNSET, "dataset": "toy", "title_encoder": "hash", "epochs": 1, "batch_size": 64, "num_negatives": 2,
    "user_hidden": ["16"], "item_hidden": ["16"], "eval_k": ["3"], "sample_size": 4, "warm_threshold": 0.3,
}  # fmt: skip
USERS, ITEMS, EACH = 24, 20, 8


@pytest.fixture
def register(monkeypatch, tiny_data):
    """A function: change -> registers the data set `toy`, 24 users with 8 of 20 items each, after the change."""

    def make(change=lambda data: data):
        draws = np.random.default_rng(0)
        items = np.concatenate([draws.permutation(ITEMS)[:EACH] for _ in range(USERS)])
        tables = {
            side: type(table)(table.schema, {name: column[:size] for name, column in table.columns.items()})
            for side, table, size in (("users", tiny_data.users, USERS), ("items", tiny_data.items, ITEMS))
        }
        toy = replace(
            tiny_data,
            name="toy",
            **tables,
            user_id=np.repeat(np.arange(USERS), EACH),
            item_id=items,
            rating=np.ones(len(items), dtype=np.float32),
            time=np.arange(len(items)),
            user_groups={
                name: Group(name, group.codes[:USERS], group.labels) for name, group in tiny_data.user_groups.items()
            },
            original_user_ids=np.arange(USERS),
            original_item_ids=np.arange(ITEMS),
            item_titles=tiny_data.item_titles[:ITEMS],
        )
        monkeypatch.setitem(READERS, "toy", lambda options: change(toy))

    return make


def only(kept):
    """A change: the interactions for which `kept(user, item, number)` holds."""

    def change(data):
        number = np.arange(len(data.user_id)) % EACH
        keep = kept(data.user_id, data.item_id, number)
        columns = {name: getattr(data, name)[keep] for name in ("user_id", "item_id", "rating", "time")}
        return replace(data, **columns)

    return change


def knows(user, items):
    """A change: `user` has interacted with the first `items` items and no other."""

    def change(data):
        data = only(lambda users, item, number: users != user)(data)
        more = {"user_id": np.full(items, user), "item_id": np.arange(items)}
        more |= {"rating": np.ones(items, dtype=np.float32), "time": 10_000 + np.arange(items)}
        return replace(data, **{name: np.concatenate([getattr(data, name), values]) for name, values in more.items()})

    return change


def grouped(codes):
    """A change: `codes` of every user in the attribute gender."""

    def change(data):
        groups = {**data.user_groups, "gender": Group("gender", np.broadcast_to(codes, USERS).copy(), ("M", "F"))}
        return replace(data, user_groups=groups)

    return change


def undefined(result, *names):
    """Whether the test metrics of these names are all undefined."""
    return all(result["metrics"][f"test/{name}"] is None for name in names)


# Data files


DATA = {"ml": movielens_bytes(), "bx": cleaned_bytes(), "bx-2004": dump_bytes(),
        "modcloth": prepared_bytes(), "modcloth-release": release_bytes()}  # fmt: skip
DAMAGE = {"missing": lambda data: None, "empty": lambda data: b"", "truncated": lambda data: data[: 2 * len(data) // 3],
          "binary": lambda data: bytes(range(256)) * 20}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(("form", "name"), [(form, name) for form, files in DATA.items() for name in files])
def test_a_damaged_data_file_is_one_line_that_names_a_file(tmp_path, capsys, form, name, damage):
    content = DAMAGE[damage](DATA[form][name])
    write(tmp_path, {other: data for other, data in DATA[form].items() if other != name})
    if content is not None:
        write(tmp_path, {name: content})
    values = {"dataset_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache"), "title_encoder": "hash"}
    error = refused(capsys, tmp_path / "out", **UNSET, dataset=form.partition("-")[0], **values, eval_k=["2"])
    assert Path(name).name in error
    assert not (tmp_path / "out").exists()


def test_a_row_ends_at_a_line_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'A;B\n1;"one\nt\x00wo\nthree"\n4;four\n')
    rows = read_csv_rows(path, {"A": "a", "B": "b"}, "utf-8")
    assert rows["a"].tolist() == ["4"] and rows.num_rows == 4
    assert Rejected("a.csv", "NUL or undecodable bytes", 1, (3,)) in rows.rejected


def test_quotes_that_never_close_cost_no_more_than_their_lines(tmp_path):
    # from every line, a reader that never gave up would run to the end of the file
    path = tmp_path / "a.csv"
    path.write_text("A;B;C\n" + '1";"2";"3\n' * 30_000)
    rows = read_csv_rows(path, {"A": "a", "B": "b", "C": "c"}, "utf-8")
    assert len(rows) == 0 and rows.num_rejected == 30_000


# Users


@pytest.mark.probes
@pytest.mark.parametrize("synthesis_type", ["mean", "attention", "gru"])
def test_users_with_few_interactions_train_or_are_left_out(tmp_path, register, synthesis_type):
    # nobody tests users 0, 3 and 4, who have 0, 1 and 2 interactions; the probe reads everybody's vector
    register(only(lambda user, item, number: (user > 4) | (number < np.array([0, 8, 8, 1, 2])[user.clip(max=4)])))
    result = run_main(tmp_path, **TOY, **FAIR, synthesis_type=synthesis_type, adversary_input="pair")
    users = set(pd.read_parquet(tmp_path / "run" / "per_user.parquet")["user"])
    assert users == set(range(USERS)) - {0, 3, 4}
    assert 0 <= result["metrics"]["test/reranked/ndcg@3"] <= 1 and result["metrics"]["test/leakage_auc/gender"] >= 0


@protocol()
def cold(data, settings, rng, options):
    """Leave-one-out in which the first three users have no train interactions."""
    made = leave_one_out(data, settings, rng)
    (phase,) = made.phases
    split = phase.split
    keep = split.train.owner > 2
    train = Histories.build(split.train.owner[keep], split.train.item[keep], split.train.time[keep], split.num_users)
    degree = np.bincount(train.item, minlength=split.num_items)
    split = replace(split, train=train, histories=train, test_histories=train, degree=degree)
    return replace(made, phases=(replace(phase, split=split),))


@pytest.mark.probes
@pytest.mark.parametrize("synthesis_type", ["mean", "attention", "gru", "none"])
def test_a_user_without_train_interactions_is_still_scored(tmp_path, monkeypatch, register, synthesis_type):
    register()
    monkeypatch.setitem(PROTOCOLS, "cold", cold)
    base = {"user_hidden": None, "item_hidden": None, "sample_size": 15, "fairness_sampling": False}
    own = base if synthesis_type == "none" else {}
    result = run_main(tmp_path, **{**TOY, **FAIR, **own}, synthesis_type=synthesis_type, protocol="cold")
    frame = recommended(tmp_path / "run", "test/reranked")
    assert (frame["user"].value_counts() == 3).all() and {0, 1, 2} <= set(frame["user"])
    assert np.isfinite(frame["score"]).all() and result["metrics"]["test/leakage_auc/gender"] >= 0


def test_too_few_interactions_for_the_protocol(tmp_path, capsys, register):
    register(only(lambda user, item, number: number < 2))
    assert "finds no test item" in refused(capsys, tmp_path, **TOY)


# Items


def test_items_without_features_and_items_that_nobody_has(tmp_path, register):
    def bare(data):
        genres, title = data.items.columns["genres"].clone(), data.items.columns["title"].clone()
        genres[:2], title[:2] = 0, 0
        items = type(data.items)(data.items.schema, {**data.items.columns, "genres": genres, "title": title})
        titles = np.where(np.arange(ITEMS) < 2, "", data.item_titles).astype(object)
        return only(lambda user, item, number: item != 5)(replace(data, items=items, item_titles=titles))

    register(bare)
    run_main(tmp_path, **{**TOY, **FAIR, "eval_k": ["20"], "rerank_pool": 20})
    frame = recommended(tmp_path / "run")
    # all are candidates, the one that never occurs too
    assert set(frame["item"]) == set(range(ITEMS)) and set(frame.loc[frame["item"] < 2, "title"]) == {""}
    assert (frame.loc[frame["item"] == 5, "user"].nunique()) == USERS


def test_books_without_author_year_and_publisher(tmp_path):
    books = [(f"{book:010d}", "", "", "", "") for book in range(ITEMS)]
    users = [(str(user), "a, b, usa", str(20 + user)) for user in range(USERS)]
    ratings = [(str(user), books[(user + 3 * place) % ITEMS][0], "5") for user in range(USERS) for place in range(6)]
    write(tmp_path, cleaned_bytes(books, users, ratings))
    values = {"dataset_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
    result = run_main(tmp_path / "out", **{**TOY, "dataset": "bx"}, **values)
    assert 0 <= result["metrics"]["test/ndcg@3"] <= 1


# Catalogues


def test_a_list_longer_than_the_catalogue_or_the_pool_is_refused(tmp_path, capsys, register):
    register()
    error = refused(capsys, tmp_path, **{**TOY, "eval_k": ["3", "21"]})
    assert "--eval_k=3,21" in error and "20 items" in error
    error = refused(capsys, tmp_path, **{**TOY, **FAIR, "rerank_pool": 2})
    assert "--rerank_pool=2" in error and "K = 3" in error
    assert not tmp_path.joinpath("run").exists()


def test_pools_and_negatives_beyond_the_catalogue_are_all_there_is(tmp_path, register):
    register()
    fair = {**TOY, **FAIR}
    whole = run_main(tmp_path / "a", **{**fair, "rerank_pool": 20})
    more = run_main(tmp_path / "b", **{**fair, "rerank_pool": 1000}, eval_negatives=1000)
    assert more["metrics"] == whole["metrics"]
    many = run_main(tmp_path / "c", **{**TOY, "num_negatives": 100, "in_batch_negatives": 1000})
    assert 0 <= many["metrics"]["test/ndcg@3"] <= 1


def test_who_knows_all_items_but_one_gets_that_one(tmp_path, register):
    register(knows(0, ITEMS))
    run_main(tmp_path, **TOY, **FAIR)
    frame = recommended(tmp_path / "run", "test/reranked")
    # the last one is the test item, and the only candidate
    assert frame.loc[frame["user"] == 0, "item"].tolist() == [ITEMS - 1]
    per_user = pd.read_parquet(tmp_path / "run" / "per_user.parquet").set_index("user")
    assert per_user.loc[0, "test/ndcg@3"] == per_user.loc[0, "test/reranked/ndcg@3"] == 1


# Groups


@pytest.mark.probes
@pytest.mark.parametrize("codes", [0, -1], ids=["one group", "all unknown"])
@pytest.mark.parametrize("values", [{}, {"item_adversary": "user_attribute", "adversary_input": "pair"}], ids=str)
def test_without_two_groups_gaps_and_parity_are_undefined(tmp_path, capsys, register, codes, values):
    register(grouped(codes))
    result = run_main(tmp_path, **TOY, **FAIR, **values)
    shares = [f"{name}{rate}@3/gender" for name in ("dp", "eo") for rate in ("", "_rate", "_js")]
    assert undefined(result, "ndcg@3/gap/gender", "ndcg@3/std/gender", "ndcg@3/gender/F", *shares)
    assert undefined(result, *(f"leakage_auc{kind}/gender" for kind in ("", "_linear", "_mlp", "_within", "_erased")))
    assert undefined(result, "ndcg@3/gender/M") == (codes == -1)
    printed = capsys.readouterr().out
    (gap,) = [line for line in printed.splitlines() if line.startswith("NDCG@3 ")]
    assert gap.split()[6 - 1] == UNDEFINED, "the column of group F"
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert (row["train/adversary/user"] == 0) == (codes == -1)


# Head and tail


@pytest.mark.parametrize(("warm_threshold", "missing"), [(1.0, "tail"), (1e-17, "head")])
def test_all_items_head_or_tail(tmp_path, register, warm_threshold, missing):
    register()
    result = run_main(tmp_path, **{**TOY, **FAIR, "warm_threshold": warm_threshold})
    assert undefined(result, *(f"{name}@3/{missing}" for name in ("hr", "ndcg", "mrr")), "dtr@3")
    assert result["metrics"]["test/reranked/infeasible_users"] == (USERS if missing == "tail" else 0)


# Histories


@pytest.mark.parametrize("synthesis_type", ["mean", "attention", "gru"])
def test_a_history_longer_than_any_is_the_longest(tmp_path, monkeypatch, register, synthesis_type):
    register()
    widths = set()
    sample = BatchSampler.sample
    monkeypatch.setattr(
        BatchSampler,
        "sample",
        lambda *arguments: [batch := sample(*arguments), widths.add(batch.history.items.shape[1])][0],
    )
    longest = run_main(tmp_path / "a", **{**TOY, "sample_size": EACH}, synthesis_type=synthesis_type)
    longer = run_main(tmp_path / "b", **{**TOY, "sample_size": 10_000}, synthesis_type=synthesis_type)
    assert longer["metrics"] == longest["metrics"]
    assert widths == {EACH - 2}, "train histories"
    assert (tmp_path / "b" / "run" / "checkpoint.pt").stat().st_size < 3_000_000


# Losses that are not finite


def finite_state(folder):
    state = torch.load(folder / "run" / "state.pt", weights_only=True)
    return all(weight.isfinite().all() for weight in state["backbone"].values())


def spoiling(call, step=update):
    """`update`, whose loss becomes NaN at its call of that number."""
    calls = 0

    def spoilt(loss, *optimisers, **options):
        nonlocal calls
        calls += 1
        step(loss * math.nan if calls == call else loss, *optimisers, **options)

    return spoilt


def unwatched(loss, *optimisers, **options):
    """`update` as it is on a GPU: nobody looks at the loss."""
    for optimiser in optimisers:
        optimiser.zero_grad()
    loss.backward()
    for optimiser in optimisers:
        optimiser.step()


SMALL = {"epochs": 2, "batch_size": 128}  # seven steps an epoch
TABLES = tuple(f"{name}.parquet" for name in ("per_user", "recommendations", "ranks", "items"))
COMPARED = ("result.json", "metrics.jsonl", *TABLES)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run leaves that nothing hindered."""
    folder = tmp_path_factory.mktemp("whole")
    with light_runs():
        run_main(folder, **SMALL)
    return folder / "run"


@pytest.mark.parametrize(
    ("step", "values", "where"),
    [
        (update, {}, "epoch 2, step 3 of 7: the training loss is nan"),
        (unwatched, {}, "epoch 2: weights of"),
        # saved after every step
        (unwatched, {"checkpoint_every": "0.000001min"}, "epoch 2: weights of"),
    ],
)
def test_a_loss_of_nan_ends_the_run_and_keeps_what_was_good(tmp_path, capsys, monkeypatch, whole, step, values, where):
    with monkeypatch.context() as patch:
        patch.setattr(train, "update", spoiling(10, step))
        error = refused(capsys, tmp_path, **SMALL, **values)
    assert where in error and "keeps epoch 1" in error and "--lr" in error and error.count("\n") == 0
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["epoch"] == 1
    assert finite_state(tmp_path)
    # what was spoilt by chance is not when the run goes on, and then nothing shows
    run_main(tmp_path, **SMALL, **values, resume=True)
    assert all((tmp_path / "run" / n).read_bytes() == (whole / n).read_bytes() for n in COMPARED)


@pytest.mark.parametrize("values", [{}, {"enable_fairness": True}], ids=str)
def test_a_learning_rate_that_diverges(tmp_path, capsys, values):
    error = refused(capsys, tmp_path, lr=1e30, **values)
    assert error.startswith("error: epoch 1") and "diverged" in error and "no epoch was kept" in error
    assert not (tmp_path / "run" / "state.pt").exists() and not (tmp_path / "run" / "checkpoint.pt").exists()
    # going on does not help, and says the same
    assert refused(capsys, tmp_path, lr=1e30, resume=True, **values) == error


# Files that cannot be written


@pytest.fixture
def full(monkeypatch):
    """A function: file name, number -> from the write of that number on, there is no room for the file."""

    def fill(patch, name, number=1):
        writes, replace_file = 0, os.replace

        def refuse(source, target):
            nonlocal writes
            if Path(target).name == name:
                writes += 1
                if writes >= number:
                    raise OSError(errno.ENOSPC, "No space left on device")
            replace_file(source, target)

        patch.setattr(os, "replace", refuse)

    return fill


@pytest.mark.parametrize("name", ["per_user.parquet", "recommendations.parquet", "cost.json", "result.json"])
def test_a_full_disk_does_not_lose_a_trained_run(tmp_path, capsys, monkeypatch, full, whole, name):
    with monkeypatch.context() as patch:
        full(patch, name)
        error = refused(capsys, tmp_path, **SMALL)
    assert name in error and "No space left" in error and "make room" in error
    assert "--resume" in error and "--run_name=run" in error and "without training" in error
    assert not (tmp_path / "run" / name).exists() and not list((tmp_path / "run").glob(".*"))
    monkeypatch.setattr(train, "train_epoch", lambda *arguments: pytest.fail("trained again"))
    run_main(tmp_path, **SMALL, resume=True)
    assert all((tmp_path / "run" / n).read_bytes() == (whole / n).read_bytes() for n in COMPARED)


@pytest.mark.pictures
def test_a_disk_too_full_for_pictures_costs_a_line(tmp_path, capsys, monkeypatch, full, whole):
    with monkeypatch.context() as patch:
        full(patch, "exposure.svg")
        run_main(tmp_path, **SMALL)
    (warning,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: "))
    assert "the picture exposure is left out" in warning and "exposure.svg (No space left on device)" in warning
    assert (tmp_path / "run" / "result.json").read_bytes() == (whole / "result.json").read_bytes()
    assert "exposure.svg" not in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "number"), [("state.pt", 1), ("state.pt", 2), ("checkpoint.pt", 1), ("config.json", 1)]
)
def test_a_full_disk_while_training_leaves_what_was_there(tmp_path, capsys, monkeypatch, full, whole, name, number):
    with monkeypatch.context() as patch:
        full(patch, name, number)
        error = refused(capsys, tmp_path, **SMALL)
    assert name in error and "No space left" in error and not list((tmp_path / "run").glob(".*"))
    if number > 1:
        assert finite_state(tmp_path)
    run_main(tmp_path, **SMALL, resume=True)
    assert all((tmp_path / "run" / n).read_bytes() == (whole / n).read_bytes() for n in COMPARED)


def test_a_row_that_does_not_fit_leaves_the_rows_before(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    files.append_jsonl(path, {"epoch": 1})
    before = path.read_bytes()

    def half(file, data):
        file.write(data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_write_all", half)
    with pytest.raises(files.WriteError, match=r"metrics\.jsonl \(No space left on device\); make room"):
        files.append_jsonl(path, {"epoch": 2})
    assert path.read_bytes() == before


def test_torch_that_runs_out_of_room_says_so(tmp_path, make_config, tiny_phase, selection):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, make_config(), tiny_phase, selection)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(files.WriteError, match=r"checkpoint\.pt \(File too large\)"):
            save_checkpoint(path, make_config(), tiny_phase, selection)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


# Run folders


@pytest.mark.parametrize("place", ["file/below", "/proc/1/below"])
def test_a_folder_that_cannot_be_made(tmp_path, capsys, place):
    (tmp_path / "file").write_text("")
    error = refused(capsys, tmp_path / place)
    assert "cannot write to" in error and "--output_dir" in error


def test_a_run_that_ends_between_the_look_and_the_lock_is_seen(tmp_path, monkeypatch):
    lock = files.lock_run_dir

    def late(directory):
        (directory / "result.json").write_text("{}")
        return lock(directory)

    monkeypatch.setattr(files, "lock_run_dir", late)
    with pytest.raises(ValueError, match="already holds a run"), files.own_run_dir(tmp_path, "run"):
        pytest.fail("two runs in one folder")
    assert (tmp_path / "run" / "result.json").read_text() == "{}"


# Memory


NO_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSecond line"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to ..."),
]
MEMORY = pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)


def questions(users=23, items=40):
    rng = np.random.default_rng(0)
    relevant = ItemLists(np.arange(users + 1), rng.integers(0, items, users))
    excluded = ItemLists(np.arange(users + 1), (relevant.item + 1) % items)
    return np.arange(users), relevant, excluded, items


def at_most(rows, error):
    """A scorer that finds no memory for more rows; and the sizes that it was asked for."""
    score, asked = random_scores(40, 3), []

    def limited(users):
        asked.append(len(users))
        if len(users) > rows:
            raise error
        return score(users)

    return limited, asked


@MEMORY
@pytest.mark.parametrize("sampled", [False, True])
def test_blocks_that_do_not_fit_are_ranked_in_halves(capsys, error, sampled):
    users, relevant, excluded, items = questions()

    def rank(score):
        rng = np.random.default_rng(1)

        def draw(rows):
            return sample_candidates(users[rows], relevant.take(rows), excluded, items, 7, rng)

        return rank_catalogue(score, users, relevant, excluded, items, 5, 9, draw if sampled else None)

    expected = rank(random_scores(40, 3))
    score, asked = at_most(3, error)
    found = rank(score)
    for name in ("ranks", "topk", "scores", "candidates"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert asked[:2] == [9, 4] and max(asked[2:]) <= 2 and sum(size for size in asked if size <= 3) == len(users)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ranking users: 9 at a time do not fit in memory")


@MEMORY
def test_one_user_that_does_not_fit_is_an_error(error):
    with pytest.raises(ValueError, match="does not fit in memory even one at a time") as caught:
        rank_catalogue(at_most(0, error)[0], *questions(), 5, 9)
    assert "\n" not in str(caught.value)


def test_candidates_are_never_drawn_twice():
    def draw(rows):
        raise MemoryError

    with pytest.raises(ValueError, match="out of memory"):
        rank_catalogue(at_most(9, MemoryError())[0], *questions(), 5, 9, draw)


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="shapes differ"):
        rank_catalogue(at_most(3, RuntimeError("shapes differ"))[0], *questions(), 5, 9)
    assert not is_out_of_memory(ValueError("can't allocate memory"))


@MEMORY
def test_a_run_ranks_with_less_memory_to_the_same_metrics(tmp_path, monkeypatch, whole, error):
    build = SparseNN.build

    def limited(*arguments):
        network = build(*arguments)
        for name in ("encode_users", "score_catalogue"):
            method = getattr(network, name)

            def scarce(first, second, *rest, method=method):
                rows = first if rest == () else second
                if not torch.is_grad_enabled() and len(rows) > 20:
                    raise error
                return method(first, second, *rest)

            monkeypatch.setattr(network, name, scarce, raising=False)
        return network

    monkeypatch.setattr(SparseNN, "build", limited)
    result = run_main(tmp_path, **SMALL)
    expected = json.loads((whole / "result.json").read_text())
    assert result["metrics"] == pytest.approx(expected["metrics"], abs=1e-6, nan_ok=True)


@MEMORY
def test_training_without_memory_is_one_line(tmp_path, capsys, monkeypatch, error):
    def scarce(*arguments, **options):
        raise error

    monkeypatch.setattr(train, "update", scarce)
    assert "out of memory" in refused(capsys, tmp_path) and not (tmp_path / "run" / "checkpoint.pt").exists()


# Flags


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rerank_alpha": math.nan, "rerank_fair": True, "enable_fairness": True}, "--rerank_alpha=nan"),
        ({"lr": math.inf}, "--lr=inf"),
        ({"enable_fairness": True, "adversarial_lambda_user": math.inf}, "--adversarial_lambda_user=inf"),
        ({"checkpoint": "x"}, "--mode=evaluate"),
        ({"users": ["1"]}, "--mode=recommend"),
        ({"recommendations": "x.csv"}, "--mode=recommend"),
        ({"rankings": "x.csv"}, "--mode=score"),
        ({"runs": ["x"]}, "--mode=compare"),
        ({"export_split": "x"}, "--dry_run=True"),
        ({"seed": 1, "seeds": ["1", "2"]}, "exclude each other"),
        ({"checkpoint_every": "0"}, "--checkpoint_every=0"),
        ({"mode": "evaluate"}, "--mode=evaluate"),
        ({"mode": "recommend"}, "--mode=recommend"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_flags_that_contradict_each_other(tmp_path, capsys, values, words):
    assert words in refused(capsys, tmp_path, **values)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("mode", "values", "words"),
    [
        ("evaluate", {"epochs": 3, "checkpoint": "x"}, "--epochs=3 has no effect with --mode=evaluate"),
        ("evaluate", {"rankings": "x", "checkpoint": "x"}, "--mode=score"),
        ("recommend", {"protocol": "loo", "seed": 1, "checkpoint": "x"}, "--seed=1 has no effect"),
        ("recommend", {"checkpoint": "x", "recommendations": "lists.txt"}, "ends in .csv or .parquet"),
        ("recommend", {"checkpoint": "x", "recommendations": "nowhere/lists.csv"}, "a folder that exists"),
        ("score", {}, "--mode=score needs --rankings"),
        ("score", {"lr": 0.1, "rankings": "x"}, "--lr=0.1 has no effect"),
        ("compare", {}, "--mode=compare needs --runs"),
        ("compare", {"dataset": "bx", "runs": ["x"]}, "--dataset=bx has no effect"),
    ],
    ids=str,
)
def test_flags_that_a_mode_does_not_read_are_refused(mode, values, words):
    with flagsaver.flagsaver(mode=mode, **values), pytest.raises(ValueError, match=re.escape(words)):
        main.settings_from_flags()


@pytest.mark.parametrize("argument", ["--no_such_flag=1", "--epochs=many", "--rerank_fair=perhaps", "--device=tpu"])
def test_an_unknown_flag_or_type_is_one_line(capsys, argument):
    with pytest.raises(SystemExit) as caught:
        main.parse(["main.py", argument])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and argument.split("=")[0].strip("-") in error and error.count("\n") == 1
