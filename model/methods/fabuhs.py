"""FA-BUHS: fairness-constrained history sampling and label-conditioned adversaries (design section 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from absl import logging
from torch import nn

from data.protocols import Phase
from data.structs import Batch, Histories, HistoryWeights, Split
from fairness_utils import (
    ConditionalAdversary,
    class_label_weights,
    fairness_history_weights,
    ramp,
    smoothing_share,
)
from model.methods.base import Environment, Forward, Method, Update


class AdversaryRows(NamedTuple):
    """What the adversaries read in a step of R rows: interaction labels and targets `[R]` (-1 unknown), and inputs
    `[r, D]` of those rows that are this process's."""

    user: torch.Tensor
    item: torch.Tensor
    label: torch.Tensor
    user_target: torch.Tensor
    item_target: torch.Tensor


class FABUHS(Method):
    """BUHS with fairness-constrained sampling and adversaries on both towers."""

    @dataclass(frozen=True)
    class Options:
        """Widths of the discriminators, their steps per step, learning rate and the steps between re-initialisations.

        `reinitialise_every` = 0 never re-initialises; `smoothing` scales the prior mass κ of group parity (1: κ = |I|).
        """

        discriminator_widths: tuple[int, ...] = (32, 64, 128)
        discriminator_steps: int = 3
        discriminator_lr: float = 1e-3
        reinitialise_every: int = 200
        smoothing: float = 1.0

        def __post_init__(self):
            for name, holds, allowed in (
                ("discriminator_widths", min(self.discriminator_widths) >= 1, "widths of at least 1"),
                ("discriminator_steps", self.discriminator_steps >= 1, "1 or more"),
                ("discriminator_lr", self.discriminator_lr > 0, "a positive number"),
                ("reinitialise_every", self.reinitialise_every >= 0, "0 (never) or more"),
                ("smoothing", 0 < self.smoothing < np.inf, "a positive number"),
            ):
                if not holds:
                    raise ValueError(f"--method_option={name}={getattr(self, name)}: allowed is {allowed}")

    def __init__(self, backbone: nn.Module, environment: Environment):
        super().__init__(backbone, environment)
        self.group = environment.user_groups[self.config.attribute]
        self.known_codes = np.where(environment.held_out, -1, self.group.codes)
        self.user_target = torch.from_numpy(self.known_codes).to(environment.device)

    def begin_phase(self, phase: Phase, total_steps: int) -> None:
        """Fix the class weights on the phase's train counts and start fresh adversaries."""
        self.step, self.total_steps = 0, total_steps
        split, device = phase.split, self.environment.device
        popularity = split.item_groups["popularity"]
        self.item_target = torch.from_numpy(popularity.codes).to(device)
        user_seed, item_seed = np.random.SeedSequence(self.environment.seeds["adversary"]).generate_state(2).tolist()
        user_codes = self.known_codes[split.train.owner]
        by_user = np.bincount(user_codes[user_codes >= 0], minlength=self.group.num_groups)
        user_counts = np.stack([by_user, by_user], axis=1).astype(float)
        # a negative is drawn from the catalogue, a positive from the train interactions
        by_item = np.bincount(popularity.codes, weights=split.degree, minlength=2)
        by_catalogue = popularity.counts() / split.num_items * split.degree.sum()
        item_counts = np.stack([by_catalogue, by_item], axis=1)
        if self.config.item_adversary == "user_attribute":
            item_counts = user_counts
        width = self.backbone.vector_width
        inputs = width * (2 if self.config.adversary_input == "pair" else 1)
        widths = self.options.discriminator_widths
        self.user_adversary = ConditionalAdversary(inputs, class_label_weights(user_counts), widths, user_seed).to(
            device
        )
        self.item_adversary = ConditionalAdversary(width, class_label_weights(item_counts), widths, item_seed).to(
            device
        )
        parameters = [*self.user_adversary.parameters(), *self.item_adversary.parameters()]
        self.discriminator_optimiser = torch.optim.Adam(parameters, lr=self.options.discriminator_lr, fused=True)
        if self.config.fairness_sampling:
            self._warn_of_smoothing(split)

    def _warn_of_smoothing(self, split: Split) -> None:
        share = smoothing_share(split.train, self.group, split.num_items, self._kappa(split))
        for label, value in zip(self.group.labels, share, strict=True):
            if value > 1 / 3:
                logging.warning(
                    "group parity: smoothing makes up %.0f %% of the item distribution of %s=%s, which has too few "
                    "train interactions; --method_option=smoothing=... lowers it",
                    100 * value, self.group.name, label,
                )  # fmt: skip

    def _kappa(self, split: Split) -> float:
        return self.options.smoothing * split.num_items

    def history_weights(self, histories: Histories, split: Split) -> HistoryWeights:
        """Mix catalogue and group parity by `--fairness_weight`, or BUHS's weights without `--fairness_sampling`.

        Group parity reads every user's attribute, probe users' too (Decision 18).
        """
        if not self.config.fairness_sampling:
            return super().history_weights(histories, split)
        return fairness_history_weights(
            histories,
            split.degree,
            self.group,
            self.config.fairness_weight,
            self.config.sampling_softmax_temp,
            self._kappa(split),
            split.train,
        )

    def train_step(self, batch: Batch, stage: str, name: str, update: Update) -> dict[str, torch.Tensor]:
        """Step the discriminators on parts of the batch, then backbone and discriminators together on all of it."""
        own = self.own_rows(batch)
        forward = self.forward(own)
        rows = self._adversary_rows(batch, own, forward)
        count = len(rows.label)
        if self.options.discriminator_steps > 1:
            size = -(-count // (self.options.discriminator_steps - 1))
            for start in range(0, count, size):
                user_loss, item_loss = self._adversarial_losses(rows, start, min(start + size, count), 0.0, 0.0)
                update(user_loss + item_loss, self.discriminator_optimiser)
        strength = ramp(self.step, self.total_steps, self.config.adversarial_ramp)
        user_loss, item_loss = self._adversarial_losses(
            rows,
            0,
            count,
            strength * self.config.adversarial_lambda_user,
            strength * self.config.adversarial_lambda_item,
        )
        loss = self.ranking_loss(forward.scores, batch)
        update(loss + user_loss + item_loss, *self.optimisers, self.discriminator_optimiser)
        self.step += 1
        if self.options.reinitialise_every and self.step % self.options.reinitialise_every == 0:
            self._reinitialise(self.step // self.options.reinitialise_every)
        discriminators = len(self.options.discriminator_widths)
        return {
            "loss": loss.detach(),
            "adversary/user": user_loss.detach() / discriminators,
            "adversary/item": item_loss.detach() / discriminators,
        }

    def _adversarial_parts(self) -> dict[str, Any]:
        return {
            "user_adversary": self.user_adversary,
            "item_adversary": self.item_adversary,
            "discriminator_optimiser": self.discriminator_optimiser,
        }

    def training_state(self) -> dict[str, Any]:
        """Add the adversaries, their optimiser and the step, which times their re-initialisation and the ramp."""
        parts = {name: part.state_dict() for name, part in self._adversarial_parts().items()}
        return {**super().training_state(), **parts, "step": self.step}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take back what `training_state` gave."""
        super().load_training_state(state)
        self.step = state["step"]
        for name, part in self._adversarial_parts().items():
            part.load_state_dict(state[name])

    def _reinitialise(self, turn: int) -> None:
        for adversary in (self.user_adversary, self.item_adversary):
            index = adversary.reinitialise(turn)
            for parameter in adversary.discriminators[index].parameters():
                # moments of the old parameters would throw the fresh ones off
                self.discriminator_optimiser.state.pop(parameter, None)

    def _adversary_rows(self, batch: Batch, own: Batch, forward: Forward) -> AdversaryRows:
        """Two rows per positive, its own (label 1) and its first negative's (label 0), for both sides."""

        def shown(part: Batch) -> torch.Tensor:
            return torch.stack([part.positives, part.negatives[:, 0]], dim=1)

        rows = len(own.users)
        item = self.backbone.encode_items(forward.context, shown(own))[..., : self.backbone.vector_width].float()
        # with a shared history both labels see one user vector; with one per row each has its own
        user = forward.user.view(rows, -1, forward.user.shape[-1])[:, :2].expand(-1, 2, -1)
        item, user = item.reshape(2 * rows, -1), user.reshape(2 * rows, -1)
        target = self.user_target[batch.users].repeat_interleave(2)
        by_user = self.config.item_adversary == "user_attribute"
        return AdversaryRows(
            user=torch.cat([user, user * item], dim=1) if self.config.adversary_input == "pair" else user,
            item=item,
            label=torch.arange(1, len(target) + 1, device=item.device) % 2,  # 1, 0, 1, 0, ...
            user_target=target,
            item_target=target if by_user else self.item_target[shown(batch)].flatten(),
        )

    def _adversarial_losses(self, rows: AdversaryRows, start: int, stop: int, user_scale: float, item_scale: float):
        """Losses of both sides on `rows` from `start` to `stop`: the share of those that are this process's."""
        processes = self.environment.processes

        def held(values):
            return values.reshape(-1, 2)[processes.rank :: processes.world].flatten()

        own = slice(*np.searchsorted(held(np.arange(len(rows.label))), (start, stop)))
        losses = []
        for adversary, vectors, target, scale in (
            (self.user_adversary, rows.user, rows.user_target, user_scale),
            (self.item_adversary, rows.item, rows.item_target, item_scale),
        ):
            # the weights of all processes' rows: a mean over some rows only would not add up
            mass = adversary.mass(rows.label[start:stop], target[start:stop])
            losses.append(adversary.loss(vectors[own], held(rows.label)[own], held(target)[own], scale, mass))
        return losses
