"""Neural collaborative filtering: NeuMF, and the form of it that FADE's code trains."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from data.structs import History, InteractionData
from model import NCF_FORMS
from model.factorisation import MatrixFactorisation, Tables
from model.runs.config import Config


class NeuMF(MatrixFactorisation):
    """Neural collaborative filtering (He et al., WWW 2017): a product of one pair of tables beside an MLP on another.

    A vector is both parts side by side, `[generalised product, MLP]`, so that noise reaches both.
    """

    inner_product = False
    defaults: ClassVar = MatrixFactorisation.defaults | {
        "batch_size": 8192,
        "loss": "cross_entropy",
        "lr": 4e-3,
        "ncf_form": "neumf",
    }
    defaults_under: ClassVar = {
        "fda": MatrixFactorisation.defaults_under["fda"] | {"lr": 1e-3},
        "fade": MatrixFactorisation.defaults_under["fade"] | {"loss": "bpr", "lr": 1e-3, "ncf_form": "ncf_bpr"},
    }
    # widths of the MLP's layers, and whether they and the output add a bias
    hidden: tuple[int, ...] = (64, 32, 16)
    biased: bool = True

    @classmethod
    def make(cls, data: InteractionData, config: Config) -> NeuMF:
        """As in `Backbone`, in the form that `--ncf_form` names."""
        network = NCF_FORMS[config.ncf_form](data.num_users, data.num_items, config.embedding_dim)
        return network.start_tables(config.table_start)

    def __init__(self, num_users: int, num_items: int, dim: int):
        super().__init__(num_users, num_items, 2 * dim)
        self.dim = dim
        self.layers = nn.ModuleList(
            nn.Linear(*widths, bias=self.biased) for widths in pairwise((2 * dim, *self.hidden))
        )
        self.output = nn.Linear(dim + self.hidden[-1], 1, bias=self.biased)

    @property
    def floats_per_pair(self) -> int:
        """As in `Backbone`."""
        return 2 * sum(self.hidden)

    def score(self, context: Tables, user: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Score `user [B, 2d]` with `items [B, M]`: `[B, M]`."""
        product, item_part = context.items.split(self.dim, dim=1)
        weighted, user_part = self._user_side(user)
        return self.scorer(weighted, product.contiguous(), items) + self._deep(user_part, F.embedding(items, item_part))

    def score_catalogue(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Score `user [b, 2d]` with all of the encoded `item [m, 2d]`: `[b, m]`."""
        product, item_part = item.split(self.dim, dim=1)
        weighted, user_part = self._user_side(user)
        return self.scorer.catalogue(weighted, product) + self._deep(user_part, item_part[None])

    def _user_side(self, user: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Split `user [b, 2d]` in the product's part, times the output's weights, and the MLP's: [b, d] each."""
        product, user_part = user.split(self.dim, dim=1)
        return product * self.output.weight[0, : self.dim], user_part

    def _deep(self, user_part: torch.Tensor, item_part: torch.Tensor) -> torch.Tensor:
        """Compute what the MLP adds to the scores of `user_part [b, d]` with `item_part [b or 1, m, d]`: [b, m]."""
        first = self.layers[0]
        # a Linear on [u; v] is the sum of one on u and one on v: no [b, m, 2d] of pairs is built
        left, right = first.weight.split(self.dim, dim=1)
        hidden = F.linear(user_part, left, first.bias)[:, None] + F.linear(item_part, right)  # [b, m, h]
        for layer in self.layers[1:]:
            hidden = layer(hidden.relu_())
        added = hidden.relu_() @ self.output.weight[0, self.dim :]  # [b, m]
        return added + self.output.bias if self.biased else added


class NCFBPR(NeuMF):
    """NCF as FADE's code has it (WWW 2024; Decision 64): four layers of one width without biases, a bias for each id.

    A user's or an item's bias is the last number of the vector, so that the vectors say all that a score depends on. It
    stands in a table of its own, which noise, `--l2`, `--table_start` and `--weight_decay` leave alone.
    """

    hidden = (64, 64, 64, 64)
    biased = False
    undecayed: ClassVar = frozenset({"user_bias.weight", "item_bias.weight"})

    def __init__(self, num_users: int, num_items: int, dim: int):
        super().__init__(num_users, num_items, dim)
        self.vector_width = 2 * dim + 1
        self.user_bias, self.item_bias = nn.Embedding(num_users, 1), nn.Embedding(num_items, 1)
        for part in (*self.layers, self.output, self.user_bias, self.item_bias):
            nn.init.normal_(part.weight, std=self.initial_std)

    def encode_users(self, context: Tables, users: torch.Tensor, history: History | None) -> torch.Tensor:
        """As in `Backbone`: `[B, 2d + 1]`."""
        # rows are gathered before they are joined: no copy of a whole table
        return torch.cat([super().encode_users(context, users, history), self.user_bias(users)], dim=-1)

    def encode_items(self, context: Tables, items: torch.Tensor) -> torch.Tensor:
        """As in `Backbone`: `[..., 2d + 1]`."""
        return torch.cat([super().encode_items(context, items), self.item_bias(items)], dim=-1)

    def score(self, context: Tables, user: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Score `user [B, 2d + 1]` with `items [B, M]`: `[B, M]`."""
        vector, bias = user.split((2 * self.dim, 1), dim=1)  # [B, 2d], [B, 1]
        return super().score(context, vector, items) + bias + self.item_bias(items).squeeze(-1)

    def score_catalogue(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Score `user [b, 2d + 1]` with all of the encoded `item [m, 2d + 1]`: `[b, m]`."""
        (user, user_bias), (item, item_bias) = (side.split((2 * self.dim, 1), dim=1) for side in (user, item))
        return super().score_catalogue(user, item) + user_bias + item_bias.T
