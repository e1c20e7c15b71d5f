"""PROTOCOLS: each turns InteractionData into the phases of a run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data.protocols.base import Protocol, ProtocolOptions
from data.protocols.fda import fda
from data.protocols.loo import leave_one_out
from data.structs import InteractionData

PROTOCOLS: dict[str, Callable[[InteractionData, ProtocolOptions, np.random.Generator], Protocol]] = {
    "loo": leave_one_out,
    "fda": fda,
}
