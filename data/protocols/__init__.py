"""PROTOCOLS: each turns InteractionData into the phases of a run; a new one is a file here and an entry."""

from data.registry import Registry

PROTOCOLS = Registry(
    loo="data.protocols.loo:leave_one_out",
    fda="data.protocols.fda:fda",
    cofair="data.protocols.cofair:cofair",
    fade="data.protocols.fade:fade",
)
