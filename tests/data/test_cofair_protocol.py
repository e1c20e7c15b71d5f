"""Cofair's protocol: its split against a loop over users, what is a candidate, and the counts of MovieLens-1M."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.datareader import READERS
from data.options import parse_options
from data.protocols import PROTOCOLS
from data.protocols.base import ProtocolSettings
from data.readers.options import DEFAULT_DATASET_DIR, ReadOptions
from data.structs import FeatureSpec, FeatureTable, InteractionData

SETTINGS = ProtocolSettings(warm_threshold=0.2, ks=(10, 20), epochs=7, patience=3)
COFAIR = PROTOCOLS["cofair"]


def made_of(counts, timed=True):
    """Data in which user n has `counts[n]` interactions, in random order, with ratings of every kind."""
    rng = np.random.default_rng(len(counts))
    users, items = len(counts), max(counts)
    user = rng.permutation(np.repeat(np.arange(users), counts))
    item = np.empty_like(user)
    for one in range(users):
        item[user == one] = rng.permutation(items)[: counts[one]]
    tables = [FeatureTable((FeatureSpec("id", "categorical", n),), {"id": torch.arange(n)}) for n in (users, items)]
    rating, time = rng.integers(1, 6, len(user)).astype(float), rng.integers(0, 9, len(user))
    ids = np.arange(users), np.arange(items)
    return InteractionData("tiny", *tables, user, item, rating, time if timed else None, {}, *ids, np.full(items, "a"))


def protocol_of(data, seed=0, ks=SETTINGS.ks, **options):
    settings_of_run = dataclasses.replace(SETTINGS, ks=ks)
    return COFAIR(data, settings_of_run, np.random.default_rng(seed), COFAIR.Options(**options))


def keys(users, items):
    return list(zip(users.tolist(), items.tolist(), strict=True))


def pairs(lists):
    return keys(lists.owner, lists.item)


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 31), min_size=1, max_size=6),
    fewest=st.integers(3, 8),
    held_out=st.sampled_from([0.2, 0.5, 0.05]),
    timed=st.booleans(),
)
def test_each_users_items_are_counted_out_as_a_loop_does(counts, fewest, held_out, timed):
    counts = [*counts, 8]
    data = made_of(counts, timed)
    (phase,) = protocol_of(data, fewest=fewest, held_out=held_out).phases
    split = phase.split
    everything = {user: set(data.item_id[data.user_id == user].tolist()) for user in range(len(counts))}
    for user, own in everything.items():
        parts = [split.train[user].tolist(), split.valid[user].tolist(), split.test[user].tolist()]
        if len(own) < fewest:
            assert parts == [[], [], []]
            continue
        out = math.floor(held_out * len(own))
        valid = out // 2
        expected = [len(own) - out, valid, out - valid] if valid >= 1 else [len(own) - 2, 1, 1]
        assert list(map(len, parts)) == expected
        assert sorted(item for part in parts for item in part) == sorted(own), "disjoint, and together all"
    if timed:
        times = dict(zip(keys(data.user_id, data.item_id), data.time.tolist(), strict=True))
        assert split.train.time.tolist() == [times[key] for key in keys(split.train.owner, split.train.item)]


@pytest.mark.parametrize(
    ("interactions", "expected"),
    [(5, (3, 1, 1)), (9, (7, 1, 1)), (10, (8, 1, 1)), (15, (12, 1, 2)), (20, (16, 2, 2)), (29, (24, 2, 3))],
)
def test_a_fifth_is_held_out_rounded_down_and_half_of_it_validates(interactions, expected):
    split = protocol_of(made_of([interactions])).phases[0].split
    assert (len(split.train.item), len(split.valid.item), len(split.test.item)) == expected


def test_validation_items_are_among_the_test_candidates():
    protocol = protocol_of(made_of([12, 4, 20]))
    (phase,) = protocol.phases
    (test,) = phase.tests
    for task in (phase.valid, test):
        assert pairs(task.excluded) == pairs(phase.split.train) and task.candidates is None
    assert pairs(test.relevant) == pairs(phase.split.test) and pairs(phase.valid.relevant) == pairs(phase.split.valid)
    assert len(phase.split.valid.item) > 0
    # and they are drawn as negatives, like every item that is not trained on
    assert phase.barred is None


def test_the_epoch_is_selected_by_recall_at_10_to_four_digits():
    (phase,) = protocol_of(made_of([12])).phases
    assert (phase.metric, phase.digits, phase.epochs, phase.patience) == ("recall@10", 4, 7, 3)
    assert phase.judged(0.12344) == 0.1234 == phase.judged(0.12336) < phase.judged(0.12351)
    assert dataclasses.replace(phase, digits=None).judged(0.12344) == 0.12344
    assert COFAIR.presets["patience"] == 21 and COFAIR.presets["eval_k"] == (10, 20)
    assert "recall" in protocol_of(made_of([12])).definitions.further
    assert protocol_of(made_of([12]), selected_at=20).phases[0].metric == "recall@20"


def test_the_seed_draws_the_split_and_every_item_may_be_held_out():
    data = made_of([20] * 5)
    first, again, other = (protocol_of(data, seed).phases[0].split for seed in (1, 1, 2))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    tested = np.concatenate([protocol_of(data, seed).phases[0].split.test.item for seed in range(60)])
    counts = np.bincount(tested, minlength=20)
    assert counts.min() >= 10 and counts.max() <= 55, "no item is favoured: 30 are expected of each, sd 5"


def test_every_interaction_is_a_positive_whatever_its_rating():
    data = made_of([20, 20])
    low = dataclasses.replace(data, rating=np.ones(len(data.rating)))
    assert protocol_of(data).phases[0].split.fingerprint() == protocol_of(low).phases[0].split.fingerprint()


def test_the_description_says_the_shares():
    text = protocol_of(made_of([20]), held_out=0.3).description
    assert "70 % to train, 15 % to validate and 15 % to test" in text and "validation items are among" in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fewest=2", "3 or more"),
        ("held_out=0", "a share between 0 and 1"),
        ("held_out=1", "a share between 0 and 1"),
        ("selected_at=0", "1 or more"),
    ],
)
def test_options_out_of_range_name_their_flag(text, words):
    with pytest.raises(ValueError, match=f"--protocol_option={text}.*: allowed is {words}"):
        parse_options(COFAIR.Options, [text], "protocol_option")


def test_what_it_cannot_split_is_refused():
    with pytest.raises(ValueError, match="selects by Recall@10; put 10 into --eval_k"):
        protocol_of(made_of([12]), ks=(5, 20))
    with pytest.raises(ValueError, match="no user of tiny has 5 interactions; lower --protocol_option=fewest"):
        protocol_of(made_of([4, 3]))


@pytest.mark.slow
def test_counts_of_movielens(tmp_path):
    folder = Path(__file__).parents[2] / DEFAULT_DATASET_DIR
    if not (folder / "ml-1m" / "ratings.dat").exists():
        pytest.skip("MovieLens-1M is not here")
    data = READERS["ml"](ReadOptions(folder, "hash", tmp_path, may_download=False))
    split = protocol_of(data).phases[0].split
    assert [len(part.item) for part in (split.train, split.valid, split.test)] == [802_553, 97_383, 100_273]
    assert split.num_users == 6040 and split.valid.lengths.min() >= 1 and split.test.lengths.min() >= 1
