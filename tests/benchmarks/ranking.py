"""Time and memory of the ranking engine against a literal loop over users, both in one run on one machine.

    python -m tests.benchmarks.ranking [--users 6040] [--items 3883] [--block_mb 64] [--top 100]

Scores are a matrix product of random vectors, at the size of MovieLens-1M unless told otherwise. Only ratios are
worth quoting: the times are this machine's. Memory is the growth of the process's peak resident set.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import torch

from data.structs import ItemLists
from model.ranking import ENGINE_FLOATS, ScoreBlock, block_users_for, rank_catalogue

HISTORY = 160
DIMENSION = 64


def peak_bytes() -> int:
    """Read the process's peak resident set in bytes (Linux reports KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_questions(users: int, items: int, generator: np.random.Generator) -> tuple[ItemLists, ItemLists]:
    """Give every user one test item and up to `HISTORY` excluded ones, never the test item."""
    test_item = generator.integers(items, size=users)
    excluded = generator.integers(1, items, size=(users, min(HISTORY, items - 1)))
    excluded += test_item[:, None]
    excluded %= items
    return (
        ItemLists(np.arange(users + 1), test_item),
        ItemLists(np.arange(users + 1) * excluded.shape[1], excluded.ravel()),
    )


def literal_loop(score_block: ScoreBlock, relevant: ItemLists, excluded: ItemLists, top: int) -> tuple[list, list]:
    """Score, mask, sort and rank one user at a time."""
    ranks, lists = [], []
    for user in range(len(relevant.indptr) - 1):
        scores = score_block(np.array([user]))[0].numpy().copy()
        scores[excluded[user]] = -np.inf
        item = relevant[user][0]
        ranks.append((scores >= scores[item]).sum())
        lists.append(np.argsort(-scores, kind="stable")[:top])
    return ranks, lists


def main() -> None:
    """Print the ratio of the times, the share that is pure scoring, and the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=6040)
    parser.add_argument("--items", type=int, default=3883)
    parser.add_argument("--block_mb", type=float, default=64)
    parser.add_argument("--top", type=int, default=100)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    user_vectors, item_vectors = (
        torch.from_numpy(generator.standard_normal((rows, DIMENSION), dtype=np.float32))
        for rows in (options.users, options.items)
    )
    relevant, excluded = make_questions(options.users, options.items, generator)
    users = np.arange(options.users)
    block = block_users_for(options.items, options.block_mb)

    def score_block(ids: np.ndarray) -> torch.Tensor:
        return user_vectors[torch.from_numpy(ids)] @ item_vectors.T

    # The first call loads libraries, which is no cost of ranking.
    rank_catalogue(score_block, users[:2], relevant.take(users[:2]), excluded, options.items, options.top, 2)
    before = peak_bytes()
    start = time.perf_counter()
    ranking = rank_catalogue(score_block, users, relevant, excluded, options.items, options.top, block)
    engine = time.perf_counter() - start
    grown = peak_bytes() - before

    start = time.perf_counter()
    for first in range(0, len(users), block):
        score_block(users[first : first + block])
    scoring = time.perf_counter() - start

    start = time.perf_counter()
    ranks, lists = literal_loop(score_block, relevant, excluded, options.top)
    literal = time.perf_counter() - start
    # One row at a time is another order of summation, so a near-tie may swap: count the differences, do not hide them.
    same_ranks = float(np.mean(ranking.ranks == np.array(ranks)))
    same_lists = float(np.mean(np.all(ranking.topk == np.stack(lists), axis=1)))

    result = ranking.topk.nbytes + ranking.scores.nbytes + ranking.ranks.nbytes + ranking.candidates.nbytes
    per_score = (grown - result) / (4 * min(block, options.users) * options.items)
    print(f"{options.users:,} users x {options.items:,} items, top {options.top}, blocks of {block:,} users")
    print(f"engine {engine:.2f} s, literal loop {literal:.2f} s: {literal / engine:.1f} times as fast")
    print(f"pure scoring is {scoring / engine:.0%} of the engine's time")
    print(f"equal to the loop: {same_ranks:.2%} of ranks, {same_lists:.2%} of top-{options.top} lists")
    print(
        f"peak memory grew by {grown / 2**20:.0f} MiB (result {result / 2**20:.0f} MiB, block {options.block_mb:g} "
        f"MiB): {per_score:.1f} float32 numbers per score, engine's allowance {ENGINE_FLOATS}"
    )


if __name__ == "__main__":
    main()
