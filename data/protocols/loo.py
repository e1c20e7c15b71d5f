"""Leave-one-out (`--protocol=loo`)."""

from __future__ import annotations

import numpy as np

from data.protocols.base import NoOptions, Protocol, ProtocolSettings, one_phase, protocol
from data.protocols.splits import make_split
from data.structs import InteractionData


@protocol()
def leave_one_out(
    data: InteractionData, settings: ProtocolSettings, rng: np.random.Generator, options: NoOptions | None = None
) -> Protocol:
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
    # train rows in order of time, which later sorts keep; without times in file order
    rows = np.flatnonzero(is_train) if data.time is None else order[is_train[order]]
    time = None if data.time is None else data.time[rows]
    held_out = ((users[rows], items[rows]) for rows in (is_valid, is_test))
    split = make_split(data, settings.warm_threshold, (users[rows], items[rows], time), *held_out)
    # upstream ranks the validation item at test, and never draws it as a negative
    known = split.train.merge(split.valid)
    seen, barred = (split.train, known) if settings.upstream_compat else (known, None)
    metric = f"ndcg@{settings.ks[0]}"
    phase = one_phase("loo", settings, split, metric, settings.eval_negatives, seen, barred)
    how = "last item by time" if data.time is not None else "random item (seeded)"
    pool = "train items" if settings.upstream_compat else "train and validation items"
    ranked = f"{settings.eval_negatives:,} sampled items" if settings.eval_negatives else "the full catalogue"
    description = f"leave-one-out, {how}; {ranked} minus the user's {pool}"
    return Protocol("loo", description, settings.ks, (phase,))
