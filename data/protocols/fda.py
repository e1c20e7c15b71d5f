"""FDA's protocol (Chen et al., WWW 2023)."""

from __future__ import annotations

import numpy as np

from data.protocols.base import Definitions, Phase, Protocol, ProtocolOptions, Task, _make_split
from data.structs import InteractionData

FDA_LIKED = 3  # a rating above it is a positive
FDA_SELECTED_AT = 20
FDA_DEFINITIONS = Definitions(hit_rate="share", unasked_ndcg="zero", further=("dp_code", "eo_code"))
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
    return Protocol("fda", description, options.ks, (phase,), definitions=FDA_DEFINITIONS)
