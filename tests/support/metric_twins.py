"""Naive twins of the metrics: loops over users and items, as the definitions read."""

from __future__ import annotations

import math
from itertools import combinations

# Literal twins: plain loops over plain lists, as the definitions read.


def twin_mean(values):
    values = [value for value in values if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def twin_exposure(topk, num_items, discounted):
    shown = [0.0] * num_items
    for row in topk.tolist():
        for position, item in enumerate(row, start=1):
            if item >= 0:
                shown[item] += 1 / math.log2(position + 1) if discounted else 1
    return shown


def twin_gini(values):
    total = sum(values)
    if total == 0:
        return math.nan
    differences = sum(abs(a - b) for a in values for b in values)
    return differences / (2 * len(values) * total)


def twin_in_list(topk, values):
    lists = [[values[item] for item in row if item >= 0] for row in topk.tolist()]
    return twin_mean([sum(entries) / len(entries) for entries in lists if entries])


def twin_group_counts(topk, codes, num_items, relevant=None):
    counts = {}
    for user, (row, code) in enumerate(zip(topk.tolist(), codes.tolist(), strict=True)):
        if code < 0:
            continue
        shown = counts.setdefault(code, [0] * num_items)
        for item in row:
            if item >= 0 and (relevant is None or item in relevant[user]):
                shown[item] += 1
    return counts


def twin_parity(topk, codes, num_items, by_rate=False, relevant=None):
    counts = twin_group_counts(topk, codes, num_items, relevant)
    values = []
    for a, b in combinations(sorted(counts), 2):
        scale_a, scale_b = (sum(codes == a), sum(codes == b)) if by_rate else (1, 1)
        terms = []
        for item in range(num_items):
            first, second = counts[a][item] / scale_a, counts[b][item] / scale_b
            if first + second > 0:
                terms.append(abs(first - second) / (first + second))
        values.append(twin_mean(terms))
    return twin_mean(values)


def twin_js(topk, codes, num_items, relevant=None):
    counts = twin_group_counts(topk, codes, num_items, relevant)
    values = []
    for a, b in combinations(sorted(counts), 2):
        totals = sum(counts[a]), sum(counts[b])
        if 0 in totals:
            continue
        divergence = 0.0
        for first, second in zip(counts[a], counts[b], strict=True):
            p, q = first / totals[0], second / totals[1]
            middle = (p + q) / 2
            divergence += sum(share * math.log(share / middle) / 2 for share in (p, q) if share > 0)
        values.append(math.sqrt(max(divergence, 0.0)))
    return twin_mean(values)


def twin_dtr(exposures, tail, merit):
    def mean(values, wanted):
        chosen = [value for value, member in zip(values, tail, strict=True) if bool(member) == wanted]
        return sum(chosen) / len(chosen) if chosen else 0.0

    if 0 in (mean(merit, True), mean(merit, False), mean(exposures, False)):
        return math.nan
    return (mean(exposures, True) / mean(merit, True)) / (mean(exposures, False) / mean(merit, False))


def twin_gap(exposures, tail, merit):
    if sum(exposures) == 0 or sum(merit) == 0:
        return math.nan

    def share(values):
        return sum(value for value, member in zip(values, tail, strict=True) if member) / sum(values)

    return share(exposures) - share(merit)


def twin_accuracy(ranks, k):
    """One user's accuracy from the ranks of the relevant items."""
    if not ranks:
        return dict.fromkeys(("hr", "ndcg", "mrr", "recall", "f1", "ndcg_hits"), math.nan)
    hits = [rank for rank in ranks if rank <= k]
    gain = sum(1 / math.log2(rank + 1) for rank in hits)
    ideal, of_hits = (
        sum(1 / math.log2(position + 1) for position in range(1, count + 1))
        for count in (min(k, len(ranks)), len(hits))
    )
    precision, recall = len(hits) / k, len(hits) / len(ranks)
    return {
        "hr": 1.0 if hits else 0.0,
        "ndcg": gain / ideal,
        "mrr": 1 / min(hits) if hits else 0.0,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "ndcg_hits": gain / of_hits if hits else 0.0,
    }


def twin_debiased(topk, codes, relevant=None):
    """Over every pair of two users: how many items their lists share."""
    lists = [
        {item for item in row if item >= 0 and (relevant is None or item in relevant[user])}
        for user, row in enumerate(topk.tolist())
    ]
    members = {code: [u for u, own in enumerate(codes.tolist()) if own == code] for code in set(codes.tolist()) - {-1}}

    def overlap(pairs):
        shared = [len(lists[first] & lists[second]) for first, second in pairs]
        return sum(shared) / len(shared) if shared else math.nan

    values = []
    for a, b in combinations(sorted(members), 2):
        within = (overlap(combinations(members[a], 2)) + overlap(combinations(members[b], 2))) / 2
        between = overlap([(first, second) for first in members[a] for second in members[b]])
        if within + between > 0:
            values.append((within - between) / (within + between))
    value = twin_mean(values)
    return math.copysign(math.sqrt(abs(value)), value)
