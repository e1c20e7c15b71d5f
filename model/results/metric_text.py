"""Metrics as text: their names, cells and better sides, and which of them a table has."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from model.evaluation.keys import CHANCE, CHANCE_STD, EXCESS, MetricKey, P
from model.evaluation.metric_kinds import ACCURACY, RUN, SPREAD
from model.evaluation.metric_table import METRICS, of_kind, shown_in

UNDEFINED = "\N{EN DASH}"
ARROWS = {"lower": "↓", "higher": "↑", "zero": "→0", "one": "→1"}
# stands behind a value that labels permuted among the users reach as well
WITHIN = "~"
# a one-sided p between these two is one of a value inside the central 95 % of the permutations
RANGE = (0.025, 0.975)
ROUNDING = 1e-9
LEGEND = f"Better: ↓ lower, ↑ higher, →0 near 0, →1 near 1.  {UNDEFINED} undefined"


@dataclass(frozen=True)
class Chance:
    """What permuted labels give: `mean` and `std` of the figure, its `excess` over the mean, and the one-sided `p`.

    A mean over phases has no `std` and no `p` (NaN).
    """

    mean: float
    excess: float
    std: float = math.nan
    p: float = math.nan

    @property
    def within(self) -> bool:
        """Whether the figure is in the central 95 % of the permutations."""
        # permutations that all give the figure itself have p = 1
        return RANGE[0] < self.p < RANGE[1] or abs(self.excess) < ROUNDING


def chance_of(metrics: Mapping[str, float | None], key: MetricKey) -> Chance | None:
    """Read the chance level of the figure `key` among `metrics`; None where there is none, or an undefined one."""
    own = {part: metrics.get(str(key.of(part))) for part in (CHANCE, EXCESS, CHANCE_STD, P)}
    if any(own[part] is None or math.isnan(own[part]) for part in (CHANCE, EXCESS)):
        return None
    return Chance(*(math.nan if value is None else value for value in own.values()))


def name_of(key: MetricKey) -> str:
    """Give the long name: `NDCG@10, gap by gender`, `Demographic parity, rates, gender`."""
    row = key.metric
    name = f"{row.title}@{key.k}" if row.kind == ACCURACY else row.title
    of_whom = f"{key.spread} by {key.group}" if key.spread else f"{key.group} {key.label}".strip()
    return f"{name}, {of_whom}" if of_whom else name


def axis_name(key: MetricKey) -> str:
    """Give the name of a picture's axis: the long name without remarks, whether it is the excess, and the unit."""
    name = re.sub(r" \([^)]*\)", "", name_of(key))
    return f"{name}{', above chance' * (key.part == EXCESS)}{' (%)' * (key.metric.scale == 100)}"


def axis_reference(key: MetricKey) -> tuple[float, ...]:
    """Give the value that a picture's axis shows in any case: of what depends on user groups, where they are alike."""
    if key.part:
        return (0.0,)
    ideal = key.judged_by.ideal
    return (key.metric.scale * float(ideal),) if key.by_groups and ideal.replace(".", "").isdigit() else ()


def short_name(key: MetricKey) -> str:
    """Give the short name, where the table says K and the attribute: `NDCG gap`, `DP rate`."""
    return f"{key.metric.head} {key.judged_by.head}" if key.spread else key.metric.head


def arrow(key: MetricKey) -> str:
    """Give the arrow to the better side."""
    return ARROWS[key.judged_by.better]


def cell(key: MetricKey, value: float | None, signed: bool = False) -> str:
    """Write the value as text: a dash where it is undefined, with a sign also above 0 where `signed`."""
    if value is None or math.isnan(value):
        return UNDEFINED
    row = key.metric
    # z: what rounds to zero has no minus
    return f"{row.scale * value:{'+' if signed else ''}z.{row.digits}f}"


def cell_of(metrics: Mapping[str, float | None], key: MetricKey) -> str:
    """Write the metric of `key` among `metrics` as text; nothing where it was not measured."""
    return cell(key, metrics[str(key)]) if str(key) in metrics else ""


def figure(metrics: Mapping[str, float | None], key: MetricKey) -> str:
    """Write the metric of `key` as `cell_of`, with the mark `WITHIN` behind it where permuted labels reach it too."""
    chance = chance_of(metrics, key)
    return cell_of(metrics, key) + (WITHIN if chance is not None and chance.within else "")


def chance_cell(metrics: Mapping[str, float | None], key: MetricKey) -> str:
    """Write the chance level of a figure as `mean ± standard deviation`; nothing where there is none."""
    chance = chance_of(metrics, key)
    if chance is None or math.isnan(chance.std):
        return "" if chance is None else cell(key, chance.mean)
    return f"{cell(key, chance.mean)} ± {cell(key, chance.std)}"


def excess_cell(metrics: Mapping[str, float | None], key: MetricKey) -> str:
    """Write how far a figure is above its chance level, with its sign; nothing where there is none."""
    chance = chance_of(metrics, key)
    return "" if chance is None else cell(key, chance.excess, signed=True)


def count_cell(metrics: Mapping[str, float | None], key: MetricKey) -> str:
    """Write the count of `key` among `metrics` as text; nothing where it was not made."""
    return f"{metrics[str(key)]:,.0f}" if str(key) in metrics else ""


def interval(key: MetricKey, low: float, high: float, signed: bool = False) -> str:
    """Write an interval as text."""
    return UNDEFINED if math.isnan(low) else f"[{cell(key, low, signed)}, {cell(key, high, signed)}]"


def parsed(keys: Iterable[str]) -> list[MetricKey]:
    """Read keys from their texts; ValueError for a metric that the metric table does not have."""
    return [MetricKey.parse(text) for text in keys]


def main_metrics(keys: Iterable[str], k: int) -> list[MetricKey]:
    """Choose those of `keys` that a table shows at cut-off `k`, in the order of the metric table.

    These are accuracy overall, of head and tail items, and its gaps; exposure and parity; leakage.
    """
    names = [row.name for row in shown_in(RUN)]
    order = [row.name for row in of_kind(ACCURACY)]
    order += [name for name in METRICS if name not in order]
    places = {}
    for key in parsed(keys):
        if key.part or key.name not in names or key.k not in (None, k):
            continue
        if key.metric.kind == ACCURACY and (key.label or (key.spread and key.spread not in names)):
            continue
        places[key] = (order.index(key.name), bool(key.spread), key.group)
    return sorted(places, key=places.get)


def columns(place: str, keys: Collection[str], k: int, attribute: str = "") -> dict[str, str]:
    """Choose what a table with a line for each run, list or epoch shows: metric key -> header, of `keys` alone.

    Accuracy is that of the whole list; NDCG also of head and tail items, and as gap between the groups of `attribute`.
    """
    rows = shown_in(place)
    candidates = {MetricKey(row.name, k): row.head for row in rows if row.kind == ACCURACY}
    candidates |= {MetricKey("ndcg", k, part): part for part in ("head", "tail")}
    candidates |= {MetricKey("ndcg", k, attribute, spread=row.name): row.head for row in rows if row.kind == SPREAD}
    for row in rows:
        if row.kind not in (ACCURACY, SPREAD):
            of_whom = attribute if row.of_attribute else ""
            candidates[MetricKey(row.name, k if row.at_k else None, of_whom)] = row.head
    return {str(key): head for key, head in candidates.items() if str(key) in keys}


def best(key: MetricKey, values: Sequence[float]) -> set[int]:
    """Find which of `values` are the best as shown; none where all are the same."""
    row, better = key.metric, key.judged_by.better
    target = {"zero": 0, "one": 1}.get(better)
    distances = {}
    for place, value in enumerate(values):
        if not math.isnan(value):
            rounded = round(row.scale * value, row.digits)
            sign = -1 if better == "higher" else 1
            distances[place] = sign * rounded if target is None else abs(rounded - row.scale * target)
    least = min(distances.values(), default=None)
    winners = {place for place, distance in distances.items() if distance == least}
    return winners if len(winners) < len(distances) else set()
