"""Rankings of a task by any scores, over processes and in blocks that fit in memory."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from data.protocols.base import Task
from data.structs import Group, Histories, Ranking, Split
from fairness_utils import target_shares
from model.evaluation.candidates import popularity_scores, random_scores, sample_candidates
from model.evaluation.ranking import ScoreBlock, block_users_for, rank_catalogue
from model.evaluation.reranking import rerank_ranking
from model.runs.environment import Environment
from model.runs.processes import ALONE

# float32 numbers handled at a time on a CPU: they stay in its cache, and the allocator hands the same memory out again
# instead of asking the system for fresh pages
CACHE_FLOATS = 1 << 22


class Ranker:
    """Rankings of tasks. A subclass says where they come from: `controls`, `rank` and `leakage`.

    Of many processes each ranks a part of the users; the first gets the whole ranking, the others None.
    """

    def __init__(self, environment: Environment, num_items: int):
        self.environment, self.config, self.num_items = environment, environment.config, num_items

    def controls(self) -> tuple[str, ...]:
        """Name the fairness settings under which tasks can be ranked; one neutral setting, "", by default."""
        return ("",)

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
        """Rank `task` for `users [T]` (None: all who have a relevant item), keeping the best `top` items of each."""
        raise NotImplementedError

    def leakage(
        self,
        split: Split,
        groups: Mapping[str, Group],
        held_out: np.ndarray,
        control: str = "",
        probe: Callable[..., dict[str, float]] | str = "",
    ) -> dict[str, float]:
        """Measure what `probe` reads of user `groups` in the served vectors; nothing where there are no vectors."""
        return {}

    def encoded_once(self) -> contextlib.AbstractContextManager:
        """Encode every user and item only once within this context, in which the weights must stay as they are."""
        return contextlib.nullcontext()

    def rank_scores(
        self, score: ScoreBlock, users: np.ndarray, task: Task, top: int, progress: str | None = None
    ) -> Ranking | None:
        """Rank `task` for `users [T]` by the scores that `score` gives for blocks of them."""
        processes = self.environment.processes
        progress = progress if processes.first else None
        if not task.num_sampled:
            own_users = np.array_split(users, processes.world)[processes.rank]
            return processes.gather(self._rank_alone(score, own_users, task, top, progress))
        # candidates are drawn user after user: for a part of the users they would differ
        return self._rank_alone(score, users, task, top, progress) if processes.first else None

    def _rank_alone(self, score: ScoreBlock, users, task: Task, top: int, progress: str | None) -> Ranking:
        relevant = task.relevant.take(users)
        candidates = None if task.given is None else task.given.take(users)
        if task.num_sampled:
            rng = np.random.default_rng(self.environment.seeds["evaluation"])

            def candidates(rows: np.ndarray):
                block = users[rows]
                wanted = relevant.take(rows)
                size, pool = task.num_sampled, task.pool
                return sample_candidates(
                    block, wanted, task.excluded, self.num_items, size, rng, pool=pool, apart=task.apart
                )

        block_users = block_users_for(self.num_items, 4 * self._floats_at_a_time() / 2**20)
        return rank_catalogue(
            score, users, relevant, task.excluded, self.num_items, top, block_users, candidates, progress
        )

    def _floats_at_a_time(self) -> float:
        """Count the float32 numbers that the scorer may hold: half of `--eval_block_mb`; the ranking gets the rest."""
        budget = self.config.eval_block_mb * 2**20 / (2 * 4)
        return min(budget, CACHE_FLOATS) if self.environment.device.type == "cpu" else budget

    def yardsticks(self, task: Task, split: Split, top: int) -> dict[str, Ranking | None]:
        """Rank the same task by train popularity and at random."""
        users = np.flatnonzero(task.relevant.lengths > 0)
        scores = {
            "popular": popularity_scores(split.degree),
            "random": random_scores(self.num_items, self.environment.seeds["evaluation"]),
        }
        return {name: self.rank_scores(score, users, task, top) for name, score in scores.items()}

    def alone(self) -> Ranker:
        """Give this ranker for use in this process alone, without the others."""
        ranker = copy.copy(self)
        ranker.environment = dataclasses.replace(self.environment, processes=ALONE)
        return ranker

    def target(self, split: Split) -> np.ndarray:
        """Give the share of exposure that each popularity group is due by `--rerank_target`: `[G]`."""
        degree = split.degree if self.config.rerank_target == "train" else None
        return target_shares(split.item_groups["popularity"], degree)

    def rerank(
        self, ranking: Ranking, split: Split, alpha: float | None = None, floor: float | None = None
    ) -> tuple[Ranking, int]:
        """Re-rank by exposure at the primary K (Decision 19); also count the users whose floor cannot be met.

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
