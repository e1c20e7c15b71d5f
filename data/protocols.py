"""What is asked of a data set: each protocol turns InteractionData into the phases of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from data.structs import Group, Histories, InteractionData, ItemLists, Split


@dataclass(frozen=True)
class ProtocolOptions:
    """What a run may choose: share of items that are head, K list (the first is the primary one), epochs.

    Training stops after `patience` epochs without a better validation, which is asked `every` so many epochs;
    `eval_negatives` ranks each test item among that many sampled items instead of the full catalogue;
    `keep_valid_candidates` leaves the validation item among the test candidates, as upstream does.
    """

    warm_threshold: float
    ks: tuple[int, ...]
    epochs: int
    patience: int
    every: int = 1
    eval_negatives: int | None = None
    keep_valid_candidates: bool = False


@dataclass(frozen=True)
class Task:
    """A question: rank for each user `candidates` (None = the full catalogue minus `excluded`) and find `relevant`."""

    name: str
    relevant: ItemLists
    excluded: ItemLists
    candidates: int | None


# Where a phase starts from, beside the names of earlier phases.
CONTINUE, FRESH = "continue", "fresh"


@dataclass(frozen=True)
class Phase:
    """One stretch of training on one split: the epoch is selected by `metric` on `valid`, asked `every` so many epochs
    until `patience` epochs bring nothing better (no `valid`: the last epoch is taken); each test task is asked once.

    `start` says from which weights: those that the phase before ended with (continue), those that the run began with
    (fresh), or those that an earlier phase of that name ended with. What the method keeps (optimisers) goes with them.
    """

    name: str
    split: Split
    epochs: int
    metric: str
    every: int
    patience: int
    valid: Task | None
    tests: tuple[Task, ...]
    start: str = CONTINUE

    @property
    def selected_by(self) -> str:
        """What selects the epoch."""
        return "last epoch" if self.valid is None else self.metric


@dataclass(frozen=True)
class Protocol:
    """A protocol applied to a data set; `description` says in one line what its numbers mean, `metrics` whose
    definitions they follow.

    `summarise` turns the metrics of all phases (`test/<phase>/<task>/ndcg@10`) into further ones, whose keys have a
    name of its own in the place of a phase (`test/mean/...`).
    """

    name: str
    description: str
    ks: tuple[int, ...]
    phases: tuple[Phase, ...]
    metrics: str = "standard"
    summarise: Callable[[Mapping[str, float]], dict[str, float]] | None = None

    def __post_init__(self):
        known = {CONTINUE, FRESH}
        for phase in self.phases:
            if phase.start not in known:
                raise ValueError(f"phase {phase.name} starts from {phase.start!r}; allowed is one of {sorted(known)}")
            known.add(phase.name)

    @property
    def starts(self) -> frozenset[str]:
        """The states that a later phase starts from, by the names of `Phase.start`."""
        return frozenset(phase.start for phase in self.phases) - {CONTINUE}

    @property
    def many_phases(self) -> bool:
        """Whether keys say the phase."""
        return len(self.phases) > 1

    @property
    def many_tasks(self) -> bool:
        """Whether keys say the test task."""
        return any(len(phase.tests) > 1 for phase in self.phases)

    def level(self, phase: Phase, task: Task) -> str:
        """What the keys of `task` have behind `test` or a yardstick: /phase/task, each left out where there is one."""
        return f"/{phase.name}" * self.many_phases + f"/{task.name}" * self.many_tasks


def popularity_group(degree: np.ndarray, warm_threshold: float) -> Group:
    """Split items into head and tail by train degree `[I]`; equal degrees go to the tail in order of item id.

    The tail is the first `int((1 - warm_threshold) * I)` items in ascending order of degree (Decision 11).
    """
    if not 0 <= warm_threshold <= 1:
        raise ValueError(f"warm_threshold {warm_threshold} is not allowed; use the head's share of items, in [0, 1]")
    num_tail = int((1 - warm_threshold) * len(degree))
    codes = np.zeros(len(degree), dtype=np.int64)
    codes[np.argsort(degree, kind="stable")[:num_tail]] = 1
    return Group("popularity", codes, ("head", "tail"))


def _lists(user_id: np.ndarray, item_id: np.ndarray, num_users: int) -> ItemLists:
    lists = Histories.build(user_id, item_id, None, num_users)
    return ItemLists(lists.indptr, lists.item)


def _make_split(
    data: InteractionData,
    warm_threshold: float,
    train: tuple[np.ndarray, np.ndarray, np.ndarray | None],
    valid: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> Split:
    """The split whose parts have these user ids, item ids and, of `train`, times; histories are train."""
    histories = Histories.build(*train, data.num_users)
    degree = np.bincount(histories.item, minlength=data.num_items)
    groups = {"popularity": popularity_group(degree, warm_threshold)}
    held_out = (_lists(*part, data.num_users) for part in (valid, test))
    return Split(histories, *held_out, histories, histories, degree, groups)


def leave_one_out(data: InteractionData, options: ProtocolOptions, rng: np.random.Generator) -> Protocol:
    """Hold out each user's last item for test and the one before for validation.

    Last means by time, equal times in file order; without times the two are drawn at random. Users with fewer than
    three interactions train only. Test candidates leave train and validation items out (Decision 7).
    """
    users, items = data.user_id, data.item_id
    key = rng.permutation(len(users)) if data.time is None else data.time
    # one stable sort of one key takes a third of a lexsort's time
    order = np.argsort(users * (int(np.ptp(key)) + 1) + (key - key.min()), kind="stable")
    count = np.bincount(users, minlength=data.num_users)
    end = np.cumsum(count)[users[order]]
    from_end = np.empty(len(users), dtype=np.int64)
    from_end[order] = end - 1 - np.arange(len(users))
    enough = count[users] >= 3
    is_test, is_valid = enough & (from_end == 0), enough & (from_end == 1)
    is_train = ~(is_test | is_valid)
    # rows that are in order already are sorted again in no time; without times, file order is the order
    rows = np.flatnonzero(is_train) if data.time is None else order[is_train[order]]
    time = None if data.time is None else data.time[rows]
    held_out = ((users[rows], items[rows]) for rows in (is_valid, is_test))
    split = _make_split(data, options.warm_threshold, (users[rows], items[rows], time), *held_out)
    seen = split.train if options.keep_valid_candidates else split.train.merge(split.valid)
    phase = Phase(
        name="loo",
        split=split,
        epochs=options.epochs,
        metric=f"ndcg@{options.ks[0]}",
        every=options.every,
        patience=options.patience,
        valid=Task("valid", split.valid, split.train, options.eval_negatives),
        tests=(Task("test", split.test, seen, options.eval_negatives),),
    )
    how = "last item by time" if data.time is not None else "random item (seeded)"
    pool = "train items" if options.keep_valid_candidates else "train and validation items"
    ranked = f"{options.eval_negatives:,} sampled items" if options.eval_negatives else "the full catalogue"
    description = f"leave-one-out, {how}; {ranked} minus the user's {pool}"
    return Protocol("loo", description, options.ks, (phase,))


FDA_LIKED = 3  # a rating above it is a positive
FDA_SELECTED_AT = 20
FDA_TEST, FDA_VALID = 0.2, 0.1  # shares of the positives, and of a user's other ones


def fda(data: InteractionData, options: ProtocolOptions, rng: np.random.Generator) -> Protocol:
    """Split the positives (ratings above 3) 80/20 at random, all users together (Chen et al., WWW 2023, section 5.1).

    Of each user's train items a tenth, at least one of ten, is held out to select the epoch by NDCG@20, where the
    authors' code stops after a fixed number of epochs (Decision 29). Test candidates are all but the user's train and
    validation items.
    """
    if options.eval_negatives or options.keep_valid_candidates:
        raise ValueError("--protocol=fda ranks the full catalogue; leave --eval_negatives and --upstream_compat out")
    if FDA_SELECTED_AT not in options.ks:
        raise ValueError(f"--protocol=fda selects by NDCG@{FDA_SELECTED_AT}; put {FDA_SELECTED_AT} into --eval_k")
    positive = data.rating > FDA_LIKED
    if not positive.any():
        raise ValueError(f"--protocol=fda: {data.name} has no rating above {FDA_LIKED}; use --protocol=loo")
    users, items = data.user_id[positive], data.item_id[positive]
    time = None if data.time is None else data.time[positive]
    order = rng.permutation(len(users))
    is_test = np.zeros(len(users), dtype=bool)
    is_test[order[: round(FDA_TEST * len(users))]] = True
    # each user's other positives in random order: the first tenth is for validation
    kept = np.flatnonzero(~is_test)
    kept = kept[np.lexsort((rng.random(len(kept)), users[kept]))]
    count = np.bincount(users[kept], minlength=data.num_users)
    place = np.arange(len(kept)) - np.repeat(np.cumsum(count) - count, count)
    is_valid = np.zeros(len(users), dtype=bool)
    is_valid[kept[place < np.floor(FDA_VALID * count + 0.5).astype(np.int64)[users[kept]]]] = True
    is_train = ~(is_test | is_valid)
    train_time = None if time is None else time[is_train]
    held_out = ((users[rows], items[rows]) for rows in (is_valid, is_test))
    split = _make_split(data, options.warm_threshold, (users[is_train], items[is_train], train_time), *held_out)
    phase = Phase(
        name="fda",
        split=split,
        epochs=options.epochs,
        metric=f"ndcg@{FDA_SELECTED_AT}",
        every=options.every,
        patience=options.patience,
        valid=Task("valid", split.valid, split.train, None),
        tests=(Task("test", split.test, split.train.merge(split.valid), None),),
    )
    description = (
        f"FDA's (WWW 2023): ratings above {FDA_LIKED}, random 80/20 of all records, a tenth of each user's train items "
        "for validation; the full catalogue minus the user's train and validation items; HR, NDCG, DP and EO as FDA "
        "computes them"
    )
    return Protocol("fda", description, options.ks, (phase,), metrics="fda")


PROTOCOLS: dict[str, Callable[[InteractionData, ProtocolOptions, np.random.Generator], Protocol]] = {
    "loo": leave_one_out,
    "fda": fda,
}
