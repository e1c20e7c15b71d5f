"""SLIM over users: each user is a sparse, non-negative combination of neighbours, fitted without gradient steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from data.messages import progress_shown
from data.structs import History, InteractionData, Split
from model.backbone import GRAPHS_ALONE, TOWERS_ALONE, Backbone
from model.runs.config import Config
from model.scorers import DotScorer

# a dense Gram matrix in float64 and its inverse: about 20 bytes each, 8 GB
MOST_NUMBERS = 400_000_000
USERS_AT_A_TIME = 512
# Step of the splitting against the mean of the Gram matrix's diagonal, and its over-relaxation: by trial on MovieLens
STEP, RELAXATION = 10.0, 1.6


@dataclass(frozen=True)
class Penalties:
    """Weights of the terms of `Problem`, and when a fit stops; defaults are by validation on MovieLens-1M.

    A fit stops at a relative residual of `tolerance`, or after `iterations`.
    """

    l1: float = 1.0
    l2: float = 30.0
    balance: float = 0.0
    tolerance: float = 2e-3
    iterations: int = 200


class Fit(NamedTuple):
    """The result of a fit.

    `objective` is summed over users, `residual` the largest last residual of a block of users, `iterations` the most
    iterations that a block took.
    """

    objective: float
    residual: float
    iterations: int


class Problem:
    """For each user u, min over w >= 0 with w_u = 0 of

        1/2 |r_u - w R|^2 + l1 |w|_1 + l2/2 |w|^2 + balance/2 |w S|^2,

    where r_u is her row of the interactions R [U, I], `gram [U, U]` is R R^T and `signs [U, K]` is S.

    Solved by Douglas-Rachford splitting (ADMM): the quadratic terms in closed form, by one inverse for all users; l1
    and the bounds by a threshold. The difference between the two solutions, the residual, never rises (He & Yuan,
    2015); the objective may.
    """

    def __init__(self, gram: torch.Tensor, penalties: Penalties, signs: torch.Tensor | None = None):
        self.gram, self.penalties = gram, penalties
        self.signs = gram.new_zeros((len(gram), 1)) if signs is None else signs.to(gram)
        self.step = STEP * max(float(gram.diagonal().mean()), 1.0)
        hessian = gram.to(torch.float64, copy=True)  # single precision would not do where balance is large
        hessian.diagonal().add_(penalties.l2 + self.step)
        wide = self.signs.double()
        hessian.addmm_(wide, wide.T, alpha=penalties.balance)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian)).to(gram.dtype)

    def solve(self, users: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
        """Solve for the weights [b, U] of `users [b]`, and give each residual, relative to the first solution."""
        rows, residuals = torch.arange(len(users), device=users.device), []
        fixed = self.gram[users] @ self.inverse  # [b, U]
        state, scale = torch.zeros_like(fixed), max(float(fixed.norm()), torch.finfo(fixed.dtype).tiny)
        while True:
            weights = (state - self.penalties.l1 / self.step).clamp_(min=0)  # [b, U]
            weights[rows, users] = 0
            if residuals and (residuals[-1] <= self.penalties.tolerance or len(residuals) >= self.penalties.iterations):
                return weights, residuals
            change = torch.addmm(fixed, 2 * weights - state, self.inverse, alpha=self.step).sub_(weights)  # [b, U]
            state.add_(change, alpha=RELAXATION)
            residuals.append(float(change.norm()) / scale)

    def objective(self, users: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Compute the objective of each of `users [b]` at `weights [b, U]`: [b]."""
        penalties, products = self.penalties, self.gram[users]
        fit = (weights * (weights @ self.gram / 2 - products)).sum(1) + self.gram.diagonal()[users] / 2
        size = penalties.l1 * weights.sum(1) + penalties.l2 / 2 * weights.square().sum(1)
        return fit + size + penalties.balance / 2 * (weights @ self.signs).square().sum(1)


class NeighbourSLIM(Backbone):
    """SLIM (Ning & Karypis, ICDM 2011) over users (Burke et al., FAT* 2018): the scores are W R [U, I].

    R [U, I] are the train interactions; row u of W [U, U] are user u's weights on the other users, found by `fit`
    (Decision 31). A user's vector is that row of W, an item's vector its column of R.
    """

    fitted = True
    defaults: ClassVar = Backbone.defaults | {"embedding_dim": 0}

    @classmethod
    def unread(cls, config: Config) -> frozenset[str]:
        """As in `Backbone`: the settings of towers, graphs and gradient steps."""
        return TOWERS_ALONE | GRAPHS_ALONE | {
            "batch_size", "checkpoint_every", "embedding_dim", "epochs", "eval_every", "in_batch_negatives", "l2",
            "loss", "lr", "num_negatives", "patience", "precision", "table_start", "weight_decay",
        }  # fmt: skip

    @classmethod
    def make(cls, data: InteractionData, config: Config) -> NeighbourSLIM:
        """As in `Backbone`."""
        return cls(data.num_users, data.num_items)

    def __init__(self, num_users: int, num_items: int):
        super().__init__()
        numbers = num_users * max(num_users, num_items)
        if numbers > MOST_NUMBERS:
            raise ValueError(
                f"--backbone=slim holds {num_users:,} users x {max(num_users, num_items):,} numbers; allowed are "
                f"{MOST_NUMBERS:,}, about {int(MOST_NUMBERS**0.5):,} users: use a smaller data set or another backbone"
            )
        self.num_items, self.vector_width = num_items, num_users
        # W is sparse: weight holds its rows one after the other, neighbour their columns, indptr where each row begins;
        # a parameter, as the weights of every backbone are
        self.weight = nn.Parameter(torch.zeros(0), requires_grad=False)
        self.register_buffer("neighbour", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("indptr", torch.zeros(num_users + 1, dtype=torch.int64))
        self.scorer = DotScorer(num_users)

    def begin_phase(self, split: Split) -> None:
        """Take the train interactions of `split` as R."""
        self._pairs = torch.from_numpy(split.train.owner), torch.from_numpy(split.train.item)

    def fit(self, penalties: Penalties = Penalties(), signs: torch.Tensor | None = None, progress: bool = False) -> Fit:
        """Fit W anew; `signs [U, K]` measure the balance (None: there is none)."""
        items = self.prepare()  # [I, U]
        problem = Problem(items.T @ items, penalties, signs)
        del items
        parts, objective, residual, iterations = [], 0.0, 0.0, 0
        everybody = torch.arange(self.vector_width, device=self.weight.device)
        with progress_shown("slim" if progress else None, len(everybody), "user") as advance:
            for users in everybody.split(USERS_AT_A_TIME):
                weights, residuals = problem.solve(users)
                objective += float(problem.objective(users, weights).double().sum())
                residual, iterations = max(residual, residuals[-1]), max(iterations, len(residuals))
                places = torch.nonzero(weights, as_tuple=True)
                parts.append((weights[places], places[1], torch.bincount(places[0], minlength=len(users))))
                advance(len(users))
        values, self.neighbour, lengths = (torch.cat(part) for part in zip(*parts, strict=True))
        self.weight.data = values
        self.indptr = F.pad(lengths.cumsum(0), (1, 0))
        return Fit(objective, residual, iterations)

    def _load_from_state_dict(self, state: dict, prefix: str, *arguments) -> None:
        # a fresh network has no weights yet: take the sizes from the checkpoint
        for name, parameter in (("weight", self.weight), ("neighbour", self.neighbour)):
            if prefix + name in state:
                parameter.data = parameter.data.new_zeros(state[prefix + name].shape)
        super()._load_from_state_dict(state, prefix, *arguments)

    def prepare(self, items: torch.Tensor | None = None) -> torch.Tensor:
        """Make the items' columns of R, as rows [I, U]: those of all items, whichever `items` are asked for."""
        columns = torch.zeros((self.num_items, self.vector_width), device=self.weight.device)
        owner, item = (part.to(columns.device) for part in self._pairs)
        columns[item, owner] = 1
        return columns

    def encode_users(self, context: torch.Tensor, users: torch.Tensor, history: History | None) -> torch.Tensor:
        """Give the rows of W of `users [B]`: [B, U]."""
        lengths = self.indptr[users + 1] - self.indptr[users]
        row = torch.repeat_interleave(torch.arange(len(users), device=users.device), lengths)  # [n], of n weights
        within = torch.arange(len(row), device=users.device) - (lengths.cumsum(0) - lengths)[row]
        place = self.indptr[users][row] + within
        rows = self.weight.new_zeros((len(users), self.vector_width))
        rows[row, self.neighbour[place]] = self.weight.detach()[place]
        return rows

    def encode_items(self, context: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Give the columns of R of `items [...]`: [..., U]."""
        return F.embedding(items, context)

    def score(self, context: torch.Tensor, user: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Score `user [B, U]` with `items [B, M]`: `[B, M]`."""
        return self.scorer(user, context, items)
