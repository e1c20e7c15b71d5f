"""FADE's protocol (Yoo et al., WWW 2024): a model that is updated block by block, and asked about what comes next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from data.messages import counted
from data.options import by_dataset, check_options
from data.protocols.base import (
    BLOCKS,
    CONTINUE,
    FRESH,
    PER_PHASE,
    PER_VISIT,
    SHUFFLED,
    SHUFFLED_BLOCKS,
    Definitions,
    Phase,
    Protocol,
    ProtocolSettings,
    Task,
    protocol,
)
from data.protocols.splits import make_split
from data.structs import Histories, InteractionData, ItemLists, Split

DEFINITIONS = Definitions(further=("recall", "f1", "ndcg_hits", "difference"))
FINETUNE, PRETRAIN, FULLTRAIN = STRATEGIES = ("finetune", "pretrain", "fulltrain")
NONE, PRETRAINED, RETRAIN = RESTARTS = ("none", "pretrained", "retrain")
# the average over snapshots
MEAN = "mean"


@dataclass(frozen=True)
class FADEOptions:
    """What is trained when, and what may be known of the future.

    Ratings of at least `liked` count. In order of time they are cut into batches of `batch`: the first `share` of the
    batches are pretrained, and the rest makes `blocks` of equal size. Snapshot 0 is the pretrained model; snapshot k is
    trained on block k for `epochs` epochs more, and asked about what is later. Reported values are means over
    snapshots 1 to `averaged`.

    `strategy`: finetune as above; pretrain leaves the model as it was; fulltrain trains anew on all that is known.
    `restart`, before every `restart_every`-th block: none; pretrained goes back to snapshot 0, its optimiser with it;
    retrain trains anew on all blocks before. `fixed_batches` keeps the first cut in training and the negatives of a
    block (False: interactions are shuffled and negatives drawn at each visit, as in the authors' later releases).

    `candidates` random items that were trained compete with a user's test items; with `full` the whole catalogue does,
    too. As published, negatives are none of the items that a user touches at any time, and candidates none of those
    that she touches later; `strict` knows the past alone. `spare_first` never draws item 0 as a negative, as the
    authors' code does.
    """

    liked: float = 3.0
    share: float = by_dataset(0.6, modcloth=0.7)
    batch: int = by_dataset(256, synthetic=16)
    blocks: int = 10
    epochs: int = 10
    averaged: int = 6
    strategy: str = FINETUNE
    restart: str = NONE
    restart_every: int = 1
    fixed_batches: bool = True
    candidates: int = 100
    full: bool = True
    strict: bool = False
    spare_first: bool = False

    def __post_init__(self):
        check_options(
            self,
            ("liked", np.isfinite(self.liked), "a finite rating"),
            ("share", 0 < self.share < 1, "a share between 0 and 1"),
            ("batch", self.batch >= 1, "1 or more"),
            ("blocks", self.blocks >= 2, "2 or more"),
            ("epochs", self.epochs >= 1, "1 or more"),
            ("averaged", 1 <= self.averaged < self.blocks, f"1 to {self.blocks - 1}, the snapshots after the first"),
            ("strategy", self.strategy in STRATEGIES, f"one of {', '.join(STRATEGIES)}"),
            ("restart", self.restart in RESTARTS, f"one of {', '.join(RESTARTS)}"),
            ("restart", self.restart == NONE or self.strategy == FINETUNE, f"{NONE} unless strategy={FINETUNE}"),
            ("restart_every", self.restart_every >= 1, "1 or more"),
            ("restart_every", self.restart_every == 1 or self.restart != NONE, f"1 with restart={NONE}"),
            ("candidates", self.candidates >= 1, "1 or more"),
            flag="protocol_option",
        )


def boundaries(interactions: int, options: FADEOptions) -> np.ndarray:
    """Give where the blocks begin, in batches: b_k for snapshots k = 0 to `blocks` - 1, `[blocks]`.

    b_k = floor(share N_b) + k floor((N_b - floor(share N_b)) / blocks), N_b the batches of all `interactions`. The last
    block takes what is left. Too few batches are a ValueError.
    """
    batches = -(-interactions // options.batch)
    trained = int(batches * options.share)
    size = (batches - trained) // options.blocks
    if min(trained, size) < 1:
        raise ValueError(
            f"--protocol=fade cuts {interactions:,} interactions into {batches:,} batches: too few for a share of "
            f"{options.share:g} and {options.blocks} blocks; lower --protocol_option=batch ({options.batch}) or blocks"
        )
    return trained + size * np.arange(options.blocks)


@protocol(
    options=FADEOptions,
    presets={"eval_k": (20,)},
    # candidates are the protocol's own, and there is no validation
    unread=("eval_negatives", "upstream_compat"),
)
def fade(
    data: InteractionData, settings: ProtocolSettings, rng: np.random.Generator, options: FADEOptions = FADEOptions()
) -> Protocol:
    """Pretrain on what is old, then update block by block, and ask each snapshot about what is later (Decision 60).

    There is no validation: a phase takes its last epoch. Leakage is measured of the last snapshot alone.
    """
    if data.time is None:
        raise ValueError(f"--protocol=fade needs times, and {data.name} has none; use a data set that has them")
    liked = np.flatnonzero(data.rating >= options.liked)
    if not len(liked):
        raise ValueError(
            f"--protocol=fade: {data.name} has no rating of {options.liked:g} or more; lower --protocol_option=liked"
        )
    data = data.take(liked[np.argsort(data.time[liked], kind="stable")], f"rated below {options.liked:g}")
    begins = options.batch * boundaries(len(data.user_id), options)
    return Protocol(
        "fade",
        _description(options, len(data.user_id), begins),
        settings.ks,
        tuple(_phases(data, settings, options, begins)),
        definitions=DEFINITIONS,
        averages={MEAN: tuple(_snapshot(number) for number in range(1, 1 + options.averaged))},
        data=data,
        training=_training(options),
    )


def _snapshot(number: int) -> str:
    return f"snapshot-{number}"


def _phases(
    data: InteractionData, settings: ProtocolSettings, options: FADEOptions, begins: np.ndarray
) -> Iterator[Phase]:
    """Give the phases in order, from blocks that begin at interactions `begins [blocks]` of `data`, sorted by time.

    Restarts are Decision 61.
    """
    users, items, time, events = data.user_id, data.item_id, data.time, len(data.user_id)
    everything = Histories.build(users, items, None, data.num_users)
    phase = partial(_phase, settings, options, everything)
    earlier: tuple[Split, np.ndarray] | None = None
    for number, begin in enumerate(begins):
        is_known = np.zeros(data.num_users, dtype=bool)
        is_known[users[:begin]] = True
        # of users who are new there is nothing to recommend by
        later = begin + np.flatnonzero(is_known[users[begin:]])
        parts = (users[:begin], items[:begin], time[:begin]), (users[:0], items[:0]), (users[later], items[later])
        split = make_split(data, settings.warm_threshold, *parts)
        # where each of the train rows, in order of time, lies in the split's lists
        places = np.argsort(Histories.order(*parts[0][::2]))
        end = begins[number + 1] if number + 1 < len(begins) else events
        next_block = later[later < end]
        tests = {
            "next": Histories.build(users[next_block], items[next_block], None, data.num_users),
            "remain": split.test,
        }
        if not len(next_block):
            raise ValueError(
                f"--protocol=fade: no user of the block after {_snapshot(number)} was seen before; lower "
                "--protocol_option=blocks, or raise batch"
            )
        own = {
            "name": _snapshot(number),
            "tests": tuple(_tasks(tests, split, options)),
            "probed": number == len(begins) - 1,
        }
        restarts = number > 0 and number % options.restart_every == 0
        if number == 0:
            yield phase(split, places, **own)
        elif options.strategy == FULLTRAIN:
            yield phase(split, places, start=FRESH, **own)
        elif options.strategy == PRETRAIN:
            yield phase(split, places[begins[number - 1] :], epochs=0, **own)
        else:
            if restarts and options.restart == RETRAIN:
                yield phase(*earlier, name=f"retrain-{number}", start=FRESH)
            start = _snapshot(0) if restarts and options.restart == PRETRAINED else CONTINUE
            block = {"epochs": options.epochs, "order": BLOCKS, "negatives": PER_PHASE, "start": start}
            yield phase(split, places[begins[number - 1] :], **block, **own)
        earlier = split, places


def _phase(
    settings: ProtocolSettings,
    options: FADEOptions,
    everything: ItemLists,
    split: Split,
    rows: np.ndarray,
    name: str,
    **facts: Any,
) -> Phase:
    """Make a phase that trains `rows` of `split`, as in pretraining unless `facts` say otherwise.

    `everything` is what each user touches at any time.
    """
    barred = split.train if options.strict else everything
    facts = {"epochs": settings.epochs, "order": SHUFFLED_BLOCKS, "tests": (), "probed": False} | facts
    if not options.fixed_batches:
        facts |= {"order": SHUFFLED, "negatives": PER_VISIT}
    return Phase(
        name,
        split,
        metric=f"ndcg@{settings.ks[0]}",
        every=1,
        patience=1,
        valid=None,
        train_rows=rows,
        barred=_with_first(barred) if options.spare_first else barred,
        distinct=True,
        **facts,
    )


def _tasks(tests: Mapping[str, ItemLists], split: Split, options: FADEOptions) -> Iterator[Task]:
    """Ask for each of `tests` among random train items, and where `full` among all items."""
    seen = np.flatnonzero(split.degree)
    for name, relevant in tests.items():
        yield Task(name, relevant, split.train, options.candidates, pool=seen, apart=not options.strict)
    for name, relevant in tests.items() if options.full else ():
        yield Task(f"{name}-full", relevant, split.train, None)


def _with_first(lists: ItemLists) -> ItemLists:
    """Add item 0 to every list."""
    count = len(lists.lengths)
    return ItemLists(lists.indptr, lists.item).merge(ItemLists(np.arange(count + 1), np.zeros(count, np.int64)))


def _training(options: FADEOptions) -> str:
    how = {
        FINETUNE: f"each block alone, {counted(options.epochs, 'epoch')}",
        PRETRAIN: "never updated",
        FULLTRAIN: "trained anew on all that is known at each block",
    }[options.strategy]
    often = "each block" if options.restart_every == 1 else f"one block in {options.restart_every}"
    restarts = f", restart={options.restart} before {often}"
    return how + restarts * (options.restart != NONE)


def _description(options: FADEOptions, interactions: int, begins: np.ndarray) -> str:
    known = "nothing of the future is known" if options.strict else "negatives and candidates know the future"
    return (
        f"FADE's (WWW 2024): ratings of {options.liked:g} and more in order of time, {begins[0]:,} of {interactions:,} "
        f"pretrained, {options.blocks} blocks of {begins[1] - begins[0]:,}; users known so far, all test items among "
        f"{options.candidates} random train items{' and, as -full, among all items' * options.full}; {known}"
    )
