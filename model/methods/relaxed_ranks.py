"""Differentiable stand-ins for ranking metrics of one positive among negatives, from the scores of a row alone."""

from __future__ import annotations

import torch

SINKHORN_ROUNDS, SINKHORN_TOLERANCE = 50, 1e-6


def relaxed_rows(scores: torch.Tensor, count: int, temperature: float) -> torch.Tensor:
    """Compute the first `count` rows of the relaxed sorting permutation of `scores [B, n]`: [B, count, n].

    Row k is softmax_j(((n + 1 - 2k) s_j - sum_l |s_j - s_l|) / temperature), k from 1 (NeuralSort: Grover et al., ICLR
    2019).
    """
    size = scores.shape[1]
    distances = (scores[:, :, None] - scores[:, None]).abs().sum(2)  # [B, n]
    places = torch.arange(1, count + 1, dtype=scores.dtype, device=scores.device)
    logits = (size + 1 - 2 * places)[:, None] * scores[:, None] - distances[:, None]  # [B, count, n]
    return (logits / temperature).softmax(2)


def differentiable_hit(scores: torch.Tensor, k: int, temperature: float) -> torch.Tensor:
    """Compute how far the positive, first in `scores [B, n]`, is among the first `k` places: [B], in [0, 1].

    Source: FADE's DH@K (Yoo et al., WWW 2024). Equal scores give k/n. A sum over places above 1 is cut, and
    has no gradient.
    """
    return relaxed_rows(scores, min(k, scores.shape[1]), temperature)[:, :, 0].sum(1).clamp(0, 1)


def neural_ndcg(scores: torch.Tensor, k: int, temperature: float) -> torch.Tensor:
    """Compute the relaxed NDCG of the positive, first in `scores [B, n]`, over all places whatever `k` is: [B].

    All rows of the relaxed permutation are scaled until rows and columns sum to 1 (Sinkhorn), at most 50 times or to
    1e-6 (NeuralNDCG: Pobrotyn & Bialobrzeski, 2021).
    """
    relaxed = relaxed_rows(scores, scores.shape[1], temperature)  # [B, n, n]
    for _ in range(SINKHORN_ROUNDS):
        relaxed = relaxed / relaxed.sum(1, keepdim=True)
        relaxed = relaxed / relaxed.sum(2, keepdim=True)
        if (relaxed.detach().sum(1) - 1).abs().max() < SINKHORN_TOLERANCE:
            break
    places = torch.arange(1, scores.shape[1] + 1, dtype=scores.dtype, device=scores.device)
    return relaxed[:, :, 0] @ (1 / torch.log2(places + 1))


def approximate_ndcg(scores: torch.Tensor, k: int, temperature: float) -> torch.Tensor:
    """Compute 1/log2(1 + rank) of the positive, first in `scores [B, n]`, at a smooth rank, whatever `k` is: [B].

    The rank is 1 + sum_j sigmoid(temperature (s_j - s_0)) (ApproxNDCG: Qin et al., Information Retrieval 2010); the
    temperature is a slope, as in FADE's code.
    """
    rank = 1 + (temperature * (scores[:, 1:] - scores[:, :1])).sigmoid().sum(1)
    return 1 / torch.log2(1 + rank)
