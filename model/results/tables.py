"""Tables of one run's metrics, as the console and the report show them."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

WIDTH = 120
UNDEFINED = "\N{EN DASH}"
ARROWS = {"lower": "↓", "higher": "↑", "zero": "→0", "one": "→1"}
REFERENCES = {"most popular": "reference/popular", "random": "reference/random"}
ACCURACY = {"hr": "HR", "ndcg": "NDCG", "mrr": "MRR"}
EXPOSURE_AND_PARITY = {
    "gini": "Gini of exposure",
    "gini_count": "Gini of counts",
    "coverage": "Catalogue coverage",
    "arp": "Average popularity (train interactions)",
    "aplt": "Tail share of the list",
    "exposure_gap": "Tail's exposure share less its catalogue share",
    "dtr": "Exposure per train interaction, tail / head",
    "dp_code": "DP as FDA's code computes it",
    "eo_code": "EO as FDA's code computes it",
    "dp": "Demographic parity, raw counts",
    "eo": "Equal opportunity, raw counts",
    "dp_rate": "Demographic parity, rates",
    "eo_rate": "Equal opportunity, rates",
    "dp_js": "Demographic parity, JS distance",
    "eo_js": "Equal opportunity, JS distance",
    "leakage_auc": "Leakage AUC, strongest attacker (0.5: none)",
    "leakage_auc_erased": "Leakage AUC after linear erasure",
}
# More groups than this, or longer labels, get a table of their own with one group a row.
GROUP_COLUMNS, GROUP_COLUMNS_WIDTH = 4, 36
KEY = re.compile(r"(?P<base>[^@/]+)(@(?P<k>\d+))?(/(?P<tail>.+))?")

Row = list[str]


@dataclass(frozen=True)
class Table:
    """A table of texts: the first `left` columns are aligned left, numbers right; `note` stands below it."""

    caption: str
    headers: Row
    rows: list[Row]
    left: int = 1
    note: str = ""

    def text(self) -> str:
        """The table as the console shows it."""
        alignment = ["left"] * self.left + ["right"] * (len(self.headers) - self.left)
        body = tabulate(self.rows, self.headers, tablefmt="simple", disable_numparse=True, colalign=alignment)
        return "\n".join(part for part in (self.caption, body, self.note) if part)


def result_text(header: Mapping[str, str], tables: Sequence[Table]) -> str:
    """The `header` lines and `tables` as text that a reader takes in at a glance."""
    return "\n\n".join(block for block in (_header_lines(header), *(table.text() for table in tables)) if block)


def result_tables(
    results: Mapping[str, float],
    groups: Mapping[str, Sequence[str]],
    k: int,
    directions: Mapping[str, str],
    prefix: str = "test",
    references: Mapping[str, str] = REFERENCES,
) -> list[Table]:
    """Lay out one evaluation's `results` (flat keys, fractions) as tables.

    Accuracy in percent comes first (`groups`: attribute -> labels; the first attribute shares the main table when it
    is small), then exposure and parity with an arrow from `directions` (base name -> lower, higher, zero or one) for
    the better side; a metric that has neither a name here nor a direction is left out. `references` gives each
    yardstick column its key prefix; a column without any value is left out. A dash is an undefined value (NaN), a
    blank one that was not measured.
    """
    runs = {"": prefix}
    if any(name.startswith(f"{prefix}/reranked/") for name in results):
        runs["re-ranked"] = f"{prefix}/reranked"
    yardsticks = {name: root for name, root in references.items() if any(key.startswith(f"{root}/") for key in results)}
    first = next(iter(groups), None)
    inline = first if first is not None and fits_columns(groups[first]) else None
    tables = [_accuracy_table(results, runs, yardsticks, k, inline, groups)]
    tables += [_group_table(results, runs, k, name, groups[name]) for name in groups if name != inline]
    columns = {"this run": prefix, **{name: root for name, root in runs.items() if name}, **yardsticks}
    tables.append(_exposure_table(results, columns, k, directions))
    return [table for table in tables if table.rows]


def fits_columns(labels: Sequence[str]) -> bool:
    """Whether groups of these labels share a table with the rest."""
    return len(labels) <= GROUP_COLUMNS and sum(len(label) + 2 for label in labels) <= GROUP_COLUMNS_WIDTH


def _header_lines(header: Mapping[str, str]) -> str:
    margin = max((len(name) for name in header), default=0) + 2
    return "\n".join(
        textwrap.fill(f"{name:<{margin}}{value}", WIDTH, subsequent_indent=" " * margin)
        for name, value in header.items()
    )


def cell(results: Mapping[str, float], key: str, scale: float = 100, digits: int = 2) -> str:
    """A metric as text: `scale` times it, a dash where it is undefined, nothing where it was not measured."""
    if key not in results:
        return ""
    value = results[key]
    return UNDEFINED if value is None or math.isnan(value) else f"{scale * value:.{digits}f}"


def _accuracy_table(results, runs, yardsticks, k, attribute, groups) -> Table:
    tails = {"overall": "", "head": "/head", "tail": "/tail"}
    if attribute is not None:
        tails |= {label: f"/{attribute}/{label}" for label in groups[attribute]}
    first = next(iter(groups), None)
    if first is not None:
        tails["gap" if attribute is not None else f"gap {first}"] = f"/gap/{first}"
    rows = []
    for base, name in ACCURACY.items():
        for run, root in runs.items():
            row = [f"{name}@{k}{', ' if run else ''}{run}"]
            row += [cell(results, f"{root}/{base}@{k}{tail}") for tail in tails.values()]
            row += ["" if run else cell(results, f"{other}/{base}@{k}") for other in yardsticks.values()]
            rows.append(row)
    of_whom = f"; groups and gap by {attribute}" if attribute is not None else ""
    return Table(f"Accuracy, in percent{of_whom}", ["", *tails, *yardsticks], rows)


def _group_table(results, runs, k, attribute, labels) -> Table:
    columns = [(base, run) for run in runs for base in ACCURACY]
    headers = [attribute] + [f"{ACCURACY[base]}@{k}{', ' if run else ''}{run}" for base, run in columns]
    tails = {**{label: f"{attribute}/{label}" for label in labels}, "gap": f"gap/{attribute}"}
    rows = [
        [label] + [cell(results, f"{runs[run]}/{base}@{k}/{tail}") for base, run in columns]
        for label, tail in tails.items()
    ]
    return Table(f"Accuracy by {attribute}, in percent", headers, rows)


def _exposure_table(results, columns, k, directions) -> Table:
    # Any other name under the prefix is a phase, a task or a control with a table of its own.
    known = (set(directions) | set(EXPOSURE_AND_PARITY)) - set(ACCURACY)
    found = {}
    for root in columns.values():
        for key in results:
            match = KEY.fullmatch(key[len(root) + 1 :]) if key.startswith(f"{root}/") else None
            if match and match["base"] in known and match["k"] in (None, str(k)):
                found[match.group()] = (match["base"], match["tail"] or "")
    order = {base: place for place, base in enumerate(EXPOSURE_AND_PARITY)}
    rows = []
    for tail, (base, of_whom) in sorted(found.items(), key=lambda e: (order.get(e[1][0], len(order)), e[1])):
        name = EXPOSURE_AND_PARITY.get(base, base) + (f", {of_whom}" if of_whom else "")
        digits = 1 if base == "arp" else 4
        cells = [cell(results, f"{root}/{tail}", 1, digits) for root in columns.values()]
        rows.append([name, ARROWS.get(directions.get(base), ""), *cells])
    caption = f"Exposure and parity of the top {k}, as fractions unless a unit is given"
    legend = f"Better: ↓ lower, ↑ higher, →0 near 0, →1 near 1.  {UNDEFINED} undefined."
    return Table(caption, ["", "better", *columns], rows, left=2, note=legend)
