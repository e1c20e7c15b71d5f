"""Means over phases: of absolute values where they are absolute, and of what every phase has."""

from __future__ import annotations

import math

import pytest

from data.protocols.base import Protocol
from model.evaluation.averages import averaged
from model.evaluation.keys import CHANCE, CHANCE_STD, EXCESS, HIGH, LOW, USERS, MetricKey, P
from tests.support.blocks import made_of, protocol_of


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    """Three snapshots, the later two of which are averaged, asked two tasks in two ways."""
    return protocol_of(made_of(150))


def gaps(signed: float) -> dict[str, float]:
    """The spread of two groups of which the first is `signed` ahead, and its parts."""
    of = {name: MetricKey("f1", 10, "side", spread=name) for name in ("difference", "gap")}
    parts = {CHANCE: 0.1, EXCESS: abs(signed) - 0.1, CHANCE_STD: 0.01, P: 0.5}
    levels = {str(of["gap"].of(part)): value for part, value in parts.items()}
    ends = {str(MetricKey("f1", 10, "side", "a", part=part)): 1.0 for part in (LOW, HIGH, USERS)}
    return {str(of["difference"]): signed, str(of["gap"]): abs(signed), **levels, **ends}


def test_absolute_values_are_taken_before_the_mean(protocol):
    results = {f"test/snapshot-{number}/next": gaps(value) for number, value in enumerate((9.0, 0.3, -0.1))}
    (name, found), *others = averaged(results, protocol).items()
    assert name == "test/mean/next" and not others
    # the first snapshot is no part of it
    assert found == pytest.approx(
        {
            "f1@10/difference/side": 0.1,
            "f1@10/gap/side": 0.2,
            "f1@10/gap/chance/side": 0.1,
            "f1@10/gap/excess/side": 0.1,
        }
    )


def test_a_list_that_a_phase_lacks_has_no_mean_and_an_undefined_value_makes_it_undefined(protocol):
    results = {
        "test/snapshot-1/next": {"f1@10": 0.5, "ndcg@10": math.nan},
        "test/snapshot-2/next": {"f1@10": 0.25, "ndcg@10": 0.5, "mrr@10": 1.0},
        "test/snapshot-1/remain": {"f1@10": 0.5},
        "reference/popular/snapshot-1/remain": {"f1@10": 0.5},
        "reference/popular/snapshot-2/remain": {"f1@10": 0.1},
    }
    found = averaged(results, protocol)
    assert set(found) == {"test/mean/next", "reference/popular/mean/remain"}
    assert found["test/mean/next"] == pytest.approx({"f1@10": 0.375, "ndcg@10": math.nan}, nan_ok=True)
    assert found["reference/popular/mean/remain"] == pytest.approx({"f1@10": 0.3})
