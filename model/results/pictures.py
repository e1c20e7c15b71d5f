"""The pictures of a run and how to read them; `picture_numbers` has the numbers, `plots` draws."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data.protocols.base import Phase
from data.structs import Split
from fairness_utils import (
    exposure,
    position_weights,
)
from model.evaluation.averages import averages_of
from model.evaluation.evaluator import Evaluator
from model.evaluation.keys import TEST, YARDSTICKS, MetricKey, is_one, run_lists, short_name
from model.evaluation.metric_kinds import LEVELS
from model.evaluation.questions import Answer
from model.results import epoch_plots, plots
from model.results.beside import lists_beside
from model.results.drawing import STYLES, attempt
from model.results.finished import Finished
from model.results.levels import curves_of, levels_of
from model.results.metric_text import name_of
from model.results.pages import Picture
from model.results.pareto import FEWEST_POINTS, accuracy_against_fairness, fairness_metrics, how_to_read
from model.results.period_numbers import Periods, Series, intervals_over_users, metrics_by_phase, panels_of
from model.results.period_plots import TITLE, by_phase
from model.results.period_plots import how_to_read as how_to_read_phases
from model.results.picture_numbers import (
    bucket_shares,
    group_estimates,
    metrics_by_epoch,
    popularity_buckets,
    popularity_estimates,
    sampled_histories,
    trade_off,
    user_intervals,
)
from model.runs.run import Run
from model.training.progress import Progress

GROUPS_SHOWN = len(STYLES)
INTERVALS = (
    "whiskers are 95 % intervals of the mean over users (Student's t, cut off at 0 and 100 %); a point without one has "
    "too few users, or users who all agree"
)
# picture -> its title and how to read it
TEXTS = {
    "training": ("Training curves", "{selected}{adversary}."),
    "fairness_by_epoch": (
        "Fairness by epoch, beside accuracy",
        "On validation, arrows point to the better side; the dotted line is the epoch that {selector} selected.{raw}",
    ),
    "levels": (
        "Accuracy against fairness by level",
        "{reading} Demographic parity also moves with how concentrated lists are, since groups who are all shown the "
        "same few items are alike: read it beside the Gini index of exposure.{others}{first}",
    ),
    "settings": ("Accuracy against fairness of all tested lists", "{reading}{others}{first}"),
    "periods": (TITLE, "{reading}"),
    "exposure": (
        "Exposure over the catalogue",
        "The further a curve hangs below the diagonal, the fewer items share the exposure; the Gini index is twice the "
        "area between the two.",
    ),
    "exposure_by_popularity": (
        "Exposure by popularity",
        "Above 1 a part of the catalogue gets more exposure in the top {k} than its number of items is due, above the "
        "wide line more than its train interactions are. The axis is logarithmic, and linear below {linear}.",
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
    "; an adversary's loss near the entropy of the classes as it weighs them, ln 2 = 0.693 for two of equal weight, is "
    "at chance, which does not say that a fresh attacker would be"
)

LAST_EPOCHS = "Nothing is validated: every phase takes its last epoch"
OTHERS = " Points that are not of this run are of others, trained separately (--beside)."
FIRST = " The other pictures show {}."
RAW = " What depends on user groups is drawn without its chance level, which is not measured by epoch."


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
    _training(album, run, progress.rows, origin)
    _all_lists(album, run, progress, answers, shown.get("this run"))
    if shown:
        _periods(album, run, progress.results, shown)
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


def _training(album: Album, run: Run, rows: Sequence[Mapping], origin: Mapping[str, Any]) -> None:
    if not rows:
        return
    phase, config = run.protocol.phases[-1], run.config
    adversary = ADVERSARY if any(key.startswith("train/adversary/") for row in rows for key in row) else ""
    selector = "the protocol" if phase.valid is None else f"validation {phase.metric}"
    validates = any(phase.valid is not None for phase in run.protocol.phases)
    selected = f"The dotted line is the epoch that {selector} selected" if validates else LAST_EPOCHS
    with album.picture("training", selected=selected, adversary=adversary) as draw:
        metric = phase.metric if validates else None
        draw(epoch_plots.training_curves, rows, metric=metric, selected_epoch=origin["epoch"])
    metrics = metrics_by_epoch(rows, config.eval_k[0], config.attribute)
    if metrics:
        raw = RAW if any(key.by_groups and not key.part for key in metrics) else ""
        with album.picture("fairness_by_epoch", selector=selector, raw=raw) as draw:
            shown = [phase.metric, *map(str, metrics)]
            draw(epoch_plots.fairness_by_epoch, rows, shown, selected_epoch=origin["epoch"])


def _all_lists(album: Album, run: Run, progress: Progress, answers: Sequence[Answer], shown: Answer | None) -> None:
    """Draw accuracy against fairness of all lists: over levels, and then by the metrics that are not there yet."""
    results, config = progress.results, run.config
    own = run_lists(results)
    # of many phases their means alone can be told apart
    own = list(map(str, averages_of(results, run.protocol))) or own
    if shown is None or (is_one(own) and not config.beside):
        return
    others: list[Finished] = []
    with attempt("what --beside names"):
        others = lists_beside(run)
    names = {name: short_name(name) for name in own}
    if others:
        names = {name: f"this run:{short}" if short else "this run" for name, short in names.items()}
    points = {names[name]: results[name] for name in own} | {one.name: one.metrics for one in others}
    values = {names[str(answer.key)]: answer.per_user for answer in answers if str(answer.key) in names}
    values |= {one.name: one.values for one in others}
    curves = {
        label: {names[name]: control for name, control in curve.items()}
        for label, curve in levels_of(config.method, own).items()
    } | curves_of(others)
    accuracy, fewest = str(MetricKey("ndcg", config.eval_k[0])), 2 if others else FEWEST_POINTS
    by_level = fairness_metrics(points, accuracy, (LEVELS,), fewest) if curves else []
    by_level = [text for text in by_level if MetricKey.parse(text).group == config.attribute]
    further = [text for text in fairness_metrics(points, accuracy, fewest=fewest) if text not in by_level]
    parts = {part: getattr(shown.key, part) for part in ("phase", "task", "control")}
    first = ", ".join(f"{part} {name}" for part, name in parts.items() if name)
    words = {"others": OTHERS * bool(others), "first": FIRST.format(first) * bool(first)}
    for picture, metrics in (("levels", by_level), ("settings", further)):
        if not metrics:
            continue
        intervals = {name: user_intervals(points[name], values[name], [accuracy, *metrics]) for name in values}
        with album.picture(picture, reading=how_to_read("list", metrics, intervals, curves), **words) as draw:
            drawn = {"accuracy": accuracy, "fairness": metrics, "intervals": intervals, "joined": curves}
            draw(accuracy_against_fairness, points, **drawn)


def _periods(album: Album, run: Run, results: Mapping[str, Mapping[str, float]], shown: Mapping[str, Answer]) -> None:
    """Draw the lists shown, and those like them after earlier phases."""
    periods, config = Periods.of(run.protocol), run.config
    keys = {
        name: replace(answer.key, phase="", task="") for name, answer in shown.items() if name != YARDSTICKS["random"]
    }
    metrics = metrics_by_phase(config.eval_k[0], config.attribute)
    plain = panels_of(periods, {name: Series(key, results, {}) for name, key in keys.items()}, metrics)
    if not plain:
        return
    with album.picture("periods", reading=how_to_read_phases(plain, "users")) as draw:
        intervals = intervals_over_users(album.directory, periods, keys.values(), results, metrics[0])
        series = {name: Series(key, results, intervals) for name, key in keys.items()}
        draw(by_phase, panels_of(periods, series, metrics), periods.phases)


def _exposure(album: Album, split: Split, k: int, shown: Mapping[str, Answer]) -> None:
    exposures = {
        name: exposure(answer.ranking.topk[:, :k], split.num_items, position_weights(k))
        for name, answer in shown.items()
        if name != YARDSTICKS["random"]
    }
    with album.picture("exposure") as draw:
        draw(plots.exposure_lorenz, exposures)
    with album.picture("exposure_by_popularity", k=k, linear=plots.LINEAR) as draw:
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
            evaluator.target(phase.split)[phase.split.item_groups["popularity"].labels.index("tail")],
        )
        name = name_of(MetricKey("ndcg", config.eval_k[0]))
        draw(plots.rerank_trade_off, trade_off(evaluator, phase), name, chosen, due=float(tail))


def shown_answers(answers: Sequence[Answer]) -> dict[str, Answer]:
    """Choose the lists that pictures show: of several, the first task's under the first control."""
    by_key = {answer.key: answer for answer in answers}
    first = next((key for key in by_key if key.source == TEST), None)
    if first is None:
        return {}
    wanted = {"this run": first, "re-ranked": first.after_reranking()}
    wanted |= {shown: first.beside(name) for name, shown in YARDSTICKS.items()}
    return {name: by_key[key] for name, key in wanted.items() if key in by_key}
