"""FairUser: antidote users whose data make a recommender fairer (Rastegarpanah, Gummadi & Crovella, WSDM 2019)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data.options import check_options
from data.protocols.base import Phase
from data.sampling.negatives import NegativeSampler
from data.structs import Batch, Group, Histories, ItemLists, Split
from model import BACKBONES
from model.factorisation import INITIAL_STD, Tables
from model.methods.base import Method, Update
from model.methods.stateful import Stateful
from model.runs.config import Config
from model.runs.environment import Environment
from model.runs.streams import torch_generator

MOST_NUMBERS = 100_000_000  # of antidote users x items, of which a few arrays are held
MOST_HALVINGS = 20


def group_contrasts(group: Group) -> torch.Tensor:
    """Make C [G, U], which turns user vectors U [U, d] into the groups' deviations from the mean of their means.

    |C U v|^2 is G / (G - 1) times the sum over groups of the squared deviation of the group's mean score of item v: of
    two groups, the squared difference of their mean scores. Users of unknown group and groups without members are left
    out; fewer than two groups are a ValueError.
    """
    counts = group.counts()
    present = np.flatnonzero(counts)
    if len(present) < 2:
        raise ValueError(f"--fairness_method=fairuser: {group.name} has fewer than two groups with members")
    means = (group.codes == present[:, None]) / counts[present, None]  # [G, U]
    return torch.from_numpy((means - means.mean(0)) * math.sqrt(len(present) / (len(present) - 1)))


class Antidote:
    """The disparity J of a matrix factorisation as a function of the antidote users' profiles X `[A, I]` in [0, 1].

    J = 1/I sum over items of |D v|^2 with D = C U `[G, d]`, the contrasts C of the user groups on the real users'
    vectors U `[U, d]`, and v the item's vector: how far the groups' mean scores are apart.

    Item vectors follow from the profiles by ridge regression: V' = (U'U + A'A + l I)^-1 (U'R + A'X), where R are the
    real users' profiles and A `[A, d]` the antidote users' vectors (section 4 of the paper). A follows from X by
    ridge regression on the item vectors without antidote users. So J depends on X alone.
    """

    def __init__(self, user: torch.Tensor, split: Split, contrasts: torch.Tensor, ridge: float):
        """`user [U, d]` are the real users' vectors, `contrasts [G, U]` from `group_contrasts`."""
        owner = split.train.owner[np.argsort(split.train.item, kind="stable")]
        starts = np.concatenate([[0], np.cumsum(split.degree)])
        bags = [torch.from_numpy(part).to(user.device) for part in (owner, starts)]
        user = user.double()  # products below are far from 1 in size
        self.real = F.embedding_bag(bags[0], user, bags[1], mode="sum", include_last_offset=True)  # R'U [I, d]
        self.squares = user.T @ user  # U'U [d, d]
        self.contrasts = contrasts.to(user) @ user  # D [G, d]
        self.identity = ridge * torch.eye(user.shape[1], dtype=user.dtype, device=user.device)
        item = torch.linalg.solve(self.squares + self.identity, self.real.T)  # [d, I], without antidote users
        self.folding = torch.linalg.solve(item @ item.T + self.identity, item).T  # [I, d]

    def items(self, antidote: torch.Tensor, profiles: torch.Tensor) -> torch.Tensor:
        """Solve for the item vectors V [I, d], given antidote vectors `[A, d]` and `profiles [A, I]`."""
        hessian = self.squares + antidote.T @ antidote + self.identity
        return torch.linalg.solve(hessian, (self.real + profiles.T @ antidote).T).T

    def vectors(self, profiles: torch.Tensor) -> torch.Tensor:
        """Solve for the antidote vectors A [A, d], given `profiles [A, I]`."""
        return profiles @ self.folding

    def objective(self, item: torch.Tensor) -> torch.Tensor:
        """Compute J of item vectors `[I, d]`."""
        return (item @ self.contrasts.T).square().sum(1).mean()

    def gradient(self, profiles: torch.Tensor, antidote: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Compute the gradient of J by the profiles [A, I], at their antidote and item vectors.

        The paper takes A as fixed, which leaves the first term alone. With A following from the profiles, hardly any
        step along that term lowered J; hence the second term.
        """
        hessian = self.squares + antidote.T @ antidote + self.identity
        pull = 2 / len(item) * (item @ self.contrasts.T) @ torch.linalg.solve(hessian, self.contrasts.T).T  # [I, d]
        cross = item.T @ pull  # [d, d]
        by_antidote = profiles @ pull - antidote @ (cross + cross.T)  # [A, d]
        return antidote @ pull.T + by_antidote @ self.folding.T

    def optimise(self, profiles: torch.Tensor, rounds: int) -> tuple[torch.Tensor, list[float]]:
        """Descend from `profiles [A, I]` by projected gradients: the last step before its projection, and J of each
        round.

        A step is halved until J falls, and doubled for the next round.
        """
        proposed = profiles = profiles.double()
        antidote = self.vectors(profiles)
        item, values, step = self.items(antidote, profiles), [], None
        values.append(float(self.objective(item)))
        for _ in range(rounds):
            gradient = self.gradient(profiles, antidote, item)
            largest = float(gradient.abs().max())
            step = step or 1 / max(largest, MOST_HALVINGS * torch.finfo(gradient.dtype).tiny)
            for _ in range(MOST_HALVINGS if largest else 0):
                trial = profiles - step * gradient
                projected = trial.clamp(0, 1)
                vectors = self.vectors(projected)
                moved = self.items(vectors, projected)
                value = float(self.objective(moved))
                if value < values[-1]:
                    break
                step /= 2
            else:
                break
            proposed, profiles, antidote, item, step = trial, projected, vectors, moved, 2 * step
            values.append(value)
        return proposed, values


class FairUser(Method):
    """Plain training, then antidote users found for its result, then training anew with them among the users.

    They are never ranked: they have a table of their own and reach real users through the items alone (Decision 32).
    """

    two_stages = True

    @dataclass(frozen=True)
    class Options:
        """Options of FairUser.

        `users` is the number of antidote users as a share of the real ones, each with `interactions` positives (0: as
        many as real users have on average). They are found in `rounds` rounds of projected gradient descent; `ridge` is
        the weight of the squared norm in the closed form.
        """

        users: float = 0.05
        interactions: int = 0
        rounds: int = 50
        ridge: float = 30.0

        def __post_init__(self):
            check_options(
                self,
                ("users", 0 < self.users <= 1, "a share in (0, 1]"),
                ("interactions", self.interactions >= 0, "0 (as real users) or more"),
                ("rounds", self.rounds >= 1, "1 or more"),
                ("ridge", 0 < self.ridge < math.inf, "a positive number"),
            )

    @classmethod
    def unsupported(cls, config: Config) -> str | None:
        """Refuse backbones that are no matrix factorisation."""
        if BACKBONES[config.backbone].free_vectors:
            return None
        known = ", ".join(name for name in BACKBONES if BACKBONES[name].free_vectors)
        return f"it solves matrix factorisation in closed form ({known})"

    def __init__(self, backbone: nn.Module, environment: Environment):
        super().__init__(backbone, environment)
        self.in_one_process("adds rows to whole batches")
        self.count = max(1, round(self.options.users * backbone.user.num_embeddings))
        numbers = self.count * backbone.num_items
        if numbers > MOST_NUMBERS:
            raise ValueError(
                f"--method_option=users={self.options.users}: {self.count:,} antidote users x {backbone.num_items:,} "
                f"items are {numbers:,} numbers; allowed are {MOST_NUMBERS:,}: lower users"
            )
        if self.options.interactions > backbone.num_items:
            raise ValueError(
                f"--method_option=interactions={self.options.interactions}: allowed are the {backbone.num_items:,} "
                "items at most"
            )
        self.contrasts = group_contrasts(environment.user_groups[self.config.attribute])
        self.initial = copy.deepcopy(backbone.state_dict())

    def begin_phase(self, phase: Phase, total_steps: int) -> None:
        """Make a fresh table of antidote users, whose data are found when the second stage begins."""
        device = self.environment.device
        self.split = phase.split
        self.generator = torch_generator(self.environment.phase_seeds(phase.number)["noise"], device)
        table = torch.randn((self.count, self.backbone.vector_width), generator=self.generator, device=device)
        self.antidote = nn.Parameter(table * INITIAL_STD)
        self.antidote_optimiser = torch.optim.Adam(
            [self.antidote], lr=self.config.lr, weight_decay=self.config.weight_decay, fused=True
        )
        interactions = self.options.interactions or round(len(self.split.train.item) / self.split.num_users)
        self.interactions = min(max(1, interactions), self.backbone.num_items)
        self._take(torch.zeros((0, self.interactions), dtype=torch.int64))

    def _take(self, positives: torch.Tensor) -> None:
        """Take `positives [A, n]` as the antidote users' data; [0, n] means that they are not found yet."""
        self.positives = positives.to(self.environment.device)
        if len(positives):
            indptr = np.arange(len(positives) + 1, dtype=np.int64) * self.interactions
            known = ItemLists(indptr, positives.cpu().numpy().ravel())
            negatives = self.config.num_negatives + self.config.in_batch_negatives
            self.negatives = NegativeSampler(known, self.backbone.num_items, negatives, 0, self.environment.device)

    def begin_stage(self, stage: str) -> None:
        """Find the antidote users when the second stage begins, and put all weights back to where they began."""
        super().begin_stage(stage)
        # a run that is resumed within the stage has loaded its antidote users
        if stage != "method" or len(self.positives):
            return
        self._take(self._find())
        self.backbone.load_state_dict(self.initial)
        self.optimisers = self.backbone_optimisers()

    @torch.no_grad()
    def _find(self) -> torch.Tensor:
        """Find the antidote users' items [A, n] for the weights as they stand; profiles begin as real users' copies."""
        problem = Antidote(self.backbone.user.weight, self.split, self.contrasts, self.options.ridge)
        device = self.environment.device
        chosen = torch.randperm(self.split.num_users, generator=self.generator, device=device)[: self.count]
        proposed, values = problem.optimise(
            dense_rows(self.split.train, chosen, self.split.num_items), self.options.rounds
        )
        print(f"antidote users: disparity {values[0]:.3g} before, {values[-1]:.3g} after", flush=True)
        # many entries end at the bound 1; before the projection they still differ, and the largest are taken
        return torch.sort(proposed, dim=1, descending=True, stable=True).indices[:, : self.interactions].contiguous()

    def train_step(self, batch: Batch, stage: str, name: str, update: Update) -> dict[str, torch.Tensor]:
        """Take a plain step; in the second stage antidote rows join it, in proportion to their share of all data."""
        if stage == "backbone":
            return super().train_step(batch, stage, name, update)
        forward, config = self.forward(batch), self.config
        users, items = self.antidote_rows(len(batch.users))
        context = Tables(self.antidote, forward.context.items)
        scores = self.backbone.score(context, self.backbone.encode_users(context, users, None), items)
        loss = self.loss(torch.cat([forward.scores, scores.float()]))
        if config.l2:
            norms = self.backbone.squared_norms(forward.context, batch.users, batch.items)
            loss = loss + config.l2 * torch.cat([norms, self.backbone.squared_norms(context, users, items)]).mean()
        update(loss, *self.optimisers, self.antidote_optimiser)
        return {"loss": loss.detach()}

    def antidote_rows(self, real: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw antidote users [n] and their items, a positive and negatives [n, 1 + M], to go with `real` rows."""
        count = max(1, round(real * self.positives.numel() / len(self.split.train.item)))
        place = torch.randint(
            self.positives.numel(), (count,), generator=self.generator, device=self.environment.device
        )
        users, positives = place // self.interactions, self.positives.flatten()[place]
        return users, torch.cat([positives[:, None], self.negatives.sample(users, positives, self.generator)], dim=1)

    def stateful(self) -> dict[str, Stateful]:
        """Add the antidote users' vectors, their optimiser and the random stream."""
        parts = {"antidote": self.antidote, "antidote optimiser": self.antidote_optimiser, "generator": self.generator}
        return super().stateful() | parts

    def training_state(self) -> dict[str, Any]:
        """Add the antidote users' data, empty until they are found."""
        return super().training_state() | {"positives": self.positives}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """As in `Method`."""
        super().load_training_state(state)
        self._take(state["positives"])


def dense_rows(train: Histories, users: torch.Tensor, num_items: int) -> torch.Tensor:
    """Make the binary profiles [A, I] of `users [A]`."""
    lists = train.take(users.cpu().numpy())
    profiles = torch.zeros((len(users), num_items))
    profiles[torch.from_numpy(lists.owner), torch.from_numpy(lists.item)] = 1
    return profiles.to(users.device)
