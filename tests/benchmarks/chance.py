"""Chance levels: what 200 permutations cost, and which parity figure a claim can be made on.

    python -m tests.benchmarks.chance             # time, as a ratio to a loop over permutations
    python -m tests.benchmarks.chance --planted   # parity figures where the dependence on the group is planted

Time: 6,040 users (MovieLens-1M's share of women, or as many groups as it has occupations) with 50 items each out of
3,883; every parity metric and, for 9 accuracy metrics, gap and standard deviation. The loop permutes the labels and
computes the plain metrics one permutation after the other; it is timed on some and scaled. Processor time of one
thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from tabulate import tabulate

from data.structs import ItemLists
from model.evaluation.chance import (
    PERMUTATIONS,
    level,
    permutations,
    permuted_parity,
    permuted_spreads,
)
from model.evaluation.lists import Lists
from model.evaluation.metric_kinds import PARITY
from model.evaluation.metric_table import computed
from model.evaluation.metrics import list_metrics
from model.evaluation.parity import ByGroup
from tests.support.lists import planted_lists

USERS, ITEMS, LENGTH, WOMEN, OCCUPATIONS = 6_040, 3_883, 50, 0.283, 21
LOOPED = 5
FIGURES = ("dp_rate", "dp_js", "dp_debiased")
# users, share of the smaller group, exponent of the items' popularity
SETTINGS = [
    (users, share, zipf) for users, share in ((3000, 0.5), (3000, 0.15), (600, 0.3)) for zipf in (0.2, 0.8, 1.4)
]


def random_lists() -> Lists:
    """Draw lists of popular items, and a test item of each user."""
    generator = np.random.default_rng(0)
    weight = np.log((1.0 + np.arange(ITEMS)) ** -0.8)
    topk = np.stack([np.argsort(-(weight + generator.gumbel(size=ITEMS)))[:LENGTH] for _ in range(USERS)])
    relevant = ItemLists(np.arange(USERS + 1), generator.integers(0, ITEMS, USERS))
    degree = np.ones(ITEMS)
    return Lists(topk, relevant, degree > 1, degree)


def seconds(work: Callable[[], object]) -> float:
    """Measure the processor time of a call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def time_table() -> str:
    """Time all permutations of both attributes."""
    lists, generator = random_lists(), np.random.default_rng(1)
    lists.hits.sum()
    values, rows = generator.random((9, USERS)), []
    for name, codes in {
        "gender, 2 groups": (generator.random(USERS) < WOMEN).astype(np.int64),
        f"occupation, {OCCUPATIONS} groups": generator.integers(0, OCCUPATIONS, USERS),
    }.items():
        permuted_parity(lists, codes, computed(PARITY), 2)
        parity = seconds(lambda codes=codes: permuted_parity(lists, codes, computed(PARITY)))
        spreads = seconds(lambda codes=codes: permuted_spreads(values, codes))
        blocks = next(permutations(codes, LOOPED))
        loop = seconds(lambda blocks=blocks: [list_metrics(lists, {"a": labels}) for labels in blocks])
        loop *= PERMUTATIONS / LOOPED
        rows.append([name, f"{parity:.2f}", f"{spreads:.2f}", f"{loop:.1f}", f"{loop / parity:.0f}"])
    headers = ["attribute", "parity, s", "gap and std, s", "loop, s", "times as fast"]
    return tabulate(rows, headers, tablefmt="pipe")


def planted_table() -> str:
    """Tabulate the parity figures of lists whose groups' rates differ by a planted share, for each setting."""
    table = []
    for difference in (0.0, 0.2, 0.4, 0.8):
        for users, share, zipf in SETTINGS:
            topk, codes = planted_lists(difference, users, share, zipf, seed=0)
            degree = np.ones(topk.shape[1])
            lists = Lists(topk, ItemLists(np.zeros(users + 1, np.int64), np.zeros(0, np.int64)), degree > 1, degree)
            rows = [row for row in computed(PARITY) if row.name in FIGURES]
            permuted, seen = permuted_parity(lists, codes, rows, 50), ByGroup.of(lists, codes)
            cells = [f"{difference:g}", users, share, zipf]
            for row in rows:
                value = float(row.function(seen))
                parts = level(value, permuted[row.name])
                deviations = parts["excess"] / parts["chance_std"]
                cells += [f"{value:.2f}", f"{parts['excess']:+.2f}", f"{deviations:.0f}"]
            table.append(cells)
    heads = [f"{row.head}{part}" for row in rows for part in ("", ", excess", ", deviations")]
    return tabulate(table, ["planted", "users", "smaller group", "exponent", *heads], tablefmt="pipe")


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planted", action="store_true")
    print(planted_table() if parser.parse_args().planted else time_table())


if __name__ == "__main__":
    main()
