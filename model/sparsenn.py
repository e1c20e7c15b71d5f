"""The two-tower network of BUHS: a user tower that reads a sampled history, an item tower and a scorer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from data.structs import FeatureTable, History, Split
from model.layers import SCORERS, FeatureEncoder, mlp
from model.synthesis import SYNTHESIZERS

VECTOR_WIDTH = 128
# the column that is a user's own
OWN_FEATURE = "id"


@dataclass(frozen=True)
class StepContext:
    """Item side of one step: `features [n, F]` of its items, `scored [n, D']` (their vectors and what else the
    scorer needs of them) and `row [I]`, item id -> row, or None where rows are ids."""

    features: torch.Tensor
    scored: torch.Tensor
    row: torch.Tensor | None

    def local(self, items: torch.Tensor) -> torch.Tensor:
        """Rows of `items [...]` in this context."""
        return items if self.row is None else self.row[items]


@dataclass(frozen=True)
class SparseNNOptions:
    """Sizes of the network; None as `synthesis_type` is the base model without a history."""

    synthesis_type: str = "mean"
    sample_size: int = 15
    attention_heads: int = 1
    scorer: str = "dot_compress"
    embedding_dim: int = 96
    user_hidden: tuple[int, ...] = (512, 256, 128)
    item_hidden: tuple[int, ...] = (256, 128)
    base_hidden: tuple[int, ...] = (128, 64)
    sparse_users: bool = False


class SparseNN(nn.Module):
    """Two towers driven by the feature schema, for every data set (BUHS, RecSys 2024; design section 5)."""

    vector_width = VECTOR_WIDTH

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

    def begin_phase(self, split: Split) -> None:
        """Get ready for a phase on `split`: nothing here depends on it."""

    @property
    def history_kind(self) -> str | None:
        """The history that this backbone reads: a weighted sample, or none."""
        return None if self.synthesis is None else "sampled"

    @property
    def floats_per_pair(self) -> int:
        """Numbers that scoring one (user, item) pair keeps at a time: bounds the block size in ranking."""
        return self.scorer.floats_per_pair

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Shape `[I, D]` of the noise that `prepare` adds to what the item tower gives."""
        return self.num_items, VECTOR_WIDTH

    def prepare(self, items: torch.Tensor | None = None, item_noise: torch.Tensor | None = None) -> StepContext:
        """Run the item tower once on the distinct ones of `items [n]`, or on the smaller catalogue (Decision 12).

        `item_noise [I, D]` is added to the items' vectors, not to their features, which histories read.
        """
        rows = row = None
        if items is not None and items.numel() < self.num_items:
            # a GPU would have to tell the host how many distinct ones there are: there, repeats stay in
            rows = torch.unique(items) if items.device.type == "cpu" else items
            row = torch.empty(self.num_items, dtype=torch.int64, device=items.device)
            row[rows] = torch.arange(len(rows), device=items.device)
        features = self.item_encoder(rows)
        vectors = self.item_tower(features)
        if item_noise is not None:
            vectors = vectors + (item_noise if rows is None else item_noise[rows])
        return StepContext(features, self.scorer.item_side(vectors), row)

    def encode_users(self, context: StepContext, users: torch.Tensor, history: History | None) -> torch.Tensor:
        """User vectors `[B, D]` of `users [B]` with their `history`."""
        features, past = self.user_encoder(users), None
        if self.synthesis is not None:
            past = self.synthesis(features, context.features, context.local(history.items), history.mask)
        return self._user_vectors(features, past)

    def encode_users_apart(
        self, context: StepContext, users: torch.Tensor, history: History | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`encode_users`, and the same vectors again, from which no gradient reaches the users' id embeddings."""
        features = self.user_encoder(users)
        shared = self.user_encoder.detach_columns(features, (OWN_FEATURE,))
        past = shared_past = None
        if self.synthesis is not None:
            # both at once where they differ: the history's items are gathered once
            reads = self.synthesis.reads_user
            asked = torch.stack([features, shared]) if reads else features
            past = self.synthesis(asked, context.features, context.local(history.items), history.mask)
            past, shared_past = past if reads else (past, past)
        return self._user_vectors(features, past), self._user_vectors(shared, shared_past)

    def _user_vectors(self, features: torch.Tensor, past: torch.Tensor | None) -> torch.Tensor:
        return self.user_tower(features if past is None else torch.cat([features, past], dim=1))

    def encode_items(self, context: StepContext, items: torch.Tensor) -> torch.Tensor:
        """Items as the scorer reads them, `[..., D']` of `items [...]`: the first D numbers are the item's vector."""
        return F.embedding(context.local(items), context.scored)

    def score(self, context: StepContext, user: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Score `user [B, D]` with `items [B, M]`: `[B, M]`."""
        return self.scorer(user, context.scored, context.local(items))

    def score_catalogue(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Score `user [b, D]` with all of the encoded `item [m, D']`: `[b, m]`."""
        return self.scorer.catalogue(user, item)
