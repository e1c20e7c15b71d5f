"""PROTOCOLS: each turns InteractionData into the phases of a run; a new one is a file here and an entry."""

from data.registry import Registry

PROTOCOLS = Registry(loo="data.protocols.loo:leave_one_out", fda="data.protocols.fda:fda")
# What a protocol changes in a data set's hyper-parameters: how its paper reports.
PRESETS: dict[str, dict] = {"fda": {"eval_k": (10, 20, 30, 40, 50), "eval_every": 10}}
