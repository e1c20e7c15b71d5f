"""Small data and runs under FADE's protocol, and what their phases begin and end with."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import torch

from data.dataloader import BatchSampler
from data.datareader import READERS
from data.protocols import PROTOCOLS
from data.protocols.base import ProtocolSettings
from data.structs import FeatureSpec, FeatureTable, Group, InteractionData
from model.evaluation.chance import chance_levels
from model.training.state import Training

FADE = PROTOCOLS["fade"]
SETTINGS = ProtocolSettings(warm_threshold=0.2, ks=(20, 10), epochs=7, patience=3)

# about 790 interactions in 25 batches: 15 are pretrained, and each block has 3
OPTIONS = {"batch": 32, "blocks": 3, "epochs": 2, "averaged": 2, "candidates": 9, "full": False}
RUN = {
    "backbone": "bprmf",
    "embedding_dim": 8,
    "user_hidden": None,
    "item_hidden": None,
    "num_negatives": 3,
    "epochs": 1,
    "batch_size": 32,
    "lr": 0.01,
    "eval_k": ["5"],
    "protocol": "fade",
}


def run_of(*options: str, **values) -> dict:
    """Flags of a small run whose protocol has `options` (name=value) in place of, or beside, the small ones."""
    chosen = OPTIONS | dict(option.split("=") for option in options)
    return {**RUN, "protocol_option": [f"{name}={value}" for name, value in chosen.items()], **values}


def made_of(events: int, users: int = 9, items: int = 25, seed: int = 0, times: int = 30) -> InteractionData:
    """Data of distinct pairs in random order, with ratings of every kind, ties in time, and a group of some users."""
    rng = np.random.default_rng(seed)
    user, item = np.divmod(rng.permutation(users * items)[:events], items)
    tables = [FeatureTable((FeatureSpec("id", "categorical", n),), {"id": torch.arange(n)}) for n in (users, items)]
    return InteractionData(
        "tiny",
        *tables,
        user,
        item,
        rng.integers(1, 6, events).astype(float),
        rng.integers(0, times, events),
        {"side": Group("side", rng.integers(-1, 2, users), ("a", "b"))},
        np.array([f"user {number}" for number in range(users)], dtype=object),
        100 + np.arange(items),
        np.array([f"title {number}" for number in range(items)], dtype=object),
    )


def protocol_of(data: InteractionData, **options):
    """The protocol on `data`: three blocks of batches of 4 unless `options` say otherwise."""
    options = {"batch": 4, "blocks": 3, "averaged": 2} | options
    return FADE(data, SETTINGS, np.random.default_rng(0), FADE.Options(**options))


def times_mixed(patch) -> None:
    """Let synthetic data be read with times in random order, so that users are known before later blocks."""
    read = READERS["synthetic"]

    def mixed(options):
        data = read(options)
        return dataclasses.replace(data, time=np.random.default_rng(3).permutation(len(data.user_id)))

    patch.setitem(READERS, "synthetic", mixed)


def small_and_quick(patch) -> None:
    """Mix the times, and permute labels a few times only."""
    times_mixed(patch)
    patch.setattr(chance_levels, "__defaults__", (5,))


def states_noted(patch) -> dict[str, list[dict]]:
    """A dict that gets, by phase, what it begins with and what it ends with: weights, and the optimisers' state."""
    noted, begin, end = {}, Training.begin_phase, Training.end_phase

    def note(training, phase):
        parts = {"backbone": training.backbone.state_dict(), "training": training.method.training_state()}
        noted.setdefault(phase.name, []).append(copy.deepcopy(parts))

    def begun(self, phase, *arguments):
        begin(self, phase, *arguments)
        note(self, phase)

    def ended(self, phase):
        end(self, phase)
        note(self, phase)

    patch.setattr(Training, "begin_phase", begun)
    patch.setattr(Training, "end_phase", ended)
    return noted


def batches_noted(patch) -> list[list[tuple]]:
    """A list that gets, by sampler and so by trained phase, the places and the batch of every step."""
    samplers, noted, sample = [], [], BatchSampler.sample

    def sampled(self, places, *streams):
        batch = sample(self, places, *streams)
        if self not in samplers:
            samplers.append(self)
            noted.append([])
        noted[samplers.index(self)].append((places.tolist(), batch))
        return batch

    patch.setattr(BatchSampler, "sample", sampled)
    return noted
