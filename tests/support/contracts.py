"""What the contract tests of the registries share: runs that are set up as the program does it, and cells that work."""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass
from itertools import islice, product

import torch
from absl.testing import flagsaver

import main
from data.dataloader import BatchSampler
from data.protocols.base import Phase
from model import BACKBONES, METHODS, NCF_FORMS, SYNTHESIZERS
from model.methods.base import Method
from model.modes import setup
from model.runs.config import Config
from model.runs.run import Run
from model.runs.streams import global_generators, torch_generator
from model.training.batches import batch_sampler, draw_batch
from model.training.update import update

# K lists of every protocol; all else as presets have it
SMALL = {
    "dataset": "synthetic",
    "synthetic_users": 60,
    "synthetic_items": 50,
    "synthetic_interactions": 900,
    "eval_k": ["20", "10"],
    "device": "cpu",
}


def config_of(**values) -> Config:
    """The settings under flags; ValueError for what does not go together."""
    with flagsaver.flagsaver(**SMALL, **values):
        return main.settings_from_flags().config()


def is_refused(**values) -> bool:
    """Whether the program refuses these flags together."""
    try:
        config_of(**values)
    except ValueError:
        return True
    return False


def flags_of(backbone: str, method: str = "none", protocol: str = "loo") -> dict:
    """The flags that choose a backbone, a method and a protocol."""
    values = {"backbone": backbone, "protocol": protocol}
    return values if method == "none" else values | {"enable_fairness": True, "fairness_method": method}


def forms() -> dict[str, dict]:
    """Every backbone, in each form of itself and each synthesis of histories that it reads: flags by name."""
    found = {}
    settings = (("synthesis_type", SYNTHESIZERS), ("ncf_form", NCF_FORMS))
    for backbone in BACKBONES:
        found[backbone] = {"backbone": backbone}
        plain = config_of(backbone=backbone)
        for setting, names in settings:
            for name in names:
                values = {"backbone": backbone, setting: name}
                if name != getattr(plain, setting) and not is_refused(**values):
                    found[f"{backbone}-{name}"] = values
    return found


def cells() -> list[tuple[str, str]]:
    """Every method on every backbone that it supports under leave-one-out."""
    return [
        (method, backbone)
        for method, backbone in product(METHODS, BACKBONES)
        if METHODS[method].unsupported(config_of(**flags_of(backbone, method))) is None
    ]


def first_cells() -> list[tuple[str, str]]:
    """Every method on the first backbone that it supports."""
    return list({method: (method, backbone) for method, backbone in reversed(cells())}.values())[::-1]


def same(first, second) -> bool:
    """Whether two nests of dicts and lists hold the same tensors and values."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(*pair) for pair in zip(first, second, strict=True))
    return first == second


@dataclass
class Trained:
    """A run that is set up, its first phase, and what steps take."""

    run: Run
    phase: Phase
    backbone: torch.nn.Module
    method: Method
    sampler: BatchSampler
    generators: dict[str, torch.Generator]

    def batches(self, stage: str, count: int):
        """The next `count` batches of `stage`, which the same streams give again."""
        size = self.method.schedule(stage, self.phase).batch_size
        for edges in islice(self.sampler.batches(size, self.generators["order"]), count):
            yield draw_batch(self.sampler, edges, self.method, stage, self.generators)

    def step(self, stage: str, count: int = 1) -> list[dict[str, torch.Tensor]]:
        """Take `count` steps of every pass of an epoch of `stage`; what each reports."""
        found = []
        for name in self.method.passes(stage, 1):
            found += [self.method.train_step(batch, stage, name, update) for batch in self.batches(stage, count)]
        return found

    def begin_stage(self, stage: str) -> None:
        """Begin `stage` and its first epoch, or go on within it."""
        self.method.begin_stage(stage)
        self.method.begin_epoch(stage, 1)

    def state(self) -> dict:
        """All that a state file holds of backbone, method and streams, written and read as the program does it."""
        content = {
            "backbone": self.backbone.state_dict(),
            "method": self.method.state_dict(),
            "training": self.method.training_state(),
            "generators": {name: generator.get_state() for name, generator in self.generators.items()},
        }
        file = io.BytesIO()
        torch.save(content, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def load(self, state: dict) -> None:
        """Take back what `state` gave."""
        state = copy.deepcopy(state)
        self.backbone.load_state_dict(state["backbone"])
        self.method.load_state_dict(state["method"])
        self.method.load_training_state(state["training"])
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name])


# what makes steps short and their effect plain, where it is read
BRISK = {"epochs": 2, "batch_size": 256, "lr": 0.01, "user_hidden": ["32"], "item_hidden": ["32"]}


def begun(**values) -> Trained:
    """Set up a small run under flags and begin its first phase."""
    brisk = {name: value for name, value in BRISK.items() if not is_refused(**values, **{name: value})}
    run = setup.prepare(config_of(**values, **brisk))
    phase = run.protocol.phases[0]
    backbone, method = setup.build(run)
    sampler = batch_sampler(run, phase, backbone, method)
    method.begin_phase(phase, 100)
    seeds = run.environment.phase_seeds(phase.number)
    streams = {name: torch_generator(seeds[name], run.device) for name in ("order", "negatives", "history")}
    streams |= global_generators(seeds["dropout"], run.device, 0)
    return Trained(run, phase, backbone, method, sampler, streams)
