"""Upstream's evaluation as a literal loop over users: what `tests.benchmarks.ranking` compares the program with.

Written from the public code's structure: per user a feature row for every candidate, both towers and the scorer's
formula on each row, a sort, then metrics in plain Python.
"""

from __future__ import annotations

import numpy as np
import torch

from data.protocols.base import Task
from data.structs import Split
from fairness_utils import gini
from model.evaluation.evaluator import Evaluator
from tests.support.literal_scorer import literal
from tests.support.metric_twins import twin_accuracy, twin_dtr, twin_exposure, twin_in_list, twin_mean, twin_parity


@torch.no_grad()
def literal_ranking(
    evaluator: Evaluator, task: Task, user: int, past: torch.Tensor, top: int
) -> tuple[list, np.ndarray]:
    """Score one user's candidates as upstream does: both towers and the scorer's formula on a row per candidate."""
    backbone, items = evaluator.backbone, torch.arange(evaluator.num_items)
    features = backbone.user_encoder(torch.full_like(items, user))
    history = backbone.item_encoder(past).mean(0).expand(len(items), -1)
    vectors = backbone.user_tower(torch.cat([features, history], dim=1))
    candidates = backbone.item_tower(backbone.item_encoder(items))
    scores = literal(backbone.scorer, vectors, candidates[:, None])[:, 0].numpy()
    scores[task.excluded[user]] = -np.inf
    ranks = [int((scores >= scores[item]).sum()) for item in task.relevant[user]]
    return ranks, np.argsort(-scores, kind="stable")[:top]


def literal_metrics(ranks: list, topk: np.ndarray, codes: np.ndarray, is_tail: np.ndarray, split: Split, ks) -> dict:
    """Compute accuracy user by user and exposure entry by entry; `is_tail [t]`: user t's test item is in the tail."""
    tail, degree, result = split.item_groups["popularity"].codes == 1, split.degree, {}
    slices = (("head", ~is_tail), ("tail", is_tail), ("gender/M", codes == 0), ("gender/F", codes == 1))
    for k in ks:
        lists, users = topk[:, :k], [twin_accuracy(row, k) for row in ranks]
        for name in ("hr", "ndcg", "mrr"):
            result[f"{name}@{k}"] = twin_mean([user[name] for user in users])
            for label, chosen in slices:
                values = [user[name] for user, member in zip(users, chosen, strict=True) if member]
                result[f"{name}@{k}/{label}"] = twin_mean(values)
        discounted = twin_exposure(lists, split.num_items, True)
        counts = twin_exposure(lists, split.num_items, False)
        result[f"gini@{k}"], result[f"gini_count@{k}"] = gini(np.array(discounted)), gini(np.array(counts))
        result[f"coverage@{k}"] = sum(count > 0 for count in counts) / split.num_items
        result[f"arp@{k}"], result[f"aplt@{k}"] = twin_in_list(lists, degree), twin_in_list(lists, tail)
        result[f"dtr@{k}"] = twin_dtr(discounted, tail, degree)
        result[f"dp@{k}/gender"] = twin_parity(lists, codes, split.num_items)
    return result
