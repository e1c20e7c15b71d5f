"""A toy protocol of several phases and tasks, in time order, with a toy method and a toy backbone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from data.options import check_options
from data.protocols import PROTOCOLS
from data.protocols.base import PER_PHASE, Phase, Protocol, Task, protocol
from data.protocols.splits import make_split
from data.structs import Histories, ItemLists
from model import BACKBONES, METHODS
from model.evaluation.evaluator import Evaluator
from model.factorisation import MatrixFactorisation
from model.methods.base import Method
from model.runs.streams import torch_generator

MADE: list[Protocol] = []  # the protocols that were applied, for tests to look at


class LastItems(MatrixFactorisation):
    """A toy backbone: a user's own vector and the mean of those of the items that she read last."""

    inner_product = False
    free_vectors = False

    @classmethod
    def history(cls, config):
        return "recent"

    @classmethod
    def unread(cls, config):
        return super().unread(config) - {"sample_size"}

    def encode_users(self, context, users, history):
        weight = history.mask / history.mask.sum(1, keepdim=True).clamp(min=1)  # [B, N]
        return context.users[users] + (weight[:, :, None] * context.items[history.items]).sum(1)


class Shaken(Method):
    """A toy method: plain training on scores that a random stream of the phase's own shakes."""

    def begin_phase(self, phase, total_steps):
        self.generator = torch_generator(self.environment.phase_seeds(phase.number)["noise"])

    def train_step(self, batch, stage, name, update):
        scores = self.forward(batch).scores
        noise = 0.1 * torch.randn(scores.shape, generator=self.generator)
        loss = self.ranking_loss(scores + noise, batch)
        update(loss, *self.optimisers)
        return {"loss": loss.detach()}

    def stateful(self):
        return {**super().stateful(), "generator": self.generator}


@dataclass(frozen=True)
class TimeOptions:
    """Share of interactions that the first phase trains, order of later batches, and candidates that are drawn."""

    warm: float = 0.4
    order: str = "blocks"
    drawn: int = 12

    def __post_init__(self):
        check_options(self, ("warm", 0 < self.warm < 1, "a share between 0 and 1"), flag="protocol_option")


@protocol(options=TimeOptions, presets={"eval_k": (5, 10)}, unread=("eval_negatives",))
def in_time_order(data, settings, rng, options=TimeOptions()):
    """Train what is old, then twice what is new; each time ask about half of the next fifth, validate on the other.

    The first phase asks nothing. The last one asks with given and with drawn candidates.
    """
    users, items, time = data.user_id, data.item_id, data.time
    order, events = np.argsort(time, kind="stable"), len(users)
    warm, fifth = int(options.warm * events), events // 5
    everything = Histories.build(users, items, time, data.num_users)

    def split_before(end):
        train, later = order[:end], order[end : end + fifth]
        parts = [(users[rows], items[rows]) for rows in (later[::2], later[1::2])]
        split = make_split(data, settings.warm_threshold, (users[train], items[train], time[train]), *parts)
        # where each of the train rows, in time order, lies in the split's lists
        return split, np.argsort(Histories.order(users[train], time[train]))

    def candidates(split):
        known = np.flatnonzero(split.degree)
        drawn = np.sort(rng.permuted(np.tile(known, (data.num_users, 1)), axis=1)[:, :15])
        return ItemLists(15 * np.arange(data.num_users + 1), drawn.ravel())

    split, _ = split_before(warm)
    phases = [
        Phase("warm-up", split, settings.epochs, "ndcg@5", 1, 9, None, (), order="shuffled blocks", barred=everything)
    ]
    for name, end in (("first", warm + fifth), ("second", warm + 2 * fifth)):
        split, places = split_before(end)
        tasks = [Task("lists", split.test, split.train, candidates(split))]
        if name == "second":
            tasks.append(Task("drawn", split.test, split.train, options.drawn))
        phases.append(
            Phase(
                name,
                split,
                settings.epochs,
                "ndcg@5",
                settings.every,
                settings.patience,
                Task("valid", split.valid, split.train, None),
                tuple(tasks),
                train_rows=places[-fifth:],
                order=options.order,
                negatives=PER_PHASE,
                barred=everything,
            )
        )
    training = f"new batches in order: {options.order}"
    MADE.append(Protocol("in_time_order", "a toy in time order", settings.ks, tuple(phases), training=training))
    return MADE[-1]


BY_IDS = {"backbone": "last", "embedding_dim": 8, "num_negatives": 2, "user_hidden": None, "item_hidden": None}
RUN = {
    **BY_IDS,
    "enable_fairness": True,
    "fairness_method": "shaken",
    "protocol": "in_time_order",
    "protocol_option": ["drawn=9"],
    "sample_size": 4,
    "eval_k": None,
}


def register(patch):
    """One entry each, and nothing else; probes take longer than a tiny run."""
    patch.setitem(PROTOCOLS, "in_time_order", in_time_order)
    patch.setitem(METHODS, "shaken", Shaken)
    patch.setitem(BACKBONES, "last", LastItems)
    patch.setattr(Evaluator, "leakage", lambda *arguments: {})
