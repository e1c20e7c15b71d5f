"""The history sources of a phase, which training and evaluation share."""

from __future__ import annotations

from typing import Any

from data.sampling.sources import HistorySource, history_source
from data.structs import Histories, Split


class HistorySources:
    """The history sources of one split, each built when it is first asked for; another split frees them."""

    def __init__(self, method: Any):
        """`method` says how histories are weighted, its backbone whether it reads any."""
        self._method = method
        self._split: Split | None = None
        self._built: list[tuple[Histories, HistorySource]] = []

    def of(self, histories: Histories, split: Split) -> HistorySource | None:
        """Give the source of `histories` of a phase on `split`; None where the backbone reads no history."""
        method = self._method
        kind = method.backbone.history_kind
        if kind is None:
            return None
        if self._split is not split:
            self._split, self._built = split, []
        for known, source in self._built:
            if known is histories:
                return source
        weights = method.history_weights(histories, split) if kind == "sampled" else None
        device, config = method.environment.device, method.config
        source = history_source(kind, histories, weights, config.sample_size, device, config.upstream_compat)
        self._built.append((histories, source))
        return source
