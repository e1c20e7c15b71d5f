"""FADE's protocol: blocks in order of time, who is asked about what among which items, and the counts of real data."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from absl.testing import flagsaver
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import main
from data.datareader import READERS
from data.options import parse_options
from data.protocols.base import BLOCKS, CONTINUE, FRESH, PER_PHASE, PER_VISIT, SHUFFLED, SHUFFLED_BLOCKS
from data.protocols.fade import FADEOptions, boundaries
from data.readers.options import ReadOptions
from model.evaluation.candidates import sample_candidates
from model.modes import setup
from tests.support.blocks import FADE, SETTINGS, made_of, protocol_of
from tests.support.real_data import real_data


def pairs(lists):
    return set(zip(lists.owner.tolist(), lists.item.tolist(), strict=True))


def trained_rows(phase):
    """The users and items that a phase trains, in its order."""
    train = phase.split.train
    return list(zip(train.owner[phase.train_rows].tolist(), train.item[phase.train_rows].tolist(), strict=True))


# --- Blocks ---


@pytest.mark.parametrize(
    ("dataset", "events", "batches", "trained", "size", "last"),
    [("ml", 836_478, 3_268, 1_960, 130, 35_198), ("modcloth", 83_147, 325, 227, 9, 4_299)],
)
def test_blocks_begin_where_the_authors_begin_them(dataset, events, batches, trained, size, last):
    options = parse_options(FADEOptions, [], "protocol_option", dataset=dataset)
    begins = boundaries(events, options)
    assert -(-events // options.batch) == batches
    assert begins.tolist() == [trained + size * number for number in range(10)]
    assert (begins - begins[0]).tolist() == {130: [*range(0, 1171, 130)], 9: [*range(0, 82, 9)]}[size]
    assert (options.batch * np.diff(begins) == {130: 33_280, 9: 2_304}[size]).all()
    assert events - options.batch * begins[-1] == last


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 60), st.sampled_from([0.1, 0.5, 0.6, 0.7, 0.95]), st.integers(2, 12))
def test_blocks_are_those_of_a_loop_over_batches(events, batch, share, blocks):
    options = FADEOptions(batch=batch, share=share, blocks=blocks, averaged=1)
    cut = [range(start, min(start + batch, events)) for start in range(0, events, batch)]
    trained = int(len(cut) * share)
    left = cut[trained:]
    size = len(left) // blocks
    if not trained or not size:
        with pytest.raises(ValueError, match=f"into {len(cut):,} batches: too few for a share of {share} and {blocks}"):
            boundaries(events, options)
        return
    begins = batch * boundaries(events, options)
    assert begins.tolist() == [left[number * size].start for number in range(blocks)]


@settings(max_examples=25, deadline=None)
@given(st.integers(60, 150), st.integers(0, 10_000), st.integers(1, 40))
def test_each_phase_trains_its_block_in_time_order_and_knows_all_before(events, seed, times):
    data = made_of(events, seed=seed, times=times)
    liked = [row for row in range(events) if data.rating[row] >= 3]
    # Python's sort is stable: equal times keep the order of the file
    ordered = sorted(liked, key=lambda row: data.time[row])
    numbers = [{}, {}]
    rows = [
        tuple(
            own.setdefault(int(ids[row]), len(own))
            for own, ids in zip(numbers, (data.user_id, data.item_id), strict=True)
        )
        for row in ordered
    ]
    try:
        protocol = protocol_of(data)
    except ValueError as error:
        assert "was seen before" in str(error)
        assume(False)
    begins = [4 * begin for begin in boundaries(len(rows), FADEOptions(batch=4, blocks=3, averaged=1))]
    ends = [*begins[1:], len(rows)]
    assert [phase.name for phase in protocol.phases] == ["snapshot-0", "snapshot-1", "snapshot-2"]
    for number, (phase, begin, end) in enumerate(zip(protocol.phases, begins, ends, strict=True)):
        assert trained_rows(phase) == rows[begins[number - 1] if number else 0 : begin]
        split, known = phase.split, {user for user, _ in rows[:begin]}
        assert pairs(split.train) == set(rows[:begin]) and len(split.train.item) == begin
        assert split.degree.tolist() == [sum(one == item for _, one in rows[:begin]) for item in range(len(numbers[1]))]
        tasks = {task.name: task for task in phase.tests}
        # of users whom training has seen, and whatever the item
        assert pairs(tasks["next"].relevant) == {row for row in rows[begin:end] if row[0] in known}
        assert pairs(tasks["remain"].relevant) == {row for row in rows[begin:] if row[0] in known}
        for name in ("next", "remain"):
            assert pairs(tasks[f"{name}-full"].relevant) == pairs(tasks[name].relevant)
            assert tasks[f"{name}-full"].candidates is None and tasks[name].candidates == 100
            assert tasks[name].pool.tolist() == sorted({item for _, item in rows[:begin]})
        assert all(pairs(task.excluded) == pairs(split.train) for task in phase.tests)
    assert [phase.probed for phase in protocol.phases] == [False, False, True]


def test_new_users_are_left_out_and_items_that_nobody_trained_stay():
    protocol = protocol_of(made_of(200, users=40, items=60, seed=3, times=500))
    first = protocol.phases[0]
    new = set(range(first.split.num_users)) - set(first.split.train.owner.tolist())
    untrained = set(np.flatnonzero(first.split.degree == 0).tolist())
    asked = pairs(first.tests[1].relevant)
    assert new and not {user for user, _ in asked} & new
    assert {item for _, item in asked} & untrained, "they are asked about, untrained as they are"


# --- Users and items ---


def test_users_and_items_are_numbered_as_they_first_appear_in_time():
    data = made_of(120, users=30, items=40, seed=1)
    kept = protocol_of(data).data
    liked = sorted(np.flatnonzero(data.rating >= 3), key=lambda row: data.time[row])
    for part, number in (("user", kept.user_id), ("item", kept.item_id)):
        ids, old = getattr(kept, f"original_{part}_ids"), getattr(data, f"original_{part}_ids")
        assert ids.tolist() == list(dict.fromkeys(old[getattr(data, f"{part}_id")[liked]].tolist()))
        assert ids[number].tolist() == old[getattr(data, f"{part}_id")[liked]].tolist()
        features = getattr(kept, f"{part}s")
        assert features.columns["id"].tolist() == list(range(len(ids))) and features.schema[0].size == len(ids)
    assert kept.time.tolist() == sorted(kept.time.tolist()) and len(kept.time) == len(liked)
    # what belongs to a user or an item goes with it
    sides = dict(zip(data.original_user_ids, data.user_groups["side"].codes, strict=True))
    assert kept.user_groups["side"].codes.tolist() == [sides[user] for user in kept.original_user_ids]
    titles = dict(zip(data.original_item_ids.tolist(), data.item_titles, strict=True))
    assert kept.item_titles.tolist() == [titles[item] for item in kept.original_item_ids.tolist()]
    assert 0 < kept.num_users <= 30 and kept.num_items <= 40
    assert kept.report.filtered == {"rated below 3": 120 - len(liked)}
    assert data.user_id.max() == 29, "the data that were read stay as they are"


def test_what_is_liked_is_an_option():
    data = made_of(150, seed=2)
    for liked in (1, 2.5, 4):
        kept = protocol_of(data, liked=liked).data
        assert len(kept.rating) == (data.rating >= liked).sum() and kept.rating.min() >= liked
        assert kept.report.filtered.get(f"rated below {liked:g}", 0) == (data.rating < liked).sum()
    assert "rated below 1" not in protocol_of(data, liked=1).data.report.filtered


# --- How phases train ---


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(CONTINUE, 7), (CONTINUE, 10), (CONTINUE, 10), (CONTINUE, 10)]),
        ({"epochs": 3, "restart": "pretrained"}, [(CONTINUE, 7), *[("snapshot-0", 3)] * 3]),
        (
            {"restart": "pretrained", "restart_every": 2},
            [(CONTINUE, 7), (CONTINUE, 10), ("snapshot-0", 10), (CONTINUE, 10)],
        ),
        ({"strategy": "pretrain"}, [(CONTINUE, 7), *[(CONTINUE, 0)] * 3]),
        ({"strategy": "fulltrain"}, [(CONTINUE, 7), *[(FRESH, 7)] * 3]),
        (
            {"restart": "retrain", "restart_every": 3},
            [(CONTINUE, 7), (CONTINUE, 10), (CONTINUE, 10), (FRESH, 7), (CONTINUE, 10)],
        ),
        (
            {"restart": "retrain"},
            [(CONTINUE, 7), (FRESH, 7), (CONTINUE, 10), (FRESH, 7), (CONTINUE, 10), (FRESH, 7), (CONTINUE, 10)],
        ),
    ],
)
def test_strategies_and_restarts_say_where_phases_start_and_how_long_they_last(options, expected):
    protocol = protocol_of(made_of(150), blocks=4, **options)
    assert [(phase.start, phase.epochs) for phase in protocol.phases] == expected
    snapshots = [phase for phase in protocol.phases if phase.tests]
    assert [phase.name for phase in snapshots] == [f"snapshot-{number}" for number in range(4)]
    assert [phase.probed for phase in protocol.phases] == [False] * (len(expected) - 1) + [True]
    assert all(phase.valid is None and phase.distinct and phase.patience == 1 for phase in protocol.phases)
    # what is asked does not depend on it
    plain = protocol_of(made_of(150), blocks=4).phases
    for phase, other in zip(snapshots, plain, strict=True):
        assert phase.split.fingerprint() == other.split.fingerprint()


def test_training_anew_takes_all_that_is_known_before_the_block():
    data = made_of(150)
    plain, retrained, full = (
        {phase.name: phase for phase in protocol_of(data, **options).phases}
        for options in ({}, {"restart": "retrain"}, {"strategy": "fulltrain"})
    )
    rows = [trained_rows(plain[f"snapshot-{number}"]) for number in range(3)]
    assert trained_rows(retrained["retrain-2"]) == rows[0] + rows[1]
    assert trained_rows(retrained["retrain-1"]) == rows[0]
    assert trained_rows(retrained["snapshot-2"]) == rows[2]
    assert trained_rows(full["snapshot-2"]) == rows[0] + rows[1] + rows[2]


@pytest.mark.parametrize("strategy", ["finetune", "fulltrain"])
def test_batches_are_fixed_unless_they_are_not(strategy):
    for fixed, first, block in (
        (True, (SHUFFLED_BLOCKS, PER_VISIT), (BLOCKS, PER_PHASE)),
        (False, (SHUFFLED, PER_VISIT), (SHUFFLED, PER_VISIT)),
    ):
        phases = protocol_of(made_of(150), fixed_batches=fixed, strategy=strategy).phases
        found = [(phase.order, phase.negatives) for phase in phases]
        assert found == [first, *[first if strategy == "fulltrain" else block] * 2]


def test_negatives_know_the_future_unless_it_is_strict():
    data = made_of(150, items=40)
    protocol = protocol_of(data)
    everything = set(zip(protocol.data.user_id.tolist(), protocol.data.item_id.tolist(), strict=True))
    for phase in protocol.phases:
        assert pairs(phase.barred) == everything
        assert all(task.apart for task in phase.tests)
    for phase in protocol_of(data, strict=True).phases:
        assert pairs(phase.barred) == pairs(phase.split.train) < everything
        assert not any(task.apart for task in phase.tests if task.candidates)
    for phase in protocol_of(data, strict=True, spare_first=True).phases:
        first = {(user, 0) for user in range(phase.split.num_users)}
        assert pairs(phase.barred) == pairs(phase.split.train) | first


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_candidates_are_trained_items_that_the_user_does_not_know_and_all_that_is_asked(seed, strict):
    protocol = protocol_of(made_of(150, users=12, items=60, seed=seed), candidates=5, strict=strict)
    for phase in protocol.phases:
        task, train = phase.tests[1], phase.split.train
        users = np.flatnonzero(task.relevant.lengths)
        relevant = task.relevant.take(users)
        lists = sample_candidates(
            users, relevant, task.excluded, phase.split.num_items, 5, np.random.default_rng(seed), task.pool, task.apart
        )
        seen = set(train.item.tolist())
        for row, user in enumerate(users):
            wanted, drawn = set(relevant[row].tolist()), set(lists[row].tolist())
            allowed = seen - set(train[user].tolist())
            assert wanted <= drawn <= allowed | wanted
            free = len(allowed - wanted)
            if strict:
                assert len(drawn) <= 5 + len(wanted) and len(drawn) >= max(min(5, len(allowed)), len(wanted))
            else:
                assert len(drawn) == len(wanted) + min(5, free)


def test_strict_candidates_are_drawn_as_if_nobody_knew_what_is_asked():
    protocol = protocol_of(made_of(150, users=12, items=60, seed=5), candidates=5, strict=True)
    task, split = protocol.phases[0].tests[1], protocol.phases[0].split
    users = np.flatnonzero(task.relevant.lengths)
    nothing = dataclasses.replace(
        task.relevant, indptr=np.zeros_like(task.relevant.indptr), item=task.relevant.item[:0]
    )

    def drawn(relevant, apart):
        rng = np.random.default_rng(1)
        return sample_candidates(users, relevant, task.excluded, split.num_items, 5, rng, task.pool, apart)

    asked, blind = task.relevant.take(users), drawn(nothing.take(users), False)
    expected = pairs(blind) | pairs(asked)
    assert pairs(drawn(asked, False)) == expected != pairs(drawn(asked, True))


# --- What is reported, and what is refused ---


def test_means_are_over_the_snapshots_after_the_first():
    protocol = FADE(made_of(200), SETTINGS, np.random.default_rng(0), FADE.Options(batch=2))
    assert protocol.averages == {"mean": tuple(f"snapshot-{number}" for number in range(1, 7))}
    assert protocol_of(made_of(150), averaged=1).averages == {"mean": ("snapshot-1",)}
    assert set(protocol.definitions.further) == {"recall", "f1", "ndcg_hits", "difference"}
    assert protocol.phases[0].metric == "ndcg@20" and FADE.presets["eval_k"] == (20,)


def test_the_description_says_what_is_asked_and_the_training_what_was_done():
    plain = protocol_of(made_of(150), strategy="fulltrain")
    assert "know the future" in plain.description and "as -full, among all items" in plain.description
    assert plain.training == "trained anew on all that is known at each block"
    strict = protocol_of(made_of(150), restart="retrain", restart_every=2, strict=True, full=False, epochs=3)
    assert "nothing of the future is known" in strict.description and "-full" not in strict.description
    assert strict.training == "each block alone, 3 epochs, restart=retrain before one block in 2"
    assert protocol_of(made_of(150), strategy="pretrain").training == "never updated"
    # strategies differ in nothing else
    assert protocol_of(made_of(150), strategy="pretrain").description == plain.description


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["share=1"], "share=1.0: allowed is a share between 0 and 1"),
        (["share=0"], "share=0.0: allowed is a share between 0 and 1"),
        (["batch=0"], "batch=0: allowed is 1 or more"),
        (["blocks=1"], "blocks=1: allowed is 2 or more"),
        (["epochs=0"], "epochs=0: allowed is 1 or more"),
        (["averaged=10"], "averaged=10: allowed is 1 to 9, the snapshots after the first"),
        (["averaged=0"], "averaged=0: allowed is 1 to 9, the snapshots after the first"),
        (["strategy=dynamic"], "strategy=dynamic: allowed is one of finetune, pretrain, fulltrain"),
        (["restart=often"], "restart=often: allowed is one of none, pretrained, retrain"),
        (["restart=retrain", "strategy=pretrain"], "restart=retrain: allowed is none unless strategy=finetune"),
        (["restart_every=0"], "restart_every=0: allowed is 1 or more"),
        (["candidates=0"], "candidates=0: allowed is 1 or more"),
        (["liked=nan"], "liked=nan: allowed is a finite rating"),
    ],
)
def test_options_out_of_range_name_their_flag(texts, words):
    with pytest.raises(ValueError) as caught:
        parse_options(FADEOptions, texts, "protocol_option")
    assert str(caught.value) == f"--protocol_option={words}"


def test_a_data_set_may_have_defaults_of_its_own():
    found = {name: parse_options(FADEOptions, [], "protocol_option", dataset=name) for name in READERS}
    assert {name: options.share for name, options in found.items()} == dict.fromkeys(READERS, 0.6) | {"modcloth": 0.7}
    assert {name: options.batch for name, options in found.items()} == dict.fromkeys(READERS, 256) | {"synthetic": 16}


def test_what_it_cannot_use_is_refused_in_one_line():
    data = made_of(100)
    with pytest.raises(ValueError, match=r"^--protocol=fade needs times, and tiny has none; use a data set that has"):
        protocol_of(dataclasses.replace(data, time=None))
    with pytest.raises(
        ValueError, match=r"^--protocol=fade: tiny has no rating of 6 or more; lower --protocol_option=l"
    ):
        protocol_of(data, liked=6)
    with pytest.raises(ValueError, match=r"batches: too few for a share of 0.6 and 3 blocks; lower .*batch \(64\)"):
        protocol_of(data, batch=64)
    # every user has a time of her own, and is gone when the next comes
    alone = dataclasses.replace(data, time=data.user_id)
    with pytest.raises(
        ValueError, match=r"^--protocol=fade: no user of the block after snapshot-1 was seen before; low"
    ):
        protocol_of(alone, share=0.5, batch=1, blocks=20)


# --- Real data ---


@pytest.fixture(scope="module")
def movielens(tmp_path_factory):
    options = ReadOptions(real_data("ml-1m"), "hash", tmp_path_factory.mktemp("cache"), may_download=False)
    return READERS["ml"](options)


@pytest.fixture(scope="module")
def modcloth(tmp_path_factory):
    options = ReadOptions(real_data("modcloth"), "hash", tmp_path_factory.mktemp("cache"), may_download=False)
    return READERS["modcloth"](options)


def real_protocol(data, dataset):
    """The protocol as published on real data, in its own form without full ranking."""
    options = parse_options(FADE.Options, ["full=False"], "protocol_option", dataset=dataset)
    return FADE(data, SETTINGS, np.random.default_rng(0), options)


def parameters(dataset, data):
    """How many numbers MF has on `data`, as the program builds it."""
    flags = {"protocol": "fade", "backbone": "bprmf", "title_encoder": "hash", "protocol_option": ["full=False"]}
    with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver(dataset=dataset, **flags):
        patch.setitem(READERS, dataset, lambda options: data)
        backbone, _ = setup.build(setup.prepare(main.settings_from_flags().config()))
    return sum(parameter.numel() for parameter in backbone.parameters())


def of_groups(data, name):
    """Users and interactions by group."""
    group = data.user_groups[name]
    users, events = group.codes, group.codes[data.user_id]
    return {label: ((users == code).sum(), (events == code).sum()) for code, label in enumerate(group.labels)}


def last_block(protocol):
    return len(protocol.data.user_id) - len(protocol.phases[-1].split.train.item)


@pytest.mark.slow
def test_counts_of_movielens(movielens):
    protocol = real_protocol(movielens, "ml")
    data = protocol.data
    assert (len(data.user_id), data.num_users, data.num_items) == (836_478, 6_039, 3_628)
    assert of_groups(data, "gender") == {"M": (4_330, 627_933), "F": (1_709, 208_545)}
    first = np.flatnonzero((movielens.rating >= 3) & (movielens.time == movielens.time[movielens.rating >= 3].min()))[0]
    assert data.original_item_ids[0] == movielens.original_item_ids[movielens.item_id[first]]
    assert data.item_id[0] == data.user_id[0] == 0
    assert [len(phase.train_rows) for phase in protocol.phases] == [1_960 * 256, *[33_280] * 9]
    assert last_block(protocol) == 35_198
    assert parameters("ml", movielens) == 618_688, "of MF, as the authors log them"
    # a batch of one gender is trained without the fairness loss
    side = data.user_groups["gender"].codes[data.user_id][: len(data.user_id) // 256 * 256].reshape(-1, 256)
    is_single = (side == side[:, :1]).all(1)
    assert round(is_single[1_960:].mean(), 2) == 0.06 and round(is_single[:1_960].mean(), 2) == 0.18


@pytest.mark.slow
def test_counts_of_modcloth(modcloth):
    protocol = real_protocol(modcloth, "modcloth")
    data = protocol.data
    assert (len(data.user_id), data.num_users, data.num_items) == (83_147, 37_142, 1_014)
    assert of_groups(data, "size") == {"Small": (28_374, 66_663), "Large": (8_768, 16_484)}
    assert [len(phase.train_rows) for phase in protocol.phases] == [227 * 256, *[2_304] * 9]
    assert last_block(protocol) == 4_299
    assert parameters("modcloth", modcloth) == 2_441_984, "of MF, as the authors log them"
    # of what is asked of the first snapshot, so much is of items that nobody trained
    first = protocol.phases[0]
    asked = first.tests[1].relevant.item
    assert round(np.mean(first.split.degree[asked] == 0), 2) == 0.43
    # few disadvantaged users are asked about each next block
    large = [
        (data.user_groups["size"].codes[np.flatnonzero(phase.tests[0].relevant.lengths)] == 1).sum()
        for phase in protocol.phases[:7]
    ]
    assert min(large) >= 80 and max(large) <= 164
