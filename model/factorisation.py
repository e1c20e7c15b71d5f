"""Backbones that learn a vector per id and score by inner products: matrix factorisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from data.structs import History, InteractionData
from model.backbone import GRAPHS_ALONE, TOWERS_ALONE, Backbone
from model.runs.config import Config
from model.scorers import DotScorer

# FDA's, AFRL's, FADE's and NeuMF's code start so; FA-BUHS's tables differ (Decision 23)
INITIAL_STD = 0.01


@dataclass(frozen=True)
class Tables:
    """Vectors of one step as the scorer reads them: `users [U, D]`, `items [I, D]`."""

    users: torch.Tensor
    items: torch.Tensor


class MatrixFactorisation(Backbone):
    """Inner products of user and item vectors, without biases (BPR-MF: Rendle et al., UAI 2009; PMF: NeurIPS 2007).

    Subclasses change `vectors`.
    """

    inner_product = True
    # one negative, as in their papers and in RecBole; rates and weights by validation on MovieLens-1M
    defaults: ClassVar = {
        "batch_size": 2048,
        "embedding_dim": 64,
        "graph_layers": 0,
        "graph_norm": "symmetric",
        "in_batch_negatives": 0,
        "l2": 0.0,
        "loss": "bpr",
        "lr": 1e-3,
        "num_negatives": 1,
        "table_start": "normal",
    }
    defaults_under: ClassVar = {
        "fda": {"batch_size": 40_960, "epochs": 200, "l2": 1e-2, "patience": 60},
        "fade": {"batch_size": 256, "epochs": 100, "num_negatives": 4, "weight_decay": 1e-4},
        # as the authors' code, but for the form of the l2 norm (Decision 55)
        "cofair": {"batch_size": 4096, "epochs": 1000, "l2": 3e-3, "table_start": "xavier_normal"},
    }
    # synthetic data are too small for the batches above
    defaults_on: ClassVar = {"synthetic": {"batch_size": 512, "epochs": 30, "lr": 5e-3}}
    initial_std = INITIAL_STD

    def __init__(self, num_users: int, num_items: int, dim: int):
        super().__init__()
        self.num_items, self.vector_width = num_items, dim
        self.user, self.item = nn.Embedding(num_users, dim), nn.Embedding(num_items, dim)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=self.initial_std)
        self.scorer = DotScorer(dim)

    @classmethod
    def unread(cls, config: Config) -> frozenset[str]:
        """As in `Backbone`: the settings of towers and graphs."""
        return TOWERS_ALONE | GRAPHS_ALONE

    @classmethod
    def make(cls, data: InteractionData, config: Config) -> MatrixFactorisation:
        """As in `Backbone`."""
        return cls(data.num_users, data.num_items, config.embedding_dim).start_tables(config.table_start)

    def start_tables(self, how: str) -> MatrixFactorisation:
        """Draw the tables anew by Xavier where `how` says so; give the network."""
        if how != "normal":
            draw = nn.init.xavier_normal_ if how == "xavier_normal" else nn.init.xavier_uniform_
            for table in (self.user, self.item):
                draw(table.weight)
        return self

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Shape [I, d] of the noise that `prepare` adds to the item table, before anything is propagated."""
        return tuple(self.item.weight.shape)

    def prepare(self, items: torch.Tensor | None = None, item_noise: torch.Tensor | None = None) -> Tables:
        """Compute the vectors of all users and items; `item_noise [I, d]` is added to the item table.

        `items` make no difference: a table is read only where it is needed.
        """
        item = self.item.weight if item_noise is None else self.item.weight + item_noise
        return Tables(*self.vectors(self.user.weight, item))

    def vectors(self, user: torch.Tensor, item: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the final vectors [U, D], [I, D] from the tables `user [U, d]`, `item [I, d]`: here the same."""
        return user, item

    def encode_users(self, context: Tables, users: torch.Tensor, history: History | None) -> torch.Tensor:
        """As in `Backbone`."""
        return F.embedding(users, context.users)

    def encode_items(self, context: Tables, items: torch.Tensor) -> torch.Tensor:
        """As in `Backbone`."""
        return F.embedding(items, context.items)

    def score(self, context: Tables, user: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Score `user [B, D]` with `items [B, M]`: `[B, M]`."""
        return self.scorer(user, context.items, items)

    def squared_norms(self, context: Tables, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """As in `Backbone`, without gathering the items' vectors."""
        user_norms = F.embedding(users, context.users).square().sum(-1)  # [B]
        return user_norms + F.embedding(items, context.items.square().sum(-1, keepdim=True)).flatten(1).sum(-1)


class BPRMF(MatrixFactorisation):
    """Matrix factorisation as BPR trains it (Rendle et al., UAI 2009)."""

    free_vectors = True
    fda_code_clamps_items = True


class PMF(MatrixFactorisation):
    """Probabilistic matrix factorisation: `--l2` is the prior on the vectors (Mnih & Salakhutdinov, NeurIPS 2007)."""

    free_vectors = True
    defaults: ClassVar = MatrixFactorisation.defaults | {"l2": 1e-3}
