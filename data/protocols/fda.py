"""FDA's protocol (Chen et al., WWW 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.options import check_options
from data.protocols.base import Definitions, Protocol, ProtocolSettings, one_phase, protocol, selecting_metric
from data.protocols.splits import make_split, shuffled_by_user
from data.structs import InteractionData

DEFINITIONS = Definitions(hit_rate="share", unasked_ndcg="zero", further=("dp_code", "eo_code"))


@dataclass(frozen=True)
class FDAOptions:
    """What counts as a positive, and how positives are split.

    A rating above `liked` is a positive. `test_share` of all positives are for test; of each user's other ones
    `valid_share` are for validation. The epoch is selected by NDCG@`selected_at`.
    """

    liked: float = 3.0
    test_share: float = 0.2
    valid_share: float = 0.1
    selected_at: int = 20

    def __post_init__(self):
        check_options(
            self,
            ("liked", np.isfinite(self.liked), "a finite rating"),
            ("test_share", 0 < self.test_share < 1, "a share between 0 and 1"),
            ("valid_share", 0 < self.valid_share < 1, "a share between 0 and 1"),
            ("selected_at", self.selected_at >= 1, "1 or more"),
            flag="protocol_option",
        )


@protocol(
    options=FDAOptions,
    presets={"eval_k": (10, 20, 30, 40, 50), "eval_every": 10},
    # the protocol ranks the full catalogue minus the user's train and validation items
    unread=("eval_negatives", "upstream_compat"),
)
def fda(
    data: InteractionData, settings: ProtocolSettings, rng: np.random.Generator, options: FDAOptions = FDAOptions()
) -> Protocol:
    """Split the positives (ratings above 3) 80/20 at random, all users together (Chen et al., WWW 2023, section 5.1).

    A tenth of each user's train items, rounded, is held out to select the epoch by NDCG@20; the authors' code stops
    after a fixed number of epochs instead (Decision 29). Test candidates are all but the user's train and validation
    items.
    """
    metric = selecting_metric("fda", "NDCG", options.selected_at, settings.ks)
    positive = data.rating > options.liked
    if not positive.any():
        raise ValueError(
            f"--protocol=fda: {data.name} has no rating above {options.liked:g}; use --protocol=loo, or lower "
            "--protocol_option=liked"
        )
    users, items = data.user_id[positive], data.item_id[positive]
    time = None if data.time is None else data.time[positive]
    order = rng.permutation(len(users))
    is_test = np.zeros(len(users), dtype=bool)
    is_test[order[: round(options.test_share * len(users))]] = True
    # each user's other positives in random order: the first of them are for validation
    kept = np.flatnonzero(~is_test)
    shuffled, place, count = shuffled_by_user(users[kept], data.num_users, rng)
    kept = kept[shuffled]
    num_valid = np.floor(options.valid_share * count + 0.5).astype(np.int64)
    is_valid = np.zeros(len(users), dtype=bool)
    is_valid[kept[place < num_valid[users[kept]]]] = True
    is_train = ~(is_test | is_valid)
    train_time = None if time is None else time[is_train]
    held_out = ((users[rows], items[rows]) for rows in (is_valid, is_test))
    split = make_split(data, settings.warm_threshold, (users[is_train], items[is_train], train_time), *held_out)
    percent = 100 * options.test_share
    share = "a tenth" if options.valid_share == FDAOptions.valid_share else f"{100 * options.valid_share:g} %"
    description = (
        f"FDA's (WWW 2023): ratings above {options.liked:g}, random {100 - percent:g}/{percent:g} of all records, "
        f"{share} of each user's train items for validation; the full catalogue minus the user's train and validation "
        "items; HR, NDCG, DP and EO as FDA computes them"
    )
    phase = one_phase("fda", settings, split, metric)
    return Protocol("fda", description, settings.ks, (phase,), definitions=DEFINITIONS)
