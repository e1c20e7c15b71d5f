"""What must not be known where something is learned, is not: each test fails when the guard that it names is broken."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from absl.testing import flagsaver

import main
from data.dataloader import edge_batches
from data.datareader import READERS
from data.structs import FeatureTable, Group
from model.evaluation import probes
from model.evaluation.evaluator import Evaluator
from model.evaluation.questions import ask_tests
from model.modes import setup, train
from model.runs.streams import own_generators, torch_generator
from model.training.batches import batch_sampler
from tests.support.kills import KINDS
from tests.support.runs import TINY, run_main

READING = {kind: values for kind, values in KINDS.items() if kind != "none"}
# attention and gru read a history in the same way: whole runs of gru are for the slow suite
RUNS = [kind if kind == "mean" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


CLEAN = {}


@pytest.fixture
def clean(tmp_path_factory):
    """A function: kind of run -> its folder, its result and its last state, on the data as they are.

    With validation after each epoch or, as `every` says, after as many: with two the one at the end, so that nothing
    is selected and the weights say how training went.
    """

    def done(kind, every=1):
        if (kind, every) not in CLEAN:
            folder, states, write = tmp_path_factory.mktemp(kind), [], train.write_state

            def kept(path, config, fingerprint, training):
                states.append(copy.deepcopy(training.state()))
                write(path, config, fingerprint, training)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(train, "write_state", kept)
                CLEAN[kind, every] = folder, run_main(folder, **KINDS[kind], eval_every=every), states[-1]
        return CLEAN[kind, every]

    return done


def read_as(monkeypatch, change):
    """Let the program read synthetic data as `change` makes them."""
    read = READERS["synthetic"]
    monkeypatch.setitem(READERS, "synthetic", lambda options: change(read(options)))


def ask_others(data, places):
    """`data` with other items at `places` of each user's time order from the end (0: test, 1: validation).

    Users get each other's, or one that is new to them where they know that one; the times stay.
    """
    rng, items = np.random.default_rng(5), data.item_id.copy()
    order = np.lexsort((data.time, data.user_id))
    end = np.cumsum(np.bincount(data.user_id, minlength=data.num_users))
    for place in places:
        rows = order[end - 1 - place]
        for row, item in zip(rows, rng.permutation(items[rows]), strict=True):
            own = items[data.user_id == data.user_id[row]]
            items[row] = rng.choice(np.setdiff1d(np.arange(data.num_items), own)) if item in own else item
    assert (items != data.item_id).sum() > 0.9 * len(places) * data.num_users
    return dataclasses.replace(data, item_id=items)


def weights(folder):
    """The checkpoint's weights as bytes, by name."""
    content = torch.load(folder / "run" / "checkpoint.pt", weights_only=True)
    assert not content["method"]
    return {name: value.numpy().tobytes() for name, value in content["backbone"].items()}


def curve(folder, prefix):
    """Rows of the run's metrics whose names begin with `prefix`."""
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key.startswith(prefix)} for row in rows]


def prepared(**values):
    """What `main` makes of flags before it trains: run, phase, backbone and method."""
    with flagsaver.flagsaver(**{**TINY, **values}):
        made = setup.prepare(main.settings_from_flags().config())
    return made, made.protocol.phases[0], *setup.build(made)


# --- Test items, validation items ---


@pytest.mark.parametrize("kind", RUNS)
def test_other_test_items_leave_the_choice_of_epoch_and_the_weights_alone(tmp_path, monkeypatch, clean, kind):
    folder, before, _ = clean(kind)
    read_as(monkeypatch, lambda data: ask_others(data, [0]))
    after = run_main(tmp_path, **KINDS[kind])
    assert after["fingerprint"] != before["fingerprint"]
    assert after["metrics"]["test/ndcg@10"] != before["metrics"]["test/ndcg@10"]
    assert (after["epoch"], after["validation"]) == (before["epoch"], before["validation"])
    assert weights(tmp_path) == weights(folder)
    assert curve(tmp_path, "") == curve(folder, "")


@pytest.mark.parametrize("kind", [kind for kind in RUNS if kind != "compat"])
def test_other_validation_items_leave_training_alone(tmp_path, monkeypatch, clean, kind):
    folder, *_ = clean(kind, every=2)
    read_as(monkeypatch, lambda data: ask_others(data, [0, 1]))
    run_main(tmp_path, **KINDS[kind], eval_every=2)
    assert weights(tmp_path) == weights(folder)
    assert curve(tmp_path, "train/") == curve(folder, "train/")
    assert curve(tmp_path, "valid/") != curve(folder, "valid/")


def statistics(**values):
    """Everything that training counts before its first step."""
    made, phase, backbone, method = prepared(**values)
    sampler = batch_sampler(made, phase, backbone, method)
    method.begin_phase(phase, 100)
    evaluator = Evaluator(backbone, method, made.environment)
    popular = evaluator.yardsticks(phase.tests[0], phase.split, 10)["popular"]
    assert np.array_equal(popular.scores, phase.split.degree[popular.topk]), "popular is by train degree"
    return {
        "degree": phase.split.degree,
        "tail": phase.split.item_groups["popularity"].codes,
        "users": sampler.user,
        "items": sampler.item,
        "known": sampler.negatives.keys,
        "histories": sampler.history.item,
        "weights of histories": sampler.history.log_p,
        "weights of the user side": method.user_adversary.weight,
        "weights of the item side": method.item_adversary.weight,
        "probe users": made.held_out,
    }


@pytest.mark.parametrize("item_adversary", ["popularity", "user_attribute"])
def test_what_training_counts_is_counted_in_train(monkeypatch, item_adversary):
    values = {**KINDS["mean"], "item_adversary": item_adversary}
    clean = statistics(**values)
    read_as(monkeypatch, lambda data: ask_others(data, [0, 1]))
    for name, value in statistics(**values).items():
        assert np.array_equal(value, clean[name]), name


# --- Histories ---


@pytest.mark.parametrize("fairness_sampling", [False, True])
@pytest.mark.parametrize("kind", READING)
def test_no_row_of_training_sees_its_target_or_what_is_held_out(kind, fairness_sampling):
    values = {**KINDS[kind], "fairness_sampling": fairness_sampling}
    made, phase, backbone, method = prepared(**values)
    split = phase.split
    sampler = batch_sampler(made, phase, backbone, method)
    own = {name: [set(lists[user]) for user in range(split.num_users)] for name, lists in vars(split).items()
           if name in ("train", "valid", "test")}  # fmt: skip
    order, generator, seen = torch_generator(0), torch_generator(1), 0
    for edges in edge_batches(len(sampler.user), made.config.batch_size, order):
        batch = sampler.sample(edges, generator, generator)
        rows = len(batch.users)
        history, mask = batch.history.items.view(rows, -1, 1).flatten(1), batch.history.mask.view(rows, -1)
        width = made.config.sample_size
        for row, user in enumerate(batch.users.tolist()):
            read, positive = history[row][mask[row]].tolist(), int(batch.positives[row])
            assert set(read) <= own["train"][user]
            assert not set(read) & (own["valid"][user] | own["test"][user])
            # upstream's negatives have histories of their own, which may hold the row's positive
            target_read = history[row][:width][mask[row][:width]].tolist()
            assert positive not in target_read and positive in own["train"][user]
            assert not set(batch.negatives[row].tolist()) & own["train"][user]
            seen += len(target_read)
    assert seen > len(sampler.user)


@pytest.mark.parametrize("kind", READING)
def test_no_validation_or_test_item_stands_in_a_history_that_is_ranked_by(monkeypatch, kind):
    made, phase, backbone, method = prepared(**KINDS[kind])
    evaluator, encode, pairs = Evaluator(backbone, method, made.environment), None, []

    def recorded(context, users, history):
        pairs.extend(zip(users[:, None].expand_as(history.items)[history.mask].tolist(),
                         history.items[history.mask].tolist(), strict=True))  # fmt: skip
        return encode(context, users, history)

    encode = backbone.encode_users
    monkeypatch.setattr(backbone, "encode_users", recorded)
    held_out = set()
    for lists in (phase.split.valid, phase.split.test):
        held_out |= set(zip(lists.owner.tolist(), lists.item.tolist(), strict=True))
    evaluator.rank(phase.valid, phase.split.histories, phase.split, 10)
    ask_tests(made, phase, evaluator)
    assert len(pairs) > 3 * made.data.num_users
    assert not held_out & set(pairs)


# --- Evaluation ---


@pytest.mark.parametrize("kind", KINDS)
def test_asking_twice_gives_the_same_answers(kind):
    made, phase, backbone, method = prepared(**KINDS[kind], eval_history_draws=1 if kind == "none" else 2)
    evaluator = Evaluator(backbone, method, made.environment)
    first = ask_tests(made, phase, evaluator)
    # whatever is drawn in between
    for generator in (None, *own_generators(backbone).values()):
        torch.rand(3, generator=generator)
    np.random.seed(7)  # noqa: NPY002 (for parts of others that draw from the global stream)
    second = ask_tests(made, phase, evaluator)
    assert [answer.key for answer in first] == [answer.key for answer in second]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_equal(other.metrics, one.metrics)
        np.testing.assert_equal(other.per_user, one.per_user)


@pytest.mark.parametrize("kind", RUNS)
def test_validation_leaves_training_where_it_was(clean, kind):
    (often, _, one), (seldom, _, other) = (clean(kind, every) for every in (1, 2))
    assert len(curve(often, "train/")) == 2
    assert curve(often, "train/") == curve(seldom, "train/")
    for part in ("backbone", "training", "generators"):
        torch.testing.assert_close(one[part], other[part], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["mean", "compat"])
def test_the_memory_for_ranking_does_not_change_results(tmp_path, clean, kind):
    folder, large, _ = clean(kind)
    small = run_main(tmp_path, **KINDS[kind], eval_block_mb=1)
    assert small["epoch"] == large["epoch"]
    assert small["metrics"] == pytest.approx(large["metrics"], rel=1e-9, nan_ok=True)
    assert weights(tmp_path) == weights(folder)


# --- Attributes of the users on whom leakage is measured ---


def turn_round(data, users):
    """`data` in which `users [U]` (bool) have the other gender, as a feature and as a group."""
    group = data.user_groups["gender"]
    codes = np.where(users, 1 - group.codes, group.codes)
    columns = {**data.users.columns, "gender": torch.from_numpy(codes)}
    groups = {**data.user_groups, "gender": Group("gender", codes, group.labels)}
    return dataclasses.replace(data, users=FeatureTable(data.users.schema, columns), user_groups=groups)


def fitted(attackers):
    """Every number that fitting has given `attackers`, as bytes."""
    numbers = []
    for attacker in attackers:
        scaler, model = (step for _, step in attacker.steps)
        found = [scaler.mean_, scaler.scale_]
        found += [model.coef_, model.intercept_] if hasattr(model, "coef_") else [*model.coefs_, *model.intercepts_]
        numbers.append([value.tobytes() for value in found])
    return numbers


@pytest.mark.probes
@pytest.mark.parametrize(
    "values",
    [
        pytest.param({}, marks=pytest.mark.slow, id="mean"),
        pytest.param({"upstream_compat": True}, marks=pytest.mark.slow, id="compat"),
        pytest.param(
            {"synthesis_type": "attention", "item_adversary": "user_attribute", "adversary_input": "pair"}, id="pair"
        ),
    ],
)
def test_attributes_of_probe_users_reach_neither_training_nor_the_attackers(tmp_path, monkeypatch, values):
    # pressure from the first step; sampling would read everybody's attribute (Decision 18)
    values = {"enable_fairness": True, "adversarial_lambda_user": 1.0, "adversarial_lambda_item": 1.0,
              "adversarial_ramp": 0.0, "epochs": 1, **values}  # fmt: skip
    draw, attackers, make = setup.held_out_users, [], probes._attackers

    def recorded(*arguments):
        made = make(*arguments)
        attackers.extend(made.values())
        return made

    monkeypatch.setattr(probes, "_attackers", recorded)
    held_out = prepared(**values)[0].held_out
    # who is held out is drawn by attribute; here the same users stay so
    monkeypatch.setattr(setup, "held_out_users", lambda codes, **options: held_out)
    assert draw is not setup.held_out_users and 0.1 < held_out.mean() < 0.3
    results, found = {}, {}
    turned = {"clean": np.zeros_like(held_out), "probe users": held_out}
    if not values.keys() & {"synthesis_type", "upstream_compat"}:
        turned["others"] = ~held_out
    for name, users in turned.items():
        with monkeypatch.context() as patch:
            read_as(patch, lambda data, users=users: turn_round(data, users))
            attackers.clear()
            results[name] = run_main(tmp_path / name, **values)
            found[name] = fitted(attackers)
    # linear and MLP, on what is served and after erasure
    assert len(found["clean"]) == 4
    assert weights(tmp_path / "probe users") == weights(tmp_path / "clean")
    assert curve(tmp_path / "probe users", "train/") == curve(tmp_path / "clean", "train/")
    assert found["probe users"] == found["clean"]
    leakage = [results[name]["metrics"]["test/leakage_auc_linear/gender"] for name in results]
    assert leakage[1] == pytest.approx(1 - leakage[0]), "the attackers are judged by them"
    if "others" in turned:  # theirs do reach both
        assert weights(tmp_path / "others") != weights(tmp_path / "clean")
        assert found["others"] != found["clean"]
