"""The batches of a phase, and how many steps it takes."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from data.dataloader import BatchSampler
from data.protocols.base import PER_PHASE, Phase
from data.sampling.negatives import NegativeSampler
from data.structs import Batch
from model.methods.base import Method
from model.runs.run import Run
from model.training.pretrained import stages_to_train


def batch_sampler(run: Run, phase: Phase, backbone: torch.nn.Module, method: Method) -> BatchSampler:
    """Make the sampler of a phase's batches."""
    config, split = run.config, phase.split
    known = split.train if phase.barred is None else phase.barred
    counts = config.num_negatives, config.in_batch_negatives
    negatives = NegativeSampler(known, split.num_items, *counts, run.device, phase.distinct)
    history = method.histories.of(split.histories, split)
    # upstream leaves the target in its history where there are no times (BookCrossing)
    exclude_target = not (config.upstream_compat and split.train.time is None)
    return BatchSampler(
        split.train,
        negatives,
        history,
        exclude_target,
        history_per_row=config.upstream_compat,
        rows=phase.train_rows,
        order=phase.order,
        draws_once=phase.negatives == PER_PHASE,
    )


def draw_batch(
    sampler: BatchSampler, places: torch.Tensor, method: Method, stage: str, generators: Mapping[str, torch.Generator]
) -> Batch:
    """Make the batch of `places [B]`, with histories where `stage` of the method reads them.

    `generators` are the streams "negatives" and "history".
    """
    history = generators["history"] if method.reads_histories(stage) else None
    return sampler.sample(places, generators["negatives"], history)


def planned_steps(phase: Phase, sampler: BatchSampler, method: Method) -> int:
    """Count the most steps that one pass per epoch takes in all epochs of all stages of `phase`."""
    schedules = [method.schedule(stage, phase) for stage in stages_to_train(method)]
    return sum(sampler.steps(schedule.batch_size) * schedule.epochs for schedule in schedules)
