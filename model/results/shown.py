"""What tables of several runs share: which metrics they show and how, and LaTeX that a paper can take."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fairness_utils import DIRECTIONS
from model.results.tables import ACCURACY, EXPOSURE_AND_PARITY, KEY, UNDEFINED

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}

# Columns of a table with a line for each run or list: key -> header; {k} and {attribute} are the primary ones
COLUMNS = {
    "hr@{k}": "HR",
    "ndcg@{k}": "NDCG",
    "mrr@{k}": "MRR",
    "ndcg@{k}/head": "head",
    "ndcg@{k}/tail": "tail",
    "ndcg@{k}/gap/{attribute}": "gap",
    "gini@{k}": "Gini",
    "coverage@{k}": "coverage",
    "arp@{k}": "ARP",
    "aplt@{k}": "APLT",
    "dp_rate@{k}/{attribute}": "DP rate",
    "dp_js@{k}/{attribute}": "DP JS",
    "leakage_auc/{attribute}": "AUC",
}


@dataclass(frozen=True)
class Shown:
    """How a table shows a metric: its key without the list's prefix, name, factor, digits and better side."""

    key: str
    name: str
    scale: float
    digits: int
    better: str | None

    def cell(self, value: float, signed: bool = False) -> str:
        """The value as text; a dash where it is undefined, with a sign also above 0 where `signed`."""
        return UNDEFINED if math.isnan(value) else f"{self.scale * value:{'+' if signed else ''}.{self.digits}f}"

    def interval(self, low: float, high: float, signed: bool = False) -> str:
        """An interval as text."""
        return UNDEFINED if math.isnan(low) else f"[{self.cell(low, signed)}, {self.cell(high, signed)}]"


def shown(key: str) -> Shown:
    """How to show the metric of that key (without a list's prefix): accuracy in percent, the rest as it is."""
    match = KEY.fullmatch(key)
    base, k, tail = match["base"], match["k"], match["tail"] or ""
    gap = tail.startswith("gap/")
    of_whom = f"gap by {tail.removeprefix('gap/')}" if gap else tail.replace("/", " ")
    name = f"{ACCURACY[base]}@{k}" if base in ACCURACY else EXPOSURE_AND_PARITY.get(base, base)
    if base in ACCURACY:
        scale, digits = 100, 2
    else:
        scale, digits = 1, 1 if base == "arp" else 4
    better = DIRECTIONS.get("gap" if gap else base)
    return Shown(key, f"{name}, {of_whom}" if of_whom else name, scale, digits, better)


def main_metrics(keys: Iterable[str], k: int) -> list[Shown]:
    """Those of `keys` (without a list's prefix) that a table shows at cut-off `k`, in its order.

    Accuracy overall, of head and tail items and its gaps; exposure and parity; leakage.
    """
    bases = [*ACCURACY, *EXPOSURE_AND_PARITY]
    places = {}
    for key in keys:
        match = KEY.fullmatch(key)
        if match is None or match["base"] not in bases or match["k"] not in (None, str(k)):
            continue
        tail = match["tail"] or ""
        if match["base"] in ACCURACY and tail not in ("", "head", "tail") and not tail.startswith("gap/"):
            continue
        places[key] = (bases.index(match["base"]), tail.startswith("gap/"), tail)
    return [shown(key) for key in sorted(places, key=places.get)]


def comparison_columns(keys: Collection[str], k: int, attribute: str) -> dict[str, str]:
    """Columns of a table with a line for each run or list, those of `keys` alone: key -> header."""
    columns = {key.format(k=k, attribute=attribute): header for key, header in COLUMNS.items()}
    return {key: header for key, header in columns.items() if key in keys}


def under(metrics: Mapping[str, float], root: str, roots: Iterable[str]) -> dict[str, float]:
    """The metrics of the list `root`, its prefix taken off; those of lists below it (of `roots`) are not its own."""
    below = tuple(f"{other}/" for other in roots if other.startswith(f"{root}/"))
    return {
        key.removeprefix(f"{root}/"): value
        for key, value in metrics.items()
        if key.startswith(f"{root}/") and not key.startswith(below)
    }


def best(metric: Shown, values: Sequence[float]) -> set[int]:
    """Which of `values` are the best as shown; none where the metric has no better side or all are the same."""
    target = {"zero": 0, "one": 1}.get(metric.better)
    distances = {}
    for place, value in enumerate(values):
        if metric.better is not None and not math.isnan(value):
            rounded = round(metric.scale * value, metric.digits)
            sign = -1 if metric.better == "higher" else 1
            distances[place] = sign * rounded if target is None else abs(rounded - metric.scale * target)
    least = min(distances.values(), default=None)
    winners = {place for place, distance in distances.items() if distance == least}
    return winners if len(winners) < len(distances) else set()


def escape(text: str) -> str:
    """`text` as LaTeX sets it."""
    return "".join(_SPECIAL.get(character, character) for character in text).replace(UNDEFINED, "--")


def latex_table(headers: Sequence[str], rows: Iterable[Sequence[str]], caption: str, label: str, long: bool = False):
    """A booktabs table (`long`: over many pages) of cells that are LaTeX already; the first column is left-aligned."""
    columns = "l" + "r" * (len(headers) - 1)
    head = [r"\toprule", " & ".join(headers) + r" \\", r"\midrule"]
    body = [" & ".join(row) + r" \\" for row in rows]
    titles = [rf"\caption{{{caption}}}", rf"\label{{{label}}}"]
    if long:
        lines = [rf"\begin{{longtable}}{{{columns}}}", *titles[:1], titles[1] + r" \\", *head, r"\endhead"]
        lines += [*body, r"\bottomrule", r"\end{longtable}"]
    else:
        lines = [r"\begin{table}", r"\centering", *titles, rf"\begin{{tabular}}{{{columns}}}", *head, *body]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"
