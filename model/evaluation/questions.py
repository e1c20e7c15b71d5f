"""Ask the validation task and the test tasks of a phase."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.protocols.base import Phase, Task
from data.structs import Ranking
from model.evaluation.evaluator import Evaluator
from model.evaluation.metrics import evaluate
from model.evaluation.ranker import Ranker
from model.methods.base import Method
from model.runs.run import Run


def ask_validation(run: Run, phase: Phase, method: Method, evaluator: Evaluator, stage: str) -> dict[str, float]:
    """Metrics of the validation task; under several controls, each one's with its name in front, and their means."""
    split, protocol, controls = phase.split, run.protocol, method.selection_controls(stage)
    summaries = {}
    with evaluator.encoded_once():
        for control in controls:
            ranking = evaluator.rank(phase.valid, split.histories, split, max(protocol.ks), control)
            if ranking is not None:
                summaries[control] = evaluate(ranking, split, run.groups, protocol.ks, protocol.metrics).summary
    if len(controls) > 1 and summaries:
        means = {key: float(np.mean([own[key] for own in summaries.values()])) for key in summaries[controls[0]]}
        named = {f"{control}/{key}": value for control, own in summaries.items() for key, value in own.items()}
        return run.processes.from_first(named | means)
    return run.processes.from_first(next(iter(summaries.values()), None))


def ask_tests(
    run: Run, phase: Phase, ranker: Ranker, controls: Sequence[str] | None = None
) -> tuple[dict[str, float], dict[str, Ranking], dict[str, np.ndarray]]:
    """Ask each test task once under each of `controls` (None: all): metrics by key, rankings by root, per-user values.

    Of many processes the first gets them, the others nothing. A phase without tests gives nothing.
    """
    config, split = run.config, phase.split
    top = max(*run.protocol.ks, config.rerank_pool if config.rerank_fair else 1)
    results, rankings, per_user, leakage = {}, {}, {}, {}

    def add(prefix: str, ranking: Ranking | None) -> None:
        if ranking is None:
            return
        outcome = evaluate(ranking, split, run.groups, run.protocol.ks, run.protocol.metrics)
        results.update({f"{prefix}/{key}": value for key, value in outcome.summary.items()})
        per_user.update({f"{prefix}/{key}": value for key, value in outcome.per_user.items()})
        rankings[prefix] = ranking

    def ask(task: Task, level: str, control: str) -> None:
        prefix = f"test{level}" + (f"/{control}" if len(ranker.controls()) > 1 else "")
        ranking = ranker.rank(task, split.test_histories, split, top, control, progress="test")
        add(prefix, ranking)
        if ranking is None:
            return
        if config.rerank_fair:
            reranked, infeasible = ranker.rerank(ranking, split)
            add(f"{prefix}/reranked", reranked)
            results[f"{prefix}/reranked/infeasible_users"] = infeasible
        if control not in leakage:
            leakage[control] = ranker.leakage(split, run.groups, run.held_out, control, run.protocol.probe)
        results.update({f"{prefix}/{key}": value for key, value in leakage[control].items()})

    with ranker.encoded_once():
        for task in phase.tests:
            level = run.protocol.level(phase, task)
            for name, ranking in ranker.yardsticks(task, split, top).items():
                add(f"reference/{name}{level}", ranking)
            for control in ranker.controls() if controls is None else controls:
                ask(task, level, control)
    return results, rankings, per_user
