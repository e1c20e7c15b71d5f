"""How sure a mean over users is, for all of them and by user group."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.special import stdtrit

from data.structs import EvalResult, Group
from fairness_utils import mean_defined
from model.evaluation.keys import HIGH, HITS, LOW, USERS, MetricKey
from model.evaluation.metric_kinds import ACCURACY

LEVEL = 0.95


def mean_interval(values: np.ndarray) -> np.ndarray:
    """Compute the mean of fractions `[T]` and its 95 % interval by Student's t, cut off at 0 and 1: mean, low, high
    `[3]`.

    NaN values are left out; the interval of fewer than two values, or of equal ones, is NaN.
    """
    values = values[~np.isnan(values)]
    mean, count = mean_defined(values), len(values)
    if count < 2 or np.ptp(values) == 0:
        return np.array([mean, np.nan, np.nan])
    half = stdtrit(count - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / np.sqrt(count)
    return np.array([mean, max(mean - half, 0.0), min(mean + half, 1.0)])


def group_intervals(outcome: EvalResult, users: np.ndarray, user_groups: Mapping[str, Group]) -> dict[str, float]:
    """Compute the interval of the accuracy of each user group of the ranked `users [T]`: parts by metric key.

    With the hit rate also come the group's users who were asked, and those of them with a hit.
    """
    parts: dict[str, float] = {}
    for text, values in outcome.per_user.items():
        row = MetricKey.parse(text)
        if row.metric.kind != ACCURACY:
            continue
        for name, group in user_groups.items():
            codes = group.codes[users]
            for code, label in enumerate(group.labels):
                key, own = MetricKey(row.name, row.k, name, label), values[codes == code]
                _, parts[str(key.of(LOW))], parts[str(key.of(HIGH))] = map(float, mean_interval(own))
                if row.name == "hr":
                    parts[str(key.of(USERS))] = int(np.sum(~np.isnan(own)))
                    parts[str(key.of(HITS))] = int(np.sum(own > 0))
    return parts
