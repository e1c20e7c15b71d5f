"""What a fairness method is; as it stands, the unfair baseline `none`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from data.options import parse_options
from data.protocols.base import Phase
from data.structs import Batch, Group, Histories, History, HistoryWeights, Split
from fairness_utils import catalogue_log_weights
from model import BACKBONES, LOSSES
from model.methods.optimisers import make_optimisers
from model.runs.config import Config
from model.runs.processes import ALONE, Processes
from model.slim import Fit

Update = Callable[..., None]


@dataclass(frozen=True)
class Environment:
    """What a method may know beside its backbone: settings, user groups, probe users to spare, seeds, device, and
    which of the processes that train together this is."""

    config: Config
    user_groups: dict[str, Group]
    held_out: np.ndarray
    seeds: dict[str, int]
    device: torch.device
    processes: Processes = ALONE


@dataclass(frozen=True)
class Forward:
    """One step's outputs: its item `context`, `user [R, D]` and `scores [B, 1 + M]` (positive first).

    R is B, or B * (1 + M) where every row has its own history. `apart [R, D]`, where asked for, are the same user
    vectors without a path to what belongs to one user alone.
    """

    context: Any
    user: torch.Tensor
    scores: torch.Tensor
    apart: torch.Tensor | None = None


@dataclass(frozen=True)
class Schedule:
    """How a stage trains: positives a step, most epochs, epochs between validations and without a better one."""

    batch_size: int
    epochs: int
    every: int
    patience: int

    def asks(self, epoch: int) -> bool:
        """Whether validation is asked after `epoch`."""
        return epoch % self.every == 0 or epoch == self.epochs

    def exhausted(self, epoch: int, best: int, values: Mapping[int, float]) -> bool:
        """Whether the stage stops after `epoch`, from the `best` one (0: none) and all validations so far by epoch."""
        return epoch - best >= self.patience


class Method:
    """How a backbone is trained. This class trains it plainly (`--fairness_method=none`); others override a part."""

    @dataclass(frozen=True)
    class Options:
        """Settings of this method, set by repeated `--method_option=name=value`."""

    Options: ClassVar[type]
    # trains a backbone that is fitted at once
    fits_at_once: ClassVar[bool] = False

    @classmethod
    def unsupported(cls, config: Config) -> str | None:
        """Why this method does not work with the backbone, protocol and other settings of `config`; None: it does.

        The reason stands behind "--fairness_method=... on --backbone=... with --protocol=...: ".
        """
        if BACKBONES[config.backbone].fitted and not cls.fits_at_once:
            return "it trains by gradient steps, and this backbone is fitted at once"
        return None

    @classmethod
    def unread(cls, config: Config) -> frozenset[str]:
        """Name the settings that this method does not read under `config`, beside those that ask for it by name."""
        return frozenset()

    def __init__(self, backbone: nn.Module, environment: Environment):
        self.backbone, self.environment, self.config = backbone, environment, environment.config
        self.loss = LOSSES[self.config.loss]
        self.options = parse_options(self.Options, self.config.method_option)
        self.fits = backbone.fitted
        self.optimisers = make_optimisers(backbone, self.config.lr)
        if len(self.optimisers) > 1 and environment.processes.world > 1:
            raise ValueError("--sparse_updates works in one process; leave it out, or run without torchrun")

    def begin_phase(self, phase: Phase, total_steps: int) -> None:
        """Get ready for a phase of at most `total_steps` steps; weights and optimisers persist from phase to phase."""

    def stages(self) -> tuple[str, ...]:
        """Names of the stages of training, in order."""
        return ("method",)

    def schedule(self, stage: str, phase: Phase) -> Schedule:
        """How long `stage` trains and in which batches; by default as `phase` and `--batch_size` say, one fit once."""
        if self.fits:
            return Schedule(self.config.batch_size, 1, 1, phase.patience)
        return Schedule(self.config.batch_size, phase.epochs, phase.every, phase.patience)

    def begin_epoch(self, stage: str, epoch: int) -> None:
        """Get ready for an epoch (from 1) of `stage`; called again where a run goes on within it."""
        if self.fits:
            found = self.fit()
            if self.environment.processes.first:
                print(
                    f"fitted in {found.iterations} iterations: objective {found.objective:.1f}, relative residual "
                    f"{found.residual:.1e}",
                    flush=True,
                )

    def fit(self) -> Fit:
        """Fit a backbone that is not trained by gradient steps, anew each time."""
        return self.backbone.fit(progress=self.environment.processes.first)

    def passes(self, stage: str) -> tuple[str, ...]:
        """Names of the passes over the data that make an epoch of `stage`; none where `begin_epoch` does all of it."""
        return () if self.fits else ("train",)

    def history_weights(self, histories: Histories, split: Split) -> HistoryWeights:
        """How `histories` are drawn: here BUHS's tail-biased distribution (RecSys 2024)."""
        weights = catalogue_log_weights(histories, split.degree, self.config.sampling_softmax_temp)
        return HistoryWeights(np.zeros(1), weights[None])

    def own_rows(self, batch: Batch) -> Batch:
        """This process's rows of the global `batch`; where there are none, one that `ranking_loss` weighs 0."""
        processes, rows = self.environment.processes, len(batch.users)
        if processes.world == 1:
            return batch
        own = slice(processes.rank, rows, processes.world) if processes.own(rows) else slice(0, 1)
        history = batch.history
        if history is not None:
            # a history per row, or one for each of its items
            history = History(*(part.unflatten(0, (rows, -1))[own].flatten(0, 1) for part in vars(history).values()))
        return Batch(batch.users[own], batch.positives[own], batch.negatives[own], history)

    def ranking_loss(self, scores: torch.Tensor, batch: Batch) -> torch.Tensor:
        """`--loss` of the global `batch`: the share of this process's `scores`, so that processes add up to it."""
        return self.loss(scores) * self.share(batch)

    def batch_loss(self, forward: Forward, batch: Batch) -> torch.Tensor:
        """`ranking_loss` and `penalty`, this process's share of both."""
        return self.ranking_loss(forward.scores, batch) + self.penalty(forward, batch)

    def penalty(self, forward: Forward, batch: Batch) -> torch.Tensor | float:
        """`--l2` times the mean squared norm of the vectors of a row of the global `batch`, this process's share."""
        if not self.config.l2:
            return 0.0
        own = self.own_rows(batch)
        norms = self.backbone.squared_norms(forward.context, own.users, own.items)
        return self.config.l2 * norms.mean() * self.share(batch)

    def share(self, batch: Batch) -> float:
        """How much of the global batch is this process's."""
        return len(self.environment.processes.own(len(batch.users))) / len(batch.users)

    def forward(self, batch: Batch, apart: bool = False) -> Forward:
        """Score every row's positive and negatives; `apart` asks for `Forward.apart` of a backbone that can give it."""
        items = batch.items
        rows, width = items.shape
        needed = [items.flatten()] + ([] if batch.history is None else [batch.history.items.flatten()])
        users = batch.users
        if batch.history is not None and len(batch.history.items) != rows:
            users, items = users.repeat_interleave(width), items.view(-1, 1)
        with torch.autocast(users.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            context = self.backbone.prepare(torch.cat(needed))
            if apart:
                user, shared = self.backbone.encode_users_apart(context, users, batch.history)
            else:
                user, shared = self.backbone.encode_users(context, users, batch.history), None
            scores = self.backbone.score(context, user, items)
        scores = scores.float().view(rows, width)
        return Forward(context, user.float(), scores, None if shared is None else shared.float())

    def train_step(self, batch: Batch, stage: str, name: str, update: Update) -> dict[str, torch.Tensor]:
        """Take one step on the global `batch` through `update(loss, *optimisers)`; give detached values for the log.

        Losses and values are this process's share: they add up over processes, as `update` adds gradients up.
        """
        loss = self.batch_loss(self.forward(self.own_rows(batch)), batch)
        update(loss, *self.optimisers)
        return {"loss": loss.detach()}

    def controls(self) -> tuple[str, ...]:
        """Fairness settings that can be chosen after training; one neutral setting by default.

        Names of several are parts of keys, so without a slash or @; the first is what `--mode=recommend` serves unless
        told otherwise, and what pictures show.
        """
        return ("",)

    def selection_controls(self, stage: str) -> tuple[str, ...]:
        """Those of `controls` under which validation of `stage` is asked; the selecting metric is their mean.

        Where one stage trains the backbone alone, this names a control under which `transform_users` leaves its vectors
        as they are.
        """
        return self.controls()[:1]

    def transform_users(self, user: torch.Tensor, users: torch.Tensor, control: str) -> torch.Tensor:
        """Change served user vectors `[B, D]` of `users [B]` under `control` (identity by default)."""
        return user

    def state_dict(self) -> dict[str, Any]:
        """Tensors beyond the backbone's that serving needs (none by default)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if state:
            raise ValueError(f"checkpoint holds {sorted(state)}, which this method does not know")

    def training_state(self) -> dict[str, Any]:
        """What resuming needs beside the backbone and `state_dict`: tensors and plain values (here the optimisers')."""
        return {"optimisers": [optimiser.state_dict() for optimiser in self.optimisers]}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take back what `training_state` gave, after `begin_phase`."""
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
