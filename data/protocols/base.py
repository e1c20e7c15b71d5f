"""What a protocol is made of: tasks, phases, and the split of what is known."""

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
class Definitions:
    """How a protocol defines metrics where papers differ; facts that `model/evaluation/metrics.py` reads.

    `hit_rate`: `any` (1 where any relevant item is a hit) or `share` (hits over min(K, relevant items)).
    `unasked_ndcg`: users without a relevant item are `left out` of the overall NDCG, or count as `zero`.
    `further`: metrics of the metric table that only this protocol reports.
    """

    hit_rate: str = "any"
    unasked_ndcg: str = "left out"
    further: tuple[str, ...] = ()

    def __post_init__(self):
        for name, allowed in (("hit_rate", ("any", "share")), ("unasked_ndcg", ("left out", "zero"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"definitions: {name} {getattr(self, name)!r}; allowed is one of {', '.join(allowed)}")


@dataclass(frozen=True)
class Task:
    """A question: rank for each user `candidates` (None = the full catalogue minus `excluded`) and find `relevant`."""

    name: str
    relevant: ItemLists
    excluded: ItemLists
    candidates: int | None

    @property
    def sampled(self) -> str:
        """Whether the candidates are a sample, in words."""
        if self.candidates is None:
            return "no: full ranking"
        return f"{self.candidates:,} candidates" if isinstance(self.candidates, int) else "candidates of the protocol"

    def left_out(self, split: Split) -> str:
        """Which items of the user's own are never ranked, in words."""
        excluded = self.excluded.owner * split.num_items + self.excluded.item
        parts = {"train": split.train, "validation": split.valid}
        names = [
            name
            for name, lists in parts.items()
            if len(lists.item) and np.isin(lists.owner * split.num_items + lists.item, excluded).all()
        ]
        return " and ".join(names)


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
    """A protocol applied to a data set; `description` says in one line what its numbers mean, `definitions` how its
    metrics are defined.

    `summarise` turns the metrics of all phases (`test/<phase>/<task>/ndcg@10`) into further ones, whose keys have a
    name of its own in the place of a phase (`test/mean/...`).
    """

    name: str
    description: str
    ks: tuple[int, ...]
    phases: tuple[Phase, ...]
    definitions: Definitions = Definitions()
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
