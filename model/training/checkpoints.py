"""Selection of the best epoch, and the checkpoint that holds its weights."""

from __future__ import annotations

import copy
import json
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.files import atomic_path
from data.protocols.base import Phase
from model.methods.base import Method
from model.runs.config import Config

CHECKPOINT_FORMAT = 3
CHECKPOINT = "checkpoint.pt"


@dataclass
class Selection:
    """The best epoch so far on validation, its weights, and all validations by epoch (Decision 22)."""

    epoch: int = 0
    value: float = -math.inf
    weights: dict[str, Any] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)

    def offer(self, epoch: int, value: float, backbone: nn.Module, method: Method) -> bool:
        """Tell whether `epoch` is the best so far, and keep its weights if so; a NaN never is."""
        # a numpy number would be pickled, and a checkpoint must load without pickle
        value = self.values[epoch] = float(value)
        if not value > self.value:
            return False
        self.take(epoch, backbone, method, value)
        return True

    def take(self, epoch: int, backbone: nn.Module, method: Method, value: float = math.nan) -> None:
        """Keep the weights of `epoch`; `value` is NaN where there is no validation."""
        self.epoch, self.value = epoch, value
        self.weights = copy.deepcopy({"backbone": backbone.state_dict(), "method": method.state_dict()})

    def restore(self, backbone: nn.Module, method: Method) -> None:
        """Put the best weights back."""
        backbone.load_state_dict(self.weights["backbone"])
        method.load_state_dict(self.weights["method"])


def phase_checkpoint(name: str) -> str:
    """Name the file that keeps the weights of the phase `name`."""
    return f"checkpoint-{name}.pt"


def save_checkpoint(path: Path, config: Config, phase: Phase, selection: Selection) -> None:
    """Write the selected weights, whole or not at all: tensors and plain JSON, readable with `weights_only=True`.

    The fingerprint of what `phase` trains on goes with them: other test items may be asked of these weights.
    """
    content = {
        "format": CHECKPOINT_FORMAT,
        "config": json.dumps(config.as_json(), sort_keys=True),
        "phase": phase.name,
        "fingerprint": phase.split.fingerprint(),
        "train_fingerprint": phase.split.train_fingerprint(),
        "selected_by": phase.selected_by,
        "epoch": selection.epoch,
        "validation": selection.value,
        **selection.weights,
    }
    save_tensors(content, path)


def save_tensors(content: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def load_tensors(path: Path, kind: str, expected_format: int | str, remedy: str) -> dict[str, Any]:
    """Read a file that this program saved; one that is broken or of another format is a ValueError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles by others, which the error is about
            content = torch.load(path, map_location="cpu", weights_only=True)
        found_format = dict(content)["format"]
    except Exception as error:  # torch raises whatever its parts do
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read as a {kind} ({reason}); {remedy}") from error
    if found_format != expected_format:
        raise ValueError(f"{path}: {kind} format {found_format}, this version reads {expected_format}; {remedy}")
    return content


def _refuse_scored(folder: Path) -> None:
    """Raise ValueError where `folder` is what `--mode=score` wrote."""
    result = folder / "result.json"
    if result.is_file() and not (folder / CHECKPOINT).exists() and '"rankings"' in result.read_text("utf-8"):
        raise ValueError(f"{folder} holds scored rankings, which have no weights; pass the folder of a trained run")


def load_checkpoint(path: Path) -> tuple[Config, dict[str, Any]]:
    """Read what `save_checkpoint` wrote, from the file or the run's folder: the run's settings and the content."""
    if path.is_dir():
        _refuse_scored(path)
        path = path / CHECKPOINT
    if not path.is_file():
        raise ValueError(f"{path} is no file; pass a run's folder or its {CHECKPOINT}")
    remedy = "pass one that this version of the program wrote"
    content = load_tensors(path, "checkpoint", CHECKPOINT_FORMAT, remedy)
    try:
        config = Config.from_json(json.loads(content["config"]))
        for name in ("train_fingerprint", "selected_by", "epoch", "validation", "backbone", "method"):
            content[name]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no whole checkpoint ({error}); {remedy}") from error
    return config, content
