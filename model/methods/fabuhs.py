"""FA-BUHS: fairness-constrained history sampling and label-conditioned adversaries (README.md has the formulas)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from data.messages import warn
from data.options import check_options
from data.protocols.base import Phase
from data.structs import Batch, Histories, HistoryWeights, Split
from fairness_utils import (
    ConditionalAdversary,
    SolvedDiscriminator,
    class_label_weights,
    fairness_history_weights,
    ramp,
    smoothing_share,
)
from model.methods.base import ADVERSARIES_ALONE, Forward, Method, Update
from model.methods.stateful import Stateful
from model.runs.config import Config
from model.runs.environment import Environment


class AdversaryRows(NamedTuple):
    """What the adversaries read in a step of R rows, two for each positive.

    `user` and `item [r, D]` are the inputs of this process's rows. Of all rows: the interaction `label [R]` (1 for a
    positive, 0 for a negative), the classes to predict `[R]` (-1 unknown) and the weight of the row's user `[R]`.
    """

    user: torch.Tensor
    item: torch.Tensor
    label: torch.Tensor
    user_target: torch.Tensor
    item_target: torch.Tensor
    user_weight: torch.Tensor


class FABUHS(Method):
    """BUHS with fairness-constrained sampling and adversaries on both towers."""

    @dataclass(frozen=True)
    class Options:
        """Options of the adversaries and of group parity.

        `discriminator_widths` are the widths of the discriminators, `discriminator_steps` their steps per step of the
        backbone, `discriminator_lr` their learning rate; every `reinitialise_every` steps one of them starts anew (0:
        never). `solved_discriminator` adds the closed-form one on the user side. `scrub_own_embeddings` lets the
        reversed gradient reach users' id embeddings, which then hide the attribute of those users alone whose attribute
        training sees. `smoothing` scales the prior mass κ of group parity (1: κ = |I|).
        """

        discriminator_widths: tuple[int, ...] = (32, 64, 128)
        discriminator_steps: int = 3
        discriminator_lr: float = 1e-3
        reinitialise_every: int = 200
        solved_discriminator: bool = True
        scrub_own_embeddings: bool = False
        smoothing: float = 1.0

        def __post_init__(self):
            check_options(
                self,
                ("discriminator_widths", min(self.discriminator_widths) >= 1, "widths of at least 1"),
                ("discriminator_steps", self.discriminator_steps >= 1, "1 or more"),
                ("discriminator_lr", self.discriminator_lr > 0, "a positive number"),
                ("reinitialise_every", self.reinitialise_every >= 0, "0 (never) or more"),
                ("smoothing", 0 < self.smoothing < np.inf, "a positive number"),
            )

    @classmethod
    def unread(cls, config: Config) -> frozenset[str]:
        """As in `Method`, but this method reads the settings of its adversaries."""
        return super().unread(config) - ADVERSARIES_ALONE

    def __init__(self, backbone: nn.Module, environment: Environment):
        super().__init__(backbone, environment)
        self.group = environment.user_groups[self.config.attribute]
        self.known_codes = np.where(environment.held_out, -1, self.group.codes)
        self.user_target = torch.from_numpy(self.known_codes).to(environment.device)

    def hides(self, control: str = "") -> tuple[str, ...]:
        """Name the attribute that the user adversary reads, where its gradient is reversed."""
        return (self.config.attribute,) if self.config.adversarial_lambda_user > 0 else ()

    def begin_phase(self, phase: Phase, total_steps: int) -> None:
        """Fix the class weights on the phase's train counts and start fresh adversaries."""
        self.step, self.total_steps = 0, total_steps
        split, device = phase.split, self.environment.device
        popularity = split.item_groups["popularity"]
        self.item_target = torch.from_numpy(popularity.codes).to(device)
        seed = self.environment.phase_seeds(phase.number)["adversary"]
        user_seed, item_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
        # batches are of interactions; the weights make every user count the same, as in an attack on served vectors
        interactions = split.train.lengths
        self.user_weight = torch.from_numpy(np.float32(interactions.mean() / interactions.clip(min=1))).to(device)
        known = (self.known_codes >= 0) & (interactions > 0)
        user_counts = self._both_labels(self.known_codes[known])  # [G, 2]
        # a negative is drawn from the catalogue, a positive from the train interactions
        by_item = np.bincount(popularity.codes, weights=split.degree, minlength=2)
        by_catalogue = popularity.counts() / split.num_items * split.degree.sum()
        item_counts = np.stack([by_catalogue, by_item], axis=1)  # [2, 2]: head and tail by label
        if self.config.item_adversary == "user_attribute":
            item_counts = self._both_labels(self.known_codes[split.train.owner])
        width = self.backbone.vector_width
        inputs = width * (2 if self.config.adversary_input == "pair" else 1)
        widths = self.options.discriminator_widths
        user_weights, item_weights = class_label_weights(user_counts), class_label_weights(item_counts)
        self.solved_discriminator = SolvedDiscriminator(user_weights).to(device)
        self.user_adversary = ConditionalAdversary(inputs, user_weights, widths, user_seed).to(device)
        self.item_adversary = ConditionalAdversary(width, item_weights, widths, item_seed).to(device)
        parameters = [*self.user_adversary.parameters(), *self.item_adversary.parameters()]
        self.discriminator_optimiser = torch.optim.Adam(parameters, lr=self.options.discriminator_lr, fused=True)
        if self.config.fairness_sampling:
            self._warn_of_smoothing(split)

    def _both_labels(self, codes: np.ndarray) -> np.ndarray:
        counts = np.bincount(codes[codes >= 0], minlength=self.group.num_groups).astype(float)
        return np.stack([counts, counts], axis=1)

    def _warn_of_smoothing(self, split: Split) -> None:
        share = smoothing_share(split.train, self.group, split.num_items, self._kappa(split))
        for label, value in zip(self.group.labels, share, strict=True):
            if value > 1 / 3:
                warn(
                    f"group parity: smoothing makes up {100 * value:.0f} % of the item distribution of "
                    f"{self.group.name}={label}, which has too few train interactions; "
                    "--method_option=smoothing=... lowers it"
                )

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
        config, options = self.config, self.options
        strength = ramp(self.step, self.total_steps, config.adversarial_ramp)
        user_scale, item_scale = strength * config.adversarial_lambda_user, strength * config.adversarial_lambda_item
        own_batch = self.own_rows(batch)
        forward = self.forward(own_batch, apart=bool(user_scale) and not options.scrub_own_embeddings)
        rows = self._adversary_rows(batch, own_batch, forward)
        count = len(rows.label)
        if options.discriminator_steps > 1:
            size = -(-count // (options.discriminator_steps - 1))
            for start in range(0, count, size):
                user_loss, item_loss = self._adversarial_losses(rows, start, min(start + size, count), 0.0, 0.0)
                update(user_loss + item_loss, self.discriminator_optimiser)
        user_loss, item_loss = self._adversarial_losses(rows, 0, count, user_scale, item_scale)
        loss = self.batch_loss(forward, batch, stage)
        total = loss + user_loss + item_loss
        if user_scale and options.solved_discriminator:
            total = total + self._solved_loss(rows, user_scale)
        update(total, *self.optimisers, self.discriminator_optimiser)
        self.step += 1
        if options.reinitialise_every and self.step % options.reinitialise_every == 0:
            self._reinitialise(self.step // options.reinitialise_every)
        discriminators = len(options.discriminator_widths)
        return {
            "loss": loss.detach(),
            "adversary/user": user_loss.detach() / discriminators,
            "adversary/item": item_loss.detach() / discriminators,
        }

    def stateful(self) -> dict[str, Stateful]:
        """Add the adversaries and their optimiser."""
        parts = {
            "user_adversary": self.user_adversary,
            "item_adversary": self.item_adversary,
            "discriminator_optimiser": self.discriminator_optimiser,
        }
        return super().stateful() | parts

    def training_state(self) -> dict[str, Any]:
        """Add the step, which times the ramp and the re-initialisations."""
        return super().training_state() | {"step": self.step}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """As in `Method`."""
        super().load_training_state(state)
        self.step = state["step"]

    def _reinitialise(self, turn: int) -> None:
        for adversary in (self.user_adversary, self.item_adversary):
            index = adversary.reinitialise(turn)
            for parameter in adversary.discriminators[index].parameters():
                # Adam's moments are those of the old parameters
                self.discriminator_optimiser.state.pop(parameter, None)

    def _adversary_rows(self, batch: Batch, own_batch: Batch, forward: Forward) -> AdversaryRows:
        """Make two rows per positive: one with the positive (label 1), one with its first negative (label 0)."""

        def pairs(part: Batch) -> torch.Tensor:
            return torch.stack([part.positives, part.negatives[:, 0]], dim=1)

        rows = len(own_batch.users)
        item = self.backbone.encode_items(forward.context, pairs(own_batch))[..., : self.backbone.vector_width].float()
        # with a shared history both labels see one user vector; with one per row each has its own
        user = forward.user if forward.apart is None else forward.apart
        user = user.view(rows, -1, user.shape[-1])[:, :2].expand(-1, 2, -1)  # [b, 2, D]
        item, user = item.reshape(2 * rows, -1), user.reshape(2 * rows, -1)  # [r, D] each
        target = self.user_target[batch.users].repeat_interleave(2)  # [R]
        by_user = self.config.item_adversary == "user_attribute"
        return AdversaryRows(
            user=torch.cat([user, user * item], dim=1) if self.config.adversary_input == "pair" else user,
            item=item,
            label=torch.arange(1, len(target) + 1, device=item.device) % 2,  # 1, 0, 1, 0, ...
            user_target=target,
            item_target=target if by_user else self.item_target[pairs(batch)].flatten(),
            user_weight=self.user_weight[batch.users].repeat_interleave(2),
        )

    def _held(self, values):
        """Give those of the batch's row values `[R]` that are this process's: [r]."""
        processes = self.environment.processes
        return values.reshape(-1, 2)[processes.rank :: processes.world].flatten()

    def _adversarial_losses(self, rows: AdversaryRows, start: int, stop: int, user_scale: float, item_scale: float):
        """Compute the losses of both sides on rows `start` to `stop`: this process's share of each."""
        part, own_part = (
            slice(start, stop),
            slice(*np.searchsorted(self._held(np.arange(len(rows.label))), (start, stop))),
        )
        even = torch.ones_like(rows.user_weight)
        losses = []
        for adversary, vectors, target, weight, scale in (
            (self.user_adversary, rows.user, rows.user_target, rows.user_weight, user_scale),
            (self.item_adversary, rows.item, rows.item_target, even, item_scale),
        ):
            # the weight of all processes' rows: means over a process's rows would not add up
            mass = adversary.mass(rows.label[part], target[part], weight[part])
            label, target, weight = (self._held(values)[own_part] for values in (rows.label, target, weight))
            losses.append(adversary.loss(vectors[own_part], label, target, scale, mass, weight))
        return losses

    def _solved_loss(self, rows: AdversaryRows, scale: float) -> torch.Tensor:
        """Solve the linear discriminator on all processes' rows; give its loss on this process's."""
        discriminator = self.solved_discriminator
        mass = discriminator.mass(rows.label, rows.user_target, rows.user_weight)
        # a process without a row of the batch has one vector, which must not count
        label, target, weight = (self._held(part) for part in (rows.label, rows.user_target, rows.user_weight))
        user = rows.user[: len(label)]
        solution = discriminator.solve(user, label, target, weight, self.environment.processes.sum)
        return discriminator.loss(user, label, target, scale, solution, mass, weight)
