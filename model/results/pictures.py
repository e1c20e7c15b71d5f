"""Which pictures a run has, and the numbers behind them; `plots` draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from data.protocols.base import Phase
from data.structs import Group, Histories, HistoryWeights, Ranking, Split
from fairness_utils import (
    catalogue_log_weights,
    expected_group_distributions,
    exposure,
    js_divergence,
    mean_defined,
    position_weights,
)
from model.evaluation.evaluator import Evaluator
from model.evaluation.metrics import per_user_accuracy
from model.results import plots
from model.results.pages import Picture
from model.results.pareto import accuracy_against_fairness, fairness_metrics
from model.results.shown import under
from model.results.side_by_side import TestedList, is_one, roots_of
from model.results.tables import ACCURACY
from model.runs.run import Run
from model.training.progress import Progress

# what a picture calls a ranking -> its key; the order of legends
RANKINGS = {
    "this run": "test",
    "re-ranked": "test/reranked",
    "most popular": "reference/popular",
    "random": "reference/random",
}
BUCKETS = 10
LEVEL = 0.95
GROUPS_SHOWN = len(plots.STYLES)
TRADE_OFF_ALPHAS = tuple(step / 10 for step in range(11))
INTERVALS = (
    "whiskers are 95 % intervals of the mean over users (Student's t, cut off at 0 and 100 %); a point without one has "
    "too few users, or users who all agree"
)
# picture -> its title and how to read it
TEXTS = {
    "training": ("Training curves", "The dotted line is the epoch that {selector} selected{adversary}."),
    "settings": (
        "Accuracy against fairness of all tested lists",
        "Each point is a list; the step line joins those that no other list beats in both at once, the others are "
        "hollow. The other pictures show {first}.",
    ),
    "exposure": (
        "Exposure over the catalogue",
        "The further a curve hangs below the diagonal, the fewer items share the exposure; the Gini index is twice the "
        "area between the two.",
    ),
    "exposure_by_popularity": (
        "Exposure by popularity",
        "A bar above the dashed line gives that part of the catalogue more exposure in the top {k} than its number of "
        "items is due, a bar above the wide mark more than its train interactions are.",
    ),
    "accuracy_by_group": (
        "Accuracy by user group",
        f"Groups whose whiskers lie apart are served differently; {INTERVALS}; the dotted line is everyone's mean.",
    ),
    "accuracy_by_popularity": (
        "Accuracy on head and tail items",
        f"Users whose held-out item is of the head, and of the tail; {INTERVALS}; the dotted line is this run's mean "
        "over all of them.",
    ),
    "histories": (
        "Sampled histories by {group}",
        "What the first item drawn from a user's history is expected to be{some}: the closer the lines and the smaller "
        "the Jensen-Shannon divergence JS between the groups' distributions over items (natural logarithm, mean over "
        "pairs of groups), the less a history gives its reader's group away.",
    ),
    "rerank_trade_off": (
        "Re-ranking trade-off on validation",
        "Each point is one weight --rerank_alpha from 0 to 1, the star this run's: the further right for the same "
        "height, the cheaper the tail's exposure (the test set is not read).",
    ),
}
ADVERSARY = (
    "; an adversary's loss near ln(number of classes), 0.693 for two, is at chance, which does not say that a fresh "
    "attacker would be"
)


def draw_run(
    run: Run,
    directory: Path,
    progress: Progress,
    origin: Mapping[str, Any],
    rankings: Mapping[str, Ranking],
    per_user: Mapping[str, np.ndarray],
    evaluator: Evaluator | None = None,
) -> dict[str, Picture]:
    """Draw every picture that a run has the numbers for, into `directory`: name (of the files too) -> picture.

    Training curves need rows of `progress`. The history and the re-ranking need the `evaluator` that holds the selected
    weights; the trade-off ranks the validation task, never the test's.
    """
    config, phase, k = run.config, run.protocol.phases[-1], run.config.eval_k[0]
    split, rows = phase.split, progress.rows
    keys = shown_keys(rankings)
    shown = {name: rankings[key] for name, key in keys.items()}
    pictures = {}

    def add(name: str, draw: Callable[..., list[Path]], *numbers, words: Mapping[str, Any] = {}, **options) -> None:
        title, caption = (text.format_map(words) for text in TEXTS[name])
        pictures[name] = Picture(title, caption, tuple(draw(*numbers, directory / name, **options)))

    if rows:
        adversary = ADVERSARY if any("train/adversary/user" in row for row in rows) else ""
        marks = {"metric": f"valid/{phase.metric}", "selected_epoch": origin["epoch"]}
        selector = "the protocol" if phase.valid is None else f"validation {phase.metric}"
        add("training", plots.training_curves, rows, words={"selector": selector, "adversary": adversary}, **marks)
    roots = roots_of(progress.results, k)
    if not is_one(roots):
        points = {root.partition("/")[2]: under(progress.results, root, roots) for root in roots}
        first = TestedList.of(keys["this run"], run.protocol)
        names = {"phase": first.phase, "task": first.task, "control": first.control}
        words = {"first": ", ".join(f"{level} {name}" for level, name in names.items() if name)}
        if fairness_metrics(points, f"ndcg@{k}"):
            add("settings", accuracy_against_fairness, points, words=words, accuracy=f"ndcg@{k}")
    exposures = {
        name: exposure(ranking.topk[:, :k], split.num_items, position_weights(k))
        for name, ranking in shown.items()
        if name != "random"
    }
    add("exposure", plots.exposure_lorenz, exposures)
    buckets = popularity_buckets(split.degree)
    shares = {name: bucket_shares(values, buckets) for name, values in exposures.items()}
    due = [bucket_shares(values, buckets) for values in (np.ones(split.num_items), split.degree)]
    add("exposure_by_popularity", plots.exposure_by_popularity, shares, *due, words={"k": k})
    add("accuracy_by_group", plots.accuracy_intervals, *group_estimates(run.groups, shown, per_user, k, keys))
    add("accuracy_by_popularity", plots.accuracy_intervals, *popularity_estimates(split, shown, k))
    if evaluator is not None and evaluator.backbone.history_kind == "sampled":
        group = run.groups[config.attribute]
        largest = np.sort(np.argsort(-group.counts(), kind="stable")[:GROUPS_SHOWN])
        some = f" (drawn for the {GROUPS_SHOWN} largest of {group.num_groups} groups)"
        words = {"group": group.name, "some": some if group.num_groups > GROUPS_SHOWN else ""}
        ways = sampled_histories(evaluator, split, group, buckets)
        drawn = {title: values[largest] for title, values in ways.items()}
        labels = [group.labels[code] for code in largest]
        add("histories", plots.history_distributions, drawn, labels, words=words, group=group.name)
    if evaluator is not None and config.rerank_fair and phase.valid is not None:
        chosen, tail = (config.exposure_floor, config.rerank_alpha), evaluator.target(split)[_tail_code(split)]
        curves = trade_off(evaluator, phase)
        add("rerank_trade_off", plots.rerank_trade_off, curves, f"NDCG@{k}", chosen, due=float(tail))
    return pictures


def shown_keys(rankings: Mapping[str, Ranking]) -> dict[str, str]:
    """What pictures call a ranking -> its key: of several, those of the first task, under the first control."""
    own = next(key for key in rankings if key.partition("/")[0] == "test")
    wanted = {"this run": own, "re-ranked": f"{own}/reranked"}
    for name in ("most popular", "random"):
        wanted[name] = next((key for key in rankings if key.startswith(RANKINGS[name])), "")
    return {name: key for name, key in wanted.items() if key in rankings}


def _tail_code(split: Split) -> int:
    return split.item_groups["popularity"].labels.index("tail")


def popularity_buckets(degree: np.ndarray, count: int = BUCKETS) -> np.ndarray:
    """Cut the catalogue into `count` parts of equal size (to within one item) by train degree `[I]`: codes `[I]`.

    Bucket 0 is the least popular; equal degrees go by item id. A catalogue smaller than `count` has a bucket an item.
    """
    codes = np.empty(len(degree), dtype=np.int64)
    codes[np.argsort(degree, kind="stable")] = np.arange(len(degree)) * min(count, len(degree)) // len(degree)
    return codes


def bucket_shares(values: np.ndarray, buckets: np.ndarray) -> np.ndarray:
    """Share of the total of `values [I]` that falls to each bucket; NaN where the total is 0."""
    total = np.sum(values)
    return np.bincount(buckets, weights=values) / (total if total > 0 else np.nan)


def mean_interval(values: np.ndarray) -> np.ndarray:
    """Mean of fractions `[T]` and its 95 % interval by Student's t, cut off at 0 and 1: `[3]` (mean, low, high).

    NaN values are left out; the interval of fewer than two, or of equal ones, is NaN.
    """
    values = values[~np.isnan(values)]
    mean, count = mean_defined(values), len(values)
    if count < 2 or np.ptp(values) == 0:
        return np.array([mean, np.nan, np.nan])
    half = student_t.ppf((1 + LEVEL) / 2, count - 1) * values.std(ddof=1) / np.sqrt(count)
    return np.array([mean, max(mean - half, 0.0), min(mean + half, 1.0)])


Estimates = tuple[dict[str, dict[str, np.ndarray]], dict[str, list[str]]]


def group_estimates(
    groups: Mapping[str, Group],
    rankings: Mapping[str, Ranking],
    per_user: Mapping[str, np.ndarray],
    k: int,
    keys: Mapping[str, str] = RANKINGS,
) -> Estimates:
    """NDCG and HR at `k` of everyone and of each user group, for this run and re-ranked.

    `per_user` has the values by key (`test/ndcg@10`; `keys` names each ranking's root), `[T]` each, in the order of the
    rankings' users.
    """
    estimates = {}
    for base in ("ndcg", "hr"):
        estimates[f"{ACCURACY[base]}@{k}"] = rows = {}
        for name in ("this run", "re-ranked"):
            if name not in rankings:
                continue
            values, users = per_user[f"{keys[name]}/{base}@{k}"], rankings[name].users
            own = {"": {f"everyone (n = {np.sum(~np.isnan(values)):,})": mean_interval(values)}}
            for group in groups.values():
                parts = [values[group.codes[users] == code] for code in range(group.num_groups)]
                own[group.name] = {
                    f"{group.name} {label} (n = {np.sum(~np.isnan(part)):,})": mean_interval(part)
                    for label, part in zip(group.labels, parts, strict=True)
                }
            rows[name] = np.stack([interval for block in own.values() for interval in block.values()])
    return estimates, {block: list(labels) for block, labels in own.items()}


def popularity_estimates(split: Split, rankings: Mapping[str, Ranking], k: int) -> Estimates:
    """NDCG and HR at `k` on all relevant items and on those of the head and the tail, for every ranking."""
    popularity = split.item_groups["popularity"]
    among = {"all items": None} | {
        f"{label} items": popularity.codes == code for code, label in enumerate(popularity.labels)
    }
    values = {
        name: [per_user_accuracy(ranking, k, items) for items in among.values()] for name, ranking in rankings.items()
    }
    estimates = {
        f"{ACCURACY[base]}@{k}": {
            name: np.stack([mean_interval(part[base]) for part in parts]) for name, parts in values.items()
        }
        for base in ("ndcg", "hr")
    }
    counts = [np.sum(~np.isnan(part["ndcg"])) for part in values["this run"]]
    labels = [f"{label} (n = {count:,})" for label, count in zip(among, counts, strict=True)]
    return estimates, {"": labels[:1], "popularity": labels[1:]}


def sampled_histories(evaluator: Evaluator, split: Split, group: Group, buckets: np.ndarray) -> dict[str, np.ndarray]:
    """Each group's expected share of the first draw per popularity bucket, by way of sampling: `[G, B]`.

    Ways are uniform, tail-biased (BUHS) and, where it differs, this run's; each title ends with the groups' divergence.
    """
    histories, config = split.histories, evaluator.config
    own = evaluator.method.history_weights(histories, split)
    biased = catalogue_log_weights(histories, split.degree, config.sampling_softmax_temp)[None]
    ways = {"uniform": HistoryWeights(np.zeros(1), np.zeros((1, len(histories.item))))}
    same = own.log_weights.shape == biased.shape and np.array_equal(own.log_weights, biased)
    ways["tail-biased (BUHS)" + ", this run" * same] = HistoryWeights(np.zeros(1), biased)
    if not same:
        name = f"this run ({plots.ALPHA} = {config.fairness_weight:g})" if config.fairness_sampling else "this run"
        ways[name] = own
    inside = buckets[:, None] == np.arange(buckets.max() + 1)
    shares = {}
    for name, weights in ways.items():
        expected, divergence = expected_histories(histories, weights, group, split.num_items)
        shares[f"{name}\nJS {divergence:.4f}"] = expected @ inside
    return shares


def expected_histories(
    histories: Histories, weights: HistoryWeights, group: Group, num_items: int
) -> tuple[np.ndarray, float]:
    """Each group's expected item distribution of a first draw `[G, I]`, and their mean pairwise JS divergence."""
    expected = expected_group_distributions(histories, weights, group, num_items)
    defined = expected[~np.isnan(expected).any(axis=1)]
    pairs = [float(js_divergence(first, second)) for first, second in combinations(defined, 2)]
    return expected, mean_defined(np.array(pairs))


def trade_off(evaluator: Evaluator, phase: Phase) -> pd.DataFrame:
    """Re-rank the validation ranking under every weight: a row per floor and alpha with accuracy and tail share.

    Floors are the run's and 0; its own alpha is among those tried.
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
