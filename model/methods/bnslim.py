"""BN-SLIM: neighbourhoods of users that are balanced over groups (Burke, Sonboli & Ordonez-Gauger, FAT* 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from data.options import check_options
from data.structs import Group
from model import BACKBONES
from model.methods.fitted import Fitted
from model.runs.config import Config
from model.runs.environment import Environment
from model.slim import Fit, Penalties


def group_signs(group: Group) -> torch.Tensor:
    """Make S [U, G], with which |w S|^2 measures how unevenly neighbour weights w [U] fall on the groups.

    It is G / (G - 1) times the sum over groups of the squared deviation of the group's total weight from the groups'
    mean: of two groups, the squared difference. Users of unknown group count nothing.
    """
    codes, groups = torch.from_numpy(group.codes), group.num_groups
    known = codes >= 0
    members = F.one_hot(codes.clamp(min=0), groups).double() * known[:, None]  # [U, G]
    return (members - known[:, None] / groups) * math.sqrt(groups / (groups - 1))


class BNSLIM(Fitted):
    """SLIM over users whose weights on neighbours of each group are drawn together (Decision 31)."""

    @dataclass(frozen=True)
    class Options(Penalties):
        """SLIM's settings and `balance`, the weight of half the squared difference between the groups' weights."""

        balance: float = 1000.0

        def __post_init__(self):
            check_options(
                self,
                ("l1", 0 <= self.l1 < math.inf, "0 or more"),
                ("l2", 0 <= self.l2 < math.inf, "0 or more"),
                ("balance", 0 <= self.balance < math.inf, "0 or more"),
                ("tolerance", 0 < self.tolerance < 1, "a number in (0, 1)"),
                ("iterations", self.iterations >= 1, "1 or more"),
            )

    @classmethod
    def unsupported(cls, config: Config) -> str | None:
        """Refuse backbones without neighbours."""
        return None if BACKBONES[config.backbone].fitted else "it balances neighbours, which only slim has"

    def __init__(self, backbone: nn.Module, environment: Environment):
        super().__init__(backbone, environment)
        group = environment.user_groups[self.config.attribute]
        if group.num_groups < 2:
            raise ValueError(f"--fairness_method=bnslim: {group.name} has one group; balance needs two")
        self.signs = group_signs(group)

    def fit(self) -> Fit:
        """Fit W with the balance."""
        return self.backbone.fit(self.options, self.signs, progress=self.environment.processes.first)
