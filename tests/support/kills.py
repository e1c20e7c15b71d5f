"""Kinds of runs that are killed."""

from __future__ import annotations

from tests.support.stops import FAIR

KINDS = {
    "none": {"synthesis_type": "none", "user_hidden": None, "item_hidden": None},
    "mean": {"synthesis_type": "mean", **FAIR, "rerank_fair": True},
    "attention": {"synthesis_type": "attention", **FAIR},
    "gru": {"synthesis_type": "gru", **FAIR, "sample_size": 3},
    "compat": {
        "synthesis_type": "gru",
        "upstream_compat": True,
        "enable_fairness": True,
        "num_negatives": 1,
        "sample_size": 3,
    },
}
