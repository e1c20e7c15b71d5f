"""Ranking losses over the scores of a positive and its negatives, each a mean over the batch."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def margin_ranking_loss(scores: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """Compute the mean of max(0, margin - positive + negative) over `scores [B, 1 + M]`, positive first.

    Source: BUHS (Balasubramanian et al., RecSys 2024).
    """
    return (margin - scores[:, :1] + scores[:, 1:]).clamp(min=0).mean()


def bpr_loss(scores: torch.Tensor) -> torch.Tensor:
    """Compute the mean of -log sigmoid(positive - negative) over `scores [B, 1 + M]`, positive first.

    Source: Rendle et al., UAI 2009.
    """
    return F.softplus(scores[:, 1:] - scores[:, :1]).mean()


def softmax_loss(scores: torch.Tensor) -> torch.Tensor:
    """Compute the mean over rows of -log softmax of the positive among `scores [B, 1 + M]`, positive first."""
    return (scores.logsumexp(1) - scores[:, 0]).mean()


def cross_entropy_loss(scores: torch.Tensor) -> torch.Tensor:
    """Compute the mean binary cross-entropy of `scores [B, 1 + M]`, label 1 for the first (He et al., WWW 2017)."""
    return (F.softplus(-scores[:, 0]).sum() + F.softplus(scores[:, 1:]).sum()) / scores.numel()
