"""A phase's sampler, and whether two modules are the same."""

from __future__ import annotations

import torch

from data.dataloader import BatchSampler
from data.sampling.negatives import NegativeSampler
from data.sampling.sources import history_source

CPU = torch.device("cpu")


def make_sampler(phase, config, method, backbone):
    train = phase.split.train
    negatives = NegativeSampler(train, phase.split.num_items, config.num_negatives, config.in_batch_negatives, CPU)
    history = None
    if backbone.history_kind is not None:
        weights = method.history_weights(phase.split.histories, phase.split)
        history = history_source("sampled", phase.split.histories, weights, config.sample_size, CPU)
    return BatchSampler(train, negatives, history, history_per_row=config.upstream_compat)


def identical(first, second):
    return all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
