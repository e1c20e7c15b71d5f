"""What a run found, in a few sentences: accuracy, the tail, parity, leakage, and how many warnings there are."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from model.evaluation.keys import POPULAR, ListKey, MetricKey, is_one, run_lists
from model.evaluation.metric_kinds import ACCURACY, HEADLINE, LEVELS
from model.evaluation.metric_table import shown_in
from model.results.metric_text import Chance, cell, chance_cell, chance_of, excess_cell, name_of

Metrics = Mapping[str, float | None]


def summary_lines(
    results: Mapping[str, Metrics],
    attributes: Iterable[str],
    k: int,
    first: ListKey | None = None,
    hidden: Collection[str] | None = None,
    warnings: Sequence[str] | None = None,
    levels: Mapping[str, str] | None = None,
) -> list[str]:
    """Say what `results` (list -> metric -> value) found at cut-off `k`; what was not measured is left out.

    Of several lists it speaks of the `first` (default: the one list of a run), and says so; of `levels`, lists of one
    training in their order, each with its name, also what lies between the first and the last. `attributes` are the
    user attributes in the order of the report, `hidden` those that training was asked to hide, and `warnings` those
    that the page lists below (None: not known).
    """
    first, names = first or ListKey(), run_lists(results)
    run, popular = results.get(str(first), {}), results.get(str(first.beside(POPULAR)), {})
    reranked = results.get(str(first.after_reranking()), {})
    attributes = list(attributes)
    lines = [
        "" if is_one(names) else f"Of {len(names)} lists this is about {first}.",
        _accuracy(run, popular, reranked, k),
        _tail(run, popular, reranked, k),
        _parity(run, reranked, attributes, k),
        _leakage(run, attributes, hidden),
        _over_levels(results, levels, attributes, k) if levels else "",
    ]
    if warnings is not None:
        lines.append(f"Warnings: {f'{len(warnings)}, listed below' if warnings else 'none'}.")
    return [line for line in lines if line]


def _known(metrics: Metrics, key: MetricKey) -> bool:
    value = metrics.get(str(key))
    return value is not None and not math.isnan(value)


def _amount(metrics: Metrics, key: MetricKey) -> str:
    """The metric as text with its unit; nothing where it is undefined or was not measured."""
    unit = " %" if key.metric.kind == ACCURACY else ""
    return f"{cell(key, metrics[str(key)])}{unit}" if _known(metrics, key) else ""


def _sentence(subject: str, parts: Iterable[str]) -> str:
    """A sentence of those parts that say something; nothing where none does."""
    text = "; ".join(part for part in parts if part)
    return f"{subject}: {text}." if text else ""


def _accuracy(run: Metrics, popular: Metrics, reranked: Metrics, k: int) -> str:
    key = MetricKey("ndcg", k)
    if not _known(run, key):
        return ""
    found = f"{name_of(key)} is {_amount(run, key)}"
    if _known(popular, key):
        value, yardstick = run[str(key)], popular[str(key)]
        ratio = f"{'only ' * bool(value < yardstick)}{value / yardstick:.2f} times" if yardstick > 0 else "against"
        found += f", {ratio} the {_amount(popular, key)} of a most-popular ranking"
    return _sentence("Accuracy", [found, _other("re-ranked", [_amount(reranked, key)])])


def _tail(run: Metrics, popular: Metrics, reranked: Metrics, k: int) -> str:
    accuracy, share = MetricKey("ndcg", k, "tail"), MetricKey("aplt", k)
    found = [
        f"{name_of(MetricKey(accuracy.name, k))} on tail items is {_amount(run, accuracy)}" * _known(run, accuracy),
        f"they take {_places(run, share)} of the places in the lists" * _known(run, share),
        _other("re-ranked", [_amount(reranked, accuracy), _places(reranked, share)]),
        _other("a most-popular ranking", [_amount(popular, accuracy), _places(popular, share)]),
    ]
    return _sentence("Tail", found if any(found[:2]) else [])


def _places(metrics: Metrics, share: MetricKey) -> str:
    return f"{metrics[str(share)]:.1%}".replace("%", " %") if _known(metrics, share) else ""


def _other(name: str, amounts: Sequence[str]) -> str:
    text = " and ".join(amount for amount in amounts if amount)
    return f"{name} {text}" if text else ""


def _parity(run: Metrics, reranked: Metrics, attributes: Sequence[str], k: int) -> str:
    """The first attribute in full, also after re-ranking, the others by their excess over chance."""
    found = []
    for row in shown_in(HEADLINE):
        keys = [MetricKey(row.name, k if row.at_k else None, attribute) for attribute in attributes]
        keys = [key for key in keys if _known(run, key)]
        if not keys:
            continue
        first, *others = keys
        found.append(f"{row.head} by {first.group} {_beside_chance(run, first)}")
        if _known(reranked, first):
            found.append(f"re-ranked {_above_chance(reranked, first)}")
        found += [f"by {key.group} {_above_chance(run, key)}" for key in others]
    return _sentence("Parity", found)


def _beside_chance(metrics: Metrics, key: MetricKey) -> str:
    """The figure beside what shuffled labels give, and whether it is beyond that."""
    if chance_of(metrics, key) is None:
        return _above_chance(metrics, key)
    return f"{_amount(metrics, key)}, chance {chance_cell(metrics, key)}, {_above_chance(metrics, key)}"


def _above_chance(metrics: Metrics, key: MetricKey) -> str:
    chance = chance_of(metrics, key)
    if chance is None:
        return f"{_amount(metrics, key)} (chance level not known)"
    return f"excess {excess_cell(metrics, key)} ({_verdict(chance)})"


def _verdict(chance: Chance) -> str:
    if chance.within:
        return "within chance"
    return "beyond chance" if chance.excess > 0 else "less than chance gives"


def _leakage(run: Metrics, attributes: Sequence[str], hidden: Collection[str] | None) -> str:
    found = []
    for attribute in attributes:
        key, notes = MetricKey("leakage_auc", None, attribute), []
        if not _known(run, key):
            continue
        if hidden is not None:
            notes.append("training was asked to hide it" if attribute in hidden else "nobody asked to hide it")
        chance = chance_of(run, key)
        if chance is not None:
            notes.append(_verdict(chance))
        found.append(f"{attribute} with AUC {_amount(run, key)}" + (f" ({', '.join(notes)})" if notes else ""))
    return _sentence("Leakage", [f"the strongest attacker reads {', '.join(found)}", "0.5 is none"] if found else [])


def _over_levels(results: Mapping[str, Metrics], levels: Mapping[str, str], attributes: Sequence[str], k: int) -> str:
    """What the first and the last level give: accuracy, and parity and leakage of the first attribute."""
    start, *_, end = levels
    keys = {name_of(MetricKey("ndcg", k)): MetricKey("ndcg", k)}
    for attribute in attributes[:1]:
        keys |= {row.head: MetricKey(row.name, k if row.at_k else None, attribute) for row in shown_in(LEVELS)}
    amounts = {name: [_amount(results[one], key) for one in (start, end)] for name, key in keys.items()}
    found = [f"{name} from {before} to {after}" for name, (before, after) in amounts.items() if before and after]
    return _sentence(f"Levels {levels[start]} to {levels[end]}", found)
