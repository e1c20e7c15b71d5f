"""The sampler of a phase's batches, and how many steps a phase takes."""

from __future__ import annotations

import torch

from data.dataloader import BatchSampler
from data.protocols.base import PER_PHASE, Phase
from data.sampling.negatives import NegativeSampler
from data.sampling.sources import history_source
from model.methods.base import Method
from model.runs.run import Run


def batch_sampler(run: Run, phase: Phase, backbone: torch.nn.Module, method: Method) -> BatchSampler:
    """Make the sampler of a phase's batches."""
    config, split, kind = run.config, phase.split, backbone.history_kind
    known = split.train if phase.barred is None else phase.barred
    negatives = NegativeSampler(known, split.num_items, config.num_negatives, config.in_batch_negatives, run.device)
    history = None
    if kind is not None:
        weights = method.history_weights(split.histories, split) if kind == "sampled" else None
        length = config.sample_size
        history = history_source(kind, split.histories, weights, length, run.device, config.upstream_compat)
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


def planned_steps(phase: Phase, sampler: BatchSampler, method: Method) -> int:
    """Most steps that a pass over the batches takes in all epochs of all stages of `phase`."""
    schedules = [method.schedule(stage, phase) for stage in method.stages()]
    return sum(sampler.steps(schedule.batch_size) * schedule.epochs for schedule in schedules)
