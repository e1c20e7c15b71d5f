"""Cofair as its equations read: a layer for every level, a loop over levels, and weights and losses one by one."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F


def literal_layers(adapters) -> list[nn.Linear]:
    """One layer for each level, with the weights that `adapters` have one below the other."""
    layers, height = [], adapters.own.out_features // adapters.levels
    for number in range(adapters.levels):
        layer, rows = nn.Linear(adapters.own.in_features, height), slice(number * height, (number + 1) * height)
        with torch.no_grad():
            layer.weight.copy_(adapters.own.weight[rows])
            layer.bias.copy_(adapters.own.bias[rows])
        layers.append(layer)
    return layers


class LiteralCofair(nn.Module):
    """The networks of a Cofair method, copied, and its step as the paper's code takes it."""

    def __init__(self, method):
        super().__init__()
        self.options, self.means = method.options, {}
        self.shared, self.output = copy.deepcopy(method.adapters.shared), copy.deepcopy(method.adapters.output)
        self.own = nn.ModuleList(literal_layers(method.adapters))
        self.discriminator = copy.deepcopy(method.discriminator)
        adapted = [part for part in (self.shared, self.output, self.own) if part is not None]
        parameters = [parameter for part in adapted for parameter in part.parameters()]
        self.adapters_optimiser = torch.optim.Adam(parameters, lr=self.options.lr)
        self.discriminator_optimiser = torch.optim.Adam(self.discriminator.parameters(), lr=self.options.lr)

    def level(self, user: torch.Tensor, number: int) -> torch.Tensor:
        """Level `number` (from 1) of `user [B, D]`."""
        parts = [] if self.shared is None else [self.shared(user)]
        return self.output(F.leaky_relu(torch.cat([*parts, self.own[number - 1](user)], dim=1), 0.2))

    def row_losses(self, logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """What the discriminator loses on each row."""
        if logits.shape[1] > 1:
            return -logits.log_softmax(1)[torch.arange(len(codes)), codes]
        share = logits[:, 0].sigmoid()
        return -torch.where(codes == 1, share, 1 - share).log()

    def step_discriminator(self, vectors: torch.Tensor, codes: torch.Tensor) -> None:
        self.discriminator_optimiser.zero_grad()
        self.row_losses(self.discriminator(vectors), codes).mean().backward()
        self.discriminator_optimiser.step()

    def violations(self, losses: list[torch.Tensor], users: list[int]) -> torch.Tensor:
        """The mean of softplus(l_t - l_{t+1}) over levels and rows, or users."""
        found = []
        for easier, harder in pairwise(losses):
            terms = [F.softplus(easier[row] - harder[row]) for row in range(len(users))]
            if self.options.regularise == "users":
                by_user = {user: [] for user in users}
                for user, term in zip(users, terms, strict=True):
                    by_user[user].append(term)
                terms = [torch.stack(own).mean() for own in by_user.values()]
            found.append(torch.stack(terms).mean())
        return torch.stack(found).mean() if found else torch.zeros(())

    def step(self, table, items, batch, codes, apart: bool = True) -> dict[str, torch.Tensor]:
        """One step on `batch` from users `table [U, D]`, `items [I, D]` and groups `codes [U]`; what it reports.

        Without `apart` the adapters' loss reads the weights that the discriminator's steps change, as published.
        """
        options, user, target = self.options, table[batch.users], codes[batch.users]
        known = target >= 0
        weight, before, total, ranking, losses, later = options.lambda0, None, 0, 0, [], []
        for number in range(1, options.levels + 1):
            vectors = self.level(user, number)
            scores = torch.stack([(vectors * items[column]).sum(1) for column in batch.items.T], dim=1)
            ranked = -(1e-10 + (scores[:, :1] - scores[:, 1:]).sigmoid()).log().mean()
            # the norms of items are constants, which a run does not report
            ranked = ranked + options.rho * torch.linalg.matrix_norm(vectors, "fro") / len(user)
            met = {name: part.detach().clone() for name, part in self.discriminator.named_parameters()}
            logits = functional_call(self.discriminator, met, (vectors,)) if apart else self.discriminator(vectors)
            rows = self.row_losses(logits[known], target[known])
            losses.append(rows)
            self.means[f"adversary/t{number}"] = rows.mean()
            if before is not None:
                weight = weight + options.alpha * (1 - (rows.mean().item() - before))
            before = rows.mean().item()
            ranking = ranking + ranked / options.levels
            total = total + (ranked - weight * rows.mean()) / options.levels
            if options.disc_update == "interleaved":
                self.step_discriminator(vectors.detach()[known], target[known])
            else:
                later.append(vectors.detach()[known])
        monotonicity = self.violations(losses, batch.users[known].tolist())
        total = total + options.beta * monotonicity
        self.adapters_optimiser.zero_grad()
        total.backward()
        self.adapters_optimiser.step()
        for vectors in later:
            self.step_discriminator(vectors, target[known])
        return {"loss": total, "ranking": ranking, "monotonicity": monotonicity, **self.means}
