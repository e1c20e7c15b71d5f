"""The validation task and the test tasks of a phase: ranked, and measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from data.protocols.base import Phase, Task
from data.structs import Ranking
from model.evaluation.chance import chance_levels
from model.evaluation.evaluator import Evaluator
from model.evaluation.intervals import group_intervals
from model.evaluation.keys import REFERENCE, ListKey, MetricKey, flat
from model.evaluation.metrics import evaluate
from model.evaluation.ranker import Ranker
from model.methods.base import Method
from model.runs.run import Run


@dataclass(frozen=True)
class Answer:
    """One list of a test task: which list it is, its ranking and its metrics.

    `metrics` are by metric key, `per_user` the same per user, `[T]`.
    """

    key: ListKey
    ranking: Ranking
    metrics: dict[str, float]
    per_user: dict[str, np.ndarray]

    def __post_init__(self):
        # a metric that is not in the table is an error here, and not silently left out of a report
        for text in (*self.metrics, *self.per_user):
            MetricKey.parse(text)


def results_of(answers: Iterable[Answer]) -> dict[str, dict[str, float]]:
    """Give the metrics of `answers`: list -> metric -> value."""
    return {str(answer.key): answer.metrics for answer in answers}


def ask_validation(run: Run, phase: Phase, method: Method, evaluator: Evaluator, stage: str) -> dict[str, float]:
    """Compute the metrics of the validation task.

    Under several controls they are each control's, with its name in front, and their means.
    """
    split, protocol, controls = phase.split, run.protocol, method.selection_controls(stage)
    summaries = {}
    with evaluator.encoded_once():
        for control in controls:
            ranking = evaluator.rank(phase.valid, split.histories, split, max(protocol.ks), control)
            if ranking is not None:
                summaries[control] = evaluate(ranking, split, run.groups, protocol.ks, protocol.definitions).summary
    if len(controls) > 1 and summaries:
        means = {
            key: float(np.mean([summary[key] for summary in summaries.values()])) for key in summaries[controls[0]]
        }
        return run.processes.from_first(flat(summaries) | means)
    return run.processes.from_first(next(iter(summaries.values()), None))


def ask_tests(run: Run, phase: Phase, ranker: Ranker, controls: Sequence[str] | None = None) -> list[Answer]:
    """Rank each test task of a phase under each of `controls` (None: all), and measure the lists; yardsticks come
    first.

    Of many processes the first gets the answers, the others none. A phase without tests has none.
    """
    config, split, protocol = run.config, phase.split, run.protocol
    several = len(ranker.controls()) > 1
    top = max(*protocol.ks, config.rerank_pool if config.rerank_fair else 1)
    answers: list[Answer] = []
    leakage: dict[str, dict[str, float]] = {}

    def add(key: ListKey, ranking: Ranking | None, further: dict[str, float]) -> None:
        if ranking is not None:
            outcome = evaluate(ranking, split, run.groups, protocol.ks, protocol.definitions)
            levels = chance_levels(ranking, split, run.groups, protocol.ks, outcome, protocol.definitions)
            intervals = group_intervals(outcome, ranking.users, run.groups)
            answers.append(Answer(key, ranking, outcome.summary | levels | intervals | further, outcome.per_user))

    def ask(task: Task, key: ListKey, control: str) -> None:
        ranking = ranker.rank(task, split.test_histories, split, top, control, progress="test")
        if ranking is None:
            return
        if phase.probed and control not in leakage:
            leakage[control] = ranker.leakage(split, run.groups, run.held_out, control, protocol.probe)
        add(key, ranking, leakage.get(control, {}))
        if config.rerank_fair:
            reranked, infeasible = ranker.rerank(ranking, split)
            add(key.after_reranking(), reranked, {"infeasible_users": infeasible})

    with ranker.encoded_once():
        for task in phase.tests:
            place = {
                "phase": phase.name if protocol.many_phases else "",
                "task": task.name if protocol.many_tasks else "",
            }
            for name, ranking in ranker.yardsticks(task, split, top).items():
                add(ListKey(REFERENCE, name, **place), ranking, {})
            for control in ranker.controls() if controls is None else controls:
                ask(task, ListKey(**place, control=control if several else ""), control)
    return answers
