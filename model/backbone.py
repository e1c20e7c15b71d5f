"""What a backbone is: the interface of every recommender network, its defaults, and what it says it can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from data.structs import History, InteractionData, Split
from model.runs.config import Config

# settings of SparseNN's towers and histories alone
TOWERS_ALONE = frozenset(
    {
        "eval_history_draws", "item_hidden", "mask_sensitive_feature", "recipe", "sample_size", "sampling_softmax_temp",
        "scorer", "sparse_updates", "synthesis_type", "upstream_compat", "user_hidden",
    }
)  # fmt: skip


class Backbone(nn.Module):
    """A network that scores items for users.

    A step calls `prepare` once, then `encode_users` and `score`; ranking calls `encode_items` once for the catalogue
    and `score_catalogue` for blocks of users. Subclasses set `num_items`, `vector_width` (D) and `scorer`.
    """

    # scores are inner products of the vectors of all users and items, which `prepare` gives as `users` and `items`
    inner_product: ClassVar[bool] = False
    # user and item vectors are free parameters, `user` and `item` (nn.Embedding), and nothing stands between them
    free_vectors: ClassVar[bool] = False
    # made at once by `fit`, not by gradient steps
    fitted: ClassVar[bool] = False
    # hyper-parameters by the name of their setting, for all data sets; None stands for the data set's own
    defaults: ClassVar[Mapping[str, Any]] = {
        "embedding_dim": 96,
        "graph_layers": 0,
        "l2": 0.0,
        "in_batch_negatives": None,
    }
    # what a protocol, and then a data set, changes in them: by its name
    defaults_under: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    defaults_on: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    num_items: int
    vector_width: int
    scorer: nn.Module

    @classmethod
    def unread(cls, config: Config) -> frozenset[str]:
        """Name the settings that this backbone does not read under `config`."""
        return frozenset()

    @classmethod
    def history(cls, config: Config) -> str | None:
        """Name the history that is read under `config`: "sampled" (weighted draws), "recent" (the last N), or None."""
        return None

    @classmethod
    def make(cls, data: InteractionData, config: Config) -> Backbone:
        """Make the network for `data`; initial weights come from torch's global generator."""
        raise NotImplementedError

    @classmethod
    def build(cls, data: InteractionData, config: Config, seed: int, device: torch.device) -> Backbone:
        """Make the network on `device`; `seed` alone decides its initial weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = cls.make(data, config)
        network.history_kind = cls.history(config)
        return network.to(device)

    def __init__(self):
        super().__init__()
        self.history_kind: str | None = None

    def begin_phase(self, split: Split) -> None:
        """Get ready for a phase on `split` (its graph, its interactions)."""

    @property
    def floats_per_pair(self) -> int:
        """Numbers that scoring one (user, item) pair keeps at a time: bounds the block size in ranking."""
        return self.scorer.floats_per_pair

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Shape `[I, D]` of the noise that `prepare` takes."""
        return self.num_items, self.vector_width

    def prepare(self, items: torch.Tensor | None = None, item_noise: torch.Tensor | None = None) -> Any:
        """Compute a step's context, for `items [n]` (None: all); `item_noise [I, D]` is added to the items' vectors."""
        raise NotImplementedError

    def encode_users(self, context: Any, users: torch.Tensor, history: History | None) -> torch.Tensor:
        """User vectors `[B, D]` of `users [B]`, who have a `history` where the backbone reads one."""
        raise NotImplementedError

    def encode_users_apart(
        self, context: Any, users: torch.Tensor, history: History | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`encode_users`, and the same without a gradient to what is one user's alone (None: all of it is)."""
        return self.encode_users(context, users, history), None

    def encode_items(self, context: Any, items: torch.Tensor) -> torch.Tensor:
        """Items as the scorer reads them, `[..., D']` of `items [...]`: the first D numbers are the item's vector."""
        raise NotImplementedError

    def score(self, context: Any, user: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Score `user [B, D]` with `items [B, M]`: `[B, M]`."""
        raise NotImplementedError

    def score_catalogue(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Score `user [b, D]` with all of the encoded `item [m, D']`: `[b, m]`."""
        return self.scorer.catalogue(user, item)

    def squared_norms(self, context: Any, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Squared norms of what `--l2` weighs, summed over each row's user and its `items [B, M]`: `[B]`."""
        raise NotImplementedError
