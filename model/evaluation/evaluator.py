"""Serve and judge a trained model: user vectors, rankings of a task, yardsticks, re-ranking and leakage."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from data.protocols.base import Task
from data.sampling.histories import HistorySampler
from data.structs import Group, Histories, History, Ranking, Split
from fairness_utils import target_shares
from model.evaluation.candidates import popularity_scores, random_scores, sample_candidates
from model.evaluation.probes import leakage_auc, linear_erasure
from model.evaluation.ranking import block_users_for, rank_catalogue
from model.evaluation.reranking import rerank_ranking
from model.methods.base import Method
from model.runs.config import Config
from model.runs.errors import in_blocks
from model.runs.processes import ALONE, Processes
from model.runs.streams import own_generators, torch_generator

USER_BLOCK = 4096
# float32 numbers handled at a time on a CPU: they stay in its cache, and the allocator hands the same memory out again
# instead of asking the system for fresh pages
CACHE_FLOATS = 1 << 22
# a tile of users x items is at least this wide
TILE_ITEMS = 1 << 8


class Evaluator:
    """Ranks tasks with the current weights; the same weights always give the same numbers.

    Of many `processes` each ranks a part of the users; the whole ranking is the first's, the others have None. Vectors
    of users and items are made whole everywhere, so that draws are those of one process.
    """

    def __init__(
        self,
        backbone: nn.Module,
        method: Method,
        config: Config,
        seeds: Mapping[str, int],
        device: torch.device,
        processes: Processes = ALONE,
    ):
        self.backbone, self.method, self.config, self.seeds, self.device = backbone, method, config, seeds, device
        self.processes = processes
        self._samplers: dict[int, tuple[Histories, HistorySampler]] = {}

    def _sampler(self, histories: Histories, split: Split) -> HistorySampler:
        if id(histories) not in self._samplers:
            sampler = HistorySampler(
                histories,
                self.method.history_weights(histories, split),
                self.config.sample_size,
                self.device,
                with_replacement=self.config.upstream_compat,
            )
            self._samplers[id(histories)] = (histories, sampler)
        return self._samplers[id(histories)][1]

    @torch.no_grad()
    def represent(self, users: np.ndarray, histories: Histories, split: Split, control: str = "") -> torch.Tensor:
        """User vectors `[T, D]` as served, averaged over `--eval_history_draws` histories of each of `users [T]`.

        The draws have a generator of their own that starts afresh each time (Decision 6).
        """
        with self._serving():
            return self._represent(self.backbone.prepare(), users, histories, split, control)

    @contextlib.contextmanager
    def _serving(self) -> Iterator[None]:
        """Evaluation mode; a network's own random streams start afresh, and later go on where they were."""
        generators = own_generators(self.backbone).values()
        states = [generator.get_state() for generator in generators]
        for generator in generators:
            generator.manual_seed(self.seeds["evaluation"])
        self.backbone.eval()
        try:
            yield
        finally:
            self.backbone.train()
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)

    def _represent(self, context, users, histories: Histories, split: Split, control: str) -> torch.Tensor:
        generator = torch_generator(self.seeds["evaluation"], self.device)
        reads = self.backbone.history_kind is not None
        draws = self.config.eval_history_draws if reads else 1
        rows = torch.from_numpy(users).to(self.device)
        total = None
        for _ in range(draws):
            blocks = []
            for block in rows.split(USER_BLOCK):
                history = self._sampler(histories, split).sample(block, None, generator) if reads else None
                blocks += self._encode(context, block, history, control)
            vectors = torch.cat(blocks)
            total = vectors if total is None else total + vectors
        return total / draws

    def _encode(self, context, users: torch.Tensor, history: History | None, control: str) -> list[torch.Tensor]:
        """Vectors of `users [b]` in parts that fit in memory."""
        parts = []

        def encode(rows: range) -> None:
            own = slice(rows.start, rows.stop)
            past = None if history is None else History(history.items[own], history.mask[own])
            vectors = self.backbone.encode_users(context, users[own], past)
            parts.append(self.method.transform_users(vectors, users[own], control))

        # noise that a network draws itself would be another in parts
        if own_generators(self.backbone):
            encode(range(len(users)))
        else:
            in_blocks(encode, len(users), len(users), "encoding users", lambda count: None)
        return parts

    def _floats_at_a_time(self) -> float:
        """Numbers that the scorer may keep, and as many again the ranking: each has half of `--eval_block_mb`."""
        budget = self.config.eval_block_mb * 2**20 / (2 * 4)
        return min(budget, CACHE_FLOATS) if self.device.type == "cpu" else budget

    def _score_block(self, users: np.ndarray, vectors: torch.Tensor, items: torch.Tensor):
        position = np.full(int(users.max(initial=0)) + 1, -1)
        position[users] = np.arange(len(users))
        pairs = max(1, int(self._floats_at_a_time() // self.backbone.floats_per_pair))

        @torch.no_grad()
        def score(block: np.ndarray) -> torch.Tensor:
            rows = vectors[torch.from_numpy(position[block]).to(self.device)]
            height = max(1, min(len(rows), pairs // min(TILE_ITEMS, len(items))))
            width = max(1, pairs // height)
            scores = rows.new_empty((len(block), len(items)))
            for top in range(0, len(rows), height):
                for left in range(0, len(items), width):
                    scores[top : top + height, left : left + width] = self.backbone.score_catalogue(
                        rows[top : top + height], items[left : left + width]
                    )
            return scores

        return score

    def _rank(self, score, users, task: Task, top: int, progress: str | None) -> Ranking | None:
        processes = self.processes
        progress = progress if processes.first else None
        if task.candidates is None:
            own = np.array_split(users, processes.world)[processes.rank]
            return processes.gather(self._rank_alone(score, own, task, top, progress))
        # candidates are drawn user after user: a part of the users would get others
        return self._rank_alone(score, users, task, top, progress) if processes.first else None

    def _rank_alone(self, score, users, task: Task, top: int, progress: str | None) -> Ranking:
        relevant = task.relevant.take(users)
        candidates = None
        if task.candidates is not None:
            rng = np.random.default_rng(self.seeds["evaluation"])

            def candidates(rows: np.ndarray):
                block = users[rows]
                return sample_candidates(
                    block, relevant.take(rows), task.excluded, self.num_items, task.candidates, rng
                )

        block_users = block_users_for(self.num_items, 4 * self._floats_at_a_time() / 2**20)
        return rank_catalogue(
            score, users, relevant, task.excluded, self.num_items, top, block_users, candidates, progress
        )

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""
        return self.backbone.num_items

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
        """Rank `task` for `users [T]` (None: all whom it asks about), keeping the best `top` items of each.

        Whom it asks about gets the same histories, and so the same list, whoever else is ranked.
        """
        asked = np.flatnonzero(task.relevant.lengths > 0)
        users = asked if users is None else users
        if not len(users):
            raise ValueError(f"the {task.name} task asks about no user; the split has no item for it")
        with self._serving():
            context = self.backbone.prepare()
            # draws belong to everybody who is asked about, and to all others: some alone would get other ones
            others = np.setdiff1d(np.arange(split.num_users), asked)
            parts = [part for part in (asked, others) if np.isin(users, part).any()]
            vectors = torch.cat([self._represent(context, part, histories, split, control) for part in parts])
            order = np.concatenate(parts)
            if not np.array_equal(order, users):
                place = np.argsort(order)[np.searchsorted(np.sort(order), users)]
                vectors = vectors[torch.from_numpy(place).to(self.device)]
            items = self.backbone.encode_items(context, torch.arange(self.num_items, device=self.device))
            # the items' features, several times their vectors, are done with
            del context
            return self._rank(self._score_block(users, vectors, items), users, task, top, progress)

    def yardsticks(self, task: Task, split: Split, top: int) -> dict[str, Ranking | None]:
        """The same task ranked by train popularity and at random."""
        users = np.flatnonzero(task.relevant.lengths > 0)
        scores = {
            "popular": popularity_scores(split.degree),
            "random": random_scores(self.num_items, self.seeds["evaluation"]),
        }
        return {name: self._rank(score, users, task, top, None) for name, score in scores.items()}

    def alone(self) -> Evaluator:
        """The same in this process alone, whatever the others do."""
        evaluator = copy.copy(self)
        evaluator.processes = ALONE
        return evaluator

    def target(self, split: Split) -> np.ndarray:
        """Exposure that each popularity group is due by `--rerank_target`: `[G]`."""
        degree = split.degree if self.config.rerank_target == "train" else None
        return target_shares(split.item_groups["popularity"], degree)

    def rerank(
        self, ranking: Ranking, split: Split, alpha: float | None = None, floor: float | None = None
    ) -> tuple[Ranking, int]:
        """Re-rank by exposure (design section 6) at the primary K; also count users whose floor is out of reach.

        `alpha` and `floor` are those of the settings unless given.
        """
        config = self.config
        alpha = config.rerank_alpha if alpha is None else alpha
        floor = config.exposure_floor if floor is None else floor
        pool = min(config.rerank_pool, ranking.topk.shape[1])
        reranked, infeasible = rerank_ranking(
            ranking, split.item_groups["popularity"], alpha, floor, config.eval_k[0], self.target(split), pool
        )
        return reranked, int(infeasible.sum())

    def leakage(self, split: Split, groups: Mapping[str, Group], held_out: np.ndarray, control: str = ""):
        """AUC of fresh probes on the held-out users' served vectors, per attribute: keys `leakage_auc/gender` etc.

        `leakage_auc_erased/...` is the same after closed-form linear erasure of the attribute: a yardstick of what can
        be had without training.
        """
        vectors = self.represent(np.arange(split.num_users), split.test_histories, split, control).cpu().numpy()
        results, seed = {}, self.seeds["probe"] % 2**32
        for name, group in groups.items():
            probe = leakage_auc(vectors, group.codes, held_out, seed)
            results[f"leakage_auc/{name}"] = probe.pop("auc")
            results |= {f"leakage_auc_{kind}/{name}": value for kind, value in probe.items()}
            erased = linear_erasure(vectors, group.codes, ~held_out)
            results[f"leakage_auc_erased/{name}"] = leakage_auc(erased, group.codes, held_out, seed)["auc"]
        return results
