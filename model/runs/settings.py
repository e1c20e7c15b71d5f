"""What the flags say together: which belong to which mode, presets, and the Config and Request that come of them."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from model import BACKBONES
from model.runs.config import EVALUATION_SETTINGS, Config, Request, network_name
from model.runs.files import check_table_path
from model.runs.presets import preset

SETTINGS = {field.name for field in dataclasses.fields(Config)}
SERVING = {
    "dataset_dir", "cache_dir", "device", "eval_block_mb", "eval_history_draws", "eval_k", "rerank_fair",
    "rerank_alpha", "exposure_floor", "rerank_pool", "rerank_target",
}  # fmt: skip
READING = {
    "dataset", "dataset_dir", "cache_dir", "title_encoder", "max_bad_rows", "keep_incomplete_users",
    "synthetic_users", "synthetic_items", "synthetic_interactions", "seed",
}  # fmt: skip
# The settings that each mode reads: one that the user gives and the mode does not read is an error, not silence.
MODE_SETTINGS: dict[str, set[str]] = {
    "train": SETTINGS,
    "evaluate": EVALUATION_SETTINGS,
    "recommend": SERVING,
    "score": READING | EVALUATION_SETTINGS - {"device", "eval_history_draws", "eval_negatives", "eval_block_mb"},
    "compare": {"output_dir", "run_name", "eval_k"},
}

_FAIR, _SAMPLED, _RERANKED = ("enable_fairness", (True,)), ("fairness_sampling", (True,)), ("rerank_fair", (True,))
_BUHS = ("fairness_method", ("fabuhs",))
_SYNTHETIC = ("dataset", ("synthetic",))
# A flag that nothing would read otherwise: flag -> the flags that it needs, each with those of its values which do.
REQUIRES: dict[str, tuple[tuple[str, tuple], ...]] = {
    "checkpoint": (("mode", ("evaluate", "recommend")),),
    "users": (("mode", ("recommend",)),),
    "control": (("mode", ("evaluate", "recommend")),),
    "recommendations": (("mode", ("recommend",)),),
    "rankings": (("mode", ("score",)),),
    "runs": (("mode", ("compare",)),),
    "seeds": (("mode", ("train",)),),
    "export_split": (("dry_run", (True,)),),
    "fairness_method": (_FAIR,),
    "method_option": (_FAIR,),
    "fairness_sampling": (_FAIR, _BUHS, ("backbone", ("sparsenn",))),
    "adversarial_lambda_user": (_FAIR, _BUHS),
    "adversarial_lambda_item": (_FAIR, _BUHS),
    "adversarial_ramp": (_FAIR, _BUHS),
    "item_adversary": (_FAIR, _BUHS),
    "adversary_input": (_FAIR, _BUHS),
    "rerank_fair": (_FAIR,),
    "fairness_weight": (_SAMPLED,),
    "rerank_alpha": (_RERANKED,),
    "exposure_floor": (_RERANKED,),
    "rerank_pool": (_RERANKED,),
    "rerank_target": (_RERANKED,),
    "attention_heads": (("synthesis_type", ("attention",)),),
    "keep_incomplete_users": (("dataset", ("bx",)),),
    "synthetic_users": (_SYNTHETIC,),
    "synthetic_items": (_SYNTHETIC,),
    "synthetic_interactions": (_SYNTHETIC,),
}  # fmt: skip
# What a mode cannot do without: mode -> flag.
NEEDS = {"evaluate": "checkpoint", "recommend": "checkpoint", "score": "rankings", "compare": "runs"}


def positive(name: str, value: float) -> float:
    """`value`, which must be above 0."""
    if not value > 0:
        raise ValueError(f"--{name}={value} must be above 0")
    return value


def finite(name: str, value: float) -> float:
    """`value`, which must be no infinity."""
    if math.isinf(value):
        raise ValueError(f"--{name}={value}: allowed is a finite number")
    return value


def integers(name: str, parts: list | tuple, least: int = 1) -> tuple[int, ...]:
    """Whole numbers of at least `least` from a comma-separated flag."""
    shown = f"--{name}={','.join(map(str, parts))}"
    try:
        numbers = tuple(int(part) for part in parts)
    except ValueError as error:
        raise ValueError(f"{shown}: allowed are whole numbers, comma-separated") from error
    if not numbers or min(numbers) < least:
        raise ValueError(f"{shown}: every number must be at least {least}")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{shown}: a number occurs twice; leave the repeat out")
    return numbers


def saving_interval(text: str) -> tuple[int | None, float | None]:
    """Read `--checkpoint_every`: (epochs, None), or (None, minutes) where it ends in `min`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(min)?", text)
    if found is None or not float(found[1]) > 0 or (found[2] is None and "." in found[1]):
        raise ValueError(f"--checkpoint_every={text}: allowed is a number of epochs (1) or of minutes (10min), above 0")
    return (None, float(found[1])) if found[2] else (int(found[1]), None)


def widths(name: str, parts: list | tuple) -> tuple[int, ...]:
    """Layer widths, which may repeat."""
    return tuple(integers(name, [part])[0] for part in parts)


def expanded(name: str, value: str | Path) -> Path:
    """A path, `~` put in."""
    return Path(value).expanduser()


# How a flag's text becomes a setting.
CONVERSIONS: dict[str, Callable[[str, Any], Any]] = {
    "eval_k": integers,
    "user_hidden": widths,
    "item_hidden": widths,
    "dataset_dir": expanded,
    "cache_dir": expanded,
    "output_dir": expanded,
    "checkpoint": expanded,
    "recommendations": expanded,
    "rankings": expanded,
    "export_split": expanded,
    "backbone_checkpoint": expanded,
    "weight_decay": finite,
    "protocol_option": lambda name, value: tuple(value),
    "lr": lambda name, value: finite(name, positive(name, value)),
    "adversarial_lambda_user": finite,
    "adversarial_lambda_item": finite,
    "sampling_softmax_temp": positive,
    "warm_threshold": positive,
    "user_attribute": lambda name, value: tuple(value),
    "method_option": lambda name, value: tuple(value),
    "users": lambda name, value: tuple(value),
    "runs": lambda name, value: tuple(value),
    "seeds": lambda name, value: integers(name, value, least=0) if value else (),
}


def converted(name: str, value: Any) -> Any:
    """The setting that a flag's `value` stands for."""
    return CONVERSIONS[name](name, value) if name in CONVERSIONS and value is not None else value


def _comma_separated(value: Any) -> str:
    if not isinstance(value, list | tuple):
        return str(value)
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(value)
    return text.getvalue()


# Flags that are given once for each of their values; other lists are comma-separated.
REPEATED = {"method_option", "protocol_option"}


def _requirements() -> Iterator[tuple[str, str, tuple]]:
    return ((name, needed, allowed) for name, entries in REQUIRES.items() for needed, allowed in entries)


def is_read(name: str, config: Config) -> bool:
    """Tell whether a run under `config` reads the setting `name`."""
    needs = all(getattr(config, needed) in allowed for needed, allowed in REQUIRES.get(name, ()) if needed in SETTINGS)
    return needs and name not in BACKBONES[config.backbone].unread


@dataclass(frozen=True)
class Settings:
    """The `values` of all flags, the names of those `given` another value than their default, and of all `named`,
    which may repeat the default: a checkpoint's settings differ from it."""

    values: Mapping[str, Any]
    given: frozenset[str]
    named: frozenset[str] = frozenset()

    @property
    def request(self) -> Request:
        """What is asked of the program."""
        names = [field.name for field in dataclasses.fields(Request)]
        return Request(**{name: converted(name, self.values[name]) for name in names})

    def check(self) -> None:
        """Refuse flags that nothing would read, and those that do not go together."""
        values, mode = self.values, self.values["mode"]
        read = MODE_SETTINGS[mode]
        for name in sorted(self.given & SETTINGS - read):
            raise ValueError(f"--{name}={values[name]} has no effect with --mode={mode}; leave it out")
        for name, needed, allowed in _requirements():
            # a checkpoint's own settings count too; `over` knows them
            judged = name not in SETTINGS or (needed in read and not values["checkpoint"])
            if judged:
                self._require(name, values[needed], needed, allowed)
        unread = self.given & BACKBONES[values["backbone"]].unread if not values["checkpoint"] else ()
        for name in sorted(unread):
            raise ValueError(
                f"--{name}={values[name]} has no effect with --backbone={values['backbone']}; leave it out"
            )
        for name in sorted(self.given):
            # a NaN passes every range
            if isinstance(values[name], float) and math.isnan(values[name]):
                raise ValueError(f"--{name}=nan: allowed is a number")
        if values["recommendations"]:
            check_table_path(converted("recommendations", values["recommendations"]))
        if mode in NEEDS and not values[NEEDS[mode]]:
            raise ValueError(f"--mode={mode} needs --{NEEDS[mode]}")
        if {"seed", "seeds"} <= self.given:
            raise ValueError("--seed and --seeds exclude each other; name every seed in --seeds")
        if values["synthesis_type"] == "none" and (values["user_hidden"] or values["item_hidden"]):
            raise ValueError(
                "--user_hidden and --item_hidden have no effect with --synthesis_type=none; leave them out"
            )
        if 96 % values["attention_heads"]:
            raise ValueError(
                f"--attention_heads={values['attention_heads']} does not divide the width 96; use a divisor of it"
            )
        saving_interval(values["checkpoint_every"])

    def _require(self, name: str, value: Any, needed: str, allowed: tuple) -> None:
        if name in self.given and value not in allowed:
            raise ValueError(
                f"--{name}={self.values[name]} has no effect without --{needed}={allowed[0]}; set both, or leave "
                f"--{name} out"
            )

    def config(self) -> Config:
        """All settings, presets filled in where the user left them open."""
        defaults = preset(*(self.values[name] for name in ("dataset", "recipe", "backbone", "protocol")))
        values = {name: self.values[name] for name in SETTINGS}
        values |= {name: defaults[name] for name, value in values.items() if value is None and name in defaults}
        values = {name: converted(name, value) for name, value in values.items()}
        if values["in_batch_negatives"] is None:
            values["in_batch_negatives"] = values["num_negatives"]
        if values["mask_sensitive_feature"] is None:  # Decision 17
            values["mask_sensitive_feature"] = values["enable_fairness"]
        if values["run_name"] is None:
            values["run_name"] = f"{self._subject()}-{datetime.now():%Y%m%d-%H%M%S}"
        return Config(**values)

    def over(self, trained: Config) -> Config:
        """The settings of a `trained` run under those given here."""
        # where results go and what computes is never the trained run's choice
        read = MODE_SETTINGS[self.values["mode"]]
        named = {name for name in self.named & read if self.values[name] is not None}
        names = (self.given & SETTINGS) | named | {"output_dir", "device", "wandb_mode"}
        chosen = {name: converted(name, self.values[name]) for name in names}
        if "run_name" not in chosen:
            chosen["run_name"] = f"{trained.run_name}-{self.values['mode']}-{datetime.now():%Y%m%d-%H%M%S}"
        config = dataclasses.replace(trained, **chosen)
        for name, needed, allowed in _requirements():
            if needed in MODE_SETTINGS[self.values["mode"]]:
                self._require(name, getattr(config, needed), needed, allowed)
        known = config.backbone in BACKBONES  # a checkpoint may name another
        for name in sorted(self.given & BACKBONES[config.backbone].unread if known else ()):
            shown = f"--{name}={self.values[name]}"
            raise ValueError(f"{shown} has no effect with --backbone={config.backbone}; leave it out")
        return config

    def arguments(self, without: Collection[str], changes: Mapping[str, Any]) -> list[str]:
        """A command line that gives the same flags but those of `without`, and those of `changes` anew."""
        values = {name: self.values[name] for name in sorted(self.given - set(without))} | dict(changes)
        return [
            f"--{name}={part}"
            for name, value in values.items()
            for part in (value if name in REPEATED else [_comma_separated(value)])
        ]

    def _subject(self) -> str:
        values, mode = self.values, self.values["mode"]
        if mode == "compare":
            return "compare"
        if mode == "score":
            return f"{values['dataset']}-score-{Path(values['rankings']).stem}"
        method = values["fairness_method"] if values["enable_fairness"] else "none"
        run = f"{values['dataset']}-{method}-{network_name(values['backbone'], values['synthesis_type'])}"
        return run if values["seeds"] else f"{run}-seed{values['seed']}"
