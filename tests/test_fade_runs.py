"""Whole runs under FADE's protocol: what each phase begins with and trains on, what is asked, and being cut off."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from absl.testing import flagsaver

import main
from model.evaluation.evaluator import Evaluator
from model.evaluation.keys import CHANCE, CHANCE_PARTS, EXCESS, ListKey, MetricKey, by_list
from model.methods.fade import FADE
from model.modes import setup
from tests.support.blocks import batches_noted, run_of, small_and_quick, states_noted
from tests.support.contracts import same
from tests.support.light import light_runs
from tests.support.runs import FLAGS, TINY, recommended, refused, run_main
from tests.support.stops import CutOff, at_call, crash, outputs, terminate

FAIR = {"enable_fairness": True, "fairness_method": "fade"}
UNSET = {name: FLAGS[name].default for name in TINY}
# steps of an epoch of the pretraining, and of a block
PRETRAINED, BLOCK = 15, 3


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    small_and_quick(monkeypatch)


def steps(state) -> float:
    """How many steps the optimiser has taken."""
    (optimiser,) = state["training"].values()
    (count,) = {float(entry["step"]) for entry in optimiser["state"].values()} or {0.0}
    return count


# --- Where phases start ---


@pytest.mark.parametrize(
    ("restart", "every"),
    [
        ("none", 1),
        ("pretrained", 1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("retrain", 1), ("pretrained", 2), ("retrain", 2))),
    ],
)
def test_a_block_goes_on_from_the_last_one_or_from_where_the_restart_says(
    tmp_path, monkeypatch, capsys, restart, every
):
    noted = states_noted(monkeypatch)
    run_main(tmp_path, **run_of(f"restart={restart}", f"restart_every={every}"))
    begun, ended = ({name: states[place] for name, states in noted.items()} for place in (0, 1))
    assert steps(begun["snapshot-0"]) == 0 and steps(ended["snapshot-0"]) == PRETRAINED
    restarted = [number for number in (1, 2) if restart != "none" and number % every == 0]
    names, lines = ["snapshot-0"], [("snapshot-0", "1", "1")]
    for number in (1, 2):
        name, before = f"snapshot-{number}", f"snapshot-{number - 1}"
        if number in restarted and restart == "pretrained":
            before = "snapshot-0"
        if number in restarted and restart == "retrain":
            before = f"retrain-{number}"
            names, lines = [*names, before], [*lines, (before, "1", "1")]
            # weights and the optimiser as the run began, on all that was known at the block before
            assert same(begun[before], begun["snapshot-0"])
            assert steps(ended[before]) == PRETRAINED + (number - 1) * BLOCK
        # the weights byte for byte, and the moments and the count of steps with them
        assert same(begun[name], ended[before])
        assert steps(ended[name]) == steps(begun[name]) + 2 * BLOCK
        assert not same(ended[name]["backbone"], begun[name]["backbone"])
        names, lines = [*names, name], [*lines, (name, "1", "2"), (name, "2", "2")]
    assert list(noted) == names
    # lines about epochs name the phase
    assert re.findall(r"^(.+), epoch (\d)/(\d): loss", capsys.readouterr().out, re.MULTILINE) == lines
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["phase"] for row in rows] == [name for name, *_ in lines]
    assert [path.name for path in (tmp_path / "run").glob("*.pt")] == ["checkpoint.pt"]


def test_the_strategy_pretrain_leaves_every_snapshot_as_it_was(tmp_path, monkeypatch):
    noted = states_noted(monkeypatch)
    monkeypatch.setattr(Evaluator, "leakage", lambda *arguments: {"leakage_auc/gender": 0.625})
    metrics = by_list(run_main(tmp_path, **run_of("strategy=pretrain"), keep_phases=True)["metrics"])
    first = noted["snapshot-0"][1]
    assert all(same(state, first) for number in (1, 2) for state in noted[f"snapshot-{number}"])
    assert metrics["test/snapshot-1/next"] != metrics["test/snapshot-2/next"], "asked about other blocks all the same"
    # phases that train nothing are kept too
    names = {path.name for path in (tmp_path / "run").glob("*.pt")}
    assert names == {"checkpoint.pt", *(f"checkpoint-snapshot-{number}.pt" for number in range(3))}
    # and vectors are probed once, at the end
    probed = {name for name, own in metrics.items() if own.get("leakage_auc/gender") == 0.625}
    assert probed == {"test/snapshot-2/next", "test/snapshot-2/remain"}


@pytest.mark.slow
def test_the_strategy_fulltrain_begins_anew_each_time(tmp_path, monkeypatch):
    noted = states_noted(monkeypatch)
    run_main(tmp_path, **run_of("strategy=fulltrain"))
    fresh = noted["snapshot-0"][0]
    for number in range(3):
        begun, ended = noted[f"snapshot-{number}"]
        assert same(begun, fresh) and steps(ended) == PRETRAINED + BLOCK * number


# --- Batches and negatives ---


def placed(entries):
    return [places for places, _ in entries]


@pytest.fixture(scope="module")
def steps_taken():
    """A function: options -> the set-up run, and the places and batches of every step by phase."""

    def taken(folder, patch, *options):
        small_and_quick(patch)
        values = run_of("epochs=3", *options, epochs=3, num_negatives=6)
        with flagsaver.flagsaver(**{**TINY, **values, "output_dir": str(folder)}):
            run = setup.prepare(main.settings_from_flags().config())
        noted = batches_noted(patch)
        run_main(folder, **values)
        return run, noted

    return taken


def test_batches_are_cut_once_and_negatives_of_a_block_are_drawn_once(tmp_path, monkeypatch, steps_taken):
    run, noted = steps_taken(tmp_path, monkeypatch, "spare_first=True")
    data, pretraining, *blocks = run.data, *noted
    first, second, third = (pretraining[15 * epoch : 15 * (epoch + 1)] for epoch in range(3))
    cut = [list(range(start, start + 32)) for start in range(0, 15 * 32, 32)]
    for epoch in (first, second, third):
        assert sorted(placed(epoch)) == cut, "the same batches"
    assert len({str(placed(epoch)) for epoch in (first, second, third)}) == 3, "in another order each epoch"
    drawn = [{places[0]: batch.negatives.tolist() for places, batch in epoch} for epoch in (first, second, third)]
    assert all(drawn[0][start] != drawn[1][start] for start in drawn[0]), "with other negatives at each visit"
    for entries, begin in zip(blocks, (15 * 32, 18 * 32), strict=True):
        epochs = [entries[3 * epoch : 3 * (epoch + 1)] for epoch in range(3)]
        assert [placed(epoch) for epoch in epochs] == [[[*range(32)], [*range(32, 64)], [*range(64, 96)]]] * 3
        for place, (_, batch) in enumerate(epochs[0]):
            rows = slice(begin + 32 * place, begin + 32 * (place + 1))
            assert batch.users.tolist() == data.user_id[rows].tolist()
            assert batch.positives.tolist() == data.item_id[rows].tolist()
            assert all(batch.negatives.tolist() == epoch[place][1].negatives.tolist() for epoch in epochs)
    # item 0, whatever a user ever touches, and an item twice in a row are never drawn
    touched = set(zip(data.user_id.tolist(), data.item_id.tolist(), strict=True))
    for _, batch in (entry for entries in noted for entry in entries):
        for user, items in zip(batch.users.tolist(), batch.negatives.tolist(), strict=True):
            assert len(set(items)) == 6 and 0 not in items
            assert not {(user, item) for item in items} & touched


@pytest.mark.slow
def test_strict_negatives_know_the_past_alone(tmp_path, monkeypatch, steps_taken):
    run, noted = steps_taken(tmp_path, monkeypatch, "strict=True")
    keys = run.data.user_id * run.data.num_items + run.data.item_id
    for number, entries in enumerate(noted):
        known = set(keys[: 15 * 32 + 96 * number].tolist())
        drawn = {
            key
            for _, batch in entries
            for key in (batch.users[:, None] * run.data.num_items + batch.negatives).flatten().tolist()
        }
        assert not drawn & known
        assert drawn & set(keys.tolist()), "what she touches later may be drawn"
    assert any((batch.negatives == 0).any() for entries in noted for _, batch in entries)


@pytest.mark.slow
def test_without_fixed_batches_rows_are_shuffled_and_negatives_drawn_anew(tmp_path, monkeypatch, steps_taken):
    _, noted = steps_taken(tmp_path, monkeypatch, "fixed_batches=False")
    for entries, size in zip(noted, (480, 96, 96), strict=True):
        count = size // 32
        epochs = [entries[count * epoch : count * (epoch + 1)] for epoch in range(3)]
        orders = [[place for places in placed(epoch) for place in places] for epoch in epochs]
        assert all(sorted(order) == list(range(size)) for order in orders)
        assert orders[0] != orders[1] != orders[2] != sorted(orders[2])
        negatives = [
            dict(pair for places, batch in epoch for pair in zip(places, batch.negatives.tolist(), strict=True))
            for epoch in epochs
        ]
        assert sum(negatives[0][place] != negatives[1][place] for place in range(size)) > size / 2


# --- What is reported ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder above a finished run of FADE that keeps its phases, and goes back to the pretrained weights."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch, light_runs():
        small_and_quick(patch)
        run_main(folder, **run_of("restart=pretrained", "full=True", **FAIR, keep_phases=True))
    return folder


@pytest.fixture(scope="module")
def results(finished):
    metrics = json.loads((finished / "run" / "result.json").read_text())["metrics"]
    return by_list({key: np.nan if value is None else value for key, value in metrics.items()})


TASKS = ("next", "remain", "next-full", "remain-full")


def test_means_over_snapshots_are_of_absolute_values(results):
    for task in TASKS:
        own = [results[f"test/snapshot-{number}/{task}"] for number in range(3)]
        mean = results[f"test/mean/{task}"]
        for text, value in mean.items():
            expected = (own[1][text] + own[2][text]) / 2
            assert value == pytest.approx(expected, rel=1e-12, nan_ok=True), text
        gap, signed = "ndcg_hits@5/gap/gender", "ndcg_hits@5/difference/gender"
        assert [entry[gap] for entry in own] == pytest.approx([abs(entry[signed]) for entry in own], nan_ok=True)
        assert mean[gap] >= abs(mean[signed])


def test_only_parts_whose_mean_is_that_of_the_means_are_averaged(results):
    mean, whole = (set(map(MetricKey.parse, results[f"test/{phase}/next"])) for phase in ("mean", "snapshot-1"))
    assert {key.part for key in mean} == {"", CHANCE, EXCESS}
    assert {key for key in whole if key.part in ("", CHANCE, EXCESS)} == mean
    assert {key.part for key in whole} > set(CHANCE_PARTS)
    for name in ("ndcg", "ndcg_hits", "f1", "recall"):
        for spread in ("gap", "difference", "std"):
            assert MetricKey(name, 5, "gender", spread=spread) in mean
    averaged = {ListKey.parse(name, True, True) for name in results if "/mean/" in name}
    assert {(key.source, key.yardstick, key.task) for key in averaged} == {
        (source, yardstick, task)
        for source, yardstick in (("test", ""), ("reference", "popular"), ("reference", "random"))
        for task in TASKS
    }


def test_a_task_is_asked_among_few_items_and_among_all(finished):
    ranks, items = (pd.read_parquet(finished / "run" / f"{name}.parquet") for name in ("ranks", "items"))
    catalogue = items["item"].nunique()
    asked = ranks.groupby(["list", "user"])["rank"].agg(["size", "max"])
    for number in range(3):
        drawn = asked.loc[f"test/snapshot-{number}/remain"]
        assert (drawn["max"] <= drawn["size"] + 9).all()
        full = asked.loc[f"test/snapshot-{number}/remain-full"]
        assert full["max"].max() <= catalogue and (full["max"] >= drawn["max"]).mean() > 0.9


@pytest.mark.probes
@pytest.mark.slow
def test_leakage_is_measured_of_the_last_snapshot_alone(tmp_path):
    metrics = by_list(run_main(tmp_path, **run_of())["metrics"])
    measured = {name for name, own in metrics.items() if any(key.startswith("leakage_auc/") for key in own)}
    assert measured == {"test/snapshot-2/next", "test/snapshot-2/remain"}


def test_a_dry_run_times_what_is_trained(tmp_path, capsys):
    for strategy, phases in (("pretrain", ["snapshot-0"]), ("finetune", [f"snapshot-{number}" for number in range(3)])):
        with flagsaver.flagsaver(
            **{**TINY, **run_of(f"strategy={strategy}"), "dry_run": True, "output_dir": str(tmp_path)}
        ):
            main.main(["main.py"])
        out = capsys.readouterr().out
        assert re.findall(r"^(.+): \d+ steps an epoch at", out, re.MULTILINE) == phases
        assert len(re.findall(r"^snapshot-[12]: trains nothing$", out, re.MULTILINE)) == 3 - len(phases)
        assert not (tmp_path / "run").exists()


# --- Other modes ---


def in_mode(folder, mode, **values):
    place = {} if mode == "recommend" else {"output_dir": str(folder), "run_name": "again"}
    with flagsaver.flagsaver(**{**UNSET, **place, "mode": mode, **values}):
        main.main(["main.py"])


@pytest.mark.parametrize(
    ("checkpoint", "number"), [("checkpoint-snapshot-1.pt", 1), ("checkpoint-snapshot-2.pt", 2), ("", 2)]
)
def test_a_kept_snapshot_is_evaluated_to_its_own_numbers(tmp_path, finished, results, checkpoint, number):
    in_mode(tmp_path, "evaluate", checkpoint=str(finished / "run" / checkpoint))
    metrics = json.loads((tmp_path / "again" / "result.json").read_text())["metrics"]
    again = by_list({key: np.nan if value is None else value for key, value in metrics.items()})
    assert set(again) == {name for name in results if f"/snapshot-{number}/" in name}
    assert all(again[name] == pytest.approx(results[name], rel=0, nan_ok=True) for name in again)


@pytest.mark.slow
def test_a_kept_snapshot_recommends_what_it_ranked(tmp_path, finished):
    path = tmp_path / "lists.parquet"
    in_mode(
        tmp_path,
        "recommend",
        checkpoint=str(finished / "run/checkpoint-snapshot-2.pt"),
        users=["all"],
        recommendations=str(path),
    )
    frame, own = pd.read_parquet(path), recommended(finished / "run", "test/snapshot-2/next-full", k=5)
    kept = frame.set_index(["user", "rank"]).loc[pd.MultiIndex.from_frame(own[["user", "rank"]])].reset_index()
    assert len(own) and kept["item"].tolist() == own["item"].tolist()
    earlier = recommended(finished / "run", "test/snapshot-1/next-full", k=5)
    both = own.merge(earlier, on=["user", "rank"])
    assert (both["item_x"] != both["item_y"]).any(), "another snapshot recommends otherwise"


def test_lists_of_others_and_the_export_are_refused_in_one_line(tmp_path, capsys, finished):
    rankings = tmp_path / "lists.csv"
    rankings.write_text("user,item,rank\n1,1,1\n")
    values = {name: value for name, value in run_of().items() if name in ("protocol", "protocol_option", "eval_k")}
    values |= {name: TINY[name] for name in TINY if name.startswith("synthetic_")} | {"dataset": "synthetic"}
    error = refused(capsys, tmp_path, **{**UNSET, **values, "mode": "score", "rankings": str(rankings)})
    assert "--protocol=fade ranks candidates of its own, which no file can know; pass another protocol" in error
    error = refused(capsys, tmp_path, **run_of(), dry_run=True, export_split=str(tmp_path / "split"))
    assert error.startswith("error: --export_split: --mode=score ranks the full catalogue")
    error = refused(capsys, tmp_path, **run_of(), eval_negatives=9)
    assert "--eval_negatives=9 has no effect with --protocol=fade" in error
    assert not (tmp_path / "run").exists() and not (tmp_path / "split").exists()


@pytest.mark.slow
def test_strategies_are_compared_on_the_lists_of_one_snapshot(tmp_path, capsys):
    for strategy in ("finetune", "fulltrain"):
        run_main(tmp_path, **run_of(f"strategy={strategy}"))
        (tmp_path / "run").rename(tmp_path / strategy)
    runs = [f"{tmp_path / strategy}:snapshot-2/next" for strategy in ("finetune", "fulltrain")]
    in_mode(tmp_path, "compare", runs=runs)
    rows = json.loads((tmp_path / "again" / "comparison.json").read_text())["rows"]
    assert {"ndcg@5", "f1@5", "ndcg_hits@5"} <= {row["metric"] for row in rows}
    # means over phases are of no user, and several lists need a name
    for name in (":mean/next", ""):
        chosen = [f"{tmp_path / strategy}{name}" for strategy in ("finetune", "fulltrain")]
        error = refused(capsys, tmp_path, **{**UNSET, "mode": "compare", "runs": chosen, "run_name": "more"})
        assert "name one behind a colon: snapshot-0/next, snapshot-0/remain" in error and "mean/next," not in error


# --- Cut off ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A function: strategy -> the folder above a finished run."""
    folders = {}

    def get(*options):
        if options not in folders:
            folders[options] = tmp_path_factory.mktemp("whole")
            with pytest.MonkeyPatch.context() as patch, light_runs():
                small_and_quick(patch)
                run_main(folders[options], **run_of(*options, **FAIR))
        return folders[options]

    return get


def slow(*cases):
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


# steps: 15 of the pretraining, then 6 of each block: an epoch has 3
@pytest.mark.parametrize("action", [terminate, pytest.param(crash, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("options", "number"),
    [
        (("restart=pretrained",), 25),
        *slow(
            *((("restart=pretrained",), number) for number in (1, 7, 15, 16, 17, 19, 21, 22, 27)),
            *(((), number) for number in (9, 18, 23)),
            *((("restart=retrain",), number) for number in (9, 17, 33, 40, 57)),
            *((("strategy=fulltrain",), number) for number in (9, 17, 40)),
            (("strategy=pretrain",), 9),
        ),
    ],
)
def test_a_run_cut_off_within_a_phase_goes_on_to_the_same_bytes(tmp_path, monkeypatch, whole, options, number, action):
    expected = outputs(whole(*options))
    with monkeypatch.context() as patch, pytest.raises((SystemExit, CutOff)):
        patch.setattr(FADE, "train_step", at_call(number, action, FADE.train_step))
        run_main(tmp_path, **run_of(*options, **FAIR))
    assert not (tmp_path / "run" / "result.json").exists()
    run_main(tmp_path, **run_of(*options, **FAIR), resume=True)
    assert outputs(tmp_path) == expected


# each snapshot ranks two tasks
@pytest.mark.slow
@pytest.mark.parametrize("action", [terminate, pytest.param(crash, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("options", "number"),
    [
        (("restart=pretrained",), 2),
        *slow(
            *((("restart=pretrained",), number) for number in (1, 3, 4, 6)),
            *(
                ((*options,), number)
                for options in (["strategy=pretrain"], ["restart=retrain"])
                for number in (2, 5, 6)
            ),
        ),
    ],
)
def test_a_run_cut_off_between_phases_goes_on_to_the_same_bytes(tmp_path, monkeypatch, whole, options, number, action):
    expected = outputs(whole(*options))
    with monkeypatch.context() as patch, pytest.raises((SystemExit, CutOff)):
        patch.setattr(Evaluator, "rank", at_call(number, action, Evaluator.rank))
        run_main(tmp_path, **run_of(*options, **FAIR))
    assert not (tmp_path / "run" / "result.json").exists()
    run_main(tmp_path, **run_of(*options, **FAIR), resume=True)
    assert outputs(tmp_path) == expected
