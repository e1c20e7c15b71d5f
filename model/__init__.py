"""Registries: the backbones and methods a run may choose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from data.structs import InteractionData
from model.factorisation import MatrixFactorisation, NeuMF
from model.graphs import GCCF, LightGCN
from model.methods.base import Method
from model.methods.bnslim import BNSLIM
from model.methods.fabuhs import FABUHS
from model.methods.fairuser import FairUser
from model.methods.fda import FDA
from model.methods.parity import Parity
from model.runs.config import Config
from model.runs.streams import torch_generator
from model.slim import NeighbourSLIM
from model.sparsenn import SparseNN, SparseNNOptions


def build_sparsenn(data: InteractionData, config: Config, seed: int, device: torch.device) -> SparseNN:
    """Build the two-tower network; `seed` alone decides its initial weights."""
    users = data.users
    if config.mask_sensitive_feature and config.attribute in users.columns:
        users = users.without((config.attribute,))
    # a wider GRU would only have weights that see zeros
    longest = int(np.bincount(data.user_id).max())
    options = SparseNNOptions(
        synthesis_type=config.synthesis_type,
        sample_size=config.sample_size if config.upstream_compat else min(config.sample_size, longest),
        embedding_dim=config.embedding_dim,
        attention_heads=config.attention_heads,
        scorer=config.scorer,
        user_hidden=config.user_hidden,
        item_hidden=config.item_hidden,
        sparse_users=config.sparse_updates,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = SparseNN(users, data.items, options)
    if config.upstream_compat and config.synthesis_type == "gru":
        backbone.synthesis.random_state_generator = torch_generator(seed, device)
    return backbone.to(device)


Builder = Callable[[InteractionData, Config, int, torch.device], nn.Module]


def by_ids(make: Callable[[int, int, Config], nn.Module]) -> Builder:
    """A builder of a backbone that knows ids alone: `make(users, items, config)`; the seed decides its weights."""

    def build(data: InteractionData, config: Config, seed: int, device: torch.device) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make(data.num_users, data.num_items, config).to(device)

    return build


BACKBONES: dict[str, Builder] = {
    "sparsenn": build_sparsenn,
    "bprmf": by_ids(lambda users, items, config: MatrixFactorisation(users, items, config.embedding_dim)),
    "pmf": by_ids(lambda users, items, config: MatrixFactorisation(users, items, config.embedding_dim)),
    "ncf": by_ids(lambda users, items, config: NeuMF(users, items, config.embedding_dim)),
    "gccf": by_ids(lambda users, items, config: GCCF(users, items, config.embedding_dim, config.graph_layers)),
    "lightgcn": by_ids(lambda users, items, config: LightGCN(users, items, config.embedding_dim, config.graph_layers)),
    "slim": by_ids(lambda users, items, config: NeighbourSLIM(users, items)),
}
METHODS: dict[str, type[Method]] = {
    "none": Method,
    "fabuhs": FABUHS,
    "fda": FDA,
    "parity": Parity,
    "bnslim": BNSLIM,
    "fairuser": FairUser,
}
