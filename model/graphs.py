"""Convolutions over the train graph: LightGCN and GCCF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from data.structs import InteractionData, Split
from model.backbone import TOWERS_ALONE
from model.factorisation import MatrixFactorisation, Tables
from model.runs.config import Config


@dataclass(frozen=True)
class Edges:
    """A sparse matrix by rows: columns `item [E]` and weights `weight [E]`; those of row n begin at `indptr[n]`."""

    indptr: torch.Tensor
    item: torch.Tensor
    weight: torch.Tensor

    def times(self, dense: torch.Tensor) -> torch.Tensor:
        """Multiply with `dense [columns, d]`: [rows, d], three times as fast as a sparse tensor does."""
        return F.embedding_bag(
            self.item, dense, self.indptr, mode="sum", per_sample_weights=self.weight, include_last_offset=True
        )


class _Spread(torch.autograd.Function):
    """Product of a sparse matrix with a dense one; the gradient is the product with its transpose, kept beside it."""

    @staticmethod
    def forward(context, matrix: Edges, transposed: Edges, dense: torch.Tensor) -> torch.Tensor:
        context.transposed = transposed
        return matrix.times(dense)

    @staticmethod
    def backward(context, gradient: torch.Tensor):
        return None, None, context.transposed.times(gradient.contiguous())


class GraphConvolution(MatrixFactorisation):
    """Linear convolution of the user and item tables over the graph of train interactions.

    Subclasses say how interactions are weighed (`edge_weights`) and how layers become vectors (`vectors`).
    """

    def __init__(self, num_users: int, num_items: int, dim: int, layers: int):
        super().__init__(num_users, num_items, dim)
        self.layers = layers

    @classmethod
    def unread(cls, config: Config) -> frozenset[str]:
        """As in `Backbone`: the settings of towers."""
        return TOWERS_ALONE

    @classmethod
    def make(cls, data: InteractionData, config: Config) -> GraphConvolution:
        """As in `Backbone`."""
        network = cls(data.num_users, data.num_items, config.embedding_dim, config.graph_layers)
        return network.start_tables(config.table_start)

    def begin_phase(self, split: Split) -> None:
        """Take the train interactions of `split` as the graph."""
        train, device = split.train, self.item.weight.device
        by_item = np.argsort(train.item, kind="stable")  # [E]: interactions in order of item
        weight = self.edge_weights(train.lengths[train.owner], split.degree[train.item]).astype(np.float32)
        starts = np.concatenate([[0], np.cumsum(split.degree)])
        self.to_users, self.to_items = (
            Edges(*(torch.from_numpy(part).to(device) for part in parts))
            for parts in ((train.indptr, train.item, weight), (starts, train.owner[by_item], weight[by_item]))
        )

    def edge_weights(self, user_degree: np.ndarray, item_degree: np.ndarray) -> np.ndarray:
        """Compute the weight [E] of each interaction from the degrees [E] of its user and its item."""
        raise NotImplementedError

    def spread(self, user: torch.Tensor, item: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute what users get from their items and items from their users in one layer: [U, d], [I, d]."""
        return (
            _Spread.apply(self.to_users, self.to_items, item),
            _Spread.apply(self.to_items, self.to_users, user),
        )


class LightGCN(GraphConvolution):
    """Mean over layers of the symmetrically normalised convolution (He et al., SIGIR 2020).

    By `--graph_norm=rows` a layer is the mean over a node and its neighbours, D^-1 (A + I), as in Cofair's code.
    """

    # a step propagates the whole graph, however few positives it has
    defaults: ClassVar = MatrixFactorisation.defaults | {
        "batch_size": 32_768,
        "lr": 2e-2,
        "graph_layers": 2,
        "l2": 1e-4,
    }
    defaults_under: ClassVar = MatrixFactorisation.defaults_under | {
        "cofair": {
            "batch_size": 32_768,
            "epochs": 1000,
            "graph_layers": 1,
            "graph_norm": "rows",
            "l2": 1e-3,
            "lr": 5e-3,
            "table_start": "xavier_uniform",
        }
    }
    initial_std = 0.1  # as in the authors' code
    norm: str = "symmetric"

    @classmethod
    def make(cls, data: InteractionData, config: Config) -> LightGCN:
        """As in `Backbone`."""
        network = super().make(data, config)
        network.norm = config.graph_norm
        return network

    def begin_phase(self, split: Split) -> None:
        """As in `GraphConvolution`; keep each node's share of the mean over itself and its neighbours."""
        super().begin_phase(split)
        degrees = (split.train.lengths, split.degree)
        self.shares = [
            torch.from_numpy(np.float32(1 / (degree + 1))[:, None]).to(self.item.weight.device) for degree in degrees
        ]  # [U, 1], [I, 1]

    def edge_weights(self, user_degree: np.ndarray, item_degree: np.ndarray) -> np.ndarray:
        """Compute 1 / sqrt(d_u d_i), or 1 where layers are means."""
        return np.ones(len(user_degree)) if self.norm == "rows" else (user_degree * item_degree) ** -0.5

    def layer(self, user: torch.Tensor, item: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the next layer of `user [U, d]` and `item [I, d]`."""
        to_users, to_items = self.spread(user, item)
        if self.norm != "rows":
            return to_users, to_items
        of_user, of_item = self.shares
        return (user + to_users) * of_user, (item + to_items) * of_item

    def vectors(self, user: torch.Tensor, item: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Average the layers 0 to L."""
        users, items = user, item  # [U, d], [I, d]
        for _ in range(self.layers):
            user, item = self.layer(user, item)
            users, items = users + user, items + item
        return users / (self.layers + 1), items / (self.layers + 1)

    def squared_norms(self, context: Tables, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """As in `Backbone`, of the tables: LightGCN weighs its parameters, not the propagated vectors."""
        return super().squared_norms(Tables(self.user.weight, self.item.weight), users, items)


class GCCF(GraphConvolution):
    """All layers side by side, each adding to the one before (Chen et al., AAAI 2020, in FDA's form).

    Edges weigh 1 / ((d_u + 1)(d_i + 1)), without the square root of the paper, and self-connections weigh 1, as in
    the code that FDA's numbers come from (Decision 28).
    """

    defaults: ClassVar = MatrixFactorisation.defaults | {"batch_size": 8192, "lr": 5e-3, "graph_layers": 2, "l2": 1e-3}
    defaults_under: ClassVar = {"fda": MatrixFactorisation.defaults_under["fda"] | {"lr": 2e-3}}

    @classmethod
    def unread(cls, config: Config) -> frozenset[str]:
        """As in `Backbone`: the settings of towers, and the weights of edges, which are its own."""
        return TOWERS_ALONE | {"graph_norm"}

    def __init__(self, num_users: int, num_items: int, dim: int, layers: int):
        super().__init__(num_users, num_items, dim, layers)
        self.vector_width = dim * (layers + 1)

    def edge_weights(self, user_degree: np.ndarray, item_degree: np.ndarray) -> np.ndarray:
        """Compute 1 / ((d_u + 1)(d_i + 1))."""
        return 1 / ((user_degree + 1) * (item_degree + 1))

    def vectors(self, user: torch.Tensor, item: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the layers 0 to L side by side."""
        users, items = [user], [item]
        for _ in range(self.layers):
            to_users, to_items = self.spread(users[-1], items[-1])  # [U, d], [I, d]
            users.append(users[-1] + to_users)
            items.append(items[-1] + to_items)
        return torch.cat(users, dim=1), torch.cat(items, dim=1)  # [U, (L + 1) d], [I, (L + 1) d]
