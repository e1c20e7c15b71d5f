"""What a backbone is: the interface of every recommender network, its defaults, and what it says it can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from data.structs import History, InteractionData, Split
from model.runs.config import Config

# settings of convolutions over a graph
GRAPHS_ALONE = frozenset({"graph_layers", "graph_norm"})
# settings of SparseNN's towers, which backbones that know ids alone do not read
TOWERS_ALONE = frozenset(
    {
        "item_hidden", "mask_sensitive_feature", "recipe", "scorer", "sparse_updates", "synthesis_type",
        "upstream_compat", "user_hidden",
    }
)  # fmt: skip


class Backbone(nn.Module):
    """A network that scores items for users.

    The contract, with B users, M items of each, I items of the catalogue, and vectors of width D = `vector_width`:

    - `prepare(items)` is called once per step and gives the step's `context`; what follows asks only for `items`, and
      for the whole catalogue where they are None.
    - `encode_users(context, users, history)` gives vectors [B, D]. A row depends on its own user and history alone,
      not on the rest of the batch, and not on history items where the mask is False. A user with an empty history has
      a finite vector.
    - `encode_items(context, items)` gives [..., D']: first the D numbers of the item's vector, then whatever else
      `score_catalogue` needs of an item (D' >= D; D' = D for inner products).
    - `score(context, user, items)` [B, M] equals `score_catalogue(user, encode_items(context, all items))` [B, I] at
      `items`, up to rounding.
    - Vectors and scores do not change between calls while the weights stay and the network is in evaluation mode.

    Subclasses set `num_items`, `vector_width` and `scorer`. Nothing asks a backbone for its class or name: what it can
    do is said by the attributes below.
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
        "graph_norm": "symmetric",
        "l2": 0.0,
        "in_batch_negatives": None,
        "table_start": "normal",
    }
    # what a protocol, and then a data set, changes in them: name -> hyper-parameters
    defaults_under: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    defaults_on: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    # the code released with FDA clamps the item table of this backbone to [-1, 1] before it adds noise
    fda_code_clamps_items: ClassVar[bool] = False
    # names of parameters that weight decay never moves
    undecayed: ClassVar[frozenset[str]] = frozenset()

    num_items: int
    vector_width: int
    scorer: nn.Module
    # no weight gets a gradient, and `train()` leaves the network in evaluation mode
    frozen: bool = False

    @classmethod
    def unread(cls, config: Config) -> frozenset[str]:
        """Name the settings that this backbone does not read under `config`, beside those that need a history."""
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
        self._thawed: list[nn.Parameter] = []

    def begin_phase(self, split: Split) -> None:
        """Get ready for a phase on `split` (its graph, its interactions)."""

    def freeze(self) -> None:
        """Take gradients away from all weights and stay in evaluation mode until `thaw` (Decision 42)."""
        if not self.frozen:
            self._thawed = [parameter for parameter in self.parameters() if parameter.requires_grad]
        for parameter in self._thawed:
            parameter.requires_grad_(False).grad = None
        self.frozen = True
        self.eval()

    def thaw(self) -> None:
        """Undo `freeze`."""
        for parameter in self._thawed:
            parameter.requires_grad_(True)
        self._thawed, self.frozen = [], False
        self.train()

    def train(self, mode: bool = True) -> Backbone:
        """Switch to training mode, or to evaluation mode; a frozen network stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    @property
    def floats_per_pair(self) -> int:
        """Numbers that scoring one (user, item) pair holds in memory: bounds the block size in ranking."""
        return self.scorer.floats_per_pair

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Shape [I, D] of the noise that `prepare` takes."""
        return self.num_items, self.vector_width

    def prepare(self, items: torch.Tensor | None = None, item_noise: torch.Tensor | None = None) -> Any:
        """Compute a step's context for `items [n]` (None: all); `item_noise [I, D]` is added to the items' vectors."""
        raise NotImplementedError

    def encode_users(self, context: Any, users: torch.Tensor, history: History | None) -> torch.Tensor:
        """Compute the vectors [B, D] of `users [B]`, who have a `history` where the backbone reads one."""
        raise NotImplementedError

    def encode_users_apart(
        self, context: Any, users: torch.Tensor, history: History | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute `encode_users`, and the same vectors without a gradient to parameters of one user alone.

        The second is None where every parameter behind a user's vector is that user's own.
        """
        return self.encode_users(context, users, history), None

    def encode_items(self, context: Any, items: torch.Tensor) -> torch.Tensor:
        """Compute `items [...]` as the scorer reads them: [..., D'], of which the first D are the item's vector."""
        raise NotImplementedError

    def score(self, context: Any, user: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Score `user [B, D]` with `items [B, M]`: [B, M]."""
        raise NotImplementedError

    def score_catalogue(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Score `user [b, D]` with all of the encoded `item [m, D']`: [b, m]."""
        return self.scorer.catalogue(user, item)

    def squared_norms(self, context: Any, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Sum the squared norms that `--l2` weighs over each row's user and its `items [B, M]`: [B].

        Here those of the vectors; a backbone that reads a history overrides this, or declares `l2` unread.
        """
        user = self.encode_users(context, users, None)  # [B, D]
        item = self.encode_items(context, items)[..., : self.vector_width]  # [B, M, D]
        return user.square().sum(-1) + item.square().sum((-2, -1))
