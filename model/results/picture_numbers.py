"""The numbers behind the pictures of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from data.protocols.base import Phase
from data.structs import Group, Histories, HistoryWeights, Split
from fairness_utils import (
    catalogue_log_weights,
    expected_group_distributions,
    exposure,
    js_divergence,
    mean_defined,
    position_weights,
)
from model.evaluation.evaluator import Evaluator
from model.evaluation.intervals import mean_interval
from model.evaluation.keys import EXCESS, MetricKey, validation_metrics
from model.evaluation.metric_kinds import ACCURACY, EPOCHS, HEADLINE
from model.evaluation.metrics import per_user_accuracy
from model.evaluation.questions import Answer
from model.results import plots
from model.results.metric_text import columns, name_of, parsed

BUCKETS = 10
TRADE_OFF_ALPHAS = tuple(step / 10 for step in range(11))


def popularity_buckets(degree: np.ndarray, count: int = BUCKETS) -> np.ndarray:
    """Cut the catalogue into `count` parts of equal size (to within one item) by train degree `[I]`: codes `[I]`.

    Bucket 0 is the least popular; equal degrees go by item id. A catalogue smaller than `count` has a bucket an item.
    """
    codes = np.empty(len(degree), dtype=np.int64)
    codes[np.argsort(degree, kind="stable")] = np.arange(len(degree)) * min(count, len(degree)) // len(degree)
    return codes


def bucket_shares(values: np.ndarray, buckets: np.ndarray) -> np.ndarray:
    """Compute each bucket's share of the total of `values [I]`: `[B]`; NaN where the total is 0."""
    total = np.sum(values)
    return np.bincount(buckets, weights=values) / (total if total > 0 else np.nan)


def user_intervals(
    metrics: Mapping[str, float], per_user: Mapping[str, np.ndarray], names: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Compute 95 % intervals of those of `metrics` that `names` names, from the values `per_user [T]`: low, high.

    A metric that is no mean of its users' defined values has none.
    """
    found = {name: mean_interval(np.asarray(per_user[name])) for name in names if name in per_user}
    return {
        name: (float(low), float(high))
        for name, (mean, low, high) in found.items()
        if math.isclose(mean, metrics[name], rel_tol=1e-9, abs_tol=1e-12)
    }


def metrics_by_epoch(rows: Sequence[Mapping], k: int, attribute: str) -> list[MetricKey]:
    """Choose the fairness metrics at `k` whose validation is drawn by epoch: those of which two epochs have a value.

    They are the metric table's for epochs and for claims about parity, these as excess over chance where that is known.
    """
    frame = pd.DataFrame([dict(row) for row in rows])
    names = validation_metrics(frame.columns[frame.notna().sum() > 1])
    shown = columns(EPOCHS, names, k, attribute) | columns(HEADLINE, names, k, attribute)
    keys = [key for key in parsed(shown) if key.metric.kind != ACCURACY or key.group == "tail" or key.spread]
    return [key.of(EXCESS) if str(key.of(EXCESS)) in names else key for key in keys]


Estimates = tuple[dict[str, dict[str, np.ndarray]], dict[str, list[str]]]


def group_estimates(groups: Mapping[str, Group], answers: Mapping[str, Answer], k: int) -> Estimates:
    """Compute NDCG and HR at `k` of all users and of each user group, for this run and its re-ranked lists."""
    estimates = {}
    for key in (MetricKey("ndcg", k), MetricKey("hr", k)):
        estimates[name_of(key)] = rows = {}
        for name in ("this run", "re-ranked"):
            if name not in answers:
                continue
            values, users = answers[name].per_user[str(key)], answers[name].ranking.users
            intervals = {"": {f"everyone (n = {np.sum(~np.isnan(values)):,})": mean_interval(values)}}
            for group in groups.values():
                parts = [values[group.codes[users] == code] for code in range(group.num_groups)]
                intervals[group.name] = {
                    f"{group.name} {label} (n = {np.sum(~np.isnan(part)):,})": mean_interval(part)
                    for label, part in zip(group.labels, parts, strict=True)
                }
            rows[name] = np.stack([interval for block in intervals.values() for interval in block.values()])
    return estimates, {block: list(labels) for block, labels in intervals.items()}


def popularity_estimates(split: Split, answers: Mapping[str, Answer], k: int) -> Estimates:
    """Compute NDCG and HR at `k` on all relevant items and on those of the head and the tail, for every list."""
    popularity = split.item_groups["popularity"]
    among = {"all items": None} | {
        f"{label} items": popularity.codes == code for code, label in enumerate(popularity.labels)
    }
    values = {
        name: [per_user_accuracy(answer.ranking, k, items) for items in among.values()]
        for name, answer in answers.items()
    }
    estimates = {
        name_of(key): {
            name: np.stack([mean_interval(part[key.name]) for part in parts]) for name, parts in values.items()
        }
        for key in (MetricKey("ndcg", k), MetricKey("hr", k))
    }
    counts = [np.sum(~np.isnan(part["ndcg"])) for part in values["this run"]]
    labels = [f"{label} (n = {count:,})" for label, count in zip(among, counts, strict=True)]
    return estimates, {"": labels[:1], "popularity": labels[1:]}


def sampled_histories(evaluator: Evaluator, split: Split, group: Group, buckets: np.ndarray) -> dict[str, np.ndarray]:
    """Compute each group's expected share of the first draw per popularity bucket, `[G, B]`, for each way of sampling.

    Ways are uniform, tail-biased (BUHS) and, where it differs, this run's; each title ends with the groups' divergence.
    """
    histories, config = split.histories, evaluator.config
    run_weights = evaluator.method.history_weights(histories, split)
    biased = catalogue_log_weights(histories, split.degree, config.sampling_softmax_temp)[None]
    ways = {"uniform": HistoryWeights(np.zeros(1), np.zeros((1, len(histories.item))))}
    same = run_weights.log_weights.shape == biased.shape and np.array_equal(run_weights.log_weights, biased)
    ways["tail-biased (BUHS)" + ", this run" * same] = HistoryWeights(np.zeros(1), biased)
    if not same:
        name = f"this run ({plots.ALPHA} = {config.fairness_weight:g})" if config.fairness_sampling else "this run"
        ways[name] = run_weights
    inside = buckets[:, None] == np.arange(buckets.max() + 1)
    shares = {}
    for name, weights in ways.items():
        expected, divergence = expected_histories(histories, weights, group, split.num_items)
        shares[f"{name}\nJS {divergence:.4f}"] = expected @ inside
    return shares


def expected_histories(
    histories: Histories, weights: HistoryWeights, group: Group, num_items: int
) -> tuple[np.ndarray, float]:
    """Compute each group's expected item distribution of a first draw `[G, I]`, and their mean pairwise divergence."""
    expected = expected_group_distributions(histories, weights, group, num_items)
    defined = expected[~np.isnan(expected).any(axis=1)]
    pairs = [float(js_divergence(first, second)) for first, second in combinations(defined, 2)]
    return expected, mean_defined(np.array(pairs))


def trade_off(evaluator: Evaluator, phase: Phase) -> pd.DataFrame:
    """Re-rank the validation ranking with each weight: a row per floor and alpha with accuracy and tail share.

    Floors are the run's and 0; the run's own alpha is among those tried.
    """
    config, split, k = evaluator.config, phase.split, evaluator.config.eval_k[0]
    top = max(k, config.rerank_pool)
    control = evaluator.method.controls()[0]
    ranking = evaluator.alone().rank(phase.valid, split.histories, split, top, control, progress="trade-off")
    tail, rows = split.is_tail, []
    for floor in dict.fromkeys((config.exposure_floor, 0.0)):
        for alpha in sorted({*TRADE_OFF_ALPHAS, config.rerank_alpha}):
            reranked, _ = evaluator.rerank(ranking, split, alpha, floor)
            exposures = exposure(reranked.topk[:, :k], split.num_items, position_weights(k))
            rows.append(
                {
                    "floor": floor,
                    "alpha": alpha,
                    "accuracy": mean_defined(per_user_accuracy(reranked, k)["ndcg"]),
                    "tail_share": float(exposures[tail].sum() / exposures.sum()),
                }
            )
    return pd.DataFrame(rows)
