"""The literal dot_compress formula."""

from __future__ import annotations

import torch


def literal(scorer, user, item):
    """X (X^T W + b) with X = [u; v] built in full, flattened and passed through the same MLP."""
    pair = torch.stack([user[:, None].expand_as(item), item], dim=2)  # [B, M, 2, D]
    product = pair @ (pair.transpose(2, 3) @ scorer.weight + scorer.bias)  # [B, M, 2, C]
    return scorer.mlp(product.flatten(2)).squeeze(-1)
