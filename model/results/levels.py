"""Which lists are the levels of one training, so that pictures join them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from model import METHODS
from model.evaluation.keys import ListKey, lists_by_control
from model.results.finished import Finished
from model.results.pareto_marks import Curves


def levels_of(method: str, lists: Iterable[str]) -> dict[str, dict[str, str]]:
    """Group a run's own `lists` that are levels of its method, two or more, as `lists_by_control` does."""
    ordered = method in METHODS and METHODS[method].ordered_controls
    groups = lists_by_control(lists) if ordered else {}
    return {label: curve for label, curve in groups.items() if len(curve) > 1}


def curves_of(runs: Sequence[Finished]) -> Curves:
    """Join those of `runs` that are lists of one run under the levels of its method, from the first level on."""
    lists_of: dict[Path, dict[str, Finished]] = {}
    for run in runs:
        lists_of.setdefault(run.folder, {})[run.root] = run
    titles = [folder.name for folder in lists_of]
    curves = {}
    for folder, lists in lists_of.items():
        title = folder.name if titles.count(folder.name) == 1 else str(folder)
        first = next(iter(lists.values()))
        for label, curve in levels_of(first.method, first.lists).items():
            points = {lists[root].name: control for root, control in curve.items() if root in lists}
            if len(points) > 1:
                curves[title if label == ListKey().label else f"{title}, {label}"] = points
    return curves
