"""What a fairness method is: the interface, and plain training by gradient steps."""

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
from model.methods.histories import HistorySources
from model.methods.optimisers import make_optimisers
from model.methods.stateful import Stateful, put_state, state_of
from model.runs.config import Config
from model.runs.environment import Environment

Update = Callable[..., None]
# settings that FA-BUHS alone reads
ADVERSARIES_ALONE = frozenset(
    {
        "adversarial_lambda_item", "adversarial_lambda_user", "adversarial_ramp", "adversary_input",
        "fairness_sampling", "fairness_weight", "item_adversary",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Forward:
    """What the backbone computes for a `batch`: the step's `context`, user vectors and scores.

    `user [R, D]`: R is B, or B * (1 + M) where every item of a row has a history of its own. `scores [B, 1 + M]`: the
    positive's first. `apart [R, D]`, where asked for: the same user vectors without a gradient to parameters that
    belong to one user alone.
    """

    batch: Batch
    context: Any
    user: torch.Tensor
    scores: torch.Tensor
    apart: torch.Tensor | None = None


@dataclass(frozen=True)
class Schedule:
    """How a stage trains."""

    # positives per step
    batch_size: int
    # the most epochs
    epochs: int
    # epochs from one validation to the next
    every: int
    # epochs without a better validation after which the stage stops
    patience: int

    def asks(self, epoch: int) -> bool:
        """Tell whether the stage is validated after `epoch`."""
        return epoch % self.every == 0 or epoch == self.epochs

    def exhausted(self, epoch: int, best: int, values: Mapping[int, float]) -> bool:
        """Tell whether the stage stops after `epoch`.

        `best` is the best epoch so far (0: none), `values` are all validations by epoch.
        """
        return epoch - best >= self.patience


class Method:
    """How a backbone is trained to be fair. This class trains it plainly by gradient steps; others override a part.

    The order of calls: `begin_phase` once per phase; then for each of `stages` `begin_stage` once, and for each epoch
    of its `schedule` `begin_epoch`, and for each of its `passes` `train_step` per batch. A run that goes on calls
    `begin_phase`, loads the saved state, and then calls `begin_stage` and `begin_epoch` of where it stopped.
    """

    @dataclass(frozen=True)
    class Options:
        """Settings of this method, set by repeated `--method_option=name=value`."""

    Options: ClassVar[type]
    # also trains a backbone that is fitted at once
    fits_at_once: ClassVar[bool] = False
    # trains the backbone plainly in a stage "backbone" of its own, before the stage "method"
    two_stages: ClassVar[bool] = False
    # a row of a batch has one user vector, not one for each of its items
    one_user_vector: ClassVar[bool] = False
    # `controls` are levels, from the most accurate to the fairest: pictures join them
    ordered_controls: ClassVar[bool] = False

    @classmethod
    def unread(cls, config: Config) -> frozenset[str]:
        """Name the settings that this method does not read under `config`."""
        return ADVERSARIES_ALONE if cls.two_stages else ADVERSARIES_ALONE | {"backbone_checkpoint"}

    @classmethod
    def unsupported(cls, config: Config) -> str | None:
        """Say why this method does not work with the backbone, protocol and other settings of `config`; None where it
        does.

        The reason is put behind "--fairness_method=... on --backbone=... with --protocol=...: ".
        """
        if BACKBONES[config.backbone].fitted and not cls.fits_at_once:
            return "it trains by gradient steps, and this backbone is fitted at once"
        if cls.one_user_vector and config.upstream_compat:
            return "it gives a row one user vector; leave --upstream_compat out"
        return None

    @classmethod
    def options_of(cls, config: Config) -> Any:
        """Give the options of this method under `config`: its data set's defaults, and what `--method_option` sets."""
        return parse_options(cls.Options, config.method_option, dataset=config.dataset)

    def __init__(self, backbone: nn.Module, environment: Environment):
        self.backbone, self.environment, self.config = backbone, environment, environment.config
        self.histories = HistorySources(self)
        self.loss = LOSSES[self.config.loss]
        self.options = self.options_of(self.config)
        self.optimisers = self.backbone_optimisers()
        if len(self.optimisers) > 1 and environment.processes.world > 1:
            raise ValueError("--sparse_updates works in one process; leave it out, or run without torchrun")

    def backbone_optimisers(self) -> tuple[torch.optim.Optimizer, ...]:
        """Make fresh optimisers of the backbone, by `--lr` and `--weight_decay`."""
        config = self.config
        return make_optimisers(self.backbone, config.lr, config.weight_decay, self.backbone.undecayed)

    def in_one_process(self, why: str) -> None:
        """Refuse several processes (ValueError); `why` says what the method does with whole batches."""
        if self.environment.processes.world > 1:
            raise ValueError(f"--fairness_method={self.config.method} {why}: run it in one process")

    def acted_on(self) -> Group:
        """Give the users' groups of the attribute that is acted on; fewer than two of them are a ValueError."""
        group = self.environment.user_groups[self.config.attribute]
        if group.num_groups < 2:
            raise ValueError(
                f"--fairness_method={self.config.method} needs two groups: {group.name} has {', '.join(group.labels)} "
                "alone; name another attribute in --user_attribute"
            )
        return group

    def begin_phase(self, phase: Phase, total_steps: int) -> None:
        """Get ready for a phase of at most `total_steps` steps; weights and optimisers persist from phase to phase."""

    def stages(self) -> tuple[str, ...]:
        """Name the stages of training, in order: two where `two_stages`, the backbone first."""
        return ("backbone", "method") if self.two_stages else ("method",)

    def schedule(self, stage: str, phase: Phase) -> Schedule:
        """Say how long `stage` trains and in which batches; by default what `phase` and `--batch_size` say."""
        return Schedule(self.config.batch_size, phase.epochs, phase.every, phase.patience)

    def begin_stage(self, stage: str) -> None:
        """Get ready for `stage`: called once when the stage begins, and again when a run is resumed within it.

        The saved state is loaded before, so a method can see what is done already. The backbone is thawed here; a
        method that wants it frozen freezes it after this.
        """
        self.backbone.thaw()

    def freeze_backbone(self) -> None:
        """Take gradients and training mode away from the backbone until the next stage begins."""
        self.backbone.freeze()

    def begin_epoch(self, stage: str, epoch: int) -> None:
        """Get ready for `epoch` (from 1) of `stage`; called again when a run is resumed within it."""

    def passes(self, stage: str, epoch: int) -> tuple[str, ...]:
        """Name the passes over the data that make `epoch` (from 1) of `stage`."""
        return ("train",)

    def reads_histories(self, stage: str) -> bool:
        """Tell whether the batches of `stage` need the histories that the backbone reads."""
        return True

    def history_weights(self, histories: Histories, split: Split) -> HistoryWeights:
        """Weigh the items of `histories`, where the backbone reads weighted samples of them.

        Here by BUHS's tail-biased distribution (RecSys 2024).
        """
        weights = catalogue_log_weights(histories, split.degree, self.config.sampling_softmax_temp)
        return HistoryWeights(np.zeros(1), weights[None])

    def own_rows(self, batch: Batch) -> Batch:
        """Give this process's rows of the global `batch`; where it has none, one row, which `ranking_loss` weighs 0."""
        processes, rows = self.environment.processes, len(batch.users)
        if processes.world == 1:
            return batch
        chosen = slice(processes.rank, rows, processes.world) if processes.own(rows) else slice(0, 1)
        history = batch.history
        if history is not None:
            # a history per row, or one for each of its items
            history = History(*(part.unflatten(0, (rows, -1))[chosen].flatten(0, 1) for part in vars(history).values()))
        positions = None if batch.rows is None else batch.rows[chosen]
        return Batch(batch.users[chosen], batch.positives[chosen], batch.negatives[chosen], history, positions)

    def ranking_loss(self, scores: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Compute this process's share of `--loss` of the global `batch`, from its `scores`: shares add up."""
        return self.loss(scores) * self.share(batch)

    def batch_loss(self, forward: Forward, batch: Batch, stage: str) -> torch.Tensor:
        """Add `ranking_loss` and `penalty`, this process's share of both."""
        return self.ranking_loss(forward.scores, batch) + self.penalty(forward, batch, stage)

    def penalty(self, forward: Forward, batch: Batch, stage: str) -> torch.Tensor | float:
        """Compute `--l2` times the mean squared norm of a row's vectors in `stage`: this process's share of it."""
        if not self.config.l2:
            return 0.0
        norms = self.backbone.squared_norms(forward.context, forward.batch.users, forward.batch.items)
        return self.config.l2 * norms.mean() * self.share(batch)

    def share(self, batch: Batch) -> float:
        """Give the fraction of the global batch's rows that are this process's."""
        return len(self.environment.processes.own(len(batch.users))) / len(batch.users)

    def filter_users(self, user: torch.Tensor) -> torch.Tensor:
        """Change user vectors `[R, D]` before training scores them; by default they stay."""
        return user

    def forward(self, batch: Batch, apart: bool = False) -> Forward:
        """Score every row's positive and negatives; `apart` asks for `Forward.apart` of a backbone that can give it."""
        items = batch.items  # [B, 1 + M]
        rows, width = items.shape
        needed = [items.flatten()] + ([] if batch.history is None else [batch.history.items.flatten()])
        users = batch.users
        if batch.history is not None and len(batch.history.items) != rows:
            # a history for each item of a row: every item is a row of its own
            users, items = users.repeat_interleave(width), items.view(-1, 1)  # [B * (1 + M)], [B * (1 + M), 1]
        with torch.autocast(users.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            context = self.backbone.prepare(torch.cat(needed))
            if apart:
                user, shared = self.backbone.encode_users_apart(context, users, batch.history)
            else:
                user, shared = self.backbone.encode_users(context, users, batch.history), None
            user = self.filter_users(user)
            scores = self.backbone.score(context, user, items)  # [B, 1 + M], or [B * (1 + M), 1]
        scores = scores.float().view(rows, width)
        return Forward(batch, context, user.float(), scores, None if shared is None else shared.float())

    def train_step(self, batch: Batch, stage: str, name: str, update: Update) -> dict[str, torch.Tensor]:
        """Take one step on the global `batch` through `update(loss, *optimisers)`; give detached values to be logged.

        Losses and values are this process's share: they are summed over processes, as `update` sums gradients.
        """
        loss = self.batch_loss(self.forward(self.own_rows(batch)), batch, stage)
        update(loss, *self.optimisers)
        return {"loss": loss.detach()}

    def controls(self) -> tuple[str, ...]:
        """Name the fairness settings that can be chosen after training; one neutral setting, "", by default.

        Where there are several, their names are parts of result keys, so they hold no slash and no @.
        `--mode=recommend` uses the first unless `--control` names another; pictures show the first.
        """
        return ("",)

    def hides(self, control: str = "") -> tuple[str, ...]:
        """Name the user attributes that training was asked to hide in the vectors served under `control`; none by
        default.

        Leakage of other attributes is what nobody asked the method to prevent.
        """
        return ()

    def selection_controls(self, stage: str) -> tuple[str, ...]:
        """Name those of `controls` under which `stage` is validated; the epoch is selected by the mean of their
        metrics.

        A stage that trains the backbone alone needs a control under which `transform_users` changes nothing.
        """
        return self.controls()[:1]

    def transform_users(self, user: torch.Tensor, users: torch.Tensor, control: str) -> torch.Tensor:
        """Change user vectors `[B, D]` of `users [B]` to those served under `control`; by default they stay."""
        return user

    def networks(self) -> dict[str, nn.Module]:
        """Name the method's own networks that serving needs beside the backbone; none by default.

        Checkpoints hold their weights, and they are in evaluation mode while users are served.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Give what serving needs beyond the backbone: the weights of `networks`."""
        return {name: network.state_dict() for name, network in self.networks().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; other networks than this method's are a ValueError."""
        networks = self.networks()
        if state.keys() != networks.keys():
            raise ValueError(f"checkpoint holds {sorted(state)}, and this method has {sorted(networks)}")
        for name, network in networks.items():
            network.load_state_dict(state[name])

    def stateful(self) -> dict[str, Stateful]:
        """Name what resuming needs beside the backbone and `networks`: optimisers, random streams, tensors."""
        return {f"optimiser {place}": optimiser for place, optimiser in enumerate(self.optimisers)}

    def training_state(self) -> dict[str, Any]:
        """Give the state of all `stateful` parts; a method adds plain values of its own."""
        return {name: state_of(part) for name, part in self.stateful().items()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take back what `training_state` gave, after `begin_phase`."""
        for name, part in self.stateful().items():
            put_state(part, state[name])
