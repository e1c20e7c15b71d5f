"""FDA: fairly augmented training with learned noise on items (Chen et al., WWW 2023)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from data.options import check_options
from data.protocols.base import Phase
from data.structs import Batch
from model.factorisation import INITIAL_STD
from model.methods.base import Method, Update
from model.methods.stateful import Stateful
from model.runs.config import Config
from model.runs.environment import Environment
from model.runs.streams import torch_generator

FORMS = ("paper", "code")


class FDA(Method):
    """Training of the backbone and of a noise vector per item, in turn.

    The noise is trained to make the items that one group likes score as if another group liked them; the backbone is
    then trained on real items and on such fakes, so that it learns to treat the groups' items alike.

    `form=code` is what the authors released and their numbers come from: the model's pass comes first, noise is
    unbounded, the model's fakes are the user's own items and negatives are rotated within the batch. `form=paper`
    follows the equations (Decision 30).
    """

    one_user_vector = True

    @dataclass(frozen=True)
    class Options:
        """Options of FDA.

        `form` is code or paper; `epsilon` bounds each dimension of the noise (0: the form's own bound, 0.5 in the
        paper's, none in the code's); `mask_ratio` is the share of fakes. An epoch is `noise_passes` and `model_passes`
        over the data, after `warmup_epochs` epochs without noise. `positive_hypothesis` is H1, about positives that the
        other group likes, and `negative_hypothesis` H2, about negatives that it dislikes.
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
            """Give the largest absolute value that the noise may have."""
            return self.epsilon or (0.5 if self.form == "paper" else float("inf"))

    @classmethod
    def unread(cls, config: Config) -> frozenset[str]:
        """As in `Method`, and `loss`: both of FDA's losses are fixed, and only warm-up epochs train on `--loss`."""
        warms_up = cls.options_of(config).warmup_epochs > 0
        return super().unread(config) | (frozenset() if warms_up else {"loss"})

    def __init__(self, backbone: nn.Module, environment: Environment):
        super().__init__(backbone, environment)
        self.in_one_process("pairs rows of the whole batch")
        group = self.acted_on()
        self.codes = torch.from_numpy(group.codes).to(environment.device)
        self.num_groups = group.num_groups

    def begin_phase(self, phase: Phase, total_steps: int) -> None:
        """Draw fresh noise, one row for each item."""
        device = self.environment.device
        self.generator = torch_generator(self.environment.phase_seeds(phase.number)["noise"], device)
        noise = torch.randn(self.backbone.noise_shape, generator=self.generator, device=device) * INITIAL_STD
        self.noise = nn.Parameter(noise.clamp(-self.options.bound, self.options.bound))
        self.noise_optimiser = torch.optim.Adam([self.noise], lr=self.options.noise_lr, fused=True)

    def passes(self, stage: str, epoch: int) -> tuple[str, ...]:
        """Name the noise's passes and the model's (noise first in the paper, model first in the code).

        Warm-up epochs train the backbone plainly in as many passes as the model's, without the noise's (Decision 39).
        """
        if epoch <= self.options.warmup_epochs:
            return ("plain",) * self.options.model_passes
        noise, model = ("noise",) * self.options.noise_passes, ("model",) * self.options.model_passes
        return noise + model if self.options.form == "paper" else model + noise

    def train_step(self, batch: Batch, stage: str, name: str, update: Update) -> dict[str, torch.Tensor]:
        """Take one step of the noise with the model frozen, of the model with the noise frozen, or a plain one."""
        if name == "plain":
            return super().train_step(batch, stage, name, update)
        if name == "model":
            loss = self._model_loss(batch, stage)
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
        """Compute a context in which `items` have noisy vectors; users' vectors are read from the clean context."""
        if self.options.form == "code" and self.backbone.fda_code_clamps_items:
            item = self.backbone.item.weight
            noise = noise + item.clamp(-1, 1) - item
        return self.backbone.prepare(items.flatten(), noise)

    def _squared_norm(self, context: Any, items: torch.Tensor) -> torch.Tensor:
        return self.backbone.encode_items(context, items).square().sum(-1)

    # --- The paper's form ---

    def _groups(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """List the rows of groups `codes [B]` by group, in the batch's order, unknown ones last.

        Gives that order of rows [B], where each group begins in it [G] and how many rows it has [G], and for each row
        the other groups [B, G - 1]. Shapes are fixed, so that the host never waits for the device.
        """
        known = codes >= 0
        counts = torch.zeros(self.num_groups, dtype=torch.int64, device=codes.device)
        counts.index_add_(0, codes.clamp(min=0), known.long())
        order = torch.argsort(torch.where(known, codes, self.num_groups), stable=True)
        shifts = torch.arange(1, self.num_groups, device=codes.device)
        return order, counts.cumsum(0) - counts, counts, (codes[:, None].clamp(min=0) + shifts) % self.num_groups

    def _partners(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a random row of each other group for rows of groups `codes [B]`: rows [B, G - 1], and which there are.

        A row of unknown group has none, and none has one of a group that the batch lacks.
        """
        order, first, counts, other = self._groups(codes)
        draw = torch.rand(other.shape, generator=self.generator, device=codes.device)
        place = first[other] + (draw * counts[other].double()).long()  # [B, G - 1]
        exists = (codes[:, None] >= 0) & (counts[other] > 0)
        return order[place.clamp(max=len(codes) - 1)], exists

    def _terms(self, batch: Batch, noise: torch.Tensor):
        """Compute what both losses of the paper are made of.

        Gives the step's clean outputs, each row's partners' positive and negatives [B, G - 1, 1 + M], their noisy
        scores of the same shape, and whether there is a partner [B, G - 1].
        """
        forward = self.forward(batch)
        partners, exists = self._partners(self.codes[batch.users])
        noisy, items = self._noisy(noise, batch.items), batch.items[partners]
        scores = self.backbone.score(noisy, forward.user, items.flatten(1)).view(items.shape)  # [B, G - 1, 1 + M]
        return forward, items, scores, exists

    def _hypotheses(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """Compute the mean over the hypotheses in use of -log sigmoid(positive - negative): [...].

        H1 takes the positive from `fake [..., 1 + M]` and the negatives from `real`, H2 the other way round.
        """
        terms = []
        if self.options.positive_hypothesis:
            terms.append(F.softplus(real[..., 1:] - fake[..., :1]).mean(-1))
        if self.options.negative_hypothesis:
            terms.append(F.softplus(fake[..., 1:] - real[..., :1]).mean(-1))
        return torch.stack(terms).mean(0)

    def _noise_loss(self, batch: Batch) -> torch.Tensor:
        """Compute the inner loss: the sum over groups of the mean over a group's rows and the other groups."""
        if self.options.form == "code":
            return self._released_noise_loss(batch)
        forward, _, scores, exists = self._terms(batch, self.noise)
        rows, paired = _mean_where(self._hypotheses(forward.scores[:, None], scores), exists)
        group = self.codes[batch.users].clamp(min=0)
        totals = rows.new_zeros(self.num_groups).index_add_(0, group, torch.where(paired, rows, 0))
        counts = rows.new_zeros(self.num_groups).index_add_(0, group, paired.to(rows.dtype))
        return (totals / counts.clamp(min=1)).sum()

    def _model_loss(self, batch: Batch, stage: str) -> torch.Tensor:
        """Compute the outer loss: fakes replace a row's own items where those are masked; without any it is BPR."""
        if self.options.form == "code":
            return self._released_model_loss(batch, stage)
        forward, items, scores, exists = self._terms(batch, self.noise.detach())
        real = forward.scores[:, None]  # [B, 1, 1 + M]
        mixed = torch.where(self._mask()[items], scores, real)  # [B, G - 1, 1 + M]
        rows, paired = _mean_where(self._hypotheses(real, mixed), exists)
        plain = self._hypotheses(forward.scores, forward.scores)  # [B]
        return torch.where(paired, rows, plain).mean() + self.penalty(forward, batch, stage)

    def _mask(self) -> torch.Tensor:
        """Draw which items are fake in this step, a share of `mask_ratio`: [I] bool."""
        items, device = self.backbone.num_items, self.environment.device
        masked = torch.zeros(items, dtype=torch.bool, device=device)
        chosen = torch.randperm(items, generator=self.generator, device=device)[: int(self.options.mask_ratio * items)]
        masked[chosen] = True
        return masked

    # --- The released form ---

    def _released_noise_loss(self, batch: Batch) -> torch.Tensor:
        """Compute the inner loss: rows keep user and clean negatives, and take noisy positives of each other group.

        The n-th row of a group takes the positive of the other group's n-th row, from the first again where that group
        has fewer rows. The loss is the sum over ordered pairs of groups of the mean over the first group's rows, times
        G over the number of pairs.
        """
        forward, codes = self.forward(batch), self.codes[batch.users]
        order, first, counts, other = self._groups(codes)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        rank = rank - first[codes.clamp(min=0)]  # [B], a row's place in its group
        exists = (codes[:, None] >= 0) & (counts[other] > 0)  # [B, G - 1]
        place = first[other] + rank[:, None] % counts[other].clamp(min=1)
        fake = batch.positives[order[place.clamp(0, len(codes) - 1)]]  # [B, G - 1]
        noisy = self._noisy(self.noise, batch.positives)
        scores = self.backbone.score(noisy, forward.user, fake)  # [B, G - 1]
        terms = F.softplus(forward.scores[:, None, 1:] - scores[:, :, None]).mean(-1)  # [B, G - 1]
        if self.config.l2:
            terms = terms + self.config.l2 * self._squared_norm(noisy, fake)
        present = (counts > 0).sum()
        pairs = (present * (present - 1)).clamp(min=1)
        # where there is no partner the score is of an arbitrary row, and may be infinite: hence no product with 0
        means = torch.where(exists, terms, 0) / counts[codes.clamp(min=0)].clamp(min=1)[:, None]
        return means.sum() * (self.num_groups / pairs)

    def _released_model_loss(self, batch: Batch, stage: str) -> torch.Tensor:
        """Compute the outer loss: the last rows' positives and the first rows' negatives are noisy.

        `mask_ratio` says how many rows, and negatives move on by as many rows.
        """
        rows = len(batch.users)
        count = int(self.options.mask_ratio * rows)
        negatives = batch.negatives.roll(count, 0) if self.options.rotate_negatives else batch.negatives
        batch = replace(batch, negatives=negatives)
        forward = self.forward(batch)
        items = batch.items
        noisy = self._noisy(self.noise.detach(), items)
        row = torch.arange(rows, device=items.device)[:, None]
        is_positive = torch.arange(items.shape[1], device=items.device) == 0
        fake = torch.where(is_positive, row >= rows - count, row < count)  # [B, 1 + M]
        scores = torch.where(fake, self.backbone.score(noisy, forward.user, items), forward.scores)
        loss = F.softplus(scores[:, 1:] - scores[:, :1]).mean() + self.penalty(forward, batch, stage)
        if self.config.l2 and count:
            # the penalty is on the vectors in use: noisy ones where the positives are noisy
            last = batch.positives[-count:]
            change = self._squared_norm(noisy, last) - self._squared_norm(forward.context, last)
            loss = loss + self.config.l2 * change.sum() / rows
        return loss

    def stateful(self) -> dict[str, Stateful]:
        """Add the noise, its optimiser and its random stream."""
        parts = {"noise": self.noise, "noise optimiser": self.noise_optimiser, "generator": self.generator}
        return super().stateful() | parts


def _mean_where(values: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the mean of the `chosen` values of each row of `values [B, n]`, and which rows have one: [B] each."""
    count = chosen.sum(1)
    return torch.where(chosen, values, 0).sum(1) / count.clamp(min=1), count > 0
