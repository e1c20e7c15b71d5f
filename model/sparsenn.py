"""SparseNN: history synthesis and the two towers of BUHS.

Synthesis reduces a sampled history to one vector that joins the user's features. Every module respects the mask and
gives zeros for an empty history (Decision 4), and is deterministic: upstream's GRU starts from random noise and its
attention mixes up heads; `--upstream_compat` restores the former only (Decision 5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data.structs import FeatureTable, History, InteractionData
from model import SCORERS, SYNTHESIZERS
from model.backbone import GRAPHS_ALONE, Backbone
from model.layers import FeatureEncoder, mlp
from model.runs.config import Config
from model.runs.streams import torch_generator


class MeanSynthesis(nn.Module):
    """Mean of the features of the history's items."""

    reads_user = False

    def __init__(self, user_width: int, item_width: int, length: int, heads: int):
        super().__init__()
        self.width = item_width

    def forward(self, user: torch.Tensor, features: torch.Tensor, items: torch.Tensor, mask: torch.Tensor):
        """Reduce rows `items [B, N]` of `features [n, F]` under `mask [B, N]`, given `user [B, U]`: `[B, width]`."""
        weight = mask.to(features.dtype)  # [B, N]
        weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
        return F.embedding_bag(items, features, mode="sum", per_sample_weights=weight)


class AttentionSynthesis(nn.Module):
    """Attention over the history's items with one query from the user's features; values are the raw item features."""

    reads_user = True

    def __init__(self, user_width: int, item_width: int, length: int, heads: int, projection: int = 96):
        super().__init__()
        if projection % heads or item_width % heads:
            raise ValueError(
                f"--attention_heads={heads} must divide both the width {projection} of queries and that of the items' "
                f"features, {item_width} (columns x --embedding_dim): change one of the two"
            )
        self.heads, self.width = heads, item_width
        self.query = nn.Linear(user_width, projection)
        self.key = nn.Linear(item_width, projection)
        self.output = nn.Linear(item_width, item_width)

    def forward(self, user: torch.Tensor, features: torch.Tensor, items: torch.Tensor, mask: torch.Tensor):
        """Reduce `items [B, N]` of `features [n, F]` under `mask [B, N]` for `user [..., B, U]`: `[..., B, width]`."""
        rows, length = items.shape
        query = self.query(user).unflatten(-1, (self.heads, -1))  # [..., B, h, p]
        key = F.embedding(items, self.key(features)).view(rows, length, self.heads, -1)  # [B, N, h, p]
        logits = torch.einsum("...bhp,bnhp->...bhn", query, key) * query.shape[-1] ** -0.5  # [..., B, h, N]
        weight = logits.masked_fill(~mask[:, None], torch.finfo(logits.dtype).min).softmax(-1) * mask[:, None]
        value = F.embedding(items, features).view(rows, length, self.heads, -1)  # [B, N, h, F / h]
        mixed = torch.einsum("...bhn,bnhf->...bhf", weight, value).flatten(-2)  # [..., B, F]
        return self.output(mixed) * mask.any(1, keepdim=True)


class GRULayer(nn.Module):
    """One gated recurrent layer whose input is projected already; a masked step leaves the state as it is."""

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
            gates = self.recurrent(state).to(state.dtype)  # [B, 3h]
            reset_update = torch.sigmoid(step[:, : 2 * self.hidden] + gates[:, : 2 * self.hidden])
            reset, update = reset_update.chunk(2, dim=1)  # [B, h] each
            candidate = torch.tanh(step[:, 2 * self.hidden :] + reset * gates[:, 2 * self.hidden :])
            # allowed is 0 in a masked step, which so keeps the state
            state = torch.lerp(state, candidate, (1 - update) * allowed)
            outputs.append(state)
        return torch.stack(outputs)  # [N, B, h]


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
        steps = mask.T[:, :, None].to(features.dtype)  # [N, B, 1]
        first, second = self.layers
        # histories share items: projecting the n distinct rows once saves most of the first layer's products
        projected = F.embedding(items.T, first.input(features))  # [N, B, 3h]
        states = first(projected, steps, self._initial_state(rows, features))  # [N, B, h]
        states = second(second.input(states), steps, self._initial_state(rows, features))
        states = (states * steps).transpose(0, 1).flatten(1)  # [B, N * h]
        # padded where no history has N items
        return F.pad(states, (0, self.width - states.shape[1]))


VECTOR_WIDTH = 128
# the column that belongs to one user alone
OWN_FEATURE = "id"


@dataclass(frozen=True)
class StepContext:
    """The item side of one step, for its n items.

    `features [n, F]` are their encoded features, `scored [n, D']` their vectors and whatever else the scorer needs of
    them, and `row [I]` says in which row an item id stands (None: ids are rows).
    """

    features: torch.Tensor
    scored: torch.Tensor
    row: torch.Tensor | None

    def local(self, items: torch.Tensor) -> torch.Tensor:
        """Give the rows of this context that hold `items [...]`."""
        return items if self.row is None else self.row[items]


@dataclass(frozen=True)
class SparseNNOptions:
    """Sizes of the network; `synthesis_type` "none" is the base model without a history."""

    synthesis_type: str = "mean"
    sample_size: int = 15
    attention_heads: int = 1
    scorer: str = "dot_compress"
    embedding_dim: int = 96
    user_hidden: tuple[int, ...] = (512, 256, 128)
    item_hidden: tuple[int, ...] = (256, 128)
    base_hidden: tuple[int, ...] = (128, 64)
    sparse_users: bool = False


class SparseNN(Backbone):
    """Two towers driven by the feature schema, for every data set (BUHS, RecSys 2024)."""

    vector_width = VECTOR_WIDTH

    @classmethod
    def unread(cls, config: Config) -> frozenset[str]:
        """As in `Backbone`: the settings of graphs and id tables, and the penalty on vectors of ids."""
        return GRAPHS_ALONE | {"l2", "table_start"}

    @classmethod
    def history(cls, config: Config) -> str | None:
        """As in `Backbone`: weighted samples, and none in the base model."""
        return None if config.synthesis_type == "none" else "sampled"

    @classmethod
    def make(cls, data: InteractionData, config: Config) -> SparseNN:
        """As in `Backbone`."""
        users = data.users
        if config.mask_sensitive_feature and config.attribute in users.columns:
            users = users.without((config.attribute,))
        # beyond the longest history a GRU would only have weights that see zeros
        longest = int(np.bincount(data.user_id).max())
        options = SparseNNOptions(
            synthesis_type=config.synthesis_type,
            sample_size=config.sample_size if config.upstream_compat else min(config.sample_size, longest),
            embedding_dim=config.embedding_dim,
            attention_heads=config.attention_heads,
            scorer=config.scorer,
            user_hidden=config.user_hidden,
            item_hidden=config.item_hidden,
            sparse_users=config.sparse_updates,
        )
        return cls(users, data.items, options)

    @classmethod
    def build(cls, data: InteractionData, config: Config, seed: int, device: torch.device) -> SparseNN:
        """As in `Backbone`; upstream's GRU draws its own noise."""
        network = super().build(data, config, seed, device)
        if config.upstream_compat and config.synthesis_type == "gru":
            network.synthesis.random_state_generator = torch_generator(seed, device)
        return network

    def __init__(self, users: FeatureTable, items: FeatureTable, options: SparseNNOptions):
        super().__init__()
        self.user_encoder = FeatureEncoder(users, options.embedding_dim, options.sparse_users)
        self.item_encoder = FeatureEncoder(items, options.embedding_dim)
        self.num_items = items.num_rows
        width, base = self.user_encoder.width, options.synthesis_type == "none"
        self.synthesis = None
        if not base:
            make = SYNTHESIZERS[options.synthesis_type]
            self.synthesis = make(width, self.item_encoder.width, options.sample_size, options.attention_heads)
            width += self.synthesis.width
        user_hidden = options.base_hidden if base else options.user_hidden
        item_hidden = options.base_hidden if base else options.item_hidden
        self.user_tower = mlp([width, *user_hidden, VECTOR_WIDTH], affine_norm=not base)
        self.item_tower = mlp([self.item_encoder.width, *item_hidden, VECTOR_WIDTH], affine_norm=not base)
        self.scorer = SCORERS[options.scorer](VECTOR_WIDTH)

    def prepare(self, items: torch.Tensor | None = None, item_noise: torch.Tensor | None = None) -> StepContext:
        """Run the item tower once on the distinct ones of `items [n]`, or on the catalogue where that is smaller
        (Decision 12).

        `item_noise [I, D]` is added to the items' vectors, not to their features, which histories read.
        """
        rows = row = None
        if items is not None and items.numel() < self.num_items:
            # repeats stay in on a GPU: the host would have to wait for the number of distinct items
            rows = torch.unique(items) if items.device.type == "cpu" else items
            row = torch.empty(self.num_items, dtype=torch.int64, device=items.device)
            row[rows] = torch.arange(len(rows), device=items.device)
        features = self.item_encoder(rows)  # [n, F]
        vectors = self.item_tower(features)  # [n, D]
        if item_noise is not None:
            vectors = vectors + (item_noise if rows is None else item_noise[rows])
        return StepContext(features, self.scorer.item_side(vectors), row)

    def encode_users(self, context: StepContext, users: torch.Tensor, history: History | None) -> torch.Tensor:
        """As in `Backbone`."""
        features, past = self.user_encoder(users), None  # [B, F]
        if self.synthesis is not None:
            past = self.synthesis(features, context.features, context.local(history.items), history.mask)  # [B, width]
        return self._user_vectors(features, past)

    def encode_users_apart(
        self, context: StepContext, users: torch.Tensor, history: History | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute `encode_users`, and the same vectors without a gradient to the users' id embeddings: [B, D] each."""
        features = self.user_encoder(users)
        shared = self.user_encoder.detach_columns(features, (OWN_FEATURE,))  # [B, F]
        past = shared_past = None
        if self.synthesis is not None:
            # both in one call where they differ, so that the history's items are gathered once
            reads = self.synthesis.reads_user
            queries = torch.stack([features, shared]) if reads else features  # [2, B, F] or [B, F]
            past = self.synthesis(queries, context.features, context.local(history.items), history.mask)
            past, shared_past = past if reads else (past, past)
        return self._user_vectors(features, past), self._user_vectors(shared, shared_past)

    def _user_vectors(self, features: torch.Tensor, past: torch.Tensor | None) -> torch.Tensor:
        return self.user_tower(features if past is None else torch.cat([features, past], dim=1))

    def encode_items(self, context: StepContext, items: torch.Tensor) -> torch.Tensor:
        """As in `Backbone`."""
        return F.embedding(context.local(items), context.scored)

    def score(self, context: StepContext, user: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Score `user [B, D]` with `items [B, M]`: `[B, M]`."""
        return self.scorer(user, context.scored, context.local(items))
