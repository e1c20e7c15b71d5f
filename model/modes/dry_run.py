"""`--dry_run`: what a run would do and cost."""

from __future__ import annotations

import itertools
import time
from functools import partial

from torch import nn

from data.dataloader import BatchSampler
from data.messages import counted, wrapped
from model.evaluation.evaluator import Evaluator
from model.evaluation.questions import ask_validation
from model.methods.base import Method, Schedule
from model.runs.run import Run
from model.runs.streams import torch_generator
from model.training.batches import batch_sampler, draw_batch, planned_steps
from model.training.pretrained import stages_to_train
from model.training.update import update


def estimate(run: Run, backbone: nn.Module, method: Method, evaluator: Evaluator) -> None:
    """Print what a run would do and cost, from a few timed steps whose weights are thrown away."""
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    print(f"parameters: {parameters:,}")
    if len(method.controls()) > 1:
        print(wrapped(f"controls: {', '.join(method.controls())}"))
    for phase in run.protocol.phases:
        if not phase.epochs:
            print(f"{phase.name}: trains nothing")
            continue
        backbone.begin_phase(phase.split)
        sampler = batch_sampler(run, phase, backbone, method)
        method.begin_phase(phase, planned_steps(phase, sampler, method))
        for stage in stages_to_train(method):
            name = phase.name if len(stages_to_train(method)) == 1 else f"{phase.name}, {stage}"
            schedule = method.schedule(stage, phase)
            if not method.passes(stage, schedule.epochs):
                print(f"{name}: fitted at once, without steps to time")
                continue
            step, steps = _timed_step(run, sampler, method, stage, schedule), sampler.steps(schedule.batch_size)
            started = time.perf_counter()
            if phase.valid is not None:
                ask_validation(run, phase, method, evaluator, stage)
            ranking = time.perf_counter() - started
            epoch = step * steps + ranking / schedule.every
            line = (
                f"{name}: {counted(steps, 'step')} an epoch at {step:.3f} s, ranking {ranking:.1f} s: about "
                f"{epoch:.0f} s an epoch, at most {schedule.epochs} epochs = {epoch * schedule.epochs / 3600:.2f} h"
            )
            print(wrapped(line))


def _timed_step(run: Run, sampler: BatchSampler, method: Method, stage: str, schedule: Schedule) -> float:
    """Time one step of every pass of `stage` together, in seconds; the weights are spoilt."""
    generators = {name: torch_generator(0, run.device) for name in ("order", "negatives", "history")}
    method.begin_stage(stage)
    method.begin_epoch(stage, schedule.epochs)
    times = []
    for edges in itertools.islice(sampler.batches(schedule.batch_size, generators["order"]), 3):
        started = time.perf_counter()
        rows = draw_batch(sampler, edges, method, stage, generators)
        # the passes of the last epoch, as warm-up epochs may have fewer
        for name in method.passes(stage, schedule.epochs):
            method.train_step(rows, stage, name, partial(update, processes=run.processes))
        times.append(time.perf_counter() - started)
    return min(times)
