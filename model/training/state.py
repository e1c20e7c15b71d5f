"""The state of a run: everything that training changes, saved so that a resumed run goes on exactly."""

from __future__ import annotations

import contextlib
import copy
import json
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.files import WriteError
from data.protocols.base import FRESH, Phase
from model.methods.base import Method, Schedule
from model.runs.config import Config, differences
from model.runs.errors import NotFiniteError
from model.runs.processes import Processes
from model.runs.streams import own_generators
from model.training.checkpoints import Selection, load_tensors, save_tensors
from model.training.progress import Progress

STATE_FORMAT = "state 6"  # never a checkpoint's


@dataclass
class Training:
    """Everything that training changes: weights, what the method keeps, random streams, the best epoch, the progress.

    `starts` names the states from which later phases start (`Protocol.starts`); they are kept until then. The saved
    state is the same for any number of processes, but for the streams of dropout.
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
        """Begin `phase`, or go on from `saved`, with fresh random `streams`; backbone and method have begun it already.

        Streams that a network holds itself are saved too.
        """
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
        # copied, because an optimiser would change the kept tensors in place
        self.method.load_training_state(copy.deepcopy(state["training"]))

    def over(self, schedule: Schedule) -> bool:
        """Tell whether a stage with that `schedule` has no epoch left.

        Patience counts epochs without a better validation, so it is judged only after a validated epoch (Decision 22).
        """
        last, selection = self.progress.epoch - 1, self.selection
        patient = last not in selection.values or not schedule.exhausted(last, selection.epoch, selection.values)
        return last >= schedule.epochs or not patient

    def generator_states(self) -> dict[str, torch.Tensor]:
        """Give the state of every random stream."""
        return {name: generator.get_state() for name, generator in self.generators.items()}

    def set_generator_states(self, states: dict[str, torch.Tensor]) -> None:
        """Put every random stream back to the state that `generator_states` gave."""
        for name, generator in self.generators.items():
            # a state of fewer processes has no dropout stream for the further ones: theirs begins anew (Decision 34)
            if name in states or not name.startswith("dropout/"):
                generator.set_state(states[name])

    def check_finite(self) -> None:
        """Raise NotFiniteError where a weight, or a value that the epoch's steps reported, is not finite."""
        for name, weight in (*self.backbone.named_parameters(), *tensors(self.method.state_dict())):
            if not weight.isfinite().all():
                raise NotFiniteError(f"weights of {name} are not finite")
        bad = [key for key, value in self.progress.totals.items() if not value.isfinite()]
        if bad:
            raise NotFiniteError(f"the mean of {', '.join(bad)} is not finite")

    @contextlib.contextmanager
    def naming(self, where: str) -> Iterator[None]:
        """Turn a NotFiniteError into a ValueError that says where it came up, what is kept and what to do."""
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
        """Add to the `error` of a run that could not write how it is resumed; `phases` is how many the run has."""
        trained = self.progress.phase == phases
        what = "tests and writes again, without training" if trained else "goes on from the last saved state"
        return WriteError(f"{error}; then the same command with --resume and --run_name={run_name} {what}")

    def state(self) -> dict[str, Any]:
        """Give everything that resuming from here needs: tensors and plain values. All processes must call."""
        return {
            "progress": self.progress.as_json(),
            "totals": self.processes.sum_values(self.progress.totals),
            **self._own_state(),
            "generators": dict(ChainMap(*self.processes.from_all(self.generator_states()))),
            "selection": dict(vars(self.selection)),
            "kept": self.kept,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave; `Progress.of` reads the progress."""
        if not self.processes.first:
            # the first process holds the sums; the others need zeros of these names to take part in the next sum
            self.progress.totals = {key: torch.zeros_like(value) for key, value in self.progress.totals.items()}
        self._put(state)
        self.set_generator_states(state["generators"])
        self.selection, self.kept = Selection(**state["selection"]), state["kept"]


def tensors(state: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Give every tensor of nested dicts and sequences, with its place as a name: "encoder.layer.weight"."""
    if torch.is_tensor(state):
        yield name, state
    parts = state.items() if isinstance(state, Mapping) else enumerate(state) if isinstance(state, list | tuple) else ()
    for key, part in parts:
        yield from tensors(part, f"{name}.{key}" if name else str(key))


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
    save_tensors(header | state, path)


def read_state(path: Path, config: Config, fingerprint: str, device: torch.device) -> dict[str, Any] | None:
    """Read what `write_state` wrote, for a run on `device`; None where nothing was written.

    A state of another format, of other data, of a setting that changes results or of another kind of device (whose
    random streams differ) is a ValueError that shows the difference.
    """
    if not path.exists():
        return None
    state = load_tensors(path, "state", STATE_FORMAT, "delete it to begin again")
    try:
        # a setting that is newer than the state had its default then
        then = type(config).from_json(json.loads(state["config"]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot resume {path}: {error}. Pass another --run_name") from error
    pairs = {"data fingerprint": (state["fingerprint"], fingerprint), "device": (state["device"], device.type)}
    changed = [f"{name} was {old}, is {new}" for name, (old, new) in pairs.items() if old != new]
    changed += differences(then, config, lambda one: not one.free)
    if changed:
        raise ValueError(f"cannot resume {path}: {'; '.join(changed)}. Pass what it began with, or another --run_name")
    return state
