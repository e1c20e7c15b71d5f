"""History synthesis: reduce a sampled history to one vector that joins the user's features.

Every module respects the mask and gives zeros for an empty history (Decision 4), and is deterministic: upstream's GRU
starts from random noise and its attention mixes up heads; `--upstream_compat` restores the former only (Decision 5).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class MeanSynthesis(nn.Module):
    """The mean of the history's item features."""

    reads_user = False

    def __init__(self, user_width: int, item_width: int, length: int, heads: int):
        super().__init__()
        self.width = item_width

    def forward(self, user: torch.Tensor, features: torch.Tensor, items: torch.Tensor, mask: torch.Tensor):
        """Reduce rows `items [B, N]` of `features [n, F]` under `mask [B, N]`, given `user [B, U]`: `[B, width]`."""
        weight = mask.to(features.dtype)
        weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
        return F.embedding_bag(items, features, mode="sum", per_sample_weights=weight)


class AttentionSynthesis(nn.Module):
    """One query from the user's features over the history's items; values are the raw item features."""

    reads_user = True

    def __init__(self, user_width: int, item_width: int, length: int, heads: int, projection: int = 96):
        super().__init__()
        self.heads, self.width = heads, item_width
        self.query = nn.Linear(user_width, projection)
        self.key = nn.Linear(item_width, projection)
        self.output = nn.Linear(item_width, item_width)

    def forward(self, user: torch.Tensor, features: torch.Tensor, items: torch.Tensor, mask: torch.Tensor):
        """Reduce rows `items [B, N]` of `features [n, F]` under `mask [B, N]`: `[..., B, width]`.

        `user [..., B, U]` asks; leading dimensions are several questions about the same histories.
        """
        rows, length = items.shape
        query = self.query(user).unflatten(-1, (self.heads, -1))  # [..., B, h, p]
        key = F.embedding(items, self.key(features)).view(rows, length, self.heads, -1)  # [B, N, h, p]
        logits = torch.einsum("...bhp,bnhp->...bhn", query, key) * query.shape[-1] ** -0.5
        weight = logits.masked_fill(~mask[:, None], torch.finfo(logits.dtype).min).softmax(-1) * mask[:, None]
        value = F.embedding(items, features).view(rows, length, self.heads, -1)  # [B, N, h, F / h]
        mixed = torch.einsum("...bhn,bnhf->...bhf", weight, value).flatten(-2)
        return self.output(mixed) * mask.any(1, keepdim=True)


class GRULayer(nn.Module):
    """One gated recurrent layer that takes its input already projected and skips masked steps."""

    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        self.hidden = hidden
        self.input = nn.Linear(inputs, 3 * hidden)
        self.recurrent = nn.Linear(hidden, 3 * hidden)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)

    def forward(self, projected: torch.Tensor, mask: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Run over `projected [N, B, 3h]` with `mask [N, B, 1]` from `state [B, h]`: states `[N, B, h]`."""
        outputs = []
        # the state stays float32 under bf16: rounding would build up over the steps
        for step, allowed in zip(projected.to(state.dtype).unbind(0), mask.unbind(0), strict=True):
            gates = self.recurrent(state).to(state.dtype)
            reset_update = torch.sigmoid(step[:, : 2 * self.hidden] + gates[:, : 2 * self.hidden])
            reset, update = reset_update.chunk(2, dim=1)
            candidate = torch.tanh(step[:, 2 * self.hidden :] + reset * gates[:, 2 * self.hidden :])
            # update * allowed = 1 would keep the state: a masked step keeps it whole
            state = torch.lerp(state, candidate, (1 - update) * allowed)
            outputs.append(state)
        return torch.stack(outputs)


class GRUSynthesis(nn.Module):
    """A two-layer GRU over the history in time order; all N outputs are flattened."""

    reads_user = False

    def __init__(self, user_width: int, item_width: int, length: int, heads: int, hidden: int = 64):
        super().__init__()
        self.hidden, self.width = hidden, length * hidden
        self.layers = nn.ModuleList([GRULayer(item_width, hidden), GRULayer(hidden, hidden)])
        self.random_state_generator: torch.Generator | None = None

    def _initial_state(self, rows: int, features: torch.Tensor) -> torch.Tensor:
        shape = (rows, self.hidden)
        if self.random_state_generator is None:
            return features.new_zeros(shape)
        return torch.randn(shape, generator=self.random_state_generator, device=features.device, dtype=features.dtype)

    def forward(self, user: torch.Tensor, features: torch.Tensor, items: torch.Tensor, mask: torch.Tensor):
        """Reduce rows `items [B, N]` of `features [n, F]` under `mask [B, N]`, given `user [B, U]`: `[B, width]`."""
        rows = len(items)
        steps = mask.T[:, :, None].to(features.dtype)
        first, second = self.layers
        # histories share items: projecting the n distinct rows once saves most of the first layer's products
        projected = F.embedding(items.T, first.input(features))
        states = first(projected, steps, self._initial_state(rows, features))
        states = second(second.input(states), steps, self._initial_state(rows, features))
        return (states * steps).transpose(0, 1).flatten(1)


SYNTHESIZERS = {"mean": MeanSynthesis, "attention": AttentionSynthesis, "gru": GRUSynthesis}
