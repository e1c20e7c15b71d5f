"""Which finished lists are the levels of one training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from model.results.levels import curves_of, levels_of


def finished(folder, control, method="cofair", lists=("t0", "t1", "t2")):
    """A list of a finished run, as far as curves look at it."""
    root = f"test/{control}"
    roots = tuple(f"test/{one}" for one in lists)
    return SimpleNamespace(folder=Path(folder), root=root, name=f"{folder}:{control}", method=method, lists=roots)


def test_levels_of_one_run_are_joined_from_the_first_on():
    runs = [finished("a", "t2"), finished("b", "t1"), finished("a", "t0"), finished("other", "t1", "fabuhs")]
    runs.append(finished("other", "t0", "fabuhs"))
    assert curves_of(runs) == {"a": {"a:t0": "t0", "a:t2": "t2"}}
    assert list(curves_of(runs)["a"]) == ["a:t0", "a:t2"]


def test_runs_of_one_name_and_reranked_levels_are_curves_of_their_own():
    lists = ("t0", "t0/reranked", "t1", "t1/reranked")
    runs = [finished(folder, control, lists=lists) for folder in ("x/a", "y/a") for control in lists]
    curves = curves_of(runs)
    assert list(curves) == ["x/a", "x/a, re-ranked", "y/a", "y/a, re-ranked"]
    assert curves["y/a, re-ranked"] == {"y/a:t0/reranked": "t0", "y/a:t1/reranked": "t1"}


def test_only_several_levels_of_a_method_that_orders_them_are_joined():
    assert levels_of("cofair", ["test/t0", "test/t1"]) == {"this run": {"test/t0": "t0", "test/t1": "t1"}}
    assert levels_of("cofair", ["test/t1"]) == {}
    for method in ("fabuhs", "another program"):
        assert levels_of(method, ["test/t0", "test/t1"]) == {}
