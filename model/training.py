"""Pieces of the training loop that live apart from it: the one update, epoch selection, checkpoints, exact resume."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.protocols import FRESH, Phase
from model.config import FREE_SETTINGS, Config, own_generators
from model.distributed import ALONE, Processes
from model.methods.base import Method, Schedule
from model.ranking import NotFiniteError
from model.report import WriteError, atomic_path

CHECKPOINT_FORMAT = 3
STATE_FORMAT = "state 4"  # never a checkpoint's


def update(
    loss: torch.Tensor,
    *optimisers: torch.optim.Optimizer,
    processes: Processes = ALONE,
) -> None:
    """Take one step of each of `optimisers` on the sum of the processes' `loss`; not a finite one is NotFiniteError."""
    # asking a GPU for every loss would stall it; there the epoch's mean is checked instead
    if loss.device.type == "cpu" and not math.isfinite(loss.item()):
        raise NotFiniteError(f"the training loss is {loss.item()}")
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    loss.backward()
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    processes.sum_gradients(parameter for group in groups for parameter in group["params"])
    for optimiser in optimisers:
        optimiser.step()


@dataclass
class Selection:
    """Which epoch is best so far on validation, its weights, and when to stop looking (Decision 22).

    `values` are all validations so far by epoch.
    """

    epoch: int = 0
    value: float = -math.inf
    weights: dict[str, Any] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)

    def offer(self, epoch: int, value: float, backbone: nn.Module, method: Method) -> bool:
        """Tell whether `epoch` is the best so far, and keep its weights if so; a NaN never is."""
        # a numpy number would need pickle, which a checkpoint must not
        value = self.values[epoch] = float(value)
        if not value > self.value:
            return False
        self.take(epoch, backbone, method, value)
        return True

    def take(self, epoch: int, backbone: nn.Module, method: Method, value: float = math.nan) -> None:
        """Keep the weights of `epoch`; where no validation says what they are worth, `value` is NaN."""
        self.epoch, self.value = epoch, value
        self.weights = copy.deepcopy({"backbone": backbone.state_dict(), "method": method.state_dict()})

    def restore(self, backbone: nn.Module, method: Method) -> None:
        """Put the best weights back."""
        backbone.load_state_dict(self.weights["backbone"])
        method.load_state_dict(self.weights["method"])


def save_checkpoint(path: Path, config: Config, phase: Phase, selection: Selection) -> None:
    """Write the selected weights, whole or not at all: tensors and plain JSON, readable with `weights_only=True`.

    The fingerprint of what `phase` trains on goes with them: other test items may be asked of these weights.
    """
    content = {
        "format": CHECKPOINT_FORMAT,
        "config": json.dumps(config.as_json(), sort_keys=True),
        "fingerprint": phase.split.fingerprint(),
        "train_fingerprint": phase.split.train_fingerprint(),
        "selected_by": phase.selected_by,
        "epoch": selection.epoch,
        "validation": selection.value,
        **selection.weights,
    }
    _save(content, path)


def _save(content: dict[str, Any], path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def _load(path: Path, kind: str, expected_format: int | str, remedy: str) -> dict[str, Any]:
    """Read a file that this program saved; one that is broken or of another format is a ValueError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles by others, which the error is about
            content = torch.load(path, map_location="cpu", weights_only=True)
        found = dict(content)["format"]
    except Exception as error:  # torch raises whatever its parts do
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read as a {kind} ({reason}); {remedy}") from error
    if found != expected_format:
        raise ValueError(f"{path}: {kind} format {found}, this version reads {expected_format}; {remedy}")
    return content


def load_checkpoint(path: Path) -> tuple[Config, dict[str, Any]]:
    """Read what `save_checkpoint` wrote, from the file or the run's folder: the run's settings and the content."""
    path = path / "checkpoint.pt" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path} is no file; pass a run's folder or its checkpoint.pt")
    remedy = "pass one that this version of the program wrote"
    content = _load(path, "checkpoint", CHECKPOINT_FORMAT, remedy)
    try:
        config = Config.from_json(json.loads(content["config"]))
        for name in ("train_fingerprint", "selected_by", "epoch", "validation", "backbone", "method"):
            content[name]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no whole checkpoint ({error}); {remedy}") from error
    return config, content


def resume_command(config: Config, processes: Processes) -> str:
    """This program's command line, made to go on with the run: ready to paste where it was typed."""
    command = [sys.executable]
    if processes.world > 1:
        command += ["-m", "torch.distributed.run", f"--nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}"]
    # of a flag that is given twice the last one counts
    wanted = [f"--run_name={config.run_name}", "--resume"]
    return shlex.join([*command, *sys.argv, *(flag for flag in wanted if flag not in sys.argv)])


class Stopped(BaseException):
    """A signal ended the run at a place from which it can go on; not an Exception, as no part may swallow it."""

    def __init__(self, number: int, command: str):
        """`command` goes on from here."""
        super().__init__(f"stopped by {signal.Signals(number).name}; this goes on from here: {command}")
        self.exit_code = 128 + number


class StopSignals:
    """Within this context SIGINT and SIGTERM wait for `check`, which raises `Stopped`; in `at_once` they raise it.

    Many `processes` stop at the same `check`, and never in between: one that left would leave the others waiting.
    """

    def __init__(self, processes: Processes, command: str):
        """`command` is what `Stopped` tells the user to go on with."""
        self._processes, self._command = processes, command
        self._number, self._at_once = 0, False

    def __enter__(self) -> StopSignals:
        self._previous = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame) -> None:
        self._number = number
        if self._at_once:
            raise Stopped(number, self._command)

    def check(self) -> None:
        """Raise `Stopped` if a signal has come to any process."""
        number = self._processes.any_of(self._number)
        if number:
            raise Stopped(number, self._command)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise `Stopped` wherever a signal arrives: for work that is done again when the run goes on."""
        self._at_once = self._processes.world == 1
        try:
            self.check()
            yield
        finally:
            self._at_once = False


@dataclass
class Progress:
    """How far a run has come, and what it has gathered.

    `phase`, `stage` and `turn` (a pass of the epoch) are positions, `epoch` counts from 1, `step` steps of the turn
    are done; `totals` sums each value over the epoch's `counts` of rows that report it, this process's share of it.
    `seconds` are spent by activity, since the run began; `rows` are those of `metrics.jsonl`, `results` the metrics of
    earlier phases.
    """

    phase: int = 0
    stage: int = 0
    epoch: int = 1
    turn: int = 0
    step: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)
    results: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("read", "train", "test", "write"), 0.0))
    tracker: str | None = None
    totals: dict[str, torch.Tensor] = field(default_factory=dict)
    _since: float = 0.0

    @staticmethod
    def of(saved: dict | None, started: float, device: torch.device | str = "cpu") -> Progress:
        """What a saved state says, or the beginning; time counts from `started`."""
        progress = Progress() if saved is None else Progress(**json.loads(saved["progress"]))
        progress._since = started
        if saved is not None:
            progress.totals = {key: value.to(device) for key, value in saved["totals"].items()}
        return progress

    def as_json(self) -> str:
        """Everything but the tensors."""
        values = {name: value for name, value in vars(self).items() if name not in ("totals", "_since")}
        return json.dumps(values, default=lambda value: value.item())

    def add(self, values: dict[str, torch.Tensor], rows: int) -> None:
        """Count a step on `rows` rows and the values that it reports."""
        for key, value in values.items():
            self.totals[key] = self.totals.get(key, 0.0) + value.double() * rows
            self.counts[key] = self.counts.get(key, 0) + rows
        self.step += 1

    def means(self, processes: Processes) -> dict[str, float]:
        """Mean of each value over the epoch's rows that report it: passes may report different ones."""
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


@dataclass
class Training:
    """All that training changes: weights, what the method keeps, random streams, the best epoch and the progress.

    `starts` names the states from which later phases start (`Protocol.starts`), which it keeps until then. Its state is
    the same for any number of processes.
    """

    backbone: nn.Module
    method: Method
    progress: Progress
    processes: Processes
    starts: frozenset[str] = frozenset()
    selection: Selection = field(init=False)
    generators: dict[str, torch.Generator] = field(init=False)
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)

    def begin_phase(self, phase: Phase, streams: dict[str, torch.Generator], saved: dict[str, Any] | None) -> None:
        """Take up `phase`, which backbone and method have begun, as `saved` or as it starts, with fresh random
        `streams`, beside which a network may have its own."""
        self.selection = Selection()
        self.generators = {**streams, **own_generators(self.backbone)}
        if saved is not None:
            self.load(saved)
            return
        if self.progress.phase == 0:
            self._keep(FRESH)
        elif phase.start in self.starts:
            self._put(self.kept[phase.start])

    def end_phase(self, phase: Phase) -> None:
        """Keep what `phase` ended with, where a later one starts from it."""
        self._keep(phase.name)

    def _keep(self, name: str) -> None:
        if name in self.starts:
            self.kept[name] = copy.deepcopy(self._own_state())

    def _own_state(self) -> dict[str, Any]:
        parts = {"backbone": self.backbone.state_dict(), "method": self.method.state_dict()}
        return {**parts, "training": self.method.training_state()}

    def _put(self, state: dict[str, Any]) -> None:
        self.backbone.load_state_dict(state["backbone"])
        self.method.load_state_dict(state["method"])
        # an optimiser would go on with the very tensors, and what is kept must stay as it is
        self.method.load_training_state(copy.deepcopy(state["training"]))

    def over(self, phase: Phase, schedule: Schedule) -> bool:
        """Tell whether a stage of `phase` with that `schedule` has no epoch left."""
        epoch = self.progress.epoch
        asks = phase.valid is not None
        best, values = self.selection.epoch, self.selection.values
        return epoch > schedule.epochs or (asks and schedule.exhausted(epoch - 1, best, values))

    def generator_states(self) -> dict[str, torch.Tensor]:
        """State of every random stream."""
        return {name: generator.get_state() for name, generator in self.generators.items()}

    def set_generator_states(self, states: dict[str, torch.Tensor]) -> None:
        """Put every random stream where `generator_states` found it."""
        for name, generator in self.generators.items():
            generator.set_state(states[name])

    def check_finite(self) -> None:
        """Raise NotFiniteError where a weight, or a value that the epoch's steps reported, is not finite."""
        own = {name: value for name, value in self.method.state_dict().items() if torch.is_tensor(value)}
        for name, weight in (*self.backbone.named_parameters(), *own.items()):
            if not weight.isfinite().all():
                raise NotFiniteError(f"weights of {name} are not finite")
        bad = [key for key, value in self.progress.totals.items() if not value.isfinite()]
        if bad:
            raise NotFiniteError(f"the mean of {', '.join(bad)} is not finite")

    @contextlib.contextmanager
    def naming(self, where: str) -> Iterator[None]:
        """Say of a number that is not finite where it came up, what is left and what to do (ValueError)."""
        try:
            yield
        except NotFiniteError as error:
            best = self.selection.epoch
            kept = f"checkpoint.pt keeps epoch {best}, the best before" if best else "no epoch was kept"
            raise ValueError(
                f"{where}: {error}: training has diverged ({kept}); begin another run with a lower --lr, or lower "
                "adversarial weights"
            ) from error

    def unwritten(self, error: WriteError, run_name: str, phases: int) -> WriteError:
        """The `error` of a run that could not write, with how it goes on; `phases` is how many the run has."""
        trained = self.progress.phase == phases
        what = "tests and writes again, without training" if trained else "goes on from the last saved state"
        return WriteError(f"{error}; then the same command with --resume and --run_name={run_name} {what}")

    def state(self) -> dict[str, Any]:
        """Everything that going on from here needs: tensors and plain values. All processes must ask."""
        return {
            "progress": self.progress.as_json(),
            "totals": self.processes.sum_values(self.progress.totals),
            **self._own_state(),
            "generators": self.generator_states(),
            "selection": dict(vars(self.selection)),
            "kept": self.kept,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave; `Progress.of` reads the progress."""
        if not self.processes.first:
            # the first holds them all; without the names this process would not take part in the next sum
            self.progress.totals = {key: torch.zeros_like(value) for key, value in self.progress.totals.items()}
        self._put(state)
        self.set_generator_states(state["generators"])
        self.selection, self.kept = Selection(**state["selection"]), state["kept"]


def write_state(path: Path, config: Config, fingerprint: str, training: Training) -> None:
    """Write all that `--resume` needs, whole or not at all; loads with `weights_only=True`.

    `fingerprint` is that of the data, which must be the same when the run goes on. All processes call, one writes.
    A state from which nothing good can come, as a weight is not finite, is a NotFiniteError and not written.
    """
    training.check_finite()
    state = training.state()
    if not training.processes.first:
        return
    header = {
        "format": STATE_FORMAT,
        "config": json.dumps(config.as_json(), sort_keys=True),
        "fingerprint": fingerprint,
        "device": next(training.backbone.parameters()).device.type,
    }
    _save(header | state, path)


def read_state(path: Path, config: Config, fingerprint: str, device: torch.device) -> dict[str, Any] | None:
    """Read what `write_state` wrote, for a run on `device`; None where nothing was written.

    A state of another format, of other data, of a setting that changes results or of another kind of device (whose
    random streams differ) is a ValueError that shows the difference.
    """
    if not path.exists():
        return None
    state = _load(path, "state", STATE_FORMAT, "delete it to begin again")
    then, now = json.loads(state["config"]), json.loads(json.dumps(config.as_json()))
    before = {"data fingerprint": state["fingerprint"], "device": state["device"]}
    after = {"data fingerprint": fingerprint, "device": device.type}
    for name in sorted({*then, *now} - FREE_SETTINGS):
        before[f"--{name}"], after[f"--{name}"] = then.get(name), now.get(name)
    changed = [f"{name} was {before[name]}, is {after[name]}" for name in before if before[name] != after[name]]
    if changed:
        raise ValueError(f"cannot resume {path}: {'; '.join(changed)}. Pass what it began with, or another --run_name")
    return state
