"""The metric table: every metric of the program, described once; tables, pictures and METRICS.md are derived from it.

To add a metric, add a row to `METRICS`. `python -m model.evaluation.metrics_page > model/results/METRICS.md` prints it.
The module stays light (no torch, no matplotlib): what computes a metric is named as "module:name" and loaded on use.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from model.evaluation.metric_kinds import (
    ACCURACY,
    COLUMNS,
    COUNT,
    EPOCHS,
    EXPOSURE,
    HEADLINE,
    JS_DISTANCE,
    JS_MOST,
    LEAKAGE,
    LEVELS,
    PARETO,
    PARITY,
    PHASES,
    RUN,
    SHARE,
    SIGNED,
    SPREAD,
    UPWARDS,
    Metric,
)


def _accuracy(
    name: str, title: str, definition: str, compute: str, places: tuple[str, ...], further: bool = False
) -> Metric:
    return Metric(
        name, title, title, ACCURACY, "higher", SHARE, "1", definition, f"model.evaluation.metrics:{compute}",
        per_user=True, further=further, places=places, scale=100, digits=2,
    )  # fmt: skip


def _exposure(
    name: str, title: str, head: str, better: str, bounds: tuple[float, float], ideal: str, definition: str, **more: Any
) -> Metric:
    return Metric(
        name, title, head, EXPOSURE, better, bounds, ideal, definition, f"model.evaluation.metrics:{name}", **more
    )


def _parity(
    name: str,
    title: str,
    head: str,
    bounds: tuple[float, float],
    definition: str,
    better: str = "lower",
    **more: Any,
) -> Metric:
    return Metric(name, title, head, PARITY, better, bounds, "0", definition, f"model.evaluation.parity:{name}", **more)


def _leakage(name: str, title: str, head: str, definition: str, places: tuple[str, ...]) -> Metric:
    return Metric(name, title, head, LEAKAGE, "lower", SHARE, "0.5", definition, at_k=False, places=places)


_ROWS = (
    _accuracy(
        "hr", "HR",
        "Share of users with a test item among the first K; by FDA's definition a user's hits over min(K, test items).",
        "hit_rate", (RUN, COLUMNS, EPOCHS),
    ),
    _accuracy(
        "ndcg", "NDCG",
        "Sum of 1/log2(rank + 1) over test items of rank at most K, divided by its largest value; mean over users (by "
        "FDA's definition users without a test item count as 0 in the overall value).",
        "ndcg", (RUN, COLUMNS, EPOCHS, PHASES),
    ),
    _accuracy(
        "mrr", "MRR",
        "1/rank of the user's best-ranked test item, 0 where that rank is above K; mean over users.",
        "mrr", (RUN, COLUMNS),
    ),
    _accuracy(
        "recall", "Recall",
        "Share of the user's test items that are among the first K; mean over users.",
        "recall", (RUN, COLUMNS, EPOCHS), further=True,
    ),
    _accuracy(
        "f1", "F1",
        "Harmonic mean of a user's hits over the list's length and her hits over her test items, 0 without a hit; mean "
        "over users (FADE).",
        "f1", (RUN, COLUMNS, PHASES), further=True,
    ),
    _accuracy(
        "ndcg_hits", "NDCG, hits",
        "DCG over that of the same hits at the top of the list, 0 without a hit: as FADE's code computes NDCG, the "
        "order among the hits alone, however many test items are missing; mean over users.",
        "ndcg_hits", (RUN, COLUMNS, PHASES), further=True,
    ),
    _exposure(
        "gini", "Gini of exposure", "Gini", "lower", SHARE, "0",
        "Gini index of the exposure (sum of 1/log2(position + 1)) that each of the I items gets, zeros included.",
        places=(RUN, COLUMNS, PARETO, EPOCHS), most="(I - 1)/I",
    ),
    _exposure(
        "gini_count", "Gini of counts", "Gini, counts", "lower", SHARE, "0",
        "Gini index of how often each of the I items is in a list, zeros included.",
        most="(I - 1)/I",
    ),
    _exposure(
        "coverage", "Catalogue coverage", "coverage", "higher", SHARE, "1",
        "Share of the catalogue that is in at least one list.",
        places=(RUN, COLUMNS, PARETO, EPOCHS),
    ),
    _exposure(
        "arp", "Average popularity (interactions)", "ARP", "lower", UPWARDS, "no fixed value",
        "Mean number of train interactions of a list's items, mean over users.",
        per_user=True, places=(RUN, COLUMNS), digits=1, most="the largest degree",
    ),
    _exposure(
        "aplt", "Tail share of the list", "APLT", "higher", SHARE, "no fixed value",
        "Share of tail items in a list, mean over users.",
        per_user=True, places=(RUN, COLUMNS, PARETO, EPOCHS),
    ),
    _exposure(
        "exposure_gap", "Tail's exposure less catalogue share", "exposure gap", "zero", SIGNED, "0",
        "The tail's share of exposure minus its share of the catalogue.",
        places=(RUN, PARETO),
    ),
    _exposure(
        "dtr", "Exposure per interaction, tail/head", "DTR", "one", UPWARDS, "1",
        "Disparate treatment ratio: the tail's exposure per train interaction over the head's (Singh and Joachims, KDD "
        "2018).",
    ),
    _parity(
        "dp_debiased", "Demographic parity, debiased", "DP debiased", SIGNED,
        "Signed root of (W - B)/(W + B), W the mean number of items that the lists of two users of one group share, B "
        "of two users of different groups: |r0 - r1|/(r0 + r1) where the rates r of all items differ alike, and 0 in "
        "expectation where lists do not depend on the group, however concentrated they are (ours).",
        better="zero", places=(HEADLINE, RUN, COLUMNS, PARETO, LEVELS),
    ),
    _parity(
        "eo_debiased", "Equal opportunity, debiased", "EO debiased", SIGNED,
        "As DP debiased, of the items of a list that are hits.",
        better="zero",
    ),
    _parity(
        "dp_code", "DP as FDA's code computes it", "DP, code", SHARE,
        "DP as the code that FDA's authors released computes it: an item counts as two, one where it is a hit and one "
        "where it is not (Chen et al., WWW 2023).",
        further=True,
    ),
    _parity(
        "eo_code", "EO as FDA's code computes it", "EO, code", SHARE,
        "EO as the code that FDA's authors released computes it: hits of item 0 are lost (Chen et al., WWW 2023).",
        further=True,
    ),
    _parity(
        "dp", "Demographic parity, raw counts", "DP, counts", SHARE,
        "Mean over covered items of |n0 - n1| / (n0 + n1), n_g the users of group g with the item in their list (Chen "
        "et al., WWW 2023); not 0 for a blind recommender where groups differ in size.",
    ),
    _parity(
        "eo", "Equal opportunity, raw counts", "EO, counts", SHARE,
        "As DP on raw counts, n_g the users of group g for whom the item is a hit (Chen et al., WWW 2023).",
    ),
    _parity(
        "dp_rate", "Demographic parity, rates", "DP rate", SHARE,
        "As DP on raw counts, n_g divided by the size of the group: 0 in the limit for a blind recommender.",
        places=(RUN, COLUMNS),
    ),
    _parity(
        "eo_rate", "Equal opportunity, rates", "EO rate", SHARE,
        "As EO on raw counts, n_g divided by the size of the group.",
    ),
    _parity(
        "dp_js", "Demographic parity, JS distance", "DP JS", JS_DISTANCE,
        "Jensen-Shannon distance (natural logarithm) between the groups' distributions over shown items (Cofair, "
        "DP@K).",
        places=(RUN, COLUMNS, LEVELS), most=JS_MOST,
    ),
    _parity(
        "eo_js", "Equal opportunity, JS distance", "EO JS", JS_DISTANCE,
        "Jensen-Shannon distance (natural logarithm) between the groups' distributions over hits (Cofair, EOpp@K).",
        most=JS_MOST,
    ),
    Metric(
        "gap", "Gap", "gap", SPREAD, "lower", SHARE, "0",
        "Largest minus smallest mean of a user group.", "model.evaluation.metrics:gap",
        places=(RUN, COLUMNS, PARETO, PHASES),
    ),
    Metric(
        "std", "Standard deviation", "std", SPREAD, "lower", (0.0, 0.5), "0",
        "Population standard deviation of the user groups' means.", "model.evaluation.metrics:std",
        places=(),
    ),
    Metric(
        "difference", "Difference", "difference", SPREAD, "zero", SIGNED, "0",
        "Mean of the first user group (M, Small) minus that of the second, where there are two: FADE's performance "
        "disparity with its sign.",
        "model.evaluation.metrics:difference", further=True, places=(PHASES,),
    ),
    _leakage(
        "leakage_auc", "Leakage AUC, strongest attacker", "AUC",
        "AUC of the strongest of three fresh attackers (linear, MLP, within) that read the attribute off the vectors "
        "of held-out users.",
        (RUN, COLUMNS, PARETO, LEVELS),
    ),
    _leakage(
        "leakage_auc_erased", "Leakage AUC after linear erasure", "AUC, erased",
        "Leakage AUC after closed-form linear erasure of the attribute (LEACE; Belrose et al., NeurIPS 2023), a "
        "yardstick.",
        (RUN,),
    ),
    _leakage(
        "leakage_auc_linear", "Leakage AUC, logistic regression", "AUC, linear",
        "AUC of a logistic regression fitted on the users whose attribute training saw (Zhu et al., SIGIR 2024).",
        (),
    ),
    _leakage(
        "leakage_auc_mlp", "Leakage AUC, MLP", "AUC, MLP",
        "AUC of a small MLP fitted on the users whose attribute training saw (Zhu et al., SIGIR 2024).",
        (),
    ),
    _leakage(
        "leakage_auc_within", "Leakage AUC, within held-out users", "AUC, within",
        "AUC of a logistic regression cross-validated among the held-out users alone.",
        (),
    ),
    _leakage(
        "leakage_auc_hard", "Leakage AUC, Cofair's attacker", "AUC, hard",
        "Under --protocol=cofair, as published: the AUC a of a network's 0/1 predictions, or 1 - a where that is more, "
        "the largest of 500 epochs (Cofair).",
        (RUN, COLUMNS),
    ),
    _leakage(
        "leakage_auc_discriminator", "Leakage AUC, Cofair's network by Adam", "AUC, network",
        "Under --protocol=cofair: AUC of the probabilities of the network of Cofair's attacker, trained by Adam.",
        (RUN, COLUMNS),
    ),
    Metric(
        "infeasible_users", "Users whose exposure floor is out of reach", "infeasible", COUNT, "lower", UPWARDS,
        "0",
        "Users whose re-ranking pool has too few tail items for --exposure_floor.",
        at_k=False, places=(),
    ),
)  # fmt: skip

# name -> row, in the order of the tables
METRICS: dict[str, Metric] = {row.name: row for row in _ROWS}


def metric(name: str) -> Metric:
    """Look a metric up; ValueError for one that is not in the table."""
    if name not in METRICS:
        raise ValueError(
            f"metric {name!r} is not in the metric table; add a row to METRICS in model/evaluation/metric_table.py "
            f"(known: {', '.join(METRICS)})"
        )
    return METRICS[name]


def of_kind(*kinds: str) -> list[Metric]:
    """List the metrics of these kinds, in the order of the table."""
    return [row for row in METRICS.values() if row.kind in kinds]


def computed(kind: str, further: Collection[str] = ()) -> list[Metric]:
    """List the metrics of a kind that a protocol computes whose definitions name `further` ones."""
    return [row for row in of_kind(kind) if not row.further or row.name in further]


def shown_in(place: str) -> list[Metric]:
    """List the metrics that are shown in a place, in the order of the table."""
    return [row for row in METRICS.values() if place in row.places]
