"""Regularisation towards equal scores of groups: demographic parity or equal opportunity (the baselines of FDA)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data.options import check_options
from data.protocols.base import Phase
from data.structs import Batch
from model import BACKBONES
from model.methods.base import Method, Update
from model.runs.config import Config
from model.runs.environment import Environment

KINDS = ("dp", "eo")


class Parity(Method):
    """The ranking loss plus `weight` times the mean over items of the absolute difference of two groups' mean scores.

    Means are taken in every step over all users of a group (`kind=dp`), or over those who have the item in the train
    split (`kind=eo`; items that one of the two groups lacks are left out). With more than two groups it is the mean
    over pairs. FDA (Chen et al., WWW 2023, section 5.1) names such baselines after Yao and Huang (NeurIPS 2017) without
    a formula or a weight; this form is our reading of its metrics (Decision 33).
    """

    @dataclass(frozen=True)
    class Options:
        """Options of the regularisation: `kind` says whose scores are compared, `weight` weighs it in the loss."""

        kind: str = "dp"
        weight: float = 0.01

        def __post_init__(self):
            check_options(
                self,
                ("kind", self.kind in KINDS, " or ".join(KINDS)),
                ("weight", 0 <= self.weight < float("inf"), "a finite number of 0 or more"),
            )

    @classmethod
    def unsupported(cls, config: Config) -> str | None:
        """Refuse backbones whose scores are no inner products."""
        if not BACKBONES[config.backbone].inner_product:
            known = ", ".join(name for name in BACKBONES if BACKBONES[name].inner_product)
            return f"scores must be inner products of all users' vectors, as of {known}"
        return None

    def __init__(self, backbone: nn.Module, environment: Environment):
        super().__init__(backbone, environment)
        self.group = environment.user_groups[self.config.attribute]

    def begin_phase(self, phase: Phase, total_steps: int) -> None:
        """List the users of each group whose vectors are averaged: one list for all items (dp) or one per item (eo)."""
        codes, train = self.group.codes, phase.split.train
        by_item = np.argsort(train.item, kind="stable")
        self.bags = []
        for code in range(self.group.num_groups):
            if self.options.kind == "dp":
                users = np.flatnonzero(codes == code)
                counts = np.array([len(users)])
            else:
                rows = by_item[codes[train.owner[by_item]] == code]
                users, counts = train.owner[rows], np.bincount(train.item[rows], minlength=phase.split.num_items)
            starts = np.concatenate([[0], np.cumsum(counts)])
            parts = (users, starts, counts > 0)
            self.bags.append(tuple(torch.from_numpy(part).to(self.environment.device) for part in parts))

    def disparity(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Compute the mean over pairs of groups and over items of the absolute difference of mean scores.

        `user [U, D]` and `item [I, D]` are all vectors; inner products of means are means of inner products.
        """
        scores = []
        for users, starts, known in self.bags:
            means = F.embedding_bag(users, user, starts, mode="mean", include_last_offset=True)  # [1 or I, D]
            scores.append(((means * item).sum(-1), known))  # [I], and [1 or I]
        gaps = []
        for (first, first_known), (second, second_known) in combinations(scores, 2):
            both = first_known & second_known
            gaps.append(((first - second).abs() * both).sum() / both.expand_as(first).sum().clamp(min=1))
        return torch.stack(gaps).mean()

    def train_step(self, batch: Batch, stage: str, name: str, update: Update) -> dict[str, torch.Tensor]:
        """Take one step on the plain loss plus the weighted disparity of all users and items."""
        forward = self.forward(self.own_rows(batch))
        loss = self.batch_loss(forward, batch, stage)
        disparity = self.disparity(forward.context.users, forward.context.items) * self.share(batch)
        update(loss + self.options.weight * disparity, *self.optimisers)
        return {"loss": loss.detach(), "disparity": disparity.detach()}
