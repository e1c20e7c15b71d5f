"""`--mode=evaluate` and `--mode=recommend`: trained weights tested again, and recommendations from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from tabulate import tabulate

from data.datareader import READERS
from data.messages import counted, suggestion
from data.protocols import PROTOCOLS
from data.protocols.base import Phase
from model import BACKBONES, METHODS
from model.evaluation.evaluator import Evaluator
from model.evaluation.keys import flat
from model.evaluation.questions import ask_tests, results_of
from model.methods.base import Method
from model.modes.setup import build, describe, prepare, reported_groups
from model.results.beside import lists_beside
from model.results.tracking import Tracker
from model.results.user_tables import recommendation_frame
from model.results.writer import origin_of, tables_of, write_results
from model.runs.config import Config
from model.runs.files import own_run_dir, read_jsonl, write_frame, write_json
from model.runs.processes import Processes
from model.runs.run import Run
from model.runs.settings import Settings
from model.training.checkpoints import load_checkpoint
from model.training.progress import Progress

EVERYBODY = "all"


@dataclasses.dataclass(frozen=True)
class Served:
    """Trained weights in place: the run, their phase, the evaluator, their origin, the controls to ask."""

    run: Run
    phase: Phase
    evaluator: Evaluator
    origin: dict
    controls: tuple[str, ...]


def serve(settings: Settings, processes: Processes) -> Served:
    """Load `--checkpoint` under the settings given now; other train data than it was trained on are a ValueError."""
    mode, path = settings.request.mode, settings.request.checkpoint
    if processes.world > 1:
        raise ValueError(f"--mode={mode} runs in one process; start it without torchrun")
    trained, content = load_checkpoint(path)
    _check_registered(path, trained)
    config = settings.over(trained)
    # the attribute that the method acts on, and the held-out users, stay those of training; others can be reported
    run = prepare(dataclasses.replace(config, user_attribute=trained.user_attribute), may_download=False)
    # a checkpoint that says no phase is of the last one
    named = [phase for phase in run.protocol.phases if phase.name == content.get("phase")]
    phase = (named or run.protocol.phases)[-1]
    _check_train_data(path, config, content["train_fingerprint"], phase)
    backbone, method = build(run)
    backbone.begin_phase(phase.split)
    try:
        backbone.load_state_dict(content["backbone"])
        method.load_state_dict(content["method"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: the weights do not fit the model of its settings on {config.dataset_dir} ({reason}); pass a "
            "whole checkpoint and the data of the run"
        ) from error
    environment = dataclasses.replace(run.environment, config=config, user_groups=reported_groups(run.data, config))
    run = dataclasses.replace(run, environment=environment)
    evaluator = Evaluator(backbone, method, environment)
    origin = origin_of(trained, content["selected_by"], content["epoch"], content["validation"])
    return Served(run, phase, evaluator, origin, _controls(settings.request.control, config.method, method))


def _folder_of(checkpoint: Path) -> Path:
    return checkpoint if checkpoint.is_dir() else checkpoint.parent


def _controls(requested: str | None, name: str, method: Method) -> tuple[str, ...]:
    """Give the method's controls, or the one that `--control` names."""
    allowed = method.controls()
    if requested is None:
        return allowed
    if len(allowed) == 1:
        raise ValueError(f"--control={requested}: --fairness_method={name} has one setting only; leave --control out")
    if requested not in allowed:
        raise ValueError(
            f"--control={requested}: allowed is one of {', '.join(allowed)}{suggestion(requested, allowed)}"
        )
    return (requested,)


def _check_registered(path: Path, config: Config) -> None:
    for name, value, registry in (
        ("dataset", config.dataset, READERS),
        ("protocol", config.protocol, PROTOCOLS),
        ("backbone", config.backbone, BACKBONES),
        ("fairness_method", config.method, METHODS),
    ):
        if value not in registry:
            raise ValueError(f"{path}: --{name}={value} is not known here; known is {', '.join(registry)}")


def _check_train_data(path: Path, config: Config, trained_on: str, phase: Phase) -> None:
    fingerprint = phase.split.train_fingerprint()
    if fingerprint != trained_on:
        raise ValueError(
            f"{path} was trained on data of fingerprint {trained_on}; --protocol={config.protocol} on "
            f"{config.dataset_dir} trains on {fingerprint}, so that it would judge items that the weights may know; "
            "pass the data and the protocol of the run"
        )


def evaluate_checkpoint(settings: Settings, started: float, processes: Processes) -> None:
    """Do `--mode=evaluate`: test a checkpoint, and write what a run writes into a folder of its own."""
    progress = Progress.of(None, started)
    served = serve(settings, processes)
    run, config = served.run, served.run.config
    describe(run)
    lists_beside(run)
    with own_run_dir(config.output_dir, config.run_name) as directory:
        write_json(directory / "config.json", config.as_json())
        tracker = Tracker.of(config, directory)
        progress.spend("read")
        answers = ask_tests(run, served.phase, served.evaluator, served.controls)
        progress.results |= results_of(answers)
        progress.spend("test")
        epochs = read_jsonl(_folder_of(settings.request.checkpoint) / "metrics.jsonl")
        images = write_results(run, directory, progress, served.origin, answers, served.evaluator, epochs=epochs)
        tracker.finish(flat(progress.results), images, tables_of(run, progress.results))


def recommend(settings: Settings, started: float, processes: Processes) -> None:
    """Do `--mode=recommend`: print or write the best items of `--users`.

    Candidates are those of the first test task, or all items where those are a sample; the control is the first, or the
    one that `--control` names.
    """
    request = settings.request
    served = serve(settings, processes)
    run, data, k = served.run, served.run.data, served.run.config.eval_k[0]
    users = _chosen(request.users, data.original_user_ids)
    task, split = dataclasses.replace(served.phase.tests[0], candidates=None), served.phase.split
    top = max(k, run.config.rerank_pool) if run.config.rerank_fair else k
    control = served.controls[0]
    ranking = served.evaluator.rank(task, split.test_histories, split, top, control, users=users, progress="rank")
    if run.config.rerank_fair:
        ranking, _ = served.evaluator.rerank(ranking, split)
    frame = recommendation_frame(ranking, data.original_user_ids, data.original_item_ids, data.item_titles, k)
    order = "re-ranked by exposure" if run.config.rerank_fair else "by score"
    order += f" under {control}" * (len(served.evaluator.controls()) > 1)
    kinds = task.left_out(split)
    left_out = f", those they have in {kinds} left out" if kinds else ""
    print(f"{data.name}: best {k} items {order} of {counted(len(users), 'user')}{left_out}")
    if request.recommendations is None:
        print(tabulate(frame, headers="keys", showindex=False, floatfmt=".4f"))
    else:
        write_frame(request.recommendations, frame)
        print(f"{len(frame):,} rows in {request.recommendations}")


def _chosen(names: tuple[str, ...], original_user_ids: np.ndarray) -> np.ndarray:
    """Find the users that `--users` names by the data set's own ids: 0-based ids, in that order."""
    if names == (EVERYBODY,):
        return np.arange(len(original_user_ids))
    known = {str(original): user for user, original in enumerate(original_user_ids)}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        few = ", ".join(list(known)[:5])
        what = f"{len(unknown)} unknown, such as {', '.join(unknown[:5])}" if unknown else "nobody"
        raise ValueError(
            f"--users: {what}; allowed are the data set's own ids, comma-separated (such as {few}), or {EVERYBODY}"
        )
    return np.array([known[name] for name in dict.fromkeys(names)])
