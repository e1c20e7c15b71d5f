"""Time and memory of full-catalogue ranking and all metrics, each ratio from one run on one machine.

    python -m tests.benchmarks.ranking [--only=loop|engine|memory|large|many] [--dataset_dir=./datasets]

loop: BUHS (mean) at the size of MovieLens-1M (its own data with --dataset_dir), `Evaluator.rank` and `evaluate` for
every user against the literal loop over users of upstream's evaluation, timed on a sample and scaled. engine:
`rank_catalogue` alone on scores that are a matrix product. memory: growth of the resident set at 270,000 items, a
process per setting. large: time per score at BookCrossing's size against the rate of a matrix product. many: ranks of
hundreds of relevant items per user. Weights are random, which changes neither times nor memory. Times are one thread's
processor time: those of an idle machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from data.protocols.base import Phase, ProtocolSettings
from data.protocols.loo import leave_one_out
from data.readers.movielens import read_movielens
from data.readers.options import ReadOptions, SyntheticOptions
from data.readers.synthetic import read_synthetic
from data.structs import FeatureSpec, FeatureTable, Group, InteractionData, ItemLists, Ranking
from model.evaluation import ranker
from model.evaluation.evaluator import Evaluator
from model.evaluation.metrics import evaluate
from model.evaluation.ranking import (
    ENGINE_FLOATS,
    _count_at_least_compared,
    _count_at_least_sorted,
    rank_catalogue,
)
from model.methods.base import Method
from model.runs.config import Config
from model.runs.environment import Environment
from model.runs.presets import preset
from model.runs.streams import stream_seeds, torch_generator
from model.sparsenn import SparseNN
from tests.benchmarks import gemm_peak
from tests.benchmarks.literal import literal_metrics, literal_ranking
from tests.support.evaluation import ask_some
from tests.support.settings import SETTINGS

TOP, KS, MIB = 100, (10, 20, 50), 2**20
CPU = torch.device("cpu")
# multiplications and additions that one dot_compress score needs: u.v and the 5-128-64-1 map, of vectors of 128
FLOPS = 2 * 128 + 2 * (5 * 128 + 128 * 64 + 64)
LARGE_USERS, LARGE_ITEMS = 50_000, 270_000


def make_evaluator(data: InteractionData, block_mb: float) -> tuple[Evaluator, Phase]:
    """Make an untrained BUHS (mean, MovieLens's widths) and the data's leave-one-out phase."""
    changes = {"sample_size": 15, "eval_block_mb": block_mb, "mask_sensitive_feature": False}
    config = Config(**(SETTINGS | preset("ml") | changes))
    seeds = stream_seeds(config.seed)
    backbone = SparseNN.build(data, config, seeds["initialisation"], CPU)
    held_out = np.zeros(data.num_users, bool)
    environment = Environment(config, data.user_groups, held_out, seeds, CPU)
    options = ProtocolSettings(config.warm_threshold, KS, epochs=1, patience=1)
    phase = leave_one_out(data, options, np.random.default_rng(seeds["split"])).phases[0]
    return Evaluator(backbone, Method(backbone, environment), environment), phase


def movielens(arguments: argparse.Namespace) -> InteractionData:
    """Read MovieLens-1M, or make synthetic data of its size."""
    size = SyntheticOptions(*arguments.size)
    options = ReadOptions(arguments.dataset_dir or Path(), "hash", Path("unused"), synthetic=size)
    return read_movielens(options) if arguments.dataset_dir else read_synthetic(options)


def bookcrossing(users: int, items: int) -> InteractionData:
    """Make random data with BookCrossing's item columns but its titles, and 20 interactions per user."""
    generator = np.random.default_rng(0)

    def table(rows: int, **sizes: int) -> FeatureTable:
        drawn = {name: torch.from_numpy(generator.integers(size, size=rows)) for name, size in sizes.items()}
        schema = tuple(FeatureSpec(name, "categorical", size) for name, size in {"id": rows, **sizes}.items())
        return FeatureTable(schema, {"id": torch.arange(rows), **drawn})

    per_user = np.sort(generator.integers(items - 20, size=(users, 20)), axis=1) + np.arange(20)
    return InteractionData(
        name="random",
        users=table(users, age=100, location=60),
        items=table(items, author=items // 3, year=100, publisher=items // 16),
        user_id=np.repeat(np.arange(users), 20),
        item_id=per_user.ravel(),
        rating=np.ones(users * 20),
        time=None,
        user_groups={"gender": Group("gender", np.arange(users) % 2, ("M", "F"))},
        original_user_ids=np.arange(users),
        original_item_ids=np.arange(items),
        item_titles=np.full(items, ""),
    )


class Watch:
    """Measure time and memory of `Evaluator.rank` after the towers: of scoring and ranking."""

    def __init__(self, evaluator: Evaluator):
        self.rank, self.seconds = evaluator.rank_scores, 0.0
        evaluator.rank_scores = self

    def __call__(self, *arguments, **options) -> Ranking:
        self.towers, self.before = memory("VmHWM"), forget_peak()
        start = time.process_time()
        ranking = self.rank(*arguments, **options)
        self.seconds, self.grown = time.process_time() - start, memory("VmHWM") - self.before
        return ranking


def memory(field: str) -> int:
    """Read the process's resident set in bytes: now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def forget_peak() -> int:
    """Reset the peak, which would hide later and lower ones (Linux); give the resident set in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def report_loop(arguments: argparse.Namespace) -> None:
    """Print the ratio of the literal loop's time to the program's, and how far their results agree."""
    data = movielens(arguments)
    evaluator, phase = make_evaluator(data, arguments.block_mb)
    task, split, watch = phase.tests[0], phase.split, Watch(evaluator)
    users = np.sort(np.random.default_rng(0).choice(data.num_users, arguments.sample, replace=False))
    checked = evaluator.rank(ask_some(task, users), split.test_histories, split, TOP)
    ours = evaluate(checked, split, data.user_groups, KS).summary
    # the program's own draws: the loop gets them for nothing
    generator = torch_generator(evaluator.environment.seeds["evaluation"])
    drawn = evaluator.method.histories.of(split.test_histories, split).sample(torch.from_numpy(users), None, generator)
    pasts = [items[mask] for items, mask in zip(drawn.items, drawn.mask, strict=True)]

    start = time.process_time()
    ranking = evaluator.rank(task, split.test_histories, split, TOP)
    ranked = time.process_time()
    evaluate(ranking, split, data.user_groups, KS)
    program, metrics = time.process_time() - start, time.process_time() - ranked

    start = time.process_time()
    answers = [literal_ranking(evaluator, task, int(user), past, TOP) for user, past in zip(users, pasts, strict=True)]
    ranks, lists = [answer[0] for answer in answers], np.stack([answer[1] for answer in answers])
    halfway = time.process_time()
    is_tail = split.item_groups["popularity"].codes[checked.relevant.item] == 1
    theirs = literal_metrics(ranks, lists, data.user_groups["gender"].codes[users], is_tail, split, KS)
    scale = len(ranking.users) / len(users)
    loop, judging = scale * (time.process_time() - start), scale * (time.process_time() - halfway)

    print(f"{data.name}: {len(ranking.users):,} users x {data.num_items:,} items, all metrics at K = {KS}")
    print(f"  program {program:.2f} s, of it scores and ranks {watch.seconds:.2f} s, metrics {metrics:.2f} s")
    print(f"  literal loop {loop:,.0f} s ({len(users)} users, scaled), {judging:,.0f} s of it metrics")
    print(f"  ratio {loop / program:.0f}")
    same, same_lists = np.mean(np.concatenate(ranks) == checked.ranks), np.mean((lists == checked.topk).all(1))
    difference = max(abs(ours[name] / value - 1) for name, value in theirs.items() if value > 0)
    print(f"  agreement: {same:.1%} of ranks, {same_lists:.1%} of top-{TOP} lists, metrics to {difference:.0e}")


@torch.no_grad()
def report_engine(arguments: argparse.Namespace) -> None:
    """Print the ratio for ranking alone, against a loop that scores, masks and sorts one user at a time."""
    data = movielens(arguments)
    evaluator, phase = make_evaluator(data, arguments.block_mb)
    backbone, excluded, everyone = evaluator.backbone, phase.tests[0].excluded, np.arange(data.num_users)
    relevant = phase.tests[0].relevant.take(everyone)
    vectors = evaluator.represent(everyone, phase.split.test_histories, phase.split)
    items = backbone.prepare().scored[:, : backbone.vector_width].contiguous()

    def score_block(ids: np.ndarray) -> torch.Tensor:
        return vectors[torch.from_numpy(ids)] @ items.T

    block = max(1, ranker.CACHE_FLOATS // (ENGINE_FLOATS * data.num_items))
    rank_catalogue(score_block, everyone[:2], relevant.take(everyone[:2]), excluded, data.num_items, TOP, 2)
    start = time.process_time()
    ranking = rank_catalogue(score_block, everyone, relevant, excluded, data.num_items, TOP, block)
    middle, same = time.process_time(), 0
    for user in everyone:
        scores = score_block(everyone[user : user + 1])[0].numpy()
        scores[excluded[user]] = -np.inf
        same += ranking.ranks[user] == (scores >= scores[relevant[user][0]]).sum()
        np.argsort(-scores, kind="stable")[:TOP]
    engine, loop = middle - start, time.process_time() - middle
    print("ranking alone, scores a matrix product of the same vectors")
    print(f"  engine {engine:.2f} s, loop over users {loop:.2f} s: ratio {loop / engine:.1f}")
    print(f"  agreement: {same / len(everyone):.1%} of ranks")


def report_many(arguments: argparse.Namespace) -> None:
    """Print the ratio for ranks of users with many relevant items: each compared with its row, or the row sorted."""
    num_items, num_users = arguments.size[1], 200
    rng = np.random.default_rng(0)
    masked = torch.from_numpy(rng.standard_normal((num_users, num_items)).astype(np.float32))
    print(f"many relevant items: {num_users} users x {num_items:,} items")
    for count in (size for size in (1, 10, 100, 300) if size <= num_items):
        item = np.argsort(rng.random((num_users, num_items)), axis=1)[:, :count].ravel()
        relevant = ItemLists(count * np.arange(num_users + 1), item)
        row = torch.from_numpy(relevant.owner)
        value = masked[row, torch.from_numpy(item)]
        start = time.process_time()
        compared = _count_at_least_compared(masked, row, value)
        middle = time.process_time()
        by_sorting = _count_at_least_sorted(masked, relevant, row, value)
        end = time.process_time()
        same, ratio = (compared == by_sorting).float().mean(), (middle - start) / max(end - middle, 1e-9)
        print(
            f"  {count} each: {1e3 * (middle - start):.1f} ms, sorted {1e3 * (end - middle):.1f} ms: ratio {ratio:.2f}"
        )
        print(f"  agreement: {same:.1%} of ranks")


def peak(block_mb: float, capped: bool) -> tuple[int, int, int]:
    """Measure resident bytes in a process of its own: the towers' peak, their result, the ranking's peak."""
    torch.set_num_threads(1)
    if not capped:
        ranker.CACHE_FLOATS = 1 << 40
    evaluator, phase = make_evaluator(bookcrossing(2000, LARGE_ITEMS), block_mb)
    watch = Watch(evaluator)
    for users in (1, 64):
        before = forget_peak()
        task = ask_some(phase.tests[0], np.arange(users))
        evaluator.rank(task, phase.split.test_histories, phase.split, TOP)
    return watch.towers - before, watch.before - before, watch.grown


def report_memory(arguments: argparse.Namespace) -> None:
    """Print how much memory scoring and ranking take at 270,000 items, for several budgets."""
    print(f"memory: 64 users x {LARGE_ITEMS:,} items, growth of the resident set in MiB")
    for capped, block_mb in ((True, 16), (True, 64), (True, 256), (False, 64), (False, 256)):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            towers, vectors, grown = (size / MIB for size in pool.submit(peak, block_mb, capped).result())
        print(
            f"  --eval_block_mb={block_mb}{'' if capped else ', blocks beyond the cache'}: scoring and ranking "
            f"{grown:.0f}; towers {towers:.0f}, of which vectors that stay {vectors:.0f}"
        )


def report_large(arguments: argparse.Namespace) -> None:
    """Print the time per score at BookCrossing's size, and what all users would take."""
    evaluator, phase = make_evaluator(bookcrossing(LARGE_USERS, LARGE_ITEMS), arguments.block_mb)
    split, watch = phase.split, Watch(evaluator)
    task = ask_some(phase.tests[0], np.arange(0, LARGE_USERS, LARGE_USERS // 500))
    start = time.process_time()
    evaluator.rank(task, split.test_histories, split, TOP)
    whole = time.process_time() - start
    fastest = gemm_peak(time.process_time)
    per_score = watch.seconds / (500 * LARGE_ITEMS)
    print(f"large: 500 of {LARGE_USERS:,} users x {LARGE_ITEMS:,} items in {whole:.1f} s")
    print(
        f"  {1e9 * per_score:.0f} ns per score = {FLOPS / per_score / 1e9:.0f} GFLOP/s, "
        f"{FLOPS / per_score / fastest:.0%} of a matrix product's {fastest / 1e9:.0f} GFLOP/s"
    )
    print(f"  memory grew by {watch.grown / MIB:.0f} MiB while ranking (--eval_block_mb={arguments.block_mb:g})")
    full = whole - watch.seconds + per_score * LARGE_USERS * LARGE_ITEMS
    print(f"  all {LARGE_USERS:,} users would take {full / 60:.0f} min")


REPORTS = {
    "loop": report_loop,
    "engine": report_engine,
    "memory": report_memory,
    "large": report_large,
    "many": report_many,
}


def main() -> None:
    """Print the chosen reports, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=REPORTS, help="one report instead of all")
    parser.add_argument("--dataset_dir", type=Path, help="where ml-1m is; synthetic data of its size without")
    size = {"nargs": 3, "type": int, "default": (6040, 3883, 1_000_209), "metavar": ("USERS", "ITEMS", "INTERACTIONS")}
    parser.add_argument("--size", **size, help="of the synthetic data")
    parser.add_argument("--sample", type=int, default=60, help="users whom the literal loop is timed on")
    parser.add_argument("--block_mb", type=float, default=256, help="--eval_block_mb")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in [arguments.only] if arguments.only else REPORTS:
        REPORTS[name](arguments)


if __name__ == "__main__":
    main()
