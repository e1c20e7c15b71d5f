"""FDA: fairly augmented training with learned noise on items (Chen et al., WWW 2023)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from data.options import check_options
from data.protocols.base import Phase
from data.structs import Batch
from model.factorisation import BPRMF, INITIAL_STD
from model.methods.base import Environment, Method, Update
from model.runs.config import Config
from model.runs.streams import torch_generator

FORMS = ("paper", "code")


class FDA(Method):
    """Backbone and noise trained in turn: noise makes one group's items pass for another's, the backbone learns both.

    `form=code` is what the authors released and their numbers come from: the model's pass comes first, noise is
    unbounded, the model's fakes are the user's own items and negatives are rotated within the batch. `form=paper`
    follows the equations (Decision 30).
    """

    @dataclass(frozen=True)
    class Options:
        """`epsilon` bounds each dimension of the noise (0: the form's own, 0.5 or unbounded); `mask_ratio` is the share
        of fakes; `noise_passes` and `model_passes` over the data make an epoch, after `warmup_epochs` without noise.

        H1 is about positives that the other group likes, H2 about negatives that it dislikes.
        """

        form: str = "code"
        epsilon: float = 0.0
        mask_ratio: float = 0.4
        positive_hypothesis: bool = True
        negative_hypothesis: bool = True
        noise_passes: int = 1
        model_passes: int = 1
        warmup_epochs: int = 0
        noise_lr: float = 1e-3
        rotate_negatives: bool = True

        def __post_init__(self):
            check_options(
                self,
                ("form", self.form in FORMS, " or ".join(FORMS)),
                ("epsilon", self.epsilon >= 0, "0 (the form's own bound) or more"),
                ("mask_ratio", 0 <= self.mask_ratio <= 1, "a share in [0, 1]"),
                ("positive_hypothesis", self.positive_hypothesis or self.negative_hypothesis, "true where H2 is off"),
                ("positive_hypothesis", self.positive_hypothesis or self.form == "paper", "true but with form=paper"),
                ("negative_hypothesis", self.negative_hypothesis or self.form == "paper", "true but with form=paper"),
                ("rotate_negatives", self.rotate_negatives or self.form == "code", "true but with form=code"),
                ("noise_passes", self.noise_passes >= 1, "1 or more"),
                ("model_passes", self.model_passes >= 1, "1 or more"),
                ("warmup_epochs", self.warmup_epochs >= 0, "0 or more"),
                ("noise_lr", self.noise_lr > 0, "a positive number"),
            )

        @property
        def bound(self) -> float:
            """The largest absolute value of the noise."""
            return self.epsilon or (0.5 if self.form == "paper" else float("inf"))

    @classmethod
    def unsupported(cls, config: Config) -> str | None:
        """Rows with a history for each of their items, and what has no gradient."""
        reason = "it gives a row one user vector; leave --upstream_compat out" if config.upstream_compat else None
        return super().unsupported(config) or reason

    def __init__(self, backbone: nn.Module, environment: Environment):
        super().__init__(backbone, environment)
        if environment.processes.world > 1:
            raise ValueError("--fairness_method=fda pairs rows of the whole batch: run it in one process")
        group = environment.user_groups[self.config.attribute]
        if group.num_groups < 2:
            raise ValueError(
                f"--fairness_method=fda needs two groups: {group.name} has {', '.join(group.labels)} alone; name "
                "another attribute in --user_attribute"
            )
        self.codes = torch.from_numpy(group.codes).to(environment.device)
        self.num_groups = group.num_groups

    def begin_phase(self, phase: Phase, total_steps: int) -> None:
        """Draw fresh noise, one row an item."""
        device = self.environment.device
        self.generator = torch_generator(self.environment.seeds["noise"], device)
        noise = torch.randn(self.backbone.noise_shape, generator=self.generator, device=device) * INITIAL_STD
        self.noise = nn.Parameter(noise.clamp(-self.options.bound, self.options.bound))
        self.noise_optimiser = torch.optim.Adam([self.noise], lr=self.options.noise_lr, fused=True)
        self.epoch = 0

    def begin_epoch(self, stage: str, epoch: int) -> None:
        """Know whether the warm-up is over."""
        self.epoch = epoch

    def passes(self, stage: str) -> tuple[str, ...]:
        """The noise's passes and the model's: noise first in the paper, model first in the code."""
        noise, model = ("noise",) * self.options.noise_passes, ("model",) * self.options.model_passes
        return noise + model if self.options.form == "paper" else model + noise

    def train_step(self, batch: Batch, stage: str, name: str, update: Update) -> dict[str, torch.Tensor]:
        """One step of the noise with the model frozen, or of the model with the noise frozen."""
        if self.epoch <= self.options.warmup_epochs:
            return super().train_step(batch, stage, name, update) if name == "model" else {}
        if name == "model":
            loss = self._model_loss(batch)
            update(loss, *self.optimisers)
            return {"loss": loss.detach()}
        with self._frozen_model():
            loss = self._noise_loss(batch)
        update(loss, self.noise_optimiser)
        with torch.no_grad():
            self.noise.clamp_(-self.options.bound, self.options.bound)
        return {"noise/loss": loss.detach(), "noise/size": self.noise.detach().square().mean().sqrt()}

    @contextlib.contextmanager
    def _frozen_model(self) -> Iterator[None]:
        parameters = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    def _noisy(self, noise: torch.Tensor, items: torch.Tensor) -> Any:
        """The step's context with noisy `items`; users' vectors are read from the clean one."""
        if self.options.form == "code" and type(self.backbone) is BPRMF:
            # the released BPR-MF clamps the item's vector, not the noise
            item = self.backbone.item.weight
            noise = noise + item.clamp(-1, 1) - item
        return self.backbone.prepare(items.flatten(), noise)

    def _squared_norm(self, context: Any, items: torch.Tensor) -> torch.Tensor:
        return self.backbone.encode_items(context, items).square().sum(-1)

    # --- The paper's form ---

    def _partners(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For rows of groups `codes [B]` a random row of each other group: rows `[B, G - 1]`, and which there are.

        A row of unknown group has none, and none has one of a group that the batch lacks.
        """
        counts = torch.bincount(codes.clamp(min=0), weights=(codes >= 0).double(), minlength=self.num_groups)
        order = torch.argsort(torch.where(codes >= 0, codes, self.num_groups), stable=True)
        first = (counts.cumsum(0) - counts).long()
        shifts = torch.arange(1, self.num_groups, device=codes.device)
        other = (codes[:, None].clamp(min=0) + shifts) % self.num_groups
        draw = torch.rand(other.shape, generator=self.generator, device=codes.device)
        place = first[other] + (draw * counts[other]).long()
        exists = (codes[:, None] >= 0) & (counts[other] > 0)
        return order[place.clamp(max=len(codes) - 1)], exists

    def _terms(self, batch: Batch, noise: torch.Tensor):
        """What both losses of the paper are made of: the step's clean outputs, and for each row and other group the
        partner's positive and negatives `[B, G - 1, 1 + M]`, their noisy scores, and whether there is a partner."""
        forward = self.forward(batch)
        partners, exists = self._partners(self.codes[batch.users])
        noisy, items = self._noisy(noise, batch.items), batch.items[partners]
        scores = self.backbone.score(noisy, forward.user, items.flatten(1)).view(items.shape)
        return forward, items, scores, exists

    def _hypotheses(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """Mean over the hypotheses in use of -log sigmoid(positive - negative), one of which is of `fake [..., 1 + M]`
        and the other of `real`: `[...]`."""
        terms = []
        if self.options.positive_hypothesis:
            terms.append(F.softplus(real[..., 1:] - fake[..., :1]).mean(-1))
        if self.options.negative_hypothesis:
            terms.append(F.softplus(fake[..., 1:] - real[..., :1]).mean(-1))
        return torch.stack(terms).mean(0)

    def _noise_loss(self, batch: Batch) -> torch.Tensor:
        """The inner problem: sum over groups of the mean over their rows, averaged over the other groups."""
        if self.options.form == "code":
            return self._released_noise_loss(batch)
        forward, _, scores, exists = self._terms(batch, self.noise)
        rows, paired = _mean_where(self._hypotheses(forward.scores[:, None], scores), exists)
        own, rows = self.codes[batch.users][paired], rows[paired]
        totals = rows.new_zeros(self.num_groups).index_add_(0, own, rows)
        return (totals / torch.bincount(own, minlength=self.num_groups).clamp(min=1)).sum()

    def _model_loss(self, batch: Batch) -> torch.Tensor:
        """The outer problem: a masked item's fake takes the place of the row's own; without any this is BPR."""
        if self.options.form == "code":
            return self._released_model_loss(batch)
        forward, items, scores, exists = self._terms(batch, self.noise.detach())
        real = forward.scores[:, None]
        mixed = torch.where(self._mask()[items], scores, real)
        rows, paired = _mean_where(self._hypotheses(real, mixed), exists)
        plain = self._hypotheses(forward.scores, forward.scores)
        return torch.where(paired, rows, plain).mean() + self.penalty(forward, batch)

    def _mask(self) -> torch.Tensor:
        """Which items are fake in this step: a random `mask_ratio` of them, `[I]` bool."""
        items, device = self.backbone.num_items, self.environment.device
        masked = torch.zeros(items, dtype=torch.bool, device=device)
        chosen = torch.randperm(items, generator=self.generator, device=device)[: int(self.options.mask_ratio * items)]
        masked[chosen] = True
        return masked

    # --- The released form ---

    def _released_noise_loss(self, batch: Batch) -> torch.Tensor:
        """Rows keep user and clean negatives; positives are the noisy ones of another group, in the batch's order."""
        forward, codes = self.forward(batch), self.codes[batch.users]
        noisy = self._noisy(self.noise, batch.positives)
        # a batch of one group has no loss, but a gradient
        total, pairs = 0 * self.noise.sum(), 0
        members = [torch.nonzero(codes == code).flatten() for code in range(self.num_groups)]
        for rows, theirs in permutations([own for own in members if len(own)], 2):
            borrowed = theirs[torch.arange(len(rows), device=rows.device) % len(theirs)]
            fake = batch.positives[borrowed, None]
            scores = self.backbone.score(noisy, forward.user[rows], fake)
            total = total + F.softplus(forward.scores[rows, 1:] - scores).mean()
            if self.config.l2:
                total = total + self.config.l2 * self._squared_norm(noisy, fake).mean()
            pairs += 1
        return total * (self.num_groups / max(pairs, 1))

    def _released_model_loss(self, batch: Batch) -> torch.Tensor:
        """The last rows' own positives and the first rows' negatives are noisy; negatives are rotated by as many."""
        rows = len(batch.users)
        count = int(self.options.mask_ratio * rows)
        negatives = batch.negatives.roll(count, 0) if self.options.rotate_negatives else batch.negatives
        batch = Batch(batch.users, batch.positives, negatives, batch.history)
        forward = self.forward(batch)
        items = batch.items
        noisy = self._noisy(self.noise.detach(), items)
        row = torch.arange(rows, device=items.device)[:, None]
        is_positive = torch.arange(items.shape[1], device=items.device) == 0
        fake = torch.where(is_positive, row >= rows - count, row < count)
        scores = torch.where(fake, self.backbone.score(noisy, forward.user, items), forward.scores)
        loss = F.softplus(scores[:, 1:] - scores[:, :1]).mean() + self.penalty(forward, batch)
        if self.config.l2 and count:
            # the penalty is of the positives in use
            last = batch.positives[-count:]
            change = self._squared_norm(noisy, last) - self._squared_norm(forward.context, last)
            loss = loss + self.config.l2 * change.sum() / rows
        return loss

    def training_state(self) -> dict[str, Any]:
        """Add the noise, its optimiser and its random stream."""
        own = {
            "noise": self.noise.detach(),
            "noise_optimiser": self.noise_optimiser.state_dict(),
            "generator": self.generator.get_state(),
        }
        return {**super().training_state(), **own}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take back what `training_state` gave."""
        super().load_training_state(state)
        with torch.no_grad():
            self.noise.copy_(state["noise"])
        self.noise_optimiser.load_state_dict(state["noise_optimiser"])
        self.generator.set_state(state["generator"])


def _mean_where(values: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of the `chosen` ones of each row of `values [B, n]`, and which rows have one."""
    count = chosen.sum(1)
    return torch.where(chosen, values, 0).sum(1) / count.clamp(min=1), count > 0
