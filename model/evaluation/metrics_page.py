"""The metric table as a page: `python -m model.evaluation.metrics_page > model/results/METRICS.md`."""

from __future__ import annotations

from model.evaluation.metric_kinds import BETTER, HEADLINE, KINDS, SPREAD, Metric
from model.evaluation.metric_table import of_kind, shown_in


def markdown() -> str:
    """Write the table as a page."""
    lines = [
        "# Metrics",
        "",
        "Made from the metric table; do not edit. To make it again:",
        "`python -m model.evaluation.metrics_page > model/results/METRICS.md`",
        "",
        "All values are fractions unless the range says otherwise. Undefined is NaN (null in JSON), never 0. In keys",
        "`@K` is the length of the list and `a` a user attribute; accuracy also comes as `.../head` and `.../tail`",
        "(test items of the head, of the tail) and `.../a/label` (users of a group). With more than two groups parity",
        "is the mean over pairs of groups and leakage macro one-vs-rest. Users of unknown group are left out of group",
        "metrics.",
        "",
        "**Chance.** A figure by user group (parity, leakage, a spread) is not 0 where groups do not matter.",
        "Beside each stand `name@K/chance/a` and `.../chance_std/a`, mean and standard deviation of the same",
        "figure when the labels are permuted 200 times among the users, the lists as they are; `.../excess/a`,",
        "the value less that mean; and `.../p/a`, the one-sided share of permutations that reach it. `~` marks a",
        "value in their central 95 %.",
        "",
        f"**Headline.** A claim about parity is made on {_listed(shown_in(HEADLINE))}.",
        "Neither the excess of a rate or distance nor its",
        "number of standard deviations can carry one: both move with how concentrated the lists are and how large",
        "the groups, also where the dependence on the group stays the same. The debiased figure compares users",
        "with others alone, never with themselves: it is 0 where lists do not depend on the group, and the",
        "planted difference of the rates where they do, in every setting that was tried",
        "([measured](../../tests/benchmarks/results/README.md#which-parity-figure-a-claim-can-be-made-on)).",
    ]
    for kind, meaning in KINDS.items():
        lines += ["", f"## {kind.capitalize()}: {meaning}", ""]
        lines += ["| key | name | definition | range | ideal | better |", "|---|---|---|---|---|---|"]
        for row in of_kind(kind):
            cells = [f"`{_key_of(row)}`", row.title, row.definition, row.range, row.ideal, BETTER[row.better]]
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _listed(rows: list[Metric]) -> str:
    return ", ".join(f"`{row.name}`" for row in rows)


def _key_of(row: Metric) -> str:
    if row.kind == SPREAD:
        return f"(accuracy)@K/{row.name}/a"
    return row.name + "@K" * row.at_k + "/a" * row.of_attribute


if __name__ == "__main__":
    print(markdown(), end="")
