"""What alpha does to the sampled history on MovieLens-1M.

    python -m tests.benchmarks.sampling --dataset_dir=./datasets

One history of N = 15 per user from the leave-one-out train split, T = 0.01, gender: natural-log Jensen-Shannon
divergence between the groups' item distributions (sampled, and of the expected first draw), and the tail's share of
history items by group.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from data.protocols.base import ProtocolSettings
from data.protocols.loo import leave_one_out
from data.readers.movielens import read_movielens
from data.readers.options import ReadOptions
from data.sampling.histories import HistorySampler
from data.sampling.sources import history_source
from data.structs import Group, Split
from fairness_utils import expected_group_distributions, fairness_history_weights, js_divergence
from model.runs.presets import preset
from model.runs.streams import stream_seeds, torch_generator

ROWS = (("uniform", 1.0, np.inf), *((f"alpha = {alpha:g}", alpha, 0.01) for alpha in (1, 0.75, 0.5, 0.25, 0)))


def sampled_distributions(sampler: HistorySampler, split: Split, group: Group, seed: int) -> tuple[np.ndarray, list]:
    """Compute the item distribution of each group's sampled histories `[G, I]`, and the tail's share of them."""
    users = torch.arange(split.num_users)
    history = sampler.sample(users, None, torch_generator(seed))
    is_tail = split.item_groups["popularity"].codes == 1
    counts = np.zeros((group.num_groups, split.num_items))
    for code in range(group.num_groups):
        chosen = torch.from_numpy(group.codes == code)
        items = history.items[chosen][history.mask[chosen]].numpy()
        counts[code] = np.bincount(items, minlength=split.num_items)
    share = counts / counts.sum(1, keepdims=True)
    return share, [f"{row[is_tail].sum():.3f}" for row in share]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, default=Path("datasets"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = read_movielens(ReadOptions(arguments.dataset_dir, "hash", Path("unused")))
    options = ProtocolSettings(preset("ml")["warm_threshold"], (10,), 1, 1)
    split = leave_one_out(data, options, np.random.default_rng(0)).phases[0].split
    group = data.user_groups["gender"]
    seed = stream_seeds(arguments.seed)["history"]
    rows = []
    for name, alpha, temperature in ROWS:
        weights = fairness_history_weights(split.histories, split.degree, group, alpha, temperature)
        expected = expected_group_distributions(split.histories, weights, group, split.num_items)
        sampler = history_source("sampled", split.histories, weights, 15, torch.device("cpu"))
        sampled, tail = sampled_distributions(sampler, split, group, seed)
        rows.append([name, f"{js_divergence(*sampled):.3f}", f"{js_divergence(*expected):.4f}", " / ".join(tail)])
    print(tabulate(rows, ["sampling", "JS, sampled", "JS, expected first draw", "tail share, M / F"], "github"))


if __name__ == "__main__":
    main()
