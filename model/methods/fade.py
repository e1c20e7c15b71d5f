"""FADE: a differentiable gap between two user groups, trained beside the ranking loss (Yoo et al., WWW 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from data.options import by_dataset, check_options
from data.structs import Batch
from model.methods.base import Method, Update
from model.methods.relaxed_ranks import approximate_ndcg, differentiable_hit, neural_ndcg
from model.runs.environment import Environment

# how well a row is ranked, from its scores [B, n] (the positive first), K and the temperature: [B]
MEASURES: Mapping[str, Callable[[torch.Tensor, int, float], torch.Tensor]] = {
    "hit": differentiable_hit,
    "neural_ndcg": neural_ndcg,
    "approx_ndcg": approximate_ndcg,
    "score": lambda scores, k, temperature: scores[:, 0],
}
LOG, ABSOLUTE = FORMS = ("log", "absolute")


def group_loss(gap: torch.Tensor, form: str = LOG) -> torch.Tensor:
    """Compute softplus(x) of the gap x, -log sigmoid(-x), or softplus(|x|) where `form` is "absolute"."""
    return F.softplus(gap.abs() if form == ABSOLUTE else gap)


class FADE(Method):
    """Training by L_rec + weight * softplus(x), x the gap of a batch between two user groups.

    x is the mean of the differentiable hit over the rows of the first group's users, the advantaged ones, less that of
    the second group's, and may become negative: L_fair has no least value at 0. A batch with users of one group alone
    has the ranking loss alone.
    """

    @dataclass(frozen=True)
    class Options:
        """FADE's settings.

        `weight` is lambda. `measure`: what of a row is compared, hit (the first `k` places by the relaxed sort at
        `temperature`), neural_ndcg, approx_ndcg, or the positive's score. `form` of the loss: log or absolute.
        `adaptive` sets lambda in each step so that the gap moves towards `target`, and does not read `weight`.
        """

        weight: float = by_dataset(0.5, modcloth=4.0)
        measure: str = "hit"
        k: int = 1
        temperature: float = 3.0
        form: str = LOG
        adaptive: bool = False
        target: float = 0.0

        def __post_init__(self):
            check_options(
                self,
                ("weight", 0 <= self.weight < float("inf"), "0 or more"),
                ("measure", self.measure in MEASURES, f"one of {', '.join(MEASURES)}"),
                ("k", self.k >= 1, "1 or more"),
                ("temperature", self.temperature > 0, "above 0"),
                ("form", self.form in FORMS, f"one of {', '.join(FORMS)}"),
                ("target", self.target >= 0, "0 or more"),
                ("target", self.target == 0 or self.adaptive, "0 without adaptive=True"),
            )

    def __init__(self, backbone: torch.nn.Module, environment: Environment):
        super().__init__(backbone, environment)
        self.in_one_process("compares the groups of whole batches")
        group = self.acted_on()
        if group.num_groups > 2:
            raise ValueError(
                f"--fairness_method=fade compares two groups, and {group.name} has {group.num_groups}: name an "
                "attribute of two groups first in --user_attribute"
            )
        # by user: 0 advantaged, 1 disadvantaged, -1 unknown
        self.side = torch.from_numpy(group.codes).to(environment.device)

    def gap(self, scores: torch.Tensor, users: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the gap x of a batch's `scores [B, n]` of `users [B]`, and whether it has rows of both sides (1.0).

        Rows are interactions, not users. The gap of a batch of one side alone means nothing.
        """
        side = self.side[users]
        sides = torch.stack([side == 0, side == 1]).to(scores.dtype)  # [2, B]
        counts = sides.sum(1)
        quality = MEASURES[self.options.measure](scores, self.options.k, self.options.temperature)  # [B]
        means = sides @ quality / counts.clamp(min=1)
        return means[0] - means[1], (counts > 0).all().to(scores.dtype)

    def adapted_weight(self, ranking: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
        """Compute the lambda under which, at target 0, an infinitesimal step leaves a gap x of 0 as it is.

        It is -(1 + e^-target) <grad L_rec, grad x> / |grad x|^2, but not below 0.
        """
        weights = [
            weight for optimiser in self.optimisers for group in optimiser.param_groups for weight in group["params"]
        ]
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        of_ranking, of_gap = (torch.autograd.grad(value, weights, **options) for value in (ranking, gap))
        product = sum((one * other).sum() for one, other in zip(of_ranking, of_gap, strict=True))
        square = sum(one.square().sum() for one in of_gap)
        ratio = torch.where(square > 0, -product / square.clamp(min=torch.finfo(square.dtype).tiny), 0.0)
        return ((1 + math.exp(-self.options.target)) * ratio).clamp(min=0)

    def train_step(self, batch: Batch, stage: str, name: str, update: Update) -> dict[str, torch.Tensor]:
        """Take one step on L_rec + lambda L_fair; report L_rec, lambda L_fair and how many batches have both sides."""
        forward = self.forward(batch)
        ranking = self.batch_loss(forward, batch, stage)
        gap, has_both = self.gap(forward.scores, batch.users)
        weight = self.adapted_weight(ranking, gap) if self.options.adaptive else self.options.weight
        # nothing is added to a batch of one side alone (Decision 63)
        fairness = has_both * weight * group_loss(gap, self.options.form)
        update(ranking + fairness, *self.optimisers)
        return {"loss": ranking.detach(), "fairness": fairness.detach(), "both_sides": has_both}
