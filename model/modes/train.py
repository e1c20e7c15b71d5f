"""`--mode=train`: the training loop over phases, stages, epochs, passes and steps, with one test after each phase.

It stands here and not in main.py so that --help need not load torch (Decision 46).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.dataloader import BatchSampler
from data.files import WriteError
from data.messages import progress_shown, wrapped
from data.protocols.base import Phase
from model.evaluation.averages import averaged
from model.evaluation.evaluator import Evaluator
from model.evaluation.keys import flat, validation_key
from model.evaluation.questions import ask_tests, ask_validation, results_of
from model.methods.base import Schedule
from model.modes.dry_run import estimate
from model.modes.export_split import export_split
from model.modes.seeds import run_seeds
from model.modes.setup import build, describe, prepare
from model.results.beside import lists_beside
from model.results.cautions import before_training, caution_text
from model.results.tracking import Tracker
from model.results.writer import origin_of, tables_of, write_lists, write_results
from model.runs.config import Config
from model.runs.files import append_jsonl, own_run_dir, write_json, write_jsonl
from model.runs.processes import ALONE, Processes
from model.runs.run import Run
from model.runs.setting import saving_interval
from model.runs.settings import Settings
from model.runs.streams import global_generators, torch_generator
from model.training.batches import batch_sampler, draw_batch, planned_steps
from model.training.checkpoints import CHECKPOINT, Selection, phase_checkpoint, save_checkpoint
from model.training.pretrained import load_backbone, stages_to_train
from model.training.progress import EPOCH_MARKS, Progress
from model.training.signals import Stopped, StopSignals, resume_command
from model.training.state import Training, read_state, write_state
from model.training.update import update


@dataclasses.dataclass
class Session:
    """What the loop works with: the run and its parts, and where results go."""

    run: Run
    training: Training
    evaluator: Evaluator
    stop: StopSignals
    directory: Path
    tracker: Tracker
    saved: float = dataclasses.field(default_factory=lambda: time.monotonic())

    def save(self) -> None:
        """Write the state from which `--resume` goes on."""
        self.training.progress.spend("train")
        with self.training.naming(f"epoch {self.training.progress.epoch}"):
            write_state(self.directory / "state.pt", self.run.config, self.run.fingerprint, self.training)
        self.saved = time.monotonic()

    def save_checkpoint(self, phase: Phase) -> None:
        """Write the weights that are selected so far in `phase`, also under its name where `--keep_phases`."""
        if not self.run.processes.first:
            return
        names = [CHECKPOINT] + [phase_checkpoint(phase.name)] * self.run.config.keep_phases
        for name in names:
            save_checkpoint(self.directory / name, self.run.config, phase, self.training.selection)

    def save_by_clock(self) -> None:
        """Save where `--checkpoint_every` is in minutes and as many have passed."""
        _, minutes = saving_interval(self.run.config.checkpoint_every)
        if minutes is None:
            return
        # one clock decides for all processes
        if self.run.processes.any_of(int(time.monotonic() - self.saved >= 60 * minutes)):
            self.save()

    def save_by_epoch(self, epoch: int) -> None:
        """Save where `--checkpoint_every` is in epochs and `epoch` is one to save after."""
        epochs, _ = saving_interval(self.run.config.checkpoint_every)
        if epochs is not None and epoch % epochs == 0:
            self.save()


def train_epoch(session: Session, sampler: BatchSampler, stage: str, schedule: Schedule) -> dict[str, float]:
    """Run the passes that are left of an epoch; give the mean of each value that its steps report."""
    training, batch_size = session.training, schedule.batch_size
    progress, generators, processes = training.progress, training.generators, session.run.processes
    step = functools.partial(update, processes=processes)
    steps, label = sampler.steps(batch_size), f"epoch {progress.epoch}"
    training.method.begin_epoch(stage, progress.epoch)
    for name in training.method.passes(stage, progress.epoch)[progress.turn :]:
        # drawn from a copy: the stream itself moves on when the pass ends, so a resumed pass draws the same order
        order = generators["order"].clone_state()
        batches = itertools.islice(sampler.batches(batch_size, order), progress.step, None)
        with progress_shown(label if processes.first else None, steps, "step", progress.step) as advance:
            for edges in batches:
                batch = draw_batch(sampler, edges, training.method, stage, generators)
                with training.naming(f"{label}, step {progress.step + 1} of {steps}"):
                    values = training.method.train_step(batch, stage, name, step)
                progress.add(values, len(edges))
                session.stop.check()
                session.save_by_clock()
                advance(1)
        generators["order"].set_state(order.get_state())
        progress.turn, progress.step = progress.turn + 1, 0
    # the last step may have made weights infinite, and on a GPU no step was checked
    with training.naming(label):
        training.check_finite()
    return progress.means(processes)


def validate(session: Session, phase: Phase, stage: str) -> dict[str, float]:
    """Compute the metrics of the validation task under the current weights."""
    training, states = session.training, session.training.generator_states()
    try:
        with session.stop.at_once(), training.naming(f"epoch {training.progress.epoch}"):
            return ask_validation(session.run, phase, training.method, session.evaluator, stage)
    except Stopped:
        # the signal may have come before the evaluator restored a network's own stream
        training.set_generator_states(states)
        raise


def judge_epoch(session: Session, phase: Phase, stage: str, schedule: Schedule) -> tuple[dict[str, float], bool]:
    """Validate the epoch if it is to be: give the metrics, and whether its weights are the best so far.

    Where the phase has no validation, its last epoch is taken.
    """
    training, epoch = session.training, session.training.progress.epoch
    if phase.valid is None:
        is_last = epoch == schedule.epochs
        if is_last:
            training.selection.take(epoch, training.backbone, training.method)
        return {}, is_last
    if not schedule.asks(epoch):
        return {}, False
    summary = validate(session, phase, stage)
    return summary, training.selection.offer(
        epoch, phase.judged(summary[phase.metric]), training.backbone, training.method
    )


def epoch_line(row: Mapping[str, Any], epochs: int, metric: str, best: bool) -> str:
    """Write the line that is printed about an epoch, from its `row` of `metrics.jsonl`."""
    means = {key.removeprefix("train/"): value for key, value in row.items() if key.startswith("train/")}
    parts = [", ".join(f"{key} {mean:.4f}" for key, mean in means.items())] if means else []
    if validation_key(metric) in row:
        parts.append(f"validation {metric} {row[validation_key(metric)]:.4f}{' *' if best else ''}")
    return f"epoch {row['epoch']}/{epochs}: {'; '.join(parts)}"


def run_epoch(session: Session, phase: Phase, sampler: BatchSampler, stage: str, schedule: Schedule) -> None:
    """Train an epoch, validate it, and write its results."""
    training, first, started = session.training, session.run.processes.first, time.perf_counter()
    progress, epoch = training.progress, training.progress.epoch
    means = train_epoch(session, sampler, stage, schedule)
    trained = time.perf_counter()
    summary, best = judge_epoch(session, phase, stage, schedule)
    row = {"phase": phase.name, "stage": stage, "epoch": epoch}
    row |= {f"train/{key}": mean for key, mean in means.items()}
    row |= {validation_key(key): metric for key, metric in summary.items()}
    if first:
        append_jsonl(session.directory / "metrics.jsonl", row)
    # epochs count from 1 in every stage, and the tracker's steps must rise
    session.tracker.log(row, len(progress.rows) + 1)
    spent = f"[{trained - started:.1f} s + {time.perf_counter() - trained:.1f} s]"
    # epochs count from 1 in every phase
    of_phase = f"{phase.name}, " if session.run.protocol.many_phases else ""
    print(wrapped(f"{of_phase}{epoch_line(row, schedule.epochs, phase.metric, best)} {spent}"), flush=True)
    if best:
        session.save_checkpoint(phase)
    progress.end_epoch(row)
    if training.over(schedule):
        session.save()
    else:
        session.save_by_epoch(epoch)
        session.save_by_clock()


def train_stage(session: Session, phase: Phase, sampler: BatchSampler, stage: str) -> None:
    """Train the epochs that are left of a stage.

    When it ends, the weights that validation selected are in place, or the last ones where the phase has no validation.
    """
    training, selection = session.training, session.training.selection
    schedule = training.method.schedule(stage, phase)
    training.method.begin_stage(stage)
    while not training.over(schedule):
        run_epoch(session, phase, sampler, stage, schedule)
    if training.progress.epoch <= schedule.epochs:
        print(f"no better validation {phase.metric} for {schedule.patience} epochs: stopped")
    if not selection.weights:
        raise ValueError(f"validation {phase.metric} was never defined; the validation split may be empty")
    selection.restore(training.backbone, training.method)


def train_phase(session: Session, phase: Phase, saved: dict | None) -> None:
    """Train the stages of a phase with selection on validation (Decision 1), from `saved` where there is a state."""
    run, training, progress = session.run, session.training, session.training.progress
    seeds = run.environment.phase_seeds(phase.number)
    streams = {name: torch_generator(seeds[name], run.device) for name in ("order", "negatives", "history")}
    streams |= global_generators(seeds["dropout"], run.device, run.processes.rank)
    training.backbone.begin_phase(phase.split)
    if not phase.epochs:
        training.begin_phase(phase, streams, saved)
        training.selection.take(0, training.backbone, training.method)
        session.save_checkpoint(phase)
        training.end_phase(phase)
        return
    sampler = batch_sampler(run, phase, training.backbone, training.method)
    training.method.begin_phase(phase, planned_steps(phase, sampler, training.method))
    training.begin_phase(phase, streams, saved)
    if saved is not None and training.selection.weights:
        # epochs after the saved state may have written other weights there
        session.save_checkpoint(phase)
    stages = stages_to_train(training.method)
    try:
        for stage in stages[progress.stage :]:
            train_stage(session, phase, sampler, stage)
            progress.stage, progress.epoch = progress.stage + 1, 1
            if progress.stage < len(stages):
                training.selection = Selection()
    except Stopped:
        session.save()
        raise
    training.end_phase(phase)
    progress.spend("train")


def train(settings: Settings, started: float, processes: Processes) -> None:
    """Do `--mode=train`: one run, or one of each of `--seeds`."""
    if settings.request.seeds:
        run_seeds(settings, processes)
        return
    execute(processes.from_first(settings.config()), started, processes, settings.request.export_split)


def execute(
    config: Config, started: float, processes: Processes = ALONE, export: Path | None = None
) -> dict[str, float]:
    """Do a whole run: train, select on validation, test once, write and print; give the metrics by key.

    With `export` a dry run writes the split there before it builds and times the model.
    """
    directory = config.output_dir / config.run_name
    if processes.from_first(config.resume and (directory / "result.json").exists()):
        print(f"{directory} holds a finished run (result.json): nothing is left to do")
        # the run may have been killed after result.json and before this
        (directory / "state.pt").unlink(missing_ok=True)
        return {}
    with processes.first_ahead():
        run = prepare(config, processes)
    describe(run)
    # read anew when they are drawn, which is long after
    lists_beside(run)
    if export is not None and processes.first:
        export_split(run, export)
    backbone, method = build(run)
    evaluator = Evaluator(backbone, method, run.environment)
    if config.backbone_checkpoint is not None:
        load_backbone(run, backbone)
    if config.dry_run:
        estimate(run, backbone, method, evaluator)
        print(caution_text(before_training(run)), flush=True)
        return {}
    with contextlib.ExitStack() as stack:
        saved = None
        if processes.first:
            stack.enter_context(own_run_dir(config.output_dir, config.run_name, config.resume))
            saved = read_state(directory / "state.pt", config, run.fingerprint, run.device) if config.resume else None
            write_json(directory / "config.json", config.as_json())
        saved = processes.from_first(saved)
        progress = Progress.of(saved, started, run.device)
        tracker = Tracker.of(config, directory, progress.tracker, active=processes.first)
        progress.tracker = tracker.id
        progress.spend("read")
        stop = stack.enter_context(StopSignals(processes, resume_command(config, processes)))
        training = Training(backbone, method, progress, processes, run.protocol.starts)
        return train_and_test(Session(run, training, evaluator, stop, directory, tracker), saved)


def train_and_test(session: Session, saved: dict | None) -> dict[str, float]:
    """Do what is left of a run, phase by phase; give the metrics by key."""
    run, progress, phases = session.run, session.training.progress, session.run.protocol.phases
    if run.processes.first:
        # epochs after the saved state are trained again: drop their rows
        write_jsonl(session.directory / "metrics.jsonl", progress.rows)
    print(EPOCH_MARKS)
    if saved is not None:
        print(f"resumed in epoch {progress.epoch} after {progress.step} of its steps")
    try:
        for phase in phases[progress.phase :]:
            train_phase(session, phase, saved)
            saved = None
            with session.stop.at_once():
                answers = ask_tests(run, phase, session.evaluator)
            progress.results |= results_of(answers)
            if run.processes.first and phase.tests and phase is not phases[-1]:
                write_lists(run, session.directory, phase, answers)
            progress.spend("test")
            progress.phase, progress.stage = progress.phase + 1, 0
        if not run.processes.first:
            return {}
        progress.results |= averaged(progress.results, run.protocol)
        selection = session.training.selection
        origin = origin_of(run.config, phases[-1].selected_by, selection.epoch, selection.value)
        images = write_results(run, session.directory, progress, origin, answers, session.evaluator)
    except BaseException as error:
        session.tracker.finish(exit_code=getattr(error, "exit_code", 1))
        if isinstance(error, WriteError):
            raise session.training.unwritten(error, run.config.run_name, len(phases)) from error
        raise
    (session.directory / "state.pt").unlink(missing_ok=True)
    metrics = flat(progress.results)
    session.tracker.finish(metrics, images, tables_of(run, progress.results))
    return metrics
