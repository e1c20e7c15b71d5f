"""What a metric is: the kinds of metrics, the places where they are shown, and the row that describes one.

The module stays light (no torch, no matplotlib): what computes a metric is named as "module:name" and loaded on use.
"""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

# Kinds, by what `Metric.compute` gets and gives (classes of metrics.py, lists.py, parity.py).
ACCURACY = "accuracy"  # (Found) -> one value per user [T]; reported overall, for head and tail items, and by user group
EXPOSURE = "exposure"  # (Lists) -> a number of all lists, or one value per user [T] where `per_user`
PARITY = "parity"  # (ByGroup) -> a number for each user attribute [...]
LEAKAGE = "leakage"  # measured by the protocol's probe, for each user attribute
SPREAD = "spread"  # (group means of an accuracy metric [..., G]) -> a number [...]
COUNT = "count"  # counted where it arises
KINDS = {
    ACCURACY: "from the ranks of a user's test items; overall, for head and tail items, by user group",
    EXPOSURE: "from the items that all lists show",
    PARITY: "from the lists of the groups of a user attribute",
    LEAKAGE: "from the user vectors, for each user attribute",
    SPREAD: "between the user groups' means of an accuracy metric",
    COUNT: "counts",
}

# Places where a metric is shown.
RUN = "run"  # the tables of one run, and all rows of a comparison that have no test
COLUMNS = "columns"  # tables with a line for each run or list
PARETO = "pareto"  # a panel of accuracy against fairness
LEVELS = "levels"  # a panel of accuracy against fairness over a method's levels
PHASES = "phases"  # the table over phases
EPOCHS = "epochs"  # the report's table of epochs
HEADLINE = "headline"  # what a claim about parity is made on: the summary, and the first table of a comparison

SHARE, SIGNED, UPWARDS = (0.0, 1.0), (-1.0, 1.0), (0.0, math.inf)
JS_DISTANCE = (0.0, math.sqrt(math.log(2)))
JS_MOST = f"{JS_DISTANCE[1]:.4f}, sqrt(ln 2)"

BETTER = {
    "higher": "higher is better",
    "lower": "lower is better",
    "zero": "the nearer 0 the better",
    "one": "the nearer 1 the better",
}


@dataclass(frozen=True)
class Metric:
    """A row of the table.

    `name` is how keys begin (`ndcg` of `ndcg@10/tail`), `title` its long name, `head` its name as a column. `better` is
    a key of `BETTER`. `definition` is one sentence with its source. Values are between `bounds` (inf: none above), of
    which `most` says the upper one in words where it has some, and `ideal` is a text. Tables show `scale` times the
    value with `digits` decimals. `compute` is a function or "module:name" (None: another part measures it).
    `at_k`: it depends on the cut-off K; `per_user`: it also has one value per user; `further`: it is computed only
    where a protocol's `Definitions` name it; `places`: where it is shown.
    """

    name: str
    title: str
    head: str
    kind: str
    better: str
    bounds: tuple[float, float]
    ideal: str
    definition: str
    compute: str | Callable | None = None
    at_k: bool = True
    per_user: bool = False
    further: bool = False
    places: tuple[str, ...] = (RUN,)
    scale: float = 1
    digits: int = 3
    most: str = ""

    def __post_init__(self):
        if self.kind not in KINDS or self.better not in BETTER:
            raise ValueError(
                f"metric {self.name!r} is of kind {self.kind!r} and better {self.better!r}; allowed are "
                f"{', '.join(KINDS)} and {', '.join(BETTER)}"
            )

    @property
    def of_attribute(self) -> bool:
        """Whether there is one for each user attribute, and none of a list as such."""
        return self.kind in (PARITY, LEAKAGE)

    @property
    def debiased(self) -> bool:
        """Whether chance adds nothing to a parity metric, so that its excess is the value itself."""
        return self.kind == PARITY and self.bounds[0] < 0

    @property
    def range(self) -> str:
        """The bounds in words."""
        low, high = self.bounds
        if math.isinf(high) and not self.most:
            return f"{low:g} upwards"
        return f"{low:g} to {self.most or f'{high:g}'}"

    @property
    def function(self) -> Callable:
        """What computes it."""
        return pkgutil.resolve_name(self.compute) if isinstance(self.compute, str) else self.compute
