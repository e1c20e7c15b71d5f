"""FADE's losses as its formulas read: a loop over rows, places and items, in plain torch."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F


def literal_permutation(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """The relaxed permutation [n, n] of the scores `[n]` of one row (NeuralSort)."""
    size, rows = len(scores), []
    for place in range(1, size + 1):
        logits = []
        for own in scores:
            logits.append((size + 1 - 2 * place) * own - sum((own - other).abs() for other in scores))
        powers = [(logit / temperature - max(logits).detach() / temperature).exp() for logit in logits]
        rows.append(torch.stack([power / sum(powers) for power in powers]))
    return torch.stack(rows)


def literal_hit(scores: torch.Tensor, k: int, temperature: float) -> torch.Tensor:
    """How far the first of the scores `[n]` of one row is among the first k places."""
    permutation = literal_permutation(scores, temperature)
    total = sum(permutation[place, 0] for place in range(min(k, len(scores))))
    return total if total <= 1 else torch.ones(())


def doubly_stochastic(permutation: torch.Tensor) -> torch.Tensor:
    """`permutation [n, n]` scaled until rows and columns sum to 1."""
    for _ in range(50):
        permutation = permutation / permutation.sum(0, keepdim=True)
        permutation = permutation / permutation.sum(1, keepdim=True)
    return permutation


def literal_neural_ndcg(scores: torch.Tensor, k: int, temperature: float) -> torch.Tensor:
    """The relaxed NDCG of the first of the scores `[n]` of one row."""
    permutation = doubly_stochastic(literal_permutation(scores, temperature))
    return sum(permutation[place, 0] / math.log2(place + 2) for place in range(len(scores)))


def literal_approximate_ndcg(scores: torch.Tensor, k: int, temperature: float) -> torch.Tensor:
    """1 / log2(1 + the smooth rank) of the first of the scores `[n]` of one row."""
    rank = 1 + sum(1 / (1 + (-temperature * (other - scores[0])).exp()) for other in scores[1:])
    return 1 / torch.log2(1 + rank)


LITERAL = {
    "hit": literal_hit,
    "neural_ndcg": literal_neural_ndcg,
    "approx_ndcg": literal_approximate_ndcg,
    "score": lambda scores, k, temperature: scores[0],
}


class LiteralFADE:
    """A copy of the tables of a matrix factorisation, and FADE's step on them row by row."""

    def __init__(self, method):
        self.options, self.side = method.options, method.side
        self.user, self.item = (
            copy.deepcopy(table.weight.detach()).requires_grad_()
            for table in (method.backbone.user, method.backbone.item)
        )
        config = method.config
        self.optimiser = torch.optim.Adam([self.user, self.item], lr=config.lr, weight_decay=config.weight_decay)

    def step(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """One step on `batch`; the ranking loss and lambda times the fairness loss."""
        options, ranking, sides = self.options, [], {0: [], 1: []}
        for user, items in zip(batch.users, batch.items, strict=True):
            scores = torch.stack([self.user[user] @ self.item[item] for item in items])
            ranking += [-(scores[0] - other).sigmoid().log() for other in scores[1:]]
            code = int(self.side[user])
            if code >= 0:
                sides[code].append(LITERAL[options.measure](scores, options.k, options.temperature))
        loss, fairness = torch.stack(ranking).mean(), torch.zeros(())
        if sides[0] and sides[1]:
            gap = sum(sides[0]) / len(sides[0]) - sum(sides[1]) / len(sides[1])
            gap = gap.abs() if options.form == "absolute" else gap
            fairness = options.weight * (1 + gap.exp()).log()
        self.optimiser.zero_grad()
        (loss + fairness).backward()
        self.optimiser.step()
        return loss.detach(), fairness.detach()


class LiteralAdversary(nn.Module):
    """Tables and networks of a FADEAdversary without dropout, copied, and its step as the released code takes it."""

    def __init__(self, method):
        super().__init__()
        self.options, self.codes = method.options, method.codes
        backbone, config = method.backbone, method.config
        self.user, self.item = copy.deepcopy(backbone.user), copy.deepcopy(backbone.item)
        width = backbone.vector_width
        self.layers = nn.ModuleList([nn.Linear(width, 2 * width), nn.Linear(2 * width, width)])
        self.norm = nn.BatchNorm1d(width)
        widths = [width, 2 * width, 4 * width, 2 * width, 2 * width, width, width // 2, int(method.codes.max()) + 1]
        self.readers = nn.ModuleList([nn.Linear(*pair) for pair in pairwise(widths)])
        sources = [method.filter.layers[0], method.filter.layers[2], method.filter.norm]
        sources += [layer for layer in method.discriminator if isinstance(layer, nn.Linear)]
        for own, source in zip([*self.layers, self.norm, *self.readers], sources, strict=True):
            own.load_state_dict(source.state_dict())
        spared = [self.norm.bias, *(layer.bias for layer in self.layers)]
        decayed = [self.user.weight, self.item.weight, self.norm.weight, *(layer.weight for layer in self.layers)]
        groups = [{"params": decayed}, {"params": spared, "weight_decay": 0}]
        decay = config.weight_decay
        self.optimiser = torch.optim.Adam(groups, lr=config.lr, weight_decay=decay)
        self.reader_optimiser = torch.optim.Adam(self.readers.parameters(), lr=config.lr, weight_decay=decay)

    def filtered(self, user: torch.Tensor) -> torch.Tensor:
        """The filtered `user [B, D]`, normalised by hand."""
        for layer in self.layers:
            user = F.leaky_relu(layer(user), 0.01)
        mean, variance = user.mean(0), user.var(0, correction=0)
        return self.norm.weight * (user - mean) / (variance + 1e-5).sqrt() + self.norm.bias

    def group_loss(self, user: torch.Tensor, users: torch.Tensor) -> torch.Tensor:
        """The mean over rows of known group of minus the logarithm of the group's probability."""
        for number, layer in enumerate(self.readers, 1):
            user = layer(user)
            user = user if number == len(self.readers) else F.leaky_relu(user, 0.2)
        probability = user.softmax(1)
        found = [-probability[row, code].log() for row, code in enumerate(self.codes[users]) if code >= 0]
        return torch.stack(found).mean() if found else torch.zeros(())

    def step(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """One step on `batch`; the ranking loss and the discriminator's, as the model met it."""
        user = self.filtered(self.user(batch.users))
        scores = torch.stack([(user * self.item(items)).sum(1) for items in batch.items.T], 1)
        ranking = -(scores[:, :1] - scores[:, 1:]).sigmoid().log().mean()
        met = self.group_loss(user, batch.users)
        self.optimiser.zero_grad()
        (ranking - self.options.weight * met).backward()
        self.optimiser.step()
        for _ in range(self.options.discriminator_steps):
            self.reader_optimiser.zero_grad()
            self.group_loss(user.detach(), batch.users).backward()
            self.reader_optimiser.step()
        return ranking.detach(), met.detach()
