"""A run: the container that hands its data, protocol and environment to every part, and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch

from data.protocols.base import Protocol
from data.structs import Group, InteractionData
from model.runs.config import Config
from model.runs.environment import Environment
from model.runs.processes import Processes


@dataclasses.dataclass(frozen=True)
class Run:
    """A run: its data, the protocol applied to them, and the environment that all of its parts share."""

    # whether its results are drawn, which takes longer than a tiny run
    draws: ClassVar[bool] = True

    data: InteractionData
    protocol: Protocol
    environment: Environment

    @property
    def config(self) -> Config:
        """Every setting."""
        return self.environment.config

    @property
    def groups(self) -> Mapping[str, Group]:
        """The user groups that are reported, by attribute."""
        return self.environment.user_groups

    @property
    def held_out(self) -> np.ndarray:
        """The users on whom probes are tested: `[U]` bool."""
        return self.environment.held_out

    @property
    def seeds(self) -> Mapping[str, int]:
        """A seed for each random stream."""
        return self.environment.seeds

    @property
    def device(self) -> torch.device:
        """Where networks and batches are."""
        return self.environment.device

    @property
    def processes(self) -> Processes:
        """Which of the processes that share the work this is."""
        return self.environment.processes

    @property
    def fingerprint(self) -> str:
        """What the data of all tested phases hash to: the same where the same is asked (Decision 65)."""
        hashes = [phase.split.fingerprint() for phase in self.protocol.phases if phase.tests]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:16]

    def data_lines(self) -> list[str]:
        """Say what was read, who is in which group, and what is asked: one finding a line."""
        data = self.data
        lines = [f"{data.name}: {data.num_users:,} users, {data.num_items:,} items, {len(data.user_id):,} interactions"]
        lines += [f"  {line}" for line in data.report.lines()]
        for group in self.groups.values():
            counts = zip(group.labels, group.counts(), strict=True)
            members = ", ".join(f"{label} {count:,}" for label, count in counts)
            lines.append(f"  {group.name}: {members}, unknown {(group.codes < 0).sum():,}")
        protocol = self.protocol
        lines.append(f"protocol: {protocol.description}")
        lines += [f"  training: {protocol.training}"] if protocol.training else []
        for phase in self.protocol.phases:
            split = phase.split
            in_tail = split.is_tail
            lines.append(
                f"  {phase.name}: {len(split.train.item):,} train, {len(split.valid.item):,} validation, "
                f"{len(split.test.item):,} test; tail = {in_tail.sum():,} of {split.num_items:,} items "
                f"({100 * split.degree[in_tail].sum() / split.degree.sum():.1f} % of train); fingerprint "
                f"{split.fingerprint()}"
            )
        return lines
