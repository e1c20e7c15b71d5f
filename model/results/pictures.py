"""Which pictures a run has, and the numbers behind them; `plots` draws."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

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
from model.evaluation.keys import TEST, YARDSTICKS, MetricKey, is_one, run_lists, short_name, validation_key
from model.evaluation.metrics import per_user_accuracy
from model.evaluation.questions import Answer
from model.results import plots
from model.results.drawing import attempt
from model.results.metric_text import name_of
from model.results.pages import Picture
from model.results.pareto import accuracy_against_fairness, fairness_metrics
from model.runs.run import Run
from model.training.progress import Progress

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
    answers: Sequence[Answer],
    evaluator: Evaluator | None = None,
) -> dict[str, Picture]:
    """Draw every picture that a run has the numbers for, into `directory`: name (of the files too) -> picture.

    Training curves need rows of `progress`, the history and the re-ranking the `evaluator` that holds the selected
    weights; the trade-off ranks the validation task, never the test's. A picture that fails is left out with a warning.
    """
    album = Album(directory)
    tested = [phase for phase in run.protocol.phases if phase.tests]
    phase, k, shown = (tested or run.protocol.phases)[-1], run.config.eval_k[0], shown_answers(answers)
    _training(album, progress.rows, run.protocol.phases[-1], origin)
    _all_lists(album, progress.results, k, shown)
    if shown:
        _exposure(album, phase.split, k, shown)
        with album.picture("accuracy_by_group") as draw:
            draw(plots.accuracy_intervals, *group_estimates(run.groups, shown, k))
        with album.picture("accuracy_by_popularity") as draw:
            draw(plots.accuracy_intervals, *popularity_estimates(phase.split, shown, k))
    if evaluator is not None:
        _histories(album, run, phase, evaluator)
        _trade_off(album, run, phase, evaluator)
    return album.pictures


class Album:
    """The pictures of a run that could be drawn, by name."""

    def __init__(self, directory: Path):
        self.directory, self.pictures = directory, {}

    @contextlib.contextmanager
    def picture(self, name: str, **words: Any) -> Iterator[Callable]:
        """Give a function that draws the picture; a failure while its numbers are made or drawn is a warning.

        `words` fill its text.
        """

        def draw(plot: Callable[..., list[Path]], *numbers: Any, **options: Any) -> None:
            title, caption = (text.format_map(words) for text in TEXTS[name])
            self.pictures[name] = Picture(title, caption, tuple(plot(*numbers, self.directory / name, **options)))

        with attempt(f"the picture {name}"):
            yield draw


def _training(album: Album, rows: Sequence[Mapping], phase: Phase, origin: Mapping[str, Any]) -> None:
    if not rows:
        return
    adversary = ADVERSARY if any("train/adversary/user" in row for row in rows) else ""
    selector = "the protocol" if phase.valid is None else f"validation {phase.metric}"
    with album.picture("training", selector=selector, adversary=adversary) as draw:
        metric = validation_key(phase.metric)
        draw(plots.training_curves, rows, metric=metric, selected_epoch=origin["epoch"])


def _all_lists(album: Album, results: Mapping[str, Mapping[str, float]], k: int, shown: Mapping[str, Answer]) -> None:
    names = run_lists(results)
    if is_one(names) or not shown:
        return
    key, accuracy = shown["this run"].key, str(MetricKey("ndcg", k))
    levels = {"phase": key.phase, "task": key.task, "control": key.control}
    first = ", ".join(f"{level} {name}" for level, name in levels.items() if name)
    points = {short_name(name): results[name] for name in names}
    if fairness_metrics(points, accuracy):
        with album.picture("settings", first=first) as draw:
            draw(accuracy_against_fairness, points, accuracy=accuracy)


def _exposure(album: Album, split: Split, k: int, shown: Mapping[str, Answer]) -> None:
    exposures = {
        name: exposure(answer.ranking.topk[:, :k], split.num_items, position_weights(k))
        for name, answer in shown.items()
        if name != YARDSTICKS["random"]
    }
    with album.picture("exposure") as draw:
        draw(plots.exposure_lorenz, exposures)
    with album.picture("exposure_by_popularity", k=k) as draw:
        buckets = popularity_buckets(split.degree)
        shares = {name: bucket_shares(values, buckets) for name, values in exposures.items()}
        due = [bucket_shares(values, buckets) for values in (np.ones(split.num_items), split.degree)]
        draw(plots.exposure_by_popularity, shares, *due)


def _histories(album: Album, run: Run, phase: Phase, evaluator: Evaluator) -> None:
    if evaluator.backbone.history_kind != "sampled":
        return
    group = run.groups[run.config.attribute]
    largest = np.sort(np.argsort(-group.counts(), kind="stable")[:GROUPS_SHOWN])
    some = f" (drawn for the {GROUPS_SHOWN} largest of {group.num_groups} groups)"
    with album.picture("histories", group=group.name, some=some if group.num_groups > GROUPS_SHOWN else "") as draw:
        ways = sampled_histories(evaluator, phase.split, group, popularity_buckets(phase.split.degree))
        drawn = {title: values[largest] for title, values in ways.items()}
        draw(plots.history_distributions, drawn, [group.labels[code] for code in largest], group=group.name)


def _trade_off(album: Album, run: Run, phase: Phase, evaluator: Evaluator) -> None:
    config = run.config
    if not config.rerank_fair or phase.valid is None:
        return
    with album.picture("rerank_trade_off") as draw:
        chosen, tail = (
            (config.exposure_floor, config.rerank_alpha),
            evaluator.target(phase.split)[_tail_code(phase.split)],
        )
        name = name_of(MetricKey("ndcg", config.eval_k[0]))
        draw(plots.rerank_trade_off, trade_off(evaluator, phase), name, chosen, due=float(tail))


def shown_answers(answers: Sequence[Answer]) -> dict[str, Answer]:
    """What pictures call a list -> its answer: of several, those of the first task, under the first control."""
    by_key = {answer.key: answer for answer in answers}
    first = next((key for key in by_key if key.source == TEST), None)
    if first is None:
        return {}
    wanted = {"this run": first, "re-ranked": first.after_reranking()}
    wanted |= {shown: first.beside(name) for name, shown in YARDSTICKS.items()}
    return {name: by_key[key] for name, key in wanted.items() if key in by_key}


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
    half = stdtrit(count - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / np.sqrt(count)
    return np.array([mean, max(mean - half, 0.0), min(mean + half, 1.0)])


Estimates = tuple[dict[str, dict[str, np.ndarray]], dict[str, list[str]]]


def group_estimates(groups: Mapping[str, Group], answers: Mapping[str, Answer], k: int) -> Estimates:
    """NDCG and HR at `k` of everyone and of each user group, for this run and re-ranked."""
    estimates = {}
    for key in (MetricKey("ndcg", k), MetricKey("hr", k)):
        estimates[name_of(key)] = rows = {}
        for name in ("this run", "re-ranked"):
            if name not in answers:
                continue
            values, users = answers[name].per_user[str(key)], answers[name].ranking.users
            own = {"": {f"everyone (n = {np.sum(~np.isnan(values)):,})": mean_interval(values)}}
            for group in groups.values():
                parts = [values[group.codes[users] == code] for code in range(group.num_groups)]
                own[group.name] = {
                    f"{group.name} {label} (n = {np.sum(~np.isnan(part)):,})": mean_interval(part)
                    for label, part in zip(group.labels, parts, strict=True)
                }
            rows[name] = np.stack([interval for block in own.values() for interval in block.values()])
    return estimates, {block: list(labels) for block, labels in own.items()}


def popularity_estimates(split: Split, answers: Mapping[str, Answer], k: int) -> Estimates:
    """NDCG and HR at `k` on all relevant items and on those of the head and the tail, for every list."""
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
