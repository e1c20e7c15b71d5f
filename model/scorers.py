"""How a user vector and an item vector are scored, without the matrix of pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from model.layers import mlp

# 1 MiB of float32, a core's share of cache on most machines
CACHED_NUMBERS = 1 << 18
# (user, item) pairs that a CPU scores at a time
TILE_PAIRS = 1 << 14


def _users_at_a_time(user: torch.Tensor, pairs: int, items: int) -> int:
    """Say how many rows of `user [B, D]` to score at a time with `items` each, at most `pairs` pairs together.

    On a CPU the numbers of a part should stay in its cache, and large blocks of fresh memory are slow; another device
    takes all rows at once.
    """
    return max(1, pairs // items) if user.device.type == "cpu" else len(user)


class PairProducts(torch.autograd.Function):
    """Inner products of users with chosen rows of a matrix; neither pass builds the `[B, M, D]` of gathered vectors."""

    @staticmethod
    def forward(context, user: torch.Tensor, item: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Multiply `user [B, D]` with `item [n, D]` at `rows [B, M]`: `[B, M]`."""
        context.save_for_backward(user, item, rows)
        size = _users_at_a_time(user, CACHED_NUMBERS // user.shape[1], rows.shape[1])
        parts = zip(user.split(size), rows.split(size), strict=True)
        return torch.cat([F.embedding(row, item).mul_(part[:, None]).sum(-1) for part, row in parts])

    @staticmethod
    def backward(context, gradient: torch.Tensor):
        """Give the gradients that are asked for, both weighted sums of rows.

        For the items, pairs are put in the order of their items.
        """
        user, item, rows = context.saved_tensors
        for_user = for_item = None
        if context.needs_input_grad[0]:
            for_user = F.embedding_bag(rows, item, mode="sum", per_sample_weights=gradient.contiguous())
        if context.needs_input_grad[1]:
            flat, order = rows.flatten().sort(stable=True)  # [B * M]
            starts = torch.searchsorted(flat, torch.arange(len(item), device=rows.device))  # [n]
            weight = gradient.flatten()[order]  # [B * M]
            owner = order.div(rows.shape[1], rounding_mode="floor")  # [B * M]: the row of each pair
            for_item = F.embedding_bag(owner, user, starts, mode="sum", per_sample_weights=weight)
        return for_user, for_item, None


class DotScorer(nn.Module):
    """The inner product of user and item vectors."""

    floats_per_pair = 1

    def __init__(self, dim: int):
        super().__init__()

    def item_side(self, vectors: torch.Tensor) -> torch.Tensor:
        """Compute what scoring needs of each item from its vector `[n, D]`: here the vector."""
        return _at_least_float32(vectors)

    def forward(self, user: torch.Tensor, item: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Score `user [B, D]` with the `item [n, D]` at `rows [B, M]`: `[B, M]`."""
        return PairProducts.apply(_at_least_float32(user), item, rows)

    def catalogue(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Score `user [b, D]` with all of `item [m, D]`: `[b, m]`."""
        return user @ item.T


def _at_least_float32(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


class DotCompressScorer(nn.Module):
    """BUHS's dot_compress scorer in closed form (Decision 9).

    With X = [u; v], `X (X^T W + b)` flattened depends on five scalars of the pair only, `u.u, u.v, v.v, sum(u),
    sum(v)`, so the MLP's first layer folds with W and b into a map from those five numbers to the hidden width. The
    LayerNorm behind it folds too: the hidden numbers' mean and variance are a linear and a quadratic form of the five.
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
        """Compute what scoring needs of each item from its vector `[n, D]`: [n, D + 2], v.v and sum(v) at the end."""
        # squares and sums over a vector need more digits than bf16 has
        vectors = _at_least_float32(vectors)
        return torch.cat([vectors, vectors.square().sum(-1, keepdim=True), vectors.sum(-1, keepdim=True)], dim=-1)

    def _folded(self) -> torch.Tensor:
        """Fold the first layer into a [6, hidden] map of (u.u, u.v, v.v, sum u, sum v, 1)."""
        first = self.mlp[0]
        user_half, item_half = first.weight.split(self.weight.shape[1], dim=1)  # [hidden, compress] each
        from_user, from_item = self.weight @ user_half.T, self.weight @ item_half.T  # [2, hidden] each
        return torch.stack(
            [
                from_user[0],
                from_user[1] + from_item[0],
                from_item[1],
                user_half @ self.bias,
                item_half @ self.bias,
                first.bias,
            ]
        )

    def forward(self, user: torch.Tensor, item: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Score `user [B, D]` with the `item [n, D + 2]` at `rows [B, M]`: `[B, M]`."""
        user = _at_least_float32(user)
        cross = PairProducts.apply(user, item[:, : self.dim].contiguous(), rows)  # [B, M]
        scalars = F.embedding(rows, item[:, self.dim :])  # [B, M, 2]
        size = _users_at_a_time(user, TILE_PAIRS, rows.shape[1])
        parts = zip(user.split(size), cross.split(size), scalars.split(size), strict=True)
        return torch.cat([self._score(*part) for part in parts])

    def catalogue(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Score `user [b, D]` with all of `item [m, D + 2]`: `[b, m]`."""
        return self._score(user, user @ item[:, : self.dim].T, item[None, :, self.dim :])

    def _score(self, user: torch.Tensor, cross: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
        """Score pairs with `cross [b, m]` of u.v, `user [b, D]` and `scalars [b or 1, m, 2]` of v.v and sum(v)."""
        square, total = user.square().sum(-1)[:, None], user.sum(-1)[:, None]  # [b, 1] each
        numbers = [square, cross, scalars[..., 0], total, scalars[..., 1], torch.ones_like(cross)]
        numbers = torch.stack([value.expand_as(cross) for value in numbers], dim=-1)  # [b, m, 6]
        norm, last = self.mlp[1], self.mlp[-1]
        with torch.autocast(user.device.type, enabled=False):
            first = self._folded()  # [6, hidden]
            centred = first - first.mean(1, keepdim=True)
            # terms of the quadratic form cancel: float64 keeps the digits
            wide, form = numbers.double(), (centred @ centred.T).double() / centred.shape[1]
            variance = (wide @ form * wide).sum(-1, keepdim=True)  # [b, m, 1]
            scale = (variance.clamp(min=0) + norm.eps).rsqrt().to(numbers.dtype)
            hidden = F.linear(numbers * scale, (centred * norm.weight).T, norm.bias)  # [b, m, hidden]
        hidden = _at_least_float32(self.mlp[2:-1](hidden))
        with torch.autocast(user.device.type, enabled=False):
            # a product with a vector: the backward pass of a one-column Linear takes several times as long
            return hidden @ last.weight[0] + last.bias  # [b, m]
