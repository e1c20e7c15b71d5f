"""The adversarial baseline of FADE's first release: a filter of user vectors against a network that reads the group."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from data.options import check_options
from data.structs import Batch
from model.layers import Dropout
from model.methods.base import Method, Update
from model.methods.optimisers import make_optimisers
from model.methods.stateful import Stateful
from model.runs.environment import Environment

# of the discriminator's LeakyReLU
SLOPE = 0.2
# of all linear layers, biases included
INITIAL_STD = 0.01
# widths of the discriminator's layers below its outputs, as multiples of a vector's
WIDTHS = (1, 2, 4, 2, 2, 1, 0.5)


def _draw_small(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=INITIAL_STD)
            nn.init.normal_(layer.bias, std=INITIAL_STD)


class UserFilter(nn.Module):
    """Vectors without the group, `[B, D]` from `[B, D]`: D -> 2 D -> D, LeakyReLU behind each, then BatchNorm."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 2 * width), nn.LeakyReLU(), nn.Linear(2 * width, width), nn.LeakyReLU()
        )
        self.norm = nn.BatchNorm1d(width)
        _draw_small(self)

    def forward(self, user: torch.Tensor) -> torch.Tensor:
        """Filter the vectors `[B, D]` of a batch, by its own means and variances where it has more than one row."""
        return self.norm(self.layers(user)) if len(user) > 1 else self.serve(user)

    def serve(self, user: torch.Tensor) -> torch.Tensor:
        """Filter each of `user [B, D]` by itself, by the means and variances of training."""
        norm = self.norm
        hidden = self.layers(user)
        return F.batch_norm(hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def make_discriminator(width: int, dropout: float, outputs: int) -> nn.Sequential:
    """Make the seven layers that read one of `outputs` groups off a vector of `width`."""
    widths = [max(1, math.floor(width * times)) for times in WIDTHS] + [outputs]
    parts: list[nn.Module] = []
    for inputs, outs in pairwise(widths):
        parts += [nn.Linear(inputs, outs), nn.LeakyReLU(SLOPE), Dropout(dropout)]
    network = nn.Sequential(*parts[:-2])
    _draw_small(network)
    return network


class FADEAdversary(Method):
    """Training by L_rec - weight * L_D, L_D the cross-entropy of a discriminator of the group on filtered user vectors.

    Each step moves backbone and filter once, then the discriminator `discriminator_steps` times on the vectors that
    were scored. Users of unknown group are in L_rec alone. Source: the adversarial runner in the first commit of FADE's
    code (Yoo et al., WWW 2024), after Li et al., SIGIR 2021 (Decision 66).
    """

    one_user_vector = True

    @dataclass(frozen=True)
    class Options:
        """Options of the adversary: its `weight`, its steps in each step of the model, and its `dropout`."""

        weight: float = 20.0
        discriminator_steps: int = 10
        dropout: float = 0.3

        def __post_init__(self):
            check_options(
                self,
                ("weight", 0 <= self.weight < math.inf, "a finite number of 0 or more"),
                ("discriminator_steps", self.discriminator_steps >= 1, "1 or more"),
                ("dropout", 0 <= self.dropout < 1, "a share in [0, 1)"),
            )

    def __init__(self, backbone: nn.Module, environment: Environment):
        super().__init__(backbone, environment)
        self.in_one_process("normalises the vectors of whole batches")
        group, config = self.acted_on(), self.config
        self.codes = torch.from_numpy(group.codes).to(environment.device)
        width = backbone.vector_width
        self.filter = UserFilter(width).to(environment.device)
        self.discriminator = make_discriminator(width, self.options.dropout, group.num_groups).to(environment.device)
        # as in the released code, weight decay spares the biases of the model, and none of the discriminator's
        biases = [name for name, _ in self.filter.named_parameters() if name.endswith("bias")]
        (self.filter_optimiser,) = make_optimisers(self.filter, config.lr, config.weight_decay, biases)
        (self.discriminator_optimiser,) = make_optimisers(self.discriminator, config.lr, config.weight_decay)

    def filter_users(self, user: torch.Tensor) -> torch.Tensor:
        """Pass the vectors of a batch through the filter."""
        return self.filter(user)

    def transform_users(self, user: torch.Tensor, users: torch.Tensor, control: str) -> torch.Tensor:
        """Serve filtered vectors."""
        return self.filter.serve(user)

    def hides(self, control: str = "") -> tuple[str, ...]:
        """Name the attribute that the discriminator reads, where the filter is trained against it."""
        return (self.config.attribute,) if self.options.weight else ()

    def group_loss(self, user: torch.Tensor, users: torch.Tensor) -> torch.Tensor:
        """Compute L_D of the vectors `user [B, D]` of `users [B]`: the mean over rows of known group."""
        target = self.codes[users]
        known = target >= 0
        losses = F.cross_entropy(self.discriminator(user), target.clamp(min=0), reduction="none")
        return (losses * known).sum() / known.sum().clamp(min=1)

    def train_step(self, batch: Batch, stage: str, name: str, update: Update) -> dict[str, torch.Tensor]:
        """Step the model once, then the discriminator; report L_rec and the L_D that the model met."""
        forward = self.forward(batch)
        ranking = self.batch_loss(forward, batch, stage)
        adversary = self.group_loss(forward.user, batch.users)
        update(ranking - self.options.weight * adversary, *self.optimisers, self.filter_optimiser)
        user = forward.user.detach()
        for _ in range(self.options.discriminator_steps):
            update(self.group_loss(user, batch.users), self.discriminator_optimiser)
        return {"loss": ranking.detach(), "adversary": adversary.detach()}

    def networks(self) -> dict[str, nn.Module]:
        """Name the filter."""
        return {"filter": self.filter}

    def stateful(self) -> dict[str, Stateful]:
        """Add the discriminator and the two optimisers."""
        parts = {
            "discriminator": self.discriminator,
            "filter optimiser": self.filter_optimiser,
            "discriminator optimiser": self.discriminator_optimiser,
        }
        return super().stateful() | parts
