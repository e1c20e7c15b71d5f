"""What a protocol is made of: tasks, phases, and the split of what is known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from data.structs import InteractionData, ItemLists, Split


@dataclass(frozen=True)
class ProtocolSettings:
    """The settings of a run that every protocol is given.

    `warm_threshold` is the share of items that are head; `ks` are the list lengths K, the first the primary one.
    Training lasts at most `epochs` and stops after `patience` epochs without a better validation, which is asked
    `every` so many epochs. `eval_negatives` ranks each test item among that many sampled items (None: the full
    catalogue). `upstream_compat` leaves the validation item among the test candidates and out of the negatives, as
    upstream does.
    """

    warm_threshold: float
    ks: tuple[int, ...]
    epochs: int
    patience: int
    every: int = 1
    eval_negatives: int | None = None
    upstream_compat: bool = False


@dataclass(frozen=True)
class NoOptions:
    """The options of a protocol that has none."""


def protocol(
    options: type = NoOptions, presets: Mapping[str, Any] = MappingProxyType({}), unread: Collection[str] = ()
) -> Callable:
    """Declare a function `(data, settings, rng, options) -> Protocol` as a protocol.

    The function gets the attributes `Options` (a dataclass whose fields `--protocol_option=name=value` sets),
    `presets` (setting -> the default that it takes under this protocol) and `unread` (settings that this protocol
    does not read and that must therefore stay off).
    """

    def declare(function: Callable) -> Callable:
        function.Options, function.presets, function.unread = options, dict(presets), frozenset(unread)
        return function

    return declare


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
    """A question: rank `candidates` for each user and find `relevant`. Every collection has one list per user id.

    `candidates` are all items (None), so many random ones for each user (a number), or the lists given; the relevant
    items are always added, the `excluded` ones never ranked. Random ones are drawn among the items `pool [P]` (None:
    all), and `apart` from the relevant ones unless nothing may know these.
    """

    name: str
    relevant: ItemLists
    excluded: ItemLists
    candidates: int | ItemLists | None
    pool: np.ndarray | None = None
    apart: bool = True

    def __post_init__(self):
        if isinstance(self.candidates, int) and self.candidates < 1:
            raise ValueError(f"task {self.name}: {self.candidates} candidates; allowed is 1 or more, lists, or None")

    @property
    def num_sampled(self) -> int:
        """Number of candidates that are drawn for each user; 0 where none are drawn."""
        return self.candidates if isinstance(self.candidates, int) else 0

    @property
    def given(self) -> ItemLists | None:
        """Give the candidates where they are lists, else None."""
        return None if isinstance(self.candidates, int) else self.candidates

    @property
    def sampled(self) -> str:
        """Say in words whether the candidates are a sample."""
        if self.candidates is None:
            return "no: full ranking"
        return f"{self.candidates:,} candidates" if isinstance(self.candidates, int) else "candidates of the protocol"

    def left_out(self, split: Split) -> str:
        """Say in words which of a user's own items are never ranked: train, validation, both or none."""
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
# How a phase's rows are cut into batches.
SHUFFLED, BLOCKS, SHUFFLED_BLOCKS = ORDERS = ("shuffled", "blocks", "shuffled blocks")
# When a phase's negatives are drawn.
PER_VISIT, PER_PHASE = NEGATIVES = ("per visit", "per phase")


@dataclass(frozen=True)
class Phase:
    """One stretch of training on one split, and the tests at its end.

    The epoch is selected by `metric` on `valid`, rounded to `digits` decimals (None: as it is), asked `every` so many
    epochs until `patience` epochs bring nothing better; without `valid` the last epoch is taken. Each of `tests`, of
    which there may be none, is asked once.

    `start` says which weights a phase begins with: those that the phase before ended with ("continue"), those that
    the run began with ("fresh"), or those that the earlier phase of that name ended with. What the method keeps
    (optimisers) goes with them.

    `split` is what is known: histories, degrees, the graph. `train_rows [N]` are the rows that are trained, in training
    order: positions in `split.train` (None: all, in its order). `order` says how they become batches: "shuffled" draws
    the rows anew each pass; "blocks" takes them in order, batch after batch, the last one smaller; "shuffled blocks"
    takes the same batches in an order drawn anew each pass. `negatives` are drawn at each visit of a row ("per visit")
    or once ("per phase"), those of a row all different where `distinct`; items that `barred` lists for the user are
    never drawn (None: the user's train items).

    A phase of 0 epochs trains nothing: its tests are asked of the weights that it starts with. Where not `probed`, what
    can be read in the vectors is not measured at its end.

    `number` is the phase's position in its protocol, which sets it.
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
    train_rows: np.ndarray | None = None
    order: str = SHUFFLED
    negatives: str = PER_VISIT
    barred: ItemLists | None = None
    distinct: bool = False
    digits: int | None = None
    probed: bool = True
    number: int = 0

    def __post_init__(self):
        for part, allowed in (("order", ORDERS), ("negatives", NEGATIVES)):
            value = getattr(self, part)
            if value not in allowed:
                raise ValueError(f"phase {self.name}: {part} is {value!r}; allowed is one of {', '.join(allowed)}")
        if self.train_rows is not None:
            self._check_rows(self.train_rows, len(self.split.train.item))
        tasks = (self.valid, *self.tests) if self.valid is not None else self.tests
        lists = {f"{part} items of task {task.name}": getattr(task, part) for task in tasks for part in _LISTS}
        for name, item_lists in {"barred items": self.barred, **lists}.items():
            if item_lists is not None:
                self._check_lists(name, item_lists)

    def _check_rows(self, rows: np.ndarray, size: int) -> None:
        if rows.ndim != 1 or rows.dtype != np.int64 or not len(rows):
            raise ValueError(
                f"phase {self.name}: train_rows are {rows.dtype} {list(rows.shape)}; need [N] int64, N > 0"
            )
        if rows.min() < 0 or rows.max() >= size:
            raise ValueError(
                f"phase {self.name}: train_rows span {rows.min()}..{rows.max()}; allowed is 0..{size - 1}, positions "
                "in the train split"
            )
        repeated = np.flatnonzero(np.bincount(rows) > 1)
        if len(repeated):
            raise ValueError(f"phase {self.name}: train row {repeated[0]} occurs twice; list each row once")

    def _check_lists(self, name: str, lists: ItemLists) -> None:
        users, items = self.split.num_users, self.split.num_items
        if len(lists.lengths) != users:
            raise ValueError(
                f"phase {self.name}, {name}: {len(lists.lengths)} lists; need one for each of {users} users"
            )
        if len(lists.item) and (lists.item.min() < 0 or lists.item.max() >= items):
            span = f"{lists.item.min()}..{lists.item.max()}"
            raise ValueError(f"phase {self.name}, {name}: ids span {span}; allowed is 0..{items - 1}")

    @property
    def num_rows(self) -> int:
        """Number of rows that are trained."""
        return len(self.split.train.item) if self.train_rows is None else len(self.train_rows)

    def judged(self, value: float) -> float:
        """Give what is compared of a value of `metric`."""
        return value if self.digits is None else round(value, self.digits)

    @property
    def selected_by(self) -> str:
        """What selects the epoch."""
        return "last epoch" if self.valid is None else self.metric


_LISTS = ("relevant", "excluded", "given")


@dataclass(frozen=True)
class Protocol:
    """A protocol applied to a data set.

    `description` says in one line what its numbers mean, `definitions` how its metrics are defined, and `training` how
    its phases are trained where that is a choice: runs may be compared that differ in nothing else. `data` are the
    interactions, users and items that it counts (None: all of the data set): ids are theirs.

    `probe` reads user attributes in the vectors that are served: a function or its "module:name", called with
    `(vectors [U, D], groups: Mapping[str, Group], held_out [U] bool, seed: int)`; it gives metrics by key
    (`leakage_auc/gender`). `averages` names means over phases, which stand in the place of a phase in the results: name
    -> the phases.
    """

    name: str
    description: str
    ks: tuple[int, ...]
    phases: tuple[Phase, ...]
    definitions: Definitions = Definitions()
    averages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    probe: str | Callable[..., dict[str, float]] = "model.evaluation.probes:leakage"
    data: InteractionData | None = None
    training: str = ""

    def __post_init__(self):
        phases = tuple(replace(phase, number=number) for number, phase in enumerate(self.phases))
        object.__setattr__(self, "phases", phases)
        if not phases[-1].tests:  # Decision 45
            raise ValueError(
                f"phase {phases[-1].name} is the last and has no test: nothing would be asked of what it trains"
            )
        known = [CONTINUE, FRESH]
        for phase in phases:
            if phase.start not in known:
                raise ValueError(
                    f"phase {phase.name} starts from {phase.start!r}; allowed is one of {', '.join(known)}"
                )
            if phase.name in known:
                raise ValueError(f"phase name {phase.name!r} occurs twice or says where a phase starts; pass another")
            known.append(phase.name)
        for name, averaged in self.averages.items():
            if name in known or not averaged or not set(averaged) <= set(known[2:]):
                raise ValueError(
                    f"average {name!r} is over {', '.join(averaged) or 'nothing'}; allowed is a name of no phase, over "
                    f"phases of {', '.join(known[2:])}"
                )

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


def one_phase(
    name: str,
    settings: ProtocolSettings,
    split: Split,
    metric: str,
    candidates: int | None = None,
    seen: ItemLists | None = None,
    barred: ItemLists | None = None,
    digits: int | None = None,
) -> Phase:
    """Make the only phase of a protocol: it trains on `split`, validates on its validation items and tests on its test
    items.

    Test items are ranked among all items but those `seen` (None: the user's train and validation items), or among
    `candidates` sampled ones.
    """
    seen = split.train.merge(split.valid) if seen is None else seen
    return Phase(
        name=name,
        split=split,
        epochs=settings.epochs,
        metric=metric,
        every=settings.every,
        patience=settings.patience,
        valid=Task("valid", split.valid, split.train, candidates),
        tests=(Task("test", split.test, seen, candidates),),
        barred=barred,
        digits=digits,
    )


def selecting_metric(protocol: str, title: str, k: int, ks: tuple[int, ...]) -> str:
    """Give the name of the metric `title`@k that selects the epoch; a k that is not reported is a ValueError."""
    if k not in ks:
        raise ValueError(f"--protocol={protocol} selects by {title}@{k}; put {k} into --eval_k")
    return f"{title.lower()}@{k}"
