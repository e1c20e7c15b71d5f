"""Building blocks of the two-tower network: MLP, feature encoder and scorers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from data.structs import FeatureTable

# Decision 23: torch's default of 1 drowns what the history says (validation NDCG@10 .027 against .032 after 250 steps)
EMBEDDING_STD = 0.1


def mlp(widths: Sequence[int], affine_norm: bool = True) -> nn.Sequential:
    """Linear layers with LayerNorm and GELU between them and neither after the last (BUHS, section 3.5)."""
    layers = []
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        if index:
            layers += [nn.LayerNorm(inputs, elementwise_affine=affine_norm), nn.GELU()]
        layers.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*layers)


class FeatureEncoder(nn.Module):
    """Embed every column of a feature table with `dim` numbers and concatenate them: `[n, len(schema) * dim]`."""

    def __init__(self, table: FeatureTable, dim: int):
        super().__init__()
        self.width = len(table.schema) * dim
        self.columns = nn.ModuleDict()
        for spec in table.schema:
            if spec.kind == "categorical":
                self.columns[spec.name] = nn.Embedding(spec.size, dim)
                nn.init.normal_(self.columns[spec.name].weight, std=EMBEDDING_STD)
            else:
                # a multi-hot row times a matrix is the sum of its categories' embeddings, hence no bias there
                self.columns[spec.name] = nn.Linear(spec.size, dim, bias=spec.kind == "dense")
            self.register_buffer(f"table_{spec.name}", table.columns[spec.name], persistent=False)

    def forward(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Encode `rows [n]` of the table, or all of it."""
        parts = []
        for name, module in self.columns.items():
            column = getattr(self, f"table_{name}")
            parts.append(module(column if rows is None else column[rows]))
        return torch.cat(parts, dim=1)


class DotScorer(nn.Module):
    """The inner product of user and item vectors."""

    floats_per_pair = 1

    def item_side(self, vectors: torch.Tensor) -> torch.Tensor:
        """What scoring needs of each item, from its vector `[n, D]`: here the vector."""
        return vectors

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Score `user [B, D]` with `item [B, M, D]`: `[B, M]`."""
        return torch.einsum("bd,bmd->bm", user, item)

    def catalogue(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Score `user [b, D]` with all of `item [m, D]`: `[b, m]`."""
        return user @ item.T


def _at_least_float32(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


class DotCompressScorer(nn.Module):
    """BUHS's dot_compress scorer in closed form (Decision 9).

    With X = [u; v], `X (X^T W + b)` flattened depends on five scalars of the pair only, `u.u, u.v, v.v, sum(u),
    sum(v)`, so the MLP's first layer folds with W and b into a map from those five numbers to the hidden width.
    """

    def __init__(self, dim: int, compress: int = 64, hidden: Sequence[int] = (128, 64)):
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.empty(2, compress))
        self.bias = nn.Parameter(torch.zeros(compress))
        nn.init.uniform_(self.weight, -(dim**-0.5), dim**-0.5)
        self.mlp = mlp([2 * compress, *hidden, 1])
        self.floats_per_pair = 5 + 3 * sum(hidden)

    def item_side(self, vectors: torch.Tensor) -> torch.Tensor:
        """What scoring needs of each item, from its vector `[n, D]`: `[n, D + 2]` with v.v and sum(v) at the end."""
        # squares and sums over a vector need more digits than bf16 has
        vectors = _at_least_float32(vectors)
        return torch.cat([vectors, vectors.square().sum(-1, keepdim=True), vectors.sum(-1, keepdim=True)], dim=-1)

    def _folded(self) -> torch.Tensor:
        """The first layer as a `[5, hidden]` map of (u.u, u.v, v.v, sum u, sum v)."""
        first = self.mlp[0].weight
        user_half, item_half = first.split(self.weight.shape[1], dim=1)
        from_user, from_item = self.weight @ user_half.T, self.weight @ item_half.T
        return torch.stack(
            [from_user[0], from_user[1] + from_item[0], from_item[1], user_half @ self.bias, item_half @ self.bias]
        )

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Score `user [B, D]` with `item [B, M, D + 2]`: `[B, M]`."""
        return self._score(user, item, "bd,bmd->bm")

    def catalogue(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Score `user [b, D]` with all of `item [m, D + 2]`: `[b, m]`."""
        return self._score(user, item, "bd,md->bm")

    def _score(self, user: torch.Tensor, item: torch.Tensor, product: str) -> torch.Tensor:
        with torch.autocast(user.device.type, enabled=False):
            user = _at_least_float32(user)
            cross = torch.einsum(product, user, item[..., : self.dim])
            own, total = user.square().sum(-1)[:, None], user.sum(-1)[:, None]
            scalars = [own, cross, item[..., self.dim], total, item[..., self.dim + 1]]
            scalars = torch.stack([value.expand_as(cross) for value in scalars], dim=-1)  # [B, M, 5]
            hidden = F.linear(scalars, self._folded().T, self.mlp[0].bias)
        return self.mlp[1:](hidden).squeeze(-1)


SCORERS = {"dot_compress": DotCompressScorer, "dot": lambda dim: DotScorer()}
