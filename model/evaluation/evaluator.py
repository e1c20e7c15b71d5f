"""Rankings by a trained model and what can be read in its vectors: users encoded, tasks ranked, leakage measured."""

from __future__ import annotations

import contextlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from data.protocols.base import Protocol, Task
from data.structs import Group, Histories, Ranking, Split
from model.backbone import Backbone
from model.evaluation.ranker import Ranker
from model.evaluation.ranking import ScoreBlock
from model.methods.base import Method
from model.methods.encoding import USER_BLOCK, encode_users
from model.runs.environment import Environment
from model.runs.errors import in_blocks
from model.runs.streams import own_generators

# a tile of users x items is at least this wide
TILE_ITEMS = 1 << 8


@dataclass
class Encoded:
    """Vectors of users and items under weights that stay as they are."""

    # histories, the parts of users in the order of encoding, their vectors
    users: list[tuple[Histories, list[np.ndarray], torch.Tensor]] = field(default_factory=list)
    items: torch.Tensor | None = None

    def of(self, histories: Histories, parts: list[np.ndarray]) -> torch.Tensor | None:
        """Find the vectors of the users of `parts`, in this order; None where they are not encoded yet."""
        for known, users, vectors in self.users:
            same = known is histories and len(users) == len(parts)
            if same and all(np.array_equal(*pair) for pair in zip(users, parts, strict=True)):
                return vectors
        return None


class Evaluator(Ranker):
    """Rankings by a backbone with its current weights; the same weights always give the same numbers.

    Every process encodes all users and items, so that its draws are those of a run in one process.
    """

    def __init__(self, backbone: Backbone, method: Method, environment: Environment):
        super().__init__(environment, backbone.num_items)
        self.backbone, self.method = backbone, method
        self._kept: Encoded | None = None

    def controls(self) -> tuple[str, ...]:
        """Name the method's controls."""
        return self.method.controls()

    @contextlib.contextmanager
    def encoded_once(self) -> Iterator[None]:
        """Encode every user and item only once within this context, in which the weights must stay as they are."""
        self._kept = Encoded()
        try:
            yield
        finally:
            self._kept = None

    @torch.no_grad()
    def represent(self, users: np.ndarray, histories: Histories, split: Split, control: str = "") -> torch.Tensor:
        """Give user vectors `[T, D]` as served, averaged over `--eval_history_draws` histories of each of `users [T]`.

        The draws have a generator of their own that starts afresh each time (Decision 6).
        """
        with self._serving():
            vectors = self._encode([users], histories, split, with_items=False).of(histories, [users])
            return self._transform(vectors, users, control)

    @contextlib.contextmanager
    def _serving(self) -> Iterator[None]:
        """Switch to evaluation mode, and afterwards put every module back into the mode in which it was.

        A network's own random streams start afresh within, and go on afterwards from where they were.
        """
        networks = [self.backbone, *self.method.networks().values()]
        modes = [(module, module.training) for network in networks for module in network.modules()]
        states = [(generator, generator.get_state()) for generator in own_generators(self.backbone).values()]
        for generator, _ in states:
            generator.manual_seed(self.environment.seeds["evaluation"])
        for network in networks:
            network.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            self._put_back(states)

    @staticmethod
    def _put_back(states: list[tuple[torch.Generator, torch.Tensor]]) -> None:
        for generator, state in states:
            generator.set_state(state)

    def _encode(self, parts: list[np.ndarray], histories: Histories, split: Split, with_items: bool) -> Encoded:
        """Encode the users of `parts`, and all items where `with_items`, but nothing twice."""
        encoded = Encoded() if self._kept is None else self._kept
        vectors = encoded.of(histories, parts)
        with_items = with_items and encoded.items is None
        if vectors is None or with_items:
            context = self.backbone.prepare()
            if vectors is None:
                vectors = torch.cat([encode_users(self.method, context, part, histories, split) for part in parts])
                encoded.users.append((histories, parts, vectors))
            if with_items:
                everything = torch.arange(self.num_items, device=self.environment.device)
                encoded.items = self.backbone.encode_items(context, everything)
        return encoded

    def _transform(self, vectors: torch.Tensor, users: np.ndarray, control: str) -> torch.Tensor:
        """Change the vectors `[T, D]` of `users [T]` to those that the method serves under `control`."""
        rows, parts = torch.from_numpy(users).to(self.environment.device), []

        def transform(block: range) -> None:
            own = slice(block.start, block.stop)
            parts.append(self.method.transform_users(vectors[own], rows[own], control))

        in_blocks(transform, len(rows), USER_BLOCK, "transforming users", lambda count: None)
        return torch.cat(parts)

    def _score_block(self, users: np.ndarray, vectors: torch.Tensor, items: torch.Tensor) -> ScoreBlock:
        device = self.environment.device
        position = np.full(int(users.max(initial=0)) + 1, -1)
        position[users] = np.arange(len(users))
        pairs = max(1, int(self._floats_at_a_time() // self.backbone.floats_per_pair))

        @torch.no_grad()
        def score(block: np.ndarray) -> torch.Tensor:
            rows = vectors[torch.from_numpy(position[block]).to(device)]  # [b, D]
            height = max(1, min(len(rows), pairs // min(TILE_ITEMS, len(items))))
            width = max(1, pairs // height)
            scores = rows.new_empty((len(block), len(items)))  # [b, I]
            for top in range(0, len(rows), height):
                for left in range(0, len(items), width):
                    scores[top : top + height, left : left + width] = self.backbone.score_catalogue(
                        rows[top : top + height], items[left : left + width]
                    )
            return scores

        return score

    @torch.no_grad()
    def rank(
        self,
        task: Task,
        histories: Histories,
        split: Split,
        top: int,
        control: str = "",
        progress: str | None = None,
        users: np.ndarray | None = None,
    ) -> Ranking | None:
        """Rank `task` for `users [T]` (None: all who have a relevant item), keeping the best `top` items of each.

        A user of the task gets the same list whichever other users are ranked in the same call.
        """
        asked = np.flatnonzero(task.relevant.lengths > 0)
        users = asked if users is None else users
        if not len(users):
            raise ValueError(f"the {task.name} task asks about no user; the split has no item for it")
        # histories are drawn for all users of a part at once: for some of them alone they would differ
        others = np.setdiff1d(np.arange(split.num_users), asked)
        parts = [part for part in (asked, others) if np.isin(users, part).any()]
        with self._serving():
            encoded = self._encode(parts, histories, split, with_items=True)
            order = np.concatenate(parts)
            vectors = self._transform(encoded.of(histories, parts), order, control)
            if not np.array_equal(order, users):
                place = np.argsort(order)[np.searchsorted(np.sort(order), users)]
                vectors = vectors[torch.from_numpy(place).to(self.environment.device)]
            score = self._score_block(users, vectors, encoded.items)
            return self.rank_scores(score, users, task, top, progress)

    def leakage(
        self,
        split: Split,
        groups: Mapping[str, Group],
        held_out: np.ndarray,
        control: str = "",
        probe: Callable[..., dict[str, float]] | str = Protocol.probe,
    ) -> dict[str, float]:
        """Measure what `probe` (a function or its "module:name") reads of `groups` in all users' served vectors."""
        users = np.arange(split.num_users)
        vectors = self.represent(users, split.test_histories, split, control).cpu().numpy()
        probe = pkgutil.resolve_name(probe) if isinstance(probe, str) else probe
        return probe(vectors, groups, held_out, self.environment.seeds["probe"] % 2**32)
