"""What every part of a run may know beside its data and protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from data.structs import Group
from model.runs.config import Config
from model.runs.processes import ALONE, Processes
from model.runs.streams import stream_seeds


@dataclass(frozen=True)
class Environment:
    """What all parts of a run know beside its data and protocol.

    These are settings, reported user groups, the users `[U]` (bool) on whom the probe is tested, seeds of the random
    streams, the device, and which of the processes that share the work this is.
    """

    config: Config
    user_groups: Mapping[str, Group]
    held_out: np.ndarray
    seeds: Mapping[str, int]
    device: torch.device
    processes: Processes = ALONE

    def phase_seeds(self, number: int) -> Mapping[str, int]:
        """Give the seeds of the random streams of phase `number` (from 0); they differ from phase to phase."""
        return stream_seeds(self.config.seed, number) if number else self.seeds
