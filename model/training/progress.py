"""How far a run has come, and what it has collected."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

import torch

from model.runs.processes import Processes

# what the marks of the line about an epoch mean
EPOCH_MARKS = "each epoch: * best validation so far, [seconds to train + to validate]"


@dataclass
class Progress:
    """How far a run has come, and what it has collected.

    Positions: `phase`, `stage` and `turn` (which pass of the epoch) count from 0, `epoch` from 1; `step` is the number
    of steps done in the pass. `totals` sum each value over the epoch's rows that report it, this process's share;
    `counts` are how many rows did. `seconds` are the time spent by activity since the run began; `rows` are those of
    `metrics.jsonl`, `results` the metrics of earlier phases (list -> metric -> value).
    """

    phase: int = 0
    stage: int = 0
    epoch: int = 1
    turn: int = 0
    step: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)
    results: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("read", "train", "test", "write"), 0.0))
    tracker: str | None = None
    totals: dict[str, torch.Tensor] = field(default_factory=dict)
    _since: float = 0.0

    @staticmethod
    def of(saved: dict | None, started: float, device: torch.device | str = "cpu") -> Progress:
        """Read the progress of a saved state, or begin; time counts from `started`."""
        progress = Progress() if saved is None else Progress(**json.loads(saved["progress"]))
        progress._since = started
        if saved is not None:
            progress.totals = {key: value.to(device) for key, value in saved["totals"].items()}
        return progress

    def as_json(self) -> str:
        """Give everything but the tensors."""
        values = {name: value for name, value in vars(self).items() if name not in ("totals", "_since")}
        return json.dumps(values, default=lambda value: value.item())

    def add(self, values: dict[str, torch.Tensor], rows: int) -> None:
        """Count a step on `rows` rows and the values that it reports."""
        for key, value in values.items():
            self.totals[key] = self.totals.get(key, 0.0) + value.double() * rows
            self.counts[key] = self.counts.get(key, 0) + rows
        self.step += 1

    def means(self, processes: Processes) -> dict[str, float]:
        """Average each value over the epoch's rows that report it; passes may report different ones."""
        return {key: float(value) / self.counts[key] for key, value in processes.sum_values(self.totals).items()}

    def end_epoch(self, row: dict) -> None:
        """Keep the epoch's row and turn to the next epoch."""
        self.rows.append(row)
        self.epoch, self.turn, self.step, self.counts, self.totals = self.epoch + 1, 0, 0, {}, {}

    def spend(self, activity: str) -> None:
        """Charge the time since the last call to `activity`."""
        now = time.perf_counter()
        self.seconds[activity] += now - self._since
        self._since = now
