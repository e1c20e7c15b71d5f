"""Hyper-parameters that depend on the data set, the backbone, the protocol and the recipe."""

from __future__ import annotations

from data.protocols import PROTOCOLS

# Hyper-parameters that depend on the data set, from the upstream BUHS scripts; a flag left at None takes them.
MOVIELENS_PRESET = {
    "batch_size": 1024,
    "epochs": 100,
    "eval_every": 1,
    "eval_k": (10, 20, 50),
    "item_hidden": (256, 128),
    "loss": "margin",
    "lr": 2e-4,
    "num_negatives": 20,
    "patience": 10,
    "sampling_softmax_temp": 0.01,
    "title_encoder": "all-MiniLM-L6-v2",
    "user_attribute": ("gender",),
    "user_hidden": (512, 256, 128),
    "warm_threshold": 0.2,
}
# Of backbones that know ids alone: one negative, as in their papers and in RecBole; rates and weights by validation on
# MovieLens-1M.
COLLABORATIVE = {
    "batch_size": 2048,
    "embedding_dim": 64,
    "graph_layers": 0,
    "in_batch_negatives": 0,
    "l2": 0.0,
    "loss": "bpr",
    "lr": 1e-3,
    "num_negatives": 1,
}
PRESETS: dict[str, dict] = {
    "ml": MOVIELENS_PRESET,
    "bx": MOVIELENS_PRESET
    | {
        "epochs": 40,
        "eval_every": 4,
        "eval_k": (10, 20, 50, 100),
        "lr": 1e-4,
        "num_negatives": 10,
        "sampling_softmax_temp": 1.0,
        "user_attribute": ("age",),
        "user_hidden": (256, 128),
        "warm_threshold": 0.001,
    },
    # not from upstream: small enough to train in a minute
    "synthetic": MOVIELENS_PRESET
    | {"batch_size": 512, "epochs": 15, "lr": 1e-3, "num_negatives": 10, "patience": 5, "title_encoder": "hash"},
}

# What a backbone changes in them; None stands for what the data set says.
BACKBONE_PRESETS: dict[str, dict] = {
    "sparsenn": {"embedding_dim": 96, "graph_layers": 0, "l2": 0.0, "in_batch_negatives": None},
    "slim": {"embedding_dim": 0, "graph_layers": 0, "l2": 0.0, "in_batch_negatives": None},
    "bprmf": COLLABORATIVE,
    "pmf": COLLABORATIVE | {"l2": 1e-3},
    "ncf": COLLABORATIVE | {"batch_size": 8192, "lr": 4e-3, "loss": "cross_entropy"},
    # a step propagates the whole graph, however few positives it has
    "gccf": COLLABORATIVE | {"batch_size": 8192, "lr": 5e-3, "graph_layers": 2, "l2": 1e-3},
    "lightgcn": COLLABORATIVE | {"batch_size": 32_768, "lr": 2e-2, "graph_layers": 2, "l2": 1e-4},
}
# those that learn vectors of ids
BY_IDS = tuple(name for name in BACKBONE_PRESETS if name not in ("sparsenn", "slim"))

# What a recipe changes in a data set's hyper-parameters. Decision 25: tuned is ours, by ablation on MovieLens-1M.
RECIPES: dict[str, dict] = {
    "upstream": {},
    "tuned": {"batch_size": 4096, "epochs": 15, "loss": "softmax", "lr": 1e-3, "num_negatives": 10, "patience": 3},
}


# What a protocol changes in how it trains backbones that know ids alone, all and one by one.
COLLABORATIVE_UNDER: dict[str, dict] = {
    "loo": {},
    "fda": {"batch_size": 40_960, "epochs": 200, "l2": 1e-2, "patience": 60},
}
BACKBONE_UNDER: dict[tuple[str, str], dict] = {("ncf", "fda"): {"lr": 1e-3}, ("gccf", "fda"): {"lr": 2e-3}}
# Of backbones that know ids alone, where a data set is too small for their batches.
COLLABORATIVE_ON: dict[str, dict] = {"synthetic": {"batch_size": 512, "epochs": 30, "lr": 5e-3}}


def preset(dataset: str, recipe: str = "upstream", backbone: str = "sparsenn", protocol: str = "loo") -> dict:
    """The hyper-parameters of `backbone` on `dataset` by `recipe` and `protocol`.

    A data set without a preset uses MovieLens's, a backbone without one sparsenn's, which leave the most to the data
    set.
    """
    base = PRESETS.get(dataset, MOVIELENS_PRESET) | BACKBONE_PRESETS.get(backbone, BACKBONE_PRESETS["sparsenn"])
    own = PROTOCOLS[protocol].presets
    if backbone in BY_IDS:
        own = own | COLLABORATIVE_UNDER.get(protocol, {}) | BACKBONE_UNDER.get((backbone, protocol), {})
        own = own | COLLABORATIVE_ON.get(dataset, {})
    return base | own | RECIPES[recipe]
