"""READERS names every data set; a new one is a file in `readers/` and an entry here.

PRESETS are hyper-parameters that depend on the data set, from the upstream BUHS scripts; a data set without an entry
uses MovieLens's.
"""

from data.registry import Registry

READERS = Registry(
    ml="data.readers.movielens:read",
    bx="data.readers.bookcrossing:read",
    modcloth="data.readers.modcloth:read",
    synthetic="data.readers.synthetic:read_synthetic",
)

MOVIELENS = {
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
    "weight_decay": 0.0,
}
PRESETS: dict[str, dict] = {
    "ml": MOVIELENS,
    "bx": MOVIELENS
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
    # MovieLens's numbers, which nobody has tuned
    "modcloth": MOVIELENS | {"title_encoder": "hash", "user_attribute": ("size",)},
    # not from upstream: small enough to train in a minute
    "synthetic": MOVIELENS
    | {"batch_size": 512, "epochs": 15, "lr": 1e-3, "num_negatives": 10, "patience": 5, "title_encoder": "hash"},
}
MOVIELENS_1M = ("MovieLens-1M", 1_000_209)
# what the presets of a data set are made for: its name, and how many interactions it has
MADE_FOR: dict[str, tuple[str, int]] = {
    "ml": MOVIELENS_1M,
    "bx": ("BookCrossing", 1_149_780),
    "modcloth": MOVIELENS_1M,
    "synthetic": ("synthetic data", 24_000),
}
