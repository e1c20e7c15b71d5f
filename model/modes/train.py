"""`--mode=train`: the loop. Phases, their stages, epochs, passes and steps; one test at the end of each phase."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
from pathlib import Path

from tqdm import tqdm

from data.dataloader import BatchSampler
from data.files import WriteError
from data.protocols.base import Phase
from model.evaluation.evaluator import Evaluator
from model.evaluation.questions import ask_tests, ask_validation
from model.methods.base import Schedule
from model.modes.dry_run import estimate
from model.modes.export_split import export_split
from model.modes.seeds import run_seeds
from model.modes.setup import build, describe, prepare
from model.results.tracking import Tracker
from model.results.writer import origin_of, tables_of, write_lists, write_results
from model.runs.config import Config
from model.runs.files import append_jsonl, own_run_dir, write_json, write_jsonl
from model.runs.processes import ALONE, Processes
from model.runs.run import Run
from model.runs.settings import Settings, saving_interval
from model.runs.streams import torch_generator
from model.training.batches import batch_sampler, planned_steps
from model.training.checkpoints import Selection, save_checkpoint
from model.training.progress import Progress
from model.training.signals import Stopped, StopSignals, resume_command
from model.training.state import Training, read_state, write_state
from model.training.update import update


@dataclasses.dataclass
class Session:
    """What the loop works with: the run, its parts, and where what it finds goes."""

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

    def save_if_due(self, epoch: int | None = None) -> None:
        """Save when `--checkpoint_every` says so: at the end of an `epoch`, or within one (None) by the clock."""
        epochs, minutes = saving_interval(self.run.config.checkpoint_every)
        if epochs is not None:
            due = epoch is not None and epoch % epochs == 0
        else:
            # one clock decides for all processes
            due = self.run.processes.any_of(int(time.monotonic() - self.saved >= 60 * minutes))
        if due:
            self.save()


def train_epoch(session: Session, sampler: BatchSampler, stage: str, schedule: Schedule) -> dict[str, float]:
    """Run what is left of an epoch's passes; give the mean of each value that the steps report."""
    training, batch_size = session.training, schedule.batch_size
    progress, generators, processes = training.progress, training.generators, session.run.processes
    step = functools.partial(update, processes=processes)
    steps, label = sampler.steps(batch_size), f"epoch {progress.epoch}"
    training.method.begin_epoch(stage, progress.epoch)
    for name in training.method.passes(stage)[progress.turn :]:
        # the stream stays where the pass began until it ends, so that a resumed pass draws its order again
        order = generators["order"].clone_state()
        batches = itertools.islice(sampler.batches(batch_size, order), progress.step, None)
        silent = None if processes.first else True
        bar = tqdm(batches, label, steps, initial=progress.step, unit="batch", leave=False, disable=silent)
        for edges in bar:
            batch = sampler.sample(edges, generators["negatives"], generators["history"])
            with training.naming(f"{label}, step {progress.step + 1} of {steps}"):
                values = training.method.train_step(batch, stage, name, step)
            progress.add(values, len(edges))
            session.stop.check()
            session.save_if_due()
        generators["order"].set_state(order.get_state())
        progress.turn, progress.step = progress.turn + 1, 0
    # the last step may have spoilt the weights, and on a GPU no step was looked at
    with training.naming(label):
        training.check_finite()
    return progress.means(processes)


def validate(session: Session, phase: Phase, stage: str) -> dict[str, float]:
    """Metrics of the validation task under the current weights."""
    training, states = session.training, session.training.generator_states()
    try:
        with session.stop.at_once(), training.naming(f"epoch {training.progress.epoch}"):
            return ask_validation(session.run, phase, training.method, session.evaluator, stage)
    except Stopped:
        # the signal may have come before the evaluator put a network's own stream back
        training.set_generator_states(states)
        raise


def train_stage(session: Session, phase: Phase, sampler: BatchSampler, stage: str) -> None:
    """Train the epochs that are left of a stage; the weights that validation selected, or the last ones where the phase
    has no validation, are in place when it ends."""
    run, training, directory = session.run, session.training, session.directory
    progress, schedule = training.progress, training.method.schedule(stage, phase)
    selection = training.selection
    while not training.over(phase, schedule):
        epoch, started = progress.epoch, time.perf_counter()
        means = train_epoch(session, sampler, stage, schedule)
        trained = time.perf_counter()
        row = {"phase": phase.name, "stage": stage, "epoch": epoch}
        row |= {f"train/{key}": mean for key, mean in means.items()}
        shown, best = [", ".join(f"{key} {mean:.4f}" for key, mean in means.items())] if means else [], False
        if phase.valid is None:
            best = epoch == schedule.epochs
            if best:
                selection.take(epoch, training.backbone, training.method)
        elif schedule.asks(epoch):
            summary = validate(session, phase, stage)
            best = selection.offer(epoch, summary[phase.metric], training.backbone, training.method)
            row |= {f"valid/{key}": metric for key, metric in summary.items()}
            shown.append(f"validation {phase.metric} {summary[phase.metric]:.4f}{' *' if best else ''}")
        if run.processes.first:
            append_jsonl(directory / "metrics.jsonl", row)
        # epochs count anew in every stage, and the tracker's steps must not
        session.tracker.log(row, len(progress.rows) + 1)
        ranked = time.perf_counter()
        spent = f"[{trained - started:.1f} s + {ranked - trained:.1f} s]"
        print(f"epoch {epoch}/{schedule.epochs}: {'; '.join(shown)} {spent}", flush=True)
        if best and run.processes.first:
            save_checkpoint(directory / "checkpoint.pt", run.config, phase, selection)
        progress.end_epoch(row)
        if training.over(phase, schedule):
            session.save()
        else:
            session.save_if_due(epoch)
    if progress.epoch <= schedule.epochs:
        print(f"no better validation {phase.metric} for {schedule.patience} epochs: stopped")
    if not selection.weights:
        raise ValueError(f"validation {phase.metric} was never defined; the validation split may be empty")
    selection.restore(training.backbone, training.method)


def train_phase(session: Session, phase: Phase, saved: dict | None) -> None:
    """Train the stages of a phase with selection on validation (Decision 1), from `saved` where there is a state."""
    run, training, progress = session.run, session.training, session.training.progress
    streams = {name: torch_generator(run.seeds[name], run.device) for name in ("order", "negatives", "history")}
    sampler = batch_sampler(run, phase, training.backbone, training.method)
    training.backbone.begin_phase(phase.split)
    training.method.begin_phase(phase, planned_steps(phase, sampler, training.method))
    training.begin_phase(phase, streams, saved)
    if saved is not None and run.processes.first and training.selection.weights:
        # epochs after the state may have left others there, and need not come out as best again
        save_checkpoint(session.directory / "checkpoint.pt", run.config, phase, training.selection)
    stages = training.method.stages()
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
    """`--mode=train`: one run, or one of each of `--seeds`."""
    if settings.request.seeds:
        run_seeds(settings, processes)
        return
    execute(processes.from_first(settings.config()), started, processes, settings.request.export_split)


def execute(
    config: Config, started: float, processes: Processes = ALONE, export: Path | None = None
) -> dict[str, float]:
    """Do a whole run: train, select on validation, test once, write and print; gives the metrics by key.

    With `export` a dry run writes the split there before it builds and times the model.
    """
    directory = config.output_dir / config.run_name
    if processes.from_first(config.resume and (directory / "result.json").exists()):
        print(f"{directory} holds a finished run (result.json): nothing is left to do")
        # it may have been killed on its last lines
        (directory / "state.pt").unlink(missing_ok=True)
        return {}
    with processes.first_ahead():
        run = prepare(config, processes)
    describe(run)
    if export is not None and processes.first:
        export_split(run, export)
    backbone, method = build(run)
    evaluator = Evaluator(backbone, method, config, run.seeds, run.device, processes)
    if config.dry_run:
        estimate(run, backbone, method, evaluator)
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
    """Do what is left of a run, phase by phase; gives the metrics by key."""
    run, progress, phases = session.run, session.training.progress, session.run.protocol.phases
    if run.processes.first:
        # rows after the saved state will come again
        write_jsonl(session.directory / "metrics.jsonl", progress.rows)
    if saved is not None:
        print(f"resumed in epoch {progress.epoch} after {progress.step} of its steps")
    try:
        for phase in phases[progress.phase :]:
            train_phase(session, phase, saved)
            saved = None
            with session.stop.at_once():
                results, rankings, per_user = ask_tests(run, phase, session.training.method, session.evaluator)
            progress.results.update(results)
            if run.processes.first and phase is not phases[-1]:
                write_lists(run, session.directory, phase, rankings, per_user)
            progress.spend("test")
            progress.phase, progress.stage = progress.phase + 1, 0
        if not run.processes.first:
            return {}
        if run.protocol.summarise is not None:
            progress.results.update(run.protocol.summarise(progress.results))
        selection = session.training.selection
        origin = origin_of(run.config, phases[-1].selected_by, selection.epoch, selection.value)
        images = write_results(run, session.directory, progress, origin, rankings, per_user, session.evaluator)
    except BaseException as error:
        session.tracker.finish(exit_code=getattr(error, "exit_code", 1))
        if isinstance(error, WriteError):
            raise session.training.unwritten(error, run.config.run_name, len(phases)) from error
        raise
    (session.directory / "state.pt").unlink(missing_ok=True)
    session.tracker.finish(progress.results, images, tables_of(run, progress.results))
    return progress.results
