"""The two-tower step written row by row, as published code does it: the twin that the benchmarks compare with.

Every scored row (the positive and each negative of each positive) draws a history of its own in Python, carries its own
user, item and history features, and goes through both towers and the literal dot_compress, `X (X^T W + b)` with
X = [u; v]. Nothing is shared between rows.
"""

from __future__ import annotations

import numpy as np
import torch

from data.structs import History, Split
from fairness_utils import catalogue_log_weights
from model.losses import margin_ranking_loss
from model.runs.config import Config
from tests.support.literal_scorer import literal


class LiteralStep:
    """A training step over rows, with the parameters of a given two-tower `backbone`."""

    def __init__(self, backbone, split: Split, config: Config):
        self.backbone, self.split, self.config = backbone, split, config
        self.optimiser = torch.optim.Adam(backbone.parameters(), lr=config.lr)
        self.log_weights = catalogue_log_weights(split.histories, split.degree, config.sampling_softmax_temp)
        self.rng = np.random.default_rng(0)

    def draw_history(self, user: int, target: int) -> np.ndarray:
        """Draw up to N of the user's items without replacement, not the target."""
        entries = slice(self.split.histories.indptr[user], self.split.histories.indptr[user + 1])
        items, log_weights = self.split.histories.item[entries], self.log_weights[entries]
        allowed = items != target
        items, log_weights = items[allowed], log_weights[allowed]
        if not len(items):
            return items
        keys = log_weights + self.rng.gumbel(size=len(items))
        return items[np.sort(np.argsort(-keys)[: self.config.sample_size])]

    def row_features(self, user: int, item: int, history: np.ndarray) -> tuple[dict, ...]:
        """Gather one row's table rows, of the user, of the item and of every history item, column by column."""
        tables = []
        for encoder, rows in (
            (self.backbone.user_encoder, [user]),
            (self.backbone.item_encoder, [item]),
            (self.backbone.item_encoder, [*history, *[0] * (self.config.sample_size - len(history))]),
        ):
            tables.append({name: getattr(encoder, f"table_{name}")[torch.tensor(rows)] for name in encoder.columns})
        return tuple(tables)

    @staticmethod
    def embed(encoder, columns: dict[str, torch.Tensor]) -> torch.Tensor:
        """Embed gathered table rows: features `[..., F]`."""
        return torch.cat([module(columns[name]) for name, module in encoder.columns.items()], dim=-1)

    def scores(self, users: torch.Tensor, items: torch.Tensor, history: History | None) -> torch.Tensor:
        """Score `items [B, 1 + M]` (positive first); without a given `history [B, N]` every score draws its own."""
        rows, masks = [], []
        for row, user in enumerate(users.tolist()):
            for item in items[row].tolist():
                if history is None:
                    past = self.draw_history(user, int(items[row, 0]))
                else:
                    past = history.items[row][history.mask[row]].numpy()
                rows.append(self.row_features(user, item, past))
                masks.append(torch.arange(self.config.sample_size) < len(past))
        user_side, item_side, past_side = (
            {name: torch.stack([part[name] for part in side]) for name in side[0]} for side in zip(*rows, strict=True)
        )
        return self.forward(user_side, item_side, past_side, torch.stack(masks)).view(items.shape)

    def forward(self, user_side: dict, item_side: dict, past_side: dict, mask: torch.Tensor) -> torch.Tensor:
        """Score R rows with features of their own: `[R]`."""
        backbone = self.backbone
        user = self.embed(backbone.user_encoder, user_side)[:, 0]
        if backbone.synthesis is not None:
            past = self.embed(backbone.item_encoder, past_side)  # [R, N, F]
            place = torch.arange(mask.numel()).view(mask.shape)
            user = torch.cat([user, backbone.synthesis(user, past.flatten(0, 1), place, mask)], dim=1)
        user = backbone.user_tower(user)
        item = backbone.item_tower(self.embed(backbone.item_encoder, item_side)[:, 0])
        return literal(backbone.scorer, user, item[:, None])[:, 0]

    def train(self, sampler, edges: torch.Tensor) -> None:
        """Take one step on the train edges `edges [B]`: draw negatives, gather rows, forward, backward, Adam."""
        users, positives = sampler.user[edges], sampler.item[edges]
        known = [set(self.split.train[user].tolist()) for user in users.tolist()]
        items = []
        for row, positive in enumerate(positives.tolist()):
            negatives: list[int] = []
            while len(negatives) < self.config.num_negatives:
                item = int(self.rng.integers(self.split.num_items))
                if item not in known[row]:
                    negatives.append(item)
            others = [item for item in positives.tolist() if item not in known[row]]
            fill = self.config.in_batch_negatives
            negatives += self.rng.choice(others or negatives, size=fill).tolist()
            items.append([positive, *negatives])
        loss = margin_ranking_loss(self.scores(users, torch.tensor(items), None))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
