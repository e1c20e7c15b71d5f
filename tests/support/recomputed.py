"""Every figure of result.json again, from the files that a run leaves and with pandas alone.

Nothing of the program is imported: what is written here is what a reader of the files would write. Left out is leakage,
which needs the weights, and the chance level of figures by user group, which needs the program's permutations.
"""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

NAN = float("nan")


def reported(folder: Path) -> dict[str, float]:
    """The figures of result.json that the files tell."""
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    others = {"chance", "chance_std", "excess", "p", "low", "high", "users", "hits"}
    names = [name for name in metrics if "leakage" not in name and not others & set(name.split("/"))]
    return {name: NAN if metrics[name] is None else metrics[name] for name in names}


def recomputed(folder: Path, first: str = "") -> dict[str, float]:
    """The same figures from recommendations, ranks, items and users; settings and sizes are from the JSON files.

    Of two groups a signed difference is that of `first` less the other.
    """
    config, result = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "result"))
    lists, ranks, items, users = (
        pd.read_parquet(folder / f"{name}.parquet") for name in ("recommendations", "ranks", "items", "per_user")
    )
    labels = users.set_index("user")[list(config["user_attribute"])]
    figures = {}
    for name in lists["list"].unique():
        catalogue = items[items["phase"] == phase_of(name, items)].set_index("item")
        of_list, found = lists[lists["list"] == name], ranks[ranks["list"] == name]
        for k in config["eval_k"]:
            protocol, shown = result["protocol"], of_list[of_list["rank"] <= k]
            values = accuracy(found, catalogue, labels, k, protocol, result["users"], first)
            values |= exposure(shown, catalogue, k)
            values |= parity(shown, labels.loc[found["user"].unique()], catalogue, k, protocol == "fda")
            figures |= {f"{name}/{key}": value for key, value in values.items()}
        if name.endswith("/reranked"):
            pools = lists[lists["list"] == name.removesuffix("/reranked")]
            figures[f"{name}/infeasible_users"] = infeasible(pools, catalogue, config)
    return figures | means_over_phases(figures, config) if result["protocol"] == "fade" else figures


def phase_of(name: str, items: pd.DataFrame) -> str:
    """The phase that a list is of: its name says it where there are several."""
    phases = items["phase"].unique()
    return phases[0] if len(phases) == 1 else next(part for part in name.split("/") if part in phases)


def weight(rank: int) -> float:
    return 1 / math.log2(rank + 1)


def by_user(found: pd.DataFrame, k: int, protocol: str) -> pd.DataFrame:
    """Accuracy of each user who has a test item among `found`."""
    wanted = found.groupby("user").size()
    hits = found[found["rank"] <= k]
    counts = hits.groupby("user").size().reindex(wanted.index, fill_value=0)
    gains = hits["rank"].map(weight).groupby(hits["user"]).sum().reindex(wanted.index, fill_value=0.0)
    ideal = wanted.clip(upper=k).map(lambda count: sum(weight(place) for place in range(1, count + 1)))
    best = (1 / hits.groupby("user")["rank"].min()).reindex(wanted.index, fill_value=0.0)
    rate = counts / wanted.clip(upper=k) if protocol == "fda" else (counts > 0).astype(float)
    values = pd.DataFrame({"hr": rate, "ndcg": gains / ideal, "mrr": best})
    if protocol in ("cofair", "fade"):
        values = values.assign(recall=counts / wanted)
    if protocol == "fade":
        of_hits = counts.map(lambda count: sum(weight(place) for place in range(1, count + 1)))
        values = values.assign(f1=2 * counts / (k + wanted), ndcg_hits=(gains / of_hits).fillna(0.0))
    return values


def accuracy(found, catalogue, labels, k, protocol, num_users, first) -> dict[str, float]:
    values = by_user(found, k, protocol)
    figures = {f"{name}@{k}": values[name].mean() for name in values}
    if protocol == "fda":  # who has no test item counts as 0
        figures[f"ndcg@{k}"] = values["ndcg"].sum() / num_users
    popularity = found["item"].map(catalogue["popularity"])
    for part in ("head", "tail"):
        restricted = by_user(found[popularity == part], k, protocol)
        figures |= {f"{name}@{k}/{part}": restricted[name].mean() for name in restricted}
    for attribute in labels:
        means = values.groupby(labels[attribute].loc[values.index]).mean()
        for name in values:
            figures |= {f"{name}@{k}/{attribute}/{label}": mean for label, mean in means[name].items()}
            several = len(means) > 1
            figures[f"{name}@{k}/gap/{attribute}"] = means[name].max() - means[name].min() if several else NAN
            figures[f"{name}@{k}/std/{attribute}"] = means[name].std(ddof=0) if several else NAN
            if protocol == "fade":
                other = next(label for label in means.index if label != first)
                figures[f"{name}@{k}/difference/{attribute}"] = means[name].get(first, NAN) - means[name].get(
                    other, NAN
                )
    return figures


def means_over_phases(figures: dict[str, float], config: dict) -> dict[str, float]:
    """Under FADE's protocol, what stands for the mean over the snapshots after the first."""
    last = dict(option.split("=") for option in config["protocol_option"])["averaged"]
    first, phases = "/snapshot-1/", [f"/snapshot-{number}/" for number in range(1, int(last) + 1)]
    return {
        name.replace(first, "/mean/"): sum(figures[name.replace(first, phase)] for phase in phases) / len(phases)
        for name in figures
        if first in name
    }


def gini(values: pd.Series) -> float:
    ordered = values.sort_values().reset_index(drop=True)
    count = len(ordered)
    return ((2 * (ordered.index + 1) - count - 1) * ordered).sum() / (count * ordered.sum())


def exposure(shown: pd.DataFrame, catalogue: pd.DataFrame, k: int) -> dict[str, float]:
    counts = shown.groupby("item").size().reindex(catalogue.index, fill_value=0)
    exposures = shown["rank"].map(weight).groupby(shown["item"]).sum().reindex(catalogue.index, fill_value=0.0)
    degree, is_tail = catalogue["train_degree"], catalogue["popularity"] == "tail"
    tail, head = exposures[is_tail].sum(), exposures[~is_tail].sum()
    merit_of_tail, merit_of_head = degree[is_tail].sum(), degree[~is_tail].sum()
    defined = head and merit_of_tail and merit_of_head
    return {
        f"gini@{k}": gini(exposures),
        f"gini_count@{k}": gini(counts),
        f"coverage@{k}": (counts > 0).mean(),
        f"arp@{k}": shown["item"].map(degree).groupby(shown["user"]).mean().mean(),
        f"aplt@{k}": shown["item"].map(is_tail).groupby(shown["user"]).mean().mean(),
        f"exposure_gap@{k}": tail / exposures.sum() - is_tail.mean(),
        f"dtr@{k}": (tail / merit_of_tail) / (head / merit_of_head) if defined else NAN,
    }


def relative_difference(first: np.ndarray, second: np.ndarray) -> float:
    covered = first + second > 0
    return (abs(first - second)[covered] / (first + second)[covered]).mean() if covered.any() else NAN


def js_distance(first: np.ndarray, second: np.ndarray) -> float:
    if not first.sum() or not second.sum():
        return NAN
    p, q = first / first.sum(), second / second.sum()
    terms = [part[part > 0] * np.log(2 * part[part > 0] / (p + q)[part > 0]) for part in (p, q)]
    return math.sqrt(max(0.0, sum(term.sum() for term in terms) / 2))


def of_shared_items(first: np.ndarray, second: np.ndarray, sizes: tuple[int, int]) -> float:
    """How much more two users of one group share than two of different groups, of counts of items by group."""
    if min(sizes) < 2:
        return NAN
    groups = zip((first, second), sizes, strict=True)
    within = sum((counts * (counts - 1)).sum() / (size * (size - 1)) for counts, size in groups) / 2
    between = (first * second).sum() / (sizes[0] * sizes[1])
    return (within - between) / (within + between) if within + between else NAN


def parity(shown, labels, catalogue, k, is_fda) -> dict[str, float]:
    hits = shown[shown["relevant"]]
    kinds = {"dp": (shown, shown["item"]), "eo": (hits, hits["item"])}
    if is_fda:
        # the released code tells an item that is a hit from the same item where it is none, and loses the first item
        kinds["dp_code"] = shown, shown["item"].astype(str) + shown["relevant"].map({True: " hit", False: ""})
        kept = hits[hits["item"] != catalogue.index[0]]
        kinds["eo_code"] = kept, kept["item"]
    figures = {}
    for attribute in labels:
        sizes = labels[attribute].value_counts()
        pairs = list(combinations(sizes.index, 2))
        for kind, (rows, names) in kinds.items():
            group = rows["user"].map(labels[attribute])
            table = pd.crosstab(group, names).reindex(sizes.index, fill_value=0)
            counts = dict(zip(sizes.index, table.to_numpy(), strict=True))
            rates = {label: counts[label] / sizes[label] for label in counts}
            of_pairs = {kind: [relative_difference(counts[a], counts[b]) for a, b in pairs]}
            if not kind.endswith("code"):
                of_pairs[f"{kind}_rate"] = [relative_difference(rates[a], rates[b]) for a, b in pairs]
                of_pairs[f"{kind}_js"] = [js_distance(counts[a], counts[b]) for a, b in pairs]
            # a pair that is shown nothing is left out
            figures |= {f"{name}@{k}/{attribute}": pd.Series(values).mean() for name, values in of_pairs.items()}
            if not kind.endswith("code"):
                mean = pd.Series([of_shared_items(counts[a], counts[b], (sizes[a], sizes[b])) for a, b in pairs]).mean()
                figures[f"{kind}_debiased@{k}/{attribute}"] = math.copysign(math.sqrt(abs(mean)), mean)
    return figures


def infeasible(pools: pd.DataFrame, catalogue: pd.DataFrame, config: dict) -> int:
    """Users whose pool has too few tail items for the floor."""
    k, floor = config["eval_k"][0], config["exposure_floor"]
    pool = pools[pools["rank"] <= config["rerank_pool"]]
    tail = (pool["item"].map(catalogue["popularity"]) == "tail").groupby(pool["user"]).sum().clip(upper=k)
    most = tail.map(lambda count: sum(weight(place) for place in range(1, count + 1)))
    return int((most < floor * sum(weight(place) for place in range(1, k + 1)) - 1e-12).sum())
