"""A backbone, FDA on it and a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.structs import Group
from model import BACKBONES, METHODS
from model.runs.environment import Environment
from model.runs.streams import stream_seeds, torch_generator
from tests.support.methods import make_sampler

CPU = torch.device("cpu")
BY_IDS = {"num_negatives": 2, "in_batch_negatives": 0, "loss": "bpr", "embedding_dim": 8}


@pytest.fixture
def made(tiny_data, tiny_phase, make_config):
    """A function: backbone, options, group codes and settings -> (backbone, method, a batch, the sampler's streams)."""

    def make(backbone="bprmf", options=(), codes=None, labels=None, name="fda", **changes):
        values = BY_IDS | {"backbone": backbone, "method_option": tuple(options), "graph_layers": 2} | changes
        if backbone == "sparsenn":
            values |= {"embedding_dim": 96}
        config = make_config(**values)
        seeds = stream_seeds(config.seed)
        network = BACKBONES[backbone].build(tiny_data, config, seeds["initialisation"], CPU)
        network.begin_phase(tiny_phase.split)
        groups = tiny_data.user_groups
        if codes is not None:
            labels = labels or tuple(map(str, range(codes.max() + 1)))
            groups = groups | {"gender": Group("gender", codes, labels)}
        held_out = np.zeros(tiny_data.num_users, dtype=bool)
        method = METHODS[name](network, Environment(config, groups, held_out, seeds, CPU))
        sampler = make_sampler(tiny_phase, config, method, network)
        method.begin_phase(tiny_phase, 100)
        method.begin_stage("method")
        streams = [torch_generator(seeds[stream]) for stream in ("order", "negatives", "history")]
        edges = torch.randint(len(sampler.user), (config.batch_size,), generator=streams[0])
        return network, method, sampler.sample(edges, *streams[1:])

    return make


@pytest.fixture(scope="module")
def shared_made(tiny_data, tiny_phase, make_config):
    return made.__wrapped__(tiny_data, tiny_phase, make_config)
