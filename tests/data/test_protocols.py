"""Leave-one-out against a loop over users, its candidates and groups, and guards against leaks from the test set."""

import dataclasses
import hashlib
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.options import parse_options
from data.protocols import PROTOCOLS
from data.protocols.base import Protocol, ProtocolSettings, Task
from data.protocols.loo import leave_one_out
from data.protocols.splits import popularity_group
from data.structs import FeatureSpec, FeatureTable, Histories, InteractionData, ItemLists, Split

OPTIONS = ProtocolSettings(warm_threshold=0.2, ks=(10, 20), epochs=7, patience=3)
NUM_ITEMS = 12
# (user, item, time) in file order, every pair once; few times, so that ties are common
EVENTS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, NUM_ITEMS - 1), st.integers(0, 3)),
    min_size=1,
    max_size=40,
    unique_by=lambda event: event[:2],
)


def id_table(rows):
    return FeatureTable((FeatureSpec("id", "categorical", rows),), {"id": torch.arange(rows)})


def make_data(events, timed=True, num_users=6, num_items=NUM_ITEMS):
    user, item, time = (np.array(column, dtype=np.int64) for column in zip(*events, strict=True))
    return InteractionData(
        name="tiny",
        users=id_table(num_users),
        items=id_table(num_items),
        user_id=user,
        item_id=item,
        rating=np.ones(len(user)),
        time=time if timed else None,
        user_groups={},
        original_user_ids=np.arange(num_users),
        original_item_ids=np.arange(num_items),
        item_titles=np.array(["title"] * num_items),
    )


def as_lists(lists):
    return [lists[n].tolist() for n in range(len(lists.indptr) - 1)]


def apply(events, timed=True, seed=0, **changes):
    options = ProtocolSettings(**{**vars(OPTIONS), **changes})
    return leave_one_out(make_data(events, timed), options, np.random.default_rng(seed))


def split_of(events, **options):
    return apply(events, **options).phases[0].split


def naive_leave_one_out(events, num_users=6):
    train, valid, test = [], [], []
    for user in range(num_users):
        own = [item for _, item, _ in sorted((e for e in events if e[0] == user), key=lambda event: event[2])]
        held_out = len(own) >= 3
        train.append(own[:-2] if held_out else own)
        valid.append(own[-2:-1] if held_out else [])
        test.append(own[-1:] if held_out else [])
    return train, valid, test


# --- The split ---


@given(EVENTS)
@settings(deadline=None)
def test_leave_one_out_equals_a_loop(events):
    split = split_of(events)
    train, valid, test = naive_leave_one_out(events)
    assert as_lists(split.train) == as_lists(split.histories) == as_lists(split.test_histories) == train
    assert as_lists(split.valid) == valid and as_lists(split.test) == test
    kept = [item for row in train for item in row]
    assert split.degree.tolist() == [kept.count(item) for item in range(NUM_ITEMS)]
    times = {(user, item): time for user, item, time in events}
    assert split.train.time.tolist() == [times[user, item] for user, row in enumerate(train) for item in row]


def test_equal_times_keep_file_order_and_short_users_train_only():
    events = [(0, 5, 9), (1, 3, 4), (0, 2, 9), (1, 1, 1), (0, 7, 9), (2, 4, 0), (3, 8, 3), (3, 6, 2), (3, 9, 1)]
    split = split_of(events)
    assert as_lists(split.train) == [[5], [1, 3], [4], [9], [], []]
    assert as_lists(split.valid) == [[2], [], [], [6], [], []]
    assert as_lists(split.test) == [[7], [], [], [8], [], []]


def test_without_times_the_held_out_items_are_random_and_follow_the_seed():
    events = [(user, item, 0) for user in range(6) for item in range(12)]
    first, again, other = (split_of(events, timed=False, seed=seed) for seed in (1, 1, 2))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert first.train.time is None and first.train.lengths.tolist() == [10] * 6
    for user in range(6):
        parts = [set(lists[user].tolist()) for lists in (first.train, first.valid, first.test)]
        assert [len(part) for part in parts] == [10, 1, 1] and set.union(*parts) == set(range(12))
        assert first.train[user].tolist() == sorted(parts[0]), "the rest stays in file order"
    tests = [split_of(events, timed=False, seed=seed).test.item for seed in range(60)]
    count = np.bincount(np.concatenate(tests), minlength=12)
    assert count.min() >= 12 and count.max() <= 54, "no item is favoured: 30 are expected of each, sd 5"


def test_times_leave_the_random_stream_alone():
    events = [(0, item, item) for item in range(5)]
    rng = np.random.default_rng(3)
    leave_one_out(make_data(events), OPTIONS, rng)
    assert rng.random() == np.random.default_rng(3).random()
    assert split_of(events, seed=1).fingerprint() == split_of(events, seed=2).fingerprint()


def test_users_who_are_all_short_still_train():
    split = split_of([(0, 1, 0), (0, 2, 1), (1, 1, 0)])
    assert as_lists(split.train)[:2] == [[1, 2], [1]] and len(split.valid.item) == len(split.test.item) == 0


# --- The phase ---


def test_the_phase_asks_validation_and_test_questions():
    events = [(user, (user + step) % 12, step) for user in range(3) for step in range(5)]
    protocol = apply(events, eval_negatives=40)
    (phase,) = protocol.phases
    assert (protocol.name, protocol.ks, phase.epochs, phase.patience) == ("loo", (10, 20), 7, 3)
    assert phase.metric == "ndcg@10"
    (test,) = phase.tests
    assert (phase.valid.name, test.name) == ("valid", "test")
    assert phase.valid.candidates == test.candidates == 40
    assert phase.valid.relevant is phase.split.valid and test.relevant is phase.split.test
    assert as_lists(phase.valid.excluded) == as_lists(phase.split.train)
    assert as_lists(test.excluded) == [[user + step for step in range(4)] for user in range(3)] + [[], [], []]
    assert PROTOCOLS["loo"] is leave_one_out


def test_upstream_compat_leaves_the_validation_item_among_the_candidates():
    events = [(user, (user + step) % 12, step) for user in range(3) for step in range(5)]
    phase = apply(events, upstream_compat=True).phases[0]
    assert as_lists(phase.tests[0].excluded) == as_lists(phase.valid.excluded) == as_lists(phase.split.train)


@given(EVENTS, st.booleans())
@settings(max_examples=40, deadline=None)
def test_no_asked_item_is_excluded_and_nothing_known_is_a_candidate(events, timed):
    phase = apply(events, timed).phases[0]
    for task in (phase.valid, *phase.tests):
        for relevant, excluded in zip(as_lists(task.relevant), as_lists(task.excluded), strict=True):
            assert not set(relevant) & set(excluded) and len(set(excluded)) == len(excluded)
    every = [[item for u, item, _ in events if u == user] for user in range(6)]
    for n, own in enumerate(every):
        assert sorted([*phase.tests[0].excluded[n], *phase.split.test[n]]) == sorted(own)


@pytest.mark.parametrize(
    "changes, timed, words",
    [
        ({}, True, ["last item by time", "full catalogue", "train and validation items"]),
        ({"eval_negatives": 40_000}, True, ["40,000 sampled items"]),
        ({"upstream_compat": True}, True, ["minus the user's train items"]),
        ({}, False, ["random item"]),
    ],
)
def test_the_description_says_what_was_asked(changes, timed, words):
    description = apply([(0, item, item) for item in range(5)], timed, **changes).description
    assert all(word in description for word in words), description


# --- Head and tail ---


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.sampled_from([0.0, 0.001, 0.2, 0.25, 0.5, 1.0]))
@settings(deadline=None)
def test_the_tail_is_the_first_items_by_degree_and_id(degree, warm):
    group = popularity_group(np.array(degree), warm)
    size = int((1 - warm) * len(degree))
    tail = sorted(range(len(degree)), key=lambda item: (degree[item], item))[:size]
    assert group.labels == ("head", "tail") and group.name == "popularity"
    assert np.flatnonzero(group.codes == 1).tolist() == sorted(tail)
    assert group.counts().tolist() == [len(degree) - size, size]


def test_the_tail_boundary_breaks_ties_by_item_id():
    assert popularity_group(np.array([2, 1, 1, 1, 5]), 0.6).codes.tolist() == [0, 1, 1, 0, 0]


@pytest.mark.parametrize("warm", [-0.1, 1.5, float("nan")])
def test_a_share_outside_0_to_1_is_refused(warm):
    with pytest.raises(ValueError, match=f"warm_threshold {warm}"):
        popularity_group(np.array([1, 2]), warm)


def test_groups_come_from_train_degrees_alone():
    # item 3 is everybody's test item: popular in the file, unknown to training
    events = [(user, item, time) for user in range(5) for time, item in enumerate([user + 4, 9, 10, 3])]
    phase = apply(events, warm_threshold=0.1).phases[0]
    assert phase.split.degree[[3, 9, 10]].tolist() == [0, 5, 0]
    assert np.flatnonzero(phase.split.item_groups["popularity"].codes == 0).tolist() == [8, 9]


# --- Fingerprints and leaks ---

TINY = [(0, 1, 0), (0, 2, 1), (0, 3, 2), (1, 0, 0), (1, 3, 1)]
TINY_FINGERPRINT = "19d7c1c8b407e3ae"


def test_the_fingerprint_is_the_same_everywhere():
    found = leave_one_out(make_data(TINY, num_users=2, num_items=4), OPTIONS, np.random.default_rng(0))
    digest = hashlib.sha256()
    for numbers in ([0, 1, 3], [1, 0, 3], [0, 1, 1], [2], [0, 1, 1], [3]):
        digest.update(struct.pack(f"<{len(numbers)}q", *numbers))
    assert found.phases[0].split.fingerprint() == digest.hexdigest()[:16] == TINY_FINGERPRINT


def fingerprint(train, valid, test):
    rows = []
    for lists in (train, valid, test):
        indptr = np.array([0, *np.cumsum([len(row) for row in lists])])
        rows.append(ItemLists(indptr, np.array([item for row in lists for item in row], dtype=np.int64)))
    histories = Histories(rows[0].indptr, rows[0].item)
    degree = np.bincount(rows[0].item, minlength=8)
    return Split(histories, rows[1], rows[2], histories, histories, degree, {}).fingerprint()


def test_the_fingerprint_changes_when_one_pair_moves():
    sets = [
        ([[0, 1], [0]], [[2], [3]], [[4], [5]]),
        ([[0, 2], [0]], [[1], [3]], [[4], [5]]),
        ([[0, 1], [0]], [[4], [3]], [[2], [5]]),
        ([[0, 1], [0]], [[2], [3]], [[4], [6]]),
        ([[1, 0], [0]], [[2], [3]], [[4], [5]]),
        ([[0], [1, 0]], [[2], [3]], [[4], [5]]),
    ]
    assert len({fingerprint(*parts) for parts in sets}) == len(sets)


@given(EVENTS, st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_which_item_is_the_test_item_changes_nothing_that_training_or_validation_sees(events, seed):
    """Poison the test set: give every tested user another, unseen item at the same time and place."""
    rng, clean = np.random.default_rng(seed), apply(events).phases[0]
    poisoned = list(events)
    for user in range(6):
        own = {item for u, item, _ in events if u == user}
        unseen = [item for item in range(NUM_ITEMS) if item not in own]
        if len(clean.split.test[user]) and unseen:
            place = next(n for n, event in enumerate(events) if event[:2] == (user, int(clean.split.test[user][0])))
            poisoned[place] = (user, int(rng.choice(unseen)), events[place][2])
    after = apply(poisoned).phases[0]
    for name in ("train", "valid", "histories", "test_histories"):
        assert as_lists(getattr(after.split, name)) == as_lists(getattr(clean.split, name))
    assert after.split.train.time.tolist() == clean.split.train.time.tolist()
    assert after.split.degree.tolist() == clean.split.degree.tolist()
    groups = [phase.split.item_groups["popularity"].codes.tolist() for phase in (clean, after)]
    assert groups[0] == groups[1]
    assert as_lists(after.valid.excluded) == as_lists(clean.valid.excluded)
    assert as_lists(after.tests[0].excluded) == as_lists(clean.tests[0].excluded)
    assert (after.split.fingerprint() == clean.split.fingerprint()) == (poisoned == events)


# --- FDA's protocol ---

FDA_OPTIONS = ProtocolSettings(warm_threshold=0.2, ks=(10, 20), epochs=7, patience=3)
RATED = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, NUM_ITEMS - 1), st.sampled_from([3, 4, 5])),
    min_size=1,
    max_size=60,
    unique_by=lambda event: event[:2],
)


def apply_fda(events, seed=0, ks=FDA_OPTIONS.ks, **options):
    data = make_data([(user, item, time) for time, (user, item, _) in enumerate(events)])
    data = dataclasses.replace(data, rating=np.array([rating for *_, rating in events], dtype=float))
    fda = PROTOCOLS["fda"]
    settings = dataclasses.replace(FDA_OPTIONS, ks=ks)
    return fda(data, settings, np.random.default_rng(seed), fda.Options(**options))


def pairs(lists):
    return set(zip(lists.owner.tolist(), lists.item.tolist(), strict=True))


@given(RATED.filter(lambda events: any(rating > 3 for *_, rating in events)), st.integers(0, 100))
@settings(deadline=None)
def test_fda_splits_the_records_above_three_and_no_others(events, seed):
    protocol = apply_fda(events, seed)
    split, phase = protocol.phases[0].split, protocol.phases[0]
    parts = [pairs(part) for part in (split.train, split.valid, split.test)]
    positives = {event[:2] for event in events if event[2] > 3}
    assert set.union(*parts) == positives and sum(map(len, parts)) == len(positives)
    assert len(parts[2]) == round(0.2 * len(positives))
    for user in range(6):
        rest = sum(owner == user for owner, _ in parts[0] | parts[1])
        assert sum(owner == user for owner, _ in parts[1]) == int(0.1 * rest + 0.5)
    assert split.degree.tolist() == np.bincount(split.train.item, minlength=NUM_ITEMS).tolist()
    # each train item keeps the time of its own event, which is the event's place
    places = {event[:2]: place for place, event in enumerate(events)}
    rows = zip(split.train.owner.tolist(), split.train.item.tolist(), strict=True)
    assert split.train.time.tolist() == [places[row] for row in rows]
    # what a user trains on or is validated on is no candidate at test, what she is tested on always is
    (test,) = phase.tests
    assert pairs(test.excluded) == parts[0] | parts[1] and pairs(phase.valid.excluded) == parts[0]
    assert test.candidates is None and phase.valid.candidates is None
    assert phase.metric == "ndcg@20" and protocol.definitions.hit_rate == "share"


def test_fda_splits_by_its_seed_over_all_users_together():
    rng = np.random.default_rng(0)
    events = [(user, item, 4) for user in range(5) for item in range(NUM_ITEMS)]
    tests = [apply_fda(events, seed).phases[0].split.test for seed in (1, 1, 2)]
    assert as_lists(tests[0]) == as_lists(tests[1]) != as_lists(tests[2])
    # a share of the records, not of each user's
    counts = [apply_fda(events, int(seed)).phases[0].split.test.lengths.tolist() for seed in rng.integers(0, 99, 9)]
    assert {sum(lengths) for lengths in counts} == {12}
    assert len({tuple(lengths) for lengths in counts}) > 3


def test_fda_keeps_each_interactions_time():
    # later items have smaller ids, so that neither sorted ids nor sorted times alone pass
    events = [(0, item, 5) for item in reversed(range(NUM_ITEMS))]
    split = apply_fda(events).phases[0].split
    assert split.train.time.tolist() == (NUM_ITEMS - 1 - split.train.item).tolist()
    assert (np.diff(split.train.time) > 0).all()


@pytest.mark.parametrize(("kept", "held_out"), [(1, 0), (4, 0), (5, 1), (9, 1), (14, 1), (15, 2)])
def test_fda_holds_out_a_tenth_of_a_users_other_positives_rounded(kept, held_out):
    """With as good as no test item, a user of `kept` positives has `held_out` validation items."""
    split = apply_fda_of_one_user(kept, test_share=1e-9)
    assert (len(split.test.item), len(split.valid.item), len(split.train.item)) == (0, held_out, kept - held_out)


def apply_fda_of_one_user(positives, **options):
    data = make_data([(0, item, 0) for item in range(positives)], num_items=20)
    data = dataclasses.replace(data, rating=np.full(positives, 5.0))
    fda = PROTOCOLS["fda"]
    return fda(data, FDA_OPTIONS, np.random.default_rng(0), fda.Options(**options)).phases[0].split


def test_fdas_options_choose_positives_shares_and_the_selecting_metric():
    events = [(user, item, 1 + (user + item) % 5) for user in range(5) for item in range(NUM_ITEMS)]
    protocol = apply_fda(events, liked=2, test_share=0.5, valid_share=0.4, selected_at=10)
    (phase,) = protocol.phases
    split, liked = phase.split, {event[:2] for event in events if event[2] > 2}
    assert pairs(split.train) | pairs(split.valid) | pairs(split.test) == liked
    assert len(split.test.item) == round(0.5 * len(liked))
    rest = split.train.lengths + split.valid.lengths
    assert split.valid.lengths.tolist() == [int(0.4 * count + 0.5) for count in rest]
    assert phase.metric == "ndcg@10"
    assert "ratings above 2, random 50/50 of all records, 40 % of each user's" in protocol.description
    assert "ratings above 3, random 80/20 of all records, a tenth of each user's" in apply_fda(events).description


@pytest.mark.parametrize("text", ["test_share=0", "test_share=1", "valid_share=1", "selected_at=0", "liked=inf"])
def test_fdas_options_out_of_range_name_their_flag(text):
    with pytest.raises(ValueError, match=f"--protocol_option={text}.*: allowed is"):
        parse_options(PROTOCOLS["fda"].Options, [text], "protocol_option")


def test_unknown_options_of_a_protocol_are_refused():
    with pytest.raises(ValueError, match="--protocol_option=share=1: allowed is name=value with name one of liked, "):
        parse_options(PROTOCOLS["fda"].Options, ["share=1"], "protocol_option")
    with pytest.raises(ValueError, match="--protocol_option=share=1: there are no options"):
        parse_options(PROTOCOLS["loo"].Options, ["share=1"], "protocol_option")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ks": (10,)}, "put 20 into --eval_k"),
        ({"ks": (10, 20), "selected_at": 50}, "selects by NDCG@50; put 50 into --eval_k"),
    ],
)
def test_fda_refuses_what_its_protocol_is_not(changes, words):
    with pytest.raises(ValueError, match=words):
        apply_fda([(0, item, 5) for item in range(5)], **changes)


def test_fda_needs_ratings_above_three():
    with pytest.raises(ValueError, match="has no rating above 3; use --protocol=loo"):
        apply_fda([(0, 0, 3), (1, 2, 1)])


# --- What a phase may be ---


def csr(lists):
    indptr = np.array([0, *np.cumsum([len(row) for row in lists])], dtype=np.int64)
    return ItemLists(indptr, np.array([item for row in lists for item in row], dtype=np.int64))


@pytest.fixture
def phase():
    """Two users with train items [0, 1, 2] and [3, 4], a validation and a test item each, of eight items."""
    events = [(0, item, item) for item in (0, 1, 2, 5, 6)] + [(1, item, item) for item in (3, 4, 5, 7)]
    data = make_data(events, num_users=2, num_items=8)
    return leave_one_out(data, OPTIONS, np.random.default_rng(0)).phases[0]


def test_a_phase_trains_all_rows_shuffled_unless_it_says_otherwise(phase):
    assert phase.train_rows is None and phase.num_rows == 5
    assert (phase.order, phase.negatives, phase.barred, phase.number) == ("shuffled", "per visit", None, 0)
    assert dataclasses.replace(phase, train_rows=np.array([4, 0])).num_rows == 2


def test_upstream_never_draws_the_validation_item():
    events = [(user, (user + step) % 12, step) for user in range(3) for step in range(5)]
    phase = apply(events, upstream_compat=True).phases[0]
    known = phase.split.train.merge(phase.split.valid)
    assert as_lists(phase.barred) == as_lists(known)
    assert apply(events).phases[0].barred is None


LISTS = csr([[], []])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_rows": np.array([0, 5])}, r"train_rows span 0\.\.5; allowed is 0\.\.4"),
        ({"train_rows": np.array([-1, 2])}, r"train_rows span -1\.\.2"),
        ({"train_rows": np.array([3, 1, 3])}, "train row 3 occurs twice"),
        ({"train_rows": np.array([0.5])}, r"train_rows are float64 \[1\]"),
        ({"train_rows": np.zeros((1, 1), dtype=np.int64)}, r"train_rows are int64 \[1, 1\]"),
        ({"train_rows": np.zeros(0, dtype=np.int64)}, "N > 0"),
        ({"order": "sorted"}, "order is 'sorted'; allowed is one of shuffled, blocks, shuffled blocks"),
        ({"negatives": "once"}, "negatives is 'once'; allowed is one of per visit, per phase"),
        ({"barred": csr([[]])}, "barred items: 1 lists; need one for each of 2 users"),
        ({"barred": csr([[8], []])}, r"barred items: ids span 8\.\.8; allowed is 0\.\.7"),
        ({"valid": Task("own", csr([[]]), LISTS, None)}, "relevant items of task own: 1 lists"),
        ({"tests": (Task("own", LISTS, csr([[], [], []]), None),)}, "excluded items of task own: 3 lists"),
        ({"tests": (Task("own", LISTS, LISTS, csr([[], [9]])),)}, r"given items of task own: ids span 9\.\.9"),
    ],
)
def test_a_phase_says_what_is_wrong_with_it(phase, changes, words):
    with pytest.raises(ValueError, match=f"phase loo.*{words}"):
        dataclasses.replace(phase, **changes)


def test_a_task_has_all_items_some_drawn_or_lists_as_candidates():
    for candidates, drawn, lists in ((None, 0, None), (3, 3, None), (LISTS, 0, LISTS)):
        task = Task("own", LISTS, LISTS, candidates)
        assert task.num_sampled == drawn and task.given is lists
    with pytest.raises(ValueError, match="task own: 0 candidates"):
        Task("own", LISTS, LISTS, 0)


def test_a_protocol_numbers_its_phases_and_refuses_names_that_are_taken(phase):
    def named(*names):
        return Protocol("toy", "", (5,), tuple(dataclasses.replace(phase, name=name) for name in names))

    assert [one.number for one in named("a", "b", "c").phases] == [0, 1, 2]
    for names, taken in ((("a", "b", "a"), "a"), (("fresh",), "fresh")):
        with pytest.raises(ValueError, match=f"phase name '{taken}'"):
            named(*names)


def test_a_phase_without_tests_is_a_phase(phase):
    assert dataclasses.replace(phase, tests=(), valid=None).selected_by == "last epoch"
