"""Cofair's protocol (Chen, Chen and Zhao, WWW companion 2026)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.options import check_options
from data.protocols.base import Definitions, Protocol, ProtocolSettings, one_phase, protocol, selecting_metric
from data.protocols.splits import make_split, shuffled_by_user
from data.structs import InteractionData

DEFINITIONS = Definitions(further=("recall",))
# which has the attacker of the paper too
PROBE = "model.evaluation.cofair_attack:cofair_leakage"
# validations are compared as the authors' code prints them
DIGITS = 4


@dataclass(frozen=True)
class CofairOptions:
    """How interactions are split.

    Users with fewer than `fewest` interactions are left out. Of each other user's `held_out` are held out, rounded
    down: half of them, rounded down, for validation and the rest for test, but never fewer than one each. The epoch is
    selected by Recall@`selected_at`.
    """

    fewest: int = 5
    held_out: float = 0.2
    selected_at: int = 10

    def __post_init__(self):
        check_options(
            self,
            ("fewest", self.fewest >= 3, "3 or more: one interaction each to train, validate and test"),
            ("held_out", 0 < self.held_out < 1, "a share between 0 and 1"),
            ("selected_at", self.selected_at >= 1, "1 or more"),
            flag="protocol_option",
        )


@protocol(
    options=CofairOptions,
    presets={"eval_k": (10, 20), "patience": 21},
    # the protocol ranks the full catalogue minus the user's train items
    unread=("eval_negatives", "upstream_compat"),
)
def cofair(
    data: InteractionData,
    settings: ProtocolSettings,
    rng: np.random.Generator,
    options: CofairOptions = CofairOptions(),
) -> Protocol:
    """Split each user's interactions 80/10/10 at random; every interaction is a positive, whatever its rating.

    The paper's split is not public. This is the recipe of its first author's earlier scripts, whose counts agree with
    what is public (Decision 54). The epoch is selected by validation Recall@10. Validation items stay among the test
    candidates. Leakage is measured by the paper's own attacker too.
    """
    metric = selecting_metric("cofair", "Recall", options.selected_at, settings.ks)
    # each user's interactions in random order: validation ones first, then test ones
    order, place, count = shuffled_by_user(data.user_id, data.num_users, rng)
    held_out = np.maximum(np.floor(options.held_out * count).astype(np.int64), 2)
    num_valid = held_out // 2
    users = data.user_id[order]
    kept = count[users] >= options.fewest
    if not kept.any():
        raise ValueError(
            f"--protocol=cofair: no user of {data.name} has {options.fewest} interactions; lower "
            "--protocol_option=fewest"
        )
    is_valid, is_held_out = kept & (place < num_valid[users]), kept & (place < held_out[users])
    # train rows in file order, which later sorts by time keep where times are equal
    train = np.sort(order[kept & ~is_held_out])
    time = None if data.time is None else data.time[train]
    held = (order[rows] for rows in (is_valid, is_held_out & ~is_valid))
    split = make_split(
        data,
        settings.warm_threshold,
        (data.user_id[train], data.item_id[train], time),
        *((data.user_id[rows], data.item_id[rows]) for rows in held),
    )
    train_percent = 100 * (1 - options.held_out)
    part = 50 * options.held_out
    description = (
        f"Cofair's (WWW companion 2026): all interactions, of each user at random {train_percent:g} % to train, "
        f"{part:g} % to validate and {part:g} % to test; the full catalogue minus the user's train items, so that "
        "validation items are among the test candidates"
    )
    phase = one_phase("cofair", settings, split, metric, seen=split.train, digits=DIGITS)
    return Protocol("cofair", description, settings.ks, (phase,), definitions=DEFINITIONS, probe=PROBE)
