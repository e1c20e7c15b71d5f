"""Cofair: one training, levels of fairness to choose from afterwards (Chen, Chen & Zhao, WWW companion 2026)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from data.options import check_options
from data.protocols.base import Phase
from data.structs import Batch
from model.layers import Dropout
from model.methods.base import Method, Schedule, Update
from model.methods.encoding import encode_users
from model.methods.optimisers import make_optimisers
from model.methods.stateful import Stateful
from model.runs.config import Config
from model.runs.environment import Environment

SLOPE = 0.2  # of LeakyReLU
DISCRIMINATOR_STD = 0.01
# the authors' floor of a probability below the logarithm
LEAST_PROBABILITY = 1e-10
UPDATES, REGULARISED, SELECTED = ("interleaved", "after"), ("rows", "users"), ("last", "mean")
# settings of the first stage, which a backbone that another run trained leaves out
FIRST_STAGE = frozenset(
    {"batch_size", "l2", "loss", "lr", "precision", "sparse_updates", "table_start", "weight_decay"}
)


class Adapters(nn.Module):
    """User vectors at T levels of fairness: level t is O(LeakyReLU([S(e); P_t(e)])) of the vector e.

    S is a layer that the levels share, P_t the level's own, O one output layer for all.
    """

    def __init__(self, width: int, levels: int, shared_width: int, adapter_width: int):
        """`width` D is that of a user vector; a `shared_width` of 0 leaves S out."""
        super().__init__()
        self.levels = levels
        self.shared = nn.Linear(width, shared_width) if shared_width else None
        # the levels' layers one below the other, so that one product does them all
        self.own = nn.Linear(width, levels * adapter_width)
        self.output = nn.Linear(shared_width + adapter_width, width)
        joint = [layer.weight for layer in (self.shared, self.output) if layer is not None]
        # each level's layer by its own width
        for weight in (*joint, *self.own.weight.data.split(adapter_width)):
            nn.init.xavier_uniform_(weight)

    def _join(self, user: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Compute the output of S(user) `[B, d_s]` beside `own [B, T, d_p]`: [B, T, D].

        O on two vectors side by side is the sum of one on each: S's part is computed once for all levels.
        """
        shared, weight = self.output.weight.split([self.output.in_features - own.shape[-1], own.shape[-1]], dim=1)
        levels = F.linear(F.leaky_relu(own, SLOPE), weight, self.output.bias)  # [B, T, D]
        if self.shared is None:
            return levels
        return levels + F.linear(F.leaky_relu(self.shared(user), SLOPE), shared)[:, None]

    def forward(self, user: torch.Tensor) -> torch.Tensor:
        """Compute all levels of `user [B, D]`: [B, T, D]."""
        return self._join(user, self.own(user).unflatten(1, (self.levels, -1)))

    def level(self, user: torch.Tensor, number: int) -> torch.Tensor:
        """Compute level `number` (from 1) of `user [B, D]`: [B, D]."""
        weight, bias = (part.chunk(self.levels)[number - 1] for part in (self.own.weight, self.own.bias))
        return self._join(user, F.linear(user, weight, bias)[:, None])[:, 0]


def make_discriminator(width: int, layers: int, dropout: float, outputs: int) -> nn.Sequential:
    """Make the network that reads the group off a vector of `width`: each of its `layers` is half as wide as the last.

    `outputs` is 1 for two groups, else the number of groups.
    """
    widths = [max(1, width // 2**place) for place in range(layers)] + [outputs]
    parts: list[nn.Module] = []
    for inputs, outs in pairwise(widths):
        parts += [nn.Linear(inputs, outs), nn.LeakyReLU(SLOPE), Dropout(dropout)]
    network = nn.Sequential(*parts[:-2])
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=DISCRIMINATOR_STD)
    return network


def group_losses(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compute the cross-entropy in nats of each row's `logits [B, 1 or G]` for groups `target [B]`: [B]."""
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], target.to(logits.dtype), reduction="none")
    return F.cross_entropy(logits, target, reduction="none")


def adversarial_weights(means: torch.Tensor, start: float, growth: float) -> torch.Tensor:
    """Compute the levels' weights λ_t = λ_{t-1} + α (1 - (l_t - l_{t-1})) from their mean losses `[T]`: [T].

    λ_1 is `start` (λ_0), α is `growth`. The sum telescopes. The weights have no gradient.
    """
    means = means.detach()
    steps = torch.arange(len(means), dtype=means.dtype, device=means.device)
    return start + growth * (steps - (means - means[0]))


def monotonicity_loss(losses: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Compute the mean of softplus(l_t - l_{t+1}) over rows and levels, from `losses [T, B]`.

    `weight [B]` are the rows', which sum to 1. It is ln 2 where all levels are alike, less where each is harder to read
    than the one before, and 0 for a single level.
    """
    if len(losses) < 2:
        return losses.new_zeros(())
    return (F.softplus(losses[:-1] - losses[1:]) @ weight).mean()


class Cofair(Method):
    """Levels of fairness above a frozen backbone: level 0 is the backbone's vector, level T the fairest.

    One discriminator reads the attribute off the vectors of all levels; each level's adapter is trained to rank well
    and to be hard to read, with a weight that grows from level to level, and each user is to be harder to read at every
    level than at the one before. Items and backbone never change.
    """

    two_stages = True
    one_user_vector = True
    ordered_controls = True

    @dataclass(frozen=True)
    class Options:
        """Options of Cofair.

        `levels` is T. `lambda0` is the first level's adversarial weight, `alpha` by how much it grows from level to
        level, `beta` the weight of user-wise monotonicity, `rho` that of the norm. `shared_width` (0: no shared layer)
        and `adapter_width` are layers' widths; `discriminator_layers` and `dropout` are the discriminator's, which
        steps once a level, after the level's loss (`disc_update=interleaved`) or after the adapters (`after`).
        `regularise` takes the mean over a batch's rows or its users. `select` chooses the epoch by level T (last) or by
        the mean over the levels. With `spare_probe_users` training sees no attribute of the users on whom leakage is
        measured. `lr` is Adam's, `epochs` are at most those of --epochs.
        """

        levels: int = 5
        lambda0: float = 0.01
        alpha: float = 0.01
        beta: float = 0.02
        rho: float = 0.1
        shared_width: int = 64
        adapter_width: int = 64
        discriminator_layers: int = 2
        dropout: float = 0.2
        disc_update: str = "interleaved"
        regularise: str = "rows"
        select: str = "last"
        spare_probe_users: bool = False
        lr: float = 1e-3
        batch_size: int = 4096
        epochs: int = 100

        def __post_init__(self):
            weights = ("lambda0", "alpha", "beta", "rho")
            check_options(
                self,
                ("levels", self.levels >= 1, "1 or more"),
                *((name, 0 <= getattr(self, name) < np.inf, "a finite number of 0 or more") for name in weights),
                ("shared_width", self.shared_width >= 0, "0 (no shared layer) or more"),
                ("adapter_width", self.adapter_width >= 1, "1 or more"),
                ("discriminator_layers", 1 <= self.discriminator_layers <= 3, "1, 2 or 3"),
                ("dropout", 0 <= self.dropout < 1, "a share in [0, 1)"),
                ("disc_update", self.disc_update in UPDATES, " or ".join(UPDATES)),
                ("regularise", self.regularise in REGULARISED, " or ".join(REGULARISED)),
                ("select", self.select in SELECTED, " or ".join(SELECTED)),
                ("lr", 0 < self.lr < np.inf, "a positive number"),
                ("batch_size", self.batch_size >= 2, "2 or more"),
                ("epochs", self.epochs >= 1, "1 or more"),
            )

    @classmethod
    def unread(cls, config: Config) -> frozenset[str]:
        """As in `Method`, and the settings of a first stage that another run did."""
        return super().unread(config) | (frozenset() if config.backbone_checkpoint is None else FIRST_STAGE)

    def __init__(self, backbone: nn.Module, environment: Environment):
        super().__init__(backbone, environment)
        self.in_one_process("weighs levels by losses of the whole batch")
        group, options, device = self.acted_on(), self.options, environment.device
        # Decision 57
        codes = np.where(environment.held_out, -1, group.codes) if options.spare_probe_users else group.codes
        self.codes = torch.from_numpy(codes).to(device)
        width, outputs = backbone.vector_width, 1 if group.num_groups == 2 else group.num_groups
        self.adapters = Adapters(width, options.levels, options.shared_width, options.adapter_width).to(device)
        layers, dropout = options.discriminator_layers, options.dropout
        self.discriminator = make_discriminator(width, layers, dropout, outputs).to(device)
        self.adapters_optimiser, self.discriminator_optimiser = (
            make_optimisers(network, options.lr)[0] for network in (self.adapters, self.discriminator)
        )

    def begin_phase(self, phase: Phase, total_steps: int) -> None:
        """Keep the split, whose users are encoded when the second stage begins."""
        self.split = phase.split

    def schedule(self, stage: str, phase: Phase) -> Schedule:
        """As in `Method`; the second stage has batches and a limit of epochs of its own."""
        if stage == "backbone":
            return super().schedule(stage, phase)
        epochs = min(phase.epochs, self.options.epochs)
        return Schedule(self.options.batch_size, epochs, phase.every, phase.patience)

    def begin_stage(self, stage: str) -> None:
        """Freeze the backbone in the second stage and encode users and items once (Decision 58)."""
        super().begin_stage(stage)
        if stage == "backbone":
            return
        self.freeze_backbone()
        with torch.no_grad():
            self.context = self.backbone.prepare()
        everybody = np.arange(self.split.num_users)
        self.users = encode_users(self, self.context, everybody, self.split.histories, self.split)  # [U, D]

    def reads_histories(self, stage: str) -> bool:
        """Tell that the second stage needs none: users are encoded already."""
        return stage == "backbone"

    def train_step(self, batch: Batch, stage: str, name: str, update: Update) -> dict[str, torch.Tensor]:
        """Step the discriminator once a level and the adapters once, in the order of `disc_update` (Decision 56)."""
        if stage == "backbone":
            return super().train_step(batch, stage, name, update)
        options = self.options
        # an active user has many rows of a batch, and one vector
        users, place, count = batch.users.unique(return_inverse=True, return_counts=True)
        distinct = self.adapters(F.embedding(users, self.users))  # [U', T, D]
        levels = F.embedding(place, distinct.flatten(1)).unflatten(1, (options.levels, -1))  # [B, T, D]
        target = self.codes[batch.users]
        known = target >= 0
        target = target.clamp(min=0)

        def over_known(losses: torch.Tensor) -> torch.Tensor:
            return (losses * known).sum(-1) / known.sum().clamp(min=1)

        def step_discriminator(vectors: torch.Tensor) -> None:
            update(over_known(group_losses(self.discriminator(vectors), target)), self.discriminator_optimiser)

        # The weights that each level meets, kept apart: the steps below change them before the adapters' gradient.
        met, seen = [], levels.detach()
        for number in range(options.levels):
            met.append({key: part.detach().clone() for key, part in self.discriminator.named_parameters()})
            if options.disc_update == "interleaved":
                step_discriminator(seen[:, number])
        losses = torch.stack(
            [
                group_losses(functional_call(self.discriminator, weights, (level,)), target)
                for level, weights in zip(levels.unbind(1), met, strict=True)
            ]
        )  # [T, B]
        means = over_known(losses)  # [T]
        weights = adversarial_weights(means, options.lambda0, options.alpha)
        # Frobenius's norm, not squared, of the batch's matrix of vectors; those of items have no gradient
        norms = (distinct.square().sum(2) * count[:, None]).sum(0).sqrt()  # [T]
        ranking = self.ranking_losses(levels, batch.items).mean() + options.rho * norms.mean() / len(batch.users)
        each = known / count[place] if options.regularise == "users" else known.float()
        monotonicity = monotonicity_loss(losses, each / each.sum().clamp(min=1))
        loss = ranking - (weights * means).mean() + options.beta * monotonicity
        update(loss, self.adapters_optimiser)
        if options.disc_update == "after":
            for number in range(options.levels):
                step_discriminator(seen[:, number])
        values = {"loss": loss, "ranking": ranking}
        values |= {"monotonicity": monotonicity} if options.levels > 1 else {}
        values |= {f"adversary/t{number}": mean for number, mean in enumerate(means, 1)}
        return {name: value.detach() for name, value in values.items()}

    def ranking_losses(self, levels: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Compute each level's BPR loss, from `levels [B, T, D]` and `items [B, 1 + M]`, positive first: [T]."""
        rows, count, _ = levels.shape
        if self.backbone.inner_product:
            vectors = F.embedding(items, self.context.items)  # [B, 1 + M, D]
            change = vectors[:, :1] - vectors[:, 1:]  # [B, M, D]
            # a product of two rows at a time is slow
            one = change.shape[1] == 1
            margins = (levels * change).sum(2, keepdim=True) if one else levels @ change.mT  # [B, T, M]
        else:
            repeated = items.repeat_interleave(count, 0)  # [B T, 1 + M]
            scores = self.backbone.score(self.context, levels.flatten(0, 1), repeated).unflatten(0, (rows, count))
            margins = scores[..., :1] - scores[..., 1:]  # [B, T, M]
        return -(margins.sigmoid() + LEAST_PROBABILITY).log().mean((0, 2))

    def controls(self) -> tuple[str, ...]:
        """Name the levels: t0 (the backbone) to tT."""
        return tuple(f"t{number}" for number in range(self.options.levels + 1))

    def hides(self, control: str = "") -> tuple[str, ...]:
        """Name the attribute at every level but the backbone's own."""
        return () if control in ("", "t0") else (self.config.attribute,)

    def selection_controls(self, stage: str) -> tuple[str, ...]:
        """Select the backbone by level 0 and the adapters by level T, or by the mean over levels 1 to T."""
        if stage == "backbone":
            return ("t0",)
        return self.controls()[-1:] if self.options.select == "last" else self.controls()[1:]

    def transform_users(self, user: torch.Tensor, users: torch.Tensor, control: str) -> torch.Tensor:
        """Serve the vectors of a level; level 0 are the backbone's own."""
        number = self.controls().index(control)
        return self.adapters.level(user, number) if number else user

    def networks(self) -> dict[str, nn.Module]:
        """Name the adapters."""
        return {"adapters": self.adapters}

    def stateful(self) -> dict[str, Stateful]:
        """Add the discriminator and the two optimisers."""
        parts = {
            "discriminator": self.discriminator,
            "adapters optimiser": self.adapters_optimiser,
            "discriminator optimiser": self.discriminator_optimiser,
        }
        return super().stateful() | parts
